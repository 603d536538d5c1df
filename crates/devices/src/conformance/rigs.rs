//! The list of all devices, each with the bench it is tested on.

use std::sync::Arc;

use accel::{GuestClock, InterruptController, Partition, Signals};
use bus::{AddressSpace, MsiMessage, MsiSink};
use chardev::CharEvent;
use input::{Axis, Button, InputEvent, InputHub, Key};
use memory::GuestMemory;

use super::{Bench, Rig, Space};
use crate::ahci::Ahci;
use crate::ata::{AtaDevice, CdOptions, DiskOptions};
use crate::debug::{DebugConsole, DebugExit, PostCode};
use crate::fdc::{self, Fdc, FdcPlace};
use crate::fpu_error::FpuError;
use crate::fw_cfg::{Content, FwCfg};
use crate::hpet::{self, Hpet};
use crate::hyperv::{HyperV, Options};
use crate::i440fx::I440fx;
use crate::i8042::{I8042, I8042Lines, Port92};
use crate::i8237::{Direction, DmaDevice, I8237};
use crate::i8254::I8254;
use crate::i8259::I8259;
use crate::ide::Workers;
use crate::ide::{self, PiixIde};
use crate::ioapic::{self, IoApic};
use crate::irq::IrqRouter;
use crate::irq::testing::Recorder;
use crate::lapic::testing::BenchClock;
use crate::lapic::{self, ApicBus, DeliveryMode, Destination, LocalApic, Message, Shorthand};
use crate::mc146818::{Mc146818, Reference, RtcBase, RtcConfig, RtcSource};
use crate::parallel::{LPT_PORTS, Parallel};
use crate::pci::{Devfn, PciBus, PciFunction, PciWiring};
use crate::pflash::Pflash;
use crate::piix::{Piix3, Piix4Pm, PmOptions, reg};
use crate::pvpanic::{self, PvPanic, PvPanicPci};
use crate::rom::SystemRom;
use crate::scsi::{Lun, LunOptions, Transport};
use crate::testdev::{Edu, EduConfig, HyperVTestDev, PcTestDev, PciTestDev};
use crate::testing::Everything;
use crate::uart16550::{COM_PORTS, Uart16550};
use crate::usb::hid::{Hid, HidKind};
use crate::usb::hub::UsbHub;
use crate::usb::storage::{UsbStorage, Worker};
use crate::usb::uhci::{Uhci, UhciModel};
use crate::usb::{Handshake, Peripheral, Token, Transaction, UsbBus};
use crate::vga::{VgaKind, VgaOptions, VgaPci};
use crate::virtio::balloon::VirtioBalloon;
use crate::virtio::blk::{BlkOptions, VirtioBlk};
use crate::virtio::gpu::{GpuOptions, VirtioGpu, VirtioVga};
use crate::virtio::input::{InputKind, VirtioInput};
use crate::virtio::rng::VirtioRng;
use crate::virtio::scsi::{ScsiOptions, VirtioScsi};
use crate::virtio::{VirtioDevice, VirtioPci, VirtioPciOptions};
use crate::vmgenid::VmGenId;
use crate::watchdog::{I6300Esb, Ib700};

/// One kind of device.
pub(super) struct Entry {
    /// Name of its type.
    pub(super) kind: &'static str,
    /// Makes one on a bench of its own.
    pub(super) make: fn() -> Rig,
    /// A battery keeps its state over a reset.
    pub(super) keeps_state: bool,
}

/// All devices of the crate.
pub(super) fn all() -> Vec<Entry> {
    let entry = |kind, make| Entry { kind, make, keeps_state: false };
    vec![
        entry("Ahci", ahci),
        entry("DebugConsole", debug_console),
        entry("DebugExit", debug_exit),
        entry("FwCfg", fw_cfg),
        entry("FpuError", fpu_error),
        entry("Edu", edu),
        entry("Fdc", fdc),
        entry("Hpet", hpet),
        entry("HyperV", hyperv),
        entry("I440fx", i440fx),
        entry("I8042", i8042),
        entry("I8237", i8237),
        entry("HyperVTestDev", hyperv_testdev),
        entry("I8254", i8254),
        entry("I8259", i8259),
        entry("IoApic", io_apic),
        // It remembers that a reset was its own.
        Entry { keeps_state: true, ..entry("I6300Esb", i6300esb) },
        entry("Ib700", ib700),
        entry("IrqRouter", irq_router),
        entry("LocalApic", local_apic),
        Entry { keeps_state: true, ..entry("Mc146818", mc146818) },
        entry("Parallel", parallel),
        entry("PcTestDev", pc_testdev),
        entry("PciTestDev", pci_testdev),
        entry("Peripheral", peripheral),
        entry("Peripheral", usb_storage),
        Entry { keeps_state: true, ..entry("Pflash", pflash) },
        entry("Piix3", piix3),
        entry("Piix4Pm", piix4_pm),
        entry("PiixIde", piix_ide),
        entry("Port92", port92),
        entry("PostCode", post_code),
        entry("SystemRom", system_rom),
        entry("PvPanic", pvpanic),
        entry("PvPanicPci", pvpanic_pci),
        entry("Uart16550", uart16550),
        entry("VgaPci", vga_pci),
        entry("Uhci", uhci),
        entry("VirtioPci", virtio_balloon),
        entry("VirtioPci", virtio_blk),
        entry("VirtioPci", virtio_gpu),
        entry("VirtioPci", virtio_input),
        entry("VirtioPci", virtio_rng),
        entry("VirtioPci", virtio_scsi),
        entry("VmGenId", vmgenid),
        entry("VirtioVga", virtio_vga),
    ]
}

struct NoMsi;

impl MsiSink for NoMsi {
    fn send(&self, _message: MsiMessage) {}
}

fn pci_bus(bench: &Bench) -> Arc<PciBus> {
    let router = [20, 21, 22, 23].map(|pin| bench.line(pin));
    Arc::new(PciBus::new(bench.ports.clone(), bench.mmio.clone(), router, Arc::new(NoMsi)))
}

