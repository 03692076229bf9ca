//! Sweeps that are killed, stopped, damaged or refused.

use super::*;

/// Killed at several moments, children left to themselves, and started again: the same metrics as
/// without.
#[test]
fn a_killed_sweep_goes_on_to_the_same_results() {
    let undisturbed = Workplace::new();
    let path = sweep(&undisturbed, TWO_METHODS);
    undisturbed.run(&["sweep", &path, "--jobs", "2"], 0);
    let expected = trajectories(&undisturbed);
    assert_eq!(expected.len(), 8);

    let place = Workplace::new();
    let path = sweep(&place, TWO_METHODS);
    let lines = || -> usize {
        expected.keys().map(|id| place.metric_lines(&format!("runs/small/{id}"))).sum()
    };
    let whole: usize = expected.values().map(Vec::len).sum();
    for kill in 1..=3 {
        let before = lines();
        let landed = place.kill_when(&["sweep", &path, "--jobs", "2"], || lines() > before + 5);
        assert!(landed, "kill {kill}: the sweep had ended, {before} lines before");
        assert!(lines() < whole, "kill {kill}: every run had ended");
    }
    place.run(&["sweep", &path, "--jobs", "2"], 0);
    assert_eq!(expected, trajectories(&place));
}

/// Case 8: a run killed when it began to write its last checkpoint is finished first.
#[test]
fn a_run_killed_in_its_last_save_is_finished() {
    let place = Workplace::new();
    let path = sweep(&place, "seeds: [1]\nvariants:\n  - {name: only}\n");
    let first = summary(&place.run(&["sweep", &path], 0));
    assert_eq!(first["finished"].as_u64(), Some(1));
    let whole = place.trajectory("runs/small/only-seed-1", 12);
    let checkpoints = place.path("runs/small/only-seed-1/checkpoints");
    // What a kill there leaves: all metrics, the folder that was begun, the checkpoint before.
    std::fs::remove_dir_all(checkpoints.join("step-00000012")).expect("the last checkpoint");
    std::fs::create_dir(checkpoints.join(".step-00000012.x.tmp")).expect("a folder");
    let again = summary(&place.run(&["sweep", &path], 0));
    assert_eq!((again["finished"].as_u64(), again["skipped"].as_u64()), (Some(1), Some(0)));
    support::assert_same(
        &whole,
        &place.trajectory("runs/small/only-seed-1", 12),
        "killed in its last save",
    );
    // One whose bytes are damaged is no last checkpoint either.
    let model = checkpoints.join("step-00000012/model.safetensors");
    let mut bytes = std::fs::read(&model).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&model, bytes).expect("writable");
    let again = summary(&place.run(&["sweep", &path], 0));
    assert_eq!((again["finished"].as_u64(), again["skipped"].as_u64()), (Some(1), Some(0)));
    support::assert_same(
        &whole,
        &place.trajectory("runs/small/only-seed-1", 12),
        "after damage of the last checkpoint",
    );
}

/// Case 20: damaged timings are named as what they are, and nothing is timed anew.
#[test]
fn damaged_timings_are_named() {
    let place = Workplace::new();
    let path = sweep(
        &place,
        "equal: {seconds: baseline}\nbaseline: dense\nseeds: [1]\nvariants:\n  - {name: dense, set: {model.weights: dense}}\n  - {name: spectral}\n",
    );
    place.run(&["sweep", &path], 0);
    let timings = place.path("runs/small/calibration.json");
    let sound = std::fs::read(&timings).expect("timings");
    let manifest = std::fs::read(place.path("runs/small/manifest.json")).expect("the manifest");
    std::fs::write(&timings, &sound[..sound.len() / 2]).expect("writable");
    let error = text(&place.run(&["sweep", &path], 1).stderr);
    assert!(error.contains("calibration.json") && error.contains("damaged"), "{error}");
    assert!(!error.contains("other settings"), "{error}");
    assert_eq!(
        std::fs::read(place.path("runs/small/manifest.json")).expect("the manifest"),
        manifest
    );
    std::fs::write(&timings, &sound).expect("writable");
    let again = summary(&place.run(&["sweep", &path], 0));
    assert_eq!(again["skipped"].as_u64(), Some(2));
}

