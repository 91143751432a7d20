//! Layers over each other: the built-in file, the operator's file, the environment, flags.
//!
//! The built-in file is the schema: a key that it does not have does not exist, and the kind of its
//! value is the kind of the key. Only two places are open: `[kafka.properties]` (librdkafka's names, as
//! written) and `[[source]]` (the keys in [`SOURCE_KEYS`]). Every value keeps its origin. Wrong values do
//! not stop the reading: all problems are collected and told together. What the values mean is not known
//! here.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::unknown::unknown_source_key;
use super::value::{Kind, Origin, Problem, Value};

/// The shipped file.
pub(super) const BUILT_IN: &str = include_str!("../../config.toml");

/// What every variable of the environment that can be a key begins with.
pub(super) const VARIABLE_PREFIX: &str = "TIDEGATE_";
/// What separates a section from its key in a variable's name.
pub(super) const VARIABLE_SEPARATOR: &str = "__";

/// The keys of a `[[source]]`, in the order in which they are shown.
pub(super) const SOURCE_KEYS: &[(&str, Kind)] = &[
    ("name", Kind::Text),
    ("topic", Kind::Text),
    ("key", Kind::Text),
    ("enforce", Kind::Text),
    ("fields", Kind::List),
    ("field_count", Kind::Integer),
    ("types", Kind::List),
    ("group", Kind::Text),
    ("consumers", Kind::Integer),
];

/// A value and where it came from.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// One `[[source]]`, as written.
#[derive(Clone)]
pub(super) struct SourceTable {
    pub(super) origin: Origin,
    pub(super) entries: BTreeMap<String, Entry>,
}

impl SourceTable {
    /// Its name, or nothing while it has none.
    pub(super) fn name(&self) -> &str {
        match self.entries.get("name") {
            Some(Entry {
                value: Value::Text(name),
                ..
            }) => name,
            _ => "",
        }
    }
}

/// Every value in force.
#[derive(Clone, Default)]
pub(super) struct Layers {
    /// The operator's file, as named, if one was read.
    pub(super) file: Option<String>,
    /// "section.key", in the order of the built-in file.
    pub(super) entries: Vec<(String, Entry)>,
    /// `[kafka.properties]`.
    pub(super) properties: BTreeMap<String, Entry>,
    /// `[[source]]`.
    pub(super) sources: Vec<SourceTable>,
    pub(super) problems: Vec<Problem>,
}

/// A file that is not TOML.
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) message: String,
}

impl Layers {
    /// The shipped file: values and schema.
    pub(super) fn built_in() -> Result<Self, SyntaxError> {
        let document = parse(BUILT_IN)?;
        let mut layers = Self::default();
        let mut keys = Vec::new();
        for (section, table) in document.get_ref() {
            for (key, value) in table.get_ref().as_table().into_iter().flatten() {
                if let Some(value) = Value::from_toml(value.get_ref()) {
                    keys.push((
                        key.span().start,
                        format!("{}.{}", section.get_ref(), key.get_ref()),
                        value,
                    ));
                }
            }
        }
        keys.sort_by_key(|(position, ..)| *position);
        layers.entries = keys
            .into_iter()
            .map(|(_, key, value)| {
                let origin = Origin::BuiltIn;
                (key, Entry { value, origin })
            })
            .collect();
        layers.read_document(document.get_ref(), &|_| Origin::BuiltIn);
        Ok(layers)
    }

