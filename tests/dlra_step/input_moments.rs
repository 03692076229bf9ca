//! The momentum whitened by second moments of inputs, against the whole matrices.

use super::*;

/// Beside six steps of ours, Z̃ = (1+γ) c Z (C + γcI)^{-1} with n × n matrices, C = V Ĉ Vᵀ + c (I −
/// VVᵀ); Ĉ and its gathered weight travel by the rotations between the textbook's bases.
#[test]
fn is_a_whitening_by_a_whole_matrix_that_v_has_seen() {
    let settings = settings(Momentum::InputWhitenedSpectral);
    let (beta1, beta2, damping) = (settings.beta1, settings.beta2, settings.input_damping);
    let first = dense(&start().to_dense().expect("dense"));
    let mut reference = Textbook::new(&first + 0.3 * random("spread", 0), RANK);
    let mut point = LowRank::from_dense(&tensor(&reference.w), RANK).expect("rank fits");
    let mut state = DlraState::new(&point, &settings).expect("state");
    let mut momentum = Mat::<f64>::zeros(ROWS, COLUMNS);
    let mut gathered: Option<(Mat<f64>, Mat<f64>, Mat<f64>)> = None;
    for step in 1..=6 {
        let gradient = random("gradient", step);
        let tangent = Tangent::project(&point, &tensor(&gradient)).expect("projection");
        let hyper = DlraStep {
            settings: &settings,
            learning_rate: LEARNING_RATE,
            step,
            rank: RankDecision::Keep,
            of_head: false,
        };
        let measured = state.with_inputs(&inputs(step, &point), &settings).expect("inputs");
        let update = measured.step(&point, Scaled::new(&tangent, 1.0), &hyper).expect("step");

        let v = reference.v.clone();
        let seen = LowRank { v: tensor(&v), ..point.clone() };
        let (sum, weight) = match &gathered {
            None => (Mat::zeros(RANK, RANK), Mat::zeros(RANK, RANK)),
            Some((sum, weight, old)) => {
                let rotation = old.transpose() * &v;
                let form = |x: &Mat<f64>| rotation.transpose() * x * &rotation;
                (form(sum), form(weight))
            }
        };
        let sum = beta2 * sum + (1.0 - beta2) * dense(&inputs(step, &seen));
        let weight = beta2 * weight + (1.0 - beta2) * Mat::<f64>::identity(RANK, RANK);
        let whiten = inverse_root(&weight);
        let mean = &whiten * &sum * &whiten;
        let c = (0..RANK).map(|i| mean[(i, i)]).sum::<f64>() / RANK as f64;
        let identity = Mat::<f64>::identity(COLUMNS, COLUMNS);
        let outside = &identity - &v * v.transpose();
        let whole = &v * &mean * v.transpose() + c * outside + damping * c * identity;
        let root = inverse_root(&whole);
        momentum =
            beta1 * reference.project(&momentum) + (1.0 - beta1) * reference.project(&gradient);
        let whitened = (1.0 + damping) * c * &momentum * &root * &root;
        let (u, _, w) = truncated_svd(&whitened, 2 * RANK);
        let direction = 0.2 * (ROWS as f64).sqrt() * (u * w.transpose());
        let target = (1.0 - LEARNING_RATE * DECAY) * &reference.w - LEARNING_RATE * direction;
        reference = Textbook::new(target, RANK);
        gathered = Some((sum, weight, v));
        (point, state) = (update.point, update.state);

        let difference = (dense(&point.to_dense().expect("dense")) - &reference.w).norm_l2();
        assert!(difference < 1e-9 * reference.w.norm_l2(), "step {step}: {difference:e}");
    }
}

