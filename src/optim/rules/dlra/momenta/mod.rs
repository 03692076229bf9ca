//! The momenta of DLRA, one in a file: what turns the carried first moment into a direction.
//!
//! To add one: a file here that implements [`TangentMomentum`], a variant of
//! [`Momentum`](crate::spec::Momentum), and its lines in [`new`] and [`momentum_cost`].

mod adam;
mod cost;
mod form_mean;
mod heavy_ball;
mod input_whitened_spectral;
mod matrix_adam;
mod matrix_moments;
mod spectral;
mod whitened_spectral;

use super::{DlraStep, UncutState};
use crate::lowrank::{Augmentation, BasisChange, LowRank, Tangent};
use crate::optim::gradient::Scaled;
use crate::optim::leaves::LeafMap;
use crate::spec::{DlraSpec, Momentum};
use candle_core::{Result, Tensor};
use cost::MomentumCost;
use std::fmt::Debug;

/// What a momentum adds to the first moment m ← β₁m + w·g, which every momentum has.
///
/// A step asks in this order: [`Self::take_inputs`], [`Self::update`] with the gradient,
/// [`Self::direction`] of the mean, [`Self::core`] of the direction's coefficients in the augmented
/// bases, and, once the bases have changed, [`Self::transport`].
pub(super) trait TangentMomentum: Debug + Send + Sync {
    /// w, the weight with which a gradient enters the first moment.
    fn gradient_weight(&self, beta1: f64) -> f64 {
        1.0 - beta1
    }

    /// Takes a gradient into what scales the first moment.
    fn update(&mut self, _: &LowRank, _: Scaled<Tangent>, _: &DlraSpec) -> Result<()> {
        Ok(())
    }

    /// Takes in zᵀz, z = xV, of the step's inputs x, r × r in V's coordinates: a sum over tokens,
    /// whose number is the same at every step.
    fn take_inputs(&mut self, _: &Tensor, _: &DlraSpec) -> Result<()> {
        Ok(())
    }

    /// The direction D, a tangent vector, made of the mean of gradients, whose weights so far add
    /// up to `gathered`.
    fn direction(
        &self,
        _: &LowRank,
        mean: Tangent,
        _gathered: f64,
        _: &DlraSpec,
    ) -> Result<Tangent> {
        Ok(mean)
    }

    /// What the step subtracts, from the direction's coefficients in the bases of the step: the
    /// coefficients themselves, or their polar factor.
    fn core(&self, _: &LowRank, core: &Tensor, _: &DlraStep) -> Result<Tensor> {
        Ok(core.clone())
    }

    /// Second moments of the coefficients in augmented bases, where the direction has any, for
    /// `augmented_bug`.
    fn coefficient_moments(
        &self,
        _: &LowRank,
        _: &Augmentation,
    ) -> Result<Option<CoefficientMoments>> {
        Ok(None)
    }

    /// Into the new bases.
    fn transport(&mut self, _: &BasisChange, _: &DlraSpec) -> Result<()> {
        Ok(())
    }

    /// The same with every leaf replaced by what `map` makes of it.
    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Box<dyn TangentMomentum>>;

    /// A copy of its own.
    fn boxed_clone(&self) -> Box<dyn TangentMomentum>;
}

impl Clone for Box<dyn TangentMomentum> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}

/// A tangent vector's parts as leaves `<prefix>.m`, `.p` and `.q`.
pub(super) fn map_tangent(
    prefix: &str,
    z: &Tangent,
    map: &mut dyn LeafMap,
) -> anyhow::Result<Tangent> {
    Ok(Tangent {
        m: map.tensor(&format!("{prefix}.m"), &z.m)?,
        p: map.tensor(&format!("{prefix}.p"), &z.p)?,
        q: map.tensor(&format!("{prefix}.q"), &z.q)?,
    })
}

/// Also of second moments for cuts.
pub(super) use form_mean::FormMean;

/// Second moments of the coefficients Ŝ while `augmented_bug` steps them.
pub(super) use adam::CoefficientMoments;

/// The momentum of the settings, at this point, with nothing gathered yet.
pub(super) fn new(point: &LowRank, settings: &DlraSpec) -> Result<Box<dyn TangentMomentum>> {
    Ok(match settings.momentum {
        Momentum::HeavyBall => Box::new(heavy_ball::HeavyBall),
        Momentum::Spectral => Box::new(spectral::Spectral),
        Momentum::Adam => Box::new(adam::Adam::new(point)?),
        Momentum::MatrixAdam => Box::new(matrix_adam::MatrixAdam::new(point)?),
        Momentum::WhitenedSpectral => Box::new(whitened_spectral::WhitenedSpectral::new(point)?),
        Momentum::InputWhitenedSpectral => {
            Box::new(input_whitened_spectral::InputWhitenedSpectral::new(point)?)
        }
    })
}

/// The momentum of the settings at a point that a dense matrix was cut to, with what the matrix's
/// second moments have gathered where there are any: weights that add up to `gathered`.
pub(super) fn carried(
    point: &LowRank,
    state: &UncutState,
    gathered: f64,
    settings: &DlraSpec,
) -> Result<Box<dyn TangentMomentum>> {
    Ok(match (&state.second, &state.inputs) {
        (Some(second), _) => Box::new(adam::Adam::carried(point, second, gathered)?),
        (None, Some(inputs)) => Box::new(input_whitened_spectral::InputWhitenedSpectral::carried(
            point, inputs, gathered,
        )?),
        (None, None) => new(point, settings)?,
    })
}

/// What the momentum costs.
pub(super) fn momentum_cost(momentum: Momentum) -> &'static dyn MomentumCost {
    match momentum {
        Momentum::HeavyBall => &heavy_ball::Cost,
        Momentum::Spectral => &spectral::Cost,
        Momentum::Adam => &adam::Cost,
        Momentum::MatrixAdam => &matrix_adam::Cost,
        Momentum::WhitenedSpectral => &whitened_spectral::Cost,
        Momentum::InputWhitenedSpectral => &input_whitened_spectral::Cost,
    }
}
