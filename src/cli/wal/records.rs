//! Which records, and from where: the flags that choose, and pages of them from a gateway or a folder.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::super::ask::Listener;
use super::super::at::{At, Where, archive, check_signs, in_use};
use super::super::exit::Usage;
use crate::config::Config;
use crate::ops::{Limits, Page, Query, page};
use crate::record::{Sequence, WalId};
use crate::wal::{Archive, Part, Reader, Watermarks, count_sequences};

/// Which records.
#[derive(Debug, Clone, Default, clap::Args)]
pub(in crate::cli) struct Filter {
    /// Only from this sequence on
    #[arg(long, value_name = "N")]
    pub(super) from_seq: Option<Sequence>,
    /// Only up to this sequence
    #[arg(long, value_name = "N")]
    pub(super) to_seq: Option<Sequence>,
    /// Only what was received at this time or later: 2026-11-24T03:00:00Z, 2026-11-24 (its midnight, UTC), or "2 h" for two
    /// hours ago
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<i64>,
    /// Only what was received before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<i64>,
    /// Only of this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Only with exactly this key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only with this text in the value
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
}

impl Filter {
    pub(in crate::cli) fn query(&self) -> Result<Query> {
        if let (Some(from), Some(to)) = (self.from_seq, self.to_seq)
            && from > to
        {
            return Err(Usage(format!(
                "--from-seq {from} is behind --to-seq {to}: nothing lies between them"
            ))
            .into());
        }
        Ok(Query {
            from_seq: self.from_seq,
            to_seq: self.to_seq,
            since_ms: self.since,
            until_ms: self.until,
            topic: self.topic.clone(),
            key: self.key.clone(),
            text: self.text.clone(),
            limit: None,
            only_count: false,
        })
    }
}

/// A time as people write it, in milliseconds since the epoch: a date, with a time of day or without, or how long ago.
fn moment(text: &str) -> Result<i64, String> {
    // Without a zone it is UTC.
    let written = text.parse::<Timestamp>().or_else(|_| {
        let time = text.parse::<DateTime>()?;
        TimeZone::UTC.to_timestamp(time)
    });
    let ago = |_: jiff::Error| {
        let ago = humantime::parse_duration(text).ok()?;
        Timestamp::now().checked_sub(ago).ok()
    };
    let time = written.map_or_else(ago, Some);
    time.map(Timestamp::as_millisecond).ok_or_else(|| {
        "write a UTC time such as 2026-11-24T03:00:00Z, a date such as 2026-11-24 (its midnight), or how long ago, such as \
         \"2 h\""
            .to_owned()
    })
}

/// Records of the main log, from a gateway or a folder. No `Debug`: a listener holds the token.
pub(in crate::cli) enum Records {
    Online(Listener),
    Offline {
        archive: Box<Archive>,
        reader: Reader,
        id: WalId,
    },
}

impl Records {
    /// Finds them.
    pub(in crate::cli) fn open(at: &At, config: &Config) -> Result<Self> {
        match at.find(config)? {
            Where::Online(listener) => Ok(Self::Online(listener)),
            Where::Offline(path) => Self::of(archive(&path)?),
        }
    }

    /// Those of a folder.
    pub(in crate::cli) fn of(archive: Archive) -> Result<Self> {
        let id = archive.id()?;
        let log = archive
            .log(Part::Main)
            .map(Arc::clone)
            .context("a WAL has a main log")?;
        // From the very first one that is there, acknowledged or not.
        let reader = log.reader(log.watermarks().trimmed + 1);
        Ok(Self::Offline {
            archive: Box::new(archive),
            reader,
            id,
        })
    }

    /// The next ones from `from` on.
    pub(in crate::cli) fn page(&mut self, query: &Query, from: Sequence) -> Result<Page> {
        match self {
            Self::Online(listener) => Ok(listener.get(&url(query, from))?),
            Self::Offline { archive, reader, id } => {
                reader.seek(from);
                let query = Query {
                    from_seq: None,
                    ..query.clone()
                };
                let page = page(reader, *id, &query, Limits::ANSWER)?;
                if !page.damaged.is_empty() {
                    // A gateway that has started meanwhile removes what is acknowledged: that is no damage.
                    archive.check_unused().map_err(in_use)?;
                }
                Ok(page)
            }
        }
    }

