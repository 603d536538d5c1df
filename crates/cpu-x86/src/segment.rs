//! Segmentation (APM volume 2, chapter 4): segment registers with their hidden parts, the checks of
//! accesses through them, loads from descriptor tables, and the mode that CS and SS give.
//!
//! Invariant: after anything changed CR0, EFER, RFLAGS.VM or AC, CPL, a segment register or a debug
//! register, [`Cpu::update_mode`] or [`Cpu::update_segment`] has run before the next memory access, so
//! that `seg_access`, `linear_mask`, `stack_mask` and `class` agree with them.

use crate::cpu::Cpu;
use crate::descriptor::{Descriptor, SELECTOR_INDEX, gp, is_null, np, rpl, ss};
use crate::exception::{Exception, Result};
use crate::flags::bits;
use crate::host::Access;
use crate::regs::{CR0_AM, CR0_PE};
use crate::state::Segment;
use crate::tlb::Class;

/// Segment register numbers, in the order of their encoding.
pub(crate) const ES: u8 = 0;
pub(crate) const CS: u8 = 1;
pub(crate) const SS: u8 = 2;
pub(crate) const DS: u8 = 3;
pub(crate) const FS: u8 = 4;
pub(crate) const GS: u8 = 5;

/// In [`SegAccess::flags`]: reads need no check.
pub(crate) const READ_FLAT: u8 = 1;
/// In [`SegAccess::flags`]: writes need no check.
pub(crate) const WRITE_FLAT: u8 = 2;

/// What an access through a segment needs to know, derived from the segment and the mode.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SegAccess {
    /// Base that applies: 0 for most segments in 64-bit mode.
    pub(crate) base: u64,
    /// [`READ_FLAT`] and [`WRITE_FLAT`].
    pub(crate) flags: u8,
}

/// Attribute bits of [`Segment::attributes`] and of a descriptor's second doubleword, shifted right by
/// 8. For system segments the low four bits are the type.
pub(crate) mod attr {
    pub(crate) const ACCESSED: u16 = 1 << 0;
    /// Data: writable. Code: readable.
    pub(crate) const WRITABLE: u16 = 1 << 1;
    pub(crate) const READABLE: u16 = 1 << 1;
    /// Data: expand-down. Code: conforming.
    pub(crate) const EXPAND_DOWN: u16 = 1 << 2;
    pub(crate) const CONFORMING: u16 = 1 << 2;
    pub(crate) const CODE: u16 = 1 << 3;
    pub(crate) const NOT_SYSTEM: u16 = 1 << 4;
    pub(crate) const PRESENT: u16 = 1 << 7;
    pub(crate) const LONG: u16 = 1 << 13;
    pub(crate) const BIG: u16 = 1 << 14;
    pub(crate) const GRANULAR: u16 = 1 << 15;
    pub(crate) const TYPE: u16 = 0xf;
    /// Attributes of a real mode or virtual-8086 data segment with the given DPL.
    pub(crate) const fn real(dpl: u16) -> u16 {
        PRESENT | NOT_SYSTEM | WRITABLE | ACCESSED | dpl << 5
    }
}

impl Segment {
    /// Descriptor privilege level.
    pub(crate) fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    /// Whether all of `bits` are set.
    pub(crate) fn has(&self, bits: u16) -> bool {
        self.attributes & bits == bits
    }

    /// Whether `offset..offset + len` is within the limit.
    pub(crate) fn holds(&self, offset: u64, len: usize) -> bool {
        let last = offset.wrapping_add(len as u64 - 1);
        let limit = u64::from(self.limit);
        if self.has(attr::EXPAND_DOWN) && !self.has(attr::CODE) {
            let top = if self.has(attr::BIG) { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top && last >= offset
        } else {
            last <= limit && last >= offset
        }
    }
}

/// Modes that decide how an instruction is decoded and executed. A part of the key of a decoded block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mode(u8);

impl Mode {
    const CODE_32: u8 = 1;
    const CODE_64: u8 = 2;
    const STACK_32: u8 = 1 << 2;
    const PROTECTED: u8 = 1 << 3;
    const VM86: u8 = 1 << 4;
    const LONG: u8 = 1 << 5;

    /// Default operand width of code: 16, 32 or 64 bits (64 stands for 64-bit mode).
    pub(crate) fn code_bits(self) -> u32 {
        16 << (self.0 & 3)
    }

    /// 64-bit mode.
    #[inline(always)]
    pub(crate) fn is_64(self) -> bool {
        self.0 & Self::CODE_64 != 0
    }

    /// Protected mode, not virtual-8086.
    #[inline(always)]
    pub(crate) fn is_protected(self) -> bool {
        self.0 & Self::PROTECTED != 0
    }

