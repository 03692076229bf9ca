//! Instructions: JSON lines of conversations or of prompts with completions, as text of which only
//! the answers are trained on.

use super::chat_settings::ChatSettings;
use super::chat_template::{ChatTemplate, Example};
use super::corpus::{Corpus, usage};
use super::documents::Documents;
use super::json_lines::{JsonLines, object_of_line};
use super::rows::{Rows, read_rows};
use super::tokenizer::{DOCUMENT_END, Tokenizer};
use crate::spec::{DataSpec, InstructionsSourceSpec};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Some lines of instructions and the template that makes text of them.
#[derive(Clone, Debug)]
pub(super) struct Instructions {
    lines: JsonLines,
    template: Arc<ChatTemplate>,
}

impl Instructions {
    /// Number of examples.
    pub(super) fn count(&self) -> u64 {
        self.lines.span().count
    }

    /// The examples, in order.
    pub(super) fn examples(&self) -> impl Iterator<Item = Result<Example>> + Send + '_ {
        self.lines
            .parsed(|line| example_of(&object_of_line(line, "a conversation")?, &self.template))
    }
}

/// The examples of a source, split into training and validation.
///
/// # Errors
/// [`crate::error::Failure::Usage`] where the source contradicts itself, matches no file or the
/// template is none; else where a file cannot be read.
pub(super) fn read(
    source: &InstructionsSourceSpec,
    data: &DataSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<Corpus> {
    let (settings, name) = ChatSettings::of_instructions(source, data, tokenizer)?;
    let template = settings.chat_template().map_err(|error| usage(format!("{name}: {error:#}")))?;
    let template = Arc::new(template);
    let (train, val, split) = read_rows(
        "instructions",
        (&source.train, source.val.as_deref()),
        source.val_fraction,
        |files| JsonLines::open(files, ""),
    )?;
    let [train, val] = [train, val]
        .map(|lines| Documents::Examples(Instructions { lines, template: Arc::clone(&template) }));
    let description = format!("{split}; {name}");
    Ok(Corpus { description, train, val, documents_end: false })
}

/// The example of one line's object.
fn example_of(line: &Map<String, Value>, template: &ChatTemplate) -> Result<Example> {
    match (line.get("messages"), line.get("prompt"), line.get("completion")) {
        (Some(messages), None, None) => {
            let tools = line.get("tools").unwrap_or(&Value::Null);
            template.conversation(messages_of(messages, "messages")?, tools)
        }
        (None, Some(Value::String(prompt)), Some(Value::String(completion))) => {
            let end = if template.eos().is_empty() { DOCUMENT_END } else { template.eos() };
            let text = format!("{prompt}{completion}{end}");
            let trained = std::iter::once(prompt.len()..text.len()).collect();
            Ok(Example { text, trained })
        }
        (None, Some(prompt @ Value::Array(_)), Some(completion @ Value::Array(_))) => template
            .completion(messages_of(prompt, "prompt")?, messages_of(completion, "completion")?),
        (None, Some(_), Some(_)) => {
            bail!("`prompt` and `completion` are neither two strings nor two lists of messages")
        }
        _ => {
            let keys: Vec<&str> = line.keys().map(String::as_str).collect();
            bail!(
                "a line has either `messages`, or `prompt` and `completion`; this one has {}",
                if keys.is_empty() {
                    "no key".to_string()
                } else {
                    format!("`{}`", keys.join("`, `"))
                }
            )
        }
    }
}

/// A list of messages, each an object with the text of its `role`.
fn messages_of<'a>(list: &'a Value, key: &str) -> Result<&'a [Value]> {
    let messages = list.as_array().with_context(|| format!("`{key}` is no list of messages"))?;
    ensure!(!messages.is_empty(), "`{key}` is an empty list");
    for (index, message) in messages.iter().enumerate() {
        ensure!(
            message["role"].is_string(),
            "`{key}`: message {} has no `role`; a message is {{\"role\": \"user\", \"content\": \
             \"...\"}}",
            index + 1
        );
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::chat_template::DEFAULT;

    fn example(line: &str, eos: &str) -> Result<Example> {
        let template = ChatTemplate::new(DEFAULT, "", eos).unwrap();
        example_of(&object_of_line(line, "a conversation")?, &template)
    }

    #[test]
    fn completions_end_with_the_end_of_text() {
        let line = r#"{"prompt": "2 + 2 =", "completion": " 4", "source": "school"}"#;
        let text = |eos: &str| {
            let example = example(line, eos).unwrap();
            let parts: Vec<String> =
                example.trained.iter().map(|part| example.text[part.clone()].into()).collect();
            (example.text, parts)
        };
        assert_eq!(text("</s>"), ("2 + 2 = 4</s>".into(), vec![" 4</s>".into()]));
        assert_eq!(text(""), ("2 + 2 = 4\n".into(), vec![" 4\n".into()]));
    }

    #[test]
    fn a_prompt_may_be_messages() {
        let line = r#"{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]}"#;
        let example = example(line, "").unwrap();
        assert_eq!(example.text, "<|user|>\na\n<|assistant|>\nb\n<|user|>\nc\n<|assistant|>\nd\n");
        assert_eq!(&example.text[example.trained[0].clone()], "d\n");
        assert_eq!(example.trained.len(), 1);
    }

    #[test]
    fn what_is_no_instruction_is_named() {
        for (line, expected) in [
            (r#"{"text": "a"}"#, "this one has `text`"),
            (r#"{}"#, "no key"),
            (r#"{"prompt": "a"}"#, "this one has `prompt`"),
            (r#"{"prompt": "a", "completion": []}"#, "neither two strings nor two lists"),
            (r#"{"messages": "a"}"#, "`messages` is no list"),
            (r#"{"messages": []}"#, "empty list"),
            (r#"{"messages": [{"content": "a"}]}"#, "message 1 has no `role`"),
            (r#"{"messages": [{"role": "assistant"}]}"#, "the chat template refuses"),
            ("[1]", "a JSON array"),
        ] {
            let error = format!("{:#}", example(line, "").expect_err(line));
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
