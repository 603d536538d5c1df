//! Nested paging: both sets of tables, their faults and their bits.

use iced_x86::code_asm::*;

use super::*;

/// The nested tables: 4 MiB to themselves, the second 2 MiB in small pages.
const N_PML4: u64 = 0x20_0000;
const N_PDPT: u64 = 0x20_1000;
const N_PD: u64 = 0x20_2000;
const N_PT: u64 = 0x20_3000;
const N_PT0: u64 = 0x20_4000;
/// The guest's own: PML4, PDPT, PD; a table for the second 2 MiB.
const G_PML4: u64 = 0x21_0000;
const G_PDPT: u64 = 0x21_1000;
const G_PD: u64 = 0x21_2000;
const G_PT: u64 = 0x21_3000;
/// A page of the guest's data, in its second 2 MiB.
const DATA: u64 = 0x30_0000;

const FINAL: u64 = 1 << 32;
const TABLE: u64 = 1 << 33;

fn nested() -> Machine {
    let mut machine = Machine::new();
    // The test's memory is 4 MiB: the tables are in its third, data in its fourth.
    machine.set_memory(N_PML4, N_PDPT | 7);
    machine.set_memory(N_PDPT, N_PD | 7);
    machine.set_memory(N_PD, N_PT0 | 7);
    machine.set_memory(N_PD + 8, N_PT | 7);
    for page in 0..512 {
        machine.set_memory(N_PT0 + 8 * page, page << 12 | 7);
        machine.set_memory(N_PT + 8 * page, (page + 512) << 12 | 7);
    }
    machine.set_memory(G_PML4, G_PDPT | 7);
    machine.set_memory(G_PDPT, G_PD | 7);
    machine.set_memory(G_PD, 0x87);
    machine.set_memory(G_PD + 8, G_PT | 7);
    for page in 0..512 {
        machine.set_memory(G_PT + 8 * page, (page + 512) << 12 | 7);
    }
    machine.put(at::CR3, G_PML4);
    machine.put(at::NP_ENABLE, 1);
    machine.put(at::N_CR3, N_PML4);
    machine.put(at::G_PAT, 0x0007_0406_0007_0406);
    machine.cpu.efer |= 1 << 11;
    machine
}

/// The nested entry of the page at guest physical `page`.
fn entry(page: u64) -> u64 {
    if page < 0x20_0000 { N_PT0 + (page >> 12) * 8 } else { N_PT + ((page - 0x20_0000) >> 12) * 8 }
}

fn touch(machine: &Machine, write: bool) {
    machine.guest(|a| {
        if write {
            a.mov(qword_ptr(DATA + 8), rbx).unwrap();
        } else {
            a.mov(rbx, qword_ptr(DATA + 8)).unwrap();
        }
        a.vmmcall().unwrap();
    });
}

#[test]
fn two_sets_of_tables_translate() {
    let mut machine = nested();
    // The guest's page is another one of the host's.
    machine.set_memory(entry(DATA), 0x31_0000 | 7);
    machine.set_memory(0x31_0008, 0x1122_3344_5566_7788);
    touch(&machine, false);
    assert_eq!(machine.run(), u64::from(code::VMMCALL));
    assert_eq!(machine.cpu.gpr[3], 0x1122_3344_5566_7788);
    // Accessed, not dirty; the guest's own entry too.
    assert_eq!(machine.memory(entry(DATA)) & 0x60, 0x20);
    let guest_entry = G_PT + ((DATA - 0x20_0000) >> 12) * 8;
    assert_eq!(machine.memory(guest_entry) & 0x60, 0x20);
    touch(&machine, true);
    machine.cpu.gpr[3] = 42;
    machine.put(at::RIP, GUEST);
    assert_eq!(machine.run(), u64::from(code::VMMCALL));
    assert_eq!(machine.memory(0x31_0008), 42);
    assert_eq!(machine.memory(entry(DATA)) & 0x60, 0x60);
    assert_eq!(machine.memory(guest_entry) & 0x60, 0x60);
    // The guest's tables were walked: to the host that is written.
    assert_eq!(machine.memory(entry(G_PD)) & 0x60, 0x60);
    assert_eq!(machine.memory(N_PML4) & 0x60, 0x20);
}

