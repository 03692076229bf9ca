//! A run's folder: `spec.yaml`, `plan.yaml`, `env.json`, `data.json`, `tokenizer.json`,
//! `tokenizer_config.json` where there is a chat template, `metrics.jsonl` (also as `metrics.csv`),
//! `spectra.jsonl`, `tensorboard/`, `log.txt`, `samples/`, `checkpoints/`, `first-checkpoint.json`.

use super::init_report::InitReport;
use super::settings::compute;
use crate::checkpoint::{self, Checkpoints};
use crate::data::{ChatSettings, DatasetSummary, Tokenizer};
use crate::error::Failure;
use crate::fs::{read_text, write_atomic};
use crate::model::{ModelConfig, Network, build, read_config, restore};
use crate::params::{Declared, ParamStore};
use crate::spec::{Plan, to_yaml};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// The run folder at this path; nothing is read or written yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Path of the metrics, one JSON object a line.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// Path of the low-rank weights' singular values, one JSON object for each validation.
    pub fn spectra(&self) -> PathBuf {
        self.root.join("spectra.jsonl")
    }

    /// Whether the folder holds a run, finished or not.
    pub fn holds_a_run(&self) -> bool {
        self.root.join("plan.yaml").exists()
    }

    /// The run's plan.
    ///
    /// # Errors
    /// If the folder holds no run, or its plan cannot be read by this version.
    pub fn plan(&self) -> Result<Plan> {
        let path = self.root.join("plan.yaml");
        let text = match read_text(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "{} holds no run (no plan.yaml); give the folder of a run, such as runs/gpt-small \
                 (`lrpt runs` lists those of runs/)",
                self.root.display()
            ),
            read => read.with_context(|| format!("{}: not read", path.display()))?,
        };
        Plan::from_yaml(&text, &path.display().to_string())
    }

    /// The run's own copy of its tokenizer.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.root.join("tokenizer.json")
    }

    /// The tokenizer the run was trained with.
    ///
    /// # Errors
    /// If it cannot be read, or is another than `data.json` names.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let path = self.tokenizer_path();
        let text = read_text(&path)
            .with_context(|| format!("cannot read the run's tokenizer {}", path.display()))?;
        let tokenizer = Tokenizer::from_json(&text)
            .with_context(|| format!("{}: not a tokenizer", path.display()))?;
        if self.root.join("data.json").exists() {
            let (found, expected) = (tokenizer.hash()?, self.data_summary()?.tokenizer_hash);
            if found != expected {
                return Err(Failure::Usage(format!(
                    "{}: has the hash {found}, but data.json names {expected}; put back the \
                     tokenizer the run was trained with",
                    path.display()
                ))
                .into());
            }
        }
        Ok(tokenizer)
    }

    /// What made text of the conversations it was trained on, or what its tokenizer came with.
    ///
    /// # Errors
    /// If the file of them is damaged.
    pub fn chat_settings(&self) -> Result<ChatSettings> {
        ChatSettings::beside(&self.tokenizer_path())
    }

    /// Identity and size of the data the run was trained on.
    pub fn data_summary(&self) -> Result<DatasetSummary> {
        let path = self.root.join("data.json");
        let text = read_text(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{}: not a data summary", path.display()))
    }

    /// The spec as the user wrote it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn spec_yaml(&self) -> Result<String> {
        let path = self.root.join("spec.yaml");
        read_text(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// A warning where this process computes with another number of threads than the one that
    /// began the run, as far as the run says.
    ///
    /// # Errors
    /// If what it says cannot be read.
    pub fn other_threads(&self) -> Result<Option<String>> {
        let path = self.root.join("env.json");
        let Ok(text) = read_text(&path) else { return Ok(None) };
        let environment: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("{}: not JSON", path.display()))?;
        let now = rayon::current_num_threads() as u64;
        let before = environment["threads"].as_u64().filter(|before| *before != now);
        Ok(before.map(|before| {
            format!(
                "the run began with {before} threads and goes on with {now}: its figures will \
                 differ by roundings from those of a run that did not stop; --threads {before} \
                 keeps them"
            )
        }))
    }

    /// Writes where the first weights came from.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_init(&self, init: &InitReport) -> Result<()> {
        write_atomic(&self.root.join("init.json"), &pretty(init)?)
    }

    /// Writes what identifies a fresh run: the spec as given, the plan, the environment, the data,
    /// the tokenizer.
    pub fn describe(
        &self,
        spec_yaml: &str,
        plan: &Plan,
        data: &DatasetSummary,
        tokenizer: &Tokenizer,
        device: &Device,
    ) -> Result<()> {
        std::fs::create_dir_all(&self.root)
            .with_context(|| format!("cannot create {}", self.root.display()))?;
        write_atomic(&self.root.join("spec.yaml"), spec_yaml.as_bytes())?;
        write_atomic(&self.root.join("env.json"), &pretty(&environment(device))?)?;
        write_atomic(&self.root.join("data.json"), &pretty(data)?)?;
        write_atomic(&self.tokenizer_path(), tokenizer.to_json()?.as_bytes())?;
        let chat = match ChatSettings::of_data(&plan.data, tokenizer) {
            Ok(chat) => chat,
            // Not what the run is trained on: it goes on without.
            Err(error) => {
                tracing::warn!("the tokenizer's chat template is left out: {error:#}");
                ChatSettings::default()
            }
        };
        if chat.template.is_some() {
            write_atomic(&self.root.join("tokenizer_config.json"), &pretty(&chat.to_json())?)?;
        }
        // Last: a folder with a plan is a run that `--resume` can continue.
        write_atomic(&self.root.join("plan.yaml"), to_yaml(plan)?.as_bytes())
    }
}

