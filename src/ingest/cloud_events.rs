//! CloudEvents 1.0 -> records, as its HTTP binding brings them and its Kafka binding wants them
//! (github.com/cloudevents/spec, `cloudevents/bindings`, versions 1.0.x).
//!
//! ```text
//! over HTTP                                             in Kafka
//! binary      ce-NAME: percent-encoded UTF-8            header ce_NAME: UTF-8
//!             Content-Type                              header content-type
//!             body (none: no data)                      value as it is (null)
//! structured  application/cloudevents+json              value as it is, content-type the same
//! batch       application/cloudevents-batch+json        a structured event for each element
//! ```
//!
//! An event that lacks what the specification requires is refused, whole batch and all; what it does not require is
//! passed on unread. The key is the client's (`?key_field=partitionkey` takes it from that attribute).
//!
//! Deliberately does not know: other formats of events, and what an event's data are.

use std::borrow::Cow;

use percent_encoding::percent_decode;
use serde::Deserialize;

use super::{Headers, IngestError, Key, json, shorten};

/// What begins the HTTP header of an attribute.
pub const HEADER_PREFIX: &str = "ce-";
/// What begins its Kafka header.
const ATTRIBUTE_PREFIX: &str = "ce_";
/// The only version there is.
const VERSION: &str = "1.0";
/// What every event has.
const REQUIRED: [&str; 4] = ["id", "source", "specversion", "type"];

/// The attributes of an event in binary mode, as the Kafka headers that they become.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes(Headers);

impl Attributes {
    /// Takes the HTTP header `ce-{name}`.
    ///
    /// # Errors
    /// [`IngestError::Malformed`]: the name is none, the value no text, or the attribute was there already.
    pub fn push(&mut self, name: &str, value: &[u8]) -> Result<(), IngestError> {
        if name.is_empty()
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        {
            return Err(malformed(format!(
                "{HEADER_PREFIX}{} names no attribute of a CloudEvent: they have the letters a to z and digits",
                shorten(name.as_bytes())
            )));
        }
        let value: Vec<u8> = percent_decode(&unquoted(value)).collect();
        if std::str::from_utf8(&value).is_err() {
            return Err(malformed(format!(
                "the value of {HEADER_PREFIX}{name} is not UTF-8; percent-encode it"
            )));
        }
        let name = format!("{ATTRIBUTE_PREFIX}{name}");
        if self.0.iter().any(|(known, _)| *known == name) {
            return Err(malformed(format!("the attribute {name} is there twice")));
        }
        self.0.push((name, value));
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        let found = self
            .0
            .iter()
            .find(|(known, _)| known.strip_prefix(ATTRIBUTE_PREFIX) == Some(name));
        found.map(|(_, value)| value.as_slice())
    }

    /// The Kafka headers of an event that is whole, and its key; `None` when the request is no event in binary mode.
    ///
    /// # Errors
    /// [`IngestError::Malformed`]: it has some attributes and lacks one that it needs.
    pub fn into_headers(self, key: Key) -> Result<Option<(Headers, Key)>, IngestError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        if self
            .get("specversion")
            .is_some_and(|version| version != VERSION.as_bytes())
        {
            return Err(malformed(format!("its specversion is not {VERSION}")));
        }
        if let Some(name) = REQUIRED.iter().find(|name| self.get(name).is_none_or(<[u8]>::is_empty)) {
            return Err(malformed(format!(
                "it has no attribute {name} (the header {HEADER_PREFIX}{name})"
            )));
        }
        let key = match key {
            Key::Field(name) => self.get(&name).map_or(Key::None, |value| Key::Given(value.to_vec())),
            key => key,
        };
        Ok(Some((self.0, key)))
    }
}

/// A value without the quotes that it may have, and their escapes (HTTP binding 3.1.3.2).
fn unquoted(value: &[u8]) -> Cow<'_, [u8]> {
    let [b'"', inner @ .., b'"'] = value else {
        return Cow::Borrowed(value);
    };
    let mut bytes = inner.iter();
    let mut plain = Vec::with_capacity(inner.len());
    while let Some(byte) = bytes.next() {
        let byte = if *byte == b'\\' {
            bytes.next().unwrap_or(byte)
        } else {
            byte
        };
        plain.push(*byte);
    }
    Cow::Owned(plain)
}

/// Checks that `text`, a JSON text, is an event in the JSON format.
pub(super) fn check(text: &str, place: &impl std::fmt::Display) -> Result<(), IngestError> {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(borrow)]
        id: Option<Cow<'a, str>>,
        #[serde(borrow)]
        source: Option<Cow<'a, str>>,
        #[serde(borrow)]
        specversion: Option<Cow<'a, str>>,
        #[serde(borrow, rename = "type")]
        kind: Option<Cow<'a, str>>,
    }
    let event: Event<'_> =
        json::object(text).map_err(|error| malformed(format!("{place} is no event in JSON: {error}")))?;
    let given = [&event.id, &event.source, &event.specversion, &event.kind];
    for (name, value) in REQUIRED.iter().zip(given) {
        if value.as_ref().is_none_or(|value| value.is_empty()) {
            return Err(malformed(format!("{place} has no attribute {name:?}")));
        }
    }
    if event.specversion.as_deref() != Some(VERSION) {
        return Err(malformed(format!("the specversion of {place} is not {VERSION}")));
    }
    Ok(())
}

fn malformed(what: String) -> IngestError {
    IngestError::Malformed(format!(
        "this is no valid CloudEvent {VERSION}: {what}. Nothing of the request was taken; correct the event."
    ))
}
