//! Several accesses to memory by one probe of the TLB.
//!
//! Code reaches what is on the stack, in a structure or in an array by the same registers and displacements
//! that are near to each other. The first such access probes for a *window* in which those that follow lie,
//! too, and keeps where that is on the host; they need no probe. A window that has been probed for writes may
//! be read; one that has been probed for reads may not be written, as only a write makes a page dirty. So if
//! reads come first, and a write is sure to follow, the window is probed for writes that make nothing dirty:
//! of a page that is not dirty yet, it can't be reached.
//!
//! The registers may change by constants in between, as the stack pointer does. Anything else that might
//! make the window something else ends it: an instruction that the interpreter executes, and the end of
//! the translation. Between two looks at the signals, no entry of the TLB is taken away.
//!
//! Where a window is not all in one page that can be reached, the code goes on in a translation from the
//! same instruction on whose windows are each in one page, as the registers are when it is made: what is on
//! the stack stays where it is for a while. Where such a window is not in one page either, the code goes
//! on without windows.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::asm::{Cond, Label, at_plus, in_state, low32};
use super::compile::{Compiler, Facts, Input, Places, writes};
use super::flags::{Recipe, is_simple};
use super::integer::is_prefetch;
use super::memory::{For, number, purpose, sum};
use super::regs::{S1, S2, sized};
use super::state::{WINDOWS, at};
use super::thunks::Missed;
use super::vector::must_be_aligned;
use super::x87::Notes;
use crate::host::PAGE_OFFSET;

/// Most bytes of a window.
pub(super) const MAX_WINDOW: i64 = 128;
/// How many instructions are looked at for accesses that share a window.
const LOOK_AHEAD: usize = 40;

/// Number of the stack pointer.
const RSP: usize = 4;
/// Number of the frame pointer.
const RBP: usize = 5;

/// Which windows a translation may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Windows {
    /// Any.
    Wide,
    /// Those that are in one page as long as the registers are what they were when it was made.
    InPage,
    None,
}

impl Windows {
    /// What a translation may have in which code goes on where these can't be reached.
    fn fewer(self) -> Self {
        match self {
            Self::Wide => Self::InPage,
            Self::InPage | Self::None => Self::None,
        }
    }
}

/// What an address is relative to: general registers by number, and what the second is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    base: Option<usize>,
    index: Option<(usize, u32)>,
}

impl Place {
    fn at(base: usize) -> Self {
        Self { base: Some(base), index: None }
    }

    /// By how much `insn`, which changes the general registers `changed`, changes it, if that is known.
    fn change(&self, insn: &Instruction, changed: u16) -> Option<i64> {
        let of = |register: usize| match changed & 1 << register {
            0 => Some(0),
            _ => known_change(insn, register),
        };
        let base = self.base.map_or(Some(0), of)?;
        let index = self.index.map_or(Some(0), |(n, scale)| Some(of(n)? * i64::from(scale)))?;
        Some(base + index)
    }
}

/// An access to memory by registers and a displacement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touch {
    place: Place,
    displacement: i64,
    size: i64,
    written: bool,
    /// It has to be a multiple of its size.
    aligned: bool,
}

/// A window that is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    place: Place,
    /// What it holds, relative to what the registers have now.
    from: i64,
    to: i64,
    written: bool,
    /// What is known to be a multiple of what, in the same way.
    aligned: Option<(i64, i64)>,
}

impl Window {
    fn has(&self, touch: &Touch) -> bool {
        self.place == touch.place
            && self.from <= touch.displacement
            && touch.displacement + touch.size <= self.to
            && (self.written || !touch.written)
    }

    /// Whether it is known that `touch` is where it has to be.
    fn is_aligned(&self, touch: &Touch) -> bool {
        let known = |(at, size)| size >= touch.size && (touch.displacement - at) % touch.size == 0;
        !touch.aligned || self.aligned.is_some_and(known)
    }

    /// One that holds both, if it is not too large.
    fn with(&self, touch: &Touch, moved: i64) -> Option<Self> {
        let at = touch.displacement.checked_add(moved)?;
        let (from, to) = (self.from.min(at), self.to.max(at.checked_add(touch.size)?));
        let near = to.checked_sub(from)? <= MAX_WINDOW && i32::try_from(from).is_ok();
        let fits = near && touch.place == self.place;
        fits.then_some(Self { from, to, written: self.written || touch.written, ..*self })
    }
}

