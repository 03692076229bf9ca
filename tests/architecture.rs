//! The arrows of src/lib.rs hold: a module imports only what lies below it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Module -> modules of this crate it may import.
const ALLOWED: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("fs", &[]),
    ("rng", &[]),
    ("plot", &[]),
    ("device", &[]),
    ("kernels", &[]),
    ("linalg", &["kernels", "rng"]),
    ("lowrank", &["linalg", "rng"]),
    ("ops", &["kernels", "rng"]),
    ("spec", &["error"]),
    ("params", &["lowrank", "rng", "spec"]),
    ("model", &["lowrank", "ops", "params", "rng", "spec"]),
    ("checkpoint", &["error", "fs", "rng"]),
    ("optim", &["error", "kernels", "linalg", "lowrank", "ops", "params", "rng", "spec"]),
    ("data", &["error", "fs", "rng", "spec"]),
    ("record", &["fs"]),
    (
        "train",
        &[
            "checkpoint",
            "data",
            "device",
            "error",
            "fs",
            "lowrank",
            "model",
            "ops",
            "optim",
            "params",
            "record",
            "rng",
            "spec",
        ],
    ),
    (
        "bench",
        &[
            "data", "device", "linalg", "lowrank", "model", "ops", "params", "plot", "rng", "spec",
            "train",
        ],
    ),
    (
        "selftest",
        &[
            "checkpoint",
            "data",
            "device",
            "linalg",
            "lowrank",
            "model",
            "ops",
            "optim",
            "params",
            "rng",
            "spec",
            "train",
        ],
    ),
    ("demo", &["linalg", "lowrank", "ops", "optim", "plot", "rng", "spec"]),
    ("report", &["data", "error", "fs", "model", "plot", "spec", "train"]),
    (
        "sweep",
        &[
            "bench",
            "checkpoint",
            "data",
            "error",
            "fs",
            "model",
            "record",
            "report",
            "spec",
            "train",
        ],
    ),
    (
        "cli",
        &[
            "bench",
            "checkpoint",
            "data",
            "demo",
            "device",
            "error",
            "fs",
            "linalg",
            "lowrank",
            "model",
            "ops",
            "optim",
            "params",
            "plot",
            "record",
            "report",
            "rng",
            "selftest",
            "spec",
            "sweep",
            "train",
        ],
    ),
];

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("src is readable") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn modules_import_only_what_lies_below_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&src).expect("under src");
        let module = relative
            .components()
            .next()
            .expect("a name")
            .as_os_str()
            .to_string_lossy()
            .replace(".rs", "");
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(below) = allowed.get(module.as_str()) else {
            wrong.push(format!("{module} is not in the table of tests/architecture.rs"));
            continue;
        };
        let text = std::fs::read_to_string(&file).expect("readable");
        for (number, line) in
            text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            for import in line.split("crate::").skip(1) {
                let name: String =
                    import.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if name != module
                    && allowed.contains_key(name.as_str())
                    && !below.contains(&name.as_str())
                {
                    wrong.push(format!(
                        "{}:{}: {module} may not import {name}",
                        relative.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
