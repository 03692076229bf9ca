//! Weights that are dense until they are cut: trained as dense ones are, then as factors.

use super::Trainer;
use super::oracle::{BatchOracle, OracleTimes};
use super::settings::optimizer_settings;
use crate::data::{Batches, TokenShard};
use crate::lowrank::{CutNorm, Spectrum};
use crate::ops::Gradients;
use crate::optim::{GradientOracle, Optimizer};
use crate::parallel::Alone;
use crate::params::{ParamStore, Weight};
use crate::spec::{Plan, load_plan};
use candle_core::{Device, Tensor};
use std::path::Path;
use std::sync::Arc;

const VOCABULARY: usize = 50;
const DENSE_START: &str = "model.weights={low_rank: {rank: full, start: dense}}";
/// Cuts at steps 3, 6 and 9, the last.
const CUTS: &str = "rank={budget: {final_rank: 6, schedule: cubic, norm: fisher, every: 3, settle: 1, start: 2, freeze: 9}}";

fn plan(settings: &[&str]) -> Plan {
    let path = format!("{}/configs/methods/dlra-budget.yaml", env!("CARGO_MANIFEST_DIR"));
    let common = [
        "model.n_layer=2",
        "model.n_head=2",
        "model.n_embd=32",
        "model.block_size=24",
        "train={max_steps: 30, batch_size: 2, gradient_accumulation_steps: 2, grad_clip: 0.5}",
        "schedule={constant: {warmup_steps: 0}}",
        "device=cpu",
    ];
    let overrides: Vec<String> =
        common.iter().chain(settings).map(|text| (*text).to_owned()).collect();
    load_plan(Path::new(&path), &overrides).expect("a good spec").1
}

fn trainer(plan: &Plan) -> Trainer<'_> {
    let tokens: Vec<u32> =
        (0..5_000u64).map(|i| ((i * i / 7 + i) % VOCABULARY as u64) as u32).collect();
    let text = Arc::new(TokenShard::from_tokens(tokens));
    Trainer::fresh(plan, &Device::Cpu, VOCABULARY, text).expect("a trainer")
}

/// Bits of every weight, by names without what only full matrices have at their end.
fn bits(params: &ParamStore) -> Vec<(String, Vec<u32>)> {
    let of = |(name, tensor): (String, Tensor)| {
        let numbers = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("numbers");
        let name = name.strip_suffix(".weight").map(str::to_owned).unwrap_or(name);
        (name, numbers.into_iter().map(f32::to_bits).collect())
    };
    params.named_tensors().into_iter().map(of).collect()
}

/// Losses, norms of gradients and weights of the steps before the first cut, bit for bit.
#[test]
fn until_the_first_cut_steps_are_those_of_the_dense_rules() {
    for (dlra, dense) in [
        (
            "optimizer.low_rank={dlra: {momentum: spectral, nesterov: true, learning_rate: 2e-2, beta1: 0.95}}",
            "optimizer.matrices={muon: {learning_rate: 2e-2, beta1: 0.95}}",
        ),
        (
            "optimizer.low_rank={dlra: {momentum: input_whitened_spectral, nesterov: true, learning_rate: 2e-2, beta1: 0.95, beta2: 0.9, input_damping: 0.3}}",
            "optimizer.matrices={muon: {learning_rate: 2e-2, beta1: 0.95, beta2: 0.9, input_damping: 0.3}}",
        ),
        (
            "optimizer.low_rank={dlra: {momentum: adam, learning_rate: 3e-3, epsilon: 1e-8}}",
            "optimizer.dense={adamw: {learning_rate: 3e-3, weight_decay: 0.1}}",
        ),
    ] {
        let ours = plan(&[DENSE_START, CUTS, dlra]);
        let theirs = plan(&["model.weights=dense", dense]);
        let (mut uncut, mut full) = (trainer(&ours), trainer(&theirs));
        // Names, and so the draws, differ; the order does not.
        let pairs: Vec<_> = uncut.params.iter().map(|(id, p)| (id, p.weight.clone())).collect();
        for (id, weight) in pairs {
            if let Weight::Uncut(w) = weight {
                full.params.set(id, Weight::Dense(w.copy().expect("a copy")));
            }
        }
        for step in 1..=2 {
            assert_eq!(uncut.flops_of_step(step), full.flops_of_step(step));
            let [a, b] = [&mut uncut, &mut full].map(|t| t.step(step).expect("a step").report);
            assert_eq!(a.loss.to_bits(), b.loss.to_bits(), "{dlra}, step {step}");
            assert_eq!(a.gradient_norm.to_bits(), b.gradient_norm.to_bits(), "{dlra}");
        }
        assert_eq!(bits(&uncut.params), bits(&full.params), "{dlra}");
    }
}

