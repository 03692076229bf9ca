//! Text as its tokens come, a whole character at a time.

use super::tokenizer::Tokenizer;

/// Decodes tokens one after the other.
///
/// A character may be spread over tokens, and a decoder may show its bytes as several U+FFFD until
/// the last has come; so text is held back until it ends with a whole character. Tokens are decoded
/// together with those of the text shown last, since a decoder may write the first of a text
/// otherwise than the same token within it (without a space before it, say).
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens of the text shown last, and those not yet shown.
    tokens: Vec<u32>,
    /// How many of `tokens` are shown.
    shown: usize,
}

impl<'a> TextStream<'a> {
    /// A stream at its beginning.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new(), shown: 0 }
    }

    /// The text that these tokens make whole; empty where they end within a character.
    ///
    /// # Errors
    /// As [`Tokenizer::show`].
    pub fn push(&mut self, tokens: &[u32]) -> anyhow::Result<String> {
        self.tokens.extend_from_slice(tokens);
        let text = self.tokenizer.show(&self.tokens)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let new = self.new_part(&text)?;
        if !new.is_empty() {
            self.tokens.drain(..self.shown);
            self.shown = self.tokens.len();
        }
        Ok(new)
    }

    /// What is left, bytes without a whole character as U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::show`].
    pub fn finish(self) -> anyhow::Result<String> {
        self.new_part(&self.tokenizer.show(&self.tokens)?)
    }

    /// What a text has beyond the part of it that is shown. A decoder that writes that part
    /// otherwise once more tokens follow has it kept as it is shown.
    fn new_part(&self, text: &str) -> anyhow::Result<String> {
        let before = self.tokenizer.show(&self.tokens[..self.shown])?;
        let common: usize = text
            .chars()
            .zip(before.chars())
            .take_while(|(new, old)| new == old)
            .map(|(character, _)| character.len_utf8())
            .sum();
        Ok(text[common..].to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SentencePiece's form with a token for every byte, as Llama's has it.
    fn byte_fallback() -> Tokenizer {
        let bytes: Vec<String> =
            (0..256).map(|byte| format!("\"<0x{byte:02X}>\": {byte}")).collect();
        let json = format!(
            r#"{{"version": "1.0", "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}},
            "post_processor": null,
            "decoder": {{"type": "Sequence", "decoders": [
              {{"type": "Replace", "pattern": {{"String": "▁"}}, "content": " "}},
              {{"type": "ByteFallback"}}, {{"type": "Fuse"}},
              {{"type": "Strip", "content": " ", "start": 1, "stop": 0}}]}},
            "model": {{"type": "BPE", "byte_fallback": true,
              "vocab": {{{}, "a": 256, "▁": 257, "▁a": 258}}, "merges": [["▁", "a"]]}}}}"#,
            bytes.join(", ")
        );
        Tokenizer::from_json(&json).unwrap()
    }

    fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
        let mut stream = TextStream::new(tokenizer);
        let mut parts: Vec<String> =
            tokens.iter().map(|token| stream.push(&[*token]).unwrap()).collect();
        parts.push(stream.finish().unwrap());
        parts
    }

    /// Case 21.
    #[test]
    fn characters_spread_over_tokens_come_whole() {
        for tokenizer in [Tokenizer::bytes(), byte_fallback()] {
            let tokens = "é你!".bytes().map(u32::from).collect::<Vec<_>>();
            assert_eq!(streamed(&tokenizer, &tokens), ["", "é", "", "", "你", "!", ""]);
            assert_eq!(streamed(&tokenizer, &[0xe4]), ["", "\u{fffd}"]);
        }
        let tokenizer = byte_fallback();
        assert_eq!(streamed(&tokenizer, &[258, 258, 256]), ["a", " a", "a", ""]);
    }

    #[test]
    fn numbers_without_a_token_are_shown() {
        assert_eq!(streamed(&Tokenizer::bytes(), &[97, 300, 98]), ["a", "⟨300⟩", "b", ""]);
    }

    proptest! {
        #[test]
        fn parts_make_up_the_text(tokens in proptest::collection::vec(0u32..256, 0..40)) {
            let tokenizer = Tokenizer::bytes();
            let whole = tokenizer.decode(&tokens).unwrap();
            prop_assert_eq!(streamed(&tokenizer, &tokens).concat(), whole);
            // No outcome is expected of broken bytes in the other form but that it ends.
            streamed(&byte_fallback(), &tokens);
        }
    }
}
