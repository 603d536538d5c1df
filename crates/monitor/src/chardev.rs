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
        let monitors = self.monitors.iter().map(|monitor| ChardevInfo {
            label: monitor.label.clone(),
            filename: (monitor.filename)(),
            frontend_open: true,
        });
        machine.chain(monitors).collect()
    }
}
