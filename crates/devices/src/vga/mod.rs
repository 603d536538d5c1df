//! VGA with the Bochs VBE extensions ("std" graphics).
//!
//! Follows IBM's "PS/2 Video Subsystem Technical Reference" for the VGA, the Bochs display interface
//! for everything larger, and the layout of the memory registers of QEMU's `VGA` PCI device
//! (docs/specs/standard-vga in QEMU's documentation).
//!
//! - [`Vga`] is the adapter: registers, memory, picture. [`VgaPci`] makes it a PCI function.
//! - `registers`, `vbe`: what the ports do. `planes`: what the window at A0000 does. `render`: what the
//!   screen shows.
//!
//! Invariants:
//! - The registers' lock is held for a register access or a copy, never while drawing.
//! - Video memory is guest memory: it is not part of the adapter's saved state, and a reset leaves it.
//! - Nothing is drawn unless a viewer asks (see [`display::Source`]).

pub(crate) mod edid;
mod pci;
mod planes;
mod registers;
mod render;
#[cfg(test)]
mod tests;
mod vbe;
mod vram;

use std::sync::{Arc, Mutex, MutexGuard};

use ::bus::{AddressSpace, BusDevice, Clock, MapError};
use display::{Frame, Source, TextScreen};
use memory::{Access, GuestMemory, MapId, Mapping, MemoryBlock, MemoryError, Visible};
use serde::{Deserialize, Serialize};
use vmstate::State;

pub use pci::{VgaKind, VgaOptions, VgaPci};

use crate::lock;
use registers::Registers;
use render::{Drawn, Mode};
use vram::Vram;

/// The saved form of a [`Vga`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VgaState {
    registers: Registers,
}

impl State for VgaState {
    const NAME: &'static str = "vga";
    const VERSION: u32 = 1;
}

/// A VGA.
pub struct Vga {
    registers: Mutex<Registers>,
    vram: Vram,
    clock: Clock,
    drawn: Mutex<Drawn>,
    edid: Option<[u8; edid::SIZE]>,
    /// Where the window at A0000 is mapped to the memory directly.
    direct: Mutex<Option<Direct>>,
    memory: Arc<GuestMemory>,
}

/// A mapping of the window at A0000 that needs no help of ours.
struct Direct {
    /// Its first byte and size in the window, and the offset in memory.
    window: (u32, u32, u32),
    mapped: Option<MapId>,
}

/// The window's mapping lies over RAM and whatever else the board has there.
const WINDOW_PRIORITY: i32 = 1;

impl Vga {
    /// An adapter on `vram`, whose beam goes by `clock`. It describes a monitor by `edid`.
    fn new(
        memory: Arc<GuestMemory>,
        vram: Vram,
        clock: Clock,
        edid: Option<[u8; edid::SIZE]>,
    ) -> Arc<Self> {
        Arc::new(Self {
            registers: Mutex::new(Registers::new()),
            vram,
            clock,
            drawn: Mutex::default(),
            edid,
            direct: Mutex::default(),
            memory,
        })
    }

    /// An adapter as `options` say, with video memory allocated from `memory` under the name `id`.
    ///
    /// # Errors
    /// If the host has no room for the video memory.
    pub fn with_options(
        id: &str,
        options: &VgaOptions,
        clock: Clock,
        memory: &Arc<GuestMemory>,
    ) -> Result<Arc<Self>, MemoryError> {
        let vram = Vram::new(memory, &format!("{id}/vga.vram"), options.memory_size())?;
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let monitor =
            options.edid.then(|| edid::monitor(or(options.x_res, 1280), or(options.y_res, 800)));
        Ok(Self::new(Arc::clone(memory), vram, clock, monitor))
    }

    /// The video memory.
    pub fn memory_block(&self) -> &Arc<MemoryBlock> {
        self.vram.block()
    }

