//! From guest instructions to a translation: the frame that the other modules fill.
//!
//! A translation begins at one guest address and goes on in a straight line through branches that are
//! not taken, within one page. Each instruction either becomes host code or a call of the helper that
//! executes it with the interpreter. So does, out of line, each access to memory that is not where the
//! TLB says, with everything that may come of it: another page walk, a fault, a device.
//!
//! **Flags.** At the beginning and wherever code leaves they are saved: in RAX. In between they may be in
//! the host's flags only; what destroys those saves them first, so that they can be told at any point
//! where the instruction after may fault. They are brought back for an instruction that needs them.

use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions, MemoryOperand,
    Mnemonic, OpAccess, OpKind, Register, RflagsBits,
};

use super::asm::{Asm, Label, abs};
use super::enter::X87;
use super::regs::{HOST, S1, S2};
use super::state::{JUMPS, Jump, at};
use super::thunks::Missed;
use super::x87::Notes;
use crate::host::PAGE_OFFSET;
use crate::op::{Op, OpFlags};
use crate::tlb::Class;

/// Length of the code before what links from the same page lead to.
pub(super) const ENTRY: usize = 15;
/// In the number of an instruction that a helper executes: only because of its access to memory.
pub(super) const FOR_ACCESS: u64 = 1 << 31;

/// Where translated code finds what does not change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// The `State`.
    pub(super) state: u32,
    /// The first-level TLB of the class.
    pub(super) tlb: u32,
    /// The jump caches of all classes, in the code's mode.
    pub(super) jumps: u32,
    /// For whom the code runs.
    pub(super) class: Class,
    /// Executes the instruction whose number is in [`S2`]; returns if translated code may go on.
    pub(super) step: u64,
    /// Leaves, to go on at the address in [`S1`].
    pub(super) leave: u64,
    /// The same by the link whose number is in [`S2`].
    pub(super) leave_by_link: u64,
    /// Makes the units in [`S2`] available, or leaves to interpret at [`S1`].
    pub(super) units: u64,
    /// Refill the TLB, by [`Missed`]; see `thunks` for how they return.
    pub(super) refill: [u64; 2],
    /// The privilege level is 0.
    pub(super) kernel: bool,
    /// The code is of 64 bits, not 32.
    pub(super) wide: bool,
    /// The code runs wherever its page is mapped.
    pub(super) relative: bool,
    /// Translations lead to each other, and to themselves.
    pub(super) chains: bool,
    /// Instructions are counted (see `budget`).
    pub(super) counts: bool,
}

impl Places {
    /// The jump cache of `class`.
    pub(super) fn jumps_of(&self, class: Class) -> u32 {
        self.jumps + size_of::<[Jump; JUMPS]>() as u32 * class as u32
    }
}

/// What instructions were compiled to.
pub(super) struct Compiled {
    pub(super) code: Vec<u8>,
    pub(super) links: Vec<LinkSite>,
    /// The instructions that the interpreter executes in any case, by number.
    pub(super) stepped: Vec<usize>,
}

/// An instruction as the translator gets it.
pub(super) struct Input {
    pub(super) op: Op,
    /// The decoded form; `None` if the interpreter alone is to deal with it.
    pub(super) insn: Option<Instruction>,
}

/// A jump within the page that may be made to lead to its target.
pub(super) struct LinkSite {
    /// Offset in the code of the jump's displacement.
    pub(super) displacement: usize,
    /// Offset in the code of where it leads at first.
    pub(super) unlinked: usize,
    pub(super) target: u64,
}

/// Code out of line that executes an instruction with the interpreter.
struct Slow {
    from: Label,
    back: Label,
    op: usize,
    /// The probe that missed, if it was one.
    probe: Option<Probe>,
    /// The host's flags are needed afterwards.
    flags: bool,
    notes: Notes,
}

/// A probe of the TLB.
#[derive(Clone, Copy)]
pub(super) struct Probe {
    /// Where it begins.
    pub(super) begin: Label,
    /// Where it has succeeded.
    pub(super) end: Label,
    pub(super) what: Missed,
}

/// Code out of line that leads to another place in the page.
struct Exit {
    from: Label,
    target: u64,
    /// The flags have to be saved first.
    save: bool,
    /// It goes back.
    backward: bool,
    notes: Notes,
    /// Instructions that are not executed.
    left: usize,
}

/// Code out of line that makes units available.
struct Wanted {
    from: Label,
    back: Label,
    units: u32,
}

