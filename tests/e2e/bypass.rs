// SPDX-License-Identifier: Apache-2.0
//! Ways around the capture: every route that `lab::bypass` knows.

use clap::ValueEnum;
use lab::{binary, bypass::Route, hop::SOON, net::Net, process::Process};
use serde_json::Value;

use crate::net;

/// How a route reaches the outside world when nobody is in the way.
struct Way {
    route: Route,
    /// The family of its destination.
    ipv6: bool,
    /// What the sink calls its packets.
    protocol: &'static str,
    /// Its outcome, as reports name it.
    outcome: &'static str,
    /// Whether the kernel may lack it.
    optional: bool,
}

const fn way(route: Route, protocol: &'static str, outcome: &'static str) -> Way {
    Way {
        route,
        ipv6: matches!(
            route,
            Route::TcpConnect6 | Route::TcpConnect6V6only | Route::Raw6Exthdr
        ),
        protocol,
        outcome,
        optional: matches!(
            route,
            Route::Mptcp
                | Route::IoUringConnect
                | Route::IoUringSend
                | Route::Udplite
                | Route::Sctp
                | Route::Dccp
        ),
    }
}

const WAYS: [Way; 34] = [
    way(Route::TcpConnect, "tcp", "connected"),
    way(Route::TcpConnect6Mapped, "tcp", "connected"),
    way(Route::TcpConnect6, "tcp", "connected"),
    way(Route::TcpConnect6V6only, "tcp", "connected"),
    way(Route::TcpBoundSource, "tcp", "connected"),
    way(Route::TcpBoundDevice, "tcp", "connected"),
    way(Route::TfoSendto, "tcp", "sent"),
    way(Route::TfoConnect, "tcp", "sent"),
    way(Route::Mptcp, "tcp", "connected"),
    way(Route::IoUringConnect, "tcp", "connected"),
    way(Route::UnspecReconnect, "tcp", "connected"),
    way(Route::Inherited, "tcp", "connected"),
    way(Route::ScmRights, "tcp", "connected"),
    way(Route::VforkOtherCgroup, "tcp", "connected"),
    way(Route::OutsideSocket, "tcp", "connected"),
    way(Route::TcpEstablished, "tcp", "sent"),
    way(Route::IoUringSend, "udp", "sent"),
    way(Route::UdpConnected, "udp", "sent"),
    way(Route::UdpSendto, "udp", "sent"),
    way(Route::UdpSendmsg, "udp", "sent"),
    way(Route::UdpSendmmsg, "udp", "sent"),
    way(Route::Udplite, "udplite", "sent"),
    way(Route::Quic, "udp", "sent"),
    way(Route::RawTcp, "tcp", "sent"),
    way(Route::RawIcmp, "icmp", "sent"),
    way(Route::RawHdrincl, "udp", "sent"),
    way(Route::RawOptions, "udp", "sent"),
    way(Route::RawFragment, "udp", "sent"),
    way(Route::Raw6Exthdr, "udp", "sent"),
    way(Route::Ping, "icmp", "sent"),
    way(Route::AfPacket, "tcp", "sent"),
    way(Route::AfPacketDgram, "tcp", "sent"),
    way(Route::Sctp, "sctp", "connected"),
    way(Route::Dccp, "dccp", "connected"),
];

impl Way {
    /// Whether there is a server behind its destination that speaks HTTP.
    fn has_connection(&self) -> bool {
        self.outcome == "connected"
            || matches!(
                self.route,
                Route::TfoSendto | Route::TfoConnect | Route::TcpEstablished
            )
    }

    /// An address and port that no other route of the table uses, where they tell packets apart.
    fn destination(&self, index: usize) -> (String, u16) {
        let last = ["10", "11", "20", "21", "22", "23"];
        let (host, port) = if self.has_connection() {
            (last[index % 6], 8001 + index / 6)
        } else {
            (last[index % 6], 7001 + index / 6)
        };
        let port = u16::try_from(port).unwrap();
        match self.ipv6 {
            // The outside world has two of this family.
            true => (format!("2001:db8:113::1{}", index % 2), port),
            false => (format!("203.0.113.{host}"), port),
        }
    }

    /// The line of the sink about its packet.
    fn arrival(&self, net: &Net, host: &str, port: u16) -> String {
        let source = match self.ipv6 {
            true => &net.pod.address6,
            false => &net.pod.address,
        };
        let port = match self.route {
            Route::RawFragment | Route::RawIcmp | Route::Ping => "-".to_owned(),
            _ => port.to_string(),
        };
        let flags = if self.protocol == "tcp" { "S" } else { "-" };
        format!("{} {source} {host} {port} {flags}", self.protocol)
    }
}

/// Runs `lab-bypass` in the pod (a route from outside: in its network only) and lets it go on when
/// it waits; its report.
fn attempt(net: &Net, way: &Way, address: &str) -> Value {
    let program = binary("lab-bypass").unwrap().display().to_string();
    let route = way.route.name();
    let mut command = vec![program, route.clone(), address.to_owned()];
    let mut add = |words: &[&str]| command.extend(words.iter().map(|&word| word.to_owned()));
    let cgroup = net.pod.cgroup.path().display().to_string();
    let other = net.other.cgroup.path().display().to_string();
    match way.route {
        Route::UnspecReconnect => add(&["--first", "203.0.113.10:80"]),
        Route::VforkOtherCgroup => add(&["--cgroup", &other]),
        Route::OutsideSocket => add(&["--cgroup", &cgroup]),
        Route::TcpEstablished => {}
        _ => add(&["--wait"]),
    }
    if way.has_connection() {
        add(&["--http", "httpbin.org"]);
    }
    let mut process = match way.route {
        Route::OutsideSocket => {
            let command = [&net.pod.netns.enter()[..], &command].concat();
            Process::spawn(&route, &command).unwrap()
        }
        _ => net.pod.spawn(&command).unwrap(),
    };
    let enough = |line: &str| line == "waiting" || line.starts_with('{');
    let first = process.wait_for_line(&route, SOON, enough).unwrap();
    if first == "waiting" {
        process.say("").unwrap();
    }
    let status = process.wait(SOON).unwrap();
    assert!(status.success(), "{process}");
    let report = process.wait_for_line(&route, SOON, |line| line.starts_with('{'));
    serde_json::from_str(&report.unwrap()).unwrap()
}

#[test]
fn every_route_reaches_the_outside_world_when_nobody_is_in_the_way() {
    let Some(net) = net("bypass") else { return };
    let sink = net.sink().unwrap();
    assert_eq!(WAYS.len(), Route::value_variants().len());
    for (index, way) in WAYS.iter().enumerate() {
        let (host, port) = way.destination(index);
        let address = match way.ipv6 {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let report = attempt(&net, way, &address);
        println!("{report}");
        assert_eq!(report["route"], way.route.name());
        if way.optional && report["outcome"] == "unsupported" {
            continue;
        }
        assert_eq!(report["outcome"], way.outcome, "{report}");
        if way.has_connection() {
            let server = (&report["status"], &report["server"]);
            assert_eq!(server, (&200.into(), &address.into()), "{report}");
        }
        let arrival = way.arrival(&net, &host, port);
        let packets = if way.route == Route::UdpSendmmsg {
            3
        } else {
            1
        };
        let seen = sink.wait_for(SOON, |lines| {
            let arrived = lines.iter().filter(|(_, line)| *line == arrival);
            (arrived.count() >= packets).then_some(())
        });
        seen.unwrap_or_else(|error| panic!("{arrival}: {error:#}\n{sink}"));
    }
}
