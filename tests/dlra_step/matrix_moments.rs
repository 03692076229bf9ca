//! Momenta whose second moments are r × r matrices, against a textbook of their own.

use super::*;

/// (A + ε (tr A / r) I)^p by the SVD of a symmetric positive semidefinite matrix.
fn power(a: &Mat<f64>, relative_epsilon: f64, exponent: f64) -> Mat<f64> {
    let rank = a.nrows();
    let (u, sigma, _) = truncated_svd(a, rank);
    let shift = relative_epsilon * sigma.iter().sum::<f64>() / rank as f64;
    let scaled = Mat::from_fn(rank, rank, |i, j| u[(i, j)] * (sigma[j] + shift).powf(exponent));
    scaled * u.transpose()
}

/// Second moments of K = G V and L = Gᵀ U, carried by the rotations between the textbook's bases;
/// while no direction is lost between steps the gathered weight is C = RᵀCR + ..., which the
/// textbook carries, too.
struct TextbookMoments {
    second: [Mat<f64>; 2],
    weight: [Mat<f64>; 2],
    bases: Option<(Mat<f64>, Mat<f64>)>,
}

impl TextbookMoments {
    fn new() -> Self {
        let zeros = || [0, 1].map(|_| Mat::<f64>::zeros(RANK, RANK));
        Self { second: zeros(), weight: zeros(), bases: None }
    }

    /// Takes in a gradient; the means of K's and L's second moments to this power.
    fn powers(
        &mut self,
        at: &Textbook,
        gradient: &Mat<f64>,
        beta2: f64,
        exponent: f64,
    ) -> [Mat<f64>; 2] {
        if let Some((u_old, v_old)) = &self.bases {
            let rotations = [v_old.transpose() * &at.v, u_old.transpose() * &at.u];
            for (side, rotation) in rotations.iter().enumerate() {
                self.second[side] = rotation.transpose() * &self.second[side] * rotation;
                self.weight[side] = rotation.transpose() * &self.weight[side] * rotation;
            }
        }
        self.bases = Some((at.u.clone(), at.v.clone()));
        let (k, l) = (gradient * &at.v, gradient.transpose() * &at.u);
        let forms = [
            (1.0 / ROWS as f64) * (k.transpose() * &k),
            (1.0 / COLUMNS as f64) * (l.transpose() * &l),
        ];
        [0, 1].map(|side| {
            self.second[side] = beta2 * &self.second[side] + (1.0 - beta2) * &forms[side];
            self.weight[side] =
                beta2 * &self.weight[side] + (1.0 - beta2) * Mat::<f64>::identity(RANK, RANK);
            let whiten = power(&self.weight[side], 0.0, -0.5);
            power(&(&whiten * &self.second[side] * &whiten), 1e-3, exponent)
        })
    }
}

/// The coordinates M, P and Q of the tangent part of a matrix.
fn coordinates(at: &Textbook, z: &Mat<f64>) -> [Mat<f64>; 3] {
    let m = at.u.transpose() * z * &at.v;
    let p = z * &at.v - &at.u * &m;
    let q = z.transpose() * &at.u - &at.v * m.transpose();
    [m, p, q]
}

/// The rule of the PyTorch reference; where β₁ changes, its weight is the product of all so far.
#[test]
fn matrix_adam_agrees_with_the_dense_textbook() {
    let path = Beta1ScheduleSpec { from: 0.5, start: Count(1), until: Count(5) };
    for (beta1_schedule, betas) in [(None, [0.9; 6]), (Some(path), [0.5, 0.6, 0.7, 0.8, 0.9, 0.9])]
    {
        let settings = DlraSpec { beta1_schedule, ..settings(Momentum::MatrixAdam) };
        matrix_adam_agrees(&settings, betas);
    }
}

fn matrix_adam_agrees(settings: &DlraSpec, betas: [f64; 6]) {
    let beta2 = settings.beta2;
    let mut momentum = Mat::<f64>::zeros(ROWS, COLUMNS);
    let mut moments = TextbookMoments::new();
    compare(settings, 6, 1e-9, |at, gradient, step| {
        let roots = moments.powers(at, gradient, beta2, -0.5);
        let so_far = &betas[..step as usize];
        let beta1 = so_far[so_far.len() - 1];
        momentum = beta1 * at.project(&momentum) + (1.0 - beta1) * at.project(gradient);
        let mean = (1.0 / (1.0 - so_far.iter().product::<f64>())) * &momentum;
        let [m, p, q] = coordinates(at, &mean);
        let d_m = 0.5 * (&m * &roots[0] + &roots[1] * &m);
        &at.u * d_m * at.v.transpose()
            + p * &roots[0] * at.v.transpose()
            + &at.u * (q * &roots[1]).transpose()
    });
}

