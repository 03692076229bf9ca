//! A matrix of fixed rank, W = U S Vᵀ.

use crate::linalg::{self, Svd, multiply};
use candle_core::{DType, Device, Result, Tensor, bail};
use rand::Rng;
use rand_distr::StandardNormal;

/// W = U S Vᵀ: m × n, with orthonormal U: m × r and V: n × r, and invertible S: r × r.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// Basis of the column space, m × r, UᵀU = I.
    pub u: Tensor,
    /// Coefficients, r × r; diagonal and positive right after a truncation.
    pub s: Tensor,
    /// Basis of the row space, n × r, VᵀV = I.
    pub v: Tensor,
}

impl LowRank {
    /// Uniformly random bases and S = ‖W‖_F / √r · I, so that ‖W‖_F = `frobenius_norm`.
    ///
    /// U and V are the Q factors of normal matrices, R's diagonal positive, which makes them uniform (Mezzadri 2007). They are drawn and
    /// orthonormalised in `f64`, U first.
    ///
    /// # Errors
    /// If the rank is 0 or above min(m, n).
    pub fn random(
        rows: usize,
        columns: usize,
        rank: usize,
        frobenius_norm: f64,
        rng: &mut impl Rng,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        check_rank(rows, columns, rank)?;
        let mut basis = |rows: usize| -> Result<Tensor> {
            let normals: Vec<f64> = rng.sample_iter(StandardNormal).take(rows * rank).collect();
            let (q, _) = linalg::qr(&Tensor::from_vec(normals, (rows, rank), &Device::Cpu)?)?;
            q.to_dtype(dtype)?.to_device(device)
        };
        let (u, v) = (basis(rows)?, basis(columns)?);
        let s = (Tensor::eye(rank, dtype, device)? * (frobenius_norm / (rank as f64).sqrt()))?;
        Ok(Self { u, s, v })
    }

    /// The best rank-r approximation of a dense W: m × n, by truncated SVD.
    ///
    /// # Errors
    /// If the rank is 0 or above min(m, n), an element is not finite, or the SVD does not converge.
    pub fn from_dense(w: &Tensor, rank: usize) -> Result<Self> {
        let (rows, columns) = w.dims2()?;
        check_rank(rows, columns, rank)?;
        let Svd { u, sigma, v } = linalg::svd(w)?;
        let leading = |basis: Tensor| basis.narrow(1, 0, rank)?.contiguous();
        Ok(Self { u: leading(u)?, s: diagonal(&sigma[..rank], w.dtype(), w.device())?, v: leading(v)? })
    }

    /// A point from its parts; orthonormality is the caller's promise, shapes are checked.
    ///
    /// # Errors
    /// If the shapes are not m × r, r × r, n × r with 1 ≤ r ≤ min(m, n), or dtypes differ.
    pub fn from_parts(u: Tensor, s: Tensor, v: Tensor) -> Result<Self> {
        let ((rows, rank), (columns, v_rank)) = (u.dims2()?, v.dims2()?);
        if s.dims() != [rank, rank] || v_rank != rank {
            bail!("U: {:?}, S: {:?}, V: {:?} are not the m x r, r x r and n x r parts of one matrix", u.dims(), s.dims(), v.dims())
        }
        if u.dtype() != s.dtype() || u.dtype() != v.dtype() {
            bail!("U, S and V have different dtypes: {:?}, {:?}, {:?}", u.dtype(), s.dtype(), v.dtype())
        }
        check_rank(rows, columns, rank)?;
        Ok(Self { u, s, v })
    }

    /// U S Vᵀ as a dense m × n tensor.
    ///
    /// # Errors
    /// If the parts do not fit together.
    pub fn to_dense(&self) -> Result<Tensor> {
        multiply(&multiply(&self.u, &self.s)?, &self.v.t()?)
    }

    /// m.
    pub fn rows(&self) -> usize {
        self.u.dims()[0]
    }

    /// n.
    pub fn columns(&self) -> usize {
        self.v.dims()[0]
    }

    /// r.
    pub fn rank(&self) -> usize {
        self.s.dims()[0]
    }

    /// Numbers stored: (m + n + r) r.
    pub fn parameter_count(&self) -> usize {
        (self.rows() + self.columns() + self.rank()) * self.rank()
    }

    /// ‖W‖_F = ‖S‖_F.
    ///
    /// # Errors
    /// If S is neither f32 nor f64.
    pub fn frobenius_norm(&self) -> Result<f64> {
        linalg::frobenius_norm(&self.s)
    }

    /// max(‖UᵀU − I‖_F, ‖VᵀV − I‖_F).
    ///
    /// # Errors
    /// If the bases are neither f32 nor f64.
    pub fn orthonormality_defect(&self) -> Result<f64> {
        Ok(linalg::orthonormality_defect(&self.u)?.max(linalg::orthonormality_defect(&self.v)?))
    }

    /// Singular values of W, which are those of S, in decreasing order.
    ///
    /// # Errors
    /// If S is not finite, or its SVD does not converge.
    pub fn singular_values(&self) -> Result<Vec<f64>> {
        Ok(linalg::svd(&self.s)?.sigma)
    }

    /// The same W with the closest orthonormal bases; what is taken out of U and V goes into S, so W changes by rounding only.
    ///
    /// # Errors
    /// If an element is not finite.
    pub fn reorthonormalized(&self) -> Result<Self> {
        let (u, v) = (linalg::reorthonormalize(&self.u)?, linalg::reorthonormalize(&self.v)?);
        let (from_u, from_v) = (multiply(&u.t()?, &self.u)?, multiply(&v.t()?, &self.v)?);
        let s = multiply(&multiply(&from_u, &self.s)?, &from_v.t()?)?;
        Ok(Self { u, s, v })
    }

    /// The same W in other bases: (U, S, V) → (U R, Rᵀ S T, V T), for orthogonal R and T: r × r.
    ///
    /// # Errors
    /// If R or T is not r × r.
    pub fn in_other_bases(&self, r: &Tensor, t: &Tensor) -> Result<Self> {
        let s = multiply(&multiply(&r.t()?, &self.s)?, t)?;
        Ok(Self { u: multiply(&self.u, r)?, s, v: multiply(&self.v, t)? })
    }
}

/// diag(σ) as a tensor.
pub(super) fn diagonal(sigma: &[f64], dtype: DType, device: &Device) -> Result<Tensor> {
    let size = sigma.len();
    let mut numbers = vec![0.0; size * size];
    for (i, &value) in sigma.iter().enumerate() {
        numbers[i * size + i] = value;
    }
    Tensor::from_vec(numbers, (size, size), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

fn check_rank(rows: usize, columns: usize, rank: usize) -> Result<()> {
    if rank == 0 || rank > rows.min(columns) {
        bail!("a {rows} x {columns} matrix has a rank from 1 to {}, not {rank}", rows.min(columns))
    }
    Ok(())
}
