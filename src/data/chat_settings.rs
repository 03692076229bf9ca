//! What a tokenizer's file says of conversations: its chat template and the names of its special
//! tokens.

use super::chat_template::{ChatTemplate, DEFAULT};
use super::corpus::usage;
use super::gguf_tokenizer;
use super::hugging_face::END_OF_TEXT;
use super::tokenizer::Tokenizer;
use crate::fs::read_text;
use crate::spec::{DataSpec, InstructionsSourceSpec, SourceSpec, TokenizerSpec};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Chat template and special tokens, as far as there are any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatSettings {
    /// A Jinja template over `messages`.
    pub template: Option<String>,
    /// The token that begins a text.
    pub bos: Option<String>,
    /// The token that ends a text, or an answer.
    pub eos: Option<String>,
}

impl ChatSettings {
    /// Those of a run's data: what made text of conversations, the default included; where nothing
    /// did, what the tokenizer's file says. No template where there is none.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn of_data(data: &DataSpec, tokenizer: &Tokenizer) -> Result<Self> {
        match (&data.source, &data.tokenizer) {
            (SourceSpec::Instructions(source), _) => {
                Ok(Self::of_instructions(source, data, Some(tokenizer))?.0)
            }
            (_, TokenizerSpec::File(path)) => Self::beside(path),
            _ => Ok(Self::default()),
        }
    }

    /// Those of instruction data: the template of the spec, of the tokenizer, or the default one,
    /// with the tokenizer's special tokens; and what the template is.
    ///
    /// # Errors
    /// As for [`Self::beside`], or when the spec's template cannot be read.
    pub(super) fn of_instructions(
        source: &InstructionsSourceSpec,
        data: &DataSpec,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<(Self, String)> {
        let settings = match &data.tokenizer {
            TokenizerSpec::File(path) => Self::beside(path)?,
            _ => Self::default(),
        };
        let is_token = |name: &String| tokenizer.is_some_and(|t| t.token_of(name).is_some());
        let eos = match (&data.end_of_text, &data.tokenizer) {
            (Some(name), _) => Some(name.clone()),
            (None, TokenizerSpec::Bpe(_)) => Some(END_OF_TEXT.to_string()),
            _ => settings
                .eos
                .filter(is_token)
                .or_else(|| Some(tokenizer?.end_of_text_name()?.to_string())),
        };
        let bos = settings.bos.filter(is_token);
        let (text, name) = match (&source.chat_template, settings.template) {
            (Some(path), _) => {
                let text = read_text(path).map_err(|error| {
                    usage(format!(
                        "data.source.instructions.chat_template: {}: {error}",
                        path.display()
                    ))
                })?;
                (text, format!("chat template {}", path.display()))
            }
            (None, Some(text)) => (text, "the tokenizer's chat template".to_string()),
            (None, None) => (DEFAULT.to_string(), "the default chat template".to_string()),
        };
        Ok((Self { template: Some(text), bos, eos }, name))
    }

    /// The template, ready to be rendered.
    ///
    /// # Errors
    /// When it is no Jinja template.
    pub(super) fn chat_template(&self) -> Result<ChatTemplate> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        ChatTemplate::new(&text(&self.template), &text(&self.bos), &text(&self.eos))
    }

    /// The template for a program that knows special tokens by these names, and leaves others
    /// undefined where here they are empty; a token that it knows otherwise is said first.
    pub fn template_with(&self, names: &[(&str, Option<String>); 2]) -> Option<String> {
        let mut text = self.template.clone()?;
        for ((name, theirs), ours) in names.iter().zip([&self.bos, &self.eos]) {
            let is_known = theirs.is_some() && theirs == ours;
            if !is_known && text.contains(name) {
                let token = json!(ours.as_deref().unwrap_or_default());
                // The line break is the block's, and taken away with it.
                text = format!("{{% set {name} = {token} %}}\n{text}");
            }
        }
        Some(text)
    }

    /// As `tokenizer_config.json` has them, for [`Self::beside`].
    pub fn to_json(&self) -> Value {
        json!({
            "chat_template": self.template,
            "bos_token": self.bos,
            "eos_token": self.eos,
        })
    }

    /// Those of a tokenizer's file: of a `tokenizer.json`, from `tokenizer_config.json` and
    /// `chat_template.jinja` beside it; of a GGUF file, from itself.
    ///
    /// # Errors
    /// When one of these files is there but cannot be read.
    pub fn beside(tokenizer: &Path) -> Result<Self> {
        if gguf_tokenizer::is_gguf(tokenizer) {
            return gguf_tokenizer::chat_settings(tokenizer);
        }
        let folder = tokenizer.parent().unwrap_or(Path::new("."));
        let config = folder.join("tokenizer_config.json");
        let mut settings = Self::default();
        if config.is_file() {
            let text = read_text(&config)
                .with_context(|| format!("{} cannot be read", config.display()))?;
            settings = Self::of_config(&text)
                .map_err(|error| usage(format!("{}: {error:#}", config.display())))?;
        }
        let file = folder.join("chat_template.jinja");
        if file.is_file() {
            let text =
                read_text(&file).with_context(|| format!("{} cannot be read", file.display()))?;
            settings.template = Some(text);
        }
        Ok(settings)
    }

    /// Of a `tokenizer_config.json`: `chat_template` is a text, or a list of named ones of which
    /// `default` is taken; a token is its name or an object with its `content`.
    fn of_config(text: &str) -> Result<Self> {
        let config: Value = serde_json::from_str(text).context("not JSON")?;
        let token = |key: &str| {
            let entry = &config[key];
            entry.as_str().or_else(|| entry["content"].as_str()).map(String::from)
        };
        let template = match &config["chat_template"] {
            Value::Array(named) => {
                let default = named.iter().find(|template| template["name"] == "default");
                default.and_then(|template| template["template"].as_str())
            }
            one => one.as_str(),
        };
        Ok(Self {
            template: template.map(String::from),
            bos: token("bos_token"),
            eos: token("eos_token"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_transformers_are_read() {
        let read = |text: &str| ChatSettings::of_config(text).unwrap();
        let plain = read(r#"{"chat_template": "a", "bos_token": "<s>", "eos_token": null}"#);
        let some = |text: &str| Some(text.to_string());
        assert_eq!(plain, ChatSettings { template: some("a"), bos: some("<s>"), eos: None });
        let listed = read(
            r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}],
                "eos_token": {"content": "</s>", "lstrip": false}}"#,
        );
        assert_eq!(listed, ChatSettings { template: some("d"), bos: None, eos: some("</s>") });
        assert_eq!(read("{}"), ChatSettings::default());
        assert!(ChatSettings::of_config("{").is_err());
    }

    #[test]
    fn a_template_of_its_own_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let tokenizer = folder.path().join("tokenizer.json");
        assert_eq!(ChatSettings::beside(&tokenizer).unwrap(), ChatSettings::default());
        write("tokenizer_config.json", r#"{"chat_template": "config", "eos_token": "<e>"}"#);
        write("chat_template.jinja", "file");
        let settings = ChatSettings::beside(&tokenizer).unwrap();
        assert_eq!(
            (settings.template.as_deref(), settings.eos.as_deref()),
            (Some("file"), Some("<e>"))
        );
        // What is written for others is the same, and says what they do not know.
        write("tokenizer_config.json", &settings.to_json().to_string());
        std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
        assert_eq!(ChatSettings::beside(&tokenizer).unwrap(), settings);
        let settings = ChatSettings { template: Some("\n{{ bos_token }}".into()), ..settings };
        let named = |bos: Option<&str>| {
            settings.template_with(&[("bos_token", bos.map(String::from)), ("eos_token", None)])
        };
        let said = "{% set bos_token = \"\" %}\n\n{{ bos_token }}";
        assert_eq!([named(None).unwrap(), named(Some("<s>")).unwrap()], [said, said]);
        write("tokenizer_config.json", "[");
        let error = ChatSettings::beside(&tokenizer).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        assert!(error.to_string().contains("tokenizer_config.json"), "{error:#}");
    }
}
