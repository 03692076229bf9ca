//! Products and sums of matrices, accumulated in one buffer, and their Frobenius geometry.

use super::host::with_view;
use super::stack::{on_host, read_numbers, stack_shape};
use crate::kernels::{Host, Real, multiply_at, wide_dot, with_real, work};
use candle_core::{D, Device, Result, Tensor, bail};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::mat::MatMut;
use faer::{Accum, Par};

/// A B, for A: m × k and B: k × n, each possibly a transposed or narrowed view; of stacks, the
/// product of each pair.
///
/// # Errors
/// If the shapes do not fit.
pub fn multiply(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    sum_of_products(&[(1.0, a, b)])
}

/// AᵀA: n × n for A: m × n, exactly symmetric; on the CPU half the work of [`multiply`].
///
/// # Errors
/// If the dtype is neither f32 nor f64.
pub fn gram(a: &Tensor) -> Result<Tensor> {
    if on_host(a) { with_real!(a.dtype(), T => gram_on_host::<T>(a)) } else { multiply(&a.t()?, a) }
}

fn gram_on_host<T: Real>(a: &Tensor) -> Result<Tensor> {
    let size = a.dim(1)?;
    work::product(size, a.dim(0)?, size);
    let mut numbers = vec![T::from_f64(0.0); size * size];
    let lower = MatMut::from_row_major_slice_mut(&mut numbers, size, size);
    with_view::<T, _>(a, |a| {
        let (full, triangle) = (BlockStructure::Rectangular, BlockStructure::TriangularLower);
        triangular::matmul(
            lower,
            triangle,
            Accum::Replace,
            a.transpose(),
            full,
            a,
            full,
            T::from_f64(1.0),
            Par::Seq,
        );
    })?;
    for i in 0..size {
        for j in 0..i {
            numbers[j * size + i] = numbers[i * size + j];
        }
    }
    Tensor::from_vec(numbers, (size, size), &Device::Cpu)
}

/// Σᵢ αᵢ Aᵢ Bᵢ, for Aᵢ: m × kᵢ and Bᵢ: kᵢ × n, without intermediate matrices on the CPU.
///
/// # Errors
/// If the shapes do not fit, or there are no terms.
pub fn sum_of_products(terms: &[(f64, &Tensor, &Tensor)]) -> Result<Tensor> {
    accumulate(None, terms)
}

/// β C + α A B, for A: m × k, B: k × n and C: m × n.
///
/// # Errors
/// If the shapes do not fit.
pub fn add_product(beta: f64, c: &Tensor, alpha: f64, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    accumulate(Some((beta, c)), &[(alpha, a, b)])
}

/// α A + β B, for A and B of equal shape.
///
/// # Errors
/// If the shapes differ.
pub fn weighted_sum(alpha: f64, a: &Tensor, beta: f64, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("cannot add a {:?} and a {:?} matrix", a.dims(), b.dims())
    }
    if !on_host(a) || !a.is_contiguous() || !b.is_contiguous() {
        let scaled =
            |factor: f64, x: &Tensor| if factor == 1.0 { Ok(x.clone()) } else { x * factor };
        return scaled(alpha, a)? + scaled(beta, b)?;
    }
    with_real!(a.dtype(), T => weighted_sum_on_host::<T>(alpha, a, beta, b))
}

fn weighted_sum_on_host<T: Real>(alpha: f64, a: &Tensor, beta: f64, b: &Tensor) -> Result<Tensor> {
    let (alpha, beta) = (T::from_f64(alpha), T::from_f64(beta));
    let sum =
        |a: &[T], b: &[T]| a.iter().zip(b).map(|(&x, &y)| alpha * x + beta * y).collect::<Vec<T>>();
    let (a_host, b_host) = (Host::new(a)?, Host::new(b)?);
    let numbers = sum(a_host.numbers()?, b_host.numbers()?);
    Tensor::from_vec(numbers, a.dims(), a.device())
}

