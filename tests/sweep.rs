//! `lrpt sweep` and `lrpt compare` through the binary: expansion, equal budgets, skipping,
//! interruption, failure, refusal, Slurm's script.

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;
use support::{Workplace, metrics};

/// A sweep over the small spec; `body` is YAML at top level.
fn sweep(place: &Workplace, body: &str) -> String {
    place.spec("{low_rank: {rank: 6}}", "checkpoint: {every: 2, keep_last: 2}");
    let path = place.path("sweep.yaml");
    std::fs::write(&path, format!("name: small\nbase: spec.yaml\n{body}")).expect("the sweep");
    path.to_str().expect("UTF-8").to_owned()
}

const TWO_METHODS: &str = "\
baseline: dense
seeds: [1, 2]
variants:
  - {name: dense, set: {model.weights: dense}, tune: {optimizer.dense.adamw.learning_rate: [1e-3, 3e-3]}}
  - {name: spectral, tune: {optimizer.low_rank.dlra.learning_rate: [1e-2, 2e-2]}}
";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(
        &std::fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    )
    .expect("JSON")
}

fn summary(output: &Output) -> Value {
    serde_json::from_str(text(&output.stdout).trim()).expect("one JSON object on stdout")
}

/// The metrics of every run of the sweep, without what depends on the clock.
fn trajectories(place: &Workplace) -> BTreeMap<String, Vec<String>> {
    let manifest = json(&place.path("runs/small/manifest.json"));
    let ids = manifest["runs"]
        .as_array()
        .expect("runs")
        .iter()
        .map(|run| run["id"].as_str().expect("an id").to_owned());
    ids.map(|id| (id.clone(), metrics(&place.path("runs/small").join(id).join("metrics.jsonl"))))
        .collect()
}

