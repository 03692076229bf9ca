//! In what the plan of a run that goes on may differ from the one it began with.

use super::count::Count;
use super::plan::Plan;
use super::schedule_spec::ScheduleSpec;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What a setting decides, and so whether it may change where a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decides {
    /// Weights: it stays.
    Weights,
    /// The last step: it may grow where the steps before it stay ([`Plan::agrees_until`]).
    Length,
    /// Where something lies whose content has a hash of its own: free.
    Place,
    /// What is measured, and no weight: free.
    Measurement,
    /// Roundings only: free, just not bit for bit.
    Roundings,
    /// Neither weights nor what is measured of them: free.
    Nothing,
}

/// Every key of a spec, or the block that it is in, and what it decides. A block is listed as one
/// only where all of it binds, so that a new key elsewhere is listed or a test fails.
const KEYS: &[(&str, Decides)] = &[
    ("name", Decides::Nothing),
    ("seed", Decides::Weights),
    ("device", Decides::Roundings),
    ("linalg", Decides::Roundings),
    ("kernels", Decides::Roundings),
    ("dtype", Decides::Weights),
    ("model", Decides::Weights),
    ("init.hf", Decides::Place),
    ("init.run", Decides::Place),
    ("init.gguf", Decides::Place),
    ("init.peft.adapter", Decides::Place),
    ("init.peft.base", Decides::Place),
    ("data.source.cargo_registry", Decides::Weights),
    ("data.source.text.train", Decides::Place),
    ("data.source.text.val", Decides::Place),
    ("data.source.text.path", Decides::Place),
    ("data.source.text.val_fraction", Decides::Weights),
    ("data.source.jsonl.train", Decides::Place),
    ("data.source.jsonl.val", Decides::Place),
    ("data.source.jsonl.val_fraction", Decides::Weights),
    ("data.source.jsonl.text_key", Decides::Weights),
    ("data.source.parquet.train", Decides::Place),
    ("data.source.parquet.val", Decides::Place),
    ("data.source.parquet.val_fraction", Decides::Weights),
    ("data.source.parquet.text_key", Decides::Weights),
    ("data.source.instructions.train", Decides::Place),
    ("data.source.instructions.val", Decides::Place),
    ("data.source.instructions.val_fraction", Decides::Weights),
    ("data.source.instructions.chat_template", Decides::Place),
    ("data.source.bin.train", Decides::Place),
    ("data.source.bin.val", Decides::Place),
    ("data.source.bin.dtype", Decides::Place),
    ("data.source.bin.vocab_size", Decides::Weights),
    ("data.source.tinystories.dir", Decides::Place),
    ("data.source.tinystories.vocab_size", Decides::Weights),
    ("data.tokenizer.bytes", Decides::Weights),
    ("data.tokenizer.chars", Decides::Weights),
    ("data.tokenizer.bpe", Decides::Weights),
    ("data.tokenizer.file", Decides::Place),
    ("data.end_of_text", Decides::Weights),
    ("train.max_steps", Decides::Length),
    ("train.batch_size", Decides::Weights),
    ("train.gradient_accumulation_steps", Decides::Weights),
    ("train.packing", Decides::Weights),
    ("train.grad_clip", Decides::Weights),
    ("train.log_every", Decides::Nothing),
    ("train.tensorboard", Decides::Nothing),
    ("train.on_divergence", Decides::Weights),
    ("train.max_rollbacks", Decides::Weights),
    ("train.data_parallel.backend", Decides::Nothing),
    ("train.data_parallel.shard_optimizer", Decides::Nothing),
    ("train.data_parallel.deterministic", Decides::Roundings),
    ("train.data_parallel.timeout_seconds", Decides::Nothing),
    ("optimizer", Decides::Weights),
    ("rank", Decides::Weights),
    ("schedule", Decides::Weights),
    ("eval.every", Decides::Measurement),
    ("eval.tokens", Decides::Measurement),
    ("checkpoint.every", Decides::Nothing),
    ("checkpoint.keep_last", Decides::Nothing),
    ("sample.tokens", Decides::Nothing),
    ("sample.prompt", Decides::Nothing),
    ("sample.temperature", Decides::Nothing),
    ("sample.top_p", Decides::Nothing),
    ("sample.top_k", Decides::Nothing),
];

/// The key of the length.
const LENGTH: &str = "train.max_steps";

