//! MSI-X: one message per vector, each maskable (PCI Local Bus Specification 3.0, section 6.8.2).
//!
//! The table sits at offset 0 of its BAR and the pending bits at half of it.

use std::sync::{Arc, Mutex, MutexGuard};

use ::bus::{BusDevice, MsiMessage, MsiSink};
use serde::{Deserialize, Serialize};

use crate::lock;

/// The vector number that stands for "no vector" in virtio and the like.
pub const NO_VECTOR: u16 = 0xffff;

/// Bytes of a table entry: address low and high, data, control.
const ENTRY_SIZE: u64 = 16;
/// Bit 0 of an entry's control word: the vector is masked.
const ENTRY_MASKED: u32 = 1;

/// Message control: the function is masked.
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// Message control: MSI-X is enabled.
const CONTROL_ENABLE: u16 = 1 << 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

impl Entry {
    const RESET: Self = Self { address: 0, data: 0, control: ENTRY_MASKED };

    fn message(&self) -> MsiMessage {
        MsiMessage { address: self.address, data: self.data }
    }
}

/// The saved form of an [`MsiX`]; the enable bits are in the function's configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsiXState {
    entries: Vec<Entry>,
    pending: Vec<bool>,
}

#[derive(Debug)]
struct Vectors {
    enabled: bool,
    function_masked: bool,
    entries: Vec<Entry>,
    pending: Vec<bool>,
}

/// A function's MSI-X table.
pub struct MsiX {
    vectors: Mutex<Vectors>,
    sink: Arc<dyn MsiSink>,
    count: u16,
    bar_size: u64,
}

impl MsiX {
    /// A table of `count` vectors, 1 to 2048, that sends to `sink`; all masked.
    ///
    /// # Panics
    /// If `count` is out of range.
    pub fn new(count: u16, sink: Arc<dyn MsiSink>) -> Self {
        assert!((1..=2048).contains(&count), "{count} vectors");
        let half = (u64::from(count) * ENTRY_SIZE).next_power_of_two().max(2048);
        let vectors = Mutex::new(Vectors {
            enabled: false,
            function_masked: false,
            entries: vec![Entry::RESET; usize::from(count)],
            pending: vec![false; usize::from(count)],
        });
        Self { vectors, sink, count, bar_size: 2 * half }
    }

