//! `rank:` of a plan: when ranks change, by what, within which bounds.

use super::architecture::Target;
use super::count::Count;
use super::model_plan::ModelPlan;
use super::model_spec::TrainedForm;
use super::rank_spec::{BudgetSpec, RampShape, RankNorm, RankSpec, ToleranceSpec};
use super::rank_spec::{is_not_carried, one_batch};
use super::run_spec::RunSpec;
use super::schedule_spec::warmup_steps;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How ranks change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankPlan {
    /// Ranks stay as they start.
    Fixed,
    /// Cycles: grow, let the new directions settle, truncate by tolerance (docs/method.md §6).
    Tolerance(TolerancePlan),
    /// The same cycles, cut to one budget of parameters over all weights.
    Budget(BudgetPlan),
}

/// When ranks change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankCyclePlan {
    /// Steps between two growths, and between two cuts.
    pub every: u64,
    /// Steps the new directions are trained before the cut.
    pub settle: u64,
    /// Ranks added by a growth; 0 where ranks only shrink.
    pub grow_by: usize,
    /// First step at which ranks may change.
    pub start: u64,
    /// Step after which ranks no longer change.
    pub freeze: u64,
}

/// Tolerance-driven ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TolerancePlan {
    /// When.
    pub cycle: RankCyclePlan,
    /// The norm in which tails are measured.
    pub norm: RankNorm,
    /// Batches over which the Fisher norm takes its moments.
    #[serde(default = "one_batch", skip_serializing_if = "is_one")]
    pub batches: usize,
    /// Decay of the second moments that are carried from one measurement to the next; 0: none are.
    #[serde(default, skip_serializing_if = "is_not_carried")]
    pub moment_decay: f64,
    /// Steps between two measurements beside those of the cuts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moment_every: Option<u64>,
    /// The way from `tau` to `final_tau`.
    pub tau_schedule: RampShape,
    /// Tolerance and bounds of every low-rank target.
    pub targets: BTreeMap<Target, ToleranceTargetPlan>,
}

/// Tolerance and bounds of one target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToleranceTargetPlan {
    /// Tolerance τ: the discarded tail is at most τ times the weight's norm.
    pub tau: f64,
    /// The same at the last truncation.
    pub final_tau: f64,
    /// Smallest rank.
    pub min_rank: usize,
    /// Largest rank.
    pub max_rank: usize,
}

/// Budget-driven ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetPlan {
    /// When.
    pub cycle: RankCyclePlan,
    /// The way from the first budget to the last.
    pub schedule: RampShape,
    /// The norm in which directions are compared.
    pub norm: RankNorm,
    /// Batches over which the Fisher norm takes its moments.
    #[serde(default = "one_batch", skip_serializing_if = "is_one")]
    pub batches: usize,
    /// Decay of the second moments that are carried from one measurement to the next; 0: none are.
    #[serde(default, skip_serializing_if = "is_not_carried")]
    pub moment_decay: f64,
    /// Steps between two measurements beside those of the cuts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moment_every: Option<u64>,
    /// Numbers of all low-rank weights at the start.
    pub initial_parameters: u64,
    /// The most they may have from the last cut on.
    pub final_parameters: u64,
    /// The last budget as a share of the dense numbers; where it is given, numbers are counted as
    /// exported, else as stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_share: Option<f64>,
    /// Bounds of every low-rank target.
    pub targets: BTreeMap<Target, RankBoundsPlan>,
}

/// Bounds of one target's rank.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankBoundsPlan {
    /// Smallest rank.
    pub min_rank: usize,
    /// Largest rank.
    pub max_rank: usize,
}

impl RankPlan {
    /// The batches over which cuts take second moments, if they go by those.
    pub fn fisher_batches(&self) -> Option<usize> {
        match *self {
            RankPlan::Tolerance(TolerancePlan { norm: RankNorm::Fisher, batches, .. })
            | RankPlan::Budget(BudgetPlan { norm: RankNorm::Fisher, batches, .. }) => Some(batches),
            _ => None,
        }
    }

