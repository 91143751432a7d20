//! `tidegate serve`: the gateway and its forwarder, until a signal.

use anyhow::Result;

use super::gateway::{self, Plan};
use super::options;
use crate::config::{Broker, Config};

pub(super) fn run(config: &Config) -> Result<()> {
    config.validate(Broker::Configured)?;
    gateway::run(Plan {
        config,
        forward: options::forward(config),
        land: None,
        on_listening: Box::new(|_| ()),
    })
}
