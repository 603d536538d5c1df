//! Devices on the ISA bus.

use devices::uart16550::COM_PORTS;
use options::Properties;

use super::Driver;
use crate::BuildError;
use crate::pc::board::Pc;

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[Driver {
    name: "isa-serial",
    aliases: &[],
    bus: "ISA",
    description: "16550 serial port",
    make: isa_serial,
}];

fn isa_serial(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let chardev = properties.require("chardev")?;
    let index: Option<usize> = properties.take_number("index")?;
    let iobase: Option<u16> = properties.take_number("iobase")?;
    let option = properties.option().to_owned();
    properties.finish()?;
    let used = pc.spec.serials.len();
    let port =
        iobase.or_else(|| COM_PORTS.get(index.unwrap_or(used)).copied()).ok_or_else(|| {
            let last = COM_PORTS.len() - 1;
            BuildError::Device(format!("{option}: index must be from 0 to {last}"))
        })?;
    pc.add_serial_port(path, port, &chardev)
}
