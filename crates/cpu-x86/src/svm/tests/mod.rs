//! Guests of a few instructions, entered by a host of three (VMRUN, HLT), one file a topic. What is
//! expected is from APM volume 2, chapter 15.

mod entry;
mod events;
mod intercepts;
mod nested;

use accel::Vcpu;
use iced_x86::code_asm::*;

use super::exit::code;
use super::vmcb::at;
use crate::cpu::Cpu;
use crate::msr::index;
use crate::regs::EFER_SVME;
use crate::segment::{CS, DS, ES, SS};
use crate::state::Activity;
use crate::testing::{CODE, load, long_mode, run_to_halt};

/// Where the control block, the guest's code and stack, and the permission maps are.
const VMCB: u64 = 0x10_0000;
const GUEST: u64 = 0x2_0000;
const GUEST_STACK: u64 = 0x9_0000;
const IOPM: u64 = 0x11_0000;
const MSRPM: u64 = 0x11_4000;
/// What VM_HSAVE_PA names.
const HOST_SAVE: u64 = 0x11_8000;
/// The host's tables (see `testing`).
const PML4: u64 = 0x1000;
/// The guest's IDT and what its handlers are found by.
const IDT: u64 = 0x3_0000;
const GDT: u64 = 0x3_1000;
const HANDLERS: u64 = 0x4_0000;
/// What the invalid state's exit code reads as.
const INVALID: u64 = u64::MAX;

/// A host with a guest.
struct Machine {
    cpu: Cpu,
}

impl Machine {
    /// A guest like its host, in 64-bit mode without nested paging, of which VMRUN and VMMCALL are
    /// intercepted.
    fn new() -> Self {
        let mut cpu = long_mode();
        cpu.efer |= EFER_SVME;
        assert!(cpu.write_msr(index::VM_HSAVE_PA, HOST_SAVE));
        load(&cpu, |a| {
            a.mov(rax, VMCB).unwrap();
            a.vmrun().unwrap();
            a.hlt().unwrap();
        });
        let machine = Self { cpu };
        machine.intercept(code::VMRUN);
        machine.intercept(code::VMMCALL);
        machine.put(at::IOPM_BASE, IOPM);
        machine.put(at::MSRPM_BASE, MSRPM);
        machine.put32(at::ASID, 1);
        for (n, segment) in [ES, CS, SS, DS].into_iter().enumerate() {
            let segment = machine.cpu.seg[usize::from(segment)];
            let at = at::SEGMENTS + 16 * n;
            let attributes = segment.attributes & 0xff | segment.attributes >> 4 & 0xf00;
            machine.put16(at, segment.selector);
            machine.put16(at + 2, attributes);
            machine.put32(at + 4, segment.limit);
        }
        machine.put(at::CR0, machine.cpu.cr0);
        machine.put(at::CR3, machine.cpu.cr3);
        machine.put(at::CR4, machine.cpu.cr4);
        machine.put(at::EFER, machine.cpu.efer);
        machine.put(at::DR6, 0xffff_0ff0);
        machine.put(at::DR7, 0x400);
        machine.put(at::RFLAGS, 2);
        machine.put(at::RIP, GUEST);
        machine.put(at::RSP, GUEST_STACK);
        machine.guest(|a| a.vmmcall().unwrap());
        machine
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.cpu.memory.write(at, bytes).expect("RAM");
    }

    fn put(&self, at: usize, value: u64) {
        self.write(VMCB + at as u64, &value.to_le_bytes());
    }

    fn put32(&self, at: usize, value: u32) {
        self.write(VMCB + at as u64, &value.to_le_bytes());
    }

    fn put16(&self, at: usize, value: u16) {
        self.write(VMCB + at as u64, &value.to_le_bytes());
    }

    fn get(&self, at: usize) -> u64 {
        self.memory(VMCB + at as u64)
    }

    fn memory(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.cpu.memory.read(at, &mut bytes).expect("RAM");
        u64::from_le_bytes(bytes)
    }

