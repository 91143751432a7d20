//! `tidegate key create | list | revoke`: the file that `http.api_keys_file` names.

use std::path::Path;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::exit::Usage;
use super::print;
use crate::config::Config;
use crate::keys::{self, Entry, KeysError};
use crate::record::fits;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a key and print it, once: its hash is all that is kept. Without --topic and --source it may write everywhere
    Create(Create),
    /// Show the keys: id, name, what they may do, when they were made
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Take a key away: whoever uses it reads 401 within seconds
    Revoke {
        /// The id or the name of the key, or the key itself
        key: String,
        /// Do it; without this nothing is changed
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Whose key it is, such as press-4; shown in lists and refusals
    #[arg(long)]
    name: String,
    /// A topic that it may write to at /v1/topics/TOPIC and by REST Proxy; '*' is any characters; may be repeated
    #[arg(long = "topic", value_name = "PATTERN")]
    topics: Vec<String>,
    /// A source that it may post to at /SOURCE; '*' is any characters; may be repeated
    #[arg(long = "source", value_name = "PATTERN")]
    sources: Vec<String>,
    /// A JSON object with the key instead of the key alone
    #[arg(long)]
    json: bool,
}

/// What `key create --json` prints.
#[derive(Serialize)]
struct Made<'a> {
    key: &'a str,
    name: &'a str,
}

/// What `key list --json` prints a line of.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    name: &'a str,
    topics: &'a [String],
    sources: &'a [String],
    created: &'a str,
}

pub(super) fn run(command: Command, config: &Config) -> Result<()> {
    let path = std::path::absolute(&config.http.api_keys_file).unwrap_or_else(|_| config.http.api_keys_file.clone());
    let path = path.as_path();
    if config.http.api_keys_file.as_os_str().is_empty() {
        let text = "http.api_keys_file is empty, so there is no file of keys: set it, such as api_keys_file = \
                    \"/etc/tidegate/keys.toml\" under [http], or in TIDEGATE_HTTP__API_KEYS_FILE";
        return Err(Usage(text.to_owned()).into());
    }
    match command {
        Command::Create(given) => create(path, given, config),
        Command::List { json } => list(path, json),
        Command::Revoke { key, yes } => revoke(path, &key, yes),
    }
}

fn create(path: &Path, given: Create, config: &Config) -> Result<()> {
    let created = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second())?.to_string();
    for pattern in &given.sources {
        if !config.sources.iter().any(|source| fits(pattern, &source.name)) {
            eprintln!(
                "tidegate: no source of this configuration fits {pattern:?}: the key is of no use for one until there is one"
            );
        }
    }
    let is_new = !path.exists();
    let made = keys::create(path, &given.name, given.topics, given.sources, created);
    let key = made.map_err(|error| without_folder(path, error))?;
    if given.json {
        let name = &given.name;
        print(format!("{}\n", serde_json::to_string(&Made { key: &key, name })?).as_bytes())?;
    } else {
        print(format!("{key}\n").as_bytes())?;
    }
    if is_new {
        eprintln!(
            "tidegate: {} was not there and was made, for its owner alone: it has this key and no other",
            path.display()
        );
    }
    eprintln!(
        "tidegate: this is the key of {:?}; it is shown once, and only its hash is kept in {}. A gateway that runs with this \
         file takes it once it has read it, within seconds: its log says so. Clients send it as \"Authorization: Bearer KEY\"",
        given.name,
        path.display()
    );
    Ok(())
}

/// A file is made where there is none; the folder that it is to be in is not, for it says who may read there.
fn without_folder(path: &Path, error: KeysError) -> anyhow::Error {
    match path.parent() {
        Some(folder) if error.is_missing() && !folder.exists() => Usage(format!(
            "there is no folder {} for the file of keys {}, so no key was made: make the folder, or set http.api_keys_file to \
             a file in another one",
            folder.display(),
            path.display()
        ))
        .into(),
        _ => error.into(),
    }
}

/// Without a file there is no key: that is an answer, not a failure.
fn entries(path: &Path) -> Result<Vec<Entry>> {
    match keys::list(path) {
        Err(error) if error.is_missing() => {
            eprintln!(
                "tidegate: there is no file {} yet: `tidegate key create --name NAME` makes it",
                path.display()
            );
            Ok(Vec::new())
        }
        listed => Ok(listed?),
    }
}

fn list(path: &Path, json: bool) -> Result<()> {
    let entries = entries(path)?;
    let mut text = String::new();
    if json {
        for entry in &entries {
            let line = Line {
                id: &entry.id,
                name: &entry.name,
                topics: &entry.topics,
                sources: &entry.sources,
                created: &entry.created,
            };
            text.push_str(&serde_json::to_string(&line)?);
            text.push('\n');
        }
        return print(text.as_bytes());
    }
    let width = entries
        .iter()
        .map(|entry| entry.name.chars().count())
        .max()
        .unwrap_or(0)
        .max(4);
    if !entries.is_empty() {
        text.push_str(&format!(
            "{:<8}  {:<width$}  {:<20}  MAY WRITE TO\n",
            "ID", "NAME", "CREATED"
        ));
    }
    for Entry {
        id,
        name,
        created,
        topics,
        sources,
        ..
    } in &entries
    {
        text.push_str(&format!(
            "{id:<8}  {name:<width$}  {created:<20}  {}\n",
            rights(topics, sources)
        ));
    }
    print(text.as_bytes())
}

fn rights(topics: &[String], sources: &[String]) -> String {
    let of = |what: &str, patterns: &[String]| match patterns {
        [] => None,
        patterns => Some(format!("{what} {}", patterns.join(", "))),
    };
    let both: Vec<String> = [of("topics", topics), of("sources", sources)]
        .into_iter()
        .flatten()
        .collect();
    match both.as_slice() {
        [] => "nothing".to_owned(),
        both => both.join("; "),
    }
}

fn revoke(path: &Path, which: &str, yes: bool) -> Result<()> {
    if !yes {
        let entries = entries(path)?;
        let Some(entry) = keys::meant(&entries, which) else {
            return Err(keys::unknown(path).into());
        };
        let text = format!(
            "this would revoke the key {} of {:?} ({}): whoever uses it is refused from then on. Nothing was changed; add --yes to \
             do it",
            entry.id,
            entry.name,
            rights(&entry.topics, &entry.sources)
        );
        return Err(Usage(text).into());
    }
    let entry = keys::revoke(path, which)?;
    eprintln!(
        "tidegate: revoked the key {} of {:?}; a gateway that runs with this file refuses it once it has read it, within seconds: its log says so",
        entry.id, entry.name
    );
    Ok(())
}
