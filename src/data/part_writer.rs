//! A part of a data set while it is written: its shard, its mask, and how far in the text it is.

use super::progress::{Place, differs};
use super::shard_file::{Document, Header, Width};
use super::shard_writer::ShardWriter;
use super::target_mask::TargetMask;
use anyhow::Result;
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is done with a place that the writing of a part can go on from, and how often there is one.
pub(super) struct Saves<'a> {
    /// Least time between two.
    pub every: Duration,
    /// Keeps one.
    pub save: Box<dyn FnMut(Place) -> Result<()> + 'a>,
}

/// A part that is being written.
pub(super) struct PartWriter<'a> {
    path: PathBuf,
    /// The tokens.
    pub shard: ShardWriter,
    /// Which tokens are trained on, where that is not all.
    pub mask: Option<TargetMask>,
    /// The tokens so far of the document that the next piece of text belongs to.
    pub document: Document,
    pieces: u64,
    text: blake3::Hasher,
    saves: Saves<'a>,
    saved: Instant,
    progress: &'a ProgressBar,
    /// Where it goes on from, until it has been there.
    from: Option<Place>,
}

impl<'a> PartWriter<'a> {
    /// A part in the shard at `path`, with a mask beside it if it `is_masked`; it is empty, or goes
    /// on from a place.
    ///
    /// # Errors
    /// [`Differs`](super::progress::Differs) where what is there is not what the place says; else
    /// where the system cannot read or write it.
    pub(super) fn open(
        path: &Path,
        width: Width,
        is_masked: bool,
        from: Option<Place>,
        saves: Saves<'a>,
        progress: &'a ProgressBar,
    ) -> Result<Self> {
        let shard = match &from {
            Some(place) => ShardWriter::reopen(path, width, &place.shard)?,
            None => ShardWriter::create(path, width)?,
        };
        let mask = match &from {
            _ if !is_masked => None,
            Some(place) => {
                let tokens = usize::try_from(place.shard.tokens)?;
                let mask = TargetMask::read_first(&mask_of(path), tokens);
                Some(mask.map_err(|error| match crate::fs::is_failed_read(&error) {
                    true => error,
                    false => differs(format!("{}: {error:#}", mask_of(path).display())),
                })?)
            }
            None => Some(TargetMask::default()),
        };
        Ok(Self {
            path: path.to_path_buf(),
            shard,
            mask,
            document: Document::default(),
            pieces: 0,
            text: blake3::Hasher::new(),
            saves,
            saved: Instant::now(),
            progress,
            from,
        })
    }

    /// Passes over the pieces of text whose tokens are there already.
    ///
    /// # Errors
    /// [`Differs`](super::progress::Differs) where they are not those whose tokens are there; else
    /// when they cannot be read.
    pub(super) fn skip<T>(
        &mut self,
        pieces: &mut impl Iterator<Item = Result<T>>,
        text: impl Fn(&T) -> &str,
    ) -> Result<()> {
        let Some(place) = self.from.take() else { return Ok(()) };
        while self.pieces < place.pieces {
            let Some(piece) = pieces.next() else { break };
            self.took(text(&piece?));
        }
        if self.pieces < place.pieces || self.text.finalize().to_hex().as_str() != place.text {
            return Err(differs("the text before the place is another"));
        }
        self.document = place.document;
        self.progress.reset_eta();
        Ok(())
    }

    /// Says that the tokens of the next piece of text are written.
    pub(super) fn took(&mut self, text: &str) {
        self.pieces += 1;
        self.text.update(&(text.len() as u64).to_le_bytes());
        self.text.update(text.as_bytes());
        self.progress.inc(text.len() as u64);
    }

    /// Keeps this place, if it is time again.
    ///
    /// # Errors
    /// When something cannot be written.
    pub(super) fn save(&mut self) -> Result<()> {
        if self.saved.elapsed() < self.saves.every {
            return Ok(());
        }
        if let Some(mask) = &self.mask {
            mask.write(&mask_of(&self.path))?;
        }
        (self.saves.save)(Place {
            pieces: self.pieces,
            text: self.text.finalize().to_hex().to_string(),
            document: self.document,
            shard: self.shard.sync()?,
        })?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Finishes the shard and the mask.
    ///
    /// # Errors
    /// When something cannot be written.
    pub(super) fn finish(self, tokenizer_hash: blake3::Hash) -> Result<Finished> {
        if let Some(mask) = &self.mask {
            mask.write(&mask_of(&self.path))?;
        }
        let (header, checksum) = self.shard.finish(tokenizer_hash)?;
        Ok(Finished { header, checksum, trained: self.mask.map(|mask| mask.count()) })
    }
}

/// What is in a finished part.
#[derive(Debug)]
pub(super) struct Finished {
    /// The header of its shard.
    pub header: Header,
    /// The checksum of its shard.
    pub checksum: blake3::Hash,
    /// Tokens that are trained on, where that is not all.
    pub trained: Option<u64>,
}

/// Where the mask of a shard is.
pub(super) fn mask_of(shard: &Path) -> PathBuf {
    shard.with_extension("mask")
}
