//! Values that are used and never shown: not by `Debug`, not in a message, not by `config show`.

use std::collections::BTreeMap;
use std::fmt;

/// What stands where a secret is.
pub(super) const REDACTED: &str = "[redacted]";

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(super) String);

impl Secret {
    /// The text itself; none when empty.
    #[must_use]
    pub fn reveal(&self) -> Option<&str> {
        (!self.0.is_empty()).then_some(self.0.as_str())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { REDACTED })
    }
}

/// librdkafka's properties, some of which are secrets.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Properties(pub(super) BTreeMap<String, String>);

impl Properties {
    /// Name and value, secrets included: for the Kafka client.
    #[must_use]
    pub fn reveal(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.0.iter().map(|(name, value)| {
                let shown = if is_secret(name) { REDACTED } else { value };
                (name, shown)
            }))
            .finish()
    }
}

/// Whether the value of a librdkafka property must not be shown.
pub(super) fn is_secret(name: &str) -> bool {
    let harmless = ["sasl.mechanism", "sasl.mechanisms", "ssl.key.location"];
    let telling = ["password", "secret", "token", "jaas"];
    if harmless.contains(&name) {
        return false;
    }
    name.starts_with("sasl.")
        || name.starts_with("ssl.key")
        || name == "ssl_key"
        || telling.iter().any(|word| name.contains(word))
}
