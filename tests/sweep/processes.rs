//! Sweeps whose runs are trained by several processes each, which the sweep starts.

use super::*;
use std::time::Instant;

/// Ranks grow at steps 3 and 9 and are cut at 6 and 12.
const RANKS_CHANGE: &str = "\
seeds: [1]
variants:
  - {name: dense, set: {model.weights: dense}}
  - {name: spectral, set: {rank: {budget: {final_rank: 5, norm: fisher, every: 6, settle: 3, grow_by: 4, start: 3, freeze: 12, max_rank: 12}}}}
";

/// Everything of the two runs but what depends on the clock and on the number of processes.
fn results(place: &Workplace) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for run in ["dense-seed-1", "spectral-seed-1"] {
        let mut found = place.trajectory(&format!("runs/small/{run}"), 12);
        let metrics = found.remove("metrics").expect("metrics");
        let lines: Vec<String> = text(&metrics)
            .lines()
            .map(|line| {
                let mut line: serde_json::Map<String, Value> =
                    serde_json::from_str(line).expect("JSON");
                line.remove("train/wire_bytes");
                serde_json::to_string(&line).expect("JSON")
            })
            .collect();
        found.insert("lines".to_owned(), lines.join("\n").into_bytes());
        all.extend(found.into_iter().map(|(name, bytes)| (format!("{run}/{name}"), bytes)));
    }
    all
}

/// One thread for each process in both sweeps: two runs of one side by side, or one run of two.
#[test]
fn a_sweep_of_data_parallel_runs_has_the_results_of_one_without() {
    let (alone, shared) = (Workplace::new(), Workplace::new());
    alone.run(&["sweep", &sweep(&alone, RANKS_CHANGE), "--jobs", "2"], 0);
    let path = sweep(&shared, RANKS_CHANGE);
    let refused = shared.run(&["sweep", &path, "--processes", "3"], 2);
    let refused = text(&refused.stderr);
    assert!(
        refused.contains("dense-seed-1: train.gradient_accumulation_steps: is 2, but 3 processes")
            && refused.contains("start at most 2 processes"),
        "{refused}"
    );
    assert!(!shared.path("runs").exists(), "nothing was begun");

    let counts = summary(&shared.run(&["sweep", &path, "--processes", "2"], 0));
    assert_eq!((counts["finished"].as_u64(), counts["failed"].as_u64()), (Some(2), Some(0)));
    support::assert_same(&results(&alone), &results(&shared), "two processes a run");
    let metrics = std::fs::read_to_string(shared.path("runs/small/dense-seed-1/metrics.jsonl"));
    assert!(metrics.expect("metrics").contains("train/wire_bytes"), "there were two");
    let again = summary(&shared.run(&["sweep", &path], 0));
    assert_eq!(again["skipped"].as_u64(), Some(2), "for any number of processes: {again}");
}

/// A rank that dies is the failure of its run; a sweep that is stopped leaves no process behind.
#[cfg(target_os = "linux")]
#[test]
fn a_sweep_names_the_rank_that_died_and_stops_all_ranks() {
    let place = Workplace::new();
    let body =
        "seeds: [1]\nset: {train.max_steps: 100k, eval.every: 100k}\nvariants: [{name: long}]\n";
    let path = sweep(&place, body);
    let run = "runs/small/long-seed-1";
    let begin = |more: &[&str], lines: usize| {
        let arguments = [&["sweep", path.as_str(), "--processes", "2"], more].concat();
        let mut command = place.lrpt(&arguments);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let started = Instant::now();
        while place.metric_lines(run) < lines {
            assert!(started.elapsed() < Duration::from_secs(60), "line {lines} does not come");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.expect("it starts")
    };
    let child = begin(&[], 3);
    support::kill(place.process_of_rank(1).expect("rank 1"), "KILL");
    let output = child.wait_with_output().expect("it ends");
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("long-seed-1: error: rank 1 of 2 has ended the run (signal: 9"),
        "{told}"
    );

    let child = begin(&["--retry-failed"], place.metric_lines(run) + 2);
    support::kill(child.id(), "TERM");
    let output = child.wait_with_output().expect("it ends");
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(143), "{told}");
    assert!(told.contains("--processes 2`"), "{told}");
    assert_eq!(place.process_of_rank(0).or(place.process_of_rank(1)), None);
}
