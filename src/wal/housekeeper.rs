//! The thread of a log that does what nobody should wait for.
//!
//! Makes the next generation ahead of its need; closes sealed stores; writes the keys of sealed generations down; removes
//! acknowledged generations; fsyncs the witness once a second. The writer and the forwarder only leave it notes.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::durable;
use super::generation::Generation;
use super::generations::{Retired, Row};
use super::keys;
use super::log::{PoisonOnPanic, Shared, lock};
use super::signal::Signal;

/// The witness is fsynced this often: what a power loss may hide of the last commit's fate.
const WITNESS_SYNC_EVERY: Duration = Duration::from_secs(1);

/// The generation made ahead.
#[derive(Default)]
struct Next {
    ready: Option<(PathBuf, Generation)>,
    /// The last attempt to make it failed, or takes longer than one can wait.
    failed: bool,
}

/// What is to be done.
#[derive(Default)]
pub struct Chores {
    next: Mutex<Next>,
    next_changed: Condvar,
    sealed: Mutex<Vec<Arc<Generation>>>,
    gone: Mutex<Vec<PathBuf>>,
    signal: Signal,
    closed: AtomicBool,
}

impl Chores {
    /// Something changed: look.
    pub fn wake(&self) {
        self.signal.notify();
    }

    /// Finish and end.
    pub fn close(&self) {
        {
            // Under the lock: whoever looks before it waits.
            let _next = lock(&self.next);
            self.closed.store(true, Ordering::Release);
        }
        self.next_changed.notify_all();
        self.signal.notify();
    }

    /// Whether the next generation is ready.
    pub fn has_prepared(&self) -> bool {
        lock(&self.next).ready.is_some()
    }

    /// Whether the next generation could not be made the last time, or not in time, and is not there.
    pub fn cannot_prepare(&self) -> bool {
        lock(&self.next).failed
    }

    /// The generation made ahead, if it is ready; the next one is made.
    pub fn take_prepared(&self) -> Option<(PathBuf, Generation)> {
        let prepared = lock(&self.next).ready.take();
        self.signal.notify();
        prepared
    }

    /// As [`take_prepared`](Self::take_prepared), but waits for it, `limit` at most, while it is being made: this thread
    /// may be busy with another chore. `None` if it cannot be made, or will not be; after a wait in vain, at once until it is there.
    pub fn wait_prepared(&self, limit: Duration) -> Option<(PathBuf, Generation)> {
        let next = lock(&self.next);
        let is_awaited = |next: &mut Next| next.ready.is_none() && !next.failed && !self.closed.load(Ordering::Acquire);
        let (mut next, _) = self
            .next_changed
            .wait_timeout_while(next, limit, is_awaited)
            .unwrap_or_else(PoisonError::into_inner);
        let prepared = next.ready.take();
        next.failed = prepared.is_none();
        drop(next);
        self.signal.notify();
        prepared
    }

    /// A store that is written no more: closed here, since that takes sled a while.
    pub fn put_sealed(&self, sealed: Option<Arc<Generation>>) {
        lock(&self.sealed).extend(sealed);
        self.signal.notify();
    }
}

/// The thread's body.
pub fn run(shared: &Arc<Shared>) {
    let _guard = PoisonOnPanic(shared);
    let mut synced = Instant::now();
    let mut complained = false;
    let mut complained_of_keys = false;
    loop {
        let closed = shared.chores.closed.load(Ordering::Acquire);
        if !closed {
            match prepare(shared) {
                Ok(()) => complained = false,
                Err(error) if !complained => {
                    complained = true;
                    tracing::warn!(
                        log = shared.options.name, %error,
                        "the next generation cannot be made: the current one grows meanwhile; check space and permissions"
                    );
                }
                Err(_) => {}
            }
        }
        let sealed = std::mem::take(&mut *lock(&shared.chores.sealed));
        drop(sealed);
        match checkpoint(shared) {
            Ok(()) => complained_of_keys = false,
            Err(error) if !complained_of_keys => {
                complained_of_keys = true;
                tracing::warn!(%error, "{NO_CHECKPOINT}");
            }
            Err(_) => {}
        }
        if let Err(error) = retire(shared) {
            tracing::warn!(log = shared.options.name, %error, "acknowledged generations cannot be removed; tried again");
        }
        if synced.elapsed() >= WITNESS_SYNC_EVERY {
            synced = Instant::now();
            // The lock is not held during the fsync.
            let file = lock(&shared.witness).unsynced();
            let synced = file.and_then(|file| file.as_ref().map_or(Ok(()), File::sync_data));
            if let Err(error) = synced {
                shared.poison.set(format!("fsync of the witness failed: {error}"));
            }
        }
        if closed {
            break;
        }
        shared.chores.signal.wait(WITNESS_SYNC_EVERY);
    }
    let prepared = lock(&shared.chores.next).ready.take();
    if let Some((path, store)) = prepared {
        drop(store);
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::debug!(%error, "an unused generation stays until the next start");
        }
    }
}

fn prepare(shared: &Shared) -> io::Result<()> {
    let chores = &shared.chores;
    if chores.has_prepared() {
        return Ok(());
    }
    let (ready, outcome) = match Row::prepare(&shared.options.folder) {
        Ok(prepared) => (Some(prepared), Ok(())),
        Err(error) => (None, Err(error)),
    };
    *lock(&chores.next) = Next {
        failed: ready.is_none(),
        ready,
    };
    chores.next_changed.notify_all();
    outcome
}

