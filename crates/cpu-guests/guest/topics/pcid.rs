//! Process-context identifiers: CR4.PCIDE, CR3 with and without a flush, INVPCID with all its faults (SDM
//! volume 3, section 4.10; APM volume 2, section 5.5.3).

use crate::kit::*;

#[repr(C, align(4096))]
struct Table([u64; 512]);
static mut OTHER_PML4: Table = Table([0; 512]);
static mut PT1: Table = Table([0; 512]);
static mut PAGES: [Table; 2] = [const { Table([0; 512]) }; 2];

const PCIDE: u64 = 1 << 17;
const PGE: u64 = 1 << 7;
const KEEP: u64 = 1 << 63;
const VA: u64 = (1 << 30) + 0x2000;

fn invpcid(kind: u64, low: u64, address: u64) -> u64 {
    let operand = [low, address];
    attempt!(["invpcid {0}, [{1}]"], in(reg) kind, in(reg) &operand)
}

/// Maps the page at [`VA`] to one of the two pages, and does not invalidate.
fn point(n: usize, bits: u64) {
    unsafe {
        let page = (&raw mut PAGES).cast::<Table>().add(n) as u64;
        (&raw mut PT1).cast::<u64>().add(2).write_volatile(page | 3 | bits);
    }
}
fn look() -> u64 {
    unsafe { (VA as *const u64).read_volatile() }
}

fn faults(has_pcid: bool) {
    check("kind 4", invpcid(4, 0, 0), GP);
    check("kind with upper bits", invpcid(1 << 32 | 1, 0, 0), GP);
    check("reserved bits", invpcid(0, 1 << 12, 0), GP);
    check("reserved bits, kind 2", invpcid(2, 1 << 63, 0), GP);
    check("an address that is not canonical", invpcid(0, 0, 1 << 62), GP);
    check("which kind 1 does not look at", invpcid(1, 0, 1 << 62), NONE);
    check("nor does kind 2", invpcid(2, 0, 1 << 62), NONE);
    check("nor does kind 3", invpcid(3, 0, 1 << 62), NONE);
    for kind in 0..2 {
        let expected = if cr4() & PCIDE != 0 { NONE } else { GP };
        check("another PCID than 0", invpcid(kind, 5, 0x1000), expected);
    }
    for kind in 2..4 {
        check("which kinds 2 and 3 do not look at", invpcid(kind, 5, 0), NONE);
    }
    let operand = [0u64; 2];
    let at = &raw const operand as u64 + USER_ALIAS;
    check("at CPL 3", user!(["invpcid {0}, [{1}]"], in(reg) 0u64, in(reg) at), GP);
    check(
        "operand in a page that is not there",
        attempt!(["invpcid {0}, [{1}]"], in(reg) 0u64, in(reg) 5u64 << 39),
        PF,
    );
    let _ = has_pcid;
}

fn spaces() {
    let own = cr3();
    let other = (&raw mut OTHER_PML4) as u64;
    unsafe {
        for n in 0..2 {
            let entry = (&raw const PML4).cast::<u64>().add(n).read_volatile();
            (&raw mut OTHER_PML4).cast::<u64>().add(n).write_volatile(entry);
        }
        for n in 0..2 {
            (&raw mut PAGES).cast::<Table>().add(n).cast::<u64>().write_volatile(0x1000 + n as u64);
        }
        (&raw mut PD).cast::<u64>().add(512).write_volatile((&raw mut PT1) as u64 | 3);
    }
    check("CR3, PCID 1", try_cr3(own | 1), NONE);
    check("bit 63 is not kept", cr3(), own | 1);
    point(0, 0);
    invlpg(VA);
    check("page 0", look(), 0x1000);
    point(1, 0);
    // Another space has translations of its own.
    set_cr3(other | 2);
    check("page 1 in a fresh space", look(), 0x1001);
    point(0, 0);
    set_cr3(own | 1);
    check("CR3 without KEEP flushes", look(), 0x1000);
    point(1, 0);
    check("single-address INVPCID of this space", invpcid(0, 1, VA), NONE);
    check("page 1", look(), 0x1001);
    point(0, 0);
    check("INVPCID of another space", invpcid(1, 2, 0), NONE);
    set_cr3(other | 2 | KEEP);
    check("it is empty", look(), 0x1000);
    point(1, 0);
    check("INVPCID of all", invpcid(3, 0, 0), NONE);
    check("page 1", look(), 0x1001);
    // Global pages are in all spaces, and stay.
    set_cr4(cr4() | PGE);
    point(0, 1 << 8);
    invlpg(VA);
    check("a global page", look(), 0x1000);
    point(1, 1 << 8);
    check("INVPCID of all, with global ones", invpcid(2, 0, 0), NONE);
    check("page 1", look(), 0x1001);
    point(0, 0);
    set_cr4(cr4() & !PGE);
    check("changing CR4.PGE flushes all", look(), 0x1000);
    check("CR0.PG can't be cleared with PCIDE", try_cr0(cr0() & !(1 << 31)), GP);
    set_cr3(own);
}

pub fn run() {
    let has_pcid = has(1, 2, 17);
    let has_invpcid = has(7, 1, 10);
    let own = cr3();
    if has_invpcid {
        faults(has_pcid);
    } else {
        check("INVPCID without the feature", invpcid(2, 0, 0), UD);
    }
    if !has_pcid {
        check("CR4.PCIDE without the feature", try_cr4(cr4() | PCIDE), GP);
        set_cr4(cr4() & !PCIDE);
        check("CR3 bit 63 without PCIDs", try_cr3(own | KEEP), GP);
        return skip("PCID");
    }
    check("CR3 bit 63 with PCIDE clear", try_cr3(own | KEEP), GP);
    set_cr3(own | 8);
    check("CR4.PCIDE with CR3's low bits set", try_cr4(cr4() | PCIDE), GP);
    set_cr3(own);
    check("CR4.PCIDE", try_cr4(cr4() | PCIDE), NONE);
    if has_invpcid {
        faults(true);
        spaces();
    }
    set_cr3(own | 7);
    check("CR4.PCIDE can be cleared at any time", try_cr4(cr4() & !PCIDE), NONE);
    set_cr3(own);
}
