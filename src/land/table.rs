//! A table as every sink has it: its name, its views, its columns.
//!
//! Fixed columns first, then the source's declared fields. Names are compared without regard to case, so that
//! SQLite and PostgreSQL end up with the same columns.

use std::collections::HashSet;

/// Columns that every table has, in this order. (PostgreSQL has `key_bytes` and `value_bytes` behind them, for what
/// a text column cannot hold; SQLite keeps such bytes as a BLOB in `key` and `value`.)
pub const COLUMNS: [&str; 10] = [
    "wal",
    "seq",
    "kafka_topic",
    "kafka_partition",
    "kafka_offset",
    "key",
    "received_at",
    "valid",
    "reason",
    "value",
];

/// Names that a declared field cannot have: the fixed columns, those that only PostgreSQL has, and PostgreSQL's
/// system columns.
const TAKEN: [&str; 11] = [
    "key_bytes",
    "key_base64",
    "value_bytes",
    "value_base64",
    "tableoid",
    "ctid",
    "xmin",
    "xmax",
    "cmin",
    "cmax",
    "oid",
];

/// Where rows go that no table takes.
pub const REJECTED: &str = "rejected";
/// Where positions are kept.
pub const POSITIONS: &str = "tidegate_positions";
/// What the lander keeps about its tables: their version.
pub const META: &str = "tidegate_lander";
/// The version of the tables' layout, in [`META`].
pub const SCHEMA_VERSION: i64 = 1;
/// The longest name of a table, a view or a column, in bytes (PostgreSQL's NAMEDATALEN - 1).
pub const NAME_BYTES_MAX: usize = 63;

/// What a declared field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// A JSON string's text; any other JSON as it was written.
    #[default]
    Text,
    /// 64 bits, signed.
    Integer,
    /// A finite double.
    Real,
    /// Yes or no.
    Boolean,
    /// A point in time.
    Timestamp,
    /// Any JSON.
    Json,
}

impl Kind {
    /// Every kind, by the name that the configuration has for it.
    pub const ALL: [(&'static str, Self); 6] = [
        ("text", Self::Text),
        ("integer", Self::Integer),
        ("real", Self::Real),
        ("boolean", Self::Boolean),
        ("timestamp", Self::Timestamp),
        ("json", Self::Json),
    ];

    /// Its name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("text", |(name, _)| name)
    }
}

/// A declared field and its column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The member's name in the JSON object.
    pub field: String,
    /// The column's name: the field's, with `_field` behind it where that is taken.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
}

/// A source's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The source's name.
    pub name: String,
    /// The declared fields, in their order.
    pub columns: Vec<Column>,
}

impl Table {
    /// The table of the source `name` with these declared fields.
    #[must_use]
    pub fn new(name: &str, fields: &[(String, Kind)]) -> Self {
        let fixed = COLUMNS.iter().chain(&TAKEN).map(|name| (*name).to_owned());
        let mut taken: HashSet<String> = fixed.collect();
        let columns = fields.iter().map(|(field, kind)| {
            let mut name = field.clone();
            while !taken.insert(name.to_lowercase()) {
                name.push_str("_field");
            }
            Column {
                field: field.clone(),
                name,
                kind: *kind,
            }
        });
        Self {
            name: name.to_owned(),
            columns: columns.collect(),
        }
    }

    /// The view of its valid rows.
    #[must_use]
    pub fn valid_view(&self) -> String {
        format!("{}_valid", self.name)
    }

    /// The view of its invalid rows.
    #[must_use]
    pub fn invalid_view(&self) -> String {
        format!("{}_invalid", self.name)
    }
}

/// A name as SQL has it, whatever is in it.
#[must_use]
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_collides_gets_a_name_of_its_own() {
        let fields = ["value", "Amount", "amount", "ctid", "value_field"].map(|name| (name.to_owned(), Kind::Text));
        let table = Table::new("t", &fields);
        let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "value_field",
                "Amount",
                "amount_field",
                "ctid_field",
                "value_field_field"
            ]
        );
        assert_eq!(table.columns[2].field, "amount");
    }
}
