//! A spec's text with the settings laid over it: reads it, and says where in it something is wrong.

use super::decode::decode;
use super::findings::problems;
use super::init_spec::InitSpec;
use super::key_path::KeyPath;
use super::locate::{duplicate_key, locate};
use super::overrides::Override;
use super::plan::Plan;
use super::problem::{PointsAt, Problem};
use super::run_spec::RunSpec;
use super::schema::schema;
use crate::error::Failure;
use serde_yaml::{Mapping, Value};
use std::path::Path;

/// The keys of `model` that say how large it is.
const SHAPE: [&str; 4] = ["n_layer", "n_head", "n_embd", "block_size"];

/// What a model to start from says of itself, in the keys of a spec.
pub struct ImportedShape {
    /// The keys of `model`, its weights' form apart.
    pub model: serde_json::Map<String, serde_json::Value>,
    /// The file of its tokenizer, if it has one.
    pub tokenizer: Option<String>,
}

/// A spec's text, its name in messages, and the settings given on the command line.
pub(crate) struct Document {
    name: String,
    text: String,
    overrides: Vec<Override>,
    value: Value,
}

/// Reads a value from the YAML of a document that is no run spec; `problems` gives the key path and
/// what is wrong with the value there.
///
/// # Errors
/// `name:line:column: key: what is wrong; the remedy`: no YAML, a key twice, a key or value that
/// does not fit, and all problems at once.
pub(crate) fn decode_document<T: serde::de::DeserializeOwned>(
    text: &str,
    name: &str,
    problems: &dyn Fn(&T) -> Vec<(String, String)>,
) -> anyhow::Result<T> {
    let document = Document::parse(text, name, &[])?;
    let decoded: T = decode(&document.value).map_err(|problem| document.refusal(&[problem]))?;
    let problems: Vec<Problem> =
        problems(&decoded).into_iter().map(|(path, message)| Problem::at(&path, message)).collect();
    if problems.is_empty() { Ok(decoded) } else { Err(document.refusal(&problems)) }
}

impl Document {
    /// Reads a file, or standard input as `-`.
    ///
    /// # Errors
    /// The file cannot be read, or as for [`Document::parse`].
    pub fn read(path: &Path, overrides: &[String]) -> anyhow::Result<Self> {
        let is_input = path == Path::new("-");
        let name = if is_input { "standard input".into() } else { path.display().to_string() };
        let text = if is_input {
            std::io::read_to_string(std::io::stdin())
        } else {
            std::fs::read_to_string(path)
        };
        let text = text.map_err(|error| {
            usage(format!("{name}: cannot read the spec: {error}; give the path of a YAML file such as configs/gpt-small.yaml"))
        })?;
        Document::parse(&text, &name, overrides)
    }

    /// Parses YAML and lays the settings over it, later ones over earlier ones.
    ///
    /// # Errors
    /// The text is not YAML, a mapping holds a key twice, or a setting is malformed.
    pub fn parse(text: &str, name: &str, overrides: &[String]) -> anyhow::Result<Self> {
        if let Some((path, place)) = duplicate_key(text) {
            let message = format!("{path}: this key is here twice; remove one of them");
            return Err(usage(format!("{name}:{}:{}: {message}", place.line, place.column)));
        }
        let mut value: Value =
            serde_yaml::from_str(text).map_err(|error| usage(not_yaml(name, &error)))?;
        let schema = schema();
        let mut parsed = Vec::with_capacity(overrides.len());
        for written in overrides {
            let setting = Override::parse(written)
                .map_err(|message| usage(format!("--set {written}: {message}")))?;
            setting
                .apply(&mut value, &schema)
                .map_err(|problem| usage(format!("--set {written}: {problem}")))?;
            parsed.push(setting);
        }
        Ok(Document { name: name.to_owned(), text: text.to_owned(), overrides: parsed, value })
    }

