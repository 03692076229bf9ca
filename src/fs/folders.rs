//! Folders that are there whole or not at all: filled under a temporary name beside their place,
//! flushed, and renamed into it.

use super::{
    TEMPORARY_SUFFIX, flush_folder, is_failed_read, parent_folder, size_on_disk, temporary_builder,
    temporary_prefix,
};
use anyhow::Context;
use std::cmp::Reverse;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Fills a folder so that `target`, whenever it exists, is complete.
///
/// `fill` gets an empty temporary folder beside `target`; then every file and folder in it is
/// flushed (fsync), the whole is renamed to `target`, and the enclosing folder is flushed. A
/// `target` that exists already is replaced: it is renamed away just before, and deleted after.
/// Temporary folders of the same target that a killed process left behind are removed first; those
/// another process is still filling are held by a lock on the folder and stay. (Only Unix can lock
/// a folder; elsewhere leftovers stay and do no harm.)
///
/// # Errors
/// When `fill` fails (nothing is left behind then), or a folder cannot be created, flushed or
/// renamed; the message names the path.
pub fn write_directory_atomic(
    target: &Path,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let enclosing = parent_folder(target)?;
    let failed = || unwritable(target);
    remove_stale(target, &enclosing).with_context(failed)?;
    let (temporary, _lock) = locked_temporary_folder(target, &enclosing).with_context(failed)?;

    fill(temporary.path())
        .with_context(|| format!("{}: the folder was not written", target.display()))?;

    publish(temporary.path(), target, &enclosing).with_context(failed)
}

/// As [`write_directory_atomic`], but what a process that was stopped left behind is handed to
/// `fill`, which looks at what is in the folder and goes on, if there is a file called `mark` in it;
/// of several such folders the largest. Where `fill` fails because the system did (a full disk),
/// a folder with the mark stays for the next attempt. (Only Unix can lock a folder; elsewhere `fill`
/// always begins with an empty one.)
///
/// # Errors
/// As [`write_directory_atomic`]; where a folder stays, the message says so.
pub fn write_directory_resumable(
    target: &Path,
    mark: &str,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let enclosing = parent_folder(target)?;
    let failed = || unwritable(target);
    let left = take_over(target, &enclosing, mark).with_context(failed)?;
    remove_stale(target, &enclosing).with_context(failed)?;
    let (temporary, _lock) = match left {
        Some((folder, lock)) => (folder, Some(lock)),
        None => {
            let (folder, lock) =
                locked_temporary_folder(target, &enclosing).with_context(failed)?;
            (folder.keep(), lock)
        }
    };
    let Err(error) = fill(&temporary) else {
        return publish(&temporary, target, &enclosing).with_context(failed);
    };
    let not_written = format!("{}: the folder was not written", target.display());
    if is_failed_read(&error) && temporary.join(mark).exists() {
        return Err(error.context(format!(
            "{not_written}; what is done is kept in {}, and the next attempt goes on from there",
            temporary.display()
        )));
    }
    // Whatever hinders this is nothing to the error that is returned.
    let _ = fs::remove_dir_all(&temporary);
    Err(error.context(not_written))
}

fn unwritable(target: &Path) -> String {
    format!(
        "{}: the folder could not be written (is the disk full, or the place read-only?)",
        target.display()
    )
}

/// Flushes a filled folder and makes it `target`.
fn publish(temporary: &Path, target: &Path, enclosing: &Path) -> anyhow::Result<()> {
    flush_tree(temporary)?;
    let replaced = set_aside(target, enclosing)?;
    fs::rename(temporary, target)?;
    flush_folder(enclosing)?;
    drop(replaced);
    Ok(())
}

/// A temporary folder and the lock that tells other processes it is in use.
fn locked_temporary_folder(
    target: &Path,
    enclosing: &Path,
) -> anyhow::Result<(TempDir, Option<File>)> {
    let prefix = temporary_prefix(target)?;
    loop {
        let temporary = temporary_builder(&prefix, 0o777).tempdir_in(enclosing)?;
        let lock = lock_folder(temporary.path());
        // Between creation and lock another process may have taken the folder for a leftover; then
        // another one is made.
        if temporary.path().exists() {
            return Ok((temporary, lock));
        }
    }
}

