//! The only place where the CPU touches guest RAM through host addresses.
//!
//! Invariants:
//! - A [`HostPtr`] is made only from a [`HostPage`], which promises [`PAGE_SIZE`] bytes that live as
//!   long as the [`memory::GuestMemory`] it came from. A CPU keeps that memory alive by an `Arc` for
//!   its whole life, and neither a `HostPtr` nor a [`TlbEntry`] leaves its CPU.
//! - Every access stays within the one page. The pointer is made from a page and an offset below
//!   [`PAGE_SIZE`]; [`TlbEntry::hit`] asks that the offset leave room for the whole access, so one that
//!   leaves the page misses.
//!
//! Guest RAM is shared with other virtual CPUs and with devices, so accesses are volatile, and of the
//! guest's own width and order: on an x86-64 host each is one instruction, as atomic as the guest's
//! would be. Locked operations use the host's atomics.
#![allow(unsafe_code)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use memory::{HostPage, PAGE_SIZE};

use crate::int::Int;

/// Offset of an address within its page.
pub(crate) const PAGE_OFFSET: u64 = PAGE_SIZE - 1;

/// Serialises what the host can't do in one atomic step: locked accesses across pages, and, on hosts
/// without the instruction, unaligned or 16-byte ones. It guards no data of its own.
static SPLIT_LOCK: Mutex<()> = Mutex::new(());

/// A value at any alignment.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<T: Copy>(T);

/// Host address of a byte of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostPtr(usize);

impl HostPtr {
    /// The byte at `offset` (its bits below the page size) of `page`.
    pub(crate) fn new(page: HostPage, offset: u64) -> Self {
        Self(page.ptr as usize + (offset & PAGE_OFFSET) as usize)
    }

    /// The byte at `offset` (its bits below the page size) of the page that this one is in.
    #[inline(always)]
    pub(crate) fn at(self, offset: u64) -> Self {
        Self(self.0 & !(PAGE_OFFSET as usize) | (offset & PAGE_OFFSET) as usize)
    }

    /// The address as a number, to compare pages by.
    pub(crate) fn addr(self) -> usize {
        self.0
    }

    fn holds(self, len: usize) -> bool {
        // Guest pages are aligned on the host as well, so the page's end is seen in the address.
        (self.0 & PAGE_OFFSET as usize) + len <= PAGE_SIZE as usize
    }

    /// Reads a value that lies within the page.
    #[inline(always)]
    pub(crate) fn read<T: Int>(self) -> T {
        debug_assert!(self.holds(size_of::<T>()));
        // SAFETY: the module's invariants: the bytes are in one live page of guest RAM. Any bit
        // pattern is a valid integer, and the packed wrapper asks for no alignment.
        unsafe { (self.0 as *const Unaligned<T>).read_volatile().0 }
    }

    /// Writes a value that lies within the page.
    #[inline(always)]
    pub(crate) fn write<T: Int>(self, value: T) {
        debug_assert!(self.holds(size_of::<T>()));
        // SAFETY: as for `read`; guest RAM is mapped writable.
        unsafe { (self.0 as *mut Unaligned<T>).write_volatile(Unaligned(value)) }
    }

    /// Copies out of the page.
    pub(crate) fn read_bytes(self, buf: &mut [u8]) {
        assert!(self.holds(buf.len()));
        let mut at = self.0;
        let (words, rest) = buf.as_chunks_mut::<8>();
        for word in words {
            // SAFETY: the assertion above keeps the bytes in the page.
            *word = unsafe { (at as *const Unaligned<u64>).read_volatile() }.0.to_ne_bytes();
            at += 8;
        }
        for byte in rest {
            // SAFETY: as above.
            *byte = unsafe { (at as *const u8).read_volatile() };
            at += 1;
        }
    }

    /// Copies into the page.
    pub(crate) fn write_bytes(self, data: &[u8]) {
        assert!(self.holds(data.len()));
        let mut at = self.0;
        let (words, rest) = data.as_chunks::<8>();
        for word in words {
            let word = Unaligned(u64::from_ne_bytes(*word));
            // SAFETY: the assertion above keeps the bytes in the page.
            unsafe { (at as *mut Unaligned<u64>).write_volatile(word) };
            at += 8;
        }
        for byte in rest {
            // SAFETY: as above.
            unsafe { (at as *mut u8).write_volatile(*byte) };
            at += 1;
        }
    }

