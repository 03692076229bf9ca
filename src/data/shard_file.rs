//! The file format of prepared shards, described in `data/README.md`.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

const MAGIC: &[u8; 8] = b"LRPTTOKN";
const VERSION: u32 = 2;
/// Where the checksum stands in the header, which it ends.
pub(super) const CHECKSUM: usize = 72;
pub(super) const HEADER_BYTES: usize = CHECKSUM + blake3::OUT_LEN;

/// Bytes read or written at a time.
pub(super) const BLOCK: usize = 1 << 20;

/// Width of a stored token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    U16,
    U32,
}

impl Width {
    /// The narrowest width that holds every token of a vocabulary.
    pub(super) fn for_vocabulary(size: usize) -> Self {
        if size <= 1 << 16 { Width::U16 } else { Width::U32 }
    }

    /// Tokens as they are stored.
    ///
    /// # Errors
    /// When a token does not fit.
    pub(super) fn encode(self, tokens: &[u32]) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(tokens.len() * self.bytes());
        match self {
            Width::U16 => {
                if let Some(token) = tokens.iter().find(|token| **token > u32::from(u16::MAX)) {
                    anyhow::bail!("token {token} does not fit into two bytes")
                }
                tokens.iter().for_each(|token| bytes.extend((*token as u16).to_le_bytes()));
            }
            Width::U32 => tokens.iter().for_each(|token| bytes.extend(token.to_le_bytes())),
        }
        Ok(bytes)
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Width::U16 => 2,
            Width::U32 => 4,
        }
    }
}

/// The start of a prepared shard; every number little-endian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Header {
    pub width: Width,
    pub tokens: u64,
    /// UTF-8 bytes of the text the tokens stand for.
    pub text_bytes: u64,
    /// BLAKE3 of the tokenizer's JSON.
    pub tokenizer_hash: blake3::Hash,
    /// Documents listed behind the tokens.
    pub documents: u64,
}

/// A document whose text is not as long as its tokens say, as where the tokenizer takes accents
/// or spaces away before it splits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// Number of tokens.
    pub tokens: u64,
    /// UTF-8 bytes of the text.
    pub text_bytes: u64,
    /// UTF-8 bytes of the tokens, each taken by itself.
    pub token_bytes: u64,
}

impl Document {
    /// Bytes of one in the list.
    pub(super) const BYTES: usize = 24;

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (place, number) in
            bytes.chunks_exact_mut(8).zip([self.tokens, self.text_bytes, self.token_bytes])
        {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let [tokens, text_bytes, token_bytes] = [0, 8, 16].map(|at| long(bytes, at));
        Self { tokens, text_bytes, token_bytes }
    }
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Header {
    /// The header up to the checksum.
    pub(super) fn encode(&self) -> [u8; CHECKSUM] {
        let mut bytes = [0; CHECKSUM];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.width.bytes() as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.tokens.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.text_bytes.to_le_bytes());
        bytes[32..64].copy_from_slice(self.tokenizer_hash.as_bytes());
        bytes[64..].copy_from_slice(&self.documents.to_le_bytes());
        bytes
    }

    /// Reads the header of a file and checks the file against it, to the last byte; a block of it
    /// is in memory at a time.
    ///
    /// # Errors
    /// When the file is of another kind or version, cut off, appended to or changed.
    pub(super) fn read(file: &mut File) -> anyhow::Result<Self> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.take(HEADER_BYTES as u64).read_to_end(&mut bytes)?;
        let length = file.metadata()?.len();
        let header = Self::decode(&bytes, length)?;
        anyhow::ensure!(
            checksum(file)?.as_bytes()[..] == bytes[CHECKSUM..],
            "its checksum is not that of its content: bytes of it have changed since it was written"
        );
        Ok(header)
    }

    /// The header in the first bytes of a file of this length.
    fn decode(bytes: &[u8], length: u64) -> anyhow::Result<Self> {
        anyhow::ensure!(
            bytes.len() >= HEADER_BYTES,
            "only {length} bytes, less than the header of {HEADER_BYTES}"
        );
        let number =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        anyhow::ensure!(
            &bytes[..8] == MAGIC,
            "not a token shard: it does not begin with {}",
            String::from_utf8_lossy(MAGIC)
        );
        anyhow::ensure!(
            number(8) == VERSION,
            "format version {}, this program reads version {VERSION}",
            number(8)
        );
        let width = match number(12) {
            2 => Width::U16,
            4 => Width::U32,
            other => anyhow::bail!("tokens of {other} bytes; only 2 and 4 are known"),
        };
        let tokenizer_hash = blake3::Hash::from_bytes(bytes[32..64].try_into().expect("32 bytes"));
        let (tokens, text_bytes, documents) = (long(bytes, 16), long(bytes, 24), long(bytes, 64));
        let header = Header { width, tokens, text_bytes, tokenizer_hash, documents };
        let expected = header
            .documents_at()
            .and_then(|at| documents.checked_mul(Document::BYTES as u64)?.checked_add(at));
        anyhow::ensure!(
            expected == Some(length),
            "{length} bytes, but its header promises {tokens} tokens of {} bytes and {documents} \
             documents: the file was cut off or appended to",
            width.bytes()
        );
        Ok(header)
    }

    /// Where the documents begin.
    fn documents_at(&self) -> Option<u64> {
        self.tokens.checked_mul(self.width.bytes() as u64)?.checked_add(HEADER_BYTES as u64)
    }
}

