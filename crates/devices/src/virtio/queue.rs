//! Split virtqueues, the device's side (specification, section 2.7).
//!
//! Everything in the rings is the guest's and may change under our hands: each field is read once and
//! checked before use. An error means that the ring can't be trusted any more.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use block::GuestSlice;
use memory::GuestMemory;
use memory::vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use serde::{Deserialize, Serialize};

use crate::pci::NO_VECTOR;

/// Descriptor flag: another one follows.
const DESC_NEXT: u16 = 1;
/// Descriptor flag: the device writes the buffer.
const DESC_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
const DESC_INDIRECT: u16 = 4;
/// Available ring flag: the driver wants no interrupts.
const AVAIL_NO_INTERRUPT: u16 = 1;
/// Used ring flag: the device wants no notifications.
const USED_NO_NOTIFY: u16 = 1;
/// Bytes of a descriptor.
const DESC_SIZE: u64 = 16;
/// Most buffers in one chain.
const MAX_SEGMENTS: usize = 1024;
/// Largest queue.
pub(super) const MAX_QUEUE_SIZE: u16 = 1024;

/// What is wrong with a ring.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// A ring or a buffer lies outside RAM, or a ring is misaligned.
    #[error("guest physical range {addr:#x}+{len:#x} is not RAM or not aligned")]
    NotRam {
        /// First byte.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// More buffers are available than the queue has entries.
    #[error("available index {avail} is more than the queue's size past {next}")]
    BadAvailIndex {
        /// The driver's index.
        avail: u16,
        /// Where the device is.
        next: u16,
    },
    /// A descriptor number past the end of its table.
    #[error("descriptor {index} is past the end of a table of {size}")]
    BadDescriptor {
        /// The number.
        index: u32,
        /// Entries in the table.
        size: u32,
    },
    /// A chain that visits more descriptors than its table has.
    #[error("descriptor chain loops or is too long")]
    Loop,
    /// A table that is empty, cut off within an entry, inside another table or followed by more.
    #[error("bad indirect descriptor table")]
    BadIndirect,
    /// A buffer of no bytes, or a chain of more than 4 GiB.
    #[error("descriptor chain with an empty buffer or more than 4 GiB")]
    BadLength,
    /// A buffer for the device to read after one for it to write.
    #[error("readable descriptor after a writable one")]
    BadOrder,
}

/// A stretch of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Guest physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A request: the buffers of one descriptor chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The chain's first descriptor, which names it.
    head: u16,
    /// What the driver wrote.
    readable: Vec<Segment>,
    /// What the device is to write.
    writable: Vec<Segment>,
}

impl Chain {
    /// Bytes that the driver wrote.
    pub fn readable_len(&self) -> u64 {
        self.readable.iter().map(|s| u64::from(s.len)).sum()
    }

    /// Bytes that the device can write.
    pub fn writable_len(&self) -> u64 {
        self.writable.iter().map(|s| u64::from(s.len)).sum()
    }

    /// The driver's bytes from `offset` on, `len` of them or what there is.
    pub fn readable(&self, offset: u64, len: u64) -> Vec<Segment> {
        cut(&self.readable, offset, len)
    }

    /// The device's bytes from `offset` on, `len` of them or what there is.
    pub fn writable(&self, offset: u64, len: u64) -> Vec<Segment> {
        cut(&self.writable, offset, len)
    }

