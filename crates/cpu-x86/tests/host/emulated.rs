//! Runs one instruction on Rhea's CPU, through nothing but its public interface.
//!
//! The guest has the sandbox at the same linear addresses as the host, and a gate for each exception
//! whose handler is a HLT. A case runs at privilege level 3 with the trap flag set, so it ends in one
//! of them, and its registers are found in the frame on the stack.
//!
//! Single steps are interpreted. To be translated, an instruction runs without the trap flag; what
//! follows it is a breakpoint instruction, or nothing that can be executed.

use std::sync::Arc;

use accel::{Exit, NoBoard, Signals, Vcpu};
use cpu_x86::state::{Segment, TableRegister, X87State};
use cpu_x86::{Cpu, CpuConfig, CpuGroup, CpuState, CpuWiring, Topology, Translation};
use memory::GuestMemory;

use crate::state::{CODE, DATA, DATA_LEN, Event, IMAGE, MAX_STEPS, MEMORY, PAGE, STACK, State, TF};

/// Where the guest's own structures are, in a large page for the supervisor.
const SUPERVISOR: u64 = 0xffff_8000_0000_0000;
const RAM: u64 = 2 << 20;
/// Physical addresses.
const PML4: u64 = 0x1000;
const LOW: [u64; 3] = [0x2000, 0x3000, 0x4000];
const HIGH: [u64; 2] = [0x5000, 0x6000];
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const TSS: u64 = 0xa000;
const HANDLERS: u64 = 0xb000;
const KERNEL_STACK: u64 = 0x1_0000;
const GUEST_CODE: u64 = 0x2_0000;
const GUEST_DATA: u64 = 0x2_1000;
const GUEST_STACK: u64 = 0x2_3000;

const RF: u64 = 1 << 16;
/// In a page fault's error code: an instruction was fetched.
const FETCH: u64 = 1 << 4;

const EFER: u32 = 0xc000_0080;
const EFER_SCE_LME_LMA_NXE: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;
/// PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31;
/// PAE, OSFXSR, OSXMMEXCPT, OSXSAVE.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18;
/// Selectors as Linux gives them to its programs.
const USER_CS: u16 = 0x33;
const USER_SS: u16 = 0x2b;
const KERNEL_CS: u16 = 0x10;

/// Rhea's CPU with the sandbox as its guest memory.
pub(crate) struct Emulated {
    cpu: Cpu,
    memory: Arc<GuestMemory>,
    /// What every case starts from, but for the registers that it sets.
    base: CpuState,
    /// Instructions are translated.
    translated: bool,
}

impl Emulated {
    pub(crate) fn new(translated: bool) -> Self {
        let memory = Arc::new(GuestMemory::new(&[(0, RAM)]).expect("2 MiB of memory"));
        build_tables(&memory);
        let board = Arc::new(NoBoard);
        let wiring = CpuWiring {
            memory: Arc::clone(&memory),
            bus: board.clone(),
            interrupts: board.clone(),
            clock: board,
            signals: Arc::new(Signals::default()),
            group: Arc::new(CpuGroup::default()),
        };
        let mut cpu = Cpu::new(
            CpuConfig { apic_id: 0, topology: Topology::default(), model: Arc::default() },
            wiring,
        );
        let how = Translation { threshold: 1, ..Translation::default() };
        assert!(cpu.set_translation(translated.then_some(how)), "the host can translate");
        let base = base_state(&cpu);
        Self { cpu, memory, base, translated }
    }

    /// Replaces the code page's contents from `offset` on.
    pub(crate) fn write_code(&mut self, offset: usize, bytes: &[u8]) {
        self.memory.write(GUEST_CODE + offset as u64, bytes).expect("RAM");
    }

