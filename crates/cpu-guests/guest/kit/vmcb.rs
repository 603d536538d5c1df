//! What topics about AMD's virtual machine mode share: a control block, its maps and a guest's tables, and the
//! way into the guest and back (APM volume 2, appendices B and C).

use core::arch::{asm, global_asm};

use crate::kit::*;

pub const EFER: u32 = 0xc000_0080;
pub const SVME: u64 = 1 << 12;
pub const VM_CR: u32 = 0xc001_0114;
pub const HSAVE: u32 = 0xc001_0117;

/// Offsets in the control block.
pub mod at {
    pub const CR_READS: usize = 0x000;
    pub const CR_WRITES: usize = 0x002;
    pub const DR_READS: usize = 0x004;
    pub const DR_WRITES: usize = 0x006;
    pub const EXCEPTIONS: usize = 0x008;
    pub const WORD3: usize = 0x00c;
    pub const WORD4: usize = 0x010;
    pub const IOPM: usize = 0x040;
    pub const MSRPM: usize = 0x048;
    pub const TSC_OFFSET: usize = 0x050;
    pub const ASID: usize = 0x058;
    pub const TLB_CONTROL: usize = 0x05c;
    pub const INT_CTL: usize = 0x060;
    pub const SHADOW: usize = 0x068;
    pub const CODE: usize = 0x070;
    pub const INFO1: usize = 0x078;
    pub const INFO2: usize = 0x080;
    pub const INT_INFO: usize = 0x088;
    pub const NP: usize = 0x090;
    pub const INJECT: usize = 0x0a8;
    pub const EXTENSIONS: usize = 0x0b8;
    pub const N_CR3: usize = 0x0b0;
    pub const NEXT_RIP: usize = 0x0c8;
    pub const SEGMENTS: usize = 0x400;
    pub const CS: usize = 0x410;
    pub const GDTR: usize = 0x460;
    pub const IDTR: usize = 0x480;
    pub const CPL: usize = 0x4cb;
    pub const EFER: usize = 0x4d0;
    pub const CR4: usize = 0x548;
    pub const CR3: usize = 0x550;
    pub const CR0: usize = 0x558;
    pub const DR7: usize = 0x560;
    pub const DR6: usize = 0x568;
    pub const RFLAGS: usize = 0x570;
    pub const RIP: usize = 0x578;
    pub const RSP: usize = 0x5d8;
    pub const RAX: usize = 0x5f8;
    pub const STAR: usize = 0x600;
    pub const CR2: usize = 0x640;
    pub const PAT: usize = 0x668;
    pub const DEBUG_CTL: usize = 0x670;
    pub const BRANCH_FROM: usize = 0x678;
    pub const BRANCH_TO: usize = 0x680;
}

pub mod exit {
    pub const EXCEPTION: u64 = 0x40;
    pub const VINTR: u64 = 0x64;
    pub const CR0_SELECTIVE: u64 = 0x65;
    pub const INTN: u64 = 0x75;
    pub const IOIO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const TASK: u64 = 0x7d;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMMCALL: u64 = 0x81;
    pub const NPF: u64 = 0x400;
    pub const INVALID: u64 = u64::MAX;
}

pub const VALID: u64 = 1 << 31;
pub const HAS_CODE: u64 = 1 << 11;

#[repr(C, align(4096))]
pub struct Pages<const N: usize>(pub [u64; N]);
pub static mut BLOCK: Pages<512> = Pages([0; 512]);
pub static mut OTHER_BLOCK: Pages<512> = Pages([0; 512]);
pub static mut SAVE: Pages<512> = Pages([0; 512]);
pub static mut IO_MAP: Pages<1536> = Pages([0; 1536]);
pub static mut MSR_MAP: Pages<1024> = Pages([0; 1024]);
pub static mut STACK: Pages<1024> = Pages([0; 1024]);
pub static mut GUEST_IDT: Pages<512> = Pages([0; 512]);
/// Nested tables: as the kit's, for everybody.
pub static mut NESTED: [Pages<512>; 6] = [const { Pages([0; 512]) }; 6];

// Where the guest's events go: the vector is pushed, and the host is told.
global_asm!(
    ".section .text",
    ".balign 16",
    ".global guest_stubs",
    "guest_stubs:",
    ".set n, 0",
    ".rept 256",
    ".balign 16",
    "push n",
    "vmmcall",
    "2: jmp 2b",
    ".set n, n + 1",
    ".endr",
);
unsafe extern "C" {
    static guest_stubs: u8;
}

