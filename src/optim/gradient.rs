//! From gradient slots to the gradients that are trained on: dense gradients, tangent vectors of
//! low-rank weights, and their global norm.

use super::elementwise::{decay_and_add, decay_and_add_square, sums_of_squares};
use super::execution::{Execution, Placement, groups};
use super::shards::Shards;
use crate::error::Failure;
use crate::lowrank::{LowRank, Tangent};
use crate::ops::{Compute, Gradients};
use crate::params::{ParamId, ParamStore, Parameter, Weight};
use anyhow::bail;
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The gradient of one parameter, summed over micro-batches.
#[derive(Clone, Debug)]
enum Gradient {
    /// Of a dense parameter, of its shape.
    Dense(Tensor),
    /// Tangent projection of a low-rank weight's Euclidean gradient.
    Tangent(Tangent),
}

/// A sum of gradients over micro-batches, inseparable from the factor that makes it the step's
/// gradient: the mean over micro-batches and the clipping together.
///
/// The factor is applied where the gradient enters a moment, in the same pass, so that no scaled
/// copy is ever made.
#[derive(Debug)]
pub struct Scaled<'a, G> {
    sum: &'a G,
    factor: f64,
}

impl<G> Clone for Scaled<'_, G> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<G> Copy for Scaled<'_, G> {}

impl<'a, G> Scaled<'a, G> {
    /// The gradient `factor` · `sum`.
    pub fn new(sum: &'a G, factor: f64) -> Self {
        Self { sum, factor }
    }

    /// The sum, for what is linear in it: a projection of it keeps the factor by [`Self::with`].
    pub fn sum(&self) -> &'a G {
        self.sum
    }

    /// The factor times `weight`: what the sum is multiplied by where it enters a mean with this
    /// weight.
    pub fn factor(&self, weight: f64) -> f64 {
        weight * self.factor
    }

    /// The factor of squares: weight · factor².
    pub fn square_factor(&self, weight: f64) -> f64 {
        weight * self.factor * self.factor
    }

    /// The multiplier of an unscaled term that is not part of the sum, before it is added to the
    /// sum.
    pub fn unscaled(&self, weight: f64) -> f64 {
        weight / self.factor
    }

    /// The same factor on the image of the sum under a linear map.
    pub fn with<'b, H>(&self, image: &'b H) -> Scaled<'b, H> {
        Scaled { sum: image, factor: self.factor }
    }
}

impl Scaled<'_, Tensor> {
    /// x ← decay · x + weight · g, in place on the CPU.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn add_to(self, compute: Compute, x: &mut Tensor, decay: f64, weight: f64) -> Result<()> {
        decay_and_add(compute, x, decay, self.sum, self.factor(weight))
    }

    /// x ← decay · x + weight · g², in place on the CPU.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn add_square_to(
        self,
        compute: Compute,
        x: &mut Tensor,
        decay: f64,
        weight: f64,
    ) -> Result<()> {
        decay_and_add_square(compute, x, decay, self.sum, self.square_factor(weight))
    }
}

impl Scaled<'_, Tangent> {
    /// β Z + weight · g, for a vector Z at the gradient's point.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn added_to(self, z: &Tangent, beta: f64, weight: f64) -> Result<Tangent> {
        z.scaled_add(beta, self.sum, self.factor(weight))
    }
}

/// All gradients of a step, with their norm.
#[derive(Debug)]
pub struct TrainedGradients {
    /// One for each trained parameter that this process owns.
    gradients: BTreeMap<ParamId, Gradient>,
    /// The factor that turns the sums into the step's gradient.
    factor: f64,
    /// √Σ‖g‖² of the mean over micro-batches, before clipping.
    pub norm: f64,
}

