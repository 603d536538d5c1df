//! What translated code and the rest of the CPU exchange.

use std::mem::offset_of;

use crate::flags::bits::{AF, CF, OF, PF, SF, ZF};
use crate::host::PAGE_OFFSET;
use crate::near::{Plain, distance, distance_of_word};
use crate::tlb::{CLASSES, Class, FirstLevel};

/// Bits of an address that do not select an entry: there is hardly more than one target in four bytes.
pub(super) const JUMP_SHIFT: u32 = 2;

/// Words of the stack below what translated code has at hand.
const STACK: usize = 8192;

/// Where the guest's registers are when no translated code runs, and what it needs at hand.
///
/// While it runs, the stack pointer points to [`Self::page`]: what comes next is reached with a
/// displacement of 8 bits, and what is below are a stack's free places, where calls of thunks and the
/// host's signals may put what they want to.
#[repr(C)]
pub(super) struct State {
    stack: [u64; STACK],
    /// Where the page begins that the code is in which runs, in the segment.
    pub(super) page: u64,
    /// Address of the word of signals.
    pub(super) signals: u64,
    /// Whose vector registers the host has: 0 for its own, 1 for the guest's while SSE may run, 2 while
    /// AVX may.
    pub(super) loaded: u32,
    /// Whether the host has the guest's x87 registers.
    pub(super) x87: u32,
    /// Bases of FS and GS.
    pub(super) bases: [u64; 2],
    /// Values that need a place for a moment.
    pub(super) spare: [u64; 2],
    /// The general registers in [`FEW`].
    few: [u64; FEW.len()],
    /// Where windows are on the host; see `group`.
    pub(super) windows: [u64; WINDOWS],
    /// All others, by number.
    others: [u64; 16],
    /// What was in registers that are lent; see `loans`.
    pub(super) owned: [u64; FEW.len()],
    /// RFLAGS without the arithmetic flags.
    pub(super) system_flags: u64,
    /// The arithmetic flags as LAHF and SETO AL put them into RAX.
    pub(super) flags: u64,
    /// Where translated code was left, or is to be entered.
    pub(super) rip: u64,
    /// What left translated code: the link that it came from, or 0.
    pub(super) link: u64,
    /// The host's stack pointer where translated code was entered.
    pub(super) host_stack: u64,
    /// The `Context` of `enter`.
    pub(super) context: u64,
    /// Address of the helper that executes one instruction.
    pub(super) step: u64,
    /// Address of the helper that makes vector and x87 registers available.
    pub(super) units: u64,
    /// Address of the helper that refills the TLB.
    pub(super) refill: u64,
    /// Address of the helper that reads the time-stamp counter.
    pub(super) time: u64,
    /// What those two answer: the linear address that it was asked for, or of [`Self::joined`]; the
    /// counter.
    pub(super) address: u64,
    /// IA32_TSC_AUX, when the counter was last read.
    pub(super) tsc_aux: u64,
    /// RSI while the host's points elsewhere.
    pub(super) source: u64,
    /// RIP of the code at `spare[1]`, which is entered next.
    pub(super) target: u64,
    /// What SWAPGS exchanges GS's base with.
    pub(super) kernel_gs: u64,
    /// Where SYSCALL goes to from 64-bit code.
    pub(super) lstar: u64,
    /// The bits of RFLAGS that SYSCALL leaves as they are.
    pub(super) flag_mask: u64,
    /// SYSCALL and SYSRET may be executed by translated code: not 0 if so.
    pub(super) fast_calls: u32,
    /// Which of them was the last that the CPU has not heard of; 0 if none.
    pub(super) crossing: u32,
    /// CR2 and CR3.
    pub(super) cr2: u64,
    pub(super) cr3: u64,
    /// PKRU, and whether it may be read: not 0 if so.
    pub(super) pkru: [u32; 2],
    /// The selectors of all segments, by number.
    pub(super) selectors: [u32; 6],
    /// Accesses through FS and GS need no check: not 0 if so.
    pub(super) flat: [u32; 2],
    /// Where checked code is expected to go.
    pub(super) expected: u64,
    /// Instructions that may be executed, if they are counted.
    pub(super) budget: i64,
    /// Always 0.
    pub(super) never: u64,
    /// MXCSR of guest and host.
    pub(super) mxcsr: [u32; 2],
    /// Which x87 instruction was the last that is noted as such since they were loaded; see
    /// [`note_of`].
    pub(super) x87_last: u32,
    /// The last with a memory operand.
    pub(super) x87_data: u32,
    /// The page that the last was in.
    pub(super) x87_page: u64,
    /// The offset of its operand.
    pub(super) x87_pointer: u64,
    /// The same before it is known that the operand can be reached.
    pub(super) x87_next_pointer: u64,
    pub(super) xmm: [u128; 16],
    pub(super) ymm_high: [u128; 16],
    /// Where vector registers are while the TLB is refilled.
    pub(super) vectors: [u128; 32],
    pub(super) x87_image: X87Image,
    /// What is at the end of one page, and where another begins, for a read that runs from one into the other.
    /// In the same way, what is written in one piece before its parts go to their pages.
    pub(super) joined: [u8; 2 * JOINED],
    /// For such a write: its offset in the first page, where that is on the host, and where the second page
    /// is.
    pub(super) parts: [u64; 3],
}

