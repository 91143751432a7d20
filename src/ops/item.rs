//! A record as JSON: a line of `wal export`, an item of a page, what `wal import` takes.
//!
//! ```text
//! {"wal":"<uuid>","seq":1,"topic":"t","key":"k","headers":[{"name":"n","value":"v"}],"received_ms":1,"value":"..."}
//! ```
//! What is not UTF-8 is in a member with `_base64` behind its name instead. `value` is null for a tombstone, `key` for no
//! key. `sequence` is there when the record's place in the log is not its identity's: it came from another log, or
//! was sent again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::record::{HEADER_PREFIX_RESERVED, Origin, Record, RecordRef, SEQUENCE_MAX, Sequence, Topic, WalId};

/// Bytes of one record as JSON, at most: of 32 MiB (`http.record_bytes_max` is no larger) as base64, or as text that needs
/// few escapes.
pub const ITEM_BYTES_MAX: usize = 48 << 20;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The identity of the WAL that first took it.
    pub wal: String,
    /// Its sequence there.
    pub seq: Sequence,
    /// Its place in the log it was read from, where that is another one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sequence: Option<Sequence>,
    /// Where it goes.
    pub topic: String,
    /// Its key, as text.
    #[serde(default)]
    pub key: Option<String>,
    /// Its key, where that is no text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_base64: Option<String>,
    /// Its headers, in order.
    #[serde(default)]
    pub headers: Vec<Header>,
    /// When the gateway received it, milliseconds since the epoch.
    pub received_ms: i64,
    /// Its value, as text.
    #[serde(skip_serializing_if = "hidden", default, deserialize_with = "there")]
    pub value: Option<Text>,
    /// Its value, where that is no text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value_base64: Option<String>,
}

/// A text or null, told apart from a member that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Text(pub Option<String>);

/// A member that is there, be it null.
fn there<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Text>, D::Error> {
    Text::deserialize(value).map(Some)
}

fn hidden(value: &Option<Text>) -> bool {
    value.is_none()
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value, as text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<String>,
    /// Its value, where that is no text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value_base64: Option<String>,
}

