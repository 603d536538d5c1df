//! The floating-point and vector unit.
#![allow(dead_code)]

pub(crate) mod host;
pub(crate) mod softfloat;
