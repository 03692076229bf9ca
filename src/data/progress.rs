//! What is done of a preparation, in a file beside the shards that are not finished, so that the
//! next attempt goes on from there.

use super::shard_file::Document;
use super::shard_writer::Written;
use crate::fs::{read_text, write_atomic};
use crate::spec::DataSpec;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The file, which is only there while the folder is not finished.
pub(super) const PROGRESS: &str = "progress.json";

/// What is done of a preparation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Progress {
    /// BLAKE3 of the text, its split and the tokenizer asked for.
    pub content_hash: String,
    /// What was asked for.
    pub asked: Asked,
    /// BLAKE3 of `tokenizer.json`, which is finished.
    pub tokenizer_hash: String,
    /// The finished parts, each with the checksum in the header of its shard.
    pub finished: BTreeMap<String, String>,
    /// The part that is being written, and how far.
    pub unfinished: Option<(String, Place)>,
}

/// A spec's data, and the folder that its relative paths start at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    data: DataSpec,
    folder: PathBuf,
}

impl Asked {
    /// What this spec asks for in the current folder.
    pub(super) fn here(data: &DataSpec) -> Self {
        Self { data: data.clone(), folder: std::env::current_dir().unwrap_or_default() }
    }
}

/// Where the writing of a part can go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    /// Pieces of the text (of instructions: examples) whose tokens are written.
    pub pieces: u64,
    /// BLAKE3 of these pieces.
    pub text: String,
    /// What is written of the document that the last piece belongs to, unless it ends there.
    pub document: Document,
    /// What is in the shard.
    pub shard: Written,
}

impl Progress {
    /// Reads the file of a folder.
    ///
    /// # Errors
    /// [`Differs`] where it is missing or damaged; else where the system cannot read it.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let text = read_text(&folder.join(PROGRESS));
        let text = text.map_err(|error| not_found(error, PROGRESS))?;
        serde_json::from_str(&text).map_err(|_| differs(format!("{PROGRESS} is damaged")))
    }

    /// Replaces the file of a folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        write_atomic(&folder.join(PROGRESS), &serde_json::to_vec_pretty(self)?)
    }

    /// Removes the file: the folder is finished.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(super) fn remove(folder: &Path) -> anyhow::Result<()> {
        let path = folder.join(PROGRESS);
        std::fs::remove_file(&path)
            .with_context(|| format!("{}: the file cannot be removed", path.display()))
    }
}

/// Why a preparation cannot go on where it was stopped, so that it begins anew.
#[derive(Debug)]
pub(super) struct Differs(String);

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Differs {}

/// A [`Differs`] that says what does.
pub(super) fn differs(what: impl Into<String>) -> anyhow::Error {
    Differs(what.into()).into()
}

/// The error of a file that a preparation left behind: [`Differs`] unless the system failed.
pub(super) fn not_found(error: std::io::Error, name: &str) -> anyhow::Error {
    let error = anyhow::Error::from(error);
    if crate::fs::is_failed_read(&error) {
        return error.context(format!("{name}: the file cannot be read"));
    }
    differs(format!("{name} is missing or damaged"))
}
