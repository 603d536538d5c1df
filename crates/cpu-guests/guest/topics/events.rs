//! Exceptions and interrupts on their way: error codes, gates, what goes wrong during delivery, IRET
//! (APM volume 2, chapter 8; SDM volume 3, chapter 6).

use core::arch::asm;

use crate::kit::*;

/// Turns a gate's 16 bytes into something else for the time of `f`.
fn with_gate(vector: u64, low: u64, f: impl FnOnce()) {
    unsafe {
        let old = gate(vector).read_volatile();
        gate(vector).write_volatile(low);
        f();
        gate(vector).write_volatile(old);
    }
}

fn gate_low(vector: u64) -> u64 {
    unsafe { gate(vector).read_volatile() }
}

fn codes() {
    const PRESENT: u64 = 1 << 47;
    let idt = |vector: u64| vector << 3 | 2;
    // To AMD an exception is not external to the processor (APM volume 2, section 8.4.1; Linux's selftest
    // `nested_exceptions_test` has it from processors).
    let external = u64::from(is_intel());
    check("INT n", attempt!(["int 0x90"]), 0x90);
    check("INT3", attempt!(["int3"]), BP);
    check(
        "divide error",
        attempt!(["xor ecx, ecx", "div ecx"], out("eax") _, out("ecx") _, out("edx") _),
        DE,
    );
    check("UD2", attempt!(["ud2"]), UD);
    with_gate(0x90, gate_low(0x90) & !PRESENT, || {
        check("INT n, gate not present", attempt!(["int 0x90"]), NP);
        check("code", last().trap.code, idt(0x90));
    });
    with_gate(0x90, gate_low(0x90) & !(0xf << 40), || {
        check("INT n, no gate", attempt!(["int 0x90"]), GP);
        check("code", last().trap.code, idt(0x90));
    });
    with_gate(0x90, gate_low(0x90) & !(3 << 45), || {
        check("INT n at CPL 3, gate of DPL 0", user!(["int 0x90"]), GP);
        check("code", last().trap.code, idt(0x90));
    });
    with_gate(UD, gate_low(UD) & !(3 << 45), || {
        check("an exception does not look at DPL", user!(["ud2"]), UD);
    });
    with_gate(UD, gate_low(UD) & !PRESENT, || {
        check("#UD, gate not present", attempt!(["ud2"]), NP);
        check("external", last().trap.code, idt(UD) | external);
    });
    // The target segment.
    let target = |selector: u64| gate_low(0x90) & !(0xffff << 16) | selector << 16;
    for (name, selector, vector, code) in [
        ("null", 0, GP, 0),
        ("null with RPL", 3, GP, 0),
        ("data", 0x10, GP, 0x10),
        ("32-bit code", 0x18, GP, 0x18),
        ("code of CPL 3", 0x30, GP, 0x30),
        ("beyond the table", 0xfff8, GP, 0xfff8),
        ("in no LDT", 0x0c, GP, 0x0c),
    ] {
        with_gate(0x90, target(selector), || {
            check(name, attempt!(["int 0x90"]), vector);
            check(name, last().trap.code, code);
        });
    }
    // Not present.
    set_descriptor(FREE_SLOT, 0x00af_1b00_0000_ffff);
    with_gate(0x90, target(FREE.into()), || {
        check("target not present", attempt!(["int 0x90"]), NP);
        check("code", last().trap.code, FREE.into());
    });
    // With an exception, Intel's code says that the program did not ask for it.
    with_gate(UD, gate_low(UD) & !(0xffff << 16) | 0x10 << 16, || {
        check("#UD to a data segment", attempt!(["ud2"]), GP);
        check("external", last().trap.code, 0x10 | external);
    });
    // A target that is not canonical.
    unsafe {
        let high = gate(0x90).add(1);
        high.write_volatile(0x8000_0000);
        check("INT n to nowhere", attempt!(["int 0x90"]), GP);
        check("code", last().trap.code, 0);
        high.write_volatile(0);
    }
    // Beyond the table's limit.
    let table = [0x8ff, &raw const IDT as u64];
    let limit = |limit: u16| {
        let mut image = [0u8; 10];
        image[..2].copy_from_slice(&limit.to_le_bytes());
        image[2..].copy_from_slice(&table[1].to_le_bytes());
        unsafe { asm!("lidt [{}]", in(reg) &image) };
    };
    limit(0x90 * 16 + 14);
    check("INT n beyond the limit", attempt!(["int 0x90"]), GP);
    check("code", last().trap.code, idt(0x90));
    limit(0x90 * 16 + 15);
    check("INT n at the limit", attempt!(["int 0x90"]), 0x90);
    limit(4095);
}

