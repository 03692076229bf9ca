//! QR factorisation by matrix products: R from the Cholesky factor of the Gram matrix, repeated
//! until Q is orthonormal.

use super::cholesky::lower_factor;
use super::combine::{add_product, frobenius_norm, gram, multiply};
use super::gpu;
use super::host::{epsilon, host_product, read, write};
use super::stack::{
    epsilon_of, matrix_shape, read_stacks, stack_shape, sum_each, write_each, write_stacks,
};
use super::symmetric::distance_from_identity;
use crate::kernels::gpu::Gpu;
use candle_core::{D, DType, Result, Tensor, bail};
use faer::Par;
use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::mat::Mat;
use rayon::prelude::*;

/// Passes before giving up; two suffice unless the matrix is ill-conditioned, each more gains a
/// factor ≈ (machine epsilon)^-½ in condition.
const MOST_PASSES: usize = 5;

/// A pass on a matrix whose Gram matrix is this close to I (in Frobenius norm) leaves
/// orthonormality at rounding level.
const NEARLY_ORTHONORMAL: f64 = 0.5;

/// Q and R with A = Q R + B (…), QᵀQ = I, BᵀQ = 0, for A: m × n and an orthonormal B: m × b; `None`
/// where products cannot decide: too few rows, columns that are zero or dependent to working
/// precision, numbers out of range.
pub(super) fn orthonormalize_by_products(
    basis: Option<&Tensor>,
    a: &Tensor,
) -> Result<Option<(Tensor, Tensor)>> {
    let (rows, columns) = a.dims2()?;
    if columns + basis.map_or(Ok(0), |basis| basis.dim(1))? > rows || columns == 0 {
        return Ok(None);
    }
    let epsilon = epsilon(a.dtype())?;
    let shift = shift(epsilon, columns);
    let mut q = a.clone();
    let mut r = Mat::<f64>::identity(columns, columns);
    let mut lengths = Vec::new();
    for pass in 0..MOST_PASSES {
        // The first pass only improves the condition: the components along the basis are removed
        // from well-scaled columns, where it is exact.
        let mut along_basis = 0.0;
        if let Some(basis) = basis.filter(|_| pass > 0) {
            let overlap = multiply(&basis.t()?, &q)?;
            along_basis = frobenius_norm(&overlap)?;
            q = add_product(1.0, &q, -1.0, basis, &overlap)?;
        }
        let gram = read::<f64>(&gram(&q)?)?;
        if pass == 0 {
            lengths = (0..columns).map(|j| gram[(j, j)].sqrt()).collect();
        }
        let last = pass > 0
            && along_basis <= NEARLY_ORTHONORMAL
            && distance_from_identity(&gram) <= NEARLY_ORTHONORMAL;
        let Some(factor) = CholeskyFactor::new(&gram, shift) else { return Ok(None) };
        q = multiply(&q, &write(factor.inverse.as_ref(), a.dtype(), a.device())?)?;
        r = host_product(factor.upper.as_ref(), r.as_ref());
        if last {
            // What remains of a column after the ones before it, at the level of its own rounding:
            // a direction made of noise.
            let dependent = (0..columns).any(|j| r[(j, j)] <= 10.0 * epsilon * lengths[j]);
            return if dependent {
                Ok(None)
            } else {
                Ok(Some((q, write(r.as_ref(), a.dtype(), a.device())?)))
            };
        }
    }
    Ok(None)
}

/// What products found for a stack, and which matrices they could not decide.
pub(super) struct Orthonormalized {
    /// Q and R of all matrices; absent if none was decided.
    found: Option<(Tensor, Tensor)>,
    undecided: Vec<usize>,
}

impl Orthonormalized {
    fn none(a: &Tensor) -> Self {
        Self {
            found: None,
            undecided: (0..a.dims().iter().rev().nth(2).copied().unwrap_or(1)).collect(),
        }
    }