    fn set_memory(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    /// Has `code` intercepted.
    fn intercept(&self, code: u32) {
        let at = VMCB + u64::from(code / 8);
        let mut byte = [0];
        self.cpu.memory.read(at, &mut byte).expect("RAM");
        self.write(at, &[byte[0] | 1 << (code % 8)]);
    }

    /// Loads the guest's code.
    fn guest(&self, program: impl FnOnce(&mut CodeAssembler)) {
        self.code(64, GUEST, program);
    }

    fn code(&self, bits: u32, at: u64, program: impl FnOnce(&mut CodeAssembler)) {
        let mut assembler = CodeAssembler::new(bits).expect("a bitness");
        program(&mut assembler);
        self.write(at, &assembler.assemble(at).expect("the program assembles"));
    }

    /// Runs the host's three instructions; returns the exit code.
    fn run(&mut self) -> u64 {
        self.cpu.rip = CODE;
        self.cpu.activity = Activity::Running;
        self.cpu.svm.gif = true;
        run_to_halt(&mut self.cpu);
        assert_eq!(self.cpu.rip, CODE + 14, "the host goes on after VMRUN");
        assert!(!self.cpu.svm.gif && !self.cpu.svm.guest);
        self.get(at::EXIT_CODE)
    }

    /// Runs, and expects exit `code` at `rip`.
    #[track_caller]
    fn expect(&mut self, code: u32, rip: u64) {
        let found = self.run();
        assert_eq!(found, u64::from(code), "exit {found:#x}");
        assert_eq!(self.get(at::RIP), rip);
    }

    /// Gives the guest an IDT whose handler of each vector executes VMMCALL, at [`HANDLERS`] + 16 a
    /// vector.
    fn handlers(&mut self) {
        self.set_memory(GDT + 8, 0x00af_9b00_0000_ffff);
        self.set_memory(GDT + 16, 0x00cf_9300_0000_ffff);
        for vector in 0..256 {
            let handler = HANDLERS + 16 * vector;
            let low = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
            self.set_memory(IDT + 16 * vector, low);
            self.set_memory(IDT + 16 * vector + 8, 0);
            self.code(64, handler, |a| a.vmmcall().unwrap());
        }
        self.put(at::IDTR + 8, IDT);
        self.put32(at::IDTR + 4, 0xfff);
        self.put(at::GDTR + 8, GDT);
        self.put32(at::GDTR + 4, 0x17);
    }
}

/// What the guest pushed, from the top of its stack on.
fn frame(machine: &Machine, n: u64) -> u64 {
    machine.memory(machine.get(at::RSP) + 8 * n)
}

#[test]
fn a_guest_runs_and_comes_back() {
    let mut machine = Machine::new();
    machine.guest(|a| {
        a.mov(rax, 0x1234_5678u64).unwrap();
        a.mov(rbx, 0x55u64).unwrap();
        a.push(rax).unwrap();
        a.vmmcall().unwrap();
    });
    machine.cpu.gpr[3] = 1;
    assert_eq!(machine.run(), u64::from(code::VMMCALL));
    assert_eq!(machine.get(at::RAX), 0x1234_5678);
    assert_eq!(machine.get(at::RSP), GUEST_STACK - 8);
    // RAX and RSP are the host's again, others are shared.
    assert_eq!((machine.cpu.gpr[0], machine.cpu.gpr[3]), (VMCB, 0x55));
    assert_eq!(machine.cpu.gpr[4], crate::testing::STACK);
    assert_eq!(machine.cpu.dr[7], 0x400);
}

#[test]
fn the_mode_and_its_instructions_need_to_be_enabled() {
    for (bytes, name) in [
        ([0x0f, 0x01, 0xd8], "VMRUN"),
        ([0x0f, 0x01, 0xda], "VMLOAD"),
        ([0x0f, 0x01, 0xdb], "VMSAVE"),
        ([0x0f, 0x01, 0xdc], "STGI"),
        ([0x0f, 0x01, 0xdd], "CLGI"),
        ([0x0f, 0x01, 0xdf], "INVLPGA"),
        ([0x0f, 0x01, 0xde], "SKINIT"),
    ] {
        let mut machine = Machine::new();
        machine.handlers();
        machine.cpu.idtr = crate::state::TableRegister { base: IDT, limit: 0xfff };
        machine.cpu.gdtr = crate::state::TableRegister { base: GDT, limit: 0x17 };
        machine.write(HANDLERS + 16 * 6, &[0xf4]);
        machine.cpu.efer &= !EFER_SVME;
        machine.write(CODE, &bytes);
        run_to_halt(&mut machine.cpu);
        assert_eq!(machine.cpu.rip, HANDLERS + 16 * 6 + 1, "{name}");
    }
}

#[test]
fn control_blocks_are_pages_that_there_can_be() {
    for (address, name) in [(VMCB + 8, "misaligned"), (1 << 40, "beyond"), (1 << 63, "far beyond")]
    {
        for opcode in [0xd8, 0xda, 0xdb] {
            let mut machine = Machine::new();
            machine.handlers();
            machine.cpu.idtr = crate::state::TableRegister { base: IDT, limit: 0xfff };
            machine.cpu.gdtr = crate::state::TableRegister { base: GDT, limit: 0x17 };
            machine.write(HANDLERS + 16 * 13, &[0xf4]);
            machine.write(CODE, &[0x0f, 0x01, opcode]);
            machine.cpu.gpr[0] = address;
            run_to_halt(&mut machine.cpu);
            assert_eq!(machine.cpu.rip, HANDLERS + 16 * 13 + 1, "{name} {opcode:#x}");
        }
    }
}

#[test]
fn vmsave_and_vmload_move_the_rest_of_the_state() {
    let mut machine = Machine::new();
    machine.code(64, CODE, |a| {
        a.mov(rax, VMCB).unwrap();
        a.vmsave().unwrap();
        a.hlt().unwrap();
    });
    let cpu = &mut machine.cpu;
    cpu.seg[4].base = 0x1111;
    cpu.seg[5].base = 0xffff_8000_0000_2222;
    cpu.ldtr.selector = 0x28;
    cpu.tr.base = 0x3333;
    cpu.msrs.kernel_gs_base = 0x4444;
    (cpu.msrs.star, cpu.msrs.lstar, cpu.msrs.cstar, cpu.msrs.sfmask) = (1, 2, 3, 4);
    (cpu.msrs.sysenter_cs, cpu.msrs.sysenter_esp, cpu.msrs.sysenter_eip) = (5, 6, 7);
    run_to_halt(cpu);
    assert_eq!(machine.get(at::FS + 8), 0x1111);
    assert_eq!(machine.get(at::GS + 8), 0xffff_8000_0000_2222);
    assert_eq!(machine.get(at::LDTR) as u16, 0x28);
    assert_eq!(machine.get(at::TR + 8), 0x3333);
    assert_eq!(machine.get(at::KERNEL_GS_BASE), 0x4444);
    let msrs = [at::STAR, at::LSTAR, at::CSTAR, at::SFMASK].map(|at| machine.get(at));
    assert_eq!(msrs, [1, 2, 3, 4]);
    let msrs = [at::SYSENTER_CS, at::SYSENTER_ESP, at::SYSENTER_EIP].map(|at| machine.get(at));
    assert_eq!(msrs, [5, 6, 7]);
    // Bases come back canonical.
    machine.put(at::FS + 8, 0x0190_0000_0000_0000);
    machine.put(at::KERNEL_GS_BASE, 0xaaaa_0000_0000_1000);
    machine.put(at::LSTAR, 0x77);
    machine.code(64, CODE, |a| {
        a.vmload().unwrap();
        a.hlt().unwrap();
    });
    machine.cpu.rip = CODE;
    machine.cpu.activity = Activity::Running;
    run_to_halt(&mut machine.cpu);
    assert_eq!(machine.cpu.seg[4].base, 0xff90_0000_0000_0000);
    assert_eq!(machine.cpu.msrs.kernel_gs_base, 0x00aa_0000_0000_1000);
    assert_eq!(machine.cpu.msrs.lstar, 0x77);
}

#[test]
fn a_guest_is_saved_and_goes_on_elsewhere() {
    let mut machine = Machine::new();
    machine.intercept(code::CPUID);
    machine.guest(|a| {
        a.mov(ebx, 7).unwrap();
        a.hlt().unwrap();
        a.inc(ebx).unwrap();
        a.cpuid().unwrap();
    });
    run_to_halt(&mut machine.cpu);
    assert!(machine.cpu.svm.guest, "the guest halts");
    let state = machine.cpu.state();
    let mut other = Machine::new();
    other.write(VMCB, &{
        let mut page = vec![0; 0x1000];
        machine.cpu.memory.read(VMCB, &mut page).unwrap();
        page
    });
    other.guest(|a| {
        a.mov(ebx, 7).unwrap();
        a.hlt().unwrap();
        a.inc(ebx).unwrap();
        a.cpuid().unwrap();
    });
    other.cpu.set_state(&state).unwrap();
    assert_eq!(other.cpu.state(), state);
    other.cpu.activity = Activity::Running;
    run_to_halt(&mut other.cpu);
    assert_eq!(other.get(at::EXIT_CODE), u64::from(code::CPUID));
    assert_eq!((other.cpu.gpr[3], other.cpu.rip), (8, CODE + 14));
    // A block that is at no page's address is refused.
    let mut wrong = state.clone();
    wrong.svm.guest.as_mut().unwrap().vmcb = 1;
    let before = other.cpu.state();
    assert!(other.cpu.set_state(&wrong).is_err());
    assert_eq!(other.cpu.state(), before);
}