    /// The decay of the second moments that cuts go by, if any are carried from cut to cut.
    pub fn moment_decay(&self) -> Option<f64> {
        match *self {
            RankPlan::Tolerance(TolerancePlan { norm: RankNorm::Fisher, moment_decay, .. })
            | RankPlan::Budget(BudgetPlan { norm: RankNorm::Fisher, moment_decay, .. }) => {
                Some(moment_decay).filter(|decay| *decay > 0.0)
            }
            _ => None,
        }
    }

    /// Steps between two measurements of those beside the cuts', if there are any.
    pub fn moment_every(&self) -> Option<u64> {
        self.moment_decay()?;
        match self {
            RankPlan::Tolerance(TolerancePlan { moment_every, .. })
            | RankPlan::Budget(BudgetPlan { moment_every, .. }) => *moment_every,
            RankPlan::Fixed => None,
        }
    }
}

fn is_one(batches: &usize) -> bool {
    *batches == 1
}

/// Decides everything that `rank:` leaves open.
pub(crate) fn rank_plan(spec: &RunSpec, model: &ModelPlan) -> RankPlan {
    if spec.model.weights.trained_form() != TrainedForm::LowRank {
        return RankPlan::Fixed;
    }
    let low_rank: Vec<(Target, usize)> =
        model.weights.iter().filter_map(|(target, form)| Some((*target, form.rank()?))).collect();
    match &spec.rank {
        RankSpec::Fixed(_) => RankPlan::Fixed,
        RankSpec::Tolerance(tolerance) => RankPlan::Tolerance(TolerancePlan {
            cycle: rank_cycle(
                spec,
                [tolerance.grow_every, tolerance.settle],
                tolerance.grow_by,
                tolerance.start,
                tolerance.freeze,
            ),
            norm: tolerance.norm,
            batches: tolerance.batches,
            moment_decay: tolerance.moment_decay,
            moment_every: tolerance.moment_every.map(|every| every.0),
            tau_schedule: tolerance.tau_schedule,
            targets: low_rank
                .iter()
                .map(|&(target, rank)| {
                    (target, tolerance_of(tolerance, target, rank, model.shape(target)))
                })
                .collect(),
        }),
        RankSpec::Budget(budget) => {
            let settle = budget.settle.unwrap_or(Count(budget.every.0 / 2));
            let count = RankCount::of_budget(budget.final_share);
            let parameters = |rank: &dyn Fn(usize) -> usize| {
                count.of_all(model, low_rank.iter().map(|&(target, start)| (target, rank(start))))
            };
            let targets = || low_rank.iter().map(|(target, _)| *target);
            RankPlan::Budget(BudgetPlan {
                cycle: rank_cycle(
                    spec,
                    [budget.every, settle],
                    budget.grow_by,
                    budget.start,
                    budget.freeze,
                ),
                schedule: budget.schedule,
                norm: budget.norm,
                batches: budget.batches,
                moment_decay: budget.moment_decay,
                moment_every: budget.moment_every.map(|every| every.0),
                initial_parameters: parameters(&|start| start),
                final_parameters: match budget.final_share {
                    Some(share) => share_of_dense(model, targets(), share),
                    None => parameters(&|_| budget.final_rank.unwrap_or(0)),
                },
                final_share: budget.final_share,
                targets: low_rank
                    .iter()
                    .map(|&(target, rank)| {
                        (target, bounds_of(budget, target, rank, model.shape(target)))
                    })
                    .collect(),
            })
        }
    }
}

/// What counts as the numbers of a weight W: m × n of rank r.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankCount {
    /// r (m + n + r), as stored while it trains.
    Stored,
    /// r (m + n − r), as exported with `--factored`: the dimension of the manifold of such
    /// matrices, never more than m n.
    Exported,
}

impl RankCount {
    /// How a budget counts that ends at this share of the dense numbers, if at one.
    pub fn of_budget(final_share: Option<f64>) -> Self {
        if final_share.is_some() { RankCount::Exported } else { RankCount::Stored }
    }

