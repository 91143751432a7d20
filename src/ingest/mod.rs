//! Bytes from a client -> records. Pure: the same input gives the same records or the same error.
//!
//! Constraints: no input panics, every loop is bounded by the body's length, and nothing is dropped in
//! silence: what cannot be taken is an [`IngestError`] that says where and what to do. A value goes out
//! byte for byte as it came; only a form is rewritten (as a JSON object of strings).
//!
//! Records are handed out one at a time through a callback, from one buffer that is used again, so that
//! a batch costs its encoding and nothing else. The caller drops what it got when an error follows: a
//! request is taken whole or not at all.
//!
//! Deliberately does not know: HTTP, the log, the clock (`received_ms` is given), configuration.

pub mod cloud_events;
mod encoding;
mod form;
mod json;
pub mod rest_proxy;

pub use encoding::Encoding;
pub(crate) use form::FIELDS_MAX as FORM_FIELDS_MAX;
pub(crate) use json::DEPTH_MAX as JSON_DEPTH_MAX;

use crate::record::{HEADER_IDEMPOTENCY_KEY, HEADER_PREFIX_RESERVED, Record, Topic};

/// Why a body gives no records. Every text names the place (counted from 1) and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IngestError {
    /// The bytes are not what the media type says, or the parameters contradict each other.
    #[error("{0}")]
    Malformed(String),
    /// One record is larger than `record_bytes_max`.
    #[error(
        "record {record} of this request has {bytes} bytes with its key and headers, and one record may have {bytes_max} \
         (http.record_bytes_max). None of the request was taken; make that record smaller or split it."
    )]
    RecordTooLarge {
        /// Which record of the request, counted from 1.
        record: usize,
        /// Its payload bytes.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// More records than one request may have.
    #[error(
        "the request has more than {records_max} records (http.records_max). None of it was taken; send it in parts."
    )]
    TooManyRecords {
        /// The limit.
        records_max: usize,
    },
    /// All records together are more than one commit takes.
    #[error(
        "the records of this request have more than {bytes_max} bytes, counting topic, key and headers for each. None of \
         it was taken; send it in parts, or with fewer headers."
    )]
    RequestTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// A media type that this path does not take.
    #[error("the media type {given} is not taken here; taken are: {taken}. Set Content-Type to what the body is.")]
    MediaType {
        /// What the request said, shortened; `(none)` without a Content-Type.
        given: String,
        /// What can be sent.
        taken: &'static str,
    },
    /// A body that is compressed in another way.
    #[error(
        "bodies with Content-Encoding {given} are not taken; taken is one of gzip, deflate and zstd, or the body as it is \
         (identity)."
    )]
    ContentEncoding {
        /// What the request said, shortened.
        given: String,
    },
    /// A compressed body is larger than a body may be.
    #[error(
        "the body has more than {bytes_max} bytes once it is expanded, the most it may have (http.body_bytes_max). Nothing of \
         it was taken; send it in parts."
    )]
    ExpandedTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// It can be read, and asks for what cannot be done.
    #[error("{0}")]
    Invalid(String),
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// `application/x-www-form-urlencoded`: one record.
    Form,
    /// `application/json`: one object, or an array of records.
    Json,
    /// `application/x-ndjson`: one record per line.
    Ndjson,
    /// `text/*` or `application/octet-stream`: one record, the body as it is.
    Bytes,
    /// The data of a CloudEvent whose attributes are headers: one record, the body as it is, null where it is empty.
    Data,
    /// `application/cloudevents+json`: one record.
    Event,
    /// `application/cloudevents-batch+json`: an array of them.
    Events,
}

/// The types of values that are given one here.
const JSON: &[u8] = b"application/json";
const BYTES: &[u8] = b"application/octet-stream";
const TEXT: &[u8] = b"text/plain; charset=utf-8";
const EVENT: &[u8] = b"application/cloudevents+json; charset=UTF-8";

/// How many records a path takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A source: one form or one JSON object.
    One,
    /// A topic: anything.
    Many,
}

impl Shape {
    /// The media types taken, for people.
    const fn taken(self) -> &'static str {
        match self {
            Self::One => "application/x-www-form-urlencoded, application/json (one object)",
            Self::Many => {
                "application/json (an object or an array), application/x-ndjson, application/cloudevents+json, \
                 application/cloudevents-batch+json, application/x-www-form-urlencoded, text/*, application/octet-stream"
            }
        }
    }
}

