//! What Hyper-V offers its guests (Microsoft's "Hypervisor Top Level Functional Specification"), or that there
//! is none of it. Each register and each call is tried whether CPUID tells of it or not.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use crate::kit::processors::{a_while, pause, put_start_up, soon};
use crate::kit::xapic;
use crate::kit::*;

const SIGNATURE: u32 = 0x4000_0000;
const GUEST_OS_ID: u32 = 0x4000_0000;
const HYPERCALL: u32 = 0x4000_0001;
const VP_INDEX: u32 = 0x4000_0002;
const RESET: u32 = 0x4000_0003;
const VP_RUNTIME: u32 = 0x4000_0010;
const TIME_REF_COUNT: u32 = 0x4000_0020;
const REFERENCE_TSC: u32 = 0x4000_0021;
const TSC_FREQUENCY: u32 = 0x4000_0022;
const APIC_FREQUENCY: u32 = 0x4000_0023;
const EOI: u32 = 0x4000_0070;
const ICR: u32 = 0x4000_0071;
const TPR: u32 = 0x4000_0072;
const VP_ASSIST_PAGE: u32 = 0x4000_0073;
const SCONTROL: u32 = 0x4000_0080;
const SVERSION: u32 = 0x4000_0081;
const SIEFP: u32 = 0x4000_0082;
const SIMP: u32 = 0x4000_0083;
const EOM: u32 = 0x4000_0084;
const SINT0: u32 = 0x4000_0090;
const STIMER0_CONFIG: u32 = 0x4000_00b0;
const STIMER0_COUNT: u32 = 0x4000_00b1;
const CRASH_P0: u32 = 0x4000_0100;
const CRASH_CTL: u32 = 0x4000_0105;

/// Pages of RAM that nothing else uses, where pages of the hypervisor are put.
const CALL_PAGE: u64 = 0x200_0000;
const OTHER_CALL_PAGE: u64 = 0x200_1000;
const TSC_PAGE: u64 = 0x200_2000;
const ASSIST: u64 = 0x200_3000;
const EVENTS: u64 = 0x200_4000;
const MESSAGES: u64 = 0x200_5000;
const INPUT: u64 = 0x200_6000;
/// What is below them.
const BELOW: u64 = 0x5a5a_5a5a_5a5a_5a5a;

/// An open source operating system, a Linux of version 1.
const IDENTITY: u64 = 0x8101_0000_0001_0000;

const SUCCESS: u64 = 0;
const INVALID_CODE: u64 = 2;
const INVALID_INPUT: u64 = 3;
const INVALID_ALIGNMENT: u64 = 4;
const INVALID_PARAMETER: u64 = 5;
const ACCESS_DENIED: u64 = 6;
const INVALID_CONNECTION: u64 = 0x12;
const INSUFFICIENT_BUFFERS: u64 = 0x13;
const FAST: u64 = 1 << 16;
const REP: u64 = 1 << 32;

const FLUSH_SPACE: u64 = 2;
const FLUSH_LIST: u64 = 3;
const SPIN: u64 = 8;
const IPI: u64 = 0xb;
const FLUSH_SPACE_EX: u64 = 0x13;
const FLUSH_LIST_EX: u64 = 0x14;
const IPI_EX: u64 = 0x15;
const POST_MESSAGE: u64 = 0x5c;
const SIGNAL_EVENT: u64 = 0x5d;

const VECTOR: u64 = 0x51;

fn peek(at: u64) -> u64 {
    unsafe { (at as *const u64).read_volatile() }
}
fn poke(at: u64, value: u64) {
    unsafe { (at as *mut u64).write_volatile(value) }
}

/// What leaves 3 and 4 tell.
#[derive(Clone, Copy)]
struct Told {
    registers: u32,
    calls: u32,
    features: u32,
    advice: u32,
}
impl Told {
    fn register(self, bit: u32) -> bool {
        self.registers >> bit & 1 != 0
    }
    fn feature(self, bit: u32) -> bool {
        self.features >> bit & 1 != 0
    }
    fn advises(self, bit: u32) -> bool {
        self.advice >> bit & 1 != 0
    }
}

pub fn run() {
    let [_, b, c, d] = cpuid(SIGNATURE, 0);
    if cpuid(SIGNATURE + 1, 0)[0] != 0x3123_7648 {
        for register in [GUEST_OS_ID, HYPERCALL, VP_INDEX, TIME_REF_COUNT, SCONTROL, STIMER0_CONFIG, CRASH_CTL] {
            check(format_args!("MSR {register:#x} without Hyper-V"), try_rdmsr(register), None);
            check(format_args!("MSR {register:#x} without Hyper-V"), try_wrmsr(register, 0), GP);
        }
        return skip("Hyper-V");
    }
    check("the hypervisor's name", [b, c, d], [0x7263_694d, 0x666f_736f, 0x7648_2074]);
    let [highest, ..] = cpuid(SIGNATURE, 0);
    check("leaves", highest >= 0x4000_0005 && highest < 0x4000_0100, true);
    let [registers, calls, _, features] = cpuid(SIGNATURE + 3, 0);
    let advice = cpuid(SIGNATURE + 4, 0)[0];
    let told = Told { registers, calls, features, advice };
    check("call registers are there", told.register(5), true);
    check("versions", cpuid(SIGNATURE + 2, 0)[1] >> 16 >= 6, true);
    check("processors", cpuid(SIGNATURE + 5, 0)[0] >= processors() as u32, true);
    for at in (CALL_PAGE..INPUT + 0x1000).step_by(8) {
        poke(at, BELOW);
    }
    privileges(told);
    hypercall_page();
    calls_that_fail(told);
    if told.register(6) {
        check("VP_INDEX", try_rdmsr(VP_INDEX), Some(0));
        check("VP_INDEX is not written", try_wrmsr(VP_INDEX, 0), GP);
    }
    if told.register(0) {
        runtime();
    }
    if told.register(1) && told.register(9) {
        reference();
    }
    if told.register(11) {
        frequencies();
    }
    if told.register(7) {
        check("RESET: nothing", (try_wrmsr(RESET, 0), try_rdmsr(RESET)), (NONE, Some(0)));
    }
    if told.feature(10) {
        crash();
    }
    xapic::write(xapic::SVR, 0x1ff);
    if told.register(4) {
        local_apic();
        assist();
    }
    if told.register(2) {
        synic();
    }
    if told.register(2) && has_test_device() {
        connections();
    }
    if told.register(2) && told.register(3) {
        timers(told);
    }
    if told.advises(2) {
        flush_alone(told);
    }
    if told.advises(10) {
        interrupts_alone(told);
    }
    several(told);
    // Without an identity there are no calls.
    check("GUEST_OS_ID: none", try_wrmsr(GUEST_OS_ID, 0), NONE);
    check("HYPERCALL: off", rdmsr(HYPERCALL) & 1, 0);
    check("what was below is there again", peek(CALL_PAGE), BELOW);
}

