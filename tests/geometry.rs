//! The laws of the geometry of fixed-rank matrices, in f64 against dense matrices, on random shapes
//! and points.

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

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, rng_seed: RngSeed::Fixed(20_250_617), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn projection_is_idempotent_in_range_and_nearest(case in cases()) {
        let (point, g) = (case.point(), case.dense("gradient"));
        let z = Tangent::project(&point, &g).unwrap();
        let dense = z.to_dense(&point).unwrap();
        prop_assert!(constraint_defect(&point, &z).unwrap() < 1e-12);
        prop_assert!(distance(&dense, &dense_projection(&point, &g).unwrap()) < 1e-11);
        let again = Tangent::project(&point, &dense).unwrap();
        prop_assert!(distance(&again.to_dense(&point).unwrap(), &dense) < 1e-11);
        let (other, residual) = (case.tangent(&point, "other"), (&g - &dense).unwrap());
        prop_assert!(dense_inner(&residual, &other.to_dense(&point).unwrap()).abs() < 1e-10);
        prop_assert!((z.norm().unwrap() - norm(&dense)).abs() < 1e-11);
        prop_assert!((z.inner(&other).unwrap() - dense_inner(&dense, &other.to_dense(&point).unwrap())).abs() < 1e-10);
        prop_assert!(distance(&z.project_complement(&point).unwrap().to_dense(&point).unwrap(), &dense) < 1e-12);
    }

    #[test]
    fn retracting_zero_changes_nothing(case in cases()) {
        let point = case.point();
        let (w, zero) = (point.to_dense().unwrap(), Tangent::zeros(&point).unwrap());
        prop_assert!(distance(&retract(&point, &zero, 1.0).unwrap().to_dense().unwrap(), &w) < 1e-12);
        prop_assert!(distance(&retract_subspace(&point, &zero, 1.0).unwrap().to_dense().unwrap(), &w) < 1e-12);
    }

    #[test]
    fn retractions_are_right_to_first_order(case in roomy_cases()) {
        let point = case.point();
        let z = case.tangent(&point, "direction");
        let z = z.scaled_add(1.0 / z.norm().unwrap(), &z, 0.0).unwrap();
        let (w, dense) = (point.to_dense().unwrap(), z.to_dense(&point).unwrap());
        for retraction in [retract, retract_subspace] {
            // Least squares for the slope of log error against log t.
            let samples: Vec<(f64, f64)> = (0..6).map(|i| {
                let t = 0.02 * 0.5f64.powi(i);
                let target = weighted_sum(1.0, &w, t, &dense).unwrap();
                (t.ln(), distance(&retraction(&point, &z, t).unwrap().to_dense().unwrap(), &target).ln())
            }).collect();
            let mean = |f: &dyn Fn(&(f64, f64)) -> f64| samples.iter().map(f).sum::<f64>() / samples.len() as f64;
            let (x, y) = (mean(&|s| s.0), mean(&|s| s.1));
            let slope = samples.iter().map(|s| (s.0 - x) * (s.1 - y)).sum::<f64>() / samples.iter().map(|s| (s.0 - x).powi(2)).sum::<f64>();
            prop_assert!((slope - 2.0).abs() < 0.1, "slope {slope}");
        }
    }

    #[test]
    fn transport_is_the_projection_of_the_old_vector(case in cases(), new_rank in 1usize..24) {
        let old = case.point();
        let z = case.tangent(&old, "moment");
        let other = Case { rank: new_rank.min(case.rows.min(case.columns)), seed: case.seed ^ 1, ..case };
        let new = other.point();
        let moved = BasisChange::between(&old, &new).unwrap().transport(&z).unwrap();
        prop_assert!(constraint_defect(&new, &moved).unwrap() < 1e-11);
        let expected = dense_projection(&new, &z.to_dense(&old).unwrap()).unwrap();
        prop_assert!(distance(&moved.to_dense(&new).unwrap(), &expected) < 1e-10);
    }

    #[test]
    fn rotations_of_a_retraction_come_for_free(case in cases()) {
        let point = case.point();
        let augmentation = Augmentation::new(&point, &case.tangent(&point, "direction")).unwrap();
        let coefficients = augmentation.coefficients(&point, augmentation.core(), 0.3, 0.1).unwrap();
        let grown = |sigma: &[f64]| sigma.len();
        for Retracted { point: new, rotation_u, rotation_v, .. } in [
            augmentation.retract_subspace(&point, &coefficients).unwrap(),
            augmentation.truncate(&point, &coefficients, &|_| case.rank).unwrap(),
            augmentation.truncate(&point, &coefficients, &grown).unwrap(),
        ] {
            let change = BasisChange::between(&point, &new).unwrap();
            prop_assert!(distance(change.rotation_u(), &rotation_u) < 1e-11);
            prop_assert!(distance(change.rotation_v(), &rotation_v) < 1e-11);
            prop_assert!(new.orthonormality_defect().unwrap() < 1e-11);
        }
    }

    #[test]
    fn steps_do_not_depend_on_the_choice_of_bases(case in cases(), spectral in any::<bool>(), subspace in any::<bool>()) {
        let rotated = |point: &LowRank| point.in_other_bases(&case.orthogonal("r"), &case.orthogonal("t")).unwrap();
        let run = |start: LowRank| -> Result<Tensor> {
            let (mut point, mut moment) = (start.clone(), Tangent::zeros(&start)?);
            for purpose in ["first", "second", "third"] {
                moment = moment.scaled_add(0.9, &case.tangent(&point, purpose), 1.0)?;
                (point, moment) = step(&point, &moment, spectral, subspace)?;
            }
            point.to_dense()
        };
        let point = case.point();
        let difference = distance(&run(point.clone()).unwrap(), &run(rotated(&point)).unwrap());
        prop_assert!(difference < 1e-9, "{difference}");
    }

    #[test]
    fn a_vector_is_the_same_in_other_bases(case in cases()) {
        let (point, r, t) = (case.point(), case.orthogonal("r"), case.orthogonal("t"));
        let (z, rotated) = (case.tangent(&point, "vector"), point.in_other_bases(&r, &t).unwrap());
        prop_assert!(distance(&rotated.to_dense().unwrap(), &point.to_dense().unwrap()) < 1e-12);
        prop_assert!(distance(&z.in_other_bases(&r, &t).unwrap().to_dense(&rotated).unwrap(), &z.to_dense(&point).unwrap()) < 1e-11);
    }

    #[test]
    fn small_singular_values_do_no_harm(case in roomy_cases(), exponent in 0i32..13) {
        let sigma: Vec<f64> = (0..case.rank).map(|i| 10f64.powf(-f64::from(exponent) * (i + 1) as f64 / case.rank as f64)).collect();
        let point = case.point_with(&sigma);
        let z = case.tangent(&point, "direction");
        let size = 0.1 * z.norm().unwrap();
        let target = weighted_sum(1.0, &point.to_dense().unwrap(), 0.1, &z.to_dense(&point).unwrap()).unwrap();
        let tail_of = |x: &Tensor| svd(x).unwrap().sigma[case.rank..].iter().map(|s| s * s).sum::<f64>();
        let tail = matrices(&target).iter().map(tail_of).sum::<f64>().sqrt();
        let best = retract(&point, &z, 0.1).unwrap();
        let cheap = retract_subspace(&point, &z, 0.1).unwrap();
        prop_assert!((distance(&best.to_dense().unwrap(), &target) - tail).abs() < 1e-11);
        // Both are within the step itself, whatever the smallest singular value: no division by it.
        prop_assert!(distance(&cheap.to_dense().unwrap(), &target) <= size + 1e-11);
        prop_assert!(best.orthonormality_defect().unwrap().max(cheap.orthonormality_defect().unwrap()) < 1e-12);
    }

    #[test]
    fn truncation_error_is_the_discarded_tail_and_obeys_the_tolerance(case in cases(), tau in 0.0f64..0.9) {
        // The points of a larger stack would get different ranks.
        let case = Case { stack: case.stack.map(|_| 1), ..case };
        let point = case.point_with(&(0..case.rank).map(|i| 0.6f64.powi(i as i32)).collect::<Vec<_>>());
        let augmentation = Augmentation::new(&point, &case.tangent(&point, "direction")).unwrap();
        let coefficients = augmentation.coefficients(&point, augmentation.core(), 0.05, 0.0).unwrap();
        let target = weighted_sum(1.0, &point.to_dense().unwrap(), -0.05, &case.tangent(&point, "direction").to_dense(&point).unwrap()).unwrap();
        let result = augmentation.truncate(&point, &coefficients, &|sigma| tolerance_rank(sigma, tau)).unwrap();
        let cut = result.truncation.unwrap();
        prop_assert_eq!(cut.rank, result.point.rank());
        prop_assert!((distance(&result.point.to_dense().unwrap(), &target) - cut.error).abs() < 1e-11);
        prop_assert!((cut.relative_error - cut.error / norm(&target)).abs() < 1e-11);
        prop_assert!(cut.relative_error <= tau || cut.rank == 1);
        // One rank less would break the tolerance.
        let tail: f64 = cut.singular_values[cut.rank - 1..].iter().map(|s| s * s).sum::<f64>().sqrt();
        prop_assert!(cut.rank == 1 || tail > tau * norm(&target) * (1.0 - 1e-12));
    }

    #[test]
    fn gradient_descent_that_stays_on_rank_r_is_reproduced(case in cases(), subspace in any::<bool>()) {
        // f(W) = ½‖W − T‖² with T in the row space of W₀: dense descent keeps the rank, so the
        // low-rank one must follow it exactly.
        let point = case.point();
        let target = multiply(&case.normal(case.rows, case.rank, "target"), &point.v.t().unwrap()).unwrap();
        let (mut dense, mut low) = (point.to_dense().unwrap(), point);
        let retraction = if subspace { retract_subspace } else { retract };
        for _ in 0..10 {
            let gradient = (&low.to_dense().unwrap() - &target).unwrap();
            low = retraction(&low, &Tangent::project(&low, &gradient).unwrap(), -0.2).unwrap();
            dense = weighted_sum(0.8, &dense, 0.2, &target).unwrap();
        }
        prop_assert!(distance(&low.to_dense().unwrap(), &dense) < 1e-10);
    }

    #[test]
    fn one_step_is_the_dense_textbook_step(case in cases(), spectral in any::<bool>()) {
        // W, G dense; Z = P_W G by dense projectors; D = Z or its polar factor; truncated SVD of (1
        // − ηλ) W − η D.
        let (point, gradient) = (case.point_with(&(0..case.rank).map(|i| 1.0 + i as f64).collect::<Vec<_>>()), case.dense("gradient"));
        let (eta, decay) = (0.05, 0.1);
        let w = point.to_dense().unwrap();
        let z = dense_projection(&point, &gradient).unwrap();
        let direction = if spectral { polar_of_numerical_rank(&z) } else { z };
        let expected = truncated(&weighted_sum(1.0 - eta * decay, &w, -eta, &direction).unwrap(), case.rank).unwrap();

        let k = multiply(&gradient, &point.v).unwrap();
        let l = multiply(&gradient.t().unwrap(), &point.u).unwrap();
        let augmentation = Augmentation::new(&point, &Tangent::from_outer_gradients(&point, &k, &l).unwrap()).unwrap();
        let core = if spectral { polar(augmentation.core()).unwrap() } else { augmentation.core().clone() };
        let coefficients = augmentation.coefficients(&point, &core, eta, decay).unwrap();
        let found = augmentation.truncate(&point, &coefficients, &|_| case.rank).unwrap().point;
        let difference = distance(&found.to_dense().unwrap(), &expected);
        prop_assert!(difference < 1e-10, "{difference}");
    }

    #[test]
    fn second_moments_stay_variances(case in cases()) {
        let old = case.point();
        let square = |x: Tensor| x.sqr().unwrap();
        let z = case.tangent(&old, "moment");
        let second = Tangent { m: square(z.m), p: square(z.p), q: square(z.q) };
        // In the same bases nothing happens; in permuted ones the entries move.
        let same = BasisChange::between(&old, &old).unwrap().transport_second_moments(&second).unwrap();
        prop_assert!(distance(&same.m, &second.m) + distance(&same.p, &second.p) + distance(&same.q, &second.q) < 1e-11);
        let order: Vec<u32> = (0..case.rank as u32).rev().collect();
        let order = Tensor::new(order, &Device::Cpu).unwrap();
        let identity = case.each(|_| Tensor::eye(case.rank, DType::F64, &Device::Cpu).unwrap());
        let (rows, columns) = (identity.rank() - 2, identity.rank() - 1);
        let reversal = identity.index_select(&order, rows).unwrap();
        let permuted = old.in_other_bases(&reversal.neg().unwrap(), &identity).unwrap();
        let moved = BasisChange::between(&old, &permuted).unwrap().transport_second_moments(&second).unwrap();
        prop_assert!(distance(&moved.m, &second.m.index_select(&order, rows).unwrap()) < 1e-11);
        prop_assert!(distance(&moved.q, &second.q.index_select(&order, columns).unwrap()) < 1e-11);
        prop_assert!(distance(&moved.p, &second.p) < 1e-11);
        // Anywhere else they stay non-negative and do not grow: a projection is a contraction.
        let elsewhere = Case { seed: case.seed ^ 2, ..case }.point();
        let moved = BasisChange::between(&old, &elsewhere).unwrap().transport_second_moments(&second).unwrap();
        for new in [&moved.m, &moved.p, &moved.q] {
            prop_assert!(new.min_all().unwrap().to_scalar::<f64>().unwrap() >= 0.0);
        }
        let sum = |x: &Tangent| [&x.m, &x.p, &x.q].map(|part| part.sum_all().unwrap().to_scalar::<f64>().unwrap()).iter().sum::<f64>();
        prop_assert!(sum(&moved) <= sum(&second) * (1.0 + 1e-10), "{} of {}", sum(&moved), sum(&second));
    }
}

