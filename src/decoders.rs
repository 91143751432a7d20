//! Every decoder of bytes from outside, each as a function that takes any bytes and asserts what must hold: no panic,
//! whatever decodes encodes again to what decodes the same, limits are kept, and memory is bounded by what came.
//!
//! For tests and fuzzing only (`tests/fuzz/`): nothing of it is in the program. Where a checksum would keep chance out, it is
//! made right first, and both are decoded: what is behind it must hold too.
//!
//! Knows nothing of files and connections: how bytes get here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::config;
use crate::forward::Mark;
use crate::ingest::rest_proxy::Embedded;
use crate::ingest::{self, Encoding, Envelope, IngestError, Key, Limits, Media, Shape, Taken};
use crate::keys;
use crate::land::{Rule, decoding as landed, row::Field, table};
use crate::ops::Item;
use crate::record::{DECODING, ENCODING, Record, RecordRef, SEQUENCE_MAX, Topic, WalId};
use crate::wal::{Letter, decoding as wal};

/// A decoder: its name (a folder of `tests/fuzz/corpus/`), and what to do with bytes.
pub type Decoder = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: &[Decoder] = &[
    ("form", form),
    ("json", json),
    ("ndjson", ndjson),
    ("request", request),
    ("encoding", encoding),
    ("events", events),
    ("rest_proxy", rest_proxy),
    ("record", record),
    ("letter", letter),
    ("frame", frame),
    ("chunk", chunk),
    ("witness", witness),
    ("identity", identity),
    ("ranges", ranges),
    ("stamps", stamps),
    ("keys", known_keys),
    ("generation", generation),
    ("watermark", watermark),
    ("item", item),
    ("landed", land),
    ("value", value),
    ("config", config),
    ("api_keys", api_keys),
];

/// Decodes the bytes with the decoder of this name; panics where something does not hold.
pub fn decode(name: &str, bytes: &[u8]) {
    let (_, decode) = ALL.iter().find(|(known, _)| *known == name).expect("a decoder's name");
    decode(bytes);
}

const LIMITS: Limits = Limits {
    record_bytes_max: 2000,
    records_max: 50,
    request_bytes_max: 10_000,
};

fn envelope(key: Key) -> Envelope {
    Envelope {
        topic: Topic::parse("t").unwrap(),
        key,
        content_type: None,
        headers: Vec::new(),
        received_ms: 7,
    }
}

/// The records of a body.
fn records(media: Media, shape: Shape, body: &[u8], key: Key) -> Result<Vec<Record>, IngestError> {
    let mut records = Vec::new();
    let taken = ingest::read(media, shape, body, envelope(key), LIMITS, |record| {
        records.push(record.clone())
    })?;
    checked(taken, records)
}

/// What records were counted as is what they are, and every limit is kept.
fn checked(taken: Taken, records: Vec<Record>) -> Result<Vec<Record>, IngestError> {
    let bytes: usize = records.iter().map(Record::payload_bytes).sum();
    assert_eq!((taken.records, taken.bytes), (records.len(), bytes as u64));
    assert!((1..=LIMITS.records_max).contains(&records.len()) && bytes <= LIMITS.request_bytes_max);
    for record in &records {
        assert!(record.payload_bytes() <= LIMITS.record_bytes_max);
        record_again(record);
    }
    Ok(records)
}

fn text_of(record: &Record) -> &str {
    std::str::from_utf8(record.value.as_deref().unwrap()).unwrap()
}

/// Whether an error is about a limit, not about what the bytes are.
fn is_limit(error: &IngestError) -> bool {
    !matches!(error, IngestError::Malformed(_) | IngestError::Invalid(_))
}

