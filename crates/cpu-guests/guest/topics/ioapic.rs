//! The I/O APIC with two processors: what its registers hold, edges and levels that are masked, wait or come
//! again, destinations and delivery modes (82093AA data sheet; SDM volume 3, chapter 11).

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use crate::kit::io_apic::{MASKED, io, line, redirect, set_io};
use crate::kit::processors::{a_while, put_start_up, soon};
use crate::kit::xapic::{DFR, EOI, ID, IRR, ISR, LDR, SVR, TMR, TPR, command, read, write};
use crate::kit::*;

const LEVEL: u32 = 1 << 15;
const REMOTE: u32 = 1 << 14;
const LOGICAL: u32 = 1 << 11;
const LOWEST: u32 = 1 << 8;
const NMI_MODE: u32 = 4 << 8;
/// The register of ends.
const END: u64 = 0xfec0_0040;
/// Pins that no device of the board drives, by the test device's lines.
const PIN: u32 = 5;
const OTHER_PIN: u32 = 14;
const V: u32 = 0x76;
const HIGHER: u32 = 0x86;
/// Where the other processor starts.
const PAGE: u64 = 0x9000;

static TAKEN: [[AtomicU32; 2]; 256] = [const { [const { AtomicU32::new(0) }; 2] }; 256];
/// What was taken, in its order, a byte each.
static ORDER: AtomicU32 = AtomicU32::new(0);
/// Handlers leave what they serve in service.
static QUIET: AtomicBool = AtomicBool::new(false);
static READY: AtomicBool = AtomicBool::new(false);

global_asm!(
    ".section .text",
    ".global other_blob, other_blob_end",
    ".code16",
    "other_blob:",
    to_long_mode!("other_long"),
    "other_blob_end:",
    ".code64",
    "other_long:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "lea rsp, [rip + {stack} + 16384]",
    "lidt [rip + IDTR]",
    "call {main}",
    stack = sym STACK,
    main = sym other_main,
);
unsafe extern "C" {
    static other_blob: u8;
    static other_blob_end: u8;
}
#[repr(align(16))]
struct Stack([u8; 1 << 14]);
static mut STACK: Stack = Stack([0; 1 << 14]);

/// The other processor takes what comes.
extern "C" fn other_main() -> ! {
    write(SVR, 0x1ff);
    write(DFR, u32::MAX);
    write(LDR, 0x0200_0000);
    READY.store(true, SeqCst);
    loop {
        unsafe { asm!("sti", "pause") };
    }
}

fn start_other() -> bool {
    put_start_up(PAGE, &raw const other_blob, &raw const other_blob_end);
    command(0, 0xc_4500);
    a_while();
    command(0, 0xc_4600 | (PAGE >> 12) as u32);
    soon(|| READY.load(SeqCst))
}

fn on_interrupt(trap: &mut Trap) {
    TAKEN[trap.vector as usize][(read(ID) >> 24) as usize & 1].fetch_add(1, SeqCst);
    ORDER.store(ORDER.load(SeqCst) << 8 | trap.vector as u32, SeqCst);
    if trap.vector != NMI && !QUIET.load(SeqCst) {
        write(EOI, 0);
    }
}
/// How often the processors have taken `vector`, which is forgotten then.
fn took(vector: u32) -> (u32, u32) {
    let [first, second] = &TAKEN[vector as usize];
    (first.swap(0, SeqCst), second.swap(0, SeqCst))
}
fn window() {
    unsafe { asm!("sti", "nop", "nop", "nop", "cli") };
}
fn in_set(set: u32, vector: u32) -> bool {
    read(set + vector / 32 * 16) >> (vector % 32) & 1 != 0
}

fn entry(pin: u32) -> u32 {
    io(0x10 + 2 * pin)
}
fn set_entry(pin: u32, low: u32) {
    set_io(0x10 + 2 * pin, low);
}
fn pulse(pin: u32) {
    line(pin, 1);
    line(pin, 0);
}

