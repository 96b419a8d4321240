// SPDX-License-Identifier: Apache-2.0

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::workload::Workload;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn sleep() -> Workload {
    Workload {
        namespace: "istio-demo".to_owned(),
        name: "sleep".to_owned(),
        labels: [("app", "sleep"), ("empty", ""), ("note", "a=b\rc")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        service_account: "sleeper".to_owned(),
    }
}

/// A header whose parts are as given; its length fits.
fn header(version_and_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([version_and_command, family]);
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// The addresses of a connection from 192.0.2.1:1000 to 203.0.113.1:80.
const ADDRESSES: [u8; 12] = [192, 0, 2, 1, 203, 0, 113, 1, 0x03, 0xe8, 0, 80];

fn with_tlvs(tlvs: &[u8]) -> Vec<u8> {
    header(0x21, 0x11, &[&ADDRESSES, tlvs].concat())
}

fn taken(bytes: &[u8]) -> Option<Caller> {
    match parse(bytes).unwrap() {
        Parsed::Header { length, caller } => {
            assert_eq!(length, bytes.len());
            caller
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_encoded_is_read_back() {
    let named = Workload {
        name: "unit".to_owned(),
        ..Workload::default()
    };
    for (source, destination) in [
        ("10.88.1.2:0", "203.0.113.10:80"),
        ("10.88.1.2:41000", "203.0.113.10:65535"),
        ("[fd00:88:1::2]:1", "[2001:db8:113::10]:443"),
        ("10.88.1.2:7", "[2001:db8:113::10]:443"),
        ("[fd00:88:1::2]:7", "203.0.113.10:443"),
    ] {
        for workload in [None, Some(sleep()), Some(named.clone())] {
            let (source, destination) = (address(source), address(destination));
            let preface = encode(source, destination, workload.as_ref());
            let expected = Caller {
                source,
                destination,
                workload,
            };
            assert_eq!(taken(preface.bytes()), Some(expected));
        }
    }
}

#[test]
fn bytes_are_those_of_the_specification() {
    let workload = Workload {
        namespace: "ns".to_owned(),
        labels: [("a".to_owned(), "b".to_owned()), ("c".into(), "d".into())].into(),
        ..Workload::default()
    };
    let (source, destination) = (address("192.0.2.1:1000"), address("203.0.113.1:80"));
    let preface = encode(source, destination, Some(&workload));
    let expected = with_tlvs(b"\xE0\x00\x02ns\xE3\x00\x07a=b\nc=d");
    assert_eq!(preface.bytes(), expected);
    let mixed = encode(source, address("[2001:db8::1]:80"), None);
    let mut body = vec![0; 10];
    body.extend([0xff, 0xff, 192, 0, 2, 1, 0x20, 0x01, 0x0d, 0xb8]);
    body.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x03, 0xe8, 0, 80]);
    assert_eq!(mixed.bytes(), header(0x21, 0x21, &body));
}

#[test]
fn every_part_of_a_header_is_partial() {
    let preface = encode(
        address("192.0.2.1:1"),
        address("203.0.113.1:80"),
        Some(&sleep()),
    );
    let whole = preface.bytes();
    for length in 0..whole.len() {
        let begun = length >= SIGNATURE.len();
        let part = &whole[..length];
        assert_eq!(parse(part), Ok(Parsed::Partial { begun }), "{length}");
        assert_eq!(begins(part), length >= 5, "{length}");
    }
    let more = [whole, b"GET / HTTP/1.1\r\n"].concat();
    match parse(&more) {
        Ok(Parsed::Header { length, .. }) => assert_eq!(length, whole.len()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_protocols_are_no_header() {
    for bytes in [
        &b"PROXY TCP4 192.0.2.1 203.0.113.1 1000 80\r\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\r\n\r\n\0\r\nQUIT\r",
    ] {
        assert_eq!(parse(bytes), Ok(Parsed::Absent));
        assert!(!begins(bytes));
    }
    assert_eq!(parse(b""), Ok(Parsed::Partial { begun: false }));
    assert!(!begins(b"") && !begins(b"\r\n\r\n"));
}

#[test]
fn senders_that_name_nobody_are_taken_at_their_own_address() {
    let full = with_tlvs(b"\xE0\x00\x02ns");
    let body = &full[16..];
    for (bytes, what) in [
        (header(0x20, 0x00, b""), "LOCAL"),
        (header(0x20, 0x11, body), "LOCAL with addresses"),
        (header(0x20, 0x31, b"?"), "LOCAL of any family"),
        (header(0x21, 0x00, b"whatever"), "UNSPEC"),
    ] {
        assert_eq!(taken(&bytes), None, "{what}");
    }
}

#[test]
fn tlvs_of_others_are_skipped() {
    let nobody = [
        &b""[..],
        b"\x04\x00\x02xx",
        b"\xEE\x00\x00",
        b"\xE0\x00\x00",
    ];
    for tlvs in nobody {
        assert_eq!(taken(&with_tlvs(tlvs)).unwrap().workload, None);
    }
    let mut tlvs = b"\x05\x00\x04\xff\xff\xff\xff\xE1\x00\x03web\xEF\x00\x01x".to_vec();
    tlvs.extend(b"\xE3\x00\x09=x\nk=v\nno\xE1\x00\x05later");
    let workload = taken(&with_tlvs(&tlvs)).unwrap().workload.unwrap();
    assert_eq!(workload.name, "later");
    let labels = [("", "x"), ("k", "v")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(workload.labels, BTreeMap::from(labels));
}

#[test]
fn broken_headers_are_refused() {
    let cases = [
        (header(0x11, 0x11, &ADDRESSES), BadHeader::Version(1)),
        (header(0x31, 0x11, &ADDRESSES), BadHeader::Version(3)),
        (header(0x22, 0x11, &ADDRESSES), BadHeader::Command(2)),
        (header(0x21, 0x12, &ADDRESSES), BadHeader::Family(0x12)),
        (header(0x21, 0x31, &[0; 216]), BadHeader::Family(0x31)),
        (header(0x21, 0x01, &ADDRESSES), BadHeader::Family(0x01)),
        (header(0x21, 0x11, &ADDRESSES[..11]), BadHeader::Addresses),
        (header(0x21, 0x21, &[0; 35]), BadHeader::Addresses),
        (with_tlvs(b"\xE0"), BadHeader::Tlv),
        (with_tlvs(b"\xE0\x00"), BadHeader::Tlv),
        (with_tlvs(b"\xE0\x00\x03ns"), BadHeader::Tlv),
        (with_tlvs(b"\xE0\xff\xffns"), BadHeader::Tlv),
        (with_tlvs(b"\xE1\x00\x01\xff"), BadHeader::Text(0xE1)),
        (with_tlvs(b"\xE3\x00\x02\xc3("), BadHeader::Text(0xE3)),
    ];
    for (bytes, expected) in cases {
        assert_eq!(parse(&bytes), Err(expected), "{bytes:x?}");
    }
    // Refused by its length alone, before it has come.
    let long = header(0x21, 0x11, &vec![0; MAX_TAKEN - 15]);
    assert_eq!(parse(&long[..16]), Err(BadHeader::TooLong(MAX_TAKEN + 1)));
    let longest = header(0x20, 0x11, &vec![0; MAX_TAKEN - 16]);
    assert_eq!(taken(&longest), None);
}

#[test]
fn what_is_too_long_is_left_out_labels_first() {
    let (source, destination) = (address("[::2]:1"), address("[::1]:80"));
    let many = (0..200).map(|n| (format!("label-{n}"), "x".repeat(20)));
    let workload = Workload {
        labels: many.collect(),
        ..sleep()
    };
    let preface = encode(source, destination, Some(&workload));
    assert!(preface.bytes().len() <= MAX_SENT);
    let expected = Workload {
        labels: BTreeMap::new(),
        ..sleep()
    };
    assert_eq!(taken(preface.bytes()).unwrap().workload, Some(expected));
    // Up to the limit, and one byte beyond it.
    let fits = MAX_SENT - encode(source, destination, None).bytes().len() - 3;
    for (length, whole) in [(fits, true), (fits + 1, false)] {
        let workload = Workload {
            name: "x".repeat(length),
            ..Workload::default()
        };
        let preface = encode(source, destination, Some(&workload));
        let expected = whole.then_some(workload);
        assert_eq!(taken(preface.bytes()).unwrap().workload, expected);
    }
    let unspeakable = Workload {
        labels: [("a\nb", "c"), ("d", "e\nf"), ("g=h", "i"), ("", "j")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        ..sleep()
    };
    let preface = encode(source, destination, Some(&unspeakable));
    let labels = taken(preface.bytes()).unwrap().workload.unwrap().labels;
    assert_eq!(labels, BTreeMap::new());
}

/// Both ends of a connection.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn header_in_pieces_is_taken_and_the_rest_handed_on() {
    let preface = encode(
        address("192.0.2.1:1"),
        address("203.0.113.1:80"),
        Some(&sleep()),
    );
    for client_first in [true, false] {
        let (mut client, mut accepted) = connected().await;
        client.set_nodelay(true).unwrap();
        let all = [preface.bytes(), b"GET"].concat();
        let sending = async {
            for piece in all.chunks(7) {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let mut seen = BytesMut::new();
        let receiving = receive(&mut accepted, &mut seen, client_first);
        let (received, ()) = tokio::join!(receiving, sending);
        let Received::Caller(Some(caller)) = received.unwrap() else {
            panic!("no caller");
        };
        assert_eq!(caller.source, address("192.0.2.1:1"));
        assert_eq!(caller.workload, Some(sleep()));
        while seen.len() < 3 {
            tokio::io::AsyncReadExt::read_buf(&mut accepted, &mut seen)
                .await
                .unwrap();
        }
        assert_eq!(&seen[..], b"GET");
    }
}

#[tokio::test]
async fn what_is_no_header_is_handed_on_whole() {
    for (bytes, kept) in [(&b"GET / HTTP/1.1\r\n"[..], 16), (b"\r\n", 2), (b"", 0)] {
        let (mut client, mut accepted) = connected().await;
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let mut seen = BytesMut::new();
        let received = receive(&mut accepted, &mut seen, true).await.unwrap();
        assert!(matches!(received, Received::Caller(None)), "{received:?}");
        assert_eq!(seen.len(), kept);
    }
}

#[tokio::test]
async fn header_that_ends_early_is_bad() {
    let (mut client, mut accepted) = connected().await;
    client.write_all(&with_tlvs(b"")[..20]).await.unwrap();
    client.shutdown().await.unwrap();
    let received = receive(&mut accepted, &mut BytesMut::new(), true).await;
    assert!(matches!(received.unwrap(), Received::Bad(BadHeader::Ended)));
}

#[tokio::test(start_paused = true)]
async fn header_that_stalls_is_bad_and_silence_is_none() {
    let (mut client, mut accepted) = connected().await;
    client.write_all(&with_tlvs(b"")[..20]).await.unwrap();
    accepted.readable().await.unwrap();
    let begun = tokio::time::Instant::now();
    let received = receive(&mut accepted, &mut BytesMut::new(), true).await;
    assert!(matches!(received.unwrap(), Received::Bad(BadHeader::Late)));
    assert_eq!(begun.elapsed().as_secs(), 5);

    let (_client, mut accepted) = connected().await;
    let received = receive(&mut accepted, &mut BytesMut::new(), false).await;
    assert!(matches!(received.unwrap(), Received::Caller(None)));
    let (_client, mut accepted) = connected().await;
    let mut seen = BytesMut::new();
    let waiting = receive(&mut accepted, &mut seen, true);
    let hour = tokio::time::timeout(Duration::from_secs(3600), waiting).await;
    assert!(hour.is_err(), "an idle HTTP client may take its time");
}
