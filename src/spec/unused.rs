//! Settings of a spec that have no effect.

use super::adapter_spec::AdapterForm;
use super::beta1_spec::unused_of_beta1;
use super::dlra_spec::{Momentum, SecondMomentTransport, unused_of_integrator};
use super::model_spec::{TrainedForm, WeightsSpec};
use super::optimizer_spec::{LowRankOptimizerSpec, unused_of_muon};
use super::plan::Plan;
use super::rank_spec::{RankNorm, RankSpec};
use super::run_spec::{DeviceSpec, KernelsSpec, LinalgSpec, RunSpec};
use super::schedule_spec::warmup_steps;

/// Settings that the form of the weights or the length of the run leaves without effect, each with
/// what happens instead.
///
/// They are no errors, so that one spec serves a method and its baselines: `--set
/// model.weights=dense` is enough.
pub fn unused_settings(spec: &RunSpec) -> Vec<String> {
    let mut unused = Vec::new();
    let trained = spec.model.weights.trained_form();
    match (&spec.optimizer.low_rank, trained) {
        (Some(_), TrainedForm::Dense) => {
            unused.push("optimizer.low_rank: unused with `model.weights: dense`".into())
        }
        (Some(LowRankOptimizerSpec::Dlra(_)), TrainedForm::Factored(_)) => {
            unused.push("optimizer.low_rank.dlra: unused with factored weights, which move by `optimizer.dense`'s rule".into());
        }
        _ => {}
    }
    if let WeightsSpec::Adapter(adapter) = &spec.model.weights
        && adapter.form == AdapterForm::LowRank
        && adapter.alpha.is_some()
    {
        unused.push("model.weights.adapter.alpha: unused, only `form: lora` has it".into());
    }
    if spec.kernels == KernelsSpec::Portable && spec.device == DeviceSpec::Metal {
        unused.push("kernels: unused, there are kernels for the CPU and CUDA alone".into());
    }
    let optimizer = Plan::derive(spec).optimizer;
    if spec.linalg != LinalgSpec::Auto && optimizer.dlra().is_none() && optimizer.muon().is_none() {
        unused.push("linalg: unused, nothing is low-rank or trained by Muon".into());
    }
    if spec.optimizer.matrices.is_some() && optimizer.matrices.is_none() {
        unused.push("optimizer.matrices: unused, no matrix of the blocks is dense".into());
    }
    if let (Some(LowRankOptimizerSpec::Dlra(dlra)), TrainedForm::LowRank) =
        (&spec.optimizer.low_rank, trained)
        && dlra.second_moment_transport == SecondMomentTransport::Linear
        && dlra.momentum != Momentum::Adam
    {
        let key = "optimizer.low_rank.dlra.second_moment_transport";
        unused
            .push(format!("{key}: unused, only `momentum: adam` has element-wise second moments"));
    }
    if let (Some(LowRankOptimizerSpec::Dlra(dlra)), TrainedForm::LowRank) =
        (&spec.optimizer.low_rank, trained)
    {
        unused_of_integrator(&mut unused, dlra, spec.train.max_steps.0);
    }
    if let Some(muon) = optimizer.muon() {
        let at = ("optimizer.matrices.muon", spec.train.max_steps.0);
        unused_of_beta1(&mut unused, muon.beta1_schedule.as_ref(), at);
        unused_of_muon(&mut unused, muon, at.0);
    }
    let (policy, norm, batches, decay) = match &spec.rank {
        RankSpec::Fixed(_) => (None, RankNorm::Frobenius, 1, 0.0),
        RankSpec::Tolerance(own) => (Some("tolerance"), own.norm, own.batches, own.moment_decay),
        RankSpec::Budget(own) => (Some("budget"), own.norm, own.batches, own.moment_decay),
    };
    if let (Some(policy), RankNorm::Frobenius, true) = (policy, norm, decay > 0.0) {
        unused.push(format!(
            "rank.{policy}.moment_decay: unused, only cuts in the Fisher norm go by second moments"
        ));
    }
    if let (Some(policy), RankNorm::Frobenius, 2..) = (policy, norm, batches) {
        unused.push(format!(
            "rank.{policy}.batches: unused, only cuts in the Fisher norm read a batch"
        ));
    }
    if let (Some(policy), false) = (policy, trained == TrainedForm::LowRank) {
        unused.push(format!(
            "rank.{policy}: unused, only `model.weights: {{low_rank: ...}}` and adapters but LoRA's \
             have ranks that change"
        ));
    }
    let (warmup, steps) = (warmup_steps(&spec.schedule), spec.train.max_steps.0);
    if warmup > steps {
        unused.push(format!(
            "schedule: the warm-up of {warmup} steps is longer than the run of {steps}; it ends \
             before the full learning rate"
        ));
    }
    unused
}
