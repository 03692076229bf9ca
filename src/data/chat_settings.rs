//! What a tokenizer's file says of conversations: its chat template and the names of its special
//! tokens.

use super::corpus::usage;
use super::gguf_tokenizer;
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// Chat template and special tokens, as far as there are any.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ChatSettings {
    /// A Jinja template over `messages`.
    pub template: Option<String>,
    /// The token that begins a text.
    pub bos: Option<String>,
    /// The token that ends a text, or an answer.
    pub eos: Option<String>,
}

impl ChatSettings {
    /// Those of a tokenizer's file: of a `tokenizer.json`, from `tokenizer_config.json` and
    /// `chat_template.jinja` beside it; of a GGUF file, from itself.
    ///
    /// # Errors
    /// When one of these files is there but cannot be read.
    pub(super) fn beside(tokenizer: &Path) -> Result<Self> {
        if gguf_tokenizer::is_gguf(tokenizer) {
            return gguf_tokenizer::chat_settings(tokenizer);
        }
        let folder = tokenizer.parent().unwrap_or(Path::new("."));
        let config = folder.join("tokenizer_config.json");
        let mut settings = Self::default();
        if config.is_file() {
            let text = std::fs::read_to_string(&config)
                .with_context(|| format!("{} cannot be read", config.display()))?;
            settings = Self::of_config(&text)
                .map_err(|error| usage(format!("{}: {error:#}", config.display())))?;
        }
        let file = folder.join("chat_template.jinja");
        if file.is_file() {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("{} cannot be read", file.display()))?;
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
        write("tokenizer_config.json", "[");
        let error = ChatSettings::beside(&tokenizer).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        assert!(error.to_string().contains("tokenizer_config.json"), "{error:#}");
    }
}
