//! Where a function sits on its bus.

use std::fmt;
use std::str::FromStr;

/// Device and function number of a function on one bus: five bits of slot, three of function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Devfn(u8);

impl Devfn {
    /// The function `function` (below 8) in `slot` (below 32).
    ///
    /// # Panics
    /// If either is out of range.
    pub const fn new(slot: u8, function: u8) -> Self {
        assert!(slot < 32 && function < 8);
        Self(slot << 3 | function)
    }

    /// From the eight bits that a configuration address carries.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The eight bits that a configuration address carries.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Slot, 0 to 31.
    pub const fn slot(self) -> u8 {
        self.0 >> 3
    }

    /// Function in the slot, 0 to 7.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

impl fmt::Display for Devfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.slot(), self.function())
    }
}

/// The text is no `slot[.function]` in hexadecimal, with a slot up to 1f and a function up to 7.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a PCI address 'slot[.function]', hexadecimal, slot up to 1f, function up to 7"
)]
pub struct AddressError(String);

impl FromStr for Devfn {
    type Err = AddressError;

    /// Reads the value of an `addr=` option: `slot[.function]`, both hexadecimal, `0x` allowed.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let number = |part: &str, max: u8| {
            let digits = part.strip_prefix("0x").or_else(|| part.strip_prefix("0X"));
            let digits = digits.unwrap_or(part);
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
            u8::from_str_radix(digits, 16).ok().filter(|&n| plain && n <= max)
        };
        let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
        match (number(slot, 31), number(function, 7)) {
            (Some(slot), Some(function)) => Ok(Self::new(slot, function)),
            _ => Err(AddressError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses_as_the_option_takes_them() {
        assert_eq!("3".parse(), Ok(Devfn::new(3, 0)));
        assert_eq!("1f.7".parse(), Ok(Devfn::new(31, 7)));
        assert_eq!("0x10.0x1".parse(), Ok(Devfn::new(16, 1)));
        for bad in ["", "20", "1.8", "1.", ".1", "+1", "g", "1.2.3", "0x"] {
            assert!(bad.parse::<Devfn>().is_err(), "{bad}");
        }
        assert_eq!(Devfn::new(31, 7).to_string(), "1f.7");
    }
}
