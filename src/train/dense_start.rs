//! Weights that are dense until they are cut: trained as dense ones are, then as factors.

use super::Trainer;
use super::settings::optimizer_settings;
use crate::data::TokenShard;
use crate::lowrank::{CutNorm, Spectrum};
use crate::optim::Optimizer;
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
