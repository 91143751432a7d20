//! `tidegate serve`: the gateway and its forwarder, until a signal.

use anyhow::Result;

use super::gateway::{self, Plan};
use crate::config::{Broker, Config};

pub(super) fn run(config: &Config) -> Result<()> {
    config.validate(Broker::Configured)?;
    gateway::run(Plan {
        config,
        bootstrap_servers: &config.kafka.bootstrap_servers,
        on_delivery: None,
        on_listening: Box::new(|_| ()),
    })
}
