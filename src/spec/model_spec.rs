//! `model:` of a spec: the shape of the network and the form of its weights.

use super::adapter_spec::{AdapterForm, AdapterTargets, AdapterWeightsSpec};
use super::architecture::{Architecture, Target};
use super::bounds;
use super::cut_spec::CutSpec;
use super::findings::Findings;
use super::model_plan::ModelPlan;
use super::plan::{Plan, WeightForm};
use super::run_spec::RunSpec;
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
    /// Heads of keys and values per block, each for n_head / n_kv_head heads of queries in a row
    /// (grouped-query attention); divides `n_head`, which it is by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_head: Option<usize>,
    /// Whether the query, key and value matrices of a block are one, of n_embd (1 + 2 n_kv_head /
    /// n_head) × n_embd, its target `qkv` in the place of `q`, `k` and `v`: low-rank, they share one
    /// input basis V and one rank, and Muon makes one polar factor of all three.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fused_qkv: bool,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Context length in tokens.
    pub block_size: usize,
    /// Probability of dropping an activation (embedding, attention, residual); 0 turns dropout off.
    #[serde(default)]
    pub dropout: f64,
    /// Whether linear layers, and layer norms, have biases.
    #[serde(default)]
    pub bias: bool,
    /// Width of the MLP; default: 4 n_embd, and under `arch: llama` 8/3 n_embd rounded up to a
    /// multiple of the largest power of two that is at most n_embd/16 (from 8 to 256).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_inner: Option<usize>,
    /// Whether the head that gives the logits is the table of tokens; default: true, under
    /// `arch: llama` false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tie_word_embeddings: Option<bool>,
    /// Base of the rotary positions' angles; default: 10000. Only for `arch: llama`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Added to the variance in layer norms; default: 1e-5. Only for `arch: gpt2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_norm_epsilon: Option<f64>,
    /// Added to the mean square in RMS norms; default: 1e-6. Only for `arch: llama`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rms_norm_eps: Option<f64>,
    /// Whether the matrices that write to the residual stream, `o` and `down`, begin at zero, so
    /// that every block begins as the identity; else they begin as draws that are smaller by
    /// (2 n_layer)^½. Not for factored weights, which would stay at zero.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zero_outputs: bool,
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
    /// W = W₀ + U S Vᵀ or W₀ + (α/r) B A beside the frozen weights of `init`: fine-tuning.
    Adapter(AdapterWeightsSpec),
}

/// What trains a block's matrices, whether they stand alone or beside frozen ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TrainedForm {
    /// Full matrices.
    Dense,
    /// Points on the manifold.
    LowRank,
    /// Free factors.
    Factored(FactorForm),
}

impl WeightsSpec {
    /// What is trained of the blocks' matrices.
    pub(super) fn trained_form(&self) -> TrainedForm {
        match self {
            WeightsSpec::Dense => TrainedForm::Dense,
            WeightsSpec::LowRank(_) => TrainedForm::LowRank,
            WeightsSpec::Factored(factored) => TrainedForm::Factored(factored.form),
            WeightsSpec::Adapter(adapter) => match adapter.form {
                AdapterForm::LowRank => TrainedForm::LowRank,
                AdapterForm::Lora => TrainedForm::Factored(FactorForm::Ba),
            },
        }
    }

    /// Name of the form in a spec, and the targets that it names, each with whether it gives the
    /// target a rank of its own.
    fn named_targets(&self) -> Option<(&'static str, BTreeMap<Target, bool>)> {
        let exceptions = |targets: &BTreeMap<Target, TargetRank>| {
            targets.keys().map(|target| (*target, true)).collect()
        };
        match self {
            WeightsSpec::Dense => None,
            WeightsSpec::LowRank(low_rank) => Some(("low_rank", exceptions(&low_rank.targets))),
            WeightsSpec::Factored(factored) => Some(("factored", exceptions(&factored.targets))),
            WeightsSpec::Adapter(adapter) => {
                let named = adapter.targets.iter().flat_map(|AdapterTargets(targets)| targets);
                let named = named.map(|(target, rank)| (*target, rank.is_some()));
                Some(("adapter", named.collect()))
            }
        }
    }
}

/// Ranks of low-rank weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LowRankWeightsSpec {
    /// Rank at the start of training, or `full`: that of each matrix.
    pub rank: StartRank,
    /// How the weights of `init` are cut, to ranks of up to `rank`; default: each to `rank`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<CutSpec>,
    /// What each weight is until a cut of `rank:` brings it below its full rank.
    #[serde(default, skip_serializing_if = "LowRankStart::is_default")]
    pub start: LowRankStart,
    /// Singular values at the start of training.
    #[serde(default, skip_serializing_if = "InitialSpectrum::is_default")]
    pub spectrum: InitialSpectrum,
    /// Exceptions: `q: 32`, `down: dense`, ...
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "per_target_schema::<TargetRank>")]
    pub targets: BTreeMap<Target, TargetRank>,
    /// Ranks of single blocks' matrices: a list with an entry for each block from the first on,
    /// `[{up: 80, down: 64}, {}, {q: 6}]`. For ranks that stay as they start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "per_layer_schema")]
    pub layers: Vec<BTreeMap<Target, usize>>,
}

/// First singular values of a low-rank weight W: m × n that stands in the place of a dense draw
/// with entries of standard deviation σ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitialSpectrum {
    /// All equal, with the norm of the dense draw: σ (mn / r)^½ each.
    #[default]
    Flat,
    /// The r largest of a dense draw, and its singular vectors: the best approximation of what a
    /// dense model begins with, of smaller norm.
    Gaussian,
}

