//! The commands of the protocol, from text to [`Command`].
//!
//! A command is a line of words separated by single blanks. Numbers are as in C: decimal, `0x` with
//! hexadecimal digits, or `0` with octal ones.

/// How a block of bytes is written in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// `0x` and two digits a byte.
    Hex,
    /// RFC 4648.
    Base64,
}

/// One command. Sizes are 1, 2, 4 or 8 bytes; ports have no 8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    In {
        port: u16,
        size: u8,
    },
    Out {
        port: u16,
        size: u8,
        value: u32,
    },
    Load {
        addr: u64,
        size: u8,
    },
    Store {
        addr: u64,
        size: u8,
        value: u64,
    },
    ReadBlock {
        addr: u64,
        len: u64,
        encoding: Encoding,
    },
    WriteBlock {
        addr: u64,
        len: u64,
        data: &'a str,
        encoding: Encoding,
    },
    Fill {
        addr: u64,
        len: u64,
        value: u8,
    },
    /// By so many nanoseconds, or to the next timer.
    ClockStep(Option<u64>),
    /// To so many nanoseconds.
    ClockSet(u64),
    InterceptIn(&'a str),
    InterceptOut(&'a str),
    SetIrqIn {
        device: &'a str,
        name: &'a str,
        line: u32,
        level: bool,
    },
    Endianness,
    ModuleLoad,
}

/// Why a line is no command; the text is the answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) String);

/// The words after a command's name.
struct Words<'a> {
    command: &'a str,
    rest: std::str::Split<'a, char>,
}

impl<'a> Words<'a> {
    fn word(&mut self, what: &str) -> Result<&'a str, Malformed> {
        self.rest
            .next()
            .ok_or_else(|| Malformed(format!("FAIL {}: {what} is missing", self.command)))
    }

    fn number(&mut self, what: &str) -> Result<u64, Malformed> {
        let word = self.word(what)?;
        parse_number(word).ok_or_else(|| {
            Malformed(format!("FAIL {}: {what} '{word}' is no number", self.command))
        })
    }

    fn number_up_to<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T, Malformed> {
        let value = self.number(what)?;
        T::try_from(value).map_err(|_| {
            Malformed(format!("FAIL {}: {what} {value:#x} is too large", self.command))
        })
    }

    fn length(&mut self) -> Result<u64, Malformed> {
        match self.number("the length")? {
            0 => Err(Malformed(format!("FAIL {}: the length is 0", self.command))),
            len => Ok(len),
        }
    }
}

fn parse_number(word: &str) -> Option<u64> {
    let (negative, digits) = word.strip_prefix('-').map_or((false, word), |rest| (true, rest));
    let lower = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = match (lower, digits.strip_prefix('0')) {
        (Some(hex), _) => (hex, 16),
        (None, Some(octal)) if !octal.is_empty() => (octal, 8),
        _ => (digits, 10),
    };
    // `from_str_radix` takes a sign of its own.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let value = u64::from_str_radix(digits, radix).ok()?;
    Some(if negative { value.wrapping_neg() } else { value })
}

/// Size in bytes by the last letter of a command's name.
fn size_of(letter: &str) -> Option<u8> {
    match letter {
        "b" => Some(1),
        "w" => Some(2),
        "l" => Some(4),
        "q" => Some(8),
        _ => None,
    }
}

