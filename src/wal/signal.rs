//! Something a thread can wait on until one of several others has news for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::log::lock;

/// Set by [`notify`](Self::notify), cleared by the wait it ends. Notices do not add up.
#[derive(Debug, Default)]
pub struct Signal {
    set: Mutex<bool>,
    changed: Condvar,
    minds_commits: AtomicBool,
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

    /// Whether a commit ends the wait: not for a thread that has more to read than it can use, which
    /// thousands of commits a second would wake for nothing.
    pub fn mind_commits(&self, mind: bool) {
        self.minds_commits.store(mind, Ordering::SeqCst);
    }

    /// As [`notify`](Self::notify), where commits are minded.
    pub(super) fn committed(&self) {
        if self.minds_commits.load(Ordering::SeqCst) {
            self.notify();
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