impl InitialSpectrum {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a low-rank weight is at the start of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LowRankStart {
    /// W = U S Vᵀ from the first step on.
    #[default]
    Factors,
    /// One dense matrix W: m × n, until a cut gives it a rank r at which U S Vᵀ has fewer numbers,
    /// r (m + n + r) < m n, or the last cut any rank below the full one. Until then it moves by the
    /// dense counterpart of `dlra`'s momentum: Muon's step, AdamW's or heavy ball's. For `rank:
    /// full`, `integrator: tangent` and ranks that are cut.
    Dense,
}

impl LowRankStart {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
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

/// Rank of all targets that are not exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartRank {
    /// min(m, n) of each matrix.
    Full,
    /// The same for all.
    Rank(usize),
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
    let properties: serde_json::Map<_, _> = Target::of_blocks().map(entry).collect();
    json_schema!({ "type": "object", "properties": properties, "additionalProperties": false })
}

/// Schema of a list, by block, of maps from targets to ranks.
pub(super) fn per_layer_schema(generator: &mut SchemaGenerator) -> Schema {
    let mut ranks = per_target_schema::<usize>(generator);
    ranks.insert("description".into(), "Ranks of one block's matrices.".into());
    json_schema!({ "type": "array", "items": ranks.to_value() })
}

pub(super) fn check_model(found: &mut Findings, model: &ModelSpec, plan: &ModelPlan) {
    let sizes = [
        ("n_layer", model.n_layer, bounds::MAX_LAYERS),
        ("n_head", model.n_head, bounds::MAX_WIDTH),
        ("n_embd", model.n_embd, bounds::MAX_WIDTH),
        ("block_size", model.block_size, bounds::MAX_BLOCK_SIZE),
    ];
    for (key, size, most) in sizes {
        found.require_size(size as u64, most, &format!("model.{key}"));
    }
    if let Some(key_heads) = model.n_kv_head {
        found.require_size(key_heads as u64, bounds::MAX_WIDTH, "model.n_kv_head");
        if !found.has("model.n_head") && !found.has("model.n_kv_head") {
            found.require(model.n_head.is_multiple_of(key_heads), "model.n_kv_head", || {
                format!(
                    "{key_heads} does not divide `model.n_head` {}; choose {}",
                    model.n_head,
                    nearest_divisors(model.n_head, key_heads)
                )
            });
        }
    }
    if !found.has("model.n_head") && !found.has("model.n_embd") {
        found.require(model.n_embd.is_multiple_of(model.n_head), "model.n_head", || {
            format!(
                "{} does not divide `model.n_embd` {}; choose {}",
                model.n_head,
                model.n_embd,
                nearest_divisors(model.n_embd, model.n_head)
            )
        });
    }
    found.require_number(
        model.dropout,
        (0.0..1.0).contains(&model.dropout),
        "of at least 0 and less than 1",
        "model.dropout",
    );
    found.require(
        !(model.zero_outputs && matches!(model.weights, WeightsSpec::Factored(_))),
        "model.zero_outputs",
        || "factors that are both zero have no gradient and never move; remove it".into(),
    );
    for (key, problem) in plan.setting_problems() {
        let path = format!("model.{key}");
        // A number of heads that shares out no width has been refused already.
        if !found.has(&path) {
            found.require(false, &path, || problem);
        }
    }
}

/// The divisors of `number` next to `wish`, in words.
fn nearest_divisors(number: usize, wish: usize) -> String {
    let divides = |divisor: &usize| number.is_multiple_of(*divisor);
    let below = (1..wish.min(number)).rev().find(divides);
    let above = (wish..=number).find(divides);
    let names: Vec<String> =
        below.into_iter().chain(above).map(|divisor| divisor.to_string()).collect();
    names.join(" or ")
}

pub(super) fn check_weights(found: &mut Findings, spec: &RunSpec, plan: &Plan) {
    let Some((kind, targets)) = spec.model.weights.named_targets() else { return };
    let is_adapter = matches!(spec.model.weights, WeightsSpec::Adapter(_));
    let everything_dense = plan.model.weights.values().all(|form| *form == WeightForm::Dense);
    found.require(
        is_adapter || !everything_dense,
        &format!("model.weights.{kind}.targets"),
        || "every target is dense; write `weights: dense`".into(),
    );
    for target in targets.keys() {
        if let Some(objection) = plan.model.objection(*target) {
            let path = format!("model.weights.{kind}.targets.{}", target.name());
            found.require(false, &path, || objection);
        }
    }
    let mut default_rank_refused = false;
    for (target, form) in &plan.model.weights {
        let Some(rank) = form.rank() else { continue };
        let is_exception = targets.get(target).copied().unwrap_or(false);
        let (name, shape) = (target.name(), plan.model.shape(*target));
        let Some(problem) = bounds::rank_problem(name, rank, shape) else { continue };
        // A width of 0 has been refused already.
        if shape.0.min(shape.1) == 0 || (!is_exception && default_rank_refused) {
            continue;
        }
        default_rank_refused |= !is_exception;
        let path = if is_exception {
            format!("model.weights.{kind}.targets.{name}")
        } else {
            format!("model.weights.{kind}.rank")
        };
        let other = if is_adapter { "" } else { ", or `dense`" };
        found.require(false, &path, || format!("{problem}{other}"));
    }
}
