//! The registers of a 16550A and what they do to each other.

use serde::{Deserialize, Serialize};
use vmstate::State;

/// Register offsets; the first two are the divisor's while DLAB is set.
const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_ID: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const MODEM_STATUS: u16 = 6;

/// Interrupt enable.
const IER_RECEIVED: u8 = 1 << 0;
const IER_THR_EMPTY: u8 = 1 << 1;
const IER_LINE: u8 = 1 << 2;
const IER_MODEM: u8 = 1 << 3;
const IER_WRITABLE: u8 = 0x0f;

/// Interrupt identification, most urgent first.
const IIR_LINE: u8 = 0x06;
const IIR_RECEIVED: u8 = 0x04;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_THR_EMPTY: u8 = 0x02;
const IIR_MODEM: u8 = 0x00;
const IIR_NONE: u8 = 0x01;
const IIR_FIFOS: u8 = 0xc0;

/// FIFO control, at the same offset as the identification.
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
const FCR_CLEAR_TRANSMITTER: u8 = 1 << 2;
const FCR_KEPT: u8 = 0xc9;

const LCR_DLAB: u8 = 1 << 7;
const LCR_STOP: u8 = 1 << 2;
const LCR_PARITY: u8 = 1 << 3;
const LCR_LENGTH: u8 = 3;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_WRITABLE: u8 = 0x1f;

const LSR_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_BREAK: u8 = 1 << 4;
const LSR_THR_EMPTY: u8 = 1 << 5;
const LSR_IDLE: u8 = 1 << 6;
/// Conditions that ask for the line status interrupt; reading the register clears them.
const LSR_ERRORS: u8 = 0x1e;

const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RING: u8 = 1 << 6;
const MSR_CARRIER: u8 = 1 << 7;
const MSR_DELTAS: u8 = 0x0f;
const MSR_RING_ENDED: u8 = 1 << 2;
/// A backend is a modem that is always there.
const CONNECTED: u8 = MSR_CTS | MSR_DSR | MSR_CARRIER;

const FIFO_SIZE: usize = 16;
/// Input clock of the baud generator over 16, in Hz.
const BASE_BAUD: u64 = 115_200;

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uart16550State {
    divisor: u16,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Error bits of the line status.
    errors: u8,
    /// Modem status with its delta bits.
    msr: u8,
    scratch: u8,
    received: Vec<u8>,
    transmit: Vec<u8>,
    /// The transmitter ran empty and nobody has been told.
    thr_empty_pending: bool,
    /// Input has waited below the trigger level for four characters.
    timed_out: bool,
    /// Input came or went since the timeout was last started.
    input_moved: bool,
    /// Guest time in nanoseconds at which waiting input has waited too long.
    pub(super) timeout_at: Option<u64>,
}

impl Default for Uart16550State {
    fn default() -> Self {
        Self {
            divisor: 12,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: MCR_OUT2,
            errors: 0,
            msr: CONNECTED,
            scratch: 0,
            received: Vec::new(),
            transmit: Vec::new(),
            thr_empty_pending: false,
            timed_out: false,
            input_moved: false,
            timeout_at: None,
        }
    }
}

impl State for Uart16550State {
    const NAME: &'static str = "16550";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        let depth = self.depth();
        if self.received.len() > depth || self.transmit.len() > depth {
            return Err(format!("a FIFO of {depth} holds more"));
        }
        if self.ier & !IER_WRITABLE != 0
            || self.mcr & !MCR_WRITABLE != 0
            || self.fcr & !FCR_KEPT != 0
            || self.errors & !LSR_ERRORS != 0
        {
            return Err("a register has reserved bits set".into());
        }
        Ok(())
    }
}