/// A register is there exactly if CPUID tells of it.
fn privileges(told: Told) {
    for (name, there, registers) in [
        ("VP_RUNTIME", told.register(0), &[VP_RUNTIME][..]),
        ("reference counter", told.register(1), &[TIME_REF_COUNT]),
        ("SynIC", told.register(2), &[SCONTROL, SVERSION, SIEFP, SIMP, EOM, SINT0, SINT0 + 15]),
        ("timers", told.register(3), &[STIMER0_CONFIG, STIMER0_COUNT, STIMER0_CONFIG + 6, STIMER0_CONFIG + 7]),
        ("local APIC", told.register(4), &[ICR, TPR, VP_ASSIST_PAGE]),
        ("calls", told.register(5), &[GUEST_OS_ID, HYPERCALL]),
        ("VP_INDEX", told.register(6), &[VP_INDEX]),
        ("RESET", told.register(7), &[RESET]),
        ("statistics", told.register(8), &[0x4000_00e0, 0x4000_00e1]),
        ("reference page", told.register(9), &[REFERENCE_TSC]),
        ("idle", told.register(10), &[0x4000_00f0]),
        ("frequencies", told.register(11) && told.feature(8), &[TSC_FREQUENCY, APIC_FREQUENCY]),
        ("debugging", told.feature(11), &[0x4000_00f1, 0x4000_00f2]),
        ("reenlightenment", told.register(13), &[0x4000_0106, 0x4000_0107, 0x4000_0108]),
        ("crash", told.feature(10), &[CRASH_P0, CRASH_P0 + 4, CRASH_CTL]),
        ("no register", false, &[0x4000_0004, 0x4000_0074, 0x4000_0085, 0x4000_00a0, 0x4000_00b8]),
    ] {
        for &register in registers {
            check(format_args!("{name}: MSR {register:#x}"), try_rdmsr(register).is_some(), there);
            if !there {
                check(format_args!("{name}: write {register:#x}"), try_wrmsr(register, 0), GP);
            }
        }
    }
    check("EOI is not read", try_rdmsr(EOI), None);
}

/// The registers of a call by the page, by hand, at CPL 0.
fn call_at(page: u64, value: u64, input: u64, output: u64) -> (u64, u64) {
    let result: u64;
    let vector = attempt!(["call r9"], in("r9") page, inout("rcx") value => _, inout("rdx") input => _,
        inout("r8") output => _, out("rax") result);
    (vector, result)
}
/// A call: status, and repetitions done.
fn call(value: u64, input: u64, output: u64) -> (u64, u64) {
    let (vector, result) = call_at(CALL_PAGE, value, input, output);
    check(format_args!("call {value:#x} raises nothing"), vector, NONE);
    (result & 0xffff, result >> 32 & 0xfff)
}
fn put(words: &[u64]) {
    for (n, &word) in words.iter().enumerate() {
        poke(INPUT + 8 * n as u64, word);
    }
}

fn hypercall_page() {
    check("GUEST_OS_ID at first", rdmsr(GUEST_OS_ID), 0);
    check("HYPERCALL at first", rdmsr(HYPERCALL) & 1, 0);
    wrmsr(HYPERCALL, CALL_PAGE | 1);
    check("HYPERCALL without an identity", rdmsr(HYPERCALL), CALL_PAGE);
    check("nothing is there", peek(CALL_PAGE), BELOW);
    wrmsr(GUEST_OS_ID, IDENTITY);
    check("GUEST_OS_ID", rdmsr(GUEST_OS_ID), IDENTITY);
    wrmsr(HYPERCALL, OTHER_CALL_PAGE | 1);
    check("HYPERCALL", rdmsr(HYPERCALL), OTHER_CALL_PAGE | 1);
    check("code is there", peek(OTHER_CALL_PAGE) != BELOW, true);
    let code = peek(OTHER_CALL_PAGE);
    let (vector, result) = call_at(OTHER_CALL_PAGE, SPIN | FAST, 1, 0);
    check("a call", (vector, result & 0xffff), (NONE, SUCCESS));
    wrmsr(HYPERCALL, CALL_PAGE | 1);
    check("what was below is there again", peek(OTHER_CALL_PAGE), BELOW);
    check("the page has moved", peek(CALL_PAGE), code);
    check("the page is not written", attempt!(["mov [{}], eax"], in(reg) CALL_PAGE), GP);
    check("not in part", attempt!(["lock inc byte ptr [{}]"], in(reg) CALL_PAGE + 0x800), GP);
    check("nor at its edge", attempt!(["mov [{}], rax"], in(reg) CALL_PAGE - 4), GP);
    check("its code stays", peek(CALL_PAGE), code);
    check("an address that is none", try_wrmsr(HYPERCALL, 1 << 60 | 1), GP);
    // The instruction without the page, and who may execute it.
    let vector = user!(["mov rcx, 0x10008", "call {}"], in(reg) CALL_PAGE + USER_ALIAS,
        out("rcx") _, out("rax") _);
    check("a call from CPL 3", vector, UD);
    check("GUEST_OS_ID once more", try_wrmsr(GUEST_OS_ID, IDENTITY + 1), NONE);
    check("does not move it", rdmsr(HYPERCALL), CALL_PAGE | 1);
}

