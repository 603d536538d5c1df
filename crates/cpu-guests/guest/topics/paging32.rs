//! Paging of 32-bit modes: two levels with pages of 4 MiB and PSE-36, and PAE with its pointers, reserved bits, NX,
//! SMEP and SMAP (SDM volume 3, sections 4.3, 4.4, 4.6 and 4.7; APM volume 2, section 5.2).

use crate::kit::legacy::*;
use crate::kit::{check, cpuid, cr0, cr2, has, rdmsr, skip, wrmsr};
use crate::legacy;

#[repr(C, align(4096))]
struct Page<T, const N: usize>([T; N]);
static mut DIRECTORY: Page<u32, 1024> = Page([0; 1024]);
/// Of the first 8 MiB, and of what is tried.
static mut LOW: [Page<u32, 1024>; 2] = [const { Page([0; 1024]) }; 2];
static mut TABLE: Page<u32, 1024> = Page([0; 1024]);
/// Four pointers, not at the page's beginning.
static mut POINTERS: Page<u64, 512> = Page([0; 512]);
static mut DIRECTORIES: [Page<u64, 512>; 2] = [const { Page([0; 512]) }; 2];
static mut WIDE_TABLE: Page<u64, 512> = Page([0; 512]);
/// What the page that is tried holds: code that returns, and a mark.
static mut TRIED: Page<u32, 1024> = Page([0; 1024]);

const PE: u32 = 0x8000_0031;
const WP: u32 = 1 << 16;
const PSE: u32 = 1 << 4;
const PAE: u32 = 1 << 5;
const SMEP: u32 = 1 << 20;
const SMAP: u32 = 1 << 21;
const P: u32 = 1;
const W: u32 = 2;
const U: u32 = 4;
const A: u32 = 0x20;
const D: u32 = 0x40;
const LARGE: u32 = 0x80;
const EFER: u32 = 0xc000_0080;
const NXE: u64 = 1 << 11;
const MARK: u32 = 0xc390_90c3;

/// The address that is tried: entry 201h of the directory, 3 of the table; with PAE, in the third gigabyte.
const TRIED_AT: u32 = 0x8040_3000;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FETCH: u32 = 2;
/// What ends a program to which nothing happened.
const DONE: (u32, u32) = (0x90, 0);
const PF: u32 = 14;
const GP: u32 = 13;

/// Switches paging on and tries the access, at CPL 3 if wanted; tells the event.
fn attempt(cr4: u32, cr3: u32, cr0: u32, kind: u32, at: u32, user: bool) -> (u32, u32) {
    reset();
    for (n, value) in [cr4, cr3, cr0, kind, at, u32::from(user)].into_iter().enumerate() {
        set_out(n, value);
    }
    legacy!([
        "mov eax, [LEGACY_OUT]", "mov cr4, eax",
        "mov eax, [LEGACY_OUT + 4]", "mov cr3, eax",
        "mov eax, [LEGACY_OUT + 8]", "mov cr0, eax", "jmp 2f", "2:",
        "mov ecx, [LEGACY_OUT + 16]", "mov edx, [LEGACY_OUT + 12]",
        "cmp dword ptr [LEGACY_OUT + 20], 0", "je 3f",
        "mov eax, 0x2b", "mov ds, eax", "mov es, eax", "mov eax, esp", "push 0x2b", "push eax", "push 2", "push 0x23",
        "lea eax, [3f]", "push eax", "iretd",
        "3:", "cmp edx, 1", "je 4f", "ja 5f", "mov eax, [ecx]", "mov [LEGACY_OUT + 24], eax", "jmp 6f",
        "4: mov dword ptr [ecx], 0x77", "jmp 6f",
        "5: call ecx",
        "6: int 0x90",
    ])
}

fn tried() -> u32 {
    unsafe {
        (&raw mut TRIED).cast::<u32>().write_volatile(MARK);
        &raw const TRIED as u32
    }
}
fn entry(table: *mut u32, n: usize) -> *mut u32 {
    unsafe { table.add(n) }
}
fn directory() -> *mut u32 {
    &raw mut DIRECTORY as *mut u32
}
fn table() -> *mut u32 {
    &raw mut TABLE as *mut u32
}

