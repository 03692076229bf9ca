//! Training over processes under the real `mpirun`: the same bytes for any number of them, whatever
//! happens to one.
//!
//! ```text
//! cargo test --release --features mpi --test parallel
//! ```
#![cfg(feature = "mpi")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::{Workplace, assert_same};

const LOW_RANK: &str = "{low_rank: {rank: 6}}";
/// Ranks grow at steps 3 and 9 and are cut at 6 and 12.
const RANKS: &str = "rank: {budget: {final_rank: 5, norm: fisher, batches: 3, every: 6, settle: 3, grow_by: 4, start: 3, freeze: 12, max_rank: 12}}\n";
const OFTEN: &str = "checkpoint: {every: 1, keep_last: 3}\n";
const FOUR: &str = "train.gradient_accumulation_steps=4";
const SHARDED: &str = "train.data_parallel.shard_optimizer=true";

/// `mpirun` of this program with so many processes of one thread each.
fn mpirun(place: &Workplace, processes: usize, arguments: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command
        .args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"])
        .args(["-np", &processes.to_string(), env!("CARGO_BIN_EXE_lrpt"), "--threads", "1"])
        .args(arguments)
        .current_dir(place.path(""))
        .env_remove("RUST_LOG");
    command
}

fn ended(mut command: Command, code: i32) -> Output {
    let output = command.output().expect("mpirun starts; Debian has it in openmpi-bin");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{stderr}");
    output
}

/// One process with one thread, without a launcher.
fn alone(place: &Workplace, arguments: &[&str], code: i32) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lrpt"));
    command.args(["--threads", "1"]).args(arguments).current_dir(place.path(""));
    ended(command, code)
}

/// The files of a run's last checkpoint and its metrics, less what tells the time or the wire.
fn trajectory(place: &Workplace, run: &str, step: u64) -> BTreeMap<String, Vec<u8>> {
    let mut found = place.trajectory(run, step);
    let metrics = found.get_mut("metrics").expect("metrics");
    let lines = String::from_utf8(metrics.clone()).expect("UTF-8");
    let lines = lines.lines().map(|line| {
        let mut line: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).expect("JSON");
        line.remove("train/wire_bytes");
        serde_json::to_string(&line).expect("JSON")
    });
    *metrics = lines.collect::<Vec<_>>().join("\n").into_bytes();
    found
}

/// The bytes on the wire of each logged step.
fn wire_bytes(place: &Workplace, run: &str) -> Vec<u64> {
    let text = std::fs::read_to_string(place.path(run).join("metrics.jsonl")).expect("metrics");
    let lines = text.lines().map(serde_json::from_str::<serde_json::Value>);
    lines.filter_map(|line| line.expect("JSON")["train/wire_bytes"].as_u64()).collect()
}

/// What makes a method's rare events happen within 8 steps, and its ranks change where they can.
fn overrides(name: &str, text: &str) -> Vec<&'static str> {
    let mut all = vec![
        "data.source.text.path=text.txt",
        "model.n_layer=2",
        "model.n_head=2",
        "model.n_embd=32",
        "model.block_size=16",
        "model.dropout=0.1",
        "model.bias=true",
        "device=cpu",
        "train={max_steps: 8, batch_size: 2, gradient_accumulation_steps: 4, grad_clip: 0.5, log_every: 1}",
        "schedule={cosine: {warmup_steps: 2, final_ratio: 0.1}}",
        "eval={every: 4, tokens: 256}",
        "sample={tokens: 5}",
    ];
    all.extend(match name {
        "galore" => vec!["optimizer.matrices.galore={rank: 8, refresh_every: 3}"],
        "loro" => vec![
            "model.weights.factored.rank=6",
            "optimizer.low_rank.loro.exact_every=4",
            "optimizer.low_rank.loro.restart_warmup_steps=1",
        ],
        _ if text.contains("factored:") => vec!["model.weights.factored.rank=6"],
        "dlra-tolerance" => vec![
            "model.weights={low_rank: {rank: 6}}",
            "rank={tolerance: {tau: 0.4, min_rank: 2, max_rank: 12, grow_every: 4, settle: 2, grow_by: 4, start: 2, freeze: 8}}",
        ],
        _ if text.contains("dlra:") => vec![
            "model.weights={low_rank: {rank: 6}}",
            "rank={budget: {final_rank: 5, norm: fisher, every: 4, settle: 2, grow_by: 4, start: 2, freeze: 8, max_rank: 12}}",
        ],
        _ => vec![],
    });
    all
}

