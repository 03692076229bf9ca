//! Signals, links, and what the next start mends.

use super::*;

/// Case 30: the signals of batch systems and of closed terminals write a checkpoint of the step
/// that was taken last.
#[cfg(unix)]
#[test]
fn signals_write_a_checkpoint() {
    let ignored = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let signals = [("USR1", 10), ("XCPU", 24), ("HUP", 1)];
    let heard = |number: i32| ignored >> (number - 1) & 1 == 0;
    for (name, number) in signals.into_iter().filter(|(_, number)| heard(*number)) {
        let place = Workplace::new();
        place.spec(LOW_RANK, "checkpoint: {every: 100000}");
        let child = place
            .lrpt(&["train", "spec.yaml", "--run-dir", "run", "--set", "train.max_steps=100000"])
            .args(["--set", "eval.every=100000"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let started = Instant::now();
        while place.metric_lines("run") < 3 {
            assert!(started.elapsed() < Duration::from_secs(60), "no steps within a minute");
            std::thread::sleep(Duration::from_millis(5));
        }
        let sent = std::process::Command::new("kill")
            .args([&format!("-{name}"), &child.id().to_string()])
            .status();
        assert!(sent.expect("kill").success());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(128 + number), "{name}: {}", stderr(&output));
        let saved = lrpt::checkpoint::Checkpoints::open(&place.path("run")).latest();
        assert_eq!(saved, Some(place.metric_lines("run") as u64), "{name}");
        place.run(&["resume", "run", "--stop-after", &(saved.unwrap_or(0) + 1).to_string()], 0);
    }
}

/// Case 34: a run that ends far above the loss of guessing says so, and one that learns does not.
#[test]
fn a_high_final_loss_is_warned_about() {
    let place = Workplace::new();
    place.spec("dense", "optimizer: {dense: {adamw: {learning_rate: 1}}}");
    let warned = train(&place, &[], 0);
    assert!(warned.contains("far above") && warned.contains("of guessing"), "{warned}");
    let log = fs::read_to_string(place.path("run/log.txt")).expect("a log");
    assert!(log.contains("far above"), "{log}");
    place.spec("dense", "");
    let quiet = stderr(&place.run(&["train", "spec.yaml", "--run-dir", "learns"], 0));
    assert!(!quiet.contains("far above"), "{quiet}");
}

/// Case 31: a text shorter than a block stops the first start, and the corrected spec begins in the
/// same folder.
#[test]
fn a_first_start_on_a_short_text_leaves_the_folder_free() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    let flags = ["--set", "model.block_size=4900", "--set", "eval.tokens=4900"];
    let error = train(&place, &flags, 1);
    assert!(error.contains("block_size 4900") && error.contains("more text"), "{error}");
    train(&place, &[], 0);
}

/// Case 40: nothing is written through links.
#[cfg(unix)]
#[test]
fn links_inside_a_run_are_refused() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    let names = ["lrpt.lock", "log.txt", "metrics.jsonl", "metrics.csv", "spectra.jsonl"];
    for name in names.into_iter().chain(["tensorboard", "checkpoints", "samples"]) {
        fs::create_dir_all(place.path("run")).expect("a folder");
        fs::write(place.path("victim"), "precious").expect("writable");
        let link = place.path("run").join(name);
        std::os::unix::fs::symlink(place.path("victim"), &link).expect("a link");
        let error = train(&place, &[], 2);
        assert!(error.contains(name) && error.contains("symbolic link"), "{error}");
        assert_eq!(fs::read_to_string(place.path("victim")).expect("the file"), "precious");
        fs::remove_file(&link).expect("the link");
    }
    let pipe = place.path("run/log.txt");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let error = train(&place, &[], 2);
    assert!(error.contains("log.txt") && error.contains("a pipe or a device"), "{error}");
}

/// A run may hold a link to what never ends in the place of a description; it is not read.
#[cfg(unix)]
#[test]
fn what_is_no_ordinary_file_is_not_read() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    train(&place, &["--stop-after", "2"], 0);
    let in_checkpoint = "checkpoints/step-00000002/manifest.json";
    for (name, commands) in [
        ("plan.yaml", ["inspect", "eval", "resume", "report"].as_slice()),
        ("metrics.jsonl", &["resume", "report"]),
        ("tokenizer.json", &["generate", "resume"]),
        (in_checkpoint, &["inspect"]),
    ] {
        let (path, aside) = (place.path("run").join(name), place.path("aside"));
        fs::rename(&path, &aside).expect("renamed");
        std::os::unix::fs::symlink("/dev/zero", &path).expect("a link");
        for command in commands {
            let output = place.lrpt(&[command, "run"]).output().expect("it runs");
            assert!(matches!(output.status.code(), Some(1 | 2)), "{command} {name}: {output:?}");
            let error = stderr(&output);
            let is_named = error.contains("no ordinary file") || error.contains("symbolic link");
            assert!(is_named, "{command} {name}: {error}");
        }
        fs::remove_file(&path).expect("the link");
        fs::rename(&aside, &path).expect("back");
    }
    place.run(&["resume", "run"], 0);
}

