// SPDX-License-Identifier: Apache-2.0
//! Dumps as tables, for people: what `egress dump` prints on a terminal. Made from the JSON that
//! the admin server answers, a line for each of its entries; what is unknown is `-`.

use serde_json::Value;

use super::client::Dump;

/// Spaces between columns.
const GAP: usize = 2;

/// A dump as a table; `None` when it is none (the configuration is a tree).
pub fn of(dump: Dump, body: &Value) -> Option<String> {
    match dump {
        Dump::Config => None,
        Dump::Workloads => Some(workloads(body)),
        Dump::Dns => Some(dns(body)),
        Dump::Connections => Some(connections(body)),
    }
}

fn connections(body: &Value) -> String {
    let row = |of: &Value| {
        [
            text(&of["source"]),
            text(&of["workload"]),
            text(&of["original_destination"]),
            text(&of["host"]),
            text(&of["cluster"]),
            text(&of["requests"]),
            of["age_seconds"].as_u64().map_or_else(String::new, age),
        ]
    };
    let columns = [
        "SOURCE",
        "WORKLOAD",
        "DESTINATION",
        "HOST",
        "CLUSTER",
        "REQUESTS",
        "AGE",
    ];
    table(columns, entries(body).map(row).collect())
}

fn workloads(body: &Value) -> String {
    let row = |of: &Value| {
        let pod = &of["pod"];
        [
            text(&of["name"]),
            text(&of["namespace"]),
            text(&pod["addresses"]),
            pod["port"]
                .as_u64()
                .filter(|port| *port != 0)
                .map_or_else(String::new, |port| port.to_string()),
            text(&pod["listening"]),
            text(&pod["cgroups"]),
        ]
    };
    let columns = [
        "WORKLOAD",
        "NAMESPACE",
        "ADDRESS",
        "PORT",
        "LISTENING",
        "CGROUP",
    ];
    table(columns, entries(body).map(row).collect())
}

fn dns(body: &Value) -> String {
    let names = body.as_object().into_iter().flatten();
    let rows = names.map(|(name, of)| {
        [
            name.clone(),
            text(&of["addresses"]),
            text(&of["retired"]),
            text(&of["error"]),
        ]
    });
    table(["NAME", "ADDRESSES", "RETIRED", "ERROR"], rows.collect())
}

fn entries(body: &Value) -> impl Iterator<Item = &Value> {
    body.as_array().into_iter().flatten()
}

/// One cell; the members of a list that are known, joined.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(members) => {
            let known: Vec<_> = members.iter().map(text).filter(|m| !m.is_empty()).collect();
            known.join(",")
        }
        other => other.to_string(),
    }
}

/// In the two largest units: `59s`, `2m5s`, `1h0m`, `3d4h`.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// Columns as wide as their widest cell. Nothing in a cell can move the cursor.
fn table<const N: usize>(columns: [&str; N], rows: Vec<[String; N]>) -> String {
    let shown = |cell: String| match cell.is_empty() {
        true => "-".to_owned(),
        false => cell.replace(char::is_control, "?"),
    };
    let mut lines = vec![columns.map(str::to_owned)];
    lines.extend(rows.into_iter().map(|row| row.map(shown)));
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|at| width(at).unwrap_or_default() + GAP);
    let mut out = String::new();
    for line in &lines {
        let begin = out.len();
        for (cell, width) in line.iter().zip(widths) {
            out.push_str(&format!("{cell:<width$}"));
        }
        out.truncate(begin + out[begin..].trim_end().len());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn workloads_are_listed_with_and_without_a_pod() {
        let body = json!([
            {
                "name": "sleep", "namespace": "istio-demo", "labels": {}, "service_account": "",
                "pod": {
                    "addresses": ["10.88.1.2", null], "port": 15001,
                    "listening": ["127.0.0.1", "::1"], "cgroups": ["/pods/sleep"],
                },
            },
            {
                "name": "", "namespace": "", "labels": {}, "service_account": "",
                "pod": {
                    "addresses": [null, null], "port": 0, "listening": [null, null],
                    "cgroups": ["/pods/x/a", "/pods/x/b"],
                },
            },
            {"name": "other", "namespace": "other", "labels": {}, "service_account": "default"},
        ]);
        let expected = "\
WORKLOAD  NAMESPACE   ADDRESS    PORT   LISTENING      CGROUP
sleep     istio-demo  10.88.1.2  15001  127.0.0.1,::1  /pods/sleep
-         -           -          -      -              /pods/x/a,/pods/x/b
other     other       -          -      -              -
";
        assert_eq!(of(Dump::Workloads, &body).as_deref(), Some(expected));
    }

    #[test]
    fn connections_are_listed_with_what_is_known_of_them() {
        let body = json!([
            {
                "source": "10.88.1.2:40000", "workload": "istio-demo/sleep",
                "original_destination": "203.0.113.10:80", "host": "httpbin.org",
                "cluster": "outbound|80||httpbin.org", "requests": 12, "age_seconds": 125,
            },
            {
                "source": "[fd00::1]:1", "workload": null, "original_destination": null,
                "host": "a\u{1b}[2J", "cluster": null, "requests": 0, "age_seconds": 7,
            },
        ]);
        let expected = "\
SOURCE           WORKLOAD          DESTINATION      HOST         CLUSTER                   REQUESTS  AGE
10.88.1.2:40000  istio-demo/sleep  203.0.113.10:80  httpbin.org  outbound|80||httpbin.org  12        2m5s
[fd00::1]:1      -                 -                a?[2J        -                         0         7s
";
        assert_eq!(of(Dump::Connections, &body).as_deref(), Some(expected));
        let none = of(Dump::Connections, &json!([])).unwrap();
        assert_eq!(none.lines().count(), 1, "{none}");
    }

    #[test]
    fn names_are_listed_with_their_addresses_or_the_error() {
        let body = json!({
            "dead.test": {"addresses": [], "retired": [], "error": "no such name"},
            "httpbin.org": {"addresses": ["192.0.2.7", "192.0.2.8"], "retired": [], "error": null},
        });
        let expected = "\
NAME         ADDRESSES            RETIRED  ERROR
dead.test    -                    -        no such name
httpbin.org  192.0.2.7,192.0.2.8  -        -
";
        assert_eq!(of(Dump::Dns, &body).as_deref(), Some(expected));
        assert_eq!(of(Dump::Config, &body), None);
    }

    #[test]
    fn ages_have_two_units() {
        for (seconds, expected) in [
            (0, "0s"),
            (60, "1m0s"),
            (3599, "59m59s"),
            (3600, "1h0m"),
            (100_000, "1d3h"),
        ] {
            assert_eq!(age(seconds), expected);
        }
    }
}
