//! Laws on random shapes and points.

use super::*;

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