    /// Copies the driver's bytes from `offset` on into `buf`; returns how many there were.
    ///
    /// # Errors
    /// If the memory is not RAM.
    pub fn read(
        &self,
        memory: &GuestMemory,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize, QueueError> {
        let mut done = 0;
        for segment in self.readable(offset, buf.len() as u64) {
            let part = &mut buf[done..done + segment.len as usize];
            memory.read(segment.addr, part).map_err(|_| not_ram(segment))?;
            done += part.len();
        }
        Ok(done)
    }

    /// Copies `data` to the device's bytes from `offset` on; returns how much found room.
    ///
    /// # Errors
    /// If the memory is not RAM.
    pub fn write(
        &self,
        memory: &GuestMemory,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, QueueError> {
        let mut done = 0;
        for segment in self.writable(offset, data.len() as u64) {
            let part = &data[done..done + segment.len as usize];
            memory.write(segment.addr, part).map_err(|_| not_ram(segment))?;
            done += part.len();
        }
        Ok(done)
    }
}

fn not_ram(segment: Segment) -> QueueError {
    QueueError::NotRam { addr: segment.addr, len: u64::from(segment.len) }
}

fn cut(segments: &[Segment], mut offset: u64, mut len: u64) -> Vec<Segment> {
    let mut result = Vec::with_capacity(segments.len());
    for segment in segments {
        let available = u64::from(segment.len);
        if offset >= available {
            offset -= available;
            continue;
        }
        let taken = (available - offset).min(len);
        if taken == 0 {
            break;
        }
        // A chain from damaged saved state may wrap; what it then names is not RAM.
        result.push(Segment { addr: segment.addr.wrapping_add(offset), len: taken as u32 });
        offset = 0;
        len -= taken;
    }
    result
}

/// The host memory behind `segments`, for I/O without a copy.
///
/// # Errors
/// If any of it is not RAM.
pub fn slices<'m>(
    memory: &'m GuestMemory,
    segments: &[Segment],
) -> Result<Vec<GuestSlice<'m>>, QueueError> {
    let mut result = Vec::with_capacity(segments.len());
    for &segment in segments {
        let addr = GuestAddress(segment.addr);
        for slice in GuestMemoryBackend::get_slices(memory.view(), addr, segment.len as usize) {
            result.push(slice.map_err(|_| not_ram(segment))?);
        }
    }
    Ok(result)
}

/// One queue: what the driver set up, and how far the device is.
#[derive(Clone, Debug)]
pub struct SplitQueue {
    max_size: u16,
    state: QueueState,
}

/// The saved form of a [`SplitQueue`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Entries, a power of two.
    pub size: u16,
    /// Whether the driver enabled the queue.
    pub enabled: bool,
    /// Guest physical address of the descriptor table.
    pub desc: u64,
    /// Guest physical address of the available ring.
    pub avail: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
    /// MSI-X vector.
    pub vector: u16,
    /// The driver and the device tell each other where they want to hear.
    pub event_idx: bool,
    /// The driver wants to hear when the available ring is empty and all is done.
    pub notify_on_empty: bool,
    next_avail: u16,
    next_used: u16,
    /// Index of the used ring when the driver was last interrupted.
    signalled: Option<u16>,
    /// Requests taken and not yet completed.
    in_flight: u16,
    /// Whether the driver was told not to notify.
    quiet: bool,
}

impl QueueState {
    fn new(size: u16) -> Self {
        Self {
            size,
            enabled: false,
            desc: 0,
            avail: 0,
            used: 0,
            vector: NO_VECTOR,
            event_idx: false,
            notify_on_empty: false,
            next_avail: 0,
            next_used: 0,
            signalled: None,
            in_flight: 0,
            quiet: false,
        }
    }
}

impl SplitQueue {
    /// A queue of up to `max_size` entries, a power of two up to 1024, not set up.
    ///
    /// # Panics
    /// If the size is none of these.
    pub fn new(max_size: u16) -> Self {
        assert!(max_size.is_power_of_two() && max_size <= MAX_QUEUE_SIZE, "{max_size} entries");
        Self { max_size, state: QueueState::new(max_size) }
    }

    /// Largest size.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// What the driver set up.
    pub fn state(&self) -> &QueueState {
        &self.state
    }

    /// What the driver sets up.
    pub fn state_mut(&mut self) -> &mut QueueState {
        &mut self.state
    }

