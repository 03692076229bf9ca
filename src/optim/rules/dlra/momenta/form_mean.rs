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
pub(in super::super) struct FormMean {
    sum: Tensor,
    weight: Tensor,
}

impl FormMean {
    /// Nothing gathered yet, of forms of this shape.
    pub fn new(like: &Tensor) -> Result<Self> {
        let zeros = like.zeros_like()?;
        Ok(Self { sum: zeros.clone(), weight: zeros })
    }

    /// VᵀAV and wI: of a whole A: n × n whose directions have all gathered the weight w, one number,
    /// what a basis V: n × r sees.
    pub fn seen(whole: &Tensor, weight: &Tensor, basis: &Tensor) -> Result<Self> {
        let sum = multiply(&basis.t()?, &multiply(whole, basis)?)?;
        let identity = Tensor::eye(sum.dim(D::Minus1)?, sum.dtype(), sum.device())?;
        Ok(Self { weight: identity.broadcast_mul(&weight.to_dtype(sum.dtype())?)?, sum })
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

    /// Operations of [`Self::seen`] of n × n by r directions: 2 n² r + 2 n r².
    pub fn seen_flops(size: u64, rank: u64) -> u64 {
        2 * size * size * rank + 2 * size * rank * rank
    }

    /// Operations of [`Self::transport`] to rank `new`: two quadratic forms.
    pub fn transport_flops(size: WeightSize, new: u64) -> u64 {
        4 * small_products(size.rank, new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::{gram, qr};
    use crate::rng;
    use candle_core::{DType, Device};

    const SIDE: usize = 9;
    const RANK: usize = 5;

    fn normal(rows: usize, columns: usize, draw: u64) -> Tensor {
        let numbers = rng::normals(&mut rng::stream(31, "forms", &[draw]), rows * columns);
        let tensor = Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).expect("a matrix");
        tensor.to_dtype(DType::F64).expect("numbers")
    }

    fn basis(rows: usize, columns: usize, draw: u64) -> Tensor {
        qr(&normal(rows, columns, draw)).expect("a basis").0
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        crate::linalg::frobenius_norm(&(a - b).expect("one shape")).expect("a norm")
    }

    /// Whatever bases of a space, or of less and less of it, come in between: the mean is that of
    /// all that was measured, as the last basis sees it.
    #[test]
    fn the_mean_of_the_last_basis_is_that_of_all_measurements() -> Result<()> {
        for draw in 0..20 {
            let decay = 0.2 + 0.04 * draw as f64;
            let mut v = basis(SIDE, RANK, 100 * draw);
            let mut mean = FormMean::new(&normal(RANK, RANK, 0))?;
            let (mut whole, mut gathered) = (normal(SIDE, SIDE, 0).zeros_like()?, 0.0);
            for (step, rank) in [5, 5, 4, 4, 2].into_iter().enumerate() {
                let draw = 100 * draw + step as u64;
                // New coordinates of the space, or of a part of it.
                let rotation = basis(v.dim(1)?, rank, draw + 20);
                mean.transport(&rotation.t()?, &rotation)?;
                v = multiply(&v, &rotation)?;
                let x = normal(40, SIDE, draw + 40);
                mean.update(decay, 1.0 - decay, &gram(&multiply(&x, &v)?)?)?;
                whole = weighted_sum(decay, &whole, 1.0 - decay, &gram(&x)?)?;
                gathered = decay * gathered + 1.0 - decay;
                let seen = multiply(&v.t()?, &multiply(&whole, &v)?)?;
                let expected = (seen / gathered)?;
                let apart = distance(&mean.mean()?, &expected);
                assert!(apart < 1e-10 * distance(&expected, &expected.zeros_like()?));
            }
        }
        Ok(())
    }

    /// A direction that is orthogonal to the basis before has nothing until it is measured, and
    /// then the mean of what was measured since; the others keep theirs.
    #[test]
    fn a_new_direction_is_corrected_for_itself() -> Result<()> {
        let (decay, whole) = (0.9, basis(SIDE, RANK + 1, 1));
        let old = whole.narrow(1, 0, RANK)?.contiguous()?;
        let mut mean = FormMean::new(&normal(RANK, RANK, 0))?;
        let x = normal(40, SIDE, 2);
        for _ in 0..3 {
            mean.update(decay, 1.0 - decay, &gram(&multiply(&x, &old)?)?)?;
        }
        let rotation = multiply(&old.t()?, &whole)?;
        mean.transport(&rotation.t()?, &rotation)?;
        let unseen = mean.mean()?.get(RANK)?;
        assert!(unseen.abs()?.max_all()?.to_scalar::<f64>()? < 1e-12);
        let expected = gram(&multiply(&x, &whole)?)?;
        mean.update(decay, 1.0 - decay, &expected)?;
        let found = mean.mean()?;
        for i in 0..=RANK {
            let number = |x: &Tensor| x.get(i)?.get(i)?.to_scalar::<f64>();
            let (found, expected) = (number(&found)?, number(&expected)?);
            assert!((found - expected).abs() < 1e-10 * expected, "{i}: {found}, {expected}");
        }
        Ok(())
    }
}
