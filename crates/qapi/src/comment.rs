//! Documentation comments: their structure, and the rules of their own.
//!
//! A block whose first line is `@name:` documents the definition that follows; any other block is
//! free text. Within a definition's block come a description, `@member:` descriptions, a
//! `Features:` list and tagged sections (`Returns:`, `Errors:`, `Since:`, `Note:`, `Example:`,
//! `TODO:`).

use std::collections::HashMap;

use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::Dialect;
use crate::source::{Sources, Span};

/// One documentation comment.
#[derive(Clone, Debug)]
pub struct DocComment {
    /// All of it.
    pub span: Span,
    /// The definition it names; none for free text.
    pub symbol: Option<(String, Span)>,
    /// The text before any member or section; for free text, all of it.
    pub text: String,
    /// Descriptions of members, arguments, values or branches.
    pub members: Vec<DocEntry>,
    /// Descriptions of features.
    pub features: Vec<DocEntry>,
    /// What follows.
    pub sections: Vec<DocSection>,
}

/// The description of one name.
#[derive(Clone, Debug)]
pub struct DocEntry {
    /// What is described.
    pub name: String,
    /// Where the name is.
    pub span: Span,
    /// The description, without its indentation.
    pub text: String,
}

/// A section of a definition's documentation.
#[derive(Clone, Debug)]
pub struct DocSection {
    /// `Returns`, `Since` and so on; empty for plain text after the members.
    pub tag: String,
    /// Where it begins.
    pub span: Span,
    /// Its text.
    pub text: String,
}

const TAGS: [&str; 9] =
    ["Returns", "Errors", "Since", "Note", "Notes", "Example", "Examples", "TODO", "Todo"];

/// What lines are being added to.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Text,
    Member,
    FeaturesHead,
    Feature,
    Section,
}

struct Reader<'d> {
    doc: DocComment,
    place: Place,
    /// Blank lines seen since the last text.
    blank: usize,
    /// The indentation of the first continuation line; 0 for text at the left margin.
    indent: Option<usize>,
    /// The names described so far; features are apart from members.
    described: HashMap<(bool, String), Span>,
    /// The sections so far of which there is only one.
    singles: HashMap<String, Span>,
    /// The line `Features:`.
    features_head: Option<Span>,
    dialect: Dialect,
    diags: &'d mut Diagnostics,
}

/// Reads the block at `span`, which a [`crate::lexer::Token::Doc`] covered.
pub(crate) fn read(
    sources: &Sources,
    span: Span,
    dialect: Dialect,
    diags: &mut Diagnostics,
) -> DocComment {
    let doc = DocComment {
        span,
        symbol: None,
        text: String::new(),
        members: Vec::new(),
        features: Vec::new(),
        sections: Vec::new(),
    };
    let mut reader = Reader {
        doc,
        place: Place::Text,
        blank: 0,
        indent: None,
        described: HashMap::new(),
        singles: HashMap::new(),
        features_head: None,
        dialect,
        diags,
    };
    for (line, at) in lines(sources, span, reader.diags) {
        reader.line(line, at);
    }
    reader.finish()
}

/// The lines between the two `##`, without `# `, each with its span.
fn lines<'a>(sources: &'a Sources, span: Span, diags: &mut Diagnostics) -> Vec<(&'a str, Span)> {
    let mut offset = span.start as usize;
    let mut lines = Vec::new();
    for line in sources.text(span).split('\n') {
        let start = offset;
        offset += line.len() + 1;
        let hash = line.len() - line.trim_start_matches([' ', '\t']).len();
        let body = line[hash..].trim_end();
        if body.starts_with("##") {
            continue;
        }
        let Some(text) = body.strip_prefix('#') else { continue };
        let mut text_start = start + hash + 1;
        let text = match text.strip_prefix(' ') {
            Some(text) => {
                text_start += 1;
                text
            }
            None => {
                if !text.is_empty() {
                    diags.push(
                        Diagnostic::error(
                            Span::new(span.file, text_start - 1..text_start + text.len()),
                            "missing space behind '#'",
                        )
                        .help("lines of a documentation comment begin with '# '"),
                    );
                }
                text
            }
        };
        lines.push((text, Span::new(span.file, text_start..text_start + text.len())));
    }
    lines
}

