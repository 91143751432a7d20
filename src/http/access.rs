//! Who may ask the admin listener, and who may change something there.
//!
//! A program sends the token as a bearer; a browser, which cannot on a page's first request, sends it as the password
//! of HTTP basic. Browsers send what they know along with whatever any page asks of them, so a request of a page
//! (it has an `Origin`) that would change something is taken only where a token is needed and the page is our own.
//!
//! A page may also look at what it may not change: it gives its own name our address (DNS rebinding), and its browser
//! takes us for the page's server. That browser says the name as `Host`, so without a token only an address is taken.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, Request, header};
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq as _;

use super::auth::authorization;
use super::error::{Problem, Reason};
use crate::ops::ITEM_BYTES_MAX;

/// The largest body of a request to the admin listener: a record of any size can come back through it.
pub(super) const BODY_BYTES_MAX: usize = ITEM_BYTES_MAX;
/// Paths that need no token: supervisors have none, and these tell no data.
const OPEN_PATHS: &[&str] = &["/livez", "/readyz"];
/// What makes a browser ask its user; programs have read "Bearer" before it.
const ASK_THE_USER: HeaderValue = HeaderValue::from_static("Basic realm=\"tidegate admin\", charset=\"UTF-8\"");

/// Refuses what may not be asked.
pub(super) fn check<B>(request: &Request<B>, token: Option<&str>) -> Result<(), Box<Response>> {
    let path = request.uri().path();
    let headers = request.headers();
    let open = OPEN_PATHS.contains(&path);
    if token.is_none() && !open && !headers.get_all(header::HOST).iter().all(is_address) {
        let problem = Problem::new(
            Reason::Forbidden,
            "this listener has no token and is asked by a name (Host), which a page in a browser could do too. Nothing \
             was done; ask it by its address, such as http://127.0.0.1:4001, or set admin.token.",
        );
        return Err(Box::new(problem.into_response()));
    }
    if let Some(token) = token
        && !open
        && !has_token(headers, token)
    {
        let mut response = Problem::new(
            Reason::Unauthorized,
            "this listener needs its token: send the header \"Authorization: Bearer TOKEN\" with admin.token; a browser \
             asks for it as a password, with any name.",
        )
        .with(header::WWW_AUTHENTICATE, "Bearer")
        .into_response();
        if path == "/" || path.starts_with("/v1/") {
            response.headers_mut().append(header::WWW_AUTHENTICATE, ASK_THE_USER);
        }
        return Err(Box::new(response));
    }
    if [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method()) {
        return Ok(());
    }
    let checked = check_page(headers, token.is_some()).and_then(|()| check_body(request.method(), headers));
    checked.map_err(|problem| Box::new(problem.into_response()))
}

/// Of a request that would change something: whether a page sent it, and which.
fn check_page(headers: &HeaderMap, token_needed: bool) -> Result<(), Problem> {
    if let Some(origin) = headers.get(header::ORIGIN) {
        if !token_needed {
            return Err(Problem::new(
                Reason::Forbidden,
                "a page in a browser may not change anything here, because this listener has no token and any page \
                 could. Nothing was done; set admin.token, or use the tidegate command.",
            ));
        }
        let own = headers.get(header::HOST).is_some_and(|host| is_from(origin, host));
        if !own {
            return Err(Problem::new(
                Reason::Forbidden,
                "this request comes from a page of another address (Origin is not Host). Nothing was done; open the \
                 status page of this listener itself, or let the proxy before it keep the Host header.",
            ));
        }
    }
    Ok(())
}

fn check_body(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    if method != Method::POST {
        return Ok(());
    }
    let media = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let media = media.and_then(|media| media.split(|byte| *byte == b';').next());
    let media = media.unwrap_or_default().trim_ascii().to_ascii_lowercase();
    // Neither is what a form, or a page of another address, can send without being asked first.
    if media != b"application/json" && media != b"application/x-ndjson" {
        return Err(Problem::new(
            Reason::MediaType,
            "what changes something here is asked for in JSON: send content-type application/json (or \
             application/x-ndjson). Nothing was done.",
        ));
    }
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok());
    if announced.is_some_and(|length| length.parse().is_ok_and(|length: u64| length > BODY_BYTES_MAX as u64)) {
        return Err(Problem::new(
            Reason::TooLarge,
            format!("a body may have {BODY_BYTES_MAX} bytes here. Nothing was done; ask in smaller parts."),
        ));
    }
    Ok(())
}

/// Whether `host` is what nobody can point elsewhere: an address, or `localhost`.
fn is_address(host: &HeaderValue) -> bool {
    let Ok(authority) = Authority::try_from(host.as_bytes()) else {
        return false;
    };
    let host = authority.host();
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    v6.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok())
        || host.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
}

