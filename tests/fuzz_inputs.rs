//! Inputs that once broke something, under tests/fuzz/inputs/TARGET/, through the harness of
//! cargo-fuzz, and some that are wrong in a known way.

#[path = "fuzz/harness.rs"]
mod harness;

use std::path::Path;

/// A target with its name.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 11] = [
    ("spec", harness::spec),
    ("plan", harness::plan),
    ("sweep", harness::sweep),
    ("tokenizer", harness::tokenizer),
    ("shard", harness::shard),
    ("checkpoint", harness::checkpoint),
    ("import", harness::import),
    ("gguf", harness::gguf),
    ("json_lines", harness::json_lines),
    ("chat", harness::chat),
    ("operations", harness::operations),
];

#[test]
fn what_was_found_stays_mended() {
    let inputs = Path::new("tests/fuzz/inputs");
    let mut folders = 0;
    for (target, harness) in TARGETS {
        let Ok(files) = std::fs::read_dir(inputs.join(target)) else { continue };
        folders += 1;
        for file in files {
            harness(&std::fs::read(file.expect("an entry").path()).expect("a file"));
        }
    }
    let on_disk = std::fs::read_dir(inputs).expect("a folder").count();
    assert_eq!(folders, on_disk, "a folder of {} belongs to no target", inputs.display());
}

#[test]
fn every_target_takes_nothing_and_noise() {
    let noise: Vec<u8> =
        (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (_, harness) in TARGETS {
        harness(&[]);
        harness(&noise[..7]);
        harness(&noise);
    }
}

#[test]
fn every_operation_is_as_its_portable_path_on_odd_shapes() {
    for which in 0..6u8 {
        for (a, b) in [(0, 0), (1, 36), (2, 11), (0, 69)] {
            harness::operations(&[which, a, b, b / 2, a * 13, b / 6]);
        }
    }
}
