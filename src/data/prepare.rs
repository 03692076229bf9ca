//! Preparation: a source and a tokenizer become a folder of token shards, once.
//!
//! The source is gone through several times, a few megabytes at a time: to measure it, to hash it
//! (which names the folder), to make its tokenizer, and to encode it.

use super::corpus::{Corpus, usage};
use super::dataset::{Dataset, DatasetSummary};
use super::documents::{Chunk, Documents};
use super::encode::{DocumentEnd, Pieces, write_examples, write_part};
use super::hugging_face::{last_cut, pieces};
use super::instructions;
use super::raw::RawSource;
use super::shard_file::short;
use super::sources;
use super::tokenizer::{CharacterSet, DOCUMENT_END, Tokenizer};
use crate::figures;
use crate::fs::{is_failed_read, write_directory_atomic};
use crate::spec::{BpeSpec, DataSpec, SourceSpec, TokenizerSpec};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

/// Part of the content hash: raise it when the same text and tokenizer give other tokens, or the
/// files another form.
const FORMAT: &str = "lrpt data v1";

static CACHE: OnceLock<PathBuf> = OnceLock::new();

/// Makes this the folder in which the commands keep prepared data, for the whole process; the first
/// call decides.
pub fn keep_prepared_in(folder: PathBuf) {
    // Whoever asked for a folder before knows of no other.
    let _ = CACHE.set(folder);
}

/// Where the commands keep prepared data: `data/` of the current folder, unless
/// [`keep_prepared_in`] said otherwise.
pub fn cache_dir() -> &'static Path {
    CACHE.get().map_or(Path::new("data"), PathBuf::as_path)
}

/// The data set of a spec. Text is tokenized once and kept in `cache/<hash>/`, where the hash
/// covers the text, its split and the tokenizer asked for; token files are used in place.
///
/// # Errors
/// When the source cannot be read (the message names file and line), the spec contradicts itself
/// ([`crate::error::Failure::Usage`]), or the cache cannot be written.
pub fn prepare(spec: &DataSpec, cache: &Path) -> anyhow::Result<Dataset> {
    prepare_or_find(spec, cache, None)
}