pub(super) struct Compiler<'a> {
    pub(super) asm: Asm,
    pub(super) places: Places,
    /// RIP of the first instruction, where the code was first met.
    pub(super) start: u64,
    /// Where code begins when its registers are available.
    pub(super) top: Label,
    /// Number of the translation, in the upper half; added to an instruction's it tells which it is.
    number: u64,
    first_link: usize,
    info: InstructionInfoFactory,
    /// What the instruction under translation does with its operands.
    pub(super) accesses: [OpAccess; 5],
    /// Flags are in RAX.
    saved: bool,
    /// Flags are in the host's.
    live: bool,
    slow: Vec<Slow>,
    exits: Vec<Exit>,
    polls: Vec<(Label, u64, Notes, usize)>,
    /// The instruction after which signals have to be looked at.
    pub(super) poll_after: Option<usize>,
    wanted: Option<Wanted>,
    pub(super) notes: Notes,
    pub(super) links: Vec<LinkSite>,
    stepped: Vec<usize>,
    pub(super) features: &'a super::vector::HostFeatures,
    /// The instruction under translation.
    pub(super) index: usize,
    /// How many instructions there are.
    pub(super) len: usize,
    /// For each instruction, whether the flags after it are overwritten before anything can see them.
    dead: Vec<bool>,
}

/// Flags that arithmetic sets.
pub(super) const ARITH: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

impl<'a> Compiler<'a> {
    /// Compiles `input`, whose first instruction is at `start`; the code will be at `at`.
    pub(super) fn compile(
        input: &[Input],
        (start, at): (u64, u64),
        places: Places,
        (number, first_link): (u32, usize),
        features: &'a super::vector::HostFeatures,
    ) -> Compiled {
        let mut asm = Asm::new(at);
        let top = asm.label();
        let mut this = Self {
            asm,
            places,
            start,
            top,
            number: u64::from(number) << 32,
            first_link,
            info: InstructionInfoFactory::new(),
            accesses: [OpAccess::None; 5],
            saved: true,
            live: false,
            slow: Vec::new(),
            exits: Vec::new(),
            polls: Vec::new(),
            poll_after: None,
            wanted: None,
            notes: Notes::default(),
            links: Vec::new(),
            stepped: Vec::new(),
            features,
            index: 0,
            len: input.len(),
            // Where engines are compared, they stop in between and see all flags.
            dead: if places.chains { dead_flags(input) } else { vec![false; input.len()] },
        };
        this.entry();
        this.head(input);
        let mut ended = false;
        for (index, this_input) in input.iter().enumerate() {
            this.index = index;
            let next = input.get(index + 1).and_then(|next| next.insn.as_ref());
            ended = this.instruction(this_input, next);
            if this.poll_after == Some(index) {
                this.save();
                this.poll(this_input.op.next_rip, this.left());
            }
        }
        if let Some(last) = input.last().filter(|_| !ended) {
            this.go_to(last.op.next_rip, last.op.next_rip);
        }
        this.finish()
    }

    /// What is done when the code is come to from another page, or from outside, with its address in
    /// [`S1`]; its length is [`ENTRY`].
    fn entry(&mut self) {
        let page = abs(self.places.state + at::PAGE);
        self.asm.ri(Code::And_rm64_imm32, S1, -(PAGE_OFFSET as i32 + 1));
        self.asm.mr(Code::Mov_rm64_r64, page, S1);
        debug_assert_eq!(self.asm.len(), ENTRY);
    }

    /// Puts `address`, which is one of the code or relative to it, into `to`. The flags stay.
    pub(super) fn address(&mut self, to: Register, address: u64) {
        if !self.places.relative {
            self.asm.mov_imm(to, address);
            return;
        }
        let from_page = address.wrapping_sub(self.start & !PAGE_OFFSET) as i64;
        self.asm.rm(Code::Mov_r64_rm64, to, abs(self.places.state + at::PAGE));
        // Operands relative to RIP may be a little beyond two gigabytes from the page's beginning.
        let half = i64::from(i32::try_from(from_page).unwrap_or((from_page / 2) as i32));
        self.asm.rm(Code::Lea_r64_m, to, MemoryOperand::with_base_displ(to, half));
        if half != from_page {
            let rest = MemoryOperand::with_base_displ(to, from_page - half);
            self.asm.rm(Code::Lea_r64_m, to, rest);
        }
    }

