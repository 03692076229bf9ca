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
        let mut fours = out.chunks_exact_mut(4);
        let mut start = 0;
        for four in &mut fours {
            let [a, b, c, d] = [0, 1, 2, 3].map(|row| start + row * stride);
            let n = x.len();
            four.copy_from_slice(&four_dots(
                x,
                &w[a..][..n],
                &w[b..][..n],
                &w[c..][..n],
                &w[d..][..n],
            ));
            start += 4 * stride;
        }
        for out in fours.into_remainder() {
            *out = dot(x, &w[start..][..x.len()]);
            start += stride;
        }
    })
}

/// Partial sums, which stay in registers where they are passed on by value.
type Sums<T> = [T; LANES];

/// The sums with the products of LANES more numbers.
#[inline(always)]
fn step<T: Real>(mut sums: Sums<T>, x: &Sums<T>, w: &Sums<T>) -> Sums<T> {
    for lane in 0..LANES {
        sums[lane] += x[lane] * w[lane];
    }
    sums
}

/// The sum of partial sums, by halves, and of the products that are left.
#[inline(always)]
fn total<T: Real>(sums: Sums<T>, x: &[T], w: &[T]) -> T {
    let (mut eight, mut four) = ([T::ZERO; 8], [T::ZERO; 4]);
    for lane in 0..8 {
        eight[lane] = sums[lane] + sums[lane + 8];
    }
    for lane in 0..4 {
        four[lane] = eight[lane] + eight[lane + 4];
    }
    let mut total = (four[0] + four[2]) + (four[1] + four[3]);
    for (x, w) in x.iter().zip(w) {
        total += *x * *w;
    }
    total
}

/// x · w.
#[inline(always)]
fn dot<T: Real>(x: &[T], w: &[T]) -> T {
    let ((x, x_rest), (w, w_rest)) = (x.as_chunks(), w.as_chunks());
    let mut sums = [T::ZERO; LANES];
    for (x, w) in x.iter().zip(w) {
        sums = step(sums, x, w);
    }
    total(sums, x_rest, w_rest)
}

/// x with each of four rows, side by side.
#[inline(always)]
fn four_dots<T: Real>(x: &[T], a: &[T], b: &[T], c: &[T], d: &[T]) -> [T; 4] {
    let (x, x_rest) = x.as_chunks::<LANES>();
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let ((c, c_rest), (d, d_rest)) = (c.as_chunks::<LANES>(), d.as_chunks::<LANES>());
    let zeros = [T::ZERO; LANES];
    let (mut of_a, mut of_b, mut of_c, mut of_d) = (zeros, zeros, zeros, zeros);
    for ((((x, a), b), c), d) in x.iter().zip(a).zip(b).zip(c).zip(d) {
        of_a = step(of_a, x, a);
        of_b = step(of_b, x, b);
        of_c = step(of_c, x, c);
        of_d = step(of_d, x, d);
    }
    [
        total(of_a, x_rest, a_rest),
        total(of_b, x_rest, b_rest),
        total(of_c, x_rest, c_rest),
        total(of_d, x_rest, d_rest),
    ]
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
