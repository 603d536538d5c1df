//! The `key=value,key=value` syntax of option values.
//!
//! - Parts are separated by commas; a doubled comma stands for one comma inside a value.
//! - The first part may leave out its key, if the option has an implied one.
//! - A part without `=` is a flag: `name` means `name=on`, `noname` means `name=off`. QEMU calls both
//!   deprecated and scripts use them.
//! - A value that begins with `{` is a JSON object instead.
//!
//! [`Properties`] keeps the order and remembers which keys were asked for, so that what nobody asked
//! for can be refused by name.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::error::OptionError;

/// An option's value, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties {
    /// The option, for messages: `-drive`.
    option: String,
    values: Map<String, Value>,
    /// The parts of a text in their order, for keys that may come more than once.
    parts: Vec<(String, String)>,
    known: BTreeSet<&'static str>,
}

impl Properties {
    /// Takes `text` apart; `implied` is the key of a first part without one.
    ///
    /// # Errors
    /// If the syntax is wrong or a JSON object does not parse.
    pub fn parse(option: &str, text: &str, implied: Option<&str>) -> Result<Self, OptionError> {
        if text.trim_start().starts_with('{') {
            return match serde_json::from_str(text) {
                Ok(Value::Object(values)) => Ok(Self::from_map(option, values)),
                Ok(_) => Err(OptionError::value(option, text, "a JSON object is expected")),
                Err(e) => Err(OptionError::value(option, text, &format!("bad JSON: {e}"))),
            };
        }
        let parts = split(option, text, implied)?;
        // The last one wins, as in QEMU.
        let values =
            parts.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
        Ok(Self { parts, ..Self::from_map(option, values) })
    }

    /// Properties that were taken apart already.
    pub fn from_map(option: &str, values: Map<String, Value>) -> Self {
        Self { option: option.to_owned(), values, parts: Vec::new(), known: BTreeSet::new() }
    }

    /// The option's name, for messages.
    pub fn option(&self) -> &str {
        &self.option
    }

    /// Takes the value of `key` out, as text: JSON numbers and booleans as QEMU writes them.
    pub fn take(&mut self, key: &'static str) -> Option<String> {
        self.take_value(key).map(|value| match value {
            Value::String(text) => text,
            Value::Bool(true) => "on".to_owned(),
            Value::Bool(false) => "off".to_owned(),
            other => other.to_string(),
        })
    }

    /// Takes the value of `key` out as it is.
    pub fn take_value(&mut self, key: &'static str) -> Option<Value> {
        self.known.insert(key);
        self.values.shift_remove(key)
    }