impl Uart16550State {
    fn fifos(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn depth(&self) -> usize {
        if self.fifos() { FIFO_SIZE } else { 1 }
    }

    fn trigger(&self) -> usize {
        if !self.fifos() {
            return 1;
        }
        [1, 4, 8, 14][usize::from(self.fcr >> 6)]
    }

    fn is_looped(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    /// The most urgent interrupt.
    fn identification(&self) -> u8 {
        if self.ier & IER_LINE != 0 && self.errors != 0 {
            IIR_LINE
        } else if self.ier & IER_RECEIVED != 0 && self.received.len() >= self.trigger() {
            IIR_RECEIVED
        } else if self.ier & IER_RECEIVED != 0 && self.timed_out {
            IIR_TIMEOUT
        } else if self.ier & IER_THR_EMPTY != 0 && self.thr_empty_pending {
            IIR_THR_EMPTY
        } else if self.ier & IER_MODEM != 0 && self.msr & MSR_DELTAS != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    /// Whether the interrupt line is high.
    pub(super) fn interrupts(&self) -> bool {
        self.identification() != IIR_NONE
    }

    /// Bytes that the receiver can take from outside.
    pub(super) fn room(&self) -> usize {
        if self.is_looped() { 0 } else { self.depth() - self.received.len() }
    }

    /// Whether input came or went since this was last asked.
    pub(super) fn take_input_moved(&mut self) -> bool {
        std::mem::take(&mut self.input_moved)
    }

    /// How long waiting input may wait, if any does and the FIFO is on: four characters.
    pub(super) fn timeout_ns(&self) -> Option<u64> {
        if !self.fifos() || self.received.is_empty() || self.timed_out {
            return None;
        }
        let stop = if self.lcr & LCR_STOP != 0 { 2 } else { 1 };
        let parity = u64::from(self.lcr & LCR_PARITY != 0);
        let bits = 1 + 5 + u64::from(self.lcr & LCR_LENGTH) + parity + stop;
        Some(4 * bits * u64::from(self.divisor.max(1)) * 1_000_000_000 / BASE_BAUD)
    }

    /// The time is over.
    pub(super) fn time_out(&mut self) {
        self.timed_out = self.fifos() && !self.received.is_empty();
    }

    pub(super) fn receive(&mut self, byte: u8) {
        self.input_moved = true;
        if self.received.len() < self.depth() {
            self.received.push(byte);
        } else {
            self.errors |= LSR_OVERRUN;
            if !self.fifos() {
                self.received[0] = byte;
            }
        }
    }

    pub(super) fn receive_break(&mut self) {
        self.receive(0);
        self.errors |= LSR_BREAK;
    }

    /// Output that waits: the first bytes of the array, and how many.
    pub(super) fn waiting_output(&self) -> ([u8; FIFO_SIZE], usize) {
        let mut bytes = [0; FIFO_SIZE];
        let len = self.transmit.len().min(FIFO_SIZE);
        bytes[..len].copy_from_slice(&self.transmit[..len]);
        (bytes, len)
    }

    /// The backend took `count` bytes.
    pub(super) fn sent(&mut self, count: usize) {
        // The guest may have cleared the FIFO meanwhile.
        let count = count.min(self.transmit.len());
        self.transmit.drain(..count);
        if self.transmit.is_empty() {
            self.thr_empty_pending = true;
        }
    }

    fn line_status(&self) -> u8 {
        let ready = if self.received.is_empty() { 0 } else { LSR_READY };
        let empty = if self.transmit.is_empty() { LSR_THR_EMPTY | LSR_IDLE } else { 0 };
        ready | empty | self.errors
    }

    /// Levels of the modem lines.
    fn modem_lines(&self) -> u8 {
        if !self.is_looped() {
            return CONNECTED;
        }
        [(MCR_DTR, MSR_DSR), (MCR_RTS, MSR_CTS), (MCR_OUT1, MSR_RING), (MCR_OUT2, MSR_CARRIER)]
            .into_iter()
            .filter(|(output, _)| self.mcr & output != 0)
            .fold(0, |lines, (_, input)| lines | input)
    }

    /// Takes up the modem lines' levels and notes which have changed.
    fn update_modem_status(&mut self) {
        let lines = self.modem_lines();
        let changed = (self.msr ^ lines) & !MSR_DELTAS;
        let mut deltas = changed >> 4 & !MSR_RING_ENDED;
        if changed & MSR_RING != 0 && lines & MSR_RING == 0 {
            deltas |= MSR_RING_ENDED;
        }
        self.msr = lines | self.msr & MSR_DELTAS | deltas;
    }

    pub(super) fn read(&mut self, offset: u16) -> u8 {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            DATA if self.lcr & LCR_DLAB != 0 => divisor_low,
            INTERRUPT_ENABLE if self.lcr & LCR_DLAB != 0 => divisor_high,
            DATA => self.read_data(),
            INTERRUPT_ENABLE => self.ier,
            INTERRUPT_ID => {
                let id = self.identification();
                if id == IIR_THR_EMPTY {
                    self.thr_empty_pending = false;
                }
                id | if self.fifos() { IIR_FIFOS } else { 0 }
            }
            LINE_CONTROL => self.lcr,
            MODEM_CONTROL => self.mcr,
            LINE_STATUS => {
                let status = self.line_status();
                self.errors = 0;
                status
            }
            MODEM_STATUS => {
                let status = self.msr;
                self.msr &= !MSR_DELTAS;
                status
            }
            _ => self.scratch,
        }
    }

    fn read_data(&mut self) -> u8 {
        if self.received.is_empty() {
            return 0;
        }
        self.input_moved = true;
        self.timed_out = false;
        self.received.remove(0)
    }

    pub(super) fn write(&mut self, offset: u16, value: u8) {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            DATA if self.lcr & LCR_DLAB != 0 => {
                self.divisor = u16::from_le_bytes([value, divisor_high]);
            }
            INTERRUPT_ENABLE if self.lcr & LCR_DLAB != 0 => {
                self.divisor = u16::from_le_bytes([divisor_low, value]);
            }
            DATA => self.write_data(value),
            INTERRUPT_ENABLE => {
                let enabled = value & !self.ier;
                self.ier = value & IER_WRITABLE;
                // Enabling the interrupt while the transmitter is empty raises it.
                if enabled & IER_THR_EMPTY != 0 && self.transmit.is_empty() {
                    self.thr_empty_pending = true;
                }
            }
            INTERRUPT_ID => self.write_fifo_control(value),
            LINE_CONTROL => self.lcr = value,
            MODEM_CONTROL => {
                self.mcr = value & MCR_WRITABLE;
                self.update_modem_status();
            }
            LINE_STATUS | MODEM_STATUS => {}
            _ => self.scratch = value,
        }
    }

    fn write_data(&mut self, byte: u8) {
        self.thr_empty_pending = false;
        if self.is_looped() {
            self.receive(byte);
            self.thr_empty_pending = true;
            return;
        }
        if self.transmit.len() >= self.depth() {
            // The guest did not look whether there was room: the last byte is overwritten.
            self.transmit.pop();
        }
        self.transmit.push(byte);
    }

    fn write_fifo_control(&mut self, value: u8) {
        let toggled = (self.fcr ^ value) & FCR_ENABLE != 0;
        if toggled || value & FCR_CLEAR_RECEIVER != 0 {
            self.received.clear();
            self.timed_out = false;
            self.input_moved = true;
        }
        if toggled || value & FCR_CLEAR_TRANSMITTER != 0 {
            self.transmit.clear();
            self.thr_empty_pending = true;
        }
        // With the FIFOs off the rest of the register is not there.
        self.fcr = if value & FCR_ENABLE != 0 { value & FCR_KEPT } else { 0 };
    }
}
