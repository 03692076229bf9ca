//! A small workplace for tests that run the binary: a text, a spec, a run.
#![allow(dead_code)] // each test binary uses its own part

pub mod gguf;
pub mod textbook;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A temporary folder with a text in it; the binary runs there, so its caches and runs land there
/// too.
pub struct Workplace {
    folder: TempDir,
}

impl Workplace {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("text.txt"), text()).expect("the text");
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a small spec; `extra` is YAML appended at top level.
    pub fn spec(&self, weights: &str, extra: &str) -> PathBuf {
        let yaml = format!(
            "name: small\nseed: 5\ndevice: cpu\n\
             model: {{n_layer: 2, n_head: 2, n_embd: 32, block_size: 16, dropout: 0.1, bias: true, weights: {weights}}}\n\
             data: {{source: {{text: {{path: text.txt, val_fraction: 0.2}}}}, tokenizer: chars}}\n\
             train: {{max_steps: 12, batch_size: 4, gradient_accumulation_steps: 2, grad_clip: 1.0, log_every: 1}}\n\
             schedule: {{cosine: {{warmup_steps: 2, final_ratio: 0.1}}}}\n\
             eval: {{every: 4, tokens: 256}}\n\
             sample: {{tokens: 12}}\n\
             {extra}\n"
        );
        let path = self.path("spec.yaml");
        std::fs::write(&path, yaml).expect("the spec");
        path
    }

    /// The binary, in this folder, with two threads.
    pub fn lrpt(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lrpt"));
        command
            .current_dir(self.folder.path())
            .args(["--threads", "2"])
            .args(arguments)
            .env_remove("RUST_LOG");
        command
    }

    /// Runs the binary and expects this exit code.
    pub fn run(&self, arguments: &[&str], code: i32) -> Output {
        let output = self.lrpt(arguments).output().expect("the binary starts");
        assert_eq!(
            output.status.code(),
            Some(code),
            "lrpt {arguments:?}\nstderr:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    /// Starts the binary and kills it (signal 9) as soon as `when` holds; false where it ended
    /// before.
    pub fn kill_when(&self, arguments: &[&str], mut when: impl FnMut() -> bool) -> bool {
        let mut child = self
            .lrpt(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let started = Instant::now();
        while !when() {
            if child.try_wait().expect("a child").is_some() {
                return false;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "lrpt {arguments:?} hangs");
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().expect("kill");
        // One that had just ended has an exit code.
        child.wait().expect("wait").code().is_none()
    }

    /// Whether a checkpoint of a run is being written, or was when its process died.
    pub fn is_saving(&self, run: &str) -> bool {
        let entries = std::fs::read_dir(self.path(run).join("checkpoints"));
        entries.into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(".step-") && name.ends_with(".tmp") && !name.contains(".deleted")
        })
    }

    /// The process of this rank that runs in this folder, as Linux tells.
    pub fn process_of_rank(&self, rank: usize) -> Option<u32> {
        let here = self.folder.path().canonicalize().expect("a folder");
        let said = format!("RANK={rank}");
        let is_wanted = |process: &Path| {
            let environment = std::fs::read(process.join("environ")).unwrap_or_default();
            std::fs::read_link(process.join("cwd")).is_ok_and(|folder| folder == here)
                && environment.split(|byte| *byte == 0).any(|set| set == said.as_bytes())
        };
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let mut numbered = processes.filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path()))
        });
        numbered.find(|(_, process)| is_wanted(process)).map(|(number, _)| number)
    }

    /// Lines of a run's metrics; 0 where there are none yet.
    pub fn metric_lines(&self, run: &str) -> usize {
        let bytes = std::fs::read(self.path(run).join("metrics.jsonl")).unwrap_or_default();
        bytes.iter().filter(|byte| **byte == b'\n').count()
    }

    /// Everything of a run that must not depend on interruptions: each file of its last checkpoint,
    /// and its metrics without wall-clock keys.
    pub fn trajectory(&self, run: &str, step: u64) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        let checkpoint = self.path(run).join(format!("checkpoints/step-{step:08}"));
        for entry in std::fs::read_dir(&checkpoint)
            .unwrap_or_else(|error| panic!("{}: {error}", checkpoint.display()))
        {
            let path = entry.expect("entry").path();
            found.insert(file_name(&path), std::fs::read(&path).expect("a checkpoint's file"));
        }
        found.insert(
            "metrics".into(),
            metrics(&self.path(run).join("metrics.jsonl")).join("\n").into_bytes(),
        );
        found.insert(
            "table".into(),
            table(&self.path(run).join("metrics.csv")).join("\n").into_bytes(),
        );
        found
    }
}

/// Sends a signal of this name to a process.
pub fn kill(process: u32, signal: &str) {
    let signal = format!("-{signal}");
    let sent = Command::new("kill").args([signal, process.to_string()]).status().expect("kill");
    assert!(sent.success(), "the process {process} has gone");
}

/// The lines of a metrics file without the keys that tell the time or memory.
pub fn metrics(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("metrics.jsonl");
    let strip = |line: &str| {
        let mut object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).expect("a JSON object a line");
        object.retain(|key, _| !lrpt::record::is_wall_clock_key(key));
        serde_json::to_string(&object).expect("JSON")
    };
    text.lines().map(strip).collect()
}

/// The rows of a table of metrics without the columns that tell the time, memory or the wire.
pub fn table(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("metrics.csv");
    let header: Vec<&str> = text.lines().next().expect("a header").split(',').collect();
    let kept = |index: &usize| {
        let key = header[*index];
        !lrpt::record::is_wall_clock_key(key) && key != "train/wire_bytes"
    };
    let columns: Vec<usize> = (0..header.len()).filter(kept).collect();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        assert_eq!(cells.len(), header.len(), "{line}");
        columns.iter().map(|column| cells[*column]).collect::<Vec<_>>().join(",")
    };
    text.lines().map(row).collect()
}

/// Asserts that two trajectories are the same, naming the first file that differs.
pub fn assert_same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{what}: other files");
    for (name, bytes) in a {
        if name == "metrics" || name == "table" {
            assert_eq!(
                String::from_utf8_lossy(bytes),
                String::from_utf8_lossy(&b[name]),
                "{what}: {name} differs"
            );
        }
        assert!(bytes == &b[name], "{what}: {name} differs");
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Some 6000 characters with structure to learn.
fn text() -> String {
    let words = [
        "the", "rank", "of", "a", "matrix", "grows", "and", "shrinks", "when", "its", "tail", "is",
        "small", "or", "large",
    ];
    let mut state = 12345u64;
    let mut text = String::new();
    while text.len() < 6000 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        text.push_str(words[(state >> 33) as usize % words.len()]);
        text.push(if (state >> 20).is_multiple_of(9) { '\n' } else { ' ' });
    }
    text
}