/// At full rank, with orthogonal bases, square and with more rows than columns, where V sees all
/// inputs: Newton-Muon's step of the dense matrix.
#[test]
fn factors_of_full_rank_take_the_dense_step() {
    let columns = 9;
    for (rows, nesterov) in [(9, false), (9, true), (14, true)] {
        // Of this retraction is the polar factor by products, which Muon takes.
        let retraction = RetractionSpec::Subspace;
        let settings =
            DlraSpec { nesterov, retraction, ..settings(Momentum::InputWhitenedSpectral) };
        let random =
            |purpose: &str, index| tensor(&textbook::random(rows, columns, purpose, index));
        let rule = MuonSpec {
            beta1: settings.beta1,
            beta2: settings.beta2,
            input_damping: Some(settings.input_damping),
            weight_decay: DECAY,
            nesterov,
            ..MuonSpec::default()
        };
        let mut w = random("full", 0);
        let mut dense_state = MuonState::new(&w, &rule).expect("state");
        let mut point = LowRank::from_dense(&w, columns).expect("rank fits");
        let mut state = DlraState::new(&point, &settings).expect("state");
        for step in 1..=4 {
            let (gradient, x) = (random("full gradient", step), random("inputs", step));
            let gram = x.t().and_then(|t| t.matmul(&x)).expect("xᵀx");
            let seen = point.v.t().and_then(|t| t.matmul(&gram)?.matmul(&point.v)).expect("zᵀz");
            let tangent = Tangent::project(&point, &gradient).expect("projection");
            let hyper = DlraStep {
                settings: &settings,
                learning_rate: LEARNING_RATE,
                step,
                rank: RankDecision::Keep,
                of_head: false,
            };
            let measured = state.with_inputs(&seen, &settings).expect("inputs");
            let update = measured.step(&point, Scaled::new(&tangent, 1.0), &hyper).expect("step");
            (point, state) = (update.point, update.state);

            let measured = dense_state.with_inputs(&gram, rule.beta2).expect("inputs");
            let next = measured.step(&w, Scaled::new(&gradient, 1.0), &rule, LEARNING_RATE);
            (w, dense_state) = next.expect("step");
            let difference = (dense(&point.to_dense().expect("dense")) - dense(&w)).norm_l2();
            assert!(
                difference < 1e-10 * dense(&w).norm_l2(),
                "{rows} rows, step {step}: {difference:e}"
            );
        }
    }
}

/// Inputs without a preferred direction, of whatever size, leave the step of `spectral`; uneven
/// ones do not.
#[test]
fn even_inputs_change_nothing() {
    let point = LowRank::from_dense(&tensor(&random("spread", 5)), RANK).expect("rank fits");
    let tangent = Tangent::project(&point, &tensor(&random("gradient", 1))).expect("projection");
    let moved = |momentum, inputs: &Tensor| {
        let settings = settings(momentum);
        let hyper = DlraStep {
            settings: &settings,
            learning_rate: LEARNING_RATE,
            step: 1,
            rank: RankDecision::Keep,
            of_head: false,
        };
        let state = DlraState::new(&point, &settings).expect("state");
        let state = state.with_inputs(inputs, &settings).expect("inputs");
        let update = state.step(&point, Scaled::new(&tangent, 1.0), &hyper).expect("step");
        dense(&update.point.to_dense().expect("dense"))
    };
    let identity = Tensor::eye(RANK, DType::F64, &Device::Cpu).expect("I");
    let spectral = moved(Momentum::Spectral, &identity);
    for size in [1e-3, 1.0, 500.0] {
        let even = (&identity * size).expect("even inputs");
        let difference = (moved(Momentum::InputWhitenedSpectral, &even) - &spectral).norm_l2();
        assert!(difference < 1e-12 * spectral.norm_l2(), "{size}: {difference:e}");
    }
    let uneven = moved(Momentum::InputWhitenedSpectral, &inputs(1, &point));
    assert!((uneven - &spectral).norm_l2() > 1e-3 * spectral.norm_l2());
}

/// A^{-½} of a symmetric positive definite matrix by its SVD.
fn inverse_root(a: &Mat<f64>) -> Mat<f64> {
    let (u, sigma, _) = truncated_svd(a, a.nrows());
    let scaled = Mat::from_fn(a.nrows(), a.nrows(), |i, j| u[(i, j)] / sigma[j].sqrt());
    scaled * u.transpose()
}
