//! A prepared shard while it is written: tokens go to its file as they come.

use super::progress::{differs, not_found};
use super::shard_file::{BLOCK, CHECKSUM, Document, HEADER_BYTES, Header, Width, checksum};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A prepared shard that is being written: tokens go to its file as they come.
pub(super) struct ShardWriter {
    path: PathBuf,
    file: Hashed,
    width: Width,
    text_bytes: u64,
    /// The documents, in a file of their own meanwhile: they come behind all tokens.
    documents: Hashed,
    /// Whether the tokens of every document by themselves are as long as its text, so that the
    /// documents need not be listed.
    are_exact: bool,
}

/// What an unfinished shard holds, to be found again by another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    pub tokens: u64,
    text_bytes: u64,
    documents: u64,
    are_exact: bool,
    /// BLAKE3 of the tokens as they are stored.
    tokens_hash: String,
    /// BLAKE3 of the documents as they are stored.
    documents_hash: String,
}

/// A file that is appended to, the number of bytes after its header, and their BLAKE3.
struct Hashed {
    file: BufWriter<File>,
    bytes: u64,
    hasher: blake3::Hasher,
}

impl Hashed {
    fn create(path: &Path, header: usize) -> std::io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let mut file = BufWriter::with_capacity(BLOCK, file);
        file.write_all(&vec![0; header])?;
        Ok(Self { file, bytes: 0, hasher: blake3::Hasher::new() })
    }

    /// Opens the file again after so many bytes with this hash; what comes after them goes.
    fn reopen(path: &Path, header: usize, bytes: u64, hash: &str) -> anyhow::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let open = || -> std::io::Result<(File, blake3::Hasher)> {
            let mut file = File::options().read(true).write(true).open(path)?;
            file.seek(SeekFrom::Start(header as u64))?;
            let mut hasher = blake3::Hasher::new();
            let mut text = BufReader::with_capacity(BLOCK, &mut file).take(bytes);
            if std::io::copy(&mut text, &mut hasher)? < bytes {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            Ok((file, hasher))
        };
        let (mut file, hasher) = open().map_err(|error| not_found(error, &name))?;
        if hasher.finalize().to_hex().as_str() != hash {
            return Err(differs(format!("{name} is damaged")));
        }
        let end = header as u64 + bytes;
        file.set_len(end)
            .and_then(|()| file.seek(SeekFrom::Start(end)))
            .with_context(|| unwritable(path))?;
        Ok(Self { file: BufWriter::with_capacity(BLOCK, file), bytes, hasher })
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }

    /// Brings all of it to the disk; returns its hash.
    fn sync(&mut self) -> std::io::Result<String> {
        self.file.flush()?;
        self.file.get_ref().sync_data()?;
        Ok(self.hasher.finalize().to_hex().to_string())
    }
}

