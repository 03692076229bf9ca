//! `optimizer:` of a spec: how weights move.

use super::count::Count;
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
    /// Whether the direction looks ahead by one gradient.
    pub nesterov: bool,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for MuonSpec {
    fn default() -> Self {
        Self { learning_rate: 1e-2, beta1: 0.95, nesterov: true, weight_decay: 0.1 }
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

/// Dynamical low-rank optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DlraSpec {
    /// How a step is taken on the manifold.
    pub integrator: Integrator,
    /// Which momentum gives the direction.
    pub momentum: Momentum,
    /// Whether the direction looks ahead by one gradient (Nesterov's form of the momentum).
    pub nesterov: bool,
    /// How element-wise second moments (`adam`) follow the bases.
    pub second_moment_transport: SecondMomentTransport,
    /// How the step returns to the manifold while the rank does not change.
    pub retraction: RetractionSpec,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment (`adam`).
    pub beta2: f64,
    /// Added to the root of the second moment (`adam`).
    pub epsilon: f64,
    /// Decoupled weight decay on S.
    pub weight_decay: f64,
    /// Strength β of the regulariser β‖SSᵀ − (‖S‖_F²/r) I‖_F, which draws singular values together;
    /// 0 turns it off.
    #[serde(skip_serializing_if = "is_zero")]
    pub spectral_regularization: f64,
    /// Steps between re-orthonormalisations of the bases.
    pub reorthonormalize_every: Count,
    /// Coefficient steps between an augmentation and its truncation: on the same batch
    /// (`augmented_bug`, default 1) or on one more batch each (`coefficient_cycle`, default 9).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coefficient_steps: Option<Count>,
    /// Steps between two truncations by SVD with `retraction: svd`; the steps between them take the
    /// `subspace` retraction, which is right to first order: it holds up while a step is small
    /// against the singular values that are kept.
    #[serde(skip_serializing_if = "is_every_step")]
    pub truncate_every: Count,
}

/// Plans written before the key was there keep their hashes.
fn is_every_step(truncate_every: &Count) -> bool {
    *truncate_every == Count(1)
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

impl Default for DlraSpec {
    fn default() -> Self {
        Self {
            integrator: Integrator::Tangent,
            momentum: Momentum::Spectral,
            nesterov: false,
            second_moment_transport: SecondMomentTransport::Variance,
            retraction: RetractionSpec::Subspace,
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-10,
            weight_decay: 0.1,
            spectral_regularization: 0.0,
            reorthonormalize_every: Count(20),
            coefficient_steps: None,
            truncate_every: Count(1),
        }
    }
}

/// How a step is taken on the manifold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Integrator {
    /// One gradient; augment by the tangent direction, Galerkin step, truncate (docs/method.md §3).
    Tangent,
    /// One gradient to augment, then one more per coefficient step on the same batch, in the
    /// augmented bases; truncate (Ceruti, Kusch & Lubich 2022).
    AugmentedBug,
    /// Augment on one batch, train the coefficients alone on the next ones with the bases frozen,
    /// truncate.
    CoefficientCycle,
}

/// Momentum of the low-rank weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Momentum {
    /// The tangent first moment itself, m ← β₁ m + g (SGD-with-momentum form; the paper's λ is
    /// √learning_rate and γ = 1 − β₁).
    HeavyBall,
    /// Element-wise second moments of the tangent coordinates.
    Adam,
    /// r × r second moments of the K- and L-gradient, exact under changes of the bases.
    MatrixAdam,
    /// Polar factor of the tangent first moment.
    Spectral,
}

/// How element-wise second moments (`adam`) follow the bases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecondMomentTransport {
    /// As variances of independent coordinates: squares of the rotation.
    Variance,
    /// √v by the rotation itself, then squared: underestimates v where terms cancel; here to show
    /// what that does.
    Linear,
}

/// How the step returns to the manifold while the rank does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetractionSpec {
    /// Truncated SVD of the augmented coefficients.
    Svd,
    /// One warm-started subspace iteration: right to first order, no SVD.
    Subspace,
}
