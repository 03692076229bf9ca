//! What a start puts into a run's folder before its first step, taken away again if it comes to
//! none: a failed first start leaves no run behind, and one over another run leaves that run.

use super::run_folder::RunFolder;
use super::run_history::RECORDED;
use crate::checkpoint::LOCK_FILE;
use crate::fs::{LONGEST_TEXT, read_ordinary};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files that describe a run; the first is what makes a folder a run.
const DESCRIPTION: [&str; 8] = [
    "plan.yaml",
    "spec.yaml",
    "env.json",
    "data.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "init.json",
    "first-checkpoint.json",
];
/// A folder that a start may create and put a file into.
const EVENTS: &str = "tensorboard";

/// Files that a start creates empty or appends to.
fn records() -> impl Iterator<Item = &'static str> {
    RECORDED.into_iter().filter(|name| name.contains('.'))
}

/// What a run's folder was before anyone took its lock.
#[derive(Clone, Debug)]
pub struct Untouched {
    root: PathBuf,
    /// The folder and those above it that are missing, the innermost first.
    missing: Vec<PathBuf>,
    has_lock_file: bool,
}

impl Untouched {
    /// Looks at the folder of a run; nothing is written.
    pub fn look(root: &Path) -> Self {
        let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        Self {
            root: root.to_path_buf(),
            missing: root.ancestors().take_while(is_missing).map(Path::to_path_buf).collect(),
            has_lock_file: root.join(LOCK_FILE).exists(),
        }
    }

