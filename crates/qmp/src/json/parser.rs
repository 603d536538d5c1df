//! The incremental parser: bytes in, values and errors out.

use serde_json::Value;

use super::build::Builder;
use super::lexer::{Lexer, Limits, Step, Token};
use super::text;

/// Why the input is no value, in the words that QMP clients know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

impl JsonError {
    /// An error of the grammar.
    pub(super) fn new(what: &str) -> JsonError {
        JsonError(format!("JSON parse error, {what}"))
    }

    fn limit(what: &str) -> JsonError {
        JsonError(format!("JSON {what} limit exceeded"))
    }
}

/// Reads values off a stream of bytes.
///
/// ```
/// let mut parser = qmp::json::Parser::new();
/// let mut input: &[u8] = b"{'execute': 'stop'} [1,";
/// assert_eq!(parser.next(&mut input).unwrap().unwrap()["execute"], "stop");
/// assert!(parser.next(&mut input).is_none()); // the list isn't complete
/// let mut input: &[u8] = b"2]";
/// assert_eq!(parser.next(&mut input).unwrap().unwrap()[1], 2);
/// ```
#[derive(Debug)]
pub struct Parser {
    lexer: Lexer,
    builder: Builder,
    limits: Limits,
    braces: i32,
    brackets: i32,
    tokens: usize,
    token_bytes: usize,
}

impl Default for Parser {
    fn default() -> Self {
        Parser::new()
    }
}

impl Parser {
    /// A parser with the limits of QMP.
    pub fn new() -> Parser {
        Parser::with_limits(Limits::QMP)
    }

    /// A parser with other limits.
    pub fn with_limits(limits: Limits) -> Parser {
        Parser {
            lexer: Lexer::new(limits.token_bytes),
            builder: Builder::default(),
            limits,
            braces: 0,
            brackets: 0,
            tokens: 0,
            token_bytes: 0,
        }
    }

    /// Takes bytes from the front of `input` up to the end of the next value or error. `None`: all input
    /// is consumed and the value isn't complete yet.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Value, JsonError>> {
        while !input.is_empty() {
            let done = match self.lexer.step(input) {
                Step::More => continue,
                Step::Token(token) => self.token(token),
                Step::Stray => {
                    let stray = text::lossy(self.lexer.text());
                    Some(Err(JsonError::new(&format!("stray '{stray}'"))))
                }
                Step::TooLong => Some(Err(JsonError::limit("token size"))),
            };
            self.lexer.clear();
            if done.is_some() {
                self.reset();
                return done;
            }
        }
        None
    }

    fn reset(&mut self) {
        self.builder = Builder::default();
        self.braces = 0;
        self.brackets = 0;
        self.tokens = 0;
        self.token_bytes = 0;
    }

    fn token(&mut self, token: Token) -> Option<Result<Value, JsonError>> {
        match token {
            Token::LeftBrace => self.braces += 1,
            Token::RightBrace => self.braces -= 1,
            Token::LeftBracket => self.brackets += 1,
            Token::RightBracket => self.brackets -= 1,
            _ => {}
        }
        let size = self.lexer.text().len();
        if self.token_bytes + size + 1 > self.limits.token_bytes {
            return Some(Err(JsonError::limit("token size")));
        }
        if self.tokens + 1 > self.limits.tokens {
            return Some(Err(JsonError::limit("token count")));
        }
        if self.braces + self.brackets > self.limits.nesting {
            return Some(Err(JsonError::limit("nesting depth")));
        }
        self.token_bytes += size;
        self.tokens += 1;
        self.builder.token(token, self.lexer.text());
        let open = self.braces > 0 || self.brackets > 0;
        if open && self.braces >= 0 && self.brackets >= 0 {
            return None;
        }
        Some(self.builder.finish())
    }
}
