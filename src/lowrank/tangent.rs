//! Tangent vectors of the manifold of rank-r matrices.

use super::LowRank;
use crate::linalg::{self, add_product, multiply, stack, sum_of_products, unstack, weighted_sum};
use candle_core::{Device, Result, Tensor};

/// Z = U M Vᵀ + P Vᵀ + U Qᵀ at a point W = U S Vᵀ, with UᵀP = 0 and VᵀQ = 0.
///
/// The three terms are orthogonal to each other, so ⟨Z, Z'⟩ = ⟨M, M'⟩ + ⟨P, P'⟩ + ⟨Q, Q'⟩. The
/// parts depend on the bases U and V: they mean something together with their point only, and
/// travel by [`BasisChange`](super::BasisChange). Of a stack of points, a stack of vectors.
#[derive(Clone, Debug)]
pub struct Tangent {
    /// Coefficient part, r × r.
    pub m: Tensor,
    /// Column-space part, m × r, UᵀP = 0.
    pub p: Tensor,
    /// Row-space part, n × r, VᵀQ = 0.
    pub q: Tensor,
}

impl Tangent {
    /// The zero vector at a point.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn zeros(point: &LowRank) -> Result<Self> {
        Ok(Self { m: point.s.zeros_like()?, p: point.u.zeros_like()?, q: point.v.zeros_like()? })
    }

    /// M, P and Q.
    pub fn parts(&self) -> [&Tensor; 3] {
        [&self.m, &self.p, &self.q]
    }

    /// The vector of what `change` makes of M, P and Q, in this order.
    ///
    /// # Errors
    /// As `change`.
    pub fn map_parts(&self, mut change: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { m: change(&self.m)?, p: change(&self.p)?, q: change(&self.q)? })
    }

    /// Vectors at the points of a stack, as one.
    ///
    /// # Errors
    /// If shapes differ, or there are none.
    pub fn stack(vectors: &[&Self]) -> Result<Self> {
        let part = |part: fn(&Self) -> &Tensor| {
            stack(&vectors.iter().map(|vector| part(vector)).collect::<Vec<_>>())
        };
        Ok(Self { m: part(|z| &z.m)?, p: part(|z| &z.p)?, q: part(|z| &z.q)? })
    }

    /// The vectors of a stack.
    ///
    /// # Errors
    /// If this is a single vector.
    pub fn unstack(&self) -> Result<Vec<Self>> {
        let parts = unstack(&self.m)?.into_iter().zip(unstack(&self.p)?).zip(unstack(&self.q)?);
        Ok(parts.map(|((m, p), q)| Self { m, p, q }).collect())
    }

    /// The same vector, its parts on this device.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        self.map_parts(|part| part.to_device(device))
    }

    /// The orthogonal projection of G from its K-gradient G V: m × r and L-gradient Gᵀ U: n × r.
    ///
    /// M = Uᵀ(G V), P = G V − U M, Q = Gᵀ U − V Mᵀ.
    ///
    /// # Errors
    /// If the shapes do not fit the point.
    pub fn from_outer_gradients(point: &LowRank, k: &Tensor, l: &Tensor) -> Result<Self> {
        let m = multiply(&point.u.t()?, k)?;
        let p = add_product(1.0, k, -1.0, &point.u, &m)?;
        let q = add_product(1.0, l, -1.0, &point.v, &m.t()?)?;
        Ok(Self { m, p, q })
    }

    /// The orthogonal projection of a dense G: m × n, U Uᵀ G + G V Vᵀ − U Uᵀ G V Vᵀ.
    ///
    /// # Errors
    /// If G's shape is not the point's.
    pub fn project(point: &LowRank, g: &Tensor) -> Result<Self> {
        Self::from_outer_gradients(point, &multiply(g, &point.v)?, &multiply(&g.t()?, &point.u)?)
    }

    /// Element-wise second moments of a dense G: m × n, V, as those of the coordinates of its
    /// projection, if its entries are independent.
    ///
    /// With squares taken element by element: v_M = (U²)ᵀ V V², v_P = ((I − UUᵀ)²) V V², v_Q = ((I −
    /// VVᵀ)²) Vᵀ U². Of entries that all have the same second moment v, every entry of v_M is v, and
    /// the mean of a column of v_P is v (m − r)/m, of v_Q v (n − r)/n.
    ///
    /// # Errors
    /// If V's shape is not the point's.
    pub fn project_second_moments(point: &LowRank, second: &Tensor) -> Result<Self> {
        let (square_u, square_v) = (point.u.sqr()?, point.v.sqr()?);
        let outside = |basis: &Tensor| -> Result<Tensor> {
            let identity = Tensor::eye(basis.dim(0)?, basis.dtype(), basis.device())?;
            add_product(1.0, &identity, -1.0, basis, &basis.t()?)?.sqr()
        };
        let right = multiply(second, &square_v)?;
        let left = multiply(&second.t()?, &square_u)?;
        Ok(Self {
            m: multiply(&square_u.t()?, &right)?,
            p: multiply(&outside(&point.u)?, &right)?,
            q: multiply(&outside(&point.v)?, &left)?,
        })
    }

    /// With P and Q projected again to UᵀP = 0, VᵀQ = 0; the orthogonal projection, where the parts
    /// do not satisfy them.
    ///
    /// # Errors
    /// If the shapes do not fit the point.
    pub fn project_complement(&self, point: &LowRank) -> Result<Self> {
        let outside = |basis: &Tensor, x: &Tensor| {
            add_product(1.0, x, -1.0, basis, &multiply(&basis.t()?, x)?)
        };
        Ok(Self {
            m: self.m.clone(),
            p: outside(&point.u, &self.p)?,
            q: outside(&point.v, &self.q)?,
        })
    }

    /// ⟨Z, Z'⟩ of two vectors at one point.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn inner(&self, other: &Self) -> Result<f64> {
        Ok(linalg::inner(&self.m, &other.m)?
            + linalg::inner(&self.p, &other.p)?
            + linalg::inner(&self.q, &other.q)?)
    }

    /// ‖Z‖_F = (‖M‖² + ‖P‖² + ‖Q‖²)^½.
    ///
    /// # Errors
    /// If a part is neither f32 nor f64.
    pub fn norm(&self) -> Result<f64> {
        Ok(self.inner(self)?.sqrt())
    }

    /// β Z + α Z', for two vectors at one point: the update of a moment.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn scaled_add(&self, beta: f64, other: &Self, alpha: f64) -> Result<Self> {
        Ok(Self {
            m: weighted_sum(beta, &self.m, alpha, &other.m)?,
            p: weighted_sum(beta, &self.p, alpha, &other.p)?,
            q: weighted_sum(beta, &self.q, alpha, &other.q)?,
        })
    }

    /// Z as a dense m × n tensor.
    ///
    /// # Errors
    /// If the shapes do not fit the point.
    pub fn to_dense(&self, point: &LowRank) -> Result<Tensor> {
        let left = add_product(1.0, &self.p, 1.0, &point.u, &self.m)?;
        sum_of_products(&[(1.0, &left, &point.v.t()?), (1.0, &point.u, &self.q.t()?)])
    }

    /// The same Z in the bases U R, V T of [`LowRank::in_other_bases`]: (Rᵀ M T, P T, Q R).
    ///
    /// # Errors
    /// If R or T is not r × r.
    pub fn in_other_bases(&self, r: &Tensor, t: &Tensor) -> Result<Self> {
        Ok(Self {
            m: multiply(&multiply(&r.t()?, &self.m)?, t)?,
            p: multiply(&self.p, t)?,
            q: multiply(&self.q, r)?,
        })
    }
}
