//! What users touch: exit codes, what stands on stdout, signals.

mod support;

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::{Workplace, assert_same};

const LOW_RANK: &str = "{low_rank: {rank: 6}}";

fn stdout(output: &std::process::Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn train_then_eval_generate_inspect() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let trained = place.run(&["train", spec.to_str().expect("UTF-8")], 0);
    let result: serde_json::Value =
        serde_json::from_str(stdout(&trained).trim()).expect("one JSON object on stdout");
    assert_eq!(result["step"], 12);

    let evaluated = place.run(&["eval", "runs/small"], 0);
    let report: serde_json::Value =
        serde_json::from_str(stdout(&evaluated).trim()).expect("one JSON object on stdout");
    for key in ["loss", "perplexity", "bits_per_byte", "tokens"] {
        assert!(report[key].is_number(), "{key} in {report}");
    }
    let loss = report["loss"].as_f64().expect("a number");
    assert_eq!(report["loss"], result["loss"], "eval repeats the training's last validation");
    // One byte per character here: bits per byte are nats per token over ln 2.
    assert!(
        (report["bits_per_byte"].as_f64().expect("a number") - loss / std::f64::consts::LN_2).abs()
            < 1e-9
    );
    assert!((report["perplexity"].as_f64().expect("a number") - loss.exp()).abs() < 1e-9);

    let on_text = place.run(&["eval", "runs/small", "--text", "text.txt"], 0);
    assert!(stdout(&on_text).contains("\"protocol\""));

    let first = place.run(
        &["generate", "runs/small", "--prompt", "the rank", "--tokens", "20", "--seed", "3"],
        0,
    );
    let second = place.run(
        &["generate", "runs/small", "--prompt", "the rank", "--tokens", "20", "--seed", "3"],
        0,
    );
    assert!(stdout(&first).starts_with("the rank"));
    assert_eq!(first.stdout, second.stdout, "a seed repeats");
    let other = place.run(
        &[
            "generate",
            "runs/small",
            "--prompt",
            "the rank",
            "--tokens",
            "20",
            "--seed",
            "4",
            "--top-k",
            "5",
        ],
        0,
    );
    assert_ne!(first.stdout, other.stdout);
    assert!(stderr(&first).contains("20 tokens in"), "{}", stderr(&first));

    // Several samples: the first is that of the seed alone, and JSON has the same texts.
    let arguments = ["generate", "runs/small", "--prompt", "the rank", "--max-new-tokens", "20"];
    let several = [&arguments[..], &["--seed", "3", "--num-samples", "3"]].concat();
    let samples = stdout(&place.run(&several, 0));
    let samples: Vec<&str> = samples.split("\n---------------\n").collect();
    assert_eq!((samples.len(), samples[3]), (4, ""));
    assert_eq!(format!("{}\n", samples[0]), stdout(&first));
    assert!(samples[0] != samples[1] && samples[1] != samples[2], "{samples:?}");
    let objects = stdout(&place.run(&[&several[..], &["--json"]].concat(), 0));
    for (line, sample) in objects.lines().zip(&samples) {
        let object: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let text = ["prompt", "text"].map(|key| object[key].as_str().expect("text")).concat();
        assert_eq!((text.as_str(), object["tokens"].as_u64()), (*sample, Some(20)));
    }
    // Past the block size, where the window moves by one token or by more.
    let long = [&arguments[..4], &["--max-new-tokens", "90", "--greedy"]].concat();
    let exact = place.run(&long, 0);
    assert!(stderr(&exact).contains("--slide"), "{}", stderr(&exact));
    let stepped = place.run(&[&long[..], &["--slide", "4"]].concat(), 0);
    let same = |count| -> [String; 2] {
        [&exact, &stepped].map(|output| stdout(output).chars().take(count).collect())
    };
    // Eight characters of the prompt, nine drawn from windows of at most 16.
    let [a, b] = same(17);
    assert_eq!(a, b, "the same until the window is full");
    for (argument, value) in [("--top-p", "1.5"), ("--temperature", "-1"), ("--slide", "9999")] {
        let refused = place.run(&[&arguments[..], &[argument, value]].concat(), 2);
        assert!(stderr(&refused).contains(argument), "{}", stderr(&refused));
    }

    let table = stdout(&place.run(&["inspect", "runs/small"], 0));
    assert!(table.contains("transformer.h.1.mlp.down") && table.contains("128"), "{table}");
    let json =
        stdout(&place.run(&["inspect", "runs/small/checkpoints/step-00000012", "--json"], 0));
    assert_eq!(json.lines().count(), 12, "one line per low-rank weight");
    let spectra =
        stdout(&place.run(&["inspect", "runs/small", "--spectra", "--plot", "spectra.svg"], 0));
    assert!(
        spectra.contains("effective rank")
            && spectra.lines().any(|line| line.starts_with("transformer.h.0.attn.q")),
        "{spectra}"
    );
    let drawn = std::fs::read_to_string(place.path("spectra.svg")).expect("the figure");
    assert!(
        drawn.contains("down: effective rank") && !drawn.contains("down: rank"),
        "three validations, and ranks that did not change"
    );
    let spectra = stdout(&place.run(&["inspect", "runs/small", "--spectra", "--json"], 0));
    let first: serde_json::Value = serde_json::from_str(spectra.lines().next().expect("a line"))
        .expect("one JSON object a line");
    assert_eq!(
        (first["rank"].as_u64(), first["history"].as_array().map(Vec::len)),
        (Some(6), Some(3))
    );
    place.run(&["inspect", "runs/small", "--plot", "spectra.svg"], 2);
    let ranks = stdout(&place.run(&["inspect", "runs/small", "--ranks", "--scale", "0.5"], 0));
    let weights = format!("model.weights={ranks}");
    let checked = place.run(&["spec", "check", "runs/small/spec.yaml", "--set", &weights], 0);
    assert!(
        ranks.contains("{rank: 3, layers: [") && stdout(&checked).contains("rank 3"),
        "{ranks}"
    );

    for file in [
        "spec.yaml",
        "plan.yaml",
        "env.json",
        "data.json",
        "tokenizer.json",
        "metrics.jsonl",
        "metrics.csv",
        "log.txt",
        "checkpoints/latest",
        "checkpoints/best",
    ] {
        assert!(place.path("runs/small").join(file).exists(), "{file} in the run's folder");
    }
    assert!(place.path("runs/small/samples").read_dir().expect("samples").count() >= 3);
}