    /// Virtual-8086 mode.
    #[inline(always)]
    pub(crate) fn is_vm86(self) -> bool {
        self.0 & Self::VM86 != 0
    }

    /// Real mode.
    #[inline(always)]
    pub(crate) fn is_real(self) -> bool {
        self.0 & (Self::PROTECTED | Self::VM86) == 0
    }
}

impl Cpu {
    /// Derives everything that depends on control registers, flags, CS and SS.
    pub(crate) fn update_mode(&mut self) {
        let protected = self.cr0 & CR0_PE != 0;
        let vm86 = protected && self.system_flags & bits::VM != 0;
        let long = self.long_mode();
        let code = &self.seg[usize::from(CS)];
        let mut mode = 0;
        if long && code.has(attr::LONG) {
            mode |= Mode::CODE_64;
        } else if code.has(attr::BIG) && !vm86 {
            mode |= Mode::CODE_32;
        }
        if vm86 {
            mode |= Mode::VM86;
        } else if protected {
            mode |= Mode::PROTECTED;
        }
        if long {
            mode |= Mode::LONG;
        }
        if mode & Mode::CODE_64 != 0 {
            self.stack_mask = u64::MAX;
            self.linear_mask = u64::MAX;
            self.ip_mask = u64::MAX;
        } else {
            let big = self.seg[usize::from(SS)].has(attr::BIG) && !vm86;
            if big {
                mode |= Mode::STACK_32;
            }
            self.stack_mask = if big { 0xffff_ffff } else { 0xffff };
            self.linear_mask = 0xffff_ffff;
            self.ip_mask = if mode & Mode::CODE_32 != 0 { 0xffff_ffff } else { 0xffff };
        }
        self.mode = Mode(mode);
        self.update_class();
        for index in 0..6 {
            self.update_segment(index);
        }
    }

    /// Derives on whose behalf memory is accessed.
    pub(crate) fn update_class(&mut self) {
        let ac = self.system_flags & bits::AC != 0;
        let align = self.cpl == 3 && ac && self.cr0 & CR0_AM != 0;
        self.class = if align || self.watches_data() {
            Class::Watched
        } else if self.cpl == 3 {
            Class::User
        } else if ac {
            Class::SupervisorAc
        } else {
            Class::Supervisor
        };
        // What the watched class may fetch depends on CPL, which its table does not tell apart.
        if self.class == Class::Watched {
            self.tlb.flush_l1();
        }
    }

    /// Derives how accesses through segment `index` are checked.
    pub(crate) fn update_segment(&mut self, index: u8) {
        let segment = &self.seg[usize::from(index)];
        let access = if self.mode.is_64() {
            let base = if index == FS || index == GS { segment.base } else { 0 };
            SegAccess { base, flags: READ_FLAT | WRITE_FLAT }
        } else {
            let mut flags = 0;
            let up = segment.has(attr::CODE) || !segment.has(attr::EXPAND_DOWN);
            if segment.limit == u32::MAX && up && segment.has(attr::PRESENT) {
                let code = segment.has(attr::CODE);
                if !code || segment.has(attr::READABLE) {
                    flags |= READ_FLAT;
                }
                if !code && segment.has(attr::WRITABLE) {
                    flags |= WRITE_FLAT;
                }
            }
            SegAccess { base: segment.base, flags }
        };
        self.seg_access[usize::from(index)] = access;
    }

    /// The checks of an access of `len` bytes that are not needed for flat segments.
    #[cold]
    #[inline(never)]
    pub(crate) fn check_segment(
        &self,
        index: u8,
        offset: u64,
        len: usize,
        access: Access,
    ) -> Result {
        let segment = &self.seg[usize::from(index)];
        // Real and virtual-8086 mode know limits only.
        let allowed = if self.mode.is_protected() {
            let code = segment.has(attr::CODE);
            segment.has(attr::PRESENT)
                && match access {
                    Access::Read => !code || segment.has(attr::READABLE),
                    Access::Write => !code && segment.has(attr::WRITABLE),
                    Access::Execute => code,
                }
        } else {
            true
        };
        if allowed && segment.holds(offset, len) {
            Ok(())
        } else if index == SS {
            Err(Exception::SS0)
        } else {
            Err(Exception::GP0)
        }
    }
}

/// Loads of segment registers.
impl Cpu {
    /// Replaces the hidden and visible parts of segment register `index`, other than CS.
    pub(crate) fn set_segment(&mut self, index: u8, segment: Segment) {
        let big = segment.has(attr::BIG) != self.seg[usize::from(index)].has(attr::BIG);
        self.seg[usize::from(index)] = segment;
        if index == SS && big {
            self.update_mode();
        } else {
            self.update_segment(index);
        }
    }

