//! Kills small runs and damages their files, again and again, and compares what they come to with a
//! run that nothing disturbed, byte for byte.
//!
//! ```text
//! cargo run --release --example torture -- --minutes 10 [--seed 1]
//! ```
//!
//! A round begins a run and stops it several times: it kills it (signal 9) at a random instant or
//! while a checkpoint is being written, or, where `strace` is installed, lets one of its system
//! calls fail (no space, an error of the disk, too many open files, …). Every second round then changes a byte, or cuts the end, of a file
//! of a checkpoint or of the prepared data. Then the run goes on to its end. It must come to the
//! same last checkpoint and the same metrics, or be refused with a message; begun anew with
//! --restart it must come to them in any case. Exits with 1 where anything else happened.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use lrpt::checkpoint::{Checkpoints, verify};
use lrpt::record::is_wall_clock_key;
use lrpt::rng;
use rand::Rng;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Set for the processes that this one starts: they are `lrpt`.
const CHILD: &str = "LRPT_TORTURE_CHILD";
const STEPS: u64 = 60;
/// System calls that may fail, how, and the last of them that does.
const CALLS: [(&str, &str, u32); 16] = [
    ("openat", "EMFILE", 900),
    ("openat", "EIO", 900),
    ("openat", "ENOMEM", 300),
    ("openat", "EACCES", 300),
    ("read", "EIO", 900),
    ("write", "ENOSPC", 900),
    ("write", "EIO", 900),
    ("fsync", "EIO", 600),
    ("fdatasync", "EIO", 100),
    ("rename", "EIO", 200),
    ("mkdir", "ENOSPC", 80),
    ("unlink", "EIO", 100),
    ("getdents64", "EIO", 200),
    ("statx", "EIO", 900),
    ("flock", "EIO", 3),
    ("ftruncate", "EIO", 60),
];
const SPEC: &str = "\
name: tortured
seed: 5
device: cpu
model: {n_layer: 2, n_head: 2, n_embd: 32, block_size: 16, dropout: 0.1, weights: {low_rank: {rank: 6}}}
data: {source: {text: {path: text.txt, val_fraction: 0.2}}, tokenizer: chars}
train: {max_steps: 60, batch_size: 4, gradient_accumulation_steps: 2, log_every: 1}
optimizer: {low_rank: {dlra: {momentum: adam, retraction: subspace, learning_rate: 2e-2}}}
rank: {tolerance: {tau: 0.4, min_rank: 2, max_rank: 12, grow_every: 6, settle: 3, grow_by: 4, start: 3, freeze: 60}}
eval: {every: 7, tokens: 256}
sample: {tokens: 0}
checkpoint: {every: 1, keep_last: 2}
";

#[derive(Parser)]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Of the instants and the damages.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What happened.
#[derive(Default)]
struct Figures {
    rounds: u64,
    kills: u64,
    kills_in_saving: u64,
    failed_calls: u64,
    stopped_by_a_failed_call: u64,
    damaged_checkpoints: u64,
    damaged_shards: u64,
    refusals: u64,
    same: u64,
    checkpoints_lost: u64,
    wrong: u64,
    panics: u64,
}

fn main() -> Result<()> {
    if std::env::var_os(CHILD).is_some() {
        let result = lrpt::cli::Cli::parse().run();
        let code = result.as_ref().err().map_or(0, lrpt::error::exit_code);
        if let Err(error) = result {
            eprintln!("error: {error:#}");
        }
        std::process::exit(code.into());
    }
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir()?;
    let place = folder.path();
    std::fs::write(place.join("spec.yaml"), SPEC)?;
    std::fs::write(place.join("text.txt"), text())?;
    let (code, said) = lrpt(place, &["train", "spec.yaml", "--run-dir", "whole"])?;
    ensure!(code == Some(0), "the undisturbed run failed: {said}");
    let expected = trajectory(&place.join("whole"))?;

    let has_strace = Command::new("strace").arg("-V").output().is_ok();
    if !has_strace {
        println!("strace is not installed: no system call fails");
    }
    let mut figures = Figures::default();
    let started = Instant::now();
    while started.elapsed().as_secs_f64() < 60.0 * arguments.minutes {
        let mut random = rng::stream(arguments.seed, "torture", &[figures.rounds]);
        round(place, &expected, has_strace, &mut random, &mut figures)?;
        figures.rounds += 1;
    }
    println!("minutes                              {:.1}", started.elapsed().as_secs_f64() / 60.0);
    for (what, count) in [
        ("rounds", figures.rounds),
        ("kills", figures.kills),
        ("of them while a checkpoint was written", figures.kills_in_saving),
        ("runs with a failing system call", figures.failed_calls),
        ("of them stopped by it", figures.stopped_by_a_failed_call),
        ("damaged files of checkpoints", figures.damaged_checkpoints),
        ("damaged files of prepared data", figures.damaged_shards),
        ("refused with a message, then restarted", figures.refusals),
        ("ended with the undisturbed run's bytes", figures.same),
        ("sound checkpoints lost by a kill", figures.checkpoints_lost),
        ("wrong resumes", figures.wrong),
        ("panics", figures.panics),
    ] {
        println!("{what:<38}{count:>6}");
    }
    ensure!(
        figures.checkpoints_lost + figures.wrong + figures.panics == 0,
        "something was lost, wrong or panicked"
    );
    Ok(())
}

