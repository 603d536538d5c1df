//! Descriptors and descriptor tables (APM volume 2, sections 4.6 to 4.8).

use crate::cpu::Cpu;
use crate::exception::{Exception, Result, vector};
use crate::segment::attr;
use crate::state::Segment;

/// The part of a selector that goes into error codes: index and table.
pub(crate) const SELECTOR_INDEX: u16 = 0xfffc;

/// Whether `selector` is null, whatever its RPL.
pub(crate) fn is_null(selector: u16) -> bool {
    selector & SELECTOR_INDEX == 0
}

/// Requested privilege level of `selector`.
pub(crate) fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// #GP with the selector as error code.
pub(crate) fn gp(selector: u16) -> Exception {
    Exception::with_code(vector::GP, selector & SELECTOR_INDEX)
}

/// #NP with the selector as error code.
pub(crate) fn np(selector: u16) -> Exception {
    Exception::with_code(vector::NP, selector & SELECTOR_INDEX)
}

/// #SS with the selector as error code.
pub(crate) fn ss(selector: u16) -> Exception {
    Exception::with_code(vector::SS, selector & SELECTOR_INDEX)
}

/// #TS with the selector as error code.
pub(crate) fn ts(selector: u16) -> Exception {
    Exception::with_code(vector::TS, selector & SELECTOR_INDEX)
}

/// Types of system descriptors.
#[allow(missing_docs)]
pub(crate) mod system_type {
    pub(crate) const TSS16: u16 = 1;
    pub(crate) const LDT: u16 = 2;
    pub(crate) const CALL_GATE16: u16 = 4;
    pub(crate) const TASK_GATE: u16 = 5;
    pub(crate) const INT_GATE16: u16 = 6;
    pub(crate) const TRAP_GATE16: u16 = 7;
    pub(crate) const TSS: u16 = 9;
    pub(crate) const CALL_GATE: u16 = 12;
    pub(crate) const INT_GATE: u16 = 14;
    pub(crate) const TRAP_GATE: u16 = 15;
    /// Set in the type of a TSS that is in use.
    pub(crate) const BUSY: u16 = 2;
}

/// An 8-byte descriptor and where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    /// Its bytes.
    pub(crate) raw: u64,
    /// Linear address that it was read from.
    pub(crate) at: u64,
}

impl Descriptor {
    /// Attributes in the layout of [`Segment::attributes`].
    pub(crate) fn attributes(self) -> u16 {
        (self.raw >> 40) as u16 & 0xf0ff
    }

    /// Whether all of `bits` (of `attr`) are set.
    pub(crate) fn has(self, bits: u16) -> bool {
        self.attributes() & bits == bits
    }

    /// Whether this describes code.
    pub(crate) fn is_code(self) -> bool {
        self.has(attr::NOT_SYSTEM | attr::CODE)
    }

    /// Whether this describes data that can be written.
    pub(crate) fn is_writable_data(self) -> bool {
        self.has(attr::NOT_SYSTEM | attr::WRITABLE) && !self.has(attr::CODE)
    }

    /// Type of a system descriptor; `None` for code and data.
    pub(crate) fn system_type(self) -> Option<u16> {
        (!self.has(attr::NOT_SYSTEM)).then_some(self.attributes() & attr::TYPE)
    }

    /// Descriptor privilege level.
    pub(crate) fn dpl(self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }

    /// Whether the segment or gate is present.
    pub(crate) fn present(self) -> bool {
        self.has(attr::PRESENT)
    }

    /// The hidden part that a load with `selector` gives.
    pub(crate) fn segment(self, selector: u16) -> Segment {
        let raw = self.raw;
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        let attributes = self.attributes();
        Segment {
            selector,
            base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
            limit: if attributes & attr::GRANULAR != 0 { limit << 12 | 0xfff } else { limit },
            attributes,
        }
    }

    /// Selector of a gate's target.
    pub(crate) fn gate_selector(self) -> u16 {
        (self.raw >> 16) as u16
    }

    /// Offset of a gate's target, of its lower 32 bits.
    pub(crate) fn gate_offset(self) -> u64 {
        self.raw & 0xffff | self.raw >> 32 & 0xffff_0000
    }
}

impl Cpu {
    /// The linear address of the `len`-byte descriptor of `selector`, if it is within its table.
    fn descriptor_address(&self, selector: u16, len: u32) -> Option<u64> {
        let offset = u32::from(selector & 0xfff8);
        let (base, limit) = if selector & 4 != 0 {
            if !self.ldtr.has(attr::PRESENT) {
                return None;
            }
            (self.ldtr.base, self.ldtr.limit)
        } else {
            (self.gdtr.base, u32::from(self.gdtr.limit))
        };
        (offset + len - 1 <= limit).then(|| base.wrapping_add(u64::from(offset)))
    }

    /// Reads the descriptor of `selector`; `None` if it is outside its table.
    pub(crate) fn find_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>> {
        match self.descriptor_address(selector, 8) {
            Some(at) => Ok(Some(Descriptor { raw: self.load_linear(at)?, at })),
            None => Ok(None),
        }
    }

    /// Reads the descriptor of `selector`; #GP(selector) if it is outside its table.
    pub(crate) fn descriptor(&mut self, selector: u16) -> Result<Descriptor> {
        self.find_descriptor(selector)?.ok_or(gp(selector))
    }

    /// Upper 32 bits of the base or offset of a system descriptor in long mode, which is 16 bytes.
    /// #GP(selector) if the table ends before, or the type field of the second half is not zero.
    pub(crate) fn descriptor_high(&mut self, selector: u16) -> Result<u64> {
        let at = self.descriptor_address(selector, 16).ok_or(gp(selector))?;
        let high: u64 = self.load_linear(at.wrapping_add(8))?;
        if high >> 40 & 0x1f != 0 {
            return Err(gp(selector));
        }
        Ok(high & 0xffff_ffff)
    }

    /// Sets the accessed bit of a code or data descriptor in memory.
    pub(crate) fn mark_accessed(&mut self, descriptor: &mut Descriptor) -> Result {
        if !descriptor.has(attr::ACCESSED) {
            self.update_linear::<u8>(descriptor.at.wrapping_add(5), |byte| byte | 1)?;
            descriptor.raw |= 1 << 40;
        }
        Ok(())
    }
}