    /// Loads segment register `index`, other than CS, as MOV and POP do.
    pub(crate) fn load_segment(&mut self, index: u8, selector: u16) -> Result {
        if !self.mode.is_protected() {
            self.load_segment_real(index, selector);
            return Ok(());
        }
        if is_null(selector) {
            if index == SS && !(self.mode.is_64() && self.cpl < 3 && rpl(selector) == self.cpl) {
                return Err(Exception::GP0);
            }
            self.set_segment(index, Segment { selector, ..Segment::default() });
            return Ok(());
        }
        let mut descriptor = self.descriptor(selector)?;
        if index == SS {
            let level = self.cpl;
            if rpl(selector) != level || !descriptor.is_writable_data() || descriptor.dpl() != level
            {
                return Err(gp(selector));
            }
            if !descriptor.present() {
                return Err(ss(selector));
            }
        } else {
            let code = descriptor.is_code();
            if !descriptor.has(attr::NOT_SYSTEM) || code && !descriptor.has(attr::READABLE) {
                return Err(gp(selector));
            }
            let conforming = code && descriptor.has(attr::CONFORMING);
            if !conforming && descriptor.dpl() < self.cpl.max(rpl(selector)) {
                return Err(gp(selector));
            }
            if !descriptor.present() {
                return Err(np(selector));
            }
        }
        self.mark_accessed(&mut descriptor)?;
        self.set_segment(index, descriptor.segment(selector));
        Ok(())
    }

    /// A load in real or virtual-8086 mode. Real mode keeps limit and attributes ("unreal" segments).
    pub(crate) fn load_segment_real(&mut self, index: u8, selector: u16) {
        let base = u64::from(selector) << 4;
        let old = self.seg[usize::from(index)];
        let segment = if self.mode.is_vm86() {
            Segment { selector, base, limit: 0xffff, attributes: attr::real(3) }
        } else if old.has(attr::PRESENT) {
            Segment { selector, base, ..old }
        } else {
            Segment { selector, base, limit: 0xffff, attributes: attr::real(0) }
        };
        self.seg[usize::from(index)] = segment;
        self.update_mode();
    }

    /// Loads CS from a checked descriptor and continues at `rip`, with privilege level `cpl`.
    pub(crate) fn set_code(&mut self, segment: Segment, cpl: u8, rip: u64) {
        let selector = segment.selector & SELECTOR_INDEX | u16::from(cpl);
        self.seg[usize::from(CS)] = Segment { selector, ..segment };
        self.cpl = cpl;
        self.rip = rip;
        self.update_mode();
    }

    /// Empties data segment registers that privilege level `cpl`, newly entered from a more privileged
    /// one, must not use.
    pub(crate) fn drop_privileged_segments(&mut self, cpl: u8) {
        for index in [ES, DS, FS, GS] {
            let segment = &self.seg[usize::from(index)];
            let conforming = segment.has(attr::CODE | attr::CONFORMING);
            let unusable = if is_null(segment.selector) {
                // Nothing is lost but the level in the selector, which processors clear.
                segment.selector != 0
            } else {
                segment.has(attr::PRESENT) && !conforming && segment.dpl() < cpl
            };
            if unusable {
                // The base stays for 64-bit code, which does not look at the rest.
                let base = segment.base;
                self.set_segment(index, Segment { base, ..Segment::default() });
            }
        }
    }

    /// Whether code at offset `rip` can run in `segment`: canonical, or within the limit.
    pub(crate) fn check_code_offset(&self, segment: &Segment, rip: u64) -> Result {
        let fits = if self.long_mode() && segment.has(attr::LONG) {
            self.is_canonical(rip)
        } else {
            rip <= u64::from(segment.limit)
        };
        if fits { Ok(()) } else { Err(Exception::GP0) }
    }

    /// The checks that a code segment for a direct far jump or call has to pass.
    pub(crate) fn check_code(&self, descriptor: Descriptor, selector: u16) -> Result {
        let allowed = if descriptor.has(attr::CONFORMING) {
            descriptor.dpl() <= self.cpl
        } else {
            rpl(selector) <= self.cpl && descriptor.dpl() == self.cpl
        };
        if !descriptor.is_code() || !allowed {
            return Err(gp(selector));
        }
        self.check_code_kind(descriptor, selector)
    }

    /// Whether a code segment is present and of a kind that exists: L and D are not both set.
    pub(crate) fn check_code_kind(&self, descriptor: Descriptor, selector: u16) -> Result {
        if self.long_mode() && descriptor.has(attr::LONG | attr::BIG) {
            return Err(gp(selector));
        }
        if !descriptor.present() {
            return Err(np(selector));
        }
        Ok(())
    }
}
