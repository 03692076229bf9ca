//! Round trips and damage of every kind; `processes` has those that are killed or kept out.

mod processes;

use super::*;
use candle_core::{DType, Device};
use serde_json::json;
use std::fs;
use std::path::Path;

const FILES: [&str; 5] =
    ["config.json", "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"];

/// A snapshot whose every part tells its step.
fn snapshot(step: u64, size: usize) -> Snapshot {
    let filled =
        |dtype| Tensor::full(step as f64, size, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    Snapshot {
        step,
        config: json!({"step": step, "n_layer": 2}),
        model: vec![
            ("a".into(), filled(DType::F32)),
            ("b.scalar".into(), Tensor::new(step as f32, &Device::Cpu).unwrap()),
        ],
        optimizer: vec![
            ("a.count".into(), filled(DType::U32)),
            ("a.moment".into(), filled(DType::F64)),
        ],
        state: json!({"tokens": step * 100, "best_loss": 1.0 / (step as f64 + 3.0)}),
    }
}

/// Equality to the bit, tensors and JSON alike.
fn assert_same(read: &Snapshot, written: &Snapshot) {
    assert_eq!(read.step, written.step);
    assert_eq!(read.config, written.config);
    assert_eq!(read.state, written.state);
    assert_eq!(tensors::encode(&read.model).unwrap(), tensors::encode(&written.model).unwrap());
    assert_eq!(
        tensors::encode(&read.optimizer).unwrap(),
        tensors::encode(&written.optimizer).unwrap()
    );
}

fn steps(checkpoints: &Checkpoints) -> Vec<u64> {
    checkpoints.list().unwrap().iter().map(|entry| entry.step).collect()
}

/// A run with checkpoints of these steps.
fn run_with(saved: &[u64]) -> (tempfile::TempDir, Checkpoints) {
    let run = tempfile::tempdir().unwrap();
    let mut checkpoints = Checkpoints::open(run.path());
    for &step in saved {
        checkpoints.save(&snapshot(step, 5)).unwrap();
    }
    (run, checkpoints)
}

fn message(error: anyhow::Error) -> String {
    format!("{error:#}")
}

#[test]
fn what_is_saved_is_read_back_and_linked() {
    let (run, mut checkpoints) = run_with(&[]);
    assert!(checkpoints.list().unwrap().is_empty());
    assert!(checkpoints.load_latest().unwrap().0.is_none());

    for step in [9, 100, 20] {
        let path = checkpoints.save(&snapshot(step, 5)).unwrap();
        assert_eq!(path, run.path().join(format!("checkpoints/step-{step:08}")));
        assert_eq!(verify(&path).unwrap().step, step);
        assert_same(&load(&path).unwrap(), &snapshot(step, 5));
        assert_eq!(checkpoints.latest(), Some(step));
    }
    assert_eq!(steps(&checkpoints), [9, 20, 100]);
    assert_eq!(checkpoints.load_latest().unwrap().0.unwrap().step, 100);

    assert_eq!(checkpoints.best(), None);
    checkpoints.mark_best(9).unwrap();
    assert_eq!(checkpoints.best(), Some(9));
    assert_eq!(load(&run.path().join("checkpoints/best")).unwrap().step, 9);
    assert!(
        message(checkpoints.mark_best(10).unwrap_err())
            .contains("step-00000010: there is no such checkpoint")
    );
}

#[test]
fn equal_snapshots_give_equal_bytes() {
    let (first, _) = run_with(&[7]);
    let (second, _) = run_with(&[7]);
    for file in FILES {
        let read = |run: &Path| fs::read(run.join("checkpoints/step-00000007").join(file)).unwrap();
        assert_eq!(read(first.path()), read(second.path()), "{file}");
    }
}

#[test]
fn a_step_saved_again_replaces_the_old_one() {
    let (run, mut checkpoints) = run_with(&[1]);
    checkpoints.save(&snapshot(1, 11)).unwrap();
    assert_same(&checkpoints.load_latest().unwrap().0.unwrap(), &snapshot(1, 11));
    assert_eq!(names(&run.path().join("checkpoints")), ["latest", "step-00000001"]);
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn old_checkpoints_go_but_not_the_best() {
    let (_run, mut checkpoints) = run_with(&[1, 2, 3, 4, 5]);
    checkpoints.mark_best(2).unwrap();
    assert_eq!(checkpoints.prune(2).unwrap(), [1, 3]);
    assert_eq!(steps(&checkpoints), [2, 4, 5]);
    assert_eq!(checkpoints.best(), Some(2));
}

#[test]
fn nothing_is_deleted_for_the_sake_of_a_damaged_newest() {
    let (run, checkpoints) = run_with(&[1, 2, 3]);
    fs::remove_file(checkpoints.path(3).join("state.json")).unwrap();
    let mut other_process = Checkpoints::open(run.path());
    let error = message(other_process.prune(1).unwrap_err());
    assert!(error.starts_with("no older checkpoint was deleted"), "{error}");
    assert_eq!(steps(&checkpoints), [1, 2, 3]);
}

/// Damages the newest of the checkpoints 1 and 2, and expects it to be reported (with a reason that
/// says `needle`) and 1 to be used.
fn expect_fallback(what: &str, needle: &str, damage: impl FnOnce(&Checkpoints)) {
    let (_run, checkpoints) = run_with(&[1, 2]);
    damage(&checkpoints);
    let (found, damaged) = checkpoints.load_latest().unwrap();
    assert_eq!(damaged.len(), 1, "{what}: not noticed");
    assert_eq!(damaged[0].path, checkpoints.path(2), "{what}");
    assert!(damaged[0].reason.contains(needle), "{what}: {}", damaged[0].reason);
    assert_same(
        &found.unwrap_or_else(|| panic!("{what}: nothing to fall back to")),
        &snapshot(1, 5),
    );
    assert!(
        verify(&checkpoints.path(2)).is_err() || what.starts_with("state of another step"),
        "{what}: verify did not notice"
    );
}

#[test]
fn a_missing_file_is_noticed() {
    for file in FILES {
        expect_fallback(&format!("{file} missing"), file, |checkpoints| {
            fs::remove_file(checkpoints.path(2).join(file)).unwrap()
        });
    }
}

#[test]
fn a_truncated_file_is_noticed() {
    for file in FILES {
        for keep in [0.0, 0.5, 0.99] {
            expect_fallback(&format!("{file} cut to {keep}"), file, |checkpoints| {
                let path = checkpoints.path(2).join(file);
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..(bytes.len() as f64 * keep) as usize]).unwrap();
            });
        }
    }
}

