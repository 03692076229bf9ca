//! What docs/momentum.md says: the equation that heavy ball obeys on factors and in the tangent
//! space, what depends on the choice of the factors, and the demonstration's outcome.

use candle_core::Tensor;
use lrpt::demo::{Experiment, Instance, Method, Problem, run};
use lrpt::linalg::{frobenius_norm, multiply, qr};
use lrpt::lowrank::{LowRank, Tangent};
use lrpt::ops::Compute;
use lrpt::optim::{
    AdamwState, AdamwStep, DlraState, DlraStep, HeavyBallState, RankDecision, Scaled,
};
use lrpt::rng;
use lrpt::spec::{DlraSpec, HeavyBallSpec, Momentum, RetractionSpec};

fn product(a: &Tensor, b: &Tensor) -> Tensor {
    multiply(a, b).expect("shapes fit")
}

fn transposed(a: &Tensor) -> Tensor {
    a.t().expect("a matrix")
}

fn norm(a: &Tensor) -> f64 {
    frobenius_norm(a).expect("f64")
}

/// a X + b Y + c Z.
fn combined(terms: &[(f64, &Tensor)]) -> Tensor {
    let scaled = |(factor, tensor): &(f64, &Tensor)| (*tensor * *factor).expect("scaled");
    terms[1..]
        .iter()
        .fold(scaled(&terms[0]), |sum, term| (sum + scaled(term)).expect("equal shapes"))
}

/// W minus its part in the tangent space at a matrix whose column and row spaces have these bases:
/// (I − UUᵀ) W (I − VVᵀ).
fn outside(w: &Tensor, u: &Tensor, v: &Tensor) -> Tensor {
    let left = combined(&[(1.0, w), (-1.0, &product(u, &product(&transposed(u), w)))]);
    combined(&[(1.0, &left), (-1.0, &product(&product(&left, v), &transposed(v)))])
}

/// Friction γ and end of the time over which the equations of motion are checked.
const FRICTION: f64 = 1.0;
const TIME: f64 = 1.0;

/// The last three matrices of a trajectory with time step h, and what else the equation needs at
/// the middle one.
struct Motion {
    h: f64,
    w: [Tensor; 3],
}

impl Motion {
    /// (W₊ − 2W + W₋)/h² + γ (W₊ − W₋)/2h.
    fn left_side(&self) -> Tensor {
        let (second, first) = (1.0 / (self.h * self.h), FRICTION / (2.0 * self.h));
        combined(&[
            (second + first, &self.w[2]),
            (-2.0 * second, &self.w[1]),
            (second - first, &self.w[0]),
        ])
    }
}

/// What the factored trajectory's equation leaves over with and without its extra term, relative to
/// ‖BBᵀG + GAᵀA‖, and the share of 2ḂȦ that is outside the tangent space.
fn factored_residuals(instance: &Instance, h: f64) -> [f64; 3] {
    let rule = HeavyBallSpec { learning_rate: h * h, beta1: 1.0 - FRICTION * h, weight_decay: 0.0 };
    let mut factors =
        [instance.left().copy().expect("a copy"), instance.right().copy().expect("a copy")];
    let mut states = [0, 1].map(|i| HeavyBallState::new(&factors[i]).expect("state"));
    let mut last = Vec::new();
    for _ in 0..(TIME / h).round() as usize + 1 {
        last.push(factors.each_ref().map(|factor| factor.copy().expect("a copy")));
        let g = instance.gradient(&product(&factors[0], &factors[1])).expect("gradient");
        let gradients =
            [product(&g, &transposed(&factors[1])), product(&transposed(&factors[0]), &g)];
        for i in [0, 1] {
            states[i]
                .step(
                    Compute::default(),
                    &mut factors[i],
                    Scaled::new(&gradients[i], 1.0),
                    &rule,
                    rule.learning_rate,
                )
                .expect("step");
        }
    }
    last.push(factors);
    let [before, [b, a], after] = last.last_chunk::<3>().expect("three points").clone();
    let motion = Motion {
        h,
        w: [product(&before[0], &before[1]), product(&b, &a), product(&after[0], &after[1])],
    };
    let g = instance.gradient(&motion.w[1]).expect("gradient");
    let force = combined(&[
        (1.0, &product(&b, &product(&transposed(&b), &g))),
        (1.0, &product(&g, &product(&transposed(&a), &a))),
    ]);
    let velocity = |i: usize| combined(&[(0.5 / h, &after[i]), (-0.5 / h, &before[i])]);
    let extra = product(&velocity(0), &velocity(1));
    let (u, v) = (qr(&b).expect("QR").0, qr(&transposed(&a)).expect("QR").0);
    let left = motion.left_side();
    let with = combined(&[(1.0, &left), (1.0, &force), (-2.0, &extra)]);
    let without = combined(&[(1.0, &left), (1.0, &force)]);
    [
        norm(&with) / norm(&force),
        norm(&without) / norm(&force),
        norm(&outside(&extra, &u, &v)) / norm(&extra),
    ]
}

