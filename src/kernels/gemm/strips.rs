//! The factors of a product in the order in which its kernel reads them.

use super::instructions::Instructions;
use crate::kernels::Matrix;
use memmap2::MmapMut;
use rayon::prelude::*;

/// Memory for copies of factors that a thread keeps: pages of its own, so that copies begin at a line
/// of the cache and a block that stays does not part the heap.
#[derive(Default)]
pub struct Scratch(Option<MmapMut>);

impl Scratch {
    pub const fn new() -> Self {
        Self(None)
    }

    /// So many numbers from the beginning of a line of the cache on; their values are arbitrary.
    ///
    /// # Panics
    /// If the system gives no memory.
    pub fn numbers(&mut self, count: usize) -> &mut [f32] {
        let bytes = (count * size_of::<f32>()).max(1);
        if self.0.as_ref().is_none_or(|map| map.len() < bytes) {
            self.0 = None;
            self.0 = Some(MmapMut::map_anon(bytes).expect("memory for the factors of a product"));
        }
        let map = self.0.as_mut().expect("mapped above");
        // SAFETY: the map has so many bytes, begins at a page and is this one's alone; every
        // pattern of bits is a number.
        unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().cast::<f32>(), count) }
    }
}

/// Numbers from an address on, with the distances between them.
#[derive(Clone, Copy)]
pub struct Lines {
    pub start: *const f32,
    /// Between rows of a left factor; a right one has its columns side by side.
    pub row: usize,
    /// Along the inner dimension.
    pub step: usize,
}

/// A left factor's rows, a set at a time, as many as a tile has.
pub struct LeftRows<'a> {
    numbers: &'a [f32],
    row: usize,
    step: usize,
    /// Rows of a set.
    height: usize,
    /// Between sets.
    set: usize,
}

impl<'a> LeftRows<'a> {
    /// Where they lie, or copied if a row's numbers are not side by side.
    pub fn new(a: &Matrix<'a, f32>, instructions: &Instructions, scratch: &'a mut Scratch) -> Self {
        let height = instructions.rows;
        let ((rows, inner), (row_stride, column_stride)) = (a.shape(), a.strides());
        if column_stride == 1 {
            return Self {
                numbers: a.numbers(),
                row: row_stride,
                step: 1,
                height,
                set: height * row_stride,
            };
        }
        let set = height * inner;
        let count = rows.div_ceil(height) * set;
        let numbers = scratch.numbers(count);
        let whole = if row_stride == 1 { rows / height } else { 0 };
        let (of_whole, rest) = numbers.split_at_mut(whole * set);
        (instructions.copy_sets)(a.numbers(), column_stride, whole, of_whole);
        let firsts = (whole * height..rows).step_by(height);
        for (first, to) in firsts.zip(rest.chunks_exact_mut(set.max(1))) {
            let part = a.part((first, 0), (height.min(rows - first), inner));
            copy_elements(&part.t(), height, to);
        }
        Self { numbers, row: 1, step: height, height, set }
    }

    /// Those from this row on, the first of a set.
    pub fn from(&self, row: usize) -> Lines {
        let start = self.numbers[row / self.height * self.set..].as_ptr();
        Lines { start, row: self.row, step: self.step }
    }
}

/// A right factor's columns, a strip at a time, as many as a tile has.
pub struct RightStrips<'a> {
    numbers: &'a [f32],
    columns: usize,
    /// Columns of a strip.
    width: usize,
    /// Along the inner dimension.
    step: usize,
    /// Between strips.
    strip: usize,
    /// Copy of the last strip where it is narrower and the others lie in place.
    last: Option<&'a [f32]>,
}

impl<'a> RightStrips<'a> {
    /// A factor whose rows lie in order is left where it is, and only a last strip that is narrower is
    /// copied; another is copied whole.
    pub fn in_place_or_packed(
        b: &Matrix<'a, f32>,
        instructions: &Instructions,
        scratch: &'a mut Scratch,
        is_shared: bool,
    ) -> Self {
        let ((inner, columns), (step, column_stride)) = (b.shape(), b.strides());
        if column_stride != 1 {
            return Self::packed(b, instructions, scratch, is_shared);
        }
        let width = instructions.columns;
        let whole = columns / width * width;
        let last = (whole < columns).then(|| {
            let to = scratch.numbers(inner * width);
            copy_strip(b, whole, instructions, to);
            &*to
        });
        Self { numbers: b.numbers(), columns, width, step, strip: width, last }
    }

    /// A copy, made by all threads if it is shared.
    pub fn packed(
        b: &Matrix<f32>,
        instructions: &Instructions,
        scratch: &'a mut Scratch,
        is_shared: bool,
    ) -> Self {
        let ((inner, columns), width) = (b.shape(), instructions.columns);
        let to = scratch.numbers(inner * columns.next_multiple_of(width));
        let copy = |(strip, to): (usize, &mut [f32])| {
            copy_strip(b, strip * width, instructions, to);
        };
        let strip = (inner * width).max(1);
        match is_shared {
            true => to.par_chunks_exact_mut(strip).enumerate().with_min_len(4).for_each(copy),
            false => to.chunks_exact_mut(strip).enumerate().for_each(copy),
        }
        Self { numbers: to, columns, width, step: width, strip: inner * width, last: None }
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    pub fn count(&self) -> usize {
        self.columns.div_ceil(self.width)
    }

    /// Columns of a strip.
    pub fn width(&self, strip: usize) -> usize {
        self.width.min(self.columns - strip * self.width)
    }

    /// A strip from this row on.
    pub fn strip(&self, strip: usize, row: usize) -> Lines {
        let (numbers, step) = match self.last {
            Some(last) if self.width(strip) < self.width => (&last[row * self.width..], self.width),
            _ => (&self.numbers[strip * self.strip + row * self.step..], self.step),
        };
        Lines { start: numbers.as_ptr(), row: 0, step }
    }
}

/// The strip of b that begins with this column; beyond the last column are zeros.
fn copy_strip(b: &Matrix<f32>, first: usize, instructions: &Instructions, to: &mut [f32]) {
    let ((inner, columns), (row_stride, column_stride)) = (b.shape(), b.strides());
    let width = instructions.columns;
    let part = b.part((0, first), (inner, width.min(columns - first)));
    if part.shape().1 < width {
        to.fill(0.0);
        return copy_elements(&part, width, to);
    }
    match (row_stride, column_stride) {
        (_, 1) => {
            for (row, to) in to.chunks_exact_mut(width).enumerate() {
                to.copy_from_slice(&part.numbers()[row * row_stride..][..width]);
            }
        }
        (1, _) => (instructions.copy_transposed)(part.numbers(), column_stride, to),
        _ => copy_elements(&part, width, to),
    }
}

/// to[i · stride + j] ← xᵢⱼ.
fn copy_elements(x: &Matrix<f32>, stride: usize, to: &mut [f32]) {
    let ((rows, columns), (row, column)) = (x.shape(), x.strides());
    for i in 0..rows {
        for j in 0..columns {
            to[i * stride + j] = x.numbers()[i * row + j * column];
        }
    }
}
