//! Intercepts (APM volume 2, sections 15.7 to 15.14): instructions ask here before they act, after the
//! checks for exceptions that come first.

use super::exit::{Exit, code};
use super::has;
use crate::cpu::Cpu;
use crate::exception::{Exception, Result, vector};
use crate::op::{Op, OpFlags};

/// EXITINFO1 of a MOV to or from a control register: it was one, and not LMSW or a relative.
const IS_MOV_CR: u64 = 1 << 63;

/// Ticks of the time-stamp counter for a cycle of the pause filter's threshold: a loop around a PAUSE takes
/// a processor that is software longer, and has to count as one still.
const PAUSE_TICKS: u64 = 32;

/// EXITINFO1 of an I/O instruction.
mod io {
    pub(super) const IN: u64 = 1 << 0;
    pub(super) const STRING: u64 = 1 << 2;
    pub(super) const REPEATED: u64 = 1 << 3;
    /// An access of one byte; of two and four the bits above.
    pub(super) const SIZE: u64 = 1 << 4;
    pub(super) const ADDRESS_16: u64 = 1 << 7;
    pub(super) const ADDRESS_32: u64 = 1 << 8;
    pub(super) const ADDRESS_64: u64 = 1 << 9;
    pub(super) const SEGMENT_SHIFT: u32 = 10;
    pub(super) const PORT_SHIFT: u32 = 16;
}

/// EXITINFO2 of a task switch.
pub(crate) mod task_info {
    pub(crate) const IRET: u64 = 1 << 36;
    pub(crate) const JUMP: u64 = 1 << 38;
    pub(crate) const HAS_CODE: u64 = 1 << 44;
    pub(crate) const RF: u64 = 1 << 48;
}

/// Which of the I/O instructions one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IoKind {
    pub(crate) is_in: bool,
    pub(crate) is_string: bool,
}

impl Cpu {
    /// Whether a guest runs of which `code` is intercepted.
    #[inline(always)]
    pub(crate) fn intercepts(&self, code: u32) -> bool {
        self.svm.guest && self.is_wanted(code)
    }

    fn is_wanted(&self, code: u32) -> bool {
        let word = self.svm.control.intercepts.get(code as usize / 32);
        word.is_some_and(|word| word >> (code % 32) & 1 != 0)
    }

    /// Leaves the running instruction, before it has done anything, if `code` is intercepted.
    #[inline(always)]
    pub(crate) fn intercept(&mut self, code: u32) -> Result {
        if self.svm.guest { self.leave_if_wanted(code, 0) } else { Ok(()) }
    }

    /// [`Self::intercept`]; `info` is told to hosts that have decode assists.
    #[inline(always)]
    pub(crate) fn intercept_assisted(&mut self, code: u32, info: u64) -> Result {
        if !self.svm.guest {
            return Ok(());
        }
        let info = if self.svm_has(has::DECODE_ASSISTS) { info } else { 0 };
        self.leave_if_wanted(code, info)
    }

    #[cold]
    fn leave_if_wanted(&mut self, code: u32, info1: u64) -> Result {
        if self.is_wanted(code) { self.leave(code, info1, 0) } else { Ok(()) }
    }

    /// Leaves the running instruction for the host.
    #[cold]
    fn leave<T>(&mut self, code: u32, info1: u64, info2: u64) -> Result<T> {
        self.svm.exit = Exit { code, info1, info2, next_rip: self.rip };
        Err(Exception::EXIT)
    }

    /// MOV from (`code::CR_READ`) or to (`code::CR_WRITE`) control register `n`, with general register
    /// `gpr`.
    #[inline(always)]
    pub(crate) fn intercept_mov_cr(&mut self, code: u32, n: u8, gpr: u8) -> Result {
        self.intercept_assisted(code + u32::from(n & 15), IS_MOV_CR | u64::from(gpr & 15))
    }

    /// The selective intercept of writes to CR0 that change more than TS and MP.
    #[inline(always)]
    pub(crate) fn intercept_cr0_change(&mut self, value: u64, info: u64) -> Result {
        use crate::regs::{CR0_MP, CR0_TS, CR0_VALID};
        if self.svm.guest && (value ^ self.cr0) & CR0_VALID & !(CR0_TS | CR0_MP) != 0 {
            return self.intercept_assisted(code::CR0_SELECTIVE_WRITE, info);
        }
        Ok(())
    }

    /// EXITINFO1 of a write to CR0 from general register `gpr`.
    pub(crate) fn mov_cr_info(gpr: u8) -> u64 {
        IS_MOV_CR | u64::from(gpr & 15)
    }

    /// RDMSR and WRMSR of `register`, by the guest's permission map: two bits a register.
    #[inline(always)]
    pub(crate) fn intercept_msr(&mut self, register: u32, write: bool) -> Result {
        if self.svm.guest { self.leave_for_msr(register, write) } else { Ok(()) }
    }

