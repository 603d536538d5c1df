//! Values to bytes, as QMP clients read them.
//!
//! Everything but printable ASCII is escaped, so that the output is independent of the reader's idea of
//! an encoding. Doubles carry 17 significant digits, enough to read the same double back.

use std::io::Write;

use serde_json::{Number, Value};

/// Appends `value` on one line, with `": "` and `", "` between its parts.
pub fn write_compact(value: &Value, out: &mut Vec<u8>) {
    Writer { out, pretty: false }.value(value, 0);
}

/// Appends `value` spread over lines that end in `\r\n`, four blanks a level.
pub fn write_pretty(value: &Value, out: &mut Vec<u8>) {
    Writer { out, pretty: true }.value(value, 0);
}

/// Appends `text` as a JSON string.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut from = 0;
    while from < bytes.len() {
        let plain = bytes[from..].iter().take_while(|b| is_plain(**b)).count();
        out.extend_from_slice(&bytes[from..from + plain]);
        from += plain;
        // An escaped character starts here: all of them are at least one ASCII byte or a whole sequence.
        let Some(c) = text[from..].chars().next() else { break };
        escape(c, out);
        from += c.len_utf8();
    }
    out.push(b'"');
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7E) && byte != b'"' && byte != b'\\'
}

fn escape(c: char, out: &mut Vec<u8>) {
    let short = match c {
        '"' => b'"',
        '\\' => b'\\',
        '\u{8}' => b'b',
        '\u{C}' => b'f',
        '\n' => b'n',
        '\r' => b'r',
        '\t' => b't',
        _ => {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let digit = |shift: u32| DIGITS[usize::from(*unit >> shift & 0xF)];
                out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
            }
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    pretty: bool,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Null => self.out.extend_from_slice(b"null"),
            Value::Bool(true) => self.out.extend_from_slice(b"true"),
            Value::Bool(false) => self.out.extend_from_slice(b"false"),
            Value::Number(number) => write_number(number, self.out),
            Value::String(text) => write_string(text, self.out),
            Value::Array(items) => {
                self.out.push(b'[');
                for (i, item) in items.iter().enumerate() {
                    self.separate(i, depth + 1);
                    self.value(item, depth + 1);
                }
                self.line(depth);
                self.out.push(b']');
            }
            Value::Object(members) => {
                self.out.push(b'{');
                for (i, (name, member)) in members.iter().enumerate() {
                    self.separate(i, depth + 1);
                    write_string(name, self.out);
                    self.out.extend_from_slice(b": ");
                    self.value(member, depth + 1);
                }
                self.line(depth);
                self.out.push(b'}');
            }
        }
    }

    /// Before the item of this index.
    fn separate(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.out.extend_from_slice(if self.pretty { b"," } else { b", " });
        }
        self.line(depth);
    }

    fn line(&mut self, depth: usize) {
        if self.pretty {
            self.out.extend_from_slice(b"\r\n");
            self.out.resize(self.out.len() + 4 * depth, b' ');
        }
    }
}

fn write_number(number: &Number, out: &mut Vec<u8>) {
    // Writing to a Vec can't fail.
    let _ = match number.as_f64().filter(|_| number.is_f64()) {
        None => write!(out, "{number}"),
        Some(value) => out.write_all(general(value).as_bytes()),
    };
}

/// The double with 17 significant digits, as C's `%.17g` prints it.
fn general(value: f64) -> String {
    const DIGITS: i32 = 17;
    let scientific = format!("{value:.16e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..DIGITS).contains(&exponent) {
        let decimals = usize::try_from(DIGITS - 1 - exponent).unwrap_or(0);
        return trim(&format!("{value:.decimals$}")).to_owned();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", trim(mantissa), exponent.abs())
}

/// Without the zeros behind the point that say nothing.
fn trim(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compact(value: &Value) -> String {
        let mut out = Vec::new();
        write_compact(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn separators_and_escapes() {
        let value = json!({"a": [1, -2, true, null], "b\u{e9}": "\u{1F600}\u{7f}\u{1}\n\"\\/'"});
        assert_eq!(
            compact(&value),
            r#"{"a": [1, -2, true, null], "b\u00E9": "\uD83D\uDE00\u007F\u0001\n\"\\/'"}"#
        );
        assert_eq!(compact(&json!([{}, []])), "[{}, []]");
    }

    #[test]
    fn doubles_as_c_prints_them() {
        for (value, text) in [
            (1.5, "1.5"),
            (0.1, "0.10000000000000001"),
            (1e300, "1.0000000000000001e+300"),
            (1e-7, "9.9999999999999995e-08"),
            (-0.0, "-0"),
            (100.0, "100"),
            (1e16, "10000000000000000"),
            (1e17, "1e+17"),
            (0.0001, "0.0001"),
            (123456789012345678901234567890.0, "1.2345678901234568e+29"),
        ] {
            assert_eq!(compact(&json!(value)), text);
        }
    }

    #[test]
    fn pretty_form() {
        let mut out = Vec::new();
        write_pretty(&json!({"id": [{}, [1, 2]], "x": "y"}), &mut out);
        let lines: Vec<_> = str::from_utf8(&out).unwrap().split("\r\n").collect();
        assert_eq!(
            lines,
            [
                "{",
                "    \"id\": [",
                "        {",
                "        },",
                "        [",
                "            1,",
                "            2",
                "        ]",
                "    ],",
                "    \"x\": \"y\"",
                "}"
            ]
        );
    }
}