/// Two levels: the first 8 MiB as they are, and [`TRIED_AT`] by entries with these bits.
fn two_levels(upper: u32, lower: u32) {
    unsafe {
        for n in 0..2048u32 {
            let low = (&raw mut LOW).cast::<u32>().add(n as usize);
            low.write_volatile(n << 12 | P | W | U);
        }
        core::ptr::write_bytes(directory(), 0, 1024);
        core::ptr::write_bytes(table(), 0, 1024);
        for n in 0..2 {
            let low = (&raw mut LOW).cast::<u32>().add(1024 * n) as u32;
            entry(directory(), n).write_volatile(low | P | W | U);
        }
        entry(directory(), 0x201).write_volatile(table() as u32 | upper);
        entry(table(), 3).write_volatile(tried() | lower);
    }
}
fn bits() -> (u32, u32) {
    unsafe {
        let (upper, lower) = (entry(directory(), 0x201), entry(table(), 3));
        (upper.read_volatile() & (A | D), lower.read_volatile() & (A | D))
    }
}

fn small_pages() {
    let cr3 = directory() as u32;
    let go = |cr4: u32, cr0: u32, kind: u32, user: bool| attempt(cr4, cr3, cr0, kind, TRIED_AT, user);
    two_levels(P | W | U, P | W | U);
    check("a read", (go(0, PE, READ, false), out(6)), (DONE, MARK));
    check("accessed", bits(), (A, A));
    check("a write", (go(0, PE, WRITE, true), bits()), (DONE, (A, A | D)));
    for (name, upper, lower) in [("directory", W | U, P | W | U), ("table", P | W | U, W | U)] {
        two_levels(upper, lower);
        for (kind, user, code) in [(READ, false, 0), (WRITE, false, 2), (READ, true, 4), (WRITE, true, 6)] {
            check(format_args!("not present, {name}"), go(0, PE, kind, user), (PF, code));
            check("CR2", cr2(), TRIED_AT.into());
        }
        check("a fetch, without NX", go(0, PE, FETCH, false), (PF, 0));
    }
    for (upper, lower) in [(P | U, P | W | U), (P | W | U, P | U), (P | U, P | U)] {
        two_levels(upper, lower);
        check("read-only: a read", go(0, PE, READ, true), DONE);
        check("read-only: a user's write", go(0, PE, WRITE, true), (PF, 7));
        check("read-only: the supervisor's", go(0, PE, WRITE, false), DONE);
        two_levels(upper, lower);
        check("read-only: with WP", go(0, PE | WP, WRITE, false), (PF, 3));
        check("not dirty", bits().1 & D, 0);
    }
    for (upper, lower) in [(P | W, P | W | U), (P | W | U, P | W)] {
        two_levels(upper, lower);
        check("the supervisor's: its own read", go(0, PE, READ, false), DONE);
        check("the supervisor's: a user's read", go(0, PE, READ, true), (PF, 5));
        check("the supervisor's: a user's write", go(0, PE, WRITE, true), (PF, 7));
        check("the supervisor's: a user's fetch", go(0, PE, FETCH, true), (PF, 5));
    }
    // Bits that mean nothing: PAT, G, those of the system, the size without PSE, PWT and PCD, CR3's lowest.
    two_levels(P | W | U | LARGE | 0xf18, P | W | U | 0xf98);
    check("bits without effect", (go(0, PE, READ, false), out(6)), (DONE, MARK));
    check("CR3's", attempt(0, cr3 | 0xfff, PE, READ, TRIED_AT, false), DONE);
}

fn large_pages() {
    let cr3 = directory() as u32;
    let at = tried() & 0x3f_ffff;
    let base = tried() & !0x3f_ffff;
    let linear = 0x8040_0000 | at;
    let go = |bits: u32, cr0: u32, kind: u32, user: bool| {
        two_levels(0, 0);
        unsafe { entry(directory(), 0x201).write_volatile(base | LARGE | bits) };
        attempt(PSE, cr3, cr0, kind, linear, user)
    };
    check("4 MiB", (go(P | W | U, PE, READ, true), out(6)), (DONE, MARK));
    check("4 MiB: accessed", bits().0, A);
    check("4 MiB: a write", (go(P | W | U, PE, WRITE, true), bits().0), (DONE, A | D));
    check("4 MiB: read-only", go(P | U, PE | WP, WRITE, false), (PF, 3));
    check("4 MiB: the supervisor's", go(P | W, PE, READ, true), (PF, 5));
    check("4 MiB: PAT and G", go(P | W | U | 0x1100, PE, READ, true), DONE);
    check("4 MiB: bit 21 is reserved", go(P | W | U | 1 << 21, PE, READ, false), (PF, 9));
    check("4 MiB: a user's", go(P | W | U | 1 << 21, PE, WRITE, true), (PF, 0xf));
    let width = cpuid(0x8000_0008, 0)[0] & 0xff;
    for n in 0..8u32 {
        let found = go(P | W | U | 1 << (13 + n), PE, READ, false);
        if has(1, 3, 17) && 32 + n < width {
            // There is no memory.
            check(format_args!("PSE-36: address bit {}", 32 + n), (found, out(6) != MARK), (DONE, true));
        } else {
            check(format_args!("reserved: address bit {}", 32 + n), found, (PF, 9));
        }
    }
}