/// A sweep that is asked to stop lets every run finish its step and save, however long the step
/// takes.
#[test]
fn a_stopped_sweep_leaves_checkpoints() {
    let place = Workplace::new();
    // Steps of seconds on one thread, so that the stop comes in the middle of the first.
    let body = "set: {model.n_embd: 256, model.n_layer: 4, train.batch_size: 64, train.gradient_accumulation_steps: 24, model.weights: dense}\n\
                seeds: [1]\nvariants:\n  - {name: slow}\n";
    let path = sweep(&place, body);
    let mut child = place
        .lrpt(&["sweep", path.as_str()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let begun = place.path("runs/small/slow-seed-1/plan.yaml");
    while !begun.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .expect("kill");
    assert_eq!(child.wait().expect("gone").code(), Some(143));
    let saved = std::fs::read_dir(place.path("runs/small/slow-seed-1/checkpoints"))
        .expect("a checkpoint was written");
    assert!(saved.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("step-")));
}

#[test]
fn a_failed_run_is_reported_and_tried_again_only_on_request() {
    let place = Workplace::new();
    let body = "seeds: [1]\nvariants:\n  - {name: good}\n  - {name: diverges, set: {train.grad_clip: 0, optimizer.low_rank.dlra: {momentum: heavy_ball, learning_rate: 1e30, weight_decay: 0}}}\n";
    let path = sweep(&place, body);
    let failed = place.run(&["sweep", &path], 1);
    let stderr = text(&failed.stderr);
    assert!(
        stderr.contains("1 of 2 runs failed")
            && stderr.contains("diverges-seed-1")
            && stderr.contains("not finite"),
        "{stderr}"
    );
    let log = place.path("runs/small/logs/diverges-seed-1.log");
    let length = || std::fs::metadata(&log).expect("a log").len();
    let before = length();
    place.run(&["sweep", &path], 1);
    assert_eq!(length(), before, "it was not tried again");
    place.run(&["sweep", &path, "--retry-failed"], 1);
    assert!(length() > before, "it was tried again");
    let table = text(&place.run(&["compare", "runs/small"], 0).stdout);
    assert!(table.contains("No result: diverges-seed-1: failed (exit code 3)"), "{table}");
}

#[test]
fn what_cannot_be_run_or_compared_is_refused() {
    let place = Workplace::new();
    let refused =
        |body: &str| text(&place.run(&["sweep", &sweep(&place, body), "--dry-run"], 2).stderr);
    let message = refused("seeds: [1]\nvariants:\n  - {name: a, tunes: {x: [1]}}\n");
    assert!(
        message.contains("sweep.yaml:5")
            && message.contains("tunes")
            && message.contains("did you mean `tune`?"),
        "{message}"
    );
    let message = refused("seeds: [1]\nbaseline: c\nvariants:\n  - {name: a}\n");
    assert!(message.contains("sweep.yaml:4") && message.contains("`c` is no variant"), "{message}");
    let message = refused("seeds: [1]\nvariants:\n  - {name: a, set: {model.n_layr: 3}}\n");
    assert!(
        message.contains("a-seed-1") && message.contains("n_layr") && message.contains("n_layer"),
        "{message}"
    );

    let path = sweep(&place, "seeds: [1]\nvariants:\n  - {name: a}\n");
    place.run(&["sweep", &path], 0);
    let path = sweep(&place, "seeds: [1]\nvariants:\n  - {name: a, set: {train.max_steps: 8}}\n");
    let message = text(&place.run(&["sweep", &path], 2).stderr);
    assert!(message.contains("train.max_steps: 12 -> 8"), "{message}");

    let spec = place.path("spec.yaml");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "one"], 0);
    place.run(&["train", spec, "--run-dir", "two", "--set", "eval.tokens=128"], 0);
    let message = text(&place.run(&["compare", "one", "two"], 2).stderr);
    assert!(
        message.contains("one and two cannot be compared")
            && message.contains("eval.tokens 256 and 128"),
        "{message}"
    );
    let message = text(&place.run(&["compare", "one", "nothing"], 2).stderr);
    assert!(message.contains("nothing holds no run"), "{message}");
}

