//! Hardware task switching: JMP, CALL, IRET and gates, 32-bit and 16-bit task state segments, and what can
//! go wrong before and after the switch (SDM volume 3, chapter 8; APM volume 2, chapter 12).

use crate::kit::legacy::*;
use crate::kit::{CODE32, DATA, FREE, FREE_SLOT, GDT, check, set_descriptor};
use crate::{code16, legacy};

/// Doublewords of a 32-bit task state segment.
mod at {
    pub const LINK: usize = 0;
    pub const ESP0: usize = 1;
    pub const SS0: usize = 2;
    pub const CR3: usize = 7;
    pub const EIP: usize = 8;
    pub const EFLAGS: usize = 9;
    pub const EAX: usize = 10;
    pub const ESP: usize = 14;
    pub const ESI: usize = 16;
    pub const ES: usize = 18;
    pub const CS: usize = 19;
    pub const SS: usize = 20;
    pub const DS: usize = 21;
    pub const FS: usize = 22;
    pub const LDT: usize = 24;
    pub const TRAP: usize = 25;
}

type Task = [u32; 26];

#[unsafe(no_mangle)]
static mut TASK_B: Task = [0; 26];
/// What handles exceptions through task gates.
#[unsafe(no_mangle)]
static mut TASK_C: Task = [0; 26];
#[unsafe(no_mangle)]
static mut TASK_16: [u16; 22] = [0; 22];
static mut STACKS: [[u8; 4096]; 4] = [[0; 4096]; 4];
static mut LOCAL: [u64; 2] = [0; 2];

const B: u16 = FREE;
const C: u16 = FREE + 8;
const T16: u16 = FREE + 0x10;
const GATE: u16 = FREE + 0x18;
const LDT: u16 = FREE + 0x20;
/// A segment for what a test wants to be wrong.
const ODD: u16 = FREE + 0x28;

const AVAILABLE: u64 = 0x89;
const NT: u32 = 1 << 14;
const RF: u32 = 1 << 16;

fn stack(n: usize) -> u32 {
    unsafe { (&raw const STACKS).cast::<u8>().add(4096 * (n + 1)) as u32 }
}
fn task(task: *mut Task, n: usize) -> u32 {
    unsafe { task.cast::<u32>().add(n).read_volatile() }
}
fn set(task: *mut Task, n: usize, value: u32) {
    unsafe { task.cast::<u32>().add(n).write_volatile(value) }
}
fn b(n: usize) -> u32 {
    task(&raw mut TASK_B, n)
}
fn set_b(n: usize, value: u32) {
    set(&raw mut TASK_B, n, value)
}
/// A doubleword of the task that programs begin in.
fn a(n: usize) -> u32 {
    unsafe { (&raw const LEGACY_TSS).cast::<u32>().add(n).read_unaligned() }
}
fn slot(selector: u16) -> usize {
    usize::from(selector / 8)
}
fn is_busy(selector: u16) -> bool {
    unsafe { (&raw const GDT).cast::<u64>().add(slot(selector)).read_volatile() >> 41 & 1 != 0 }
}
/// Which of the first two tasks are busy.
fn busy() -> (bool, bool) {
    (is_busy(TASK), is_busy(B))
}

