//! JSON Schema of a spec, for editors, and questions about its shape.

use super::key_path::{KeyPath, Segment};
use super::run_spec::RunSpec;
use schemars::generate::SchemaSettings;
use serde_json::Value;

/// JSON Schema (draft 7) of [`RunSpec`]: `configs/lrpt.schema.json` holds it, so that editors
/// complete and explain keys.
pub fn schema() -> Value {
    let mut schema =
        SchemaSettings::draft07().into_generator().into_root_schema_for::<RunSpec>().to_value();
    let written_out = schema.clone();
    allow_bare_words(&mut schema, &written_out);
    schema
}

/// A choice whose settings all have defaults may be written as one word: `schedule: constant`.
fn allow_bare_words(node: &mut Value, root: &Value) {
    match node {
        Value::Object(entries) => {
            entries.values_mut().for_each(|child| allow_bare_words(child, root))
        }
        Value::Array(items) => items.iter_mut().for_each(|item| allow_bare_words(item, root)),
        _ => {}
    }
    let Some(alternatives) = node.get_mut("oneOf").and_then(Value::as_array_mut) else { return };
    let bare = |alternative: &Value| {
        let properties = alternative.get("properties")?.as_object()?;
        let (name, settings) = properties.iter().next().filter(|_| properties.len() == 1)?;
        let settings = resolved(root, settings);
        let is_block = settings.get("type")? == "object";
        (is_block && settings.get("required").is_none()).then(|| name.clone())
    };
    let words: Vec<String> = alternatives.iter().filter_map(bare).collect();
    if !words.is_empty() {
        alternatives.push(serde_json::json!({
            "description": "With the default of every setting.", "type": "string", "enum": words,
        }));
    }
}

/// The choices at a path where one is to be made, as `dense`, `low_rank`, ... at
/// `model.weights`; empty elsewhere.
pub(crate) fn choices_at(schema: &Value, path: &KeyPath) -> Vec<String> {
    let Some(node) = node_at(schema, path) else { return Vec::new() };
    let Some(alternatives) = node.get("oneOf").and_then(Value::as_array) else { return Vec::new() };
    let mut names: Vec<String> = Vec::new();
    for name in alternatives.iter().flat_map(names_of_choice) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn names_of_choice(alternative: &Value) -> Vec<String> {
    let word = alternative.get("const").into_iter();
    let words = alternative.get("enum").and_then(Value::as_array).into_iter().flatten();
    let keys = alternative
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|properties| properties.keys());
    word.chain(words).filter_map(Value::as_str).map(str::to_owned).chain(keys.cloned()).collect()
}

fn node_at<'a>(schema: &'a Value, path: &KeyPath) -> Option<&'a Value> {
    path.0.iter().try_fold(schema, |node, segment| match segment {
        Segment::Key(key) => child(schema, node, key),
        Segment::Index(_) => node.get("items").map(|items| resolved(schema, items)),
    })
}

/// The schema of the value under `key`: a property, or the settings of a choice.
fn child<'a>(schema: &'a Value, node: &'a Value, key: &str) -> Option<&'a Value> {
    let of_choice = || {
        node.get("oneOf")?
            .as_array()?
            .iter()
            .find_map(|alternative| alternative.get("properties")?.get(key))
    };
    let found =
        node.get("properties").and_then(|properties| properties.get(key)).or_else(of_choice)?;
    Some(resolved(schema, found))
}

/// The schema behind a reference, also where the reference is wrapped to carry a description or to
/// allow null.
fn resolved<'a>(schema: &'a Value, node: &'a Value) -> &'a Value {
    let wrapped = ["allOf", "anyOf"]
        .iter()
        .find_map(|key| node.get(key)?.as_array()?.iter().find(|part| part.get("$ref").is_some()));
    let reference = wrapped
        .unwrap_or(node)
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|text| text.strip_prefix('#'));
    reference.and_then(|pointer| schema.pointer(pointer)).unwrap_or(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_known_where_there_are_any() {
        let schema = schema();
        let choices = |path: &str| choices_at(&schema, &KeyPath::of_keys(path));
        assert_eq!(choices("model.weights"), ["dense", "low_rank", "factored", "adapter"]);
        assert_eq!(choices("rank"), ["fixed", "tolerance", "budget"]);
        assert_eq!(choices("optimizer.low_rank"), ["dlra", "adamw", "heavy_ball", "loro"]);
        assert_eq!(choices("optimizer.low_rank.dlra.retraction"), ["svd", "subspace"]);
        assert_eq!(choices("data.tokenizer"), ["bytes", "chars", "bpe", "file"]);
        assert!(choices("train").is_empty());
        assert!(choices("model.n_layr").is_empty());
    }

    #[test]
    fn every_key_is_described() {
        fn check(node: &Value, at: &str, missing: &mut Vec<String>) {
            if let Some(properties) = node.get("properties").and_then(Value::as_object) {
                for (key, property) in properties {
                    let is_choice = node.get("description").is_some();
                    let described =
                        property.get("description").is_some() || property.get("$ref").is_some();
                    if !described && !is_choice {
                        missing.push(format!("{at}/{key}"));
                    }
                }
            }
            match node {
                Value::Object(entries) => entries
                    .iter()
                    .for_each(|(key, child)| check(child, &format!("{at}/{key}"), missing)),
                Value::Array(items) => items
                    .iter()
                    .enumerate()
                    .for_each(|(index, item)| check(item, &format!("{at}/{index}"), missing)),
                _ => {}
            }
        }
        let mut missing = Vec::new();
        check(&schema(), "", &mut missing);
        assert!(missing.is_empty(), "keys without a description: {missing:?}");
    }
}
