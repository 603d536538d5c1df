//! Access to memory from handlers: by segment and offset, by linear address, and the stack.
//!
//! The fast path of a load or store is a segment check that is one test for flat segments and a probe
//! of the TLB. Everything else (limits, canonical addresses, page walks, accesses across pages,
//! memory-mapped devices, alignment checks, data breakpoints) is behind it, out of line.
//!
//! Invariants:
//! - A store changes memory only after all of its bytes are known to be writable.
//! - A store into a page that holds decoded code tells the page's log and ends the running block.

use memory::{PAGE_SIZE, WritePath};

use crate::cpu::Cpu;
use crate::exception::{Exception, Result, vector};
use crate::flags::bits;
use crate::host::{Access, HostPtr, PAGE_OFFSET, with_split_lock};
use crate::int::Int;
use crate::mmu::Privilege;
use crate::op::Op;
use crate::regs::CR0_AM;
use crate::segment::{READ_FLAT, SS, WRITE_FLAT};
use crate::tlb::Class;

/// Stands for no segment in the slow paths: faults of the address are #GP(0).
const NO_SEGMENT: u8 = 7;

/// One page's worth of an access: where its bytes are.
#[derive(Clone, Copy)]
enum Place {
    /// In memory; the physical address is there for the page log.
    Ram(HostPtr, u64),
    /// On the board, at this physical address.
    Device(u64),
    /// At this physical address, read in the one place (`None` for the board) and written in another:
    /// ROM, flash, shadow RAM.
    Split(Option<HostPtr>, u64),
}

/// Where instructions are fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodePage {
    /// Guest physical address of the page.
    pub(crate) phys: u64,
    /// Its host page; `None` if it is not RAM.
    pub(crate) host: Option<HostPtr>,
}

impl Cpu {
    /// The offset of `op`'s memory operand in its segment, within its address size.
    #[inline(always)]
    pub(crate) fn ea(&self, op: &Op) -> u64 {
        let base = self.gpr[usize::from(op.base)];
        let index = self.gpr[usize::from(op.index)] << (op.scale & 3);
        let sum = base.wrapping_add(index).wrapping_add(op.disp);
        match op.addr_size {
            8 => sum,
            4 => sum & 0xffff_ffff,
            _ => sum & 0xffff,
        }
    }

    /// Loads from `seg:offset`.
    #[inline(always)]
    pub(crate) fn load<T: Int>(&mut self, seg: u8, offset: u64) -> Result<T> {
        let linear = self.linear(seg, offset, T::BYTES, Access::Read)?;
        match self.tlb.probe(self.class, linear, T::BYTES, Access::Read) {
            Some(host) => Ok(host.read()),
            None => self.load_slow(seg, linear, self.class),
        }
    }

    /// Stores to `seg:offset`.
    #[inline(always)]
    pub(crate) fn store<T: Int>(&mut self, seg: u8, offset: u64, value: T) -> Result {
        let linear = self.linear(seg, offset, T::BYTES, Access::Write)?;
        match self.tlb.probe(self.class, linear, T::BYTES, Access::Write) {
            Some(host) => {
                host.write(value);
                Ok(())
            }
            None => self.store_slow(seg, linear, value, self.class),
        }
    }

    /// Loads the memory operand.
    #[inline(always)]
    pub(crate) fn load_op<T: Int>(&mut self, op: &Op) -> Result<T> {
        self.load(op.seg, self.ea(op))
    }

    /// Stores the memory operand.
    #[inline(always)]
    pub(crate) fn store_op<T: Int>(&mut self, op: &Op, value: T) -> Result {
        self.store(op.seg, self.ea(op), value)
    }

    /// Reads the memory operand and replaces it by `f` of it; returns the old value. The operand is
    /// known to be writable before `f` runs. With `locked`, no other access comes between; `f` may then
    /// run several times.
    #[inline(always)]
    pub(crate) fn update_op<T: Int>(
        &mut self,
        op: &Op,
        locked: bool,
        f: impl FnMut(T) -> T,
    ) -> Result<T> {
        self.update(op.seg, self.ea(op), locked, f)
    }

