//! One frame of the schedule in guest memory (design guide, chapter 3).
//!
//! ```text
//! frame list ─► TD ─► TD (isochronous) ─► QH ─────► QH ─────► QH ─► ...   (horizontal)
//!                                         │ element  │
//!                                         ▼          ▼
//!                                         TD ─► TD   TD                   (a queue)
//! ```
//!
//! A transfer descriptor (TD) is one transaction. A queue head (QH) points to the first TD of its queue
//! that is not done.

use memory::GuestMemory;

use super::super::{Handshake, Token, Transaction};
use super::enable;

/// Link pointers: the end, a queue head, depth first.
const TERMINATE: u32 = 1 << 0;
const QUEUE: u32 = 1 << 1;
const DEPTH: u32 = 1 << 2;
const POINTER: u32 = !0xf;

/// A TD's control and status.
mod td {
    pub(super) const ACTUAL: u32 = 0x7ff;
    pub(super) const TIMEOUT: u32 = 1 << 18;
    pub(super) const NAK: u32 = 1 << 19;
    pub(super) const BABBLE: u32 = 1 << 20;
    pub(super) const STALLED: u32 = 1 << 22;
    pub(super) const ACTIVE: u32 = 1 << 23;
    pub(super) const ERRORS: u32 = 0x7e << 16;
    pub(super) const COMPLETE: u32 = 1 << 24;
    pub(super) const ISOCHRONOUS: u32 = 1 << 25;
    pub(super) const RETRIES: u32 = 3 << 27;
    pub(super) const RETRY: u32 = 1 << 27;
    pub(super) const SHORT: u32 = 1 << 29;
}

/// Packet identifiers.
const PID_SETUP: u8 = 0x2d;
const PID_IN: u8 = 0x69;
const PID_OUT: u8 = 0xe1;

/// Longest packet.
const MAX_LENGTH: usize = 1280;
/// Bytes that fit into a frame, beside what the bus itself takes.
const FRAME_BYTES: usize = 1280;
/// Structures that are visited in a frame at most.
const MAX_STEPS: usize = 1024;
/// Queue heads that are visited without progress before the frame is over.
const MAX_IDLE_QUEUES: usize = 256;

/// What ends a frame, and stops the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A pointer to what is no memory.
    Memory,
    /// A TD that breaks the rules.
    Schedule,
}

/// Gives a transaction to the bus.
type Transact<'a> = dyn FnMut(&mut Transaction<'_>) -> Option<Handshake> + 'a;

/// What became of a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It is done; the queue goes on with the next.
    Done,
    /// Its queue stays where it is.
    Stays,
}

/// A walk through one frame, and what it leaves.
pub(super) struct Walk<'a, 'b> {
    memory: &'a GuestMemory,
    transact: &'a mut Transact<'b>,
    /// Why software is to be interrupted: [`enable::COMPLETE`], [`enable::SHORT`].
    pub(super) reasons: u16,
    /// A transaction ended in an error.
    pub(super) failed: bool,
    /// A TD changed.
    pub(super) progress: bool,
    bytes: usize,
    steps: usize,
    /// Queue heads since the last progress: to see one again is to be in a loop.
    seen: Vec<u32>,
}

impl<'a, 'b> Walk<'a, 'b> {
    pub(super) fn new(memory: &'a GuestMemory, transact: &'a mut Transact<'b>) -> Self {
        Self {
            memory,
            transact,
            reasons: 0,
            failed: false,
            progress: false,
            bytes: 0,
            steps: 0,
            seen: Vec::new(),
        }
    }

    /// Walks the frame whose entry in the frame list is at `entry`.
    pub(super) fn frame(&mut self, entry: u32) -> Result<(), Fault> {
        let mut link = self.read(entry)?;
        while link & TERMINATE == 0 && self.goes_on() {
            let address = link & POINTER;
            link = if link & QUEUE != 0 {
                if self.seen.contains(&address) || self.seen.len() >= MAX_IDLE_QUEUES {
                    return Ok(());
                }
                self.seen.push(address);
                self.queue(address)?
            } else {
                let next = self.read(address)?;
                self.transfer(address)?;
                next
            };
        }
        Ok(())
    }

    fn goes_on(&mut self) -> bool {
        self.steps += 1;
        self.steps <= MAX_STEPS && self.bytes < FRAME_BYTES
    }

    /// Serves a queue, one TD or, depth first, as many as get done; returns the link to the next.
    fn queue(&mut self, head: u32) -> Result<u32, Fault> {
        let next = self.read(head)?;
        let mut element = self.read(head.wrapping_add(4))?;
        while element & TERMINATE == 0 {
            if element & QUEUE != 0 {
                // A queue of queues: the inner ones come next.
                return Ok(element);
            }
            let address = element & POINTER;
            let link = self.read(address)?;
            if self.transfer(address)? == Outcome::Stays {
                break;
            }
            self.write(head.wrapping_add(4), link)?;
            element = link;
            if link & DEPTH == 0 || !self.goes_on() {
                break;
            }
        }
        Ok(next)
    }

