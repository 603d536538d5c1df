//! Page translation (APM volume 2, chapter 5; SDM volume 3, chapter 4).
//!
//! [`Cpu::translate`] turns a linear address into a [`Translation`], walking the tables of the mode
//! that is active: none, 32-bit with PSE, PAE, 4-level or 5-level. Accessed bits are set level by level as a
//! processor does, the dirty bit when the write is allowed, both by compare-exchange, so that two CPUs
//! and a guest that changes an entry at the same time lose nothing.

use memory::{Page, WritePath, WriteTarget};

use crate::counters::Count;
use crate::cpu::Cpu;
use crate::exception::{Exception, Result, vector};
use crate::host::{Access, HostPtr, PAGE_OFFSET};
use crate::msr::index;
use crate::record::Written;
use crate::regs::{
    CR0_PG, CR0_WP, CR3_LAM_U48, CR3_LAM_U57, CR4_LA57, CR4_LAM_SUP, CR4_PAE, CR4_PGE, CR4_PKE,
    CR4_PKS, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NXE,
};
use crate::svm::Purpose;
use crate::tlb::{Class, Directory, Rights, Translation};

/// An address that no page is at.
pub(crate) const NO_PAGE: u64 = u64::MAX;

/// Width of guest physical addresses in bits, if the model says nothing else.
pub(crate) const PHYS_BITS: u32 = 40;
/// Width of linear addresses in 4-level paging.
pub(crate) const LINEAR_BITS: u32 = 48;
/// Width of linear addresses in 5-level paging.
pub(crate) const LINEAR_BITS_57: u32 = 57;

/// Bits of page table entries.
pub(crate) mod pte {
    pub(crate) const PRESENT: u64 = 1 << 0;
    pub(crate) const WRITE: u64 = 1 << 1;
    pub(crate) const USER: u64 = 1 << 2;
    pub(crate) const ACCESSED: u64 = 1 << 5;
    pub(crate) const DIRTY: u64 = 1 << 6;
    pub(crate) const LARGE: u64 = 1 << 7;
    pub(crate) const GLOBAL: u64 = 1 << 8;
    pub(crate) const NX: u64 = 1 << 63;
    /// Address bits of a long entry.
    pub(crate) const ADDR: u64 = 0x000f_ffff_ffff_f000;
    /// Where a leaf entry of long mode has its protection key.
    pub(crate) const KEY_SHIFT: u32 = 59;
}

/// Bits of the page fault error code.
pub(crate) mod code {
    pub(crate) const PRESENT: u16 = 1 << 0;
    pub(crate) const WRITE: u16 = 1 << 1;
    pub(crate) const USER: u16 = 1 << 2;
    pub(crate) const RESERVED: u16 = 1 << 3;
    pub(crate) const FETCH: u16 = 1 << 4;
    pub(crate) const KEY: u16 = 1 << 5;
}

/// Whose rights an access has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// CPL 3.
    User,
    /// CPL 0 to 2 or the CPU itself; SMAP applies.
    Supervisor,
    /// CPL 0 to 2 with SMAP suspended.
    SupervisorAc,
}

/// Why a walk failed.
enum Miss {
    NotPresent,
    Reserved,
    /// Another CPU changed an entry meanwhile: start again.
    Changed,
    /// A guest's tables are where its host does not let it be.
    Nested(Exception),
}

/// Why there is no translation.
enum Refused {
    /// A page fault, with these bits of the error code.
    Fault(u16),
    /// The guest's host has to see to it.
    Nested(Exception),
}

/// Where a leaf entry is and what it says.
struct Leaf {
    /// Physical address of the entry.
    at: u64,
    value: u64,
    /// 4 or 8 bytes an entry.
    wide: bool,
    /// Physical address of the page that `linear` is in, of 4 KiB.
    phys: u64,
    rights: Rights,
}

