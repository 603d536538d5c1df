//! The `pc` machine: i440FX and PIIX3 on PCI.

mod bios;
mod bios_data;
pub mod board;
pub mod boot;
mod cmos;
pub mod cpu;
pub mod devices;
pub mod door;
pub mod firmware;
mod graphics_mode;
mod icount;
pub mod layout;
mod messages;
mod multiboot;
mod multiboot2;
mod sleep;
mod text_mode;

pub use bios::RomFiles;
pub use sleep::SleepStates;
