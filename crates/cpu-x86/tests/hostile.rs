//! Whatever a guest does, the CPU neither panics nor hangs: random code on random tables in every mode.
//!
//! Arithmetic overflow and debug assertions are checked in tests, so that what would be a wrong number
//! in a release is a failure here.

mod board;
mod splitmix;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use accel::{Exit, Signal, Vcpu};
use cpu_x86::state::{Activity, Segment, TableRegister};
use cpu_x86::{Cpu, CpuState, Translation};

use board::{Board, machine};
use splitmix::Rng;

const RAM: u64 = 1 << 20;
/// Times that a guest is stopped before it is left for another.
const SLICES: u32 = 2;

/// Pages some of which hold control blocks of nested guests.
const BLOCKS: std::ops::Range<u64> = 8..64;

impl Rng {
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => self.next(),
            1 => self.below(RAM),
            2 => self.below(64).wrapping_sub(32),
            3 => 1 << self.below(64),
            4 => 0xffff_ffff - self.below(0x2000),
            _ => self.next() >> self.below(64),
        }
    }
}

/// Code: instructions of all maps with random operands, more often those that change how the CPU works.
fn code(rng: &mut Rng, len: usize) -> Vec<u8> {
    const PREFIXES: [u8; 15] =
        [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x40, 0x48, 0x4f, 0x41];
    const SYSTEM: [&[u8]; 26] = [
        &[0x0f, 0x00],
        &[0x0f, 0x01],
        &[0x0f, 0x20],
        &[0x0f, 0x21],
        &[0x0f, 0x22],
        &[0x0f, 0x23],
        &[0x0f, 0x30],
        &[0x0f, 0x32],
        &[0x0f, 0x05],
        &[0x0f, 0x07],
        &[0x0f, 0x34],
        &[0x0f, 0x35],
        &[0x0f, 0xae],
        &[0x0f, 0xc7],
        &[0x0f, 0x02],
        &[0x8e],
        &[0x9a],
        &[0xea],
        &[0xcf],
        &[0xcb],
        &[0x9d],
        &[0xcd],
        &[0xff],
        &[0x0f, 0x38, 0x82],
        &[0x0f, 0x01, 0xd8],
        &[0x0f, 0x01, 0xd9],
    ];
    let mut bytes = Vec::with_capacity(len + 32);
    while bytes.len() < len {
        while rng.one_in(4) {
            bytes.push(rng.pick(&PREFIXES));
        }
        match rng.below(8) {
            0 => bytes.extend_from_slice(rng.pick(&SYSTEM)),
            1 => bytes.extend([0xd8 | rng.below(8) as u8]),
            2 | 3 => bytes.extend([0x0f, rng.next() as u8]),
            4 => bytes.extend([0x0f, rng.pick(&[0x38, 0x3a]), rng.next() as u8]),
            _ => bytes.push(rng.next() as u8),
        }
        bytes.push(rng.next() as u8);
        for _ in 0..rng.below(4) {
            bytes.push(rng.value() as u8);
        }
    }
    bytes.truncate(len);
    bytes
}

/// A descriptor or gate of some plausible type.
fn descriptor(rng: &mut Rng) -> u64 {
    let base = rng.below(RAM);
    let limit = rng.value() & 0xf_ffff;
    let access = if rng.one_in(8) { rng.next() & 0xff } else { 0x80 | rng.next() & 0x7f };
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16) << 48
        | (rng.next() & 0xf) << 52
}