/// A second exception while a first is delivered.
fn doubles() {
    let no_gate = |vector: u64| gate_low(vector) & !(1 << 47);
    // Benign first: the second is delivered in its place.
    with_gate(UD, no_gate(UD), || check("#UD, then #NP", attempt!(["ud2"]), NP));
    // Contributory twice, or after a page fault: a double fault.
    with_gate(GP, no_gate(GP), || {
        check("#GP, then #NP", attempt!(["mov ds, {0:x}"], in(reg) 0xfff8u64), DF);
        check("code", last().trap.code, 0);
    });
    with_gate(DE, no_gate(DE), || {
        check(
            "#DE, then #NP",
            attempt!(["xor ecx, ecx", "div ecx"], out("eax") _, out("ecx") _, out("edx") _),
            DF,
        );
    });
    with_gate(PF, no_gate(PF), || {
        check("#PF, then #NP", attempt!(["mov al, [{}]"], in(reg) 5u64 << 39, out("al") _), DF);
    });
    // A software interrupt is not an exception.
    with_gate(0x90, no_gate(0x90), || check("INT n, then #NP", attempt!(["int 0x90"]), NP));
    with_gate(GP, no_gate(GP), || check("INT 13, then #NP", attempt!(["int 13"]), NP));
    // The stack of the handler is not there.
    unsafe {
        let tss = (&raw mut TSS).cast::<u8>().add(4 + 32).cast::<u64>();
        // IST2.
        let ist2 = tss.add(1);
        ist2.write_unaligned(5 << 39);
        set_ist(UD, 2);
        check("#UD on a stack that is not there", attempt!(["ud2"]), PF);
        check("code of the push", last().trap.code, 2);
        check("CR2", last().cr2, (5 << 39) - 8);
        set_ist(PF, 2);
        check("#PF on one", attempt!(["mov al, [{}]"], in(reg) 6u64 << 39, out("al") _), DF);
        check("CR2 of the second", last().cr2, (5 << 39) - 8);
        set_ist(PF, 0);
        ist2.write_unaligned(1 << 60);
        check("#UD on a stack that is not canonical", attempt!(["ud2"]), SS);
        check("code of it", last().trap.code, u64::from(is_intel()));
        set_ist(UD, 0);
        ist2.write_unaligned(0);
    }
}

fn frames() {
    // Flags: TF, NT, RF are cleared, IF by an interrupt gate.
    let vector = attempt!(["push 0x4202", "popfq", "int 0x92"]);
    check("INT with NT", vector, 0x92);
    check("saved flags", last().trap.rflags & 0x4200, 0x4200);
    let flags: u64;
    unsafe { asm!("push 2", "popfq", "pushfq", "pop {}", out(reg) flags) };
    check("flags", flags, 2);
    // RF is saved as set for faults, and as clear for traps.
    attempt!(["ud2"]);
    check("RF of a fault", last().trap.rflags & 1 << 16, 1 << 16);
    attempt!(["int3"]);
    check("RF of a trap", last().trap.rflags & 1 << 16, 0);
    attempt!(["int 0x92"]);
    check("RF of INT n", last().trap.rflags & 1 << 16, 0);
    attempt!(["mov al, [{}]"], in(reg) 5u64 << 39, out("al") _);
    check("RF of a page fault", last().trap.rflags & 1 << 16, 1 << 16);
}

/// IRETQ to a frame of SS, RSP, RFLAGS, CS, RIP; tells what it raised.
fn iret(ss: u64, rsp: Option<u64>, rflags: u64, cs: u64, rip: Option<u64>) -> (u64, u64) {
    let sp = rsp.unwrap_or(&raw const ist_stack_top as u64 - 8192);
    let to = rip.unwrap_or(0);
    attempt!([
        "lea rax, [rip + 78f]", "test {rip}, {rip}", "cmovz {rip}, rax",
        "push {ss}", "push {sp}", "push {flags}", "push {cs}", "push {rip}",
        "iretq", "78: int 0x90"],
        ss = in(reg) ss, sp = in(reg) sp, flags = in(reg) rflags, cs = in(reg) cs,
        rip = inout(reg) to => _, out("rax") _);
    fault()
}