#[test]
fn a_flipped_bit_is_noticed_wherever_it_is() {
    let (_run, checkpoints) = run_with(&[1, 2]);
    for file in FILES {
        let path = checkpoints.path(2).join(file);
        let bytes = fs::read(&path).unwrap();
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1 << (position % 8);
            fs::write(&path, &flipped).unwrap();
            assert!(
                load(&checkpoints.path(2)).is_err(),
                "{file}: byte {position} changed and nobody noticed"
            );
        }
        fs::write(&path, &bytes).unwrap();
        load(&checkpoints.path(2)).unwrap();
    }
}

#[test]
fn swapped_files_and_folders_are_noticed() {
    for file in FILES {
        let needle = if file == "manifest.json" { "the manifest is of step 1" } else { file };
        expect_fallback(&format!("{file} of another checkpoint"), needle, |checkpoints| {
            fs::copy(checkpoints.path(1).join(file), checkpoints.path(2).join(file)).unwrap();
        });
    }
    expect_fallback(
        "the whole folder of another checkpoint",
        "the manifest is of step 1, but the folder is called step-00000002",
        |checkpoints| {
            for file in FILES {
                fs::copy(checkpoints.path(1).join(file), checkpoints.path(2).join(file)).unwrap();
            }
        },
    );
    expect_fallback(
        "state of another step under a matching manifest",
        "state.json is of step 1, but the manifest is of step 2",
        |checkpoints| {
            let folder = checkpoints.path(2);
            fs::copy(checkpoints.path(1).join("state.json"), folder.join("state.json")).unwrap();
            let state = fs::read(folder.join("state.json")).unwrap();
            let mut manifest: Manifest =
                serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
            manifest.files[3] =
                FileEntry::new("state.json", state.len() as u64, blake3::hash(&state));
            fs::write(folder.join("manifest.json"), manifest.to_bytes().unwrap()).unwrap();
        },
    );
}

#[test]
fn another_format_version_is_refused_by_number() {
    expect_fallback(
        "version 2",
        "format version 2, but this lrpt reads version 1",
        |checkpoints| {
            let path = checkpoints.path(2).join("manifest.json");
            let text = fs::read_to_string(&path)
                .unwrap()
                .replace("\"format_version\": 1", "\"format_version\": 2, \"new_key\": 0");
            fs::write(path, text).unwrap();
        },
    );
}

