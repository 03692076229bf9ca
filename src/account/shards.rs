//! What processes hold and send each other where the optimizer is sharded over them.

use super::memory::{BYTES_PER_VALUE, MemoryLedger};
use crate::model::{ModelConfig, build};
use crate::optim::{Movable, MovedWeight, WeightSize, augmented_rank, carried_values, share_out};
use crate::spec::{DlraSpec, Integrator, OptimizerPlan, Plan};

/// The numbers of each trained parameter, by which the parameters are shared out.
///
/// Every parameter has one owner, which gets its gradient sum from the process of the last
/// micro-batch, keeps its moments, and sends its new numbers to the P − 1 others;
/// `augmented_bug` sends the augmented points, too, before each evaluation there.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardLedger {
    rules: OptimizerPlan,
    parameters: Vec<Sharded>,
    micro_batches: u64,
    is_deterministic: bool,
}

/// Numbers of one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sharded {
    movable: Movable,
    /// Of its gradient sums in all evaluations of a step.
    sums: u64,
    /// That its owner sends to each other process in a step.
    spread: u64,
    /// Moments.
    kept: u64,
    /// Held by a step beside the old ones, before it changes any.
    proposed: u64,
}

impl ShardLedger {
    /// None where the plan does not ask for it.
    pub(super) fn new(plan: &Plan, vocabulary: u64) -> Option<Self> {
        if !plan.train.data_parallel.shard_optimizer {
            return None;
        }
        let config =
            ModelConfig { model: plan.model.clone(), vocab_size: vocabulary.max(1) as usize };
        let movables = Movable::all_declared(build(config).ok()?.declared());
        Some(Self {
            rules: plan.optimizer.clone(),
            parameters: movables.into_iter().map(|movable| Sharded::new(plan, movable)).collect(),
            micro_batches: plan.train.gradient_accumulation_steps as u64,
            is_deterministic: plan.train.data_parallel.deterministic,
        })
    }

    fn owners(&self, processes: u64) -> Vec<usize> {
        let movables: Vec<Movable> = self.parameters.iter().map(|one| one.movable).collect();
        share_out(&self.rules, &movables, processes as usize)
    }

    /// Bytes that all P processes together send in a step of M micro-batches: the sums M − 1 times,
    /// once more those whose owner does not have the last micro-batch (or 2 (P − 1) times around a
    /// ring), and P − 1 times the weights.
    pub(super) fn bytes_per_step(&self, processes: u64) -> u64 {
        if processes < 2 {
            return 0;
        }
        let last = ((self.micro_batches - 1) % processes) as usize;
        let of = |(one, owner): (&Sharded, usize)| {
            let passes = match self.is_deterministic {
                true => self.micro_batches - 1 + u64::from(owner != last),
                false => 2 * (processes - 1),
            };
            passes * one.sums + (processes - 1) * one.spread
        };
        let parameters = self.parameters.iter().zip(self.owners(processes));
        BYTES_PER_VALUE * parameters.map(of).sum::<u64>()
    }

    /// The bytes at once of the process that has the most of them.
    pub(super) fn peak(&self, whole: &MemoryLedger, processes: u64) -> u64 {
        let owners = self.owners(processes);
        let of = |rank: usize, count: &dyn Fn(&Sharded) -> u64| {
            let parameters = self.parameters.iter().zip(&owners);
            let own = parameters.filter(|(_, owner)| **owner == rank).map(|(one, _)| count(one));
            BYTES_PER_VALUE * own.sum::<u64>()
        };
        let proposed: u64 = self.parameters.iter().map(|one| one.proposed).sum();
        let in_hand = whole.optimizer.saturating_sub(BYTES_PER_VALUE * proposed);
        let peak = |rank| {
            let moments = of(rank, &|one| one.kept);
            let optimizer = in_hand + of(rank, &|one| one.proposed);
            MemoryLedger { moments, optimizer, ..*whole }.peak()
        };
        (0..processes as usize).map(peak).max().unwrap_or(0)
    }
}

impl Sharded {
    fn new(plan: &Plan, movable: Movable) -> Self {
        let dlra = plan.optimizer.dlra();
        let integrator = dlra.map_or(Integrator::Tangent, |dlra| dlra.integrator);
        let further = dlra.map_or(1, DlraSpec::evaluations_per_step) - 1;
        let (size, values) = (movable.weight.size, movable.weight.values);
        let wide = WeightSize { rank: augmented_rank(integrator, size), ..size };
        let rule = movable.rule(&plan.optimizer);
        let sums = |size: WeightSize| {
            let gradient = match size.rank {
                0 => values,
                rank => rank * (size.rows + size.columns),
            };
            gradient + rule.input_moment(MovedWeight { size, values })
        };
        let numbers = |size: WeightSize| match size.rank {
            0 => 0,
            rank => rank * (size.rows + size.columns + rank),
        };
        let carried = match plan.rank.moment_decay() {
            Some(_) if size.rank > 0 || movable.is_uncut => carried_values(size),
            _ => 0,
        };
        let kept = rule.kept(movable.weight) + carried;
        let proposed = rule.proposed(movable.weight) + carried;
        let (sums, spread) = match integrator {
            Integrator::Tangent => (sums(size), values),
            Integrator::AugmentedBug => {
                (sums(size) + further * sums(wide), values + further * numbers(wide))
            }
            Integrator::CoefficientCycle => (sums(wide), values.max(numbers(wide))),
        };
        Self { movable, sums, spread, kept, proposed }
    }
}