fn returns() {
    check("to CPL 0", iret(0x10, None, 2, 0x08, None), (0x90, 0));
    check("a null SS at CPL 0", iret(0, None, 2, 0x08, None), (0x90, 0));
    check("a null CS", iret(0x10, None, 2, 0, None), (GP, 0));
    check("CS is data", iret(0x10, None, 2, 0x10, None), (GP, 0x10));
    check("CS beyond the table", iret(0x10, None, 2, 0xfff8, None), (GP, 0xfff8));
    check("CS with RPL 3 of DPL 0", iret(0x2b, None, 2, 0x0b, None), (GP, 0x08));
    check("CS of DPL 3 with RPL 0", iret(0x10, None, 2, 0x30, None), (GP, 0x30));
    set_descriptor(FREE_SLOT, 0x00af_1b00_0000_ffff);
    check("CS not present", iret(0x10, None, 2, FREE.into(), None), (NP, FREE.into()));
    set_descriptor(FREE_SLOT, 0x00ef_9b00_0000_ffff);
    check("CS with L and D", iret(0x10, None, 2, FREE.into(), None), (GP, FREE.into()));
    check("RIP not canonical", iret(0x10, None, 2, 0x08, Some(1 << 60)), (GP, 0));
    check("SS is code", iret(0x08, None, 2, 0x08, None), (GP, 0x08));
    check("SS with RPL 3", iret(0x2b, None, 2, 0x08, None), (GP, 0x28));
    check("SS of DPL 0 at CPL 3", iret(0x10, None, 2, 0x33, None), (GP, 0x10));
    check("a null SS at CPL 3", iret(3, None, 2, 0x33, None), (GP, 0));
    set_descriptor(FREE_SLOT, 0x00cf_1300_0000_ffff);
    check("SS not present", iret(FREE.into(), None, 2, 0x08, None), (SS, FREE.into()));
    set_descriptor(FREE_SLOT, 0x00cf_9100_0000_ffff);
    check("SS is read-only", iret(FREE.into(), None, 2, 0x08, None), (GP, FREE.into()));
    set_descriptor(FREE_SLOT, 0);
    // Null selectors lose their RPL on the way to CPL 3 (SDM volume 2, IRET), and no more.
    let base = rdmsr(0xc000_0101);
    unsafe { asm!("mov ds, {0:x}", "mov gs, {0:x}", in(reg) 3) };
    wrmsr(0xc000_0101, 0x1234_5678);
    let (ds, gs): (u32, u32);
    user!(["mov eax, ds", "mov ecx, gs"], out("eax") ds, out("ecx") gs);
    check("null selectors with RPL at CPL 3", (ds, gs), (0, 0));
    check("the base of one", rdmsr(0xc000_0101), 0x1234_5678);
    wrmsr(0xc000_0101, base);
    // And within a level they stay.
    let ds: u32;
    unsafe {
        asm!("mov eax, 3", "mov ds, eax", "mov rdx, rsp", "push 0x10", "push rdx", "pushfq", "push 0x08",
            "lea rdx, [rip + 2f]", "push rdx", "iretq", "2: mov eax, ds", "mov edx, 0x10", "mov ds, edx",
            out("eax") ds, out("rdx") _);
    }
    check("and within CPL 0", ds, 3);
    // NT in long mode.
    check("with NT", attempt!(["push 0x4002", "popfq", "iretq"]), GP);
    check("code", last().trap.code, 0);
    // The target at CPL 3 is not mapped for it.
    let sp = &raw const ist_stack_top as u64 - 8192 + USER_ALIAS;
    check(
        "to a page of the supervisor",
        iret(0x2b, Some(sp), 2, 0x33, Some(0x10_0000)),
        (PF, 0x15),
    );
}

/// The interrupt flag: STI and loads of SS shield one instruction.
fn windows() {
    // Nothing is pending here, so only the order of flags can be seen.
    let flags: u64;
    unsafe { asm!("sti", "pushfq", "cli", "pop {}", out(reg) flags) };
    check("STI sets IF", flags & 0x200, 0x200);
    check("CLI at CPL 3", user!(["cli"]), GP);
    check("STI at CPL 3", user!(["sti"]), GP);
    check("POPF at CPL 3 leaves IF", user!(["push 0x202", "popfq"]), NONE);
    check("HLT at CPL 3", user!(["hlt"]), GP);
    check("IN at CPL 3", user!(["in al, 0x80"], out("al") _), GP);
}

