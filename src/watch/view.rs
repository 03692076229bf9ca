//! A run as its folder shows it now.

use super::figures::{Figures, Validation};
use crate::error::{Failure, printable};
use crate::record::{Follower, MetricsLine, News};
use crate::train::{RunFolder, RunState};
use anyhow::Result;
use serde_json::{Map, Value};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Bytes of a sample that are shown.
const SAMPLE_BYTES: u64 = 64 << 10;

/// What a run's folder shows of its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A process prepares the data or the model.
    Preparing,
    /// What has become of the run.
    Run(RunState),
    /// The folder is no longer there.
    Gone,
}

impl Standing {
    /// Whether more may come.
    pub fn is_active(&self) -> bool {
        matches!(self, Standing::Preparing | Standing::Run(RunState::Running))
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Standing::Preparing => f.pad("preparing"),
            Standing::Run(state) => f.pad(state.name()),
            Standing::Gone => f.pad("gone"),
        }
    }
}

/// Singular values of the low-rank weights at a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spectrum {
    /// Steps taken.
    pub step: u64,
    /// Name and singular values, in decreasing order, of each low-rank weight.
    pub layers: Vec<(String, Vec<f64>)>,
}

/// A run as its folder showed it at the last look.
#[derive(Debug)]
pub struct View {
    /// What it is called here: its folder's name, fit for a terminal.
    pub name: String,
    /// Its state.
    pub standing: Standing,
    /// Steps at its end; 0 while unknown.
    pub max_steps: u64,
    /// Tokens per step; 0 while unknown.
    pub tokens_per_step: u64,
    /// What its metrics say.
    pub figures: Figures,
    /// The first and the newest spectra, where there are any.
    pub spectra: Option<(Spectrum, Spectrum)>,
    /// Step and text of the newest sample, fit for a terminal.
    pub sample: Option<(u64, String)>,
    /// What could not be read, and why.
    pub trouble: Option<String>,
    folder: RunFolder,
    metrics: Follower,
    spectra_file: Follower,
    plan_of: Option<SystemTime>,
}

/// Opens runs by their folders; where two have one name, their paths tell them apart.
///
/// # Errors
/// [`Failure::Usage`] naming a folder that holds no run.
pub fn open(folders: &[PathBuf]) -> Result<Vec<View>> {
    let name = |folder: &Path| {
        let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
        let name = whole.file_name().map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_else(|| folder.display().to_string())
    };
    let names: Vec<String> = folders.iter().map(|folder| name(folder)).collect();
    let views = folders.iter().zip(&names).map(|(folder, name)| {
        let is_unique = names.iter().filter(|other| *other == name).count() == 1;
        let name = if is_unique { name.clone() } else { folder.display().to_string() };
        View::open(folder, &name)
    });
    views.collect()
}

impl View {
    fn open(folder: &Path, name: &str) -> Result<Self> {
        let folder = RunFolder::new(folder);
        if !folder.holds_a_run() && !folder.is_running() {
            return Err(Failure::Usage(format!(
                "{} holds no run to watch (no plan.yaml); `lrpt runs` lists those of runs/",
                folder.root().display()
            ))
            .into());
        }
        let mut view = Self {
            name: one_line(name),
            standing: Standing::Preparing,
            max_steps: 0,
            tokens_per_step: 0,
            figures: Figures::default(),
            spectra: None,
            sample: None,
            trouble: None,
            metrics: Follower::new(folder.metrics()),
            spectra_file: Follower::new(folder.spectra()),
            plan_of: None,
            folder,
        };
        view.refresh_plan();
        Ok(view)
    }

    /// Looks at the folder again; gives the validations that are new, those before a resume again
    /// where it cut the figures. What cannot be read becomes [`View::trouble`].
    pub fn refresh(&mut self) -> Vec<Validation> {
        self.trouble = None;
        // The state first: figures written before a run ends are then read before it is said to.
        let is_running = self.folder.is_running();
        if !is_running && !self.folder.holds_a_run() {
            self.standing = Standing::Gone;
            return Vec::new();
        }
        self.refresh_plan();
        let validations = self.refresh_figures();
        self.refresh_spectra();
        self.sample = newest_sample(self.folder.root()).or_else(|| self.sample.take());
        self.standing = match self.folder.state(&self.figures.progress, self.max_steps) {
            // It has ended since; what it wrote last is read at the next look.
            _ if is_running && self.figures.progress.step == 0 => Standing::Preparing,
            _ if is_running => Standing::Run(RunState::Running),
            RunState::Failed(error) => Standing::Run(RunState::Failed(one_line(&error))),
            state => Standing::Run(state),
        };
        validations
    }

    fn refresh_plan(&mut self) {
        let path = self.folder.root().join("plan.yaml");
        let Some(written) = path.metadata().ok().and_then(|found| found.modified().ok()) else {
            return;
        };
        if self.plan_of == Some(written) {
            return;
        }
        match self.folder.plan() {
            Ok(plan) => {
                self.plan_of = Some(written);
                self.max_steps = plan.train.max_steps.0;
                self.tokens_per_step = plan.tokens_per_step;
            }
            Err(error) => self.trouble = Some(one_line(&format!("{error:#}"))),
        }
    }

    fn refresh_figures(&mut self) -> Vec<Validation> {
        let News { restarted, lines } = self.read(|view| &mut view.metrics);
        if restarted {
            self.figures = Figures::default();
        }
        lines.iter().filter_map(|line| self.figures.take(line)).collect()
    }

    fn refresh_spectra(&mut self) {
        let News { restarted, lines } = self.read(|view| &mut view.spectra_file);
        if restarted {
            self.spectra = None;
        }
        let Some(last) = lines.last().map(spectrum) else { return };
        let first = match self.spectra.take() {
            Some((first, _)) => first,
            None => spectrum(&lines[0]),
        };
        self.spectra = Some((first, last));
    }

    fn read(&mut self, file: impl Fn(&mut Self) -> &mut Follower) -> News {
        file(self).poll().unwrap_or_else(|error| {
            self.trouble = Some(one_line(&format!("{error:#}")));
            News::default()
        })
    }

    /// Seconds to its end, while it runs and its speed is known.
    pub fn seconds_left(&self) -> Option<f64> {
        let is_running = self.standing == Standing::Run(RunState::Running);
        let left = self.figures.seconds_left(self.max_steps, self.tokens_per_step);
        left.filter(|_| is_running)
    }
}

fn spectrum(line: &Map<String, Value>) -> Spectrum {
    let line = MetricsLine::from(line);
    let layers = line.singular_values().map(|(name, values)| (one_line(name), values));
    Spectrum { step: line.step().unwrap_or(0), layers: layers.collect() }
}

/// The newest of the files `samples/step-<step>.txt`, as far as it is shown.
fn newest_sample(root: &Path) -> Option<(u64, String)> {
    let entries = std::fs::read_dir(root.join("samples")).ok()?;
    let steps = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let digits = name.to_str()?.strip_prefix("step-")?.strip_suffix(".txt")?;
        // A pipe would be waited for.
        entry.file_type().ok()?.is_file().then_some(())?;
        Some((digits.parse::<u64>().ok()?, entry.path()))
    });
    let (step, path) = steps.max()?;
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(SAMPLE_BYTES).read_to_end(&mut bytes).ok()?;
    let text = printable(&String::from_utf8_lossy(&bytes)).replace('\t', "    ");
    Some((step, text))
}

/// Text from a file as part of one line of a terminal.
pub(super) fn one_line(text: &str) -> String {
    printable(text).replace(['\n', '\t'], " ")
}
