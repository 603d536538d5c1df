//! From tokens to values: the JSON-like layer of the language, with a span for everything.
//!
//! A syntax error is reported once; parsing continues at the next top-level item. What was read of
//! the broken item is kept (and marked), so that its name does not look undefined elsewhere.

use std::collections::HashMap;

use crate::diag::{Diagnostic, Diagnostics};
use crate::lexer::{Lexer, Token};
use crate::source::{FileId, Span};

/// Values nested deeper than this are refused: no schema needs it and the parser recurses.
const MAX_DEPTH: usize = 128;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Object(Vec<Entry>),
    List(Vec<Node>),
    Str(String),
    Bool(bool),
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) value: Node,
}

impl Kind {
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Kind::Object(_) => "an object",
            Kind::List(_) => "an array",
            Kind::Str(_) => "a string",
            Kind::Bool(_) => "a boolean",
        }
    }
}

impl Node {
    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.kind {
            Kind::Str(text) => Some(text),
            _ => None,
        }
    }
}

/// One top-level item of a file.
#[derive(Debug)]
pub(crate) enum Item {
    Doc(Span),
    Expr(Expr),
}

#[derive(Debug)]
pub(crate) struct Expr {
    pub(crate) span: Span,
    pub(crate) entries: Vec<Entry>,
    /// There was a syntax error in it: what is here may be incomplete.
    pub(crate) broken: bool,
}

/// The error is already reported; the caller only unwinds.
struct Bail;

struct Parser<'a, 'd> {
    lexer: Lexer<'a>,
    token: Token,
    span: Span,
    diags: &'d mut Diagnostics,
    broken: bool,
}

pub(crate) fn parse(file: FileId, text: &str, diags: &mut Diagnostics) -> Vec<Item> {
    let mut lexer = Lexer::new(file, text);
    let (token, span) = lexer.next(diags);
    let mut parser = Parser { lexer, token, span, diags, broken: false };
    let mut items = Vec::new();
    loop {
        match parser.token {
            Token::Eof => return items,
            Token::Doc => {
                items.push(Item::Doc(parser.span));
                parser.advance();
            }
            Token::OpenBrace => items.push(Item::Expr(parser.top_level())),
            other => {
                parser.diags.push(
                    Diagnostic::error(
                        parser.span,
                        format!("expected '{{' to begin a definition, found {}", other.describe()),
                    )
                    .help("a schema is a sequence of objects such as { 'struct': 'Name', 'data': {} }"),
                );
                parser.recover();
            }
        }
    }
}

impl Parser<'_, '_> {
    fn advance(&mut self) {
        (self.token, self.span) = self.lexer.next(self.diags);
    }

    fn recover(&mut self) {
        self.lexer.skip_to_top_level();
        self.advance();
    }

    fn top_level(&mut self) -> Expr {
        self.broken = false;
        let start = self.span;
        let mut entries = Vec::new();
        let end = self.object(&mut entries, 0);
        let span = match end {
            Ok(end) => start.to(end),
            Err(Bail) => {
                self.broken = true;
                self.recover();
                start
            }
        };
        Expr { span, entries, broken: self.broken }
    }

