// SPDX-License-Identifier: Apache-2.0
//! The state of a name by explicit times, and the whole resolver against a small name server.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_resolver::proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use tokio::net::UdpSocket;

use super::{lookup::Answer, *};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn found(texts: &[&str], ttl: u64) -> Answer {
    Answer::Addresses {
        addresses: ips(texts),
        ttl: seconds(ttl),
    }
}

fn failed() -> Answer {
    Answer::Failed {
        reason: "broken".into(),
    }
}

const NONE: Answer = Answer::Empty { ttl: None };

/// One step of a name's life: time of the answer, A, AAAA; then what holds.
struct Step {
    at: u64,
    answers: [Answer; 2],
    addresses: &'static [&'static str],
    retired: &'static [&'static str],
    error: bool,
    wait: u64,
}

#[test]
fn what_an_answer_changes_and_when_to_ask_again() {
    let step = |at, answers, addresses, retired, error, wait| Step {
        at,
        answers,
        addresses,
        retired,
        error,
        wait,
    };
    let steps = [
        step(
            0,
            [found(&["1.1.1.1", "1.1.1.2"], 60), NONE],
            &["1.1.1.1", "1.1.1.2"],
            &[],
            false,
            60,
        ),
        // A new address replaces one, which retires for 300 s.
        step(
            60,
            [found(&["1.1.1.2", "1.1.1.3"], 30), NONE],
            &["1.1.1.2", "1.1.1.3"],
            &["1.1.1.1"],
            false,
            30,
        ),
        // Failures keep the last good ones; the waits double up to the limit.
        step(
            90,
            [failed(), failed()],
            &["1.1.1.2", "1.1.1.3"],
            &["1.1.1.1"],
            true,
            1,
        ),
        step(
            91,
            [failed(), failed()],
            &["1.1.1.2", "1.1.1.3"],
            &["1.1.1.1"],
            true,
            2,
        ),
        step(
            93,
            [failed(), failed()],
            &["1.1.1.2", "1.1.1.3"],
            &["1.1.1.1"],
            true,
            4,
        ),
        step(
            97,
            [failed(), failed()],
            &["1.1.1.2", "1.1.1.3"],
            &["1.1.1.1"],
            true,
            5,
        ),
        // An address that comes back is no longer retired; both families count, v4 first.
        step(
            102,
            [found(&["1.1.1.1"], 100), found(&["::2"], 7)],
            &["1.1.1.1", "::2"],
            &["1.1.1.2", "1.1.1.3"],
            false,
            7,
        ),
        // One family failing beside the other is no error, but is asked again soon.
        step(
            110,
            [found(&["1.1.1.1"], 100), failed()],
            &["1.1.1.1", "::2"],
            &["1.1.1.2", "1.1.1.3"],
            false,
            1,
        ),
        // "Does not exist" is believed the second time.
        step(
            111,
            [NONE, NONE],
            &["1.1.1.1", "::2"],
            &["1.1.1.2", "1.1.1.3"],
            false,
            1,
        ),
        step(
            112,
            [NONE, NONE],
            &[],
            &["1.1.1.2", "1.1.1.3", "1.1.1.1", "::2"],
            false,
            5,
        ),
        // The grace time of the first two (from 102) is over, that of the others is not.
        step(
            402,
            [
                Answer::Empty {
                    ttl: Some(seconds(2)),
                },
                NONE,
            ],
            &[],
            &["1.1.1.1", "::2"],
            false,
            2,
        ),
        // TTLs are held between a second and an hour.
        step(
            412,
            [found(&["9.9.9.9"], 0), NONE],
            &["9.9.9.9"],
            &[],
            false,
            1,
        ),
        step(
            413,
            [found(&["9.9.9.9"], 90_000), NONE],
            &["9.9.9.9"],
            &[],
            false,
            3_600,
        ),
    ];
    let settings = ResolveSettings {
        grace: seconds(300),
        failure_retry: seconds(5),
    };
    let start = Instant::now();
    let mut state = NameState::new(start);
    for step in steps {
        let now = start + seconds(step.at);
        state.forget_retired(now);
        state.apply(Answers(step.answers), now, &settings);
        let resolved = state.resolved();
        assert_eq!(*resolved.addresses, ips(step.addresses), "at {}", step.at);
        assert_eq!(*resolved.retired, ips(step.retired), "at {}", step.at);
        assert_eq!(resolved.error.is_some(), step.error, "at {}", step.at);
        assert_eq!(state.ask_at - now, seconds(step.wait), "at {}", step.at);
    }
}

