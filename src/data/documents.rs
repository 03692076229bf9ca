//! The documents of a source as a stream that can be gone through more than once: what is in
//! memory at a time is a block of a file.

use super::chat_template::Example;
use super::instructions::Instructions;
use super::json_lines::JsonLines;
#[cfg(feature = "datasets")]
use super::parquet_rows::ParquetRows;
use super::rows::Rows;
use super::text_blocks::TextBlocks;
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// A part of a document.
#[derive(Debug, PartialEq)]
pub(super) struct Chunk<'a> {
    /// Its text.
    pub text: Cow<'a, str>,
    /// Whether the document ends with it.
    pub ends: bool,
}

/// Parts of documents, in order.
pub(super) type Chunks<'a> = Box<dyn Iterator<Item = anyhow::Result<Chunk<'a>>> + Send + 'a>;

/// Training or validation documents.
#[derive(Debug)]
pub(super) enum Documents {
    /// In memory.
    Memory(Vec<String>),
    /// One document: a part of files joined as they are.
    Text(TextPart),
    /// One document for each line of JSON.
    Lines(JsonLines),
    /// One document for each row of Parquet files.
    #[cfg(feature = "datasets")]
    Rows(ParquetRows),
    /// One document for each example of instructions.
    Examples(Instructions),
}

impl Documents {
    /// Number of documents.
    pub(super) fn count(&self) -> u64 {
        match self {
            Documents::Memory(documents) => documents.len() as u64,
            Documents::Text(_) => 1,
            Documents::Lines(lines) => lines.span().count,
            #[cfg(feature = "datasets")]
            Documents::Rows(rows) => rows.span().count,
            Documents::Examples(examples) => examples.count(),
        }
    }

    /// Goes through them from the first.
    pub(super) fn chunks(&self) -> Chunks<'_> {
        match self {
            Documents::Memory(documents) => Box::new(
                documents.iter().map(|text| Ok(Chunk { text: Cow::Borrowed(text), ends: true })),
            ),
            Documents::Text(part) => Box::new(part.chunks()),
            Documents::Lines(lines) => Box::new(lines.chunks()),
            #[cfg(feature = "datasets")]
            Documents::Rows(rows) => Box::new(rows.chunks()),
            Documents::Examples(examples) => Box::new(
                examples
                    .examples()
                    .map(|example| Ok(Chunk { text: Cow::Owned(example?.text), ends: true })),
            ),
        }
    }

    /// Adds their number, and the length and text of each, with what of it is trained on if that is
    /// not all, to a hash; returns the bytes of all.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn hash_into(&self, hasher: &mut blake3::Hasher) -> anyhow::Result<u64> {
        hasher.update(&self.count().to_le_bytes());
        // A document that comes in many chunks is one whose length is known before.
        if let Documents::Text(part) = self {
            hasher.update(&(part.to - part.from).to_le_bytes());
        }
        let mut bytes = 0;
        if let Documents::Examples(examples) = self {
            for example in examples.examples() {
                let Example { text, trained } = example?;
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
                hasher.update(&(trained.len() as u64).to_le_bytes());
                for at in trained.iter().flat_map(|part| [part.start, part.end]) {
                    hasher.update(&(at as u64).to_le_bytes());
                }
                bytes += text.len() as u64;
            }
            return Ok(bytes);
        }
        for chunk in self.chunks() {
            let text = chunk?.text;
            if !matches!(self, Documents::Text(_)) {
                hasher.update(&(text.len() as u64).to_le_bytes());
            }
            hasher.update(text.as_bytes());
            bytes += text.len() as u64;
        }
        Ok(bytes)
    }

    /// All of them, in memory.
    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<String> {
        let mut documents = vec![String::new()];
        for chunk in self.chunks() {
            let Chunk { text, ends } = chunk.expect("a chunk");
            documents.last_mut().expect("one").push_str(&text);
            if ends {
                documents.push(String::new());
            }
        }
        assert_eq!(documents.pop().as_deref(), Some(""), "the last document ends");
        documents
    }
}

/// Text files joined as they are, and how long each is.
#[derive(Clone, Debug, Default)]
pub(super) struct JoinedFiles {
    /// Files with the UTF-8 bytes of their text.
    files: Vec<(PathBuf, u64)>,
    /// Bytes and characters before each block.
    marks: Vec<(u64, u64)>,
    bytes: u64,
    characters: u64,
}

impl JoinedFiles {
    /// Goes through the files once.
    ///
    /// # Errors
    /// When a file cannot be read or is not UTF-8; compressed files of other kinds are named.
    pub(super) fn measure(paths: Vec<PathBuf>) -> anyhow::Result<Self> {
        let mut joined = Self::default();
        for path in paths {
            let (mut blocks, before) = (TextBlocks::open(&path)?, joined.bytes);
            while let Some(block) = blocks.next_block()? {
                joined.marks.push((joined.bytes, joined.characters));
                joined.bytes += block.len() as u64;
                joined.characters += block.chars().count() as u64;
            }
            joined.files.push((path, joined.bytes - before));
        }
        Ok(joined)
    }

    /// All of it.
    pub(super) fn whole(self) -> Documents {
        let to = self.bytes;
        Documents::Text(TextPart { files: self.files, from: 0, to })
    }

