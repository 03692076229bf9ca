//! The DLRA step against a dense f64 textbook version: form W and G, project, step, truncated SVD,
//! project the momentum.

mod input_moments;
mod matrix_moments;
#[path = "../support/mod.rs"]
mod support;

use candle_core::{DType, Device, Tensor};
use faer::Mat;
use lrpt::lowrank::{LowRank, Tangent};
use lrpt::optim::{DlraState, DlraStep, DlraUpdate, Leaves, MuonState, RankDecision, Scaled};
use lrpt::rng;
use lrpt::spec::{
    Beta1ScheduleSpec, Count, DlraSpec, Momentum, MuonSpec, RetractionSpec, SecondMomentTransport,
};
use support::textbook::{self, dense, tensor, truncated_svd};

const ROWS: usize = 14;
const COLUMNS: usize = 11;
const RANK: usize = 3;
const LEARNING_RATE: f64 = 0.05;
const DECAY: f64 = 0.1;

fn random(purpose: &str, index: u64) -> Mat<f64> {
    textbook::random(ROWS, COLUMNS, purpose, index)
}

/// A point as the textbook sees it: bases and the full matrix.
struct Textbook {
    w: Mat<f64>,
    u: Mat<f64>,
    v: Mat<f64>,
}

impl Textbook {
    fn new(w: Mat<f64>, rank: usize) -> Self {
        let (u, sigma, v) = truncated_svd(&w, rank);
        let s = Mat::from_fn(rank, rank, |i, j| if i == j { sigma[i] } else { 0.0 });
        Self { w: &u * s * v.transpose(), u, v }
    }

    /// P_W(Z) = U Uᵀ Z + Z V Vᵀ − U Uᵀ Z V Vᵀ.
    fn project(&self, z: &Mat<f64>) -> Mat<f64> {
        let left = &self.u * (self.u.transpose() * z);
        let right = (z * &self.v) * self.v.transpose();
        let both = (&left * &self.v) * self.v.transpose();
        left + right - both
    }
}

fn settings(momentum: Momentum) -> DlraSpec {
    DlraSpec {
        momentum,
        retraction: RetractionSpec::Svd,
        learning_rate: LEARNING_RATE,
        weight_decay: DECAY,
        reorthonormalize_every: Count(1_000_000),
        ..DlraSpec::default()
    }
}

fn start() -> LowRank {
    LowRank::random(
        ROWS,
        COLUMNS,
        RANK,
        3.0,
        &mut rng::stream(3, "start", &[]),
        DType::F64,
        &Device::Cpu,
    )
    .expect("valid sizes")
}

/// Runs `steps` steps of ours beside the textbook's `direction` and compares the matrices after
/// each.
fn compare(
    settings: &DlraSpec,
    steps: u64,
    tolerance: f64,
    mut textbook_step: impl FnMut(&Textbook, &Mat<f64>, u64) -> Mat<f64>,
) {
    // Distinct singular values, so that the SVD's bases are unique up to sign.
    let first = dense(&start().to_dense().expect("dense"));
    let mut reference = Textbook::new(&first + 0.3 * random("spread", 0), RANK);
    let mut point = LowRank::from_dense(&tensor(&reference.w), RANK).expect("rank fits");
    let mut state = DlraState::new(&point, settings).expect("state");
    for step in 1..=steps {
        let gradient = random("gradient", step);
        let tangent = Tangent::project(&point, &tensor(&gradient)).expect("projection");
        let hyper = DlraStep {
            settings,
            learning_rate: LEARNING_RATE,
            step,
            rank: RankDecision::Keep,
            of_head: false,
        };
        let update = state.step(&point, Scaled::new(&tangent, 1.0), &hyper).expect("step");
        (point, state) = (update.point, update.state);

        let direction = textbook_step(&reference, &gradient, step);
        let target = (1.0 - LEARNING_RATE * DECAY) * &reference.w - LEARNING_RATE * direction;
        reference = Textbook::new(target, RANK);

        let difference = (dense(&point.to_dense().expect("dense")) - &reference.w).norm_l2();
        let scale = reference.w.norm_l2();
        assert!(
            difference < tolerance * scale,
            "step {step}: difference {difference:e} of {scale}"
        );
    }
}

