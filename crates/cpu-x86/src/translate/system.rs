//! System instructions that kernels execute often: system calls and returns, the flags that the system
//! owns, SWAPGS.
//!
//! What they change of the CPU beyond registers is kept in the state until the CPU next has its registers
//! back (see `enter`): RFLAGS, GS's base, and with a system call or return the privilege level. The code
//! after them runs for another privilege or with other rights, and is found in the jump cache of its
//! class. Where anything is not as usual, the interpreter executes the instruction.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::asm::{Cond, in_state, low32, near_plus_8};
use super::compile::Compiler;
use super::control::CODE;
use super::memory::number;
use super::regs::{GUEST_RAX, S1, S2};
use super::state::{ENTERED_KERNEL, LEFT_KERNEL, at};
use crate::flags::bits;
use crate::op::Op;
use crate::tlb::Class;

/// The arithmetic flags that LAHF and SAHF know.
const LOW_FLAGS: i32 = (bits::SF | bits::ZF | bits::AF | bits::PF | bits::CF) as i32;
/// Flags with which SYSRET is left to the interpreter: they change more than themselves.
const UNUSUAL: i32 = (bits::TF | bits::RF | bits::VM | bits::AC | bits::VIF | bits::VIP) as i32;

/// Guest register numbers.
const RCX: usize = 1;
const R11: usize = 11;