#[test]
fn expansion_lists_every_run_with_its_cost() {
    let place = Workplace::new();
    let body = "\
seeds: [1]
axes: {train.batch_size: [4, 2]}
search: first_seed
variants:
  - {name: dense, set: {model.weights: dense}, tune: {optimizer.dense.adamw.learning_rate: [1e-3]}}
  - {name: spectral, tune: {optimizer.low_rank.dlra.learning_rate: [1e-2, 2e-2]}}
";
    let path = sweep(&place, body);
    let listed = text(&place.run(&["sweep", &path, "--dry-run"], 0).stdout);
    // The last columns follow the clock; the heads of the lines do not.
    let names: Vec<&str> =
        listed.lines().map(|line| line.get(..74).unwrap_or(line).trim_end()).collect();
    let (last, names) = names.split_last().expect("lines");
    assert!(last.starts_with("6 runs; training steps of all"), "{last}");
    insta::assert_snapshot!(names.join("\n"), @r"
    run                                              parameters  tokens  steps
    dense-batch_size-4-learning_rate-0.001-seed-1         26.6k   1.54k     12
    dense-batch_size-2-learning_rate-0.001-seed-1         26.6k     768     12
    spectral-batch_size-4-learning_rate-0.01-seed-1       9.36k   1.54k     12
    spectral-batch_size-4-learning_rate-0.02-seed-1       9.36k   1.54k     12
    spectral-batch_size-2-learning_rate-0.01-seed-1       9.36k     768     12
    spectral-batch_size-2-learning_rate-0.02-seed-1       9.36k     768     12
    ");
    assert!(!place.path("runs").exists(), "a dry run writes nothing");
}

/// The number in a column of a dry run's line for the run that begins so.
fn steps_of(listed: &str, run: &str) -> u64 {
    let line = listed
        .lines()
        .find(|line| line.starts_with(run))
        .unwrap_or_else(|| panic!("{run} in {listed}"));
    line.split_whitespace()
        .find_map(|word| word.parse::<u64>().ok().filter(|number| *number < 100_000))
        .expect("steps")
}

/// What `lrpt bench` counts for the small spec with these weights and the vocabulary of its text.
fn bench(place: &Workplace, weights: &str) -> Value {
    bench_at(place, weights, None)
}

/// The same at another width.
fn bench_at(place: &Workplace, weights: &str, width: Option<u64>) -> Value {
    let characters: std::collections::BTreeSet<char> =
        std::fs::read_to_string(place.path("text.txt")).expect("the text").chars().collect();
    let (spec, set, vocabulary) =
        (place.path("spec.yaml"), format!("model.weights={weights}"), characters.len().to_string());
    let wide = format!("model.n_embd={}", width.unwrap_or_default());
    let mut arguments = vec![
        "bench",
        spec.to_str().expect("UTF-8"),
        "--vocab-size",
        &vocabulary,
        "--steps",
        "1",
        "--json",
        "--set",
        &set,
    ];
    if width.is_some() {
        arguments.extend(["--set", &wide]);
    }
    serde_json::from_str(&text(&place.run(&arguments, 0).stdout)).expect("JSON")
}

#[test]
fn equal_budgets_are_solved() {
    let place = Workplace::new();
    let methods = "seeds: [1]\nbaseline: dense\nvariants:\n  - {name: dense, set: {model.weights: dense}}\n  - {name: spectral}\n";
    let with = |equal: &str| sweep(&place, &format!("equal: {equal}\n{methods}"));

    let path = with("{flops: baseline}");
    place.run(&["sweep", &path, "--launcher", "slurm"], 0);
    let spec = |id: &str| {
        serde_yaml::from_str::<Value>(
            &std::fs::read_to_string(place.path(&format!("runs/small/specs/{id}.yaml")))
                .expect("a spec"),
        )
        .expect("YAML")
    };
    let steps = |id: &str| spec(id)["train"]["max_steps"].as_u64().expect("steps");
    let (dense, spectral) = (
        bench(&place, "dense")["operations"]["flops_per_step"].clone(),
        bench(&place, "{low_rank: {rank: 6}}")["operations"]["flops_per_step"].clone(),
    );
    let (dense, spectral) = (dense.as_u64().expect("FLOPs"), spectral.as_u64().expect("FLOPs"));
    let (target, solved) = (12 * dense, steps("spectral-seed-1") * spectral);
    assert_eq!(steps("dense-seed-1"), 12);
    assert!(
        steps("spectral-seed-1") > 12 && target.abs_diff(solved) <= spectral / 2 + 1,
        "{target} and {solved}, {spectral} a step"
    );
    std::fs::remove_dir_all(place.path("runs")).expect("removed");

    // Degrees of freedom: a low-rank weight of the small spec stores 2 r² more, in 2 blocks of 6.
    let parameters =
        |weights: &str| -> u64 { bench(&place, weights)["parameters"].as_u64().expect("a count") };
    let path = with("{parameters: {share_of_baseline: 0.5}}");
    place.run(&["sweep", &path, "--launcher", "slurm"], 0);
    let rank =
        spec("spectral-seed-1")["model"]["weights"]["low_rank"]["rank"].as_u64().expect("a rank");
    let blocks = spec("spectral-seed-1")["model"]["n_layer"].as_u64().expect("blocks");
    let (budget, of_rank) = (parameters("dense") / 2, |rank: u64| {
        parameters(&format!("{{low_rank: {{rank: {rank}}}}}")) - 12 * blocks * rank * rank
    });
    assert!(
        rank > 6 && of_rank(rank) <= budget && budget < of_rank(rank + 1),
        "rank {rank} for {budget} parameters"
    );
    std::fs::remove_dir_all(place.path("runs")).expect("removed");

    let path = with("{tokens: {amount: 2560}}");
    assert_eq!(
        steps_of(&text(&place.run(&["sweep", &path, "--dry-run"], 0).stdout), "spectral"),
        20
    );
    let refusal = |equal: &str, variants: &str| {
        let body = format!("equal: {equal}\nseeds: [1]\nvariants:\n{variants}");
        text(&place.run(&["sweep", &sweep(&place, &body), "--dry-run"], 2).stderr)
    };
    let refused = refusal("{parameters: {amount: 10}}", "  - {name: spectral}\n");
    assert!(refused.contains("spectral-seed-1") && refused.contains("rank 1 spends"), "{refused}");
    let refused = refusal("{parameters: {amount: 1e9}}", "  - {name: spectral}\n");
    assert!(
        refused.contains("is the largest there is") && refused.contains("`width`"),
        "{refused}"
    );
    let dense = "set: {model.weights: dense}";
    let refused =
        refusal("{flops: {amount: 1e9}}", &format!("  - {{name: dense, {dense}, solve: rank}}\n"));
    assert!(refused.contains("there is no rank to solve for"), "{refused}");
    let refused = refusal("{tokens: {amount: 2560}}", "  - {name: spectral, solve: width}\n");
    assert!(refused.contains("neither rank nor width changes tokens"), "{refused}");
}

/// The narrower dense model that a table of low rank needs beside it: the width is a multiple of
/// the heads, the largest whose numbers, or operations, are within what the low-rank run spends.
#[test]
fn equal_budgets_are_solved_for_width() {
    let place = Workplace::new();
    let body = |equal: &str| {
        format!(
            "equal: {{{equal}: baseline}}\nseeds: [1]\nbaseline: spectral\nvariants:\n  \
             - {{name: spectral}}\n  \
             - {{name: narrow, solve: width, set: {{model.weights: dense}}}}\n  \
             - {{name: as-written, solve: nothing, set: {{model.weights: dense}}}}\n"
        )
    };
    for equal in ["parameters", "flops"] {
        let path = sweep(&place, &body(equal));
        place.run(&["sweep", &path, "--launcher", "slurm"], 0);
        let model = |id: &str| {
            let file = place.path(&format!("runs/small/specs/{id}.yaml"));
            let spec: Value = serde_yaml::from_str(&std::fs::read_to_string(file).expect("a spec"))
                .expect("YAML");
            let number = |key: &str| spec["model"][key].as_u64().expect("a number");
            (number("n_embd"), number("n_head"), number("n_layer"))
        };
        let (written, heads, blocks) = model("spectral-seed-1");
        let (narrow, _, _) = model("narrow-seed-1");
        assert!(narrow < written && narrow.is_multiple_of(heads), "{narrow} of {written}");
        assert_eq!(model("as-written-seed-1").0, written);
        let spent = |weights: &str, width: u64| {
            let counts = bench_at(&place, weights, Some(width));
            match equal {
                "flops" => counts["operations"]["flops_per_step"].as_u64().expect("FLOPs"),
                _ => {
                    let stored = counts["parameters"].as_u64().expect("a count");
                    if weights == "dense" { stored } else { stored - 12 * blocks * 6 * 6 }
                }
            }
        };
        let budget = spent("{low_rank: {rank: 6}}", written);
        assert!(
            spent("dense", narrow) <= budget && budget < spent("dense", narrow + heads),
            "{equal}: {narrow} of {written} wide for {budget}"
        );
        std::fs::remove_dir_all(place.path("runs")).expect("removed");
    }
}

/// Rates are chosen on a seed that is not reported, and the figures are of the other seeds alone.
#[test]
fn a_search_on_seeds_apart_is_reported_as_such() {
    let place = Workplace::new();
    let body = TWO_METHODS.replace(
        "seeds: [1, 2]",
        "seeds: [1, 2]\nsearch: {seeds: [7]}\ngoal: {below_baseline: 0.5}",
    );
    let path = sweep(&place, &body);
    let counts = summary(&place.run(&["sweep", &path, "--jobs", "2"], 0));
    // Four search; of two rates on two seeds each method runs one.
    assert_eq!(
        (counts["finished"].as_u64(), counts["not_needed"].as_u64()),
        (Some(8), Some(4)),
        "{counts}"
    );
    let compared = summary(&place.run(&["compare", "runs/small", "--json"], 0));
    for group in compared["groups"].as_array().expect("groups") {
        let seeds: Vec<&String> = group["losses"].as_object().expect("losses").keys().collect();
        assert_eq!(seeds, ["1", "2"], "{group}");
        let (stored, dimension) = (&group["parameters"], &group["manifold_dimension"]);
        let (stored, dimension) = (stored.as_f64().expect("1"), dimension.as_f64().expect("2"));
        let is_dense = group["method"] == "dense";
        assert!(if is_dense { stored == dimension } else { stored > dimension }, "{group}");
    }
    let page =
        std::fs::read_to_string(place.path("runs/small/report/report.html")).expect("the report");
    for part in [
        "Selection: searched values were chosen on seeds apart (7)",
        "Goal, 0.5 below dense: spectral: missed by",
        "r (m + n − r)",
        "Final loss against memory",
    ] {
        assert!(page.contains(part), "{part} in the report");
    }
    let refused = sweep(&place, &TWO_METHODS.replace("seeds:", "search: {seeds: [2]}\nseeds:"));
    let refused = text(&place.run(&["sweep", &refused, "--dry-run"], 2).stderr);
    assert!(refused.contains("seed 2 is also among the reported"), "{refused}");
}

#[test]
fn a_sweep_runs_once_and_its_report_has_everything() {
    let place = Workplace::new();
    let path =
        sweep(&place, &TWO_METHODS.replace("seeds: [1, 2]", "seeds: [1, 2]\nsearch: first_seed"));
    let first = summary(&place.run(&["sweep", &path, "--jobs", "2"], 0));
    // Four runs search on seed 1; of the four on seed 2 the best of each method is run.
    assert_eq!(
        (first["finished"].as_u64(), first["not_needed"].as_u64(), first["failed"].as_u64()),
        (Some(6), Some(2), Some(0))
    );
    let before = trajectories_of_finished(&place);
    assert_eq!(before.len(), 6);
    let again = summary(&place.run(&["sweep", &path, "--jobs", "2"], 0));
    assert_eq!((again["finished"].as_u64(), again["skipped"].as_u64()), (Some(0), Some(6)));
    assert_eq!(before, trajectories_of_finished(&place), "a finished run is left alone");

    let compared = place.run(&["compare", "runs/small", "--json"], 0);
    let compared = summary(&compared);
    assert_eq!(
        (compared["baseline"].as_str(), compared["groups"].as_array().map(Vec::len)),
        (Some("dense"), Some(2))
    );
    for group in compared["groups"].as_array().expect("groups") {
        assert_eq!(
            (group["n"].as_u64(), group["missing"].as_array().map(Vec::len)),
            (Some(2), Some(0)),
            "{group}"
        );
        let losses: Vec<f64> = group["losses"]
            .as_object()
            .expect("losses")
            .values()
            .filter_map(Value::as_f64)
            .collect();
        assert!(
            (group["loss"].as_f64().expect("a mean") - losses.iter().sum::<f64>() / 2.0).abs()
                < 1e-12
        );
        assert!(
            group["flops"].as_f64().expect("FLOPs") > 1e6
                && group["tokens"].as_f64() == Some(1536.0),
            "{group}"
        );
    }
    let page =
        std::fs::read_to_string(place.path("runs/small/report/report.html")).expect("the report");
    for part in [
        "spectral",
        "searched on the first seed",
        "not tuned",
        "Loss against FLOPs",
        "Singular values",
        "prefers-color-scheme",
    ] {
        assert!(page.contains(part), "{part} in the report");
    }
}

/// Seconds of a step never come out the same twice, but a sweep that is started again keeps what it
/// was solved with.
#[test]
fn equal_seconds_are_solved_once() {
    let place = Workplace::new();
    let path = sweep(
        &place,
        "equal: {seconds: baseline}\nseeds: [1]\nvariants:\n  - {name: dense, set: {model.weights: dense}}\n  - {name: spectral}\n",
    );
    place.run(&["sweep", &path], 0);
    let before = std::fs::read(place.path("runs/small/manifest.json")).expect("the manifest");
    let again = summary(&place.run(&["sweep", &path], 0));
    assert_eq!((again["finished"].as_u64(), again["skipped"].as_u64()), (Some(0), Some(2)));
    assert_eq!(
        before,
        std::fs::read(place.path("runs/small/manifest.json")).expect("the manifest")
    );
}

fn trajectories_of_finished(place: &Workplace) -> BTreeMap<String, Vec<String>> {
    let manifest = json(&place.path("runs/small/manifest.json"));
    let ids = manifest["runs"]
        .as_array()
        .expect("runs")
        .iter()
        .map(|run| run["id"].as_str().expect("an id").to_owned());
    ids.map(|id| (id.clone(), place.path("runs/small").join(id).join("metrics.jsonl")))
        .filter(|(_, path)| path.exists())
        .map(|(id, path)| (id, metrics(&path)))
        .collect()
}

/// Killed at several moments, children left to themselves, and started again: the same metrics as
/// without.
#[test]
fn a_killed_sweep_goes_on_to_the_same_results() {
    let undisturbed = Workplace::new();
    let path = sweep(&undisturbed, TWO_METHODS);
    undisturbed.run(&["sweep", &path, "--jobs", "2"], 0);
    let expected = trajectories(&undisturbed);
    assert_eq!(expected.len(), 8);

    let place = Workplace::new();
    let path = sweep(&place, TWO_METHODS);
    let lines = || -> usize {
        expected.keys().map(|id| place.metric_lines(&format!("runs/small/{id}"))).sum()
    };
    let whole: usize = expected.values().map(Vec::len).sum();
    for kill in 1..=3 {
        let before = lines();
        let landed = place.kill_when(&["sweep", &path, "--jobs", "2"], || lines() > before + 5);
        assert!(landed, "kill {kill}: the sweep had ended, {before} lines before");
        assert!(lines() < whole, "kill {kill}: every run had ended");
    }
    place.run(&["sweep", &path, "--jobs", "2"], 0);
    assert_eq!(expected, trajectories(&place));
}

/// Case 8: a run killed when it began to write its last checkpoint is finished first.
#[test]
fn a_run_killed_in_its_last_save_is_finished() {
    let place = Workplace::new();
    let path = sweep(&place, "seeds: [1]\nvariants:\n  - {name: only}\n");
    let first = summary(&place.run(&["sweep", &path], 0));
    assert_eq!(first["finished"].as_u64(), Some(1));
    let whole = place.trajectory("runs/small/only-seed-1", 12);
    let checkpoints = place.path("runs/small/only-seed-1/checkpoints");
    // What a kill there leaves: all metrics, the folder that was begun, the checkpoint before.
    std::fs::remove_dir_all(checkpoints.join("step-00000012")).expect("the last checkpoint");
    std::fs::create_dir(checkpoints.join(".step-00000012.x.tmp")).expect("a folder");
    let again = summary(&place.run(&["sweep", &path], 0));
    assert_eq!((again["finished"].as_u64(), again["skipped"].as_u64()), (Some(1), Some(0)));
    support::assert_same(
        &whole,
        &place.trajectory("runs/small/only-seed-1", 12),
        "killed in its last save",
    );
    // One whose bytes are damaged is no last checkpoint either.
    let model = checkpoints.join("step-00000012/model.safetensors");
    let mut bytes = std::fs::read(&model).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&model, bytes).expect("writable");
    let again = summary(&place.run(&["sweep", &path], 0));
    assert_eq!((again["finished"].as_u64(), again["skipped"].as_u64()), (Some(1), Some(0)));
    support::assert_same(
        &whole,
        &place.trajectory("runs/small/only-seed-1", 12),
        "after damage of the last checkpoint",
    );
}

