//! Preparation: a source and a tokenizer become a folder of token shards, once.

use super::corpus::Corpus;
use super::raw::RawSource;
use super::shard::{Header, TokenShard, Width, short, write_shard};
use super::tokenizer::{DOCUMENT_END, Tokenizer};
use crate::fs::write_directory_atomic;
use crate::spec::{DataSpec, TokenizerSpec};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// Part of the content hash: raise it when the same text and tokenizer give other tokens, or the
/// files another form.
const FORMAT: &str = "lrpt data v1";

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
    /// UTF-8 bytes the training tokens stand for.
    pub train_bytes: u64,
    /// UTF-8 bytes the validation tokens stand for.
    pub val_bytes: u64,
}

impl Dataset {
    /// Number of tokens the network needs to know.
    pub fn tokenizer_vocab_size(&self) -> usize {
        self.summary.vocab_size
    }

    /// Opens a folder that [`prepare`] made.
    ///
    /// # Errors
    /// When a file is missing, damaged, or belongs to another tokenizer.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path)
                .with_context(|| format!("{}: the file cannot be read", path.display()))
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
            "{}: tokenizer.json is not the one dataset.json names; delete the folder and prepare the data again",
            folder.display()
        );
        let open = |name: &str, tokens, text_bytes| -> anyhow::Result<TokenShard> {
            let path = folder.join(name);
            let (shard, header) = TokenShard::open(&path, &tokenizer_hash)?;
            anyhow::ensure!(
                (header.tokens, header.text_bytes) == (tokens, text_bytes),
                "{}: {} tokens, but dataset.json says {tokens}; delete the folder and prepare the data again",
                path.display(),
                header.tokens
            );
            Ok(shard)
        };
        Ok(Self {
            train: open("train.tokens", summary.train_tokens, summary.train_bytes)?,
            val: open("val.tokens", summary.val_tokens, summary.val_bytes)?,
            tokenizer,
            summary,
        })
    }
}

/// Where the commands keep prepared data: `data/` of the current folder.
pub fn cache_dir() -> &'static Path {
    Path::new("data")
}

/// The data set of a spec. Text is tokenized once and kept in `cache/<hash>/`, where the hash
/// covers the text, its split and the tokenizer asked for; token files are used in place.
///
/// # Errors
/// When the source cannot be read (the message names file and line), the spec contradicts itself
/// ([`crate::error::Failure::Usage`]), or the cache cannot be written.
pub fn prepare(spec: &DataSpec, cache: &Path) -> anyhow::Result<Dataset> {
    if let Some(source) = RawSource::find(&spec.source)? {
        return source.open(&spec.tokenizer, cache);
    }
    let corpus = Corpus::read(&spec.source)?.context("data.source: neither text nor tokens")?;
    let content_hash = content_hash(&corpus, &spec.tokenizer)?;
    let folder = cache.join(short(&content_hash));
    if folder.join("dataset.json").exists() {
        match Dataset::open(&folder) {
            Ok(dataset) if dataset.summary.content_hash == content_hash.to_hex().as_str() => {
                return Ok(dataset);
            }
            Ok(_) => tracing::warn!("{} holds other data; preparing it again", folder.display()),
            Err(error) => tracing::warn!("{error:#}; preparing it again"),
        }
    }
    let started = Instant::now();
    write_directory_atomic(&folder, |inside| {
        fill(inside, &corpus, &spec.tokenizer, &content_hash)
    })?;
    tracing::info!("prepared {} in {:.1} s", folder.display(), started.elapsed().as_secs_f64());
    Dataset::open(&folder)
}

/// The tokenizer of a `tokenizer.json`.
pub(super) fn tokenizer_from_file(path: &Path) -> anyhow::Result<Tokenizer> {
    let json = std::fs::read_to_string(path)
        .with_context(|| format!("data.tokenizer.file: {} cannot be read", path.display()))?;
    Tokenizer::from_json(&json).with_context(|| format!("data.tokenizer.file: {}", path.display()))
}

fn content_hash(corpus: &Corpus, tokenizer: &TokenizerSpec) -> anyhow::Result<blake3::Hash> {
    let tokenizer = match tokenizer {
        TokenizerSpec::Bytes => "bytes".to_string(),
        TokenizerSpec::Chars => "characters".to_string(),
        TokenizerSpec::Bpe(spec) => format!("byte pairs {}", spec.vocab_size.0),
        TokenizerSpec::File(path) => format!("file {}", tokenizer_from_file(path)?.hash()?),
    };
    let mut hasher = blake3::Hasher::new_derive_key(FORMAT);
    hasher.update(&(tokenizer.len() as u64).to_le_bytes());
    hasher.update(tokenizer.as_bytes());
    corpus.hash_into(&mut hasher);
    Ok(hasher.finalize())
}

