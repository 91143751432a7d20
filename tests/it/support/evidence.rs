//! A row of docs/reliability.md, printed by the test that injected the fault: what a reader of that page
//! gets when he runs its command. It goes past the harness, which keeps what a passing test prints.

use std::io::Write as _;

use super::ledger::Tally;

/// What a test has injected, and what came of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence {
    /// How often the fault was injected.
    pub injected: u64,
    /// Records answered OK.
    pub answered: u64,
    /// Of these, how many are nowhere.
    pub lost: u64,
    /// Second records with one identity, in Kafka or in the table.
    pub repeated: u64,
}

impl Evidence {
    /// Of a check of the book against Kafka, which has found nothing lost.
    pub fn of(tally: &Tally, injected: u64) -> Self {
        Self {
            injected,
            answered: tally.ok as u64,
            lost: 0,
            repeated: tally.repeats as u64,
        }
    }

    /// Prints the row: `evidence: | fault | injected | answered OK | lost | repeated |`.
    pub fn print(&self, fault: &str) {
        let Self {
            injected,
            answered,
            lost,
            repeated,
        } = self;
        let row = format!("evidence: | {fault} | {injected} | {answered} | {lost} | {repeated} |\n");
        std::io::stderr().write_all(row.as_bytes()).expect("stderr is open");
    }
}