/// Whether `linear` has all bits from the `width`th up equal.
fn is_canonical(linear: u64, width: u32) -> bool {
    let shift = 64 - width;
    ((linear << shift) as i64 >> shift) as u64 == linear
}

/// What is left of `rights` at an entry with this value, a long one.
fn combine(mut rights: Rights, value: u64) -> Rights {
    rights.set(Rights::WRITE, rights.contains(Rights::WRITE) && value & pte::WRITE != 0);
    rights.set(Rights::USER, rights.contains(Rights::USER) && value & pte::USER != 0);
    rights.set(Rights::EXECUTE, rights.contains(Rights::EXECUTE) && value & pte::NX == 0);
    rights
}

impl Cpu {
    /// Whether `linear` is an address that long mode has now.
    #[inline(always)]
    pub(crate) fn is_canonical(&self, linear: u64) -> bool {
        let five_levels = self.cr4 & CR4_LA57 != 0;
        is_canonical(linear, if five_levels { LINEAR_BITS_57 } else { LINEAR_BITS })
    }

    /// The address that a program means by `linear`: without the tag, where pointers have one (SDM volume 1,
    /// "Linear-Address Pre-Processing"). It is the program's data that is at tagged addresses; code and what the
    /// processor reads for itself are not.
    #[inline]
    pub(crate) fn untagged(&self, linear: u64) -> u64 {
        const TAGS: u64 = CR3_LAM_U57 | CR3_LAM_U48;
        if self.cr3 & TAGS | self.cr4 & CR4_LAM_SUP == 0 || !self.mode.is_64() {
            return linear;
        }
        self.masked(linear)
    }

    #[cold]
    fn masked(&self, linear: u64) -> u64 {
        let is_upper = linear >> 63 != 0;
        let width = match () {
            () if is_upper && self.cr4 & CR4_LAM_SUP == 0 => return linear,
            () if is_upper && self.cr4 & CR4_LA57 != 0 => LINEAR_BITS_57,
            () if is_upper => LINEAR_BITS,
            () if self.cr3 & CR3_LAM_U57 != 0 => LINEAR_BITS_57,
            () if self.cr3 & CR3_LAM_U48 != 0 => LINEAR_BITS,
            () => return linear,
        };
        // What is below the tag has to be as the bit above it; if it is not, the address is not canonical.
        let shift = 64 - width;
        let masked = ((linear << shift) as i64 >> shift) as u64;
        if masked >> 63 == linear >> 63 { masked } else { linear }
    }

    /// Whether a register that holds a linear address can hold `linear`: what counts is the width that
    /// the processor has, whichever paging is active (SDM volume 1, section 3.3.7.1).
    pub(crate) fn is_canonical_base(&self, linear: u64) -> bool {
        is_canonical(linear, self.limits.linear_bits())
    }

