//! The orthogonal polar factor by matrix products only.

use super::combine::{add_product, frobenius_norm, gram, weighted_sum};
use super::stack::{matrix_shape, on_host, sum_each};
use candle_core::{DType, Result, Tensor, bail};

/// Odd quintics p₁, p₂, … whose composition takes singular values in [`smallest`, 1] to 1 ±
/// `error`.
///
/// Each pₖ(x) = a x + b x³ + c x⁵ is the best uniform approximation of 1 on the range its
/// predecessors leave, which makes the composition the best of its kind (Amsel, Persson, Musco &
/// Gower 2025, arXiv:2505.16932, theorem 3.1); found here by exchange (Remez). The cubic and
/// quintic Newton–Schulz polynomials are the limit for a range that shrinks to 1.
#[derive(Clone, Debug)]
pub struct PolarPolynomials {
    coefficients: Vec<[f64; 3]>,
    error: f64,
}

impl PolarPolynomials {
    /// `iterations` polynomials for singular values from `smallest` in (0, 1) to 1.
    pub fn new(smallest: f64, iterations: usize) -> Self {
        let (mut lower, mut upper) = (smallest, 1.0);
        let mut coefficients = Vec::with_capacity(iterations);
        for _ in 0..iterations {
            let (polynomial, error) = best_quintic(lower, upper);
            coefficients.push(polynomial);
            (lower, upper) = (1.0 - error, 1.0 + error);
        }
        Self { coefficients, error: upper - 1.0 }
    }

    /// Largest distance from 1 that a singular value in the range can end with.
    pub fn error(&self) -> f64 {
        self.error
    }

    /// The composition at one number: where a singular value x ∈ [0, 1] ends.
    pub fn evaluate(&self, x: f64) -> f64 {
        self.coefficients.iter().fold(x, |x, [a, b, c]| x * (a + x * x * (b + x * x * c)))
    }
}

impl Default for PolarPolynomials {
    /// Five polynomials for singular values in [10⁻³, 1]: error 0.114, 15 products. (Six: 0.0010;
    /// seven: 10⁻⁶.)
    fn default() -> Self {
        Self::new(1e-3, ITERATIONS)
    }
}

/// Iterations of [`polar_newton_schulz`].
const ITERATIONS: usize = 5;

/// Floating-point operations of [`polar_newton_schulz`] on a matrix of these sides: 4 a² b + 2 a³
/// an iteration, with a ≤ b.
pub fn polar_newton_schulz_flops(rows: u64, columns: u64) -> u64 {
    let (short, long) = (rows.min(columns), rows.max(columns));
    ITERATIONS as u64 * (4 * short * short * long + 2 * short * short * short)
}

/// Approximate polar factor U p(σ) Vᵀ of A = U diag(σ) Vᵀ by the default [`PolarPolynomials`].
///
/// Singular values from 10⁻³ β up, where σ₁ ≤ β ≤ n^⅛ σ₁ for the smaller dimension n, become 1 ±
/// 0.114; smaller ones are multiplied by at most 730/β and so stay small: zero directions stay
/// zero.
///
/// # Errors
/// If an element is not finite.
pub fn polar_newton_schulz(a: &Tensor) -> Result<Tensor> {
    polar_by_polynomials(a, &PolarPolynomials::default())
}

/// Approximate polar factor U p(σ/β) Vᵀ of A = U diag(σ) Vᵀ: m × n, for the composition p.
///
/// X ← a X + X (b G + c G²) with G = XᵀX. The bound β = ‖(AᵀA)²‖_F^¼ = (Σσ⁸)^⅛ ≥ σ₁ costs nothing,
/// G² being needed anyway, and leaves the singular values in (0, 1]. Of a stack, the polar factor
/// of each matrix.
///
/// # Errors
/// If an element is not finite; on a device, which nothing here waits for, what is not finite stays
/// so.
pub fn polar_by_polynomials(a: &Tensor, polynomials: &PolarPolynomials) -> Result<Tensor> {
    let (rows, columns) = matrix_shape(a)?;
    if rows < columns {
        return polar_by_polynomials(&a.t()?, polynomials)?.t()?.contiguous();
    }
    if !on_host(a) {
        return polar_on_device(&a.contiguous()?, polynomials);
    }
    let norm = frobenius_norm(a)?;
    if !norm.is_finite() {
        bail!(
            "polar factor of a {rows} x {columns} matrix with an element that is not finite or too \
             large"
        )
    }
    if norm == 0.0 || columns == 0 {
        return a.contiguous();
    }
    let mut x = (a / norm)?;
    for (iteration, &[a, b, c]) in polynomials.coefficients.iter().enumerate() {
        let squares = gram(&x)?;
        let fourth_powers = gram(&squares)?;
        // Before the first: divided by β, and one part in 10⁵ more, so that rounding does not put
        // σ₁ beyond the range.
        let scale = if iteration == 0 {
            1.0 / (frobenius_norm(&fourth_powers)?.powf(0.25) * (1.0 + 1e-5))
        } else {
            1.0
        };
        let even = weighted_sum(b * scale.powi(3), &squares, c * scale.powi(5), &fourth_powers)?;
        x = add_product(a * scale, &x, 1.0, &x, &even)?;
    }
    Ok(x)
}