/// The checksum in a shard's header.
pub(super) fn stored_checksum(file: &mut File) -> anyhow::Result<blake3::Hash> {
    let mut bytes = [0; blake3::OUT_LEN];
    file.seek(SeekFrom::Start(CHECKSUM as u64))?;
    file.read_exact(&mut bytes)?;
    Ok(blake3::Hash::from_bytes(bytes))
}

/// BLAKE3 of a shard's file but for the place of the checksum.
pub(super) fn checksum(file: &mut File) -> anyhow::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0; BLOCK];
    file.rewind()?;
    file.read_exact(&mut block[..HEADER_BYTES])?;
    hasher.update(&block[..CHECKSUM]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hasher.finalize()),
            count => hasher.update(&block[..count]),
        };
    }
}

impl Document {
    /// A document of these tokens and this many UTF-8 bytes.
    pub(super) fn new(tokens: &[u32], text_bytes: u64, token_byte_lengths: &[u32]) -> Self {
        let token_bytes = token_bytes(tokens, token_byte_lengths);
        Self { tokens: tokens.len() as u64, text_bytes, token_bytes }
    }

    /// Whether the tokens by themselves are as long as the text.
    pub(super) fn is_exact(&self) -> bool {
        self.text_bytes == self.token_bytes
    }
}

pub(super) fn token_bytes(tokens: &[u32], token_byte_lengths: &[u32]) -> u64 {
    let length =
        |token: &u32| token_byte_lengths.get(*token as usize).copied().map_or(0, u64::from);
    tokens.iter().map(length).sum()
}

/// The documents behind a shard's tokens, each with the number of tokens before it.
pub(super) fn documents_of(map: &[u8], header: &Header) -> anyhow::Result<Vec<(u64, Document)>> {
    let at = header.documents_at().context("more tokens than there are numbers for")? as usize;
    let mut before = 0u64;
    let mut documents = Vec::with_capacity(header.documents as usize);
    for bytes in map[at..].chunks_exact(Document::BYTES) {
        let document = Document::decode(bytes);
        documents.push((before, document));
        before = before.saturating_add(document.tokens);
    }
    anyhow::ensure!(
        documents.is_empty() || before == header.tokens,
        "its documents have {before} tokens, but it has {}",
        header.tokens
    );
    Ok(documents)
}

/// The first characters of a hash, for messages.
pub(super) fn short(hash: &blake3::Hash) -> String {
    hash.to_hex()[..16].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shard::TokenShard;
    use crate::data::shard_writer::write_shard;
    use std::path::PathBuf;

    fn written(width: Width, tokens: &[u32]) -> (tempfile::TempDir, PathBuf, blake3::Hash) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.tokens");
        let tokenizer_hash = blake3::hash(b"tokenizer");
        let header = Header {
            width,
            tokens: tokens.len() as u64,
            text_bytes: 7,
            tokenizer_hash,
            documents: 0,
        };
        write_shard(&path, &header, tokens, &[]).unwrap();
        (folder, path, tokenizer_hash)
    }

    #[test]
    fn a_token_wider_than_the_shard_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let header = Header {
            width: Width::U16,
            tokens: 1,
            text_bytes: 1,
            tokenizer_hash: blake3::hash(b""),
            documents: 0,
        };
        assert!(write_shard(&folder.path().join("x"), &header, &[65_536], &[]).is_err());
    }

    type Damage = fn(&mut Vec<u8>);

    #[test]
    fn damage_is_named() {
        let damages: [(&str, Damage); 9] = [
            // Case 11: a token, the number of text bytes, the checksum.
            ("checksum", |bytes| bytes[HEADER_BYTES + 2] ^= 1),
            ("checksum", |bytes| bytes[24] ^= 1),
            ("checksum", |bytes| bytes[CHECKSUM] ^= 1),
            ("cut off", |bytes| bytes.truncate(bytes.len() - 1)),
            ("appended", |bytes| bytes.push(0)),
            ("less than the header", |bytes| bytes.truncate(20)),
            ("not a token shard", |bytes| bytes[0] = b'X'),
            ("format version 9", |bytes| bytes[8] = 9),
            ("tokens of 3 bytes", |bytes| bytes[12] = 3),
        ];
        for (expected, damage) in damages {
            let (_folder, path, hash) = written(Width::U16, &[1, 2, 3]);
            let mut bytes = std::fs::read(&path).unwrap();
            damage(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
            let error = format!("{:#}", TokenShard::open(&path, &hash).unwrap_err());
            assert!(
                error.contains(expected) && error.contains("train.tokens"),
                "{expected}: {error}"
            );
        }
    }

    #[test]
    fn another_tokenizer_is_refused() {
        let (_folder, path, _) = written(Width::U16, &[1, 2, 3]);
        let error =
            format!("{:#}", TokenShard::open(&path, &blake3::hash(b"another")).unwrap_err());
        assert!(error.contains("made with tokenizer"), "{error}");
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let (_folder, path, hash) = written(Width::U32, &[1, 70_000, 3]);
        let sound = std::fs::read(&path).unwrap();
        for at in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, bytes).unwrap();
            assert!(TokenShard::open(&path, &hash).is_err(), "byte {at}");
        }
    }
}
