//! From a plan to the network's configuration and the optimizer's rules.

use crate::model::ModelConfig;
use crate::optim::{FactorRule, OptimizerSettings, RankPolicy, Schedule, ToleranceCycle};
use crate::spec::{DenseOptimizerSpec, Plan, RankPlan, Target, ToleranceTargetPlan};
use std::collections::BTreeMap;

/// The network of a plan, once the vocabulary is known.
pub fn model_config(plan: &Plan, vocab_size: usize) -> ModelConfig {
    ModelConfig {
        arch: plan.model.arch,
        n_layer: plan.model.n_layer,
        n_head: plan.model.n_head,
        n_embd: plan.model.n_embd,
        block_size: plan.model.block_size,
        vocab_size,
        dropout: plan.model.dropout,
        bias: plan.model.bias,
        weights: plan.model.weights.clone(),
    }
}

/// The rules of a plan.
pub fn optimizer_settings(plan: &Plan) -> OptimizerSettings {
    let DenseOptimizerSpec::Adamw(dense) = plan.optimizer.dense.clone();
    OptimizerSettings {
        matrices: plan.optimizer.muon().cloned(),
        factors: match plan.optimizer.factored_heavy_ball() {
            Some(rule) => FactorRule::HeavyBall(rule.clone()),
            None => FactorRule::Adamw(plan.optimizer.factored_adamw().unwrap_or(&dense).clone()),
        },
        dense,
        low_rank: plan.optimizer.dlra().cloned().unwrap_or_default(),
        ranks: rank_policies(&plan.rank),
        schedule: Schedule::new(plan.schedule.clone(), plan.train.max_steps.0),
        grad_clip: plan.train.grad_clip,
    }
}

fn rank_policies(plan: &RankPlan) -> BTreeMap<Target, RankPolicy> {
    let RankPlan::Tolerance(cycle) = plan else { return BTreeMap::new() };
    let policy = |target: &ToleranceTargetPlan| {
        RankPolicy::Tolerance(ToleranceCycle {
            tau: target.tau,
            min_rank: target.min_rank,
            max_rank: target.max_rank,
            grow_every: cycle.grow_every,
            settle: cycle.settle,
            grow_by: cycle.grow_by,
            start: cycle.start,
            freeze: cycle.freeze,
        })
    };
    cycle.targets.iter().map(|(target, limits)| (*target, policy(limits))).collect()
}