fn pretty(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn environment(device: &Device) -> serde_json::Value {
    serde_json::json!({
        "lrpt": env!("CARGO_PKG_VERSION"),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "device": format!("{:?}", device.location()),
        "threads": rayon::current_num_threads(),
        "debug_build": cfg!(debug_assertions),
        "folder": std::env::current_dir().ok(),
        "data_dir": std::path::absolute(crate::data::cache_dir()).ok(),
        "command": std::env::args().collect::<Vec<_>>(),
        "started_unix_seconds": std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
    })
}

/// A checkpoint opened for use: the network, its parameters, its tokenizer.
pub struct LoadedRun {
    /// The network.
    pub model: Box<dyn Network>,
    /// Its parameters at the checkpoint.
    pub params: ParamStore,
    /// Step of the checkpoint.
    pub step: u64,
    /// Folder of the run.
    pub folder: RunFolder,
}

impl LoadedRun {
    /// Opens a run (its best checkpoint if it has one, else its newest) or one checkpoint folder of
    /// a run.
    ///
    /// # Errors
    /// If the path is neither, or the checkpoint is damaged.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let (checkpoint, folder) = chosen_checkpoint(path)?;
        refuse_larger_than_its_network(&checkpoint)?;
        let snapshot = checkpoint::load(&checkpoint)?;
        let (mut model, params) = restore(&snapshot.config, snapshot.model, DType::F32, device)?;
        // It answers in the number types it was trained in; a checkpoint taken out of its run has
        // no plan, and answers in f32.
        if let Ok(plan) = folder.plan() {
            model.set_compute(compute(&plan));
        }
        Ok(Self { model, params, step: snapshot.step, folder })
    }

    /// The configuration of what [`LoadedRun::open`] opens, and its run's folder; no tensor is
    /// read.
    ///
    /// # Errors
    /// As for [`LoadedRun::open`].
    pub fn config(path: &Path) -> Result<(ModelConfig, RunFolder)> {
        let (checkpoint, folder) = chosen_checkpoint(path)?;
        Ok((read_config(&checkpoint::load_config(&checkpoint)?)?, folder))
    }
}

/// Refuses a checkpoint whose files are larger than what its network can have, before they are
/// read: a checkpoint may come from anyone.
fn refuse_larger_than_its_network(checkpoint: &Path) -> Result<()> {
    /// Headers and what is stored beside numbers.
    const BESIDE: u64 = 100_000_000;
    /// Numbers that an optimizer keeps for one of the network's, rather too many.
    const MOMENTS: u64 = 16;
    let network = build(read_config(&checkpoint::load_config(checkpoint)?)?)?;
    let numbers = |sum: u64, declared: &Declared| sum.saturating_add(declared.most_numbers());
    let most = network.declared().iter().fold(0, numbers).saturating_mul(8);
    let [model, optimizer] = checkpoint::tensor_bytes(checkpoint)?;
    for (name, found, most) in [
        ("model.safetensors", model, most),
        ("optimizer.safetensors", optimizer, most.saturating_mul(MOMENTS)),
    ] {
        let most = most.saturating_add(BESIDE);
        if found > most {
            bail!(
                "{}: {name} has {found} bytes, and no checkpoint of the network in its \
                 config.json has more than {most}; use another checkpoint",
                checkpoint.display()
            )
        }
    }
    Ok(())
}

/// The checkpoint that a run's or a checkpoint's folder stands for, and the run's folder.
fn chosen_checkpoint(path: &Path) -> Result<(PathBuf, RunFolder)> {
    let is_checkpoint = path.join("manifest.json").exists();
    let (checkpoint, root) = if is_checkpoint {
        // `runs/x/checkpoints/step-..` or `runs/x/checkpoints/best`: the run is two folders up.
        let checkpoint = path.canonicalize()?;
        let root = checkpoint.ancestors().nth(2).unwrap_or(&checkpoint).to_path_buf();
        (checkpoint, root)
    } else {
        let folder = RunFolder::new(path);
        folder.plan().map_err(|error| Failure::Usage(format!("{error:#}")))?;
        let checkpoints = Checkpoints::open(path);
        let best =
            checkpoints.best().map(|step| checkpoints.path(step)).filter(|path| path.exists());
        let best = best.or(checkpoints.list()?.pop().map(|newest| newest.path));
        let chosen = best
            .ok_or_else(|| Failure::Usage(format!("{} has no checkpoint yet", path.display())))?;
        (chosen, path.to_path_buf())
    };
    Ok((checkpoint, RunFolder::new(root)))
}
