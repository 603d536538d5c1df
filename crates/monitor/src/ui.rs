//! Commands about displays and input (`schema/ui.json`).

use schema::{MouseInfo, SpiceInfo, SpiceQueryMouseMode, VncInfo};

use crate::{Monitor, int};

/// The machine has no VNC server.
pub(crate) fn vnc() -> VncInfo {
    VncInfo { enabled: false, host: None, family: None, service: None, auth: None, clients: None }
}

/// The machine has no SPICE server.
pub(crate) fn spice() -> SpiceInfo {
    SpiceInfo {
        enabled: false,
        migrated: false,
        host: None,
        port: None,
        tls_port: None,
        auth: None,
        compiled_version: None,
        mouse_mode: SpiceQueryMouseMode::Client,
        channels: None,
    }
}

impl Monitor {
    pub(crate) fn mice(&self) -> Vec<MouseInfo> {
        let mice = self.machine.mice().into_iter();
        mice.map(|mouse| MouseInfo {
            name: mouse.name.to_owned(),
            index: int(mouse.index),
            current: mouse.current,
            absolute: mouse.absolute,
        })
        .collect()
    }
}
