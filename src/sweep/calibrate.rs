//! What the plans of a sweep need beside themselves: the vocabulary of their data and the seconds
//! of their steps, here.

use super::equal::Solver;
use crate::bench::{StepCounts, kind_of_step, seconds_per_step};
use crate::data;
use crate::error::Failure;
use crate::fs::{read_text, refuse_link, write_atomic};
use crate::spec::Plan;
use anyhow::{Context, Result};
use candle_core::Device;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

/// Steps of a calibration.
const COUNTS: StepCounts = StepCounts { warm_up: 1, timed: 2, by_operation: false };

/// Seconds of a step by kind of plan, in a sweep's folder.
const FILE: &str = "calibration.json";

/// Prepares each text once, and times each kind of plan once.
pub struct Calibration {
    threads: usize,
    device: Device,
    vocabularies: BTreeMap<String, usize>,
    seconds: BTreeMap<String, f64>,
}

impl Calibration {
    /// Timings with this many threads; those a sweep's folder has already stay, so that it solves
    /// its budgets once.
    ///
    /// # Errors
    /// If the timings that are there cannot be read or are damaged.
    pub fn new(threads: usize, device: Device, folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        refuse_link(&path).map_err(|error| Failure::Usage(format!("{error:#}")))?;
        let seconds = match read_text(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            read => {
                let text = read.with_context(|| format!("cannot read {}", path.display()))?;
                serde_json::from_str(&text).with_context(|| {
                    format!(
                        "{}: the timings of this sweep are damaged, and its runs were given their \
                         steps by them; put the file back, or delete it to time anew if no run \
                         has begun",
                        path.display()
                    )
                })?
            }
        };
        Ok(Self { threads, device, vocabularies: BTreeMap::new(), seconds })
    }

    /// Keeps the timings in a sweep's folder.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        write_atomic(&folder.join(FILE), &serde_json::to_vec_pretty(&self.seconds)?)
    }
}

impl Solver for Calibration {
    /// Prepares the data, so that runs side by side find them ready.
    fn vocabulary_size(&mut self, plan: &Plan) -> Result<usize> {
        let key = serde_json::to_string(&plan.data)?;
        if let Some(size) = self.vocabularies.get(&key) {
            return Ok(*size);
        }
        let size = data::prepare(&plan.data, data::cache_dir())?.tokenizer_vocab_size();
        self.vocabularies.insert(key, size);
        Ok(size)
    }

    fn seconds_per_step(&mut self, plan: &Plan) -> Result<f64> {
        let vocabulary = self.vocabulary_size(plan)?;
        let key = kind_of_step(plan, vocabulary);
        if let Some(seconds) = self.seconds.get(&key) {
            return Ok(*seconds);
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .build()
            .context("cannot start threads for the calibration")?;
        let seconds = pool.install(|| seconds_per_step(plan, vocabulary, COUNTS, &self.device))?;
        tracing::debug!("{}: {seconds:.4} s a step", plan.name);
        self.seconds.insert(key, seconds);
        Ok(seconds)
    }
}
