//! The schema and the shipped specs.

use super::*;

#[test]
fn the_committed_schema_is_current() {
    let committed: Value =
        serde_json::from_str(&std::fs::read_to_string("configs/lrpt.schema.json").unwrap())
            .unwrap();
    assert!(
        committed == spec::schema(),
        "configs/lrpt.schema.json is out of date: lrpt spec schema > configs/lrpt.schema.json"
    );
}

#[test]
fn every_shipped_config_is_good() {
    let schema = spec::schema();
    let configs = shipped_configs();
    assert!(configs.len() >= 4);
    for path in configs {
        let text = std::fs::read_to_string(&path).unwrap();
        let schema_path = if path.parent() == Some(Path::new("configs")) {
            "lrpt.schema.json"
        } else {
            "../lrpt.schema.json"
        };
        assert!(
            text.starts_with(&format!("# yaml-language-server: $schema={schema_path}\n")),
            "{path:?}"
        );
        let (_, plan) = spec::load_plan(&path, &[]).unwrap();
        assert_eq!(
            Some(plan.name.as_str()),
            path.file_stem().and_then(|stem| stem.to_str()),
            "a config is called like its run"
        );
        let value: Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(violation(&schema, &schema, &value), None, "{path:?}");
    }
}

#[test]
fn the_schema_refuses_what_the_parser_refuses() {
    let schema = spec::schema();
    let check = |text: &str| violation(&schema, &schema, &serde_yaml::from_str(text).unwrap());
    assert_eq!(check(GOOD), None);
    let replaced = |from: &str, to: &str| check(&GOOD.replacen(from, to, 1));
    for (from, to) in [
        ("n_layer", "n_layr"),
        ("  n_embd: 64\n", ""),
        ("n_layer: 2", "n_layer: two"),
        ("n_layer: 2", "n_layer: -2"),
        ("1k", "soon"),
        ("low_rank: {rank", "lowrank: {rank"),
        ("rank: 16", "rank: 16, targets: {q: full}"),
        ("rank: 16", "rank: 16, targets: {w: 4}"),
        ("name: example", "name: example\ndevice: gpu"),
    ] {
        assert!(replaced(from, to).is_some(), "{from} -> {to}");
    }
    for (from, to) in [
        ("{low_rank: {rank: 16}}", "dense"),
        ("rank: 16", "rank: 16, targets: {q: 4, down: dense}"),
        ("1k", "60_000"),
        ("name: example", "name: example\ndevice: cuda:1"),
        ("name: example", "name: example\nschedule: constant"),
        ("train:", "rank: {tolerance: {tau: 0.1, freeze: 1k}}\ntrain:"),
    ] {
        assert_eq!(replaced(from, to), None, "{from} -> {to}");
    }
}

/// The first place where a value breaks a schema, for the part of JSON Schema that ours uses.
fn violation(root: &Value, schema: &Value, value: &Value) -> Option<String> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = root
            .pointer(reference.trim_start_matches('#'))
            .unwrap_or_else(|| panic!("{reference} leads nowhere"));
        return violation(root, target, value);
    }
    let Some(rules) = schema.as_object() else {
        return (schema == &Value::Bool(false)).then(|| format!("{value} is not allowed"));
    };
    rules.iter().find_map(|(rule, wanted)| match rule.as_str() {
        "type" => {
            let types: Vec<&str> = wanted.as_str().map_or_else(
                || wanted.as_array().unwrap().iter().filter_map(Value::as_str).collect(),
                |name| vec![name],
            );
            let fits = types.iter().any(|name| match *name {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "null" => value.is_null(),
                "number" => value.is_number(),
                "integer" => value.is_u64() || value.is_i64(),
                other => panic!("type {other} is unknown to this test"),
            });
            (!fits).then(|| format!("{value} is not {types:?}"))
        }
        "const" => (value != wanted).then(|| format!("{value} is not {wanted}")),
        "enum" => (!wanted.as_array().unwrap().contains(value))
            .then(|| format!("{value} is none of {wanted}")),
        "minimum" => value
            .as_f64()
            .filter(|number| *number < wanted.as_f64().unwrap())
            .map(|number| format!("{number} < {wanted}")),
        "pattern" => value
            .as_str()
            .filter(|text| !matches_known_pattern(wanted.as_str().unwrap(), text))
            .map(|text| format!("{text} !~ {wanted}")),
        "required" => {
            let missing =
                |key: &&Value| value.is_object() && value.get(key.as_str().unwrap()).is_none();
            wanted.as_array().unwrap().iter().find(missing).map(|key| format!("{key} is missing"))
        }
        "properties" => wanted
            .as_object()
            .unwrap()
            .iter()
            .find_map(|(key, property)| violation(root, property, value.get(key)?)),
        "additionalProperties" => {
            let known = |key: &str| {
                schema.get("properties").is_some_and(|properties| properties.get(key).is_some())
            };
            let mut others = value.as_object()?.iter().filter(|(key, _)| !known(key));
            others.find_map(|(key, entry)| {
                violation(root, wanted, entry).map(|reason| format!("{key}: {reason}"))
            })
        }
        "propertyNames" => value
            .as_object()?
            .keys()
            .find_map(|key| violation(root, wanted, &Value::String(key.clone()))),
        "items" => value.as_array()?.iter().find_map(|item| violation(root, wanted, item)),
        "allOf" => wanted.as_array().unwrap().iter().find_map(|part| violation(root, part, value)),
        "anyOf" | "oneOf" => {
            let fitting = wanted
                .as_array()
                .unwrap()
                .iter()
                .filter(|part| violation(root, part, value).is_none())
                .count();
            let fits = if rule == "anyOf" { fitting >= 1 } else { fitting == 1 };
            (!fits).then(|| format!("{value} fits {fitting} alternatives of {rule}"))
        }
        "$schema" | "title" | "description" | "default" | "definitions" | "format" | "examples" => {
            None
        }
        other => panic!("the schema uses `{other}`, which this test does not know"),
    })
}

fn matches_known_pattern(pattern: &str, text: &str) -> bool {
    if pattern.contains("auto|cpu") {
        text.parse::<spec::DeviceSpec>().is_ok()
    } else {
        assert!(pattern.starts_with("^[0-9]"), "a new pattern: {pattern}");
        text.parse::<spec::Count>().is_ok()
    }
}
