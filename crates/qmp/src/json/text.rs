//! What a token's text means: strings with their escapes, and numbers.
//!
//! UTF-8 is read in its modified form: U+0000 may be written `C0 80`. A code point that can't stand for
//! a character (a surrogate, U+FDD0 to U+FDEF, the last two of each plane, beyond U+10FFFF) is invalid.

use serde_json::Number;

use super::parser::JsonError;

/// Whether the code point may occur in a string.
fn is_valid(code: u32) -> bool {
    !(code > 0x10_FFFF
        || (0xD800..=0xDFFF).contains(&code)
        || (0xFDD0..=0xFDEF).contains(&code)
        || code & 0xFFFE == 0xFFFE)
}

/// Decodes the sequence at the front of `bytes`, which isn't empty: the character, or `None` when it is
/// invalid, and the bytes that it spans.
fn decode(bytes: &[u8]) -> (Option<char>, usize) {
    let lead = bytes[0];
    let (len, low) = match lead {
        0x00..=0x7F => return (Some(char::from(lead)), 1),
        0x80..=0xBF | 0xFE | 0xFF => return (None, 1),
        0xC0..=0xDF => (2, lead & 0x1F),
        0xE0..=0xEF => (3, lead & 0x0F),
        0xF0..=0xF7 => (4, lead & 0x07),
        0xF8..=0xFB => (5, lead & 0x03),
        0xFC..=0xFD => (6, lead & 0x01),
    };
    let tail = bytes[1..].iter().take(len - 1).take_while(|b| **b & 0xC0 == 0x80);
    let mut code = u32::from(low);
    let mut span = 1;
    for byte in tail {
        code = code << 6 | u32::from(byte & 0x3F);
        span += 1;
    }
    // The smallest code point that needs this many bytes.
    let least = [0x80, 0x800, 0x1_0000, 0x20_0000, 0x400_0000][len - 2];
    let overlong = code < least && !(code == 0 && len == 2);
    if span < len || overlong || !is_valid(code) {
        return (None, span);
    }
    (char::from_u32(code), span)
}

/// The bytes as text, with U+FFFD for each invalid sequence. Like the C string that the message comes
/// from in QEMU, it ends at the first NUL.
pub(super) fn lossy(bytes: &[u8]) -> String {
    let mut rest = bytes.split(|b| *b == 0).next().unwrap_or_default();
    let mut out = String::with_capacity(rest.len());
    while !rest.is_empty() {
        let (c, span) = decode(rest);
        out.push(c.unwrap_or('\u{FFFD}'));
        rest = &rest[span..];
    }
    out
}

/// The value of a string token, quotes included.
pub(super) fn string(token: &[u8]) -> Result<String, JsonError> {
    let body = &token[1..token.len() - 1];
    let mut out = String::with_capacity(body.len());
    let mut at = 0;
    while at < body.len() {
        let byte = body[at];
        if byte == b'\\' {
            // One past the body is the closing quote, which takes part in what an error shows.
            at += escape(&token[1 + at..], &mut out)?;
        } else if byte < 0x80 {
            let run = body[at..].iter().take_while(|b| **b < 0x80 && **b != b'\\').count();
            // ASCII by construction.
            out.extend(body[at..at + run].iter().map(|b| char::from(*b)));
            at += run;
        } else {
            let (c, span) = decode(&body[at..]);
            out.push(c.ok_or_else(|| JsonError::new("invalid UTF-8 sequence in string"))?);
            at += span;
        }
    }
    Ok(out)
}

/// Appends what the escape at the front of `rest` stands for; returns its length.
fn escape(rest: &[u8], out: &mut String) -> Result<usize, JsonError> {
    let c = match rest[1] {
        b'"' => '"',
        b'\'' => '\'',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{C}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unicode_escape(rest, out),
        _ => return Err(JsonError::new("invalid escape sequence in string")),
    };
    out.push(c);
    Ok(2)
}

fn unicode_escape(rest: &[u8], out: &mut String) -> Result<usize, JsonError> {
    let refuse = |span: usize| {
        let shown = lossy(&rest[..span.min(rest.len())]);
        Err(JsonError::new(&format!("{shown} is not a valid Unicode character")))
    };
    let Some(first) = hex4(&rest[2..]) else { return refuse(6) };
    let mut code = first;
    let mut span = 6;
    if (0xD800..=0xDBFF).contains(&first)
        && rest[6..].starts_with(b"\\u")
        && let Some(second @ 0xDC00..=0xDFFF) = hex4(&rest[8..])
    {
        code = 0x1_0000 + ((first & 0x3FF) << 10 | (second & 0x3FF));
        span = 12;
    }
    match char::from_u32(code) {
        Some(c) if is_valid(code) => out.push(c),
        _ => return refuse(span),
    }
    Ok(span)
}

fn hex4(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.get(..4)?;
    digits.iter().try_fold(0, |code, b| Some(code << 4 | char::from(*b).to_digit(16)?))
}

/// The value of an integer token: an `i64` if it fits, else a `u64`, else the nearest double.
pub(super) fn integer(token: &[u8]) -> Number {
    let text = str::from_utf8(token).unwrap_or_default();
    if let Ok(signed) = text.parse::<i64>() {
        signed.into()
    } else if let Ok(unsigned) = text.parse::<u64>() {
        unsigned.into()
    } else {
        float(token)
    }
}

/// The value of a number token as a double. One beyond the range of doubles becomes the largest, because
/// JSON can't express infinity and the value may have to be echoed.
pub(super) fn float(token: &[u8]) -> Number {
    let text = str::from_utf8(token).unwrap_or_default();
    let value = text.parse::<f64>().unwrap_or_default().clamp(f64::MIN, f64::MAX);
    Number::from_f64(value).unwrap_or_else(|| 0.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_character_is_refused() {
        for code in [0xD800, 0xDFFF, 0xFDD0, 0xFDEF, 0xFFFE, 0xFFFF, 0x1_FFFE, 0x10_FFFF, 0x11_0000]
        {
            assert!(!is_valid(code), "{code:#x}");
        }
        for code in [0, 0x7F, 0xFFFD, 0xFDCF, 0xFDF0, 0x10_FFFD] {
            assert!(is_valid(code), "{code:#x}");
        }
    }

    #[test]
    fn numbers_keep_as_much_as_they_can() {
        assert_eq!(integer(b"-9223372036854775808").as_i64(), Some(i64::MIN));
        assert_eq!(integer(b"18446744073709551615").as_u64(), Some(u64::MAX));
        assert_eq!(integer(b"18446744073709551616").as_f64(), Some(18446744073709551616.0));
        assert_eq!(integer(b"-9223372036854775809").as_f64(), Some(-9223372036854775808.0));
        assert_eq!(float(b"1e999").as_f64(), Some(f64::MAX));
        assert_eq!(float(b"-1e999").as_f64(), Some(f64::MIN));
    }
}
