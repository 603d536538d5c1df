//! Random programs, and both engines to run them.

#[path = "vague.rs"]
mod vague;

use std::sync::Arc;

use accel::{Exit, Signal, Vcpu};
use cpu_x86::state::{Activity, Segment, TableRegister};
use cpu_x86::{Cpu, CpuState, Translation};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};

use crate::board::{Board, machine};
use crate::splitmix::Rng;
use vague::{Stepper, Vague};

const RAM: u64 = 1 << 20;
const PML4: u64 = 0x1000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const HANDLER: u64 = 0x6000;
const CODE: u64 = 0x1_0000;
/// Data, in pages of which the last is followed by one that is not mapped.
const DATA: u64 = 0x2_0000;
const DATA_LEN: u64 = 0x4000;
const COUNTER: u64 = 0x3_0000;
const STACK: u64 = 0x4_0800;
const ROUNDS: u32 = 40;
const EFER: u32 = 0xc000_0080;
/// What protected mode without long mode has in place of [`PML4`] and [`IDT`].
const PDPT: u64 = 0x1800;
const NARROW_IDT: u64 = 0x5800;

/// What a program runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Long,
    Compatibility,
    Protected,
}

impl Mode {
    fn of(random: u64) -> Self {
        match random % 4 {
            2 => Self::Compatibility,
            3 => Self::Protected,
            _ => Self::Long,
        }
    }

    fn bits(self) -> u32 {
        if self == Self::Long { 64 } else { 32 }
    }
}

impl Rng {
    /// A register's value: often an address in the data, often near a page's end.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => self.next() >> self.below(64),
            2 => self.below(64).wrapping_sub(32),
            3 => 1 << self.below(64),
            4 => DATA + ((1 + self.below(DATA_LEN / 0x1000)) << 12) - self.below(40),
            _ => DATA + self.below(DATA_LEN - 64),
        }
    }
}

/// Whether engines may come to different results of `insn`: of clocks and randomness, and of what the host
/// approximates in its own way.
fn is_vague(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        Rdtsc
            | Rdtscp
            | Rdrand
            | Rdseed
            | Rdpmc
            | Rcpps
            | Rcpss
            | Rsqrtps
            | Rsqrtss
            | Vrcpps
            | Vrcpss
            | Vrsqrtps
            | Vrsqrtss
    )
}

/// Whether two engines at two moments can agree on `insn`, and the program goes on after it.
fn is_usable(insn: &Instruction, rng: &mut Rng) -> bool {
    use Mnemonic::*;
    if insn.is_invalid() {
        return rng.one_in(200);
    }
    if is_vague(insn) {
        return false;
    }
    match insn.mnemonic() {
        Rdmsr | Wrmsr | Hlt | In | Out | Insb | Insw | Insd | Outsb | Outsw | Outsd => {
            return false;
        }
        Monitor | Mwait | Cpuid => return false,
        Lds | Les | Lfs | Lgs | Lss => return rng.one_in(300),
        _ => {}
    }
    if insn.is_privileged() || insn.op_count() > 0 && insn.op0_register().is_segment_register() {
        return rng.one_in(300);
    }
    match insn.flow_control() {
        FlowControl::Next => true,
        FlowControl::ConditionalBranch => {
            // Not far, and mostly forward.
            let distance = insn.near_branch_target().wrapping_sub(insn.next_ip()) as i64;
            (0..100).contains(&distance) || rng.one_in(20)
        }
        _ => rng.one_in(40),
    }
}