/// One run, stopped several times, damaged perhaps, and taken to its end.
fn round(
    place: &Path,
    expected: &BTreeMap<String, Vec<u8>>,
    has_strace: bool,
    random: &mut impl Rng,
    figures: &mut Figures,
) -> Result<()> {
    let run = place.join("tortured");
    if run.exists() {
        std::fs::remove_dir_all(&run)?;
    }
    for _ in 0..random.random_range(1..5) {
        let before = newest_sound(&run)?;
        let goes_on = match has_strace && random.random_bool(0.4) {
            true => fail_a_call(place, &run, random, figures)?,
            false => kill(place, &run, random, figures)?,
        };
        if !goes_on {
            break;
        }
        figures.checkpoints_lost += u64::from(newest_sound(&run)? < before);
    }
    if random.random_bool(0.5) {
        damage(place, &run, random, figures)?;
    }
    let (mut code, mut said) = lrpt(place, go_on(&run))?;
    if matches!(code, Some(1 | 2)) && said.contains("error: ") {
        figures.refusals += 1;
        // Prepared data that were refused are made anew.
        std::fs::remove_dir_all(place.join("data")).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        (code, said) = lrpt(place, &["train", "spec.yaml", "--run-dir", "tortured", "--restart"])?;
    }
    figures.panics += u64::from(code == Some(101) || said.contains("panicked"));
    if code == Some(0) && trajectory(&run).ok().as_ref() == Some(expected) {
        figures.same += 1;
    } else {
        figures.wrong += 1;
        println!("round {}: exit code {code:?}, other bytes or none\n{said}", figures.rounds);
    }
    Ok(())
}

/// What starts the run or goes on with it.
fn go_on(run: &Path) -> &'static [&'static str] {
    match run.join("plan.yaml").exists() {
        true => &["resume", "tortured"],
        false => &["train", "spec.yaml", "--run-dir", "tortured"],
    }
}

/// Starts or goes on with the run while one of its system calls fails; false where it comes to its
/// end all the same.
fn fail_a_call(
    place: &Path,
    run: &Path,
    random: &mut impl Rng,
    figures: &mut Figures,
) -> Result<bool> {
    let (call, error, most) = CALLS[random.random_range(0..CALLS.len())];
    let number = random.random_range(1..=most);
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:error={error}:when={number}")])
        .arg(std::env::current_exe()?)
        .current_dir(place)
        .env(CHILD, "1")
        .args(["--threads", "2"])
        .args(go_on(run))
        .output()?;
    let (code, said) = (output.status.code(), String::from_utf8_lossy(&output.stderr));
    figures.failed_calls += 1;
    figures.stopped_by_a_failed_call += u64::from(code != Some(0));
    // The message cannot be seen where writing it is what failed, or where the loader of programs
    // stopped it.
    let is_said = said.contains("error: ") || call == "write" || code == Some(127);
    let is_answered = code == Some(0) || (matches!(code, Some(1..=3 | 127)) && is_said);
    if said.contains("panicked") {
        figures.panics += 1;
    } else if !is_answered {
        figures.wrong += 1;
    }
    if said.contains("panicked") || !is_answered {
        println!("{call} {number} fails with {error}: exit code {code:?}\n{said}");
    }
    Ok(code != Some(0))
}

