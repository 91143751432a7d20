//! A file system of a test's own, in a file on a loop device: root only, and only where the kernel gives one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use super::{seconds, wait_until};

/// What makes a file system, by its kind.
fn maker(kind: &str) -> Option<Command> {
    let there = Command::new(format!("mkfs.{kind}")).arg("-V").output().is_ok();
    let mut command = Command::new(format!("mkfs.{kind}"));
    command.args(if kind == "ext4" { ["-q", "-F"] } else { ["-q", "-f"] });
    there.then_some(command)
}

pub fn run(command: &mut Command) -> Result<(), String> {
    let ended = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match ended.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&ended.stderr))),
    }
}

/// A file system in a file, mounted; unmounted when dropped.
pub struct Disk {
    pub folder: Arc<tempfile::TempDir>,
}

impl Disk {
    pub fn make(kind: &str) -> Result<Self, String> {
        let mut maker = maker(kind).ok_or_else(|| format!("no mkfs.{kind}"))?;
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let image = folder.path().join("image");
        // xfs wants 300 MiB at least.
        fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        run(maker.arg(&image))?;
        fs::create_dir(folder.path().join("wal")).unwrap();
        let disk = Self { folder };
        disk.mount()?;
        if kind == "ext4" {
            fs::remove_dir(disk.wal().join("lost+found")).unwrap();
        }
        Ok(disk)
    }

    pub fn wal(&self) -> PathBuf {
        self.folder.path().join("wal")
    }

    pub fn mount(&self) -> Result<(), String> {
        let image = self.folder.path().join("image");
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(self.wal()))
    }

    /// Waits until nobody has it any more.
    pub fn unmount(&self) {
        wait_until("the file system is let go", seconds(30), || {
            run(Command::new("umount").arg(self.wal())).is_ok()
        });
    }

    /// What a power cut does: nothing that is not on the disk by now gets there, the journal neither.
    pub fn power_off(&self) {
        run(Command::new(shutdown_tool()).arg(self.wal())).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that failed: what still has it goes with the test's process.
        if let Err(error) = run(Command::new("umount").arg("-l").arg(self.wal())) {
            println!("{error}");
        }
    }
}

/// The ioctl that shuts a file system down, as a program: ext4's EXT4_IOC_SHUTDOWN and xfs's XFS_IOC_GOINGDOWN are one number,
/// and 2 is "without the log".
fn shutdown_tool() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    const SOURCE: &str = r#"
        #include <fcntl.h>
        #include <stdint.h>
        #include <stdio.h>
        #include <sys/ioctl.h>
        int main(int count, char **arguments)
        {
            uint32_t how = 2;
            int folder = count == 2 ? open(arguments[1], O_RDONLY | O_DIRECTORY) : -1;
            if (folder < 0 || ioctl(folder, _IOR('X', 125, uint32_t), &how) < 0) {
                perror("shutdown");
                return 1;
            }
            return 0;
        }
    "#;
    let (_, path) = BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let (source, path) = (folder.path().join("shutdown.c"), folder.path().join("shutdown"));
        fs::write(&source, SOURCE).unwrap();
        run(Command::new("cc").arg("-o").arg(&path).arg(&source)).unwrap();
        (folder, path)
    });
    path
}

/// Why this machine cannot do it.
pub fn missing() -> Option<String> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING.get_or_init(why_missing).clone()
}

fn why_missing() -> Option<String> {
    let tried = Disk::make("ext4");
    tried
        .err()
        .map(|why| format!("no file system of its own on a loop device ({})", why.trim()))
}
