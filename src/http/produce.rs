//! The way of a record: body -> records -> one batch -> commit -> answer.
//!
//! A request is one batch: all of its records are on disk when it is answered 2xx, or none is in the
//! log. A client that goes away before the commit may find its records stored; it was not told so.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::time::timeout;

use super::error::{Problem, Reason};
use super::idempotency::{self, Content, Turn};
use super::limits::Collected;
use super::{Gateway, SourceState, auth, pages, rest_proxy, trace_context};
use crate::ingest::cloud_events::{self, Attributes};
use crate::ingest::rest_proxy::{Embedded, Sizes};
use crate::ingest::{self, Encoding, Envelope, Headers, IngestError, Key, Media, Shape, Taken};
use crate::land::Demand;
use crate::record::{HEADER_IDEMPOTENCY_KEY, Record, Topic, fits};
use crate::wal::{Batch, Receipt, Remembered};

/// The only method of both paths.
const ALLOW: &str = "POST";
/// Above it a body is parsed on a thread of its own: milliseconds of parsing would hold up every other
/// request of the same thread.
const INLINE_BYTES_MAX: usize = 256 << 10;
/// How many such bodies are parsed at once: each may become a batch of the largest size.
pub(super) const ENCODERS_MAX: usize = 4;
/// How long a request waits for its turn.
const ENCODER_WAIT_MAX: Duration = Duration::from_secs(5);
/// How many sources a 404 names.
const SOURCES_NAMED_MAX: usize = 20;
/// The most records of a request to the REST Proxy's paths: the answer says of each what it was.
const REST_RECORDS_MAX: usize = 10_000;
/// The topics that Kafka keeps for itself.
const TOPIC_PREFIX_RESERVED: &str = "__";

const HEADER_KEY: &str = "tidegate-key";
const HEADER_CLIENT_PREFIX: &str = "tidegate-header-";
const WAL: HeaderName = HeaderName::from_static(crate::record::HEADER_WAL);
const SEQ: HeaderName = HeaderName::from_static(crate::record::HEADER_SEQ);
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const TRUE: HeaderValue = HeaderValue::from_static("true");
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
    if let Err(problem) = auth::may_post(request.extensions(), &source.name) {
        return problem.into_response();
    }
    let wants_json = accepts_json(request.headers());
    let ask = Ask {
        topic: source.topic.clone(),
        key: Key::None,
        key_default: source.key.clone(),
        demand: source.demand.clone(),
        way: Way::Source,
    };
    match take(&gateway, request, ask).await {
        Err(problem) => problem.into_response(),
        Ok(kept) => {
            source.counters.committed(&kept);
            let mut response = if wants_json {
                receipt_json(&gateway, &kept)
            } else {
                let mut response = Response::new(Body::from(Bytes::from_static(b"OK")));
                response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
                response
            };
            identify(&gateway, &kept, response.headers_mut());
            response
        }
    }
}

/// Says which records they are, and whether they are those of an earlier request.
pub(super) fn identify(gateway: &Gateway, kept: &Kept, headers: &mut HeaderMap) {
    headers.insert(WAL, gateway.wal_header.clone());
    headers.insert(SEQ, HeaderValue::from(kept.receipt.first_seq));
    if kept.replayed {
        headers.insert(REPLAYED, TRUE);
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
    let topic = check_topic(gateway, &request, path.strip_prefix("/v1/topics/").unwrap_or_default())?;
    let key = request.uri().query().map_or(Ok(Key::None), Key::from_query)?;
    let ask = Ask {
        topic,
        key,
        key_default: Key::None,
        demand: None,
        way: Way::Topic,
    };
    let kept = take(gateway, request, ask).await?;
    gateway.counters.topic(kept.topic.as_str()).committed(&kept);
    let mut response = receipt_json(gateway, &kept);
    *response.status_mut() = StatusCode::ACCEPTED;
    if kept.replayed {
        response.headers_mut().insert(REPLAYED, TRUE);
    }
    Ok(response)
}

/// Which kind of request it is: what its body may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To a source.
    Source,
    /// To a topic.
    Topic,
    /// To the REST Proxy, v2.
    V2,
    /// To the REST Proxy, v3.
    V3,
}