fn calls_that_fail(told: Told) {
    check("an unknown call", call(0x7ff0, 0, 0).0, INVALID_CODE);
    for bit in [27, 31, 44, 47, 60, 63] {
        check(format_args!("reserved bit {bit}"), call(SPIN | FAST | 1 << bit, 0, 0).0, INVALID_INPUT);
    }
    check("repetitions of what has none", call(SPIN | FAST | REP, 0, 0).0, INVALID_INPUT);
    check("a start where there is none", call(SPIN | FAST | 1 << 48, 0, 0).0, INVALID_INPUT);
    check("a header where there is none", call(SPIN | FAST | 1 << 17, 0, 0).0, INVALID_INPUT);
    check("in memory", call(SPIN, INPUT, 0).0, SUCCESS);
    check("not aligned", call(SPIN, INPUT + 4, 0).0, INVALID_ALIGNMENT);
    check("outside of all addresses", call(SPIN, 1 << 60, 0).0, INVALID_ALIGNMENT);
    let events = told.calls >> 5 & 1 != 0;
    let messages = told.calls >> 4 & 1 != 0;
    let denied = |there| if there { INVALID_CONNECTION } else { ACCESS_DENIED };
    check("an event for nobody", call(SIGNAL_EVENT | FAST, 1, 0).0, denied(events));
    put(&[1, 1 | 8 << 32, 0x1234]);
    check("a message for nobody", call(POST_MESSAGE, INPUT, 0).0, denied(messages));
    if messages {
        put(&[1, 1 << 31]);
        check("a message of the hypervisor's", call(POST_MESSAGE, INPUT, 0).0, INVALID_PARAMETER);
        put(&[1, 0]);
        check("a message of no type", call(POST_MESSAGE, INPUT, 0).0, INVALID_PARAMETER);
        put(&[1, 1 | 241 << 32]);
        check("a message that is too long", call(POST_MESSAGE, INPUT, 0).0, INVALID_PARAMETER);
        check("a message across pages", call(POST_MESSAGE, INPUT + 0xf08, 0).0, INVALID_ALIGNMENT);
        check("a message in registers", call(POST_MESSAGE | FAST, 1, 1).0, INVALID_INPUT);
    }
    if !told.advises(2) {
        check("a flush that is not offered", call(FLUSH_SPACE, INPUT, 0).0, INVALID_CODE);
        check("a list that is not offered", call(FLUSH_LIST | REP, INPUT, 0).0, INVALID_CODE);
    }
    if !told.advises(10) {
        check("interrupts that are not offered", call(IPI | FAST, VECTOR, 1).0, INVALID_CODE);
    }
    // More input than two registers hold, in registers.
    if told.advises(2) {
        let (vector, result) = call_at(CALL_PAGE, FLUSH_SPACE | FAST, 0, 1);
        let expected = if told.feature(4) { (NONE, SUCCESS) } else { (UD, result & 0xffff) };
        check("input in vector registers", (vector, result & 0xffff), expected);
    }
}

fn runtime() {
    let first = rdmsr(VP_RUNTIME);
    a_while();
    let second = rdmsr(VP_RUNTIME);
    check("VP_RUNTIME goes on", second > first, true);
    check("VP_RUNTIME is not written", try_wrmsr(VP_RUNTIME, 0), GP);
}

/// The time by the page, as the specification recommends.
fn page_time() -> Option<u64> {
    loop {
        let sequence = peek(TSC_PAGE) as u32;
        if sequence == 0 {
            return None;
        }
        let ticks = rdtsc();
        let time = (u128::from(ticks) * u128::from(peek(TSC_PAGE + 8)) >> 64) as u64;
        let time = time.wrapping_add(peek(TSC_PAGE + 16));
        if peek(TSC_PAGE) as u32 == sequence {
            return Some(time);
        }
    }
}

fn reference() {
    check("TIME_REF_COUNT is not written", try_wrmsr(TIME_REF_COUNT, 0), GP);
    check("REFERENCE_TSC at first", rdmsr(REFERENCE_TSC), 0);
    wrmsr(REFERENCE_TSC, TSC_PAGE | 1);
    check("REFERENCE_TSC", rdmsr(REFERENCE_TSC), TSC_PAGE | 1);
    check("the page tells the time", page_time().is_some(), true);
    let mut wrong = 0;
    for _ in 0..1000 {
        let before = rdmsr(TIME_REF_COUNT);
        let time = page_time().unwrap_or(0);
        let after = rdmsr(TIME_REF_COUNT);
        wrong += u32::from(time < before || time > after);
    }
    check("both ways agree", wrong, 0);
    let (start, ticks) = (rdmsr(TIME_REF_COUNT), rdtsc());
    a_while();
    let (units, ticks) = (rdmsr(TIME_REF_COUNT) - start, rdtsc() - ticks);
    if try_rdmsr(TSC_FREQUENCY).is_some() {
        let expected = (u128::from(ticks) * 10_000_000 / u128::from(rdmsr(TSC_FREQUENCY))) as u64;
        check("units of 100 ns", units.abs_diff(expected) < expected / 20 + 1000, true);
    }
    // A counter that is moved: the page says so, or that it is of no use.
    wrmsr(0x10, rdtsc() + (1 << 40));
    let (before, time, after) = (rdmsr(TIME_REF_COUNT), page_time(), rdmsr(TIME_REF_COUNT));
    check("a counter that is moved", time.is_none_or(|time| (before..=after).contains(&time)), true);
    wrmsr(0x3b, 0);
    check("and moved back", page_time().is_some(), true);
    wrmsr(REFERENCE_TSC, 0);
    check("the page is gone", peek(TSC_PAGE), BELOW);
}

fn frequencies() {
    let (tsc, apic) = (rdmsr(TSC_FREQUENCY), rdmsr(APIC_FREQUENCY));
    check("TSC_FREQUENCY", (100_000_000..10_000_000_000).contains(&tsc), true);
    check("frequencies are not written", (try_wrmsr(TSC_FREQUENCY, 1), try_wrmsr(APIC_FREQUENCY, 1)), (GP, GP));
    // The timer, undivided, against the time-stamp counter.
    xapic::write(xapic::SVR, 0x1ff);
    xapic::write(xapic::DIVIDE, 0xb);
    xapic::write(xapic::LVT_TIMER, 1 << 16);
    xapic::write(xapic::INITIAL, u32::MAX);
    let (start, count) = (rdtsc(), xapic::read(xapic::CURRENT));
    a_while();
    let (ticks, counted) = (rdtsc() - start, count - xapic::read(xapic::CURRENT));
    let expected = (u128::from(ticks) * u128::from(apic) / u128::from(tsc)) as u64;
    check("APIC_FREQUENCY", u64::from(counted).abs_diff(expected) < expected / 10, true);
    xapic::write(xapic::INITIAL, 0);
}

