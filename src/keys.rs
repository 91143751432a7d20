//! API keys: who may send records, and where to. A file has them as hashes; what a client sends is nowhere.
//!
//! A key is `tg_ID_SECRET`: 8 hexadecimal digits that are its public name, and 256 random bits as base64url. So many bits
//! are not guessed, and a fast hash (SHA-256) keeps them as well as a slow one would; it is compared in constant time.
//!
//! The file is TOML that people may read and edit:
//!
//! ```toml
//! [[key]]
//! id = "3f9c01ab"
//! name = "press-4"
//! sha256 = "..."               # of the whole key, hexadecimal
//! topics = ["orders-*"]        # patterns, '*' is any run of characters
//! sources = ["financial_pro"]
//! created = "2026-01-31T12:00:00Z"
//! ```
//!
//! It is replaced as a whole (written beside, synced, renamed), by one process at a time, and a gateway that runs sees it
//! within seconds. Deliberately does not know: headers, requests, who asks.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::record::fits;
use crate::watched::{Watched, read_text};
use crate::words::counted;

/// The largest file, bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The most keys of a file.
pub const KEYS_MAX: usize = 10_000;
/// The longest name, bytes.
const NAME_BYTES_MAX: usize = 100;
/// The most patterns of a key, topics and sources each.
const PATTERNS_MAX: usize = 100;
/// The longest pattern, bytes: a topic's name has 249.
const PATTERN_BYTES_MAX: usize = 249;
/// How long a verb waits for another one, and how often it looks.
const TURN_MAX: Duration = Duration::from_secs(10);
const TURN_LOOK: Duration = Duration::from_millis(20);
/// How every key begins, so that secret scanners know one.
const PREFIX: &str = "tg_";
/// The length of an id, characters.
const ID_LEN: usize = 8;
/// The random bytes of a key.
const SECRET_BYTES: usize = 32;

/// A key as its file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its public name; part of the key.
    pub id: String,
    /// Whose it is, for people.
    pub name: String,
    /// Of the whole key.
    sha256: String,
    /// Patterns of the topics that it may write to by their own paths.
    #[serde(default)]
    pub topics: Vec<String>,
    /// Patterns of the sources that it may post to.
    #[serde(default)]
    pub sources: Vec<String>,
    /// When it was made, RFC 3339.
    #[serde(default)]
    pub created: String,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default, rename = "key")]
    keys: Vec<Entry>,
}

/// Why a file of keys cannot be used, or a verb on it not be done.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The system's words.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What is in it cannot be used.
    #[error("{path} cannot be used: {what}")]
    Invalid {
        /// The file.
        path: String,
        /// What is wrong, and where.
        what: String,
    },
    /// What was asked for cannot be done.
    #[error("{0}")]
    Refused(String),
    /// There is no such key.
    #[error("{path} has no key with this id or name: `tidegate key list` shows them")]
    Unknown {
        /// The file.
        path: String,
    },
}

impl KeysError {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Who a key belongs to, and what it may do.
#[derive(Debug, PartialEq, Eq)]
pub struct Holder {
    /// The key's public name.
    pub id: String,
    /// Whose it is.
    pub name: String,
    topics: Vec<String>,
    sources: Vec<String>,
}

impl Holder {
    /// Whether it may write to a topic by the topic's own path.
    #[must_use]
    pub fn may_write(&self, topic: &str) -> bool {
        self.topics.iter().any(|pattern| fits(pattern, topic))
    }

    /// Whether it may post to a source, wherever that one's records go.
    #[must_use]
    pub fn may_post(&self, source: &str) -> bool {
        self.sources.iter().any(|pattern| fits(pattern, source))
    }
}

/// The keys of a file.
#[derive(Debug, Default)]
struct Keys(HashMap<String, ([u8; 32], Arc<Holder>)>);

impl Keys {
    fn of(document: Document) -> Result<Self, String> {
        let (mut keys, mut names) = (HashMap::new(), HashSet::new());
        if document.keys.len() > KEYS_MAX {
            return Err(format!(
                "it has {} keys, and {KEYS_MAX} may be there",
                document.keys.len()
            ));
        }
        for entry in document.keys {
            if !names.insert(entry.name.clone()) {
                return Err(format!("two keys have the name {:?}: give one another", entry.name));
            }
            let digest = checked(&entry).map_err(|what| format!("key {:?} (id {:?}): {what}", entry.name, entry.id))?;
            let holder = Holder {
                id: entry.id.clone(),
                name: entry.name,
                topics: entry.topics,
                sources: entry.sources,
            };
            if keys.insert(entry.id.clone(), (digest, Arc::new(holder))).is_some() {
                return Err(format!("two keys have the id {:?}", entry.id));
            }
        }
        Ok(Self(keys))
    }

