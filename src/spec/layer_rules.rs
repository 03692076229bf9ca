//! Whether ranks of single blocks can be had: `model.weights.low_rank.layers`, and of adapters.

use super::bounds;
use super::findings::Findings;
use super::model_spec::{LowRankStart, WeightsSpec};
use super::plan::{Plan, WeightForm};
use super::rank_plan::RankPlan;
use super::run_spec::RunSpec;

/// What stands against `layers`: a block or a matrix that is not there, a rank that the matrix
/// cannot have, or settings that choose ranks themselves.
pub(super) fn check_layers(found: &mut Findings, spec: &RunSpec, plan: &Plan) {
    let (form, layers, start) = match &spec.model.weights {
        WeightsSpec::LowRank(low_rank) => ("low_rank", &low_rank.layers, low_rank.start),
        WeightsSpec::Adapter(adapter) => ("adapter", &adapter.layers, LowRankStart::Factors),
        _ => return,
    };
    let path = &format!("model.weights.{form}.layers");
    let (is_adapter, blocks) = (form == "adapter", spec.model.n_layer);
    if layers.is_empty() {
        return;
    }
    found.require(layers.len() <= blocks, path, || {
        format!(
            "has {} entries for `model.n_layer: {blocks}` blocks; give at most one for each",
            layers.len()
        )
    });
    for (layer, ranks) in layers.iter().enumerate() {
        for (target, rank) in ranks {
            let name = target.name();
            let path = format!("{path}[{layer}].{name}");
            if let Some(objection) = plan.model.objection(*target) {
                found.require(false, &path, || objection);
                continue;
            }
            // A width of 0 has been refused already.
            let shape = plan.model.shape(*target);
            let is_left_out = is_adapter && *rank == 0;
            if let Some(problem) = bounds::rank_problem(name, *rank, shape)
                .filter(|_| shape.0.min(shape.1) > 0 && !is_left_out)
            {
                found.require(false, &path, || problem);
            }
            found.require(plan.model.form(*target) != WeightForm::Dense, &path, || {
                let state = if is_adapter { "not adapted" } else { "dense" };
                format!("`{name}` is {state} in all blocks by `targets`; remove one of them")
            });
        }
    }
    let is_anything = plan
        .model
        .places_with_head()
        .any(|(layer, target)| plan.model.is_adapted_in(layer, target));
    found.require(!is_adapter || is_anything, path, || {
        "leaves no adapter; give one of them a rank of at least 1".into()
    });
    let chooses = match (&plan.rank, plan.cut, start) {
        (RankPlan::Tolerance(_), ..) => "`rank: {tolerance: ...}`",
        (RankPlan::Budget(_), ..) => "`rank: {budget: ...}`",
        (RankPlan::Fixed, Some(_), _) => "`cut`",
        (RankPlan::Fixed, None, LowRankStart::Dense) => "`start: dense`",
        (RankPlan::Fixed, None, LowRankStart::Factors) => return,
    };
    // What is not there has no rank to change.
    let only_leaves_out =
        is_adapter && layers.iter().flat_map(|ranks| ranks.values()).all(|rank| *rank == 0);
    found.require(only_leaves_out, path, || {
        let remedy =
            if is_adapter { "leave out by ranks of 0 alone, or remove one" } else { "remove one" };
        format!("is for ranks that stay as they start, and {chooses} changes them; {remedy}")
    });
}

#[cfg(test)]
mod tests {
    use crate::spec::{AdapterForm, Plan, RankPlan, Target, WeightForm, parse_plan};

    const GOOD: &str = "name: small\n\
        model: {n_layer: 3, n_head: 2, n_embd: 8, block_size: 4, weights: {low_rank: {rank: 3, layers: [{q: 8, up: 1}, {}, {q: 2}]}}}\n\
        data: {source: cargo_registry, tokenizer: bytes}\n\
        train: {max_steps: 20, batch_size: 2}\n";

