//! From guest instructions to a translation: the frame that the other modules fill.
//!
//! A translation begins at one guest address and goes on in a straight line through branches that are
//! not taken, within one page. A jump back to where it begins makes it several rounds of a loop. Each instruction either becomes host code or a call of the helper that
//! executes it with the interpreter. So does, out of line, each access to memory that is not where the
//! TLB says, with everything that may come of it: another page walk, a fault, a device. Where the flags
//! are meanwhile, `flags` says.

use accel::Signal;
use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions, MemoryOperand,
    Mnemonic, OpAccess, OpKind, Register,
};

use super::asm::{Asm, Encoded, Finished, Label, before_state, in_state};
use super::enter::X87;
use super::far::{Far, FarSite};
use super::flags::{Flags, Recipe, dead_flags};
use super::group::{Touch, Window, WindowMiss, Windows, touches};
use super::loans::{Loan, loans};
use super::memory::number;
use super::regs::{S1, S2};
use super::state::{JUMP_SHIFT, JUMPS, Jump, PAGES, RETURNS, Site, WINDOWS, at, jump_table};
use super::thunks::Missed;
use super::x87::Notes;
use crate::host::PAGE_OFFSET;
use crate::op::{Op, OpFlags};
use crate::tlb::Class;

/// Length of the code before what links from the same page lead to.
pub(super) const ENTRY: usize = 11;

/// Where translated code finds what does not change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// The first-level TLB of the class, relative to the stack pointer.
    pub(super) tlb: i32,
    /// For whom the code runs.
    pub(super) class: Class,
    /// Executes the instruction whose [`Site`] is in [`S2`]; returns if translated code may go on.
    pub(super) step: u64,
    /// Leaves, to go on at the address in [`S1`].
    pub(super) leave: u64,
    /// The same by the link whose number is in the lower half of [`S2`], to the offset in this page that is
    /// in the upper.
    pub(super) leave_by_link: u64,
    /// The same to the address in [`S1`], by the link whose number is in [`S2`].
    pub(super) leave_for_link: u64,
    /// Goes to the address in [`S1`] by the jump cache.
    pub(super) by_cache: u64,
    /// Makes the units in [`S2`] available, or leaves to interpret at [`S1`].
    pub(super) units: u64,
    /// Refill the TLB or the jump cache, by [`Missed`]; see `thunks` for how they return.
    pub(super) refill: [u64; 4],
    /// Takes what was written across the end of a page, [`S2`] bytes.
    pub(super) written: u64,
    /// Reads the time-stamp counter, the same way.
    pub(super) time: u64,
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
    /// Which accesses may share a probe (see `group`).
    pub(super) windows: Windows,
    /// The general registers when the code is made.
    pub(super) registers: [u64; 16],
}

impl Places {
    /// The jump cache of `class`, for the code's mode.
    pub(super) fn jumps_of(&self, class: Class) -> JumpTable {
        JumpTable::numbered(jump_table(class, self.wide))
    }

    /// The table of pages for the code's class and mode, relative to the stack pointer.
    pub(super) fn pages(&self) -> i32 {
        let table = jump_table(self.class, self.wide);
        before_state(at::PAGES) + (size_of::<[Jump; PAGES]>() * table) as i32
    }

    /// The table of returns for the code's class and mode.
    pub(super) fn returns(&self) -> JumpTable {
        let table = jump_table(self.class, self.wide);
        JumpTable {
            at: before_state(at::RETURNS) + (size_of::<[Jump; RETURNS]>() * table) as i32,
            mask: in_state(at::BELL_FOR_RETURNS),
        }
    }
}

/// A jump cache or a table of returns.
#[derive(Clone, Copy)]
pub(super) struct JumpTable {
    /// Where it is, relative to the stack pointer.
    pub(super) at: i32,
    /// By what an address is masked to be twice the number of its entry; see [`super::state::ARMED`].
    pub(super) mask: MemoryOperand,
}

impl JumpTable {
    /// Jump cache number `table`.
    pub(super) fn numbered(table: usize) -> Self {
        let at = before_state(at::JUMPS) + (size_of::<[Jump; JUMPS]>() * table) as i32;
        Self { at, mask: in_state(at::BELL) }
    }
}

