//! The state that a log never leaves: something it wrote may not be on disk.
//!
//! Shared by the logs of one WAL: the process has to end whichever of them it was.

use tokio::sync::watch;

use super::error::AppendError;

/// Set at most once.
#[derive(Debug)]
pub struct Poison {
    reason: watch::Sender<Option<String>>,
}

impl Default for Poison {
    fn default() -> Self {
        Self {
            reason: watch::Sender::new(None),
        }
    }
}

impl Poison {
    /// Sets it, unless it is set; returns the error for whoever waits.
    pub fn set(&self, reason: String) -> AppendError {
        self.reason.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                tracing::error!(
                    reason,
                    "the log has stopped: nothing more is accepted; what was answered OK is on disk and is found \
                     again at the next start; check the disk, then restart"
                );
                *known = Some(reason);
            }
            first
        });
        self.error()
    }

    /// Why, if it is set.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.reason.borrow().clone()
    }

    /// As an append's error.
    #[must_use]
    pub fn error(&self) -> AppendError {
        AppendError::Poisoned {
            reason: self.reason().unwrap_or_default(),
        }
    }

    /// An error if it is set.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`].
    pub fn check(&self) -> Result<(), AppendError> {
        if self.reason.borrow().is_some() {
            Err(self.error())
        } else {
            Ok(())
        }
    }

    /// Resolves with the reason once it is set.
    pub async fn wait(&self) -> String {
        let mut changes = self.reason.subscribe();
        match changes.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender is in `self`: it is never gone.
            Err(_) => std::future::pending().await,
        }
    }
}
