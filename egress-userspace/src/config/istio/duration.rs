// SPDX-License-Identifier: Apache-2.0
//! Durations as Istio's YAML writes them: Go's `time.ParseDuration` (`5s`, `100ms`, `1h30m`,
//! `1.5s`). Signs are refused: no field of the API takes a negative time.

use std::{fmt, time};

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A duration field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct Duration(pub time::Duration);

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(DurationVisitor)
    }
}

struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration such as `5s`, `100ms` or `1h`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        parse(text)
            .map(Duration)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

/// Nanoseconds are summed in 128 bits; what does not fit Go's int64 nanoseconds is refused as
/// Go refuses it.
fn parse(text: &str) -> Option<time::Duration> {
    if text == "0" {
        return Some(time::Duration::ZERO);
    }
    let mut rest = text;
    let mut total: u128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (whole, after) = rest.split_at(digits);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(after.find(|c: char| !c.is_ascii_digit())?),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let nanoseconds = unit_nanoseconds(unit)?;
        if !whole.is_empty() {
            total = total.checked_add(whole.parse::<u64>().ok()? as u128 * nanoseconds)?;
        }
        total = total.checked_add(fraction_nanoseconds(fraction, nanoseconds))?;
        rest = after;
    }
    let total = i64::try_from(total).ok()?;
    Some(time::Duration::from_nanos(total.unsigned_abs()))
}

fn fraction_nanoseconds(digits: &str, mut unit: u128) -> u128 {
    let mut sum = 0;
    for digit in digits.bytes() {
        // Digits below a nanosecond are dropped, as Go does.
        unit /= 10;
        sum += u128::from(digit - b'0') * unit;
    }
    sum
}

fn unit_nanoseconds(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, milliseconds) in [
            ("5s", Some(5_000)),
            ("100ms", Some(100)),
            ("1h", Some(3_600_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5s", Some(1_500)),
            (".5s", Some(500)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("2500us", Some(2)),
            ("", None),
            ("5", None),
            ("s", None),
            (".s", None),
            ("5 s", None),
            ("-5s", None),
            ("5d", None),
            ("99999999999h", None),
            ("5sfoo", None),
        ] {
            assert_eq!(parse(text).map(|d| d.as_millis()), milliseconds, "{text:?}");
        }
    }
}