    /// Executes the instruction at `state.rip`, to the end if it is a repeated one.
    pub(crate) fn step(&mut self, state: &mut State) -> Event {
        let data = DATA_LEN as usize;
        self.memory.write(GUEST_DATA, &state.memory[..data]).expect("RAM");
        self.memory.write(GUEST_STACK, &state.memory[data..]).expect("RAM");
        let start = state.rip;
        let mut steps = 0;
        let event = loop {
            let event = self.step_once(state);
            steps += 1;
            if self.translated || event.vector != 1 || state.rip != start || steps == MAX_STEPS {
                break event;
            }
        };
        self.memory.read(GUEST_DATA, &mut state.memory[..data]).expect("RAM");
        self.memory.read(GUEST_STACK, &mut state.memory[data..MEMORY]).expect("RAM");
        event
    }

    fn step_once(&mut self, state: &mut State) -> Event {
        self.base.gpr = state.gpr;
        self.base.rip = state.rip;
        let start = state.rip;
        self.base.rflags = if self.translated { state.rflags } else { state.rflags | TF };
        image_to_state(&state.image, &mut self.base);
        self.base.ymm_high = state.ymm_high;
        self.cpu.set_state(&self.base).expect("a valid state");
        let exit = self.cpu.run();
        assert!(matches!(exit, Exit::Halt { .. }), "the handler halts, instead of {exit:?}");
        let after = self.cpu.state();
        let vector = ((after.rip - 1 - SUPERVISOR - HANDLERS) / 16) as u8;
        let mut frame = [0u64; 6];
        for (n, word) in frame.iter_mut().enumerate() {
            let mut bytes = [0; 8];
            let at = after.gpr[4].wrapping_sub(SUPERVISOR) + 8 * n as u64;
            if self.memory.read(at, &mut bytes).is_ok() {
                *word = u64::from_le_bytes(bytes);
            }
        }
        let has_code = matches!(vector, 8 | 10..=14 | 17);
        let (error_code, frame) = if has_code { (frame[0], &frame[1..]) } else { (0, &frame[..]) };
        state.gpr = after.gpr;
        state.rip = frame[0];
        state.rflags = frame[2];
        state.gpr[4] = frame[3];
        image_from_state(&after, &mut state.image);
        state.ymm_high = after.ymm_high;
        let event = Event { vector, error_code, address: if vector == 14 { after.cr2 } else { 0 } };
        if !self.translated {
            return event;
        }
        state.rflags |= TF;
        // What comes after the instruction shows that it was executed.
        let fetch =
            vector == 14 && error_code & FETCH != 0 && after.cr2 == state.rip && state.rip != start;
        let breakpoint = vector == 3 && state.rip.wrapping_sub(1) != start;
        if !fetch && !breakpoint {
            return event;
        }
        state.rip -= u64::from(breakpoint);
        state.rflags &= !RF;
        Event { vector: 1, error_code: 0, address: 0 }
    }
}

/// Page tables, GDT, IDT, TSS and handlers.
fn build_tables(memory: &GuestMemory) {
    let put = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).expect("RAM");
    let user = 7;
    put(PML4, LOW[0] | user);
    put(LOW[0], LOW[1] | user);
    put(LOW[1] + (CODE >> 21) * 8, LOW[2] | user);
    let page = |linear: u64, physical: u64, bits: u64| {
        put(LOW[2] + (linear >> 12 & 0x1ff) * 8, physical | bits | 0x60);
    };
    let no_execute = 1 << 63;
    page(CODE, GUEST_CODE, 5);
    page(DATA, GUEST_DATA, 7 | no_execute);
    page(DATA + PAGE, GUEST_DATA + PAGE, 7 | no_execute);
    page(STACK, GUEST_STACK, 7 | no_execute);
    put(PML4 + (SUPERVISOR >> 39 & 0x1ff) * 8, HIGH[0] | 3);
    put(HIGH[0], HIGH[1] | 3);
    put(HIGH[1], 0xe3);
    // Present, DPL, S, type; L for code.
    put(GDT + u64::from(KERNEL_CS & !7), 0x00af_9b00_0000_ffff);
    put(GDT + u64::from(USER_SS & !7), 0x00cf_f300_0000_ffff);
    put(GDT + u64::from(USER_CS & !7), 0x00af_fb00_0000_ffff);
    put(TSS + 4, SUPERVISOR + KERNEL_STACK);
    // The I/O permission bitmap is outside.
    put(TSS + 0x60, 0x68 << 48);
    for vector in 0..256 {
        let handler = SUPERVISOR + HANDLERS + vector * 16;
        // Linux lets programs call the breakpoint and overflow vectors.
        let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
        let low = handler & 0xffff
            | u64::from(KERNEL_CS) << 16
            | (0x8e | dpl << 5) << 40
            | (handler >> 16 & 0xffff) << 48;
        put(IDT + vector * 16, low);
        put(IDT + vector * 16 + 8, handler >> 32);
        memory.write(HANDLERS + vector * 16, &[0xf4]).expect("RAM");
    }
}

