//! What the guests share: a way into 64-bit mode, the serial port, a record of the last exception, and
//! the verdict.
//!
//! A topic is `pub fn run()` that calls [`check`] for each expectation. Code that may raise is run by
//! [`attempt!`] at CPL 0 or [`user!`] at CPL 3; [`last`] then tells what it raised.

#![allow(dead_code)]

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering};

global_asm!(include_str!("start.s"));

pub mod io_apic;
#[macro_use]
pub mod legacy;
#[macro_use]
pub mod processors;
pub mod xapic;

pub const CODE64: u16 = 0x08;
pub const DATA: u16 = 0x10;
pub const CODE32: u16 = 0x18;
pub const USER_CODE32: u16 = 0x23;
pub const USER_DATA: u16 = 0x2b;
pub const USER_CODE64: u16 = 0x33;
pub const CODE16: u16 = 0x38;
pub const DATA16: u16 = 0x40;
pub const TSS_SELECTOR: u16 = 0x50;
/// Where all memory is mapped for CPL 3, too.
pub const USER_ALIAS: u64 = 1 << 39;
/// The first descriptor that topics may use, and its place in the table.
pub const FREE: u16 = 0x60;
pub const FREE_SLOT: usize = 12;

pub const DE: u64 = 0;
pub const DB: u64 = 1;
pub const NMI: u64 = 2;
pub const BP: u64 = 3;
pub const OF: u64 = 4;
pub const BR: u64 = 5;
pub const UD: u64 = 6;
pub const NM: u64 = 7;
pub const DF: u64 = 8;
pub const TS: u64 = 10;
pub const NP: u64 = 11;
pub const SS: u64 = 12;
pub const GP: u64 = 13;
pub const PF: u64 = 14;
pub const MF: u64 = 16;
pub const AC: u64 = 17;
pub const XM: u64 = 19;
/// Nothing was raised.
pub const NONE: u64 = 0x80;

/// Registers as the stub pushed them.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Trap {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r: [u64; 8],
    pub vector: u64,
    pub code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// What was raised last.
#[derive(Clone, Copy, Default)]
pub struct Last {
    pub trap: Trap,
    pub cr2: u64,
    pub dr6: u64,
    /// Events since [`forget`].
    pub count: u64,
}

unsafe extern "C" {
    pub static mut GDT: [u64; 44];
    pub static mut IDT: [[u64; 2]; 256];
    pub static mut PML4: [u64; 512];
    pub static mut PDPT: [u64; 512];
    pub static mut PD: [u64; 2048];
    pub static mut TSS: [u32; 26];
    pub static ist_stack_top: u8;
    pub static user_stack_top: u8;
    pub static stubs: u8;
}

#[unsafe(no_mangle)]
pub static mut RECOVER: u64 = 0;
#[unsafe(no_mangle)]
pub static mut RECOVER_SP: u64 = 0;
static mut LAST: Last = Last {
    trap: Trap {
        rax: 0,
        rcx: 0,
        rdx: 0,
        rbx: 0,
        rbp: 0,
        rsi: 0,
        rdi: 0,
        r: [0; 8],
        vector: 0,
        code: 0,
        rip: 0,
        cs: 0,
        rflags: 0,
        rsp: 0,
        ss: 0,
    },
    cr2: 0,
    dr6: 0,
    count: 0,
};
static mut HANDLERS: [Option<fn(&mut Trap)>; 256] = [None; 256];

/// Has `handler` called for `vector`, which then returns to where it came from.
pub fn handle(vector: u64, handler: Option<fn(&mut Trap)>) {
    unsafe { (*(&raw mut HANDLERS))[vector as usize] = handler }
}

/// What was raised since the last [`forget`].
pub fn last() -> Last {
    unsafe { (&raw const LAST).read_volatile() }
}

/// The vector of what was raised last.
pub fn vector() -> u64 {
    last().trap.vector
}

/// Vector and error code of what was raised last.
pub fn fault() -> (u64, u64) {
    (last().trap.vector, last().trap.code)
}

pub fn forget() {
    unsafe {
        (&raw mut LAST).write_volatile(Last {
            trap: Trap { vector: NONE, ..Trap::default() },
            ..Last::default()
        });
    }
}