#[test]
fn a_slurm_array_runs_the_same_runs() {
    let place = Workplace::new();
    let body = TWO_METHODS.replace("seeds: [1, 2]", "seeds: [1, 2]\nsearch: first_seed");
    let path = sweep(&place, &body);
    let printed =
        text(&place.run(&["sweep", &path, "--launcher", "slurm", "--jobs", "2"], 0).stdout);
    assert_eq!(
        printed.lines().collect::<Vec<_>>(),
        ["runs/small/slurm.sh", "runs/small/slurm-repeat.sh"]
    );
    let script = std::fs::read_to_string(place.path("runs/small/slurm.sh")).expect("the script");
    for line in [
        "#SBATCH --array=0-3%2",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --signal=B:TERM@120",
        "sweep 'runs/small' --run-index \"$SLURM_ARRAY_TASK_ID\"",
    ] {
        assert!(script.contains(line), "{line} in {script}");
    }
    let checked = std::process::Command::new("bash")
        .arg("-n")
        .arg(place.path("runs/small/slurm.sh"))
        .status()
        .expect("bash");
    assert!(checked.success(), "{script}");

    // What a task of each index does. A repeat before its search is over is refused; one of a rate
    // that was not best does nothing.
    let too_early = place.run(&["sweep", "runs/small", "--run-index", "5"], 1);
    assert!(
        text(&too_early.stderr).contains("waits for the runs that search"),
        "{}",
        text(&too_early.stderr)
    );
    for index in ["0", "1", "2", "3", "4", "5", "6", "7", "0"] {
        place.run(&["sweep", "runs/small", "--run-index", index], 0);
    }
    assert_eq!(trajectories_of_finished(&place).len(), 6);
    let beyond = place.run(&["sweep", "runs/small", "--run-index", "8"], 2);
    assert!(text(&beyond.stderr).contains("has 8 runs"), "{}", text(&beyond.stderr));
}

/// Several processes a run: a task for each, which meet over TCP or MPI, and the job goes back into
/// the queue by itself.
#[test]
fn a_slurm_array_of_data_parallel_runs_has_a_task_for_each_process() {
    let place = Workplace::new();
    let path = sweep(&place, "seeds: [1]\nvariants: [{name: one}]\n");
    let slurm = ["sweep", path.as_str(), "--launcher", "slurm", "--nodes", "2", "--processes"];
    let refused = text(&place.run(&[&slurm[..], &["3"]].concat(), 2).stderr);
    assert!(refused.contains("start at most 2 processes"), "{refused}");
    place.run(&[&slurm[..], &["2"]].concat(), 0);
    let script = std::fs::read_to_string(place.path("runs/small/slurm.sh")).expect("the script");
    let has_mpi = lrpt::parallel::HAS_MPI;
    let srun = format!("srun --cpus-per-task=1{} '", if has_mpi { " --mpi=pmix" } else { "" });
    for line in [
        "#SBATCH --ntasks=2\n#SBATCH --cpus-per-task=1\n#SBATCH --nodes=2\n#SBATCH --mem-per-cpu=",
        "#SBATCH --signal=USR1@120\n#SBATCH --requeue\n#SBATCH --open-mode=append\n",
        "MASTER_ADDR=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)\n",
        "trap : TERM USR1\ncode=0\n",
        srun.as_str(),
        "--run-index \"$SLURM_ARRAY_TASK_ID\" || code=$?\n",
    ] {
        assert!(script.contains(line), "{line} in {script}");
    }
    // The commands of Slurm, as far as the script uses them.
    let commands = "scontrol() { case \"$1 $2\" in 'show job') echo \"PreemptTime=$PREEMPTED\" ;; \
                    'show hostnames') echo here; echo there ;; *) echo \"$@\" ;; esac; }\n\
                    srun() { echo \"$MASTER_ADDR:$MASTER_PORT\"; return $CODE; }\n\
                    SLURM_JOB_ID=12007 SLURM_JOB_NODELIST=x SLURM_ARRAY_TASK_ID=0\n";
    let is_requeued = |code: &str, preempted: &str| {
        let mut bash = std::process::Command::new("bash");
        bash.args(["-c", &format!("{commands}{script}")]);
        let output = bash.env("CODE", code).env("PREEMPTED", preempted).output().expect("bash");
        assert_eq!(output.status.code().map(|code| code.to_string()).as_deref(), Some(code));
        let printed = text(&output.stdout);
        let after = printed.strip_prefix("here:20007\n").expect("where they meet");
        assert!(matches!(after, "" | "requeue 12007\n"), "{after}");
        !after.is_empty()
    };
    assert!(is_requeued("138", "None"), "its time is over soon");
    assert!(is_requeued("143", "2026-11-26T10:24:30"), "preempted");
    assert!(!is_requeued("143", "None"), "cancelled");
    for code in ["0", "1", "137"] {
        assert!(!is_requeued(code, "None"), "ended with {code}");
    }
}

