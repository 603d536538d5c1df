//! VMRUN: what it takes and refuses, and how the guest then is.

use iced_x86::code_asm::*;

use super::*;

/// Changes to a legal block that each make it an illegal one.
#[test]
fn illegal_states_are_refused() {
    type Change = fn(&Machine);
    let cases: &[(&str, Change)] = &[
        ("EFER.SVME is clear", |m| m.put(at::EFER, 0x500)),
        ("EFER has reserved bits", |m| m.put(at::EFER, 0x1500 | 1 << 9)),
        ("EFER has reserved high bits", |m| m.put(at::EFER, 0x1500 | 1 << 40)),
        ("CR0.NW without CD", |m| m.put(at::CR0, m.cpu.cr0 & !(1 << 30) | 1 << 29)),
        ("CR0 has high bits", |m| m.put(at::CR0, m.cpu.cr0 | 1 << 32)),
        ("CR3 has reserved bits", |m| m.put(at::CR3, PML4 | 1 << 60)),
        ("CR4 has reserved bits", |m| m.put(at::CR4, m.cpu.cr4 | 1 << 31)),
        ("CR4 has high bits", |m| m.put(at::CR4, m.cpu.cr4 | 1 << 40)),
        ("DR6 has high bits", |m| m.put(at::DR6, 1 << 32)),
        ("DR7 has high bits", |m| m.put(at::DR7, 1 << 50)),
        ("long mode without PAE", |m| m.put(at::CR4, m.cpu.cr4 & !(1 << 5))),
        ("long mode without PE", |m| m.put(at::CR0, m.cpu.cr0 & !1)),
        ("CS.L and CS.D", |m| m.put16(at::SEGMENTS + 18, 0xe9b)),
        ("VMRUN is not intercepted", |m| m.put32(0x10, 2)),
        ("ASID 0", |m| m.put32(at::ASID, 0)),
        ("the I/O map is beyond memory", |m| {
            m.intercept(code::IOIO);
            m.put(at::IOPM_BASE, (1 << 40) - 0x2000);
        }),
        ("the MSR map is beyond memory", |m| {
            m.intercept(code::MSR);
            m.put(at::MSRPM_BASE, (1 << 40) - 0x1000);
        }),
        ("no such event", |m| m.put(at::EVENT_INJ, 1 << 31 | 1 << 8)),
        ("an exception that is none", |m| m.put(at::EVENT_INJ, 1 << 31 | 3 << 8 | 32)),
        ("NMI as an exception", |m| m.put(at::EVENT_INJ, 1 << 31 | 3 << 8 | 2)),
        ("nested tables beyond memory", |m| {
            m.put(at::NP_ENABLE, 1);
            m.put(at::N_CR3, 1 << 45);
            m.put(at::G_PAT, 0x0007_0406_0007_0406);
        }),
        ("no such memory type", |m| {
            m.put(at::NP_ENABLE, 1);
            m.put(at::N_CR3, PML4);
            m.put(at::G_PAT, 0x0002_0406_0007_0406);
        }),
    ];
    for (name, change) in cases {
        let mut machine = Machine::new();
        assert_eq!(machine.run(), u64::from(code::VMMCALL), "{name}: before");
        let rip = machine.get(at::RIP);
        change(&machine);
        assert_eq!(machine.run(), INVALID, "{name}");
        // Nothing of the guest was loaded, or is written.
        assert_eq!(machine.get(at::RIP), rip, "{name}");
        assert_eq!(machine.cpu.rip, CODE + 14, "{name}");
    }
}

#[test]
fn legal_states_that_look_odd_are_entered() {
    type Change = fn(&Machine);
    let cases: &[(&str, Change)] = &[
        ("both cache bits", |m| m.put(at::CR0, m.cpu.cr0 | 3 << 29)),
        ("CD alone", |m| m.put(at::CR0, m.cpu.cr0 | 1 << 30)),
        ("LMA is the processor's", |m| m.put(at::EFER, 0x1100)),
        ("the last page for the MSR map", |m| m.put(at::MSRPM_BASE, (1 << 40) - 0x2000)),
        ("low bits of the maps", |m| m.put(at::IOPM_BASE, IOPM | 0xfff)),
        ("a high ASID", |m| m.put32(at::ASID, 0x7fff_ffff)),
    ];
    for (name, change) in cases {
        let mut machine = Machine::new();
        change(&machine);
        assert_eq!(machine.run(), u64::from(code::VMMCALL), "{name}");
        assert_eq!(machine.get(at::EFER) & 0x1500, 0x1500, "{name}");
    }
}

