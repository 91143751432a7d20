//! JSON -> records, byte for byte.
//!
//! One object is one record and its value is the whole body as sent; an array is one record per element,
//! NDJSON one per line that is not blank (without the white space around it). Texts are checked to be
//! JSON and never rewritten: numbers keep their digits, repeated names stay. Nesting is limited, because
//! whoever reads the record later parses it.
//!
//! Deliberately does not know: schemas, and which fields a source has.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{FieldKey, IngestError, Media, Out, Shape, cloud_events};
use crate::record::Record;

/// How deep objects and arrays may be nested: what serde_json, and so the lander, reads back.
pub(crate) const DEPTH_MAX: usize = 127;

/// Reads a JSON body: an object, or (of shape `Many`) an array.
pub(super) fn read<F: FnMut(&Record)>(
    body: &[u8],
    shape: Shape,
    key_field: Option<&str>,
    out: &mut Out<F>,
) -> Result<(), IngestError> {
    let text = utf8(body, &Place::Body)?;
    out.set_content_type(super::JSON);
    match (text.trim_ascii_start().as_bytes().first(), shape) {
        (Some(b'{'), _) => put(text, &Place::Body, key_field, out),
        (Some(b'['), Shape::Many) => {
            each_element(text, |text| {
                let place = Place::Element(out.next());
                check_depth(text, &place)?;
                put_checked(text, &place, key_field, out)
            })?;
            if out.taken.records == 0 {
                return Err(nothing("the array is empty"));
            }
            Ok(())
        }
        (Some(b'['), Shape::One) => Err(IngestError::Malformed(
            "a source takes one JSON object per request and this is an array. Send the elements one by one, or the \
             array to /v1/topics/{topic}."
                .into(),
        )),
        (None, _) => Err(nothing("the body is empty")),
        (Some(_), _) => {
            // A text that is no JSON at all gets the parser's own words, with line and column.
            check(text, &Place::Body)?;
            Err(IngestError::Malformed(
                "the body is JSON but neither an object nor an array; put the value into an object.".into(),
            ))
        }
    }
}

/// Reads a CloudEvent in the JSON format, or an array of them.
pub(super) fn read_events<F: FnMut(&Record)>(
    body: &[u8],
    media: Media,
    key_field: Option<&str>,
    out: &mut Out<F>,
) -> Result<(), IngestError> {
    let text = utf8(body, &Place::Body)?;
    out.set_content_type(super::EVENT);
    if media == Media::Event {
        check(text, &Place::Body)?;
        cloud_events::check(text, &Place::Body)?;
        return put_checked(text, &Place::Body, key_field, out);
    }
    each_element(text, |text| {
        let place = Place::Element(out.next());
        check_depth(text, &place)?;
        cloud_events::check(text, &place)?;
        put_checked(text, &place, key_field, out)
    })?;
    if out.taken.records == 0 {
        return Err(nothing("the batch is empty"));
    }
    Ok(())
}

/// Reads NDJSON: a JSON text per line.
pub(super) fn read_lines<F: FnMut(&Record)>(
    body: &[u8],
    key_field: Option<&str>,
    out: &mut Out<F>,
) -> Result<(), IngestError> {
    out.set_content_type(super::JSON);
    let mut from = 0;
    for (index, end) in memchr::memchr_iter(b'\n', body).chain([body.len()]).enumerate() {
        let line = body.get(from..end).unwrap_or_default().trim_ascii();
        from = end + 1;
        if line.is_empty() {
            continue;
        }
        let place = Place::Line(index + 1);
        let text = utf8(line, &place)?;
        put(text, &place, key_field, out)?;
    }
    if out.taken.records == 0 {
        return Err(nothing("every line is empty"));
    }
    Ok(())
}

/// Where a JSON text stands in the body, for messages.
pub(super) enum Place {
    Body,
    Line(usize),
    Element(usize),
    Record(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body => f.write_str("the body"),
            Self::Line(line) => write!(f, "line {line} of the NDJSON body"),
            Self::Element(element) => write!(f, "element {element} of the array"),
            Self::Record(record) => write!(f, "record {record} of the body"),
        }
    }
}

pub(super) fn utf8<'a>(bytes: &'a [u8], place: &Place) -> Result<&'a str, IngestError> {
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        return Err(IngestError::Malformed(format!(
            "{place} begins with a byte order mark, which JSON does not have; send it without its first three bytes."
        )));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        IngestError::Malformed(format!(
            "{place} is not UTF-8: byte {} of it cannot be there. JSON is sent as UTF-8.",
            error.valid_up_to() + 1
        ))
    })
}

pub(super) fn not_json(error: &serde_json::Error, place: &Place) -> IngestError {
    IngestError::Malformed(match place {
        // A line has no lines in it: the parser would say "line 1" of each.
        Place::Line(_) => {
            let text = error.to_string();
            let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
            format!(
                "{place} is not valid JSON: {what} at column {}. Nothing of the request was taken; mend it and send all of it again.",
                error.column()
            )
        }
        _ => format!("{place} is not valid JSON: {error}. Nothing was taken; mend it and send it again."),
    })
}

