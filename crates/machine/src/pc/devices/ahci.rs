//! AHCI adapters.

use devices::ahci::{Ahci, PORTS};
use devices::ide::Workers;
use options::Properties;

use super::storage::id_of;
use super::{Bus, Driver, PciPlace};
use crate::BuildError;
use crate::pc::bios::pci_path;
use crate::pc::board::Pc;

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[Driver {
    name: "ich9-ahci",
    aliases: &["ahci"],
    bus: "PCI",
    description: "Serial ATA adapter with six ports",
    make: ich9_ahci,
}];

fn ich9_ahci(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let place = PciPlace::take(pc, &mut properties)?;
    let option = properties.option().to_owned();
    properties.finish()?;
    let (devfn, wiring) =
        place.reserve(pc, "ich9-ahci").map_err(|e| BuildError::Device(format!("{option}: {e}")))?;
    let adapter =
        Ahci::new(path, wiring, pc.memory.clone(), Workers::Threads).map_err(BuildError::Thread)?;
    pc.pci.attach(devfn, adapter.clone());
    let others = pc.buses.all(|bus| matches!(bus, Bus::Ata(..)).then_some(())).len();
    for port in 0..PORTS {
        let name = match id_of(path) {
            Some(id) => format!("{id}.{port}"),
            None => format!("ide.{}", others + port),
        };
        let firmware = format!("{}/drive@{port}", pci_path("pci8086,2922", devfn));
        pc.buses.add(name, Bus::Ata(adapter.connector(port), firmware));
    }
    pc.devices.push(adapter);
    Ok(())
}