    /// Does the transaction of a TD.
    fn transfer(&mut self, address: u32) -> Result<Outcome, Fault> {
        let status = self.read(address.wrapping_add(4))?;
        if status & td::ACTIVE == 0 {
            return Ok(Outcome::Stays);
        }
        let token = self.read(address.wrapping_add(8))?;
        let buffer = self.read(address.wrapping_add(12))?;
        let length = (token >> 21).wrapping_add(1) as usize & 0x7ff;
        let kind = match token as u8 {
            PID_SETUP => Token::Setup,
            PID_IN => Token::In,
            PID_OUT => Token::Out,
            _ => return Err(Fault::Schedule),
        };
        if length > MAX_LENGTH {
            return Err(Fault::Schedule);
        }
        let mut packet = [0; MAX_LENGTH];
        let data = &mut packet[..length];
        if kind != Token::In {
            self.memory.read(buffer.into(), data).map_err(|_| Fault::Memory)?;
        }
        let handshake = (self.transact)(&mut Transaction {
            address: (token >> 8) as u8 & 0x7f,
            endpoint: (token >> 15) as u8 & 0xf,
            token: kind,
            data,
        });
        let done = match handshake {
            Some(Handshake::Nak) if status & td::ISOCHRONOUS == 0 => {
                if status & td::NAK == 0 {
                    self.write(address.wrapping_add(4), status | td::NAK)?;
                }
                return Ok(Outcome::Stays);
            }
            Some(Handshake::Ack(len)) => {
                let len = if kind == Token::In { len.min(length) } else { length };
                if kind == Token::In {
                    let sent = &packet[..len];
                    self.memory.write(buffer.into(), sent).map_err(|_| Fault::Memory)?;
                }
                self.bytes += len;
                self.finish(address, status, len, kind == Token::In && len < length)
            }
            Some(Handshake::Babble) => self.fail(address, status, td::BABBLE | td::STALLED),
            Some(Handshake::Stall) => self.fail(address, status, td::STALLED),
            Some(Handshake::Nak) | None => self.time_out(address, status),
        }?;
        self.progress = true;
        self.seen.clear();
        Ok(done)
    }

    /// The transaction is done, `len` bytes long.
    fn finish(
        &mut self,
        address: u32,
        status: u32,
        len: usize,
        short: bool,
    ) -> Result<Outcome, Fault> {
        let kept = status & !(td::ACTIVE | td::ERRORS | td::ACTUAL);
        self.write(address.wrapping_add(4), kept | (len as u32).wrapping_sub(1) & td::ACTUAL)?;
        if status & td::COMPLETE != 0 {
            self.reasons |= enable::COMPLETE;
        }
        if short && status & td::SHORT != 0 {
            // Software looks into it before the queue goes on.
            self.reasons |= enable::SHORT;
            return Ok(Outcome::Stays);
        }
        Ok(Outcome::Done)
    }

    /// The transaction failed for good.
    fn fail(&mut self, address: u32, status: u32, error: u32) -> Result<Outcome, Fault> {
        let kept = status & !(td::ACTIVE | td::ACTUAL);
        // No bytes were transferred.
        self.write(address.wrapping_add(4), kept | error | td::ACTUAL)?;
        self.failed = true;
        if status & td::COMPLETE != 0 {
            self.reasons |= enable::COMPLETE;
        }
        Ok(Outcome::Stays)
    }

    /// Nobody answered: it is tried again as often as the TD says.
    fn time_out(&mut self, address: u32, status: u32) -> Result<Outcome, Fault> {
        if status & td::ISOCHRONOUS != 0 || status & td::RETRIES == td::RETRY {
            let status = status & !td::RETRIES;
            let stalled = if status & td::ISOCHRONOUS == 0 { td::STALLED } else { 0 };
            return self.fail(address, status, td::TIMEOUT | stalled);
        }
        let left = if status & td::RETRIES != 0 { status - td::RETRY } else { status };
        self.write(address.wrapping_add(4), left | td::TIMEOUT)?;
        Ok(Outcome::Stays)
    }

    fn read(&self, address: u32) -> Result<u32, Fault> {
        let mut bytes = [0; 4];
        self.memory.read(address.into(), &mut bytes).map_err(|_| Fault::Memory)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write(&self, address: u32, value: u32) -> Result<(), Fault> {
        self.memory.write(address.into(), &value.to_le_bytes()).map_err(|_| Fault::Memory)
    }
}
