//! Where the guest's arithmetic flags are while a translation runs.
//!
//! At the beginning and wherever code leaves they are *saved*: in RAX. In between they may only be *live*:
//! in the host's flags. What destroys those has to see to it that they can be told at any point where the
//! instruction after may fault. So it saves them, or, cheaper, leaves them to a [`Recipe`]: the
//! instruction that made them is such that they can be made again from registers. A recipe is good until
//! one of its registers changes. The flags are brought back for an instruction that needs them.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register, RflagsBits};

use super::compile::{Compiler, Input};
use super::integer::{is_high_byte, is_unseen};
use super::memory::number;
use super::regs::sized;

/// Flags that arithmetic sets.
pub(super) const ARITH: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// How far ahead is looked before flags are left to a recipe.
const LOOK_AHEAD: usize = 12;

/// Where the flags are. Unless they are saved or live, they are left to the recipe.
#[derive(Clone, Copy)]
pub(super) struct Flags {
    /// They are in RAX.
    pub(super) saved: bool,
    /// They are in the host's.
    pub(super) live: bool,
    recipe: Option<Recipe>,
}

impl Flags {
    pub(super) fn saved() -> Self {
        Self { saved: true, live: false, recipe: None }
    }

    /// How they are made, if RAX does not have them.
    pub(super) fn recipe_if_needed(&self) -> Option<Recipe> {
        debug_assert!(
            self.saved || self.recipe.is_some(),
            "flags can be told where something may fault"
        );
        self.recipe.filter(|_| !self.saved)
    }

    /// Instruction `index` has changed registers that the recipe needs, unless the recipe is for its own
    /// flags.
    pub(super) fn forget_recipe(&mut self, index: usize) {
        self.recipe = self.recipe.filter(|recipe| recipe.index == index);
        debug_assert!(
            self.saved || self.live || self.recipe.is_some(),
            "flags that registers made are told before those change"
        );
    }
}

/// How the flags of an instruction can be made again after it, with RAX to work in.
#[derive(Clone, Copy)]
pub(super) struct Recipe {
    /// Which instruction it was.
    index: usize,
    /// The instruction with the host's registers.
    insn: Instruction,
    how: How,
    /// The guest's general registers that it needs, by number.
    needs: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// It changes no register: once more.
    Again,
    /// The flags tell of the result: TEST it.
    Result,
    /// Undo it in RAX by this instruction, and do it there again.
    Undo(Code),
}

/// The instruction that undoes an addition or a subtraction.
fn inverse(code: Code) -> Option<Code> {
    use Code::*;
    const PAIRS: [(Code, Code); 8] = [
        (Add_rm32_r32, Sub_rm32_r32),
        (Add_rm64_r64, Sub_rm64_r64),
        (Add_r32_rm32, Sub_r32_rm32),
        (Add_r64_rm64, Sub_r64_rm64),
        (Add_rm32_imm8, Sub_rm32_imm8),
        (Add_rm64_imm8, Sub_rm64_imm8),
        (Add_rm32_imm32, Sub_rm32_imm32),
        (Add_rm64_imm32, Sub_rm64_imm32),
    ];
    PAIRS.iter().find_map(|&(add, sub)| match code {
        _ if code == add => Some(sub),
        _ if code == sub => Some(add),
        _ => None,
    })
}

