//! A cluster of three real brokers: replication factor 3, min.insync.replicas 2.

use super::{Trial, config, rounds};
use crate::support::cluster::Cluster;
use crate::support::pool::{Lent, Pool};
use crate::support::{poll, seconds, soak, unique};

/// The cluster of these tests, whole whatever the one before left, and a topic of its own.
fn cluster() -> (Lent<Cluster>, String) {
    static CLUSTERS: Pool<Cluster> = Pool::new();
    let cluster = CLUSTERS.lend(Cluster::start);
    let down: Vec<usize> = (0..3).filter(|node| !cluster.nodes[*node].runs()).collect();
    cluster.start_nodes(&down);
    let topic = unique("cluster");
    cluster.whole.create_topic(&topic, 3, &[]);
    lead_by_preference(&cluster, &topic);
    (cluster, topic)
}

pub fn each_leader_killed_in_turn_costs_nothing(delivery: &str) {
    let (cluster, topic) = cluster();
    let mut trial = Trial::start(&cluster.whole, &config(cluster.whole.bootstrap(), delivery), &[&topic]);
    let mut killed = [false; 3];
    for round in 0..rounds(1) {
        // A broker that was not killed yet, and what it leads now.
        let victim = poll("a broker that leads", seconds(60), || {
            let leaders = (0..3).filter_map(|partition| cluster.leader(&topic, partition));
            let leaders: Vec<usize> = leaders.collect();
            let is_fresh = |node: &usize| round >= 3 || !killed[*node];
            leaders.into_iter().find(is_fresh)
        });
        killed[victim] = true;
        cluster.nodes[victim].kill();
        trial.injected += 1;
        trial.answers();
        // The two others take over.
        trial.delivers();
        cluster.nodes[victim].start();
        trial.delivers();
        lead_by_preference(&cluster, &topic);
    }
    assert!(!soak() || killed == [true; 3]);
    trial.finish(delivery, "the leader of a partition killed, three brokers");
}

/// Each broker leads its share again, not only those that were never killed.
fn lead_by_preference(cluster: &Cluster, topic: &str) {
    poll("each broker leads a partition", seconds(60), || {
        let mut leaders: Vec<usize> = (0..3)
            .filter_map(|partition| cluster.leader(topic, partition))
            .collect();
        leaders.sort_unstable();
        (leaders == [0, 1, 2]).then_some(())
    });
}

pub fn without_enough_replicas_nothing_is_acknowledged_and_nothing_lost(delivery: &str) {
    let (cluster, topic) = cluster();
    let mut trial = Trial::start(&cluster.whole, &config(cluster.whole.bootstrap(), delivery), &[&topic]);
    for round in 0..rounds(1) {
        let first = usize::try_from(round % 3).unwrap();
        let down = [first, (first + 1) % 3];
        for node in down {
            cluster.nodes[node].kill();
        }
        trial.injected += 1;
        // What was on its way when the second ended may have been answered.
        trial.answers();
        let acked = trial.acked();
        trial.for_long(seconds(5));
        assert_eq!(trial.acked(), acked, "one replica is not enough");
        cluster.start_nodes(&down);
        trial.delivers();
    }
    trial.finish(delivery, "two of three brokers killed");
}