/// Ẅ + γẆ = −(BBᵀG + GAᵀA) + 2ḂȦ holds to first order in the time step; without the last term it
/// does not, and part of that term is outside the tangent space.
#[test]
fn heavy_ball_on_factors_has_a_force_that_no_gradient_made() {
    let instance = Problem::ALL[0].draw(1).expect("a problem");
    let steps = [0.02, 0.01, 0.005].map(|h| factored_residuals(&instance, h));
    for pair in steps.windows(2) {
        let ratio = pair[0][0] / pair[1][0];
        assert!((1.8..2.2).contains(&ratio), "the residual halves with the time step: {ratio}");
    }
    let [with, without, outside] = steps[2];
    assert!(
        without > 20.0 * with && without > 0.1,
        "relative residuals with the term {with:e}, without it {without:e}"
    );
    assert!(outside > 0.1, "share of the term outside the tangent space: {outside}");
}

/// P(Ẅ + γẆ + G) = 0 for heavy ball in the tangent space: the projected gradient is the only force.
#[test]
fn heavy_ball_in_the_tangent_space_has_the_projected_gradient_as_its_only_force() {
    let instance = Problem::ALL[0].draw(1).expect("a problem");
    let residuals = [0.02, 0.01, 0.005].map(|h| {
        let settings = DlraSpec {
            momentum: Momentum::HeavyBall,
            retraction: RetractionSpec::Svd,
            beta1: 1.0 - FRICTION * h,
            weight_decay: 0.0,
            ..DlraSpec::default()
        };
        let mut point = instance.point().expect("a point");
        let mut state = DlraState::new(&point, &settings).expect("state");
        let mut last = Vec::new();
        for step in 1..=(TIME / h).round() as u64 + 1 {
            last.push(point.clone());
            let g = instance.gradient(&point.to_dense().expect("dense")).expect("gradient");
            (point, state) = geometric_step(&point, &state, &settings, &g, h * h, step);
        }
        last.push(point);
        let [before, at, after] = last.last_chunk::<3>().expect("three points").each_ref();
        let motion =
            Motion { h, w: [before, at, after].map(|point| point.to_dense().expect("dense")) };
        let g = instance.gradient(&motion.w[1]).expect("gradient");
        let project = |w: &Tensor| {
            Tangent::project(at, w).and_then(|tangent| tangent.to_dense(at)).expect("projection")
        };
        norm(&project(&combined(&[(1.0, &motion.left_side()), (1.0, &g)]))) / norm(&project(&g))
    });
    for pair in residuals.windows(2) {
        assert!(
            (1.8..2.2).contains(&(pair[0] / pair[1])),
            "the residual halves with the time step: {residuals:?}"
        );
    }
    assert!(residuals[2] < 0.05, "{residuals:?}");
}

fn geometric_step(
    point: &LowRank,
    state: &DlraState,
    settings: &DlraSpec,
    gradient: &Tensor,
    learning_rate: f64,
    step: u64,
) -> (LowRank, DlraState) {
    let tangent = Tangent::project(point, gradient).expect("projection");
    let rule = DlraStep { settings, learning_rate, step, rank: RankDecision::Keep, of_head: false };
    let update = state.step(point, Scaled::new(&tangent, 1.0), &rule).expect("step");
    (update.point, update.state)
}

