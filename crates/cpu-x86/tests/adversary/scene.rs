//! A guest in 64-bit mode with small pages, whose exceptions and interrupts are put on record by a
//! handler of its own.

use std::sync::Arc;
use std::time::Duration;

use accel::{Exit, Signal, Vcpu};
use cpu_x86::state::{Activity, Segment, TableRegister};
use cpu_x86::{Cpu, CpuState, Translation};
use iced_x86::code_asm::*;

use crate::board::{Board, machine};

pub(crate) const RAM: u64 = 1 << 20;
pub(crate) const PML4: u64 = 0x1000;
/// The page table that maps the first 2 MiB, an entry for each page of RAM.
pub(crate) const TABLE: u64 = 0x7000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const TSS: u64 = 0x6000;
const HANDLERS: u64 = 0x8000;
/// Where the record ends, at first; and where handlers return to, if not to where they came from.
pub(crate) const RECORD_END: u64 = 0xa000;
pub(crate) const RESUME: u64 = 0xa008;
/// Where a handler calls a routine of the scene's, if not 0.
pub(crate) const HOOK: u64 = 0xa010;
const RECORD: u64 = 0xb000;
const RECORD_LEN: u64 = 0x5000;
pub(crate) const CODE: u64 = 0x1_0000;
/// Pages of data, of which the last is followed by one that is not mapped.
pub(crate) const DATA: u64 = 0x2_0000;
pub(crate) const DATA_LEN: u64 = 0x4000;
pub(crate) const UNMAPPED: u64 = DATA + DATA_LEN;
/// A page that can't be written to.
pub(crate) const READ_ONLY: u64 = 0x2_8000;
pub(crate) const STACK: u64 = 0x4_0800;
/// Words of a record's entry.
const ENTRY: usize = 8;
const EFER: u32 = 0xc000_0080;
/// An external interrupt's vector.
pub(crate) const EXTERNAL: u8 = 0x40;
const VECTORS: u64 = 0x48;

/// An event as the guest's handler saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) cr2: u64,
    pub(crate) dr6: u64,
    pub(crate) rcx: u64,
    pub(crate) rax: u64,
}

/// What a scene came to.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    pub(crate) state: CpuState,
    pub(crate) memory: Vec<u8>,
}

impl Outcome {
    pub(crate) fn word(&self, at: u64) -> u64 {
        let at = at as usize;
        u64::from_le_bytes(self.memory[at..at + 8].try_into().expect("eight bytes"))
    }

    /// The record.
    pub(crate) fn events(&self) -> Vec<Event> {
        let len = (self.word(RECORD_END) - RECORD) as usize / 8 / ENTRY;
        (0..len)
            .map(|n| {
                let word = |k: usize| self.word(RECORD + 8 * (n * ENTRY + k) as u64);
                Event {
                    vector: word(0),
                    error: word(1),
                    rip: word(2),
                    rflags: word(3),
                    cr2: word(4),
                    dr6: word(5),
                    rcx: word(6),
                    rax: word(7),
                }
            })
            .collect()
    }
}

/// The handler that all gates lead to, with the vector pushed and an error code below it.
fn write_handlers(board: &Board) {
    let mut a = CodeAssembler::new(64).expect("64");
    let a = &mut a;
    let mut common = a.create_label();
    let mut full = a.create_label();
    let mut stays = a.create_label();
    let mut no_hook = a.create_label();
    a.set_label(&mut common).unwrap();
    // The stack: rax, rcx, rdi, vector, error code, rip, cs, rflags, rsp, ss.
    a.push(rdi).unwrap();
    a.push(rcx).unwrap();
    a.push(rax).unwrap();
    a.mov(rdi, qword_ptr(RECORD_END)).unwrap();
    a.cmp(rdi, (RECORD + RECORD_LEN - 64) as i32).unwrap();
    a.ja(full).unwrap();
    for (from, to) in [(24, 0), (32, 8), (40, 16), (56, 24), (8, 48), (0, 56)] {
        a.mov(rax, qword_ptr(rsp + from)).unwrap();
        a.mov(qword_ptr(rdi + to), rax).unwrap();
    }
    a.mov(rax, cr2).unwrap();
    a.mov(qword_ptr(rdi + 32), rax).unwrap();
    a.mov(rax, dr6).unwrap();
    a.mov(qword_ptr(rdi + 40), rax).unwrap();
    a.add(rdi, 64).unwrap();
    a.mov(qword_ptr(RECORD_END), rdi).unwrap();
    a.mov(rax, qword_ptr(RESUME)).unwrap();
    a.test(rax, rax).unwrap();
    a.je(stays).unwrap();
    a.mov(qword_ptr(rsp + 40), rax).unwrap();
    a.set_label(&mut stays).unwrap();
    a.mov(rax, qword_ptr(HOOK)).unwrap();
    a.test(rax, rax).unwrap();
    a.je(no_hook).unwrap();
    // With RDI pointing at the frame's RIP.
    a.lea(rdi, qword_ptr(rsp + 40)).unwrap();
    a.call(rax).unwrap();
    a.set_label(&mut no_hook).unwrap();
    a.pop(rax).unwrap();
    a.pop(rcx).unwrap();
    a.pop(rdi).unwrap();
    a.add(rsp, 16).unwrap();
    a.iretq().unwrap();
    a.set_label(&mut full).unwrap();
    a.hlt().unwrap();
    let code = a.assemble(HANDLERS + 16 * VECTORS).expect("the handler");
    board.memory.write(HANDLERS + 16 * VECTORS, &code).expect("RAM");
    for vector in 0..VECTORS {
        let mut a = CodeAssembler::new(64).expect("64");
        if !matches!(vector, 8 | 10..=14 | 17) {
            a.push(0).unwrap();
        }
        a.push(vector as i32).unwrap();
        a.jmp(HANDLERS + 16 * VECTORS).unwrap();
        let code = a.assemble(HANDLERS + 16 * vector).expect("a stub");
        board.memory.write(HANDLERS + 16 * vector, &code).expect("RAM");
    }
}

