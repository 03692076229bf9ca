//! `optimizer.low_rank.dlra:` of a spec: the dynamical low-rank optimizer.

use super::beta1_spec::{Beta1ScheduleSpec, check_beta1_schedule, unused_of_beta1};
use super::bounds;
use super::count::Count;
use super::findings::Findings;
use super::optimizer_rules::check_moments;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// Another decay at first, and the way from it to `beta1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta1_schedule: Option<Beta1ScheduleSpec>,
    /// Decay of second moments, of gradients or of inputs.
    pub beta2: f64,
    /// Added to the root of the second moment (`adam`).
    pub epsilon: f64,
    /// What is added to the second moment of the inputs before it is inverted
    /// (`input_whitened_spectral`), as a share of its mean eigenvalue: the larger, the less is
    /// whitened.
    #[serde(skip_serializing_if = "is_default_damping")]
    pub input_damping: f64,
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

fn is_default_damping(damping: &f64) -> bool {
    *damping == DEFAULT_INPUT_DAMPING
}

/// A compromise: with 0.2, directions of next to no input are enlarged sixfold, at most.
const DEFAULT_INPUT_DAMPING: f64 = 0.2;

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
            beta1_schedule: None,
            beta2: 0.99,
            epsilon: 1e-10,
            input_damping: DEFAULT_INPUT_DAMPING,
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
    /// Polar factor of the tangent first moment, whitened by the r × r second moments of
    /// `matrix_adam` to the power −¼.
    WhitenedSpectral,
    /// Polar factor of the tangent first moment, whitened on the side of V by the inverse of the r
    /// × r second moment of the weight's inputs (Newton-Muon, Du & Su 2026).
    InputWhitenedSpectral,
}

impl Momentum {
    /// Whether it goes by second moments of the weight's inputs, which every backward pass then
    /// measures.
    pub fn measures_inputs(self) -> bool {
        self == Momentum::InputWhitenedSpectral
    }
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

pub(super) fn check_dlra(found: &mut Findings, dlra: &DlraSpec, path: &str) {
    check_moments(
        found,
        [dlra.learning_rate, dlra.beta1, dlra.beta2, dlra.epsilon, dlra.weight_decay],
        path,
    );
    check_beta1_schedule(found, dlra.beta1_schedule.as_ref(), path);
    let strength = dlra.spectral_regularization;
    found.require_number(
        strength,
        strength >= 0.0,
        "of at least 0 (0 turns it off)",
        &format!("{path}.spectral_regularization"),
    );
    check_input_damping(found, dlra.input_damping, path);
    found
        .require_positive(dlra.reorthonormalize_every.0, &format!("{path}.reorthonormalize_every"));
    found.require_positive(dlra.truncate_every.0, &format!("{path}.truncate_every"));
    if let Some(steps) = dlra.coefficient_steps {
        found.require_size(
            steps.0,
            bounds::MAX_COEFFICIENT_STEPS,
            &format!("{path}.coefficient_steps"),
        );
    }
    let name = match dlra.momentum {
        Momentum::MatrixAdam => "matrix_adam",
        Momentum::WhitenedSpectral => "whitened_spectral",
        Momentum::InputWhitenedSpectral => "input_whitened_spectral",
        Momentum::HeavyBall | Momentum::Adam | Momentum::Spectral => return,
    };
    let has_no_moments = dlra.integrator == Integrator::AugmentedBug;
    found.require(!has_no_moments, &format!("{path}.momentum"), || {
        format!("`{name}` has gathered no second moments of the directions that `integrator: augmented_bug` steps along; choose `spectral`, `adam` \
         or `heavy_ball`, or the integrator `tangent` or `coefficient_cycle`")
    });
}

/// What is added to a second moment of inputs before it is inverted.
pub(super) fn check_input_damping(found: &mut Findings, damping: f64, path: &str) {
    let range = "greater than 0, such as 0.2";
    found.require_number(damping, damping > 0.0, range, &format!("{path}.input_damping"));
}

/// Settings that the integrator does not look at.
pub(super) fn unused_of_integrator(unused: &mut Vec<String>, dlra: &DlraSpec, steps: u64) {
    let path = "optimizer.low_rank.dlra";
    unused_of_beta1(unused, dlra.beta1_schedule.as_ref(), (path, steps));
    if !dlra.momentum.measures_inputs() && !is_default_damping(&dlra.input_damping) {
        unused.push(format!(
            "{path}.input_damping: unused, only `momentum: input_whitened_spectral` has it"
        ));
    }
    if dlra.integrator == Integrator::Tangent && dlra.coefficient_steps.is_some() {
        unused.push(format!(
            "{path}.coefficient_steps: unused with `integrator: tangent`, whose one Galerkin step \
             takes no gradient of its own"
        ));
    }
    if dlra.truncate_every.0 > 1 && dlra.integrator == Integrator::CoefficientCycle {
        unused.push(format!(
            "{path}.truncate_every: unused with `integrator: coefficient_cycle`, which truncates \
             by SVD at the end of each cycle"
        ));
    } else if dlra.truncate_every.0 > 1 && dlra.retraction == RetractionSpec::Subspace {
        unused.push(format!("{path}.truncate_every: unused with `retraction: subspace`, which takes no SVD while ranks stay"));
    }
    if let Some(length) = dlra.cycle_length().filter(|length| *length > steps) {
        unused.push(format!(
            "{path}.coefficient_steps: a cycle of {length} steps is longer than the run of \
             {steps}; it ends early, truncated"
        ));
    }
}