/// What is asked for, besides what headers and body say.
pub(super) struct Ask {
    pub(super) topic: Topic,
    pub(super) key: Key,
    /// Where the client gives none.
    pub(super) key_default: Key,
    /// What a record must be like.
    pub(super) demand: Option<Arc<Demand>>,
    pub(super) way: Way,
}

/// What was taken: on disk.
pub(super) struct Kept {
    pub(super) topic: Topic,
    pub(super) receipt: Receipt,
    pub(super) taken: Taken,
    /// Of each record of a request to the REST Proxy, v3.
    pub(super) sizes: Vec<Sizes>,
    /// It is the answer of an earlier request: nothing was stored.
    pub(super) replayed: bool,
    received_ms: i64,
}

impl Kept {
    /// When it was received, as RFC 3339 writes it.
    pub(super) fn received_at(&self) -> String {
        jiff::Timestamp::from_millisecond(self.received_ms).map_or_else(|_| String::new(), |time| time.to_string())
    }
}

/// How a body is read.
#[derive(Debug, Clone)]
enum Reader {
    One(Media, Option<Arc<Demand>>),
    Many(Media),
    V2(Embedded),
    V3,
}

/// Takes the records of a request: on disk when it returns `Ok`.
pub(super) async fn take(gateway: &Arc<Gateway>, request: Request, ask: Ask) -> Result<Kept, Problem> {
    let (parts, body) = request.into_parts();
    let idempotency = idempotency::Key::of(&parts, auth::name(&parts.extensions))?;
    let content_type = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let encodings = parts.headers.get_all(header::CONTENT_ENCODING);
    let encoding = Encoding::parse(encodings.iter().map(HeaderValue::as_bytes))?;
    let (key, mut headers) = client_headers(&parts.headers, ask.key)?;
    if matches!(ask.way, Way::V2 | Way::V3) && key != Key::None {
        return Err(Problem::new(
            Reason::Malformed,
            "on this path each record says its key itself, and the header tidegate-key is there. Nothing was taken; leave it out.",
        ));
    }
    let mut key = if key == Key::None { ask.key_default } else { key };
    let reader = match ask.way {
        Way::Source => Reader::One(Media::parse(content_type, Shape::One)?, ask.demand),
        Way::V2 => Reader::V2(Embedded::parse(content_type)?),
        Way::V3 => match Media::parse(content_type, Shape::One)? {
            Media::Json => Reader::V3,
            _ => {
                return Err(Problem::new(
                    Reason::MediaType,
                    "this path takes application/json. Nothing was taken.",
                ));
            }
        },
        Way::Topic => {
            let media = match attributes(&parts.headers, content_type)?.into_headers(key.clone())? {
                None => Media::parse(content_type, Shape::Many)?,
                Some((attributes, its_key)) => {
                    headers.splice(0..0, attributes);
                    key = its_key;
                    Media::Data
                }
            };
            Reader::Many(media)
        }
    };
    if let Some(key) = &idempotency {
        headers.push((HEADER_IDEMPOTENCY_KEY.to_owned(), key.text().as_bytes().to_vec()));
    }
    // Before the body, which may take its time: of two requests at once one is told to come again.
    let turn = match &idempotency {
        Some(key) => Some(key.turn(gateway.wal.log(), (gateway.clock)())?),
        None => None,
    };
    let content = idempotency.as_ref().map(|_| Content::of(&parts.headers));
    // Its share of the memory is held until the commit, for its records; its bytes go as soon as those are made.
    let Collected { bytes, share: _share } = gateway.bodies.collect(body).await?;
    let received_ms = (gateway.clock)();
    let envelope = Envelope {
        topic: ask.topic.clone(),
        key,
        content_type: content_type.map(<[u8]>::to_vec),
        headers,
        received_ms,
    };
    let records_max = match reader {
        Reader::One(..) | Reader::Many(_) => gateway.options.records_max,
        Reader::V2(_) | Reader::V3 => gateway.options.records_max.min(REST_RECORDS_MAX),
    };
    let limits = ingest::Limits {
        record_bytes_max: gateway.options.record_bytes_max,
        records_max,
        request_bytes_max: crate::wal::COMMIT_BYTES_MAX,
    };
    let body_bytes_max = gateway.options.body_bytes_max;
    let again = match &turn {
        Some(Turn::Again(known)) => Some(*known),
        _ => None,
    };
    let work = move |bytes: &[u8]| -> Result<Work, IngestError> {
        let content = content.map(|content| content.with(bytes));
        // Of an answer that is given again only the sizes are not known.
        let is_known = again.is_some_and(|known| Some(known.body) != content || !matches!(reader, Reader::V3));
        let encoded = match encoding {
            _ if is_known => None,
            Encoding::Identity => Some(encode(reader, bytes, envelope, limits)?),
            encoding => {
                let expanded = encoding.expand(bytes, body_bytes_max)?;
                Some(encode(reader, &expanded, envelope, limits)?)
            }
        };
        Ok((content, encoded.unwrap_or_default()))
    };
    let (content, (mut batch, taken, sizes)) = if bytes.len() > INLINE_BYTES_MAX || encoding != Encoding::Identity {
        let unfinished = || {
            Problem::new(
                Reason::Busy,
                "the gateway could not finish reading this request. Nothing of it was taken; send it again.",
            )
        };
        let permit = timeout(ENCODER_WAIT_MAX, Arc::clone(&gateway.encoders).acquire_owned()).await;
        let permit = permit.map_err(|_| {
            Problem::new(
                Reason::Busy,
                "other large or compressed requests take all of the gateway's time. This one was not taken; send it again in \
                 a moment.",
            )
        })?;
        let permit = permit.map_err(|_| unfinished())?;
        let working = tokio::task::spawn_blocking(move || {
            let worked = work(&bytes);
            drop(bytes);
            // With the thread, not with the request: a client that leaves does not stop the thread.
            drop(permit);
            worked
        });
        working.await.map_err(|_| unfinished())??
    } else {
        let worked = work(&bytes)?;
        drop(bytes);
        worked
    };
    match (turn, idempotency, content) {
        (Some(Turn::Again(known)), _, content) => return replayed(ask.topic, known, content, sizes),
        (Some(Turn::First(reservation)), Some(key), Some(content)) => {
            batch.remember(reservation, key.into_record(content), received_ms);
        }
        _ => {}
    }
    let receipt = gateway.wal.log().append(batch)?.await?;
    Ok(Kept {
        topic: ask.topic,
        receipt,
        taken,
        sizes,
        replayed: false,
        received_ms,
    })
}