    /// Copies `len` bytes from `from`, upwards, between pages or within one.
    pub(crate) fn copy_from(self, from: Self, len: usize) {
        assert!(self.holds(len) && from.holds(len));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the assertion above keeps the bytes in the pages; to the compiler, guest RAM is memory
        // that others change, so no reference into it exists.
        unsafe {
            std::arch::asm!("rep movsb", inout("rcx") len => _, inout("rsi") from.0 => _,
                inout("rdi") self.0 => _, options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "x86_64"))]
        for i in 0..len {
            Self(self.0 + i).write(Self(from.0 + i).read::<u8>());
        }
    }

    /// Fills `len` bytes with `pattern`, from its lowest byte on, over and over.
    pub(crate) fn fill(self, pattern: u64, len: usize) {
        assert!(self.holds(len));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as for `copy_from`.
        unsafe {
            std::arch::asm!("rep stosq", inout("rcx") len / 8 => _, inout("rdi") self.0 => _,
                in("rax") pattern, options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "x86_64"))]
        for i in (0..len / 8 * 8).step_by(8) {
            Self(self.0 + i).write(pattern);
        }
        for i in len / 8 * 8..len {
            Self(self.0 + i).write((pattern >> (i % 8 * 8)) as u8);
        }
    }

    /// Replaces the value by `new` if it equals `old`, atomically; tells whether it did.
    pub(crate) fn compare_exchange<T: Int>(self, old: T, new: T) -> bool {
        assert!(self.holds(size_of::<T>()));
        let (old, new) = (old.to_u64(), new.to_u64());
        let order = Ordering::SeqCst;
        if !self.0.is_multiple_of(size_of::<T>()) {
            return self.compare_exchange_unaligned::<T>(old, new);
        }
        // SAFETY: the bytes are in the page, aligned as checked, and guest RAM is only ever accessed
        // by volatile or atomic means while CPUs run.
        unsafe {
            match size_of::<T>() {
                1 => AtomicU8::from_ptr(self.0 as *mut u8)
                    .compare_exchange(old as u8, new as u8, order, order)
                    .is_ok(),
                2 => AtomicU16::from_ptr(self.0 as *mut u16)
                    .compare_exchange(old as u16, new as u16, order, order)
                    .is_ok(),
                4 => AtomicU32::from_ptr(self.0 as *mut u32)
                    .compare_exchange(old as u32, new as u32, order, order)
                    .is_ok(),
                _ => AtomicU64::from_ptr(self.0 as *mut u64)
                    .compare_exchange(old, new, order, order)
                    .is_ok(),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[cold]
    fn compare_exchange_unaligned<T: Int>(self, old: u64, new: u64) -> bool {
        use std::arch::asm;
        let equal: u8;
        // SAFETY: the bytes are in the page (checked by the caller); x86 allows locked operations at
        // any alignment, Rust's atomics do not, hence the assembly.
        unsafe {
            match size_of::<T>() {
                2 => asm!("lock cmpxchg word ptr [{p}], {n:x}", "sete {z}", p = in(reg) self.0,
                    n = in(reg) new, z = out(reg_byte) equal, inout("rax") old => _),
                4 => asm!("lock cmpxchg dword ptr [{p}], {n:e}", "sete {z}", p = in(reg) self.0,
                    n = in(reg) new, z = out(reg_byte) equal, inout("rax") old => _),
                _ => asm!("lock cmpxchg qword ptr [{p}], {n}", "sete {z}", p = in(reg) self.0,
                    n = in(reg) new, z = out(reg_byte) equal, inout("rax") old => _),
            }
        }
        equal != 0
    }

    #[cfg(not(target_arch = "x86_64"))]
    #[cold]
    fn compare_exchange_unaligned<T: Int>(self, old: u64, new: u64) -> bool {
        with_split_lock(|| {
            let equal = self.read::<T>().to_u64() == old;
            if equal {
                self.write::<T>(T::from_u64(new));
            }
            equal
        })
    }

    /// CMPXCHG16B's memory half: replaces the 16-byte aligned value by `new` if it equals `old`;
    /// returns what was there.
    pub(crate) fn compare_exchange_16(self, old: u128, new: u128) -> u128 {
        assert!(self.holds(16) && self.0.is_multiple_of(16));
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("cmpxchg16b") {
            return self.native_compare_exchange_16(old, new);
        }
        with_split_lock(|| {
            let high = Self(self.0 + 8);
            let found = u128::from(self.read::<u64>()) | u128::from(high.read::<u64>()) << 64;
            if found == old {
                self.write(new as u64);
                high.write((new >> 64) as u64);
            }
            found
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn native_compare_exchange_16(self, old: u128, new: u128) -> u128 {
        let (low, high): (u64, u64);
        // SAFETY: the caller has checked that the processor has the instruction, and that the 16 bytes
        // are in the page and aligned. RBX is given back as it was; the compiler keeps it to itself.
        unsafe {
            std::arch::asm!(
                "xchg rsi, rbx",
                "lock cmpxchg16b xmmword ptr [rdi]",
                "mov rbx, rsi",
                in("rdi") self.0,
                inout("rsi") new as u64 => _,
                in("rcx") (new >> 64) as u64,
                inout("rax") old as u64 => low,
                inout("rdx") (old >> 64) as u64 => high,
            );
        }
        u128::from(low) | u128::from(high) << 64
    }
}

/// Runs `f` while no other CPU is in such a section.
pub(crate) fn with_split_lock<R>(f: impl FnOnce() -> R) -> R {
    let _guard = SPLIT_LOCK.lock().unwrap_or_else(|e| e.into_inner());
    f()
}

/// One entry of the first-level TLB: a guest page and where it is on the host. The layout is made for
/// generated code: the linear address is combined by exclusive or with the tag of the wanted kind of
/// access. If the page is the tag's, that leaves the offset in the page, which has to be low enough for
/// the whole access to be in the page; added to `host` it is the host address. If it is not, what it
/// leaves is above any offset.
///
/// An entry for nothing has as its tags the address of a page that belongs to another index; all zeroes
/// are one, but for index 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlbEntry {
    read: u64,
    write: u64,
    exec: u64,
    host: usize,
}

/// Kinds of access, as the TLB tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}

/// What a tag of the entry at `index` holds for a kind of access that is not allowed.
fn no_page(index: usize) -> u64 {
    u64::from(index == 0) << 12
}

impl TlbEntry {
    /// Offsets of fields, for generated code.
    pub(crate) const READ: usize = std::mem::offset_of!(Self, read);
    /// See [`Self::READ`].
    pub(crate) const WRITE: usize = std::mem::offset_of!(Self, write);
    /// See [`Self::READ`].
    pub(crate) const HOST: usize = std::mem::offset_of!(Self, host);

    /// The entry at `index` for nothing.
    pub(crate) fn empty(index: usize) -> Self {
        let tag = no_page(index);
        Self { read: tag, write: tag, exec: tag, host: 0 }
    }

    /// An entry, to be put at `index`, for the page at `linear` with host page `host`, for the given
    /// kinds of access.
    pub(crate) fn new(
        index: usize,
        linear: u64,
        host: HostPtr,
        [read, write, exec]: [bool; 3],
    ) -> Self {
        let page = linear & !PAGE_OFFSET;
        let tag = |allowed| if allowed { page } else { no_page(index) };
        Self {
            read: tag(read),
            write: tag(write),
            exec: tag(exec),
            host: host.0 & !(PAGE_OFFSET as usize),
        }
    }

    /// The tag for a kind of access.
    #[inline(always)]
    pub(crate) fn tag(&self, access: Access) -> u64 {
        match access {
            Access::Read => self.read,
            Access::Write => self.write,
            Access::Execute => self.exec,
        }
    }

    /// Whether this entry, which is at `index`, is for nothing.
    pub(crate) fn is_empty(&self, index: usize) -> bool {
        let tag = no_page(index);
        self.read == tag && self.write == tag && self.exec == tag
    }

    /// Whether instructions may be fetched by this entry, which is at `index`.
    pub(crate) fn is_code(&self, index: usize) -> bool {
        self.exec != no_page(index)
    }

    /// The host address of the `len` bytes at `linear`, at most a page, if they are in this entry's
    /// page and `access` is allowed. The entry must be the one that `linear`'s page number selects.
    #[inline(always)]
    pub(crate) fn hit(&self, linear: u64, len: usize, access: Access) -> Option<HostPtr> {
        let offset = self.tag(access) ^ linear;
        (offset <= PAGE_SIZE - len as u64).then(|| HostPtr(self.host + offset as usize))
    }

    /// Takes away the right to write, if the entry, which is at `index`, is for the host page at `host`.
    pub(crate) fn protect(&mut self, index: usize, host: HostPtr) {
        if self.host == host.0 & !(PAGE_OFFSET as usize) {
            self.write = no_page(index);
        }
    }

    /// Takes away the right to write from the entry, which is at `index`.
    pub(crate) fn forbid_writes(&mut self, index: usize) {
        self.write = no_page(index);
    }

    /// The page that instructions may be fetched from by the entry, which is at `index`.
    pub(crate) fn code(&self, index: usize) -> Option<u64> {
        self.is_code(index).then_some(self.exec)
    }

    /// Gives or takes the right to write, if the entry, which is at `index`, is for the page at `linear`
    /// and has it at `host`.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn let_write(&mut self, index: usize, linear: u64, host: HostPtr, allowed: bool) {
        let page = linear & !PAGE_OFFSET;
        if self.read == page && self.host == host.0 & !(PAGE_OFFSET as usize) {
            self.write = if allowed { page } else { no_page(index) };
        }
    }

    /// Whether the entry is for the page at `linear`, whose page number selects it.
    pub(crate) fn is_for(&self, linear: u64) -> bool {
        let page = linear & !PAGE_OFFSET;
        self.read == page || self.write == page || self.exec == page
    }

    /// Whether the entry, which is at `index`, maps a page in the region of `1 << shift` bytes that holds
    /// `linear`.
    pub(crate) fn is_within(&self, index: usize, linear: u64, shift: u32) -> bool {
        let region = linear >> shift;
        let within = |tag: u64| tag != no_page(index) && tag >> shift == region;
        within(self.read) || within(self.write) || within(self.exec)
    }
}
