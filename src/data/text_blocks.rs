//! A text file, plain or compressed, in blocks of whole characters.

use super::files::{not_text, without_mark};
use anyhow::Context;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Bytes read at a time.
const BLOCK: usize = 1 << 20;

/// Opens a file of text; what is compressed by gzip or zstd (several streams one after the other
/// included) is read as what was compressed.
///
/// # Errors
/// When the file cannot be opened or is known not to be text, compressed or not.
pub(super) fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead + Send>> {
    let failed = || format!("{}: the file cannot be opened", path.display());
    let mut file = BufReader::with_capacity(BLOCK, File::open(path).with_context(failed)?);
    let first = file.fill_buf().with_context(failed)?;
    let mut text: Box<dyn BufRead + Send> = if first.starts_with(&[0x1f, 0x8b]) {
        let decoder = flate2::bufread::MultiGzDecoder::new(file);
        Box::new(BufReader::with_capacity(BLOCK, Unpacked { decoder, kind: "gzip" }))
    } else if first.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = zstd::stream::read::Decoder::with_buffer(file).with_context(failed)?;
        Box::new(BufReader::with_capacity(BLOCK, Unpacked { decoder, kind: "zstd" }))
    } else {
        Box::new(file)
    };
    let first =
        text.fill_buf().with_context(|| format!("{}: the file cannot be read", path.display()))?;
    match not_text(first) {
        Some(what) => anyhow::bail!("{}: this is {what}", path.display()),
        None => Ok(text),
    }
}

/// What a decoder gives; where it fails, what that means for the file.
struct Unpacked<D> {
    decoder: D,
    kind: &'static str,
}

impl<D: Read> Read for Unpacked<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buffer).map_err(|error| match error.raw_os_error() {
            // The disk's, and no damage of the data.
            Some(_) => error,
            None => io::Error::new(
                error.kind(),
                format!(
                    "its {} data is damaged or ends too early ({error}); fetch it again",
                    self.kind
                ),
            ),
        })
    }
}

/// The text of a file, less a byte-order mark, in blocks.
pub(super) struct TextBlocks {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    /// Bytes read, those of the blocks given and of `rest`.
    read: usize,
    /// The beginning of a character that a block ended in.
    rest: Vec<u8>,
}

impl TextBlocks {
    /// The blocks of a file.
    ///
    /// # Errors
    /// As [`open`].
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { path: path.to_path_buf(), reader: open(path)?, read: 0, rest: Vec::new() })
    }

    /// The next block; `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read or is not UTF-8, naming the place.
    pub(super) fn next_block(&mut self) -> anyhow::Result<Option<String>> {
        let mut bytes = std::mem::take(&mut self.rest);
        let start = self.read - bytes.len();
        let new = (&mut self.reader)
            .take((BLOCK - bytes.len()) as u64)
            .read_to_end(&mut bytes)
            .with_context(|| format!("{}: the file cannot be read", self.path.display()))?;
        self.read += new;
        let whole = match std::str::from_utf8(&bytes) {
            Ok(_) => bytes.len(),
            Err(error) if error.error_len().is_none() && new > 0 => error.valid_up_to(),
            Err(error) => anyhow::bail!(
                "{}: not UTF-8 at byte {}; convert the file first",
                self.path.display(),
                start + error.valid_up_to()
            ),
        };
        self.rest = bytes.split_off(whole);
        if bytes.is_empty() && new == 0 {
            return Ok(None);
        }
        let text = String::from_utf8(bytes).expect("checked above");
        Ok(Some(if start == 0 { without_mark(&text).to_string() } else { text }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn text_of(path: &Path) -> anyhow::Result<String> {
        let mut blocks = TextBlocks::open(path)?;
        let mut text = String::new();
        while let Some(block) = blocks.next_block()? {
            text += &block;
        }
        Ok(text)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// Characters of three bytes, so that blocks end within one; two streams in one file.
    #[test]
    fn compressed_text_is_read_as_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        let text = "ab\u{feff}".to_string() + &"你好".repeat(BLOCK / 2);
        let (first, second) = text.split_at(5);
        let [zstd_first, zstd_second] =
            [first, second].map(|part| zstd::encode_all(part.as_bytes(), 1).unwrap());
        for bytes in [
            text.clone().into_bytes(),
            ("\u{feff}".to_string() + &text).into_bytes(),
            [gzip(first.as_bytes()), gzip(second.as_bytes())].concat(),
            [zstd_first, zstd_second].concat(),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert!(text_of(&path).unwrap() == text);
        }
        std::fs::write(&path, b"").unwrap();
        assert_eq!(text_of(&path).unwrap(), "");
    }

    #[test]
    fn what_is_not_text_is_named_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        let late = [vec![b'a'; BLOCK + 7], b"\xe9a".to_vec()].concat();
        let cut = [vec![b'a'; 3], "é".as_bytes()[..1].to_vec()].concat();
        let damaged = gzip(b"some text")[..20].to_vec();
        // Random letters, so that blocks of text come before the end that is missing.
        let mut state = 1u64;
        let long: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            b'a' + (state >> 33) as u8 % 26
        })
        .take(3 * BLOCK)
        .collect();
        let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
        let zstd = zstd::encode_all(&long[..], 1).unwrap();
        for (bytes, expected) in [
            (late.clone(), format!("not UTF-8 at byte {}", BLOCK + 7)),
            (gzip(&late), format!("not UTF-8 at byte {}", BLOCK + 7)),
            (cut, "not UTF-8 at byte 3".to_string()),
            (damaged, "gzip data is damaged or ends too early".to_string()),
            (half(gzip(&long)), "gzip data is damaged or ends too early".to_string()),
            (half(zstd), "zstd data is damaged or ends too early".to_string()),
            (gzip(b"PAR1"), "a Parquet file".to_string()),
            (b"\xff\xfea\0".to_vec(), "UTF-16".to_string()),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = format!("{:#}", text_of(&path).unwrap_err());
            assert!(error.contains(&expected), "{error}");
        }
    }
}
