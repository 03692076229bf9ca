//! What a complete checkpoint holds: its step, and the size and hash of each file.

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

/// Version of the checkpoint's layout; a reader refuses every other.
pub(super) const FORMAT_VERSION: u32 = 1;

/// Contents of `manifest.json`, the file that is written last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the checkpoint's layout.
    pub format_version: u32,
    /// Optimizer steps taken.
    pub step: u64,
    /// The other files of the folder, in a fixed order.
    pub files: Vec<FileEntry>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name inside the checkpoint's folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 hash of the content, 64 hexadecimal digits.
    pub blake3: String,
}

impl FileEntry {
    /// The entry that describes a content of this size and hash.
    pub(super) fn new(name: &str, bytes: u64, hash: blake3::Hash) -> Self {
        Self { name: name.to_string(), bytes, blake3: hash.to_hex().to_string() }
    }

    /// Checks the length of a file found on disk, which is known before a byte of it is read.
    ///
    /// # Errors
    /// When it is another than was written; the message has both.
    pub(super) fn check_length(&self, found: u64) -> anyhow::Result<()> {
        let (name, expected) = (&self.name, self.bytes);
        ensure!(found == expected, "{name} has {found} bytes, but the manifest says {expected}");
        Ok(())
    }

    /// Checks the hash of a file found on disk.
    ///
    /// # Errors
    /// When it is another than was written; the message has both.
    pub(super) fn check_hash(&self, found: blake3::Hash) -> anyhow::Result<()> {
        let (name, expected) = (&self.name, &self.blake3);
        ensure!(
            found.to_hex().as_str() == expected,
            "{name} has the BLAKE3 hash {found}, but the manifest says {expected}"
        );
        Ok(())
    }
}

/// All that is read of a manifest before its version is known.
#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

impl Manifest {
    /// The manifest as stored: indented JSON and a newline.
    pub(super) fn to_bytes(&self) -> anyhow::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a manifest that must list exactly the files `names`.
    ///
    /// The bytes must be the ones [`Manifest::to_bytes`] gives, so a changed byte shows wherever it
    /// is.
    ///
    /// # Errors
    /// When the bytes are no manifest, are of another format version, or list other files.
    pub(super) fn from_bytes(bytes: &[u8], names: &[&str]) -> anyhow::Result<Self> {
        let Version { format_version } =
            serde_json::from_slice(bytes).context("manifest.json is no checkpoint manifest")?;
        if format_version != FORMAT_VERSION {
            bail!(
                "manifest.json has format version {format_version}, but this lrpt reads version {FORMAT_VERSION}; use the lrpt that wrote it"
            );
        }
        let manifest: Self =
            serde_json::from_slice(bytes).context("manifest.json is no checkpoint manifest")?;
        let listed: Vec<_> = manifest.files.iter().map(|file| file.name.as_str()).collect();
        ensure!(listed == names, "manifest.json lists the files {listed:?} instead of {names:?}");
        ensure!(manifest.to_bytes()? == bytes, "manifest.json is not as it was written");
        Ok(manifest)
    }
}
