// SPDX-License-Identifier: Apache-2.0
//! Request heads from one HTTP version to another (RFC 9113 8.3, RFC 9112 3.2).

use ::http::{
    HeaderMap, HeaderValue, Method, Uri, Version,
    header::{COOKIE, HOST},
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::error::DataError;

/// Moves the authority of the target into Host, where header edits see it; one rule for both
/// versions. A Host header that says something else is replaced (RFC 9112 3.2.2).
pub fn authority_to_host(parts: &mut Parts) {
    if let Some(authority) = parts.uri.authority()
        && let Ok(value) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(HOST, value);
    }
}

/// Makes the head HTTP/1.1: origin form (absolute form towards a forward proxy), one Cookie field.
pub fn to_http1(parts: &mut Parts, forward_proxy: bool) {
    let keep = parts.method == Method::CONNECT || (forward_proxy && parts.uri.scheme().is_some());
    if !keep && parts.uri.scheme().is_some() {
        let path = parts.uri.path_and_query().cloned();
        parts.uri = path.map_or_else(Uri::default, Uri::from);
    }
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
    }
    parts.version = Version::HTTP_11;
}

/// RFC 9113 8.2.3: HTTP/2 may split Cookie into several fields, HTTP/1.1 has one.
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, value);
    }
}

/// Makes the head HTTP/2: scheme and authority in the target, no Host.
///
/// # Errors
/// When Host is no authority.
pub fn to_http2(parts: &mut Parts) -> Result<(), DataError> {
    let bad = |_| DataError::BadRequest {
        reason: "the Host header is no authority",
    };
    let host = parts.headers.remove(HOST).ok_or(DataError::BadRequest {
        reason: "the request has no Host header",
    })?;
    let authority = Authority::from_maybe_shared(bytes::Bytes::copy_from_slice(host.as_bytes()))
        .map_err(bad)?;
    let mut target = ::http::uri::Parts::default();
    target.authority = Some(authority);
    if parts.method != Method::CONNECT {
        target.scheme = Some(Scheme::HTTP);
        target.path_and_query = Some(
            parts
                .uri
                .path_and_query()
                .cloned()
                .unwrap_or(PathAndQuery::from_static("/")),
        );
    }
    parts.uri = Uri::from_parts(target).map_err(|_| DataError::BadRequest {
        reason: "the request target is not valid in HTTP/2",
    })?;
    parts.version = Version::HTTP_2;
    Ok(())
}

#[cfg(test)]
mod tests {
    use ::http::Request;

    use super::*;

    fn head(version: Version, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn http2_becomes_http1() {
        let cookies = [("cookie", "a=1"), ("cookie", "b=2"), ("x", "y")];
        let mut parts = head(Version::HTTP_2, "http://h.com:81/p?q", &cookies);
        authority_to_host(&mut parts);
        to_http1(&mut parts, false);
        assert_eq!(parts.uri, "/p?q");
        assert_eq!(parts.version, Version::HTTP_11);
        assert_eq!(parts.headers[HOST], "h.com:81");
        let cookies: Vec<_> = parts.headers.get_all(COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; b=2"]);
    }

    #[test]
    fn http1_becomes_http2() {
        let mut parts = head(Version::HTTP_11, "/p?q", &[("host", "h.com:81")]);
        to_http2(&mut parts).unwrap();
        assert_eq!(parts.uri, "http://h.com:81/p?q");
        assert!(!parts.headers.contains_key(HOST));
        let mut bad = head(Version::HTTP_11, "/", &[("host", "a b")]);
        assert!(to_http2(&mut bad).is_err());
    }

    #[test]
    fn an_absolute_target_decides_over_host() {
        let mut parts = head(Version::HTTP_11, "http://a.com/p", &[("host", "b.com")]);
        authority_to_host(&mut parts);
        to_http1(&mut parts, false);
        assert_eq!(
            (parts.uri.to_string(), &parts.headers[HOST]),
            ("/p".to_owned(), &HeaderValue::from_static("a.com"))
        );
        let mut proxied = head(Version::HTTP_11, "http://a.com/p", &[]);
        to_http1(&mut proxied, true);
        assert_eq!(proxied.uri, "http://a.com/p");
    }
}