    /// What stands at "section.key".
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, entry)| entry)
    }

    /// Puts a file over what is there.
    pub(super) fn add_file(&mut self, file: &str, text: &str) -> Result<(), SyntaxError> {
        let document = parse(text)?;
        self.read_document(document.get_ref(), &|position| Origin::File {
            file: file.to_owned(),
            line: line_of(text, position),
        });
        Ok(())
    }

    /// Puts the variables that are keys over what is there. Others are not looked at.
    pub(super) fn add_environment(&mut self, variables: impl Iterator<Item = (OsString, OsString)>) {
        let mut variables: Vec<_> = variables
            .filter_map(|(name, value)| {
                let name = name.into_string().ok()?;
                let rest = name.strip_prefix(VARIABLE_PREFIX)?;
                let (section, key) = rest.split_once(VARIABLE_SEPARATOR)?;
                (!section.is_empty()).then(|| (name.clone(), section.to_lowercase(), key.to_owned(), value))
            })
            .collect();
        variables.sort();
        for (variable, section, key, value) in variables {
            self.add_variable(Origin::Environment(variable), &section, &key, &value);
        }
    }

    fn add_variable(&mut self, origin: Origin, section: &str, key: &str, value: &OsStr) {
        let Some(text) = value.to_str() else {
            self.problems.push(Problem::at(&origin, "its value is not UTF-8"));
            return;
        };
        match (section, key.split_once(VARIABLE_SEPARATOR)) {
            ("kafka", Some((properties, name))) if properties.eq_ignore_ascii_case("properties") => {
                let name = name.to_lowercase().replace('_', ".");
                let value = Value::Text(text.to_owned());
                self.properties.insert(name, Entry { value, origin });
            }
            ("source", Some((name, key))) => self.set_source_from_text(origin, name, &key.to_lowercase(), text),
            _ => self.set_from_text(&format!("{section}.{}", key.to_lowercase()), origin, text),
        }
    }

    /// Sets "section.key" from the text of a variable or flag.
    pub(super) fn set_from_text(&mut self, key: &str, origin: Origin, text: &str) {
        match self.entry(key).map(|entry| entry.value.kind()) {
            None => {
                let message = self.unknown_variable(key);
                self.problems.push(Problem::at(&origin, message));
            }
            Some(kind) => self.set(key, origin, Value::from_text(text, kind)),
        }
    }

    fn set_source_from_text(&mut self, origin: Origin, name: &str, key: &str, text: &str) {
        let as_variable = |name: &str| name.to_uppercase().replace(['-', '.'], "_");
        let Some((_, kind)) = SOURCE_KEYS.iter().find(|(known, _)| *known == key) else {
            self.problems.push(Problem::at(&origin, unknown_source_key(key)));
            return;
        };
        let wanted = as_variable(name);
        let Some(source) = self
            .sources
            .iter_mut()
            .find(|source| as_variable(source.name()) == wanted)
        else {
            let declared: Vec<_> = self.sources.iter().map(SourceTable::name).collect();
            let message = format!(
                "no [[source]] has the name {:?}; declared are: {}. A variable changes a declared source; declare \
                 a new one in a file.",
                name.to_lowercase(),
                declared.join(", "),
            );
            self.problems.push(Problem::at(&origin, message));
            return;
        };
        match Value::from_text(text, *kind) {
            Ok(value) => {
                source.entries.insert(key.to_owned(), Entry { value, origin });
            }
            Err(wrong) => self
                .problems
                .push(Problem::at(&origin, format!("source.{key} {wrong}"))),
        }
    }

    fn set(&mut self, key: &str, origin: Origin, value: Result<Value, String>) {
        match value {
            Ok(value) => {
                if let Some((_, entry)) = self.entries.iter_mut().find(|(name, _)| name == key) {
                    *entry = Entry { value, origin };
                }
            }
            Err(wrong) => self.problems.push(Problem::at(&origin, format!("{key} {wrong}"))),
        }
    }

    fn read_document(&mut self, document: &DeTable<'_>, origin_at: &dyn Fn(usize) -> Origin) {
        for (section, content) in document {
            let name = section.get_ref().as_ref();
            let origin = origin_at(section.span().start);
            match (name, content.get_ref()) {
                ("source", content) => self.read_sources(content, &origin, origin_at),
                (name, DeValue::Table(table)) if self.has_section(name) => self.read_section(name, table, origin_at),
                (name, _) if self.has_section(name) => {
                    let message = format!("{name} is a section: write [{name}] on a line of its own");
                    self.problems.push(Problem::at(&origin, message));
                }
                (name, _) => {
                    let message = self.unknown_section(name);
                    self.problems.push(Problem::at(&origin, message));
                }
            }
        }
    }

    fn read_section(&mut self, section: &str, table: &DeTable<'_>, origin_at: &dyn Fn(usize) -> Origin) {
        for (key, value) in table {
            let origin = origin_at(key.span().start);
            let full = format!("{section}.{}", key.get_ref());
            match (self.entry(&full).map(|entry| entry.value.kind()), value.get_ref()) {
                (None, DeValue::Table(properties)) if full == "kafka.properties" => {
                    self.read_properties("", properties, origin_at);
                }
                (None, _) => {
                    let message = self.unknown_key(&full);
                    self.problems.push(Problem::at(&origin, message));
                }
                (Some(kind), value) => {
                    let value = kind.read(value);
                    self.set(&full, origin, value);
                }
            }
        }
    }

    /// `a.b = "x"` without quotes around the name is a table in a table to TOML: the names are joined.
    fn read_properties(&mut self, prefix: &str, table: &DeTable<'_>, origin_at: &dyn Fn(usize) -> Origin) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let origin = origin_at(key.span().start);
            let text = match value.get_ref() {
                DeValue::Table(inner) => {
                    self.read_properties(&format!("{name}."), inner, origin_at);
                    continue;
                }
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(integer) => integer.to_string(),
                DeValue::Float(float) => float.to_string(),
                DeValue::Boolean(boolean) => boolean.to_string(),
                _ => {
                    let message = format!("kafka.properties {name:?} must be a text, a number, or true or false");
                    self.problems.push(Problem::at(&origin, message));
                    continue;
                }
            };
            let value = Value::Text(text);
            self.properties.insert(name, Entry { value, origin });
        }
    }

    /// A file's sources replace all that were there.
    fn read_sources(&mut self, content: &DeValue<'_>, origin: &Origin, origin_at: &dyn Fn(usize) -> Origin) {
        let tables: Option<Vec<_>> = content
            .as_array()
            .and_then(|array| array.iter().map(as_spanned_table).collect());
        let Some(tables) = tables else {
            let message = "a source is written [[source]], with two brackets, and its keys on the lines below";
            self.problems.push(Problem::at(origin, message));
            return;
        };
        self.sources.clear();
        for (position, table) in tables {
            let mut entries = BTreeMap::new();
            for (key, value) in table {
                let origin = origin_at(key.span().start);
                let key = key.get_ref().as_ref();
                let Some((_, kind)) = SOURCE_KEYS.iter().find(|(known, _)| *known == key) else {
                    self.problems.push(Problem::at(&origin, unknown_source_key(key)));
                    continue;
                };
                match kind.read(value.get_ref()) {
                    Ok(value) => {
                        entries.insert(key.to_owned(), Entry { value, origin });
                    }
                    Err(wrong) => self
                        .problems
                        .push(Problem::at(&origin, format!("source.{key} {wrong}"))),
                }
            }
            let origin = origin_at(position);
            self.sources.push(SourceTable { origin, entries });
        }
    }
}

impl Kind {
    /// A TOML value as this kind.
    fn read(self, value: &DeValue<'_>) -> Result<Value, String> {
        Value::from_toml(value)
            .ok_or_else(|| self.wrong())
            .and_then(|value| value.into_kind(self))
    }
}

fn as_spanned_table<'a, 'i>(value: &'a Spanned<DeValue<'i>>) -> Option<(usize, &'a DeTable<'i>)> {
    value.get_ref().as_table().map(|table| (value.span().start, table))
}

/// The line, from 1, of a byte position.
fn line_of(text: &str, position: usize) -> usize {
    1 + text.bytes().take(position).filter(|byte| *byte == b'\n').count()
}

fn parse(text: &str) -> Result<Spanned<DeTable<'_>>, SyntaxError> {
    // The error's own text shows the source line, which may hold a secret: its message alone does not.
    DeTable::parse(text).map_err(|error| SyntaxError {
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })
}
