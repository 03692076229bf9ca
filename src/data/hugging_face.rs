//! Tokenizers of the Hugging Face `tokenizers` library.

use crate::spec::MAX_VOCABULARY;
use anyhow::{anyhow, ensure};
use rayon::prelude::*;
use serde_json::Value;

/// The end-of-text token of the tokenizers trained here.
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";
/// Names under which tokenizers have an end-of-text token; the first that exists is taken.
const END_OF_TEXT_NAMES: [&str; 7] =
    [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]", "<|im_end|>"];
/// Size from which a text is cut into pieces, in bytes.
const PIECE_BYTES: usize = 1 << 16;

/// A tokenizer of the library, and the JSON it was read from.
#[derive(Debug)]
pub(super) struct HuggingFace {
    inner: tokenizers::Tokenizer,
    json: String,
    model: String,
    end_of_text: Option<(&'static str, u32)>,
    vocab_size: usize,
    byte_level_decoder: bool,
    encodes_in_pieces: bool,
}

impl HuggingFace {
    /// Reads a `tokenizer.json`, given as text and as the value parsed from it. Its truncation and
    /// padding are turned off.
    ///
    /// # Errors
    /// When the library cannot read it.
    pub(super) fn new(json: &str, value: &Value) -> anyhow::Result<Self> {
        if let Some(id) = largest_id(value) {
            check_id(id)?;
        }
        let mut inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|e| anyhow!("not a tokenizer.json of the tokenizers library: {e}"))?;
        inner.with_truncation(None).map_err(|e| anyhow!("truncation cannot be turned off: {e}"))?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        let largest = inner
            .get_vocab(true)
            .into_values()
            .max()
            .ok_or_else(|| anyhow!("the tokenizer has no tokens"))?;
        check_id(u64::from(largest))?;
        let named = |name: &&'static str| Some((*name, inner.token_to_id(name)?));
        Ok(Self {
            json: json.to_string(),
            model: value["model"]["type"].as_str().unwrap_or("tokenizer.json").to_string(),
            end_of_text: END_OF_TEXT_NAMES.iter().find_map(named),
            vocab_size: largest as usize + 1,
            byte_level_decoder: value["decoder"]["type"] == "ByteLevel",
            encodes_in_pieces: encodes_in_pieces(value),
            inner,
        })
    }

    pub(super) fn json(&self) -> &str {
        &self.json
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    pub(super) fn end_of_text(&self) -> Option<u32> {
        self.end_of_text.map(|(_, id)| id)
    }

    pub(super) fn end_of_text_name(&self) -> Option<&'static str> {
        self.end_of_text.map(|(name, _)| name)
    }

