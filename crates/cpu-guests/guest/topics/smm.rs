//! System management mode: the way in and out, the state that is saved and what a handler may change of
//! it, SMBASE, what is held off meanwhile (APM volume 2, chapter 10; PIIX4 data sheet for the command port,
//! 82441FX data sheet for SMRAM).

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, Ordering};

use crate::kit::*;
use crate::{attempt, legacy};

/// Where the handler leaves what it sees, and from 0x200 on the state save area.
const OUT: u64 = 0x7000;
const SAVED: u64 = 0x7200;
const COMMAND: u16 = 0xb2;
/// What the handler is asked to do.
const SET_RAX: u32 = 1;
const SET_BASE: u32 = 2;
const SEND_NMI: u32 = 4;
const SKIP_TWO: u32 = 8;

// Data segments begin at 0, so that low memory is within reach of 16-bit addresses.
global_asm!(
    ".section .text",
    ".global smm_handler, smm_handler_end",
    ".code16",
    "smm_handler:",
    "mov dword ptr ds:[0x7040], esp",
    "mov esp, 0x7800",
    "inc dword ptr ds:[0x7000]",
    "pushfd",
    "pop dword ptr ds:[0x7004]",
    "mov eax, cr0",
    "mov dword ptr ds:[0x7008], eax",
    "mov eax, cr4",
    "mov dword ptr ds:[0x700c], eax",
    "mov word ptr ds:[0x7010], cs",
    "mov word ptr ds:[0x7014], ds",
    "mov eax, dr7",
    "mov dword ptr ds:[0x7018], eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "mov dword ptr ds:[0x701c], eax",
    // All of memory is within the limits of data segments.
    "mov ebx, 0x100000",
    "mov eax, dword ptr ds:[ebx]",
    "mov dword ptr ds:[0x7020], eax",
    "cld",
    "mov si, 0xfe00",
    "mov di, 0x7200",
    "mov cx, 512",
    "rep movs byte ptr es:[di], byte ptr cs:[si]",
    "mov eax, dword ptr ds:[0x7044]",
    "test al, 1",
    "jz 2f",
    "mov bx, 0xfff8",
    "mov dword ptr cs:[bx], 0x77777777",
    "2: test al, 2",
    "jz 2f",
    "mov bx, 0xff00",
    "mov ecx, dword ptr ds:[0x7048]",
    "mov dword ptr cs:[bx], ecx",
    "2: test al, 4",
    "jz 2f",
    "mov ebx, 0xfee00300",
    "mov dword ptr ds:[ebx], 0x4400",
    "mov cx, 200",
    "3: loop 3b",
    "mov ecx, dword ptr ds:[0x704c]",
    "mov ecx, dword ptr ds:[ecx]",
    "mov dword ptr ds:[0x7024], ecx",
    "2: test al, 8",
    "jz 2f",
    "mov bx, 0xff78",
    "add dword ptr cs:[bx], 2",
    "2: rsm",
    "smm_handler_end:",
    ".code64",
);

unsafe extern "C" {
    static smm_handler: u8;
    static smm_handler_end: u8;
}

fn seen(offset: u64) -> u32 {
    unsafe { ((OUT + offset) as *const u32).read_volatile() }
}
fn put(offset: u64, value: u32) {
    unsafe { ((OUT + offset) as *mut u32).write_volatile(value) };
}
/// What the save area has at its offset (from SMBASE + 0xfe00 on).
fn saved(offset: u64) -> u64 {
    unsafe { ((SAVED + offset) as *const u64).read_unaligned() }
}
fn saved32(offset: u64) -> u32 {
    saved(offset) as u32
}

fn config(function: u32, register: u32, value: Option<u8>) -> u8 {
    outl(0xcf8, 0x8000_0000 | function << 8 | register & !3);
    let port = 0xcfc + (register & 3) as u16;
    if let Some(value) = value {
        outb(port, value);
    }
    inb(port)
}
const BRIDGE: u32 = 0;
const POWER: u32 = 1 << 3 | 3;
const SMRAM: u32 = 0x72;

