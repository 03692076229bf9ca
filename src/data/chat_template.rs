//! Conversations as text: a chat template in Jinja, rendered as `transformers` renders it, and
//! which parts of the text are the assistant's.

use anyhow::{Context, Result, ensure};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value as Jinja};
use serde_json::{Value, json};
use std::ops::Range;

/// How a conversation is written where the tokenizer has no template of its own.
pub(super) const DEFAULT: &str = "\
{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' }}\
{% if message['role'] == 'assistant' %}\
{% generation %}{{ message['content'] + eos_token + '\\n' }}{% endgeneration %}\
{% else %}{{ message['content'] + eos_token + '\\n' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";

/// Characters that stand around what `{% generation %}` marks while it is rendered; Unicode keeps
/// them out of text.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];
const NAME: &str = "chat template";
/// Instructions after which a template is not rendered further, half a second or so: it may come
/// from anyone, and one that loops is not waited for.
const MOST_INSTRUCTIONS: u64 = 1_000_000;

/// A text and its parts that are trained on, in bytes, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Example {
    /// The whole text.
    pub text: String,
    /// Parts of it.
    pub trained: Vec<Range<usize>>,
}

/// A chat template, ready to be rendered.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    has_marks: bool,
}

impl ChatTemplate {
    /// A template with the settings of `transformers`: blocks take the line break after and the
    /// blanks before them away, methods of Python's strings, `raise_exception`, `tojson`, `break`
    /// and `continue`. It is not told the time (`strftime_now`), so that the same data is always
    /// the same text.
    ///
    /// # Errors
    /// When it is no Jinja template.
    pub(super) fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(MOST_INSTRUCTIONS));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        let refuse = |message: String| -> std::result::Result<Jinja, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        };
        environment.add_function("raise_exception", refuse);
        let [open, close] = MARKS;
        environment.add_filter("generation", move |text: String| format!("{open}{text}{close}"));
        let (source, has_marks) = with_marks(source);
        environment.add_template_owned(NAME, source).context("the chat template")?;
        Ok(Self { environment, bos: bos.into(), eos: eos.into(), has_marks })
    }

    /// The end of an answer.
    pub(super) fn eos(&self) -> &str {
        &self.eos
    }

    /// The text of messages; with the beginning of an answer behind it if one is to follow.
    fn render(&self, messages: &[Value], tools: &Value, answer: bool) -> Result<String> {
        let context = json!({
            "messages": messages, "tools": tools, "documents": null, "bos_token": self.bos,
            "eos_token": self.eos, "add_generation_prompt": answer,
        });
        let template = self.environment.get_template(NAME)?;
        // Its text, with the templates' own messages, says what is wrong.
        template
            .render(Jinja::from(Serde(&context)))
            .map_err(|error| match error.kind() {
                ErrorKind::OutOfFuel => anyhow::anyhow!(
                    "the chat template is not done after {MOST_INSTRUCTIONS} instructions: it loops, or \
                     the conversation is far too long"
                ),
                _ => anyhow::anyhow!("the chat template refuses the conversation: {error}"),
            })
    }

    /// A conversation and its answers: what `{% generation %}` encloses, or else, for each message
    /// of the assistant, what the text of the messages up to it has more than the text of those
    /// before it with `add_generation_prompt`.
    ///
    /// # Errors
    /// When the template refuses the messages, or the text of the first of them is not how the text
    /// of all begins, so that answers cannot be told apart.
    pub(super) fn conversation(&self, messages: &[Value], tools: &Value) -> Result<Example> {
        if self.has_marks {
            return split_at_marks(&self.render(messages, tools, false)?);
        }
        let text = self.render(messages, tools, false)?;
        let mut trained = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            if message["role"] == "assistant" {
                let from = self.prefix(&messages[..index], tools, true, &text, index)?;
                let to = self.prefix(&messages[..=index], tools, false, &text, index)?;
                trained.push(from..to);
            }
        }
        Ok(Example { text, trained })
    }

    /// A conversation of which everything behind the first messages is trained on.
    ///
    /// # Errors
    /// As for [`Self::conversation`].
    pub(super) fn completion(&self, prompt: &[Value], completion: &[Value]) -> Result<Example> {
        let (all, tools) = ([prompt, completion].concat(), Value::Null);
        let Example { text, .. } = split_at_marks(&self.render(&all, &tools, false)?)?;
        let from = self.prefix(prompt, &tools, true, &text, prompt.len())?;
        let end = text.len();
        Ok(Example { text, trained: std::iter::once(from..end).collect() })
    }

    /// The length of the text of some messages, which `text` begins with.
    fn prefix(
        &self,
        messages: &[Value],
        tools: &Value,
        answer: bool,
        text: &str,
        index: usize,
    ) -> Result<usize> {
        // A template may refuse to render nothing.
        let prefix = match messages {
            [] if !answer => String::new(),
            some => split_at_marks(&self.render(some, tools, answer)?)?.text,
        };
        ensure!(
            text.starts_with(&prefix),
            "the chat template writes message {} in another way when more follow, so that the \
             answer in it cannot be found; enclose answers in its template by {{% generation %}} \
             and {{% endgeneration %}} and give it as `chat_template`",
            index + 1
        );
        Ok(prefix.len())
    }
}

