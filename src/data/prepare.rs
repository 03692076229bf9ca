//! Preparation: a source and a tokenizer become a folder of token shards, once.

use super::corpus::{Corpus, usage};
use super::dataset::{Dataset, DatasetSummary};
use super::raw::RawSource;
use super::shard_file::{Document, Header, Width, short, write_shard};
use super::sources;
use super::tokenizer::{DOCUMENT_END, Tokenizer};
use crate::fs::write_directory_atomic;
use crate::spec::{DataSpec, TokenizerSpec};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;
use std::time::Instant;

/// Part of the content hash: raise it when the same text and tokenizer give other tokens, or the
/// files another form.
const FORMAT: &str = "lrpt data v1";

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
        return source.open(spec);
    }
    let corpus = sources::read(&spec.source)?.context("data.source: neither text nor tokens")?;
    let file = match &spec.tokenizer {
        TokenizerSpec::File(path) => Some(Tokenizer::from_file(path)?),
        _ => None,
    };
    if let Some(tokenizer) = &file {
        warn_of_no_end(&corpus, spec, tokenizer);
    }
    let content_hash = content_hash(&corpus, spec, file.as_ref())?;
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
    write_directory_atomic(&folder, |inside| fill(inside, &corpus, spec, file, &content_hash))?;
    tracing::info!("prepared {} in {:.1} s", folder.display(), started.elapsed().as_secs_f64());
    Dataset::open(&folder)
}

/// Says what stands between documents where the tokenizer of a file has no end-of-text token.
fn warn_of_no_end(corpus: &Corpus, spec: &DataSpec, tokenizer: &Tokenizer) {
    let has_end = spec.end_of_text.is_some() || tokenizer.end_of_text().is_some();
    if corpus.documents_end && !has_end {
        tracing::warn!(
            "the tokenizer has no end-of-text token of a common name, so that documents end with \
             the tokens of a newline, if it has any; name its token with `data.end_of_text`"
        );
    }
}

fn content_hash(
    corpus: &Corpus,
    spec: &DataSpec,
    file: Option<&Tokenizer>,
) -> anyhow::Result<blake3::Hash> {
    let mut tokenizer = match (&spec.tokenizer, file) {
        (TokenizerSpec::Bpe(spec), _) => format!("byte pairs {}", spec.vocab_size.0),
        (_, Some(file)) => format!("file {}", file.hash()?),
        (TokenizerSpec::Chars, None) => "characters".to_string(),
        (_, None) => "bytes".to_string(),
    };
    // Names that were always looked for are known by the tokenizer's hash.
    let found = file.and_then(Tokenizer::end_of_text_name);
    let found =
        found.filter(|name| !["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"].contains(name));
    if let (true, Some(name)) = (corpus.documents_end, spec.end_of_text.as_deref().or(found)) {
        tokenizer += &format!(" end {name}");
    }
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
    spec: &DataSpec,
    file: Option<Tokenizer>,
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
    let tokenizer = match file {
        Some(tokenizer) => tokenizer,
        None => make_tokenizer(corpus, &spec.tokenizer)?,
    };
    let end = DocumentEnd::find(corpus, spec, &tokenizer)?;
    let json = tokenizer.to_json()?;
    let tokenizer_hash = blake3::hash(json.as_bytes());
    std::fs::write(folder.join("tokenizer.json"), json)?;

    let byte_lengths = tokenizer.token_byte_lengths();
    let write_part = |part: &str, texts: &[String]| -> anyhow::Result<Header> {
        let progress = progress_bar(part, texts);
        let encoded = tokenizer.encode_documents(texts, &end.tokens, &progress);
        let encoded = encoded.with_context(|| format!("tokenizing the {part} text"))?;
        progress.finish_and_clear();
        let documents = encoded.iter().zip(texts).map(|(tokens, text)| {
            Document::new(tokens, text.len() as u64 + end.text_bytes, &byte_lengths)
        });
        let mut documents: Vec<Document> = documents.collect();
        let text_bytes = documents.iter().map(|document| document.text_bytes).sum();
        if documents.iter().all(Document::is_exact) {
            documents.clear();
        }
        let tokens = encoded.concat();
        let header = Header {
            width: Width::for_vocabulary(tokenizer.vocab_size()),
            tokens: tokens.len() as u64,
            text_bytes,
            tokenizer_hash,
            documents: documents.len() as u64,
        };
        write_shard(&folder.join(format!("{part}.tokens")), &header, &tokens, &documents)?;
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
        train_bytes: Some(train.text_bytes),
        val_bytes: Some(val.text_bytes),
    };
    std::fs::write(folder.join("dataset.json"), serde_json::to_string_pretty(&summary)? + "\n")?;
    Ok(())
}

/// What follows a document: tokens, and the UTF-8 bytes of text they stand for.
#[derive(Default)]
struct DocumentEnd {
    tokens: Vec<u32>,
    text_bytes: u64,
}

impl DocumentEnd {
    /// Nothing where the source's documents have no end; else the token the user named, the
    /// tokenizer's own, or a newline.
    fn find(corpus: &Corpus, spec: &DataSpec, tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        if !corpus.documents_end {
            return Ok(Self::default());
        }
        let token = match &spec.end_of_text {
            None => tokenizer.end_of_text(),
            Some(name) => Some(tokenizer.token_of(name).ok_or_else(|| {
                usage(format!(
                    "data.end_of_text: the tokenizer ({}) has no token {name:?}; name one it has, \
                     or remove the key",
                    tokenizer.description()
                ))
            })?),
        };
        Ok(match token {
            Some(token) => Self { tokens: vec![token], text_bytes: 0 },
            None => {
                let tokens = tokenizer.encode(DOCUMENT_END)?;
                let text_bytes = if tokens.is_empty() { 0 } else { DOCUMENT_END.len() as u64 };
                Self { tokens, text_bytes }
            }
        })
    }
}

/// The tokenizer to be made from text: byte pairs from the training text; characters from all of
/// it, as in nanoGPT, so that a rare character in the validation text has a token.
fn make_tokenizer(corpus: &Corpus, spec: &TokenizerSpec) -> anyhow::Result<Tokenizer> {
    match spec {
        TokenizerSpec::Bytes => Ok(Tokenizer::bytes()),
        TokenizerSpec::Chars => {
            let end = corpus.documents_end.then_some(DOCUMENT_END);
            let text = corpus.train.iter().chain(&corpus.val).map(String::as_str).chain(end);
            Ok(Tokenizer::characters(text))
        }
        TokenizerSpec::Bpe(spec) => {
            tracing::info!("training a byte-level BPE tokenizer of {} tokens", spec.vocab_size.0);
            Tokenizer::train_byte_pair(&corpus.train, usize::try_from(spec.vocab_size.0)?)
        }
        TokenizerSpec::File(path) => Tokenizer::from_file(path),
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
mod tests;
