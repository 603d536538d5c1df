//! What unit tests share: a CPU with memory and a board that answers nothing, running code that the
//! test assembles.

use std::sync::Arc;

use accel::{Exit, NoBoard, Signal, Vcpu};
use iced_x86::code_asm::CodeAssembler;
use memory::GuestMemory;

use crate::cpu::{Cpu, CpuConfig, CpuWiring, Translation};
use crate::cpuid::Topology;
use crate::regs::{CR0_ET, CR0_NE, CR0_PE, CR0_PG, CR4_OSFXSR, CR4_PAE, EFER_LMA, EFER_LME};
use crate::segment::{CS, attr};
use crate::state::{Activity, Segment};

/// Size of guest RAM.
pub(crate) const RAM: u64 = 4 << 20;
/// Where programs are loaded.
pub(crate) const CODE: u64 = 0x1_0000;
/// Top of the stack.
pub(crate) const STACK: u64 = 0x8_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;

/// CPUs of one machine after power-on.
fn cpus(count: u32) -> Vec<Cpu> {
    let memory = GuestMemory::new(&[(0, RAM)]).expect("guest memory");
    let board = Arc::new(NoBoard);
    let wiring = CpuWiring {
        memory: Arc::new(memory),
        bus: board.clone(),
        interrupts: board.clone(),
        clock: board,
        signals: Arc::default(),
        group: Arc::default(),
    };
    (0..count)
        .map(|index| {
            let wiring = CpuWiring { signals: Arc::default(), ..wiring.clone() };
            let config = CpuConfig {
                apic_id: index,
                topology: Topology { cores: count, threads: 1 },
                model: Arc::default(),
            };
            Cpu::new(config, wiring)
        })
        .collect()
}

/// A CPU after power-on.
pub(crate) fn cpu() -> Cpu {
    cpus(1).remove(0)
}

/// A CPU in 64-bit mode at CPL 0 with the first 4 MiB mapped to themselves, about to run at [`CODE`].
pub(crate) fn long_mode() -> Cpu {
    long_mode_cpus(1).remove(0)
}

/// CPUs of one machine, each as [`long_mode`] makes one.
pub(crate) fn long_mode_cpus(count: u32) -> Vec<Cpu> {
    let mut cpus = cpus(count);
    cpus.iter_mut().for_each(enter_long_mode);
    cpus
}

fn enter_long_mode(cpu: &mut Cpu) {
    let memory = Arc::clone(&cpu.memory);
    let entry = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).expect("in RAM");
    entry(PML4, PDPT | 7);
    entry(PDPT, PD | 7);
    entry(PD, 0x87);
    entry(PD + 8, 0x20_0087);
    cpu.cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET;
    cpu.cr3 = PML4;
    cpu.cr4 = CR4_PAE | CR4_OSFXSR;
    cpu.efer = EFER_LME | EFER_LMA;
    let flat = |attributes| Segment { selector: 8, base: 0, limit: u32::MAX, attributes };
    let common =
        attr::PRESENT | attr::NOT_SYSTEM | attr::READABLE | attr::ACCESSED | attr::GRANULAR;
    cpu.seg = [flat(common | attr::BIG); 6];
    cpu.seg[usize::from(CS)] = flat(common | attr::CODE | attr::LONG);
    cpu.rip = CODE;
    cpu.gpr[4] = STACK;
    cpu.activity = Activity::Running;
    cpu.tlb.flush_all();
    cpu.update_mode();
}

/// Loads a 64-bit program at [`CODE`].
pub(crate) fn load(cpu: &Cpu, program: impl FnOnce(&mut CodeAssembler)) {
    let mut assembler = CodeAssembler::new(64).expect("64 is a bitness");
    program(&mut assembler);
    let code = assembler.assemble(CODE).expect("the program assembles");
    cpu.memory.write(CODE, &code).expect("the program fits");
}

/// Both engines: the interpreter, and where there is one the translator, by itself and in step with the
/// interpreter.
pub(crate) fn engines() -> impl Iterator<Item = Option<Translation>> {
    let eager = Translation { threshold: 1, ..Translation::default() };
    let translated = [eager, Translation { check: true, ..eager }];
    let translated = translated.into_iter().filter(|_| cfg!(target_arch = "x86_64"));
    std::iter::once(None).chain(translated.map(Some))
}

/// Runs `cpu` until it halts, with the interpreter, and then the same from the beginning translated: both
/// must come to the same state and memory.
pub(crate) fn run_to_halt(cpu: &mut Cpu) {
    let memory = |cpu: &Cpu| {
        let mut bytes = vec![0; RAM as usize];
        cpu.memory.read(0, &mut bytes).expect("RAM");
        bytes
    };
    let (before, ram) = (cpu.save(), memory(cpu));
    let pending = cpu.signals.pending();
    let signals = [Signal::Interrupt, Signal::Nmi, Signal::Smi, Signal::Init, Signal::Startup];
    let mut ends = Vec::new();
    for engine in engines() {
        cpu.memory.write(0, &ram).expect("RAM");
        cpu.restore(&before).expect("a state that the CPU was in");
        assert!(cpu.set_translation(engine), "the host can translate");
        for signal in signals.into_iter().filter(|&signal| pending & signal as u32 != 0) {
            cpu.signals.raise(signal);
        }
        let exit = cpu.run();
        assert!(matches!(exit, Exit::Halt { .. }), "{engine:?} at rip {:#x}: {exit:?}", cpu.rip);
        ends.push((cpu.save(), memory(cpu)));
    }
    assert!(ends.windows(2).all(|ends| ends[0] == ends[1]), "the engines agree");
}
