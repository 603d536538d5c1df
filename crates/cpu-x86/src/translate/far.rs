//! Direct jumps from one page to another.
//!
//! Where the other page is, is for the page tables to say, and they may say something else tomorrow, or in
//! another address space. So each jump cache has a table beside it that tells for pages which *mapping* they are
//! now: the number that [`Cache::mapping`](super::cache::Cache::mapping) gives to a page of memory, and to the
//! address that its translations are for if they are for one only. It is filled and emptied with the jump cache. A
//! jump compares that with what it was when it was made to lead to its target, goes there directly if it still
//! is the same, and by the jump cache otherwise.
//!
//! While it does not lead anywhere, it expects a mapping that there never is, and leaves to be linked. It is linked
//! to translations for one mapping only: a CPU that has compared and not jumped yet must not get to another.

use iced_x86::{Code, Register};

use super::asm::{Cond, Label, at_plus, in_state, low32, near_plus_8};
use super::compile::Compiler;
use super::control::CODE;
use super::regs::{S1, S2};
use super::state::{Jump, PAGES, at, page_index};
use crate::host::PAGE_OFFSET;

/// The mapping that no page is.
pub(super) const NEVER: u32 = u32::MAX;

/// Set in the number of a link, from 1, that is a jump's to another page.
pub(super) const FAR: u32 = 1 << 31;

/// A jump to another page, by offsets in the order in which the code was written.
pub(super) struct FarSite {
    /// The mapping that is expected.
    pub(super) guard: usize,
    /// The displacement of the jump to the target, which comes after.
    pub(super) jump: usize,
    /// The displacement of the jump that is executed where the mapping is another one.
    pub(super) other: usize,
    /// Where that leads while the jump is not linked. When it is, it leads to the thunk that looks into the jump cache.
    pub(super) unlinked: usize,
    pub(super) target: u64,
}

/// Code out of line for such a jump.
pub(super) struct Far {
    from: Label,
    guard: usize,
    jump: usize,
    target: u64,
}

impl Compiler<'_> {
    /// Goes to `target` in another page. The flags are saved, and nothing is lent.
    pub(super) fn jump_far(&mut self, target: u64) {
        if !self.places.chains {
            self.jump_by_cache(target, self.places.class);
            return;
        }
        let from = self.asm.label();
        let (page, pages) = (target & !PAGE_OFFSET, self.places.pages());
        let mapping = if self.places.relative {
            self.address(S1, page);
            self.asm.rri(Code::VEX_Rorx_r64_rm64_imm8, S2, S1, 11);
            self.asm.ri(Code::And_rm32_imm32, low32(S2), 2 * (PAGES as i32 - 1));
            self.asm.rm(Code::Cmp_r64_rm64, S1, near_plus_8(pages, S2));
            self.asm.jcc(Cond::NotEqual, from);
            near_plus_8(pages + CODE, S2)
        } else {
            let entry = pages + (size_of::<Jump>() * page_index(page)) as i32;
            at_plus(Register::RSP, (entry + CODE).into())
        };
        let guard = self.asm.compare_changeable(mapping, NEVER as i32);
        self.asm.jcc(Cond::NotEqual, from);
        self.destroyed();
        self.set_page(page);
        let jump = self.asm.jump_changeable(None, from);
        self.far.push(Far { from, guard, jump, target });
    }

    /// Notes that what comes next is in the page at `page`, which is in [`S1`] if code is relative.
    fn set_page(&mut self, page: u64) {
        let here = in_state(at::PAGE);
        match i32::try_from(page as i64) {
            Ok(page) if !self.places.relative => {
                self.asm.mi(Code::Mov_rm64_imm32, here, page);
                return;
            }
            _ if self.places.relative => {}
            _ => self.asm.mov_imm(S1, page),
        }
        self.asm.mr(Code::Mov_rm64_r64, here, S1);
    }

    /// Writes code out of line for jumps to other pages.
    pub(super) fn finish_far(&mut self) {
        for Far { from, guard, jump, target } in std::mem::take(&mut self.far) {
            let not_linked = self.asm.label();
            self.asm.bind(from);
            self.address(S1, target);
            let other = self.asm.jump_changeable(None, not_linked);
            let unlinked = self.asm.len();
            self.asm.bind(not_linked);
            let link = FAR | (self.first_far + self.far_links.len() + 1) as u32;
            self.asm.mov_imm(S2, link.into());
            self.asm.jmp_to(self.places.leave_for_link);
            self.far_links.push(FarSite { guard, jump, other, unlinked, target });
        }
    }
}
