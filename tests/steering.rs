//! Changing one's mind about a run: other settings, more steps, a fresh start over it, a time to
//! stop at; nothing of a user is lost by any of it.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use support::{Workplace, assert_same};

const LOW_RANK: &str = "{low_rank: {rank: 6}}";
const CONSTANT: &str = "schedule={constant: {warmup_steps: 2}}";
const DECAY: &str =
    "schedule={warmup_stable_decay: {warmup_steps: 2, decay_steps: 4, final_ratio: 0.1}}";

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn train(place: &Workplace, run: &str, settings: &[&str], code: i32) -> String {
    let mut arguments = vec!["train", "spec.yaml", "--run-dir", run];
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    stderr(&place.run(&arguments, code))
}

/// All files below a folder.
fn contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = path.display().to_string();
        match path.is_dir() && !path.is_symlink() {
            true => found.extend(contents(&path)),
            false => drop(found.insert(name, fs::read(&path).unwrap_or_default())),
        }
    }
    found
}

/// A finished run's files, less those that a refused command may touch.
fn kept(place: &Workplace, run: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = contents(&place.path(run));
    found.retain(|name, _| !name.ends_with("lrpt.lock") && !name.ends_with("log.txt"));
    found
}

#[test]
fn what_decides_no_weight_may_change_and_the_rest_is_refused_with_the_other_way() {
    let place = Workplace::new();
    place.spec(LOW_RANK, "checkpoint: {every: 5}");
    train(&place, "whole", &[], 0);
    place.run(&["train", "spec.yaml", "--run-dir", "run", "--stop-after", "5"], 0);
    for (setting, said) in [
        ("train.batch_size=8", "train.batch_size: 4 -> 8"),
        ("seed=6", "seed: 5 -> 6"),
        ("train.max_steps=20", "train.max_steps: 12 -> 20"),
        ("rank={tolerance: {tau: 0.1, min_rank: 2, grow_every: 2, settle: 1}}", "rank"),
    ] {
        let error = stderr(&place.run(&["resume", "run", "--set", setting], 2));
        assert!(error.contains(said) && error.contains("`init: {run: run}`"), "{error}");
    }
    fs::rename(place.path("text.txt"), place.path("moved.txt")).expect("renamed");
    let moved = "data.source.text.path=moved.txt";
    let set = ["eval.every=3", "train.log_every=2", "sample.tokens=0", "name=other", moved];
    let mut arguments = vec!["resume", "run"];
    set.iter().for_each(|setting| arguments.extend(["--set", setting]));
    let said = stderr(&place.run(&arguments, 0));
    assert!(said.contains("eval.every: 4 -> 3"), "{said}");
    let (whole, run) = (place.trajectory("whole", 12), place.trajectory("run", 12));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        assert!(whole[file] == run[file], "{file}");
    }
    let metrics = String::from_utf8_lossy(&run["metrics"]).into_owned();
    let validated = |step: u64| {
        let start = format!("{{\"step\":{step},");
        metrics.lines().any(|line| line.starts_with(&start) && line.contains("val/loss"))
    };
    assert!(validated(4) && validated(6) && validated(9) && !validated(8), "{metrics}");
    // The run remembers: it goes on so without being told again.
    let plan = fs::read_to_string(place.path("run/plan.yaml")).expect("a plan");
    assert!(plan.contains("name: other") && plan.contains("moved.txt"), "{plan}");
    place.run(&["resume", "run"], 0);

    let mut one_thread = std::process::Command::new(env!("CARGO_BIN_EXE_lrpt"));
    one_thread.current_dir(place.path(".")).args(["--threads", "1", "resume", "run"]);
    let output = one_thread.env_remove("RUST_LOG").output().expect("it runs");
    assert!(stderr(&output).contains("began with 2 threads"), "{}", stderr(&output));
    fs::write(place.path("other.txt"), "another text ".repeat(500)).expect("writable");
    let other = "data.source.text.path=other.txt";
    let error = stderr(&place.run(&["resume", "run", "--set", other], 2));
    assert!(error.contains("has changed since the run began"), "{error}");
}

