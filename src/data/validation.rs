//! The windows on which every validation of a run, and of every run on the same data and block
//! size, is measured.

use super::batches::{Batch, read_windows, window_count};
use super::examples::Examples;
use super::shard::TokenShard;
use std::sync::Arc;

/// Windows spread evenly over the validation text, in order.
#[derive(Clone, Debug)]
pub struct ValidationSet {
    shard: Arc<TokenShard>,
    block_size: usize,
    windows: Vec<usize>,
    target_tokens: u64,
    target_bytes: u64,
    /// Where only some tokens count, the examples, of which `windows` has the numbers.
    examples: Option<Arc<Examples>>,
}

impl ValidationSet {
    /// n = ⌊`tokens` / `block_size`⌋ windows of `block_size` tokens, at least one and at most all N
    /// there are: window ⌊iN/n⌋ for i < n, so that every part of the text counts. Where only some
    /// tokens count, the windows are examples, N of them with M tokens that count, and n =
    /// ⌊N · `tokens` / M⌋.
    ///
    /// `token_byte_lengths[token]` is the number of UTF-8 bytes a token stands for (0 for tokens
    /// past the end of the list); see [`TokenShard::text_bytes`].
    ///
    /// # Errors
    /// When the shard is too short for one window.
    pub fn new(
        shard: Arc<TokenShard>,
        block_size: usize,
        tokens: u64,
        token_byte_lengths: &[u32],
    ) -> anyhow::Result<Self> {
        let examples = Examples::of(&shard, block_size, "validation")?.map(Arc::new);
        let (available, wanted) = match &examples {
            None => {
                let available = window_count(&shard, block_size, "validation")?;
                (available, u128::from(tokens / block_size as u64))
            }
            Some(examples) => {
                let (available, all) = (examples.count(), examples.trained(0..examples.count()));
                (available, available as u128 * u128::from(tokens) / u128::from(all.max(1)))
            }
        };
        let wanted = wanted.max(1);
        let count = usize::try_from(wanted).map_or(available, |wanted| wanted.min(available));
        let windows: Vec<usize> =
            (0..count).map(|i| (i as u128 * available as u128 / count as u128) as usize).collect();
        if let Some(examples) = examples {
            let bytes = |number: &usize| examples.target_bytes(&shard, *number, token_byte_lengths);
            let target_bytes = windows.iter().map(bytes).sum();
            let target_tokens = examples.trained(windows.iter().copied());
            let examples = Some(examples);
            return Ok(Self { shard, block_size, windows, target_tokens, target_bytes, examples });
        }
        let target_bytes: f64 = windows
            .iter()
            .map(|window| shard.text_bytes(window * block_size + 1, block_size, token_byte_lengths))
            .sum();
        let target_bytes = target_bytes.round() as u64;
        let target_tokens = (windows.len() * block_size) as u64;
        Ok(Self { shard, block_size, windows, target_tokens, target_bytes, examples: None })
    }

    /// The windows in batches of `batch_size`, the last of which may be smaller.
    ///
    /// # Panics
    /// When `batch_size` is 0.
    pub fn batches(&self, batch_size: usize) -> impl Iterator<Item = anyhow::Result<Batch>> + '_ {
        assert!(batch_size > 0, "validation in batches of 0");
        self.windows.chunks(batch_size).map(|windows| match &self.examples {
            None => read_windows(&self.shard, self.block_size, windows),
            Some(examples) => examples.batch(&self.shard, windows, 1.0),
        })
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// Tokens to predict that count.
    pub fn target_tokens(&self) -> u64 {
        self.target_tokens
    }

    /// UTF-8 bytes of the text of the tokens to predict; 0 where they are not known.
    pub fn target_bytes(&self) -> u64 {
        self.target_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(length: usize, tokens: u64) -> anyhow::Result<ValidationSet> {
        let shard = Arc::new(TokenShard::from_tokens((0..length as u32).collect()));
        ValidationSet::new(shard, 4, tokens, &[1; 20])
    }

    #[test]
    fn the_batch_size_does_not_change_what_is_measured() {
        let set = set(42, 31).unwrap();
        let rows = |batch_size| -> Vec<Vec<u32>> {
            set.batches(batch_size)
                .flat_map(|batch| batch.unwrap().targets.to_vec2::<u32>().unwrap())
                .collect()
        };
        // Seven of the ten windows: 0, 1, 2, 4, 5, 7, 8.
        assert_eq!(set.target_tokens(), 28);
        let expected = [0, 1, 2, 4, 5, 7, 8]
            .map(|window| (4 * window + 1..=4 * window + 4).collect::<Vec<u32>>());
        assert_eq!(rows(1), expected);
        for batch_size in [2, 3, 7, 100] {
            assert_eq!(rows(batch_size), rows(1));
        }
    }

    #[test]
    fn bytes_count_the_targets_only() {
        // Targets are the tokens 1 to 12, 17 to 24, 29 to 36; those from 20 on have no length.
        assert_eq!(set(42, 28).unwrap().target_bytes(), 15);
    }

    #[test]
    fn at_least_one_window_and_at_most_all() {
        assert_eq!(set(42, 0).unwrap().target_tokens(), 4);
        assert_eq!(set(42, u64::MAX).unwrap().target_tokens(), 40);
        let error = set(4, 100).unwrap_err().to_string();
        assert!(error.contains("validation") && error.contains("needs 5"), "{error}");
    }
}
