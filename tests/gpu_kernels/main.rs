//! The kernels for NVIDIA GPUs against their formulas, on a machine without one: compiled as C++ with
//! a header that runs the threads of a block as threads (`include/cuda_bf16.h`).

use std::path::Path;
use std::process::Command;

/// A compiler of C++ 20, if there is one; the README asks for none.
fn compiler() -> Option<&'static str> {
    let probe = "#include <barrier>\nint main() { std::barrier<> one(1); }";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = folder.path().join("probe.cpp");
    std::fs::write(&source, probe).expect("the folder can be written to");
    ["c++", "g++", "clang++"].into_iter().find(|compiler| {
        let mut command = Command::new(compiler);
        command.args(["-std=c++20", "-fsyntax-only"]).arg(&source);
        command.output().is_ok_and(|output| output.status.success())
    })
}

#[test]
fn kernels_compute_their_formulas() {
    let Some(compiler) = compiler() else {
        println!("skipped: no compiler of C++ 20 with <barrier>");
        return;
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu_kernels");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join("check");
    let mut command = Command::new(compiler);
    command.args(["-std=c++20", "-O1", "-pthread", "-Wno-unknown-pragmas", "-I"]);
    command.arg(here.join("include")).arg(here.join("check.cpp")).arg("-o").arg(&program);
    let compiled = command.output().expect("the compiler starts");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let output = Command::new(&program).output().expect("the program starts");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !lines.contains("MISS"), "{lines}");
    assert!(lines.lines().filter(|line| line.starts_with("ok")).count() > 130, "{lines}");
}
