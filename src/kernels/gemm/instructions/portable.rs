//! None in particular, so that everything around them can be tested anywhere; no product of a model
//! is made with these.

use super::{Instructions, Lines, Output, copy_sets};

const ROWS: usize = 3;
const COLUMNS: usize = 8;

pub const INSTRUCTIONS: Instructions = Instructions {
    rows: ROWS,
    columns: COLUMNS,
    are_here: || true,
    are_worth_it: || false,
    tile,
    copy_sets: copy_sets::<ROWS>,
    copy_transposed,
};

/// # Safety
/// As `Tile` says.
unsafe fn tile(inner: usize, a: Lines, b: Lines, out: Output, (rows, width): (usize, usize)) {
    for row in 0..rows {
        for column in 0..width {
            // SAFETY: the caller's promise.
            unsafe {
                let sum = (0..inner).fold(0f32, |sum, k| {
                    let x = *a.start.add(row * a.row + k * a.step);
                    x.mul_add(*b.start.add(k * b.step + column), sum)
                });
                let to = out.start.add(row * out.stride + column);
                *to = match out.accumulate {
                    true => out.alpha.mul_add(sum, *to),
                    false => out.alpha * sum,
                };
            }
        }
    }
}

fn copy_transposed(from: &[f32], distance: usize, to: &mut [f32]) {
    for (k, to) in to.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
        for (j, to) in to.iter_mut().enumerate() {
            *to = from[k + j * distance];
        }
    }
}