    /// Fills in what `model` and `data.tokenizer` leave out, from the model that `init` names.
    ///
    /// # Errors
    /// As `shape_of`, which reads that model.
    pub fn complete(
        &mut self,
        shape_of: &dyn Fn(&InitSpec) -> anyhow::Result<ImportedShape>,
    ) -> anyhow::Result<()> {
        let Some(init) = self.value.get("init").and_then(|init| decode::<InitSpec>(init).ok())
        else {
            return Ok(());
        };
        let given = |block: &str, key: &str| {
            self.value.get(block).is_some_and(|block| block.get(key).is_some())
        };
        let shaped = SHAPE.iter().all(|key| given("model", key));
        if shaped && given("data", "tokenizer") {
            return Ok(());
        }
        let ImportedShape { model, tokenizer } = shape_of(&init)?;
        let mut fill = |block: &str, key: &str, value: Value| {
            let Some(spec) = self.value.as_mapping_mut() else { return };
            let block = spec.entry(block.into()).or_insert_with(|| Value::Mapping(Mapping::new()));
            if let Some(block) = block.as_mapping_mut() {
                block.entry(key.into()).or_insert(value);
            }
        };
        if !shaped {
            for (key, value) in model {
                fill("model", &key, serde_yaml::to_value(value)?);
            }
            fill("model", "weights", "dense".into());
        }
        if let Some(path) = tokenizer {
            let file = Mapping::from_iter([("file".into(), path.into())]);
            fill("data", "tokenizer", Value::Mapping(file));
        }
        Ok(())
    }

    /// The spec as written, with defaults filled in.
    ///
    /// # Errors
    /// An unknown or missing key or choice, or a value of the wrong type.
    pub fn spec(&self) -> anyhow::Result<RunSpec> {
        decode(&self.value).map_err(|problem| self.refusal(&[problem]))
    }

    /// The spec and the plan made from it.
    ///
    /// # Errors
    /// As for [`Document::spec`], and for values that do not fit together; all of those at once,
    /// one per line.
    pub fn plan(&self) -> anyhow::Result<(RunSpec, Plan)> {
        let spec = self.spec()?;
        let plan = Plan::derive(&spec);
        let problems = problems(&spec, &plan);
        if problems.is_empty() { Ok((spec, plan)) } else { Err(self.refusal(&problems)) }
    }

    fn refusal(&self, problems: &[Problem]) -> anyhow::Error {
        let lines: Vec<String> =
            problems.iter().map(|problem| format!("{}: {problem}", self.place(problem))).collect();
        usage(lines.join("\n"))
    }

    /// `file:line:column`, or the setting that is to blame, or the file alone for a default that
    /// was never written.
    fn place(&self, problem: &Problem) -> String {
        if problem.path.is_root() {
            return format!("{}:1:1", self.name);
        }
        let in_text = |path: &KeyPath, points_at| {
            locate(&self.text, path, points_at)
                .map(|place| format!("{}:{}:{}", self.name, place.line, place.column))
        };
        let set = |to_blame: &dyn Fn(&Override) -> bool| {
            self.overrides
                .iter()
                .rev()
                .find(|setting| to_blame(setting))
                .map(|setting| format!("--set {}", setting.written))
        };
        let ancestors = || {
            std::iter::successors(problem.path.parent(), KeyPath::parent)
                .filter(|path| !path.is_root())
        };
        set(&|setting| setting.path.holds(&problem.path))
            .or_else(|| in_text(&problem.path, problem.points_at))
            .or_else(|| set(&|setting| problem.path.holds(&setting.path)))
            .or_else(|| ancestors().find_map(|path| in_text(&path, PointsAt::Key)))
            .unwrap_or_else(|| format!("{} (by default)", self.name))
    }
}

fn not_yaml(name: &str, error: &serde_yaml::Error) -> String {
    let place = error
        .location()
        .map(|location| format!(":{}:{}", location.line(), location.column()))
        .unwrap_or_default();
    format!(
        "{name}{place}: not YAML: {error}; look for a wrong indentation or an unclosed bracket or \
         quote near this place"
    )
}

/// An error of the user's making: exit code 2.
pub(crate) fn usage(message: String) -> anyhow::Error {
    anyhow::Error::new(Failure::Usage(message))
}
