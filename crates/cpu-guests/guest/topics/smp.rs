//! Several processors: INIT and start-up, interprocessor interrupts of all kinds, invalidation of
//! translations and of code across processors, locked instructions (SDM volume 3, chapters 9 and 11; APM
//! volume 2, chapters 7, 14 and 16).

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use crate::kit::processors::{a_while, pause, put_start_up, soon};
use crate::kit::xapic::{DFR, EOI, ID, LDR, SVR, TPR, read, write};
use crate::kit::*;

const NMI_MODE: u32 = 4 << 8;
const INIT: u32 = 5 << 8;
const START: u32 = 6 << 8;
const LOWEST: u32 = 1 << 8;
const LOGICAL: u32 = 1 << 11;
const ASSERT: u32 = 1 << 14;
const ALL: u32 = 2 << 18;
const OTHERS: u32 = 3 << 18;
const MOST: usize = 16;
/// Pages where processors start: the first, and another.
const PAGE: u64 = 0x9000;
const OTHER_PAGE: u64 = 0xb000;
/// What a processor found when it started: at 0x900 of its page.
const FOUND: u64 = 0x800;

global_asm!(
    ".section .text",
    ".global ap_blob, ap_blob_end",
    ".code16",
    "ap_blob:",
    "mov word ptr cs:[0x800], cs",
    "mov word ptr cs:[0x802], ds",
    "mov word ptr cs:[0x804], ss",
    "mov dword ptr cs:[0x808], edx",
    "mov dword ptr cs:[0x820], eax",
    "mov eax, cr0",
    "mov dword ptr cs:[0x80c], eax",
    "mov eax, cr4",
    "mov dword ptr cs:[0x810], eax",
    "xor ax, ax",
    "mov ss, ax",
    "mov esp, 0x7000",
    "pushfd",
    "pop dword ptr cs:[0x814]",
    "mov eax, dr7",
    "mov dword ptr cs:[0x818], eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "mov dword ptr cs:[0x81c], eax",
    to_long_mode!("ap_long"),
    "ap_blob_end:",
    ".code64",
    "ap_long:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov eax, 1",
    "lock xadd [rip + {started}], eax",
    "lea edi, [eax]",
    "inc eax",
    "shl eax, 14",
    "lea rsp, [rip + {stacks}]",
    "add rsp, rax",
    "lidt [rip + IDTR]",
    "call {main}",
    started = sym STARTED,
    stacks = sym STACKS,
    main = sym ap_main,
);

unsafe extern "C" {
    static ap_blob: u8;
    static ap_blob_end: u8;
}

#[repr(align(16))]
struct Stacks([[u8; 1 << 14]; 2 * MOST]);
static mut STACKS: Stacks = Stacks([[0; 1 << 14]; 2 * MOST]);
static STARTED: AtomicU32 = AtomicU32::new(0);

/// A processor: a job for it, and whether the last one is done.
struct Processor {
    id: AtomicU32,
    job: AtomicUsize,
    done: AtomicBool,
}
static PROCESSORS: [Processor; 2 * MOST] = [const {
    Processor { id: AtomicU32::new(0), job: AtomicUsize::new(0), done: AtomicBool::new(true) }
}; 2 * MOST];
/// Interrupts by vector and APIC id.
static TAKEN: [[AtomicU32; MOST]; 256] = [const { [const { AtomicU32::new(0) }; MOST] }; 256];

fn command(destination: u32, low: u32) {
    xapic::command(destination, low | ASSERT);
}
extern "C" fn ap_main(index: usize) -> ! {
    let own = &PROCESSORS[index];
    write(SVR, 0x1ff);
    write(DFR, u32::MAX);
    let id = read(ID) >> 24;
    write(LDR, 1 << (24 + (id & 7)));
    own.id.store(id + 1, SeqCst);
    loop {
        let job = own.job.swap(0, SeqCst);
        if job != 0 {
            let job: fn() = unsafe { core::mem::transmute(job) };
            job();
            own.done.store(true, SeqCst);
        }
        pause();
    }
}

