//! The figures of a benchmark.

use super::by_operation::OperationTable;
use super::low_rank_parts::LowRankParts;
use super::product_peak::ProductPeak;
use crate::account::{Ledger, MemoryLedger};
use crate::figures::{self, bytes, count};
use crate::spec::Plan;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What a benchmark found; the JSON of `lrpt bench --json`, where every time is in seconds and
/// every size in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name in the spec.
    pub name: String,
    /// Where it was computed.
    pub device: String,
    /// Type of the large products: `f32` or `bf16`.
    pub compute_dtype: &'static str,
    /// Computing threads.
    pub threads: usize,
    /// Whether this is an unoptimised build, whose times are meaningless.
    pub debug_build: bool,
    /// Sizes of the network and of a step.
    pub shape: Shape,
    /// Trained numbers.
    pub parameters: u64,
    /// Mean rank after the last step; absent where nothing is low-rank.
    pub rank_mean: Option<f64>,
    /// Steps that were timed.
    pub timed_steps: u64,
    /// Loss of the last step, in nats; for random tokens the best possible is ln V.
    pub loss: f64,
    /// Tokens per step divided by the seconds of the median step.
    pub tokens_per_second: f64,
    /// Tokens per step divided by the seconds of the best step.
    pub tokens_per_second_best: f64,
    /// Where the time goes.
    pub seconds_per_step: SecondsPerStep,
    /// Mean seconds of the low-rank optimizer divided by mean seconds of the step.
    pub low_rank_optimizer_share: f64,
    /// Seconds of the parts of a low-rank step; absent where nothing is low-rank, or all of it is dense
    /// until it is cut.
    pub low_rank_parts: Option<LowRankParts>,
    /// Operations counted, and their rate.
    pub operations: Operations,
    /// Memory measured and predicted.
    pub memory: Memory,
    /// Forward and backward operation by operation, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_operation: Option<OperationTable>,
}

/// Sizes that a comparison with another program needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Transformer blocks.
    pub n_layer: usize,
    /// Heads per block.
    pub n_head: usize,
    /// Width.
    pub n_embd: usize,
    /// Context length.
    pub block_size: usize,
    /// Vocabulary.
    pub vocabulary_size: usize,
    /// Sequences per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step.
    pub gradient_accumulation_steps: usize,
    /// Tokens per step.
    pub tokens_per_step: u64,
}

impl Shape {
    /// The sizes of a plan.
    pub fn new(plan: &Plan, vocabulary_size: usize) -> Self {
        Self {
            n_layer: plan.model.n_layer,
            n_head: plan.model.n_head,
            n_embd: plan.model.n_embd,
            block_size: plan.model.block_size,
            vocabulary_size,
            batch_size: plan.train.batch_size,
            gradient_accumulation_steps: plan.train.gradient_accumulation_steps,
            tokens_per_step: plan.tokens_per_step,
        }
    }
}

/// Seconds of a step: mean of each phase, and of the whole step the mean, the median and the best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SecondsPerStep {
    /// Reading and stacking batches.
    pub data: f64,
    /// Forward passes of all micro-batches.
    pub forward: f64,
    /// Backward passes of all micro-batches.
    pub backward: f64,
    /// AdamW on everything dense or factored.
    pub dense_optimizer: f64,
    /// The low-rank step with its projections, QR, polar factor, transport and truncation, and the
    /// gradient norm.
    pub low_rank_optimizer: f64,
    /// Mean of the whole step.
    pub mean: f64,
    /// Median of the whole step.
    pub median: f64,
    /// Best whole step.
    pub best: f64,
}

/// The rate of a step's operations, compared with the rate of products in the same process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Operations {
    /// Counted operations of a step: model, head, attention, low-rank optimizer with its
    /// augmentation.
    pub flops_per_step: u64,
    /// Those of the low-rank optimizer.
    pub low_rank_optimizer_flops_per_step: u64,
    /// Operations of a step divided by the seconds of the median step.
    pub flops_per_second: f64,
    /// The highest product rate.
    pub product_peak: ProductPeak,
    /// `flops_per_second` divided by the product peak of the same device and type: the model FLOP
    /// utilisation (MFU) relative to what products reach here.
    pub share_of_product_peak: f64,
    /// The same for the best step.
    pub share_of_product_peak_best: f64,
}

impl Operations {
    /// The operations that the ledger counts, at these times.
    pub fn new(ledger: &Ledger, seconds: &SecondsPerStep, product_peak: ProductPeak) -> Self {
        let flops = ledger.flops_per_step() as f64;
        Self {
            flops_per_step: ledger.flops_per_step(),
            low_rank_optimizer_flops_per_step: ledger.flops.low_rank_optimizer_per_step,
            flops_per_second: flops / seconds.median,
            share_of_product_peak: flops / seconds.median / product_peak.flops_per_second,
            share_of_product_peak_best: flops / seconds.best / product_peak.flops_per_second,
            product_peak,
        }
    }
}

