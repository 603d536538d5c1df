//! Protected mode without paging, virtual-8086 mode and real mode, entered from 64-bit mode for a few
//! instructions at a time: [`legacy!`] for the first, [`code16!`] with [`run_vm86`] and [`run_real`].

use core::arch::global_asm;
use core::ptr::copy_nonoverlapping;

use super::{FREE_SLOT, set_descriptor};

global_asm!(include_str!("legacy.s"));

unsafe extern "C" {
    static mut LEGACY_COUNT: u32;
    static LEGACY_LOG: [Event; 16];
    static mut LEGACY_RESUME: [u32; 8];
    static mut LEGACY_OUT: [u32; 32];
    pub static mut LEGACY_IDT: [u64; 256];
    pub static mut LEGACY_TSS: [u8; TSS_LEN];
    static legacy_trap_stack_top: u8;
    static legacy_stubs: u8;
    fn legacy_enter(routine: u32);
    fn vm86_go();
    fn real_go();
    static real_blob: u8;
    static real_blob_end: u8;
    static real_stubs: u8;
}

/// Selector of the task that programs in protected mode run in, [`LEGACY_TSS`].
pub const TASK: u16 = 0x48;
/// Its map of ports, with 32 bytes of the map of interrupts before it.
pub const IO_MAP: usize = 0x88;
const TSS_LEN: usize = IO_MAP + 0x2000 + 8;
/// Where programs of real and of virtual-8086 mode are, and their stacks.
pub const REAL_CODE: u64 = 0x1_0000;
pub const VM86_CODE: u64 = 0x2_0000;
pub const STACK_SEGMENT: u32 = 0x7000;
pub const STACK: u32 = 0x2000;
/// Where the registers of real mode are kept.
const REAL_REGS: u64 = 0x600;
const REAL_BLOB: u64 = 0x8000;
/// No event ended a program of real mode.
pub const NOTHING: u32 = u32::MAX;

/// An event in protected or virtual-8086 mode: what its handler found.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Event {
    pub vector: u32,
    pub code: u32,
    pub eip: u32,
    pub cs: u32,
    pub eflags: u32,
    /// From here on only if the stack was switched; ES to GS only for virtual-8086 mode.
    pub esp: u32,
    pub ss: u32,
    pub es: u32,
    pub ds: u32,
    pub fs: u32,
    pub gs: u32,
    pub edi: u32,
    pub esi: u32,
    pub ebp: u32,
    /// ESP within the frame.
    pub frame: u32,
    pub ebx: u32,
    pub edx: u32,
    pub ecx: u32,
    pub eax: u32,
    pub dr6: u32,
}

/// Registers of real mode.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Regs {
    pub edi: u32,
    pub esi: u32,
    pub ebp: u32,
    pub unused: u32,
    pub ebx: u32,
    pub edx: u32,
    pub ecx: u32,
    pub eax: u32,
    pub es: u16,
    pub ds: u16,
    pub fs: u16,
    pub gs: u16,
    pub eflags: u32,
    pub esp: u32,
    pub ss: u16,
    pub padding: [u8; 14],
    /// What ended the program: where, and the vector or [`NOTHING`].
    pub ip: u16,
    pub cs: u16,
    pub vector: u32,
    pub flags: u16,
}

/// The events of the last program of protected or virtual-8086 mode.
pub fn events() -> &'static [Event] {
    unsafe {
        let count = (&raw const LEGACY_COUNT).read_volatile().min(16) as usize;
        core::slice::from_raw_parts((&raw const LEGACY_LOG).cast(), count)
    }
}
/// Vector and error code of the only event, or what tells that there was none, or several.
pub fn event() -> (u32, u32) {
    match events() {
        [event] => (event.vector, event.code),
        [] => (NOTHING, 0),
        several => (0x1000 + several.len() as u32, several[0].vector),
    }
}
/// Doublewords that programs leave.
pub fn out(n: usize) -> u32 {
    unsafe { (&raw const LEGACY_OUT).cast::<u32>().add(n).read_volatile() }
}
pub fn set_out(n: usize, value: u32) {
    unsafe { (&raw mut LEGACY_OUT).cast::<u32>().add(n).write_volatile(value) }
}
/// Has the handler of `vector` return to where it came from.
pub fn resume(vector: u32) {
    unsafe { (*(&raw mut LEGACY_RESUME))[vector as usize / 32] |= 1 << (vector % 32) }
}

/// A segment descriptor.
pub fn descriptor(base: u32, limit: u32, access: u64, flags: u64) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 15) << 48
        | flags << 52
        | (base >> 24) << 56
}
/// A gate.
pub fn gate_to(selector: u16, offset: u32, access: u64) -> u64 {
    let offset = u64::from(offset);
    offset & 0xffff | u64::from(selector) << 16 | access << 40 | (offset >> 16) << 48
}
pub fn set_gate(vector: u32, gate: u64) {
    unsafe { (&raw mut LEGACY_IDT).cast::<u64>().add(vector as usize).write_volatile(gate) }
}

