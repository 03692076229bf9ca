//! `rank:` of a spec: how ranks change.

use super::architecture::Target;
use super::count::Count;
use super::model_spec::per_target_schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How ranks change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RankSpec {
    /// Ranks stay as they start.
    Fixed(FixedRankSpec),
    /// Cycles: grow, let the new directions settle, truncate by tolerance (docs/method.md §6).
    Tolerance(ToleranceSpec),
    /// One budget of parameters for all low-rank weights, from the starting ranks' to that of
    /// `final_rank` or `final_share`: the best directions of all keep it.
    Budget(BudgetSpec),
}

impl Default for RankSpec {
    fn default() -> Self {
        Self::Fixed(FixedRankSpec {})
    }
}

/// Fixed ranks: no keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FixedRankSpec {}

/// Tolerance-driven ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToleranceSpec {
    /// Tolerance τ: the discarded tail is at most τ times the weight's norm.
    pub tau: f64,
    /// The norm.
    #[serde(default = "default_tolerance_norm")]
    pub norm: RankNorm,
    /// Batches over which the norm `fisher` takes its moments: the step's own, and those of the
    /// steps before it, evaluated once more at the weights of the cut.
    #[serde(default = "one_batch")]
    pub batches: usize,
    /// Decay d of the second moments by which cuts in the norm `fisher` go: E ← d E + (1 − d) E_now
    /// at each measurement, carried into new bases in between; 0: a cut goes by its own batches
    /// alone.
    #[serde(default, skip_serializing_if = "is_not_carried")]
    pub moment_decay: f64,
    /// Steps between two measurements beside those of the cuts, up to `freeze`; needs
    /// `moment_decay`. Default: only cuts measure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moment_every: Option<Count>,
    /// Tolerance at the last truncation; default: `tau` throughout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_tau: Option<f64>,
    /// The way from `tau` to `final_tau`.
    #[serde(default = "default_tau_schedule")]
    pub tau_schedule: RampShape,
    /// Smallest rank.
    #[serde(default = "default_min_rank")]
    pub min_rank: usize,
    /// Largest rank; default: twice the starting rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rank: Option<usize>,
    /// Steps between two growths.
    #[serde(default = "default_grow_every")]
    pub grow_every: Count,
    /// Steps the new directions are trained before the truncation; less than `grow_every`.
    #[serde(default = "default_settle")]
    pub settle: Count,
    /// Ranks added by a growth, at most the current rank.
    #[serde(default = "default_grow_by")]
    pub grow_by: usize,
    /// First step at which ranks may change; default: the end of the warm-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Count>,
    /// Step after which ranks no longer change; default: three quarters of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Count>,
    /// Exceptions per target.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "per_target_schema::<ToleranceTargetSpec>")]
    pub targets: BTreeMap<Target, ToleranceTargetSpec>,
}

pub(super) fn one_batch() -> usize {
    1
}
/// Plans written before the key was there keep their hashes.
pub(super) fn is_not_carried(decay: &f64) -> bool {
    *decay == 0.0
}
fn default_tolerance_norm() -> RankNorm {
    RankNorm::Frobenius
}
fn default_tau_schedule() -> RampShape {
    RampShape::Linear
}
fn default_min_rank() -> usize {
    8
}
fn default_grow_every() -> Count {
    Count(100)
}
fn default_settle() -> Count {
    Count(50)
}
fn default_grow_by() -> usize {
    16
}

/// Exceptions of one target from the tolerance policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToleranceTargetSpec {
    /// Tolerance τ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tau: Option<f64>,
    /// Tolerance at the last truncation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_tau: Option<f64>,
    /// Smallest rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rank: Option<usize>,
    /// Largest rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rank: Option<usize>,
}

/// A budget of parameters for all low-rank weights together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BudgetSpec {
    /// The budget at the end: what the weights would store, r (m + n + r) each, if every one had
    /// this rank. Give this or `final_share`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_rank: Option<usize>,
    /// The budget at the end as a share of what the weights would have as full matrices, m n each,
    /// where a weight of rank r counts r (m + n − r), as exported with `--factored`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_share: Option<f64>,
    /// The way from what the starting ranks store to that.
    #[serde(default = "default_budget_schedule")]
    pub schedule: RampShape,
    /// The norm in which directions are compared.
    #[serde(default)]
    pub norm: RankNorm,
    /// Batches over which the norm `fisher` takes its moments: the step's own, and those of the
    /// steps before it, evaluated once more at the weights of the cut.
    #[serde(default = "one_batch")]
    pub batches: usize,
    /// Decay d of the second moments by which cuts in the norm `fisher` go: E ← d E + (1 − d) E_now
    /// at each measurement, carried into new bases in between; 0: a cut goes by its own batches
    /// alone.
    #[serde(default, skip_serializing_if = "is_not_carried")]
    pub moment_decay: f64,
    /// Steps between two measurements beside those of the cuts, up to `freeze`; needs
    /// `moment_decay`. Default: only cuts measure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moment_every: Option<Count>,
    /// Smallest rank; default: a quarter of `final_rank`, or of the rank with which the weight
    /// alone would have `final_share`, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rank: Option<usize>,
    /// Largest rank; default: the starting rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rank: Option<usize>,
    /// Steps between two cuts.
    #[serde(default = "default_cut_every")]
    pub every: Count,
    /// Ranks added by the growth before a cut, at most the current rank; 0: ranks are only cut.
    #[serde(default)]
    pub grow_by: usize,
    /// Steps new directions are trained before the cut; less than `every`. Default: half of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settle: Option<Count>,
    /// First step at which ranks may change; default: the end of the warm-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Count>,
    /// Step after which ranks no longer change; default: three quarters of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Count>,
    /// Exceptions per target.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "per_target_schema::<BudgetTargetSpec>")]
    pub targets: BTreeMap<Target, BudgetTargetSpec>,
}

fn default_budget_schedule() -> RampShape {
    RampShape::Cubic
}
fn default_cut_every() -> Count {
    Count(10)
}

/// Exceptions of one target from the bounds of a budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BudgetTargetSpec {
    /// Smallest rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rank: Option<usize>,
    /// Largest rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rank: Option<usize>,
}

/// The way from one value to another over the cuts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RampShape {
    /// In equal steps.
    Linear,
    /// Half a cosine.
    Cosine,
    /// Fast at first: the rest goes by the cube of what remains of the time (AdaLoRA's budget,
    /// Zhang et al. 2023).
    Cubic,
}

/// The norm in which the singular values are measured that a cut goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RankNorm {
    /// ‖W‖_F.
    Frobenius,
    /// ‖A^½ W C^½‖_F with the second moments C of the weight's inputs and A of its output gradients
    /// over `batches`: the loss that giving up a direction costs to second order
    /// (Kronecker-factored Fisher approximation), comparable between weights.
    #[default]
    Fisher,
}
