//! Sums and maxima of rows, in an order that depends on their length alone.

use super::Real;

/// Number of partial results kept side by side, so that reductions vectorise and always combine in
/// the same order.
const LANES: usize = 32;

/// Σ term(element i of every row) over rows of equal length, in `LANES` interleaved partial sums.
#[inline(always)]
pub fn lane_sum<T: Real, const N: usize>(rows: [&[T]; N], term: impl Fn([T; N]) -> T) -> T {
    let (whole, rest) = rows[0].split_at(rows[0].len() / LANES * LANES);
    let mut lanes = [T::ZERO; LANES];
    for start in (0..whole.len()).step_by(LANES) {
        let chunks = rows.map(|row| &row[start..start + LANES]);
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(chunks.map(|chunk| chunk[lane]));
        }
    }
    let mut total = T::ZERO;
    for sum in lanes {
        total += sum;
    }
    for i in whole.len()..whole.len() + rest.len() {
        total += term(rows.map(|row| row[i]));
    }
    total
}

/// The largest element of a row; a NaN is found only by what is computed from it.
#[inline(always)]
pub fn lane_max<T: Real>(row: &[T]) -> T {
    let mut lanes = [row[0]; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = x.larger(*lane);
        }
    }
    lanes.iter().chain(rest).fold(row[0], |max, x| x.larger(max))
}

/// Σ aᵢ bᵢ in `f64`, in eight interleaved partial sums, so that the loop vectorises and always adds
/// in the same order, for slices of one length.
pub fn wide_dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0f64; LANES];
    let (chunks_a, chunks_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = chunks_a
        .remainder()
        .iter()
        .zip(chunks_b.remainder())
        .map(|(x, y)| x.wide() * y.wide())
        .sum();
    for (x, y) in chunks_a.zip(chunks_b) {
        for lane in 0..LANES {
            sums[lane] += x[lane].wide() * y[lane].wide();
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_add_everything_once() {
        for count in [0, 1, 31, 32, 33, 100] {
            let (x, ones) = ((0..count).map(|i| i as f64).collect::<Vec<_>>(), vec![1.0; count]);
            assert_eq!(
                lane_sum([&x, &ones], |[x, one]| x + one),
                (count * count.saturating_sub(1) / 2 + count) as f64
            );
        }
    }

    #[test]
    fn wide_products_add_everything_once() {
        for count in [0, 1, 7, 8, 9, 100] {
            let (x, twos) = ((0..count).map(|i| i as f32).collect::<Vec<_>>(), vec![2.0; count]);
            assert_eq!(wide_dot(&x, &twos), (count * count.saturating_sub(1)) as f64);
        }
    }

    #[test]
    fn the_largest_is_found_wherever_it_stands() {
        for count in [1, 31, 32, 33, 100] {
            for place in 0..count {
                let mut x: Vec<f32> = (0..count).map(|i| -(i as f32) - 5.0).collect();
                x[place] = -2.0;
                assert_eq!(lane_max(&x), -2.0);
            }
        }
    }
}
