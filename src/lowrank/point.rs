//! A matrix of fixed rank, W = U S Vᵀ.

use crate::linalg::{self, Svd, multiply, stack, stack_shape, unstack};
use candle_core::{DType, Device, Result, Tensor, bail};
use rand::Rng;
use rand_distr::StandardNormal;

/// W = U S Vᵀ: m × n, with orthonormal U: m × r and V: n × r, and invertible S: r × r.
///
/// Its parts may be [stacks](linalg::stack) of L matrices each: L points of one shape and rank, on
/// which every operation of this module acts side by side; norms are then over all of them.
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
    /// U and V are the Q factors of normal matrices, R's diagonal positive, which makes them
    /// uniform (Mezzadri 2007). They are drawn and orthonormalised in `f64`, U first.
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
        Ok(Self {
            u: leading(u)?,
            s: diagonal(&sigma[..rank], w.dtype(), w.device())?,
            v: leading(v)?,
        })
    }

    /// A point from its parts; orthonormality is the caller's promise, shapes are checked.
    ///
    /// # Errors
    /// If the shapes are not m × r, r × r, n × r with 1 ≤ r ≤ min(m, n), or dtypes differ.
    pub fn from_parts(u: Tensor, s: Tensor, v: Tensor) -> Result<Self> {
        let ((points, rows, rank), (v_points, columns, v_rank)) =
            (stack_shape(&u)?, stack_shape(&v)?);
        if stack_shape(&s)? != (points, rank, rank) || (v_points, v_rank) != (points, rank) {
            bail!(
                "U: {:?}, S: {:?}, V: {:?} are not the m x r, r x r and n x r parts of one matrix",
                u.dims(),
                s.dims(),
                v.dims()
            )
        }
        if u.dtype() != s.dtype() || u.dtype() != v.dtype() {
            bail!(
                "U, S and V have different dtypes: {:?}, {:?}, {:?}",
                u.dtype(),
                s.dtype(),
                v.dtype()
            )
        }
        check_rank(rows, columns, rank)?;
        Ok(Self { u, s, v })
    }

    /// Points of one shape and rank as a stack.
    ///
    /// # Errors
    /// If shapes or ranks differ, or there are none.
    pub fn stack(points: &[&Self]) -> Result<Self> {
        let part = |part: fn(&Self) -> &Tensor| {
            stack(&points.iter().map(|point| part(point)).collect::<Vec<_>>())
        };
        Ok(Self {
            u: part(|point| &point.u)?,
            s: part(|point| &point.s)?,
            v: part(|point| &point.v)?,
        })
    }

    /// The points of a stack.
    ///
    /// # Errors
    /// If this is a single point.
    pub fn unstack(&self) -> Result<Vec<Self>> {
        let parts = unstack(&self.u)?.into_iter().zip(unstack(&self.s)?).zip(unstack(&self.v)?);
        Ok(parts.map(|((u, s), v)| Self { u, s, v }).collect())
    }

    /// The same point, its parts on this device.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            u: self.u.to_device(device)?,
            s: self.s.to_device(device)?,
            v: self.v.to_device(device)?,
        })
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
        last_dim(&self.u, 2)
    }

    /// n.
    pub fn columns(&self) -> usize {
        last_dim(&self.v, 2)
    }

    /// r.
    pub fn rank(&self) -> usize {
        last_dim(&self.s, 1)
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

    /// The same W with the closest orthonormal bases; what is taken out of U and V goes into S, so
    /// W changes by rounding only.
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
    diagonals(&[sigma], dtype, device)?.squeeze(0)
}

/// diag(σ) for each of several σ of one length, as a stack.
pub(super) fn diagonals(sigmas: &[&[f64]], dtype: DType, device: &Device) -> Result<Tensor> {
    let size = sigmas.first().map_or(0, |sigma| sigma.len());
    let mut numbers = vec![0.0; sigmas.len() * size * size];
    for (matrix, sigma) in sigmas.iter().enumerate() {
        for (i, &value) in sigma.iter().enumerate() {
            numbers[(matrix * size + i) * size + i] = value;
        }
    }
    Tensor::from_vec(numbers, (sigmas.len(), size, size), &Device::Cpu)?
        .to_dtype(dtype)?
        .to_device(device)
}

/// The dimension this many places from the last, counted from 1.
fn last_dim(x: &Tensor, place: usize) -> usize {
    x.dims()[x.rank() - place]
}

fn check_rank(rows: usize, columns: usize, rank: usize) -> Result<()> {
    if rank == 0 || rank > rows.min(columns) {
        bail!("a {rows} x {columns} matrix has a rank from 1 to {}, not {rank}", rows.min(columns))
    }
    Ok(())
}