    /// [`Self::update_op`] at `seg:offset`.
    #[inline(always)]
    pub(crate) fn update<T: Int>(
        &mut self,
        seg: u8,
        offset: u64,
        locked: bool,
        mut f: impl FnMut(T) -> T,
    ) -> Result<T> {
        let linear = self.linear(seg, offset, T::BYTES, Access::Write)?;
        match self.tlb.probe(self.class, linear, T::BYTES, Access::Write) {
            // An entry that is writable is readable: only the rights of its one page were asked for.
            Some(host) => Ok(update_host(host, locked, &mut f)),
            None => self.update_slow(seg, linear, locked, &mut f),
        }
    }

    /// Raises what a store of `len` bytes, at most a page, to `seg:offset` would raise.
    pub(crate) fn probe_write(&mut self, seg: u8, offset: u64, len: usize) -> Result {
        let linear = self.linear(seg, offset, len, Access::Write)?;
        self.places(seg, linear, len, Access::Write, self.class).map(|_| ())
    }

    /// Loads `buf.len()` bytes, at most a page, from `seg:offset`.
    pub(crate) fn load_bytes(&mut self, seg: u8, offset: u64, buf: &mut [u8]) -> Result {
        let linear = self.linear(seg, offset, buf.len(), Access::Read)?;
        self.read_linear(seg, linear, buf, self.class)
    }

    /// Stores `data`, at most a page, to `seg:offset`: all of it or nothing.
    pub(crate) fn store_bytes(&mut self, seg: u8, offset: u64, data: &[u8]) -> Result {
        let linear = self.linear(seg, offset, data.len(), Access::Write)?;
        self.write_linear(seg, linear, data, self.class)
    }

    /// CMPXCHG16B's memory half: compares the 16 bytes at `seg:offset`, 16-byte aligned, with `old` and
    /// replaces them by `new` if equal. Returns what was there.
    pub(crate) fn compare_exchange_16(
        &mut self,
        seg: u8,
        offset: u64,
        old: u128,
        new: u128,
    ) -> Result<u128> {
        let linear = self.linear(seg, offset, 16, Access::Write)?;
        if linear % 16 != 0 {
            return Err(Exception::GP0);
        }
        let (place, _) = self.places(seg, linear, 16, Access::Write, self.class)?;
        match place {
            Place::Ram(host, phys) => {
                self.note_old(host, 16);
                let found = host.compare_exchange_16(old, new);
                self.note_store(phys, 16);
                Ok(found)
            }
            Place::Device(_) | Place::Split(..) => {
                let mut bytes = [0; 16];
                self.copy_out(linear, place, None, &mut bytes);
                let found = u128::from_le_bytes(bytes);
                let value = if found == old { new } else { found };
                self.copy_in(linear, place, None, &value.to_le_bytes());
                Ok(found)
            }
        }
    }

    /// Loads from a linear address as the CPU itself: descriptor tables, task state segments.
    pub(crate) fn load_linear<T: Int>(&mut self, linear: u64) -> Result<T> {
        let linear = linear & self.system_mask();
        match self.tlb.probe(Class::Supervisor, linear, T::BYTES, Access::Read) {
            Some(host) => Ok(host.read()),
            None => self.load_slow(NO_SEGMENT, linear, Class::Supervisor),
        }
    }

    /// Stores to a linear address on behalf of `class`.
    pub(crate) fn store_as<T: Int>(&mut self, class: Class, linear: u64, value: T) -> Result {
        let linear = linear & self.system_mask();
        match self.tlb.probe(class, linear, T::BYTES, Access::Write) {
            Some(host) => {
                host.write(value);
                Ok(())
            }
            None => self.store_slow(SS, linear, value, class),
        }
    }