#[test]
fn an_answer_between_the_two_empty_ones_keeps_the_addresses() {
    let now = Instant::now();
    let settings = ResolveSettings::default();
    let mut state = NameState::new(now);
    for a in [found(&["1.1.1.1"], 5), NONE, found(&["1.1.1.1"], 5), NONE] {
        state.apply(Answers([a, NONE]), now, &settings);
    }
    assert_eq!(*state.resolved().addresses, [ip("1.1.1.1")]);
}

#[test]
fn retired_addresses_are_bounded_and_the_oldest_go_first() {
    let now = Instant::now();
    let settings = ResolveSettings::default();
    let mut state = NameState::new(now);
    for number in 0..1_000u32 {
        let addresses = vec![IpAddr::V4(Ipv4Addr::from(number))];
        let answer = Answer::Addresses {
            addresses,
            ttl: seconds(5),
        };
        state.apply(Answers([answer, NONE]), now, &settings);
    }
    let retired = state.resolved().retired;
    assert_eq!(retired.len(), 256);
    assert_eq!(retired.last(), Some(&IpAddr::V4(Ipv4Addr::from(998))));
}

/// What the name server answers to A questions for one name; AAAA has no data.
#[derive(Clone)]
enum Zone {
    Addresses(Vec<Ipv4Addr>, u32),
    Missing,
    Broken,
    /// AAAA questions are swallowed.
    SilentAaaa(Ipv4Addr),
}

/// A name server on a UDP port of 127.0.0.1, ended when dropped.
struct NameServer {
    address: SocketAddr,
    zones: Arc<Mutex<HashMap<String, Zone>>>,
    questions: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl NameServer {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zones = Arc::new(Mutex::new(HashMap::<String, Zone>::new()));
        let questions = Arc::new(AtomicUsize::new(0));
        let (answers, count) = (Arc::clone(&zones), Arc::clone(&questions));
        let task = tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..length]).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let reply = reply(&question, &answers.lock().unwrap());
                if let Some(reply) = reply {
                    socket.send_to(&reply, peer).await.unwrap();
                }
            }
        });
        Self {
            address,
            zones,
            questions,
            task,
        }
    }

    fn set(&self, name: &str, zone: Zone) {
        self.zones.lock().unwrap().insert(name.into(), zone);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn reply(question: &Message, zones: &HashMap<String, Zone>) -> Option<Vec<u8>> {
    let query = question.queries[0].clone();
    let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    let name: Name = query.name().clone();
    message.add_query(query.clone());
    let a = query.query_type() == RecordType::A;
    match zones.get(&name.to_string()) {
        None | Some(Zone::Missing) => message.metadata.response_code = ResponseCode::NXDomain,
        Some(Zone::Broken) => message.metadata.response_code = ResponseCode::ServFail,
        Some(Zone::SilentAaaa(_)) if !a => return None,
        Some(Zone::SilentAaaa(v4)) => {
            message.add_answer(Record::from_rdata(name, 1, RData::A(rdata::A(*v4))));
        }
        Some(Zone::Addresses(addresses, ttl)) => {
            for v4 in addresses.iter().filter(|_| a) {
                let data = RData::A(rdata::A(*v4));
                message.add_answer(Record::from_rdata(name.clone(), *ttl, data));
            }
        }
    }
    Some(message.to_vec().unwrap())
}

struct Running {
    resolver: Resolver,
    names: watch::Sender<Vec<String>>,
    book: watch::Receiver<Arc<AddressBook>>,
    stop: CancellationToken,
}

fn start(server: &NameServer, names: &[&str], settings: ResolveSettings) -> Running {
    let names = names.iter().map(ToString::to_string).collect();
    let (names, receiver) = watch::channel(names);
    let stop = CancellationToken::new();
    let servers = Some(vec![server.address]);
    let resolver = Resolver::start(servers, receiver, settings, stop.clone()).unwrap();
    Running {
        book: resolver.book(),
        resolver,
        names,
        stop,
    }
}

impl Running {
    async fn until(&mut self, holds: impl Fn(&AddressBook) -> bool) -> Arc<AddressBook> {
        let found = tokio::time::timeout(seconds(20), self.book.wait_for(|book| holds(book)));
        Arc::clone(&*found.await.expect("within 20 s").unwrap())
    }
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, last)
}

fn fresh(book: &AddressBook, name: &str) -> Vec<IpAddr> {
    book.get(name)
        .map_or(Vec::new(), |resolved| resolved.addresses.to_vec())
}

