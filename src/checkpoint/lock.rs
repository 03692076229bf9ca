//! One training process per run.

use anyhow::{Context, bail};
use std::fs::{File, Metadata, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file in a run's folder whose lock is the run's.
pub const LOCK_FILE: &str = "lrpt.lock";

/// The right to train in a run's folder, held until it is dropped or the process ends, however it
/// ends.
///
/// The lock is the operating system's on the open file `lrpt.lock`, which holds the process's
/// number; the file itself stays and means nothing.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    path: PathBuf,
}

impl RunLock {
    /// Takes the lock of a run's folder, which is created if missing.
    ///
    /// # Errors
    /// When another process holds it (the message names the folder and that process), the lock
    /// file is a symbolic link or cannot be written, or the folder was replaced meanwhile.
    pub fn acquire(run_dir: &Path) -> anyhow::Result<Self> {
        let path = run_dir.join(LOCK_FILE);
        let failed = || format!("{}: the lock of the run could not be taken", path.display());
        std::fs::create_dir_all(run_dir).with_context(failed)?;
        if path.is_symlink() {
            bail!(
                "{} is a symbolic link, through which a file elsewhere would be overwritten; \
                 delete the link",
                path.display()
            );
        }
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(failed)?;
        match try_lock_patiently(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "another lrpt process ({}) is training in {}; stop it first, or choose another folder with --run-dir",
                    holder(&mut file),
                    run_dir.display()
                );
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
        }
        write_holder(&mut file).with_context(failed)?;
        let lock = Self { file, path };
        // The folder may have been deleted and made anew between opening and locking.
        lock.check_held()?;
        Ok(lock)
    }

    /// Whether a process trains in this folder now. Nothing is written.
    pub fn is_held(run_dir: &Path) -> bool {
        let path = run_dir.join(LOCK_FILE);
        // A link or a pipe is no lock of ours, and opening a pipe would wait.
        let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
        let Some(file) = is_file.then(|| File::open(path).ok()).flatten() else { return false };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// Checks that the lock file at its path is still the one that was locked.
    ///
    /// # Errors
    /// When the run's folder was deleted, renamed or replaced while this process trains in it.
    pub fn check_held(&self) -> anyhow::Result<()> {
        let ours = self.file.metadata().with_context(|| self.path.display().to_string())?;
        let remedy = "this process no longer owns that folder and stops without writing to it; \
                      leave the folder of a run in place while it trains";
        match std::fs::symlink_metadata(&self.path) {
            Ok(found) if same_file(&ours, &found) => Ok(()),
            Ok(_) => bail!(
                "{} is another file than this process locked: the run's folder was replaced \
                 while it trained; {remedy}",
                self.path.display()
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
                "{} is gone: the run's folder was deleted or renamed while it trained; {remedy}",
                self.path.display()
            ),
            Err(error) => Err(error).with_context(|| format!("{}: not read", self.path.display())),
        }
    }
}

/// Takes a lock, trying again for a moment: whoever asks [`RunLock::is_held`] has it for some
/// microseconds.
fn try_lock_patiently(file: &File) -> Result<(), TryLockError> {
    for _ in 0..4 {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(25)),
            answered => return answered,
        }
    }
    file.try_lock()
}

/// Whether two files are one, by device and inode.
#[cfg(unix)]
fn same_file(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Elsewhere an open file can be neither deleted nor renamed.
#[cfg(not(unix))]
fn same_file(_: &Metadata, _: &Metadata) -> bool {
    true
}

/// Leaves this process's number for those who find the run locked.
fn write_holder(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

/// The process that holds the lock, as far as its file can be read.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok()) {
        Some(pid) => format!("pid {pid}"),
        None => "pid unknown".into(),
    }
}
