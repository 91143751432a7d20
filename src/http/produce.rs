//! The way of a record: body -> records -> one batch -> commit -> answer.
//!
//! A request is one batch: all of its records are on disk when it is answered 2xx, or none is in the
//! log. A client that goes away before the commit may find its records stored; it was not told so.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::error::{Problem, Reason};
use super::{Gateway, SourceState, pages};
use crate::ingest::{self, Envelope, IngestError, Key, Media, Shape, Taken};
use crate::record::Topic;
use crate::wal::{Batch, Receipt};

/// The only method of both paths.
const ALLOW: &str = "POST";
/// Above it a body is parsed on a thread of its own: milliseconds of parsing would hold up every other
/// request of the same thread.
const INLINE_BYTES_MAX: usize = 256 << 10;
/// How many such bodies are parsed at once: each may become a batch of the largest size.
pub(super) const ENCODERS_MAX: usize = 4;
/// How many sources a 404 names.
const SOURCES_NAMED_MAX: usize = 20;
/// The topics that Kafka keeps for itself.
const TOPIC_PREFIX_RESERVED: &str = "__";

const HEADER_KEY: &str = "tidegate-key";
const HEADER_CLIENT_PREFIX: &str = "tidegate-header-";
const WAL: HeaderName = HeaderName::from_static(crate::record::HEADER_WAL);
const SEQ: HeaderName = HeaderName::from_static(crate::record::HEADER_SEQ);
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// `/{source}`.
pub(super) async fn source(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let name = request.uri().path().get(1..).unwrap_or_default();
    let Some(source) = find_source(&gateway, name) else {
        return unknown_source(&gateway, request.uri()).into_response();
    };
    match *request.method() {
        Method::POST => {}
        Method::GET | Method::HEAD => return methods_error(),
        _ => return pages::only(request.method(), ALLOW),
    }
    let wants_json = accepts_json(request.headers());
    let taken = take(
        &gateway,
        request,
        Shape::One,
        source.topic.clone(),
        Key::None,
        &source.key,
    )
    .await;
    match taken {
        Err(problem) => problem.into_response(),
        Ok((receipt, taken)) => {
            source.counters.committed(taken);
            let mut response = if wants_json {
                receipt_json(&gateway, receipt, taken)
            } else {
                let mut response = Response::new(Body::from(Bytes::from_static(b"OK")));
                response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
                response
            };
            let headers = response.headers_mut();
            headers.insert(WAL, gateway.wal_header.clone());
            headers.insert(SEQ, HeaderValue::from(receipt.first_seq));
            response
        }
    }
}

/// `/v1/topics/{topic}`.
pub(super) async fn topic(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    if request.method() != Method::POST {
        return pages::only(request.method(), ALLOW);
    }
    match produce_to_topic(&gateway, request).await {
        Err(problem) => problem.into_response(),
        Ok(response) => response,
    }
}

async fn produce_to_topic(gateway: &Arc<Gateway>, request: Request) -> Result<Response, Problem> {
    let path = request.uri().path();
    let topic = check_topic(gateway, path.strip_prefix("/v1/topics/").unwrap_or_default())?;
    let key = request.uri().query().map_or(Ok(Key::None), Key::from_query)?;
    let (receipt, taken) = take(gateway, request, Shape::Many, topic.clone(), key, &Key::None).await?;
    gateway.counters.topic(topic.as_str()).committed(taken);
    let mut response = receipt_json(gateway, receipt, taken);
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

/// Takes the records of a request: on disk when it returns `Ok`.
async fn take(
    gateway: &Arc<Gateway>,
    request: Request,
    shape: Shape,
    topic: Topic,
    key: Key,
    key_default: &Key,
) -> Result<(Receipt, Taken), Problem> {
    let (parts, body) = request.into_parts();
    let media = Media::parse(
        parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes),
        shape,
    )?;
    for encoding in parts.headers.get_all(header::CONTENT_ENCODING) {
        ingest::check_content_encoding(encoding.as_bytes())?;
    }
    let (key, headers) = client_headers(&parts.headers, key)?;
    let key = if key == Key::None { key_default.clone() } else { key };
    let body = gateway.bodies.collect(body).await?;
    let envelope = Envelope {
        topic,
        key,
        headers,
        received_ms: (gateway.clock)(),
    };
    let limits = ingest::Limits {
        record_bytes_max: gateway.options.record_bytes_max,
        records_max: gateway.options.records_max,
        request_bytes_max: crate::wal::COMMIT_BYTES_MAX,
    };
    let (batch, taken) = if body.bytes.len() > INLINE_BYTES_MAX {
        let unfinished = || {
            Problem::new(
                Reason::Busy,
                "the gateway could not finish reading this request. Nothing of it was taken; send it again.",
            )
        };
        let turn = Arc::clone(&gateway.encoders).acquire_owned().await;
        let turn = turn.map_err(|_| unfinished())?;
        let bytes = body.bytes.clone();
        let encoding = tokio::task::spawn_blocking(move || {
            let encoded = encode(media, shape, &bytes, envelope, limits);
            // With the thread, not with the request: a client that leaves does not stop the thread.
            drop(turn);
            encoded
        });
        encoding.await.map_err(|_| unfinished())??
    } else {
        encode(media, shape, &body.bytes, envelope, limits)?
    };
    let receipt = gateway.wal.log().append(batch)?.await?;
    Ok((receipt, taken))
}

