//! The ranks that a run's weights have, written as the spec of a run that has them from its first
//! step.

use crate::spec::{ModelPlan, Target, WeightForm};
use std::collections::BTreeMap;

/// `model.weights` of a spec with these ranks of a model's low-rank matrices, each times `scale`,
/// rounded, at least 1 and at most what the matrix can have: `{low_rank: {rank: r, layers: [{q: …,
/// …}, …]}}` with r the mean over all of them, and `targets` for those that are dense in the model.
/// The ranks come by block and target; a block that has none is an empty entry. Of adapters
/// `{adapter: …}`, with `targets` for those that are adapted and `head` for that of the head; there
/// 0 is a rank, that of none.
pub fn allotment(
    model: &ModelPlan,
    ranks: &BTreeMap<(usize, Target), usize>,
    scale: f64,
) -> String {
    let (form, least) = if model.is_adapted() { ("adapter", 0) } else { ("low_rank", 1) };
    let scaled = |target: Target, rank: usize| {
        // The vocabulary bounded the head's rank when it was chosen.
        let (rows, columns) = model.shape_with_head(target, usize::MAX);
        ((rank as f64 * scale).round() as usize).clamp(least, rows.min(columns).max(1))
    };
    let left_out = model.places().filter(|(_, target)| model.form(*target).is_adapter());
    let mut ranks = ranks.clone();
    let head = ranks.remove(&(model.n_layer, Target::HEAD)).map(|rank| scaled(Target::HEAD, rank));
    let head = head.filter(|rank| *rank > 0).map(|rank| format!("head: {rank}, "));
    left_out.for_each(|place| {
        ranks.entry(place).or_insert(0);
    });
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
    let (dense, others): (Vec<_>, Vec<_>) =
        model.weights.iter().partition(|(_, form)| **form == WeightForm::Dense);
    let names = |targets: &[(&Target, &WeightForm)], end: &str| {
        let names = targets.iter().map(|(target, _)| format!("{}{end}", target.name()));
        names.collect::<Vec<_>>().join(", ")
    };
    let targets = match (dense.is_empty(), form) {
        (true, _) => String::new(),
        (false, "adapter") => format!("targets: [{}], ", names(&others, "")),
        (false, _) => format!("targets: {{{}}}, ", names(&dense, ": dense")),
    };
    let (mean, head, layers) = (mean.max(1), head.unwrap_or_default(), layers.join(",\n"));
    format!("{{{form}: {{rank: {mean}, {targets}{head}layers: [\n{layers}\n]}}}}")
}

#[cfg(test)]
mod tests {
    use super::allotment;
    use crate::spec::{AdapterForm, Architecture, ModelPlan, Target, WeightForm};
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

    /// An adapter may be scaled away, and one that was left out stays so.
    #[test]
    fn ranks_of_adapters_are_written_as_adapters() {
        let mut model = ModelPlan { n_layer: 2, n_embd: 16, ..ModelPlan::of(Architecture::Gpt2) };
        let (form, alpha) = (AdapterForm::LowRank, None);
        model.weights.values_mut().for_each(|form| *form = WeightForm::Dense);
        for target in [Target::Q, Target::DOWN] {
            model.weights.insert(target, WeightForm::Adapter { rank: 4, form, alpha });
        }
        model.layers = vec![BTreeMap::new(), BTreeMap::from([(Target::Q, 0)])];
        let ranks =
            BTreeMap::from([((0, Target::Q), 9), ((0, Target::DOWN), 1), ((1, Target::DOWN), 3)]);
        let written = allotment(&model, &ranks, 0.4);
        let found: Value = serde_yaml::from_str(&written).expect(&written);
        let layers = json!([{"q": 4, "down": 0}, {"q": 0, "down": 1}]);
        let expected = json!({"rank": 1, "targets": ["q", "down"], "layers": layers});
        assert_eq!(found, json!({ "adapter": expected }));

        // The head's stands by itself.
        let mut with_head = ranks.clone();
        with_head.insert((2, Target::HEAD), 40);
        let written = allotment(&model, &with_head, 1.0);
        let found: Value = serde_yaml::from_str(&written).expect(&written);
        assert_eq!(found["adapter"]["head"], json!(16));
        assert_eq!(found["adapter"]["layers"].as_array().expect("blocks").len(), 2);
    }
}
