//! Reading a schema's files: the include graph and the pragmas.
//!
//! Each file is read once, at its first include. Files may include each other in a cycle: the
//! include that closes it is then skipped like any repeated one.

use std::collections::HashSet;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::diag::{Diagnostic, Diagnostics, Severity};
use crate::ir::Dialect;
use crate::names::nearest;
use crate::parser::{self, Expr, Item, Kind, Node};
use crate::source::{FileId, Sources, Span};

/// Where the texts come from; tests and fuzzers have them in memory.
pub trait Files {
    /// The bytes of the file at `path`.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
}

/// Files on disk.
#[derive(Debug)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }
}

/// Larger files are refused: offsets are 32 bits, and no schema is near this.
const MAX_FILE: usize = 16 << 20;
/// Chains of includes longer than this are refused: loading recurses.
const MAX_INCLUDE_DEPTH: usize = 100;

/// What a schema says about itself: the pragmas of all its files together.
#[derive(Debug, Default)]
pub(crate) struct Pragma {
    pub(crate) doc_required: bool,
    pub(crate) command_names: HashSet<String>,
    pub(crate) command_returns: HashSet<String>,
    pub(crate) documentation: HashSet<String>,
    pub(crate) member_names: HashSet<String>,
}

/// One top-level item to be made into the IR.
#[derive(Debug)]
pub(crate) enum Loaded {
    Doc(Span),
    Expr(Expr),
    /// An include or a pragma, which no documentation may precede.
    Directive,
}

#[derive(Debug)]
pub(crate) struct LoadedModule {
    pub(crate) name: String,
    pub(crate) file: FileId,
    pub(crate) dialect: Dialect,
    pub(crate) includes: Vec<usize>,
    pub(crate) items: Vec<Loaded>,
}

pub(crate) struct Loader<'f> {
    files: &'f dyn Files,
    root_dir: PathBuf,
    pub(crate) sources: Sources,
    pub(crate) diags: Diagnostics,
    pub(crate) pragma: Pragma,
    pub(crate) modules: Vec<LoadedModule>,
    /// The modules by when their reading was finished: definitions of an included file come
    /// before those of the file that includes it.
    pub(crate) order: Vec<usize>,
    /// The files being read, from the root down.
    stack: Vec<usize>,
}

impl<'f> Loader<'f> {
    pub(crate) fn new(files: &'f dyn Files) -> Self {
        Loader {
            files,
            root_dir: PathBuf::new(),
            sources: Sources::default(),
            diags: Diagnostics::default(),
            pragma: Pragma::default(),
            modules: Vec::new(),
            order: Vec::new(),
            stack: Vec::new(),
        }
    }

    pub(crate) fn root(&mut self, path: &Path) {
        self.root_dir = normalise(path.parent().unwrap_or(Path::new("")));
        match self.read(path) {
            Ok(bytes) => {
                self.module(path, path.display().to_string(), bytes);
            }
            Err(e) => self.diags.push(Diagnostic {
                severity: Severity::Error,
                span: None,
                message: format!("can't read schema file '{}': {e}", path.display()),
                label: String::new(),
                help: None,
                related: Vec::new(),
            }),
        }
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let bytes = self.files.read(path)?;
        if bytes.len() > MAX_FILE {
            return Err(io::Error::other(format!("it is larger than {} MiB", MAX_FILE >> 20)));
        }
        Ok(bytes)
    }

