// SPDX-License-Identifier: Apache-2.0
//! The response body on its way down. Writes the record when it ends or is dropped, and gives the
//! upstream connection back when it was read to its end.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{
    access_log::ResponseFlag,
    body::RequestBody,
    exchange::{Exchange, HttpPool},
    headers::grpc_status,
};
use crate::upstream::pool::Pooled;

/// Runs out when the route's timeout has.
pub type Deadline = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A response body that cannot go on; the client sees its stream break off.
#[derive(Debug, thiserror::Error)]
pub enum ResponseError {
    /// The upstream broke off.
    #[error("the upstream broke off its response")]
    Upstream(#[from] hyper::Error),
    /// The route's timeout ran out.
    #[error("the response took longer than the route's timeout")]
    Timeout,
}

/// A response body.
pub struct ResponseBody {
    content: Content,
    sent: u64,
    exchange: Option<Box<Exchange>>,
}

enum Content {
    Local(Bytes),
    Upstream {
        body: Incoming,
        connection: Option<(Pooled<RequestBody>, Arc<HttpPool>)>,
        deadline: Option<Deadline>,
    },
}

impl ResponseBody {
    /// An answer of our own.
    pub fn local(body: Bytes, exchange: Box<Exchange>) -> Self {
        Self {
            content: Content::Local(body),
            sent: 0,
            exchange: Some(exchange),
        }
    }

    /// An upstream's answer.
    pub fn upstream(
        body: Incoming,
        connection: Pooled<RequestBody>,
        pool: Arc<HttpPool>,
        deadline: Option<Deadline>,
        exchange: Box<Exchange>,
    ) -> Self {
        let mut body = Self {
            content: Content::Upstream {
                body,
                connection: Some((connection, pool)),
                deadline,
            },
            sent: 0,
            exchange: Some(exchange),
        };
        if body.is_end_stream() {
            body.release();
        }
        body
    }

    /// The body of a response that hands the connection over: none. Whoever relays it writes the
    /// record.
    pub fn upgraded() -> Self {
        Self {
            content: Content::Local(Bytes::new()),
            sent: 0,
            exchange: None,
        }
    }

    fn release(&mut self) {
        if let Content::Upstream { connection, .. } = &mut self.content
            && let Some((connection, pool)) = connection.take()
        {
            pool.put(connection);
        }
    }

    fn finish(&mut self, failure: Option<(ResponseFlag, &'static str)>) {
        let Some(mut exchange) = self.exchange.take() else {
            return;
        };
        if let Some((flag, details)) = failure {
            exchange.outcome.flags.insert(flag);
            exchange.outcome.details = details;
        }
        exchange.record(self.sent);
    }

    /// Notes what the log and the metrics want of a frame.
    fn note(&mut self, frame: &Frame<Bytes>) {
        let bytes = frame.data_ref().map_or(0, |data| data.remaining() as u64);
        self.sent += bytes;
        if let Some(exchange) = &self.exchange {
            exchange.live().sent(bytes);
        }
        if let (Some(trailers), Some(exchange)) = (frame.trailers_ref(), &mut self.exchange)
            && let Some(status) = grpc_status(trailers)
        {
            exchange.outcome.grpc_status = Some(status);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        let this = self.get_mut();
        let polled = match &mut this.content {
            Content::Local(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Local(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Content::Upstream { body, deadline, .. } => {
                let polled = Pin::new(body).poll_frame(cx);
                let late = polled.is_pending()
                    && deadline
                        .as_mut()
                        .is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
                if late {
                    Poll::Ready(Some(Err(ResponseError::Timeout)))
                } else {
                    polled.map_err(ResponseError::from)
                }
            }
        };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => this.note(frame),
            Poll::Ready(Some(Err(ResponseError::Upstream(_)))) => this.finish(Some((
                ResponseFlag::UpstreamConnectionTermination,
                "upstream_reset_after_response_started{connection_termination}",
            ))),
            Poll::Ready(Some(Err(ResponseError::Timeout))) => this.finish(Some((
                ResponseFlag::UpstreamRequestTimeout,
                "response_timeout",
            ))),
            Poll::Ready(None) => {}
            Poll::Pending => return polled,
        }
        if matches!(polled, Poll::Ready(None)) || this.is_end_stream() {
            this.release();
            this.finish(None);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Local(bytes) => bytes.is_empty(),
            Content::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Local(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Upstream { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.release();
            self.finish(None);
        } else {
            // HEAD answers and 304 are dropped unread by the server: hyper says so by their hint.
            let gone = (
                ResponseFlag::DownstreamConnectionTermination,
                "downstream_remote_disconnect",
            );
            self.finish(Some(gone));
        }
    }
}
