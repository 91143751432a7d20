//! `docs/configuration.md`, made from the shipped file: its sections, keys and defaults, with their comments.

use super::super::layers::{BUILT_IN, Layers, VARIABLE_PREFIX, VARIABLE_SEPARATOR};

/// The shipped file as Markdown. It knows no more of TOML than that file has.
fn markdown(file: &str) -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         Made from [config.toml](../config.toml), which is built in as the default: a test fails when the two differ, and \
         `TIDEGATE_BLESS=1 cargo test --lib reference` writes this page anew. Each key stands with its default and its \
         variable of the environment.\n",
    );
    let (keys, sources) = file.split_once("\n[[source]]\n").unwrap();
    let (mut section, mut said, mut items) = ("", Vec::new(), Vec::new());
    for line in keys.lines() {
        let key = line.split_once(" = ").filter(|_| !line.starts_with('#'));
        if key.is_none() && !items.is_empty() {
            // Keys that follow each other share the words above the first of them.
            text.push('\n');
            text.extend(items.drain(..));
            explain(&mut text, &mut said);
        }
        if let Some((key, value)) = key {
            let variable = format!("{section}{VARIABLE_SEPARATOR}{key}").to_uppercase();
            items.push(format!(
                "- **`{section}.{key}`** = `{value}`, `{VARIABLE_PREFIX}{variable}`\n"
            ));
        } else if let Some(comment) = line.strip_prefix('#') {
            // Not the rule across the file that names what follows.
            said.extend((!comment.starts_with(" ---")).then(|| comment.trim_end()));
        } else if line.is_empty() && section.contains('.') {
            // Of the open section there are examples only.
            let examples: String = said
                .drain(..)
                .map(|example| format!("{}\n", example.trim_start()))
                .collect();
            text.push_str(&format!("\n```toml\n{examples}```\n"));
            section = "";
        } else {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name;
                text.push_str(&format!("\n## `{line}`\n"));
            }
            explain(&mut text, &mut said);
        }
    }
    text.push_str("\n## `[[source]]`\n");
    explain(&mut text, &mut said);
    text.push_str(&format!("\nAs shipped:\n\n```toml\n[[source]]\n{sources}```\n"));
    text
}

/// Comments as paragraphs and lists.
fn explain(text: &mut String, said: &mut Vec<&str>) {
    let mut in_list = None;
    for line in said.drain(..) {
        let line = line.strip_prefix(' ').unwrap_or(line);
        let is_item = line.starts_with(' ');
        if in_list != Some(is_item) {
            text.push('\n');
        }
        in_list = Some(is_item);
        let spaces = line.len() - line.trim_start().len();
        let line = line.replace('<', "\\<").replace('*', "\\*");
        let column = line.trim_start().split_once("  ").filter(|_| spaces == 2);
        text.push_str(&match column {
            Some((name, what)) => format!("- `{name}`: {}\n", what.trim_start()),
            None if spaces > 5 => format!("  {}\n", line.trim_start()),
            None => format!("{line}\n"),
        });
    }
}

#[test]
fn the_reference_of_the_keys_is_the_shipped_file() {
    let made = markdown(BUILT_IN);
    let Ok(layers) = Layers::built_in() else {
        panic!("the shipped file is no TOML")
    };
    for (key, entry) in &layers.entries {
        let item = format!("- **`{key}`** = `{}`, `TIDEGATE_", entry.value);
        assert_eq!(made.matches(&item).count(), 1, "{item}");
    }
    assert_eq!(made.matches("- **`").count(), layers.entries.len());
    crate::docs::check("configuration.md", &made, "config.toml", "reference");
}
