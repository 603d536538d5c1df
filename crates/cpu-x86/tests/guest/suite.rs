//! The guests. A file a topic; guests report through the debug port and end in a HLT. Which engine runs
//! them, the module's name says.

#[path = "../board/mod.rs"]
mod board;

mod boot;
mod interrupts;
mod memory_map;
mod pages;
mod segments;
mod sharing;
mod smm;
mod tasks;
mod vm86;

use std::sync::Arc;

use accel::{Exit, Vcpu};
use cpu_x86::state::{Segment, TableRegister};
use cpu_x86::{Cpu, Translation};
use iced_x86::code_asm::CodeAssembler;

use board::Board;

/// CPUs on a board with RAM at the ranges given, with the engine of this module.
fn machine(ranges: &[(u64, u64)], count: u32) -> Vec<(Cpu, Arc<Board>)> {
    let mut machine = board::machine(ranges, count);
    if module_path!().ends_with("translated") {
        for (cpu, _) in &mut machine {
            let how = Translation { threshold: 2, ..Translation::default() };
            assert!(cpu.set_translation(Some(how)), "the host can translate");
        }
    }
    machine
}

const RAM: u64 = 8 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
/// Where a guest's main program is.
const CODE: u64 = 0x1_0000;
/// Where its handlers are.
const HANDLER: u64 = 0x2_0000;
const STACK: u64 = 0x8_0000;
const EFER: u32 = 0xc000_0080;

const CODE64: u16 = 0x08;
const DATA: u16 = 0x10;
const CODE32: u16 = 0x18;

/// The descriptors that these selectors are of, and a null one.
const DESCRIPTORS: [u64; 4] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_9b00_0000_ffff];

fn put(board: &Board, at: u64, value: u64) {
    board.memory.write(at, &value.to_le_bytes()).expect("RAM");
}

fn get(board: &Board, at: u64) -> u64 {
    let mut bytes = [0; 8];
    board.memory.read(at, &mut bytes).expect("RAM");
    u64::from_le_bytes(bytes)
}

/// Assembles code for a mode of `bits` at `at`.
fn code(board: &Board, bits: u32, at: u64, program: impl FnOnce(&mut CodeAssembler)) {
    let mut assembler = CodeAssembler::new(bits).expect("a bitness");
    program(&mut assembler);
    let bytes = assembler.assemble(at).expect("the program assembles");
    board.memory.write(at, &bytes).expect("RAM");
}

/// Points `vector` of a 64-bit IDT to `handler`.
fn gate(board: &Board, vector: u8, handler: u64) {
    let low =
        handler & 0xffff | u64::from(CODE64) << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    put(board, IDT + 16 * u64::from(vector), low);
    put(board, IDT + 16 * u64::from(vector) + 8, handler >> 32);
}

/// One CPU in 64-bit mode at CPL 0, about to run at [`CODE`] with interrupts off. The first 4 MiB are
/// mapped to themselves.
fn long_mode() -> (Cpu, Arc<Board>) {
    let (mut cpu, board) = machine(&[(0, RAM)], 1).pop().expect("one CPU");
    enter_long_mode(&mut cpu, &board);
    (cpu, board)
}

fn enter_long_mode(cpu: &mut Cpu, board: &Board) {
    put(board, PML4, PDPT | 7);
    put(board, PDPT, PD | 7);
    put(board, PD, 0x87);
    put(board, PD + 8, 0x20_0087);
    for (n, descriptor) in DESCRIPTORS.into_iter().enumerate() {
        put(board, GDT + 8 * n as u64, descriptor);
    }
    let mut state = cpu.state();
    state.cr0 = 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    state.cr3 = PML4;
    state.cr4 = 1 << 5 | 1 << 9 | 1 << 10;
    let efer = state.msrs.iter_mut().find(|(index, _)| *index == EFER).expect("EFER");
    efer.1 = 0x501;
    let data = Segment { selector: DATA, base: 0, limit: u32::MAX, attributes: 0xc093 };
    let code = Segment { selector: CODE64, base: 0, limit: u32::MAX, attributes: 0xa09b };
    state.segments = [data, code, data, data, data, data];
    state.gdtr = TableRegister { base: GDT, limit: 0x1f };
    state.idtr = TableRegister { base: IDT, limit: 0xfff };
    state.rip = CODE;
    state.gpr[4] = STACK;
    state.rflags = 2;
    state.activity = cpu_x86::state::Activity::Running;
    cpu.set_state(&state).expect("a valid state");
}

/// Points `vector` of a 32-bit IDT to `handler`: an interrupt gate.
fn gate32(board: &Board, vector: u8, handler: u64) {
    let low = handler & 0xffff | u64::from(CODE32) << 16 | 0x8e00 << 32 | handler >> 16 << 48;
    put(board, IDT + 8 * u64::from(vector), low);
}

/// One CPU in 32-bit protected mode without paging at CPL 0, about to run at [`CODE`].
fn protected_mode() -> (Cpu, Arc<Board>) {
    let (mut cpu, board) = machine(&[(0, RAM)], 1).pop().expect("one CPU");
    for (n, descriptor) in DESCRIPTORS.into_iter().enumerate() {
        put(&board, GDT + 8 * n as u64, descriptor);
    }
    let mut state = cpu.state();
    state.cr0 = 0x31;
    let data = Segment { selector: DATA, base: 0, limit: u32::MAX, attributes: 0xc093 };
    let code = Segment { selector: CODE32, base: 0, limit: u32::MAX, attributes: 0xc09b };
    state.segments = [data, code, data, data, data, data];
    state.gdtr = TableRegister { base: GDT, limit: 0xff };
    state.idtr = TableRegister { base: IDT, limit: 0x7ff };
    state.rip = CODE;
    state.gpr[4] = STACK;
    state.rflags = 2;
    cpu.set_state(&state).expect("a valid state");
    (cpu, board)
}

/// Runs until a HLT, and returns what the guest has written to the debug port so far.
fn run_to_halt(cpu: &mut Cpu, board: &Board) -> Vec<u32> {
    let exit = cpu.run();
    assert!(matches!(exit, Exit::Halt { .. }), "{exit:?} at {:#x}", cpu.state().rip);
    board.output.lock().expect("not poisoned").clone()
}