fn form(bytes: &[u8]) {
    let by_field = records(Media::Form, Shape::One, bytes, Key::Field("a".into()));
    let Ok(taken) = records(Media::Form, Shape::One, bytes, Key::None) else {
        assert!(by_field.is_err());
        return;
    };
    assert_eq!(taken.len(), 1);
    // As pairs again, in the object's order.
    let mut pairs = Vec::new();
    let escaped = |text: &str| percent_encode(text.as_bytes(), NON_ALPHANUMERIC).to_string();
    let object: Value = serde_json::from_str(text_of(&taken[0])).unwrap();
    for (name, value) in object.as_object().unwrap() {
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        pairs.extend(
            values
                .iter()
                .map(|value| format!("{}={}", escaped(name), escaped(value.as_str().unwrap()))),
        );
    }
    let sent = bytes
        .split(|byte| *byte == b'&')
        .filter(|piece| !piece.is_empty())
        .count();
    assert_eq!(pairs.len(), sent, "nothing is dropped, nothing is added");
    let again = records(Media::Form, Shape::One, pairs.join("&").as_bytes(), Key::None).unwrap();
    assert_eq!(serde_json::from_str::<Value>(text_of(&again[0])).unwrap(), object);
    if let Ok(by_field) = by_field {
        assert_eq!(by_field[0].value, taken[0].value);
        let expected = object.get("a").map(|value| value.as_str().unwrap().as_bytes());
        assert_eq!(by_field[0].key.as_deref(), expected);
    }
}

/// A record's value is JSON that a reader reads.
fn check_json(record: &Record) {
    let text = text_of(record);
    let whole: Result<&RawValue, _> = serde_json::from_str(text);
    assert!(whole.is_ok(), "{text}");
    if let Err(error) = serde_json::from_str::<Value>(text) {
        assert!(!error.to_string().contains("recursion"), "{error}");
    }
}

fn json(bytes: &[u8]) {
    let one = records(Media::Json, Shape::One, bytes, Key::None);
    let many = records(Media::Json, Shape::Many, bytes, Key::None);
    if let Ok(one) = &one {
        assert_eq!(one[0].value.as_deref(), Some(bytes), "byte for byte");
        assert_eq!(many.as_ref(), Ok(one));
    }
    match (&many, serde_json::from_slice(bytes)) {
        (Err(error), Ok(Value::Object(_))) => assert!(is_limit(error), "{error}"),
        (Err(error), Ok(Value::Array(items))) => assert!(is_limit(error) || items.is_empty(), "{error}"),
        _ => {}
    }
    let Ok(many) = many else { return };
    many.iter().for_each(check_json);
    // As elements they are the same, but for the white space around a body that is one object.
    let trimmed: Vec<&str> = many.iter().map(|record| text_of(record).trim_ascii()).collect();
    let array = format!("[{}]", trimmed.join(","));
    let again = records(Media::Json, Shape::Many, array.as_bytes(), Key::None).unwrap();
    assert_eq!(again.iter().map(text_of).collect::<Vec<_>>(), trimmed);
    keys(&many, records(Media::Json, Shape::Many, bytes, Key::Field("k".into())));
}

fn ndjson(bytes: &[u8]) {
    let Ok(taken) = records(Media::Ndjson, Shape::Many, bytes, Key::None) else {
        return;
    };
    taken.iter().for_each(check_json);
    let lines = taken.iter().map(text_of).collect::<Vec<_>>().join("\n");
    assert_eq!(
        records(Media::Ndjson, Shape::Many, lines.as_bytes(), Key::None).unwrap(),
        taken
    );
    keys(
        &taken,
        records(Media::Ndjson, Shape::Many, bytes, Key::Field("k".into())),
    );
}

/// The keys of records by their field `k`, if all can have one: what a JSON parser says the field is.
fn keys(plain: &[Record], by_field: Result<Vec<Record>, IngestError>) {
    let Ok(by_field) = by_field else { return };
    assert_eq!(plain.len(), by_field.len());
    for (plain, keyed) in plain.iter().zip(by_field) {
        assert_eq!(plain.value, keyed.value);
        let Ok(value) = serde_json::from_str::<Value>(text_of(plain)) else {
            continue;
        };
        let key = keyed.key.map(|key| String::from_utf8(key).unwrap());
        match value.get("k") {
            None | Some(Value::Null) => assert_eq!(key, None),
            Some(Value::String(text)) => assert_eq!(key.as_ref(), Some(text)),
            Some(other) => assert_eq!(serde_json::from_str::<Value>(&key.unwrap()).unwrap(), *other),
        }
    }
}

