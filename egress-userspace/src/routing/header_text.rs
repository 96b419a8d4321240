// SPDX-License-Identifier: Apache-2.0
//! Header values of rules: fixed text, or text with Envoy's commands (`%REQ(x-name)%`).

use std::{fmt, net::SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The value that a rule gives a header.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderText {
    /// The same for every request.
    Fixed(HeaderValue),
    /// Made for each request.
    Pattern(Vec<Piece>),
}

/// A part of a pattern.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text.
    Text(String),
    /// What a command stands for.
    Command(Command),
}

/// Envoy's commands that header values may use (Envoy "Custom request/response headers").
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// `%REQ(name)%`: a header of the request as it came.
    Request(HeaderName),
    /// `%RESP(name)%`: a header of the upstream's response; empty in requests.
    Response(HeaderName),
    /// `%PROTOCOL%`: `HTTP/1.1`, `HTTP/2`.
    Protocol,
    /// `%ROUTE_NAME%`.
    RouteName,
    /// `%DOWNSTREAM_REMOTE_ADDRESS%` or `..._WITHOUT_PORT%`: the client.
    Remote {
        /// With the port.
        port: bool,
    },
    /// `%DOWNSTREAM_LOCAL_ADDRESS%` or `..._WITHOUT_PORT%`: what the client connected to.
    Local {
        /// With the port.
        port: bool,
    },
}

/// What commands may stand for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// The request's header fields as they came.
    pub request: Option<&'a HeaderMap>,
    /// The response's header fields as they came.
    pub response: Option<&'a HeaderMap>,
    /// Downstream protocol.
    pub protocol: &'a str,
    /// Route name.
    pub route_name: &'a str,
    /// The client.
    pub remote: Option<SocketAddr>,
    /// What the client connected to.
    pub local: Option<SocketAddr>,
}

impl HeaderText {
    /// Reads the text form; `%%` stands for a percent sign. The error tells whether the command is
    /// one of Envoy's that is not known here, or none at all.
    ///
    /// # Errors
    /// When a percent sign does not stand as it must, or the value cannot be a header's.
    pub fn parse(text: &str) -> Result<Self, HeaderTextError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let is_command = after.starts_with(|c: char| c.is_ascii_uppercase());
            let (Some((command, after)), true) = (after.split_once('%'), is_command) else {
                return Err(HeaderTextError::Percent);
            };
            let known = Command::parse(command);
            let command = known.ok_or_else(|| HeaderTextError::Unknown(command.to_owned()))?;
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Command(command));
            rest = after;
        }
        literal.push_str(rest);
        let value = HeaderValue::from_str(&literal).map_err(|_| HeaderTextError::Characters)?;
        if pieces.is_empty() {
            return Ok(Self::Fixed(value));
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Self::Pattern(pieces))
    }

    /// The value for one request; `None` when nothing is left of it, which Envoy does not send.
    pub fn value(&self, facts: &Facts<'_>) -> Option<HeaderValue> {
        let pieces = match self {
            Self::Fixed(value) => return Some(value.clone()),
            Self::Pattern(pieces) => pieces,
        };
        let mut bytes = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => bytes.extend_from_slice(text.as_bytes()),
                Piece::Command(command) => command.append(&mut bytes, facts),
            }
        }
        HeaderValue::from_bytes(&bytes)
            .ok()
            .filter(|value| !value.is_empty())
    }

    /// Whether it needs the request's header fields.
    pub fn wants_request(&self) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::Pattern(pieces) => pieces
                .iter()
                .any(|piece| matches!(piece, Piece::Command(Command::Request(_)))),
        }
    }
}

/// Why a text is no header value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderTextError {
    /// A percent sign that is neither doubled nor part of a command.
    Percent,
    /// A command of Envoy that is not known here.
    Unknown(String),
    /// Characters that a header cannot carry.
    Characters,
}