    pub(super) fn token_of(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name)
    }

    /// Whether there is a token of this number: there may be holes.
    pub(super) fn has(&self, token: u32) -> bool {
        self.inner.id_to_token(token).is_some()
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let encode = |piece: &str| match self.inner.encode_fast(piece, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(anyhow!("the text cannot be encoded: {error}")),
        };
        if !self.encodes_in_pieces || text.len() <= PIECE_BYTES {
            return encode(text);
        }
        let tokens: Vec<Vec<u32>> =
            pieces(text).into_par_iter().map(encode).collect::<anyhow::Result<_>>()?;
        Ok(tokens.concat())
    }

    /// The tokenizer for text in which names of special tokens are those tokens, with nothing that
    /// moves the places of tokens in the text.
    pub(super) fn with_names(&self) -> tokenizers::Tokenizer {
        let mut inner = self.inner.clone();
        inner.set_encode_special_tokens(false);
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        inner
    }

    /// The last place of a text, at or after `from`, on whose sides the tokens are the same with
    /// and without the other; none where there may be no such place.
    pub(super) fn cut(&self, text: &str, from: usize) -> Option<usize> {
        if self.encodes_in_pieces { last_cut(text, from) } else { None }
    }

    pub(super) fn decode(&self, tokens: &[u32]) -> anyhow::Result<String> {
        self.inner.decode(tokens, false).map_err(|e| anyhow!("the tokens cannot be decoded: {e}"))
    }

    /// UTF-8 bytes of every token; exact for byte-level tokenizers, whose tokens are written with
    /// one character per byte. For others, by how much longer the text of a word becomes when the
    /// token follows it (`<0xE4>`, a byte as SentencePiece writes it, is one byte).
    pub(super) fn token_byte_lengths(&self) -> Vec<u32> {
        let special: Vec<u32> = self
            .inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        let before = self
            .inner
            .encode_fast("a", false)
            .map(|encoding| encoding.get_ids().to_vec())
            .unwrap_or_default();
        let text_bytes =
            |tokens: &[u32]| self.inner.decode(tokens, false).map_or(0, |text| text.len());
        let before_bytes = text_bytes(&before);
        let length = |id: u32| {
            let Some(token) = self.inner.id_to_token(id) else { return 0 };
            if special.contains(&id) || Some(id) == self.end_of_text() {
                0
            } else if self.byte_level_decoder {
                token.chars().count()
            } else if token.len() == 6 && token.starts_with("<0x") && token.ends_with('>') {
                1
            } else {
                text_bytes(&[before.as_slice(), &[id]].concat()).saturating_sub(before_bytes)
            }
        };
        (0..self.vocab_size as u32).map(|id| length(id) as u32).collect()
    }
}

/// The largest number of a token that a `tokenizer.json` gives.
fn largest_id(tokenizer: &Value) -> Option<u64> {
    let vocabulary = match &tokenizer["model"]["vocab"] {
        Value::Object(tokens) => tokens.values().filter_map(Value::as_u64).max(),
        Value::Array(tokens) => (tokens.len() as u64).checked_sub(1),
        _ => None,
    };
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    added.filter_map(|token| token["id"].as_u64()).chain(vocabulary).max()
}

/// Refuses numbers for which tables over the vocabulary would not fit in memory.
fn check_id(id: u64) -> anyhow::Result<()> {
    ensure!(
        id < MAX_VOCABULARY as u64,
        "a token has the number {id}, but vocabularies end at {MAX_VOCABULARY} tokens; number the \
         tokens from 0 on"
    );
    Ok(())
}

/// Whether encoding [`pieces`] one by one gives the tokens of the whole: so with the byte-level
/// splitting of GPT-2, without a normalizer, a space put before the text, or added tokens that are
/// looked for in the text.
fn encodes_in_pieces(tokenizer: &Value) -> bool {
    let split = &tokenizer["pre_tokenizer"];
    let added = tokenizer["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    tokenizer["normalizer"].is_null()
        && split["type"] == "ByteLevel"
        && split["add_prefix_space"] == false
        && split["use_regex"] != false
        && added.iter().all(|token| token["special"] == true)
}

/// Cuts a text after newlines that stand between two characters that are not white space, into
/// pieces of at least 64 KiB.
///
/// GPT-2's splitting expression makes such a newline a word of its own, with or without the text
/// around it, so no word is cut.
pub(super) fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut start = 0;
    while text.len() - start > PIECE_BYTES {
        // Newlines are one byte and never part of another character, so bytes can be searched.
        let from = start + PIECE_BYTES;
        let newlines = text.as_bytes()[from..]
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .map(|(at, _)| from + at);
        let Some(newline) = newlines.into_iter().find(|newline| is_cut(text, *newline)) else {
            break;
        };
        pieces.push(&text[start..=newline]);
        start = newline + 1;
    }
    if start < text.len() || pieces.is_empty() {
        pieces.push(&text[start..]);
    }
    pieces
}

/// The end of the last piece that [`pieces`] could cut from a text whose newlines before `from` are
/// known to be no places for it.
pub(super) fn last_cut(text: &str, from: usize) -> Option<usize> {
    let mut end = text.len();
    while let Some(at) = text.as_bytes()[from..end].iter().rposition(|byte| *byte == b'\n') {
        if is_cut(text, from + at) {
            return Some(from + at + 1);
        }
        end = from + at;
    }
    None
}