    fn module(&mut self, path: &Path, shown: String, bytes: Vec<u8>) -> usize {
        let (text, invalid) = match String::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(e) => {
                let at = e.utf8_error().valid_up_to();
                (String::from_utf8_lossy(e.as_bytes()).into_owned(), Some(at))
            }
        };
        let file = self.sources.add(shown, normalise(path), text);
        let text = &self.sources.file(file).text;
        if let Some(at) = invalid {
            self.diags.push(
                Diagnostic::error(Span::new(file, at..at + 3), "invalid UTF-8")
                    .help("schema files are UTF-8"),
            );
        }
        let items = parser::parse(file, text, &mut self.diags);
        let index = self.modules.len();
        let name = normalise(path);
        let name = name.strip_prefix(&self.root_dir).unwrap_or(&name).with_extension("");
        self.modules.push(LoadedModule {
            name: name.display().to_string(),
            file,
            dialect: dialect_of(&items),
            includes: Vec::new(),
            items: Vec::new(),
        });
        self.stack.push(index);
        let mut loaded = Vec::with_capacity(items.len());
        for item in items {
            let item = match item {
                Item::Doc(span) => Loaded::Doc(span),
                Item::Expr(expr) => match expr.entries.iter().find(|e| is_directive(&e.key)) {
                    Some(entry) => {
                        self.directive(path, index, &expr, &entry.key.clone());
                        Loaded::Directive
                    }
                    None => Loaded::Expr(expr),
                },
            };
            loaded.push(item);
        }
        self.stack.pop();
        self.modules[index].items = loaded;
        self.order.push(index);
        index
    }

    fn directive(&mut self, path: &Path, index: usize, expr: &Expr, key: &str) {
        if expr.entries.len() != 1 {
            if let Some(other) = expr.entries.iter().find(|e| e.key != key) {
                self.diags.push(
                    Diagnostic::error(
                        other.key_span,
                        format!("unknown key '{}' beside '{key}'", other.key),
                    )
                    .help(format!("'{key}' stands alone in its object")),
                );
            }
            return;
        }
        let value = &expr.entries[0].value;
        if key == "include" {
            self.include(path, index, value);
        } else {
            self.pragma(value);
        }
    }

    fn include(&mut self, path: &Path, index: usize, value: &Node) {
        let Some(target) = value.as_str() else {
            self.diags.push(
                Diagnostic::error(value.span, "the value of 'include' is the name of a file")
                    .label(format!("this is {}", value.kind.describe())),
            );
            return;
        };
        let target = path.parent().unwrap_or(Path::new("")).join(target);
        if let Some(file) = self.sources.find(&normalise(&target)) {
            if let Some(module) = self.modules.iter().position(|m| m.file == file) {
                self.modules[index].includes.push(module);
                if self.stack.contains(&module) {
                    self.diags.push(
                        Diagnostic::warning(value.span, "this include closes a cycle")
                            .label("already being read; skipped"),
                    );
                }
            }
            return;
        }
        if self.stack.len() >= MAX_INCLUDE_DEPTH {
            self.diags.error(
                value.span,
                format!("includes are nested deeper than {MAX_INCLUDE_DEPTH} files"),
            );
            return;
        }
        match self.read(&target) {
            Ok(bytes) => {
                let shown = target.display().to_string();
                let module = self.module(&target, shown, bytes);
                self.modules[index].includes.push(module);
            }
            Err(e) => self.diags.push(
                Diagnostic::error(
                    value.span,
                    format!("can't read include file '{}': {e}", target.display()),
                )
                .help("includes are relative to the directory of the file that includes them"),
            ),
        }
    }

    fn pragma(&mut self, value: &Node) {
        let Kind::Object(entries) = &value.kind else {
            self.diags.push(
                Diagnostic::error(value.span, "the value of 'pragma' is an object")
                    .label(format!("this is {}", value.kind.describe())),
            );
            return;
        };
        const NAMES: [&str; 5] = [
            "doc-required",
            "command-name-exceptions",
            "command-returns-exceptions",
            "documentation-exceptions",
            "member-name-exceptions",
        ];
        for entry in entries {
            let list = match entry.key.as_str() {
                "doc-required" => {
                    match entry.value.kind {
                        Kind::Bool(value) => self.pragma.doc_required = value,
                        _ => self
                            .diags
                            .error(entry.value.span, "pragma 'doc-required' is true or false"),
                    }
                    continue;
                }
                "command-name-exceptions" => &mut self.pragma.command_names,
                "command-returns-exceptions" => &mut self.pragma.command_returns,
                "documentation-exceptions" => &mut self.pragma.documentation,
                "member-name-exceptions" => &mut self.pragma.member_names,
                unknown => {
                    let help = match nearest(unknown, NAMES) {
                        Some(near) => format!("did you mean '{near}'?"),
                        None => format!("the pragmas are {}", NAMES.join(", ")),
                    };
                    self.diags.push(
                        Diagnostic::error(entry.key_span, format!("unknown pragma '{unknown}'"))
                            .help(help),
                    );
                    continue;
                }
            };
            match &entry.value.kind {
                Kind::List(names) if names.iter().all(|n| n.as_str().is_some()) => {
                    list.extend(names.iter().filter_map(Node::as_str).map(str::to_owned));
                }
                _ => self.diags.error(
                    entry.value.span,
                    format!("pragma '{}' is an array of strings", entry.key),
                ),
            }
        }
    }
}

fn is_directive(key: &str) -> bool {
    matches!(key, "include" | "pragma")
}

/// A file is in the seed's dialect if any of its structs is defined by `'type'`.
fn dialect_of(items: &[Item]) -> Dialect {
    let seed = items.iter().any(|item| match item {
        Item::Expr(expr) => expr.entries.first().is_some_and(|e| e.key == "type"),
        Item::Doc(_) => false,
    });
    if seed { Dialect::Seed } else { Dialect::Current }
}

/// The path without `.` and `..`, so that a file has one name.
fn normalise(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                if !matches!(clean.components().next_back(), Some(Component::Normal(_))) {
                    clean.push(part);
                } else {
                    clean.pop();
                }
            }
            other => clean.push(other),
        }
    }
    clean
}