/// Weights become factors one by one, and all at the last cut; numbers and operations fall.
#[test]
fn weights_are_cut_once_factors_pay() {
    let plan = plan(&[DENSE_START, CUTS]);
    let mut trainer = trainer(&plan);
    let dense = trainer.params.element_count();
    let flops = trainer.flops_of_step(1);
    for step in 1..=10 {
        let before = trainer.params.uncut().count();
        let cut = trainer.step(step).expect("a step").report.truncations.len();
        let (uncut, factors) = (trainer.params.uncut().count(), trainer.params.low_rank().count());
        assert_eq!(uncut + factors, 12);
        let fisher = |(_, p, point): (_, &crate::params::Parameter, &crate::lowrank::LowRank)| {
            let (m, n, r) = (point.rows(), point.columns(), point.rank());
            assert!(r * (m + n + r) < m * n || step >= 9, "step {step}, {}: rank {r}", p.name);
        };
        trainer.params.low_rank().for_each(fisher);
        match step {
            1 | 2 => assert_eq!((uncut, cut), (12, 0)),
            3 | 6 => assert!(uncut <= before && cut >= before - uncut, "step {step}"),
            9 => assert_eq!((uncut, cut), (0, 12)),
            _ => assert_eq!((uncut, cut), (before, 0), "step {step}"),
        }
        if step == 3 {
            assert!((1..12).contains(&uncut), "{uncut} of 12 are dense after the first cut");
            assert!(trainer.params.mean_rank().is_some_and(|mean| mean < 32.0));
        }
    }
    assert!(trainer.params.element_count() < dense / 2);
    assert!(trainer.flops_of_step(11) < flops);
    for (_, _, point) in trainer.params.low_rank() {
        assert!(point.orthonormality_defect().expect("a number") < 1e-4);
    }
}

/// With three batches a cut goes by the sum of the second moments of its own step's batch and of
/// those of the two steps before it, all at the weights before the step; the step itself is as it
/// was, and the further evaluations are counted.
#[test]
fn a_cut_goes_by_as_many_batches_as_it_is_told() {
    let of = |batches: &str| {
        let cuts = CUTS.replace("norm: fisher", &format!("norm: fisher, batches: {batches}"));
        plan(&[DENSE_START, &cuts])
    };
    let later = plan(&[DENSE_START, &CUTS.replace("start: 2", "start: 4")]);
    let (one, three, many) = (of("1"), of("3"), of("50"));
    let [mut one, mut three, mut many, mut uncut] = [&one, &three, &many, &later].map(trainer);
    for step in 1..=2 {
        assert_eq!(one.flops_of_step(step), three.flops_of_step(step));
        let all = [&mut one, &mut three, &mut many, &mut uncut];
        let [a, b, c, d] = all.map(|t| t.step(step).expect("a step").report.loss.to_bits());
        assert_eq!([a, a, a], [b, c, d]);
    }
    let further = three.flops_of_step(3) - one.flops_of_step(3);
    let step = one.flops_of_step(2);
    assert!((step..2 * step).contains(&further), "{further} for two evaluations, step {step}");
    let moments = [1, 2, 3].map(|step| second_moments(&later, &uncut, step));

    let all = [&mut one, &mut three, &mut many, &mut uncut];
    let [a, b, _, _] = all.map(|t| t.step(3).expect("a step").report);
    assert_eq!(a.loss.to_bits(), b.loss.to_bits(), "the loss is that of the step's own batch");
    assert_eq!(a.gradient_norm.to_bits(), b.gradient_norm.to_bits());
    assert_eq!(bits(&three.params), bits(&many.params), "there are no more steps than three");
    for ((id, found), (_, alone)) in b.truncations.iter().zip(&a.truncations) {
        let Weight::Uncut(w) = &uncut.params.get(*id).weight else { panic!("it is not cut") };
        let sum = |slot: usize| -> Tensor {
            let [a, b, c] = [0, 1, 2].map(|step| moments[step].gram(slot).expect("a moment"));
            ((a + b).expect("a sum") + c).expect("a sum")
        };
        let (left, right) = (sum(ParamStore::slot(*id)), sum(ParamStore::l_slot(*id)));
        let (_, spectrum) = Spectrum::of_dense(w, Some([&left, &right])).expect("a spectrum");
        let expected = spectrum.singular_values();
        let largest = expected[0];
        for (found, expected) in found.singular_values.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5 * largest, "{found} beside {expected}");
        }
        assert_ne!(found.singular_values, alone.singular_values);
    }
}

