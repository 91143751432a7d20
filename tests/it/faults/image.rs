//! What a disk may hold after the power went, at any moment of a recorded run.
//!
//! The record (shim.c) has every call in its order. Only fsync binds: what was written to a file before an fsync of it
//! began is there once that fsync has returned, and a folder's names likewise. Everything else may have reached the disk
//! or not, whole, in part, in any order.
//!
//! Knows files and folders; nothing of what is in them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::Random;

/// The unit in which a disk writes.
const SECTOR_BYTES: u64 = 512;

/// What of fsync is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// All of it.
    All,
    /// fdatasync did nothing: as a store that never calls it.
    NoDataSync,
    /// Nothing was ever synced.
    Nothing,
}

type Id = usize;

/// A write that no fsync has covered, or a cut.
#[derive(Debug, Clone)]
enum Pending {
    Write { at: u64, bytes: Vec<u8> },
    Cut { bytes: u64 },
}

#[derive(Debug, Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

/// A change of names, in the order in which they were made.
#[derive(Debug)]
enum Names {
    Add { folder: Id, name: String, node: Id },
    Remove { folder: Id, name: String },
    Move { from: (Id, String), to: (Id, String) },
}

impl Names {
    fn is_in(&self, folder: Id) -> bool {
        match self {
            Self::Add { folder: place, .. } | Self::Remove { folder: place, .. } => *place == folder,
            Self::Move { from, to } => from.0 == folder || to.0 == folder,
        }
    }
}

#[derive(Debug)]
enum Node {
    File(File),
    /// The names as the running process sees them.
    Folder(BTreeMap<String, Id>),
}

/// A sync that has begun: what it will cover.
#[derive(Debug)]
struct Sync {
    node: Id,
    /// Of a file: how many pending writes. Of a folder: how many changes of names there were.
    covers: usize,
}

/// The disk of a recorded run.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    names: Vec<(Names, bool)>,
    open: HashMap<u64, Id>,
    syncs: HashMap<u64, VecDeque<Sync>>,
    trust: Trust,
}

/// One line of the record.
#[derive(Debug)]
pub struct Call<'a> {
    kind: u8,
    file: u64,
    number: u64,
    data: &'a [u8],
    /// Bytes of the record up to and with it.
    pub end: usize,
}

/// The lines of a record; a line that was cut off by the process's death is none.
pub fn calls(record: &[u8]) -> impl Iterator<Item = Call<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let head = record.get(at..at + 32)?;
        let number = |i: usize| u64::from_le_bytes(head[i * 8..i * 8 + 8].try_into().unwrap());
        let data = record.get(at + 32..at + 32 + usize::try_from(number(3)).unwrap())?;
        at += 32 + data.len();
        Some(Call {
            kind: u8::try_from(number(0)).unwrap(),
            file: number(1),
            number: number(2),
            data,
            end: at,
        })
    })
}