fn write_tables(board: &Board) {
    let put = |at: u64, value: u64| board.memory.write(at, &value.to_le_bytes()).expect("RAM");
    put(PML4, 0x2007);
    put(0x2000, 0x3007);
    put(0x3000, TABLE | 7);
    for page in 0..RAM >> 12 {
        let at = page << 12;
        let entry = match at {
            UNMAPPED => 0,
            READ_ONLY => at | 0x25,
            _ => at | 0x67,
        };
        put(TABLE + 8 * page, entry);
    }
    for (n, entry) in [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].into_iter().enumerate() {
        put(GDT + 8 * n as u64, entry);
    }
    // The I/O permission bitmap is outside.
    put(TSS + 0x60, 0x68 << 48);
    for vector in 0..VECTORS {
        let at = HANDLERS + 16 * vector;
        put(IDT + 16 * vector, at & 0xffff | 8 << 16 | 0x8e00 << 32 | (at >> 16) << 48);
        put(IDT + 16 * vector + 8, 0);
    }
    put(RECORD_END, RECORD);
}

/// The state in which a scene begins at [`CODE`].
fn initial(cpu: &Cpu) -> CpuState {
    let mut state = cpu.state();
    // PE, MP, ET, NE, WP, AM, PG.
    state.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31;
    state.cr3 = PML4;
    // DE, PAE, PGE, OSFXSR, OSXMMEXCPT, OSXSAVE
    state.cr4 = 1 << 3 | 1 << 5 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 18;
    state.xcr0 = 7;
    let efer = state.msrs.iter_mut().find(|(index, _)| *index == EFER).expect("EFER");
    efer.1 = 0xd01;
    let data = Segment { selector: 16, base: 0, limit: u32::MAX, attributes: 0xc093 };
    let code = Segment { selector: 8, base: 0, limit: u32::MAX, attributes: 0xa09b };
    state.segments = [data, code, data, data, data, data];
    state.gdtr = TableRegister { base: GDT, limit: 0x17 };
    state.idtr = TableRegister { base: IDT, limit: (16 * VECTORS - 1) as u16 };
    state.tr = Segment { selector: 0x18, base: TSS, limit: 0x67, attributes: 0x8b };
    state.rip = CODE;
    state.gpr = [0; 16];
    state.gpr[4] = STACK;
    state.rflags = 2;
    state.activity = Activity::Running;
    state.xmm = std::array::from_fn(|n| 0x3ff0_0000_0000_0000_4000_0000_0000_0000 + n as u128);
    state
}

/// The engines: the interpreter, the translator as soon as it may and a little later, and both in step.
pub(crate) fn engines() -> [Option<Translation>; 4] {
    let eager = Translation { threshold: 1, ..Translation::default() };
    [
        None,
        Some(eager),
        Some(Translation { threshold: 5, ..eager }),
        Some(Translation { check: true, ..eager }),
    ]
}