/// A whole request: Content-Type, Content-Encoding, query, a client's header and the topic, a line each; then the body.
fn request(bytes: &[u8]) {
    let mut parts = bytes.splitn(6, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (content_type, encoding) = (part(), part());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (query, header, topic, body) = (text(part()), text(part()), text(part()), part());
    for error in [
        ingest::Encoding::parse([encoding]).err(),
        Media::parse(Some(content_type), Shape::One).err(),
    ] {
        // What people read of it is short, whatever was sent.
        assert!(error.is_none_or(|error| error.to_string().len() < 2000));
    }
    if let Ok(name) = ingest::client_header(&header) {
        assert!(!name.is_empty() && !name.starts_with("tidegate-"));
    }
    if let Ok(topic) = Topic::parse(&topic) {
        assert_eq!(Topic::parse(topic.as_str()), Ok(topic.clone()));
        assert!(topic.as_str().len() <= 249 && !topic.as_str().contains(['/', '\0', ' ']));
    }
    let key = match Key::from_query(&query) {
        Err(error) => {
            assert!(error.to_string().len() < 2000, "{error}");
            Key::None
        }
        Ok(key) => {
            let escaped = match &key {
                Key::None => String::new(),
                Key::Given(key) => format!("key={}", percent_encode(key, NON_ALPHANUMERIC)),
                Key::Field(name) => format!("key_field={}", percent_encode(name.as_bytes(), NON_ALPHANUMERIC)),
            };
            assert_eq!(Key::from_query(&escaped), Ok(key.clone()));
            key
        }
    };
    for shape in [Shape::One, Shape::Many] {
        if let Ok(media) = Media::parse(Some(content_type), shape) {
            drop(records(media, shape, body, key.clone()));
        }
    }
}

/// A compressed body: whatever it is, no more than the limit comes of it.
fn encoding(bytes: &[u8]) {
    for encoding in [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd] {
        if let Ok(expanded) = encoding.expand(bytes, 10_000) {
            assert!(expanded.len() <= 10_000);
        }
    }
}

/// An event, and a batch of it: what is taken is what was sent.
fn events(bytes: &[u8]) {
    let one = records(Media::Event, Shape::Many, bytes, Key::Field("subject".into()));
    drop(records(Media::Events, Shape::Many, bytes, Key::None));
    let Ok(taken) = records(Media::Event, Shape::Many, bytes, Key::None) else {
        assert!(one.is_err());
        return;
    };
    assert_eq!(taken[0].value.as_deref(), Some(bytes));
    check_json(&taken[0]);
    let batch = [b"[", bytes, b",", bytes, b"]"].concat();
    match records(Media::Events, Shape::Many, &batch, Key::None) {
        Ok(both) => {
            assert_eq!(both.len(), 2);
            assert_eq!(both[0].value.as_deref(), Some(bytes.trim_ascii()));
        }
        Err(error) => assert!(is_limit(&error), "{error}"),
    }
}

/// The bodies of the REST Proxy. v2 of JSON, which is the same once more as v3.
fn rest_proxy(bytes: &[u8]) {
    let v3 = |body: &[u8]| -> Result<Vec<Record>, IngestError> {
        let mut records = Vec::new();
        let each = |record: &Record| records.push(record.clone());
        let (taken, sizes) = ingest::read_v3(body, envelope(Key::None), LIMITS, each)?;
        assert_eq!(sizes.len(), taken.records);
        checked(taken, records)
    };
    drop(v3(bytes));
    for embedded in [Embedded::Binary, Embedded::Json] {
        let mut records = Vec::new();
        let each = |record: &Record| records.push(record.clone());
        let Ok(taken) = ingest::read_v2(embedded, bytes, envelope(Key::None), LIMITS, each) else {
            continue;
        };
        let records = checked(taken, records).unwrap();
        if embedded == Embedded::Json {
            let text = |bytes: &Option<Vec<u8>>| match bytes {
                Some(bytes) => format!(r#"{{"type":"JSON","data":{}}}"#, String::from_utf8_lossy(bytes)),
                None => "null".to_owned(),
            };
            let entry = |record: &Record| format!(r#"{{"key":{},"value":{}}}"#, text(&record.key), text(&record.value));
            let again: String = records.iter().map(entry).collect();
            match v3(again.as_bytes()) {
                Ok(again) => {
                    let pairs = |records: Vec<Record>| -> Vec<_> {
                        records.into_iter().map(|record| (record.key, record.value)).collect()
                    };
                    assert_eq!(pairs(again), pairs(records));
                }
                Err(error) => assert!(is_limit(&error), "{error}"),
            }
        }
    }
}

/// A record's one encoding, owned and borrowed.
fn record_again(record: &Record) {
    let bytes = bincode::encode_to_vec(record, ENCODING).unwrap();
    let (borrowed, used): (RecordRef<'_>, usize) = bincode::borrow_decode_from_slice(&bytes, DECODING).unwrap();
    assert_eq!((borrowed.to_record(), used), (record.clone(), bytes.len()));
}

fn record(bytes: &[u8]) {
    let borrowed = bincode::borrow_decode_from_slice::<RecordRef<'_>, _>(bytes, DECODING).ok();
    let owned = bincode::decode_from_slice::<Record, _>(bytes, DECODING).ok();
    assert_eq!(borrowed.map(|(record, used)| (record.to_record(), used)), owned);
    let Some((record, _)) = owned else { return };
    assert!(record.payload_bytes() <= bytes.len());
    record_again(&record);
    // A line of an export says all of it that an import takes.
    let line = serde_json::to_string(&Item::of_record(WalId(uuid::Uuid::nil()), 7, &record)).unwrap();
    item(line.as_bytes());
}

fn letter(bytes: &[u8]) {
    let Ok(letter) = Letter::decode(bytes) else { return };
    let again = bincode::encode_to_vec(&letter, ENCODING).unwrap();
    assert_eq!(Letter::decode(&again), Ok(letter));
}

const KEY: wal::Key = *b"8 bytes!";

/// The bytes as a frame of our generation with a checksum that holds.
fn sealed_frame(bytes: &[u8]) -> Vec<u8> {
    let mut frame = bytes.to_vec();
    if let Some(stored) = bytes.len().checked_sub(wal::HEADER_BYTES) {
        frame[..12].copy_from_slice(&wal::magic(KEY));
        frame[36..40].copy_from_slice(&u32::try_from(stored).unwrap().to_le_bytes());
        let sum = crc32c::crc32c(&frame[16..]);
        frame[12..16].copy_from_slice(&sum.to_le_bytes());
    }
    frame
}

fn frame(bytes: &[u8]) {
    for bytes in [bytes, &sealed_frame(bytes)] {
        let Some((header, stored)) = wal::check(bytes, KEY) else {
            continue;
        };
        assert_eq!(wal::peek(bytes, KEY), Some(header));
        assert!(header.frame_bytes() <= bytes.len() && header.frame_bytes() <= wal::FRAME_BYTES_MAX);
        assert!(header.first <= header.last() && header.last() <= header.commit_last());
        let mut payload = Vec::new();
        if wal::expand(&header, stored, &mut payload).is_err() {
            continue;
        }
        assert!(
            payload.len() <= 255 * stored.len().max(1),
            "memory is bounded by what is there"
        );
        let Ok(ranges) = wal::entries(&payload, header.count) else {
            continue;
        };
        let entries: Vec<&[u8]> = ranges.into_iter().map(|range| &payload[range]).collect();
        let bytes: usize = entries.iter().map(|entry| entry.len() + wal::ENTRY_PREFIX_BYTES).sum();
        assert_eq!((entries.len(), bytes), (usize::from(header.count), payload.len()));
        // Framed again they are the same entries.
        for lz4 in [false, true] {
            let mut found = wal::Assembled::from(header.first);
            for frame in wal::Framer::new(KEY, lz4).frames(header.first, entries.iter().copied()) {
                let (header, stored) = wal::check(&frame.bytes, KEY).unwrap();
                assert!(!matches!(
                    found.add(&header, stored),
                    wal::Added::Gap | wal::Added::Broken(_)
                ));
            }
            assert_eq!(found.take().map(|(_, entry)| entry).collect::<Vec<_>>(), entries);
        }
    }
}

/// Frames put together as they come: two bytes say how long each is.
fn chunk(bytes: &[u8]) {
    let mut found = wal::Assembled::from(1);
    let mut rest = bytes;
    while let [low, high, tail @ ..] = rest {
        let (frame, tail) = tail.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(tail.len()));
        rest = tail;
        let before = (found.expected(), found.payload.len());
        if let Some((header, stored)) = wal::check(&sealed_frame(frame), KEY) {
            let added = found.add(&header, stored);
            assert!(
                added == wal::Added::Yes || before == (found.expected(), found.payload.len()),
                "{added:?}"
            );
            assert!(found.expected() >= before.0 && found.expected() <= before.0.max(header.last() + 1));
        }
    }
    assert_eq!(found.take().count() as u64, found.expected() - found.first);
}

fn witness(bytes: &[u8]) {
    let Some(slot) = bytes.first_chunk::<{ wal::SLOT_BYTES }>() else {
        return;
    };
    let mut sealed = *slot;
    sealed[..8].copy_from_slice(b"TGWITNES");
    let sum = crc32c::crc32c(&sealed[12..]);
    sealed[8..12].copy_from_slice(&sum.to_le_bytes());
    for slot in [slot, &sealed] {
        if let Some((counter, marks)) = wal::decode_slot(slot) {
            assert!(marks.acked <= marks.committed && marks.committed < u64::MAX);
            assert_eq!(wal::encode_slot(counter, marks), slot);
        }
    }
}

fn identity(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for text in [text, &wal::seal(text.to_owned())] {
        if let Ok(id) = wal::parse_identity(text) {
            assert_eq!(wal::parse_identity(&wal::identity_text(id)), Ok(id));
        }
    }
}

fn ranges(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    assert_eq!(wal::lines(&wal::seal(text.to_owned())), Some(text));
    for lines in [wal::lines(text), Some(text)].into_iter().flatten() {
        let Ok(ranges) = wal::parse_ranges(lines) else { continue };
        assert_eq!(wal::parse_ranges(&wal::ranges_text(&ranges)).as_ref(), Ok(&ranges));
        let known = wal::joined(ranges.clone());
        assert!(
            known.windows(2).all(|two| two[0].1 + 1 < two[1].0),
            "in order and apart: {known:?}"
        );
        let (first, last) = (
            known.first().map_or(0, |range| range.0),
            known.last().map_or(0, |range| range.1),
        );
        let gaps = wal::unknown(first, last, &known);
        assert_eq!(
            gaps.len(),
            known.len().saturating_sub(1).max(usize::from(known.is_empty()))
        );
        assert!(
            ranges
                .iter()
                .all(|(first, last)| wal::unknown(*first, *last, &known).is_empty())
        );
    }
}

fn stamps(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for lines in [wal::lines(text), Some(text)].into_iter().flatten() {
        if let Ok(stamps) = wal::parse_stamps(lines) {
            assert_eq!(wal::parse_stamps(&wal::stamps_text(&stamps)), Ok(stamps));
        }
    }
}

/// The file of idempotency keys.
fn known_keys(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    if bytes.len() >= 16 {
        sealed[..8].copy_from_slice(b"TGIDKEYS");
        let sum = crc32c::crc32c(&sealed[12..]);
        sealed[8..12].copy_from_slice(&sum.to_le_bytes());
    }
    for bytes in [bytes, &sealed] {
        let checkpoint = match wal::parse_keys(bytes) {
            Ok(checkpoint) => checkpoint,
            Err(wal::KeysFault::Version(version)) => {
                assert_ne!(version, 1);
                continue;
            }
            Err(wal::KeysFault::Damaged(reason)) => {
                assert!(!reason.is_empty());
                continue;
            }
        };
        assert!(
            checkpoint.keys.len() * 52 <= bytes.len(),
            "memory is bounded by what is there"
        );
        assert!(
            checkpoint
                .keys
                .iter()
                .all(|key| key.first_seq <= key.last_seq() && key.last_seq() <= SEQUENCE_MAX)
        );
        assert_eq!(wal::parse_keys(&wal::encode_keys(&checkpoint)), Ok(checkpoint));
    }
}

fn generation(bytes: &[u8]) {
    let Ok(name) = std::str::from_utf8(bytes) else { return };
    if let Some((first, key)) = wal::parse_name(name) {
        assert_eq!(wal::parse_name(&wal::generation_name(first, key)), Some((first, key)));
    }
}

/// An offset and its metadata, as a stranger may commit them.
fn watermark(bytes: &[u8]) {
    let Some((offset, metadata)) = bytes.split_first_chunk() else {
        return;
    };
    let offset = i64::from_le_bytes(*offset);
    let Some(mark) = Mark::parse(offset, &String::from_utf8_lossy(metadata)) else {
        return;
    };
    for reached in [&mark.main, &mark.lane] {
        let mut before = reached.acked;
        for (first, last) in &reached.beyond {
            assert!(
                before + 1 < *first && first <= last && *last <= SEQUENCE_MAX,
                "{reached:?}"
            );
            before = *last;
        }
    }
    assert_eq!(Mark::parse(offset, &mark.metadata()), Some(mark));
}

fn item(bytes: &[u8]) {
    let Ok(item) = serde_json::from_slice::<Item>(bytes) else {
        return;
    };
    let Ok(record) = item.into_record() else { return };
    assert!(record.payload_bytes() <= bytes.len());
    let origin = record.origin.unwrap();
    assert!((1..=SEQUENCE_MAX).contains(&origin.seq));
    assert!(record.headers.iter().all(|(name, _)| !name.starts_with("tidegate-")));
    record_again(&record);
    let again = serde_json::to_vec(&Item::of_record(WalId(uuid::Uuid::nil()), 7, &record)).unwrap();
    assert_eq!(
        serde_json::from_slice::<Item>(&again).unwrap().into_record().unwrap(),
        record
    );
    // The lander knows who it is.
    let (wal, seq) = (uuid::Uuid::from_bytes(origin.wal), origin.seq);
    let headers = (wal.to_string(), seq.to_string());
    let read = landed::identity(Some(headers.0.as_bytes()), Some(headers.1.as_bytes()));
    assert_eq!(read, Some((wal, i64::try_from(seq).unwrap())));
}

/// A record as Kafka has it: `tidegate-wal` and `tidegate-seq`, a line each; then the value.
fn land(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (wal, seq, value) = (part(), part(), part());
    if let Some((wal, seq)) = landed::identity(Some(wal), Some(seq)) {
        assert!(seq >= 0);
        let text = (wal.to_string(), seq.to_string());
        assert_eq!(
            landed::identity(Some(text.0.as_bytes()), Some(text.1.as_bytes())),
            Some((wal, seq))
        );
    }
    let fields = table::Kind::ALL.map(|(name, kind)| (name.to_owned(), kind));
    for (rule, fields) in [(Rule::Any, &fields[..]), (Rule::Count(2), &[]), (Rule::Fields, &fields)] {
        let table = table::Table::new("t", fields);
        let (found, reason) = landed::check(&rule, &table, Some(value));
        assert_eq!(found.len(), fields.len());
        assert!(reason.is_none_or(|reason| reason.chars().count() <= 503 && !reason.contains(char::is_control)));
        for field in found {
            match field {
                Field::Text(text) => assert!(text.len() <= value.len() && !text.contains('\0')),
                Field::Json(text) => assert!(text.len() <= value.len() && serde_json::from_str::<Value>(&text).is_ok()),
                Field::Real(number) => assert!(number.is_finite()),
                Field::Timestamp(text) => assert!(text.parse::<jiff::Timestamp>().is_ok() && text.len() == 27),
                Field::Null | Field::Integer(_) | Field::Boolean(_) => {}
            }
        }
    }
}

/// A size and a time.
fn value(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let sizes = 10..=1 << 40;
    if let Ok(size) = config::parse_size(text, &sizes) {
        assert!(sizes.contains(&size));
        assert_eq!(config::parse_size(&size.to_string(), &sizes), Ok(size));
    }
    let times = Duration::from_millis(5)..=Duration::from_secs(1 << 30);
    if let Ok(time) = config::parse_time(text, &times) {
        assert!(times.contains(&time));
        assert_eq!(
            config::parse_time(&humantime::format_duration(time).to_string(), &times),
            Ok(time)
        );
    }
}

/// An operator's file.
fn api_keys(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(again) = keys::rewritten(text) {
        assert_eq!(keys::rewritten(&again).as_deref(), Some(again.as_str()));
    }
}

fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match config::Config::of_text(text) {
        Ok(config) => {
            assert!(config.wal.generation_bytes >= 1 << 20 && config.http.body_bytes_max <= 32 << 20);
            drop(config.validate(config::Broker::Configured));
            drop(config.validate_land(false));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

#[cfg(test)]
mod tests;
