//! Whatever the bytes, the answer is diagnostics: no panic, no endless loop, bounded output.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use qapi::{Files, Outcome, check_files};

/// Files in memory.
#[derive(Debug, Default)]
struct Memory(HashMap<PathBuf, Vec<u8>>);

impl Files for Memory {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn memory<const N: usize>(files: [(&str, &[u8]); N]) -> Memory {
    Memory(files.into_iter().map(|(name, text)| (PathBuf::from(name), text.to_vec())).collect())
}

/// Everything that can be done with a schema.
fn exercise(files: &Memory) -> Outcome {
    let outcome = check_files(files, Path::new("root.json"));
    let _ = outcome.render(true);
    for diagnostic in &outcome.diagnostics {
        let _ = diagnostic.render_short(&outcome.schema.sources);
    }
    if outcome.is_ok() {
        let _ = qapi::dump::dump(&outcome.schema).to_string();
        let _ = qapi::introspect::introspect(&outcome.schema, &|_| true).to_string();
        let _ = qapi::doc::pages(&outcome.schema);
    }
    outcome
}

/// Pieces that schemas are made of, and some that they are not.
const PIECES: &[&str] = &[
    "{ ",
    " }",
    "[ ",
    " ]",
    ", ",
    ": ",
    "'",
    "\"",
    "\\",
    "\n",
    "##\n",
    "# ",
    "# @a:",
    "# @Foo:\n",
    "# Returns: x\n",
    "# Features:\n",
    "# = H\n",
    "#",
    "true",
    "false",
    "null",
    "12",
    "'struct'",
    "'type'",
    "'union'",
    "'enum'",
    "'alternate'",
    "'command'",
    "'event'",
    "'include'",
    "'pragma'",
    "'data'",
    "'base'",
    "'discriminator'",
    "'returns'",
    "'boxed'",
    "'if'",
    "'all'",
    "'not'",
    "'features'",
    "'name'",
    "'Foo'",
    "'Bar'",
    "'foo'",
    "'FOO'",
    "'*a'",
    "'a'",
    "'int'",
    "'str'",
    "'root.json'",
    "'sub.json'",
    "'doc-required'",
    "ü",
    "\u{0}",
    "\u{feff}",
    "\t",
    "\r\n",
    "{ 'struct': 'Foo', 'data': { 'a': 'int' } }\n",
    "{ 'enum': 'Enu', 'data': [ 'x', 'y' ] }\n",
    "{ 'union': 'Uni', 'base': { 't': 'Enu' }, 'discriminator': 't', 'data': { 'x': 'Foo' } }\n",
    "{ 'command': 'foo', 'data': 'Foo', 'returns': [ 'Bar' ] }\n",
    "{ 'struct': 'Bar', 'base': 'Foo', 'data': { '*b': 'Bar', 'c': [ 'Uni' ] } }\n",
    "{ 'alternate': 'Alt', 'data': { 'o': 'Foo', 'n': 'int' } }\n",
    "{ 'type': 'Old', 'data': { 'x': { 'y': 'int' } } }\n",
    "{ 'union': 'OldUnion', 'data': { 'x': 'Foo', 'y': 'int' } }\n",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        exercise(&memory([("root.json", &bytes)]));
    }

    #[test]
    fn any_pieces(
        root in prop::collection::vec(prop::sample::select(PIECES), 0..60),
        sub in prop::collection::vec(prop::sample::select(PIECES), 0..20),
    ) {
        let (root, sub) = (root.concat(), sub.concat());
        exercise(&memory([("root.json", root.as_bytes()), ("sub.json", sub.as_bytes())]));
    }

    /// A valid schema with a stretch replaced.
    #[test]
    fn any_damage(
        at in 0_usize..4000,
        length in 0_usize..40,
        with in prop::collection::vec(prop::sample::select(PIECES), 0..3),
    ) {
        let mut text = include_bytes!("../../../schema/block-core.json").to_vec();
        let at = at.min(text.len());
        let end = (at + length).min(text.len());
        text.splice(at..end, with.concat().into_bytes());
        exercise(&memory([("root.json", &text)]));
    }
}

#[test]
fn deep_nesting_is_refused() {
    for (open, close) in [("[", "]"), ("{ 'a': ", "}"), ("{ 'not': ", "}")] {
        let text = format!(
            "{{ 'command': 'x', 'if': {}'X'{} }}",
            open.repeat(100_000),
            close.repeat(100_000)
        );
        let outcome = exercise(&memory([("root.json", text.as_bytes())]));
        assert!(!outcome.is_ok());
    }
}

