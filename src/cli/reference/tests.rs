//! `docs/cli.md`, made from the tree of commands; man pages and completion scripts name every verb.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::fmt::Write as _;

use clap::{Arg, CommandFactory as _, ValueEnum as _};
use clap_complete::Shell;

use super::*;
use crate::cli::{Arguments, exit};

/// Every command with its arguments, and the exit codes, as Markdown.
fn markdown(mut tree: Command) -> String {
    tree.build();
    let mut text = String::from(
        "# The command line\n\n\
         Made from the program's own help (`tidegate COMMAND --help`): a test fails when the two differ, and \
         `TIDEGATE_BLESS=1 cargo test --lib reference` writes it anew. `tidegate completions SHELL` prints a completion \
         script, `tidegate man DIR` writes man pages.\n\n\
         Data goes to stdout and everything else to stderr. What needs `--yes` says without it what it would do, changes \
         nothing and ends with 2.\n\n## Exit codes\n\n| code | meaning |\n|---|---|\n",
    );
    for (code, meaning) in exit::CODES {
        put(&mut text, format_args!("| {code} | {meaning} |\n"));
    }
    text.push_str("\n## Flags of every command\n\n");
    let everywhere: Vec<&Arg> = tree.get_arguments().filter(|arg| arg.is_global_set()).collect();
    for arg in everywhere {
        argument(&mut text, arg);
    }
    for command in tree.get_subcommands().filter(|command| !command.is_hide_set()) {
        section(&mut text, command, 2);
    }
    text
}

fn section(text: &mut String, command: &Command, level: usize) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    put(text, format_args!("\n{} {name}\n\n", "#".repeat(level)));
    if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
        put(text, format_args!("{about}.\n"));
    }
    let mut own = command
        .get_arguments()
        .filter(|arg| !arg.is_global_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
        .peekable();
    if command.has_subcommands() {
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            section(text, inner, level + 1);
        }
        return;
    }
    let usage = command.clone().render_usage().to_string();
    put(
        text,
        format_args!("\n```\n{}\n```\n", usage.trim_start_matches("Usage: ").trim()),
    );
    if own.peek().is_some() {
        text.push('\n');
    }
    own.for_each(|arg| argument(text, arg));
}

fn argument(text: &mut String, arg: &Arg) {
    let takes = arg.get_action().takes_values();
    let names = arg.get_value_names().into_iter().flatten();
    let value: Vec<String> = names.map(|name| format!("<{name}>")).collect();
    let mut spelled = Vec::new();
    spelled.extend(arg.get_short().map(|short| format!("-{short}")));
    spelled.extend(arg.get_long().map(|long| format!("--{long}")));
    let mut name = spelled.join(", ");
    if takes && !value.is_empty() {
        let space = if name.is_empty() { "" } else { " " };
        name.push_str(&format!("{space}{}", value.join(" ")));
    }
    let help = arg.get_long_help().or_else(|| arg.get_help());
    put(
        text,
        format_args!("- `{name}`: {}", help.map(ToString::to_string).unwrap_or_default()),
    );
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    if takes && !defaults.is_empty() {
        put(text, format_args!(" [default: {}]", defaults.join(", ")));
    }
    let possible = arg.get_possible_values();
    if takes && !possible.is_empty() {
        let possible: Vec<&str> = possible.iter().map(|value| value.get_name()).collect();
        put(text, format_args!(" [{}]", possible.join(", ")));
    }
    text.push('\n');
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).unwrap();
}

/// Every command by its words, such as "wal verify".
fn verbs(command: &Command, before: &str, found: &mut Vec<String>) {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        let name = format!("{before} {}", inner.get_name()).trim().to_owned();
        verbs(inner, &name, found);
        found.push(name);
    }
}

fn all() -> Vec<String> {
    let mut found = Vec::new();
    verbs(&Arguments::command(), "", &mut found);
    assert!(found.len() > 25, "{found:?}");
    found
}

#[test]
fn the_reference_in_docs_is_what_the_program_says() {
    let made = markdown(Arguments::command());
    for verb in all() {
        assert!(made.contains(&format!("# tidegate {verb}\n")), "{verb} is missing");
    }
    crate::docs::check("cli.md", &made, "--help", "reference");
}

#[test]
fn every_help_text_is_there_and_ends_without_a_full_stop() {
    fn look(command: &Command) {
        let name = command.get_name();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        assert!(!about.is_empty() && !about.ends_with('.'), "{name}: {about:?}");
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                !help.is_empty() && !help.ends_with('.'),
                "{name} {}: {help:?}",
                arg.get_id()
            );
        }
        command.get_subcommands().for_each(look);
    }
    let tree = Arguments::command();
    tree.get_subcommands().for_each(look);
}

#[test]
fn every_command_has_a_man_page() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    man(Arguments::command(), &pages).unwrap();
    for verb in all() {
        let file = format!("tidegate-{}.1", verb.replace(' ', "-"));
        let page = fs::read_to_string(pages.join(&file)).expect(&file);
        assert!(
            page.contains(".SH NAME") && page.contains("\\-\\-wal"),
            "{file}: {page}"
        );
    }
    let root = fs::read_to_string(pages.join("tidegate.1")).unwrap();
    for (_, meaning) in exit::CODES {
        let word = meaning.split_whitespace().next().unwrap();
        assert!(root.contains(word), "{meaning} is not in tidegate.1: {root}");
    }
}

#[test]
fn every_shell_completes_every_verb() {
    for shell in Shell::value_variants() {
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut Arguments::command(), "tidegate", &mut script);
        let script = String::from_utf8(script).unwrap();
        for verb in all() {
            let word = verb.rsplit(' ').next().unwrap();
            assert!(script.contains(word), "{shell}: {verb} is missing");
        }
    }
}
