// SPDX-License-Identifier: Apache-2.0
//! The request body on its way up: counted, copied to mirrors, kept for another try. What is not
//! asked for costs nothing.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use ::http::HeaderMap;
use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::{Notify, mpsc};

use super::connection::Peer;

/// How much of a body is kept for another try, and how much a mirror may lag behind (Envoy's
/// default buffer limit of a connection).
const MAX_KEPT: usize = 1 << 20;

/// A body that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client broke off.
    #[error("the client broke off its request")]
    Client(#[from] hyper::Error),
    /// Another try has taken over.
    #[error("the request is being tried again")]
    Superseded,
    /// The mirror was too slow, or the client broke off.
    #[error("the copy of the request is incomplete")]
    Incomplete,
}

/// How far a request body has come; shared with whoever records or times the request.
#[derive(Debug, Default)]
pub struct Progress {
    received: AtomicU64,
    broken: AtomicBool,
    done: AtomicBool,
    end: Notify,
}

impl Progress {
    /// Bytes from the client so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Adds bytes from the client.
    pub fn add(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether the client broke off.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn end(&self) {
        self.done.store(true, Ordering::Relaxed);
        self.end.notify_one();
    }

    async fn ended(&self) {
        // The permit that `notify_one` stores may have been taken by an earlier wait.
        while !self.done.load(Ordering::Relaxed) {
            self.end.notified().await;
        }
    }
}

/// Runs out `limit` after the whole request was received: Envoy's route and per-try timeouts.
pub async fn deadline(progress: Option<Arc<Progress>>, limit: Duration) {
    if let Some(progress) = progress {
        progress.ended().await;
    }
    tokio::time::sleep(limit).await;
}

/// A request body.
#[derive(Debug)]
pub enum RequestBody {
    /// Nothing.
    Empty,
    /// As it comes.
    Streaming(Box<Source>),
    /// As it comes, kept for another try.
    Kept(Kept),
    /// A mirror's.
    Copied(Copied),
}

impl RequestBody {
    /// The client's body. `None` as progress when there is none.
    pub fn new(body: Incoming, peer: &Arc<Peer>) -> (Self, Option<Arc<Progress>>) {
        if body.is_end_stream() {
            return (Self::Empty, None);
        }
        let progress = Arc::new(Progress::default());
        let source = Source {
            body,
            peer: peer.clone(),
            progress: progress.clone(),
            copies: Vec::new(),
        };
        (Self::Streaming(Box::new(source)), Some(progress))
    }

    /// A copy that follows this body. The copy never holds it up: one that lags too far is cut.
    pub fn copy(&mut self) -> Self {
        let Self::Streaming(source) = self else {
            return Self::Empty;
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        source.copies.push(Copy {
            sender,
            waiting: waiting.clone(),
        });
        Self::Copied(Copied { receiver, waiting })
    }

    /// The body for a first try, and what gives the body for another one.
    pub fn keep(self) -> (Self, Keeper) {
        match self {
            Self::Streaming(source) => {
                let shared = Arc::new(Mutex::new(Shared {
                    source: *source,
                    frames: Vec::new(),
                    size: 0,
                    lost: false,
                    ended: false,
                    reader: 0,
                }));
                let first = Self::Kept(Kept {
                    shared: shared.clone(),
                    at: 0,
                    reader: 0,
                });
                (first, Keeper(Some(shared)))
            }
            other => (other, Keeper(None)),
        }
    }
}

/// What has been kept of a body.
#[derive(Debug)]
pub struct Keeper(Option<Arc<Mutex<Shared>>>);

impl Keeper {
    /// The whole body again; `None` when it was too large to be kept.
    pub fn again(&self) -> Option<RequestBody> {
        let Some(shared) = &self.0 else {
            return Some(RequestBody::Empty);
        };
        let mut state = lock(shared);
        if state.lost {
            return None;
        }
        state.reader += 1;
        Some(RequestBody::Kept(Kept {
            shared: shared.clone(),
            at: 0,
            reader: state.reader,
        }))
    }

