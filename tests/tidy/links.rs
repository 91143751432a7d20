//! What the pages point to is there: files, headings (`#anchor`, as GitHub makes it of a heading), and tests by their names.
//!
//! A page is a `.md` of the root, `docs/` or `deploy/`. Links to the network are not followed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{files, read, root};

/// The targets of a page's links and pictures. In fenced blocks and between backticks, brackets are no link.
fn links(text: &str) -> Vec<String> {
    let mut is_code = false;
    let mut prose = String::new();
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        if !is_fence && !is_code {
            prose.push_str(line);
        }
        prose.push('\n');
    }
    let mut found = Vec::new();
    // What is between backticks ends with its paragraph at the latest.
    for paragraph in prose.split("\n\n") {
        let spoken = paragraph.split('`').step_by(2).collect::<Vec<_>>().join("``");
        let rests = spoken.split("](").skip(1);
        found.extend(rests.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())));
    }
    found
}

/// The anchors of a page's headings: lower case, without marks, spaces as hyphens; the second of one name gets `-1`.
fn anchors(text: &str) -> Vec<String> {
    let mut seen = BTreeMap::<String, usize>::new();
    let mut is_code = false;
    let mut found = Vec::new();
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        let Some(title) = line.trim_start_matches('#').strip_prefix(' ') else {
            continue;
        };
        if is_code || !line.starts_with('#') {
            continue;
        }
        let title = title.trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | ' '));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let count = seen.entry(anchor.clone()).or_default();
        found.push(if *count == 0 {
            anchor
        } else {
            format!("{anchor}-{count}")
        });
        *count += 1;
    }
    found
}

/// `a/b/../c` as `a/c`: a link is not to lead out of the repository and in again.
fn joined(folder: &Path, link: &str) -> Option<PathBuf> {
    let mut path = folder.to_owned();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => path.pop().then_some(())?,
            Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::Prefix(_) | Component::RootDir => return None,
        }
    }
    Some(path)
}

/// What is wrong with the links of one page; `text_of` gives a file's text, if there is such a file or folder.
fn link_faults(page: &Path, text: &str, text_of: &dyn Fn(&Path) -> Option<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for link in links(text) {
        if ["https://", "http://", "mailto:"]
            .iter()
            .any(|start| link.starts_with(start))
        {
            continue;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((link.as_str(), ""));
        let folder = page.parent().unwrap_or(Path::new(""));
        let target = match file {
            "" => Some((page.to_owned(), text.to_owned())),
            file => joined(folder, file).and_then(|path| Some((path.clone(), text_of(&path)?))),
        };
        match target {
            None => faults.push(format!("{}: {link} is not there", page.display())),
            Some((path, text)) if !anchor.is_empty() && !anchors(&text).iter().any(|known| known == anchor) => {
                faults.push(format!(
                    "{}: {} has no heading #{anchor}",
                    page.display(),
                    path.display()
                ));
            }
            Some(_) => {}
        }
    }
    faults
}

fn pages() -> Vec<PathBuf> {
    let mut found = ["README.md", "CHANGELOG.md"].map(PathBuf::from).to_vec();
    found.extend(files("docs", ".md"));
    found.extend(files("deploy", ".md"));
    assert!(found.len() > 20, "the pages were not found: {found:?}");
    found
}

/// The text of a file of the repository; of a folder or a picture, none to speak of.
fn text_of(path: &Path) -> Option<String> {
    let path = root().join(path);
    path.exists().then(|| fs::read_to_string(path).unwrap_or_default())
}

/// Tests of `tests/it` that a text names, or how they begin (`module::name`, between backticks).
fn named_tests(text: &str) -> Vec<String> {
    fn is_name(word: &str) -> bool {
        !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    }
    let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let tests = quoted.filter_map(|words| words.rsplit_once("::"));
    let tests = tests.filter(|(modules, name)| modules.split("::").all(is_name) && is_name(name));
    tests.map(|(_, name)| name.to_owned()).collect()
}

#[test]
fn links_lead_somewhere() {
    let faults = pages()
        .into_iter()
        .flat_map(|page| link_faults(&page, &read(&page), &text_of));
    let faults: Vec<String> = faults.collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_page_is_in_the_index() {
    let index = links(&read(Path::new("docs/README.md")));
    let pages = files("docs", ".md")
        .into_iter()
        .filter(|page| page.parent() == Some(Path::new("docs")));
    let names = pages.filter_map(|page| Some(page.file_name()?.to_str()?.to_owned()));
    let missing: Vec<String> = names
        .filter(|name| name != "README.md" && !index.contains(name))
        .collect();
    assert!(missing.is_empty(), "not in docs/README.md: {missing:?}");
}

#[test]
fn tests_that_promises_rest_on_are_there() {
    let tests: String = files("tests/it", ".rs").iter().map(|file| read(file)).collect();
    for page in ["README.md", "docs/reliability.md"] {
        let named = named_tests(&read(Path::new(page)));
        assert!(named.len() > 1, "{page} names no tests: {named:?}");
        let missing: Vec<_> = named
            .iter()
            .filter(|name| !tests.contains(&format!("fn {name}")))
            .collect();
        assert!(missing.is_empty(), "{page} names tests that are not there: {missing:?}");
    }
}

#[test]
fn planted_breaches_are_found() {
    let there =
        |path: &Path| (path == Path::new("docs/b.md")).then(|| "# B\n## What's `[x.y]`, then?\n## B\n".to_owned());
    let check = |text: &str| link_faults(Path::new("docs/a.md"), text, &there);
    for (text, word) in [
        ("see [this](c.md)", "c.md is not there"),
        ("[one](b.md) and [two](../b.md)", "../b.md is not there"),
        ("![picture](c.png)", "c.png"),
        ("[out](../../docs/b.md)", "not there"),
        ("[absolute](/docs/b.md)", "not there"),
        ("[b](b.md#c)", "no heading #c"),
        ("# A\n[a](#b)", "no heading #b"),
        ("[b](b.md#b-2)", "no heading #b-2"),
        ("```\n# A\n```\n[a](#a)", "no heading #a"),
    ] {
        let faults = check(text);
        assert!(faults.len() == 1 && faults[0].contains(word), "{text}: {faults:?}");
    }
    for fine in [
        "[b](b.md), [b](../docs/b.md#b), [again](b.md#b-1) and [x](b.md#whats-xy-then)",
        "# A page\n[a](#a-page) [web](https://example.com/c.md#d) `[no](link.md)`\n```\n[no](link.md)\n```",
    ] {
        assert_eq!(check(fine), Vec::<String>::new());
    }
    assert_eq!(
        named_tests("`a::b_c`, `a::`, `A::b`, `x` and `a::b::c d`, `a::b::c`"),
        ["b_c", "c"]
    );
}