    /// Stores to a linear address as the CPU itself.
    pub(crate) fn store_linear<T: Int>(&mut self, linear: u64, value: T) -> Result {
        let linear = linear & self.system_mask();
        self.store_slow(NO_SEGMENT, linear, value, Class::Supervisor)
    }

    /// Raises what a store of `len` bytes, at most a page, by the CPU itself would raise.
    pub(crate) fn probe_linear(&mut self, linear: u64, len: usize) -> Result {
        let linear = linear & self.system_mask();
        self.places(NO_SEGMENT, linear, len, Access::Write, Class::Supervisor).map(|_| ())
    }

    /// Width of the linear addresses that the CPU itself uses.
    fn system_mask(&self) -> u64 {
        if self.long_mode() { u64::MAX } else { 0xffff_ffff }
    }

    /// Replaces the value at a linear address as the CPU itself, atomically.
    pub(crate) fn update_linear<T: Int>(
        &mut self,
        linear: u64,
        mut f: impl FnMut(T) -> T,
    ) -> Result<T> {
        let linear = linear & self.system_mask();
        let (first, second) =
            self.places(NO_SEGMENT, linear, T::BYTES, Access::Write, Class::Supervisor)?;
        Ok(self.update_places(linear, first, second, true, &mut f))
    }

    /// The page that the instruction at linear address `linear` is fetched from.
    #[inline]
    pub(crate) fn code_page(&mut self, linear: u64) -> Result<CodePage> {
        if self.long_mode() && !self.is_canonical(linear) {
            return Err(Exception::GP0);
        }
        let found = self.fill(linear, Access::Execute, self.class)?;
        Ok(CodePage { phys: found.phys, host: found.host })
    }

    /// The host address that the instruction at `linear` is fetched from, if the TLB has it at hand.
    #[inline(always)]
    pub(crate) fn probe_code(&self, linear: u64) -> Option<HostPtr> {
        self.tlb.probe(self.class, linear, 1, Access::Execute)
    }

    /// Fetches instruction bytes at linear address `linear`, which must not run past its page's end.
    pub(crate) fn fetch(&mut self, linear: u64, buf: &mut [u8]) -> Result {
        let page = self.code_page(linear)?;
        let offset = linear & PAGE_OFFSET;
        let len = buf.len().min((PAGE_SIZE - offset) as usize);
        match page.host {
            Some(host) => host.at(offset).read_bytes(&mut buf[..len]),
            None => {
                for (i, byte) in buf[..len].iter_mut().enumerate() {
                    *byte = self.bus.read_mmio(page.phys + offset + i as u64, 1) as u8;
                }
            }
        }
        Ok(())
    }

    /// Pushes `value`.
    #[inline(always)]
    pub(crate) fn push<T: Int>(&mut self, value: T) -> Result {
        let sp = self.gpr[4].wrapping_sub(T::BYTES as u64) & self.stack_mask;
        self.store(SS, sp, value)?;
        self.set_sp(sp);
        Ok(())
    }

    /// Pops a value.
    #[inline(always)]
    pub(crate) fn pop<T: Int>(&mut self) -> Result<T> {
        let value = self.load(SS, self.gpr[4] & self.stack_mask)?;
        self.set_sp(self.gpr[4].wrapping_add(T::BYTES as u64) & self.stack_mask);
        Ok(value)
    }

    /// Sets the stack pointer in the width of the stack segment.
    #[inline(always)]
    pub(crate) fn set_sp(&mut self, sp: u64) {
        // A 16-bit stack leaves the rest of the register; a 32-bit one clears it.
        let keep = if self.stack_mask == 0xffff { !0xffff } else { 0 };
        self.gpr[4] = self.gpr[4] & keep | sp & self.stack_mask;
    }

