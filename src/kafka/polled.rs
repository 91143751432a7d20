//! A producer whose reports are served by a thread of its own, for as long as somebody holds it.
//!
//! What rdkafka's `ThreadedProducer` is, but for the time of a look: that one's thread waits for whole milliseconds, and asks
//! again and again without waiting for what is left of the last one. At rest that was most of what a gateway took of the
//! processor (8 of 10 ms in a second). Does not know what the reports say.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseProducer, ProducerContext};

/// How long the thread waits for a report at most, which is how long the end of the producer may wait for the thread. A little
/// more than whole milliseconds: a look in which nothing comes is over, then, when the wait for them is.
const LOOK: Duration = Duration::from_micros(100_020);
/// How far librdkafka's threads stand behind others, as nice(2) counts.
const NICENESS: i32 = 10;

/// See the module. The last of its clones ends it.
pub(crate) struct Polled<C: ProducerContext + 'static> {
    /// First: its end is waited for before the producer's.
    _thread: Arc<Poller>,
    producer: Arc<BaseProducer<C>>,
}

impl<C: ProducerContext> Polled<C> {
    /// Makes the producer; needs no broker.
    ///
    /// # Errors
    /// A property that librdkafka does not know or cannot take; no thread to be had.
    pub(crate) fn create(config: &ClientConfig, context: C) -> KafkaResult<Self> {
        let producer = Arc::new(behind_others(|| {
            BaseProducer::from_config_and_context(config, context)
        })?);
        let (polled, stop) = (Arc::clone(&producer), Arc::new(AtomicBool::new(false)));
        let is_over = Arc::clone(&stop);
        let look = move || {
            while !is_over.load(Ordering::Relaxed) {
                polled.poll(LOOK);
            }
        };
        let thread = thread::Builder::new().name("kafka reports".to_owned()).spawn(look);
        let thread = thread.map_err(|error| no_thread(&error))?;
        Ok(Self {
            _thread: Arc::new(Poller {
                stop,
                thread: Some(thread),
            }),
            producer,
        })
    }
}

/// Makes a client whose threads let those go first that a client of the gateway waits for: a backlog has time. They begin with the
/// priority of the thread that makes them. The forwarder's own is left as it is: it shares locks with the log, and one that was
/// preempted while it had them would hold up commits (measured: `benches/mixed.rs`, with Kafka there).
fn behind_others<T: Send>(make: impl FnOnce() -> KafkaResult<T> + Send) -> KafkaResult<T> {
    let making = || {
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::debug!(%error, "librdkafka's threads keep their priority");
        }
        make()
    };
    thread::scope(|scope| {
        let made = thread::Builder::new().spawn_scoped(scope, making);
        let made = made.map_err(|error| no_thread(&error))?;
        made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn no_thread(error: &std::io::Error) -> KafkaError {
    KafkaError::ClientCreation(format!("no thread for it: {error}"))
}

impl<C: ProducerContext> Clone for Polled<C> {
    fn clone(&self) -> Self {
        Self {
            _thread: Arc::clone(&self._thread),
            producer: Arc::clone(&self.producer),
        }
    }
}

impl<C: ProducerContext> Deref for Polled<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &BaseProducer<C> {
        &self.producer
    }
}

/// The thread, which ends with this.
struct Poller {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that has panicked has said so.
            drop(thread.join());
        }
    }
}