/// Case 20: damaged timings are named as what they are, and nothing is timed anew.
#[test]
fn damaged_timings_are_named() {
    let place = Workplace::new();
    let path = sweep(
        &place,
        "equal: {seconds: baseline}\nbaseline: dense\nseeds: [1]\nvariants:\n  - {name: dense, set: {model.weights: dense}}\n  - {name: spectral}\n",
    );
    place.run(&["sweep", &path], 0);
    let timings = place.path("runs/small/calibration.json");
    let sound = std::fs::read(&timings).expect("timings");
    let manifest = std::fs::read(place.path("runs/small/manifest.json")).expect("the manifest");
    std::fs::write(&timings, &sound[..sound.len() / 2]).expect("writable");
    let error = text(&place.run(&["sweep", &path], 1).stderr);
    assert!(error.contains("calibration.json") && error.contains("damaged"), "{error}");
    assert!(!error.contains("other settings"), "{error}");
    assert_eq!(
        std::fs::read(place.path("runs/small/manifest.json")).expect("the manifest"),
        manifest
    );
    std::fs::write(&timings, &sound).expect("writable");
    let again = summary(&place.run(&["sweep", &path], 0));
    assert_eq!(again["skipped"].as_u64(), Some(2));
}

/// A sweep that is asked to stop lets every run finish its step and save, however long the step
/// takes.
#[test]
fn a_stopped_sweep_leaves_checkpoints() {
    let place = Workplace::new();
    // Steps of seconds on one thread, so that the stop comes in the middle of the first.
    let body = "set: {model.n_embd: 256, model.n_layer: 4, train.batch_size: 64, train.gradient_accumulation_steps: 24, model.weights: dense}\n\
                seeds: [1]\nvariants:\n  - {name: slow}\n";
    let path = sweep(&place, body);
    let mut child = place
        .lrpt(&["sweep", path.as_str()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let begun = place.path("runs/small/slow-seed-1/plan.yaml");
    while !begun.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .expect("kill");
    assert_eq!(child.wait().expect("gone").code(), Some(143));
    let saved = std::fs::read_dir(place.path("runs/small/slow-seed-1/checkpoints"))
        .expect("a checkpoint was written");
    assert!(saved.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("step-")));
}

#[test]
fn a_failed_run_is_reported_and_tried_again_only_on_request() {
    let place = Workplace::new();
    let body = "seeds: [1]\nvariants:\n  - {name: good}\n  - {name: diverges, set: {train.grad_clip: 0, optimizer.low_rank.dlra: {momentum: heavy_ball, learning_rate: 1e30, weight_decay: 0}}}\n";
    let path = sweep(&place, body);
    let failed = place.run(&["sweep", &path], 1);
    let stderr = text(&failed.stderr);
    assert!(
        stderr.contains("1 of 2 runs failed")
            && stderr.contains("diverges-seed-1")
            && stderr.contains("not finite"),
        "{stderr}"
    );
    let log = place.path("runs/small/logs/diverges-seed-1.log");
    let length = || std::fs::metadata(&log).expect("a log").len();
    let before = length();
    place.run(&["sweep", &path], 1);
    assert_eq!(length(), before, "it was not tried again");
    place.run(&["sweep", &path, "--retry-failed"], 1);
    assert!(length() > before, "it was tried again");
    let table = text(&place.run(&["compare", "runs/small"], 0).stdout);
    assert!(table.contains("No result: diverges-seed-1: failed (exit code 3)"), "{table}");
}

#[test]
fn what_cannot_be_run_or_compared_is_refused() {
    let place = Workplace::new();
    let refused =
        |body: &str| text(&place.run(&["sweep", &sweep(&place, body), "--dry-run"], 2).stderr);
    let message = refused("seeds: [1]\nvariants:\n  - {name: a, tunes: {x: [1]}}\n");
    assert!(
        message.contains("sweep.yaml:5")
            && message.contains("tunes")
            && message.contains("did you mean `tune`?"),
        "{message}"
    );
    let message = refused("seeds: [1]\nbaseline: c\nvariants:\n  - {name: a}\n");
    assert!(message.contains("sweep.yaml:4") && message.contains("`c` is no variant"), "{message}");
    let message = refused("seeds: [1]\nvariants:\n  - {name: a, set: {model.n_layr: 3}}\n");
    assert!(
        message.contains("a-seed-1") && message.contains("n_layr") && message.contains("n_layer"),
        "{message}"
    );

    let path = sweep(&place, "seeds: [1]\nvariants:\n  - {name: a}\n");
    place.run(&["sweep", &path], 0);
    let path = sweep(&place, "seeds: [1]\nvariants:\n  - {name: a, set: {train.max_steps: 8}}\n");
    let message = text(&place.run(&["sweep", &path], 2).stderr);
    assert!(message.contains("train.max_steps: 12 -> 8"), "{message}");

    let spec = place.path("spec.yaml");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "one"], 0);
    place.run(&["train", spec, "--run-dir", "two", "--set", "eval.tokens=128"], 0);
    let message = text(&place.run(&["compare", "one", "two"], 2).stderr);
    assert!(
        message.contains("one and two cannot be compared")
            && message.contains("eval.tokens 256 and 128"),
        "{message}"
    );
    let message = text(&place.run(&["compare", "one", "nothing"], 2).stderr);
    assert!(message.contains("nothing holds no run"), "{message}");
}

