//! Devices for tests and debugging.

use devices::debug::{DebugConsole, DebugExit};
use options::Properties;

use super::Driver;
use crate::BuildError;
use crate::pc::board::Pc;

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[
    Driver {
        name: "isa-debug-exit",
        aliases: &[],
        bus: "ISA",
        description: "a write ends the process with status 2n+1",
        make: isa_debug_exit,
    },
    Driver {
        name: "isa-debugcon",
        aliases: &[],
        bus: "ISA",
        description: "a port whose writes go to a character device",
        make: isa_debugcon,
    },
];

fn isa_debug_exit(pc: &mut Pc, _: &str, mut properties: Properties) -> Result<(), BuildError> {
    let iobase = properties.take_number("iobase")?.unwrap_or(DebugExit::IOBASE);
    let iosize = properties.take_number("iosize")?.unwrap_or(DebugExit::IOSIZE);
    properties.finish()?;
    let device = DebugExit::new(pc.control.clone());
    device.attach(&pc.ports, iobase, iosize)?;
    pc.devices.push(device);
    Ok(())
}

fn isa_debugcon(pc: &mut Pc, _: &str, mut properties: Properties) -> Result<(), BuildError> {
    let iobase = properties.take_number("iobase")?.unwrap_or(DebugConsole::IOBASE);
    let readback = properties.take_number("readback")?.unwrap_or(DebugConsole::READBACK);
    let chardev = properties.require("chardev")?;
    properties.finish()?;
    let device = DebugConsole::new(pc.chardevs.claim(&chardev)?, readback);
    device.attach(&pc.ports, iobase)?;
    pc.devices.push(device);
    Ok(())
}