/// Writes `tokenizer.json`, `train.tokens`, `val.tokens` and `dataset.json`.
fn fill(
    folder: &Path,
    corpus: &Corpus,
    tokenizer: &TokenizerSpec,
    content_hash: &blake3::Hash,
) -> anyhow::Result<()> {
    let megabytes =
        |documents: &[String]| documents.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    tracing::info!(
        "{}: {:.1} MB training, {:.1} MB validation text",
        corpus.description,
        megabytes(&corpus.train),
        megabytes(&corpus.val)
    );
    let tokenizer = make_tokenizer(corpus, tokenizer)?;
    let json = tokenizer.to_json()?;
    let tokenizer_hash = blake3::hash(json.as_bytes());
    std::fs::write(folder.join("tokenizer.json"), json)?;

    let byte_lengths = tokenizer.token_byte_lengths();
    let write_part = |part: &str, documents: &[String]| -> anyhow::Result<Header> {
        let progress = progress_bar(part, documents);
        let encoded = tokenizer.encode_documents(documents, corpus.documents_end, &progress);
        let tokens = encoded.with_context(|| format!("tokenizing the {part} text"))?;
        progress.finish_and_clear();
        let header = Header {
            width: Width::for_vocabulary(tokenizer.vocab_size()),
            tokens: tokens.len() as u64,
            text_bytes: tokens.iter().map(|token| u64::from(byte_lengths[*token as usize])).sum(),
            tokenizer_hash,
        };
        write_shard(&folder.join(format!("{part}.tokens")), &header, &tokens)?;
        Ok(header)
    };
    let train = write_part("train", &corpus.train)?;
    let val = write_part("val", &corpus.val)?;
    let summary = DatasetSummary {
        source: corpus.description.clone(),
        tokenizer: tokenizer.description(),
        content_hash: content_hash.to_hex().to_string(),
        tokenizer_hash: tokenizer_hash.to_hex().to_string(),
        vocab_size: tokenizer.vocab_size(),
        train_tokens: train.tokens,
        val_tokens: val.tokens,
        train_bytes: train.text_bytes,
        val_bytes: val.text_bytes,
    };
    std::fs::write(folder.join("dataset.json"), serde_json::to_string_pretty(&summary)? + "\n")?;
    Ok(())
}

/// The tokenizer asked for; characters and byte pairs come from the training text only.
fn make_tokenizer(corpus: &Corpus, spec: &TokenizerSpec) -> anyhow::Result<Tokenizer> {
    match spec {
        TokenizerSpec::Bytes => Ok(Tokenizer::bytes()),
        TokenizerSpec::Chars => {
            let end = corpus.documents_end.then_some(DOCUMENT_END);
            Ok(Tokenizer::characters(corpus.train.iter().map(String::as_str).chain(end)))
        }
        TokenizerSpec::Bpe(spec) => {
            tracing::info!("training a byte-level BPE tokenizer of {} tokens", spec.vocab_size.0);
            Tokenizer::train_byte_pair(&corpus.train, usize::try_from(spec.vocab_size.0)?)
        }
        TokenizerSpec::File(path) => tokenizer_from_file(path),
    }
}