/// The matrix after some steps from these factors.
fn after_steps(instance: &Instance, mut step: impl FnMut(&Tensor, u64) -> Tensor) -> Tensor {
    let mut w = product(instance.left(), instance.right());
    for index in 1..=10 {
        w = step(&instance.gradient(&w).expect("gradient"), index);
    }
    w
}

fn factored(instance: &Instance, adam: bool) -> Tensor {
    let mut factors =
        [instance.left().copy().expect("a copy"), instance.right().copy().expect("a copy")];
    let mut balls = [0, 1].map(|i| HeavyBallState::new(&factors[i]).expect("state"));
    let mut adams = [0, 1].map(|i| AdamwState::new(&factors[i]).expect("state"));
    let rule = HeavyBallSpec { learning_rate: 0.02, beta1: 0.9, weight_decay: 0.0 };
    after_steps(instance, |g, step| {
        let gradients =
            [product(g, &transposed(&factors[1])), product(&transposed(&factors[0]), g)];
        for i in [0, 1] {
            if adam {
                let rule = AdamwStep {
                    learning_rate: 0.02,
                    beta1: 0.9,
                    beta2: 0.99,
                    epsilon: 1e-8,
                    weight_decay: 0.0,
                    step,
                    compute: Compute::default(),
                };
                adams[i]
                    .step(&mut factors[i], Scaled::new(&gradients[i], 1.0), &rule)
                    .expect("step");
            } else {
                balls[i]
                    .step(
                        Compute::default(),
                        &mut factors[i],
                        Scaled::new(&gradients[i], 1.0),
                        &rule,
                        rule.learning_rate,
                    )
                    .expect("step");
            }
        }
        product(&factors[0], &factors[1])
    })
}

fn geometric(instance: &Instance, momentum: Momentum) -> Tensor {
    let settings = DlraSpec {
        momentum,
        retraction: RetractionSpec::Svd,
        weight_decay: 0.0,
        ..DlraSpec::default()
    };
    let mut point = instance.point().expect("a point");
    let mut state = DlraState::new(&point, &settings).expect("state");
    after_steps(instance, |g, step| {
        (point, state) = geometric_step(&point, &state, &settings, g, 0.02, step);
        point.to_dense().expect("dense")
    })
}

/// (B, A) → (B R, R⁻¹ A): a rotation R changes nothing for factored heavy ball and all for factored
/// Adam, another R both; geometric steps do not see R.
#[test]
fn geometric_steps_do_not_see_which_factors_were_chosen() {
    let instance =
        Problem { spectrum: lrpt::demo::TargetSpectrum { condition: 3.0 }, ..Problem::ALL[0] }
            .draw(2)
            .expect("a problem");
    let numbers = rng::normals(&mut rng::stream(2, "rotation", &[]), 16);
    let (rotation, _) =
        qr(&Tensor::from_vec(numbers, (4, 4), &candle_core::Device::Cpu).expect("4 x 4"))
            .expect("QR");
    let scales = |power: i32| {
        let diagonal = [3f64, 2.0, 0.5, 1.0 / 3.0].map(|scale| scale.powi(power)).to_vec();
        Tensor::from_vec(diagonal, (1, 4), &candle_core::Device::Cpu).expect("a row")
    };
    let rotated = instance.in_other_factors(&rotation, &transposed(&rotation)).expect("4 x 4");
    let stretch = rotation.broadcast_mul(&scales(1)).expect("R");
    let inverse = transposed(&rotation.broadcast_mul(&scales(-1)).expect("R^-T"));
    let stretched = instance.in_other_factors(&stretch, &inverse).expect("4 x 4");
    let start = product(instance.left(), instance.right());
    let difference = |of: &dyn Fn(&Instance) -> Tensor, other: &Instance| {
        let moved = of(&instance);
        norm(&combined(&[(1.0, &moved), (-1.0, &of(other))]))
            / norm(&combined(&[(1.0, &moved), (-1.0, &start)]))
    };

    for momentum in [Momentum::HeavyBall, Momentum::MatrixAdam, Momentum::Spectral] {
        for other in [&rotated, &stretched] {
            let difference = difference(&|instance| geometric(instance, momentum), other);
            assert!(difference < 1e-9, "{momentum:?}: {difference:e}");
        }
    }
    let heavy_ball = |instance: &Instance| factored(instance, false);
    assert!(difference(&heavy_ball, &rotated) < 1e-12);
    assert!(difference(&heavy_ball, &stretched) > 0.1, "{}", difference(&heavy_ball, &stretched));
    let adam = |instance: &Instance| factored(instance, true);
    assert!(difference(&adam, &rotated) > 0.1, "{}", difference(&adam, &rotated));
    assert!(difference(&adam, &stretched) > 0.1, "{}", difference(&adam, &stretched));
    // Element by element, Adam in the tangent space sees the bases U and V (less than on the
    // factors), but no stretch beyond their rotation.
    let element_wise = |instance: &Instance| geometric(instance, Momentum::Adam);
    let (by_rotation, by_stretch) =
        (difference(&element_wise, &rotated), difference(&element_wise, &stretched));
    assert!((by_rotation - by_stretch).abs() < 1e-9, "{by_rotation} {by_stretch}");
    assert!(by_rotation > 0.01 && by_rotation < difference(&adam, &rotated), "{by_rotation}");
}

