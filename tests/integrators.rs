//! `augmented_bug`, `coefficient_cycle` and `truncate_every` against dense f64 textbook steps on a
//! nonlinear function, through the optimizer as it trains.

mod support;

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

const LEARNING_RATE: f64 = 0.05;
const DECAY: f64 = 0.1;
const WEIGHT: ParamId = ParamId(0);
const OFFSET: ParamId = ParamId(1);

fn truncated(w: &Mat<f64>, rank: usize) -> Mat<f64> {
    let (u, sigma, v) = truncated_svd(w, rank);
    u * Mat::from_fn(rank, rank, |i, j| if i == j { sigma[i] } else { 0.0 }) * v.transpose()
}

fn beside(a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols() + b.ncols(), |i, j| {
        if j < a.ncols() { a[(i, j)] } else { b[(i, j - a.ncols())] }
    })
}

fn map(a: &Mat<f64>, f: impl Fn(f64) -> f64) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| f(a[(i, j)]))
}

fn quotient(a: &Mat<f64>, b: &Mat<f64>, epsilon: f64) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] / (b[(i, j)].sqrt() + epsilon))
}

fn square(a: &Mat<f64>) -> Mat<f64> {
    map(a, |x| x * x)
}

/// L(W, b) = ½ ‖tanh(A W B + b 1ᵀ) − Y‖², another A, B and Y for each batch: gradients at two
/// points differ.
struct Problem {
    rows: usize,
    columns: usize,
    batches: u64,
}

impl Problem {
    const OUTPUTS: usize = 9;
    const SAMPLES: usize = 8;

    fn gradients(&self, w: &Mat<f64>, offset: &Mat<f64>, step: u64) -> (f64, Mat<f64>, Mat<f64>) {
        let batch = step % self.batches;
        let a = 0.4 * random(Self::OUTPUTS, self.rows, "a", batch);
        let b = 0.4 * random(self.columns, Self::SAMPLES, "b", batch);
        let y = random(Self::OUTPUTS, Self::SAMPLES, "y", batch);
        let x = &a * w * &b;
        let t = Mat::from_fn(x.nrows(), x.ncols(), |i, j| (x[(i, j)] + offset[(i, 0)]).tanh());
        let delta = Mat::from_fn(x.nrows(), x.ncols(), |i, j| {
            (t[(i, j)] - y[(i, j)]) * (1.0 - t[(i, j)] * t[(i, j)])
        });
        let by_offset =
            Mat::from_fn(Self::OUTPUTS, 1, |i, _| (0..Self::SAMPLES).map(|j| delta[(i, j)]).sum());
        (0.5 * (&t - &y).squared_norm_l2(), a.transpose() * &delta * b.transpose(), by_offset)
    }
}

/// Gives the gradients of a problem as the network's backward does: K = G V and L = Gᵀ U, whatever
/// U and V are.
struct Oracle<'a> {
    problem: &'a Problem,
    step: u64,
    evaluations: u64,
    /// The evaluation of a step, counted from 1, whose gradient is not finite.
    broken: Option<u64>,
}

impl GradientOracle for Oracle<'_> {
    fn evaluate(&mut self, params: &ParamStore, gradients: &mut Gradients) -> Result<BatchLoss> {
        self.evaluations += 1;
        let Weight::LowRank(point) = &params.get(WEIGHT).weight else {
            panic!("the weight is low-rank")
        };
        let (loss, mut g, by_offset) = self.problem.gradients(
            &dense(&point.to_dense()?),
            &dense(params.dense(OFFSET)?),
            self.step,
        );
        if self.broken == Some(self.evaluations) {
            g[(0, 0)] = f64::NAN;
        }
        let g = tensor(&g);
        let tape = Tape::training();
        let u = tape.parameter(ParamStore::slot(WEIGHT), &point.u);
        let v = tape.parameter(ParamStore::l_slot(WEIGHT), &point.v);
        let b = tape.parameter(ParamStore::slot(OFFSET), params.dense(OFFSET)?);
        let (k, l, by_offset) =
            (g.matmul(&point.v)?, g.t()?.contiguous()?.matmul(&point.u)?, tensor(&by_offset));
        let (to_u, to_v, to_b) = (u.source(), v.source(), b.source());
        let output =
            tape.record(&[to_u, to_v, to_b], Tensor::new(loss, &Device::Cpu)?, move |_, flow| {
                flow.add(to_u, k)?;
                flow.add(to_v, l)?;
                flow.add(to_b, by_offset)
            });
        tape.backward(&output, gradients)?;
        Ok(BatchLoss { loss, micro_batches: 1 })
    }
}

