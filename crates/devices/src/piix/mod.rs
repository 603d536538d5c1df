//! The PIIX south bridge: PIIX3's ISA bridge and PIIX4's power management.

mod isa_bridge;
mod power;
mod smbus;
#[cfg(test)]
mod tests;
mod window;

pub use isa_bridge::{Piix3, Piix3State};
pub use power::{
    ACPI_DISABLE, ACPI_ENABLE, GPE_PORT, GPE_PORTS, Piix4Pm, Piix4PmState, PmOptions,
    SLEEP_TYPE_HIBERNATE,
};

/// Registers of PIIX3's and PIIX4's configuration spaces that firmware sets up.
pub mod reg {
    /// PIIX3: PIRQ route control, one byte for each of PIRQA to PIRQD.
    pub const PIRQ_ROUTES: u16 = 0x60;
    /// PIIX4: base of the power management ports.
    pub const PM_BASE: u16 = 0x40;
    /// PIIX4: device activity B, 32 bits; bit 25 enables interrupts by the SMI command port.
    pub const ACTIVITY_B: u16 = 0x58;
    /// PIIX4: bit 0 opens the power management ports.
    pub const PM_ENABLE: u16 = 0x80;
    /// PIIX4: base of the SMBus ports.
    pub const SMBUS_BASE: u16 = 0x90;
    /// PIIX4: bit 0 opens the SMBus ports.
    pub const SMBUS_ENABLE: u16 = 0xd2;
}