fn begin(index: usize, job: fn()) {
    PROCESSORS[index].done.store(false, SeqCst);
    PROCESSORS[index].job.store(job as usize, SeqCst);
}
fn finished(index: usize) -> bool {
    soon(|| PROCESSORS[index].done.load(SeqCst))
}
fn on(index: usize, job: fn()) -> bool {
    begin(index, job);
    finished(index)
}
fn id_of(index: usize) -> u32 {
    PROCESSORS[index].id.load(SeqCst) - 1
}

fn on_interrupt(trap: &mut Trap) {
    TAKEN[trap.vector as usize][(read(ID) >> 24) as usize].fetch_add(1, SeqCst);
    if trap.vector != NMI {
        write(EOI, 0);
    }
}
fn taken(vector: u32, id: u32) -> u32 {
    TAKEN[vector as usize][id as usize].load(SeqCst)
}
fn all_taken(vector: u32) -> u32 {
    TAKEN[vector as usize].iter().map(|count| count.load(SeqCst)).sum()
}
fn forget_taken(vector: u32) {
    for count in &TAKEN[vector as usize] {
        count.store(0, SeqCst);
    }
}

fn put_blob(page: u64) {
    unsafe { core::ptr::write_bytes((page + FOUND) as *mut u8, 0xee, 0x40) };
    put_start_up(page, &raw const ap_blob, &raw const ap_blob_end);
}
fn found(page: u64, offset: u64) -> u32 {
    unsafe { ((page + FOUND + offset) as *const u32).read_volatile() }
}

/// Number of processors, as the machine's firmware configuration tells it.
fn processors() -> usize {
    unsafe { asm!("out dx, ax", in("dx") 0x510u16, in("ax") 5u16) };
    usize::from(inb(0x511)) | usize::from(inb(0x511)) << 8
}

fn start(count: usize) {
    put_blob(PAGE);
    command(0, INIT | OTHERS);
    a_while();
    command(0, START | OTHERS | (PAGE >> 12) as u32);
    check("all start", soon(|| STARTED.load(SeqCst) as usize == count - 1), true);
    let ready = || (0..count - 1).all(|n| PROCESSORS[n].id.load(SeqCst) != 0);
    check("and come to 64-bit mode", soon(ready), true);
    command(0, START | OTHERS | (PAGE >> 12) as u32);
    a_while();
    check("a second start-up is ignored", STARTED.load(SeqCst) as usize, count - 1);
    let mut ids = [false; MOST];
    ids[(read(ID) >> 24) as usize] = true;
    for n in 0..count - 1 {
        let id = id_of(n) as usize;
        check("an id of its own", ids[id], false);
        ids[id] = true;
    }
    check("start: CS", found(PAGE, 0) & 0xffff, (PAGE >> 4) as u32);
    check("start: DS", found(PAGE, 0) >> 16, 0);
    check("start: SS", found(PAGE, 4) & 0xffff, 0);
    check("start: CR0", found(PAGE, 0xc), 0x6000_0010);
    check("start: CR4", found(PAGE, 0x10), 0);
    check("start: EFLAGS without arithmetic", found(PAGE, 0x14) & !0x8d5, 2);
    check("start: DR7", found(PAGE, 0x18), 0x400);
    check("start: EFER", found(PAGE, 0x1c), 0);
}

fn identity(count: usize) {
    static CPUID_ID: AtomicU32 = AtomicU32::new(0);
    static BASE: AtomicU64 = AtomicU64::new(0);
    check("the first is the bootstrap processor", rdmsr(0x1b) >> 8 & 1, 1);
    for n in 0..count - 1 {
        on(n, || {
            CPUID_ID.store(cpuid(1, 0)[1] >> 24, SeqCst);
            BASE.store(rdmsr(0x1b), SeqCst);
        });
        check("CPUID's id", CPUID_ID.load(SeqCst), id_of(n));
        check("no bootstrap processor", BASE.load(SeqCst) >> 8 & 1, 0);
    }
}