/// Makes tables as they are before a program: gates of DPL 3 to the recorder, the task, no events.
pub fn reset() {
    unsafe {
        let stubs = &raw const legacy_stubs as u32;
        for vector in 0..256 {
            set_gate(vector, gate_to(0x18, stubs + 16 * vector, 0xee));
        }
        let tss = (&raw mut LEGACY_TSS).cast::<u8>();
        core::ptr::write_bytes(tss, 0, TSS_LEN);
        tss.add(TSS_LEN - 8).write_bytes(0xff, 8);
        tss.add(4).cast::<u32>().write_unaligned(&raw const legacy_trap_stack_top as u32);
        tss.add(8).cast::<u32>().write_unaligned(0x10);
        tss.add(0x66).cast::<u16>().write_unaligned(IO_MAP as u16);
        (&raw mut LEGACY_RESUME).write_volatile([0; 8]);
        (&raw mut LEGACY_COUNT).write_volatile(0);
        for n in 0..32 {
            set_out(n, 0);
        }
        set_descriptor(9, descriptor(tss as u32, TSS_LEN as u32 - 1, 0x89, 0));
    }
}

/// Runs the 32-bit routine at `routine` in protected mode, with what [`reset`] and the caller made.
pub fn enter(routine: u64) {
    unsafe {
        (&raw mut LEGACY_COUNT).write_volatile(0);
        let task = (&raw const super::GDT).cast::<u64>().add(9).read_volatile();
        set_descriptor(9, task & !(2 << 40));
        legacy_enter(routine as u32);
    }
}

fn copy_program(at: u64, (start, end): (u64, u64), tail: &[u8]) {
    unsafe {
        let len = (end - start) as usize;
        copy_nonoverlapping(start as *const u8, at as *mut u8, len);
        copy_nonoverlapping(tail.as_ptr(), (at as *mut u8).add(len), tail.len());
    }
}

/// Runs a program of virtual-8086 mode with EFLAGS (VM is set besides) and CR4's `features`. It ends with
/// HLT, which is privileged: the last of [`events`] is that #GP, or what came before it.
pub fn run_vm86(program: (u64, u64), eflags: u32, features: u32, regs: [u32; 4]) {
    copy_program(VM86_CODE, program, &[0xf4]);
    let frame = [0, (VM86_CODE >> 4) as u32, eflags | 1 << 17, STACK, STACK_SEGMENT];
    for (n, value) in frame.into_iter().chain([0x1111, 0x2222, 0x3333, 0x4444]).enumerate() {
        set_out(n, value);
    }
    set_out(9, features);
    for (n, value) in (10..).zip(regs) {
        set_out(n, value);
    }
    enter(vm86_go as *const () as u64);
}

/// Where the program of virtual-8086 mode ended: vector, IP, and EFLAGS without RF, VM and bit 1.
pub fn vm86_end() -> (u32, u32, u32) {
    let Some(last) = events().last() else { return (NOTHING, 0, 0) };
    (last.vector, last.eip, last.eflags & !0x3_0002)
}

/// Runs a program of real mode, to its end or the first event.
pub fn run_real(program: (u64, u64), regs: &Regs) -> Regs {
    unsafe {
        let blob = &raw const real_blob;
        let len = &raw const real_blob_end as usize - blob as usize;
        copy_nonoverlapping(blob, REAL_BLOB as *mut u8, len);
        let stubs = &raw const real_stubs as u64 - blob as u64 + REAL_BLOB;
        for vector in 0..256u64 {
            let entry = core::hint::black_box(4 * vector) as *mut u32;
            core::arch::asm!("mov [{0}], {1:e}", in(reg) entry, in(reg) stubs + 6 * vector);
        }
        let real_out: u32;
        core::arch::asm!("mov {0:e}, offset real_out_at", out(reg) real_out);
        let [low, high, ..] = real_out.to_le_bytes();
        copy_program(REAL_CODE, program, &[0xea, low, high, 0, 0]);
        (REAL_REGS as *mut Regs).write_volatile(*regs);
        reset();
        enter(real_go as *const () as u64);
        (REAL_REGS as *const Regs).read_volatile()
    }
}

/// What programs of real mode begin with.
pub fn real_regs() -> Regs {
    Regs { eflags: 2, esp: STACK, ss: STACK_SEGMENT as u16, ds: 0x3000, es: 0x4000, ..Regs::default() }
}

/// The GDT's free descriptors, from which topics take theirs, are emptied.
pub fn free_descriptors() {
    for slot in FREE_SLOT..44 {
        set_descriptor(slot, 0);
    }
}

/// The start and the end of 16-bit instructions.
#[macro_export]
macro_rules! code16 {
    ($($line:expr),* $(,)?) => {{
        let (start, end): (u64, u64);
        #[allow(unused_unsafe)]
        unsafe {
            core::arch::asm!(
                "lea {start}, [rip + 77f]", "lea {end}, [rip + 88f]", "jmp 88f",
                ".code16", "77:", $($line,)* ".code64", "88:",
                start = out(reg) start, end = out(reg) end);
        }
        (start, end)
    }};
}

/// Runs 32-bit instructions at CPL 0 in protected mode without paging. What they raise is recorded, and
/// ends them unless it is to be resumed.
#[macro_export]
macro_rules! legacy {
    ([$($line:expr),* $(,)?] $(, $($operand:tt)+)?) => {{
        let routine: u64;
        #[allow(unused_unsafe)]
        unsafe {
            core::arch::asm!(
                "lea {routine}, [rip + 66f]", "jmp 88f",
                ".code32",
                "66: lea eax, [77f]",
                "mov [LEGACY_RECOVER], eax",
                "mov [LEGACY_RECOVER_SP], esp",
                $($line,)*
                "77: jmp legacy_done",
                ".code64", "88:",
                routine = out(reg) routine,
                $($($operand)+,)?
            );
        }
        $crate::kit::legacy::enter(routine);
        $crate::kit::legacy::event()
    }};
}
