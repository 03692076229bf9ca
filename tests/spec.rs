//! What users see of specs: messages, overrides, plans, the schema, the shipped configurations.

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
    rank.tolerance: unused, only `model.weights: {low_rank: ...}` have ranks that change
    ");
    assert_eq!((plan.optimizer.low_rank, plan.rank), (None, RankPlan::Fixed));
    let (message, plan) = unused(&["model.weights={factored: {rank: 8}}", "train.max_steps=20"]);
    insta::assert_snapshot!(message, @r"
    optimizer.low_rank.dlra: unused with factored weights, which move by `optimizer.dense`'s rule
    rank.tolerance: unused, only `model.weights: {low_rank: ...}` have ranks that change
    schedule: the warm-up of 100 steps is longer than the run of 20; it ends before the full learning rate
    ");
    assert_eq!(plan.optimizer.factored_adamw().map(|adamw| adamw.learning_rate), Some(0.5));
}

#[test]
fn unknown_keys_and_choices() {
    insta::assert_snapshot!(message("n_layer", "n_layr"), @"run.yaml:3:3: model.n_layr: unknown key; did you mean `n_layer`? (keys here: arch, n_layer, n_head, n_kv_head, n_embd, block_size, dropout, bias, n_inner, tie_word_embeddings, rope_theta, layer_norm_epsilon, rms_norm_eps, zero_outputs, weights)");
    insta::assert_snapshot!(message("{max_steps: 1k,", "{max_step: 1k,"), @"run.yaml:9:9: train.max_step: unknown key; did you mean `max_steps`? (keys here: max_steps, batch_size, gradient_accumulation_steps, grad_clip, log_every, tensorboard, on_divergence, max_rollbacks, data_parallel)");
    insta::assert_snapshot!(message("model:\n", "optimiser: {}\nmodel:\n"), @"run.yaml:2:1: optimiser: unknown key; did you mean `optimizer`? (keys here: name, seed, device, linalg, kernels, dtype, model, init, data, train, optimizer, rank, schedule, eval, checkpoint, sample)");
    insta::assert_snapshot!(message("low_rank: {rank", "lowrank: {rank"), @"run.yaml:7:12: model.weights: unknown choice `lowrank`; did you mean `low_rank`? (choices here: dense, low_rank, factored, adapter)");
    insta::assert_snapshot!(message("{low_rank: {rank: 16}}", "full"), @"run.yaml:7:12: model.weights: unknown choice `full` (choices here: dense, low_rank, factored, adapter)");
    insta::assert_snapshot!(message("rank: 16", "rank: 16, targets: {w: 8}"), @"run.yaml:7:44: model.weights.low_rank.targets.w: unknown key (keys here: q, k, v, o, gate, up, down)");
    insta::assert_snapshot!(message("rank: 16", "rank: 16, keep: true"), @"run.yaml:7:34: model.weights.low_rank.keep: unknown key (keys here: rank, cut, spectrum, targets)");
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
    insta::assert_snapshot!(message_of(GOOD, &["model.n_layr=8"]), @"--set model.n_layr=8: model.n_layr: unknown key; did you mean `n_layer`? (keys here: arch, n_layer, n_head, n_kv_head, n_embd, block_size, dropout, bias, n_inner, tie_word_embeddings, rope_theta, layer_norm_epsilon, rms_norm_eps, zero_outputs, weights)");
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

#[test]
fn settings_lie_over_the_spec() {
    assert_eq!(plan_with(&["model.n_layer=8"]).model.n_layer, 8);
    assert_eq!(plan_with(&["train.max_steps=2k", "train.max_steps=3_000"]).train.max_steps.0, 3000);
    assert_eq!(
        plan_with(&["eval.every=7"]).eval.every.0,
        7,
        "blocks that were not written are created"
    );
    assert_eq!(plan_with(&["model.weights=dense"]).model.form(Target::Q), WeightForm::Dense);
    assert_eq!(
        plan_with(&["model.weights.low_rank.rank=8"]).model.form(Target::UP),
        WeightForm::LowRank { rank: 8 }
    );
    assert_eq!(
        plan_with(&["model.weights.factored.rank=8"]).model.form(Target::UP),
        WeightForm::Factored { rank: 8, form: FactorForm::Ba }
    );
    let usv =
        plan_with(&["model.weights={factored: {rank: 8, form: usv, targets: {q: dense}}}"]).model;
    assert_eq!(
        (usv.form(Target::UP), usv.form(Target::Q)),
        (WeightForm::Factored { rank: 8, form: FactorForm::Usv }, WeightForm::Dense)
    );
    assert_eq!(
        plan_with(&["model.weights=dense", "model.weights.low_rank.rank=4"]).model.form(Target::V),
        WeightForm::LowRank { rank: 4 }
    );
    let RankPlan::Tolerance(tolerance) =
        plan_with(&["rank={fixed: {}}", "rank.tolerance.tau=0.2"]).rank
    else {
        panic!("fixed ranks")
    };
    assert_eq!(tolerance.targets[&Target::K].tau, 0.2);
    let data = plan_with(&["data={source: {text: {path: a.txt}}, tokenizer: chars}"]).data;
    assert_eq!(
        spec::to_yaml(&data).unwrap(),
        "source:\n  text:\n    path: a.txt\n    val_fraction: 0.1\ntokenizer: chars\n"
    );
    let learning_rate = "optimizer.low_rank.dlra.learning_rate=2e-2";
    assert_eq!(plan_with(&[learning_rate]).optimizer.dlra().unwrap().learning_rate, 0.02);
}

#[test]
fn plans_decide_everything() {
    let plan = plan_with(&[
        "rank={tolerance: {tau: 0.1, targets: {q: {tau: 0.3, max_rank: 20}}}}",
        "model.weights.low_rank.targets={down: dense}",
    ]);
    assert_eq!((plan.tokens_per_step, plan.total_tokens), (4 * 32, 4 * 32 * 1000));
    assert!(matches!(plan.optimizer.low_rank, Some(LowRankOptimizerSpec::Dlra(_))));
    let RankPlan::Tolerance(tolerance) = &plan.rank else { panic!("fixed ranks") };
    assert_eq!((tolerance.cycle.start, tolerance.cycle.freeze), (100, 750));
    assert_eq!(tolerance.targets.len(), 5, "the dense target has no rank");
    let q = tolerance.targets[&Target::Q];
    assert_eq!((q.tau, q.min_rank, q.max_rank), (0.3, 8, 20));
    assert_eq!(tolerance.targets[&Target::UP].max_rank, 32);

    let factored = plan_with(&[
        "model.weights={factored: {rank: 4}}",
        "optimizer.dense.adamw.learning_rate=1e-3",
    ]);
    assert_eq!(factored.optimizer.factored_adamw().unwrap().learning_rate, 1e-3, "the dense rule");
    assert_eq!(plan_with(&["model.weights=dense"]).optimizer.low_rank, None);
}

#[test]
fn a_spec_made_in_code_is_checked_too() {
    let mut written = spec::parse(GOOD, "run.yaml", &[]).unwrap();
    assert_eq!(Plan::resolve(&written).unwrap(), plan_with(&[]));
    written.train.batch_size = 0;
    let error = Plan::resolve(&written).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    assert_eq!(error.to_string(), "train.batch_size: is 0; set at least 1");
}

#[test]
fn specs_and_plans_survive_being_written() {
    let settings = [
        vec![],
        vec![
            "model.weights=dense".to_owned(),
            "device=cuda:1".to_owned(),
            "sample.top_k=5".to_owned(),
        ],
        vec![
            "rank={tolerance: {tau: 0.1, min_rank: 3, targets: {q: {tau: 0.3}}}}".to_owned(),
            "model.weights.low_rank.targets={up: dense, k: 3, q: 9}".to_owned(),
        ],
        vec![
            "schedule={warmup_stable_decay: {warmup_steps: 10, decay_steps: 90, final_ratio: 0}}"
                .to_owned(),
        ],
        vec!["model.weights={factored: {rank: 4, form: usv, targets: {q: 2}}}".to_owned()],
        vec![
            "model.weights={factored: {rank: 4}}".to_owned(),
            "optimizer.low_rank={loro: {exact_every: 50}}".to_owned(),
        ],
        vec!["model.weights=dense".to_owned(), "optimizer.matrices={galore: {rank: 8}}".to_owned()],
    ];
    for settings in &settings {
        let (written, plan) = spec::parse_plan(GOOD, "run.yaml", settings).unwrap();
        let spec_text = spec::to_yaml(&written).unwrap();
        assert_eq!(
            spec::parse_plan(&spec_text, "spec.yaml", &[]).unwrap(),
            (written, plan.clone()),
            "{spec_text}"
        );
        let plan_text = spec::to_yaml(&plan).unwrap();
        let read = Plan::from_yaml(&plan_text, "plan.yaml").unwrap();
        assert_eq!(read, plan, "{plan_text}");
        assert_eq!(read.hash(), plan.hash());
    }
    let settings = ["rank={budget: {final_rank: 7, targets: {q: {min_rank: 2}, up: {max_rank: 20}}, grow_by: 2}}".to_owned()];
    let (_, plan) = spec::parse_plan(GOOD, "run.yaml", &settings).unwrap();
    let read = Plan::from_yaml(&spec::to_yaml(&plan).unwrap(), "plan.yaml").unwrap();
    assert_eq!(read, plan, "a budget's final rank is found again from its parameters");
    let error = Plan::from_yaml("name: x\nsede: 1\n", "plan.yaml").unwrap_err().to_string();
    assert!(error.contains("did you mean `seed`?") && error.contains("another version"), "{error}");
}

/// Case 4: an edited plan is held to the rules of specs, and to the figures that follow from it.
#[test]
fn a_plan_that_is_read_is_checked_like_a_spec() {
    let rank = "rank={tolerance: {tau: 0.1, targets: {q: {tau: 0.3}}}}";
    let yaml = spec::to_yaml(&plan_with(&[rank])).unwrap();
    for (from, to, said) in [
        ("n_head: 2", "n_head: 3", "model.n_head: 3 does not divide"),
        ("dropout: 0.0", "dropout: 2.0", "model.dropout: is 2"),
        ("    every: 100\n", "    every: 0\n", "grow_every: is 0"),
        ("name: example", "name: ../../x", "is no name for a folder"),
        ("batch_size: 4", "batch_size: 0", "train.batch_size: is 0"),
        ("batch_size: 4", "batch_size: 8", "tokens_per_step: is 128, but 256 follows"),
        ("beta1: 0.9", "beta1: 1.5", "beta1: is 1.5"),
        ("keep_last: 2", "keep_last: 0", "checkpoint.keep_last: is 0"),
        ("tau: 0.3", "tau: 3.0", "tau: is 3"),
        ("n_layer: 2", "n_layer: 18446744073709551615", "model.n_layer"),
    ] {
        assert!(yaml.contains(from), "{from} in {yaml}");
        let error = Plan::from_yaml(&yaml.replacen(from, to, 1), "plan.yaml").expect_err(to);
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains(said), "{to}: {error}");
    }
}

