//! `augmented_bug`, `coefficient_cycle` and `truncate_every` against dense f64 textbook steps on a
//! nonlinear function, through the optimizer as it trains.

mod ranks;
#[path = "../support/mod.rs"]
mod support;
mod textbook;
mod training;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use faer::Mat;
use lrpt::lowrank::{LowRank, Tangent};
use lrpt::ops::{Gradients, Tape};
use lrpt::optim::{
    BatchLoss, DlraState, DlraStep, Execution, GradientOracle, Optimizer, OptimizerSettings,
    RankDecision, Scaled, Schedule,
};
use lrpt::params::{ParamId, ParamStore, Parameter, Place, Role, Weight};
use lrpt::rng;
use lrpt::spec::{
    AdamwSpec, ConstantScheduleSpec, Count, DenseOptimizerSpec, DlraSpec, Integrator,
    LowRankOptimizerSpec, Momentum, OptimizerPlan, RampShape, RankCyclePlan, RankNorm, RankPlan,
    RetractionSpec, ScheduleSpec, Target, TolerancePlan, ToleranceTargetPlan,
};
use std::collections::BTreeMap;
use support::textbook::{dense, random, tensor, truncated_svd};
use textbook::*;
use training::*;

const LEARNING_RATE: f64 = 0.05;
const DECAY: f64 = 0.1;
const WEIGHT: ParamId = ParamId(0);
const OFFSET: ParamId = ParamId(1);

fn assert_close(ours: &Mat<f64>, textbook: &Mat<f64>, tolerance: f64, what: &str) {
    let (difference, scale) = ((ours - textbook).norm_l2(), textbook.norm_l2());
    assert!(difference <= tolerance * scale, "{what}: difference {difference:e} of {scale}");
}

#[test]
fn augmented_bug_agrees_with_the_dense_textbook() {
    let momenta = [Momentum::HeavyBall, Momentum::Spectral, Momentum::Adam];
    // In the last two shapes one side has room for 3 new directions and the other for 2. Which 2 is
    // a matter of pivots there, and Adam minds it.
    for (rows, columns) in [(14, 11), (14, 5), (5, 14)] {
        for (momentum, nesterov, coefficient_steps) in momenta
            .into_iter()
            .filter(|momentum| *momentum != Momentum::Adam || columns == 11)
            .flat_map(|momentum| [(momentum, false, 1), (momentum, false, 3), (momentum, true, 2)])
        {
            let dlra = DlraSpec {
                nesterov,
                ..settings(Integrator::AugmentedBug, momentum, coefficient_steps)
            };
            let problem = Problem { rows, columns, batches: 3 };
            let mut training = Training::new(problem, 3, dlra.clone(), RankPlan::Fixed, 100);
            let mut textbook = Textbook::new(&training);
            for step in 1..=5 {
                assert_eq!(training.step(), 1 + coefficient_steps, "evaluations of a step");
                textbook.augmented_bug(&training.problem, &dlra, step);
                let what = format!(
                    "{momentum:?} on {rows} × {columns}, {coefficient_steps} coefficient steps, nesterov {nesterov}, step {step}"
                );
                assert_close(&training.weight(), &textbook.w, 1e-9, &what);
                assert_close(&training.offset(), &textbook.offset, 1e-10, &what);
            }
        }
    }
}

/// The textbook of a cycle: bases and first moment live on, the matrix moves by its coefficients
/// only.
#[test]
fn coefficient_cycle_agrees_with_the_dense_textbook() {
    for (momentum, coefficient_steps) in
        [(Momentum::HeavyBall, 1), (Momentum::HeavyBall, 3), (Momentum::Spectral, 2)]
    {
        let dlra = settings(Integrator::CoefficientCycle, momentum, coefficient_steps);
        // Eleven steps end within a cycle, which the last step closes.
        let last = 11;
        let mut training = Training::new(
            Problem { rows: 14, columns: 11, batches: 4 },
            3,
            dlra.clone(),
            RankPlan::Fixed,
            last,
        );
        let mut textbook = Textbook::new(&training);
        for step in 1..=last {
            training.step();
            let (_, gradient, by_offset) =
                training.problem.gradients(&textbook.w, &textbook.offset, step);
            let (m, d) = textbook.take_in(&gradient, &dlra, step);
            textbook.z = m;
            let place = (step - 1) % (coefficient_steps + 1);
            if place == 0 && step < last {
                (textbook.u, textbook.v) = textbook.augmented(&d);
            } else {
                let core = textbook.u.transpose() * &textbook.z * &textbook.v;
                let core = match momentum {
                    Momentum::Spectral => {
                        let (a, _, b) = truncated_svd(&core, core.nrows());
                        0.2 * 14f64.sqrt() * (a * b.transpose())
                    }
                    _ => core,
                };
                let w = (1.0 - LEARNING_RATE * DECAY) * &textbook.w
                    - LEARNING_RATE * &textbook.u * core * textbook.v.transpose();
                if place == coefficient_steps || step == last {
                    let (u, _, v) = truncated_svd(&w, 3);
                    (textbook.w, textbook.u, textbook.v) = (truncated(&w, 3), u, v);
                } else {
                    textbook.w = w;
                }
            }
            textbook.step_offset(&by_offset, step);
            let what = format!("{momentum:?}, {coefficient_steps} coefficient steps, step {step}");
            assert_eq!(training.point().rank(), textbook.u.ncols(), "{what}");
            assert_close(&training.weight(), &textbook.w, 1e-9, &what);
            assert_close(&training.offset(), &textbook.offset, 1e-10, &what);
        }
        assert_eq!(training.point().rank(), 3, "a run ends truncated");
    }
}

