//! Nothing is lost and nothing is silently wrong: identity, the lock, divergence, damage, links.
//! The numbers are those of the cases of issue 13.

mod folders;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use support::{Workplace, assert_same};

const LOW_RANK: &str = "{low_rank: {rank: 6}}";
const EVERY_STEP: &str = "checkpoint: {every: 1, keep_last: 2}";

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn train(place: &Workplace, more: &[&str], code: i32) -> String {
    stderr(&place.run(&[&["train", "spec.yaml", "--run-dir", "run"], more].concat(), code))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

/// Cases 2 and 3: a checkpoint of another run is refused, and the message has what differs.
#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    train(&place, &["--stop-after", "2"], 0);
    let other = ["train", "spec.yaml", "--run-dir", "other", "--stop-after", "3"];
    place.run(&[&other[..], &["--set", "seed=6", "--set", "model.n_embd=16"]].concat(), 0);
    let foreign = place.path("run/checkpoints/step-00000003");
    copy(&place.path("other/checkpoints/step-00000003"), &foreign);
    let error = stderr(&place.run(&["resume", "run"], 2));
    assert!(error.contains("seed: 6 -> 5") && error.contains("model.n_embd: 16 -> 32"), "{error}");
    assert!(foreign.exists(), "it is renamed");
}

/// Case 4: an edited plan is refused, and the key is named.
#[test]
fn an_edited_plan_is_refused() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    train(&place, &["--stop-after", "2"], 0);
    let path = place.path("run/plan.yaml");
    let plan = fs::read_to_string(&path).expect("a plan");
    for (from, to, key) in [
        ("seed: 5", "seed: 6", "seed"),
        ("batch_size: 4", "batch_size: 8", "tokens_per_step"),
        ("n_head: 2", "n_head: 3", "model.n_head"),
        ("dropout: 0.1", "dropout: 2.0", "model.dropout"),
        ("every: 4", "every: 0", "eval.every"),
        ("every: 1\n", "every: 0\n", "checkpoint.every"),
    ] {
        assert!(plan.contains(from), "{from} in\n{plan}");
        fs::write(&path, plan.replace(from, to)).expect("writable");
        let error = stderr(&place.run(&["resume", "run"], 2));
        assert!(error.contains(key), "{key}: {error}");
    }
    fs::write(&path, &plan).expect("writable");
    place.run(&["resume", "run"], 0);
}

/// The run's tokenizer is the one data.json names.
#[test]
fn another_tokenizer_is_refused() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    train(&place, &["--stop-after", "2"], 0);
    let path = place.path("run/tokenizer.json");
    let text = fs::read_to_string(&path).expect("a tokenizer");
    fs::write(&path, text.replacen("\\n", "\\u0001", 1)).expect("writable");
    let error = stderr(&place.run(&["resume", "run"], 2));
    assert!(error.contains("tokenizer.json") && error.contains("data.json"), "{error}");
}

/// Cases 6, 29 and 33: whatever stops being finite, the run exits with 3, says so in log.txt and
/// metrics, and saves nothing of it; then the corrected spec begins in the same folder (case 31).
#[test]
fn divergence_saves_nothing_and_a_corrected_spec_begins() {
    let place = Workplace::new();
    place.spec("dense", "optimizer: {dense: {adamw: {learning_rate: 1e10, weight_decay: 0}}}");
    let flags = ["--set", "train.max_steps=1", "--set", "schedule={constant: {warmup_steps: 0}}"];
    let error = train(&place, &[&flags[..], &["--set", "sample.tokens=0"]].concat(), 3);
    assert!(error.contains("no checkpoint yet") && !error.contains("untouched"), "{error}");
    let log = fs::read_to_string(place.path("run/log.txt")).expect("a log");
    assert!(log.contains("ERROR") && log.contains("diverged at step 1"), "{log}");
    let metrics = fs::read_to_string(place.path("run/metrics.jsonl")).expect("metrics");
    assert!(metrics.contains("\"diverged\":true"), "{metrics}");
    let nothing_to_compare = stderr(&place.run(&["compare", "run"], 2));
    assert!(nothing_to_compare.contains("diverged at step 1"), "{nothing_to_compare}");
    place.spec("dense", "");
    train(&place, &[], 0);
    assert!(place.path("run/metrics-1.jsonl").exists(), "the old metrics are kept");
}

/// Case 29: numbers that are not finite inside a low-rank step are divergence.
#[test]
fn a_low_rank_step_that_breaks_down_is_divergence() {
    let place = Workplace::new();
    place.spec(
        LOW_RANK,
        "optimizer: {low_rank: {dlra: {momentum: adam, learning_rate: 1e30, weight_decay: 0}}}",
    );
    train(&place, &["--set", "schedule={constant: {warmup_steps: 0}}"], 3);
}

