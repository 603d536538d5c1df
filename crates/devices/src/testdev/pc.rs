//! `pc-testdev`: what kvm-unit-tests reaches for.
//!
//! Ports E0h to E3h and E8h to EBh show one 32-bit register, accessible in any size at any offset.
//! Port E4h would make a host that maps guest memory flush a page, which ours need not do. Port
//! 2000h + n drives ISA line n: high for a value that is not zero. 64 KiB of memory at FF000000h hold
//! what is written, but are no RAM: each access is one to a device.

use std::sync::{Arc, Mutex};

use bus::{AddressSpace, BusDevice, Device, IrqLine, MapError};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::irq::ISA_LINES;
use crate::lock;

const REGISTER_PORTS: [u64; 2] = [0xe0, 0xe8];
const FLUSH_PORT: u64 = 0xe4;
const LINE_PORT: u64 = 0x2000;
const MEMORY: u64 = 0xff00_0000;
const MEMORY_SIZE: usize = 0x1_0000;

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PcTestDevState {
    register: u32,
    memory: Vec<u8>,
    /// Levels of the lines that it drives.
    lines: u16,
}

impl Default for PcTestDevState {
    fn default() -> Self {
        Self { register: 0, memory: vec![0; MEMORY_SIZE], lines: 0 }
    }
}

impl State for PcTestDevState {
    const NAME: &'static str = "pc-testdev";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        if self.memory.len() != MEMORY_SIZE {
            return Err(format!("memory of {} bytes", self.memory.len()));
        }
        Ok(())
    }
}

/// The device.
pub struct PcTestDev {
    lines: Vec<IrqLine>,
    state: Mutex<PcTestDevState>,
}

impl PcTestDev {
    /// A device that drives the ISA lines that `line` gives by number.
    pub fn new(line: impl Fn(u32) -> IrqLine) -> Arc<Self> {
        let lines = (0..ISA_LINES).map(line).collect();
        Arc::new(Self { lines, state: Mutex::default() })
    }

    /// Maps ports and memory.
    ///
    /// # Errors
    /// Never in spaces of 64 Ki ports and 4 GiB of memory.
    pub fn attach(
        self: &Arc<Self>,
        ports: &AddressSpace,
        mmio: &AddressSpace,
    ) -> Result<(), MapError> {
        for first in REGISTER_PORTS {
            ports.map(first, 4, Arc::new(Register(self.clone())))?;
        }
        ports.map(FLUSH_PORT, 4, Arc::new(Flush))?;
        ports.map(LINE_PORT, ISA_LINES.into(), Arc::new(Lines(self.clone())))?;
        mmio.map(MEMORY, MEMORY_SIZE as u64, Arc::new(Memory(self.clone())))?;
        Ok(())
    }
}

/// Reads up to 8 bytes of `bytes` from `offset` on; zeroes after its end.
fn read_bytes(bytes: &[u8], offset: u64, size: u8) -> u64 {
    let start = bytes.len().min(offset as usize);
    let mut value = [0; 8];
    for (to, from) in value.iter_mut().zip(&bytes[start..]).take(size.into()) {
        *to = *from;
    }
    u64::from_le_bytes(value)
}

fn write_bytes(bytes: &mut [u8], offset: u64, size: u8, value: u64) {
    let start = bytes.len().min(offset as usize);
    for (to, from) in bytes[start..].iter_mut().zip(value.to_le_bytes()).take(size.into()) {
        *to = from;
    }
}

struct Register(Arc<PcTestDev>);

impl BusDevice for Register {
    fn read(&self, offset: u64, size: u8) -> u64 {
        read_bytes(&lock(&self.0.state).register.to_le_bytes(), offset, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let register = &mut lock(&self.0.state).register;
        let mut bytes = register.to_le_bytes();
        write_bytes(&mut bytes, offset, size, value);
        *register = u32::from_le_bytes(bytes);
    }
}

struct Flush;

impl BusDevice for Flush {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        0
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64) {}
}

struct Lines(Arc<PcTestDev>);

impl BusDevice for Lines {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        0
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let mut state = lock(&self.0.state);
        let bit = 1 << (offset % u64::from(ISA_LINES));
        state.lines = if value != 0 { state.lines | bit } else { state.lines & !bit };
        self.0.lines[offset as usize % ISA_LINES as usize].set(value != 0);
    }
}

struct Memory(Arc<PcTestDev>);

impl BusDevice for Memory {
    fn read(&self, offset: u64, size: u8) -> u64 {
        read_bytes(&lock(&self.0.state).memory, offset, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        write_bytes(&mut lock(&self.0.state).memory, offset, size, value);
    }
}

impl Device for PcTestDev {
    fn id(&self) -> String {
        "pc-testdev".into()
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        // Lines that it never touched belong to other devices.
        for (i, line) in self.lines.iter().enumerate() {
            if state.lines & 1 << i != 0 {
                line.set(false);
            }
        }
        *state = PcTestDevState::default();
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: PcTestDevState = saved.decode()?;
        let mut state = lock(&self.state);
        let old = std::mem::replace(&mut *state, restored).lines;
        for (i, line) in self.lines.iter().enumerate() {
            if (old | state.lines) & 1 << i != 0 {
                line.set(state.lines & 1 << i != 0);
            }
        }
        Ok(())
    }
}
