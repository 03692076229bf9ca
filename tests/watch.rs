//! Looking at runs: `lrpt runs`, `lrpt data list`, and `lrpt watch` without a terminal.

mod support;

use serde_json::Value;
use std::process::Output;
use support::Workplace;

const LOW_RANK: &str = "{low_rank: {rank: 6}}";

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn json(output: &Output) -> Vec<Value> {
    serde_json::from_str(stdout(output).trim()).expect("one JSON array on stdout")
}

/// A place with a finished run, one stopped after step 5, and the folder of a sweep with a run of a
/// future version in it.
fn place_with_runs() -> Workplace {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec], 0);
    place.run(&["train", spec, "--run-dir", "runs/stopped", "--stop-after", "5"], 0);
    std::fs::create_dir_all(place.path("runs/sweep/odd\u{1b}[2J")).expect("a folder");
    std::fs::write(place.path("runs/sweep/odd\u{1b}[2J/plan.yaml"), "of: {another: version}\n")
        .expect("a plan");
    place
}

#[test]
fn runs_are_listed_with_their_state() {
    let place = place_with_runs();
    let runs = json(&place.run(&["runs", "--json"], 0));
    let find = |name: &str| {
        let found = runs.iter().find(|run| run["name"].as_str().is_some_and(|n| n == name));
        found.unwrap_or_else(|| panic!("{name} in {runs:?}"))
    };
    assert_eq!(runs.len(), 3);
    let finished = find("small");
    assert_eq!((&finished["state"], &finished["step"]), (&"finished".into(), &12.into()));
    assert_eq!((&finished["max_steps"], &finished["val/step"]), (&12.into(), &12.into()));
    assert!(finished["val/loss"].as_f64().is_some_and(|loss| loss > 0.0 && loss < 4.0));
    assert!(finished["bytes"].as_u64().is_some_and(|bytes| bytes > 20_000));
    let stopped = find("stopped");
    assert_eq!((&stopped["state"], &stopped["step"]), (&"interrupted".into(), &5.into()));
    assert_eq!(stopped["val/step"], 4);
    let odd = find("odd\u{1b}[2J");
    assert_eq!(odd["state"], "failed");
    assert!(odd["error"].as_str().is_some_and(|error| error.contains("plan.yaml")), "{odd}");

    let table = stdout(&place.run(&["runs"], 0));
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("NAME") && lines[0].ends_with("SIZE"), "{table}");
    assert!(!table.contains('\u{1b}') && table.contains("sweep/odd\\u{1b}[2J"), "{table}");
    let line = |name: &str| lines.iter().find(|line| line.starts_with(name)).expect("a line");
    assert!(line("small").contains("finished") && line("small").contains("12/12"), "{table}");

    let _lock = lrpt::checkpoint::RunLock::acquire(&place.path("runs/stopped")).expect("free");
    let one = json(&place.run(&["runs", "runs/stopped", "--json"], 0));
    assert_eq!((one.len(), &one[0]["state"]), (1, &"running".into()));
    let error = place.run(&["runs", "nowhere"], 2);
    assert!(String::from_utf8_lossy(&error.stderr).contains("nowhere: there is no such folder"));
    // A newcomer's first look.
    let empty = Workplace::new();
    assert!(json(&empty.run(&["runs", "--json"], 0)).is_empty());
    let said = empty.run(&["runs"], 0);
    assert!(said.stdout.is_empty());
    assert!(String::from_utf8_lossy(&said.stderr).contains("no run in runs; `lrpt train SPEC`"));
}

#[test]
fn prepared_data_is_listed() {
    let place = Workplace::new();
    assert!(json(&place.run(&["data", "list", "--json"], 0)).is_empty());
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["data", "prepare", spec], 0);
    place.run(&["data", "prepare", spec, "--set", "data.tokenizer=bytes"], 0);
    std::fs::create_dir_all(place.path("data/notes")).expect("a folder");
    let found = json(&place.run(&["data", "list", "--json"], 0));
    assert_eq!(found.len(), 2);
    let tokens = |of: &Value| of["train_tokens"].as_u64().zip(of["val_tokens"].as_u64());
    let (train, val) = tokens(&found[0]).expect("tokens");
    let length = std::fs::metadata(place.path("text.txt")).expect("the text").len();
    assert_eq!(train + val, length, "a token a byte");
    assert!(found[0]["tokenizer"].as_str().is_some_and(|name| name.contains("byte")));
    let table = stdout(&place.run(&["data", "list"], 0));
    assert_eq!(table.lines().count(), 3, "{table}");
    let id = found[0]["id"].as_str().expect("an id");
    assert!(table.contains(id) && place.path(&format!("data/{id}/dataset.json")).exists());
}

#[test]
fn without_a_terminal_each_validation_is_a_line() {
    let place = place_with_runs();
    let text = stdout(&place.run(&["watch", "runs/small", "runs/stopped"], 0));
    let of = |name: &str| -> Vec<&str> {
        text.lines().filter(|line| line.starts_with(&format!("{name} "))).collect()
    };
    let finished = of("small");
    assert_eq!(finished.len(), 4, "{text}");
    for (line, step) in finished.iter().zip(["step  4/12", "step  8/12", "step 12/12"]) {
        assert!(
            line.contains(step) && line.contains("val ") && line.contains("tokens/s"),
            "{line}"
        );
    }
    assert!(finished[3].ends_with("finished at step 12/12"), "{text}");
    assert_eq!(of("stopped").len(), 2, "{text}");
    assert!(of("stopped")[1].ends_with("interrupted at step 5/12"), "{text}");

    let odd = stdout(&place.run(&["watch", "runs/sweep/odd\u{1b}[2J"], 0));
    assert!(odd.starts_with("odd\\u{1b}[2J") && !odd.contains('\u{1b}'), "{odd}");
    let error = place.run(&["watch", "data"], 2);
    assert!(String::from_utf8_lossy(&error.stderr).contains("data holds no run to watch"));
}

/// Started before the run's first step, it ends with the run and has said everything once.
#[test]
fn a_running_run_is_followed_to_its_end() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let mut training = place
        .lrpt(&["train", spec.to_str().expect("UTF-8"), "--set", "train.max_steps=200"])
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("the binary starts");
    let started = std::time::Instant::now();
    while !lrpt::checkpoint::RunLock::is_held(&place.path("runs/small")) {
        assert!(started.elapsed().as_secs() < 60, "the training does not begin");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let text = stdout(&place.run(&["watch", "runs/small"], 0));
    assert!(training.wait().expect("a child").success());
    let steps: Vec<&str> = text.lines().filter(|line| line.contains(" val ")).collect();
    assert_eq!(steps.len(), 50, "{text}");
    assert!(steps[49].contains("step 200/200"), "{text}");
    assert!(text.trim_end().ends_with("finished at step 200/200"), "{text}");
}