/// Has all others wait with interrupts on until [`STOP`].
static STOP: AtomicBool = AtomicBool::new(false);
static OPEN: AtomicU32 = AtomicU32::new(0);
fn wait_open() {
    unsafe { asm!("sti") };
    OPEN.fetch_add(1, SeqCst);
    while !STOP.load(SeqCst) {
        pause();
    }
    unsafe { asm!("cli") };
}
fn sleep_open() {
    OPEN.fetch_add(1, SeqCst);
    while !STOP.load(SeqCst) {
        unsafe { asm!("sti", "hlt", "cli") };
    }
}

fn interrupts(count: usize, waits: fn()) {
    const V: u32 = 0x45;
    let others = count - 1;
    handle(V.into(), Some(on_interrupt));
    STOP.store(false, SeqCst);
    OPEN.store(0, SeqCst);
    for n in 0..others {
        begin(n, waits);
    }
    check("all wait", soon(|| OPEN.load(SeqCst) as usize == others), true);
    a_while();
    let own = read(ID) >> 24;
    for n in 0..others {
        forget_taken(V);
        command(id_of(n), V);
        check("to one", soon(|| taken(V, id_of(n)) == 1), true);
        check("and no other", all_taken(V), 1);
    }
    forget_taken(V);
    command(0, V | OTHERS);
    check("to all others", soon(|| all_taken(V) as usize == others), true);
    unsafe { asm!("sti", "nop", "nop", "cli") };
    check("not to itself", taken(V, own), 0);
    forget_taken(V);
    command(0, V | ALL);
    unsafe { asm!("sti", "nop", "nop", "cli") };
    check("to all", soon(|| all_taken(V) as usize == count), true);
    check("each once", (0..others).all(|n| taken(V, id_of(n)) == 1), true);
    forget_taken(V);
    command(0xff, V);
    unsafe { asm!("sti", "nop", "nop", "cli") };
    check("physical broadcast", soon(|| all_taken(V) as usize == count), true);
    forget_taken(V);
    let (first, last) = (id_of(0), id_of(others - 1));
    command(1 << (first & 7) | 1 << (last & 7), V | LOGICAL);
    check("logical", soon(|| taken(V, first) == 1 && taken(V, last) == 1), true);
    a_while();
    check("logical, no others", all_taken(V), if first == last { 1 } else { 2 });
    // Of several, one takes it.
    forget_taken(V);
    for _ in 0..4 {
        command(0xfe, V | LOGICAL | LOWEST);
    }
    check("lowest priority", soon(|| all_taken(V) >= 1), true);
    a_while();
    check("at most one each", all_taken(V) <= 4, true);
    // An NMI needs no open window.
    handle(NMI, Some(on_interrupt));
    forget_taken(2);
    command(first, NMI_MODE);
    check("NMI to one", soon(|| taken(2, first) == 1), true);
    command(0, NMI_MODE | OTHERS);
    let all = || (0..others).all(|n| taken(2, id_of(n)) == if n == 0 { 2 } else { 1 });
    check("NMI to all others", soon(all), true);
    // Two of one vector may be one.
    forget_taken(V);
    command(first, V);
    command(first, V);
    check("two requests", soon(|| matches!(taken(V, first), 1 | 2)), true);
    STOP.store(true, SeqCst);
    command(0, V | OTHERS);
    check("all come back", (0..others).all(finished), true);
    handle(NMI, None);
}

/// The one with the lower task priority takes it.
fn arbitration(count: usize) {
    const V: u32 = 0x46;
    if count < 3 {
        return;
    }
    handle(V.into(), Some(on_interrupt));
    on(0, || write(TPR, 0x80));
    STOP.store(false, SeqCst);
    OPEN.store(0, SeqCst);
    begin(0, wait_open);
    begin(1, wait_open);
    check("both wait", soon(|| OPEN.load(SeqCst) == 2), true);
    forget_taken(V);
    command(1 << (id_of(0) & 7) | 1 << (id_of(1) & 7), V | LOGICAL | LOWEST);
    check("the lower priority takes it", soon(|| taken(V, id_of(1)) == 1), true);
    a_while();
    check("alone", all_taken(V), 1);
    // Above the other's priority it is let through; below, it waits.
    command(id_of(0), V);
    a_while();
    check("held off by TPR", taken(V, id_of(0)), 0);
    STOP.store(true, SeqCst);
    finished(0);
    finished(1);
    on(0, || {
        write(TPR, 0);
        unsafe { asm!("sti", "nop", "nop", "cli") };
    });
    check("and taken below it", taken(V, id_of(0)), 1);
}