    /// Makes vector and x87 registers available, if any instruction uses them.
    fn head(&mut self, input: &[Input]) {
        let insns = || input.iter().filter_map(|input| input.insn.as_ref());
        let level = insns().map(|insn| self.features.level(insn)).max().unwrap_or(0);
        let x87 = insns().any(|insn| self.features.needs_x87(insn));
        self.asm.bind(self.top);
        if level != 0 || x87 {
            self.want_units(level, x87);
        }
        self.charge();
    }

    /// Makes vector registers at `level` available, and the x87's if `x87`.
    fn want_units(&mut self, level: u32, x87: bool) {
        let (from, back) = (self.asm.label(), self.asm.label());
        if level > 0 {
            let loaded = abs(self.places.state + at::LOADED);
            self.asm.mi(Code::Cmp_rm32_imm8, loaded, level as i32);
            self.asm.jcc(super::asm::Cond::Below, from);
        }
        if x87 {
            let loaded = abs(self.places.state + at::X87);
            self.asm.mi(Code::Cmp_rm32_imm8, loaded, 0);
            self.asm.jcc(super::asm::Cond::Equal, from);
        }
        self.asm.bind(back);
        self.wanted = Some(Wanted { from, back, units: level | if x87 { X87 } else { 0 } });
    }

    /// The number of the translation.
    pub(super) fn number(&self) -> u32 {
        (self.number >> 32) as u32
    }

    /// Translates one instruction; returns whether nothing comes after it. `next` is what does.
    fn instruction(&mut self, input: &Input, next: Option<&Instruction>) -> bool {
        let ends = input.op.flags.contains(OpFlags::ENDS_BLOCK);
        if let Some(insn) = input.insn.as_ref().filter(|insn| self.can_address(insn)) {
            let info = self.info.info_options(
                insn,
                InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE,
            );
            self.accesses = std::array::from_fn(|n| info.op_access(n as u32));
            if !matches!(insn.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch) {
                self.settle_notes();
            }
            if let Some(ended) = self.control(insn, &input.op) {
                return ended;
            }
            // What they change beside registers is not compared between engines.
            if self.places.chains
                && !self.places.counts
                && let Some(ended) = self.system(insn, &input.op, next)
            {
                return ended;
            }
            let translated = !ends
                && (self.integer(insn, &input.op)
                    || self.string(insn)
                    || self.vector(insn)
                    || self.x87(insn));
            if translated {
                return false;
            }
        }
        self.step();
        false
    }

    /// Executes the instruction with the interpreter.
    fn step(&mut self) {
        self.stepped.push(self.index);
        self.save();
        self.settle_notes();
        self.asm.mov_imm(S2, self.number | self.index as u64);
        self.asm.call_to(self.places.step);
        self.live = false;
    }

    /// A place out of line from where the interpreter executes the instruction, and then goes on where
    /// [`Self::slow_returns`] says.
    pub(super) fn slow(&mut self) -> Label {
        self.slow_or_again(None)
    }

    /// The same for `probe`, if it misses for good.
    pub(super) fn slow_access(&mut self, probe: Probe) -> Label {
        self.slow_or_again(Some(probe))
    }

    fn slow_or_again(&mut self, probe: Option<Probe>) -> Label {
        debug_assert!(self.saved, "flags are saved where an instruction may fault");
        let from = self.asm.label();
        let back = self.asm.label();
        let notes = self.notes;
        self.slow.push(Slow { from, back, op: self.index, probe, flags: false, notes });
        from
    }

    /// The instruction is done: whatever went to its places out of line comes back here.
    pub(super) fn slow_returns(&mut self) {
        let live = self.live;
        for slow in self.slow.iter_mut().rev().take_while(|slow| slow.op == self.index) {
            slow.flags = live;
            self.asm.bind(slow.back);
        }
    }

    /// Puts the flags into RAX, so that the host's may be destroyed.
    pub(super) fn save(&mut self) {
        if !self.saved {
            // lahf; seto al
            self.asm.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
            self.saved = true;
        }
    }

    /// Makes the host's flags the guest's.
    pub(super) fn want_flags(&mut self) {
        if !self.live {
            self.restore_flags();
            self.live = true;
        }
    }

    fn restore_flags(&mut self) {
        // cmp al, -127 overflows for 1 and does not for 0; sahf
        self.asm.raw(&[0x3c, 0x81, 0x9e]);
    }

