//! What users see of specs: messages, overrides, plans, the schema, the shipped configurations.

mod ledger;
mod plans;
mod rules;
mod schema;

use lrpt::account::Ledger;
use lrpt::error::{Failure, exit_code};
use lrpt::spec::{
    self, Count, FactorForm, LowRankOptimizerSpec, Plan, RankPlan, Target, WeightForm, WeightsSpec,
};
use serde_json::Value;
use std::path::{Path, PathBuf};

const GOOD: &str = "\
name: example
model:
  n_layer: 2
  n_head: 2
  n_embd: 64
  block_size: 32
  weights: {low_rank: {rank: 16}}
data: {source: cargo_registry, tokenizer: bytes}
train: {max_steps: 1k, batch_size: 4}
";

/// The message for GOOD with one piece of text replaced by another.
fn message(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    message_of(&GOOD.replacen(from, to, 1), &[])
}

fn message_of(text: &str, settings: &[&str]) -> String {
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    let error = spec::parse_plan(text, "run.yaml", &settings).expect_err("a bad spec");
    assert_eq!(exit_code(&error), 2, "a bad spec is the user's error");
    assert!(error.downcast_ref::<Failure>().is_some());
    error.to_string()
}

fn plan_with(settings: &[&str]) -> Plan {
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    spec::parse_plan(GOOD, "run.yaml", &settings).expect("a good spec").1
}