    /// The linear address of `seg:offset`, after the segment's checks for `len` bytes.
    #[inline(always)]
    pub(crate) fn linear(&self, seg: u8, offset: u64, len: usize, access: Access) -> Result<u64> {
        let cache = &self.seg_access[usize::from(seg & 7)];
        let flat = if access == Access::Write { WRITE_FLAT } else { READ_FLAT };
        if cache.flags & flat == 0 {
            self.check_segment(seg, offset, len, access)?;
        }
        Ok(cache.base.wrapping_add(offset) & self.linear_mask)
    }

    /// Whose rights the running code has.
    pub(crate) fn privilege(&self) -> Privilege {
        if self.cpl == 3 {
            Privilege::User
        } else if self.system_flags & bits::AC != 0 {
            Privilege::SupervisorAc
        } else {
            Privilege::Supervisor
        }
    }

    /// Finds all bytes of an access, raising whatever is to be raised. The second place is there if
    /// the access runs into another page.
    fn places(
        &mut self,
        seg: u8,
        linear: u64,
        len: usize,
        access: Access,
        class: Class,
    ) -> Result<(Place, Option<Place>)> {
        let first_len = ((PAGE_SIZE - (linear & PAGE_OFFSET)) as usize).min(len);
        let linear = if seg == NO_SEGMENT { linear } else { self.untagged(linear) };
        if class == Class::Watched {
            self.check_canonical(seg, linear)?;
            self.check_alignment(linear, len)?;
        }
        let first = self.place(seg, linear, access, class)?;
        let second = if first_len < len {
            // The tables of long mode may be above 4 GiB while compatibility code runs.
            let mask = if linear >> 32 == 0 { self.linear_mask } else { u64::MAX };
            let next = linear.wrapping_add(first_len as u64) & mask;
            Some(self.place(seg, next, access, class)?)
        } else {
            None
        };
        if class == Class::Watched {
            self.note_data_breakpoints(linear, len, access);
        }
        Ok((first, second))
    }

    /// #SS or #GP for an address that is not canonical, the tag of a program's left aside.
    pub(crate) fn check_canonical(&self, seg: u8, linear: u64) -> Result {
        let linear = if seg == NO_SEGMENT { linear } else { self.untagged(linear) };
        if self.long_mode() && !self.is_canonical(linear) {
            return Err(if seg == SS { Exception::SS0 } else { Exception::GP0 });
        }
        Ok(())
    }

    fn place(&mut self, seg: u8, linear: u64, access: Access, class: Class) -> Result<Place> {
        self.check_canonical(seg, linear)?;
        let found = self.fill(linear, access, class)?;
        let phys = found.phys | linear & PAGE_OFFSET;
        let host = found.host.map(|host| host.at(linear & PAGE_OFFSET));
        let place = match (host, found.writes) {
            (Some(host), WritePath::Direct) => Place::Ram(host, phys),
            (Some(host), _) if access != Access::Write => Place::Ram(host, phys),
            (None, WritePath::Bus) => Place::Device(phys),
            // A page of the hypervisor's.
            _ if access == Access::Write && self.is_protected(phys) => return Err(Exception::GP0),
            (host, _) => Place::Split(host, phys),
        };
        let recorded = self.recorder.as_ref().is_some_and(|recorder| recorder.is_on());
        if recorded && !matches!(place, Place::Ram(..)) {
            return Err(Exception::UNTRIED);
        }
        Ok(place)
    }

    /// Notes in the record, if there is one, that `len` bytes at `host` are about to be replaced.
    pub(crate) fn note_old(&mut self, host: HostPtr, len: usize) {
        if let Some(recorder) = &mut self.recorder {
            recorder.note(host, len);
        }
    }

