//! A dense model cut to low rank: by tolerance and by budget, in both norms, before and while it
//! trains, and out again.

mod support;

use serde_json::Value;
use std::fs;
use std::process::Output;
use support::{Workplace, assert_same};

/// A place with a dense model in `source`, and a spec that starts from it; 12 steps.
fn place() -> Workplace {
    let place = Workplace::new();
    place.spec("dense", "");
    place.run(&["train", "spec.yaml", "--run-dir", "source"], 0);
    place
}

fn train(place: &Workplace, run: &str, settings: &[&str], flags: &[&str], code: i32) -> Output {
    let mut arguments = vec!["train", "spec.yaml", "--run-dir", run, "--set", "init={run: source}"];
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    arguments.extend(flags);
    place.run(&arguments, code)
}

fn loss(output: &Output) -> f64 {
    let result: Value = serde_json::from_slice(&output.stdout).expect("one object");
    result["loss"].as_f64().expect("a loss")
}

fn report(place: &Workplace, run: &str) -> Value {
    let text = fs::read_to_string(place.path(&format!("{run}/init.json"))).expect("init.json");
    serde_json::from_str(&text).expect("JSON")
}

/// Sum over all kinds.
fn sum(report: &Value, key: &str) -> u64 {
    let kinds = report["kinds"].as_object().expect("kinds");
    kinds.values().map(|kind| kind[key].as_u64().expect("a count")).sum()
}

#[test]
fn a_cut_keeps_its_tolerance_or_its_budget_and_says_what_it_discards() {
    let place = place();
    let whole = loss(&train(
        &place,
        "whole",
        &["model.weights={low_rank: {rank: full}}"],
        &["--stop-after", "0"],
        0,
    ));
    let source = loss(&place.run(&["eval", "source"], 0));
    assert!((whole - source).abs() < 1e-5, "{whole}, not {source}: full rank loses nothing");

    for (run, tau) in [("fine", 0.1f64), ("coarse", 0.5)] {
        let setting = format!(
            "model.weights={{low_rank: {{rank: full, cut: {{tolerance: {{tau: {tau}}}}}}}}}"
        );
        let found = train(&place, run, &[&setting], &["--stop-after", "0"], 0);
        let said = String::from_utf8_lossy(&found.stderr).into_owned();
        assert!(said.contains("down: 2 matrices of rank"), "{said}");
        let report = report(&place, run);
        let energy = report["discarded_energy"].as_f64().expect("a share");
        assert!(0.0 < energy && energy <= tau * tau, "{tau}: {report}");
        assert_eq!(sum(&report, "matrices"), 12, "{report}");
    }
    for share in [0.7, 0.5] {
        let mut losses = Vec::new();
        for norm in ["frobenius", "fisher"] {
            let setting = format!(
                "model.weights={{low_rank: {{rank: full, cut: {{budget: {{share: {share}, norm: {norm}}}}}}}}}"
            );
            let run = format!("{norm}-{share}");
            losses.push(loss(&train(&place, &run, &[&setting], &["--stop-after", "0"], 0)));
            let report = report(&place, &run);
            let (kept, dense) = (sum(&report, "numbers"), sum(&report, "dense_numbers"));
            let found = kept as f64 / dense as f64;
            assert!(found <= share && found > share - 0.02, "{norm}: {found} of {share}");
            // What the export writes is what was counted.
            let to = format!("{run}-exported");
            place.run(&["export", &run, "--to", &to, "--factored"], 0);
            let again = format!("model.weights=dense\ninit={{hf: {to}}}");
            let settings: Vec<&str> = again.lines().collect();
            let back = train(&place, &format!("{to}-in"), &settings, &["--stop-after", "0"], 0);
            assert!((loss(&back) - losses.last().expect("a loss")).abs() < 1e-4, "{run}");
        }
        assert!(losses[1] < losses[0], "{share}: {losses:?}, frobenius and fisher");
    }
    let refused = train(
        &place,
        "no",
        &["init=null", "model.weights={low_rank: {rank: full, cut: {budget: {share: 0.5}}}}"],
        &[],
        2,
    );
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("model.weights.low_rank.cut: cuts the weights of another model"),
        "{said}"
    );
}