/// Issue 18: what `spec show` prints is a spec, and leads to the same plan; a choice whose settings
/// all have defaults is written as one word.
#[test]
fn a_shown_spec_is_a_spec_and_a_bare_word_is_a_choice() {
    for path in shipped_configs() {
        let (_, plan) = spec::load_plan(&path, &[]).unwrap();
        let shown = spec::to_yaml(&plan.as_spec().unwrap()).unwrap();
        assert_eq!(spec::parse_plan(&shown, "shown.yaml", &[]).unwrap().1, plan, "{shown}");
    }
    assert_eq!(plan_with(&["schedule=constant"]), plan_with(&["schedule={constant: {}}"]));
    let word = GOOD.to_owned() + "schedule: constant\n";
    assert_eq!(
        spec::parse_plan(&word, "run.yaml", &[]).unwrap().1,
        plan_with(&["schedule={constant: {}}"])
    );
}

#[test]
fn the_hash_is_of_what_changes_the_trajectory() {
    let plan = plan_with(&[]);
    let reordered = "train: {batch_size: 4, max_steps: 1000}\ndata: {tokenizer: bytes, source: cargo_registry}\nname: example\n\
                     model: {weights: {low_rank: {rank: 16}}, block_size: 32, n_embd: 64, n_head: 2, n_layer: 2, dropout: 0}\n";
    assert_eq!(spec::parse_plan(reordered, "other.yaml", &[]).unwrap().1.hash(), plan.hash());
    for same in [
        "name=other",
        "device=cpu",
        "train.log_every=1",
        "checkpoint={every: 1, keep_last: 9}",
        "sample.tokens=0",
    ] {
        assert_eq!(plan_with(&[same]).hash(), plan.hash(), "{same}");
        assert!(plan_with(&[same]).trajectory_differences(&plan).is_empty(), "{same}");
    }
    let changes = [
        "seed=1",
        "train.max_steps=999",
        "eval.tokens=64",
        "schedule={constant: {}}",
        "model.bias=true",
        "model.weights=dense",
    ];
    for change in changes {
        assert_ne!(plan_with(&[change]).hash(), plan.hash(), "{change}");
        assert!(!plan_with(&[change]).trajectory_differences(&plan).is_empty(), "{change}");
    }
    // A plan's hash is stored in runs: a change of this constant means that no older run can be
    // resumed.
    insta::assert_snapshot!(plan.hash(), @"26c92cda07bac28aed0dfaea20241342c08999b3e21538dfe0eec45edca2dd79");
}

