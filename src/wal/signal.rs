//! Something a thread can wait on until one of several others has news for it.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::log::lock;

/// Set by [`notify`](Self::notify), cleared by the wait it ends. Notices do not add up.
#[derive(Debug, Default)]
pub struct Signal {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// Ends the wait under way, or the next one.
    pub fn notify(&self) {
        let mut set = lock(&self.set);
        if !*set {
            *set = true;
            self.changed.notify_one();
        }
    }

    /// Returns when notified since the last wait, or after `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let set = lock(&self.set);
        let (mut set, _) = self
            .changed
            .wait_timeout_while(set, timeout, |set| !*set)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *set = false;
    }
}
