//! Whether the values of `data:` make sense.

use super::bounds;
use super::data_spec::{DataSpec, SourceSpec, TextSourceSpec, TokenizerSpec};
use super::findings::Findings;

pub(super) fn check_data(found: &mut Findings, data: &DataSpec) {
    match &data.source {
        SourceSpec::CargoRegistry => {}
        SourceSpec::Text(text) => check_text_source(found, text),
        SourceSpec::Jsonl(jsonl) => {
            let path = "data.source.jsonl";
            check_rows(found, path, &jsonl.train, jsonl.val.as_deref(), jsonl.val_fraction);
            check_text_key(found, path, &jsonl.text_key, "key");
        }
        SourceSpec::Parquet(parquet) => {
            let path = "data.source.parquet";
            check_rows(found, path, &parquet.train, parquet.val.as_deref(), parquet.val_fraction);
            check_text_key(found, path, &parquet.text_key, "column");
        }
        SourceSpec::Instructions(source) => {
            let path = "data.source.instructions";
            check_rows(found, path, &source.train, source.val.as_deref(), source.val_fraction);
        }
        SourceSpec::Bin(bin) => check_tokenized_source(found, data, "bin", bin.vocab_size),
        SourceSpec::Tinystories(shards) => {
            check_tokenized_source(found, data, "tinystories", shards.vocab_size)
        }
    }
    if let TokenizerSpec::Bpe(bpe) = &data.tokenizer {
        let size = bpe.vocab_size;
        let most = bounds::MAX_VOCABULARY;
        found.require((257..=most).contains(&size.0), "data.tokenizer.bpe.vocab_size", || {
            format!("is {size}; set at least 257 (256 bytes and the end-of-text token) and at most {most}")
        });
        let is_none = bpe.sample_bytes.is_some_and(|bytes| bytes.0 == 0);
        found.require(!is_none, "data.tokenizer.bpe.sample_bytes", || {
            "is 0; set the bytes that pairs are counted in, or remove the key".into()
        });
    }
}

/// Whether there are examples to pack.
pub(super) fn check_packing(found: &mut Findings, packing: bool, source: &SourceSpec) {
    let is_possible = !packing || matches!(source, SourceSpec::Instructions(_));
    found.require(is_possible, "train.packing", || {
        "is true, but only instruction data is packed: rows of other sources are full; remove it"
            .into()
    });
}

/// Files of rows, for both parts or to be split.
fn check_rows(
    found: &mut Findings,
    path: &str,
    train: &[String],
    val: Option<&[String]>,
    val_fraction: Option<f64>,
) {
    let empty = || "is empty; name at least one file or glob".into();
    found.require(!train.is_empty(), &format!("{path}.train"), empty);
    if let Some(val) = val {
        found.require(!val.is_empty(), &format!("{path}.val"), empty);
        found.require(val_fraction.is_none(), &format!("{path}.val_fraction"), || {
            "unused beside `val`; remove it".into()
        });
    }
    check_fraction(found, val_fraction, &format!("{path}.val_fraction"));
}

fn check_text_key(found: &mut Findings, path: &str, text_key: &str, what: &str) {
    found.require(!text_key.is_empty(), &format!("{path}.text_key"), || {
        format!("is empty; name the {what} that holds the text")
    });
}

fn check_text_source(found: &mut Findings, text: &TextSourceSpec) {
    let path = "data.source.text";
    match (&text.train, &text.val, &text.path) {
        (Some(train), Some(val), None) => {
            for (key, files) in [("train", train), ("val", val)] {
                found.require(!files.is_empty(), &format!("{path}.{key}"), || "is empty; name at least one file or glob".into());
            }
            found.require(text.val_fraction.is_none(), &format!("{path}.val_fraction"), || "unused beside `val`; remove it".into());
        }
        (None, None, Some(file)) => {
            found.require(!file.is_empty(), &format!("{path}.path"), || "is empty; name a file or glob".into());
            check_fraction(found, text.val_fraction, &format!("{path}.val_fraction"));
        }
        _ => found.require(false, path, || {
            let keys = [("train", text.train.is_some()), ("val", text.val.is_some()), ("path", text.path.is_some())];
            let given: Vec<&str> = keys.iter().filter(|(_, is_given)| *is_given).map(|(key, _)| *key).collect();
            let given = if given.is_empty() { "neither".to_owned() } else { format!("`{}`", given.join("`, `")) };
            format!("has {given}; give either `train` and `val`, or `path` alone (with `val_fraction` if you like)")
        }),
    }
}

fn check_tokenized_source(
    found: &mut Findings,
    data: &DataSpec,
    kind: &str,
    vocab_size: Option<usize>,
) {
    let decodes = matches!(data.tokenizer, TokenizerSpec::File(_) | TokenizerSpec::Bytes);
    found.require(decodes, "data.tokenizer", || {
        format!("cannot be trained on a `{kind}` source, which is tokenized already; write `{{file: tokenizer.json}}` or `bytes`")
    });
    found.require(vocab_size != Some(0), &format!("data.source.{kind}.vocab_size"), || {
        "is 0; set the number of tokens or remove it to use the tokenizer's".into()
    });
    let most = bounds::MAX_VOCABULARY;
    let is_small = vocab_size.is_none_or(|size| size as u64 <= most);
    found.require(is_small, &format!("data.source.{kind}.vocab_size"), || {
        format!("is {}; set at most {most}", vocab_size.unwrap_or(0))
    });
}

fn check_fraction(found: &mut Findings, fraction: Option<f64>, path: &str) {
    let Some(fraction) = fraction else { return };
    found.require_number(
        fraction,
        fraction > 0.0 && fraction < 1.0,
        "greater than 0 and less than 1",
        path,
    );
}

/// Tokens in the vocabulary where the spec itself tells.
pub(super) fn given_vocabulary(data: &DataSpec) -> Option<u64> {
    let given = match &data.source {
        SourceSpec::Bin(bin) => bin.vocab_size,
        SourceSpec::Tinystories(shards) => shards.vocab_size,
        SourceSpec::CargoRegistry
        | SourceSpec::Text(_)
        | SourceSpec::Jsonl(_)
        | SourceSpec::Parquet(_)
        | SourceSpec::Instructions(_) => None,
    };
    match &data.tokenizer {
        _ if given.is_some() => given.map(|size| size as u64),
        TokenizerSpec::Bytes => Some(256),
        TokenizerSpec::Bpe(bpe) => Some(bpe.vocab_size.0),
        TokenizerSpec::Chars | TokenizerSpec::File(_) => None,
    }
}
