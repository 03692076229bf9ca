//! `data:` of a spec: where the text comes from and how it becomes tokens.

use super::count::Count;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Text and tokenizer of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// Where the text comes from.
    pub source: SourceSpec,
    /// How text becomes tokens; a `bin` or `tinystories` source is tokenized already and takes
    /// `file` (or `bytes`) to decode.
    pub tokenizer: TokenizerSpec,
    /// Token of the tokenizer that ends a document, by its name; without it the first there is of
    /// `<|endoftext|>`, `<|end_of_text|>`, `</s>`, `<eos>`, `<|eos|>`, `[SEP]`, `<|im_end|>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_of_text: Option<String>,
}

impl DataSpec {
    /// The same with every relative path taken from this folder.
    pub fn within(&self, folder: &Path) -> Self {
        let path = |path: &mut PathBuf| *path = folder.join(&*path);
        let text = |text: &mut String| {
            if !text.starts_with(HUB) {
                *text = folder.join(&*text).display().to_string();
            }
        };
        let texts = |list: &mut Option<Vec<String>>| list.iter_mut().flatten().for_each(text);
        let mut data = self.clone();
        match &mut data.source {
            SourceSpec::CargoRegistry => {}
            SourceSpec::Text(source) => {
                texts(&mut source.train);
                texts(&mut source.val);
                source.path.iter_mut().for_each(text);
            }
            SourceSpec::Jsonl(source) | SourceSpec::Parquet(source) => {
                source.train.iter_mut().for_each(text);
                texts(&mut source.val);
            }
            SourceSpec::Instructions(source) => {
                source.train.iter_mut().for_each(text);
                texts(&mut source.val);
                source.chat_template.iter_mut().for_each(path);
            }
            SourceSpec::Bin(source) => {
                path(&mut source.train);
                path(&mut source.val);
            }
            SourceSpec::Tinystories(source) => path(&mut source.dir),
        }
        if let TokenizerSpec::File(file) = &mut data.tokenizer {
            path(file);
        }
        data
    }
}

/// What paths of files on the Hugging Face Hub begin with.
pub const HUB: &str = "hf://";

/// Most tokens of a vocabulary: tables over it fit in memory up to here.
pub const MAX_VOCABULARY: usize = 1 << 24;

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceSpec {
    /// The Rust sources of lrpt's own locked dependencies, already on the machine: no download.
    CargoRegistry,
    /// Text files.
    Text(TextSourceSpec),
    /// JSON lines with the text under a key; each document ends with the end-of-text token.
    Jsonl(RowsSourceSpec),
    /// Parquet files, as the data sets of Hugging Face have them, with the text in a column; each
    /// document ends with the end-of-text token. A build without the feature `datasets` reads none.
    Parquet(RowsSourceSpec),
    /// JSON lines of conversations, or of prompts with completions: only the answers are trained on.
    Instructions(InstructionsSourceSpec),
    /// Token files as nanoGPT (`train.bin` and `val.bin`, little-endian uint16) and llm.c (with its
    /// header) write them.
    Bin(BinSourceSpec),
    /// Pre-tokenized shards as llama2.c writes them for TinyStories: the first `.bin` file of the
    /// folder is validation.
    Tinystories(TinystoriesSourceSpec),
}

/// Text files: either `train` and `val`, or `path` and `val_fraction`. Entries may be globs, and
/// files of the Hugging Face Hub: `hf://datasets/OWNER/NAME@REVISION/PATH`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextSourceSpec {
    /// Training files or globs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<Vec<String>>,
    /// Validation files or globs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Vec<String>>,
    /// One file or glob to split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Share of the text, counted in characters from its end, that is validation (default 0.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
}

/// Files of which every row is a document; they may be on the Hugging Face Hub:
/// `hf://datasets/OWNER/NAME@REVISION/PATH`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RowsSourceSpec {
    /// Training files or globs.
    pub train: Vec<String>,
    /// Validation files or globs; without them `val_fraction` of the documents, from the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Vec<String>>,
    /// Share of the documents, from the end, that is validation when `val` is absent (default 0.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
    /// Key of the JSON objects, or column of strings, that holds the text.
    #[serde(default = "default_text_key")]
    pub text_key: String,
}

fn default_text_key() -> String {
    "text".into()
}

/// JSON lines as Hugging Face's TRL has them: `messages`, a list of `{role, content}`, or `prompt`
/// and `completion`, two strings or two lists of messages. Each example is a row of its own, cut
/// after `model.block_size` tokens to predict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstructionsSourceSpec {
    /// Training files or globs.
    pub train: Vec<String>,
    /// Validation files or globs; without them `val_fraction` of the examples, from the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Vec<String>>,
    /// Share of the examples, from the end, that is validation when `val` is absent (default 0.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
    /// A Jinja template that makes text of messages; without it that of the tokenizer
    /// (`chat_template.jinja` or `tokenizer_config.json` beside its file, or in its GGUF file), or
    /// else `<|role|>`, a line break, the content, the end-of-text token and a line break for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
}

/// Token files of nanoGPT or llm.c.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BinSourceSpec {
    /// Training tokens, little-endian.
    pub train: PathBuf,
    /// Validation tokens, little-endian.
    pub val: PathBuf,
    /// Width of a token; without it that of llm.c's header, or `u16` where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<TokenType>,
    /// Number of tokens in the vocabulary; taken from the tokenizer when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
}

/// Width of a token in a token file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenType {
    /// Two bytes.
    U16,
    /// Four bytes.
    U32,
}

/// llama2.c / TinyStories shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TinystoriesSourceSpec {
    /// Folder with two or more `.bin` files.
    pub dir: PathBuf,
    /// Number of tokens in the vocabulary; taken from the tokenizer when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
}

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerSpec {
    /// One token per byte: 256 tokens.
    Bytes,
    /// One token per character of the text, training and validation.
    Chars,
    /// Byte-level BPE trained on the training text.
    Bpe(BpeSpec),
    /// A `tokenizer.json` of the Hugging Face tokenizers library.
    File(PathBuf),
}

/// Byte-level BPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BpeSpec {
    /// Number of tokens, at least 257 (256 bytes and the end-of-text token).
    pub vocab_size: Count,
    /// Bytes of the training text that pairs are counted in, taken evenly from all of it; without
    /// it, all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_bytes: Option<Count>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_hub_are_in_no_folder() {
        let train = ["a.jsonl", "hf://datasets/o/n/a.jsonl"].map(String::from).to_vec();
        let source = serde_json::json!({ "parquet": { "train": train } });
        let data = DataSpec {
            source: serde_json::from_value(source).unwrap(),
            tokenizer: TokenizerSpec::Bytes,
            end_of_text: None,
        };
        let SourceSpec::Parquet(parquet) = data.within(Path::new("/b")).source else {
            unreachable!()
        };
        assert_eq!(parquet.train, ["/b/a.jsonl", "hf://datasets/o/n/a.jsonl"]);
    }
}