/// Code out of line for a window that can't be reached, or not be used by an instruction.
pub(super) struct WindowMiss {
    from: Label,
    /// Where it was probed for and for what, if that was it.
    probe: Option<(Label, Missed)>,
    rip: u64,
    recipe: Option<Recipe>,
    notes: Notes,
}

/// By how much `insn`, which changes general register `base`, changes it, if that is known.
fn known_change(insn: &Instruction, base: usize) -> Option<i64> {
    let is_base = |register: Register| register.is_gpr64() && number(register) == base;
    if base == RSP && matches!(insn.mnemonic(), Mnemonic::Push | Mnemonic::Pop) {
        let pops_itself = insn.mnemonic() == Mnemonic::Pop
            && insn.op0_kind() == OpKind::Register
            && number(insn.op0_register()) == RSP;
        return (!pops_itself).then(|| insn.stack_pointer_increment().into());
    }
    if insn.op0_kind() != OpKind::Register || !is_base(insn.op0_register()) {
        return None;
    }
    match insn.code() {
        Code::Add_rm64_imm8 => Some(insn.immediate8to64()),
        Code::Add_rm64_imm32 => Some(insn.immediate32to64()),
        Code::Sub_rm64_imm8 => Some(-insn.immediate8to64()),
        Code::Sub_rm64_imm32 => Some(-insn.immediate32to64()),
        Code::Inc_rm64 => Some(1),
        Code::Dec_rm64 => Some(-1),
        Code::Lea_r64_m if is_base(insn.memory_base()) && insn.memory_index() == Register::None => {
            Some(insn.memory_displacement64() as i64)
        }
        _ => None,
    }
}

/// What each of `input` accesses, if that may share a window in a translation with these `places`.
pub(super) fn touches(input: &[Input], facts: &[Facts], places: &Places) -> Vec<Option<Touch>> {
    let has_windows =
        places.windows != Windows::None && places.wide && places.chains && !places.counts;
    if !has_windows {
        return vec![None; input.len()];
    }
    input.iter().zip(facts).map(|(input, facts)| touch(input.insn.as_ref()?, facts)).collect()
}

/// What `insn` accesses, if that may share a window.
fn touch(insn: &Instruction, facts: &Facts) -> Option<Touch> {
    let word = |place, displacement, written| {
        Some(Touch { place, displacement, size: 8, written, aligned: false })
    };
    let stack = |displacement, written| word(Place::at(RSP), displacement, written);
    match insn.mnemonic() {
        Mnemonic::Push if insn.op0_kind() != OpKind::Memory => {
            (insn.stack_pointer_increment() == -8).then(|| stack(-8, true))?
        }
        Mnemonic::Call if insn.is_call_near() => stack(-8, true),
        Mnemonic::Pop if insn.op0_kind() == OpKind::Register => {
            (insn.stack_pointer_increment() == 8).then(|| stack(0, false))?
        }
        Mnemonic::Ret => stack(0, false),
        Mnemonic::Leave => word(Place::at(RBP), 0, false),
        mnemonic if is_prefetch(mnemonic) => None,
        _ => touched_operand(insn, facts),
    }
}

/// The same for an operand that is written out.
fn touched_operand(insn: &Instruction, facts: &Facts) -> Option<Touch> {
    let operand = (0..insn.op_count()).find(|&n| insn.op_kind(n) == OpKind::Memory)?;
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let is_whole = |register: Register| register == Register::None || register.is_gpr64();
    let plain = (base, index) != (Register::None, Register::None)
        && is_whole(base)
        && is_whole(index)
        && !matches!(insn.memory_segment(), Register::FS | Register::GS)
        && is_simple(insn);
    let written = writes(facts.accesses[operand as usize]);
    let usual = matches!(purpose(insn, written), For::Read | For::Write);
    let size = insn.memory_size().size() as i64;
    let named = |register: Register| register.is_gpr64().then(|| number(register));
    let index = named(index).map(|index| (index, insn.memory_index_scale()));
    (plain && usual && size > 0).then(|| Touch {
        place: Place { base: named(base), index },
        displacement: insn.memory_displacement64() as i64,
        size,
        written,
        aligned: must_be_aligned(insn),
    })
}

