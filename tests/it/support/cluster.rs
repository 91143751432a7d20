//! Three real brokers: each holds every partition (replication factor 3, min.insync.replicas 2), each is a controller
//! too.

use std::thread;

use super::free_port;
use super::kafka::{CLUSTER, Kafka, Machine};

const NODES: usize = 3;

/// See the module.
pub struct Cluster {
    /// All of it, for who makes and reads topics.
    pub whole: Kafka,
    /// Its brokers; broker n has the id n + 1.
    pub nodes: Vec<Kafka>,
}

impl Cluster {
    pub fn start() -> Self {
        let controllers: Vec<u16> = (0..NODES).map(|_| free_port()).collect();
        let voters: Vec<String> = (controllers.iter().enumerate())
            .map(|(n, port)| format!("{}@127.0.0.1:{port}", n + 1))
            .collect();
        let machine = Machine {
            heap_mib: 256,
            within: None,
        };
        let node = |n: usize| {
            Kafka::prepared(CLUSTER, "127.0.0.1", machine, |_, broker| {
                let lines = [
                    format!("node.id={}", n + 1),
                    format!("controller.quorum.voters={}", voters.join(",")),
                    format!(
                        "listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{}",
                        controllers[n]
                    ),
                    // A broker that comes back leads its share again.
                    "leader.imbalance.check.interval.seconds=1".to_owned(),
                    "leader.imbalance.per.broker.percentage=0".to_owned(),
                    "default.replication.factor=3".to_owned(),
                    "min.insync.replicas=2".to_owned(),
                    "offsets.topic.replication.factor=3".to_owned(),
                    "transaction.state.log.replication.factor=3".to_owned(),
                    "transaction.state.log.min.isr=2".to_owned(),
                ];
                lines.into_iter().map(|line| ("", line)).collect()
            })
        };
        let nodes: Vec<Kafka> = (0..NODES).map(node).collect();
        let addresses: Vec<&str> = nodes.iter().map(Kafka::bootstrap).collect();
        let cluster = Self {
            whole: Kafka::at(addresses.join(",")),
            nodes,
        };
        cluster.start_nodes(&[0, 1, 2]);
        cluster
    }

    /// Starts these brokers side by side: one alone does not answer.
    pub fn start_nodes(&self, nodes: &[usize]) {
        thread::scope(|scope| {
            for n in nodes {
                scope.spawn(|| self.nodes[*n].start());
            }
        });
    }

    /// The place in [`Self::nodes`] of the broker that leads a partition, if one does.
    pub fn leader(&self, topic: &str, partition: i32) -> Option<usize> {
        let id = self.whole.leader(topic, partition)?;
        Some(usize::try_from(id).expect("an id of ours") - 1)
    }
}