fn apic_bus(bench: &Bench, cpus: usize) -> Arc<ApicBus> {
    let clock: Arc<dyn GuestClock> = Arc::new(BenchClock(bench.clock.clone()));
    let signals = (0..cpus).map(|_| Arc::new(Signals::default()));
    ApicBus::new((0..).zip(signals), &clock, &bench.timers)
}

/// A disk on one port. Its commands come from memory that traffic can't write, so they are written here.
fn ahci() -> Rig {
    const COMMANDS: u64 = 0x1_0000;
    const BAR: u64 = 0xfebf_0000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, vec![7; 1 << 16]).unwrap();
    let drive = Arc::new(block::Drive::open("disk", &path, &Default::default()).unwrap());
    let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
    let mut bus = None;
    let (rig, adapter) = Rig::new(|bench| {
        let wiring = bus.insert(pci_bus(bench)).wiring(Devfn::new(3, 0), 1);
        let adapter = Ahci::new("ahci0", wiring, memory.clone(), Workers::None).unwrap();
        let disk = DiskOptions { queued: true, ..DiskOptions::default() };
        adapter.connector(0).plug(0, AtaDevice::disk(drive, "disk", disk).unwrap());
        adapter
    });
    let commands = memory.clone();
    let (function, mmio) = (adapter.clone(), rig.mmio.clone());
    let other = move |kind: u32, value: u64| {
        if kind.is_multiple_of(5) {
            function.write_config(0x24, 4, BAR as u32);
            function.write_config(4, 2, 7);
            return 0;
        }
        // Some command with some regions in the first slot, which is then issued.
        let frame = [0x27, 0x80, kind as u8, value as u8, 1, 0, 0, 0x40, 0, 0, 0, 0, 1, 0, 0, 0];
        let region = 0x2_0000 | u128::from(value as u32 >> 8) << 96;
        let header = 5 | u128::from(kind >> 8 & 3) << 16 | u128::from(COMMANDS + 0x400) << 64;
        commands.write(COMMANDS, &header.to_le_bytes()).unwrap();
        commands.write(COMMANDS + 0x400, &frame).unwrap();
        commands.write(COMMANDS + 0x480, &region.to_le_bytes()).unwrap();
        for (register, value) in
            [(0x100, COMMANDS), (0x108, COMMANDS + 0x800), (0x118, 0x17), (0x138, 1)]
        {
            mmio.write(BAR + register, 4, value);
        }
        mmio.read(BAR + 0x120, 4).unwrap_or(0)
    };
    rig.target(Space::Memory, BAR, 0x180)
        .target(Space::Memory, BAR + 0x100, 0x40)
        .config(adapter)
        .other(other)
        .keep((dir, bus))
}

fn debug_console() -> Rig {
    let (rig, _) = Rig::new(|bench| {
        let console = DebugConsole::new(Arc::new(Everything::default()), DebugConsole::READBACK);
        console.attach(&bench.ports, DebugConsole::IOBASE).unwrap();
        console
    });
    rig.target(Space::Ports, DebugConsole::IOBASE.into(), 1)
}

fn debug_exit() -> Rig {
    let (rig, _) = Rig::new(|bench| {
        let exit = DebugExit::new(bench.wishes.clone());
        exit.attach(&bench.ports, DebugExit::IOBASE, DebugExit::IOSIZE).unwrap();
        exit
    });
    rig.target(Space::Ports, DebugExit::IOBASE.into(), 2)
}

fn pflash() -> Rig {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0x5a; 0x2000]).unwrap();
    let drive = block::Drive::open("flash", file.path(), &block::DriveOptions::default()).unwrap();
    let memory = Arc::new(GuestMemory::new(&[(0, 0x1000)]).unwrap());
    let seen = memory.clone();
    let (rig, _) = Rig::new(|bench| {
        let flash = Pflash::new("flash0", Arc::new(drive), &memory, 0xffff_0000).unwrap();
        flash.attach(&bench.mmio).unwrap();
        flash
    });
    let looks = move |_, _| u64::from(seen.page(0xffff_0000, false).host.is_some());
    rig.target(Space::Memory, 0xffff_0000, 0x2000).other(looks).keep(file)
}

fn system_rom() -> Rig {
    let memory = GuestMemory::new(&[(0, 0x1000)]).unwrap();
    let block = memory.allocate("pc.bios", 0x1000).unwrap();
    block.write(0xff0, &[0xea]).unwrap();
    Rig::new(|_| SystemRom::new(block)).0.keep(memory)
}

fn fw_cfg() -> Rig {
    let memory = Arc::new(GuestMemory::new(&[(0, 0x1_0000)]).unwrap());
    let dma = memory.clone();
    let (rig, _) = Rig::new(|bench| {
        let device = FwCfg::new(memory);
        device.attach(&bench.ports).unwrap();
        device.add_file("etc/fixed", vec![1, 2, 3].into()).unwrap();
        device.add_file("etc/written", Content::Writable(8, Box::new(|_| {}))).unwrap();
        device
    });
    let ports = rig.ports.clone();
    // A DMA command: the second number has the first words of its structure.
    let command = move |kind: u32, value: u64| {
        let mut bytes = [0; 16];
        let control = (value as u32 & 0x1f) | (kind % 0x24) << 16;
        bytes[..4].copy_from_slice(&control.to_be_bytes());
        bytes[4..8].copy_from_slice(&((value >> 32) as u32 & 0xff).to_be_bytes());
        bytes[14] = kind as u8;
        dma.write(0x100, &bytes).unwrap();
        ports.write(0x518, 4, u64::from(0x100u32.swap_bytes()));
        dma.read(0x100, &mut bytes).unwrap();
        bytes[3].into()
    };
    rig.target(Space::Ports, 0x510, 2).target(Space::Ports, 0x514, 8).other(command)
}

