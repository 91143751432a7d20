//! What every client of Kafka shares: its settings, what is known of the connection, and the calls of
//! librdkafka that the safe crate does not offer.
//!
//! Knows neither the log nor tables, and no configuration: the forwarder and the lander each bring their own
//! defaults, and what their promises rest on.

pub(crate) mod link;
pub(crate) mod native;
pub(crate) mod polled;
pub(crate) mod settings;