#[test]
fn differences_name_key_and_values() {
    let changed = plan_with(&[
        "train.batch_size=8",
        "schedule={linear: {final_ratio: 0.2}}",
        "model.weights.low_rank.targets={q: dense}",
        "name=x",
    ]);
    insta::assert_snapshot!(plan_with(&[]).trajectory_differences(&changed).join("\n"), @r"
    model.weights.q: not set -> dense
    model.weights.q.low_rank.rank: 16 -> not set
    schedule.cosine.final_ratio: 0.1 -> not set
    schedule.cosine.warmup_steps: 100 -> not set
    schedule.linear.final_ratio: not set -> 0.2
    schedule.linear.warmup_steps: not set -> 100
    train.batch_size: 4 -> 8
    ");
}

#[test]
fn the_committed_schema_is_current() {
    let committed: Value =
        serde_json::from_str(&std::fs::read_to_string("configs/lrpt.schema.json").unwrap())
            .unwrap();
    assert!(
        committed == spec::schema(),
        "configs/lrpt.schema.json is out of date: lrpt spec schema > configs/lrpt.schema.json"
    );
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

#[test]
fn every_shipped_config_is_good() {
    let schema = spec::schema();
    let configs = shipped_configs();
    assert!(configs.len() >= 4);
    for path in configs {
        let text = std::fs::read_to_string(&path).unwrap();
        let schema_path = if path.parent() == Some(Path::new("configs")) {
            "lrpt.schema.json"
        } else {
            "../lrpt.schema.json"
        };
        assert!(
            text.starts_with(&format!("# yaml-language-server: $schema={schema_path}\n")),
            "{path:?}"
        );
        let (_, plan) = spec::load_plan(&path, &[]).unwrap();
        assert_eq!(
            Some(plan.name.as_str()),
            path.file_stem().and_then(|stem| stem.to_str()),
            "a config is called like its run"
        );
        let value: Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(violation(&schema, &schema, &value), None, "{path:?}");
    }
}

#[test]
fn the_schema_refuses_what_the_parser_refuses() {
    let schema = spec::schema();
    let check = |text: &str| violation(&schema, &schema, &serde_yaml::from_str(text).unwrap());
    assert_eq!(check(GOOD), None);
    let replaced = |from: &str, to: &str| check(&GOOD.replacen(from, to, 1));
    for (from, to) in [
        ("n_layer", "n_layr"),
        ("  n_embd: 64\n", ""),
        ("n_layer: 2", "n_layer: two"),
        ("n_layer: 2", "n_layer: -2"),
        ("1k", "soon"),
        ("low_rank: {rank", "lowrank: {rank"),
        ("rank: 16", "rank: 16, targets: {q: full}"),
        ("rank: 16", "rank: 16, targets: {w: 4}"),
        ("name: example", "name: example\ndevice: gpu"),
    ] {
        assert!(replaced(from, to).is_some(), "{from} -> {to}");
    }
    for (from, to) in [
        ("{low_rank: {rank: 16}}", "dense"),
        ("rank: 16", "rank: 16, targets: {q: 4, down: dense}"),
        ("1k", "60_000"),
        ("name: example", "name: example\ndevice: cuda:1"),
        ("name: example", "name: example\nschedule: constant"),
        ("train:", "rank: {tolerance: {tau: 0.1, freeze: 1k}}\ntrain:"),
    ] {
        assert_eq!(replaced(from, to), None, "{from} -> {to}");
    }
}

/// The first place where a value breaks a schema, for the part of JSON Schema that ours uses.
fn violation(root: &Value, schema: &Value, value: &Value) -> Option<String> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = root
            .pointer(reference.trim_start_matches('#'))
            .unwrap_or_else(|| panic!("{reference} leads nowhere"));
        return violation(root, target, value);
    }
    let Some(rules) = schema.as_object() else {
        return (schema == &Value::Bool(false)).then(|| format!("{value} is not allowed"));
    };
    rules.iter().find_map(|(rule, wanted)| match rule.as_str() {
        "type" => {
            let types: Vec<&str> = wanted.as_str().map_or_else(
                || wanted.as_array().unwrap().iter().filter_map(Value::as_str).collect(),
                |name| vec![name],
            );
            let fits = types.iter().any(|name| match *name {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "null" => value.is_null(),
                "number" => value.is_number(),
                "integer" => value.is_u64() || value.is_i64(),
                other => panic!("type {other} is unknown to this test"),
            });
            (!fits).then(|| format!("{value} is not {types:?}"))
        }
        "const" => (value != wanted).then(|| format!("{value} is not {wanted}")),
        "enum" => (!wanted.as_array().unwrap().contains(value))
            .then(|| format!("{value} is none of {wanted}")),
        "minimum" => value
            .as_f64()
            .filter(|number| *number < wanted.as_f64().unwrap())
            .map(|number| format!("{number} < {wanted}")),
        "pattern" => value
            .as_str()
            .filter(|text| !matches_known_pattern(wanted.as_str().unwrap(), text))
            .map(|text| format!("{text} !~ {wanted}")),
        "required" => {
            let missing =
                |key: &&Value| value.is_object() && value.get(key.as_str().unwrap()).is_none();
            wanted.as_array().unwrap().iter().find(missing).map(|key| format!("{key} is missing"))
        }
        "properties" => wanted
            .as_object()
            .unwrap()
            .iter()
            .find_map(|(key, property)| violation(root, property, value.get(key)?)),
        "additionalProperties" => {
            let known = |key: &str| {
                schema.get("properties").is_some_and(|properties| properties.get(key).is_some())
            };
            let mut others = value.as_object()?.iter().filter(|(key, _)| !known(key));
            others.find_map(|(key, entry)| {
                violation(root, wanted, entry).map(|reason| format!("{key}: {reason}"))
            })
        }
        "propertyNames" => value
            .as_object()?
            .keys()
            .find_map(|key| violation(root, wanted, &Value::String(key.clone()))),
        "items" => value.as_array()?.iter().find_map(|item| violation(root, wanted, item)),
        "allOf" => wanted.as_array().unwrap().iter().find_map(|part| violation(root, part, value)),
        "anyOf" | "oneOf" => {
            let fitting = wanted
                .as_array()
                .unwrap()
                .iter()
                .filter(|part| violation(root, part, value).is_none())
                .count();
            let fits = if rule == "anyOf" { fitting >= 1 } else { fitting == 1 };
            (!fits).then(|| format!("{value} fits {fitting} alternatives of {rule}"))
        }
        "$schema" | "title" | "description" | "default" | "definitions" | "format" | "examples" => {
            None
        }
        other => panic!("the schema uses `{other}`, which this test does not know"),
    })
}

