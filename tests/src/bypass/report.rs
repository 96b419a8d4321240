// SPDX-License-Identifier: Apache-2.0
//! What an attempt reports: one JSON object
//! `{"route", "outcome", "errno", "step", "peer"}`, and `"status"`, `"server"` when an HTTP answer
//! came.
//!
//! `outcome` is `sent` (a packet was handed over, or an answer came on an old connection),
//! `connected`, `closed` (the peer ended the connection without an answer), `refused` (EPERM or
//! EACCES), `unsupported` (the kernel lacks the protocol or system call), `failed` (any other
//! error). `errno` is the error's name or null; a time limit that ran out is ETIMEDOUT. `step` is
//! the last one that was taken.

use std::{io, net::SocketAddr};

use nix::errno::Errno;
use serde_json::{Value, json};

/// How far an attempt came, when nothing stopped it.
#[derive(Debug)]
pub(super) struct Reached {
    /// `sent`, `connected` or `closed`.
    pub(super) outcome: &'static str,
    /// The last step.
    pub(super) step: &'static str,
    /// The HTTP answer.
    pub(super) answer: Option<Answer>,
}

/// An HTTP answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Status code.
    pub(super) status: u16,
    /// Value of `x-lab-server`.
    pub(super) server: Option<String>,
}

/// What stopped an attempt.
#[derive(Debug)]
pub(super) enum Halt {
    /// The kernel's word on the route.
    Kernel { step: &'static str, errno: Errno },
    /// Not the route's fault: there is nothing to report.
    Lab(anyhow::Error),
}

/// Names the step that an error came from.
pub(super) trait At<T> {
    /// Turns an error into the kernel's word on a step.
    fn at(self, step: &'static str) -> Result<T, Halt>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, step: &'static str) -> Result<T, Halt> {
        self.map_err(|error| match error.raw_os_error() {
            Some(number) => Halt::Kernel {
                step,
                errno: Errno::from_raw(number),
            },
            None => Halt::Lab(anyhow::Error::new(error).context(step)),
        })
    }
}

impl<T> At<T> for nix::Result<T> {
    fn at(self, step: &'static str) -> Result<T, Halt> {
        self.map_err(|errno| Halt::Kernel { step, errno })
    }
}

impl From<anyhow::Error> for Halt {
    fn from(error: anyhow::Error) -> Self {
        Self::Lab(error)
    }
}

impl Reached {
    /// A packet was handed to the kernel without complaint.
    pub(super) fn sent() -> Self {
        Self {
            outcome: "sent",
            step: "send",
            answer: None,
        }
    }

    /// There is a connection.
    pub(super) fn connected() -> Self {
        Self {
            outcome: "connected",
            step: "connect",
            answer: None,
        }
    }
}

/// The report.
///
/// # Errors
/// When there is nothing to report.
pub(super) fn json(
    route: &str,
    peer: Option<SocketAddr>,
    result: Result<Reached, Halt>,
) -> anyhow::Result<Value> {
    let peer = peer.map(|peer| peer.to_string());
    let (outcome, step, errno, answer) = match result {
        Ok(reached) => (reached.outcome, reached.step, None, reached.answer),
        Err(Halt::Kernel { step, errno }) => {
            let errno = timeouts_as_one(errno);
            (outcome(step, errno), step, Some(format!("{errno:?}")), None)
        }
        Err(Halt::Lab(error)) => return Err(error),
    };
    let mut report =
        json!({"route": route, "outcome": outcome, "errno": errno, "step": step, "peer": peer});
    if let Some(answer) = answer {
        report["status"] = answer.status.into();
        report["server"] = answer.server.into();
    }
    Ok(report)
}

fn outcome(step: &str, errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => "refused",
        Errno::EPROTONOSUPPORT | Errno::ENOSYS | Errno::ESOCKTNOSUPPORT => "unsupported",
        Errno::EAFNOSUPPORT if step == "socket" => "unsupported",
        _ => "failed",
    }
}

/// What blocking calls with `SO_SNDTIMEO`, `SO_RCVTIMEO` and io_uring say when time is over.
fn timeouts_as_one(errno: Errno) -> Errno {
    match errno {
        Errno::EINPROGRESS | Errno::EAGAIN | Errno::ETIME => Errno::ETIMEDOUT,
        errno => errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_tells_what_the_kernel_said() {
        for (step, errno, outcome, name) in [
            ("connect", Errno::EPERM, "refused", "EPERM"),
            ("socket", Errno::EACCES, "refused", "EACCES"),
            (
                "socket",
                Errno::EPROTONOSUPPORT,
                "unsupported",
                "EPROTONOSUPPORT",
            ),
            ("socket", Errno::EAFNOSUPPORT, "unsupported", "EAFNOSUPPORT"),
            ("connect", Errno::EAFNOSUPPORT, "failed", "EAFNOSUPPORT"),
            ("connect", Errno::EINPROGRESS, "failed", "ETIMEDOUT"),
        ] {
            let report = json("tcp-connect", None, Err(Halt::Kernel { step, errno })).unwrap();
            let expected = json!({
                "route": "tcp-connect", "outcome": outcome, "errno": name, "step": step, "peer": null,
            });
            assert_eq!(report, expected);
        }
    }

    #[test]
    fn report_of_an_answer_has_its_status_and_server() {
        let mut reached = Reached::connected();
        reached.answer = Some(Answer {
            status: 200,
            server: Some("203.0.113.10:80".to_owned()),
        });
        let peer = "203.0.113.10:80".parse().ok();
        let report = json("mptcp", peer, Ok(reached)).unwrap();
        assert_eq!(
            (&report["status"], &report["server"], &report["peer"]),
            (
                &200.into(),
                &"203.0.113.10:80".into(),
                &"203.0.113.10:80".into()
            )
        );
    }
}
