// SPDX-License-Identifier: Apache-2.0
//! What the records of one worker add up to: Istio's request and connection metrics, one series
//! per label set (istio-egress.md 8b).
//!
//! Stands beside the log line in the [`super::Recorder`]. A series is found by hashing borrowed
//! values, so a hit allocates nothing; the label text is rendered once, when a series begins. The
//! number of label sets is bounded. Writing the exposition is `control::metrics`' work.

use std::{
    collections::{BTreeMap, HashMap, hash_map::RandomState},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use super::{
    AccessRecord, ResponseFlags,
    labels::{Key, OwnedKey, RequestProtocol},
};
use crate::workload::Workload;

/// Label sets per worker and table; later ones are counted in the series `other`. A node has far
/// fewer services in use, so this only bounds memory (some 700 bytes a set).
pub const MAX_LABEL_SETS: usize = 2_000;

/// Upper bounds of Istio's histograms (Envoy's default buckets); one more holds the rest.
pub const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Whom a connection belongs to, as far as metrics tell connections apart.
#[derive(Debug, Clone, Copy)]
pub struct TrafficLabels<'a> {
    /// The caller, when known.
    pub source: Option<&'a Workload>,
    /// As [`AccessRecord::destination_service`].
    pub destination_service: &'a str,
    /// As [`AccessRecord::destination_namespace`].
    pub destination_namespace: &'a str,
    /// As [`AccessRecord::upstream_cluster`].
    pub upstream_cluster: &'a str,
}

/// Counts per bucket, not cumulative; the last is beyond every bound.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// One per entry of [`BOUNDS`], and the rest.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// Sum of all observations.
    pub sum: f64,
}

impl Histogram {
    fn observe(&mut self, value: f64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < value);
        self.buckets[bucket] += 1;
        self.sum += value;
    }

    fn add(&mut self, other: &Self) {
        for (bucket, count) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket += count;
        }
        self.sum += other.sum;
    }
}

/// Values of one HTTP series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HttpValues {
    /// istio_requests_total.
    pub requests: u64,
    /// istio_request_duration_milliseconds.
    pub duration_ms: Histogram,
    /// istio_request_bytes.
    pub request_bytes: Histogram,
    /// istio_response_bytes.
    pub response_bytes: Histogram,
}

/// Values of one TCP series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TcpValues {
    /// istio_tcp_connections_opened_total.
    pub opened: u64,
    /// istio_tcp_connections_closed_total.
    pub closed: u64,
    /// istio_tcp_sent_bytes_total: towards the client.
    pub sent_bytes: u64,
    /// istio_tcp_received_bytes_total: from the client.
    pub received_bytes: u64,
}

/// Why a connection is refused: it was made straight to the proxy, not redirected by the kernel.
pub const REFUSED_DIRECT: &str = "direct";

/// The sums over all workers, sorted by label text. Labels are rendered without braces.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// HTTP series.
    pub http: BTreeMap<Arc<str>, HttpValues>,
    /// TCP series.
    pub tcp: BTreeMap<Arc<str>, TcpValues>,
    /// Records that were counted in the series `other` because there were too many label sets.
    pub overflow: u64,
    /// Connections refused by reason (`Recorder::connection_refused`).
    pub refused: BTreeMap<&'static str, u64>,
    /// Access log lines lost because the sink was too slow or failed.
    pub dropped_lines: u64,
}

/// The series of one worker.
#[derive(Debug, Default)]
pub(super) struct Series {
    http: Table<HttpValues>,
    tcp: Table<TcpValues>,
    overflow: u64,
    refused: BTreeMap<&'static str, u64>,
}

impl Series {
    pub(super) fn record(&mut self, record: &AccessRecord<'_>) {
        let traffic = TrafficLabels {
            source: record.source,
            destination_service: record.destination_service,
            destination_namespace: record.destination_namespace,
            upstream_cluster: record.upstream_cluster,
        };
        let Some(http) = &record.http else {
            let key = Key::new(&traffic, RequestProtocol::Tcp, 0, record.response_flags);
            let values = self.tcp.find(&key, &mut self.overflow);
            values.closed += 1;
            values.sent_bytes += record.bytes_sent;
            values.received_bytes += record.bytes_received;
            return;
        };
        let protocol = if http.grpc {
            RequestProtocol::Grpc(http.grpc_status)
        } else {
            RequestProtocol::Http
        };
        let key = Key::new(
            &traffic,
            protocol,
            record.response_code,
            record.response_flags,
        );
        let values = self.http.find(&key, &mut self.overflow);
        values.requests += 1;
        values
            .duration_ms
            .observe(record.duration.as_secs_f64() * 1_000.0);
        values.request_bytes.observe(record.bytes_received as f64);
        values.response_bytes.observe(record.bytes_sent as f64);
    }