/// All tasks available and as they should be, with `entry` in EIP to be filled in by programs.
fn prepare() {
    reset();
    for (n, tss) in [&raw mut TASK_B, &raw mut TASK_C].into_iter().enumerate() {
        for word in 0..26 {
            set(tss, word, 0);
        }
        set(tss, at::EFLAGS, 2);
        set(tss, at::EAX, 0xaaaa_0001 + n as u32);
        set(tss, at::ESP0, stack(3));
        set(tss, at::SS0, DATA.into());
        set(tss, at::ESP, stack(n));
        set(tss, at::CS, CODE32.into());
        for segment in [at::ES, at::SS, at::DS, at::FS, at::FS + 1] {
            set(tss, segment, DATA.into());
        }
        set(tss, at::TRAP, 0x68 << 16);
        set_descriptor(FREE_SLOT + n, descriptor(tss as u32, 0x67, AVAILABLE, 0));
    }
    unsafe {
        let tss = (&raw mut TASK_16).cast::<u16>();
        for n in 0..22 {
            tss.add(n).write_volatile(0);
        }
        tss.add(8).write_volatile(2);
        tss.add(9).write_volatile(0x1616);
        tss.add(13).write_volatile(0x1000);
        for (n, selector) in [(17, DATA), (18, CODE32), (19, ODD), (20, DATA)] {
            tss.add(n).write_volatile(selector);
        }
        set_descriptor(slot(T16), descriptor(tss as u32, 0x2b, 0x81, 0));
    }
    set_descriptor(slot(GATE), gate_to(B, 0, 0x85));
    set_descriptor(slot(LDT), descriptor(&raw const LOCAL as u32, 15, 0x82, 0));
    // A stack for the 16-bit task.
    set_descriptor(slot(ODD), descriptor(stack(2) - 0x1000, 0xffff, 0x93, 0));
}

/// Far JMP and CALL to a selector.
macro_rules! far {
    ("jmp", $selector:expr) => {
        concat!(".byte 0xea; .long 0; .word ", $selector)
    };
    ("call", $selector:expr) => {
        concat!(".byte 0x9a; .long 0; .word ", $selector)
    };
}

fn jumps() {
    prepare();
    legacy!([
        "lea eax, [33f]",
        "mov [TASK_B + 32], eax",
        "lea eax, [34f]",
        "mov [LEGACY_OUT + 40], eax",
        "mov esi, 0x6666",
        far!("jmp", "0x60"),
        "34: mov [LEGACY_OUT + 16], esi",
        "str ecx",
        "mov [LEGACY_OUT + 20], ecx",
        "jmp 77f",
        "33: mov [LEGACY_OUT], eax",
        "str ecx",
        "mov [LEGACY_OUT + 4], ecx",
        "mov ecx, cr0",
        "mov [LEGACY_OUT + 8], ecx",
        "pushfd",
        "pop dword ptr [LEGACY_OUT + 12]",
        "mov esi, 7",
        far!("jmp", "0x48"),
    ]);
    check("JMP: no event", event().0, NOTHING);
    check("JMP: EAX of the task", out(0), 0xaaaa_0001);
    check("JMP: TR", out(1), u32::from(B));
    check("JMP: CR0.TS", out(2) & 8, 8);
    check("JMP: NT", out(3) & NT, 0);
    check("JMP: no link", b(at::LINK), 0);
    check("JMP back: ESI", out(4), 0x6666);
    check("JMP back: TR", out(5), u32::from(TASK));
    check("JMP: saved EIP", a(at::EIP), out(10));
    check("JMP: saved ESI", a(at::ESI), 0x6666);
    check("JMP: saved CS", a(at::CS) & 0xffff, CODE32.into());
    check("JMP back: saved ESI", b(at::ESI), 7);
    check("JMP back: busy", busy(), (true, false));
    // Through a gate.
    prepare();
    legacy!([
        "lea eax, [33f]",
        "mov [TASK_B + 32], eax",
        far!("jmp", "0x78"),
        "33: str ecx",
        "mov [LEGACY_OUT + 4], ecx",
    ]);
    check("JMP by a gate: TR", out(1), u32::from(B));
    check("JMP by a gate: busy", busy(), (false, true));
}

fn calls() {
    for gate in [false, true] {
        prepare();
        if gate {
            legacy!([
                "lea eax, [33f]",
                "mov [TASK_B + 32], eax",
                far!("call", "0x78"),
                "pushfd",
                "pop dword ptr [LEGACY_OUT + 8]",
                "jmp 77f",
                "33: pushfd",
                "pop dword ptr [LEGACY_OUT]",
                "iretd",
            ]);
        } else {
            legacy!([
                "lea eax, [33f]",
                "mov [TASK_B + 32], eax",
                far!("call", "0x60"),
                "pushfd",
                "pop dword ptr [LEGACY_OUT + 8]",
                "jmp 77f",
                "33: pushfd",
                "pop dword ptr [LEGACY_OUT]",
                "mov al, [GDT + 0x4d]",
                "mov ah, [GDT + 0x65]",
                "mov [LEGACY_OUT + 4], eax",
                "iretd",
            ]);
            check("CALL: both are busy", out(1) & 0x202, 0x202);
        }
        check("CALL: no event", event().0, NOTHING);
        check("CALL: NT", out(0) & NT, NT);
        check("CALL: link", b(at::LINK), u32::from(TASK));
        check("IRET: NT", out(2) & NT, 0);
        check("IRET: NT is saved as clear", b(at::EFLAGS) & NT, 0);
        check("IRET: busy", busy(), (true, false));
    }
}

