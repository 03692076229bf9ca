//! Training batches as a pure function of (seed, step, micro-batch).

use super::examples::Examples;
use super::packing::Packing;
use super::permutation::Permutation;
use super::shard::TokenShard;
use crate::rng;
use anyhow::Context;
use candle_core::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Sequences of one micro-batch, on the CPU. B sequences of T tokens.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Tokens read, (B, T) u32.
    pub inputs: Tensor,
    /// Tokens to predict, (B, T) u32: `inputs` shifted by one.
    pub targets: Tensor,
    /// Which of them count, where not all do.
    pub trained: Option<Trained>,
    /// Where rows have several documents: the position of every token within its own, (B, T) u32.
    pub positions: Option<Tensor>,
}

/// The targets of a batch that count.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Their places in the flattened (B, T), ascending, u32.
    pub rows: Tensor,
    /// What the sum of their losses is divided by: the step's trained tokens per micro-batch, so
    /// that the mean over micro-batches is the mean over all trained tokens of the step.
    pub divisor: f64,
}

impl Batch {
    /// The same on another device; positions stay here, where a pass reads the documents from them.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn to_device(&self, device: &Device) -> candle_core::Result<Self> {
        let trained = self.trained.as_ref().map(|Trained { rows, divisor }| {
            Ok::<_, candle_core::Error>(Trained {
                rows: rows.to_device(device)?,
                divisor: *divisor,
            })
        });
        Ok(Self {
            inputs: self.inputs.to_device(device)?,
            targets: self.targets.to_device(device)?,
            trained: trained.transpose()?,
            positions: self.positions.clone(),
        })
    }
}

/// The order in which a run sees its training text.
///
/// Window w reads the tokens [wT, (w+1)T) and predicts [wT + 1, (w+1)T + 1); there are ⌊(tokens −
/// 1)/T⌋ windows. The g-th sequence of the run, g = (step · accumulation + micro) · B + row, is
/// window π_e(g mod windows) of epoch e = ⌊g / windows⌋, where π_e is a permutation keyed by (seed,
/// e). So every window is seen once per epoch, also where a batch reaches into the next one, there
/// is no state to save, and how a step is split into micro-batches does not change what it sees.
///
/// Where only some tokens are trained on, the windows are the examples, each a row of its own
/// (`Examples`); those of a step are dealt to its micro-batches by length, which changes neither
/// what the step sees nor its loss, only how much of a batch is filled up. Packed
/// ([`Self::packed`]), the windows are rows of several examples, which ones a function of (seed, e)
/// (`Packing`).
#[derive(Clone, Debug)]
pub struct Batches {
    shard: Arc<TokenShard>,
    block_size: usize,
    batch_size: usize,
    micro_batches: usize,
    seed: u64,
    windows: u64,
    /// Where only some tokens are trained on.
    examples: Option<Arc<Examples>>,
    /// Where several of them share a row.
    packing: Option<Arc<Packing>>,
}

impl Batches {
    /// Batches of `batch_size` sequences of `block_size` tokens, `gradient_accumulation_steps` of
    /// them per step.
    ///
    /// # Errors
    /// When a size is 0, or the shard is too short for one window.
    pub fn new(
        shard: Arc<TokenShard>,
        block_size: usize,
        batch_size: usize,
        gradient_accumulation_steps: usize,
        seed: u64,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(batch_size > 0, "train.batch_size must be at least 1");
        anyhow::ensure!(
            gradient_accumulation_steps > 0,
            "train.gradient_accumulation_steps must be at least 1"
        );
        let examples = Examples::of(&shard, block_size, "training")?.map(Arc::new);
        let windows = match &examples {
            Some(examples) => examples.count(),
            None => window_count(&shard, block_size, "training")?,
        } as u64;
        Ok(Self {
            shard,
            block_size,
            batch_size,
            micro_batches: gradient_accumulation_steps,
            seed,
            windows,
            examples,
            packing: None,
        })
    }

    /// The same with several examples in a row; how full the rows are is said.
    ///
    /// # Errors
    /// When all tokens are trained on: such a text has no examples.
    pub fn packed(mut self) -> anyhow::Result<Self> {
        let examples = self.examples.as_ref().context("only instruction data can be packed")?;
        let packing = Packing::new(&examples.lengths(), self.block_size);
        let rows = packing.count();
        tracing::info!(
            "training: {} examples are packed into {rows} rows of {} tokens, {:.1}% full; one in \
             each would fill {:.1}%",
            examples.count(),
            self.block_size,
            100.0 * packing.filled(self.block_size),
            100.0 * packing.filled(self.block_size) * rows as f64 / examples.count() as f64
        );
        self.windows = rows as u64;
        self.packing = Some(Arc::new(packing));
        Ok(self)
    }