    /// Parses an object from its `{`; returns the span of its `}`. What was read before an error
    /// is in `entries`.
    fn object(&mut self, entries: &mut Vec<Entry>, depth: usize) -> Result<Span, Bail> {
        let open = self.span;
        self.advance();
        if self.token == Token::CloseBrace {
            return Ok(self.close());
        }
        let mut seen: HashMap<String, Span> = HashMap::new();
        loop {
            if self.token != Token::Str {
                return Err(self.unexpected("a member name in quotes or '}'", open));
            }
            let key_span = self.span;
            let key = self.lexer.string(key_span);
            self.advance();
            if self.token == Token::Colon {
                self.advance();
            } else if matches!(
                self.token,
                Token::Str | Token::OpenBrace | Token::OpenBracket | Token::True | Token::False
            ) {
                self.missing("':'");
            } else {
                return Err(self.unexpected("':'", open));
            }
            let first = seen.get(&key).copied();
            if let Some(first) = first {
                self.diags.push(
                    Diagnostic::error(key_span, format!("duplicate key '{key}'"))
                        .label("given a second time")
                        .related(first, "first given here"),
                );
            } else {
                seen.insert(key.clone(), key_span);
            }
            let value = self.value(open, depth + 1)?;
            if first.is_none() {
                entries.push(Entry { key, key_span, value });
            }
            match self.token {
                Token::CloseBrace => return Ok(self.close()),
                Token::Comma => {
                    let comma = self.span;
                    self.advance();
                    if self.token == Token::CloseBrace {
                        self.trailing_comma(comma, "}");
                        return Ok(self.close());
                    }
                }
                Token::Str => self.missing("',' or '}'"),
                _ => return Err(self.unexpected("',' or '}'", open)),
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Node, Bail> {
        let open = self.span;
        self.advance();
        let mut items = Vec::new();
        if self.token == Token::CloseBracket {
            let end = self.close();
            return Ok(Node { span: open.to(end), kind: Kind::List(items) });
        }
        loop {
            items.push(self.value(open, depth + 1)?);
            match self.token {
                Token::CloseBracket => {
                    let end = self.close();
                    return Ok(Node { span: open.to(end), kind: Kind::List(items) });
                }
                Token::Comma => {
                    let comma = self.span;
                    self.advance();
                    if self.token == Token::CloseBracket {
                        self.trailing_comma(comma, "]");
                        let end = self.close();
                        return Ok(Node { span: open.to(end), kind: Kind::List(items) });
                    }
                }
                Token::Str | Token::OpenBrace => self.missing("',' or ']'"),
                _ => return Err(self.unexpected("',' or ']'", open)),
            }
        }
    }

    fn value(&mut self, open: Span, depth: usize) -> Result<Node, Bail> {
        if depth > MAX_DEPTH {
            self.diags
                .error(self.span, format!("values are nested deeper than {MAX_DEPTH} levels"));
            return Err(Bail);
        }
        let span = self.span;
        let kind = match self.token {
            Token::Str => Kind::Str(self.lexer.string(span)),
            Token::True => Kind::Bool(true),
            Token::False => Kind::Bool(false),
            Token::OpenBracket => return self.list(depth),
            Token::OpenBrace => {
                let mut entries = Vec::new();
                let end = self.object(&mut entries, depth)?;
                return Ok(Node { span: span.to(end), kind: Kind::Object(entries) });
            }
            _ => return Err(self.unexpected("a string, '{', '[', true or false", open)),
        };
        self.advance();
        Ok(Node { span, kind })
    }

    fn close(&mut self) -> Span {
        let span = self.span;
        self.advance();
        span
    }

    fn trailing_comma(&mut self, comma: Span, bracket: &str) {
        self.broken = true;
        self.diags.push(
            Diagnostic::error(comma, format!("nothing follows this ',' but '{bracket}'"))
                .label("remove it")
                .help("the schema language, like JSON, has no trailing commas"),
        );
    }

    /// A token is missing, but what follows shows clearly how to go on.
    fn missing(&mut self, what: &str) {
        self.broken = true;
        self.diags.push(
            Diagnostic::error(
                self.span,
                format!("expected {what}, found {}", self.token.describe()),
            )
            .label(format!("{what} is missing before this")),
        );
    }

    fn unexpected(&mut self, wanted: &str, open: Span) -> Bail {
        let mut diag = Diagnostic::error(
            self.span,
            format!("expected {wanted}, found {}", self.token.describe()),
        );
        if self.token == Token::Eof {
            diag = diag.related(open, "the bracket opened here is not closed");
        }
        self.diags.push(diag);
        Bail
    }
}