    /// The host's flags, saved before, are destroyed.
    pub(super) fn destroyed(&mut self) {
        debug_assert!(self.saved, "flags are saved before they are destroyed");
        self.live = false;
    }

    /// The instruction has put new flags into the host's.
    pub(super) fn wrote_flags(&mut self) {
        self.live = true;
        self.saved = false;
    }

    /// The host's flags are the guest's on this path.
    pub(super) fn still_live(&mut self) {
        self.live = true;
    }

    /// A place out of line that leaves to go on at `rip`, with `left` instructions taken off the budget
    /// that are not executed. Flags have to be saved.
    pub(super) fn leave_out_of_line(&mut self, rip: u64, left: usize) -> Label {
        let exit = self.asm.label();
        self.polls.push((exit, rip, self.notes, left));
        exit
    }

    /// Brings flags to where an instruction with these needs them.
    pub(super) fn before(&mut self, flags: FlagUse) {
        if flags.reads || flags.keeps && !self.dead[self.index] {
            self.want_flags();
        }
    }

    /// The counterpart of [`Self::before`].
    pub(super) fn after(&mut self, flags: FlagUse) {
        if !flags.writes {
            return;
        }
        self.wrote_flags();
        if self.dead[self.index] {
            // Nobody will miss them.
            (self.saved, self.live) = (true, false);
        }
    }

    /// Memory that holds general register `n` while it has no register.
    pub(super) fn home(&self, n: usize) -> MemoryOperand {
        abs(self.places.state + at::GPR + 8 * n as u32)
    }

    /// A register with general register `n` in it: its own, or `scratch`.
    pub(super) fn read_gpr(&mut self, n: usize, scratch: Register) -> Register {
        match HOST[n & 15] {
            Some(register) => register,
            None => {
                let home = self.home(n & 15);
                self.asm.rm(Code::Mov_r64_rm64, scratch, home);
                scratch
            }
        }
    }

    /// Sets general register `n` to `from`.
    pub(super) fn write_gpr(&mut self, n: usize, from: Register) {
        match HOST[n & 15] {
            Some(register) => self.asm.mov(register, from),
            None => {
                let home = self.home(n & 15);
                self.asm.mr(Code::Mov_rm64_r64, home, from);
            }
        }
    }

    /// If something wants the CPU's attention, leaves to go on at `rip`, as [`Self::leave_out_of_line`]
    /// does. Flags have to be saved, and [`S2`] is used.
    pub(super) fn poll(&mut self, rip: u64, left: usize) {
        let exit = self.leave_out_of_line(rip, left);
        self.poll_to(exit);
    }

    fn poll_to(&mut self, exit: Label) {
        let (signals, wanted) = (self.places.state + at::SIGNALS, self.places.state + at::WANTED);
        self.asm.rm(Code::Mov_r64_rm64, S2, abs(signals));
        self.asm.rm(Code::Mov_r32_rm32, super::asm::low32(S2), super::asm::at(S2));
        self.asm.mr(Code::Test_rm32_r32, abs(wanted), super::asm::low32(S2));
        self.asm.jcc(super::asm::Cond::NotEqual, exit);
        self.destroyed();
    }

    /// A place out of line that leads to `target`, in this page, from the instruction at `rip`.
    pub(super) fn exit(&mut self, rip: u64, target: u64) -> Label {
        let from = self.asm.label();
        let (save, backward) = (!self.saved, target <= rip);
        let (notes, left) = (self.notes, self.left());
        self.exits.push(Exit { from, target, save, backward, notes, left });
        from
    }

    /// A jump that can be linked, from out of line code.
    fn linked_jump(&mut self, target: u64, unlinked: Label) {
        if target == self.start {
            if self.places.chains {
                self.asm.jmp(self.top);
            }
            self.asm.bind(unlinked);
            self.address(S1, target);
            self.asm.jmp_to(self.places.leave);
            return;
        }
        // Its displacement is 0 at first.
        let after = self.asm.here() + 5;
        self.asm.jmp_to(after);
        let here = self.asm.len();
        self.asm.bind(unlinked);
        self.address(S1, target);
        self.asm.mov_imm(S2, (self.first_link + self.links.len() + 1) as u64);
        self.asm.jmp_to(self.places.leave_by_link);
        self.links.push(LinkSite { displacement: here - 4, unlinked: here, target });
    }