    /// Sets the size; what is no power of two, or too large, is ignored.
    pub fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.max_size {
            self.state.size = size;
        }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.state = QueueState::new(self.max_size);
    }

    /// Whether `state` could be this queue's.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, state: &QueueState) -> Result<(), String> {
        let size = state.size;
        let in_flight = state.next_avail.wrapping_sub(state.next_used);
        if !size.is_power_of_two() || size > self.max_size {
            Err(format!("queue of {size} entries, at most {}", self.max_size))
        } else if state.in_flight > size || state.in_flight != in_flight {
            Err(format!("{} requests in flight in a queue of {size}", state.in_flight))
        } else {
            Ok(())
        }
    }

    /// Takes over a state that [`SplitQueue::check`] accepted.
    pub fn restore(&mut self, state: &QueueState) {
        self.state = state.clone();
    }

    /// Takes the next request. At `None` the driver was told to notify when there is one.
    ///
    /// # Errors
    /// If the ring breaks the rules.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        if !self.state.enabled {
            return Ok(None);
        }
        if !self.has_next(memory)? {
            self.ask_for_notification(memory)?;
            // One that was made available before the driver could see that it should notify.
            if !self.has_next(memory)? {
                return Ok(None);
            }
        }
        if !self.state.event_idx && !self.state.quiet {
            self.write_u16(memory, self.state.used, USED_NO_NOTIFY)?;
            self.state.quiet = true;
        }
        let slot = u64::from(self.state.next_avail % self.state.size);
        let head = self.read_u16(memory, self.state.avail, 4 + 2 * slot)?;
        let chain = self.read_chain(memory, head)?;
        self.state.next_avail = self.state.next_avail.wrapping_add(1);
        self.state.in_flight += 1;
        Ok(Some(chain))
    }

    /// Whether a request waits to be taken.
    ///
    /// # Errors
    /// If the ring breaks the rules.
    pub fn has_next(&self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let avail = self.read_u16(memory, self.state.avail, 2)?;
        let next = self.state.next_avail;
        let waiting = avail.wrapping_sub(next);
        // Entries in flight still have their descriptors, so that both fit the queue together.
        if waiting > self.state.size - self.state.in_flight.min(self.state.size) {
            return Err(QueueError::BadAvailIndex { avail, next });
        }
        Ok(waiting > 0)
    }

    /// Tells the driver to notify from the next request on.
    fn ask_for_notification(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        if self.state.event_idx {
            let avail_event = end_of_ring(self.state.used, 8, self.state.size)?;
            self.write_u16(memory, avail_event, self.state.next_avail)?;
        } else if self.state.quiet {
            self.write_u16(memory, self.state.used, 0)?;
            self.state.quiet = false;
        }
        // The driver reads what was just written after it makes a request available; the order of
        // the two must not turn.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Gives a request back, `written` bytes of whose buffers are written; tells whether the driver
    /// wants to be interrupted.
    ///
    /// # Errors
    /// If the ring is not RAM.
    pub fn push(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        written: u32,
    ) -> Result<bool, QueueError> {
        let slot = u64::from(self.state.next_used % self.state.size);
        let at = offset_by(self.state.used, 4 + 8 * slot)?;
        let entry = u64::from(chain.head) | u64::from(written) << 32;
        memory
            .write(at, &entry.to_le_bytes())
            .map_err(|_| QueueError::NotRam { addr: at, len: 8 })?;
        self.state.next_used = self.state.next_used.wrapping_add(1);
        self.state.in_flight = self.state.in_flight.saturating_sub(1);
        let index = offset_by(self.state.used, 2)?;
        memory
            .view()
            .store(self.state.next_used.to_le(), GuestAddress(index), Ordering::Release)
            .map_err(|_| QueueError::NotRam { addr: index, len: 2 })?;
        self.wants_interrupt(memory)
    }

    fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        // The driver writes its wish and then looks at the used index; we do it the other way round.
        fence(Ordering::SeqCst);
        let state = &self.state;
        if state.notify_on_empty && state.in_flight == 0 && !self.has_next(memory)? {
            return Ok(true);
        }
        if !state.event_idx {
            return Ok(self.read_u16(memory, state.avail, 0)? & AVAIL_NO_INTERRUPT == 0);
        }
        let used_event = end_of_ring(state.avail, 2, state.size)?;
        let event = Wrapping(self.read_u16(memory, used_event, 0)?);
        let new = Wrapping(state.next_used);
        let old = self.state.signalled.replace(new.0);
        let passed = |old| new - event - Wrapping(1) < new - Wrapping(old);
        Ok(old.is_none_or(passed))
    }

    fn read_chain(&self, memory: &GuestMemory, head: u16) -> Result<Chain, QueueError> {
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let mut table = self.state.desc;
        let mut size = u32::from(self.state.size);
        let mut index = u32::from(head);
        let mut indirect = false;
        let mut visited = 0;
        let mut total = 0_u64;
        loop {
            if index >= size {
                return Err(QueueError::BadDescriptor { index, size });
            }
            visited += 1;
            if visited > size || visited as usize > MAX_SEGMENTS {
                return Err(QueueError::Loop);
            }
            let desc = Descriptor::read(memory, table, index)?;
            if desc.flags & DESC_INDIRECT != 0 {
                let whole = desc.len > 0 && u64::from(desc.len) % DESC_SIZE == 0;
                if indirect || !whole || desc.flags & DESC_NEXT != 0 {
                    return Err(QueueError::BadIndirect);
                }
                table = desc.addr;
                size = desc.len / DESC_SIZE as u32;
                (index, visited, indirect) = (0, 0, true);
                continue;
            }
            total += u64::from(desc.len);
            if desc.len == 0 || total > u64::from(u32::MAX) {
                return Err(QueueError::BadLength);
            }
            let segment = Segment { addr: desc.addr, len: desc.len };
            let addr = GuestAddress(desc.addr);
            if !GuestMemoryBackend::check_range(memory.view(), addr, desc.len as usize) {
                return Err(not_ram(segment));
            }
            if desc.flags & DESC_WRITE != 0 {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(QueueError::BadOrder);
            }
            if desc.flags & DESC_NEXT == 0 {
                return Ok(chain);
            }
            index = u32::from(desc.next);
        }
    }

    fn read_u16(&self, memory: &GuestMemory, base: u64, offset: u64) -> Result<u16, QueueError> {
        let addr = offset_by(base, offset)?;
        let value: u16 = memory
            .view()
            .load(GuestAddress(addr), Ordering::Acquire)
            .map_err(|_| QueueError::NotRam { addr, len: 2 })?;
        Ok(u16::from_le(value))
    }

    fn write_u16(&self, memory: &GuestMemory, addr: u64, value: u16) -> Result<(), QueueError> {
        memory
            .view()
            .store(value.to_le(), GuestAddress(addr), Ordering::Release)
            .map_err(|_| QueueError::NotRam { addr, len: 2 })
    }
}

fn offset_by(base: u64, offset: u64) -> Result<u64, QueueError> {
    base.checked_add(offset).ok_or(QueueError::NotRam { addr: base, len: offset })
}

/// Address of the event index behind a ring at `ring` with entries of `entry` bytes.
fn end_of_ring(ring: u64, entry: u64, size: u16) -> Result<u64, QueueError> {
    offset_by(ring, 4 + entry * u64::from(size))
}

struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(memory: &GuestMemory, table: u64, index: u32) -> Result<Self, QueueError> {
        let addr = offset_by(table, DESC_SIZE * u64::from(index))?;
        let raw: u128 = memory
            .view()
            .read_obj(GuestAddress(addr))
            .map_err(|_| QueueError::NotRam { addr, len: DESC_SIZE })?;
        let raw = u128::from_le(raw);
        Ok(Self {
            addr: raw as u64,
            len: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        })
    }
}
