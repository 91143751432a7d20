//! A record on its way from a client to Kafka, and the names it carries.
//!
//! Knows nobody. [`Record`] is the owned form that ingest makes; [`RecordRef`] borrows from a frame that
//! was read back, so that draining the log allocates nothing per record. Both have ONE encoding
//! (bincode 2, standard configuration: little endian, variable-length integers, fields in the order of
//! declaration; see docs/format.md). Its schema belongs to the frame version: a new field means a new
//! version byte in `wal/frame.rs`, and the old decoder stays.

use std::fmt;
use std::sync::Arc;

use bincode::{BorrowDecode, Decode, Encode};
use uuid::Uuid;

/// A place in the WAL: the first record ever is 1, each next one is one higher, none is used twice.
/// 0 means "before the first". (An *offset* is Kafka's word and means a place in a Kafka partition only.)
pub type Sequence = u64;

/// The highest sequence that anything outside is believed to have: what a Kafka offset and a table's column hold, and one
/// more of it is still a number.
pub const SEQUENCE_MAX: Sequence = i64::MAX as Sequence;

/// Header with the time the gateway received the record, milliseconds since the Unix epoch, decimal.
pub const HEADER_RECEIVED: &str = "tidegate-received";
/// Header with the identity of the WAL that first took the record, a UUID.
pub const HEADER_WAL: &str = "tidegate-wal";
/// Header with the record's sequence in that WAL, decimal.
pub const HEADER_SEQ: &str = "tidegate-seq";
/// Header with the `Idempotency-Key` of the request that the record came with, without quotes.
pub const HEADER_IDEMPOTENCY_KEY: &str = "idempotency-key";
/// A header name that a client gave may not begin with this: it is how a record is identified.
pub const HEADER_PREFIX_RESERVED: &str = "tidegate-";

/// The longest legal Kafka topic name, in bytes (Kafka's `Topic.MAX_NAME_LENGTH`).
pub const TOPIC_BYTES_MAX: usize = 249;

/// bincode's configuration for everything that tidegate writes to disk.
pub const ENCODING: bincode::config::Configuration = bincode::config::standard();

/// The most memory that one value's decoding asks for at once, in bytes: the headers of the largest record there can be,
/// 33 MiB of empty ones. Without a limit a length that is not true would be asked for, and the process ends there.
const DECODED_BYTES_MAX: usize = 1 << 30;

/// [`ENCODING`], to decode with.
pub const DECODING: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<DECODED_BYTES_MAX>,
> = ENCODING.with_limit::<DECODED_BYTES_MAX>();

/// The identity of a WAL: made once, when its folder is made, and in every record's `tidegate-wal` header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WalId(pub Uuid);

impl WalId {
    /// A new identity, random (UUID version 4).
    #[must_use]
    pub fn new_random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for WalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for WalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::str::FromStr for WalId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A legal Kafka topic name: 1 to 249 of `a-z A-Z 0-9 . _ -`, and neither `.` nor `..`.
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Topic(Arc<str>);

/// Why a text is no topic name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Nothing there.
    #[error("a topic name is empty; it needs 1 to 249 characters")]
    Empty,
    /// Longer than Kafka allows.
    #[error("a topic name has {0} characters; Kafka allows 249")]
    TooLong(usize),
    /// `.` or `..`.
    #[error("a topic cannot be named '.' or '..'")]
    Dots,
    /// A character that Kafka refuses.
    #[error("a topic name has the character {0:?}; Kafka allows a-z A-Z 0-9 . _ -")]
    Character(char),
}

impl Topic {
    /// Checks `name` against Kafka's rules.
    ///
    /// # Errors
    /// [`TopicError`] says which rule it breaks.
    pub fn parse(name: &str) -> Result<Self, TopicError> {
        if name.is_empty() {
            return Err(TopicError::Empty);
        }
        if let Some(c) = name
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
        {
            return Err(TopicError::Character(c));
        }
        if name.len() > TOPIC_BYTES_MAX {
            return Err(TopicError::TooLong(name.len()));
        }
        if matches!(name, "." | "..") {
            return Err(TopicError::Dots);
        }
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a record is, when it is not new here: set for records that were imported, replayed, requeued or
/// held, and then sent on in place of this WAL's own identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct Origin {
    /// The identity of the WAL that first took the record, the 16 bytes of its UUID.
    pub wal: [u8; 16],
    /// Its sequence there.
    pub seq: Sequence,
}

/// A client's `Idempotency-Key`, kept in the same commit as the records it stands for: on the first
/// record of its batch.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Idempotency {
    /// The key as the client wrote it, without quotes.
    pub key: String,
    /// Whose key it is: the first 16 bytes of a SHA-256 over caller and path.
    pub scope: [u8; 16],
    /// What it stood for: the first 16 bytes of the SHA-256 of the body.
    pub body: [u8; 16],
    /// How many records the batch has: with the sequence of the first, the answer can be given again.
    pub records: u32,
}

/// A record as a client sent it. The sequence is not in it: the log gives that.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Record {
    /// A legal topic name ([`Topic`]).
    pub topic: String,
    /// Kafka's key; `None` and empty differ.
    pub key: Option<Vec<u8>>,
    /// Kafka's value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// `content-type` and the client's own headers, in the order sent.
    pub headers: Vec<(String, Vec<u8>)>,
    /// When the gateway received it, milliseconds since the Unix epoch.
    pub received_ms: i64,
    /// Set when the record has an identity from elsewhere.
    pub origin: Option<Origin>,
    /// Set on the first record of a batch that came with an `Idempotency-Key`.
    pub idempotency: Option<Idempotency>,
}