    fn finish(mut self) -> Compiled {
        for exit in std::mem::take(&mut self.exits) {
            self.asm.bind(exit.from);
            self.saved = !exit.save;
            self.save();
            self.write_notes(exit.notes);
            self.give_back(exit.left);
            let unlinked = self.asm.label();
            if exit.backward {
                self.poll_to(unlinked);
            }
            self.linked_jump(exit.target, unlinked);
        }
        for slow in std::mem::take(&mut self.slow) {
            self.asm.bind(slow.from);
            if let Some(Probe { begin, end, what }) = slow.probe {
                self.asm.call_to(self.places.refill[what as usize]);
                self.asm.jcc(super::asm::Cond::Below, begin);
                if what == Missed::Read {
                    self.asm.jcc(super::asm::Cond::Above, end);
                }
            }
            self.write_notes(slow.notes);
            self.asm.mov_imm(S2, self.number | FOR_ACCESS | slow.op as u64);
            self.asm.call_to(self.places.step);
            if slow.flags {
                self.restore_flags();
            }
            self.asm.jmp(slow.back);
        }
        for (exit, rip, notes, left) in std::mem::take(&mut self.polls) {
            self.asm.bind(exit);
            self.write_notes(notes);
            self.give_back(left);
            self.address(S1, rip);
            self.asm.jmp_to(self.places.leave);
        }
        if let Some(wanted) = self.wanted.take() {
            self.asm.bind(wanted.from);
            self.address(S1, self.start);
            self.asm.mov_imm(S2, u64::from(wanted.units));
            self.asm.call_to(self.places.units);
            self.asm.jmp(wanted.back);
        }
        Compiled { code: self.asm.finish(), links: self.links, stepped: self.stepped }
    }
}

/// What an instruction does with the arithmetic flags.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlagUse {
    /// It reads some.
    reads: bool,
    /// It changes some, and may leave others as they were.
    keeps: bool,
    /// It changes some.
    writes: bool,
}

impl FlagUse {
    pub(super) fn of(insn: &Instruction) -> Self {
        let changed = insn.rflags_modified() & ARITH;
        let writes = changed != 0;
        Self {
            reads: insn.rflags_read() & ARITH != 0,
            keeps: writes && (changed != ARITH || may_count_zero(insn)),
            writes,
        }
    }
}

/// Whether `insn` leaves the flags alone when a count is zero, and that might be.
pub(super) fn may_count_zero(insn: &Instruction) -> bool {
    use iced_x86::Mnemonic::*;
    let mnemonic = insn.mnemonic();
    if !matches!(mnemonic, Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd) {
        return false;
    }
    let last = insn.op_count() - 1;
    let known = insn.op_kind(last) == OpKind::Immediate8 && insn.immediate8() & 31 != 0;
    // One is written without a number.
    !(known || insn.op_count() == 1)
}

/// For each instruction, whether the flags after it are overwritten before anything can see them.
fn dead_flags(input: &[Input]) -> Vec<bool> {
    let mut dead = vec![false; input.len()];
    let mut seen = true;
    for (index, dead) in dead.iter_mut().enumerate().rev() {
        // After what follows STI the code may be left.
        let before = index.checked_sub(1).and_then(|before| input[before].insn);
        seen |= before.is_some_and(|insn| insn.mnemonic() == Mnemonic::Sti);
        *dead = !seen;
        let input = &input[index];
        match input.insn.filter(super::integer::is_unseen) {
            None => seen = true,
            Some(insn) => {
                let flags = FlagUse::of(&insn);
                seen = flags.reads || seen && (flags.keeps || !flags.writes);
            }
        }
    }
    dead
}

/// Whether translated code goes on after an instruction that ends a block of the interpreter's: it is
/// none that goes elsewhere or waits, and the helper sees whether what changed allows it.
pub(super) fn goes_on(input: &Input) -> bool {
    input.insn.as_ref().is_some_and(|insn| {
        insn.is_jcc_short_or_near()
            || insn.flow_control() == FlowControl::Next
                && insn.mnemonic() != Mnemonic::Hlt
                && !crate::svm::is_one(insn)
    })
}

/// Whether an operand is read; one that is written in part counts.
pub(super) fn reads(access: OpAccess) -> bool {
    !matches!(access, OpAccess::Write | OpAccess::None | OpAccess::NoMemAccess)
}

/// Whether an operand is written.
pub(super) fn writes(access: OpAccess) -> bool {
    !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess)
}