fn fdc() -> Rig {
    let (rig, controller) = Rig::new(|bench| {
        let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
        let dma = I8237::new(memory);
        dma.attach(&bench.ports).unwrap();
        let controller = Fdc::new("fdc", FdcPlace::FIRST, &dma, bench.line(6));
        controller.attach(&bench.ports).unwrap();
        controller.connect(None, fdc::tests::unit(160 << 10), "fda").unwrap();
        controller
    });
    let ports = rig.ports.clone();
    // Commands, which random bytes rarely are.
    let other = move |kind: u32, value: u64| {
        const COMMANDS: [u8; 8] = [0x46, 0x45, 0x4d, 0x42, 0x4a, 0x56, 0x51, 0x0f];
        let write = |byte: u64| ports.write(0x3f5, 1, byte & 0xff);
        // Without DMA: its controller is another device, which this rig does not restore.
        if kind & 0x200 == 0 {
            for byte in [3, 0xdf, 3] {
                write(byte);
            }
        }
        write(COMMANDS[kind as usize % COMMANDS.len()].into());
        for shift in 0..8 {
            write(value >> (8 * shift) & if kind & 0x100 == 0 { 7 } else { 0xff });
        }
        ports.read(0x3f5, 1).unwrap_or(0)
    };
    let _ = controller;
    rig.target(Space::Ports, 0x3f1, 5).target(Space::Ports, 0x3f7, 1).other(other)
}

struct NoDmaDevice;

impl DmaDevice for NoDmaDevice {
    fn dma_ready(&self) {}
}

fn i8237() -> Rig {
    let (rig, dma) = Rig::new(|bench| {
        let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
        let dma = I8237::new(memory);
        dma.attach(&bench.ports).unwrap();
        dma
    });
    let device: Arc<dyn DmaDevice> = Arc::new(NoDmaDevice);
    let channels = [1, 5].map(|number| dma.channel(number, Arc::downgrade(&device)));
    let other = move |kind: u32, value: u64| {
        let channel = &channels[kind as usize % 2];
        channel.request(kind & 2 == 0);
        let mut data = value.to_le_bytes();
        let direction = if kind & 4 == 0 { Direction::ToMemory } else { Direction::FromMemory };
        channel.transfer(direction, &mut data).bytes as u64
    };
    rig.target(Space::Ports, 0, 0x10)
        .target(Space::Ports, 0xc0, 0x20)
        .target(Space::Ports, 0x81, 3)
        .other(other)
        .keep(device)
}

fn hpet() -> Rig {
    let (rig, hpet) = Rig::new(|bench| {
        let lines = bench.lines.clone();
        let lines: hpet::Lines = Box::new(move |line| bus::IrqLine::new(lines.clone(), line));
        let hpet = Hpet::new(&bench.timers, lines, Arc::new(NoMsi));
        bench.mmio.map(hpet::BASE, hpet::MMIO_SIZE, hpet.clone()).unwrap();
        hpet
    });
    let registers = hpet.clone();
    // A timer that runs: random offsets rarely meet its registers.
    let other = move |kind: u32, value: u64| {
        let timer = 0x100 + 0x20 * u64::from(kind % 3);
        let write = |offset, value| bus::BusDevice::write(&*registers, offset, 8, value);
        match kind >> 8 & 3 {
            0 => write(0x10, value & 3),
            1 => write(timer, value | 4),
            2 => write(timer + 8, value & 0xffff_ffff),
            _ => write(0x20, value),
        }
        bus::BusDevice::read(&*registers, timer + 8, 8)
    };
    rig.target(Space::Memory, hpet::BASE, 0x160).inputs(hpet, 2).other(other)
}

fn parallel() -> Rig {
    let (rig, _) = Rig::new(|bench| {
        let paper = Arc::new(Everything::default());
        let port = Parallel::new("parallel0", LPT_PORTS[0], bench.line(7), paper);
        port.attach(&bench.ports).unwrap();
        port
    });
    rig.target(Space::Ports, LPT_PORTS[0].into(), 8)
}

fn pvpanic() -> Rig {
    let (rig, _) = Rig::new(|bench| {
        let device = PvPanic::new(pvpanic::EVENTS, bench.wishes.clone());
        device.attach(&bench.ports, pvpanic::PORT).unwrap();
        device
    });
    rig.target(Space::Ports, pvpanic::PORT.into(), 1)
}

fn pvpanic_pci() -> Rig {
    let (rig, function) = Rig::new(|bench| {
        let wishes = bench.wishes.clone();
        PvPanicPci::new("pvpanic0", pvpanic::EVENTS, pci_wiring(bench), wishes)
    });
    rig.target(Space::Memory, 0xfe00_0000, 16).config(function.clone()).other(open_bars(function))
}

fn i6300esb() -> Rig {
    let (rig, function) = Rig::new(|bench| {
        let wishes = bench.wishes.clone();
        I6300Esb::new("watchdog0", pci_wiring(bench), &bench.timers, wishes)
    });
    let (mmio, open) = (rig.mmio.clone(), open_bars(function.clone()));
    let watchdog = function.clone();
    // Short stages, started and fed.
    let other = move |kind: u32, value: u64| {
        open(kind, value);
        for byte in [0x80, 0x86] {
            mmio.write(0xfe00_000c, 2, byte);
        }
        let (offset, size) = [(0, 4), (4, 4), (0xc, 2)][kind as usize % 3];
        mmio.write(0xfe00_0000 + offset, size, value & 0x1ff);
        watchdog.write_config(0x68, 1, kind >> 8 & 6);
        watchdog.read_config(0x60, 4).into()
    };
    rig.target(Space::Memory, 0xfe00_0000, 16).config(function).other(other)
}

fn ib700() -> Rig {
    let (rig, _) = Rig::new(|bench| {
        let watchdog = Ib700::new(&bench.timers, bench.wishes.clone());
        watchdog.attach(&bench.ports).unwrap();
        watchdog
    });
    rig.target(Space::Ports, 0x441, 1).target(Space::Ports, 0x443, 1)
}

fn vmgenid() -> Rig {
    let memory = GuestMemory::new(&[(0, 0x1000)]).unwrap();
    Rig::new(|_| VmGenId::new(&memory, [0x5a; 16]).unwrap()).0.keep(memory)
}

