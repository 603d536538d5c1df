//! Ports whose place the guest chooses.

use std::sync::{Arc, Weak};

use bus::{AddressSpace, BusDevice, MappingId};

/// A window into the port space.
pub(super) struct PortWindow {
    ports: Weak<AddressSpace>,
    len: u16,
    handler: Arc<dyn BusDevice>,
    mapped: Option<(u16, MappingId)>,
}

impl PortWindow {
    /// A closed window of `len` ports that `handler` answers in.
    pub(super) fn new(ports: Weak<AddressSpace>, len: u16, handler: Arc<dyn BusDevice>) -> Self {
        Self { ports, len, handler, mapped: None }
    }

    /// Opens the window at `base`, or closes it.
    pub(super) fn place(&mut self, base: Option<u16>) {
        // Address 0 is where a base register stands before anyone has set it.
        let base = base.filter(|&base| base != 0);
        if self.mapped.map(|(at, _)| at) == base {
            return;
        }
        let Some(ports) = self.ports.upgrade() else { return };
        if let Some((_, id)) = self.mapped.take() {
            ports.unmap(id);
        }
        if let Some(at) = base {
            let mapped = ports.map(at.into(), self.len.into(), self.handler.clone());
            self.mapped = mapped.ok().map(|id| (at, id));
        }
    }
}

impl Drop for PortWindow {
    fn drop(&mut self) {
        self.place(None);
    }
}