/// What becomes of a body: what its key stands for, and its records.
type Work = (Option<[u8; 16]>, (Batch, Taken, Vec<Sizes>));

/// The answer of before, if the request is the one of before.
fn replayed(topic: Topic, known: Remembered, content: Option<[u8; 16]>, sizes: Vec<Sizes>) -> Result<Kept, Problem> {
    if content != Some(known.body) {
        return Err(idempotency::mismatch());
    }
    Ok(Kept {
        topic,
        receipt: Receipt {
            first_seq: known.first_seq,
            last_seq: known.last_seq(),
        },
        taken: Taken {
            records: known.records as usize,
            bytes: 0,
        },
        sizes,
        replayed: true,
        received_ms: known.received_ms,
    })
}

fn encode(
    reader: Reader,
    body: &[u8],
    envelope: Envelope,
    limits: ingest::Limits,
) -> Result<(Batch, Taken, Vec<Sizes>), IngestError> {
    let mut batch = Batch::new();
    let mut broken = None;
    let each = |record: &Record| batch.push(record);
    let (taken, sizes) = match reader {
        Reader::One(media, None) => (
            ingest::read(media, Shape::One, body, envelope, limits, each)?,
            Vec::new(),
        ),
        Reader::One(media, Some(demand)) => {
            let each = |record: &Record| {
                broken = demand.broken_by(record.value.as_deref());
                batch.push(record);
            };
            (
                ingest::read(media, Shape::One, body, envelope, limits, each)?,
                Vec::new(),
            )
        }
        Reader::Many(media) => (
            ingest::read(media, Shape::Many, body, envelope, limits, each)?,
            Vec::new(),
        ),
        Reader::V2(embedded) => (ingest::read_v2(embedded, body, envelope, limits, each)?, Vec::new()),
        Reader::V3 => ingest::read_v3(body, envelope, limits, each)?,
    };
    if let Some(reason) = broken {
        return Err(IngestError::Invalid(format!(
            "the record breaks the rule of this source: {reason}. It was not taken; correct it and send it again."
        )));
    }
    Ok((batch, taken, sizes))
}

