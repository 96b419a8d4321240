// SPDX-License-Identifier: Apache-2.0
//! Names to addresses: keeps every name of the snapshot resolved and publishes the whole book.
//!
//! Stands between config and the rest: the names come from the routing table, the book goes to the
//! proxy (what to dial) and to the kernel maps (what to capture). `lookup` asks one name once,
//! `name` holds what follows from an answer, this file keeps the times and publishes. It does
//! not choose among addresses and does not serve DNS.

mod book;
mod lookup;
mod name;
mod on_demand;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use book::{AddressBook, Resolved};
use lookup::{Answers, Lookup};
use name::NameState;
pub use on_demand::OnDemand;

/// Names asked at the same time. Enough to start with thousands of names in seconds, few enough
/// for a node-local resolver's queue.
const PARALLEL: usize = 32;

/// Changes that arrive within this time are published as one book, since a book is built anew for
/// each change of any name.
const GATHER: Duration = Duration::from_millis(20);

/// How names are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveSettings {
    /// How long an address that left the answer stays in [`Resolved::retired`], because
    /// applications cache (design.md 3).
    pub grace: Duration,
    /// Longest wait after a failed or empty answer (Istio's `dnsRefreshRate`); the first retries
    /// come sooner.
    pub failure_retry: Duration,
}

impl Default for ResolveSettings {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(300),
            failure_retry: Duration::from_secs(60),
        }
    }
}

/// Why resolving could not start.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// `/etc/resolv.conf` or `/etc/hosts` cannot be used.
    #[error("cannot use the system's resolver settings; name servers with --dns-server")]
    System {
        /// Why.
        source: Box<hickory_resolver::net::NetError>,
    },
    /// The resolver refused its settings.
    #[error("cannot set up the resolver")]
    SetUp {
        /// Why.
        source: Box<hickory_resolver::net::NetError>,
    },
}

/// How resolutions ended, for metrics.
#[derive(Debug, Default)]
pub struct ResolveCounters {
    answered: AtomicU64,
    empty: AtomicU64,
    failed: AtomicU64,
}