impl State {
    /// The host has none of the guest's vector or x87 registers.
    pub(super) fn drop_units(&mut self) {
        (self.loaded, self.x87) = (0, 0);
    }

    pub(super) fn set_gpr(&mut self, gpr: &[u64]) {
        self.others.copy_from_slice(&gpr[..16]);
        self.few = FEW.map(|n| gpr[n]);
    }

    pub(super) fn copy_gpr(&self, gpr: &mut [u64]) {
        gpr[..16].copy_from_slice(&self.others);
        FEW.into_iter().zip(self.few).for_each(|(n, value)| gpr[n] = value);
    }
}

/// How many windows may be open at a time.
pub(super) const WINDOWS: usize = 8;

/// The general registers that no register of the host's is kept for: they are at hand.
const FEW: [usize; 4] = [10, 11, 14, 15];

/// More bytes than an instruction reads at a time.
pub(super) const JOINED: usize = 64;

/// The x87's part of what XSAVE saves.
#[repr(C, align(64))]
pub(super) struct X87Image {
    pub(super) control: u16,
    pub(super) status: u16,
    /// A bit for each physical register that is not empty.
    pub(super) valid: u16,
    pub(super) opcode: u16,
    pub(super) pointers: [u64; 2],
    pub(super) mxcsr: [u32; 2],
    /// ST(0) to ST(7).
    pub(super) st: [u128; 8],
    pub(super) others: [u128; 22],
    /// Which parts of the image are valid; and zeroes.
    pub(super) header: [u64; 8],
}

/// In [`State::crossing`]: SYSCALL to 64-bit code.
pub(super) const ENTERED_KERNEL: u32 = 1;
/// In [`State::crossing`]: SYSRET to 64-bit code.
pub(super) const LEFT_KERNEL: u32 = 2;

/// Jump caches: one a class for 64-bit code, and one for code of 32 bits.
pub(super) const JUMP_TABLES: usize = 2 * CLASSES;

/// Which is for code of `class`, of 64 bits if it is `wide`.
pub(super) fn jump_table(class: Class, wide: bool) -> usize {
    class as usize + if wide { 0 } else { CLASSES }
}

/// How many entries each has, a power of two.
pub(super) const JUMPS: usize = 1 << 16;

/// How many entries each table of returns has, a power of two.
pub(super) const RETURNS: usize = 1 << 9;

/// The bits of the stack pointer that tell the entry: half of how far that is from the first.
pub(super) const RETURN_MASK: u32 = 8 * (RETURNS as u32 - 1);

/// How many entries each table of pages has, a power of two.
pub(super) const PAGES: usize = 1 << 12;