impl Media {
    /// What `content_type` says the body is, if a path of this shape takes that.
    ///
    /// # Errors
    /// [`IngestError::MediaType`], also for a charset that is not UTF-8.
    pub fn parse(content_type: Option<&[u8]>, shape: Shape) -> Result<Self, IngestError> {
        let refuse = |given: String| IngestError::MediaType {
            given,
            taken: shape.taken(),
        };
        let Some(given) = content_type else {
            return Err(refuse("(none)".into()));
        };
        let text = std::str::from_utf8(given).map_err(|_| refuse(shorten(given)))?;
        let mut parts = text.split(';');
        let essence = parts.next().unwrap_or_default().trim();
        let is_text = essence.get(..5).is_some_and(|kind| kind.eq_ignore_ascii_case("text/"));
        let media = if is_text && essence.len() > 5 || essence.eq_ignore_ascii_case("application/octet-stream") {
            Self::Bytes
        } else if essence.eq_ignore_ascii_case("application/json") {
            Self::Json
        } else if essence.eq_ignore_ascii_case("application/cloudevents+json") {
            Self::Event
        } else if essence.eq_ignore_ascii_case("application/cloudevents-batch+json") {
            Self::Events
        } else if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            Self::Form
        } else if ["application/x-ndjson", "application/ndjson", "application/jsonl"]
            .iter()
            .any(|name| essence.eq_ignore_ascii_case(name))
        {
            Self::Ndjson
        } else {
            return Err(refuse(shorten(given)));
        };
        for parameter in parts {
            let Some((name, value)) = parameter.split_once('=') else {
                continue;
            };
            let value = value.trim().trim_matches('"');
            let utf8 = ["utf-8", "utf8", "us-ascii"]
                .iter()
                .any(|charset| value.eq_ignore_ascii_case(charset));
            // Bytes go out as they came, and say of themselves what they are.
            if name.trim().eq_ignore_ascii_case("charset") && !utf8 && media != Self::Bytes {
                return Err(refuse(shorten(given)));
            }
        }
        match (media, shape) {
            (_, Shape::Many) | (Self::Form | Self::Json, Shape::One) => Ok(media),
            (_, Shape::One) => Err(refuse(shorten(given))),
        }
    }
}

/// Where the Kafka key comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Key {
    /// No key.
    #[default]
    None,
    /// The same key for every record; may be empty, which is not the same as none.
    Given(Vec<u8>),
    /// This field of each record: its string, or the JSON text of a number or a boolean. A record in
    /// which it is missing or null has no key.
    Field(String),
}

impl Key {
    /// The key rule that a query (without its `?`) asks for.
    ///
    /// # Errors
    /// [`IngestError::Malformed`] for an unknown or repeated parameter, for `key` together with
    /// `key_field`, and for a bad percent escape.
    pub fn from_query(query: &str) -> Result<Self, IngestError> {
        let mut found = Self::None;
        for (name, value) in form::query_pairs(query)? {
            let key = match name.as_str() {
                "key" => Self::Given(value),
                "key_field" => Self::Field(String::from_utf8(value).map_err(|_| {
                    IngestError::Malformed("the parameter key_field is not UTF-8; give the name of a field.".into())
                })?),
                _ => {
                    return Err(IngestError::Malformed(format!(
                        "the parameter {:?} is unknown; known are key and key_field.",
                        shorten(name.as_bytes())
                    )));
                }
            };
            found = found.or(key)?;
        }
        Ok(found)
    }

    /// The one of both that is set.
    ///
    /// # Errors
    /// [`IngestError::Malformed`] when both are: a record has one key.
    pub fn or(self, other: Self) -> Result<Self, IngestError> {
        match (self, other) {
            (Self::None, key) | (key, Self::None) => Ok(key),
            _ => Err(IngestError::Malformed(
                "the request says more than once what the key is; give one of ?key=, ?key_field= and the header \
                 tidegate-key, once."
                    .into(),
            )),
        }
    }
}

/// The Kafka header that the HTTP header `tidegate-header-{name}` stands for.
///
/// # Errors
/// [`IngestError::Malformed`] for an empty name and for one that tidegate keeps for itself.
pub fn client_header(name: &str) -> Result<&str, IngestError> {
    if name.is_empty() {
        return Err(IngestError::Malformed(
            "the header tidegate-header- has no name after it; write tidegate-header-NAME: value.".into(),
        ));
    }
    if name.starts_with(HEADER_PREFIX_RESERVED) {
        return Err(IngestError::Malformed(format!(
            "the Kafka header {:?} cannot be set: names that begin with {HEADER_PREFIX_RESERVED} say which record it \
             is. Choose another name.",
            shorten(name.as_bytes())
        )));
    }
    if name.eq_ignore_ascii_case(HEADER_IDEMPOTENCY_KEY) {
        return Err(IngestError::Malformed(format!(
            "the Kafka header {HEADER_IDEMPOTENCY_KEY:?} cannot be set: it says which Idempotency-Key the request had. Send \
             the header Idempotency-Key, or choose another name."
        )));
    }
    Ok(name)
}