impl ShardWriter {
    /// An empty shard for tokens of this width.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(super) fn create(path: &Path, width: Width) -> anyhow::Result<Self> {
        let failed = || unwritable(path);
        Ok(Self {
            path: path.to_path_buf(),
            file: Hashed::create(path, HEADER_BYTES).with_context(failed)?,
            width,
            text_bytes: 0,
            documents: Hashed::create(&list_of(path), 0).with_context(failed)?,
            are_exact: true,
        })
    }

    /// A shard that holds this already and is not finished; what it has beyond that goes.
    ///
    /// # Errors
    /// [`Differs`](super::progress::Differs) where it does not hold it; else where the system cannot
    /// read or write it.
    pub(super) fn reopen(path: &Path, width: Width, written: &Written) -> anyhow::Result<Self> {
        let bytes = |count: u64, each: usize| {
            let too_many = || differs("the progress is damaged");
            count.checked_mul(each as u64).ok_or_else(too_many)
        };
        let tokens = bytes(written.tokens, width.bytes())?;
        let documents = bytes(written.documents, Document::BYTES)?;
        let list = list_of(path);
        Ok(Self {
            path: path.to_path_buf(),
            file: Hashed::reopen(path, HEADER_BYTES, tokens, &written.tokens_hash)?,
            width,
            text_bytes: written.text_bytes,
            documents: Hashed::reopen(&list, 0, documents, &written.documents_hash)?,
            are_exact: written.are_exact,
        })
    }

    /// Brings what was added to the disk, and says what that is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn sync(&mut self) -> anyhow::Result<Written> {
        let hashes = self.file.sync().and_then(|tokens| Ok((tokens, self.documents.sync()?)));
        let (tokens_hash, documents_hash) = hashes.with_context(|| unwritable(&self.path))?;
        Ok(Written {
            tokens: self.tokens(),
            text_bytes: self.text_bytes,
            documents: self.documents_count(),
            are_exact: self.are_exact,
            tokens_hash,
            documents_hash,
        })
    }

    fn tokens(&self) -> u64 {
        self.file.bytes / self.width.bytes() as u64
    }

    fn documents_count(&self) -> u64 {
        self.documents.bytes / Document::BYTES as u64
    }

    /// Adds tokens, [encoded](Width::encode) in the shard's width.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) fn append(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.append(bytes).with_context(|| unwritable(&self.path))
    }

    /// Says what document the tokens since the last one are.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn end_document(&mut self, document: &Document) -> anyhow::Result<()> {
        self.text_bytes += document.text_bytes;
        self.are_exact &= document.is_exact();
        self.documents.append(&document.encode()).with_context(|| unwritable(&self.path))
    }

    /// Lists the documents even where every token's own length is right.
    pub(super) fn list_documents(&mut self) {
        self.are_exact = false;
    }

    /// Writes what stands behind and before the tokens, and brings all to the disk; returns the
    /// header and the checksum in it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn finish(
        mut self,
        tokenizer_hash: blake3::Hash,
    ) -> anyhow::Result<(Header, blake3::Hash)> {
        let header = Header {
            width: self.width,
            tokens: self.tokens(),
            text_bytes: self.text_bytes,
            tokenizer_hash,
            documents: if self.are_exact { 0 } else { self.documents_count() },
        };
        let mut write = || -> anyhow::Result<blake3::Hash> {
            if !self.are_exact {
                self.documents.file.flush()?;
                let documents = self.documents.file.get_mut();
                documents.rewind()?;
                std::io::copy(&mut BufReader::new(documents), &mut self.file.file)?;
            }
            self.file.file.flush()?;
            let file = self.file.file.get_mut();
            file.rewind()?;
            file.write_all(&header.encode())?;
            let checksum = checksum(file)?;
            file.seek(SeekFrom::Start(CHECKSUM as u64))?;
            file.write_all(checksum.as_bytes())?;
            file.sync_data()?;
            Ok(checksum)
        };
        let checksum = write().with_context(|| unwritable(&self.path))?;
        Ok((header, checksum))
    }
}

/// Where the documents of a shard are until it is finished.
fn list_of(path: &Path) -> PathBuf {
    path.with_extension("documents")
}

/// Removes what only an unfinished shard needs, if it is there.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn remove_list(path: &Path) -> anyhow::Result<()> {
    let list = list_of(path);
    match std::fs::remove_file(&list) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: the file cannot be removed", list.display()))
        }
        _ => Ok(()),
    }
}

fn unwritable(path: &Path) -> String {
    format!("{}: the tokens cannot be written", path.display())
}

/// Writes a prepared shard.
#[cfg(test)]
pub(super) fn write_shard(
    path: &Path,
    header: &Header,
    tokens: &[u32],
    documents: &[Document],
) -> anyhow::Result<()> {
    let mut shard = ShardWriter::create(path, header.width)?;
    shard.append(&header.width.encode(tokens)?)?;
    let whole = Document {
        tokens: tokens.len() as u64,
        text_bytes: header.text_bytes,
        token_bytes: header.text_bytes,
    };
    let documents = if documents.is_empty() { &[whole] } else { documents };
    documents.iter().try_for_each(|document| shard.end_document(document))?;
    assert_eq!(shard.finish(header.tokenizer_hash)?.0, *header);
    Ok(())
}
