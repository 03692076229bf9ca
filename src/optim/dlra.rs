//! The dynamical low-rank (DLRA) step of one weight W = U S Vᵀ: momentum, augmentation, Galerkin step, truncation, transport.
//!
//! algorithms.md §2–§4; tangent integrator (one gradient per step), after Schotthöfer, Klein & Kusch (arXiv:2506.17475) and the
//! augmented Basis-Update & Galerkin integrator (Ceruti, Kusch & Lubich 2022). Shapes: m × n weight, rank r.

use super::rank::RankDecision;
use super::state::StateReader;
use crate::linalg;
use crate::lowrank::{Augmentation, BasisChange, LowRank, Tangent, Truncation, tolerance_rank};
use crate::spec::{DlraSpec, Momentum, RetractionSpec};
use candle_core::{Result, Tensor};

/// Scale of a spectral direction, so that learning rates match Adam's: 0.2 √max(m, n) (Liu et al. 2025, arXiv:2502.16982, eq. 4).
const SPECTRAL_SCALE: f64 = 0.2;

/// Numbers of one DLRA step.
#[derive(Clone, Copy, Debug)]
pub struct DlraStep<'a> {
    /// The rule's settings.
    pub settings: &'a DlraSpec,
    /// Learning rate η of this step, schedule included.
    pub learning_rate: f64,
    /// Step t, counted from 1.
    pub step: u64,
    /// Factor on the gradient: accumulation mean and clipping together.
    pub gradient_scale: f64,
    /// What happens to the rank.
    pub rank: RankDecision,
}

/// Optimizer state of one low-rank weight.
#[derive(Clone, Debug)]
pub struct DlraState {
    /// First moment, a tangent vector at the current point.
    first: Tangent,
    /// Second moments, for `adam`.
    second: Option<SecondMoments>,
}

/// Element-wise second moments of the tangent coordinates, with the weight each entry has gathered.
///
/// v ← β₂v + (1−β₂)g² is a weighted sum of past g² whose weights add up to c ← β₂c + (1−β₂); v̂ = v/c is its bias-corrected mean. Both
/// travel by the same linear map when the bases change, so directions that are new (c = 0) start their own correction, and mixing old and
/// new ones stays a weighted mean. With a fixed basis c = 1 − β₂ᵗ, Adam's correction.
#[derive(Clone, Debug)]
struct SecondMoments {
    /// v_M (r × r), v_P (m × r), v_Q (n × r).
    sum: Tangent,
    /// c_M (r × r), c_P (1 × r), c_Q (1 × r): one weight a column suffices for P and Q.
    weight: Tangent,
}

/// What a step did to one weight.
#[derive(Clone, Debug)]
pub struct DlraUpdate {
    /// The new point.
    pub point: LowRank,
    /// The new state.
    pub state: DlraState,
    /// The truncation, where an SVD decided or kept a rank.
    pub truncation: Option<Truncation>,
}

impl DlraState {
    /// Zero moments at this point.
    pub fn new(point: &LowRank, settings: &DlraSpec) -> Result<Self> {
        let second = (settings.momentum == Momentum::Adam).then(|| SecondMoments::new(point)).transpose()?;
        Ok(Self { first: Tangent::zeros(point)?, second })
    }

    /// One step from `point` along the momentum of `gradient` (a tangent vector at `point`, before scaling).
    ///
    /// Nothing is changed in place: on an error the old point and state are intact.
    ///
    /// # Errors
    /// If a factorisation meets a non-finite number or does not converge.
    pub fn step(&self, point: &LowRank, gradient: &Tangent, hyper: &DlraStep) -> Result<DlraUpdate> {
        let mut state = self.clone();
        let direction = state.direction(point, gradient, hyper)?;
        let augmentation = Augmentation::new(point, &direction)?;
        let core = match hyper.settings.momentum {
            Momentum::Spectral => {
                let scale = SPECTRAL_SCALE * (point.rows().max(point.columns()) as f64).sqrt();
                // The settings that retract by an SVD take the exact polar factor too; the others stay with matrix products.
                let polar = match hyper.settings.retraction {
                    RetractionSpec::Svd => linalg::polar(augmentation.core())?,
                    RetractionSpec::Subspace => linalg::polar_newton_schulz(augmentation.core())?,
                };
                (polar * scale)?
            }
            Momentum::HeavyBall | Momentum::Adam => augmentation.core().clone(),
        };
        let coefficients = augmentation.coefficients(point, &core, hyper.learning_rate, hyper.settings.weight_decay)?;
        let rank = point.rank();
        let retracted = match (hyper.rank, hyper.settings.retraction) {
            (RankDecision::Keep, RetractionSpec::Subspace) => augmentation.retract_subspace(point, &coefficients)?,
            (RankDecision::Keep, RetractionSpec::Svd) => augmentation.truncate(point, &coefficients, &|_| rank)?,
            (RankDecision::Grow { rank }, _) => augmentation.truncate(point, &coefficients, &|_| rank)?,
            (RankDecision::Truncate { tau, min_rank, max_rank }, _) => {
                augmentation.truncate(point, &coefficients, &|sigma| tolerance_rank(sigma, tau).clamp(min_rank, max_rank))?
            }
        };
        let mut new_point = retracted.point;
        if hyper.step.is_multiple_of(hyper.settings.reorthonormalize_every.0.max(1)) {
            new_point = new_point.reorthonormalized()?;
        }
        let change = BasisChange::from_rotations(point, &new_point, retracted.rotation_u, retracted.rotation_v);
        state.first = change.transport(&state.first)?;
        if let Some(second) = &mut state.second {
            second.transport(&change)?;
        }
        Ok(DlraUpdate { point: new_point, state, truncation: retracted.truncation })
    }

