//! Tokens on disk, memory-mapped.

use super::shard_file::{Document, HEADER_BYTES, Header, Width, documents_of, short, token_bytes};
use super::target_mask::TargetMask;
use crate::fs::open_ordinary;
use anyhow::Context;
use memmap2::Mmap;
use std::path::Path;

/// A sequence of tokens: a prepared shard, raw token files one after the other, or tokens in
/// memory.
#[derive(Debug)]
pub struct TokenShard {
    segments: Vec<ShardPiece>,
    length: usize,
    /// Documents with the number of tokens before each; empty where every token's own length is
    /// right.
    documents: Vec<(u64, Document)>,
    /// Which tokens are trained on, where that is not all.
    mask: Option<TargetMask>,
}

/// Tokens that lie together; `start` counts the tokens before them.
#[derive(Debug)]
struct ShardPiece {
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
            let header = Header::read(&mut open_ordinary(path)?)?;
            let map = map(path)?;
            anyhow::ensure!(
                header.tokenizer_hash == *tokenizer_hash,
                "made with tokenizer {}, but the tokenizer beside it is {}",
                short(&header.tokenizer_hash),
                short(tokenizer_hash)
            );
            let documents = documents_of(&map, &header)?;
            let storage = Storage::File { map, offset: HEADER_BYTES, width: header.width };
            let shard = Self::from_storages([(header.tokens as usize, storage)]);
            Ok((Self { documents, ..shard }, header))
        };
        open().with_context(|| {
            format!("{}: delete its folder and prepare the data again", path.display())
        })
    }

    /// Parts of files, one after the other: a map, where its tokens begin, their width and number.
    pub(super) fn from_maps(parts: impl IntoIterator<Item = (Mmap, usize, Width, usize)>) -> Self {
        Self::from_storages(
            parts
                .into_iter()
                .map(|(map, offset, width, length)| (length, Storage::File { map, offset, width })),
        )
    }

    /// Tokens in memory.
    pub fn from_tokens(tokens: Vec<u32>) -> Self {
        Self::from_storages([(tokens.len(), Storage::Memory(tokens))])
    }

    /// The tokens of one text of this many UTF-8 bytes, whose tokens by themselves have
    /// `token_byte_lengths`.
    pub fn from_text(tokens: Vec<u32>, text_bytes: u64, token_byte_lengths: &[u32]) -> Self {
        let document = Document::new(&tokens, text_bytes, token_byte_lengths);
        let documents = if document.is_exact() { Vec::new() } else { vec![(0, document)] };
        Self { documents, ..Self::from_tokens(tokens) }
    }

    fn from_storages(storages: impl IntoIterator<Item = (usize, Storage)>) -> Self {
        let mut shard =
            TokenShard { segments: Vec::new(), length: 0, documents: Vec::new(), mask: None };
        for (length, storage) in storages {
            shard.segments.push(ShardPiece { start: shard.length, length, storage });
            shard.length += length;
        }
        shard
    }

    /// The same, of which only some tokens are trained on.
    pub(super) fn with_mask(self, mask: TargetMask) -> Self {
        Self { mask: Some(mask), ..self }
    }

    /// Where not all tokens are trained on: start and number of tokens of each document, and which
    /// are.
    pub(super) fn masked_documents(
        &self,
    ) -> Option<(impl Iterator<Item = (usize, usize)> + '_, &TargetMask)> {
        let documents = self.documents.iter();
        let documents =
            documents.map(|(before, document)| (*before as usize, document.tokens as usize));
        Some((documents, self.mask.as_ref()?))
    }

    /// Whether a token is trained on.
    pub(super) fn is_trained(&self, token: usize) -> bool {
        self.mask.as_ref().is_none_or(|mask| mask.is_trained(token))
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

impl TokenShard {
    /// UTF-8 bytes of the text that the tokens `start .. start + count` stand for.
    ///
    /// `token_byte_lengths[token]` are the bytes ℓ of a token by itself (0 past the end of the
    /// list). In a document of B bytes whose tokens by themselves have L = Σ ℓ, a token counts for
    /// ℓ B / L; where L is 0, every token for the same share of B.
    ///
    /// # Panics
    /// When the tokens reach past the end.
    pub fn text_bytes(&self, start: usize, count: usize, token_byte_lengths: &[u32]) -> f64 {
        let nominal = |start, count| token_bytes(&self.read(start, count), token_byte_lengths);
        if self.documents.is_empty() {
            return nominal(start, count) as f64;
        }
        let end = start + count;
        let first = self
            .documents
            .partition_point(|(before, document)| before + document.tokens <= start as u64);
        let mut bytes = 0.0;
        for (before, document) in &self.documents[first..] {
            let from = start.max(*before as usize);
            let to = end.min((before + document.tokens) as usize);
            if from >= to {
                break;
            }
            let share = match document.token_bytes {
                0 => (to - from) as f64 / document.tokens as f64,
                all => nominal(from, to - from) as f64 / all as f64,
            };
            bytes += share * document.text_bytes as f64;
        }
        bytes
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

pub(super) fn map(path: &Path) -> anyhow::Result<Mmap> {
    let file = open_ordinary(path)?;
    // SAFETY: the map is only read. Prepared shards are replaced by renaming, never changed in
    // place; for the user's own token files the documentation asks for the same, as for any
    // memory-mapped data set.
    Ok(unsafe { Mmap::map(&file)? })
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// Case 15: tokens of one byte each that stand for texts of other lengths.
    #[test]
    fn bytes_are_shared_out_within_documents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("val.tokens");
        let tokens = [1, 1, 2, 2, 0, 0];
        let lengths = [0, 1, 1];
        let documents = [(0, 2, 8), (2, 2, 2), (4, 2, 6)].map(|(from, count, bytes)| {
            Document::new(&tokens[from..from + count], bytes, &lengths)
        });
        assert_eq!(documents.map(|document| document.is_exact()), [false, true, false]);
        let tokenizer_hash = blake3::hash(b"tokenizer");
        let header =
            Header { width: Width::U16, tokens: 6, text_bytes: 16, tokenizer_hash, documents: 3 };
        write_shard(&path, &header, &tokens, &documents).unwrap();
        let (shard, _) = TokenShard::open(&path, &tokenizer_hash).unwrap();
        assert_eq!(shard.text_bytes(0, 6, &lengths), 16.0);
        // Half of the first document, all of the second, half of the third, whose tokens by
        // themselves have no bytes.
        assert_eq!(shard.text_bytes(1, 4, &lengths), 4.0 + 2.0 + 3.0);
        let text = TokenShard::from_text(vec![1, 1, 1], 9, &lengths);
        assert_eq!(text.text_bytes(1, 1, &lengths), 3.0);
        assert_eq!(TokenShard::from_tokens(vec![1, 0, 2]).text_bytes(0, 3, &lengths), 2.0);
    }

    #[test]
    #[should_panic(expected = "shard of 3")]
    fn reading_past_the_end_panics() {
        TokenShard::from_tokens(vec![1, 2, 3]).read(2, 2);
    }
}