/// What follows from a [`checkpoint`] that failed.
pub const NO_CHECKPOINT: &str = "the file of idempotency keys cannot be written: acknowledged generations stay until it can; \
                                 check space and permissions";

/// Writes the keys of sealed generations down, if there are any that the file is not through with.
pub fn checkpoint(shared: &Shared) -> io::Result<()> {
    let Some(window) = &shared.keys else { return Ok(()) };
    let sealed = lock(&shared.row).newest().map_or(0, |newest| newest.first - 1);
    if window.through() >= sealed
        && !window.owed.load(Ordering::Relaxed)
        && window.file_bytes.load(Ordering::Relaxed) > 0
    {
        return Ok(());
    }
    // What is committed is known: the keys go before the watermark.
    let through = shared.committed_sequence();
    match keys::write(&shared.options.folder, through, window) {
        Ok(bytes) => {
            let before = window.file_bytes.swap(bytes, Ordering::Relaxed);
            shared.quota.moved(before, bytes);
            window.owed.store(false, Ordering::Relaxed);
            window.through.fetch_max(through, Ordering::AcqRel);
            Ok(())
        }
        Err(error) => {
            // A full disk gets its space back from what is acknowledged and from nothing else: keys that a restart forgets
            // are the smaller harm.
            // It may also be short of files, or of what one user may have, and then only the error says so.
            let is_short = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                || shared.quota.check(shared.options.generation_bytes, false).is_err();
            if is_short && window.through() < sealed {
                tracing::warn!(
                    %error,
                    "the disk is full and the file of idempotency keys cannot be written: acknowledged generations go without \
                     it. A restart before it is written forgets keys, and what their clients repeat is stored again"
                );
                window.owed.store(true, Ordering::Relaxed);
                window.through.fetch_max(sealed, Ordering::AcqRel);
            }
            Err(error)
        }
    }
}

/// Takes what is acknowledged out of the row, and removes it.
pub fn retire(shared: &Shared) -> io::Result<()> {
    let options = &shared.options;
    let pressed = || shared.quota.check(options.generation_bytes, false).is_err();
    let short = pressed();
    let may_retire = lock(&shared.row).may_retire(shared.removable(), options.retain, short);
    if may_retire {
        // What was acknowledged must be on disk before what it allows to be removed is gone: otherwise a crash
        // would look like a lost generation. So it is the witness that says how far.
        let acked = {
            let mut witness = lock(&shared.witness);
            // In both slots: damage to one would leave the other, in which what is removed was still waiting.
            let marks = witness.marks();
            let written = witness.write(marks);
            if let Err(error) = written.and_then(|()| witness.sync()) {
                shared.poison.set(format!("fsync of the witness failed: {error}"));
                return Err(error);
            }
            witness.marks().acked
        };
        loop {
            let pressed = pressed();
            let retired = {
                let mut row = lock(&shared.row);
                // Under the row's lock: a rewind may have moved it back since.
                let acked = acked.min(shared.removable());
                row.retire(&options.folder, acked, options.retain, pressed)?
            };
            match retired {
                None => break,
                Some(Retired::Gone(folder, bytes)) => {
                    shared.quota.moved(bytes, 0);
                    lock(&shared.chores.gone).push(folder);
                }
                Some(Retired::Aside(folder, bytes)) => {
                    shared.aside_bytes.fetch_add(bytes, Ordering::Relaxed);
                    tracing::warn!(log = options.name, folder = %folder.display(), "a damaged generation was set aside");
                }
            }
            // Each name before the next, and before the removal: else a power loss may leave a gap between those that are
            // still there, or one without its file, which is what damage looks like.
            if let Err(error) = durable::sync_folder(&options.folder) {
                shared.poison.set(format!("fsync of the log's folder failed: {error}"));
                return Err(error);
            }
        }
    }
    // What cannot be removed now is tried again the next time.
    let mut gone = std::mem::take(&mut *lock(&shared.chores.gone));
    let mut failed = Ok(());
    gone.retain(|folder| match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            failed = Err(error);
            true
        }
        _ => false,
    });
    lock(&shared.chores.gone).extend(gone);
    failed
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{append, options, wait_until};
    use super::super::{Options, Wal};
    use super::*;

    #[test]
    fn a_burst_waits_for_the_next_generation_and_is_not_refused() {
        let folder = tempfile::tempdir().unwrap();
        let wal = Wal::open(Options {
            generation_bytes: 1 << 20,
            compression: false,
            ..options(folder.path())
        });
        let wal = wal.unwrap();
        let shared = &wal.log().shared;
        // The thread stays at its last chore, as on a disk that is busy with others.
        let busy = lock(&shared.chores.gone);
        std::thread::scope(|scope| {
            let appending = scope.spawn(|| {
                for i in 0..30 {
                    append(&wal, &vec![vec![i; 1000]; 1000]);
                }
            });
            wait_until("one waits", || {
                shared.live_bytes() >= shared.outgrown_bytes() && shared.commit_began_ms.load(Ordering::Relaxed) > 0
            });
            assert_eq!(wal.status().refusing, None);
            drop(busy);
            appending.join().unwrap();
        });
        assert_eq!(wal.log().committed(), 30_000);
    }
}
