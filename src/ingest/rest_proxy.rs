//! The bodies of Confluent's REST Proxy -> records
//! (docs.confluent.io/platform/current/kafka-rest/api.html; v2 and v3).
//!
//! ```text
//! v2  application/vnd.kafka.json.v2+json    {"records": [{"key": JSON, "value": JSON}, ...]}
//!     application/vnd.kafka.binary.v2+json  the same with base64 strings
//! v3  application/json                      {"key": {"type": T, "data": D}, "value": {...},
//!                                            "headers": [{"name": N, "value": base64}]} ...
//!                                           T: "BINARY" (base64), "JSON" or "STRING"; one after another
//! ```
//!
//! JSON keys and values go out byte for byte as they stand in the body, strings with their quotes, as the original's
//! JSON serializer writes them. What the log cannot keep (a partition, a timestamp, a schema) is refused, not dropped.
//!
//! Deliberately does not know: schemas.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{FieldKey, IngestError, Out, client_header, json, shorten};
use crate::record::Record;

/// What the keys and values of a v2 request are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Embedded {
    /// JSON texts.
    Json,
    /// base64 strings.
    Binary,
}

impl Embedded {
    /// The one that a media type stands for, if any.
    ///
    /// # Errors
    /// [`IngestError::MediaType`].
    pub fn parse(content_type: Option<&[u8]>) -> Result<Self, IngestError> {
        let given = content_type.unwrap_or_default();
        let essence = given
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default()
            .trim_ascii();
        if essence.eq_ignore_ascii_case(b"application/vnd.kafka.json.v2+json") {
            return Ok(Self::Json);
        }
        if essence.eq_ignore_ascii_case(b"application/vnd.kafka.binary.v2+json") {
            return Ok(Self::Binary);
        }
        Err(IngestError::MediaType {
            given: content_type.map_or("(none)".into(), shorten),
            taken: "application/vnd.kafka.json.v2+json, application/vnd.kafka.binary.v2+json",
        })
    }

    fn decode<'a>(self, raw: &'a RawValue, name: &str, place: &json::Place) -> Result<Cow<'a, [u8]>, IngestError> {
        match self {
            Self::Json => json_text(raw, place),
            Self::Binary => base64(raw, name, place),
        }
    }

    const fn content_type(self) -> &'static [u8] {
        match self {
            Self::Json => super::JSON,
            Self::Binary => super::BYTES,
        }
    }
}

/// A key or a value of a v3 request: its type, and how many bytes it has.
pub type Size = Option<(Kind, u32)>;

/// What a key or a value of v3 is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// base64.
    Binary,
    /// A JSON text.
    Json,
    /// A string.
    String,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Binary, Self::Json, Self::String];

    /// Its name in requests and answers, and the media type of such a value.
    #[must_use]
    pub const fn facts(self) -> (&'static str, &'static [u8]) {
        match self {
            Self::Binary => ("BINARY", super::BYTES),
            Self::Json => ("JSON", super::JSON),
            Self::String => ("STRING", super::TEXT),
        }
    }
}

/// The key and the value of a v3 record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// `None`: there was none.
    pub key: Size,
    /// `None`: there was none.
    pub value: Size,
}

/// Reads the records of a v2 request.
pub(super) fn read_v2<F: FnMut(&Record)>(body: &[u8], embedded: Embedded, out: &mut Out<F>) -> Result<(), IngestError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Request<'a> {
        #[serde(borrow)]
        records: Option<&'a RawValue>,
        #[serde(borrow)]
        key_schema: Option<&'a RawValue>,
        #[serde(borrow)]
        key_schema_id: Option<&'a RawValue>,
        #[serde(borrow)]
        value_schema: Option<&'a RawValue>,
        #[serde(borrow)]
        value_schema_id: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Entry<'a> {
        #[serde(borrow, default)]
        key: Option<&'a RawValue>,
        #[serde(borrow, default)]
        value: Option<&'a RawValue>,
        partition: Option<i64>,
    }
    let text = json::utf8(body, &json::Place::Body)?;
    let request: Request<'_> = parse(text, &json::Place::Body)?;
    let schemas = [
        request.key_schema,
        request.key_schema_id,
        request.value_schema,
        request.value_schema_id,
    ];
    refuse(&json::Place::Body, "schema", schemas.iter().any(Option::is_some))?;
    out.set_content_type(embedded.content_type());
    let records = request.records.map_or("", RawValue::get);
    if records.starts_with('[') {
        json::each_element(records, |text| {
            let place = json::Place::Element(out.next());
            let entry: Entry<'_> = parse(text, &place)?;
            refuse(&place, "partition", entry.partition.is_some())?;
            check_something(&place, entry.key.is_some() || entry.value.is_some())?;
            let key = entry.key.map(|raw| embedded.decode(raw, "key", &place)).transpose()?;
            let value = entry
                .value
                .map(|raw| embedded.decode(raw, "value", &place))
                .transpose()?;
            out.put_or_null(value.as_deref(), FieldKey::Is(key.map(Cow::into_owned)))
        })?;
    }
    if out.taken.records == 0 {
        return Err(IngestError::Invalid(
            "the body has no records. Send {\"records\": [{\"value\": ...}]} with at least one.".into(),
        ));
    }
    Ok(())
}

