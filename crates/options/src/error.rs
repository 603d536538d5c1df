//! What is wrong with a command line, in one line that names the option, the cause and a way out.

use std::fmt;

/// A message for the user; the process then exits with status 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    message: String,
}

impl OptionError {
    /// An error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }

    /// `option` was given `value`, which is wrong because of `cause`.
    pub fn value(option: &str, value: &str, cause: &str) -> Self {
        Self::new(format!("{option} {value}: {cause}"))
    }

    /// `name` is none of `known`; `what` says what it should have been.
    pub fn unknown(what: &str, name: &str, known: &[&str]) -> Self {
        let hint = match nearest(name, known) {
            Some(nearest) => format!("; did you mean '{nearest}'?"),
            None if known.is_empty() || known.len() > 12 => String::new(),
            None => format!("; known are {}", known.join(", ")),
        };
        Self::new(format!("{what} '{name}'{hint}"))
    }
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OptionError {}

/// The known name that `name` most probably was meant to be.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|&candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= 1 + candidate.len().max(name.len()) / 3)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}
