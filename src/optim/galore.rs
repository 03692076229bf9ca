//! GaLore for full matrices: Adam in a low-rank projection of the gradient (Zhao et al. 2024,
//! "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", ICML 2024,
//! arXiv:2403.03507, Algorithm 2).

use super::adamw::{AdamwState, AdamwStep};
use super::state::StateReader;
use crate::linalg::{add_product, multiply, svd};
use crate::spec::GaloreSpec;
use candle_core::{Result, Tensor};

/// Projector and moments of one full matrix W: m × n at rank r.
#[derive(Clone, Debug)]
pub struct GaloreState {
    /// P with orthonormal columns, on the shorter side: min(m, n) × r.
    pub projector: Tensor,
    /// Adam's moments of the projected gradient: m × r where m ≥ n, else r × n.
    pub moments: AdamwState,
}

impl GaloreState {
    /// Zero moments for this matrix; the first step computes the projector.
    pub fn new(weight: &Tensor, rank: usize) -> Result<Self> {
        let (rows, columns) = weight.dims2()?;
        let zeros = |shape: (usize, usize)| Tensor::zeros(shape, weight.dtype(), weight.device());
        let (projector, projected) = if rows >= columns {
            (zeros((columns, rank))?, zeros((rows, rank))?)
        } else {
            (zeros((rows, rank))?, zeros((rank, columns))?)
        };
        Ok(Self { projector, moments: AdamwState::new(&projected)? })
    }

    /// Step t = `hyper.step`, counted from 1. Every T-th step from the first on, P is the first r
    /// right (m ≥ n) or left singular vectors of the gradient G.
    ///
    /// R = G P or PᵀG; N = Adam's m̂/(√v̂ + ε) of R, whose moments stay as they are when P changes;
    /// W ← (1 − ηλ) W − η α N Pᵀ or P N. The side is that of the published code
    /// (galore_torch/galore_projector.py, `proj_type` `std`); Algorithm 2 is written for m ≤ n with
    /// P on the left.
    ///
    /// Nothing is changed in place.
    ///
    /// # Errors
    /// If the SVD does not converge.
    pub fn step(
        &self,
        weight: &Tensor,
        gradient: &Tensor,
        rule: &GaloreSpec,
        hyper: &AdamwStep,
    ) -> Result<(Tensor, Self)> {
        let (rows, columns) = weight.dims2()?;
        let on_the_right = rows >= columns;
        let projector = if (hyper.step - 1).is_multiple_of(rule.refresh_every.0.max(1)) {
            let factors = svd(gradient)?;
            (if on_the_right { factors.v } else { factors.u })
                .narrow(1, 0, rule.rank)?
                .contiguous()?
        } else {
            self.projector.clone()
        };
        let projected = if on_the_right {
            multiply(gradient, &projector)?
        } else {
            multiply(&projector.t()?, gradient)?
        };
        let (direction, moments) = self.moments.direction(&projected, hyper)?;
        let (keep, rate) =
            (1.0 - hyper.learning_rate * hyper.weight_decay, -hyper.learning_rate * rule.scale);
        let weight = if on_the_right {
            add_product(keep, weight, rate, &direction, &projector.t()?)?
        } else {
            add_product(keep, weight, rate, &projector, &direction)?
        };
        Ok((weight, Self { projector, moments }))
    }

    /// State tensors by name.
    pub fn named_tensors(&self) -> Vec<(String, Tensor)> {
        let leaves = [
            ("projector", &self.projector),
            ("first", &self.moments.first),
            ("second", &self.moments.second),
        ];
        leaves.map(|(leaf, tensor)| (leaf.to_owned(), tensor.clone())).to_vec()
    }

    /// The state of a matrix from named tensors; the shapes must be those of `self`.
    pub fn load(&self, reader: &mut StateReader) -> anyhow::Result<Self> {
        let projector = reader.take_like("projector", &self.projector)?;
        Ok(Self { projector, moments: self.moments.load(reader)? })
    }
}
