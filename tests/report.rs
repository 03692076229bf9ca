//! Where people look: the page of one run, comparisons of runs that are not finished, metrics.csv
//! and log.txt, through the binary.

mod support;

use std::fs;
use support::Workplace;

const LOW_RANK: &str = "{low_rank: {rank: 4}}";

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The page says what has become of the run, before its end and after it.
#[test]
fn the_page_of_a_run_that_goes_on() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    let page = || {
        let written = text(&place.run(&["report", "run"], 0).stdout);
        assert_eq!(written, "run/report.html\n");
        fs::read_to_string(place.path("run/report.html")).expect("the page")
    };
    place.run(&["train", spec, "--run-dir", "run", "--stop-after", "3"], 0);
    let early = page();
    assert!(early.contains("Interrupted, step 3 of 12. Never validated."), "{early}");
    place.run(&["train", spec, "--run-dir", "run", "--resume", "--stop-after", "6"], 0);
    let half = page();
    assert!(half.contains("Interrupted, step 6 of 12. Validation loss"), "{half}");
    place.run(&["resume", "run"], 0);
    let whole = page();
    assert!(whole.contains("Finished, 12 steps. Validation loss"), "{whole}");
    for part in [
        "<title>Loss</title>",
        "<title>Learning rate</title>",
        "q: effective rank",
        "q: singular values",
        "Where a training step's time went",
        "Sample at step 12",
        "Earlier samples",
        "max_steps: 12",
        "2 threads a run",
    ] {
        assert!(whole.contains(part), "{part} in {whole}");
    }
    assert!(!whole.contains("NaN"), "a page without gaps");
    place.run(&["report", "run", "--output", "elsewhere.html"], 0);
    assert_eq!(fs::read_to_string(place.path("elsewhere.html")).expect("a page"), whole);
    let refused = text(&place.run(&["report", "."], 2).stderr);
    assert!(refused.contains("holds no run"), "{refused}");
}

/// Runs that are not finished stand beside one that is, with their state.
#[test]
fn unfinished_runs_are_compared_and_said_to_be_unfinished() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "whole"], 0);
    let rate = "optimizer.low_rank.dlra.learning_rate=0.003";
    let other = ["train", spec, "--set", rate, "--run-dir", "part", "--stop-after", "9"];
    place.run(&[&other[..], &["--set", "name=part"]].concat(), 0);
    let table = text(&place.run(&["compare", "whole", "part"], 0).stdout);
    assert!(table.contains("interrupted, step 9 of 12"), "{table}");
    assert!(table.contains("part: not finished (interrupted, step 9 of 12)"), "{table}");
    let json = text(&place.run(&["compare", "whole", "part", "--json"], 0).stdout);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let states: Vec<_> = json["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .map(|group| (group["method"].as_str(), group["unfinished"].as_str()))
        .collect();
    assert!(states.contains(&(Some("part"), Some("interrupted, step 9 of 12"))), "{states:?}");
    assert!(states.contains(&(Some("small"), None)), "{states:?}");
}

/// The table is the lines, the log is whole, and event files come where they are asked for; none
/// of it depends on what stderr shows.
#[test]
fn a_quiet_run_writes_everything_down() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    let train = ["train", spec, "--run-dir", "run", "--set", "train.tensorboard=true"];
    let quiet = place.lrpt(&train).env("RUST_LOG", "off").output().expect("the binary starts");
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{}", text(&quiet.stderr));
    let log = fs::read_to_string(place.path("run/log.txt")).expect("log.txt");
    let first = log.lines().next().expect("a line");
    assert!(first.contains("validation text"), "what was said before there was a folder: {first}");
    assert!(log.contains("step  1/12") && log.contains("completed at step 12"), "{log}");

    let rows = support::table(&place.path("run/metrics.csv"));
    assert_eq!(rows.len(), 13, "a header and a row for each step: {rows:?}");
    assert!(rows[0].starts_with("step,tokens,flops,params,train/loss"), "{}", rows[0]);
    let events = fs::read_dir(place.path("run/tensorboard")).expect("event files").count();
    assert_eq!(events, 1);
    place.run(&["train", spec, "--run-dir", "plain"], 0);
    assert!(!place.path("plain/tensorboard").exists(), "nobody asked for it");
}
