//! The registers of the modern interface (specification, section 4.1.4), all in one memory BAR.

use std::sync::Arc;

use bus::BusDevice;

use super::{SplitQueue, VirtioCore, feature};

/// What differs between functions about where the structures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Which BAR the structures are in.
    pub(super) bar: usize,
    /// Which BAR the MSI-X table is in.
    pub(super) msix_bar: usize,
    /// Offset of the common configuration in the BAR.
    pub(super) common: u64,
    /// Offset of the ISR register.
    pub(super) isr: u64,
    /// Bytes of these two.
    pub(super) size: u64,
}

impl Layout {
    /// Each structure gets a page.
    pub(super) const PAGES: Self =
        Self { bar: 4, msix_bar: 1, common: 0, isr: 0x1000, size: 0x1000 };
    /// The first page is a VGA's, whose memory is in BAR 0.
    pub(super) const VGA: Self =
        Self { bar: 2, msix_bar: 4, common: 0x1000, isr: 0x1800, size: 0x800 };
}

/// Offset of the device's configuration.
pub(super) const DEVICE: u64 = 0x2000;
/// Offset of the notification registers.
pub(super) const NOTIFY: u64 = 0x3000;
/// Bytes of each of these two.
pub(super) const REGION: u64 = 0x1000;
/// Bytes of the BAR.
pub(super) const BAR_SIZE: u64 = 0x4000;
/// Bytes between the notification registers of two queues.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// Offsets in the common configuration.
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const CONFIG_GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(super) const QUEUE_DESC: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
    pub(super) const QUEUE_NOTIFY_DATA: u64 = 0x38;
    pub(super) const QUEUE_RESET: u64 = 0x3a;
}

/// The BAR of the modern interface.
pub(super) struct ModernBar {
    pub(super) core: Arc<VirtioCore>,
    pub(super) layout: Layout,
    /// What answers below the structures.
    pub(super) below: Option<Arc<dyn BusDevice>>,
}

/// What an access to the BAR reaches, with the offset in it.
enum Target<'a> {
    Below(&'a dyn BusDevice),
    Common(u64),
    Isr,
    Device(u64),
    Notify(u64),
    Nothing,
}

impl ModernBar {
    fn target(&self, offset: u64) -> Target<'_> {
        let Layout { common, isr, size, .. } = self.layout;
        match offset {
            _ if offset < common => match &self.below {
                Some(device) => Target::Below(&**device),
                None => Target::Nothing,
            },
            _ if offset < common + size => Target::Common(offset - common),
            _ if offset == isr => Target::Isr,
            NOTIFY.. => Target::Notify(offset - NOTIFY),
            DEVICE.. => Target::Device(offset - DEVICE),
            _ => Target::Nothing,
        }
    }
}

impl BusDevice for ModernBar {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match self.target(offset) {
            Target::Below(device) => device.read(offset, size),
            Target::Common(at) => self.read_common(at, size),
            Target::Isr => u64::from(self.core.take_isr()),
            Target::Device(at) => self.core.read_config(at, size),
            Target::Notify(_) | Target::Nothing => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match self.target(offset) {
            Target::Below(device) => device.write(offset, size, value),
            Target::Common(at) if size == 8 => {
                self.write_common(at, 4, value & 0xffff_ffff);
                self.write_common(at + 4, 4, value >> 32);
            }
            Target::Common(at) => self.write_common(at, size, value),
            Target::Device(at) => self.core.write_config(at, size, value),
            Target::Notify(at) => self.core.kick((at / u64::from(NOTIFY_MULTIPLIER)) as u16),
            Target::Isr | Target::Nothing => {}
        }
    }
}

