//! The documents of a source, and the errors of a source that contradicts itself.

use crate::error::Failure;

/// Text to train on and text to validate on.
#[derive(Debug, Default)]
pub(super) struct Corpus {
    /// One line for people.
    pub description: String,
    /// Training documents.
    pub train: Vec<String>,
    /// Validation documents.
    pub val: Vec<String>,
    /// Whether every document is followed by the end-of-text token.
    pub documents_end: bool,
}

impl Corpus {
    /// Adds everything that decides the tokens to a hash.
    pub(super) fn hash_into(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&[u8::from(self.documents_end)]);
        for part in [&self.train, &self.val] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            for document in part {
                hasher.update(&(document.len() as u64).to_le_bytes());
                hasher.update(document.as_bytes());
            }
        }
    }
}

/// A [`Failure::Usage`]: exit code 2.
pub(super) fn usage(message: impl Into<String>) -> anyhow::Error {
    Failure::Usage(message.into()).into()
}
