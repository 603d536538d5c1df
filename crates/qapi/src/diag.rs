//! Diagnostics: what is wrong, where, and what would be right.
//!
//! A [`Diagnostic`] is plain data; [`Diagnostic::render`] draws it with the source underlined.

use std::fmt::Write as _;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use crate::source::{Sources, Span};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The schema is rejected.
    Error,
    /// The schema is accepted, but this is likely a mistake.
    Warning,
}

/// One finding about a schema.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// Whether it makes the schema invalid.
    pub severity: Severity,
    /// The place it is about; none when a file could not be read at all.
    pub span: Option<Span>,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// A few words beside the underlined source.
    pub label: String,
    /// What would be right.
    pub help: Option<String>,
    /// Other places that matter.
    pub related: Vec<(Span, String)>,
}

impl Diagnostic {
    pub(crate) fn error(span: Span, message: impl Into<String>) -> Self {
        Diagnostic {
            severity: Severity::Error,
            span: Some(span),
            message: message.into(),
            label: String::new(),
            help: None,
            related: Vec::new(),
        }
    }

    pub(crate) fn warning(span: Span, message: impl Into<String>) -> Self {
        Diagnostic { severity: Severity::Warning, ..Self::error(span, message) }
    }

    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn related(mut self, span: Span, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }

    /// Draws the diagnostic, with ANSI colours if `colour`.
    pub fn render(&self, sources: &Sources, colour: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(self.message.as_str());
        let Some(span) = self.span else {
            let mut text = format!("{}: {}", self.severity.word(), self.message);
            if let Some(help) = &self.help {
                let _ = write!(text, "\n  = help: {help}");
            }
            return text;
        };
        let mut group: Group<'_> =
            title.element(excerpt(sources, span, &self.label, AnnotationKind::Primary));
        for (span, label) in &self.related {
            group = group.element(excerpt(sources, *span, label, AnnotationKind::Context));
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }

    /// One line, `file:line:column: error: message`, as editors parse it.
    pub fn render_short(&self, sources: &Sources) -> String {
        let word = self.severity.word();
        match self.span {
            Some(span) => {
                let at = sources.position(span);
                let file = &sources.file(span.file).name;
                format!("{file}:{}:{}: {word}: {}", at.line, at.column, self.message)
            }
            None => format!("{word}: {}", self.message),
        }
    }
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// The longest excerpt shown, in bytes; a schema of one endless line must not flood the terminal.
const MAX_EXCERPT: usize = 4096;

fn excerpt<'a>(
    sources: &'a Sources,
    span: Span,
    label: &'a str,
    kind: AnnotationKind,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let file = sources.file(span.file);
    let (lines, marked) = window(&file.text, span.range());
    let line = file.text[..lines.start].bytes().filter(|b| *b == b'\n').count() + 1;
    let mut mark = kind.span(marked);
    if !label.is_empty() {
        mark = mark.label(label);
    }
    Snippet::source(&file.text[lines]).line_start(line).path(file.name.as_str()).annotation(mark)
}

/// The whole lines around `range` and the range within them; only the first line of a range over
/// several is marked, because the beginning is what identifies it.
fn window(text: &str, range: Range<usize>) -> (Range<usize>, Range<usize>) {
    let line_end = |from: usize| text[from..].find('\n').map_or(text.len(), |i| from + i);
    let mut start = text[..range.start].rfind('\n').map_or(0, |i| i + 1);
    let first_end = line_end(range.start);
    let mut marked = range.start..range.end.min(first_end).max(range.start);
    let mut end = first_end;
    if end - start > MAX_EXCERPT {
        start = text.floor_char_boundary(start.max(range.start.saturating_sub(MAX_EXCERPT / 2)));
        end = text.floor_char_boundary(end.min(range.start + MAX_EXCERPT / 2));
        marked.end = marked.end.min(end).max(marked.start);
    }
    (start..end, marked.start - start..marked.end - start)
}

/// Collects diagnostics while a schema is read.
#[derive(Debug, Default)]
pub(crate) struct Diagnostics {
    pub(crate) list: Vec<Diagnostic>,
    dropped: usize,
}

/// More than this many findings help nobody and would let a hostile input exhaust memory.
const MAX_DIAGNOSTICS: usize = 1000;

impl Diagnostics {
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        if self.list.len() < MAX_DIAGNOSTICS {
            self.list.push(diagnostic);
        } else {
            self.dropped += 1;
        }
    }

    pub(crate) fn error(&mut self, span: Span, message: impl Into<String>) {
        self.push(Diagnostic::error(span, message));
    }

    /// Sorted by place, so that people read them from top to bottom.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        self.list.sort_by_key(|d| d.span.map(|s| (s.file, s.start)));
        if self.dropped > 0 {
            self.list.push(Diagnostic {
                severity: Severity::Error,
                span: None,
                message: format!("{} more findings are not shown", self.dropped),
                label: String::new(),
                help: None,
                related: Vec::new(),
            });
        }
        self.list
    }
}