fn i440fx() -> Rig {
    let mut bus = None;
    let memory = Arc::new(GuestMemory::new(&[(0, 0xa_0000), (0xc_0000, 0x4_0000)]).unwrap());
    let seen = memory.clone();
    let (rig, bridge) = Rig::new(|bench| {
        let pci = bus.insert(pci_bus(bench));
        let bridge = I440fx::new();
        let bios = memory.allocate("bios", 0x2_0000).unwrap();
        bridge.connect_memory(&memory, Some(bios)).unwrap();
        bridge.attach(pci, &bench.ports).unwrap();
        bridge
    });
    let ports = rig.ports.clone();
    // Selects one of its own registers.
    let select = move |page: u32, value: u64| {
        ports.write(0xcf8, 4, 0x8000_0000 | value & 0xfc);
        let address = 0xa_0000 + u64::from(page % 0x60) * 0x1000;
        let looks = |smm| {
            let page = seen.page(address, smm);
            u64::from(page.host.is_some()) | (page.writes as u64) << 1
        };
        looks(false) | looks(true) << 8
    };
    rig.target(Space::Ports, 0xcf8, 8).config(bridge).other(select).keep(bus)
}

fn i8042() -> Rig {
    let mut keep = None;
    let (rig, controller) = Rig::new(|bench| {
        let hub = keep.insert(InputHub::new(&bench.timers));
        let lines = I8042Lines { keyboard: bench.line(1), mouse: bench.line(12) };
        let controller = I8042::new(lines, bench.a20(), bench.wishes.clone(), hub, &bench.timers);
        controller.attach(&bench.ports).unwrap();
        controller
    });
    let hub = keep.clone().unwrap();
    let other = move |kind: u32, value: u64| {
        hub.send(None, &[input_event(kind, value)]);
        0
    };
    let _ = controller;
    rig.target(Space::Ports, 0x60, 1).target(Space::Ports, 0x64, 1).other(other).keep(keep)
}

/// Any event that a keyboard, mouse or tablet knows.
fn input_event(kind: u32, value: u64) -> InputEvent {
    const BUTTONS: [Button; 9] = [
        Button::Left,
        Button::Middle,
        Button::Right,
        Button::WheelUp,
        Button::WheelDown,
        Button::Side,
        Button::Extra,
        Button::WheelLeft,
        Button::WheelRight,
    ];
    let axis = if kind & 0x100 != 0 { Axis::X } else { Axis::Y };
    match kind % 4 {
        0 => InputEvent::Key {
            key: Key::ALL[value as usize % Key::ALL.len()],
            down: kind & 0x100 != 0,
        },
        1 => InputEvent::Button {
            button: BUTTONS[value as usize % BUTTONS.len()],
            down: kind & 0x100 != 0,
        },
        2 => InputEvent::Relative { axis, value: value as i32 },
        _ => InputEvent::Absolute { axis, value: value as i32 },
    }
}

fn i8254() -> Rig {
    let (rig, _) = Rig::new(|bench| {
        let pit = I8254::new(&bench.timers, bench.line(0));
        pit.attach(&bench.ports).unwrap();
        pit
    });
    rig.target(Space::Ports, 0x40, 4).target(Space::Ports, 0x61, 1)
}

fn i8259() -> Rig {
    let (rig, pic) = Rig::new(|bench| {
        let pic = I8259::new(bench.line(0));
        pic.attach(&bench.ports).unwrap();
        pic
    });
    let cpu = pic.clone();
    let acknowledge = move |_, _| lapic::ExternalInterrupts::acknowledge(&*cpu).into();
    rig.target(Space::Ports, 0x20, 2)
        .target(Space::Ports, 0xa0, 2)
        .target(Space::Ports, 0x4d0, 2)
        .inputs(pic, 16)
        .other(acknowledge)
}

fn io_apic() -> Rig {
    let mut apics = None;
    let (rig, ioapic) = Rig::new(|bench| {
        let ioapic = IoApic::new(apics.insert(apic_bus(bench, 2)).clone());
        bench.mmio.map(ioapic::BASE, ioapic::MMIO_SIZE, ioapic.clone()).unwrap();
        ioapic
    });
    let end = ioapic.clone();
    let window = ioapic.clone();
    let other = move |kind: u32, value: u64| {
        if kind.is_multiple_of(4) {
            lapic::EndOfInterrupt::end_of_interrupt(&*end, value as u8);
            return 0;
        }
        // Through the window, as random offsets rarely are.
        bus::BusDevice::write(&*window, 0, 4, u64::from(kind) % 0x40);
        bus::BusDevice::write(&*window, 0x10, 4, value);
        bus::BusDevice::read(&*window, 0x10, 4)
    };
    rig.target(Space::Memory, ioapic::BASE, ioapic::MMIO_SIZE)
        .inputs(ioapic, ioapic::PINS)
        .other(other)
        .keep(apics)
}

fn irq_router() -> Rig {
    let (rig, router) =
        Rig::new(|bench| IrqRouter::new(bench.lines.clone(), Arc::new(Recorder::default())));
    for (pirq, line) in (0..).zip([10, 11, 5, 9]) {
        router.set_route(pirq, Some(line));
    }
    let pirqs = router.pirq_lines();
    let other = move |kind: u32, value: u64| {
        pirqs[kind as usize % 4].set(value & 1 != 0);
        0
    };
    rig.inputs(router, 16).other(other)
}

/// Hyper-V's interface for two CPUs, and what has to live as long.
fn new_hyperv(bench: &Bench) -> (Arc<HyperV>, (Arc<ApicBus>, Arc<GuestMemory>)) {
    let bus = apic_bus(bench, 2);
    let memory = Arc::new(GuestMemory::new(&[(0, 0x10_0000)]).unwrap());
    let clock: Arc<dyn GuestClock> = Arc::new(BenchClock(bench.clock.clone()));
    let options = Options { intel: true, direct_timers: true, phys_bits: 40 };
    let (timers, control) = (&bench.timers, bench.wishes.clone());
    let hyperv = HyperV::new(options, &memory, &bus, &clock, timers, control).unwrap();
    (hyperv, (bus, memory))
}

