//! Baselines on factored and full matrices: partial derivatives of free factors, LORO's exact step
//! and GaLore against dense f64 textbooks.

mod loro;
#[path = "../support/mod.rs"]
mod support;

use candle_core::{DType, Device, Tensor};
use faer::Mat;
use lrpt::linalg;
use lrpt::model::{ModelConfig, build};
use lrpt::ops::{Gradients, Tape};
use lrpt::optim::{
    AdamwStep, BatchLoss, Execution, GaloreState, GradientOracle, Optimizer, OptimizerSettings,
    Scaled, Schedule, loro_exact_step,
};
use lrpt::params::{Factor, ParamStore, Parameter, Place, Role, Weight};
use lrpt::rng;
use lrpt::spec::{
    AdamwSpec, Architecture, ConstantScheduleSpec, Count, DenseOptimizerSpec, FactorForm,
    GaloreSpec, LoroSpec, LowRankOptimizerSpec, ModelPlan, OptimizerPlan, RankPlan, ScheduleSpec,
    Target, WeightForm,
};
use std::collections::BTreeMap;
use support::textbook::{dense, tensor};

fn normal(purpose: &str, index: u64, rows: usize, columns: usize) -> Mat<f64> {
    let numbers = rng::normals(&mut rng::stream(17, purpose, &[index]), rows * columns);
    Mat::from_fn(rows, columns, |i, j| numbers[i * columns + j])
}

fn assert_close(found: &Mat<f64>, expected: &Mat<f64>, tolerance: f64, what: &str) {
    let (difference, scale) = ((found - expected).norm_l2(), expected.norm_l2());
    assert!(difference < tolerance * scale, "{what}: difference {difference:e} of {scale:e}");
}

fn config(form: WeightForm) -> ModelConfig {
    ModelConfig {
        model: ModelPlan {
            n_head: 2,
            n_embd: 8,
            block_size: 6,
            bias: true,
            weights: Architecture::Gpt2
                .targets(false)
                .iter()
                .map(|target| (*target, form))
                .collect(),
            ..ModelPlan::of(Architecture::Gpt2)
        },
        vocab_size: 11,
    }
}

fn matrix(params: &ParamStore, names: &[&str]) -> Tensor {
    let named: BTreeMap<_, _> = params.named_tensors().into_iter().collect();
    let parts: Vec<&Tensor> =
        names.iter().map(|name| &named[&format!("transformer.h.0.{name}")]).collect();
    parts[1..]
        .iter()
        .fold(parts[0].clone(), |product, part| product.matmul(part).expect("fitting shapes"))
}

/// U S Vᵀ, free or on the manifold, and B A start as one W, of the dense initialisation's Frobenius
/// norm.
#[test]
fn every_form_starts_at_the_same_matrix() {
    let start = |form| {
        build(config(form))
            .and_then(|model| model.initialize(5, DType::F64, &Device::Cpu))
            .expect("parameters")
    };
    let three = start(WeightForm::Factored { rank: 3, form: FactorForm::Usv });
    let two = start(WeightForm::Factored { rank: 3, form: FactorForm::Ba });
    for (name, norm) in
        [("mlp.up", 0.02 * (32.0f64 * 8.0).sqrt()), ("attn.o", 0.02 * 8.0 / 2f64.sqrt())]
    {
        let usv =
            matrix(&three, &[&format!("{name}.u"), &format!("{name}.s"), &format!("{name}.vt")]);
        let ba = matrix(&two, &[&format!("{name}.b"), &format!("{name}.a")]);
        assert_close(&dense(&usv), &dense(&ba), 1e-12, name);
        assert!((linalg::frobenius_norm(&usv).expect("norm") / norm - 1.0).abs() < 1e-12);
    }
    let low_rank = start(WeightForm::LowRank { rank: 3 });
    let (_, _, point) = low_rank
        .low_rank()
        .find(|(_, parameter, _)| parameter.name.ends_with("mlp.up"))
        .expect("a low-rank matrix");
    let usv = matrix(&three, &["mlp.up.u", "mlp.up.s", "mlp.up.vt"]);
    assert_close(
        &dense(&usv),
        &dense(&point.to_dense().expect("dense")),
        1e-12,
        "the point on the manifold",
    );
}

