//! Commands about character devices (`schema/char.json`).

use schema::ChardevInfo;

use crate::Monitor;

impl Monitor {
    pub(crate) fn chardevs(&self) -> Vec<ChardevInfo> {
        let machine = self.machine.chardevs().into_iter().map(|chardev| ChardevInfo {
            label: chardev.label,
            filename: chardev.filename,
            frontend_open: chardev.frontend_open,
        });
        let monitors = self.connections.get().into_iter().flatten().map(|monitor| ChardevInfo {
            label: monitor.label().to_owned(),
            filename: monitor.filename(),
            frontend_open: true,
        });
        monitors.chain(machine).collect()
    }
}