impl ModernBar {
    /// Accesses have the width of their register; those of 64 bits are also read by halves. Others
    /// read as zero.
    fn read_common(&self, at: u64, size: u8) -> u64 {
        use common::*;
        let core = &self.core;
        let registers = core.registers().clone();
        let queue = |get: &dyn Fn(&SplitQueue) -> u64| {
            core.queue(registers.queue_select).map_or(0, |queue| get(&queue))
        };
        match (at, size) {
            (DEVICE_FEATURE_SELECT, 4) => u64::from(registers.device_feature_select),
            (DEVICE_FEATURE, 4) => word(core.offered(), registers.device_feature_select),
            (DRIVER_FEATURE_SELECT, 4) => u64::from(registers.driver_feature_select),
            (DRIVER_FEATURE, 4) => word(registers.driver_features, registers.driver_feature_select),
            (CONFIG_VECTOR, 2) => u64::from(registers.config_vector),
            (NUM_QUEUES, 2) => u64::from(core.queue_count()),
            (STATUS, 1) => u64::from(registers.status),
            (CONFIG_GENERATION, 1) => u64::from(registers.config_generation),
            (QUEUE_SELECT, 2) => u64::from(registers.queue_select),
            (QUEUE_SIZE, 2) => queue(&|q| u64::from(q.state().size)),
            (QUEUE_VECTOR, 2) => queue(&|q| u64::from(q.state().vector)),
            (QUEUE_ENABLE, 2) => queue(&|q| u64::from(q.state().enabled)),
            (QUEUE_NOTIFY_OFF, 2) => queue(&|_| u64::from(registers.queue_select)),
            (QUEUE_DESC..QUEUE_NOTIFY_DATA, 4 | 8) if at.is_multiple_of(u64::from(size)) => {
                let address = queue(&|q| match at & !7 {
                    QUEUE_DESC => q.state().desc,
                    QUEUE_DRIVER => q.state().avail,
                    QUEUE_DEVICE => q.state().used,
                    _ => 0,
                });
                let half = address >> (8 * (at & 4));
                if size == 4 { half & 0xffff_ffff } else { half }
            }
            // A reset is done when the write that asks for it returns.
            (QUEUE_NOTIFY_DATA | QUEUE_RESET, 2) => 0,
            _ => 0,
        }
    }

    fn write_common(&self, at: u64, size: u8, value: u64) {
        use common::*;
        let core = &self.core;
        match (at, size) {
            (STATUS, 1) => return core.set_status(value as u8),
            (QUEUE_RESET, 2) => {
                let select = core.registers().queue_select;
                if value & 1 != 0 && core.features() & feature::RING_RESET != 0 {
                    core.reset_queue(select);
                }
                return;
            }
            _ => {}
        }
        let mut registers = core.registers();
        match (at, size) {
            (DEVICE_FEATURE_SELECT, 4) => registers.device_feature_select = value as u32,
            (DRIVER_FEATURE_SELECT, 4) => registers.driver_feature_select = value as u32,
            (DRIVER_FEATURE, 4) => {
                // Settled features stay.
                let settled = super::core::status::FEATURES_OK | super::core::status::DRIVER_OK;
                if registers.status & settled == 0 {
                    let features = registers.driver_features;
                    registers.driver_features = match registers.driver_feature_select {
                        0 => features & !0xffff_ffff | value,
                        1 => features & 0xffff_ffff | value << 32,
                        _ => features,
                    };
                }
            }
            (CONFIG_VECTOR, 2) => registers.config_vector = core.valid_vector(value as u16),
            (QUEUE_SELECT, 2) => registers.queue_select = value as u16,
            _ => {
                let select = registers.queue_select;
                drop(registers);
                self.write_queue(select, at, size, value);
            }
        }
    }

    fn write_queue(&self, select: u16, at: u64, size: u8, value: u64) {
        use common::*;
        let vector = self.core.valid_vector(value as u16);
        let Some(mut queue) = self.core.queue(select) else { return };
        if (at, size) == (QUEUE_VECTOR, 2) {
            queue.state_mut().vector = vector;
            return;
        }
        // What an enabled queue works with stays.
        if queue.state().enabled {
            return;
        }
        match (at, size) {
            (QUEUE_SIZE, 2) => queue.set_size(value as u16),
            (QUEUE_ENABLE, 2) if value == 1 => {
                queue.state_mut().enabled = true;
                drop(queue);
                self.core.kick(select);
            }
            (QUEUE_DESC..QUEUE_NOTIFY_DATA, 4) if at.is_multiple_of(4) => {
                let state = queue.state_mut();
                let address = match at & !7 {
                    QUEUE_DESC => &mut state.desc,
                    QUEUE_DRIVER => &mut state.avail,
                    QUEUE_DEVICE => &mut state.used,
                    _ => return,
                };
                let shift = 8 * (at & 4);
                *address = *address & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
            }
            _ => {}
        }
    }
}

/// Word `select` of the feature bits.
fn word(features: u64, select: u32) -> u64 {
    match select {
        0 => features & 0xffff_ffff,
        1 => features >> 32,
        _ => 0,
    }
}