/// As [`prepare`]; what the cache does not have is looked for in another folder, in which nothing
/// is ever written: whoever began a run says where it is.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_or_find(
    spec: &DataSpec,
    cache: &Path,
    other: Option<&Path>,
) -> anyhow::Result<Dataset> {
    if let Some(source) = RawSource::find(&spec.source)? {
        return source.open(spec);
    }
    let Found { corpus, file, content_hash, bytes } = find(spec)?;
    if let Some(tokenizer) = &file {
        warn_of_no_end(&corpus, spec, tokenizer);
    }
    let folder = cache.join(short(&content_hash));
    let other = other.map(|other| other.join(short(&content_hash)));
    for folder in std::iter::once(&folder).chain(&other) {
        if !folder.join("dataset.json").exists() {
            continue;
        }
        match Dataset::open(folder) {
            Ok(dataset) if dataset.summary.content_hash == content_hash.to_hex().as_str() => {
                return Ok(dataset);
            }
            Ok(_) => tracing::warn!("{} holds other data; preparing it again", folder.display()),
            Err(error) if is_failed_read(&error) => {
                return Err(error.context(format!(
                    "{}: the system could not read the prepared data, which is no damage; mend the \
                     cause and try again",
                    folder.display()
                )));
            }
            Err(error) => tracing::warn!("{error:#}; preparing it again"),
        }
    }
    let started = Instant::now();
    write_directory_atomic(&folder, |inside| {
        fill(inside, &corpus, spec, file, &content_hash, bytes)
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = bytes.iter().sum::<u64>() as f64 / seconds.max(1e-9);
    tracing::info!(
        "prepared {} in {seconds:.1} s ({}/s)",
        folder.display(),
        figures::bytes(rate as u64)
    );
    Dataset::open(&folder)
}

/// What [`prepare`] has made of a spec's text before; none where it has not.
///
/// # Errors
/// When the source cannot be read, or what was made of it is damaged.
pub fn prepared(spec: &DataSpec, cache: &Path) -> anyhow::Result<Option<DatasetSummary>> {
    let folder = cache.join(short(&find(spec)?.content_hash));
    let is_there = folder.join("dataset.json").exists();
    Ok(if is_there { Some(Dataset::open(&folder)?.summary) } else { None })
}

/// A text source, read.
struct Found {
    corpus: Corpus,
    /// The tokenizer, where it is a file's.
    file: Option<Tokenizer>,
    content_hash: blake3::Hash,
    /// Of the training and the validation text.
    bytes: [u64; 2],
}

fn find(spec: &DataSpec) -> anyhow::Result<Found> {
    let corpus = sources::read(&spec.source)?;
    let file = match &spec.tokenizer {
        TokenizerSpec::File(path) => Some(Tokenizer::from_file(path)?),
        _ => None,
    };
    let corpus = match (&spec.source, corpus) {
        (SourceSpec::Instructions(source), None) => {
            instructions::read(source, spec, file.as_ref())?
        }
        (_, corpus) => corpus.context("data.source: neither text nor tokens")?,
    };
    let (content_hash, bytes) = content_hash(&corpus, spec, file.as_ref())?;
    Ok(Found { corpus, file, content_hash, bytes })
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

/// The hash that names the data, and the bytes of the training and the validation text.
fn content_hash(
    corpus: &Corpus,
    spec: &DataSpec,
    file: Option<&Tokenizer>,
) -> anyhow::Result<(blake3::Hash, [u64; 2])> {
    let mut tokenizer = match (&spec.tokenizer, file) {
        (TokenizerSpec::Bpe(spec), _) => {
            let sample = spec.sample_bytes.map(|bytes| format!(" of {} bytes", bytes.0));
            format!("byte pairs {}{}", spec.vocab_size.0, sample.unwrap_or_default())
        }
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
    let bytes = corpus.hash_into(&mut hasher)?;
    Ok((hasher.finalize(), bytes))
}

/// Writes `tokenizer.json`, `train.tokens`, `val.tokens` and `dataset.json`.
fn fill(
    folder: &Path,
    corpus: &Corpus,
    spec: &DataSpec,
    file: Option<Tokenizer>,
    content_hash: &blake3::Hash,
    bytes: [u64; 2],
) -> anyhow::Result<()> {
    let [train_size, val_size] = bytes.map(figures::bytes);
    tracing::info!("{}: {train_size} training, {val_size} validation text", corpus.description);
    let tokenizer = match file {
        Some(tokenizer) => tokenizer,
        None => make_tokenizer(corpus, &spec.tokenizer, bytes[0])?,
    };
    let end = document_end(corpus, spec, &tokenizer)?;
    let json = tokenizer.to_json()?;
    let tokenizer_hash = blake3::hash(json.as_bytes());
    std::fs::write(folder.join("tokenizer.json"), json)?;

    let write = |part: &str, documents: &Documents, bytes: u64| {
        let progress = progress_bar(&format!("tokenizing {part}"), bytes);
        let path = folder.join(format!("{part}.tokens"));
        let written = match documents {
            Documents::Examples(examples) => {
                write_examples(&path, examples, &tokenizer, tokenizer_hash, &progress)
                    .map(|(header, mask)| (header, Some(mask)))
            }
            _ => write_part(&path, documents, &tokenizer, &end, tokenizer_hash, &progress)
                .map(|header| (header, None)),
        };
        progress.finish_and_clear();
        let (header, mask) = written.with_context(|| format!("tokenizing the {part} text"))?;
        if let Some(mask) = &mask {
            mask.write(&folder.join(format!("{part}.mask")))?;
        }
        anyhow::Ok((header, mask.map(|mask| mask.count())))
    };
    let (train, train_trained) = write("train", &corpus.train, bytes[0])?;
    let (val, val_trained) = write("val", &corpus.val, bytes[1])?;
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
        train_trained,
        val_trained,
    };
    std::fs::write(folder.join("dataset.json"), serde_json::to_string_pretty(&summary)? + "\n")?;
    Ok(())
}

/// What follows a document: nothing where the source's documents have no end; else the token the
/// user named, the tokenizer's own, or a newline.
fn document_end(
    corpus: &Corpus,
    spec: &DataSpec,
    tokenizer: &Tokenizer,
) -> anyhow::Result<DocumentEnd> {
    if !corpus.documents_end {
        return Ok(DocumentEnd::default());
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
        Some(token) => DocumentEnd { tokens: vec![token], text_bytes: 0 },
        None => {
            let tokens = tokenizer.encode(DOCUMENT_END)?;
            let text_bytes = if tokens.is_empty() { 0 } else { DOCUMENT_END.len() as u64 };
            DocumentEnd { tokens, text_bytes }
        }
    })
}

/// The tokenizer to be made from text: byte pairs from the training text; characters from all of
/// it, as in nanoGPT, so that a rare character in the validation text has a token.
fn make_tokenizer(
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
fn progress_bar(what: &str, bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left",
    )
    .expect("a valid template");
    ProgressBar::new(bytes).with_style(style).with_message(what.to_string())
}

#[cfg(test)]
mod tests;