impl Disk {
    /// A disk on which `root` is as `from` is now, all of it durable.
    pub fn new(root: &Path, from: &Path, trust: Trust) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            nodes: vec![Node::Folder(BTreeMap::new())],
            names: Vec::new(),
            open: HashMap::new(),
            syncs: HashMap::new(),
            trust,
        };
        if from.is_dir() {
            disk.load(from, 0);
        }
        disk
    }

    fn load(&mut self, from: &Path, folder: Id) {
        for item in fs::read_dir(from).unwrap() {
            let item = item.unwrap();
            let name = item.file_name().into_string().unwrap();
            let node = if item.file_type().unwrap().is_dir() {
                let node = self.add(folder, name, Node::Folder(BTreeMap::new()));
                self.load(&item.path(), node);
                continue;
            } else {
                let durable = fs::read(item.path()).unwrap();
                Node::File(File {
                    durable,
                    pending: Vec::new(),
                })
            };
            self.add(folder, name, node);
        }
        self.names.iter_mut().for_each(|(_, is_durable)| *is_durable = true);
    }

    fn add(&mut self, folder: Id, name: String, node: Node) -> Id {
        let id = self.nodes.len();
        self.nodes.push(node);
        self.folder(folder).insert(name.clone(), id);
        self.names.push((Names::Add { folder, name, node: id }, false));
        id
    }

    fn folder(&mut self, id: Id) -> &mut BTreeMap<String, Id> {
        match &mut self.nodes[id] {
            Node::Folder(names) => names,
            Node::File(_) => panic!("a file is no folder"),
        }
    }

    /// The folder that a path of the record is in, and its name there; `None`: it is the root.
    fn place(&mut self, path: &str) -> Option<(Id, String)> {
        let path = Path::new(path).strip_prefix(&self.root).unwrap().to_owned();
        let name = path.file_name()?.to_str().unwrap().to_owned();
        let mut folder = 0;
        for part in path.parent().unwrap() {
            folder = self.folder(folder)[part.to_str().unwrap()];
        }
        Some((folder, name))
    }

    /// The next call of the run.
    pub fn apply(&mut self, call: &Call<'_>) {
        let text = || std::str::from_utf8(call.data).unwrap().to_owned();
        match call.kind {
            b'O' => {
                let Some((folder, name)) = self.place(&text()) else {
                    self.open.insert(call.file, 0);
                    return;
                };
                let node = match self.folder(folder).get(&name) {
                    Some(node) => *node,
                    None => self.add(folder, name, Node::File(File::default())),
                };
                if call.number == 2 {
                    self.file(node).pending.push(Pending::Cut { bytes: 0 });
                }
                self.open.insert(call.file, node);
            }
            b'D' => {
                let node = self.open[&call.number];
                self.open.insert(call.file, node);
            }
            b'C' => {
                self.open.remove(&call.file);
                self.syncs.remove(&call.file);
            }
            b'W' => {
                let node = self.open[&call.file];
                self.file(node).pending.push(Pending::Write {
                    at: call.number,
                    bytes: call.data.to_vec(),
                });
            }
            b'T' => {
                let node = self.open[&call.file];
                self.file(node).pending.push(Pending::Cut { bytes: call.number });
            }
            b'S' => {
                let node = self.open[&call.file];
                let covers = match &self.nodes[node] {
                    Node::File(file) => file.pending.len(),
                    Node::Folder(_) => self.names.len(),
                };
                self.syncs
                    .entry(call.file)
                    .or_default()
                    .push_back(Sync { node, covers });
            }
            b'E' => {
                let Some(sync) = self.syncs.get_mut(&call.file).and_then(VecDeque::pop_front) else {
                    return;
                };
                let is_believed = match self.trust {
                    Trust::All => true,
                    Trust::NoDataSync => call.number == 1,
                    Trust::Nothing => false,
                };
                if is_believed {
                    self.synced(&sync);
                }
            }
            b'M' => {
                if let Some((folder, name)) = self.place(text().trim_end_matches('\0')) {
                    self.add(folder, name, Node::Folder(BTreeMap::new()));
                }
            }
            b'U' => {
                let text = text();
                let (folder, name) = self.place(text.trim_end_matches('\0')).unwrap();
                self.folder(folder).remove(&name);
                self.names.push((Names::Remove { folder, name }, false));
            }
            b'R' => {
                let text = text();
                let (from, to) = text.split_once('\0').unwrap();
                let (from, to) = (self.place(from).unwrap(), self.place(to).unwrap());
                let node = self.folder(from.0).remove(&from.1).unwrap();
                self.folder(to.0).insert(to.1.clone(), node);
                self.names.push((Names::Move { from, to }, false));
            }
            other => panic!("{other} is no call"),
        }
    }

    fn file(&mut self, id: Id) -> &mut File {
        match &mut self.nodes[id] {
            Node::File(file) => file,
            Node::Folder(_) => panic!("a folder is no file"),
        }
    }

    fn synced(&mut self, sync: &Sync) {
        match &mut self.nodes[sync.node] {
            Node::File(file) => {
                // Another sync of it may have ended meanwhile.
                let covered = sync.covers.min(file.pending.len());
                let pending: Vec<Pending> = file.pending.drain(..covered).collect();
                for change in &pending {
                    change.apply(&mut file.durable);
                }
                // What that one covered is not to be counted again.
                for other in self
                    .syncs
                    .values_mut()
                    .flatten()
                    .filter(|other| other.node == sync.node)
                {
                    other.covers = other.covers.saturating_sub(covered);
                }
            }
            Node::Folder(_) => {
                for (change, is_durable) in &mut self.names[..sync.covers] {
                    *is_durable |= change.is_in(sync.node);
                }
            }
        }
    }

    /// Writes to `target`, which must be empty, what the disk may hold if the power goes now.
    pub fn image(&self, target: &Path, random: &mut Random) {
        let share = Share::any(random);
        let mut folders: HashMap<Id, BTreeMap<&str, Id>> = HashMap::new();
        for (change, is_durable) in &self.names {
            if !is_durable && !share.takes(random) {
                continue;
            }
            match change {
                Names::Add { folder, name, node } => {
                    folders.entry(*folder).or_default().insert(name, *node);
                }
                Names::Remove { folder, name } => {
                    folders.entry(*folder).or_default().remove(name.as_str());
                }
                Names::Move { from, to } => {
                    if let Some(node) = folders.entry(from.0).or_default().remove(from.1.as_str()) {
                        folders.entry(to.0).or_default().insert(&to.1, node);
                    }
                }
            }
        }
        self.write(0, target, &folders, random);
    }

    fn write(&self, folder: Id, target: &Path, folders: &HashMap<Id, BTreeMap<&str, Id>>, random: &mut Random) {
        for (name, node) in folders.get(&folder).into_iter().flatten() {
            let path = target.join(name);
            match &self.nodes[*node] {
                Node::File(file) => fs::write(path, file.after_a_power_cut(random)).unwrap(),
                Node::Folder(_) => {
                    fs::create_dir(&path).unwrap();
                    self.write(*node, &path, folders, random);
                }
            }
        }
    }
}

