//! One value of the configuration, where it came from, and what is wrong with it.
//!
//! Kinds are few on purpose: text, whole number, yes/no, list of texts. Sizes and durations are text
//! here; `read.rs` gives them their meaning. Knows no key.

use std::fmt;

use toml::de::DeValue;

/// Where a value came from; what every message and `config show` name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The shipped file, embedded in the program.
    BuiltIn,
    /// A line (from 1) of a file.
    File {
        /// The file as it was named.
        file: String,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A command line flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::File { file, line } => write!(f, "{file}:{line}"),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// One thing that is wrong: where, what, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the value stands; none when something is missing altogether.
    pub origin: Option<Origin>,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// Something wrong at `origin`.
    pub(super) fn at(origin: &Origin, message: impl Into<String>) -> Self {
        Self {
            origin: Some(origin.clone()),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{origin}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// The kinds of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    Boolean,
    List,
}

impl Kind {
    /// What to say of a value of another kind. (Not the value: it may be a secret.)
    pub(super) fn wrong(self) -> String {
        let right = match self {
            Self::Text => "a text in quotes, such as \"...\"",
            Self::Integer => "a whole number without quotes, such as 100",
            Self::Boolean => "true or false, without quotes",
            Self::List => "a list of texts, such as [\"a\", \"b\"]",
        };
        format!("is of the wrong kind: write {right}")
    }
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<String>),
}

impl Value {
    /// Its kind.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Text(_) => Kind::Text,
            Self::Integer(_) => Kind::Integer,
            Self::Boolean(_) => Kind::Boolean,
            Self::List(_) => Kind::List,
        }
    }

    /// A TOML value as it stands; none when it is of no kind that the configuration has.
    pub(super) fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        match value {
            DeValue::String(text) => Some(Self::Text(text.to_string())),
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
                .ok()
                .map(Self::Integer),
            DeValue::Boolean(boolean) => Some(Self::Boolean(*boolean)),
            DeValue::Array(array) => array
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
                .map(Self::List),
            _ => None,
        }
    }

    /// As `kind`, if it can be: a whole number is taken for a text too (a size in bytes).
    pub(super) fn into_kind(self, kind: Kind) -> Result<Self, String> {
        match (kind, self) {
            (Kind::Text, Self::Integer(integer)) => Ok(Self::Text(integer.to_string())),
            (_, value) if value.kind() == kind => Ok(value),
            _ => Err(kind.wrong()),
        }
    }

    /// What an environment variable or a flag holds, as `kind`.
    pub(super) fn from_text(text: &str, kind: Kind) -> Result<Self, String> {
        match kind {
            Kind::Text => Ok(Self::Text(text.to_owned())),
            Kind::Integer => text.trim().parse().map(Self::Integer).map_err(|_| kind.wrong()),
            Kind::Boolean => text.trim().parse().map(Self::Boolean).map_err(|_| kind.wrong()),
            Kind::List => Ok(Self::List(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(str::to_owned)
                    .collect(),
            )),
        }
    }
}

/// As TOML.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => toml::Value::String(text.clone()).fmt(f),
            Self::Integer(integer) => integer.fmt(f),
            Self::Boolean(boolean) => boolean.fmt(f),
            Self::List(items) => toml::Value::Array(items.iter().cloned().map(toml::Value::String).collect()).fmt(f),
        }
    }
}
