//! Baselines on factored and full matrices: partial derivatives of free factors, LORO's exact step
//! and GaLore against dense f64 textbooks.

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
            weights: Architecture::Gpt2.targets().iter().map(|target| (*target, form)).collect(),
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

/// With gradients of the factors, D_B = G Aᵀ and D_A = Bᵀ G, the exact step is W − η P_W(G)
/// truncated to rank r, for unbalanced factors too; the new factors are balanced.
#[test]
fn exact_steps_of_loro_follow_the_projected_gradient_of_the_product() {
    for (rows, columns, rank) in [(14, 11, 3), (9, 17, 4), (6, 10, 5)] {
        let (b, a) = (10.0 * normal("b", 0, rows, rank), 0.05 * normal("a", 0, rank, columns));
        let (gradient, eta) = (normal("gradient", 0, rows, columns), 0.07);
        let (direction_b, direction_a) = (&gradient * a.transpose(), b.transpose() * &gradient);
        let (new_b, new_a) = loro_exact_step(
            &tensor(&b),
            &tensor(&a),
            &tensor(&direction_b),
            &tensor(&direction_a),
            eta,
        )
        .expect("a step");
        let (new_b, new_a) = (dense(&new_b), dense(&new_a));

        let w = &b * &a;
        let (u, _, v) = truncated(&w, rank);
        let (left, right) = (&u * (u.transpose() * &gradient), (&gradient * &v) * v.transpose());
        let both = (&left * &v) * v.transpose();
        let (u, sigma, v) = truncated(&(&w - eta * (left + right - both)), rank);
        assert_close(&(&new_b * &new_a), &(&u * &sigma * v.transpose()), 1e-10, "the product");
        assert_close(&(new_b.transpose() * &new_b), &sigma, 1e-10, "BᵀB = Σ");
        assert_close(&(&new_a * new_a.transpose()), &sigma, 1e-10, "AAᵀ = Σ");
    }
}

/// Algorithm 1's branch for t mod K = 0, line by line with its own names, where the directions are
/// no gradients of one matrix.
fn algorithm_1(b: &Mat<f64>, a: &Mat<f64>, d_b: &Mat<f64>, d_a: &Mat<f64>, eta: f64) -> Mat<f64> {
    let rank = b.ncols();
    let qr = |x: &Mat<f64>| {
        let qr = x.qr();
        (qr.compute_thin_Q(), qr.thin_R().to_owned())
    };
    let inverse = |x: &Mat<f64>| {
        let (u, sigma, v) = truncated(x, rank);
        Mat::from_fn(rank, rank, |i, j| v[(i, j)] / sigma[(j, j)]) * u.transpose()
    };
    let ((q_b, r_b), (q_a, r_a)) = (qr(b), qr(&a.transpose().to_owned()));
    let (z_b, z_a) = (d_b * inverse(&r_a), d_a.transpose() * inverse(&r_b));
    let (q_b_bar, r_b_bar) = qr(&(&z_b - &q_b * (q_b.transpose() * &z_b)));
    let (q_a_bar, r_a_bar) = qr(&(&z_a - &q_a * (q_a.transpose() * &z_a)));
    let s = &r_b * r_a.transpose() - eta * (inverse(&r_b).transpose() * d_a * &q_a);
    let middle = Mat::from_fn(2 * rank, 2 * rank, |i, j| match (i < rank, j < rank) {
        (true, true) => s[(i, j)],
        (true, false) => -eta * r_a_bar[(j - rank, i)],
        (false, true) => -eta * r_b_bar[(i - rank, j)],
        (false, false) => 0.0,
    });
    let (u, sigma, v) = truncated(&middle, rank);
    let beside = |left: &Mat<f64>, right: &Mat<f64>| {
        Mat::from_fn(left.nrows(), 2 * rank, |i, j| {
            if j < rank { left[(i, j)] } else { right[(i, j - rank)] }
        })
    };
    beside(&q_b, &q_b_bar) * u * sigma * v.transpose() * beside(&q_a, &q_a_bar).transpose()
}

/// Hands out given gradients of dense parameters.
struct Given(Vec<Tensor>);

impl GradientOracle for Given {
    fn evaluate(
        &mut self,
        params: &ParamStore,
        gradients: &mut Gradients,
    ) -> anyhow::Result<BatchLoss> {
        for ((id, _), gradient) in params.iter().zip(&self.0) {
            // d/dw Σ g ∘ w = g.
            let tape = Tape::training();
            let value = tape.parameter(ParamStore::slot(id), params.dense(id)?);
            let (to, gradient) = (value.source(), gradient.clone());
            let sum = Tensor::new(0f64, &Device::Cpu)?;
            let loss = tape.record(&[to], sum, move |_, flow| flow.add(to, gradient));
            tape.backward(&loss, gradients)?;
        }
        Ok(BatchLoss { loss: 0.0, micro_batches: 1 })
    }
}