static WINDOW: AtomicU64 = AtomicU64::new(0);
static VALUE: AtomicU64 = AtomicU64::new(0);

/// A page table entry of this processor, changed under another's eyes.
fn translations(count: usize) {
    const PAGE_AT: u64 = 0x4000_0000 * 3 / 2;
    let entry = unsafe { (&raw mut PD).cast::<u64>().add((PAGE_AT >> 21) as usize) };
    let old = unsafe { entry.read_volatile() };
    for (at, value) in [(0x200_0000u64, 0x1111u64), (0x220_0000, 0x2222)] {
        unsafe { (at as *mut u64).write_volatile(value) };
    }
    WINDOW.store(PAGE_AT, SeqCst);
    let look = || VALUE.store(unsafe { (WINDOW.load(SeqCst) as *const u64).read_volatile() }, SeqCst);
    unsafe { entry.write_volatile(0x200_0000 | 0x83) };
    for n in 0..count - 1 {
        on(n, || invlpg(WINDOW.load(SeqCst)));
        on(n, look);
        check("a page as it was mapped", VALUE.load(SeqCst), 0x1111);
    }
    unsafe { entry.write_volatile(0x220_0000 | 0x83) };
    for n in 0..count - 1 {
        on(n, || invlpg(WINDOW.load(SeqCst)));
        on(n, look);
        check("another page after INVLPG", VALUE.load(SeqCst), 0x2222);
        on(n, || set_cr3(cr3()));
        on(n, look);
        check("and after MOV to CR3", VALUE.load(SeqCst), 0x2222);
    }
    unsafe { entry.write_volatile(old) };
}

/// Code that one processor writes and others run.
fn code(count: usize) {
    static CODE_AT: AtomicU64 = AtomicU64::new(0x240_0000);
    static RESULT: AtomicU32 = AtomicU32::new(0);
    let at = CODE_AT.load(SeqCst) as *mut u8;
    for round in 0..20u8 {
        for (n, byte) in [0xb8, round, 0x55, 0, 0, 0xc3].into_iter().enumerate() {
            unsafe { at.add(n).write_volatile(byte) };
        }
        for n in 0..count - 1 {
            on(n, || {
                cpuid(0, 0);
                let got: u32;
                unsafe { asm!("call {}", in(reg) CODE_AT.load(SeqCst), out("eax") got) };
                RESULT.store(got, SeqCst);
            });
            check("code of another processor", RESULT.load(SeqCst), 0x5500 | u32::from(round));
        }
    }
}

#[repr(align(64))]
struct Counters([u64; 8]);
static mut COUNTERS: Counters = Counters([0; 8]);
const ROUNDS: u64 = 20_000;

fn locked(count: usize) {
    fn work() {
        let at = (&raw mut COUNTERS).cast::<u64>();
        for _ in 0..ROUNDS {
            unsafe {
                asm!(
                    "lock inc qword ptr [{0}]",
                    "mov {1}, 3",
                    "lock xadd [{0} + 8], {1}",
                    "lock add dword ptr [{0} + 17], 1",
                    "2: mov {1}, [{0} + 24]",
                    "mov rax, {1}",
                    "inc {1}",
                    "lock cmpxchg [{0} + 24], {1}",
                    "jne 2b",
                    in(reg) at, out(reg) _, out("rax") _,
                );
                asm!(
                    "push rbx",
                    "mov rax, [{0} + 32]",
                    "mov rdx, [{0} + 40]",
                    "2: lea rbx, [rax + 1]",
                    "lea rcx, [rdx + 2]",
                    "lock cmpxchg16b [{0} + 32]",
                    "jne 2b",
                    "pop rbx",
                    in(reg) at, out("rax") _, out("rdx") _, out("rcx") _,
                );
            }
        }
    }
    for n in 0..count - 1 {
        begin(n, work);
    }
    work();
    check("all finish", (0..count - 1).all(finished), true);
    let total = ROUNDS * count as u64;
    let at = |n: usize| unsafe { (&raw const COUNTERS).cast::<u64>().add(n).read_volatile() };
    check("LOCK INC", at(0), total);
    check("LOCK XADD", at(1), 3 * total);
    check("LOCK ADD that is not aligned", at(2) >> 8 & 0xffff_ffff, total);
    check("LOCK CMPXCHG", at(3), total);
    check("LOCK CMPXCHG16B", (at(4), at(5)), (total, 2 * total));
}

