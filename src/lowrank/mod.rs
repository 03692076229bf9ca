//! Geometry of the manifold of m × n matrices of rank r: points W = U S Vᵀ, tangent vectors,
//! transport and retraction.
//!
//! No matrix of size m × n is formed, except by [`LowRank::to_dense`], [`LowRank::from_dense`],
//! [`Tangent::project`], [`Tangent::project_second_moments`], [`Tangent::to_dense`] and
//! [`Spectrum::of_dense`], which are for initialisation, inspection, tests, and weights that come
//! to the manifold from a dense matrix. All values are immutable: operations return new ones. Points
//! and vectors may be stacks, which work on many weights of one shape side by side
//! ([`LowRank::stack`]).

mod galerkin;
mod interpolation;
mod point;
mod retraction;
mod spectrum;
mod tangent;
mod transport;

pub use interpolation::RowInterpolation;
pub use point::LowRank;
pub use retraction::{
    Augmentation, CutNorm, Retracted, Truncation, retract, retract_subspace, tolerance_rank,
};
pub use spectrum::{Spectrum, distance_to_cut, singular_values};
pub use tangent::Tangent;
pub use transport::BasisChange;
