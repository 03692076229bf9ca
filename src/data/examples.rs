//! The examples of a shard with a mask, as rows of batches.
//!
//! The tokens of an example see nothing of another, and their positions count from its start,
//! whatever the network's positions are. Either an example is a row of its own, and a batch is as
//! wide as its longest example; or a row has several (`Packing`), and the batch says where each
//! begins.

use super::batches::{Batch, Trained};
use super::shard::TokenShard;
use candle_core::{Device, Tensor};

/// An example as far as it fits a row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Example {
    /// Its first token in the shard.
    start: usize,
    /// Tokens it predicts, whether they count or not.
    positions: usize,
    /// Those of them that count.
    trained: usize,
}

/// The examples that have something to train on within a row.
#[derive(Clone, Debug)]
pub(super) struct Examples {
    examples: Vec<Example>,
}

impl Examples {
    /// The examples of a shard, cut after `block_size` + 1 tokens; `None` for a shard all of whose
    /// tokens are trained on. How many are cut and left out is said.
    ///
    /// # Errors
    /// When none is left; `part` names the shard.
    pub(super) fn of(
        shard: &TokenShard,
        block_size: usize,
        part: &str,
    ) -> anyhow::Result<Option<Self>> {
        let Some((documents, mask)) = shard.masked_documents() else { return Ok(None) };
        anyhow::ensure!(block_size > 0, "model.block_size must be at least 1");
        let (mut examples, mut cut, mut left_out, mut longest) = (Vec::new(), 0, 0, 0);
        for (start, tokens) in documents {
            let positions = tokens.saturating_sub(1).min(block_size);
            let targets = start + 1..start + 1 + positions;
            let trained = targets.filter(|token| mask.is_trained(*token)).count();
            longest = longest.max(tokens);
            if trained == 0 {
                left_out += 1;
                continue;
            }
            cut += usize::from(tokens > positions + 1);
            examples.push(Example { start, positions, trained });
        }
        let count = examples.len();
        anyhow::ensure!(
            count > 0,
            "none of the {left_out} {part} examples has a token to train on within \
             model.block_size {block_size}; give examples with answers, or a larger block"
        );
        if cut + left_out > 0 {
            tracing::warn!(
                "{part}: {count} examples, {cut} of them cut to model.block_size {block_size} (the \
                 longest has {longest} tokens); {left_out} more have no answer within it and are \
                 left out"
            );
        }
        Ok(Some(Self { examples }))
    }