/// Transported second moments are the mean squares of transported vectors whose coordinates are
/// independent with those variances; by sampling.
#[test]
fn second_moments_are_the_mean_squares_of_transported_vectors() {
    let case = Case { rows: 60, columns: 50, rank: 2, stack: None, seed: 9 };
    let (old, elsewhere) = (case.point(), Case { seed: 10, ..case }.point());
    // Halfway to another point, so that every block gives to every other one.
    let halfway = |a: &Tensor, b: &Tensor| qr(&weighted_sum(1.0, a, 1.0, b).unwrap()).unwrap().0;
    let new = LowRank::from_parts(
        halfway(&old.u, &elsewhere.u),
        old.s.clone(),
        halfway(&old.v, &elsewhere.v),
    )
    .unwrap();
    let change = BasisChange::between(&old, &new).unwrap();
    // One variance a column: with rows that differ, only sums over rows are exact.
    let variances = |rows: usize, purpose: &str| {
        let row = case.normal(1, case.rank, purpose).sqr().unwrap();
        row.broadcast_as((rows, case.rank)).unwrap().contiguous().unwrap()
    };
    let second = Tangent {
        m: case.normal(2, 2, "m").sqr().unwrap(),
        p: variances(case.rows, "p"),
        q: variances(case.columns, "q"),
    };
    let predicted = change.transport_second_moments(&second).unwrap();
    let mut sums = Tangent::zeros(&new).unwrap();
    let draws = 20_000;
    let mut rng = rng::stream(9, "draws", &[]);
    for _ in 0..draws {
        let mut draw = |variance: &Tensor| {
            let numbers = rng::normals(&mut rng, variance.elem_count());
            (Tensor::from_vec(numbers, variance.dims(), &Device::Cpu).unwrap()
                * variance.sqrt().unwrap())
            .unwrap()
        };
        let vector = Tangent { m: draw(&second.m), p: draw(&second.p), q: draw(&second.q) }
            .project_complement(&old)
            .unwrap();
        let moved = change.transport(&vector).unwrap();
        let squares = Tangent {
            m: moved.m.sqr().unwrap(),
            p: moved.p.sqr().unwrap(),
            q: moved.q.sqr().unwrap(),
        };
        sums = sums.scaled_add(1.0, &squares, 1.0 / draws as f64).unwrap();
    }
    let column_sums = |x: &Tensor| x.sum(0).unwrap().to_vec1::<f64>().unwrap();
    for (block, found, expected) in
        [("M", &sums.m, &predicted.m), ("P", &sums.p, &predicted.p), ("Q", &sums.q, &predicted.q)]
    {
        for (found, expected) in column_sums(found).iter().zip(column_sums(expected)) {
            assert!(
                (found / expected - 1.0).abs() < 0.08,
                "{block}: sampled {found}, predicted {expected}"
            );
        }
    }
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

/// Fifty single-precision steps with momentum from a random start; the default polar factor where
/// `spectral`.
fn single_precision_run(spectral: bool) -> Result<(LowRank, Tangent)> {
    let case = Case { rows: 160, columns: 96, rank: 24, stack: None, seed: 21 };
    let mut rng = rng::stream(case.seed, "start", &[]);
    let mut point = LowRank::random(160, 96, 24, 2.0, &mut rng, DType::F32, &Device::Cpu)?;
    let mut moment = Tangent::zeros(&point)?;
    for i in 0..50 {
        let gradient = case.dense(&format!("gradient {i}")).to_dtype(DType::F32)?;
        moment = moment.scaled_add(0.9, &Tangent::project(&point, &gradient)?, 0.1)?;
        let augmentation = Augmentation::new(&point, &moment)?;
        let core = if spectral {
            linalg::polar_newton_schulz(augmentation.core())?
        } else {
            augmentation.core().clone()
        };
        let coefficients = augmentation.coefficients(&point, &core, 0.02, 0.1)?;
        let Retracted { point: new, rotation_u, rotation_v, .. } =
            augmentation.retract_subspace(&point, &coefficients)?;
        moment =
            BasisChange::from_rotations(&point, &new, rotation_u, rotation_v).transport(&moment)?;
        point = new;
        if i % 20 == 19 {
            point = point.reorthonormalized()?;
        }
    }
    Ok((point, moment))
}

#[test]
fn single_precision_bases_stay_orthonormal() -> Result<()> {
    for spectral in [false, true] {
        let (point, moment) = single_precision_run(spectral)?;
        let defect = point.orthonormality_defect()?;
        assert!(defect < 1e-5, "{defect}");
        let leak = constraint_defect(&point, &moment)? / moment.norm()?;
        assert!(leak < 1e-5, "{leak}");
    }
    Ok(())
}

#[test]
fn runs_repeat_bit_for_bit_in_any_thread_pool() -> Result<()> {
    let bits = |(point, moment): (LowRank, Tangent)| -> Result<Vec<u32>> {
        let parts = [point.u, point.s, point.v, moment.m, moment.p, moment.q];
        let numbers =
            parts.iter().map(|x| x.flatten_all()?.to_vec1::<f32>()).collect::<Result<Vec<_>>>()?;
        Ok(numbers.concat().into_iter().map(f32::to_bits).collect())
    };
    let in_pool = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| single_precision_run(true))
    };
    let first = bits(single_precision_run(true)?)?;
    assert_eq!(first, bits(in_pool(1)?)?);
    assert_eq!(first, bits(in_pool(3)?)?);
    Ok(())
}