#[test]
fn training_is_bit_reproducible() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "a"], 0);
    place.run(&["train", spec, "--run-dir", "b"], 0);
    assert_same(&place.trajectory("a", 12), &place.trajectory("b", 12), "the same run twice");
}

#[test]
fn a_misspelt_key_is_exit_code_2_with_a_suggestion() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let output = place.run(&["train", spec.to_str().expect("UTF-8"), "--set", "model.n_layr=3"], 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("n_layer"));
    assert!(output.stdout.is_empty());
    place.run(&["train", "no-such.yaml"], 2);
    place.run(&["eval", "no-such-run"], 2);
    place.run(&["resume", "no-such-run"], 2);
}

#[test]
fn a_diverging_run_is_exit_code_3_and_keeps_its_checkpoint() {
    let place = Workplace::new();
    let spec =
        place.spec("dense", "optimizer: {dense: {adamw: {learning_rate: 1e30, weight_decay: 0}}}\ncheckpoint: {every: 1, keep_last: 3}");
    let output = place.run(&["train", spec.to_str().expect("UTF-8"), "--run-dir", "run"], 3);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("transformer."), "names the first layer: {error}");
    assert!(place.path("run/checkpoints/latest").exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_writes_a_checkpoint_and_exits_130() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "checkpoint: {every: 1_000, keep_last: 2}");
    let spec = spec.to_str().expect("UTF-8");
    let long = ["--set", "train.max_steps=100_000", "--set", "eval.every=100_000"];
    let mut arguments = vec!["train", spec, "--run-dir", "run"];
    arguments.extend(long);
    let child = place
        .lrpt(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let metrics = place.path("run/metrics.jsonl");
    let started = Instant::now();
    while std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 3 {
        assert!(started.elapsed() < Duration::from_secs(60), "the run makes steps");
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .expect("kill");
    assert!(killed.success());
    let ended = child.wait_with_output().expect("the run ends");
    assert_eq!(ended.status.code(), Some(130));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("continue with `lrpt resume run`"), "{said}");
    assert!(place.path("run/checkpoints/latest").exists(), "a checkpoint was written");
}

