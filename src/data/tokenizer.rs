//! Text to tokens and back, behind one type.

use super::byte_pair;
use super::corpus::usage;
use super::files::not_text;
use super::gguf_tokenizer;
use super::hugging_face::HuggingFace;
use super::hugging_face_form;
use crate::fs::{LONGEST_TEXT, read_ordinary};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// A tokenizer: bytes, characters, or anything a Hugging Face `tokenizer.json` describes.
#[derive(Debug)]
pub struct Tokenizer {
    kind: TokenizerKind,
}

#[derive(Debug)]
enum TokenizerKind {
    Bytes,
    Characters(Characters),
    HuggingFace(Box<HuggingFace>),
}

/// Token i is the i-th character in code point order.
#[derive(Debug)]
struct Characters {
    characters: Vec<char>,
    /// Token of each code point, [`NO_TOKEN`] where there is none.
    ids: Vec<u32>,
}

/// What `tokenizer.json` holds for the kinds the Hugging Face format has no form for.
#[derive(Serialize, Deserialize)]
#[serde(tag = "lrpt_tokenizer", rename_all = "snake_case", deny_unknown_fields)]
enum OwnJson {
    Bytes {},
    Characters { characters: String },
}

impl Tokenizer {
    /// One token per byte: token i is byte i.
    pub fn bytes() -> Self {
        Self { kind: TokenizerKind::Bytes }
    }

