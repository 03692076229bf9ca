//! Documents of Parquet files: one a row, the text in a column; no other column is read.

use super::documents::Chunk;
use super::rows::{Rows, Span};
use anyhow::{Context, Result, bail, ensure};
use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

/// Rows that are read at a time.
const BATCH: usize = 256;

/// Some of the rows of files.
#[derive(Clone, Debug)]
pub(super) struct ParquetRows {
    /// The files and how many rows each has.
    files: Vec<(PathBuf, u64)>,
    text_key: String,
    span: Span,
}

impl ParquetRows {
    /// All rows of files.
    ///
    /// # Errors
    /// When a file cannot be read, is no Parquet file, or has no column of strings with this name.
    pub(super) fn open(files: Vec<PathBuf>, text_key: &str) -> Result<Self> {
        let rows = |path: PathBuf| {
            let rows = OpenFile::open(&path, text_key)?.rows;
            Ok((path, rows))
        };
        let files = files.into_iter().map(rows).collect::<Result<Vec<_>>>()?;
        let count = files.iter().map(|(_, rows)| rows).sum();
        Ok(Self { files, text_key: text_key.to_string(), span: Span { first: 0, count } })
    }

    /// The documents, in order; errors name file and row.
    pub(super) fn chunks<'a>(
        &self,
    ) -> impl Iterator<Item = Result<Chunk<'a>>> + Send + use<'a, '_> {
        let mut texts = Texts {
            files: self.files.iter(),
            text_key: &self.text_key,
            open: None,
            skip: self.span.first,
            left: self.span.count,
        };
        let mut ready = VecDeque::new();
        std::iter::from_fn(move || {
            if ready.is_empty() && texts.left > 0 {
                match texts.next_batch() {
                    Ok(batch) => ready = batch.into(),
                    Err(error) => {
                        texts.left = 0;
                        return Some(Err(error));
                    }
                }
            }
            ready.pop_front().map(|text| Ok(Chunk { text: Cow::Owned(text), ends: true }))
        })
    }
}

impl Rows for ParquetRows {
    const NAME: &'static str = "rows";

    fn span(&self) -> Span {
        self.span
    }

    fn within(&self, span: Span) -> Self {
        Self { span, ..self.clone() }
    }

    fn check_first(&self) -> Result<()> {
        self.chunks().next().transpose()?;
        Ok(())
    }
}

/// The texts of files, from a row on.
struct Texts<'a> {
    files: std::slice::Iter<'a, (PathBuf, u64)>,
    text_key: &'a str,
    open: Option<OpenFile<'a>>,
    /// Rows to be skipped before the next.
    skip: u64,
    /// Rows to be read.
    left: u64,
}

impl Texts<'_> {
    /// The next few texts, at least one; none where there are no more files.
    fn next_batch(&mut self) -> Result<Vec<String>> {
        loop {
            let Some(open) = &mut self.open else {
                let Some((path, rows)) = self.files.next() else { return Ok(Vec::new()) };
                if self.skip >= *rows {
                    self.skip -= rows;
                    continue;
                }
                let open = OpenFile::open(path, self.text_key)?;
                ensure!(
                    open.rows == *rows,
                    "{}: the file has changed while it was read; start again when it is complete",
                    path.display()
                );
                self.open = Some(open);
                continue;
            };
            let most = BATCH.min(usize::try_from(self.left).unwrap_or(usize::MAX));
            let batch = guarded(open.path, || open.next_batch(&mut self.skip, most))?;
            if !batch.is_empty() {
                self.left -= batch.len() as u64;
                return Ok(batch);
            }
            self.open = None;
        }
    }
}

/// A file that is being read.
struct OpenFile<'a> {
    path: &'a Path,
    reader: SerializedFileReader<File>,
    /// Of all columns, the one with the text.
    column: usize,
    /// All rows.
    rows: u64,
    /// The row group to be read next.
    next: usize,
    /// The row group that is being read.
    group: Option<Group>,
    /// Rows that are behind.
    behind: u64,
}

/// A row group that is being read.
struct Group {
    texts: ColumnReaderImpl<ByteArrayType>,
    left: u64,
}

impl<'a> OpenFile<'a> {
    fn open(path: &'a Path, text_key: &str) -> Result<Self> {
        let open = || -> Result<Self> {
            let file = crate::fs::open_ordinary(path)?;
            let reader = SerializedFileReader::new(file)
                .context("no Parquet file, or a damaged one; fetch it again")?;
            let metadata = reader.metadata();
            let column = column_of_text(metadata, text_key)?;
            let groups = metadata.row_groups().iter();
            let rows = groups.map(|group| u64::try_from(group.num_rows())).sum::<Result<_, _>>();
            let rows = rows.context("a damaged Parquet file; fetch it again")?;
            Ok(Self { path, reader, column, rows, next: 0, group: None, behind: 0 })
        };
        guarded(path, || open().with_context(|| path.display().to_string()))
    }