#[test]
fn heavy_ball_agrees_with_the_dense_textbook() {
    let settings = settings(Momentum::HeavyBall);
    let mut momentum = Mat::<f64>::zeros(ROWS, COLUMNS);
    compare(&settings, 6, 1e-10, |at, gradient, _| {
        // The old momentum is projected on the current tangent space: that is the transport.
        momentum = settings.beta1 * at.project(&momentum) + at.project(gradient);
        momentum.clone()
    });
}

#[test]
fn spectral_agrees_with_the_dense_textbook() {
    let settings = settings(Momentum::Spectral);
    let mut momentum = Mat::<f64>::zeros(ROWS, COLUMNS);
    compare(&settings, 6, 1e-10, |at, gradient, _| {
        momentum =
            settings.beta1 * at.project(&momentum) + (1.0 - settings.beta1) * at.project(gradient);
        let (u, _, v) = truncated_svd(&momentum, 2 * RANK);
        0.2 * (ROWS as f64).sqrt() * (u * v.transpose())
    });
}

#[test]
fn nesterov_looks_ahead_by_one_gradient() {
    let settings = DlraSpec { nesterov: true, ..settings(Momentum::HeavyBall) };
    let mut momentum = Mat::<f64>::zeros(ROWS, COLUMNS);
    compare(&settings, 6, 1e-10, |at, gradient, _| {
        momentum = settings.beta1 * at.project(&momentum) + at.project(gradient);
        settings.beta1 * &momentum + at.project(gradient)
    });
}

/// By Nesterov, too, each step has its own β₁.
#[test]
fn beta1_is_that_of_the_step() {
    let path = Beta1ScheduleSpec { from: 0.2, start: Count(2), until: Count(4) };
    let (nesterov, beta1_schedule) = (true, Some(path));
    let settings = DlraSpec { nesterov, beta1_schedule, ..settings(Momentum::HeavyBall) };
    let betas = [0.2, 0.2, 0.55, 0.9, 0.9];
    let mut momentum = Mat::<f64>::zeros(ROWS, COLUMNS);
    compare(&settings, 5, 1e-10, |at, gradient, step| {
        let beta1 = betas[step as usize - 1];
        momentum = beta1 * at.project(&momentum) + at.project(gradient);
        beta1 * &momentum + at.project(gradient)
    });
}