    /// The same text and sizes in the order of another seed.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The text.
    pub fn text(&self) -> Arc<TokenShard> {
        Arc::clone(&self.shard)
    }

    /// Sequences in an epoch.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// Micro-batch `micro` (from 0) of step `step` (from 0).
    ///
    /// # Errors
    /// When `micro` is not below the number of micro-batches, or a tensor cannot be made.
    pub fn at(&self, step: u64, micro: usize) -> anyhow::Result<Batch> {
        anyhow::ensure!(
            micro < self.micro_batches,
            "micro-batch {micro} of a step with {}",
            self.micro_batches
        );
        let divisor = |trained: u64| trained as f64 / self.micro_batches as f64;
        let own = micro * self.batch_size..(micro + 1) * self.batch_size;
        match (&self.examples, &self.packing) {
            (None, _) => {
                let order = self.order(step, micro..micro + 1);
                read_windows(&self.shard, self.block_size, &order)
            }
            (Some(examples), None) => {
                let mut order = self.order(step, 0..self.micro_batches);
                let divisor = divisor(examples.trained(order.iter().copied()));
                examples.sort_by_length(&mut order);
                examples.batch(&self.shard, &order[own], divisor)
            }
            (Some(examples), Some(packing)) => {
                let mut rows = self.packed_rows(step, packing);
                let divisor = divisor(examples.trained(rows.iter().flatten().copied()));
                examples.sort_rows_by_length(&mut rows);
                examples.packed_batch(&self.shard, &rows[own], divisor)
            }
        }
    }

    /// Tokens that step `step` (from 0) is trained on; `None` where that is all of its windows.
    pub fn trained_tokens(&self, step: u64) -> Option<u64> {
        let examples = self.examples.as_ref()?;
        Some(match &self.packing {
            None => examples.trained(self.order(step, 0..self.micro_batches)),
            Some(packing) => examples.trained(self.packed_rows(step, packing).concat()),
        })
    }

    /// The examples of each row of a step.
    fn packed_rows(&self, step: u64, packing: &Packing) -> Vec<Vec<usize>> {
        let order = self.order_by_epoch(step, 0..self.micro_batches);
        order.into_iter().map(|(epoch, row)| packing.row(self.seed, epoch, row)).collect()
    }

    /// The windows of some micro-batches of a step.
    fn order(&self, step: u64, micro: Range<usize>) -> Vec<usize> {
        self.order_by_epoch(step, micro).into_iter().map(|(_, window)| window).collect()
    }

    /// The epoch and window of every sequence of some micro-batches of a step.
    fn order_by_epoch(&self, step: u64, micro: Range<usize>) -> Vec<(u64, usize)> {
        let at = |micro: usize| {
            (step * self.micro_batches as u64 + micro as u64) * self.batch_size as u64
        };
        let mut epoch = None;
        let mut order = Vec::with_capacity(micro.len() * self.batch_size);
        for sequence in at(micro.start)..at(micro.end) {
            let number = sequence / self.windows;
            let (_, permutation) = match epoch.take() {
                Some((known, permutation)) if known == number => epoch.insert((known, permutation)),
                _ => epoch.insert((number, self.epoch(number))),
            };
            order.push((number, permutation.at(sequence % self.windows) as usize));
        }
        order
    }

    fn epoch(&self, number: u64) -> Permutation {
        Permutation::new(self.windows, rng::key64(self.seed, "data order", &[number]))
    }
}

/// Windows of `block_size` tokens, and one token more to predict, in a shard.
///
/// # Errors
/// When there is none; `part` names the shard.
pub(super) fn window_count(
    shard: &TokenShard,
    block_size: usize,
    part: &str,
) -> anyhow::Result<usize> {
    anyhow::ensure!(block_size > 0, "model.block_size must be at least 1");
    let windows = shard.len().saturating_sub(1) / block_size;
    anyhow::ensure!(
        windows > 0,
        "the {part} text has {} tokens, but one sequence of model.block_size {block_size} needs \
         {}; give more text or a smaller block",
        shard.len(),
        block_size + 1
    );
    Ok(windows)
}

/// Inputs and targets of windows, stacked in the order given.
pub(super) fn read_windows(
    shard: &TokenShard,
    block_size: usize,
    windows: &[usize],
) -> anyhow::Result<Batch> {
    let sequences = windows.iter().map(|window| {
        let tokens = shard.read(window * block_size, block_size + 1);
        let inputs = Tensor::new(&tokens[..block_size], &Device::Cpu)?;
        let targets = Tensor::new(&tokens[1..], &Device::Cpu)?;
        Ok((inputs, targets))
    });
    let (inputs, targets) = stack(sequences, windows.len())?;
    Ok(Batch { inputs, targets, trained: None, positions: None })
}

