//! The tokenizer of an exported model and what it says of conversations: `tokenizer.json`,
//! `tokenizer_config.json` and `chat_template.jinja`, as `transformers` writes them.

use super::folder::{write, write_json};
use crate::data::{ChatSettings, Tokenizer};
use anyhow::Result;
use serde_json::{Value, json};
use std::path::Path;

/// A tokenizer and how conversations become its text.
#[derive(Clone, Copy, Debug)]
pub struct ChatTokenizer<'a> {
    /// Text to tokens.
    pub tokenizer: &'a Tokenizer,
    /// Conversations to text, where the model knows any.
    pub chat: Option<&'a ChatSettings>,
}

impl<'a> From<&'a Tokenizer> for ChatTokenizer<'a> {
    fn from(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, chat: None }
    }
}

impl ChatTokenizer<'_> {
    /// Names of the tokens that begin and end a text: those of the chat template, where there is
    /// one, else the end-of-text token for both.
    fn names(&self) -> [Option<String>; 2] {
        let end = self.tokenizer.end_of_text_name().map(String::from);
        let known = |name: &Option<String>| {
            name.clone().filter(|name| self.tokenizer.token_of(name).is_some())
        };
        match self.chat.filter(|chat| chat.template.is_some()) {
            None => [end.clone(), end],
            Some(chat) => [known(&chat.bos), known(&chat.eos).or(end)],
        }
    }
}

/// `generation_config.json`: a text, or an answer, ends with the token that the template ends it
/// with.
pub(super) fn generation_config(tokenizer: ChatTokenizer) -> Value {
    let end = tokenizer.tokenizer.end_of_text();
    let ids =
        tokenizer.names().map(|name| name.and_then(|name| tokenizer.tokenizer.token_of(&name)));
    let [bos, eos] = ids.map(|id| id.or(end));
    let mut config = json!({ "bos_token_id": bos, "eos_token_id": eos });
    if [bos, eos] == [end, end] {
        config["_from_model_config"] = json!(true);
    }
    config
}

/// Writes the files of the tokenizer of a model that sees so many tokens.
///
/// The chat template is in a file of its own, where `transformers` looks first, and in
/// `tokenizer_config.json`, where versions before 4.50 and other programs look.
///
/// # Errors
/// If one cannot be written.
pub(super) fn write_tokenizer(
    folder: &Path,
    tokenizer: ChatTokenizer,
    block_size: usize,
) -> Result<()> {
    let json = tokenizer.tokenizer.to_hugging_face_json()?;
    write(&folder.join("tokenizer.json"), json.as_bytes())?;
    let [bos, eos] = tokenizer.names();
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": false,
        "bos_token": bos,
        "eos_token": eos,
    });
    let names = [("bos_token", bos), ("eos_token", eos)];
    if let Some(template) = tokenizer.chat.and_then(|chat| chat.template_with(&names)) {
        write(&folder.join("chat_template.jinja"), template.as_bytes())?;
        config["chat_template"] = json!(template);
    }
    write_json(&folder.join("tokenizer_config.json"), &config)
}
