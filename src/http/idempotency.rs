//! The header `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): what it says, and what a request with one is
//! held against.
//!
//! A key belongs to its caller and its path, query included; what it stands for is everything of the request that its
//! records are made of. Of both only a SHA-256 is kept.
//!
//! Deliberately does not know: which keys are known, and for how long (`wal`).

use axum::http::HeaderMap;
use axum::http::request::Parts;
use sha2::{Digest as _, Sha256};

use super::error::{Problem, Reason};
use crate::ingest::cloud_events;
use crate::record::{HEADER_IDEMPOTENCY_KEY, Idempotency};
use crate::wal::{Log, Remembered, Reservation, Reserved, key_id};

/// The longest key, in bytes.
const KEY_BYTES_MAX: usize = 255;

/// A request's key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    text: String,
    scope: [u8; 16],
}

/// Whose turn a request with a key is.
#[derive(Debug)]
pub(super) enum Turn {
    /// Its own: its records are to be stored.
    First(Reservation),
    /// It was stored.
    Again(Remembered),
}

impl Key {
    /// The key of a request of `caller`, if it has one.
    pub(super) fn of(parts: &Parts, caller: &str) -> Result<Option<Self>, Problem> {
        let mut given = parts.headers.get_all(HEADER_IDEMPOTENCY_KEY).iter();
        let Some(value) = given.next() else { return Ok(None) };
        if given.next().is_some() {
            return Err(malformed("is there more than once. Nothing was taken; send one."));
        }
        let text = parse(value.as_bytes()).map_err(malformed)?;
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let mut sum = Sha256::new();
        for part in [caller, parts.method.as_str(), target] {
            feed(&mut sum, part.as_bytes());
        }
        Ok(Some(Self {
            text,
            scope: first_16(sum),
        }))
    }

    /// As the client wrote it, without quotes.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Asks whose turn it is.
    pub(super) fn turn(&self, log: &Log, now_ms: i64) -> Result<Turn, Problem> {
        match log.reserve(key_id(&self.scope, &self.text), now_ms) {
            Reserved::New(reservation) => Ok(Turn::First(reservation)),
            Reserved::Known(known) => Ok(Turn::Again(known)),
            Reserved::InFlight => Err(Problem::new(
                Reason::KeyInFlight,
                "another request with this Idempotency-Key is being worked on. Nothing of this one was taken; send it again in \
                 a moment, and it is answered as that one was.",
            )),
            Reserved::Off => Err(malformed(
                "cannot be kept: this gateway remembers none (http.idempotency_keys_max is 0). Nothing was taken; leave the \
                 header out.",
            )),
        }
    }

    /// What goes into the log: `body` is what the key stands for.
    pub(super) fn into_record(self, body: [u8; 16]) -> Idempotency {
        Idempotency {
            key: self.text,
            scope: self.scope,
            body,
            records: 0,
        }
    }
}

/// The refusal of a request whose key stood for something else.
pub(super) fn mismatch() -> Problem {
    Problem::new(
        Reason::KeyMismatch,
        "this Idempotency-Key came before on this path, with another body (compressed anew it is another one) or other headers that \
         make the records. Nothing of this request was taken; a new request needs a new key.",
    )
}

/// Takes up what a key stands for: first the headers that records are made of, in an order of their own, then the body.
pub(super) struct Content(Sha256);

impl Content {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut own: Vec<(&str, &[u8])> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .filter(|(name, _)| {
                matches!(*name, "content-type" | "content-encoding")
                    || name.starts_with(crate::record::HEADER_PREFIX_RESERVED)
                    || name.starts_with(cloud_events::HEADER_PREFIX)
            })
            .collect();
        // What is on the way may put them in another order; several of one name keep theirs.
        own.sort_by_key(|(name, _)| *name);
        let mut sum = Sha256::new();
        sum.update(u64::try_from(own.len()).unwrap_or(u64::MAX).to_le_bytes());
        for (name, value) in own {
            feed(&mut sum, name.as_bytes());
            feed(&mut sum, value);
        }
        Self(sum)
    }

    /// With the body as it came.
    pub(super) fn with(self, body: &[u8]) -> [u8; 16] {
        first_16(self.0.chain_update(body))
    }
}

/// With its length, so that no two lists of parts are the same bytes.
fn feed(sum: &mut Sha256, part: &[u8]) {
    sum.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
    sum.update(part);
}

fn first_16(sum: Sha256) -> [u8; 16] {
    sum.finalize().first_chunk().copied().unwrap_or_default()
}

fn malformed(what: &str) -> Problem {
    Problem::new(Reason::Malformed, format!("the header Idempotency-Key {what}"))
}

/// The key that a header's value is: a string of structured fields (`"..."`, with `\"` and `\\` in it), or bare.
fn parse(value: &[u8]) -> Result<String, &'static str> {
    let value = value.trim_ascii();
    let text = match value {
        [b'"', rest @ ..] => unquoted(rest)?,
        bare if bare.contains(&b'"') => {
            return Err("has a quote in it and does not begin with one. Nothing was taken; write it as \"KEY\".");
        }
        bare => bare.to_vec(),
    };
    if text.is_empty() {
        return Err("is empty. Nothing was taken; give a key that no other request has, such as a UUID.");
    }
    if text.len() > KEY_BYTES_MAX {
        return Err("is longer than 255 bytes. Nothing was taken; give a shorter one, such as a UUID.");
    }
    match String::from_utf8(text) {
        Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text),
        _ => Err(
            "has something in it other than visible ASCII characters (no spaces). Nothing was taken; give one such as a UUID.",
        ),
    }
}