fn registers() {
    let id = io(0);
    set_io(0, u32::MAX);
    check("ID", (io(0), io(2)), (0x0f00_0000, 0x0f00_0000));
    set_io(0, id);
    check("version: pins", io(1) >> 16 & 0xff, 23);
    set_io(1, 0);
    check("version is read-only", io(1) >> 16 & 0xff, 23);
    set_entry(PIN, u32::MAX & !(7 << 8));
    check("an entry", entry(PIN) & 0x1_ffff, 0x1_a8ff);
    set_io(0x11 + 2 * PIN, u32::MAX);
    check("its destination", io(0x11 + 2 * PIN) >> 24, 0xff);
    redirect(PIN, MASKED, 0);
    set_io(0x10 + 2 * 24, 0);
    check("beyond the last", io(0x10 + 2 * 24), 0);
}

fn edges(own: u32) {
    redirect(PIN, V | MASKED, own);
    pulse(PIN);
    set_entry(PIN, V);
    window();
    check("an edge on a masked pin is lost", took(V), (0, 0));
    line(PIN, 1);
    window();
    check("an edge", took(V), (1, 0));
    check("not in TMR", in_set(TMR, V), false);
    set_entry(PIN, V | MASKED);
    set_entry(PIN, V);
    window();
    check("a line that stays is no edge for an entry that is opened", took(V), (0, 0));
    line(PIN, 0);
    // While one is in service, one more waits.
    QUIET.store(true, SeqCst);
    pulse(PIN);
    window();
    pulse(PIN);
    pulse(PIN);
    check("one in service, one requested", (in_set(ISR, V), in_set(IRR, V)), (true, true));
    write(EOI, 0);
    window();
    write(EOI, 0);
    QUIET.store(false, SeqCst);
    window();
    check("more are one", took(V), (2, 0));
    // Two at once: by priority.
    redirect(OTHER_PIN, HIGHER, own);
    ORDER.store(0, SeqCst);
    pulse(PIN);
    pulse(OTHER_PIN);
    window();
    check("two at once", (took(V), took(HIGHER)), ((1, 0), (1, 0)));
    check("the higher first", ORDER.load(SeqCst), HIGHER << 8 | V);
    redirect(OTHER_PIN, MASKED, 0);
}

fn levels(own: u32) {
    redirect(PIN, V | LEVEL | MASKED, own);
    line(PIN, 1);
    line(PIN, 0);
    set_entry(PIN, V | LEVEL);
    window();
    check("a level that went is no request", took(V), (0, 0));
    QUIET.store(true, SeqCst);
    line(PIN, 1);
    window();
    check("a level", took(V), (1, 0));
    check("in TMR, and remote IRR", (in_set(TMR, V), entry(PIN) & REMOTE), (true, REMOTE));
    set_entry(PIN, V | LEVEL);
    check("remote IRR is read-only", entry(PIN) & REMOTE, REMOTE);
    line(PIN, 0);
    line(PIN, 1);
    window();
    check("no other before its end", took(V), (0, 0));
    set_entry(PIN, V | LEVEL | MASKED);
    write(EOI, 0);
    check("an end while it is masked", entry(PIN) & REMOTE, 0);
    window();
    check("and nothing comes", took(V), (0, 0));
    set_entry(PIN, V | LEVEL);
    window();
    check("until it is open", took(V), (1, 0));
    // The I/O APIC's own register of ends.
    if io(1) & 0xff >= 0x20 {
        unsafe { (END as *mut u32).write_volatile(V) };
        check("an end by the register", in_set(IRR, V), true);
        write(EOI, 0);
        window();
        check("comes again", took(V), (1, 0));
    } else {
        skip("the register of ends");
    }
    // Edge and back drops what nobody ended.
    line(PIN, 0);
    set_entry(PIN, V | MASKED);
    set_entry(PIN, V | LEVEL | MASKED);
    check("remote IRR of a level that was an edge", entry(PIN) & REMOTE, 0);
    write(EOI, 0);
    // Two pins with one vector.
    redirect(PIN, V | LEVEL, own);
    redirect(OTHER_PIN, V | LEVEL, own);
    line(PIN, 1);
    line(OTHER_PIN, 1);
    window();
    check("two pins with a vector", (entry(PIN) & REMOTE, entry(OTHER_PIN) & REMOTE), (REMOTE, REMOTE));
    line(PIN, 0);
    line(OTHER_PIN, 0);
    for _ in 0..3 {
        write(EOI, 0);
        window();
    }
    check("end together", (entry(PIN) & REMOTE, entry(OTHER_PIN) & REMOTE), (0, 0));
    QUIET.store(false, SeqCst);
    took(V);
    redirect(OTHER_PIN, MASKED, 0);
    redirect(PIN, MASKED, 0);
}