/// ⟨A, B⟩ = Σᵢⱼ Aᵢⱼ Bᵢⱼ, over all matrices of a stack; on the host summed in `f64` in an order that
/// depends on the shape only, else on the device.
///
/// # Errors
/// If the shapes differ.
pub fn inner(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.dims() != b.dims() {
        bail!("no inner product of a {:?} and a {:?} matrix", a.dims(), b.dims())
    }
    if !on_host(a) {
        return Ok(read_numbers(&(a * b)?.sum_all()?)?[0]);
    }
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let (a_host, b_host) = (Host::new(&a)?, Host::new(&b)?);
    with_real!(a.dtype(), T => Ok(wide_dot::<T>(a_host.numbers()?, b_host.numbers()?)))
}

/// ‖A‖_F = (Σᵢⱼ Aᵢⱼ²)^½, in `f64`.
///
/// # Errors
/// If the dtype is neither f32 nor f64.
pub fn frobenius_norm(a: &Tensor) -> Result<f64> {
    Ok(inner(a, a)?.sqrt())
}

fn accumulate(start: Option<(f64, &Tensor)>, terms: &[(f64, &Tensor, &Tensor)]) -> Result<Tensor> {
    let Some(&(_, first_a, first_b)) = terms.first() else {
        bail!("a sum of no products has no shape")
    };
    let ((matrices, rows, _), (_, _, columns)) = (stack_shape(first_a)?, stack_shape(first_b)?);
    for (_, a, b) in terms {
        let ((a_count, a_rows, a_columns), (b_count, b_rows, b_columns)) =
            (stack_shape(a)?, stack_shape(b)?);
        if a_columns != b_rows || (a_rows, b_columns) != (rows, columns) {
            bail!(
                "the product of {a_rows} x {a_columns} and {b_rows} x {b_columns} is no term of a \
                 {rows} x {columns} sum"
            )
        }
        if (a_count, b_count) != (matrices, matrices)
            || a.rank() != first_a.rank()
            || b.rank() != first_a.rank()
        {
            bail!(
                "the product of stacks {:?} and {:?} is no term of a sum of {matrices} matrices",
                a.dims(),
                b.dims()
            )
        }
    }
    if let Some((_, c)) = start
        && (stack_shape(c)? != (matrices, rows, columns) || c.rank() != first_a.rank())
    {
        bail!("cannot add a {rows} x {columns} product to a {:?} matrix", c.dims())
    }
    if on_host(first_a) {
        with_real!(first_a.dtype(), T => accumulate_on_host::<T>(start, terms, rows, columns))
    } else {
        accumulate_on_device(start, terms)
    }
}

fn accumulate_on_host<T: Real>(
    start: Option<(f64, &Tensor)>,
    terms: &[(f64, &Tensor, &Tensor)],
    rows: usize,
    columns: usize,
) -> Result<Tensor> {
    let mut numbers = match start {
        Some((beta, c)) => {
            let beta = T::from_f64(beta);
            let c = c.contiguous()?;
            let host = Host::new(&c)?;
            host.numbers::<T>()?.iter().map(|&x| beta * x).collect()
        }
        None => vec![T::from_f64(0.0); rows * columns],
    };
    let mut written = start.is_some();
    for &(alpha, a, b) in terms.iter().filter(|(_, a, _)| a.elem_count() > 0) {
        let (a, b) = (Host::strided(a), Host::strided(b));
        let (a, b) = (a.matrix::<T>()?, b.matrix::<T>()?);
        // SAFETY: the numbers are this function's own, rows × columns as both factors have them.
        unsafe { multiply_at(numbers.as_mut_ptr(), columns, a, b, T::from_f64(alpha), written) };
        written = true;
    }
    Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)
}