    /// The last sequence that is on disk.
    pub(in crate::cli) fn committed(&self) -> Result<Sequence> {
        self.watermark("committed", |marks| marks.committed)
    }

    /// The last sequence that is no longer on disk; 0 if all are.
    pub(in crate::cli) fn trimmed(&self) -> Result<Sequence> {
        self.watermark("trimmed", |marks| marks.trimmed)
    }

    /// The last sequence up to which Kafka has acknowledged everything.
    pub(super) fn acked(&self) -> Result<Sequence> {
        self.watermark("acked", |marks| marks.acked)
    }

    /// How many records the log could not read when their turn came, and whether `sequence` is one of them: a gateway tells
    /// only how many.
    pub(super) fn unreadable(&self, sequence: Sequence) -> Result<(u64, Option<bool>)> {
        match self {
            Self::Online(listener) => Ok((told(listener, "corruption_records")?, None)),
            Self::Offline { archive, .. } => {
                let unsent = archive.log(Part::Main).map_or(&[][..], |log| log.unsent());
                let count = count_sequences(unsent);
                let is_one = unsent.iter().any(|(first, last)| (*first..=*last).contains(&sequence));
                Ok((count, Some(is_one)))
            }
        }
    }

    fn watermark(&self, name: &str, of: impl Fn(Watermarks) -> Sequence) -> Result<Sequence> {
        match self {
            Self::Online(listener) => told(listener, name),
            Self::Offline { archive, .. } => Ok(archive.log(Part::Main).map_or(0, |log| of(log.watermarks()))),
        }
    }

    /// Whether what was read is all that was there: see [`check_signs`]. A gateway tells damage itself.
    pub(super) fn whole(&self) -> Result<()> {
        match self {
            Self::Online(_) => Ok(()),
            Self::Offline { archive, .. } => check_signs(archive),
        }
    }

    /// Whether a gateway is asked.
    pub(in crate::cli) fn is_online(&self) -> bool {
        matches!(self, Self::Online(_))
    }
}

/// A number that a gateway's status has.
fn told(listener: &Listener, name: &str) -> Result<u64> {
    let status = listener.status()?.value;
    let value = status
        .pointer(&format!("/wal/{name}"))
        .and_then(serde_json::Value::as_u64);
    value.with_context(|| format!("the gateway's status has no wal.{name}: it is of another version"))
}

/// The path and query that ask a gateway for a page.
fn url(query: &Query, from: Sequence) -> String {
    let mut url = format!("/v1/wal/records?from_seq={from}");
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let value = utf8_percent_encode(&value, NON_ALPHANUMERIC);
            url.push_str(&format!("&{name}={value}"));
        }
    };
    add("to_seq", query.to_seq.map(|to| to.to_string()));
    add("since_ms", query.since_ms.map(|ms| ms.to_string()));
    add("until_ms", query.until_ms.map(|ms| ms.to_string()));
    add("topic", query.topic.clone());
    add("key", query.key.clone());
    add("text", query.text.clone());
    add("limit", query.limit.map(|limit| limit.to_string()));
    add("only_count", query.only_count.then(|| "true".to_owned()));
    url
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates_or_how_long_ago() {
        assert_eq!(moment("1970-01-01T00:00:01Z").unwrap(), 1000);
        assert_eq!(moment("1970-01-01 00:00:01").unwrap(), 1000);
        assert_eq!(moment("1970-01-02T01:00:00+01:00").unwrap(), 86_400_000);
        assert_eq!(moment("1970-01-02").unwrap(), 86_400_000, "midnight");
        let now = crate::record::now_ms();
        let ago = moment("2 h").unwrap();
        assert!((now - 7_200_000 - ago).abs() < 5_000);
        for text in ["yesterday", "2026-02-30", "2026-11", "24.11.2026", "-1 h", ""] {
            assert!(moment(text).is_err_and(|error| error.contains("2026-11-24")), "{text}");
        }
    }

    #[test]
    fn what_is_asked_for_is_escaped() {
        let query = Query {
            text: Some("a&b=ü".into()),
            limit: Some(5),
            ..Query::default()
        };
        assert_eq!(url(&query, 7), "/v1/wal/records?from_seq=7&text=a%26b%3D%C3%BC&limit=5");
    }
}
