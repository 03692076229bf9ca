//! Cholesky-QR of whole stacks of matrices where they lie, beside bases or not: [`cholesky_qr`] and
//! the new directions of a device.
//!
//! [`cholesky_qr`]: super::cholesky_qr()

use super::cholesky_qr::{CholeskyFactor, MOST_PASSES, NEARLY_ORTHONORMAL, shift};
use super::combine::{add_product, gram, multiply};
use super::gpu;
use super::host::read;
use super::stack::{
    count_transfer, epsilon_of, matrix_shape, read_stacks, shape_like, stack_shape, sum_each,
    write_each, write_stacks,
};
use super::symmetric::distance_from_identity;
use crate::kernels::gpu::Gpu;
use candle_core::{D, DType, Result, Tensor, bail};
use faer::mat::Mat;
use rayon::prelude::*;

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

    /// Q and R of every matrix, those that products could not decide by `factorize` on the host from
    /// what `pick` brings there, side by side; the shapes of the two must agree.
    pub(super) fn with_failures<P: Send>(
        self,
        like: &Tensor,
        columns: usize,
        pick: impl Fn(usize) -> Result<P>,
        factorize: impl Fn(P) -> Result<(Mat<f64>, Mat<f64>)> + Send + Sync,
    ) -> Result<(Tensor, Tensor)> {
        let (matrices, ..) = stack_shape(like)?;
        if let (Some(found), true) = (&self.found, self.undecided.is_empty()) {
            return Ok(found.clone());
        }
        let picked = self.undecided.iter().map(|&index| pick(index)).collect::<Result<Vec<_>>>()?;
        let host = picked.into_par_iter().map(factorize).collect::<Result<Vec<_>>>()?;
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
    count_transfer();
    read(&if stack.rank() == 2 { stack.clone() } else { stack.get(index)? })
}

/// Q and R with A = Q R + B (…), QᵀQ = I, BᵀQ = 0 of every matrix of several stacks A: L × m × n,
/// beside orthonormal bases B: L × m × b or none, as far as products decide: per pass one transfer to
/// the host and, without a GPU's kernels, one back, whatever the number of stacks.
///
/// Q has k = min(n, m − b) columns, R: k × n. Where A has more columns than there is room for, the
/// first k of them span all that is left beside B, and Q is made of those.
pub(super) fn orthonormalize_stacks(
    problems: &[(Option<&Tensor>, &Tensor)],
) -> Result<Vec<Orthonormalized>> {
    let mut states = Vec::with_capacity(problems.len());
    for &(basis, a) in problems {
        let (rows, columns) = matrix_shape(a)?;
        let taken = basis.map_or(Ok(0), |basis| basis.dim(D::Minus1))?;
        let count = columns.min(rows.saturating_sub(taken));
        states.push((count > 0).then(|| StackState::new(basis, a, count)).transpose()?);
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
        let inverses = if small.iter().all(|x| Gpu::of(x).is_some()) {
            factorize_on_gpu(&mut open, pass, &small)?
        } else {
            factorize_on_host(&mut open, pass, &small)?
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
    let inverted = gpu::cholesky_inverses(&grams)?;
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
    /// For the first `count` columns of each matrix.
    fn new(basis: Option<&Tensor>, a: &Tensor, count: usize) -> Result<Self> {
        let (matrices, ..) = stack_shape(a)?;
        Ok(Self {
            basis: basis.cloned(),
            a: a.clone(),
            q: a.narrow(D::Minus1, 0, count)?.contiguous()?,
            epsilon: epsilon_of(a)?,
            matrices: vec![MatrixState::default(); matrices],
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
            None => Tensor::zeros(shape_like(&self.q, 1, 1), self.q.dtype(), self.q.device()),
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
        let (count, columns) = matrix_shape(&full)?;
        let triangle = Tensor::triu2(columns, full.dtype(), full.device())?.narrow(0, 0, count)?;
        Ok(Orthonormalized { found: Some((self.q, full.broadcast_mul(&triangle)?)), undecided })
    }
}