/// A problem, and the optimizer on it.
struct Training {
    problem: Problem,
    params: ParamStore,
    optimizer: Optimizer,
    gradients: Gradients,
    step: u64,
}

impl Training {
    fn new(
        problem: Problem,
        rank: usize,
        low_rank: DlraSpec,
        ranks: RankPlan,
        max_steps: u64,
    ) -> Self {
        let start = random(problem.rows, problem.columns, "start", 0);
        let point = LowRank::from_dense(&tensor(&start), rank).expect("rank fits");
        Self::from(problem, point, low_rank, ranks, max_steps)
    }

    fn from(
        problem: Problem,
        point: LowRank,
        low_rank: DlraSpec,
        ranks: RankPlan,
        max_steps: u64,
    ) -> Self {
        let offset = tensor(&(0.1 * random(Problem::OUTPUTS, 1, "offset", 0)));
        let parameter =
            |name: &str, role, weight| Parameter { name: name.into(), role, weight, trained: true };
        let params = ParamStore::new(vec![
            parameter(
                "weight",
                Role::Matrix(Place { layer: 0, target: Target::UP }),
                Weight::LowRank(point),
            ),
            parameter("offset", Role::Bias, Weight::Dense(offset)),
        ])
        .expect("two names");
        let dense = AdamwSpec { learning_rate: 0.01, weight_decay: 0.0, ..AdamwSpec::default() };
        let settings = OptimizerSettings {
            rules: OptimizerPlan {
                dense: DenseOptimizerSpec::Adamw(dense),
                matrices: None,
                low_rank: Some(LowRankOptimizerSpec::Dlra(low_rank)),
            },
            ranks,
            schedule: Schedule::new(
                ScheduleSpec::Constant(ConstantScheduleSpec { warmup_steps: Count(0) }),
                max_steps,
            ),
            grad_clip: 0.0,
            execution: Execution::default(),
        };
        let optimizer = Optimizer::new(settings, &params).expect("an optimizer");
        let gradients = Gradients::new(params.slot_count());
        Self { problem, params, optimizer, gradients, step: 0 }
    }

    fn try_step(&mut self, broken: Option<u64>) -> Result<u64> {
        let mut oracle =
            Oracle { problem: &self.problem, step: self.step + 1, evaluations: 0, broken };
        self.optimizer.step(&mut self.params, &mut oracle, &mut self.gradients, self.step + 1)?;
        self.step += 1;
        Ok(oracle.evaluations)
    }

    fn step(&mut self) -> u64 {
        self.try_step(None).expect("a step")
    }

    fn point(&self) -> &LowRank {
        let Weight::LowRank(point) = &self.params.get(WEIGHT).weight else {
            panic!("the weight is low-rank")
        };
        point
    }

    fn weight(&self) -> Mat<f64> {
        dense(&self.point().to_dense().expect("dense"))
    }

    fn offset(&self) -> Mat<f64> {
        dense(self.params.dense(OFFSET).expect("dense"))
    }
}

fn settings(integrator: Integrator, momentum: Momentum, coefficient_steps: u64) -> DlraSpec {
    DlraSpec {
        integrator,
        momentum,
        coefficient_steps: Some(Count(coefficient_steps)),
        retraction: RetractionSpec::Svd,
        learning_rate: LEARNING_RATE,
        weight_decay: DECAY,
        reorthonormalize_every: Count(1_000_000),
        ..DlraSpec::default()
    }
}

/// The textbook: full matrices and bases, nothing else.
struct Textbook {
    w: Mat<f64>,
    u: Mat<f64>,
    v: Mat<f64>,
    /// First moment, as a full matrix.
    z: Mat<f64>,
    /// Second moments of M, P and Q with what each entry has gathered, in the bases above.
    second: [Mat<f64>; 3],
    gathered: [Mat<f64>; 3],
    offset: Mat<f64>,
    offset_moments: [Mat<f64>; 2],
}

impl Textbook {
    fn new(training: &Training) -> Self {
        let w = training.weight();
        let (m, n, r) = (w.nrows(), w.ncols(), training.point().rank());
        let (u, _, v) = truncated_svd(&w, r);
        let blocks = || [Mat::zeros(r, r), Mat::zeros(m, r), Mat::zeros(n, r)];
        let offset = training.offset();
        let zero = Mat::zeros(offset.nrows(), 1);
        Self {
            z: Mat::zeros(m, n),
            w,
            u,
            v,
            second: blocks(),
            gathered: blocks(),
            offset,
            offset_moments: [zero.clone(), zero],
        }
    }