impl Recipe {
    /// That for `insn`, the instruction under translation, which `renamed` is with the host's registers; if
    /// there is one.
    fn of(compiler: &Compiler, insn: &Instruction, renamed: &Instruction) -> Option<Self> {
        use Mnemonic::*;
        let result = matches!(insn.mnemonic(), And | Or | Xor);
        let how = match insn.mnemonic() {
            Cmp | Test => How::Again,
            And | Or | Xor => How::Result,
            Add | Sub => How::Undo(inverse(renamed.code())?),
            _ => return None,
        };
        let mut needs = 0;
        for n in 0..insn.op_count().min(if result { 1 } else { 2 }) {
            match insn.op_kind(n) {
                OpKind::Register => {
                    let register = insn.op_register(n);
                    let guest = number(register);
                    if !register.is_gpr()
                        || is_high_byte(register)
                        || compiler.place_of(guest).is_none()
                    {
                        return None;
                    }
                    // What is added to itself is gone.
                    if matches!(how, How::Undo(_)) && needs & 1 << guest != 0 {
                        return None;
                    }
                    needs |= 1 << guest;
                }
                OpKind::Memory => return None,
                _ => {}
            }
        }
        Some(Self { index: compiler.index, insn: *renamed, how, needs })
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

    /// Whether nothing is left of what the flags were before, nor looked at.
    fn replaces(self) -> bool {
        self.writes && !self.keeps && !self.reads
    }
}

/// Whether `insn` leaves the flags alone when a count is zero, and that might be.
pub(super) fn may_count_zero(insn: &Instruction) -> bool {
    use Mnemonic::*;
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
pub(super) fn dead_flags(input: &[Input]) -> Vec<bool> {
    let mut dead = vec![false; input.len()];
    let mut seen = true;
    for (index, dead) in dead.iter_mut().enumerate().rev() {
        // After what follows STI the code may be left.
        let before = index.checked_sub(1).and_then(|before| input[before].insn);
        seen |= before.is_some_and(|insn| insn.mnemonic() == Mnemonic::Sti);
        *dead = !seen;
        let input = &input[index];
        match input.insn.filter(is_unseen) {
            None => seen = true,
            Some(insn) => {
                let flags = FlagUse::of(&insn);
                seen = flags.reads || seen && (flags.keeps || !flags.writes);
            }
        }
    }
    dead
}

/// Whether `insn` is one that mostly becomes code which needs no flags saved before it.
pub(super) fn is_simple(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let vector =
        |n| insn.op_kind(n) == OpKind::Register && super::vector::is_vector(insn.op_register(n));
    match insn.mnemonic() {
        Lea | Nop | Push | Pop | Leave | Cdqe | Cwde | Cbw | Cdq | Cqo | Imul | Mulx => true,
        mnemonic => {
            super::integer::is_plain(mnemonic)
                || super::integer::is_prefetch(mnemonic)
                || (0..insn.op_count()).any(vector)
        }
    }
}

impl Compiler<'_> {
    /// Puts the flags into RAX, so that the host's may be destroyed.
    pub(super) fn save(&mut self) {
        if !self.flags.saved {
            self.want_flags();
            self.put_flags();
            self.flags.saved = true;
        }
    }

    /// Has it that the flags can be told from here on, while the host's are destroyed.
    pub(super) fn save_for_access(&mut self) {
        if self.flags.live && !self.flags.saved && !self.recipe_pays() {
            self.save();
        }
    }

    /// Whether the flags had better be left to the recipe: until the next ones they are hardly wanted.
    fn recipe_pays(&self) -> bool {
        let Some(recipe) = self.flags.recipe else { return false };
        let ahead = self.input.iter().enumerate().skip(self.index).take(LOOK_AHEAD);
        for (index, input) in ahead {
            let Some(insn) = &input.insn else { return false };
            if insn.is_jcc_short_or_near() {
                return true;
            }
            if !is_simple(insn) {
                return false;
            }
            let flags = FlagUse::of(insn);
            let changes = self.facts[index].changed & recipe.needs != 0;
            if index == self.index && changes {
                return false;
            }
            if index > self.index && flags.reads || flags.replaces() {
                return true;
            }
            if changes {
                return false;
            }
        }
        false
    }

    /// Before an instruction is translated: tells whether it changes registers that the recipe for the flags
    /// needs. If the flags are left to it, they are saved.
    pub(super) fn before_overwriting(&mut self) -> bool {
        let Some(recipe) = self.flags.recipe else { return false };
        if self.facts[self.index].changed & recipe.needs == 0 {
            return false;
        }
        if !self.flags.live {
            self.save();
        }
        true
    }

    /// Whether flags that are live had better be saved now: somebody may want them after this instruction.
    pub(super) fn is_saved_soon(&self) -> bool {
        self.flags.recipe.is_none() && !self.dead[self.index]
    }

    /// Makes the host's flags the guest's.
    pub(super) fn want_flags(&mut self) {
        if self.flags.live {
            return;
        }
        match self.flags.recipe {
            Some(recipe) if !self.flags.saved => self.cook(&recipe),
            _ => self.restore_flags(),
        }
        self.flags.live = true;
    }

    /// Makes the host's flags by `recipe`. Uses RAX.
    pub(super) fn cook(&mut self, recipe: &Recipe) {
        let to = recipe.insn.op0_register();
        let size = to.size();
        match recipe.how {
            How::Again => self.asm.emit(&recipe.insn),
            How::Result => {
                let test = match size {
                    8 => Code::Test_rm64_r64,
                    4 => Code::Test_rm32_r32,
                    2 => Code::Test_rm16_r16,
                    _ => Code::Test_rm8_r8,
                };
                self.asm.rr(test, to, to);
            }
            How::Undo(inverse) => {
                self.asm.mov(Register::RAX, to.full_register());
                let mut insn = recipe.insn;
                insn.set_op0_register(sized(Register::RAX, size));
                let again = insn;
                insn.set_code(inverse);
                self.asm.emit(&insn);
                self.asm.emit(&again);
            }
        }
    }

    /// Puts the host's flags into RAX.
    pub(super) fn put_flags(&mut self) {
        // lahf; seto al
        self.asm.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// Makes what is in RAX the host's flags.
    pub(super) fn restore_flags(&mut self) {
        // cmp al, -127 overflows for 1 and does not for 0; sahf
        self.asm.raw(&[0x3c, 0x81, 0x9e]);
    }

    /// The host's flags are destroyed.
    pub(super) fn destroyed(&mut self) {
        debug_assert!(
            self.flags.saved || self.flags.recipe.is_some(),
            "flags are saved before they are destroyed, or can be made again"
        );
        self.flags.live = false;
    }

    /// The instruction has put new flags into the host's.
    pub(super) fn wrote_flags(&mut self) {
        self.flags = Flags { saved: false, live: true, recipe: None };
    }

    /// The host's flags are the guest's on this path.
    pub(super) fn still_live(&mut self) {
        self.flags.live = true;
    }

    /// Brings flags to where an instruction with these needs them.
    pub(super) fn before(&mut self, flags: FlagUse) {
        if flags.reads || flags.keeps && !self.dead[self.index] {
            self.want_flags();
        }
    }

    /// The counterpart of [`Self::before`], after `insn`, which was `renamed`.
    pub(super) fn after(&mut self, flags: FlagUse, insn: &Instruction, renamed: &Instruction) {
        if !flags.writes {
            return;
        }
        if self.dead[self.index] {
            // Nobody will miss them.
            self.flags = Flags::saved();
        } else {
            self.wrote_flags();
            self.flags.recipe = Recipe::of(self, insn, renamed);
        }
    }
}
