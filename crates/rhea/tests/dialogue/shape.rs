//! The shape of a JSON value: what members it has and of which types, without what is in them.
//!
//! Shapes are JSON themselves, so that a recording is a readable file: a type's name for a scalar,
//! `[shape]` for an array (the merged shape of its elements), an object of shapes for an object. A
//! member that only some elements of an array have gets a `?` behind its name; a place where types
//! differ reads `"int | string"`.

use serde_json::{Map, Value, json};

/// Reduces a value to its shape.
pub(crate) fn of(value: &Value) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(_) => json!("bool"),
        Value::Number(number) if number.is_f64() => json!("number"),
        Value::Number(_) => json!("int"),
        Value::String(_) => json!("string"),
        Value::Array(elements) => {
            json!(
                elements
                    .iter()
                    .map(of)
                    .reduce(|a, b| merge(&a, &b))
                    .into_iter()
                    .collect::<Vec<_>>()
            )
        }
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_by_key(|(name, _)| *name);
            sorted.into_iter().map(|(name, value)| (name.clone(), of(value))).collect()
        }
    }
}

/// The shape that fits both.
fn merge(one: &Value, other: &Value) -> Value {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let mut merged = Map::new();
            let mut names: Vec<&str> =
                one.keys().chain(other.keys()).map(|name| name.trim_end_matches('?')).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                let optional = format!("{name}?");
                let find = |object: &Map<String, Value>| {
                    object.get(name).or_else(|| object.get(&optional)).cloned()
                };
                let required = one.contains_key(name) && other.contains_key(name);
                let key = if required { name.to_owned() } else { optional.clone() };
                let value = match (find(one), find(other)) {
                    (Some(a), Some(b)) => merge(&a, &b),
                    (a, b) => a.or(b).unwrap_or_default(),
                };
                merged.insert(key, value);
            }
            Value::Object(merged)
        }
        (Value::Array(one), Value::Array(other)) => {
            let all = one.iter().chain(other);
            json!(all.cloned().reduce(|a, b| merge(&a, &b)).into_iter().collect::<Vec<_>>())
        }
        _ if one == other => one.clone(),
        (Value::String(one), Value::String(other)) => {
            let mut types: Vec<&str> = one.split(" | ").chain(other.split(" | ")).collect();
            types.sort_unstable();
            types.dedup();
            json!(types.join(" | "))
        }
        _ => json!("any"),
    }
}

/// One place where two recordings differ.
#[derive(Debug)]
pub(crate) struct Difference {
    /// Members from the outside in, joined by dots; `[]` for the elements of an array.
    pub(crate) path: String,
    /// What the recording of the peer has there, `null` for nothing.
    pub(crate) theirs: Value,
    /// What the program under test has there, `null` for nothing.
    pub(crate) ours: Value,
}

/// Lists where two shapes (or plain values) differ.
pub(crate) fn differences(path: &str, theirs: &Value, ours: &Value, found: &mut Vec<Difference>) {
    match (theirs, ours) {
        (Value::Object(one), Value::Object(other)) => {
            for (name, value) in one {
                let path = format!("{path}.{name}");
                differences(&path, value, other.get(name).unwrap_or(&Value::Null), found);
            }
            for (name, value) in other.iter().filter(|(name, _)| !one.contains_key(*name)) {
                differences(&format!("{path}.{name}"), &Value::Null, value, found);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == 1 && other.len() == 1 => {
            differences(&format!("{path}[]"), &one[0], &other[0], found);
        }
        _ if theirs == ours => {}
        _ => found.push(Difference {
            path: path.to_owned(),
            theirs: theirs.clone(),
            ours: ours.clone(),
        }),
    }
}

#[test]
fn shapes_merge_over_the_elements_of_an_array() {
    let value = json!([{"a": 1, "b": "x"}, {"a": "y", "c": [true]}, {"a": 1.5}]);
    let expected = json!([{"a": "int | number | string", "b?": "string", "c?": ["bool"]}]);
    assert_eq!(of(&value), expected);
    assert_eq!(of(&json!([])), json!([]));
}

#[test]
fn differences_name_their_place() {
    let mut found = Vec::new();
    let theirs = json!({"a": [{"b": "int"}], "gone": "bool"});
    differences("return", &theirs, &json!({"a": [{"b": "string"}], "new": "int"}), &mut found);
    let paths: Vec<&str> = found.iter().map(|difference| difference.path.as_str()).collect();
    assert_eq!(paths, ["return.a[].b", "return.gone", "return.new"]);
}
