//! The effective configuration, as TOML that can be used as a file again, or as JSON lines; each value
//! with where it came from. Secrets are not in it.

use std::fmt;

use super::Config;
use super::layers::{Entry, SOURCE_KEYS};
use super::secret::{REDACTED, is_secret};
use super::value::Value;

/// The keys outside `[kafka.properties]` whose values are secrets.
const SECRET_KEYS: &[&str] = &["admin.token", "land.url"];

/// One value, ready to be printed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Shown {
    /// "section.key", "kafka.properties.NAME" or "source.NAME.KEY".
    pub key: String,
    /// The value, or `"[redacted]"`.
    pub value: serde_json::Value,
    /// Where it came from.
    pub from: String,
}

impl Config {
    /// Every value in force, in the order of the shipped file.
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        let plain = self.layers.entries.iter().map(|(key, entry)| {
            let secret = SECRET_KEYS.contains(&key.as_str());
            json(key.clone(), entry, secret)
        });
        let properties = self.layers.properties.iter().map(|(name, entry)| {
            let secret = is_secret(name);
            json(format!("kafka.properties.{name}"), entry, secret)
        });
        let sources = self.layers.sources.iter().flat_map(|source| {
            SOURCE_KEYS.iter().filter_map(|(key, _)| {
                let entry = source.entries.get(*key)?;
                Some(json(format!("source.{}.{key}", source.name()), entry, false))
            })
        });
        plain.chain(properties).chain(sources).collect()
    }

    /// As TOML, a comment behind each value.
    #[must_use]
    pub fn to_toml(&self) -> Toml<'_> {
        Toml(self)
    }
}

fn json(key: String, entry: &Entry, secret: bool) -> Shown {
    let value = match shown(entry, secret) {
        Value::Text(text) => text.into(),
        Value::Integer(integer) => integer.into(),
        Value::Boolean(boolean) => boolean.into(),
        Value::List(items) => items.into(),
    };
    let from = entry.origin.to_string();
    Shown { key, value, from }
}

/// What may be seen of a value.
fn shown(entry: &Entry, secret: bool) -> Value {
    let empty = entry.value == Value::Text(String::new());
    if secret && !empty {
        Value::Text(REDACTED.to_owned())
    } else {
        entry.value.clone()
    }
}

/// Prints a configuration as TOML.
pub struct Toml<'a>(&'a Config);

impl fmt::Display for Toml<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = &self.0.layers;
        let mut section = "";
        for (key, entry) in &layers.entries {
            let (this, name) = key.split_once('.').unwrap_or(("", key));
            if this != section {
                // The table of properties ends the section that it belongs to.
                if section == "kafka" {
                    self.properties(f)?;
                }
                let blank = if section.is_empty() { "" } else { "\n" };
                writeln!(f, "{blank}[{this}]")?;
                section = this;
            }
            line(f, name, entry, SECRET_KEYS.contains(&key.as_str()))?;
        }
        for source in &layers.sources {
            writeln!(f, "\n[[source]]")?;
            for (key, _) in SOURCE_KEYS {
                if let Some(entry) = source.entries.get(*key) {
                    line(f, key, entry, false)?;
                }
            }
        }
        Ok(())
    }
}

impl Toml<'_> {
    fn properties(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let properties = &self.0.layers.properties;
        if properties.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n[kafka.properties]")?;
        for (name, entry) in properties {
            let key = Value::Text(name.clone()).to_string();
            line(f, &key, entry, is_secret(name))?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, key: &str, entry: &Entry, secret: bool) -> fmt::Result {
    let pair = format!("{key} = {}", shown(entry, secret));
    writeln!(f, "{pair:<48} # {}", entry.origin)
}