fn crash() {
    check("CRASH_CTL tells what can be done", rdmsr(CRASH_CTL) >> 63, 1);
    for n in 0..5 {
        wrmsr(CRASH_P0 + n, 0x1111 * (u64::from(n) + 1));
    }
    for n in 0..5 {
        check("crash parameters", rdmsr(CRASH_P0 + n), 0x1111 * (u64::from(n) + 1));
    }
    check("CRASH_CTL: nothing", try_wrmsr(CRASH_CTL, 0), NONE);
}

static TAKEN: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
static NO_EOI: AtomicBool = AtomicBool::new(false);

fn on_interrupt(trap: &mut Trap) {
    TAKEN[trap.vector as usize].fetch_add(1, SeqCst);
    if !NO_EOI.load(SeqCst) {
        xapic::write(xapic::EOI, 0);
    }
}
fn taken(vector: u64) -> u32 {
    TAKEN[vector as usize].swap(0, SeqCst)
}
fn open_window() {
    unsafe { asm!("sti", "nop", "nop", "cli") };
}
fn in_service(vector: u64) -> bool {
    xapic::read(xapic::ISR + (vector as u32 / 32) * 16) >> (vector % 32) & 1 != 0
}
fn requested(vector: u64) -> bool {
    xapic::read(xapic::IRR + (vector as u32 / 32) * 16) >> (vector % 32) & 1 != 0
}

fn local_apic() {
    wrmsr(TPR, 0x60);
    check("TPR", (rdmsr(TPR), cr8(), xapic::read(xapic::TPR)), (0x60, 6, 0x60));
    set_cr8(3);
    check("TPR by CR8", rdmsr(TPR), 0x30);
    check("TPR has eight bits", try_wrmsr(TPR, 0x100), GP);
    wrmsr(TPR, 0);
    handle(VECTOR, Some(on_interrupt));
    wrmsr(ICR, 1 << 18 | VECTOR);
    check("ICR requests", requested(VECTOR), true);
    check("ICR reads back", rdmsr(ICR) & 0xff, VECTOR);
    NO_EOI.store(true, SeqCst);
    open_window();
    check("ICR: the interrupt", (taken(VECTOR), in_service(VECTOR)), (1, true));
    check("EOI with reserved bits", try_wrmsr(EOI, 1 << 32), GP);
    wrmsr(EOI, 0);
    check("EOI", in_service(VECTOR), false);
    let id = u64::from(xapic::read(xapic::ID) >> 24);
    wrmsr(ICR, id << 56 | VECTOR);
    NO_EOI.store(false, SeqCst);
    open_window();
    check("ICR with a destination", taken(VECTOR), 1);
    handle(VECTOR, None);
}

/// Ends of interrupts by the assist page, if the hypervisor uses it.
fn assist() {
    const LOW: u64 = 0x41;
    fn quiet(trap: &mut Trap) {
        TAKEN[trap.vector as usize].fetch_add(1, SeqCst);
        // Test and clear, and the register if there was nothing to clear.
        let set: u8;
        unsafe { asm!("btr dword ptr [{}], 0", "setc {}", in(reg) ASSIST, out(reg_byte) set) };
        QUIET.fetch_add(u32::from(set), SeqCst);
        if set == 0 {
            wrmsr(EOI, 0);
        }
    }
    static QUIET: AtomicU32 = AtomicU32::new(0);
    check("VP_ASSIST_PAGE at first", rdmsr(VP_ASSIST_PAGE) & 1, 0);
    wrmsr(VP_ASSIST_PAGE, ASSIST | 1);
    check("VP_ASSIST_PAGE", rdmsr(VP_ASSIST_PAGE), ASSIST | 1);
    check("the assist page is a page of its own", peek(ASSIST), 0);
    poke(ASSIST + 8, 0x1234);
    check("that is written", peek(ASSIST + 8), 0x1234);
    handle(VECTOR, Some(quiet));
    handle(LOW, Some(quiet));
    for round in 0..20u32 {
        wrmsr(ICR, 1 << 18 | VECTOR);
        if round % 3 == 0 {
            wrmsr(ICR, 1 << 18 | LOW);
        }
        open_window();
        open_window();
        check("each is taken", (taken(VECTOR), taken(LOW)), (1, u32::from(round % 3 == 0)));
        check("and has ended", (in_service(VECTOR), in_service(LOW)), (false, false));
    }
    if QUIET.load(SeqCst) == 0 {
        skip("ends of interrupts without a register");
    }
    // One that interrupts another: the flag is about the inner one.
    fn outer(trap: &mut Trap) {
        wrmsr(ICR, 1 << 18 | VECTOR);
        unsafe { asm!("sti", "nop", "nop", "cli") };
        quiet(trap);
    }
    handle(LOW, Some(outer));
    wrmsr(ICR, 1 << 18 | LOW);
    open_window();
    check("one in another", (taken(LOW), taken(VECTOR)), (1, 1));
    check("both have ended", (in_service(LOW), in_service(VECTOR)), (false, false));
    handle(VECTOR, None);
    handle(LOW, None);
    wrmsr(VP_ASSIST_PAGE, 0);
    check("what was below is there again", peek(ASSIST + 8), BELOW);
}