fn base_state(cpu: &Cpu) -> CpuState {
    let mut state = cpu.state();
    state.cr0 = CR0;
    state.cr3 = PML4;
    state.cr4 = CR4;
    state.xcr0 = 7;
    for (index, value) in &mut state.msrs {
        if *index == EFER {
            *value = EFER_SCE_LME_LMA_NXE;
        }
    }
    let null = Segment { selector: 0, base: 0, limit: 0, attributes: 0 };
    let code = Segment { selector: USER_CS, base: 0, limit: u32::MAX, attributes: 0xa0fb };
    let stack = Segment { selector: USER_SS, base: 0, limit: u32::MAX, attributes: 0xc0f3 };
    state.segments = [null, code, stack, null, null, null];
    state.tr = Segment { selector: 0x40, base: SUPERVISOR + TSS, limit: 0x67, attributes: 0x8b };
    state.gdtr = TableRegister { base: SUPERVISOR + GDT, limit: 0x7f };
    state.idtr = TableRegister { base: SUPERVISOR + IDT, limit: 0xfff };
    state
}

fn u16_at(image: &[u8; IMAGE], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn u128_at(image: &[u8; IMAGE], at: usize) -> u128 {
    u128::from_le_bytes(image[at..at + 16].try_into().expect("sixteen bytes"))
}

fn image_to_state(image: &[u8; IMAGE], state: &mut CpuState) {
    let status = u16_at(image, 2);
    let top = usize::from(status >> 11 & 7);
    let mut x87 = X87State { control: u16_at(image, 0), status, tags: 0, ..X87State::default() };
    for n in 0..8 {
        x87.regs[(top + n) & 7] = u128_at(image, 32 + 16 * n) & ((1 << 80) - 1);
        if image[4] >> n & 1 == 0 {
            x87.tags |= 3 << (2 * n);
        }
    }
    state.x87 = x87;
    for n in 0..16 {
        state.xmm[n] = u128_at(image, 160 + 16 * n);
    }
    state.mxcsr = u32::from_le_bytes(image[24..28].try_into().expect("four bytes"));
    state.interrupt_shadow = false;
    state.debug_shadow = false;
}

fn image_from_state(state: &CpuState, image: &mut [u8; IMAGE]) {
    let x87 = &state.x87;
    image[0..2].copy_from_slice(&x87.control.to_le_bytes());
    image[2..4].copy_from_slice(&x87.status.to_le_bytes());
    image[4] = (0..8).fold(0, |tags, n| tags | u8::from(x87.tags >> (2 * n) & 3 != 3) << n);
    image[6..8].copy_from_slice(&x87.opcode.to_le_bytes());
    image[8..16].copy_from_slice(&x87.ip.to_le_bytes());
    image[16..24].copy_from_slice(&x87.dp.to_le_bytes());
    image[24..28].copy_from_slice(&state.mxcsr.to_le_bytes());
    let top = usize::from(x87.status >> 11 & 7);
    for n in 0..8 {
        let register = x87.regs[(top + n) & 7];
        image[32 + 16 * n..48 + 16 * n].copy_from_slice(&register.to_le_bytes());
    }
    for n in 0..16 {
        image[160 + 16 * n..176 + 16 * n].copy_from_slice(&state.xmm[n].to_le_bytes());
    }
}