#[tokio::test]
async fn answers_are_refreshed_by_ttl_and_old_addresses_retire_for_the_grace_time() {
    let server = NameServer::start().await;
    server.set("moving.test.", Zone::Addresses(vec![v4(1)], 1));
    let settings = ResolveSettings {
        grace: seconds(1),
        failure_retry: seconds(1),
    };
    let mut running = start(&server, &["moving.test"], settings);
    assert!(running.resolver.first_answers(seconds(5)).await);
    running
        .until(|book| fresh(book, "moving.test") == [v4(1)])
        .await;

    server.set("moving.test.", Zone::Addresses(vec![v4(2)], 1));
    let book = running
        .until(|book| fresh(book, "moving.test") == [v4(2)])
        .await;
    assert_eq!(
        *book.get("moving.test").unwrap().retired,
        [IpAddr::V4(v4(1))]
    );
    running
        .until(|book| book.get("moving.test").unwrap().retired.is_empty())
        .await;

    // A failing server leaves the last good addresses, a definite answer takes them away.
    server.set("moving.test.", Zone::Broken);
    let book = running
        .until(|book| book.get("moving.test").unwrap().error.is_some())
        .await;
    assert_eq!(fresh(&book, "moving.test"), [v4(2)]);
    server.set("moving.test.", Zone::Missing);
    let book = running
        .until(|book| fresh(book, "moving.test").is_empty())
        .await;
    assert_eq!(book.get("moving.test").unwrap().error, None);

    let counts = running.resolver.counters().read();
    assert!(counts.iter().all(|(_, count)| *count > 0), "{counts:?}");
    running.stop.cancel();
    running.resolver.stopped().await;
}

#[tokio::test]
async fn the_book_follows_the_names_and_is_published_only_on_change() {
    let server = NameServer::start().await;
    server.set("a.test.", Zone::Addresses(vec![v4(1)], 1));
    server.set("b.test.", Zone::Addresses(vec![v4(2), v4(3)], 600));
    let mut running = start(&server, &["a.test."], ResolveSettings::default());
    running.until(|book| fresh(book, "a.test") == [v4(1)]).await;

    running.book.mark_unchanged();
    let asked = server.questions.load(Ordering::Relaxed);
    while server.questions.load(Ordering::Relaxed) < asked + 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(
        !running.book.has_changed().unwrap(),
        "the same answer again"
    );

    running
        .names
        .send_replace(vec!["b.test".into(), "gone.test".into()]);
    assert!(running.resolver.first_answers(seconds(5)).await);
    let book = running.until(|book| book.get("a.test").is_none()).await;
    assert_eq!(fresh(&book, "b.test"), [v4(2), v4(3)]);
    let gone = book.get("gone.test").unwrap();
    assert!(gone.addresses.is_empty() && gone.error.is_none());
}

#[tokio::test]
async fn a_server_that_swallows_aaaa_questions_costs_a_second_not_the_answer() {
    let server = NameServer::start().await;
    server.set("half.test.", Zone::SilentAaaa(v4(4)));
    let mut running = start(&server, &["half.test"], ResolveSettings::default());
    let book = running.until(|book| book.get("half.test").is_some()).await;
    assert_eq!(fresh(&book, "half.test"), [v4(4)]);
    assert_eq!(book.get("half.test").unwrap().error, None);
}

#[tokio::test]
async fn literals_and_localhost_ask_no_server() {
    let server = NameServer::start().await;
    let names = ["localhost", "10.0.0.7", "2001:db8::7"];
    let mut running = start(&server, &names, ResolveSettings::default());
    let book = running
        .until(|book| names.iter().all(|name| book.get(name).is_some()))
        .await;
    assert_eq!(fresh(&book, "localhost"), ips(&["127.0.0.1", "::1"]));
    assert_eq!(fresh(&book, "10.0.0.7"), ips(&["10.0.0.7"]));
    assert_eq!(fresh(&book, "2001:db8::7"), ips(&["2001:db8::7"]));
    assert_eq!(server.questions.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn many_names_settle_and_first_answers_is_bounded() {
    let server = NameServer::start().await;
    let names: Vec<String> = (0..300).map(|number| format!("n{number}.test")).collect();
    for name in &names {
        server.set(&format!("{name}."), Zone::Addresses(vec![v4(9)], 600));
    }
    let borrowed: Vec<&str> = names.iter().map(String::as_str).collect();
    let running = start(&server, &borrowed, ResolveSettings::default());
    assert!(!running.resolver.first_answers(Duration::ZERO).await);
    assert!(running.resolver.first_answers(seconds(20)).await);
    assert_eq!(running.book.borrow().iter().count(), 300);
}