    /// #AC for a misaligned user access while CR0.AM and RFLAGS.AC are set. An operand's length tells
    /// what it is, and so its alignment (APM volume 2, section 8.2.18).
    pub(crate) fn check_alignment(&self, linear: u64, len: usize) -> Result {
        let active = self.cpl == 3 && self.cr0 & CR0_AM != 0 && self.system_flags & bits::AC != 0;
        let alignment: u64 = match len {
            2 | 4 | 8 | 16 => len as u64,
            32 => 16,
            // Extended-precision and packed decimal numbers.
            10 => 8,
            // The environments of x87, and its whole state, in 16- and in 32-bit format.
            14 | 94 => 2,
            28 | 108 | 512 => 4,
            _ => 1,
        };
        if active && linear & (alignment - 1) != 0 {
            return Err(Exception::with_code(vector::AC, 0));
        }
        Ok(())
    }

    /// Runs `f` without alignment checks, which some instructions are free of.
    pub(crate) fn unaligned<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        let checked = if self.cpl == 3 { self.system_flags & bits::AC } else { 0 };
        self.system_flags &= !checked;
        let result = f(self);
        self.system_flags |= checked;
        result
    }

    #[cold]
    #[inline(never)]
    fn load_slow<T: Int>(&mut self, seg: u8, linear: u64, class: Class) -> Result<T> {
        let (first, second) = self.places(seg, linear, T::BYTES, Access::Read, class)?;
        Ok(self.read_places(linear, first, second))
    }

    #[cold]
    #[inline(never)]
    fn store_slow<T: Int>(&mut self, seg: u8, linear: u64, value: T, class: Class) -> Result {
        let (first, second) = self.places(seg, linear, T::BYTES, Access::Write, class)?;
        self.write_places(linear, first, second, value);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn update_slow<T: Int>(
        &mut self,
        seg: u8,
        linear: u64,
        locked: bool,
        f: &mut dyn FnMut(T) -> T,
    ) -> Result<T> {
        let (first, second) = self.places(seg, linear, T::BYTES, Access::Write, self.class)?;
        Ok(self.update_places(linear, first, second, locked, f))
    }

    fn update_places<T: Int>(
        &mut self,
        linear: u64,
        first: Place,
        second: Option<Place>,
        locked: bool,
        f: &mut dyn FnMut(T) -> T,
    ) -> T {
        if let (Place::Ram(host, phys), None) = (first, second) {
            self.note_old(host, T::BYTES);
            let old = update_host(host, locked, f);
            self.note_store(phys, T::BYTES);
            return old;
        }
        let mut update = || {
            let old = self.read_places(linear, first, second);
            self.write_places(linear, first, second, f(old));
            old
        };
        if locked { with_split_lock(update) } else { update() }
    }

    fn read_places<T: Int>(&mut self, linear: u64, first: Place, second: Option<Place>) -> T {
        match (first, second) {
            (Place::Ram(host, _), None) => host.read(),
            (Place::Device(phys), None) if T::BYTES <= 8 => {
                T::from_u64(self.bus.read_mmio(phys, T::BYTES as u8))
            }
            _ => {
                let mut bytes = [0; 16];
                self.copy_out(linear, first, second, &mut bytes[..T::BYTES]);
                T::from_le(&bytes)
            }
        }
    }

    fn write_places<T: Int>(&mut self, linear: u64, first: Place, second: Option<Place>, value: T) {
        match (first, second) {
            (Place::Ram(host, phys), None) => {
                self.note_old(host, T::BYTES);
                host.write(value);
                self.note_store(phys, T::BYTES);
            }
            (Place::Device(phys), None) if T::BYTES <= 8 => {
                self.bus.write_mmio(phys, T::BYTES as u8, value.to_u64());
                // The device may have changed what this CPU has to look at.
                self.break_block |= self.signals.pending() != 0;
            }
            _ => {
                let mut bytes = [0; 16];
                value.to_le(&mut bytes);
                self.copy_in(linear, first, second, &bytes[..T::BYTES]);
            }
        }
    }

    fn read_linear(&mut self, seg: u8, linear: u64, buf: &mut [u8], class: Class) -> Result {
        let (first, second) = self.places(seg, linear, buf.len(), Access::Read, class)?;
        self.copy_out(linear, first, second, buf);
        Ok(())
    }

    fn write_linear(&mut self, seg: u8, linear: u64, data: &[u8], class: Class) -> Result {
        let (first, second) = self.places(seg, linear, data.len(), Access::Write, class)?;
        self.copy_in(linear, first, second, data);
        Ok(())
    }

    fn copy_out(&mut self, linear: u64, first: Place, second: Option<Place>, buf: &mut [u8]) {
        let split = ((PAGE_SIZE - (linear & PAGE_OFFSET)) as usize).min(buf.len());
        let (head, tail) = buf.split_at_mut(split);
        for (place, part) in [(Some(first), head), (second, tail)] {
            match place {
                Some(Place::Ram(host, _)) => host.read_bytes(part),
                Some(Place::Split(Some(host), _)) => host.read_bytes(part),
                Some(Place::Device(phys) | Place::Split(None, phys)) => {
                    self.read_device(phys, part);
                }
                None => {}
            }
        }
    }

    fn copy_in(&mut self, linear: u64, first: Place, second: Option<Place>, data: &[u8]) {
        let split = ((PAGE_SIZE - (linear & PAGE_OFFSET)) as usize).min(data.len());
        let (head, tail) = data.split_at(split);
        for (place, part) in [(Some(first), head), (second, tail)] {
            match place {
                Some(Place::Ram(host, phys)) => {
                    self.note_old(host, part.len());
                    host.write_bytes(part);
                    self.note_store(phys, part.len());
                }
                Some(Place::Device(phys)) => self.write_device(phys, part),
                Some(Place::Split(_, phys)) => self.write_elsewhere(phys, part),
                None => {}
            }
        }
    }

    /// Reads registers of the board. They are at most 8 bytes wide; wider accesses come in pieces.
    fn read_device(&self, phys: u64, buf: &mut [u8]) {
        let mut at = phys;
        for piece in buf.chunks_mut(8) {
            if piece.len().is_power_of_two() {
                let value = self.bus.read_mmio(at, piece.len() as u8);
                piece.copy_from_slice(&value.to_le_bytes()[..piece.len()]);
            } else {
                for (i, byte) in piece.iter_mut().enumerate() {
                    *byte = self.bus.read_mmio(at + i as u64, 1) as u8;
                }
            }
            at += piece.len() as u64;
        }
    }

    /// Writes registers of the board, in pieces as [`Self::read_device`] reads them.
    pub(crate) fn write_device(&mut self, phys: u64, data: &[u8]) {
        let mut at = phys;
        for piece in data.chunks(8) {
            if piece.len().is_power_of_two() {
                let mut value = [0; 8];
                value[..piece.len()].copy_from_slice(piece);
                self.bus.write_mmio(at, piece.len() as u8, u64::from_le_bytes(value));
            } else {
                for (i, byte) in piece.iter().enumerate() {
                    self.bus.write_mmio(at + i as u64, 1, u64::from(*byte));
                }
            }
            at += piece.len() as u64;
        }
        // The device may have changed what this CPU has to look at.
        self.break_block |= self.signals.pending() != 0;
    }

    /// Tells the page log of a store that did not go through a writable TLB entry.
    fn note_store(&mut self, phys: u64, len: usize) {
        // The bytes are within one page.
        debug_assert!((phys & PAGE_OFFSET) + len as u64 <= PAGE_SIZE);
        self.break_block |= self.map.note_write(phys, self.smm);
    }
}

#[inline(always)]
fn update_host<T: Int>(host: HostPtr, locked: bool, f: &mut (impl FnMut(T) -> T + ?Sized)) -> T {
    loop {
        let old = host.read::<T>();
        let new = f(old);
        if !locked {
            host.write(new);
            return old;
        }
        if host.compare_exchange(old, new) {
            return old;
        }
    }
}