/// The host path and the device path give the same points and moments, whole runs through, and the
/// device path repeats bit for bit.
#[test]
fn stacks_match_single_matrices() -> Result<()> {
    for (spectral, subspace) in [(false, true), (true, true), (false, false), (true, false)] {
        let run = |stack: bool| -> Result<(LowRank, Tangent)> {
            let cases =
                [1, 2, 3].map(|seed| Case { rows: 26, columns: 17, rank: 5, stack: None, seed });
            let (points, gradients): (Vec<LowRank>, Vec<Tensor>) =
                cases.iter().map(|case| (case.point(), case.dense("gradient"))).unzip();
            let walk = |mut point: LowRank, gradient: &Tensor| -> Result<(LowRank, Tangent)> {
                let mut moment = Tangent::zeros(&point)?;
                for _ in 0..8 {
                    moment = moment.scaled_add(0.9, &Tangent::project(&point, gradient)?, 0.1)?;
                    (point, moment) = step(&point, &moment, spectral, subspace)?;
                }
                Ok((point.reorthonormalized()?, moment))
            };
            if stack {
                let point = LowRank::stack(&points.iter().collect::<Vec<_>>())?;
                return walk(point, &linalg::stack(&gradients.iter().collect::<Vec<_>>())?);
            }
            let ends = points
                .into_iter()
                .zip(&gradients)
                .map(|(point, gradient)| walk(point, gradient))
                .collect::<Result<Vec<_>>>()?;
            let (points, moments): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
            Ok((
                LowRank::stack(&points.iter().collect::<Vec<_>>())?,
                Tangent::stack(&moments.iter().collect::<Vec<_>>())?,
            ))
        };
        let ((host, host_moment), (device, device_moment)) = (run(false)?, run(true)?);
        let difference = distance(&host.to_dense()?, &device.to_dense()?);
        assert!(difference < 1e-10, "spectral {spectral}, subspace {subspace}: {difference}");
        let difference = distance(&host_moment.to_dense(&host)?, &device_moment.to_dense(&device)?);
        assert!(
            difference < 1e-10,
            "moment, spectral {spectral}, subspace {subspace}: {difference}"
        );
        let again = run(true)?;
        assert_eq!(
            distance(&again.0.u, &device.u)
                + distance(&again.0.s, &device.s)
                + distance(&again.1.q, &device_moment.q),
            0.0
        );
    }
    Ok(())
}