fn narrow() {
    prepare();
    legacy!([
        "lea eax, [33f]",
        "mov [TASK_16 + 14], ax",
        // The code segment begins where EIP has 16 bits.
        "lea ecx, [33f]",
        "and ecx, 0xffff0000",
        "mov [GDT + 0x92], cx",
        "shr ecx, 16",
        "mov [GDT + 0x94], cl",
        "mov word ptr [TASK_16 + 36], 0x90",
        "mov esi, 0x12345678",
        far!("call", "0x70"),
        "mov [LEGACY_OUT + 8], esi",
        "jmp 77f",
        "33: mov [LEGACY_OUT], ax",
        "pushfd",
        "pop dword ptr [LEGACY_OUT + 4]",
        "mov si, 0x3333",
        "iretd",
    ]);
    check("16 bits: no event", event().0, NOTHING);
    check("16 bits: AX of the task", out(0), 0x1616);
    check("16 bits: NT", out(1) & NT, NT);
    check("16 bits, back: ESI", out(2), 0x1234_5678);
    unsafe {
        let word = |n: usize| (&raw const TASK_16).cast::<u16>().add(n).read_volatile();
        check("16 bits: link", word(0), TASK);
        check("16 bits: saved SI", word(15), 0x3333);
    }
    check("16 bits: busy", (is_busy(TASK), is_busy(T16)), (true, false));
}

fn events_by_gates() {
    const TASK_GATE: u64 = 0xe5;
    prepare();
    set_gate(0x40, gate_to(B, 0, TASK_GATE));
    legacy!([
        "lea eax, [33f]",
        "mov [TASK_B + 32], eax",
        "lea eax, [34f]",
        "mov [LEGACY_OUT + 40], eax",
        "int 0x40",
        "34: pushfd",
        "pop dword ptr [LEGACY_OUT + 8]",
        "jmp 77f",
        "33: mov [LEGACY_OUT], esp",
        "pushfd",
        "pop dword ptr [LEGACY_OUT + 4]",
        "iretd",
    ]);
    check("INT: no event", event().0, NOTHING);
    check("INT: no error code", out(0), stack(0));
    check("INT: NT", out(1) & NT, NT);
    check("INT: saved EIP", a(at::EIP), out(10));
    check("INT: saved RF", a(at::EFLAGS) & RF, 0);
    check("INT: link", b(at::LINK), u32::from(TASK));
    check("INT: busy", busy(), (true, false));
    prepare();
    set_gate(6, gate_to(B, 0, TASK_GATE));
    legacy!([
        "lea eax, [33f]",
        "mov [TASK_B + 32], eax",
        "lea eax, [34f]",
        "mov [LEGACY_OUT + 40], eax",
        "34: ud2",
        "33: mov [LEGACY_OUT], esp",
    ]);
    check("#UD: no error code", out(0), stack(0));
    check("#UD: saved EIP", a(at::EIP), out(10));
    check("#UD: saved RF", a(at::EFLAGS) & RF, RF);
    prepare();
    set_gate(13, gate_to(B, 0, TASK_GATE));
    legacy!([
        "lea eax, [33f]",
        "mov [TASK_B + 32], eax",
        "lea eax, [34f]",
        "mov [LEGACY_OUT + 40], eax",
        "mov eax, 0xfff8",
        "34: mov ds, eax",
        "33: mov [LEGACY_OUT], esp",
        "pop dword ptr [LEGACY_OUT + 4]",
    ]);
    check("#GP: an error code is pushed", out(0), stack(0).wrapping_sub(4));
    check("#GP: which", out(1), 0xfff8);
    check("#GP: saved EIP", a(at::EIP), out(10));
    // A gate that the program may not use.
    prepare();
    set_gate(0x40, gate_to(B, 0, 0x65));
    check("INT, gate not present", legacy!(["int 0x40"]), (11, 0x40 << 3 | 2));
    prepare();
    set_gate(0x40, gate_to(DATA, 0, TASK_GATE));
    check("INT, gate to no task", legacy!(["int 0x40"]), (13, DATA.into()));
    prepare();
    set_gate(0x40, gate_to(4, 0, TASK_GATE));
    check("INT, gate to a local table", legacy!(["int 0x40"]), (13, 4));
    prepare();
    set_gate(0x40, gate_to(TASK, 0, TASK_GATE));
    check("INT, gate to a busy task", legacy!(["int 0x40"]), (13, TASK.into()));
}

