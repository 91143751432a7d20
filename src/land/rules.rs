//! What a source demands of a record, and its declared fields as columns take them.
//!
//! Whatever the bytes are there is an answer, in memory bounded by a small multiple of theirs: members of the
//! object are found without going into them (so nesting costs nothing), and only a field declared as JSON is parsed
//! whole, with serde_json's limit of 128 levels. Knows no sink; what comes out suits all of them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Rule;
use super::row::Field;
use super::table::{Column, Kind, Table};

/// The longest reason, in characters, and how much of a value or name one shows.
const REASON_CHARACTERS_MAX: usize = 500;
const SHOWN_CHARACTERS_MAX: usize = 40;
/// The most names that one reason lists.
const NAMES_MAX: usize = 5;

/// The declared fields of a value (one for each column of the table), and why it breaks the rule, if it does.
pub(crate) fn check(rule: &Rule, table: &Table, value: Option<&[u8]>) -> (Vec<Field>, Option<String>) {
    let nothing = || table.columns.iter().map(|_| Field::Null).collect();
    if *rule == Rule::Any && table.columns.is_empty() {
        return (Vec::new(), None);
    }
    let Some(value) = value else {
        return (nothing(), Some("no value (a tombstone)".to_owned()));
    };
    let Ok(Members(members)) = serde_json::from_slice::<Members<'_>>(value) else {
        return (nothing(), Some("not a JSON object".to_owned()));
    };
    let mut reasons = Vec::new();
    match rule {
        Rule::Any => {}
        Rule::Count(expected) => {
            let got = members.len();
            if got != *expected {
                let word = if *expected == 1 { "field" } else { "fields" };
                reasons.push(format!("expected {expected} {word}, got {got}"));
            }
        }
        Rule::Fields => names(table, &members, &mut reasons),
    }
    let fields = table
        .columns
        .iter()
        .map(|column| {
            members.get(column.field.as_str()).map_or(Field::Null, |raw| {
                field(column, raw.get()).unwrap_or_else(|reason| {
                    reasons.push(reason);
                    Field::Null
                })
            })
        })
        .collect();
    let reason = (!reasons.is_empty()).then(|| shortened(&reasons.join("; "), REASON_CHARACTERS_MAX));
    (fields, reason)
}

/// The members of a JSON object, unparsed. Of two with one name the last counts, as JSON parsers have it.
struct Members<'a>(HashMap<Cow<'a, str>, &'a RawValue>);

