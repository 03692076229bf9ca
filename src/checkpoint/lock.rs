//! One training process per run.

use anyhow::{Context, bail};
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

const LOCK_FILE: &str = "lrpt.lock";

/// The right to train in a run's folder, held until it is dropped or the process ends, however it
/// ends.
///
/// The lock is the operating system's on the open file `lrpt.lock`, which holds the process's
/// number; the file itself stays and means nothing.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock of a run's folder, which is created if missing.
    ///
    /// # Errors
    /// When another process holds it (the message names the folder and that process) or the lock
    /// file cannot be written.
    pub fn acquire(run_dir: &Path) -> anyhow::Result<Self> {
        let path = run_dir.join(LOCK_FILE);
        let failed = || format!("{}: the lock of the run could not be taken", path.display());
        std::fs::create_dir_all(run_dir).with_context(failed)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(failed)?;
        match file.try_lock() {
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
        Ok(Self { _file: file })
    }
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
