//! Interrupts and exceptions: injected, virtual, intercepted, and interrupted themselves.

use accel::Signal;
use iced_x86::code_asm::*;

use super::*;
use crate::svm::int_ctl;

const VALID: u64 = 1 << 31;
const EXTERNAL: u64 = 0;
const NMI: u64 = 2 << 8;
const EXCEPTION: u64 = 3 << 8;
const SOFTWARE: u64 = 4 << 8;
const HAS_CODE: u64 = 1 << 11;

#[test]
fn injected_events_are_delivered_before_the_first_instruction() {
    let next = GUEST + 0x100;
    let cases = [
        ("external", VALID | EXTERNAL | 0x31, 0x31, None, GUEST),
        ("NMI", VALID | NMI | 2, 2, None, GUEST),
        ("NMI, whatever its vector", VALID | NMI | 9, 2, None, GUEST),
        ("exception", VALID | EXCEPTION | 6, 6, None, GUEST),
        (
            "with an error code",
            VALID | EXCEPTION | HAS_CODE | 13 | 0x1234 << 32,
            13,
            Some(0x1234),
            GUEST,
        ),
        ("INT3", VALID | EXCEPTION | 3, 3, None, next),
        ("INT n", VALID | SOFTWARE | 0x80, 0x80, None, next),
    ];
    for (name, event, vector, error_code, rip) in cases {
        let mut machine = Machine::new();
        machine.handlers();
        // The event itself is not intercepted.
        machine.intercept(code::EXCEPTION + 6);
        machine.intercept(code::EXCEPTION + 13);
        machine.intercept(code::SOFTWARE_INTERRUPT);
        machine.put(at::NEXT_RIP, next);
        machine.put(at::EVENT_INJ, event);
        let exit = machine.run();
        assert_eq!(exit, u64::from(code::VMMCALL), "{name}: {exit:#x}");
        assert_eq!(machine.get(at::RIP), HANDLERS + 16 * vector, "{name}");
        let pushed = if error_code.is_some() { 1 } else { 0 };
        if let Some(code) = error_code {
            assert_eq!(frame(&machine, 0), code, "{name}");
        }
        assert_eq!(frame(&machine, pushed), rip, "{name}");
        assert_eq!(machine.get(at::EVENT_INJ) & VALID, 0, "{name}: it is used up");
    }
}

/// 64-bit code has neither INTO nor BOUND.
#[test]
fn overflow_and_bound_are_not_injected_into_64_bit_code() {
    for vector in [4, 5] {
        let mut machine = Machine::new();
        machine.handlers();
        machine.put(at::EVENT_INJ, VALID | EXCEPTION | vector);
        assert_eq!(machine.run(), u64::MAX, "vector {vector}");
    }
}

#[test]
fn an_intercept_during_delivery_tells_what_was_delivered() {
    // The stack is not there: delivery raises #PF.
    let cases = [
        VALID | EXTERNAL | 0x31,
        VALID | NMI | 2,
        VALID | EXCEPTION | 6,
        VALID | EXCEPTION | HAS_CODE | 13 | 8 << 32,
        VALID | SOFTWARE | 0x80,
    ];
    for event in cases {
        let mut machine = Machine::new();
        machine.handlers();
        machine.intercept(code::EXCEPTION + 14);
        machine.put(at::RSP, 0x4000_0000);
        machine.put(at::EVENT_INJ, event);
        machine.put(at::NEXT_RIP, GUEST + 2);
        machine.expect(code::EXCEPTION + 14, GUEST);
        assert_eq!(machine.get(at::EXIT_INT_INFO), event);
        assert_eq!(machine.get(at::EXIT_INFO2), 0x4000_0000 - 8);
        assert_eq!(machine.get(at::RSP), 0x4000_0000);
    }
    // The same of an instruction and of an exception in the guest.
    let cases: [(&[u8], u64); 4] = [
        (&[0xcd, 0x31], VALID | SOFTWARE | 0x31),
        (&[0xcc], VALID | EXCEPTION | 3),
        (&[0x0f, 0x0b], VALID | EXCEPTION | 6),
        (&[0xf1], VALID | EXCEPTION | 1),
    ];
    for (bytes, event) in cases {
        let mut machine = Machine::new();
        machine.handlers();
        machine.intercept(code::EXCEPTION + 14);
        machine.put(at::RSP, 0x4000_0000);
        machine.write(GUEST, bytes);
        machine.expect(code::EXCEPTION + 14, GUEST);
        assert_eq!(machine.get(at::EXIT_INT_INFO), event, "{bytes:02x?}");
    }
}