/// What is found wrong before the switch: the old task goes on.
fn refused() {
    let selector = u32::from(B);
    for (name, limit, access, expected) in [
        ("busy", 0x67, 0x8b, (13, selector)),
        ("not present", 0x67, 0x09, (11, selector)),
        ("too short", 0x66, AVAILABLE, (10, selector)),
        ("16 bits, too short", 0x2a, 0x81, (10, selector)),
        ("busy, not present", 0x67, 0x0b, (13, selector)),
    ] {
        prepare();
        set_descriptor(slot(B), descriptor(&raw const TASK_B as u32, limit, access, 0));
        check(format_args!("JMP, {name}"), legacy!([far!("jmp", "0x60")]), expected);
        check("the old task is busy", is_busy(TASK), true);
        check("EIP of the fault", a(at::EIP), 0);
        check(format_args!("CALL, {name}"), legacy!([far!("call", "0x60")]), expected);
    }
    prepare();
    check("JMP to itself", legacy!([far!("jmp", "0x48")]), (13, TASK.into()));
    // A gate.
    for (name, gate, expected) in [
        ("not present", gate_to(B, 0, 0x05), (11, u32::from(GATE))),
        ("to data", gate_to(DATA, 0, 0x85), (13, u32::from(DATA))),
        ("to nothing", gate_to(0, 0, 0x85), (13, 0)),
        ("to a busy task", gate_to(TASK, 0, 0x85), (13, TASK.into())),
    ] {
        prepare();
        set_descriptor(slot(GATE), gate);
        check(format_args!("a gate, {name}"), legacy!([far!("jmp", "0x78")]), expected);
    }
    // IRET to what is not busy, or no task.
    let iret = |link: u32| {
        unsafe { (&raw mut LEGACY_TSS).cast::<u32>().write_unaligned(link) };
        let got = legacy!(["push 0x4002", "popfd", "iretd"]);
        check("NT in the fault's flags", events().first().map(|e| e.eflags & NT), Some(NT));
        got
    };
    for (name, link, expected) in [
        ("available", selector, (10, selector)),
        ("null", 0, (10, 0)),
        ("data", DATA.into(), (10, u32::from(DATA))),
        ("of a local table", 0x4c, (10, 0x4c)),
        ("beyond the table", 0xfff8, (10, 0xfff8)),
    ] {
        prepare();
        check(format_args!("IRET, link is {name}"), iret(link), expected);
    }
}

