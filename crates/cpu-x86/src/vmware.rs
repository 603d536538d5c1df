//! VMware's backdoor: a port by which programs, whatever their privilege, talk to the virtual machine, and
//! the performance counters that tell of its time ("Timekeeping in VMware Virtual Machines").
//!
//! A request is `IN EAX, DX` from [`PORT`] with [`MAGIC`] in EAX and a command in ECX; any other access to
//! the port is as if there were no backdoor. A nested guest has none: the port is its hypervisor's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cpu::Cpu;
use crate::reg::{RAX, RBX, RCX, RDX, RSI};

/// The port.
pub(crate) const PORT: u16 = 0x5658;
/// "VMXh".
const MAGIC: u32 = 0x564d_5868;
/// Frequency of the local APICs' timers.
pub(crate) const APIC_HZ: u32 = 1_000_000_000;
/// How far behind the host's a guest's clock may be, in microseconds.
const MAX_LAG: u32 = 1_000_000;
/// What a command that there is not returns in EAX.
const UNKNOWN: u32 = u32::MAX;

/// Commands.
mod command {
    pub(super) const VERSION: u32 = 0x0a;
    pub(super) const MEMORY: u32 = 0x14;
    pub(super) const UUID: u32 = 0x13;
    pub(super) const TIME: u32 = 0x17;
    pub(super) const FREQUENCIES: u32 = 0x2d;
    pub(super) const LONG_TIME: u32 = 0x2e;
}

/// What the backdoor tells of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backdoor {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The machine's UUID.
    pub uuid: [u8; 16],
}

impl Cpu {
    /// Gives the CPU VMware's backdoor.
    pub fn set_backdoor(&mut self, backdoor: Backdoor) {
        self.backdoor = Some(backdoor);
    }

    /// Whether `IN EAX` from `port` is a request; it is answered then.
    pub(crate) fn answer_backdoor(&mut self, port: u16) -> bool {
        let Some(backdoor) = self.backdoor else { return false };
        if port != PORT || self.reg::<u32>(RAX) != MAGIC || self.svm.guest {
            return false;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let now = since.as_secs();
        let registers = match self.reg::<u32>(RCX) {
            // The version of the virtual hardware, and a product of the kind that runs on a host's system.
            command::VERSION => [(RAX, 6), (RBX, MAGIC), (RCX, 2)].to_vec(),
            command::MEMORY => [(RAX, backdoor.memory_mib)].to_vec(),
            command::UUID => {
                let (words, _) = backdoor.uuid.as_chunks::<4>();
                let words = words.iter().map(|&word| u32::from_le_bytes(word));
                [RAX, RBX, RCX, RDX].into_iter().zip(words).collect()
            }
            command::TIME => {
                [(RAX, now as u32), (RBX, since.subsec_micros()), (RCX, MAX_LAG)].to_vec()
            }
            command::LONG_TIME => [
                (RAX, MAGIC),
                (RSI, (now >> 32) as u32),
                (RDX, now as u32),
                (RBX, since.subsec_micros()),
                (RCX, MAX_LAG),
            ]
            .to_vec(),
            command::FREQUENCIES => {
                let tsc = self.clock.tsc_hz();
                [(RAX, tsc as u32), (RBX, (tsc >> 32) as u32), (RCX, APIC_HZ)].to_vec()
            }
            _ => [(RAX, UNKNOWN)].to_vec(),
        };
        registers.into_iter().for_each(|(register, value)| self.set_reg(register, value));
        true
    }

    /// Performance counter `number`, if it is one of the backdoor's: the host's time-stamp counter, its time
    /// in nanoseconds, and the guest's.
    pub(crate) fn backdoor_counter(&self, number: u32) -> Option<u64> {
        self.backdoor.filter(|_| !self.svm.guest)?;
        match number {
            0x1_0000 => Some(self.clock.tsc()),
            0x1_0001 | 0x1_0002 => Some(self.clock.now_ns()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::long_mode;

    /// What a request leaves in EAX to EDX, if it is one.
    fn ask(backdoor: Option<Backdoor>, eax: u32, ecx: u32) -> Option<[u32; 4]> {
        let mut cpu = long_mode();
        cpu.backdoor = backdoor;
        cpu.set_reg(RDX, u32::from(PORT));
        cpu.set_reg(RAX, eax);
        cpu.set_reg(RCX, ecx);
        cpu.answer_backdoor(PORT).then(|| [RAX, RBX, RCX, RDX].map(|register| cpu.reg(register)))
    }

    #[test]
    fn the_backdoor_answers_who_knows_the_word() {
        let backdoor = Backdoor { memory_mib: 128, uuid: std::array::from_fn(|n| n as u8) };
        let ask = |eax, ecx| ask(Some(backdoor), eax, ecx);
        assert_eq!(ask(MAGIC, command::VERSION), Some([6, MAGIC, 2, PORT.into()]));
        assert_eq!(ask(MAGIC, command::MEMORY).map(|r| r[0]), Some(128));
        let uuid = [0x0302_0100, 0x0706_0504, 0x0b0a_0908, 0x0f0e_0d0c];
        assert_eq!(ask(MAGIC, command::UUID), Some(uuid));
        assert_eq!(ask(MAGIC, 0x7777).map(|r| r[0]), Some(UNKNOWN));
        assert_eq!(ask(MAGIC + 1, command::VERSION), None);
    }

    #[test]
    fn there_is_none_unless_it_is_given() {
        assert_eq!(ask(None, MAGIC, command::VERSION), None);
        let mut cpu = long_mode();
        assert_eq!(cpu.backdoor_counter(0x1_0000), None);
        cpu.set_backdoor(Backdoor::default());
        assert!(cpu.backdoor_counter(0x1_0000).is_some());
        assert_eq!(cpu.backdoor_counter(0x1_0003), None);
    }
}
