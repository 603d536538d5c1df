//! The registers of the legacy interface (specification, section 4.1.4.10), in an I/O BAR.

use std::sync::Arc;

use bus::BusDevice;

use super::VirtioCore;
use super::core::status;

/// Offsets of the registers.
mod reg {
    pub(super) const DEVICE_FEATURES: u64 = 0;
    pub(super) const DRIVER_FEATURES: u64 = 4;
    pub(super) const QUEUE_ADDRESS: u64 = 8;
    pub(super) const QUEUE_SIZE: u64 = 12;
    pub(super) const QUEUE_SELECT: u64 = 14;
    pub(super) const QUEUE_NOTIFY: u64 = 16;
    pub(super) const STATUS: u64 = 18;
    pub(super) const ISR: u64 = 19;
    /// Only while MSI-X is enabled; else the device's configuration begins here.
    pub(super) const CONFIG_VECTOR: u64 = 20;
    pub(super) const QUEUE_VECTOR: u64 = 22;
}

/// Bytes before the device's configuration, with MSI-X's registers.
const HEADER: u64 = 24;
/// Unit of the queue address.
const PAGE_SHIFT: u32 = 12;

/// Bytes of the BAR for a device with `config` bytes of configuration, with MSI-X or without.
pub(super) fn bar_size(config: usize, msix: bool) -> u64 {
    let header = if msix { HEADER } else { reg::CONFIG_VECTOR };
    (header + config as u64).next_power_of_two()
}

/// The BAR of the legacy interface.
pub(super) struct LegacyBar(pub(super) Arc<VirtioCore>);

impl LegacyBar {
    fn config_offset(&self) -> u64 {
        if self.0.uses_msix() { HEADER } else { reg::CONFIG_VECTOR }
    }
}

impl BusDevice for LegacyBar {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let core = &self.0;
        if let Some(at) = offset.checked_sub(self.config_offset()) {
            return core.read_config(at, size);
        }
        let registers = core.registers().clone();
        let queue = core.queue(registers.queue_select);
        match offset {
            reg::DEVICE_FEATURES => u64::from(core.offered_legacy()),
            reg::DRIVER_FEATURES => registers.driver_features & 0xffff_ffff,
            reg::QUEUE_ADDRESS => queue.map_or(0, |q| q.state().desc >> PAGE_SHIFT),
            reg::QUEUE_SIZE => queue.map_or(0, |q| u64::from(q.max_size())),
            reg::QUEUE_SELECT => u64::from(registers.queue_select),
            reg::STATUS => u64::from(registers.status),
            reg::ISR => {
                drop(queue);
                u64::from(core.take_isr())
            }
            reg::CONFIG_VECTOR => u64::from(registers.config_vector),
            reg::QUEUE_VECTOR => {
                queue.map_or(u64::from(crate::pci::NO_VECTOR), |q| u64::from(q.state().vector))
            }
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let core = &self.0;
        if let Some(at) = offset.checked_sub(self.config_offset()) {
            return core.write_config(at, size, value);
        }
        match offset {
            reg::DRIVER_FEATURES => {
                let mut registers = core.registers();
                if registers.status & status::DRIVER_OK == 0 {
                    registers.driver_features = value & u64::from(core.offered_legacy());
                }
            }
            reg::QUEUE_ADDRESS => self.set_queue_address(value as u32),
            reg::QUEUE_SELECT => core.registers().queue_select = value as u16,
            reg::QUEUE_NOTIFY => core.kick(value as u16),
            reg::STATUS => core.set_status(value as u8),
            reg::CONFIG_VECTOR => {
                core.registers().config_vector = core.valid_vector(value as u16);
            }
            reg::QUEUE_VECTOR => {
                let select = core.registers().queue_select;
                let vector = core.valid_vector(value as u16);
                if let Some(mut queue) = core.queue(select) {
                    queue.state_mut().vector = vector;
                }
            }
            _ => {}
        }
    }
}

impl LegacyBar {
    /// The three parts of a legacy queue lie one behind the other, the used ring on a page of its own.
    /// Address 0 takes the queue away.
    fn set_queue_address(&self, page: u32) {
        let select = self.0.registers().queue_select;
        if page == 0 {
            return self.0.reset_queue(select);
        }
        let Some(mut queue) = self.0.queue(select) else { return };
        let size = u64::from(queue.max_size());
        let state = queue.state_mut();
        if state.enabled {
            return;
        }
        state.size = size as u16;
        state.desc = u64::from(page) << PAGE_SHIFT;
        state.avail = state.desc + 16 * size;
        state.used = (state.avail + 4 + 2 * size + 2).next_multiple_of(1 << PAGE_SHIFT);
        state.enabled = true;
        drop(queue);
        self.0.kick(select);
    }
}