/// What instructions were compiled to.
pub(super) struct Compiled {
    pub(super) code: Finished,
    pub(super) links: Vec<LinkSite>,
    pub(super) far_links: Vec<FarSite>,
    /// The instructions that the interpreter executes in any case, by number.
    pub(super) stepped: Vec<usize>,
}

/// An instruction as the translator gets it.
#[derive(Clone, Copy)]
pub(super) struct Input {
    pub(super) op: Op,
    /// The decoded form; `None` if the interpreter alone is to deal with it.
    pub(super) insn: Option<Instruction>,
    /// It is a jump, and what comes next is what it leads to.
    pub(super) followed: bool,
}

impl Input {
    /// Whether it is a direct jump to `target`, on a condition or not.
    pub(super) fn goes_to(&self, target: u64) -> bool {
        self.op.imm == target
            && self.insn.is_some_and(|insn| {
                matches!(insn.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32)
                    && (insn.is_jcc_short_or_near() || insn.is_jmp_short_or_near())
            })
    }
}

/// A jump within the page that may be made to lead to its target.
pub(super) struct LinkSite {
    /// Offset of the jump's displacement, in the order in which the code was written.
    pub(super) displacement: usize,
    /// Offset of where it leads at first.
    pub(super) unlinked: usize,
    pub(super) target: u64,
    /// See [`Unlinked`].
    pub(super) windows: Windows,
    /// See [`Unlinked`].
    pub(super) returns: bool,
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
    /// How the flags before are made, if they are not saved.
    recipe: Option<Recipe>,
    notes: Notes,
    /// Registers are lent.
    lent: bool,
    /// The instruction itself, if all that it does is to store.
    store: Option<Store>,
}

