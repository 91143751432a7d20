//! `wal rewind`: what was acknowledged is sent again.

use anyhow::{Context as _, Result};

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
    let place = flags.at.find(config)?;
    if !flags.yes {
        let (acked, first) = match &place {
            Where::Online(listener) => {
                let status = listener.status()?.value;
                let mark = |name: &str| status.pointer(name).and_then(serde_json::Value::as_u64);
                let marks = mark("/wal/acked").zip(mark("/wal/trimmed"));
                let (acked, trimmed) =
                    marks.context("the gateway's status has no watermarks: it is of another version")?;
                (acked, trimmed + 1)
            }
            Where::Offline(path) => {
                let archive = archive(path)?;
                let marks = archive.log(Part::Main).map(|log| log.watermarks()).unwrap_or_default();
                (marks.acked, marks.trimmed + 1)
            }
        };
        let what = if from < first {
            format!("cannot be done: the first record that is still on disk is {first} (wal.retain keeps more)")
        } else if from > acked + 1 {
            format!("cannot be done: only {acked} and before were acknowledged; what is behind that is sent anyway")
        } else {
            format!(
                "would send {} again that Kafka has acknowledged, with the identity they had, so that the lander stores \
                 none of them twice. Nothing was changed: add --yes to do it",
                counted(acked + 1 - from, "record")
            )
        };
        return Err(Usage(format!("a rewind to sequence {from} {what}")).into());
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
            "{} that Kafka has acknowledged are sent again {when}, from sequence {from} on (acked {}, committed {})\n",
            counted(rewound.again, "record"),
            rewound.acked,
            rewound.committed
        ),
    };
    print(text.as_bytes())
}
