//! Watchdogs.

use devices::watchdog::{I6300Esb, Ib700};
use options::Properties;

use super::{Driver, PciPlace};
use crate::BuildError;
use crate::pc::board::Pc;

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[
    Driver {
        name: "i6300esb",
        aliases: &[],
        bus: "PCI",
        description: "Intel 6300ESB's watchdog",
        make: i6300esb,
    },
    Driver {
        name: "ib700",
        aliases: &[],
        bus: "ISA",
        description: "watchdog of the single-board computer IB700",
        make: ib700,
    },
];

fn i6300esb(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let place = PciPlace::take(pc, &mut properties)?;
    properties.finish()?;
    let (timers, control) = (&pc.timers, pc.control.clone());
    let make = |wiring| Ok(I6300Esb::new(path, wiring, timers, control));
    let function = pc.make_function(path, &place, "i6300esb", make)?;
    pc.devices.push(function);
    Ok(())
}

fn ib700(pc: &mut Pc, _: &str, properties: Properties) -> Result<(), BuildError> {
    properties.finish()?;
    let watchdog = Ib700::new(&pc.timers, pc.control.clone());
    watchdog.attach(&pc.ports)?;
    pc.devices.push(watchdog);
    Ok(())
}