#[test]
fn the_second_exception_is_intercepted_before_it_doubles() {
    for (exit, info) in [(14, VALID | EXCEPTION | HAS_CODE | 14 | 2 << 32), (8, 0)] {
        let mut machine = Machine::new();
        machine.handlers();
        machine.intercept(code::EXCEPTION + exit);
        // A page fault whose handler's stack faults, too.
        machine.put(at::RSP, 0x4000_0000);
        machine.guest(|a| a.mov(byte_ptr(0x5000_0000u64), al).unwrap());
        if exit == 14 {
            // Only the second one is to be intercepted: inject the first.
            machine.put(at::EVENT_INJ, info);
        }
        machine.expect(code::EXCEPTION + exit, GUEST);
        assert_eq!(machine.get(at::EXIT_INT_INFO), info);
    }
}

fn virtual_interrupt(machine: &Machine, vector: u64, priority: u64, flags: u64) {
    let control = vector << 32 | priority << 16 | int_ctl::V_IRQ | flags;
    machine.put(at::INT_CTL, control);
}

#[test]
fn virtual_interrupts_wait_for_the_guests_flag() {
    let mut machine = Machine::new();
    machine.handlers();
    machine.guest(|a| {
        a.nop().unwrap();
        a.sti().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
        a.vmmcall().unwrap();
    });
    virtual_interrupt(&machine, 0x41, 5, int_ctl::V_INTR_MASKING);
    machine.expect(code::VMMCALL, HANDLERS + 16 * 0x41);
    // The shadow of STI is over.
    assert_eq!(frame(&machine, 0), GUEST + 3);
    assert_eq!(machine.get(at::INT_CTL) & int_ctl::V_IRQ, 0);
    // With the intercept the host hears of the window instead, and the interrupt stays.
    machine.intercept(code::VINTR);
    virtual_interrupt(&machine, 0x41, 5, int_ctl::V_INTR_MASKING);
    machine.put(at::RIP, GUEST);
    machine.put(at::RFLAGS, 2);
    machine.expect(code::VINTR, GUEST + 3);
    assert_ne!(machine.get(at::INT_CTL) & int_ctl::V_IRQ, 0);
}

#[test]
fn virtual_interrupts_have_a_priority() {
    for (priority, tpr, flags, taken) in [
        (5, 4, 0, true),
        (5, 5, 0, false),
        (5, 8, int_ctl::V_IGN_TPR, true),
        (0, 0, 0, false),
        (5, 0, int_ctl::V_GIF_ENABLE, false),
        (5, 0, int_ctl::V_GIF_ENABLE | int_ctl::V_GIF, true),
    ] {
        let mut machine = Machine::new();
        machine.handlers();
        machine.put(at::RFLAGS, 0x202);
        virtual_interrupt(&machine, 0x41, priority, flags | tpr);
        let rip = if taken { HANDLERS + 16 * 0x41 } else { GUEST };
        machine.expect(code::VMMCALL, rip);
    }
}

#[test]
fn the_virtual_priority_is_the_guests_cr8() {
    let mut machine = Machine::new();
    machine.handlers();
    machine.put(at::RFLAGS, 0x202);
    virtual_interrupt(&machine, 0x41, 5, int_ctl::V_INTR_MASKING | 9);
    machine.guest(|a| {
        a.mov(rbx, cr8).unwrap();
        a.mov(eax, 3).unwrap();
        a.mov(cr8, rax).unwrap();
        a.nop().unwrap();
        a.vmmcall().unwrap();
    });
    machine.expect(code::VMMCALL, HANDLERS + 16 * 0x41);
    assert_eq!(machine.cpu.gpr[3], 9);
    assert_eq!(frame(&machine, 0), GUEST + 13);
    assert_eq!(machine.get(at::INT_CTL) & 0xff, 3);
}

#[test]
fn stgi_and_clgi_are_the_guests_own_with_a_virtual_flag() {
    let mut machine = Machine::new();
    machine.handlers();
    machine.put(at::RFLAGS, 0x202);
    virtual_interrupt(&machine, 0x41, 5, int_ctl::V_GIF_ENABLE);
    machine.guest(|a| {
        a.nop().unwrap();
        a.stgi().unwrap();
        a.nop().unwrap();
        a.vmmcall().unwrap();
    });
    machine.expect(code::VMMCALL, HANDLERS + 16 * 0x41);
    assert_eq!(frame(&machine, 0), GUEST + 4);
    assert_ne!(machine.get(at::INT_CTL) & int_ctl::V_GIF, 0);
}

#[test]
fn physical_interrupts_leave_the_guest() {
    // With virtual masking the host's flag counts, without it the guest's.
    for (flags, host, guest, leaves) in [
        (int_ctl::V_INTR_MASKING, true, false, true),
        (int_ctl::V_INTR_MASKING, false, true, false),
        (0, false, true, true),
        (0, true, false, false),
    ] {
        let mut machine = Machine::new();
        machine.intercept(code::INTR);
        machine.put(at::INT_CTL, flags);
        machine.put(at::RFLAGS, if guest { 0x202 } else { 2 });
        machine.cpu.svm.gif = false;
        machine.cpu.signals.raise(Signal::Interrupt);
        machine.cpu.rip = CODE;
        machine.cpu.set_rflags(if host { 0x202 } else { 2 });
        run_to_halt(&mut machine.cpu);
        let exit = if leaves { code::INTR } else { code::VMMCALL };
        assert_eq!(machine.get(at::EXIT_CODE), u64::from(exit), "{flags:#x} {host} {guest}");
        assert!(machine.cpu.signals.is_raised(Signal::Interrupt), "it still waits");
    }
}

