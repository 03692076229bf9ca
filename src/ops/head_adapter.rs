//! A low-rank term beside the matrix of the head: logits h (W₀ + U S Vᵀ)ᵀ or h (W₀ + scale · B A)ᵀ,
//! of which only the term is trained.

use super::compute::{Compute, widened};
use super::few_rows::few_rows_product;
use super::gradients::Gram;
use super::product::{product_by, wide_product_by};
use super::tape::{Flow, Source, Value};
use candle_core::{Result, Tensor, bail};

/// What is added to a head's W₀: (V, C), of rank r.
#[derive(Clone, Debug)]
pub enum HeadAdapter {
    /// U S Vᵀ, a point on the manifold.
    LowRank {
        /// U: (V, r).
        u: Value,
        /// S: (r, r).
        s: Tensor,
        /// V: (C, r).
        v: Value,
    },
    /// scale · B A.
    Lora {
        /// B: (V, r).
        b: Value,
        /// A: (r, C).
        a: Value,
        /// α/r.
        scale: f64,
    },
}

/// The matrix of a head, (V, C), with what is added to it.
#[derive(Clone, Copy)]
pub struct HeadMatrix<'a> {
    /// W₀.
    pub w: &'a Tensor,
    /// What is beside it.
    pub adapter: Option<&'a HeadAdapter>,
}

/// Alone.
impl<'a> From<&'a Tensor> for HeadMatrix<'a> {
    fn from(w: &'a Tensor) -> Self {
        Self { w, adapter: None }
    }
}

/// A term as rows of hidden states see it: logits + `inner` `left`ᵀ.
pub(super) struct Term {
    /// U or B: (V, r), in the type of the products.
    pub left: Tensor,
    /// z Sᵀ, or z itself: (N, r).
    pub inner: Tensor,
    /// z = h V, or scale · h Aᵀ: (N, r).
    pub z: Tensor,
}

impl Term {
    /// In a type that sums can be taken in.
    pub(super) fn widened(self) -> Result<Self> {
        let Self { left, inner, z } = self;
        Ok(Self { left: widened(&left)?, inner: widened(&inner)?, z: widened(&z)? })
    }
}

/// Gradients by a term, from δ, the gradient of the logits: (N, V).
pub(super) struct TermGradients {
    /// δᵀ z: (V, r).
    pub left: Tensor,
    /// δ `left`: (N, r).
    pub inner: Tensor,
}

/// Gradients by the parameters of an adapter.
pub(super) struct AdapterGradients {
    left: Tensor,
    right: Tensor,
    /// z and δ U, whose second moments may be asked for.
    seen: Option<[Tensor; 2]>,
}

impl HeadAdapter {
    /// Its term for rows h (N, C), in the type of the products.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub(super) fn term(&self, compute: Compute, h: &Tensor) -> Result<Term> {
        let left = compute.narrowed(self.left().tensor())?;
        let (width, rank) = (h.dim(1)?, left.dim(1)?);
        let by = |x: &Tensor, w: &Tensor| few_rows_product(compute, x, &compute.narrowed(w)?);
        match self {
            Self::LowRank { s, v, .. } => {
                if v.tensor().dims() != [width, rank] || s.dims() != [rank, rank] {
                    let (s, v) = (s.dims(), v.tensor().dims());
                    bail!("the head's adapter has U of rank {rank}, S {s:?} and V {v:?}")
                }
                let z = by(h, v.tensor())?;
                Ok(Term { left, inner: by(&z, &s.t()?)?, z })
            }
            Self::Lora { a, scale, .. } => {
                if a.tensor().dims() != [rank, width] {
                    bail!("the head's adapter has B of rank {rank} and A {:?}", a.tensor().dims())
                }
                let z = (by(h, &a.tensor().t()?)? * *scale)?;
                Ok(Term { left, inner: z.clone(), z })
            }
        }
    }

    /// U or B.
    fn left(&self) -> &Value {
        match self {
            Self::LowRank { u, .. } => u,
            Self::Lora { b, .. } => b,
        }
    }

    /// Where the gradients by its parameters go, V or A second.
    pub(super) fn sources(&self) -> [Option<Source>; 2] {
        match self {
            Self::LowRank { u, v, .. } => [u.source(), v.source()],
            Self::Lora { b, a, .. } => [b.source(), a.source()],
        }
    }

    /// The gradients by its parameters, from those by its term of rows h: of U S Vᵀ the K-gradient
    /// G V = δᵀ z and the L-gradient Gᵀ U = hᵀ (δ U), of scale · B A the partial derivatives δᵀ z
    /// and scale · (δ B)ᵀ h.
    pub(super) fn gradients(
        &self,
        compute: Compute,
        h: &Tensor,
        term: Term,
        by_term: &TermGradients,
    ) -> Result<AdapterGradients> {
        let (left, inner) = (by_term.left.clone(), compute.narrowed(&by_term.inner)?);
        Ok(match self {
            Self::LowRank { .. } => {
                let right = wide_product_by(compute, &h.t()?, &inner)?;
                AdapterGradients { left, right, seen: Some([term.z, by_term.inner.clone()]) }
            }
            Self::Lora { scale, .. } => {
                let right = (wide_product_by(compute, &inner.t()?, h)? * *scale)?;
                AdapterGradients { left, right, seen: None }
            }
        })
    }

    /// What the term adds to the gradient by h, in the type of the parameters: (δ U) S Vᵀ or scale ·
    /// (δ B) A.
    pub(super) fn input_gradient(
        &self,
        compute: Compute,
        by_term: &TermGradients,
    ) -> Result<Tensor> {
        let inner = compute.narrowed(&by_term.inner)?;
        widened(&match self {
            Self::LowRank { s, v, .. } => {
                let delta_z = product_by(compute, &inner, &compute.narrowed(s)?)?;
                product_by(compute, &delta_z, &compute.narrowed(v.tensor())?.t()?)?
            }
            Self::Lora { a, scale, .. } => {
                (product_by(compute, &inner, &compute.narrowed(a.tensor())?)? * *scale)?
            }
        })
    }
}

impl AdapterGradients {
    /// Sends them, each times what `scaled` multiplies it by, and the second moments that are asked
    /// for.
    pub(super) fn send(
        self,
        [to_left, to_right]: [Option<Source>; 2],
        flow: &mut Flow,
        scaled: &dyn Fn(Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        flow.add(to_left, scaled(self.left)?)?;
        flow.add(to_right, scaled(self.right)?)?;
        if let Some([z, delta]) = self.seen {
            flow.add_gram(Gram::Inputs, to_right, &z)?;
            flow.add_gram(Gram::Outputs, to_left, &scaled(delta)?)?;
        }
        Ok(())
    }
}
