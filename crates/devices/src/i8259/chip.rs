//! One 8259A.

use serde::{Deserialize, Serialize};

/// ICW1, written to the command port: starts the initialisation sequence.
const ICW1_INIT: u8 = 1 << 4;
const ICW1_LEVEL: u8 = 1 << 3;
const ICW1_SINGLE: u8 = 1 << 1;
const ICW1_ICW4: u8 = 1 << 0;
const ICW4_SPECIAL_FULLY_NESTED: u8 = 1 << 4;
const ICW4_AUTO_EOI: u8 = 1 << 1;
/// Marks OCW3 among the writes to the command port.
const OCW3: u8 = 1 << 3;
const OCW3_SET_SPECIAL_MASK: u8 = 1 << 6;
const OCW3_SPECIAL_MASK: u8 = 1 << 5;
const OCW3_POLL: u8 = 1 << 2;
const OCW3_SELECT_READ: u8 = 1 << 1;
const OCW3_READ_ISR: u8 = 1 << 0;
/// Says in a poll's answer that there was a request.
const POLL_VALID: u8 = 1 << 7;

/// The initialisation word that the next write to the data port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    /// Not initialising: it is the mask.
    #[default]
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// Registers of one controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chip {
    /// Levels of the inputs.
    inputs: u8,
    /// Interrupt request register.
    irr: u8,
    /// Interrupt mask register.
    imr: u8,
    /// In-service register.
    isr: u8,
    /// Inputs that are level-triggered by the edge/level control register.
    pub(super) elcr: u8,
    /// All inputs are level-triggered (ICW1).
    all_level: bool,
    /// The five high bits of the vectors.
    vector_base: u8,
    /// The input with the lowest priority; the one after it has the highest.
    lowest: u8,
    expect: Expect,
    single: bool,
    wants_icw4: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    /// The next read is a poll.
    poll: bool,
    /// The command port reads ISR instead of IRR.
    read_isr: bool,
}

impl Default for Chip {
    fn default() -> Self {
        Self {
            inputs: 0,
            irr: 0,
            imr: 0,
            isr: 0,
            elcr: 0,
            all_level: false,
            vector_base: 0,
            lowest: 7,
            expect: Expect::Mask,
            single: false,
            wants_icw4: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            poll: false,
            read_isr: false,
        }
    }
}

impl Chip {
    pub(super) fn validate(&self, elcr_writable: u8) -> Result<(), String> {
        if self.lowest > 7 {
            return Err(format!("input {} has the lowest priority", self.lowest));
        }
        if self.vector_base & 7 != 0 {
            return Err(format!("vector base {:#x} is not a multiple of 8", self.vector_base));
        }
        if self.elcr & !elcr_writable != 0 {
            return Err(format!("ELCR {:#x} has fixed inputs set", self.elcr));
        }
        Ok(())
    }

    fn level_triggered(&self) -> u8 {
        if self.all_level { 0xff } else { self.elcr }
    }

    pub(super) fn set_input(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        if level {
            if self.level_triggered() & bit != 0 || self.inputs & bit == 0 {
                self.irr |= bit;
            }
            self.inputs |= bit;
        } else {
            // An edge stays latched until it is acknowledged; a level goes away.
            if self.level_triggered() & bit != 0 {
                self.irr &= !bit;
            }
            self.inputs &= !bit;
        }
    }

    /// The slave's output. The master looks at its level, so that a second request that the slave has
    /// behind the first is not lost for want of an edge.
    pub(super) fn set_cascade(&mut self, level: bool) {
        let bit = 1 << super::CASCADE;
        self.irr = if level { self.irr | bit } else { self.irr & !bit };
    }

    pub(super) fn set_elcr(&mut self, elcr: u8) {
        let to_level = elcr & !self.elcr;
        self.elcr = elcr;
        self.irr = self.irr & !to_level | self.inputs & to_level;
    }

