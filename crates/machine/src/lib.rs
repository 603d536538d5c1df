//! A machine: assembled from a [`spec::MachineSpec`], run by its one [`run::Owner`], seen by its clients
//! as a [`Machine`].

pub mod acpi;
pub mod chardevs;
mod error;
mod files;
pub mod machine;
pub mod pc;
pub mod qtest;
pub mod run;
pub mod smbios;
pub mod spec;

pub use error::BuildError;
pub use machine::Machine;
