//! The documents of a text source, split into training and validation.

use super::cargo_registry;
use super::corpus::{Corpus, usage};
use super::documents::{Documents, JoinedFiles};
use super::files::expand;
use super::json_lines::JsonLines;
use super::rows::{checked_fraction, read_rows, train_share};
use crate::spec::{RowsSourceSpec, SourceSpec, TextSourceSpec};

/// Finds the documents of a source; `None` for sources that are tokens already, and for instructions,
/// whose text depends on the tokenizer.
///
/// # Errors
/// [`crate::error::Failure::Usage`] where the source contradicts itself or matches no
/// file; else where a file cannot be read, is not UTF-8 or not JSON, naming file and line.
pub(super) fn read(source: &SourceSpec) -> anyhow::Result<Option<Corpus>> {
    let corpus = match source {
        SourceSpec::CargoRegistry => cargo_registry::read()?,
        SourceSpec::Text(text) => read_text(text)?,
        SourceSpec::Jsonl(jsonl) => read_jsonl(jsonl)?,
        SourceSpec::Parquet(parquet) => read_parquet(parquet)?,
        SourceSpec::Instructions(_) | SourceSpec::Bin(_) | SourceSpec::Tinystories(_) => {
            return Ok(None);
        }
    };
    Ok(Some(corpus))
}

/// Text files. Several files are joined as they are, with nothing between them.
fn read_text(spec: &TextSourceSpec) -> anyhow::Result<Corpus> {
    match spec {
        TextSourceSpec { train: Some(train), val: Some(val), path: None, val_fraction: None } => {
            let (train, val) = (expand(train)?, expand(val)?);
            Ok(Corpus {
                description: format!("text: train {}, val {}", train.names, val.names),
                train: JoinedFiles::measure(train.files)?.whole(),
                val: JoinedFiles::measure(val.files)?.whole(),
                documents_end: false,
            })
        }
        TextSourceSpec { train: None, val: None, path: Some(path), val_fraction } => {
            let fraction = checked_fraction(*val_fraction, "data.source.text.val_fraction")?;
            let found = expand(std::slice::from_ref(path))?;
            let text = JoinedFiles::measure(found.files)?;
            let (train, val) = text.split(|count| train_share(count, fraction))?;
            Ok(Corpus {
                description: format!(
                    "text: {}, last {fraction} of its characters for validation",
                    found.names
                ),
                train,
                val,
                documents_end: false,
            })
        }
        _ => Err(usage(
            "data.source.text: give either `train` and `val`, or `path` and, if you like, \
             `val_fraction`",
        )),
    }
}

/// JSON lines: one object per line, the text under a key; empty lines are skipped.
fn read_jsonl(spec: &RowsSourceSpec) -> anyhow::Result<Corpus> {
    let (train, val, description) =
        read_rows("jsonl", (&spec.train, spec.val.as_deref()), spec.val_fraction, |files| {
            JsonLines::open(files, &spec.text_key)
        })?;
    let (train, val) = (Documents::Lines(train), Documents::Lines(val));
    Ok(Corpus { description, train, val, documents_end: true })
}

/// Parquet files: one document a row, the text in a column.
#[cfg(feature = "datasets")]
fn read_parquet(spec: &RowsSourceSpec) -> anyhow::Result<Corpus> {
    let (train, val, description) =
        read_rows("parquet", (&spec.train, spec.val.as_deref()), spec.val_fraction, |files| {
            super::parquet_rows::ParquetRows::open(files, &spec.text_key)
        })?;
    let (train, val) = (Documents::Rows(train), Documents::Rows(val));
    Ok(Corpus { description, train, val, documents_end: true })
}