fn hyperv() -> Rig {
    let mut kept = None;
    let (rig, hyperv): (Rig, Arc<HyperV>) = Rig::new(|bench| {
        let (hyperv, keep) = new_hyperv(bench);
        kept = Some(keep);
        hyperv
    });
    let partition = hyperv.clone();
    let other = move |kind: u32, value: u64| {
        let processor = kind >> 1 & 3;
        // The interrupt command is the APIC's, which is not saved with this device.
        let registers = [0x00, 0x01, 0x02, 0x03, 0x20, 0x21, 0x22, 0x70, 0x73, 0x80, 0x81, 0x82]
            .into_iter()
            .chain([0x83, 0x84, 0x90, 0x92, 0x93, 0x100, 0x104, 0x105, 0x106])
            .chain(0xb0..0xb8);
        let registers: Vec<u32> = registers.collect();
        let register = 0x4000_0000 + registers[(kind >> 4) as usize % registers.len()];
        if kind & 1 == 0 {
            return partition.read_register(processor, register).unwrap_or(0x5a5a);
        }
        // Small times and low pages are more to the point than others.
        let value = if kind >> 3 & 1 == 0 { value & 0xf_ffff } else { value };
        partition.write_register(processor, register, value).into()
    };
    rig.other(other).keep(kept)
}

fn hyperv_testdev() -> Rig {
    let mut kept = None;
    let (rig, _): (Rig, Arc<HyperVTestDev>) = Rig::new(|bench| {
        let (hyperv, keep) = new_hyperv(bench);
        kept = Some(keep);
        let device = HyperVTestDev::new(hyperv).unwrap();
        device.attach(&bench.ports).unwrap();
        device
    });
    rig.target(Space::Ports, 0x3000, 4).keep(kept)
}

fn local_apic() -> Rig {
    let mut apics = None;
    let (rig, apic): (Rig, Arc<LocalApic>) = Rig::new(|bench| {
        let bus = apics.insert(apic_bus(bench, 1));
        let apic = bus.apics()[0].clone();
        bench.mmio.map(lapic::DEFAULT_BASE, lapic::MMIO_SIZE, apic.clone()).unwrap();
        apic.connect_memory(&Arc::new(GuestMemory::new(&[(0, 0x1000)]).unwrap()));
        apic
    });
    let bus = apics.clone().unwrap();
    let cpu = apic.clone();
    let other = move |kind: u32, value: u64| {
        let register = (kind >> 8) & 0x3f;
        match kind % 8 {
            0 => cpu.acknowledge().map_or(0x100, u64::from),
            1 => cpu.task_priority().into(),
            2 => {
                cpu.set_task_priority(value as u8 & 0xf);
                0
            }
            3 => cpu.read_msr(0x800 + register).unwrap_or(u64::MAX),
            4 => cpu.write_msr(0x800 + register, value).into(),
            5 => {
                let index = if register & 1 == 0 { 0x1b } else { 0x6e0 };
                let base = lapic::DEFAULT_BASE | 0x900 | value & 0x400;
                let value = if index == 0x1b && kind & 0x1000 != 0 { base } else { value };
                u64::from(cpu.write_msr(index, value)) | cpu.read_msr(index).unwrap_or(0) << 1
            }
            6 => {
                let page = lapic::DEFAULT_BASE + u64::from(register) * 16;
                bus::BusDevice::write(&*cpu, page & 0xfff, 4, value);
                bus::BusDevice::read(&*cpu, page & 0xfff, 4)
            }
            _ => {
                let mode = DeliveryMode::from_bits(kind >> 8).unwrap_or(DeliveryMode::Fixed);
                let destination = Destination {
                    id: (value >> 8) as u32 & 3,
                    logical: kind & 1 << 16 != 0,
                    wide: false,
                };
                bus.deliver(Message {
                    destination,
                    shorthand: Shorthand::None,
                    mode,
                    vector: value as u8,
                    level: kind & 1 << 17 != 0,
                })
                .into()
            }
        }
    };
    rig.target(Space::Memory, lapic::DEFAULT_BASE, lapic::MMIO_SIZE)
        .inputs(apic, 3)
        .other(other)
        .keep(apics)
}

fn mc146818() -> Rig {
    let (rig, rtc) = Rig::new(|bench| {
        let config =
            RtcConfig { base: RtcBase::At(1_700_000_000), source: RtcSource::Guest, slew: true };
        let reference = Arc::new(Reference::new(&config, &bench.clock));
        let rtc = Mc146818::new(reference, &bench.timers, bench.line(8), bench.wishes.clone());
        rtc.attach(&bench.ports).unwrap();
        rtc
    });
    let ports = rig.ports.clone();
    // The clock's own registers, which random indices rarely are.
    let other = move |kind: u32, value: u64| {
        ports.write(0x70, 1, (kind % 16).into());
        if kind & 0x100 != 0 {
            ports.write(0x71, 1, value);
        }
        ports.read(0x71, 1).unwrap_or(0)
    };
    let _ = rtc;
    rig.target(Space::Ports, 0x70, 2).other(other)
}

/// What a PCI function is wired to; its INTx is line 11.
fn pci_wiring(bench: &Bench) -> PciWiring {
    PciWiring {
        ports: Arc::downgrade(&bench.ports),
        mmio: Arc::downgrade(&bench.mmio),
        intx: bench.line(11),
        pin: 1,
        msi: Arc::new(NoMsi),
        multifunction: false,
        rom: None,
    }
}

/// A step that puts BAR 0 at FE000000h, BAR 1 at C000h, and switches the function on.
fn open_bars(function: Arc<dyn PciFunction>) -> impl Fn(u32, u64) -> u64 {
    move |_, _| {
        function.write_config(0x10, 4, 0xfe00_0000);
        function.write_config(0x14, 4, 0xc000);
        function.write_config(4, 2, 7);
        0
    }
}

fn edu() -> Rig {
    let (rig, function) = Rig::new(|bench| {
        let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
        Edu::new("edu0", EduConfig::default(), pci_wiring(bench), memory, &bench.timers)
    });
    rig.target(Space::Memory, 0xfe00_0000, 0xa0).config(function.clone()).other(open_bars(function))
}

fn pc_testdev() -> Rig {
    let (rig, _) = Rig::new(|bench| {
        let device = PcTestDev::new(|pin| bench.line(pin));
        device.attach(&bench.ports, &bench.mmio).unwrap();
        device
    });
    rig.target(Space::Ports, 0xe0, 12).target(Space::Ports, 0x2000, 16).target(
        Space::Memory,
        0xff00_0000,
        0x1_0000,
    )
}

