//! Documents to tokens to a shard, a few megabytes at a time.

use super::documents::{Chunk, Chunks, Documents};
use super::instructions::Instructions;
use super::markup::MarkupEncoder;
use super::part_writer::{Finished, PartWriter};
use super::shard_file::{Document, Width, token_bytes};
use super::tokenizer::Tokenizer;
use anyhow::Context;
use rayon::prelude::*;

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

/// Writes the tokens of documents to a part, each document followed by `end`. Pieces are encoded
/// in parallel; the result does not depend on the number of threads.
///
/// # Errors
/// When a document cannot be read or encoded, naming it, or the part cannot be written or go on.
pub(super) fn write_part(
    mut part: PartWriter,
    documents: &Documents,
    tokenizer: &Tokenizer,
    end: &DocumentEnd,
    tokenizer_hash: blake3::Hash,
) -> anyhow::Result<Finished> {
    let lengths = tokenizer.token_byte_lengths();
    let width = Width::for_vocabulary(tokenizer.vocab_size());
    let encode = |tokens: &[u32]| -> anyhow::Result<Encoded> {
        let (bytes, token_bytes) = (width.encode(tokens)?, token_bytes(tokens, &lengths));
        Ok(Encoded { bytes, tokens: tokens.len() as u64, token_bytes })
    };
    let ending = encode(&end.tokens)?;
    let mut pieces = Pieces::new(documents, |text, from| tokenizer.cut(text, from));
    part.skip(&mut pieces, |piece| &piece.text)?;
    loop {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH {
            let Some(piece) = pieces.next() else { break };
            let piece = piece?;
            bytes += piece.text.len();
            batch.push(piece);
        }
        if batch.is_empty() {
            return part.finish(tokenizer_hash);
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
            part.document.add(&encoded, piece.text.len() as u64);
            part.shard.append(&encoded.bytes)?;
            if piece.ends {
                part.document.add(&ending, end.text_bytes);
                part.shard.append(&ending.bytes)?;
                part.shard.end_document(&std::mem::take(&mut part.document))?;
            }
            part.took(&piece.text);
        }
        part.save()?;
    }
}

/// Writes the tokens of examples to a part, which lists them, and says which are trained on.
///
/// # Errors
/// When an example cannot be read or encoded, or the part cannot be written or go on.
pub(super) fn write_examples(
    mut part: PartWriter,
    examples: &Instructions,
    tokenizer: &Tokenizer,
    tokenizer_hash: blake3::Hash,
) -> anyhow::Result<Finished> {
    let lengths = tokenizer.token_byte_lengths();
    let width = Width::for_vocabulary(tokenizer.vocab_size());
    part.shard.list_documents();
    let encoder = MarkupEncoder::new(tokenizer);
    let mut examples = examples.examples().enumerate().map(|(i, example)| Ok((i, example?)));
    part.skip(&mut examples, |(_, example)| &example.text)?;
    loop {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH {
            let Some(example) = examples.next() else { break };
            let (number, example) = example?;
            bytes += example.text.len();
            batch.push((number, example));
        }
        if batch.is_empty() {
            return part.finish(tokenizer_hash);
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
            if let Some(mask) = &mut part.mask {
                for (_, start) in &encoded {
                    mask.push(example.trained.iter().any(|trained| trained.contains(start)));
                }
            }
            part.shard.append(&width.encode(&tokens)?)?;
            // Markup is no text: bytes are those of the tokens by themselves.
            let bytes = token_bytes(&tokens, &lengths);
            part.shard.end_document(&Document::new(&tokens, bytes, &lengths))?;
            part.took(&example.text);
        }
        part.save()?;
    }
}

impl Document {
    fn add(&mut self, encoded: &Encoded, text_bytes: u64) {
        self.tokens += encoded.tokens;
        self.token_bytes += encoded.token_bytes;
        self.text_bytes += text_bytes;
    }
}

#[cfg(test)]
mod tests;
