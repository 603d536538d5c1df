//! Arguments from words: `name=value`, typed by the schema, or one JSON object.

use serde_json::{Map, Value};

use crate::contract::{Contract, Kind};

/// Reads a command's arguments. An error says which word is wrong and what would be right.
pub(crate) fn read(
    contract: &Contract,
    command: &str,
    words: &[String],
) -> Result<Map<String, Value>, String> {
    let mut arguments = Map::new();
    for word in words {
        if word.trim_start().starts_with('{') {
            match serde_json::from_str(word) {
                Ok(Value::Object(members)) => arguments.extend(members),
                Ok(_) => return Err(format!("'{word}' is no JSON object")),
                Err(error) => return Err(format!("'{word}' is no JSON object: {error}")),
            }
            continue;
        }
        let Some((path, text)) = word.split_once('=') else {
            return Err(format!("'{word}' is neither NAME=VALUE nor a JSON object"));
        };
        let type_name = contract.argument_type(command);
        put(contract, &mut arguments, type_name, path, path, text)?;
    }
    Ok(arguments)
}

/// Puts the value of `text` where `path` says, in an object of this type.
fn put(
    contract: &Contract,
    object: &mut Map<String, Value>,
    type_name: Option<&str>,
    path: &str,
    whole: &str,
    text: &str,
) -> Result<(), String> {
    let members = type_name.map(|name| contract.members(name)).unwrap_or_default();
    let type_of = |name: &str| {
        members.iter().find(|member| member.name == name).map(|member| member.type_name.as_str())
    };
    // Names may contain points themselves; one that the schema has is taken whole.
    if let (None, Some((head, rest))) = (type_of(path), path.split_once('.')) {
        let inner = object.entry(head).or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(inner) = inner else {
            return Err(format!("'{whole}': '{head}' has a value already"));
        };
        return put(contract, inner, type_of(head), rest, whole, text);
    }
    let kind = type_of(path).map_or(Kind::Any, |name| contract.kind(name));
    let is_list = matches!(kind, Kind::Array(_));
    let value = typed(contract, kind, whole, text)?;
    match (object.get_mut(path), value) {
        (Some(Value::Array(items)), Value::Array(more)) if is_list => items.extend(more),
        (Some(_), _) => return Err(format!("'{whole}' is given twice")),
        (None, value) => {
            object.insert(path.to_owned(), value);
        }
    }
    Ok(())
}

fn typed(contract: &Contract, kind: Kind<'_>, name: &str, text: &str) -> Result<Value, String> {
    let wrong = |expected: &str| Err(format!("'{name}={text}': expected {expected}"));
    match kind {
        Kind::String => Ok(text.into()),
        Kind::Boolean => match text {
            "on" | "true" | "yes" => Ok(true.into()),
            "off" | "false" | "no" => Ok(false.into()),
            _ => wrong("on or off"),
        },
        Kind::Integer => match integer(text) {
            Some(value) => Ok(value),
            None => wrong("an integer, perhaps with a suffix k, M, G or T"),
        },
        Kind::Number => match text.parse::<f64>().ok().filter(|number| number.is_finite()) {
            Some(number) => Ok(number.into()),
            None => wrong("a number"),
        },
        Kind::Enum(values) if values.contains(&text) => Ok(text.into()),
        Kind::Enum(values) => wrong(&format!("one of {}", values.join(", "))),
        Kind::Array(element) => match serde_json::from_str(text) {
            Ok(list @ Value::Array(_)) => Ok(list),
            _ => typed(contract, contract.kind(element), name, text).map(|one| vec![one].into()),
        },
        Kind::Object => match serde_json::from_str(text) {
            Ok(object @ Value::Object(_)) => Ok(object),
            _ => wrong("a JSON object, or NAME.MEMBER=VALUE"),
        },
        Kind::Any => Ok(serde_json::from_str(text).unwrap_or_else(|_| text.into())),
    }
}

/// An integer, decimal or `0x` hexadecimal, with a binary suffix if it has one.
fn integer(text: &str) -> Option<Value> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok().map(Value::from);
    }
    let shift = match text.bytes().last()? {
        b'k' | b'K' => 10,
        b'm' | b'M' => 20,
        b'g' | b'G' => 30,
        b't' | b'T' => 40,
        _ => {
            return text
                .parse::<i64>()
                .map(Value::from)
                .or(text.parse::<u64>().map(Value::from))
                .ok();
        }
    };
    text[..text.len() - 1].parse::<i64>().ok()?.checked_mul(1 << shift).map(Value::from)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn contract() -> Contract {
        Contract::new(json!([
            {"meta-type": "command", "name": "c", "arg-type": "0", "ret-type": "0"},
            {"meta-type": "object", "name": "0", "members": [
                {"name": "s", "type": "str"}, {"name": "i", "type": "int"},
                {"name": "b", "type": "bool", "default": null}, {"name": "e", "type": "1"},
                {"name": "l", "type": "[str]"}, {"name": "o", "type": "2"},
                {"name": "x.y", "type": "str"}]},
            {"meta-type": "object", "name": "2", "tag": "kind", "members": [{"name": "kind", "type": "1"}],
             "variants": [{"case": "one", "type": "3"}]},
            {"meta-type": "object", "name": "3", "members": [{"name": "n", "type": "int"}]},
            {"meta-type": "enum", "name": "1", "values": ["one", "two"]},
            {"meta-type": "array", "name": "[str]", "element-type": "str"},
            {"meta-type": "builtin", "name": "str", "json-type": "string"},
            {"meta-type": "builtin", "name": "int", "json-type": "int"},
            {"meta-type": "builtin", "name": "bool", "json-type": "boolean"}
        ]))
    }

    fn of(words: &[&str]) -> Result<Value, String> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        read(&contract(), "c", &words).map(Value::Object)
    }

    #[test]
    fn the_schema_types_the_words() {
        assert_eq!(
            of(&["s=12", "i=-3", "b=off", "e=two", "x.y=z", "l=a", "l=b"]).unwrap(),
            json!({"s": "12", "i": -3, "b": false, "e": "two", "x.y": "z", "l": ["a", "b"]})
        );
        assert_eq!(of(&["i=0x10"]).unwrap(), json!({"i": 16}));
        assert_eq!(of(&["i=2G"]).unwrap(), json!({"i": 2_147_483_648_u64}));
        assert_eq!(of(&["o.kind=one", "o.n=5"]).unwrap(), json!({"o": {"kind": "one", "n": 5}}));
        assert_eq!(of(&["o={\"kind\":\"one\"}"]).unwrap(), json!({"o": {"kind": "one"}}));
        assert_eq!(of(&["{\"s\": \"x\"}", "i=1"]).unwrap(), json!({"s": "x", "i": 1}));
        // What the schema doesn't know is left to the server.
        assert_eq!(of(&["new=[1]", "word=x"]).unwrap(), json!({"new": [1], "word": "x"}));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (word, part) in [
            ("i=x", "'i=x': expected an integer"),
            ("i=9999999T", "expected an integer"),
            ("b=2", "expected on or off"),
            ("e=three", "one of one, two"),
            ("nonsense", "neither NAME=VALUE"),
            ("{nonsense", "no JSON object"),
            ("o=1", "NAME.MEMBER=VALUE"),
        ] {
            let text = of(&[word]).unwrap_err();
            assert!(text.contains(part), "{text}");
        }
        assert!(of(&["s=1", "s=2"]).unwrap_err().contains("twice"));
    }
}