impl ResolveCounters {
    /// `(result, count)` for `egress_dns_resolutions_total{result}`.
    pub fn read(&self) -> [(&'static str, u64); 3] {
        [
            ("answered", self.answered.load(Ordering::Relaxed)),
            ("empty", self.empty.load(Ordering::Relaxed)),
            ("failed", self.failed.load(Ordering::Relaxed)),
        ]
    }

    fn count(&self, answers: &Answers) {
        let counter = match answers.outcome() {
            lookup::Outcome::Answered => &self.answered,
            lookup::Outcome::Empty => &self.empty,
            lookup::Outcome::Failed => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The running resolver as the rest of the program holds it.
#[derive(Debug)]
pub struct Resolver {
    book: watch::Receiver<Arc<AddressBook>>,
    names: watch::Receiver<Vec<String>>,
    on_demand: Arc<OnDemand>,
    counters: Arc<ResolveCounters>,
    task: JoinHandle<()>,
}

impl Resolver {
    /// Starts the task on the current runtime; it ends with `stop`.
    ///
    /// `servers`: `None` uses the system's `resolv.conf` and `hosts`; the files are read once.
    /// `names` are lower case; a trailing dot is accepted. Search domains are never applied.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn start(
        servers: Option<Vec<SocketAddr>>,
        names: watch::Receiver<Vec<String>>,
        settings: ResolveSettings,
        stop: CancellationToken,
    ) -> Result<Self, ResolveError> {
        let lookup = Lookup::new(servers)?;
        let counters = Arc::new(ResolveCounters::default());
        let (sender, book) = watch::channel(Arc::new(AddressBook::default()));
        let on_demand = Arc::new(OnDemand::default());
        let keeper = Keeper {
            lookup,
            on_demand: Arc::clone(&on_demand),
            settings,
            counters: Arc::clone(&counters),
            states: HashMap::new(),
            ask: BTreeSet::new(),
            forget: BTreeSet::new(),
            running: JoinSet::new(),
            publish_at: None,
            resolved: HashMap::new(),
            book: sender,
        };
        Ok(Self {
            book,
            names: names.clone(),
            on_demand,
            counters,
            task: tokio::spawn(keeper.run(names, stop)),
        })
    }

    /// The book; a new one is published only when something in it changed.
    pub fn book(&self) -> watch::Receiver<Arc<AddressBook>> {
        self.book.clone()
    }

    /// Where requests ask for names of their own.
    pub fn on_demand(&self) -> Arc<OnDemand> {
        Arc::clone(&self.on_demand)
    }

    /// Counters of all resolutions.
    pub fn counters(&self) -> Arc<ResolveCounters> {
        Arc::clone(&self.counters)
    }

    /// Waits until the book says of every present name that it has been answered or has failed,
    /// or until `limit` has passed; `false` then.
    pub async fn first_answers(&self, limit: Duration) -> bool {
        let mut book = self.book.clone();
        let settled = book.wait_for(|book| {
            let names = self.names.borrow();
            names
                .iter()
                .all(|name| book.get(without_dot(name)).is_some())
        });
        // A resolver that has been stopped settles nothing any more.
        tokio::time::timeout(limit, settled)
            .await
            .is_ok_and(|settled| settled.is_ok())
    }

    /// Waits for the end of the task, after `stop`.
    pub async fn stopped(self) {
        // An error would mean that the task panicked; there is nothing left to end then.
        let _ = self.task.await;
    }
}

/// The task's state.
struct Keeper {
    lookup: Lookup,
    on_demand: Arc<OnDemand>,
    settings: ResolveSettings,
    counters: Arc<ResolveCounters>,
    states: HashMap<Arc<str>, NameState>,
    /// When to ask for which name: each name that is not being asked for, once, under the time in
    /// its state.
    ask: BTreeSet<(Instant, Arc<str>)>,
    /// When a name may have retired addresses to forget; entries for nothing are harmless.
    forget: BTreeSet<(Instant, Arc<str>)>,
    running: JoinSet<(Arc<str>, Answers)>,
    publish_at: Option<Instant>,
    /// What the next book says.
    resolved: HashMap<Arc<str>, Resolved>,
    book: watch::Sender<Arc<AddressBook>>,
}

impl Keeper {
    async fn run(mut self, mut names: watch::Receiver<Vec<String>>, stop: CancellationToken) {
        let mut wanted = names.borrow_and_update().clone();
        self.follow(&wanted, Instant::now());
        let mut names_open = true;
        let mut expire = tokio::time::interval(on_demand::UNUSED / 4);
        loop {
            self.act(Instant::now());
            let wake_at = self.wake_at();
            tokio::select! {
                () = stop.cancelled() => return,
                changed = names.changed(), if names_open => match changed {
                    Ok(()) => {
                        wanted = names.borrow_and_update().clone();
                        self.follow(&wanted, Instant::now());
                    }
                    // Nobody will change the names again; those there are stay resolved.
                    Err(_) => names_open = false,
                },
                Some(Ok((name, answers))) = self.running.join_next() => {
                    self.take(&name, answers, Instant::now());
                }
                () = self.on_demand.added() => self.follow(&wanted, Instant::now()),
                _ = expire.tick() => {
                    if self.on_demand.expire() {
                        self.follow(&wanted, Instant::now());
                    }
                }
                () = sleep_until(wake_at) => {}
            }
        }
    }

    /// Brings the set of names to `wanted` and those on demand; new ones are asked for at once.
    fn follow(&mut self, wanted: &[String], now: Instant) {
        let on_demand = self.on_demand.names();
        let wanted: HashSet<Arc<str>> = wanted
            .iter()
            .chain(&on_demand)
            .map(|name| without_dot(name).into())
            .collect();
        self.states.retain(|name, _| wanted.contains(name));
        self.ask.retain(|(_, name)| wanted.contains(name));
        let before = self.resolved.len();
        self.resolved.retain(|name, _| wanted.contains(name));
        if self.resolved.len() != before {
            self.publish_soon(now);
        }
        for name in wanted {
            if !self.states.contains_key(&name) {
                self.states.insert(Arc::clone(&name), NameState::new(now));
                self.ask.insert((now, name));
            }
        }
    }

    /// Does everything whose time has come.
    fn act(&mut self, now: Instant) {
        while self.running.len() < PARALLEL && is_due(&self.ask, now) {
            if let Some((_, name)) = self.ask.pop_first() {
                let lookup = self.lookup.clone();
                self.running.spawn(async move {
                    let answers = lookup.ask(&name).await;
                    (name, answers)
                });
            }
        }
        while is_due(&self.forget, now) {
            if let Some((_, name)) = self.forget.pop_first()
                && let Some(state) = self.states.get_mut(&name)
            {
                state.forget_retired(now);
                self.update(&name, now);
            }
        }
        let gathered = |at| at <= now || self.running.is_empty();
        if self.publish_at.is_some_and(gathered) {
            self.publish_at = None;
            let names = self.resolved.iter();
            let book = names.map(|(name, resolved)| (Arc::clone(name), resolved.clone()));
            self.book.send_replace(Arc::new(book.collect()));
        }
    }

    /// Takes an answer in. Names that have been removed while they were asked for are gone.
    fn take(&mut self, name: &Arc<str>, answers: Answers, now: Instant) {
        let Some(state) = self.states.get_mut(name) else {
            return;
        };
        self.counters.count(&answers);
        // A name that was removed and added again is asked for twice; only one entry may remain.
        self.ask.remove(&(state.ask_at, Arc::clone(name)));
        let failed_before = state.resolved().error.is_some();
        state.apply(answers, now, &self.settings);
        self.ask.insert((state.ask_at, Arc::clone(name)));
        if let Some(reason) = state.resolved().error.filter(|_| !failed_before) {
            tracing::warn!(%name, %reason, "name not resolved; the last good addresses stay in use");
        }
        self.update(name, now);
    }

    /// Brings the next book and the times to what a name's state says.
    fn update(&mut self, name: &Arc<str>, now: Instant) {
        let Some(state) = self.states.get(name) else {
            return;
        };
        if let Some(at) = state.forget_at() {
            self.forget.insert((at, Arc::clone(name)));
        }
        let resolved = state.resolved();
        if self.resolved.get(name) != Some(&resolved) {
            self.resolved.insert(Arc::clone(name), resolved);
            self.publish_soon(now);
        }
    }

    fn publish_soon(&mut self, now: Instant) {
        self.publish_at.get_or_insert(now + GATHER);
    }

    /// `None`: nothing to do until an answer or a change of names arrives.
    fn wake_at(&self) -> Option<Instant> {
        let ask = self.ask.first().map(|(at, _)| *at);
        let ask = ask.filter(|_| self.running.len() < PARALLEL);
        let forget = self.forget.first().map(|(at, _)| *at);
        [ask, forget, self.publish_at].into_iter().flatten().min()
    }
}

fn is_due(times: &BTreeSet<(Instant, Arc<str>)>, now: Instant) -> bool {
    times.first().is_some_and(|(at, _)| *at <= now)
}

fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