/// Kafka headers: name and value.
pub type Headers = Vec<(String, Vec<u8>)>;

/// What all records of a request have in common.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// Where they go.
    pub topic: Topic,
    /// Where the key of each comes from.
    pub key: Key,
    /// What the body is, in the client's words: the type of the value where that is the body as it is.
    pub content_type: Option<Vec<u8>>,
    /// The client's own Kafka headers, in the order sent. `content-type` is put before them.
    pub headers: Headers,
    /// When the gateway received the request, milliseconds since the Unix epoch.
    pub received_ms: i64,
}

/// The limits of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes of one record, with topic, key and headers.
    pub record_bytes_max: usize,
    /// Records of one request.
    pub records_max: usize,
    /// Payload bytes of all records of one request. A few bytes of body can be a record with all the
    /// request's headers, so the body's own limit is none for this.
    pub request_bytes_max: usize,
}

/// What a request gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// Records, at least 1.
    pub records: usize,
    /// Payload bytes of all of them.
    pub bytes: u64,
}

/// Reads `body` and gives each record to `each`, in order. The record lives for the call only.
///
/// # Errors
/// [`IngestError`]; what `each` got before is then to be dropped.
pub fn read(
    media: Media,
    shape: Shape,
    body: &[u8],
    envelope: Envelope,
    limits: Limits,
    each: impl FnMut(&Record),
) -> Result<Taken, IngestError> {
    let (mut out, key_field) = Out::new(envelope, limits, each);
    let key_field = key_field.as_deref();
    match media {
        Media::Form => form::read(body, key_field, &mut out)?,
        Media::Json => json::read(body, shape, key_field, &mut out)?,
        Media::Ndjson => json::read_lines(body, key_field, &mut out)?,
        Media::Event | Media::Events => json::read_events(body, media, key_field, &mut out)?,
        Media::Bytes | Media::Data => read_bytes(body, media, key_field, &mut out)?,
    }
    Ok(out.taken)
}

/// As [`read`], of a request to the REST Proxy, v2.
///
/// # Errors
/// As [`read`].
pub fn read_v2(
    embedded: rest_proxy::Embedded,
    body: &[u8],
    envelope: Envelope,
    limits: Limits,
    each: impl FnMut(&Record),
) -> Result<Taken, IngestError> {
    let (mut out, _) = Out::new(envelope, limits, each);
    rest_proxy::read_v2(body, embedded, &mut out)?;
    Ok(out.taken)
}

/// As [`read`], of a request to the REST Proxy, v3; also gives the key and the value of each record.
///
/// # Errors
/// As [`read`].
pub fn read_v3(
    body: &[u8],
    envelope: Envelope,
    limits: Limits,
    each: impl FnMut(&Record),
) -> Result<(Taken, Vec<rest_proxy::Sizes>), IngestError> {
    let (mut out, _) = Out::new(envelope, limits, each);
    let mut sizes = Vec::new();
    rest_proxy::read_v3(body, &mut out, &mut sizes)?;
    Ok((out.taken, sizes))
}

/// One record: the body as it is.
fn read_bytes<F: FnMut(&Record)>(
    body: &[u8],
    media: Media,
    key_field: Option<&str>,
    out: &mut Out<F>,
) -> Result<(), IngestError> {
    if key_field.is_some() {
        return Err(IngestError::Malformed(
            "key_field takes the key from a field of the body, and this body has none. Give the key with ?key= or the header \
             tidegate-key."
                .into(),
        ));
    }
    match (body, media) {
        ([], Media::Data) => out.put_or_null(None, FieldKey::Envelope),
        ([], _) => Err(json::nothing("the body is empty")),
        (body, _) => out.put(body, FieldKey::Envelope),
    }
}

/// The one record that all of a request go through, and what was taken so far.
struct Out<F> {
    record: Record,
    /// The first of its headers that are the same for all.
    headers_common: usize,
    limits: Limits,
    taken: Taken,
    each: F,
}