/// Whether a newline stands between two characters that are not white space.
fn is_cut(text: &str, newline: usize) -> bool {
    let before = text[..newline].chars().next_back();
    let after = text[newline + 1..].chars().next();
    before.is_some_and(|c| !c.is_whitespace()) && after.is_some_and(|c| !c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Tokenizer;

    /// 100 kB with every kind of line end.
    fn long_text() -> String {
        (0..12_000)
            .map(|index| {
                [
                    "a b;\n",
                    "fn f() {\n    x\n}\n\n",
                    "it's 12\n\n\n",
                    "ü,\r\n",
                    "tab\t\n end \n",
                    "(\n)\n",
                ][index % 6]
            })
            .collect::<String>()
            + &"x".repeat(2000)
    }

    #[test]
    fn pieces_make_up_the_text() {
        let text = long_text();
        let cut = pieces(&text);
        assert!(cut.len() > 1, "{}", cut.len());
        assert_eq!(cut.concat(), text);
        assert_eq!(pieces(""), [""]);
        let newlines = "\n".repeat(2 * PIECE_BYTES);
        assert_eq!(pieces(&newlines), [newlines.as_str()]);
    }

    #[test]
    fn encoding_in_pieces_is_encoding_the_whole() {
        let text = long_text();
        let json = crate::data::byte_pair::train([text.clone()].into_iter(), 320).unwrap();
        let tokenizer = HuggingFace::new(&json, &serde_json::from_str(&json).unwrap()).unwrap();
        assert!(tokenizer.encodes_in_pieces);
        let whole = tokenizer.inner.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
        assert!(tokenizer.encode(&text).unwrap() == whole);
    }

    #[test]
    fn names_of_special_tokens_in_a_text_are_text() {
        let tokenizer = Tokenizer::train_byte_pair(&["some text".to_string()], 257).unwrap();
        let tokens = tokenizer.encode(END_OF_TEXT).unwrap();
        assert_eq!(tokens.len(), END_OF_TEXT.len());
        assert_eq!(tokenizer.decode(&tokens).unwrap(), END_OF_TEXT);
    }

    /// Case 25.
    #[test]
    fn numbers_of_tokens_have_a_bound() {
        for id in ["2147483648", "4294967295", "16777216"] {
            let json = format!(
                r#"{{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
                "post_processor": null, "decoder": null,
                "model": {{"type": "WordLevel", "vocab": {{"a": 0, "b": {id}}}, "unk_token": "a"}}}}"#
            );
            let error = format!("{:#}", Tokenizer::from_json(&json).unwrap_err());
            assert!(error.contains(id) && error.contains("16777216 tokens"), "{error}");
        }
    }

    /// SentencePiece's form: words begin with `▁`, bytes that are no token of their own are written
    /// `<0xE4>`.
    #[test]
    fn byte_lengths_of_a_tokenizer_that_is_not_byte_level() {
        let json = r#"{"version": "1.0", "added_tokens": [{"id": 0, "content": "</s>", "single_word": false, "lstrip": false,
              "rstrip": false, "normalized": false, "special": true}], "normalizer": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true},
            "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
              {"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "byte_fallback": true, "vocab": {"</s>": 0, "<0xE4>": 1, "a": 2, "▁": 3, "▁a": 4, "é": 5},
              "merges": [["▁", "a"]]}}"#;
        let tokenizer = Tokenizer::from_json(json).unwrap();
        assert_eq!(tokenizer.encode("a aé").unwrap(), [2, 4, 5]);
        assert_eq!(tokenizer.token_byte_lengths(), [0, 1, 1, 1, 2, 2]);
        assert_eq!((tokenizer.end_of_text(), tokenizer.vocab_size()), (Some(0), 6));
    }
}