#[test]
fn every_method_gives_the_same_bytes_with_1_2_and_4_processes() {
    let place = Workplace::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/methods");
    let mut specs: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("configs/methods")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    specs.sort();
    assert!(specs.len() >= 16);
    for spec in specs {
        let name = spec.file_stem().expect("a name").to_string_lossy().into_owned();
        let overrides = overrides(&name, &std::fs::read_to_string(&spec).expect("a spec"));
        let spec = spec.to_string_lossy().into_owned();
        let arguments = |run: &str| {
            let mut all = vec!["train".to_owned(), spec.clone(), "--run-dir".into(), run.into()];
            for setting in &overrides {
                all.extend(["--set".to_owned(), (*setting).to_owned()]);
            }
            all
        };
        let texts = |run: &str| arguments(run);
        let (one, more) = (format!("{name}-1"), [(2usize, false), (4, false), (3, true)]);
        let own = texts(&one);
        alone(&place, &own.iter().map(String::as_str).collect::<Vec<_>>(), 0);
        let expected = trajectory(&place, &one, 8);
        for (processes, is_sharded) in more {
            let run = format!("{name}-{processes}");
            let mut own = texts(&run);
            own.extend([
                "--set".to_owned(),
                format!("train.data_parallel.shard_optimizer={is_sharded}"),
            ]);
            let own: Vec<&str> = own.iter().map(String::as_str).collect();
            let output = ended(mpirun(&place, processes, &own), 0);
            let stdout = String::from_utf8_lossy(&output.stdout);
            assert_eq!(stdout.lines().count(), 1, "{name}: only rank 0 prints: {stdout}");
            assert_same(&expected, &trajectory(&place, &run, 8), &format!("{run} processes"));
            assert_eq!(wire_bytes(&place, &run).len(), 8);
        }
        assert!(wire_bytes(&place, &one).is_empty(), "one process has no wire");
    }
}

/// Where only some tokens are trained on, their number differs from process to process and counts
/// over all.
#[test]
fn answers_alone_are_trained_on_with_the_same_bytes() {
    let place = Workplace::new();
    place.spec(LOW_RANK, OFTEN);
    let words = ["rank", "of", "a", "matrix", "grows"];
    let lines = (0..60usize).map(|i| {
        let completion = vec![words[i * i % 5]; 1 + i % 7].join(" ");
        format!("{{\"prompt\": \"{}: \", \"completion\": \"{completion}\"}}\n", words[i % 5])
    });
    std::fs::write(place.path("chat.jsonl"), lines.collect::<String>()).expect("the lines");
    let source = "data={source: {instructions: {train: [chat.jsonl]}}, tokenizer: chars}";
    for packing in ["train.packing=false", "train.packing=true"] {
        let set = ["--set", source, "--set", FOUR, "--set", "model.block_size=48"];
        let set = [&set[..], &["--set", packing]].concat();
        let names = [1, 2, 4].map(|processes| format!("{processes}-{packing}"));
        let train = |run| [&["train", "spec.yaml", "--run-dir", run][..], &set].concat();
        alone(&place, &train(&names[0]), 0);
        let checkpoints = lrpt::checkpoint::Checkpoints::open(&place.path(&names[0]));
        let last = checkpoints.latest().expect("steps");
        let expected = trajectory(&place, &names[0], last);
        for (processes, run) in [2, 4].into_iter().zip(&names[1..]) {
            ended(mpirun(&place, processes, &train(run)), 0);
            assert_same(&expected, &trajectory(&place, run, last), run);
        }
    }
}

