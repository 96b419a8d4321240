// SPDX-License-Identifier: Apache-2.0
//! Signals and the tokens they cancel. SIGTERM and SIGINT ask for a drain, a second one ends the
//! drain at once (clean-up still runs), SIGHUP rereads. What a drain means is the business of who
//! holds the tokens.

use std::{io, sync::Arc};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc},
};
use tokio_util::sync::CancellationToken;

/// What the operator asked of the process.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Stop accepting and finish what is open.
    pub drain: CancellationToken,
    /// Stop waiting for what is open.
    pub now: CancellationToken,
    /// Everything has ended; the admin server goes last.
    pub ended: CancellationToken,
    /// Reopen log files.
    pub reopen: Arc<Notify>,
}

impl Shutdown {
    /// Installs the signal handlers on the current runtime; the receiver gets a message when the
    /// configuration is to be reread.
    ///
    /// # Errors
    /// When the operating system refuses a handler.
    pub fn on_signals() -> io::Result<(Self, mpsc::Receiver<()>)> {
        let shutdown = Self::default();
        // One request to reread is as good as several that have not been served yet.
        let (reread, reload) = mpsc::channel(1);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let asked = shutdown.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => asked.stop("SIGTERM"),
                    _ = interrupt.recv() => asked.stop("SIGINT"),
                    _ = hangup.recv() => {
                        tracing::info!(signal = "SIGHUP", "rereading the configuration");
                        // Full: a request is waiting already.
                        let _ = reread.try_send(());
                        asked.reopen.notify_one();
                    }
                }
            }
        });
        Ok((shutdown, reload))
    }

    fn stop(&self, signal: &str) {
        if self.drain.is_cancelled() {
            tracing::warn!(signal, "asked again: not waiting for open connections");
            self.now.cancel();
        } else {
            tracing::info!(signal, "draining");
            self.drain.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_request_drains_and_the_second_ends_the_drain() {
        let shutdown = Shutdown::default();
        shutdown.stop("SIGTERM");
        assert!(shutdown.drain.is_cancelled());
        assert!(!shutdown.now.is_cancelled());
        shutdown.stop("SIGINT");
        assert!(shutdown.now.is_cancelled());
    }
}
