//! The ranks that a run's weights have, written as the spec of a run that has them from its first
//! step.

use crate::spec::{ModelPlan, Target, WeightForm};
use std::collections::BTreeMap;

/// `model.weights` of a spec with these ranks of a model's low-rank matrices, each times `scale`,
/// rounded, at least 1 and at most what the matrix can have: `{low_rank: {rank: r, layers: [{q: …,
/// …}, …]}}` with r the mean over all of them, and `targets` for those that are dense in the model.
/// The ranks come by block and target; a block that has none is an empty entry.
pub fn allotment(
    model: &ModelPlan,
    ranks: &BTreeMap<(usize, Target), usize>,
    scale: f64,
) -> String {
    let scaled = |target: Target, rank: usize| {
        let (rows, columns) = model.shape(target);
        ((rank as f64 * scale).round() as usize).clamp(1, rows.min(columns).max(1))
    };
    let total: usize = ranks.iter().map(|((_, target), rank)| scaled(*target, *rank)).sum();
    let mean = (total as f64 / ranks.len().max(1) as f64).round() as usize;
    let blocks = ranks.keys().map(|(layer, _)| layer + 1).max().unwrap_or(0);
    let block = |layer: usize| {
        let own = ranks.iter().filter(|((of, _), _)| *of == layer);
        let own =
            own.map(|((_, target), rank)| format!("{}: {}", target.name(), scaled(*target, *rank)));
        format!("  {{{}}}", own.collect::<Vec<_>>().join(", "))
    };
    let layers: Vec<String> = (0..blocks).map(block).collect();
    let dense = model.weights.iter().filter(|(_, form)| **form == WeightForm::Dense);
    let dense: Vec<String> = dense.map(|(target, _)| format!("{}: dense", target.name())).collect();
    let targets = match dense.is_empty() {
        true => String::new(),
        false => format!("targets: {{{}}}, ", dense.join(", ")),
    };
    format!("{{low_rank: {{rank: {mean}, {targets}layers: [\n{}\n]}}}}", layers.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::allotment;
    use crate::spec::{Architecture, ModelPlan, Target, WeightForm};
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    #[test]
    fn the_ranks_are_written_by_block_and_each_is_possible() {
        let mut model = ModelPlan { n_layer: 3, n_embd: 16, ..ModelPlan::of(Architecture::Gpt2) };
        model.weights.values_mut().for_each(|form| *form = WeightForm::LowRank { rank: 4 });
        let ranks =
            BTreeMap::from([((0, Target::Q), 9), ((0, Target::DOWN), 3), ((2, Target::Q), 1)]);
        let read = |model: &ModelPlan, scale: f64| -> Value {
            let written = allotment(model, &ranks, scale);
            serde_yaml::from_str(&written).expect(&written)
        };
        let layers = json!([{"q": 9, "down": 3}, {}, {"q": 1}]);
        assert_eq!(read(&model, 1.0), json!({"low_rank": {"rank": 4, "layers": layers}}));
        let layers = json!([{"q": 5, "down": 2}, {}, {"q": 1}]);
        assert_eq!(read(&model, 0.5), json!({"low_rank": {"rank": 3, "layers": layers}}));
        let layers = json!([{"q": 16, "down": 9}, {}, {"q": 3}]);
        model.weights.insert(Target::V, WeightForm::Dense);
        let expected = json!({"rank": 9, "targets": {"v": "dense"}, "layers": layers});
        assert_eq!(read(&model, 3.0), json!({ "low_rank": expected }));
    }
}