#[unsafe(no_mangle)]
extern "C" fn on_trap(trap: &mut Trap) {
    unsafe {
        let count = (*(&raw const LAST)).count + 1;
        (&raw mut LAST).write_volatile(Last { trap: *trap, cr2: cr2(), dr6: dr6(), count });
        if let Some(handler) = (*(&raw const HANDLERS))[trap.vector as usize & 255] {
            handler(trap);
            return;
        }
        let recover = (&raw const RECOVER).read_volatile();
        if recover == 0 {
            print(format_args!(
                "FAIL unexpected event {} code {:#x} at {:#x} cr2 {:#x}\n",
                trap.vector,
                trap.code,
                trap.rip,
                cr2()
            ));
            exit(1);
        }
        trap.rip = recover;
        trap.cs = CODE64.into();
        trap.ss = DATA.into();
        trap.rsp = (&raw const RECOVER_SP).read_volatile();
        trap.rflags &= !0x5_4700;
    }
}

/// Runs instructions at CPL 0; what they raise ends them and is told by [`last`]. They may change any
/// register that is given as an output, and R15.
#[macro_export]
macro_rules! attempt {
    ([$($line:expr),* $(,)?] $(, $($operand:tt)+)?) => {{
        $crate::kit::forget();
        #[allow(unused_unsafe)]
        unsafe {
            core::arch::asm!(
                "lea r15, [rip + 77f]",
                "mov [rip + RECOVER], r15",
                "mov [rip + RECOVER_SP], rsp",
                $($line,)*
                "77:",
                "mov qword ptr [rip + RECOVER], 0",
                $($($operand)+,)?
                out("r15") _,
            );
        }
        $crate::kit::last().trap.vector
    }};
}

/// Runs instructions at CPL 3, and comes back; see [`attempt!`].
#[macro_export]
macro_rules! user {
    ([$($line:expr),* $(,)?] $(, $($operand:tt)+)?) => {{
        $crate::kit::forget();
        #[allow(unused_unsafe)]
        unsafe {
            core::arch::asm!(
                "lea r15, [rip + 77f]",
                "mov [rip + RECOVER], r15",
                "mov [rip + RECOVER_SP], rsp",
                "lea r15, [rip + user_stack_top]",
                "bts r15, 39",
                "push 0x2b",
                "push r15",
                "push 2",
                "push 0x33",
                "lea r15, [rip + 66f]",
                "bts r15, 39",
                "push r15",
                "iretq",
                "66:",
                $($line,)*
                "int 0x80",
                "77:",
                "mov qword ptr [rip + RECOVER], 0",
                "mov r15d, 0x10",
                "mov ds, r15d",
                "mov es, r15d",
                $($($operand)+,)?
                out("r15") _,
            );
        }
        $crate::kit::last().trap.vector
    }};
}

// --- registers -----------------------------------------------------------------------------------

macro_rules! control {
    ($read:ident, $write:ident, $name:literal) => {
        pub fn $read() -> u64 {
            let value;
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value) };
            value
        }
        pub fn $write(value: u64) {
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value) };
        }
    };
}
control!(cr0, set_cr0, "cr0");
control!(cr2, set_cr2, "cr2");
control!(cr3, set_cr3, "cr3");
control!(cr4, set_cr4, "cr4");
control!(cr8, set_cr8, "cr8");
control!(dr0, set_dr0, "dr0");
control!(dr1, set_dr1, "dr1");
control!(dr2, set_dr2, "dr2");
control!(dr3, set_dr3, "dr3");
control!(dr6, set_dr6, "dr6");
control!(dr7, set_dr7, "dr7");

/// MOV to CR4; tells what it raised.
pub fn try_cr4(value: u64) -> u64 {
    attempt!(["mov cr4, {}"], in(reg) value)
}
pub fn try_cr3(value: u64) -> u64 {
    attempt!(["mov cr3, {}"], in(reg) value)
}
pub fn try_cr0(value: u64) -> u64 {
    attempt!(["mov cr0, {}"], in(reg) value)
}