/// How much of what no fsync has covered reached the disk.
#[derive(Clone, Copy)]
struct Share(u64);

impl Share {
    fn any(random: &mut Random) -> Self {
        Self([0, 10, 50, 90, 100][usize::try_from(random.within(0, 5)).unwrap()])
    }

    fn takes(self, random: &mut Random) -> bool {
        random.within(0, 100) < self.0
    }
}

impl File {
    fn after_a_power_cut(&self, random: &mut Random) -> Vec<u8> {
        let share = Share::any(random);
        let mut bytes = self.durable.clone();
        for change in &self.pending {
            match change {
                Pending::Write { at, bytes: data } if random.within(0, 4) == 0 => {
                    // Torn: some of its sectors.
                    let end = at + data.len() as u64;
                    let mut from = *at;
                    while from < end {
                        let to = end.min((from / SECTOR_BYTES + 1) * SECTOR_BYTES);
                        if share.takes(random) {
                            let part = |place: u64| usize::try_from(place - at).unwrap();
                            write_at(&mut bytes, from, &data[part(from)..part(to)]);
                        }
                        from = to;
                    }
                }
                change if share.takes(random) => change.apply(&mut bytes),
                // The size may be there without the bytes.
                Pending::Write { at, bytes: data } if random.within(0, 4) == 0 => {
                    let end = usize::try_from(*at).unwrap() + data.len();
                    bytes.resize(bytes.len().max(end), 0);
                }
                _ => {}
            }
        }
        bytes
    }
}

impl Pending {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => write_at(to, *at, bytes),
            Self::Cut { bytes } => to.resize(usize::try_from(*bytes).unwrap(), 0),
        }
    }
}

fn write_at(to: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let at = usize::try_from(at).unwrap();
    let end = at + bytes.len();
    if to.len() < end {
        to.resize(end, 0);
    }
    to[at..end].copy_from_slice(bytes);
}
