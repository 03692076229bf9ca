//! Training over processes that meet by TCP, as `torchrun` starts them: no library is needed, so
//! that this runs wherever the other tests do. `tests/parallel.rs` has more, under `mpirun`.

mod support;

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::{Workplace, assert_same};

const LOW_RANK: &str = "{low_rank: {rank: 6}}";
/// Ranks grow at steps 3 and 9 and are cut at 6 and 12.
const RANKS: &str = "rank: {budget: {final_rank: 5, norm: fisher, batches: 3, every: 6, settle: 3, grow_by: 4, start: 3, freeze: 12, max_rank: 12}}\n";
const FOUR: &str = "train.gradient_accumulation_steps=4";
const SHARDED: &str = "train.data_parallel.shard_optimizer=true";

/// A port that was free a moment ago.
fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port().to_string()
}

/// This program as one of `world` processes, with one thread.
fn process(
    place: &Workplace,
    port: &str,
    (rank, world): (usize, usize),
    arguments: &[&str],
) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lrpt"));
    command
        .args(["--threads", "1"])
        .args(arguments)
        .current_dir(place.path(""))
        .env_remove("RUST_LOG")
        .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)])
        .envs([("RANK", rank.to_string()), ("WORLD_SIZE", world.to_string())])
        .envs([("LOCAL_RANK", rank.to_string()), ("LOCAL_WORLD_SIZE", world.to_string())])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn start(place: &Workplace, world: usize, arguments: &[&str]) -> Vec<Child> {
    let port = free_port();
    (0..world)
        .map(|rank| process(place, &port, (rank, world), arguments).spawn().expect("it starts"))
        .collect()
}

/// What the processes came to, which must be within a minute.
fn ended(children: Vec<Child>) -> Vec<Output> {
    let started = Instant::now();
    let wait = |mut child: Child| {
        while child.try_wait().expect("a child").is_none() {
            if started.elapsed() > Duration::from_secs(60) {
                child.kill().expect("kill");
                panic!("a process has not ended");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.wait_with_output().expect("its output")
    };
    children.into_iter().map(wait).collect()
}

fn all_succeed(outputs: &[Output]) {
    for (rank, output) in outputs.iter().enumerate() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "rank {rank}: {stderr}");
        assert!(rank == 0 || output.stdout.is_empty(), "only rank 0 prints, not {rank}");
    }
}

/// The files of a run's checkpoint, and its metrics without the wire.
fn trajectory(place: &Workplace, run: &str) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut found = place.trajectory(run, 12);
    let metrics = String::from_utf8(found.remove("metrics").expect("metrics")).expect("UTF-8");
    for (index, line) in metrics.lines().enumerate() {
        let mut line: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).expect("JSON");
        line.remove("train/wire_bytes");
        found.insert(format!("line {index}"), serde_json::to_vec(&line).expect("JSON"));
    }
    found
}

fn losses(place: &Workplace, run: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(place.path(run).join("metrics.jsonl")).expect("metrics");
    let lines = text.lines().map(serde_json::from_str::<serde_json::Value>);
    lines.filter_map(|line| line.expect("JSON")["train/loss"].as_f64()).collect()
}

#[test]
fn processes_that_meet_by_tcp_give_the_bytes_of_one_sharded_or_not() {
    let place = Workplace::new();
    let spec = place.spec("dense", "");
    place.run(&["train", spec.to_str().expect("UTF-8"), "--run-dir", "source"], 0);
    let adapted = format!("init: {{run: source}}\n{RANKS}");
    for (form, weights, extra) in [
        ("low-rank", LOW_RANK, RANKS),
        ("adapters", "{adapter: {rank: 6, head: 4, targets: [q, down]}}", &adapted),
    ] {
        let spec = place.spec(weights, extra);
        let spec = spec.to_str().expect("UTF-8");
        let train = |run: &str| -> Vec<String> {
            ["train", spec, "--run-dir", run, "--set", FOUR].map(str::to_owned).to_vec()
        };
        let runs = |name: &str| format!("{form}-{name}");
        let port = free_port();
        let arguments = train(&runs("one"));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let one = process(&place, &port, (0, 1), &arguments).output().expect("it starts");
        all_succeed(&[one]);
        let expected = trajectory(&place, &runs("one"));
        for (name, world, more) in [
            ("two", 2, &[][..]),
            ("three", 3, &["--set", SHARDED]),
            ("four", 4, &["--set", SHARDED]),
        ] {
            let arguments = train(&runs(name));
            let arguments: Vec<&str> =
                arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
            all_succeed(&ended(start(&place, world, &arguments)));
            assert_same(&expected, &trajectory(&place, &runs(name)), &runs(name));
        }
    }
}

#[test]
fn without_the_order_of_one_process_losses_differ_by_rounding() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    let free = ["--set", FOUR, "--set", "train.data_parallel.deterministic=false"];
    let train = |run| [&["train", spec, "--run-dir", run][..], &free].concat();
    all_succeed(&ended(start(&place, 1, &train("one"))));
    all_succeed(&ended(start(&place, 3, &train("three"))));
    let (one, three) = (losses(&place, "one"), losses(&place, "three"));
    assert_eq!((one.len(), three.len()), (12, 12));
    for (one, three) in one.iter().zip(&three) {
        assert!((one - three).abs() < 1e-4 * one, "{three} for {one}");
    }
}

