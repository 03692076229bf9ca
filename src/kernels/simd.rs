//! Run-time SIMD dispatch.

/// Runs a loop compiled for the best SIMD level of this processor (AVX-512, AVX2 or the baseline,
/// found at run time).
///
/// What the loop calls must be `#[inline(always)]` all the way down: a function of its own is
/// compiled for the baseline. Kernels use separate multiplications and additions, never fused ones,
/// so every level gives the same bits.
macro_rules! vectorized {
    ($kernel:expr) => {
        $crate::kernels::dispatch(
            #[inline(always)]
            || $kernel,
        )
    };
}
pub(crate) use vectorized;

/// The function behind `vectorized!`, which marks the closure as it must be.
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

#[cfg(test)]
mod tests {
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
}