/// Gradients of ½‖W − A‖² by hand, so that the step itself is exact where theory says so.
fn quadratic_step(point: &LowRank, target: &Mat<f64>, dlra: &DlraSpec) -> Mat<f64> {
    let gradient = |w: &LowRank| tensor(&(dense(&w.to_dense().expect("dense")) - target));
    let hyper = DlraStep {
        settings: dlra,
        learning_rate: 0.3,
        step: 1,
        rank: RankDecision::Keep,
        of_head: false,
    };
    let state = DlraState::new(point, dlra).expect("state");
    let mut step = state
        .begin_galerkin(
            point,
            Scaled::new(&Tangent::project(point, &gradient(point)).expect("projection"), 1.0),
            &hyper,
        )
        .expect("augmentation");
    for _ in 0..dlra.coefficient_steps() {
        let at = step.augmented_point().expect("a point");
        let by_coefficients =
            step.gradient(&gradient(&at).matmul(&at.v).expect("K-gradient")).expect("gradient");
        step = step.advance(Scaled::new(&by_coefficients, 1.0), &hyper).expect("step");
    }
    dense(&step.finish(&hyper).expect("truncation").point.to_dense().expect("dense"))
}

/// Where the target has the rank of the weight, the augmented bases hold both, and coefficient
/// steps are gradient descent on the full matrix, truncated. Also with singular values down to
/// nothing, and where the bases of the target are those of the weight, so that no direction is new.
#[test]
fn coefficient_steps_are_full_gradient_descent_when_the_bases_hold_it() {
    let dlra = DlraSpec {
        beta1: 0.0,
        weight_decay: 0.0,
        ..settings(Integrator::AugmentedBug, Momentum::HeavyBall, 4)
    };
    for smallest in [1.0, 1e-6, 1e-12] {
        let (u, _, v) = truncated_svd(&random(14, 11, "bases", 0), 3);
        let sigma = [3.0, 2.0, smallest];
        let s = Mat::from_fn(3, 3, |i, j| if i == j { sigma[i] } else { 0.0 });
        let point = LowRank::from_parts(tensor(&u), tensor(&s), tensor(&v)).expect("parts");
        let within = &u * random(3, 3, "coefficients", 0) * v.transpose();
        for target in [truncated(&random(14, 11, "target", 0), 3), within] {
            let start = &u * &s * v.transpose();
            let descended = (0..4).fold(start, |w, _| &w - 0.3 * (&w - &target));
            let ours = quadratic_step(&point, &target, &dlra);
            assert_close(
                &ours,
                &truncated(&descended, 3),
                1e-11,
                &format!("smallest singular value {smallest:e}"),
            );
        }
    }
}

/// The (2,2) block is normal to the manifold: with the rank kept, one coefficient step differs from
/// `tangent` by O(η²).
#[test]
fn one_coefficient_step_is_tangent_to_first_order() {
    let differences = [1e-2, 1e-3].map(|learning_rate| {
        let ends = [Integrator::Tangent, Integrator::AugmentedBug].map(|integrator| {
            let dlra = DlraSpec { learning_rate, ..settings(integrator, Momentum::HeavyBall, 1) };
            let mut training = Training::new(
                Problem { rows: 14, columns: 11, batches: 1 },
                3,
                dlra,
                RankPlan::Fixed,
                9,
            );
            training.step();
            training.weight()
        });
        (&ends[0] - &ends[1]).norm_l2()
    });
    let order = (differences[0] / differences[1]).log10();
    assert!(
        differences[1] > 0.0 && (1.8..3.5).contains(&order),
        "differences {differences:?}: order {order}"
    );
}

/// A gradient that is not finite in the second evaluation, or in any, leaves every parameter and
/// every moment as they were.
#[test]
fn a_failing_step_changes_nothing() {
    let cycle = |integrator| settings(integrator, Momentum::Adam, 2);
    for (integrator, broken, message) in [
        (Integrator::AugmentedBug, 1, "the gradient of `weight` is not finite"),
        (
            Integrator::AugmentedBug,
            3,
            "the gradient of `weight` in its augmented bases is not finite",
        ),
        (Integrator::CoefficientCycle, 1, "the gradient of `weight` is not finite"),
    ] {
        let mut training = Training::new(
            Problem { rows: 14, columns: 11, batches: 2 },
            3,
            cycle(integrator),
            RankPlan::Fixed,
            9,
        );
        training.step();
        training.step();
        let all = |training: &Training| -> Vec<(String, Vec<u64>)> {
            let tensors = training
                .params
                .named_tensors()
                .into_iter()
                .chain(training.optimizer.named_tensors(&training.params).expect("leaves"));
            let bits = |tensor: Tensor| {
                tensor
                    .to_dtype(DType::F64)
                    .and_then(|x| x.flatten_all())
                    .and_then(|x| x.to_vec1::<f64>())
                    .expect("f64")
                    .iter()
                    .map(|x| x.to_bits())
                    .collect()
            };
            tensors.map(|(name, tensor)| (name, bits(tensor))).collect()
        };
        let before = all(&training);
        let error = training.try_step(Some(broken)).expect_err("a gradient that is not finite");
        assert_eq!(lrpt::error::exit_code(&error), 3);
        let error = error.to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!(before, all(&training), "{integrator:?}, evaluation {broken}");
        training.step();
    }
}