/// The jump caches, and for each a table of pages (see `far`) and a table of returns, which is used in the same way: calls enter where the code
/// for their return address is, by where on the stack they put that, and returns look there before they look
/// into the jump cache. An entry is as good there as in the jump cache, whatever guests do to their stacks, as it
/// tells its address.
#[repr(C)]
pub(super) struct Tables {
    jumps: [[Jump; JUMPS]; JUMP_TABLES],
    /// Addresses of pages, and which mappings they are.
    pages: [[Jump; PAGES]; JUMP_TABLES],
    returns: [[Jump; RETURNS]; JUMP_TABLES],
}

impl Tables {
    /// Entry `index` of jump cache `table`.
    pub(super) fn get(&self, table: usize, index: usize) -> &Jump {
        &self.jumps[table][index % JUMPS]
    }

    /// See [`Self::get`].
    pub(super) fn get_mut(&mut self, table: usize, index: usize) -> &mut Jump {
        &mut self.jumps[table][index % JUMPS]
    }

    /// Empties the entries of jump cache `table` for the addresses in `page`.
    pub(super) fn empty_page(&mut self, table: usize, page: u64) {
        for offset in (0..=PAGE_OFFSET).step_by(1 << JUMP_SHIFT) {
            let index = jump_index(page | offset);
            let entry = self.get_mut(table, index);
            if entry.rip & !PAGE_OFFSET == page {
                entry.rip = no_jump(index);
            }
        }
    }

    /// The entry for `rip` in jump cache `table`.
    pub(super) fn entry(&self, table: usize, rip: u64) -> &Jump {
        self.get(table, jump_index(rip))
    }

    /// Enters that the page at `page` is `mapping` into the table of pages that belongs to jump cache `table`. Returns
    /// where that is.
    pub(super) fn set_page(&mut self, table: usize, page: u64, mapping: u32) -> usize {
        let index = page_index(page);
        self.pages[table][index] = Jump { rip: page, code: mapping.into() };
        index
    }

    /// Which mapping the page at `page` is by that table; 0 if it does not tell.
    pub(super) fn mapping(&self, table: usize, page: u64) -> u64 {
        let entry = &self.pages[table][page_index(page)];
        if entry.rip == page { entry.code } else { 0 }
    }

    /// Empties entry `index` of that table.
    pub(super) fn empty_mapping(&mut self, table: usize, index: usize) {
        self.pages[table][index % PAGES] = Jump { rip: 0, code: 0 };
    }

    /// Empties the table of returns that belongs to jump cache `table`. Entries are for a RIP of 0 then, with
    /// code that `leave`s for the address that it is given.
    pub(super) fn empty_returns(&mut self, table: usize, leave: u64) {
        self.returns[table].fill(Jump { rip: 0, code: leave });
    }
}

/// The word behind what is reached, while the bell has not been rung: for the jump caches by what an address is
/// masked to be twice the number of its entry, and [`RETURN_MASK`]. It is zero when something may want the CPU's
/// attention.
pub(super) const ARMED: u64 = (2 * (JUMPS as u64 - 1)) | ((RETURN_MASK as u64) << 32);

/// What translated code reaches by the stack pointer, beside the first-level TLB, which is at a known
/// distance.
#[repr(C)]
pub(super) struct Reached {
    pub(super) jumps: Tables,
    pub(super) state: State,
}

/// Where the code for a guest address is.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Jump {
    pub(super) rip: u64,
    pub(super) code: u64,
}

// SAFETY: integers only.
#[allow(unsafe_code)]
unsafe impl Plain for Reached {}

/// Offsets in [`State`].
pub(super) mod at {
    use super::{FEW, FirstLevel, Reached, State, Tables, distance, distance_of_word, offset_of};