    /// All registers in one page of memory.
    pub fn register_page(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Mmio(Arc::clone(self)))
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    /// Puts the VGA's ports and its window into the spaces, for good.
    ///
    /// # Errors
    /// If the spaces have no room.
    pub fn attach(
        self: &Arc<Self>,
        ports: &AddressSpace,
        mmio: &AddressSpace,
    ) -> Result<(), MapError> {
        for (first, count) in [(0x3b4, 2), (0x3ba, 1), (0x3c0, 16), (0x3d4, 2), (0x3da, 1)] {
            ports.map(first, count, Arc::new(Ports(Arc::clone(self), first as u16)))?;
        }
        ports.map(0x1ce, 3, Arc::new(VbePorts(Arc::clone(self))))?;
        mmio.map(planes::WINDOW, planes::WINDOW_SIZE, Arc::new(Window(Arc::clone(self))))?;
        *lock(&self.direct) = Some(Direct { window: (0, 0, 0), mapped: None });
        Ok(())
    }

    /// Acts on the registers, and on what follows from a change of them.
    fn change<T>(&self, act: impl FnOnce(&mut Registers) -> T) -> T {
        let mut registers = self.registers();
        let before = registers.direct_window();
        let result = act(&mut registers);
        let after = registers.direct_window();
        if before != after {
            self.map_window(after.unwrap_or_default());
        }
        result
    }

    /// Maps the window directly: its first byte, its size, 0 for not at all, and where in memory that
    /// is. Called with the registers locked, so that the mapping is always that of the registers.
    fn map_window(&self, window: (u32, u32, u32)) {
        let mut direct = lock(&self.direct);
        let Some(direct) = direct.as_mut().filter(|direct| direct.window != window) else { return };
        let (first, size, offset) = window;
        let room = self.vram.len().saturating_sub(offset);
        let mapping = Mapping {
            start: planes::WINDOW + u64::from(first),
            len: size.min(room).into(),
            block: Arc::clone(self.vram.block()),
            offset: offset.into(),
            access: Access::RAM,
            visible: Visible::Everyone,
            priority: WINDOW_PRIORITY,
        };
        let new = (mapping.len > 0).then_some(mapping);
        let old: Vec<MapId> = direct.mapped.take().into_iter().collect();
        let ids = self.memory.remap(&old, new.into_iter().collect()).unwrap_or_default();
        direct.mapped = ids.first().copied();
        direct.window = window;
    }

    /// Back to power-on.
    pub fn reset(&self) {
        self.change(|registers| *registers = Registers::new());
    }

    /// What is to be saved.
    pub fn save(&self) -> VgaState {
        VgaState { registers: self.registers().clone() }
    }

    /// Whether `state` could be this adapter's.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, state: &VgaState) -> Result<(), String> {
        state.registers.validate(self.vram.len())
    }

    /// Takes over a state that [`Vga::check`] accepted.
    pub fn restore(&self, state: &VgaState) {
        self.change(|registers| *registers = state.registers.clone());
    }

    fn mode(&self) -> Mode {
        Mode::of(&self.registers(), self.vram.len())
    }

    fn read_port(&self, port: u16) -> u8 {
        self.registers().read(port, self.clock.now_ns())
    }

    fn write_port(&self, port: u16, value: u8) {
        self.change(|registers| registers.write(port, value));
    }

    /// Writes a VBE register: `number`, or the selected one.
    fn write_vbe(&self, number: Option<usize>, value: u16) {
        let size = self.vram.len();
        let clear = self.change(|registers| match number {
            Some(number) => registers.write_vbe(number, value, size),
            None => registers.write_vbe_selected(value, size),
        });
        self.vram.clear(clear);
    }
}

impl Source for Vga {
    fn draw(&self, _head: u32, frame: &mut Frame) {
        let mode = self.mode();
        lock(&self.drawn).draw(mode, &self.vram, self.clock.now_ns(), frame);
    }

    fn text(&self, _head: u32) -> Option<TextScreen> {
        render::text_screen(&self.mode(), &self.vram)
    }
}

/// Some of the VGA's ports, from the one given on. Wider accesses are accesses to ports that follow.
struct Ports(Arc<Vga>, u16);