#[cfg(not(feature = "datasets"))]
fn read_parquet(_: &RowsSourceSpec) -> anyhow::Result<Corpus> {
    Err(usage(
        "data.source.parquet: this build of lrpt reads no Parquet files; build it with the feature \
         `datasets` (`cargo build --release --features datasets`)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(
        train: Option<&str>,
        val: Option<&str>,
        path: Option<&str>,
        val_fraction: Option<f64>,
    ) -> anyhow::Result<Corpus> {
        let list = |entry: Option<&str>| entry.map(|entry| vec![entry.to_string()]);
        read_text(&TextSourceSpec {
            train: list(train),
            val: list(val),
            path: path.map(String::from),
            val_fraction,
        })
    }

    #[test]
    fn the_split_counts_characters_as_nano_gpt_does() {
        // nanoGPT, data/shakespeare_char/prepare.py: int(1115394 * 0.9) characters of training
        // text.
        assert_eq!((train_share(1_115_394, 0.1), train_share(3, 0.5)), (1_003_854, 1));
    }

    #[test]
    fn globs_are_sorted_and_files_joined() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        for (name, content) in [("b.txt", "B"), ("a.txt", "A"), ("c.md", "C"), ("deep/d.txt", "D")]
        {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let pattern = |end: &str| format!("{}/{end}", folder.path().display());
        assert_eq!(
            text(Some(&pattern("*.txt")), Some(&pattern("c.md")), None, None).unwrap().train.all(),
            ["AB"]
        );
        assert_eq!(
            text(Some(&pattern("**/*.txt")), Some(&pattern("c.md")), None, None)
                .unwrap()
                .train
                .all(),
            ["ABD"]
        );
        let error = text(None, None, Some(&pattern("*.rst")), None).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        assert!(error.to_string().contains("*.rst"), "{error}");
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for source in [
            text(Some("a"), None, None, None),
            text(Some("a"), Some("b"), Some("c"), None),
            text(None, None, Some("a"), Some(1.5)),
        ] {
            assert_eq!(crate::error::exit_code(&source.unwrap_err()), 2);
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_located() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latin.txt");
        std::fs::write(&path, b"caf\xe9").unwrap();
        let error = text(None, None, path.to_str(), None).unwrap_err().to_string();
        assert!(error.contains("latin.txt") && error.contains("byte 3"), "{error}");
    }

    #[test]
    fn json_lines_give_documents_and_places() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("documents.jsonl");
        let read = |content: &str, text_key: &str| {
            std::fs::write(&path, content).unwrap();
            let train = vec![path.to_str().unwrap().to_string()];
            read_jsonl(&RowsSourceSpec {
                train,
                val: None,
                val_fraction: Some(0.5),
                text_key: text_key.into(),
            })
        };
        let corpus = read("{\"text\": \"one\"}\n\n{\"text\": \"two\"}\n", "text").unwrap();
        assert_eq!(
            (corpus.train.all(), corpus.val.all(), corpus.documents_end),
            (vec!["one".to_string()], vec!["two".to_string()], true)
        );

        for (content, expected) in [
            ("{\"text\": \"one\"}\n{\"text\": }", "jsonl:2: not JSON"),
            ("{\"body\": \"one\"}", "jsonl:1: no key `text`"),
            ("{\"text\": 3}", "jsonl:1: the value of `text` is not a string"),
            // Case 35.
            ("[\n{\"text\": \"one\"}\n]", "jsonl:1: a JSON array"),
            ("\"one\"", "jsonl:1: a JSON string"),
        ] {
            let corpus = read(&format!("{content}\n").repeat(2), "text").expect("lines");
            let error = corpus
                .train
                .chunks()
                .chain(corpus.val.chunks())
                .find_map(Result::err)
                .expect("not such a line");
            let error = format!("{error:#}");
            assert!(error.contains(expected), "{error}");
        }
        // The same where it is all there is, so that one of the parts is empty.
        for (content, expected) in [
            ("[{\"text\": \"one\"}, {\"text\": \"two\"}]", "jsonl:1: a JSON array"),
            ("\"one\"\n", "jsonl:1: a JSON string"),
            ("{\"text\": \"one\"}", "no training documents; give more lines"),
        ] {
            let error = format!("{:#}", read(content, "text").map(drop).expect_err(content));
            assert!(error.contains(expected), "{error}");
        }
        let marked = read("\u{feff}{\"text\": \"one\"}\n{\"text\": \"two\"}", "text").unwrap();
        assert_eq!(marked.train.all(), ["one"]);
    }

    #[cfg(not(feature = "datasets"))]
    #[test]
    fn what_needs_the_feature_names_it() {
        for source in [
            serde_json::json!({ "parquet": { "train": ["a.parquet"] } }),
            serde_json::json!({ "jsonl": { "train": ["hf://datasets/o/n/a.jsonl"] } }),
        ] {
            let source: SourceSpec = serde_json::from_value(source).unwrap();
            let error = read(&source).map(drop).unwrap_err();
            assert_eq!(crate::error::exit_code(&error), 2);
            assert!(error.to_string().contains("feature `datasets`"), "{error}");
        }
    }
}