fn synic() {
    check("SVERSION", rdmsr(SVERSION), 1);
    check("SVERSION is not written", try_wrmsr(SVERSION, 1), GP);
    check("at first", (rdmsr(SCONTROL), rdmsr(SIEFP), rdmsr(SIMP), rdmsr(EOM)), (0, 0, 0, 0));
    for n in 0..16 {
        check("sources are masked at first", rdmsr(SINT0 + n), 1 << 16);
        check("a vector that is none", try_wrmsr(SINT0 + n, 0xf), GP);
        check("unless it is masked", try_wrmsr(SINT0 + n, 1 << 16), NONE);
    }
    for (name, register, at) in [("SIEFP", SIEFP, EVENTS), ("SIMP", SIMP, MESSAGES)] {
        check(name, try_wrmsr(register, at | 1), NONE);
        check(name, rdmsr(register), at | 1);
        check(format_args!("{name}: zeroes"), (peek(at), peek(at + 0xff8)), (0, 0));
        poke(at + 0x800, 7);
        wrmsr(register, 0);
        check(format_args!("{name}: gone"), peek(at + 0x800), BELOW);
        wrmsr(register, at | 1);
        check(format_args!("{name}: kept what it had"), peek(at + 0x800), 7);
        poke(at + 0x800, 0);
    }
    check("SCONTROL", (try_wrmsr(SCONTROL, 1), rdmsr(SCONTROL)), (NONE, 1));
    check("EOM of nothing", try_wrmsr(EOM, 0), NONE);
}

const SOURCE: u64 = 3;
fn slot(word: u64) -> u64 {
    peek(MESSAGES + SOURCE * 256 + 8 * word)
}
/// Whether a message is in the slot.
fn full() -> bool {
    slot(0) as u32 != 0
}
fn empty_slot() -> bool {
    let at = MESSAGES + SOURCE * 256;
    unsafe { (at as *mut u32).write_volatile(0) };
    core::sync::atomic::fence(SeqCst);
    slot(0) >> 40 & 1 != 0
}
/// The port by which suites have sources interrupt, and connections made (`hyperv-testdev`).
const TEST_PORT: u16 = 0x3000;
const ROUTE: u64 = 1;
const NO_ROUTE: u64 = 2;
const ASSERT: u64 = 3;
const CONNECT_MESSAGES: u64 = 4;
const DISCONNECT_MESSAGES: u64 = 5;
const CONNECT_EVENTS: u64 = 6;
const DISCONNECT_EVENTS: u64 = 7;
const CONNECTION: u64 = 0x2b;

fn has_test_device() -> bool {
    let value: u32;
    unsafe { asm!("in eax, dx", in("dx") TEST_PORT, out("eax") value) };
    value != u32::MAX
}
fn test_device(command: u64, connection: u64) {
    let value = (SOURCE | command << 16 | connection << 24) as u32;
    unsafe { asm!("out dx, eax", in("dx") TEST_PORT, in("eax") value) };
}

/// Messages and events that the guest sends to itself ("HvPostMessage", "HvSignalEvent").
fn connections() {
    handle(VECTOR, Some(on_interrupt));
    wrmsr(SINT0 + SOURCE as u32, VECTOR);
    let interrupts = |name: &str, expected: u32| {
        open_window();
        check(name, taken(VECTOR), expected);
    };
    test_device(ASSERT, 0);
    interrupts("a source without a route", 0);
    test_device(ROUTE, 0);
    test_device(ASSERT, 0);
    interrupts("a source is asserted", 1);
    wrmsr(SINT0 + SOURCE as u32, VECTOR | 1 << 16);
    test_device(ASSERT, 0);
    interrupts("one that is masked", 0);
    wrmsr(SINT0 + SOURCE as u32, VECTOR | 1 << 17);
    NO_EOI.store(true, SeqCst);
    for _ in 0..2 {
        test_device(ASSERT, 0);
        interrupts("one that ends by itself", 1);
        check("is over", in_service(VECTOR), false);
    }
    NO_EOI.store(false, SeqCst);
    wrmsr(SINT0 + SOURCE as u32, VECTOR);
    test_device(NO_ROUTE, 0);
    test_device(ASSERT, 0);
    interrupts("a route that is gone", 0);

    let post = |kind: u64, text: u64| {
        put(&[CONNECTION, kind | 12 << 32, text, 0x77]);
        call(POST_MESSAGE, INPUT, 0).0
    };
    check("not connected", post(1, 0), INVALID_CONNECTION);
    test_device(CONNECT_MESSAGES, CONNECTION);
    check("a message", post(5, 0x1234_5678_9abc), SUCCESS);
    check("it is there", soon(full), true);
    check("type, length and sender", (slot(0), slot(1)), (12 << 32 | 5, CONNECTION));
    check("what it says", (slot(2), slot(3) as u32), (0x1234_5678_9abc, 0x77));
    interrupts("its interrupt", 1);
    check("another, while it is there", post(6, 2), SUCCESS);
    check("one waits", slot(0) >> 40 & 1, 1);
    check("a third", post(7, 3), INSUFFICIENT_BUFFERS);
    interrupts("no interrupt yet", 0);
    check("the flag", empty_slot(), true);
    wrmsr(EOM, 0);
    check("then it comes", (slot(0), slot(2)), (12 << 32 | 6, 2));
    interrupts("with its interrupt", 1);
    check("nothing waits", empty_slot(), false);
    check("room again", post(7, 3), SUCCESS);
    check("at the end of an interrupt, too", post(8, 4), SUCCESS);
    empty_slot();
    interrupts("the interrupts of both", 2);
    check("the second", slot(0) as u32, 8);
    empty_slot();
    put(&[1 << 24 | CONNECTION, 1]);
    check("a number that is too large", call(POST_MESSAGE, INPUT, 0).0, INVALID_CONNECTION);
    test_device(DISCONNECT_MESSAGES, CONNECTION);
    check("disconnected", post(5, 0), INVALID_CONNECTION);

    let flags = EVENTS + SOURCE * 256 + CONNECTION / 8;
    let flag = || peek(flags & !7) >> (flags % 8 * 8 + CONNECTION % 8) & 1;
    let signal = |event: u64| call(SIGNAL_EVENT | FAST, event, 0).0;
    check("no event", signal(CONNECTION), INVALID_CONNECTION);
    test_device(CONNECT_EVENTS, CONNECTION);
    check("an event", (signal(CONNECTION), flag()), (SUCCESS, 1));
    interrupts("an event's interrupt", 1);
    check("once more", signal(CONNECTION), SUCCESS);
    interrupts("its flag is set still", 0);
    unsafe { asm!("lock btr dword ptr [{}], {1:e}", in(reg) EVENTS + SOURCE * 256, in(reg) CONNECTION) };
    check("cleared", flag(), 0);
    put(&[CONNECTION]);
    check("by memory", (call(SIGNAL_EVENT, INPUT, 0).0, flag()), (SUCCESS, 1));
    interrupts("an event's interrupt", 1);
    check("a flag that there is not", signal(CONNECTION | 1 << 32), INVALID_PARAMETER);
    check("reserved bits", signal(CONNECTION | 1 << 48), INVALID_INPUT);
    test_device(DISCONNECT_EVENTS, CONNECTION);
    check("an event, disconnected", signal(CONNECTION), INVALID_CONNECTION);
    poke(flags & !7, 0);
    wrmsr(SINT0 + SOURCE as u32, VECTOR | 1 << 16);
    handle(VECTOR, None);
}