fn time(count: usize) {
    for n in 0..count - 1 {
        let before = rdtsc();
        on(n, || VALUE.store(rdtsc(), SeqCst));
        let after = rdtsc();
        let seen = VALUE.load(SeqCst);
        check("time-stamp counters agree", before <= seen && seen <= after, true);
    }
}

/// The registers of a local APIC, over RAM, are there for its processor alone.
fn own_page() {
    const MEMORY: u64 = 0x260_0000;
    let word = || unsafe { ((MEMORY + 0x30) as *const u32).read_volatile() };
    unsafe { ((MEMORY + 0x30) as *mut u32).write_volatile(0x5a5a_5a5a) };
    let base = rdmsr(0x1b);
    wrmsr(0x1b, base & 0xfff | MEMORY);
    let own = word();
    VALUE.store(0, SeqCst);
    let look = || VALUE.store(unsafe { ((MEMORY + 0x30) as *const u32).read_volatile() }.into(), SeqCst);
    on(0, look);
    wrmsr(0x1b, base);
    check("its own registers", own, read(xapic::VERSION));
    check("memory to another processor", VALUE.load(SeqCst), 0x5a5a_5a5a);
    check("memory again", word(), 0x5a5a_5a5a);
}

/// INIT stops a processor until it is started anew; its model-specific registers stay.
fn again() {
    on(0, || wrmsr(0xc000_0082, 0x1234_5678));
    STOP.store(false, SeqCst);
    OPEN.store(0, SeqCst);
    begin(0, wait_open);
    check("it runs", soon(|| OPEN.load(SeqCst) == 1), true);
    let id = id_of(0);
    let started = STARTED.load(SeqCst) as usize;
    command(id, INIT);
    a_while();
    STOP.store(true, SeqCst);
    a_while();
    check("it has stopped", PROCESSORS[0].done.load(SeqCst), false);
    put_blob(OTHER_PAGE);
    command(id, START | (OTHER_PAGE >> 12) as u32);
    check("it starts", soon(|| PROCESSORS[started].id.load(SeqCst) != 0), true);
    check("it is the same", id_of(started), id);
    check("INIT: CS", found(OTHER_PAGE, 0) & 0xffff, (OTHER_PAGE >> 4) as u32);
    check("INIT: CR0", found(OTHER_PAGE, 0xc) & !0x6000_0000, 0x10);
    check("INIT: CR4", found(OTHER_PAGE, 0x10), 0);
    check("INIT: EFER", found(OTHER_PAGE, 0x1c), 0);
    on(started, || VALUE.store(rdmsr(0xc000_0082), SeqCst));
    check("INIT: LSTAR stays", VALUE.load(SeqCst), 0x1234_5678);
}

pub fn run() {
    let count = processors();
    if count < 2 {
        return skip("other processors");
    }
    if count > MOST {
        return skip("more processors than the topic has stacks for");
    }
    write(SVR, 0x1ff);
    write(DFR, u32::MAX);
    write(LDR, 0x0100_0000);
    start(count);
    identity(count);
    interrupts(count, wait_open);
    interrupts(count, sleep_open);
    arbitration(count);
    translations(count);
    code(count);
    locked(count);
    time(count);
    own_page();
    again();
}
