//! Weights that are dense until they are cut, from outside: what the commands say of a checkpoint of
//! either kind, and a run that is killed before and after its cuts.

mod support;

use serde_json::Value;
use support::{Workplace, assert_same};

const WEIGHTS: &str = "{low_rank: {rank: full, start: dense}}";
/// Cuts at steps 5, 8 and 11.
const RULES: &str = "optimizer: {low_rank: {dlra: {momentum: adam, learning_rate: 2e-2}}}\n\
     rank: {budget: {final_rank: 8, schedule: cubic, every: 3, settle: 2, start: 3, freeze: 12}}\n\
     checkpoint: {every: 4, keep_last: 9}\n";

/// One object for every low-rank weight.
fn inspected(place: &Workplace, run: &str) -> Vec<Value> {
    let output = place.run(&["inspect", run, "--json"], 0);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn is_dense(weight: &Value) -> bool {
    weight["orthonormality_defect"].is_null()
}

#[test]
fn every_command_reads_both_kinds_of_checkpoint() {
    let place = Workplace::new();
    place.spec(WEIGHTS, RULES);
    let checked = place.run(&["spec", "check", "spec.yaml"], 0);
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("q     32 × 32, dense until cut"), "{checked}");
    place.run(&["train", "spec.yaml", "--run-dir", "run", "--stop-after", "4"], 0);
    place.run(&["resume", "run"], 0);

    let (before, after) = ("run/checkpoints/step-00000004", "run/checkpoints/step-00000012");
    let (dense, factors) = (inspected(&place, before), inspected(&place, after));
    assert_eq!((dense.len(), factors.len()), (12, 12));
    for (dense, factors) in dense.iter().zip(&factors) {
        assert!(is_dense(dense) && !is_dense(factors), "{dense} and {factors}");
        assert_eq!(dense["rank"], 32, "{dense}");
        assert_eq!(dense["parameters"], dense["dense_parameters"]);
        assert_eq!(dense["singular_values"].as_array().map(Vec::len), Some(32));
        assert_eq!(dense["name"], factors["name"]);
    }
    let table = String::from_utf8(place.run(&["inspect", before], 0).stdout).expect("UTF-8");
    assert!(table.contains("32, dense") && table.contains("100.0%"), "{table}");

    let metrics = support::metrics(&place.path("run/metrics.jsonl"));
    let lines: Vec<Value> =
        metrics.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let at = |step: u64, key: &str| -> Option<f64> {
        lines.iter().filter(|line| line["step"] == step).find_map(|line| line[key].as_f64())
    };
    assert!(at(4, "params") > at(12, "params"), "{metrics:?}");
    assert_eq!((at(4, "rank/mean"), at(4, "lowrank/defect")), (Some(32.0), None));
    assert!(at(12, "rank/mean") < Some(32.0) && at(12, "lowrank/defect").is_some());
    let weight = dense[0]["name"].as_str().expect("a name");
    assert_eq!(at(4, &format!("rank/{weight}")), Some(32.0));
    assert_eq!(at(12, &format!("rank/{weight}")), factors[0]["rank"].as_f64(), "{metrics:?}");

    for (checkpoint, name) in [(before, "before"), (after, "after")] {
        place.run(&["eval", checkpoint], 0);
        place.run(&["generate", checkpoint, "--prompt", "the", "--tokens", "5"], 0);
        place.run(&["export", checkpoint, "--to", name], 0);
        // What goes out comes back, as the first weights of a run, in either form.
        for (form, weights) in [("dense", "dense"), ("uncut", WEIGHTS)] {
            let (run, init) = (format!("{name}-{form}"), format!("init={{hf: {name}}}"));
            let weights = format!("model.weights={weights}");
            let arguments = ["train", "spec.yaml", "--run-dir", &run, "--stop-after", "0"];
            place.run(&[&arguments[..], &["--set", &init, "--set", &weights]].concat(), 0);
        }
    }
    place.run(&["export", after, "--to", "factored", "--factored"], 0);
    let refused = place.run(&["export", before, "--to", "none", "--factored"], 1);
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("dense until they are cut"), "{refused}");

    // A run of either kind starts another.
    let init = ["--set", "init={run: run/checkpoints/step-00000004}", "--stop-after", "0"];
    place.run(&[&["train", "spec.yaml", "--run-dir", "warm"], &init[..]].concat(), 0);
    let (warm, was) = (inspected(&place, "warm"), inspected(&place, before));
    assert_eq!(warm, was, "the same matrices");
}

#[test]
fn a_run_that_is_killed_before_and_after_its_cuts_goes_on_exactly() {
    let place = Workplace::new();
    place.spec(WEIGHTS, RULES);
    place.run(&["train", "spec.yaml", "--run-dir", "whole"], 0);
    let expected = place.trajectory("whole", 12);
    for lines in [3, 8, 13] {
        let run = format!("killed-{lines}");
        let arguments = ["train", "spec.yaml", "--run-dir", &run];
        if !place.kill_when(&arguments, || place.metric_lines(&run) >= lines) {
            continue;
        }
        place.run(&["train", "spec.yaml", "--run-dir", &run, "--resume"], 0);
        assert_same(&expected, &place.trajectory(&run, 12), &run);
    }
}