/// With `moment_decay: 0.5` and measurements at steps 2 and 4 beside, the cut of step 3 goes by (½
/// M₂ + M₃) / 1½ of the moments M of the steps' batches, each at the weights before its step;
/// without, by M₃. The step itself is as it was.
#[test]
fn a_cut_goes_by_what_earlier_measurements_carry() {
    let of = |keys: &str| {
        let cuts = CUTS.replace("norm: fisher", &format!("norm: fisher{keys}"));
        plan(&[DENSE_START, &cuts])
    };
    let (own, carried) = (of(""), of(", moment_decay: 0.5, moment_every: 2"));
    let later = plan(&[DENSE_START, &CUTS.replace("start: 2", "start: 4")]);
    let [mut own, mut carried, mut uncut] = [&own, &carried, &later].map(trainer);
    let mut moments = Vec::new();
    for step in 1..=2 {
        moments.push(second_moments(&later, &uncut, step));
        let all = [&mut own, &mut carried, &mut uncut];
        let [a, b, c] = all.map(|t| t.step(step).expect("a step").report.loss.to_bits());
        assert_eq!([a, a], [b, c]);
    }
    moments.push(second_moments(&later, &uncut, 3));
    assert!(carried.flops_of_step(4) > own.flops_of_step(4), "a step that measures costs more");
    let all = [&mut own, &mut carried, &mut uncut];
    let [a, b, _] = all.map(|t| t.step(3).expect("a step").report);
    assert_eq!(a.loss.to_bits(), b.loss.to_bits());
    for ((id, found), (_, alone)) in b.truncations.iter().zip(&a.truncations) {
        let Weight::Uncut(w) = &uncut.params.get(*id).weight else { panic!("it is not cut") };
        let mean = |slot: usize| -> Tensor {
            let [before, now] = [1, 2].map(|step: usize| moments[step].gram(slot).expect("one"));
            ((before * (1.0 / 3.0)).expect("a part") + (now * (2.0 / 3.0)).expect("a part"))
                .expect("a mean")
        };
        let (left, right) = (mean(ParamStore::slot(*id)), mean(ParamStore::l_slot(*id)));
        let (_, spectrum) = Spectrum::of_dense(w, Some([&left, &right])).expect("a spectrum");
        let expected = spectrum.singular_values();
        for (found, of_both) in found.singular_values.iter().zip(expected) {
            assert!((found - of_both).abs() < 1e-5 * expected[0], "{found} beside {of_both}");
        }
        let apart = found.singular_values[0] / alone.singular_values[0] - 1.0;
        assert!(apart.abs() > 1e-4, "the earlier batch counts: {apart}");
    }
}

/// Second moments of one step's batch at the trainer's weights, by themselves.
fn second_moments(plan: &Plan, trainer: &Trainer, step: u64) -> Gradients {
    let (block_size, batch_size) = (plan.model.block_size, plan.train.batch_size);
    let micro_batches = plan.train.gradient_accumulation_steps;
    let batches = Batches::new(trainer.text(), block_size, batch_size, micro_batches, plan.seed);
    let mut oracle = BatchOracle {
        model: trainer.model.as_ref(),
        batches: &batches.expect("batches"),
        device: &Device::Cpu,
        seed: plan.seed,
        step,
        micro_batches,
        processes: &Alone,
        owners: None,
        is_deterministic: true,
        sums_sent: 0,
        times: OracleTimes::default(),
    };
    let mut moments = Gradients::new(trainer.params.slot_count());
    moments.want_grams();
    oracle.evaluate(&trainer.params, &mut moments).expect("moments");
    moments
}

/// A cut in the Fisher norm that leaves nothing out changes nothing: neither a weight, nor what the
/// network makes of a text.
#[test]
fn a_cut_that_removes_nothing_leaves_the_function_as_it_is() {
    let plan = plan(&[DENSE_START, CUTS, "train.grad_clip=0"]);
    let (mut uncut, mut cut) = (trainer(&plan), trainer(&plan));
    let weights: Vec<_> = cut.params.uncut().map(|(id, _, w)| (id, w.clone())).collect();
    for (id, w) in weights {
        let (m, n) = w.dims2().expect("a matrix");
        // Some directions count a thousand times as much as others.
        let gram = |size: usize| -> candle_core::Result<Tensor> {
            let scale: Vec<f32> = (0..size).map(|i| 10f32.powi(-((i % 4) as i32))).collect();
            let scale = Tensor::from_vec(scale, (size, 1), &Device::Cpu)?;
            Tensor::eye(size, candle_core::DType::F32, &Device::Cpu)?.broadcast_mul(&scale)
        };
        let (left, right) = (gram(m).expect("a matrix"), gram(n).expect("a matrix"));
        let (point, spectrum) = Spectrum::of_dense(&w, Some([&left, &right])).expect("spectrum");
        let found = spectrum.truncate(&point, m.min(n)).expect("a cut");
        let truncation = found.truncation.expect("a truncation");
        assert_eq!((truncation.norm, truncation.error), (CutNorm::Weighted, 0.0));
        let largest = (found.point.to_dense().expect("a product") - &w)
            .and_then(|difference| difference.abs()?.max_all()?.to_scalar::<f32>());
        let largest = largest.expect("a number");
        assert!(largest < 1e-5, "{largest}");
        cut.params.set(id, Weight::LowRank(found.point));
    }
    cut.optimizer =
        Optimizer::new(optimizer_settings(&plan, &Device::Cpu), &cut.params).expect("a state");
    let [a, b] = [&mut uncut, &mut cut].map(|t| t.step(1).expect("a step").report.loss);
    assert!((a - b).abs() < 1e-5, "{a} and {b}");
}
