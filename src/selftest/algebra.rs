//! Stacks of matrices on the device in f32 against the host path in f64.

use super::{Check, distance, numbers, placed};
use crate::linalg::{
    cholesky_qr, inverse_square_root, multiply, orthonormal_directions, orthonormality_defect,
    polar, polar_newton_schulz, qr, reorthonormalize, stack, unstack,
};
use crate::lowrank::{Augmentation, BasisChange, LowRank, Tangent};
use crate::rng;
use candle_core::{DType, Device, Result, Tensor};
use std::fmt;
use std::str::FromStr;

/// Matrices of a stack.
const MATRICES: usize = 3;

/// Sizes of the matrices of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows, as many as columns or more.
    pub rows: usize,
    /// Columns, more than the rank.
    pub columns: usize,
    /// Rank of the points, 2 or more.
    pub rank: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { rows: 96, columns: 40, rank: 12 }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, columns, rank } = self;
        write!(f, "{rows}x{columns}x{rank}")
    }
}

impl FromStr for Sizes {
    type Err = String;

    /// From `ROWSxCOLUMNSxRANK`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers: Option<Vec<usize>> = text.split('x').map(|part| part.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[rows, columns, rank]) if rows >= columns && columns > rank && rank >= 2 => {
                Ok(Self { rows, columns, rank })
            }
            _ => Err("not ROWSxCOLUMNSxRANK with ROWS >= COLUMNS > RANK >= 2, such as 768x768x192"
                .into()),
        }
    }
}

/// Compares all factorisations and the steps of the geometry, on matrices of these sizes.
pub fn run(device: &Device, sizes: Sizes, found: &mut dyn FnMut(Check)) {
    let Sizes { rows, columns, rank } = sizes;
    let mut check = |name: &str, bound: f64, error: Result<f64>| {
        found(Check::new("linear algebra", name, bound, error.map_err(Into::into)))
    };
    let on = |x: &Tensor| placed(x, DType::F32, device);
    let normals =
        |draw, rows, columns| stack(&matrices(draw, rows, columns)?.iter().collect::<Vec<_>>());

    check(
        "QR: columns orthonormal",
        // Rounding of each column: it grows as their root.
        1e-5 * (columns as f64 / 40.0).sqrt().max(1.0),
        (|| orthonormality_defect(&cholesky_qr(&on(&normals(1, rows, columns)?)?)?.0))(),
    );
    check(
        "QR: factors",
        1e-4,
        (|| {
            let (q, r) = cholesky_qr(&on(&normals(1, rows, columns)?)?)?;
            let expected =
                matrices(1, rows, columns)?.iter().map(qr).collect::<Result<Vec<_>>>()?;
            let (expected_q, expected_r): (Vec<_>, Vec<_>) = expected.into_iter().unzip();
            Ok(against(&q, &expected_q)?.max(against(&r, &expected_r)?))
        })(),
    );
    check(
        "QR of ill-conditioned matrices: columns orthonormal",
        1e-5 * (rank as f64 / 40.0).sqrt().max(1.0),
        (|| {
            // Columns from 1 down to 1e-5, mixed: the Gram matrix is singular to f32.
            let scales: Vec<f64> =
                (0..rank).map(|j| 10f64.powf(-5.0 * j as f64 / (rank - 1) as f64)).collect();
            let scaled = normals(2, rows, rank)?.broadcast_mul(&Tensor::from_vec(
                scales,
                (1, 1, rank),
                &Device::Cpu,
            )?)?;
            orthonormality_defect(
                &cholesky_qr(&on(&multiply(&scaled, &normals(3, rank, rank)?)?)?)?.0,
            )
        })(),
    );
    check(
        "new directions beside bases",
        1e-4,
        (|| {
            let bases = matrices(4, rows, rank)?
                .iter()
                .map(|x| Ok(qr(x)?.0))
                .collect::<Result<Vec<_>>>()?;
            let directions = matrices(5, rows, rank)?;
            let (q, r) = orthonormal_directions(
                &on(&stack(&bases.iter().collect::<Vec<_>>())?)?,
                &on(&normals(5, rows, rank)?)?,
            )?;
            let expected = bases
                .iter()
                .zip(&directions)
                .map(|(b, d)| orthonormal_directions(b, d))
                .collect::<Result<Vec<_>>>()?;
            let (expected_q, expected_r): (Vec<_>, Vec<_>) = expected.into_iter().unzip();
            Ok(against(&q, &expected_q)?.max(against(&r, &expected_r)?))
        })(),
    );
    type OfMatrix = fn(&Tensor) -> Result<Tensor>;
    let each: [(&str, (usize, usize), f64, OfMatrix); 5] = [
        ("polar factor by polynomials", (columns, columns), 1e-3, polar_newton_schulz),
        ("polar factor by polynomials, wide", (columns, rows), 1e-3, polar_newton_schulz),
        ("polar factor by SVD", (rows, columns), 1e-4, polar),
        ("inverse square root", (columns, columns), 1e-3, |x| {
            inverse_square_root(&multiply(&x.t()?, x)?, 1e-2)
        }),
        ("re-orthonormalisation", (rows, rank), 1e-4, |x| reorthonormalize(&qr(x)?.0)),
    ];
    for (name, (rows, columns), bound, apply) in each {
        check(
            name,
            bound,
            (|| {
                let expected =
                    matrices(6, rows, columns)?.iter().map(apply).collect::<Result<Vec<_>>>()?;
                against(&apply(&on(&normals(6, rows, columns)?)?)?, &expected)
            })(),
        );
    }
    for (name, subspace) in
        [("retraction by subspace iteration", true), ("retraction by SVD", false)]
    {
        check(
            name,
            1e-4,
            (|| {
                let points = points(sizes)?;
                let expected = points
                    .iter()
                    .map(|(point, vector)| Ok(step(point, vector, subspace)?.0))
                    .collect::<Result<Vec<_>>>()?;
                let (point, vector) = stacked(&points, device)?;
                against(&step(&point, &vector, subspace)?.0, &expected)
            })(),
        );
    }
    check(
        "transport of a tangent vector",
        1e-4,
        (|| {
            let points = points(sizes)?;
            let expected = points
                .iter()
                .map(|(point, vector)| Ok(step(point, vector, true)?.1))
                .collect::<Result<Vec<_>>>()?;
            let (point, vector) = stacked(&points, device)?;
            against(&step(&point, &vector, true)?.1, &expected)
        })(),
    );
}

