//! Division by a triangular matrix, on the host in `f64`.

use super::host::{ensure_finite, read, write};
use crate::kernels::work;
use candle_core::{Result, Tensor, bail};
use faer::Par;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;

/// A R⁻¹ for A: m × r and upper triangular R: r × r; what stands below R's diagonal is not read.
///
/// # Errors
/// If the shapes do not fit, R's diagonal has a zero, or the result is not finite.
pub fn divide_by_upper(a: &Tensor, r: &Tensor) -> Result<Tensor> {
    let ((rows, columns), size) = (a.dims2()?, r.dims2()?);
    if size != (columns, columns) {
        bail!("a {rows} x {columns} matrix cannot be divided by a {} x {} one", size.0, size.1)
    }
    let triangle = read::<f64>(r)?;
    if let Some(i) = (0..columns).find(|&i| triangle[(i, i)] == 0.0) {
        bail!("division by a singular triangular matrix: diagonal element {i} of {columns} is 0")
    }
    work::triangular_division(rows, columns);
    // X R = A is Rᵀ Xᵀ = Aᵀ.
    let mut transposed = read::<f64>(&a.t()?)?;
    solve_lower_triangular_in_place(triangle.transpose(), transposed.as_mut(), Par::Seq);
    ensure_finite(transposed.as_ref(), "division by a nearly singular triangular matrix: result")?;
    write(transposed.transpose(), a.dtype(), a.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::{frobenius_norm, multiply, qr};
    use crate::rng;
    use candle_core::{DType, Device};

    #[test]
    fn undoes_the_product_and_refuses_singular_divisors() -> Result<()> {
        let normal = |draw: u64, rows: usize, columns: usize| {
            let numbers =
                rng::normals(&mut rng::stream(3, "triangular test", &[draw]), rows * columns);
            Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)
        };
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-4)] {
            let (_, r) = qr(&normal(1, 9, 5)?.to_dtype(dtype)?)?;
            let a = normal(2, 7, 5)?.to_dtype(dtype)?;
            let back = divide_by_upper(&multiply(&a, &r)?, &r)?;
            assert!(frobenius_norm(&(&back - &a)?)? < tolerance);
        }
        let singular = Tensor::new(&[[1.0, 2.0], [0.0, 0.0]], &Device::Cpu)?;
        let error = divide_by_upper(&normal(3, 2, 2)?, &singular).unwrap_err().to_string();
        assert!(error.contains("diagonal element 1 of 2 is 0"), "{error}");
        assert!(divide_by_upper(&normal(3, 2, 3)?, &singular).is_err());
        Ok(())
    }
}
