//! Whether low-rank weights can start as dense matrices.

use super::dlra_spec::{Integrator, Momentum, SecondMomentTransport};
use super::findings::Findings;
use super::model_spec::LowRankStart;
use super::plan::Plan;
use super::rank_plan::{RankCyclePlan, RankPlan};

/// What stands against `start: dense`: a rank that is not full, no cut, or a rule that has no dense
/// counterpart.
pub(super) fn check_start(found: &mut Findings, plan: &Plan) {
    if plan.model.start == LowRankStart::Factors {
        return;
    }
    let path = "model.weights.low_rank.start";
    let mut refuse = |message: String| found.require(false, path, || message);
    for (target, form) in &plan.model.weights {
        let (rows, columns) = plan.model.shape(*target);
        if let Some(rank) = form.rank().filter(|rank| *rank != rows.min(columns)) {
            refuse(format!(
                "a dense matrix is of full rank, and `{}`, {rows} × {columns}, starts at rank \
                 {rank}; write `rank: full`, without exceptions, or `start: factors`",
                target.name()
            ));
            break;
        }
    }
    if plan.cut.is_some() {
        refuse("`cut` makes factors of every weight before the first step; remove one".into());
    }
    match &plan.rank {
        RankPlan::Fixed => refuse(
            "weights are dense until a cut, and under `rank: {fixed: {}}` there is none; write \
             `weights: dense`, or choose `rank: {budget: ...}` or `{tolerance: ...}`"
                .into(),
        ),
        RankPlan::Tolerance(super::TolerancePlan { cycle, .. })
        | RankPlan::Budget(super::BudgetPlan { cycle, .. }) => {
            if let Some(message) = no_cut(cycle, plan.train.max_steps.0) {
                refuse(message);
            }
        }
    }
    let Some(dlra) = plan.optimizer.dlra() else { return };
    if dlra.integrator != Integrator::Tangent {
        refuse(
            "needs `integrator: tangent`; the others augment bases, and a dense matrix has none"
                .into(),
        );
    }
    if matches!(dlra.momentum, Momentum::MatrixAdam | Momentum::WhitenedSpectral) {
        refuse(
            "needs `momentum: spectral`, `input_whitened_spectral`, `adam` or `heavy_ball`; second \
             moments of r × r of gradients have no counterpart where a matrix is dense"
                .into(),
        );
    }
    if dlra.spectral_regularization > 0.0 {
        refuse("a dense matrix has no S for `spectral_regularization`; set that to 0".into());
    }
    let is_linear = dlra.second_moment_transport == SecondMomentTransport::Linear;
    if is_linear && dlra.momentum == Momentum::Adam {
        refuse(
            "second moments come to the factors as variances; write `second_moment_transport: \
             variance`"
                .into(),
        );
    }
}

/// Why no cut comes within this many steps, if none does.
fn no_cut(cycle: &RankCyclePlan, steps: u64) -> Option<String> {
    let first = cycle.start.saturating_add(cycle.settle);
    let last = cycle.freeze.min(steps);
    (first > last).then(|| {
        format!(
            "weights are dense until a cut, and the first would come at step {first} (`start` + \
             `settle`), after step {last} (`freeze`, or the end of the run); lower `start` or \
             `settle`"
        )
    })
}

#[cfg(test)]
mod tests {
    use crate::spec::{Plan, parse_plan};

    const GOOD: &str = "name: small\n\
        model: {n_layer: 1, n_head: 2, n_embd: 8, block_size: 4, weights: {low_rank: {rank: full, start: dense}}}\n\
        data: {source: cargo_registry, tokenizer: bytes}\n\
        train: {max_steps: 20, batch_size: 2}\n\
        optimizer: {low_rank: {dlra: {momentum: adam}}}\n\
        rank: {budget: {final_share: 0.5, every: 4, start: 2, freeze: 12}}\n\
        schedule: {constant: {warmup_steps: 0}}\n";

    #[test]
    fn a_plan_with_a_dense_start_goes_round() {
        let (_, plan) = parse_plan(GOOD, "small.yaml", &[]).expect("a good spec");
        plan.validate().expect("a plan that a spec leads to");
        let again = Plan::resolve(&plan.as_spec().expect("a spec")).expect("a plan");
        assert_eq!(again, plan);
        let factors = ["model.weights={low_rank: {rank: full, start: factors}}".to_owned()];
        let (_, usual) = parse_plan(GOOD, "small.yaml", &factors).expect("a good spec");
        let written = serde_json::to_string(&usual).expect("JSON");
        assert!(!written.contains("factors"), "what is usual is not written: {written}");
        assert_ne!(usual.hash(), plan.hash());
    }

    #[test]
    fn momenta_with_a_dense_counterpart_start_dense() {
        for momentum in ["spectral", "input_whitened_spectral", "adam", "heavy_ball"] {
            let set = [format!("optimizer.low_rank.dlra.momentum={momentum}")];
            let (_, plan) = parse_plan(GOOD, "small.yaml", &set).expect(momentum);
            plan.validate().expect(momentum);
        }
    }

    #[test]
    fn what_cannot_start_dense_is_refused_with_a_remedy() {
        for (setting, said) in [
            ("model.weights={low_rank: {rank: 4, start: dense}}", "write `rank: full`"),
            ("model.weights={low_rank: {rank: full, start: dense, targets: {v: 3}}}", "`v`, 8 × 8"),
            ("rank={fixed: {}}", "write `weights: dense`"),
            ("rank.budget={final_share: 0.5, every: 4, start: 11, freeze: 12}", "at step 13"),
            ("train.max_steps=3", "after step 3"),
            ("optimizer.low_rank.dlra.momentum=matrix_adam", "`momentum: spectral`"),
            ("optimizer.low_rank.dlra.momentum=whitened_spectral", "`input_whitened_spectral`"),
            ("optimizer.low_rank.dlra.integrator=augmented_bug", "`integrator: tangent`"),
            ("optimizer.low_rank.dlra.integrator=coefficient_cycle", "`integrator: tangent`"),
            ("optimizer.low_rank.dlra.spectral_regularization=0.1", "set that to 0"),
            ("optimizer.low_rank.dlra.second_moment_transport=linear", "variance"),
            (
                "model.weights={low_rank: {rank: full, start: dense, cut: {budget: {share: 0.5}}}}",
                "remove one",
            ),
        ] {
            let error = parse_plan(GOOD, "small.yaml", &[setting.to_owned()]);
            let error = error.expect_err(setting).to_string();
            assert!(error.contains("low_rank.start") && error.contains(said), "{setting}: {error}");
        }
    }
}