#[test]
fn adam_agrees_with_the_dense_textbook() {
    let settings = settings(Momentum::Adam);
    let (beta1, beta2) = (settings.beta1, settings.beta2);
    let mut momentum = Mat::<f64>::zeros(ROWS, COLUMNS);
    // v and its gathered weight c for the blocks M, P, Q, each as a matrix of the block's shape,
    // and the bases they belong to.
    let shapes = [(RANK, RANK), (ROWS, RANK), (COLUMNS, RANK)];
    let mut second = shapes.map(|(rows, columns)| Mat::<f64>::zeros(rows, columns));
    let mut weight = shapes.map(|(rows, columns)| Mat::<f64>::zeros(rows, columns));
    let mut bases: Option<(Mat<f64>, Mat<f64>)> = None;
    compare(&settings, 6, 1e-10, |at, gradient, step| {
        let square =
            |x: &Mat<f64>| Mat::from_fn(x.nrows(), x.ncols(), |i, j| x[(i, j)] * x[(i, j)]);
        if let Some((u_old, v_old)) = &bases {
            let (ru, rv) =
                (square(&(at.u.transpose() * u_old)), square(&(v_old.transpose() * &at.v)));
            let outside =
                |x: &Mat<f64>, basis: &Mat<f64>| square(&(x - basis * (basis.transpose() * x)));
            let (enter_u, leave_u) = (outside(&at.u, u_old), outside(u_old, &at.u));
            let (enter_v, leave_v) = (outside(&at.v, v_old), outside(v_old, &at.v));
            let keep = |x: Mat<f64>, enter: &Mat<f64>| {
                Mat::from_fn(x.nrows(), x.ncols(), |i, j| {
                    x[(i, j)] * (1.0 - (0..enter.ncols()).map(|k| enter[(i, k)]).sum::<f64>())
                })
            };
            for (moments, one_row) in [(&mut second, false), (&mut weight, true)] {
                let [m, p, q] = &*moments;
                let right = m * &rv + q.transpose() * &enter_v;
                let left = &ru * m + enter_u.transpose() * p;
                let new_m = &ru * &right + enter_u.transpose() * p * &rv;
                let new_p = &leave_u * &right + keep(p * &rv, &enter_u);
                let new_q = &leave_v * left.transpose() + keep(q * ru.transpose(), &enter_v);
                // The gathered weights of P and Q are kept as means over the rows.
                let mean = |x: Mat<f64>| {
                    Mat::from_fn(x.nrows(), x.ncols(), |_, j| {
                        x.col(j).iter().sum::<f64>() / x.nrows() as f64
                    })
                };
                *moments =
                    if one_row { [new_m, mean(new_p), mean(new_q)] } else { [new_m, new_p, new_q] };
            }
        }
        bases = Some((at.u.clone(), at.v.clone()));
        let coordinates = |z: &Mat<f64>| {
            let m = at.u.transpose() * z * &at.v;
            let p = z * &at.v - &at.u * &m;
            let q = z.transpose() * &at.u - &at.v * m.transpose();
            [m, p, q]
        };
        momentum = beta1 * at.project(&momentum) + (1.0 - beta1) * at.project(gradient);
        let (first, g) = (coordinates(&momentum), coordinates(gradient));
        let mut d = [0, 1, 2].map(|block| {
            second[block] = beta2 * &second[block] + (1.0 - beta2) * square(&g[block]);
            weight[block] = Mat::from_fn(weight[block].nrows(), weight[block].ncols(), |i, j| {
                beta2 * weight[block][(i, j)] + 1.0 - beta2
            });
            Mat::from_fn(first[block].nrows(), first[block].ncols(), |i, j| {
                let mean = first[block][(i, j)] / (1.0 - beta1.powi(step as i32));
                mean / ((second[block][(i, j)] / weight[block][(i, j)]).sqrt() + settings.epsilon)
            })
        });
        d[1] = &d[1] - &at.u * (at.u.transpose() * &d[1]);
        d[2] = &d[2] - &at.v * (at.v.transpose() * &d[2]);
        &at.u * &d[0] * at.v.transpose() + &d[1] * at.v.transpose() + &at.u * d[2].transpose()
    });
}

/// The bias correction by gathered weights is Adam's where the bases do not move.
#[test]
fn gathered_weights_are_adams_correction_in_fixed_bases() {
    let settings = DlraSpec { weight_decay: 0.0, ..settings(Momentum::Adam) };
    let mut point = LowRank::from_dense(&tensor(&random("spread", 1)), RANK).expect("rank fits");
    let mut state = DlraState::new(&point, &settings).expect("state");
    for step in 1..=4 {
        let tangent =
            Tangent::project(&point, &tensor(&random("gradient", step))).expect("projection");
        // A learning rate of zero keeps the point where it is; only the moments move.
        let hyper = DlraStep {
            settings: &settings,
            learning_rate: 0.0,
            step,
            rank: RankDecision::Keep,
            of_head: false,
        };
        let update = state.step(&point, Scaled::new(&tangent, 1.0), &hyper).expect("step");
        (point, state) = (update.point, update.state);
        let named: std::collections::BTreeMap<_, _> =
            state.named_tensors().expect("leaves").into_iter().collect();
        for leaf in ["second_weight.m", "second_weight.p", "second_weight.q"] {
            for x in named[leaf].flatten_all().and_then(|x| x.to_vec1::<f64>()).expect("f64") {
                assert!(
                    (x - (1.0 - settings.beta2.powi(step as i32))).abs() < 1e-12,
                    "{leaf} at step {step}: {x}"
                );
            }
        }
    }
}

