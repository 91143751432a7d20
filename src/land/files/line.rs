//! A row as a line of JSON: the columns of its table as members, in their order.
//!
//! A key or value that is no UTF-8 is in `key_base64` or `value_base64` instead. A declared JSON field is its JSON, with
//! its line breaks as spaces (within a JSON string they cannot stand unescaped). Does not know files.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::land::row::{Batch, Field, Rejected, Row};
use crate::land::table::Table;

/// Appends a row of its table.
pub(super) fn row(into: &mut Vec<u8>, table: &Table, topic: &str, row: &Row) {
    let mut line = Line::begin(into);
    line.text("wal", &row.wal);
    line.plain("seq", row.seq);
    line.text("kafka_topic", topic);
    line.plain("kafka_partition", row.partition);
    line.plain("kafka_offset", row.offset);
    line.bytes("key", row.key.as_deref());
    line.time("received_at", row.received_ms);
    line.plain("valid", row.valid());
    line.maybe("reason", row.reason.as_deref());
    line.bytes("value", row.value.as_deref());
    for (column, field) in table.columns.iter().zip(&row.fields) {
        let name = &column.name;
        match field {
            Field::Null => line.plain(name, "null"),
            Field::Text(text) | Field::Timestamp(text) => line.text(name, text),
            Field::Integer(number) => line.plain(name, number),
            // The shortest text that is read back as the same number, such as 1.0 and 5e-324.
            Field::Real(number) => line.plain(name, serde_json::Value::from(*number)),
            Field::Boolean(yes) => line.plain(name, yes),
            Field::Json(json) => line.plain(name, json.replace(['\n', '\r'], " ")),
        }
    }
    line.end();
}

/// Appends a row that its table does not take.
pub(super) fn rejected(into: &mut Vec<u8>, batch: &Batch, rejected: &Rejected, at_ms: i64) {
    let row = &rejected.row;
    let place = batch.moves.iter().find(|place| place.partition == row.partition);
    let mut line = Line::begin(into);
    line.time("at", Some(at_ms));
    line.text("kind", rejected.kind.as_str());
    line.text("error", &rejected.error);
    line.text("wal", &row.wal);
    line.plain("seq", row.seq);
    line.text("kafka_cluster", &batch.cluster);
    line.text("kafka_topic", &batch.topic);
    line.plain("kafka_partition", row.partition);
    line.plain("position_epoch", place.map_or(0, |place| place.epoch));
    line.plain("kafka_offset", row.offset);
    line.bytes("key", row.key.as_deref());
    line.time("received_at", row.received_ms);
    line.bytes("value", row.value.as_deref());
    line.end();
}

struct Line<'a> {
    into: &'a mut Vec<u8>,
    next: u8,
}

impl<'a> Line<'a> {
    fn begin(into: &'a mut Vec<u8>) -> Self {
        Self { into, next: b'{' }
    }

    fn end(self) {
        self.into.extend_from_slice(b"}\n");
    }

    fn name(&mut self, name: &str) {
        self.into.push(std::mem::replace(&mut self.next, b','));
        self.string(name);
        self.into.push(b':');
    }

    /// What is JSON as it is.
    fn plain(&mut self, name: &str, value: impl std::fmt::Display) {
        use std::io::Write as _;
        self.name(name);
        // Writing to a Vec cannot fail.
        write!(self.into, "{value}").unwrap_or_default();
    }

    fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        self.string(text);
    }

    fn maybe(&mut self, name: &str, text: Option<&str>) {
        match text {
            Some(text) => self.text(name, text),
            None => self.plain(name, "null"),
        }
    }

    fn bytes(&mut self, name: &str, bytes: Option<&[u8]>) {
        match bytes.map(std::str::from_utf8) {
            None => self.plain(name, "null"),
            Some(Ok(text)) => self.text(name, text),
            Some(Err(_)) => self.text(&format!("{name}_base64"), &STANDARD.encode(bytes.unwrap_or_default())),
        }
    }

    /// RFC 3339, UTC, milliseconds.
    fn time(&mut self, name: &str, ms: Option<i64>) {
        match ms.and_then(|ms| u64::try_from(ms).ok()) {
            Some(ms) => self.plain(
                name,
                format_args!(
                    "\"{}\"",
                    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms))
                ),
            ),
            None => self.plain(name, "null"),
        }
    }

    fn string(&mut self, text: &str) {
        // A text is always JSON, and a Vec takes everything.
        serde_json::to_writer(&mut *self.into, text).unwrap_or_default();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::land::table::Kind;

    #[test]
    fn a_line_is_json_with_the_columns_of_its_table() {
        let table = Table::new(
            "t",
            &["a b", "n", "r", "yes", "json"].map(|name| {
                let kind = match name {
                    "n" => Kind::Integer,
                    "r" => Kind::Real,
                    "yes" => Kind::Boolean,
                    "json" => Kind::Json,
                    _ => Kind::Text,
                };
                (name.to_owned(), kind)
            }),
        );
        let row_ = Row {
            wal: "w".into(),
            seq: 7,
            partition: 1,
            offset: 9,
            key: Some(b"\xff".to_vec()),
            received_ms: Some(1_700_000_000_123),
            reason: Some("a \"reason\"\nof two lines".to_owned()),
            value: Some("\0\t\u{1f600}".as_bytes().to_vec()),
            fields: vec![
                Field::Text("\\N".to_owned()),
                Field::Integer(i64::MIN),
                Field::Real(-0.0),
                Field::Boolean(true),
                Field::Json("{\n\"a\": [1,\r\n2]}".to_owned()),
            ],
        };
        let mut line = Vec::new();
        row(&mut line, &table, "topic", &row_);
        let text = String::from_utf8(line).unwrap();
        assert_eq!(
            text,
            "{\"wal\":\"w\",\"seq\":7,\"kafka_topic\":\"topic\",\"kafka_partition\":1,\"kafka_offset\":9,\"key_base64\":\"/w==\",\
             \"received_at\":\"2023-11-14T22:13:20.123Z\",\"valid\":false,\"reason\":\"a \\\"reason\\\"\\nof two lines\",\
             \"value\":\"\\u0000\\t\u{1f600}\",\"a b\":\"\\\\N\",\"n\":-9223372036854775808,\"r\":-0.0,\"yes\":true,\
             \"json\":{ \"a\": [1,  2]}}\n"
        );
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
    }
}