    /// Q and R of every matrix, those that products could not decide by `factorize` on the host;
    /// the shapes of the two must agree.
    pub(super) fn with_failures(
        self,
        like: &Tensor,
        columns: usize,
        factorize: impl Fn(usize) -> Result<(Mat<f64>, Mat<f64>)>,
    ) -> Result<(Tensor, Tensor)> {
        let (matrices, ..) = stack_shape(like)?;
        if let (Some(found), true) = (&self.found, self.undecided.is_empty()) {
            return Ok(found.clone());
        }
        let host =
            self.undecided.iter().map(|&index| factorize(index)).collect::<Result<Vec<_>>>()?;
        let (q, r): (Vec<_>, Vec<_>) = host.into_iter().unzip();
        let [q, r] = write_each([(q.as_slice(), like), (r.as_slice(), like)])?;
        let Some((good_q, good_r)) = self.found.filter(|_| self.undecided.len() < matrices) else {
            return Ok((q, r));
        };
        let replace = |good: &Tensor, other: &Tensor| -> Result<Tensor> {
            let mut parts = good.chunk(matrices, 0)?;
            for (place, &index) in self.undecided.iter().enumerate() {
                parts[index] = other.narrow(0, place, 1)?;
            }
            Tensor::cat(&parts, 0)
        };
        if good_r.dim(D::Minus1)? != columns {
            bail!("an R of {:?} for {columns} columns", good_r.dims())
        }
        Ok((replace(&good_q, &q)?, replace(&good_r, &r)?))
    }
}

/// Matrix `index` of a stack, on the host.
pub(super) fn pick(stack: &Tensor, index: usize) -> Result<Mat<f64>> {
    super::stack::count_transfer();
    read(&if stack.rank() == 2 { stack.clone() } else { stack.get(index)? })
}

/// [`orthonormalize_by_products`] for several stacks at once: per pass one transfer to the host and
/// one back, whatever their number.
pub(super) fn orthonormalize_stacks(
    problems: &[(Option<&Tensor>, &Tensor)],
) -> Result<Vec<Orthonormalized>> {
    let mut states = Vec::with_capacity(problems.len());
    for &(basis, a) in problems {
        let (rows, columns) = matrix_shape(a)?;
        let taken = basis.map_or(Ok(0), |basis| basis.dim(D::Minus1))?;
        let possible = columns > 0 && columns + taken <= rows;
        states.push(possible.then(|| StackState::new(basis, a)).transpose()?);
    }
    for pass in 0..MOST_PASSES {
        let mut open: Vec<&mut StackState> =
            states.iter_mut().flatten().filter(|state| !state.is_done()).collect();
        if open.is_empty() {
            break;
        }
        let mut small = Vec::new();
        for state in &mut open {
            let along_basis = state.remove_basis(pass)?;
            small.push(gram(&state.q)?);
            small.push(along_basis);
        }
        let inverses = match small.iter().map(Gpu::of).collect::<Option<Vec<_>>>() {
            Some(_) => factorize_on_gpu(&mut open, pass, &small)?,
            None => factorize_on_host(&mut open, pass, &small)?,
        };
        for (state, inverse) in open.iter_mut().zip(inverses) {
            state.q = multiply(&state.q, &inverse)?;
        }
    }
    problems
        .iter()
        .zip(states)
        .map(|((_, a), state)| {
            state.map_or_else(|| Ok(Orthonormalized::none(a)), StackState::finish)
        })
        .collect()
}

/// The factors R⁻¹ to multiply each stack by, from its Gram matrices and what lay along its basis:
/// by the host, with one transfer there and one back.
fn factorize_on_host(
    open: &mut [&mut StackState],
    pass: usize,
    small: &[Tensor],
) -> Result<Vec<Tensor>> {
    let read = read_stacks(&small.iter().collect::<Vec<_>>())?;
    let inverses: Vec<Vec<Mat<f64>>> = open
        .iter_mut()
        .zip(read.chunks(2))
        .map(|(state, read)| state.factorize(pass, &read[0], &read[1]))
        .collect();
    let groups: Vec<_> = inverses
        .iter()
        .zip(open)
        .map(|(inverses, state)| (inverses.as_slice(), &state.q))
        .collect();
    write_stacks(&groups)
}

/// The same by a GPU, from where only what decides comes to the host, in one transfer.
fn factorize_on_gpu(
    open: &mut [&mut StackState],
    pass: usize,
    small: &[Tensor],
) -> Result<Vec<Tensor>> {
    let grams: Vec<&Tensor> = small.iter().step_by(2).collect();
    let shifts = open.iter().map(|state| state.shift()).collect::<Result<Vec<_>>>()?;
    let inverted = gpu::cholesky_inverses(&grams, &shifts)?;
    let mut decisive = Vec::new();
    for (inverted, along) in inverted.iter().zip(small.iter().skip(1).step_by(2)) {
        decisive.extend([inverted.notes.clone(), along.to_dtype(DType::F64)?]);
    }
    let read = read_stacks(&decisive.iter().collect::<Vec<_>>())?;
    for (state, read) in open.iter_mut().zip(read.chunks(2)) {
        let found: Vec<Found> = read[0].iter().map(Found::of_notes).collect();
        state.note(pass, &found, &read[1]);
    }
    Ok(inverted.into_iter().map(|inverted| inverted.inverse).collect())
}