/// The attributes of a CloudEvent in binary mode; none where the body is a whole event, or more of them.
fn attributes(headers: &HeaderMap, content_type: Option<&[u8]>) -> Result<Attributes, IngestError> {
    let mut attributes = Attributes::default();
    let prefix = b"application/cloudevents";
    let is_structured = (content_type.and_then(|given| given.get(..prefix.len())))
        .is_some_and(|given| given.eq_ignore_ascii_case(prefix));
    if is_structured {
        return Ok(attributes);
    }
    for (name, value) in headers {
        if let Some(name) = name.as_str().strip_prefix(cloud_events::HEADER_PREFIX) {
            attributes.push(name, value.as_bytes())?;
        }
    }
    Ok(attributes)
}

/// The Kafka headers that the client gave, and its key.
fn client_headers(headers: &HeaderMap, mut key: Key) -> Result<(Key, Headers), IngestError> {
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
    // A header that the client names itself is what it wants to be read.
    let trace = trace_context::of(headers).into_iter();
    let trace: Headers = trace
        .filter(|(name, _)| own.iter().all(|(named, _)| named != name))
        .collect();
    own.extend(trace);
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

pub(super) fn check_topic(gateway: &Gateway, request: &Request, escaped: &str) -> Result<Topic, Problem> {
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
    if !gateway.options.topics.iter().any(|pattern| fits(pattern, &name)) {
        return Err(Problem::new(
            Reason::Forbidden,
            format!("this gateway does not take records for the topic {name} (http.topics). Nothing was taken."),
        ));
    }
    auth::may_write(request.extensions(), topic.as_str())?;
    Ok(topic)
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

fn receipt_json(gateway: &Gateway, kept: &Kept) -> Response {
    let mut text = String::with_capacity(128);
    // Writing to a String cannot fail.
    if write!(
        text,
        r#"{{"wal":"{}","first_seq":{},"last_seq":{},"records":{}}}"#,
        gateway.wal_id, kept.receipt.first_seq, kept.receipt.last_seq, kept.taken.records
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
    rest_proxy::refused(unknown_source(&gateway, &uri), uri.path())
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
    use super::*;

    #[test]
    fn client_headers_become_kafka_headers_and_key() {
        let mut headers = HeaderMap::new();
        headers.insert("tidegate-header-trace-id", HeaderValue::from_static("7"));
        headers.insert("tidegate-key", HeaderValue::from_bytes(b"k\xff").unwrap());
        headers.insert("user-agent", HeaderValue::from_static("x"));
        let (key, own) = client_headers(&headers, Key::None).unwrap();
        assert_eq!(key, Key::Given(b"k\xff".to_vec()));
        assert_eq!(own, [("trace-id".to_owned(), b"7".to_vec())]);
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        headers.insert("traceparent", HeaderValue::from_static(parent));
        let (_, own) = client_headers(&headers, Key::None).unwrap();
        assert_eq!(own[1], ("traceparent".to_owned(), parent.as_bytes().to_vec()));
        headers.insert("tidegate-header-traceparent", HeaderValue::from_static("mine"));
        let (_, own) = client_headers(&headers, Key::None).unwrap();
        assert!(own.contains(&("traceparent".to_owned(), b"mine".to_vec())) && own.len() == 2);
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
}
