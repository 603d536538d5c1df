//! The QAPI schema language: parser, checker, introspection and reference documentation.
//!
//! A schema describes commands, events and their types in a relaxed JSON. This crate reads both
//! forms of it: the one of 2011, in which structs are `'type'`, and today's (QEMU's "How to use
//! the QAPI code generator" is its description). [`check_file`] reads a schema with everything it
//! includes and gives the checked [`ir::Schema`] with all [`diag::Diagnostic`]s.
//!
//! Stages, each a module: [`source`] (texts, spans), `lexer`, `parser` (values), `load` (includes
//! and pragmas), [`comment`] (documentation), `expr` (definitions), `check` (what needs the whole
//! schema). From the [`ir`], [`mod@introspect`] makes what `query-qmp-schema` returns, [`dump`] JSON for
//! tools, and [`doc`] the reference.
//!
//! Input is never trusted: sizes and nesting are bounded, and whatever the bytes, the answer is
//! diagnostics, not a panic.

use std::path::Path;

pub mod comment;
pub mod diag;
pub mod doc;
pub mod dump;
pub mod introspect;
pub mod ir;
pub mod source;

mod check;
mod expr;
mod lexer;
mod load;
mod names;
mod parser;

pub use load::{Disk, Files};

/// What reading a schema gave.
#[derive(Debug)]
pub struct Outcome {
    /// The schema; complete only if [`Self::is_ok`].
    pub schema: ir::Schema,
    /// All findings, in the order of the files.
    pub diagnostics: Vec<diag::Diagnostic>,
}

impl Outcome {
    /// Whether there is no error; warnings may be there.
    pub fn is_ok(&self) -> bool {
        self.diagnostics.iter().all(|d| d.severity != diag::Severity::Error)
    }

    /// All findings drawn with their source, an empty line between.
    pub fn render(&self, colour: bool) -> String {
        let drawn: Vec<_> =
            self.diagnostics.iter().map(|d| d.render(&self.schema.sources, colour)).collect();
        drawn.join("\n\n")
    }
}

/// Reads and checks the schema whose root is the file at `path`.
pub fn check_file(path: impl AsRef<Path>) -> Outcome {
    check_files(&Disk, path.as_ref())
}

/// Reads and checks the schema whose root is `path` in `files`.
pub fn check_files(files: &dyn Files, path: &Path) -> Outcome {
    let mut loader = load::Loader::new(files);
    loader.root(path);
    check::schema(loader)
}

/// Reads and checks one text without files; includes in it fail.
pub fn check_text(name: &str, text: &str) -> Outcome {
    struct One<'a>(&'a str, &'a str);
    impl Files for One<'_> {
        fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
            if path == Path::new(self.0) {
                Ok(self.1.as_bytes().to_vec())
            } else {
                Err(std::io::ErrorKind::NotFound.into())
            }
        }
    }
    check_files(&One(name, text), Path::new(name))
}