const WHITENED_MUON: &str = "optimizer: {matrices: {muon: {input_damping: 0.2}}}\n";

/// Second moments of inputs pass from process to process as sums of gradients do, of matrices that
/// stay dense and of those that are cut at steps 5 and 8.
#[test]
fn momenta_whitened_by_inputs_give_the_same_bytes() {
    let place = Workplace::new();
    let uncut = "optimizer: {low_rank: {dlra: {momentum: input_whitened_spectral}}}\n\
                 rank: {budget: {final_rank: 8, every: 3, settle: 2, start: 3, freeze: 9}}\n";
    for (name, weights, extra) in [
        ("muon", "dense", WHITENED_MUON),
        ("uncut", "{low_rank: {rank: full, start: dense}}", uncut),
    ] {
        let spec = place.spec(weights, extra);
        let spec = spec.to_str().expect("UTF-8");
        let one = format!("{name}-1");
        alone(&place, &["train", spec, "--run-dir", &one, "--set", FOUR], 0);
        let expected = trajectory(&place, &one, 12);
        for (processes, is_sharded) in [(2, false), (3, true)] {
            let run = format!("{name}-{processes}");
            let sharded = format!("train.data_parallel.shard_optimizer={is_sharded}");
            let arguments = ["train", spec, "--run-dir", &run, "--set", FOUR, "--set", &sharded];
            ended(mpirun(&place, processes, &arguments), 0);
            assert_same(&expected, &trajectory(&place, &run, 12), &run);
        }
    }
}

/// The account's bytes are those sent, dense and low-rank, also where a step evaluates twice.
#[test]
fn the_account_has_the_bytes_that_are_sent() {
    let place = Workplace::new();
    let bug = "optimizer: {low_rank: {dlra: {integrator: augmented_bug, learning_rate: 1e-2}}}\n";
    let cases = [
        ("dense", "dense", ""),
        ("whitened", "dense", WHITENED_MUON),
        ("low-rank", LOW_RANK, ""),
        ("bug", LOW_RANK, bug),
    ];
    let cases = cases.iter().flat_map(|case| [(case, false), (case, true)]);
    for (&(name, weights, extra), is_sharded) in cases {
        let spec = place.spec(weights, extra);
        let spec = spec.to_str().expect("UTF-8");
        let sharded = format!("train.data_parallel.shard_optimizer={is_sharded}");
        let settings = ["--set", FOUR, "--set", "train.max_steps=2", "--set", &sharded];
        let (_, plan) = lrpt::spec::load_plan(
            Path::new(spec),
            &[FOUR.to_owned(), "train.max_steps=2".to_owned(), sharded.clone()],
        )
        .expect("a spec");
        for processes in [2, 3, 4] {
            let run = format!("{name}-{processes}-{is_sharded}");
            let arguments = [&["train", spec, "--run-dir", &run][..], &settings].concat();
            ended(mpirun(&place, processes, &arguments), 0);
            let data = std::fs::read_to_string(place.path(&run).join("data.json"));
            let data: serde_json::Value =
                serde_json::from_str(&data.expect("data.json")).expect("JSON");
            let vocabulary = data["vocab_size"].as_u64().expect("a size");
            let ledger = lrpt::account::Ledger::new(&plan, vocabulary as usize, 1);
            let expected = ledger.wire_bytes_per_step(processes as u64);
            assert_eq!(wire_bytes(&place, &run), [expected; 2], "{run}");
        }
    }
}