    pub(super) fn tcp_opened(&mut self, traffic: &TrafficLabels<'_>) {
        let key = Key::new(traffic, RequestProtocol::Tcp, 0, ResponseFlags::NONE);
        self.tcp.find(&key, &mut self.overflow).opened += 1;
    }

    pub(super) fn connection_refused(&mut self, reason: &'static str) {
        *self.refused.entry(reason).or_default() += 1;
    }

    /// The numbers without the keys: what a scrape copies while it holds the worker's lock.
    pub(super) fn copied(&self) -> Copied {
        Copied {
            http: self.http.copied(),
            tcp: self.tcp.copied(),
            overflow: self.overflow,
            refused: self.refused.clone(),
        }
    }
}

/// The numbers of one worker at one moment.
#[derive(Debug)]
pub(super) struct Copied {
    http: Vec<(Arc<str>, HttpValues)>,
    tcp: Vec<(Arc<str>, TcpValues)>,
    overflow: u64,
    refused: BTreeMap<&'static str, u64>,
}

impl Copied {
    /// Adds them to the sums.
    pub(super) fn add_to(self, totals: &mut Totals) {
        for (labels, values) in self.http {
            let sum = totals.http.entry(labels).or_default();
            sum.requests += values.requests;
            sum.duration_ms.add(&values.duration_ms);
            sum.request_bytes.add(&values.request_bytes);
            sum.response_bytes.add(&values.response_bytes);
        }
        for (labels, values) in self.tcp {
            let sum = totals.tcp.entry(labels).or_default();
            sum.opened += values.opened;
            sum.closed += values.closed;
            sum.sent_bytes += values.sent_bytes;
            sum.received_bytes += values.received_bytes;
        }
        totals.overflow += self.overflow;
        for (reason, count) in self.refused {
            *totals.refused.entry(reason).or_default() += count;
        }
    }
}

/// Series by key. The index maps a key's hash (or, after a collision, the next free number) to a
/// position in `rows`.
#[derive(Debug, Default)]
struct Table<V> {
    state: RandomState,
    index: HashMap<u64, usize, BuildHasherDefault<AlreadyHashed>>,
    rows: Vec<Row<V>>,
}

#[derive(Debug)]
struct Row<V> {
    key: OwnedKey,
    labels: Arc<str>,
    values: V,
}

impl<V: Default + Clone> Table<V> {
    /// The values of `key`'s series, which begins when it is new; those of `other` when the table
    /// is full, counted in `overflow`.
    fn find(&mut self, key: &Key<'_>, overflow: &mut u64) -> &mut V {
        let (slot, found) = self.position(key);
        if let Some(position) = found {
            return &mut self.rows[position].values;
        }
        if self.rows.len() < MAX_LABEL_SETS {
            return self.begin(slot, key);
        }
        *overflow += 1;
        let other = Key::other(key.protocol);
        let (slot, found) = self.position(&other);
        match found {
            Some(position) => &mut self.rows[position].values,
            None => self.begin(slot, &other),
        }
    }

    fn position(&self, key: &Key<'_>) -> (u64, Option<usize>) {
        let mut slot = key.hash(&self.state);
        loop {
            match self.index.get(&slot) {
                None => return (slot, None),
                Some(&position) if self.rows[position].key.is(key) => {
                    return (slot, Some(position));
                }
                Some(_) => slot = slot.wrapping_add(1),
            }
        }
    }

    fn begin(&mut self, slot: u64, key: &Key<'_>) -> &mut V {
        let position = self.rows.len();
        self.index.insert(slot, position);
        self.rows.push(Row {
            key: key.owned(),
            labels: key.render(),
            values: V::default(),
        });
        &mut self.rows[position].values
    }

    fn copied(&self) -> Vec<(Arc<str>, V)> {
        let rows = self.rows.iter();
        rows.map(|row| (Arc::clone(&row.labels), row.values.clone()))
            .collect()
    }
}

