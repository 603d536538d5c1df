//! The two 8237A DMA controllers of a PC with their page registers.
//!
//! Follows Intel's 8237A data sheet (231466) and the PIIX3 data sheet (290550), section 3.1. Channels 0
//! to 3 move bytes, 5 to 7 move 16-bit words; channel 4 is the cascade. A page register extends each
//! channel's 16-bit address; the address never carries into it. Memory-to-memory transfers, which
//! no PC can use for want of a page for channel 0's partner, are not there.
//!
//! A device has a [`DmaChannel`]: it asserts DREQ, and then moves bytes for as long as the channel lets
//! it. If the channel is masked or not set up, the device waits; it is called back
//! ([`DmaDevice::dma_ready`]) once the guest has made the channel ready.
//!
//! Lock order: device, then controller. The callback is made with the controller's lock released.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, Weak};

use bus::{AddressSpace, Device, MapError};
use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::isa::{PortDevice, map_ports};
use crate::lock;

/// Channels of both controllers.
pub const CHANNELS: usize = 8;
/// The channel that carries the first controller's requests.
const CASCADE: usize = 4;

const FIRST_PORT: u16 = 0x00;
const SECOND_PORT: u16 = 0xc0;
/// Page register of each channel.
const PAGE_PORTS: [u16; CHANNELS] = [0x87, 0x83, 0x81, 0x82, 0x8f, 0x8b, 0x89, 0x8a];

/// Registers of a controller after its eight channel registers.
mod reg {
    pub(super) const STATUS_COMMAND: u16 = 0x8;
    pub(super) const REQUEST: u16 = 0x9;
    pub(super) const MASK_ONE: u16 = 0xa;
    pub(super) const MODE: u16 = 0xb;
    pub(super) const CLEAR_FLIP_FLOP: u16 = 0xc;
    pub(super) const MASTER_CLEAR: u16 = 0xd;
    pub(super) const CLEAR_MASK: u16 = 0xe;
    pub(super) const MASK_ALL: u16 = 0xf;
}

const COMMAND_DISABLE: u8 = 1 << 2;
const SELECT: u8 = 3;
/// Sets the bit that a write to the request or single mask register is about.
const SET: u8 = 1 << 2;
const MODE_TRANSFER: u8 = 3 << 2;
const MODE_VERIFY: u8 = 0 << 2;
const MODE_TO_MEMORY: u8 = 1 << 2;
const MODE_FROM_MEMORY: u8 = 2 << 2;
const MODE_AUTO: u8 = 1 << 4;
const MODE_DOWN: u8 = 1 << 5;
const MODE_CASCADE: u8 = 3 << 6;

/// Which way a device moves data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device.
    ToMemory,
    /// To the device.
    FromMemory,
}

/// What became of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Bytes moved.
    pub bytes: usize,
    /// The channel's count ran out with the last of them.
    pub terminal_count: bool,
}

/// A device that waits for its channel.
pub trait DmaDevice: Send + Sync {
    /// The channel would move data now. Called with the controller's lock free.
    fn dma_ready(&self);
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    base_address: u16,
    base_count: u16,
    address: u16,
    /// Transfers left, less one.
    count: u16,
    mode: u8,
    page: u8,
}

/// One controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    channels: [Channel; 4],
    command: u8,
    /// Channels that ran out since the status was read.
    reached: u8,
    /// Requests by software and by devices.
    requests: u8,
    lines: u8,
    mask: u8,
    /// The next byte of an address or count is its high one.
    high: bool,
}

impl Default for Chip {
    fn default() -> Self {
        Self {
            channels: Default::default(),
            command: 0,
            reached: 0,
            requests: 0,
            lines: 0,
            mask: 0xf,
            high: false,
        }
    }
}

impl Chip {
    /// Master clear: as after power-on, but the channels and the devices' lines keep theirs.
    fn clear(&mut self) {
        *self = Self { channels: self.channels.clone(), lines: self.lines, ..Self::default() };
    }

    fn grants(&self, channel: usize) -> bool {
        let bit = 1 << channel;
        let cascades = self.channels[channel].mode & MODE_CASCADE == MODE_CASCADE;
        let requested = (self.lines | self.requests) & bit != 0;
        requested && self.mask & bit == 0 && self.command & COMMAND_DISABLE == 0 && !cascades
    }

    /// The next byte of a 16-bit register.
    fn half(&mut self, value: u16) -> u8 {
        let byte = value.to_le_bytes()[usize::from(self.high)];
        self.high = !self.high;
        byte
    }