/// The processes of an `mpirun`, its own process left out.
fn ranks_of(mpirun: &Child) -> Vec<u32> {
    let children = format!("/proc/{0}/task/{0}/children", mpirun.id());
    let text = std::fs::read_to_string(children).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(120), "{what} does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for the end of a child, which must come within so many seconds.
fn ends_within(child: &mut Child, seconds: u64) -> Option<i32> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status.code();
        }
        if started.elapsed() > Duration::from_secs(seconds) {
            child.kill().expect("kill");
            panic!("the job has not ended after {seconds} s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(name: &str, process: u32) {
    let status = Command::new("kill").args([name, &process.to_string()]).status();
    assert!(status.expect("kill").success());
}

#[test]
fn a_killed_rank_ends_the_job_and_fewer_ranks_go_on_to_the_same_bytes() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, &format!("{RANKS}{OFTEN}"));
    let spec = spec.to_str().expect("UTF-8");
    alone(&place, &["train", spec, "--run-dir", "whole", "--set", FOUR], 0);
    let expected = trajectory(&place, "whole", 12);

    let arguments = ["train", spec, "--run-dir", "killed", "--set", FOUR];
    let mut job = mpirun(&place, 4, &arguments);
    let mut job = job.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("mpirun");
    wait_until("step 3", || place.metric_lines("killed") >= 3);
    let ranks = ranks_of(&job);
    assert_eq!(ranks.len(), 4);
    signal("-KILL", *ranks.last().expect("a rank"));
    assert_ne!(ends_within(&mut job, 30), Some(0));

    ended(mpirun(&place, 3, &[&arguments[..], &["--resume"]].concat()), 0);
    assert_same(&expected, &trajectory(&place, "killed", 12), "killed, resumed with 3");
}

#[test]
fn a_run_is_resumed_on_any_number_of_processes() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, &format!("{RANKS}{OFTEN}"));
    let spec = spec.to_str().expect("UTF-8");
    alone(&place, &["train", spec, "--run-dir", "whole", "--set", FOUR], 0);
    let part = |stop: &'static str| {
        ["train", spec, "--run-dir", "parts", "--set", FOUR, "--stop-after", stop]
    };
    ended(mpirun(&place, 2, &part("4")), 0);
    ended(mpirun(&place, 4, &[&part("7")[..], &["--resume", "--set", SHARDED]].concat()), 0);
    alone(&place, &[&part("9")[..], &["--resume"]].concat(), 0);
    ended(mpirun(&place, 2, &["resume", "parts", "--set", SHARDED, "--stop-after", "11"]), 0);
    ended(mpirun(&place, 3, &["resume", "parts"]), 0);
    let whole = trajectory(&place, "whole", 12);
    assert_same(&whole, &trajectory(&place, "parts", 12), "2, 4 sharded, 1, 2, then 3 processes");
}

/// As the tasks of a Slurm array do it, by `mpirun` in place of `srun`: each run of a sweep that was
/// laid out before.
#[test]
fn a_sweep_of_data_parallel_runs_has_the_bytes_of_one_without() {
    let (without, with) = (Workplace::new(), Workplace::new());
    for place in [&without, &with] {
        place.spec(LOW_RANK, OFTEN);
        let sweep = format!(
            "name: small\nbase: spec.yaml\nseeds: [1]\nset: {{train.gradient_accumulation_steps: 4}}\n\
             variants:\n  - {{name: dense, set: {{model.weights: dense}}}}\n  \
             - name: spectral\n    set: {{{}}}\n",
            RANKS.trim_end()
        );
        std::fs::write(place.path("sweep.yaml"), sweep).expect("the sweep");
    }
    alone(&without, &["sweep", "sweep.yaml"], 0);
    let lay_out = ["sweep", "sweep.yaml", "--launcher", "slurm", "--processes", "4"];
    alone(&with, &lay_out, 0);
    let run_of = |index: &'static str, processes: usize| {
        let arguments = ["sweep", "runs/small", "--run-index", index, "--processes"];
        let number = processes.to_string();
        ended(mpirun(&with, processes, &[&arguments[..], &[number.as_str()]].concat()), 0);
    };
    run_of("0", 4);
    run_of("1", 2);
    for run in ["runs/small/dense-seed-1", "runs/small/spectral-seed-1"] {
        assert!(!wire_bytes(&with, run).is_empty(), "{run}: there were several processes");
        assert_same(&trajectory(&without, run, 12), &trajectory(&with, run, 12), run);
    }
    let again = alone(&with, &["sweep", "sweep.yaml"], 0);
    let again: serde_json::Value = serde_json::from_slice(&again.stdout).expect("JSON");
    assert_eq!(again["skipped"].as_u64(), Some(2), "{again}");
}

