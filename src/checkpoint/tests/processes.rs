//! Processes killed in the middle of a save, and locks across processes.

use super::*;
use rand::Rng;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Names the run's folder to a copy of this test process and so makes it the one that saves, or
/// that holds the lock.
const CHILD_RUN: &str = "LRPT_TEST_CHILD_RUN";

fn child_run() -> Option<PathBuf> {
    std::env::var_os(CHILD_RUN).map(PathBuf::from)
}

/// Starts this test binary again with only the test `name`, in the role of the child.
fn spawn(name: &str, run: &Path) -> Child {
    let name = format!("{}::{name}", module_path!().split_once("::").unwrap().1);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &name, "--nocapture"]).env(CHILD_RUN, run);
    command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const KILLED_SIZE: usize = 20_000;

/// Goes on from the newest checkpoint, saving at every step (every other one twice), with
/// retention, until killed.
fn save_for_ever(run: &Path) {
    let _lock = RunLock::acquire(run).unwrap();
    let mut checkpoints = Checkpoints::open(run);
    let start = checkpoints.load_latest().unwrap().0.map_or(0, |snapshot| snapshot.step);
    for step in start + 1.. {
        for _ in 0..1 + step % 2 {
            checkpoints.save(&snapshot(step, KILLED_SIZE)).unwrap();
        }
        if step % 5 == 0 {
            checkpoints.mark_best(step).unwrap();
        }
        checkpoints.prune(2).unwrap();
    }
}

#[test]
fn a_process_killed_while_saving_leaves_whole_checkpoints() {
    if let Some(run) = child_run() {
        save_for_ever(&run);
    }
    let run = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(run.path());
    let mut delays = crate::rng::stream(3, "delays before a kill", &[]);
    let mut newest = 0;
    let mut killed_half_way = 0;
    for _ in 0..16 {
        let mut child = spawn("a_process_killed_while_saving_leaves_whole_checkpoints", run.path());
        wait_until("a new checkpoint", || {
            steps(&checkpoints).last().is_some_and(|&step| step > newest)
        });
        std::thread::sleep(Duration::from_micros(delays.random_range(0..60_000)));
        child.kill().unwrap();
        child.wait().unwrap();

        let (found, damaged) = checkpoints.load_latest().unwrap();
        assert_eq!(damaged, [], "after {newest}");
        let found = found.unwrap();
        assert!(found.step > newest, "step {} after step {newest}", found.step);
        assert_same(&found, &snapshot(found.step, KILLED_SIZE));
        for entry in checkpoints.list().unwrap() {
            assert_same(&load(&entry.path).unwrap(), &snapshot(entry.step, KILLED_SIZE));
        }
        assert!(checkpoints.best().is_none_or(|best| verify(&checkpoints.path(best)).is_ok()));
        newest = found.step;
        killed_half_way += usize::from(
            names(&run.path().join("checkpoints")).iter().any(|name| name.starts_with('.')),
        );
    }
    assert!(killed_half_way > 0, "no kill came in the middle of a save, so nothing was tested");
}

#[test]
fn a_second_process_is_kept_out_of_a_run() {
    if let Some(run) = child_run() {
        let _lock = RunLock::acquire(&run).unwrap();
        fs::write(run.join("held"), "").unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let run = tempfile::tempdir().unwrap();
    let mut child = spawn("a_second_process_is_kept_out_of_a_run", run.path());
    wait_until("the child's lock", || run.path().join("held").exists());
    let error = message(RunLock::acquire(run.path()).unwrap_err());
    let expected = format!(
        "another lrpt process (pid {}) is training in {};",
        child.id(),
        run.path().display()
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(error.starts_with(&expected), "{error}");

    // A process that ends, however it ends, gives the lock back; so does a drop.
    let lock = RunLock::acquire(run.path()).unwrap();
    let error = message(RunLock::acquire(run.path()).unwrap_err());
    assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
    drop(lock);
    wait_until("the lock, given back", || RunLock::acquire(run.path()).is_ok());
}