    /// The numbers of one weight with m + n = `sides`; saturates.
    pub fn numbers(self, sides: usize, rank: usize) -> u64 {
        let width = match self {
            RankCount::Stored => sides.saturating_add(rank),
            RankCount::Exported => sides.saturating_sub(rank),
        };
        rank.saturating_mul(width) as u64
    }

    /// The numbers of these targets' weights of all blocks that have them at these ranks; saturates.
    pub fn of_all(self, model: &ModelPlan, ranks: impl Iterator<Item = (Target, usize)>) -> u64 {
        let numbers = ranks.map(|(target, rank)| {
            let (rows, columns) = model.shape(target);
            let of_one = self.numbers(rows.saturating_add(columns), rank);
            of_one.saturating_mul(model.blocks_of(target) as u64)
        });
        numbers.fold(0, u64::saturating_add)
    }
}

/// A share of the numbers that these targets of all blocks that have them would have as full
/// matrices.
pub fn share_of_dense(model: &ModelPlan, targets: impl Iterator<Item = Target>, share: f64) -> u64 {
    let dense = targets.map(|target| {
        let (rows, columns) = model.shape(target);
        let of_one = rows.saturating_mul(columns) as u64;
        of_one.saturating_mul(model.blocks_of(target) as u64)
    });
    let dense = dense.fold(0, u64::saturating_add);
    (share * dense as f64).round() as u64
}

/// The largest rank with which a weight has at most this share of m n numbers as exported.
fn rank_of_share(rows: usize, columns: usize, share: f64) -> usize {
    let (most, sides) = (share * rows as f64 * columns as f64, rows.saturating_add(columns));
    let (mut low, mut high) = (0, rows.min(columns));
    while low < high {
        let middle = high - (high - low) / 2;
        let fits = RankCount::Exported.numbers(sides, middle) as f64 <= most;
        if fits { low = middle } else { high = middle - 1 }
    }
    low
}

fn rank_cycle(
    spec: &RunSpec,
    [every, settle]: [Count; 2],
    grow_by: usize,
    start: Option<Count>,
    freeze: Option<Count>,
) -> RankCyclePlan {
    let freeze =
        freeze.map_or(spec.train.max_steps.0 - spec.train.max_steps.0 / 4, |freeze| freeze.0);
    let start =
        start.map_or(warmup_steps(&spec.schedule).min(freeze.saturating_sub(1)), |start| start.0);
    RankCyclePlan { every: every.0, settle: settle.0, grow_by, start, freeze }
}

/// Tolerance and bounds of one target; the largest rank is twice the starting rank unless given.
fn tolerance_of(
    spec: &ToleranceSpec,
    target: Target,
    rank: usize,
    (rows, columns): (usize, usize),
) -> ToleranceTargetPlan {
    let exception = spec.targets.get(&target).copied().unwrap_or_default();
    let tau = exception.tau.unwrap_or(spec.tau);
    ToleranceTargetPlan {
        tau,
        final_tau: exception.final_tau.or(spec.final_tau).unwrap_or(tau),
        min_rank: exception.min_rank.unwrap_or(spec.min_rank),
        max_rank: exception
            .max_rank
            .or(spec.max_rank)
            .unwrap_or(rank.saturating_mul(2).min(rows.min(columns))),
    }
}

/// Bounds of one target under a budget; unless given, a quarter of the final rank and the starting
/// rank.
fn bounds_of(
    spec: &BudgetSpec,
    target: Target,
    rank: usize,
    (rows, columns): (usize, usize),
) -> RankBoundsPlan {
    let exception = spec.targets.get(&target).copied().unwrap_or_default();
    let final_rank = match spec.final_share {
        Some(share) => rank_of_share(rows, columns, share).min(rank),
        None => spec.final_rank.unwrap_or(0),
    };
    RankBoundsPlan {
        min_rank: exception.min_rank.or(spec.min_rank).unwrap_or((final_rank / 4).max(1)),
        max_rank: exception.max_rank.or(spec.max_rank).unwrap_or(rank),
    }
}
