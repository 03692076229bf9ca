//! A low-rank matrix by some of its own rows: r rows of W and how the others follow from them,
//! r (m + n − r) numbers, the dimension of the manifold.

use super::LowRank;
use candle_core::{DType, Device, Result, Tensor, bail};
use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef};

/// No coefficient of a maximal set of rows is larger; a little more is accepted, so that a tie
/// cannot go round in circles.
const LARGEST_COEFFICIENT: f64 = 1.01;

/// W = U S Vᵀ: m × n of rank r as `W[p] = [I; C] W[p₁ … p_r]` for a permutation p of its rows.
#[derive(Clone, Debug)]
pub struct RowInterpolation {
    /// The permutation p: the r rows that are kept, in ascending order, then the others.
    pub order: Vec<u32>,
    /// The rows that are kept, r × n.
    pub rows: Tensor,
    /// C: (m − r) × r, the others by those; no entry is larger than about 1.
    pub coefficients: Tensor,
}

impl RowInterpolation {
    /// The interpolation of a point, computed in f64 on the host and returned there in the point's
    /// type.
    ///
    /// The rows of W are those of U times S Vᵀ, so that C = U_rest U_kept⁻¹ needs no inverse of S.
    /// Which rows: the pivots of a QR of Uᵀ with column pivoting, then exchanged until no
    /// coefficient exceeds 1 (a maximal volume: Goreinov et al. 2010, "How to find a good
    /// submatrix", Algorithm 1).
    ///
    /// # Errors
    /// If a number is not finite.
    pub fn new(point: &LowRank) -> Result<Self> {
        let point = point.to_device(&Device::Cpu)?;
        let (m, r) = point.u.dims2()?;
        let numbers: Vec<f64> = point.u.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        if !numbers.iter().all(|number| number.is_finite()) {
            bail!("rows of a low-rank matrix: U has a number that is not finite")
        }
        let u = MatRef::from_row_major_slice(&numbers, m, r);
        let mut kept = first_pivots(u, r);
        let mut coefficients = by_rows(u, &kept);
        // Each exchange multiplies a determinant that is at most 1, so that few are needed.
        for _ in 0..10 * r.max(1) {
            let Some((row, column)) = largest(&coefficients) else { break };
            kept[column] = row;
            coefficients = by_rows(u, &kept);
        }
        kept.sort_unstable();
        let coefficients = by_rows(u, &kept);
        let others: Vec<usize> = (0..m).filter(|row| kept.binary_search(row).is_err()).collect();
        let order: Vec<u32> = kept.iter().chain(&others).map(|row| *row as u32).collect();
        let entries: Vec<f64> = others
            .iter()
            .flat_map(|row| (0..r).map(|column| coefficients[(*row, column)]).collect::<Vec<_>>())
            .collect();
        let indices = Tensor::from_slice(&order[..r], r, &Device::Cpu)?;
        let [u, s, v] = [&point.u, &point.s, &point.v].map(|tensor| tensor.to_dtype(DType::F64));
        let rows = u?.index_select(&indices, 0)?.matmul(&s?)?.matmul(&v?.t()?)?;
        let dtype = point.u.dtype();
        Ok(Self {
            order,
            rows: rows.to_dtype(dtype)?,
            coefficients: Tensor::from_vec(entries, (m - r, r), &Device::Cpu)?.to_dtype(dtype)?,
        })
    }

    /// W: m × n.
    ///
    /// # Errors
    /// If the shapes do not fit, or `order` is no permutation.
    pub fn to_dense(&self) -> Result<Tensor> {
        let ((r, _), (others, columns)) = (self.rows.dims2()?, self.coefficients.dims2()?);
        let m = r + others;
        let mut place = vec![u32::MAX; m];
        for (from, to) in self.order.iter().enumerate() {
            match place.get_mut(*to as usize) {
                Some(slot) if *slot == u32::MAX => *slot = from as u32,
                _ => bail!("the order of rows is no permutation of 0 to {}", m.saturating_sub(1)),
            }
        }
        if self.order.len() != m || columns != r {
            bail!("an order of {} rows and {others} x {columns} coefficients", self.order.len())
        }
        let all = match others {
            0 => self.rows.clone(),
            _ => Tensor::cat(&[&self.rows, &self.coefficients.matmul(&self.rows)?], 0)?,
        };
        all.index_select(&Tensor::from_vec(place, m, all.device())?, 0)
    }
}