    /// Where general register `n` is kept.
    pub(in super::super) fn gpr(n: usize) -> u32 {
        let offset = match FEW.iter().position(|&few| few == n) {
            Some(few) => offset_of!(State, few) + 8 * few,
            None => offset_of!(State, others) + 8 * n,
        };
        offset as u32
    }
    /// The first-level TLB, the jump caches and the tables of returns, all before the state: how far they are
    /// from its beginning.
    pub(in super::super) const TLB: u32 =
        (distance::<FirstLevel, Reached>() + offset_of!(Reached, state)) as u32;
    pub(in super::super) const JUMPS: u32 = offset_of!(Reached, state) as u32;
    pub(in super::super) const PAGES: u32 = JUMPS - offset_of!(Tables, pages) as u32;
    pub(in super::super) const RETURNS: u32 = JUMPS - offset_of!(Tables, returns) as u32;
    /// The word behind what is reached: for jump caches, and for the tables of returns.
    pub(in super::super) const BELL: u32 =
        (distance_of_word::<Reached>() - offset_of!(Reached, state)) as u32;
    pub(in super::super) const BELL_FOR_RETURNS: u32 = BELL + 4;
    pub(in super::super) const WINDOWS: u32 = offset_of!(State, windows) as u32;
    pub(in super::super) const OWNED: u32 = offset_of!(State, owned) as u32;
    pub(in super::super) const TOP: u32 = offset_of!(State, page) as u32;
    pub(in super::super) const HOST_STACK: u32 = offset_of!(State, host_stack) as u32;
    pub(in super::super) const FLAGS: u32 = offset_of!(State, flags) as u32;
    pub(in super::super) const SYSTEM_FLAGS: u32 = offset_of!(State, system_flags) as u32;
    pub(in super::super) const RIP: u32 = offset_of!(State, rip) as u32;
    pub(in super::super) const PAGE: u32 = offset_of!(State, page) as u32;
    pub(in super::super) const LINK: u32 = offset_of!(State, link) as u32;
    pub(in super::super) const BASES: u32 = offset_of!(State, bases) as u32;
    pub(in super::super) const SIGNALS: u32 = offset_of!(State, signals) as u32;
    pub(in super::super) const CONTEXT: u32 = offset_of!(State, context) as u32;
    pub(in super::super) const STEP: u32 = offset_of!(State, step) as u32;
    pub(in super::super) const UNITS: u32 = offset_of!(State, units) as u32;
    pub(in super::super) const REFILL: u32 = offset_of!(State, refill) as u32;
    pub(in super::super) const TIME: u32 = offset_of!(State, time) as u32;
    pub(in super::super) const TSC_AUX: u32 = offset_of!(State, tsc_aux) as u32;
    pub(in super::super) const CR2: u32 = offset_of!(State, cr2) as u32;
    pub(in super::super) const CR3: u32 = offset_of!(State, cr3) as u32;
    pub(in super::super) const PKRU: u32 = offset_of!(State, pkru) as u32;
    pub(in super::super) const SELECTORS: u32 = offset_of!(State, selectors) as u32;
    pub(in super::super) const ADDRESS: u32 = offset_of!(State, address) as u32;
    pub(in super::super) const SPARE: u32 = offset_of!(State, spare) as u32;
    pub(in super::super) const TARGET: u32 = offset_of!(State, target) as u32;
    pub(in super::super) const KERNEL_GS: u32 = offset_of!(State, kernel_gs) as u32;
    pub(in super::super) const LSTAR: u32 = offset_of!(State, lstar) as u32;
    pub(in super::super) const FLAG_MASK: u32 = offset_of!(State, flag_mask) as u32;
    pub(in super::super) const FAST_CALLS: u32 = offset_of!(State, fast_calls) as u32;
    pub(in super::super) const CROSSING: u32 = offset_of!(State, crossing) as u32;
    pub(in super::super) const FLAT: u32 = offset_of!(State, flat) as u32;
    pub(in super::super) const SOURCE: u32 = offset_of!(State, source) as u32;
    pub(in super::super) const EXPECTED: u32 = offset_of!(State, expected) as u32;
    pub(in super::super) const BUDGET: u32 = offset_of!(State, budget) as u32;
    pub(in super::super) const LOADED: u32 = offset_of!(State, loaded) as u32;
    pub(in super::super) const MXCSR: u32 = offset_of!(State, mxcsr) as u32;
    pub(in super::super) const X87: u32 = offset_of!(State, x87) as u32;
    pub(in super::super) const X87_LAST: u32 = offset_of!(State, x87_last) as u32;
    pub(in super::super) const X87_DATA: u32 = offset_of!(State, x87_data) as u32;
    pub(in super::super) const X87_PAGE: u32 = offset_of!(State, x87_page) as u32;
    pub(in super::super) const X87_POINTER: u32 = offset_of!(State, x87_pointer) as u32;
    pub(in super::super) const X87_NEXT_POINTER: u32 = offset_of!(State, x87_next_pointer) as u32;
    pub(in super::super) const PARTS: u32 = offset_of!(State, parts) as u32;
    pub(in super::super) const JOINED: u32 = offset_of!(State, joined) as u32;
    pub(in super::super) const X87_IMAGE: u32 = offset_of!(State, x87_image) as u32;
    pub(in super::super) const VECTORS: u32 = offset_of!(State, vectors) as u32;
    pub(in super::super) const XMM: u32 = offset_of!(State, xmm) as u32;
    pub(in super::super) const YMM_HIGH: u32 = offset_of!(State, ymm_high) as u32;
}

