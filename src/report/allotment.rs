//! The ranks that a run's weights have, written as the spec of a run that has them from its first
//! step.

use crate::spec::Target;
use std::collections::BTreeMap;

/// `model.weights` of a spec with these ranks, each times `scale`, rounded, and at least 1:
/// `{low_rank: {rank: r, layers: [{q: …, …}, …]}}` with r the mean over all of them. The ranks come
/// by block and target; a block that has none is an empty entry.
pub fn allotment(ranks: &BTreeMap<(usize, Target), usize>, scale: f64) -> String {
    let scaled = |rank: usize| ((rank as f64 * scale).round() as usize).max(1);
    let total: usize = ranks.values().map(|rank| scaled(*rank)).sum();
    let mean = (total as f64 / ranks.len().max(1) as f64).round() as usize;
    let blocks = ranks.keys().map(|(layer, _)| layer + 1).max().unwrap_or(0);
    let block = |layer: usize| {
        let own = ranks.iter().filter(|((of, _), _)| *of == layer);
        let own = own.map(|((_, target), rank)| format!("{}: {}", target.name(), scaled(*rank)));
        format!("  {{{}}}", own.collect::<Vec<_>>().join(", "))
    };
    let layers: Vec<String> = (0..blocks).map(block).collect();
    format!("{{low_rank: {{rank: {mean}, layers: [\n{}\n]}}}}", layers.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::allotment;
    use crate::spec::Target;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    #[test]
    fn the_ranks_are_written_by_block_and_none_is_0() {
        let ranks =
            BTreeMap::from([((0, Target::Q), 9), ((0, Target::DOWN), 3), ((2, Target::Q), 1)]);
        let read = |scale: f64| -> Value {
            let written = allotment(&ranks, scale);
            serde_yaml::from_str(&written).expect(&written)
        };
        let layers = json!([{"q": 9, "down": 3}, {}, {"q": 1}]);
        assert_eq!(read(1.0), json!({"low_rank": {"rank": 4, "layers": layers}}));
        let layers = json!([{"q": 5, "down": 2}, {}, {"q": 1}]);
        assert_eq!(read(0.5), json!({"low_rank": {"rank": 3, "layers": layers}}));
    }
}