impl Command {
    fn parse(text: &str) -> Option<Self> {
        let header = |operator| {
            let name = text.strip_prefix(operator)?.strip_suffix(')')?;
            HeaderName::from_bytes(name.as_bytes()).ok()
        };
        if let Some(name) = header("REQ(") {
            return Some(Self::Request(name));
        }
        if let Some(name) = header("RESP(") {
            return Some(Self::Response(name));
        }
        Some(match text {
            "PROTOCOL" => Self::Protocol,
            "ROUTE_NAME" => Self::RouteName,
            "DOWNSTREAM_REMOTE_ADDRESS" => Self::Remote { port: true },
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Self::Remote { port: false },
            "DOWNSTREAM_LOCAL_ADDRESS" => Self::Local { port: true },
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Self::Local { port: false },
            _ => return None,
        })
    }

    fn append(&self, out: &mut Vec<u8>, facts: &Facts<'_>) {
        let field = |fields: Option<&HeaderMap>, name: &HeaderName| {
            let value = fields.and_then(|fields| fields.get(name));
            value.map(|value| value.as_bytes().to_vec())
        };
        let address = |address: Option<SocketAddr>, port: bool| {
            address.map(|address| match port {
                true => address.to_string().into_bytes(),
                false => address.ip().to_string().into_bytes(),
            })
        };
        let value = match self {
            Self::Request(name) => field(facts.request, name),
            Self::Response(name) => field(facts.response, name),
            Self::Protocol => Some(facts.protocol.into()),
            Self::RouteName => Some(facts.route_name.into()),
            Self::Remote { port } => address(facts.remote, *port),
            Self::Local { port } => address(facts.local, *port),
        };
        out.extend(value.unwrap_or_default());
    }
}

impl fmt::Display for HeaderText {
    /// As it is written in the object.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |text: &str| text.replace('%', "%%");
        match self {
            Self::Fixed(value) => f.write_str(&text(&String::from_utf8_lossy(value.as_bytes()))),
            Self::Pattern(pieces) => pieces.iter().try_for_each(|piece| match piece {
                Piece::Text(literal) => f.write_str(&text(literal)),
                Piece::Command(command) => write!(f, "%{command}%"),
            }),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let without = |port: bool| if port { "" } else { "_WITHOUT_PORT" };
        match self {
            Self::Request(name) => write!(f, "REQ({name})"),
            Self::Response(name) => write!(f, "RESP({name})"),
            Self::Protocol => f.write_str("PROTOCOL"),
            Self::RouteName => f.write_str("ROUTE_NAME"),
            Self::Remote { port } => write!(f, "DOWNSTREAM_REMOTE_ADDRESS{}", without(*port)),
            Self::Local { port } => write!(f, "DOWNSTREAM_LOCAL_ADDRESS{}", without(*port)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_made_by_row_5b_15() {
        let request: HeaderMap = [(http::header::HOST, HeaderValue::from_static("h.com"))]
            .into_iter()
            .collect();
        let facts = Facts {
            request: Some(&request),
            protocol: "HTTP/1.1",
            remote: Some(SocketAddr::from(([192, 0, 2, 1], 5))),
            ..Facts::default()
        };
        for (text, expected) in [
            ("plain", Some("plain")),
            ("100%%", Some("100%")),
            ("%REQ(Host)%", Some("h.com")),
            ("a %REQ(host)% b%%", Some("a h.com b%")),
            ("%REQ(absent)%", None),
            ("x%REQ(absent)%", Some("x")),
            ("%PROTOCOL%", Some("HTTP/1.1")),
            (
                "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                Some("192.0.2.1"),
            ),
            ("%DOWNSTREAM_REMOTE_ADDRESS%", Some("192.0.2.1:5")),
        ] {
            let parsed = HeaderText::parse(text).unwrap();
            let value = parsed.value(&facts);
            let value = value.as_ref().map(|value| value.to_str().unwrap());
            assert_eq!(value, expected, "{text}");
            assert_eq!(parsed.to_string().to_lowercase(), text.to_lowercase());
        }
        for (text, error) in [
            ("50% off", HeaderTextError::Percent),
            ("%", HeaderTextError::Percent),
            ("%HOSTNAME", HeaderTextError::Percent),
            ("%HOSTNAME%", HeaderTextError::Unknown("HOSTNAME".into())),
            ("a\nb", HeaderTextError::Characters),
        ] {
            assert_eq!(HeaderText::parse(text), Err(error), "{text}");
        }
    }
}