fn pci_testdev() -> Rig {
    let (rig, function) =
        Rig::new(|bench| PciTestDev::new("testdev0", 0, pci_wiring(bench)).unwrap());
    rig.target(Space::Memory, 0xfe00_0000, 0x1000)
        .target(Space::Ports, 0xc000, 0x100)
        .config(function.clone())
        .other(open_bars(function))
}

fn piix3() -> Rig {
    let mut keep = None;
    let (rig, bridge) = Rig::new(|bench| {
        let router = IrqRouter::new(bench.lines.clone(), Arc::new(Recorder::default()));
        let pci = pci_bus(bench);
        // One PIRQ is asserted, so that a route shows.
        router.pirq_lines()[0].set(true);
        let bridge = Piix3::new(router, bench.wishes.clone());
        bridge.attach(&pci, &bench.ports).unwrap();
        keep = Some(pci);
        bridge
    });
    let routes = bridge.clone();
    let other = move |kind: u32, value: u64| {
        routes.write_config(reg::PIRQ_ROUTES + (kind % 4) as u16, 1, value as u32 & 0x8f);
        0
    };
    rig.target(Space::Ports, 0xcf9, 1).config(bridge).other(other).keep(keep)
}

fn piix4_pm() -> Rig {
    let mut keep = None;
    let (rig, pm) = Rig::new(|bench| {
        let pci = pci_bus(bench);
        let pm = Piix4Pm::new(
            &bench.ports,
            &bench.timers,
            bench.line(9),
            bench.wishes.clone(),
            PmOptions::default(),
        );
        pm.attach(&pci, &bench.ports).unwrap();
        keep = Some(pci);
        pm
    });
    let function = pm.clone();
    let other = move |kind: u32, _| {
        if kind.is_multiple_of(4) {
            function.press_power_button();
        } else {
            function.write_config(reg::PM_BASE, 4, 0x600);
            function.write_config(reg::PM_ENABLE, 1, 1);
            function.write_config(reg::SMBUS_BASE, 4, 0x700);
            function.write_config(reg::SMBUS_ENABLE, 1, 1);
        }
        0
    };
    rig.target(Space::Ports, 0x600, 0x40)
        .target(Space::Ports, 0x700, 16)
        .target(Space::Ports, 0xb2, 2)
        .config(pm)
        .other(other)
        .keep(keep)
}

fn fpu_error() -> Rig {
    let (rig, _) = Rig::new(|bench| {
        let latch = FpuError::new(bench.line(13));
        latch.attach(&bench.ports).unwrap();
        latch
    });
    rig.target(Space::Ports, 0xf0, 2)
}

fn port92() -> Rig {
    let (rig, _) = Rig::new(|bench| {
        let port = Port92::new(bench.a20(), bench.wishes.clone());
        port.attach(&bench.ports).unwrap();
        port
    });
    rig.target(Space::Ports, 0x92, 1)
}

fn post_code() -> Rig {
    let (rig, _) = Rig::new(|bench| {
        let post = PostCode::new();
        post.attach(&bench.ports).unwrap();
        post
    });
    rig.target(Space::Ports, 0x80, 1)
}

fn uart16550() -> Rig {
    let backend = Arc::new(Everything::default());
    let (rig, _) = Rig::new(|bench| {
        let line = bench.line(4);
        let uart = Uart16550::new("serial0", COM_PORTS[0], &bench.timers, line, backend.clone());
        uart.attach(&bench.ports).unwrap();
        uart
    });
    let other = move |kind: u32, value: u64| {
        let bytes = value.to_le_bytes();
        backend.with_receiver(|uart| {
            match kind % 4 {
                0 => uart.event(CharEvent::Break),
                _ => uart.receive(&bytes[..kind as usize / 4 % 8]),
            }
            uart.can_receive() as u64
        })
    };
    rig.target(Space::Ports, COM_PORTS[0].into(), 8).other(other)
}

fn vga_pci() -> Rig {
    const MMIO: u32 = 0xfebf_0000;
    let (rig, function) = Rig::new(|bench| {
        let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
        let options = VgaOptions { memory_mib: 1, ..Default::default() };
        let (clock, wiring) = (bench.clock.clone(), pci_wiring(bench));
        let kind = VgaKind::Primary;
        let function = VgaPci::new("vga0", kind, options, None, clock, wiring, &memory).unwrap();
        function.vga().attach(&bench.ports, &AddressSpace::new()).unwrap();
        function
    });
    let (open, mmio) = (function.clone(), rig.mmio.clone());
    // Where the registers are in memory is any address to the traffic, so this puts them in one place.
    let other = move |kind: u32, value| {
        open.write_config(0x18, 4, MMIO);
        open.write_config(4, 2, 2);
        let address = u64::from(MMIO + (kind >> 1 & 0xfff));
        if kind & 1 == 0 {
            return mmio.read(address, 2).unwrap_or(u64::MAX);
        }
        mmio.write(address, 2, value).into()
    };
    // The memory is not part of the state, so the window at A0000 is left out.
    rig.target(Space::Ports, 0x3b4, 0x2c)
        .target(Space::Ports, 0x3c0, 0x10)
        .target(Space::Ports, 0x1ce, 3)
        .config(function)
        .other(other)
}

fn peripheral() -> Rig {
    let mut keep = None;
    let (rig, device) = Rig::new(|bench| {
        let hub = keep.insert(InputHub::new(&bench.timers));
        let clock = bench.clock.clone();
        Peripheral::new("usb0", Hid::new(HidKind::Mouse, "1".into(), None, hub, clock))
    });
    let hub = keep.clone().unwrap();
    let other = move |kind: u32, value: u64| {
        if kind.is_multiple_of(4) {
            hub.send(None, &[input_event(kind >> 2, value)]);
            return 0;
        }
        let mut data = value.to_le_bytes();
        // Few addresses and endpoints, so that many packets are for it; small requests.
        data[2] &= 3;
        let tokens = [Token::Setup, Token::In, Token::Out];
        let handshake = device.transact(&mut Transaction {
            address: (kind >> 4) as u8 & 3,
            endpoint: u8::from(kind & 0x700 == 0),
            token: tokens[(kind >> 12) as usize % 3],
            data: &mut data[..if kind & 0x800 == 0 { 8 } else { 3 }],
        });
        match handshake {
            None => 0,
            Some(Handshake::Ack(len)) => u64::from_le_bytes(data) ^ len as u64,
            Some(Handshake::Nak) => 2,
            Some(Handshake::Stall) => 3,
            Some(Handshake::Babble) => 4,
        }
    };
    rig.other(other).keep(keep)
}

