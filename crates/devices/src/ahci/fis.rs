//! Frame information structures (Serial ATA 3.1, section 10.5), and where they are received (AHCI
//! 1.3.1, section 4.2.1).

use crate::ata::TaskFile;

/// Type of a register frame from the host.
const REGISTER_H2D: u8 = 0x27;
/// Bytes of a command frame as its table holds it.
pub(super) const COMMAND_LEN: usize = 64;

/// In the second byte: the frame carries a command, not device control.
const IS_COMMAND: u8 = 1 << 7;
/// In the second byte: the device wants the host's attention.
const INTERRUPT: u8 = 1 << 6;
/// In the second byte of a PIO setup frame: data go to the host.
const TO_HOST: u8 = 1 << 5;

/// Offsets in the area of received frames.
pub(super) mod area {
    pub(in super::super) const PIO_SETUP: u64 = 0x20;
    pub(in super::super) const REGISTER: u64 = 0x40;
    pub(in super::super) const DEVICE_BITS: u64 = 0x58;
}

/// What a register frame from the host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FromHost {
    /// A command, with its registers.
    Command(u8, TaskFile),
    /// The device control register.
    Control(u8),
}

/// Reads a frame from the host; `None` if it is none.
pub(super) fn from_host(frame: &[u8; COMMAND_LEN]) -> Option<FromHost> {
    if frame[0] != REGISTER_H2D {
        return None;
    }
    if frame[1] & IS_COMMAND == 0 {
        return Some(FromHost::Control(frame[15]));
    }
    let pair = |low: usize, high: usize| u16::from_le_bytes([frame[low], frame[high]]);
    let lba = [frame[4], frame[5], frame[6], frame[8], frame[9], frame[10], 0, 0];
    let task = TaskFile {
        features: pair(3, 11),
        count: pair(12, 13),
        lba: u64::from_le_bytes(lba),
        device: frame[7],
        status: 0,
        error: 0,
    };
    Some(FromHost::Command(frame[2], task))
}

/// Fills in what frames from the device have in common.
fn from_device(kind: u8, flags: u8, task: &TaskFile) -> [u8; 20] {
    let lba = task.lba.to_le_bytes();
    let count = task.count.to_le_bytes();
    let mut frame = [0; 20];
    frame[..4].copy_from_slice(&[kind, flags, task.status, task.error]);
    frame[4..8].copy_from_slice(&[lba[0], lba[1], lba[2], task.device]);
    frame[8..11].copy_from_slice(&lba[3..6]);
    frame[12..14].copy_from_slice(&count);
    frame
}

/// The registers of the device.
pub(super) fn registers(task: &TaskFile, interrupt: bool) -> [u8; 20] {
    from_device(0x34, if interrupt { INTERRUPT } else { 0 }, task)
}

/// `len` bytes of data are to be moved; `after` is the status when they are.
pub(super) fn pio_setup(
    task: &TaskFile,
    to_host: bool,
    interrupt: bool,
    after: u8,
    len: u16,
) -> [u8; 20] {
    let flags = if to_host { TO_HOST } else { 0 } | if interrupt { INTERRUPT } else { 0 };
    let mut frame = from_device(0x5f, flags, task);
    frame[15] = after;
    frame[16..18].copy_from_slice(&len.to_le_bytes());
    frame
}

/// Queued commands ended: those whose bits are set in `done`.
pub(super) fn device_bits(task: &TaskFile, done: u32) -> [u8; 8] {
    let mut frame = [0; 8];
    frame[..4].copy_from_slice(&[0xa1, INTERRUPT, task.status & 0x77, task.error]);
    frame[4..].copy_from_slice(&done.to_le_bytes());
    frame
}