impl<'de> serde::Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = HashMap::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    members.insert(name, value);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A member's name, borrowed where it has no escapes. (serde's own Cow is always owned.)
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Which declared fields are missing, and which members nobody declared.
fn names(table: &Table, members: &HashMap<Cow<'_, str>, &RawValue>, reasons: &mut Vec<String>) {
    let missing: Vec<&str> = table
        .columns
        .iter()
        .map(|column| column.field.as_str())
        .filter(|field| !members.contains_key(*field))
        .collect();
    if !missing.is_empty() {
        reasons.push(format!("missing {}", listed(&missing)));
    }
    if members.len() + missing.len() > table.columns.len() {
        let mut unexpected: Vec<&str> = members
            .keys()
            .map(AsRef::as_ref)
            .filter(|name| !table.columns.iter().any(|column| column.field == *name))
            .collect();
        unexpected.sort_unstable();
        reasons.push(format!("unexpected {}", listed(&unexpected)));
    }
}

fn listed(names: &[&str]) -> String {
    let word = if names.len() == 1 { "field" } else { "fields" };
    let shown: Vec<String> = names
        .iter()
        .take(NAMES_MAX)
        .map(|name| shortened(name, SHOWN_CHARACTERS_MAX))
        .collect();
    let more = match names.len().saturating_sub(NAMES_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{word} {}{more}", shown.join(", "))
}

/// One member as its column takes it.
fn field(column: &Column, raw: &str) -> Result<Field, String> {
    if raw == "null" {
        return Ok(Field::Null);
    }
    let wrong = |what: &str| {
        let (name, shown) = (
            shortened(&column.name, SHOWN_CHARACTERS_MAX),
            shortened(raw, SHOWN_CHARACTERS_MAX),
        );
        format!("field {name} {what}: {shown}")
    };
    // A form's values are all texts: what a number's text says is as good as the number.
    let text: Option<String> = if raw.starts_with('"') {
        let text = serde_json::from_str(raw).map_err(|_| wrong("is no text that can be read"))?;
        Some(text)
    } else {
        None
    };
    let bare = text.as_deref().unwrap_or(raw).trim();
    match column.kind {
        Kind::Text => {
            let text = text.unwrap_or_else(|| raw.to_owned());
            if text.contains('\0') {
                return Err(wrong("has a NUL, which no text column can hold"));
            }
            Ok(Field::Text(text))
        }
        Kind::Integer => bare
            .parse()
            .map(Field::Integer)
            .map_err(|_| wrong("is not an integer of 64 bits")),
        Kind::Real => match bare.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Field::Real(number)),
            _ => Err(wrong("is not a finite number")),
        },
        Kind::Boolean => match bare.to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(Field::Boolean(true)),
            "false" | "0" => Ok(Field::Boolean(false)),
            _ => Err(wrong("is not true or false")),
        },
        Kind::Timestamp => text
            .as_deref()
            .and_then(timestamp)
            .map(Field::Timestamp)
            .ok_or_else(|| wrong("is not a time with its offset, such as \"2026-11-24T07:30:00Z\"")),
        Kind::Json => match serde_json::from_str::<serde_json::Value>(raw) {
            Ok(value) if !has_nul(&value) => Ok(Field::Json(raw.to_owned())),
            Ok(_) => Err(wrong("has a NUL, which no JSON column can hold")),
            Err(_) => Err(wrong(
                "is JSON that no column can hold (nesting, or a number out of range)",
            )),
        },
    }
}

/// RFC 3339 in, RFC 3339 in UTC with microseconds out; the years 1 to 9999.
fn timestamp(text: &str) -> Option<String> {
    let time: jiff::Timestamp = text.trim().parse().ok()?;
    let text = time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    // Years before 1 begin with a sign.
    (text.len() == "2026-11-24T07:30:00.000000Z".len() && !text.starts_with("0000")).then_some(text)
}

