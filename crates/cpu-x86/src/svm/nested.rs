//! Nested paging (APM volume 2, section 15.25): the host's tables translate guest physical addresses.
//!
//! They are walked as the host's paging was at VMRUN, each access a user's. Those that the walk of the
//! guest's own tables makes count as writes, whether or not it sets a bit.
//!
//! Results are kept in a small cache that lives until the next VMRUN, so that the tables of a guest
//! are found without a walk of the host's each; the TLB keeps the two translations combined.

use super::exit::{Exit, code as exit_code};
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::host::Access;
use crate::mmu::{code, pte};
use crate::regs::{CR4_LA57, CR4_PAE, CR4_PSE, CR4_SMEP, EFER_LMA, EFER_NXE};

/// Entries of the cache.
const CACHED: usize = 256;

/// What a guest physical address is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The guest's own access.
    Final,
    /// An entry of its page tables.
    Table,
}

/// Bits of EXITINFO1 that tell the purpose.
impl Purpose {
    fn info(self) -> u64 {
        match self {
            Self::Final => 1 << 32,
            Self::Table => 1 << 33,
        }
    }
}

/// A page of the host's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NestedPage {
    /// Its physical address.
    pub(crate) phys: u64,
    /// It can be written without another walk: the tables allow it, and it is dirty.
    pub(crate) writable: bool,
    pub(crate) executable: bool,
}

#[derive(Clone, Copy)]
struct Cached {
    /// Guest physical address of the page.
    page: u64,
    /// 0 when empty.
    stamp: u64,
    found: NestedPage,
}

/// The cache, direct-mapped.
pub(super) struct NestedTlb {
    entries: Vec<Cached>,
    stamp: u64,
}

impl Default for NestedTlb {
    fn default() -> Self {
        Self { entries: Vec::new(), stamp: 1 }
    }
}

impl NestedTlb {
    /// Empties it.
    pub(super) fn flush(&mut self) {
        self.stamp += 1;
    }

    fn slot(page: u64) -> usize {
        (page >> 12) as usize % CACHED
    }

    fn lookup(&self, page: u64) -> Option<NestedPage> {
        let entry = self.entries.get(Self::slot(page))?;
        (entry.stamp == self.stamp && entry.page == page).then_some(entry.found)
    }

    fn remember(&mut self, page: u64, found: NestedPage) {
        if self.entries.is_empty() {
            let found = NestedPage { phys: 0, writable: false, executable: false };
            self.entries.resize(CACHED, Cached { page: 0, stamp: 0, found });
        }
        self.entries[Self::slot(page)] = Cached { page, stamp: self.stamp, found };
    }
}

/// Why a walk failed.
enum Miss {
    /// The bits of the error code that tell it.
    Fault(u16),
    /// Another CPU changed an entry meanwhile: start again.
    Changed,
}

/// The shape of the host's tables.
struct Shape {
    /// Levels, 4 or 5 for long mode's.
    levels: u32,
    /// 8 bytes an entry.
    wide: bool,
    /// Bits of an entry that have to be zero.
    reserved: u64,
    /// Entries of the second level can map large pages.
    large: bool,
}

impl Cpu {
    /// The page that guest physical `address` is in, for `access`, which the host's tables have to
    /// allow.
    ///
    /// # Errors
    /// [`Exception::EXIT`]: a nested page fault.
    #[inline(never)]
    pub(crate) fn nested_page(
        &mut self,
        address: u64,
        access: Access,
        purpose: Purpose,
    ) -> Result<NestedPage> {
        let page = address & !0xfff;
        let access = if purpose == Purpose::Table { Access::Write } else { access };
        if let Some(found) = self.svm.nested_tlb.lookup(page)
            && match access {
                Access::Read => true,
                Access::Write => found.writable,
                Access::Execute => found.executable,
            }
        {
            return Ok(found);
        }
        loop {
            match self.nested_walk(page, access) {
                Ok(found) => {
                    self.svm.nested_tlb.remember(page, found);
                    return Ok(found);
                }
                Err(Miss::Changed) => {}
                Err(Miss::Fault(bits)) => {
                    return Err(self.nested_page_fault(address, access, purpose, bits));
                }
            }
        }
    }

