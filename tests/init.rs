//! Warm starts: from a run of our own and from a folder of transformers, in every form of weight.

mod support;

use candle_core::{DType, Device, Tensor};
use std::fs;
use support::{Workplace, assert_same, gguf, textbook};

/// Steps that move nothing that shows: the first validation is the source's.
const STILL: [&str; 8] = [
    "--set",
    "optimizer.dense.adamw.learning_rate=1e-12",
    "--set",
    "train.max_steps=1",
    "--set",
    "schedule={constant: {warmup_steps: 0}}",
    "--set",
    "sample.tokens=0",
];

/// The last validation loss that a run printed.
fn loss(output: &std::process::Output) -> f64 {
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    result["loss"].as_f64().expect("a loss")
}

fn train(
    place: &Workplace,
    run: &str,
    init: &str,
    flags: &[&str],
    code: i32,
) -> std::process::Output {
    let init = format!("init={init}");
    let mut arguments = vec!["train", "spec.yaml", "--run-dir", run];
    if init != "init=" {
        arguments.extend(["--set", init.as_str()]);
    }
    arguments.extend(flags);
    place.run(&arguments, code)
}

fn report(place: &Workplace, run: &str) -> serde_json::Value {
    let text = fs::read_to_string(place.path(&format!("{run}/init.json"))).expect("init.json");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn a_run_starts_where_another_ended_whatever_the_form() {
    let place = Workplace::new();
    place.spec("dense", "");
    // What only says how weights began is not of the shape.
    let began = ["--set", "model.weights={low_rank: {rank: 6, spectrum: gaussian}}"];
    let began = [&began[..], &["--set", "model.zero_outputs=true"]].concat();
    let source = loss(&train(&place, "source", "", &began, 0));
    place.run(&["export", "source", "--to", "exported"], 0);
    for (index, init) in ["{run: source}", "{hf: exported}"].into_iter().enumerate() {
        for (form, weights, rate) in [
            ("dense", "dense", None),
            (
                "points",
                "{low_rank: {rank: 32}}",
                Some("optimizer.low_rank.dlra.learning_rate=1e-12"),
            ),
            ("factors", "{factored: {rank: 32}}", None),
            ("three", "{factored: {rank: 32, form: usv}}", None),
        ] {
            let weights = format!("model.weights={weights}");
            let mut flags = STILL.to_vec();
            flags.extend(["--set", &weights]);
            rate.into_iter().for_each(|rate| flags.extend(["--set", rate]));
            let run = format!("{form}-{index}");
            let found = loss(&train(&place, &run, init, &flags, 0));
            assert!((found - source).abs() < 1e-5, "{init} as {form}: {found}, not {source}");
            let report = report(&place, &run);
            assert!(report["discarded_energy"].as_f64().expect("a share") < 1e-5, "{report}");
            assert_eq!(report["truncated"], if form == "dense" { 0 } else { 12 }, "{report}");
        }
    }
}

/// A Llama with grouped queries, and a GPT-2 whose head is its own, out and in.
#[test]
fn other_architectures_and_heads_start_alike() {
    let llama = "dense, arch: llama, n_kv_head: 1, rope_theta: 300, n_inner: 48";
    let untied = "dense, tie_word_embeddings: false, layer_norm_epsilon: 1e-4";
    for (name, model) in [("llama", llama), ("untied", untied)] {
        let place = Workplace::new();
        place.spec(model, "");
        let source = loss(&train(&place, "source", "", &[], 0));
        place.run(&["export", "source", "--to", "exported"], 0);
        for (run, weights) in [("as-it-is", "dense"), ("points", "{low_rank: {rank: 16}}")] {
            let weights = format!("model.weights={weights}");
            let mut flags = STILL.to_vec();
            flags.extend(["--set", &weights]);
            let found = loss(&train(&place, run, "{hf: exported}", &flags, 0));
            if run == "as-it-is" {
                assert!((found - source).abs() < 1e-5, "{name}: {found}, not {source}");
            } else {
                let energy = report(&place, run)["discarded_energy"].as_f64().expect("a share");
                assert!(0.0 < energy && energy < 0.5, "{name}: {energy}");
            }
        }
        let angle_or_epsilon =
            if name == "llama" { "model.rope_theta=301" } else { "model.layer_norm_epsilon=1e-3" };
        let tied = "model.tie_word_embeddings is true, the source has false";
        for (setting, named) in [
            ("model.n_inner=64", "model.n_inner is 64, the source has"),
            (angle_or_epsilon, "the source has"),
            ("model.tie_word_embeddings=true", tied),
        ] {
            let error = train(&place, "no", "{hf: exported}", &["--set", setting], 2).stderr;
            let error = String::from_utf8_lossy(&error);
            assert!(error.contains(named), "{setting}: {error}");
        }
    }
}

/// Queries, keys and values from one matrix and from three start alike, from a run of either and
/// from a folder of transformers.
#[test]
fn one_matrix_of_queries_keys_and_values_starts_from_three_and_back() {
    for (arch, heads) in [("gpt2", 2), ("llama", 1)] {
        let place = Workplace::new();
        place.spec(&format!("dense, arch: {arch}, n_kv_head: {heads}"), "");
        let fused = ["--set", "model.fused_qkv=true"];
        let low_rank = ["--set", "model.weights={low_rank: {rank: 9}}"];
        let one = loss(&train(&place, "one", "", &[fused, low_rank].concat(), 0));
        let three = loss(&train(&place, "three", "", &[], 0));
        place.run(&["export", "one", "--to", "exported"], 0);
        let cases = [
            ("{hf: exported}", &fused[..], one),
            ("{hf: exported}", &[], one),
            ("{run: one}", &fused, one),
            ("{run: one}", &[], one),
            ("{run: three}", &fused, three),
        ];
        for (index, (init, layout, expected)) in cases.into_iter().enumerate() {
            let flags = [&STILL[..], layout].concat();
            let run = format!("run-{index}");
            let found = loss(&train(&place, &run, init, &flags, 0));
            assert!(
                (found - expected).abs() < 1e-5,
                "{arch} {init} {layout:?}: {found} {expected}"
            );
        }
        // An adapter of a joint matrix stands beside what the source has as three.
        let adapter = ["--set", "model.weights={adapter: {rank: 2, targets: [qkv]}}"];
        let flags = [&["--stop-after", "0"][..], &fused, &adapter].concat();
        let started = train(&place, "adapter", "{run: three}", &flags, 0);
        assert!(started.status.success());
    }
}

#[test]
fn a_cut_says_what_it_discards() {
    let place = Workplace::new();
    place.spec("dense", "");
    train(&place, "source", "", &[], 0);
    let mut energies = Vec::new();
    for rank in ["4", "16"] {
        let weights = format!("model.weights={{low_rank: {{rank: {rank}}}}}");
        let mut flags = STILL.to_vec();
        flags.extend(["--set", &weights]);
        train(&place, rank, "{run: source}", &flags, 0);
        energies.push(report(&place, rank)["discarded_energy"].as_f64().expect("a share"));
    }
    assert!(0.0 < energies[1] && energies[1] < energies[0] && energies[0] < 1.0, "{energies:?}");
}

/// Trains whole and broken off after 5 of 12 steps, the source out of reach by then.
fn resumes_without_its_source(place: &Workplace, init: &str, sources: &[&str]) {
    train(place, "whole", init, &[], 0);
    train(place, "broken", init, &["--stop-after", "5"], 0);
    for source in sources {
        fs::rename(place.path(source), place.path(&format!("no-{source}"))).expect("moved");
    }
    place.run(&["resume", "broken"], 0);
    let (whole, broken) = (place.trajectory("whole", 12), place.trajectory("broken", 12));
    assert_same(&whole, &broken, init);
    for run in ["whole", "broken"] {
        fs::remove_dir_all(place.path(run)).expect("removable");
    }
}

/// Resume is exact, and needs the source no more, whatever the source.
#[test]
fn a_warm_start_resumes_exactly_without_its_source() {
    let place = Workplace::new();
    place.spec("dense", "");
    train(&place, "source", "", &[], 0);
    place.run(&["export", "source", "--to", "base"], 0);
    place.spec("{adapter: {rank: 3}}", "");
    train(&place, "adapted", "{hf: base}", &["--stop-after", "4"], 0);
    place.run(&["export", "adapted", "--to", "adapter"], 0);
    place.spec("{low_rank: {rank: 8}}", "");
    // What is moved away comes last.
    resumes_without_its_source(&place, "{run: source}", &["source"]);
    resumes_without_its_source(&place, "{peft: {adapter: adapter, base: base}}", &["adapter"]);
    resumes_without_its_source(&place, "{hf: base}", &["base"]);
}

/// The same for a file of llama.cpp, its matrices cut and with an adapter beside them.
#[test]
fn a_start_from_llama_cpp_resumes_exactly_without_its_file() {
    let place = Workplace::new();
    let shape = "arch: llama, n_layer: 1, n_head: 4, n_inner: 64, rms_norm_eps: 1e-5, tie_word_embeddings: true";
    for weights in ["{low_rank: {rank: 8}}", "{adapter: {rank: 3}}"] {
        place.spec(weights, "");
        let spec = fs::read_to_string(place.path("spec.yaml")).expect("the spec");
        let spec = spec
            .replace("n_layer: 2, n_head: 2", shape)
            .replace("bias: true, ", "")
            .replace("chars", "bytes");
        fs::write(place.path("spec.yaml"), spec).expect("writable");
        let vocabulary = 256;
        let normal = |rows: usize, columns: usize| {
            let index = (rows * 100 + columns) as u64;
            let drawn = textbook::tensor(&textbook::random(rows, columns, "llama.cpp", index));
            (drawn * 0.1).and_then(|drawn| drawn.to_dtype(DType::F32)).expect("a matrix")
        };
        let ones = Tensor::ones(32, DType::F32, &Device::Cpu).expect("gains");
        let tensors = [
            ("token_embd.weight", normal(vocabulary, 32)),
            ("blk.0.attn_norm.weight", ones.clone()),
            ("blk.0.attn_q.weight", normal(32, 32)),
            ("blk.0.attn_k.weight", normal(32, 32)),
            ("blk.0.attn_v.weight", normal(32, 32)),
            ("blk.0.attn_output.weight", normal(32, 32)),
            ("blk.0.ffn_norm.weight", ones.clone()),
            ("blk.0.ffn_gate.weight", normal(64, 32)),
            ("blk.0.ffn_up.weight", normal(64, 32)),
            ("blk.0.ffn_down.weight", normal(32, 64)),
            ("output_norm.weight", ones),
        ];
        gguf::llama(&place.path("model.gguf"), &[], &tensors);
        resumes_without_its_source(&place, "{gguf: model.gguf}", &["model.gguf"]);
    }
}

#[test]
fn a_source_of_another_shape_is_refused_by_name() {
    let place = Workplace::new();
    place.spec("dense", "");
    train(&place, "source", "", &["--stop-after", "1"], 0);
    let flags =
        ["--set", "model.n_embd=64", "--set", "model.n_layer=3", "--set", "model.bias=false"];
    let error = train(&place, "other", "{run: source}", &flags, 2).stderr;
    let error = String::from_utf8_lossy(&error);
    for named in [
        "model.n_embd is 64, the source has 32",
        "model.n_layer is 3, the source has 2",
        "model.bias is false, the source has true",
    ] {
        assert!(error.contains(named), "{named}: {error}");
    }
    let error = train(&place, "none", "{hf: nowhere}", &[], 1).stderr;
    assert!(String::from_utf8_lossy(&error).contains("nowhere/config.json"));
}

/// Files that claim terabytes, or have them without taking room, are refused at once by name.
#[test]
fn absurd_sizes_are_refused_before_memory_is_taken() {
    let place = Workplace::new();
    place.spec("dense", "");
    train(&place, "source", "", &["--stop-after", "1"], 0);
    place.run(&["export", "source", "--to", "exported"], 0);
    let lengthen = |file: &str| {
        let opened = fs::File::options().write(true).open(place.path(file)).expect("there");
        opened.set_len(1 << 43).expect("a sparse file");
    };
    lengthen("exported/model.safetensors");
    let said = train(&place, "a", "{hf: exported}", &[], 1).stderr;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("model.safetensors: its header speaks of"), "{said}");
    assert!(said.contains("fetch it again"), "{said}");

    let checkpoint = "source/checkpoints/step-00000001";
    let manifest = place.path(&format!("{checkpoint}/manifest.json"));
    let mut listed: serde_json::Value =
        serde_json::from_slice(&fs::read(&manifest).expect("there")).expect("JSON");
    let file = |name: &str| format!("{checkpoint}/{name}.safetensors");
    lengthen(&file("optimizer"));
    let said = String::from_utf8_lossy(&place.run(&["eval", "source"], 1).stderr).into_owned();
    assert!(said.contains("optimizer.safetensors has 8796093022208 bytes, but"), "{said}");
    // A manifest that says so too.
    listed["files"][2]["bytes"] = serde_json::json!(1u64 << 43);
    let text = serde_json::to_string_pretty(&listed).expect("JSON") + "\n";
    fs::write(&manifest, text).expect("writable");
    let said = String::from_utf8_lossy(&place.run(&["eval", "source"], 1).stderr).into_owned();
    assert!(said.contains("and no checkpoint of the network in its config.json"), "{said}");
}

