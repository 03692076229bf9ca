//! Products of f32 matrices on processors with AVX2 and without AVX-512, whose sums stay in registers
//! (Goto & van de Geijn 2008, doi:10.1145/1356052.1356053; Van Zee & van de Geijn 2015,
//! doi:10.1145/2764454).
//!
//! The right factor is copied into strips as wide as two vectors, once for all threads; of the left
//! one, a few rows at a time are read where they lie, and only a transposed one is copied. An element
//! is the sum, in order, of the fused sums over blocks of the inner dimension, and blocks depend on
//! that dimension alone: results depend neither on tiles nor on the number of threads, nor on the
//! instructions.

mod instructions;
mod strips;

use super::multiply::WORTH_SHARING;
use super::{Matrix, Real, SharedOut};
use candle_core::DType;
use instructions::Instructions;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;
use strips::{LeftRows, RightStrips, Scratch};

/// Most of the inner dimension at a time: a strip of the right factor then stays in the first cache.
const INNER: usize = 384;
/// Most rows at a time, whole tiles of 6: their numbers of a block then stay in the second cache.
const ROWS: usize = 126;
/// Numbers of the right factor that are copied at a time.
const PACKED: usize = 1 << 20;
/// Rows of a product up to which a right factor is not worth a copy if its rows lie in order.
const FEW_ROWS: usize = 96;
/// Columns up to which it is not, either.
const FEW_COLUMNS: usize = 128;

thread_local! {
    static LEFT: Cell<Scratch> = const { Cell::new(Scratch::new()) };
    static RIGHT: Cell<Scratch> = const { Cell::new(Scratch::new()) };
}

