//! `--set key.path=value`: settings given on the command line, laid over a spec.

use super::key_path::{KeyPath, Segment};
use super::problem::Problem;
use super::schema::choices_at;
use serde_yaml::{Mapping, Value};

/// One `--set key.path=value`.
#[derive(Clone, Debug)]
pub(crate) struct Override {
    /// As written, without `--set`.
    pub written: String,
    pub path: KeyPath,
    pub value: Value,
}

impl Override {
    /// Reads `key.path=value`, where the value is any YAML.
    ///
    /// # Errors
    /// There is no `=`, a key is empty, or the value is not YAML. The message says what to write.
    pub fn parse(written: &str) -> Result<Self, String> {
        let example = "write `--set key.path=value`, for example `--set train.max_steps=1000`";
        let (path, value) = written.split_once('=').ok_or_else(|| format!("no `=`; {example}"))?;
        let path = path.trim();
        if path.split('.').any(|key| key.trim() != key || key.is_empty()) {
            return Err(format!("`{path}` is not a path of keys joined by dots; {example}"));
        }
        let value = serde_yaml::from_str(value)
            .map_err(|error| format!("`{value}` is not YAML: {error}; {example}"))?;
        Ok(Override { written: written.to_owned(), path: KeyPath::of_keys(path), value })
    }

    /// Puts the value into `spec`, creating the mappings on the way. Where one of several choices
    /// is to be made (`rank`, `model.weights`, ...), a path through another choice than the present
    /// one replaces it.
    ///
    /// # Errors
    /// The path goes through something that holds no keys.
    pub fn apply(&self, spec: &mut Value, schema: &serde_json::Value) -> Result<(), Problem> {
        let mut here = KeyPath::default();
        let mut node = spec;
        for segment in &self.path.0 {
            let Segment::Key(key) = segment else {
                unreachable!("paths of overrides consist of keys")
            };
            node = entry(node, &here, key, schema)?;
            here = here.with_key(key);
        }
        *node = self.value.clone();
        Ok(())
    }
}

/// The value under `key`, which is created if need be.
fn entry<'a>(
    node: &'a mut Value,
    here: &KeyPath,
    key: &str,
    schema: &serde_json::Value,
) -> Result<&'a mut Value, Problem> {
    let is_choice = choices_at(schema, here).iter().any(|choice| choice == key);
    let replaces_choice =
        is_choice && !node.as_mapping().is_some_and(|mapping| mapping.contains_key(key));
    if node.is_null() || replaces_choice {
        *node = Value::Mapping(Mapping::new());
    }
    let Value::Mapping(mapping) = node else {
        let message = format!(
            "`{key}` cannot be set under `{here}`, which is not a mapping; set `{here}` as a whole"
        );
        return Err(Problem {
            path: here.with_key(key),
            points_at: super::problem::PointsAt::Value,
            message,
        });
    };
    Ok(mapping.entry(Value::String(key.to_owned())).or_insert(Value::Null))
}
