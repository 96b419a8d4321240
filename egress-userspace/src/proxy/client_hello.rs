// SPDX-License-Identifier: Apache-2.0
//! Server name of a TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3). Reads, never consumes; bounded by
//! the bytes it is given.

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Hello {
    /// A whole hello, with its server name if it has one.
    Complete(Option<String>),
    /// The beginning of a hello.
    Partial,
    /// Not a hello.
    Not,
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// Looks at the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Hello {
    match bytes {
        [] => return Hello::Partial,
        [HANDSHAKE, ..] => {}
        _ => return Hello::Not,
    }
    if bytes.get(1).is_some_and(|major| *major != 3) {
        return Hello::Not;
    }
    // The hello may span several records; their fragments are joined.
    let mut message = Vec::new();
    let mut rest = Reader(bytes);
    loop {
        if let Some(length) = handshake_length(&message)
            && message.len() >= length
        {
            let body = message.get(4..length).unwrap_or_default();
            return match server_name(body) {
                Some(name) => Hello::Complete(name),
                None => Hello::Not,
            };
        }
        let Some(header) = rest.take(5) else {
            return Hello::Partial;
        };
        if header[0] != HANDSHAKE {
            return Hello::Not;
        }
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 {
            return Hello::Not;
        }
        let available = length.min(rest.0.len());
        message.extend_from_slice(&rest.0[..available]);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Hello::Not;
        }
        if rest.take(length).is_none() {
            return Hello::Partial;
        }
    }
}

/// Length of the handshake message with its header.
fn handshake_length(message: &[u8]) -> Option<usize> {
    match message {
        [_, a, b, c, ..] => {
            Some(4 + (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c)))
        }
        _ => None,
    }
}

/// `None`: malformed. `Some(None)`: well-formed, without a name.
fn server_name(body: &[u8]) -> Option<Option<String>> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    reader.vector8()?;
    reader.vector16()?;
    reader.vector8()?;
    if reader.0.is_empty() {
        return Some(None);
    }
    let mut extensions = Reader(reader.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut content = Reader(extensions.vector16()?);
        if kind != SERVER_NAME {
            continue;
        }
        let mut names = Reader(content.vector16()?);
        while !names.0.is_empty() {
            let kind = names.take(1)?[0];
            let name = names.vector16()?;
            if kind == HOST_NAME {
                let text = std::str::from_utf8(name).ok()?;
                return Some(Some(text.to_ascii_lowercase()));
            }
        }
    }
    Some(None)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A minimal hello with one name, split into records of at most `record` bytes.
    fn hello(name: Option<&str>, record: usize) -> Vec<u8> {
        let mut extensions = Vec::new();
        if let Some(name) = name {
            let len = name.len() as u16;
            extensions.extend(SERVER_NAME.to_be_bytes());
            extensions.extend((len + 5).to_be_bytes());
            extensions.extend((len + 3).to_be_bytes());
            extensions.push(HOST_NAME);
            extensions.extend(len.to_be_bytes());
            extensions.extend(name.as_bytes());
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend([0, 2, 0x13, 1, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut message = vec![CLIENT_HELLO, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        message
            .chunks(record)
            .flat_map(|part| {
                let mut out = vec![HANDSHAKE, 3, 1];
                out.extend((part.len() as u16).to_be_bytes());
                out.extend(part);
                out
            })
            .collect()
    }

    #[test]
    fn names_are_found_whole_and_split() {
        for record in [10_000, 50, 1] {
            let found = parse(&hello(Some("Example.COM"), record));
            assert_eq!(
                found,
                Hello::Complete(Some("example.com".into())),
                "{record}"
            );
        }
        assert_eq!(parse(&hello(None, 10_000)), Hello::Complete(None));
    }

    #[test]
    fn every_prefix_asks_for_more() {
        let whole = hello(Some("example.com"), 40);
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]), Hello::Partial, "{end}");
        }
    }

    #[test]
    fn other_bytes_are_no_hello() {
        for bytes in [
            &b"GET / HTTP/1.1"[..],
            b"\x16\x02\x01\x00\x05\x01",
            b"\x16\x03\x01\x00\x05\x02\0\0\0\0",
        ] {
            assert_eq!(parse(bytes), Hello::Not);
        }
    }
}