/// Reads the records of a v3 request; gives `sizes` the key and the value of each.
pub(super) fn read_v3<F: FnMut(&Record)>(
    body: &[u8],
    out: &mut Out<F>,
    sizes: &mut Vec<Sizes>,
) -> Result<(), IngestError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Entry<'a> {
        partition_id: Option<i64>,
        timestamp: Option<&'a RawValue>,
        #[serde(borrow, default)]
        headers: Option<&'a RawValue>,
        #[serde(borrow, default)]
        key: Option<&'a RawValue>,
        #[serde(borrow, default)]
        value: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Header<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
        #[serde(borrow, default)]
        value: Option<&'a RawValue>,
    }
    let text = json::utf8(body, &json::Place::Body)?;
    for entry in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        let place = json::Place::Record(out.next());
        let raw = entry.map_err(|error| json::not_json(&error, &place))?;
        let entry: Entry<'_> = parse(raw.get(), &place)?;
        refuse(&place, "partition_id", entry.partition_id.is_some())?;
        refuse(&place, "timestamp", entry.timestamp.is_some())?;
        check_something(&place, entry.key.is_some() || entry.value.is_some())?;
        let key = entry.key.map(|key| Data::decode(key, "key", &place)).transpose()?;
        let value = entry
            .value
            .map(|value| Data::decode(value, "value", &place))
            .transpose()?;
        out.set_content_type(value.as_ref().map_or(super::BYTES, |value| value.kind.facts().1));
        if let Some(headers) = entry.headers {
            json::each_element(headers.get(), |text| {
                let header: Header<'_> = parse(text, &format_args!("a header of {place}"))?;
                let value = header
                    .value
                    .map(|raw| base64(raw, "value of a header", &place))
                    .transpose()?;
                out.push_header(client_header(&header.name)?, &value.unwrap_or_default())
            })?;
        }
        let size = |data: &Option<Decoded<'_>>| -> Size {
            let data = data.as_ref()?;
            let bytes = data.bytes.as_ref().map_or(0, |bytes| bytes.len());
            Some((data.kind, u32::try_from(bytes).unwrap_or(u32::MAX)))
        };
        sizes.push(Sizes {
            key: size(&key),
            value: size(&value),
        });
        let key = key.and_then(|key| key.bytes).map(Cow::into_owned);
        let value = value.and_then(|value| value.bytes);
        out.put_or_null(value.as_deref(), FieldKey::Is(key))?;
    }
    if out.taken.records == 0 {
        return Err(IngestError::Malformed(
            "the body is empty: there is no record in it. Send at least one.".into(),
        ));
    }
    Ok(())
}

/// A key or a value of v3.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data<'a> {
    #[serde(borrow, rename = "type", default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

struct Decoded<'a> {
    kind: Kind,
    /// `None`: null.
    bytes: Option<Cow<'a, [u8]>>,
}

impl<'a> Data<'a> {
    fn decode(raw: &'a RawValue, name: &str, place: &json::Place) -> Result<Decoded<'a>, IngestError> {
        let data: Self = parse(raw.get(), &format_args!("the {name} of {place}"))?;
        let given = data.kind.as_deref().unwrap_or_default();
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.facts().0 == given) else {
            return Err(IngestError::Malformed(format!(
                "the {name} of {place} has the type {:?}; taken are BINARY, JSON and STRING (no schemas). None of the \
                 request was taken.",
                shorten(given.as_bytes())
            )));
        };
        let bytes = match (data.data, kind) {
            (None, _) => None,
            (Some(raw), Kind::Json) => Some(json_text(raw, place)?),
            (Some(raw), Kind::String) => Some(Cow::Owned(string(raw, name, place)?.into_owned().into_bytes())),
            (Some(raw), Kind::Binary) => Some(base64(raw, name, place)?),
        };
        Ok(Decoded { kind, bytes })
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str, place: &dyn std::fmt::Display) -> Result<T, IngestError> {
    json::object(text).map_err(|error| {
        IngestError::Malformed(format!(
            "{place} is not what this path takes: {error}. None of the request was taken."
        ))
    })
}

fn refuse(place: &json::Place, what: &str, is_there: bool) -> Result<(), IngestError> {
    if !is_there {
        return Ok(());
    }
    Err(IngestError::Invalid(format!(
        "{place} has a {what}, which this gateway cannot keep: partitions follow from keys, timestamps say when a record was \
         received, and values are not looked at. None of the request was taken; leave it out."
    )))
}

/// A record with a key alone is a tombstone; one with neither is a mistake.
fn check_something(place: &json::Place, has_something: bool) -> Result<(), IngestError> {
    if has_something {
        return Ok(());
    }
    Err(IngestError::Invalid(format!(
        "{place} has neither a key nor a value. None of the request was taken."
    )))
}

fn json_text<'a>(raw: &'a RawValue, place: &json::Place) -> Result<Cow<'a, [u8]>, IngestError> {
    json::check_depth(raw.get(), place)?;
    Ok(Cow::Borrowed(raw.get().as_bytes()))
}

fn string<'a>(raw: &'a RawValue, name: &str, place: &json::Place) -> Result<Cow<'a, str>, IngestError> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    let text: Result<Text<'_>, _> = serde_json::from_str(raw.get());
    text.map(|Text(text)| text).map_err(|_| {
        IngestError::Malformed(format!(
            "the {name} of {place} is not a string. None of the request was taken."
        ))
    })
}

fn base64<'a>(raw: &'a RawValue, name: &str, place: &json::Place) -> Result<Cow<'a, [u8]>, IngestError> {
    let text = string(raw, name, place)?;
    let bytes = BASE64.decode(text.as_bytes()).map_err(|error| {
        IngestError::Malformed(format!(
            "the {name} of {place} is not base64: {error}. None of the request was taken."
        ))
    })?;
    Ok(Cow::Owned(bytes))
}
