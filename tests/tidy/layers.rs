//! Which module may name which: the rows of the table in src/lib.rs, from top to bottom, and what a line
//! there says beyond its place ([`BANNED`]). Text, not syntax: `crate::x` is a mention of x.

use std::path::Path;

use super::{code, files, is_word, mentions, read, root};

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
    only("rdkafka", &["kafka/", "forward/", "land/"]),
    only("clap", &["cli/"]),
    only("clap_complete", &["cli/"]),
    only("clap_mangen", &["cli/"]),
    only("ureq", &["cli/ask.rs"]),
    only("sd_notify", &["cli/supervisor.rs"]),
    only("anyhow", &["cli/", "main.rs"]),
    // Everybody else gets an Options of its own.
    only("crate::config", &["config", "telemetry.rs", "cli/", "decoders.rs"]),
    // The log runs on threads of its own; the answer to a commit may go through a channel.
    never("tokio", &["wal/"], "tokio::sync"),
    never("tokio", &["ingest/", "record.rs", "metrics.rs", "config"], ""),
    // It runs beside a gateway or far from one, and takes records from whoever writes to its topics.
    never("crate::wal", &["land/"], ""),
    never("crate::ingest", &["land/"], ""),
    only("rusqlite", &["land/sqlite", "land/files"]),
    only("postgres", &["land/postgres"]),
    only("tokio_postgres", &["land/postgres"]),
    // Bytes in, records out: no log, no clock.
    never("crate::wal", &["ingest/"], ""),
    never("SystemTime", &["ingest/"], ""),
    never("Instant", &["ingest/"], ""),
];

/// The only files with this word in their code.
const UNSAFE: &[&str] = &["wal/durable.rs", "kafka/native.rs"];

/// [`code`] without the tests at the end of a file: they may use what they like.
fn shipped_code(text: &str) -> String {
    let code = code(text);
    match code.find("#[cfg(test)]\nmod ") {
        Some(at) => code[..at].to_owned(),
        None => code,
    }
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
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | "));
    let names = rows.filter_map(|row| row.trim_start_matches('[').strip_prefix('`'));
    let layers: Vec<String> = names
        .filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect();
    for line in text.lines() {
        if let Some(module) = line
            .trim_start_matches("pub ")
            .strip_prefix("mod ")
            .and_then(|line| line.strip_suffix(';'))
        {
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
        if matches!(module, "record" | "metrics" | "words") {
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
fn planted_breaches_are_found() {
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
}
