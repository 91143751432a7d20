//! The rules of the source tree as an ordinary test: layers, file sizes, module docs, reasons, links.
//!
//! It reads text, not syntax, with the comments cut. There is no list of exceptions, and there is to be none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/links.rs"]
mod links;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Above this a file is named on stderr; above [`LINES_MAX`] it fails.
const LINES_WARN: usize = 400;
const LINES_MAX: usize = 700;

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
                // tests/fuzz is a workspace of its own, with what it has built beside it.
                folders.extend((!path.ends_with("target")).then_some(path));
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn rust_files() -> Vec<PathBuf> {
    let found: Vec<PathBuf> = ["src", "tests", "benches", "examples"]
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
fn a_dependency_without_a_reason_is_found() {
    let manifest = "[dependencies]\n# --- a heading ---\na = \"1\"\n# What it is for.\nb = { version = \"1\", features = [\n  \"x\",\n] }\nc = \"1\"\n[profile.dev]\nd = 1\n";
    assert_eq!(without_reason(manifest), ["a", "c"]);
}