/// The first loss and the plan of a run whose spec leaves model and tokenizer to this source.
fn goes_on(place: &Workplace, init: &str, run: &str) -> (f64, String) {
    let text = format!(
        "name: more\ninit: {init}\n\
         data: {{source: {{text: {{path: text.txt, val_fraction: 0.2}}}}}}\n\
         train: {{max_steps: 1, batch_size: 2}}\neval: {{tokens: 256}}\n"
    );
    fs::write(place.path("spec.yaml"), text).expect("a spec");
    let first = loss(&train(place, run, "", &STILL, 0));
    let plan = fs::read_to_string(place.path(&format!("{run}/plan.yaml"))).expect("a plan");
    (first, plan)
}

/// What a spec leaves out of the model's shape and the tokenizer is the source's.
#[test]
fn the_model_section_may_be_left_to_the_source() {
    let place = Workplace::new();
    place.spec("dense", "");
    let source = loss(&train(&place, "source", "", &[], 0));
    place.run(&["export", "source", "--to", "exported"], 0);
    for (index, init) in ["{run: source}", "{hf: exported}"].into_iter().enumerate() {
        let run = format!("more-{index}");
        let (again, plan) = goes_on(&place, init, &run);
        assert!((source - again).abs() < 2e-5, "{init}: {again} after {source}");
        assert!(plan.contains("n_layer: 2") && plan.contains("block_size:"), "{plan}");
        place.run(&["spec", "check", "spec.yaml"], 0);
        let shorter = ["--set", "model.block_size=8"];
        train(&place, &format!("short-{index}"), "", &[&STILL[..], &shorter].concat(), 0);
        let longer = [&STILL[..], &["--set", "model.block_size=64"]].concat();
        let refused = train(&place, &format!("long-{index}"), "", &longer, 2);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("the source has no positions beyond"), "{said}");
    }
    fs::write(place.path("spec.yaml"), "name: more\ninit: {hf: nowhere}\n").expect("a spec");
    let said = train(&place, "nowhere", "", &[], 2);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("init: nowhere") && said.contains("config.json"), "{said}");
}

