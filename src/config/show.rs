//! The effective configuration, as TOML that can be used as a file again, or as JSON lines; each value
//! with where it came from. Secrets are not in it.

use std::fmt;

use super::layers::{Entry, SOURCE_KEYS};
use super::value::Value;
use super::{Config, protected};

/// What stands where a secret is.
pub(super) const REDACTED: &str = "[redacted]";
/// The keys outside `[kafka.properties]` whose values are secrets.
const SECRET_KEYS: &[&str] = &["admin.token"];

/// One value, ready to be printed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Shown {
    /// "section.key", "kafka.properties.NAME" or "source.NAME.KEY".
    pub key: String,
    /// The value as TOML, or `"[redacted]"`.
    pub value: String,
    /// Where it came from.
    pub from: String,
}

impl Config {
    /// Every value in force, in the order of the shipped file.
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        let plain = self.layers.entries.iter().map(|(key, entry)| {
            let secret = SECRET_KEYS.contains(&key.as_str());
            shown(key.clone(), entry, secret)
        });
        let properties = self.layers.properties.iter().map(|(name, entry)| {
            let secret = protected::is_secret(name);
            shown(format!("kafka.properties.{name}"), entry, secret)
        });
        let sources = self.layers.sources.iter().flat_map(|source| {
            SOURCE_KEYS.iter().filter_map(|(key, _)| {
                let entry = source.entries.get(*key)?;
                Some(shown(format!("source.{}.{key}", source.name()), entry, false))
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

fn shown(key: String, entry: &Entry, secret: bool) -> Shown {
    let empty = entry.value == Value::Text(String::new());
    let value = if secret && !empty {
        Value::Text(REDACTED.to_owned()).to_string()
    } else {
        entry.value.to_string()
    };
    let from = entry.origin.to_string();
    Shown { key, value, from }
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
            line(f, name, &shown(key.clone(), entry, SECRET_KEYS.contains(&key.as_str())))?;
        }
        for source in &layers.sources {
            writeln!(f, "\n[[source]]")?;
            for (key, _) in SOURCE_KEYS {
                if let Some(entry) = source.entries.get(*key) {
                    line(f, key, &shown(String::new(), entry, false))?;
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
            line(f, &key, &shown(String::new(), entry, protected::is_secret(name)))?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, key: &str, shown: &Shown) -> fmt::Result {
    writeln!(f, "{:<48} # {}", format!("{key} = {}", shown.value), shown.from)
}