/// A pipe in the place of a file would be waited for: wherever it stands in a folder of someone
/// else's, it is not opened.
#[cfg(unix)]
#[test]
fn pipes_are_not_waited_for() {
    let place = Workplace::new();
    place.spec("dense", EVERY_STEP);
    train(&place, &["--stop-after", "2"], 0);
    place.run(&["export", "run", "--to", "exported"], 0);
    let prepared = fs::read_dir(place.path("data")).expect("a folder").next().expect("one");
    let prepared = prepared.expect("an entry").path();
    let from = |init: &str| {
        let init = format!("init={init}");
        ["train", "spec.yaml", "--run-dir", "other", "--set"]
            .map(String::from)
            .into_iter()
            .chain([init])
            .collect()
    };
    let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
    fs::write(place.path("model.gguf"), "").expect("a file");
    for (path, command, code, expected) in [
        (place.path("run/checkpoints/latest"), words("inspect run"), 0, ""),
        (prepared.join("dataset.json"), words("eval run"), 0, "preparing it again"),
        (prepared.join("train.tokens"), words("eval run"), 0, "preparing it again"),
        (prepared.join("val.tokens"), words("eval run"), 0, "preparing it again"),
        (place.path("exported/config.json"), from("{hf: exported}"), 1, "no ordinary file"),
        (place.path("exported/model.safetensors"), from("{hf: exported}"), 1, "no ordinary file"),
        (place.path("model.gguf"), from("{gguf: model.gguf}"), 1, "no ordinary file"),
    ] {
        let aside = place.path("aside");
        fs::rename(&path, &aside).expect("renamed");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.expect("mkfifo").success());
        let binary = env!("CARGO_BIN_EXE_lrpt");
        let mut ended = std::process::Command::new("timeout");
        ended.current_dir(place.path(".")).args(["60", binary, "--threads", "2"]).args(&command);
        let output = ended.output().expect("it runs");
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{command:?} {path:?}: {error}");
        assert!(error.contains(expected), "{command:?} {path:?}: {error}");
        // Over the pipe, or over what was prepared again.
        fs::rename(&aside, &path).expect("back");
    }
}

/// Case 40: a run begun elsewhere says where its prepared data are, and nothing is written there.
#[test]
fn the_data_folder_that_a_run_names_is_not_written_to() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    train(&place, &["--stop-after", "2"], 0);
    let (victim, elsewhere) = (place.path("victim"), place.path("elsewhere"));
    fs::create_dir(&victim).expect("a folder");
    fs::create_dir(&elsewhere).expect("a folder");
    fs::rename(place.path("data"), place.path("gone")).expect("renamed");
    let path = place.path("run/env.json");
    let text = fs::read_to_string(&path).expect("the environment");
    let mut environment: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    environment["data_dir"] = victim.display().to_string().into();
    fs::write(&path, environment.to_string()).expect("writable");
    for arguments in [["eval", "../run"].as_slice(), &["resume", "../run", "--stop-after", "3"]] {
        let output = place.lrpt(arguments).current_dir(&elsewhere).output().expect("it runs");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    }
    assert_eq!(fs::read_dir(&victim).expect("a folder").count(), 0, "something was written");
    assert!(elsewhere.join("data").exists(), "the data was prepared here");
}

/// Ordinary tools make copies of checkpoints out of links (`cp -rL`, `scp -r`): `latest` and `best`
/// say the same in the copy, and it goes on to the same bytes.
#[cfg(unix)]
#[test]
fn a_copy_that_followed_links_goes_on() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    train(&place, &["--stop-after", "7"], 0);
    let mut copy = std::process::Command::new("cp");
    let copied = copy.args(["-rL", "run", "copy"]).current_dir(place.path("")).status();
    assert!(copied.expect("cp").success());
    let ends = |run: &str| {
        let checkpoints = lrpt::checkpoint::Checkpoints::open(&place.path(run));
        (checkpoints.latest(), checkpoints.best())
    };
    assert!(!place.path("copy/checkpoints/best").is_symlink());
    assert_eq!(ends("run"), (Some(7), Some(4)));
    assert_eq!(ends("copy"), (Some(7), Some(4)));
    for run in ["run", "copy"] {
        place.run(&["resume", run], 0);
    }
    assert_same(&place.trajectory("run", 12), &place.trajectory("copy", 12), "copied");
    assert_eq!(ends("copy"), ends("run"));
    assert!(place.path("copy/checkpoints/latest").is_symlink());
}

