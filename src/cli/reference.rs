//! The command line as documents, from the tree that parses it, so that they say nothing else than `--help`: man pages,
//! and (by its test) `docs/cli.md`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Command;

/// Writes the man page of every command into a folder, which is made if it is missing.
pub(super) fn man(tree: Command, folder: &Path) -> Result<()> {
    let cannot = || format!("cannot write man pages into {}", folder.display());
    fs::create_dir_all(folder).with_context(cannot)?;
    clap_mangen::generate_to(tree, folder).with_context(cannot)
}

#[cfg(test)]
mod tests;