/// What a pass found of a matrix.
struct Found {
    /// ‖QᵀQ − I‖_F.
    distance: f64,
    /// Column lengths.
    lengths: Vec<f64>,
    /// R's diagonal; none where products cannot decide.
    diagonal: Option<Vec<f64>>,
}

impl Found {
    /// From one row of [`gpu::Inverted::notes`].
    fn of_notes(notes: &Mat<f64>) -> Self {
        let columns = (notes.ncols() - 2) / 2;
        let numbers = |first: usize| (first..first + columns).map(|j| notes[(0, j)]).collect();
        let diagonal = (notes[(0, 0)] == 1.0).then(|| numbers(2));
        Self { distance: notes[(0, 1)], lengths: numbers(2 + columns), diagonal }
    }
}

/// A stack on its way to orthonormal columns.
struct StackState {
    basis: Option<Tensor>,
    a: Tensor,
    q: Tensor,
    epsilon: f64,
    matrices: Vec<MatrixState>,
}

/// One of its matrices.
#[derive(Clone, Default)]
struct MatrixState {
    /// Column lengths before the first pass.
    lengths: Vec<f64>,
    /// R's diagonal so far.
    diagonal: Vec<f64>,
    done: bool,
    /// Products cannot decide.
    failed: bool,
}

impl StackState {
    fn new(basis: Option<&Tensor>, a: &Tensor) -> Result<Self> {
        let (count, ..) = stack_shape(a)?;
        Ok(Self {
            basis: basis.cloned(),
            a: a.clone(),
            q: a.clone(),
            epsilon: epsilon_of(a)?,
            matrices: vec![MatrixState::default(); count],
        })
    }

    fn is_done(&self) -> bool {
        self.matrices.iter().all(|matrix| matrix.done || matrix.failed)
    }

    /// Removes the components along the basis from the second pass on; returns the square of what
    /// was removed, 1 × 1 per matrix.
    fn remove_basis(&mut self, pass: usize) -> Result<Tensor> {
        match self.basis.as_ref().filter(|_| pass > 0) {
            Some(basis) => {
                let overlap = multiply(&basis.t()?, &self.q)?;
                self.q = add_product(1.0, &self.q, -1.0, basis, &overlap)?;
                sum_each(&overlap.sqr()?)
            }
            None => Tensor::zeros(
                super::stack::shape_like(&self.q, 1, 1),
                self.q.dtype(),
                self.q.device(),
            ),
        }
    }

    /// Notes what this pass does to every matrix and returns the factors R⁻¹ to multiply Q by: I
    /// where products cannot decide.
    fn factorize(
        &mut self,
        pass: usize,
        grams: &[Mat<f64>],
        along_basis: &[Mat<f64>],
    ) -> Vec<Mat<f64>> {
        let shift = shift(self.epsilon, grams.first().map_or(0, Mat::ncols));
        let factorize = |(matrix, gram): (&MatrixState, &Mat<f64>)| {
            let columns = gram.ncols();
            let factor = if matrix.failed { None } else { CholeskyFactor::new(gram, shift) };
            let diagonal = |factor: &CholeskyFactor| {
                (0..columns).map(|j| factor.upper[(j, j)]).collect::<Vec<_>>()
            };
            let found = Found {
                distance: distance_from_identity(gram),
                lengths: (0..columns).map(|j| gram[(j, j)].sqrt()).collect(),
                diagonal: factor.as_ref().map(diagonal),
            };
            (factor.map_or_else(|| Mat::identity(columns, columns), |f| f.inverse), found)
        };
        let (inverses, found): (Vec<_>, Vec<_>) =
            self.matrices.par_iter().zip(grams).map(factorize).unzip();
        self.note(pass, &found, along_basis);
        inverses
    }

    /// 8 ε √n, the shift of the Gram matrix of n columns where one is needed.
    fn shift(&self) -> Result<f64> {
        Ok(shift(self.epsilon, matrix_shape(&self.q)?.1))
    }