/// What stands between the quote before `rest` and the one at its end.
fn unquoted(rest: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut text = Vec::with_capacity(rest.len());
    let mut bytes = rest.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' if bytes.as_slice().is_empty() => return Ok(text),
            b'"' => return Err("goes on behind its closing quote. Nothing was taken; write one key as \"KEY\"."),
            b'\\' => match bytes.next() {
                Some(escaped @ (b'"' | b'\\')) => text.push(*escaped),
                _ => {
                    return Err(
                        "has a backslash that is followed by neither a quote nor a backslash. Nothing was taken; write \\\\ for one.",
                    );
                }
            },
            other => text.push(*other),
        }
    }
    Err("has no closing quote. Nothing was taken; write it as \"KEY\".")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use axum::http::Request;
    use proptest::prelude::*;

    use super::*;

    fn parts(target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method("POST").uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_key_is_quoted_or_bare() {
        for (given, key) in [
            ("abc", "abc"),
            (r#""abc""#, "abc"),
            (r#"  "a\"b\\c" "#, r#"a"b\c"#),
            (
                "8e03978e-40d5-43dd-bc93-6894a57f9324",
                "8e03978e-40d5-43dd-bc93-6894a57f9324",
            ),
            (r"a\b", r"a\b"),
        ] {
            assert_eq!(parse(given.as_bytes()).unwrap(), key, "{given}");
        }
        for given in [
            "",
            "  ",
            r#""""#,
            r#""abc"#,
            r#"abc""#,
            r#""a"b""#,
            r#""a\b""#,
            r#""a";x=1"#,
            "a b",
            r#""a b""#,
            "é",
            "a\u{7f}",
        ] {
            assert!(parse(given.as_bytes()).is_err(), "{given}");
        }
        assert!(parse(&[b'a'; 255]).is_ok());
        assert!(parse(&[b'a'; 256]).is_err());
        assert!(parse(format!("\"{}\"", "\\\\".repeat(255)).as_bytes()).is_ok());
    }

    #[test]
    fn a_key_belongs_to_its_caller_and_path() {
        let scope = |caller: &str, target: &str| {
            let parts = parts(target, &[("idempotency-key", "k")]);
            Key::of(&parts, caller).unwrap().unwrap().scope
        };
        let one = scope("", "/v1/topics/t?key=a");
        assert_eq!(one, scope("", "/v1/topics/t?key=a"));
        for other in [
            scope("c", "/v1/topics/t?key=a"),
            scope("", "/v1/topics/t"),
            scope("", "/v1/topics/t?key=b"),
        ] {
            assert_ne!(one, other);
        }
        assert_eq!(Key::of(&parts("/s", &[]), "").unwrap(), None);
        assert!(Key::of(&parts("/s", &[("idempotency-key", "a"), ("idempotency-key", "a")]), "").is_err());
    }

    #[test]
    fn what_makes_the_records_is_what_the_key_stands_for() {
        let sum = |headers: &[(&str, &str)], body: &[u8]| Content::of(&parts("/s", headers).headers).with(body);
        let base = sum(
            &[("content-type", "a/b"), ("tidegate-header-x", "1"), ("ce-id", "7")],
            b"body",
        );
        // Another order, and headers that say nothing of the records.
        let same = sum(
            &[
                ("user-agent", "x"),
                ("ce-id", "7"),
                ("content-type", "a/b"),
                ("tidegate-header-x", "1"),
            ],
            b"body",
        );
        assert_eq!(base, same);
        for (headers, body) in [
            (
                &[("content-type", "a/b"), ("tidegate-header-x", "1"), ("ce-id", "7")][..],
                &b"bodY"[..],
            ),
            (
                &[("content-type", "a/c"), ("tidegate-header-x", "1"), ("ce-id", "7")],
                b"body",
            ),
            (
                &[("content-type", "a/b"), ("tidegate-header-x", "2"), ("ce-id", "7")],
                b"body",
            ),
            (
                &[("content-type", "a/b"), ("tidegate-header-x", "1"), ("ce-id", "8")],
                b"body",
            ),
            (
                &[
                    ("content-type", "a/b"),
                    ("tidegate-header-x", "1"),
                    ("ce-id", "7"),
                    ("tidegate-key", "k"),
                ],
                b"body",
            ),
            (
                &[
                    ("content-type", "a/b"),
                    ("tidegate-header-x", "1"),
                    ("ce-id", "7"),
                    ("content-encoding", "gzip"),
                ],
                b"body",
            ),
        ] {
            assert_ne!(base, sum(headers, body), "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn every_visible_key_can_be_quoted(key in "[!-~]{1,255}") {
            let quoted = format!("\"{}\"", key.replace('\\', r"\\").replace('"', "\\\""));
            prop_assert_eq!(parse(quoted.as_bytes()), Ok(key));
        }

        #[test]
        fn no_value_panics(value in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(key) = parse(&value) {
                prop_assert!(!key.is_empty() && key.len() <= value.len());
            }
        }
    }
}