    fn lock(&self) -> MutexGuard<'_, Vectors> {
        lock(&self.vectors)
    }

    /// Number of vectors.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Bytes that the table and the pending bits take in a BAR.
    pub fn bar_size(&self) -> u64 {
        self.bar_size
    }

    /// Body of the capability for a table in BAR `bar`, after id and link.
    pub fn capability(&self, bar: u32) -> [u8; 10] {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.count - 1).to_le_bytes());
        body[2..6].copy_from_slice(&bar.to_le_bytes());
        body[6..].copy_from_slice(&((self.bar_size / 2) as u32 | bar).to_le_bytes());
        body
    }

    /// Bits of message control that software writes.
    pub fn control_mask() -> u16 {
        CONTROL_ENABLE | CONTROL_FUNCTION_MASK
    }

    /// Whether MSI-X is enabled, and INTx so replaced.
    pub fn is_enabled(&self) -> bool {
        self.lock().enabled
    }

    /// Takes over message control as software wrote it; sends what became unmasked.
    pub fn set_control(&self, control: u16) {
        let mut vectors = self.lock();
        vectors.enabled = control & CONTROL_ENABLE != 0;
        vectors.function_masked = control & CONTROL_FUNCTION_MASK != 0;
        self.send_unmasked(vectors);
    }

    /// Raises `vector`: sends its message, or remembers it while masked. Vectors that do not exist and
    /// a table that is not enabled send nothing.
    pub fn notify(&self, vector: u16) {
        let mut vectors = self.lock();
        let index = usize::from(vector);
        if !vectors.enabled || index >= vectors.entries.len() {
            return;
        }
        vectors.pending[index] = true;
        self.send_unmasked(vectors);
    }

    /// Sends all pending messages that nothing masks, after letting go of the lock.
    fn send_unmasked(&self, mut vectors: MutexGuard<'_, Vectors>) {
        if !vectors.enabled || vectors.function_masked {
            return;
        }
        let mut messages = Vec::new();
        let Vectors { entries, pending, .. } = &mut *vectors;
        for (entry, pending) in entries.iter().zip(pending) {
            if *pending && entry.control & ENTRY_MASKED == 0 {
                *pending = false;
                messages.push(entry.message());
            }
        }
        drop(vectors);
        for message in messages {
            self.sink.send(message);
        }
    }

    /// All vectors masked, none pending, MSI-X disabled.
    pub fn reset(&self) {
        let mut vectors = self.lock();
        vectors.enabled = false;
        vectors.function_masked = false;
        vectors.entries.fill(Entry::RESET);
        vectors.pending.fill(false);
    }

    /// What is to be saved.
    pub fn save(&self) -> MsiXState {
        let vectors = self.lock();
        MsiXState { entries: vectors.entries.clone(), pending: vectors.pending.clone() }
    }

    /// Whether `state` has this table's size.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, state: &MsiXState) -> Result<(), String> {
        let count = usize::from(self.count);
        if state.entries.len() == count && state.pending.len() == count {
            Ok(())
        } else {
            Err(format!("MSI-X table of {} vectors, not {count}", state.entries.len()))
        }
    }

    /// Takes over a state that [`MsiX::check`] accepted; [`MsiX::set_control`] is to follow.
    pub fn restore(&self, state: &MsiXState) {
        let mut vectors = self.lock();
        vectors.entries.clone_from(&state.entries);
        vectors.pending.clone_from(&state.pending);
    }

    fn read_word(&self, offset: u64) -> u32 {
        let vectors = self.lock();
        let half = self.bar_size / 2;
        if offset >= half {
            let first = (offset - half) as usize * 8;
            let bits = vectors.pending.iter().skip(first).take(32);
            return bits.enumerate().fold(0, |word, (i, &bit)| word | u32::from(bit) << i);
        }
        let Some(entry) = vectors.entries.get((offset / ENTRY_SIZE) as usize) else { return 0 };
        match offset % ENTRY_SIZE {
            0 => entry.address as u32,
            4 => (entry.address >> 32) as u32,
            8 => entry.data,
            _ => entry.control,
        }
    }

    fn write_word(&self, offset: u64, value: u32) {
        let mut vectors = self.lock();
        if offset >= self.bar_size / 2 {
            return;
        }
        let Some(entry) = vectors.entries.get_mut((offset / ENTRY_SIZE) as usize) else { return };
        let value64 = u64::from(value);
        match offset % ENTRY_SIZE {
            0 => entry.address = entry.address & !0xffff_ffff | value64 & !3,
            4 => entry.address = entry.address & 0xffff_ffff | value64 << 32,
            8 => entry.data = value,
            _ => {
                entry.control = value;
                self.send_unmasked(vectors);
            }
        }
    }
}

/// The table and the pending bits as a BAR shows them. Accesses are of 4 or 8 bytes; others are
/// undefined by the specification, read as zero and are ignored.
impl BusDevice for MsiX {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match size {
            4 if offset.is_multiple_of(4) => u64::from(self.read_word(offset)),
            8 if offset.is_multiple_of(8) => {
                u64::from(self.read_word(offset)) | u64::from(self.read_word(offset + 4)) << 32
            }
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match size {
            4 if offset.is_multiple_of(4) => self.write_word(offset, value as u32),
            8 if offset.is_multiple_of(8) => {
                self.write_word(offset, value as u32);
                self.write_word(offset + 4, (value >> 32) as u32);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<MsiMessage>>);
    impl MsiSink for Sent {
        fn send(&self, message: MsiMessage) {
            self.0.lock().unwrap().push(message);
        }
    }

    #[test]
    fn masked_vectors_wait_and_are_sent_once() {
        let sent = Arc::new(Sent::default());
        let msix = MsiX::new(3, sent.clone());
        assert_eq!(msix.bar_size(), 4096);
        msix.notify(1);
        msix.set_control(0x8000);
        msix.write(16, 8, 0xfee0_0000);
        msix.write(24, 4, 0x41);
        msix.notify(1);
        msix.notify(1);
        assert_eq!(msix.read(2048, 4), 2);
        assert!(sent.0.lock().unwrap().is_empty());
        msix.set_control(0xc000);
        msix.write(28, 4, 0);
        assert!(sent.0.lock().unwrap().is_empty());
        msix.set_control(0x8000);
        let message = MsiMessage { address: 0xfee0_0000, data: 0x41 };
        assert_eq!(*sent.0.lock().unwrap(), [message]);
        assert_eq!(msix.read(2048, 8), 0);
        msix.notify(7);
        msix.notify(NO_VECTOR);
        assert_eq!(sent.0.lock().unwrap().len(), 1);
    }
}
