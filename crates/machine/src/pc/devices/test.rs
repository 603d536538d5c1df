//! Devices for tests and debugging.

use devices::debug::{DebugConsole, DebugExit};
use devices::testdev::{Edu, EduConfig, HyperVTestDev, PcTestDev, PciTestDev};
use options::Properties;

use super::{Driver, PciPlace};
use crate::BuildError;
use crate::pc::board::Pc;

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[
    Driver {
        name: "edu",
        aliases: &[],
        bus: "PCI",
        description: "function to learn driver writing with",
        make: edu,
    },
    Driver {
        name: "hyperv-testdev",
        aliases: &[],
        bus: "ISA",
        description: "a port that has Hyper-V's interrupts, messages and events come",
        make: hyperv_testdev,
    },
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
    Driver {
        name: "pc-testdev",
        aliases: &[],
        bus: "ISA",
        description: "ports, memory and interrupt lines for suites that test CPUs",
        make: pc_testdev,
    },
    Driver {
        name: "pci-testdev",
        aliases: &[],
        bus: "PCI",
        description: "function that counts writes to its BARs",
        make: pci_testdev,
    },
];

fn edu(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let place = PciPlace::take(pc, &mut properties)?;
    let defaults = EduConfig::default();
    let dma_mask = properties.take_number("dma_mask")?.unwrap_or(defaults.dma_mask);
    properties.finish()?;
    let (memory, timers) = (pc.memory.clone(), &pc.timers);
    let function = pc.make_function(path, &place, "edu", |wiring| {
        Ok(Edu::new(path, EduConfig { dma_mask }, wiring, memory, timers))
    })?;
    pc.devices.push(function);
    Ok(())
}

/// Without Hyper-V's interface there is nothing that its commands could do.
fn hyperv_testdev(pc: &mut Pc, _: &str, properties: Properties) -> Result<(), BuildError> {
    properties.finish()?;
    let Some(partition) = pc.hyperv.clone() else { return Ok(()) };
    let device = HyperVTestDev::new(partition).ok_or_else(|| {
        BuildError::Device("hyperv-testdev: there is one already; leave one of them off".into())
    })?;
    device.attach(&pc.ports)?;
    pc.devices.push(device);
    Ok(())
}

fn pc_testdev(pc: &mut Pc, _: &str, properties: Properties) -> Result<(), BuildError> {
    properties.finish()?;
    let device = PcTestDev::new(|line| pc.isa_line(line));
    device.attach(&pc.ports, &pc.mmio)?;
    pc.devices.push(device);
    Ok(())
}

fn pci_testdev(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let place = PciPlace::take(pc, &mut properties)?;
    let membar = properties.take_size("membar", 1)?.unwrap_or(0);
    properties.finish()?;
    let make = |wiring| PciTestDev::new(path, membar, wiring);
    let function = pc.make_function(path, &place, "pci-testdev", make)?;
    pc.devices.push(function);
    Ok(())
}

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
    let option = properties.option().to_owned();
    properties.finish()?;
    let device = DebugConsole::new(pc.claim_chardev(&option, &chardev)?, readback);
    device.attach(&pc.ports, iobase)?;
    pc.devices.push(device);
    Ok(())
}
