//! Cholesky factors, and division by a symmetric positive definite matrix, on the host in `f64`.

use super::host::{ensure_finite, read, write};
use super::stack::{on_host, read_each, stack_shape, write_each};
use crate::kernels::work;
use candle_core::{Result, Tensor, bail};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{
    LltRegularization, cholesky_in_place, cholesky_in_place_scratch,
};
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::mat::Mat;
use faer::{Par, Spec};
use rayon::prelude::*;

/// A H with H = (1+γ) c (C + γcI)^{-1}, for A: m × n, a symmetric positive semidefinite C: n × n, c =
/// tr C / n and γ = `damping`.
///
/// A multiple of I as C leaves A as it is, whatever the multiple, and so does a C of zeros. Of
/// stacks, every matrix by its own C, with one transfer each way.
///
/// # Errors
/// If the shapes do not fit, an element is not finite, or rounding has left C + γcI without a
/// Cholesky factor, which a larger γ mends.
pub fn whitened(a: &Tensor, second: &Tensor, damping: f64) -> Result<Tensor> {
    let ((count, rows, columns), of_second) = (stack_shape(a)?, stack_shape(second)?);
    if of_second != (count, columns, columns) {
        bail!(
            "{count} matrices, {rows} x {columns}, cannot be whitened by second moments of shape {:?}",
            second.dims()
        )
    }
    if on_host(a) {
        let solved = whiten(read(&a.t()?)?, read(second)?, damping)?;
        return write(solved.transpose(), a.dtype(), a.device());
    }
    let [matrices, seconds] = read_each([a, second])?;
    let whiten_each = |(a, second): (Mat<f64>, Mat<f64>)| {
        let solved = whiten(a.transpose().to_owned(), second, damping)?;
        Ok(solved.transpose().to_owned())
    };
    let pairs = matrices.into_par_iter().zip(seconds);
    let whitened = pairs.map(whiten_each).collect::<Result<Vec<_>>>()?;
    let [whitened] = write_each([(whitened.as_slice(), a)])?;
    Ok(whitened)
}

/// H Aᵀ of [`whitened`] from Aᵀ: n × m.
fn whiten(mut transposed: Mat<f64>, mut second: Mat<f64>, damping: f64) -> Result<Mat<f64>> {
    ensure_finite(transposed.as_ref(), "whitening")?;
    ensure_finite(second.as_ref(), "whitening by a second moment")?;
    let (columns, rows) = transposed.shape();
    let mean = (0..columns).map(|i| second[(i, i)]).sum::<f64>() / columns.max(1) as f64;
    if mean == 0.0 {
        return Ok(transposed);
    }
    (0..columns).for_each(|i| second[(i, i)] += damping * mean);
    work::cholesky(columns);
    let Some(lower) = lower_factor(second) else {
        bail!(
            "the second moment of {columns} inputs is not positive definite with a damping of \
             {damping}; set a larger one, such as 0.2"
        )
    };
    (0..2).for_each(|_| work::triangular_division(rows, columns));
    solve_lower_triangular_in_place(lower.as_ref(), transposed.as_mut(), Par::Seq);
    solve_upper_triangular_in_place(lower.transpose(), transposed.as_mut(), Par::Seq);
    let scale = (1.0 + damping) * mean;
    transposed.col_iter_mut().for_each(|column| column.iter_mut().for_each(|x| *x *= scale));
    Ok(transposed)
}

/// Floating-point operations of [`whitened`] on a matrix of these sides: n³/3 of the factor, and two
/// triangular divisions, m n² each.
pub fn whitened_flops(rows: u64, columns: u64) -> u64 {
    columns.pow(3) / 3 + 2 * rows * columns * columns
}

/// L, lower triangular, with LLᵀ = A; what stands above its diagonal is not to be read. `None` if A
/// is not positive definite.
pub(super) fn lower_factor(mut matrix: Mat<f64>) -> Option<Mat<f64>> {
    let scratch = cholesky_in_place_scratch::<f64>(matrix.nrows(), Par::Seq, Spec::default());
    let mut memory = MemBuffer::new(scratch);
    cholesky_in_place(
        matrix.as_mut(),
        LltRegularization::default(),
        Par::Seq,
        MemStack::new(&mut memory),
        Spec::default(),
    )
    .ok()?;
    Some(matrix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::{frobenius_norm, gram, inverse_square_root, multiply, stack};
    use crate::rng;
    use candle_core::{DType, Device};

    fn normal(rows: usize, columns: usize, draw: u64) -> Tensor {
        let numbers = rng::normals(&mut rng::stream(7, "whitening", &[draw]), rows * columns);
        let tensor = Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).expect("a matrix");
        tensor.to_dtype(DType::F64).expect("numbers")
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        frobenius_norm(&(a - b).expect("one shape")).expect("a norm")
    }

    /// By eigenvalues, of C of full rank and not; matrix by matrix and as a stack.
    #[test]
    fn is_a_product_with_the_damped_inverse() -> Result<()> {
        let (rows, columns, damping) = (5, 8, 0.3);
        let (mut all, mut seconds, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for (draw, tokens) in [(0, 30), (1, 3)] {
            let (a, second) =
                (normal(rows, columns, draw), gram(&normal(tokens, columns, draw + 9))?);
            let root = inverse_square_root(&second, damping)?;
            let trace: f64 = (0..columns)
                .map(|i| second.get(i)?.get(i)?.to_scalar::<f64>())
                .sum::<Result<f64>>()?;
            let inverse = (multiply(&root, &root)? * ((1.0 + damping) * trace / columns as f64))?;
            let product = multiply(&a, &inverse)?;
            assert!(
                distance(&whitened(&a, &second, damping)?, &product) < 1e-11,
                "{tokens} tokens"
            );
            let scaled = whitened(&a, &(&second * 1e-6)?, damping)?;
            assert!(distance(&scaled, &product) < 1e-11, "a factor of all inputs drops out");
            all.push(a);
            seconds.push(second);
            expected.push(product);
        }
        let stacked = |tensors: &[Tensor]| stack(&tensors.iter().collect::<Vec<_>>());
        let found = whitened(&stacked(&all)?, &stacked(&seconds)?, damping)?;
        for (place, expected) in expected.iter().enumerate() {
            assert!(distance(&found.get(place)?, expected) < 1e-11);
        }
        Ok(())
    }

    #[test]
    fn even_and_missing_inputs_change_nothing_and_others_are_refused() -> Result<()> {
        let a = normal(3, 4, 0);
        let identity = Tensor::eye(4, DType::F64, &Device::Cpu)?;
        assert!(distance(&whitened(&a, &(&identity * 1e-3)?, 0.2)?, &a) < 1e-14);
        assert_eq!(distance(&whitened(&a, &identity.zeros_like()?, 0.2)?, &a), 0.0);
        let said = |second: &Tensor| whitened(&a, second, 0.2).unwrap_err().to_string();
        assert!(said(&normal(3, 3, 1)).contains("[3, 3]"));
        assert!(said(&(&identity * f64::NAN)?).contains("(0, 0) is NaN"));
        let signs = Tensor::new(&[1.0, 1.0, 1.0, -1.0], &Device::Cpu)?;
        assert!(said(&identity.broadcast_mul(&signs)?).contains("a larger one"));
        Ok(())
    }
}
