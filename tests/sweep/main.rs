//! `lrpt sweep` and `lrpt compare` through the binary: expansion, equal budgets, skipping,
//! interruption, failure, refusal, Slurm's script.

mod interrupted;
mod processes;
mod sizes;
#[path = "../support/mod.rs"]
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

/// A budget of ranks that ends at a share of the dense numbers has its share solved, in thousandths.
#[test]
fn equal_budgets_are_solved_for_the_share_of_a_budget() {
    let place = Workplace::new();
    let body = "equal: {parameters: {share_of_baseline: 0.6}}\nseeds: [1]\nbaseline: dense\nvariants:\n  \
         - {name: dense, solve: nothing, set: {model.weights: dense}}\n  \
         - {name: budget, set: {model.weights: {low_rank: {rank: full, start: dense}}, rank: {budget: {final_share: 0.3, start: 1, every: 2}}}}\n";
    place.run(&["sweep", &sweep(&place, body), "--launcher", "slurm"], 0);
    let file = place.path("runs/small/specs/budget-seed-1.yaml");
    let spec: Value =
        serde_yaml::from_str(&std::fs::read_to_string(file).expect("a spec")).expect("YAML");
    let share = spec["rank"]["budget"]["final_share"].as_f64().expect("a share");
    let thousandths = (1000.0 * share).round();
    assert!((1000.0 * share - thousandths).abs() < 1e-9 && share > 0.3, "{share}");

    let (width, blocks) = (&spec["model"]["n_embd"], &spec["model"]["n_layer"]);
    let (width, blocks) = (width.as_f64().expect("a width"), blocks.as_f64().expect("blocks"));
    let matrices = 12.0 * blocks * width * width;
    let dense = bench(&place, "dense")["parameters"].as_f64().expect("a count");
    let at = |share: f64| dense - matrices + (share * matrices).round();
    assert!(
        at(share) <= 0.6 * dense && 0.6 * dense < at((thousandths + 1.0) / 1000.0),
        "{share} of {matrices} beside {dense}"
    );
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