#[test]
fn a_slurm_array_runs_the_same_runs() {
    let place = Workplace::new();
    let body = TWO_METHODS.replace("seeds: [1, 2]", "seeds: [1, 2]\nsearch: first_seed");
    let path = sweep(&place, &body);
    let printed =
        text(&place.run(&["sweep", &path, "--launcher", "slurm", "--jobs", "2"], 0).stdout);
    assert_eq!(
        printed.lines().collect::<Vec<_>>(),
        ["runs/small/slurm.sh", "runs/small/slurm-repeat.sh"]
    );
    let script = std::fs::read_to_string(place.path("runs/small/slurm.sh")).expect("the script");
    for line in [
        "#SBATCH --array=0-3%2",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --signal=B:TERM@120",
        "sweep 'runs/small' --run-index \"$SLURM_ARRAY_TASK_ID\"",
    ] {
        assert!(script.contains(line), "{line} in {script}");
    }
    let checked = std::process::Command::new("bash")
        .arg("-n")
        .arg(place.path("runs/small/slurm.sh"))
        .status()
        .expect("bash");
    assert!(checked.success(), "{script}");

    // What a task of each index does. A repeat before its search is over is refused; one of a rate
    // that was not best does nothing.
    let too_early = place.run(&["sweep", "runs/small", "--run-index", "5"], 1);
    assert!(
        text(&too_early.stderr).contains("waits for the runs that search"),
        "{}",
        text(&too_early.stderr)
    );
    for index in ["0", "1", "2", "3", "4", "5", "6", "7", "0"] {
        place.run(&["sweep", "runs/small", "--run-index", index], 0);
    }
    assert_eq!(trajectories_of_finished(&place).len(), 6);
    let beyond = place.run(&["sweep", "runs/small", "--run-index", "8"], 2);
    assert!(text(&beyond.stderr).contains("has 8 runs"), "{}", text(&beyond.stderr));
}