impl Compiler<'_> {
    /// The window for `touch`, which is the current instruction's, and what follows; `None` if there is
    /// nothing to share it with.
    fn window(&self, touch: &Touch) -> Option<Window> {
        let Touch { place, displacement, size, written, .. } = *touch;
        let to = displacement.checked_add(size)?;
        let mut window = Window { place, from: displacement, to, written, aligned: None };
        let (mut moved, mut others, mut sure) = (0, 0, true);
        for index in self.index..self.input.len().min(self.index + LOOK_AHEAD) {
            let Some(insn) = &self.input[index].insn else { break };
            if index != self.index
                && let Some(touch) = &self.touches[index]
                && let Some(wider) = window.with(touch, moved)
                && (wider.written == window.written || sure)
                && self.may_be(&wider)
            {
                window = wider;
                others += 1;
            }
            if !is_simple(insn) {
                // A branch may leave before the write.
                sure = false;
                if !insn.is_jcc_short_or_near() {
                    break;
                }
            }
            let Some(change) = place.change(insn, self.facts[index].changed) else { break };
            moved += change;
        }
        (others > 0).then_some(window)
    }

    /// Whether `window` is one that the translation may have.
    fn may_be(&self, window: &Window) -> bool {
        if self.places.windows == Windows::Wide {
            return true;
        }
        let now = |n: usize| Some(self.places.registers[n].wrapping_add_signed(self.drift[n]?));
        let Place { base, index } = window.place;
        let base = base.map_or(Some(0), now);
        let index = index.map_or(Some(0), |(n, scale)| Some(now(n)?.wrapping_mul(scale.into())));
        base.zip(index).is_some_and(|(base, index)| {
            let at = base.wrapping_add(index);
            let ends = [window.from, window.to - 1].map(|end| at.wrapping_add_signed(end));
            ends[0] & !PAGE_OFFSET == ends[1] & !PAGE_OFFSET
        })
    }

    /// How many instructions come before the next that accesses what `window` has.
    fn next_use(&self, window: &Window) -> Option<usize> {
        let mut moved = 0;
        for index in self.index..self.input.len().min(self.index + LOOK_AHEAD) {
            let here = Window { from: window.from - moved, to: window.to - moved, ..*window };
            if self.touches[index].as_ref().is_some_and(|touch| here.has(touch)) {
                return Some(index - self.index);
            }
            let insn = self.input[index].insn.as_ref()?;
            moved += window.place.change(insn, self.facts[index].changed)?;
        }
        None
    }

    /// If the current instruction's access has a window, or opens one: puts into [`S1`] what the address on
    /// the host is relative to, and returns the difference.
    pub(super) fn access_in_window(&mut self) -> Option<i64> {
        let touch = self.touches[self.index]?;
        let open = self.windows.iter().position(|window| window.is_some_and(|w| w.has(&touch)));
        if let Some(slot) = open {
            let mut window = self.windows[slot]?;
            if self.window_at_hand != Some((slot, self.asm.s1_changed())) {
                self.asm.rm(Code::Mov_r64_rm64, S1, in_state(at::WINDOWS + 8 * slot as u32));
                self.window_at_hand = Some((slot, self.asm.s1_changed()));
            }
            self.check_alignment(&mut window, &touch);
            self.windows[slot] = Some(window);
            return Some(touch.displacement - window.from);
        }
        let window = self.window(&touch)?;
        // In the place of one that is not open, or is not needed for the longest time.
        let needed = |window: &Window| self.next_use(window).unwrap_or(usize::MAX - 1);
        let slot = (0..WINDOWS)
            .rev()
            .max_by_key(|&slot| self.windows[slot].as_ref().map_or(usize::MAX, needed))?;
        self.open(window, slot, &touch);
        Some(touch.displacement - window.from)
    }

    /// Where `touch` has to be aligned and it is not known that it is: goes on without windows if it is not.
    /// [`S1`] is where `window` begins. Uses [`S2`].
    fn check_alignment(&mut self, window: &mut Window, touch: &Touch) {
        if window.is_aligned(touch) {
            return;
        }
        window.aligned = Some((touch.displacement, touch.size));
        self.save_for_access();
        let misaligned = self.asm.label();
        self.miss(misaligned, None);
        let operand = at_plus(S1, touch.displacement - window.from);
        self.asm.rm(Code::Lea_r32_m, low32(S2), operand);
        self.asm.ri(Code::Test_rm8_imm8, sized(S2, 1), touch.size as i32 - 1);
        self.asm.jcc(Cond::NotEqual, misaligned);
        self.destroyed();
    }

    /// Probes for `window`, of which `touch` is accessed now, and keeps where it is in `slot` and in [`S1`].
    fn open(&mut self, mut window: Window, slot: usize, touch: &Touch) {
        self.save_for_access();
        let Place { base, index } = window.place;
        let base = base.map(|n| self.read_gpr(n, S1));
        let index = index.map(|(n, scale)| (self.read_gpr(n, S2), scale));
        match base.filter(|_| index.is_none() && window.from == 0) {
            Some(base) => self.asm.mov(S1, base),
            None => {
                let operand = sum(base, index, window.from);
                self.asm.rm(Code::Lea_r64_m, S1, operand);
            }
        }
        // That fault comes before anything that a walk of page tables does.
        self.check_alignment(&mut window, touch);
        let (from, begin) = (self.asm.label(), self.asm.label());
        let what = match (window.written, touch.written) {
            (false, _) => Missed::Read,
            (true, false) => Missed::Update,
            (true, true) => Missed::Write,
        };
        self.miss(from, Some((begin, what)));
        self.asm.bind(begin);
        self.probe_at((window.to - window.from) as usize, window.written, from);
        self.asm.mr(Code::Mov_rm64_r64, in_state(at::WINDOWS + 8 * slot as u32), S1);
        self.window_at_hand = Some((slot, self.asm.s1_changed()));
        self.windows[slot] = Some(window);
    }

    /// A jump to `from` goes on without windows, unless `probe` can succeed.
    fn miss(&mut self, from: Label, probe: Option<(Label, Missed)>) {
        let (recipe, notes) = (self.flags.recipe_if_needed(), self.notes);
        let rip = self.input[self.index].op.rip();
        self.window_misses.push(WindowMiss { from, probe, rip, recipe, notes });
    }

    /// The current instruction is done: registers have changed.
    pub(super) fn follow_windows(&mut self, insn: Option<&Instruction>) {
        let changed = self.facts[self.index].changed;
        for (register, drift) in self.drift.iter_mut().enumerate() {
            if changed & 1 << register != 0 {
                let change = insn.and_then(|insn| known_change(insn, register));
                *drift = drift.zip(change).map(|(drift, change)| drift.wrapping_add(change));
            }
        }
        for window in &mut self.windows {
            let Some(open) = window else { continue };
            match insn.and_then(|insn| open.place.change(insn, changed)) {
                Some(change) => {
                    open.from -= change;
                    open.to -= change;
                    open.aligned = open.aligned.map(|(at, size)| (at - change, size));
                }
                None => *window = None,
            }
        }
    }

    /// Writes the code out of line for windows that were not reached.
    pub(super) fn finish_windows(&mut self) {
        for miss in std::mem::take(&mut self.window_misses) {
            let WindowMiss { from, probe, rip, recipe, notes } = miss;
            self.asm.bind(from);
            if let Some((begin, what)) = probe {
                let elsewhere = self.asm.label();
                // The page is at hand, but the window goes beyond it.
                self.asm.ri(Code::Cmp_rm64_imm32, S1, PAGE_OFFSET as i32);
                self.asm.jcc(Cond::BelowEqual, elsewhere);
                self.asm.call_to(self.places.refill[what as usize]);
                self.asm.jcc(Cond::Below, begin);
                self.asm.bind(elsewhere);
            }
            if let Some(recipe) = &recipe {
                self.cook(recipe);
                self.put_flags();
            }
            self.write_notes(notes);
            self.give_back_loans(!self.loans.is_empty());
            self.jump_changeable(None, rip, self.places.windows.fewer());
        }
    }
}