#[test]
fn points_of_a_stack_keep_one_rank_or_are_refused() -> Result<()> {
    let case = Case { rows: 14, columns: 11, rank: 4, stack: Some(2), seed: 9 };
    let point = case.point();
    let augmentation = Augmentation::new(&point, &case.tangent(&point, "direction"))?;
    let coefficients = augmentation.coefficients(&point, augmentation.core(), 0.5, 0.0)?;
    let all = augmentation.truncate(&point, &coefficients, &|sigma| sigma.len())?;
    assert_eq!((all.point.rank(), all.truncation.is_none()), (8, true));
    let largest: Vec<f64> =
        linalg::svds(&coefficients)?.sigma.iter().map(|sigma| sigma[0]).collect();
    let threshold = (largest[0] + largest[1]) / 2.0;
    let error = augmentation
        .truncate(&point, &coefficients, &|sigma| if sigma[0] > threshold { 3 } else { 2 })
        .unwrap_err();
    assert!(error.to_string().contains("one by one"), "{error}");
    Ok(())
}

#[test]
fn reorthonormalising_keeps_the_matrix() -> Result<()> {
    let case = Case { rows: 20, columns: 15, rank: 6, stack: None, seed: 22 };
    let point = case.point();
    let drifted = LowRank {
        u: add_product(1.0, &point.u, 1e-4, &point.u, &case.normal(6, 6, "drift"))?,
        s: point.s.clone(),
        v: (&point.v + (case.normal(15, 6, "other drift") * 1e-5)?)?,
    };
    let repaired = drifted.reorthonormalized()?;
    assert!(drifted.orthonormality_defect()? > 1e-5 && repaired.orthonormality_defect()? < 1e-12);
    assert!(distance(&repaired.to_dense()?, &drifted.to_dense()?) < 1e-8);
    Ok(())
}

