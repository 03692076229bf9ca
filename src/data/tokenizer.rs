//! Text to tokens and back, behind one type.

use super::byte_pair;
use super::corpus::usage;
use super::hugging_face::HuggingFace;
use anyhow::Context;
use indicatif::ProgressBar;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};

/// A tokenizer: bytes, characters, or anything a Hugging Face `tokenizer.json` describes.
#[derive(Debug)]
pub struct Tokenizer {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Bytes,
    Characters(Characters),
    HuggingFace(Box<HuggingFace>),
}

/// Token i is the i-th character in code point order.
#[derive(Debug)]
struct Characters {
    characters: Vec<char>,
    ids: HashMap<char, u32>,
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
        Self { kind: Kind::Bytes }
    }

    /// One token per character that occurs in `text`, in code point order, as in nanoGPT.
    pub fn characters<'a>(text: impl IntoIterator<Item = &'a str>) -> Self {
        let characters: BTreeSet<char> = text.into_iter().flat_map(str::chars).collect();
        Self { kind: Kind::Characters(Characters::new(characters.into_iter().collect())) }
    }

    /// Byte-level BPE (Sennrich, Haddow & Birch 2016, on bytes as in GPT-2), trained on
    /// `documents`.
    ///
    /// # Errors
    /// [`crate::error::Failure::Usage`] when the vocabulary is too small.
    pub fn train_byte_pair(documents: &[String], vocab_size: usize) -> anyhow::Result<Self> {
        Self::from_json(&byte_pair::train(documents, vocab_size)?)
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
                OwnJson::Bytes {} => Kind::Bytes,
                OwnJson::Characters { characters } => {
                    let all: Vec<char> = characters.chars().collect();
                    let distinct = all.iter().collect::<BTreeSet<_>>().len();
                    anyhow::ensure!(
                        distinct == all.len(),
                        "the tokenizer's JSON lists a character twice"
                    );
                    Kind::Characters(Characters::new(all))
                }
            }
        } else {
            Kind::HuggingFace(Box::new(HuggingFace::new(json, &value)?))
        };
        Ok(Self { kind })
    }

    /// The `tokenizer.json` that [`Tokenizer::from_json`] restores.
    ///
    /// # Errors
    /// Never for the kinds there are; serialisation could fail.
    pub fn to_json(&self) -> anyhow::Result<String> {
        let own = match &self.kind {
            Kind::Bytes => OwnJson::Bytes {},
            Kind::Characters(kind) => {
                OwnJson::Characters { characters: kind.characters.iter().collect() }
            }
            Kind::HuggingFace(kind) => return Ok(kind.json().to_string()),
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
            Kind::Bytes => "bytes",
            Kind::Characters(_) => "characters",
            Kind::HuggingFace(kind) => kind.model(),
        };
        format!("{kind}, {} tokens", self.vocab_size())
    }

    /// Number of tokens: one more than the largest.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::Bytes => 256,
            Kind::Characters(kind) => kind.characters.len(),
            Kind::HuggingFace(kind) => kind.vocab_size(),
        }
    }

    /// The token that ends a document, if there is one.
    pub fn end_of_text(&self) -> Option<u32> {
        match &self.kind {
            Kind::Bytes | Kind::Characters(_) => None,
            Kind::HuggingFace(kind) => kind.end_of_text(),
        }
    }

    /// The tokens of a text. Names of special tokens in it, such as `<|endoftext|>`, are ordinary
    /// text.
    ///
    /// # Errors
    /// When a character is not in the vocabulary, naming it and its place.
    pub fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Kind::Characters(kind) => kind.encode(text),
            Kind::HuggingFace(kind) => kind.encode(text),
        }
    }

    /// The tokens of documents, one after the other; if `documents_end`, each is followed by the
    /// end-of-text token, or by a newline where the tokenizer has none. Documents are encoded in
    /// parallel; the result does not depend on the number of threads.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_documents(
        &self,
        documents: &[String],
        documents_end: bool,
        progress: &ProgressBar,
    ) -> anyhow::Result<Vec<u32>> {
        let end = match (documents_end, self.end_of_text()) {
            (false, _) => Vec::new(),
            (true, Some(token)) => vec![token],
            (true, None) => self.encode(DOCUMENT_END)?,
        };
        let encoded: Vec<anyhow::Result<Vec<u32>>> = documents
            .par_iter()
            .map(|document| {
                let mut tokens = self.encode(document)?;
                tokens.extend_from_slice(&end);
                progress.inc(document.len() as u64);
                Ok(tokens)
            })
            .collect();
        let mut tokens = Vec::new();
        for (index, document) in encoded.into_iter().enumerate() {
            tokens.extend(document.with_context(|| format!("document {}", index + 1))?);
        }
        Ok(tokens)
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
            Kind::Bytes => Ok(String::from_utf8_lossy(
                &tokens.iter().map(|token| *token as u8).collect::<Vec<u8>>(),
            )
            .into_owned()),
            Kind::Characters(kind) => {
                Ok(tokens.iter().map(|token| kind.characters[*token as usize]).collect())
            }
            Kind::HuggingFace(kind) => kind.decode(tokens),
        }
    }

    /// UTF-8 bytes each token stands for; 0 for special tokens. Bits per byte are nats / (ln 2 ·
    /// the sum of these over the targets).
    pub fn token_byte_lengths(&self) -> Vec<u32> {
        match &self.kind {
            Kind::Bytes => vec![1; 256],
            Kind::Characters(kind) => {
                kind.characters.iter().map(|character| character.len_utf8() as u32).collect()
            }
            Kind::HuggingFace(kind) => kind.token_byte_lengths(),
        }
    }
}