    fn read(&mut self, register: u16) -> u8 {
        match register {
            0..8 => {
                let channel = &self.channels[usize::from(register / 2)];
                let value = if register & 1 == 0 { channel.address } else { channel.count };
                self.half(value)
            }
            reg::STATUS_COMMAND => {
                let requests = (self.requests | self.lines) & 0xf;
                std::mem::take(&mut self.reached) | requests << 4
            }
            reg::MASK_ALL => self.mask,
            _ => 0,
        }
    }

    fn write(&mut self, register: u16, value: u8) {
        let bit = 1 << (value & SELECT);
        match register {
            0..8 => {
                let half = usize::from(self.high);
                self.high = !self.high;
                let channel = &mut self.channels[usize::from(register / 2)];
                let (base, current) = if register & 1 == 0 {
                    (&mut channel.base_address, &mut channel.address)
                } else {
                    (&mut channel.base_count, &mut channel.count)
                };
                let mut bytes = base.to_le_bytes();
                bytes[half] = value;
                *base = u16::from_le_bytes(bytes);
                *current = *base;
            }
            reg::STATUS_COMMAND => self.command = value,
            reg::REQUEST if value & SET != 0 => self.requests |= bit,
            reg::REQUEST => self.requests &= !bit,
            reg::MASK_ONE if value & SET != 0 => self.mask |= bit,
            reg::MASK_ONE => self.mask &= !bit,
            reg::MODE => self.channels[usize::from(value & SELECT)].mode = value & !SELECT,
            reg::CLEAR_FLIP_FLOP => self.high = false,
            reg::MASTER_CLEAR => self.clear(),
            reg::CLEAR_MASK => self.mask = 0,
            reg::MASK_ALL => self.mask = value & 0xf,
            _ => {}
        }
    }
}

/// Saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8237State {
    chips: [Chip; 2],
}

impl State for I8237State {
    const NAME: &'static str = "i8237";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        for chip in &self.chips {
            if (chip.reached | chip.requests | chip.lines | chip.mask) > 0xf {
                return Err("a controller with more than four channels".into());
            }
            if chip.channels.iter().any(|channel| channel.mode & SELECT != 0) {
                return Err("a mode with a channel's number in it".into());
            }
        }
        Ok(())
    }
}

/// Both controllers.
pub struct I8237 {
    memory: Arc<GuestMemory>,
    state: Mutex<I8237State>,
    /// The devices on each channel. Taken with the state's lock held, or alone.
    ends: Mutex<[Vec<End>; CHANNELS]>,
}

/// A device on a channel, with its share of the DREQ line.
struct End {
    device: Weak<dyn DmaDevice>,
    asserted: bool,
}

impl I8237 {
    /// Controllers that move data to and from `memory`.
    pub fn new(memory: Arc<GuestMemory>) -> Arc<Self> {
        Arc::new(Self { memory, state: Mutex::default(), ends: Mutex::default() })
    }

    /// Maps the ports.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        map_ports(ports, FIRST_PORT, 0x10, self.clone())?;
        map_ports(ports, SECOND_PORT, 0x20, self.clone())?;
        for port in PAGE_PORTS {
            map_ports(ports, port, 1, self.clone())?;
        }
        Ok(())
    }

    /// Puts a device on channel `number`. Devices may share a channel, as floppy controllers do: each drives
    /// the DREQ line, and while several do, each that moves data moves its own.
    ///
    /// # Panics
    /// If there is no such channel, or it is the cascade.
    pub fn channel(self: &Arc<Self>, number: u8, device: Weak<dyn DmaDevice>) -> DmaChannel {
        let index = usize::from(number);
        assert!(index < CHANNELS && index != CASCADE, "DMA channel {number}");
        let ends = &mut lock(&self.ends)[index];
        ends.push(End { device, asserted: false });
        DmaChannel { controller: self.clone(), number: index, end: ends.len() - 1 }
    }

    /// Which of the devices that wait would get their channel.
    fn granted(&self, state: &I8237State) -> Vec<Arc<dyn DmaDevice>> {
        let ends = lock(&self.ends);
        let waiting = (0..CHANNELS).filter(|&i| {
            state.chips[i / 4].lines & 1 << (i % 4) != 0 && state.chips[i / 4].grants(i % 4)
        });
        let asserted = waiting.flat_map(|i| ends[i].iter().filter(|end| end.asserted));
        asserted.filter_map(|end| end.device.upgrade()).collect()
    }
}

/// The channel that a port is about, for page registers.
fn page_of(port: u16) -> Option<usize> {
    PAGE_PORTS.iter().position(|&page| page == port)
}

/// Controller and register that a port is.
fn register_of(port: u16) -> (usize, u16) {
    if port < SECOND_PORT { (0, port - FIRST_PORT) } else { (1, (port - SECOND_PORT) / 2) }
}