impl Compiler<'_> {
    /// Translates a system instruction: `Some(true)` if nothing comes after it, `None`, with nothing
    /// done, if it is none or can't be translated.
    pub(super) fn system(
        &mut self,
        insn: &Instruction,
        op: &Op,
        next: Option<&Instruction>,
    ) -> Option<bool> {
        let (kernel, wide) = (self.places.kernel, self.places.wide);
        match insn.mnemonic() {
            Mnemonic::Cli if kernel => self.set_system_flag(bits::IF, false),
            Mnemonic::Sti if kernel && next.is_some_and(is_harmless) => self.sti(),
            Mnemonic::Pause => self.asm.raw(&[0xf3, 0x90]),
            Mnemonic::Cld => self.set_system_flag(bits::DF, false),
            Mnemonic::Std => self.set_system_flag(bits::DF, true),
            Mnemonic::Rdtsc | Mnemonic::Rdtscp => self.time(insn),
            Mnemonic::Rdpkru => self.rdpkru(),
            Mnemonic::Mov if insn.op1_register().is_cr() && kernel && wide => {
                return self.read_control(insn);
            }
            Mnemonic::Mov if insn.op1_register().is_segment_register() => {
                return self.read_selector(insn);
            }
            Mnemonic::Swapgs if kernel && wide => self.swapgs(),
            Mnemonic::Stac if kernel => return Some(self.set_ac(op, true)),
            Mnemonic::Clac if kernel => return Some(self.set_ac(op, false)),
            Mnemonic::Syscall if !kernel && wide => {
                self.syscall(op.next_rip);
                return Some(true);
            }
            Mnemonic::Sysretq if kernel && wide => {
                self.sysret();
                return Some(true);
            }
            _ => return None,
        }
        Some(false)
    }

    /// STI where it always may be executed; what comes next can't be left before it is done, and
    /// interrupts are looked for after it.
    fn sti(&mut self) {
        self.set_system_flag(bits::IF, true);
        self.poll_after = Some(self.index + 1);
    }

    /// Sets or clears `flag` of those that arithmetic does not set.
    fn set_system_flag(&mut self, flag: u64, set: bool) {
        self.save();
        let system = in_state(at::SYSTEM_FLAGS);
        if set {
            self.asm.mi(Code::Or_rm32_imm32, system, flag as i32);
        } else {
            self.asm.mi(Code::And_rm32_imm32, system, !(flag as i32));
        }
        self.destroyed();
    }

    /// RDTSC or RDTSCP.
    fn time(&mut self, insn: &Instruction) {
        self.save();
        let slow = self.slow();
        self.asm.call_to(self.places.time);
        self.asm.jcc(Cond::Equal, slow);
        self.destroyed();
        self.asm.rr(Code::Mov_r32_rm32, low32(GUEST_RAX), low32(S1));
        self.asm.ri(Code::Shr_rm64_imm8, S1, 32);
        self.asm.mov(Register::RDX, S1);
        if insn.mnemonic() == Mnemonic::Rdtscp {
            self.asm.rm(Code::Mov_r32_rm32, Register::ECX, in_state(at::TSC_AUX));
        }
        self.slow_returns();
    }

    fn rdpkru(&mut self) {
        self.save();
        let slow = self.slow();
        self.asm.rr(Code::Test_rm32_r32, Register::ECX, Register::ECX);
        self.asm.jcc(Cond::NotEqual, slow);
        self.asm.mi(Code::Cmp_rm32_imm8, in_state(at::PKRU + 4), 0);
        self.asm.jcc(Cond::Equal, slow);
        self.destroyed();
        self.asm.rm(Code::Mov_r32_rm32, low32(GUEST_RAX), in_state(at::PKRU));
        self.asm.mov_imm(Register::RDX, 0);
        self.slow_returns();
    }

    /// MOV from CR2 or CR3 at level 0.
    fn read_control(&mut self, insn: &Instruction) -> Option<bool> {
        let from = match insn.op1_register() {
            Register::CR2 => at::CR2,
            Register::CR3 => at::CR3,
            _ => return None,
        };
        self.asm.rm(Code::Mov_r64_rm64, S1, in_state(from));
        self.write_gpr(number(insn.op0_register()), S1);
        Some(false)
    }

    /// MOV from a segment register to a general register of 32 or 64 bits.
    fn read_selector(&mut self, insn: &Instruction) -> Option<bool> {
        if !matches!(insn.code(), Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg)
            || insn.op0_kind() != OpKind::Register
        {
            return None;
        }
        let segment = insn.op1_register() as u32 - Register::ES as u32;
        if matches!(insn.op1_register(), Register::CS | Register::SS) {
            // System calls that were translated have not told the state of those.
            self.save();
            let slow = self.slow();
            self.asm.mi(Code::Cmp_rm32_imm8, in_state(at::CROSSING), 0);
            self.asm.jcc(Cond::NotEqual, slow);
            self.destroyed();
        }
        self.asm.rm(Code::Mov_r32_rm32, low32(S1), in_state(at::SELECTORS + 4 * segment));
        self.write_gpr(number(insn.op0_register()), S1);
        self.slow_returns();
        Some(false)
    }

    fn swapgs(&mut self) {
        let (base, other) = (in_state(at::BASES + 8), in_state(at::KERNEL_GS));
        self.asm.rm(Code::Mov_r64_rm64, S1, base);
        self.asm.rm(Code::Mov_r64_rm64, S2, other);
        self.asm.mr(Code::Mov_rm64_r64, base, S2);
        self.asm.mr(Code::Mov_rm64_r64, other, S1);
    }

    /// STAC or CLAC: goes on with the code for the class that has the new rights. Returns whether it
    /// goes anywhere.
    fn set_ac(&mut self, op: &Op, set: bool) -> bool {
        let class = if set { Class::SupervisorAc } else { Class::Supervisor };
        if class == self.places.class {
            return false;
        }
        self.set_system_flag(bits::AC, set);
        self.jump_by_cache(op.next_rip, class);
        true
    }

    /// Puts RFLAGS into [`S2`]. The flags are saved, and destroyed.
    pub(super) fn read_flags(&mut self) {
        let (spare, system) = (in_state(at::SPARE), in_state(at::SYSTEM_FLAGS));
        let wide = low32(S2);
        // OF, then the others, then those that arithmetic does not set, and bit 1, which always is.
        self.asm.rr(Code::Movzx_r32_rm8, wide, Register::AL);
        self.asm.ri(Code::Shl_rm32_imm8, wide, 11);
        self.asm.mr(Code::Mov_rm64_r64, spare, S2);
        self.asm.rr(Code::Mov_r32_rm32, wide, Register::EAX);
        self.asm.ri(Code::Shr_rm32_imm8, wide, 8);
        self.asm.ri(Code::And_rm32_imm32, wide, LOW_FLAGS);
        self.asm.ri(Code::Or_rm32_imm8, wide, bits::RESERVED1 as i32);
        self.asm.rm(Code::Or_r64_rm64, S2, spare);
        self.asm.rm(Code::Or_r64_rm64, S2, system);
        self.destroyed();
    }

    /// Makes what is in [`S1`] RFLAGS. Uses [`S2`].
    fn write_flags(&mut self) {
        let (value, other) = (low32(S1), low32(S2));
        let system = in_state(at::SYSTEM_FLAGS);
        self.asm.rr(Code::Mov_r32_rm32, Register::EAX, value);
        self.asm.ri(Code::And_rm32_imm32, Register::EAX, LOW_FLAGS);
        self.asm.ri(Code::Shl_rm32_imm8, Register::EAX, 8);
        self.asm.rr(Code::Mov_r32_rm32, other, value);
        self.asm.ri(Code::Shr_rm32_imm8, other, 11);
        self.asm.ri(Code::And_rm32_imm8, other, 1);
        self.asm.rr(Code::Or_r32_rm32, Register::EAX, other);
        self.asm.rr(Code::Mov_r32_rm32, other, value);
        self.asm.ri(Code::And_rm32_imm32, other, bits::SYSTEM as i32);
        self.asm.mr(Code::Mov_rm64_r64, system, S2);
        self.destroyed();
    }

    /// Goes to `slow` unless translated code may execute SYSCALL and SYSRET.
    fn require_fast_calls(&mut self, slow: super::asm::Label) {
        let allowed = in_state(at::FAST_CALLS);
        self.asm.mi(Code::Cmp_rm32_imm8, allowed, 0);
        self.asm.jcc(Cond::Equal, slow);
        self.destroyed();
    }

    /// Keeps for [`Self::go_to_kept`] where the code is that was looked up for class `class`, and the
    /// address that is in [`S1`].
    pub(super) fn keep_code(&mut self, class: Class) {
        let code = near_plus_8(self.places.jumps_of(class).at + CODE, S2);
        let spare = in_state(at::SPARE + 8);
        self.asm.rm(Code::Mov_r64_rm64, S2, code);
        self.asm.mr(Code::Mov_rm64_r64, spare, S2);
        let target = in_state(at::TARGET);
        self.asm.mr(Code::Mov_rm64_r64, target, S1);
    }

    fn cross(&mut self, how: u32) {
        let crossing = in_state(at::CROSSING);
        self.asm.mi(Code::Mov_rm32_imm32, crossing, how as i32);
        self.go_to_kept();
        self.slow_returns();
    }

    /// Goes where [`Self::keep_code`] has said.
    pub(super) fn go_to_kept(&mut self) {
        let (target, spare) = (in_state(at::TARGET), in_state(at::SPARE + 8));
        self.asm.rm(Code::Mov_r64_rm64, S1, target);
        self.asm.m(Code::Jmp_rm64, spare);
    }

    fn syscall(&mut self, next: u64) {
        self.save();
        let slow = self.slow();
        self.require_fast_calls(slow);
        let (lstar, mask) = (in_state(at::LSTAR), in_state(at::FLAG_MASK));
        self.asm.rm(Code::Mov_r64_rm64, S1, lstar);
        self.look_up_in(self.places.jumps_of(Class::Supervisor), slow);
        self.keep_code(Class::Supervisor);
        self.read_flags();
        self.write_gpr(R11, S2);
        self.asm.mov(S1, S2);
        self.asm.rm(Code::And_r64_rm64, S1, mask);
        self.write_flags();
        self.address(S1, next);
        self.write_gpr(RCX, S1);
        self.cross(ENTERED_KERNEL);
    }

    fn sysret(&mut self) {
        self.save();
        let slow = self.slow();
        self.require_fast_calls(slow);
        let flags = self.read_gpr(R11, S1);
        self.asm.ri(Code::Test_rm32_imm32, low32(flags), UNUSUAL);
        self.asm.jcc(Cond::NotEqual, slow);
        // Interrupts may have been disabled.
        self.look_for_interrupt();
        self.asm.jcc(Cond::NotEqual, slow);
        let target = self.read_gpr(RCX, S1);
        self.asm.mov(S1, target);
        self.look_up_in(self.places.jumps_of(Class::User), slow);
        self.keep_code(Class::User);
        let flags = self.read_gpr(R11, S1);
        self.asm.mov(S1, flags);
        self.write_flags();
        self.cross(LEFT_KERNEL);
    }
}

/// Whether `insn` neither leaves translated code before it is done nor changes what may interrupt.
fn is_harmless(insn: &Instruction) -> bool {
    super::integer::is_unseen(insn)
}
