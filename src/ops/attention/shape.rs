//! Where the heads of an attention lie in its tensors, and what it has to compute.

use super::parts_of;
use crate::kernels::profile::{Cost, Work};
use crate::kernels::{Matrix, Real};
use crate::ops::documents::PackedDocuments;
use candle_core::DType;

/// Sizes of an attention and where its heads lie in memory.
#[derive(Clone, Copy)]
pub(super) struct AttentionShape {
    pub(super) b: usize,
    pub(super) t: usize,
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) d: usize,
}

impl AttentionShape {
    pub(super) fn width(&self) -> usize {
        self.heads * self.d
    }
    pub(super) fn scale(&self) -> f64 {
        1.0 / (self.d as f64).sqrt()
    }
    /// Heads of queries that share a head of keys.
    pub(super) fn group(&self) -> usize {
        self.heads / self.key_heads
    }
    /// The (sequence, head of keys) that a (sequence, head of queries) sees.
    pub(super) fn key_task(&self, task: usize) -> usize {
        task / self.heads * self.key_heads + task % self.heads / self.group()
    }
    /// The (sequence, head of queries) of a member of the group that sees a (sequence, head of
    /// keys).
    pub(super) fn member(&self, key_task: usize, member: usize) -> usize {
        let (sequence, head) = (key_task / self.key_heads, key_task % self.key_heads);
        sequence * self.heads + head * self.group() + member
    }
    /// The same for keys and values.
    pub(super) fn of_keys(self) -> Self {
        Self { heads: self.key_heads, ..self }
    }
    /// Offset of a token of (sequence, head) in a (B, T, C) tensor.
    pub(super) fn offset(&self, task: usize, token: usize) -> usize {
        (task / self.heads * self.t + token) * self.width() + task % self.heads * self.d
    }
    /// The `rows` × d matrix of (sequence, head) from token `first` on.
    pub(super) fn rows<'a, T: Real>(
        &self,
        x: &'a [T],
        task: usize,
        first: usize,
        rows: usize,
    ) -> Matrix<'a, T> {
        Matrix::strided(&x[self.offset(task, first)..], (rows, self.d), (self.width(), 1))
    }
    pub(super) fn tensor(&self) -> (usize, usize, usize) {
        (self.b, self.t, self.width())
    }
    /// Two products forward and four backward, over the keys that a query sees; what is computed
    /// again or masked is not counted.
    pub(super) fn work(&self, documents: Option<&PackedDocuments>, dtype: DType) -> Work {
        let row = 0..self.t;
        let parts = (0..self.b).flat_map(|sequence| parts_of(documents, sequence, &row));
        let seen: usize = parts.map(|part| part.len() * (part.len() + 1) / 2).sum();
        let operations = 4 * (seen * self.width()) as u64;
        let numbers = (self.b * self.t * dtype.size_in_bytes()) as u64;
        let (queries, keys) = (self.width() as u64, self.of_keys().width() as u64);
        let cost = |operations, times_queries, times_keys| Cost {
            operations,
            bytes: numbers * (times_queries * queries + times_keys * keys),
        };
        Work {
            name: "attention",
            shape: [self.b * self.heads, self.t, self.d],
            forward: cost(operations, 2, 2),
            backward: cost(2 * operations, 4, 4),
        }
    }
}
