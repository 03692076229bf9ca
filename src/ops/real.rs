//! The two floating-point types of the CPU kernels, their exponential, and run-time SIMD dispatch.

use candle_core::{CpuStorage, DType};
use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// f32 or f64.
pub trait Real:
    faer::traits::ComplexField
    + candle_core::WithDType
    + Copy
    + Debug
    + Default
    + Send
    + Sync
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The candle type.
    const TYPE: DType;
    /// Rounds from f64.
    fn real(value: f64) -> Self;
    /// Widens to f64.
    fn wide(self) -> f64;
    /// Square root.
    fn root(self) -> Self;
    /// eˣ; in f32 a polynomial that vectorises, relative error below 3·10⁻⁷, 0 below −87.3 and at
    /// most 2·10³⁸.
    fn exponential(self) -> Self;
    /// The larger of two numbers; `self` if either is NaN.
    fn larger(self, other: Self) -> Self;
    /// The smaller of two numbers; `self` if either is NaN.
    fn smaller(self, other: Self) -> Self;
    /// This type's vector in CPU storage.
    fn of_storage(storage: &CpuStorage) -> Option<&[Self]>;
    /// This type's vector in CPU storage, to write.
    fn of_storage_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const TYPE: DType = DType::F32;

    #[inline(always)]
    fn real(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        self as f64
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn exponential(self) -> Self {
        // x = n ln 2 + r with |r| ≤ ln 2 / 2 (ln 2 in two parts), eˣ = 2ⁿ eʳ; eʳ by a minimax
        // polynomial (Cephes expf).
        const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to the nearest whole number
        let x = if self > 88.0 { 88.0 } else { self };
        let x = if x < -87.3 { -87.3 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
        let mut p = 1.987_569_2e-4_f32;
        p = p * r + 1.398_2e-3;
        p = p * r + 8.333_452e-3;
        p = p * r + 4.166_579_6e-2;
        p = p * r + 1.666_666_5e-1;
        p = p * r + 5.0e-1;
        let mantissa = p * r * r + r + 1.0;
        let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        let scale = f32::from_bits((exponent.wrapping_add(127) as u32) << 23);
        let value = mantissa * scale;
        if self < -87.3 { 0.0 } else { value }
    }
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if other > self { other } else { self }
    }
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        if other < self { other } else { self }
    }
    fn of_storage(storage: &CpuStorage) -> Option<&[Self]> {
        if let CpuStorage::F32(x) = storage { Some(x) } else { None }
    }
    fn of_storage_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F32(x) = storage { Some(x) } else { None }
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const TYPE: DType = DType::F64;

    #[inline(always)]
    fn real(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn exponential(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if other > self { other } else { self }
    }
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        if other < self { other } else { self }
    }
    fn of_storage(storage: &CpuStorage) -> Option<&[Self]> {
        if let CpuStorage::F64(x) = storage { Some(x) } else { None }
    }
    fn of_storage_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F64(x) = storage { Some(x) } else { None }
    }
}

/// Runs a loop compiled for the best SIMD level of this processor (AVX-512, AVX2 or the baseline,
/// found at run time).
///
/// What the loop calls must be `#[inline(always)]` all the way down: a function of its own is
/// compiled for the baseline. Kernels use separate multiplications and additions, never fused ones,
/// so every level gives the same bits.
macro_rules! vectorized {
    ($kernel:expr) => {
        $crate::ops::real::dispatch(
            #[inline(always)]
            || $kernel,
        )
    };
}
pub(crate) use vectorized;

/// The function behind [`vectorized!`], which marks the closure as it must be.
#[inline(always)]
pub fn dispatch<R>(kernel: impl FnOnce() -> R) -> R {
    struct Kernel<F>(F);
    impl<R, F: FnOnce() -> R> pulp::WithSimd for Kernel<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Kernel(kernel))
}

/// Number of partial results kept side by side, so that reductions vectorise and always combine in
/// the same order.
const LANES: usize = 32;

/// Σ term(element i of every row) over rows of equal length, in [`LANES`] interleaved partial sums.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_accurate_over_the_whole_range() {
        let mut worst = 0f64;
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let exact = (x as f64).exp();
            worst = worst.max(((x.exponential() as f64 - exact) / exact).abs());
        }
        assert!(worst < 3e-7, "{worst}");
        assert_eq!(0f32.exponential(), 1.0);
    }

    /// Without pulp's `x86-v4` feature the kernels would silently run at half their width.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn an_avx512_processor_gets_avx512_kernels() {
        let has = [
            is_x86_feature_detected!("avx512f"),
            is_x86_feature_detected!("avx512bw"),
            is_x86_feature_detected!("avx512cd"),
            is_x86_feature_detected!("avx512dq"),
            is_x86_feature_detected!("avx512vl"),
        ];
        let wide = matches!(pulp::Arch::new(), pulp::Arch::V4(_));
        assert!(
            wide || has.contains(&false),
            "the processor has AVX-512, the kernels do not use it"
        );
    }

    #[test]
    fn exponential_at_the_extremes() {
        assert_eq!(f32::NEG_INFINITY.exponential(), 0.0);
        assert_eq!((-1000f32).exponential(), 0.0);
        assert!(f32::INFINITY.exponential().is_finite());
        assert!(f32::NAN.exponential().is_nan());
    }

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