#[test]
fn a_killed_process_ends_the_others_and_the_run_goes_on_without_it() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "checkpoint: {every: 1, keep_last: 2}\n");
    let spec = spec.to_str().expect("UTF-8");
    let train = ["train", spec, "--run-dir", "run", "--set", FOUR, "--set", SHARDED];
    let endless = ["--set", "train.max_steps=100k", "--set", "eval.every=100k"];
    let mut children = start(&place, 3, &[&train[..], &endless].concat());
    let started = Instant::now();
    while place.metric_lines("run") < 3 {
        assert!(started.elapsed() < Duration::from_secs(60), "step 3 does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
    children[2].kill().expect("kill");
    let outputs = ended(children);
    let told = String::from_utf8_lossy(&outputs[0].stderr).into_owned();
    assert_ne!(outputs[0].status.code(), Some(0), "{told}");
    assert!(told.contains("rank 2 has ended") || told.contains("rank 1 has ended"), "{told}");
    let goes_on = [&train[..], &endless, &["--resume", "--stop-after", "1"]].concat();
    all_succeed(&ended(start(&place, 2, &goes_on)));
}

/// Without a launcher: `--processes` starts them, and its results are those of one process.
#[test]
fn processes_that_the_program_starts_give_the_bytes_of_one() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, RANKS);
    let spec = spec.to_str().expect("UTF-8");
    let port = free_port();
    let one = process(&place, &port, (0, 1), &["train", spec, "--run-dir", "one"]);
    all_succeed(&ended(vec![{ one }.spawn().expect("it starts")]));
    // Two threads, one for each.
    let two = |more: &[&'static str]| {
        [&["train", spec, "--run-dir", "two", "--processes", "2"], more].concat()
    };
    let begun = place.run(&two(&["--stop-after", "5"]), 0);
    assert!(begun.stdout.is_empty());
    let gone_on = place.run(&["resume", "two", "--num-processes", "2"], 0);
    assert_eq!(String::from_utf8_lossy(&gone_on.stdout).lines().count(), 1);
    assert_same(&trajectory(&place, "one"), &trajectory(&place, "two"), "two processes");
    let refused = |arguments: &[&str], with: &[(&str, &str)]| {
        let mut command = place.lrpt(arguments);
        let output = command.envs(with.iter().copied()).output().expect("it starts");
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let three = refused(&["train", spec, "--run-dir", "no", "--processes", "3"], &[]);
    assert!(three.contains("gradient_accumulation_steps: is 2, but 3 processes"), "{three}");
    let apart = [two(&["--set", "train.data_parallel.backend=mpi"])].concat();
    let apart = refused(&apart, &[]);
    assert!(apart.contains("backend: is mpi, but --processes 2"), "{apart}");
    let slurm = [("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "0")];
    let launched = refused(&two(&[]), &slurm);
    assert!(launched.contains("srun has started this program as one of 4"), "{launched}");
    assert!(!place.path("no").exists(), "nothing was begun");
}

/// The one that died is named last; a signal to the one that started them stops all.
#[cfg(target_os = "linux")]
#[test]
fn processes_that_the_program_starts_end_together() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "checkpoint: {every: 1, keep_last: 2}\n");
    let spec = spec.to_str().expect("UTF-8");
    let endless = ["--set", "train.max_steps=100k", "--set", "eval.every=100k"];
    let train = ["train", spec, "--run-dir", "run", "--processes", "2"];
    let begin = |more: &[&str], lines: usize| {
        let mut command = place.lrpt(&[&train[..], &endless, more].concat());
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let started = Instant::now();
        while place.metric_lines("run") < lines {
            assert!(started.elapsed() < Duration::from_secs(60), "step {lines} does not come");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.expect("it starts")
    };
    let child = begin(&[], 3);
    support::kill(place.process_of_rank(1).expect("rank 1"), "KILL");
    let output = &ended(vec![child])[0];
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let last = told.trim().lines().last().expect("an error");
    assert!(last.contains("rank 1 of 2 has ended the run (signal: 9"), "{told}");

    let child = begin(&["--resume"], place.metric_lines("run") + 2);
    support::kill(child.id(), "TERM");
    let output = &ended(vec![child])[0];
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(143), "{told}");
    let last = told.trim().lines().last().expect("an error");
    assert!(last.contains("continue with `lrpt resume run`"), "{told}");
    assert_eq!(told.matches("and writing a checkpoint").count(), 1, "said once: {told}");
    assert_eq!(place.process_of_rank(0).or(place.process_of_rank(1)), None);
}

#[test]
fn what_is_missing_is_said() {
    let place = Workplace::new();
    let spec = place.spec("dense", "");
    let spec = spec.to_str().expect("UTF-8");
    let mut lonely = process(
        &place,
        &free_port(),
        (1, 2),
        &["train", spec, "--run-dir", "run", "--set", "train.data_parallel.timeout_seconds=1"],
    );
    let output = lonely.output().expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("nobody listens at 127.0.0.1:"), "{stderr}");
    let mut by_tcp = Command::new(env!("CARGO_BIN_EXE_lrpt"));
    by_tcp
        .args(["train", spec, "--run-dir", "run", "--set", "train.data_parallel.backend=tcp"])
        .current_dir(place.path(""))
        .envs([("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "0")]);
    let output = by_tcp.output().expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("set MASTER_ADDR"), "{stderr}");
}
