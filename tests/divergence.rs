//! `train.on_divergence`: steps left out, rollbacks, their limits, and exact resume after them.

mod support;

use std::fs;
use support::{Workplace, assert_same};

const CONSTANT: &str = "schedule={constant: {warmup_steps: 0}}";

fn train(place: &Workplace, run: &str, more: &[&str], code: i32) -> String {
    let arguments = [&["train", "spec.yaml", "--run-dir", run, "--set", CONSTANT], more].concat();
    String::from_utf8_lossy(&place.run(&arguments, code).stderr).into_owned()
}

/// The largest value of a key in a run's metrics.
fn most(place: &Workplace, run: &str, key: &str) -> u64 {
    let value = |line: &String| {
        serde_json::from_str::<serde_json::Value>(line).expect("JSON")[key].as_u64()
    };
    support::metrics(&place.path(run).join("metrics.jsonl"))
        .iter()
        .filter_map(value)
        .max()
        .unwrap_or(0)
}

/// The first step at this rate leaves numbers so large that every later loss is not finite.
const TOO_LARGE: &str = "optimizer: {low_rank: {dlra: {momentum: adam, learning_rate: 1e30, weight_decay: 0}}}\n\
     checkpoint: {every: 5, keep_last: 9}";
const LOW_RANK: &str = "{low_rank: {rank: 6}}";
const SKIP: [&str; 4] = ["--set", "train.on_divergence=skip_step", "--set", "eval.every=100"];

/// Steps left out change no weight and no moment, are counted, and resume to the same bytes.
#[test]
fn steps_left_out_change_nothing() {
    let place = Workplace::new();
    place.spec(LOW_RANK, TOO_LARGE);
    let skip = |more: &[&'static str]| {
        [&SKIP[..], &["--set", "train.max_rollbacks=20", "--stop-after"], more].concat()
    };
    let said = train(&place, "whole", &skip(&["11"]), 0);
    assert!(said.contains("step 11 is left out (10 so far)"), "{said}");
    assert_eq!(most(&place, "whole", "train/skipped_steps"), 10);
    let (before, after) = (place.trajectory("whole", 5), place.trajectory("whole", 11));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        assert!(before[file] == after[file], "{file} changed");
    }
    train(&place, "broken", &skip(&["7"]), 0);
    train(&place, "broken", &skip(&["11", "--resume"]), 0);
    assert_same(&after, &place.trajectory("broken", 11), "steps left out");
}

/// Too many in a row end the run as a divergence does, also where it is resumed in between.
#[test]
fn too_many_steps_left_out_in_a_row_end_the_run() {
    let place = Workplace::new();
    place.spec(LOW_RANK, TOO_LARGE);
    train(&place, "run", &[&SKIP[..], &["--stop-after", "3"]].concat(), 0);
    let said = train(&place, "run", &[&SKIP[..], &["--resume"]].concat(), 3);
    assert!(said.contains("left out in a row") && said.contains("train.max_rollbacks"), "{said}");
    assert_eq!(most(&place, "run", "train/skipped_steps"), 3);
}

/// Dense weights that a step moves by 1e10 have no finite loss; halved often enough they have.
const TOO_FAST: &str = "optimizer: {dense: {adamw: {learning_rate: 1e10, weight_decay: 0}}}\n\
                        checkpoint: {every: 5, keep_last: 9}";

fn rollback(limit: &str) -> [&str; 6] {
    ["--set", "train.on_divergence=rollback", "--set", "eval.every=100", "--set", limit]
}

/// A run goes back until its rates are low enough, says how often, and goes on from any of its
/// checkpoints to the same bytes.
#[test]
fn a_rollback_lowers_rates_until_the_run_ends() {
    let place = Workplace::new();
    place.spec("dense", TOO_FAST);
    let flags = rollback("train.max_rollbacks=30");
    let said = train(&place, "whole", &flags, 0);
    let rollbacks = most(&place, "whole", "train/rollbacks");
    assert!(rollbacks >= 2, "{rollbacks} rollbacks:\n{said}");
    assert!(said.contains(&format!("(rollback {rollbacks})")), "{said}");
    let whole = place.trajectory("whole", 12);
    let rate = |step: u64| {
        let of_step = |line: &String| {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            (line["step"].as_u64() == Some(step)).then(|| line["train/lr"].as_f64()).flatten()
        };
        let lines = support::metrics(&place.path("whole/metrics.jsonl"));
        let rates: Vec<f64> = lines.iter().filter_map(of_step).collect();
        assert_eq!(rates.len(), 1, "one line of step {step}");
        rates[0]
    };
    assert_eq!(rate(12), 1e10 * 0.5f64.powi(rollbacks as i32));
    // As a kill after the checkpoint of step 5 leaves it.
    for name in ["step-00000010", "step-00000012", "latest", "best"] {
        let path = place.path("whole/checkpoints").join(name);
        if path.is_symlink() {
            fs::remove_file(&path).expect("a link");
        } else if path.exists() {
            fs::remove_dir_all(&path).expect("a checkpoint");
        }
    }
    place.run(&["resume", "whole"], 0);
    assert_same(&whole, &place.trajectory("whole", 12), "gone on after rollbacks");
}

/// Rollbacks that do not help end the run as a divergence does.
#[test]
fn too_many_rollbacks_end_the_run() {
    let place = Workplace::new();
    place.spec("dense", TOO_FAST);
    let said = train(&place, "run", &rollback("train.max_rollbacks=1"), 3);
    assert!(said.contains("rollbacks before this: 1") && said.contains("max_rollbacks"), "{said}");
    assert_eq!(most(&place, "run", "train/rollbacks"), 1);
}

/// A rule whose steps count on the one before does not leave one out.
#[test]
fn rules_that_need_every_step_refuse_to_leave_one_out() {
    let place = Workplace::new();
    place.spec("dense", "optimizer: {matrices: {galore: {rank: 6}}}");
    let said = train(&place, "run", &["--set", "train.on_divergence=skip_step"], 2);
    assert!(said.contains("train.on_divergence") && said.contains("galore"), "{said}");
}

/// A rate beyond the largest f32 is a divergence whichever rule meets it first, in a factorisation
/// or in the loss after it.
#[test]
fn a_rate_beyond_all_numbers_is_a_divergence_for_every_momentum() {
    let momenta = [
        "heavy_ball",
        "adam",
        "matrix_adam",
        "spectral",
        "whitened_spectral",
        "input_whitened_spectral",
    ];
    for (momentum, integrator) in momenta
        .map(|momentum| (momentum, "tangent"))
        .into_iter()
        .chain([("spectral", "coefficient_cycle"), ("spectral", "augmented_bug")])
    {
        let place = Workplace::new();
        let rule = format!(
            "momentum: {momentum}, integrator: {integrator}, learning_rate: 1e39, weight_decay: 0"
        );
        place.spec(LOW_RANK, &format!("optimizer: {{low_rank: {{dlra: {{{rule}}}}}}}"));
        let said = train(&place, "run", &[], 3);
        assert!(said.contains("not finite") || said.contains("is inf"), "{rule}: {said}");
    }
}