pub fn get(offset: usize) -> u64 {
    unsafe { (&raw const BLOCK).cast::<u8>().add(offset).cast::<u64>().read_unaligned() }
}
pub fn put(offset: usize, value: u64) {
    unsafe { (&raw mut BLOCK).cast::<u8>().add(offset).cast::<u64>().write_unaligned(value) }
}
pub fn put8(offset: usize, value: u8) {
    unsafe { (&raw mut BLOCK).cast::<u8>().add(offset).write_volatile(value) }
}
pub fn put32(offset: usize, value: u32) {
    unsafe { (&raw mut BLOCK).cast::<u8>().add(offset).cast::<u32>().write_unaligned(value) }
}
pub fn put16(offset: usize, value: u16) {
    unsafe { (&raw mut BLOCK).cast::<u8>().add(offset).cast::<u16>().write_unaligned(value) }
}
pub fn segment(offset: usize, selector: u16, attributes: u16, limit: u32, base: u64) {
    put16(offset, selector);
    put16(offset + 2, attributes);
    put32(offset + 4, limit);
    put(offset + 8, base);
}
pub fn stack_top() -> u64 {
    &raw const STACK as u64 + 8192 - 64
}

/// A guest that goes on in our own state, with tables of its own for events.
pub fn prepare() {
    unsafe {
        (&raw mut BLOCK).write(Pages([0; 512]));
        (&raw mut IO_MAP).write(Pages([0; 1536]));
        (&raw mut MSR_MAP).write(Pages([0; 1024]));
        let first = &raw const guest_stubs as u64;
        let idt = (&raw mut GUEST_IDT).cast::<u64>();
        for n in 0..256u64 {
            let to = first + 16 * n;
            let low = to & 0xffff | 8 << 16 | 0xee << 40 | (to >> 16 & 0xffff) << 48;
            idt.add(2 * n as usize).write_volatile(low);
            idt.add(2 * n as usize + 1).write_volatile(to >> 32);
        }
    }
    put32(at::WORD4, 3);
    put(at::IOPM, &raw const IO_MAP as u64);
    put(at::MSRPM, &raw const MSR_MAP as u64);
    put32(at::ASID, 1);
    for n in 0..6 {
        segment(at::SEGMENTS + 16 * n, DATA, 0xc93, u32::MAX, 0);
    }
    segment(at::CS, CODE64, 0xa9b, u32::MAX, 0);
    segment(at::GDTR, 0, 0, 44 * 8 - 1, &raw const GDT as u64);
    segment(at::IDTR, 0, 0, 4095, &raw const GUEST_IDT as u64);
    put(at::EFER, rdmsr(EFER));
    put(at::CR0, cr0());
    put(at::CR3, cr3());
    put(at::CR4, cr4());
    put(at::DR6, 0xffff_0ff0);
    put(at::DR7, 0x400);
    put(at::RFLAGS, 2);
    put(at::RSP, stack_top());
    put(at::PAT, 0x0007_0406_0007_0406);
}

/// Runs the guest until its next exit; the exit's code.
pub fn enter() -> u64 {
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "clgi",
            "vmrun rax",
            "stgi",
            "pop rbp",
            "pop rbx",
            inout("rax") &raw const BLOCK => _,
            out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    get(at::CODE)
}
pub fn begin(rip: u64) -> u64 {
    put(at::RIP, rip);
    enter()
}

/// The address of instructions, after which the guest calls its host.
macro_rules! guest {
    ($($line:expr),* $(,)?) => {{
        let address: u64;
        #[allow(unused_unsafe)]
        unsafe {
            asm!("lea {0}, [rip + 66f]", "jmp 88f", "66:", $($line,)* "vmmcall", "jmp 66b", "88:",
                out(reg) address);
        }
        address
    }};
}

/// What the guest's event stub found: vector, and the doublewords above it.
pub fn frame(n: usize) -> u64 {
    unsafe { (get(at::RSP) as *const u64).add(n).read_volatile() }
}

/// Bits of leaf 0x8000_000a, EDX.
pub fn feature(bit: u32) -> bool {
    cpuid(0x8000_000a, 0)[3] >> bit & 1 != 0
}
pub fn has_next_rip() -> bool {
    feature(3)
}
pub fn has_assists() -> bool {
    feature(7)
}

/// Has the guest's physical addresses translated by [`NESTED`].
pub fn nested() {
    unsafe {
        let tables = &raw mut NESTED;
        let table = |n: usize| tables.cast::<u64>().add(512 * n);
        table(0).write_volatile(table(1) as u64 | 7);
        for n in 0..4 {
            table(1).add(n).write_volatile(table(2 + n) as u64 | 7);
        }
        for page in 0..2048u64 {
            table(2).add(page as usize).write_volatile(page << 21 | 0xe7);
        }
        put(at::N_CR3, table(0) as u64);
    }
    put(at::NP, 1);
    put(at::TLB_CONTROL - 4, 1 | 1 << 32);
}

pub fn set_nested(address: u64, change: impl Fn(u64) -> u64) {
    unsafe {
        let entry = (&raw mut NESTED).cast::<u64>().add(1024 + (address >> 21) as usize);
        entry.write_volatile(change(entry.read_volatile()));
    }
}
