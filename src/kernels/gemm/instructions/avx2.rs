//! AVX2 and FMA.

use super::{Instructions, Lines, Output, ask_to_write, copy_sets};
use std::arch::x86_64::*;

/// Numbers in a vector.
const LANES: usize = 8;
/// Rows whose sums are in registers, two vectors each.
const ROWS: usize = 6;
const COLUMNS: usize = 2 * LANES;

pub const INSTRUCTIONS: Instructions = Instructions {
    rows: ROWS,
    columns: COLUMNS,
    are_here,
    // With AVX-512, faer's are as fast.
    are_worth_it: || !is_x86_feature_detected!("avx512f"),
    tile,
    copy_sets: copy_sets::<ROWS>,
    copy_transposed: copy_transposed::<COLUMNS>,
};

fn are_here() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// # Safety
/// As `Tile` says.
unsafe fn tile(inner: usize, a: Lines, b: Lines, out: Output, (rows, width): (usize, usize)) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => tile_of::<1>(inner, a, b, out, width),
            2 => tile_of::<2>(inner, a, b, out, width),
            3 => tile_of::<3>(inner, a, b, out, width),
            4 => tile_of::<4>(inner, a, b, out, width),
            5 => tile_of::<5>(inner, a, b, out, width),
            _ => tile_of::<ROWS>(inner, a, b, out, width),
        }
    }
}

/// # Safety
/// As `Tile` says.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_of<const R: usize>(inner: usize, a: Lines, b: Lines, out: Output, width: usize) {
    for row in 0..R {
        let to = out.start.wrapping_add(row * out.stride);
        ask_to_write(to);
        ask_to_write(to.wrapping_add(COLUMNS - 1));
    }
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    let (mut left, mut right) = (a.start, b.start);
    for _ in 0..inner {
        // SAFETY: both factors have so many steps.
        unsafe {
            let (low, high) = (_mm256_loadu_ps(right), _mm256_loadu_ps(right.add(LANES)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*left.add(row * a.row));
                sums[0] = _mm256_fmadd_ps(x, low, sums[0]);
                sums[1] = _mm256_fmadd_ps(x, high, sums[1]);
            }
        }
        // Behind the last step nothing is read.
        left = left.wrapping_add(a.step);
        right = right.wrapping_add(b.step);
    }
    let alpha = _mm256_set1_ps(out.alpha);
    for (row, sums) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let to = out.start.add(row * out.stride);
            if width == COLUMNS {
                for (half, sum) in sums.into_iter().enumerate() {
                    let to = to.add(half * LANES);
                    let sum = match out.accumulate {
                        true => _mm256_fmadd_ps(alpha, sum, _mm256_loadu_ps(to)),
                        false => _mm256_mul_ps(alpha, sum),
                    };
                    _mm256_storeu_ps(to, sum);
                }
            } else {
                let mut line = [0f32; COLUMNS];
                _mm256_storeu_ps(line.as_mut_ptr(), sums[0]);
                _mm256_storeu_ps(line.as_mut_ptr().add(LANES), sums[1]);
                for (column, sum) in line.into_iter().take(width).enumerate() {
                    let to = to.add(column);
                    *to = match out.accumulate {
                        true => out.alpha.mul_add(sum, *to),
                        false => out.alpha * sum,
                    };
                }
            }
        }
    }
}

/// [`Instructions::copy_transposed`] for strips of C columns, whole vectors of 8.
pub fn copy_transposed<const C: usize>(from: &[f32], distance: usize, to: &mut [f32]) {
    let inner = to.len() / C;
    assert!(are_here() && (inner == 0 || from.len() >= (C - 1) * distance + inner));
    let whole = inner / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        for column in (0..C).step_by(LANES) {
            let from = &from[first + column * distance..];
            // SAFETY: 8 numbers of 8 lines each are within both, as was looked at above.
            unsafe {
                copy_block::<C>(from.as_ptr(), distance, to[first * C + column..].as_mut_ptr())
            };
        }
    }
    for k in whole..inner {
        for j in 0..C {
            to[k * C + j] = from[k + j * distance];
        }
    }
}

/// An 8 × 8 block: to[C k + j] ← from[k + j · distance].
///
/// # Safety
/// The processor has AVX2; both are valid for these numbers.
#[target_feature(enable = "avx2")]
unsafe fn copy_block<const C: usize>(from: *const f32, distance: usize, to: *mut f32) {
    let mut block = [_mm256_setzero_ps(); LANES];
    // SAFETY: the caller's promise.
    unsafe {
        for (j, line) in block.iter_mut().enumerate() {
            *line = _mm256_loadu_ps(from.add(j * distance));
        }
        for (k, line) in transposed(block).into_iter().enumerate() {
            _mm256_storeu_ps(to.add(k * C), line);
        }
    }
}

/// The transpose of an 8 × 8 block: pairs, then fours, then halves change places.
#[target_feature(enable = "avx2")]
fn transposed(r: [__m256; LANES]) -> [__m256; LANES] {
    let mut pairs = [_mm256_setzero_ps(); LANES];
    for k in 0..LANES / 2 {
        pairs[2 * k] = _mm256_unpacklo_ps(r[2 * k], r[2 * k + 1]);
        pairs[2 * k + 1] = _mm256_unpackhi_ps(r[2 * k], r[2 * k + 1]);
    }
    let mut fours = [_mm256_setzero_ps(); LANES];
    for half in [0, 4] {
        for k in 0..2 {
            let (low, high) = (pairs[half + k], pairs[half + 2 + k]);
            fours[half + 2 * k] = _mm256_shuffle_ps::<0x44>(low, high);
            fours[half + 2 * k + 1] = _mm256_shuffle_ps::<0xEE>(low, high);
        }
    }
    let mut whole = [_mm256_setzero_ps(); LANES];
    for k in 0..LANES / 2 {
        whole[k] = _mm256_permute2f128_ps::<0x20>(fours[k], fours[k + 4]);
        whole[k + 4] = _mm256_permute2f128_ps::<0x31>(fours[k], fours[k + 4]);
    }
    whole
}
