//! One finding: what was looked at, how it stands, what that means, what to do; as text and as JSON.
//!
//! What is found may have others' text in it, so it is shown without control characters.

use serde::Serialize;

use crate::cli::words::{counted, one_line};

/// The widest line of text, columns.
const WIDTH: usize = 110;
/// The most characters of one part.
const CHARACTERS_MAX: usize = 2000;

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    Warning,
    Failure,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    pub(super) section: &'static str,
    pub(super) check: String,
    pub(super) verdict: Verdict,
    pub(super) found: String,
    pub(super) means: String,
    #[serde(rename = "do")]
    pub(super) todo: String,
}

/// Lines of one section.
#[derive(Debug)]
pub(super) struct Findings {
    section: &'static str,
    pub(super) lines: Vec<Line>,
}

impl Findings {
    pub(super) fn of(section: &'static str) -> Self {
        Self {
            section,
            lines: Vec::new(),
        }
    }

    pub(super) fn ok(&mut self, check: &str, found: impl AsRef<str>) {
        self.add(Verdict::Ok, check, found.as_ref(), "", "");
    }

    pub(super) fn warning(
        &mut self,
        check: &str,
        found: impl AsRef<str>,
        means: impl AsRef<str>,
        todo: impl AsRef<str>,
    ) {
        self.add(Verdict::Warning, check, found.as_ref(), means.as_ref(), todo.as_ref());
    }

    pub(super) fn failure(
        &mut self,
        check: &str,
        found: impl AsRef<str>,
        means: impl AsRef<str>,
        todo: impl AsRef<str>,
    ) {
        self.add(Verdict::Failure, check, found.as_ref(), means.as_ref(), todo.as_ref());
    }

    fn add(&mut self, verdict: Verdict, check: &str, found: &str, means: &str, todo: &str) {
        let plain = |text: &str| one_line(text.as_bytes(), CHARACTERS_MAX);
        self.lines.push(Line {
            section: self.section,
            check: plain(check),
            verdict,
            found: plain(found),
            means: plain(means),
            todo: plain(todo),
        });
    }
}

/// The lines of a section for people.
pub(super) fn text(section: &str, lines: &[Line]) -> String {
    let column = lines
        .iter()
        .map(|line| line.check.chars().count())
        .max()
        .unwrap_or(0)
        .min(24);
    let mut text = format!("{section}\n");
    for line in lines {
        let head = format!("  {:<7}  {:<column$}  ", line.verdict.word(), line.check);
        wrap(&mut text, &head, &line.found, column + 13);
        for (label, part) in [("means:", &line.means), ("do:", &line.todo)] {
            if !part.is_empty() {
                wrap(&mut text, &format!("{:11}{label:<7} ", ""), part, 19);
            }
        }
    }
    text.push('\n');
    text
}

/// Adds `head` and the words behind it, further lines indented.
fn wrap(text: &mut String, head: &str, words: &str, indent: usize) {
    text.push_str(head);
    let mut column = head.chars().count();
    let mut first = true;
    for word in words.split(' ') {
        let width = word.chars().count();
        if !first && column + 1 + width > WIDTH {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            column = indent;
        } else if !first {
            text.push(' ');
            column += 1;
        }
        first = false;
        text.push_str(word);
        column += width;
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
}

/// "2 failures, 1 warning, 20 ok".
pub(super) fn summary<'a>(lines: impl Iterator<Item = &'a Line>) -> String {
    let (mut failures, mut warnings, mut ok) = (0, 0, 0);
    for line in lines {
        match line.verdict {
            Verdict::Ok => ok += 1,
            Verdict::Warning => warnings += 1,
            Verdict::Failure => failures += 1,
        }
    }
    format!(
        "{}, {}, {ok} ok",
        counted(failures, "failure"),
        counted(warnings, "warning")
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn a_line_is_text_of_a_width_and_json_with_its_names() {
        let mut findings = Findings::of("disk");
        findings.ok("space", "1 GiB");
        findings.failure("file\x1b[2Jsystem", "word ".repeat(60), "it means", "do that");
        let text = text("disk", &findings.lines);
        assert!(
            text.lines()
                .all(|line| line.chars().count() <= WIDTH && !line.ends_with(' ')),
            "{text}"
        );
        assert!(
            text.contains("  ok       space") && text.contains("  FAILURE  file\\u{1b}[2Jsystem"),
            "{text}"
        );
        assert!(text.contains("           do:     do that\n"), "{text}");
        let json = serde_json::to_value(&findings.lines[1]).unwrap();
        assert_eq!(
            (json["verdict"].as_str(), json["do"].as_str()),
            (Some("failure"), Some("do that"))
        );
        assert_eq!(summary(findings.lines.iter()), "1 failure, 0 warnings, 1 ok");
    }
}