/// One spec serves a method and its baselines: what the other form of weights leaves unused is
/// said, not refused.
#[test]
fn settings_without_effect_are_warnings() {
    let text = GOOD.to_owned()
        + "rank: {tolerance: {tau: 0.1}}\noptimizer: {low_rank: {dlra: {}}, dense: {adamw: {learning_rate: 0.5}}}\n";
    let unused = |settings: &[&str]| {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let (written, plan) = spec::parse_plan(&text, "run.yaml", &settings).expect("a good spec");
        (spec::unused_settings(&written).join("\n"), plan)
    };
    assert_eq!(unused(&[]).0, "");
    let (message, plan) = unused(&["model.weights=dense"]);
    insta::assert_snapshot!(message, @r"
    optimizer.low_rank: unused with `model.weights: dense`
    rank.tolerance: unused, only `model.weights: {low_rank: ...}` and adapters but LoRA's have ranks that change
    ");
    assert_eq!((plan.optimizer.low_rank, plan.rank), (None, RankPlan::Fixed));
    let (message, plan) = unused(&["model.weights={factored: {rank: 8}}", "train.max_steps=15"]);
    insta::assert_snapshot!(message, @r"
    optimizer.low_rank.dlra: unused with factored weights, which move by `optimizer.dense`'s rule
    rank.tolerance: unused, only `model.weights: {low_rank: ...}` and adapters but LoRA's have ranks that change
    schedule: the warm-up of 20 steps is longer than the run of 15; it ends before the full learning rate
    ");
    assert_eq!(plan.optimizer.factored_adamw().map(|adamw| adamw.learning_rate), Some(0.5));
}

#[test]
fn unknown_keys_and_choices() {
    insta::assert_snapshot!(message("n_layer", "n_layr"), @"run.yaml:3:3: model.n_layr: unknown key; did you mean `n_layer`? (keys here: arch, n_layer, n_head, n_kv_head, fused_qkv, n_embd, block_size, dropout, bias, n_inner, tie_word_embeddings, rope_theta, layer_norm_epsilon, rms_norm_eps, zero_outputs, weights)");
    insta::assert_snapshot!(message("{max_steps: 1k,", "{max_step: 1k,"), @"run.yaml:9:9: train.max_step: unknown key; did you mean `max_steps`? (keys here: max_steps, batch_size, gradient_accumulation_steps, packing, grad_clip, log_every, tensorboard, on_divergence, max_rollbacks, data_parallel)");
    insta::assert_snapshot!(message("model:\n", "optimiser: {}\nmodel:\n"), @"run.yaml:2:1: optimiser: unknown key; did you mean `optimizer`? (keys here: name, seed, device, linalg, kernels, dtype, model, init, data, train, optimizer, rank, schedule, eval, checkpoint, sample)");
    insta::assert_snapshot!(message("low_rank: {rank", "lowrank: {rank"), @"run.yaml:7:12: model.weights: unknown choice `lowrank`; did you mean `low_rank`? (choices here: dense, low_rank, factored, adapter)");
    insta::assert_snapshot!(message("{low_rank: {rank: 16}}", "full"), @"run.yaml:7:12: model.weights: unknown choice `full` (choices here: dense, low_rank, factored, adapter)");
    insta::assert_snapshot!(message("rank: 16", "rank: 16, targets: {w: 8}"), @"run.yaml:7:44: model.weights.low_rank.targets.w: unknown key (keys here: q, k, v, qkv, o, gate, up, down)");
    insta::assert_snapshot!(message("rank: 16", "rank: 16, keep: true"), @"run.yaml:7:34: model.weights.low_rank.keep: unknown key (keys here: rank, cut, start, spectrum, targets, layers)");
    insta::assert_snapshot!(message("train:", "rank: {fixed: {tau: 0.1}}\ntrain:"), @"run.yaml:9:16: rank.fixed.tau: unknown key; nothing is set here, remove it");
}

#[test]
fn missing_doubled_and_mistyped_keys() {
    insta::assert_snapshot!(message("  n_embd: 64\n", ""), @"run.yaml:2:1: model: missing key `n_embd`; add `n_embd: ...` under `model`");
    insta::assert_snapshot!(message("name: example\n", ""), @"run.yaml:1:1: missing key `name`; add `name: ...` at the top of the spec");
    insta::assert_snapshot!(message("  n_head: 2\n", "  n_head: 2\n  n_layer: 3\n"), @"run.yaml:5:3: model.n_layer: this key is here twice; remove one of them");
    insta::assert_snapshot!(message("n_layer: 2", "n_layer: four"), @"run.yaml:3:12: model.n_layer: expected a whole number of at least 0, found the text `four`");
    insta::assert_snapshot!(message("n_layer: 2", "n_layer: 1_000"), @"run.yaml:3:12: model.n_layer: expected a whole number of at least 0, found the text `1_000`; write `1000`");
    insta::assert_snapshot!(message("n_layer: 2", "n_layer: 2.5"), @"run.yaml:3:12: model.n_layer: expected a whole number of at least 0, found the number `2.5`");
    insta::assert_snapshot!(message("max_steps: 1k", "max_steps: 1.5"), @"run.yaml:9:20: train.max_steps: expected a whole number of at least 0 such as `500`, `60_000`, `1e6`, `64k` or `10M`, found the number `1.5`");
    insta::assert_snapshot!(message("max_steps: 1k", "max_steps: soon"), @"run.yaml:9:20: train.max_steps: expected a whole number of at least 0 such as `500`, `60_000`, `1e6`, `64k` or `10M`, found the text `soon`");
    insta::assert_snapshot!(message("name: example", "name: 12"), @"run.yaml:1:7: name: expected text, found the number `12`; put it in quotes");
    insta::assert_snapshot!(message("name: example", "name: example\ndevice: gpu"), @"run.yaml:2:9: device: expected a device (`auto`, `cpu`, `cuda`, `cuda:1` or `metal`), found the text `gpu`");
    insta::assert_snapshot!(message("name: example", "name: example\nlinalg: gpu"), @"run.yaml:2:9: linalg: unknown choice `gpu` (choices here: auto, host, device)");
    insta::assert_snapshot!(message("name: example", "name: example\nkernels: fast"), @"run.yaml:2:10: kernels: unknown choice `fast` (choices here: auto, portable)");
    insta::assert_snapshot!(message("name: example", "name: example\ndtype: {compute: fp16}"), @"run.yaml:2:18: dtype.compute: unknown choice `fp16` (choices here: f32, bf16)");
    insta::assert_snapshot!(message("rank: 16", "rank: 16, targets: {down: full}"), @"run.yaml:7:50: model.weights.low_rank.targets.down: expected a rank (a whole number such as `32`) or `dense`, found the text `full`");
    insta::assert_snapshot!(message("cargo_registry", "{text: {train: a.txt, val: [b.txt]}}"), @"run.yaml:8:31: data.source.text.train: expected a list such as `[a, b]`, found the text `a.txt`");
    insta::assert_snapshot!(message("cargo_registry", "text"), @"run.yaml:8:8: data.source.text: has neither; give either `train` and `val`, or `path` alone (with `val_fraction` if you like)");
    insta::assert_snapshot!(message("{low_rank: {rank: 16}}", "low_rank"), @"run.yaml:7:12: model.weights: `low_rank` needs settings; write `{low_rank: ...}`, or `{low_rank: {}}` where all have defaults");
    insta::assert_snapshot!(message("cargo_registry", "{cargo_registry: {}}"), @"run.yaml:8:16: data.source: `cargo_registry` takes no settings; write just `cargo_registry`");
    insta::assert_snapshot!(message("{low_rank: {rank: 16}}", "{low_rank: {rank: 16}, factored: {rank: 16}}"), @"run.yaml:7:12: model.weights: `low_rank` and `factored` exclude each other; keep one of `dense`, `low_rank`, `factored`, `adapter`");
    insta::assert_snapshot!(message("{low_rank: {rank: 16}}", "!low_rank {rank: 16}"), @"run.yaml:7:12: model.weights: YAML tags such as `!low_rank` are not used here; write `{low_rank: ...}`");
    insta::assert_snapshot!(message("{low_rank: {rank: 16}}", "{low_rank: {rank: 16}"), @"run.yaml:8:1: not YAML: did not find expected ',' or '}' at line 8 column 1, while parsing a flow mapping at line 7 column 12; look for a wrong indentation or an unclosed bracket or quote near this place");
    insta::assert_snapshot!(message_of("", &[]), @"run.yaml:1:1: missing key `name`; add `name: ...` at the top of the spec");
}

#[test]
fn values_that_do_not_fit_together() {
    insta::assert_snapshot!(message("n_head: 2", "n_head: 3"), @"run.yaml:4:11: model.n_head: 3 does not divide `model.n_embd` 64; choose 2 or 4");
    insta::assert_snapshot!(message("rank: 16", "rank: 65"), @"run.yaml:7:30: model.weights.low_rank.rank: rank 65 is not possible for `q`, 64 × 64; choose 1 to 64, or `dense`");
    insta::assert_snapshot!(message("rank: 16", "rank: 16, targets: {q: 0}"), @"run.yaml:7:47: model.weights.low_rank.targets.q: rank 0 is not possible for `q`, 64 × 64; choose 1 to 64, or `dense`");
    insta::assert_snapshot!(message("cargo_registry", "{text: {train: [a.txt], path: b.txt}}"), @"run.yaml:8:23: data.source.text: has `train`, `path`; give either `train` and `val`, or `path` alone (with `val_fraction` if you like)");
    insta::assert_snapshot!(message("tokenizer: bytes", "tokenizer: {bpe: {vocab_size: 256}}"), @"run.yaml:8:62: data.tokenizer.bpe.vocab_size: is 256; set at least 257 (256 bytes and the end-of-text token) and at most 4194304");
    insta::assert_snapshot!(message("cargo_registry, tokenizer: bytes", "{bin: {train: a.bin, val: b.bin}}, tokenizer: chars"), @"run.yaml:8:62: data.tokenizer: cannot be trained on a `bin` source, which is tokenized already; write `{file: tokenizer.json}` or `bytes`");
    insta::assert_snapshot!(message("train:", "optimizer: {low_rank: {adamw: {}}}\ntrain:"), @"run.yaml:9:31: optimizer.low_rank.adamw: needs `weights: {factored: ...}`; for low-rank weights write `{dlra: ...}` or remove it");
    insta::assert_snapshot!(message("train:", "optimizer: {low_rank: {heavy_ball: {}}}\ntrain:"), @"run.yaml:9:36: optimizer.low_rank.heavy_ball: needs `weights: {factored: ...}`; for low-rank weights write `{dlra: {momentum: heavy_ball}}`");
    insta::assert_snapshot!(message("train:", "optimizer: {matrices: {muon: {beta1: 1.5}}}\ntrain:"), @"run.yaml:9:38: optimizer.matrices.muon.beta1: is 1.5; set a number of at least 0 and less than 1");
    insta::assert_snapshot!(message("train:", "optimizer: {low_rank: {loro: {}}}\ntrain:"), @"run.yaml:9:30: optimizer.low_rank.loro: needs `weights: {factored: ...}`; for low-rank weights write `{dlra: ...}` or remove it");
    insta::assert_snapshot!(message("low_rank: {rank: 16}", "factored: {rank: 16, form: svd}"), @"run.yaml:7:40: model.weights.factored.form: unknown choice `svd` (choices here: ba, usv)");
    insta::assert_snapshot!(message("train:", "rank: {tolerance: {tau: 0.1, settle: 200}}\ntrain:"), @"run.yaml:9:38: rank.tolerance.settle: is 200; set at least 1 and less than `grow_every`, 100");
    insta::assert_snapshot!(message("train:", "rank: {tolerance: {tau: 0.1, min_rank: 20, max_rank: 12}}\ntrain:"), @r"
    run.yaml:9:40: rank.tolerance.min_rank: is 20, but `q` starts at rank 16; set 1 to 16
    run.yaml:9:54: rank.tolerance.max_rank: is 12, but `q`, 64 × 64, starts at rank 16; set 16 to 64
    ");
    insta::assert_snapshot!(message("train:", "rank: {tolerance: {tau: 0.1, final_tau: 1.5}}\ntrain:"), @"run.yaml:9:41: rank.tolerance.final_tau: is 1.5; set a number greater than 0 and less than 1");
    insta::assert_snapshot!(message("train:", "rank: {budget: {final_rank: 20}}\ntrain:"), @"run.yaml:9:29: rank.budget.final_rank: is 20; set at least 1, and no more than the starting ranks unless `grow_by` lets them grow");
    insta::assert_snapshot!(message("train:", "rank: {budget: {final_rank: 4, min_rank: 6}}\ntrain:"), @"run.yaml:9:42: rank.budget.min_rank: the smallest ranks store 14256 numbers, more than the 9408 of rank 4 everywhere; lower `min_rank` or raise `final_rank`");
    insta::assert_snapshot!(message("train:", "rank: {budget: {final_rank: 4, every: 9, settle: 9}}\ntrain:"), @"run.yaml:9:50: rank.budget.settle: is 9; set at least 0 and less than `every`, 9");
    insta::assert_snapshot!(message("train:", "rank: {budget: {final_rank: 4, norm: nuclear}}\ntrain:"), @"run.yaml:9:38: rank.budget.norm: unknown choice `nuclear` (choices here: frobenius, fisher)");
    insta::assert_snapshot!(
        message("train:", "optimizer: {dense: {adamw: {learning_rate: .nan, beta1: 1}}}\neval: {tokens: 31}\nsample: {top_p: 0}\ntrain:"),
        @r"
    run.yaml:9:44: optimizer.dense.adamw.learning_rate: is NaN; set a number greater than 0
    run.yaml:9:57: optimizer.dense.adamw.beta1: is 1; set a number of at least 0 and less than 1
    run.yaml:10:16: eval.tokens: is 31, less than one window of 32 tokens; set it to at least `model.block_size`
    run.yaml:11:17: sample.top_p: is 0; set a number greater than 0 and at most 1
    "
    );
}

/// One target in the place of three, and each refused where it is not there.
#[test]
fn queries_keys_and_values_as_one_target() {
    let fused = |weights: &str| {
        GOOD.replacen("  n_embd: 64\n", "  n_embd: 64\n  n_kv_head: 1\n  fused_qkv: true\n", 1)
            .replacen("{low_rank: {rank: 16}}", weights, 1)
    };
    let text = fused("{low_rank: {rank: 16, targets: {qkv: 49}, layers: [{qkv: 20}]}}");
    let (_, plan) = spec::parse_plan(&text, "run.yaml", &[]).expect("a good spec");
    let names: Vec<&str> = plan.model.weights.keys().map(|target| target.name()).collect();
    assert_eq!(names, ["qkv", "o", "up", "down"]);
    assert_eq!(plan.model.shape(Target::QKV), (64 + 2 * 32, 64));
    assert_eq!(plan.model.form_in(0, Target::QKV), WeightForm::LowRank { rank: 20 });
    assert_eq!(plan.model.form_in(1, Target::QKV), WeightForm::LowRank { rank: 49 });
    plan.validate().expect("a plan that a spec leads to");
    assert_eq!(Plan::resolve(&plan.as_spec().expect("a spec")).expect("a plan"), plan);
    let plain = plan_with(&[]);
    assert_eq!(plain.hash(), plan_with(&["model.fused_qkv=false"]).hash());
    assert!(!spec::to_yaml(&plain).expect("YAML").contains("fused_qkv"));

    insta::assert_snapshot!(message("rank: 16", "rank: 16, targets: {qkv: 8}"), @"run.yaml:7:49: model.weights.low_rank.targets.qkv: `qkv` is a target with `model.fused_qkv: true`; set that, or name `q`, `k` and `v`");
    insta::assert_snapshot!(message_of(&fused("{low_rank: {rank: 16, targets: {k: 8}}}"), &[]), @"run.yaml:9:47: model.weights.low_rank.targets.k: `k` is a part of the target `qkv` with `model.fused_qkv: true`; name `qkv`, or remove `fused_qkv`");
    insta::assert_snapshot!(message_of(&fused("{low_rank: {rank: 16, layers: [{v: 8}]}}"), &[]), @"run.yaml:9:13: model.weights.low_rank.layers[0].v: `v` is a part of the target `qkv` with `model.fused_qkv: true`; name `qkv`, or remove `fused_qkv`");
    insta::assert_snapshot!(message_of(&fused("{factored: {rank: 16, targets: {gate: 8}}}"), &[]), @"run.yaml:9:50: model.weights.factored.targets.gate: `gate` is no target of gpt2; its targets are qkv, o, up, down");
    let ranks = "rank={tolerance: {tau: 0.1, targets: {q: {max_rank: 20}}}}";
    insta::assert_snapshot!(message_of(&fused("{low_rank: {rank: 16}}"), &[ranks]), @"--set rank={tolerance: {tau: 0.1, targets: {q: {max_rank: 20}}}}: rank.tolerance.targets.q: `q` is a part of the target `qkv` with `model.fused_qkv: true`; name `qkv`, or remove `fused_qkv`");
    let adapter = "model.weights={adapter: {rank: 4, targets: [q, v]}}";
    insta::assert_snapshot!(message_of(&fused("dense"), &[adapter, "init={run: source}"]), @r"
    --set model.weights={adapter: {rank: 4, targets: [q, v]}}: model.weights.adapter.targets.q: `q` is a part of the target `qkv` with `model.fused_qkv: true`; name `qkv`, or remove `fused_qkv`
    --set model.weights={adapter: {rank: 4, targets: [q, v]}}: model.weights.adapter.targets.v: `v` is a part of the target `qkv` with `model.fused_qkv: true`; name `qkv`, or remove `fused_qkv`
    ");
    insta::assert_snapshot!(message_of(&fused("{low_rank: {rank: 65}}"), &[]), @"run.yaml:9:30: model.weights.low_rank.rank: rank 65 is not possible for `qkv`, 128 × 64; choose 1 to 64, or `dense`");
}

/// Case 24: a size beyond every machine is refused at once, wherever it stands, and no count made
/// from accepted ones overflows.
/// Settings of one architecture only, each with its place; at their usual values they leave the
/// plan as it is.
#[test]
fn settings_of_an_architecture() {
    insta::assert_snapshot!(message("  n_embd: 64\n", "  n_embd: 64\n  rope_theta: 500\n"), @"run.yaml:6:15: model.rope_theta: has no meaning for gpt2, which has learned positions; remove it");
    insta::assert_snapshot!(message("  n_embd: 64\n", "  n_embd: 64\n  rms_norm_eps: 1e-6\n"), @"run.yaml:6:17: model.rms_norm_eps: has no meaning for gpt2, which has `layer_norm_epsilon`; remove it");
    insta::assert_snapshot!(message("  n_embd: 64\n", "  n_embd: 64\n  layer_norm_epsilon: 0\n"), @"run.yaml:6:23: model.layer_norm_epsilon: is 0; set a number between 0 and 1");
    insta::assert_snapshot!(message("  n_embd: 64\n", "  n_embd: 64\n  n_inner: 0\n"), @"run.yaml:6:12: model.n_inner: is 0; set at least 1");
    insta::assert_snapshot!(message("  n_embd: 64\n", "  n_embd: 64\n  arch: llama\n  layer_norm_epsilon: 1e-5\n"), @"run.yaml:7:23: model.layer_norm_epsilon: has no meaning for llama, which has `rms_norm_eps`; remove it");
    insta::assert_snapshot!(message("  n_embd: 64\n", "  n_embd: 64\n  arch: llama\n  rope_theta: 0\n"), @"run.yaml:7:15: model.rope_theta: is 0; set a number from 1 to 1e12");
    insta::assert_snapshot!(message("  n_head: 2\n", "  n_head: 64\n  arch: llama\n"), @"run.yaml:4:11: model.n_head: is 64, which makes heads 1 wide; rotary positions turn pairs of numbers, choose a number of heads that makes the width even");
    insta::assert_snapshot!(message("rank: 16", "rank: 16, targets: {gate: 8}"), @"run.yaml:7:50: model.weights.low_rank.targets.gate: `gate` is no target of gpt2; its targets are q, k, v, o, up, down");
    let usual = ["model.n_inner=256", "model.tie_word_embeddings=true"];
    assert_eq!(plan_with(&usual), plan_with(&[]));
    let usual_llama = [
        "model.arch=llama",
        "model.n_inner=176",
        "model.tie_word_embeddings=false",
        "model.rope_theta=10000",
        "model.rms_norm_eps=1e-6",
    ];
    let llama = plan_with(&usual_llama);
    assert_eq!(llama, plan_with(&usual_llama[..1]));
    assert_eq!(llama.model.shape(Target::GATE), (176, 64));
    for setting in ["model.n_inner=200", "model.tie_word_embeddings=true", "model.rope_theta=2"] {
        let other = plan_with(&["model.arch=llama", setting]);
        assert_ne!(other.hash(), llama.hash(), "{setting}");
        let written = spec::to_yaml(&other).expect("YAML");
        assert_eq!(Plan::from_yaml(&written, "plan.yaml").expect("a plan"), other);
    }
}

#[test]
fn every_size_has_a_bound() {
    let started = std::time::Instant::now();
    for huge in [u64::MAX.to_string(), "10000000019".into(), "100000000".into()] {
        for key in [
            "model.n_layer",
            "model.n_head",
            "model.n_embd",
            "model.block_size",
            "model.weights.low_rank.rank",
            "train.batch_size",
            "train.gradient_accumulation_steps",
            "optimizer.low_rank.dlra.coefficient_steps",
            "sample.tokens",
            "rank.budget.final_rank",
            "data.tokenizer.bpe.vocab_size",
        ] {
            let message = message_of(GOOD, &[&format!("{key}={huge}")]);
            assert!(message.contains(key), "{key}: {message}");
        }
        for key in ["grow_by", "min_rank", "max_rank"] {
            let budget = format!("rank={{budget: {{final_rank: 4, {key}: {huge}}}}}");
            assert!(message_of(GOOD, &[&budget]).contains(key), "{budget}");
        }
        let bin = format!("data.source={{bin: {{train: a, val: b, vocab_size: {huge}}}}}");
        assert!(message_of(GOOD, &[&bin]).contains("vocab_size"), "{bin}");
    }
    let both = ["model.n_embd=10000000019", "model.n_head=5000000000"];
    insta::assert_snapshot!(message_of(GOOD, &both), @r"
    --set model.n_head=5000000000: model.n_head: is 5000000000; set at most 65536
    --set model.n_embd=10000000019: model.n_embd: is 10000000019; set at most 65536
    ");
    insta::assert_snapshot!(message_of(GOOD, &["model.n_layer=4096", "model.n_embd=65536"]), @"--set model.n_layer=4096: model.n_layer: 4096 blocks of width 65536 have 211106232532992 numbers where they are dense; set fewer or narrower ones, at most 1000000000000 in all");
    insta::assert_snapshot!(message_of(GOOD, &["train.batch_size=65536", "train.gradient_accumulation_steps=65536", "model.n_embd=1024"]), @"--set train.batch_size=65536: train.batch_size: a step would take some 2.1e19 operations, and at most 1e18 are accepted; reduce the batch or the network");
    assert!(started.elapsed() < std::time::Duration::from_secs(1), "an answer in a second");
}

/// The largest sizes that are accepted together are counted without a wrapped number.
#[test]
fn the_ledger_of_the_largest_accepted_sizes_does_not_overflow() {
    let wide = ["model.n_layer=16", "model.n_embd=65536", "model.weights=dense"];
    let deep = ["model.n_layer=4096", "model.n_embd=4096", "model.weights={low_rank: {rank: 64}}"];
    let many =
        ["train.batch_size=65536", "train.gradient_accumulation_steps=4096", "train.max_steps=1e9"];
    let long = ["model.block_size=1048576", "eval.tokens=2M", "model.weights=dense"];
    let large_vocabulary =
        ["data.tokenizer.bpe.vocab_size=4194304", "model.n_embd=65536", "train.batch_size=256"];
    for (settings, vocabulary) in
        [(wide, 256), (deep, 256), (many, 256), (long, 256), (large_vocabulary, 1 << 22)]
    {
        let ledger = Ledger::new(&plan_with(&settings), vocabulary, 1024);
        let tokens = u128::from(ledger.tokens_per_step);
        let parameters = u128::from(ledger.parameters.total());
        let (operations, memory) = (u128::from(ledger.flops_per_step()), ledger.memory.peak());
        assert!(
            operations > tokens * 2 && operations < 10u128.pow(19),
            "{settings:?}: {operations}"
        );
        assert!(
            u128::from(memory) > 4 * parameters && memory < u64::MAX / 4,
            "{settings:?}: {memory}"
        );
    }
}

#[test]
fn integrators_and_what_they_need() {
    let dlra = |keys: &str| format!("optimizer: {{low_rank: {{dlra: {{{keys}}}}}}}\ntrain:");
    insta::assert_snapshot!(message("train:", &dlra("integrator: augmented_bug, coefficient_steps: 0")), @"run.yaml:9:77: optimizer.low_rank.dlra.coefficient_steps: is 0; set at least 1");
    insta::assert_snapshot!(message("train:", &dlra("truncate_every: 0")), @"run.yaml:9:47: optimizer.low_rank.dlra.truncate_every: is 0; set at least 1");
    insta::assert_snapshot!(message("train:", &dlra("integrator: augmented, momentum: adam")), @"run.yaml:9:43: optimizer.low_rank.dlra.integrator: unknown choice `augmented`; did you mean `augmented_bug`? (choices here: tangent, augmented_bug, coefficient_cycle)");
    insta::assert_snapshot!(
        message("train:", &dlra("integrator: augmented_bug, momentum: matrix_adam")),
        @"run.yaml:9:68: optimizer.low_rank.dlra.momentum: `matrix_adam` has gathered no second moments of the directions that `integrator: augmented_bug` steps along; choose `spectral`, `adam` or `heavy_ball`, or the integrator `tangent` or `coefficient_cycle`"
    );
    let unused = |keys: &str| {
        let (written, plan) =
            spec::parse_plan(&GOOD.replacen("train:", &dlra(keys), 1), "run.yaml", &[])
                .expect("a good spec");
        (
            spec::unused_settings(&written).join("\n"),
            plan.optimizer.dlra().and_then(|dlra| dlra.coefficient_steps),
        )
    };
    assert_eq!(unused("integrator: augmented_bug"), (String::new(), Some(Count(1))));
    assert_eq!(
        unused("integrator: coefficient_cycle, momentum: matrix_adam"),
        (String::new(), Some(Count(9)))
    );
    assert_eq!(unused("retraction: svd, truncate_every: 5"), (String::new(), None));
    let (message, steps) = unused("coefficient_steps: 3, truncate_every: 5");
    assert_eq!(steps, None);
    insta::assert_snapshot!(message, @r"
    optimizer.low_rank.dlra.coefficient_steps: unused with `integrator: tangent`, whose one Galerkin step takes no gradient of its own
    optimizer.low_rank.dlra.truncate_every: unused with `retraction: subspace`, which takes no SVD while ranks stay
    ");
    insta::assert_snapshot!(unused("integrator: coefficient_cycle, coefficient_steps: 1k, truncate_every: 2").0, @r"
    optimizer.low_rank.dlra.truncate_every: unused with `integrator: coefficient_cycle`, which truncates by SVD at the end of each cycle
    optimizer.low_rank.dlra.coefficient_steps: a cycle of 1001 steps is longer than the run of 1000; it ends early, truncated
    ");
}

#[test]
fn baselines_that_do_not_fit_their_matrices() {
    let factored = GOOD.replacen("low_rank: {rank: 16}", "factored: {rank: 16, form: usv}", 1);
    let loro = factored.clone() + "optimizer: {low_rank: {loro: {exact_every: 4, beta2: 1}}}\n";
    insta::assert_snapshot!(message_of(&loro, &[]), @r"
    run.yaml:10:30: optimizer.low_rank.loro: moves W = B A; write `weights: {factored: {form: ba, ...}}`, or another rule for these factors
    run.yaml:10:54: optimizer.low_rank.loro.beta2: is 1; set a number of at least 0 and less than 1
    run.yaml:10:24: optimizer.low_rank.loro.restart_warmup_steps: is 5; set less than `exact_every` 4, so that the full learning rate is reached
    ");
    let dense = GOOD.replacen("{low_rank: {rank: 16}}", "dense", 1);
    let galore = dense.clone() + "optimizer: {matrices: {galore: {scale: 0, refresh_every: 0}}}\n";
    insta::assert_snapshot!(message_of(&galore, &[]), @r"
    run.yaml:10:58: optimizer.matrices.galore.refresh_every: is 0; set at least 1
    run.yaml:10:40: optimizer.matrices.galore.scale: is 0; set a number greater than 0, such as 0.25
    run.yaml:10:24: optimizer.matrices.galore.rank: is 128; set 1 to 64, since `q` is 64 × 64
    ");
}

#[test]
fn settings_are_named_in_messages() {
    insta::assert_snapshot!(message_of(GOOD, &["model.n_layr=8"]), @"--set model.n_layr=8: model.n_layr: unknown key; did you mean `n_layer`? (keys here: arch, n_layer, n_head, n_kv_head, fused_qkv, n_embd, block_size, dropout, bias, n_inner, tie_word_embeddings, rope_theta, layer_norm_epsilon, rms_norm_eps, zero_outputs, weights)");
    insta::assert_snapshot!(message_of(GOOD, &["model.n_layer=many"]), @"--set model.n_layer=many: model.n_layer: expected a whole number of at least 0, found the text `many`");
    insta::assert_snapshot!(message_of(GOOD, &["model.n_layer"]), @"--set model.n_layer: no `=`; write `--set key.path=value`, for example `--set train.max_steps=1000`");
    insta::assert_snapshot!(message_of(GOOD, &["train.max_steps.x=1"]), @"--set train.max_steps.x=1: train.max_steps.x: `x` cannot be set under `train.max_steps`, which is not a mapping; set `train.max_steps` as a whole");
    insta::assert_snapshot!(message_of(GOOD, &["rank.tolerance.min_rank=4"]), @"--set rank.tolerance.min_rank=4: rank.tolerance: missing key `tau`; add `tau: ...` under `rank.tolerance`");
    insta::assert_snapshot!(message_of(GOOD, &["data={source: cargo_registry, tokeniser: chars}"]), @"--set data={source: cargo_registry, tokeniser: chars}: data.tokeniser: unknown key; did you mean `tokenizer`? (keys here: source, tokenizer, end_of_text)");
    insta::assert_snapshot!(message_of(GOOD, &["train.batch_size=8", "train.batch_size=0"]), @"--set train.batch_size=0: train.batch_size: is 0; set at least 1");
    insta::assert_snapshot!(message_of(GOOD, &["model.weights={low_rank: {"]), @"--set model.weights={low_rank: {: `{low_rank: {` is not YAML: did not find expected node content at line 2 column 1, while parsing a flow node; write `--set key.path=value`, for example `--set train.max_steps=1000`");
}

#[test]
fn number_types_are_of_the_trajectory_and_places_are_not() {
    let plain = plan_with(&[]);
    let elsewhere = plan_with(&["device=cuda:1", "linalg=device", "kernels=portable"]);
    assert_eq!(plain.hash(), elsewhere.hash());
    let half = plan_with(&["dtype.compute=bf16"]);
    assert_eq!(
        plain.trajectory_differences(&half),
        ["dtype.compute: not set -> bf16", "dtype.master: not set -> f32"]
    );
    assert_eq!(
        plain.hash(),
        plan_with(&["dtype={compute: f32, master: f32}"]).hash(),
        "what is said and what is meant are one"
    );
    // Plans of before these keys existed are read, and written as they were.
    let yaml = spec::to_yaml(&plain).expect("YAML");
    assert!(
        !yaml.contains("linalg") && !yaml.contains("kernels") && !yaml.contains("dtype"),
        "{yaml}"
    );
    for plan in [plain, elsewhere, half] {
        assert_eq!(
            spec::Plan::from_yaml(&spec::to_yaml(&plan).expect("YAML"), "plan.yaml")
                .expect("a plan"),
            plan
        );
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = spec::load(Path::new("configs/no-such.yaml"), &[]).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().starts_with("configs/no-such.yaml: cannot read the spec"), "{error}");
}

fn shipped_configs() -> Vec<PathBuf> {
    let mut configs: Vec<PathBuf> = ["configs", "configs/methods"]
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    configs.sort();
    configs
}