fn wide_table() -> *mut u64 {
    &raw mut WIDE_TABLE as *mut u64
}
fn pointers() -> *mut u64 {
    unsafe { (&raw mut POINTERS).cast::<u64>().add(4) }
}

/// PAE: the first gigabyte by large pages with `low`'s bits, and [`TRIED_AT`] by entries with these bits.
fn pae(low: u64, upper: u64, lower: u64) {
    unsafe {
        let first = (&raw mut DIRECTORIES).cast::<u64>();
        let third = first.add(512);
        core::ptr::write_bytes(third, 0, 512);
        core::ptr::write_bytes(wide_table(), 0, 512);
        for n in 0..512u64 {
            first.add(n as usize).write_volatile(n << 21 | low | 0xe3);
        }
        third.add(2).write_volatile(wide_table() as u64 | upper);
        wide_table().add(3).write_volatile(u64::from(tried()) | lower);
        for (n, value) in [first as u64 | 1, 0, third as u64 | 1, 0].into_iter().enumerate() {
            pointers().add(n).write_volatile(value);
        }
    }
}

fn three_levels() {
    const ALL: u64 = 7;
    let cr3 = pointers() as u32;
    let go = |cr4: u32, kind: u32, user: bool| attempt(PAE | cr4, cr3, PE | WP, kind, TRIED_AT, user);
    pae(4, ALL, ALL);
    check("PAE: a read", (go(0, READ, false), out(6)), (DONE, MARK));
    check("PAE: a user's write", go(0, WRITE, true), DONE);
    let last = || unsafe { wide_table().add(3).read_volatile() & 0x60 };
    check("PAE: accessed and dirty", last(), 0x60);
    pae(4, ALL, 3);
    check("PAE: the supervisor's", go(0, READ, true), (PF, 5));
    pae(4, 5, ALL);
    check("PAE: read-only", go(0, WRITE, false), (PF, 3));
    pae(4, 6, ALL);
    check("PAE: not present", go(0, READ, false), (PF, 0));
    pae(4, ALL, ALL);
    check("PAE: a pointer that is not present", attempt(PAE, cr3, PE, READ, 0x4000_0000, false), (PF, 0));
    check("PAE: a user's write there", attempt(PAE, cr3, PE, WRITE, 0xc000_0000, true), (PF, 6));
    check("PAE: bits of CR3 without effect", attempt(PAE, cr3 | 0x1f, PE, READ, TRIED_AT, false), DONE);
    // Reserved bits.
    let width = cpuid(0x8000_0008, 0)[0] & 0xff;
    for bit in [width, 51, 52, 58, 62] {
        pae(4, ALL, ALL | 1 << bit);
        check(format_args!("PAE: bit {bit} of a table's entry"), go(0, READ, false), (PF, 9));
        pae(4, ALL | 1 << bit, ALL);
        check(format_args!("PAE: bit {bit} of a directory's"), go(0, WRITE, true), (PF, 0xf));
    }
    for bit in [13, 20] {
        pae(4, ALL, ALL);
        unsafe { (&raw mut DIRECTORIES).cast::<u64>().add(512 + 2).write_volatile(0x80_0087 | 1 << bit) };
        check(format_args!("PAE: bit {bit} of a large page"), go(0, READ, false), (PF, 9));
    }
    // NX exists with EFER.NXE alone.
    wrmsr(EFER, rdmsr(EFER) & !NXE);
    pae(4, ALL, ALL | 1 << 63);
    check("PAE: NX is reserved", go(0, READ, false), (PF, 9));
    // The kit's way back sets it.
    wrmsr(EFER, rdmsr(EFER) & !NXE);
    check("PAE: a fetch of it", go(0, FETCH, false), (PF, 9));
    wrmsr(EFER, rdmsr(EFER) | NXE);
    check("PAE: NX, a read", go(0, READ, false), DONE);
    check("PAE: NX, a fetch", go(0, FETCH, false), (PF, 0x11));
    check("PAE: NX, a user's fetch", go(0, FETCH, true), (PF, 0x15));
    pae(4, ALL | 1 << 63, ALL);
    check("PAE: NX of the directory", go(0, FETCH, false), (PF, 0x11));
    pae(4, ALL, ALL);
    check("PAE: a fetch", go(0, FETCH, true), DONE);
    pae(4, ALL, 6);
    check("PAE: a fetch, not present", go(0, FETCH, false), (PF, 0x10));
    // A user's pages for the supervisor.
    if has(7, 1, 7) {
        pae(0, ALL, ALL);
        check("SMEP: a fetch", go(SMEP, FETCH, false), (PF, 0x11));
        check("SMEP: a read", go(SMEP, READ, false), DONE);
        wrmsr(EFER, rdmsr(EFER) & !NXE);
        check("SMEP without NX", go(SMEP, FETCH, false), (PF, 0x11));
        wrmsr(EFER, rdmsr(EFER) | NXE);
    }
    if has(7, 1, 20) {
        pae(0, ALL, ALL);
        check("SMAP: a read", go(SMAP, READ, false), (PF, 1));
        check("SMAP: a write", go(SMAP, WRITE, false), (PF, 3));
        check("SMAP: a fetch", go(SMAP, FETCH, false), DONE);
        pae(0, ALL, 3);
        check("SMAP: its own page", go(SMAP, WRITE, false), DONE);
    }
}

