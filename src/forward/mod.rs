//! stub
/// What the forwarder tells about itself.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Status {
    /// A broker is reachable.
    pub broker_up: bool,
    /// The newest trouble, in words.
    pub last_error: Option<String>,
    /// Records handed to the producer and not acknowledged.
    pub in_flight_records: u64,
    /// When the oldest unsettled record was received, milliseconds since the Unix epoch.
    pub oldest_received_ms: Option<i64>,
    /// Fatal producer errors since start.
    pub fatal_errors: u64,
    /// Records acknowledged since start.
    pub delivered_records: u64,
    /// Topics with held records.
    pub held_topics: Vec<HeldTopic>,
}

/// One topic whose records are held.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct HeldTopic {
    /// Its name.
    pub topic: String,
    /// How many records.
    pub records: u64,
    /// Why.
    pub reason: String,
    /// Since when, milliseconds since the Unix epoch.
    pub since_ms: i64,
}