/// Device products take whole or transposed matrices only, so narrowed views are copied first.
fn accumulate_on_device(
    start: Option<(f64, &Tensor)>,
    terms: &[(f64, &Tensor, &Tensor)],
) -> Result<Tensor> {
    let whole = |x: &Tensor| if x.t()?.is_contiguous() { Ok(x.clone()) } else { x.contiguous() };
    let scaled = |factor: f64, x: Tensor| if factor == 1.0 { Ok(x) } else { x * factor };
    let mut sum = start.map(|(beta, c)| scaled(beta, c.clone())).transpose()?;
    for &(alpha, a, b) in terms.iter().filter(|(_, a, _)| a.elem_count() > 0) {
        let (matrices, rows, inner) = stack_shape(a)?;
        work::product(matrices * rows, inner, b.dim(D::Minus1)?);
        let product = whole(a)?.matmul(&whole(b)?)?;
        sum = Some(match sum {
            Some(sum) if alpha == -1.0 => (sum - product)?,
            Some(sum) => (sum + scaled(alpha, product)?)?,
            None => scaled(alpha, product)?,
        });
    }
    match (sum, terms.first()) {
        (Some(sum), _) => Ok(sum),
        // Inner dimensions of 0.
        (None, Some((_, a, b))) => Tensor::zeros(
            super::stack::shape_like(a, a.dim(D::Minus2)?, b.dim(D::Minus1)?),
            a.dtype(),
            a.device(),
        ),
        (None, None) => bail!("a sum of no products has no shape"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn ramp(rows: usize, columns: usize, dtype: DType) -> Tensor {
        let numbers: Vec<f64> =
            (0..rows * columns).map(|i| ((i * 37 + 11) % 101) as f64 / 50.0 - 1.0).collect();
        Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        frobenius_norm(&(a - b).unwrap()).unwrap()
    }

    #[test]
    fn sums_of_products_agree_with_candle_on_views() {
        for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::F64, 1e-12)] {
            let (a, b, c) = (ramp(30, 17, dtype), ramp(40, 17, dtype), ramp(30, 40, dtype));
            let expected = (&c + (a.matmul(&b.t().unwrap()).unwrap() * -2.5).unwrap()).unwrap();
            assert!(
                distance(&add_product(1.0, &c, -2.5, &a, &b.t().unwrap()).unwrap(), &expected)
                    < tolerance
            );
            let wide = ramp(17, 55, dtype);
            let part = wide.narrow(1, 7, 40).unwrap();
            let terms = [(1.0, &a, &part), (0.5, &c, &ramp(40, 40, dtype))];
            let expected = (a.matmul(&part.contiguous().unwrap()).unwrap()
                + (c.matmul(&ramp(40, 40, dtype)).unwrap() * 0.5).unwrap())
            .unwrap();
            assert!(distance(&sum_of_products(&terms).unwrap(), &expected) < tolerance);
        }
    }

    #[test]
    fn gram_matrices_are_exactly_symmetric() {
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-13)] {
            for (rows, columns) in [(1, 1), (3, 7), (50, 33), (300, 70)] {
                let a = ramp(rows, columns, dtype);
                for a in [a.clone(), a.t().unwrap()] {
                    let found = gram(&a).unwrap();
                    let expected = multiply(&a.t().unwrap(), &a).unwrap();
                    assert!(
                        distance(&found, &expected)
                            < tolerance * frobenius_norm(&expected).unwrap()
                    );
                    assert_eq!(distance(&found, &found.t().unwrap()), 0.0);
                }
            }
        }
    }

    #[test]
    fn empty_inner_dimension_gives_zero_and_shapes_are_checked() {
        let (a, b) = (
            Tensor::zeros((3, 0), DType::F64, &Device::Cpu).unwrap(),
            Tensor::zeros((0, 2), DType::F64, &Device::Cpu).unwrap(),
        );
        assert_eq!(multiply(&a, &b).unwrap().to_vec2::<f64>().unwrap(), vec![vec![0.0; 2]; 3]);
        assert!(multiply(&b, &b).unwrap_err().to_string().contains("0 x 2"));
        assert!(weighted_sum(1.0, &a, 1.0, &b).is_err());
    }

    #[test]
    fn inner_products_and_weighted_sums() {
        let (a, b) = (ramp(13, 9, DType::F64), ramp(13, 9, DType::F64).affine(0.3, 0.1).unwrap());
        let expected = (&a * &b).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert!((inner(&a, &b).unwrap() - expected).abs() < 1e-12);
        let expected = (a.affine(2.0, 0.0).unwrap() - b.affine(3.0, 0.0).unwrap()).unwrap();
        assert!(distance(&weighted_sum(2.0, &a, -3.0, &b).unwrap(), &expected) < 1e-13);
        assert!(
            distance(
                &weighted_sum(2.0, &a.t().unwrap(), -3.0, &b.t().unwrap()).unwrap(),
                &expected.t().unwrap()
            ) < 1e-13
        );
    }
}