pub fn rdmsr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    unsafe { asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high) };
    u64::from(low) | u64::from(high) << 32
}
pub fn wrmsr(index: u32, value: u64) {
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32)
    };
}
/// RDMSR that may fault.
pub fn try_rdmsr(index: u32) -> Option<u64> {
    let (low, high): (u32, u32);
    let vector = attempt!(["rdmsr"], in("ecx") index, out("eax") low, out("edx") high);
    (vector == NONE).then_some(u64::from(low) | u64::from(high) << 32)
}
/// WRMSR that may fault; tells what it raised.
pub fn try_wrmsr(index: u32, value: u64) -> u64 {
    attempt!(["wrmsr"], in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32)
}
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high) };
    u64::from(low) | u64::from(high) << 32
}

/// EAX, EBX, ECX, EDX of CPUID.
pub fn cpuid(leaf: u32, sub: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    unsafe {
        asm!("mov {t:r}, rbx", "cpuid", "xchg {t:r}, rbx", t = out(reg) b,
            inout("eax") leaf => a, inout("ecx") sub => c, out("edx") d);
    }
    [a, b, c, d]
}
/// A bit of CPUID: leaf, register (0 to 3 for EAX to EDX), bit.
pub fn has(leaf: u32, register: usize, bit: u32) -> bool {
    let highest = cpuid(leaf & 0xc000_0000, 0)[0];
    leaf <= highest && cpuid(leaf, 0)[register] >> bit & 1 != 0
}
pub fn is_intel() -> bool {
    cpuid(0, 0)[1] == 0x756e_6547
}

pub fn outb(port: u16, value: u8) {
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) };
}
pub fn outl(port: u16, value: u32) {
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value) };
}
pub fn inb(port: u16) -> u8 {
    let value;
    unsafe { asm!("in al, dx", in("dx") port, out("al") value) };
    value
}
pub fn invlpg(address: u64) {
    unsafe { asm!("invlpg [{}]", in(reg) address) };
}
/// Sets descriptor `slot` of the GDT.
pub fn set_descriptor(slot: usize, value: u64) {
    unsafe { (&raw mut GDT).cast::<u64>().add(slot).write_volatile(value) }
}
/// The gate of `vector`.
pub fn gate(vector: u64) -> *mut u64 {
    unsafe { (&raw mut IDT).cast::<u64>().add(2 * vector as usize) }
}

/// Which of the interrupt stacks `vector` uses; 0 for none.
pub fn set_ist(vector: u64, ist: u64) {
    unsafe { gate(vector).write_volatile(gate(vector).read_volatile() & !(7 << 32) | ist << 32) }
}

// --- report --------------------------------------------------------------------------------------

/// Failures that are printed.
const MOST_SHOWN: u32 = 200;

static FAILED: AtomicU32 = AtomicU32::new(0);
static PASSED: AtomicU32 = AtomicU32::new(0);

struct Serial;
impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while inb(0x3fd) & 0x20 == 0 {}
            outb(0x3f8, byte);
        }
        Ok(())
    }
}

pub fn print(text: fmt::Arguments<'_>) {
    let _ = Serial.write_fmt(text);
}

/// Whether `got` is what the architecture says.
#[track_caller]
pub fn check<T: PartialEq + fmt::Debug>(name: impl fmt::Display, got: T, expected: T) {
    if got == expected {
        PASSED.fetch_add(1, Ordering::Relaxed);
        return;
    }
    // A matrix that fails as a whole need not be told in full.
    if FAILED.fetch_add(1, Ordering::Relaxed) < MOST_SHOWN {
        print(format_args!("FAIL {name}: got {got:x?}, expected {expected:x?}\n"));
    }
}

/// A part of the topic that this CPU has not.
pub fn skip(what: &str) {
    print(format_args!("SKIP {what}\n"));
}

/// Ends the machine with a status, by the debug exit device.
pub fn exit(status: u32) -> ! {
    outl(0xf4, status);
    loop {
        unsafe { asm!("cli", "hlt") };
    }
}

#[unsafe(no_mangle)]
extern "C" fn guest_main() -> ! {
    // Firmware may have left the old interrupt controllers open.
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    // A stack fault and a double fault need a stack of their own.
    for vector in [DF, SS] {
        set_ist(vector, 1);
    }
    crate::topic::run();
    let failed = FAILED.load(Ordering::Relaxed);
    let passed = PASSED.load(Ordering::Relaxed);
    print(format_args!("DONE {passed} passed, {failed} failed\n"));
    exit(u32::from(failed != 0))
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    print(format_args!("FAIL {info}\n"));
    exit(1)
}
