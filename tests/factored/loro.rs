//! LORO against its paper.

use super::*;

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
