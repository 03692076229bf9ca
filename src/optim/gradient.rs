//! From gradient slots to the gradients that are really trained: dense ones, and tangent vectors of low-rank weights; their global norm.

use super::elementwise::sum_of_squares;
use crate::error::Failure;
use crate::lowrank::Tangent;
use crate::ops::Gradients;
use crate::params::{ParamStore, Weight};
use anyhow::bail;
use candle_core::Tensor;
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
    /// The norm is over what is really trained: for a low-rank weight ‖P(W)G‖² = ‖UᵀGV‖² + ‖P‖² + ‖Q‖², not the norms of the K- and
    /// L-gradient, which count UᵀGV twice.
    ///
    /// # Errors
    /// If a parameter received no gradient (naming all of them), or a gradient is not finite (naming the first).
    pub fn collect(params: &ParamStore, slots: &Gradients) -> anyhow::Result<Self> {
        let missing: Vec<&str> = params
            .iter()
            .filter(|(id, parameter)| {
                let l_missing = matches!(parameter.weight, Weight::LowRank(_)) && slots.get(ParamStore::l_slot(*id)).is_none();
                slots.get(ParamStore::slot(*id)).is_none() || l_missing
            })
            .map(|(_, parameter)| parameter.name.as_str())
            .collect();
        if !missing.is_empty() {
            bail!("no gradient reached these trainable parameters: {}; an operation on their path has no backward", missing.join(", "))
        }
        let parameters: Vec<_> = params.iter().collect();
        let collected = parameters
            .par_iter()
            .map(|(id, parameter)| {
                let slot = |index| slots.get(index).expect("checked above");
                let (gradient, square) = match &parameter.weight {
                    Weight::Dense(_) => {
                        let gradient = slot(ParamStore::slot(*id));
                        (Gradient::Dense(gradient.clone()), sum_of_squares(gradient)?)
                    }
                    Weight::LowRank(point) => {
                        let tangent = Tangent::from_outer_gradients(point, slot(ParamStore::slot(*id)), slot(ParamStore::l_slot(*id)))?;
                        let square = sum_of_squares(&tangent.m)? + sum_of_squares(&tangent.p)? + sum_of_squares(&tangent.q)?;
                        (Gradient::Tangent(tangent), square)
                    }
                };
                Ok((gradient, square))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        // After the parallel part, so that it is the first in the parameters' order that is named.
        if let Some(((_, parameter), _)) = parameters.iter().zip(&collected).find(|(_, (_, square))| !square.is_finite()) {
            let message = format!(
                "the gradient of `{}` is not finite; lower the learning rate or lengthen the warm-up; the last good checkpoint is untouched",
                parameter.name
            );
            return Err(Failure::Diverged(message).into());
        }
        let norm = collected.iter().map(|(_, square)| square).sum::<f64>().sqrt();
        Ok(Self { gradients: collected.into_iter().map(|(gradient, _)| gradient).collect(), norm })
    }
}

/// The factor that brings a gradient of this norm to at most `largest`; 0 turns clipping off (Pascanu et al. 2013).
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