/// The first r rows that a QR of Uᵀ with column pivoting takes.
fn first_pivots(u: MatRef<f64>, r: usize) -> Vec<usize> {
    let decomposition = u.transpose().to_owned().col_piv_qr();
    let (forward, _) = decomposition.P().arrays();
    forward[..r].to_vec()
}

/// C = U U_kept⁻¹, m × r.
fn by_rows(u: MatRef<f64>, kept: &[usize]) -> Mat<f64> {
    let r = kept.len();
    let square = Mat::from_fn(r, r, |row, column| u[(kept[row], column)]);
    // C U_kept = U, transposed.
    square.transpose().to_owned().partial_piv_lu().solve(u.transpose()).transpose().to_owned()
}

/// Where the largest coefficient stands, if one is larger than those of a maximal set.
fn largest(coefficients: &Mat<f64>) -> Option<(usize, usize)> {
    let (mut found, mut most) = (None, LARGEST_COEFFICIENT);
    for row in 0..coefficients.nrows() {
        for column in 0..coefficients.ncols() {
            let size = coefficients[(row, column)].abs();
            if size > most {
                (found, most) = (Some((row, column)), size);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    fn point(rows: usize, columns: usize, rank: usize, draw: u64) -> LowRank {
        let mut stream = rng::stream(8, "interpolation", &[draw]);
        let mut normal = |shape: (usize, usize)| {
            let numbers = rng::normals(&mut stream, shape.0 * shape.1);
            Tensor::from_vec(numbers, shape, &Device::Cpu).expect("a matrix")
        };
        let w = normal((rows, rank)).matmul(&normal((rank, columns))).expect("a product");
        LowRank::from_dense(&w, rank).expect("a point")
    }

    /// The same matrix from r (m + n − r) numbers, no coefficient much larger than 1.
    #[test]
    fn rows_and_coefficients_give_the_matrix_back() -> Result<()> {
        for (draw, (rows, columns, rank)) in
            [(20, 30, 4), (30, 20, 20), (9, 9, 9), (64, 16, 1), (200, 48, 31)]
                .into_iter()
                .enumerate()
        {
            let point = point(rows, columns, rank, draw as u64);
            let by_rows = RowInterpolation::new(&point)?;
            let numbers = by_rows.rows.elem_count() + by_rows.coefficients.elem_count();
            assert_eq!(numbers, rank * (rows + columns - rank));
            let error = (by_rows.to_dense()? - point.to_dense()?)?.abs()?.max_all()?;
            let error = error.to_scalar::<f64>()?;
            assert!(error < 1e-11, "{rows} x {columns} of rank {rank}: {error}");
            if rank < rows {
                let most = by_rows.coefficients.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(most <= LARGEST_COEFFICIENT, "{rows} x {columns}, rank {rank}: {most}");
            }
            assert!(by_rows.order[..rank].is_sorted() && by_rows.order[rank..].is_sorted());
        }
        Ok(())
    }

    /// Coefficients of S as small as can be, even zero, do no harm: nothing divides by S.
    #[test]
    fn a_point_whose_coefficients_vanish_is_taken() -> Result<()> {
        let mut point = point(12, 10, 3, 1);
        point.s = point.s.zeros_like()?;
        let by_rows = RowInterpolation::new(&point)?;
        assert_eq!(by_rows.to_dense()?.abs()?.max_all()?.to_scalar::<f64>()?, 0.0);
        Ok(())
    }

    #[test]
    fn an_order_that_is_no_permutation_is_refused() -> Result<()> {
        let mut by_rows = RowInterpolation::new(&point(6, 5, 2, 2))?;
        by_rows.order[0] = by_rows.order[1];
        assert!(by_rows.to_dense().is_err());
        by_rows.order.pop();
        assert!(by_rows.to_dense().is_err());
        Ok(())
    }
}
