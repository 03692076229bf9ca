//! One row times a matrix: what a network that writes one token at a time spends its time in.
//!
//! Memory is read once, in the order in which it lies, and no operand is packed; how an element is
//! summed depends on lengths alone.

use super::{Real, vectorized};

/// Partial sums of a dot product.
const LANES: usize = 16;
/// Columns whose sums are kept in registers.
const COLUMNS: usize = 32;

/// outᵢ ← x · wᵢ with wᵢ the `x.len()` numbers from `w[i · stride]` on.
///
/// # Panics
/// If a row reaches beyond `w`.
pub fn dot_rows<T: Real>(out: &mut [T], x: &[T], w: &[T], stride: usize) {
    vectorized!({
        let row = |index: usize| &w[index * stride..][..x.len()];
        let mut fours = out.chunks_exact_mut(4);
        let mut index = 0;
        for four in &mut fours {
            let dots = dots(x, [row(index), row(index + 1), row(index + 2), row(index + 3)]);
            four.copy_from_slice(&dots);
            index += 4;
        }
        for out in fours.into_remainder() {
            [*out] = dots(x, [row(index)]);
            index += 1;
        }
    })
}

/// The dot product of x with each of N rows of its length.
#[inline(always)]
fn dots<T: Real, const N: usize>(x: &[T], rows: [&[T]; N]) -> [T; N] {
    let whole = x.len() / LANES * LANES;
    let mut sums = [[T::ZERO; LANES]; N];
    for start in (0..whole).step_by(LANES) {
        let x = &x[start..start + LANES];
        for (sums, row) in sums.iter_mut().zip(rows) {
            let row = &row[start..start + LANES];
            for ((sum, x), w) in sums.iter_mut().zip(x).zip(row) {
                *sum += *x * *w;
            }
        }
    }
    let mut totals = [T::ZERO; N];
    for ((total, sums), row) in totals.iter_mut().zip(&mut sums).zip(rows) {
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
            width /= 2;
        }
        *total = sums[0];
        for (x, w) in x[whole..].iter().zip(&row[whole..]) {
            *total += *x * *w;
        }
    }
    totals
}

/// out ← Σᵢ xᵢ wᵢ with wᵢ the `out.len()` numbers from `w[i · stride]` on.
///
/// # Panics
/// If a row reaches beyond `w`.
pub fn weigh_rows<T: Real>(out: &mut [T], x: &[T], w: &[T], stride: usize) {
    vectorized!({
        let mut parts = out.chunks_exact_mut(COLUMNS);
        let mut column = 0;
        for part in &mut parts {
            let mut sums = [T::ZERO; COLUMNS];
            for (index, x) in x.iter().enumerate() {
                let row = &w[index * stride + column..][..COLUMNS];
                for (sum, w) in sums.iter_mut().zip(row) {
                    *sum += *x * *w;
                }
            }
            part.copy_from_slice(&sums);
            column += COLUMNS;
        }
        let rest = parts.into_remainder();
        rest.fill(T::ZERO);
        let width = rest.len();
        if width > 0 {
            for (index, x) in x.iter().enumerate() {
                let row = &w[index * stride + column..][..width];
                for (sum, w) in rest.iter_mut().zip(row) {
                    *sum += *x * *w;
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_multiplied_as_the_textbook_has_it() {
        let number = |index: usize| ((index * 37 + 11) % 101) as f64 / 101.0 - 0.5;
        for (rows, columns, stride) in
            [(1, 1, 1), (3, 5, 5), (4, 16, 16), (9, 33, 40), (70, 100, 100), (5, 32, 64)]
        {
            let w: Vec<f64> = (0..rows * stride).map(number).collect();
            let x: Vec<f64> = (0..columns).map(|index| number(index + 7)).collect();
            let mut out = vec![f64::NAN; rows];
            dot_rows(&mut out, &x, &w, stride);
            for (row, out) in out.iter().enumerate() {
                let expected: f64 = (0..columns).map(|j| x[j] * w[row * stride + j]).sum();
                assert!((out - expected).abs() < 1e-12, "{rows} x {columns}: {out} {expected}");
            }
            let x: Vec<f64> = (0..rows).map(|index| number(index + 3)).collect();
            let mut out = vec![f64::NAN; columns];
            weigh_rows(&mut out, &x, &w, stride);
            for (column, out) in out.iter().enumerate() {
                let expected: f64 = (0..rows).map(|i| x[i] * w[i * stride + column]).sum();
                assert!((out - expected).abs() < 1e-12, "{rows} x {columns}: {out} {expected}");
            }
        }
    }
}
