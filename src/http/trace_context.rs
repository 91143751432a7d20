//! W3C Trace Context: what of a request's `traceparent` and `tracestate` goes on into Kafka.
//!
//! The gateway is no part of the trace: it makes no spans and changes nothing. A `traceparent` that the standard calls
//! invalid is treated as if it were not there, and then so is `tracestate`. Knows no Kafka: it gives names and values.

use axum::http::HeaderMap;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// `00-` and a trace's id of 32 digits, the caller's of 16, flags of 2.
const LENGTH: usize = 55;
/// The version that never is.
const VERSION_INVALID: &[u8] = b"ff";

/// The headers to go on, as they came; none where there is no trace.
pub(super) fn of(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else {
        return Vec::new();
    };
    if !is_valid(parent.as_bytes()) {
        return Vec::new();
    }
    let mut found = vec![(TRACEPARENT.to_owned(), parent.as_bytes().to_vec())];
    // Several are one list.
    let states: Vec<&[u8]> = headers
        .get_all(TRACESTATE)
        .iter()
        .map(|state| state.as_bytes())
        .collect();
    let state = states.join(&b","[..]);
    if !state.is_empty() {
        found.push((TRACESTATE.to_owned(), state));
    }
    found
}

/// Whether it is one of version 00, or of a later version and begins as one.
fn is_valid(parent: &[u8]) -> bool {
    let Some((known, rest)) = parent.split_at_checked(LENGTH) else {
        return false;
    };
    let mut fields = known.split(|byte| *byte == b'-');
    let mut field = |length: usize| {
        let field = fields.next()?;
        let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (field.len() == length && field.iter().all(is_hex)).then_some(field)
    };
    let (Some(version), Some(trace), Some(caller), Some(_)) = (field(2), field(32), field(16), field(2)) else {
        return false;
    };
    let is_none = |id: &[u8]| id.iter().all(|digit| *digit == b'0');
    let ends = match version {
        b"00" => rest.is_empty(),
        _ => rest.is_empty() || rest.starts_with(b"-"),
    };
    ends && version != VERSION_INVALID && !is_none(trace) && !is_none(caller)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn of_headers(headers: &[(&'static str, &str)]) -> Vec<(String, String)> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        let found = of(&map).into_iter();
        found
            .map(|(name, value)| (name, String::from_utf8(value).unwrap()))
            .collect()
    }

    #[test]
    fn a_trace_goes_on_unchanged() {
        let parent = ("traceparent".to_owned(), PARENT.to_owned());
        assert_eq!(of_headers(&[("traceparent", PARENT)]), std::slice::from_ref(&parent));
        let with_state = [
            ("traceparent", PARENT),
            ("tracestate", "a=1,b=2"),
            ("tracestate", "c=3"),
        ];
        let state = ("tracestate".to_owned(), "a=1,b=2,c=3".to_owned());
        assert_eq!(of_headers(&with_state), [parent, state]);
        let later = format!("cc{}-what-the-future-will-be-like", &PARENT[2..]);
        assert_eq!(of_headers(&[("traceparent", &later)])[0].1, later);
        let later = format!("cc{}", &PARENT[2..]);
        assert_eq!(of_headers(&[("traceparent", &later)])[0].1, later);
    }

    #[test]
    fn what_the_standard_calls_invalid_is_not_there() {
        let invalid = [
            String::new(),
            PARENT[..54].to_owned(),
            format!("{PARENT}-"),
            format!("{PARENT}-more"),
            format!("cc{}.more", &PARENT[2..]),
            format!("ff{}", &PARENT[2..]),
            PARENT.to_uppercase(),
            PARENT.replace('-', "_"),
            PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            PARENT.replace("01", "0g"),
            format!(" {}", &PARENT[1..]),
        ];
        for parent in &invalid {
            let found = of_headers(&[("traceparent", parent), ("tracestate", "a=1")]);
            assert!(found.is_empty(), "{parent}: {found:?}");
        }
        assert!(of_headers(&[("traceparent", PARENT), ("traceparent", PARENT)]).is_empty());
        assert!(of_headers(&[("tracestate", "a=1")]).is_empty());
    }
}