/// The entry is changed by the handler of its own interrupt.
fn changes(own: u32) {
    fn on_level(trap: &mut Trap) {
        set_entry(PIN, HIGHER | MASKED);
        line(PIN, 0);
        on_interrupt(trap);
    }
    handle(V.into(), Some(on_level));
    redirect(PIN, V | LEVEL, own);
    line(PIN, 1);
    window();
    check("changed by its handler", took(V), (1, 0));
    handle(V.into(), Some(on_interrupt));
    check("nothing is left", (entry(PIN), in_set(IRR, V), in_set(ISR, V)), (HIGHER | MASKED, false, false));
    set_entry(PIN, HIGHER);
    pulse(PIN);
    window();
    check("and it works as changed", (took(V), took(HIGHER)), ((0, 0), (1, 0)));
    redirect(PIN, MASKED, 0);
}

fn destinations(own: u32) {
    let other = own ^ 1;
    let case = |name: &str, low: u32, destination: u32, expected: (u32, u32)| {
        redirect(PIN, V | low, destination);
        pulse(PIN);
        window();
        let [first, second] = &TAKEN[V as usize];
        let sum = expected.0 + expected.1;
        soon(|| first.load(SeqCst) + second.load(SeqCst) >= sum);
        if sum < 2 {
            a_while();
        }
        check(name, took(V), expected);
        redirect(PIN, MASKED, 0);
    };
    case("physical: itself", 0, own, (1, 0));
    case("physical: the other", 0, other, (0, 1));
    case("physical: all", 0, 0xff, (1, 1));
    case("physical: nobody", 0, 7, (0, 0));
    write(DFR, u32::MAX);
    write(LDR, 0x0100_0000);
    case("logical: itself", LOGICAL, 1, (1, 0));
    case("logical: the other", LOGICAL, 2, (0, 1));
    case("logical: both", LOGICAL, 3, (1, 1));
    case("logical: all", LOGICAL, 0xff, (1, 1));
    case("logical: nobody", LOGICAL, 4, (0, 0));
    write(TPR, 0x20);
    case("lowest priority: the other", LOGICAL | LOWEST, 3, (0, 1));
    write(TPR, 0);
    redirect(PIN, V | LEVEL, other);
    line(PIN, 1);
    let [_, second] = &TAKEN[V as usize];
    check("a level: the other", soon(|| second.load(SeqCst) >= 3), true);
    line(PIN, 0);
    check("and its ends", soon(|| entry(PIN) & REMOTE == 0), true);
    took(V);
    // Whatever the vector says.
    redirect(PIN, 0xff | NMI_MODE, own);
    pulse(PIN);
    check("an NMI", soon(|| TAKEN[2][0].load(SeqCst) == 1), true);
    took(NMI as u32);
    redirect(PIN, NMI_MODE, other);
    pulse(PIN);
    check("an NMI: the other", soon(|| TAKEN[2][1].load(SeqCst) == 1), true);
    took(NMI as u32);
    redirect(PIN, MASKED, 0);
}

pub fn run() {
    let own = read(ID) >> 24;
    for vector in [NMI, V.into(), HIGHER.into()] {
        handle(vector, Some(on_interrupt));
    }
    write(SVR, 0x1ff);
    registers();
    edges(own);
    levels(own);
    changes(own);
    check("the other processor starts", start_other(), true);
    destinations(own);
}