/// Case 24: axes whose product is 40⁵ are refused before anything is expanded.
#[test]
fn a_sweep_of_too_many_runs_is_refused_at_once() {
    let place = Workplace::new();
    let values = (1..=40).map(|value| value.to_string()).collect::<Vec<_>>().join(", ");
    let axes: String =
        ["a", "b", "c", "d", "e"].map(|key| format!("  {key}: [{values}]\n")).concat();
    let path = sweep(&place, &format!("seeds: [1]\nvariants: [{{name: one}}]\naxes:\n{axes}"));
    let refused = text(&place.run(&["sweep", &path, "--dry-run"], 2).stderr);
    assert!(refused.contains("these make 102400000 runs"), "{refused}");
}

/// Case 39: `--dry-run` lists what `--only` leaves, and a pattern of no run is an error.
#[test]
fn only_is_the_same_for_a_dry_run_and_must_match() {
    let place = Workplace::new();
    let path = sweep(&place, TWO_METHODS);
    let listed = text(&place.run(&["sweep", &path, "--dry-run", "--only", "dense*"], 0).stdout);
    assert!(listed.contains("4 runs;") && !listed.contains("spectral"), "{listed}");
    for more in [["--jobs", "1"].as_slice(), &["--dry-run"]] {
        let arguments = [["sweep", path.as_str(), "--only", "zzz*"].as_slice(), more].concat();
        let refused = text(&place.run(&arguments, 2).stderr);
        assert!(refused.contains("no run of this sweep matches"), "{refused}");
    }
    assert!(!place.path("runs").exists(), "nothing was begun");
}

