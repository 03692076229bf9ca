//! Documents of JSON lines: one object a line, the text under a key; empty lines are skipped.

use super::documents::Chunk;
use super::files::without_mark;
use super::rows::{Rows, Span};
use super::text_blocks;
use anyhow::Context;
use rayon::prelude::*;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

/// Bytes of lines that are parsed side by side.
const BATCH: usize = 4 << 20;
/// The longest line that is read: a file that is none of lines, or a small one that unpacks to
/// gigabytes, does not fill the memory.
const LONGEST_LINE: u64 = 1 << 30;

/// Some of the lines of files.
#[derive(Clone, Debug)]
pub(super) struct JsonLines {
    files: Vec<PathBuf>,
    text_key: String,
    span: Span,
}

impl JsonLines {
    /// All lines of files.
    ///
    /// # Errors
    /// When a file cannot be read or is not UTF-8.
    pub(super) fn open(files: Vec<PathBuf>, text_key: &str) -> anyhow::Result<Self> {
        let text_key = text_key.to_string();
        let mut all = Self { files, text_key, span: Span { first: 0, count: 0 } };
        let mut lines = all.lines();
        let mut count = 0;
        while lines.next_line()?.is_some() {
            count += 1;
        }
        all.span.count = count;
        Ok(all)
    }

    fn lines(&self) -> Lines<'_> {
        Lines { files: self.files.iter(), open: None }
    }

    /// The documents, in order.
    pub(super) fn chunks<'a>(
        &self,
    ) -> impl Iterator<Item = anyhow::Result<Chunk<'a>>> + Send + use<'a, '_> {
        self.parsed(|line| text_of_line(line, &self.text_key))
            .map(|text| text.map(|text| Chunk { text: Cow::Owned(text), ends: true }))
    }

    /// What the lines say, in order; errors name the line.
    pub(super) fn parsed<T: Send>(
        &self,
        parse: impl Fn(&str) -> anyhow::Result<T> + Sync + Send,
    ) -> impl Iterator<Item = anyhow::Result<T>> + Send {
        let mut lines = self.lines();
        let Span { first: mut skip, count: mut left } = self.span;
        let mut parsed: VecDeque<anyhow::Result<T>> = VecDeque::new();
        std::iter::from_fn(move || {
            if parsed.is_empty() {
                match next_batch(&mut lines, &mut skip, &mut left) {
                    Ok(batch) => {
                        let parse = |line: Line| {
                            parse(&line.text).with_context(|| place(line.path, line.number))
                        };
                        parsed = batch.into_par_iter().map(parse).collect::<Vec<_>>().into();
                    }
                    Err(error) => {
                        left = 0;
                        return Some(Err(error));
                    }
                }
            }
            parsed.pop_front()
        })
    }
}

impl Rows for JsonLines {
    const NAME: &'static str = "lines";

    fn span(&self) -> Span {
        self.span
    }

    fn within(&self, span: Span) -> Self {
        Self { span, ..self.clone() }
    }

    fn check_first(&self) -> anyhow::Result<()> {
        self.parsed(|line| object_of_line(line, "a document")).next().transpose()?;
        Ok(())
    }
}

/// Lines of together about [`BATCH`] bytes; none at the end.
fn next_batch<'a>(
    lines: &mut Lines<'a>,
    skip: &mut u64,
    left: &mut u64,
) -> anyhow::Result<Vec<Line<'a>>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while *left > 0 && bytes < BATCH {
        let Some(line) = lines.next_line()? else { break };
        if *skip > 0 {
            *skip -= 1;
            continue;
        }
        *left -= 1;
        bytes += line.text.len();
        batch.push(line);
    }
    Ok(batch)
}

/// A line that is not empty, and where it stands.
struct Line<'a> {
    path: &'a Path,
    number: usize,
    text: String,
}

/// The lines of files.
struct Lines<'a> {
    files: std::slice::Iter<'a, PathBuf>,
    open: Option<(&'a Path, Box<dyn BufRead + Send>, usize)>,
}

impl<'a> Lines<'a> {
    fn next_line(&mut self) -> anyhow::Result<Option<Line<'a>>> {
        loop {
            let Some((path, reader, number)) = &mut self.open else {
                let Some(path) = self.files.next() else { return Ok(None) };
                self.open = Some((path, text_blocks::open(path)?, 0));
                continue;
            };
            *number += 1;
            let unreadable = || format!("{}: the line cannot be read", place(path, *number));
            let mut text = String::new();
            let read = (&mut *reader).take(LONGEST_LINE).read_line(&mut text);
            anyhow::ensure!(
                text.len() < LONGEST_LINE as usize,
                "{}: the line does not end within {LONGEST_LINE} bytes; one object a line is read",
                place(path, *number)
            );
            if read.with_context(unreadable)? == 0 {
                self.open = None;
                continue;
            }
            if *number == 1 {
                text = without_mark(&text).to_string();
            }
            if !text.trim().is_empty() {
                return Ok(Some(Line { path, number: *number, text }));
            }
        }
    }
}

fn place(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}

/// The object of one line, which is to hold `what`.
pub(super) fn object_of_line(line: &str, what: &str) -> anyhow::Result<Map<String, Value>> {
    anyhow::ensure!(
        !line.trim_start().starts_with('['),
        "a JSON array, not JSON lines; write one object a line (`jq -c '.[]' FILE`)"
    );
    let kind = match serde_json::from_str(line).context("not JSON")? {
        Value::Object(object) => return Ok(object),
        Value::String(_) => "string",
        Value::Number(_) => "number",
        _ => "literal",
    };
    anyhow::bail!("a JSON {kind}, not an object with {what}")
}

/// The text under a key of one line's object.
fn text_of_line(line: &str, text_key: &str) -> anyhow::Result<String> {
    let mut object = object_of_line(line, &format!("the text under the key `{text_key}`"))?;
    match object.get_mut(text_key).map(Value::take) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => anyhow::bail!("the value of `{text_key}` is not a string"),
        None => anyhow::bail!(
            "no key `{text_key}`; name the right one with `data.source.jsonl.text_key`"
        ),
    }
}
