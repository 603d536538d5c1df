//! The pieces of host code that every translation shares: the way in, the ways out, and the calls of
//! helpers.

use iced_x86::{Code, MemoryOperand, Register};

use super::asm::{
    Asm, Cond, Label, Placed, at as memory_at, at_plus, before_state, low32, near_plus_8,
};
use super::compile::JumpTable;
use super::control::CODE;
use super::memory::sum;
use super::regs::{HOST, S1, S2};
use super::state::{JOINED as JOINED_LEN, JUMP_TABLES, at};
use crate::host::{PAGE_OFFSET, TlbEntry};
use crate::tlb::{CLASSES, L1_ENTRIES};

/// Addresses of the thunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thunks {
    /// A function that runs the code at its first argument with the state whose [`at::TOP`] is at its
    /// second; returns how it was left.
    pub(super) enter: u64,
    pub(super) step: u64,
    pub(super) leave: u64,
    pub(super) leave_by_link: u64,
    pub(super) leave_for_link: u64,
    /// For each jump cache, goes to the address in [`S1`] by it.
    pub(super) by_cache: [u64; JUMP_TABLES],
    pub(super) units: u64,
    /// Refill the TLB or the jump cache, by [`Missed`].
    pub(super) refill: [u64; 4],
    /// As those of [`Missed::Read`] and [`Missed::Write`], for code of each class: what runs from one page into
    /// another, both in the TLB, needs no helper.
    pub(super) join: [[u64; 2]; CLASSES],
    /// Takes what was written so, [`S2`] bytes.
    pub(super) written: u64,
    /// Reads the time-stamp counter.
    pub(super) time: u64,
    /// Leaves, to go on where that is expected.
    pub(super) arrived: u64,
}

/// How translated code is left: to go on at `State::rip`, where the registers are in `State`.
pub(super) const LEFT: u32 = 0;
/// After the helper that executes an instruction, when the registers are the CPU's own again.
pub(super) const LEFT_BY_STEP: u32 = 1;
/// As [`LEFT`], and the block that begins there can't run as translated now.
pub(super) const REFUSED: u32 = 2;

/// What helpers return: to go on after the call.
pub(super) const GO_ON: u64 = 0;
/// What helpers return: to leave, or to execute the instruction with the interpreter.
pub(super) const GIVE_UP: u64 = 1;

/// What helpers return: to go on with [`super::state::State::joined`] in the place of memory.
pub(super) const JOINED: u64 = 2;

/// What has missed in the TLB, or in the jump cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missed {
    /// A read, which may run into another page.
    Read,
    Write,
    /// A read of what is written soon.
    Update,
    /// The code for an address, in the jump cache.
    Code,
}

impl Missed {
    pub(super) const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Update, Self::Code];
}

/// Bytes on the stack in a thunk that is called.
const RETURN_ADDRESS: u32 = 8;

