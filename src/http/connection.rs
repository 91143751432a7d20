//! One connection: where it is between two requests, how long it may stay there, and what it was told.
//!
//! hyper has one time limit for a request's head, and that one also runs while the connection is idle.
//! Here they are two: the socket notes when a head begins, and one lazy timer per connection looks at it
//! now and then, so that a request costs no timer.
//!
//! Shared by the connection's task, its socket and the accept loop. All of it is a hint that may be a
//! moment old; nothing hangs on its order, so every access is relaxed.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::error::Reason;

/// An idle connection that served a request is left alone for this long, however full it is: its client
/// is probably about to use it again.
const USED_IDLE_MIN_MS: u64 = 1000;

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing came yet.
    Fresh,
    /// A request's head is on its way.
    Head,
    /// A request was answered and the next has not begun.
    Idle,
    /// A request is in work, or more than one (HTTP/2). Never entered: their number says so.
    Busy,
}

impl Phase {
    const fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Fresh,
            1 => Self::Head,
            _ => Self::Idle,
        }
    }
}

/// What a connection was told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Order {
    /// Go on.
    Serve = 0,
    /// Finish the request in work, then close.
    Close = 1,
    /// Close now.
    Abort = 2,
}

/// What is due on a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing.
    Nothing,
    /// Its head is late.
    HeadLate,
    /// It has been idle too long.
    IdleOut,
    /// Its client has taken nothing of an answer for too long.
    Stuck,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Connection {
    epoch: Instant,
    phase: AtomicU8,
    /// Requests in work.
    in_work: AtomicU32,
    /// Of those, the ones whose long answer is being sent.
    answers: Mutex<Answers>,
    /// When the phase began, milliseconds since `epoch`.
    since_ms: AtomicU64,
    order: AtomicU8,
    ordered: Notify,
    /// The head is late: the socket answers 408 and ends.
    late: AtomicBool,
    /// A request was refused: unread bytes may be left.
    refused: AtomicBool,
    /// Why what came was refused before it was a request.
    refusal: OnceLock<Reason>,
}

/// A request in work. It ends with this, also where its client has given it up (HTTP/2).
#[derive(Debug)]
pub(super) struct InWork(Arc<Connection>);

/// A request whose answer is being sent, piece by piece.
#[derive(Debug)]
pub(super) struct Progress {
    work: InWork,
    number: u64,
}

/// The answers that are being sent: a number each, and when its client took something last, milliseconds since the epoch.
#[derive(Debug, Default)]
struct Answers {
    next: u64,
    moved_ms: Vec<(u64, u64)>,
}

impl Progress {
    /// Its client has taken what was sent.
    pub(super) fn moved(&self) {
        let connection = &self.work.0;
        let now = ms(connection.epoch.elapsed());
        let mut answers = connection.answers();
        if let Some((_, moved)) = answers.moved_ms.iter_mut().find(|(number, _)| *number == self.number) {
            *moved = now;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let mut answers = self.work.0.answers();
        answers.moved_ms.retain(|(number, _)| *number != self.number);
    }
}

impl InWork {
    /// It is refused: its body may be unread.
    pub(super) fn refused(&self) {
        self.0.refused.store(true, Ordering::Relaxed);
    }

    /// Its answer is being sent from now on.
    pub(super) fn sending(self) -> Progress {
        let now = ms(self.0.epoch.elapsed());
        let number = {
            let mut answers = self.0.answers();
            answers.next += 1;
            let number = answers.next;
            answers.moved_ms.push((number, now));
            number
        };
        Progress { work: self, number }
    }
}

impl Drop for InWork {
    fn drop(&mut self) {
        self.0.enter(Phase::Idle);
        self.0.in_work.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    /// A new one; `epoch` is the listener's start.
    pub(super) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            phase: AtomicU8::new(Phase::Fresh as u8),
            in_work: AtomicU32::new(0),
            answers: Mutex::default(),
            since_ms: AtomicU64::new(ms(epoch.elapsed())),
            order: AtomicU8::new(Order::Serve as u8),
            ordered: Notify::new(),
            late: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            refusal: OnceLock::new(),
        }
    }

    /// Why what came was refused before it was a request.
    pub(super) fn refusal(&self) -> Option<Reason> {
        self.refusal.get().copied()
    }

