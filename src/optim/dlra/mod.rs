//! The dynamical low-rank (DLRA) step of one weight W = U S Vᵀ: momentum, augmentation, Galerkin step, truncation, transport.
//!
//! algorithms.md §2–§4; tangent integrator (one gradient per step), after Schotthöfer, Klein & Kusch (arXiv:2506.17475) and the
//! augmented Basis-Update & Galerkin integrator (Ceruti, Kusch & Lubich 2022). Shapes: m × n weight, rank r.

mod conditioning;
mod matrix_moments;
mod second_moments;
mod side_by_side;

use super::muon::SPECTRAL_SCALE;
use super::rank::RankDecision;
use super::state::StateReader;
use crate::linalg;
use crate::lowrank::{Augmentation, BasisChange, LowRank, Spectrum, Tangent, Truncation};
use crate::spec::{DlraSpec, Momentum, RetractionSpec};
use candle_core::{Device, Result, Tensor};
use conditioning::regularized;
use matrix_moments::MatrixMoments;
use second_moments::SecondMoments;
pub use side_by_side::{Item, step_all};

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
    /// What scales it.
    second: Second,
}

/// What scales the first moment.
#[derive(Clone, Debug)]
enum Second {
    /// Nothing: `heavy_ball`, `spectral`.
    None,
    /// Element-wise second moments of the tangent coordinates: `adam`.
    Elements(SecondMoments),
    /// r × r second moments of the K- and L-gradient: `matrix_adam`.
    Matrices(MatrixMoments),
}

/// A step before its truncation.
struct Advanced {
    /// New moments, in the old bases.
    state: DlraState,
    /// Augmented bases.
    augmentation: Augmentation,
    /// Ŝ with Û Ŝ V̂ᵀ = (1 − ηλ) W − ηD.
    coefficients: Tensor,
}

/// What a step did to one weight.
#[derive(Clone, Debug)]
pub struct DlraUpdate {
    /// The new point.
    pub point: LowRank,
    /// The new state.
    pub state: DlraState,
    /// R_U = UᵀU₀ and R_V = V₀ᵀV, from the old bases to the new.
    rotations: [Tensor; 2],
    /// The truncation, where an SVD decided or kept a rank.
    pub truncation: Option<Truncation>,
}

impl DlraUpdate {
    /// The new point's singular values, in the norm of second moments seen in the old bases (of output gradients in U₀, of inputs in V₀) or, without, in
    /// the Frobenius norm.
    ///
    /// The moments travel by the rotations; what of them lies outside the old bases was never measured.
    ///
    /// # Errors
    /// If a moment is not finite, or a factorisation does not converge.
    pub fn spectrum(&self, moments: Option<[&Tensor; 2]>) -> Result<Spectrum> {
        let Some([left, right]) = moments else { return Spectrum::new(&self.point) };
        let [r_u, r_v] = &self.rotations;
        let left = linalg::multiply(&linalg::multiply(r_u, left)?, &r_u.t()?)?;
        let right = linalg::multiply(&linalg::multiply(&r_v.t()?, right)?, r_v)?;
        Spectrum::weighted(&self.point, &left, &right)
    }

    /// The same update, its tensors on this device.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let [r_u, r_v] = &self.rotations;
        Ok(Self {
            point: self.point.to_device(device)?,
            state: self.state.map_leaves(|leaf| leaf.to_device(device))?,
            rotations: [r_u.to_device(device)?, r_v.to_device(device)?],
            truncation: self.truncation.clone(),
        })
    }

    /// The update with its point cut to this rank and the state carried there.
    ///
    /// # Errors
    /// If the spectrum is not this point's, or an SVD does not converge.
    pub fn cut(mut self, spectrum: &Spectrum, rank: usize, settings: &DlraSpec) -> Result<Self> {
        let cut = spectrum.truncate(&self.point, rank)?;
        let change = BasisChange::from_rotations(&self.point, &cut.point, cut.rotation_u, cut.rotation_v);
        self.state.transport(&change, settings)?;
        let [r_u, r_v] = &self.rotations;
        let rotations = [linalg::multiply(change.rotation_u(), r_u)?, linalg::multiply(r_v, change.rotation_v())?];
        Ok(Self { point: cut.point, state: self.state, rotations, truncation: cut.truncation })
    }
}

impl DlraState {
    /// Zero moments at this point.
    pub fn new(point: &LowRank, settings: &DlraSpec) -> Result<Self> {
        let second = match settings.momentum {
            Momentum::HeavyBall | Momentum::Spectral => Second::None,
            Momentum::Adam => Second::Elements(SecondMoments::new(point)?),
            Momentum::MatrixAdam => Second::Matrices(MatrixMoments::new(point)?),
        };
        Ok(Self { first: Tangent::zeros(point)?, second })
    }

    /// One step from `point` along the momentum of `gradient` (a tangent vector at `point`, before scaling).
    ///
    /// Nothing is changed in place: on an error the old point and state are intact.
    ///
    /// # Errors
    /// If a factorisation meets a non-finite number or does not converge.
    pub fn step(&self, point: &LowRank, gradient: &Tangent, hyper: &DlraStep) -> Result<DlraUpdate> {
        let Advanced { mut state, augmentation, coefficients } = self.advance(point, gradient, hyper)?;
        let rank = point.rank();
        let retracted = match (hyper.rank, hyper.settings.retraction) {
            (RankDecision::Keep, RetractionSpec::Subspace) => augmentation.retract_subspace(point, &coefficients)?,
            (RankDecision::Keep, RetractionSpec::Svd) => augmentation.truncate(point, &coefficients, &|_| rank)?,
            (RankDecision::Set { rank }, _) => augmentation.truncate(point, &coefficients, &|_| rank)?,
        };
        let mut new_point = retracted.point;
        if hyper.step.is_multiple_of(hyper.settings.reorthonormalize_every.0.max(1)) {
            new_point = new_point.reorthonormalized()?;
        }
        let change = BasisChange::from_rotations(point, &new_point, retracted.rotation_u, retracted.rotation_v);
        state.transport(&change, hyper.settings)?;
        let rotations = [change.rotation_u(), change.rotation_v()].map(Tensor::clone);
        Ok(DlraUpdate { point: new_point, state, rotations, truncation: retracted.truncation })
    }

