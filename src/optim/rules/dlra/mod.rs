//! The dynamical low-rank (DLRA) step of one weight W = U S Vᵀ: momentum, augmentation, Galerkin
//! step, truncation, transport.
//!
//! docs/method.md; after Schotthöfer, Klein & Kusch (arXiv:2506.17475) and the augmented
//! Basis-Update & Galerkin integrator (Ceruti, Kusch & Lubich 2022). Shapes: m × n weight, rank r.
//!
//! ```text
//! here                `tangent`, one gradient a step; and what all integrators share: moments,
//!                     retraction, transport, cuts
//! rule                the group of all low-rank weights: passes, growth and cuts
//! augmented_bug       further gradients on the same batch, in the augmented bases
//! coefficient_cycle   augment on one batch, train S on the next ones
//! momenta             what makes a direction of the first moment, one file each
//! side_by_side        many weights at once
//! conditioning        the spectral regulariser
//! uncut               weights that are dense until a cut
//! uncut_cost          what they cost
//! cut_moments         second moments carried from cut to cut
//! ```

mod augmented_bug;
mod coefficient_cycle;
mod conditioning;
mod cost;
mod cut;
mod cut_moments;
mod momenta;
mod rule;
mod side_by_side;
mod uncut;
mod uncut_cost;

use super::SPECTRAL_SCALE;
use super::beta1::Beta1;
use crate::linalg;
use crate::lowrank::{
    Augmentation, BasisChange, LowRank, Retracted, Spectrum, Tangent, Truncation,
};
use crate::optim::gradient::Scaled;
use crate::optim::leaves::{LeafMap, Leaves};
use crate::optim::rank::RankDecision;
use crate::spec::{DlraSpec, Integrator, RetractionSpec};
pub use augmented_bug::GalerkinStep;
use candle_core::{D, Device, Result, Tensor};
use conditioning::regularized;
pub(super) use cost::augmentation_values;
pub use cost::{augmented_rank, augmented_values, carried_flops, carried_values, cut_flops};
use cut_moments::CutMoments;
use momenta::{TangentMomentum, map_tangent};
pub(in crate::optim) use rule::DlraRule;
pub use uncut::UncutState;

/// Numbers of one DLRA step.
#[derive(Clone, Copy, Debug)]
pub struct DlraStep<'a> {
    /// The rule's settings.
    pub settings: &'a DlraSpec,
    /// Learning rate η of this step, schedule included.
    pub learning_rate: f64,
    /// Step t, counted from 1.
    pub step: u64,
    /// What happens to the rank.
    pub rank: RankDecision,
    /// Whether the weight is one of the head, whose spectral directions are scaled by its width
    /// alone.
    pub of_head: bool,
}

/// Optimizer state of one low-rank weight.
#[derive(Clone, Debug)]
pub struct DlraState {
    /// First moment, a tangent vector at the current point.
    first: Tangent,
    /// What makes a direction of it.
    momentum: Box<dyn TangentMomentum>,
    /// Rank before the augmentation that opened the present cycle; for `coefficient_cycle` only.
    cycle_rank: Option<usize>,
    /// Second moments for cuts, where they are carried.
    cut_moments: Option<CutMoments>,
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

    /// The means of the second moments that the state carries for cuts, of output gradients in U
    /// and of inputs in V of the new point; none where it carries none.
    ///
    /// # Errors
    /// If a moment is not finite.
    pub fn carried_moments(&self) -> Result<Option<[Tensor; 2]>> {
        self.state.cut_moments.as_ref().map(CutMoments::means).transpose()
    }

