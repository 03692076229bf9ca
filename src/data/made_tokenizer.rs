//! The tokenizers that are made from the text they will encode.

use super::corpus::Corpus;
use super::documents::{Chunk, Documents};
use super::encode::Pieces;
use super::hugging_face::{last_cut, pieces};
use super::tokenizer::{CharacterSet, DOCUMENT_END, Tokenizer};
use crate::figures;
use crate::spec::{BpeSpec, TokenizerSpec};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::Mutex;

/// The tokenizer to be made from text: byte pairs from the training text; characters from all of
/// it, as in nanoGPT, so that a rare character in the validation text has a token.
pub(super) fn make_tokenizer(
    corpus: &Corpus,
    spec: &TokenizerSpec,
    train_bytes: u64,
) -> anyhow::Result<Tokenizer> {
    match spec {
        TokenizerSpec::Bytes => Ok(Tokenizer::bytes()),
        TokenizerSpec::Chars => {
            let mut set = CharacterSet::default();
            if corpus.documents_end {
                set.add(DOCUMENT_END);
            }
            for chunk in corpus.train.chunks().chain(corpus.val.chunks()) {
                let Chunk { text, .. } = chunk?;
                set.add(&text);
            }
            Ok(Tokenizer::of_characters(&set))
        }
        TokenizerSpec::Bpe(spec) => train_byte_pair(&corpus.train, spec, train_bytes),
        TokenizerSpec::File(path) => Tokenizer::from_file(path),
    }
}

/// Byte pairs of the training text, or of the share of its pieces that the spec asks for.
fn train_byte_pair(
    documents: &Documents,
    spec: &BpeSpec,
    train_bytes: u64,
) -> anyhow::Result<Tokenizer> {
    let wanted = spec.sample_bytes.map_or(train_bytes, |bytes| bytes.0.min(train_bytes));
    tracing::info!(
        "training a byte-level BPE tokenizer of {} tokens on {} of {}",
        spec.vocab_size.0,
        figures::bytes(wanted),
        figures::bytes(train_bytes)
    );
    let progress = progress_bar("counting pairs in train", train_bytes);
    let (failure, (mut seen, mut taken)) = (Mutex::new(None), (0u64, 0u64));
    let texts = Pieces::new(documents, last_cut).map_while(|piece| match piece {
        Ok(piece) => Some(pieces(&piece.text).into_iter().map(String::from).collect::<Vec<_>>()),
        Err(error) => {
            *failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
            None
        }
    });
    // A piece is taken whenever less has been taken than its share of what was seen.
    let texts = texts.flatten().filter(|text| {
        let (due, all) = (u128::from(wanted) * u128::from(seen), u128::from(train_bytes));
        seen += text.len() as u64;
        progress.inc(text.len() as u64);
        let take = u128::from(taken) * all <= due;
        taken += if take { text.len() as u64 } else { 0 };
        take
    });
    let trained = Tokenizer::train_byte_pair_on(texts, usize::try_from(spec.vocab_size.0)?);
    progress.finish_and_clear();
    match failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some(error) => Err(error),
        None => trained,
    }
}

/// A bar on stderr, shown on a terminal only: how much of the text, how fast, how much longer.
pub(super) fn progress_bar(what: &str, bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left",
    )
    .expect("a valid template");
    ProgressBar::new(bytes).with_style(style).with_message(what.to_string())
}