/// How the nested entry of a page is changed, and what an access then comes to.
#[test]
fn rights_of_the_final_page() {
    let set = |value: u64| move |old: u64| old | value;
    let clear = |value: u64| move |old: u64| old & !value;
    type Change = Box<dyn Fn(u64) -> u64>;
    let cases: Vec<(&str, Change, bool, Option<u64>)> = vec![
        ("all rights, read", Box::new(set(0)), false, None),
        ("all rights, write", Box::new(set(0)), true, None),
        ("not present, read", Box::new(clear(1)), false, Some(4)),
        ("not present, write", Box::new(clear(1)), true, Some(6)),
        ("read-only, read", Box::new(clear(2)), false, None),
        ("read-only, write", Box::new(clear(2)), true, Some(7)),
        ("supervisor, read", Box::new(clear(4)), false, Some(5)),
        ("supervisor, write", Box::new(clear(4)), true, Some(7)),
        ("not executable, write", Box::new(set(1 << 63)), true, None),
        ("reserved, read", Box::new(set(1 << 45)), false, Some(0xd)),
        ("reserved, write", Box::new(set(1 << 51)), true, Some(0xf)),
        ("available, write", Box::new(set(0x7ff << 52)), true, None),
    ];
    for (name, change, write, fault) in cases {
        let mut machine = nested();
        touch(&machine, write);
        let at = entry(DATA);
        machine.set_memory(at, change(machine.memory(at)));
        let exit = machine.run();
        match fault {
            None => assert_eq!(exit, u64::from(code::VMMCALL), "{name}: {exit:#x}"),
            Some(bits) => {
                assert_eq!(exit, u64::from(code::NPF), "{name}: {exit:#x}");
                assert_eq!(machine.get(at::EXIT_INFO1), bits | FINAL, "{name}");
                assert_eq!(machine.get(at::EXIT_INFO2), DATA + 8, "{name}");
                assert_eq!(machine.get(at::RIP), GUEST, "{name}");
                assert_eq!(machine.get(at::INSN_BYTES) as u8, 15, "{name}");
                // When the host has seen to it, the guest goes on.
                machine.set_memory(at, DATA | 7);
                assert_eq!(machine.run(), u64::from(code::VMMCALL), "{name}");
            }
        }
    }
}

#[test]
fn rights_of_the_guests_tables() {
    for (name, clear, set, fault) in [
        ("not present", 1, 0, 6),
        ("read-only", 2, 0, 7),
        ("supervisor", 4, 0, 7),
        ("reserved", 0, 1 << 45, 0xf),
    ] {
        let mut machine = nested();
        touch(&machine, false);
        let at = entry(G_PD);
        machine.set_memory(at, machine.memory(at) & !clear | set);
        let exit = machine.run();
        assert_eq!(exit, u64::from(code::NPF), "{name}: {exit:#x}");
        assert_eq!(machine.get(at::EXIT_INFO1), fault | TABLE, "{name}");
        // The guest's first fetch is what asks for it.
        assert_eq!(machine.get(at::EXIT_INFO2), G_PD, "{name}");
    }
}

#[test]
fn fetches_need_the_right_to_execute() {
    for (nxe, bits) in [(true, 0x15), (false, 0xd)] {
        let mut machine = nested();
        if !nxe {
            machine.cpu.efer &= !(1 << 11);
        }
        machine.set_memory(entry(GUEST), GUEST | 7 | 1 << 63);
        assert_eq!(machine.run(), u64::from(code::NPF));
        // Without NXE the bit is reserved.
        assert_eq!(machine.get(at::EXIT_INFO1), bits | FINAL);
        assert_eq!(machine.get(at::EXIT_INFO2), GUEST);
        assert_eq!(machine.get(at::INSN_BYTES) as u8, 0, "there are none to be had");
    }
}