fn encode(
    media: Media,
    shape: Shape,
    body: &[u8],
    envelope: Envelope,
    limits: ingest::Limits,
) -> Result<(Batch, Taken), IngestError> {
    let mut batch = Batch::new();
    let taken = ingest::read(media, shape, body, envelope, limits, |record| batch.push(record))?;
    Ok((batch, taken))
}

/// The Kafka headers that the client gave, and its key.
#[allow(clippy::type_complexity)]
fn client_headers(headers: &HeaderMap, mut key: Key) -> Result<(Key, Vec<(String, Vec<u8>)>), IngestError> {
    let mut own = Vec::new();
    for (name, value) in headers {
        let name = name.as_str();
        if !name.starts_with(crate::record::HEADER_PREFIX_RESERVED) {
            continue;
        }
        if let Some(name) = name.strip_prefix(HEADER_CLIENT_PREFIX) {
            own.push((ingest::client_header(name)?.to_owned(), value.as_bytes().to_vec()));
        } else if name == HEADER_KEY {
            key = key.or(Key::Given(value.as_bytes().to_vec()))?;
        }
    }
    Ok((key, own))
}

fn find_source<'g>(gateway: &'g Gateway, name: &str) -> Option<&'g SourceState> {
    if let Some(source) = gateway.sources.get(name) {
        return Some(source);
    }
    // A client may escape what needs no escape.
    let decoded = percent_encoding::percent_decode_str(name).decode_utf8().ok()?;
    gateway.sources.get(decoded.as_ref())
}

fn check_topic(gateway: &Gateway, escaped: &str) -> Result<Topic, Problem> {
    let name = percent_encoding::percent_decode_str(escaped)
        .decode_utf8()
        .map_err(|_| Problem::new(Reason::Malformed, "the topic in the path is not UTF-8."))?;
    let topic = Topic::parse(&name).map_err(|error| {
        Problem::new(
            Reason::Malformed,
            format!("{error}. Nothing was taken; correct the path."),
        )
    })?;
    if name.starts_with(TOPIC_PREFIX_RESERVED) {
        return Err(Problem::new(
            Reason::Forbidden,
            format!("topics that begin with {TOPIC_PREFIX_RESERVED} are Kafka's own and cannot be written to."),
        ));
    }
    if !gateway.options.topics.iter().any(|pattern| matches(pattern, &name)) {
        return Err(Problem::new(
            Reason::Forbidden,
            format!("this gateway does not take records for the topic {name} (http.topics). Nothing was taken."),
        ));
    }
    Ok(topic)
}

/// Whether `name` fits `pattern`, in which `*` is any run of characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut rest) = name.strip_prefix(head) else {
        return false;
    };
    let Some((middles, end)) = tail.rsplit_once('*') else {
        return rest.ends_with(tail);
    };
    for middle in middles.split('*') {
        // The first place is as good as any: a later one only leaves less for what follows.
        let Some(at) = rest.find(middle) else {
            return false;
        };
        rest = rest.get(at + middle.len()..).unwrap_or_default();
    }
    rest.ends_with(end)
}