    /// Deletes the lock file and the folders that were not there, so far as they are empty; by the
    /// process that holds the lock.
    pub fn restore(&self) {
        if !self.has_lock_file {
            // What cannot be deleted stays, and says nothing wrong.
            let _ = std::fs::remove_file(self.root.join(LOCK_FILE));
        }
        for folder in &self.missing {
            // Fails, as it should, where anything is left in it.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// A start that has not taken a step yet: dropped, it leaves the folder as it was.
///
/// Only what a start itself writes is deleted, and only where it was not there before; the caller
/// holds the run's lock until this is gone.
#[derive(Debug)]
pub struct FreshStart {
    folder: RunFolder,
    untouched: Untouched,
    /// The description of the run that was here, and which records it had.
    description: BTreeMap<&'static str, Vec<u8>>,
    records: Vec<&'static str>,
    /// What was renamed, from and to.
    aside: Vec<(PathBuf, PathBuf)>,
    /// Whether what was renamed is to be deleted after the first step.
    overwrites: bool,
    is_pending: bool,
}

impl FreshStart {
    /// A start in a folder that was `untouched` before its lock was taken.
    pub fn new(untouched: Untouched, overwrites: bool) -> Self {
        let root = &untouched.root;
        let read =
            |name: &'static str| Some((name, read_ordinary(&root.join(name), LONGEST_TEXT).ok()?));
        Self {
            folder: RunFolder::new(root),
            description: DESCRIPTION.into_iter().filter_map(read).collect(),
            records: records().chain([EVENTS]).filter(|name| root.join(name).exists()).collect(),
            untouched,
            aside: Vec::new(),
            overwrites,
            is_pending: true,
        }
    }

    /// Renames what the run that is here has recorded, as [`RunFolder::set_history_aside`].
    ///
    /// # Errors
    /// If something cannot be renamed; what was is put back when this is dropped.
    pub fn set_history_aside(&mut self) -> anyhow::Result<()> {
        self.folder.set_history_aside(self.overwrites, &mut self.aside)?;
        if !self.overwrites {
            for (from, to) in &self.aside {
                tracing::info!("kept {} aside as {}", from.display(), to.display());
            }
        }
        Ok(())
    }

    /// The first step was tried, or none is asked for: the folder is this run's from now on, and the
    /// run it overwrites goes.
    pub fn has_begun(mut self) {
        self.is_pending = false;
        for (_, old) in self.aside.iter().filter(|_| self.overwrites) {
            let removed = match old.is_dir() {
                true => std::fs::remove_dir_all(old),
                false => std::fs::remove_file(old),
            };
            if let Err(error) = removed {
                tracing::warn!("{}: of the overwritten run, not deleted: {error}", old.display());
            }
        }
    }
}

impl Drop for FreshStart {
    fn drop(&mut self) {
        if !self.is_pending {
            return;
        }
        let root = &self.untouched.root;
        for name in DESCRIPTION {
            let path = root.join(name);
            // The error that ends the start is the one to be told.
            let _ = match self.description.get(name) {
                None => std::fs::remove_file(path),
                Some(before) if std::fs::read(&path).is_ok_and(|now| now == *before) => Ok(()),
                Some(before) => crate::fs::write_atomic(&path, before)
                    .map_err(|error| std::io::Error::other(format!("{error:#}"))),
            };
        }
        let moved = |path: &Path| self.aside.iter().any(|(from, _)| from == path);
        for name in records() {
            let path = root.join(name);
            if moved(&path) || !self.records.contains(&name) {
                let _ = std::fs::remove_file(path);
            }
        }
        if moved(&root.join(EVENTS)) || !self.records.contains(&EVENTS) {
            let _ = std::fs::remove_dir_all(root.join(EVENTS));
        }
        for (from, to) in &self.aside {
            // A folder that holds anything stays, and what it stands in the way of, too.
            let _ = std::fs::remove_dir(from);
            if from.symlink_metadata().is_err() {
                let _ = std::fs::rename(to, from);
            }
        }
        for empty in ["checkpoints", "samples"] {
            if !moved(&root.join(empty)) {
                let _ = std::fs::remove_dir(root.join(empty));
            }
        }
        self.untouched.restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and contents of all files below a folder; empty folders by their names.
    fn contents(root: &Path) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(root).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                found.insert(path.clone(), "a folder".to_owned());
                found.extend(contents(&path));
            } else {
                found.insert(path.clone(), std::fs::read_to_string(&path).expect("text"));
            }
        }
        found
    }

    fn write(root: &Path, names: &[&str], text: &str) {
        for name in names {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("writable");
        }
    }

    /// What a start writes before its first step.
    fn start(root: &Path, overwrites: bool) -> FreshStart {
        let untouched = Untouched::look(root);
        write(root, &[LOCK_FILE], "7");
        let mut fresh = FreshStart::new(untouched, overwrites);
        fresh.set_history_aside().expect("renamed");
        write(root, &DESCRIPTION, "new");
        write(root, &records().collect::<Vec<_>>(), "new");
        write(root, &["tensorboard/events"], "new");
        fresh
    }

    #[test]
    fn a_start_that_took_no_step_leaves_nothing_of_its_own_and_all_that_was_there() {
        let place = tempfile::tempdir().expect("a folder");
        drop(start(&place.path().join("runs/new"), false));
        assert!(contents(place.path()).is_empty(), "{:?}", contents(place.path()));

        let run = place.path().join("old");
        write(&run, &["notes.md", "plan.yaml", "metrics.jsonl", LOCK_FILE], "old");
        write(&run, &["checkpoints/step-00000001/model", "samples/a.txt", "log.txt"], "old");
        let before = contents(&run);
        for overwrites in [false, true] {
            write(&run, &["log.txt", LOCK_FILE], "old");
            let fresh = start(&run, overwrites);
            assert_ne!(contents(&run), before);
            drop(fresh);
            let mut after = contents(&run);
            // A log is appended to, not replaced.
            if !overwrites {
                after.insert(run.join("log.txt"), "old".into());
            }
            after.insert(run.join(LOCK_FILE), "old".into());
            assert_eq!(after, before, "overwrites: {overwrites}");
        }
    }

    #[test]
    fn a_first_step_ends_the_run_that_is_overwritten_and_nothing_else() {
        let place = tempfile::tempdir().expect("a folder");
        let run = place.path().join("old");
        write(&run, &["notes.md", "plan.yaml", "metrics.jsonl", "metrics-1.jsonl"], "old");
        write(&run, &["checkpoints/step-00000001/model", "checkpoints-1/kept"], "old");
        start(&run, true).has_begun();
        let left = contents(&run);
        let old: Vec<_> = left.iter().filter(|(_, text)| *text == "old").collect();
        let names: Vec<_> = old.iter().map(|(path, _)| path.strip_prefix(&run).unwrap()).collect();
        let kept = ["checkpoints-1/kept", "metrics-1.jsonl", "notes.md"];
        assert_eq!(names, kept.map(Path::new), "{left:?}");
    }
}
