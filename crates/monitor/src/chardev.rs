//! Commands about character devices (`schema/char.json`).

use schema::ChardevInfo;

use crate::{Connection, Monitor};

impl Monitor {
    pub(crate) fn chardevs(&self) -> Vec<ChardevInfo> {
        let machine = self.machine.chardevs().into_iter().map(info);
        let monitors = self.connections.get().into_iter().flatten().map(connection);
        monitors.chain(machine).collect()
    }
}

fn connection(connection: &Connection) -> ChardevInfo {
    match connection {
        Connection::Socket(socket) => ChardevInfo {
            label: socket.label().to_owned(),
            filename: socket.filename(),
            frontend_open: true,
        },
        Connection::Chardev(chardev) => info(chardev.info()),
    }
}

fn info(info: ::chardev::ChardevInfo) -> ChardevInfo {
    let ::chardev::ChardevInfo { label, filename, frontend_open } = info;
    ChardevInfo { label, filename, frontend_open }
}