#[test]
fn nmi_smi_and_init_leave_the_guest_and_stay_pending() {
    for (signal, code) in
        [(Signal::Nmi, code::NMI), (Signal::Smi, code::SMI), (Signal::Init, code::INIT)]
    {
        let mut machine = Machine::new();
        machine.intercept(code);
        machine.cpu.svm.gif = false;
        machine.cpu.signals.raise(signal);
        machine.cpu.rip = CODE;
        run_to_halt(&mut machine.cpu);
        assert_eq!(machine.get(at::EXIT_CODE), u64::from(code));
        assert_eq!(machine.get(at::RIP), GUEST);
        assert!(machine.cpu.signals.is_raised(signal));
        assert_eq!(machine.cpu.rip, CODE + 14, "held off while GIF is clear");
        assert_eq!(machine.cpu.wanted_signals(), 0);
    }
}

#[test]
fn interrupts_wait_for_stgi() {
    let mut machine = Machine::new();
    machine.handlers();
    machine.cpu.idtr = crate::state::TableRegister { base: IDT, limit: 0xfff };
    machine.cpu.gdtr = crate::state::TableRegister { base: GDT, limit: 0x17 };
    machine.write(HANDLERS + 32, &[0xf4]);
    machine.code(64, CODE, |a| {
        a.clgi().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
        a.stgi().unwrap();
        a.nop().unwrap();
        a.ud2().unwrap();
    });
    machine.cpu.svm.gif = false;
    machine.cpu.signals.raise(Signal::Nmi);
    run_to_halt(&mut machine.cpu);
    assert_eq!(machine.cpu.rip, HANDLERS + 33);
    assert_eq!(machine.memory(machine.cpu.gpr[4]), CODE + 8);
}

#[test]
fn the_interrupt_shadow_goes_in_and_out() {
    let mut machine = Machine::new();
    machine.handlers();
    machine.intercept(code::CPUID);
    machine.guest(|a| {
        a.sti().unwrap();
        a.cpuid().unwrap();
    });
    machine.expect(code::CPUID, GUEST + 1);
    assert_eq!(machine.get(at::INTERRUPT_SHADOW), 1);
    // It shields the first instruction of the next run.
    machine.guest(|a| {
        a.nop().unwrap();
        a.nop().unwrap();
    });
    machine.put(at::RIP, GUEST);
    machine.put(at::RFLAGS, 0x202);
    virtual_interrupt(&machine, 0x41, 5, 0);
    machine.expect(code::VMMCALL, HANDLERS + 16 * 0x41);
    assert_eq!(frame(&machine, 0), GUEST + 1);
    assert_eq!(machine.get(at::INTERRUPT_SHADOW), 0);
}

#[test]
fn init_can_be_redirected_to_an_exception() {
    let mut machine = Machine::new();
    machine.handlers();
    machine.intercept(code::EXCEPTION + 30);
    assert!(machine.cpu.write_svm_msr(index::VM_CR, 2));
    machine.cpu.svm.gif = false;
    machine.cpu.signals.raise(Signal::Init);
    machine.cpu.rip = CODE;
    run_to_halt(&mut machine.cpu);
    assert_eq!(machine.get(at::EXIT_CODE), u64::from(code::EXCEPTION + 30));
    assert_eq!(machine.get(at::EXIT_INFO1), 1);
    assert!(!machine.cpu.signals.is_raised(Signal::Init));
}

/// A guest whose SMI is not intercepted rests while the handler runs, with no intercepts on it.
#[test]
fn system_management_mode_interrupts_a_guest() {
    let mut machine = Machine::new();
    machine.intercept(code::CPUID);
    machine.intercept(code::RSM);
    // The handler counts in memory; 0x38000 is SMBASE + 0x8000.
    machine.code(16, 0x3_8000, |a| {
        a.cpuid().unwrap();
        a.inc(dword_ptr(0x5000)).unwrap();
        a.rsm().unwrap();
    });
    let before = machine.memory(0x5000) as u32;
    machine.cpu.svm.gif = false;
    machine.cpu.signals.raise(Signal::Smi);
    machine.cpu.rip = CODE;
    run_to_halt(&mut machine.cpu);
    assert_eq!(machine.get(at::EXIT_CODE), u64::from(code::VMMCALL));
    assert_eq!(machine.memory(0x5000) as u32, before + 1);
    // The save area tells of the guest and its block.
    assert_eq!(machine.memory(0x3_fed8), 1);
    assert_eq!(machine.memory(0x3_fee0), VMCB);
}