fn alignment() {
    const AM: u64 = 1 << 18;
    set_cr0(cr0() | AM);
    let at = &raw const user_stack_top as u64 - 1024 + USER_ALIAS;
    let check_ac = |name: &str, offset: u64, expected: u64| {
        let vector = user!(["pushfq", "or dword ptr [rsp], 0x40000", "popfq", "mov eax, [rdi]"],
            in("rdi") at + offset, out("eax") _);
        check(name, vector, expected);
    };
    check_ac("aligned", 4, NONE);
    check_ac("not aligned", 5, AC);
    check("code", last().trap.code, 0);
    set_cr0(cr0() & !AM);
    check_ac("without CR0.AM", 5, NONE);
    set_cr0(cr0() | AM);
    let vector = attempt!(["pushfq", "or dword ptr [rsp], 0x40000", "popfq", "mov eax, [{0} + 1]",
        "pushfq", "and dword ptr [rsp], ~0x40000", "popfq"], in(reg) at, out("eax") _);
    check("not at CPL 0", vector, NONE);
    set_cr0(cr0() & !AM);
}

/// Tables of 4 KiB pages: what they map at [`WINDOW`] is there for one page.
#[repr(C, align(4096))]
struct Table([u64; 512]);
static mut TABLES: [Table; 3] = [const { Table([0; 512]) }; 3];
static mut PAGE: Table = Table([0; 512]);
const WINDOW: u64 = 2 << 39;

fn set_table(lidt: bool, base: u64, limit: u16) {
    let mut image = [0u8; 10];
    image[..2].copy_from_slice(&limit.to_le_bytes());
    image[2..].copy_from_slice(&base.to_le_bytes());
    unsafe {
        if lidt {
            asm!("lidt [{}]", in(reg) &image);
        } else {
            asm!("lgdt [{}]", in(reg) &image);
        }
    }
}

/// Places a copy of `table` so that what is behind `split` bytes of it is on a page that is not there.
fn split_table(table: u64, len: usize, split: u64) -> u64 {
    let offset = 4096 - split as usize;
    unsafe {
        let to = (&raw mut PAGE).cast::<u8>().add(offset);
        core::ptr::copy_nonoverlapping(table as *const u8, to, len.min(split as usize));
    }
    WINDOW + offset as u64
}