impl<F: FnMut(&Record)> Out<F> {
    /// Also gives the field that is the key, if one is.
    fn new(envelope: Envelope, limits: Limits, each: F) -> (Self, Option<String>) {
        let Envelope {
            topic,
            key,
            content_type,
            headers: own,
            received_ms,
        } = envelope;
        let mut headers = Vec::with_capacity(1 + own.len());
        headers.extend(content_type.map(|content_type| (CONTENT_TYPE.to_owned(), content_type)));
        headers.extend(own);
        let (key, key_field) = match key {
            Key::None => (None, None),
            Key::Given(bytes) => (Some(bytes), None),
            Key::Field(name) => (None, Some(name)),
        };
        let out = Self {
            headers_common: headers.len(),
            record: Record {
                topic: topic.as_str().to_owned(),
                key,
                value: None,
                headers,
                received_ms,
                origin: None,
                idempotency: None,
            },
            limits,
            taken: Taken::default(),
            each,
        };
        (out, key_field)
    }

    /// What the values are from here on, where that is not the body's type: a form's value is the JSON object made of
    /// it, and a line of NDJSON is one JSON text. Headers of the record before are gone.
    fn set_content_type(&mut self, content_type: &[u8]) {
        self.record.headers.truncate(self.headers_common);
        match self.record.headers.first_mut() {
            Some((name, value)) if name == CONTENT_TYPE => {
                value.clear();
                value.extend_from_slice(content_type);
            }
            _ => {
                let header = (CONTENT_TYPE.to_owned(), content_type.to_vec());
                self.record.headers.insert(0, header);
                self.headers_common += 1;
            }
        }
    }

    /// A header of the next record alone.
    fn push_header(&mut self, name: &str, value: &[u8]) -> Result<(), IngestError> {
        if self.record.headers.len() - self.headers_common >= HEADERS_MAX {
            return Err(IngestError::Malformed(format!(
                "record {} of this request has more than {HEADERS_MAX} headers of its own, the most a record may have. None of \
                 the request was taken.",
                self.next()
            )));
        }
        self.record.headers.push((name.to_owned(), value.to_vec()));
        Ok(())
    }

    /// Which record the next one is, counted from 1.
    fn next(&self) -> usize {
        self.taken.records.saturating_add(1)
    }

    /// Gives one record out. `key` is the field's value where the key is a field.
    fn put(&mut self, value: &[u8], key: FieldKey) -> Result<(), IngestError> {
        self.put_or_null(Some(value), key)
    }

    /// [`put`](Self::put), also of a record without a value.
    fn put_or_null(&mut self, value: Option<&[u8]>, key: FieldKey) -> Result<(), IngestError> {
        if self.taken.records >= self.limits.records_max {
            return Err(IngestError::TooManyRecords {
                records_max: self.limits.records_max,
            });
        }
        if let FieldKey::Is(key) = key {
            self.record.key = key;
        }
        let buffer = self.record.value.get_or_insert_default();
        buffer.clear();
        // Checked before the copy, so that a refused record costs nothing.
        let bytes = (self.record.payload_bytes()).saturating_add(value.map_or(0, <[u8]>::len));
        if bytes > self.limits.record_bytes_max {
            return Err(IngestError::RecordTooLarge {
                record: self.next(),
                bytes,
                bytes_max: self.limits.record_bytes_max,
            });
        }
        if self.taken.bytes + bytes as u64 > self.limits.request_bytes_max as u64 {
            return Err(IngestError::RequestTooLarge {
                bytes_max: self.limits.request_bytes_max,
            });
        }
        match value {
            Some(value) => self.record.value.get_or_insert_default().extend_from_slice(value),
            None => self.record.value = None,
        }
        (self.each)(&self.record);
        self.taken.records += 1;
        self.taken.bytes += bytes as u64;
        Ok(())
    }
}

/// A record's key, where it is one of its fields.
enum FieldKey {
    /// It is not: the key is the envelope's.
    Envelope,
    /// It is, and has this value in this record.
    Is(Option<Vec<u8>>),
}

/// The most headers of a record that are not the request's own: a header costs memory beyond its bytes, here and in
/// Kafka's client.
pub(crate) const HEADERS_MAX: usize = 100;

const CONTENT_TYPE: &str = "content-type";

/// At most 100 characters of what a client sent, fit to be shown.
fn shorten(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut short: String = text.chars().take(100).flat_map(char::escape_debug).collect();
    if text.chars().nth(100).is_some() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
pub(crate) mod tests;
