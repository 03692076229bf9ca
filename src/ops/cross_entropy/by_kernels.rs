//! Losses and gradients of the head by the CPU kernels.

use super::super::head_adapter::{Term, TermGradients};
use super::super::product::multiply;
use super::{Summed, Wanted};
use crate::kernels::{Host, Matrix, Real, build, lane_max, lane_sum, unwritten, vectorized};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Logits per chunk: 8 MB in f32, which a large cache holds.
const CHUNK: usize = 1 << 21;

/// The losses by the CPU kernels.
pub(super) fn chunks<T: Real>(
    (h, w, term): (&Tensor, &Tensor, Option<Term>),
    targets: &Tensor,
    divisor: f64,
    wanted: Wanted,
) -> Result<Summed> {
    let ((count, width), (vocabulary, _)) = (h.dims2()?, w.dims2()?);
    let w = w.contiguous()?;
    let (h_host, w_host, target_host) = (Host::new(h)?, Host::new(&w)?, Host::new(targets)?);
    let (h, w, targets) = (h_host.numbers::<T>()?, w_host.numbers::<T>()?, target_host.ids()?);
    let mut beside = term.as_ref().map(|term| Beside::<T>::new(term, wanted.term)).transpose()?;
    let rows_per_chunk = (CHUNK / vocabulary).clamp(64, count.max(64));
    let mut logits = unwritten::<T>(rows_per_chunk.min(count) * vocabulary);
    let (mut sum, mut each) = (0.0, Vec::new());
    let mut dw = unwritten::<T>(if wanted.w { vocabulary * width } else { 0 });
    let scale = T::real(1.0 / divisor);
    let weight = Matrix::new(w, vocabulary, width);
    let mut pass = |dh: &mut [T]| -> Result<()> {
        for first in (0..count).step_by(rows_per_chunk) {
            let rows = rows_per_chunk.min(count - first);
            let input = Matrix::new(&h[first * width..][..rows * width], rows, width);
            let logits = &mut logits[..rows * vocabulary];
            multiply(logits, input, weight.t(), false);
            if let Some(beside) = &beside {
                beside.add_to(logits, first..first + rows);
            }
            let losses: Vec<f64> = logits
                .par_chunks_mut(vocabulary)
                .zip(&targets[first..first + rows])
                .map(|(row, target)| {
                    if wanted.gradients() {
                        row_loss_and_gradient(row, *target as usize, scale)
                    } else {
                        row_loss(row, *target as usize)
                    }
                })
                .collect();
            sum += losses.iter().sum::<f64>();
            if wanted.each {
                each.extend(losses);
            }
            let d_logits = Matrix::new(logits, rows, vocabulary);
            if wanted.h {
                multiply(&mut dh[first * width..][..rows * width], d_logits, weight, false);
            }
            if wanted.w {
                multiply(&mut dw, d_logits.t(), input, first > 0);
            }
            if let Some(beside) = beside.as_mut().filter(|_| wanted.term) {
                beside.take(d_logits, first..first + rows);
            }
        }
        Ok(())
    };
    let dh = if wanted.h {
        Some(build::<T>((count, width), pass)?)
    } else {
        pass(&mut [])?;
        None
    };
    let dw = if wanted.w {
        Some(Tensor::from_vec(dw, (vocabulary, width), &Device::Cpu)?)
    } else {
        None
    };
    let by_term = beside.filter(|_| wanted.term).map(Beside::gradients).transpose()?;
    let loss = Tensor::new(sum, &Device::Cpu)?;
    Ok(Summed { loss, each, dh, dw, term: term.zip(by_term) })
}

/// −ln softmax(row)[target].
fn row_loss<T: Real>(row: &mut [T], target: usize) -> f64 {
    vectorized!({
        let max = lane_max(row);
        let at_target = row[target];
        let sum = lane_sum([row], |[x]| (x - max).exponential());
        sum.wide().ln() + max.wide() - at_target.wide()
    })
}

/// The row's loss; the row becomes scale · (softmax − onehot).
fn row_loss_and_gradient<T: Real>(row: &mut [T], target: usize, scale: T) -> f64 {
    vectorized!({
        let max = lane_max(row);
        let at_target = row[target];
        row.iter_mut().for_each(|x| *x = (*x - max).exponential());
        let sum = lane_sum([row], |[x]| x);
        let factor = scale / sum;
        row.iter_mut().for_each(|x| *x *= factor);
        row[target] -= scale;
        sum.wide().ln() + max.wide() - at_target.wide()
    })
}

/// What is beside W, and the gradients by it as chunks of rows bring them.
struct Beside<T> {
    vocabulary: usize,
    rank: usize,
    left: Vec<T>,
    inner: Vec<T>,
    z: Vec<T>,
    by_left: Vec<T>,
    by_inner: Vec<T>,
}

impl<T: Real> Beside<T> {
    fn new(term: &Term, is_trained: bool) -> Result<Self> {
        let ((vocabulary, rank), count) = (term.left.dims2()?, term.z.dim(0)?);
        let numbers = |x: &Tensor| -> Result<Vec<T>> {
            let x = x.contiguous()?;
            let host = Host::new(&x)?;
            Ok(host.numbers::<T>()?.to_vec())
        };
        let gradient = |rows: usize| unwritten::<T>(if is_trained { rows * rank } else { 0 });
        Ok(Self {
            vocabulary,
            rank,
            left: numbers(&term.left)?,
            inner: numbers(&term.inner)?,
            z: numbers(&term.z)?,
            by_left: gradient(vocabulary),
            by_inner: gradient(count),
        })
    }

    /// Logits of these rows ← logits + inner leftᵀ.
    fn add_to(&self, logits: &mut [T], rows: Range<usize>) {
        let inner = &self.inner[rows.start * self.rank..][..rows.len() * self.rank];
        let left = Matrix::new(&self.left, self.vocabulary, self.rank);
        multiply(logits, Matrix::new(inner, rows.len(), self.rank), left.t(), true);
    }

    /// The gradients by left, δᵀ z, and by inner, δ left, from δ of these rows.
    fn take(&mut self, delta: Matrix<T>, rows: Range<usize>) {
        let (first, size) = (rows.start * self.rank, rows.len() * self.rank);
        let z = Matrix::new(&self.z[first..][..size], rows.len(), self.rank);
        multiply(&mut self.by_left, delta.t(), z, rows.start > 0);
        let left = Matrix::new(&self.left, self.vocabulary, self.rank);
        multiply(&mut self.by_inner[first..][..size], delta, left, false);
    }
    fn gradients(self) -> Result<TermGradients> {
        let count = self.z.len() / self.rank.max(1);
        let left = Tensor::from_vec(self.by_left, (self.vocabulary, self.rank), &Device::Cpu)?;
        let inner = Tensor::from_vec(self.by_inner, (count, self.rank), &Device::Cpu)?;
        Ok(TermGradients { left, inner })
    }
}
