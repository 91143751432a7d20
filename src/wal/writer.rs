//! The one writer thread of a log: group commit.
//!
//! It takes what is queued, cuts it into frames, hands them to the live generation, waits for the flush that covers
//! them all (a large batch is flushed in between, too), writes the witness, and only then answers. While it waits for the
//! disk, the next commit queues up. One commit is under way at a time, so whatever was on disk when a frame was written was
//! committed: recovery rests on that.
//!
//! A commit costs the processors the same for one record as for a hundred: the way through the kernel, the store's
//! threads. So after one with company the next begins a little later ([`Pause`]), and has more of it. A record that
//! comes to a log which was idle for a moment is written at once.
//!
//! The first failed write or flush poisons the log: nothing more is written, everything waiting is refused,
//! and a restart finds out what is on disk. An fsync is never tried again: the kernel has forgotten what it
//! failed to write.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::error::AppendError;
use super::frame::{FRAME_BYTES_MAX, Frame, Framer};
use super::log::{PoisonOnPanic, Shared, lock};
use super::witness::Marks;
use super::{Batch, Receipt};

/// The most encoded bytes that wait for the writer; beyond it `append` answers `Busy`.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most encoded bytes of one batch, and so of one commit: all of a batch is taken, or none.
pub const COMMIT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The store is flushed once it was handed so much: it keeps what is not on disk in memory, some of it several times. So batches are
/// written together while they have no more encoded bytes, which also means that on a disk with few bytes a second nobody waits for
/// those of many others; and a larger batch is flushed in between. It is no less atomic by that: it counts once all of it is there.
const UNFLUSHED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a held record or a dead letter may have beyond the record it was in the main log: its origin, a reason.
const SIDE_BYTES_MORE: usize = 64 * 1024;

/// A commit of so many requests shows that the processors have much to do.
const REQUESTS_MANY: usize = 24;
/// The longest [`Pause`] that is as long as the commit was.
const PAUSE_MAX: Duration = Duration::from_micros(500);
/// A commit that took so long was on a slow disk: a memory card, a hard disk, or a busy one.
const SLOW: Duration = Duration::from_millis(2);
/// The longest [`Pause`] there.
const SLOW_PAUSE_MAX: Duration = Duration::from_millis(20);

/// That records are refused is told this often at most.
const REFUSED_TOLD_EVERY: Duration = Duration::from_secs(60);

/// One batch and who waits for it.
pub struct Job {
    batch: Batch,
    answer: oneshot::Sender<Result<Receipt, AppendError>>,
}

#[derive(Default)]
struct Waiting {
    jobs: Vec<Job>,
    bytes: usize,
    closed: bool,
    idle: bool,
    /// With so many requests the writer, which waits for company, waits no longer.
    enough: usize,
}

/// What waits for the writer.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    ready: Condvar,
}

impl Queue {
    /// Adds a batch; `side`: of a side log, which must take whatever was in the main log.
    pub fn push(
        &self,
        batch: Batch,
        side: bool,
    ) -> Result<oneshot::Receiver<Result<Receipt, AppendError>>, AppendError> {
        let bytes = batch.bytes();
        let bytes_max = COMMIT_BYTES_MAX + if side { SIDE_BYTES_MORE } else { 0 };
        if bytes > bytes_max {
            return Err(AppendError::TooLarge { bytes, bytes_max });
        }
        let (answer, receiver) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        if waiting.closed {
            return Err(AppendError::Closed);
        }
        if waiting.bytes + bytes > QUEUE_BYTES_MAX {
            return Err(AppendError::Busy {
                queue_bytes_max: QUEUE_BYTES_MAX,
            });
        }
        waiting.bytes += bytes;
        waiting.jobs.push(Job { batch, answer });
        let is_enough = waiting.bytes >= UNFLUSHED_BYTES_MAX || waiting.jobs.len() == waiting.enough;
        let wake = std::mem::take(&mut waiting.idle) || is_enough;
        drop(waiting);
        if wake {
            self.ready.notify_one();
        }
        Ok(receiver)
    }

    /// No more batches; those that wait are still written.
    pub fn close(&self) {
        lock(&self.waiting).closed = true;
        self.ready.notify_one();
    }