    /// What is before and from the character of a number on, which `share` gives of the number of
    /// all.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn split(
        self,
        share: impl Fn(usize) -> usize,
    ) -> anyhow::Result<(Documents, Documents)> {
        let wanted = share(self.characters as usize) as u64;
        let mark = self.marks.partition_point(|(_, characters)| *characters <= wanted);
        let (from, mut left) = match mark.checked_sub(1).and_then(|mark| self.marks.get(mark)) {
            Some((bytes, characters)) => (*bytes, (wanted - characters) as usize),
            None => (0, wanted as usize),
        };
        let part = |from, to| TextPart { files: self.files.clone(), from, to };
        let mut at = from;
        for chunk in part(from, self.bytes).chunks() {
            let text = chunk?.text;
            match text.char_indices().nth(left) {
                Some((index, _)) => {
                    at += index as u64;
                    break;
                }
                None => {
                    at += text.len() as u64;
                    left -= text.chars().count();
                }
            }
        }
        Ok((Documents::Text(part(0, at)), Documents::Text(part(at, self.bytes))))
    }
}

/// Bytes `from..to` of files joined as they are.
#[derive(Clone, Debug)]
pub(super) struct TextPart {
    files: Vec<(PathBuf, u64)>,
    from: u64,
    to: u64,
}

impl TextPart {
    fn chunks(&self) -> TextChunks<'_> {
        TextChunks { part: self, next: 0, open: None, at: 0, ended: false }
    }
}

/// The chunks of a text; the last is empty and ends the document.
struct TextChunks<'a> {
    part: &'a TextPart,
    /// File to be opened next.
    next: usize,
    /// The file that is being read, and where it ends.
    open: Option<(TextBlocks, u64)>,
    /// Bytes of all that is behind.
    at: u64,
    ended: bool,
}

impl TextChunks<'_> {
    /// The part of the next block that belongs to the text; `None` at its end.
    fn advance(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if self.at >= self.part.to {
                return Ok(None);
            }
            let Some((blocks, file_end)) = &mut self.open else {
                let Some((path, bytes)) = self.part.files.get(self.next) else {
                    return Ok(None);
                };
                self.next += 1;
                if self.at + bytes <= self.part.from {
                    self.at += bytes;
                } else {
                    self.open = Some((TextBlocks::open(path)?, self.at + bytes));
                }
                continue;
            };
            let path = &self.part.files[self.next - 1].0;
            let file_end = *file_end;
            let Some(block) = blocks.next_block()? else {
                self.open = None;
                if self.at < file_end {
                    return Err(changed(path));
                }
                continue;
            };
            let (first, start) = (self.at, self.at.max(self.part.from));
            self.at += block.len() as u64;
            if self.at > file_end {
                return Err(changed(path));
            }
            let end = self.at.min(self.part.to);
            if start < end {
                let range = (start - first) as usize..(end - first) as usize;
                let text = block.get(range);
                return Ok(Some(text.map(str::to_string).ok_or_else(|| changed(path))?));
            }
        }
    }
}

fn changed(path: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "{}: the file has changed while it was read; start again when it is complete",
        path.display()
    )
}

impl<'a> Iterator for TextChunks<'a> {
    type Item = anyhow::Result<Chunk<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let text = match self.advance() {
            Ok(text) => text,
            Err(error) => {
                self.ended = true;
                return Some(Err(error));
            }
        };
        self.ended = text.is_none();
        Some(Ok(Chunk { text: Cow::Owned(text.unwrap_or_default()), ends: self.ended }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every split of text in three files, one of them empty, into what is before and after.
    #[test]
    fn joined_files_are_split_at_a_character() {
        let folder = tempfile::tempdir().unwrap();
        let text = "aé你bcdef\n好é";
        let mut paths = Vec::new();
        for (index, part) in [&text[..3], "", &text[3..]].into_iter().enumerate() {
            paths.push(folder.path().join(format!("{index}.txt")));
            std::fs::write(&paths[index], part).unwrap();
        }
        let joined = JoinedFiles::measure(paths.clone()).unwrap();
        assert_eq!(joined.clone().whole().all(), [text]);
        let count = text.chars().count();
        for at in 0..=count {
            let (before, after) = joined.clone().split(|all| at.min(all)).unwrap();
            let place = text.char_indices().nth(at).map_or(text.len(), |(index, _)| index);
            assert_eq!(
                (before.all(), after.all()),
                (vec![text[..place].into()], vec![text[place..].into()])
            );
        }
        std::fs::write(&paths[0], "longer than it was").unwrap();
        let error = joined.whole().chunks().find_map(Result::err).expect("a change").to_string();
        assert!(error.contains("0.txt") && error.contains("has changed"), "{error}");
    }

    /// A split within a long text, beyond its first blocks.
    #[test]
    fn long_texts_are_split_as_short_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.txt");
        let text: String = (0..700_000).map(|i| if i % 3 == 0 { 'é' } else { 'x' }).collect();
        std::fs::write(&path, &text).unwrap();
        let joined = JoinedFiles::measure(vec![path.clone(), path]).unwrap();
        let (before, after) = joined.split(|all| all / 4 * 3).unwrap();
        let whole = text.repeat(2);
        let place = whole.char_indices().nth(1_050_000).unwrap().0;
        assert!(before.all().concat() == whole[..place] && after.all().concat() == whole[place..]);
    }

    /// The hash is that of the documents as they were hashed when all of them were in memory.
    #[test]
    fn the_hash_of_a_stream_is_that_of_its_documents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, "some text é").unwrap();
        let joined = JoinedFiles::measure(vec![path]).unwrap().whole();
        let hash = |documents: &Documents| {
            let mut hasher = blake3::Hasher::new();
            let bytes = documents.hash_into(&mut hasher).unwrap();
            (bytes, hasher.finalize())
        };
        let memory = Documents::Memory(vec!["some text é".to_string()]);
        assert_eq!(hash(&joined), hash(&memory));
        let expected = [&1u64.to_le_bytes()[..], &12u64.to_le_bytes(), "some text é".as_bytes()];
        assert_eq!(hash(&memory), (12, blake3::hash(&expected.concat())));
    }
}
