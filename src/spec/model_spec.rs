//! `model:` of a spec: the shape of the network and the form of its weights.

use super::architecture::{Architecture, Target};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Shape of the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Architecture.
    #[serde(default)]
    pub arch: Architecture,
    /// Number of transformer blocks.
    pub n_layer: usize,
    /// Attention heads per block; divides `n_embd`.
    pub n_head: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Context length in tokens.
    pub block_size: usize,
    /// Probability of dropping an activation (embedding, attention, residual); 0 turns dropout off.
    #[serde(default)]
    pub dropout: f64,
    /// Whether linear layers and layer norms have biases.
    #[serde(default)]
    pub bias: bool,
    /// Form of the attention and MLP weights.
    pub weights: WeightsSpec,
}

/// Form of the attention and MLP weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightsSpec {
    /// Full matrices.
    Dense,
    /// W = U S Vᵀ on the manifold of rank-r matrices, trained by DLRA.
    LowRank(LowRankWeightsSpec),
    /// W = B A or W = U S Vᵀ with free factors, the naive low-rank forms.
    Factored(FactoredWeightsSpec),
}

/// Ranks of low-rank weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LowRankWeightsSpec {
    /// Rank at the start of training.
    pub rank: usize,
    /// Exceptions: `q: 32`, `down: dense`, ...
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "per_target_schema::<TargetRank>")]
    pub targets: BTreeMap<Target, TargetRank>,
}

/// Ranks and form of factored weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FactoredWeightsSpec {
    /// Inner dimension of the product.
    pub rank: usize,
    /// Which factors.
    #[serde(default, skip_serializing_if = "FactorForm::is_default")]
    pub form: FactorForm,
    /// Exceptions: `q: 32`, `down: dense`, ...
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "per_target_schema::<TargetRank>")]
    pub targets: BTreeMap<Target, TargetRank>,
}

/// Factors of a matrix W: m × n, all of them trained freely.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FactorForm {
    /// W = B A with B: m × r, A: r × n.
    #[default]
    Ba,
    /// W = U S Vᵀ with U: m × r, S: r × r, V: n × r, orthonormal at the start only.
    Usv,
}

impl FactorForm {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Rank of one target, or `dense`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetRank {
    /// A full matrix.
    Dense,
    /// A matrix of this rank.
    Rank(usize),
}

/// Schema of a map from targets to `T` that lists the targets, so that editors offer them and
/// refuse others.
pub(crate) fn per_target_schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let entry =
        |target: Target| (target.name().to_owned(), generator.subschema_for::<T>().to_value());
    let properties: serde_json::Map<_, _> = Target::known().map(entry).collect();
    json_schema!({ "type": "object", "properties": properties, "additionalProperties": false })
}
