//! Debug registers (APM volume 2, section 13.1): breakpoints on instructions and data, single step.

use crate::cpu::Cpu;
use crate::exception::{Exception, Result, vector};
use crate::host::Access;
use crate::regs::CR4_DE;

/// Lengths in bytes that DR7's length field codes.
const BREAKPOINT_SIZES: [u64; 4] = [1, 2, 8, 4];

impl Cpu {
    /// Tells in DR6 what a debug exception is about. The processor clears what it said of breakpoints
    /// before, and leaves the rest to software (APM volume 2, section 13.1.1.3).
    pub(crate) fn set_debug_conditions(&mut self, conditions: u64) {
        self.dr[6] = self.dr[6] & !0xf | conditions;
    }

    /// Whether a data or I/O breakpoint is enabled in DR7.
    pub(crate) fn watches_data(&self) -> bool {
        let dr7 = self.dr[7];
        (0..4).any(|n| dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 3 != 0)
    }

    /// Remembers the data breakpoints that an access to the `len` bytes at `linear` meets; they trap
    /// after the instruction.
    pub(crate) fn note_data_breakpoints(&mut self, linear: u64, len: usize, access: Access) {
        for n in 0..4 {
            let control = self.dr[7] >> (16 + 4 * n);
            let wanted = match control & 3 {
                1 => access == Access::Write,
                3 => access != Access::Execute,
                _ => false,
            };
            let size = BREAKPOINT_SIZES[(control >> 2 & 3) as usize];
            let start = self.dr[n] & !(size - 1);
            let before_end = linear.wrapping_sub(start) < size;
            let enabled = self.dr[7] >> (2 * n) & 3 != 0;
            if enabled && wanted && (before_end || start.wrapping_sub(linear) < len as u64) {
                self.pending_debug |= 1 << n;
            }
        }
    }

    /// Remembers the I/O breakpoints that an access to the `len` ports from `port` on meets. The type
    /// exists while CR4.DE is set.
    pub(crate) fn note_io_breakpoints(&mut self, port: u16, len: usize) {
        if self.dr[7] & 0xff == 0 || self.cr4 & CR4_DE == 0 {
            return;
        }
        for n in 0..4 {
            let control = self.dr[7] >> (16 + 4 * n);
            let size = BREAKPOINT_SIZES[(control >> 2 & 3) as usize];
            let start = self.dr[n] & !(size - 1) & 0xffff;
            let port = u64::from(port);
            let meets = port.wrapping_sub(start) < size || start.wrapping_sub(port) < len as u64;
            if control & 3 == 2 && self.dr[7] >> (2 * n) & 3 != 0 && meets {
                self.pending_debug |= 1 << n;
            }
        }
    }

    /// Raises #DB if an instruction breakpoint is set on the instruction at `linear`.
    pub(crate) fn check_code_breakpoints(&mut self, linear: u64) -> Result {
        let met = (0..4).filter(|&n| {
            self.dr[7] >> (2 * n) & 3 != 0
                && self.dr[7] >> (16 + 4 * n) & 3 == 0
                && self.dr[n] == linear
        });
        let conditions = met.fold(0, |conditions, n| conditions | 1 << n);
        if conditions == 0 {
            return Ok(());
        }
        self.set_debug_conditions(conditions);
        Err(Exception::plain(vector::DB))
    }
}