#[test]
fn long_chains_are_walked_without_recursion() {
    // Mandatory members, each of the next type; the last closes the circle.
    let mut text = String::new();
    for i in 0..50_000 {
        text += &format!("{{ 'struct': 'Ty{i}', 'data': {{ 'n': 'Ty{}' }} }}\n", (i + 1) % 50_000);
    }
    let outcome = exercise(&memory([("root.json", text.as_bytes())]));
    assert_eq!(outcome.diagnostics.len(), 1);
    assert!(outcome.diagnostics[0].message.contains("contains itself"));
    // Bases: refused where the chain gets too long.
    let mut text = String::from("{ 'struct': 'Ty0', 'data': {} }\n");
    for i in 1..500 {
        text += &format!("{{ 'struct': 'Ty{i}', 'base': 'Ty{}', 'data': {{}} }}\n", i - 1);
    }
    let outcome = exercise(&memory([("root.json", text.as_bytes())]));
    assert!(outcome.diagnostics.iter().all(|d| d.message.contains("chain of bases")));
    assert!(!outcome.is_ok());
}

#[test]
fn the_number_of_findings_is_bounded() {
    let text = "{ 'struct': 'Bad', 'data': { 'x': 'Nope' } }\n".repeat(20_000);
    let outcome = exercise(&memory([("root.json", text.as_bytes())]));
    assert_eq!(outcome.diagnostics.len(), 1001);
    assert!(outcome.diagnostics[1000].message.contains("more findings are not shown"));
}

#[test]
fn one_endless_line_does_not_flood_the_terminal() {
    let text = format!("{{ 'enum': 'Bad', 'data': [ {} ] ] }}", "'a', ".repeat(100_000));
    let outcome = exercise(&memory([("root.json", text.as_bytes())]));
    assert!(!outcome.is_ok());
    assert!(outcome.diagnostics[0].render(&outcome.schema.sources, false).len() < 20_000);
}

#[test]
fn includes_are_read_once_and_may_be_circular() {
    let files = memory([
        ("root.json", b"{ 'include': 'dir/a.json' } { 'include': 'dir/../dir/b.json' }".as_slice()),
        ("dir/a.json", b"{ 'include': 'b.json' } { 'enum': 'Aa', 'data': [] }"),
        (
            "dir/b.json",
            b"{ 'include': '../root.json' } { 'include': 'b.json' } { 'enum': 'Bb', 'data': [] }",
        ),
        ("dir/../dir/b.json", b"{ 'include': 'unreachable.json' }"),
        ("dir/../root.json", b""),
    ]);
    let outcome = exercise(&files);
    assert!(outcome.is_ok(), "{}", outcome.render(false));
    assert_eq!(outcome.diagnostics.len(), 2, "a warning for each include that closes a cycle");
    let names: Vec<&str> = outcome.schema.modules.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["root", "dir/a", "dir/b"]);
    let definitions: Vec<&String> = outcome.schema.definitions.keys().collect();
    assert_eq!(definitions, ["Bb", "Aa"]);
}

#[test]
fn endless_includes_are_refused() {
    /// Each file includes one with a longer name.
    struct Endless;
    impl Files for Endless {
        fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
            Ok(format!("{{ 'include': 'x{}' }}", path.display()).into_bytes())
        }
    }
    let outcome = check_files(&Endless, Path::new("root.json"));
    assert_eq!(outcome.diagnostics.len(), 1);
    assert!(outcome.diagnostics[0].message.contains("nested deeper"), "{}", outcome.render(false));
}

#[test]
fn errors_in_included_files_are_shown_there() {
    let files = memory([
        (
            "root.json",
            b"{ 'include': 'sub.json' }\n{ 'struct': 'Foo', 'data': { 'a': 'Nix' } }".as_slice(),
        ),
        ("sub.json", b"\n{ 'struct': 'Sub', 'data': { 'a': 'Nix' } }\n\xff"),
    ]);
    let outcome = exercise(&files);
    let short: Vec<String> =
        outcome.diagnostics.iter().map(|d| d.render_short(&outcome.schema.sources)).collect();
    assert_eq!(
        short,
        [
            "root.json:2:35: error: member 'a' uses the unknown type 'Nix'",
            "sub.json:2:35: error: member 'a' uses the unknown type 'Nix'",
            "sub.json:3:1: error: invalid UTF-8",
            "sub.json:3:1: error: stray '\u{fffd}'",
        ]
    );
}