    /// One token per character that occurs in `text`, in code point order, as in nanoGPT.
    pub fn characters<'a>(text: impl IntoIterator<Item = &'a str>) -> Self {
        let mut set = CharacterSet::default();
        text.into_iter().for_each(|text| set.add(text));
        Self::of_characters(&set)
    }

    /// One token per character of a set, in code point order.
    pub(super) fn of_characters(set: &CharacterSet) -> Self {
        Self { kind: TokenizerKind::Characters(Characters::new(set.characters())) }
    }

    /// Byte-level BPE (Sennrich, Haddow & Birch 2016, on bytes as in GPT-2), trained on
    /// `documents`.
    ///
    /// # Errors
    /// [`crate::error::Failure::Usage`] when the vocabulary is too small.
    pub fn train_byte_pair(documents: &[String], vocab_size: usize) -> anyhow::Result<Self> {
        Self::train_byte_pair_on(documents.iter().cloned(), vocab_size)
    }

    /// The same on texts that are taken one by one, where no word goes from one into the next.
    pub(super) fn train_byte_pair_on(
        texts: impl Iterator<Item = String> + Send,
        vocab_size: usize,
    ) -> anyhow::Result<Self> {
        Self::from_json(&byte_pair::train(texts, vocab_size)?)
    }

    /// Restores any tokenizer from its `tokenizer.json`.
    ///
    /// # Errors
    /// When the text is not JSON or describes no tokenizer.
    pub fn from_json(json: &str) -> anyhow::Result<Self> {
        let value: serde_json::Value =
            serde_json::from_str(json).context("the tokenizer is not JSON")?;
        let kind = if value.get("lrpt_tokenizer").is_some() {
            match serde_json::from_value(value)
                .context("the tokenizer's JSON has not the form lrpt writes")?
            {
                OwnJson::Bytes {} => TokenizerKind::Bytes,
                OwnJson::Characters { characters } => {
                    let all: Vec<char> = characters.chars().collect();
                    let distinct = all.iter().collect::<BTreeSet<_>>().len();
                    anyhow::ensure!(
                        distinct == all.len(),
                        "the tokenizer's JSON lists a character twice"
                    );
                    TokenizerKind::Characters(Characters::new(all))
                }
            }
        } else {
            TokenizerKind::HuggingFace(Box::new(HuggingFace::new(json, &value)?))
        };
        Ok(Self { kind })
    }

    /// The tokenizer of a file the user named at `data.tokenizer.file`.
    ///
    /// # Errors
    /// When the file cannot be read, or is neither a `tokenizer.json` nor a GGUF file; a
    /// SentencePiece model and compressed files are named as what they are.
    pub fn from_file(path: &Path) -> anyhow::Result<Self> {
        let place = || format!("data.tokenizer.file: {}", path.display());
        if gguf_tokenizer::is_gguf(path) {
            return Self::from_json(&gguf_tokenizer::tokenizer_json(path)?).with_context(place);
        }
        let bytes = read_ordinary(path, LONGEST_TEXT)
            .with_context(|| format!("{} cannot be read", place()))?;
        if let Some(what) = not_text(&bytes) {
            return Err(usage(format!("{}: this is {what}", place())));
        }
        let json = match std::str::from_utf8(&bytes) {
            Ok(json) if !is_sentence_piece(path, &bytes) => json,
            _ => {
                let what = if is_sentence_piece(path, &bytes) {
                    "a SentencePiece model"
                } else {
                    "not UTF-8"
                };
                return Err(usage(format!(
                    "{}: {what}; it takes the `tokenizer.json` of the Hugging Face tokenizers library \
                     (transformers writes one: `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`)",
                    place()
                )));
            }
        };
        Self::from_json(json).with_context(place)
    }

    /// The `tokenizer.json` that [`Tokenizer::from_json`] restores.
    ///
    /// # Errors
    /// Never for the kinds there are; serialisation could fail.
    pub fn to_json(&self) -> anyhow::Result<String> {
        let own = match &self.kind {
            TokenizerKind::Bytes => OwnJson::Bytes {},
            TokenizerKind::Characters(kind) => {
                OwnJson::Characters { characters: kind.characters.iter().collect() }
            }
            TokenizerKind::HuggingFace(kind) => return Ok(kind.json().to_string()),
        };
        Ok(serde_json::to_string_pretty(&own)? + "\n")
    }

    /// A `tokenizer.json` that the Hugging Face libraries read, with the same tokens.
    ///
    /// # Errors
    /// Never for the kinds there are; serialisation could fail.
    pub fn to_hugging_face_json(&self) -> anyhow::Result<String> {
        let own = match &self.kind {
            TokenizerKind::Bytes => hugging_face_form::of_bytes(),
            TokenizerKind::Characters(kind) => hugging_face_form::of_characters(&kind.characters),
            TokenizerKind::HuggingFace(kind) => return Ok(kind.json().to_string()),
        };
        Ok(serde_json::to_string_pretty(&own)? + "\n")
    }

    /// BLAKE3 of [`Tokenizer::to_json`], in hexadecimal.
    ///
    /// # Errors
    /// As [`Tokenizer::to_json`].
    pub fn hash(&self) -> anyhow::Result<String> {
        Ok(blake3::hash(self.to_json()?.as_bytes()).to_hex().to_string())
    }

    /// What kind of tokenizer this is, for people.
    pub fn description(&self) -> String {
        let kind = match &self.kind {
            TokenizerKind::Bytes => "bytes",
            TokenizerKind::Characters(_) => "characters",
            TokenizerKind::HuggingFace(kind) => kind.model(),
        };
        format!("{kind}, {} tokens", self.vocab_size())
    }

    /// Number of tokens: one more than the largest.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            TokenizerKind::Bytes => 256,
            TokenizerKind::Characters(kind) => kind.characters.len(),
            TokenizerKind::HuggingFace(kind) => kind.vocab_size(),
        }
    }

    /// The token that ends a document, if there is one.
    pub fn end_of_text(&self) -> Option<u32> {
        match &self.kind {
            TokenizerKind::Bytes | TokenizerKind::Characters(_) => None,
            TokenizerKind::HuggingFace(kind) => kind.end_of_text(),
        }
    }

    /// The name of [`Tokenizer::end_of_text`].
    pub fn end_of_text_name(&self) -> Option<&'static str> {
        match &self.kind {
            TokenizerKind::Bytes | TokenizerKind::Characters(_) => None,
            TokenizerKind::HuggingFace(kind) => kind.end_of_text_name(),
        }
    }

    /// The token of this name, such as `<|endoftext|>`; bytes and characters have no names.
    pub fn token_of(&self, name: &str) -> Option<u32> {
        match &self.kind {
            TokenizerKind::Bytes | TokenizerKind::Characters(_) => None,
            TokenizerKind::HuggingFace(kind) => kind.token_of(name),
        }
    }

    /// Tokens of a text to continue, where any text will do: token 0 where the text has none or
    /// cannot be encoded, as where it has characters the training text had not.
    pub fn encode_or_first(&self, text: &str) -> Vec<u32> {
        let encoded = self.encode(text).ok().filter(|tokens| !tokens.is_empty());
        encoded.unwrap_or_else(|| vec![0])
    }

    /// The tokens of a text. Names of special tokens in it, such as `<|endoftext|>`, are ordinary
    /// text.
    ///
    /// # Errors
    /// When a character is not in the vocabulary, naming it and its place.
    pub fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        match &self.kind {
            TokenizerKind::Bytes => Ok(text.bytes().map(u32::from).collect()),
            TokenizerKind::Characters(kind) => kind.encode(text),
            TokenizerKind::HuggingFace(kind) => kind.encode(text),
        }
    }

    /// The library's tokenizer for text with markup; none where there are no special tokens.
    pub(super) fn with_names(&self) -> Option<tokenizers::Tokenizer> {
        match &self.kind {
            TokenizerKind::HuggingFace(kind) => Some(kind.with_names()),
            _ => None,
        }
    }

    /// The last place of a text, at or after `from`, where it can be cut so that the tokens of both
    /// parts are those of the whole; none where only the whole gives its tokens.
    pub(super) fn cut(&self, text: &str, from: usize) -> Option<usize> {
        match &self.kind {
            TokenizerKind::HuggingFace(kind) => kind.cut(text, from),
            _ => Some(text.len()).filter(|length| *length > 0),
        }
    }

    /// Whether there is a token of this number.
    fn has(&self, token: u32) -> bool {
        match &self.kind {
            TokenizerKind::HuggingFace(kind) => kind.has(token),
            _ => (token as usize) < self.vocab_size(),
        }
    }

    /// The text of tokens, for people: a number without a token, as in a vocabulary made larger
    /// than the tokenizer's, is written `⟨50300⟩`.
    ///
    /// # Errors
    /// When the library cannot decode.
    pub fn show(&self, tokens: &[u32]) -> anyhow::Result<String> {
        let mut text = String::new();
        for run in tokens.chunk_by(|a, b| self.has(*a) == self.has(*b)) {
            if self.has(run[0]) {
                text += &self.decode(run)?;
            } else {
                run.iter().for_each(|token| text += &format!("⟨{token}⟩"));
            }
        }
        Ok(text)
    }

    /// The text of tokens. Bytes that are not UTF-8, as where a sequence ends within a character,
    /// become U+FFFD.
    ///
    /// # Errors
    /// When a token is not in the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> anyhow::Result<String> {
        if let Some(token) = tokens.iter().find(|token| **token as usize >= self.vocab_size()) {
            anyhow::bail!("token {token} is not in the vocabulary of {} tokens", self.vocab_size());
        }
        match &self.kind {
            TokenizerKind::Bytes => Ok(String::from_utf8_lossy(
                &tokens.iter().map(|token| *token as u8).collect::<Vec<u8>>(),
            )
            .into_owned()),
            TokenizerKind::Characters(kind) => {
                Ok(tokens.iter().map(|token| kind.characters[*token as usize]).collect())
            }
            TokenizerKind::HuggingFace(kind) => kind.decode(tokens),
        }
    }

    /// UTF-8 bytes each token stands for; 0 for special tokens. Bits per byte are nats / (ln 2 ·
    /// the sum of these over the targets).
    pub fn token_byte_lengths(&self) -> Vec<u32> {
        match &self.kind {
            TokenizerKind::Bytes => vec![1; 256],
            TokenizerKind::Characters(kind) => {
                kind.characters.iter().map(|character| character.len_utf8() as u32).collect()
            }
            TokenizerKind::HuggingFace(kind) => kind.token_byte_lengths(),
        }
    }
}

