//! A folder of prepared data is filled: the tokenizer, then the training part, then the validation
//! part. What is done is kept as it goes, so that whoever fills the folder next goes on from there.

use super::corpus::{Corpus, usage};
use super::dataset::DatasetSummary;
use super::documents::Documents;
use super::encode::{DocumentEnd, write_examples, write_part};
use super::made_tokenizer::{make_tokenizer, progress_bar};
use super::part_writer::{Finished, PartWriter, Saves, mask_of};
use super::progress::{Asked, Differs, PROGRESS, Progress, differs, not_found};
use super::shard_file::{Header, Width, stored_checksum};
use super::shard_writer::remove_list;
use super::target_mask::TargetMask;
use super::tokenizer::{DOCUMENT_END, Tokenizer};
use crate::figures;
use crate::fs::{open_ordinary, read_text, write_atomic};
use crate::spec::DataSpec;
use anyhow::Context;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// The least time between two places that a stopped preparation can go on from: so long that
/// keeping them takes no time to speak of.
const SAVE_EVERY: Duration = Duration::from_millis(250);

/// What a folder is filled with.
pub(super) struct Content<'a> {
    pub corpus: &'a Corpus,
    pub spec: &'a DataSpec,
    /// The tokenizer, where it is a file's.
    pub file: Option<&'a Tokenizer>,
    pub content_hash: blake3::Hash,
    /// Of the training and the validation text.
    pub bytes: [u64; 2],
}