/// What a setting of a plan decides; one that no spec has is taken to bind.
pub(super) fn decides(path: &str) -> Decides {
    let found = KEYS.iter().find(|(key, _)| path.strip_prefix(key).is_some_and(is_below));
    found.map_or(Decides::Weights, |(_, decides)| *decides)
}

/// Whether a setting must stay as it is where a run goes on.
fn binds(path: &str) -> bool {
    matches!(decides(path), Decides::Weights | Decides::Length)
}

impl Plan {
    /// Key path and value of every setting by which a run is known: those that decide a weight,
    /// less where the data lies, whose content has a hash of its own.
    pub fn identity(&self) -> BTreeMap<String, Value> {
        let mut settings = self.trajectory();
        settings.retain(|path, _| binds(path));
        settings
    }

    /// As [`Plan::trajectory_differences`], less what may change where a run goes on: what is
    /// measured, and where the data lies and how its files are written: the same text at another
    /// path is the same data, which the hash of its content decides.
    pub fn binding_differences(&self, other: &Plan) -> Vec<String> {
        let differences = self.trajectory_differences(other).into_iter();
        differences
            .filter(|line| line.split_once(": ").is_some_and(|(key, _)| binds(key)))
            .collect()
    }

    /// As [`Plan::binding_differences`], from the settings that [`Plan::identity`] gave another
    /// plan, of an older version perhaps, to this one.
    pub fn differences_of_identity(&self, other: &BTreeMap<String, Value>) -> Vec<String> {
        let mut other = other.clone();
        other.retain(|path, _| binds(path));
        differences(&other, &self.identity())
    }

    /// The same plan of another number of steps, ranks and all else as they are.
    pub fn with_steps(&self, steps: u64) -> Self {
        let mut plan = self.clone();
        plan.train.max_steps = Count(steps);
        plan
    }

    /// All settings in which two plans differ, from `self` to `other`, as in
    /// `train.log_every: 10 -> 1`.
    pub fn differences(&self, other: &Plan) -> Vec<String> {
        differences(&self.settings(), &other.settings())
    }

    /// The last step up to which this plan and one that differs from it by more steps alone make
    /// the same weights; none where the number of steps decides every step, or something else
    /// differs.
    pub fn agrees_until(&self, longer: &Plan) -> Option<u64> {
        let (last, later) = (self.train.max_steps.0, longer.train.max_steps.0);
        let differing = self.binding_differences(longer);
        if last >= later || !differing.iter().all(|line| is_of_length(line)) {
            return None;
        }
        let mut until = match &self.schedule {
            ScheduleSpec::Constant(_) => last,
            ScheduleSpec::WarmupStableDecay(keys) => last.saturating_sub(keys.decay_steps.0),
            ScheduleSpec::Cosine(_) | ScheduleSpec::Linear(_) => return None,
        };
        // The last step of a run closes a cycle early.
        if let Some(dlra) = self.optimizer.dlra() {
            while until > 0 && dlra.cycle_phase(until, last) != dlra.cycle_phase(until, later) {
                until -= 1;
            }
        }
        Some(until)
    }
}

/// Whether a line of differences is the one of the number of steps.
pub fn is_of_length(line: &str) -> bool {
    line.strip_prefix(LENGTH).is_some_and(|rest| rest.starts_with(": "))
}

/// `key: from -> to` for every setting that differs, sorted by key.
pub(super) fn differences(
    ours: &BTreeMap<String, Value>,
    theirs: &BTreeMap<String, Value>,
) -> Vec<String> {
    let paths: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let shown = |value: Option<&Value>| {
        value.map_or("not set".to_owned(), |value| {
            value.as_str().map_or(value.to_string(), str::to_owned)
        })
    };
    let line =
        |path: &String| format!("{path}: {} -> {}", shown(ours.get(path)), shown(theirs.get(path)));
    paths.into_iter().filter(|path| ours.get(*path) != theirs.get(*path)).map(line).collect()
}

/// Whether what follows a key is nothing, or a part of its value.
fn is_below(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with(['.', '['])
}

