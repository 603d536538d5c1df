//! What KVM offers its guests (Linux's documentation, virt/kvm/x86: "cpuid", "msr", "hypercalls"), or that
//! there is none of it.

use core::arch::asm;

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use crate::kit::processors::a_while;
use crate::kit::xapic;
use crate::kit::*;

const SIGNATURE: u32 = 0x4000_0000;
const FEATURES: u32 = 0x4000_0001;
const OLD_WALL_CLOCK: u32 = 0x11;
const OLD_SYSTEM_TIME: u32 = 0x12;
const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const STEAL_TIME: u32 = 0x4b56_4d03;
const PV_EOI: u32 = 0x4b56_4d04;
const TSC: u32 = 0x10;
/// The flag of a clock that is the same on all CPUs.
const STABLE: u8 = 1;

const EPERM: u64 = -1i64 as u64;
const EOPNOTSUPP: u64 = -95i64 as u64;
const ENOSYS: u64 = -1000i64 as u64;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Clock {
    version: u32,
    gap: u32,
    tsc: u64,
    time: u64,
    multiplier: u32,
    shift: i8,
    flags: u8,
    end: [u8; 2],
    /// Not the clock's.
    rest: u64,
}
/// What the rest has, to see that it keeps it.
const REST: u64 = 0x1122_3344_5566_7788;
static mut CLOCK: Clock = Clock {
    version: 0,
    gap: 0x5a5a_5a5a,
    tsc: 0,
    time: 0,
    multiplier: 0,
    shift: 0,
    flags: 0,
    end: [0; 2],
    rest: REST,
};
static mut WALL: [u32; 4] = [8, 0, 0, 0x5a5a_5a5a];
static mut PAIR: [u64; 8] = [u64::MAX; 8];

fn clock() -> Clock {
    unsafe { (&raw const CLOCK).read_volatile() }
}

/// What the clock says at `tsc`.
fn time(clock: &Clock, tsc: u64) -> u64 {
    let ticks = u128::from(tsc.wrapping_sub(clock.tsc));
    let ticks = if clock.shift < 0 { ticks >> -clock.shift } else { ticks << clock.shift };
    clock.time + (ticks * u128::from(clock.multiplier) >> 32) as u64
}

/// A call by one of the two instructions: what it raised, and what it returned.
macro_rules! call {
    ($how:ident, $instruction:literal, $number:expr, $first:expr, $second:expr) => {{
        let result: u64;
        let vector = $how!(["xchg rbx, r8", $instruction, "xchg rbx, r8"],
            inout("rax") $number as u64 => result, inout("r8") $first as u64 => _,
            in("rcx") $second as u64, in("rdx") 0u64, in("rsi") 0u64);
        (vector, result)
    }};
}

pub fn run() {
    let [highest, b, c, d] = cpuid(SIGNATURE, 0);
    if [b, c, d] != [0x4b4d_564b, 0x564b_4d56, 0x4d] {
        check("VMCALL without KVM", call!(attempt, "vmcall", 1, 0, 0).0, UD);
        check("VMMCALL without KVM", call!(attempt, "vmmcall", 1, 0, 0).0, UD);
        for register in [OLD_WALL_CLOCK, OLD_SYSTEM_TIME, WALL_CLOCK, SYSTEM_TIME] {
            check(format_args!("MSR {register:#x} without KVM"), try_rdmsr(register), None);
        }
        skip("KVM");
        return;
    }
    check("there is a leaf of features", highest >= FEATURES, true);
    calls();
    let features = cpuid(FEATURES, 0)[0];
    let stable = features >> 24 & 1 != 0;
    if features & 1 != 0 {
        wall_clock(OLD_WALL_CLOCK);
        system_time(OLD_SYSTEM_TIME, stable);
    }
    if features >> 3 & 1 != 0 {
        wall_clock(WALL_CLOCK);
        system_time(SYSTEM_TIME, stable);
        pairing();
        moved_counter();
    } else {
        check("WALL_CLOCK without the feature", try_wrmsr(WALL_CLOCK, 0), GP);
        check("SYSTEM_TIME without the feature", try_wrmsr(SYSTEM_TIME, 0), GP);
    }
    if features >> 5 & 1 != 0 {
        stolen();
    }
    if features >> 6 & 1 != 0 {
        ends();
    }
    if features >> 4 & 1 != 0 {
        asynchronous(features >> 14 & 1 != 0);
    }
    for (name, register, bit) in [
        ("asynchronous page faults", 0x4b56_4d02, 4),
        ("stolen time", 0x4b56_4d03, 5),
        ("ends of interrupts", 0x4b56_4d04, 6),
        ("polling", 0x4b56_4d05, 12),
        ("interrupts of asynchronous page faults", 0x4b56_4d06, 14),
        ("acknowledgements of such", 0x4b56_4d07, 14),
        ("migration", 0x4b56_4d08, 17),
    ] {
        let there = features >> bit & 1 != 0;
        check(name, (try_rdmsr(register).is_some(), try_wrmsr(register, 0) == NONE), (there, there));
    }
}