/// Starts or goes on with the run and kills it; false where it had ended before.
fn kill(place: &Path, run: &Path, random: &mut impl Rng, figures: &mut Figures) -> Result<bool> {
    let in_saving = random.random_bool(0.5);
    let instant = Duration::from_micros(random.random_range(1_000..900_000));
    let mut child =
        command(place, go_on(run))?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let started = Instant::now();
    while started.elapsed() < instant || (in_saving && !is_saving(run)) {
        if child.try_wait()?.is_some() {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    child.kill()?;
    // One that had just ended has an exit code.
    let landed = child.wait()?.code().is_none();
    if landed {
        figures.kills += 1;
        figures.kills_in_saving += u64::from(is_saving(run));
    }
    Ok(landed)
}

/// Whether a checkpoint is being written, or was when the process died.
fn is_saving(run: &Path) -> bool {
    let entries = std::fs::read_dir(run.join("checkpoints"));
    entries.into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(".step-") && name.ends_with(".tmp") && !name.contains(".deleted")
    })
}

/// The newest step whose checkpoint is whole.
fn newest_sound(run: &Path) -> Result<Option<u64>> {
    let entries = Checkpoints::open(run).list()?;
    Ok(entries.iter().rev().find(|entry| verify(&entry.path).is_ok()).map(|entry| entry.step))
}

/// Changes a byte, or cuts the end, of a file of a checkpoint or of the prepared data.
fn damage(place: &Path, run: &Path, random: &mut impl Rng, figures: &mut Figures) -> Result<()> {
    let of_data = random.random_bool(0.3);
    let files = if of_data {
        files_below(&place.join("data"))?
    } else {
        files_below(&run.join("checkpoints"))?
    };
    let files: Vec<PathBuf> = files
        .into_iter()
        .filter(|path| path.metadata().is_ok_and(|found| found.is_file() && found.len() > 0))
        // Not what a killed process left half written.
        .filter(|path| {
            path.strip_prefix(place).is_ok_and(|below| !below.to_string_lossy().contains("/."))
        })
        .collect();
    if files.is_empty() {
        return Ok(());
    }
    let path = &files[random.random_range(0..files.len())];
    let mut bytes = std::fs::read(path)?;
    let at = random.random_range(0..bytes.len());
    if random.random_bool(0.8) {
        bytes[at] ^= 1 << random.random_range(0..8);
    } else {
        bytes.truncate(at);
    }
    std::fs::write(path, bytes)?;
    *if of_data { &mut figures.damaged_shards } else { &mut figures.damaged_checkpoints } += 1;
    Ok(())
}

/// Every file below a folder, not through links; none where there is no folder.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if !folder.exists() {
        return Ok(files);
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            files.extend(files_below(&path)?);
        } else if !path.is_symlink() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn command(place: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.current_dir(place).env(CHILD, "1").args(["--threads", "2"]).args(arguments);
    Ok(command)
}

/// Exit code and messages of `lrpt` with these arguments.
fn lrpt(place: &Path, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = command(place, arguments)?.output()?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Each file of a run's last checkpoint, and its metrics without what tells the time.
fn trajectory(run: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let last = Checkpoints::open(run).path(STEPS);
    for path in files_below(&last)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.insert(name, std::fs::read(&path)?);
    }
    ensure!(!found.is_empty(), "{}: no last checkpoint", last.display());
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).context("metrics.jsonl")?;
    let mut metrics = Vec::new();
    for line in text.lines() {
        let mut line: Map<String, Value> = serde_json::from_str(line).context("metrics.jsonl")?;
        line.retain(|key, _| !is_wall_clock_key(key));
        serde_json::to_writer(&mut metrics, &line)?;
        metrics.push(b'\n');
    }
    found.insert("metrics".into(), metrics);
    Ok(found)
}

/// Some 6000 characters with structure to learn.
fn text() -> String {
    let words = ["the", "rank", "of", "a", "matrix", "grows", "and", "shrinks", "when", "it", "is"];
    let mut random = rng::stream(7, "torture text", &[]);
    let mut text = String::new();
    while text.len() < 6000 {
        text.push_str(words[random.random_range(0..words.len())]);
        text.push(if random.random_bool(0.1) { '\n' } else { ' ' });
    }
    text
}
