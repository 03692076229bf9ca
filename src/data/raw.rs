//! Token files that others wrote (nanoGPT, llm.c, llama2.c), used where they lie.

use super::corpus::usage;
use super::dataset::{Dataset, DatasetSummary};
use super::files::is_dot_name;
use super::raw_file;
use super::shard::TokenShard;
use super::tokenizer::Tokenizer;
use crate::spec::{DataSpec, MAX_VOCABULARY, SourceSpec, TokenType, TokenizerSpec};
use anyhow::Context;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Tokens examined at a time by one thread.
const BLOCK_TOKENS: usize = 1 << 22;

/// Where a source's token files are.
pub(super) struct RawSource {
    description: String,
    train: Vec<PathBuf>,
    val: Vec<PathBuf>,
    vocab_size: Option<usize>,
    dtype: Option<TokenType>,
}

impl RawSource {
    /// The files of a `bin` or `tinystories` source; `None` for others.
    ///
    /// # Errors
    /// When the folder of a `tinystories` source has fewer than two `.bin` files or cannot be read.
    pub(super) fn find(source: &SourceSpec) -> anyhow::Result<Option<Self>> {
        Ok(match source {
            SourceSpec::Bin(bin) => Some(Self {
                description: format!(
                    "bin: train {}, val {}",
                    bin.train.display(),
                    bin.val.display()
                ),
                train: vec![bin.train.clone()],
                val: vec![bin.val.clone()],
                vocab_size: bin.vocab_size,
                dtype: bin.dtype,
            }),
            SourceSpec::Tinystories(stories) => {
                let (mut files, are_all) = bin_files(&stories.dir)?;
                let train = files.split_off(1);
                if are_all {
                    check_layout(&stories.dir, train.len())?;
                }
                Some(Self {
                    description: format!(
                        "tinystories: {}, {} training files",
                        stories.dir.display(),
                        train.len()
                    ),
                    train,
                    val: files,
                    vocab_size: stories.vocab_size,
                    dtype: Some(TokenType::U16),
                })
            }
            SourceSpec::CargoRegistry
            | SourceSpec::Text(_)
            | SourceSpec::Jsonl(_)
            | SourceSpec::Parquet(_)
            | SourceSpec::Instructions(_) => None,
        })
    }

    /// Maps the files and checks their tokens against the vocabulary.
    ///
    /// # Errors
    /// [`crate::error::Failure::Usage`] for a tokenizer that would have to be made from text, a
    /// vocabulary past its bound, missing or odd files, and a token outside the vocabulary.
    pub(super) fn open(self, spec: &DataSpec) -> anyhow::Result<Dataset> {
        let tokenizer = match &spec.tokenizer {
            TokenizerSpec::Bytes => Tokenizer::bytes(),
            TokenizerSpec::File(path) => Tokenizer::from_file(path)?,
            TokenizerSpec::Chars | TokenizerSpec::Bpe(_) => {
                return Err(usage(
                    "data.tokenizer: the source is tokens already; give `file: tokenizer.json` (or \
                     `bytes`) to decode them",
                ));
            }
        };
        if spec.end_of_text.is_some() {
            return Err(usage(
                "data.end_of_text: the source is tokens already, the ends of its texts among them; \
                 remove the key",
            ));
        }
        let vocab_size = self.vocab_size.unwrap_or(tokenizer.vocab_size());
        if vocab_size > MAX_VOCABULARY {
            return Err(usage(format!(
                "vocab_size: {vocab_size} is too large; set at most {MAX_VOCABULARY}"
            )));
        }
        let byte_lengths = tokenizer.token_byte_lengths();
        let open_part = |paths: &[PathBuf]| -> anyhow::Result<(TokenShard, Examination)> {
            let shard = raw_file::open(paths, self.dtype, vocab_size)?;
            let examination = examine(&shard, &byte_lengths);
            let names = || {
                paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
            };
            if examination.largest_token as usize >= vocab_size {
                return Err(usage(format!(
                    "{}: token {} is outside the vocabulary of {vocab_size}; give the tokenizer \
                     the files were made with, or `vocab_size`",
                    names(),
                    examination.largest_token
                )));
            }
            Ok((shard, examination))
        };
        let (train, of_train) = open_part(&self.train)?;
        let (val, of_val) = open_part(&self.val)?;
        // Tokens that the tokenizer does not have, or a vocabulary that is not that of bytes,
        // belong to another tokenizer, and how many bytes they stand for is not known.
        let largest = of_train.largest_token.max(of_val.largest_token) as usize;
        let are_bytes = self.vocab_size.is_none_or(|size| size == tokenizer.vocab_size());
        let is_known = largest < tokenizer.vocab_size()
            && (are_bytes || spec.tokenizer != TokenizerSpec::Bytes);
        if !is_known {
            tracing::warn!(
                "the tokens are not those of the tokenizer ({}), so bits per byte are not known; \
                 give the `file` of the one they were made with",
                tokenizer.description()
            );
        }
        let tokenizer_hash = tokenizer.hash()?;
        let content = [&of_train.content_hash, &of_val.content_hash, &tokenizer_hash]
            .map(String::as_str)
            .join(" ");
        let summary = DatasetSummary {
            source: self.description,
            tokenizer: tokenizer.description(),
            content_hash: blake3::hash(content.as_bytes()).to_hex().to_string(),
            tokenizer_hash,
            vocab_size,
            train_tokens: train.len() as u64,
            val_tokens: val.len() as u64,
            train_bytes: is_known.then_some(of_train.text_bytes),
            val_bytes: is_known.then_some(of_val.text_bytes),
            train_trained: None,
            val_trained: None,
        };
        Ok(Dataset { train, val, tokenizer, summary })
    }
}