/// The demonstration at a smaller size: where nothing hurts the factors there is no gap, elsewhere
/// there is, for heavy ball and for Adam.
#[test]
fn factors_stall_where_the_tangent_space_does_not_and_nowhere_else() {
    let experiment = Experiment { steps: 300, seeds: 1, rates: vec![1e-2, 3e-2, 1e-1, 3e-1] };
    let report = run(&Problem::ALL, &experiment).expect("a report");
    let error = |problem: usize, method: Method| {
        report.problems[problem].of(method).expect("the method").error()
    };
    let geometric = [Method::HeavyBall, Method::Adam, Method::MatrixAdam, Method::Spectral];
    let (noisy, unbalanced, small, small_noisy) = (1, 2, 3, 4);
    let again = run(&Problem::ALL[small_noisy..], &experiment).expect("a report");
    assert_eq!(again.problems[0], report.problems[small_noisy], "it repeats bit for bit");

    // The control with noise: rule by rule the same.
    for (factored, tangent) in
        [(Method::FactoredHeavyBall, Method::HeavyBall), (Method::FactoredAdam, Method::Adam)]
    {
        let ratio = error(noisy, factored) / error(noisy, tangent);
        assert!((0.8..1.25).contains(&ratio), "{factored:?}: {ratio}");
    }
    // Other factors of the same matrices: the geometric methods do the same to rounding, the
    // factored ones lose.
    for method in geometric {
        let ratio = error(unbalanced, method) / error(noisy, method);
        assert!((ratio - 1.0).abs() < 1e-3, "{method:?}: {ratio}");
    }
    let gap = |problem: usize, factored: Method, tangent: Method| {
        error(problem, factored) / error(problem, tangent)
    };
    assert!(gap(unbalanced, Method::FactoredHeavyBall, Method::HeavyBall) > 10.0);
    assert!(gap(unbalanced, Method::FactoredAdam, Method::Adam) > 1.2);
    // Small singular values: the factors stall, with an exact gradient above all.
    for factored in [Method::FactoredHeavyBall, Method::FactoredAdam] {
        for tangent in geometric {
            let (exact, noisy) =
                (gap(small, factored, tangent), gap(small_noisy, factored, tangent));
            assert!(
                exact > 15.0 && noisy > 1.5,
                "{factored:?} against {tangent:?}: {exact} {noisy}"
            );
        }
    }
    // On these rates nothing in the tangent space diverges; heavy ball on unbalanced factors does.
    for outcome in &report.problems {
        for method in geometric {
            assert_eq!(outcome.of(method).expect("the method").diverges_from(), None, "{method:?}");
        }
    }
    let heavy_ball = report.problems[unbalanced].of(Method::FactoredHeavyBall).expect("the method");
    assert_eq!(heavy_ball.diverges_from(), Some(3e-2));
}