/// Case 7: the last checkpoint that is left is finite, and the message names it.
#[test]
fn the_last_finite_checkpoint_is_kept() {
    let place = Workplace::new();
    place.spec(
        "{factored: {rank: 6}}",
        "optimizer: {low_rank: {loro: {learning_rate: 1e30}}}\n\
         checkpoint: {every: 1, keep_last: 1}",
    );
    let error = train(
        &place,
        &["--set", "train.max_steps=200", "--set", "schedule={constant: {warmup_steps: 0}}"],
        3,
    );
    let left: Vec<u64> = lrpt::checkpoint::Checkpoints::open(&place.path("run"))
        .list()
        .expect("checkpoints")
        .iter()
        .map(|entry| entry.step)
        .collect();
    for step in &left {
        let path = place.path(&format!("run/checkpoints/step-{step:08}"));
        for (name, tensor) in lrpt::checkpoint::load(&path).expect("a checkpoint").model {
            let numbers = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32");
            assert!(numbers.iter().all(|x| x.is_finite()), "{name} of step {step}");
        }
    }
    let newest = left.last().map_or("no checkpoint yet".into(), |step| format!("step-{step:08}"));
    assert!(error.contains(&newest), "{newest}: {error}");
}

/// Case 10: a run whose checkpoints are gone is refused; --restart begins anew and loses nothing.
#[test]
fn lost_checkpoints_are_refused_and_restart_keeps_the_metrics() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    train(&place, &[], 0);
    let whole = place.trajectory("run", 12);
    let old = fs::read(place.path("run/metrics.jsonl")).expect("metrics");
    fs::remove_dir_all(place.path("run/checkpoints")).expect("checkpoints");
    let error = stderr(&place.run(&["resume", "run"], 2));
    assert!(error.contains("--restart"), "{error}");
    train(&place, &[], 2);
    assert_eq!(fs::read(place.path("run/metrics.jsonl")).expect("metrics"), old);
    place.run(&["resume", "run", "--restart"], 0);
    assert_eq!(fs::read(place.path("run/metrics-1.jsonl")).expect("old metrics"), old);
    assert_same(&whole, &place.trajectory("run", 12), "begun anew");
}

/// Cases 2 and 19: a run whose folder goes away stops, and leaves its successor alone.
#[test]
fn a_run_notices_that_its_folder_is_gone() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    let child = place
        .lrpt(&["train", "spec.yaml", "--run-dir", "run", "--set", "train.max_steps=100000"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let started = Instant::now();
    while !place.path("run/checkpoints/latest").exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "no checkpoint within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    fs::rename(place.path("run"), place.path("moved")).expect("a rename");
    let output = child.wait_with_output().expect("the child ends");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("deleted or renamed"), "{}", stderr(&output));
    assert!(!place.path("run/plan.yaml").exists());
}

/// Case 1: of two starts at once, one is refused.
#[test]
fn of_two_starts_at_once_one_trains() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    let start = |seed: &str| {
        place
            .lrpt(&["train", "spec.yaml", "--run-dir", "run", "--set", seed])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts")
    };
    let mut children = [start("seed=111"), start("seed=222")];
    let mut codes: Vec<_> =
        children.iter_mut().map(|child| child.wait().expect("it ends").code()).collect();
    codes.sort();
    assert!(codes == [Some(0), Some(1)] || codes == [Some(0), Some(2)], "{codes:?}");
}

/// Case 1 where preparation takes a moment, in which neither has written anything: one trains, and
/// what it leaves is of its own seed.
#[test]
fn of_two_starts_during_preparation_one_trains() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    let text = fs::read_to_string(place.path("text.txt")).expect("the text");
    fs::write(place.path("text.txt"), text.repeat(60)).expect("writable");
    let start = |seed: u64| {
        let mut command = place.lrpt(&["train", "spec.yaml", "--run-dir", "run"]);
        command.args(["--set", &format!("seed={seed}")]);
        command.args(["--set", "data.tokenizer={bpe: {vocab_size: 300}}"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts")
    };
    let mut children = [111, 222].map(|seed| (seed, start(seed)));
    let codes = children.each_mut().map(|(_, child)| child.wait().expect("it ends").code());
    let winners: Vec<u64> = children
        .iter()
        .zip(codes)
        .filter_map(|((seed, _), code)| (code == Some(0)).then_some(*seed))
        .collect();
    let [seed] = winners[..] else { panic!("one trains and one is refused: {codes:?}") };
    let plan = fs::read_to_string(place.path("run/plan.yaml")).expect("a plan");
    assert!(plan.contains(&format!("seed: {seed}\n")), "{plan}");
    let state = fs::read_to_string(place.path("run/checkpoints/step-00000012/state.json"));
    let state: serde_json::Value = serde_json::from_str(&state.expect("a state")).expect("JSON");
    assert_eq!(state["state"]["identity"]["settings"]["seed"].as_u64(), Some(seed));
}