/// A store for which the probe may find that it runs from one page into another.
#[derive(Clone, Copy)]
pub(super) struct Store {
    /// The instruction, which stores to where [`S1`] says.
    pub(super) code: Encoded,
    /// The general register that it stores, if that has to be loaded into [`S2`] first.
    pub(super) from: Option<usize>,
    /// How many bytes.
    pub(super) size: usize,
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

/// Code behind the last instruction's that leads to another place.
pub(super) struct Exit {
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

/// Where a jump that is not linked leads.
pub(super) struct Unlinked {
    pub(super) from: Label,
    pub(super) target: u64,
    /// Offset of the jump's displacement.
    pub(super) displacement: usize,
    /// What windows the code may have that it leads to.
    pub(super) windows: Windows,
    /// It is where a call returns to: come to from anywhere, with the address in [`S1`].
    pub(super) returns: bool,
}

/// What is known of an instruction.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    /// What it does with its operands.
    pub(super) accesses: [OpAccess; 5],
    /// The general registers that it writes, by number.
    pub(super) changed: u16,
    /// Those that it reads or writes.
    pub(super) used: u16,
}

/// Code out of line that leaves.
struct Poll {
    from: Label,
    /// Where to go on.
    rip: u64,
    notes: Notes,
    /// Instructions that are not executed.
    left: usize,
    /// Registers are lent.
    lent: bool,
}

/// Code out of line for an address that was looked up in the jump cache.
pub(super) struct LookUp {
    pub(super) from: Label,
    /// Where it is looked up.
    pub(super) begin: Label,
    /// Where to go if there is no code for it.
    pub(super) unknown: Label,
}

/// Code out of line for a return whose address is not in the table of returns.
pub(super) struct Return {
    pub(super) from: Label,
    /// Where to go if there is no code for it.
    pub(super) unknown: Label,
    /// What it takes off the stack.
    pub(super) released: i32,
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
    /// Where code begins that comes from elsewhere in the page.
    top: Label,
    /// Where it goes on that comes from this translation's end.
    again: Label,
    pub(super) loans: Vec<Loan>,
    /// Registers are lent where code is written now.
    pub(super) lent: bool,
    /// Number of the translation.
    pub(super) number: u32,
    first_link: usize,
    pub(super) first_far: usize,
    /// What is known of each instruction.
    pub(super) facts: Vec<Facts>,
    /// Where the flags are.
    pub(super) flags: Flags,
    slow: Vec<Slow>,
    exits: Vec<Exit>,
    pub(super) unlinked: Vec<Unlinked>,
    /// Windows that are open.
    pub(super) windows: [Option<Window>; WINDOWS],
    /// What each instruction accesses that may share one.
    pub(super) touches: Vec<Option<Touch>>,
    /// By how much each general register has changed since the beginning, if that is known.
    pub(super) drift: [Option<i64>; 16],
    /// The window whose place [`S1`] has, if that has not changed since.
    pub(super) window_at_hand: Option<(usize, usize)>,
    pub(super) window_misses: Vec<WindowMiss>,
    polls: Vec<Poll>,
    pub(super) look_ups: Vec<LookUp>,
    pub(super) returns: Vec<Return>,
    pub(super) far: Vec<Far>,
    /// The instruction after which interrupts have to be looked for.
    pub(super) poll_after: Option<usize>,
    wanted: Option<Wanted>,
    pub(super) notes: Notes,
    /// A scratch register that has what was put into a general register last, where that was.
    at_hand: Option<(usize, usize, Register)>,
    pub(super) links: Vec<LinkSite>,
    pub(super) far_links: Vec<FarSite>,
    stepped: Vec<usize>,
    pub(super) features: &'a super::vector::HostFeatures,
    /// The instruction under translation.
    pub(super) index: usize,
    /// How many instructions there are.
    pub(super) len: usize,
    /// The instructions.
    pub(super) input: &'a [Input],
    /// For each, whether the flags after it are overwritten before anything can see them.
    pub(super) dead: Vec<bool>,
}

impl<'a> Compiler<'a> {
    /// Compiles `input`, whose first instruction is at `start`.
    pub(super) fn compile(
        input: &'a [Input],
        start: u64,
        places: Places,
        (number, [first_link, first_far]): (u32, [usize; 2]),
        features: &'a super::vector::HostFeatures,
    ) -> Compiled {
        let mut asm = Asm::new();
        let (top, again) = (asm.label(), asm.label());
        let facts = facts(input);
        let touches = touches(input, &facts, &places);
        let loops = places.chains
            && places.windows == Windows::Wide
            && !places.counts
            && input.last().is_some_and(|last| last.goes_to(start));
        let loans = if loops { loans(input, &facts) } else { Vec::new() };
        let mut this = Self {
            asm,
            places,
            start,
            top,
            again,
            loans,
            lent: false,
            number,
            first_link,
            first_far,
            facts,
            flags: Flags::saved(),
            slow: Vec::new(),
            exits: Vec::new(),
            unlinked: Vec::new(),
            windows: [None; WINDOWS],
            touches,
            drift: [Some(0); 16],
            window_at_hand: None,
            window_misses: Vec::new(),
            polls: Vec::new(),
            look_ups: Vec::new(),
            returns: Vec::new(),
            far: Vec::new(),
            poll_after: None,
            wanted: None,
            notes: Notes::default(),
            at_hand: None,
            links: Vec::new(),
            far_links: Vec::new(),
            stepped: Vec::new(),
            features,
            index: 0,
            len: input.len(),
            input,
            // Where engines are compared, they stop in between and see all flags.
            dead: if places.chains { dead_flags(input) } else { vec![false; input.len()] },
        };
        this.entry();
        debug_assert_eq!(this.asm.len(), ENTRY);
        this.head(input);
        let mut ended = false;
        for (index, this_input) in input.iter().enumerate() {
            this.index = index;
            let next = input.get(index + 1).and_then(|next| next.insn.as_ref());
            ended = this.instruction(this_input, next);
            if this.poll_after == Some(index) {
                this.save();
                let exit = this.leave_out_of_line(this_input.op.next_rip, this.left());
                this.look_for_interrupt();
                this.asm.jcc(super::asm::Cond::NotEqual, exit);
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
        let page = in_state(at::PAGE);
        self.asm.ri(Code::And_rm64_imm32, S1, -(PAGE_OFFSET as i32 + 1));
        self.asm.mr(Code::Mov_rm64_r64, page, S1);
    }

    /// Puts `address`, which is one of the code or relative to it, into `to`. The flags stay.
    pub(super) fn address(&mut self, to: Register, address: u64) {
        if !self.places.relative {
            self.asm.mov_imm(to, address);
            return;
        }
        let from_page = address.wrapping_sub(self.start & !PAGE_OFFSET) as i64;
        self.asm.rm(Code::Mov_r64_rm64, to, in_state(at::PAGE));
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
        if self.start & PAGE_OFFSET < 1 << JUMP_SHIFT && self.places.chains {
            // When the bell has been rung, a jump to the first entry of a jump cache, of all, gets here.
            self.poll(self.start, 0);
        }
        if level != 0 || x87 {
            self.want_units(level, x87);
        }
        self.charge();
        self.lend();
        self.asm.bind(self.again);
    }

    /// Makes vector registers at `level` available, and the x87's if `x87`.
    fn want_units(&mut self, level: u32, x87: bool) {
        let (from, back) = (self.asm.label(), self.asm.label());
        if level > 0 {
            let loaded = in_state(at::LOADED);
            self.asm.mi(Code::Cmp_rm32_imm8, loaded, level as i32);
            self.asm.jcc(super::asm::Cond::Below, from);
        }
        if x87 {
            let loaded = in_state(at::X87);
            self.asm.mi(Code::Cmp_rm32_imm8, loaded, 0);
            self.asm.jcc(super::asm::Cond::Equal, from);
        }
        self.asm.bind(back);
        self.wanted = Some(Wanted { from, back, units: level | if x87 { X87 } else { 0 } });
    }

    /// Translates one instruction; returns whether nothing comes after it. `next` is what does.
    fn instruction(&mut self, input: &Input, next: Option<&Instruction>) -> bool {
        let ends = input.op.flags.contains(OpFlags::ENDS_BLOCK);
        let overwritten = self.before_overwriting();
        let ended = self.translate(input, next, ends);
        if overwritten {
            self.flags.forget_recipe(self.index);
        }
        self.follow_windows(input.insn.as_ref());
        ended
    }

    fn translate(&mut self, input: &Input, next: Option<&Instruction>, ends: bool) -> bool {
        if let Some(insn) = input.insn.as_ref().filter(|insn| self.can_address(insn)) {
            if !matches!(insn.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch) {
                self.settle_notes();
            }
            if let Some(ended) = self.control(insn, input) {
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
        self.interpret(Site::new(self.number, self.index), self.lent);
        self.flags = Flags::saved();
        self.windows = [None; WINDOWS];
    }

    /// Executes the instruction at `site` with the interpreter. The flags are saved.
    fn interpret(&mut self, site: Site, lent: bool) {
        self.give_back_loans(lent);
        self.asm.mov_imm(S2, site.0.into());
        self.asm.call_to(self.places.step);
        if lent {
            self.lend();
        }
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
        let from = self.asm.label();
        let back = self.asm.label();
        let (notes, recipe, lent) = (self.notes, self.flags.recipe_if_needed(), self.lent);
        let op = self.index;
        let store = None;
        self.slow.push(Slow { from, back, op, probe, flags: false, recipe, notes, lent, store });
        from
    }

    /// The probe that was written last, if one was for the instruction, is for `store`.
    pub(super) fn is_for(&mut self, store: Store) {
        let last = self.slow.last_mut().filter(|slow| slow.op == self.index);
        let write = |slow: &&mut Slow| slow.probe.is_some_and(|probe| probe.what == Missed::Write);
        if let Some(slow) = last.filter(write) {
            slow.store = Some(store);
        }
    }

    /// The instruction is done: whatever went to its places out of line comes back here.
    pub(super) fn slow_returns(&mut self) {
        let live = self.flags.live;
        for slow in self.slow.iter_mut().rev().take_while(|slow| slow.op == self.index) {
            slow.flags = live;
            self.asm.bind(slow.back);
        }
    }

    /// A place out of line that leaves to go on at `rip`, with `left` instructions taken off the budget
    /// that are not executed. Flags have to be saved.
    pub(super) fn leave_out_of_line(&mut self, rip: u64, left: usize) -> Label {
        let from = self.asm.label();
        self.polls.push(Poll { from, rip, notes: self.notes, left, lent: self.lent });
        from
    }

    /// Memory that holds general register `n` while it has no register.
    pub(super) fn home(&self, n: usize) -> MemoryOperand {
        in_state(at::gpr(n))
    }

    /// A register with general register `n` in it: its own, or `scratch`.
    pub(super) fn read_gpr(&mut self, n: usize, scratch: Register) -> Register {
        match self.place_of(n & 15) {
            Some(register) => register,
            None => {
                if !self.is_at_hand(n & 15, scratch) {
                    let home = self.home(n & 15);
                    self.asm.rm(Code::Mov_r64_rm64, scratch, home);
                }
                scratch
            }
        }
    }

    /// Whether `scratch` has what general register `n` has in memory.
    pub(super) fn is_at_hand(&self, n: usize, scratch: Register) -> bool {
        let place = self.asm.straight();
        place.is_some_and(|place| self.at_hand == Some((place, n, scratch)))
    }

    /// Sets general register `n` to `from`.
    pub(super) fn write_gpr(&mut self, n: usize, from: Register) {
        match self.place_of(n & 15) {
            Some(register) => self.asm.mov(register, from),
            None => {
                let home = self.home(n & 15);
                self.asm.mr(Code::Mov_rm64_r64, home, from);
                self.at_hand = Some((self.asm.len(), n & 15, from));
            }
        }
    }

    /// If something may want the CPU's attention, leaves to go on at `rip`, as [`Self::leave_out_of_line`]
    /// does. Flags have to be saved.
    pub(super) fn poll(&mut self, rip: u64, left: usize) {
        let exit = self.leave_out_of_line(rip, left);
        self.poll_to(exit);
    }

    fn poll_to(&mut self, exit: Label) {
        self.look_at_bell();
        self.asm.jcc(super::asm::Cond::Equal, exit);
    }

    /// Leaves "equal" if something may want the CPU's attention. Flags have to be saved.
    pub(super) fn look_at_bell(&mut self) {
        self.asm.mi(Code::Cmp_rm32_imm8, in_state(at::BELL), 0);
        self.destroyed();
    }

    /// Leaves "not equal" if an interrupt waits, which the bell may no longer tell if interrupts were disabled
    /// when it was rung. Flags have to be saved, and [`S2`] is used.
    pub(super) fn look_for_interrupt(&mut self) {
        self.asm.rm(Code::Mov_r64_rm64, S2, in_state(at::SIGNALS));
        self.asm.mi(Code::Test_rm32_imm32, super::asm::at(S2), Signal::Interrupt as i32);
        self.destroyed();
    }

    /// A place behind the last instruction that leads to `target`, from the instruction at `rip`.
    pub(super) fn exit(&mut self, rip: u64, target: u64) -> Label {
        let exit = self.exit_now(rip, target);
        let from = exit.from;
        self.exits.push(exit);
        from
    }

    /// The same, for [`Self::write_exit`].
    pub(super) fn exit_now(&mut self, rip: u64, target: u64) -> Exit {
        let (save, backward) = (!self.flags.saved, target <= rip);
        let (from, notes, left) = (self.asm.label(), self.notes, self.left());
        Exit { from, target, save, backward, notes, left }
    }

    /// Leads to another place.
    pub(super) fn write_exit(&mut self, exit: Exit) {
        self.flags.saved = !exit.save;
        self.flags.live = true;
        self.save();
        self.write_notes(exit.notes);
        self.give_back(exit.left);
        if exit.backward {
            let (from, rip) = (self.asm.label(), exit.target);
            let lent = self.lent;
            self.polls.push(Poll { from, rip, notes: Notes::default(), left: 0, lent });
            self.poll_to(from);
        }
        let near = self.is_near(exit.target);
        if !(near && self.is_again(exit.target)) {
            self.give_back_loans(self.lent);
        }
        if near {
            self.jump_linked(None, exit.target);
        } else {
            self.jump_far(exit.target);
        }
    }

    /// Whether a jump to `target` stays in this translation.
    pub(super) fn is_again(&self, target: u64) -> bool {
        // Code that does not have all windows is for one time.
        target == self.start && self.places.chains && self.places.windows == Windows::Wide
    }

    /// Jumps to `target`, in this page, on a condition as encoded or in any case. Nothing is lent, unless it
    /// stays in this translation.
    pub(super) fn jump_linked(&mut self, condition: Option<u8>, target: u64) {
        if !self.is_again(target) {
            self.jump_changeable(condition, target, Windows::Wide);
            return;
        }
        // What instructions are charged for is before the other.
        let to = if self.places.counts { self.top } else { self.again };
        match condition {
            Some(condition) => self.asm.jcc_raw(condition, to),
            None => self.asm.jmp(to),
        }
    }

    /// The same to another translation, which may have these `windows`.
    pub(super) fn jump_changeable(&mut self, condition: Option<u8>, target: u64, windows: Windows) {
        let from = self.asm.label();
        let displacement = self.asm.jump_changeable(condition, from);
        let returns = false;
        self.unlinked.push(Unlinked { from, target, displacement, windows, returns });
    }

    /// Where what has to be stored runs from one page into another, and the thunk has given it a place
    /// ("above"), stores it there and goes on behind the instruction.
    fn store_across_pages(&mut self, slow: &Slow) {
        let elsewhere = self.asm.label();
        let store = slow.store.filter(|_| !slow.flags);
        // The other engine's writes are compared one by one.
        let Some(Store { code, from, size }) = store.filter(|_| self.places.chains) else {
            return;
        };
        self.asm.jcc(super::asm::Cond::BelowEqual, elsewhere);
        if let Some(from) = from {
            let home = self.home(from);
            self.asm.rm(Code::Mov_r64_rm64, S2, home);
        }
        self.asm.put(&code);
        self.asm.mov_imm(S2, size as u64);
        self.asm.call_to(self.places.written);
        self.asm.jmp(slow.back);
        self.asm.bind(elsewhere);
    }

    fn finish(mut self) -> Compiled {
        let lent = !self.loans.is_empty();
        for exit in std::mem::take(&mut self.exits) {
            self.asm.bind(exit.from);
            self.lent = lent;
            self.write_exit(exit);
        }
        self.asm.go_out_of_line();
        self.finish_windows();
        for Unlinked { from, target, displacement, windows, returns } in
            std::mem::take(&mut self.unlinked)
        {
            let unlinked = self.asm.len();
            self.asm.bind(from);
            if returns {
                self.entry();
            }
            let link = (self.first_link + self.links.len() + 1) as u64;
            self.asm.mov_imm(S2, (target & PAGE_OFFSET) << 32 | link);
            self.asm.jmp_to(self.places.leave_by_link);
            self.links.push(LinkSite { displacement, unlinked, target, windows, returns });
        }
        self.finish_far();
        self.finish_returns();
        for LookUp { from, begin, unknown } in std::mem::take(&mut self.look_ups) {
            self.asm.bind(from);
            self.asm.call_to(self.places.refill[Missed::Code as usize]);
            self.asm.jcc(super::asm::Cond::Below, begin);
            self.asm.jmp(unknown);
        }
        for slow in std::mem::take(&mut self.slow) {
            self.asm.bind(slow.from);
            if let Some(Probe { begin, end, what }) = slow.probe {
                self.asm.call_to(self.places.refill[what as usize]);
                self.asm.jcc(super::asm::Cond::Below, begin);
                if what == Missed::Read {
                    self.asm.jcc(super::asm::Cond::Above, end);
                }
                if what == Missed::Write {
                    self.store_across_pages(&slow);
                }
            }
            if let Some(recipe) = &slow.recipe {
                self.cook(recipe);
                self.put_flags();
            }
            self.write_notes(slow.notes);
            self.interpret(Site::new(self.number, slow.op).for_access(), slow.lent);
            if slow.flags {
                self.restore_flags();
            }
            self.asm.jmp(slow.back);
        }
        for Poll { from, rip, notes, left, lent } in std::mem::take(&mut self.polls) {
            self.asm.bind(from);
            self.write_notes(notes);
            self.give_back(left);
            self.give_back_loans(lent);
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
        let Self { asm, links, far_links, stepped, .. } = self;
        Compiled { code: asm.finish(), links, far_links, stepped }
    }
}

/// What is known of each of `input`.
fn facts(input: &[Input]) -> Vec<Facts> {
    let mut info = InstructionInfoFactory::new();
    let of = |input: &Input| {
        let Some(insn) = &input.insn else {
            return Facts { accesses: [OpAccess::None; 5], changed: u16::MAX, used: u16::MAX };
        };
        let info = info.info_options(insn, InstructionInfoOptions::NO_MEMORY_USAGE);
        let (mut used, mut changed) = (0, 0);
        for register in info.used_registers().iter().filter(|used| used.register().is_gpr()) {
            let bit = 1 << number(register.register());
            used |= bit;
            changed |= if writes(register.access()) { bit } else { 0 };
        }
        Facts { accesses: std::array::from_fn(|n| info.op_access(n as u32)), changed, used }
    };
    input.iter().map(of).collect()
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