/// These kernels, by the instructions that this processor has.
#[derive(Clone, Copy)]
pub struct Gemm(&'static Instructions);

impl Gemm {
    /// The kernels, if they are for this type and processor.
    #[inline]
    pub fn of<T: Real>() -> Option<Self> {
        (T::TYPE == DType::F32).then(Instructions::chosen).flatten().map(Self)
    }

    /// out ← alpha · a b, or out ← out + alpha · a b with `accumulate`, on the calling thread alone;
    /// rows of `out` are `stride` apart.
    ///
    /// # Safety
    /// `out` must be valid for a.rows × b.columns elements at that stride, nobody else may use them
    /// meanwhile, and a and b must not overlap them.
    pub unsafe fn multiply_at<T: Real>(
        self,
        out: *mut T,
        stride: usize,
        [a, b]: [Matrix<T>; 2],
        alpha: T,
        accumulate: bool,
    ) {
        let [a, b] = [a, b].map(|x| x.cast::<f32>());
        let (alpha, mut scratch) = (alpha.wide() as f32, RIGHT.take());
        for (first, part) in self.parts(&a, &b) {
            let right = self.right(&part, a.shape().0, &mut scratch, false);
            // SAFETY: the caller's promise.
            let start = unsafe { out.cast::<f32>().add(first) };
            let out = Output { start, stride, alpha, accumulate };
            // SAFETY: the caller's promise; `Gemm` is made only where the instructions are.
            unsafe { self.multiply_rows(out, &a, &right, 0..right.count()) };
        }
        RIGHT.set(scratch);
    }

    /// out ← a b, or out ← out + a b with `accumulate`, on all threads; `out` is row-major, a.rows ×
    /// b.columns.
    ///
    /// # Panics
    /// If `out` has another size, or the factors have different inner dimensions.
    pub fn multiply<T: Real>(self, out: &mut [T], [a, b]: [Matrix<T>; 2], accumulate: bool) {
        let ((rows, inner), (_, columns)) = (a.shape(), b.shape());
        assert_eq!(out.len(), rows * columns, "size of a product");
        let [a, b] = [a, b].map(|x| x.cast::<f32>());
        let threads = match rows * columns * inner < WORTH_SHARING {
            true => 1,
            false => rayon::current_num_threads(),
        };
        let shared = SharedOut::new(out);
        let mut scratch = RIGHT.take();
        for (first, part) in self.parts(&a, &b) {
            let right = self.right(&part, rows, &mut scratch, threads > 1);
            let (height, parts) = self.tasks(rows, right.count(), threads);
            let strips_of_task = right.count().div_ceil(parts);
            let task = |task: usize| {
                let (row, strip) = (task / parts * height, task % parts * strips_of_task);
                let a = a.part((row, 0), (height.min(rows - row), inner));
                let strips = strip..(strip + strips_of_task).min(right.count());
                // SAFETY: in bounds, since the first row and column are.
                let start = unsafe { shared.get().cast::<f32>().add(row * columns + first) };
                let out = Output { start, stride: columns, alpha: 1.0, accumulate };
                // SAFETY: tasks write disjoint rows and strips of `out`, which nothing else refers
                // to until this function returns; `Gemm` is made only where the instructions are.
                unsafe { self.multiply_rows(out, &a, &right, strips) };
            };
            match rows.div_ceil(height) * parts {
                1 => task(0),
                tasks => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
            }
        }
        RIGHT.set(scratch);
    }

    /// The right factor by as many columns as are copied at a time, and the first of each.
    ///
    /// # Panics
    /// If the factors have different inner dimensions.
    fn parts<'a>(
        self,
        a: &Matrix<'a, f32>,
        b: &Matrix<'a, f32>,
    ) -> impl Iterator<Item = (usize, Matrix<'a, f32>)> {
        let (b, (inner, columns), strip) = (*b, b.shape(), self.0.columns);
        assert_eq!(a.shape().1, inner, "inner dimensions of a product");
        let width = (PACKED / inner.max(1) / strip).max(4) * strip;
        (0..columns)
            .step_by(width)
            .map(move |first| (first, b.part((0, first), (inner, width.min(columns - first)))))
    }

    /// A part of the right factor, for so many rows of the left one: copied where that pays.
    fn right<'a>(
        self,
        part: &Matrix<'a, f32>,
        rows: usize,
        scratch: &'a mut Scratch,
        is_shared: bool,
    ) -> RightStrips<'a> {
        match rows <= FEW_ROWS || part.shape().1 <= FEW_COLUMNS {
            true => RightStrips::in_place_or_packed(part, self.0, scratch, is_shared),
            false => RightStrips::packed(part, self.0, scratch, is_shared),
        }
    }

    /// Rows of a task and into how many parts its strips are cut, so that each of several threads has
    /// four tasks where there is enough for that.
    fn tasks(self, rows: usize, strips: usize, threads: usize) -> (usize, usize) {
        if threads == 1 {
            return (rows.max(1), 1);
        }
        let height =
            rows.div_ceil(4 * threads).clamp(2 * self.0.rows, ROWS).next_multiple_of(self.0.rows);
        let blocks = rows.div_ceil(height).max(1);
        (height, (4 * threads).div_ceil(blocks).clamp(1, strips.max(1)))
    }

    /// These strips of out ← alpha · a b, on this thread.
    ///
    /// # Safety
    /// As [`Gemm::multiply_at`]; the processor has the instructions.
    unsafe fn multiply_rows(
        self,
        out: Output,
        a: &Matrix<f32>,
        right: &RightStrips,
        strips: Range<usize>,
    ) {
        let Instructions { rows: set, columns: strip_width, tile, .. } = *self.0;
        let (rows, inner) = a.shape();
        if inner == 0 && !out.accumulate {
            let columns = (strips.end * strip_width).min(right.columns());
            for row in 0..rows {
                for column in strips.start * strip_width..columns {
                    // SAFETY: the caller's promise.
                    unsafe { *out.start.add(row * out.stride + column) = 0.0 };
                }
            }
        }
        let mut scratch = LEFT.take();
        for block in blocks(inner) {
            let accumulate = out.accumulate || block.start > 0;
            for first in (0..rows).step_by(ROWS) {
                let part = a.part((first, block.start), (ROWS.min(rows - first), block.len()));
                let left = LeftRows::new(&part, self.0, &mut scratch);
                for strip in strips.clone() {
                    let (b, width) = (right.strip(strip, block.start), right.width(strip));
                    let height = part.shape().0;
                    for row in (0..height).step_by(set) {
                        // SAFETY: the row and the column lie within the output that the caller promises.
                        let start = unsafe {
                            out.start.add((first + row) * out.stride + strip * strip_width)
                        };
                        let out = Output { start, accumulate, ..out };
                        let size = (set.min(height - row), width);
                        // SAFETY: as above; both factors have a block's numbers from there on.
                        unsafe { tile(block.len(), left.from(row), b, out, size) };
                    }
                }
            }
        }
        LEFT.set(scratch);
    }
}

/// Where a product goes.
#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    stride: usize,
    alpha: f32,
    accumulate: bool,
}

/// Cuts an inner dimension into blocks of nearly equal length.
fn blocks(inner: usize) -> impl Iterator<Item = Range<usize>> {
    let length = inner.div_ceil(inner.div_ceil(INNER).max(1)).next_multiple_of(8).max(8);
    (0..inner).step_by(length).map(move |first| first..(first + length).min(inner))
}

#[cfg(test)]
mod tests;