    /// Into the new bases.
    fn transport(&mut self, change: &BasisChange, settings: &DlraSpec) -> Result<()> {
        self.first = change.transport(&self.first)?;
        match &mut self.second {
            Second::None => Ok(()),
            Second::Elements(second) => second.transport(change, settings.second_moment_transport),
            Second::Matrices(second) => second.transport(change),
        }
    }

    /// The step up to the truncation: moments, augmented bases, Galerkin coefficients.
    fn advance(&self, point: &LowRank, gradient: &Tangent, hyper: &DlraStep) -> Result<Advanced> {
        let mut state = self.clone();
        let strength = hyper.settings.spectral_regularization;
        let direction = if strength == 0.0 {
            state.direction(point, gradient, hyper)?
        } else {
            // The moments scale the gradient; the regulariser is part of the objective as it stands.
            state.direction(point, &regularized(gradient, &point.s, strength / hyper.gradient_scale)?, hyper)?
        };
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
            Momentum::HeavyBall | Momentum::Adam | Momentum::MatrixAdam => augmentation.core().clone(),
        };
        let coefficients = augmentation.coefficients(point, &core, hyper.learning_rate, hyper.settings.weight_decay)?;
        Ok(Advanced { state, augmentation, coefficients })
    }

    /// Updates the moments and returns the direction D as a tangent vector.
    ///
    /// With first moment m ← β₁m + (1−β₁)g, the direction is made of m, or with Nesterov's look-ahead of β₁m + (1−β₁)g (Dozat 2016), whose gathered
    /// weight is 1 − β₁ᵗ⁺¹ instead of 1 − β₁ᵗ. `heavy_ball` has the SGD-with-momentum form m ← β₁m + g; the paper's V ← (1−γ)V − λ∇L, W ← W + λV
    /// is this with β₁ = 1−γ and η = λ².
    fn direction(&mut self, point: &LowRank, gradient: &Tangent, hyper: &DlraStep) -> Result<Tangent> {
        let DlraSpec { beta1, beta2, epsilon, momentum, nesterov, .. } = *hyper.settings;
        let weight = if momentum == Momentum::HeavyBall { 1.0 } else { 1.0 - beta1 } * hyper.gradient_scale;
        self.first = self.first.scaled_add(beta1, gradient, weight)?;
        let mean = if nesterov { self.first.scaled_add(beta1, gradient, weight)? } else { self.first.clone() };
        let gathered = 1.0 - beta1.powi(hyper.step as i32 + i32::from(nesterov));
        match &mut self.second {
            Second::None => Ok(mean),
            Second::Elements(second) => {
                second.update(gradient, beta2, hyper.gradient_scale)?;
                second.divide(&mean, gathered, epsilon)?.project_complement(point)
            }
            Second::Matrices(second) => {
                second.update(point, gradient, beta2, hyper.gradient_scale)?;
                second.precondition(&mean, gathered)
            }
        }
    }

    /// All tensors, in a fixed order.
    fn leaves(&self) -> Vec<&Tensor> {
        let mut leaves = self.first.parts().to_vec();
        match &self.second {
            Second::None => {}
            Second::Elements(second) => leaves.extend(second.sum.parts().into_iter().chain(second.weight.parts())),
            Second::Matrices(second) => leaves.extend(second.named().map(|(_, leaf)| leaf)),
        }
        leaves
    }

    /// The same state with every tensor, in the order of [`Self::leaves`], replaced by what `change` makes of it.
    fn map_leaves(&self, mut change: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let first = self.first.map_parts(&mut change)?;
        let second = match &self.second {
            Second::None => Second::None,
            Second::Elements(second) => {
                Second::Elements(SecondMoments { sum: second.sum.map_parts(&mut change)?, weight: second.weight.map_parts(&mut change)? })
            }
            Second::Matrices(second) => Second::Matrices(second.map_leaves(change)?),
        };
        Ok(Self { first, second })
    }

    /// State tensors by name.
    pub fn named_tensors(&self) -> Vec<(String, Tensor)> {
        let named = |prefix: &str, z: &Tangent| {
            [("m", &z.m), ("p", &z.p), ("q", &z.q)].map(|(leaf, tensor)| (format!("{prefix}.{leaf}"), tensor.clone()))
        };
        let mut tensors = named("first", &self.first).to_vec();
        match &self.second {
            Second::None => {}
            Second::Elements(second) => {
                tensors.extend(named("second", &second.sum));
                tensors.extend(named("second_weight", &second.weight));
            }
            Second::Matrices(second) => tensors.extend(second.named().map(|(leaf, tensor)| (leaf.to_owned(), tensor.clone()))),
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
            Second::None => Second::None,
            Second::Elements(like) => {
                Second::Elements(SecondMoments { sum: read("second", &like.sum)?, weight: read("second_weight", &like.weight)? })
            }
            Second::Matrices(like) => Second::Matrices(like.read(|leaf, like| reader.take_like(leaf, like))?),
        };
        Ok(Self { first, second })
    }
}