/// A bar on stderr, shown on a terminal only.
fn progress_bar(part: &str, documents: &[String]) -> ProgressBar {
    let style = ProgressStyle::with_template("tokenizing {msg} {wide_bar} {bytes}/{total_bytes}")
        .expect("a valid template");
    ProgressBar::new(documents.iter().map(|document| document.len() as u64).sum())
        .with_style(style)
        .with_message(part.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{BpeSpec, Count, JsonlSourceSpec, SourceSpec, TextSourceSpec};
    use std::path::PathBuf;

    struct Fixture {
        folder: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let text: String =
                (0..200).map(|index| format!("let value{index} = {index} * é;\n")).collect();
            std::fs::write(folder.path().join("text.txt"), text).unwrap();
            Self { folder }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn text(&self) -> String {
            std::fs::read_to_string(self.path("text.txt")).unwrap()
        }

        fn prepare(&self, tokenizer: TokenizerSpec) -> anyhow::Result<Dataset> {
            let path = Some(self.path("text.txt").to_str().unwrap().to_string());
            let source = SourceSpec::Text(TextSourceSpec {
                path,
                val_fraction: Some(0.25),
                ..Default::default()
            });
            prepare(&DataSpec { source, tokenizer }, &self.path("cache"))
        }

        fn prepared_folders(&self) -> Vec<PathBuf> {
            std::fs::read_dir(self.path("cache"))
                .into_iter()
                .flatten()
                .map(|entry| entry.unwrap().path())
                .collect()
        }
    }

    fn byte_pairs() -> TokenizerSpec {
        TokenizerSpec::Bpe(BpeSpec { vocab_size: Count(280) })
    }

    #[test]
    fn text_comes_back_from_the_shards() {
        let fixture = Fixture::new();
        for tokenizer in [TokenizerSpec::Bytes, TokenizerSpec::Chars, byte_pairs()] {
            let dataset = fixture.prepare(tokenizer).unwrap();
            let decode =
                |shard: &TokenShard| dataset.tokenizer.decode(&shard.read(0, shard.len())).unwrap();
            let (train, val) = (decode(&dataset.train), decode(&dataset.val));
            assert_eq!(train.clone() + &val, fixture.text());
            assert_eq!(
                (dataset.summary.train_bytes, dataset.summary.val_bytes),
                (train.len() as u64, val.len() as u64)
            );
            assert_eq!(val.chars().count(), fixture.text().chars().count().div_ceil(4));
        }
        assert_eq!(fixture.prepared_folders().len(), 3);
    }

    #[test]
    fn preparation_runs_once_and_again_when_the_text_changes() {
        let fixture = Fixture::new();
        let first = fixture.prepare(byte_pairs()).unwrap().summary;
        let folder = fixture.prepared_folders().remove(0);
        let written =
            |folder: &Path| folder.join("train.tokens").metadata().unwrap().modified().unwrap();
        let before = written(&folder);
        assert_eq!(fixture.prepare(byte_pairs()).unwrap().summary, first);
        assert_eq!(written(&folder), before);

        std::fs::write(fixture.path("text.txt"), fixture.text() + "!").unwrap();
        assert_ne!(fixture.prepare(byte_pairs()).unwrap().summary.content_hash, first.content_hash);
        assert_eq!(fixture.prepared_folders().len(), 2);
    }

    #[test]
    fn damaged_preparations_are_made_again() {
        let fixture = Fixture::new();
        let first = fixture.prepare(byte_pairs()).unwrap().summary;
        let folder = fixture.prepared_folders().remove(0);
        let shard = std::fs::read(folder.join("val.tokens")).unwrap();

        std::fs::write(folder.join("val.tokens"), &shard[..shard.len() - 2]).unwrap();
        assert!(Dataset::open(&folder).is_err());
        assert_eq!(fixture.prepare(byte_pairs()).unwrap().summary, first);
        assert_eq!(std::fs::read(folder.join("val.tokens")).unwrap(), shard);

        std::fs::write(folder.join("tokenizer.json"), Tokenizer::bytes().to_json().unwrap())
            .unwrap();
        let error = Dataset::open(&folder).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json is not the one"), "{error}");
    }

    #[test]
    fn a_tokenizer_file_gives_the_same_tokens_and_its_content_counts() {
        let fixture = Fixture::new();
        let trained = fixture.prepare(byte_pairs()).unwrap();
        let file = fixture.path("tokenizer.json");
        std::fs::write(&file, trained.tokenizer.to_json().unwrap()).unwrap();
        let from_file = fixture.prepare(TokenizerSpec::File(file.clone())).unwrap();
        assert_eq!(
            from_file.train.read(0, from_file.train.len()),
            trained.train.read(0, trained.train.len())
        );
        assert_eq!(from_file.summary.tokenizer_hash, trained.summary.tokenizer_hash);

        std::fs::write(&file, Tokenizer::bytes().to_json().unwrap()).unwrap();
        assert_ne!(
            fixture.prepare(TokenizerSpec::File(file)).unwrap().summary.content_hash,
            from_file.summary.content_hash
        );
    }

    #[test]
    fn validation_characters_missing_from_the_training_text_are_named() {
        let fixture = Fixture::new();
        std::fs::write(fixture.path("text.txt"), "abcabcabz").unwrap();
        let error = format!("{:#}", fixture.prepare(TokenizerSpec::Chars).unwrap_err());
        assert!(error.contains("'z'") && error.contains("val"), "{error}");
        assert!(fixture.prepared_folders().is_empty());
    }

    #[test]
    fn json_lines_end_with_the_end_of_text_token() {
        let fixture = Fixture::new();
        let lines: String =
            (0..20).map(|index| format!("{{\"text\": \"document number {index}\"}}\n")).collect();
        std::fs::write(fixture.path("documents.jsonl"), lines).unwrap();
        let train = vec![fixture.path("documents.jsonl").to_str().unwrap().to_string()];
        let source = SourceSpec::Jsonl(JsonlSourceSpec {
            train,
            val: None,
            val_fraction: None,
            text_key: "text".into(),
        });
        let dataset =
            prepare(&DataSpec { source, tokenizer: byte_pairs() }, &fixture.path("cache")).unwrap();
        let end = dataset.tokenizer.end_of_text().unwrap();
        let tokens = dataset.train.read(0, dataset.train.len());
        assert_eq!(tokens.iter().filter(|token| **token == end).count(), 18);
        assert_eq!(tokens.last(), Some(&end));
    }

    /// The default corpus goes through bytes: the whole path on real text, without the seconds BPE
    /// training takes.
    #[test]
    fn the_default_corpus_is_prepared() {
        let cache = tempfile::tempdir().unwrap();
        let dataset = prepare(
            &DataSpec { source: SourceSpec::CargoRegistry, tokenizer: TokenizerSpec::Bytes },
            cache.path(),
        )
        .unwrap();
        assert_eq!(dataset.summary.train_bytes, dataset.summary.train_tokens);
        assert!(dataset.summary.train_tokens > 15_000_000);
    }
}
