//! `metrics.jsonl` and `spectra.jsonl`: one JSON object per line.

use super::csv::CsvTable;
use super::{Event, Observer, Recovered};
use anyhow::Context;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Makes the line of an event, if it has one: [`metrics`](super::metrics) or
/// [`spectra`](super::spectra).
pub type LineOf = fn(&Event) -> Option<Map<String, Value>>;

/// Writes every event that has a line as one line of JSON.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
    line_of: LineOf,
    table: Option<CsvTable>,
}

impl JsonLines {
    /// Starts an empty file; an old one is overwritten.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, line_of: LineOf) -> anyhow::Result<Self> {
        crate::fs::write_atomic(path, b"")?;
        Self::append(path, line_of)
    }

    /// Continues the file of a run that is resumed at `step`. Lines of later steps are removed, as
    /// is anything that is not a whole JSON object, since a killed process may leave half a line.
    /// The file is replaced atomically.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn resume(path: &Path, step: u64, line_of: LineOf) -> anyhow::Result<Self> {
        let old = match crate::fs::read_ordinary(path, u64::MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read.with_context(|| format!("{}: not read", path.display()))?,
        };
        let mut kept = Vec::with_capacity(old.len());
        for (number, line) in
            old.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty())
        {
            match serde_json::from_slice::<Value>(line) {
                Ok(Value::Object(object)) => {
                    if object
                        .get("step")
                        .and_then(Value::as_u64)
                        .is_none_or(|of_line| of_line <= step)
                    {
                        kept.extend_from_slice(line);
                        kept.push(b'\n');
                    }
                }
                _ => tracing::warn!(
                    "{}:{}: dropped, since it is no whole JSON object",
                    path.display(),
                    number + 1
                ),
            }
        }
        if kept != old {
            crate::fs::write_atomic(path, &kept)?;
        }
        Self::append(path, line_of)
    }

    fn append(path: &Path, line_of: LineOf) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("{}: not opened", path.display()))?;
        Ok(Self { path: path.to_path_buf(), file, line_of, table: None })
    }

    /// The same with a table of all lines beside the file, its ending `csv`.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub fn with_table(self) -> anyhow::Result<Self> {
        Ok(Self { table: Some(CsvTable::of(&self.path)?), ..self })
    }
}

impl Observer for JsonLines {
    fn on(&mut self, event: &Event) -> anyhow::Result<()> {
        if let Event::Recovered(Recovered { back_to: Some(step), .. }) = event {
            // As for a run that was stopped and resumed there.
            let has_table = self.table.is_some();
            *self = Self::resume(&self.path, *step, self.line_of)?;
            if has_table {
                self.table = Some(CsvTable::of(&self.path)?);
            }
        }
        let failed = || format!("{}: not written (is the disk full?)", self.path.display());
        if let Some(line) = (self.line_of)(event) {
            let mut bytes = serde_json::to_vec(&line)?;
            bytes.push(b'\n');
            // One unbuffered write, so that a reader sees whole lines as they are written.
            self.file.write_all(&bytes).with_context(failed)?;
            self.table.as_mut().map_or(Ok(()), |table| table.add(&line))?;
        }
        if matches!(event, Event::CheckpointDue { .. } | Event::Finished { .. }) {
            self.file.sync_data().with_context(failed)?;
            self.table.as_ref().map_or(Ok(()), CsvTable::sync)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Evaluation, Step, metric_values, metrics};

    fn step(step: u64, loss: f64) -> Event {
        Event::Step(Step { step, loss, ..Step::default() })
    }

    fn evaluation(step: u64) -> Event {
        Event::Evaluation(Evaluation { step, ..Evaluation::default() })
    }

    fn record(observer: &mut JsonLines, events: &[Event]) {
        events.iter().for_each(|event| observer.on(event).unwrap());
    }

    #[test]
    fn floats_come_back_to_the_bit_and_what_is_not_finite_is_null() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let losses =
            [0.1 + 0.2, 1.0 / 3.0, f64::MIN_POSITIVE, 5e-324, 123_456_789.123_456_79, f64::NAN];
        record(&mut JsonLines::create(&path, metrics).unwrap(), &losses.map(|loss| step(1, loss)));
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["train/loss"].clone())
            .collect();
        for (read, written) in read.iter().zip(&losses[..5]) {
            assert_eq!(read.as_f64().unwrap().to_bits(), written.to_bits());
        }
        assert_eq!(read[5], Value::Null);
    }

    #[test]
    fn a_resumed_file_equals_one_that_never_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let before = [step(10, 3.0), evaluation(10), step(20, 2.5), evaluation(20)];
        let lost = [step(30, 2.25), evaluation(30)];
        let after = [step(30, 2.0), evaluation(30), step(40, 1.5)];

        let create =
            |name| JsonLines::create(&path(name), metric_values).unwrap().with_table().unwrap();
        let mut straight = create("straight.jsonl");
        record(&mut straight, &before);
        record(&mut straight, &after);

        let mut stopped = create("stopped.jsonl");
        record(&mut stopped, &before);
        record(&mut stopped, &lost);
        stopped.file.write_all(br#"{"step":40,"train/lo"#).unwrap();
        let resumed = JsonLines::resume(&path("stopped.jsonl"), 20, metric_values).unwrap();
        record(&mut resumed.with_table().unwrap(), &after);
        // A run that goes back by itself.
        let mut rolled_back = create("rolled.jsonl");
        record(&mut rolled_back, &before);
        record(&mut rolled_back, &lost);
        let recovered = Recovered { step: 30, back_to: Some(20), ..Recovered::default() };
        record(&mut rolled_back, &[Event::Recovered(recovered)]);
        record(&mut rolled_back, &after);

        let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
        assert_eq!(read("stopped.jsonl"), read("straight.jsonl"));
        assert_eq!(read("straight.jsonl").lines().count(), 7);
        assert_eq!(read("stopped.csv"), read("straight.csv"));
        assert_eq!(read("straight.csv").lines().count(), 5, "a header and four steps");
        let noted = read("rolled.jsonl").replace("{\"step\":30}\n", "");
        assert_eq!(noted, read("straight.jsonl"), "but for the line that says so");
        assert_eq!(read("rolled.csv"), read("straight.csv"));
    }

    #[test]
    fn a_last_line_that_only_lacks_its_end_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, b"{\"step\":1}\n\xff\x00\n{\"step\":2}").unwrap();
        record(&mut JsonLines::resume(&path, 2, metrics).unwrap(), &[]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
    }

    #[test]
    fn resuming_without_a_file_starts_one_and_creating_empties_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        record(&mut JsonLines::resume(&path, 5, metrics).unwrap(), &[step(6, 1.0)]);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
        JsonLines::create(&path, metrics).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }
}
