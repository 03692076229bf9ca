//! The data that is prepared already.

use super::dataset::DatasetSummary;
use crate::fs::size_on_disk;
use anyhow::{Context, Result};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A folder of prepared data.
#[derive(Clone, Debug)]
pub struct PreparedData {
    /// Its folder, named by the hash of text and tokenizer.
    pub folder: PathBuf,
    /// Identity and size of the tokens.
    pub summary: DatasetSummary,
    /// When it was prepared.
    pub prepared: SystemTime,
    /// Bytes of its files.
    pub bytes: u64,
}

/// What is prepared in this cache, the newest first; nothing where there is no cache yet. Folders
/// that hold something else are passed over; one whose description is damaged is warned of.
///
/// # Errors
/// If the cache cannot be read.
pub fn prepared_data(cache: &Path) -> Result<Vec<PreparedData>> {
    let failed = || format!("{}: not read", cache.display());
    let entries = match std::fs::read_dir(cache) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(failed)?;
        let path = entry.path().join("dataset.json");
        // A name with a dot is of a preparation that goes on or never ended.
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if is_hidden || !path.metadata().is_ok_and(|found| found.is_file()) {
            continue;
        }
        match read(&entry.path(), &path) {
            Ok(prepared) => found.push(prepared),
            Err(error) => tracing::warn!("{error:#}"),
        }
    }
    found.sort_by(|a, b| b.prepared.cmp(&a.prepared).then_with(|| a.folder.cmp(&b.folder)));
    Ok(found)
}

fn read(folder: &Path, description: &Path) -> Result<PreparedData> {
    let failed = || {
        let path = description.display();
        format!("{path}: not read; delete its folder and prepare the data again")
    };
    let text = crate::fs::read_text(description).with_context(failed)?;
    Ok(PreparedData {
        folder: folder.to_path_buf(),
        summary: serde_json::from_str(&text).with_context(failed)?,
        prepared: description.metadata().and_then(|of| of.modified()).with_context(failed)?,
        bytes: size_on_disk(folder),
    })
}