    fn holder(&self, key: &str) -> Option<Arc<Holder>> {
        let id = key.strip_prefix(PREFIX)?.get(..ID_LEN)?;
        let given = digest(key);
        let (expected, holder) = self.0.get(id)?;
        bool::from(given.ct_eq(expected)).then(|| Arc::clone(holder))
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// The digest of an entry in which everything is as it must be.
fn checked(entry: &Entry) -> Result<[u8; 32], String> {
    if !is_id(&entry.id) {
        return Err(format!("its id must be {ID_LEN} hexadecimal digits in lower case"));
    }
    check_name(&entry.name)?;
    check_patterns(&entry.topics, &entry.sources)?;
    let mut digest = [0; 32];
    let pairs = entry.sha256.as_bytes().chunks(2);
    if entry.sha256.len() != 64 {
        return Err("its sha256 must be 64 hexadecimal digits".to_owned());
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        let text = std::str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(text, 16).map_err(|_| "its sha256 must be 64 hexadecimal digits".to_owned())?;
    }
    Ok(digest)
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LEN
        && text
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(format!(
            "a name has 1 to {NAME_BYTES_MAX} bytes and no control characters"
        ));
    }
    if is_id(name) {
        return Err(format!(
            "a name of {ID_LEN} hexadecimal digits looks like an id: choose another"
        ));
    }
    Ok(())
}

fn check_patterns(topics: &[String], sources: &[String]) -> Result<(), String> {
    for (patterns, what) in [(topics, "topics"), (sources, "sources")] {
        if patterns.len() > PATTERNS_MAX {
            return Err(format!(
                "{what} has {} patterns, and {PATTERNS_MAX} may be there",
                patterns.len()
            ));
        }
        let wrong = |pattern: &&String| {
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '*');
            pattern.is_empty() || pattern.len() > PATTERN_BYTES_MAX || !pattern.chars().all(legal)
        };
        if let Some(pattern) = patterns.iter().find(wrong) {
            return Err(format!(
                "{what} has {pattern:?}, which fits nothing: write letters, digits, '.', '_', '-', and '*' for any characters"
            ));
        }
    }
    Ok(())
}

/// The keys in force, from a file that may change.
pub struct Book {
    path: PathBuf,
    keys: RwLock<Arc<Keys>>,
    watched: Mutex<Watched>,
}

impl Book {
    /// Reads the file.
    ///
    /// # Errors
    /// Where it cannot be read, or something in it cannot be used.
    pub fn open(path: &Path) -> Result<Self, KeysError> {
        // Looked at first: what changes while it is read is read again.
        let watched = Watched::new([path.to_path_buf()]);
        let keys = load(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            keys: RwLock::new(Arc::new(keys)),
            watched: Mutex::new(watched),
        })
    }

    /// Whose key this is, if it is one.
    #[must_use]
    pub fn holder(&self, key: &str) -> Option<Arc<Holder>> {
        let keys = Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner));
        keys.holder(key)
    }

    /// How many keys there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).0.len()
    }

    /// Whether the file was changed to something that cannot be used.
    pub(crate) fn is_refused(&self) -> bool {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).is_refused()
    }

    /// Reads the file again if it has changed: what is in force now, in words; what was before while it is wrong.
    ///
    /// # Errors
    /// See [`Book::open`]; each reason once.
    pub fn refresh(&self) -> Option<Result<String, KeysError>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = watched.refresh(|| load(&self.path))?;
        Some(loaded.map(|keys| {
            let now = match keys.0.len() {
                0 => "no key, so that nobody can send".to_owned(),
                count => counted(count as u64, "key"),
            };
            *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
            now
        }))
    }
}

fn load(path: &Path) -> Result<Keys, KeysError> {
    Keys::of(read(path)?).map_err(|what| invalid(path, what))
}

fn read(path: &Path) -> Result<Document, KeysError> {
    let text = read_text(path, FILE_BYTES_MAX).map_err(|error| io_error(path, error))?;
    parse(&text).map_err(|what| invalid(path, what))
}