    /// Notes what this pass did to every matrix.
    fn note(&mut self, pass: usize, found: &[Found], along_basis: &[Mat<f64>]) {
        let epsilon = self.epsilon;
        for ((matrix, found), along) in self.matrices.iter_mut().zip(found).zip(along_basis) {
            if pass == 0 {
                matrix.lengths.clone_from(&found.lengths);
                matrix.diagonal = vec![1.0; found.lengths.len()];
            }
            if matrix.failed {
                continue;
            }
            let Some(diagonal) = &found.diagonal else {
                matrix.failed = true;
                continue;
            };
            let last = pass > 0
                && along[(0, 0)].sqrt() <= NEARLY_ORTHONORMAL
                && found.distance <= NEARLY_ORTHONORMAL;
            matrix.diagonal.iter_mut().zip(diagonal).for_each(|(product, x)| *product *= x);
            if last && !matrix.done {
                matrix.done = true;
                matrix.failed = matrix
                    .diagonal
                    .iter()
                    .zip(&matrix.lengths)
                    .any(|(x, length)| *x <= 10.0 * epsilon * length);
            }
        }
    }

    /// Q, and R as the upper triangle of QᵀA, which is R up to rounding.
    fn finish(self) -> Result<Orthonormalized> {
        let undecided: Vec<usize> = self
            .matrices
            .iter()
            .enumerate()
            .filter(|(_, matrix)| matrix.failed || !matrix.done)
            .map(|(index, _)| index)
            .collect();
        let full = multiply(&self.q.t()?, &self.a)?;
        let (_, columns) = matrix_shape(&full)?;
        let triangle = Tensor::triu2(columns, full.dtype(), full.device())?;
        Ok(Orthonormalized { found: Some((self.q, full.broadcast_mul(&triangle)?)), undecided })
    }
}

/// 8 ε √n.
fn shift(epsilon: f64, columns: usize) -> f64 {
    8.0 * epsilon * (columns as f64).sqrt()
}

/// RᵀR = G, and R⁻¹.
struct CholeskyFactor {
    upper: Mat<f64>,
    inverse: Mat<f64>,
}

impl CholeskyFactor {
    /// Of D (Ĝ + s I) D with Ĝ of unit diagonal, where s = 0 or, if a pivot of Ĝ falls below
    /// `shift`, s = `shift`.
    ///
    /// `None` if a diagonal element is zero, subnormal or not finite, or the shifted matrix is not
    /// positive definite.
    fn new(gram: &Mat<f64>, shift: f64) -> Option<Self> {
        let size = gram.ncols();
        let scale: Vec<f64> = (0..size).map(|j| gram[(j, j)].sqrt()).collect();
        // Squares below 1e-30 have lost digits to f32's subnormal range.
        if !scale.iter().all(|&length| length.is_finite() && length > 1e-15) {
            return None;
        }
        let inverse_scale: Vec<f64> = scale.iter().map(|length| length.recip()).collect();
        let scaled = |shift: f64| {
            let mut matrix = gram.clone();
            for (j, column) in matrix.col_iter_mut().enumerate() {
                column
                    .iter_mut()
                    .zip(&inverse_scale)
                    .for_each(|(x, scale)| *x *= scale * inverse_scale[j]);
            }
            (0..size).for_each(|j| matrix[(j, j)] = 1.0 + shift);
            matrix
        };
        let well_conditioned = |lower: &Mat<f64>| (0..size).all(|j| lower[(j, j)].powi(2) >= shift);
        let lower = lower_factor(scaled(0.0))
            .filter(well_conditioned)
            .or_else(|| lower_factor(scaled(shift)))?;
        // R = Lᵀ D, so R⁻¹ = D⁻¹ L⁻ᵀ.
        let mut inverse = Mat::<f64>::identity(size, size);
        solve_upper_triangular_in_place(lower.transpose(), inverse.as_mut(), Par::Seq);
        for column in inverse.col_iter_mut() {
            column.iter_mut().zip(&inverse_scale).for_each(|(x, scale)| *x *= scale);
        }
        let mut upper = Mat::zeros(size, size);
        for (j, column) in upper.col_iter_mut().enumerate() {
            column
                .iter_mut()
                .zip(lower.row(j).iter())
                .take(j + 1)
                .for_each(|(out, x)| *out = x * scale[j]);
        }
        Some(Self { upper, inverse })
    }
}