/// Whether the client asks for the receipt as JSON. `*/*` does not: the plain answer is `OK`.
fn accepts_json(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let essence = range.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("application/json")
        })
}

fn receipt_json(gateway: &Gateway, receipt: Receipt, taken: Taken) -> Response {
    let mut text = String::with_capacity(128);
    // Writing to a String cannot fail.
    if write!(
        text,
        r#"{{"wal":"{}","first_seq":{},"last_seq":{},"records":{}}}"#,
        gateway.wal_id, receipt.first_seq, receipt.last_seq, taken.records
    )
    .is_err()
    {
        text.clear();
    }
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// What the stack before answered to GET on a source; scripts compare it.
fn methods_error() -> Response {
    let mut response = (
        StatusCode::METHOD_NOT_ALLOWED,
        [
            (header::ALLOW, HeaderValue::from_static(ALLOW)),
            (header::CONTENT_TYPE, TEXT),
        ],
        "Methods Error",
    )
        .into_response();
    response.extensions_mut().insert(Reason::Method);
    response
}

/// Every other path.
pub(super) async fn unknown_path(State(gateway): State<Arc<Gateway>>, uri: Uri) -> Response {
    unknown_source(&gateway, &uri).into_response()
}

fn unknown_source(gateway: &Gateway, uri: &Uri) -> Problem {
    let mut known: Vec<&str> = gateway.sources.keys().map(String::as_str).collect();
    known.sort_unstable();
    let more = known.len().saturating_sub(SOURCES_NAMED_MAX);
    known.truncate(SOURCES_NAMED_MAX);
    let mut list = known.join(", ");
    if more > 0 {
        list = format!("{list} and {more} more");
    }
    if list.is_empty() {
        list = "none".into();
    }
    let path: String = uri.path().chars().take(100).collect();
    Problem::new(
        Reason::NotFound,
        format!("there is nothing at {path}. Sources are: {list}. Topics are written to at /v1/topics/{{topic}}."),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_people_read_them() {
        for (pattern, name, fits) in [
            ("*", "anything", true),
            ("orders", "orders", true),
            ("orders", "orders2", false),
            ("orders.*", "orders.eu", true),
            ("orders.*", "orders", false),
            ("*.eu", "orders.eu", true),
            ("a*a", "a", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("**", "x", true),
            ("*b*", "abc", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn client_headers_become_kafka_headers_and_key() {
        let mut headers = HeaderMap::new();
        headers.insert("tidegate-header-trace-id", HeaderValue::from_static("7"));
        headers.insert("tidegate-key", HeaderValue::from_bytes(b"k\xff").unwrap());
        headers.insert("user-agent", HeaderValue::from_static("x"));
        let (key, own) = client_headers(&headers, Key::None).unwrap();
        assert_eq!(key, Key::Given(b"k\xff".to_vec()));
        assert_eq!(own, [("trace-id".to_owned(), b"7".to_vec())]);
        assert!(client_headers(&headers, Key::Field("a".into())).is_err());
        headers.insert("tidegate-header-tidegate-seq", HeaderValue::from_static("7"));
        assert!(client_headers(&headers, Key::None).is_err());
    }

    #[test]
    fn receipt_is_json_only_on_demand() {
        let accepts = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(value));
            accepts_json(&headers)
        };
        assert!(accepts("application/json"));
        assert!(accepts("text/html;q=0.5, Application/JSON; q=0.9"));
        assert!(!accepts("*/*"));
        assert!(!accepts("text/plain"));
        assert!(!accepts_json(&HeaderMap::new()));
    }

    proptest! {
        #[test]
        fn pattern_of_a_name_with_holes_matches_it(name in "[a-c]{1,10}", from in 0usize..10, to in 0usize..10) {
            let (from, to) = (from.min(name.len()), to.min(name.len()));
            if from <= to {
                let pattern = format!("{}*{}", &name[..from], &name[to..]);
                prop_assert!(matches(&pattern, &name));
            }
        }

        #[test]
        fn no_pattern_panics(pattern in "[a*é]{0,8}", name in "[aé]{0,8}") {
            prop_assert!(matches("*", &name) >= matches(&pattern, &name));
        }
    }
}