    /// Tokens that each example predicts, whether they count or not.
    pub(super) fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(|example| example.positions).collect()
    }

    /// Number of examples.
    pub(super) fn count(&self) -> usize {
        self.examples.len()
    }

    /// Tokens of some examples that count.
    pub(super) fn trained(&self, numbers: impl IntoIterator<Item = usize>) -> u64 {
        numbers.into_iter().map(|number| self.examples[number].trained as u64).sum()
    }

    /// Puts examples of like length together: by length, then by place in the shard.
    pub(super) fn sort_by_length(&self, numbers: &mut [usize]) {
        numbers.sort_by_key(|number| (self.examples[*number].positions, *number));
    }

    /// The same for rows of several, by the length of all.
    pub(super) fn sort_rows_by_length(&self, rows: &mut [Vec<usize>]) {
        rows.sort_by_cached_key(|row| (self.width(row), row.clone()));
    }

    /// Tokens that the examples of a row predict.
    fn width(&self, row: &[usize]) -> usize {
        row.iter().map(|number| self.examples[*number].positions).sum()
    }

    /// UTF-8 bytes of the targets of an example that count.
    pub(super) fn target_bytes(&self, shard: &TokenShard, number: usize, lengths: &[u32]) -> u64 {
        let (tokens, trained) = self.read(shard, number);
        let length = |token: u32| lengths.get(token as usize).copied().map_or(0, u64::from);
        trained.iter().map(|position| length(tokens[position + 1])).sum()
    }

    /// An example's tokens, and the positions whose next token counts.
    fn read(&self, shard: &TokenShard, number: usize) -> (Vec<u32>, Vec<usize>) {
        let Example { start, positions, .. } = self.examples[number];
        let tokens = shard.read(start, positions + 1);
        let trained =
            (0..positions).filter(|position| shard.is_trained(start + position + 1)).collect();
        (tokens, trained)
    }

    /// Some examples as the rows of a batch, filled up with token 0, which nothing before it sees
    /// and whose loss does not count; losses are divided by `divisor`.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub(super) fn batch(
        &self,
        shard: &TokenShard,
        numbers: &[usize],
        divisor: f64,
    ) -> anyhow::Result<Batch> {
        let rows: Vec<&[usize]> = numbers.iter().map(std::slice::from_ref).collect();
        Ok(Batch { positions: None, ..self.rows(shard, &rows, divisor)? })
    }

    /// The same with several examples in a row, one behind the other; what a row is filled up with
    /// are documents of one token.
    ///
    /// # Errors
    /// As for [`Self::batch`].
    pub(super) fn packed_batch(
        &self,
        shard: &TokenShard,
        rows: &[Vec<usize>],
        divisor: f64,
    ) -> anyhow::Result<Batch> {
        let rows: Vec<&[usize]> = rows.iter().map(Vec::as_slice).collect();
        self.rows(shard, &rows, divisor)
    }

    fn rows(&self, shard: &TokenShard, rows: &[&[usize]], divisor: f64) -> anyhow::Result<Batch> {
        let width = rows.iter().map(|row| self.width(row)).max().unwrap_or(0);
        let zeros = || vec![0u32; rows.len() * width];
        let (mut inputs, mut targets, mut positions) = (zeros(), zeros(), zeros());
        let mut places = Vec::new();
        for (row, numbers) in rows.iter().enumerate() {
            let mut first = row * width;
            for number in *numbers {
                let (tokens, trained) = self.read(shard, *number);
                let end = first + tokens.len() - 1;
                inputs[first..end].copy_from_slice(&tokens[..end - first]);
                targets[first..end].copy_from_slice(&tokens[1..]);
                (0..).zip(&mut positions[first..end]).for_each(|(place, to)| *to = place);
                places.extend(trained.iter().map(|position| (first + position) as u32));
                first = end;
            }
        }
        let tensor = |ids: Vec<u32>| Tensor::from_vec(ids, (rows.len(), width), &Device::Cpu);
        Ok(Batch {
            inputs: tensor(inputs)?,
            targets: tensor(targets)?,
            trained: Some(Trained { rows: Tensor::new(places, &Device::Cpu)?, divisor }),
            positions: Some(tensor(positions)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Batches, Dataset, ValidationSet, prepare};
    use crate::spec::DataSpec;
    use std::sync::Arc;

    /// Prompts and completions of the lengths given, in bytes with the end, one after the other.
    fn dataset(lengths: &[(usize, usize)]) -> Dataset {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let lines = lengths.iter().map(|(prompt, completion)| {
            let (prompt, completion) = ("p".repeat(*prompt), "c".repeat(*completion - 1));
            format!("{{\"prompt\": \"{prompt}\", \"completion\": \"{completion}\"}}\n")
        });
        std::fs::write(&path, lines.collect::<String>()).unwrap();
        let spec: DataSpec = serde_json::from_value(serde_json::json!({
            "source": { "instructions": { "train": [&path], "val": [&path] } }, "tokenizer": "bytes"
        }))
        .unwrap();
        prepare(&spec, &folder.path().join("data")).unwrap()
    }

    /// Inputs of each row, and the inputs at which the next token counts, by place.
    fn rows(batch: &Batch) -> (Vec<Vec<u32>>, Vec<u32>) {
        let trained = batch.trained.as_ref().unwrap();
        (batch.inputs.to_vec2().unwrap(), trained.rows.to_vec1().unwrap())
    }

    #[test]
    fn examples_are_rows_with_targets_that_count() {
        let dataset = dataset(&[(3, 2), (1, 4), (2, 2)]);
        assert_eq!((dataset.summary.train_tokens, dataset.summary.train_trained), (14, Some(8)));
        let examples = Examples::of(&dataset.train, 8, "training").unwrap().unwrap();
        let batch = examples.batch(&dataset.train, &[0, 1, 2], 8.0).unwrap();
        let [p, c] = [u32::from(b'p'), u32::from(b'c')];
        let (inputs, places) = rows(&batch);
        assert_eq!(inputs, [[p, p, p, c], [p, c, c, c], [p, p, c, 0]]);
        assert_eq!(places, [2, 3, 4, 5, 6, 7, 9, 10]);
        let end = u32::from(b'\n');
        let targets: Vec<Vec<u32>> = batch.targets.to_vec2().unwrap();
        assert_eq!(targets, [[p, p, c, end], [c, c, c, end], [p, c, end, 0]]);
    }

    #[test]
    fn long_examples_are_cut_and_those_without_an_answer_left_out() {
        let dataset = dataset(&[(3, 2), (1, 9), (7, 3)]);
        let examples = Examples::of(&dataset.train, 6, "training").unwrap().unwrap();
        assert_eq!((examples.count(), examples.trained([0, 1])), (2, 2 + 6));
        let (inputs, _) = rows(&examples.batch(&dataset.train, &[1], 1.0).unwrap());
        assert_eq!(inputs[0].len(), 6);
        let error = Examples::of(&dataset.train, 2, "training");
        assert_eq!(error.unwrap().unwrap().count(), 1);
        let answerless = dataset_error();
        assert!(answerless.contains("none of the 1 training examples"), "{answerless}");
    }

    fn dataset_error() -> String {
        let dataset = dataset(&[(7, 3)]);
        let error = Batches::new(Arc::new(dataset.train), 3, 1, 1, 0).unwrap_err();
        error.to_string()
    }

    /// Whatever the split of a step: its examples, its trained tokens, and the weight of each.
    #[test]
    fn the_split_of_a_step_changes_neither_examples_nor_weights() {
        let lengths: Vec<(usize, usize)> = (0..13).map(|i| (1 + i % 5, 2 + i * 7 % 6)).collect();
        let train = Arc::new(dataset(&lengths).train);
        for step in 0..4 {
            let mut seen = Vec::new();
            for (batch_size, micro) in [(6, 1), (3, 2), (2, 3), (1, 6)] {
                let batches = Batches::new(train.clone(), 16, batch_size, micro, 5).unwrap();
                assert_eq!(batches.windows(), 13);
                let (mut inputs, mut count, mut weight) = (Vec::new(), 0, 0.0);
                for micro_batch in 0..micro {
                    let batch = batches.at(step, micro_batch).unwrap();
                    let (rows, places) = rows(&batch);
                    count += places.len() as u64;
                    weight += places.len() as f64 / batch.trained.unwrap().divisor / micro as f64;
                    inputs.extend(rows.into_iter().map(|row| {
                        row.into_iter().filter(|token| *token != 0).collect::<Vec<_>>()
                    }));
                }
                assert_eq!(Some(count), batches.trained_tokens(step));
                assert!((weight - 1.0).abs() < 1e-12);
                inputs.sort();
                seen.push((inputs, count));
            }
            assert!(seen.iter().all(|other| *other == seen[0]), "step {step}");
        }
    }

    #[test]
    fn validation_counts_what_is_trained_on() {
        let dataset = dataset(&[(3, 2), (1, 4), (2, 2), (9, 4)]);
        let (val, lengths) = (Arc::new(dataset.val), vec![1; 256]);
        let set = |tokens| ValidationSet::new(val.clone(), 16, tokens, &lengths).unwrap();
        let all = set(1000);
        assert_eq!((all.windows(), all.target_tokens(), all.target_bytes()), (4, 12, 12));
        // Half of the tokens, so half of the examples: 0 and 2.
        assert_eq!((set(6).windows(), set(6).target_tokens()), (2, 4));
        assert_eq!(set(0).windows(), 1);
    }
}