/// N steps and M more are N + M steps, byte for byte; what the last step alone was logged for is in
/// the metrics that are kept aside.
#[test]
fn a_constant_run_is_extended_exactly() {
    let place = Workplace::new();
    place.spec(LOW_RANK, "checkpoint: {every: 5}");
    let cadence = [CONSTANT, "eval.every=5", "train.log_every=5"];
    train(&place, "whole", &[&cadence[..], &["train.max_steps=20"]].concat(), 0);
    let expected = place.trajectory("whole", 20);
    train(&place, "run", &cadence, 0);
    let before = fs::read(place.path("run/metrics.jsonl")).expect("metrics");
    let said = stderr(&place.run(&["resume", "run", "--extend", "8", "--stop-after", "13"], 0));
    assert!(said.contains("12 -> 20 steps") && said.contains("checkpoint of step 12"), "{said}");
    place.run(&["resume", "run"], 0);
    assert_same(&expected, &place.trajectory("run", 20), "12 and 8 steps against 20");
    assert_eq!(fs::read(place.path("run/metrics-1.jsonl")).expect("kept"), before);
    // Once more, now from a run that was stopped; and it can be extended again.
    let broken = ["train", "spec.yaml", "--run-dir", "broken", "--stop-after", "7", "--set"];
    let more = ["--set", "eval.every=5", "--set", "train.log_every=5"];
    place.run(&[&broken[..], &[CONSTANT], &more].concat(), 0);
    place.run(&["resume", "broken", "--extend", "3", "--stop-after", "9"], 0);
    place.run(&["resume", "broken", "--extend", "5"], 0);
    assert_same(&expected, &place.trajectory("broken", 20), "7 steps of 12, then 15, then 20");
}

/// The decay moves: back to where it began, with the decayed end of the shorter run kept.
#[test]
fn a_run_is_extended_from_before_its_decay() {
    let place = Workplace::new();
    place.spec(LOW_RANK, "checkpoint: {every: 4, keep_last: 9}");
    train(&place, "whole", &[DECAY, "train.max_steps=20"], 0);
    train(&place, "run", &[DECAY], 0);
    let last = contents(&place.path("run/checkpoints/step-00000012"));
    let metrics = fs::read(place.path("run/metrics.jsonl")).expect("metrics");
    let said = stderr(&place.run(&["resume", "run", "--extend", "8"], 0));
    assert!(said.contains("up to step 8") && said.contains("checkpoints-1"), "{said}");
    assert_same(
        &place.trajectory("whole", 20),
        &place.trajectory("run", 20),
        "a decay that moved against one that was planned there",
    );
    let kept = contents(&place.path("run/checkpoints-1/step-00000012"));
    assert!(!last.is_empty() && kept.values().eq(last.values()), "the old end is kept");
    assert_eq!(fs::read(place.path("run/metrics-1.jsonl")).expect("kept"), metrics);
    assert!(place.path("run/samples-1/step-00000012.txt").exists());
}

#[test]
fn what_cannot_be_extended_is_refused_and_stays() {
    let place = Workplace::new();
    place.spec(LOW_RANK, "checkpoint: {every: 100, keep_last: 1}");
    let rank = "rank={tolerance: {tau: 0.1, min_rank: 2, grow_every: 4, settle: 1}}";
    for (run, settings, said) in [
        ("cosine", &[][..], "its schedule is cosine"),
        ("late", &[DECAY, "eval.every=100"], "`checkpoint.keep_last`"),
        ("ranks", &[CONSTANT, rank], "rank.tolerance.cycle.freeze: 9 -> 15"),
    ] {
        train(&place, run, settings, 0);
        let before = kept(&place, run);
        // What the plan alone refuses is refused before any data is prepared.
        let is_of_the_plan = run != "late";
        if is_of_the_plan {
            fs::remove_dir_all(place.path("data")).expect("prepared data");
        }
        let error = stderr(&place.run(&["resume", run, "--extend", "8"], 2));
        assert!(!is_of_the_plan || !place.path("data").exists(), "{run}: data was prepared");
        assert!(
            error.contains(said) && error.contains(&format!("init: {{run: {run}}}")),
            "{error}"
        );
        assert_eq!(kept(&place, run), before, "{run}");
    }
    place.run(&["resume", "ranks", "--extend", "8", "--set", "rank.tolerance.freeze=9"], 0);
}

