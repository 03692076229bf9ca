//! The checkpoints of one run: which there are, which is newest, which is best, and how one is
//! added or dropped.

use super::directory::{self, folder_name, step_of};
use super::{Snapshot, pointer, to_delete};
use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const LATEST: &str = "latest";
const BEST: &str = "best";
/// A checkpoint that is about to be replaced by another of the same step; it counts until the new
/// one is in place.
const REPLACED: &str = ".replaced-";
/// A checkpoint found damaged and set aside; it no longer counts and is never deleted.
const DAMAGED: &str = "damaged-";
/// What a process that was killed may leave behind ends with this and begins with a dot.
const TEMPORARY: &str = ".tmp";

/// The folder `checkpoints` of one run.
///
/// Reading needs nothing. Whoever calls a method that takes `&mut self` must hold the run's
/// [`RunLock`](super::RunLock).
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    /// The last step this process saved and read back.
    verified: Option<u64>,
}

/// One checkpoint on disk, not yet looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Optimizer steps taken.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

/// A checkpoint that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Its folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl Checkpoints {
    /// The checkpoints of the run in `run_dir`; nothing is read or written yet.
    pub fn open(run_dir: &Path) -> Self {
        Self { folder: run_dir.join("checkpoints"), verified: None }
    }

    /// The folder of a step's checkpoint, whether or not it exists.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(folder_name(step))
    }

    /// The checkpoints on disk, oldest first.
    ///
    /// # Errors
    /// When the folder exists and cannot be read.
    pub fn list(&self) -> anyhow::Result<Vec<Entry>> {
        let mut entries = BTreeMap::new();
        for name in self.names()? {
            if let Some(step) = step_of(&name) {
                entries.insert(step, self.folder.join(name));
            } else if let Some(step) = name.strip_prefix(REPLACED).and_then(step_of) {
                entries.entry(step).or_insert(self.folder.join(name));
            }
        }
        Ok(entries.into_iter().map(|(step, path)| Entry { step, path }).collect())
    }

    /// The step that `latest` leads to.
    pub fn latest(&self) -> Option<u64> {
        pointer::get(&self.folder, LATEST)
    }

    /// The step that `best` leads to.
    pub fn best(&self) -> Option<u64> {
        pointer::get(&self.folder, BEST)
    }

    /// Reads the newest checkpoint that is whole, and says which newer ones are not.
    ///
    /// The order is that of the steps; the links are not asked, since a process may have been
    /// killed before it moved them.
    ///
    /// # Errors
    /// When the folder or a file cannot be read, for want of file handles, memory or a sound disk.
    /// A damaged checkpoint is no error but an entry of the list.
    pub fn load_latest(&self) -> anyhow::Result<(Option<Snapshot>, Vec<Damaged>)> {
        let mut damaged = Vec::new();
        for Entry { path, .. } in self.list()?.into_iter().rev() {
            match directory::load(&path) {
                Ok(snapshot) => return Ok((Some(snapshot), damaged)),
                Err(error) if crate::fs::is_failed_read(&error) => {
                    return Err(error.context(format!(
                        "{}: the system could not read this checkpoint, which is no damage; \
                         nothing was changed, mend the cause and try again",
                        path.display()
                    )));
                }
                Err(error) => {
                    let reason = error
                        .chain()
                        .skip(1)
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(": ");
                    damaged.push(Damaged { path, reason });
                }
            }
        }
        Ok((None, damaged))
    }

    /// Saves a snapshot, reads it back, and makes `latest` lead to it; returns its folder.
    ///
    /// The files go to a temporary folder, the manifest last, are flushed to the disk and renamed
    /// into place. A process killed at any moment leaves the set of checkpoints as it was or with
    /// the new one; its temporary files go at the next save. A checkpoint of the same step is
    /// replaced.
    ///
    /// # Errors
    /// When something cannot be written, or what was written does not read back; the checkpoints
    /// are as before then.
    pub fn save(&mut self, snapshot: &Snapshot) -> anyhow::Result<PathBuf> {
        self.clean_up()?;
        let step = snapshot.step;
        let path = self.path(step);
        let replaced = self.folder.join(format!("{REPLACED}{}", folder_name(step)));
        if path.exists() && directory::verify(&path).is_ok() {
            std::fs::rename(&path, &replaced)
                .with_context(|| format!("{}: not replaced", path.display()))?;
        }
        let write = || -> anyhow::Result<()> {
            crate::fs::write_directory_atomic(&path, |folder| directory::write(folder, snapshot))?;
            directory::verify(&path).map(drop).inspect_err(|_| drop(std::fs::remove_dir_all(&path)))
        };
        if let Err(error) = write() {
            self.clean_up()?;
            return Err(error);
        }
        if replaced.exists() {
            remove_folder(&replaced)?;
        }
        pointer::set(&self.folder, LATEST, step)?;
        self.verified = Some(step);
        Ok(path)
    }

    /// Makes `best` lead to the checkpoint of a step.
    ///
    /// # Errors
    /// When there is no such checkpoint or the link cannot be written.
    pub fn mark_best(&mut self, step: u64) -> anyhow::Result<()> {
        let path = self.path(step);
        ensure!(
            path.is_dir(),
            "{}: there is no such checkpoint, so it cannot be marked as best",
            path.display()
        );
        pointer::set(&self.folder, BEST, step)
    }

    /// Deletes all checkpoints but the newest `keep_last` and the best, as [`to_delete`] has it;
    /// returns the steps deleted.
    ///
    /// Nothing is deleted unless the newest checkpoint was read back, by [`Checkpoints::save`] or
    /// now.
    ///
    /// # Errors
    /// When the newest checkpoint is damaged, or a folder cannot be read or deleted.
    pub fn prune(&mut self, keep_last: usize) -> anyhow::Result<Vec<u64>> {
        self.clean_up()?;
        let entries = self.list()?;
        let Some(newest) = entries.last() else { return Ok(Vec::new()) };
        if self.verified != Some(newest.step) {
            directory::verify(&newest.path).context("no older checkpoint was deleted")?;
        }
        let steps: Vec<u64> = entries.iter().map(|entry| entry.step).collect();
        let deleted = to_delete(&steps, keep_last, self.best());
        for entry in entries.iter().filter(|entry| deleted.contains(&entry.step)) {
            // Renamed first: half a folder must not be taken for a checkpoint.
            let doomed =
                self.folder.join(format!(".{}.deleted{TEMPORARY}", folder_name(entry.step)));
            std::fs::rename(&entry.path, &doomed)
                .with_context(|| format!("{}: not deleted", entry.path.display()))?;
            remove_folder(&doomed)?;
        }
        Ok(deleted)
    }

    /// Mends what a process killed in its last save left: temporary files go, `latest` leads to
    /// the newest checkpoint, of the step `loaded` that was just read, and older ones are pruned.
    ///
    /// # Errors
    /// As [`Checkpoints::prune`].
    pub fn repair(&mut self, loaded: u64, keep_last: usize) -> anyhow::Result<()> {
        self.verified = Some(loaded);
        self.prune(keep_last)?;
        if self.latest() != Some(loaded) {
            pointer::set(&self.folder, LATEST, loaded)?;
        }
        Ok(())
    }

    /// Renames a damaged checkpoint `step-...` to `damaged-step-...`, so that it no longer counts;
    /// `latest` moves to the newest that is left.
    ///
    /// # Errors
    /// When something cannot be renamed or written.
    pub fn set_aside(&mut self, damaged: &Damaged) -> anyhow::Result<PathBuf> {
        let name = damaged.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let aside =
            self.folder.join(format!("{DAMAGED}{}", name.strip_prefix(REPLACED).unwrap_or(name)));
        if aside.exists() {
            remove_folder(&aside)?;
        }
        std::fs::rename(&damaged.path, &aside)
            .with_context(|| format!("{}: not set aside", damaged.path.display()))?;
        if self.best().is_none() {
            pointer::remove(&self.folder.join(BEST))?;
        }
        match self.list()?.last() {
            Some(newest) => pointer::set(&self.folder, LATEST, newest.step)?,
            None => pointer::remove(&self.folder.join(LATEST))?,
        }
        Ok(aside)
    }

    /// Moves the checkpoints of these steps into another folder, which is created, the newest first;
    /// `latest` and `best` that led to one of them go.
    ///
    /// # Errors
    /// When something cannot be moved; those before it are, and the rest is as it was.
    pub fn move_to(&mut self, folder: &Path, steps: &[u64]) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        for step in steps.iter().rev() {
            let path = self.path(*step);
            std::fs::rename(&path, folder.join(folder_name(*step)))
                .with_context(|| format!("{}: not moved", path.display()))?;
        }
        if self.best().is_none() {
            pointer::remove(&self.folder.join(BEST))?;
        }
        match self.list()?.last() {
            Some(newest) => pointer::set(&self.folder, LATEST, newest.step),
            None => Ok(pointer::remove(&self.folder.join(LATEST))?),
        }
    }

    /// Undoes what a killed process left: temporary files go, and a checkpoint whose replacement
    /// never came returns to its place.
    fn clean_up(&self) -> anyhow::Result<()> {
        for name in self.names()? {
            let path = self.folder.join(&name);
            if let Some(original) =
                name.strip_prefix(REPLACED).filter(|original| step_of(original).is_some())
            {
                let original = self.folder.join(original);
                if original.exists() {
                    remove_folder(&path)?;
                } else {
                    std::fs::rename(&path, original)
                        .with_context(|| format!("{}: not put back", path.display()))?;
                }
            } else if name.starts_with('.') && name.ends_with(TEMPORARY) {
                tracing::debug!(
                    "removing {}, left behind by a process that was stopped",
                    path.display()
                );
                if path.is_dir() && !path.is_symlink() {
                    remove_folder(&path)?;
                } else {
                    pointer::remove(&path)
                        .with_context(|| format!("{}: not deleted", path.display()))?;
                }
            }
        }
        Ok(())
    }

    /// The names in the folder, sorted; none where there is no folder.
    fn names(&self) -> anyhow::Result<Vec<String>> {
        let read = || -> std::io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&self.folder)? {
                names.extend(entry?.file_name().into_string().ok());
            }
            names.sort();
            Ok(names)
        };
        match read() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            names => names.with_context(|| {
                format!("{}: the folder of checkpoints cannot be read", self.folder.display())
            }),
        }
    }
}

fn remove_folder(path: &Path) -> anyhow::Result<()> {
    std::fs::remove_dir_all(path).with_context(|| format!("{}: not deleted", path.display()))
}