impl PortDevice for I8237 {
    fn read_port(&self, port: u16) -> u8 {
        let mut state = lock(&self.state);
        if let Some(channel) = page_of(port) {
            return state.chips[channel / 4].channels[channel % 4].page;
        }
        let (chip, register) = register_of(port);
        state.chips[chip].read(register)
    }

    fn write_port(&self, port: u16, value: u8) {
        let mut state = lock(&self.state);
        if let Some(channel) = page_of(port) {
            state.chips[channel / 4].channels[channel % 4].page = value;
            return;
        }
        let (chip, register) = register_of(port);
        state.chips[chip].write(register, value);
        let ready = if register >= reg::STATUS_COMMAND { self.granted(&state) } else { Vec::new() };
        drop(state);
        for device in ready {
            device.dma_ready();
        }
    }
}

/// A device's end of a channel.
pub struct DmaChannel {
    controller: Arc<I8237>,
    number: usize,
    /// Which of the channel's devices this is.
    end: usize,
}

impl DmaChannel {
    /// Drives the channel's DREQ line, which is high while any of its devices drives it high.
    pub fn request(&self, level: bool) {
        let mut state = lock(&self.controller.state);
        let ends = &mut lock(&self.controller.ends)[self.number];
        ends[self.end].asserted = level;
        let level = ends.iter().any(|end| end.asserted);
        let bit = 1 << (self.number % 4);
        let lines = &mut state.chips[self.number / 4].lines;
        *lines = if level { *lines | bit } else { *lines & !bit };
    }

    /// Moves `data` to or from memory, as far as the channel goes; on channels 5 to 7 an odd last byte
    /// stays. A channel that is masked, or that was set up for the other direction, moves nothing; one that
    /// is set up to verify counts, and moves nothing either way. Addresses without memory read as ones.
    pub fn transfer(&self, direction: Direction, data: &mut [u8]) -> Moved {
        let mut state = lock(&self.controller.state);
        let nothing = Moved { bytes: 0, terminal_count: false };
        let chip = &mut state.chips[self.number / 4];
        let index = self.number % 4;
        let wide = self.number > CASCADE;
        if !chip.grants(index) {
            return nothing;
        }
        let channel = &mut chip.channels[index];
        let wanted = match direction {
            Direction::ToMemory => MODE_TO_MEMORY,
            Direction::FromMemory => MODE_FROM_MEMORY,
        };
        let mode = channel.mode & MODE_TRANSFER;
        if mode != wanted && mode != MODE_VERIFY {
            return nothing;
        }
        let width = if wide { 2 } else { 1 };
        let left = usize::from(channel.count) + 1;
        let units = left.min(data.len() / width);
        if units == 0 {
            return nothing;
        }
        if mode != MODE_VERIFY {
            let data = &mut data[..units * width];
            self.controller.move_units(channel, direction, width, data);
        }
        let step = units as u16;
        channel.address = if channel.mode & MODE_DOWN == 0 {
            channel.address.wrapping_add(step)
        } else {
            channel.address.wrapping_sub(step)
        };
        channel.count = channel.count.wrapping_sub(step);
        let terminal_count = units == left;
        if terminal_count {
            if channel.mode & MODE_AUTO != 0 {
                channel.address = channel.base_address;
                channel.count = channel.base_count;
            } else {
                chip.mask |= 1 << index;
            }
            chip.reached |= 1 << index;
            chip.requests &= !(1 << index);
        }
        Moved { bytes: units * width, terminal_count }
    }
}

impl I8237 {
    /// Moves all of `data` from the channel's address on, piece by piece where that wraps around.
    fn move_units(&self, channel: &Channel, direction: Direction, width: usize, data: &mut [u8]) {
        let down = channel.mode & MODE_DOWN != 0;
        let place = |address: u16| {
            let page = u64::from(channel.page);
            if width == 1 {
                page << 16 | u64::from(address)
            } else {
                (page & !1) << 16 | u64::from(address) << 1
            }
        };
        let mut address = channel.address;
        let mut rest = data;
        while !rest.is_empty() {
            let to_wrap = 0x1_0000 - usize::from(address);
            let units = if down { 1 } else { to_wrap.min(rest.len() / width) };
            let (part, after) = rest.split_at_mut(units * width);
            match direction {
                // Writes to what is not memory are lost.
                Direction::ToMemory => drop(self.memory.write(place(address), part)),
                Direction::FromMemory => {
                    if self.memory.read(place(address), part).is_err() {
                        part.fill(0xff);
                    }
                }
            }
            let step = units as u16;
            address = if down { address.wrapping_sub(1) } else { address.wrapping_add(step) };
            rest = after;
        }
    }
}

impl Device for I8237 {
    fn id(&self) -> String {
        "i8237".into()
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        *state = I8237State::default();
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: I8237State = saved.decode()?;
        *lock(&self.state) = restored;
        Ok(())
    }
}
