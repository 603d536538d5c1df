//! Reading arguments as QEMU does: the same order of checks, the same texts.
//!
//! Members are read in the order of the schema, a base's first; then the first member that no one
//! read is an error. Nesting is named by a path, `keys[0].data`.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::QmpError;

/// Where a value is within the arguments; the outermost object has no name.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Member(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    fn member(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Member(name) }
    }

    fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    /// The last name; elements of arrays have none, which QEMU shows as `null`.
    fn last(&self) -> &'a str {
        match self.step {
            Step::Member(name) => name,
            Step::Root | Step::Index(_) => "null",
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Member(name) => {
                if self.parent.is_some_and(|p| !matches!(p.step, Step::Root)) {
                    f.write_str(".")?;
                }
                f.write_str(name)
            }
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// The error for a value of the wrong JSON type.
pub fn wrong_type(at: &Path<'_>, expected: &str) -> QmpError {
    QmpError::generic(format!("Invalid parameter type for '{at}', expected: {expected}"))
}

/// A type that arguments can have.
pub trait Input: Sized {
    /// Reads a value.
    ///
    /// # Errors
    /// It is not of this type.
    fn input(value: Value, at: &Path<'_>) -> Result<Self, QmpError>;
}

/// A type that is an object; its members are taken one by one.
pub trait FromMembers: Sized {
    /// Takes the members of this type.
    ///
    /// # Errors
    /// One is missing or of the wrong type.
    fn from_members(members: &mut Members<'_>) -> Result<Self, QmpError>;
}

/// The members of an object that have not been read yet.
#[derive(Debug)]
pub struct Members<'a> {
    map: Map<String, Value>,
    path: &'a Path<'a>,
}

impl Members<'_> {
    /// Takes a member that must be there.
    ///
    /// # Errors
    /// It is missing or of the wrong type.
    pub fn required<T: Input>(&mut self, name: &str) -> Result<T, QmpError> {
        let at = self.path.member(name);
        match self.map.shift_remove(name) {
            Some(value) => T::input(value, &at),
            None => Err(QmpError::generic(format!("Parameter '{at}' is missing"))),
        }
    }

    /// Takes a member that may be left out.
    ///
    /// # Errors
    /// It is of the wrong type.
    pub fn optional<T: Input>(&mut self, name: &str) -> Result<Option<T>, QmpError> {
        let at = self.path.member(name);
        self.map.shift_remove(name).map(|value| T::input(value, &at)).transpose()
    }

    fn finish(self) -> Result<(), QmpError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => {
                let at = self.path.member(name);
                Err(QmpError::generic(format!("Parameter '{at}' is unexpected")))
            }
        }
    }
}

/// Reads the arguments of a command.
///
/// # Errors
/// A member is missing, of the wrong type, or unexpected.
pub fn arguments<T: FromMembers>(arguments: Map<String, Value>) -> Result<T, QmpError> {
    object(arguments, &Path::ROOT)
}

fn object<T: FromMembers>(map: Map<String, Value>, at: &Path<'_>) -> Result<T, QmpError> {
    let mut members = Members { map, path: at };
    let value = T::from_members(&mut members)?;
    members.finish()?;
    Ok(value)
}

/// Reads an object.
pub fn nested<T: FromMembers>(value: Value, at: &Path<'_>) -> Result<T, QmpError> {
    match value {
        Value::Object(map) => object(map, at),
        _ => Err(wrong_type(at, "object")),
    }
}

/// Reads an enumeration; `find` knows the values.
pub fn enumeration<T>(
    value: Value,
    at: &Path<'_>,
    find: impl Fn(&str) -> Option<T>,
) -> Result<T, QmpError> {
    let Value::String(name) = value else { return Err(wrong_type(at, "string")) };
    find(&name).ok_or_else(|| {
        let member = at.last();
        QmpError::generic(format!("Parameter '{member}' does not accept value '{name}'"))
    })
}

/// The JSON of what a handler returned.
pub fn to_value(value: impl Serialize) -> Result<Value, QmpError> {
    serde_json::to_value(value)
        .map_err(|e| QmpError::generic(format!("The reply cannot be written as JSON: {e}")))
}

/// An integer of 64 bits; QEMU takes no fractions and no exponents for one.
impl Input for i64 {
    fn input(value: Value, at: &Path<'_>) -> Result<Self, QmpError> {
        value.as_i64().ok_or_else(|| wrong_type(at, "integer"))
    }
}

/// Negative numbers wrap around, as clients of old have relied on.
impl Input for u64 {
    fn input(value: Value, at: &Path<'_>) -> Result<Self, QmpError> {
        let number = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
        number.ok_or_else(|| wrong_type(at, "integer"))
    }
}

macro_rules! narrow {
    ($($rust:ty = $name:literal from $wide:ty),*) => {$(
        impl Input for $rust {
            fn input(value: Value, at: &Path<'_>) -> Result<Self, QmpError> {
                let wide = <$wide>::input(value, at)?;
                wide.try_into().map_err(|_| {
                    QmpError::generic(format!("Parameter '{}' expects {}", at.last(), $name))
                })
            }
        }
    )*};
}

narrow!(
    i8 = "int8_t" from i64,
    i16 = "int16_t" from i64,
    i32 = "int32_t" from i64,
    u8 = "uint8_t" from u64,
    u16 = "uint16_t" from u64,
    u32 = "uint32_t" from u64
);

impl Input for f64 {
    fn input(value: Value, at: &Path<'_>) -> Result<Self, QmpError> {
        value.as_f64().ok_or_else(|| wrong_type(at, "number"))
    }
}

impl Input for bool {
    fn input(value: Value, at: &Path<'_>) -> Result<Self, QmpError> {
        value.as_bool().ok_or_else(|| wrong_type(at, "boolean"))
    }
}

impl Input for () {
    fn input(value: Value, at: &Path<'_>) -> Result<Self, QmpError> {
        value.as_null().ok_or_else(|| wrong_type(at, "null"))
    }
}

impl Input for String {
    fn input(value: Value, at: &Path<'_>) -> Result<Self, QmpError> {
        match value {
            Value::String(text) => Ok(text),
            _ => Err(wrong_type(at, "string")),
        }
    }
}

impl Input for Value {
    fn input(value: Value, _at: &Path<'_>) -> Result<Self, QmpError> {
        Ok(value)
    }
}

impl<T: Input> Input for Vec<T> {
    fn input(value: Value, at: &Path<'_>) -> Result<Self, QmpError> {
        let Value::Array(items) = value else { return Err(wrong_type(at, "array")) };
        items.into_iter().enumerate().map(|(i, item)| T::input(item, &at.index(i))).collect()
    }
}

impl<T: Input> Input for Box<T> {
    fn input(value: Value, at: &Path<'_>) -> Result<Self, QmpError> {
        T::input(value, at).map(Box::new)
    }
}

impl<T: FromMembers> FromMembers for Box<T> {
    fn from_members(members: &mut Members<'_>) -> Result<Self, QmpError> {
        T::from_members(members).map(Box::new)
    }
}