/// Issue 13, hostile folders: a manifest's names are paths, so they obey the rule of specs; `..`
/// and absolute ones are refused before anything is read or written there.
#[test]
fn a_manifest_that_leads_outside_is_refused() {
    let place = Workplace::new();
    let path = sweep(&place, "seeds: [1]\nvariants: [{name: one}]\n");
    place.run(&["sweep", &path], 0);
    let manifest = place.path("runs/small/manifest.json");
    let sound = std::fs::read_to_string(&manifest).expect("the manifest");
    let outside = place.path("outside").display().to_string();
    for id in ["../../outside", outside.as_str(), "..", "a\\u001b[2Jb"] {
        std::fs::write(&manifest, sound.replace("\"one-seed-1\"", &format!("\"{id}\"")))
            .expect("edited");
        for arguments in
            [["sweep", "runs/small", "--run-index", "0"].as_slice(), &["compare", "runs/small"]]
        {
            let output = place.lrpt(arguments).output().expect("it runs");
            assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {output:?}");
            let error = text(&output.stderr);
            assert!(error.contains("is no name for a folder"), "{error}");
            assert!(!error.contains('\u{1b}'), "control characters are shown: {error:?}");
        }
    }
    assert!(!place.path("outside").exists() && !place.path("outside.yaml").exists());
}