/// Asynchronous page faults: what the registers hold and refuse. Whether there is ever one is the host's affair.
fn asynchronous(by_interrupt: bool) {
    const CONTROL: u32 = 0x4b56_4d02;
    const VECTOR: u32 = 0x4b56_4d06;
    const ACKNOWLEDGE: u32 = 0x4b56_4d07;
    let at = &raw const STOLEN as u64;
    check("ASYNC_PF at first", rdmsr(CONTROL), 0);
    for bits in [1, 3] {
        check("ASYNC_PF: on", (try_wrmsr(CONTROL, at | bits), rdmsr(CONTROL)), (NONE, at | bits));
    }
    for bit in [2, 4, 5] {
        check("ASYNC_PF: reserved bits", try_wrmsr(CONTROL, at | 1 << bit | 1), GP);
    }
    check("ASYNC_PF: no RAM", try_wrmsr(CONTROL, 1 << 39 | 1), GP);
    check("ASYNC_PF stays", rdmsr(CONTROL), at | 3);
    if by_interrupt {
        check("ASYNC_PF_INT", (try_wrmsr(VECTOR, 0xf3), rdmsr(VECTOR)), (NONE, 0xf3));
        check("ASYNC_PF_INT: reserved bits", try_wrmsr(VECTOR, 0x1f3), GP);
        check("ASYNC_PF: by interrupts", try_wrmsr(CONTROL, at | 9), NONE);
        check("ASYNC_PF_ACK", try_wrmsr(ACKNOWLEDGE, 1), NONE);
        wrmsr(VECTOR, 0);
    } else {
        check("ASYNC_PF: by interrupts", try_wrmsr(CONTROL, at | 9), GP);
    }
    check("ASYNC_PF: off", (try_wrmsr(CONTROL, 0), rdmsr(CONTROL)), (NONE, 0));
}

#[repr(C, align(64))]
struct Stolen {
    time: u64,
    version: u32,
    flags: u32,
    preempted: u8,
    rest: [u8; 47],
}
static mut STOLEN: Stolen = Stolen { time: 0, version: 0, flags: 0, preempted: 0, rest: [0x5a; 47] };

/// Time in which the host did not run this processor.
fn stolen() {
    let at = &raw mut STOLEN as u64;
    let read = || unsafe {
        let stolen = &raw const STOLEN;
        ((&raw const (*stolen).time).read_volatile(), (&raw const (*stolen).version).read_volatile())
    };
    for bit in 1..6 {
        check("STEAL_TIME: reserved bits", try_wrmsr(STEAL_TIME, at | 1 << bit | 1), GP);
    }
    check("STEAL_TIME: off", (try_wrmsr(STEAL_TIME, at), read()), (NONE, (0, 0)));
    check("STEAL_TIME: on", try_wrmsr(STEAL_TIME, at | 1), NONE);
    check("STEAL_TIME: reads back", rdmsr(STEAL_TIME), at | 1);
    let mut last = 0;
    let mut back = 0;
    let start = rdtsc();
    for _ in 0..4 {
        a_while();
        let (time, _) = read();
        back += u32::from(time < last);
        last = time;
    }
    check("stolen time does not go back", back, 0);
    check("and is less than all of it", last < 60_000_000_000, true);
    let (_, version) = read();
    check("a version that is even", (version > 0, version % 2), (true, 0));
    let rest = unsafe { (&raw const STOLEN.rest).read_volatile() };
    check("what is no part of it", rest[7..].iter().all(|&byte| byte == 0x5a), true);
    check("flags", unsafe { ((&raw const STOLEN.flags).read_volatile(), (&raw const STOLEN.preempted).read_volatile()) }, (0, 0));
    wrmsr(STEAL_TIME, 0);
    // Where nothing is.
    check("STEAL_TIME: no RAM", try_wrmsr(STEAL_TIME, 1 << 40 | 1), NONE);
    a_while();
    wrmsr(STEAL_TIME, 0);
}

