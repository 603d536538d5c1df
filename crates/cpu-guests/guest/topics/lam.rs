//! Linear address masking: pointers that carry a tag in the bits that no address has (SDM volume 1,
//! "Linear-Address Pre-Processing"; Architecture Instruction Set Extensions, chapter "Linear Address
//! Masking").
//!
//! Pointers of user space, whose bit 63 is clear, are masked as CR3 says, those of the supervisor's half as
//! CR4.LAM_SUP does, whoever uses them. What remains has to be canonical: the bit below the tag is as bit 63.

use core::arch::asm;

use crate::kit::*;
use crate::{attempt, user};

const SUPERVISOR: u64 = 1 << 28;
const U57: u64 = 1 << 61;
const U48: u64 = 1 << 62;
const SMAP: u64 = 1 << 21;

#[repr(C, align(4096))]
struct Page([u64; 512]);
static mut PAGE: Page = Page([0x1122_3344_5566_7788; 512]);
/// Tags of 15 and of 6 bits.
const WIDE: u64 = 0x5a5a << 48;
const NARROW: u64 = 0x2a << 57;
/// Where the upper half has the lowest gigabytes once more.
const UPPER: u64 = 0xffff_8000_0000_0000;
const NOWHERE: u64 = 0x12_3456_7000;

fn page() -> u64 {
    &raw const PAGE as u64
}
fn load(at: u64) -> u64 {
    attempt!(["mov {0}, [{1}]"], out(reg) _, in(reg) at)
}
fn load_user(at: u64) -> u64 {
    user!(["mov {0}, [{1}]"], out(reg) _, in(reg) at)
}
fn set_modes(cr3_bits: u64, cr4_bits: u64) {
    set_cr4(cr4() & !SUPERVISOR | cr4_bits);
    set_cr3(cr3() & !(U57 | U48) | cr3_bits);
}

fn without() {
    check("CR4.LAM_SUP without the feature", try_cr4(cr4() | SUPERVISOR), GP);
    for bit in [U57, U48, U57 | U48] {
        check("CR3 without the feature", try_cr3(cr3() | bit), GP);
    }
    check("a tag", load(page() | WIDE), GP);
}

fn registers() {
    check("no tags at first", load(page() | NARROW), GP);
    check("CR4.LAM_SUP", try_cr4(cr4() | SUPERVISOR), NONE);
    check("CR4.LAM_SUP is set", cr4() & SUPERVISOR, SUPERVISOR);
    check("user's tags have another bit", load(page() | NARROW), GP);
    set_cr4(cr4() & !SUPERVISOR);
    for bits in [U57, U48, U57 | U48, 0] {
        check("CR3", try_cr3(cr3() & !(U57 | U48) | bits), NONE);
        check("CR3 has it", cr3() & (U57 | U48), bits);
    }
    check("bit 60 of CR3", try_cr3(cr3() | 1 << 60), GP);
}

/// Which tags each mode takes.
fn modes() {
    let user = page() + USER_ALIAS;
    let upper = page() | UPPER;
    for (mode, bits) in [("none", 0), ("U57", U57), ("U48", U48), ("both, which is U57", U57 | U48)] {
        for supervisor in [0, SUPERVISOR] {
            set_modes(bits, supervisor);
            let expected = |allowed: bool| if allowed { NONE } else { GP };
            let narrow = expected(bits != 0);
            let wide = expected(bits == U48);
            let name = format_args!("{mode}, LAM_SUP {}", supervisor != 0);
            check(format_args!("{name}: no tag"), load(page()), NONE);
            check(format_args!("{name}: 6 bits"), load(page() | NARROW), narrow);
            check(format_args!("{name}: 6 bits at CPL 3"), load_user(user | NARROW), narrow);
            check(format_args!("{name}: 15 bits"), load(page() | WIDE), wide);
            check(format_args!("{name}: 15 bits at CPL 3"), load_user(user | WIDE), wide);
            check(format_args!("{name}: all 15 bits"), load(page() | 0x7fff << 48), wide);
            check(format_args!("{name}: bit 47"), load(page() | NARROW | 1 << 47), GP);
            check(format_args!("{name}: bit 56"), load(page() | 1 << 56), wide);
            // The upper half.
            let high = expected(supervisor != 0);
            check(format_args!("{name}: upper half"), load(upper), NONE);
            check(format_args!("{name}: upper half, a tag"), load(upper & !WIDE), high);
            check(format_args!("{name}: upper half, no bit set"), load(upper & !(0x7fff << 48)), high);
            check(format_args!("{name}: upper half, bit 47"), load(upper & !(1 << 47)), GP);
            // At CPL 3 it is masked the same, and then forbidden.
            let forbidden = if supervisor != 0 { PF } else { GP };
            check(format_args!("{name}: upper half at CPL 3"), load_user(upper & !WIDE), forbidden);
        }
    }
    set_modes(0, 0);
}