fn parse(text: &str) -> Result<Document, String> {
    // The parser's own text shows the line, which may be a key that somebody pasted there: its message alone does not.
    toml::from_str(text).map_err(|error| {
        let before = text.bytes().take(error.span().map_or(0, |span| span.start));
        let line = 1 + before.filter(|byte| *byte == b'\n').count();
        format!("line {line}: {}", without_keys(error.message()))
    })
}

/// A text in which nothing that looks like a key is left.
fn without_keys(text: &str) -> String {
    let mut parts = text.split(PREFIX);
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        shown.push_str("[redacted]");
        shown.push_str(rest);
    }
    shown
}

/// A file of this text, read and written again, for src/decoders.rs; `None`: it cannot be used.
#[cfg(any(test, fuzzing))]
pub(crate) fn rewritten(text: &str) -> Option<String> {
    let again = toml::to_string(&parse(text).ok()?).ok()?;
    parse(text).and_then(Keys::of).is_ok().then_some(again)
}

/// Every key of a file, in the order in which they were made.
///
/// # Errors
/// See [`Book::open`].
pub fn list(path: &Path) -> Result<Vec<Entry>, KeysError> {
    let document = read(path)?;
    let entries = document.keys.clone();
    Keys::of(document).map_err(|what| invalid(path, what))?;
    Ok(entries)
}

/// Makes a key; the file too, where there is none. Returns the key itself, which is nowhere else.
/// Without any pattern it may write everywhere.
///
/// # Errors
/// [`KeysError::Refused`] for a name or pattern that cannot be; else as for [`Book::open`].
pub fn create(
    path: &Path,
    name: &str,
    mut topics: Vec<String>,
    mut sources: Vec<String>,
    created: String,
) -> Result<String, KeysError> {
    check_name(name).map_err(KeysError::Refused)?;
    check_patterns(&topics, &sources).map_err(KeysError::Refused)?;
    if topics.is_empty() && sources.is_empty() {
        topics.push("*".to_owned());
        sources.push("*".to_owned());
    }
    let turn = Turn::take(path)?;
    let path = turn.path.as_path();
    let mut document = match read(path) {
        Err(error) if error.is_missing() => Document::default(),
        read => read?,
    };
    if document.keys.len() >= KEYS_MAX {
        return Err(KeysError::Refused(format!(
            "{} has {KEYS_MAX} keys, and more may not be there: revoke some first",
            path.display()
        )));
    }
    if let Some(entry) = document.keys.iter().find(|entry| entry.name == name) {
        return Err(KeysError::Refused(format!(
            "there is a key with the name {name:?} already (id {}): choose another name, or revoke it first",
            entry.id
        )));
    }
    let random = |bytes: &mut [u8]| getrandom::fill(bytes).map_err(|error| io_error(path, io::Error::other(error)));
    let id = loop {
        let mut bytes = [0; ID_LEN / 2];
        random(&mut bytes)?;
        let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if document.keys.iter().all(|entry| entry.id != id) {
            break id;
        }
    };
    let mut secret = [0; SECRET_BYTES];
    random(&mut secret)?;
    let key = format!("{PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(secret));
    let sha256 = digest(&key).iter().map(|byte| format!("{byte:02x}")).collect();
    document.keys.push(Entry {
        id,
        name: name.to_owned(),
        sha256,
        topics,
        sources,
        created,
    });
    write(path, document)?;
    Ok(key)
}

/// The key that is meant by an id, a name, or a whole key that somebody found.
#[must_use]
pub fn meant<'e>(entries: &'e [Entry], which: &str) -> Option<&'e Entry> {
    let id = which
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.get(..ID_LEN))
        .unwrap_or(which);
    entries.iter().find(|entry| entry.id == id || entry.name == which)
}

/// Takes a key away. Returns what it was.
///
/// # Errors
/// [`KeysError::Unknown`] where there is none (see [`meant`]); else as for [`Book::open`].
pub fn revoke(path: &Path, which: &str) -> Result<Entry, KeysError> {
    let turn = Turn::take(path)?;
    let path = turn.path.as_path();
    let mut document = read(path)?;
    let Some(entry) = meant(&document.keys, which).cloned() else {
        return Err(unknown(path));
    };
    document.keys.retain(|kept| kept.id != entry.id);
    write(path, document)?;
    Ok(entry)
}

/// Nobody is told what was asked for: it may be a key.
#[must_use]
pub fn unknown(path: &Path) -> KeysError {
    let path = path.display().to_string();
    KeysError::Unknown { path }
}

/// The right to replace the file: a lock on the folder in which it really is, so that nothing is left behind, and whoever
/// comes by another path waits too.
struct Turn {
    path: PathBuf,
    _folder: File,
}

