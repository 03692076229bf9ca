//! A GGUF file: its settings and its table of tensors, as candle reads them, with what its reader
//! cannot bear refused before.

use crate::fs::open_ordinary;
use anyhow::{Context, Result, ensure};
use candle_core::quantized::gguf_file::Content;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek};
use std::path::Path;

/// The setting by which candle's reader divides.
const ALIGNMENT: &[u8] = b"general.alignment";
/// Lists in lists deeper than this are not gone into, and neither does candle.
const MOST_DEPTH: usize = 64;

/// Opens a GGUF file and reads what is before its tensors.
///
/// # Errors
/// When it cannot be read or is no sound GGUF file.
pub fn open(path: &Path) -> Result<(BufReader<File>, Content)> {
    let file = open_ordinary(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut reader = BufReader::new(file);
    let unsound = || format!("{}: not a sound GGUF file", path.display());
    // What is wrong in another way, candle's reader says better.
    let aligns_to_nothing = Walk { reader: &mut reader, length: 8 }.aligns_to_nothing();
    ensure!(
        !aligns_to_nothing.unwrap_or(false),
        "{}: `general.alignment` is 0; fetch it again",
        unsound()
    );
    reader.rewind().with_context(unsound)?;
    let content = Content::read(&mut reader).with_context(unsound)?;
    Ok((reader, content))
}

/// A way through the settings of a file.
struct Walk<'a> {
    reader: &'a mut BufReader<File>,
    /// Bytes of a length: 4 in the first version of the format, 8 since.
    length: usize,
}

impl Walk<'_> {
    /// Whether tensors are said to begin at multiples of 0.
    fn aligns_to_nothing(mut self) -> io::Result<bool> {
        let (_magic, version) = (self.number(4)?, self.number(4)?);
        self.length = if version == 1 { 4 } else { 8 };
        let _tensors = self.number(self.length)?;
        for _ in 0..self.number(self.length)? {
            let length = self.number(self.length)?;
            let mut key = [0; ALIGNMENT.len()];
            match length == key.len() as u64 {
                true => self.reader.read_exact(&mut key)?,
                false => self.skip(length)?,
            }
            let kind = self.number(4)?;
            match width(kind).filter(|_| key == ALIGNMENT) {
                Some(width) if self.number(width)? == 0 => return Ok(true),
                Some(_) => {}
                None => self.pass_over(kind, 0)?,
            }
        }
        Ok(false)
    }

    /// An unsigned number of so many bytes, the lowest first.
    fn number(&mut self, bytes: usize) -> io::Result<u64> {
        let mut number = [0; 8];
        self.reader.read_exact(&mut number[..bytes])?;
        Ok(u64::from_le_bytes(number))
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
        self.reader.seek_relative(bytes)
    }

    /// A value of this kind.
    fn pass_over(&mut self, kind: u64, depth: usize) -> io::Result<()> {
        const TEXT: u64 = 8;
        const LIST: u64 = 9;
        match (kind, width(kind)) {
            (_, Some(width)) => self.skip(width as u64),
            (TEXT, _) => {
                let length = self.number(self.length)?;
                self.skip(length)
            }
            (LIST, _) if depth < MOST_DEPTH => {
                let (kind, count) = (self.number(4)?, self.number(self.length)?);
                match width(kind) {
                    Some(width) => self.skip(count.saturating_mul(width as u64)),
                    None => (0..count).try_for_each(|_| self.pass_over(kind, depth + 1)),
                }
            }
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }
}

/// Bytes of a number or truth value; none for texts, lists and what is unknown.
fn width(kind: u64) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::QTensor;
    use candle_core::quantized::gguf_file::{Value, write};

    /// Settings of every kind are passed over, and the one that candle's reader would divide by is
    /// found wherever it stands.
    #[test]
    fn an_alignment_of_zero_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let list = |values: Vec<Value>| Value::Array(values);
        let values = [
            Value::U8(1),
            Value::I16(-1),
            Value::F32(1.0),
            Value::Bool(true),
            Value::U64(7),
            Value::String("text".into()),
            list(vec![Value::String("a".into()), Value::String("bc".into())]),
            list(vec![list(vec![Value::I64(1), Value::I64(2)])]),
            list(vec![]),
        ];
        let written = |alignment: Value, before: bool| {
            let names: Vec<String> = (0..values.len()).map(|i| format!("general.{i}")).collect();
            let mut all: Vec<(&str, &Value)> =
                names.iter().map(String::as_str).zip(&values).collect();
            all.insert(if before { 0 } else { all.len() }, ("general.alignment", &alignment));
            let tensors: [(&str, &QTensor); 0] = [];
            write(&mut File::create(&path).unwrap(), &all, &tensors).unwrap();
            open(&path).map(|(_, content)| content)
        };
        for before in [true, false] {
            for alignment in [Value::U32(0), Value::U8(0), Value::I16(0)] {
                let error = written(alignment, before).unwrap_err().to_string();
                assert!(error.contains("`general.alignment` is 0"), "{error}");
            }
            let content = written(Value::U32(64), before).unwrap();
            assert_eq!(content.tensor_data_offset % 64, 0);
            assert_eq!(content.metadata.len(), values.len() + 1);
        }
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let settings = [("a", &Value::U32(1)), ("general.alignment", &Value::U32(32))];
        let tensors: [(&str, &QTensor); 0] = [];
        write(&mut File::create(&path).unwrap(), &settings, &tensors).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let end = open(&path).unwrap().0.stream_position().unwrap() as usize;
        for length in 0..end {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(open(&path).is_err(), "{length} of {end} bytes");
        }
    }
}
