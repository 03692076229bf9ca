//! Pieces, the tokens of streams, and parts that go on where they were stopped.

use super::*;
use crate::data::documents::JoinedFiles;
use crate::data::hugging_face::last_cut;
use crate::data::instructions;
use crate::data::part_writer::Saves;
use crate::data::progress::{Differs, Place};
use crate::data::shard::TokenShard;
use crate::spec::{DataSpec, SourceSpec};
use indicatif::ProgressBar;
use std::path::Path;
use std::time::Duration;

/// Writes a part from a place on; every place that it could go on from goes to `save`.
fn write(
    path: &Path,
    documents: &Documents,
    tokenizer: &Tokenizer,
    end: &DocumentEnd,
    from: Option<Place>,
    save: impl FnMut(Place) -> anyhow::Result<()>,
) -> anyhow::Result<Finished> {
    let saves = Saves { every: Duration::ZERO, save: Box::new(save) };
    let (width, hidden) = (Width::for_vocabulary(tokenizer.vocab_size()), ProgressBar::hidden());
    let is_masked = matches!(documents, Documents::Examples(_));
    let part = PartWriter::open(path, width, is_masked, from, saves, &hidden)?;
    let hash = blake3::hash(b"tokenizer");
    match documents {
        Documents::Examples(examples) => write_examples(part, examples, tokenizer, hash),
        _ => write_part(part, documents, tokenizer, end, hash),
    }
}

/// Whatever the chunks, pieces make up the documents and end where they may.
#[test]
fn pieces_are_cut_where_they_may_be() {
    let documents = ["one\ntwo\n\nthree\nfour", "", "five\n", "no end in sight"];
    let whole = Documents::Memory(documents.map(String::from).to_vec());
    for size in 1..8 {
        let chunks = documents.iter().flat_map(|document| {
            let characters: Vec<char> = document.chars().collect();
            let mut parts: Vec<String> =
                characters.chunks(size).map(|part| part.iter().collect()).collect();
            parts.push(String::new());
            let last = parts.len() - 1;
            parts
                .into_iter()
                .enumerate()
                .map(move |(index, text)| Ok(Chunk { text: text.into(), ends: index == last }))
        });
        let chunks: Chunks = Box::new(chunks.collect::<Vec<_>>().into_iter());
        let mut pieces = Pieces::new(&whole, last_cut);
        pieces.chunks = chunks;
        let mut joined = vec![String::new(); documents.len()];
        for piece in pieces {
            let Piece { document, start, text, ends } = piece.unwrap();
            let before = &mut joined[document as usize];
            assert_eq!(before.len() as u64, start);
            before.push_str(&text);
            assert!(ends || text.ends_with(['e', 'o', '\n']), "{text:?}");
            assert!(
                ends || documents[document as usize][before.len()..]
                    .starts_with(char::is_alphabetic)
            );
        }
        assert_eq!(joined, documents);
    }
}

/// Megabytes in several files, in the blocks and batches of a stream: the tokens are those of
/// the whole text, for every kind of tokenizer.
#[test]
fn a_streamed_text_has_the_tokens_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let text: String =
        (0..150_000).map(|i| format!("let é{i} = {};\n{}", i * 7, "\n  ".repeat(i % 3))).collect();
    let middle = text.floor_char_boundary(text.len() / 3);
    let mut paths = Vec::new();
    for (name, part) in [("a", &text[..middle]), ("b", &text[middle..])] {
        paths.push(folder.path().join(name));
        std::fs::write(folder.path().join(name), part).unwrap();
    }
    let documents = JoinedFiles::measure(paths).unwrap().whole();
    let byte_pair = Tokenizer::train_byte_pair(&[text[..20_000].to_string()], 400).unwrap();
    for tokenizer in [Tokenizer::bytes(), Tokenizer::characters([text.as_str()]), byte_pair] {
        let end = DocumentEnd { tokens: vec![3, 4], text_bytes: 1 };
        let path = folder.path().join("train.tokens");
        let hash = blake3::hash(b"tokenizer");
        let written = write(&path, &documents, &tokenizer, &end, None, |_| Ok(())).unwrap();
        let (shard, read) = TokenShard::open(&path, &hash).unwrap();
        assert_eq!((read, read.text_bytes), (written.header, text.len() as u64 + 1));
        let expected = [tokenizer.encode(&text).unwrap(), end.tokens.clone()].concat();
        assert!(shard.read(0, shard.len()) == expected, "{}", tokenizer.description());
    }
}

#[test]
fn documents_end_with_their_tokens_and_failures_name_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.tokens");
    let hash = blake3::hash(b"tokenizer");
    let documents = Documents::Memory(["a", "", "b"].map(String::from).to_vec());
    let end = DocumentEnd { tokens: vec![10], text_bytes: 1 };
    let tokenizer = Tokenizer::bytes();
    write(&path, &documents, &tokenizer, &end, None, |_| Ok(())).unwrap();
    let (shard, _) = TokenShard::open(&path, &hash).unwrap();
    assert_eq!(shard.read(0, shard.len()), b"a\n\nb\n".map(u32::from));
    let tokenizer = Tokenizer::characters(["a\n"]);
    let error = write(&path, &documents, &tokenizer, &end, None, |_| Ok(())).unwrap_err();
    assert!(format!("{error:#}").contains("document 3"), "{error:#}");
}