/// Real mode with paging, which only VMRUN and RSM can enter.
#[test]
fn real_mode_may_be_paged() {
    let mut machine = Machine::new();
    // 32-bit tables: 4 MiB at 0 are mapped to themselves.
    machine.set_memory(0x7_0000, 0x83);
    machine.put(at::CR3, 0x7_0000);
    machine.put(at::CR0, 0x8000_0010);
    machine.put(at::CR4, 1 << 4);
    machine.put(at::EFER, EFER_SVME);
    for n in 0..4 {
        machine.put16(at::SEGMENTS + 16 * n, 0);
        machine.put16(at::SEGMENTS + 16 * n + 2, if n == 1 { 0x9b } else { 0x93 });
        machine.put32(at::SEGMENTS + 16 * n + 4, 0xffff);
    }
    machine.put(at::RIP, 0x8000);
    machine.put(at::RSP, 0x9000);
    machine.code(16, 0x8000, |a| {
        a.mov(ax, 0x1234).unwrap();
        a.push(ax).unwrap();
        a.mov(bx, word_ptr(0x8ffe)).unwrap();
        a.vmmcall().unwrap();
    });
    machine.expect(code::VMMCALL, 0x8008);
    assert_eq!(machine.cpu.gpr[3] as u16, 0x1234);
    assert_eq!(machine.get(at::CPL) as u8, 0);
    assert!(machine.cpu.mode.is_64(), "the host is where it was");
}

#[test]
fn a_guest_in_virtual_8086_mode_has_cpl_3() {
    let mut machine = Machine::new();
    machine.put(at::CR0, 0x11);
    machine.put(at::EFER, EFER_SVME);
    machine.put(at::RFLAGS, 0x2_3002);
    for n in 0..4 {
        machine.put16(at::SEGMENTS + 16 * n + 2, 0xf3);
        machine.put32(at::SEGMENTS + 16 * n + 4, 0xffff);
    }
    machine.put(at::RIP, 0x8000);
    machine.write(0x8000, &[0x0f, 0x01, 0xd9]);
    machine.expect(code::VMMCALL, 0x8000);
    assert_eq!(machine.get(at::CPL) as u8, 3);
    assert_eq!(machine.cpu.rflags() & 1 << 17, 0);
}

#[test]
fn a_host_that_steps_stops_after_vmrun() {
    let mut machine = Machine::new();
    machine.handlers();
    machine.cpu.idtr = crate::state::TableRegister { base: IDT, limit: 0xfff };
    machine.cpu.gdtr = crate::state::TableRegister { base: GDT, limit: 0x17 };
    machine.write(HANDLERS + 16, &[0xf4]);
    machine.guest(|a| {
        a.nop().unwrap();
        a.vmmcall().unwrap();
    });
    machine.cpu.rip = CODE + 10;
    machine.cpu.gpr[0] = VMCB;
    machine.cpu.set_rflags(0x102);
    run_to_halt(&mut machine.cpu);
    assert_eq!(machine.cpu.rip, HANDLERS + 17);
    assert_eq!(machine.memory(machine.cpu.gpr[4]), CODE + 13);
    assert_eq!(machine.cpu.dr[6] & 0x4000, 0x4000);
    assert_eq!(machine.get(at::RIP), GUEST + 1, "the guest did not step");
}

#[test]
fn debug_registers_are_the_guests_while_it_runs() {
    let mut machine = Machine::new();
    machine.intercept(code::EXCEPTION + 1);
    machine.guest(|a| {
        a.nop().unwrap();
        a.nop().unwrap();
        a.vmmcall().unwrap();
    });
    machine.cpu.dr[0] = GUEST + 1;
    machine.put(at::DR7, 0x401);
    machine.expect(code::EXCEPTION + 1, GUEST + 1);
    assert_eq!(machine.get(at::DR6) & 0xf, 1);
    assert_eq!(machine.cpu.dr[7], 0x400);
    // With TF, after the first instruction.
    machine.put(at::DR7, 0x400);
    machine.put(at::DR6, 0xffff_0ff0);
    machine.put(at::RIP, GUEST);
    machine.put(at::RFLAGS, 0x102);
    machine.expect(code::EXCEPTION + 1, GUEST + 1);
    assert_eq!(machine.get(at::DR6) & 0x400f, 0x4000);
}

#[test]
fn model_specific_registers_of_the_mode() {
    use crate::msr::index;
    let mut machine = Machine::new();
    let cpu = &mut machine.cpu;
    assert!(cpu.write_msr(index::VM_HSAVE_PA, 0x5000));
    assert_eq!(cpu.read_msr(index::VM_HSAVE_PA), Some(0x5000));
    assert!(!cpu.write_msr(index::VM_HSAVE_PA, 0x5001));
    assert!(!cpu.write_msr(index::VM_HSAVE_PA, 1 << 40));
    assert_eq!(cpu.read_msr(index::VM_CR), Some(0));
    assert!(!cpu.write_msr(index::VM_CR, 1 << 5));
    assert!(!cpu.write_msr(index::VM_CR, 1 << 4), "the mode is on");
    assert!(cpu.write_msr(index::EFER, cpu.efer & !EFER_SVME));
    assert!(cpu.write_msr(index::VM_CR, 3 << 3));
    assert!(!cpu.write_msr(index::EFER, cpu.efer | EFER_SVME), "it is disabled");
    assert!(cpu.write_msr(index::VM_CR, 0));
    assert_eq!(cpu.read_msr(index::VM_CR), Some(3 << 3), "it is locked");
    assert_eq!(cpu.read_msr(index::TSC_RATIO), Some(1 << 32));
    assert!(!cpu.write_msr(index::TSC_RATIO, 1 << 40));
}
