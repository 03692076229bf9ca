//! Hashes of whole runs, to prove that a redesign changes no number.
//!
//! ```text
//! cargo run --release --example trajectories                                        prints a line a run
//! cargo run --release --example trajectories -- tests/tools/trajectories.txt        compares with that file
//! ```
//!
//! Every spec of `configs/methods` trains 30 steps on text made here, is stopped after step 13 and
//! resumed. Low-rank specs run a second time with ranks that change, and everything runs again on
//! the path of a device (`linalg: device`, `kernels: portable`). A line has the hash of
//! metrics.jsonl without the keys that tell the time, of every tensor of the model, and of every
//! tensor of the optimizer, each with its name, type and shape.
//!
//! The hashes are those of one kind of processor and of two threads: products add up in another
//! order elsewhere. Compare only with a file made on the same kind.

use anyhow::{Context, Result, ensure};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::process::Command;

const STEPS: u64 = 30;
const STOP_AFTER: u64 = 13;

/// One run: its name and what it changes of its spec.
struct Case {
    name: String,
    spec: PathBuf,
    overrides: Vec<String>,
}

fn main() -> Result<()> {
    let expected = std::env::args().nth(1).map(PathBuf::from);
    let expected = expected
        .map(|path| std::fs::read_to_string(&path).with_context(|| path.display().to_string()))
        .transpose()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binary = std::env::current_exe()?;
    // target/release/examples/trajectories -> target/release/lrpt
    let binary = binary
        .ancestors()
        .nth(2)
        .context("the example lies in target/<profile>/examples")?
        .join("lrpt");
    ensure!(
        binary.exists(),
        "{} is missing; build it with `cargo build --release`",
        binary.display()
    );
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("text.txt"), text())?;

    let mut differences = 0;
    for case in cases(root)? {
        let line = run(&binary, folder.path(), &case)?;
        let same = expected.as_ref().is_none_or(|text| text.lines().any(|other| other == line));
        differences += usize::from(!same);
        println!("{line}{}", if same { "" } else { "   DIFFERS" });
    }
    ensure!(differences == 0, "{differences} runs differ");
    Ok(())
}

