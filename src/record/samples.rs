//! The texts that the model writes, one file per validation.

use super::{Event, Observer};
use std::path::{Path, PathBuf};

/// Writes every sample to a file like `samples/step-00000100.txt` in the run's folder. The console
/// shows it independently.
#[derive(Debug)]
pub struct Samples {
    folder: PathBuf,
}

impl Samples {
    /// The samples of the run in this folder; `samples` is created with the first one.
    pub fn new(run_dir: &Path) -> Self {
        Self { folder: run_dir.join("samples") }
    }
}

impl Observer for Samples {
    fn on(&mut self, event: &Event) -> anyhow::Result<()> {
        if let Event::Sample(sample) = event {
            crate::fs::write_atomic(
                &self.folder.join(format!("step-{:08}.txt", sample.step)),
                sample.text.as_bytes(),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Sample;

    #[test]
    fn each_sample_gets_a_file_and_a_later_run_overwrites_it() {
        let run = tempfile::tempdir().unwrap();
        let mut samples = Samples::new(run.path());
        for text in ["fn first() {}", "fn main() {\n"] {
            samples.on(&Event::Sample(Sample { step: 100, text: text.into() })).unwrap();
        }
        samples.on(&Event::Progress { step: 100 }).unwrap();
        let names: Vec<_> = std::fs::read_dir(run.path().join("samples"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["step-00000100.txt"]);
        assert_eq!(
            std::fs::read_to_string(run.path().join("samples/step-00000100.txt")).unwrap(),
            "fn main() {\n"
        );
    }
}