pub(super) fn nothing(what: &str) -> IngestError {
    IngestError::Malformed(format!("{what}: there is no record in it. Send at least one."))
}

/// Checks that `text` is one JSON text that is not nested too deep.
fn check(text: &str, place: &Place) -> Result<(), IngestError> {
    serde_json::from_str::<&RawValue>(text).map_err(|error| not_json(&error, place))?;
    check_depth(text, place)
}

/// Reads the object `text`. (serde would also take an array for a struct, its elements by their place.)
pub(super) fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, serde_json::Error> {
    match text.trim_ascii_start().starts_with('{') {
        true => serde_json::from_str(text),
        false => Err(de::Error::custom("it is not an object")),
    }
}

/// `text` is valid JSON: a bracket outside a string is a bracket. (serde_json limits nesting only where
/// it builds values, and here it only checks.)
pub(super) fn check_depth(text: &str, place: &Place) -> Result<(), IngestError> {
    // Nearly every text has fewer brackets than it may be deep, and they are found many bytes at a time.
    if memchr::memchr2_iter(b'{', b'[', text.as_bytes())
        .nth(DEPTH_MAX)
        .is_none()
    {
        return Ok(());
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(IngestError::Malformed(format!(
                        "{place} is nested more than {DEPTH_MAX} deep at byte {}; send it flatter.",
                        at + 1
                    )));
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Checks `text` and gives it out as one record.
fn put<F: FnMut(&Record)>(
    text: &str,
    place: &Place,
    key_field: Option<&str>,
    out: &mut Out<F>,
) -> Result<(), IngestError> {
    check(text, place)?;
    put_checked(text, place, key_field, out)
}

fn put_checked<F: FnMut(&Record)>(
    text: &str,
    place: &Place,
    key_field: Option<&str>,
    out: &mut Out<F>,
) -> Result<(), IngestError> {
    let key = match key_field {
        None => FieldKey::Envelope,
        Some(name) => FieldKey::Is(key_of(text, name, place)?),
    };
    out.put(text.as_bytes(), key)
}

/// The key that the field `name` of the object `text` stands for.
fn key_of(text: &str, name: &str, place: &Place) -> Result<Option<Vec<u8>>, IngestError> {
    let refuse = |what: &str| {
        IngestError::Malformed(format!(
            "{place}: {what}: {name:?} cannot be the record's key; a key is a string, a number or a boolean \
             in an object."
        ))
    };
    if !text.trim_ascii_start().starts_with('{') {
        return Err(refuse("it is not an object"));
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let found = FieldOf(name)
        .deserialize(&mut deserializer)
        .map_err(|error| not_json(&error, place))?;
    let Some(raw) = found.map(RawValue::get) else {
        return Ok(None);
    };
    match raw.as_bytes().first() {
        Some(b'n') => Ok(None),
        Some(b'"') => {
            let string: String = serde_json::from_str(raw).map_err(|_| refuse("the field is not a whole text"))?;
            Ok(Some(string.into_bytes()))
        }
        Some(b'{' | b'[') => Err(refuse("the field is an object or an array")),
        _ => Ok(Some(raw.as_bytes().to_vec())),
    }
}

/// Finds the raw value of one field; of repeated ones the last, as most readers of JSON do.
struct FieldOf<'n>(&'n str);

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for FieldOf<'_> {
    type Value = Option<&'de RawValue>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldOf<'_> {
    type Value = Option<&'de RawValue>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Name(name)) = map.next_key()? {
            let value: &RawValue = map.next_value()?;
            if name == self.0 {
                found = Some(value);
            }
        }
        Ok(found)
    }
}

/// Gives each element of the array `text` to `each` while it is parsed: no list of them is built.
pub(super) fn each_element(
    text: &str,
    mut each: impl FnMut(&str) -> Result<(), IngestError>,
) -> Result<(), IngestError> {
    let mut failed = None;
    let elements = Elements {
        each: &mut each,
        failed: &mut failed,
    };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let result = elements
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end());
    if let Some(error) = failed {
        return Err(error);
    }
    result.map_err(|error| not_json(&error, &Place::Body))
}

struct Elements<'o, F> {
    each: &'o mut F,
    /// Our own error, which serde can only carry as a text.
    failed: &'o mut Option<IngestError>,
}

impl<'de, F: FnMut(&str) -> Result<(), IngestError>> DeserializeSeed<'de> for Elements<'_, F> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(&str) -> Result<(), IngestError>> Visitor<'de> for Elements<'_, F> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element::<&RawValue>()? {
            if let Err(error) = (self.each)(element.get()) {
                *self.failed = Some(error);
                return Err(de::Error::custom("a record was refused"));
            }
        }
        Ok(())
    }
}