    /// The input of highest priority among `inputs`, with its rank: 0 is the most urgent.
    fn most_urgent(&self, inputs: u8) -> Option<(u8, u8)> {
        (0..8).map(|rank| (rank, (self.lowest + 1 + rank) & 7)).find(|&(_, i)| inputs & 1 << i != 0)
    }

    /// The input to interrupt for now.
    pub(super) fn pending(&self, is_master: bool) -> Option<u8> {
        if self.expect != Expect::Mask {
            return None;
        }
        let (rank, input) = self.most_urgent(self.irr & !self.imr)?;
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_fully_nested && is_master {
            // The slave may interrupt again while one of its inputs is in service.
            in_service &= !(1 << super::CASCADE);
        }
        match self.most_urgent(in_service) {
            Some((serving, _)) if serving <= rank => None,
            _ => Some(input),
        }
    }

    pub(super) fn vector(&self, input: u8) -> u8 {
        self.vector_base | input
    }

    pub(super) fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = input;
            }
        } else {
            self.isr |= bit;
        }
        if self.level_triggered() & bit == 0 {
            self.irr &= !bit;
        }
    }

    pub(super) fn read(&mut self, data_port: bool, is_master: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.pending(is_master) {
                Some(input) => {
                    self.acknowledge(input);
                    POLL_VALID | input
                }
                None => 0,
            };
        }
        match (data_port, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }

    pub(super) fn write(&mut self, data_port: bool, value: u8) {
        if data_port {
            self.write_data(value);
        } else if value & ICW1_INIT != 0 {
            self.initialise(value);
        } else if value & OCW3 != 0 {
            self.poll = value & OCW3_POLL != 0;
            if value & OCW3_SELECT_READ != 0 {
                self.read_isr = value & OCW3_READ_ISR != 0;
            }
            if value & OCW3_SET_SPECIAL_MASK != 0 {
                self.special_mask = value & OCW3_SPECIAL_MASK != 0;
            }
        } else {
            self.end_of_interrupt(value >> 5, value & 7);
        }
    }

    /// ICW1: clears everything but the inputs, the trigger modes of ELCR and the vectors.
    fn initialise(&mut self, icw1: u8) {
        *self = Self {
            inputs: self.inputs,
            elcr: self.elcr,
            vector_base: self.vector_base,
            all_level: icw1 & ICW1_LEVEL != 0,
            single: icw1 & ICW1_SINGLE != 0,
            wants_icw4: icw1 & ICW1_ICW4 != 0,
            expect: Expect::Icw2,
            ..Self::default()
        };
        // Edges that came before are forgotten, levels are not.
        self.irr = self.inputs & self.level_triggered();
    }

    fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.wants_icw4 { Expect::Icw4 } else { Expect::Mask };
        match self.expect {
            Expect::Mask => self.imr = value,
            Expect::Icw2 => {
                self.vector_base = value & 0xf8;
                self.expect = if self.single { after_icw3 } else { Expect::Icw3 };
            }
            Expect::Icw3 => self.expect = after_icw3,
            Expect::Icw4 => {
                self.special_fully_nested = value & ICW4_SPECIAL_FULLY_NESTED != 0;
                self.auto_eoi = value & ICW4_AUTO_EOI != 0;
                self.expect = Expect::Mask;
            }
        }
    }

    /// OCW2. Command bits: 2 rotate, 1 specific, 0 end of interrupt.
    fn end_of_interrupt(&mut self, command: u8, input: u8) {
        let serving = if self.special_mask { self.isr & !self.imr } else { self.isr };
        match command {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 | 0b101 => {
                if let Some((_, done)) = self.most_urgent(serving) {
                    self.isr &= !(1 << done);
                    if command == 0b101 {
                        self.lowest = done;
                    }
                }
            }
            0b011 => self.isr &= !(1 << input),
            0b111 => {
                self.isr &= !(1 << input);
                self.lowest = input;
            }
            0b110 => self.lowest = input,
            _ => {}
        }
    }
}
