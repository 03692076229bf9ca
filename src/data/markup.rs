//! Tokens of text with markup in it, as chat templates write it.

use super::tokenizer::Tokenizer;

/// Encodes text in which the names of special tokens, such as `<|im_end|>`, are those tokens.
pub(super) enum MarkupEncoder<'a> {
    /// Of a tokenizer of the library.
    Special(Box<tokenizers::Tokenizer>),
    /// Of one without special tokens.
    Plain(&'a Tokenizer),
}

impl MarkupEncoder<'_> {
    /// The encoder of a tokenizer.
    pub(super) fn new(tokenizer: &Tokenizer) -> MarkupEncoder<'_> {
        match tokenizer.with_names() {
            Some(inner) => MarkupEncoder::Special(Box::new(inner)),
            None => MarkupEncoder::Plain(tokenizer),
        }
    }

    /// The tokens of a text, each with the byte that it begins at.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub(super) fn encode(&self, text: &str) -> anyhow::Result<Vec<(u32, usize)>> {
        match self {
            MarkupEncoder::Special(inner) => {
                let encoding = inner
                    .encode(text, false)
                    .map_err(|error| anyhow::anyhow!("the text cannot be encoded: {error}"))?;
                let starts = encoding.get_offsets().iter().map(|(start, _)| *start);
                Ok(encoding.get_ids().iter().copied().zip(starts).collect())
            }
            MarkupEncoder::Plain(tokenizer) => {
                let tokens = tokenizer.encode(text)?;
                // A token is a byte or a character.
                Ok(match tokens.len() == text.len() {
                    true => tokens.into_iter().zip(0..).collect(),
                    false => {
                        tokens.into_iter().zip(text.char_indices().map(|(at, _)| at)).collect()
                    }
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(tokenizer: &Tokenizer, text: &str) -> Vec<(u32, usize)> {
        MarkupEncoder::new(tokenizer).encode(text).expect("tokens")
    }

    #[test]
    fn tokens_know_where_they_begin() {
        assert_eq!(encoded(&Tokenizer::bytes(), "é!"), [(195, 0), (169, 1), (33, 2)]);
        let characters = Tokenizer::characters(["!é"]);
        assert_eq!(encoded(&characters, "é!é"), [(1, 0), (0, 2), (1, 3)]);
        let byte_pair = Tokenizer::train_byte_pair(&["to be to be".to_string()], 262).unwrap();
        let text = "to be é<|endoftext|> be";
        let tokens = encoded(&byte_pair, text);
        let end = text.find('<').unwrap();
        // The name is the token here, and ordinary text elsewhere.
        assert!(tokens.contains(&(0, end)), "{tokens:?}");
        assert!(!byte_pair.encode(text).unwrap().contains(&0));
        // A space belongs to the word behind it, which begins with it.
        let space = end + "<|endoftext|>".len();
        assert!(tokens.iter().any(|(_, start)| *start == space), "{tokens:?}");
        let all: Vec<u32> = tokens.iter().map(|(token, _)| *token).collect();
        assert_eq!(byte_pair.decode(&all).unwrap(), text);
    }
}