fn matches_known_pattern(pattern: &str, text: &str) -> bool {
    if pattern.contains("auto|cpu") {
        text.parse::<spec::DeviceSpec>().is_ok()
    } else {
        assert!(pattern.starts_with("^[0-9]"), "a new pattern: {pattern}");
        text.parse::<spec::Count>().is_ok()
    }
}

#[test]
fn the_ledger_of_gpt_2_small() {
    let (written, _) = spec::load_plan(Path::new("configs/gpt2-124m.yaml"), &[]).unwrap();
    assert!(matches!(written.model.weights, WeightsSpec::LowRank(_)));
    let (_, dense) = spec::load_plan(
        Path::new("configs/gpt2-124m.yaml"),
        &["model.weights=dense".into(), "optimizer.low_rank=".into()],
    )
    .unwrap();
    // GPT-2 small has 124_439_808 parameters with its vocabulary of 50257 (Hugging Face `gpt2`).
    assert_eq!(Ledger::new(&dense, 50_257, 1).parameters.total(), 124_439_808);
}

#[test]
fn the_ledger_as_printed() {
    let ledger = Ledger::new(&plan_with(&["model.weights.low_rank.targets={down: dense}"]), 256, 2);
    insta::assert_snapshot!(ledger.to_string(), @r"
    parameters
      token embedding (tied head)               16_384
      positions                                  2_048
      norms                                        320
      biases                                         0
      q     64 × 64, rank 16                     4_608
      k     64 × 64, rank 16                     4_608
      v     64 × 64, rank 16                     4_608
      o     64 × 64, rank 16                     4_608
      up    256 × 64, rank 16                   10_752
      down  64 × 256, dense                     32_768
      total                                     80_704
      the same network dense                   117_056
      share of dense                             0.689
    operations (matrix products)
      forward per token                         1.65e5
        matrices of the blocks                  1.24e5
        causal attention                        8.45e3
        head                                    3.28e4
      training per token                         4.9e5
      evaluations per step                           1
      low-rank optimizer per step               2.43e7
      a step in all                             8.71e7
      the run in all                           8.71e10
    memory (f32)
      weights                                   323 kB
      gradients                                 313 kB
      optimizer moments                         529 kB
      activations for the backward             1.24 MB
      head gradient                            65.5 kB
      backward in flight                        328 kB
      low-rank step                             543 kB
      peak, expected                           2.79 MB
    tokens
      per step                                     128
      in all                                   128_000
    ");
}

/// Adapters: on all matrices or some, at one rank or several; a model to adapt must be named.
#[test]
fn adapters_say_what_they_adapt() {
    use lrpt::spec::AdapterForm;
    let adapter = |rank, form, alpha| WeightForm::Adapter { rank, form, alpha };
    let (low_rank, lora) = (AdapterForm::LowRank, AdapterForm::Lora);
    let with = |weights: &str| {
        let weights = format!("model.weights={weights}");
        let plan = plan_with(&[&weights, "init={run: source}", "optimizer={}", "rank=fixed"]);
        // It follows from the spec that it is written as, too.
        Plan::from_yaml(&spec::to_yaml(&plan).expect("YAML"), "plan.yaml").expect("the same plan");
        plan.model
    };
    let all = with("{adapter: {rank: 8}}");
    assert!(all.weights.values().all(|form| *form == adapter(8, low_rank, None)));
    let some = with("{adapter: {rank: 8, form: lora, targets: [q, v]}}");
    assert_eq!(some.form(Target::Q), adapter(8, lora, Some(8)));
    assert_eq!(some.form(Target::UP), WeightForm::Dense);
    let own = with("{adapter: {rank: 8, form: lora, alpha: 16, targets: {q: 4, v: 8}}}");
    assert_eq!(
        [Target::Q, Target::V, Target::K].map(|target| own.form(target)),
        [adapter(4, lora, Some(16)), adapter(8, lora, Some(16)), WeightForm::Dense]
    );
    let refused = |flags: &[&str]| {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let error = spec::load_plan(Path::new("configs/gpt-small.yaml"), &flags);
        error.expect_err("refused").to_string()
    };
    let init = "init={run: source}";
    for (flags, said) in [
        (vec!["model.weights={adapter: {rank: 8}}"], "adapts a model that is there; name it"),
        (
            vec!["model.weights={adapter: {rank: 8, form: lora, alpha: 0}}", init],
            "model.weights.adapter.alpha: is 0",
        ),
        (vec!["model.weights={adapter: {rank: 8, targets: []}}", init], "names no matrix"),
        (vec!["model.weights={adapter: {rank: 8, targets: [q, q]}}", init], "names `q` twice"),
        (vec!["model.weights={adapter: {rank: 8, targets: [w]}}", init], "`w`"),
        (
            vec!["model.weights={adapter: {rank: 8, targets: {q: 5000}}}", init],
            "rank 5000 is not possible for `q`",
        ),
        (
            vec![
                "model.weights={adapter: {rank: 8, form: lora}}",
                init,
                "optimizer.low_rank={loro: {}}",
            ],
            "those of an adapter start at zero",
        ),
    ] {
        let error = refused(&flags);
        assert!(error.contains(said), "{flags:?}: {error}");
    }
}