/// A template whose `{% generation %}` blocks are filter blocks, which have the same effect on the
/// white space around them; and whether it has any.
fn with_marks(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut has_marks) = (String::with_capacity(source.len()), source, false);
    while let Some(at) = rest.find("{%") {
        let end = rest[at + 2..].find("%}").map_or(rest.len(), |length| at + 2 + length);
        let block = &rest[at..end];
        let name = block[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out += &rest[..at];
        match name {
            "generation" => out += &block.replace("generation", "filter generation"),
            "endgeneration" => out += &block.replace("endgeneration", "endfilter"),
            _ => out += block,
        }
        has_marks |= name == "generation";
        rest = &rest[end..];
    }
    (out + rest, has_marks)
}

/// A text with marks as one without, and what was between them.
fn split_at_marks(marked: &str) -> Result<Example> {
    let (mut example, mut open) = (Example::default(), None);
    for character in marked.chars() {
        let at = example.text.len();
        match (character, open) {
            (c, None) if c == MARKS[0] => open = Some(at),
            (c, Some(from)) if c == MARKS[1] => {
                example.trained.push(from..at);
                open = None;
            }
            (c, _) if MARKS.contains(&c) => anyhow::bail!(
                "the text has the character {c:?}, which is no text, or `generation` blocks lie in \
                 one another"
            ),
            (c, _) => example.text.push(c),
        }
    }
    ensure!(open.is_none(), "a `generation` block of the chat template does not end");
    Ok(example)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT_ML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nHelp.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    fn messages(turns: &[(&str, &str)]) -> Vec<Value> {
        turns.iter().map(|(role, content)| json!({ "role": role, "content": content })).collect()
    }

    fn trained(example: &Example) -> Vec<&str> {
        example.trained.iter().map(|range| &example.text[range.clone()]).collect()
    }

    #[test]
    fn answers_are_found_by_prefixes() {
        let template = ChatTemplate::new(CHAT_ML, "", "<|im_end|>").unwrap();
        let turns =
            messages(&[("user", "Hi"), ("assistant", "Yes?"), ("user", "Nö"), ("assistant", "Oh")]);
        let example = template.conversation(&turns, &Value::Null).unwrap();
        assert_eq!(
            example.text,
            "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
             <|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nNö<|im_end|>\n\
             <|im_start|>assistant\nOh<|im_end|>\n"
        );
        assert_eq!(trained(&example), ["Yes?<|im_end|>\n", "Oh<|im_end|>\n"]);
        // Only the last turn of a conversation is its completion.
        let example = template.completion(&turns[..3], &turns[3..]).unwrap();
        assert_eq!(trained(&example), ["Oh<|im_end|>\n"]);
    }

    #[test]
    fn marks_and_the_default_template() {
        let template = ChatTemplate::new(DEFAULT, "", "</s>").unwrap();
        let turns = messages(&[("system", "S"), ("user", "U"), ("assistant", "A")]);
        let example = template.conversation(&turns, &Value::Null).unwrap();
        assert_eq!(example.text, "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n");
        assert_eq!(trained(&example), ["A</s>\n"]);
        assert_eq!(template.completion(&turns[..2], &turns[2..]).unwrap(), example);
        // White space around the blocks goes as around any other block.
        let spaced = "{%- for m in messages %}\n  {%- generation -%}\n  {{ m.content }}\n  {% endgeneration %}\n{%- endfor %}";
        let template = ChatTemplate::new(spaced, "", "").unwrap();
        let example = template.conversation(&turns, &Value::Null).unwrap();
        assert_eq!(
            (example.text.as_str(), trained(&example)),
            ("S\nU\nA\n", vec!["S\n", "U\n", "A\n"])
        );
    }

    #[test]
    fn what_templates_of_transformers_use_is_there() {
        let source = "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}\n    {% for m in messages %}\n{{ m['content'].strip().split('|')[-1] | trim }}{% if loop.last %}{% break %}{% endif %}\n    {% endfor %}\n{{ tools | tojson }}{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}";
        let template = ChatTemplate::new(source, "<s>", "").unwrap();
        let tools = json!([{ "b": 1, "a": "ü" }]);
        let text = template.render(&messages(&[("user", " a|b ")]), &tools, false).unwrap();
        assert_eq!(text, "<s>b[{\"b\": 1, \"a\": \"ü\"}]2");
        let error = template.conversation(&messages(&[("system", "")]), &tools).unwrap_err();
        assert!(error.to_string().contains("no system"), "{error:#}");
        for wrong in ["{% if %}", "{%}", "{%", "a{% set x"] {
            assert!(ChatTemplate::new(wrong, "", "").is_err(), "{wrong}");
        }
    }

    /// A template may come from anyone: one that loops without end is not waited for.
    #[test]
    fn a_template_that_does_not_end_is_refused() {
        let source = "{% for a in range(100000) %}{% for b in range(100000) %}{% set c = a * b %}\
                      {% endfor %}{% endfor %}{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        let error = template.conversation(&messages(&[("user", "a")]), &Value::Null).unwrap_err();
        assert!(error.to_string().contains("it loops"), "{error:#}");
    }

    #[test]
    fn a_template_that_rewrites_what_came_before_is_refused() {
        let source = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        let error =
            template.conversation(&messages(&[("user", "a"), ("assistant", "b")]), &Value::Null);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("message 2") && error.contains("{% generation %}"), "{error}");
        let marked = messages(&[("assistant", "a\u{fdd0}")]);
        assert!(
            ChatTemplate::new(DEFAULT, "", "")
                .unwrap()
                .conversation(&marked, &Value::Null)
                .is_err()
        );
    }
}
