//! Whether ranks of single blocks can be had: `model.weights.low_rank.layers`.

use super::findings::Findings;
use super::model_spec::{LowRankStart, WeightsSpec};
use super::plan::{Plan, WeightForm};
use super::rank_plan::RankPlan;
use super::run_spec::RunSpec;

/// What stands against `layers`: a block or a matrix that is not there, a rank that the matrix
/// cannot have, or settings that choose ranks themselves.
pub(super) fn check_layers(found: &mut Findings, spec: &RunSpec, plan: &Plan) {
    let WeightsSpec::LowRank(low_rank) = &spec.model.weights else { return };
    let path = "model.weights.low_rank.layers";
    let (layers, blocks) = (&low_rank.layers, spec.model.n_layer);
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
            if let Some(objection) = spec.model.arch.objection(*target) {
                found.require(false, &path, || objection);
                continue;
            }
            let (rows, columns) = plan.model.shape(*target);
            let limit = rows.min(columns);
            found.require((1..=limit).contains(rank) || limit == 0, &path, || {
                format!("rank {rank} is not possible for `{name}`, {rows} × {columns}; choose 1 to {limit}")
            });
            found.require(plan.model.form(*target) != WeightForm::Dense, &path, || {
                format!("`{name}` is dense in all blocks by `targets`; remove one of them")
            });
        }
    }
    let chooses = match (&plan.rank, plan.cut, low_rank.start) {
        (RankPlan::Tolerance(_), ..) => "`rank: {tolerance: ...}`",
        (RankPlan::Budget(_), ..) => "`rank: {budget: ...}`",
        (RankPlan::Fixed, Some(_), _) => "`cut`",
        (RankPlan::Fixed, None, LowRankStart::Dense) => "`start: dense`",
        (RankPlan::Fixed, None, LowRankStart::Factors) => return,
    };
    found.require(false, path, || {
        format!("is for ranks that stay as they start, and {chooses} changes them; remove one")
    });
}

#[cfg(test)]
mod tests {
    use crate::account::Ledger;
    use crate::spec::{Plan, Target, WeightForm, parse_plan};

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

    #[test]
    fn the_account_sums_over_the_ranks_of_the_blocks() {
        let of = |settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(|&setting| setting.into()).collect();
            let (_, plan) = parse_plan(GOOD, "small.yaml", &settings).expect("a good spec");
            Ledger::new(&plan, 50, 1)
        };
        let (own, alike) = (of(&[]), of(&["model.weights={low_rank: {rank: 3}}"]));
        // q: 8 × 8 and up: 32 × 8; stored r (m + n + r), as exported r (m + n - r).
        let stored = |side: i64, rank: i64| rank * (side + rank);
        let more =
            stored(16, 8) + stored(16, 2) - 2 * stored(16, 3) + stored(40, 1) - stored(40, 3);
        assert_eq!(own.parameters.total() as i64 - alike.parameters.total() as i64, more);
        let exported = |side: i64, rank: i64| rank * (side - rank);
        let more = exported(16, 8) + exported(16, 2) - 2 * exported(16, 3) + exported(40, 1)
            - exported(40, 3);
        let dimension = |ledger: &Ledger| ledger.parameters.manifold_dimension() as i64;
        assert_eq!(dimension(&own) - dimension(&alike), more);
        // K- and L-gradient, (m + n) r.
        let more = 16 * (8 + 2 - 2 * 3) + 40 * (1 - 3);
        assert_eq!(own.wire.sums_per_step as i64 - alike.wire.sums_per_step as i64, more);
        // x V of every matrix is kept for every token: 2 rows of 4 tokens, 4 bytes each.
        let kept = own.memory.activations as i64 - alike.memory.activations as i64;
        assert_eq!(kept, 8 * 4 * (8 + 2 - 2 * 3 + 1 - 3));
        assert!(own.to_string().contains("q     8 × 8, ranks 2 to 8"), "{own}");
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
