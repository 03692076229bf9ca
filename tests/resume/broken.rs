//! Kills, damage, and what is refused.

use super::*;

/// Killed again and again while it trains and while it writes a checkpoint, a run still ends as if
/// nothing had happened.
#[test]
fn kill_dash_nine_at_any_moment() {
    let place = Workplace::new();
    let spec = place.spec(
        LOW_RANK,
        &format!("{}{TOLERANCE}checkpoint: {{every: 1, keep_last: 2}}", dlra("adam", "subspace")),
    );
    let arguments = |run: &'static str, more: &'static str| {
        let spec = spec.to_str().expect("UTF-8");
        ["train", spec, "--run-dir", run, "--set", "train.max_steps=60", more, "5"]
    };
    place.run(&arguments("whole", "--stop-after")[..6], 0);
    let expected = place.trajectory("whole", 60);
    place.run(&arguments("killed", "--stop-after"), 0);
    let resume = [&arguments("killed", "--resume")[..6], &["--resume"]].concat();
    let (mut in_training, mut in_saving) = (0, 0);
    for attempt in 0..12 {
        let newest = || {
            let checkpoints = lrpt::checkpoint::Checkpoints::open(&place.path("killed"));
            checkpoints.list().expect("a folder").last().expect("a checkpoint").step
        };
        let before = newest();
        // Every second time while files are written, else some steps on.
        let landed = place.kill_when(&resume, || match attempt % 2 {
            0 => newest() > before && place.is_saving("killed"),
            _ => newest() > before + attempt % 3,
        });
        assert!(landed, "attempt {attempt} from step {before}: the run had ended");
        assert!(newest() > before && newest() < 60, "killed mid-run: {before} to {}", newest());
        // The folder of a checkpoint that was being written is still there.
        if place.is_saving("killed") {
            in_saving += 1;
        } else {
            in_training += 1;
        }
    }
    assert!(in_saving >= 3, "{in_saving} kills while writing, {in_training} while training");
    place.run(&resume, 0);
    assert_same(&expected, &place.trajectory("killed", 60), "killed twelve times");
}

/// A damaged newest checkpoint is reported and passed over.
#[test]
fn falls_back_past_a_damaged_checkpoint() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "checkpoint: {every: 3, keep_last: 3}");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "whole"], 0);
    place.run(&["train", spec, "--run-dir", "broken", "--stop-after", "9"], 0);
    let damaged = place.path("broken/checkpoints/step-00000009/model.safetensors");
    let mut bytes = std::fs::read(&damaged).expect("a checkpoint at step 9");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).expect("writable");
    let output = place.run(&["train", spec, "--run-dir", "broken", "--resume"], 0);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        log.contains("step-00000009") && log.contains("model.safetensors"),
        "the log names the damage:\n{log}"
    );
    assert_same(
        &place.trajectory("whole", 12),
        &place.trajectory("broken", 12),
        "after a damaged checkpoint",
    );
}

#[test]
fn resume_refuses_another_plan_and_names_the_keys() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "run", "--stop-after", "2"], 0);
    let output = place
        .run(&["train", spec, "--run-dir", "run", "--resume", "--set", "train.batch_size=8"], 2);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("train.batch_size: 4 -> 8"), "{error}");
    // What does not change the trajectory may change.
    place.run(
        &["train", spec, "--run-dir", "run", "--resume", "--set", "checkpoint.keep_last=5"],
        0,
    );
}

#[test]
fn a_second_process_and_a_second_start_are_refused() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "run", "--stop-after", "2"], 0);
    let again = place.run(&["train", spec, "--run-dir", "run"], 2);
    assert!(String::from_utf8_lossy(&again.stderr).contains("--resume"));
    let _lock = lrpt::checkpoint::RunLock::acquire(&place.path("run")).expect("the lock is free");
    let locked = place.run(&["train", spec, "--run-dir", "run", "--resume"], 1);
    assert!(String::from_utf8_lossy(&locked.stderr).contains("pid"));
}