/// What follows a document where the tokenizer has no end-of-text token.
pub(super) const DOCUMENT_END: &str = "\n";

impl Characters {
    fn new(characters: Vec<char>) -> Self {
        let ids = characters.iter().zip(0..).map(|(character, id)| (*character, id)).collect();
        Self { characters, ids }
    }

    fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let lookup = |(position, character): (usize, char)| {
            self.ids.get(&character).copied().ok_or_else(|| {
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
mod tests {
    use super::*;

    const TEXT: &str = "fn main() {\n    println!(\"naïve – 你好\");\n}\n";

    fn documents() -> Vec<String> {
        (0..40)
            .map(|index| format!("{TEXT}let x{index} = value + {index};\n\n\n    return  x;\n"))
            .collect()
    }

    fn all_kinds() -> Vec<Tokenizer> {
        vec![
            Tokenizer::bytes(),
            Tokenizer::characters([TEXT]),
            Tokenizer::train_byte_pair(&documents(), 300).unwrap(),
        ]
    }

    #[test]
    fn text_survives_and_json_restores() {
        for tokenizer in all_kinds() {
            let tokens = tokenizer.encode(TEXT).unwrap();
            assert_eq!(tokenizer.decode(&tokens).unwrap(), TEXT);
            let json = tokenizer.to_json().unwrap();
            let restored = Tokenizer::from_json(&json).unwrap();
            assert_eq!(restored.to_json().unwrap(), json);
            assert_eq!(restored.hash().unwrap(), tokenizer.hash().unwrap());
            assert_eq!(restored.encode(TEXT).unwrap(), tokens);
            assert_eq!(
                (restored.vocab_size(), restored.end_of_text()),
                (tokenizer.vocab_size(), tokenizer.end_of_text())
            );
        }
    }

    #[test]
    fn token_lengths_add_up_to_the_bytes_of_the_text() {
        for tokenizer in all_kinds() {
            let lengths = tokenizer.token_byte_lengths();
            assert_eq!(lengths.len(), tokenizer.vocab_size());
            let total: u32 =
                tokenizer.encode(TEXT).unwrap().iter().map(|token| lengths[*token as usize]).sum();
            assert_eq!(total as usize, TEXT.len(), "{}", tokenizer.description());
            if let Some(end) = tokenizer.end_of_text() {
                assert_eq!(lengths[end as usize], 0);
            }
        }
    }

    #[test]
    fn unknown_characters_are_named_with_their_place() {
        let error = Tokenizer::characters(["abc"]).encode("abxc").unwrap_err().to_string();
        assert!(error.contains("'x'") && error.contains("position 2"), "{error}");
    }

    #[test]
    fn unknown_tokens_are_named() {
        for tokenizer in all_kinds() {
            let unknown = tokenizer.vocab_size() as u32;
            let error = tokenizer.decode(&[0, unknown]).unwrap_err().to_string();
            assert!(error.contains(&unknown.to_string()), "{error}");
        }
    }

    #[test]
    fn half_a_character_is_shown_as_a_replacement() {
        assert_eq!(Tokenizer::bytes().decode(&[b'a'.into(), 0xe4]).unwrap(), "a\u{fffd}");
    }

    #[test]
    fn documents_end_with_the_token_or_a_newline() {
        let progress = ProgressBar::hidden();
        let both = ["a".to_string(), "b".to_string()];
        let tokens = Tokenizer::bytes().encode_documents(&both, true, &progress).unwrap();
        assert_eq!(tokens, b"a\nb\n".map(u32::from));
        assert_eq!(
            Tokenizer::bytes().encode_documents(&both, false, &progress).unwrap(),
            b"ab".map(u32::from)
        );

        let byte_pair = Tokenizer::train_byte_pair(&documents(), 300).unwrap();
        let end = byte_pair.end_of_text().unwrap();
        let tokens = byte_pair.encode_documents(&documents(), true, &progress).unwrap();
        assert_eq!(tokens.iter().filter(|token| **token == end).count(), 40);
        let one_by_one: Vec<u32> = documents()
            .iter()
            .flat_map(|d| [byte_pair.encode(d).unwrap(), vec![end]].concat())
            .collect();
        assert_eq!(tokens, one_by_one);
    }

    #[test]
    fn nonsense_json_is_refused() {
        for json in [
            "",
            "{}",
            "{\"lrpt_tokenizer\": \"words\"}",
            "{\"lrpt_tokenizer\": \"characters\", \"characters\": \"aa\"}",
        ] {
            assert!(Tokenizer::from_json(json).is_err(), "{json}");
        }
    }
}