/// A disk whose medium never changes.
fn usb_storage() -> Rig {
    let (rig, device) = Rig::new(|_| {
        let options = block::DriveOptions::default();
        let drive = block::Drive::with_node("d", Arc::new(Blank::default()), &options);
        let options = LunOptions { keeps_sense: true, ..LunOptions::disk() };
        let lun = Lun::new(Arc::new(drive), "usb0", options).unwrap();
        Peripheral::new("usb-storage0", UsbStorage::new(lun, "1".into(), Worker::None).unwrap())
    });
    let other =
        move |kind: u32, value: u64| {
            let transact = |endpoint, token, data: &mut [u8]| match device
                .transact(&mut Transaction { address: 0, endpoint, token, data })
            {
                Some(Handshake::Ack(len)) => len as u64,
                other => 0x100 + u64::from(other.is_some()),
            };
            match kind % 8 {
                0 => {
                    // It is given its configuration, or reset.
                    let mut setup =
                        if kind & 8 == 0 { [0x21, 0xff, 0, 0, 0, 0, 0, 0] } else { [0; 8] };
                    if setup[0] == 0 {
                        setup[1..3].copy_from_slice(&[9, 1]);
                    }
                    transact(0, Token::Setup, &mut setup) + transact(0, Token::In, &mut [])
                }
                1..=3 => {
                    // A command from those that there are, with few data.
                    let codes = [0x00, 0x03, 0x12, 0x25, 0x28, 0x2a, 0x2f, 0x35, 0x41, 0x55, 0x93];
                    let mut wrapper = [0; 31];
                    wrapper[..4].copy_from_slice(b"USBC");
                    wrapper[8..10].copy_from_slice(&(value as u16 & 0xfff).to_le_bytes());
                    wrapper[12] = (value >> 16) as u8 & 0x80;
                    wrapper[14] = 16;
                    wrapper[15] = codes[(value >> 24) as usize % codes.len()];
                    wrapper[16..31].copy_from_slice(&[(value >> 32) as u8 & 7; 15]);
                    transact(2, Token::Out, &mut wrapper)
                }
                4 | 5 => transact(2, Token::Out, &mut [value as u8; 64][..kind as usize >> 8 & 63]),
                _ => {
                    let mut room = [0; 64];
                    let len = transact(1, Token::In, &mut room);
                    room.iter().fold(len, |sum, &byte| sum.rotate_left(5) ^ u64::from(byte))
                }
            }
        };
    rig.other(other)
}

fn uhci() -> Rig {
    let mut keep = None;
    let (rig, uhci) = Rig::new(|bench| {
        let wiring = PciWiring { pin: 4, ..pci_wiring(bench) };
        // All schedules are TDs that lead to themselves.
        let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
        let uhci = Uhci::new("uhci0", UhciModel::PIIX3, wiring, memory, &bench.timers);
        let hub = UsbHub::new("1".into(), 8);
        let bus = UsbBus::default();
        bus.add_ports(None, &uhci);
        bus.take(None).unwrap().plug(Peripheral::new("hub0", hub.clone()));
        keep = Some((bus, hub));
        uhci
    });
    let open = uhci.clone();
    let other = move |_, _| {
        open.write_config(0x20, 4, 0xc000);
        open.write_config(4, 2, 7);
        0
    };
    rig.target(Space::Ports, 0xc000, 0x20).config(uhci).other(other).keep(keep)
}

fn virtio_vga() -> Rig {
    const MMIO: u32 = 0xfe00_0000;
    let (rig, function) = Rig::new(|bench| {
        let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
        let gpu = VirtioGpu::new(GpuOptions::default());
        let vga = VgaOptions { memory_mib: 1, ..Default::default() };
        let options = VirtioPciOptions { id: "virtio-vga0".into(), ..Default::default() };
        let (clock, wiring) = (bench.clock.clone(), pci_wiring(bench));
        let function = VirtioVga::new(gpu, &vga, None, options, clock, wiring, &memory).unwrap();
        function.vga().attach(&bench.ports, &AddressSpace::new()).unwrap();
        // Workers would make two runs differ.
        bus::Device::pause(&*function);
        function
    });
    let (open, mmio) = (function.clone(), rig.mmio.clone());
    let other = move |kind: u32, value| {
        open.write_config(0x18, 4, MMIO);
        open.write_config(0x1c, 4, 0);
        open.write_config(4, 2, 2);
        let address = u64::from(MMIO + (kind >> 1 & 0x3fff));
        let size = 1 << (kind >> 16 & 1);
        if kind & 1 == 0 {
            return mmio.read(address, size).unwrap_or(u64::MAX);
        }
        mmio.write(address, size, value).into()
    };
    rig.target(Space::Ports, 0x3c0, 0x10)
        .target(Space::Ports, 0x1ce, 3)
        .config(function)
        .other(other)
}

fn virtio_rng() -> Rig {
    virtio_pci("rng0", |bench, _| VirtioRng::new(None, &bench.timers))
}

fn virtio_balloon() -> Rig {
    virtio_pci("balloon0", |bench, memory| {
        VirtioBalloon::new(memory.clone(), 1 << 20, false, &bench.timers)
    })
}

/// A disk whose medium never changes.
fn virtio_blk() -> Rig {
    virtio_pci("blk0", |_, _| {
        let options = block::DriveOptions::default();
        let drive = block::Drive::with_node("d", Arc::new(Blank::default()), &options);
        VirtioBlk::new(Arc::new(drive), "blk0", BlkOptions::default()).unwrap()
    })
}