    /// P_W(Z) = U Uᵀ Z + Z V Vᵀ − U Uᵀ Z V Vᵀ.
    fn project(&self, z: &Mat<f64>) -> Mat<f64> {
        let left = &self.u * (self.u.transpose() * z);
        let right = (z * &self.v) * self.v.transpose();
        let both = (&left * &self.v) * self.v.transpose();
        left + right - both
    }

    /// M, P and Q of a tangent vector.
    fn coordinates(&self, z: &Mat<f64>) -> [Mat<f64>; 3] {
        let m = self.u.transpose() * z * &self.v;
        let p = z * &self.v - &self.u * &m;
        let q = z.transpose() * &self.u - &self.v * m.transpose();
        [m, p, q]
    }

    /// [U | Q_P] and [V | Q_Q] with the Q factors of D's parts outside of U and V.
    fn augmented(&self, d: &Mat<f64>) -> (Mat<f64>, Mat<f64>) {
        let [_, p, q] = self.coordinates(d);
        let new = |basis: &Mat<f64>, part: Mat<f64>| {
            let count = part.ncols().min(basis.nrows() - basis.ncols());
            beside(basis, &part.subcols(0, count).to_owned().qr().compute_thin_Q())
        };
        (new(&self.u, p), new(&self.v, q))
    }

    /// AdamW's step of the offset by the first gradient.
    fn step_offset(&mut self, gradient: &Mat<f64>, step: u64) {
        let rule = AdamwSpec::default();
        let [m, v] = &self.offset_moments;
        let (m, v) = (
            rule.beta1 * m + (1.0 - rule.beta1) * gradient,
            rule.beta2 * v + (1.0 - rule.beta2) * square(gradient),
        );
        let (c1, c2) = (1.0 - rule.beta1.powi(step as i32), 1.0 - rule.beta2.powi(step as i32));
        self.offset -= 0.01 * quotient(&((1.0 / c1) * &m), &((1.0 / c2) * &v), rule.epsilon);
        self.offset_moments = [m, v];
    }

    /// The first gradient's part: moments, and the direction that augments.
    fn take_in(&mut self, gradient: &Mat<f64>, dlra: &DlraSpec, step: u64) -> (Mat<f64>, Mat<f64>) {
        let weight = if dlra.momentum == Momentum::HeavyBall { 1.0 } else { 1.0 - dlra.beta1 };
        let tangent = self.project(gradient);
        let m = dlra.beta1 * self.project(&self.z) + weight * &tangent;
        let mean = if dlra.nesterov { dlra.beta1 * &m + weight * &tangent } else { m.clone() };
        if dlra.momentum != Momentum::Adam {
            return (m, mean);
        }
        let (first, g) = (self.coordinates(&mean), self.coordinates(&tangent));
        let correction = 1.0 - dlra.beta1.powi(step as i32 + i32::from(dlra.nesterov));
        let mut d = [0, 1, 2].map(|block| {
            self.second[block] =
                dlra.beta2 * &self.second[block] + (1.0 - dlra.beta2) * square(&g[block]);
            self.gathered[block] =
                map(&self.gathered[block], |c| dlra.beta2 * c + 1.0 - dlra.beta2);
            let v = Mat::from_fn(first[block].nrows(), first[block].ncols(), |i, j| {
                self.second[block][(i, j)] / self.gathered[block][(i, j)]
            });
            quotient(&((1.0 / correction) * &first[block]), &v, dlra.epsilon)
        });
        d[1] = &d[1] - &self.u * (self.u.transpose() * &d[1]);
        d[2] = &d[2] - &self.v * (self.v.transpose() * &d[2]);
        (
            m,
            &self.u * &d[0] * self.v.transpose()
                + &d[1] * self.v.transpose()
                + &self.u * d[2].transpose(),
        )
    }

    /// Into the bases of the truncated matrix.
    fn settle(&mut self, w: &Mat<f64>, rank: usize) {
        let (u, _, v) = truncated_svd(w, rank);
        let (ru, rv) = (square(&(u.transpose() * &self.u)), square(&(self.v.transpose() * &v)));
        let outside =
            |x: &Mat<f64>, basis: &Mat<f64>| square(&(x - basis * (basis.transpose() * x)));
        let (enter_u, leave_u) = (outside(&u, &self.u), outside(&self.u, &u));
        let (enter_v, leave_v) = (outside(&v, &self.v), outside(&self.v, &v));
        let keep = |x: Mat<f64>, enter: &Mat<f64>| {
            Mat::from_fn(x.nrows(), x.ncols(), |i, j| {
                x[(i, j)] * (1.0 - (0..enter.ncols()).map(|k| enter[(i, k)]).sum::<f64>())
            })
        };
        // The gathered weights of P and Q are kept as means over the rows.
        let mean = |x: Mat<f64>| {
            Mat::from_fn(x.nrows(), x.ncols(), |_, j| {
                x.col(j).iter().sum::<f64>() / x.nrows() as f64
            })
        };
        for (moments, one_row) in [(&mut self.second, false), (&mut self.gathered, true)] {
            let [m, p, q] = &*moments;
            let right = m * &rv + q.transpose() * &enter_v;
            let left = &ru * m + enter_u.transpose() * p;
            let new_m = &ru * &right + enter_u.transpose() * p * &rv;
            let new_p = &leave_u * &right + keep(p * &rv, &enter_u);
            let new_q = &leave_v * left.transpose() + keep(q * ru.transpose(), &enter_v);
            *moments =
                if one_row { [new_m, mean(new_p), mean(new_q)] } else { [new_m, new_p, new_q] };
        }
        (self.w, self.u, self.v) = (truncated(w, rank), u, v);
    }

