//! A decayed mean of quadratic forms, exact under changes of the bases.

use super::cost::small_products;
use crate::linalg::{inverse_square_root, multiply, weighted_sum};
use crate::optim::cost::WeightSize;
use crate::optim::leaves::LeafMap;
use candle_core::{D, Result, Tensor};

/// A ← βA + wF of forms F, r × r in the coordinates of a basis, and C ← βC + (1−β)I, the weight
/// that A has gathered.
///
/// Both travel as quadratic forms, A ← RᵀAR and C ← RᵀCR with R = V₀ᵀV from the basis V₀ to V,
/// which is exact: a second moment of coordinates in a new basis is that form. Â = C^{-½} A C^{-½}
/// is the bias-corrected mean, A/(1−βᵗ) in a fixed basis; directions that are new since the last
/// rank change have gathered less and are corrected for that alone. Nothing depends on how the
/// basis is rotated.
#[derive(Clone, Debug)]
pub(super) struct FormMean {
    sum: Tensor,
    weight: Tensor,
}

impl FormMean {
    /// Nothing gathered yet, of forms of this shape.
    pub fn new(like: &Tensor) -> Result<Self> {
        let zeros = like.zeros_like()?;
        Ok(Self { sum: zeros.clone(), weight: zeros })
    }

    /// A ← βA + `weight` · F and C ← βC + (1−β)I.
    pub fn update(&mut self, beta: f64, weight: f64, form: &Tensor) -> Result<()> {
        self.sum = weighted_sum(beta, &self.sum, weight, form)?;
        let identity = Tensor::eye(form.dim(D::Minus1)?, form.dtype(), form.device())?;
        let identity = identity.broadcast_as(form.shape())?;
        self.weight = weighted_sum(beta, &self.weight, 1.0 - beta, &identity)?;
        Ok(())
    }

    /// The bias-corrected mean Â.
    pub fn mean(&self) -> Result<Tensor> {
        let whiten = inverse_square_root(&self.weight, 0.0)?;
        multiply(&multiply(&whiten, &self.sum)?, &whiten)
    }

    /// Rᵀ, R: into the new basis.
    pub fn transport(&mut self, rotation_t: &Tensor, rotation: &Tensor) -> Result<()> {
        let form = |x: &Tensor| multiply(&multiply(rotation_t, x)?, rotation);
        self.sum = form(&self.sum)?;
        self.weight = form(&self.weight)?;
        Ok(())
    }

    /// The leaves `<name>` and `<name>_weight`.
    pub fn map_leaves(&self, name: &str, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        let sum = map.tensor(name, &self.sum)?;
        Ok(Self { sum, weight: map.tensor(&format!("{name}_weight"), &self.weight)? })
    }

    /// A and C: 2 r².
    pub fn values(size: WeightSize) -> u64 {
        2 * size.rank * size.rank
    }

    /// Operations of [`Self::transport`] to rank `new`: two quadratic forms.
    pub fn transport_flops(size: WeightSize, new: u64) -> u64 {
        4 * small_products(size.rank, new)
    }
}