fn install(base: u64) {
    unsafe {
        let start = &raw const smm_handler;
        let len = &raw const smm_handler_end as usize - start as usize;
        core::ptr::copy_nonoverlapping(start, (base + 0x8000) as *mut u8, len);
    }
}

/// The interrupt comes some instructions after the write to the port.
macro_rules! a_while {
    () => {
        ".rept 16\njmp 3f\n3:\n.endr"
    };
}

fn trigger() {
    unsafe { asm!("out 0xb2, al", a_while!(), in("al") 0x5au8) };
}

fn entry() {
    let base = saved32(0x100);
    check("an SMI was taken", seen(0), 1);
    check("EFLAGS", seen(4), 2);
    check("CR0: PE, EM, TS, PG", seen(8) & 0x8000_000d, 0);
    check("CR0: what stays", seen(8) & 0x1_0032, 0x1_0032);
    check("CR4", seen(0xc), 0);
    check("CS", seen(0x10) & 0xffff, base >> 4 & 0xffff);
    check("DS", seen(0x14) & 0xffff, 0);
    check("DR7", seen(0x18), 0x400);
    check("EFER", seen(0x1c), 0);
    check("memory beyond 64 KiB", seen(0x20), unsafe { (0x10_0000 as *const u32).read_volatile() });
    check("revision", saved32(0xfc) & 0xffff, 0x64);
    check("SMBASE can move", saved32(0xfc) >> 17 & 1, 1);
    check("CR0 saved", saved(0x158), cr0());
    check("CR3 saved", saved(0x150), cr3());
    check("CR4 saved", saved(0x148), cr4());
    check("EFER saved", saved(0xd0), rdmsr(0xc000_0080));
    check("CS saved", saved32(0x10) & 0xffff, CODE64.into());
    check("SS saved", saved32(0x20) & 0xffff, DATA.into());
    check("TR saved", saved32(0x90) & 0xffff, TSS_SELECTOR.into());
    check("GDTR's base", saved(0x68), &raw const GDT as u64);
    check("IDTR's base", saved(0x88), &raw const IDT as u64);
    check("IDTR's limit", saved32(0x84) & 0xffff, 4095);
}

/// Registers are as before.
fn nothing_changes() {
    let (mut a, mut b, mut r8, mut r15, flags, at, xmm): (u64, u64, u64, u64, u64, u64, u64);
    (a, b, r8, r15) = (0xaaaa_0000_1111_005a, 0xbbbb_2222_3333_4444, 0x8888, 0xffff_0000_ffff_0000);
    unsafe {
        asm!(
            "movq xmm5, r8",
            "lea rdi, [rip + 2f]",
            "stc",
            "out 0xb2, al",
            "2:",
            a_while!(),
            "pushfq",
            "pop rdx",
            "movq rcx, xmm5",
            inout("rax") a, inout("rsi") b, inout("r8") r8, inout("r15") r15,
            out("rdx") flags, out("rdi") at, out("rcx") xmm, out("xmm5") _,
        );
    }
    check("RAX", a, 0xaaaa_0000_1111_005a);
    check("RSI", b, 0xbbbb_2222_3333_4444);
    check("R8 and XMM5", (r8, xmm), (0x8888, 0x8888));
    check("R15", r15, 0xffff_0000_ffff_0000);
    check("CF", flags & 1, 1);
    check("RIP saved", (at..at + 64).contains(&saved(0x178)), true);
    check("RAX saved", saved(0x1f8), a);
    check("RSI saved", saved(0x1c8), b);
    check("R8 saved", saved(0x1b8), r8);
    check("R15 saved", saved(0x180), r15);
    check("RFLAGS saved", saved(0x170) & 0x8d5, flags & 0x8d5);
    check("CR0", (cr0(), cr4() & 0x620), (0x8001_0033, 0x620));
}

fn what_a_handler_changes() {
    put(0x44, SET_RAX);
    let a: u64;
    unsafe { asm!("out 0xb2, al", a_while!(), inout("rax") 0x5au64 => a) };
    check("RAX as the handler set it", a, 0x7777_7777);
    put(0x44, SKIP_TWO);
    // Without it, this would not end.
    let b: u64;
    unsafe { asm!("out 0xb2, al", "2: jmp 2b", "mov ecx, 7", in("al") 0u8, out("rcx") b) };
    check("RIP as the handler set it", b, 7);
    put(0x44, 0);
}

