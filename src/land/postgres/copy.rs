//! Rows in the text format of COPY: columns between tabs, rows between newlines, `\N` for NULL, and a backslash
//! before what would be one of these (PostgreSQL's documentation, "COPY", "Text Format").

use std::io::Write as _;
use std::pin::pin;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio_postgres::{CopyInSink, Transaction};

use super::fault::Fault;
use super::schema::Schema;
use crate::land::row::{Field, Row, as_text};

/// What is handed to the connection at once.
const PIECE_BYTES: usize = 64 << 10;

/// Copies rows into a table; gives how many the table took.
pub(super) async fn copy(
    transaction: &Transaction<'_>,
    schema: &Schema,
    into: &str,
    topic: &str,
    rows: &[Row],
) -> Result<u64, Fault> {
    let mut text = Vec::with_capacity(rows.iter().map(|row| row.bytes() + 64).sum());
    for row in rows {
        line(&mut text, topic, row);
    }
    let statement = format!("COPY {into} ({}) FROM STDIN", schema.columns);
    let sink: CopyInSink<Bytes> = transaction.copy_in(&statement).await?;
    let mut sink = pin!(sink);
    let mut text = Bytes::from(text);
    while !text.is_empty() {
        // In pieces, so that one that arrives is a sign of life.
        let piece = text.split_to(text.len().min(PIECE_BYTES));
        if sink.send(piece).await.is_err() {
            // Why comes with finish().
            break;
        }
    }
    Ok(sink.finish().await?)
}

/// One row, in the order of [`Schema::columns`].
fn line(into: &mut Vec<u8>, topic: &str, row: &Row) {
    let mut column = Columns { into, first: true };
    column.text(Some(row.wal.as_bytes()));
    column.plain(&row.seq);
    column.text(Some(topic.as_bytes()));
    column.plain(&row.partition);
    column.plain(&row.offset);
    let (key, value) = (row.key.as_deref(), row.value.as_deref());
    column.text(key.filter(|key| as_text(key).is_some()));
    match row.received_ms.and_then(|ms| u64::try_from(ms).ok()) {
        Some(ms) => column.plain(&humantime::format_rfc3339_millis(
            UNIX_EPOCH + Duration::from_millis(ms),
        )),
        None => column.text(None),
    }
    column.plain(&row.valid());
    column.text(row.reason.as_deref().map(str::as_bytes));
    column.text(value.filter(|value| as_text(value).is_some()));
    column.bytes(value.filter(|value| as_text(value).is_none()));
    column.bytes(key.filter(|key| as_text(key).is_none()));
    for field in &row.fields {
        match field {
            Field::Null => column.text(None),
            Field::Text(text) | Field::Timestamp(text) | Field::Json(text) => column.text(Some(text.as_bytes())),
            Field::Integer(number) => column.plain(number),
            Field::Real(number) => column.plain(number),
            Field::Boolean(yes) => column.plain(yes),
        }
    }
    into.push(b'\n');
}

struct Columns<'a> {
    into: &'a mut Vec<u8>,
    first: bool,
}

impl Columns<'_> {
    fn begin(&mut self) {
        if !std::mem::replace(&mut self.first, false) {
            self.into.push(b'\t');
        }
    }

    /// What has none of the format's own characters.
    fn plain(&mut self, value: &dyn std::fmt::Display) {
        self.begin();
        // Writing to a Vec cannot fail.
        write!(self.into, "{value}").unwrap_or_default();
    }

    fn text(&mut self, text: Option<&[u8]>) {
        self.begin();
        let Some(text) = text else {
            self.into.extend_from_slice(b"\\N");
            return;
        };
        for byte in text {
            match byte {
                b'\\' => self.into.extend_from_slice(b"\\\\"),
                b'\t' => self.into.extend_from_slice(b"\\t"),
                b'\n' => self.into.extend_from_slice(b"\\n"),
                b'\r' => self.into.extend_from_slice(b"\\r"),
                byte => self.into.push(*byte),
            }
        }
    }

    /// bytea's hex format, its backslash doubled for COPY.
    fn bytes(&mut self, bytes: Option<&[u8]>) {
        let Some(bytes) = bytes else {
            self.text(None);
            return;
        };
        self.begin();
        self.into.extend_from_slice(b"\\\\x");
        for byte in bytes {
            write!(self.into, "{byte:02x}").unwrap_or_default();
        }
    }
}
