//! Tokens on disk, memory-mapped, and the file format of prepared shards (described in
//! `data/README.md`).

use super::corpus::usage;
use anyhow::Context;
use memmap2::Mmap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"LRPTTOKN";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;

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

    fn bytes(self) -> usize {
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
    /// UTF-8 bytes the tokens stand for.
    pub text_bytes: u64,
    /// BLAKE3 of the tokenizer's JSON.
    pub tokenizer_hash: blake3::Hash,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.width.bytes() as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.tokens.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.text_bytes.to_le_bytes());
        bytes[32..].copy_from_slice(self.tokenizer_hash.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> anyhow::Result<Self> {
        anyhow::ensure!(
            bytes.len() >= HEADER_BYTES,
            "only {} bytes, less than the header of {HEADER_BYTES}",
            bytes.len()
        );
        let number =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let long =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
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
        let tokenizer_hash =
            blake3::Hash::from_bytes(bytes[32..HEADER_BYTES].try_into().expect("32 bytes"));
        let header = Header { width, tokens: long(16), text_bytes: long(24), tokenizer_hash };
        let expected = header
            .tokens
            .checked_mul(width.bytes() as u64)
            .and_then(|size| size.checked_add(HEADER_BYTES as u64));
        anyhow::ensure!(
            expected == Some(bytes.len() as u64),
            "{} bytes, but its header promises {} tokens of {} bytes: the file was cut off or appended to",
            bytes.len(),
            header.tokens,
            width.bytes()
        );
        Ok(header)
    }
}

/// Writes a prepared shard.
///
/// # Errors
/// When a token does not fit the width, or the file cannot be written.
pub(super) fn write_shard(path: &Path, header: &Header, tokens: &[u32]) -> anyhow::Result<()> {
    let failed = || format!("{}: the tokens cannot be written", path.display());
    anyhow::ensure!(
        header.tokens == tokens.len() as u64,
        "{}: header of {} for {} tokens",
        path.display(),
        header.tokens,
        tokens.len()
    );
    let mut file = BufWriter::new(File::create(path).with_context(failed)?);
    file.write_all(&header.encode()).with_context(failed)?;
    for &token in tokens {
        match header.width {
            Width::U16 => file.write_all(&u16::try_from(token).with_context(failed)?.to_le_bytes()),
            Width::U32 => file.write_all(&token.to_le_bytes()),
        }
        .with_context(failed)?;
    }
    file.flush().with_context(failed)
}

/// A sequence of tokens: a prepared shard, raw token files one after the other, or tokens in
/// memory.
#[derive(Debug)]
pub struct TokenShard {
    segments: Vec<Segment>,
    length: usize,
}

/// Tokens that lie together; `start` counts the tokens before them.
#[derive(Debug)]
struct Segment {
    start: usize,
    length: usize,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Memory(Vec<u32>),
    File { map: Mmap, offset: usize, width: Width },
}

impl TokenShard {
    /// Opens a prepared shard (`train.tokens`, `val.tokens`).
    ///
    /// # Errors
    /// When the file is damaged or was made with another tokenizer; the message says to prepare the
    /// data again.
    pub(super) fn open(
        path: &Path,
        tokenizer_hash: &blake3::Hash,
    ) -> anyhow::Result<(Self, Header)> {
        let open = || -> anyhow::Result<_> {
            let map = map(path)?;
            let header = Header::decode(&map)?;
            anyhow::ensure!(
                header.tokenizer_hash == *tokenizer_hash,
                "made with tokenizer {}, but the tokenizer beside it is {}",
                short(&header.tokenizer_hash),
                short(tokenizer_hash)
            );
            let storage = Storage::File { map, offset: HEADER_BYTES, width: header.width };
            Ok((Self::from_storages([(header.tokens as usize, storage)]), header))
        };
        open().with_context(|| {
            format!("{}: delete its folder and prepare the data again", path.display())
        })
    }

    /// Opens files of little-endian uint16 tokens without a header, one after the other.
    ///
    /// # Errors
    /// [`crate::error::Failure::Usage`] for a missing file, an empty one, and one with an odd
    /// number of bytes.
    pub(super) fn open_raw(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut storages = Vec::with_capacity(paths.len());
        for path in paths {
            if !path.is_file() {
                return Err(usage(format!("{}: no such token file", path.display())));
            }
            let map = map(path)
                .with_context(|| format!("{}: the tokens cannot be read", path.display()))?;
            if map.is_empty() || map.len() % 2 != 0 {
                return Err(usage(format!(
                    "{}: {} bytes are not uint16 tokens",
                    path.display(),
                    map.len()
                )));
            }
            storages.push((map.len() / 2, Storage::File { map, offset: 0, width: Width::U16 }));
        }
        Ok(Self::from_storages(storages))
    }