    /// Takes out all values of `keys`, in the order in which a text has them, each with its key.
    pub fn take_all(&mut self, keys: &[&'static str]) -> Vec<(&'static str, String)> {
        let given = |key: &str| self.parts.iter().any(|(other, _)| other == key);
        let single: Vec<_> = keys.iter().copied().filter(|key| !given(key)).collect();
        let parts = self.parts.iter().filter_map(|(key, value)| {
            let key = keys.iter().find(|known| *known == key)?;
            Some((*key, value.clone()))
        });
        let mut all: Vec<_> = parts.collect();
        for key in single {
            all.extend(self.take(key).map(|value| (key, value)));
        }
        keys.iter().for_each(|key| drop(self.take_value(key)));
        all
    }

    /// Takes the value of `key` out; it must be there.
    ///
    /// # Errors
    /// If it isn't.
    pub fn require(&mut self, key: &'static str) -> Result<String, OptionError> {
        self.take(key).ok_or_else(|| self.missing(key))
    }

    /// Says that `key` must be there.
    pub fn missing(&self, key: &str) -> OptionError {
        OptionError::new(format!("{}: parameter '{key}' is missing", self.option))
    }

    /// Takes the id of an object out.
    ///
    /// # Errors
    /// If it is no identifier: letters, digits, `-`, `.`, `_`, a letter first.
    pub fn take_id(&mut self, key: &'static str) -> Result<Option<String>, OptionError> {
        let Some(id) = self.take(key) else { return Ok(None) };
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if id.starts_with(|c: char| c.is_ascii_alphabetic()) && id.chars().all(inner) {
            return Ok(Some(id));
        }
        Err(OptionError::new(format!(
            "{}: Parameter '{key}' expects an identifier, not '{id}': letters, digits, '-', '.' and \
             '_', a letter first",
            self.option
        )))
    }

    /// Takes a boolean out.
    ///
    /// # Errors
    /// If the value is neither `on` nor `off` (nor `yes`, `no`, `true`, `false`, `y`, `n`).
    pub fn take_bool(&mut self, key: &'static str) -> Result<Option<bool>, OptionError> {
        self.take(key).map(|text| parse_bool(&self.option, key, &text)).transpose()
    }

    /// Takes a whole number out, decimal or with `0x`.
    ///
    /// # Errors
    /// If it is no number or does not fit.
    pub fn take_number<T: TryFrom<u64>>(
        &mut self,
        key: &'static str,
    ) -> Result<Option<T>, OptionError> {
        self.take(key).map(|text| parse_number(&self.option, key, &text)).transpose()
    }

    /// Takes a size in bytes out; see [`parse_size`].
    ///
    /// # Errors
    /// If it is no size.
    pub fn take_size(
        &mut self,
        key: &'static str,
        default_unit: u64,
    ) -> Result<Option<u64>, OptionError> {
        self.take(key).map(|text| parse_size(&self.option, key, &text, default_unit)).transpose()
    }

    /// Takes one of a set of words out and maps it.
    ///
    /// # Errors
    /// If the word is none of them; the nearest is named.
    pub fn take_choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, OptionError> {
        self.take(key).map(|text| parse_choice(&self.option, key, &text, choices)).transpose()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// All that is left, for whoever knows what it means.
    pub fn into_rest(self) -> Map<String, Value> {
        self.values
    }

    /// Ends the reading: anything left is unknown.
    ///
    /// # Errors
    /// Names the first unknown key and the nearest known one.
    pub fn finish(self) -> Result<(), OptionError> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(key) => {
                let known: Vec<&str> = self.known.into_iter().collect();
                Err(OptionError::unknown(
                    &format!("{}: invalid parameter", self.option),
                    key,
                    &known,
                ))
            }
        }
    }
}

fn split(
    option: &str,
    text: &str,
    implied: Option<&str>,
) -> Result<Vec<(String, String)>, OptionError> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut first = true;
    while !rest.is_empty() {
        let (part, after) = next_part(rest);
        rest = after;
        let plain_end = part.find('=');
        let (key, value) = match (plain_end, implied) {
            (None, Some(implied)) if first => (implied.to_owned(), part),
            (Some(at), _) => (part[..at].to_owned(), part[at + 1..].to_owned()),
            (None, _) => flag(&part),
        };
        if key.is_empty() {
            return Err(OptionError::value(option, text, "a parameter has no name"));
        }
        parts.push((key, value));
        first = false;
    }
    Ok(parts)
}

/// The text up to the next single comma, commas undoubled, and what follows the comma.
pub fn next_part(text: &str) -> (String, &str) {
    let mut part = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(',') {
        part.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix(',') {
            Some(after) => {
                part.push(',');
                rest = after;
            }
            None => return (part, rest),
        }
    }
    part.push_str(rest);
    (part, "")
}

fn flag(part: &str) -> (String, String) {
    match part.strip_prefix("no") {
        Some(name) if !name.is_empty() => (name.to_owned(), "off".to_owned()),
        _ => (part.to_owned(), "on".to_owned()),
    }
}

/// Reads a boolean.
///
/// # Errors
/// If it is none.
pub fn parse_bool(option: &str, key: &str, text: &str) -> Result<bool, OptionError> {
    match text {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(OptionError::new(format!(
            "{option}: parameter '{key}' expects 'on' or 'off', not '{text}'"
        ))),
    }
}

/// Reads a whole number, decimal or with `0x`.
///
/// # Errors
/// If it is none or does not fit into `T`.
pub fn parse_number<T: TryFrom<u64>>(
    option: &str,
    key: &str,
    text: &str,
) -> Result<T, OptionError> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.ok().and_then(|n| T::try_from(n).ok()).ok_or_else(|| {
        OptionError::new(format!("{option}: parameter '{key}' expects a number, not '{text}'"))
    })
}