/// The same with norms and scales that never leave the device; zero matrices stay zero.
pub(super) fn polar_on_device(a: &Tensor, polynomials: &PolarPolynomials) -> Result<Tensor> {
    // Lost in the rounding of any norm that matters; it only keeps zero from being divided by zero.
    let smallest = if a.dtype() == DType::F64 { 1e-150 } else { 1e-18 };
    // By the largest element first, whose square may leave the range of the type.
    let largest =
        a.abs()?.flatten_from(a.rank() - 2)?.max_keepdim(a.rank() - 2)?.unsqueeze(a.rank() - 1)?;
    let a = a.broadcast_div(&(largest + smallest * smallest)?)?;
    let norm = sum_each(&a.sqr()?)?.sqrt()?;
    let mut x = a.broadcast_div(&(norm + smallest)?)?;
    for (iteration, &[a, b, c]) in polynomials.coefficients.iter().enumerate() {
        let mut squares = gram(&x)?;
        let mut fourth_powers = gram(&squares)?;
        if iteration == 0 {
            // β² = ‖(XᵀX)²‖_F^½, with the same margin for rounding as on the host.
            let bound = sum_each(&fourth_powers.sqr()?)?
                .sqrt()?
                .sqrt()?
                .affine((1.0 + 1e-5f64).powi(2), smallest)?;
            x = x.broadcast_div(&bound.sqrt()?)?;
            squares = squares.broadcast_div(&bound)?;
            fourth_powers = fourth_powers.broadcast_div(&bound.sqr()?)?;
        }
        let even = weighted_sum(b, &squares, c, &fourth_powers)?;
        x = add_product(a, &x, 1.0, &x, &even)?;
    }
    Ok(x)
}

/// The odd quintic closest to 1 on [lower, upper], and its distance.
///
/// Three free coefficients mean four points of equal, alternating error: the two ends and the two
/// stationary points between them.
fn best_quintic(lower: f64, upper: f64) -> ([f64; 3], f64) {
    let spread = 1.0 - lower / upper;
    if spread < 1e-5 {
        // The limit of a narrow range, where the exchange would only find rounding; its error is
        // (5/2)(spread/2)³.
        let x = 2.0 / (lower + upper);
        return (
            [1.875 * x, -1.25 * x.powi(3), 0.375 * x.powi(5)],
            2.5 * (spread / 2.0).powi(3) + f64::EPSILON,
        );
    }
    let mut inner = [0.75 * lower + 0.25 * upper, 0.25 * lower + 0.75 * upper];
    let mut best = ([0.0; 3], 1.0);
    for _ in 0..100 {
        let points = [lower, inner[0], inner[1], upper];
        let signs = [1.0, -1.0, 1.0, -1.0];
        let [a, b, c, error] = solve(std::array::from_fn(|i| {
            let x = points[i];
            [x, x.powi(3), x.powi(5), signs[i], 1.0]
        }));
        best = ([a, b, c], error.abs());
        // p'(x) = a + 3b x² + 5c x⁴ = 0
        let root = (9.0 * b * b - 20.0 * a * c).sqrt();
        let next =
            [((-3.0 * b - root) / (10.0 * c)).sqrt(), ((-3.0 * b + root) / (10.0 * c)).sqrt()];
        let moved = (next[0] - inner[0]).abs() + (next[1] - inner[1]).abs();
        if moved.is_nan() || moved < 1e-14 * upper {
            break;
        }
        inner = next;
    }
    best
}

/// The solution of four linear equations, the right side in the last column, by elimination with
/// row exchanges.
fn solve(mut rows: [[f64; 5]; 4]) -> [f64; 4] {
    for column in 0..4 {
        let pivot = (column..4)
            .max_by(|&i, &j| rows[i][column].abs().total_cmp(&rows[j][column].abs()))
            .unwrap_or(column);
        rows.swap(column, pivot);
        let pivot_row = rows[column];
        for (index, row) in rows.iter_mut().enumerate() {
            if index != column {
                let factor = row[column] / pivot_row[column];
                for k in column..5 {
                    row[k] -= factor * pivot_row[k];
                }
            }
        }
    }
    std::array::from_fn(|i| rows[i][4] / rows[i][i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials_keep_their_promise_on_the_whole_range() {
        for (smallest, iterations, error) in [
            (1e-3, 5, 0.11345),
            (1e-3, 6, 9.2e-4),
            (1e-2, 4, 0.01253),
            (1e-4, 10, 1e-12),
            (0.5, 4, 1e-12),
        ] {
            let polynomials = PolarPolynomials::new(smallest, iterations);
            assert!(
                polynomials.error() <= error * 1.001 + 1e-12,
                "{smallest} {iterations}: {}",
                polynomials.error()
            );
            let mut worst: f64 = 0.0;
            for i in 0..=20_000 {
                let x = smallest.powf(1.0 - i as f64 / 20_000.0);
                worst = worst.max((polynomials.evaluate(x) - 1.0).abs());
            }
            assert!(
                worst <= polynomials.error() + 1e-9,
                "{smallest} {iterations}: {worst} above {}",
                polynomials.error()
            );
        }
    }

    #[test]
    fn small_singular_values_stay_small() {
        let polynomials = PolarPolynomials::default();
        assert_eq!(polynomials.evaluate(0.0), 0.0);
        let growth = polynomials.evaluate(1e-9) / 1e-9;
        assert!(growth > 100.0 && growth < 1100.0, "{growth}");
    }
}