/// Type and length of a message of a timer.
const EXPIRED: u64 = 0x18_8000_0010;

fn timers(told: Told) {
    let now = || rdmsr(TIME_REF_COUNT);
    handle(VECTOR, Some(on_interrupt));
    wrmsr(SINT0 + SOURCE as u32, VECTOR);
    // One shot.
    let due = now() + 1_000_000;
    wrmsr(STIMER0_COUNT, due);
    wrmsr(STIMER0_CONFIG, 1 | SOURCE << 16);
    check("a timer", (rdmsr(STIMER0_COUNT), rdmsr(STIMER0_CONFIG)), (due, 1 | SOURCE << 16));
    let early = full();
    check("not before its time", !early || now() >= due, true);
    check("a message comes", soon(full), true);
    let delivered = slot(4);
    check("the message", (slot(0), slot(1), slot(2), slot(3)), (EXPIRED, 0, 0, due));
    check("when it was delivered", due <= delivered && delivered <= now(), true);
    check("a timer that is done", rdmsr(STIMER0_CONFIG) & 1, 0);
    open_window();
    check("the interrupt", taken(VECTOR), 1);
    check("nothing waits", empty_slot(), false);
    // In the past.
    wrmsr(STIMER0_COUNT, 1);
    wrmsr(STIMER0_CONFIG, 1 | SOURCE << 16);
    check("a time that is past", soon(full), true);
    // The slot is full: it waits.
    wrmsr(STIMER0_CONFIG + 3, now());
    wrmsr(STIMER0_CONFIG + 2, 1 | SOURCE << 16);
    check("a message waits", soon(|| slot(0) >> 40 & 1 != 0), true);
    open_window();
    check("one interrupt", taken(VECTOR), 1);
    check("the flag", empty_slot(), true);
    wrmsr(EOM, 0);
    check("then it comes", (slot(0), slot(2)), (EXPIRED, 1));
    open_window();
    check("with its interrupt", taken(VECTOR), 1);
    empty_slot();
    automatic();
    periodic();
    // An interrupt that ends by itself.
    wrmsr(SINT0 + SOURCE as u32, VECTOR | 1 << 17);
    NO_EOI.store(true, SeqCst);
    for _ in 0..2 {
        wrmsr(STIMER0_COUNT, 1);
        wrmsr(STIMER0_CONFIG, 1 | SOURCE << 16);
        check("AutoEOI: the message", soon(full), true);
        open_window();
        check("AutoEOI", (taken(VECTOR), in_service(VECTOR)), (1, false));
        empty_slot();
    }
    NO_EOI.store(false, SeqCst);
    // Masked: the message comes without.
    wrmsr(SINT0 + SOURCE as u32, VECTOR | 1 << 16);
    wrmsr(STIMER0_COUNT, 1);
    wrmsr(STIMER0_CONFIG, 1 | SOURCE << 16);
    check("masked: the message", soon(full), true);
    open_window();
    check("masked: no interrupt", taken(VECTOR), 0);
    empty_slot();
    // No source.
    wrmsr(STIMER0_COUNT, now() + 1000);
    wrmsr(STIMER0_CONFIG, 1);
    check("a timer without a source", rdmsr(STIMER0_CONFIG) & 1, 0);
    if told.feature(19) {
        direct();
    }
    wrmsr(SCONTROL, 0);
    wrmsr(SIMP, 0);
    wrmsr(SIEFP, 0);
    handle(VECTOR, None);
}

fn automatic() {
    wrmsr(STIMER0_CONFIG, 8 | SOURCE << 16);
    check("AutoEnable waits", rdmsr(STIMER0_CONFIG) & 1, 0);
    let due = rdmsr(TIME_REF_COUNT) + 100_000_000;
    wrmsr(STIMER0_COUNT, due);
    check("AutoEnable: a count enables", rdmsr(STIMER0_CONFIG) & 1, 1);
    wrmsr(STIMER0_COUNT, 0);
    check("zero disables", rdmsr(STIMER0_CONFIG) & 1, 0);
    wrmsr(STIMER0_COUNT, 1);
    check("AutoEnable: it expires", soon(full), true);
    open_window();
    check("AutoEnable: the interrupt", taken(VECTOR), 1);
    empty_slot();
}

fn periodic() {
    for lazy in [0, 4] {
        let (start, period) = (rdmsr(TIME_REF_COUNT), 20_000u64);
        wrmsr(STIMER0_CONFIG, 0);
        wrmsr(STIMER0_COUNT, period);
        wrmsr(STIMER0_CONFIG, 1 | 2 | lazy | SOURCE << 16);
        let mut last = 0;
        for n in 0..10 {
            check("a period", soon(full), true);
            let due = slot(3);
            check("on its grid", (due >= start + period, due > last), (true, true));
            if last != 0 {
                check("whole periods", (due - last) % period, 0);
            }
            last = due;
            check("it stays enabled", rdmsr(STIMER0_CONFIG) & 1, 1);
            open_window();
            check("an interrupt each", taken(VECTOR) > 0, true);
            if empty_slot() {
                wrmsr(EOM, 0);
            }
        }
        wrmsr(STIMER0_CONFIG, 0);
        a_while();
        open_window();
        empty_slot();
        a_while();
        taken(VECTOR);
        check("none when it is off", full(), false);
    }
}

