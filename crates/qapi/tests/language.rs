//! The rules of the language, each by the smallest schema that keeps or breaks it.
//!
//! `ACCEPTED` and `REJECTED` are tables: a name for messages, a schema, and for the rejected a part
//! of what `file:line:column: error: …` must say. A `Fixture` of types that many cases use comes
//! before each schema, on line 1.

use qapi::check_text;
use qapi::diag::Severity;

/// One line, so that positions in the tables begin at line 2.
const FIXTURE: &str = "{ 'struct': 'Stru', 'data': { 'n': 'int' } } \
    { 'struct': 'Other', 'data': { 's': 'str' } } \
    { 'enum': 'Enu', 'data': [ 'aa', 'bb' ] } \
    { 'struct': 'Tagged', 'data': { 'tag': 'Enu' } } \
    { 'union': 'Uni', 'base': 'Tagged', 'discriminator': 'tag', 'data': { 'aa': 'Stru' } } \
    { 'alternate': 'Alt', 'data': { 'number': 'int', 'object': 'Stru' } } \
    { 'command': 'comm' } { 'event': 'EVE' }\n";

fn errors(schema: &str) -> Vec<String> {
    let outcome = check_text("t.json", &format!("{FIXTURE}{schema}"));
    // Every finding can be drawn, whatever it is about.
    let _ = outcome.render(true);
    outcome
        .diagnostics
        .iter()
        .filter(|d| d.severity == Severity::Error)
        .map(|d| d.render_short(&outcome.schema.sources))
        .collect()
}

