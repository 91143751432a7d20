//! For tests: that a check is told as it should be.

#![allow(clippy::panic)]

use super::line::{Line, Verdict};

/// There is a line of this check with this verdict and these words; what is not well says what that means and what to do.
#[track_caller]
pub(super) fn told(lines: &[Line], check: &str, verdict: Verdict, words: &[&str]) {
    let line = lines.iter().find(|line| line.check == check);
    let line = line.unwrap_or_else(|| panic!("no {check} in {lines:?}"));
    let text = format!("{} {} {}", line.found, line.means, line.todo);
    assert_eq!(line.verdict, verdict, "{line:?}");
    for words in words {
        assert!(text.contains(words), "nothing like {words:?} in {line:?}");
    }
    let is_whole = !line.means.is_empty() && !line.todo.is_empty();
    assert!(verdict == Verdict::Ok || is_whole, "{line:?}");
}