/// Reads a size in bytes: a number, perhaps with a fraction, and a unit of `b`, `k`, `M`, `G`, `T`,
/// `P` or `E` (powers of 1024); without a unit it counts in `default_unit` bytes.
///
/// # Errors
/// If it is none or over 2^63.
pub fn parse_size(
    option: &str,
    key: &str,
    text: &str,
    default_unit: u64,
) -> Result<u64, OptionError> {
    let wrong = || {
        OptionError::new(format!(
            "{option}: parameter '{key}' expects a size such as 512M or 4G, not '{text}'"
        ))
    };
    if let Some(hex) = text.strip_prefix("0x") {
        let number = u64::from_str_radix(hex, 16).map_err(|_| wrong())?;
        return number.checked_mul(default_unit).ok_or_else(wrong);
    }
    let digits_end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let unit = match unit {
        "" => default_unit,
        "b" | "B" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        "p" | "P" => 1 << 50,
        "e" | "E" => 1 << 60,
        _ => return Err(wrong()),
    };
    if number.contains('.') {
        let value: f64 = number.parse().map_err(|_| wrong())?;
        let bytes = value * unit as f64;
        return if bytes < 9.2e18 { Ok(bytes as u64) } else { Err(wrong()) };
    }
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).filter(|&bytes| bytes < 1 << 63).ok_or_else(wrong)
}

/// Maps one of a set of words.
///
/// # Errors
/// If the word is none of them; the nearest is named.
pub fn parse_choice<T: Copy>(
    option: &str,
    key: &str,
    text: &str,
    choices: &[(&str, T)],
) -> Result<T, OptionError> {
    match choices.iter().find(|(name, _)| *name == text) {
        Some((_, value)) => Ok(*value),
        None => {
            let names: Vec<&str> = choices.iter().map(|c| c.0).collect();
            Err(OptionError::unknown(
                &format!("{option}: parameter '{key}' does not accept value"),
                text,
                &names,
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Properties {
        Properties::parse("-x", text, Some("first")).unwrap()
    }

    #[test]
    fn commas_double_and_the_first_key_is_implied() {
        let mut p = parse("a,,b,path=/x,,y,server,nowait");
        assert_eq!(p.take("first").as_deref(), Some("a,b"));
        assert_eq!(p.take("path").as_deref(), Some("/x,y"));
        assert_eq!(p.take_bool("server"), Ok(Some(true)));
        assert_eq!(p.take_bool("wait"), Ok(Some(false)));
        assert_eq!(p.finish(), Ok(()));
    }

    #[test]
    fn unknown_keys_name_the_nearest_known_one() {
        let mut p = parse("first=1,pth=/x");
        p.take("first");
        p.take("path");
        let message = p.finish().unwrap_err().to_string();
        assert!(message.contains("'pth'") && message.contains("'path'"), "{message}");
    }

    #[test]
    fn json_is_taken_as_it_is() {
        let mut p = parse(r#"{"driver":"virtio-blk-pci","num-queues":4,"ok":true}"#);
        assert_eq!(p.take("driver").as_deref(), Some("virtio-blk-pci"));
        assert_eq!(p.take_number::<u16>("num-queues"), Ok(Some(4)));
        assert_eq!(p.take_bool("ok"), Ok(Some(true)));
        assert!(Properties::parse("-x", "{", None).is_err());
    }

    #[test]
    fn keys_that_repeat_come_in_their_order() {
        let mut p = parse("x,b=1,a=2,b=3,c=4");
        assert_eq!(p.take_all(&["a", "b"]), [("b", "1"), ("a", "2"), ("b", "3")].map(own));
        p.take("first");
        assert!(p.clone().finish().is_err());
        assert_eq!(p.take("c").as_deref(), Some("4"));
        assert_eq!(p.finish(), Ok(()));
        let mut p = Properties::parse("-x", r#"{"b":"1"}"#, None).unwrap();
        assert_eq!(p.take_all(&["a", "b"]), [own(("b", "1"))]);
    }

    fn own((key, value): (&'static str, &str)) -> (&'static str, String) {
        (key, value.to_owned())
    }

    #[test]
    fn sizes_have_units() {
        let size = |text| parse_size("-m", "size", text, 1 << 20);
        assert_eq!(size("128"), Ok(128 << 20));
        assert_eq!(size("1.5G"), Ok(3 << 29));
        assert_eq!(size("64k"), Ok(64 << 10));
        for bad in ["", "x", "1Q", "99999999999999999999", "8E", "1.2.3G", "-1", "0x"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