/// Random bytes that are an instruction at `rip`.
fn instruction(rng: &mut Rng, rip: u64, bits: u32) -> Vec<u8> {
    const PREFIXES: [u8; 9] = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x64, 0x65, 0x2e, 0x36];
    loop {
        let mut bytes = Vec::new();
        while rng.one_in(6) {
            bytes.push(rng.pick(&PREFIXES));
        }
        if bits == 64 && rng.one_in(2) {
            bytes.push(0x40 | rng.below(16) as u8);
        }
        match rng.below(10) {
            0..=2 => bytes.extend([0x0f, rng.next() as u8]),
            3 => bytes.extend([0x0f, rng.pick(&[0x38, 0x3a]), rng.next() as u8]),
            4 => {
                // VEX.
                bytes.clear();
                let map = 1 + rng.below(3) as u8;
                let inverted = if bits == 64 { 0 } else { 0xc0 };
                let high = rng.next() as u8 & 0xe0 | inverted;
                bytes.extend([0xc4, high | map, rng.next() as u8]);
                bytes.push(rng.next() as u8);
            }
            // x87.
            5 => bytes.push(0xd8 + rng.below(8) as u8),
            _ => bytes.push(rng.next() as u8),
        }
        bytes.push(rng.next() as u8);
        for _ in 0..6 {
            bytes.push(if rng.one_in(2) { rng.below(16) as u8 } else { rng.next() as u8 });
        }
        let mut decoder = Decoder::with_ip(bits, &bytes, rip, DecoderOptions::AMD);
        let insn = decoder.decode();
        if !is_usable(&insn, rng) {
            continue;
        }
        bytes.truncate(insn.len().max(1));
        if insn.rflags_undefined() != 0 {
            // cmp esp, esp: no two processors need agree on what is undefined.
            bytes.extend([0x39, 0xe4]);
        }
        return bytes;
    }
}

/// A program, and where it begins.
fn program(rng: &mut Rng, bits: u32) -> (Vec<u8>, u64) {
    let start = CODE + 0x1000 - rng.below(600);
    let mut code = Vec::new();
    for n in 0..if bits == 64 { 16 } else { 8u8 } {
        let value = if n == 4 { STACK - rng.below(16) * 8 } else { rng.value() };
        if bits == 64 {
            code.extend([0x48 | n >> 3, 0xb8 | n & 7]);
            code.extend(value.to_le_bytes());
        } else {
            code.push(0xb8 | n);
            code.extend((value as u32).to_le_bytes());
        }
    }
    if rng.one_in(2) {
        // cmp eax, ecx
        code.extend([0x39, 0xc8]);
    }
    for _ in 0..1 + rng.below(24) {
        if rng.one_in(60) {
            // A store into the code itself: mov byte [rip + disp], imm, without RIP in 32-bit code.
            let mut at = rng.below(200) as i32 - 40;
            if bits == 32 {
                at += (start + code.len() as u64) as i32;
            }
            code.extend([0xc6, 0x05]);
            code.extend(at.to_le_bytes());
            code.push(rng.next() as u8);
        }
        let rip = start + code.len() as u64;
        code.extend(instruction(rng, rip, bits));
    }
    // dec dword [COUNTER]; jnz start; hlt
    code.extend([0xff, 0x0c, 0x25]);
    code.extend((COUNTER as u32).to_le_bytes());
    let back = -(code.len() as i32 + 6);
    code.extend([0x0f, 0x85]);
    code.extend(back.to_le_bytes());
    code.push(0xf4);
    (code, start)
}

fn fill(board: &Board, rng: &mut Rng, code: &[u8], start: u64) {
    let put = |at: u64, value: u64| board.memory.write(at, &value.to_le_bytes()).expect("RAM");
    // Whatever goes astray halts.
    board.memory.write(0x8000, &vec![0xf4; RAM as usize - 0x8000]).expect("RAM");
    board.memory.write(0, &[0; 0x8000]).expect("RAM");
    put(PML4, 0x2007);
    put(PDPT, 0x3001);
    put(0x2000, 0x3007);
    put(0x3000, 0x7007);
    for page in 0..RAM >> 12 {
        let at = page << 12;
        let rights = match at {
            _ if at == DATA + DATA_LEN => 0,
            // No code in random data: what is undefined there would differ.
            DATA.. => at | 7 | 1 << 63,
            _ => at | 7,
        };
        put(0x7000 + 8 * page, rights);
    }
    let gdt = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_9b00_0000_ffff];
    for (n, entry) in gdt.into_iter().enumerate() {
        put(GDT + 8 * n as u64, entry);
    }
    for vector in 0..32 {
        put(IDT + 16 * vector, HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32 | (HANDLER >> 16) << 48);
        put(NARROW_IDT + 8 * vector, HANDLER & 0xffff | 24 << 16 | 0x8e00 << 32);
    }
    board.memory.write(HANDLER, &[0xf4]).expect("RAM");
    let data: Vec<u8> = (0..DATA_LEN).map(|_| rng.next() as u8).collect();
    board.memory.write(DATA, &data).expect("RAM");
    board.memory.write(COUNTER, &ROUNDS.to_le_bytes()).expect("RAM");
    board.memory.write(start, code).expect("RAM");
}

