//! `latest` and `best`: names that lead to a step's folder, moved in one instant.

use super::directory::{self, folder_name, step_of};
use anyhow::Context;
use std::path::Path;

/// Makes `name` in `folder` lead to the checkpoint of a step: a relative symbolic link on Unix,
/// elsewhere a text file with the folder's name.
///
/// # Errors
/// When the link or file cannot be written.
pub(super) fn set(folder: &Path, name: &str, step: u64) -> anyhow::Result<()> {
    let place = folder.join(name);
    place_atomic(folder, name, &folder_name(step))
        .with_context(|| format!("{}: could not be set to step {step}", place.display()))
}

#[cfg(unix)]
fn place_atomic(folder: &Path, name: &str, target: &str) -> anyhow::Result<()> {
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    remove(&temporary)?;
    std::os::unix::fs::symlink(target, &temporary)?;
    let place = folder.join(name);
    if is_copy(&place) {
        remove(&place)?;
    }
    std::fs::rename(&temporary, place)?;
    Ok(())
}

#[cfg(not(unix))]
fn place_atomic(folder: &Path, name: &str, target: &str) -> anyhow::Result<()> {
    crate::fs::write_atomic(&folder.join(name), format!("{target}\n").as_bytes())
}

/// The step that `name` leads to, if it leads to a checkpoint that is there.
pub(super) fn get(folder: &Path, name: &str) -> Option<u64> {
    let place = folder.join(name);
    let target = match std::fs::read_link(&place) {
        Ok(target) => target.to_str()?.to_string(),
        // A copy that followed links (`cp -rL`, `scp -r`) has the checkpoint once more.
        Err(_) if place.is_dir() => folder_name(directory::step_of_manifest(&place)?),
        Err(_) => crate::fs::read_text(&place).ok()?.trim_end().to_string(),
    };
    let step = step_of(&target)?;
    folder.join(target).is_dir().then_some(step)
}

/// Whether a link has become a copy of what it led to, as `cp -rL` and `scp -r` make of it.
fn is_copy(place: &Path) -> bool {
    place.is_dir() && !place.is_symlink()
}

/// Removes a link, a file, or a copy of the checkpoint that a link led to, if it is there.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    if is_copy(path) {
        return std::fs::remove_dir_all(path);
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
