//! Page walks against the rules as the manuals state them, entry by entry.

use super::*;
use crate::regs::*;
use crate::testing::{cpu, long_mode};

/// Where the tables of the tests are: one page a level.
const TABLES: [u64; 4] = [0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000];
/// The linear address that is translated; its indices are 1, 2, 3, 4 from the top level down.
const LINEAR: u64 = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 0x123;
/// The page that the leaf maps.
const TARGET: u64 = 0x20_0000;

const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Execute];
const PRIVILEGES: [Privilege; 3] =
    [Privilege::User, Privilege::Supervisor, Privilege::SupervisorAc];

fn write(cpu: &Cpu, at: u64, value: u64) {
    cpu.memory.write(at, &value.to_le_bytes()).unwrap();
}

fn read(cpu: &Cpu, at: u64) -> u64 {
    let mut bytes = [0; 8];
    cpu.memory.read(at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// A CPU in long mode with the given tables switched on.
fn long_cpu() -> Cpu {
    let mut cpu = long_mode();
    cpu.efer |= EFER_NXE;
    cpu.cr3 = TABLES[0];
    cpu.tlb.flush_all();
    cpu
}

/// What an access may do given what all levels together say.
struct Combined {
    present: bool,
    writable: bool,
    user: bool,
    no_execute: bool,
}

/// The error code, or none, that the manuals give.
fn expected(cpu: &Cpu, page: &Combined, access: Access, privilege: Privilege) -> Option<u16> {
    let user = privilege == Privilege::User;
    let mut base = u16::from(user) << 2;
    match access {
        Access::Write => base |= 2,
        Access::Execute => {
            let nx = cpu.efer & EFER_NXE != 0 && cpu.cr4 & CR4_PAE != 0;
            base |= u16::from(nx || cpu.cr4 & CR4_SMEP != 0) << 4;
        }
        Access::Read => {}
    }
    if !page.present {
        return Some(base);
    }
    let violation = if user {
        !page.user
            || access == Access::Write && !page.writable
            || access == Access::Execute && page.no_execute
    } else {
        match access {
            Access::Read => {
                page.user && cpu.cr4 & CR4_SMAP != 0 && privilege == Privilege::Supervisor
            }
            Access::Write => {
                page.user && cpu.cr4 & CR4_SMAP != 0 && privilege == Privilege::Supervisor
                    || !page.writable && cpu.cr0 & CR0_WP != 0
            }
            Access::Execute => page.no_execute || page.user && cpu.cr4 & CR4_SMEP != 0,
        }
    };
    violation.then_some(base | 1)
}

fn set(value: &mut u64, bit: u64, on: bool) {
    if on {
        *value |= bit;
    } else {
        *value &= !bit;
    }
}

/// Tries all accesses under all protections.
fn try_all(cpu: &mut Cpu, linear: u64, page: &Combined, leaf: u64, phys: u64) {
    let clean = read(cpu, leaf);
    for protections in 0..8 {
        set(&mut cpu.cr0, CR0_WP, protections & 1 != 0);
        set(&mut cpu.cr4, CR4_SMEP, protections & 2 != 0);
        set(&mut cpu.cr4, CR4_SMAP, protections & 4 != 0);
        for access in ACCESSES {
            for privilege in PRIVILEGES {
                write(cpu, leaf, clean);
                cpu.tlb.invalidate(linear);
                cpu.cr2 = 0;
                let wanted = expected(cpu, page, access, privilege);
                let got = cpu.translate(linear, access, privilege);
                let now = read(cpu, leaf);
                match (got, wanted) {
                    (Ok(found), None) => {
                        assert_eq!(found.phys, phys);
                        let marks = if access == Access::Write { 0x60 } else { 0x20 };
                        assert_eq!(now, clean | marks);
                    }
                    (Err(fault), Some(code)) => {
                        assert_eq!(fault, Exception::with_code(vector::PF, code));
                        assert_eq!(cpu.cr2, linear);
                        assert_eq!(now & 0x40, 0, "a fault must not leave the page dirty");
                    }
                    (got, wanted) => {
                        panic!("{access:?} {privilege:?} {protections}: {got:?}, not {wanted:?}")
                    }
                }
            }
        }
    }
}

#[test]
fn rights_of_all_four_levels_combine() {
    let mut cpu = long_cpu();
    let indices = [1, 2, 3, 4];
    // Four bits a level: not present, read-only, supervisor, no execute.
    for case in 0..1u32 << 16 {
        // More restrictions at a time combine no differently.
        if case.count_ones() > 3 {
            continue;
        }
        let mut page = Combined { present: true, writable: true, user: true, no_execute: false };
        for level in 0..4 {
            let bits = case >> (4 * level) & 0xf;
            let next = TABLES.get(level + 1).copied().unwrap_or(TARGET);
            let mut entry = next | 7;
            set(&mut entry, 1, bits & 1 == 0);
            set(&mut entry, 2, bits & 2 == 0);
            set(&mut entry, 4, bits & 4 == 0);
            set(&mut entry, 1 << 63, bits & 8 != 0);
            page.present &= bits & 1 == 0;
            page.writable &= bits & 2 == 0;
            page.user &= bits & 4 == 0;
            page.no_execute |= bits & 8 != 0;
            write(&cpu, TABLES[level] + 8 * indices[level], entry);
        }
        try_all(&mut cpu, LINEAR, &page, TABLES[3] + 8 * 4, TARGET);
    }
}

#[test]
fn large_pages_of_long_mode_map_and_have_reserved_bits() {
    let mut cpu = long_cpu();
    write(&cpu, TABLES[0] + 8, TABLES[1] | 7);
    for bits in 0..16u64 {
        let mut entry = 0x4000_0080 | (7 & !bits);
        set(&mut entry, 1 << 63, bits & 8 != 0);
        let page = Combined {
            present: bits & 1 == 0,
            writable: bits & 2 == 0,
            user: bits & 4 == 0,
            no_execute: bits & 8 != 0,
        };
        write(&cpu, TABLES[1] + 16, entry);
        try_all(&mut cpu, LINEAR, &page, TABLES[1] + 16, 0x4000_0000 | LINEAR & 0x3fff_f000);
    }
    let reserved = Err(Exception::with_code(vector::PF, 9));
    let probe = |cpu: &mut Cpu| {
        cpu.tlb.invalidate(LINEAR);
        cpu.translate(LINEAR, Access::Read, Privilege::SupervisorAc).map(|found| found.phys)
    };
    for bit in 13..30 {
        write(&cpu, TABLES[1] + 16, 0x4000_0087 | 1 << bit);
        assert_eq!(probe(&mut cpu), reserved, "bit {bit} of a 1 GiB page");
    }
    write(&cpu, TABLES[1] + 16, TABLES[2] | 7);
    write(&cpu, TABLES[2] + 24, 0x20_1087);
    assert_eq!(probe(&mut cpu), Ok(0x20_0000 | LINEAR & 0x1f_f000), "bit 12 is PAT");
    for bit in 13..21 {
        write(&cpu, TABLES[2] + 24, 0x20_0087 | 1 << bit);
        assert_eq!(probe(&mut cpu), reserved, "bit {bit} of a 2 MiB page");
    }
    for bit in PHYS_BITS..52 {
        write(&cpu, TABLES[2] + 24, 0x20_0087 | 1 << bit);
        assert_eq!(probe(&mut cpu), reserved, "address bit {bit}");
    }
    for bit in 52..63 {
        write(&cpu, TABLES[2] + 24, 0x20_0087 | 1 << bit);
        assert!(probe(&mut cpu).is_ok(), "bit {bit} is the guest's");
    }
    write(&cpu, TABLES[0] + 8, TABLES[1] | 0x87);
    assert_eq!(probe(&mut cpu), reserved, "a PML4 entry can't map a page");
    write(&cpu, TABLES[0] + 8, TABLES[1] | 7);
    write(&cpu, TABLES[2] + 24, 0x20_0087 | 1 << 63);
    cpu.efer &= !EFER_NXE;
    assert_eq!(probe(&mut cpu), reserved, "NX without EFER.NXE");
}

#[test]
fn accessed_bits_are_set_level_by_level() {
    let mut cpu = long_cpu();
    write(&cpu, TABLES[0] + 8, TABLES[1] | 7);
    write(&cpu, TABLES[1] + 16, TABLES[2] | 7);
    write(&cpu, TABLES[2] + 24, 0);
    assert!(cpu.translate(LINEAR, Access::Read, Privilege::User).is_err());
    assert_eq!(read(&cpu, TABLES[0] + 8), TABLES[1] | 0x27);
    assert_eq!(read(&cpu, TABLES[1] + 16), TABLES[2] | 0x27);
    assert_eq!(read(&cpu, TABLES[2] + 24), 0);
}

#[test]
fn pae_and_two_level_tables() {
    let mut cpu = cpu();
    cpu.cr0 = CR0_PE | CR0_PG;
    cpu.cr3 = TABLES[0];
    cpu.cr4 = CR4_PAE;
    cpu.efer = EFER_NXE;
    let linear = 0xc060_4123;
    write(&cpu, TABLES[0] + 24, TABLES[2] | 1);
    write(&cpu, TABLES[2] + 24, TABLES[3] | 7);
    cpu.write_cr3(TABLES[0]).unwrap();
    for bits in 0..16u64 {
        let mut entry = TARGET | (7 & !bits);
        set(&mut entry, 1 << 63, bits & 8 != 0);
        write(&cpu, TABLES[3] + 32, entry);
        let page = Combined {
            present: bits & 1 == 0,
            writable: bits & 2 == 0,
            user: bits & 4 == 0,
            no_execute: bits & 8 != 0,
        };
        try_all(&mut cpu, linear, &page, TABLES[3] + 32, TARGET);
    }
    // The pointers are read and checked when CR3 is loaded, not at each walk.
    write(&cpu, TABLES[3] + 32, TARGET | 7);
    write(&cpu, TABLES[0] + 24, TABLES[2] | 3);
    cpu.tlb.flush_all();
    assert!(cpu.translate(linear, Access::Read, Privilege::SupervisorAc).is_ok());
    assert_eq!(cpu.write_cr3(TABLES[0]), Err(Exception::GP0));
    let reserved = Exception::with_code(vector::PF, 9);

    cpu.cr4 = CR4_PSE;
    cpu.tlb.flush_all();
    let word = |cpu: &Cpu, at: u64, value: u32| cpu.memory.write(at, &value.to_le_bytes()).unwrap();
    for bits in 0..64u32 {
        let (directory, table) = (7 & !bits, 7 & !(bits >> 3));
        word(&cpu, TABLES[0] + 4 * 0x301, TABLES[1] as u32 | directory);
        word(&cpu, TABLES[1] + 4 * 0x204, TARGET as u32 | table);
        word(&cpu, TABLES[1] + 4 * 0x205, 0);
        let both = directory & table;
        let page = Combined {
            present: both & 1 != 0,
            writable: both & 2 != 0,
            user: both & 4 != 0,
            no_execute: false,
        };
        try_all(&mut cpu, linear, &page, TABLES[1] + 4 * 0x204, TARGET);
    }
    // PSE-36: address bits 32 to 39 are in bits 13 to 20; bit 21 is reserved.
    word(&cpu, TABLES[0] + 4 * 0x301, 0x0040_0087 | 0xa5 << 13);
    cpu.tlb.flush_all();
    let found = cpu.translate(linear, Access::Read, Privilege::SupervisorAc).unwrap();
    assert_eq!(found.phys, 0xa5_0040_0000 | linear & 0x3f_f000);
    word(&cpu, TABLES[0] + 4 * 0x301, 0x0060_0087);
    cpu.tlb.flush_all();
    assert_eq!(cpu.translate(linear, Access::Read, Privilege::SupervisorAc).err(), Some(reserved));
}

/// Maps `LINEAR` to `phys` with further bits.
fn map(cpu: &Cpu, phys: u64, bits: u64) {
    write(cpu, TABLES[0] + 8, TABLES[1] | 7);
    write(cpu, TABLES[1] + 16, TABLES[2] | 7);
    write(cpu, TABLES[2] + 24, TABLES[3] | 7);
    write(cpu, TABLES[3] + 32, phys | bits | 7);
}

fn phys(cpu: &mut Cpu) -> u64 {
    cpu.translate(LINEAR, Access::Read, Privilege::User).unwrap().phys
}

#[test]
fn translations_stay_until_flushed() {
    let mut cpu = long_cpu();
    cpu.cr4 |= CR4_PGE;
    map(&cpu, TARGET, 0);
    assert_eq!(phys(&mut cpu), TARGET);
    map(&cpu, TARGET + 0x1000, 0);
    assert_eq!(phys(&mut cpu), TARGET, "an old translation may be used until it is flushed");
    cpu.tlb.invalidate(LINEAR);
    assert_eq!(phys(&mut cpu), TARGET + 0x1000);
    map(&cpu, TARGET, 0x100);
    cpu.write_cr3(TABLES[0]).unwrap();
    assert_eq!(phys(&mut cpu), TARGET);
    map(&cpu, TARGET + 0x2000, 0x100);
    cpu.write_cr3(TABLES[0]).unwrap();
    assert_eq!(phys(&mut cpu), TARGET, "a global page survives CR3");
    cpu.write_cr4(cpu.cr4 & !CR4_PGE).unwrap();
    assert_eq!(phys(&mut cpu), TARGET + 0x2000, "but not a change of CR4.PGE");
}

#[test]
fn address_spaces_are_kept_apart_by_pcid() {
    let mut cpu = long_cpu();
    cpu.write_cr4(cpu.cr4 | CR4_PCIDE).unwrap();
    map(&cpu, TARGET, 0);
    cpu.write_cr3(TABLES[0] | 1).unwrap();
    assert_eq!(phys(&mut cpu), TARGET);
    map(&cpu, TARGET + 0x1000, 0);
    cpu.write_cr3(TABLES[0] | 2).unwrap();
    cpu.write_cr3(TABLES[0] | 1 | 1 << 63).unwrap();
    assert_eq!(phys(&mut cpu), TARGET, "bit 63 keeps what PCID 1 had");
    cpu.write_cr3(TABLES[0] | 2 | 1 << 63).unwrap();
    assert_eq!(phys(&mut cpu), TARGET + 0x1000, "which is not PCID 2's");
    cpu.write_cr3(TABLES[0] | 1 | 1 << 63).unwrap();
    cpu.tlb.flush_space(2, false);
    cpu.write_cr3(TABLES[0] | 2 | 1 << 63).unwrap();
    map(&cpu, TARGET + 0x2000, 0);
    assert_eq!(phys(&mut cpu), TARGET + 0x2000, "PCID 2 was flushed");
    cpu.write_cr3(TABLES[0] | 1).unwrap();
    assert_eq!(phys(&mut cpu), TARGET + 0x2000, "without bit 63 PCID 1 is flushed");
}

#[test]
fn invlpg_forgets_all_pieces_of_a_large_page() {
    let mut cpu = long_cpu();
    map(&cpu, TARGET, 0);
    write(&cpu, TABLES[2] + 24, 0x20_0087);
    let at = |cpu: &mut Cpu, linear: u64| {
        cpu.translate(linear, Access::Read, Privilege::User).unwrap().phys
    };
    let (one, other) = (LINEAR & !0x1f_ffff, LINEAR | 0x1f_f000);
    assert_eq!((at(&mut cpu, one), at(&mut cpu, other)), (0x20_0000, 0x3f_f000));
    write(&cpu, TABLES[2] + 24, 0x87);
    cpu.tlb.invalidate(LINEAR);
    assert_eq!((at(&mut cpu, one), at(&mut cpu, other)), (0, 0x1f_f000));
}

#[test]
fn stores_across_pages_change_nothing_if_either_faults() {
    let mut cpu = long_cpu();
    map(&cpu, TARGET, 0);
    write(&cpu, TABLES[3] + 40, 0);
    let end = (LINEAR & !0xfff) + 0xffc;
    write(&cpu, TARGET + 0xff8, 0x1111_1111_1111_1111);
    cpu.cr4 &= !CR4_SMAP;
    assert_eq!(cpu.store::<u64>(3, end, 0).err(), Some(Exception::with_code(vector::PF, 2)),);
    assert_eq!(cpu.cr2, end + 4);
    assert_eq!(read(&cpu, TARGET + 0xff8), 0x1111_1111_1111_1111);
    write(&cpu, TABLES[3] + 40, TARGET + 0x2007);
    cpu.store::<u64>(3, end, 0x8877_6655_4433_2211).unwrap();
    assert_eq!(read(&cpu, TARGET + 0xff8) >> 32, 0x4433_2211);
    assert_eq!(read(&cpu, TARGET + 0x2000) & 0xffff_ffff, 0x8877_6655);
    assert_eq!(cpu.load::<u64>(3, end), Ok(0x8877_6655_4433_2211));
    let old = cpu.update::<u64>(3, end, true, |value| value.wrapping_add(1));
    assert_eq!(old, Ok(0x8877_6655_4433_2211));
    assert_eq!(cpu.load::<u64>(3, end), Ok(0x8877_6655_4433_2212));
}

#[test]
fn addresses_that_are_not_canonical_raise_by_segment() {
    let mut cpu = long_cpu();
    let hole = 1 << 47;
    assert_eq!(cpu.load::<u8>(3, hole), Err(Exception::GP0));
    assert_eq!(cpu.load::<u8>(2, hole), Err(Exception::SS0));
    assert_eq!(cpu.store::<u8>(0, u64::MAX >> 1, 0), Err(Exception::GP0));
    // The last byte is what leaves the lower half; its page is the one that faults first.
    write(&cpu, TABLES[0] + 8 * 255, 0);
    assert_eq!(cpu.load::<u64>(3, hole - 4), Err(Exception::with_code(vector::PF, 0)),);
    assert!(is_canonical(0xffff_8000_0000_0000, LINEAR_BITS));
    assert!(!is_canonical(0xffff_7fff_ffff_ffff, LINEAR_BITS));
    assert!(is_canonical(0xffff_7fff_ffff_ffff, LINEAR_BITS_57));
}