/// Case 41: what a kill in the last save leaves is mended at the next start.
#[test]
fn the_next_start_mends_a_save_that_was_killed() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    train(&place, &[], 0);
    let whole = place.trajectory("run", 12);
    let checkpoints = place.path("run/checkpoints");
    fs::remove_file(checkpoints.join("latest")).expect("a link");
    fs::create_dir(checkpoints.join(".step-00000012.x.tmp")).expect("a folder");
    fs::write(place.path("run/.metrics.jsonl.x.tmp"), "half").expect("writable");
    place.run(&["resume", "run"], 0);
    assert_eq!(lrpt::checkpoint::Checkpoints::open(&place.path("run")).latest(), Some(12));
    assert!(!checkpoints.join(".step-00000012.x.tmp").exists());
    assert!(!place.path("run/.metrics.jsonl.x.tmp").exists());
    assert_same(&whole, &place.trajectory("run", 12), "mended");
}

/// A run whose only checkpoint is gone does not begin again without a word, though its metrics
/// alone could be those of a run killed before its first checkpoint.
#[test]
fn a_lost_only_checkpoint_is_refused() {
    let place = Workplace::new();
    place.spec(LOW_RANK, "checkpoint: {every: 250}");
    train(&place, &["--stop-after", "3"], 0);
    let old = fs::read(place.path("run/metrics.jsonl")).expect("metrics");
    fs::remove_dir_all(place.path("run/checkpoints")).expect("checkpoints");
    let error = stderr(&place.run(&["resume", "run"], 2));
    assert!(error.contains("has trained before") && error.contains("--restart"), "{error}");
    assert_eq!(fs::read(place.path("run/metrics.jsonl")).expect("metrics"), old);
    // Begun anew, it is a run without a checkpoint again until it has one.
    place.run(&["resume", "run", "--restart", "--stop-after", "2"], 0);
    assert!(place.path("run/first-checkpoint.json").exists());
}

/// Metrics that end before the checkpoint are reported with both steps, and whole ones are not.
#[test]
fn a_hole_between_metrics_and_checkpoint_is_reported() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    train(&place, &["--stop-after", "7"], 0);
    let path = place.path("run/metrics.jsonl");
    let text = fs::read_to_string(&path).expect("metrics");
    let kept: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains("\"step\":6,") && !line.contains("\"step\":7,"))
        .collect();
    assert!(kept.len() + 2 <= text.lines().count(), "{text}");
    fs::write(&path, kept.join("\n") + "\n").expect("writable");
    let warned = stderr(&place.run(&["resume", "run", "--stop-after", "9"], 0));
    assert!(
        warned.contains("ends at step 5") && warned.contains("checkpoint is of step 7"),
        "{warned}"
    );
    let quiet = stderr(&place.run(&["resume", "run"], 0));
    assert!(!quiet.contains("hole"), "{quiet}");
}

/// Case 41: the pruning that a killed process did not come to is done at the next start, also of a
/// run that has ended.
#[test]
fn the_next_start_prunes() {
    let place = Workplace::new();
    place.spec(LOW_RANK, "checkpoint: {every: 1, keep_last: 9}");
    train(&place, &[], 0);
    let steps = || -> Vec<u64> {
        let entries = lrpt::checkpoint::Checkpoints::open(&place.path("run")).list();
        entries.expect("checkpoints").iter().map(|entry| entry.step).collect()
    };
    assert_eq!(steps(), (4..=12).collect::<Vec<_>>());
    train(&place, &["--resume", "--set", "checkpoint.keep_last=2"], 0);
    let best = lrpt::checkpoint::Checkpoints::open(&place.path("run")).best().expect("a best");
    let mut kept = vec![best, 11, 12];
    kept.sort_unstable();
    kept.dedup();
    assert_eq!(steps(), kept);
}

/// Case 9: a checkpoint that the system does not let one read is not damaged.
#[cfg(unix)]
#[test]
fn a_failed_read_renames_nothing() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    train(&place, &["--stop-after", "2"], 0);
    // A link to itself: the system's ELOOP, for every user, as EMFILE and EIO are.
    let model = place.path("run/checkpoints/step-00000002/model.safetensors");
    fs::remove_file(&model).expect("a file");
    std::os::unix::fs::symlink(&model, &model).expect("a link");
    let error = stderr(&place.run(&["resume", "run"], 1));
    assert!(error.contains("no damage"), "{error}");
    assert!(place.path("run/checkpoints/step-00000002").exists(), "it was renamed");
}

/// Case 38: a step that has passed already is a stop at once.
#[test]
fn stop_after_a_step_that_has_passed_stops() {
    let place = Workplace::new();
    place.spec(LOW_RANK, EVERY_STEP);
    train(&place, &["--stop-after", "5"], 0);
    place.run(&["resume", "run", "--stop-after", "3"], 0);
    assert_eq!(lrpt::checkpoint::Checkpoints::open(&place.path("run")).latest(), Some(5));
}
