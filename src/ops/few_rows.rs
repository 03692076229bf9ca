//! Products of few rows, as a network has them that writes one token at a time: reading the weight
//! is all the work, so it is read once and in place, where a product of many rows packs it first.

use super::compute::Compute;
use super::product::product_by;
use crate::kernels::{Host, Real, SharedOut, build, dot_rows, weigh_rows, with_real, work};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Most rows.
const FEW: usize = 16;
/// Multiplications below which a product is not worth a second thread.
const WORTH_SHARING: usize = 1 << 17;

/// a b for 2-D a and b, where a has few rows by this module's kernels: a row's numbers do not
/// depend on the other rows. Other products are [`product_by`]'s.
///
/// # Errors
/// If the inner dimensions differ.
pub(super) fn few_rows_product(compute: Compute, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((rows, inner), (inner_b, columns)) = (a.dims2()?, b.dims2()?);
    let has_unit_stride = b.stride().contains(&1);
    let fits = inner == inner_b && inner > 0 && has_unit_stride && compute.takes_kernels(a);
    if !fits || rows > FEW || a.dtype() != b.dtype() {
        return product_by(compute, a, b);
    }
    work::product(rows, inner, columns);
    let a = a.contiguous()?;
    let (a_host, b_host) = (Host::new(&a)?, Host::strided(b));
    with_real!(a.dtype(), T => {
        let (a, b_numbers) = (a_host.numbers::<T>()?, b_host.numbers::<T>()?);
        build::<T>((rows, columns), |out| {
            fill::<T>(out, a, b_numbers, (inner, columns), (b.stride()[0], b.stride()[1]));
            Ok(())
        })
    })
}

/// out ← a b, columns shared out between threads.
fn fill<T: Real>(
    out: &mut [T],
    a: &[T],
    b: &[T],
    (inner, columns): (usize, usize),
    (row_stride, column_stride): (usize, usize),
) {
    let threads = rayon::current_num_threads();
    let parts = if out.len() * inner < WORTH_SHARING { 1 } else { 2 * threads };
    let part = columns.div_ceil(parts).next_multiple_of(64);
    let shared = SharedOut::new(out);
    let run = |part_index: usize| {
        let first = part_index * part;
        let count = part.min(columns - first);
        for (row, x) in a.chunks_exact(inner).enumerate() {
            // SAFETY: parts are disjoint columns of `out`, which nothing else refers to until this
            // function returns.
            let out = unsafe {
                std::slice::from_raw_parts_mut(shared.get().add(row * columns + first), count)
            };
            match row_stride {
                1 => dot_rows(out, x, &b[first * column_stride..], column_stride),
                _ => weigh_rows(out, x, &b[first..], row_stride),
            }
        }
    };
    match columns.div_ceil(part.max(1)) {
        1 => run(0),
        parts => (0..parts).into_par_iter().with_max_len(1).for_each(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    /// Both ways a weight can lie, few rows and one more, a product worth sharing and not.
    #[test]
    fn few_rows_are_multiplied_as_many_are() -> Result<()> {
        let compute = Compute::default();
        for (rows, inner, columns) in
            [(1, 7, 5), (3, 64, 256), (2, 600, 900), (FEW, 16, 130), (FEW + 1, 8, 9), (1, 1, 1)]
        {
            let a = Tensor::randn(0f64, 1.0, (rows, inner), &Device::Cpu)?;
            let b = Tensor::randn(0f64, 1.0, (inner, columns), &Device::Cpu)?;
            let expected = product_by(compute, &a, &b)?;
            for b in [b.clone(), b.t()?.contiguous()?.t()?] {
                let ours = few_rows_product(compute, &a, &b)?;
                let error = (ours - &expected)?.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(error < 1e-11, "{rows} x {inner} x {columns}: {error}");
            }
        }
        let (a, b) = (
            Tensor::ones((1, 3), DType::F32, &Device::Cpu)?,
            Tensor::ones((4, 2), DType::F32, &Device::Cpu)?,
        );
        assert!(few_rows_product(compute, &a, &b).is_err());
        Ok(())
    }
}