/// An adapter with such a disk.
fn virtio_scsi() -> Rig {
    virtio_pci("scsi0", |_, _| {
        let options = block::DriveOptions::default();
        let drive = block::Drive::with_node("d", Arc::new(Blank::default()), &options);
        let lun = Lun::new(Arc::new(drive), "disk0", LunOptions::disk()).unwrap();
        let adapter = VirtioScsi::new(ScsiOptions::default()).unwrap();
        let address = adapter.bus().find(0, None, None).unwrap();
        adapter.attach(address, "disk0", lun);
        adapter
    })
}

fn virtio_input() -> Rig {
    let mut hub = None;
    let rig = virtio_pci("input0", |bench, _| {
        let hub = hub.insert(InputHub::new(&bench.timers));
        VirtioInput::new(InputKind::Tablet, None, true, None, hub)
    });
    rig.keep(hub)
}

fn virtio_gpu() -> Rig {
    virtio_pci("gpu0", |_, _| VirtioGpu::new(GpuOptions::default()))
}

/// The function of a virtio device, which `make` makes.
fn virtio_pci<D: VirtioDevice + 'static>(
    id: &str,
    make: impl FnOnce(&Bench, &Arc<GuestMemory>) -> Arc<D>,
) -> Rig {
    const BARS: [(u16, u32); 4] =
        [(0x10, 0xc000), (0x14, 0xfebf_0000), (0x20, 0xfe00_0000), (0x24, 0)];
    let (rig, function) = Rig::new(|bench| {
        let wiring = pci_wiring(bench);
        let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
        let device = make(bench, &memory);
        let options = VirtioPciOptions { id: id.into(), ..Default::default() };
        let function = VirtioPci::new(device, options, wiring, memory).unwrap();
        // Workers would make two runs differ.
        bus::Device::pause(&*function);
        function
    });
    let open = function.clone();
    let other = move |_, _| {
        for (offset, value) in BARS {
            open.write_config(offset, 4, value);
        }
        open.write_config(4, 2, 7);
        0
    };
    rig.target(Space::Ports, 0xc000, 0x20)
        .target(Space::Memory, 0xfebf_0000, 0x1000)
        .target(Space::Memory, 0xfe00_0000, 0x4000)
        .config(function)
        .other(other)
}

/// A disk on one channel, a CD-ROM drive on the other, on media that never change.
fn piix_ide() -> Rig {
    const BUS_MASTER: u32 = 0xc000;
    let mut memory = None;
    let (rig, ide) = Rig::new(|bench| {
        let wiring = pci_wiring(bench);
        let memory = memory.insert(Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap()));
        let irqs = ide::IRQS.map(|irq| bench.line(irq));
        let controller = PiixIde::new(wiring, irqs, memory, Workers::None).unwrap();
        let drive = || {
            let options = block::DriveOptions::default();
            Arc::new(block::Drive::with_node("d", Arc::new(Blank::default()), &options))
        };
        let disk = AtaDevice::disk(drive(), "hd", DiskOptions::default()).unwrap();
        controller.connector(0).plug(0, disk);
        let lun = Lun::new(drive(), "cd", LunOptions::cdrom(Transport::Atapi)).unwrap();
        controller.connector(1).plug(0, AtaDevice::cdrom(lun, CdOptions::default()));
        for (channel, (command, control)) in ide::PORTS.into_iter().enumerate() {
            let ports = controller.ports(channel);
            bench.ports.map(command.into(), 8, ports.0).unwrap();
            bench.ports.map(control.into(), 1, ports.1).unwrap();
        }
        controller
    });
    let open = ide.clone();
    let ports = rig.ports.clone();
    let other = move |kind: u32, value: u64| {
        open.write_config(0x20, 4, BUS_MASTER);
        open.write_config(4, 2, 5);
        let base = if kind & 1 == 0 { 0x1f0 } else { 0x170 };
        match kind >> 1 & 3 {
            // A command from those that there are, on sectors that there are, and its table.
            0 | 1 => {
                let codes =
                    [0x20, 0x24, 0x25, 0x30, 0x35, 0xa0, 0xb0, 0xc4, 0xc8, 0xca, 0xec, 0xef];
                for (offset, byte) in (1..6).zip(value.to_le_bytes()) {
                    ports.write(base + offset, 1, (byte & 0x13).into());
                }
                ports.write(base + 6, 1, 0xe0);
                ports.write(base + 7, 1, codes[(value >> 40) as usize % codes.len()])
            }
            // Much data.
            2 => (0..value & 0x7ff).fold(true, |_, _| ports.write(base, 4, value)),
            _ => return (0..value & 0x7ff).fold(0, |sum, _| sum ^ ports.read(base, 4).unwrap()),
        }
        .into()
    };
    rig.target(Space::Ports, 0x1f0, 8)
        .target(Space::Ports, 0x3f6, 1)
        .target(Space::Ports, 0x170, 8)
        .target(Space::Ports, 0x376, 1)
        .target(Space::Ports, BUS_MASTER.into(), 16)
        .config(ide)
        .other(other)
        .keep(memory)
}

/// A disk of 1 MiB of zeroes that takes no notice of what is written to it.
#[derive(Default)]
struct Blank(block::IoStats);

impl block::BlockBackend for Blank {
    fn read_at(&self, _offset: u64, bufs: &[block::GuestSlice<'_>]) -> std::io::Result<()> {
        use memory::vm_memory::Bytes;
        for buf in bufs {
            buf.write_slice(&vec![0; buf.len()], 0).map_err(std::io::Error::other)?;
        }
        Ok(())
    }
    fn write_at(&self, _offset: u64, _bufs: &[block::GuestSlice<'_>]) -> std::io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _offset: u64, _len: u64, _may_unmap: bool) -> std::io::Result<()> {
        Ok(())
    }
    fn size(&self) -> u64 {
        1 << 20
    }
    fn allocated_size(&self) -> u64 {
        0
    }
    fn lock(&self, _share_write: bool) -> Result<(), block::LockError> {
        Ok(())
    }
    fn unlock(&self) {}
    fn is_read_only(&self) -> bool {
        false
    }
    fn driver(&self) -> &'static str {
        "blank"
    }
    fn filename(&self) -> String {
        "blank".into()
    }
    fn stats(&self) -> &block::IoStats {
        &self.0
    }
}