impl BusDevice for Ports {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let first = self.1.wrapping_add(offset as u16);
        (0..u16::from(size))
            .fold(0, |value, byte| value | u64::from(self.0.read_port(first + byte)) << (8 * byte))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let first = self.1.wrapping_add(offset as u16);
        for byte in 0..u16::from(size) {
            self.0.write_port(first + byte, (value >> (8 * byte)) as u8);
        }
    }
}

/// The ports of the Bochs display interface, all of 16 bits: an index, and data in two places.
struct VbePorts(Arc<Vga>);

impl BusDevice for VbePorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let vbe = &self.0.registers().vbe;
        match (offset, size) {
            (0, 2) => vbe.index().into(),
            (1 | 2, 2) => vbe.read_selected(self.0.vram.len()).into(),
            _ => u64::MAX >> (64 - 8 * u32::from(size)),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match (offset, size) {
            (0, 2) => self.0.registers().vbe.set_index(value as u16),
            (1 | 2, 2) => self.0.write_vbe(None, value as u16),
            _ => {}
        }
    }
}

/// The window at A0000.
struct Window(Arc<Vga>);

impl BusDevice for Window {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let mut registers = self.0.registers();
        (0..u32::from(size)).fold(0, |value, byte| {
            let read = registers.read_window(&self.0.vram, offset as u32 + byte);
            value | u64::from(read) << (8 * byte)
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let mut registers = self.0.registers();
        for (byte, value) in (0..u32::from(size)).zip(value.to_le_bytes()) {
            registers.write_window(&self.0.vram, offset as u32 + byte, value);
        }
    }
}

/// All registers in memory: the monitor's description, the VGA's ports, VBE's registers, and what QEMU
/// added.
struct Mmio(Arc<Vga>);

/// Size of [`Mmio`] in bytes.
const MMIO_SIZE: u64 = 4096;
/// Ports 3C0 to 3DF.
const MMIO_PORTS: u64 = 0x400;
/// VBE's registers, 16 bits each.
const MMIO_VBE: u64 = 0x500;
/// The size of the registers that follow, in bytes, then the byte order.
const MMIO_EXTENDED: u64 = 0x600;
/// Byte order: the memory's words are little-endian. This is the only one there is.
const LITTLE_ENDIAN: u64 = 0x1e1e_1e1e;

impl BusDevice for Mmio {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let vga = &self.0;
        match offset {
            0..MMIO_PORTS => {
                let edid = vga.edid.as_ref().map_or(&[][..], |edid| edid);
                let bytes = (0..u64::from(size)).zip(edid.iter().skip(offset as usize));
                bytes.fold(0, |value, (at, &byte)| value | u64::from(byte) << (8 * at))
            }
            MMIO_PORTS..0x420 => Ports(Arc::clone(vga), 0x3c0).read(offset - MMIO_PORTS, size),
            MMIO_VBE..0x516 => {
                // An access of four bytes reaches two registers.
                let first = ((offset - MMIO_VBE) / 2) as usize;
                let count = usize::from(size.div_ceil(2));
                let registers = vga.registers();
                let all = (first..first + count).rev().fold(0, |value, number| {
                    value << 16 | u64::from(registers.vbe.read(number, vga.vram.len()))
                });
                let all = all >> (8 * (offset & 1));
                if size == 1 { all & 0xff } else { all }
            }
            MMIO_EXTENDED => 8,
            0x604 => LITTLE_ENDIAN,
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match offset {
            MMIO_PORTS..0x420 => {
                Ports(Arc::clone(&self.0), 0x3c0).write(offset - MMIO_PORTS, size, value);
            }
            MMIO_VBE..0x516 if offset.is_multiple_of(2) && size >= 2 => {
                let first = ((offset - MMIO_VBE) / 2) as usize;
                for at in 0..usize::from(size / 2) {
                    self.0.write_vbe(Some(first + at), (value >> (16 * at)) as u16);
                }
            }
            _ => {}
        }
    }
}
