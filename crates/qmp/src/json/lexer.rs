//! Bytes to tokens.
//!
//! A deterministic automaton of one byte of look-ahead. It decides only where a token ends and which
//! kind it is; what a token's text means (escapes, UTF-8, numbers) is decided when a value is made of
//! it, because a token that is never used is never examined.

/// What the parser refuses to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all tokens of one value together, and of one token alone.
    pub token_bytes: usize,
    /// Tokens of one value.
    pub tokens: usize,
    /// Open brackets and braces.
    pub nesting: i32,
}

impl Limits {
    /// The limits of a QMP monitor.
    pub const QMP: Limits = Limits { token_bytes: 64 << 20, tokens: 2 << 20, nesting: 1 << 10 };
}

/// The kind of a complete token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    LeftBrace,
    RightBrace,
    LeftBracket,
    RightBracket,
    Colon,
    Comma,
    Integer,
    Float,
    Keyword,
    String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    /// After a bad byte, until one from which it may go on.
    Recovery,
    /// In a string that ends with this quote.
    String(u8),
    /// After the backslash in such a string.
    Escape(u8),
    Keyword,
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

/// What became of the bytes read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All input is consumed, or the rest begins something new: call again.
    More,
    /// A token is complete; its text is in [`Lexer::text`] until [`Lexer::clear`].
    Token(Token),
    /// The text up to here starts no token.
    Stray,
    /// A single token outgrew the limit.
    TooLong,
}

#[derive(Debug)]
pub(super) struct Lexer {
    state: State,
    text: Vec<u8>,
    max: usize,
}

/// Larger buffers than this are given back when the token is done.
const KEEP_CAPACITY: usize = 64 << 10;

impl Lexer {
    pub(super) fn new(max: usize) -> Lexer {
        Lexer { state: State::Start, text: Vec::new(), max }
    }

    /// The bytes of the token just reported, or of the one being read.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Forgets the token's text.
    pub(super) fn clear(&mut self) {
        if self.text.capacity() > KEEP_CAPACITY {
            self.text = Vec::new();
        } else {
            self.text.clear();
        }
    }

    /// Reads on from the front of `input`, at most to the end of a token.
    pub(super) fn step(&mut self, input: &mut &[u8]) -> Step {
        match self.state {
            State::Start => {
                let blanks = input.iter().take_while(|b| is_blank(**b)).count();
                *input = &input[blanks..];
            }
            State::Recovery => {
                let skipped = input.iter().take_while(|b| !is_resync(**b)).count();
                *input = &input[skipped..];
                if !input.is_empty() {
                    self.state = State::Start;
                }
                return Step::More;
            }
            State::String(quote) => {
                // Plain text in one go; one byte beyond the limit is enough to notice it.
                let room = (self.max + 1).saturating_sub(self.text.len()).min(input.len());
                let plain = input[..room].iter().take_while(|b| is_plain(**b, quote)).count();
                self.text.extend_from_slice(&input[..plain]);
                *input = &input[plain..];
                if self.text.len() > self.max {
                    return self.too_long();
                }
            }
            _ => {}
        }
        let Some((&byte, rest)) = input.split_first() else { return Step::More };
        match self.next(byte) {
            Next::Go(state) => {
                self.text.push(byte);
                *input = rest;
                self.state = state;
                if self.text.len() > self.max { self.too_long() } else { Step::More }
            }
            Next::Last(token) => {
                self.text.push(byte);
                *input = rest;
                self.state = State::Start;
                Step::Token(token)
            }
            Next::Before(token) => {
                self.state = State::Start;
                Step::Token(token)
            }
            Next::Bad => {
                self.text.push(byte);
                *input = rest;
                self.state = State::Recovery;
                Step::Stray
            }
        }
    }

    fn too_long(&mut self) -> Step {
        self.state = State::Start;
        Step::TooLong
    }

    fn next(&self, byte: u8) -> Next {
        use Next::{Bad, Before, Go, Last};
        match (self.state, byte) {
            (State::Start, b'{') => Last(Token::LeftBrace),
            (State::Start, b'}') => Last(Token::RightBrace),
            (State::Start, b'[') => Last(Token::LeftBracket),
            (State::Start, b']') => Last(Token::RightBracket),
            (State::Start, b':') => Last(Token::Colon),
            (State::Start, b',') => Last(Token::Comma),
            (State::Start, b'"' | b'\'') => Go(State::String(byte)),
            (State::Start, b'a'..=b'z') => Go(State::Keyword),
            (State::Start, b'-') => Go(State::Minus),
            (State::Start | State::Minus, b'0') => Go(State::Zero),
            (State::Start | State::Minus, b'1'..=b'9') => Go(State::Digits),

            (State::String(quote), _) if byte == quote => Last(Token::String),
            (State::String(quote), b'\\') => Go(State::Escape(quote)),
            (State::String(quote) | State::Escape(quote), 0x20..=0xFD) => Go(State::String(quote)),

            (State::Keyword, b'a'..=b'z') => Go(State::Keyword),
            (State::Keyword, _) => Before(Token::Keyword),

            (State::Zero, b'0'..=b'9') => Bad,
            (State::Zero | State::Digits, b'.') => Go(State::Point),
            (State::Digits, b'0'..=b'9') => Go(State::Digits),
            (State::Digits | State::Fraction, b'e' | b'E') => Go(State::Exponent),
            (State::Zero | State::Digits, _) => Before(Token::Integer),
            (State::Point | State::Fraction, b'0'..=b'9') => Go(State::Fraction),
            (State::Fraction, _) => Before(Token::Float),
            (State::Exponent, b'+' | b'-') => Go(State::ExponentSign),
            (State::Exponent | State::ExponentSign | State::ExponentDigits, b'0'..=b'9') => {
                Go(State::ExponentDigits)
            }
            (State::ExponentDigits, _) => Before(Token::Float),

            (
                State::Start
                | State::Recovery
                | State::String(_)
                | State::Escape(_)
                | State::Minus
                | State::Point
                | State::Exponent
                | State::ExponentSign,
                _,
            ) => Bad,
        }
    }
}

enum Next {
    /// The byte belongs to the token, which goes on.
    Go(State),
    /// The byte is the token's last.
    Last(Token),
    /// The token ended before this byte.
    Before(Token),
    /// No token goes on with this byte.
    Bad,
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn is_plain(byte: u8, quote: u8) -> bool {
    (0x20..=0xFD).contains(&byte) && byte != quote && byte != b'\\'
}

fn is_resync(byte: u8) -> bool {
    match byte {
        b'\t' => false,
        0..=0x1F | 0xFE | 0xFF | b'{' | b'}' | b'[' | b']' | b':' | b',' => true,
        _ => false,
    }
}