/// `http://host:port` against `host:port`, both as the browser wrote them.
fn is_from(origin: &HeaderValue, host: &HeaderValue) -> bool {
    let origin = origin.as_bytes();
    let of = |scheme: &[u8]| origin.strip_prefix(scheme).map(<[u8]>::to_ascii_lowercase);
    // A proxy before us may speak TLS.
    of(b"http://").or_else(|| of(b"https://")).as_deref() == Some(&host.as_bytes().to_ascii_lowercase())
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    authorization(headers).is_some_and(|given| given.secret.ct_eq(token.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    #[test]
    fn only_the_right_token_opens() {
        let opens = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            has_token(&headers, TOKEN)
        };
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        assert!(opens("Bearer 0123456789abcdef"));
        assert!(opens("bearer 0123456789abcdef"));
        assert!(!opens("Bearer 0123456789abcdeg"));
        assert!(!opens("Bearer 0123456789abcde"));
        assert!(!opens("Bearer "));
        assert!(!opens("Bearer"));
        assert!(opens(&basic(":0123456789abcdef")));
        assert!(opens(&basic("anybody:0123456789abcdef").replace("Basic", "basic")));
        assert!(!opens(&basic("0123456789abcdef")));
        assert!(!opens(&basic("a:b:0123456789abcdef")));
        assert!(!opens(&basic("0123456789abcdef:")));
        assert!(!opens("Basic 0123456789abcdef"));
        assert!(!opens("Basic %%%"));
        assert!(!has_token(&HeaderMap::new(), TOKEN));
    }

    /// The status of a request with these headers; 200: it may go on.
    fn asked(method: &str, path: &str, token: Option<&str>, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        check(&request, token).map_or_else(|response| response.status().as_u16(), |()| 200)
    }

    #[test]
    fn a_browser_is_asked_for_the_token_where_people_look() {
        let asks = |path: &str| {
            let request = Request::builder().uri(path).body(()).unwrap();
            let response = check(&request, Some(TOKEN)).unwrap_err();
            assert_eq!(response.status(), 401);
            let all = response.headers().get_all(header::WWW_AUTHENTICATE);
            let all: Vec<&str> = all.iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(all[0], "Bearer");
            all.iter()
                .any(|value| value.starts_with("Basic realm=\"tidegate admin\""))
        };
        assert!(asks("/") && asks("/v1/status") && !asks("/metrics"));
        assert_eq!(asked("GET", "/livez", Some(TOKEN), &[]), 200);
    }

    #[test]
    fn a_change_from_a_browser_needs_a_token_and_our_own_page() {
        let bearer = ("authorization", "Bearer 0123456789abcdef");
        let json = ("content-type", "application/json; charset=utf-8");
        let post = |token, headers: &[(&str, &str)]| asked("POST", "/v1/x", token, headers);
        // The command line sends no Origin.
        assert_eq!(post(None, &[json]), 200);
        assert_eq!(post(Some(TOKEN), &[json]), 401);
        assert_eq!(post(Some(TOKEN), &[json, bearer]), 200);
        let host = ("host", "127.0.0.1:4001");
        let own = ("origin", "http://127.0.0.1:4001");
        assert_eq!(post(None, &[json, host, own]), 403);
        assert_eq!(post(Some(TOKEN), &[json, bearer, host, own]), 200);
        for other in [
            "http://127.0.0.1:4002",
            "http://evil.example",
            "null",
            "http://127.0.0.1:4001.evil",
            "",
        ] {
            assert_eq!(
                post(Some(TOKEN), &[json, bearer, host, ("origin", other)]),
                403,
                "{other}"
            );
        }
        assert_eq!(post(Some(TOKEN), &[json, bearer, own]), 403, "no Host");
        // Looking is no change.
        assert_eq!(
            asked("GET", "/v1/status", None, &[host, ("origin", "http://evil.example")]),
            200
        );
    }

    #[test]
    fn without_a_token_it_is_asked_by_its_address_only() {
        let get = |path, token, host: &str| asked("GET", path, token, &[("host", host)]);
        for host in [
            "127.0.0.1:4001",
            "127.0.0.1",
            "[::1]:4001",
            "localhost:4001",
            "LocalHost",
        ] {
            assert_eq!(get("/v1/wal/records", None, host), 200, "{host}");
        }
        for host in [
            "evil.example:4001",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "[evil]",
            "a b",
            "",
        ] {
            assert_eq!(get("/v1/wal/records", None, host), 403, "{host}");
            assert_eq!(get("/livez", None, host), 200, "{host}");
        }
        let bearer = ("authorization", "Bearer 0123456789abcdef");
        let named = [("host", "gateway.example"), bearer];
        assert_eq!(asked("GET", "/v1/status", Some(TOKEN), &named), 200);
        assert_eq!(asked("GET", "/v1/status", None, &[]), 200, "HTTP/1.0");
        let two = [("host", "127.0.0.1"), ("host", "evil.example")];
        assert_eq!(asked("GET", "/v1/status", None, &two), 403);
    }

    #[test]
    fn a_change_is_json_of_a_bounded_size() {
        let post = |headers: &[(&str, &str)]| asked("POST", "/v1/x", None, headers);
        assert_eq!(post(&[]), 415);
        assert_eq!(post(&[("content-type", "text/plain")]), 415);
        assert_eq!(post(&[("content-type", "application/x-ndjson")]), 200);
        let json = ("content-type", "Application/JSON");
        assert_eq!(post(&[json, ("content-length", "50331648")]), 200);
        assert_eq!(post(&[json, ("content-length", "50331649")]), 413);
    }
}