/// Every element of U, S and Vᵀ of every matrix: the gradient is the partial derivative, by central
/// differences of the whole network's loss.
#[test]
fn free_factors_get_their_partial_derivatives() {
    const STEP: f64 = 1e-5;
    let model =
        build(config(WeightForm::Factored { rank: 3, form: FactorForm::Usv })).expect("a network");
    // Weights of order one, so that every factor has an influence well above rounding.
    let mut params = model.initialize(5, DType::F64, &Device::Cpu).expect("parameters");
    let matrices: Vec<_> = params
        .iter()
        .filter(|(_, p)| !matches!(p.role, Role::Norm | Role::Bias))
        .map(|(id, p)| (id, p.clone()))
        .collect();
    for (id, parameter) in &matrices {
        let (rows, columns) = params.dense(*id).and_then(Tensor::dims2).expect("a matrix");
        params.set(*id, Weight::Dense(tensor(&normal(&parameter.name, 0, rows, columns))));
    }
    let is_factor = |parameter: &Parameter| matches!(parameter.role, Role::Factor(..));
    let ids: Vec<_> =
        matrices.into_iter().filter(|(_, p)| is_factor(p)).map(|(id, p)| (id, p.name)).collect();
    assert_eq!(ids.len(), 6 * 3);
    let tokens =
        Tensor::new(&[[1u32, 4, 9, 0, 3, 3], [10, 2, 2, 7, 5, 6]], &Device::Cpu).expect("tokens");
    let targets =
        Tensor::new(&[[4u32, 9, 0, 3, 3, 8], [2, 2, 7, 5, 6, 1]], &Device::Cpu).expect("targets");
    let tape = Tape::training();
    let loss = model.loss(&params, &tape, &tokens, &targets, None).expect("forward");
    let mut gradients = Gradients::new(params.slot_count());
    tape.backward(&loss, &mut gradients).expect("backward");
    let (mut differences, mut squares) = (0.0, 0.0);
    for (id, name) in &ids {
        let weight = dense(params.dense(*id).expect("dense"));
        let found = dense(
            gradients.get(ParamStore::slot(*id)).unwrap_or_else(|| panic!("no gradient of {name}")),
        );
        assert_eq!(found.shape(), weight.shape(), "{name}");
        for (i, j) in (0..weight.nrows()).flat_map(|i| (0..weight.ncols()).map(move |j| (i, j))) {
            let mut loss_at = |step: f64| {
                let mut moved = weight.clone();
                moved[(i, j)] += step;
                params.set(*id, Weight::Dense(tensor(&moved)));
                model.loss_sum(&params, &tokens, &targets).expect("loss") / 12.0
            };
            let expected = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP);
            let error = (found[(i, j)] - expected).abs();
            assert!(
                error < 1e-6 * (1.0 + expected.abs()),
                "{name} ({i}, {j}): {} instead of {expected}",
                found[(i, j)]
            );
            (differences, squares) = (differences + error * error, squares + expected * expected);
        }
        params.set(*id, Weight::Dense(tensor(&weight)));
    }
    assert!(
        squares > 1e-2,
        "the factors have next to no influence, the comparison would say nothing: {squares:e}"
    );
    assert!(differences.sqrt() < 1e-6 * squares.sqrt(), "{differences:e} of {squares:e}");
}

/// The leading singular triplets.
fn truncated(w: &Mat<f64>, rank: usize) -> (Mat<f64>, Mat<f64>, Mat<f64>) {
    let svd = w.thin_svd().expect("the SVD converges");
    let sigma =
        Mat::from_fn(rank, rank, |i, j| if i == j { svd.S().column_vector()[i] } else { 0.0 });
    (svd.U().subcols(0, rank).to_owned(), sigma, svd.V().subcols(0, rank).to_owned())
}

/// A textbook Adam that can start anew.
struct Adam {
    first: Mat<f64>,
    second: Mat<f64>,
    steps: i32,
}

impl Adam {
    fn new(like: &Mat<f64>) -> Self {
        Self { first: 0.0 * like, second: 0.0 * like, steps: 0 }
    }

    fn direction(&mut self, gradient: &Mat<f64>, beta1: f64, beta2: f64, epsilon: f64) -> Mat<f64> {
        self.steps += 1;
        self.first = beta1 * &self.first + (1.0 - beta1) * gradient;
        self.second = beta2 * &self.second
            + Mat::from_fn(gradient.nrows(), gradient.ncols(), |i, j| {
                (1.0 - beta2) * gradient[(i, j)].powi(2)
            });
        let (first, second) = (1.0 - beta1.powi(self.steps), 1.0 - beta2.powi(self.steps));
        Mat::from_fn(gradient.nrows(), gradient.ncols(), |i, j| {
            self.first[(i, j)] / first / ((self.second[(i, j)] / second).sqrt() + epsilon)
        })
    }
}
/// Algorithm 2 of GaLore with weight decay: seven steps, the projector renewed at the first, fourth
/// and seventh, on either side.
#[test]
fn galore_agrees_with_the_textbook() {
    let rule = GaloreSpec {
        rank: 2,
        refresh_every: Count(3),
        scale: 0.25,
        learning_rate: 0.1,
        weight_decay: 0.2,
        ..GaloreSpec::default()
    };
    for (rows, columns) in [(9, 6), (6, 9), (7, 7)] {
        let mut w = normal("weight", 0, rows, columns);
        let mut weight = tensor(&w);
        let mut state = GaloreState::new(&weight, rule.rank).expect("state");
        let right = rows >= columns;
        let mut projector = Mat::zeros(0, 0);
        let mut adam = Adam::new(&if right { Mat::zeros(rows, 2) } else { Mat::zeros(2, columns) });
        for step in 1..=7u64 {
            let gradient = normal("galore gradient", step, rows, columns);
            // The gradient arrives as a sum over four micro-batches and is scaled by a quarter.
            let GaloreSpec { learning_rate, beta1, beta2, epsilon, weight_decay, .. } = rule;
            let compute = Execution::default().compute;
            let hyper =
                AdamwStep { learning_rate, beta1, beta2, epsilon, weight_decay, step, compute };
            let (new_weight, new_state) = state
                .step(&weight, Scaled::new(&tensor(&(4.0 * &gradient)), 0.25), &rule, &hyper)
                .expect("a step");
            (weight, state) = (new_weight, new_state);

            if [1, 4, 7].contains(&step) {
                let (u, _, v) = truncated(&gradient, 2);
                projector = if right { v } else { u };
                // The signs of singular vectors are free, and moments stay behind when the
                // projector changes: take ours.
                let ours = dense(&state.projector);
                assert_close(
                    &(&ours * ours.transpose()),
                    &(&projector * projector.transpose()),
                    1e-10,
                    "the projection",
                );
                projector = ours;
            }
            let projected =
                if right { &gradient * &projector } else { projector.transpose() * &gradient };
            let direction = adam.direction(&projected, rule.beta1, rule.beta2, rule.epsilon);
            let back =
                if right { &direction * projector.transpose() } else { &projector * &direction };
            w = (1.0 - 0.1 * 0.2) * &w - 0.1 * 0.25 * back;
            assert_close(&dense(&weight), &w, 1e-11, &format!("{rows} x {columns}, step {step}"));
        }
    }
}