impl Content<'_> {
    /// Writes `tokenizer.json`, `train.tokens`, `val.tokens`, their masks and `dataset.json`; goes
    /// on with what is in the folder, if that is sound and belongs to it, and says whether it did.
    ///
    /// # Errors
    /// When the text cannot be read or encoded, or a file cannot be written.
    pub(super) fn fill(&self, folder: &Path) -> anyhow::Result<bool> {
        let [train, val] = self.bytes.map(figures::bytes);
        tracing::info!("{}: {train} training, {val} validation text", self.corpus.description);
        if folder.join(PROGRESS).exists() {
            match self.go_on(folder) {
                Err(error) if error.is::<Differs>() => {
                    tracing::warn!(
                        "{}: the preparation that was stopped cannot go on ({error:#}); beginning \
                         anew",
                        folder.display()
                    );
                }
                result => return result.map(|()| true),
            }
        }
        clear(folder)?;
        let tokenizer = match self.file {
            Some(_) => None,
            None => Some(make_tokenizer(self.corpus, &self.spec.tokenizer, self.bytes[0])?),
        };
        let tokenizer = self.file.or(tokenizer.as_ref()).context("no tokenizer")?;
        let json = tokenizer.to_json()?;
        write_atomic(&folder.join("tokenizer.json"), json.as_bytes())?;
        let tokenizer_hash = blake3::hash(json.as_bytes());
        let progress = Progress {
            content_hash: self.content_hash.to_hex().to_string(),
            asked: Asked::here(self.spec),
            tokenizer_hash: tokenizer_hash.to_hex().to_string(),
            finished: BTreeMap::new(),
            unfinished: None,
        };
        progress.write(folder)?;
        self.fill_parts(folder, tokenizer, tokenizer_hash, progress).map(|()| false)
    }

    /// Goes on with what a preparation that was stopped left in the folder.
    ///
    /// # Errors
    /// [`Differs`] where that is damaged or of something else; else as [`Content::fill`].
    fn go_on(&self, folder: &Path) -> anyhow::Result<()> {
        let progress = Progress::read(folder)?;
        if progress.content_hash != self.content_hash.to_hex().as_str() {
            return Err(differs("it is of another text or tokenizer"));
        }
        let name = "tokenizer.json";
        let json = read_text(&folder.join(name)).map_err(|error| not_found(error, name))?;
        let tokenizer_hash = blake3::hash(json.as_bytes());
        if progress.tokenizer_hash != tokenizer_hash.to_hex().as_str() {
            return Err(differs(format!("{name} is damaged")));
        }
        let tokenizer = Tokenizer::from_json(&json)?;
        tracing::info!("going on with a preparation of it that was stopped");
        self.fill_parts(folder, &tokenizer, tokenizer_hash, progress)
    }

    /// Writes what the folder does not have yet but for the tokenizer.
    fn fill_parts(
        &self,
        folder: &Path,
        tokenizer: &Tokenizer,
        tokenizer_hash: blake3::Hash,
        mut progress: Progress,
    ) -> anyhow::Result<()> {
        let end = document_end(self.corpus, self.spec, tokenizer)?;
        let mut write = |part: &str, documents: &Documents, bytes: u64| {
            let path = folder.join(format!("{part}.tokens"));
            let is_masked = matches!(documents, Documents::Examples(_));
            if let Some(checksum) = progress.finished.get(part) {
                let finished = finished_part(&path, checksum, is_masked)?;
                remove_list(&path)?;
                return Ok(finished);
            }
            let from = progress.unfinished.take();
            let from = from.filter(|(unfinished, _)| unfinished == part).map(|(_, place)| place);
            let bar = progress_bar(&format!("tokenizing {part}"), bytes);
            let save = |place| {
                progress.unfinished = Some((part.to_string(), place));
                progress.write(folder)
            };
            let saves = Saves { every: SAVE_EVERY, save: Box::new(save) };
            let width = Width::for_vocabulary(tokenizer.vocab_size());
            let writer = PartWriter::open(&path, width, is_masked, from, saves, &bar)?;
            let written = match documents {
                Documents::Examples(examples) => {
                    write_examples(writer, examples, tokenizer, tokenizer_hash)
                }
                _ => write_part(writer, documents, tokenizer, &end, tokenizer_hash),
            };
            bar.finish_and_clear();
            let finished = written.with_context(|| format!("tokenizing the {part} text"))?;
            progress.finished.insert(part.to_string(), finished.checksum.to_hex().to_string());
            progress.unfinished = None;
            progress.write(folder)?;
            remove_list(&path)?;
            anyhow::Ok(finished)
        };
        let train = write("train", &self.corpus.train, self.bytes[0])?;
        let val = write("val", &self.corpus.val, self.bytes[1])?;
        let summary = DatasetSummary {
            source: self.corpus.description.clone(),
            tokenizer: tokenizer.description(),
            content_hash: self.content_hash.to_hex().to_string(),
            tokenizer_hash: tokenizer_hash.to_hex().to_string(),
            vocab_size: tokenizer.vocab_size(),
            train_tokens: train.header.tokens,
            val_tokens: val.header.tokens,
            train_bytes: Some(train.header.text_bytes),
            val_bytes: Some(val.header.text_bytes),
            train_trained: train.trained,
            val_trained: val.trained,
        };
        let summary = serde_json::to_string_pretty(&summary)? + "\n";
        write_atomic(&folder.join("dataset.json"), summary.as_bytes())?;
        Progress::remove(folder)
    }
}

/// What is in a part that was finished before a preparation was stopped; every byte is checked.
fn finished_part(path: &Path, checksum: &str, is_masked: bool) -> anyhow::Result<Finished> {
    let damaged = |error: anyhow::Error| match crate::fs::is_failed_read(&error) {
        true => error,
        false => differs(format!("{}: {error:#}", path.display())),
    };
    let read = || {
        let mut file = open_ordinary(path)?;
        let header = Header::read(&mut file)?;
        let stored = stored_checksum(&mut file)?;
        anyhow::ensure!(
            stored.to_hex().as_str() == checksum,
            "it is not the shard that was written"
        );
        let mask = is_masked.then(|| TargetMask::read(&mask_of(path), header.tokens as usize));
        let trained = mask.transpose()?.map(|mask| mask.count());
        Ok(Finished { header, checksum: stored, trained })
    };
    read().map_err(damaged)
}

/// Removes the files of a folder.
fn clear(folder: &Path) -> anyhow::Result<()> {
    let clear = || -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(())
    };
    clear().with_context(|| format!("{}: the folder cannot be emptied", folder.display()))
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