impl Reader<'_> {
    fn seed(&self) -> bool {
        self.dialect == Dialect::Seed
    }

    fn line(&mut self, line: &str, at: Span) {
        if line.trim().is_empty() {
            self.blank += 1;
            return;
        }
        if self.doc.symbol.is_none() {
            if self.doc.text.is_empty() && line.starts_with('@') {
                self.symbol(line, at);
            } else {
                self.free_text(line, at);
            }
            return;
        }
        if line.starts_with([' ', '\t']) {
            self.continuation(line);
            return;
        }
        let word = line.split([' ', '\t']).next().unwrap_or(line);
        if let Some(name) = word.strip_prefix('@').and_then(|w| w.strip_suffix(':')) {
            self.entry(name, line[word.len()..].trim_start(), head(at, word.len()));
        } else if line == "Features:" {
            self.features(at);
        } else if let Some(tag) = tag_of(word) {
            let rest = line[word.len()..].trim_start();
            self.section(tag, rest, head(at, word.len()));
        } else if is_heading(line) {
            self.diags.push(
                Diagnostic::error(
                    at,
                    "a heading is not allowed in the documentation of a definition",
                )
                .help("put headings into a documentation comment of their own"),
            );
        } else {
            self.unindented(line, at);
        }
    }

    fn symbol(&mut self, line: &str, at: Span) {
        let rest = line[1..].trim_end();
        let name = match rest.strip_suffix(':') {
            Some(name) => name,
            None if self.seed() => rest,
            None => {
                self.diags.push(
                    Diagnostic::error(at, "the name a comment documents is followed by ':'")
                        .help(format!("write '@{rest}:'")),
                );
                rest
            }
        };
        if name.is_empty() {
            self.diags.push(
                Diagnostic::error(at, "a name is required behind '@'")
                    .help("write '@name:' with the name of the definition that follows"),
            );
        }
        self.doc.symbol = Some((name.to_owned(), head(at, 1 + name.len())));
        self.begin("");
    }

    fn free_text(&mut self, line: &str, at: Span) {
        let word = line.split([' ', '\t']).next().unwrap_or(line);
        if word.starts_with('@') && word.ends_with(':') && !self.seed() {
            self.diags.push(
                Diagnostic::error(
                    head(at, word.len()),
                    format!("'{word}' in free-form documentation"),
                )
                .help(
                    "a comment that documents a definition begins with '@name:' in its first line",
                ),
            );
        }
        self.append(line);
    }

    fn entry(&mut self, name: &str, rest: &str, span: Span) {
        if name.is_empty() {
            self.diags.push(
                Diagnostic::error(span, "a name is required between '@' and ':'")
                    .help("write '@name: description'"),
            );
        }
        let feature = matches!(self.place, Place::FeaturesHead | Place::Feature);
        if self.place == Place::Section
            && let Some(section) = self.doc.sections.last()
            && !self.seed()
        {
            let after = match section.tag.as_str() {
                "" => "text that follows the members".to_owned(),
                tag => format!("the '{tag}' section"),
            };
            self.diags.push(
                Diagnostic::error(
                    span,
                    format!("the description of '@{name}' can't follow {after}"),
                )
                .related(section.span, "this comes first")
                .help("descriptions of members come before all sections"),
            );
        }
        let entries = if feature { &mut self.doc.features } else { &mut self.doc.members };
        if !name.is_empty()
            && let Some(first) = self.described.insert((feature, name.to_owned()), span)
        {
            self.diags.push(
                Diagnostic::error(span, format!("'@{name}' is described twice"))
                    .related(first, "first described here"),
            );
        }
        entries.push(DocEntry { name: name.to_owned(), span, text: String::new() });
        self.place = if feature { Place::Feature } else { Place::Member };
        self.begin(rest);
    }

    fn features(&mut self, at: Span) {
        if let Some(first) = self.features_head.replace(at) {
            self.diags.push(
                Diagnostic::error(at, "a second 'Features' section")
                    .related(first, "the first is here"),
            );
        }
        self.place = Place::FeaturesHead;
        self.begin("");
    }

    fn section(&mut self, tag: &str, rest: &str, span: Span) {
        let single = matches!(tag, "Returns" | "Since" | "Errors");
        if single && let Some(first) = self.singles.insert(tag.to_owned(), span) {
            self.diags.push(
                Diagnostic::error(span, format!("a second '{tag}' section"))
                    .related(first, "the first is here"),
            );
        }
        self.doc.sections.push(DocSection { tag: tag.to_owned(), span, text: String::new() });
        self.place = Place::Section;
        self.begin(rest);
    }

    /// An indented line continues what came before.
    fn continuation(&mut self, line: &str) {
        let indent = line.len() - line.trim_start().len();
        self.indent.get_or_insert(indent);
        self.append(line);
    }

    /// A line at the left margin: plain text, or a continuation that lost its indentation.
    fn unindented(&mut self, line: &str, at: Span) {
        let empty = self.current().is_empty();
        match self.place {
            Place::Text | Place::FeaturesHead => self.append(line),
            _ if self.seed() => self.append(line),
            Place::Section if self.indent == Some(0) => self.append(line),
            _ if self.blank > 0 && !(empty && self.place == Place::Section) => {
                self.doc.sections.push(DocSection {
                    tag: String::new(),
                    span: at,
                    text: String::new(),
                });
                self.place = Place::Section;
                self.begin(line);
                self.indent = Some(0);
            }
            _ if empty => {
                self.indent = Some(0);
                self.append(line);
            }
            _ if self.indent == Some(0) => self.append(line),
            _ => {
                self.diags.push(
                    Diagnostic::error(at, "this line is not indented like the text it continues")
                        .help(
                            "indent it by four spaces, or put an empty line before it if it \
                             begins something new",
                        ),
                );
                self.append(line);
            }
        }
    }

    fn begin(&mut self, first: &str) {
        self.blank = 0;
        self.indent = None;
        if !first.is_empty() {
            self.append(first);
        }
    }

    fn current(&mut self) -> &mut String {
        let doc = &mut self.doc;
        let text = match self.place {
            Place::Member => doc.members.last_mut().map(|e| &mut e.text),
            Place::Feature => doc.features.last_mut().map(|e| &mut e.text),
            Place::Section => doc.sections.last_mut().map(|s| &mut s.text),
            Place::Text | Place::FeaturesHead => None,
        };
        text.unwrap_or(&mut doc.text)
    }

    fn append(&mut self, line: &str) {
        let blank = std::mem::take(&mut self.blank);
        let text = self.current();
        if !text.is_empty() {
            text.push('\n');
            if blank > 0 {
                text.push('\n');
            }
        }
        text.push_str(line);
    }

    fn finish(mut self) -> DocComment {
        if let Some(head) = self.features_head
            && self.doc.features.is_empty()
        {
            self.diags.push(
                Diagnostic::error(head, "no feature is described below 'Features:'")
                    .help("describe features as '@name: description', or remove the line"),
            );
        }
        for section in &self.doc.sections {
            if !section.tag.is_empty() && section.text.trim().is_empty() && !self.seed() {
                self.diags.push(
                    Diagnostic::error(
                        section.span,
                        format!("the '{}' section is empty", section.tag),
                    )
                    .help("write something, or remove it"),
                );
            }
        }
        let texts = std::iter::once(&mut self.doc.text)
            .chain(self.doc.members.iter_mut().map(|e| &mut e.text))
            .chain(self.doc.features.iter_mut().map(|e| &mut e.text))
            .chain(self.doc.sections.iter_mut().map(|s| &mut s.text));
        for text in texts {
            dedent(text);
        }
        self.doc
    }
}

