//! `application/x-www-form-urlencoded` -> one JSON object of strings, in the order sent.
//!
//! `+` is a space, `%41` is A, a name without `=` has the empty value, and empty pieces (`a=1&&b=2`) are
//! nothing. A name that comes again makes its value an array, at the place of the first: nothing is
//! dropped. Names and values must be UTF-8, because JSON is.
//!
//! Deliberately does not know: which fields a source has.

use std::borrow::Cow;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{FieldKey, IngestError, Out};
use crate::record::Record;

/// The most fields of one form. It keeps the search for repeated names short: no index is built.
pub(crate) const FIELDS_MAX: usize = 1000;

/// Reads a form as one record.
pub(super) fn read<F: FnMut(&Record)>(
    body: &[u8],
    key_field: Option<&str>,
    out: &mut Out<F>,
) -> Result<(), IngestError> {
    let form = Form::parse(body)?;
    let key = match key_field {
        None => FieldKey::Envelope,
        Some(name) => FieldKey::Is(form.key(name)?),
    };
    out.set_content_type(super::JSON);
    let mut value = Vec::with_capacity(body.len() + 8 + 4 * form.fields.len());
    serde_json::to_writer(&mut value, &form)
        .map_err(|error| IngestError::Malformed(format!("the form cannot be written as JSON: {error}")))?;
    out.put(&value, key)
}

/// A form's fields, in the order in which their names came first.
struct Form<'a> {
    fields: Vec<Field<'a>>,
}

struct Field<'a> {
    name: Cow<'a, str>,
    first: Cow<'a, str>,
    /// The values after the first.
    more: Vec<Cow<'a, str>>,
}

impl<'a> Form<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, IngestError> {
        let mut fields: Vec<Field<'a>> = Vec::with_capacity(8);
        let mut count = 0;
        for (position, name, value) in pieces(body) {
            count += 1;
            if count > FIELDS_MAX {
                return Err(IngestError::Malformed(format!(
                    "the form has more than {FIELDS_MAX} fields; send fewer in one record."
                )));
            }
            let name_text = text(name, position, "name")?;
            let value_text = text(value, position + name.len() + 1, "value")?;
            match fields.iter_mut().find(|field| field.name == name_text) {
                Some(field) => field.more.push(value_text),
                None => fields.push(Field {
                    name: name_text,
                    first: value_text,
                    more: Vec::new(),
                }),
            }
        }
        if fields.is_empty() {
            return Err(IngestError::Malformed(
                "the form is empty: there is no record in it. Send at least one name=value.".into(),
            ));
        }
        Ok(Self { fields })
    }

    fn key(&self, name: &str) -> Result<Option<Vec<u8>>, IngestError> {
        let Some(field) = self.fields.iter().find(|field| field.name == name) else {
            return Ok(None);
        };
        if !field.more.is_empty() {
            return Err(IngestError::Malformed(format!(
                "the field {name:?} is the record's key and came {} times; send it once.",
                field.more.len() + 1
            )));
        }
        Ok(Some(field.first.as_bytes().to_vec()))
    }
}

impl Serialize for Form<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len()))?;
        for field in &self.fields {
            if field.more.is_empty() {
                map.serialize_entry(&field.name, &field.first)?;
            } else {
                let values: Vec<&str> = std::iter::once(&field.first)
                    .chain(&field.more)
                    .map(AsRef::as_ref)
                    .collect();
                map.serialize_entry(&field.name, &values)?;
            }
        }
        map.end()
    }
}

/// The parameters of a query: names as text, values as the bytes they stand for (a key may be any bytes).
pub(super) fn query_pairs(query: &str) -> Result<Vec<(String, Vec<u8>)>, IngestError> {
    pieces(query.as_bytes())
        .map(|(position, name, value)| {
            let value = decode(value, position + name.len() + 1, "query")?.into_owned();
            let name = String::from_utf8_lossy(&decode(name, position, "query")?).into_owned();
            Ok((name, value))
        })
        .collect()
}

/// The non-empty pieces between `&`: (where its name begins, name, value), all still encoded.
fn pieces(body: &[u8]) -> impl Iterator<Item = (usize, &[u8], &[u8])> {
    let mut next = 0;
    body.split(|byte| *byte == b'&').filter_map(move |piece| {
        let position = next;
        next += piece.len() + 1;
        if piece.is_empty() {
            return None;
        }
        let (name, value) = match memchr::memchr(b'=', piece).and_then(|at| piece.split_at_checked(at)) {
            Some((name, value)) => (name, value.strip_prefix(b"=").unwrap_or(value)),
            None => (piece, &[][..]),
        };
        Some((position, name, value))
    })
}

/// `encoded` without its escapes, as text. `position` is where it begins in the body.
fn text<'a>(encoded: &'a [u8], position: usize, part: &str) -> Result<Cow<'a, str>, IngestError> {
    let refuse = |error: std::str::Utf8Error| {
        let at = position + encoded_len(encoded, error.valid_up_to()) + 1;
        IngestError::Malformed(format!(
            "the form is not UTF-8: the {part} at byte {at} has a byte that cannot be there. Encode the form as UTF-8 \
             before percent-encoding it."
        ))
    };
    match decode(encoded, position, "form")? {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(refuse),
        Cow::Owned(bytes) => String::from_utf8(bytes)
            .map(Cow::Owned)
            .map_err(|error| refuse(error.utf8_error())),
    }
}

/// How many bytes of `encoded` stand for its first `decoded` bytes.
fn encoded_len(encoded: &[u8], decoded: usize) -> usize {
    let mut at = 0;
    for _ in 0..decoded {
        at += if encoded.get(at) == Some(&b'%') { 3 } else { 1 };
    }
    at
}

/// `encoded` without its escapes. `position` is where it begins in the body or query.
fn decode<'a>(encoded: &'a [u8], position: usize, whole: &str) -> Result<Cow<'a, [u8]>, IngestError> {
    if memchr::memchr2(b'%', b'+', encoded).is_none() {
        return Ok(Cow::Borrowed(encoded));
    }
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'+' => decoded.push(b' '),
            b'%' => {
                let byte = match tail {
                    [high, low, ..] => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
                    _ => None,
                };
                let Some(byte) = byte else {
                    let at = position + (encoded.len() - tail.len());
                    return Err(IngestError::Malformed(format!(
                        "the {whole} has a % at byte {at} without two hexadecimal digits after it: it was cut short, \
                         or a plain % was not written as %25. Send it again, percent-encoded and whole."
                    )));
                };
                decoded.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            other => decoded.push(*other),
        }
    }
    Ok(Cow::Owned(decoded))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}
