//! Steps one after the other, in single precision and on both paths; what is refused.

use super::*;

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
