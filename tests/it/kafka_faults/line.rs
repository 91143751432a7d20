//! The line to the broker: cut, slow, or losing what is sent without a word.

use super::{Trial, config, rounds};
use crate::support::kafka::Kafka;
use crate::support::pool::Pool;
use crate::support::proxy::{Line, Proxy};
use crate::support::{free_port, poll, seconds, unique};

/// How long librdkafka waits for an answer; its least is 10 ms, its default a minute.
const ANSWER_MAX: u64 = 3;

/// Has something happen to the line, again and again, and it heals.
fn trouble(delivery: &str, fault: &str, normal: u64, happens: impl Fn(&Trial<'_>, &Proxy, u64)) {
    // The tests' own clients go straight to the broker.
    static BROKERS: Pool<(Proxy, Kafka)> = Pool::new();
    let broker = BROKERS.lend(|| {
        let listener = free_port();
        let proxy = Proxy::start(listener);
        let kafka = Kafka::private_behind(proxy.port(), listener);
        (proxy, kafka)
    });
    let (proxy, kafka) = &*broker;
    proxy.set(Line::Open);
    let topic = unique("line");
    kafka.create_topic(&topic, 3, &[]);
    let mut config = config(&format!("127.0.0.1:{}", proxy.port()), delivery);
    config.property("socket.timeout.ms", &(ANSWER_MAX * 1000).to_string());
    let mut trial = Trial::start(kafka, &config, &[&topic]);
    for round in 0..rounds(normal) {
        happens(&trial, proxy, round);
        trial.injected += 1;
        proxy.set(Line::Open);
        trial.delivers();
    }
    trial.finish(delivery, fault);
}

pub fn a_line_that_is_cut_costs_nothing(delivery: &str) {
    trouble(
        delivery,
        "the connection to the broker cut",
        3,
        |trial, proxy, round| {
            proxy.set(Line::Cut);
            // At once again, or after a while.
            if round % 2 == 1 {
                trial.answers();
            }
        },
    );
}

/// Silence for longer than librdkafka waits: it must give the connection up by itself.
fn silence(delivery: &str, fault: &str, line: Line) {
    trouble(delivery, fault, 1, |trial, proxy, _| {
        proxy.set(line);
        trial.answers();
        let acked = trial.acked();
        trial.for_long(seconds(2 * ANSWER_MAX));
        assert_eq!(trial.acked(), acked, "nothing passes");
    });
}

pub fn a_line_that_loses_requests_in_the_middle_costs_nothing(delivery: &str) {
    silence(
        delivery,
        "the line loses requests, from the middle of one on",
        Line::LosesRequests,
    );
}

pub fn a_line_that_loses_answers_costs_nothing(delivery: &str) {
    silence(delivery, "the line loses the broker's answers", Line::LosesAnswers);
}

pub fn a_slow_line_delivers_in_order(delivery: &str) {
    trouble(
        delivery,
        "the line to the broker at 8 KiB a second",
        1,
        |trial, proxy, _| {
            proxy.set(Line::Slow(8 << 10));
            trial.post_bulk(2);
            let acked = trial.acked();
            trial.for_long(seconds(2 * ANSWER_MAX));
            // Slow is not stuck: batches of half a megabyte would never be answered in time.
            poll("something is acknowledged", seconds(60), || {
                (trial.acked() > acked).then_some(())
            });
        },
    );
}
