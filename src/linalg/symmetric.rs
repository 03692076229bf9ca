//! Functions of symmetric matrices, and closeness to orthonormality.

use super::combine::{gram, multiply};
use super::host::{host_product, read};
use super::stack::{ensure_all_finite, matrix_shape, on_host, read_each, write_each};
use crate::kernels::work;
use candle_core::{Error, Result, Tensor, bail};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::mat::Mat;
use faer::{Par, Spec};
use rayon::prelude::*;

/// A^½ and A^{-½} of a symmetric positive semidefinite matrix A.
#[derive(Clone, Debug)]
pub struct SquareRoots {
    /// A^½, n × n.
    pub root: Tensor,
    /// A^{-½}, n × n: the inverse of `root` where A is not singular, else its pseudo-inverse.
    pub inverse: Tensor,
}

/// A^½ and A^{-½} of A = C₊ + ε (tr C / n) I for a symmetric C: n × n, with ε = `relative_epsilon`;
/// computed in `f64` from one eigendecomposition.
///
/// C₊ is C with the eigenvalues that rounding made negative set to zero, for both roots alike.
/// Directions in which A is still zero stay zero in both, as in the pseudo-inverse. Of a stack,
/// those of each matrix, with one transfer each way.
///
/// # Errors
/// If C is not square or not finite, or its eigenvalue iteration does not converge.
pub fn square_roots(symmetric: &Tensor, relative_epsilon: f64) -> Result<SquareRoots> {
    let spectra = spectra(symmetric, relative_epsilon, "square root")?;
    let roots: Vec<Mat<f64>> = spectra.par_iter().map(Spectral::root).collect();
    let inverses: Vec<Mat<f64>> = spectra.par_iter().map(Spectral::inverse_root).collect();
    let groups = [(roots.as_slice(), symmetric), (inverses.as_slice(), symmetric)];
    let [root, inverse] = write_each(groups)?;
    Ok(SquareRoots { root, inverse })
}

/// [`SquareRoots::inverse`] alone.
///
/// # Errors
/// As [`square_roots`].
pub fn inverse_square_root(symmetric: &Tensor, relative_epsilon: f64) -> Result<Tensor> {
    let spectra = spectra(symmetric, relative_epsilon, "inverse square root")?;
    let roots: Vec<Mat<f64>> = spectra.par_iter().map(Spectral::inverse_root).collect();
    let [inverse] = write_each([(roots.as_slice(), symmetric)])?;
    Ok(inverse)
}

/// A = V diag(λ) Vᵀ, with the eigenvalues that count as zero set to it.
struct Spectral {
    values: Vec<f64>,
    vectors: Mat<f64>,
}

impl Spectral {
    fn root(&self) -> Mat<f64> {
        self.of_values(f64::sqrt)
    }

    fn inverse_root(&self) -> Mat<f64> {
        self.of_values(|value| if value > 0.0 { value.sqrt().recip() } else { 0.0 })
    }

    /// V diag(f(λ)) Vᵀ.
    fn of_values(&self, f: impl Fn(f64) -> f64) -> Mat<f64> {
        let (size, values) = (self.values.len(), self.values.iter().map(|&x| f(x)));
        let values: Vec<f64> = values.collect();
        let scaled = Mat::from_fn(size, size, |i, j| self.vectors[(i, j)] * values[j]);
        host_product(scaled.as_ref(), self.vectors.transpose())
    }
}

/// The regularised matrix of [`square_roots`], for every matrix of a stack.
fn spectra(symmetric: &Tensor, relative_epsilon: f64, operation: &str) -> Result<Vec<Spectral>> {
    let (rows, columns) = matrix_shape(symmetric)?;
    if rows != columns {
        bail!("the {operation} is of a square matrix, not of a {rows} x {columns} one")
    }
    let [matrices] = read_each([symmetric])?;
    ensure_all_finite(&matrices, operation)?;
    matrices.par_iter().map(|matrix| regularised(matrix, relative_epsilon)).collect()
}

fn regularised(matrix: &Mat<f64>, relative_epsilon: f64) -> Result<Spectral> {
    let rows = matrix.nrows();
    work::eigen(rows);
    let mut eigenvalues = Diag::<f64>::zeros(rows);
    let mut eigenvectors = Mat::<f64>::zeros(rows, rows);
    let scratch =
        self_adjoint_evd_scratch::<f64>(rows, ComputeEigenvectors::Yes, Par::Seq, Spec::default());
    self_adjoint_evd(
        matrix.as_ref(),
        eigenvalues.as_mut(),
        Some(eigenvectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Spec::default(),
    )
    .map_err(|_| {
        Error::Msg(format!("the eigenvalues of a {rows} x {rows} matrix did not converge")).bt()
    })?;
    let trace: f64 = (0..rows).map(|i| matrix[(i, i)]).sum();
    let shift = relative_epsilon * trace / rows.max(1) as f64;
    let values: Vec<f64> =
        (0..rows).map(|i| eigenvalues.column_vector()[i].max(0.0) + shift).collect();
    let smallest = values.iter().copied().fold(0.0, f64::max) * f64::EPSILON * rows as f64;
    let values =
        values.into_iter().map(|value| if value > smallest { value } else { 0.0 }).collect();
    Ok(Spectral { values, vectors: eigenvectors })
}

/// The closest matrix with orthonormal columns, Q (QᵀQ)^{-½}, for a Q: m × r of full column rank.
///
/// # Errors
/// If an element is not finite.
pub fn reorthonormalize(q: &Tensor) -> Result<Tensor> {
    multiply(q, &inverse_square_root(&gram(q)?, 0.0)?)
}

/// ‖QᵀQ − I‖_F, for Q: m × r; of a stack, the largest.
///
/// # Errors
/// If the dtype is neither f32 nor f64.
pub fn orthonormality_defect(q: &Tensor) -> Result<f64> {
    let gram = gram(q)?;
    if on_host(&gram) {
        return Ok(distance_from_identity(&read::<f64>(&gram)?));
    }
    let [grams] = read_each([&gram])?;
    Ok(grams.iter().map(distance_from_identity).fold(0.0, f64::max))
}

/// ‖G − I‖_F of a square matrix.
pub(super) fn distance_from_identity(gram: &Mat<f64>) -> f64 {
    let mut sum = 0.0;
    for j in 0..gram.ncols() {
        for i in 0..gram.nrows() {
            let target = if i == j { 1.0 } else { 0.0 };
            sum += (gram[(i, j)] - target).powi(2);
        }
    }
    sum.sqrt()
}
