//! `rank:` of a spec: how ranks change.

use super::count::Count;
use super::model_spec::{Target, per_target_schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How ranks change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RankSpec {
    /// Ranks stay as they start.
    Fixed(FixedRankSpec),
    /// Cycles: grow, let the new directions settle, truncate by tolerance (algorithms.md §4).
    Tolerance(ToleranceSpec),
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
    /// Relative Frobenius tolerance τ: the discarded tail is at most τ‖W‖_F.
    pub tau: f64,
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
    /// Smallest rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rank: Option<usize>,
    /// Largest rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rank: Option<usize>,
}
