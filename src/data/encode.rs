//! Documents to tokens to a shard, a few megabytes at a time.

use super::documents::{Chunk, Chunks, Documents};
use super::instructions::Instructions;
use super::markup::MarkupEncoder;
use super::shard_file::{Document, Header, Width, token_bytes};
use super::shard_writer::ShardWriter;
use super::target_mask::TargetMask;
use super::tokenizer::Tokenizer;
use anyhow::Context;
use indicatif::ProgressBar;
use rayon::prelude::*;
use std::path::Path;

/// Bytes of text that are encoded side by side.
const BATCH: usize = 8 << 20;

/// What follows a document: tokens, and the UTF-8 bytes of text they stand for.
#[derive(Debug, Default)]
pub(super) struct DocumentEnd {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// The bytes.
    pub text_bytes: u64,
}

/// A part of a document that can be encoded by itself.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    /// Document, counted from 0.
    document: u64,
    /// Bytes of the document before it.
    start: u64,
    /// Its text.
    pub text: String,
    ends: bool,
}

/// Documents in [`Piece`]s: chunks cut, or joined, at places where a tokenizer's tokens do not
/// depend on what stands on the other side.
pub(super) struct Pieces<'a, Cut> {
    chunks: Chunks<'a>,
    /// The last such place of a text, at or after a position.
    cut: Cut,
    document: u64,
    start: u64,
    text: String,
}

impl<'a, Cut: Fn(&str, usize) -> Option<usize>> Pieces<'a, Cut> {
    /// The pieces of documents.
    pub(super) fn new(documents: &'a Documents, cut: Cut) -> Self {
        let chunks = documents.chunks();
        Self { chunks, cut, document: 0, start: 0, text: String::new() }
    }
}

impl<Cut: Fn(&str, usize) -> Option<usize>> Iterator for Pieces<'_, Cut> {
    type Item = anyhow::Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Chunk { text, ends } = match self.chunks.next()? {
                Ok(chunk) => chunk,
                Err(error) => return Some(Err(error)),
            };
            // What is before has been searched but for its last character, which had nothing
            // after it.
            let searched = self.text.len().saturating_sub(1);
            self.text.push_str(&text);
            let (document, start) = (self.document, self.start);
            if ends {
                let text = std::mem::take(&mut self.text);
                (self.document, self.start) = (document + 1, 0);
                return Some(Ok(Piece { document, start, text, ends }));
            }
            if let Some(at) = (self.cut)(&self.text, searched) {
                let rest = self.text.split_off(at);
                let text = std::mem::replace(&mut self.text, rest);
                self.start += at as u64;
                return Some(Ok(Piece { document, start, text, ends }));
            }
        }
    }
}

/// A piece's tokens as a shard holds them.
struct Encoded {
    bytes: Vec<u8>,
    tokens: u64,
    token_bytes: u64,
}

/// Writes the tokens of documents to a shard, each document followed by `end`. Pieces are encoded
/// in parallel; the result does not depend on the number of threads.
///
/// # Errors
/// When a document cannot be read or encoded, naming it, or the shard cannot be written.
pub(super) fn write_part(
    path: &Path,
    documents: &Documents,
    tokenizer: &Tokenizer,
    end: &DocumentEnd,
    tokenizer_hash: blake3::Hash,
    progress: &ProgressBar,
) -> anyhow::Result<Header> {
    let lengths = tokenizer.token_byte_lengths();
    let width = Width::for_vocabulary(tokenizer.vocab_size());
    let mut shard = ShardWriter::create(path, width)?;
    let encode = |tokens: &[u32]| -> anyhow::Result<Encoded> {
        let (bytes, token_bytes) = (width.encode(tokens)?, token_bytes(tokens, &lengths));
        Ok(Encoded { bytes, tokens: tokens.len() as u64, token_bytes })
    };
    let ending = encode(&end.tokens)?;
    let mut pieces = Pieces::new(documents, |text, from| tokenizer.cut(text, from));
    let mut document = Document { tokens: 0, text_bytes: 0, token_bytes: 0 };
    loop {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH {
            let Some(piece) = pieces.next() else { break };
            let piece = piece?;
            bytes += piece.text.len();
            batch.push(piece);
        }
        if batch.is_empty() {
            return shard.finish(tokenizer_hash);
        }
        let encoded: Vec<anyhow::Result<Encoded>> = batch
            .par_iter()
            .map(|piece| tokenizer.encode(&piece.text).and_then(|tokens| encode(&tokens)))
            .collect();
        for (piece, encoded) in batch.iter().zip(encoded) {
            let encoded = encoded.with_context(|| match piece.start {
                0 => format!("document {}", piece.document + 1),
                start => format!("document {}, after its first {start} bytes", piece.document + 1),
            })?;
            document.add(&encoded, piece.text.len() as u64);
            shard.append(&encoded.bytes)?;
            if piece.ends {
                document.add(&ending, end.text_bytes);
                shard.append(&ending.bytes)?;
                shard.end_document(&document)?;
                document = Document { tokens: 0, text_bytes: 0, token_bytes: 0 };
            }
            progress.inc(piece.text.len() as u64);
        }
    }
}