fn has_nul(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains('\0'),
        serde_json::Value::Array(items) => items.iter().any(has_nul),
        serde_json::Value::Object(members) => members
            .iter()
            .any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

/// At most `max` characters, without control characters.
fn shortened(text: &str, max: usize) -> String {
    let mut short = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == max {
            short.push_str("...");
            break;
        }
        short.push(if c.is_control() { ' ' } else { c });
    }
    short
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn table(fields: &[(&str, Kind)]) -> Table {
        let fields: Vec<(String, Kind)> = fields.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
        Table::new("t", &fields)
    }

    fn reason(rule: &Rule, table: &Table, value: &str) -> Option<String> {
        check(rule, table, Some(value.as_bytes())).1
    }

    #[test]
    fn a_count_is_of_distinct_members() {
        let none = table(&[]);
        assert_eq!(reason(&Rule::Count(2), &none, r#"{"a":1,"b":{"c":[1,2]}}"#), None);
        let wrong = |value: &str| reason(&Rule::Count(4), &none, value).unwrap();
        assert_eq!(wrong(r#"{"a":1,"b":2,"c":3}"#), "expected 4 fields, got 3");
        assert_eq!(wrong(r#"{"a":1,"a":2,"c":3,"d":4}"#), "expected 4 fields, got 3");
        assert_eq!(wrong("{}"), "expected 4 fields, got 0");
    }

    #[test]
    fn what_is_no_object_says_so_and_never_stops_anything() {
        let none = table(&[]);
        let deep = "[".repeat(1_000_000);
        let deep_object = "{\"a\":".repeat(300_000);
        for value in [
            "",
            "x",
            "[1]",
            "\"a\"",
            "1",
            "{",
            "{\"a\":1}x",
            "{\"a\0\":1}",
            &deep,
            &deep_object,
        ] {
            assert_eq!(
                reason(&Rule::Count(1), &none, value).as_deref(),
                Some("not a JSON object"),
                "{}",
                &value[..value.len().min(20)]
            );
        }
        assert_eq!(
            check(&Rule::Count(1), &none, Some(b"\xff{}")).1.as_deref(),
            Some("not a JSON object")
        );
        assert_eq!(
            check(&Rule::Count(1), &none, None).1.as_deref(),
            Some("no value (a tombstone)")
        );
        // Nesting within a member is nobody's business.
        let nested = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(reason(&Rule::Count(1), &none, &nested), None);
    }

    #[test]
    fn a_source_without_a_rule_takes_anything() {
        for value in [None, Some(b"\xff".as_slice()), Some(b"")] {
            assert_eq!(check(&Rule::Any, &table(&[]), value), (vec![], None));
        }
    }

    #[test]
    fn names_that_are_missing_or_unexpected_are_told() {
        let ab = table(&[("a", Kind::Text), ("b", Kind::Text)]);
        assert_eq!(reason(&Rule::Fields, &ab, r#"{"b":"x","a":"y"}"#), None);
        assert_eq!(reason(&Rule::Fields, &ab, r#"{"b":1}"#).unwrap(), "missing field a");
        assert_eq!(
            reason(&Rule::Fields, &ab, r#"{"a":1,"z":2,"y":3}"#).unwrap(),
            "missing field b; unexpected fields y, z"
        );
        let (fields, _) = check(&Rule::Fields, &ab, Some(br#"{"b":[1, 2],"z":1}"#));
        assert_eq!(fields, [Field::Null, Field::Text("[1, 2]".into())]);
    }

    #[test]
    fn each_kind_takes_what_fits_it_as_value_and_as_text() {
        let of = |kind, raw: &str| {
            let table = table(&[("f", kind)]);
            let (mut fields, reason) = check(&Rule::Fields, &table, Some(format!("{{\"f\":{raw}}}").as_bytes()));
            assert_eq!(fields.len(), 1);
            reason.map_or_else(|| Ok(fields.remove(0)), Err)
        };
        assert_eq!(of(Kind::Text, r#""a\u00e9\n""#), Ok(Field::Text("aé\n".into())));
        assert_eq!(of(Kind::Text, "1.50"), Ok(Field::Text("1.50".into())));
        assert!(of(Kind::Text, r#""a\u0000""#).unwrap_err().contains("NUL"));
        assert!(of(Kind::Text, r#""\ud800""#).is_err());
        assert_eq!(of(Kind::Integer, "-7"), Ok(Field::Integer(-7)));
        assert_eq!(of(Kind::Integer, "\" 7 \""), Ok(Field::Integer(7)));
        assert_eq!(
            of(Kind::Integer, "7.5").unwrap_err(),
            "field f is not an integer of 64 bits: 7.5"
        );
        assert!(of(Kind::Integer, "9223372036854775808").is_err());
        assert_eq!(of(Kind::Real, "\"12.5\""), Ok(Field::Real(12.5)));
        assert!(of(Kind::Real, "\"NaN\"").is_err() && of(Kind::Real, "1e999").is_err());
        assert_eq!(of(Kind::Boolean, "true"), Ok(Field::Boolean(true)));
        assert_eq!(of(Kind::Boolean, "\"0\""), Ok(Field::Boolean(false)));
        assert!(of(Kind::Boolean, "2").is_err());
        assert_eq!(
            of(Kind::Timestamp, "\"2026-11-24T08:30:00.5+01:00\""),
            Ok(Field::Timestamp("2026-11-24T07:30:00.500000Z".into()))
        );
        assert!(of(Kind::Timestamp, "\"yesterday\"").is_err() && of(Kind::Timestamp, "1").is_err());
        assert_eq!(of(Kind::Json, "{\"a\": [1]}"), Ok(Field::Json("{\"a\": [1]}".into())));
        assert!(of(Kind::Json, "[\"\\u0000\"]").is_err());
        assert!(of(Kind::Json, &format!("{}1{}", "[".repeat(200), "]".repeat(200))).is_err());
        assert!(of(Kind::Json, "1e999").is_err());
        for (_, kind) in Kind::ALL {
            assert_eq!(of(kind, "null"), Ok(Field::Null));
        }
    }
}