    #[test]
    fn blocks_have_their_own_ranks_and_the_plan_goes_round() {
        let (_, plan) = parse_plan(GOOD, "small.yaml", &[]).expect("a good spec");
        plan.validate().expect("a plan that a spec leads to");
        assert_eq!(Plan::resolve(&plan.as_spec().expect("a spec")).expect("a plan"), plan);
        let ranks = |target: Target| -> Vec<Option<usize>> {
            (0..3).map(|layer| plan.model.form_in(layer, target).rank()).collect()
        };
        assert_eq!(ranks(Target::Q), [Some(8), Some(3), Some(2)]);
        assert_eq!(ranks(Target::K), [Some(3); 3]);
        assert_eq!(ranks(Target::named("up").expect("a target")), [Some(1), Some(3), Some(3)]);
        assert_eq!(plan.model.form(Target::Q), WeightForm::LowRank { rank: 3 });
    }

    /// An adapter of rank 0 is none; a policy changes the others.
    #[test]
    fn adapters_are_left_out_of_blocks() {
        let weights = "model.weights={adapter: {rank: 3, form: lora, layers: [{q: 0}, {up: 5}]}}";
        let settings = [weights, "init={run: source}"].map(str::to_owned);
        let (_, plan) = parse_plan(GOOD, "small.yaml", &settings).expect("a good spec");
        assert_eq!(Plan::resolve(&plan.as_spec().expect("a spec")).expect("a plan"), plan);
        let up = Target::named("up").expect("a target");
        assert_eq!(plan.model.form_in(0, Target::Q), WeightForm::Dense);
        let form = AdapterForm::Lora;
        assert_eq!(
            plan.model.form_in(1, up),
            WeightForm::Adapter { rank: 5, form, alpha: Some(5) },
            "alpha is the rank, where none is given"
        );
        assert_eq!([Target::Q, up].map(|target| plan.model.blocks_of(target)), [2, 3]);

        let weights = "model.weights={adapter: {rank: 3, layers: [{q: 0}, {k: 0, up: 0}]}}";
        let budget = "rank={budget: {final_rank: 1, every: 5}}";
        let settings = [weights, "init={run: source}", budget].map(str::to_owned);
        let (_, plan) = parse_plan(GOOD, "small.yaml", &settings).expect("a good spec");
        let RankPlan::Budget(budget) = &plan.rank else { panic!("a budget") };
        // q and k in two of three blocks, v and o in all; up in two and down in all.
        let numbers =
            |rank: u64| (2 + 2 + 3 + 3) * rank * (16 + rank) + (2 + 3) * rank * (40 + rank);
        assert_eq!([budget.initial_parameters, budget.final_parameters], [3, 1].map(numbers));

        for (setting, said) in [
            ("model.weights={adapter: {rank: 3, layers: [{q: 9}]}}", "choose 1 to 8"),
            ("model.weights={adapter: {rank: 3, layers: [{head: 2}]}}", "`head` is in no block"),
            ("model.weights={adapter: {rank: 3, targets: [v], layers: [{q: 2}]}}", "not adapted"),
            (
                "model.weights={adapter: {rank: 3, layers: [{v: 0}, {v: 0}, {v: 0}], targets: [v]}}",
                "leaves no adapter",
            ),
            ("model.weights={adapter: {rank: 3, layers: [{q: 2}]}}", "ranks of 0 alone"),
        ] {
            let settings =
                ["init={run: source}", "rank={budget: {final_rank: 1, every: 5}}", setting];
            let error = parse_plan(GOOD, "small.yaml", &settings.map(str::to_owned));
            let error = error.expect_err(setting).to_string();
            assert!(error.contains("adapter.layers") && error.contains(said), "{setting}: {error}");
        }
    }

    #[test]
    fn what_no_block_can_have_is_refused_with_a_remedy() {
        for (setting, place, said) in [
            ("model.n_layer=2", "layers", "3 entries"),
            ("model.weights.low_rank.layers=[{q: 9}]", "layers[0].q", "choose 1 to 8"),
            ("model.weights.low_rank.layers=[{}, {q: 0}]", "layers[1].q", "choose 1 to 8"),
            ("model.weights.low_rank.layers=[{gate: 2}]", "layers[0].gate", "gate"),
            ("model.weights.low_rank.targets={q: dense}", "layers[0].q", "remove one"),
            ("rank={budget: {final_rank: 2}}", "layers", "`rank: {budget: ...}`"),
            ("rank={tolerance: {tau: 0.1}}", "layers", "`rank: {tolerance: ...}`"),
        ] {
            let error = parse_plan(GOOD, "small.yaml", &[setting.to_owned()]);
            let error = error.expect_err(setting).to_string();
            assert!(error.contains(place) && error.contains(said), "{setting}: {error}");
        }
    }
}