/// The `.bin` files of a folder in path order, at least two, and whether these are all: names that
/// begin with a dot, as `._data00.bin` of macOS, are passed over.
fn bin_files(dir: &Path) -> anyhow::Result<(Vec<PathBuf>, bool)> {
    let unreadable = || format!("data.source.tinystories.dir: {} cannot be read", dir.display());
    let (mut files, mut are_all) = (Vec::new(), true);
    for entry in std::fs::read_dir(dir).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path.extension().is_none_or(|extension| extension != "bin") {
            continue;
        }
        if path.file_name().is_some_and(is_dot_name) {
            are_all = false;
        } else {
            files.push(path);
        }
    }
    files.sort();
    if files.len() < 2 {
        return Err(usage(format!(
            "data.source.tinystories.dir: {} has {} `.bin` files; it takes one for validation and \
             one or more for training",
            dir.display(),
            files.len()
        )));
    }
    Ok((files, are_all))
}

/// Opens the folder as `candle_datasets` does, so that a layout it would read otherwise is noticed.
#[cfg(feature = "datasets")]
fn check_layout(dir: &Path, train_files: usize) -> anyhow::Result<()> {
    let dataset = candle_datasets::nlp::tinystories::Dataset::new(dir)
        .with_context(|| format!("{}: not TinyStories shards", dir.display()))?;
    // Its `train_tokens` and `valid_tokens` count files.
    let found = (dataset.train_tokens(), dataset.valid_tokens());
    anyhow::ensure!(
        found == (train_files, 1),
        "{}: {} training and {} validation files expected",
        dir.display(),
        found.0,
        found.1
    );
    Ok(())
}

#[cfg(not(feature = "datasets"))]
fn check_layout(_dir: &Path, _train_files: usize) -> anyhow::Result<()> {
    Ok(())
}

/// What one pass over token files tells.
struct Examination {
    content_hash: String,
    largest_token: u32,
    text_bytes: u64,
}