    /// Up to `most` texts after those to be skipped; none at the end of the file.
    fn next_batch(&mut self, skip: &mut u64, most: usize) -> Result<Vec<String>> {
        loop {
            if self.group.as_ref().is_none_or(|group| group.left == 0) {
                let Some(group) = self.reader.metadata().row_groups().get(self.next) else {
                    return Ok(Vec::new());
                };
                let rows = group.num_rows() as u64;
                self.next += 1;
                if *skip >= rows {
                    *skip -= rows;
                    self.behind += rows;
                    continue;
                }
                let group = self.open_group(rows, std::mem::take(skip));
                self.group = Some(group.with_context(|| damaged(self.path, self.next))?);
            }
            let Some(group) = &mut self.group else { continue };
            let most = most.min(usize::try_from(group.left).unwrap_or(usize::MAX));
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            let read = group.texts.read_records(most, Some(&mut levels), None, &mut values);
            let read = read.map_err(anyhow::Error::from).and_then(|(rows, present, _)| {
                ensure!(rows > 0, "it has fewer rows than it says");
                Ok((rows, present))
            });
            let (rows, present) = read.with_context(|| damaged(self.path, self.next))?;
            group.left -= rows as u64;
            let row = |index: usize| {
                format!("{}: row {}", self.path.display(), self.behind + index as u64 + 1)
            };
            if present < rows {
                let index = levels.iter().position(|level| *level == 0).unwrap_or(0);
                bail!("{}: the text is null; drop such rows first", row(index));
            }
            let text = |(index, value): (usize, &ByteArray)| {
                let text = std::str::from_utf8(value.data());
                Ok(text.with_context(|| format!("{}: not UTF-8", row(index)))?.to_string())
            };
            let texts = values.iter().enumerate().map(text).collect::<Result<Vec<_>>>()?;
            self.behind += rows as u64;
            return Ok(texts);
        }
    }

    /// Opens the row group before the next one, less some of its rows.
    fn open_group(&mut self, rows: u64, skip: u64) -> Result<Group> {
        let group = self.reader.get_row_group(self.next - 1)?;
        let chunk = group.metadata().column(self.column);
        let places = [Some(chunk.compressed_size()), Some(chunk.data_page_offset())];
        let mut places = places.into_iter().chain([chunk.dictionary_page_offset()]).flatten();
        ensure!(places.all(|place| place >= 0), "its place in the file is none");
        let ColumnReader::ByteArrayColumnReader(mut texts) =
            group.get_column_reader(self.column)?
        else {
            bail!("its column is not one of strings");
        };
        let skipped = texts.skip_records(usize::try_from(skip)?)?;
        ensure!(skipped as u64 == skip, "it has fewer rows than it says");
        self.behind += skip;
        Ok(Group { texts, left: rows - skip })
    }
}

/// What `read` gives of a file; the crate that reads Parquet panics at some damages, and that is an
/// error as others are.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    // What was being read is not used after an error.
    std::panic::catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        bail!("{}: the Parquet data is damaged; fetch it again", path.display())
    })
}

/// Where a damage is: in a row group, counted from 1.
fn damaged(path: &Path, group: usize) -> String {
    format!(
        "{}: row group {group} cannot be read; the file is damaged, fetch it again",
        path.display()
    )
}

/// The column of strings with this name, among all.
fn column_of_text(metadata: &ParquetMetaData, name: &str) -> Result<usize> {
    let schema = metadata.file_metadata().schema_descr();
    let fields = schema.root_schema().get_fields();
    let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
    ensure!(
        names.contains(&name),
        "no column `{name}` among `{}`; name the right one with `data.source.parquet.text_key`",
        names.join("`, `")
    );
    let is_it = |column: &parquet::schema::types::ColumnDescPtr| column.path().parts() == [name];
    let found = schema.columns().iter().position(is_it);
    let column = found.map(|index| schema.column(index));
    let is_text = column.is_some_and(|column| {
        let is_string = matches!(column.logical_type_ref(), Some(LogicalType::String))
            || column.converted_type() == ConvertedType::UTF8;
        column.physical_type() == Type::BYTE_ARRAY && is_string && column.max_rep_level() == 0
    });
    match found {
        Some(index) if is_text => Ok(index),
        _ => bail!(
            "the column `{name}` is not one of strings; name another with \
             `data.source.parquet.text_key`"
        ),
    }
}

#[cfg(test)]
mod tests;
