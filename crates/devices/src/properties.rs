//! Properties of a device as `-device` gives them: strings from `key=value`, any JSON type from JSON.
//!
//! A device takes those it knows, each converted and checked; what is left at the end is unknown. Error
//! texts are those that users of QEMU know.

use serde_json::{Map, Value};

/// A property that is not known or has a bad value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PropertyError(String);

impl PropertyError {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// The properties that nobody took yet.
#[derive(Clone, Debug)]
pub struct Properties {
    driver: String,
    left: Map<String, Value>,
}

impl Properties {
    /// The properties of a device of kind `driver`, the name that errors show.
    pub fn new(driver: &str, properties: Map<String, Value>) -> Self {
        Self { driver: driver.to_owned(), left: properties }
    }

    /// The kind of device.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// Takes a string.
    ///
    /// # Errors
    /// If it is an object, an array or null.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, PropertyError> {
        match self.left.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string())),
            Some(_) => Err(expects(name, "a string")),
        }
    }

    /// Takes a switch.
    ///
    /// # Errors
    /// If it is neither on nor off.
    pub fn switch(&mut self, name: &str) -> Result<Option<bool>, PropertyError> {
        match self.left.remove(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(Value::String(text)) => match text.as_str() {
                "on" | "yes" | "true" | "y" => Ok(Some(true)),
                "off" | "no" | "false" | "n" => Ok(Some(false)),
                _ => Err(expects(name, "'on' or 'off'")),
            },
            Some(_) => Err(expects(name, "'on' or 'off'")),
        }
    }

    /// Takes a switch that may be `auto`, which is as if it was not given.
    ///
    /// # Errors
    /// If it is neither on, off nor auto.
    pub fn switch_or_auto(&mut self, name: &str) -> Result<Option<bool>, PropertyError> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        match text.as_str() {
            "on" | "true" => Ok(Some(true)),
            "off" | "false" => Ok(Some(false)),
            "auto" => Ok(None),
            _ => Err(PropertyError(format!("Parameter '{name}' does not accept value '{text}'"))),
        }
    }

    /// Takes a number up to `max`; `kind` names its type in errors, as in `"uint32_t"`.
    ///
    /// # Errors
    /// If it is no number, or a larger one.
    pub fn number(
        &mut self,
        name: &str,
        max: u64,
        kind: &str,
    ) -> Result<Option<u64>, PropertyError> {
        let value = match self.left.remove(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_i128(),
            Some(Value::String(text)) => parse_integer(&text),
            Some(_) => None,
        };
        let value = value.ok_or_else(|| expects(name, "integer"))?;
        let fits = u64::try_from(value).ok().filter(|&value| value <= max);
        fits.map(Some).ok_or_else(|| expects(name, kind))
    }

    /// Takes a size in bytes, which may have a suffix from `k` to `E` for a power of 1024.
    ///
    /// # Errors
    /// If it is no size.
    pub fn size(&mut self, name: &str) -> Result<Option<u64>, PropertyError> {
        let value = match self.left.remove(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_u64(),
            Some(Value::String(text)) => parse_size(&text),
            Some(_) => None,
        };
        value.map(Some).ok_or_else(|| expects(name, "a size"))
    }

    /// Ends the taking.
    ///
    /// # Errors
    /// If a property is left that nobody knows.
    pub fn finish(self) -> Result<(), PropertyError> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => {
                Err(PropertyError(format!("Property '{}.{name}' not found", self.driver)))
            }
        }
    }
}

fn expects(name: &str, what: &str) -> PropertyError {
    PropertyError(format!("Parameter '{name}' expects {what}"))
}

fn parse_integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let value = match hex {
        Some(hex) => u64::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+')),
        None => digits.parse::<u64>().ok().filter(|_| !digits.starts_with('+')),
    };
    value.map(|value| if negative { -i128::from(value) } else { i128::from(value) })
}

fn parse_size(text: &str) -> Option<u64> {
    let power = match text.chars().last()? {
        'k' | 'K' => 1,
        'm' | 'M' => 2,
        'g' | 'G' => 3,
        't' | 'T' => 4,
        'p' | 'P' => 5,
        'e' | 'E' => 6,
        'b' | 'B' => 0,
        _ => return u64::try_from(parse_integer(text)?).ok(),
    };
    let number = u64::try_from(parse_integer(&text[..text.len() - 1])?).ok()?;
    number.checked_mul(1 << (10 * power))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn properties(value: Value) -> Properties {
        let Value::Object(map) = value else { panic!("not an object") };
        Properties::new("virtio-rng-pci", map)
    }

    #[test]
    fn converts_strings_and_json_alike() {
        let mut p = properties(json!({
            "a": "on", "b": false, "c": "0x10", "d": 16, "e": "4k", "f": "auto", "g": "text",
        }));
        assert_eq!(p.switch("a"), Ok(Some(true)));
        assert_eq!(p.switch("b"), Ok(Some(false)));
        assert_eq!(p.number("c", 100, "uint8_t"), Ok(Some(16)));
        assert_eq!(p.number("d", 100, "uint8_t"), Ok(Some(16)));
        assert_eq!(p.size("e"), Ok(Some(4096)));
        assert_eq!(p.switch_or_auto("f"), Ok(None));
        assert_eq!(p.string("g"), Ok(Some("text".into())));
        assert_eq!(p.string("h"), Ok(None));
        assert_eq!(p.finish(), Ok(()));
    }

    #[test]
    fn says_what_is_wrong() {
        let text = |result: Result<(), PropertyError>| result.unwrap_err().to_string();
        let mut p = properties(json!({
            "a": "foo", "b": "foo", "c": "foo", "d": "5000000000", "e": "1x", "f": -1, "foo": 1,
            "g": "99999999999999999999E", "h": "é",
        }));
        assert_eq!(text(p.switch("a").map(drop)), "Parameter 'a' expects 'on' or 'off'");
        let message = "Parameter 'b' does not accept value 'foo'";
        assert_eq!(text(p.switch_or_auto("b").map(drop)), message);
        let number = |p: &mut Properties, name| p.number(name, u32::MAX.into(), "uint32_t");
        assert_eq!(text(number(&mut p, "c").map(drop)), "Parameter 'c' expects integer");
        assert_eq!(text(number(&mut p, "d").map(drop)), "Parameter 'd' expects uint32_t");
        assert_eq!(text(p.size("e").map(drop)), "Parameter 'e' expects a size");
        assert_eq!(text(number(&mut p, "f").map(drop)), "Parameter 'f' expects uint32_t");
        assert!(p.size("g").is_err() && p.size("h").is_err());
        assert_eq!(text(p.finish()), "Property 'virtio-rng-pci.foo' not found");
    }
}
