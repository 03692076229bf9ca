//! `optimizer:` of a spec: how weights move.

use super::beta1_spec::Beta1ScheduleSpec;
use super::count::Count;
use super::dlra_spec::DlraSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How weights move: one rule for everything dense, one for the low-rank weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSpec {
    /// Rule for embeddings, norms, biases, and dense matrices.
    pub dense: DenseOptimizerSpec,
    /// Rule for the blocks' full matrices. Default: `dense`'s rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matrices: Option<MatrixOptimizerSpec>,
    /// Rule for `low_rank` and `factored` weights. Default: `dlra` for low-rank, `dense`'s rule for
    /// factored ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_rank: Option<LowRankOptimizerSpec>,
}

/// Rule for dense parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DenseOptimizerSpec {
    /// AdamW with decoupled weight decay (Loshchilov & Hutter 2019), decay on matrices only.
    Adamw(AdamwSpec),
}

impl Default for DenseOptimizerSpec {
    fn default() -> Self {
        Self::Adamw(AdamwSpec::default())
    }
}

/// Rule for the full matrices of the blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MatrixOptimizerSpec {
    /// Momentum whose polar factor is the direction (Jordan et al. 2024), scaled to Adam's learning
    /// rates.
    Muon(MuonSpec),
    /// Adam in a low-rank projection of the gradient (Zhao et al. 2024, GaLore).
    Galore(GaloreSpec),
}

/// Muon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MuonSpec {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the momentum.
    pub beta1: f64,
    /// Another decay at first, and the way from it to `beta1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta1_schedule: Option<Beta1ScheduleSpec>,
    /// Whether the direction looks ahead by one gradient.
    pub nesterov: bool,
    /// Whitens the momentum by the second moment of the weight's inputs before its polar factor
    /// (Newton-Muon, Du & Su 2026): what is added to that moment before it is inverted, as a share
    /// of its mean eigenvalue, such as 0.2; the larger, the less is whitened. Default: plain Muon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_damping: Option<f64>,
    /// Decay of the second moment of the inputs (`input_damping`).
    #[serde(skip_serializing_if = "is_default_input_decay")]
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// As `dlra` has it.
const DEFAULT_INPUT_DECAY: f64 = 0.99;

fn is_default_input_decay(beta2: &f64) -> bool {
    *beta2 == DEFAULT_INPUT_DECAY
}

/// A decay that nothing goes by.
pub(super) fn unused_of_muon(unused: &mut Vec<String>, muon: &MuonSpec, path: &str) {
    if muon.input_damping.is_none() && !is_default_input_decay(&muon.beta2) {
        unused.push(format!("{path}.beta2: unused without `input_damping`"));
    }
}

impl Default for MuonSpec {
    fn default() -> Self {
        Self {
            learning_rate: 1e-2,
            beta1: 0.95,
            beta1_schedule: None,
            nesterov: true,
            input_damping: None,
            beta2: DEFAULT_INPUT_DECAY,
            weight_decay: 0.1,
        }
    }
}

/// GaLore: full matrices, moments of low rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GaloreSpec {
    /// Rank of the projection.
    pub rank: usize,
    /// Steps between two projections, each by an SVD of the gradient.
    pub refresh_every: Count,
    /// Factor α on the direction.
    pub scale: f64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// What the authors pre-train with, except for β₂, 0.999 there, and ε, 1e-6 there, which are those
/// of the other rules here.
impl Default for GaloreSpec {
    fn default() -> Self {
        Self {
            rank: 128,
            refresh_every: Count(200),
            scale: 0.25,
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// Heavy ball: SGD with momentum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeavyBallSpec {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the momentum.
    pub beta1: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for HeavyBallSpec {
    fn default() -> Self {
        Self { learning_rate: 0.3, beta1: 0.9, weight_decay: 0.1 }
    }
}

/// Rule for low-rank parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LowRankOptimizerSpec {
    /// Dynamical low-rank approximation, for `weights: low_rank`.
    Dlra(DlraSpec),
    /// AdamW on every factor, for `weights: factored`.
    Adamw(AdamwSpec),
    /// Heavy ball on every factor, for `weights: factored`.
    HeavyBall(HeavyBallSpec),
    /// LORO (Mo et al. 2025): AdamW on B and A with an exact Riemannian step of W = B A now and
    /// then, for `weights: {factored: {form: ba}}`.
    Loro(LoroSpec),
}

/// LORO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoroSpec {
    /// Steps between two exact steps; after each, all moments of Adam start anew.
    pub exact_every: Count,
    /// Steps in which every learning rate rises from 0 again after an exact step; less than
    /// `exact_every`.
    pub restart_warmup_steps: Count,
    /// Peak learning rate of exact steps; that between them is rank / min(m, n) times as large.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, between exact steps.
    pub weight_decay: f64,
}

/// What the authors pre-train with, except for β₂, 0.999 there, and ε, 1e-6 there, which are those
/// of the other rules here.
impl Default for LoroSpec {
    fn default() -> Self {
        Self {
            exact_every: Count(500),
            restart_warmup_steps: Count(5),
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamwSpec {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, on matrices only.
    pub weight_decay: f64,
}

impl Default for AdamwSpec {
    fn default() -> Self {
        Self { learning_rate: 3e-3, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 }
    }
}
