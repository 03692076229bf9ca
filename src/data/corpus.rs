//! The documents of a source, and the errors of a source that contradicts itself.

use super::documents::Documents;
use crate::error::Failure;

/// Text to train on and text to validate on.
#[derive(Debug)]
pub(super) struct Corpus {
    /// One line for people.
    pub description: String,
    /// Training documents.
    pub train: Documents,
    /// Validation documents.
    pub val: Documents,
    /// Whether every document is followed by the end-of-text token.
    pub documents_end: bool,
}

impl Corpus {
    /// Adds everything that decides the tokens to a hash; returns the bytes of the training and of
    /// the validation text.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn hash_into(&self, hasher: &mut blake3::Hasher) -> anyhow::Result<[u64; 2]> {
        hasher.update(&[u8::from(self.documents_end)]);
        Ok([self.train.hash_into(hasher)?, self.val.hash_into(hasher)?])
    }
}

/// A [`Failure::Usage`]: exit code 2.
pub(super) fn usage(message: impl Into<String>) -> anyhow::Error {
    Failure::Usage(message.into()).into()
}