    /// Tokens in memory.
    pub fn from_tokens(tokens: Vec<u32>) -> Self {
        Self::from_storages([(tokens.len(), Storage::Memory(tokens))])
    }

    fn from_storages(storages: impl IntoIterator<Item = (usize, Storage)>) -> Self {
        let mut shard = TokenShard { segments: Vec::new(), length: 0 };
        for (length, storage) in storages {
            shard.segments.push(Segment { start: shard.length, length, storage });
            shard.length += length;
        }
        shard
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The tokens `start .. start + count`.
    ///
    /// # Panics
    /// When they reach past the end.
    pub fn read(&self, start: usize, count: usize) -> Vec<u32> {
        let end = start.checked_add(count).filter(|end| *end <= self.length);
        let end = end.unwrap_or_else(|| {
            panic!("tokens {start} and {count} more of a shard of {}", self.length)
        });
        let mut tokens = Vec::with_capacity(count);
        let first =
            self.segments.partition_point(|segment| segment.start + segment.length <= start);
        for segment in &self.segments[first..] {
            if segment.start >= end {
                break;
            }
            let from = start.max(segment.start) - segment.start;
            let to = end.min(segment.start + segment.length) - segment.start;
            segment.storage.append(from, to, &mut tokens);
        }
        tokens
    }
}

impl Storage {
    fn append(&self, from: usize, to: usize, tokens: &mut Vec<u32>) {
        match self {
            Storage::Memory(all) => tokens.extend_from_slice(&all[from..to]),
            Storage::File { map, offset, width } => {
                let bytes = &map[offset + from * width.bytes()..offset + to * width.bytes()];
                match width {
                    Width::U16 => tokens.extend(
                        bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))),
                    ),
                    Width::U32 => tokens.extend(
                        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
                    ),
                }
            }
        }
    }
}

fn map(path: &Path) -> anyhow::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is only read. Prepared shards are replaced by renaming, never changed in
    // place; for the user's own token files the documentation asks for the same, as for any
    // memory-mapped data set.
    Ok(unsafe { Mmap::map(&file)? })
}

/// The first characters of a hash, for messages.
pub(super) fn short(hash: &blake3::Hash) -> String {
    hash.to_hex()[..16].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(width: Width, tokens: &[u32]) -> (tempfile::TempDir, PathBuf, blake3::Hash) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.tokens");
        let tokenizer_hash = blake3::hash(b"tokenizer");
        let header = Header { width, tokens: tokens.len() as u64, text_bytes: 7, tokenizer_hash };
        write_shard(&path, &header, tokens).unwrap();
        (folder, path, tokenizer_hash)
    }

    #[test]
    fn tokens_come_back_in_both_widths() {
        for (width, tokens) in
            [(Width::U16, vec![0, 1, 65_535, 256]), (Width::U32, vec![70_000, 0, u32::MAX])]
        {
            let (_folder, path, hash) = written(width, &tokens);
            let (shard, header) = TokenShard::open(&path, &hash).unwrap();
            assert_eq!((shard.len(), header.text_bytes, header.width), (tokens.len(), 7, width));
            assert_eq!(shard.read(0, tokens.len()), tokens);
            assert_eq!(shard.read(1, 2), tokens[1..3]);
        }
        assert_eq!(
            (Width::for_vocabulary(65_536), Width::for_vocabulary(65_537)),
            (Width::U16, Width::U32)
        );
    }

    #[test]
    fn a_token_wider_than_the_shard_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let header = Header {
            width: Width::U16,
            tokens: 1,
            text_bytes: 1,
            tokenizer_hash: blake3::hash(b""),
        };
        assert!(write_shard(&folder.path().join("x"), &header, &[65_536]).is_err());
    }

    type Damage = fn(&mut Vec<u8>);

    #[test]
    fn damage_is_named() {
        let damages: [(&str, Damage); 6] = [
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
    fn raw_files_follow_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = [vec![1u16, 2], vec![3], vec![4, 5, 6]]
            .iter()
            .enumerate()
            .map(|(index, tokens)| {
                let path = folder.path().join(format!("{index}.bin"));
                std::fs::write(
                    &path,
                    tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>(),
                )
                .unwrap();
                path
            })
            .collect();
        let shard = TokenShard::open_raw(&paths).unwrap();
        for start in 0..6 {
            for count in 0..=6 - start {
                let expected: Vec<u32> = (start as u32 + 1..).take(count).collect();
                assert_eq!(shard.read(start, count), expected);
            }
        }
        std::fs::write(&paths[1], [1]).unwrap();
        assert_eq!(crate::error::exit_code(&TokenShard::open_raw(&paths).unwrap_err()), 2);
    }

    #[test]
    #[should_panic(expected = "shard of 3")]
    fn reading_past_the_end_panics() {
        TokenShard::from_tokens(vec![1, 2, 3]).read(2, 2);
    }
}
