//! Clients that write records with a key each, one after the other, and keep the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::JSON;
use super::client::{Answer, Client};
use super::gateway::Gateway;
use super::ledger::{Ledger, Outcome};

/// Client threads at work on one gateway.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Numbers for values: unique in the process, whatever gateway or cycle.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A value that nobody else has, with its number padded to the size of a usual record.
pub fn value() -> Vec<u8> {
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        r#"{{"n":{n},"name":"Zoë","amount":"{:>12}","note":"{}"}}"#,
        n * 7,
        "filler ".repeat(12)
    )
    .into_bytes()
}

impl Load {
    /// `clients` threads; client i posts to `topic` with the key `key-<i>`. They end with the first request
    /// that has no answer (the gateway was killed), or when stopped.
    pub fn start(gateway: &Gateway, ledger: &Arc<Ledger>, topic: &str, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..clients)
            .map(|i| {
                let client = gateway.client();
                let (ledger, stop, topic) = (Arc::clone(ledger), Arc::clone(&stop), topic.to_owned());
                let key = format!("key-{i}");
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if !post(&client, &ledger, &topic, Some(&key)) {
                            break;
                        }
                    }
                })
            })
            .collect();
        Self { stop, threads }
    }

    /// Waits until the clients have ended by themselves.
    pub fn join(self) {
        for thread in self.threads {
            thread.join().expect("a client does not panic");
        }
    }

    /// Stops the clients after the request they are at.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.join();
    }
}

/// Posts one new record and writes down what became of it; false without an answer. A refusal that asks to
/// come back later is followed by a short pause.
pub fn post(client: &Client, ledger: &Ledger, topic: &str, key: Option<&str>) -> bool {
    let value = value();
    let place = ledger.intend(topic, key, &value);
    let mut headers = vec![("content-type", JSON)];
    headers.extend(key.map(|key| ("tidegate-key", key)));
    match client.post_with(&format!("/v1/topics/{topic}"), &headers, &value) {
        Ok(answer) => {
            settle(ledger, place, &answer);
            if answer.status == 503 {
                thread::sleep(Duration::from_millis(10));
            }
            true
        }
        Err(_) => false,
    }
}

/// Writes down the answer to a request of one record.
pub fn settle(ledger: &Ledger, place: usize, answer: &Answer) {
    ledger.settle(place, outcome(answer, 0));
}

/// The outcome of the record at `index` of a request's batch, from the receipt.
pub fn outcome(answer: &Answer, index: u64) -> Outcome {
    if answer.status != 202 {
        return Outcome::Refused(answer.status);
    }
    let receipt = answer.json();
    Outcome::Ok {
        wal: receipt["wal"].as_str().expect("a receipt names the WAL").to_owned(),
        seq: receipt["first_seq"].as_u64().expect("a receipt has first_seq") + index,
    }
}
