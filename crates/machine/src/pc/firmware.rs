//! What PC firmware does to memory and PCI before it starts an operating system, for machines that boot a kernel
//! directly: shadow RAM is opened, base addresses are given out, functions enabled, interrupt lines recorded (PCI Firmware
//! Specification 3.0, section 4).
//!
//! Addresses come from where users of SeaBIOS see them: ports from 0xc000 on, memory from 0xfe000000.

use std::ops::Range;

use bus::AddressSpace;
use cpu_x86::CpuState;
use cpu_x86::state::X87State;
use devices::i440fx::{self, I440fx};
use devices::i8042;
use devices::ide::{self, PiixIde};
use devices::pci::{Devfn, PciBus, PciFunction, reg};
use devices::piix::{self, Piix3, Piix4Pm};

use crate::spec::MAX_CPUS;

/// Ports for BARs.
const IO_WINDOW: Range<u64> = 0xc000..0x1_0000;
/// Addresses for memory BARs.
const MEMORY_WINDOW: Range<u64> = 0xfe00_0000..0xfec0_0000;
/// Addresses for large memory BARs, from the end down; RAM always ends below.
const LARGE_WINDOW: Range<u64> = 0xe000_0000..0xfe00_0000;
/// What counts as large, in bytes.
const LARGE: u64 = 1 << 20;
/// Base address registers of a type 0 header.
const BARS: u16 = 6;
/// ISA interrupts that PIRQA to PIRQD are routed to.
pub const PIRQ_ROUTES: [u8; 4] = [10, 10, 11, 11];

/// Hands out a window from its start.
struct Allocator {
    next: u64,
    end: u64,
}

impl Allocator {
    fn new(window: Range<u64>) -> Self {
        Self { next: window.start, end: window.end }
    }

    /// An address aligned to `size`, a power of two; `None` once the window is used up.
    fn take(&mut self, size: u64) -> Option<u64> {
        let start = self.next.checked_next_multiple_of(size)?;
        let end = start.checked_add(size)?;
        (end <= self.end).then(|| {
            self.next = end;
            start
        })
    }
}

/// Hands out [`MEMORY_WINDOW`] and [`LARGE_WINDOW`].
struct MemoryAllocator {
    small: Allocator,
    large_end: u64,
}

impl MemoryAllocator {
    fn new() -> Self {
        Self { small: Allocator::new(MEMORY_WINDOW), large_end: LARGE_WINDOW.end }
    }

    /// As [`Allocator::take`].
    fn take(&mut self, size: u64) -> Option<u64> {
        if size < LARGE {
            return self.small.take(size);
        }
        let start = self.large_end.checked_sub(size)? & !(size - 1);
        (start >= LARGE_WINDOW.start).then(|| {
            self.large_end = start;
            start
        })
    }
}

/// What a base address register answered when it was sized.
struct Bar {
    is_io: bool,
    is_64_bit: bool,
    size: u64,
}

/// Ports of the PIIX4's power management and SMBus blocks.
pub const PM_BASE: u16 = 0x600;
/// See [`PM_BASE`].
pub const SMBUS_BASE: u16 = 0x700;
/// Edge/level control register of the second 8259, and its bits for IRQs 10 and 11.
const ELCR2: u64 = 0x4d1;
const ELCR2_PCI: u64 = 0x0c;

/// Where CPUs' SMBASEs begin in system management RAM, and how far apart they are. The entry and the save
/// area of 512 bytes, 8000h and FE00h from SMBASE on, lie in different halves of such a stretch, so that
/// one CPU's are clear of another's.
const SMBASE: u32 = i440fx::SMRAM_START as u32;
const SMBASE_STRIDE: u32 = 0x400;
/// From SMBASE to the first instruction of system management mode.
const SMI_ENTRY: u32 = 0x8000;
const RSM: [u8; 2] = [0x0f, 0xaa];

fn smbase(cpu: usize) -> u32 {
    SMBASE + cpu as u32 * SMBASE_STRIDE
}

/// Puts a handler for system management interrupts where only that mode sees it. Nothing of ours raises
/// them, so it has nothing to do but to go back.
pub fn install_smi_handler(bridge: &I440fx) {
    for cpu in 0..MAX_CPUS as usize {
        bridge.load_smram(u64::from(smbase(cpu) + SMI_ENTRY) - i440fx::SMRAM_START, &RSM);
    }
    bridge.write_config(i440fx::SMRAM, 1, i440fx::SMRAM_ENABLED.into());
}