    /// The same update, its tensors on this device.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn to_device(&self, device: &Device) -> anyhow::Result<Self> {
        let [r_u, r_v] = &self.rotations;
        Ok(Self {
            point: self.point.to_device(device)?,
            state: self.state.to_device(device)?,
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
    /// β₁ over the run.
    fn beta1(&self) -> Beta1 {
        Beta1::of_dlra(self.settings)
    }

    /// 0.2 √max(m, n) times the polar factor of coefficients: the direction of `spectral`. Of the
    /// head, where m is the vocabulary, 0.2 √n: its gradient lies on the rows of the few tokens that
    /// a batch has, and so does the direction.
    ///
    /// Steps that retract by an SVD take the exact polar factor too; the others stay with matrix
    /// products.
    fn polar(&self, point: &LowRank, core: &Tensor) -> Result<Tensor> {
        let (rows, columns) = (point.rows(), point.columns());
        let side = if self.of_head { columns } else { rows.max(columns) };
        let scale = SPECTRAL_SCALE * (side as f64).sqrt();
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
        let cycle_rank =
            (settings.integrator == Integrator::CoefficientCycle).then(|| point.rank());
        let momentum = momenta::new(point, settings)?;
        Ok(Self { first: Tangent::zeros(point)?, momentum, cycle_rank, cut_moments: None })
    }

    /// The same state of this point, which carries second moments for cuts from now on.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn carrying_moments(self, point: &LowRank) -> Result<Self> {
        Ok(Self { cut_moments: Some(CutMoments::new(point)?), ..self })
    }

    /// The same state with second moments taken in that were measured at its point, (δU)ᵀ(δU) and
    /// zᵀz: E ← dE + (1−d)E_now with d = `decay`; nothing where it carries none.
    ///
    /// # Errors
    /// If a shape is not r × r.
    pub fn with_moments(&self, decay: f64, measured: [&Tensor; 2]) -> Result<Self> {
        let mut state = self.clone();
        if let Some(moments) = &mut state.cut_moments {
            moments.update(decay, measured)?;
        }
        Ok(state)
    }

    /// The same state with zᵀz, z = xV, taken in, of the inputs x that the next gradient's batch
    /// has at the weight (r × r, summed over tokens): a step of `input_whitened_spectral` comes
    /// after it.
    ///
    /// # Errors
    /// If the shape is not r × r.
    pub fn with_inputs(&self, inputs: &Tensor, settings: &DlraSpec) -> Result<Self> {
        let mut state = self.clone();
        let inputs = inputs.to_dtype(self.first.m.dtype())?;
        state.momentum.take_inputs(&inputs, settings)?;
        Ok(state)
    }

    /// One step from `point` along the momentum of `gradient` (a tangent vector at `point`), by the
    /// `tangent` integrator.
    ///
    /// Nothing is changed in place: on an error the old point and state are intact.
    ///
    /// # Errors
    /// If a factorisation meets a non-finite number or does not converge.
    pub fn step(
        &self,
        point: &LowRank,
        gradient: Scaled<Tangent>,
        hyper: &DlraStep,
    ) -> Result<DlraUpdate> {
        let mut state = self.clone();
        let direction = state.direction(point, gradient, hyper)?;
        let augmentation = Augmentation::new(point, &direction)?;
        let core = state.momentum.core(point, augmentation.core(), hyper)?;
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
        if let Some(moments) = &mut self.cut_moments {
            moments.transport(change)?;
        }
        self.momentum.transport(change, settings)
    }

    /// Takes in a gradient of the loss, with that of the regulariser added where there is one, and
    /// returns the direction D as a tangent vector.
    fn direction(
        &mut self,
        point: &LowRank,
        gradient: Scaled<Tangent>,
        hyper: &DlraStep,
    ) -> Result<Tangent> {
        let strength = hyper.settings.spectral_regularization;
        if strength == 0.0 {
            return self.direction_along(point, gradient, hyper);
        }
        let sum = regularized(gradient, &point.s, strength)?;
        self.direction_along(point, gradient.with(&sum), hyper)
    }

    /// Updates the moments and returns the direction D as a tangent vector.
    ///
    /// With first moment m ← β₁m + w g, w as the momentum has it, the direction is made of m, or
    /// with Nesterov's look-ahead of β₁m + w g (Dozat 2016), whose gathered weight is 1 − β₁ᵗ⁺¹
    /// instead of 1 − β₁ᵗ; where β₁ changes, 1 less the product of all so far.
    fn direction_along(
        &mut self,
        point: &LowRank,
        gradient: Scaled<Tangent>,
        hyper: &DlraStep,
    ) -> Result<Tangent> {
        let nesterov = hyper.settings.nesterov;
        let beta1 = hyper.beta1().at(hyper.step);
        let weight = self.momentum.gradient_weight(beta1);
        self.first = gradient.added_to(&self.first, beta1, weight)?;
        let mean = match nesterov {
            true => gradient.added_to(&self.first, beta1, weight)?,
            false => self.first.clone(),
        };
        let gathered = hyper.beta1().gathered(hyper.step, nesterov);
        self.momentum.update(point, gradient, hyper.settings)?;
        self.momentum.direction(point, mean, gathered, hyper.settings)
    }
}

impl Leaves for DlraState {
    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        let first = map_tangent("first", &self.first, map)?;
        let momentum = self.momentum.map_leaves(map)?;
        let largest = self.first.m.dim(D::Minus1)?;
        let cycle_rank = match self.cycle_rank {
            Some(rank) => Some(map.number("cycle_rank", rank, largest)?),
            None => None,
        };
        let cut_moments =
            self.cut_moments.as_ref().map(|moments| moments.map_leaves(map)).transpose()?;
        Ok(Self { first, momentum, cycle_rank, cut_moments })
    }
}
