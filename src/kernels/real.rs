//! The two floating-point types of the CPU kernels, and their exponential.

use candle_core::{CpuStorage, DType};
use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// f32 or f64.
pub trait Real:
    faer::traits::RealField
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
    /// Machine epsilon: the distance from 1 to the next number.
    const EPSILON: f64;
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
    const EPSILON: f64 = f32::EPSILON as f64;
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
    const EPSILON: f64 = f64::EPSILON;
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

/// Runs `$body` with the type alias `$t` set to the tensor type f32 or f64.
macro_rules! with_real {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            other => candle_core::bail!(
                "this is computed in f32 or f64, not {other:?}; convert the tensor first"
            ),
        }
    };
}
pub(crate) use with_real;

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

    #[test]
    fn exponential_at_the_extremes() {
        assert_eq!(f32::NEG_INFINITY.exponential(), 0.0);
        assert_eq!((-1000f32).exponential(), 0.0);
        assert!(f32::INFINITY.exponential().is_finite());
        assert!(f32::NAN.exponential().is_nan());
    }
}
