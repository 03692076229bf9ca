//! Copies of transposed matrices that lie row by row.
//!
//! On a processor with AVX2 faer's product reads a transposed left factor four numbers here and
//! four there, a row of its memory apart each, which costs it part of its rate; so the factor is
//! copied into blocks that lie row by row. The sums are the same to the bit, since only the place of
//! the numbers differs. With AVX-512 there is nothing to mend.

use super::{Matrix, Real};

/// Numbers between rows beside their own: rows that lie a power of two apart would fall on the same
/// lines of the cache.
const GAP: usize = 16;

/// A matrix of f32 copied so that its rows lie without gaps, and the distance between two of them;
/// none where the processor has no need of it or no instructions for it.
pub fn rows_in_order<T: Real>(a: &Matrix<T>) -> Option<(Vec<T>, usize)> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && !is_x86_feature_detected!("avx512f") {
        return x86::rows_in_order(a);
    }
    let _ = (a, GAP);
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{GAP, Matrix, Real};
    use crate::kernels::unwritten;
    use candle_core::DType;
    use std::arch::x86_64::*;

    /// Numbers in a vector.
    const LANES: usize = 8;
    /// Rows at a time: a line of the cache, so that each is read once.
    const ROWS: usize = 16;

    /// Needs AVX2.
    pub fn rows_in_order<T: Real>(a: &Matrix<T>) -> Option<(Vec<T>, usize)> {
        if T::TYPE != DType::F32 || !a.is_transposed() {
            return None;
        }
        let (rows, columns) = a.shape();
        let stride = columns + GAP;
        let mut copy = unwritten::<T>(rows * stride);
        let view = a.view();
        let (from, distance) = (view.as_ptr().cast::<f32>(), view.col_stride() as usize);
        let to = copy.as_mut_ptr().cast::<f32>();
        // SAFETY: T is f32; element (i, j) of the matrix lies at `from` + i + j · distance for all
        // i < rows, j < columns, and the copy has `stride` ≥ columns numbers for each of its rows.
        // The caller has seen that the processor has AVX2.
        unsafe { copy_transposed(from, distance, to, stride, rows, columns) };
        Some((copy, stride))
    }

    /// to[i · stride + j] ← from[i + j · distance] for i < rows, j < columns.
    ///
    /// # Safety
    /// The processor has AVX2; both sides are valid for these elements and do not overlap.
    #[target_feature(enable = "avx2")]
    unsafe fn copy_transposed(
        from: *const f32,
        distance: usize,
        to: *mut f32,
        stride: usize,
        rows: usize,
        columns: usize,
    ) {
        let (whole_rows, whole_columns) = (rows / ROWS * ROWS, columns / LANES * LANES);
        // SAFETY: every index is within the whole rows and columns, or within the rest of them, and
        // so below `rows` and `columns`: the caller's promise covers each.
        unsafe {
            for i in (0..whole_rows).step_by(ROWS) {
                for j in (0..whole_columns).step_by(LANES) {
                    for i in [i, i + LANES] {
                        let mut block = [_mm256_setzero_ps(); LANES];
                        for (k, line) in block.iter_mut().enumerate() {
                            *line = _mm256_loadu_ps(from.add(i + (j + k) * distance));
                        }
                        for (k, line) in transposed(block).into_iter().enumerate() {
                            _mm256_storeu_ps(to.add((i + k) * stride + j), line);
                        }
                    }
                }
            }
            for i in 0..rows {
                let first = if i < whole_rows { whole_columns } else { 0 };
                for j in first..columns {
                    *to.add(i * stride + j) = *from.add(i + j * distance);
                }
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

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_copy_has_every_number_in_its_place() {
            if !is_x86_feature_detected!("avx2") {
                return eprintln!("this processor has no AVX2");
            }
            let numbers: Vec<f32> = (0..90 * 70).map(|i| i as f32).collect();
            for (rows, columns) in [(1, 2), (8, 8), (16, 8), (15, 33), (48, 64), (61, 69)] {
                // A part of a larger matrix, seen transposed.
                let a = Matrix::new(&numbers, 90, 70).t().part((3, 5), (rows, columns));
                let (copy, stride) = rows_in_order(&a).expect("a transposed matrix of f32");
                for i in 0..rows {
                    for j in 0..columns {
                        let expected = ((5 + j) * 70 + 3 + i) as f32;
                        assert_eq!(
                            copy[i * stride + j],
                            expected,
                            "({i}, {j}) of {rows} x {columns}"
                        );
                    }
                }
            }
            assert!(rows_in_order(&Matrix::new(&numbers, 90, 70)).is_none());
            assert!(rows_in_order(&Matrix::new(&[0f64; 6], 2, 3).t()).is_none());
        }
    }
}