#[test]
fn the_guests_own_faults_come_first() {
    let mut machine = nested();
    machine.intercept(code::EXCEPTION + 14);
    machine.set_memory(G_PT + ((DATA - 0x20_0000) >> 12) * 8, DATA | 5);
    machine.set_memory(entry(DATA), 0);
    machine.put(at::CR0, machine.cpu.cr0 | 1 << 16);
    touch(&machine, true);
    machine.expect(code::EXCEPTION + 14, GUEST);
    assert_eq!((machine.get(at::EXIT_INFO1), machine.get(at::EXIT_INFO2)), (3, DATA + 8));
}

#[test]
fn write_protection_off_does_not_count_in_nested_tables() {
    let mut machine = nested();
    machine.set_memory(entry(DATA), DATA | 5);
    machine.put(at::CR0, machine.cpu.cr0 & !(1 << 16));
    touch(&machine, true);
    machine.expect(code::NPF, GUEST);
    assert_eq!(machine.get(at::EXIT_INFO1), 7 | FINAL);
}

/// A page that was read is known; the write still asks.
#[test]
fn a_write_after_a_read_is_noticed() {
    let mut machine = nested();
    machine.set_memory(entry(DATA), DATA | 5);
    machine.guest(|a| {
        a.mov(rbx, qword_ptr(DATA)).unwrap();
        a.mov(rbx, qword_ptr(DATA)).unwrap();
        a.mov(qword_ptr(DATA), rbx).unwrap();
    });
    machine.expect(code::NPF, GUEST + 16);
    assert_eq!(machine.get(at::EXIT_INFO1), 7 | FINAL);
}

#[test]
fn changes_of_the_nested_tables_are_seen_after_a_flush() {
    let mut machine = nested();
    touch(&machine, false);
    for (control, name) in [(1, "all"), (3, "the guest's"), (7, "non-global")] {
        for (page, value) in [(0x31_0000, 111), (0x32_0000, 222)] {
            machine.set_memory(page + 8, value);
            machine.set_memory(entry(DATA), page | 7);
            machine.put(at::RIP, GUEST);
            machine.write(VMCB + at::TLB_CONTROL as u64, &[control]);
            assert_eq!(machine.run(), u64::from(code::VMMCALL));
            assert_eq!(machine.cpu.gpr[3], value, "{name}");
        }
    }
}

#[test]
fn invlpga_forgets_a_guests_page() {
    let mut machine = nested();
    touch(&machine, false);
    assert_eq!(machine.run(), u64::from(code::VMMCALL));
    machine.set_memory(0x31_0008, 77);
    machine.set_memory(entry(DATA), 0x31_0000 | 7);
    machine.code(64, CODE, |a| {
        a.mov(rax, DATA).unwrap();
        a.mov(ecx, 1).unwrap();
        a.invlpga().unwrap();
        a.hlt().unwrap();
    });
    machine.cpu.rip = CODE;
    machine.cpu.activity = Activity::Running;
    run_to_halt(&mut machine.cpu);
    load(&machine.cpu, |a| {
        a.mov(rax, VMCB).unwrap();
        a.vmrun().unwrap();
        a.hlt().unwrap();
    });
    machine.put(at::RIP, GUEST);
    assert_eq!(machine.run(), u64::from(code::VMMCALL));
    assert_eq!(machine.cpu.gpr[3], 77);
}

/// Guests in the other modes of paging, with the host in long mode.
#[test]
fn guests_page_in_every_mode() {
    for mode in ["none", "32-bit", "PAE"] {
        let mut machine = nested();
        machine.put(at::EFER, EFER_SVME);
        machine.put(at::CR0, if mode == "none" { 0x11 } else { 0x8000_0011 });
        machine.put(at::CR4, if mode == "PAE" { 0x20 } else { 0x10 });
        machine.put16(at::SEGMENTS + 18, 0xc9b);
        match mode {
            "32-bit" => machine.set_memory(0x7_0000, 0x83),
            "PAE" => {
                machine.set_memory(0x7_0000, 0x7_1001);
                machine.set_memory(0x7_1000, 0x83);
                machine.set_memory(0x7_1008, 0x20_0083);
            }
            _ => {}
        }
        machine.put(at::CR3, 0x7_0000);
        machine.set_memory(entry(DATA), 0x31_0000 | 7);
        machine.set_memory(0x31_0000, 99);
        machine.code(32, GUEST, |a| {
            a.mov(ebx, dword_ptr(DATA as u32)).unwrap();
            a.vmmcall().unwrap();
        });
        let exit = machine.run();
        assert_eq!(exit, u64::from(code::VMMCALL), "{mode}: {exit:#x}");
        assert_eq!(machine.cpu.gpr[3], 99, "{mode}");
    }
}

