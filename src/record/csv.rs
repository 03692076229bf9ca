//! `metrics.csv`: the lines of `metrics.jsonl` as a table, one row a step, that pandas and trackio
//! take as it is.

use anyhow::Context;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The table beside a file of JSON lines, and a function of it: the columns are `step` and the
/// other keys in the order of their first appearance, and lines of the same step share a row.
/// Empty where there are no lines yet.
#[derive(Debug)]
pub(super) struct CsvTable {
    lines: PathBuf,
    path: PathBuf,
    file: File,
    columns: Vec<String>,
    last: Option<Row>,
}

/// The last row, to which further lines of its step may be added.
#[derive(Debug)]
struct Row {
    /// Its first byte in the file.
    start: u64,
    cells: Map<String, Value>,
}

impl CsvTable {
    /// Writes the table of `lines` beside it, with the ending `csv`; an old one is replaced at
    /// once.
    ///
    /// # Errors
    /// When the lines cannot be read or the table cannot be written.
    pub(super) fn of(lines: &Path) -> anyhow::Result<Self> {
        let read = match crate::fs::read_ordinary(lines, u64::MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read.with_context(|| format!("{}: not read", lines.display()))?,
        };
        let parsed: Vec<Map<String, Value>> = read
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect();
        let mut columns = vec!["step".to_owned()];
        let mut known: std::collections::HashSet<&str> = ["step"].into();
        for key in parsed.iter().flat_map(Map::keys) {
            if known.insert(key) {
                columns.push(key.clone());
            }
        }
        let mut text: Vec<u8> = Vec::new();
        if !parsed.is_empty() {
            text.extend(line_of(columns.iter().map(|column| quoted(column))));
        }
        let mut last: Option<Row> = None;
        for line in parsed {
            match &mut last {
                Some(row) if same_step(&row.cells, &line) => row.cells.extend(line),
                _ => {
                    text.extend(last.iter().flat_map(|row| cells_of(&columns, &row.cells)));
                    last = Some(Row { start: text.len() as u64, cells: line });
                }
            }
        }
        text.extend(last.iter().flat_map(|row| cells_of(&columns, &row.cells)));
        let path = lines.with_extension("csv");
        crate::fs::write_atomic(&path, &text)?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("{}: not opened", path.display()))?;
        Ok(Self { lines: lines.to_path_buf(), path, file, columns, last })
    }

    /// Adds a line that has been written to the file of lines. A key without a column widens the
    /// table, which is then written anew.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub(super) fn add(&mut self, line: &Map<String, Value>) -> anyhow::Result<()> {
        if line.keys().any(|key| !self.columns.contains(key)) {
            *self = Self::of(&self.lines)?;
            return Ok(());
        }
        let failed = || format!("{}: not written (is the disk full?)", self.path.display());
        let row = match self.last.take() {
            Some(mut row) if same_step(&row.cells, line) => {
                row.cells.extend(line.clone());
                self.file.set_len(row.start).with_context(failed)?;
                row
            }
            _ => {
                Row { start: self.file.metadata().with_context(failed)?.len(), cells: line.clone() }
            }
        };
        self.file.write_all(&cells_of(&self.columns, &row.cells)).with_context(failed)?;
        self.last = Some(row);
        Ok(())
    }

    /// Waits until the table is on the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn sync(&self) -> anyhow::Result<()> {
        self.file.sync_data().with_context(|| format!("{}: not written", self.path.display()))
    }
}

fn same_step(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    a.get("step") == b.get("step")
}

fn cells_of(columns: &[String], cells: &Map<String, Value>) -> Vec<u8> {
    line_of(columns.iter().map(|column| cells.get(column).map_or(String::new(), cell)))
}

fn line_of(cells: impl Iterator<Item = String>) -> Vec<u8> {
    let mut line = cells.collect::<Vec<_>>().join(",").into_bytes();
    line.push(b'\n');
    line
}

/// A value as readers of numbers take it: nothing for what is not finite, 1 for true.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(holds) => u8::from(*holds).to_string(),
        Value::String(text) => quoted(text),
        value => value.to_string(),
    }
}

/// Text in quotation marks where it needs them (RFC 4180).
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line goes to the file first, then to the table, as the observer does it.
    fn add(table: &mut CsvTable, line: &str) {
        let mut file = OpenOptions::new().append(true).open(&table.lines).unwrap();
        writeln!(file, "{line}").unwrap();
        table.add(&serde_json::from_str(line).unwrap()).unwrap();
    }

    #[test]
    fn lines_of_a_step_share_a_row_and_new_keys_widen_the_table() {
        let folder = tempfile::tempdir().unwrap();
        let lines = folder.path().join("metrics.jsonl");
        std::fs::write(&lines, "").unwrap();
        let mut table = CsvTable::of(&lines).unwrap();
        let text = || std::fs::read_to_string(folder.path().join("metrics.csv")).unwrap();
        assert_eq!(text(), "");
        add(&mut table, r#"{"step":1,"train/loss":3.5}"#);
        add(&mut table, r#"{"step":2,"train/loss":null}"#);
        assert_eq!(text(), "step,train/loss\n1,3.5\n2,\n");
        add(&mut table, r#"{"step":2,"val/loss":0.30000000000000004}"#);
        add(&mut table, r#"{"step":3,"train/loss":3.25}"#);
        add(&mut table, r#"{"step":3,"val/loss":2.0}"#);
        add(&mut table, r#"{"step":3,"rank/a,b":4}"#);
        add(&mut table, r#"{"step":4,"diverged":true}"#);
        let whole = "step,train/loss,val/loss,\"rank/a,b\",diverged\n1,3.5,,,\n\
                     2,,0.30000000000000004,,\n3,3.25,2.0,4,\n4,,,,1\n";
        assert_eq!(text(), whole);
        // What is added line by line is what is made of the whole.
        CsvTable::of(&lines).unwrap();
        assert_eq!(text(), whole);
    }
}