/// The whitened moment is rescaled to the norm before, which the polar factor does not see.
#[test]
fn whitened_spectral_agrees_with_the_dense_textbook() {
    let settings = settings(Momentum::WhitenedSpectral);
    let (beta1, beta2) = (settings.beta1, settings.beta2);
    let mut momentum = Mat::<f64>::zeros(ROWS, COLUMNS);
    let mut moments = TextbookMoments::new();
    compare(&settings, 6, 1e-9, |at, gradient, _| {
        let roots = moments.powers(at, gradient, beta2, -0.25);
        momentum = beta1 * at.project(&momentum) + (1.0 - beta1) * at.project(gradient);
        let [m, p, q] = coordinates(at, &momentum);
        let whitened = &at.u * (&roots[1] * m * &roots[0]) * at.v.transpose()
            + p * &roots[0] * at.v.transpose()
            + &at.u * (q * &roots[1]).transpose();
        let whitened = (momentum.norm_l2() / whitened.norm_l2()) * whitened;
        let (u, _, v) = truncated_svd(&whitened, 2 * RANK);
        0.2 * (ROWS as f64).sqrt() * (u * v.transpose())
    });
}

/// Another choice of the same point's bases moves matrix Adam's matrix the same way.
#[test]
fn matrix_adam_does_not_depend_on_the_bases() {
    let settings = settings(Momentum::MatrixAdam);
    let first = LowRank::from_dense(&tensor(&random("spread", 3)), RANK).expect("rank fits");
    let rotation = |index: u64| {
        let square = random("rotation", index);
        let (u, _, v) = truncated_svd(&square.subrows(0, RANK).subcols(0, RANK).to_owned(), RANK);
        tensor(&(u * v.transpose()))
    };
    let mut ends = Vec::new();
    for point in [first.clone(), first.in_other_bases(&rotation(0), &rotation(1)).expect("rotated")]
    {
        let (mut point, mut state) =
            (point.clone(), DlraState::new(&point, &settings).expect("state"));
        for step in 1..=4 {
            let tangent =
                Tangent::project(&point, &tensor(&random("gradient", step))).expect("projection");
            let hyper = DlraStep {
                settings: &settings,
                learning_rate: 0.05,
                step,
                rank: RankDecision::Keep,
                of_head: false,
            };
            let update = state.step(&point, Scaled::new(&tangent, 1.0), &hyper).expect("step");
            (point, state) = (update.point, update.state);
        }
        ends.push(dense(&point.to_dense().expect("dense")));
    }
    let difference = (&ends[0] - &ends[1]).norm_l2();
    assert!(difference < 1e-10 * ends[0].norm_l2(), "{difference:e}");
}

/// The linear rule loses second moment where signs cancel, the variance rule does not: a rotation
/// by 45° of equal variances keeps them.
#[test]
fn linear_transport_of_roots_underestimates_variances() {
    let sums = [SecondMomentTransport::Variance, SecondMomentTransport::Linear].map(
        |second_moment_transport| {
            let settings =
                DlraSpec { second_moment_transport, weight_decay: 0.0, ..settings(Momentum::Adam) };
            let mut point =
                LowRank::from_dense(&tensor(&random("spread", 4)), RANK).expect("rank fits");
            let mut state = DlraState::new(&point, &settings).expect("state");
            for step in 1..=6 {
                let tangent = Tangent::project(&point, &tensor(&random("gradient", step)))
                    .expect("projection");
                let hyper = DlraStep {
                    settings: &settings,
                    learning_rate: 0.3,
                    step,
                    rank: RankDecision::Keep,
                    of_head: false,
                };
                let update = state.step(&point, Scaled::new(&tangent, 1.0), &hyper).expect("step");
                (point, state) = (update.point, update.state);
            }
            let named: std::collections::BTreeMap<_, _> =
                state.named_tensors().expect("leaves").into_iter().collect();
            named["second.p"].min_all().and_then(|x| x.to_scalar::<f64>()).expect("f64")
        },
    );
    assert!(
        sums[1] < 0.1 * sums[0],
        "smallest second moment: variances {:e}, roots {:e}",
        sums[0],
        sums[1]
    );
}