fn direct() {
    const DIRECT: u64 = 0x62;
    handle(DIRECT, Some(on_interrupt));
    wrmsr(STIMER0_COUNT, rdmsr(TIME_REF_COUNT) + 1000);
    wrmsr(STIMER0_CONFIG, 1 | 1 << 12 | DIRECT << 4);
    let seen = soon(|| {
        open_window();
        TAKEN[DIRECT as usize].load(SeqCst) != 0
    });
    check("direct mode", (seen, taken(DIRECT), full()), (true, 1, false));
    check("direct mode: done", rdmsr(STIMER0_CONFIG) & 1, 0);
    wrmsr(STIMER0_COUNT, 10_000);
    wrmsr(STIMER0_CONFIG, 3 | 1 << 12 | DIRECT << 4);
    let seen = soon(|| {
        open_window();
        TAKEN[DIRECT as usize].load(SeqCst) >= 5
    });
    check("direct mode, periodic", seen, true);
    wrmsr(STIMER0_CONFIG, 0);
    a_while();
    open_window();
    handle(DIRECT, None);
}

/// A page that is mapped anew under the processor's eyes.
const WINDOW: u64 = 0x4000_0000 * 3 / 2;
fn window_entry() -> *mut u64 {
    unsafe { (&raw mut PD).cast::<u64>().add((WINDOW >> 21) as usize) }
}
fn map_window(at: u64) {
    unsafe { window_entry().write_volatile(at | 0x83) };
}
const FIRST: u64 = 0x220_0000;
const SECOND: u64 = 0x240_0000;

fn flush_alone(told: Told) {
    poke(FIRST, 0x1111);
    poke(SECOND, 0x2222);
    let ways: [(&str, u64, &[u64]); 8] = [
        ("space", FLUSH_SPACE, &[cr3(), 0, 1]),
        ("all processors", FLUSH_SPACE, &[cr3(), 1, 0]),
        ("all spaces", FLUSH_SPACE, &[0, 3, 0]),
        ("not the global ones", FLUSH_SPACE, &[cr3(), 4, 1]),
        ("list", FLUSH_LIST | 2 * REP, &[cr3(), 0, 1, 0x1000, WINDOW]),
        ("long list", FLUSH_LIST | REP, &[cr3(), 0, 1, WINDOW - 0x10_0000 | 0xfff]),
        ("set", FLUSH_SPACE_EX | 1 << 17, &[cr3(), 0, 0, 1, 1]),
        ("list for all", FLUSH_LIST_EX | REP, &[cr3(), 0, 1, 0, WINDOW]),
    ];
    let old = unsafe { window_entry().read_volatile() };
    for (name, value, input) in ways {
        map_window(FIRST);
        invlpg(WINDOW);
        check(format_args!("{name}: as it is mapped"), peek(WINDOW), 0x1111);
        map_window(SECOND);
        put(input);
        let reps = value >> 32;
        check(format_args!("{name}: flush"), call(value, INPUT, 0), (SUCCESS, reps));
        check(format_args!("{name}: as it is mapped now"), peek(WINDOW), 0x2222);
    }
    unsafe { window_entry().write_volatile(old) };
    invlpg(WINDOW);
    for (name, value, input, expected) in [
        ("reserved flags", FLUSH_SPACE, &[0, 0x10, 1][..], INVALID_PARAMETER),
        ("a list but for global ones", FLUSH_LIST | REP, &[0, 4, 1, 0], INVALID_PARAMETER),
        ("a list of nothing", FLUSH_LIST, &[0, 0, 1], INVALID_INPUT),
        ("a list from beyond its end", FLUSH_LIST | REP | 1 << 48, &[0, 0, 1, 0], INVALID_INPUT),
        ("banks that are not there", FLUSH_SPACE_EX, &[0, 0, 0, 1], INVALID_INPUT),
        ("a set of no kind", FLUSH_SPACE_EX, &[0, 0, 2, 0], INVALID_PARAMETER),
        ("processors that there are not", FLUSH_SPACE, &[cr3(), 0, !1], SUCCESS),
    ] {
        put(input);
        check(name, call(value, INPUT, 0).0, expected);
    }
    check("a list beyond its page", call(FLUSH_LIST | 0xfff * REP, INPUT, 0).0, INVALID_ALIGNMENT);
    put(&[cr3(), 8, 1, WINDOW | 1 << 11]);
    let extended = if told.feature(14) { SUCCESS } else { INVALID_PARAMETER };
    check("ranges of large pages", call(FLUSH_LIST | REP, INPUT, 0).0, extended);
}

fn interrupts_alone(told: Told) {
    handle(VECTOR, Some(on_interrupt));
    check("an interrupt", call(IPI | FAST, VECTOR, 1).0, SUCCESS);
    open_window();
    check("is taken", taken(VECTOR), 1);
    put(&[VECTOR, 1]);
    check("from memory", call(IPI, INPUT, 0).0, SUCCESS);
    open_window();
    check("is taken, too", taken(VECTOR), 1);
    put(&[VECTOR, 0, 1, 1]);
    check("a set", call(IPI_EX | 1 << 17, INPUT, 0).0, SUCCESS);
    open_window();
    check("of one", taken(VECTOR), 1);
    put(&[VECTOR, 0, 2, 1]);
    check("a set of others", call(IPI_EX | 1 << 17, INPUT, 0).0, SUCCESS);
    open_window();
    check("of none", taken(VECTOR), 0);
    for (name, value) in [("a vector below 16", 0xf), ("above 255", 0x100), ("a trust level", VECTOR | 1 << 32)] {
        check(name, call(IPI | FAST, value, 1).0, INVALID_PARAMETER);
    }
    if told.advises(11) {
        put(&[VECTOR, 1, 0]);
        check("a set of all", call(IPI_EX, INPUT, 0).0, SUCCESS);
        open_window();
        check("of which this is one", taken(VECTOR), 1);
    }
    handle(VECTOR, None);
}

// --- several processors ----------------------------------------------------------------------------