impl Turn {
    fn take(path: &Path) -> Result<Self, KeysError> {
        // A link stays one: what it leads to is replaced.
        let path = match fs::canonicalize(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
                path.to_path_buf()
            }
            found => found.map_err(|error| io_error(path, error))?,
        };
        let folder = folder_of(&path);
        let wrong = |error| io_error(folder, error);
        let locked = File::open(folder).map_err(wrong)?;
        let limit = Instant::now() + TURN_MAX;
        loop {
            match locked.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < limit => std::thread::sleep(TURN_LOOK),
                Err(TryLockError::WouldBlock) => {
                    let text = format!("another process is changing {}: try again", path.display());
                    return Err(KeysError::Refused(text));
                }
                Err(TryLockError::Error(error)) => return Err(wrong(error)),
            }
        }
        Ok(Self { path, _folder: locked })
    }
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().unwrap_or(Path::new("."));
    if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    }
}

/// Replaces the file as a whole; its owner and mode stay what they were. A new one is its owner's alone.
fn write(path: &Path, document: Document) -> Result<(), KeysError> {
    const HEAD: &str = "# API keys of tidegate: only their hashes. `tidegate key create | list | revoke` change this file, and\n\
                        # keep no comments.\n\n";
    let wrong = |error| io_error(path, error);
    let text = toml::to_string(&document).map_err(|error| wrong(io::Error::other(error)))?;
    Keys::of(document).map_err(|what| invalid(path, what))?;
    let before = fs::metadata(path).ok();
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| wrong(io::Error::other(error)))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}", u64::from_ne_bytes(random)));
    let temporary = path.with_file_name(name);
    let fill = |mut file: File| -> io::Result<()> {
        if let Some(before) = &before {
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (before.uid(), before.gid()) {
                fchown(&file, Some(before.uid()), Some(before.gid()))?;
            }
            // Not when it is made: the mask of this process would take some away.
            file.set_permissions(Permissions::from_mode(before.mode() & 0o777))?;
        }
        file.write_all(HEAD.as_bytes())?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    // One that nobody else has made, nor a link that somebody put there.
    let made = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary);
    made.and_then(fill).map_err(|error| {
        if let Err(left) = fs::remove_file(&temporary)
            && left.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("{} is left over: {left}. Remove it", temporary.display());
        }
        wrong(error)
    })?;
    // It is there; whether it stays when the power goes is all that is open.
    if let Err(error) = File::open(folder_of(path)).and_then(|folder| folder.sync_all()) {
        tracing::warn!(
            "{} was written, and may not survive a power loss: {error}",
            path.display()
        );
    }
    Ok(())
}

fn io_error(path: &Path, source: io::Error) -> KeysError {
    let path = path.display().to_string();
    KeysError::Io { path, source }
}

