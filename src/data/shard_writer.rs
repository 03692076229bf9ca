//! A prepared shard while it is written: tokens go to its file as they come.

use super::shard_file::{BLOCK, CHECKSUM, Document, HEADER_BYTES, Header, Width, checksum};
use anyhow::Context;
use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A prepared shard that is being written: tokens go to its file as they come.
pub(super) struct ShardWriter {
    path: PathBuf,
    file: BufWriter<File>,
    width: Width,
    tokens: u64,
    text_bytes: u64,
    /// The documents, in a file without a name: they come behind all tokens.
    documents: BufWriter<File>,
    count: u64,
    /// Whether the tokens of every document by themselves are as long as its text, so that the
    /// documents need not be listed.
    are_exact: bool,
}

impl ShardWriter {
    /// An empty shard for tokens of this width.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(super) fn create(path: &Path, width: Width) -> anyhow::Result<Self> {
        let failed = || unwritable(path);
        let folder = path.parent().unwrap_or(Path::new("."));
        let documents = tempfile::tempfile_in(folder).with_context(failed)?;
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let mut file = BufWriter::with_capacity(BLOCK, file.with_context(failed)?);
        file.write_all(&[0; HEADER_BYTES]).with_context(failed)?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            width,
            tokens: 0,
            text_bytes: 0,
            documents: BufWriter::new(documents),
            count: 0,
            are_exact: true,
        })
    }

    /// Adds tokens, [encoded](Width::encode) in the shard's width.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) fn append(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.tokens += (bytes.len() / self.width.bytes()) as u64;
        self.file.write_all(bytes).with_context(|| unwritable(&self.path))
    }

    /// Says what document the tokens since the last one are.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn end_document(&mut self, document: &Document) -> anyhow::Result<()> {
        self.text_bytes += document.text_bytes;
        self.count += 1;
        self.are_exact &= document.is_exact();
        self.documents.write_all(&document.encode()).with_context(|| unwritable(&self.path))
    }

    /// Lists the documents even where every token's own length is right.
    pub(super) fn list_documents(&mut self) {
        self.are_exact = false;
    }

    /// Writes what stands behind and before the tokens.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn finish(mut self, tokenizer_hash: blake3::Hash) -> anyhow::Result<Header> {
        let header = Header {
            width: self.width,
            tokens: self.tokens,
            text_bytes: self.text_bytes,
            tokenizer_hash,
            documents: if self.are_exact { 0 } else { self.count },
        };
        let mut write = || -> anyhow::Result<()> {
            if !self.are_exact {
                self.documents.flush()?;
                self.documents.get_mut().rewind()?;
                std::io::copy(&mut BufReader::new(self.documents.get_mut()), &mut self.file)?;
            }
            self.file.flush()?;
            let file = self.file.get_mut();
            file.rewind()?;
            file.write_all(&header.encode())?;
            let checksum = checksum(file)?;
            file.seek(SeekFrom::Start(CHECKSUM as u64))?;
            file.write_all(checksum.as_bytes())?;
            Ok(())
        };
        write().with_context(|| unwritable(&self.path))?;
        Ok(header)
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
    assert_eq!(shard.finish(header.tokenizer_hash)?, *header);
    Ok(())
}