impl TrainedGradients {
    /// Collects the slots of one step over this many micro-batches, clipped to a norm of at most
    /// `grad_clip` (0 turns that off).
    ///
    /// The norm covers what is trained: for a low-rank weight ‖P(W)G‖² = ‖UᵀGV‖² + ‖P‖² +
    /// ‖Q‖², not the norms of the K- and L-gradient, which count UᵀGV twice. Of parameters that
    /// another process owns, only their part of the norm is known here.
    ///
    /// # Errors
    /// If a parameter received no gradient (naming all of them), or a gradient is not finite
    /// (naming the first).
    pub fn collect(
        params: &ParamStore,
        slots: &Gradients,
        micro_batches: usize,
        grad_clip: f64,
        execution: Execution,
        shards: Option<&Shards>,
    ) -> anyhow::Result<Self> {
        let parameters: Vec<(ParamId, &Parameter)> =
            params.iter().filter(|(_, parameter)| parameter.trained).collect();
        let missing: Vec<&str> = parameters
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
                "no gradient reached these trainable parameters: {}; an operation on their path \
                 has no backward",
                missing.join(", ")
            )
        }
        let own: Vec<(ParamId, &Parameter)> = parameters
            .iter()
            .filter(|(id, _)| shards.is_none_or(|shards| shards.owns(*id)))
            .copied()
            .collect();
        let found = gradients_of(&own, slots, execution);
        let (gradients, squares) = match shards {
            None => found?,
            Some(shards) => {
                let (gradients, squares) = match found {
                    Ok((gradients, squares)) => (gradients, Ok(squares)),
                    Err(error) => (Vec::new(), Err(error.into())),
                };
                let ids: Vec<ParamId> = parameters.iter().map(|(id, _)| *id).collect();
                let squares =
                    squares.map(|squares| squares.into_iter().map(|square| vec![square]).collect());
                (gradients, shards.joined(&ids, squares)?.concat())
            }
        };
        // After the parallel part, so that it is the first in the parameters' order that is named.
        if let Some(((_, parameter), _)) =
            parameters.iter().zip(&squares).find(|(_, square)| !square.is_finite())
        {
            let message = format!("the gradient of `{}` is not finite", parameter.name);
            return Err(Failure::Diverged(message).into());
        }
        let mean = 1.0 / micro_batches as f64;
        let norm = squares.iter().sum::<f64>().sqrt() * mean;
        let gradients = own.iter().map(|(id, _)| *id).zip(gradients).collect();
        Ok(Self { gradients, factor: mean * clip_factor(norm, grad_clip), norm })
    }

    /// The gradient of a dense parameter.
    ///
    /// # Errors
    /// If the parameter is low-rank, frozen or another process's.
    pub fn dense(&self, id: ParamId) -> anyhow::Result<Scaled<'_, Tensor>> {
        match self.gradients.get(&id) {
            Some(Gradient::Dense(sum)) => Ok(Scaled::new(sum, self.factor)),
            _ => bail!("parameter {} has no dense gradient: it is low-rank or frozen", id.0),
        }
    }

    /// The gradient of a low-rank weight, a tangent vector at its point.
    ///
    /// # Errors
    /// If the parameter is dense, frozen or another process's.
    pub fn tangent(&self, id: ParamId) -> anyhow::Result<Scaled<'_, Tangent>> {
        match self.gradients.get(&id) {
            Some(Gradient::Tangent(sum)) => Ok(Scaled::new(sum, self.factor)),
            _ => bail!("parameter {} has no tangent gradient: it is dense or frozen", id.0),
        }
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

/// The gradients of these parameters, and the sum of squares of each.
fn gradients_of(
    parameters: &[(ParamId, &Parameter)],
    slots: &Gradients,
    execution: Execution,
) -> Result<(Vec<Gradient>, Vec<f64>)> {
    let gradients = match execution.linalg {
        Placement::Host => parameters
            .par_iter()
            .map(|(id, parameter)| projected(*id, parameter, slots))
            .collect::<Result<Vec<_>>>()?,
        Placement::Device => projected_as_stacks(parameters, slots)?,
    };
    let parts: Vec<&Tensor> = gradients.iter().flat_map(Gradient::parts).collect();
    let mut squares = sums_of_squares(execution.compute, &parts)?.into_iter();
    let squares = gradients
        .iter()
        .map(|gradient| squares.by_ref().take(gradient.parts().len()).sum())
        .collect();
    Ok((gradients, squares))
}

/// The gradient of one parameter.
fn projected(id: ParamId, parameter: &Parameter, slots: &Gradients) -> Result<Gradient> {
    let gradient = filled(slots, ParamStore::slot(id))?;
    Ok(match &parameter.weight {
        Weight::Dense(_) | Weight::Uncut(_) => Gradient::Dense(gradient.clone()),
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
        Weight::Dense(_) | Weight::Uncut(_) => (id.0 + 1, 0, 0, 0),
        Weight::LowRank(point) => (0, point.rows(), point.columns(), point.rank()),
    };
    for group in groups(parameters.iter().map(key)) {
        let points: Vec<&LowRank> = group
            .iter()
            .filter_map(|&index| match &parameters[index].1.weight {
                Weight::LowRank(point) => Some(point),
                Weight::Dense(_) | Weight::Uncut(_) => None,
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
    let all: Option<Vec<Gradient>> = gradients.into_iter().collect();
    all.ok_or_else(|| candle_core::Error::Msg("a parameter belongs to no group".into()))
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