#[cfg(feature = "datasets")]
fn stack(
    sequences: impl Iterator<Item = candle_core::Result<(Tensor, Tensor)>>,
    batch_size: usize,
) -> candle_core::Result<(Tensor, Tensor)> {
    let mut batcher = candle_datasets::Batcher::new_r2(sequences).batch_size(batch_size);
    batcher.next().unwrap_or_else(|| candle_core::bail!("a batch of {batch_size} sequences"))
}

#[cfg(not(feature = "datasets"))]
fn stack(
    sequences: impl Iterator<Item = candle_core::Result<(Tensor, Tensor)>>,
    batch_size: usize,
) -> candle_core::Result<(Tensor, Tensor)> {
    let (inputs, targets): (Vec<_>, Vec<_>) =
        sequences.collect::<candle_core::Result<Vec<_>>>()?.into_iter().unzip();
    if inputs.len() != batch_size || inputs.is_empty() {
        candle_core::bail!("a batch of {batch_size} sequences, {} given", inputs.len())
    }
    Ok((Tensor::stack(&inputs, 0)?, Tensor::stack(&targets, 0)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Token i is i, so that a sequence's first token says which window it is.
    fn counting(tokens: usize) -> Arc<TokenShard> {
        Arc::new(TokenShard::from_tokens((0..tokens as u32).collect()))
    }

    fn rows(batch: &Batch) -> Vec<Vec<u32>> {
        batch.inputs.to_vec2().unwrap()
    }

    /// The first `count` sequences of a run.
    fn sequences(batches: &Batches, count: usize) -> Vec<Vec<u32>> {
        let steps = count.div_ceil(batches.batch_size * batches.micro_batches) as u64;
        let micro = batches.micro_batches;
        let mut all: Vec<_> = (0..steps)
            .flat_map(|step| (0..micro).flat_map(move |m| rows(&batches.at(step, m).unwrap())))
            .collect();
        all.truncate(count);
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_window_once_per_epoch(windows in 1usize..60, spare in 1usize..5, batch in 1usize..7, micro in 1usize..4, seed: u64) {
            let block = 4;
            let batches = Batches::new(counting(windows * block + spare.min(block)), block, batch, micro, seed).unwrap();
            prop_assert_eq!(batches.windows(), windows as u64);
            let seen = sequences(&batches, 3 * windows);
            for epoch in seen.chunks(windows) {
                let mut starts: Vec<u32> = epoch.iter().map(|row| row[0]).collect();
                starts.sort_unstable();
                prop_assert!(starts.into_iter().eq((0..windows).map(|window| (window * block) as u32)));
            }
        }

        #[test]
        fn the_split_into_batches_changes_nothing(windows in 1usize..60, batch in 1usize..7, micro in 1usize..4, seed: u64) {
            let shard = counting(windows * 3 + 1);
            let one = Batches::new(shard.clone(), 3, 1, 1, seed).unwrap();
            let other = Batches::new(shard, 3, batch, micro, seed).unwrap();
            let count = 2 * windows + 5;
            prop_assert_eq!(sequences(&one, count), sequences(&other, count));
        }
    }

    #[test]
    fn targets_are_inputs_shifted_by_one() {
        let batch = Batches::new(counting(101), 10, 4, 2, 3).unwrap().at(5, 1).unwrap();
        assert_eq!((batch.inputs.dims(), batch.targets.dims()), (&[4, 10][..], &[4, 10][..]));
        for (inputs, targets) in rows(&batch).iter().zip(batch.targets.to_vec2::<u32>().unwrap()) {
            assert_eq!(inputs[0] % 10, 0);
            assert!(inputs.windows(2).all(|pair| pair[1] == pair[0] + 1));
            assert!(inputs.iter().zip(&targets).all(|(input, target)| *target == input + 1));
        }
    }

    #[test]
    fn the_order_is_repeatable_and_differs_between_epochs_and_seeds() {
        let order = |seed| sequences(&Batches::new(counting(1001), 10, 5, 1, seed).unwrap(), 200);
        let once = order(1);
        assert_eq!(once, order(1));
        assert_ne!(once[..100], once[100..]);
        assert_ne!(once, order(2));
    }

    #[test]
    fn a_short_text_says_how_much_is_needed() {
        let error = Batches::new(counting(10), 10, 1, 1, 0).unwrap_err().to_string();
        assert!(error.contains("10 tokens") && error.contains("needs 11"), "{error}");
        assert!(Batches::new(counting(11), 10, 1, 1, 0).is_ok());
        assert!(Batches::new(counting(0), 10, 1, 1, 0).is_err());
    }

    #[test]
    fn a_micro_batch_past_the_last_is_refused() {
        assert!(Batches::new(counting(11), 10, 1, 2, 0).unwrap().at(0, 2).is_err());
    }
}
