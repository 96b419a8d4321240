// SPDX-License-Identifier: Apache-2.0
//! Scalars of proto3 JSON that YAML does not have: durations, and fields whose content is not used.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// google.protobuf.Duration as Istio users write it: `5s`, `1.5s`, `100ms`, `1h30m` (Go syntax,
/// not negative).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurationText(pub Duration);

impl DurationText {
    /// Reads Go's duration syntax.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" {
            return Some(Self(Duration::ZERO));
        }
        let mut total = 0.0;
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (number, tail) = rest.split_at(digits);
            let units = tail
                .find(|c: char| c.is_ascii_digit())
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(units);
            let seconds = match unit {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
            total += number.parse::<f64>().ok()? * seconds;
            rest = tail;
        }
        let nanos = (total * 1e9).round();
        (nanos < u64::MAX as f64).then(|| Self(Duration::from_nanos(nanos as u64)))
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = DurationText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 5s, 100ms or 1h")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<DurationText, E> {
                DurationText::parse(text)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// A field whose shape is accepted as it is because nothing here acts on it; its presence is what
/// validation reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Unused;

impl<'de> Deserialize<'de> for Unused {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_follow_go() {
        let cases = [
            ("5s", Some(5_000)),
            ("1.5s", Some(1_500)),
            ("100ms", Some(100)),
            ("1h30m", Some(5_400_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("5", None),
            ("", None),
            ("-1s", None),
            ("5 s", None),
            ("s", None),
        ];
        for (text, millis) in cases {
            let expected = millis.map(|m| DurationText(Duration::from_millis(m)));
            assert_eq!(DurationText::parse(text), expected, "{text}");
        }
    }
}
