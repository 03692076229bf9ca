//! `metrics.jsonl` and `spectra.jsonl` read back while another process writes them.

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes read at a time; a longer line is no line of ours and is passed over.
const CHUNK: usize = 16 << 20;
/// Bytes before the place read up to that say whether the file is still the one that was read.
const MEMORY: usize = 256;

/// Reads the JSON objects of a file as they come, one a line, each once.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    /// Bytes taken, up to the end of a line.
    offset: u64,
    /// The last of them.
    behind: Vec<u8>,
}

/// What came since the last look.
#[derive(Debug, Default)]
pub struct News {
    /// The file was cut or replaced, as a resume does: what was read before is void.
    pub restarted: bool,
    /// Whole lines, in their order.
    pub lines: Vec<Map<String, Value>>,
}

impl Follower {
    /// A reader that stands at the file's beginning; nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), offset: 0, behind: Vec::new() }
    }

    /// The lines that came since the last call. A last line without an end is left for later; what
    /// is not a JSON object is passed over; a file that is not there has no lines.
    ///
    /// # Errors
    /// If the file cannot be read, or is not a file.
    pub fn poll(&mut self) -> Result<News> {
        let mut news = News::default();
        let Some(mut file) = open(&self.path)? else {
            news.restarted = self.offset > 0;
            self.rewind();
            return Ok(news);
        };
        if !self.continues(&mut file).with_context(|| self.failed())? {
            news.restarted = true;
            self.rewind();
        }
        file.seek(SeekFrom::Start(self.offset)).with_context(|| self.failed())?;
        loop {
            let mut chunk = Vec::new();
            let read = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk);
            read.with_context(|| self.failed())?;
            let is_full = chunk.len() == CHUNK;
            let whole = match chunk.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => end + 1,
                None if is_full => CHUNK,
                None => return Ok(news),
            };
            let lines = chunk[..whole].split(|byte| *byte == b'\n');
            news.lines.extend(lines.filter_map(|line| serde_json::from_slice(line).ok()));
            self.take(&chunk[..whole]);
            if !is_full {
                return Ok(news);
            }
            file.seek(SeekFrom::Start(self.offset)).with_context(|| self.failed())?;
        }
    }

    /// Whether the bytes before the place read up to are those that were read.
    fn continues(&self, file: &mut File) -> std::io::Result<bool> {
        let length = self.behind.len();
        if file.metadata()?.len() < self.offset {
            return Ok(false);
        }
        file.seek(SeekFrom::Start(self.offset - length as u64))?;
        let mut found = vec![0; length];
        match file.read_exact(&mut found) {
            // Cut between the two looks.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            read => read.map(|()| found == self.behind),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.offset += bytes.len() as u64;
        self.behind.extend_from_slice(&bytes[bytes.len().saturating_sub(MEMORY)..]);
        let surplus = self.behind.len().saturating_sub(MEMORY);
        self.behind.drain(..surplus);
    }

    fn rewind(&mut self) {
        self.offset = 0;
        self.behind.clear();
    }

    fn failed(&self) -> String {
        format!("{}: not read", self.path.display())
    }
}

/// The file at a path, if there is one. Another kind of thing, such as a pipe that would be waited
/// for, is refused.
fn open(path: &Path) -> Result<Option<File>> {
    let failed = || format!("{}: not read", path.display());
    match path.metadata() {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        found => anyhow::ensure!(
            found.with_context(failed)?.is_file(),
            "{}: is not a file; a run's figures are lines of JSON in a file",
            path.display()
        ),
    }
    match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        opened => Ok(Some(opened.with_context(failed)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn steps(news: &News) -> Vec<u64> {
        news.lines.iter().filter_map(|line| line.get("step")?.as_u64()).collect()
    }

    fn append(path: &Path, bytes: &[u8]) {
        let mut file = File::options().append(true).create(true).open(path).unwrap();
        file.write_all(bytes).unwrap();
    }

    #[test]
    fn every_line_comes_once_and_half_a_line_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut follower = Follower::new(&path);
        assert!(steps(&follower.poll().unwrap()).is_empty());
        append(&path, b"{\"step\":1}\n{\"step\":2}\n{\"st");
        assert_eq!(steps(&follower.poll().unwrap()), [1, 2]);
        assert!(steps(&follower.poll().unwrap()).is_empty());
        append(&path, b"ep\":3}\nnonsense \xff\0\n[4]\n{\"step\":5}\n");
        let news = follower.poll().unwrap();
        assert_eq!((steps(&news), news.restarted), (vec![3, 5], false));
    }

    #[test]
    fn a_file_that_was_cut_replaced_or_deleted_is_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut follower = Follower::new(&path);
        append(&path, b"{\"step\":1,\"a\":1}\n{\"step\":2}\n{\"step\":3}\n");
        assert_eq!(steps(&follower.poll().unwrap()), [1, 2, 3]);
        // Cut, as a resume at step 1 does.
        std::fs::write(&path, b"{\"step\":1,\"a\":1}\n").unwrap();
        let news = follower.poll().unwrap();
        assert_eq!((steps(&news), news.restarted), (vec![1], true));
        // Replaced by a longer one with another beginning.
        std::fs::write(&path, b"{\"step\":1,\"a\":2}\n{\"step\":2}\n{\"step\":3}\n").unwrap();
        let news = follower.poll().unwrap();
        assert_eq!((steps(&news), news.restarted), (vec![1, 2, 3], true));
        std::fs::remove_file(&path).unwrap();
        let news = follower.poll().unwrap();
        assert!(steps(&news).is_empty() && news.restarted);
        assert!(!follower.poll().unwrap().restarted);
    }

    #[test]
    fn a_line_longer_than_a_chunk_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        append(&path, b"{\"step\":1}\n");
        append(&path, &vec![b'x'; 2 * CHUNK + 5]);
        append(&path, b"\n{\"step\":2}\n");
        assert_eq!(steps(&Follower::new(&path).poll().unwrap()), [1, 2]);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_a_file_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let error = Follower::new(folder.path()).poll().unwrap_err();
        assert!(format!("{error:#}").contains("is not a file"), "{error:#}");
    }
}