/// The pointers of PAE: checked and taken when CR3, CR0 or CR4 are written, and not looked at later.
fn directory_pointers() {
    let cr3 = pointers() as u32;
    let width = cpuid(0x8000_0008, 0)[0] & 0xff;
    for bit in [1, 2, 5, 6, 7, 8, width.min(62), 63] {
        pae(4, 7, 7);
        unsafe { pointers().add(3).write_volatile(1 | 1 << bit) };
        let found = attempt(PAE, cr3, PE, READ, TRIED_AT, false);
        check(format_args!("bit {bit} of a pointer"), found, (GP, 0));
        unsafe { pointers().add(3).write_volatile(1 << bit) };
        let found = attempt(PAE, cr3, PE, READ, TRIED_AT, false);
        check(format_args!("bit {bit} of one that is not present"), found, DONE);
    }
    for bit in [3, 4, 9, 10, 11] {
        pae(4, 7, 7);
        unsafe { pointers().add(2).write_volatile(pointers().add(2).read_volatile() | 1 << bit) };
        check(format_args!("bit {bit} of a pointer"), attempt(PAE, cr3, PE, READ, TRIED_AT, false), DONE);
    }
    // A change is seen when CR3 is written.
    pae(4, 7, 7);
    reset();
    set_out(1, cr3);
    set_out(2, PE);
    let found = legacy!([
        "mov eax, 0x20", "mov cr4, eax", "mov eax, [LEGACY_OUT + 4]", "mov cr3, eax",
        "mov eax, [LEGACY_OUT + 8]", "mov cr0, eax",
        "mov ecx, [LEGACY_OUT + 4]", "mov dword ptr [ecx + 16], 0", "invlpg [0x80403000]",
        "mov eax, [0x80403000]", "mov [LEGACY_OUT + 24], eax",
        "mov eax, cr3", "mov cr3, eax",
        "mov eax, [0x80403000]", "mov [LEGACY_OUT + 28], eax",
    ]);
    check("a pointer stays until CR3 is written", (out(6), found, out(7)), (MARK, (PF, 0), 0));
    // A CR3 that can't be taken leaves the old one.
    pae(4, 7, 7);
    reset();
    set_out(1, cr3);
    set_out(2, PE);
    let found = legacy!([
        "mov eax, 0x20", "mov cr4, eax", "mov eax, [LEGACY_OUT + 4]", "mov cr3, eax",
        "mov eax, [LEGACY_OUT + 8]", "mov cr0, eax",
        "mov ecx, [LEGACY_OUT + 4]", "mov dword ptr [ecx + 16], 3",
        "mov eax, cr3", "or eax, 0x18", "mov cr3, eax",
    ]);
    check("a CR3 whose pointers are wrong", found, (GP, 0));
}

pub fn run() {
    check("the kit's mode", cr0() >> 31 & 1, 1);
    small_pages();
    if has(1, 3, 3) {
        large_pages();
    } else {
        skip("pages of 4 MiB");
    }
    three_levels();
    directory_pointers();
}