    /// Waits for batches, for as long as the pause lasts, and for as long as `linger`, and takes as many as one commit may have;
    /// empty: closed, and nothing is left.
    fn take(&self, pause: Pause, linger: Duration, jobs: &mut Vec<Job>) {
        let mut waiting = lock(&self.waiting);
        waiting.enough = pause.enough;
        while waiting.jobs.is_empty() && !waiting.closed {
            waiting.idle = true;
            waiting = self
                .ready
                .wait(waiting)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        let lingered = Instant::now() + linger;
        // A full commit gains nothing by waiting, and the end waits for nobody.
        while !waiting.closed && waiting.bytes < UNFLUSHED_BYTES_MAX {
            let until = match waiting.jobs.len() < waiting.enough {
                true => pause.until.max(lingered),
                false => lingered,
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (waiting, _) = self
                .ready
                .wait_timeout(waiting, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        waiting.enough = usize::MAX;
        let mut bytes = 0;
        let fit = waiting.jobs.iter().take_while(|job| {
            bytes += job.batch.bytes();
            bytes <= UNFLUSHED_BYTES_MAX
        });
        // One batch is always taken, or nothing would ever be again.
        let fit = fit.count().max(1).min(waiting.jobs.len());
        if fit == waiting.jobs.len() {
            std::mem::swap(&mut waiting.jobs, jobs);
            waiting.bytes = 0;
        } else {
            jobs.extend(waiting.jobs.drain(..fit));
            let taken: usize = jobs.iter().map(|job| job.batch.bytes()).sum();
            waiting.bytes -= taken;
        }
    }

    /// How many requests wait.
    fn requests(&self) -> usize {
        lock(&self.waiting).jobs.len()
    }

    /// Refuses everything that waits, and everything that comes.
    pub fn refuse_all(&self, error: &AppendError) {
        let mut waiting = lock(&self.waiting);
        waiting.closed = true;
        waiting.bytes = 0;
        for job in waiting.jobs.drain(..) {
            answer(job, Err(error.clone()));
        }
    }
}

/// A client that went away does not wait for its answer: not an error.
fn answer(job: Job, result: Result<Receipt, AppendError>) {
    let Job { batch, answer } = job;
    // With it goes the hold on its key: who is refused may come again at once.
    drop(batch);
    drop(answer.send(result));
}

/// Many requests on a quick disk: it is the processors that clients wait for.
fn is_press(requests: usize, time: Duration) -> bool {
    requests >= REQUESTS_MANY && time < SLOW
}

/// What follows a commit: until when the next one waits for company.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pause {
    until: Instant,
    /// It is over once so many requests wait.
    enough: usize,
}

impl Pause {
    /// After a commit of so many requests, which took so long, while so many more came: together they are all who are about.
    ///
    /// Of many requests: as long again, so that the next one has twice the company at the same rate. But half of all who are about
    /// is enough: while they are written the others come back, and neither the disk nor a processor waits.
    ///
    /// On a slow disk: a fifth of it, in which those who were answered can come back, all of them; otherwise clients fall into two
    /// halves, each of which waits for the other's commit and for its own.
    fn after(requests: usize, waiting: usize, time: Duration, now: Instant) -> Self {
        let (pause, one_in) = match requests {
            0 | 1 => (Duration::ZERO, 1),
            _ if is_press(requests, time) => (time.min(PAUSE_MAX), 2),
            _ if time >= SLOW => ((time / 5).min(SLOW_PAUSE_MAX), 1),
            _ => (Duration::ZERO, 1),
        };
        Self {
            until: now + pause,
            enough: (requests + waiting) / one_in,
        }
    }
}

/// The thread's body.
pub fn run(shared: &Arc<Shared>) {
    let _guard = PoisonOnPanic(shared);
    let mut jobs = Vec::new();
    let mut framer: Option<(super::frame::Key, Framer)> = None;
    let commit_seconds = metrics::histogram!(crate::metrics::WAL_COMMIT_SECONDS);
    let commit_records = metrics::histogram!(crate::metrics::WAL_COMMIT_RECORDS);
    let mut refused_at: Option<Instant> = None;
    let mut refuses = false;
    let mut pause = Pause::after(0, 0, Duration::ZERO, Instant::now());
    loop {
        shared.queue.take(pause, shared.options.linger, &mut jobs);
        if jobs.is_empty() {
            return;
        }
        let began = Instant::now();
        shared.commit_began_ms.store(shared.clock_ms(), Ordering::Relaxed);
        let outcome = commit(shared, &mut jobs, &mut framer);
        shared.commit_began_ms.store(0, Ordering::Relaxed);
        match outcome {
            Ok(first) => {
                if std::mem::take(&mut refuses) {
                    tracing::info!(log = shared.options.name, "records are taken again");
                }
                let ended = Instant::now();
                let time = ended.duration_since(began);
                // Before they are answered: those who come back would count twice.
                let waiting = shared.queue.requests();
                pause = Pause::after(jobs.len(), waiting, time, ended);
                if is_press(jobs.len() + waiting, time) {
                    shared.pressed_ms.store(shared.clock_ms(), Ordering::Relaxed);
                }
                commit_seconds.record(time);
                shared.latency.note(shared.clock_ms() / 1000, time);
                let mut next = first;
                for job in jobs.drain(..) {
                    let receipt = Receipt {
                        first_seq: next,
                        last_seq: next + job.batch.len() as u64 - 1,
                    };
                    next = receipt.last_seq + 1;
                    answer(job, Ok(receipt));
                }
                #[allow(clippy::cast_precision_loss)] // a commit has far fewer than 2^52 records
                commit_records.record((next - first) as f64);
            }
            Err(error) => {
                let poisoned = matches!(error, AppendError::Poisoned { .. });
                // At a limit it is now one, now the other.
                if !poisoned && refused_at.is_none_or(|at| at.elapsed() >= REFUSED_TOLD_EVERY) {
                    refused_at = Some(Instant::now());
                    refuses = true;
                    tracing::warn!(log = shared.options.name, "records are refused: {error}");
                }
                for job in jobs.drain(..) {
                    answer(job, Err(error.clone()));
                }
                if poisoned {
                    shared.queue.refuse_all(&error);
                    return;
                }
            }
        }
    }
}

/// Writes one commit; returns the sequence of its first entry.
fn commit(
    shared: &Shared,
    jobs: &mut [Job],
    framer: &mut Option<(super::frame::Key, Framer)>,
) -> Result<u64, AppendError> {
    let entries = jobs.iter().flat_map(|job| job.batch.entries());
    let count: usize = jobs.iter().map(|job| job.batch.len()).sum();
    let bytes: usize = jobs.iter().map(|job| job.batch.bytes()).sum();
    shared.poison.check()?;
    // What sled writes for it is more than its bytes by page rewrites and headers; twice covers that.
    let fits = shared
        .quota
        .check(2 * bytes as u64 + FRAME_BYTES_MAX as u64, shared.options.reserve);
    if let Err(full) = fits {
        shared.rotate_to_free()?;
        return Err(full);
    }
    let live = shared.live_for_write()?;
    let first = shared.next.load(Ordering::Acquire);
    if framer.as_ref().is_some_and(|(key, _)| *key != live.key()) {
        *framer = None;
    }
    let (_, framer) = framer.get_or_insert_with(|| (live.key(), Framer::new(live.key(), shared.options.compression)));
    let last = first + count as u64 - 1;
    shared.next.store(last + 1, Ordering::Release);
    let mut unflushed = 0;
    let put = |frame: Frame| {
        unflushed += frame.bytes.len();
        live.put(frame)?;
        if unflushed >= UNFLUSHED_BYTES_MAX {
            unflushed = 0;
            live.flush()?;
            // The disk is slow, and does not hang.
            shared.commit_began_ms.store(shared.clock_ms(), Ordering::Relaxed);
        }
        Ok(())
    };
    let written = framer
        .frame(first, entries, put)
        .and_then(|()| live.flush())
        .and_then(|()| {
            if live.has_blobs()? {
                Err(std::io::Error::other("a blob file was made"))
            } else {
                Ok(())
            }
        });
    if let Err(error) = written {
        return Err(shared
            .poison
            .set(format!("writing sequences {first} to {last} failed: {error}")));
    }
    let marked = {
        let mut witness = lock(&shared.witness);
        let marks = Marks {
            committed: last,
            ..witness.marks()
        };
        witness.write(marks)
    };
    if let Err(error) = marked {
        return Err(shared.poison.set(format!("writing the witness failed: {error}")));
    }
    // Known before the watermark says so, and before anybody is answered: whoever still waits.
    let mut at = first;
    for job in jobs {
        if let Some(key) = job.batch.key.take() {
            key.commit(at);
        }
        at += job.batch.len() as u64;
    }
    shared.committed(last, bytes as u64, &live);
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_commit_with_company_is_followed_by_a_pause_and_by_a_short_one() {
        let now = Instant::now();
        let pause = |requests, time| Pause::after(requests, 0, time, now).until - now;
        let (quick, slow) = (Duration::from_micros(300), Duration::from_millis(50));
        assert_eq!(pause(1, slow), Duration::ZERO);
        assert_eq!(pause(2, slow), slow / 5);
        assert_eq!(pause(2, slow * 100), SLOW_PAUSE_MAX);
        assert_eq!(pause(REQUESTS_MANY - 1, quick), Duration::ZERO);
        assert_eq!(pause(REQUESTS_MANY, quick), quick);
        assert_eq!(pause(REQUESTS_MANY, Duration::from_millis(1)), PAUSE_MAX);
        // Half of all on a quick disk, all of them on a slow one.
        assert_eq!(Pause::after(40, 60, quick, now).enough, 50);
        assert_eq!(Pause::after(40, 60, slow, now).enough, 100);
    }

    fn batch(bytes: usize) -> Batch {
        let mut batch = Batch::new();
        batch.push(&crate::record::Record {
            topic: "t".into(),
            key: None,
            value: Some(vec![0; bytes]),
            headers: Vec::new(),
            received_ms: 0,
            origin: None,
            idempotency: None,
        });
        batch
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn a_pause_ends_where_a_commit_is_full_or_has_company_enough_and_at_the_end() {
        let half = UNFLUSHED_BYTES_MAX / 2;
        let late = Instant::now() + Duration::from_secs(3600);
        for (sizes, enough, is_end, taken) in [
            (&[half, half, 1][..], 6, false, 1..=1),
            (&[1; 6], 3, false, 3..=6),
            (&[1; 2], 6, true, 2..=2),
        ] {
            let queue = Queue::default();
            let mut jobs = Vec::new();
            let pause = Pause { until: late, enough };
            std::thread::scope(|scope| {
                let taking = scope.spawn(|| queue.take(pause, Duration::ZERO, &mut jobs));
                for size in sizes {
                    drop(queue.push(batch(*size), true).unwrap());
                }
                if is_end {
                    queue.close();
                }
                taking.join().unwrap();
            });
            assert!(taken.contains(&jobs.len()), "{} of {sizes:?}", jobs.len());
        }
    }
}