#[test]
fn the_demonstration_prints_a_table_or_json_and_draws() {
    let place = Workplace::new();
    let small = ["demo", "momentum", "--steps", "4", "--seeds", "1"];
    let table =
        stdout(&place.run(&[small.as_slice(), ["--plot", "momentum.svg"].as_slice()].concat(), 0));
    assert!(table.contains("unbalanced factors") && table.contains("DLRA matrix_adam"), "{table}");
    assert!(
        std::fs::read_to_string(place.path("momentum.svg"))
            .expect("the figure")
            .contains("small singular values")
    );
    let json = stdout(&place.run(&[small.as_slice(), ["--json"].as_slice()].concat(), 0));
    let report: serde_json::Value = serde_json::from_str(json.trim()).expect("one JSON object");
    assert_eq!(report["problems"][2]["methods"][5]["rates"].as_array().map(Vec::len), Some(11));
}

/// What `spec show` prints is a spec of the same plan, with every setting decided.
#[test]
fn a_shown_spec_is_a_spec() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    let of_plan =
        |checked: &std::process::Output| stdout(checked).lines().next().map(str::to_owned);
    for setting in ["schedule=constant", "train.max_steps=20", "data.tokenizer=bytes"] {
        let shown = place.run(&["spec", "show", spec, "--set", setting], 0);
        let mut check = place.lrpt(&["spec", "check", "-"]);
        check.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut check = check.spawn().expect("the binary starts");
        let mut input = check.stdin.take().expect("a pipe");
        input.write_all(&shown.stdout).expect("read");
        drop(input);
        let checked = check.wait_with_output().expect("it ends");
        let error = String::from_utf8_lossy(&checked.stderr);
        assert_eq!(checked.status.code(), Some(0), "{setting}: {error}");
        let written = place.run(&["spec", "check", spec, "--set", setting], 0);
        assert_eq!(of_plan(&checked), of_plan(&written), "{setting}");
    }
}

#[test]
fn completions_and_help() {
    let place = Workplace::new();
    assert!(stdout(&place.run(&["completions", "bash"], 0)).contains("lrpt"));
    for flag in ["-v", "-V", "--version"] {
        let version = stdout(&place.run(&[flag], 0));
        let start = concat!("lrpt ", env!("CARGO_PKG_VERSION"), " (commit ");
        assert!(version.starts_with(start), "{version}");
        let datasets = cfg!(feature = "datasets");
        assert_eq!(version.contains("features: datasets"), datasets, "{version}");
    }
    assert!(stdout(&place.run(&["completions", "man"], 0)).contains(".TH lrpt 1"));
    place.run(&["completions", "--out", "share"], 0);
    for name in ["lrpt.1", "lrpt-train.1", "lrpt-data-prepare.1", "lrpt.bash", "_lrpt", "lrpt.fish"]
    {
        assert!(place.path("share").join(name).exists(), "{name}");
    }
    let help = stdout(&place.run(&["--help"], 0));
    for command in ["train", "resume", "eval", "generate", "inspect", "data", "spec"] {
        assert!(help.contains(command), "{command} in the help");
    }
}

/// Cases 24, 26 and 28: sizes beyond every machine, threads beyond every machine, and a network
/// larger than this machine's memory are refused at once, with the figures.
#[test]
fn what_no_machine_can_do_is_refused_at_once() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    let refused = |arguments: &[&str], said: &str| {
        let started = Instant::now();
        let output = place.run(arguments, 2);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(said), "{arguments:?}: {error}");
        assert!(started.elapsed() < Duration::from_secs(20), "{arguments:?}");
    };
    refused(&["spec", "check", spec, "--set", "model.n_layer=100000000"], "model.n_layer");
    refused(&["spec", "check", spec, "--set", "train.batch_size=1e6"], "train.batch_size");
    let mut many_threads = std::process::Command::new(env!("CARGO_BIN_EXE_lrpt"));
    let output = many_threads.args(["--threads", "100000", "doctor"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("set at most 1024"));

    let large = "model={n_layer: 4000, n_head: 2, n_embd: 4096, block_size: 16, weights: dense}";
    refused(&["train", spec, "--run-dir", "large", "--set", large], "--force");
    assert!(!place.path("large").exists(), "nothing was begun");
}

/// Case 27: a reader that goes away, `| head` or `2>&1 | true`, is no reason to panic.
#[test]
fn a_closed_pipe_is_quiet_on_both_streams() {
    let place = Workplace::new();
    let mut completions = place
        .lrpt(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(completions.stdout.take());
    let ended = completions.wait_with_output().expect("it ends");
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));

    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    for (arguments, code) in [
        (["train", "none.yaml", "--run-dir", "none"], 2),
        (["train", spec, "--run-dir", "whole"], 0),
    ] {
        let mut child = place
            .lrpt(&arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        drop(child.stderr.take());
        assert_eq!(child.wait().expect("it ends").code(), Some(code), "{arguments:?}");
    }
}