/// Reads every token, at every opening: files of others have no checksum, and a run compares the
/// hash with that of the tokens it began with.
fn examine(shard: &TokenShard, byte_lengths: &[u32]) -> Examination {
    let starts: Vec<usize> = (0..shard.len()).step_by(BLOCK_TOKENS).collect();
    let blocks: Vec<(blake3::Hash, u32, u64)> = starts
        .into_par_iter()
        .map(|start| {
            let tokens = shard.read(start, BLOCK_TOKENS.min(shard.len() - start));
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            let text_bytes = tokens
                .iter()
                .map(|token| byte_lengths.get(*token as usize).map_or(0, |bytes| u64::from(*bytes)))
                .sum();
            (blake3::hash(&bytes), tokens.into_iter().max().unwrap_or(0), text_bytes)
        })
        .collect();
    let mut content = blake3::Hasher::new();
    for (hash, ..) in &blocks {
        content.update(hash.as_bytes());
    }
    Examination {
        content_hash: content.finalize().to_hex().to_string(),
        largest_token: blocks.iter().map(|(_, largest, _)| *largest).max().unwrap_or(0),
        text_bytes: blocks.iter().map(|(.., bytes)| bytes).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{BinSourceSpec, BpeSpec, Count, TinystoriesSourceSpec};

    fn write_tokens(path: &Path, tokens: &[u16]) {
        std::fs::write(
            path,
            tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>(),
        )
        .unwrap();
    }

    fn bin(folder: &Path, vocab_size: Option<usize>) -> SourceSpec {
        SourceSpec::Bin(BinSourceSpec {
            train: folder.join("train.bin"),
            val: folder.join("val.bin"),
            vocab_size,
            dtype: None,
        })
    }

    fn open(source: &SourceSpec, tokenizer: TokenizerSpec) -> anyhow::Result<Dataset> {
        let spec = DataSpec { source: source.clone(), tokenizer, end_of_text: None };
        RawSource::find(source)?.expect("a raw source").open(&spec)
    }

    #[test]
    fn nano_gpt_files_are_read_in_place() {
        let folder = tempfile::tempdir().unwrap();
        write_tokens(&folder.path().join("train.bin"), &[104, 105, 10, 255]);
        write_tokens(&folder.path().join("val.bin"), &[33, 33]);
        let dataset = open(&bin(folder.path(), None), TokenizerSpec::Bytes).unwrap();
        assert_eq!(
            (dataset.train.read(0, 4), dataset.val.read(0, 2)),
            (vec![104, 105, 10, 255], vec![33, 33])
        );
        let summary = &dataset.summary;
        assert_eq!(
            (summary.train_tokens, summary.train_bytes, summary.val_bytes, summary.vocab_size),
            (4, Some(4), Some(2), 256)
        );

        let again = open(&bin(folder.path(), None), TokenizerSpec::Bytes).unwrap();
        assert_eq!(again.summary, dataset.summary);
        // Case 11: a changed token is noticed though length and time of the file are the same.
        let path = folder.path().join("val.bin");
        let time = path.metadata().unwrap().modified().unwrap();
        write_tokens(&path, &[33, 34]);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(time).unwrap();
        let changed = open(&bin(folder.path(), None), TokenizerSpec::Bytes).unwrap();
        assert_ne!(changed.summary.content_hash, dataset.summary.content_hash);
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        write_tokens(&folder.path().join("train.bin"), &[1, 50_256]);
        write_tokens(&folder.path().join("val.bin"), &[1]);
        let error = open(&bin(folder.path(), None), TokenizerSpec::Bytes).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        assert!(
            error.to_string().contains("50256") && error.to_string().contains("train.bin"),
            "{error}"
        );
        let dataset = open(&bin(folder.path(), Some(50_304)), TokenizerSpec::Bytes).unwrap();
        assert_eq!((dataset.summary.vocab_size, dataset.summary.train_bytes), (50_304, None));
    }

    /// Case 16.
    #[test]
    fn bytes_of_another_tokenizers_tokens_are_not_known() {
        let folder = tempfile::tempdir().unwrap();
        write_tokens(&folder.path().join("train.bin"), &[1, 64]);
        write_tokens(&folder.path().join("val.bin"), &[1]);
        let bytes_known = |vocab_size| {
            let dataset = open(&bin(folder.path(), vocab_size), TokenizerSpec::Bytes).unwrap();
            assert_eq!(
                dataset.token_byte_lengths().is_empty(),
                dataset.summary.val_bytes.is_none()
            );
            dataset.summary.val_bytes
        };
        assert_eq!((bytes_known(None), bytes_known(Some(256))), (Some(1), Some(1)));
        assert_eq!((bytes_known(Some(65)), bytes_known(Some(50_304))), (None, None));
    }

    /// Case 25.
    #[test]
    fn vocabularies_have_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let error =
            open(&bin(folder.path(), Some(1_000_000_000_000)), TokenizerSpec::Bytes).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        assert!(error.to_string().contains("16777216"), "{error}");
    }

    #[test]
    fn a_tokenizer_made_from_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let bpe = TokenizerSpec::Bpe(BpeSpec { vocab_size: Count(300), sample_bytes: None });
        assert_eq!(crate::error::exit_code(&open(&bin(folder.path(), None), bpe).unwrap_err()), 2);
        let missing = open(&bin(folder.path(), None), TokenizerSpec::Bytes).unwrap_err();
        assert!(missing.to_string().contains("train.bin"), "{missing}");
    }

    #[test]
    fn the_first_tiny_stories_file_is_validation() {
        let folder = tempfile::tempdir().unwrap();
        let stories = folder.path().join("tok");
        std::fs::create_dir(&stories).unwrap();
        let source = SourceSpec::Tinystories(TinystoriesSourceSpec {
            dir: stories.clone(),
            vocab_size: None,
        });
        write_tokens(&stories.join("data02.bin"), &[5, 6]);
        assert!(RawSource::find(&source).is_err());
        write_tokens(&stories.join("data00.bin"), &[1, 2]);
        write_tokens(&stories.join("data01.bin"), &[3, 4]);
        std::fs::write(stories.join("data00.json"), "{}").unwrap();
        // Case 14.
        write_tokens(&stories.join("._data00.bin"), &[300]);
        let dataset = open(&source, TokenizerSpec::Bytes).unwrap();
        assert_eq!(
            (dataset.val.read(0, 2), dataset.train.read(0, 4)),
            (vec![1, 2], vec![3, 4, 5, 6])
        );
    }
}
