//! `lrpt selftest` through the binary: on the CPU it compares the code that a GPU runs with the
//! CPU's own.

mod support;

use support::Workplace;

#[test]
fn the_path_of_a_device_agrees_with_the_cpu() {
    let output = Workplace::new().run(&["selftest", "--device", "cpu", "--steps", "20"], 0);
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    for part in [
        "causal attention, dropout, bf16",
        "QR of ill-conditioned",
        "DLRA matrix adam",
        "20 steps, bf16",
        "resumed on the CPU",
        "comparisons agree",
    ] {
        assert!(table.contains(part), "{part} in {table}");
    }
    assert!(!table.contains("MISS"), "{table}");
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let place = Workplace::new();
    let output = place
        .lrpt(&["selftest", "--device", "cuda:7"])
        .env("RUST_BACKTRACE", "1")
        .output()
        .expect("the binary starts");
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let remedy = if cfg!(feature = "cuda") { "lrpt doctor" } else { "--features cuda" };
    assert!(error.contains("cuda:7") && error.contains(remedy), "{error}");
    assert_eq!(error.lines().count(), 1, "no backtrace for the user's mistake: {error}");
    let output = place.run(&["selftest", "--device", "tpu"], 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("`cuda:1`"));
}

#[test]
fn the_linear_algebra_is_compared_at_the_sizes_asked_for() {
    let place = Workplace::new();
    let sizes = ["--linalg", "30x20x12", "--linalg", "20x20x4"];
    let output = place.run(&[&["selftest", "--device", "cpu"], &sizes[..]].concat(), 0);
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    for part in [
        "30x20x12        new directions beside bases",
        "20x20x4         transport of a tangent vector",
        "comparisons agree",
    ] {
        assert!(table.contains(part), "{part} in {table}");
    }
    assert!(!table.contains("causal attention"), "nothing else is compared: {table}");
    for wrong in ["20x30x4", "30x20x20", "30x20x1", "30x20", "axbxc"] {
        let output = place.run(&["selftest", "--linalg", wrong], 2);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("such as 768x768x192"), "{error}");
    }
}
