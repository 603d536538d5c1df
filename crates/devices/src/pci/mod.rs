//! Conventional PCI (PCI Local Bus Specification 3.0): functions, their configuration space, their
//! windows into the port and memory spaces, and their interrupts.
//!
//! - [`PciFunction`] is what a bus knows of a function.
//! - [`PciEndpoint`] is what a function of type 0 is made of: a [`ConfigSpace`], the BAR windows it
//!   maps and unmaps as the guest programs them, its INTx wire, its MSI capability and its MSI-X table. A device keeps one
//!   behind a lock and forwards its configuration accesses to it.
//! - [`PciBus`] holds the functions by [`Devfn`], hands out slots and wires, and ORs the INTx wires
//!   of all slots onto the four inputs of the chipset's router.
//!
//! Invariants:
//! - An address space holds a BAR's window if and only if the command register enables its kind and
//!   the BAR holds an address that it can decode at.
//! - A function refers weakly to the address spaces that hold its windows, so dropping the spaces and
//!   the bus frees all functions.

mod address;
mod bus;
mod config;
mod endpoint;
mod msi;
mod msix;
mod rom;

pub use address::{AddressError, Devfn};
pub use bus::{PciBus, PciWiring, SlotError};
pub use config::{BarKind, ConfigSpace, ConfigState, Identity, reg};
pub use endpoint::{EndpointState, PciEndpoint};
pub use msix::{MsiX, MsiXState, NO_VECTOR};
pub use rom::OptionRom;

/// A function on a [`PciBus`].
pub trait PciFunction: ::bus::Device {
    /// Reads `size` bytes (1, 2 or 4, naturally aligned) of configuration space at `offset` (below
    /// 256); the value sits in the low bytes.
    fn read_config(&self, offset: u16, size: u8) -> u32;

    /// Writes the low `size` bytes (1, 2 or 4, naturally aligned) of `value` at `offset`.
    fn write_config(&self, offset: u16, size: u8, value: u32);
}