    fn nested_page_fault(
        &mut self,
        address: u64,
        access: Access,
        purpose: Purpose,
        bits: u16,
    ) -> Exception {
        let mut bits = bits | code::USER;
        let host = &self.svm.host;
        match access {
            Access::Read => {}
            Access::Write => bits |= code::WRITE,
            Access::Execute => {
                let nx = host.efer & EFER_NXE != 0 && host.cr4 & CR4_PAE != 0;
                if nx || host.cr4 & CR4_SMEP != 0 {
                    bits |= code::FETCH;
                }
            }
        }
        let info1 = u64::from(bits) | purpose.info();
        self.svm.exit = Exit { code: exit_code::NPF, info1, info2: address, next_rip: 0 };
        Exception::EXIT
    }

    fn nested_shape(&self) -> Shape {
        let host = &self.svm.host;
        let mut reserved = if host.efer & EFER_NXE == 0 { pte::NX } else { 0 };
        if host.efer & EFER_LMA != 0 {
            reserved |= (1 << 52) - (1 << self.limits.phys_bits);
            let levels = if host.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
            Shape { levels, wide: true, reserved, large: true }
        } else if host.cr4 & CR4_PAE != 0 {
            reserved |= (1 << 63) - (1 << self.limits.phys_bits);
            Shape { levels: 3, wide: true, reserved, large: true }
        } else {
            let large = host.cr4 & CR4_PSE != 0;
            Shape { levels: 2, wide: false, reserved: 0, large }
        }
    }

    fn nested_walk(&mut self, page: u64, access: Access) -> std::result::Result<NestedPage, Miss> {
        let shape = self.nested_shape();
        let index_bits = if shape.wide { 9 } else { 10 };
        let width = if shape.wide { 8 } else { 4 };
        let n_cr3 = self.svm.control.n_cr3;
        let mut level = shape.levels;
        let mut table = match level {
            4 | 5 => n_cr3 & pte::ADDR,
            3 => n_cr3 & 0xffff_ffe0,
            _ => n_cr3 & 0xffff_f000,
        };
        // Legacy tables reach 4 GiB.
        if level < 4 && page >> 32 != 0 {
            return Err(Miss::Fault(0));
        }
        let (mut writable, mut executable) = (true, true);
        loop {
            let shift = 12 + index_bits * (level - 1);
            let at = table + (page >> shift & ((1 << index_bits) - 1)) * width;
            let value = self.read_entry(at, shape.wide);
            if value & pte::PRESENT == 0 {
                return Err(Miss::Fault(0));
            }
            let pointer = shape.levels == 3 && level == 3;
            let is_large = value & pte::LARGE != 0 && level > 1 && shape.large && !pointer;
            let mut wrong = value & shape.reserved;
            if pointer {
                wrong |= value & self.reserved_pointer_bits();
            } else if is_large && level >= 4 {
                wrong |= pte::LARGE;
            } else if is_large && shape.wide {
                wrong |= value & ((1 << shift) - (1 << 13));
            } else if is_large {
                wrong |= value & 1 << 21;
            }
            // As in a guest's own tables, the global bit is reserved above directories.
            if shape.levels >= 4 && level >= 3 && !is_large {
                wrong |= value & pte::GLOBAL;
            }
            if wrong != 0 {
                return Err(Miss::Fault(code::PRESENT | code::RESERVED));
            }
            if !pointer {
                writable &= value & pte::WRITE != 0;
                executable &= !shape.wide || value & pte::NX == 0;
            }
            let leaf = level == 1 || is_large;
            let forbidden = !pointer && value & pte::USER == 0
                || leaf && access == Access::Write && !writable
                || leaf && access == Access::Execute && !executable;
            if forbidden {
                return Err(Miss::Fault(code::PRESENT));
            }
            let mut wanted = if pointer { value } else { value | pte::ACCESSED };
            if leaf && access == Access::Write {
                wanted |= pte::DIRTY;
            }
            if wanted != value && !self.update_entry(at, shape.wide, value, wanted) {
                return Err(Miss::Changed);
            }
            if leaf {
                let within = (1 << shift) - 1;
                let mut base = value & pte::ADDR & !within;
                if !shape.wide && is_large {
                    base = (value >> 13 & 0xff) << 32 | value & 0xffc0_0000;
                }
                let writable = writable && wanted & pte::DIRTY != 0;
                return Ok(NestedPage { phys: base | page & within, writable, executable });
            }
            table = value & pte::ADDR;
            level -= 1;
        }
    }
}