/// Reads one line, without its end.
///
/// # Errors
/// The answer to a line that is no command.
pub(super) fn parse(line: &str) -> Result<Command<'_>, Malformed> {
    let mut rest = line.split(' ');
    let name = rest.next().unwrap_or_default();
    let mut words = Words { command: name, rest };
    if let Some(size) = name.strip_prefix("in").and_then(size_of).filter(|&size| size < 8) {
        return Ok(Command::In { port: words.number_up_to("the port")?, size });
    }
    if let Some(size) = name.strip_prefix("out").and_then(size_of).filter(|&size| size < 8) {
        let port = words.number_up_to("the port")?;
        // As in a register, what is beyond the size is dropped.
        return Ok(Command::Out { port, size, value: words.number("the value")? as u32 });
    }
    if let Some(size) = name.strip_prefix("read").and_then(size_of) {
        return Ok(Command::Load { addr: words.number("the address")?, size });
    }
    if let Some(size) = name.strip_prefix("write").and_then(size_of) {
        let addr = words.number("the address")?;
        return Ok(Command::Store { addr, size, value: words.number("the value")? });
    }
    let encoding = if name.starts_with("b64") { Encoding::Base64 } else { Encoding::Hex };
    match name {
        "read" | "b64read" => {
            let addr = words.number("the address")?;
            Ok(Command::ReadBlock { addr, len: words.length()?, encoding })
        }
        "write" | "b64write" => {
            let addr = words.number("the address")?;
            let len = words.length()?;
            let data = words.word("the data")?;
            if encoding == Encoding::Hex && data.len() < 3 {
                return Err(Malformed("ERR invalid argument size".to_owned()));
            }
            Ok(Command::WriteBlock { addr, len, data, encoding })
        }
        "memset" => {
            let addr = words.number("the address")?;
            let len = words.number("the length")?;
            Ok(Command::Fill { addr, len, value: words.number("the value")? as u8 })
        }
        "clock_step" => match words.rest.clone().next() {
            None => Ok(Command::ClockStep(None)),
            Some(_) => Ok(Command::ClockStep(Some(words.number("the time")?))),
        },
        "clock_set" => Ok(Command::ClockSet(words.number("the time")?)),
        "irq_intercept_in" => Ok(Command::InterceptIn(words.word("the device")?)),
        "irq_intercept_out" => Ok(Command::InterceptOut(words.word("the device")?)),
        "set_irq_in" => Ok(Command::SetIrqIn {
            device: words.word("the device")?,
            name: words.word("the name")?,
            line: words.number_up_to("the line")?,
            level: words.number("the level")? != 0,
        }),
        "endianness" => Ok(Command::Endianness),
        "module_load" => {
            words.word("the prefix")?;
            words.word("the name")?;
            Ok(Command::ModuleLoad)
        }
        unknown => Err(Malformed(format!("FAIL Unknown command '{unknown}'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_in_c() {
        assert_eq!(parse_number("0x1F"), Some(31));
        assert_eq!(parse_number("017"), Some(15));
        assert_eq!(parse_number("0"), Some(0));
        assert_eq!(parse_number("-1"), Some(u64::MAX));
        for bad in ["", "0x", "x", "--1", "+1", "1 ", "0x10000000000000000"] {
            assert_eq!(parse_number(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes_come_from_the_names() {
        assert_eq!(parse("inw 0x10"), Ok(Command::In { port: 16, size: 2 }));
        assert_eq!(parse("outl 1 -1"), Ok(Command::Out { port: 1, size: 4, value: u32::MAX }));
        assert_eq!(parse("readq 8"), Ok(Command::Load { addr: 8, size: 8 }));
        assert_eq!(parse("writeb 8 0x101"), Ok(Command::Store { addr: 8, size: 1, value: 0x101 }));
        let block = Command::ReadBlock { addr: 8, len: 2, encoding: Encoding::Base64 };
        assert_eq!(parse("b64read 8 2"), Ok(block));
        assert_eq!(parse("clock_step"), Ok(Command::ClockStep(None)));
    }

    #[test]
    fn what_is_no_command_is_told() {
        let answer = |line| parse(line).unwrap_err().0;
        assert_eq!(answer("inq 1"), "FAIL Unknown command 'inq'");
        assert_eq!(answer(""), "FAIL Unknown command ''");
        assert_eq!(answer("inb"), "FAIL inb: the port is missing");
        assert_eq!(answer("inb 0x10000"), "FAIL inb: the port 0x10000 is too large");
        assert_eq!(answer("read 1 0"), "FAIL read: the length is 0");
        assert_eq!(answer("write 1 1 0x"), "ERR invalid argument size");
        assert_eq!(answer("clock_step now"), "FAIL clock_step: the time 'now' is no number");
    }
}
