//! The rules of the source tree as an ordinary test: layers, file sizes, module docs, reasons.
//!
//! It reads text, not syntax: comments are cut, `crate::x` is a mention of x. The layers are the rows of the
//! table in src/lib.rs, from top to bottom; what a line there says beyond its place is in [`BANNED`].
//! There is no list of exceptions, and there is to be none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Above this a file is named on stderr; above [`LINES_MAX`] it fails.
const LINES_WARN: usize = 400;
const LINES_MAX: usize = 700;

/// A crate or path: where alone it may be named (prefixes of paths below src; "" is anywhere), where it may
/// not, and what of it may all the same.
struct Ban {
    name: &'static str,
    only_in: &'static [&'static str],
    not_in: &'static [&'static str],
    except: &'static str,
}

const fn only(name: &'static str, only_in: &'static [&'static str]) -> Ban {
    Ban {
        name,
        only_in,
        not_in: &[],
        except: "",
    }
}

const fn never(name: &'static str, not_in: &'static [&'static str], except: &'static str) -> Ban {
    Ban {
        name,
        only_in: &[""],
        not_in,
        except,
    }
}

const BANNED: &[Ban] = &[
    only("axum", &["http/"]),
    only("hyper", &["http/"]),
    only("hyper_util", &["http/"]),
    only("sled", &["wal/generation.rs"]),
    only("rdkafka", &["forward/"]),
    only("clap", &["cli/"]),
    only("clap_complete", &["cli/"]),
    only("anyhow", &["cli/", "main.rs"]),
    // Everybody else gets an Options of its own.
    only("crate::config", &["config", "telemetry.rs", "cli/"]),
    // The log runs on threads of its own; the answer to a commit may go through a channel.
    never("tokio", &["wal/"], "tokio::sync"),
    never("tokio", &["ingest/", "record.rs", "metrics.rs", "config"], ""),
    // Bytes in, records out: no log, no clock.
    never("crate::wal", &["ingest/"], ""),
    never("SystemTime", &["ingest/"], ""),
    never("Instant", &["ingest/"], ""),
];

/// The only files with this word in their code.
const UNSAFE: &[&str] = &["wal/durable.rs", "forward/native.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` with this ending, as paths from the root.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn rust_files() -> Vec<PathBuf> {
    let found: Vec<PathBuf> = ["src", "tests", "benches"]
        .iter()
        .flat_map(|folder| files(folder, ".rs"))
        .collect();
    assert!(found.len() > 10, "the source tree was not found: {found:?}");
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The code of a file, without comments; line n of it is line n of the file.
fn code(text: &str) -> String {
    let uncommented = text.lines().map(|line| {
        let line = line.trim_start();
        if line.starts_with("//") {
            ""
        } else {
            line.split(" // ").next().unwrap_or("")
        }
    });
    uncommented.collect::<Vec<_>>().join("\n")
}

/// [`code`] without the tests at the end of a file: they may use what they like.
fn shipped_code(text: &str) -> String {
    let code = code(text);
    match code.find("#[cfg(test)]\nmod ") {
        Some(at) => code[..at].to_owned(),
        None => code,
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `name` stands as a word of its own: not in another one, not as a part of another's path.
fn mentions<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(name).filter_map(move |(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + name.len()..].chars().next();
        (!before.is_some_and(is_word) && !after.is_some_and(is_word)).then_some(at)
    })
}

/// [`mentions`] as code: a path, a type, or what `use` and `::` show to be a crate. A message may say sled.
fn is_used(code: &str, ban: &Ban) -> bool {
    let name = ban.name;
    let sure = name.contains("::") || name.contains(char::is_uppercase);
    mentions(code, name).any(|at| {
        let (before, from_here) = (code[..at].trim_end(), &code[at..]);
        let excepted = !ban.except.is_empty() && from_here.starts_with(ban.except);
        let is_crate = from_here[name.len()..].starts_with("::") && !before.ends_with("::");
        !excepted && (sure || is_crate || before.ends_with("use"))
    })
}

/// The modules in the order of the table in src/lib.rs.
fn layers() -> Vec<String> {
    let text = read(Path::new("src/lib.rs"));
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | [`"));
    let layers: Vec<String> = rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned())).collect();
    for line in text.lines() {
        if let Some(module) = line.strip_prefix("pub mod ").and_then(|line| line.strip_suffix(';')) {
            assert!(
                layers.iter().any(|layer| layer == module),
                "{module} has no row in the table of src/lib.rs"
            );
        }
    }
    assert!(layers.len() >= 9, "the table in src/lib.rs has only {layers:?}");
    layers
}

/// The modules of the crate that this code names: `crate::x`, `crate::{x, y}`, and `super::x` where the
/// file's own module has no x.
fn named_modules(code: &str, layers: &[String], own: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut named = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 || (depth == 1 && c == ',') {
                    named.push(item.trim().chars().take_while(|c| is_word(*c)).collect());
                    item.clear();
                }
                if depth == 0 {
                    break;
                }
                if c != ',' {
                    item.push(c);
                }
            }
        } else {
            named.push(rest.chars().take_while(|c| is_word(*c)).collect());
        }
    }
    for (at, _) in code.match_indices("super::") {
        let name: String = code[at + "super::".len()..]
            .chars()
            .take_while(|c| is_word(*c))
            .collect();
        if !own(&name) {
            named.push(name);
        }
    }
    named.retain(|name| layers.contains(name));
    named
}

/// Every breach of the layers in one file of src (its path from src, its text).
fn layer_faults(path: &str, text: &str, layers: &[String], own: &dyn Fn(&str) -> bool) -> Vec<String> {
    let code = shipped_code(text);
    let mut faults = Vec::new();
    let module = path.split(['/', '.']).next().unwrap_or("");
    if let Some(place) = layers.iter().position(|layer| layer == module) {
        for name in named_modules(&code, layers, own) {
            let above = layers.iter().position(|layer| *layer == name).unwrap() < place;
            if name != module && !above {
                faults.push(format!(
                    "src/{path} names crate::{name}, which is below {module} in src/lib.rs's table"
                ));
            }
        }
        if matches!(module, "record" | "metrics") {
            for name in named_modules(&code, layers, own).iter().filter(|name| *name != module) {
                faults.push(format!("src/{path} names crate::{name}; {module} knows nobody"));
            }
        }
    }
    for ban in BANNED {
        let allowed = ban.only_in.iter().any(|prefix| path.starts_with(prefix));
        let denied = ban.not_in.iter().any(|prefix| path.starts_with(prefix));
        if (!allowed || denied) && is_used(&code, ban) {
            faults.push(format!(
                "src/{path} names {}, which has no place there (src/lib.rs's table)",
                ban.name
            ));
        }
    }
    if !UNSAFE.contains(&path) && mentions(&code, "unsafe").next().is_some() {
        faults.push(format!("src/{path} is unsafe; only {UNSAFE:?} may be"));
    }
    faults
}

#[test]
fn modules_name_only_those_above_them() {
    let layers = layers();
    let mut faults = Vec::new();
    for file in files("src", ".rs") {
        let path = file.strip_prefix("src").unwrap().to_str().unwrap().to_owned();
        // Files of tests only, declared under #[cfg(test)].
        if file
            .file_stem()
            .is_some_and(|stem| stem.to_string_lossy().ends_with("tests"))
        {
            continue;
        }
        let folder = root().join(&file).parent().unwrap().to_owned();
        let is_top = folder == root().join("src");
        let own =
            move |name: &str| !is_top && (folder.join(name).is_dir() || folder.join(format!("{name}.rs")).is_file());
        faults.extend(layer_faults(&path, &read(&file), &layers, &own));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn files_are_small() {
    let mut too_large = Vec::new();
    for file in rust_files() {
        let lines = read(&file).lines().count();
        if lines > LINES_MAX {
            too_large.push(format!(
                "{} has {lines} lines; {LINES_MAX} is the most. One noun a file.",
                file.display()
            ));
        } else if lines > LINES_WARN {
            let text = format!("tidy: {} has {lines} lines; aim at {LINES_WARN}\n", file.display());
            // Past the capture of a passing test.
            std::io::stderr().write_all(text.as_bytes()).unwrap();
        }
    }
    assert!(too_large.is_empty(), "\n{}", too_large.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<PathBuf> = rust_files()
        .into_iter()
        .filter(|file| !read(file).starts_with("//! "))
        .collect();
    assert!(
        silent.is_empty(),
        "these do not begin with //! and what they are: {silent:?}"
    );
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let code_marks = [
        concat!("#[ig", "nore"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
    ];
    let texts = [".md", ".toml", ".sh", "run", "Dockerfile"].iter().flat_map(|ending| {
        ["docs", ".ci", "deploy", "tests"]
            .into_iter()
            .flat_map(move |folder| files(folder, ending))
    });
    let top = [
        "README.md",
        "CHANGELOG.md",
        "Cargo.toml",
        "config.toml",
        "deny.toml",
        "Dockerfile",
    ]
    .map(PathBuf::from);
    let mut left = Vec::new();
    for file in rust_files().into_iter().chain(texts).chain(top) {
        let Ok(text) = fs::read_to_string(root().join(&file)) else {
            continue;
        };
        let code = code(&text);
        let found = marks.iter().filter(|mark| mentions(&text, mark).next().is_some());
        let found = found.chain(code_marks.iter().filter(|mark| code.contains(**mark)));
        left.extend(found.map(|mark| format!("{}: {mark}", file.display())));
    }
    assert!(left.is_empty(), "\n{}", left.join("\n"));
}

#[test]
fn tests_stay_on_the_loopback() {
    let everywhere = [concat!("0.0.0", ".0"), concat!("[:", ":]:")];
    let mut strangers = Vec::new();
    for file in files("tests", ".rs").into_iter().chain(files("benches", ".rs")) {
        for (number, line) in code(&read(&file)).lines().enumerate() {
            let literal = line.contains("bind(\"") && !line.contains("bind(\"127.0.0.1");
            if literal || everywhere.iter().any(|address| line.contains(address)) {
                strangers.push(format!("{}:{}: {line}", file.display(), number + 1));
            }
        }
    }
    assert!(
        strangers.is_empty(),
        "tests bind 127.0.0.1 only:\n{}",
        strangers.join("\n")
    );
}

/// Dependencies without a comment that says why, directly above.
fn without_reason(manifest: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut in_dependencies, mut reasoned, mut depth) = (false, false, 0_i32);
    for line in manifest.lines() {
        let line = line.trim();
        if line.starts_with('[') && depth == 0 {
            in_dependencies = line.contains("dependencies");
            reasoned = false;
        } else if let Some(comment) = line.strip_prefix('#') {
            // A heading over several ("# --- HTTP ---") is no reason.
            reasoned = comment.len() > 10 && !comment.contains("---");
        } else if in_dependencies && !line.is_empty() {
            if depth == 0 && !reasoned {
                faults.push(line.split(['=', '.']).next().unwrap_or(line).trim().to_owned());
            }
            let count = |c: char| i32::try_from(line.matches(c).count()).unwrap();
            depth += count('[') + count('{') - count(']') - count('}');
            reasoned = false;
        }
    }
    faults
}

#[test]
fn every_dependency_has_a_reason() {
    let faults = without_reason(&read(Path::new("Cargo.toml")));
    assert!(faults.is_empty(), "no reason in a comment above: {faults:?}");
}

#[test]
fn tidy_finds_what_is_planted() {
    let layers = layers();
    let check = |path: &str, text: &str| layer_faults(path, text, &layers, &|_| false);
    let finds = |path: &str, text: &str, word: &str| {
        let faults = check(path, text);
        assert!(
            faults.iter().any(|fault| fault.contains(word)),
            "{path}: {text}: {faults:?}"
        );
    };
    finds("wal/writer.rs", "use crate::http::Server;", "crate::http");
    finds(
        "wal/writer.rs",
        "use crate::{record::Record, http::{a, b}};",
        "crate::http",
    );
    finds("wal/mod.rs", "fn f() { super::forward::run() }", "crate::forward");
    finds("record.rs", "use crate::metrics;", "knows nobody");
    finds("ingest/form.rs", "use crate::wal::Wal;", "crate::wal");
    finds("http/mod.rs", "use crate::config::Config;", "crate::config");
    finds("forward/mod.rs", "use axum::Router;", "axum");
    finds("wal/writer.rs", "let db = sled::open(path);", "sled");
    finds("http/mod.rs", "use rdkafka::ClientConfig;", "rdkafka");
    finds("config.rs", "#[derive(clap::Parser)]", "clap");
    finds("wal/writer.rs", "tokio::spawn(async {});", "tokio");
    finds("wal/writer.rs", "use tokio::{sync::oneshot, time};", "tokio");
    finds("ingest/mod.rs", "let now = SystemTime::now();", "SystemTime");
    finds("wal/frame.rs", "unsafe { read() }", "unsafe");
    let fine = [
        (
            "wal/writer.rs",
            "use crate::record::Record;\nuse tokio::sync::oneshot;\n// axum::Router, unsafe\n",
        ),
        (
            "wal/generation.rs",
            "use sled::Db;\nconst WHY: &str = \"sled and axum are words\";",
        ),
        (
            "wal/frame.rs",
            "fn f() {}\n#[cfg(test)]\nmod tests { use tokio::runtime::Runtime; }",
        ),
        ("wal/durable.rs", "#![allow(unsafe_code)]\nunsafe { fdatasync() }"),
        (
            "cli/serve.rs",
            "use crate::{config::Config, http, wal};\nuse clap::Args;",
        ),
    ];
    for (path, text) in fine {
        assert_eq!(check(path, text), Vec::<String>::new());
    }
    let manifest = "[dependencies]\n# --- a heading ---\na = \"1\"\n# What it is for.\nb = { version = \"1\", features = [\n  \"x\",\n] }\nc = \"1\"\n[profile.dev]\nd = 1\n";
    assert_eq!(without_reason(manifest), ["a", "c"]);
}