#[test]
fn a_run_is_overwritten_only_by_one_that_begins() {
    let place = Workplace::new();
    place.spec(LOW_RANK, "checkpoint: {every: 5}");
    train(&place, "run", &[], 0);
    fs::write(place.path("run/notes.md"), "mine").expect("writable");
    let before = kept(&place, "run");
    // A block larger than the text: refused after the folder was taken.
    let overwrite = ["train", "spec.yaml", "--run-dir", "run", "--overwrite", "--set"];
    let large = ["model.block_size=4900", "--set", "eval.tokens=4900"];
    place.run(&[&overwrite[..], &large].concat(), 1);
    assert_eq!(kept(&place, "run"), before, "a start that failed changed the run");
    place.run(&["resume", "run"], 0);

    place.run(&[&overwrite[..], &["seed=6"]].concat(), 0);
    train(&place, "fresh", &["seed=6"], 0);
    assert_same(&place.trajectory("fresh", 12), &place.trajectory("run", 12), "overwritten");
    let names = |run: &str| -> Vec<String> {
        let entries = fs::read_dir(place.path(run)).expect("a run").flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let mut expected = names("fresh");
    expected.push("notes.md".into());
    expected.sort();
    assert_eq!(names("run"), expected);

    fs::create_dir(place.path("thesis")).expect("a folder");
    fs::write(place.path("thesis/chapter.tex"), "years").expect("writable");
    let arguments = ["train", "spec.yaml", "--run-dir", "thesis", "--overwrite"];
    let error = stderr(&place.run(&arguments, 2));
    assert!(error.contains("chapter.tex") && error.contains("is none"), "{error}");
    assert_eq!(names("thesis"), ["chapter.tex"]);
}

/// The text is found from wherever the run is asked, and so is what was prepared of it.
#[test]
fn a_run_works_from_any_folder() {
    let place = Workplace::new();
    place.spec(LOW_RANK, "");
    place.run(&["train", "spec.yaml", "--run-dir", "run", "--stop-after", "5"], 0);
    let elsewhere = place.path("elsewhere");
    fs::create_dir(&elsewhere).expect("a folder");
    let from_there = |arguments: &[&str]| {
        let output = place.lrpt(arguments).current_dir(&elsewhere).output().expect("it runs");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let run = place.path("run").display().to_string();
    from_there(&["resume", &run]);
    let there = from_there(&["eval", "../run"]);
    assert_eq!(fs::read_dir(&elsewhere).expect("a folder").count(), 0, "nothing was prepared anew");
    // Without what was prepared, and into a folder of one's own.
    fs::rename(place.path("data"), place.path("gone")).expect("renamed");
    assert_eq!(from_there(&["--data-dir", "mine", "eval", &run]), there);
    let mut by_variable = place.lrpt(&["eval", "run"]);
    by_variable.env("LRPT_DATA", "elsewhere/mine");
    let output = by_variable.output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), there, "{}", stderr(&output));
    assert!(!place.path("data").exists());
    place.run(&["train", "spec.yaml", "--run-dir", "whole"], 0);
    assert_same(&place.trajectory("whole", 12), &place.trajectory("run", 12), "from elsewhere");
}

#[test]
fn a_start_that_fails_before_its_first_step_leaves_no_run() {
    let place = Workplace::new();
    place.spec(LOW_RANK, "");
    let large = ["model.block_size=4900", "eval.tokens=4900"];
    train(&place, "deep/new", &large, 1);
    assert!(!place.path("deep").exists());
    fs::create_dir(place.path("mine")).expect("a folder");
    fs::write(place.path("mine/notes.md"), "mine").expect("writable");
    train(&place, "mine", &large, 1);
    assert_eq!(contents(&place.path("mine")).len(), 1, "{:?}", contents(&place.path("mine")));
    let folder = place.path("none.txt").display().to_string();
    train(&place, "absent", &[&format!("data.source.text.path={folder}")], 2);
    assert!(!place.path("absent").exists());
}