/// Why JSON is no record.
#[derive(Debug, thiserror::Error)]
pub enum ItemError {
    /// Not the members that a record has.
    #[error("not a record of `tidegate wal export`: {0}")]
    Json(#[from] serde_json::Error),
    /// A member that cannot be what it should be.
    #[error("{member}: {reason}")]
    Member {
        /// Its name.
        member: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Bytes as text, or as base64.
fn split(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

fn join(member: &'static str, text: Option<String>, base64: Option<String>) -> Result<Option<Vec<u8>>, ItemError> {
    let fault = |reason: String| ItemError::Member { member, reason };
    match (text, base64) {
        (Some(_), Some(_)) => Err(fault("it is there as text and as base64".to_owned())),
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(base64)) => STANDARD
            .decode(base64)
            .map(Some)
            .map_err(|error| fault(format!("not base64: {error}"))),
        (None, None) => Ok(None),
    }
}

impl Item {
    /// The record at `sequence` of the log `own`.
    #[must_use]
    pub fn of(own: WalId, sequence: Sequence, record: &RecordRef<'_>) -> Self {
        let own = Origin {
            wal: *own.0.as_bytes(),
            seq: sequence,
        };
        let who = record.origin.unwrap_or(own);
        let (key, key_base64) = record.key.map_or((None, None), split);
        let (value, value_base64) = match record.value.map(split) {
            None => (Some(Text(None)), None),
            Some((Some(text), _)) => (Some(Text(Some(text))), None),
            Some((None, base64)) => (None, base64),
        };
        Self {
            wal: uuid::Uuid::from_bytes(who.wal).to_string(),
            seq: who.seq,
            sequence: (who != own).then_some(sequence),
            topic: record.topic.to_owned(),
            key,
            key_base64,
            headers: record
                .headers
                .iter()
                .map(|(name, value)| Header::of(name, value))
                .collect(),
            received_ms: record.received_ms,
            value,
            value_base64,
        }
    }

    /// As [`of`](Self::of), of an owned record.
    #[must_use]
    pub fn of_record(own: WalId, sequence: Sequence, record: &Record) -> Self {
        let headers = record.headers.iter();
        Self::of(
            own,
            sequence,
            &RecordRef {
                topic: &record.topic,
                key: record.key.as_deref(),
                value: record.value.as_deref(),
                headers: headers.map(|(name, value)| (name.as_str(), value.as_slice())).collect(),
                received_ms: record.received_ms,
                origin: record.origin,
                idempotency: None,
            },
        )
    }

    /// Its place in the log that it was read from.
    #[must_use]
    pub fn place(&self) -> Sequence {
        self.sequence.unwrap_or(self.seq)
    }

    /// The record, with its identity as origin.
    ///
    /// # Errors
    /// [`ItemError`] names the member.
    pub fn into_record(self) -> Result<Record, ItemError> {
        let wal: WalId = self.wal.parse().map_err(|error: uuid::Error| ItemError::Member {
            member: "wal",
            reason: error.to_string(),
        })?;
        if self.seq == 0 || self.seq > SEQUENCE_MAX {
            return Err(ItemError::Member {
                member: "seq",
                reason: format!("sequences are from 1 to {SEQUENCE_MAX}"),
            });
        }
        let topic = Topic::parse(&self.topic).map_err(|error| ItemError::Member {
            member: "topic",
            reason: error.to_string(),
        })?;
        let headers = self.headers.into_iter().map(|header| {
            // Kafka's consumers would take it for the record's identity.
            if header.name.starts_with(HEADER_PREFIX_RESERVED) {
                return Err(ItemError::Member {
                    member: "headers",
                    reason: format!(
                        "{:?} cannot be set: names that begin with {HEADER_PREFIX_RESERVED} say which record it is",
                        header.name
                    ),
                });
            }
            let value = join("headers", header.value, header.value_base64)?;
            Ok((header.name, value.unwrap_or_default()))
        });
        Ok(Record {
            topic: topic.as_str().to_owned(),
            key: join("key", self.key, self.key_base64)?,
            value: join("value", self.value.and_then(|text| text.0), self.value_base64)?,
            headers: headers.collect::<Result<_, ItemError>>()?,
            received_ms: self.received_ms,
            origin: Some(Origin {
                wal: *wal.0.as_bytes(),
                seq: self.seq,
            }),
            idempotency: None,
        })
    }
}

impl Header {
    /// A header, as text where it is one.
    #[must_use]
    pub fn of(name: &str, value: &[u8]) -> Self {
        let (value, value_base64) = split(value);
        Self {
            name: name.to_owned(),
            value,
            value_base64,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_survives_its_line(
            key in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            value in prop::option::of(prop_oneof![prop::collection::vec(any::<u8>(), 0..50), "\\PC{0,20}".prop_map(String::into_bytes)]),
            header in prop::collection::vec(any::<u8>(), 0..10),
            seq in 1..=SEQUENCE_MAX,
            received_ms: i64,
        ) {
            let id = WalId::new_random();
            let record = Record {
                topic: "t".into(),
                key,
                value,
                headers: vec![("h".into(), header)],
                received_ms,
                origin: Some(Origin { wal: *id.0.as_bytes(), seq }),
                idempotency: None,
            };
            let bytes = bincode::encode_to_vec(&record, crate::record::ENCODING).unwrap();
            let (borrowed, _): (RecordRef<'_>, usize) = bincode::borrow_decode_from_slice(&bytes, crate::record::ENCODING).unwrap();
            let line = serde_json::to_string(&Item::of(WalId::new_random(), 7, &borrowed)).unwrap();
            let item: Item = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(item.place(), 7);
            prop_assert_eq!(item.into_record().unwrap(), record);
        }
    }

    #[test]
    fn what_is_no_record_is_named() {
        let id = WalId::new_random();
        for (text, word) in [
            ("{}".to_owned(), "wal"),
            (
                format!(r#"{{"wal":"{id}","seq":0,"topic":"t","received_ms":1,"value":"v"}}"#),
                "seq",
            ),
            (
                // No table's column holds it: its identity would be lost on the way.
                format!(r#"{{"wal":"{id}","seq":9223372036854775808,"topic":"t","received_ms":1,"value":"v"}}"#),
                "seq",
            ),
            (
                // Whoever reads the record takes the last header of a name: it would pass for another record.
                format!(
                    r#"{{"wal":"{id}","seq":1,"topic":"t","received_ms":1,"value":"v","headers":[{{"name":"tidegate-seq","value":"7"}}]}}"#
                ),
                "headers",
            ),
            (
                format!(r#"{{"wal":"{id}","seq":1,"topic":"a/b","received_ms":1,"value":"v"}}"#),
                "topic",
            ),
            (
                r#"{"wal":"x","seq":1,"topic":"t","received_ms":1,"value":"v"}"#.to_owned(),
                "wal",
            ),
            (
                format!(r#"{{"wal":"{id}","seq":1,"topic":"t","received_ms":1,"value_base64":"%"}}"#),
                "value",
            ),
            (
                format!(r#"{{"wal":"{id}","seq":1,"topic":"t","received_ms":1,"valu":"%"}}"#),
                "valu",
            ),
        ] {
            let error = serde_json::from_str::<Item>(&text)
                .map_err(ItemError::from)
                .and_then(Item::into_record)
                .unwrap_err();
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
    }
}