/// Case 24: axes whose product is 40⁵ are refused before anything is expanded.
#[test]
fn a_sweep_of_too_many_runs_is_refused_at_once() {
    let place = Workplace::new();
    let values = (1..=40).map(|value| value.to_string()).collect::<Vec<_>>().join(", ");
    let axes: String =
        ["a", "b", "c", "d", "e"].map(|key| format!("  {key}: [{values}]\n")).concat();
    let path = sweep(&place, &format!("seeds: [1]\nvariants: [{{name: one}}]\naxes:\n{axes}"));
    let refused = text(&place.run(&["sweep", &path, "--dry-run"], 2).stderr);
    assert!(refused.contains("these make 102400000 runs"), "{refused}");
}

/// Case 39: `--dry-run` lists what `--only` leaves, and a pattern of no run is an error.
#[test]
fn only_is_the_same_for_a_dry_run_and_must_match() {
    let place = Workplace::new();
    let path = sweep(&place, TWO_METHODS);
    let listed = text(&place.run(&["sweep", &path, "--dry-run", "--only", "dense*"], 0).stdout);
    assert!(listed.contains("4 runs;") && !listed.contains("spectral"), "{listed}");
    for more in [["--jobs", "1"].as_slice(), &["--dry-run"]] {
        let arguments = [["sweep", path.as_str(), "--only", "zzz*"].as_slice(), more].concat();
        let refused = text(&place.run(&arguments, 2).stderr);
        assert!(refused.contains("no run of this sweep matches"), "{refused}");
    }
    assert!(!place.path("runs").exists(), "nothing was begun");
}

/// Issue 13, hostile folders: a manifest's names are paths, so they obey the rule of specs; `..`
/// and absolute ones are refused before anything is read or written there.
#[test]
fn a_manifest_that_leads_outside_is_refused() {
    let place = Workplace::new();
    let path = sweep(&place, "seeds: [1]\nvariants: [{name: one}]\n");
    place.run(&["sweep", &path], 0);
    let manifest = place.path("runs/small/manifest.json");
    let sound = std::fs::read_to_string(&manifest).expect("the manifest");
    let outside = place.path("outside").display().to_string();
    for id in ["../../outside", outside.as_str(), "..", "a\\u001b[2Jb"] {
        std::fs::write(&manifest, sound.replace("\"one-seed-1\"", &format!("\"{id}\"")))
            .expect("edited");
        for arguments in
            [["sweep", "runs/small", "--run-index", "0"].as_slice(), &["compare", "runs/small"]]
        {
            let output = place.lrpt(arguments).output().expect("it runs");
            assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {output:?}");
            let error = text(&output.stderr);
            assert!(error.contains("is no name for a folder"), "{error}");
            assert!(!error.contains('\u{1b}'), "control characters are shown: {error:?}");
        }
    }
    assert!(!place.path("outside").exists() && !place.path("outside.yaml").exists());
}

/// Case 40: nothing of a sweep or of its report is written through a link.
#[cfg(unix)]
#[test]
fn a_sweep_or_report_whose_files_are_links_is_refused() {
    let place = Workplace::new();
    let path = sweep(&place, "seeds: [1]\nvariants: [{name: one}]\n");
    place.run(&["sweep", &path], 0);
    let precious = place.path("precious");
    std::fs::create_dir(&precious).expect("a folder");
    for (name, command) in [
        ("lrpt.lock", ["sweep", path.as_str()].as_slice()),
        ("calibration.json", &["sweep", path.as_str()]),
        ("logs", &["sweep", path.as_str()]),
        ("one-seed-1", &["sweep", path.as_str()]),
        ("failures", &["sweep", "runs/small", "--run-index", "0"]),
        ("report", &["compare", "runs/small"]),
    ] {
        let (inside, aside) = (place.path("runs/small").join(name), place.path("aside"));
        let was_there = std::fs::rename(&inside, &aside).is_ok();
        std::os::unix::fs::symlink(&precious, &inside).expect("a link");
        let output = place.lrpt(command).output().expect("it runs");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {error}");
        assert!(error.contains("is a link to") && error.contains(name), "{name}: {error}");
        assert_eq!(precious.read_dir().expect("readable").count(), 0, "{name}: nothing written");
        std::fs::remove_file(&inside).expect("the link");
        if was_there {
            std::fs::rename(&aside, &inside).expect("back");
        }
    }
    let elsewhere = place.path("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a folder");
    std::fs::write(place.path("kept.txt"), "kept").expect("a file");
    std::os::unix::fs::symlink(place.path("kept.txt"), elsewhere.join("report.md"))
        .expect("a link");
    place.run(&["compare", "runs/small", "--report", "elsewhere"], 2);
    assert_eq!(std::fs::read_to_string(place.path("kept.txt")).expect("kept"), "kept");
    place.run(&["compare", "runs/small"], 0);
}