/// Starts a training that does not end by itself, and waits until `when`.
fn endless(place: &Workplace, more: &[&str], when: impl Fn() -> bool) -> std::process::Child {
    let endless = ["train", "spec.yaml", "--run-dir", "run", "--set", "train.max_steps=1000000"];
    let seldom = ["--set", "eval.every=1000000", "--set", "checkpoint.every=1000000"];
    let mut command = place.lrpt(&[&endless[..], &seldom, more].concat());
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the binary starts");
    let started = Instant::now();
    while !when() {
        assert!(child.try_wait().expect("a child").is_none(), "it ended");
        assert!(started.elapsed() < Duration::from_secs(60), "it hangs");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

#[cfg(unix)]
fn send(signal: &str, child: &std::process::Child) {
    let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
}

#[cfg(unix)]
#[test]
fn a_signal_is_answered_and_one_during_preparation_leaves_nothing() {
    let place = Workplace::new();
    place.spec(LOW_RANK, "");
    for (signal, code, said) in
        [("-INT", 130, "Ctrl-C: finishing step "), ("-TERM", 143, "SIGTERM: finishing step ")]
    {
        let child = endless(&place, &[], || place.metric_lines("run") > 2);
        send(signal, &child);
        let output = child.wait_with_output().expect("it ends");
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(said) && error.contains("to quit now"), "{error}");
        fs::remove_dir_all(place.path("run")).expect("the run");
    }
    let text = fs::read_to_string(place.path("text.txt")).expect("the text");
    fs::write(place.path("text.txt"), text.repeat(3000)).expect("writable");
    let long = ["--set", "data.tokenizer={bpe: {vocab_size: 300}}"];
    let child = endless(&place, &long, || place.path("run/lrpt.lock").exists());
    send("-INT", &child);
    assert_eq!(child.wait_with_output().expect("it ends").status.code(), Some(130));
    assert!(!place.path("run").exists(), "{:?}", contents(&place.path("run")).keys());
}

/// The first signal waits for the step, here one of minutes; the second does not.
#[cfg(unix)]
#[test]
fn a_second_signal_quits_at_once() {
    let place = Workplace::new();
    place.spec(LOW_RANK, "");
    let long = ["--set", "train.gradient_accumulation_steps=65536"];
    let mut child = endless(&place, &long, || {
        let log = fs::read_to_string(place.path("run/log.txt")).unwrap_or_default();
        log.contains("1000000 steps of")
    });
    let mut error = BufReader::new(child.stderr.take().expect("a pipe"));
    send("-INT", &child);
    let mut answer = String::new();
    while !answer.contains("press again to quit now") {
        answer.clear();
        assert!(error.read_line(&mut answer).expect("readable") > 0, "no answer");
    }
    assert!(child.try_wait().expect("a child").is_none(), "it finishes its step");
    let asked = Instant::now();
    send("-INT", &child);
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(place.metric_lines("run"), 0, "no step was finished");
}

#[test]
fn a_run_stops_within_its_time_with_a_checkpoint() {
    let place = Workplace::new();
    place.spec(LOW_RANK, "");
    let started = Instant::now();
    let child = endless(&place, &["--stop-within", "3s"], || true);
    let output = child.wait_with_output().expect("it ends");
    let took = started.elapsed();
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{error}");
    assert!(error.contains("continue with `lrpt resume run`"), "{error}");
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(20), "{took:?}");
    let saved = lrpt::checkpoint::Checkpoints::open(&place.path("run")).latest();
    assert_eq!(saved, Some(place.metric_lines("run") as u64), "{error}");
    place.run(&["train", "spec.yaml", "--run-dir", "x", "--stop-within", "soon"], 2);
}