/// What kinds of accesses take a tag, and what does not.
fn accesses() {
    set_modes(U48, SUPERVISOR);
    let at = page() | WIDE;
    let word = || unsafe { (page() as *const u64).read_volatile() };
    check("a store", attempt!(["mov [{}], rax"], in(reg) at, in("rax") 0x77u64), NONE);
    check("is stored", word(), 0x77);
    check("ADD", attempt!(["lock add qword ptr [{}], 1"], in(reg) at), NONE);
    check("is added", word(), 0x78);
    check("XCHG", attempt!(["xchg [{}], rax"], in(reg) at, inout("rax") 0x99u64 => _), NONE);
    check("across a page's end", load(at + 4096 - 4), NONE);
    check("REP MOVSB", attempt!(["rep movsb"], inout("rsi") at => _, inout("rdi") at + 256 => _,
        inout("rcx") 100u64 => _), NONE);
    check("REP STOSQ", attempt!(["rep stosq"], inout("rdi") at + 8 => _, inout("rcx") 20u64 => _,
        in("rax") 0x3333u64), NONE);
    check("stored", unsafe { ((page() + 8) as *const u64).read_volatile() }, 0x3333);
    check("PUSH and POP", attempt!(["mov r14, rsp", "mov rsp, {}", "push rax", "pop rcx", "mov rsp, r14"],
        in(reg) at + 0x800, out("rcx") _, out("r14") _), NONE);
    check("MOVAPS", attempt!(["movaps xmm0, [{}]"], in(reg) at, out("xmm0") _), NONE);
    check("MOVAPS, not aligned", attempt!(["movaps xmm0, [{}]"], in(reg) at + 8, out("xmm0") _), GP);
    check("FXSAVE", attempt!(["fxsave64 [{}]"], in(reg) at), NONE);
    check("FXSAVE, not aligned", attempt!(["fxsave64 [{}]"], in(reg) at + 8), GP);
    check("CMPXCHG16B", attempt!(["mov r14, rbx", "lock cmpxchg16b [{}]", "mov rbx, r14"], in(reg) at,
        inout("rax") 0u64 => _, inout("rdx") 0u64 => _, in("rcx") 0u64, out("r14") _), NONE);
    check("BTS beyond its word", attempt!(["bts [{}], {}"], in(reg) at, in(reg) 12345u64), NONE);
    check("CLFLUSH", attempt!(["clflush [{}]"], in(reg) at), NONE);
    check("SGDT", attempt!(["sgdt [{}]"], in(reg) at + 0x40), NONE);
    check("LGDT from there", attempt!(["lgdt [{}]"], in(reg) at + 0x40), NONE);
    unsafe {
        let base = (page() + 0x42) as *mut u64;
        base.write_unaligned(base.read_unaligned() | WIDE);
    }
    check("LGDT with a tag in the base", attempt!(["lgdt [{}]"], in(reg) at + 0x40), GP);
    check("FS's base", try_wrmsr(0xc000_0100, page() | WIDE), GP);
    wrmsr(0xc000_0100, page());
    check("an offset with a tag", attempt!(["mov rax, fs:[{}]"], in(reg) WIDE, out("rax") _), NONE);
    wrmsr(0xc000_0100, 0);
    // Code has none.
    unsafe { (page() as *mut u8).write_volatile(0xc3) };
    check("a call", attempt!(["call {}"], in(reg) page()), NONE);
    check("a call of a tagged address", attempt!(["call {}"], in(reg) at), GP);
    let target = page() + 0x600;
    unsafe { (target as *mut u64).write_volatile(page()) };
    check("a call by a tagged address", attempt!(["call [{}]"], in(reg) target | WIDE), NONE);
    unsafe { (target as *mut u64).write_volatile(at) };
    check("a call by what has a tag", attempt!(["call [{}]"], in(reg) target), GP);
    check("RET to a tagged address", attempt!(["push {}", "ret"], in(reg) at), GP);
    // A fault tells the address without the tag.
    check("a page fault", load(NOWHERE | WIDE), PF);
    check("its address", last().cr2, NOWHERE);
    check("the stack's", attempt!(["mov r14, rsp", "mov rsp, {}", "push rax", "mov rsp, r14"],
        in(reg) at | 1 << 47, out("r14") _), 12);
    invlpg(at);
    check("INVLPG of a tagged address", attempt!(["invlpg [{}]"], in(reg) at), NONE);
    if has(7, 1, 10) {
        let descriptor = [0u64, at];
        check("INVPCID of one", attempt!(["invpcid {}, [{}]"], in(reg) 0u64, in(reg) &raw const descriptor), GP);
    }
    // A breakpoint is on what remains.
    handle(DB, Some(|_| ()));
    forget();
    unsafe {
        asm!("mov dr0, {0}", "mov dr7, {1}", "mov rax, [{2}]", "nop", "mov dr7, {3}", in(reg) page(),
            in(reg) 0xf_0402u64, in(reg) at, in(reg) 0x400u64, out("rax") _);
    }
    check("a data breakpoint", (last().trap.vector, last().dr6 & 0xf), (DB, 1));
    handle(DB, None);
    // Outside of 64-bit mode there are no tags; a new address space has its own.
    set_modes(0, 0);
    check("no tags any more", load(at), GP);
    set_modes(U57, 0);
    check("6 bits alone", (load(page() | NARROW), load(at)), (NONE, GP));
    set_modes(0, 0);
}

pub fn run() {
    unsafe {
        let table = &raw mut PML4;
        (*table)[256] = (*table)[0];
    }
    let [highest, ..] = cpuid(7, 0);
    let there = highest >= 1 && cpuid(7, 1)[0] >> 26 & 1 != 0;
    if !there {
        without();
        return skip("linear address masking");
    }
    // The upper half's pages are a user's; programs reach them by no tag.
    unsafe { (*(&raw mut PML4))[256] &= !4 };
    check("SMAP is off", cr4() & SMAP, 0);
    registers();
    modes();
    accesses();
}
