//! A low-rank weight before it is cut: one dense matrix W: m × n, moved as the low-rank rule moves a
//! weight of full rank, where the manifold is everything.
//!
//! ```text
//! spectral                  Muon's step         D = 0.2 √max(m, n) polar(m)
//! input_whitened_spectral   Newton-Muon's       D = 0.2 √max(m, n) polar(m H), H of inputs x
//! adam                      AdamW's             D = m̂ / (√v̂ + ε)
//! heavy_ball                heavy ball          D = m
//! ```
//!
//! with m ← β₁m + w g as the momentum has it, Nesterov's look-ahead where it is asked for, and W ←
//! (1 − ηλ) W − η D. A cut goes by the singular values of W itself; the first moment is projected to
//! the tangent space at the point that W becomes, second moments go there as variances of
//! independent coordinates, and those of inputs as what V sees of them.

use super::cut_moments::WholeMoments;
use super::momenta::carried;
use super::{DlraState, DlraStep};
use crate::lowrank::{LowRank, Tangent};
use crate::ops::Compute;
use crate::optim::elementwise::{decay_and_add, subtract_quotient};
use crate::optim::gradient::Scaled;
use crate::optim::leaves::{LeafMap, Leaves};
use crate::optim::rules::{MuonState, gathered};
use crate::spec::{DlraSpec, Momentum, MuonSpec};
use candle_core::{Result, Tensor};

/// Moments of a weight that is not cut yet, of its shape.
#[derive(Clone, Debug)]
pub struct UncutState {
    /// The decayed mean of gradients, or their decayed sum under `heavy_ball`.
    pub first: Tensor,
    /// The decayed mean of squared gradients, for `adam`.
    pub second: Option<Tensor>,
    /// The decayed sum of xᵀx, n × n, for `input_whitened_spectral`.
    pub inputs: Option<Tensor>,
    /// Second moments for cuts, where they are carried.
    pub(super) cut_moments: Option<WholeMoments>,
}

impl UncutState {
    /// Zero moments for this matrix.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(weight: &Tensor, settings: &DlraSpec) -> Result<Self> {
        let is_adam = settings.momentum == Momentum::Adam;
        let second = if is_adam { Some(weight.zeros_like()?) } else { None };
        let MuonState { first, inputs } = MuonState::new(weight, &muon(settings))?;
        Ok(Self { first, second, inputs, cut_moments: None })
    }

    /// The same state with xᵀx taken in, n × n, of the inputs of the next gradient's batch: A ← β₂A
    /// + (1−β₂)xᵀx; nothing where it keeps none.
    ///
    /// # Errors
    /// If the shape is not n × n.
    pub fn with_inputs(&self, inputs: &Tensor, settings: &DlraSpec) -> Result<Self> {
        let MuonState { inputs, .. } = self.as_muon().with_inputs(inputs, settings.beta2)?;
        Ok(Self { inputs, ..self.clone() })
    }

    /// What Muon's step goes by.
    fn as_muon(&self) -> MuonState {
        MuonState { first: self.first.clone(), inputs: self.inputs.clone() }
    }

    /// The same state of this matrix, which carries second moments for cuts from now on.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn carrying_moments(self, weight: &Tensor) -> Result<Self> {
        Ok(Self { cut_moments: Some(WholeMoments::new(weight)?), ..self })
    }

    /// The same state with second moments taken in that were measured at its matrix, δᵀδ and xᵀx:
    /// E ← dE + (1−d)E_now with d = `decay`; nothing where it carries none.
    ///
    /// # Errors
    /// If a shape is not m × m or n × n.
    pub fn with_moments(&self, decay: f64, measured: [&Tensor; 2]) -> Result<Self> {
        let mut state = self.clone();
        if let Some(moments) = &mut state.cut_moments {
            moments.update(decay, measured)?;
        }
        Ok(state)
    }

    /// One step; nothing is changed in place.
    ///
    /// # Errors
    /// If an element is not finite under `spectral`, or shapes differ.
    pub fn step(
        &self,
        weight: &Tensor,
        gradient: Scaled<Tensor>,
        hyper: &DlraStep,
        compute: Compute,
    ) -> Result<(Tensor, Self)> {
        let DlraSpec { beta2, epsilon, weight_decay, nesterov, .. } = *hyper.settings;
        let (learning_rate, beta1) = (hyper.learning_rate, hyper.beta1().at(hyper.step));
        if is_muon(hyper.settings) {
            let rule = MuonSpec { beta1, ..muon(hyper.settings) };
            let (weight, MuonState { first, .. }) =
                self.as_muon().step(weight, gradient, &rule, learning_rate)?;
            return Ok((weight, Self { first, second: None, ..self.clone() }));
        }
        let new = match self.second {
            Some(_) => 1.0 - beta1,
            None => 1.0,
        };
        let mut first = self.first.copy()?;
        gradient.add_to(compute, &mut first, beta1, new)?;
        let mut mean = first.clone();
        if nesterov {
            mean = first.copy()?;
            gradient.add_to(compute, &mut mean, beta1, new)?;
        }
        let (keep, mut weight) = (1.0 - learning_rate * weight_decay, weight.copy()?);
        let Some(second) = &self.second else {
            decay_and_add(compute, &mut weight, keep, &mean, -learning_rate)?;
            return Ok((weight, Self { first, second: None, ..self.clone() }));
        };
        let mut second = second.copy()?;
        gradient.add_square_to(compute, &mut second, beta2, 1.0 - beta2)?;
        let rate = learning_rate / hyper.beta1().gathered(hyper.step, nesterov);
        let correction = 1.0 / gathered(beta2, hyper.step);
        subtract_quotient(compute, &mut weight, keep, &mean, rate, &second, correction, epsilon)?;
        Ok((weight, Self { first, second: Some(second), ..self.clone() }))
    }

    /// The moments after `step` steps at a point that the matrix was cut to.
    ///
    /// # Errors
    /// If the point has another shape.
    pub fn carried_to(&self, point: &LowRank, step: u64, settings: &DlraSpec) -> Result<DlraState> {
        let gathered = gathered(settings.beta2, step);
        Ok(DlraState {
            first: Tangent::project(point, &self.first)?,
            momentum: carried(point, self, gathered, settings)?,
            cycle_rank: None,
            cut_moments: self.cut_moments.as_ref().map(|own| own.seen_by(point)).transpose()?,
        })
    }
}

impl Leaves for UncutState {
    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        let first = map.tensor("first", &self.first)?;
        let second = match &self.second {
            Some(second) => Some(map.tensor("second", second)?),
            None => None,
        };
        let inputs = match &self.inputs {
            Some(inputs) => Some(map.tensor("input_second", inputs)?),
            None => None,
        };
        let cut_moments =
            self.cut_moments.as_ref().map(|moments| moments.map_leaves(map)).transpose()?;
        Ok(Self { first, second, inputs, cut_moments })
    }
}

/// Whether the step is Muon's.
pub(super) fn is_muon(settings: &DlraSpec) -> bool {
    matches!(settings.momentum, Momentum::Spectral | Momentum::InputWhitenedSpectral)
}

/// Muon by these settings, without their path of β₁.
pub(super) fn muon(settings: &DlraSpec) -> MuonSpec {
    let DlraSpec { learning_rate, beta1, nesterov, beta2, weight_decay, .. } = *settings;
    let input_damping = settings.momentum.measures_inputs().then_some(settings.input_damping);
    let beta1_schedule = None;
    MuonSpec { learning_rate, beta1, beta1_schedule, nesterov, input_damping, beta2, weight_decay }
}

#[cfg(test)]
mod tests;