/// Documents of a little more than three batches, and the tokenizer and end that go with them:
/// one long text, many documents, and examples with their answers.
fn long_documents(folder: &Path) -> [(Documents, Tokenizer, DocumentEnd); 3] {
    let path = folder.join("text");
    let line = |i: usize| format!("line {i} of é many, {}\n", i * i % 9973);
    let text: String = (0..900_000).map(line).collect();
    std::fs::write(&path, &text).unwrap();
    let whole = JoinedFiles::measure(vec![path]).unwrap().whole();
    let documents = text.as_bytes().chunks(999_983);
    let documents = documents.map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    // The end has no text, so that documents are listed.
    let end = DocumentEnd { tokens: vec![3, 4], text_bytes: 1 };
    let path = folder.join("chat.jsonl");
    let example = |i: usize| {
        let (prompt, answer) = ("p".repeat(i % 700), "a".repeat(i % 900));
        format!("{{\"prompt\": \"{prompt}\", \"completion\": \"{answer}\"}}\n")
    };
    std::fs::write(&path, (0..36_000).map(example).collect::<String>()).unwrap();
    let spec = serde_json::json!({
        "source": {"instructions": {"train": [path], "val_fraction": 0.01}}, "tokenizer": "bytes"
    });
    let spec: DataSpec = serde_json::from_value(spec).unwrap();
    let SourceSpec::Instructions(source) = &spec.source else { unreachable!() };
    let examples = instructions::read(source, &spec, None).unwrap().train;
    [
        (whole, Tokenizer::bytes(), DocumentEnd::default()),
        (Documents::Memory(documents), Tokenizer::bytes(), end),
        (examples, Tokenizer::bytes(), DocumentEnd::default()),
    ]
}

/// The files of a part, by name.
fn files(path: &Path) -> Vec<Option<Vec<u8>>> {
    ["tokens", "mask"].map(|kind| std::fs::read(path.with_extension(kind)).ok()).to_vec()
}

/// Writes a part until the place of this number, and stops there; returns the place.
fn stop_at(
    number: usize,
    path: &Path,
    (documents, tokenizer, end): &(Documents, Tokenizer, DocumentEnd),
    from: Option<Place>,
) -> Place {
    let mut places = Vec::new();
    let stopped = write(path, documents, tokenizer, end, from, |place| {
        places.push(place);
        anyhow::ensure!(places.len() <= number, "stopped");
        Ok(())
    });
    assert_eq!(stopped.unwrap_err().to_string(), "stopped");
    places.pop().unwrap()
}

/// Stopped at any place, or at two one after the other, a part becomes the same, byte for byte.
#[test]
fn a_part_goes_on_from_every_place() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, part) in long_documents(folder.path()).iter().enumerate() {
        let (documents, tokenizer, end) = part;
        let path = folder.path().join(format!("{kind}.tokens"));
        let mut places = 0;
        let count = |_| {
            places += 1;
            Ok(())
        };
        let whole = write(&path, documents, tokenizer, end, None, count).unwrap();
        let expected = files(&path);
        assert_eq!(expected[1].is_some(), kind == 2);
        assert!(places >= 3, "{places} places");
        for number in 0..places {
            let mut place = stop_at(number, &path, part, None);
            if number == 0 {
                place = stop_at(0, &path, part, Some(place));
            }
            let read = serde_json::to_string(&place).unwrap();
            let place = serde_json::from_str(&read).unwrap();
            let again = write(&path, documents, tokenizer, end, Some(place), |_| Ok(())).unwrap();
            assert_eq!((again.header, again.checksum), (whole.header, whole.checksum));
            assert_eq!(again.trained, whole.trained);
            assert!(files(&path) == expected, "{kind}: stopped at place {number}");
        }
    }
}

/// A part goes on only if what is there is what was written, and the text what was read.
#[test]
fn a_part_does_not_go_on_with_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let parts = long_documents(folder.path());
    let path = folder.path().join("train.tokens");
    let refused = |part: &(Documents, Tokenizer, DocumentEnd), place: &Place| {
        let (documents, tokenizer, end) = part;
        let from = Some(place.clone());
        let error = write(&path, documents, tokenizer, end, from, |_| Ok(())).unwrap_err();
        assert!(error.is::<Differs>(), "{error:#}");
        error.to_string()
    };
    let change = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = path.with_extension(name);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    };
    for (part, name) in [(1, "tokens"), (1, "documents"), (2, "mask"), (2, "tokens")] {
        for damage in
            [(&|bytes: &mut Vec<u8>| bytes[130] ^= 1) as &dyn Fn(&mut Vec<u8>), &|bytes| {
                bytes.truncate(120)
            }]
        {
            let place = stop_at(1, &path, &parts[part], None);
            change(name, damage);
            let error = refused(&parts[part], &place);
            assert!(error.contains(&format!("train.{name}")), "{name}: {error}");
        }
        let place = stop_at(1, &path, &parts[part], None);
        std::fs::remove_file(path.with_extension(name)).unwrap();
        assert!(refused(&parts[part], &place).contains(&format!("train.{name}")));
    }

    let place = stop_at(1, &path, &parts[1], None);
    let Documents::Memory(documents) = &parts[1].0 else { unreachable!() };
    let mut other = documents.clone();
    other[3].replace_range(0..1, "L");
    let other = (Documents::Memory(other), Tokenizer::bytes(), DocumentEnd::default());
    assert!(refused(&other, &place).contains("the text before the place is another"));
    let fewer = Documents::Memory(documents[..3].to_vec());
    let fewer = (fewer, Tokenizer::bytes(), DocumentEnd::default());
    assert!(refused(&fewer, &place).contains("the text before the place is another"));
}