/// What a cut before the first step left is what `compare` counts, not the rank that the plan began
/// with.
#[test]
fn a_comparison_counts_the_ranks_that_a_cut_left() {
    let place = place();
    let cut = "model.weights={low_rank: {rank: full, cut: {budget: {share: 0.6}}}}";
    train(&place, "cut", &[cut], &[], 0);
    let compared = place.run(&["compare", "source", "cut", "--json"], 0);
    let compared: Value = serde_json::from_slice(&compared.stdout).expect("one object");
    let groups = compared["groups"].as_array().expect("groups");
    let count = |method: &str, key: &str| {
        let mut of = groups.iter().filter(|group| group["method"].as_str() == Some(method));
        of.next()
            .and_then(|group| group[key].as_f64())
            .unwrap_or_else(|| panic!("{method} {key}: {compared}"))
    };
    let found = report(&place, "cut");
    let (kept, full) = (sum(&found, "numbers"), sum(&found, "dense_numbers"));
    let dense = count("small", "parameters");
    assert_eq!(count("small", "manifold_dimension"), dense);
    assert_eq!(count("cut", "manifold_dimension"), dense - full as f64 + kept as f64);
    // The same run at full rank needs more while it trains.
    train(&place, "full", &["model.weights={low_rank: {rank: full}}"], &[], 0);
    let compared = place.run(&["compare", "full", "--json"], 0);
    let compared: Value = serde_json::from_slice(&compared.stdout).expect("one object");
    let uncut = compared["groups"][0]["training_memory"].as_f64().expect("bytes");
    assert!(count("cut", "training_memory") < 0.9 * uncut, "{uncut}");
}

/// The cut is made once: a run that stopped right after it, or later, goes on to the same bytes
/// without its source.
#[test]
fn every_cut_resumes_exactly_without_its_source() {
    let place = place();
    let forms = [
        ("tolerance", "{low_rank: {rank: 24, cut: {tolerance: {tau: 0.3, norm: fisher}}}}", ""),
        ("budget", "{low_rank: {rank: full, cut: {budget: {share: 0.6}}}}", ""),
        (
            "falling",
            "{low_rank: {rank: full, cut: {budget: {share: 0.9, norm: fisher, batches: 3}}}}",
            "rank={budget: {final_share: 0.5, every: 3, start: 1, freeze: 9}}",
        ),
    ];
    let run = |name: &str, weights: &str, rank: &str, flags: &[&str]| {
        let weights = format!("model.weights={weights}");
        let settings = [weights.as_str(), rank];
        let settings = if rank.is_empty() { &settings[..1] } else { &settings[..] };
        train(&place, name, settings, flags, 0);
    };
    for (name, weights, rank) in forms {
        run(&format!("{name}-whole"), weights, rank, &[]);
        run(&format!("{name}-0"), weights, rank, &["--stop-after", "0"]);
        run(&format!("{name}-5"), weights, rank, &["--stop-after", "5"]);
    }
    fs::rename(place.path("source"), place.path("elsewhere")).expect("moved");
    for (name, ..) in forms {
        let whole = place.trajectory(&format!("{name}-whole"), 12);
        for stopped in ["0", "5"] {
            let run = format!("{name}-{stopped}");
            place.run(&["resume", &run], 0);
            assert_same(&whole, &place.trajectory(&run, 12), &run);
        }
    }
    // Half of what the matrices would be dense, and no more.
    place.run(&["export", "falling-whole", "--to", "half", "--factored"], 0);
    place.run(&["export", "falling-whole", "--to", "full"], 0);
    let size = |folder: &str| {
        fs::metadata(place.path(&format!("{folder}/model.safetensors"))).expect("weights").len()
    };
    assert!(size("half") < size("full"), "{} and {}", size("half"), size("full"));
}

/// What is known before the weights are read.
#[test]
fn spec_check_says_what_the_cuts_leave() {
    let place = place();
    let checked = |weights: &str, rank: &str| {
        let (weights, rank) = (format!("model.weights={weights}"), format!("rank={rank}"));
        let arguments = ["--set", "init={run: source}", "--set", &weights, "--set", &rank];
        let found = place.run(&[&["spec", "check", "spec.yaml"], &arguments[..]].concat(), 0);
        String::from_utf8_lossy(&found.stdout).into_owned()
    };
    let share = "{low_rank: {rank: full, cut: {budget: {share: 0.8}}}}";
    let found = checked(share, "{budget: {final_share: 0.5, start: 1, freeze: 9}}");
    for line in ["at most, exported, after the cut", "at most, exported, at the end"] {
        assert!(found.contains(line), "{found}");
    }
    let found = checked("{low_rank: {rank: 8, cut: {tolerance: {tau: 0.1}}}}", "{fixed: {}}");
    assert!(found.contains("by tolerance"), "{found}");
}
