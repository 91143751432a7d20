//! For tests: pages of `docs/` that are made from the code. Knows no page.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

/// That the page is what `source` says, as `made`; with `TIDEGATE_BLESS` set it is written anew first. `filter` names its test.
pub(crate) fn check(page: &str, made: &str, source: &str, filter: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    if std::env::var_os("TIDEGATE_BLESS").is_some() {
        fs::write(&path, made).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let differs = made.lines().zip(kept.lines()).find(|(made, kept)| made != kept);
    assert!(
        made == kept,
        "docs/{page} is not what {source} says (first: {differs:?}): `TIDEGATE_BLESS=1 cargo test --lib {filter}` writes it anew"
    );
}