#[repr(align(4))]
struct Flag(u32);
static mut FLAG: Flag = Flag(0);
static QUIET: AtomicU32 = AtomicU32::new(0);
static TAKEN: AtomicU32 = AtomicU32::new(0);
fn flag() -> *mut u32 {
    (&raw mut FLAG).cast()
}

/// Ends of interrupts by a flag in memory.
fn ends() {
    const LOW: u64 = 0x41;
    const HIGH: u64 = 0x61;
    fn on_interrupt(trap: &mut Trap) {
        if trap.vector == LOW {
            xapic::command(0, 1 << 18 | HIGH as u32);
            unsafe { asm!("sti", "nop", "nop", "cli") };
        }
        TAKEN.fetch_add(1, SeqCst);
        let set: u8;
        unsafe { asm!("btr dword ptr [{}], 0", "setc {}", in(reg) flag(), out(reg_byte) set) };
        QUIET.fetch_add(u32::from(set), SeqCst);
        if set == 0 {
            xapic::write(xapic::EOI, 0);
        }
    }
    let window = || unsafe { asm!("sti", "nop", "nop", "cli") };
    let service = || (0..8).any(|n| xapic::read(xapic::ISR + 16 * n) != 0);
    xapic::write(xapic::SVR, 0x1ff);
    handle(LOW, Some(on_interrupt));
    handle(HIGH, Some(on_interrupt));
    check("PV_EOI: reserved", try_wrmsr(PV_EOI, flag() as u64 | 3), GP);
    check("PV_EOI: on", try_wrmsr(PV_EOI, flag() as u64 | 1), NONE);
    check("PV_EOI: reads back", rdmsr(PV_EOI), flag() as u64 | 1);
    for _ in 0..10 {
        xapic::command(0, 1 << 18 | HIGH as u32);
        window();
    }
    check("each is taken", TAKEN.swap(0, SeqCst), 10);
    check("without a register", QUIET.swap(0, SeqCst), 10);
    check("none is in service", service(), false);
    xapic::command(0, 1 << 18 | LOW as u32);
    window();
    check("one in another", TAKEN.swap(0, SeqCst), 2);
    check("none is in service after it", service(), false);
    // Two that wait: the first has to be ended by the register.
    QUIET.store(0, SeqCst);
    xapic::command(0, 1 << 18 | HIGH as u32);
    xapic::command(0, 1 << 18 | (HIGH as u32 + 16));
    handle(HIGH + 16, Some(on_interrupt));
    window();
    window();
    check("both are taken", TAKEN.swap(0, SeqCst), 2);
    check("the last without a register", QUIET.load(SeqCst), 1);
    // It is always allowed to write to the register.
    handle(HIGH, Some(|_| xapic::write(xapic::EOI, 0)));
    xapic::command(0, 1 << 18 | HIGH as u32);
    window();
    check("the register as well", (service(), unsafe { flag().read_volatile() & 1 }), (false, 0));
    wrmsr(PV_EOI, 0);
    handle(HIGH, Some(on_interrupt));
    QUIET.store(0, SeqCst);
    xapic::command(0, 1 << 18 | HIGH as u32);
    window();
    check("off again", (QUIET.load(SeqCst), service()), (0, false));
    check("PV_EOI: no RAM", try_wrmsr(PV_EOI, 1 << 40 | 1), NONE);
    xapic::command(0, 1 << 18 | HIGH as u32);
    window();
    check("by the register, then", service(), false);
    wrmsr(PV_EOI, 0);
    for vector in [LOW, HIGH, HIGH + 16] {
        handle(vector, None);
    }
}

