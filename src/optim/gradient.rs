//! From gradient slots to the gradients that are really trained: dense ones, and tangent vectors of
//! low-rank weights; their global norm.

use super::elementwise::sums_of_squares;
use super::execution::{Execution, Placement, groups};
use crate::error::Failure;
use crate::lowrank::{LowRank, Tangent};
use crate::ops::Gradients;
use crate::params::{ParamId, ParamStore, Parameter, Weight};
use anyhow::bail;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// The gradient of one parameter.
#[derive(Clone, Debug)]
pub enum Gradient {
    /// Of a dense parameter, of its shape.
    Dense(Tensor),
    /// Tangent projection of a low-rank weight's Euclidean gradient.
    Tangent(Tangent),
}

/// All gradients of a step, in the parameters' order, with their norm.
#[derive(Debug)]
pub struct TrainedGradients {
    /// One gradient per parameter.
    pub gradients: Vec<Gradient>,
    /// √Σ‖g‖², over dense gradients and tangent gradients; before any scaling.
    pub norm: f64,
}

impl TrainedGradients {
    /// Collects the slots of one step.
    ///
    /// The norm is over what is really trained: for a low-rank weight ‖P(W)G‖² = ‖UᵀGV‖² + ‖P‖² +
    /// ‖Q‖², not the norms of the K- and L-gradient, which count UᵀGV twice.
    ///
    /// # Errors
    /// If a parameter received no gradient (naming all of them), or a gradient is not finite
    /// (naming the first).
    pub fn collect(
        params: &ParamStore,
        slots: &Gradients,
        execution: Execution,
    ) -> anyhow::Result<Self> {
        let missing: Vec<&str> = params
            .iter()
            .filter(|(id, parameter)| {
                let l_missing = matches!(parameter.weight, Weight::LowRank(_))
                    && slots.get(ParamStore::l_slot(*id)).is_none();
                slots.get(ParamStore::slot(*id)).is_none() || l_missing
            })
            .map(|(_, parameter)| parameter.name.as_str())
            .collect();
        if !missing.is_empty() {
            bail!(
                "no gradient reached these trainable parameters: {}; an operation on their path has no backward",
                missing.join(", ")
            )
        }
        let parameters: Vec<_> = params.iter().collect();
        let gradients = match execution.linalg {
            Placement::Host => parameters
                .par_iter()
                .map(|(id, parameter)| projected(*id, parameter, slots))
                .collect::<Result<Vec<_>>>()?,
            Placement::Device => projected_as_stacks(&parameters, slots)?,
        };
        let parts: Vec<&Tensor> = gradients.iter().flat_map(Gradient::parts).collect();
        let mut squares = sums_of_squares(execution.compute, &parts)?.into_iter();
        let squares: Vec<f64> = gradients
            .iter()
            .map(|gradient| squares.by_ref().take(gradient.parts().len()).sum())
            .collect();
        // After the parallel part, so that it is the first in the parameters' order that is named.
        if let Some(((_, parameter), _)) =
            parameters.iter().zip(&squares).find(|(_, square)| !square.is_finite())
        {
            let message = format!("the gradient of `{}` is not finite", parameter.name);
            return Err(Failure::Diverged(message).into());
        }
        Ok(Self { gradients, norm: squares.iter().sum::<f64>().sqrt() })
    }
}

impl Gradient {
    fn parts(&self) -> Vec<&Tensor> {
        match self {
            Gradient::Dense(gradient) => vec![gradient],
            Gradient::Tangent(tangent) => tangent.parts().to_vec(),
        }
    }
}

/// A slot that is known to be filled.
fn filled(slots: &Gradients, slot: usize) -> Result<&Tensor> {
    slots.get(slot).ok_or_else(|| candle_core::Error::Msg(format!("gradient slot {slot} is empty")))
}

/// The gradient of one parameter.
fn projected(id: ParamId, parameter: &Parameter, slots: &Gradients) -> Result<Gradient> {
    let gradient = filled(slots, ParamStore::slot(id))?;
    Ok(match &parameter.weight {
        Weight::Dense(_) => Gradient::Dense(gradient.clone()),
        Weight::LowRank(point) => Gradient::Tangent(Tangent::from_outer_gradients(
            point,
            gradient,
            filled(slots, ParamStore::l_slot(id))?,
        )?),
    })
}

/// The gradients of all parameters, those of low-rank weights of one shape and rank projected
/// together where they live.
fn projected_as_stacks(
    parameters: &[(ParamId, &Parameter)],
    slots: &Gradients,
) -> Result<Vec<Gradient>> {
    let mut gradients: Vec<Option<Gradient>> = vec![None; parameters.len()];
    let key = |(id, parameter): &(ParamId, &Parameter)| match &parameter.weight {
        Weight::Dense(_) => (id.0 + 1, 0, 0, 0),
        Weight::LowRank(point) => (0, point.rows(), point.columns(), point.rank()),
    };
    for group in groups(parameters.iter().map(key)) {
        let points: Vec<&LowRank> = group
            .iter()
            .filter_map(|&index| match &parameters[index].1.weight {
                Weight::LowRank(point) => Some(point),
                Weight::Dense(_) => None,
            })
            .collect();
        if points.is_empty() {
            for index in group {
                gradients[index] =
                    Some(projected(parameters[index].0, parameters[index].1, slots)?);
            }
            continue;
        }
        let of_slot = |slot: fn(ParamId) -> usize| -> Result<Tensor> {
            let tensors = group
                .iter()
                .map(|&index| filled(slots, slot(parameters[index].0)))
                .collect::<Result<Vec<_>>>()?;
            Tensor::stack(&tensors, 0)
        };
        let (k, l) = (of_slot(ParamStore::slot)?, of_slot(ParamStore::l_slot)?);
        let tangents =
            Tangent::from_outer_gradients(&LowRank::stack(&points)?, &k, &l)?.unstack()?;
        group
            .iter()
            .zip(tangents)
            .for_each(|(&index, tangent)| gradients[index] = Some(Gradient::Tangent(tangent)));
    }
    Ok(gradients.into_iter().flatten().collect())
}

/// The factor that brings a gradient of this norm to at most `largest`; 0 turns clipping off
/// (Pascanu et al. 2013).
pub fn clip_factor(norm: f64, largest: f64) -> f64 {
    if largest > 0.0 && norm > largest { largest / norm } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::clip_factor;

    #[test]
    fn clipping_only_shrinks() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(4.0, 1.0), 0.25);
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
    }
}