/// With nested paging the page directory pointers are read when they are needed: a reserved bit is a
/// page fault, and no illegal state.
#[test]
fn page_directory_pointers_are_part_of_the_walk() {
    let mut machine = nested();
    machine.intercept(code::EXCEPTION + 14);
    machine.put(at::EFER, EFER_SVME);
    machine.put(at::CR0, 0x8000_0011);
    machine.put(at::CR4, 0x20);
    machine.put16(at::SEGMENTS + 18, 0xc9b);
    machine.put(at::CR3, 0x7_0000);
    machine.set_memory(0x7_0000, 0x7_1001);
    machine.set_memory(0x7_0018, 0x7_1003);
    machine.set_memory(0x7_1000, 0x83);
    machine.set_memory(0x7_1008, 0x20_0083);
    machine.code(32, GUEST, |a| a.mov(ebx, dword_ptr(0xc000_0000u32)).unwrap());
    machine.expect(code::EXCEPTION + 14, GUEST);
    assert_eq!(machine.get(at::EXIT_INFO1), 9);
    // Without nested paging it is one.
    machine.put(at::NP_ENABLE, 0);
    assert_eq!(machine.run(), INVALID);
}

#[test]
fn the_guest_has_a_page_attribute_table_of_its_own() {
    let mut machine = nested();
    let host = machine.cpu.msrs.pat;
    machine.guest(|a| {
        a.mov(ecx, 0x277).unwrap();
        a.rdmsr().unwrap();
        a.mov(ebx, eax).unwrap();
        a.mov(eax, 0x0406_0104).unwrap();
        a.wrmsr().unwrap();
        a.vmmcall().unwrap();
    });
    machine.put(at::G_PAT, 0x0606_0606_0606_0606);
    assert_eq!(machine.run(), u64::from(code::VMMCALL));
    assert_eq!(machine.cpu.gpr[3], 0x0606_0606);
    assert_eq!(machine.get(at::G_PAT) as u32, 0x0406_0104);
    assert_eq!(machine.cpu.msrs.pat, host);
}

/// An event whose delivery the host's tables stop is delivered again by the host.
#[test]
fn a_nested_fault_during_delivery_tells_of_the_event() {
    let mut machine = nested();
    machine.handlers();
    let stack = GUEST_STACK - 0x1000;
    machine.set_memory(entry(stack), 0);
    machine.guest(|a| a.int(0x31).unwrap());
    machine.expect(code::NPF, GUEST);
    assert_eq!(machine.get(at::EXIT_INT_INFO), 1 << 31 | 4 << 8 | 0x31);
    assert_eq!(machine.get(at::EXIT_INFO1), 6 | FINAL);
    machine.set_memory(entry(stack), stack | 7);
    machine.put(at::EVENT_INJ, machine.get(at::EXIT_INT_INFO));
    machine.put(at::NEXT_RIP, GUEST + 2);
    machine.expect(code::VMMCALL, HANDLERS + 16 * 0x31);
    assert_eq!(frame(&machine, 0), GUEST + 2);
}

/// VMLOAD and VMSAVE of the guest's own work on its physical addresses.
#[test]
fn virtual_vmsave_is_translated() {
    let mut machine = nested();
    machine.put(at::VIRT_EXT, 2);
    machine.set_memory(entry(DATA), 0x31_0000 | 7);
    machine.cpu.msrs.star = 0x1234;
    machine.guest(|a| {
        a.mov(rax, DATA).unwrap();
        a.vmsave().unwrap();
        a.vmmcall().unwrap();
    });
    assert_eq!(machine.run(), u64::from(code::VMMCALL));
    assert_eq!(machine.memory(0x31_0000 + at::STAR as u64), 0x1234);
}
