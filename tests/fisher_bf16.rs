//! Ranks cut in the norm of the Fisher matrix from bf16 activations: the run ends where the f32 run
//! ends.

mod support;

use std::path::Path;
use support::Workplace;

/// The ASCII characters of this crate's sources, in the order of their names.
fn sources(folder: &Path, text: &mut String) {
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .expect("the sources")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, text);
        } else {
            let source = std::fs::read_to_string(&path).expect("a source file");
            text.extend(source.chars().filter(|c| *c == '\n' || (' '..='~').contains(c)));
        }
    }
}

#[test]
fn a_bf16_budget_ends_where_the_f32_budget_ends() {
    let workplace = Workplace::new();
    let mut text = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    text.truncate(370_000);
    std::fs::write(workplace.path("text.txt"), text).expect("the text");
    let spec = "\
name: budget
model: {n_layer: 1, n_head: 2, n_embd: 32, block_size: 32, weights: {low_rank: {rank: 32}}}
data: {source: {text: {path: text.txt, val_fraction: 0.1}}, tokenizer: chars}
train: {max_steps: 120, batch_size: 8, grad_clip: 0, log_every: 20}
optimizer:
  dense: {adamw: {learning_rate: 3e-3, weight_decay: 0.1}}
  low_rank: {dlra: {momentum: spectral, nesterov: true, learning_rate: 1.5e-2, weight_decay: 0.1}}
rank: {budget: {final_rank: 6, schedule: linear, every: 10}}
schedule: {cosine: {warmup_steps: 10, final_ratio: 0.1}}
eval: {every: 120, tokens: 10k}
checkpoint: {every: 120, keep_last: 1}
sample: {tokens: 0}
device: cpu
";
    std::fs::write(workplace.path("budget.yaml"), spec).expect("the spec");
    for seed in 1..=3 {
        let loss = |compute: &str| {
            let run = format!("{compute}-{seed}");
            let (seed, dtype) = (format!("seed={seed}"), format!("dtype={{compute: {compute}}}"));
            let arguments =
                ["train", "budget.yaml", "--run-dir", &run, "--set", &seed, "--set", &dtype];
            let output = workplace.run(&arguments, 0);
            let report: serde_json::Value =
                serde_json::from_slice(&output.stdout).expect("a line of JSON");
            report["loss"].as_f64().expect("a loss")
        };
        let (f32, bf16) = (loss("f32"), loss("bf16"));
        assert!((f32 - bf16).abs() < 0.015, "seed {seed}: f32 {f32}, bf16 {bf16}");
    }
}