/// All runs, in the order of the specs' names.
fn cases(root: &Path) -> Result<Vec<Case>> {
    let mut specs: Vec<PathBuf> = std::fs::read_dir(root.join("configs/methods"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    specs.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    specs.sort();
    let mut cases = Vec::new();
    for spec in specs {
        let name = spec.file_stem().context("a spec has a name")?.to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&spec)?;
        let mut variants = vec![(name.clone(), Vec::new())];
        if text.contains("dlra:") {
            let ranks = "rank={budget: {final_rank: 20, every: 6, settle: 3, grow_by: 4, start: 4, freeze: 26, max_rank: 40}}";
            variants.push((
                format!("{name}+ranks"),
                vec![ranks.to_owned(), "model.weights={low_rank: {rank: 32}}".to_owned()],
            ));
        }
        for (name, mut overrides) in variants {
            overrides.extend(method_overrides(&name));
            cases.push(Case {
                name: name.clone(),
                spec: spec.clone(),
                overrides: overrides.clone(),
            });
            overrides.extend(["linalg=device".to_owned(), "kernels=portable".to_owned()]);
            cases.push(Case { name: format!("{name}@device"), spec: spec.clone(), overrides });
        }
    }
    Ok(cases)
}

/// What makes a method's rare events happen within few steps.
fn method_overrides(name: &str) -> Vec<String> {
    let overrides: &[&str] = match name {
        "galore" => &["optimizer.matrices.galore.refresh_every=7"],
        "loro" => &[
            "optimizer.low_rank.loro.exact_every=8",
            "optimizer.low_rank.loro.restart_warmup_steps=2",
        ],
        "dlra-budget" => &[
            "rank.budget.every=6",
            "rank.budget.start=4",
            "rank.budget.freeze=26",
            "model.n_layer=2",
        ],
        "dlra-tolerance" => &[
            "rank.tolerance.grow_every=8",
            "rank.tolerance.settle=4",
            "rank.tolerance.start=4",
            "rank.tolerance.freeze=26",
        ],
        _ => &[],
    };
    overrides.iter().map(|text| (*text).to_owned()).collect()
}

/// Trains, stops, resumes, and returns the line of hashes.
fn run(binary: &Path, folder: &Path, case: &Case) -> Result<String> {
    let run_dir = folder.join("runs").join(&case.name);
    let spec = case.spec.to_string_lossy().into_owned();
    let mut arguments = vec![
        "train".to_owned(),
        spec,
        "--run-dir".to_owned(),
        run_dir.to_string_lossy().into_owned(),
    ];
    let common = [
        "data.source.text.path=text.txt",
        "model.n_layer=3",
        "model.dropout=0.1",
        "model.bias=true",
        "device=cpu",
        "train={max_steps: 30, batch_size: 4, gradient_accumulation_steps: 2, grad_clip: 0.5, log_every: 1}",
        "schedule={cosine: {warmup_steps: 3, final_ratio: 0.1}}",
        "eval={every: 10, tokens: 2k}",
    ];
    for text in common.into_iter().map(str::to_owned).chain(case.overrides.iter().cloned()) {
        arguments.extend(["--set".to_owned(), text]);
    }
    arguments.extend(["--stop-after".to_owned(), STOP_AFTER.to_string()]);
    lrpt(binary, folder, &arguments)?;
    lrpt(binary, folder, &["resume".to_owned(), run_dir.to_string_lossy().into_owned()])?;

    let checkpoint = run_dir.join(format!("checkpoints/step-{STEPS:08}"));
    let metrics = metrics_hash(&run_dir.join("metrics.jsonl"))?;
    let model = tensors_hash(&checkpoint.join("model.safetensors"))?;
    let optimizer = tensors_hash(&checkpoint.join("optimizer.safetensors"))?;
    Ok(format!("{:<36} metrics {metrics}  model {model}  optimizer {optimizer}", case.name))
}

fn lrpt(binary: &Path, folder: &Path, arguments: &[String]) -> Result<()> {
    let output = Command::new(binary)
        .current_dir(folder)
        .args(["--threads", "2"])
        .args(arguments)
        .output()?;
    ensure!(
        output.status.success(),
        "lrpt {arguments:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn metrics_hash(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for line in std::fs::read_to_string(path)?.lines() {
        let mut object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line)?;
        object.retain(|key, _| !lrpt::record::is_wall_clock_key(key));
        hasher.update(serde_json::to_string(&object)?.as_bytes());
    }
    Ok(short(&hasher))
}

/// Every tensor by name. A rank kept as a number, wherever the checkpoint has it, is left out: what
/// it decides shows in the tensors.
fn tensors_hash(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let mut tensors = SafeTensors::deserialize(&bytes)?.tensors();
    tensors.retain(|(name, _)| !name.ends_with("cycle_rank"));
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let mut hasher = blake3::Hasher::new();
    for (name, view) in tensors {
        hasher.update(format!("{name} {:?} {:?}", view.dtype(), view.shape()).as_bytes());
        hasher.update(view.data());
    }
    Ok(short(&hasher))
}

fn short(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex()[..12].to_owned()
}

/// Some 60,000 characters of sentences with structure to learn.
fn text() -> String {
    let words = [
        "a", "matrix", "of", "low", "rank", "holds", "what", "the", "model", "learns", "while",
        "its", "bases", "turn", "and", "small", "singular", "values", "fall", "away",
    ];
    let mut state = 1u64;
    let mut text = String::new();
    while text.len() < 60_000 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        text.push_str(words[(state >> 33) as usize % words.len()]);
        text.push_str(if (state >> 20).is_multiple_of(11) { ".\n" } else { " " });
    }
    text
}