    /// There will be no other try.
    pub fn release(self) {
        if let Some(shared) = self.0 {
            lock(&shared).lose();
        }
    }
}

/// The client's body, counted and copied.
#[derive(Debug)]
pub struct Source {
    body: Incoming,
    peer: Arc<Peer>,
    progress: Arc<Progress>,
    copies: Vec<Copy>,
}

#[derive(Debug)]
struct Copy {
    sender: mpsc::UnboundedSender<Part>,
    waiting: Arc<AtomicUsize>,
}

/// A frame that can be given out more than once.
#[derive(Debug, Clone)]
enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl Part {
    fn frame(self) -> Option<Frame<Bytes>> {
        match self {
            Self::Data(data) => Some(Frame::data(data)),
            Self::Trailers(trailers) => Some(Frame::trailers(trailers)),
            Self::End => None,
        }
    }
}

impl Source {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(polled) = Pin::new(&mut self.body).poll_frame(cx) else {
            return Poll::Pending;
        };
        match &polled {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let bytes = data.remaining() as u64;
                    self.progress.add(bytes);
                    self.peer.live.received(bytes);
                }
                if !self.copies.is_empty() {
                    self.copy_out(&part(frame));
                }
                if self.body.is_end_stream() {
                    self.finish();
                }
            }
            Some(Err(_)) => {
                self.progress.broken.store(true, Ordering::Relaxed);
                self.copies.clear();
            }
            None => self.finish(),
        }
        Poll::Ready(polled.map(|frame| frame.map_err(BodyError::from)))
    }

    fn finish(&mut self) {
        self.progress.end();
        self.copy_out(&Part::End);
        self.copies.clear();
    }

    fn copy_out(&mut self, part: &Part) {
        let size = match part {
            Part::Data(data) => data.len(),
            Part::Trailers(_) | Part::End => 0,
        };
        self.copies.retain(|copy| {
            let waiting = copy.waiting.fetch_add(size, Ordering::Relaxed) + size;
            waiting <= MAX_KEPT && copy.sender.send(part.clone()).is_ok()
        });
    }
}

fn part(frame: &Frame<Bytes>) -> Part {
    match (frame.data_ref(), frame.trailers_ref()) {
        (Some(data), _) => Part::Data(data.clone()),
        (None, Some(trailers)) => Part::Trailers(trailers.clone()),
        (None, None) => Part::Data(Bytes::new()),
    }
}

/// A body whose frames are kept. Only the newest of its readers reads on.
#[derive(Debug)]
pub struct Kept {
    shared: Arc<Mutex<Shared>>,
    at: usize,
    reader: u32,
}

#[derive(Debug)]
struct Shared {
    source: Source,
    frames: Vec<Part>,
    size: usize,
    lost: bool,
    ended: bool,
    reader: u32,
}

impl Shared {
    fn lose(&mut self) {
        self.lost = true;
        self.frames = Vec::new();
    }

    fn keep(&mut self, part: Part) {
        if let Part::Data(data) = &part {
            self.size += data.len();
        }
        self.frames.push(part);
        if self.size > MAX_KEPT {
            self.lose();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = lock(&self.shared);
        if state.reader != self.reader {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(part) = state.frames.get(self.at) {
            self.at += 1;
            return Poll::Ready(part.clone().frame().map(Ok));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        let polled = state.source.poll(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) if !state.lost => {
                let part = part(frame);
                state.keep(part);
                self.at += 1;
            }
            Poll::Ready(None) => state.ended = true,
            _ => {}
        }
        polled
    }
}

/// A mirror's body.
#[derive(Debug)]
pub struct Copied {
    receiver: mpsc::UnboundedReceiver<Part>,
    waiting: Arc<AtomicUsize>,
}

impl Copied {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.receiver.poll_recv(cx).map(|part| match part {
            Some(part) => {
                if let Part::Data(data) = &part {
                    self.waiting.fetch_sub(data.len(), Ordering::Relaxed);
                }
                part.frame().map(Ok)
            }
            None => Some(Err(BodyError::Incomplete)),
        })
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Streaming(source) => source.poll(cx),
            Self::Kept(kept) => kept.poll(cx),
            Self::Copied(copied) => copied.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming(source) => source.body.is_end_stream(),
            Self::Kept(kept) => {
                let state = lock(&kept.shared);
                kept.at == state.frames.len() && (state.ended || state.source.body.is_end_stream())
            }
            Self::Copied(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming(source) => source.body.size_hint(),
            Self::Kept(kept) => {
                let state = lock(&kept.shared);
                let rest = state.source.body.size_hint();
                let kept: u64 = state.frames[kept.at.min(state.frames.len())..]
                    .iter()
                    .map(|part| match part {
                        Part::Data(data) => data.len() as u64,
                        Part::Trailers(_) | Part::End => 0,
                    })
                    .sum();
                let mut hint = SizeHint::new();
                hint.set_lower(kept + rest.lower());
                if let Some(upper) = rest.upper() {
                    hint.set_upper(kept + upper);
                }
                hint
            }
            Self::Copied(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_begins_when_the_request_has_ended() {
        let progress = Arc::new(Progress::default());
        let limit = Duration::from_secs(1);
        let mut timer = Box::pin(deadline(Some(progress.clone()), limit));
        assert!(
            timeout(Duration::from_secs(3600), &mut timer)
                .await
                .is_err()
        );
        progress.end();
        let begun = Instant::now();
        timer.await;
        assert_eq!(begun.elapsed(), limit);
        let begun = Instant::now();
        deadline(None, limit).await;
        assert_eq!(begun.elapsed(), limit, "without a body it begins at once");
    }
}
