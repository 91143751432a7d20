//! Settings of a client: the user's properties over the part's defaults, over what suits every client.

use std::collections::BTreeMap;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;

/// librdkafka has two names for some settings; the first is the one that defaults have here.
const ALIASES: [(&str, &str); 4] = [
    ("bootstrap.servers", "metadata.broker.list"),
    ("linger.ms", "queue.buffering.max.ms"),
    ("compression.type", "compression.codec"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
];

/// The user's `properties` over a part's `defaults`. What a part's promises rest on goes over the result.
pub(crate) fn merge(
    bootstrap_servers: &str,
    client_id: &str,
    defaults: &[(&str, &str)],
    properties: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let for_all = [
        ("client.id", client_id),
        ("reconnect.backoff.max.ms", "1000"),
        ("retry.backoff.max.ms", "1000"),
        ("socket.keepalive.enable", "true"),
    ];
    let mut settings: BTreeMap<String, String> = for_all
        .iter()
        .chain(defaults)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    for (name, value) in properties {
        let canonical = ALIASES
            .iter()
            .find(|(_, alias)| alias == name)
            .map_or(name.as_str(), |(canonical, _)| canonical);
        settings.insert(canonical.to_owned(), value.clone());
    }
    // No servers among the properties when the configuration has its own key for them.
    settings.insert("bootstrap.servers".to_owned(), bootstrap_servers.to_owned());
    settings
}

/// As librdkafka takes them.
pub(crate) fn client_config(settings: BTreeMap<String, String>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set_log_level(RDKafkaLogLevel::Warning);
    for (name, value) in settings {
        config.set(name, value);
    }
    config
}

/// What a start says whose properties librdkafka does not take; `why` as [`explain`] has it.
pub(crate) fn unusable(why: &str) -> String {
    format!(
        "kafka.properties cannot be used: {why}. Correct the property that is named; a file that it names must be there, and \
         readable by this user"
    )
}

/// What is wrong, without the property's value: it may be a password under a misspelt name.
pub(crate) fn explain(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, description, name, _) => format!("{name}: {description}"),
        other => other.to_string(),
    }
}