/// Registers that a function has to give back as they were.
const KEPT: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// Registers in which guest registers are that a function need not give back.
const LOST: [Register; 8] = [
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// Bytes of a page.
const PAGE: i64 = PAGE_OFFSET as i64 + 1;

struct Writer {
    asm: Asm,
    start: u64,
    avx: bool,
    /// How far the stack pointer is below [`at::TOP`] in the state.
    pushed: u32,
}

/// Writes all thunks, to be at `start`.
///
/// On the host's stack, where functions are called, the address of the state's [`at::TOP`] comes first.
pub(super) fn write(start: u64, avx: bool) -> (Placed, Thunks) {
    let mut writer = Writer { asm: Asm::new(), start, avx, pushed: 0 };
    let out = writer.asm.label();
    let enter = writer.enter();
    let leave_by_link = writer.jumped_to();
    let page = writer.at(at::PAGE);
    writer.asm.mov(S1, S2);
    writer.asm.ri(Code::Shr_rm64_imm8, S1, 32);
    writer.asm.rm(Code::Or_r64_rm64, S1, page);
    writer.asm.rr(Code::Mov_r32_rm32, low32(S2), low32(S2));
    let out_by_link = writer.asm.label();
    let leave_for_link = writer.jumped_to();
    writer.asm.jmp(out_by_link);
    let leave = writer.jumped_to();
    writer.asm.mov_imm(S2, 0);
    writer.asm.bind(out_by_link);
    writer.leave(out);
    let step = writer.step(out);
    let units = writer.units(out);
    let refill = Missed::ALL.map(|what| writer.ask(at::REFILL, what as u64));
    let missed = [Missed::Read, Missed::Write].map(|what| refill[what as usize]);
    let join = std::array::from_fn(|class| {
        std::array::from_fn(|written| writer.join(class, written != 0, missed[written]))
    });
    let missed = refill[Missed::Code as usize];
    let by_cache = std::array::from_fn(|table| writer.by_cache(table, missed, leave));
    let written = writer.written();
    let time = writer.ask(at::TIME, 0);
    let arrived = writer.jumped_to();
    let expected = writer.at(at::EXPECTED);
    writer.asm.rm(Code::Mov_r64_rm64, S1, expected);
    writer.asm.jmp_to(leave);
    let thunks = Thunks {
        enter,
        step,
        leave,
        leave_by_link,
        leave_for_link,
        by_cache,
        units,
        refill,
        join,
        written,
        time,
        arrived,
    };
    (writer.asm.finish().place([start, start]), thunks)
}

impl Writer {
    /// The address of what comes next.
    fn here(&self) -> u64 {
        self.start + self.asm.len() as u64
    }

    /// The same, where translated code jumps to.
    fn jumped_to(&mut self) -> u64 {
        self.pushed = 0;
        self.here()
    }

    /// The same, where translated code calls.
    fn called(&mut self) -> u64 {
        self.pushed = RETURN_ADDRESS;
        self.here()
    }

    /// What is at `offset` in the state, which the stack pointer tells.
    fn at(&self, offset: u32) -> MemoryOperand {
        at_plus(Register::RSP, i64::from(offset) - i64::from(at::TOP) + i64::from(self.pushed))
    }

    fn enter(&mut self) -> u64 {
        let start = self.here();
        for register in KEPT {
            self.asm.r(Code::Push_r64, register);
        }
        self.asm.r(Code::Push_r64, Register::RSI);
        let from_top = i64::from(at::HOST_STACK) - i64::from(at::TOP);
        let host_stack = at_plus(Register::RSI, from_top);
        self.asm.mr(Code::Mov_rm64_r64, host_stack, Register::RSP);
        self.asm.mov(S2, Register::RDI);
        self.go_to_code();
        start
    }

    /// From the host's stack, goes to the code at [`S2`], which begins at
    /// [`State::rip`](super::state::State::rip).
    fn go_to_code(&mut self) {
        self.stack_to_state(0);
        self.load_registers();
        let rip = self.at(at::RIP);
        self.asm.rm(Code::Mov_r64_rm64, S1, rip);
        self.asm.r(Code::Jmp_rm64, S2);
    }

    fn move_stack(&mut self, by: i64) {
        let operand = MemoryOperand::with_base_displ(Register::RSP, by);
        self.asm.rm(Code::Lea_r64_m, Register::RSP, operand);
    }

    /// From the host's stack, has the stack pointer point into the state as translated code needs it, with
    /// `pushed` bytes on the stack.
    fn stack_to_state(&mut self, pushed: u32) {
        self.asm.rm(Code::Mov_r64_rm64, Register::RSP, memory_at(Register::RSP));
        if pushed > 0 {
            self.move_stack(-i64::from(pushed));
        }
        self.pushed = pushed;
    }

    /// Has the stack pointer point to the host's stack, where functions can be called.
    fn stack_to_host(&mut self) {
        let host_stack = self.at(at::HOST_STACK);
        self.asm.rm(Code::Mov_r64_rm64, Register::RSP, host_stack);
    }

    fn load_registers(&mut self) {
        self.move_registers(|_| true, true);
    }

    fn store_registers(&mut self) {
        self.move_registers(|_| true, false);
    }

    fn vector(n: usize) -> Register {
        Register::try_from(Register::XMM0 as usize + n).unwrap_or(Register::XMM0)
    }

    fn wide_vector(n: usize) -> Register {
        Register::try_from(Register::YMM0 as usize + n).unwrap_or(Register::YMM0)
    }

    /// The guest's vector registers to where the state has them, and the host's MXCSR back.
    fn store_vectors(&mut self) {
        for n in 0..16 {
            let (low, high) = (at::XMM + 16 * n as u32, at::YMM_HIGH + 16 * n as u32);
            let (low, high) = (self.at(low), self.at(high));
            if self.avx {
                self.asm.mr(Code::VEX_Vmovdqu_xmmm128_xmm, low, Self::vector(n));
                let code = Code::VEX_Vextractf128_xmmm128_ymm_imm8;
                self.asm.mri(code, high, Self::wide_vector(n), 1);
            } else {
                self.asm.mr(Code::Movdqu_xmmm128_xmm, low, Self::vector(n));
            }
        }
        if self.avx {
            // vzeroupper
            self.asm.raw(&[0xc5, 0xf8, 0x77]);
        }
        let (guest, host) = (self.at(at::MXCSR), self.at(at::MXCSR + 4));
        self.asm.m(Code::Stmxcsr_m32, guest);
        self.asm.m(Code::Ldmxcsr_m32, host);
    }

    /// The inverse of [`Self::store_vectors`].
    fn load_vectors(&mut self) {
        for n in 0..16 {
            let (low, high) = (at::XMM + 16 * n as u32, at::YMM_HIGH + 16 * n as u32);
            let (low, high) = (self.at(low), self.at(high));
            if self.avx {
                self.asm.rm(Code::VEX_Vmovdqu_xmm_xmmm128, Self::vector(n), low);
                let (code, wide) =
                    (Code::VEX_Vinsertf128_ymm_ymm_xmmm128_imm8, Self::wide_vector(n));
                self.asm.rrmi(code, (wide, wide), high, 1);
            } else {
                self.asm.rm(Code::Movdqu_xmm_xmmm128, Self::vector(n), low);
            }
        }
        let (guest, host) = (self.at(at::MXCSR), self.at(at::MXCSR + 4));
        self.asm.m(Code::Stmxcsr_m32, host);
        self.asm.m(Code::Ldmxcsr_m32, guest);
    }

    /// Jumps to `label` if no vector registers are loaded.
    fn skip_if_not_loaded(&mut self, label: Label) {
        let loaded = self.at(at::LOADED);
        self.asm.mi(Code::Cmp_rm32_imm8, loaded, 0);
        self.asm.jcc(Cond::Equal, label);
    }

    /// Jumps to `label` if no x87 registers are loaded.
    fn skip_without_x87(&mut self, label: Label) {
        let loaded = self.at(at::X87);
        self.asm.mi(Code::Cmp_rm32_imm8, loaded, 0);
        self.asm.jcc(Cond::Equal, label);
    }

    /// Has XSAVE and its like work on the x87 alone.
    fn select_x87(&mut self) {
        self.asm.mov_imm(Register::RAX, 1);
        self.asm.mov_imm(Register::RDX, 0);
    }

    /// Vector and x87 registers, if they are loaded, to where the state has them. General registers are
    /// stored already.
    fn store_units(&mut self) {
        let (no_vectors, no_x87) = (self.asm.label(), self.asm.label());
        self.skip_if_not_loaded(no_vectors);
        self.store_vectors();
        self.asm.bind(no_vectors);
        self.skip_without_x87(no_x87);
        self.select_x87();
        let image = self.at(at::X87_IMAGE);
        self.asm.m(Code::Xsave_mem, image);
        // fninit: functions find an empty stack.
        self.asm.raw(&[0xdb, 0xe3]);
        self.asm.bind(no_x87);
    }

    /// The inverse of [`Self::store_units`], before general registers are loaded.
    fn load_units(&mut self) {
        let (no_vectors, no_x87) = (self.asm.label(), self.asm.label());
        self.skip_if_not_loaded(no_vectors);
        self.load_vectors();
        self.asm.bind(no_vectors);
        self.skip_without_x87(no_x87);
        self.select_x87();
        let image = self.at(at::X87_IMAGE);
        self.asm.m(Code::Xrstor_mem, image);
        self.asm.bind(no_x87);
    }

    /// Vector registers, as wide as the host's are, to where they are kept during a short call, or with
    /// `back` from there.
    fn keep_vectors(&mut self, back: bool) {
        for n in 0..16 {
            let (size, register) =
                if self.avx { (32, Self::wide_vector(n)) } else { (16, Self::vector(n)) };
            let place = self.at(at::VECTORS + size * n as u32);
            match (self.avx, back) {
                (true, false) => self.asm.mr(Code::VEX_Vmovdqu_ymmm256_ymm, place, register),
                (true, true) => self.asm.rm(Code::VEX_Vmovdqu_ymm_ymmm256, register, place),
                (false, false) => self.asm.mr(Code::Movdqu_xmmm128_xmm, place, register),
                (false, true) => self.asm.rm(Code::Movdqu_xmm_xmmm128, register, place),
            }
        }
        if self.avx && !back {
            // vzeroupper
            self.asm.raw(&[0xc5, 0xf8, 0x77]);
        }
    }

    /// The registers in [`LOST`] and the flags to where the state has them, or with `back` from there.
    fn keep_registers(&mut self, back: bool) {
        self.move_registers(|register| LOST.contains(&register), back);
    }

    /// The same for the host's registers that `which` names, of those that have the guest's.
    fn move_registers(&mut self, which: fn(Register) -> bool, back: bool) {
        let homes = HOST.iter().enumerate().filter_map(|(n, register)| Some((n, (*register)?)));
        let homes: Vec<_> = homes.filter(|&(_, register)| which(register)).collect();
        self.keep_scratch(&homes, back);
        let flags = self.at(at::FLAGS);
        if back {
            self.asm.rm(Code::Mov_r64_rm64, Register::RAX, flags);
        } else {
            self.asm.mr(Code::Mov_rm64_r64, flags, Register::RAX);
        }
    }

    /// Asks the helper whose address is at `offset` with [`S1`], [`S2`] and `what`. Returns its answer in
    /// [`S1`]; with "equal" if it gives up.
    ///
    /// For code that missed in the TLB, with what the probe left in [`S1`] and [`S2`], it is "below" if the
    /// entry could be refilled, and [`S1`] is the linear address again; "above" if what was to be read is
    /// where [`S1`] says.
    fn ask(&mut self, offset: u32, what: u64) -> u64 {
        let start = self.called();
        self.keep_registers(false);
        let (no_vectors, none_back) = (self.asm.label(), self.asm.label());
        self.skip_if_not_loaded(no_vectors);
        self.keep_vectors(false);
        self.asm.bind(no_vectors);
        self.asm.mov(Register::RSI, S1);
        self.asm.mov(Register::RDX, S2);
        self.asm.mov_imm(Register::RCX, what);
        self.call_helper(offset);
        self.stack_to_state(RETURN_ADDRESS);
        self.asm.mov(S2, Register::RAX);
        self.skip_if_not_loaded(none_back);
        self.keep_vectors(true);
        self.asm.bind(none_back);
        self.keep_registers(true);
        let address = self.at(at::ADDRESS);
        self.asm.rm(Code::Mov_r64_rm64, S1, address);
        self.asm.ri(Code::Cmp_rm64_imm8, S2, GIVE_UP as i32);
        self.asm.raw(&[0xc3]);
        start
    }

    /// Goes to the address in [`S1`] by jump cache `table`, which the code at `missed` fills; leaves to go on there if
    /// that can't be.
    fn by_cache(&mut self, table: usize, missed: u64, leave: u64) -> u64 {
        let start = self.jumped_to();
        let (begin, unknown) = (self.asm.label(), self.asm.label());
        self.asm.bind(begin);
        let jumps = JumpTable::numbered(table);
        self.asm.look_up(jumps, unknown);
        self.asm.m(Code::Jmp_rm64, near_plus_8(jumps.at + CODE, S2));
        self.asm.bind(unknown);
        self.asm.call_to(missed);
        self.asm.jcc(Cond::Below, begin);
        self.asm.jmp_to(leave);
        start
    }

    /// Code of class number `class` missed. If the access runs from one page into another, and the TLB has both,
    /// gives it [`State::joined`](super::state::State::joined): what is read has been put together there, what
    /// is written is for [`Self::written`] to take. Else goes to `missed`.
    fn join(&mut self, class: usize, written: bool, missed: u64) -> u64 {
        let start = self.called();
        let (not_there, next_not_there) = (self.asm.label(), self.asm.label());
        let (first, second) = (Register::RCX, Register::RDX);
        let scratch = [(1, first), (2, second), (6, Register::RSI)];
        let table = size_of::<[TlbEntry; L1_ENTRIES]>() as i32 * class as i32;
        let table = before_state(at::TLB) + table + RETURN_ADDRESS as i32;
        let entry =
            |field: usize| sum(Some(Register::RSP), Some((S2, 1)), i64::from(table) + field as i64);
        let tag = entry(if written { TlbEntry::WRITE } else { TlbEntry::READ });
        let host = entry(TlbEntry::HOST);
        // The probe has left the offset, if the page is there.
        self.asm.ri(Code::Cmp_rm64_imm32, S1, PAGE_OFFSET as i32);
        self.asm.jcc(Cond::Above, not_there);
        self.keep_scratch(&scratch, false);
        self.asm.rm(Code::Mov_r64_rm64, second, tag);
        self.asm.rm(Code::Mov_r64_rm64, first, host);
        self.asm.ri(Code::Add_rm64_imm32, second, PAGE as i32);
        // Beyond the last page of all there is none.
        self.asm.jcc(Cond::Equal, next_not_there);
        self.index(second);
        self.asm.rm(Code::Cmp_r64_rm64, second, tag);
        self.asm.jcc(Cond::NotEqual, next_not_there);
        self.asm.rm(Code::Mov_r64_rm64, S2, host);
        if written {
            let parts = [0, 8, 16].map(|part| self.at(at::PARTS + part));
            self.asm.rm(Code::Lea_r64_m, first, sum(Some(first), Some((S1, 1)), 0));
            for (part, from) in parts.into_iter().zip([S1, first, S2]) {
                self.asm.mr(Code::Mov_rm64_r64, part, from);
            }
        } else {
            self.copy_around(first, S2, Register::RSI);
        }
        self.address_joined(S1, S1);
        self.keep_scratch(&scratch, true);
        self.asm.mov_imm(S2, JOINED);
        self.asm.ri(Code::Cmp_rm64_imm8, S2, GIVE_UP as i32);
        self.asm.raw(&[0xc3]);
        self.asm.bind(next_not_there);
        self.asm.rm(Code::Lea_r64_m, second, at_plus(second, -PAGE));
        self.index(second);
        self.keep_scratch(&scratch, true);
        self.asm.bind(not_there);
        self.asm.jmp_to(missed);
        start
    }

    /// Puts what a probe makes of the address in `linear` to find its entry into [`S2`].
    fn index(&mut self, linear: Register) {
        self.asm.rri(Code::VEX_Rorx_r64_rm64_imm8, S2, linear, 7);
        self.asm.ri(Code::And_rm32_imm32, low32(S2), ((L1_ENTRIES - 1) << 5) as i32);
    }

    /// Copies the end of the host's page at `first`, and where that at `second` begins.
    fn copy_around(&mut self, first: Register, second: Register, scratch: Register) {
        for at in (0..JOINED_LEN as u32).step_by(8) {
            let (half, from) = (JOINED_LEN as u32, i64::from(at));
            let ends = [(at_plus(first, PAGE - i64::from(half) + from), at)];
            for (from, to) in ends.into_iter().chain([(at_plus(second, from), half + at)]) {
                let to = self.at(at::JOINED + to);
                self.asm.rm(Code::Mov_r64_rm64, scratch, from);
                self.asm.mr(Code::Mov_rm64_r64, to, scratch);
            }
        }
    }

    /// Puts into `to` where what begins at the offset in `offset` is in the joined bytes.
    fn address_joined(&mut self, to: Register, offset: Register) {
        let middle = i64::from(at::JOINED) - i64::from(at::TOP) + JOINED_LEN as i64;
        let before = middle + i64::from(self.pushed) - PAGE;
        let joined = sum(Some(Register::RSP), Some((offset, 1)), before);
        self.asm.rm(Code::Lea_r64_m, to, joined);
    }

    /// Takes the [`S2`] bytes that were written, to both pages.
    fn written(&mut self) -> u64 {
        let start = self.called();
        let (count, source, target) = (Register::RCX, Register::RSI, Register::RDI);
        let scratch = [(1, count), (6, source), (7, target)];
        let [offset, first, second] = [0, 8, 16].map(|part| self.at(at::PARTS + part));
        self.keep_scratch(&scratch, false);
        self.asm.rm(Code::Mov_r64_rm64, count, offset);
        self.address_joined(source, count);
        self.asm.r(Code::Neg_rm64, count);
        self.asm.rm(Code::Lea_r64_m, count, at_plus(count, PAGE));
        self.asm.rr(Code::Sub_r64_rm64, S2, count);
        self.asm.rm(Code::Mov_r64_rm64, target, first);
        // rep movsb
        self.asm.raw(&[0xf3, 0xa4]);
        self.asm.rm(Code::Mov_r64_rm64, target, second);
        self.asm.mov(count, S2);
        self.asm.raw(&[0xf3, 0xa4]);
        self.keep_scratch(&scratch, true);
        self.asm.raw(&[0xc3]);
        start
    }

    /// Registers, each with the number of the general register that it has otherwise, to where the state has
    /// that, or with `back` from there.
    fn keep_scratch(&mut self, scratch: &[(usize, Register)], back: bool) {
        for &(n, register) in scratch {
            let home = self.at(at::gpr(n));
            if back {
                self.asm.rm(Code::Mov_r64_rm64, register, home);
            } else {
                self.asm.mr(Code::Mov_rm64_r64, home, register);
            }
        }
    }

    fn leave(&mut self, out: Label) {
        let (rip, link) = (self.at(at::RIP), self.at(at::LINK));
        self.asm.mr(Code::Mov_rm64_r64, rip, S1);
        self.asm.mr(Code::Mov_rm64_r64, link, S2);
        self.store_registers();
        self.store_units();
        self.stack_to_host();
        self.asm.mov_imm(Register::RAX, u64::from(LEFT));
        self.asm.bind(out);
        self.move_stack(8);
        for register in KEPT.into_iter().rev() {
            self.asm.r(Code::Pop_r64, register);
        }
        self.asm.raw(&[0xc3]);
    }

    /// Calls the helper whose address is at `offset` with the context and what other registers have for it.
    /// The host's stack is the stack then.
    fn call_helper(&mut self, offset: u32) {
        let (context, helper) = (self.at(at::CONTEXT), self.at(offset));
        self.asm.rm(Code::Mov_r64_rm64, Register::RDI, context);
        self.asm.rm(Code::Mov_r64_rm64, Register::RAX, helper);
        self.stack_to_host();
        self.asm.r(Code::Call_rm64, Register::RAX);
    }

    /// The same with [`S2`] as its argument; goes to `failed` unless it returns [`GO_ON`].
    fn call(&mut self, offset: u32, failed: Label) {
        self.asm.mov(Register::RSI, S2);
        self.call_helper(offset);
        self.asm.rr(Code::Test_rm64_r64, Register::RAX, Register::RAX);
        self.asm.jcc(Cond::NotEqual, failed);
    }

    /// Leaves, returning `how`, after a helper was called.
    fn give_up(&mut self, how: u32, out: Label) {
        self.asm.mov_imm(Register::RAX, u64::from(how));
        self.asm.jmp(out);
    }

    fn step(&mut self, out: Label) -> u64 {
        let start = self.called();
        let failed = self.asm.label();
        self.store_registers();
        self.store_units();
        self.call(at::STEP, failed);
        self.stack_to_state(RETURN_ADDRESS);
        self.load_units();
        self.load_registers();
        self.asm.raw(&[0xc3]);
        self.asm.bind(failed);
        let elsewhere = self.asm.label();
        self.asm.ri(Code::Cmp_rm64_imm8, Register::RAX, GIVE_UP as i32);
        self.asm.jcc(Cond::NotEqual, elsewhere);
        self.give_up(LEFT_BY_STEP, out);
        // To other code, which finds neither vector nor x87 registers loaded.
        self.asm.bind(elsewhere);
        self.asm.mov(S2, Register::RAX);
        self.go_to_code();
        start
    }

    fn units(&mut self, out: Label) -> u64 {
        let start = self.called();
        let failed = self.asm.label();
        let rip = self.at(at::RIP);
        self.asm.mr(Code::Mov_rm64_r64, rip, S1);
        self.store_registers();
        // Some may be loaded already.
        self.store_units();
        self.call(at::UNITS, failed);
        self.stack_to_state(RETURN_ADDRESS);
        self.load_units();
        self.load_registers();
        self.asm.raw(&[0xc3]);
        self.asm.bind(failed);
        self.give_up(REFUSED, out);
        start
    }
}