/// zᵀz of a step's uneven inputs, as a point sees them.
fn inputs(step: u64, point: &LowRank) -> Tensor {
    let scale = |i: usize| 3f64.powi(-(i as i32));
    let x = textbook::random(40, COLUMNS, "inputs", step);
    let x = Mat::from_fn(40, COLUMNS, |i, j| x[(i, j)] * scale(j));
    let z = x * dense(&point.v);
    tensor(&(z.transpose() * &z))
}

/// An update cut to a rank: the best approximation, with the momentum projected on its tangent
/// space.
fn cut(update: DlraUpdate, rank: usize, settings: &DlraSpec) -> DlraUpdate {
    let before = dense(&update.point.to_dense().unwrap());
    let spectrum = update.spectrum(None).expect("spectrum");
    let update = update.cut(&spectrum, rank, settings).expect("cut");
    let (u, sigma, v) = truncated_svd(&before, rank);
    let best =
        &u * Mat::from_fn(rank, rank, |i, j| if i == j { sigma[i] } else { 0.0 }) * v.transpose();
    let difference = (dense(&update.point.to_dense().unwrap()) - &best).norm_l2();
    assert!(difference < 1e-10, "{difference:e} from the truncated SVD");
    assert_eq!(update.truncation.as_ref().map(|truncation| truncation.rank), Some(rank));
    update
}

/// Growth keeps the old matrix to first order and a cut decides again; the state follows the
/// shapes.
#[test]
fn ranks_grow_and_shrink_with_their_state() {
    for momentum in [
        Momentum::HeavyBall,
        Momentum::Adam,
        Momentum::MatrixAdam,
        Momentum::Spectral,
        Momentum::WhitenedSpectral,
        Momentum::InputWhitenedSpectral,
    ] {
        let settings = DlraSpec { retraction: RetractionSpec::Subspace, ..settings(momentum) };
        let mut point =
            LowRank::from_dense(&tensor(&random("spread", 2)), RANK).expect("rank fits");
        let mut state = DlraState::new(&point, &settings).expect("state");
        let decisions = [
            RankDecision::Keep,
            RankDecision::Set { rank: 5 },
            RankDecision::Keep,
            RankDecision::Keep,
            RankDecision::Keep,
        ];
        for (step, rank) in (1..).zip(decisions) {
            let tangent =
                Tangent::project(&point, &tensor(&random("gradient", step))).expect("projection");
            let hyper =
                DlraStep { settings: &settings, learning_rate: 1e-3, step, rank, of_head: false };
            let measured = state.with_inputs(&inputs(step, &point), &settings).expect("inputs");
            let update = measured.step(&point, Scaled::new(&tangent, 1.0), &hyper).expect("step");
            match rank {
                RankDecision::Keep => assert_eq!(update.point.rank(), point.rank()),
                RankDecision::Set { rank } => assert_eq!(update.point.rank(), rank),
            }
            let moved =
                dense(&(update.point.to_dense().unwrap() - point.to_dense().unwrap()).unwrap())
                    .norm_l2();
            // A quarter above what steps at the rate 1e-3 come to: that of the gathered gradients of
            // norm 10, of signs of every coordinate, of polar factors.
            let bound = match momentum {
                Momentum::HeavyBall => 0.02,
                Momentum::Adam | Momentum::MatrixAdam => 0.0115,
                Momentum::Spectral
                | Momentum::WhitenedSpectral
                | Momentum::InputWhitenedSpectral => 0.003,
            };
            assert!(
                moved < bound && moved > 1e-3,
                "{momentum:?}, step {step}: a small step moves the matrix a little, also when the \
                 rank grows: {moved}, expected at most {bound}"
            );
            let update = if step == 4 { cut(update, 3, &settings) } else { update };
            (point, state) = (update.point, update.state);
            let new_rank = point.rank();
            for (leaf, tensor) in state.named_tensors().expect("leaves") {
                assert_eq!(tensor.dim(1).unwrap(), new_rank, "{leaf}");
            }
        }
    }
}