/// A retraction along a vector, and the vector carried there, both as dense matrices.
fn step(point: &LowRank, vector: &Tangent, subspace: bool) -> Result<(Tensor, Tensor)> {
    let augmentation = Augmentation::new(point, vector)?;
    let coefficients = augmentation.coefficients(point, augmentation.core(), 0.1, 0.1)?;
    let retracted = match subspace {
        true => augmentation.retract_subspace(point, &coefficients)?,
        false => augmentation.truncate(point, &coefficients, &|_| point.rank())?,
    };
    let new = retracted.point;
    let moved =
        BasisChange::from_rotations(point, &new, retracted.rotation_u, retracted.rotation_v)
            .transport(vector)?;
    Ok((new.to_dense()?, moved.to_dense(&new)?))
}

/// Points with a tangent vector each, in f64 on the host.
fn points(Sizes { rows, columns, rank }: Sizes) -> Result<Vec<(LowRank, Tangent)>> {
    let one = |index: usize| {
        let mut random = rng::stream(3, "selftest points", &[index as u64]);
        let point =
            LowRank::random(rows, columns, rank, 5.0, &mut random, DType::F64, &Device::Cpu)?;
        let vector = Tangent::project(&point, &matrices(7, rows, columns)?[index])?;
        Ok((point, vector))
    };
    (0..MATRICES).map(one).collect()
}

fn stacked(points: &[(LowRank, Tangent)], device: &Device) -> Result<(LowRank, Tangent)> {
    let on = |x: &Tensor| placed(x, DType::F32, device);
    let point = LowRank::stack(&points.iter().map(|(point, _)| point).collect::<Vec<_>>())?;
    let vector = Tangent::stack(&points.iter().map(|(_, vector)| vector).collect::<Vec<_>>())?;
    Ok((LowRank { u: on(&point.u)?, s: on(&point.s)?, v: on(&point.v)? }, vector.map_parts(on)?))
}

fn matrices(draw: u64, rows: usize, columns: usize) -> Result<Vec<Tensor>> {
    let one = |index: usize| {
        let numbers = rng::normals(
            &mut rng::stream(3, "selftest matrices", &[draw, index as u64]),
            rows * columns,
        );
        Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)
    };
    (0..MATRICES).map(one).collect()
}

/// The worst distance of a stack's matrices from those expected.
fn against(found: &Tensor, expected: &[Tensor]) -> Result<f64> {
    let errors = unstack(found)?
        .iter()
        .zip(expected)
        .map(|(a, b)| distance(&numbers(a)?, &numbers(b)?))
        .collect::<Result<Vec<_>>>()?;
    Ok(errors
        .into_iter()
        .fold(0.0, |worst, error| if error.is_nan() { error } else { error.max(worst) }))
}
