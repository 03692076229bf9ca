//! What a plan costs: parameters, floating-point operations, memory. Counted from shapes, before
//! anything runs.
//!
//! The layers say what they cost ([`crate::model::cost`]), and so do the rules
//! ([`crate::optim::RuleCost`]); here it is summed.
//!
//! Legend: m × n a matrix, r its rank, C the width, H the heads, T the block size, V the
//! vocabulary, L the blocks; a multiply-add is two operations. Counted are matrix products (and
//! attention's, which see only the causal half); norms, activations, softmax and element-wise
//! updates are left out, as is usual for model FLOPs.
//!
//! ```text
//! parameters   numbers by group
//! operations   of a token, of a step, of the optimizer's own linear algebra
//! memory       bytes at once
//! wire         what processes that train together send each other
//! shards       what they hold and send where the optimizer is sharded over them
//! moved        a matrix as its rule sees it
//! ```

mod memory;
mod moved;
mod operations;
mod parameters;
mod shards;
#[cfg(test)]
mod tests;
mod wire;

use crate::figures::{bytes, grouped, operations};
use crate::spec::{
    AdapterForm, CutBudgetSpec, CutSpec, DlraSpec, FactorForm, Plan, RankPlan, Target, WeightForm,
    share_of_dense,
};
pub use memory::{LOGITS_PER_CHUNK, MemoryLedger};
pub use operations::FlopLedger;
pub use parameters::{ParameterLedger, TargetLedger};
pub use shards::ShardLedger;
use std::fmt;
pub use wire::WireLedger;

/// The whole account of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Ledger {
    /// Tokens in the vocabulary, V.
    pub vocabulary_size: u64,
    /// Numbers, trained or not.
    pub parameters: ParameterLedger,
    /// Floating-point operations.
    pub flops: FlopLedger,
    /// Bytes in f32.
    pub memory: MemoryLedger,
    /// Bytes between processes.
    pub wire: WireLedger,
    /// The same, and what each holds, where the optimizer is sharded over them.
    pub shards: Option<ShardLedger>,
    /// Tokens a step sees.
    pub tokens_per_step: u64,
    /// Steps of the run.
    pub max_steps: u64,
    /// Forward and backward passes over the tokens of a step, which are counted once however often
    /// they are passed.
    pub evaluations_per_step: u64,
    /// What cuts leave of all parameters, as far as it is known before they are made.
    pub after_cuts: Vec<(&'static str, String)>,
}

impl Ledger {
    /// Counts everything for a vocabulary of this size, with this many matrices in the optimizer's
    /// hands at a time (its threads).
    pub fn new(plan: &Plan, vocabulary_size: usize, threads: usize) -> Self {
        let vocabulary = vocabulary_size as u64;
        let parameters = ParameterLedger::new(&plan.model, vocabulary);
        Ledger {
            vocabulary_size: vocabulary,
            wire: WireLedger::new(plan, &parameters, vocabulary),
            shards: ShardLedger::new(plan, vocabulary),
            after_cuts: after_cuts(plan, &parameters),
            parameters,
            flops: FlopLedger::new(plan, vocabulary),
            memory: MemoryLedger::new(plan, vocabulary, threads as u64),
            tokens_per_step: plan.tokens_per_step,
            max_steps: plan.train.max_steps.0,
            evaluations_per_step: plan.optimizer.dlra().map_or(1, DlraSpec::evaluations_per_step),
        }
    }

    /// Tokens the run sees.
    pub fn total_tokens(&self) -> u64 {
        self.tokens_per_step.saturating_mul(self.max_steps)
    }

    /// Bytes that so many processes together send in a step.
    pub fn wire_bytes_per_step(&self, processes: u64) -> u64 {
        match &self.shards {
            Some(shards) => shards.bytes_per_step(processes),
            None => self.wire.bytes_per_step(processes),
        }
    }

    /// Bytes at once of one of so many processes, the one that has the most.
    pub fn peak_of_process(&self, processes: u64) -> u64 {
        match &self.shards {
            Some(shards) if processes > 1 => shards.peak(&self.memory, processes),
            _ => self.memory.peak(),
        }
    }

    /// Operations of one step: training on its tokens, then the low-rank optimizer.
    pub fn flops_per_step(&self) -> u64 {
        self.flops.per_step(self.tokens_per_step)
    }
}