/// Passes a `u64` that is a hash already.
#[derive(Debug, Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, time::Duration};

    use super::{super::tests::empty_record, *};
    use crate::proxy::access_log::HttpRecord;

    fn totals(series: &Series) -> Totals {
        let mut totals = Totals::default();
        series.copied().add_to(&mut totals);
        totals
    }

    fn http() -> HttpRecord<'static> {
        HttpRecord {
            method: "GET",
            path: "/",
            protocol: "HTTP/1.1",
            authority: "httpbin.org",
            user_agent: None,
            x_forwarded_for: None,
            request_id: None,
            grpc: false,
            grpc_status: None,
        }
    }

    #[test]
    fn requests_of_one_label_set_share_a_series() {
        let mut workload = Workload {
            namespace: "istio-demo".into(),
            name: "sleep".into(),
            ..Workload::default()
        };
        workload.labels.insert("app".into(), "sleep-app".into());
        let mut series = Series::default();
        for millis in [3, 70, 4_000_000] {
            series.record(&AccessRecord {
                http: Some(http()),
                response_code: 200,
                duration: Duration::from_millis(millis),
                bytes_sent: 1024,
                destination_service: "httpbin.org",
                destination_namespace: "istio-demo",
                source: Some(&workload),
                details: Cow::Borrowed("via_upstream"),
                ..empty_record()
            });
        }
        let totals = totals(&series);
        let (labels, values) = totals.http.iter().next().unwrap();
        assert_eq!(totals.http.len(), 1);
        assert_eq!(values.requests, 3);
        assert_eq!(values.duration_ms.sum, 4_000_073.0);
        assert_eq!(values.duration_ms.buckets[2], 1, "3 ms is in le=5");
        assert_eq!(values.duration_ms.buckets[6], 1, "70 ms is in le=100");
        assert_eq!(values.duration_ms.buckets[BOUNDS.len()], 1);
        assert_eq!(
            &**labels,
            "reporter=\"source\",source_workload=\"sleep\",\
             source_canonical_service=\"sleep-app\",source_canonical_revision=\"latest\",\
             source_workload_namespace=\"istio-demo\",source_principal=\"unknown\",\
             source_app=\"sleep-app\",source_version=\"unknown\",source_cluster=\"unknown\",\
             destination_service=\"httpbin.org\",destination_service_name=\"httpbin.org\",\
             destination_service_namespace=\"istio-demo\",destination_workload=\"unknown\",\
             destination_workload_namespace=\"unknown\",destination_principal=\"unknown\",\
             destination_app=\"unknown\",destination_version=\"unknown\",\
             destination_cluster=\"unknown\",destination_canonical_service=\"unknown\",\
             destination_canonical_revision=\"unknown\",request_protocol=\"http\",\
             response_code=\"200\",grpc_response_status=\"\",response_flags=\"-\",\
             connection_security_policy=\"unknown\""
        );
    }

    #[test]
    fn unknown_traffic_carries_the_name_of_its_reserved_cluster() {
        for (cluster, want) in [
            ("PassthroughCluster", "PassthroughCluster"),
            ("BlackHoleCluster", "BlackHoleCluster"),
            ("", "unknown"),
        ] {
            let mut series = Series::default();
            series.record(&AccessRecord {
                http: Some(http()),
                upstream_cluster: cluster,
                ..empty_record()
            });
            let labels = totals(&series).http.into_keys().next().unwrap();
            assert!(labels.contains(&format!("destination_service_name=\"{want}\"")));
            assert!(labels.contains("destination_service=\"unknown\""));
        }
    }

    #[test]
    fn a_connection_is_counted_when_opened_and_when_closed() {
        let mut series = Series::default();
        let record = AccessRecord {
            upstream_cluster: "PassthroughCluster",
            bytes_received: 5,
            bytes_sent: 7,
            ..empty_record()
        };
        let traffic = TrafficLabels {
            source: None,
            destination_service: "",
            destination_namespace: "",
            upstream_cluster: "PassthroughCluster",
        };
        series.tcp_opened(&traffic);
        series.tcp_opened(&traffic);
        series.record(&record);
        let totals = totals(&series);
        assert!(totals.http.is_empty());
        let values = totals.tcp.values().next().unwrap();
        let want = TcpValues {
            opened: 2,
            closed: 1,
            sent_bytes: 7,
            received_bytes: 5,
        };
        assert_eq!((totals.tcp.len(), values), (1, &want));
    }

    #[test]
    fn label_sets_beyond_the_limit_are_counted_as_other() {
        let mut series = Series::default();
        for number in 0..MAX_LABEL_SETS + 5 {
            let host = format!("host-{number}");
            series.record(&AccessRecord {
                http: Some(http()),
                destination_service: &host,
                ..empty_record()
            });
        }
        let totals = totals(&series);
        assert_eq!(totals.http.len(), MAX_LABEL_SETS + 1);
        assert_eq!(totals.overflow, 5);
        let other = totals
            .http
            .iter()
            .find(|(labels, _)| labels.contains("destination_service=\"other\""));
        assert_eq!(other.unwrap().1.requests, 5);
    }

    #[test]
    fn keys_whose_hashes_collide_stay_apart() {
        let mut table = Table::<TcpValues>::default();
        let mut overflow = 0;
        let mut key = Key::other(RequestProtocol::Tcp);
        key.destination_name = "first";
        table.find(&key, &mut overflow).opened = 1;
        // Make the second key's slot point at the first key's row.
        key.destination_name = "second";
        let slot = key.hash(&table.state);
        table.index.insert(slot, 0);
        table.find(&key, &mut overflow).opened = 2;
        let values: Vec<u64> = table.rows.iter().map(|row| row.values.opened).collect();
        assert_eq!(values, [1, 2]);
    }
}