/// Memory of the process, and the ledger's prediction for the training alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Largest resident size of the process after the timed steps; absent where the system does not
    /// report it.
    pub peak: Option<u64>,
    /// Resident size before the network existed: the program itself.
    pub before: Option<u64>,
    /// The most memory that tensors took on a device; absent on the CPU, and where the driver does
    /// not report it.
    pub device_peak: Option<u64>,
    /// The ledger's peak.
    pub predicted_peak: u64,
    /// Its parts: weights.
    pub predicted_weights: u64,
    /// Gradients.
    pub predicted_gradients: u64,
    /// Optimizer moments.
    pub predicted_moments: u64,
    /// Activations of a micro-batch kept for its backward.
    pub predicted_activations: u64,
    /// Transients of the backward pass.
    pub predicted_backward: u64,
    /// Transients of the low-rank step: new weights and moments beside the old ones, and
    /// augmentation.
    pub predicted_optimizer: u64,
}

impl Memory {
    /// A measurement together with the ledger's prediction.
    pub fn new(
        ledger: &MemoryLedger,
        measured: &BTreeMap<&'static str, u64>,
        before: Option<u64>,
    ) -> Self {
        Self {
            peak: measured.get("peak").copied(),
            before,
            device_peak: measured.get("device_peak").copied(),
            predicted_peak: ledger.peak(),
            predicted_weights: ledger.weights,
            predicted_gradients: ledger.gradients,
            predicted_moments: ledger.moments,
            predicted_activations: ledger.activations,
            predicted_backward: ledger.backward,
            predicted_optimizer: ledger.optimizer,
        }
    }
}

/// The median; for an even number of values, the mean of the two in the middle. Sorts the values.
/// NaN if there are none.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count => (values[(count - 1) / 2] + values[count / 2]) / 2.0,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { shape, seconds_per_step: seconds, operations, memory, .. } = self;
        let products = self.compute_dtype;
        writeln!(
            f,
            "{}: {} parameters on {} with {} threads, products in {products}",
            self.name,
            count(self.parameters as f64),
            self.device,
            self.threads
        )?;
        writeln!(
            f,
            "a step of {} tokens ({} x {} x {}), median of {}: {:.4} s",
            shape.tokens_per_step,
            shape.gradient_accumulation_steps,
            shape.batch_size,
            shape.block_size,
            self.timed_steps,
            seconds.median
        )?;
        writeln!(f, "\nseconds per step (mean){:>12}{:>8}", "", "share")?;
        let phases = [
            ("data", seconds.data),
            ("forward", seconds.forward),
            ("backward", seconds.backward),
            ("dense optimizer", seconds.dense_optimizer),
            ("low-rank optimizer", seconds.low_rank_optimizer),
        ];
        let rest = seconds.mean - phases.iter().map(|(_, time)| time).sum::<f64>();
        for (name, time) in phases.into_iter().chain([("rest", rest), ("in all", seconds.mean)]) {
            writeln!(f, "  {name:<22}{time:>11.4}{:>7.1}%", 100.0 * time / seconds.mean)?;
        }
        if let Some(parts) = &self.low_rank_parts {
            writeln!(f, "\nlow-rank step by part")?;
            let parts = [
                ("projection", parts.projection),
                ("basis QR", parts.basis_qr),
                ("polar factor", parts.polar),
                ("retraction", parts.retraction),
                ("transport", parts.transport),
                ("(truncating SVD)", parts.truncation_svd),
            ];
            for (name, time) in parts {
                writeln!(f, "  {name:<22}{time:>11.4}")?;
            }
        }
        let line = |f: &mut fmt::Formatter<'_>, name: &str, value: String| {
            writeln!(f, "  {name:<22}{value}")
        };
        writeln!(f, "\ntokens per second")?;
        line(f, "median", count(self.tokens_per_second))?;
        line(f, "best", count(self.tokens_per_second_best))?;

        let (rows, inner, columns) = operations.product_peak.shape;
        let rate = |value: f64| format!("{} per second", figures::operations(value));
        writeln!(f, "\noperations (counted matrix products)")?;
        line(f, "per step", figures::operations(operations.flops_per_step as f64))?;
        line(
            f,
            "of the low-rank step",
            figures::operations(operations.low_rank_optimizer_flops_per_step as f64),
        )?;
        line(f, "rate", rate(operations.flops_per_second))?;
        line(f, "product peak", {
            let ProductPeak { flops_per_second, dtype, .. } = operations.product_peak;
            format!("{} ({rows} x {inner} x {columns} in {dtype})", rate(flops_per_second))
        })?;
        line(
            f,
            "share of the peak",
            format!(
                "{:.3} (best step {:.3})",
                operations.share_of_product_peak, operations.share_of_product_peak_best
            ),
        )?;

        let size = |value: Option<u64>| value.map_or("unknown on this system".to_owned(), bytes);
        writeln!(f, "\nmemory")?;
        line(f, "peak, measured", size(memory.peak))?;
        line(f, "before the network", size(memory.before))?;
        if let Some(bytes_on_device) = memory.device_peak {
            line(f, "peak on the device", bytes(bytes_on_device))?;
        }
        write!(f, "  {:<22}{}", "peak, the ledger's", bytes(memory.predicted_peak))?;
        self.by_operation.iter().try_for_each(|table| write!(f, "\n\n{table}"))
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_of_odd_and_even_counts() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&mut [7.0]), 7.0);
        assert!(median(&mut []).is_nan());
    }
}
