//! What the service manager (systemd, `Type=notify`) is told: that clients can connect, how it stands, that it still
//! works, that it ends. Does nothing unless `NOTIFY_SOCKET` is set.
//!
//! The watchdog is fed only after a look at the parts that do the work, taken on a thread of its own: a runtime that no
//! longer turns, a lock that nobody gives back, a log or a forwarder that has stopped leave it hungry, and the
//! service manager starts the process anew. Kafka or the database being away is no reason: that is what it is for.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use super::words::one_line;

/// Between two looks, when the watchdog does not ask for more.
const LOOK: Duration = Duration::from_secs(5);
/// Looks in the time that the watchdog allows: one may be late, and one more.
const LOOKS: u32 = 3;
/// The most characters of a status line.
const STATUS_CHARACTERS_MAX: usize = 200;

/// How it stands, in a line; `Err`: it does not work, and why.
pub(super) type Look = Result<String, String>;

/// Tells the service manager until it is dropped.
pub(super) struct Supervisor {
    telling: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Says that clients can connect, and from then on what `look` finds. It may block.
    pub(super) fn ready(look: impl Fn() -> Look + Send + Sync + 'static) -> Self {
        let is_asked = std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty());
        let telling = is_asked.then(|| {
            tell(&[NotifyState::Ready]);
            tokio::spawn(keep_telling(look, sd_notify::watchdog_enabled(), tell))
        });
        Self { telling }
    }

    /// Says that the end has begun. The looks go on: it may take long, and the watchdog stays.
    pub(super) fn stopping(&self) {
        if self.telling.is_some() {
            tell(&[NotifyState::Stopping]);
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(telling) = &self.telling {
            telling.abort();
        }
    }
}

async fn keep_telling(
    look: impl Fn() -> Look + Send + Sync + 'static,
    watchdog: Option<Duration>,
    tell: impl Fn(&[NotifyState<'_>]) + Send + Sync + 'static,
) {
    let parts = Arc::new((look, tell));
    let mut turns = interval(watchdog.map_or(LOOK, |limit| LOOK.min(limit / LOOKS)));
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let parts = Arc::clone(&parts);
        // One look at a time: where one hangs there is no next, and no word to the watchdog.
        let told = spawn_blocking(move || {
            let (look, tell) = &*parts;
            let found = look();
            let line = one_line(
                found.as_deref().unwrap_or_else(String::as_str).as_bytes(),
                STATUS_CHARACTERS_MAX,
            );
            let status = NotifyState::Status(&line);
            match found.is_ok() && watchdog.is_some() {
                true => tell(&[status, NotifyState::Watchdog]),
                false => tell(&[status]),
            }
        });
        if told.await.is_err() {
            tracing::error!("the look at the state of this process failed: the watchdog is told nothing more");
            return;
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(
            "the service manager could not be told how this process stands (NOTIFY_SOCKET): {error}. It works on; a start \
             or a watchdog that waits for this will end it"
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const WATCHDOG: Duration = Duration::from_millis(30);

    /// What is told while `look` finds what it finds.
    fn told(look: impl Fn() -> Look + Send + Sync + 'static) -> (Receiver<String>, tokio::runtime::Runtime) {
        let (sender, receiver) = channel();
        let sender = Mutex::new(sender);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.spawn(keep_telling(look, Some(WATCHDOG), move |state| {
            let lines: Vec<_> = state.iter().map(ToString::to_string).collect();
            drop(sender.lock().unwrap().send(lines.join(" ")));
        }));
        (receiver, runtime)
    }

    #[test]
    fn the_watchdog_is_fed_while_the_parts_work() {
        let (told, _runtime) = told(|| Ok("takes\nrecords".to_owned()));
        for _ in 0..3 {
            let line = told.recv_timeout(Duration::from_secs(10)).unwrap();
            assert!(
                line.starts_with("STATUS=takes") && line.ends_with(" WATCHDOG=1"),
                "{line}"
            );
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn the_watchdog_hears_nothing_of_parts_that_have_stopped() {
        let (told, _runtime) = told(|| Err("the forwarder has stopped".to_owned()));
        for _ in 0..3 {
            let line = told.recv_timeout(Duration::from_secs(10)).unwrap();
            assert_eq!(line, "STATUS=the forwarder has stopped");
        }
    }

    #[test]
    fn the_watchdog_hears_nothing_while_a_look_hangs() {
        let (free, hanging) = channel::<()>();
        let hanging = Mutex::new(hanging);
        let (told, _runtime) = told(move || {
            // Until the other end is dropped.
            assert!(hanging.lock().unwrap().recv().is_err());
            Ok("takes records".to_owned())
        });
        assert!(told.recv_timeout(WATCHDOG * 10).is_err());
        drop(free);
        assert!(
            told.recv_timeout(Duration::from_secs(10))
                .unwrap()
                .ends_with("WATCHDOG=1")
        );
    }
}