/// A control block of a nested guest (APM volume 2, appendix B) that VMRUN may enter.
fn control_block(rng: &mut Rng) -> Vec<u8> {
    let mut page: Vec<u8> =
        (0..4096).map(|_| if rng.one_in(4) { rng.next() as u8 } else { 0 }).collect();
    let mut put = |at: usize, value: u64, len: usize| {
        page[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    };
    // VMRUN is intercepted; the maps are in memory.
    put(0x10, rng.next() | 1, 4);
    put(0x40, rng.below(RAM) & !0xfff, 8);
    put(0x48, rng.below(RAM) & !0xfff, 8);
    put(0x58, 1 + rng.below(100), 4);
    put(0x5c, rng.below(8), 1);
    put(0x60, rng.next() & 0xff_030f_030f, 8);
    put(0x68, rng.below(2), 8);
    put(0x90, rng.below(2), 8);
    let event = if rng.one_in(4) { 1 << 31 | rng.next() & 0xfff } else { 0 };
    put(0xa8, event, 8);
    put(0xb0, rng.below(RAM) & !0xfff, 8);
    put(0xb8, rng.below(4), 8);
    for n in 0..10 {
        let kind = if n == 1 { rng.pick(&[0x09b, 0xc9b, 0xa9b]) } else { 0xc93 };
        put(0x400 + 16 * n, rng.next(), 2);
        put(0x402 + 16 * n, kind, 2);
        put(0x404 + 16 * n, rng.pick(&[0xffff, u64::from(u32::MAX)]), 4);
        put(0x408 + 16 * n, if n > 5 { rng.below(RAM) } else { 0 }, 8);
    }
    put(0x4cb, rng.below(4), 1);
    put(0x4d0, rng.pick(&[0x1000, 0x1500, 0x1d01]), 8);
    put(0x548, rng.pick(&[0, 0x10, 0x20, 0x20, 0x6a0]), 8);
    put(0x550, rng.below(RAM) & !0xfff, 8);
    put(0x558, rng.pick(&[0x10, 0x11, 0x8000_0011, 0x8001_0031, 0x8000_0010]), 8);
    put(0x560, 0x400, 8);
    put(0x568, 0xffff_0ff0, 8);
    put(0x570, rng.next() & 0x3_7fd7 & !(1 << 17) | 2, 8);
    put(0x578, rng.below(RAM), 8);
    put(0x5d8, rng.below(RAM), 8);
    put(0x5f8, rng.value(), 8);
    put(0x668, 0x0007_0406_0007_0406, 8);
    page
}

/// Page table entries, descriptors, control blocks and code all over memory: any page may be taken for any of them.
fn fill(rng: &mut Rng, board: &Board) {
    for page in 0..RAM >> 12 {
        let bytes: Vec<u8> = match rng.below(5) {
            0 => (0..512)
                .flat_map(|_| {
                    let mut entry = rng.below(RAM) & !0xfff | rng.next() & 0xfff;
                    if !rng.one_in(8) {
                        entry = entry & !0x80 | 7;
                    }
                    if rng.one_in(16) {
                        entry |= 1 << rng.below(64);
                    }
                    entry.to_le_bytes()
                })
                .collect(),
            1 => (0..512).flat_map(|_| descriptor(rng).to_le_bytes()).collect(),
            2 if BLOCKS.contains(&page) => control_block(rng),
            _ => code(rng, 4096),
        };
        board.memory.write(page << 12, &bytes).expect("RAM");
    }
}

fn segment(rng: &mut Rng) -> Segment {
    Segment {
        selector: rng.next() as u16,
        base: if rng.one_in(4) { rng.value() } else { 0 },
        limit: if rng.one_in(4) { rng.value() as u32 } else { u32::MAX },
        attributes: rng.next() as u16 & 0xf0ff,
    }
}

/// A state in any mode; restoring it may be refused.
fn state(rng: &mut Rng, cpu: &Cpu) -> CpuState {
    let mut state = cpu.state();
    state.gpr = std::array::from_fn(|_| rng.value());
    state.rip = rng.value();
    state.rflags = rng.next() & 0x3f_7fd7 | 2;
    if !rng.one_in(4) {
        // Neither virtual-8086 mode nor single steps.
        state.rflags &= !(1 << 17 | 1 << 8);
    }
    let dpl = rng.below(4) as u16;
    for segment in &mut state.segments {
        *segment = Segment {
            selector: (rng.below(512) << 3) as u16 | dpl,
            base: 0,
            limit: u32::MAX,
            attributes: 0xc093 | dpl << 5,
        };
    }
    state.segments[1].attributes = rng.pick(&[0x009b, 0xc09b, 0xa09b, 0xa09b, 0xa09f]) | dpl << 5;
    if rng.one_in(8) {
        state.segments = std::array::from_fn(|_| segment(rng));
    }
    let paging = rng.pick(&[0u64, 1, 1 | 1 << 31, 1 | 1 << 31]);
    state.cr0 = paging | 0x10 | rng.next() & (0x2e | 1 << 16 | 1 << 18);
    state.cr4 = rng.next() & 0x77_0fff & if rng.one_in(2) { u64::MAX } else { !0xf };
    let long = rng.one_in(2) && paging >> 31 != 0;
    if long {
        state.cr4 |= 1 << 5;
    }
    state.cr3 = rng.below(RAM) & !0xfff;
    for (index, value) in &mut state.msrs {
        if *index == 0xc000_0080 {
            *value = if long { 0x501 } else { 0 } | rng.next() & 0x1800;
        }
    }
    if rng.one_in(2) {
        state.gpr[0] = (BLOCKS.start + rng.below(BLOCKS.end - BLOCKS.start)) << 12;
    }
    state.gdtr = TableRegister { base: rng.below(RAM), limit: rng.value() as u16 };
    state.idtr = TableRegister { base: rng.below(RAM), limit: rng.value() as u16 };
    state.tr = Segment { selector: 8, base: rng.below(RAM), limit: 0x1000, attributes: 0x8b };
    state.ldtr = Segment { selector: 8, base: rng.below(RAM), limit: 0x1000, attributes: 0x82 };
    if rng.one_in(8) {
        state.tr = segment(rng);
        state.ldtr = segment(rng);
    }
    if rng.one_in(8) {
        state.dr = std::array::from_fn(|_| rng.value());
        state.dr[7] &= 0xffff_ffff;
        state.dr[6] &= 0xffff_ffff;
    }
    state.x87.control = rng.next() as u16;
    state.x87.status = rng.next() as u16;
    state.x87.tags = rng.next() as u16;
    for register in &mut state.x87.regs {
        *register = u128::from(rng.next()) | u128::from(rng.next() as u16) << 64;
    }
    state.xmm = std::array::from_fn(|_| u128::from(rng.value()) << 64 | u128::from(rng.value()));
    state.mxcsr = rng.next() as u32 & 0xffff;
    state.svm.hsave = 0x1000;
    state.activity = Activity::Running;
    state
}

/// Runs one guest for a few slices of time.
fn run(rng: &mut Rng, cpu: &mut Cpu, board: &Board) {
    let state = state(rng, cpu);
    if cpu.set_state(&state).is_err() {
        return;
    }
    let mut slices = 0;
    // A halted guest gets a few interrupts.
    for _ in 0..20 {
        match cpu.run() {
            Exit::Interrupted => {
                board.signals.clear(Signal::Exit);
                slices += 1;
                if slices == SLICES {
                    break;
                }
            }
            Exit::Halt { .. } => match rng.below(5) {
                0 => board.signals.raise(Signal::Nmi),
                1 => board.signals.raise(Signal::Init),
                2 => board.signals.raise(Signal::Smi),
                _ => board.interrupt(rng.next() as u8),
            },
            _ => break,
        }
    }
    for signal in [Signal::Nmi, Signal::Init, Signal::Startup, Signal::Interrupt, Signal::Smi] {
        board.signals.clear(signal);
    }
    board.vectors.lock().unwrap().clear();
    board.output.lock().unwrap().clear();
    // Whatever it came to can be saved and restored.
    let saved = cpu.state();
    cpu.set_state(&saved).expect("a state that the CPU was in");
}

/// Guests that share one memory's contents.
const GUESTS: u32 = 64;

/// One memory, and guests that start in random states on it.
fn round(seed: u64, translation: Option<Translation>) {
    let mut rng = Rng(seed);
    let (mut cpu, board) = machine(&[(0, RAM)], 1).pop().expect("one CPU");
    cpu.set_translation(translation);
    fill(&mut rng, &board);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Loops are left after a while.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(300));
                board.signals.raise(Signal::Exit);
            }
        });
        let guests = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..GUESTS).for_each(|_| run(&mut rng, &mut cpu, &board));
        }));
        done.store(true, Ordering::Relaxed);
        if let Err(panic) = guests {
            println!("with RHEA_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    });
}

/// `RHEA_ROUNDS` asks for more rounds than the default, `RHEA_SEED` for one of them.
#[test]
fn random_guests_do_no_harm() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let rounds = number("RHEA_ROUNDS").unwrap_or(200);
    let seeds = number("RHEA_SEED").map_or(0..rounds, |seed| seed..seed + 1);
    let translation = Translation { threshold: 1, ..Translation::default() };
    for seed in seeds {
        round(seed, None);
        round(seed, Some(translation));
    }
}