#[test]
fn accepted() {
    let mut failures = Vec::new();
    for (name, schema) in ACCEPTED {
        let errors = errors(schema);
        if !errors.is_empty() {
            failures.push(format!("{name}: {errors:#?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn rejected() {
    let mut failures = Vec::new();
    for (name, schema, wanted) in REJECTED {
        let errors = errors(schema);
        if !errors.iter().any(|e| e.contains(wanted)) {
            failures.push(format!("{name}: no {wanted:?} in {errors:#?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A schema with one mistake gets one error: nothing follows from it.
#[test]
fn no_errors_that_only_follow() {
    let mut failures = Vec::new();
    for (name, schema, _) in REJECTED.iter().filter(|(name, ..)| !name.ends_with("-several")) {
        let errors = errors(schema);
        if errors.len() != 1 {
            failures.push(format!("{name}: {errors:#?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn names_in_the_tables_are_distinct() {
    let mut names: Vec<&str> = REJECTED.iter().map(|(name, ..)| *name).collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        assert_ne!(pair[0], pair[1]);
    }
}

#[test]
fn all_errors_of_a_file_are_reported() {
    let schema = "{ 'struct': 'Bad1', 'data': { 'x': 'nope' } }\n\
        { 'enum': 'Bad2' 'data': [] }\n\
        { 'enum': 'Bad3', 'data': [ 'a', 'a' ] }\n\
        ] stray\n\
        { 'comand': 'y' }\n";
    let errors = errors(schema);
    for (line, part) in [
        (2, "unknown type 'nope'"),
        (3, "expected ',' or '}'"),
        (4, "duplicate value 'a'"),
        (5, "expected '{' to begin a definition"),
        (6, "does not say what it defines"),
    ] {
        assert!(
            errors.iter().any(|e| e.starts_with(&format!("t.json:{line}:")) && e.contains(part)),
            "line {line}, {part}: {errors:#?}"
        );
    }
    assert_eq!(errors.len(), 5, "{errors:#?}");
}

/// A definition with a syntax error is known by its name, so that its users are not blamed.
#[test]
fn broken_definitions_do_not_look_undefined() {
    let schema = "{ 'struct': 'Broken', 'data': { 'x': 'int' 'y': ] } }\n\
        { 'struct': 'User', 'base': 'Broken', 'data': { 'b': 'Broken' } }\n";
    let errors = errors(schema);
    assert!(errors.iter().all(|e| e.starts_with("t.json:2:")), "{errors:#?}");
    assert!(!errors.is_empty());
}

const ACCEPTED: &[(&str, &str)] = &[
    ("empty", ""),
    ("comment", "# nothing but a comment"),
    ("comment-in-definition", "{ 'enum': 'Good', # here\n 'data': [ 'x', # and here\n 'y' ] }"),
    ("tabs-and-cr", "{\t'command':\r\n'x'\t}\r\n"),
    ("escape", "{ 'struct': 'Good', 'data': {}, 'if': 'X' }"),
    ("enum-empty", "{ 'enum': 'Good', 'data': [] }"),
    ("enum-digit", "{ 'enum': 'Good', 'data': [ '1', '2x', '10-20' ] }"),
    (
        "enum-objects",
        "{ 'enum': 'Good', 'data': [ { 'name': 'x', 'if': 'COND', 'features': [ 'f' ] }, 'y' ], 'prefix': 'PRE' }",
    ),
    ("struct-empty", "{ 'struct': 'Good', 'data': {} }"),
    ("struct-base", "{ 'struct': 'Good', 'base': 'Stru', 'data': { 'm': 'str' } }"),
    (
        "struct-forward",
        "{ 'struct': 'Good', 'data': { 'l': 'Later' } } { 'struct': 'Later', 'data': {} }",
    ),
    ("struct-arrays", "{ 'struct': 'Good', 'data': { 'a': [ 'int' ], '*b': [ 'Stru' ] } }"),
    (
        "struct-long-form",
        "{ 'struct': 'Good', 'data': { '*a': { 'type': [ 'str' ], 'if': { 'not': 'X' }, 'features': [ 'deprecated' ] } } }",
    ),
    (
        "builtins",
        "{ 'struct': 'Good', 'data': { 'a': 'str', 'b': 'number', 'c': 'int', 'd': 'int8', 'e': 'int16', 'f': 'int32', 'g': 'int64', 'h': 'uint8', 'i': 'uint16', 'j': 'uint32', 'k': 'uint64', 'l': 'size', 'm': 'bool', 'n': 'null', 'o': 'any', 'p': 'QType' } }",
    ),
    ("recursion-optional", "{ 'struct': 'Good', 'data': { '*next': 'Good' } }"),
    ("recursion-array", "{ 'struct': 'Good', 'data': { 'children': [ 'Good' ] } }"),
    (
        "recursion-in-branch",
        "{ 'struct': 'Node', 'data': { 'child': 'Good' } } { 'union': 'Good', 'base': { 'tag': 'Enu' }, 'discriminator': 'tag', 'data': { 'aa': 'Node' } }",
    ),
    (
        "union-base-members",
        "{ 'union': 'Good', 'base': { 'tag': 'Enu', '*x': 'int' }, 'discriminator': 'tag', 'data': { 'bb': 'Other' } }",
    ),
    (
        "union-no-branches",
        "{ 'union': 'Good', 'base': 'Tagged', 'discriminator': 'tag', 'data': {} }",
    ),
    (
        "union-conditional-branch",
        "{ 'union': 'Good', 'base': 'Tagged', 'discriminator': 'tag', 'data': { 'aa': { 'type': 'Stru', 'if': 'X' } } }",
    ),
    (
        "union-in-union",
        "{ 'union': 'Good', 'base': { 'kind': 'Enu' }, 'discriminator': 'kind', 'data': { 'aa': 'Uni' } }",
    ),
    (
        "union-branches-may-share-names",
        "{ 'union': 'Good', 'base': 'Tagged', 'discriminator': 'tag', 'data': { 'aa': 'Stru', 'bb': 'Stru' } }",
    ),
    (
        "alternate-all-forms",
        "{ 'alternate': 'Good', 'data': { 'o': 'Stru', 'n': 'number', 'b': 'bool', 'e': 'Enu', 'z': 'null', 'l': [ 'int' ] } }",
    ),
    (
        "alternate-string",
        "{ 'alternate': 'Good', 'data': { 's': 'str', 'o': 'Uni', 'z': 'null' } }",
    ),
    ("alternate-enum-and-number", "{ 'alternate': 'Good', 'data': { 'e': 'Enu', 'n': 'int' } }"),
    (
        "command-all-flags",
        "{ 'command': 'good', 'data': { 'a': 'int' }, 'returns': [ 'Stru' ], 'gen': false, 'success-response': false, 'allow-oob': true, 'allow-preconfig': true, 'if': 'X', 'features': [ 'deprecated', 'unstable' ] }",
    ),
    ("command-coroutine", "{ 'command': 'good', 'coroutine': true }"),
    ("command-boxed-union", "{ 'command': 'good', 'data': 'Uni', 'boxed': true }"),
    ("command-struct-data", "{ 'command': 'good', 'data': 'Stru', 'returns': 'Uni' }"),
    (
        "command-returns-exception",
        "{ 'pragma': { 'command-returns-exceptions': [ 'good' ] } } { 'command': 'good', 'returns': 'int' }",
    ),
    (
        "command-name-exception",
        "{ 'pragma': { 'command-name-exceptions': [ 'good_one' ] } } { 'command': 'good_one' }",
    ),
    (
        "member-name-exception",
        "{ 'pragma': { 'member-name-exceptions': [ 'Good' ] } } { 'struct': 'Good', 'data': { 'PC': 'int', 'pc': 'int', 'a_b': 'int' } }",
    ),
    (
        "pragma-anywhere",
        "{ 'command': 'good_one' } { 'pragma': { 'command-name-exceptions': [ 'good_one' ] } }",
    ),
    ("pragma-empty", "{ 'pragma': {} }"),
    (
        "event-data",
        "{ 'event': 'GOOD_1', 'data': { 'a': 'int' } } { 'event': 'GOOD_2', 'data': 'Uni', 'boxed': true }",
    ),
    (
        "if-nested",
        "{ 'struct': 'Good', 'data': {}, 'if': { 'all': [ 'A', { 'any': [ 'B', { 'not': 'C1_' } ] } ] } }",
    ),
    (
        "feature-conditional",
        "{ 'struct': 'Good', 'data': {}, 'features': [ { 'name': 'f', 'if': 'X' } ] }",
    ),
    (
        "names-downstream",
        "{ 'command': '__org.example-x_good' } { 'struct': '__com.redhat_Good', 'data': { '__org.example_x': 'int', 'x-y': 'int' } }",
    ),
    (
        "doc-full",
        "##\n# @good:\n#\n# Does good.\n#\n# @a: first\n#     continued\n#\n# @b: second\n#\n# Features:\n# @f: a feature\n#\n# Returns: something\n#\n# Errors:\n#     - one\n#\n# Note: this\n#       continues.\n#\n# Since: 1.0\n#\n# Example:\n#\n# -> {}\n# <- {}\n##\n{ 'command': 'good', 'data': { 'a': 'int', 'b': 'int' }, 'features': [ 'f' ], 'returns': 'Stru' }",
    ),
    (
        "doc-text-after-members",
        "##\n# @good:\n#\n# @a: first\n#\n# .. note:: more\n#    of it\n#\n# Since: 1\n##\n{ 'command': 'good', 'data': { 'a': 'int' } }",
    ),
    (
        "doc-free-text",
        "##\n# = Heading\n#\n# Returns: this is just text\n#   Note: so is this\n##\n##\n# More text\n##",
    ),
    (
        "doc-empty-lines-between",
        "##\n# @good:\n\n# @a: text\n##\n{ 'command': 'good', 'data': { 'a': 'int' } }",
    ),
    (
        "doc-aligned-text",
        "##\n# @good:\n# @a: a text that goes on\n#    aligned\n##\n{ 'command': 'good', 'data': { 'a': 'int' } }",
    ),
    (
        "doc-member-feature",
        "##\n# @good:\n#\n# Features:\n# @deprecated: Member @a is.\n##\n{ 'command': 'good', 'data': { 'a': { 'type': 'int', 'features': [ 'deprecated' ] } } }",
    ),
    ("doc-not-required", "{ 'pragma': { 'doc-required': false } } { 'command': 'good' }"),
    (
        "seed-struct",
        "{ 'type': 'good', 'data': { 'A_b': { 'x': 'int', 'y': { 'z': [ 'str' ] } } } }",
    ),
    (
        "seed-simple-union",
        "{ 'type': 'Good', 'data': {} } { 'union': 'Un', 'data': { 'a': 'Good', 'b': 'int', 'c': [ 'str' ] } }",
    ),
    (
        "seed-gen-no",
        "{ 'type': 'Good', 'data': {} } { 'command': 'qmp_x', 'gen': 'no', 'returns': 'str' }",
    ),
    (
        "seed-doc",
        "##\n# @Good\n#\n# Text\n#\n# @a: #optional text\n# not indented\n#\n# Since 0.14.0\n##\n{ 'type': 'Good', 'data': { '*a': 'int' } }",
    ),
];

const REJECTED: &[(&str, &str, &str)] = &[
    // Tokens and values.
    ("stray-character", "{ 'command': 'x' };", "2:19: error: stray ';'"),
    ("stray-word-several", "{ 'command': 'x', 'boxed': yes 'no' }", "stray 'yes'"),
    (
        "stray-number-several",
        "{ 'enum': 'Bad', 'data': [ 'x', 'y' 12 ] }",
        "2:37: error: stray '12'",
    ),
    ("double-quotes", "{ 'command': \"x\" }", "2:14: error: a string in double quotes"),
    (
        "string-unclosed-several",
        "{ 'command': 'x }\n{ 'command': 'y' }",
        "2:14: error: this string has no end",
    ),
    ("string-escape-several", "{ 'command': 'x\\n' }", "2:16: error: unknown escape sequence"),
    ("string-non-ascii-several", "{ 'command': 'ü' }", "character 'ü' is not allowed in a string"),
    (
        "string-control-several",
        "{ 'command': 'x\ty' }",
        "character '\\t' is not allowed in a string",
    ),
    ("top-level-string", "'command'", "expected '{' to begin a definition, found a string"),
    ("top-level-array", "[ 'command' ]", "expected '{' to begin a definition, found '['"),
    ("top-level-word", "{ 'command': 'x' }\ntrue", "3:1: error: expected '{'"),
    ("no-colon", "{ 'command' 'x' }", "2:13: error: expected ':'"),
    ("no-comma-object", "{ 'command': 'x' 'if': 'X' }", "2:18: error: expected ',' or '}'"),
    (
        "no-comma-array",
        "{ 'enum': 'Bad', 'data': [ 'x' 'y' ] }",
        "2:32: error: expected ',' or ']'",
    ),
    ("trailing-comma-object", "{ 'command': 'x', }", "2:17: error: nothing follows this ','"),
    (
        "trailing-comma-array",
        "{ 'enum': 'Bad', 'data': [ 'x', ] }",
        "2:31: error: nothing follows this ','",
    ),
    ("leading-comma", "{ , 'command': 'x' }", "2:3: error: expected a member name"),
    ("key-not-string", "{ [ 'x' ]: 'y' }", "2:3: error: expected a member name"),
    ("unclosed-object", "{ 'command': 'x'", "found the end of the file"),
    ("unclosed-array", "{ 'enum': 'Bad', 'data': [ 'x',", "found the end of the file"),
    ("no-value", "{ 'command': }", "2:14: error: expected a string"),
    (
        "duplicate-key",
        "{ 'command': 'x', 'boxed': true, 'data': 'Stru', 'boxed': true }",
        "2:50: error: duplicate key 'boxed'",
    ),
    (
        "duplicate-member",
        "{ 'struct': 'Bad', 'data': { 'x': 'int', 'x': 'int' } }",
        "duplicate key 'x'",
    ),
    ("null-value-several", "{ 'command': 'x', 'data': null }", "stray 'null'"),
    // Expressions.
    ("no-metatype", "{ 'data': {} }", "does not say what it defines"),
    ("empty-object", "{ }", "does not say what it defines"),
    ("metatype-spelling", "{ 'evnt': 'X' }", "does not say what it defines"),
    ("two-metatypes", "{ 'command': 'x', 'event': 'X' }", "cannot be both 'command' and 'event'"),
    ("name-not-string", "{ 'struct': [], 'data': {} }", "'struct' requires a string name"),
    (
        "unknown-key",
        "{ 'command': 'x', 'return': 'Stru' }",
        "2:19: error: command has no key 'return'",
    ),
    (
        "unknown-key-struct",
        "{ 'struct': 'Bad', 'data': {}, 'discriminator': 'x' }",
        "struct has no key 'discriminator'",
    ),
    (
        "unknown-key-member",
        "{ 'struct': 'Bad', 'data': { 'a': { 'type': 'int', 'default': 'x' } } }",
        "a member has no key 'default'",
    ),
    (
        "unknown-key-branch",
        "{ 'union': 'Bad', 'base': 'Tagged', 'discriminator': 'tag', 'data': { 'aa': { 'type': 'Stru', 'x': 'y' } } }",
        "a branch has no key 'x'",
    ),
    ("missing-struct-data", "{ 'struct': 'Bad' }", "struct lacks the key 'data'"),
    ("missing-enum-data", "{ 'enum': 'Bad' }", "enum lacks the key 'data'"),
    (
        "missing-member-type",
        "{ 'struct': 'Bad', 'data': { 'a': { 'if': 'X' } } }",
        "a member lacks the key 'type'",
    ),
    // Includes and pragmas.
    ("include-missing", "{ 'include': 'none.json' }", "can't read include file 'none.json'"),
    (
        "include-not-string",
        "{ 'include': [ 'x.json' ] }",
        "the value of 'include' is the name of a file",
    ),
    ("include-extra", "{ 'include': 'x.json', 'if': 'X' }", "unknown key 'if' beside 'include'"),
    ("pragma-extra", "{ 'pragma': {}, 'data': {} }", "unknown key 'data' beside 'pragma'"),
    ("pragma-not-object", "{ 'pragma': [] }", "the value of 'pragma' is an object"),
    ("pragma-unknown", "{ 'pragma': { 'docs-required': true } }", "unknown pragma 'docs-required'"),
    ("pragma-bool", "{ 'pragma': { 'doc-required': 'yes' } }", "is true or false"),
    ("pragma-list", "{ 'pragma': { 'member-name-exceptions': 'Stru' } }", "is an array of strings"),
    (
        "pragma-list-of-strings",
        "{ 'pragma': { 'command-name-exceptions': [ [] ] } }",
        "is an array of strings",
    ),
    // Names.
    ("name-type-camel", "{ 'struct': 'bad', 'data': {} }", "the name of a struct is in CamelCase"),
    ("name-type-shouted", "{ 'enum': 'BAD', 'data': [] }", "the name of an enum is in CamelCase"),
    (
        "name-type-underscore",
        "{ 'struct': 'Bad_One', 'data': {} }",
        "the name of a struct is in CamelCase",
    ),
    ("name-type-list", "{ 'struct': 'BadList', 'data': {} }", "must not end in 'List'"),
    (
        "name-type-characters",
        "{ 'struct': 'Bad!', 'data': {} }",
        "'Bad!' is not a valid name for a struct",
    ),
    ("name-type-optional", "{ 'struct': '*Bad', 'data': {} }", "'*Bad' is not a valid name"),
    ("name-empty", "{ 'command': '' }", "'' is not a valid name for a command"),
    ("name-command-upper", "{ 'command': 'Bad' }", "has neither capitals nor '_': 'Bad'"),
    (
        "name-command-underscore",
        "{ 'command': 'bad_one' }",
        "has neither capitals nor '_': 'bad_one'",
    ),
    ("name-command-digit", "{ 'command': '1bad' }", "'1bad' is not a valid name"),
    ("name-command-reserved", "{ 'command': 'q-bad' }", "'q-bad' is not a valid name"),
    ("name-event-lower", "{ 'event': 'Bad' }", "the name of an event is in capitals"),
    ("name-event-dash", "{ 'event': 'BAD-ONE' }", "the name of an event is in capitals"),
    (
        "name-member-upper",
        "{ 'struct': 'Bad', 'data': { 'X': 'int' } }",
        "has neither capitals nor '_': 'X'",
    ),
    (
        "name-member-underscore",
        "{ 'command': 'bad', 'data': { 'a_b': 'int' } }",
        "has neither capitals nor '_': 'a_b'",
    ),
    (
        "name-member-u",
        "{ 'struct': 'Bad', 'data': { '*u': 'int' } }",
        "the member name 'u' is reserved",
    ),
    (
        "name-member-has",
        "{ 'struct': 'Bad', 'data': { 'has-x': 'int' } }",
        "the member name 'has-x' is reserved",
    ),
    (
        "name-member-reserved",
        "{ 'struct': 'Bad', 'data': { 'q-x': 'int' } }",
        "'q-x' is not a valid name",
    ),
    (
        "name-member-leading",
        "{ 'struct': 'Bad', 'data': { '_x': 'int' } }",
        "'_x' is not a valid name",
    ),
    (
        "name-member-two-stars",
        "{ 'struct': 'Bad', 'data': { '**x': 'int' } }",
        "'*x' is not a valid name",
    ),
    (
        "name-value-upper",
        "{ 'enum': 'Bad', 'data': [ 'Xy' ] }",
        "has neither capitals nor '_': 'Xy'",
    ),
    ("name-value-reserved", "{ 'enum': 'Bad', 'data': [ 'q-x' ] }", "'q-x' is not a valid name"),
    (
        "name-feature-upper",
        "{ 'command': 'bad', 'features': [ 'Feat' ] }",
        "has neither capitals nor '_': 'Feat'",
    ),
    (
        "name-branch-underscore",
        "{ 'alternate': 'Bad', 'data': { 'a_b': 'int' } }",
        "has neither capitals nor '_': 'a_b'",
    ),
    ("name-downstream", "{ 'command': '__bad' }", "'__bad' is not a valid name"),
    // Duplicates and clashes.
    ("redefined-type", "{ 'enum': 'Stru', 'data': [] }", "2:11: error: 'Stru' is already defined"),
    ("redefined-command", "{ 'command': 'comm' }", "'comm' is already defined"),
    ("redefined-event", "{ 'event': 'EVE' }", "'EVE' is already defined"),
    ("redefined-builtin", "{ 'struct': 'QType', 'data': {} }", "'QType' is a built-in type"),
    ("redefined-builtin-command", "{ 'command': 'int' }", "'int' is a built-in type"),
    (
        "clash-values",
        "{ 'pragma': { 'member-name-exceptions': [ 'Bad' ] } } { 'enum': 'Bad', 'data': [ 'a-b', 'a_b' ] }",
        "value 'a_b' collides with 'a-b'",
    ),
    ("clash-values-same", "{ 'enum': 'Bad', 'data': [ 'a', 'a' ] }", "duplicate value 'a'"),
    (
        "clash-members",
        "{ 'pragma': { 'member-name-exceptions': [ 'Bad' ] } } { 'struct': 'Bad', 'data': { 'a-b': 'int', 'a_b': 'int' } }",
        "member 'a_b' collides with 'a-b'",
    ),
    (
        "clash-optional",
        "{ 'struct': 'Bad', 'data': { 'a': 'int', '*a': 'int' } }",
        "duplicate member 'a'",
    ),
    (
        "clash-base",
        "{ 'struct': 'Bad', 'base': 'Stru', 'data': { 'n': 'str' } }",
        "duplicate member 'n'",
    ),
    (
        "clash-base-of-base",
        "{ 'struct': 'Mid', 'base': 'Stru', 'data': {} } { 'struct': 'Bad', 'base': 'Mid', 'data': { 'n': 'str' } }",
        "duplicate member 'n'",
    ),
    (
        "clash-branch",
        "{ 'union': 'Bad', 'base': { 'tag': 'Enu', 'n': 'int' }, 'discriminator': 'tag', 'data': { 'aa': 'Stru' } }",
        "branch 'aa': duplicate member 'n' of the base",
    ),
    (
        "clash-arguments",
        "{ 'command': 'bad', 'data': { 'a': 'int', '*a': 'int' } }",
        "duplicate member 'a'",
    ),
    ("clash-features", "{ 'command': 'bad', 'features': [ 'a', 'a' ] }", "duplicate feature 'a'"),
    // Enums.
    (
        "enum-data-object",
        "{ 'enum': 'Bad', 'data': { 'a': 'b' } }",
        "the 'data' of an enum is an array",
    ),
    (
        "enum-member-array",
        "{ 'enum': 'Bad', 'data': [ [ 'a' ] ] }",
        "an enum member is a name or an object",
    ),
    (
        "enum-member-unknown-key",
        "{ 'enum': 'Bad', 'data': [ { 'name': 'a', 'type': 'int' } ] }",
        "enum member has no key 'type'",
    ),
    (
        "enum-member-no-name",
        "{ 'enum': 'Bad', 'data': [ { 'if': 'X' } ] }",
        "enum member lacks the key 'name'",
    ),
    (
        "enum-member-name-type",
        "{ 'enum': 'Bad', 'data': [ { 'name': {} } ] }",
        "the name of an enum member is a string",
    ),
    ("enum-prefix", "{ 'enum': 'Bad', 'data': [], 'prefix': {} }", "'prefix' is a string"),
    // Structs.
    (
        "struct-data-string",
        "{ 'struct': 'Bad', 'data': 'Stru' }",
        "the 'data' of a struct is an object",
    ),
    (
        "struct-data-array",
        "{ 'struct': 'Bad', 'data': [ 'Stru' ] }",
        "the 'data' of a struct is an object",
    ),
    (
        "struct-base-unknown",
        "{ 'struct': 'Bad', 'base': 'Nix', 'data': {} }",
        "'base' uses the unknown type 'Nix'",
    ),
    (
        "struct-base-union",
        "{ 'struct': 'Bad', 'base': 'Uni', 'data': {} }",
        "'base' requires a struct, not the union 'Uni'",
    ),
    (
        "struct-base-enum",
        "{ 'struct': 'Bad', 'base': 'Enu', 'data': {} }",
        "'base' requires a struct, not the enum 'Enu'",
    ),
    (
        "struct-base-builtin",
        "{ 'struct': 'Bad', 'base': 'any', 'data': {} }",
        "not the built-in type 'any'",
    ),
    (
        "struct-base-object",
        "{ 'struct': 'Bad', 'base': { 'a': 'int' }, 'data': {} }",
        "'base' should be a type name",
    ),
    (
        "struct-base-array",
        "{ 'struct': 'Bad', 'base': [ 'Stru' ], 'data': {} }",
        "'base' cannot be an array",
    ),
    (
        "member-unknown-type",
        "{ 'struct': 'Bad', 'data': { 'a': 'Nix' } }",
        "2:35: error: member 'a' uses the unknown type 'Nix'",
    ),
    (
        "member-unknown-element",
        "{ 'struct': 'Bad', 'data': { 'a': [ 'Nix' ] } }",
        "member 'a' uses the unknown type 'Nix'",
    ),
    ("member-command-type", "{ 'struct': 'Bad', 'data': { 'a': 'comm' } }", "'comm' is not a type"),
    ("member-event-type", "{ 'struct': 'Bad', 'data': { 'a': 'EVE' } }", "'EVE' is not a type"),
    (
        "member-bool-type",
        "{ 'struct': 'Bad', 'data': { 'a': true } }",
        "member 'a' should be a type name",
    ),
    (
        "member-array-empty",
        "{ 'struct': 'Bad', 'data': { 'a': [] } }",
        "an array type holds a single type name",
    ),
    (
        "member-array-two",
        "{ 'struct': 'Bad', 'data': { 'a': [ 'int', 'str' ] } }",
        "an array type holds a single type name",
    ),
    (
        "member-array-nested",
        "{ 'struct': 'Bad', 'data': { 'a': [ [ 'int' ] ] } }",
        "an array type holds a single type name",
    ),
    (
        "member-anonymous-several",
        "{ 'struct': 'Bad', 'data': { 'a': { 'x': 'int' } } }",
        "a member lacks the key 'type'",
    ),
    (
        "member-nested-object",
        "{ 'struct': 'Bad', 'data': { 'a': { 'type': { 'x': 'int' } } } }",
        "member 'a' should be a type name",
    ),
    ("recursion-base", "{ 'struct': 'Bad', 'base': 'Bad', 'data': {} }", "'Bad' contains itself"),
    (
        "recursion-bases",
        "{ 'struct': 'Bad', 'base': 'Two', 'data': {} } { 'struct': 'Two', 'base': 'Bad', 'data': {} }",
        "'Bad' contains itself",
    ),
    ("recursion-member", "{ 'struct': 'Bad', 'data': { 'a': 'Bad' } }", "'Bad' contains itself"),
    (
        "recursion-members",
        "{ 'struct': 'Bad', 'data': { 'a': 'Two' } } { 'struct': 'Two', 'data': { 'b': 'Bad' } }",
        "'Bad' contains itself",
    ),
    (
        "recursion-branch",
        "{ 'union': 'Bad', 'base': { 'kind': 'Enu' }, 'discriminator': 'kind', 'data': { 'aa': 'Bad' } }",
        "contains itself",
    ),
    // Unions.
    (
        "union-no-discriminator",
        "{ 'union': 'Bad', 'base': 'Tagged', 'data': { 'aa': 'Stru' } }",
        "union lacks the key 'discriminator'",
    ),
    (
        "union-no-base",
        "{ 'union': 'Bad', 'discriminator': 'tag', 'data': { 'aa': 'Stru' } }",
        "union lacks the key 'base'",
    ),
    (
        "union-no-data",
        "{ 'union': 'Bad', 'base': 'Tagged', 'discriminator': 'tag' }",
        "union lacks the key 'data'",
    ),
    (
        "union-base-union",
        "{ 'union': 'Bad', 'base': 'Uni', 'discriminator': 'tag', 'data': { 'aa': 'Other' } }",
        "'base' requires a struct",
    ),
    (
        "union-base-unknown",
        "{ 'union': 'Bad', 'base': 'Nix', 'discriminator': 'tag', 'data': { 'aa': 'Other' } }",
        "unknown type 'Nix'",
    ),
    (
        "union-base-list",
        "{ 'union': 'Bad', 'base': [ 'Tagged' ], 'discriminator': 'tag', 'data': { 'aa': 'Other' } }",
        "'base' cannot be an array",
    ),
    (
        "union-discriminator-unknown",
        "{ 'union': 'Bad', 'base': 'Tagged', 'discriminator': 'tug', 'data': { 'aa': 'Stru' } }",
        "the discriminator 'tug' is not a member of the base",
    ),
    (
        "union-discriminator-star",
        "{ 'union': 'Bad', 'base': { '*tag': 'Enu' }, 'discriminator': '*tag', 'data': { 'aa': 'Stru' } }",
        "the discriminator '*tag' is not a member of the base",
    ),
    (
        "union-discriminator-type",
        "{ 'union': 'Bad', 'base': 'Other', 'discriminator': 's', 'data': { 'aa': 'Stru' } }",
        "the discriminator 's' is not of an enum type",
    ),
    (
        "union-discriminator-array",
        "{ 'union': 'Bad', 'base': { 'tag': [ 'Enu' ] }, 'discriminator': 'tag', 'data': { 'aa': 'Stru' } }",
        "is not of an enum type",
    ),
    (
        "union-discriminator-optional",
        "{ 'union': 'Bad', 'base': { '*tag': 'Enu' }, 'discriminator': 'tag', 'data': { 'aa': 'Stru' } }",
        "the discriminator 'tag' is optional",
    ),
    (
        "union-discriminator-conditional",
        "{ 'union': 'Bad', 'base': { 'tag': { 'type': 'Enu', 'if': 'X' } }, 'discriminator': 'tag', 'data': { 'aa': 'Stru' } }",
        "the discriminator 'tag' is conditional",
    ),
    (
        "union-discriminator-object",
        "{ 'union': 'Bad', 'base': 'Tagged', 'discriminator': {}, 'data': { 'aa': 'Stru' } }",
        "'discriminator' is the name of a member",
    ),
    (
        "union-branch-unknown-value",
        "{ 'union': 'Bad', 'base': 'Tagged', 'discriminator': 'tag', 'data': { 'cc': 'Stru' } }",
        "2:71: error: branch 'cc' is not a value of the discriminator",
    ),
    (
        "union-branch-unknown-type",
        "{ 'union': 'Bad', 'base': 'Tagged', 'discriminator': 'tag', 'data': { 'aa': 'Nix' } }",
        "branch 'aa' uses the unknown type 'Nix'",
    ),
    (
        "union-branch-builtin",
        "{ 'union': 'Bad', 'base': 'Tagged', 'discriminator': 'tag', 'data': { 'aa': 'int' } }",
        "branch 'aa' cannot use the built-in type 'int'",
    ),
    (
        "union-branch-enum",
        "{ 'union': 'Bad', 'base': 'Tagged', 'discriminator': 'tag', 'data': { 'aa': 'Enu' } }",
        "branch 'aa' cannot use the enum 'Enu'",
    ),
    (
        "union-branch-array",
        "{ 'union': 'Bad', 'base': 'Tagged', 'discriminator': 'tag', 'data': { 'aa': [ 'Stru' ] } }",
        "branch 'aa' cannot be an array",
    ),
    (
        "union-data-array",
        "{ 'union': 'Bad', 'base': 'Tagged', 'discriminator': 'tag', 'data': [ 'aa' ] }",
        "the 'data' of a union is an object",
    ),
    (
        "union-empty-enum",
        "{ 'enum': 'Empty', 'data': [] } { 'union': 'Bad', 'base': { 'tag': 'Empty' }, 'discriminator': 'tag', 'data': {} }",
        "this union has no branches",
    ),
    (
        "union-simple",
        "{ 'union': 'Bad', 'base': 'Tagged', 'data': { 'aa': 'Stru' } }",
        "union lacks the key 'discriminator'",
    ),
    // Alternates.
    ("alternate-no-data", "{ 'alternate': 'Bad' }", "alternate lacks the key 'data'"),
    ("alternate-empty", "{ 'alternate': 'Bad', 'data': {} }", "must not be empty"),
    (
        "alternate-array",
        "{ 'alternate': 'Bad', 'data': [ 'int' ] }",
        "the 'data' of an alternate is an object",
    ),
    (
        "alternate-base",
        "{ 'alternate': 'Bad', 'base': 'Stru', 'data': { 'a': 'int' } }",
        "alternate has no key 'base'",
    ),
    (
        "alternate-any",
        "{ 'alternate': 'Bad', 'data': { 'a': 'any', 'b': 'int' } }",
        "branch 'a' cannot use the built-in type 'any'",
    ),
    (
        "alternate-nested",
        "{ 'alternate': 'Bad', 'data': { 'a': 'Alt', 'b': 'bool' } }",
        "branch 'a' cannot use the alternate 'Alt'",
    ),
    (
        "alternate-unknown",
        "{ 'alternate': 'Bad', 'data': { 'a': 'Nix', 'b': 'int' } }",
        "unknown type 'Nix'",
    ),
    (
        "alternate-two-objects",
        "{ 'alternate': 'Bad', 'data': { 'a': 'Stru', 'b': 'Uni' } }",
        "branch 'b' can't be told apart from 'a'",
    ),
    (
        "alternate-two-numbers",
        "{ 'alternate': 'Bad', 'data': { 'a': 'int', 'b': 'number' } }",
        "can't be told apart",
    ),
    (
        "alternate-two-lists",
        "{ 'alternate': 'Bad', 'data': { 'a': [ 'int' ], 'b': [ 'str' ] } }",
        "can't be told apart",
    ),
    (
        "alternate-two-strings",
        "{ 'alternate': 'Bad', 'data': { 'a': 'str', 'b': 'Enu' } }",
        "can't be told apart",
    ),
    (
        "alternate-string-number",
        "{ 'alternate': 'Bad', 'data': { 'a': 'str', 'b': 'int' } }",
        "can't be told apart",
    ),
    (
        "alternate-bool-string",
        "{ 'alternate': 'Bad', 'data': { 'a': 'bool', 'b': 'str' } }",
        "can't be told apart",
    ),
    (
        "alternate-enum-bool",
        "{ 'enum': 'Sw', 'data': [ 'on', 'auto' ] } { 'alternate': 'Bad', 'data': { 'a': 'Sw', 'b': 'bool' } }",
        "can't be told apart",
    ),
    (
        "alternate-enum-number",
        "{ 'enum': 'Num', 'data': [ '1', 'auto' ] } { 'alternate': 'Bad', 'data': { 'a': 'int', 'b': 'Num' } }",
        "can't be told apart",
    ),
    // Commands and events.
    (
        "command-data-bool",
        "{ 'command': 'bad', 'data': true }",
        "'data' is an object or a type name",
    ),
    ("command-data-array", "{ 'command': 'bad', 'data': [ 'Stru' ] }", "'data' cannot be an array"),
    (
        "command-data-builtin",
        "{ 'command': 'bad', 'data': 'int' }",
        "the 'data' of a command cannot be the built-in type 'int'",
    ),
    ("command-data-enum", "{ 'command': 'bad', 'data': 'Enu' }", "cannot be the enum 'Enu'"),
    (
        "command-data-alternate",
        "{ 'command': 'bad', 'data': 'Alt' }",
        "cannot be the alternate 'Alt'",
    ),
    ("command-data-union", "{ 'command': 'bad', 'data': 'Uni' }", "can be a union only if boxed"),
    (
        "command-data-unknown",
        "{ 'command': 'bad', 'data': 'Nix' }",
        "'data' uses the unknown type 'Nix'",
    ),
    (
        "command-boxed-object",
        "{ 'command': 'bad', 'data': { 'a': 'int' }, 'boxed': true }",
        "boxed 'data' is a type name",
    ),
    ("command-boxed-nothing", "{ 'command': 'bad', 'boxed': true }", "'boxed' requires 'data'"),
    (
        "command-boxed-builtin",
        "{ 'command': 'bad', 'boxed': true, 'data': 'str' }",
        "cannot be the built-in type 'str'",
    ),
    ("command-boxed-false", "{ 'command': 'bad', 'boxed': false }", "'boxed' may only be true"),
    ("command-gen-true", "{ 'command': 'bad', 'gen': true }", "'gen' may only be false"),
    ("command-gen-string", "{ 'command': 'bad', 'gen': 'no' }", "'gen' may only be false"),
    (
        "command-success-response",
        "{ 'command': 'bad', 'success-response': true }",
        "'success-response' may only be false",
    ),
    ("command-oob", "{ 'command': 'bad', 'allow-oob': 'yes' }", "'allow-oob' may only be true"),
    (
        "command-preconfig",
        "{ 'command': 'bad', 'allow-preconfig': false }",
        "'allow-preconfig' may only be true",
    ),
    (
        "command-coroutine",
        "{ 'command': 'bad', 'coroutine': false }",
        "'coroutine' may only be true",
    ),
    (
        "command-oob-coroutine",
        "{ 'command': 'bad', 'allow-oob': true, 'coroutine': true }",
        "'allow-oob' and 'coroutine' exclude each other",
    ),
    (
        "command-returns-builtin",
        "{ 'command': 'bad', 'returns': 'str' }",
        "a command's 'returns' cannot be the built-in type 'str'",
    ),
    (
        "command-returns-builtins",
        "{ 'command': 'bad', 'returns': [ 'str' ] }",
        "cannot be an array of the built-in type 'str'",
    ),
    ("command-returns-enum", "{ 'command': 'bad', 'returns': 'Enu' }", "cannot be the enum 'Enu'"),
    (
        "command-returns-alternate",
        "{ 'command': 'bad', 'returns': 'Alt' }",
        "cannot be the alternate 'Alt'",
    ),
    (
        "command-returns-unknown",
        "{ 'command': 'bad', 'returns': 'Nix' }",
        "'returns' uses the unknown type 'Nix'",
    ),
    (
        "command-returns-object",
        "{ 'command': 'bad', 'returns': { 'a': 'int' } }",
        "'returns' should be a type name",
    ),
    (
        "command-returns-two",
        "{ 'command': 'bad', 'returns': [ 'Stru', 'Stru' ] }",
        "an array type holds a single type name",
    ),
    ("event-returns", "{ 'event': 'BAD', 'returns': 'Stru' }", "event has no key 'returns'"),
    ("event-boxed", "{ 'event': 'BAD', 'boxed': true }", "'boxed' requires 'data'"),
    (
        "event-data-builtin",
        "{ 'event': 'BAD', 'data': 'int' }",
        "the 'data' of an event cannot be the built-in type 'int'",
    ),
    ("event-data-union", "{ 'event': 'BAD', 'data': 'Uni' }", "can be a union only if boxed"),
    // Conditions and features.
    ("if-empty", "{ 'command': 'bad', 'if': '' }", "the condition '' is not a valid symbol"),
    (
        "if-lower",
        "{ 'command': 'bad', 'if': 'config' }",
        "the condition 'config' is not a valid symbol",
    ),
    ("if-expression", "{ 'command': 'bad', 'if': 'defined(X)' }", "is not a valid symbol"),
    ("if-array", "{ 'command': 'bad', 'if': [ 'X' ] }", "is a symbol or an object"),
    ("if-bool", "{ 'command': 'bad', 'if': true }", "is a symbol or an object"),
    (
        "if-all-string",
        "{ 'command': 'bad', 'if': { 'all': 'X' } }",
        "'all' is an array of conditions",
    ),
    (
        "if-any-empty",
        "{ 'command': 'bad', 'if': { 'any': [] } }",
        "an empty list of conditions is useless",
    ),
    ("if-not-array", "{ 'command': 'bad', 'if': { 'not': [ 'X' ] } }", "is a symbol or an object"),
    (
        "if-two-keys",
        "{ 'command': 'bad', 'if': { 'all': [ 'X' ], 'any': [ 'Y' ] } }",
        "exactly one of 'all', 'any' and 'not'",
    ),
    ("if-no-keys", "{ 'command': 'bad', 'if': {} }", "exactly one of 'all', 'any' and 'not'"),
    (
        "if-unknown-key-several",
        "{ 'command': 'bad', 'if': { 'xor': [ 'X' ] } }",
        "a condition has no key 'xor'",
    ),
    (
        "if-member",
        "{ 'struct': 'Bad', 'data': { 'a': { 'type': 'int', 'if': ' ' } } }",
        "the condition ' ' is not a valid symbol",
    ),
    (
        "if-branch",
        "{ 'alternate': 'Bad', 'data': { 'a': { 'type': 'int', 'if': 'x' } } }",
        "is not a valid symbol",
    ),
    ("features-string", "{ 'command': 'bad', 'features': 'x' }", "'features' is an array"),
    (
        "features-array",
        "{ 'command': 'bad', 'features': [ [ 'x' ] ] }",
        "a feature is a name or an object",
    ),
    (
        "features-no-name",
        "{ 'command': 'bad', 'features': [ { 'if': 'X' } ] }",
        "feature lacks the key 'name'",
    ),
    (
        "features-unknown-key",
        "{ 'command': 'bad', 'features': [ { 'name': 'x', 'type': 'y' } ] }",
        "feature has no key 'type'",
    ),
    (
        "features-deprecated-type",
        "{ 'struct': 'Bad', 'data': {}, 'features': [ 'deprecated' ] }",
        "a type cannot have the feature 'deprecated'",
    ),
    (
        "features-unstable-enum",
        "{ 'enum': 'Bad', 'data': [], 'features': [ 'unstable' ] }",
        "a type cannot have the feature 'unstable'",
    ),
    // Documentation.
    ("doc-start", "## text\n# more\n##", "2:3: error: unexpected text behind '##' at the start"),
    ("doc-end", "##\n# text\n## more\n", "4:3: error: unexpected text behind '##' at the end"),
    ("doc-unclosed", "##\n# text\n", "2:1: error: this documentation comment has no end"),
    ("doc-no-space", "##\n#text\n##", "3:1: error: missing space behind '#'"),
    (
        "doc-no-colon",
        "##\n# @good\n##\n{ 'command': 'good' }",
        "3:3: error: the name a comment documents is followed by ':'",
    ),
    ("doc-no-name-several", "##\n# @:\n##\n{ 'command': 'good' }", "a name is required behind '@'"),
    (
        "doc-no-member-name",
        "##\n# @good:\n# @: text\n##\n{ 'command': 'good' }",
        "a name is required between '@' and ':'",
    ),
    ("doc-other-name", "##\n# @gud:\n##\n{ 'command': 'good' }", "this comment documents 'gud'"),
    (
        "doc-no-definition",
        "##\n# @good:\n##\n",
        "the documentation of 'good' is not followed by its definition",
    ),
    (
        "doc-before-directive",
        "##\n# @good:\n##\n{ 'pragma': {} }\n{ 'command': 'good' }",
        "is not followed by its definition",
    ),
    (
        "doc-free-before-definition",
        "##\n# good:\n##\n{ 'command': 'good' }",
        "the comment before 'good' does not document it",
    ),
    (
        "doc-required-several",
        "{ 'command': 'good' }\n{ 'pragma': { 'doc-required': true } }",
        "'good' has no documentation",
    ),
    (
        "doc-unknown-member",
        "##\n# @good:\n# @b: text\n##\n{ 'command': 'good', 'data': { 'a': 'int' } }",
        "4:3: error: the documented member 'b' does not exist",
    ),
    (
        "doc-unknown-base-member",
        "##\n# @Good:\n# @n: inherited\n##\n{ 'struct': 'Good', 'base': 'Stru', 'data': {} }",
        "the documented member 'n' does not exist",
    ),
    (
        "doc-unknown-value",
        "##\n# @Good:\n# @b: text\n##\n{ 'enum': 'Good', 'data': [ 'a' ] }",
        "the documented member 'b' does not exist",
    ),
    (
        "doc-unknown-boxed",
        "##\n# @good:\n# @n: text\n##\n{ 'command': 'good', 'data': 'Stru', 'boxed': true }",
        "the documented member 'n' does not exist",
    ),
    (
        "doc-unknown-feature",
        "##\n# @good:\n#\n# Features:\n# @f: text\n##\n{ 'command': 'good' }",
        "the documented feature 'f' does not exist",
    ),
    (
        "doc-missing-feature",
        "##\n# @good:\n##\n{ 'command': 'good', 'features': [ 'f' ] }",
        "feature 'f' is not documented",
    ),
    (
        "doc-no-features",
        "##\n# @good:\n#\n# Features:\n##\n{ 'command': 'good' }",
        "no feature is described below 'Features:'",
    ),
    (
        "doc-two-features",
        "##\n# @good:\n#\n# Features:\n# @f: text\n#\n# Features:\n# @g: text\n##\n{ 'command': 'good', 'features': [ 'f', 'g' ] }",
        "a second 'Features' section",
    ),
    (
        "doc-two-members",
        "##\n# @good:\n# @a: text\n# @a: text\n##\n{ 'command': 'good', 'data': { 'a': 'int' } }",
        "'@a' is described twice",
    ),
    (
        "doc-two-returns",
        "##\n# @good:\n#\n# Returns: a\n#\n# Returns: b\n##\n{ 'command': 'good' }",
        "a second 'Returns' section",
    ),
    (
        "doc-two-since",
        "##\n# @good:\n#\n# Since: 1\n#\n# Since: 2\n##\n{ 'command': 'good' }",
        "a second 'Since' section",
    ),
    (
        "doc-empty-section",
        "##\n# @good:\n#\n# Note:\n##\n{ 'command': 'good' }",
        "the 'Note' section is empty",
    ),
    (
        "doc-returns-event",
        "##\n# @GOOD:\n#\n# Returns: text\n##\n{ 'event': 'GOOD' }",
        "'Returns:' is only for commands",
    ),
    (
        "doc-errors-struct",
        "##\n# @Good:\n#\n# Errors: text\n##\n{ 'struct': 'Good', 'data': {} }",
        "'Errors:' is only for commands",
    ),
    (
        "doc-order",
        "##\n# @good:\n#\n# Note: text\n#\n# @a: text\n##\n{ 'command': 'good', 'data': { 'a': 'int' } }",
        "the description of '@a' can't follow the 'Note' section",
    ),
    (
        "doc-indent",
        "##\n# @good:\n# @a: text\n# more\n##\n{ 'command': 'good', 'data': { 'a': 'int' } }",
        "5:3: error: this line is not indented",
    ),
    (
        "doc-heading",
        "##\n# @good:\n#\n# = Heading\n##\n{ 'command': 'good' }",
        "a heading is not allowed",
    ),
    (
        "doc-member-in-free-text",
        "##\n# free text\n# @a: text\n##",
        "'@a:' in free-form documentation",
    ),
    // The seed's dialect has the same rules for types.
    (
        "seed-unknown-type",
        "{ 'type': 'Bad', 'data': { 'a': { 'b': 'Nix' } } }",
        "member 'b' uses the unknown type 'Nix'",
    ),
    (
        "seed-clash-several",
        "{ 'type': 'Bad', 'data': { 'a': { 'b': 'int', 'b': 'int' } } }",
        "duplicate key 'b'",
    ),
    ("seed-redefined", "{ 'type': 'Stru', 'data': {} }", "'Stru' is already defined"),
];