/// Writes the tokens of examples to a shard, which lists them, and says which are trained on.
///
/// # Errors
/// When an example cannot be read or encoded, or the shard cannot be written.
pub(super) fn write_examples(
    path: &Path,
    examples: &Instructions,
    tokenizer: &Tokenizer,
    tokenizer_hash: blake3::Hash,
    progress: &ProgressBar,
) -> anyhow::Result<(Header, TargetMask)> {
    let lengths = tokenizer.token_byte_lengths();
    let width = Width::for_vocabulary(tokenizer.vocab_size());
    let (mut shard, mut mask) = (ShardWriter::create(path, width)?, TargetMask::default());
    shard.list_documents();
    let encoder = MarkupEncoder::new(tokenizer);
    let mut examples = examples.examples().enumerate().peekable();
    while examples.peek().is_some() {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH {
            let Some((number, example)) = examples.next() else { break };
            let example = example?;
            bytes += example.text.len();
            batch.push((number, example));
        }
        let encoded: Vec<anyhow::Result<Vec<(u32, usize)>>> = batch
            .par_iter()
            .map(|(number, example)| {
                encoder.encode(&example.text).with_context(|| format!("example {}", number + 1))
            })
            .collect();
        for ((_, example), encoded) in batch.iter().zip(encoded) {
            let encoded = encoded?;
            let tokens: Vec<u32> = encoded.iter().map(|(token, _)| *token).collect();
            for (_, start) in &encoded {
                mask.push(example.trained.iter().any(|part| part.contains(start)));
            }
            shard.append(&width.encode(&tokens)?)?;
            // Markup is no text: bytes are those of the tokens by themselves.
            let bytes = token_bytes(&tokens, &lengths);
            shard.end_document(&Document::new(&tokens, bytes, &lengths))?;
            progress.inc(example.text.len() as u64);
        }
    }
    Ok((shard.finish(tokenizer_hash)?, mask))
}

impl Document {
    fn add(&mut self, encoded: &Encoded, text_bytes: u64) {
        self.tokens += encoded.tokens;
        self.token_bytes += encoded.token_bytes;
        self.text_bytes += text_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::documents::JoinedFiles;
    use crate::data::hugging_face::last_cut;
    use crate::data::shard::TokenShard;

    /// Whatever the chunks, pieces make up the documents and end where they may.
    #[test]
    fn pieces_are_cut_where_they_may_be() {
        let documents = ["one\ntwo\n\nthree\nfour", "", "five\n", "no end in sight"];
        let whole = Documents::Memory(documents.map(String::from).to_vec());
        for size in 1..8 {
            let chunks = documents.iter().flat_map(|document| {
                let characters: Vec<char> = document.chars().collect();
                let mut parts: Vec<String> =
                    characters.chunks(size).map(|part| part.iter().collect()).collect();
                parts.push(String::new());
                let last = parts.len() - 1;
                parts
                    .into_iter()
                    .enumerate()
                    .map(move |(index, text)| Ok(Chunk { text: text.into(), ends: index == last }))
            });
            let chunks: Chunks = Box::new(chunks.collect::<Vec<_>>().into_iter());
            let mut pieces = Pieces::new(&whole, last_cut);
            pieces.chunks = chunks;
            let mut joined = vec![String::new(); documents.len()];
            for piece in pieces {
                let Piece { document, start, text, ends } = piece.unwrap();
                let before = &mut joined[document as usize];
                assert_eq!(before.len() as u64, start);
                before.push_str(&text);
                assert!(ends || text.ends_with(['e', 'o', '\n']), "{text:?}");
                assert!(
                    ends || documents[document as usize][before.len()..]
                        .starts_with(char::is_alphabetic)
                );
            }
            assert_eq!(joined, documents);
        }
    }

    /// Megabytes in several files, in the blocks and batches of a stream: the tokens are those of
    /// the whole text, for every kind of tokenizer.
    #[test]
    fn a_streamed_text_has_the_tokens_of_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let text: String = (0..150_000)
            .map(|i| format!("let é{i} = {};\n{}", i * 7, "\n  ".repeat(i % 3)))
            .collect();
        let middle = text.floor_char_boundary(text.len() / 3);
        let mut paths = Vec::new();
        for (name, part) in [("a", &text[..middle]), ("b", &text[middle..])] {
            paths.push(folder.path().join(name));
            std::fs::write(folder.path().join(name), part).unwrap();
        }
        let documents = JoinedFiles::measure(paths).unwrap().whole();
        let byte_pair = Tokenizer::train_byte_pair(&[text[..20_000].to_string()], 400).unwrap();
        for tokenizer in [Tokenizer::bytes(), Tokenizer::characters([text.as_str()]), byte_pair] {
            let end = DocumentEnd { tokens: vec![3, 4], text_bytes: 1 };
            let path = folder.path().join("train.tokens");
            let (hash, hidden) = (blake3::hash(b"tokenizer"), ProgressBar::hidden());
            let header = write_part(&path, &documents, &tokenizer, &end, hash, &hidden).unwrap();
            let (shard, read) = TokenShard::open(&path, &hash).unwrap();
            assert_eq!((read, header.text_bytes), (header, text.len() as u64 + 1));
            let expected = [tokenizer.encode(&text).unwrap(), end.tokens.clone()].concat();
            assert!(shard.read(0, shard.len()) == expected, "{}", tokenizer.description());
        }
    }

    #[test]
    fn documents_end_with_their_tokens_and_failures_name_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.tokens");
        let (hash, hidden) = (blake3::hash(b"tokenizer"), ProgressBar::hidden());
        let documents = Documents::Memory(["a", "", "b"].map(String::from).to_vec());
        let end = DocumentEnd { tokens: vec![10], text_bytes: 1 };
        let tokenizer = Tokenizer::bytes();
        write_part(&path, &documents, &tokenizer, &end, hash, &hidden).unwrap();
        let (shard, _) = TokenShard::open(&path, &hash).unwrap();
        assert_eq!(shard.read(0, shard.len()), b"a\n\nb\n".map(u32::from));
        let tokenizer = Tokenizer::characters(["a\n"]);
        let error = write_part(&path, &documents, &tokenizer, &end, hash, &hidden).unwrap_err();
        assert!(format!("{error:#}").contains("document 3"), "{error:#}");
    }
}
