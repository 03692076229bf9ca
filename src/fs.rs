//! Durable files: everything that must survive a crash is written beside its place, flushed, and
//! renamed into it.

use anyhow::Context;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use tempfile::Builder;

mod folders;

pub use folders::{remove_leftovers, write_directory_atomic, write_directory_resumable};

/// Writes a file so that a reader, also one after a crash, sees the old content or the new, never a
/// part.
///
/// The bytes go to a temporary file in the same folder, which is flushed to the disk (fsync) and
/// renamed; then the folder is flushed. Missing folders are created.
///
/// # Errors
/// When a folder cannot be created, or the file cannot be written, flushed or renamed; the message
/// names the path.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = parent_folder(path)?;
    let write = || -> anyhow::Result<()> {
        let prefix = temporary_prefix(path)?;
        let mut temporary = temporary_builder(&prefix, 0o666).tempfile_in(&folder)?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|e| e.error)?;
        flush_folder(&folder)
    };
    write().with_context(|| {
        format!(
            "{}: the file could not be written (is the disk full, or the folder read-only?)",
            path.display()
        )
    })
}

/// Refuses a path that is a symbolic link: what is written there would land elsewhere. A path that
/// does not exist is fine.
///
/// # Errors
/// Names the link and where it leads.
pub fn refuse_link(path: &Path) -> anyhow::Result<()> {
    match fs::read_link(path) {
        Err(_) => Ok(()),
        Ok(target) => anyhow::bail!(
            "{}: is a link to {}, and nothing is written through links; put a folder or file of its own there, or remove it",
            path.display(),
            target.display()
        ),
    }
}

/// Most bytes that are read of a text that may come from anyone; tokenizers are the longest.
pub const LONGEST_TEXT: u64 = 1 << 28;

/// Opens a file that may come from anyone: a pipe, which could be waited for, or a device, which
/// may never end, is refused and not opened.
///
/// # Errors
/// When it cannot be opened, or is no ordinary file.
pub fn open_ordinary(path: &Path) -> std::io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        let what = "is no ordinary file (a folder, a pipe or a device)";
        return Err(std::io::Error::new(ErrorKind::InvalidInput, what));
    }
    File::open(path)
}

/// The bytes of a file that may come from anyone, as [`open_ordinary`] has it; a file of more than
/// `most` bytes is not read.
///
/// # Errors
/// When it cannot be read, is no ordinary file, or is too long.
pub fn read_ordinary(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let file = open_ordinary(path)?;
    let length = file.metadata()?.len();
    let too_long = |length: u64| {
        let what = format!("has {length} bytes, and at most {most} are read of such a file");
        std::io::Error::new(ErrorKind::FileTooLarge, what)
    };
    if length > most {
        return Err(too_long(length));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX))?;
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(too_long(bytes.len() as u64));
    }
    Ok(bytes)
}

/// The text of a description that may come from anyone, as [`read_ordinary`] has it.
///
/// # Errors
/// As [`read_ordinary`], and when it is not UTF-8.
pub fn read_text(path: &Path) -> std::io::Result<String> {
    String::from_utf8(read_ordinary(path, LONGEST_TEXT)?)
        .map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error))
}

/// Whether an error comes from the system (EIO, EMFILE, ENOMEM, EACCES, ...) and says nothing of
/// what was to be read; a file or folder that is missing or of the wrong kind is damage.
pub fn is_failed_read(error: &anyhow::Error) -> bool {
    use ErrorKind::{IsADirectory, NotADirectory, NotFound};
    error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|io| {
        io.raw_os_error().is_some() && !matches!(io.kind(), NotFound | IsADirectory | NotADirectory)
    })
}

/// The folder of a path, created if missing.
fn parent_folder(path: &Path) -> anyhow::Result<PathBuf> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&folder)
        .with_context(|| format!("{}: the folder could not be created", folder.display()))?;
    Ok(folder)
}

/// `.NAME.`, with which the temporaries of a path called NAME begin.
fn temporary_prefix(path: &Path) -> anyhow::Result<OsString> {
    let mut prefix = OsString::from(".");
    prefix.push(
        path.file_name()
            .with_context(|| format!("{}: the path has no name to write to", path.display()))?,
    );
    prefix.push(".");
    Ok(prefix)
}

const TEMPORARY_SUFFIX: &str = ".tmp";

/// Temporaries get the permissions an ordinary file or folder would get (`mode` less the umask), as
/// they become one.
fn temporary_builder(prefix: &OsString, mode: u32) -> Builder<'_, 'static> {
    let mut builder = Builder::new();
    builder.prefix(prefix).suffix(TEMPORARY_SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// Makes the names in a folder durable. Only Unix can and needs to.
fn flush_folder(folder: &Path) -> anyhow::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Bytes of the files in a folder and in the folders in it; links are not followed, and what cannot
/// be read counts nothing.
pub fn size_on_disk(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => size_on_disk(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |found| found.len()),
        _ => 0,
    };
    entries.map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names in a folder, sorted.
    pub(in crate::fs) fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/state.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(path.parent().unwrap()), ["state.json"]);
    }

    #[test]
    fn the_size_on_disk_is_that_of_all_files() {
        let folder = tempfile::tempdir().unwrap();
        write_atomic(&folder.path().join("a"), b"one").unwrap();
        write_atomic(&folder.path().join("deep/b"), b"seven b").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("/usr", folder.path().join("link")).unwrap();
        assert_eq!(size_on_disk(folder.path()), 10);
        assert_eq!(size_on_disk(&folder.path().join("missing")), 0);
    }

    /// What a stranger's folder may hold in the place of a file: nothing of it is waited for or
    /// read without end.
    #[cfg(unix)]
    #[test]
    fn only_ordinary_files_of_a_sensible_length_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("plan.yaml"), "name: a").unwrap();
        std::os::unix::fs::symlink(path("plan.yaml"), path("link")).unwrap();
        assert_eq!(read_text(&path("link")).unwrap(), "name: a");
        std::os::unix::fs::symlink("/dev/zero", path("endless")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(path("pipe")).status();
        assert!(pipe.unwrap().success());
        for name in ["endless", "pipe", ""] {
            let error = read_text(&path(name)).unwrap_err().to_string();
            assert!(error.contains("no ordinary file"), "{name}: {error}");
        }
        File::create(path("sparse")).unwrap().set_len(1 << 42).unwrap();
        let error = read_text(&path("sparse")).unwrap_err().to_string();
        assert!(error.contains("4398046511104 bytes"), "{error}");
        assert_eq!(read_ordinary(&path("plan.yaml"), 7).unwrap(), b"name: a");
        assert!(read_ordinary(&path("plan.yaml"), 6).is_err());
        assert_eq!(read_text(&path("absent")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn an_error_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("occupied");
        fs::create_dir_all(path.join("by a folder")).unwrap();
        let error = format!("{:#}", write_atomic(&path, b"x").unwrap_err());
        assert!(error.contains("occupied"), "{error}");
        assert_eq!(names(folder.path()), ["occupied"]);
    }
}