/// A scene: code at [`CODE`], and what is put into memory before.
pub(crate) struct Scene {
    memory: Vec<(u64, Vec<u8>)>,
    change: Box<dyn Fn(&mut CpuState)>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self { memory: Vec::new(), change: Box::new(|_| {}) }
    }

    /// Bytes at a physical address.
    pub(crate) fn bytes(mut self, at: u64, bytes: &[u8]) -> Self {
        self.memory.push((at, bytes.to_vec()));
        self
    }

    pub(crate) fn word(self, at: u64, value: u64) -> Self {
        self.bytes(at, &value.to_le_bytes())
    }

    /// Code at an address.
    pub(crate) fn code(self, at: u64, write: impl FnOnce(&mut CodeAssembler)) -> Self {
        let mut a = CodeAssembler::new(64).expect("64");
        write(&mut a);
        let code = a.assemble(at).expect("code that can be encoded");
        self.bytes(at, &code)
    }

    /// Changes the state that it begins in.
    pub(crate) fn state(mut self, change: impl Fn(&mut CpuState) + 'static) -> Self {
        self.change = Box::new(change);
        self
    }

    /// Runs it on one engine until it halts with interrupts disabled.
    pub(crate) fn run_on(&self, engine: Option<Translation>) -> Outcome {
        self.run_with(engine, |_| {})
    }

    /// The same, while `meanwhile` does something to its board on another thread.
    pub(crate) fn run_with(
        &self,
        engine: Option<Translation>,
        meanwhile: impl FnOnce(&Board) + Send,
    ) -> Outcome {
        let (mut cpu, board) = machine(&[(0, RAM)], 1).pop().expect("one CPU");
        assert!(cpu.set_translation(engine), "the host can translate");
        // Whatever goes astray halts.
        board.memory.write(0, &vec![0xf4; RAM as usize]).expect("RAM");
        board.memory.write(0, &[0; 0x8000]).expect("RAM");
        board
            .memory
            .write(RECORD_END, &[0; (RECORD + RECORD_LEN - RECORD_END) as usize])
            .expect("RAM");
        board.memory.write(DATA, &[0x11; DATA_LEN as usize]).expect("RAM");
        write_tables(&board);
        write_handlers(&board);
        for (at, bytes) in &self.memory {
            board.memory.write(*at, bytes).expect("RAM");
        }
        let mut state = initial(&cpu);
        (self.change)(&mut state);
        cpu.set_state(&state).expect("a valid state");
        let exit = std::thread::scope(|scope| {
            let watched: Arc<Board> = Arc::clone(&board);
            let (done, ended) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || meanwhile(&watched));
            let signals = Arc::clone(&board.signals);
            scope.spawn(move || {
                if ended.recv_timeout(Duration::from_secs(300)).is_err() {
                    signals.raise(Signal::Exit);
                }
            });
            let exit = loop {
                match cpu.run() {
                    // Woken by an interrupt.
                    Exit::Halt { wake } if cpu.state().rflags >> 9 & 1 != 0 => {
                        board.signals.wait(wake | Signal::Exit as u32, None);
                    }
                    exit => break exit,
                }
            };
            let _ = done.send(());
            exit
        });
        let mut memory = vec![0; RAM as usize];
        board.memory.read(0, &mut memory).expect("RAM");
        // A processor may look at a page that it then does not come to.
        let entries = TABLE as usize..TABLE as usize + 0x1000;
        memory[entries].iter_mut().step_by(8).for_each(|byte| *byte |= 0x20);
        let mut state = cpu.state();
        // Clocks are not of interest.
        state.msrs.clear();
        Outcome { exit, state, memory }
    }

    /// Runs it on all engines, which have to agree; returns what it came to.
    pub(crate) fn run(&self) -> Outcome {
        let mut outcomes = engines().into_iter().map(|engine| (engine, self.run_on(engine)));
        let (_, first) = outcomes.next().expect("an engine");
        for (engine, outcome) in outcomes {
            same(&first, &outcome, &format!("{engine:?}"));
        }
        first
    }
}

/// Fails unless two engines came to the same.
pub(crate) fn same(first: &Outcome, other: &Outcome, what: &str) {
    assert_eq!(first.exit, other.exit, "{what}");
    assert_eq!(first.events(), other.events(), "{what}");
    let (a, b) = (format!("{:#x?}", first.state), format!("{:#x?}", other.state));
    let lines = a.lines().zip(b.lines()).filter(|(a, b)| a != b);
    let different: Vec<_> = lines.map(|(a, b)| format!("{} or {}", a.trim(), b.trim())).collect();
    assert!(different.is_empty(), "{what}: {different:#?}");
    let at = first.memory.iter().zip(&other.memory).position(|(a, b)| a != b);
    if let Some(at) = at {
        panic!("{what}: memory at {at:#x}: {:#x} or {:#x}", first.memory[at], other.memory[at]);
    }
}