/// By an adapter of its own the head is no longer the table of tokens, which whoever goes on from
/// there learns from the source: a run, or what PEFT has of it. A rank that the vocabulary cannot
/// have is refused.
#[test]
fn an_adapted_head_goes_on_as_one_of_its_own() {
    let place = Workplace::new();
    place.spec("dense", "");
    train(&place, "source", "", &[], 0);
    place.run(&["export", "source", "--to", "exported"], 0);
    place.spec("{adapter: {rank: 3, head: 4, targets: [q]}}", "init: {hf: exported}\n");
    let fast = ["--set", "optimizer.low_rank={dlra: {learning_rate: 0.1}}"];
    let adapted = loss(&train(&place, "adapted", "", &fast, 0));
    place.run(&["export", "adapted", "--to", "adapter"], 0);
    for (index, init) in ["{run: adapted}", "{peft: {adapter: adapter}}"].into_iter().enumerate() {
        let run = format!("more-{index}");
        let (again, plan) = goes_on(&place, init, &run);
        assert!((adapted - again).abs() < 2e-5, "{init}: {again} after {adapted}");
        assert!(plan.contains("tie_word_embeddings: false"), "{plan}");
        let tied = [&STILL[..], &["--set", "model.tie_word_embeddings=true"]].concat();
        let refused = train(&place, &format!("tied-{index}"), "", &tied, 2);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("model.tie_word_embeddings is true, the source has false"), "{said}");
    }
    place.spec("dense", "");
    let few = ["--set", "data.tokenizer=chars", "--set", "model.n_embd=64"];
    train(&place, "few", "", &few, 0);
    place.spec("{adapter: {rank: 3, head: 60, targets: [q]}}", "init: {run: few}\n");
    let refused = train(&place, "many", "", &few, 2);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("model.weights.adapter.head: rank 60 is not possible for"), "{said}");
}