/// What is found wrong in the new task, to which the exception belongs: it is handled by a third.
fn wrong() {
    const TASK_GATE: u64 = 0x85;
    let odd = u32::from(ODD);
    let code = |access| descriptor(0, 0xf_ffff, access, 0xc);
    for (name, place, selector, odd_one, expected) in [
        ("CS is data", at::CS, odd, code(0x93), (10, odd)),
        ("CS is null", at::CS, 0, 0, (10, 0)),
        ("CS beyond the table", at::CS, 0xfff8, 0, (10, 0xfff8)),
        ("CS not present", at::CS, odd, code(0x1b), (11, odd)),
        ("CS with another DPL", at::CS, odd, code(0xfb), (10, odd)),
        ("SS is null", at::SS, 0, 0, (10, 0)),
        ("SS is code", at::SS, odd, code(0x9b), (10, odd)),
        ("SS is read-only", at::SS, odd, code(0x91), (10, odd)),
        ("SS not present", at::SS, odd, code(0x13), (12, odd)),
        ("SS with another DPL", at::SS, odd, code(0xf3), (10, odd)),
        ("DS beyond the table", at::DS, 0xfff8, 0, (10, 0xfff8)),
        ("DS is execute-only", at::DS, odd, code(0x99), (10, odd)),
        ("DS not present", at::DS, odd, code(0x13), (11, odd)),
        ("FS is a task", at::FS, u32::from(B), 0, (10, u32::from(B))),
        ("LDT is data", at::LDT, odd, code(0x93), (10, odd)),
        ("LDT not present", at::LDT, odd, descriptor(0, 15, 0x02, 0), (10, odd)),
        ("LDT in itself", at::LDT, 0x4c, 0, (10, 0x4c)),
    ] {
        prepare();
        set_b(place, selector);
        set_descriptor(slot(ODD), odd_one);
        for vector in [10, 11, 12, 13] {
            set_gate(vector, gate_to(C, 0, TASK_GATE));
        }
        set_gate(expected.0, gate_to(C, 0, TASK_GATE));
        // The vector is told by which gate is there: all others lead to the recorder.
        for vector in [10, 11, 12, 13].into_iter().filter(|&vector| vector != expected.0) {
            set_gate(vector, gate_to(0, 0, 0));
        }
        legacy!([
            "lea eax, [33f]",
            "mov [TASK_C + 32], eax",
            "lea eax, [34f]",
            "mov [TASK_B + 32], eax",
            "mov [LEGACY_OUT + 40], eax",
            far!("jmp", "0x60"),
            "34: jmp 77f",
            "33: pop dword ptr [LEGACY_OUT]",
            "mov dword ptr [LEGACY_OUT + 4], 1",
        ]);
        check(format_args!("{name}: handled"), (out(1), out(0)), (1, expected.1));
        check(
            format_args!("{name}: in the new task"),
            task(&raw mut TASK_C, at::LINK) & 0xffff,
            B.into(),
        );
        check(format_args!("{name}: saved EIP"), b(at::EIP), out(10));
        check(format_args!("{name}: busy"), busy(), (false, true));
    }
}

fn state() {
    // The debug trap flag.
    prepare();
    set_b(at::TRAP, 1 | 0x68 << 16);
    legacy!([
        "lea eax, [33f]",
        "mov [TASK_B + 32], eax",
        "mov [LEGACY_OUT], eax",
        "mov eax, 0x0ff0",
        "mov dr6, eax",
        far!("jmp", "0x60"),
        "33: nop",
    ]);
    check("T: #DB", event(), (1, 0));
    check("T: EIP", events().first().map(|e| e.eip), Some(out(0)));
    check("T: DR6.BT", events().first().map(|e| e.dr6 & 0xe00f), Some(0x8000));
    // Local breakpoints end with the task.
    prepare();
    legacy!([
        "lea eax, [33f]",
        "mov [TASK_B + 32], eax",
        "mov eax, 0x4ff",
        "mov dr7, eax",
        far!("jmp", "0x60"),
        "33: mov eax, dr7",
        "mov [LEGACY_OUT], eax",
        "mov eax, 0x400",
        "mov dr7, eax",
    ]);
    check("DR7: local bits", out(0) & 0xff, 0xaa);
    // Segments of a local table.
    prepare();
    set_b(at::LDT, LDT.into());
    set_b(at::DS, 0xc);
    unsafe {
        (&raw mut LOCAL).cast::<u64>().add(1).write_volatile(descriptor(
            &raw const TASK_B as u32,
            0x67,
            0x93,
            4,
        ));
    }
    legacy!([
        "lea eax, [33f]",
        "mov [TASK_B + 32], eax",
        far!("jmp", "0x60"),
        "33: mov eax, [0x28]",
        "mov es:[LEGACY_OUT], eax",
        "sldt eax",
        "mov es:[LEGACY_OUT + 4], ax",
    ]);
    check("LDT: what DS reaches", out(0), 0xaaaa_0001);
    check("LDT: selector", out(1), LDT.into());
    // Virtual-8086 mode by a task.
    prepare();
    let program = code16!("mov ax, ds", "mov cx, ss", "hlt");
    set_out(0, (program.1 - program.0) as u32);
    unsafe {
        let to = VM86_CODE as *mut u8;
        core::ptr::copy_nonoverlapping(program.0 as *const u8, to, 16);
    }
    set_b(at::EFLAGS, 2 | 1 << 17);
    set_b(at::EIP, 0);
    for (place, value) in [(at::CS, 0x2000), (at::SS, 0x7000), (at::DS, 0x1234), (at::ES, 0x4321)] {
        set_b(place, value);
    }
    legacy!([far!("jmp", "0x60")]);
    let seen = events().first().copied().unwrap_or_default();
    check("VM86: HLT is refused", (seen.vector, seen.code), (13, 0));
    check("VM86: where", (seen.cs & 0xffff, seen.eip), (0x2000, 4));
    check("VM86: segments", (seen.eax & 0xffff, seen.ecx & 0xffff), (0x1234, 0x7000));
    check("VM86: flags", seen.eflags >> 17 & 1, 1);
    check("VM86: frame", (seen.es & 0xffff, seen.ds & 0xffff), (0x4321, 0x1234));
}

