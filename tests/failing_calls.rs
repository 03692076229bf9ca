//! System calls that fail because the machine has no more to give: an error is not damage.

#![cfg(unix)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use support::{Workplace, assert_same};

/// Names and contents of a run's checkpoints.
fn checkpoints(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for folder in fs::read_dir(run.join("checkpoints")).expect("checkpoints") {
        for file in fs::read_dir(folder.expect("an entry").path()).expect("a checkpoint") {
            let path = file.expect("an entry").path();
            found.insert(path.display().to_string(), fs::read(&path).expect("a file"));
        }
    }
    found
}

/// EMFILE wherever it may come: with every number of files that may be open, resuming goes on, or
/// ends with a message and exit code 1 and has renamed nothing, lost nothing.
#[test]
fn too_few_files_that_may_be_open_lose_nothing() {
    let place = Workplace::new();
    place.spec("{low_rank: {rank: 6}}", "checkpoint: {every: 1, keep_last: 3}");
    place.run(&["train", "spec.yaml", "--run-dir", "whole"], 0);
    let last = lrpt::checkpoint::Checkpoints::open(&place.path("whole")).latest().expect("steps");
    place.run(&["train", "spec.yaml", "--run-dir", "run", "--stop-after", "4"], 0);
    let run = place.path("run");
    let (mut refused, mut went_on) = (0, 0);
    for limit in 3..40 {
        let before = checkpoints(&run);
        let resume = place.lrpt(&["resume", "run", "--stop-after", "5"]);
        let mut limited = Command::new("sh");
        limited.arg("-c").arg(format!("ulimit -n {limit}; exec \"$0\" \"$@\""));
        limited.arg(resume.get_program()).args(resume.get_args());
        let output = limited.current_dir(place.path("")).output().expect("a shell");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{limit} files: {said}");
        match output.status.code() {
            Some(0) => went_on += 1,
            // The loader of programs, which needs files itself.
            Some(127) => {}
            Some(1) => {
                assert!(said.contains("error: "), "{limit} files: {said}");
                refused += 1;
            }
            code => panic!("{limit} files: exit code {code:?}: {said}"),
        }
        if output.status.code() != Some(0) {
            let after = checkpoints(&run);
            assert!(before == after, "{limit} files: the checkpoints are others: {said}");
        }
    }
    assert!(refused > 0 && went_on > 0, "{refused} refused, {went_on} went on");
    place.run(&["resume", "run"], 0);
    assert_same(&place.trajectory("run", last), &place.trajectory("whole", last), "resumed");
}
