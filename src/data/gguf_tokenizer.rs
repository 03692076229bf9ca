//! The tokenizer inside a GGUF file, as a `tokenizer.json`.

use super::chat_settings::ChatSettings;
use super::corpus::usage;
use crate::fs::{is_failed_read, open_ordinary};
use crate::gguf_file;
use anyhow::{Context, Result, bail};
use candle_core::quantized::gguf_file::Value as Entry;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// How words are split before byte pairs are merged, by the name that llama.cpp has for it.
const SPLITS: &[(&str, &[Split])] = &[
    ("gpt-2", &[Split::ByteLevel]),
    ("smollm", &[Split::SingleDigits, Split::ByteLevel]),
    ("llama-bpe", &[Split::Pattern(LLAMA_3), Split::Bytes]),
    ("qwen2", &[Split::Pattern(QWEN_2), Split::Bytes]),
];

const LLAMA_3: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?\
                       [^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const QWEN_2: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?\
                      [^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// One pass over the text before it is merged.
#[derive(Clone, Copy)]
enum Split {
    /// GPT-2's words, then bytes as characters.
    ByteLevel,
    /// Bytes as characters only.
    Bytes,
    /// Every digit by itself.
    SingleDigits,
    /// What the pattern matches, and what lies between.
    Pattern(&'static str),
}

impl Split {
    fn json(self) -> Value {
        let byte_level = |use_regex: bool| {
            json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": use_regex,
            })
        };
        match self {
            Split::ByteLevel => byte_level(true),
            Split::Bytes => byte_level(false),
            Split::SingleDigits => json!({ "type": "Digits", "individual_digits": true }),
            Split::Pattern(pattern) => json!({
                "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated",
                "invert": false,
            }),
        }
    }
}

/// Whether a file begins as GGUF files do.
pub(super) fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    open_ordinary(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && &magic == b"GGUF"
}

/// The `tokenizer.json` of the tokenizer in a GGUF file.
///
/// # Errors
/// When the file is damaged, has no tokenizer, or one of a kind that has no counterpart here.
pub(super) fn tokenizer_json(path: &Path) -> Result<String> {
    let tokenizer = byte_pairs(&metadata_of(path)?)
        .map_err(|error| usage(format!("{}: {error:#}", path.display())))?;
    Ok(serde_json::to_string(&tokenizer)? + "\n")
}

/// The chat template and special tokens in a GGUF file.
///
/// # Errors
/// When the file is damaged.
pub(super) fn chat_settings(path: &Path) -> Result<ChatSettings> {
    Ok(settings_of(&metadata_of(path)?))
}

fn metadata_of(path: &Path) -> Result<HashMap<String, Entry>> {
    let (_, content) = gguf_file::open(path).map_err(|error| match is_failed_read(&error) {
        true => error,
        false => usage(format!("{error:#}")),
    })?;
    Ok(content.metadata)
}

fn settings_of(metadata: &HashMap<String, Entry>) -> ChatSettings {
    let text = |entry: &Entry| entry.to_string().ok().cloned();
    let tokens = metadata.get("tokenizer.ggml.tokens").and_then(|entry| entry.to_vec().ok());
    let token = |key: &str| {
        let id = metadata.get(key)?.to_u32().ok()? as usize;
        tokens?.get(id).and_then(text)
    };
    ChatSettings {
        template: metadata.get("tokenizer.chat_template").and_then(text),
        bos: token("tokenizer.ggml.bos_token_id"),
        eos: token("tokenizer.ggml.eos_token_id"),
    }
}

fn byte_pairs(metadata: &HashMap<String, Entry>) -> Result<Value> {
    let text = |key: &str| metadata.get(key).and_then(|entry| entry.to_string().ok());
    let list = |key: &str| -> Result<&Vec<Entry>> {
        metadata
            .get(key)
            .and_then(|entry| entry.to_vec().ok())
            .with_context(|| format!("it has no `{key}`, which its tokenizer needs"))
    };
    let remedy = "give its tokenizer as data.tokenizer: {file: tokenizer.json}";
    match text("tokenizer.ggml.model").map(String::as_str) {
        Some("gpt2") => {}
        Some(other) => bail!(
            "`tokenizer.ggml.model` is {other:?}; lrpt reads byte-level BPE (gpt2) from GGUF files; \
             {remedy}"
        ),
        None => bail!("it has no tokenizer (`tokenizer.ggml.model`); {remedy}"),
    }
    let name = text("tokenizer.ggml.pre").map_or("gpt-2", String::as_str);
    let Some((_, splits)) = SPLITS.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = SPLITS.iter().map(|(known, _)| *known).collect();
        bail!("`tokenizer.ggml.pre` is {name:?}; lrpt knows {}; {remedy}", known.join(", "))
    };
    let tokens = strings(list("tokenizer.ggml.tokens")?, "tokenizer.ggml.tokens")?;
    let merges = strings(list("tokenizer.ggml.merges")?, "tokenizer.ggml.merges")?;
    let kinds = match metadata.contains_key("tokenizer.ggml.token_type") {
        true => list("tokenizer.ggml.token_type")?.iter().map(kind).collect::<Result<Vec<_>>>()?,
        false => Vec::new(),
    };
    let mut vocabulary = Map::new();
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let kind = kinds.get(id).copied().unwrap_or(Kind::Normal);
        if kind != Kind::Normal {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": kind == Kind::Control,
            }));
        }
        if vocabulary.insert((*token).clone(), json!(id)).is_some() {
            bail!("`tokenizer.ggml.tokens` has {token:?} twice")
        }
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": splits.iter().map(|split| split.json()).collect::<Vec<_>>(),
        },
        "post_processor": null,
        "decoder": Split::ByteLevel.json(),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": name == "llama-bpe", "vocab": vocabulary, "merges": merges,
        },
    }))
}

