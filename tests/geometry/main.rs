//! The laws of the geometry of fixed-rank matrices, in f64 against dense matrices, on random shapes
//! and points.

mod laws;
mod runs;

use candle_core::{DType, Device, Result, Tensor};
use lrpt::linalg::{self, add_product, frobenius_norm, multiply, polar, qr, svd, weighted_sum};
use lrpt::lowrank::{
    Augmentation, BasisChange, LowRank, Retracted, Tangent, retract, retract_subspace,
    tolerance_rank,
};
use lrpt::rng;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// A shape and a seed: m × n of rank r, from full rank (no room for new directions) to r much
/// smaller than both.
///
/// Without `stack`, single matrices, which take the host path; with it, stacks of so many, which
/// take the path of a device. Norms and distances are over a whole stack, so every law is the same.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    columns: usize,
    rank: usize,
    stack: Option<usize>,
    seed: u64,
}

impl Case {
    /// One matrix, or a stack of those that `make` gives for 0, 1, …
    fn each(&self, make: impl Fn(u64) -> Tensor) -> Tensor {
        match self.stack {
            None => make(0),
            Some(count) => {
                Tensor::stack(&(0..count as u64).map(make).collect::<Vec<_>>(), 0).unwrap()
            }
        }
    }

    fn normal(&self, rows: usize, columns: usize, purpose: &str) -> Tensor {
        self.each(|index| {
            let numbers =
                rng::normals(&mut rng::stream(self.seed, purpose, &[index]), rows * columns);
            Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap()
        })
    }

    fn dense(&self, purpose: &str) -> Tensor {
        self.normal(self.rows, self.columns, purpose)
    }

    fn orthogonal(&self, purpose: &str) -> Tensor {
        qr(&self.normal(self.rank, self.rank, purpose)).unwrap().0
    }

    /// A point with the given singular values, in bases that are not its singular vectors.
    fn point_with(&self, sigma: &[f64]) -> LowRank {
        let random = |index| {
            let mut rng = rng::stream(self.seed, "point", &[index]);
            LowRank::random(
                self.rows,
                self.columns,
                self.rank,
                1.0,
                &mut rng,
                DType::F64,
                &Device::Cpu,
            )
            .unwrap()
        };
        let (u, v) = (self.each(|index| random(index).u), self.each(|index| random(index).v));
        let point = LowRank::from_parts(u, self.each(|_| diagonal(sigma)), v).unwrap();
        point.in_other_bases(&self.orthogonal("left"), &self.orthogonal("right")).unwrap()
    }

    /// Singular values from 2 down to 1.
    fn point(&self) -> LowRank {
        self.point_with(
            &(0..self.rank).map(|i| 2.0 - i as f64 / self.rank as f64).collect::<Vec<_>>(),
        )
    }

    fn tangent(&self, point: &LowRank, purpose: &str) -> Tangent {
        Tangent::project(point, &self.dense(purpose)).unwrap()
    }
}

fn cases() -> impl Strategy<Value = Case> {
    (2usize..24, 2usize..24, any::<u64>()).prop_flat_map(|(rows, columns, seed)| {
        (1..=rows.min(columns), stacks()).prop_map(move |(rank, stack)| Case {
            rows,
            columns,
            rank,
            stack,
            seed,
        })
    })
}

/// Half of the cases single matrices, half stacks.
fn stacks() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![2 => Just(None), 1 => Just(Some(1)), 1 => Just(Some(3))]
}

/// The matrices of a tensor.
fn matrices(x: &Tensor) -> Vec<Tensor> {
    if x.rank() == 2 { vec![x.clone()] } else { linalg::unstack(x).unwrap() }
}

/// Cases with room for new directions on both sides.
fn roomy_cases() -> impl Strategy<Value = Case> {
    (1usize..7, 1usize..12, 1usize..12, stacks(), any::<u64>()).prop_map(
        |(rank, more_rows, more_columns, stack, seed)| Case {
            rows: 2 * rank + more_rows,
            columns: 2 * rank + more_columns,
            rank,
            stack,
            seed,
        },
    )
}

fn diagonal(values: &[f64]) -> Tensor {
    let size = values.len();
    let numbers = (0..size * size)
        .map(|k| if k / size == k % size { values[k / size] } else { 0.0 })
        .collect();
    Tensor::from_vec::<_, f64>(numbers, (size, size), &Device::Cpu).unwrap()
}

fn norm(x: &Tensor) -> f64 {
    frobenius_norm(x).unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    norm(&(a - b).unwrap())
}

fn dense_inner(a: &Tensor, b: &Tensor) -> f64 {
    linalg::inner(a, b).unwrap()
}

/// U Uᵀ G + G V Vᵀ − U Uᵀ G V Vᵀ with dense projectors.
fn dense_projection(point: &LowRank, g: &Tensor) -> Result<Tensor> {
    let left = multiply(&multiply(&point.u, &point.u.t()?)?, g)?;
    let projector_v = multiply(&point.v, &point.v.t()?)?;
    let right = multiply(&(g - &left)?, &projector_v)?;
    left + right
}

/// The best rank-r approximation, dense.
fn truncated(x: &Tensor, rank: usize) -> Result<Tensor> {
    let parts = matrices(x)
        .iter()
        .map(|x| LowRank::from_dense(x, rank)?.to_dense())
        .collect::<Result<Vec<_>>>()?;
    if x.rank() == 2 { Ok(parts[0].clone()) } else { Tensor::stack(&parts, 0) }
}

fn constraint_defect(point: &LowRank, z: &Tangent) -> Result<f64> {
    Ok(norm(&multiply(&point.u.t()?, &z.p)?).max(norm(&multiply(&point.v.t()?, &z.q)?)))
}

/// Polar factor of a dense tangent vector, whose singular values beyond its rank are rounding: only
/// those above 1e-9 of the largest count.
fn polar_of_numerical_rank(z: &Tensor) -> Tensor {
    let polar = |z: &Tensor| {
        let linalg::Svd { u, sigma, v } = svd(z).unwrap();
        let rank = sigma.iter().filter(|&&value| value > 1e-9 * sigma[0]).count();
        multiply(&u.narrow(1, 0, rank).unwrap(), &v.narrow(1, 0, rank).unwrap().t().unwrap())
            .unwrap()
    };
    let parts: Vec<Tensor> = matrices(z).iter().map(polar).collect();
    if z.rank() == 2 { parts[0].clone() } else { Tensor::stack(&parts, 0).unwrap() }
}

/// One optimizer step of size 0.1 along a moment, which is carried to the new point.
fn step(
    point: &LowRank,
    moment: &Tangent,
    spectral: bool,
    subspace: bool,
) -> Result<(LowRank, Tangent)> {
    let augmentation = Augmentation::new(point, moment)?;
    let core = if spectral { polar(augmentation.core())? } else { augmentation.core().clone() };
    let coefficients = augmentation.coefficients(point, &core, 0.1, 0.1)?;
    let rank = point.rank();
    let Retracted { point: new, rotation_u, rotation_v, .. } = if subspace {
        augmentation.retract_subspace(point, &coefficients)?
    } else {
        augmentation.truncate(point, &coefficients, &|_| rank)?
    };
    let moment =
        BasisChange::from_rotations(point, &new, rotation_u, rotation_v).transport(moment)?;
    Ok((new, moment))
}
