//! `wal rewind`: what was acknowledged is sent again.

use anyhow::{Context as _, Result, bail};

use super::super::at::{At, Where, archive, opened};
use super::super::exit::Usage;
use super::super::print;
use super::super::words::counted;
use crate::config::Config;
use crate::ops::RewindOrder;
use crate::record::Sequence;
use crate::wal::{Part, Rewound};

/// `wal rewind`
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Rewind {
    /// The first sequence that is sent again
    #[arg(long, value_name = "N")]
    from_seq: Sequence,
    /// Do it; without it, only say what would be sent
    #[arg(long)]
    yes: bool,
    /// The outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

pub(super) fn rewind(flags: &Rewind, config: &Config) -> Result<()> {
    let from = flags.from_seq;
    if from == 0 {
        return Err(Usage("sequences begin at 1: --from-seq 1 is the lowest".to_owned()).into());
    }
    let place = flags.at.find(config)?;
    let (acked, first) = match &place {
        Where::Online(listener) => {
            let status = listener.status()?.value;
            let mark = |name: &str| status.pointer(name).and_then(serde_json::Value::as_u64);
            let marks = mark("/wal/acked").zip(mark("/wal/trimmed"));
            let (acked, trimmed) = marks.context("the gateway's status has no watermarks: it is of another version")?;
            (acked, trimmed + 1)
        }
        Where::Offline(path) => {
            let archive = archive(path)?;
            let marks = archive.log(Part::Main).map(|log| log.watermarks()).unwrap_or_default();
            (marks.acked, marks.trimmed + 1)
        }
    };
    // Asked before --yes and with it: what cannot be done is told in the same words.
    if let Some(why) = refusal(from, first, acked) {
        bail!("a rewind to sequence {from} cannot be done: {why}. Nothing was changed");
    }
    if !flags.yes {
        let count = acked + 1 - from;
        let text = format!(
            "a rewind to sequence {from} would send {} again that were settled (acknowledged by Kafka, or discarded or redirected by an operator), with the {} had, so that the lander \
             stores {}. Nothing was changed: add --yes to do it",
            counted(count, "record"),
            one_or(count, "identity it", "identity they"),
            one_or(count, "it once", "none of them twice"),
        );
        return Err(Usage(text).into());
    }
    let (rewound, when): (Rewound, _) = match place {
        Where::Online(listener) => {
            let order = RewindOrder { from_seq: from };
            (listener.post("/v1/wal/rewind", &order)?, "now")
        }
        Where::Offline(_) => {
            let rewound = opened(config, |wal| {
                // All of it, whatever a start finds in Kafka.
                let through = wal.log().watermarks().acked;
                Ok(wal.log().rewind(from, through)?)
            })?;
            (rewound, "after the next start of the gateway")
        }
    };
    let text = match flags.json {
        true => format!("{}\n", serde_json::to_string(&rewound)?),
        false => format!(
            "{} that were settled (acknowledged by Kafka, or discarded or redirected by an operator) {} sent again {when}, from sequence {from} on (acked {}, committed {})\n",
            counted(rewound.again, "record"),
            one_or(rewound.again, "is", "are"),
            rewound.acked,
            rewound.committed
        ),
    };
    print(text.as_bytes())
}

fn one_or(count: u64, one: &'static str, many: &'static str) -> &'static str {
    if count == 1 { one } else { many }
}

/// Why the log cannot go back there: `first` is the first record on disk, `acked` the last one that Kafka has.
fn refusal(from: Sequence, first: Sequence, acked: Sequence) -> Option<String> {
    if acked == 0 {
        Some("Kafka has acknowledged nothing yet, and everything is sent anyway".to_owned())
    } else if from > acked {
        Some(format!(
            "only {acked} and before were acknowledged; what is behind that is sent anyway"
        ))
    } else if first > acked {
        Some("no acknowledged record is still on disk (wal.retain keeps them)".to_owned())
    } else if from < first {
        Some(format!(
            "the first record that is still on disk is {first} (wal.retain keeps more): --from-seq {first} is the lowest"
        ))
    } else {
        None
    }
}