/// Removes the indentation that all lines but the first have in common.
fn dedent(text: &mut String) {
    let indent = text
        .lines()
        .skip(1)
        .filter(|l| !l.trim().is_empty())
        .map(|l| l.len() - l.trim_start_matches(' ').len())
        .min()
        .unwrap_or(0);
    if indent == 0 && !text.starts_with(' ') {
        return;
    }
    let lines: Vec<&str> = text
        .lines()
        .enumerate()
        .map(|(i, l)| if i == 0 { l.trim_start() } else { l.get(indent..).unwrap_or("") })
        .collect();
    *text = lines.join("\n");
}

fn head(at: Span, len: usize) -> Span {
    Span { end: (at.start + len as u32).min(at.end), ..at }
}

fn tag_of(word: &str) -> Option<&'static str> {
    let name = word.strip_suffix(':')?;
    let name = name.strip_suffix(':').unwrap_or(name);
    TAGS.into_iter().find(|tag| *tag == name)
}

fn is_heading(line: &str) -> bool {
    let rest = line.trim_start_matches('=');
    rest.len() < line.len() && rest.starts_with(' ')
}

/// `@name` of schema text as `` `name` ``.
pub fn backquote_references(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find('@') {
        let (before, after) = rest.split_at(at);
        out += before;
        let after = &after[1..];
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
        if end == 0 {
            out.push('@');
        } else {
            out.extend(["`", &after[..end], "`"]);
        }
        rest = &after[end..];
    }
    out + rest
}