#[cfg(test)]
mod tests {
    use super::{Decides, KEYS, decides, is_below};
    use crate::spec::{Plan, parse_plan, schema};
    use serde_json::Value;
    use std::collections::BTreeSet;

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
        assert!(before.binding_differences(&moved).is_empty());
        assert_eq!(before.identity(), moved.identity());
        let split = "{source: {text: {path: b.txt, val_fraction: 0.5}}, tokenizer: {file: a.json}}";
        assert_eq!(
            before.binding_differences(&plan(split)),
            ["data.source.text.val_fraction: 0.1 -> 0.5"]
        );
    }

    /// Every path of keys that the schema knows, blocks included.
    fn paths(schema: &Value, node: &Value, path: &str, found: &mut BTreeSet<String>) {
        if let Some(place) = node["$ref"].as_str() {
            let definition = schema.pointer(place.trim_start_matches('#')).expect("a definition");
            paths(schema, definition, path, found);
        }
        let below = |key: &str| if path.is_empty() { key.into() } else { format!("{path}.{key}") };
        for choices in ["allOf", "anyOf", "oneOf"] {
            for choice in node[choices].as_array().into_iter().flatten() {
                paths(schema, choice, path, found);
                let names = choice["enum"].as_array().into_iter().flatten();
                let names = names.chain(choice.get("const")).filter_map(Value::as_str);
                if path.starts_with("data.") {
                    found.extend(names.map(below));
                }
            }
        }
        for (key, entry) in node["properties"].as_object().into_iter().flatten() {
            found.insert(below(key));
            paths(schema, entry, &below(key), found);
        }
    }

    #[test]
    fn every_key_of_a_spec_is_listed_once() {
        let schema: Value = serde_json::to_value(schema()).expect("JSON");
        let mut found = BTreeSet::new();
        paths(&schema, &schema, "", &mut found);
        assert!(
            found.len() > 60 && found.contains("optimizer.low_rank.dlra.momentum"),
            "{found:?}"
        );
        let listed = |path: &String| {
            KEYS.iter().any(|(key, _)| path.strip_prefix(key).is_some_and(is_below))
        };
        // A block whose keys are listed one by one is no key itself.
        let is_block =
            |path: &String| KEYS.iter().any(|(key, _)| key.starts_with(&format!("{path}.")));
        let missing: Vec<_> =
            found.iter().filter(|path| !listed(path) && !is_block(path)).collect();
        assert!(missing.is_empty(), "say in KEYS what they decide: {missing:?}");
        for (index, (key, _)) in KEYS.iter().enumerate() {
            assert!(found.contains(*key), "{key} is no key of a spec");
            let again = KEYS[index + 1..]
                .iter()
                .any(|(other, _)| other.strip_prefix(key).is_some_and(is_below));
            assert!(!again, "{key} is listed twice");
        }
        assert_eq!(decides("rank.tolerance.cycle.freeze"), Decides::Weights);
        assert_eq!(decides("eval.every"), Decides::Measurement);
    }

    #[test]
    fn plans_agree_up_to_where_the_shorter_one_ends_otherwise() {
        let of = |steps: u64, rest: &str| {
            let yaml = format!(
                "name: small\nmodel: {{n_layer: 1, n_head: 1, n_embd: 8, block_size: 4, weights: \
                 {{low_rank: {{rank: 2}}}}}}\ndata: {{source: {{text: {{path: a.txt}}}}, tokenizer: \
                 chars}}\ntrain: {{max_steps: {steps}, batch_size: 1}}\n{rest}\n"
            );
            parse_plan(&yaml, "small.yaml", &[]).expect("a good spec").1
        };
        let until = |rest: &str| of(12, rest).agrees_until(&of(20, rest));
        let constant = "schedule: {constant: {warmup_steps: 2}}\n";
        assert_eq!(until(constant), Some(12));
        assert_eq!(of(12, constant).agrees_until(&of(12, constant)), None);
        assert_eq!(of(20, constant).agrees_until(&of(12, constant)), None);
        let decay = "{warmup_steps: 2, decay_steps: 5, final_ratio: 0}";
        assert_eq!(until(&format!("schedule: {{warmup_stable_decay: {decay}}}")), Some(7));
        assert_eq!(until("schedule: {cosine: {warmup_steps: 2}}"), None);
        let cycle =
            "optimizer: {low_rank: {dlra: {integrator: coefficient_cycle, coefficient_steps: 4}}}";
        assert_eq!(until(&format!("{constant}{cycle}")), Some(11), "step 12 closes a cycle early");
        let rank = |freeze: &str| {
            let cycle = format!("grow_every: 4, settle: 1{freeze}");
            format!("{constant}rank: {{tolerance: {{tau: 0.1, min_rank: 1, {cycle}}}}}")
        };
        assert_eq!(until(&rank("")), None, "ranks freeze at a share of the steps");
        assert_eq!(until(&rank(", freeze: 9")), Some(12));
        let other = of(20, "schedule: {constant: {warmup_steps: 3}}");
        assert_eq!(of(12, constant).agrees_until(&other), None);
    }
}