#[test]
fn random_points_have_the_norm_asked_for_and_repeat() -> Result<()> {
    let draw = |seed| {
        LowRank::random(
            30,
            20,
            5,
            3.0,
            &mut rng::stream(seed, "init", &[]),
            DType::F64,
            &Device::Cpu,
        )
    };
    let point = draw(1)?;
    assert!(
        (norm(&point.to_dense()?) - 3.0).abs() < 1e-12
            && (point.frobenius_norm()? - 3.0).abs() < 1e-12
    );
    assert!(point.orthonormality_defect()? < 1e-13);
    assert_eq!(point.parameter_count(), (30 + 20 + 5) * 5);
    assert_eq!(distance(&point.to_dense()?, &draw(1)?.to_dense()?), 0.0);
    assert!(distance(&point.to_dense()?, &draw(2)?.to_dense()?) > 1.0);
    Ok(())
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let zeros = |rows: usize, columns: usize| {
        Tensor::zeros((rows, columns), DType::F64, &Device::Cpu).unwrap()
    };
    let error = LowRank::from_parts(zeros(5, 2), zeros(3, 3), zeros(4, 2)).unwrap_err().to_string();
    assert!(error.contains("[3, 3]"), "{error}");
    let error = LowRank::from_dense(&zeros(5, 4), 5).unwrap_err().to_string();
    assert!(error.contains("rank from 1 to 4, not 5"), "{error}");
}

#[test]
fn tolerance_ranks() {
    let sigma = [4.0, 3.0, 0.4, 0.3];
    // Norm 5.0249; tails after 1, 2, 3 values: 3.041, 0.5, 0.3.
    for (tau, rank) in
        [(0.0, 4), (0.0598, 3), (0.0995, 3), (0.0996, 2), (0.605, 2), (0.606, 1), (2.0, 1)]
    {
        assert_eq!(tolerance_rank(&sigma, tau), rank, "{tau}");
        assert_eq!(tolerance_rank(&sigma.map(|s| s * 1e-200), tau), rank, "{tau}");
    }
    assert_eq!(tolerance_rank(&[1.0, 0.0, 0.0], 0.0), 1);
    assert_eq!(tolerance_rank(&[0.0, 0.0], 0.1), 1);
}
