//! A folder of JSON lines as a place under test. Complete files count, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use tidegate::land::files::{Folder, Rotation};
use tidegate::land::table::{Kind, Table};

use super::databases::ms;
use super::place::{Place, Process, Stored, StoredRejected, canonical};

pub struct Files {
    folder: tempfile::TempDir,
}

/// A line: its members as they are written.
struct Line(BTreeMap<String, Box<RawValue>>);

impl Files {
    fn path(&self) -> PathBuf {
        self.folder.path().join("landed")
    }

    fn lines(&self, table: &Table, part: &str) -> Vec<Line> {
        let mut lines = Vec::new();
        for entry in fs::read_dir(self.path().join(&table.name).join(part)).unwrap() {
            let path = entry.unwrap().path();
            assert!(path.to_str().unwrap().ends_with(".jsonl"), "{path:?}");
            let text = fs::read_to_string(path).unwrap();
            lines.extend(text.lines().map(|line| Line(serde_json::from_str(line).unwrap())));
        }
        lines
    }
}

impl Line {
    fn raw(&self, name: &str) -> Option<&str> {
        let text = self.0.get(name).map(|value| value.get());
        text.filter(|text| *text != "null")
    }

    fn text(&self, name: &str) -> Option<String> {
        self.raw(name).map(|text| serde_json::from_str(text).unwrap())
    }

    fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(&self, name: &str) -> T {
        self.raw(name).unwrap().parse().unwrap()
    }

    /// As text where it is UTF-8, and only where it is not as base64.
    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let encoded = self.text(&format!("{name}_base64"));
        let bytes = encoded.map(|text| STANDARD.decode(text).unwrap());
        assert!(bytes.as_ref().is_none_or(|bytes| std::str::from_utf8(bytes).is_err()));
        bytes.or_else(|| self.text(name).map(String::into_bytes))
    }

    fn field(&self, name: &str, kind: Kind) -> Option<String> {
        let text = self.raw(name)?;
        Some(match kind {
            Kind::Text | Kind::Timestamp => canonical(kind, &self.text(name)?),
            _ => canonical(kind, text),
        })
    }
}

impl Place for Files {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn process(&self) -> Process {
        // Small: many cases complete files as they go.
        let folder = Folder::new(
            &self.path(),
            Rotation {
                file_bytes_max: 4 << 10,
                file_age_max: Duration::from_secs(3600),
            },
        );
        Box::new(move |table| Box::new(folder.sink(table.clone())))
    }

    fn rows(&self, table: &Table) -> Vec<Stored> {
        let both = [("valid", true), ("invalid", false)];
        let lines = both
            .into_iter()
            .flat_map(|(part, valid)| self.lines(table, part).into_iter().map(move |line| (line, valid)));
        let stored = lines.map(|(line, valid)| {
            let fields = table.columns.iter();
            assert_eq!(line.raw("valid"), Some(if valid { "true" } else { "false" }));
            Stored {
                wal: line.text("wal").unwrap(),
                seq: line.number("seq"),
                topic: line.text("kafka_topic").unwrap(),
                partition: line.number("kafka_partition"),
                offset: line.number("kafka_offset"),
                key: line.bytes("key"),
                received_ms: ms(line.text("received_at")),
                valid,
                reason: line.text("reason"),
                value: line.bytes("value"),
                fields: fields.map(|column| line.field(&column.name, column.kind)).collect(),
            }
        });
        stored.collect()
    }

    fn rejected(&self, table: &Table) -> Vec<StoredRejected> {
        let lines = self.lines(table, "rejected").into_iter();
        let stored = lines.map(|line| StoredRejected {
            cluster: line.text("kafka_cluster").unwrap(),
            topic: line.text("kafka_topic").unwrap(),
            partition: line.number("kafka_partition"),
            epoch: line.number("position_epoch"),
            offset: line.number("kafka_offset"),
            kind: line.text("kind").unwrap(),
            error: line.text("error").unwrap(),
            wal: line.text("wal").unwrap(),
            seq: line.number("seq"),
            key: line.bytes("key"),
            received_ms: ms(line.text("received_at")),
            value: line.bytes("value"),
        });
        stored.collect()
    }

    fn settle(&self, table: &Table) {
        let place: &dyn Place = self;
        place.sink(table).close().unwrap();
    }
}
