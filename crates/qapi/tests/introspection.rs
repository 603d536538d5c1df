//! Introspection of each form of the language, member by member.

use serde_json::{Value, json};

fn introspect(text: &str) -> Value {
    let outcome = qapi::check_text("t.json", text);
    assert!(outcome.is_ok(), "{}", outcome.render(false));
    qapi::introspect::introspect(&outcome.schema, &|_| true)
}

#[test]
fn types_are_described_in_the_order_of_their_first_use() {
    let schema = "
        { 'command': 'get', 'returns': [ 'Thing' ], 'allow-oob': true, 'features': [ 'unstable' ] }
        { 'event': 'GONE', 'data': { 'id': 'uint8', '*why': 'Why' } }
        { 'struct': 'Base', 'data': { 'name': 'str' } }
        { 'struct': 'Thing', 'base': 'Base',
          'data': { 'sizes': [ 'size' ], 'next': { 'type': 'any', 'features': [ 'deprecated' ] } },
          'features': [ 'fast' ] }
        { 'enum': 'Why', 'data': [ 'a', { 'name': 'b', 'features': [ 'rare' ] } ] }
        { 'struct': 'Unused', 'data': {} }
    ";
    assert_eq!(
        introspect(schema),
        json!([
            {"name": "get", "meta-type": "command", "arg-type": "0", "ret-type": "[1]",
             "allow-oob": true, "features": ["unstable"]},
            {"name": "GONE", "meta-type": "event", "arg-type": "2"},
            {"name": "0", "meta-type": "object", "members": []},
            {"name": "[1]", "meta-type": "array", "element-type": "1"},
            {"name": "1", "meta-type": "object", "members": [
                {"name": "name", "type": "str"},
                {"name": "sizes", "type": "[int]"},
                {"name": "next", "type": "any", "features": ["deprecated"]}
            ], "features": ["fast"]},
            {"name": "2", "meta-type": "object", "members": [
                {"name": "id", "type": "int"},
                {"name": "why", "type": "3", "default": null}
            ]},
            {"name": "str", "meta-type": "builtin", "json-type": "string"},
            {"name": "[int]", "meta-type": "array", "element-type": "int"},
            {"name": "int", "meta-type": "builtin", "json-type": "int"},
            {"name": "any", "meta-type": "builtin", "json-type": "value"},
            {"name": "3", "meta-type": "enum", "members": [
                {"name": "a"}, {"name": "b", "features": ["rare"]}
            ], "values": ["a", "b"]},
        ])
    );
}

#[test]
fn unions_list_all_values_and_alternates_their_types() {
    let schema = "
        { 'command': 'put', 'boxed': true, 'data': 'Uni' }
        { 'command': 'pick', 'data': { 'alt': 'Alt' } }
        { 'enum': 'Tag', 'data': [ 'one', 'two', 'three' ] }
        { 'union': 'Uni', 'base': { 'tag': 'Tag' }, 'discriminator': 'tag',
          'data': { 'two': 'Alone' } }
        { 'struct': 'Alone', 'data': {} }
        { 'alternate': 'Alt', 'data': { 's': 'str', 'n': 'null', 'o': 'Alone' } }
    ";
    assert_eq!(
        introspect(schema),
        json!([
            {"name": "put", "meta-type": "command", "arg-type": "0", "ret-type": "1"},
            {"name": "pick", "meta-type": "command", "arg-type": "2", "ret-type": "1"},
            {"name": "0", "meta-type": "object", "members": [{"name": "tag", "type": "3"}],
             "tag": "tag", "variants": [
                {"case": "two", "type": "4"},
                {"case": "one", "type": "1"},
                {"case": "three", "type": "1"}
            ]},
            {"name": "1", "meta-type": "object", "members": []},
            {"name": "2", "meta-type": "object", "members": [{"name": "alt", "type": "5"}]},
            {"name": "3", "meta-type": "enum",
             "members": [{"name": "one"}, {"name": "two"}, {"name": "three"}],
             "values": ["one", "two", "three"]},
            {"name": "4", "meta-type": "object", "members": []},
            {"name": "5", "meta-type": "alternate",
             "members": [{"type": "str"}, {"type": "null"}, {"type": "4"}]},
            {"name": "str", "meta-type": "builtin", "json-type": "string"},
            {"name": "null", "meta-type": "builtin", "json-type": "null"},
        ])
    );
}

#[test]
fn the_seed_dialect_is_introspected_alike() {
    let schema = "
        { 'command': 'get', 'returns': 'Info' }
        { 'type': 'Info', 'data': { 'inner': { '*x': 'int' } } }
    ";
    assert_eq!(
        introspect(schema),
        json!([
            {"name": "get", "meta-type": "command", "arg-type": "0", "ret-type": "1"},
            {"name": "0", "meta-type": "object", "members": []},
            {"name": "1", "meta-type": "object", "members": [{"name": "inner", "type": "2"}]},
            {"name": "2", "meta-type": "object",
             "members": [{"name": "x", "type": "int", "default": null}]},
            {"name": "int", "meta-type": "builtin", "json-type": "int"},
        ])
    );
}
