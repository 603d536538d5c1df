//! Tokens to values, without recursion.
//!
//! The grammar runs on an explicit stack of open lists and objects, so that depth costs heap and never
//! the thread's stack. The first error sticks; the parser drops what follows up to the token that
//! balances the brackets.

use serde_json::{Map, Value};

use super::lexer::Token;
use super::parser::JsonError;
use super::text;

/// What may come next in an open list or object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// The first element or key, or the end.
    First,
    /// An element or key: there was a comma.
    Item,
    /// The colon behind a key.
    Colon,
    /// A member's value.
    Member,
    /// A comma or the end.
    Separator,
}

#[derive(Debug)]
enum Open {
    List(Vec<Value>),
    Object { members: Map<String, Value>, key: String },
}

#[derive(Debug)]
struct Frame {
    open: Open,
    expect: Expect,
}

/// Builds one value.
#[derive(Debug, Default)]
pub(super) struct Builder {
    stack: Vec<Frame>,
    done: Option<Value>,
    failed: Option<JsonError>,
}

impl Builder {
    /// Takes the next token.
    pub(super) fn token(&mut self, token: Token, bytes: &[u8]) {
        if self.failed.is_none()
            && let Err(error) = self.accept(token, bytes)
        {
            self.stack.clear();
            self.failed = Some(error);
        }
    }

    /// The value that the tokens made, or their first error.
    pub(super) fn finish(&mut self) -> Result<Value, JsonError> {
        let Builder { stack, done, failed } = std::mem::take(self);
        match (failed, done) {
            (None, Some(value)) if stack.is_empty() => Ok(value),
            (failed, _) => Err(failed.unwrap_or_else(|| JsonError::new("expecting value"))),
        }
    }

    fn accept(&mut self, token: Token, bytes: &[u8]) -> Result<(), JsonError> {
        let Some(frame) = self.stack.last_mut() else { return self.value(token, bytes) };
        let list = matches!(frame.open, Open::List(_));
        match (frame.expect, token) {
            (Expect::First | Expect::Separator, Token::RightBracket) if list => self.close(),
            (Expect::First | Expect::Separator, Token::RightBrace) if !list => self.close(),
            (Expect::Separator, Token::Comma) => {
                frame.expect = Expect::Item;
                Ok(())
            }
            (Expect::Separator, _) if list => Err(JsonError::new("expected separator in list")),
            (Expect::Separator, _) => Err(JsonError::new("expected separator in dict")),
            (Expect::Colon, Token::Colon) => {
                frame.expect = Expect::Member;
                Ok(())
            }
            (Expect::Colon, _) => Err(JsonError::new("missing : in object pair")),
            (Expect::First | Expect::Item | Expect::Member, _) => self.value(token, bytes),
        }
    }

    /// A token at a place where a value starts.
    fn value(&mut self, token: Token, bytes: &[u8]) -> Result<(), JsonError> {
        let value = match token {
            Token::LeftBrace => {
                let open = Open::Object { members: Map::new(), key: String::new() };
                self.stack.push(Frame { open, expect: Expect::First });
                return Ok(());
            }
            Token::LeftBracket => {
                self.stack.push(Frame { open: Open::List(Vec::new()), expect: Expect::First });
                return Ok(());
            }
            Token::String => Value::String(text::string(bytes)?),
            Token::Integer => Value::Number(text::integer(bytes)),
            Token::Float => Value::Number(text::float(bytes)),
            Token::Keyword => match bytes {
                b"true" => Value::Bool(true),
                b"false" => Value::Bool(false),
                b"null" => Value::Null,
                _ => {
                    let word = text::lossy(bytes);
                    return Err(JsonError::new(&format!("invalid keyword '{word}'")));
                }
            },
            Token::RightBrace | Token::RightBracket | Token::Colon | Token::Comma => {
                return Err(JsonError::new("expecting value"));
            }
        };
        self.put(value)
    }

    fn close(&mut self) -> Result<(), JsonError> {
        match self.stack.pop().map(|frame| frame.open) {
            Some(Open::List(items)) => self.put(Value::Array(items)),
            Some(Open::Object { members, .. }) => self.put(Value::Object(members)),
            None => Ok(()),
        }
    }

    /// Puts a complete value where it belongs.
    fn put(&mut self, value: Value) -> Result<(), JsonError> {
        let Some(frame) = self.stack.last_mut() else {
            self.done = Some(value);
            return Ok(());
        };
        match (&mut frame.open, frame.expect) {
            (Open::List(items), _) => {
                items.push(value);
                frame.expect = Expect::Separator;
            }
            (Open::Object { members, key }, Expect::Member) => {
                if members.contains_key(key) {
                    return Err(JsonError::new("duplicate key"));
                }
                members.insert(std::mem::take(key), value);
                frame.expect = Expect::Separator;
            }
            (Open::Object { key, .. }, _) => {
                let Value::String(name) = value else {
                    return Err(JsonError::new("key is not a string in object"));
                };
                *key = name;
                frame.expect = Expect::Colon;
            }
        }
        Ok(())
    }
}