fn calls() {
    macro_rules! each {
        ($instruction:literal) => {
            check(concat!($instruction, ": unknown"), call!(attempt, $instruction, 0x1234, 0, 0), (NONE, ENOSYS));
            check(concat!($instruction, ": poll"), call!(attempt, $instruction, 1, 0, 0), (NONE, 0));
            check(concat!($instruction, " from CPL 3"), call!(user, $instruction, 1, 0, 0), (0x80, EPERM));
        };
    }
    each!("vmcall");
    each!("vmmcall");
    // 64 bits of the number count.
    check("a wide number", call!(attempt, "vmcall", 1u64 << 32 | 1, 0, 0).1, ENOSYS);
}

fn wall_clock(register: u32) {
    let at = &raw mut WALL as u64;
    for _ in 0..2 {
        let before = unsafe { (&raw const WALL).read_volatile() };
        check(format_args!("{register:#x}: write"), try_wrmsr(register, at), NONE);
        let [version, seconds, nanoseconds, rest] = unsafe { (&raw const WALL).read_volatile() };
        check(format_args!("{register:#x}: version"), (version != before[0], version % 2), (true, 0));
        // Whoever runs this has a clock that is not in the last century.
        check(format_args!("{register:#x}: seconds"), seconds > 946_684_800, true);
        check(format_args!("{register:#x}: nanoseconds"), nanoseconds < 1_000_000_000, true);
        check(format_args!("{register:#x}: not more"), rest, 0x5a5a_5a5a);
    }
}

fn system_time(register: u32, stable: bool) {
    let at = &raw mut CLOCK as u64;
    let version = clock().version;
    check(format_args!("{register:#x}: off"), try_wrmsr(register, at), NONE);
    check(format_args!("{register:#x}: nothing is written"), clock().version, version);
    check(format_args!("{register:#x}: on"), try_wrmsr(register, at | 1), NONE);
    check(format_args!("{register:#x}: reads back"), try_rdmsr(register), Some(at | 1));
    let first = clock();
    check(format_args!("{register:#x}: version"), (first.version != version, first.version % 2), (true, 0));
    check(format_args!("{register:#x}: not more"), (first.gap, first.rest), (0x5a5a_5a5a, REST));
    check(format_args!("{register:#x}: stable"), first.flags & STABLE != 0, stable);
    let mut last = 0;
    let mut back = 0;
    for _ in 0..10_000 {
        let now = time(&clock(), rdtsc());
        back += u32::from(now < last);
        last = now;
    }
    check(format_args!("{register:#x}: time does not go back"), back, 0);
    check(format_args!("{register:#x}: off again"), try_wrmsr(register, 0), NONE);
}

/// A counter that is moved makes the same time, if the clock is on.
fn moved_counter() {
    wrmsr(SYSTEM_TIME, &raw mut CLOCK as u64 | 1);
    let first = clock();
    let before = time(&first, rdtsc());
    wrmsr(TSC, rdtsc() + (1 << 40));
    let moved = clock();
    let after = time(&moved, rdtsc());
    check("a counter that is moved", (before..before + 1_000_000_000).contains(&after), true);
    check("told by the version", (moved.version != first.version, moved.version % 2), (true, 0));
    wrmsr(SYSTEM_TIME, 0);
    wrmsr(TSC, 0x1000_0000);
    check("one that is moved while the clock is off", clock().version, moved.version);
}

/// Call 9: the time of day and the counter at the same moment.
fn pairing() {
    let at = &raw mut PAIR as u64;
    let (vector, result) = call!(attempt, "vmmcall", 9, at, 0);
    if result == ENOSYS || result == EOPNOTSUPP {
        skip("clocks in pairs");
        return;
    }
    let now = rdtsc();
    let pair = unsafe { (&raw const PAIR).read_volatile() };
    check("a pair", (vector, result), (NONE, 0));
    check("a pair: seconds", pair[0] > 946_684_800, true);
    check("a pair: nanoseconds", pair[1] < 1_000_000_000, true);
    check("a pair: counter", now.wrapping_sub(pair[2]) < 1_000_000_000, true);
    check("another kind of clock", call!(attempt, "vmmcall", 9, at, 7).1, EOPNOTSUPP);
}
