//! The dynamical low-rank (DLRA) step of one weight W = U S Vᵀ: momentum, augmentation, Galerkin
//! step, truncation, transport.
//!
//! docs/method.md §3–§5; after Schotthöfer, Klein & Kusch (arXiv:2506.17475) and the augmented
//! Basis-Update & Galerkin integrator (Ceruti, Kusch & Lubich 2022). Shapes: m × n weight, rank r.
//!
//! ```text
//! here                `tangent`, one gradient a step; and what all integrators share: moments, retraction, transport, cuts
//! augmented_bug       further gradients on the same batch, in the augmented bases
//! coefficient_cycle   augment on one batch, train S on the next ones
//! second_moments, matrix_moments    what scales the first moment
//! conditioning        the spectral regulariser
//! ```

mod augmented_bug;
mod coefficient_cycle;
mod conditioning;
mod matrix_moments;
mod second_moments;
mod side_by_side;

use super::muon::SPECTRAL_SCALE;
use super::rank::RankDecision;
use super::state::StateReader;
use crate::linalg;
use crate::lowrank::{
    Augmentation, BasisChange, LowRank, Retracted, Spectrum, Tangent, Truncation,
};
use crate::spec::{DlraSpec, Integrator, Momentum, RetractionSpec};
pub use augmented_bug::GalerkinStep;
use candle_core::{Device, Result, Tensor};
use coefficient_cycle::{CYCLE_RANK, read_cycle_rank, scalar};
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
    /// Rank before the augmentation that opened the present cycle; for `coefficient_cycle` only.
    cycle_rank: Option<usize>,
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
    /// The new point's singular values, in the norm of second moments seen in the old bases (of
    /// output gradients in U₀, of inputs in V₀) or, without, in the Frobenius norm.
    ///
    /// The moments travel by the rotations; what of them lies outside the old bases was never
    /// measured.
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
        let change =
            BasisChange::from_rotations(&self.point, &cut.point, cut.rotation_u, cut.rotation_v);
        self.state.transport(&change, settings)?;
        self.state.cycle_rank = self.state.cycle_rank.map(|_| cut.point.rank());
        let [r_u, r_v] = &self.rotations;
        let rotations = [
            linalg::multiply(change.rotation_u(), r_u)?,
            linalg::multiply(r_v, change.rotation_v())?,
        ];
        Ok(Self { point: cut.point, state: self.state, rotations, truncation: cut.truncation })
    }
}