/// Case 40: nothing of a sweep or of its report is written through a link.
#[cfg(unix)]
#[test]
fn a_sweep_or_report_whose_files_are_links_is_refused() {
    let place = Workplace::new();
    let path = sweep(&place, "seeds: [1]\nvariants: [{name: one}]\n");
    place.run(&["sweep", &path], 0);
    let precious = place.path("precious");
    std::fs::create_dir(&precious).expect("a folder");
    for (name, command) in [
        ("lrpt.lock", ["sweep", path.as_str()].as_slice()),
        ("calibration.json", &["sweep", path.as_str()]),
        ("logs", &["sweep", path.as_str()]),
        ("one-seed-1", &["sweep", path.as_str()]),
        ("failures", &["sweep", "runs/small", "--run-index", "0"]),
        ("report", &["compare", "runs/small"]),
    ] {
        let (inside, aside) = (place.path("runs/small").join(name), place.path("aside"));
        let was_there = std::fs::rename(&inside, &aside).is_ok();
        std::os::unix::fs::symlink(&precious, &inside).expect("a link");
        let output = place.lrpt(command).output().expect("it runs");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {error}");
        assert!(error.contains("is a link to") && error.contains(name), "{name}: {error}");
        assert_eq!(precious.read_dir().expect("readable").count(), 0, "{name}: nothing written");
        std::fs::remove_file(&inside).expect("the link");
        if was_there {
            std::fs::rename(&aside, &inside).expect("back");
        }
    }
    let elsewhere = place.path("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a folder");
    std::fs::write(place.path("kept.txt"), "kept").expect("a file");
    std::os::unix::fs::symlink(place.path("kept.txt"), elsewhere.join("report.md"))
        .expect("a link");
    place.run(&["compare", "runs/small", "--report", "elsewhere"], 2);
    assert_eq!(std::fs::read_to_string(place.path("kept.txt")).expect("kept"), "kept");
    place.run(&["compare", "runs/small"], 0);
}