const _: () = assert!(at::TOP.is_multiple_of(16) && at::WINDOWS - at::TOP <= 128);
const _: () = assert!(size_of::<X87Image>() == 576 && offset_of!(X87Image, header) == 512);

/// Most translations at a time.
pub(super) const TRANSLATIONS: u32 = 1 << 25;

/// How translated code names one of its instructions to a helper: translation, index in it, and whether it is
/// executed only because of its access to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Site(pub(super) u32);

impl Site {
    const INDEX: u32 = 63;
    const FOR_ACCESS: u32 = 64;

    pub(super) fn new(number: u32, index: usize) -> Self {
        debug_assert!(number < TRANSLATIONS && index as u32 <= Self::INDEX);
        Self(number << 7 | index as u32 & Self::INDEX)
    }

    pub(super) fn for_access(self) -> Self {
        Self(self.0 | Self::FOR_ACCESS)
    }

    pub(super) fn is_for_access(self) -> bool {
        self.0 & Self::FOR_ACCESS != 0
    }

    /// The instruction, for whatever it is executed.
    pub(super) fn insn(self) -> Self {
        Self(self.0 & !Self::FOR_ACCESS)
    }

    pub(super) fn number(self) -> u32 {
        self.0 >> 7
    }

    pub(super) fn index(self) -> usize {
        (self.0 & Self::INDEX) as usize
    }
}

/// What is noted of an instruction, of the translation numbered `number`, that it was the last: not 0.
pub(super) fn note_of(number: u32, index: usize) -> u32 {
    debug_assert!(number < TRANSLATIONS && index < 64);
    (number << 6 | index as u32 & 63) + 1
}

/// The translation and the index in it that a note tells, if it is one.
pub(super) fn noted(note: u32) -> Option<(u32, usize)> {
    let note = note.checked_sub(1)?;
    Some((note >> 6, (note & 63) as usize))
}

/// RFLAGS bits from what LAHF and SETO AL left.
pub(super) fn flags_to_bits(saved: u64) -> u64 {
    (saved >> 8 & (SF | ZF | AF | PF | CF)) | ((saved & 1) * OF)
}

/// The inverse of [`flags_to_bits`].
pub(super) fn bits_to_flags(bits: u64) -> u64 {
    ((bits & (SF | ZF | AF | PF | CF)) << 8) | ((bits & OF) / OF)
}

/// Which entry of a jump cache is for `rip`.
pub(super) fn jump_index(rip: u64) -> usize {
    (rip >> JUMP_SHIFT) as usize % JUMPS
}

/// Which entry of a table of pages is for the page at `page`.
pub(super) fn page_index(page: u64) -> usize {
    (page >> 12) as usize % PAGES
}

/// What the entry at `index` has while it is for nothing: a RIP that is looked for elsewhere, so that it is
/// not found, whatever a guest jumps to. Entries are for nothing while they are all zeroes, but for the
/// first.
pub(super) fn no_jump(index: usize) -> u64 {
    if index == 0 { 1 << JUMP_SHIFT } else { 0 }
}