/// The lock of a folder, unless another process holds it or the system cannot lock folders.
fn lock_folder(folder: &Path) -> Option<File> {
    if !cfg!(unix) {
        return None;
    }
    let file = File::open(folder).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

/// Removes the temporary folders of `target` that nobody holds.
fn remove_stale(target: &Path, enclosing: &Path) -> anyhow::Result<()> {
    let prefix = temporary_prefix(target)?;
    remove_leftovers(enclosing, |folder| {
        let name = folder.file_name().unwrap_or_default().as_encoded_bytes();
        name.starts_with(prefix.as_encoded_bytes())
    })?;
    Ok(())
}

/// Removes temporary folders that stopped processes left behind in `enclosing`, of whatever target,
/// if `is_meant` says so; returns how many. Those that a process is still filling stay.
///
/// # Errors
/// When `enclosing` cannot be read, or a folder cannot be removed.
pub fn remove_leftovers(
    enclosing: &Path,
    is_meant: impl Fn(&Path) -> bool,
) -> anyhow::Result<usize> {
    let mut removed = 0;
    for folder in temporary_folders(enclosing)? {
        if is_meant(&folder)
            && let Some(_lock) = lock_folder(&folder)
        {
            tracing::debug!(
                "removing {}, left behind by a process that was stopped",
                folder.display()
            );
            fs::remove_dir_all(&folder)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// The folders in `enclosing` with names of temporary ones.
fn temporary_folders(enclosing: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(enclosing)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let is_temporary = name.starts_with(b".") && name.ends_with(TEMPORARY_SUFFIX.as_bytes());
        if is_temporary && entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

/// The largest temporary folder of `target` with this mark that nobody holds, and its lock.
fn take_over(
    target: &Path,
    enclosing: &Path,
    mark: &str,
) -> anyhow::Result<Option<(PathBuf, File)>> {
    let prefix = temporary_prefix(target)?;
    let mut left = temporary_folders(enclosing)?;
    left.retain(|folder| {
        let name = folder.file_name().unwrap_or_default().as_encoded_bytes();
        name.starts_with(prefix.as_encoded_bytes()) && folder.join(mark).exists()
    });
    left.sort_by_key(|folder| Reverse(size_on_disk(folder)));
    // Between the listing and the lock a process may have finished it, so that it has another name.
    let held = |folder: PathBuf| lock_folder(&folder).map(|lock| (folder, lock));
    Ok(left.into_iter().filter_map(held).find(|(folder, _)| folder.join(mark).exists()))
}

/// Renames an existing `target` to a temporary folder, which is deleted when the returned value is
/// dropped.
fn set_aside(target: &Path, enclosing: &Path) -> anyhow::Result<Option<TempDir>> {
    let aside = temporary_builder(&temporary_prefix(target)?, 0o777).tempdir_in(enclosing)?;
    match fs::rename(target, aside.path().join("replaced")) {
        Ok(()) => Ok(Some(aside)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Flushes every file and folder under `folder`, the innermost first.
fn flush_tree(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            flush_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    flush_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::tests::names;

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("step-1");
        let failed = write_directory_atomic(&target, |inside| {
            fs::write(inside.join("half"), b"x")?;
            anyhow::bail!("stopped half-way")
        });
        assert!(format!("{:#}", failed.unwrap_err()).contains("step-1"));
        assert!(names(folder.path()).is_empty());

        for content in [b"one", b"two"] {
            write_directory_atomic(&target, |inside| {
                fs::create_dir(inside.join("nested"))?;
                Ok(fs::write(inside.join("nested/file"), content)?)
            })
            .unwrap();
            assert_eq!(fs::read(target.join("nested/file")).unwrap(), content);
            assert_eq!(names(folder.path()), ["step-1"]);
        }
    }

    #[test]
    #[cfg(unix)]
    fn leftovers_go_and_folders_in_use_stay() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("set");
        fs::create_dir(folder.path().join(".set.dead.tmp")).unwrap();
        fs::create_dir(folder.path().join(".other.dead.tmp")).unwrap();
        let (in_use, _lock) = locked_temporary_folder(&target, folder.path()).unwrap();
        let in_use_name = in_use.path().file_name().unwrap().to_str().unwrap().to_string();

        write_directory_atomic(&target, |_| Ok(())).unwrap();

        let mut expected = vec![".other.dead.tmp".to_string(), in_use_name, "set".into()];
        expected.sort();
        assert_eq!(names(folder.path()), expected);
    }

    /// What `fill` left in a folder that it was stopped in is what it finds, unless another process
    /// holds it; without the mark it begins with nothing.
    #[test]
    #[cfg(unix)]
    fn a_stopped_fill_goes_on_with_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("set");
        let leave = |name: &str, files: &[&str]| {
            let left = folder.path().join(name);
            fs::create_dir(&left).unwrap();
            files.iter().for_each(|file| fs::write(left.join(file), file).unwrap());
        };
        let found = || {
            let mut found = Vec::new();
            write_directory_resumable(&target, "mark", |inside| {
                found = names(inside);
                Ok(())
            })
            .unwrap();
            assert_eq!(names(folder.path()), ["set"]);
            found
        };
        leave(".set.a.tmp", &["a", "b", "c"]);
        assert!(found().is_empty(), "no mark");
        leave(".set.a.tmp", &["mark"]);
        leave(".set.b.tmp", &["mark", "more"]);
        assert_eq!(found(), ["mark", "more"]);

        leave(".set.a.tmp", &["mark"]);
        let lock = lock_folder(&folder.path().join(".set.a.tmp")).expect("a lock");
        write_directory_resumable(&target, "mark", |inside| {
            assert!(names(inside).is_empty(), "another process holds what is there");
            Ok(())
        })
        .unwrap();
        assert_eq!(names(folder.path()), [".set.a.tmp", "set"]);
        drop(lock);
        assert_eq!(found(), ["mark"]);
    }

    /// A full disk loses nothing; another error leaves nothing.
    #[test]
    fn what_the_system_stopped_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("set");
        let fails = |error: fn() -> anyhow::Error| {
            let filled = write_directory_resumable(&target, "mark", |inside| {
                fs::write(inside.join("mark"), "")?;
                Err(error())
            });
            format!("{:#}", filled.unwrap_err())
        };
        fails(|| anyhow::anyhow!("a document is no text"));
        assert!(names(folder.path()).is_empty());
        let full = fails(|| std::io::Error::from_raw_os_error(28).into());
        assert!(full.contains("goes on from there") && full.contains("set"), "{full}");
        assert_eq!(names(folder.path()).len(), 1);
    }
}