const PAGE: u64 = 0x9000;
global_asm!(
    ".section .text",
    ".global hv_ap, hv_ap_end",
    ".code16",
    "hv_ap:",
    to_long_mode!("hv_ap_long"),
    "hv_ap_end:",
    ".code64",
    "hv_ap_long:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "lea rsp, [rip + {stack} + 0x4000]",
    "lidt [rip + IDTR]",
    "call {main}",
    stack = sym AP_STACK,
    main = sym ap_main,
);
unsafe extern "C" {
    static hv_ap: u8;
    static hv_ap_end: u8;
}
#[repr(align(16))]
struct Stack([u8; 0x4000]);
static mut AP_STACK: Stack = Stack([0; 0x4000]);
static READY: AtomicBool = AtomicBool::new(false);
static AP_INDEX: AtomicU64 = AtomicU64::new(u64::MAX);
static AP_CALL: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);
static ROUND: AtomicU64 = AtomicU64::new(0);
static ANSWER: AtomicU64 = AtomicU64::new(0);
/// What the other processor does: nothing, looks at the window all the while, or flushes all the while.
static TASK: AtomicU32 = AtomicU32::new(0);
static FLUSHES: AtomicU32 = AtomicU32::new(0);

extern "C" fn ap_main() -> ! {
    xapic::write(xapic::SVR, 0x1ff);
    AP_INDEX.store(rdmsr(VP_INDEX), SeqCst);
    AP_CALL.store(rdmsr(HYPERCALL), SeqCst);
    READY.store(true, SeqCst);
    loop {
        unsafe { asm!("sti", "nop", "cli") };
        match TASK.load(SeqCst) {
            1 => {
                let round = ROUND.load(SeqCst);
                SEEN.store(peek(WINDOW), SeqCst);
                ANSWER.store(round, SeqCst);
            }
            2 => {
                // All processors.
                if status(FLUSH_SPACE, INPUT + 0x800, 0) == SUCCESS {
                    FLUSHES.fetch_add(1, SeqCst);
                }
            }
            _ => pause(),
        }
    }
}

/// Number of processors, as the machine's firmware configuration tells it.
fn processors() -> usize {
    unsafe { asm!("out dx, ax", in("dx") 0x510u16, in("ax") 5u16) };
    usize::from(inb(0x511)) | usize::from(inb(0x511)) << 8
}

/// The status of a call that does not raise. What was raised last is no processor's own, so while another one
/// runs, nobody asks for it.
fn status(value: u64, input: u64, output: u64) -> u64 {
    let result: u64;
    unsafe {
        asm!("call {}", in(reg) CALL_PAGE, inout("rcx") value => _, inout("rdx") input => _,
            inout("r8") output => _, out("rax") result);
    }
    result & 0xffff
}

fn several(told: Told) {
    if processors() < 2 || !told.register(6) {
        return skip("other processors");
    }
    put_start_up(PAGE, &raw const hv_ap, &raw const hv_ap_end);
    // One of them.
    xapic::command(1, 5 << 8 | 1 << 14);
    a_while();
    xapic::command(1, 6 << 8 | 1 << 14 | (PAGE >> 12) as u32);
    if !soon(|| READY.load(SeqCst)) {
        return check("the other processor starts", false, true);
    }
    check("its VP_INDEX", AP_INDEX.load(SeqCst), 1);
    check("HYPERCALL is the partition's", AP_CALL.load(SeqCst), CALL_PAGE | 1);
    if told.advises(10) {
        handle(VECTOR, Some(on_interrupt));
        check("an interrupt to it", status(IPI | FAST, VECTOR, 2), SUCCESS);
        check("is taken there", soon(|| TAKEN[VECTOR as usize].load(SeqCst) == 1), true);
        open_window();
        check("and not here", taken(VECTOR), 1);
        check("an interrupt to both", status(IPI | FAST, VECTOR, 3), SUCCESS);
        open_window();
        check("is taken twice", soon(|| TAKEN[VECTOR as usize].load(SeqCst) == 2), true);
        taken(VECTOR);
        put(&[VECTOR, 0, 1, 2]);
        check("a set with it", status(IPI_EX | 1 << 17, INPUT, 0), SUCCESS);
        check("comes there", soon(|| TAKEN[VECTOR as usize].load(SeqCst) == 1), true);
        taken(VECTOR);
    }
    if told.advises(2) {
        flush_others();
    }
    TASK.store(0, SeqCst);
}

fn flush_others() {
    let old = unsafe { window_entry().read_volatile() };
    TASK.store(1, SeqCst);
    for round in 1..=60u64 {
        let at = if round % 2 == 0 { FIRST } else { SECOND };
        map_window(at);
        let (value, input) = match round % 3 {
            0 => (FLUSH_SPACE, [cr3(), 0, 2, 0, 0]),
            1 => (FLUSH_LIST | REP, [cr3(), 0, 3, WINDOW, 0]),
            _ => (FLUSH_SPACE_EX | 1 << 17, [cr3(), 4, 0, 1, 2]),
        };
        put(&input);
        check("a flush elsewhere", status(value, INPUT, 0), SUCCESS);
        ROUND.store(round, SeqCst);
        check("it goes on", soon(|| ANSWER.load(SeqCst) == round), true);
        // What it sees after the call, it sees as it is mapped.
        let expected = if round % 2 == 0 { 0x1111 } else { 0x2222 };
        check("it sees the new page", SEEN.load(SeqCst), expected);
    }
    // Both at a time.
    put(&[]);
    poke(INPUT + 0x800, cr3());
    poke(INPUT + 0x808, 1);
    poke(INPUT + 0x810, 0);
    TASK.store(2, SeqCst);
    let mut done = 0;
    for _ in 0..200 {
        put(&[cr3(), 1, 0]);
        done += u32::from(status(FLUSH_SPACE, INPUT, 0) == SUCCESS);
    }
    check("flushes at the same time", done, 200);
    check("of both", soon(|| FLUSHES.load(SeqCst) > 0), true);
    TASK.store(0, SeqCst);
    unsafe { window_entry().write_volatile(old) };
    put(&[cr3(), 1, 0]);
    status(FLUSH_SPACE, INPUT, 0);
}
