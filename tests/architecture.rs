//! The arrows of src/lib.rs hold: a module imports only what lies below it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Module -> modules of this crate it may import.
const ALLOWED: &[(&str, &[&str])] = &[
    ("allocator", &[]),
    ("error", &[]),
    ("figures", &[]),
    ("fs", &[]),
    ("rng", &[]),
    ("plot", &["figures"]),
    ("device", &[]),
    ("tensor_file", &["fs"]),
    ("gguf_file", &["fs"]),
    ("parallel", &["error"]),
    ("kernels", &[]),
    ("linalg", &["kernels", "rng"]),
    ("lowrank", &["linalg", "rng"]),
    ("ops", &["kernels", "rng"]),
    ("spec", &["error"]),
    ("params", &["lowrank", "rng", "spec"]),
    ("model", &["lowrank", "ops", "params", "rng", "spec"]),
    ("checkpoint", &["error", "fs", "rng"]),
    (
        "optim",
        &["error", "kernels", "linalg", "lowrank", "ops", "parallel", "params", "rng", "spec"],
    ),
    ("account", &["figures", "model", "ops", "optim", "params", "spec"]),
    ("hub", &["data", "fs", "gguf_file", "lowrank", "model", "params", "spec", "tensor_file"]),
    ("data", &["error", "figures", "fs", "gguf_file", "rng", "spec"]),
    ("record", &["figures", "fs"]),
    (
        "train",
        &[
            "account",
            "checkpoint",
            "data",
            "device",
            "error",
            "fs",
            "hub",
            "lowrank",
            "model",
            "ops",
            "optim",
            "parallel",
            "params",
            "record",
            "rng",
            "spec",
        ],
    ),
    (
        "bench",
        &[
            "account", "data", "device", "figures", "fs", "linalg", "lowrank", "model", "ops",
            "params", "plot", "rng", "spec", "train",
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
    (
        "report",
        &["account", "data", "error", "figures", "fs", "model", "plot", "record", "spec", "train"],
    ),
    ("watch", &["checkpoint", "error", "figures", "record", "spec", "train"]),
    (
        "sweep",
        &[
            "account",
            "bench",
            "checkpoint",
            "data",
            "error",
            "figures",
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
            "account",
            "bench",
            "checkpoint",
            "data",
            "demo",
            "device",
            "error",
            "figures",
            "fs",
            "hub",
            "linalg",
            "lowrank",
            "model",
            "ops",
            "optim",
            "parallel",
            "params",
            "plot",
            "record",
            "report",
            "rng",
            "selftest",
            "spec",
            "sweep",
            "train",
            "watch",
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

/// The rooms that a file imports from, with the line of each: `crate::room`, `crate::{room, room}`
/// over any number of lines, and `super::` as far as the crate's root.
fn imports(text: &str, depth: usize) -> Vec<(usize, String)> {
    let code: String = text
        .lines()
        .map(|line| if line.trim_start().starts_with("//") { "" } else { line })
        .collect::<Vec<_>>()
        .join("\n");
    let line_of = |position: usize| code[..position].matches('\n').count() + 1;
    let name = |rest: &str| -> String {
        rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let to_root = "super::".repeat(depth);
    let mut found = Vec::new();
    for prefix in ["crate::", to_root.as_str()] {
        for (position, _) in code.match_indices(prefix) {
            let rest = &code[position + prefix.len()..];
            match rest.strip_prefix('{') {
                None => found.push((line_of(position), name(rest))),
                Some(group) => {
                    found.extend(first_names(group).map(|name| (line_of(position), name)));
                }
            }
        }
    }
    found
}

/// The first name of every path in a braced list, up to its closing brace.
fn first_names(group: &str) -> impl Iterator<Item = String> {
    let (mut level, mut names, mut fresh) = (0, vec![String::new()], true);
    for c in group.chars() {
        match c {
            '}' if level == 0 => break,
            '{' => level += 1,
            '}' => level -= 1,
            ',' if level == 0 => {
                names.push(String::new());
                fresh = true;
            }
            c if fresh && (c.is_alphanumeric() || c == '_') => {
                names.last_mut().expect("one is there").push(c)
            }
            c if c.is_whitespace() => {}
            _ => fresh = false,
        }
    }
    names.into_iter().filter(|name| !name.is_empty())
}

#[test]
fn every_way_to_import_is_seen() {
    let text = "use crate::ops::{Tape, Value};\n\
                // use crate::report::Page;\n\
                use crate::{\n    error::{Failure, exit_code},\n    train, spec::Plan,\n};\n\
                use super::super::sweep::Manifest;\n\
                use super::sibling::Thing;\n";
    let found = imports(text, 2);
    let rooms: Vec<(usize, &str)> =
        found.iter().map(|(line, name)| (*line, name.as_str())).collect();
    assert_eq!(rooms, [(1, "ops"), (3, "error"), (3, "train"), (3, "spec"), (7, "sweep")]);
}

/// A file says one thing and fits in a head.
#[test]
fn no_file_has_more_than_400_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files);
    let long: Vec<String> = files
        .iter()
        .map(|file| (file, std::fs::read_to_string(file).expect("readable").lines().count()))
        .filter(|(_, lines)| *lines > 400)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
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
        if matches!(module.as_str(), "lib" | "main" | "build") {
            continue;
        }
        let Some(below) = allowed.get(module.as_str()) else {
            wrong.push(format!("{module} is not in the table of tests/architecture.rs"));
            continue;
        };
        let text = std::fs::read_to_string(&file).expect("readable");
        let is_mod = file.file_name().is_some_and(|name| name == "mod.rs");
        let depth = relative.components().count() - usize::from(is_mod);
        for (line, name) in imports(&text, depth) {
            if name != module
                && allowed.contains_key(name.as_str())
                && !below.contains(&name.as_str())
            {
                wrong
                    .push(format!("{}:{line}: {module} may not import {name}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
