//! A prepared data set: tokens, tokenizer, and what identifies them.

use super::shard::TokenShard;
use super::target_mask::TargetMask;
use super::tokenizer::Tokenizer;
use crate::fs::read_text;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Tokens to train and to validate on, and the tokenizer they were made with.
#[derive(Debug)]
pub struct Dataset {
    /// Training tokens.
    pub train: TokenShard,
    /// Validation tokens.
    pub val: TokenShard,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Identity and size.
    pub summary: DatasetSummary,
}

/// Identity and size of a data set; a run keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetSummary {
    /// Where the text came from, for people.
    pub source: String,
    /// Kind of tokenizer, for people.
    pub tokenizer: String,
    /// BLAKE3 of the text, its split, and the tokenizer asked for; of the tokens for a source that
    /// is tokens already.
    pub content_hash: String,
    /// BLAKE3 of `tokenizer.json`.
    pub tokenizer_hash: String,
    /// Tokens a network needs to know.
    pub vocab_size: usize,
    /// Training tokens.
    pub train_tokens: u64,
    /// Validation tokens.
    pub val_tokens: u64,
    /// UTF-8 bytes of the training text; unknown where the tokens are not the tokenizer's.
    pub train_bytes: Option<u64>,
    /// UTF-8 bytes of the validation text; unknown where the tokens are not the tokenizer's.
    pub val_bytes: Option<u64>,
    /// Training tokens that are trained on, where that is not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_trained: Option<u64>,
    /// Validation tokens whose loss counts, where that is not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_trained: Option<u64>,
}

impl Dataset {
    /// Number of tokens the network needs to know.
    pub fn tokenizer_vocab_size(&self) -> usize {
        self.summary.vocab_size
    }

    /// UTF-8 bytes each token stands for, as [`Tokenizer::token_byte_lengths`]; none where the
    /// tokens are not the tokenizer's, so that no bits per byte are given.
    pub fn token_byte_lengths(&self) -> Vec<u32> {
        match self.summary.val_bytes {
            Some(_) => self.tokenizer.token_byte_lengths(),
            None => Vec::new(),
        }
    }

    /// Opens a folder that [`prepare`](super::prepare()) made.
    ///
    /// # Errors
    /// When a file is missing, damaged (every byte of the tokens is checked), or belongs to another
    /// tokenizer.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            read_text(&path).with_context(|| format!("{}: the file cannot be read", path.display()))
        };
        let summary: DatasetSummary =
            serde_json::from_str(&read("dataset.json")?).with_context(|| {
                format!("{}: not a data summary", folder.join("dataset.json").display())
            })?;
        let json = read("tokenizer.json")?;
        let tokenizer = Tokenizer::from_json(&json)
            .with_context(|| folder.join("tokenizer.json").display().to_string())?;
        let tokenizer_hash = blake3::hash(json.as_bytes());
        anyhow::ensure!(
            tokenizer_hash.to_hex().as_str() == summary.tokenizer_hash,
            "{}: tokenizer.json is not the one dataset.json names; delete the folder and prepare \
             the data again",
            folder.display()
        );
        anyhow::ensure!(
            summary.vocab_size == tokenizer.vocab_size(),
            "{}: dataset.json says {} tokens, but tokenizer.json has {}; delete the folder and \
             prepare the data again",
            folder.display(),
            summary.vocab_size,
            tokenizer.vocab_size()
        );
        let open = |part: &str, tokens, text_bytes, trained| -> anyhow::Result<TokenShard> {
            let path = folder.join(format!("{part}.tokens"));
            let (shard, header) = TokenShard::open(&path, &tokenizer_hash)?;
            anyhow::ensure!(
                (header.tokens, Some(header.text_bytes)) == (tokens, text_bytes),
                "{}: {} tokens, but dataset.json says {tokens}; delete the folder and prepare the \
                 data again",
                path.display(),
                header.tokens
            );
            let Some(trained) = trained else { return Ok(shard) };
            let path = folder.join(format!("{part}.mask"));
            let mask = TargetMask::read(&path, shard.len())?;
            anyhow::ensure!(
                mask.count() == trained,
                "{}: {} trained tokens, but dataset.json says {trained}; delete the folder and \
                 prepare the data again",
                path.display(),
                mask.count()
            );
            Ok(shard.with_mask(mask))
        };
        let s = &summary;
        Ok(Self {
            train: open("train", s.train_tokens, s.train_bytes, s.train_trained)?,
            val: open("val", s.val_tokens, s.val_bytes, s.val_trained)?,
            tokenizer,
            summary,
        })
    }
}