    pub(super) fn phase(&self) -> Phase {
        match self.in_work.load(Ordering::Relaxed) {
            0 => Phase::from_u8(self.phase.load(Ordering::Relaxed)),
            _ => Phase::Busy,
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.since_ms.store(ms(self.epoch.elapsed()), Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long nothing was taken of an answer, of that of which it is longest.
    fn stuck(&self) -> Option<Duration> {
        let oldest = self.answers().moved_ms.iter().map(|(_, moved)| *moved).min();
        oldest.map(|moved| self.epoch.elapsed().saturating_sub(Duration::from_millis(moved)))
    }

    /// How long it has been where it is.
    pub(super) fn in_phase(&self) -> Duration {
        let since = Duration::from_millis(self.since_ms.load(Ordering::Relaxed));
        self.epoch.elapsed().saturating_sub(since)
    }

    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> InWork {
        self.in_work.fetch_add(1, Ordering::Relaxed);
        InWork(Arc::clone(self))
    }

    /// What came is refused before it was a request.
    pub(super) fn refuse(&self, reason: Reason) {
        self.refused.store(true, Ordering::Relaxed);
        self.refusal.get_or_init(|| reason);
    }

    /// Whether bytes of the client may be unread.
    pub(super) fn has_unread(&self) -> bool {
        // A head that ended here never became a request.
        self.refused.load(Ordering::Relaxed) || self.phase() == Phase::Head
    }

    /// What is due now.
    pub(super) fn due(&self, header_timeout: Duration, idle_timeout: Duration) -> Due {
        match self.phase() {
            Phase::Busy if self.stuck().is_some_and(|stuck| stuck >= idle_timeout) => Due::Stuck,
            Phase::Busy => Due::Nothing,
            Phase::Head if self.in_phase() >= header_timeout => Due::HeadLate,
            // Whoever connects is about to send something.
            Phase::Fresh if self.in_phase() >= header_timeout => Due::IdleOut,
            Phase::Idle if self.in_phase() >= idle_timeout => Due::IdleOut,
            Phase::Head | Phase::Fresh | Phase::Idle => Due::Nothing,
        }
    }

    /// The socket is to answer 408 when it is read next.
    pub(super) fn mark_late(&self) {
        self.late.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }

    /// Tells the connection's task; never takes an order back.
    pub(super) fn tell(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::Relaxed);
        self.ordered.notify_one();
    }

    /// The order in force.
    pub(super) fn order(&self) -> Order {
        match self.order.load(Ordering::Relaxed) {
            0 => Order::Serve,
            1 => Order::Close,
            _ => Order::Abort,
        }
    }

    /// Resolves after each [`tell`](Self::tell).
    pub(super) async fn told(&self) {
        self.ordered.notified().await;
    }

    /// How gladly this one is closed to make room: never used before used, then the longest without a
    /// request. `None`: not at all.
    pub(super) fn spare_rank(&self) -> Option<(bool, u64)> {
        if self.order() != Order::Serve {
            return None;
        }
        let since = self.since_ms.load(Ordering::Relaxed);
        match self.phase() {
            Phase::Fresh => Some((false, since)),
            Phase::Idle if ms(self.in_phase()) >= USED_IDLE_MIN_MS => Some((true, since)),
            Phase::Head | Phase::Busy | Phase::Idle => None,
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::ZERO;
    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn time_limits_belong_to_their_phase() {
        let connection = Arc::new(Connection::new(Instant::now()));
        assert_eq!(connection.due(SHORT, LONG), Due::IdleOut);
        connection.enter(Phase::Head);
        assert_eq!(connection.due(LONG, SHORT), Due::Nothing);
        assert_eq!(connection.due(SHORT, LONG), Due::HeadLate);
        let (first, second) = (connection.begin(), connection.begin());
        assert_eq!(connection.due(SHORT, SHORT), Due::Nothing);
        drop(first);
        assert_eq!(connection.due(SHORT, SHORT), Due::Nothing, "the second is in work");
        drop(second);
        assert_eq!(connection.due(SHORT, LONG), Due::Nothing);
        assert_eq!(connection.due(SHORT, SHORT), Due::IdleOut);
    }

    #[test]
    fn an_answer_that_nobody_takes_is_stuck_whatever_else_goes_on() {
        let connection = Arc::new(Connection::new(Instant::now() - Duration::from_secs(10)));
        let limit = Duration::from_secs(5);
        let stuck = connection.begin().sending();
        let other = connection.begin().sending();
        assert_eq!(connection.due(limit, limit), Due::Nothing);
        for (_, moved) in &mut connection.answers().moved_ms {
            *moved = 1;
        }
        other.moved();
        drop(connection.begin());
        assert_eq!(connection.due(limit, limit), Due::Stuck);
        stuck.moved();
        assert_eq!(connection.due(limit, limit), Due::Nothing);
        drop(stuck);
        assert_eq!(connection.phase(), Phase::Busy);
        drop(other);
        assert_eq!(connection.phase(), Phase::Idle);
    }

    #[test]
    fn only_connections_without_a_request_make_room_and_unused_ones_first() {
        let epoch = Instant::now() - Duration::from_secs(10);
        let connection = Arc::new(Connection::new(epoch));
        let fresh = connection.spare_rank();
        assert!(fresh.is_some());
        connection.enter(Phase::Head);
        assert_eq!(connection.spare_rank(), None);
        let work = connection.begin();
        assert_eq!(connection.spare_rank(), None);
        drop(work);
        assert_eq!(connection.spare_rank(), None, "just used");
        connection.since_ms.store(1, Ordering::Relaxed);
        assert!(connection.spare_rank() > fresh, "used, though idle for longer");
        connection.tell(Order::Close);
        assert_eq!(connection.spare_rank(), None, "already told");
    }

    #[test]
    fn order_is_never_taken_back() {
        let connection = Connection::new(Instant::now());
        connection.tell(Order::Abort);
        connection.tell(Order::Close);
        assert_eq!(connection.order(), Order::Abort);
    }
}