fn base_moves() {
    let base = saved32(0x100);
    let count = seen(0);
    install(0x4_0000);
    put(0x44, SET_BASE);
    put(0x48, 0x4_0000);
    trigger();
    check("still at the old SMBASE", saved32(0x100), base);
    put(0x44, 0);
    trigger();
    check("at the new one", (saved32(0x100), seen(0x10) & 0xffff), (0x4_0000, 0x4000));
    put(0x44, SET_BASE);
    put(0x48, base);
    trigger();
    put(0x44, 0);
    trigger();
    check("and back", saved32(0x100), base);
    check("four were taken", seen(0), count + 4);
}

static NMIS: AtomicU32 = AtomicU32::new(0);

fn held_off() {
    fn on_nmi(_: &mut Trap) {
        NMIS.fetch_add(1, Ordering::SeqCst);
    }
    handle(NMI, Some(on_nmi));
    xapic::write(xapic::SVR, 0x1ff);
    put(0x44, SEND_NMI);
    put(0x4c, NMIS.as_ptr() as u32);
    trigger();
    for _ in 0..200 {
        unsafe { asm!("nop") };
    }
    check("an NMI waits in the handler", seen(0x24), 0);
    check("and comes after it", NMIS.load(Ordering::SeqCst), 1);
    put(0x44, 0);
    handle(NMI, None);
    // By the interrupt controller.
    let count = seen(0);
    xapic::write(xapic::ICR, 0x4200);
    for _ in 0..200 {
        unsafe { asm!("nop") };
    }
    check("an SMI by the local APIC", seen(0), count + 1);
}

fn other_modes() {
    use crate::kit::legacy::*;
    reset();
    let count = seen(0);
    legacy!([
        "mov esi, 0x12345678",
        "mov al, 0x11",
        "out 0xb2, al",
        a_while!(),
        "mov [LEGACY_OUT], esi",
        "mov eax, cr0",
        "mov [LEGACY_OUT + 4], eax",
        "mov ax, cs",
        "mov [LEGACY_OUT + 8], ax",
    ]);
    check("32 bits: taken", seen(0), count + 1);
    check("32 bits: ESI", out(0), 0x1234_5678);
    check("32 bits: CR0", out(1) & 0x8000_0001, 1);
    check("32 bits: CS", out(2) & 0xffff, CODE32.into());
    reset();
    run_vm86(crate::code16!("out 0xb2, al", a_while!(), "mov ax, cs", "mov bx, es"), 3 << 12, 0, [0; 4]);
    let last = events().last().copied().unwrap_or_default();
    check("VM86: taken", seen(0), count + 2);
    check("VM86: where it ended", vm86_end(), (GP as u32, 6 + 32, 3 << 12));
    check("VM86: segments", (last.eax & 0xffff, last.ebx & 0xffff), (0x2000, 0x1111));
    let after = run_real(
        crate::code16!("out 0xb2, al", a_while!(), "mov bx, ds", "mov ecx, cr0", "and ecx, 1"),
        &Regs { esi: 0x89ab_cdef, ..real_regs() },
    );
    check("real mode: taken", seen(0), count + 3);
    check("real mode: event", after.vector, NOTHING);
    check("real mode: registers", (after.esi, after.ebx, after.ecx), (0x89ab_cdef, 0x3000, 0));
}

pub fn run() {
    check("RSM outside the mode", attempt!([".byte 0x0f, 0xaa"]), UD);
    // Firmware may have moved SMBASE into the memory that only the mode sees.
    config(BRIDGE, SMRAM, Some(0x4a));
    install(0x3_0000);
    install(0xa_0000);
    config(BRIDGE, SMRAM, Some(0x0a));
    let enable = config(POWER, 0x5b, None);
    config(POWER, 0x5b, Some(enable | 2));
    for n in 0..64 {
        put(4 * n, 0);
    }
    trigger();
    entry();
    if seen(0) == 0 {
        return;
    }
    nothing_changes();
    what_a_handler_changes();
    base_moves();
    held_off();
    other_modes();
}