    /// Updates the moments and returns the direction D as a tangent vector.
    fn direction(&mut self, point: &LowRank, gradient: &Tangent, hyper: &DlraStep) -> Result<Tangent> {
        let DlraSpec { beta1, beta2, epsilon, momentum, .. } = *hyper.settings;
        if momentum == Momentum::HeavyBall {
            // SGD-with-momentum form, m ← β₁m + g. The paper's V ← (1−γ)V − λ∇L, W ← W + λV is this with β₁ = 1−γ and η = λ².
            self.first = self.first.scaled_add(beta1, gradient, hyper.gradient_scale)?;
            return Ok(self.first.clone());
        }
        self.first = self.first.scaled_add(beta1, gradient, (1.0 - beta1) * hyper.gradient_scale)?;
        let Some(second) = &mut self.second else { return Ok(self.first.clone()) };
        second.update(gradient, beta2, hyper.gradient_scale)?;
        let correction = 1.0 / (1.0 - beta1.powi(hyper.step as i32));
        let divide = |mean: &Tensor, sum: &Tensor, weight: &Tensor| -> Result<Tensor> {
            (mean * correction)? / (sum.broadcast_div(weight)?.sqrt()? + epsilon)?
        };
        let direction = Tangent {
            m: divide(&self.first.m, &second.sum.m, &second.weight.m)?,
            p: divide(&self.first.p, &second.sum.p, &second.weight.p)?,
            q: divide(&self.first.q, &second.sum.q, &second.weight.q)?,
        };
        direction.project_complement(point)
    }

    /// State tensors by name.
    pub fn named_tensors(&self) -> Vec<(String, Tensor)> {
        let named = |prefix: &str, z: &Tangent| {
            [("m", &z.m), ("p", &z.p), ("q", &z.q)].map(|(leaf, tensor)| (format!("{prefix}.{leaf}"), tensor.clone()))
        };
        let mut tensors = named("first", &self.first).to_vec();
        if let Some(second) = &self.second {
            tensors.extend(named("second", &second.sum));
            tensors.extend(named("second_weight", &second.weight));
        }
        tensors
    }

    /// The state of a weight at `point`, from named tensors; the shapes must be those of `point`.
    pub fn load(point: &LowRank, settings: &DlraSpec, reader: &mut StateReader) -> anyhow::Result<Self> {
        let expected = Self::new(point, settings)?;
        let mut read = |prefix: &str, like: &Tangent| -> anyhow::Result<Tangent> {
            Ok(Tangent {
                m: reader.take_like(&format!("{prefix}.m"), &like.m)?,
                p: reader.take_like(&format!("{prefix}.p"), &like.p)?,
                q: reader.take_like(&format!("{prefix}.q"), &like.q)?,
            })
        };
        let first = read("first", &expected.first)?;
        let second = match &expected.second {
            Some(like) => Some(SecondMoments { sum: read("second", &like.sum)?, weight: read("second_weight", &like.weight)? }),
            None => None,
        };
        Ok(Self { first, second })
    }
}

impl SecondMoments {
    fn new(point: &LowRank) -> Result<Self> {
        let row = Tensor::zeros((1, point.rank()), point.s.dtype(), point.s.device())?;
        let weight = Tangent { m: point.s.zeros_like()?, p: row.clone(), q: row };
        Ok(Self { sum: Tangent::zeros(point)?, weight })
    }

    /// v ← β₂v + (1−β₂)(scale · g)², c ← β₂c + (1−β₂).
    fn update(&mut self, gradient: &Tangent, beta2: f64, scale: f64) -> Result<()> {
        let factor = (1.0 - beta2) * scale * scale;
        let add_square = |sum: &Tensor, g: &Tensor| -> Result<Tensor> { (sum * beta2)? + (g.sqr()? * factor)? };
        self.sum = Tangent {
            m: add_square(&self.sum.m, &gradient.m)?,
            p: add_square(&self.sum.p, &gradient.p)?,
            q: add_square(&self.sum.q, &gradient.q)?,
        };
        let age = |weight: &Tensor| weight.affine(beta2, 1.0 - beta2);
        self.weight = Tangent { m: age(&self.weight.m)?, p: age(&self.weight.p)?, q: age(&self.weight.q)? };
        Ok(())
    }

    fn transport(&mut self, change: &BasisChange) -> Result<()> {
        self.sum = change.transport_second_moments(&self.sum)?;
        self.weight = change.transport_second_moments(&self.weight)?;
        Ok(())
    }
}