fn absent_tables() {
    unsafe {
        let table = |n: usize| (&raw mut TABLES).cast::<u64>().add(512 * n);
        (&raw mut PML4).cast::<u64>().add(2).write_volatile(table(0) as u64 | 3);
        table(0).write_volatile(table(1) as u64 | 3);
        table(1).write_volatile(table(2) as u64 | 3);
        table(2).write_volatile(&raw const PAGE as u64 | 3);
    }
    let (idt, gdt) = (&raw const IDT as u64, &raw const GDT as u64);
    let base = split_table(idt, 4096, 0x800);
    set_table(true, base, 4095);
    let soft = (attempt!(["int 0x90"]), last().trap.code, last().cr2);
    set_table(true, idt, 4095);
    check("INT n, its gate is not mapped", soft, (PF, 0, base + 0x900));
    // From #TS on: a page fault can't be delivered either.
    let base = split_table(idt, 4096, 160);
    set_table(true, base, 4095);
    let fault = (attempt!(["mov ds, {0:x}"], in(reg) 0xfff8u64), last().trap.code, last().cr2);
    let benign = attempt!(["ud2"]);
    set_table(true, idt, 4095);
    check("#GP, nor its gate nor that of #PF is", fault, (DF, 0, base + 0xe0));
    check("#UD, whose gate is", benign, UD);
    // The descriptor of the target.
    let base = split_table(gdt, 44 * 8, 96);
    with_gate(0x90, gate_low(0x90) & !(0xffff << 16) | u64::from(FREE) << 16, || {
        set_table(false, base, 44 * 8 - 1);
        let target = (attempt!(["int 0x90"]), last().trap.code, last().cr2);
        set_table(false, gdt, 44 * 8 - 1);
        check("INT n, its segment's descriptor is not mapped", target, (PF, 0, base + 96));
    });
    set_table(false, base, 44 * 8 - 1);
    let load = (attempt!(["mov ds, {0:x}"], in(reg) u64::from(FREE)), last().trap.code, last().cr2);
    let jump = (
        attempt!(["push {0}", "push rax", "retfq"], in(reg) u64::from(FREE), in("rax") 0),
        last().trap.code,
    );
    set_table(false, gdt, 44 * 8 - 1);
    check("MOV to DS, the descriptor is not mapped", load, (PF, 0, base + 96));
    check("RETF, the descriptor is not mapped", jump, (PF, 0));
    // A local table that is not mapped.
    set_descriptor(FREE_SLOT + 1, (WINDOW + 0x1000) >> 32);
    let at = WINDOW + 0x1000;
    set_descriptor(FREE_SLOT, 0x0000_8200_0000_00ff | (at & 0xff_ffff) << 16 | (at >> 24 & 0xff) << 56);
    unsafe { asm!("lldt {0:x}", in(reg) u64::from(FREE)) };
    let local = (attempt!(["mov es, {0:x}"], in(reg) 0x0cu64), last().trap.code, last().cr2);
    unsafe { asm!("lldt {0:x}", in(reg) 0u64) };
    check("MOV to ES, the local table is not mapped", local, (PF, 0, at + 8));
    set_descriptor(FREE_SLOT, 0);
    set_descriptor(FREE_SLOT + 1, 0);
    // IRET from a stack that is not there.
    let frame = attempt!(["mov rsp, {0}", "iretq"], in(reg) WINDOW + 0x1000);
    check("IRET, the frame is not mapped", (frame, last().trap.code, last().cr2), (PF, 0, at));
    let frame = attempt!(["mov rsp, {0}", "iretq"], in(reg) WINDOW + 0xff0);
    check("IRET, half of it is not", (frame, last().cr2), (PF, at));
    // The privileged stack is not there: to CPL 0 by way of it.
    unsafe {
        let rsp0 = (&raw mut TSS).cast::<u8>().add(4).cast::<u64>();
        let old = rsp0.read_unaligned();
        rsp0.write_unaligned(WINDOW + 0x2000);
        set_ist(PF, 1);
        let inner = (user!(["ud2"]), last().trap.code, last().cr2);
        rsp0.write_unaligned(old);
        set_ist(PF, 0);
        check("#UD, RSP0 is not mapped", inner, (PF, 2, WINDOW + 0x1ff8));
        (&raw mut PML4).cast::<u64>().add(2).write_volatile(0);
    }
    set_cr3(cr3());
}

/// An instruction whose end is the end of the lower half of all addresses: what follows it can't be fetched
/// (SDM volume 3, section 6.15, general protection; APM volume 2, section 5.3.1).
fn end_of_the_half() {
    const END: u64 = 1 << 47;
    unsafe {
        let table = |n: usize| (&raw mut TABLES).cast::<u64>().add(512 * n);
        (&raw mut PML4).cast::<u64>().add(255).write_volatile(table(0) as u64 | 3);
        table(0).add(511).write_volatile(table(1) as u64 | 3);
        table(1).add(511).write_volatile(table(2) as u64 | 3);
        table(2).add(511).write_volatile(&raw const PAGE as u64 | 3);
    }
    let is_kvm = cpuid(0x4000_0000, 0)[1] == 0x4b4d_564b;
    let programs: [(&str, &[u8], bool); 4] = [
        ("NOP", &[0x90], true),
        ("XOR", &[0x31, 0xc0], true),
        ("VMCALL", &[0x0f, 0x01, 0xc1], is_kvm),
        ("VMMCALL", &[0x0f, 0x01, 0xd9], is_kvm),
    ];
    for (name, code, there) in programs {
        if !there {
            continue;
        }
        let offset = 4096 - code.len();
        unsafe {
            let to = (&raw mut PAGE).cast::<u8>().add(offset);
            core::ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
        }
        let vector = attempt!(["jmp {}"], in(reg) END - code.len() as u64, inout("eax") 0x1234 => _);
        let end = last().trap;
        check(name, (vector, end.code, end.rip), (GP, 0, END));
    }
    let vector = attempt!(["mov rax, [{}]"], in(reg) END - 4, out("rax") _);
    check("a word across the end", (vector, last().trap.code), (GP, 0));
    unsafe { (&raw mut PML4).cast::<u64>().add(255).write_volatile(0) };
    set_cr3(cr3());
}

pub fn run() {
    codes();
    absent_tables();
    end_of_the_half();
    doubles();
    frames();
    returns();
    windows();
    alignment();
}