    #[cold]
    fn leave_for_msr(&mut self, register: u32, write: bool) -> Result {
        if !self.is_wanted(code::MSR) {
            return Ok(());
        }
        let start = match register {
            0..=0x1fff => Some(0),
            0xc000_0000..=0xc000_1fff => Some(0x800),
            0xc001_0000..=0xc001_1fff => Some(0x1000),
            _ => None,
        };
        // Registers that the map does not have are always intercepted.
        let wanted = start.is_none_or(|start| {
            let bit = u64::from(register & 0x1fff) * 2 + u64::from(write);
            let mut byte = [0];
            self.read_physical(self.svm.control.msrpm + start + bit / 8, &mut byte);
            byte[0] >> (bit % 8) & 1 != 0
        });
        if wanted { self.leave(code::MSR, u64::from(write), 0) } else { Ok(()) }
    }

    /// An I/O instruction with the `size` ports from `port` on, by the guest's permission map: a bit a
    /// port.
    #[inline(always)]
    pub(crate) fn intercept_io(&mut self, op: &Op, port: u16, size: u8, kind: IoKind) -> Result {
        if self.svm.guest { self.leave_for_io(op, port, size, kind) } else { Ok(()) }
    }

    #[cold]
    fn leave_for_io(&mut self, op: &Op, port: u16, size: u8, kind: IoKind) -> Result {
        if !self.is_wanted(code::IOIO) {
            return Ok(());
        }
        let mut bits = [0; 2];
        self.read_physical(self.svm.control.iopm + u64::from(port / 8), &mut bits);
        let mask = (1u16 << size) - 1;
        if u16::from_le_bytes(bits) >> (port % 8) & mask == 0 {
            return Ok(());
        }
        let mut info = (u64::from(port) << io::PORT_SHIFT) | (io::SIZE * u64::from(size));
        if kind.is_in {
            info |= io::IN;
        }
        if op.flags.intersects(OpFlags::REP | OpFlags::REPNE) && kind.is_string {
            info |= io::REPEATED;
        }
        let address_size = match () {
            () if kind.is_string => op.addr_size,
            () if self.mode.is_64() => 8,
            () => (self.mode.code_bits() / 8) as u8,
        };
        info |= match address_size {
            2 => io::ADDRESS_16,
            4 => io::ADDRESS_32,
            _ => io::ADDRESS_64,
        };
        if kind.is_string {
            info |= io::STRING;
            if self.svm_has(has::DECODE_ASSISTS) {
                let segment = if kind.is_in { 0 } else { op.seg };
                info |= u64::from(segment) << io::SEGMENT_SHIFT;
            }
        }
        self.leave(code::IOIO, info, self.rip)
    }

    /// A task switch to `selector`; `info` is EXITINFO2.
    #[cold]
    pub(crate) fn intercept_task_switch(&mut self, selector: u16, info: u64) -> Result {
        if !self.intercepts(code::TASK_SWITCH) {
            return Ok(());
        }
        self.svm.exit =
            Exit { code: code::TASK_SWITCH, info1: u64::from(selector), info2: info, next_rip: 0 };
        Err(Exception::EXIT)
    }

    /// PAUSE: those that follow each other fast are counted, and only the last of the filter's count
    /// is intercepted.
    #[inline(always)]
    pub(crate) fn intercept_pause(&mut self) -> Result {
        if self.svm.guest { self.leave_for_pause() } else { Ok(()) }
    }

    #[cold]
    fn leave_for_pause(&mut self) -> Result {
        if !self.is_wanted(code::PAUSE) {
            return Ok(());
        }
        let count = self.svm.control.pause_count;
        if !self.svm_has(has::PAUSE_FILTER) || count == 0 {
            return self.leave(code::PAUSE, 0, 0);
        }
        let threshold = u64::from(self.svm.control.pause_threshold) * PAUSE_TICKS;
        let now = self.clock.tsc();
        let since = now.wrapping_sub(std::mem::replace(&mut self.svm.last_pause, now));
        if self.svm_has(has::PAUSE_THRESHOLD) && threshold != 0 && since > threshold {
            self.svm.pause_left = count;
        }
        match self.svm.pause_left.checked_sub(1) {
            Some(left) => {
                self.svm.pause_left = left;
                Ok(())
            }
            None => {
                self.svm.pause_left = count;
                self.leave(code::PAUSE, 0, 0)
            }
        }
    }

    /// Whether the exception is intercepted that is about to be delivered; [`super::Svm::exit`] is then
    /// what there is to tell of it.
    #[cold]
    pub(crate) fn intercepts_exception(&mut self, exception: Exception) -> bool {
        let code = code::EXCEPTION + u32::from(exception.vector & 31);
        if !self.is_wanted(code) {
            return false;
        }
        let mut exit = Exit { code, ..Exit::default() };
        exit.info1 = exception.error_code.map_or(0, u64::from);
        if exception.vector == vector::PF {
            exit.info2 = self.cr2;
            self.cr2 = self.svm.old_cr2;
        }
        self.svm.exit = exit;
        true
    }
}