/// Whether a file is a SentencePiece model: called so, or a protocol buffer that begins with the
/// pieces every such model has.
fn is_sentence_piece(path: &Path, bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(64)];
    path.extension().is_some_and(|extension| extension == "model")
        || (start.first() == Some(&b'\n') && start.windows(5).any(|part| part == b"<unk>"))
}

/// What follows a document where the tokenizer has no end-of-text token.
pub(super) const DOCUMENT_END: &str = "\n";

/// No token's number.
const NO_TOKEN: u32 = u32::MAX;

/// The characters of texts.
#[derive(Debug, Default)]
pub(super) struct CharacterSet {
    /// By code point.
    occurs: Vec<bool>,
}

impl CharacterSet {
    /// Adds those of a text.
    pub(super) fn add(&mut self, text: &str) {
        for character in text.chars() {
            let code = character as usize;
            if code >= self.occurs.len() {
                self.occurs.resize(code + 1, false);
            }
            self.occurs[code] = true;
        }
    }

    /// All of them, in code point order.
    fn characters(&self) -> Vec<char> {
        let occurs = |code: u32| self.occurs[code as usize];
        (0..self.occurs.len() as u32).filter(|c| occurs(*c)).filter_map(char::from_u32).collect()
    }
}

impl Characters {
    fn new(characters: Vec<char>) -> Self {
        let largest = characters.iter().max().map_or(0, |character| *character as usize);
        let mut ids = vec![NO_TOKEN; largest + 1];
        for (character, id) in characters.iter().zip(0..) {
            ids[*character as usize] = id;
        }
        Self { characters, ids }
    }

    fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let lookup = |(position, character): (usize, char)| {
            let id = self.ids.get(character as usize).copied().filter(|id| *id != NO_TOKEN);
            id.ok_or_else(|| {
                usage(format!(
                    "character {character:?} at position {position} does not occur in the training text; use `tokenizer: bytes` or `bpe`, \
                     or take it out of the text"
                ))
            })
        };
        text.chars().enumerate().map(lookup).collect()
    }
}

#[cfg(test)]
mod tests;
