//! Preparation: a source and a tokenizer become a folder of token shards, once.
//!
//! The source is gone through several times, a few megabytes at a time: to measure it, to hash it
//! (which names the folder), to make its tokenizer, and to encode it.

use super::corpus::Corpus;
use super::dataset::{Dataset, DatasetSummary};
use super::fill::Content;
use super::instructions;
use super::progress::{Asked, PROGRESS, Progress};
use super::raw::RawSource;
use super::shard_file::short;
use super::sources;
use super::tokenizer::Tokenizer;
use crate::figures;
use crate::fs::{is_failed_read, remove_leftovers, write_directory_resumable};
use crate::spec::{DataSpec, SourceSpec, TokenizerSpec};
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
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
    remove_outdated(spec, &corpus, &content_hash, cache)?;
    let started = Instant::now();
    let content = Content { corpus: &corpus, spec, file: file.as_ref(), content_hash, bytes };
    let mut went_on = false;
    write_directory_resumable(&folder, PROGRESS, |inside| {
        went_on = content.fill(inside)?;
        Ok(())
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = bytes.iter().sum::<u64>() as f64 / seconds.max(1e-9);
    // Of a preparation that went on, only a part of the text took the time.
    let rate =
        if went_on { String::new() } else { format!(" ({}/s)", figures::bytes(rate as u64)) };
    tracing::info!("prepared {} in {seconds:.1} s{rate}", folder.display());
    Dataset::open(&folder)
}

/// Removes what is left of a preparation of the same that was stopped before the text or the
/// tokenizer changed.
fn remove_outdated(
    spec: &DataSpec,
    corpus: &Corpus,
    content_hash: &blake3::Hash,
    cache: &Path,
) -> anyhow::Result<()> {
    if !cache.is_dir() {
        return Ok(());
    }
    let asked = Asked::here(spec);
    let removed = remove_leftovers(cache, |folder| {
        Progress::read(folder).is_ok_and(|found| {
            found.asked == asked && found.content_hash != content_hash.to_hex().as_str()
        })
    })?;
    if removed > 0 {
        tracing::warn!(
            "{}: the text or the tokenizer has changed since its preparation was stopped; \
             beginning anew",
            corpus.description
        );
    }
    Ok(())
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

#[cfg(test)]
mod tests;
