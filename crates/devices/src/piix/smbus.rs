//! PIIX4's SMBus host controller, and the memory modules' serial EEPROMs on its bus.
//!
//! Follows Intel's 82371AB data sheet (290562), chapter 7.4, and System Management Bus 2.0, section 5.5.
//! A command is done at once; the status register says once that the host is busy, for drivers that wait
//! to see it. There are eight EEPROMs of 256 bytes, from address
//! 0x50 on; they are empty, and what is written to them lasts until a reset.

use serde::{Deserialize, Serialize};

/// Number of ports.
pub(super) const PORTS: u16 = 16;

const HOST_STATUS: u64 = 0;
const HOST_CONTROL: u64 = 2;
const COMMAND: u64 = 3;
const ADDRESS: u64 = 4;
const DATA_0: u64 = 5;
const DATA_1: u64 = 6;
const BLOCK_DATA: u64 = 7;

const STATUS_BUSY: u8 = 1 << 0;
const STATUS_DONE: u8 = 1 << 1;
const STATUS_DEVICE_ERROR: u8 = 1 << 2;
/// Bits cleared by writing one.
const STATUS_CLEARED: u8 = 0x1e;
const CONTROL_START: u8 = 1 << 6;
/// Starting a transaction reads as zero.
const CONTROL_KEPT: u8 = 0x1f;
/// In the address register: the host reads.
const READS: u8 = 1 << 0;

/// Most bytes of a block (System Management Bus 2.0, section 5.5.7).
const BLOCK: usize = 32;
/// Address of the first EEPROM.
const FIRST_EEPROM: u8 = 0x50;
/// How many there are.
const EEPROMS: usize = 8;
/// Bytes of each.
const EEPROM_SIZE: usize = 256;

/// An EEPROM: what it holds, and where the next access without an address of its own goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Eeprom {
    bytes: Vec<u8>,
    next: u8,
}

impl Default for Eeprom {
    fn default() -> Self {
        Self { bytes: vec![0; EEPROM_SIZE], next: 0 }
    }
}

impl Eeprom {
    fn read(&mut self) -> u8 {
        let byte = self.bytes[usize::from(self.next)];
        self.next = self.next.wrapping_add(1);
        byte
    }

    fn write(&mut self, byte: u8) {
        self.bytes[usize::from(self.next)] = byte;
        self.next = self.next.wrapping_add(1);
    }
}

/// The device does not answer, or not to this command.
struct NoAnswer;

/// Registers, and what is on the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Smbus {
    status: u8,
    /// Nobody has looked since the last command.
    busy: bool,
    /// The registers that hold what is written.
    held: [u8; PORTS as usize],
    block: [u8; BLOCK],
    /// Where in the block the next access goes.
    block_index: u8,
    eeproms: Vec<Eeprom>,
}

impl Default for Smbus {
    fn default() -> Self {
        Self {
            status: 0,
            busy: false,
            held: [0; PORTS as usize],
            block: [0; BLOCK],
            block_index: 0,
            eeproms: vec![Eeprom::default(); EEPROMS],
        }
    }
}

impl Smbus {
    pub(super) fn validate(&self) -> Result<(), String> {
        if usize::from(self.block_index) >= BLOCK {
            return Err(format!("byte {} of an SMBus block", self.block_index));
        }
        let sizes = self.eeproms.iter().all(|eeprom| eeprom.bytes.len() == EEPROM_SIZE);
        if self.eeproms.len() != EEPROMS || !sizes {
            return Err("EEPROMs of another size".into());
        }
        Ok(())
    }

