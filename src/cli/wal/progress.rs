//! How far a verb is: a bar on stderr where that is a terminal, nothing anywhere else.

use indicatif::{ProgressBar, ProgressStyle};

/// Of so many bytes.
pub(super) fn bytes(total: u64, what: &'static str) -> ProgressBar {
    bar(
        total,
        "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
        what,
    )
}

/// Of so many records.
pub(super) fn records(total: u64, what: &'static str) -> ProgressBar {
    bar(total, "{msg} {wide_bar} {pos}/{len} {per_sec}, {eta} left", what)
}

fn bar(total: u64, template: &'static str, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(what);
    // A template that does not parse leaves the library's own.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