    fn augmented_bug(&mut self, problem: &Problem, dlra: &DlraSpec, step: u64) {
        let rank = self.u.ncols();
        let carried = self.project(&self.z);
        let (old_second, old_gathered) = (self.second.clone(), self.gathered.clone());
        let (_, gradient, by_offset) = problem.gradients(&self.w, &self.offset, step);
        let (m, d) = self.take_in(&gradient, dlra, step);
        let (u, v) = self.augmented(&d);
        let mut s = u.transpose() * &self.w * &v;
        let mut z = u.transpose() * &carried * &v;
        let (q_p, q_q) = (
            square(&u.subcols(rank, u.ncols() - rank).to_owned()),
            square(&v.subcols(rank, v.ncols() - rank).to_owned()),
        );
        let into = |[m, p, q]: &[Mat<f64>; 3]| {
            let (right, below) = (q.transpose() * &q_q, q_p.transpose() * p);
            Mat::from_fn(u.ncols(), v.ncols(), |i, j| match (i < rank, j < rank) {
                (true, true) => m[(i, j)],
                (true, false) => right[(i, j - rank)],
                (false, true) => below[(i - rank, j)],
                (false, false) => 0.0,
            })
        };
        let (mut second, mut gathered) = (into(&old_second), into(&old_gathered));
        let weight = if dlra.momentum == Momentum::HeavyBall { 1.0 } else { 1.0 - dlra.beta1 };
        for taken in 1..=dlra.coefficient_steps() {
            let (_, gradient, _) =
                problem.gradients(&(&u * &s * v.transpose()), &self.offset, step);
            let g = u.transpose() * &gradient * &v;
            z = dlra.beta1 * &z + weight * &g;
            let mean = if dlra.nesterov { dlra.beta1 * &z + weight * &g } else { z.clone() };
            let direction = match dlra.momentum {
                Momentum::Spectral => {
                    let (a, _, b) = truncated_svd(&mean, mean.nrows().min(mean.ncols()));
                    0.2 * (self.w.nrows().max(self.w.ncols()) as f64).sqrt() * (a * b.transpose())
                }
                Momentum::Adam => {
                    second = dlra.beta2 * &second + (1.0 - dlra.beta2) * square(&g);
                    gathered = map(&gathered, |c| dlra.beta2 * c + 1.0 - dlra.beta2);
                    let decays =
                        (step - 1) * dlra.coefficient_steps() + taken + u64::from(dlra.nesterov);
                    let v = Mat::from_fn(g.nrows(), g.ncols(), |i, j| {
                        second[(i, j)] / gathered[(i, j)]
                    });
                    quotient(
                        &((1.0 / (1.0 - dlra.beta1.powi(decays as i32))) * &mean),
                        &v,
                        dlra.epsilon,
                    )
                }
                Momentum::HeavyBall => mean,
                other => panic!("there is no textbook of {other:?} here"),
            };
            s = (1.0 - LEARNING_RATE * DECAY) * &s - LEARNING_RATE * direction;
        }
        self.z = &m + &u * (&z - u.transpose() * &m * &v) * v.transpose();
        self.settle(&(&u * &s * v.transpose()), rank);
        self.step_offset(&by_offset, step);
    }
}

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
    let hyper = DlraStep { settings: dlra, learning_rate: 0.3, step: 1, rank: RankDecision::Keep };
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

/// Ranks follow the policy under every integrator and momentum, and the state follows the ranks.
#[test]
fn ranks_follow_the_policy() {
    let schedule = RankPlan::Tolerance(TolerancePlan {
        cycle: RankCyclePlan { every: 8, settle: 4, grow_by: 2, start: 2, freeze: 12 },
        norm: RankNorm::Frobenius,
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
    let hyper = DlraStep { settings: &dlra, learning_rate: 0.1, step: 1, rank: RankDecision::Keep };
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
