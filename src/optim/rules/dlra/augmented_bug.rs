//! `augmented_bug`: the Galerkin step with gradients of its own, in augmented bases (Ceruti, Kusch
//! & Lubich 2022, §3; docs/method.md §4).
//!
//! With Z the carried first moment at W = U S Vᵀ, T = P(W)G the first tangent gradient, β = β₁ and
//! w = 1 − β₁ (1 for `heavy_ball`):
//!
//! ```text
//! augment      m = βZ + wT,  D = D(m) as for `tangent`;  Û = [U | Q_P], V̂ = [V | Q_Q] hold D
//! start        Ŝ₀ = [[S, 0], [0, 0]],  Ẑ₀ = Ûᵀ Z V̂
//! j = 1 … J    Ĝⱼ = Ûᵀ ∇L(Û Ŝⱼ₋₁ V̂ᵀ) V̂,  Ẑⱼ = βẐⱼ₋₁ + wĜⱼ,  Ŝⱼ = (1 − ηλ) Ŝⱼ₋₁ − η D(Ẑⱼ)
//! truncate     Û Ŝ_J V̂ᵀ to the rank of the policy
//! transport    m + Û (Ẑ_J − Ûᵀ m V̂) V̂ᵀ, projected to the tangent space at the new point
//! ```
//!
//! D(Ẑ) is Ẑ for `heavy_ball`, 0.2 √max(m, n) times its polar factor for `spectral`, and Adam's
//! quotient with second moments of the coefficients for `adam`; with Nesterov, of βẐⱼ + wĜⱼ. So
//! momentum acts on the coefficients, as in the authors' codes (Stochastic-DLRA steps S by SGD,
//! RobustDLRT by AdamW with moments kept for S alone), but begins from and returns to a tangent
//! vector: moments kept for S alone forget what lies outside the bases at every truncation. For J =
//! 1 the first gradient enters once, and what `tangent` lacks is the (2,2) block Q_Pᵀ G Q_Q of the
//! gradient at W, which is normal to the manifold: with the rank kept it changes W by O(η²). From J
//! = 2 on the gradient is taken at points that have moved.

use super::conditioning;
use super::momenta::CoefficientMoments;
use super::{DlraState, DlraStep, DlraUpdate};
use crate::linalg::weighted_sum;
use crate::lowrank::{Augmentation, LowRank, Tangent};
use crate::optim::gradient::Scaled;
use candle_core::{Result, Tensor};

/// A step of one weight under way: the augmented bases are fixed, the coefficients move.
#[derive(Clone, Debug)]
pub struct GalerkinStep {
    point: LowRank,
    augmentation: Augmentation,
    /// State after the first gradient, at the old point.
    state: DlraState,
    /// Ŝ: (r + k_P) × (r + k_Q).
    coefficients: Tensor,
    /// Ẑ, of Ŝ's shape.
    moment: Tensor,
    /// Second moments of Ŝ's entries, where the momentum has any.
    second: Option<CoefficientMoments>,
    /// Coefficient steps taken.
    taken: u64,
}

impl DlraState {
    /// Augments the bases by the momentum's direction; the coefficients are still those of `point`,
    /// and nothing has moved.
    ///
    /// # Errors
    /// If a factorisation meets a non-finite number or does not converge.
    pub fn begin_galerkin(
        &self,
        point: &LowRank,
        gradient: Scaled<Tangent>,
        hyper: &DlraStep,
    ) -> Result<GalerkinStep> {
        let mut state = self.clone();
        let direction = state.direction(point, gradient, hyper)?;
        let augmentation = Augmentation::new(point, &direction)?;
        let second = self.momentum.coefficient_moments(point, &augmentation)?;
        let coefficients = augmentation.augmented_coefficients(point)?;
        let moment = augmentation.coefficients_of(&self.first)?;
        Ok(GalerkinStep {
            point: point.clone(),
            augmentation,
            state,
            coefficients,
            moment,
            second,
            taken: 0,
        })
    }
}

impl GalerkinStep {
    /// Û Ŝ V̂ᵀ, where the next gradient is to be taken; see [`Augmentation::point_at`].
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn augmented_point(&self) -> Result<LowRank> {
        self.augmentation.point_at(&self.point, &self.coefficients)
    }

    /// Ûᵀ G V̂ from the K-gradient at [`Self::augmented_point`], before scaling.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn gradient(&self, k: &Tensor) -> Result<Tensor> {
        self.augmentation.coefficient_gradient(&self.point, k)
    }

    /// One coefficient step along this gradient by Ŝ; the regulariser, where there is one, acts on
    /// the leading r × r block, as it does under `tangent`.
    ///
    /// # Errors
    /// If a factorisation does not converge.
    pub fn advance(self, gradient: Scaled<Tensor>, hyper: &DlraStep) -> Result<Self> {
        let strength = hyper.settings.spectral_regularization;
        if strength == 0.0 {
            return self.advance_along(gradient, hyper);
        }
        let ((rows, columns), rank) = (gradient.sum().dims2()?, self.point.rank());
        let leading = self.coefficients.narrow(0, 0, rank)?.narrow(1, 0, rank)?.contiguous()?;
        let regulariser = conditioning::gradient(&leading)?
            .pad_with_zeros(0, 0, rows - rank)?
            .pad_with_zeros(1, 0, columns - rank)?;
        let sum = weighted_sum(1.0, gradient.sum(), gradient.unscaled(strength), &regulariser)?;
        self.advance_along(gradient.with(&sum), hyper)
    }

    fn advance_along(mut self, gradient: Scaled<Tensor>, hyper: &DlraStep) -> Result<Self> {
        let (settings, momentum) = (hyper.settings, &self.state.momentum);
        self.taken += 1;
        let beta1 = hyper.beta1().at(hyper.step);
        let weight = gradient.factor(momentum.gradient_weight(beta1));
        let decayed = |mean: &Tensor| weighted_sum(beta1, mean, weight, gradient.sum());
        self.moment = decayed(&self.moment)?;
        let mean = if settings.nesterov { decayed(&self.moment)? } else { self.moment.clone() };
        let direction = match &mut self.second {
            Some(second) => {
                // A step decays the moment once per coefficient step, and has decayed it that often
                // in each step before.
                let now = self.taken + u64::from(settings.nesterov);
                let per_step = settings.coefficient_steps();
                let gathered = hyper.beta1().gathered_within(hyper.step, per_step, now);
                second.direction(mean, gradient, hyper, gathered)?
            }
            None => momentum.core(&self.point, &mean, hyper)?,
        };
        let keep = 1.0 - hyper.learning_rate * settings.weight_decay;
        self.coefficients =
            weighted_sum(keep, &self.coefficients, -hyper.learning_rate, &direction)?;
        Ok(self)
    }

    /// Truncates and carries the moments to the new point.
    ///
    /// # Errors
    /// If a factorisation meets a non-finite number or does not converge.
    pub fn finish(self, hyper: &DlraStep) -> Result<DlraUpdate> {
        let retracted = hyper.retract(&self.point, &self.augmentation, &self.coefficients)?;
        let gained = weighted_sum(
            1.0,
            &self.moment,
            -1.0,
            &self.augmentation.coefficients_of(&self.state.first)?,
        )?;
        let mut update = self.state.arrive(&self.point, retracted, hyper)?;
        let gained = self.augmentation.project(&self.point, &gained, &update.point)?;
        update.state.first = update.state.first.scaled_add(1.0, &gained, 1.0)?;
        Ok(update)
    }
}
