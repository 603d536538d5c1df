//! Rust from a checked QAPI schema: types, the server's command trait with argument checking, the
//! typed client, events, introspection.
//!
//! [`generate`] writes one text that the crate `schema` includes; it relies on that crate's
//! `error`, `input` and `client` modules for what is not specific to a schema. Output depends on
//! the schema alone and is in its order, so it is the same on every build.
//!
//! Wire names are kept by serde attributes; in Rust they follow Rust's habits:
//!
//! | schema | Rust |
//! |---|---|
//! | `str`, `bool`, `number`, `any`, `null` | `String`, `bool`, `f64`, `serde_json::Value`, `()` |
//! | `int`, `size`, `uint8`… | `i64`, `u64`, `u8`… |
//! | `['T']`, `'*x': 'T'` | `Vec<T>`, `Option<T>` |
//! | struct with a base | a struct with the members of both |
//! | union | an enum tagged by its discriminator, in a struct if there are further common members |
//! | alternate | an untagged enum |

mod commands;
mod names;
mod types;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::rc::Rc;

use qapi::comment::backquote_references;
use qapi::ir::{Condition, DefinitionKind, Schema};

/// What the generator needs to know beside the schema.
#[derive(Debug, Default)]
pub struct Options<'a> {
    /// Commands that the QMP session answers itself: in introspection, but not in the trait.
    pub session_commands: &'a [&'a str],
    /// The symbols for `if` conditions that are defined.
    pub defined: &'a [&'a str],
}

impl Options<'_> {
    fn holds(&self, condition: &Condition) -> bool {
        condition.holds(&|symbol| self.defined.contains(&symbol))
    }
}

/// The generated text and what goes with it.
#[derive(Debug)]
pub struct Generated {
    /// Rust source, to be included in a module.
    pub code: String,
    /// What `query-qmp-schema` returns, as JSON on one line.
    pub introspection: String,
}

/// Generates everything for `schema`, which must have been checked without errors.
pub fn generate(schema: &Schema, options: &Options<'_>) -> Generated {
    let writer = Writer { schema, options, boxed: Rc::new(recursive(schema)), types: "" };
    let mut code = String::new();
    for definition in schema.definitions.values().filter(|d| writer.applies(&d.condition)) {
        match &definition.kind {
            DefinitionKind::Command(_) | DefinitionKind::Event(_) => {}
            _ => code += &types::definition(&writer, definition),
        }
    }
    code += &commands::all(&writer);
    let introspection = qapi::introspect::introspect(schema, &|c| options.holds(c)).to_string();
    Generated { code, introspection }
}

/// What the parts of the generator share.
pub(crate) struct Writer<'a> {
    pub(crate) schema: &'a Schema,
    pub(crate) options: &'a Options<'a>,
    /// Types that contain themselves: uses of them as members are boxed.
    pub(crate) boxed: Rc<HashSet<String>>,
    /// The path to the types from the module being written.
    pub(crate) types: &'static str,
}

impl Writer<'_> {
    pub(crate) fn applies(&self, condition: &Option<Condition>) -> bool {
        condition.as_ref().is_none_or(|c| c.holds(&|symbol| self.options.defined.contains(&symbol)))
    }

    /// The same for a module beside the types.
    pub(crate) fn in_module(&self) -> Self {
        Writer { boxed: Rc::clone(&self.boxed), types: "super::", ..*self }
    }
}

/// The types that can reach themselves without an array between.
fn recursive(schema: &Schema) -> HashSet<String> {
    let mut found = HashSet::new();
    for name in schema.definitions.keys() {
        let mut seen = HashSet::new();
        let mut open: Vec<&str> = types::contained(schema, name);
        while let Some(next) = open.pop() {
            if next == name {
                found.insert(name.clone());
                break;
            }
            if seen.insert(next) {
                open.extend(types::contained(schema, next));
            }
        }
    }
    found
}

/// A documentation comment from schema text: brackets would be taken for links.
pub(crate) fn doc(out: &mut String, indent: &str, text: &str, fallback: &str) {
    let text = if text.trim().is_empty() { fallback } else { text };
    for line in text.lines() {
        let line = line.replace('[', "\\[").replace(']', "\\]").replace('<', "&lt;");
        let line = backquote_references(&line);
        let _ = writeln!(out, "{}", format!("{indent}/// {line}").trim_end());
    }
}