/// Opens shadow RAM, routes PCI interrupts, opens the chipset's own ports and configures every function of `bus`.
pub fn configure(bus: &PciBus, ports: &AddressSpace) {
    for pam in 0..i440fx::PAMS as u16 {
        bus.write_config(i440fx::DEVFN, i440fx::PAM + pam, 1, i440fx::PAM_RAM.into());
    }
    configure_pci(bus);
    for (pirq, irq) in (0..).zip(PIRQ_ROUTES) {
        bus.write_config(Piix3::DEVFN, piix::reg::PIRQ_ROUTES + pirq, 1, irq.into());
    }
    ports.write(ELCR2, 1, ELCR2_PCI);
    // The keyboard's codes are translated to set 1, as software that knows only the first PCs expects.
    ports.write(i8042::COMMAND_PORT.into(), 1, 0x60);
    ports.write(i8042::DATA_PORT.into(), 1, KEYBOARD_MODE);
    let pm = Piix4Pm::DEVFN;
    bus.write_config(pm, piix::reg::PM_BASE, 4, u32::from(PM_BASE) | 1);
    bus.write_config(pm, piix::reg::PM_ENABLE, 1, 1);
    bus.write_config(pm, piix::reg::SMBUS_BASE, 4, u32::from(SMBUS_BASE) | 1);
    bus.write_config(pm, piix::reg::SMBUS_ENABLE, 1, 9);
    for channel in 0..2 {
        bus.write_config(PiixIde::DEVFN, ide::TIMING + 2 * channel, 2, ide::TIMING_ENABLE.into());
    }
}

/// Command byte of the keyboard controller: the keyboard interrupts and is translated, the mouse is off.
const KEYBOARD_MODE: u64 = 0x61;

/// Default memory type register, enabled with its fixed ranges, and write-back as the type of all that
/// no range names (APM volume 2, section 7.7).
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 0xc06;
/// What firmware sets up in CPU `index`.
pub fn cpu_state(index: usize, mut state: CpuState) -> CpuState {
    state.smbase = smbase(index);
    for (register, value) in &mut state.msrs {
        if *register == MTRR_DEF_TYPE {
            *value = MTRR_ENABLED_WRITE_BACK;
        }
    }
    // As FNINIT does it: a reset leaves registers that are in use, and exceptions unmasked.
    state.x87 = X87State::default();
    state
}

/// Configures every function of `bus`.
fn configure_pci(bus: &PciBus) {
    let mut io = Allocator::new(IO_WINDOW);
    let mut memory = MemoryAllocator::new();
    for (devfn, _) in bus.functions() {
        configure_function(bus, devfn, &mut io, &mut memory);
    }
}

fn configure_function(
    bus: &PciBus,
    devfn: Devfn,
    io: &mut Allocator,
    memory: &mut MemoryAllocator,
) {
    let mut command = bus.read_config(devfn, reg::COMMAND, 2) as u16;
    let mut index = 0;
    while index < BARS {
        let offset = reg::BAR0 + 4 * index;
        let Some(bar) = size_bar(bus, devfn, offset) else {
            index += 1;
            continue;
        };
        index += if bar.is_64_bit { 2 } else { 1 };
        let (address, enable) = if bar.is_io {
            (io.take(bar.size), reg::COMMAND_IO)
        } else {
            (memory.take(bar.size), reg::COMMAND_MEMORY)
        };
        // A BAR that finds no room stays without an address; the operating system may find one.
        let Some(address) = address else { continue };
        bus.write_config(devfn, offset, 4, address as u32);
        command |= enable;
    }
    let pin = bus.read_config(devfn, reg::INTERRUPT_PIN, 1) as u8;
    if (1..=4).contains(&pin) {
        let line = PIRQ_ROUTES[usize::from(pirq(devfn, pin))];
        bus.write_config(devfn, reg::INTERRUPT_LINE, 1, line.into());
    }
    bus.write_config(devfn, reg::COMMAND, 2, (command | reg::COMMAND_SERR).into());
}

/// The router input, 0 to 3, that a function's interrupt pin (1 to 4) is wired to.
pub fn pirq(devfn: Devfn, pin: u8) -> u8 {
    (devfn.slot() + 3 + pin - 1) % 4
}

fn size_bar(bus: &PciBus, devfn: Devfn, offset: u16) -> Option<Bar> {
    const IO: u32 = 1;
    const KIND_64_BIT: u32 = 2 << 1;
    bus.write_config(devfn, offset, 4, u32::MAX);
    let answer = bus.read_config(devfn, offset, 4);
    bus.write_config(devfn, offset, 4, 0);
    let is_io = answer & IO != 0;
    let mask = if is_io { answer & !3 } else { answer & !0xf };
    if mask == 0 {
        return None;
    }
    let size = u64::from(mask & mask.wrapping_neg());
    Some(Bar { is_io, is_64_bit: !is_io && answer & 0x6 == KIND_64_BIT, size })
}
