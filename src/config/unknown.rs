//! What to say of a name that does not exist: the nearest one that does.

use super::layers::{Layers, SOURCE_KEYS, VARIABLE_PREFIX, VARIABLE_SEPARATOR};

/// The one table inside a section.
const PROPERTIES: &str = "kafka.properties";

impl Layers {
    pub(super) fn has_section(&self, section: &str) -> bool {
        self.sections().any(|known| known == section)
    }

    fn sections(&self) -> impl Iterator<Item = &str> {
        self.entries
            .iter()
            .filter_map(|(key, _)| key.split_once('.').map(|(section, _)| section))
    }

    pub(super) fn unknown_section(&self, section: &str) -> String {
        let known = self.sections().chain(["source"]);
        match nearest(section, known) {
            Some("source") => format!("unknown section {section:?}. The nearest known one is [[source]]."),
            Some(near) => format!("unknown section {section:?}. The nearest known one is [{near}]."),
            None => {
                let mut known: Vec<_> = self.sections().collect();
                known.dedup();
                format!("unknown section {section:?}. Known are: {}, source.", known.join(", "))
            }
        }
    }

    /// What to say of a line of a file whose key does not exist.
    pub(super) fn unknown_key(&self, key: &str) -> String {
        if key == PROPERTIES {
            return format!("{PROPERTIES} is a table: write [{PROPERTIES}] on a line of its own, and its names below");
        }
        self.unknown(key, |_| "Rename it, or remove the line.".to_owned())
    }

    /// What to say of a variable whose key does not exist.
    pub(super) fn unknown_variable(&self, key: &str) -> String {
        if key == PROPERTIES {
            return format!(
                "{PROPERTIES} is a table: one variable sets one property, {}__<NAME>",
                variable_of(key)
            );
        }
        self.unknown(key, |near| match near {
            PROPERTIES => format!("Rename the variable to {}__<NAME>, or unset it.", variable_of(near)),
            near => format!("Rename the variable to {}, or unset it.", variable_of(near)),
        })
    }

    fn unknown(&self, key: &str, advice: impl Fn(&str) -> String) -> String {
        let section = key.split_once('.').map_or(key, |(section, _)| section);
        if !self.has_section(section) {
            return self.unknown_section(section);
        }
        let keys = || self.entries.iter().map(|(key, _)| key.as_str()).chain([PROPERTIES]);
        let same_section = || keys().filter(|known| known.split('.').next() == Some(section));
        // The key may have been written into the wrong section: the name alone counts too.
        let name = key.rsplit('.').next().unwrap_or(key);
        let near = keys()
            .find(|known| known.rsplit('.').next() == Some(name))
            .or_else(|| nearest(key, same_section()));
        match near {
            Some(near) => format!(
                "unknown key {key:?}. The nearest known one is {near:?}. {}",
                advice(near)
            ),
            None => {
                let known: Vec<_> = same_section().collect();
                format!("unknown key {key:?}. [{section}] has: {}.", known.join(", "))
            }
        }
    }
}

/// What to say of a key that no source has.
pub(super) fn unknown_source_key(key: &str) -> String {
    let known = SOURCE_KEYS.iter().map(|(known, _)| *known);
    match nearest(key, known.clone()) {
        Some(near) => format!("unknown key {key:?} of a [[source]]. The nearest known one is {near:?}."),
        None => {
            let known: Vec<_> = known.collect();
            format!(
                "unknown key {key:?} of a [[source]]. A source has: {}.",
                known.join(", ")
            )
        }
    }
}

/// The environment variable for "section.key".
fn variable_of(key: &str) -> String {
    format!(
        "{VARIABLE_PREFIX}{}",
        key.replacen('.', VARIABLE_SEPARATOR, 1).to_uppercase()
    )
}

/// The one of `known` that is most like `name`, if any is alike at all.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