    /// Whether EFER.LMA is set.
    #[inline(always)]
    pub(crate) fn long_mode(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    /// Translates `linear` for `access`; raises #PF if that is not allowed. The address is canonical.
    pub(crate) fn translate(
        &mut self,
        linear: u64,
        access: Access,
        privilege: Privilege,
    ) -> Result<Translation> {
        self.find_page(linear, access, privilege).map_err(|refused| match refused {
            Refused::Fault(code) => self.page_fault(linear, access, privilege, code),
            Refused::Nested(exit) => exit,
        })
    }

    /// As [`Self::translate`], but raises nothing.
    fn find_page(
        &mut self,
        linear: u64,
        access: Access,
        privilege: Privilege,
    ) -> std::result::Result<Translation, Refused> {
        if let Some(found) = self.tlb.lookup(linear)
            && self.allows(found.rights, access, privilege)
            && (access != Access::Write || found.rights.contains(Rights::DIRTY))
        {
            return Ok(found);
        }
        self.counters.count(Count::Walks);
        self.svm.fetching = access == Access::Execute;
        if self.cr0 & CR0_PG == 0 {
            let rights = Rights::WRITE | Rights::USER | Rights::EXECUTE | Rights::DIRTY;
            let found = self.on_system(linear & 0xffff_ffff, access, rights);
            let found = found.map_err(Refused::Nested)?;
            self.tlb.remember(linear, found);
            return Ok(found);
        }
        loop {
            // Only a walk from the root may find that there is a fault.
            let short = self.walk_last_level(linear);
            let short = short.filter(|leaf| self.allows(leaf.rights, access, privilege));
            match short.map_or_else(|| self.walk(linear), Ok) {
                Ok(leaf) => {
                    if !self.allows(leaf.rights, access, privilege) {
                        let mut code = code::PRESENT;
                        if !self.key_allows(leaf.rights, access, privilege) {
                            code |= code::KEY;
                        }
                        return Err(Refused::Fault(code));
                    }
                    let found = self.finish(&leaf, linear, access).map_err(Refused::Nested)?;
                    if let Some(found) = found {
                        self.tlb.remember(linear, found);
                        return Ok(found);
                    }
                }
                Err(Miss::Changed) => {}
                Err(Miss::Nested(exit)) => return Err(Refused::Nested(exit)),
                Err(Miss::NotPresent) => return Err(Refused::Fault(0)),
                Err(Miss::Reserved) => {
                    return Err(Refused::Fault(code::PRESENT | code::RESERVED));
                }
            }
        }
    }

    /// The leaf for `linear` from the last level of the tables, if it is known where that is, and there
    /// is nothing wrong with the entry.
    fn walk_last_level(&mut self, linear: u64) -> Option<Leaf> {
        let directory = self.tlb.directory(linear)?;
        let at = directory.table | ((linear >> 12 & 0x1ff) * 8);
        let value = directory.host.at(at).read::<u64>();
        let wrong = value & self.reserved_bits() != 0;
        if value & pte::PRESENT == 0 || wrong {
            return None;
        }
        let rights = self.leaf_rights(combine(directory.rights, value), value);
        let phys = value & pte::ADDR;
        Some(Leaf { at, value, wide: true, phys, rights })
    }

    /// Bits of a long entry that have to be zero at every level.
    fn reserved_bits(&self) -> u64 {
        let nx = if self.efer & EFER_NXE == 0 { pte::NX } else { 0 };
        self.reserved_address_bits() | nx
    }

    /// Adds to `rights` what only a leaf, a long entry, says.
    fn leaf_rights(&self, rights: Rights, value: u64) -> Rights {
        let global = self.cr4 & CR4_PGE != 0 && value & pte::GLOBAL != 0;
        let rights = if global { rights | Rights::GLOBAL } else { rights };
        if self.long_mode() { rights.with_key(value >> pte::KEY_SHIFT) } else { rights }
    }

    /// Remembers that the last level of tables for `linear` is at `table`, where `rights` lead.
    fn remember_directory(&mut self, linear: u64, table: u64, rights: Rights) {
        // A guest's tables are where its host says.
        if self.svm.nested || table & !self.address_lines != 0 {
            return;
        }
        if let Page { host: Some(page), writes: WritePath::Direct } = self.page_at(table) {
            let host = HostPtr::new(page, 0);
            self.tlb.remember_directory(linear, Directory { table, host, rights });
        }
    }

    /// Whether `rights` allow `access`, the dirty bit left aside.
    fn allows(&self, rights: Rights, access: Access, privilege: Privilege) -> bool {
        let user_page = rights.contains(Rights::USER);
        let reachable = match privilege {
            Privilege::User => user_page,
            Privilege::Supervisor if access == Access::Execute => {
                !(user_page && self.cr4 & CR4_SMEP != 0)
            }
            Privilege::SupervisorAc if access == Access::Execute => {
                !(user_page && self.cr4 & CR4_SMEP != 0)
            }
            Privilege::Supervisor => !(user_page && self.cr4 & CR4_SMAP != 0),
            Privilege::SupervisorAc => true,
        };
        reachable
            && self.key_allows(rights, access, privilege)
            && match access {
                Access::Read => true,
                Access::Execute => rights.contains(Rights::EXECUTE),
                Access::Write => {
                    rights.contains(Rights::WRITE)
                        || privilege != Privilege::User && self.cr0 & CR0_WP == 0
                }
            }
    }

    /// Whether the protection key of a page allows `access` to it: PKRU for user pages, PKRS for the
    /// supervisor's (SDM volume 3, section 4.6.2).
    fn key_allows(&self, rights: Rights, access: Access, privilege: Privilege) -> bool {
        let (enable, keys) = if rights.contains(Rights::USER) {
            (CR4_PKE, self.pkru)
        } else {
            (CR4_PKS, self.msrs.pkrs)
        };
        if self.cr4 & enable == 0 || access == Access::Execute || !self.long_mode() {
            return true;
        }
        let denied = keys >> (2 * rights.key());
        let (no_access, no_write) = (denied & 1 != 0, denied & 2 != 0);
        let heeds = privilege == Privilege::User || self.cr0 & CR0_WP != 0;
        let refused = no_access || no_write && access == Access::Write && heeds;
        !refused
    }

    /// Records a page fault in CR2 and makes the exception.
    fn page_fault(
        &mut self,
        linear: u64,
        access: Access,
        privilege: Privilege,
        mut code: u16,
    ) -> Exception {
        match access {
            Access::Read => {}
            Access::Write => code |= code::WRITE,
            Access::Execute => {
                let nx = self.efer & EFER_NXE != 0 && self.cr4 & CR4_PAE != 0;
                if nx || self.cr4 & CR4_SMEP != 0 {
                    code |= code::FETCH;
                }
            }
        }
        if privilege == Privilege::User {
            code |= code::USER;
        }
        self.svm.old_cr2 = std::mem::replace(&mut self.cr2, linear);
        Exception::with_code(vector::PF, code)
    }

    /// Sets the leaf's accessed bit, and dirty bit for a write. `None` if the entry changed meanwhile.
    fn finish(&mut self, leaf: &Leaf, linear: u64, access: Access) -> Result<Option<Translation>> {
        let mut rights = leaf.rights;
        let phys = leaf.phys | linear & PAGE_OFFSET;
        // What a guest's page is to its host comes before the guest's own dirty bit.
        let system = if self.svm.nested {
            Some(self.on_system(phys, access, rights | Rights::DIRTY)?)
        } else {
            None
        };
        let mut wanted = leaf.value | pte::ACCESSED;
        if access == Access::Write {
            wanted |= pte::DIRTY;
        }
        if wanted != leaf.value && !self.update_entry(leaf.at, leaf.wide, leaf.value, wanted) {
            return Ok(None);
        }
        let dirty = wanted & pte::DIRTY != 0;
        if let Some(mut found) = system {
            found.rights.set(Rights::DIRTY, dirty && found.rights.contains(Rights::DIRTY));
            return Ok(Some(found));
        }
        rights.set(Rights::DIRTY, dirty);
        Ok(Some(self.on_host(leaf.phys & self.address_lines, rights)))
    }

    /// The page of physical address `phys`, which a guest's host translates further. Of `rights`, which
    /// the guest gives, those are left that the host gives as well; DIRTY stands for "writable and
    /// dirty" to the host.
    fn on_system(&mut self, phys: u64, access: Access, mut rights: Rights) -> Result<Translation> {
        let mut page = phys & !PAGE_OFFSET;
        if self.svm.nested {
            let found = self.nested_page(phys, access, Purpose::Final)?;
            page = found.phys;
            rights.set(Rights::DIRTY, rights.contains(Rights::DIRTY) && found.writable);
            rights.set(Rights::EXECUTE, rights.contains(Rights::EXECUTE) && found.executable);
        }
        Ok(self.on_host(page & self.address_lines, rights))
    }

    /// Where the page table entry at physical address `at` is, which a guest's host translates further.
    #[inline]
    fn table_entry(&mut self, at: u64) -> std::result::Result<u64, Miss> {
        if !self.svm.nested {
            return Ok(at);
        }
        match self.nested_page(at, Access::Write, Purpose::Table) {
            Ok(page) => Ok(page.phys | at & PAGE_OFFSET),
            Err(exit) => Err(Miss::Nested(exit)),
        }
    }

    fn walk(&mut self, linear: u64) -> std::result::Result<Leaf, Miss> {
        if self.long_mode() {
            let table = self.cr3 & pte::ADDR;
            let levels = if self.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
            self.walk_long(linear, table, levels, Rights::WRITE | Rights::USER | Rights::EXECUTE)
        } else if self.cr4 & CR4_PAE != 0 {
            self.walk_pae(linear)
        } else {
            self.walk_32(linear)
        }
    }

    /// Whether PAE paging is active with these control registers.
    pub(crate) fn is_pae(cr0: u64, cr4: u64, efer: u64) -> bool {
        cr0 & CR0_PG != 0 && cr4 & CR4_PAE != 0 && efer & EFER_LMA == 0
    }

    /// Bits of a page directory pointer of PAE paging that have to be zero in one that is present.
    pub(crate) fn reserved_pointer_bits(&self) -> u64 {
        0x1e6 | u64::MAX << self.limits.phys_bits
    }

    /// The four page directory pointers at `cr3`. #GP(0) if one that is present has reserved bits set.
    /// A guest with nested paging reads them when it walks its tables.
    pub(crate) fn read_pdptes(&mut self, cr3: u64) -> Result<[u64; 4]> {
        if self.svm.nested {
            return Ok([0; 4]);
        }
        let reserved = self.reserved_pointer_bits();
        let table = cr3 & 0xffff_ffe0;
        let entries = [0, 8, 16, 24].map(|offset| self.read_entry(table + offset, true));
        let wrong = |entry: &u64| entry & pte::PRESENT != 0 && entry & reserved != 0;
        if entries.iter().any(wrong) { Err(Exception::GP0) } else { Ok(entries) }
    }

    /// PAE: four page directory pointers, without rights of their own, above two long levels.
    fn walk_pae(&mut self, linear: u64) -> std::result::Result<Leaf, Miss> {
        let index = linear >> 30 & 3;
        let entry = if self.svm.nested {
            let at = self.table_entry((self.cr3 & 0xffff_ffe0) + index * 8)?;
            self.read_entry(at, true)
        } else {
            self.pdptes[index as usize]
        };
        if entry & pte::PRESENT == 0 {
            return Err(Miss::NotPresent);
        }
        if entry & self.reserved_pointer_bits() != 0 {
            return Err(Miss::Reserved);
        }
        let rights = Rights::WRITE | Rights::USER | Rights::EXECUTE;
        self.walk_long(linear, entry & pte::ADDR, 2, rights)
    }

    /// Bits of a long entry that are above the physical width: in PAE mode up to bit 62, in long mode,
    /// where bits 52 to 62 are the guest's, up to bit 51.
    fn reserved_address_bits(&self) -> u64 {
        let top = if self.long_mode() { 52 } else { 63 };
        (1 << top) - (1 << self.limits.phys_bits)
    }

    /// Levels `level` (4: PML4, 5: PML5) down to 1 of 8-byte entries, starting with `table`.
    fn walk_long(
        &mut self,
        linear: u64,
        mut table: u64,
        mut level: u32,
        mut rights: Rights,
    ) -> std::result::Result<Leaf, Miss> {
        let reserved = self.reserved_bits();
        loop {
            let shift = 12 + 9 * (level - 1);
            let at = self.table_entry(table + (linear >> shift & 0x1ff) * 8)?;
            let value = self.read_entry(at, true);
            if value & pte::PRESENT == 0 {
                return Err(Miss::NotPresent);
            }
            let mut wrong = value & reserved;
            let is_large = level > 1 && value & pte::LARGE != 0;
            if is_large {
                // In PML4 and PML5 entries the bit is reserved; in others, so are the low address
                // bits, but for PAT at bit 12.
                wrong |= if level >= 4 { pte::LARGE } else { value & ((1 << shift) - (1 << 13)) };
            }
            // What is the global bit of a leaf: AMD's processors ignore it in a PDE only.
            if !self.limits.intel && self.long_mode() && level >= 3 && !is_large {
                wrong |= value & pte::GLOBAL;
            }
            if wrong != 0 {
                return Err(Miss::Reserved);
            }
            rights = combine(rights, value);
            if level == 1 || is_large {
                rights = self.leaf_rights(rights, value);
                match level {
                    2 => rights |= Rights::LARGE,
                    3 => rights |= Rights::HUGE,
                    _ => {}
                }
                let within = (1 << shift) - 1;
                let phys = (value & pte::ADDR & !within) | (linear & within & !0xfff);
                return Ok(Leaf { at, value, wide: true, phys, rights });
            }
            self.set_accessed(at, true, value)?;
            table = value & pte::ADDR;
            level -= 1;
            if level == 1 {
                self.remember_directory(linear, table, rights);
            }
        }
    }

    /// Two levels of 4-byte entries; with CR4.PSE, 4 MiB pages whose address has up to 40 bits.
    fn walk_32(&mut self, linear: u64) -> std::result::Result<Leaf, Miss> {
        let combine = |a: u64, b: u64| {
            let mut rights = Rights::EXECUTE;
            rights.set(Rights::WRITE, a & b & pte::WRITE != 0);
            rights.set(Rights::USER, a & b & pte::USER != 0);
            rights
        };
        let globals = self.cr4 & CR4_PGE != 0;
        let global = |value: u64| globals && value & pte::GLOBAL != 0;
        let at = self.table_entry((self.cr3 & 0xffff_f000) + (linear >> 22 & 0x3ff) * 4)?;
        let directory = self.read_entry(at, false);
        if directory & pte::PRESENT == 0 {
            return Err(Miss::NotPresent);
        }
        if directory & pte::LARGE != 0 && self.cr4 & CR4_PSE != 0 {
            // PSE-36: the address goes on in bits 13 to 20, as far as there are physical addresses.
            let reserved = (1 << 22) - (1 << (self.limits.phys_bits.min(40) - 32 + 13));
            if directory & reserved != 0 {
                return Err(Miss::Reserved);
            }
            let mut rights = combine(directory, directory) | Rights::LARGE;
            rights.set(Rights::GLOBAL, global(directory));
            let high = directory >> 13 & 0xff;
            let phys = high << 32 | directory & 0xffc0_0000 | linear & 0x003f_f000;
            return Ok(Leaf { at, value: directory, wide: false, phys, rights });
        }
        self.set_accessed(at, false, directory)?;
        let at = self.table_entry((directory & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4)?;
        let value = self.read_entry(at, false);
        if value & pte::PRESENT == 0 {
            return Err(Miss::NotPresent);
        }
        let mut rights = combine(directory, value);
        rights.set(Rights::GLOBAL, global(value));
        Ok(Leaf { at, value, wide: false, phys: value & 0xffff_f000, rights })
    }

    fn set_accessed(&mut self, at: u64, wide: bool, value: u64) -> std::result::Result<(), Miss> {
        let wanted = value | pte::ACCESSED;
        if wanted == value || self.update_entry(at, wide, value, wanted) {
            Ok(())
        } else {
            Err(Miss::Changed)
        }
    }

    /// What the memory map says of the page at guest physical `phys`.
    fn page_at(&mut self, phys: u64) -> Page {
        // The registers of the CPU's own interrupt controller are in front of whatever all CPUs see.
        if phys & !PAGE_OFFSET == self.controller_page {
            return Page { host: None, writes: WritePath::Bus };
        }
        self.map.page(phys, self.smm)
    }

    /// Takes note of where the page of the interrupt controller's registers is (SDM volume 3, section 11.4.5):
    /// the guest has put it elsewhere, or a saved state has.
    pub(crate) fn take_up_controller_page(&mut self) {
        const ENABLED: u64 = 1 << 11;
        const X2APIC: u64 = 1 << 10;
        let base = self.interrupts.read_msr(index::APIC_BASE).unwrap_or(0);
        let there = base & (ENABLED | X2APIC) == ENABLED;
        let page = if there { base & self.physical_mask() & !PAGE_OFFSET } else { NO_PAGE };
        if page != self.controller_page {
            self.controller_page = page;
            self.tlb.flush_every_asid();
            self.tlb.switch(self.pcid(), true);
        }
    }

    /// The bits that physical addresses have.
    fn physical_mask(&self) -> u64 {
        (1 << self.limits.phys_bits) - 1
    }

    fn on_host(&mut self, phys: u64, rights: Rights) -> Translation {
        let page = self.page_at(phys);
        let host = page.host.map(|page| HostPtr::new(page, 0));
        Translation { phys, host, writes: page.writes, rights }
    }

    /// The host page that reads at guest physical `phys` come from; `None` for the bus.
    fn host_page(&mut self, phys: u64) -> Option<HostPtr> {
        self.page_at(phys).host.map(|page| HostPtr::new(page, 0))
    }

    pub(crate) fn read_entry(&mut self, at: u64, wide: bool) -> u64 {
        let at = at & self.address_lines;
        match self.host_page(at) {
            Some(page) if wide => page.at(at).read::<u64>(),
            Some(page) => u64::from(page.at(at).read::<u32>()),
            None => self.bus.read_mmio(at, if wide { 8 } else { 4 }),
        }
    }

    /// Sees to it that physical addresses mean what the board says now.
    pub(crate) fn take_up_map(&mut self) {
        let version = self.group.map_version();
        let closed = !self.group.a20() && !self.in_smm();
        self.address_lines = if closed { !(1 << 20) } else { u64::MAX };
        if version != self.map_version {
            self.map_version = version;
            self.tlb.flush_every_asid();
            self.tlb.switch(self.pcid(), true);
        }
    }

    /// Reads physical memory as the CPU itself; bytes that are on no RAM come from the board.
    pub(crate) fn read_physical(&mut self, at: u64, buf: &mut [u8]) {
        for (at, byte) in (at..).zip(buf) {
            *byte = match self.host_page(at) {
                Some(page) => page.at(at).read(),
                None => self.bus.read_mmio(at, 1) as u8,
            };
        }
    }

    /// Reads physical memory within one page as the CPU itself.
    pub(crate) fn read_physical_page(&mut self, at: u64, buf: &mut [u8]) {
        match self.host_page(at) {
            Some(page) => page.at(at).read_bytes(buf),
            None => self.read_physical(at, buf),
        }
    }

    /// Reads physical memory within one page, if it is memory.
    pub(crate) fn read_memory_page(&mut self, at: u64, buf: &mut [u8]) -> bool {
        let page = self.host_page(at & self.address_lines);
        if let Some(page) = page {
            page.at(at).read_bytes(buf);
        }
        page.is_some()
    }

    /// Writes physical memory as the CPU itself.
    pub(crate) fn write_physical(&mut self, at: u64, data: &[u8]) {
        for (at, &byte) in (at..).zip(data) {
            self.write_elsewhere(at, &[byte]);
        }
    }

    /// Writes `data`, within one page, to wherever the memory map has writes go.
    pub(crate) fn write_elsewhere(&mut self, phys: u64, data: &[u8]) {
        match self.memory.write_target(phys, self.smm) {
            WriteTarget::Host(page) => {
                HostPtr::new(page, phys).write_bytes(data);
                self.break_block |= self.map.note_write(phys, self.smm);
            }
            WriteTarget::Bus => self.write_device(phys, data),
            WriteTarget::Lost => {}
        }
    }

    /// Replaces a page table entry if it still is `old`. Entries outside RAM keep their value.
    pub(crate) fn update_entry(&mut self, at: u64, wide: bool, old: u64, new: u64) -> bool {
        let at = at & self.address_lines;
        let Page { host: Some(page), writes: WritePath::Direct } = self.page_at(at) else {
            return true;
        };
        let entry = HostPtr::new(page, at);
        self.note_old(entry, if wide { 8 } else { 4 });
        self.recorder.iter_mut().for_each(|recorder| recorder.note_walk(entry));
        let done = if wide {
            entry.compare_exchange(old, new)
        } else {
            entry.compare_exchange(old as u32, new as u32)
        };
        if done {
            self.map.note_write(at, self.smm);
        }
        done
    }

    /// What `class` stands for at this moment.
    pub(crate) fn privilege_of(&self, class: Class) -> Privilege {
        match class {
            Class::Supervisor => Privilege::Supervisor,
            Class::User => Privilege::User,
            Class::SupervisorAc => Privilege::SupervisorAc,
            Class::Watched => self.privilege(),
        }
    }

    /// Translates and, if the page is memory, enters it into the first-level table of `class`.
    pub(crate) fn fill(
        &mut self,
        linear: u64,
        access: Access,
        class: Class,
    ) -> Result<Translation> {
        self.counters.count(Count::TlbMisses);
        let privilege = self.privilege_of(class);
        let found = self.translate(linear, access, privilege)?;
        self.enter_first_level(linear, access, class, &found);
        Ok(found)
    }

    /// Enters the page at `linear`, which is accessed `now`, into the first-level table of the class that
    /// runs, so that `wanted` hits. False if it does already, or can't: the page faults, is no memory, or its
    /// writes are watched; or it has not been written yet and is not now.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn refill(&mut self, linear: u64, now: Access, wanted: Access) -> bool {
        let class = self.class;
        let canonical = !self.long_mode() || self.is_canonical(linear);
        if !canonical || self.tlb.probe(class, linear, 1, wanted).is_some() {
            return false;
        }
        let Ok(found) = self.find_page(linear, now, self.privilege_of(class)) else {
            return false;
        };
        self.enter_first_level(linear, now, class, &found);
        self.tlb.probe(class, linear, 1, wanted).is_some()
    }

    /// Enters the page at `linear`, found for `access`, into the first-level table of `class`, if it is
    /// memory. If the access is a write, that is noted, so that it needs no notice later.
    fn enter_first_level(
        &mut self,
        linear: u64,
        access: Access,
        class: Class,
        found: &Translation,
    ) {
        let Some(host) = found.host else { return };
        let privilege = self.privilege_of(class);
        let rights = found.rights;
        let watched = class == Class::Watched;
        let read = !watched && self.allows(rights, Access::Read, privilege);
        let write = !watched
            && rights.contains(Rights::DIRTY)
            && self.allows(rights, Access::Write, privilege)
            && found.writes == WritePath::Direct
            && if access == Access::Write && self.recorder.is_none() {
                self.map.prepare_write(found.phys, self.smm)
            } else {
                self.map.is_quiet(found.phys, self.smm)
            };
        let write = match &mut self.recorder {
            None => write,
            Some(recorder) => {
                if access == Access::Write {
                    let linear = linear & !PAGE_OFFSET;
                    recorder.note_page(Written { class, linear, host, quiet: write });
                }
                false
            }
        };
        let exec = self.allows(rights, Access::Execute, privilege);
        let global = rights.contains(Rights::GLOBAL);
        self.tlb.enter(class, linear, host, [read, write, exec], global);
    }
}

#[cfg(test)]
mod tests;