impl DlraStep<'_> {
    /// What a gradient is multiplied by on its way into the first moment.
    fn gradient_weight(&self) -> f64 {
        let DlraSpec { momentum, beta1, .. } = *self.settings;
        if momentum == Momentum::HeavyBall {
            self.gradient_scale
        } else {
            (1.0 - beta1) * self.gradient_scale
        }
    }

    /// Strength of the regulariser beside a gradient before scaling: the moments scale the
    /// gradient, but it is part of the objective as it stands.
    fn regularization(&self) -> Option<f64> {
        let strength = self.settings.spectral_regularization;
        (strength != 0.0).then(|| strength / self.gradient_scale)
    }

    /// 0.2 √max(m, n) times the polar factor of coefficients: the direction of `spectral`.
    ///
    /// Steps that retract by an SVD take the exact polar factor too; the others stay with matrix
    /// products.
    fn polar(&self, point: &LowRank, core: &Tensor) -> Result<Tensor> {
        let scale = SPECTRAL_SCALE * (point.rows().max(point.columns()) as f64).sqrt();
        let polar = match self.settings.retraction_at(self.step) {
            RetractionSpec::Svd => linalg::polar(core)?,
            RetractionSpec::Subspace => linalg::polar_newton_schulz(core)?,
        };
        polar * scale
    }

    /// Û Ŝ V̂ᵀ brought to the rank that was decided, and re-orthonormalised where its turn has
    /// come.
    fn retract(
        &self,
        point: &LowRank,
        augmentation: &Augmentation,
        coefficients: &Tensor,
    ) -> Result<Retracted> {
        let rank = point.rank();
        let retracted = match (self.rank, self.settings.retraction_at(self.step)) {
            (RankDecision::Keep, RetractionSpec::Subspace) => {
                augmentation.retract_subspace(point, coefficients)?
            }
            (RankDecision::Keep, RetractionSpec::Svd) => {
                augmentation.truncate(point, coefficients, &|_| rank)?
            }
            (RankDecision::Set { rank }, _) => {
                augmentation.truncate(point, coefficients, &|_| rank)?
            }
        };
        match self.step.is_multiple_of(self.settings.reorthonormalize_every.0.max(1)) {
            true => Ok(Retracted { point: retracted.point.reorthonormalized()?, ..retracted }),
            false => Ok(retracted),
        }
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
        let cycle_rank =
            (settings.integrator == Integrator::CoefficientCycle).then(|| point.rank());
        Ok(Self { first: Tangent::zeros(point)?, second, cycle_rank })
    }

    /// One step from `point` along the momentum of `gradient` (a tangent vector at `point`, before
    /// scaling), by the `tangent` integrator.
    ///
    /// Nothing is changed in place: on an error the old point and state are intact.
    ///
    /// # Errors
    /// If a factorisation meets a non-finite number or does not converge.
    pub fn step(
        &self,
        point: &LowRank,
        gradient: &Tangent,
        hyper: &DlraStep,
    ) -> Result<DlraUpdate> {
        let mut state = self.clone();
        let direction = state.direction(point, gradient, hyper)?;
        let augmentation = Augmentation::new(point, &direction)?;
        let core = match hyper.settings.momentum {
            Momentum::Spectral => hyper.polar(point, augmentation.core())?,
            Momentum::HeavyBall | Momentum::Adam | Momentum::MatrixAdam => {
                augmentation.core().clone()
            }
        };
        let coefficients = augmentation.coefficients(
            point,
            &core,
            hyper.learning_rate,
            hyper.settings.weight_decay,
        )?;
        state.arrive(point, hyper.retract(point, &augmentation, &coefficients)?, hyper)
    }

    /// The update that ends at a retracted point, with the moments carried there.
    fn arrive(
        mut self,
        point: &LowRank,
        retracted: Retracted,
        hyper: &DlraStep,
    ) -> Result<DlraUpdate> {
        let Retracted { point: new_point, rotation_u, rotation_v, truncation } = retracted;
        let change = BasisChange::from_rotations(point, &new_point, rotation_u, rotation_v);
        self.transport(&change, hyper.settings)?;
        let rotations = [change.rotation_u(), change.rotation_v()].map(Tensor::clone);
        Ok(DlraUpdate { point: new_point, state: self, rotations, truncation })
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

    /// Takes in a gradient of the loss, with that of the regulariser added where there is one, and
    /// returns the direction D as a tangent vector.
    fn direction(
        &mut self,
        point: &LowRank,
        gradient: &Tangent,
        hyper: &DlraStep,
    ) -> Result<Tangent> {
        match hyper.regularization() {
            None => self.direction_along(point, gradient, hyper),
            Some(strength) => {
                self.direction_along(point, &regularized(gradient, &point.s, strength)?, hyper)
            }
        }
    }

    /// Updates the moments and returns the direction D as a tangent vector.
    ///
    /// With first moment m ← β₁m + (1−β₁)g, the direction is made of m, or with Nesterov's
    /// look-ahead of β₁m + (1−β₁)g (Dozat 2016), whose gathered weight is 1 − β₁ᵗ⁺¹ instead of 1 −
    /// β₁ᵗ. `heavy_ball` has the SGD-with-momentum form m ← β₁m + g; the paper's V ← (1−γ)V − λ∇L,
    /// W ← W + λV is this with β₁ = 1−γ and η = λ².
    fn direction_along(
        &mut self,
        point: &LowRank,
        gradient: &Tangent,
        hyper: &DlraStep,
    ) -> Result<Tangent> {
        let DlraSpec { beta1, beta2, epsilon, nesterov, .. } = *hyper.settings;
        let weight = hyper.gradient_weight();
        self.first = self.first.scaled_add(beta1, gradient, weight)?;
        let mean = if nesterov {
            self.first.scaled_add(beta1, gradient, weight)?
        } else {
            self.first.clone()
        };
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
            Second::Elements(second) => {
                leaves.extend(second.sum.parts().into_iter().chain(second.weight.parts()))
            }
            Second::Matrices(second) => leaves.extend(second.named().map(|(_, leaf)| leaf)),
        }
        leaves
    }

    /// The same state with every tensor, in the order of [`Self::leaves`], replaced by what
    /// `change` makes of it.
    fn map_leaves(&self, mut change: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let first = self.first.map_parts(&mut change)?;
        let second = match &self.second {
            Second::None => Second::None,
            Second::Elements(second) => Second::Elements(SecondMoments {
                sum: second.sum.map_parts(&mut change)?,
                weight: second.weight.map_parts(&mut change)?,
            }),
            Second::Matrices(second) => Second::Matrices(second.map_leaves(change)?),
        };
        Ok(Self { first, second, cycle_rank: self.cycle_rank })
    }

    /// State tensors by name.
    pub fn named_tensors(&self) -> Vec<(String, Tensor)> {
        let named = |prefix: &str, z: &Tangent| {
            [("m", &z.m), ("p", &z.p), ("q", &z.q)]
                .map(|(leaf, tensor)| (format!("{prefix}.{leaf}"), tensor.clone()))
        };
        let mut tensors = named("first", &self.first).to_vec();
        match &self.second {
            Second::None => {}
            Second::Elements(second) => {
                tensors.extend(named("second", &second.sum));
                tensors.extend(named("second_weight", &second.weight));
            }
            Second::Matrices(second) => tensors
                .extend(second.named().map(|(leaf, tensor)| (leaf.to_owned(), tensor.clone()))),
        }
        tensors.extend(self.cycle_rank.map(|rank| (CYCLE_RANK.to_owned(), scalar(rank))));
        tensors
    }

    /// The state of a weight at `point`, from named tensors; the shapes must be those of `point`.
    pub fn load(
        point: &LowRank,
        settings: &DlraSpec,
        reader: &mut StateReader,
    ) -> anyhow::Result<Self> {
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
            Second::Elements(like) => Second::Elements(SecondMoments {
                sum: read("second", &like.sum)?,
                weight: read("second_weight", &like.weight)?,
            }),
            Second::Matrices(like) => {
                Second::Matrices(like.read(|leaf, like| reader.take_like(leaf, like))?)
            }
        };
        let cycle_rank = match expected.cycle_rank {
            Some(rank) => {
                Some(read_cycle_rank(&reader.take_like(CYCLE_RANK, &scalar(rank))?, point)?)
            }
            None => None,
        };
        Ok(Self { first, second, cycle_rank })
    }
}