#[test]
fn a_signal_to_any_rank_stops_all_with_a_checkpoint() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    let arguments = ["train", spec, "--run-dir", "run", "--set", FOUR];
    let more = ["--set", "train.max_steps=100k", "--set", "eval.every=100k"];
    let mut job = mpirun(&place, 2, &[&arguments[..], &more].concat());
    let mut job = job.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("mpirun");
    wait_until("step 3", || place.metric_lines("run") >= 3);
    // Any but the one that writes.
    signal("-USR1", *ranks_of(&job).last().expect("a rank"));
    // 128 + SIGUSR1.
    assert_eq!(ends_within(&mut job, 60), Some(138));
    assert!(place.path("run/checkpoints/latest").exists());
}

/// A stopped process stands for one that hangs.
#[test]
fn a_rank_that_hangs_ends_the_job_after_the_stated_time() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, OFTEN);
    let spec = spec.to_str().expect("UTF-8");
    let arguments = ["train", spec, "--run-dir", "run", "--set", FOUR];
    let more = [
        "--set",
        "train.max_steps=100k",
        "--set",
        "eval.every=100k",
        "--set",
        "train.data_parallel.timeout_seconds=3",
    ];
    let mut job = mpirun(&place, 2, &[&arguments[..], &more].concat());
    let log = std::fs::File::create(place.path("log")).expect("a file");
    let mut job = job.stdout(Stdio::null()).stderr(log).spawn().expect("mpirun");
    wait_until("step 3", || place.metric_lines("run") >= 3);
    let hanging = *ranks_of(&job).last().expect("a rank");
    signal("-STOP", hanging);
    let code = ends_within(&mut job, 60);
    let log = std::fs::read_to_string(place.path("log")).expect("a log");
    assert_ne!(code, Some(0), "{log}");
    assert!(log.contains("rank 0 has waited 3 s for a message from rank 1"), "{log}");
    ended(
        mpirun(
            &place,
            2,
            &["train", spec, "--run-dir", "run", "--resume", "--set", FOUR, "--set"]
                .into_iter()
                .chain(["train.max_steps=100k", "--set", "eval.every=100k"])
                .chain(["--stop-after", "1"])
                .collect::<Vec<_>>(),
        ),
        0,
    );
}

#[test]
fn what_one_process_refuses_all_refuse_once() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    let refused = |processes: usize, more: &[&str], expected: &str| {
        let arguments = [&["train", spec, "--run-dir", "run"][..], more].concat();
        let output = ended(mpirun(&place, processes, &arguments), 2);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(stderr.matches(expected).count(), 1, "{expected} once in:\n{stderr}");
    };
    refused(4, &[], "train.gradient_accumulation_steps: is 2, but 4 processes");
    refused(2, &["--resume"], "holds no run to resume");
    let taken = ["train", spec, "--run-dir", "run", "--stop-after", "1"];
    alone(&place, &taken, 0);
    refused(2, &[], "already holds a run");
}

/// A loss that is not finite on one rank is the divergence of all, and what the spec says of it is
/// done by all alike.
#[test]
fn a_divergence_is_that_of_all() {
    let place = Workplace::new();
    let extra = "optimizer: {dense: {adamw: {learning_rate: 1e30, weight_decay: 0}}}\n";
    let spec = place.spec("dense", &format!("{extra}{OFTEN}"));
    let spec = spec.to_str().expect("UTF-8");
    let train = |run: &'static str| ["train", spec, "--run-dir", run, "--set", FOUR];
    let one = alone(&place, &train("one"), 3);
    let two = ended(mpirun(&place, 2, &train("two")), 3);
    let message = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = text.lines().find(|line| line.starts_with("error:")).unwrap_or("").to_owned();
        line.split(';').next().unwrap_or_default().to_owned()
    };
    assert!(message(&one).contains("at step"), "{}", message(&one));
    assert_eq!(message(&one), message(&two));
}