fn strings<'a>(entries: &'a [Entry], key: &str) -> Result<Vec<&'a String>> {
    let string = |entry: &'a Entry| entry.to_string().ok();
    let strings: Option<Vec<&String>> = entries.iter().map(string).collect();
    strings.with_context(|| format!("`{key}` is no list of texts"))
}

/// What a token is, as llama.cpp numbers it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Control,
    UserDefined,
}

fn kind(entry: &Entry) -> Result<Kind> {
    Ok(match entry.to_i32().ok() {
        Some(3) => Kind::Control,
        Some(4) => Kind::UserDefined,
        Some(_) => Kind::Normal,
        None => bail!("`tokenizer.ggml.token_type` is no list of whole numbers"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Tokenizer;

    fn list(texts: &[&str]) -> Entry {
        Entry::Array(texts.iter().map(|text| Entry::String((*text).to_owned())).collect())
    }

    fn metadata() -> HashMap<String, Entry> {
        let kinds = [3, 1, 1, 1, 1, 1, 4].map(Entry::I32).to_vec();
        HashMap::from([
            ("tokenizer.ggml.model".to_owned(), Entry::String("gpt2".to_owned())),
            ("tokenizer.ggml.pre".to_owned(), Entry::String("smollm".to_owned())),
            (
                "tokenizer.ggml.tokens".to_owned(),
                list(&["<|endoftext|>", "1", "2", "a", "b", "ab", "<tool>"]),
            ),
            ("tokenizer.ggml.merges".to_owned(), list(&["a b"])),
            ("tokenizer.ggml.token_type".to_owned(), Entry::Array(kinds)),
        ])
    }

    #[test]
    fn merges_digits_and_added_tokens_are_the_file_s() {
        let json = byte_pairs(&metadata()).expect("a tokenizer").to_string();
        let tokenizer = Tokenizer::from_json(&json).expect("a tokenizer.json");
        assert_eq!(tokenizer.vocab_size(), 7);
        assert_eq!(tokenizer.end_of_text(), Some(0));
        assert_eq!(tokenizer.encode("ab12ba<tool>").expect("tokens"), [5, 1, 2, 4, 3, 6]);
        assert_eq!(tokenizer.decode(&[5, 1, 2, 4, 3]).expect("text"), "ab12ba");
    }

    #[test]
    fn the_chat_template_and_its_tokens_are_found() {
        let mut metadata = metadata();
        assert_eq!(settings_of(&metadata), ChatSettings::default());
        metadata.insert("tokenizer.chat_template".into(), Entry::String("{{ messages }}".into()));
        metadata.insert("tokenizer.ggml.eos_token_id".into(), Entry::U32(6));
        metadata.insert("tokenizer.ggml.bos_token_id".into(), Entry::U32(60));
        let settings = settings_of(&metadata);
        assert_eq!(settings.template.as_deref(), Some("{{ messages }}"));
        assert_eq!((settings.bos, settings.eos.as_deref()), (None, Some("<tool>")));
    }

    #[test]
    fn what_has_no_counterpart_is_refused_by_name() {
        let refused = |key: &str, entry: Option<Entry>, said: &str| {
            let mut metadata = metadata();
            match entry {
                Some(entry) => metadata.insert(key.to_owned(), entry),
                None => metadata.remove(key),
            };
            let error = format!("{:#}", byte_pairs(&metadata).expect_err(key));
            assert!(error.contains(said), "{key}: {error}");
        };
        let text = |text: &str| Some(Entry::String(text.to_owned()));
        refused("tokenizer.ggml.model", text("llama"), "`tokenizer.ggml.model` is \"llama\"");
        refused("tokenizer.ggml.model", None, "it has no tokenizer");
        refused("tokenizer.ggml.pre", text("tekken"), "lrpt knows gpt-2, smollm, llama-bpe, qwen2");
        refused("tokenizer.ggml.merges", None, "it has no `tokenizer.ggml.merges`");
        refused("tokenizer.ggml.tokens", Some(list(&["a", "a"])), "\"a\" twice");
        let numbers = Some(Entry::Array(vec![Entry::U32(1)]));
        refused("tokenizer.ggml.tokens", numbers, "no list of texts");
        let kinds = Some(Entry::Array(vec![Entry::Bool(true)]));
        refused("tokenizer.ggml.token_type", kinds, "no list of whole numbers");
    }
}
