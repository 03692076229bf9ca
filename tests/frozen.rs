//! A frozen parameter has no gradient, and nothing is kept or multiplied for one.

use candle_core::{DType, Device, Tensor};
use lrpt::model::{ModelConfig, Network, build};
use lrpt::ops::{Compute, Gradients};
use lrpt::optim::{BatchLoss, Execution, GradientOracle, Optimizer, OptimizerSettings, Schedule};
use lrpt::params::{ParamId, ParamStore, Role};
use lrpt::spec::{
    AdamwSpec, Architecture, ConstantScheduleSpec, Count, DenseOptimizerSpec, DlraSpec, FactorForm,
    LowRankOptimizerSpec, MatrixOptimizerSpec, ModelPlan, MuonSpec, OptimizerPlan, RankPlan,
    ScheduleSpec, Target, WeightForm,
};
use std::collections::BTreeMap;

/// One block with every form of a weight.
fn model(kernels: bool) -> Box<dyn Network> {
    let form = |target| match target {
        Target::Q | Target::O => WeightForm::LowRank { rank: 3 },
        Target::K => WeightForm::Factored { rank: 2, form: FactorForm::Ba },
        Target::V => WeightForm::Factored { rank: 2, form: FactorForm::Usv },
        _ => WeightForm::Dense,
    };
    let weights =
        Architecture::Gpt2.targets(false).iter().map(|target| (*target, form(*target))).collect();
    let mut model = build(ModelConfig {
        model: ModelPlan {
            n_layer: 2,
            n_head: 2,
            n_embd: 8,
            block_size: 6,
            bias: true,
            weights,
            ..ModelPlan::of(Architecture::Gpt2)
        },
        vocab_size: 11,
    })
    .expect("a network");
    model.set_compute(Compute { kernels, half: None });
    model
}

fn parameters(model: &dyn Network) -> ParamStore {
    model.initialize(5, DType::F64, &Device::Cpu).expect("parameters")
}

fn batch() -> (Tensor, Tensor) {
    let tokens = [[1u32, 4, 9, 0, 3, 3], [10, 2, 2, 7, 5, 6]];
    let targets = [[4u32, 9, 0, 3, 3, 8], [2, 2, 7, 5, 6, 1]];
    let tensor = |ids: &[[u32; 6]; 2]| Tensor::new(ids, &Device::Cpu).expect("ids");
    (tensor(&tokens), tensor(&targets))
}

/// The loss, the gradients by slot, and the number of operations recorded.
fn evaluated(model: &dyn Network, params: &ParamStore) -> (f64, BTreeMap<usize, Vec<f64>>, usize) {
    let (tokens, targets) = batch();
    let tape = model.training_tape();
    let mut gradients = Gradients::new(params.slot_count());
    gradients.want_grams();
    let loss = model.loss(params, &tape, &tokens, &targets, None).expect("forward");
    let recorded = tape.recorded();
    tape.backward(&loss, &mut gradients).expect("backward");
    let numbers = |slot: usize| -> Option<(usize, Vec<f64>)> {
        let flat = gradients.get(slot)?.flatten_all().and_then(|g| g.to_vec1());
        Some((slot, flat.expect("numbers")))
    };
    let filled = (0..params.slot_count()).filter_map(numbers).collect();
    (loss.tensor().to_scalar().expect("a scalar"), filled, recorded)
}

/// Every parameter frozen in turn: its slots stay empty, the loss and all other gradients have the
/// same bits.
#[test]
fn freezing_one_parameter_changes_no_other_gradient() {
    for kernels in [true, false] {
        let model = model(kernels);
        let mut params = parameters(model.as_ref());
        let (loss, all, _) = evaluated(model.as_ref(), &params);
        for index in 0..params.len() {
            let id = ParamId(index);
            params.set_trained(id, false);
            let (frozen_loss, rest, _) = evaluated(model.as_ref(), &params);
            let mut expected = all.clone();
            expected.remove(&ParamStore::slot(id));
            expected.remove(&ParamStore::l_slot(id));
            assert!(expected.len() < all.len());
            assert_eq!(frozen_loss, loss);
            assert_eq!(rest, expected, "{}, kernels {kernels}", params.get(id).name);
            params.set_trained(id, true);
        }
    }
}

/// With all but the last norm frozen, only that norm and the head are recorded: nothing below
/// keeps an activation or computes a backward.
#[test]
fn operations_below_all_trained_parameters_are_not_recorded() {
    for kernels in [true, false] {
        let model = model(kernels);
        let mut params = parameters(model.as_ref());
        let (loss, all, recorded) = evaluated(model.as_ref(), &params);
        let ids: Vec<ParamId> = params.iter().map(|(id, _)| id).collect();
        for &id in &ids {
            let trained = params.get(id).name.starts_with("transformer.ln_f");
            params.set_trained(id, trained);
        }
        let (frozen_loss, rest, few) = evaluated(model.as_ref(), &params);
        assert_eq!(frozen_loss, loss);
        assert_eq!(few, 2, "of {recorded}");
        let trained = ids.iter().filter(|id| params.get(**id).trained);
        let expected: BTreeMap<_, _> = trained
            .map(|id| ParamStore::slot(*id))
            .map(|slot| (slot, all[&slot].clone()))
            .collect();
        assert_eq!(rest, expected);
    }
}

