//! In what the plan of a run that goes on may differ from the one it began with.

use super::plan::Plan;
use serde_json::Value;
use std::collections::BTreeMap;

/// Settings that say where data lies and how it is written there.
const PLACES_OF_DATA: &[&str] = &[
    "data.source.text.train",
    "data.source.text.val",
    "data.source.text.path",
    "data.source.jsonl.train",
    "data.source.jsonl.val",
    "data.source.instructions.train",
    "data.source.instructions.val",
    "data.source.instructions.chat_template",
    "data.source.bin.train",
    "data.source.bin.val",
    "data.source.bin.dtype",
    "data.source.tinystories.dir",
    "data.tokenizer.file",
    "init.hf",
    "init.run",
    "init.peft.adapter",
    "init.peft.base",
];

impl Plan {
    /// Key path and value of every setting by which a run is known: those that can change a loss or
    /// a weight, less where the data lies, whose content has a hash of its own.
    pub fn identity(&self) -> BTreeMap<String, Value> {
        let mut settings = self.trajectory();
        settings.retain(|path, _| {
            !PLACES_OF_DATA.iter().any(|place| path.strip_prefix(place).is_some_and(is_below))
        });
        settings
    }

    /// As [`Plan::trajectory_differences`], less where the data lies and how its files are written:
    /// the same text at another path is the same data, which the hash of its content decides.
    pub fn differences_but_of_paths(&self, other: &Plan) -> Vec<String> {
        let is_place = |line: &String| {
            PLACES_OF_DATA.iter().any(|path| line.starts_with(&format!("{path}: ")))
        };
        self.trajectory_differences(other).into_iter().filter(|line| !is_place(line)).collect()
    }
}

/// Whether what follows a key is nothing, or a part of its value.
fn is_below(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with(['.', '['])
}

#[cfg(test)]
mod tests {
    use crate::spec::{Plan, parse_plan};

    fn plan(data: &str) -> Plan {
        let yaml = format!(
            "name: small\nmodel: {{n_layer: 1, n_head: 1, n_embd: 8, block_size: 4, weights: dense}}\n\
             data: {data}\ntrain: {{max_steps: 2, batch_size: 1}}\n\
             schedule: {{constant: {{warmup_steps: 0}}}}\n"
        );
        parse_plan(&yaml, "small.yaml", &[]).expect("a good spec").1
    }

    /// Case 37.
    #[test]
    fn paths_do_not_count_and_everything_else_does() {
        let before = plan("{source: {text: {path: a.txt}}, tokenizer: {file: a.json}}");
        let moved = plan("{source: {text: {path: b/a.txt}}, tokenizer: {file: b.json}}");
        assert_eq!(before.trajectory_differences(&moved).len(), 2);
        assert!(before.differences_but_of_paths(&moved).is_empty());
        assert_eq!(before.identity(), moved.identity());
        let split = "{source: {text: {path: b.txt, val_fraction: 0.5}}, tokenizer: {file: a.json}}";
        assert_eq!(
            before.differences_but_of_paths(&plan(split)),
            ["data.source.text.val_fraction: 0.1 -> 0.5"]
        );
    }
}
