//! Tokens of the schema language: JSON with single-quoted strings, `#` comments and no numbers.
//!
//! Ordinary comments are skipped; a documentation block, from a line `##` to the next line `##`,
//! is one token.

use memchr::memchr;

use crate::diag::{Diagnostic, Diagnostics};
use crate::source::{FileId, Span};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    OpenBrace,
    CloseBrace,
    OpenBracket,
    CloseBracket,
    Colon,
    Comma,
    /// The span includes the quotes; [`Lexer::string`] gives the value.
    Str,
    True,
    False,
    /// A documentation block, with its two `##` lines.
    Doc,
    Eof,
}

impl Token {
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Token::OpenBrace => "'{'",
            Token::CloseBrace => "'}'",
            Token::OpenBracket => "'['",
            Token::CloseBracket => "']'",
            Token::Colon => "':'",
            Token::Comma => "','",
            Token::Str => "a string",
            Token::True => "true",
            Token::False => "false",
            Token::Doc => "a documentation comment",
            Token::Eof => "the end of the file",
        }
    }
}

pub(crate) struct Lexer<'a> {
    text: &'a str,
    file: FileId,
    pos: usize,
    /// Strings with escapes are decoded here; a string without borrows the text.
    decoded: Option<String>,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(file: FileId, text: &'a str) -> Self {
        Lexer { text, file, pos: 0, decoded: None }
    }

    pub(crate) fn span(&self, start: usize, end: usize) -> Span {
        Span::new(self.file, start..end)
    }

    /// The value of the string token that [`Self::next`] returned last, at `span`.
    pub(crate) fn string(&mut self, span: Span) -> String {
        match self.decoded.take() {
            Some(text) => text,
            None => self.text[span.start as usize + 1..span.end as usize - 1].to_owned(),
        }
    }

    /// Continues at the next line that begins a new top-level item: one with `{` or `##` in its
    /// first column. Used to recover from a syntax error.
    pub(crate) fn skip_to_top_level(&mut self) {
        while let Some(newline) = self.text[self.pos..].find('\n') {
            self.pos += newline + 1;
            let rest = &self.text[self.pos..];
            if rest.starts_with('{') || rest.starts_with("##") {
                return;
            }
        }
        self.pos = self.text.len();
    }

    /// The next token; lexical errors are reported and skipped.
    pub(crate) fn next(&mut self, diags: &mut Diagnostics) -> (Token, Span) {
        let bytes = self.text.as_bytes();
        loop {
            let start = self.pos;
            let Some(&byte) = bytes.get(start) else {
                return (Token::Eof, self.span(start, start));
            };
            self.pos += 1;
            let token = match byte {
                b' ' | b'\t' | b'\n' | b'\r' => continue,
                b'{' => Token::OpenBrace,
                b'}' => Token::CloseBrace,
                b'[' => Token::OpenBracket,
                b']' => Token::CloseBracket,
                b':' => Token::Colon,
                b',' => Token::Comma,
                b'\'' => match self.lex_string(start, diags) {
                    Some(token) => token,
                    None => continue,
                },
                b'"' => match self.lex_double_quoted(start, diags) {
                    Some(token) => token,
                    None => continue,
                },
                b'#' => match self.lex_comment(start, diags) {
                    Some(token) => token,
                    None => continue,
                },
                _ => match self.lex_word(start, diags) {
                    Some(token) => token,
                    None => continue,
                },
            };
            return (token, self.span(start, self.pos));
        }
    }

    fn line_end(&self, from: usize) -> usize {
        memchr(b'\n', &self.text.as_bytes()[from..]).map_or(self.text.len(), |i| from + i)
    }

    fn lex_string(&mut self, start: usize, diags: &mut Diagnostics) -> Option<Token> {
        self.decoded = None;
        let bytes = self.text.as_bytes();
        let mut decoded: Option<String> = None;
        loop {
            let at = self.pos;
            match bytes.get(at) {
                None | Some(b'\n') => {
                    diags.push(
                        Diagnostic::error(self.span(start, at), "this string has no end")
                            .label("add the closing '"),
                    );
                    self.decoded = Some(self.text[start + 1..at].to_owned());
                    return Some(Token::Str);
                }
                Some(b'\'') => {
                    self.pos += 1;
                    self.decoded = decoded;
                    return Some(Token::Str);
                }
                Some(b'\\') => {
                    let text = decoded.get_or_insert_with(|| self.text[start + 1..at].to_owned());
                    match bytes.get(at + 1) {
                        Some(b'\\') => {
                            text.push('\\');
                            self.pos += 2;
                        }
                        _ => {
                            let end = (at + 1..=self.text.len())
                                .find(|i| *i > at + 1 && self.text.is_char_boundary(*i))
                                .unwrap_or(self.text.len());
                            diags.push(
                                Diagnostic::error(self.span(at, end), "unknown escape sequence")
                                    .help("the only escape sequence in a schema is '\\\\'"),
                            );
                            self.pos += 1;
                        }
                    }
                }
                Some(b' '..=b'~') => {
                    if let Some(text) = &mut decoded {
                        text.push(char::from(bytes[at]));
                    }
                    self.pos += 1;
                }
                Some(_) => {
                    let c = self.text[at..].chars().next().unwrap_or('\u{fffd}');
                    diags.push(
                        Diagnostic::error(
                            self.span(at, at + c.len_utf8()),
                            format!("character {c:?} is not allowed in a string"),
                        )
                        .help("strings in a schema are printable ASCII"),
                    );
                    decoded.get_or_insert_with(|| self.text[start + 1..at].to_owned());
                    self.pos += c.len_utf8();
                }
            }
        }
    }

    /// A string in the wrong quotes is reported and then taken as meant.
    fn lex_double_quoted(&mut self, start: usize, diags: &mut Diagnostics) -> Option<Token> {
        let rest = &self.text[start + 1..self.line_end(start)];
        let Some(len) = rest.find('"') else {
            diags.push(
                Diagnostic::error(self.span(start, start + 1), "stray '\"'")
                    .help("strings in a schema are in single quotes"),
            );
            return None;
        };
        self.pos = start + len + 2;
        self.decoded = None;
        diags.push(
            Diagnostic::error(self.span(start, self.pos), "a string in double quotes").help(
                format!("write '{}': the schema language has single quotes", shorten(&rest[..len])),
            ),
        );
        Some(Token::Str)
    }

    /// Skips an ordinary comment; a documentation block is a token.
    fn lex_comment(&mut self, start: usize, diags: &mut Diagnostics) -> Option<Token> {
        let end = self.line_end(start);
        let line = self.text[start..end].trim_end_matches('\r');
        self.pos = end;
        if !line.starts_with("##") {
            return None;
        }
        if line != "##" {
            diags.push(
                Diagnostic::error(
                    self.span(start + 2, start + line.len()),
                    "unexpected text behind '##' at the start of a documentation comment",
                )
                .help("a documentation comment starts and ends with a line that is just '##'"),
            );
        }
        loop {
            let line_start = (self.pos + 1).min(self.text.len());
            let rest = &self.text.as_bytes()[line_start..];
            // Empty lines may be in between.
            let indent = rest.iter().take_while(|b| b.is_ascii_whitespace()).count();
            if rest.get(indent) != Some(&b'#') {
                diags.push(
                    Diagnostic::error(
                        self.span(start, start + 2),
                        "this documentation comment has no end",
                    )
                    .label("starts here")
                    .help("end it with a line that is just '##'"),
                );
                return Some(Token::Doc);
            }
            let hash = line_start + indent;
            let end = self.line_end(hash);
            let line = self.text[hash..end].trim_end_matches('\r');
            self.pos = end;
            if line.starts_with("##") {
                if line != "##" {
                    diags.push(
                        Diagnostic::error(
                            self.span(hash + 2, hash + line.len()),
                            "unexpected text behind '##' at the end of a documentation comment",
                        )
                        .help("start the line with '# ' if it belongs to the text"),
                    );
                }
                return Some(Token::Doc);
            }
        }
    }

    fn lex_word(&mut self, start: usize, diags: &mut Diagnostics) -> Option<Token> {
        let rest = &self.text[start..];
        let c = rest.chars().next().unwrap_or('\u{fffd}');
        let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        let len = match rest.find(|c: char| !is_word(c)) {
            Some(0) => c.len_utf8(),
            Some(len) => len,
            None => rest.len(),
        };
        self.pos = start + len;
        let span = self.span(start, self.pos);
        match &rest[..len] {
            "true" => return Some(Token::True),
            "false" => return Some(Token::False),
            word if is_word(c) => {
                let help = if word == "null" {
                    "a schema has no null; leave the member out, or write 'null' for the type"
                } else {
                    "names are in single quotes; the only bare words are true and false"
                };
                let message = format!("stray '{}'", shorten(word));
                diags.push(Diagnostic::error(span, message).help(help));
                // Most likely the quotes were forgotten.
                self.decoded = Some(word.to_owned());
                return Some(Token::Str);
            }
            _ => diags.push(
                Diagnostic::error(span, format!("stray {c:?}"))
                    .label("not part of the schema language"),
            ),
        }
        None
    }
}

/// A quotation in a message, kept short.
pub(crate) fn shorten(text: &str) -> String {
    const MAX: usize = 60;
    match text.char_indices().nth(MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
