// SPDX-License-Identifier: Apache-2.0
//! Appending numbers, times, addresses and escaped text to a byte buffer without allocating.
//!
//! Stands below the formats of the access log. Knows nothing of records or of operators.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// `"00" "01" ... "99"` in one string, so that two digits are one copy.
const PAIRS: &[u8; 200] = b"0001020304050607080910111213141516171819\
2021222324252627282930313233343536373839\
4041424344454647484950515253545556575859\
6061626364656667686970717273747576777879\
8081828384858687888990919293949596979899";

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Appends `value` in decimal.
pub fn integer(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    while value >= 100 {
        let pair = (value % 100) as usize * 2;
        value /= 100;
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    }
    if value >= 10 {
        let pair = value as usize * 2;
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    } else {
        at -= 1;
        digits[at] = b'0' + value as u8;
    }
    out.extend_from_slice(&digits[at..]);
}

/// Whole milliseconds, rounded down as Envoy does.
pub fn milliseconds(out: &mut Vec<u8>, duration: Duration) {
    integer(out, u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
}

/// `IP:PORT`, IPv6 in brackets.
pub fn address(out: &mut Vec<u8>, address: SocketAddr) {
    if address.is_ipv6() {
        out.push(b'[');
        ip(out, address.ip());
        out.push(b']');
    } else {
        ip(out, address.ip());
    }
    out.push(b':');
    integer(out, address.port().into());
}

/// An address without port; IPv6 without brackets.
pub fn ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            for (position, octet) in v4.octets().into_iter().enumerate() {
                if position > 0 {
                    out.push(b'.');
                }
                integer(out, octet.into());
            }
        }
        IpAddr::V6(v6) => {
            // Writing to a Vec cannot fail.
            let _ = write!(out, "{v6}");
        }
    }
}

/// Client text for a text line: `"`, control bytes and DEL become `\xNN`, so that one record stays
/// one line and a quoted field stays one field.
pub fn text(out: &mut Vec<u8>, value: &str) {
    escaped(out, value, |byte| {
        byte < 0x20 || byte == 0x7f || byte == b'"'
    });
}

/// As [`text`], for a field that is not quoted: spaces are escaped too.
pub fn word(out: &mut Vec<u8>, value: &str) {
    escaped(out, value, |byte| {
        byte <= 0x20 || byte == 0x7f || byte == b'"'
    });
}

/// Own text for an unquoted field: spaces become `_`, as Envoy writes its details.
pub fn details(out: &mut Vec<u8>, value: &str) {
    let start = out.len();
    text(out, value);
    for byte in &mut out[start..] {
        if *byte == b' ' {
            *byte = b'_';
        }
    }
}

/// The inside of a JSON string (RFC 8259 section 7).
pub fn json(out: &mut Vec<u8>, value: &str) {
    let bytes = value.as_bytes();
    let mut copied = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' && byte != 0x7f {
            continue;
        }
        out.extend_from_slice(&bytes[copied..at]);
        copied = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                hex(out, byte);
            }
        }
    }
    out.extend_from_slice(&bytes[copied..]);
}

fn escaped(out: &mut Vec<u8>, value: &str, special: impl Fn(u8) -> bool) {
    let bytes = value.as_bytes();
    let mut copied = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if special(byte) {
            out.extend_from_slice(&bytes[copied..at]);
            copied = at + 1;
            out.extend_from_slice(b"\\x");
            hex(out, byte);
        }
    }
    out.extend_from_slice(&bytes[copied..]);
}

fn hex(out: &mut Vec<u8>, byte: u8) {
    out.push(HEX[usize::from(byte >> 4)]);
    out.push(HEX[usize::from(byte & 15)]);
}

/// Writes `2020-07-27T18:10:57.205Z`; the part up to the seconds is kept from call to call.
#[derive(Debug)]
pub struct Clock {
    second: u64,
    prefix: [u8; 19],
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            second: 0,
            prefix: civil(0),
        }
    }
}

impl Clock {
    /// Appends `time` in UTC with milliseconds; times before 1970 are written as 1970.
    pub fn append(&mut self, out: &mut Vec<u8>, time: SystemTime) {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        if since_epoch.as_secs() != self.second {
            self.second = since_epoch.as_secs();
            self.prefix = civil(self.second);
        }
        let millis = since_epoch.subsec_millis() as usize;
        out.extend_from_slice(&self.prefix);
        out.push(b'.');
        out.push(b'0' + (millis / 100) as u8);
        out.extend_from_slice(&PAIRS[millis % 100 * 2..millis % 100 * 2 + 2]);
        out.push(b'Z');
    }
}

/// `YYYY-MM-DDTHH:MM:SS` of a Unix time. Days to civil date by counting 400-year eras that start
/// on 1 March, so that the leap day is an era year's last.
fn civil(second: u64) -> [u8; 19] {
    let days = second / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);

    let mut text = *b"0000-00-00T00:00:00";
    let mut put = |at: usize, value: u64| {
        let pair = (value % 100) as usize * 2;
        text[at..at + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    };
    put(0, year / 100);
    put(2, year);
    put(5, month);
    put(8, day);
    put(11, second % 86_400 / 3_600);
    put(14, second % 3_600 / 60);
    put(17, second % 60);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appended(append: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        append(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn integers_are_written_as_the_standard_library_writes_them() {
        for value in [
            0,
            9,
            10,
            99,
            100,
            101,
            999,
            1000,
            65_535,
            123_456_789,
            u64::MAX,
        ] {
            assert_eq!(appended(|out| integer(out, value)), value.to_string());
        }
    }

    #[test]
    fn times_are_written_in_utc_with_milliseconds() {
        let mut clock = Clock::default();
        for (millis, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_595_873_457_205, "2020-07-27T18:10:57.205Z"),
            (1_595_873_457_007, "2020-07-27T18:10:57.007Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(appended(|out| clock.append(out, time)), want);
        }
    }

    #[test]
    fn addresses_are_written_as_the_standard_library_writes_them() {
        for text in [
            "0.0.0.0:0",
            "10.200.3.255:65535",
            "[::1]:80",
            "[fd00::12]:8080",
        ] {
            let parsed: SocketAddr = text.parse().unwrap();
            assert_eq!(appended(|out| address(out, parsed)), text);
        }
    }

    #[test]
    fn client_text_cannot_end_a_line_or_a_quoted_field() {
        let value = "a\"b\nc\r\td\u{7f}é \\";
        assert_eq!(
            appended(|out| text(out, value)),
            "a\\x22b\\x0Ac\\x0D\\x09d\\x7Fé \\"
        );
        assert_eq!(appended(|out| word(out, "a b")), "a\\x20b");
        assert_eq!(appended(|out| details(out, "a b\n")), "a_b\\x0A");
    }

    #[test]
    fn json_text_reads_back_as_it_was() {
        let every_byte: String = (0..=255u8).map(char::from).collect();
        let quoted = appended(|out| {
            out.push(b'"');
            json(out, &every_byte);
            out.push(b'"');
        });
        assert!(!quoted.contains('\n'));
        assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), every_byte);
    }
}