/// [`Record`], borrowed from the bytes it was read from: the same fields, the same encoding.
#[derive(Clone, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct RecordRef<'a> {
    /// See [`Record::topic`].
    pub topic: &'a str,
    /// See [`Record::key`].
    pub key: Option<&'a [u8]>,
    /// See [`Record::value`].
    pub value: Option<&'a [u8]>,
    /// See [`Record::headers`].
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// See [`Record::received_ms`].
    pub received_ms: i64,
    /// See [`Record::origin`].
    pub origin: Option<Origin>,
    /// See [`Record::idempotency`].
    pub idempotency: Option<Idempotency>,
}

impl Record {
    /// Bytes of what the client gave: topic, key, value and headers. This is what `record_bytes_max`
    /// limits and what byte metrics count; the encoding adds about 20 bytes.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.topic.len()
            + self.key.as_ref().map_or(0, Vec::len)
            + self.value.as_ref().map_or(0, Vec::len)
            + self
                .headers
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
    }
}

impl Record {
    /// The borrowed form.
    #[must_use]
    pub fn borrowed(&self) -> RecordRef<'_> {
        RecordRef {
            topic: &self.topic,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: (self.headers.iter())
                .map(|(name, value)| (name.as_str(), value.as_slice()))
                .collect(),
            received_ms: self.received_ms,
            origin: self.origin,
            idempotency: self.idempotency.clone(),
        }
    }
}

impl RecordRef<'_> {
    /// See [`Record::payload_bytes`].
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.topic.len()
            + self.key.map_or(0, <[u8]>::len)
            + self.value.map_or(0, <[u8]>::len)
            + self
                .headers
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
    }

    /// An owned copy.
    #[must_use]
    pub fn to_record(&self) -> Record {
        Record {
            topic: self.topic.to_owned(),
            key: self.key.map(<[u8]>::to_vec),
            value: self.value.map(<[u8]>::to_vec),
            headers: self
                .headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.to_vec()))
                .collect(),
            received_ms: self.received_ms,
            origin: self.origin,
            idempotency: self.idempotency.clone(),
        }
    }
}

/// Whether a name of a topic or a source fits `pattern`, in which `*` is any run of characters.
#[must_use]
pub fn fits(pattern: &str, name: &str) -> bool {
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

/// Milliseconds since the Unix epoch by the system's clock; 0 for a clock before 1970.
#[must_use]
pub fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn sample() -> Record {
        Record {
            topic: "financial_pro".into(),
            key: Some(b"k".to_vec()),
            value: Some(br#"{"a":1}"#.to_vec()),
            headers: vec![("content-type".into(), b"application/json".to_vec())],
            received_ms: 1_700_000_000_123,
            origin: Some(Origin { wal: [7; 16], seq: 300 }),
            idempotency: Some(Idempotency {
                key: "x".into(),
                scope: [1; 16],
                body: [2; 16],
                records: 1,
            }),
        }
    }

    #[test]
    fn owned_and_borrowed_records_have_one_encoding() {
        let record = sample();
        let bytes = bincode::encode_to_vec(&record, ENCODING).unwrap();
        let (borrowed, used): (RecordRef<'_>, usize) = bincode::borrow_decode_from_slice(&bytes, ENCODING).unwrap();
        assert_eq!(used, bytes.len());
        assert_eq!(borrowed.to_record(), record);
        assert_eq!(bincode::encode_to_vec(&borrowed, ENCODING).unwrap(), bytes);
    }

    #[test]
    fn a_length_that_is_not_true_is_an_error() {
        // topic "t", no key, a value of 2^62 bytes; then the same number of headers.
        let length = [&[253_u8][..], &(1_u64 << 62).to_le_bytes()].concat();
        for before in [&b"\x01t\x00\x01"[..], b"\x01t\x00\x00"] {
            let bytes = [before, &length, &[0; 20]].concat();
            assert!(bincode::borrow_decode_from_slice::<RecordRef<'_>, _>(&bytes, DECODING).is_err());
            assert!(bincode::decode_from_slice::<Record, _>(&bytes, DECODING).is_err());
        }
    }

    #[test]
    fn topic_names_follow_kafkas_rules() {
        assert!(Topic::parse("financial_pro.v1-A").is_ok());
        assert_eq!(Topic::parse(""), Err(TopicError::Empty));
        assert_eq!(Topic::parse(".."), Err(TopicError::Dots));
        assert_eq!(Topic::parse("a/b"), Err(TopicError::Character('/')));
        assert_eq!(Topic::parse(&"a".repeat(250)), Err(TopicError::TooLong(250)));
    }

    #[test]
    fn patterns_match_as_people_read_them() {
        for (pattern, name, expected) in [
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
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn pattern_of_a_name_with_holes_matches_it(name in "[a-c]{1,10}", from in 0usize..10, to in 0usize..10) {
            let (from, to) = (from.min(name.len()), to.min(name.len()));
            if from <= to {
                let pattern = format!("{}*{}", &name[..from], &name[to..]);
                prop_assert!(fits(&pattern, &name));
            }
        }

        #[test]
        fn no_pattern_panics(pattern in "[a*é]{0,8}", name in "[aé]{0,8}") {
            prop_assert!(fits("*", &name) >= fits(&pattern, &name));
        }
    }
}