/// Page tables of the tasks: 4 MiB pages, the first 16 MiB alike, one page not.
#[repr(C, align(4096))]
struct Directory([u32; 1024]);
static mut DIRECTORIES: [Directory; 2] = [const { Directory([0; 1024]) }; 2];

fn address_spaces() {
    const WINDOW: u32 = 0x180_0000;
    prepare();
    for n in 0..2 {
        let directory = unsafe { (&raw mut DIRECTORIES[n]).cast::<u32>() };
        for page in 0..8u32 {
            let target = if page == WINDOW >> 22 { WINDOW + (n as u32) * 0x40_0000 } else { page << 22 };
            unsafe { directory.add(page as usize).write_volatile(target | 0x83) };
        }
        unsafe { ((WINDOW + n as u32 * 0x40_0000) as *mut u32).write_volatile(0xcccc_0000 + n as u32) };
    }
    let (first, second) =
        unsafe { (&raw const DIRECTORIES[0] as u32, &raw const DIRECTORIES[1] as u32) };
    set_b(at::CR3, second);
    unsafe { (&raw mut LEGACY_TSS).cast::<u32>().add(at::CR3).write_unaligned(first) };
    set_out(8, first);
    legacy!([
        "lea eax, [33f]",
        "mov [TASK_B + 32], eax",
        "mov eax, cr4",
        "or eax, 0x10",
        "mov cr4, eax",
        "mov eax, [LEGACY_OUT + 32]",
        "mov cr3, eax",
        "mov eax, cr0",
        "or eax, 0x80000000",
        "mov cr0, eax",
        "mov eax, [0x1800000]",
        "mov [LEGACY_OUT], eax",
        far!("call", "0x60"),
        "mov eax, [0x1800000]",
        "mov [LEGACY_OUT + 8], eax",
        "jmp 77f",
        "33: mov eax, [0x1800000]",
        "mov [LEGACY_OUT + 4], eax",
        "iretd",
    ]);
    check("CR3: no event", event().0, NOTHING);
    check("CR3: before", out(0), 0xcccc_0000);
    check("CR3: the task's", out(1), 0xcccc_0001);
    check("CR3: after", out(2), 0xcccc_0000);
    check("CR3 is not saved", b(at::CR3), second);
}

pub fn run() {
    // A 32-bit code segment whose base `narrow` moves.
    set_descriptor(18, descriptor(0, 0xffff, 0x9b, 4));
    jumps();
    calls();
    narrow();
    events_by_gates();
    refused();
    wrong();
    state();
    address_spaces();
    free_descriptors();
}
