//! Ranks under every integrator, and the kind of numbers.

use super::*;

/// Ranks follow the policy under every integrator and momentum, and the state follows the ranks.
#[test]
fn ranks_follow_the_policy() {
    let schedule = RankPlan::Tolerance(TolerancePlan {
        cycle: RankCyclePlan { every: 8, settle: 4, grow_by: 2, start: 2, freeze: 12 },
        norm: RankNorm::Frobenius,
        batches: 1,
        moment_decay: 0.0,
        moment_every: None,
        tau_schedule: RampShape::Linear,
        targets: BTreeMap::from([(
            Target::UP,
            ToleranceTargetPlan { tau: 0.3, final_tau: 0.3, min_rank: 2, max_rank: 5 },
        )]),
    });
    let combinations = [
        (Integrator::AugmentedBug, vec![Momentum::HeavyBall, Momentum::Adam, Momentum::Spectral]),
        (
            Integrator::CoefficientCycle,
            vec![Momentum::HeavyBall, Momentum::Adam, Momentum::Spectral, Momentum::MatrixAdam],
        ),
    ];
    for (integrator, momentum) in combinations
        .into_iter()
        .flat_map(|(integrator, momenta)| momenta.into_iter().map(move |m| (integrator, m)))
    {
        let dlra = DlraSpec { learning_rate: 1e-3, ..settings(integrator, momentum, 2) };
        let mut training = Training::new(
            Problem { rows: 14, columns: 11, batches: 3 },
            3,
            dlra,
            schedule.clone(),
            15,
        );
        let mut ranks = Vec::new();
        for _ in 0..15 {
            training.step();
            ranks.push(training.point().rank());
            for (name, tensor) in
                training.optimizer.named_tensors(&training.params).expect("leaves")
            {
                let is_of_the_bases = name.starts_with("weight/") && !name.ends_with("cycle_rank");
                assert!(
                    !is_of_the_bases || tensor.dim(1).expect("2-D") == training.point().rank(),
                    "{name}: {:?}",
                    tensor.dims()
                );
            }
            assert!(training.point().orthonormality_defect().expect("f64") < 1e-12);
        }
        let expected: &[usize] = match integrator {
            // Growth at step 2 from 3 to 5, then the truncation at step 6 decides.
            Integrator::AugmentedBug => &[3, 5, 5, 5, 5],
            // Cycles of three steps; the growth decided at step 2 takes effect at step 3.
            _ => &[6, 6, 5, 10, 10],
        };
        assert_eq!(ranks[..5], *expected, "{integrator:?} {momentum:?}");
        assert!(
            (2..=5).contains(&ranks[14]) && ranks[5] <= 5,
            "{integrator:?} {momentum:?}: {ranks:?}"
        );
    }
}

/// A full-rank square side leaves no room for new directions: cycles then train S alone.
#[test]
fn cycles_augment_as_far_as_there_is_room() {
    for (rows, columns, widest) in [(14, 4, 4), (4, 14, 4), (3, 7, 3)] {
        let dlra = settings(Integrator::CoefficientCycle, Momentum::Spectral, 2);
        let mut training =
            Training::new(Problem { rows, columns, batches: 3 }, 3, dlra, RankPlan::Fixed, 12);
        let ranks: Vec<usize> = (0..6)
            .map(|_| {
                training.step();
                training.point().rank()
            })
            .collect();
        assert_eq!(ranks, [widest, widest, 3, widest, widest, 3]);
        assert!(training.point().orthonormality_defect().expect("f64") < 1e-12);
    }
}

/// `truncate_every: 1` is the SVD at every step, and between SVDs the step is the subspace
/// retraction's.
#[test]
fn truncate_every_takes_the_svd_at_its_steps() {
    let run = |retraction, every: u64| -> Vec<LowRank> {
        let spec = settings(Integrator::Tangent, Momentum::HeavyBall, 1);
        let dlra = DlraSpec { retraction, truncate_every: Count(every), ..spec };
        let mut training = Training::new(
            Problem { rows: 14, columns: 11, batches: 3 },
            3,
            dlra,
            RankPlan::Fixed,
            100,
        );
        (0..6)
            .map(|_| {
                training.step();
                training.point().clone()
            })
            .collect()
    };
    let off_diagonal = |point: &LowRank| {
        let s = dense(&point.s);
        (0..3)
            .flat_map(|i| (0..3).filter(move |j| *j != i).map(move |j| (i, j)))
            .map(|place| s[place].abs())
            .fold(0.0, f64::max)
    };
    let svd_steps = |points: &[LowRank]| -> Vec<usize> {
        (1..=6).filter(|step| off_diagonal(&points[step - 1]) == 0.0).collect()
    };
    assert_eq!(svd_steps(&run(RetractionSpec::Svd, 1)), [1, 2, 3, 4, 5, 6]);
    assert_eq!(svd_steps(&run(RetractionSpec::Svd, 3)), [3, 6]);
    assert_eq!(svd_steps(&run(RetractionSpec::Subspace, 3)), [] as [usize; 0]);
    let weight = |point: &LowRank| dense(&point.to_dense().expect("dense"));
    let (mixed, subspace) = (run(RetractionSpec::Svd, 3), run(RetractionSpec::Subspace, 1));
    assert_close(&weight(&mixed[1]), &weight(&subspace[1]), 0.0, "before the first SVD");
    assert_close(
        &weight(&mixed[5]),
        &weight(&run(RetractionSpec::Svd, 1)[5]),
        1e-2,
        "an approximation of the SVD at every step",
    );
}

#[test]
fn points_in_f32_keep_their_kind() {
    let point =
        LowRank::random(12, 9, 2, 1.0, &mut rng::stream(3, "start", &[]), DType::F32, &Device::Cpu)
            .expect("valid sizes");
    let dlra = settings(Integrator::AugmentedBug, Momentum::Adam, 1);
    let hyper = DlraStep {
        settings: &dlra,
        learning_rate: 0.1,
        step: 1,
        rank: RankDecision::Keep,
        of_head: false,
    };
    let gradient = Tangent::project(
        &point,
        &tensor(&random(12, 9, "gradient", 0)).to_dtype(DType::F32).expect("f32"),
    )
    .expect("projection");
    let step = DlraState::new(&point, &dlra)
        .and_then(|state| state.begin_galerkin(&point, Scaled::new(&gradient, 1.0), &hyper))
        .expect("augmentation");
    let at = step.augmented_point().expect("a point");
    let by_coefficients = step.gradient(&at.u).expect("some gradient");
    let update = step
        .advance(Scaled::new(&by_coefficients, 1.0), &hyper)
        .and_then(|step| step.finish(&hyper))
        .expect("a step");
    assert_eq!((update.point.s.dtype(), update.point.rank()), (DType::F32, 2));
}