fn initial(cpu: &Cpu, rng: &mut Rng, start: u64, mode: Mode) -> CpuState {
    let mut state = cpu.state();
    state.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    state.cr2 = 0;
    state.cr3 = PML4;
    // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
    state.cr4 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18;
    state.xcr0 = 7;
    let efer = state.msrs.iter_mut().find(|(index, _)| *index == EFER).expect("EFER");
    efer.1 = if mode == Mode::Protected { 0x801 } else { 0xd01 };
    let data = Segment { selector: 16, base: 0, limit: u32::MAX, attributes: 0xc093 };
    let code = Segment { selector: 8, base: 0, limit: u32::MAX, attributes: 0xa09b };
    state.segments = [data, code, data, data, data, data];
    // A base in one of them.
    state.segments[5].base = 0x100;
    state.gdtr = TableRegister { base: GDT, limit: 0x1f };
    state.idtr = TableRegister { base: IDT, limit: 0x1ff };
    if mode != Mode::Long {
        state.segments[1] = Segment { selector: 24, attributes: 0xc09b, ..code };
        // And a limit in another.
        state.segments[4].limit = (DATA + DATA_LEN / 2) as u32;
        state.segments[4].attributes = 0x4093;
    }
    if mode == Mode::Protected {
        state.cr3 = PDPT;
        state.pdptes = [0x3001, 0, 0, 0];
        state.idtr = TableRegister { base: NARROW_IDT, limit: 0xff };
    }
    state.rip = start;
    state.gpr = [0; 16];
    state.gpr[4] = STACK;
    state.rflags = 2 | rng.next() & 0x8d5;
    state.activity = Activity::Running;
    state.mxcsr = if rng.one_in(8) { 0x1f80 & !(1 << (7 + rng.below(6))) } else { 0x1f80 };
    state.mxcsr |= (rng.below(4) << 13) as u32;
    state.xmm = std::array::from_fn(|_| match rng.below(3) {
        0 => u128::from(rng.next()) << 64 | u128::from(rng.next()),
        1 => u128::from((rng.below(100) as f64).to_bits()) | u128::from(2.5f64.to_bits()) << 64,
        _ => u128::from((rng.below(100) as f32).to_bits()),
    });
    state.ymm_high = std::array::from_fn(|_| u128::from(rng.next()));
    // Some registers in use, and seldom an exception unmasked.
    state.x87.control = (0x7f | rng.below(16) << 8) as u16;
    if rng.one_in(8) {
        state.x87.control &= !(1 << rng.below(6));
    }
    state.x87.tags = rng.pick(&[0xffff, 0xff00, 0x000f, 0]);
    state.x87.status = (rng.below(8) << 11) as u16;
    state.x87.regs = std::array::from_fn(|_| match rng.below(3) {
        0 => u128::from(rng.next() as u16) << 64 | u128::from(rng.next()),
        1 => u128::from(0x3ffe + rng.below(5)) << 64 | u128::from(rng.next() | 1 << 63),
        _ => 0,
    });
    state
}

/// The interpreter or the translator.
pub(crate) struct Engine {
    cpu: Cpu,
    pub(crate) board: Arc<Board>,
}