#[test]
fn counts_say_trained_and_total() {
    let mut params = parameters(model(true).as_ref());
    let total = params.element_count();
    assert_eq!(params.total_element_count(), total);
    let tables: Vec<ParamId> =
        params.iter().filter(|(_, p)| p.role == Role::Embedding).map(|(id, _)| id).collect();
    assert_eq!(tables.len(), 2);
    tables.into_iter().for_each(|id| params.set_trained(id, false));
    assert_eq!(params.element_count(), total - (11 + 6) * 8);
    assert_eq!(params.total_element_count(), total);
    let q = params.low_rank().next().map(|(id, _, _)| id).expect("a low-rank weight");
    params.set_trained(q, false);
    assert_eq!(params.element_count(), total - (11 + 6) * 8 - 3 * (8 + 8 + 3));
}

/// Evaluates the one batch.
struct OneBatch<'a>(&'a dyn Network);

impl GradientOracle for OneBatch<'_> {
    fn evaluate(
        &mut self,
        params: &ParamStore,
        gradients: &mut Gradients,
    ) -> anyhow::Result<BatchLoss> {
        let ((tokens, targets), tape) = (batch(), self.0.training_tape());
        let loss = self.0.loss(params, &tape, &tokens, &targets, None)?;
        tape.backward(&loss, gradients)?;
        Ok(BatchLoss { loss: loss.tensor().to_scalar()?, micro_batches: 1 })
    }
}

/// Steps with every rule: what is frozen keeps its bits, has no state and no share in the norm.
#[test]
fn a_frozen_parameter_trains_nothing_and_has_no_state() {
    let model = model(true);
    let mut params = parameters(model.as_ref());
    let (_, all, _) = evaluated(model.as_ref(), &params);
    let is_trained = |name: &str| name.contains("h.1.attn.q") || name.contains("h.0.mlp.up");
    let ids: Vec<ParamId> = params.iter().map(|(id, _)| id).collect();
    for &id in &ids {
        let trained = is_trained(&params.get(id).name);
        params.set_trained(id, trained);
    }
    let settings = OptimizerSettings {
        rules: OptimizerPlan {
            dense: DenseOptimizerSpec::Adamw(AdamwSpec::default()),
            matrices: Some(MatrixOptimizerSpec::Muon(MuonSpec::default())),
            low_rank: Some(LowRankOptimizerSpec::Dlra(DlraSpec::default())),
        },
        ranks: RankPlan::Fixed,
        schedule: Schedule::new(
            ScheduleSpec::Constant(ConstantScheduleSpec { warmup_steps: Count(0) }),
            10,
        ),
        grad_clip: 0.0,
        execution: Execution::default(),
    };
    let mut optimizer = Optimizer::new(settings, &params).expect("an optimizer");
    let before: BTreeMap<String, Tensor> = params.named_tensors().into_iter().collect();
    let before: BTreeMap<String, Vec<f64>> = before.iter().map(numbers).collect();
    let mut slots = Gradients::new(params.slot_count());
    let mut oracle = OneBatch(model.as_ref());
    let report = optimizer.step(&mut params, &mut oracle, &mut slots, 1).expect("a step");
    let after: BTreeMap<String, Tensor> = params.named_tensors().into_iter().collect();
    for (name, numbers) in after.iter().map(numbers) {
        assert_eq!(numbers != before[&name], is_trained(&name), "{name}");
    }
    let states = optimizer.named_tensors(&params).expect("leaves");
    assert!(!states.is_empty());
    for (name, _) in states {
        assert!(is_trained(&name), "{name} is the state of a frozen parameter");
    }
    let squares = |id: &ParamId| -> f64 {
        all[&ParamStore::slot(*id)].iter().map(|number| number * number).sum()
    };
    let dense = ids.iter().filter(|id| params.get(**id).trained && params.dense(**id).is_ok());
    let dense: f64 = dense.map(squares).sum();
    assert!(report.gradient_norm.powi(2) > dense, "the low-rank weight has its share");
    let everything: f64 = ids.iter().filter(|id| params.dense(**id).is_ok()).map(squares).sum();
    assert!(report.gradient_norm.powi(2) < everything, "frozen parameters have none");
}

fn numbers((name, tensor): (&String, &Tensor)) -> (String, Vec<f64>) {
    let flat = tensor.flatten_all().and_then(|flat| flat.to_vec1());
    (name.clone(), flat.expect("numbers"))
}