/// The budgets that cuts keep, each with everything beside the low-rank matrices; they count
/// r (m + n − r) numbers for a matrix of rank r, as exported with `--factored`.
fn after_cuts(plan: &Plan, parameters: &ParameterLedger) -> Vec<(&'static str, String)> {
    // What is beside the head keeps its rank.
    let is_cut = |target: &TargetLedger| {
        let is_low_rank =
            matches!(target.form, WeightForm::LowRank { .. } | WeightForm::Adapter { .. });
        is_low_rank && target.target != Target::HEAD
    };
    let most = |share: f64| {
        // What lies beside an adapter is frozen and stays.
        let beside = parameters.targets.iter().map(|target| match is_cut(target) {
            true => target.parameters - target.trained,
            false => target.parameters,
        });
        let cut = parameters.targets.iter().filter(|target| is_cut(target)).map(|t| t.target);
        let left = share_of_dense(&plan.model, cut, share);
        grouped(parameters.dense_rest() + beside.sum::<u64>() + left)
    };
    let cut = plan.cut.map(|cut| match cut {
        CutSpec::Budget(CutBudgetSpec { share, .. }) => {
            ("at most, exported, after the cut", most(share))
        }
        CutSpec::Tolerance(_) => ("exported, after the cut", "by tolerance".to_owned()),
    });
    let end = match &plan.rank {
        RankPlan::Budget(budget) => budget.final_share,
        RankPlan::Fixed | RankPlan::Tolerance(_) => None,
    };
    let end = end.map(|share| ("at most, exported, at the end", most(share)));
    cut.into_iter().chain(end).collect()
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, value: String| {
            writeln!(f, "  {name:<34}{value:>14}")
        };
        let parameters = &self.parameters;
        writeln!(f, "parameters")?;
        let tied = if parameters.head.is_none() { " (tied head)" } else { "" };
        line(f, &format!("token embedding{tied}"), grouped(parameters.token_embedding))?;
        if let Some(head) = parameters.head {
            line(f, "head", grouped(head))?;
        }
        if let Some(positions) = parameters.positions {
            line(f, "positions", grouped(positions))?;
        }
        line(f, "norms", grouped(parameters.norms))?;
        line(f, "biases", grouped(parameters.biases))?;
        for target in &parameters.targets {
            let ranks = |rank: usize| match target.ranks.unwrap_or((rank, rank)) {
                (least, most) if least < most => format!("{least} to {most}"),
                (rank, _) => rank.to_string(),
            };
            let adapter = |name: &str, rank: usize| match target.blocks {
                (0, _) => "dense".to_owned(),
                (some, all) if some < all => {
                    format!("frozen, {name} {} in {some} of {all}", ranks(rank))
                }
                _ => format!("frozen, {name} {}", ranks(rank)),
            };
            let form = match target.form {
                WeightForm::Dense => "dense".to_owned(),
                WeightForm::LowRank { .. } if target.is_uncut => "dense until cut".to_owned(),
                WeightForm::LowRank { rank } => {
                    let (least, most) = target.ranks.unwrap_or((rank, rank));
                    format!("rank{} {}", if least < most { "s" } else { "" }, ranks(rank))
                }
                WeightForm::Adapter { rank, form: AdapterForm::LowRank, .. } => {
                    adapter("adapter", rank)
                }
                WeightForm::Adapter { rank, form: AdapterForm::Lora, .. } => adapter("LoRA", rank),
                WeightForm::Factored { rank, form: FactorForm::Ba } => format!("factored, {rank}"),
                WeightForm::Factored { rank, form: FactorForm::Usv } => {
                    format!("factored usv, {rank}")
                }
            };
            let name =
                format!("{:<5} {} × {}, {form}", target.target.name(), target.rows, target.columns);
            line(f, &name, grouped(target.parameters))?;
        }
        let (total, dense) = (parameters.total(), parameters.dense_equivalent());
        line(f, "total", grouped(total))?;
        if parameters.is_adapted {
            line(f, "trained", grouped(parameters.trained()))?;
        }
        line(f, "the same network dense", grouped(dense))?;
        line(f, "share of dense", format!("{:.3}", total as f64 / dense as f64))?;
        for (when, numbers) in &self.after_cuts {
            line(f, when, numbers.clone())?;
        }

        let flops = &self.flops;
        writeln!(f, "operations (matrix products)")?;
        line(f, "forward per token", operations(flops.forward_per_token() as f64))?;
        line(f, "  matrices of the blocks", operations(flops.forward_products_per_token as f64))?;
        line(f, "  causal attention", operations(flops.forward_attention_per_token as f64))?;
        line(f, "  head", operations(flops.forward_head_per_token as f64))?;
        line(f, "training per token", operations(flops.training_per_token as f64))?;
        line(f, "evaluations per step", self.evaluations_per_step.to_string())?;
        if flops.coefficient_evaluations_per_token > 0 {
            line(
                f,
                "  augmented, per token",
                operations(flops.coefficient_evaluations_per_token as f64),
            )?;
        }
        line(
            f,
            "low-rank optimizer per step",
            operations(flops.low_rank_optimizer_per_step as f64),
        )?;
        if flops.matrix_optimizer_per_step > 0 {
            line(
                f,
                "full-matrix optimizer per step",
                operations(flops.matrix_optimizer_per_step as f64),
            )?;
        }
        line(f, "a step in all", operations(self.flops_per_step() as f64))?;
        line(
            f,
            "the run in all",
            operations(self.flops_per_step().saturating_mul(self.max_steps) as f64),
        )?;

        let memory = &self.memory;
        writeln!(f, "memory (f32)")?;
        line(f, "weights", bytes(memory.weights))?;
        line(f, "gradients", bytes(memory.gradients))?;
        line(f, "optimizer moments", bytes(memory.moments))?;
        line(f, "activations for the backward", bytes(memory.activations))?;
        line(f, "head gradient", bytes(memory.head_gradient))?;
        line(f, "backward in flight", bytes(memory.backward))?;
        line(f, "low-rank step", bytes(memory.optimizer))?;
        if memory.augmented > 0 {
            line(f, "evaluations in augmented bases", bytes(memory.augmented))?;
        }
        line(f, "peak, expected", bytes(memory.peak()))?;

        let wire = &self.wire;
        if wire.micro_batches > 1 {
            let processes = wire.micro_batches;
            writeln!(f, "between {processes} processes (data_parallel)")?;
            line(f, "a step in all", bytes(self.wire_bytes_per_step(processes)))?;
            let dense = wire.dense_bytes_per_step(processes);
            line(f, "the same network dense", bytes(dense))?;
            let share = wire.sums_per_step as f64 / wire.dense_sums_per_step as f64;
            line(f, "share of dense", format!("{share:.3}"))?;
            if self.shards.is_some() {
                let peak = bytes(self.peak_of_process(processes));
                line(f, "peak of a process (shard_optimizer)", peak)?;
            }
        }

        writeln!(f, "tokens")?;
        line(f, "per step", grouped(self.tokens_per_step))?;
        line(f, "in all", grouped(self.total_tokens()))
    }
}
