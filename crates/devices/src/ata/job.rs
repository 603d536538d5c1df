//! What a device has to do that may wait for the host: done by a worker, with nothing locked.

use std::io;
use std::sync::Arc;

use block::{Drive, ErrorAction, GuestSlice, Operation, slices_len};
use memory::vm_memory::Bytes;

use super::BUFFER_LEN;
use crate::scsi::{Data, Lun, Outcome, Sense, Task};

/// Data that a job moves to or from the host's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// None.
    None,
    /// From the device.
    In(u64),
    /// To the device.
    Out(u64),
}

/// What is to be done. Offsets and lengths are in bytes.
#[derive(Clone)]
pub(super) enum Act {
    /// Data of the disk go to the device's buffer.
    Fetch { offset: u64, len: u64 },
    /// The device's buffer goes to the disk.
    Store { offset: u64, data: Vec<u8>, durable: bool },
    /// Data of the disk go to the host.
    Read { offset: u64, len: u64 },
    /// Data of the host go to the disk.
    Write { offset: u64, len: u64, durable: bool },
    /// The device's buffer goes to the host.
    Send { data: Vec<u8> },
    /// Data of the host go to the device's buffer.
    Take { len: u64 },
    /// What was written becomes durable.
    Flush,
    /// Data of the disk are read and dropped.
    Verify { offset: u64, len: u64 },
    /// Ranges are not needed any more.
    Trim { ranges: Vec<(u64, u64)> },
    /// A part of a packet command's data goes to the device's buffer.
    PacketFetch { lun: Arc<Lun>, task: Task, offset: u64, len: u64 },
    /// A packet command takes the parameters in the device's buffer.
    PacketAccept { lun: Arc<Lun>, task: Task, data: Vec<u8> },
    /// A packet command is done, its data going to or coming from the host.
    Packet { lun: Arc<Lun>, task: Task },
}

/// Something to do for a device.
#[derive(Clone)]
pub struct Job {
    pub(super) drive: Arc<Drive>,
    /// Number of the command; one that a reset overtook has another.
    pub(super) generation: u64,
    pub(super) act: Act,
}

/// How a job ended.
#[derive(Debug)]
pub struct End(pub(super) Result<Option<Vec<u8>>, Failure>);

/// Why a job failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The host failed to do it; the guest is told.
    Host(Operation),
    /// A packet command ended with this.
    Check(Sense),
    /// The host failed to do it; the machine stops, and the job is to be done again.
    Held,
}

impl End {
    /// Whether a failure stops the machine: the job is then not finished but done again, from
    /// [`AtaDevice::job`](super::AtaDevice::job), when the machine continues.
    pub fn is_held(&self) -> bool {
        matches!(self.0, Err(Failure::Held))
    }
}

impl Job {
    /// What data it moves to or from the host's memory.
    pub fn transfer(&self) -> Transfer {
        match &self.act {
            Act::Read { len, .. } => Transfer::In(*len),
            Act::Send { data } => Transfer::In(data.len() as u64),
            Act::Write { len, .. } | Act::Take { len } => Transfer::Out(*len),
            Act::Packet { task, .. } => match task.data() {
                Data::None => Transfer::None,
                Data::In(len) => Transfer::In(len),
                Data::Out(len) => Transfer::Out(len),
            },
            _ => Transfer::None,
        }
    }

    /// Does it. `memory` is where data come from or go to, no longer than [`Job::transfer`] says.
    pub fn run(&self, memory: &[GuestSlice<'_>]) -> End {
        let drive = &*self.drive;
        let (operation, result) = match &self.act {
            Act::Fetch { offset, len } => {
                let mut data = vec![0; usize::try_from(*len).unwrap_or(0).min(BUFFER_LEN)];
                (Operation::Read, drive.read_bytes(*offset, &mut data).map(|()| Some(data)))
            }
            Act::Store { offset, data, durable } => {
                let stored = drive.write_bytes(*offset, data);
                (Operation::Write, stored.and_then(|()| self.settle(*durable)).map(|()| None))
            }
            Act::Read { offset, .. } => {
                (Operation::Read, drive.read(*offset, memory).map(|()| None))
            }
            Act::Write { offset, durable, .. } => {
                let written = drive.write(*offset, memory);
                (Operation::Write, written.and_then(|()| self.settle(*durable)).map(|()| None))
            }
            Act::Send { data } => {
                scatter(memory, data);
                return End(Ok(None));
            }
            Act::Take { .. } => return End(Ok(Some(gather(memory)))),
            Act::Flush => (Operation::Flush, drive.flush().map(|()| None)),
            Act::Verify { offset, len } => {
                (Operation::Read, self.verify(*offset, *len).map(|()| None))
            }
            Act::Trim { ranges } => {
                let mut ranges = ranges.iter();
                let done = ranges.try_for_each(|&(offset, len)| drive.discard(offset, len));
                (Operation::Discard, done.map(|()| None))
            }
            Act::PacketFetch { lun, task, offset, len } => {
                let mut data = vec![0; usize::try_from(*len).unwrap_or(0).min(BUFFER_LEN)];
                let outcome = lun.fetch(task, *offset, &mut data);
                return End(ended(outcome).map(|()| Some(data)));
            }
            Act::PacketAccept { lun, task, data } => {
                return End(ended(lun.accept(task, data)).map(|()| None));
            }
            Act::Packet { lun, task } => {
                let (input, output) = match task.data() {
                    Data::Out(_) => (&[][..], memory),
                    Data::In(_) | Data::None => (memory, &[][..]),
                };
                return End(ended(lun.perform(task, input, output)).map(|()| None));
            }
        };
        End(result.or_else(|error| match drive.failed(operation, &error) {
            // What can't be read and must not fail reads as zeroes.
            ErrorAction::Ignore => Ok(match &self.act {
                Act::Fetch { len, .. } => Some(vec![0; *len as usize]),
                _ => None,
            }),
            ErrorAction::Report => Err(Failure::Host(operation)),
            ErrorAction::Stop => Err(Failure::Held),
        }))
    }

    fn settle(&self, durable: bool) -> io::Result<()> {
        if durable { self.drive.flush() } else { Ok(()) }
    }

    fn verify(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        let mut data = vec![0; BUFFER_LEN];
        while len > 0 {
            let step = len.min(BUFFER_LEN as u64);
            self.drive.read_bytes(offset, &mut data[..step as usize])?;
            offset += step;
            len -= step;
        }
        Ok(())
    }
}

fn ended(outcome: Outcome) -> Result<(), Failure> {
    match outcome {
        Outcome::Good(_) => Ok(()),
        Outcome::Check(sense) => Err(Failure::Check(sense)),
        Outcome::Held => Err(Failure::Held),
    }
}

fn scatter(memory: &[GuestSlice<'_>], mut data: &[u8]) {
    for slice in memory {
        let (now, rest) = data.split_at(data.len().min(slice.len()));
        // The range is within the slice.
        let _ = slice.write_slice(now, 0);
        data = rest;
    }
}

fn gather(memory: &[GuestSlice<'_>]) -> Vec<u8> {
    let len = usize::try_from(slices_len(memory)).unwrap_or(usize::MAX).min(BUFFER_LEN);
    let mut data = vec![0; len];
    let mut at = 0;
    for slice in memory {
        let now = slice.len().min(len - at);
        let _ = slice.read_slice(&mut data[at..at + now], 0);
        at += now;
    }
    data
}