fn invalid(path: &Path, what: String) -> KeysError {
    let path = path.display().to_string();
    KeysError::Invalid { path, what }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    struct Folder {
        _folder: tempfile::TempDir,
        path: PathBuf,
    }

    fn folder() -> Folder {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        Folder { _folder: folder, path }
    }

    impl Folder {
        fn create(&self, name: &str, topics: &[&str], sources: &[&str]) -> Result<String, KeysError> {
            create(
                &self.path,
                name,
                owned(topics),
                owned(sources),
                "2026-01-31T12:00:00Z".to_owned(),
            )
        }
    }

    #[test]
    fn a_key_opens_what_it_is_for_and_only_the_whole_of_it() {
        let at = folder();
        let key = at.create("press", &["orders-*"], &["trip_pro"]).unwrap();
        let all = at.create("all", &[], &[]).unwrap();
        let text = fs::read_to_string(&at.path).unwrap();
        assert!(!text.contains(&key) && !text.contains(&all));
        let book = Book::open(&at.path).unwrap();
        let holder = book.holder(&key).unwrap();
        assert_eq!(holder.name, "press");
        assert!(holder.may_write("orders-eu") && !holder.may_write("orders"));
        assert!(holder.may_post("trip_pro") && !holder.may_post("trip_pro2"));
        let holder = book.holder(&all).unwrap();
        assert!(holder.may_write("anything") && holder.may_post("anything"));
        for wrong in [
            &key[..key.len() - 1],
            &format!("{key}x"),
            &key.to_uppercase(),
            "tg_",
            "tg_0000é",
            "",
            "x",
        ] {
            assert!(book.holder(wrong).is_none(), "{wrong}");
        }
        let other = format!("{}{}", &all[..PREFIX.len() + ID_LEN], &key[PREFIX.len() + ID_LEN..]);
        assert!(book.holder(&other).is_none(), "one's id with the other's secret");
    }

    #[test]
    fn what_is_made_and_revoked_is_seen_without_a_restart() {
        let at = folder();
        let first = at.create("first", &[], &[]).unwrap();
        let book = Book::open(&at.path).unwrap();
        assert!(book.refresh().is_none());
        let second = at.create("second", &[], &[]).unwrap();
        assert!(book.holder(&second).is_none());
        assert_eq!(book.refresh().unwrap().unwrap(), "2 keys");
        assert!(book.holder(&second).is_some() && book.holder(&first).is_some());
        assert_eq!(revoke(&at.path, &first).unwrap().name, "first", "by the whole key");
        assert_eq!(book.refresh().unwrap().unwrap(), "1 key");
        assert!(book.holder(&first).is_none() && book.holder(&second).is_some());
        fs::write(&at.path, "[[key]]\nid = 1\n").unwrap();
        assert!(book.refresh().unwrap().is_err());
        assert!(book.refresh().is_none(), "told once");
        assert!(book.holder(&second).is_some(), "those of before stay in force");
        let id = &second[PREFIX.len()..PREFIX.len() + ID_LEN];
        fs::remove_file(&at.path).unwrap();
        assert!(book.refresh().unwrap().unwrap_err().is_missing());
        assert!(revoke(&at.path, id).is_err());
    }

    #[test]
    fn one_name_is_one_key() {
        let at = folder();
        at.create("press", &[], &[]).unwrap();
        assert!(matches!(at.create("press", &[], &[]), Err(KeysError::Refused(_))));
        assert!(matches!(at.create("", &[], &[]), Err(KeysError::Refused(_))));
        assert!(matches!(at.create("a\nb", &[], &[]), Err(KeysError::Refused(_))));
        assert!(matches!(at.create("x", &["a b"], &[]), Err(KeysError::Refused(_))));
        assert_eq!(list(&at.path).unwrap().len(), 1);
        assert!(matches!(revoke(&at.path, "nobody"), Err(KeysError::Unknown { .. })));
    }

    #[test]
    fn the_file_keeps_its_mode_and_a_new_one_is_its_owners_alone() {
        let at = folder();
        let mode = || fs::metadata(&at.path).unwrap().mode() & 0o777;
        at.create("a", &[], &[]).unwrap();
        assert_eq!(mode(), 0o600);
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        fs::set_permissions(&at.path, permissions).unwrap();
        at.create("b", &[], &[]).unwrap();
        assert_eq!(mode(), 0o666, "whatever the mask");
        assert_eq!(fs::read_dir(at.path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_used_is_told_with_its_key() {
        let at = folder();
        let refused = |text: &str| {
            fs::write(&at.path, text).unwrap();
            match Book::open(&at.path) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{text}"),
            }
        };
        let hash = "0".repeat(64);
        let key = |id: &str, name: &str, sha256: &str, more: &str| {
            format!("[[key]]\nid = \"{id}\"\nname = \"{name}\"\nsha256 = \"{sha256}\"\n{more}\n")
        };
        assert!(refused(&key("0123456", "a", &hash, "")).contains("8 hexadecimal digits"));
        assert!(refused(&key("0123456A", "a", &hash, "")).contains("lower case"));
        assert!(refused(&key("01234567", "a", "00", "")).contains("64 hexadecimal digits"));
        assert!(refused(&key("01234567", "a", &"é".repeat(32), "")).contains("64 hexadecimal digits"));
        assert!(refused(&key("01234567", "a", &hash, "topic = [\"x\"]")).contains("topic"));
        assert!(refused(&key("01234567", "a", &hash, "topics = [\"\"]")).contains("fits nothing"));
        let named = key("01234567", "a", &hash, "") + &key("01234568", "a", &hash, "");
        assert!(refused(&named).contains("two keys have the name"));
        assert!(refused(&key("01234567", "0a1b2c3d", &hash, "")).contains("looks like an id"));
        let pasted = refused("key = \"tg_01234567_secret\"");
        assert!(!pasted.contains("secret") && pasted.contains("line 1"), "{pasted}");
        let twice = key("01234567", "a", &hash, "") + &key("01234567", "b", &hash, "");
        assert!(refused(&twice).contains("two keys"));
        assert!(refused("key = 3").contains("cannot be used"));
    }
}
