//! The shim (shim.c), built, and the variables that tell it what to do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::support::gateway::Config;

/// Every call that changes something.
pub const CHANGES: &str = "wsomt";

/// The library, built once a run.
pub fn library() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/faults/shim.c");
        let built = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .arg(&path)
            .arg(&source)
            .args(["-ldl", "-lpthread"])
            .output();
        let built = built.expect("a C compiler, which the build needs too");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        (folder, path)
    });
    path
}

/// What is to happen to a process, at which of the calls below `under`.
#[derive(Debug, Clone)]
pub struct Plan {
    pub under: PathBuf,
    /// Where every call is written down.
    pub record: Option<PathBuf>,
    /// Which calls count.
    pub calls: &'static str,
    /// See shim.c.
    pub does: &'static str,
    /// The first call at which it happens, from 1.
    pub at: Option<u64>,
    /// At all from there on.
    pub for_ever: bool,
    /// Where the number of counted calls is kept.
    pub count: Option<PathBuf>,
}

impl Plan {
    /// Nothing happens.
    pub fn new(under: &Path) -> Self {
        Self {
            under: under.to_owned(),
            record: None,
            calls: CHANGES,
            does: "",
            at: None,
            for_ever: false,
            count: None,
        }
    }

    /// The variables.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut all = vec![
            ("LD_PRELOAD", text(library())),
            ("SHIM_UNDER", text(&self.under)),
            ("SHIM_CALLS", self.calls.to_owned()),
            ("SHIM_DO", self.does.to_owned()),
        ];
        all.extend(self.record.as_deref().map(|path| ("SHIM_LOG", text(path))));
        all.extend(self.count.as_deref().map(|path| ("SHIM_COUNT", text(path))));
        all.extend(self.at.map(|at| ("SHIM_AT", at.to_string())));
        if self.for_ever {
            all.push(("SHIM_UNTIL", u64::MAX.to_string()));
        }
        all
    }

    /// Puts them into a gateway's configuration.
    pub fn put(&self, config: &mut Config) {
        take(config);
        for (name, value) in self.environment() {
            config.environment(name, Some(&value));
        }
    }
}

/// From now on nothing happens to it.
pub fn take(config: &mut Config) {
    for name in [
        "LD_PRELOAD",
        "SHIM_UNDER",
        "SHIM_CALLS",
        "SHIM_DO",
        "SHIM_LOG",
        "SHIM_COUNT",
        "SHIM_AT",
        "SHIM_UNTIL",
    ] {
        config.environment(name, None);
    }
}