    pub(super) fn read(&mut self, offset: u64) -> u8 {
        match offset {
            HOST_STATUS if std::mem::take(&mut self.busy) => STATUS_BUSY,
            HOST_STATUS => self.status,
            HOST_CONTROL => {
                self.block_index = 0;
                self.held[HOST_CONTROL as usize]
            }
            BLOCK_DATA => self.block[self.next_in_block()],
            _ => self.held[(offset % u64::from(PORTS)) as usize],
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u8) {
        match offset {
            HOST_STATUS => self.status &= !(value & STATUS_CLEARED),
            HOST_CONTROL => {
                self.held[HOST_CONTROL as usize] = value & CONTROL_KEPT;
                if value & CONTROL_START != 0 {
                    self.busy = true;
                    self.status |= match self.transact() {
                        Ok(()) => STATUS_DONE,
                        Err(NoAnswer) => STATUS_DEVICE_ERROR,
                    };
                }
            }
            COMMAND..BLOCK_DATA => self.held[offset as usize] = value,
            BLOCK_DATA => {
                let index = self.next_in_block();
                self.block[index] = value;
            }
            _ => {}
        }
    }

    /// The place in the block for this access; the next one goes to the next.
    fn next_in_block(&mut self) -> usize {
        let index = usize::from(self.block_index);
        self.block_index = ((index + 1) % BLOCK) as u8;
        index
    }

    /// Carries out the command in the registers.
    fn transact(&mut self) -> Result<(), NoAnswer> {
        let [protocol, command, address] =
            [HOST_CONTROL, COMMAND, ADDRESS].map(|register| self.held[register as usize]);
        let index = (address >> 1).checked_sub(FIRST_EEPROM).ok_or(NoAnswer)?;
        let eeprom = self.eeproms.get_mut(usize::from(index)).ok_or(NoAnswer)?;
        let reads = address & READS != 0;
        let (data, block) = (&mut self.held[DATA_0 as usize..=DATA_1 as usize], &mut self.block);
        match (protocol >> 2 & 7, reads) {
            // Quick: the address alone.
            (0, _) => {}
            // A byte, which the EEPROM takes for the place of the next access.
            (1, true) => data[0] = eeprom.read(),
            (1, false) => eeprom.next = command,
            // One or two bytes at a place.
            (protocol @ (2 | 3), _) => {
                eeprom.next = command;
                for byte in &mut data[..usize::from(protocol) - 1] {
                    if reads {
                        *byte = eeprom.read();
                    } else {
                        eeprom.write(*byte);
                    }
                }
            }
            // A block, whose first byte is its length.
            (5, true) => {
                eeprom.next = command;
                let len = eeprom.read();
                data[0] = len;
                for byte in &mut block[..usize::from(len).min(BLOCK)] {
                    *byte = eeprom.read();
                }
            }
            (5, false) if (1..=BLOCK).contains(&usize::from(data[0])) => {
                eeprom.next = command;
                eeprom.write(data[0]);
                for &byte in &block[..usize::from(data[0])] {
                    eeprom.write(byte);
                }
            }
            // A block of nothing is taken.
            (5, false) if data[0] == 0 => eeprom.next = command,
            _ => return Err(NoAnswer),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a command; returns the status that it leaves.
    fn command(smbus: &mut Smbus, protocol: u8, address: u8, command: u8, data: [u8; 2]) -> u8 {
        smbus.write(HOST_STATUS, STATUS_CLEARED);
        for (register, value) in
            [(COMMAND, command), (ADDRESS, address), (DATA_0, data[0]), (DATA_1, data[1])]
        {
            smbus.write(register, value);
        }
        smbus.write(HOST_CONTROL, CONTROL_START | protocol << 2);
        assert_eq!(smbus.read(HOST_STATUS) & STATUS_BUSY, STATUS_BUSY);
        smbus.read(HOST_STATUS)
    }

    fn data(smbus: &mut Smbus) -> [u8; 2] {
        [smbus.read(DATA_0), smbus.read(DATA_1)]
    }

    #[test]
    fn eeproms_answer_at_eight_addresses() {
        let mut smbus = Smbus::default();
        for address in 0..0x80 {
            let expected = if (0x50..0x58).contains(&address) { 2 } else { 4 };
            assert_eq!(
                command(&mut smbus, 2, address << 1 | 1, 0, [0; 2]),
                expected,
                "{address:#x}"
            );
        }
    }

    #[test]
    fn bytes_words_and_blocks_are_kept_each_in_its_eeprom() {
        let mut smbus = Smbus::default();
        assert_eq!(command(&mut smbus, 3, 0xa2, 0x22, [0x12, 0x34]), 2);
        assert_eq!(command(&mut smbus, 2, 0xa3, 0x23, [0; 2]), 2);
        assert_eq!(data(&mut smbus)[0], 0x34);
        assert_eq!(command(&mut smbus, 2, 0xa5, 0x23, [9; 2]), 2);
        assert_eq!(data(&mut smbus)[0], 0, "another EEPROM");
        command(&mut smbus, 1, 0xa2, 0x22, [0; 2]);
        for expected in [0x12, 0x34, 0] {
            command(&mut smbus, 1, 0xa3, 0, [9; 2]);
            assert_eq!(data(&mut smbus)[0], expected);
        }
        smbus.read(HOST_CONTROL);
        for byte in 1..=4 {
            smbus.write(BLOCK_DATA, byte);
        }
        assert_eq!(command(&mut smbus, 5, 0xa4, 0xfe, [4, 0]), 2);
        command(&mut smbus, 2, 0xa5, 0x02, [0; 2]);
        assert_eq!(data(&mut smbus)[0], 4, "a block goes on at the start");
        assert_eq!(command(&mut smbus, 5, 0xa5, 0xfe, [0; 2]), 2);
        smbus.read(HOST_CONTROL);
        assert_eq!([0; 5].map(|_| smbus.read(BLOCK_DATA)), [1, 2, 3, 4, 0]);
        assert_eq!(command(&mut smbus, 5, 0xa4, 0, [33, 0]), 4, "too long for a block");
    }
}
