//! Watchdogs: unless the guest feeds them in time, the machine is told ([`bus::Notice`]), which does what
//! `-watchdog-action` says.

mod i6300esb;
mod ib700;

#[cfg(test)]
mod tests;

pub use i6300esb::I6300Esb;
pub use ib700::Ib700;
