//! `cut:` of low-rank weights: how imported matrices are brought to their first ranks.

use super::bounds;
use super::findings::Findings;
use super::plan::Plan;
use super::rank_plan::{RankCount, share_of_dense};
use super::rank_spec::RankNorm;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the matrices of `init` are cut, once, before the first step; `rank` is the largest rank that
/// one may keep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CutSpec {
    /// Each weight to the smallest rank whose discarded part has a norm of at most τ times the
    /// weight's.
    Tolerance(CutToleranceSpec),
    /// All weights together to one budget of numbers, at the smallest loss.
    Budget(CutBudgetSpec),
}

/// A cut by tolerance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CutToleranceSpec {
    /// Tolerance τ.
    pub tau: f64,
    /// The norm; `fisher` reads the first batches of the training text.
    #[serde(default = "frobenius")]
    pub norm: RankNorm,
    /// Micro-batches of training text over which the norm `fisher` takes its moments.
    #[serde(default = "default_batches")]
    pub batches: usize,
}

/// A cut to a budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CutBudgetSpec {
    /// Share of the numbers that the low-rank weights would have as full matrices, m n each. A
    /// weight of rank r counts r (m + n − r), as exported with `--factored`, which is never more.
    pub share: f64,
    /// The norm in which directions are compared; `fisher` reads the first batches of the training
    /// text.
    #[serde(default = "frobenius")]
    pub norm: RankNorm,
    /// Micro-batches of training text over which the norm `fisher` takes its moments.
    #[serde(default = "default_batches")]
    pub batches: usize,
}

fn frobenius() -> RankNorm {
    RankNorm::Frobenius
}

fn default_batches() -> usize {
    16
}

impl CutSpec {
    /// The micro-batches of text that it reads; none in the Frobenius norm.
    pub fn batches(self) -> Option<usize> {
        let (CutSpec::Tolerance(CutToleranceSpec { norm, batches, .. })
        | CutSpec::Budget(CutBudgetSpec { norm, batches, .. })) = self;
        (norm == RankNorm::Fisher).then_some(batches)
    }
}

pub(super) fn check_cut(found: &mut Findings, plan: &Plan) {
    let Some(cut) = plan.cut else { return };
    let path = "model.weights.low_rank.cut";
    found.require(plan.init.is_some(), path, || {
        "cuts the weights of another model, and there is no `init`; name one, or remove `cut`"
            .into()
    });
    let (kind, batches) = match cut {
        CutSpec::Tolerance(tolerance) => ("tolerance", tolerance.batches),
        CutSpec::Budget(budget) => ("budget", budget.batches),
    };
    found.require_size(batches as u64, bounds::MAX_BATCH, &format!("{path}.{kind}.batches"));
    match cut {
        CutSpec::Tolerance(CutToleranceSpec { tau, .. }) => found.require_number(
            tau,
            tau > 0.0 && tau < 1.0,
            "greater than 0 and less than 1",
            &format!("{path}.tolerance.tau"),
        ),
        CutSpec::Budget(CutBudgetSpec { share, .. }) => {
            check_share(found, plan, share, &format!("{path}.budget.share"));
        }
    }
}

/// A share of the dense numbers lies in (0, 1], and rank 1 everywhere fits into it.
pub(super) fn check_share(found: &mut Findings, plan: &Plan, share: f64, path: &str) {
    let model = &plan.model;
    let targets = || model.weights.iter().filter(|(_, form)| form.rank().is_some());
    found.require_number(share, share > 0.0 && share <= 1.0, "greater than 0 and at most 1", path);
    if found.has(path) {
        return;
    }
    let least = RankCount::Exported.of_all(model, targets().map(|(target, _)| (*target, 1)));
    let most = share_of_dense(model, targets().map(|(target, _)| *target), share);
    found.require(least <= most, path, || {
        format!("is {share}, {most} numbers, and rank 1 everywhere has {least}; raise it")
    });
}