fn settings(loro: LoroSpec, dense: AdamwSpec) -> OptimizerSettings {
    OptimizerSettings {
        rules: OptimizerPlan {
            dense: DenseOptimizerSpec::Adamw(dense),
            matrices: None,
            low_rank: Some(LowRankOptimizerSpec::Loro(loro)),
        },
        ranks: RankPlan::Fixed,
        schedule: Schedule::new(
            ScheduleSpec::Constant(ConstantScheduleSpec { warmup_steps: Count(0) }),
            1000,
        ),
        grad_clip: 0.0,
        execution: Execution::default(),
    }
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

/// Nine steps of the whole rule through the optimizer, an embedding beside the pair: approximate
/// steps with η r/d, an exact one at 4 and 8, all moments anew after each, and a warm-up of two
/// steps.
#[test]
fn loro_agrees_with_the_textbook() {
    const ROWS: usize = 12;
    const COLUMNS: usize = 9;
    const RANK: usize = 3;
    let rule = LoroSpec {
        exact_every: Count(4),
        restart_warmup_steps: Count(2),
        learning_rate: 0.03,
        weight_decay: 0.1,
        ..LoroSpec::default()
    };
    let dense_rule = AdamwSpec { learning_rate: 0.02, weight_decay: 0.0, ..AdamwSpec::default() };
    let place = Place { layer: 0, target: Target::Q };
    let mut matrices =
        [normal("b", 1, ROWS, RANK), normal("a", 1, RANK, COLUMNS), normal("table", 1, 5, 4)];
    let roles = [
        ("q.b", Role::Factor(place, Factor::B)),
        ("q.a", Role::Factor(place, Factor::A)),
        ("table", Role::Embedding),
    ];
    let parameter = |((name, role), matrix): ((&str, Role), &Mat<f64>)| Parameter {
        name: name.into(),
        role,
        weight: Weight::Dense(tensor(matrix)),
        trained: true,
    };
    let mut params = ParamStore::new(roles.into_iter().zip(&matrices).map(parameter).collect())
        .expect("names differ");
    let mut optimizer =
        Optimizer::new(settings(rule.clone(), dense_rule.clone()), &params).expect("state");
    let mut slots = Gradients::new(params.slot_count());
    let mut adams = [0, 1, 2].map(|index: usize| Adam::new(&matrices[index]));
    for step in 1..=9u64 {
        let gradients = [0, 1, 2].map(|index: usize| {
            let (rows, columns) = matrices[index].shape();
            normal("loro gradient", 10 * step + index as u64, rows, columns)
        });
        let mut oracle = Given(gradients.iter().map(tensor).collect());
        let report = optimizer.step(&mut params, &mut oracle, &mut slots, step).expect("a step");

        let warmup = [1.0, 1.0, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 0.0][step as usize - 1];
        assert_eq!(report.schedule_factor, warmup);
        let directions = [0, 1, 2].map(|index: usize| {
            adams[index].direction(&gradients[index], rule.beta1, rule.beta2, rule.epsilon)
        });
        matrices[2] -= dense_rule.learning_rate * warmup * &directions[2];
        assert_close(
            &dense(params.dense(lrpt::params::ParamId(2)).expect("dense")),
            &matrices[2],
            1e-12,
            "the embedding",
        );
        let [found_b, found_a] =
            [0, 1].map(|index| dense(params.dense(lrpt::params::ParamId(index)).expect("dense")));
        if step.is_multiple_of(4) {
            let product = algorithm_1(
                &matrices[0],
                &matrices[1],
                &directions[0],
                &directions[1],
                rule.learning_rate * warmup,
            );
            assert_close(
                &(&found_b * &found_a),
                &product,
                1e-9,
                &format!("the product after the exact step {step}"),
            );
            // How the SVD's signs split the product is free.
            (matrices[0], matrices[1]) = (found_b, found_a);
            adams = [0, 1, 2].map(|index: usize| Adam::new(&matrices[index]));
        } else {
            let rate = rule.learning_rate * warmup * RANK as f64 / ROWS.min(COLUMNS) as f64;
            for index in [0, 1] {
                matrices[index] =
                    (1.0 - rate * rule.weight_decay) * &matrices[index] - rate * &directions[index];
            }
            assert_close(&found_b, &matrices[0], 1e-12, &format!("B after step {step}"));
            assert_close(&found_a, &matrices[1], 1e-12, &format!("A after step {step}"));
        }
    }
}

/// A factor without full rank cannot be divided by: the step says so and changes nothing.
#[test]
fn an_exact_step_that_fails_changes_nothing() {
    let rule =
        LoroSpec { exact_every: Count(1), restart_warmup_steps: Count(0), ..LoroSpec::default() };
    let place = Place { layer: 0, target: Target::Q };
    let b = Mat::from_fn(4, 2, |i, j| if j == 0 { i as f64 } else { 0.0 });
    let roles = [
        ("q.b", Role::Factor(place, Factor::B), b),
        ("q.a", Role::Factor(place, Factor::A), normal("a", 2, 2, 5)),
    ];
    let parameters = roles.map(|(name, role, matrix)| Parameter {
        name: name.into(),
        role,
        weight: Weight::Dense(tensor(&matrix)),
        trained: true,
    });
    let mut params = ParamStore::new(parameters.to_vec()).expect("names differ");
    let mut optimizer =
        Optimizer::new(settings(rule, AdamwSpec::default()), &params).expect("state");
    let numbers = |params: &ParamStore, optimizer: &Optimizer| -> Vec<Vec<Vec<f64>>> {
        let tensors = params
            .named_tensors()
            .into_iter()
            .chain(optimizer.named_tensors(params).expect("leaves"));
        tensors.map(|(_, tensor)| tensor.to_vec2::<f64>().expect("f64")).collect()
    };
    let before = numbers(&params, &optimizer);
    let mut oracle =
        Given(vec![tensor(&normal("gradient", 1, 4, 2)), tensor(&normal("gradient", 2, 2, 5))]);
    let mut slots = Gradients::new(params.slot_count());
    let error =
        optimizer.step(&mut params, &mut oracle, &mut slots, 1).expect_err("B has rank one");
    assert!(format!("{error:#}").contains("LORO's exact step of `q.b` failed"), "{error:#}");
    assert_eq!(before, numbers(&params, &optimizer));
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