#[test]
fn a_damaged_checkpoint_is_set_aside_and_its_step_saved_anew() {
    let (run, mut checkpoints) = run_with(&[1, 2]);
    checkpoints.mark_best(2).unwrap();
    fs::remove_file(checkpoints.path(2).join("model.safetensors")).unwrap();
    let (_, damaged) = checkpoints.load_latest().unwrap();
    checkpoints.set_aside(&damaged[0]).unwrap();
    assert_eq!(
        (checkpoints.latest(), checkpoints.best(), steps(&checkpoints)),
        (Some(1), None, vec![1])
    );
    assert_eq!(
        names(&run.path().join("checkpoints")),
        ["damaged-step-00000002", "latest", "step-00000001"]
    );

    checkpoints.save(&snapshot(2, 5)).unwrap();
    let (found, damaged) = checkpoints.load_latest().unwrap();
    assert_same(&found.unwrap(), &snapshot(2, 5));
    assert!(damaged.is_empty());
}

#[test]
fn a_damaged_checkpoint_of_the_same_step_is_overwritten() {
    let (run, mut checkpoints) = run_with(&[1, 2]);
    fs::write(checkpoints.path(2).join("model.safetensors"), b"").unwrap();
    checkpoints.save(&snapshot(2, 5)).unwrap();
    assert_same(&load(&checkpoints.path(2)).unwrap(), &snapshot(2, 5));
    assert_eq!(
        names(&run.path().join("checkpoints")),
        ["latest", "step-00000001", "step-00000002"]
    );
}

#[test]
fn what_a_killed_process_left_counts_for_nothing_and_goes_at_the_next_save() {
    let (run, mut checkpoints) = run_with(&[1]);
    let folder = run.path().join("checkpoints");
    for leftover in [".step-00000002.abc.tmp", ".step-00000000.deleted.tmp"] {
        fs::create_dir(folder.join(leftover)).unwrap();
        fs::copy(
            checkpoints.path(1).join("model.safetensors"),
            folder.join(leftover).join("model.safetensors"),
        )
        .unwrap();
    }
    pointer::set(&folder, "latest", 5).unwrap();
    fs::rename(folder.join("latest"), folder.join(".latest.1.tmp")).unwrap();

    let (found, damaged) = checkpoints.load_latest().unwrap();
    assert_eq!((found.unwrap().step, damaged.len(), steps(&checkpoints)), (1, 0, vec![1]));
    checkpoints.save(&snapshot(3, 5)).unwrap();
    assert_eq!(names(&folder), ["latest", "step-00000001", "step-00000003"]);
}

#[test]
fn a_replacement_that_never_came_leaves_the_old_checkpoint() {
    let (run, mut checkpoints) = run_with(&[1, 2]);
    let folder = run.path().join("checkpoints");
    fs::rename(checkpoints.path(2), folder.join(".replaced-step-00000002")).unwrap();
    assert_same(&checkpoints.load_latest().unwrap().0.unwrap(), &snapshot(2, 5));
    checkpoints.save(&snapshot(3, 5)).unwrap();
    assert_same(&load(&checkpoints.path(2)).unwrap(), &snapshot(2, 5));
    assert_eq!(names(&folder), ["latest", "step-00000001", "step-00000002", "step-00000003"]);
}

/// A file of absurd length that takes no room on the disk, and one cut short, are refused by their
/// lengths, before a byte is read or memory is asked for.
#[test]
fn lengths_are_checked_before_anything_is_read() {
    for (length, said) in [(1u64 << 43, "8796093022208 bytes"), (3, "has 3 bytes")] {
        for file in ["model.safetensors", "optimizer.safetensors", "config.json", "manifest.json"] {
            let (_run, checkpoints) = run_with(&[1]);
            let path = checkpoints.path(1);
            let opened = fs::File::options().write(true).open(path.join(file)).unwrap();
            opened.set_len(length).unwrap();
            let found = [load(&path).map(drop), verify(&path).map(drop)];
            for error in found.map(|found| message(found.unwrap_err())) {
                let said = if file == "manifest.json" { file } else { said };
                assert!(error.contains(said) && error.contains("use another one"), "{error}");
            }
        }
    }
}