impl Engine {
    pub(crate) fn new(translation: Option<Translation>) -> Self {
        let (mut cpu, board) = machine(&[(0, RAM)], 1).pop().expect("one CPU");
        assert!(cpu.set_translation(translation), "the host can translate");
        Self { cpu, board }
    }

    /// Loads the program that `rng` gives, and puts the CPU before it.
    fn load(&mut self, rng: &mut Rng) -> Mode {
        let mode = Mode::of(rng.next());
        let (code, start) = program(rng, mode.bits());
        fill(&self.board, rng, &code, start);
        self.cpu.reset();
        let state = initial(&self.cpu, rng, start, mode);
        self.cpu.set_state(&state).expect("a valid state");
        self.board.signals.clear(Signal::Exit);
        mode
    }

    /// Runs the program that `rng` gives to its end; returns what became of it.
    fn run(&mut self, mut rng: Rng) -> (Exit, CpuState, Vec<u8>) {
        self.load(&mut rng);
        let exit = self.cpu.run();
        let mut memory = vec![0; RAM as usize];
        self.board.memory.read(0, &mut memory).expect("RAM");
        // A processor may look at a page for instructions that it then does not come to.
        memory[0x7000..0x8000].iter_mut().step_by(8).for_each(|byte| *byte |= 0x20);
        (exit, self.cpu.state(), memory)
    }
}

fn listing(mut rng: Rng) -> String {
    let mode = Mode::of(rng.next());
    let (code, start) = program(&mut rng, mode.bits());
    let mut decoder = Decoder::with_ip(mode.bits(), &code, start, DecoderOptions::AMD);
    let mut text = format!("{mode:?}\n");
    while decoder.can_decode() {
        let insn = decoder.decode();
        text.push_str(&format!("{:#x}: {insn}\n", insn.ip()));
    }
    text
}

/// What a program that is no fault of an engine's came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    /// The engines differ, and the program shows what they need not agree about.
    Vague,
}

/// Runs the program that `rng` gives on both.
///
/// # Errors
/// How they differ.
pub(crate) fn compare(rng: &Rng, engines: &mut [Engine; 2]) -> Result<Verdict, String> {
    let text = difference(rng, engines);
    if text.is_empty() {
        return Ok(Verdict::Same);
    }
    match Stepper::new().vagueness(rng.clone()) {
        None => Err(format!("{text}{}", listing(rng.clone()))),
        Some(Vague::Flags) => {
            // In step they are compared block by block, but for such flags.
            let in_step = Translation { threshold: 1, check: true, ..Translation::default() };
            let text = difference(rng, &mut [Engine::new(None), Engine::new(Some(in_step))]);
            if text.is_empty() { Ok(Verdict::Vague) } else { Err(format!("in step:\n{text}")) }
        }
        Some(Vague::Instruction) => Ok(Verdict::Vague),
    }
}

/// How the engines differ about the program that `rng` gives; nothing if they don't.
fn difference(rng: &Rng, [interpreter, translator]: &mut [Engine; 2]) -> String {
    // Whoever runs for good is stopped; how far it came differs.
    let (exit, ours, memory) = interpreter.run(rng.clone());
    if exit == Exit::Interrupted {
        return String::new();
    }
    let (other_exit, mut theirs, other_memory) = translator.run(rng.clone());
    theirs.msrs.clone_from(&ours.msrs);
    let mut text = String::new();
    if exit != other_exit {
        text.push_str(&format!("interpreted: {exit:?}\ntranslated:  {other_exit:?}\n"));
    }
    if ours != theirs {
        let (ours, theirs) = (format!("{ours:#x?}"), format!("{theirs:#x?}"));
        for (a, b) in ours.lines().zip(theirs.lines()).filter(|(a, b)| a != b) {
            text.push_str(&format!("interpreted: {a}\ntranslated:  {b}\n"));
        }
    }
    let different = memory.iter().zip(&other_memory).position(|(a, b)| a != b);
    if let Some(at) = different {
        let (a, b) = (memory[at], other_memory[at]);
        text.push_str(&format!("memory at {at:#x}: {a:#x} or {b:#x}\n"));
    }
    text
}
