//! Page rights: every combination of a page table entry's bits with those of the directory's, of the
//! controls, and of the kinds of access; error codes, accessed and dirty bits (SDM volume 3, sections
//! 4.6 to 4.8; APM volume 2, section 5.4 to 5.6).

use crate::kit::*;

#[repr(C, align(4096))]
struct Table([u64; 512]);

static mut PDPT1: Table = Table([0; 512]);
static mut PD1: Table = Table([0; 512]);
static mut PT1: Table = Table([0; 512]);
static mut PAGE: Table = Table([0; 512]);
/// Where an entry of the directory that says PS points to: 2 MiB, whose first bytes hold code.
const LARGE: u64 = 0x60_0000;
/// Mapped by nothing else; slot 2 of the PML4.
const VA: u64 = 2 << 39 | 3 << 12;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const RESERVED: u64 = 1 << 51;
const NX: u64 = 1 << 63;

const WP: u64 = 1 << 16;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;
const NXE: u64 = 1 << 11;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Access {
    Read,
    Write,
    Fetch,
}

#[derive(Clone, Copy)]
struct Controls {
    wp: bool,
    nxe: bool,
    smep: bool,
    smap: bool,
    ac: bool,
}

#[derive(Debug, PartialEq)]
struct Outcome {
    /// The page fault's error code.
    fault: Option<u64>,
    pde: u64,
    pte: u64,
}

/// What the manuals say.
fn expected(pde: u64, pte: u64, controls: Controls, access: Access, user: bool) -> Outcome {
    let mut outcome = Outcome { fault: None, pde, pte };
    let large = pde & PS != 0;
    let mut code = match access {
        Access::Read => 0,
        Access::Write => 2,
        Access::Fetch if controls.nxe || controls.smep => 16,
        Access::Fetch => 0,
    };
    if user {
        code |= 4;
    }
    let bad = |entry: u64| entry & RESERVED != 0 || entry & NX != 0 && !controls.nxe;
    if pde & P == 0 {
        outcome.fault = Some(code);
        return outcome;
    }
    if bad(pde) {
        outcome.fault = Some(code | 9);
        return outcome;
    }
    let mut rights = pde & (W | U);
    let mut nx = pde & NX != 0;
    if !large {
        outcome.pde |= A;
        if pte & P == 0 {
            outcome.fault = Some(code);
            return outcome;
        }
        if bad(pte) {
            outcome.fault = Some(code | 9);
            return outcome;
        }
        rights &= pte;
        nx |= pte & NX != 0;
    }
    let user_page = rights & U != 0;
    let allowed = match (user, access) {
        (true, _) if !user_page => false,
        (true, Access::Write) => rights & W != 0,
        (_, Access::Fetch) => !nx && (user || !user_page || !controls.smep),
        (false, _) if user_page && controls.smap && !controls.ac => false,
        (false, Access::Write) => rights & W != 0 || !controls.wp,
        _ => true,
    };
    if !allowed {
        outcome.fault = Some(code | 1);
        return outcome;
    }
    let leaf = if large { &mut outcome.pde } else { &mut outcome.pte };
    *leaf |= A | if access == Access::Write { D } else { 0 };
    outcome
}

fn perform(access: Access, user: bool, ac: bool) -> Option<u64> {
    let vector = match (access, user, ac) {
        (Access::Read, true, _) => user!(["mov al, [rdi]"], in("rdi") VA, out("al") _),
        (Access::Write, true, _) => user!(["mov [rdi], al"], in("rdi") VA, in("al") 0xc3u8),
        (Access::Fetch, true, _) => user!(["call rdi"], in("rdi") VA),
        (Access::Read, false, false) => attempt!(["mov al, [rdi]"], in("rdi") VA, out("al") _),
        (Access::Write, false, false) => attempt!(["mov [rdi], al"], in("rdi") VA, in("al") 0xc3u8),
        (Access::Read, false, true) => {
            attempt!(["stac", "mov al, [rdi]", "clac"], in("rdi") VA, out("al") _)
        }
        (Access::Write, false, true) => {
            attempt!(["stac", "mov [rdi], al", "clac"], in("rdi") VA, in("al") 0xc3u8)
        }
        (Access::Fetch, false, _) => attempt!(["call rdi"], in("rdi") VA),
    };
    (vector == PF).then(|| {
        if last().cr2 != VA {
            check("CR2", last().cr2, VA);
        }
        last().trap.code
    })
}

fn entries(bits: &[u64]) -> impl Iterator<Item = u64> + '_ {
    (0..1u32 << bits.len()).map(move |n| {
        bits.iter().enumerate().filter(|(i, _)| n >> i & 1 != 0).fold(0, |all, (_, bit)| all | bit)
    })
}

fn set_controls(controls: Controls) {
    let on = |yes: bool, bit: u64| if yes { bit } else { 0 };
    set_cr0(cr0() & !WP | on(controls.wp, WP));
    wrmsr(0xc000_0080, rdmsr(0xc000_0080) & !NXE | on(controls.nxe, NXE));
    set_cr4(cr4() & !(SMEP | SMAP) | on(controls.smep, SMEP) | on(controls.smap, SMAP));
}

fn all_with(controls: Controls, reserved: bool) {
    set_controls(controls);
    let (pd, pt) = unsafe { ((&raw mut PD1).cast::<u64>(), (&raw mut PT1).cast::<u64>()) };
    let page = (&raw mut PAGE) as u64;
    let few = [P | W | U, P | W | U | A, P | U, P | W, P | W | U | NX, 0, P | W | U | RESERVED];
    let large = [P, W, U, A, D, NX];
    let mut run = |pde: u64, pte: u64| {
        if !reserved && (pde | pte) & RESERVED != 0 {
            return;
        }
        for access in [Access::Read, Access::Write, Access::Fetch] {
            for user in [false, true] {
                unsafe {
                    pd.write_volatile(pde);
                    pt.add(3).write_volatile(pte);
                }
                invlpg(VA);
                let fault = perform(access, user, controls.ac);
                let got = unsafe {
                    Outcome { fault, pde: pd.read_volatile(), pte: pt.add(3).read_volatile() }
                };
                let mut wanted = expected(pde, pte, controls, access, user);
                if wanted.fault.is_some() {
                    // Whether tables are marked on the way to a fault is the processor's choice.
                    wanted.pde = got.pde & (A | wanted.pde) | wanted.pde & !A;
                }
                if got != wanted {
                    let Controls { wp, nxe, smep, smap, ac } = controls;
                    check(
                        format_args!(
                            "{access:?} user {user} pde {pde:x} pte {pte:x} wp {wp} nxe {nxe} smep {smep} smap {smap} ac {ac}"
                        ),
                        got,
                        wanted,
                    );
                } else {
                    check("", true, true);
                }
            }
        }
    };
    for upper in few {
        for lower in entries(&[P, W, U, A, D, NX]) {
            run(upper | (&raw mut PT1) as u64, lower | page);
        }
        run(upper | (&raw mut PT1) as u64, P | W | U | RESERVED | page);
    }
    for bits in entries(&large) {
        run(bits | PS | LARGE, 0);
    }
    run(P | W | U | PS | LARGE | RESERVED, 0);
    // Address bits of a large page below its size are reserved, but for PAT at bit 12.
    run(P | W | U | PS | LARGE | 1 << 12, 0);
    unsafe { pd.write_volatile(P | W | U | PS | LARGE | 1 << 13) };
    invlpg(VA);
    check("low address bits of a large page", perform(Access::Read, false, controls.ac), Some(9));
}

/// Translations may be kept until they are invalidated, but a fault looks again.
fn stale() {
    let (pd, pt) = unsafe { ((&raw mut PD1).cast::<u64>(), (&raw mut PT1).cast::<u64>()) };
    let page = (&raw mut PAGE) as u64;
    unsafe {
        pd.write_volatile((&raw mut PT1) as u64 | P | W | U);
        pt.add(3).write_volatile(page | P);
    }
    invlpg(VA);
    set_cr0(cr0() | WP);
    check("read", perform(Access::Read, false, false), None);
    check("write to a page that is read-only", perform(Access::Write, false, false), Some(3));
    unsafe { pt.add(3).write_volatile(page | P | W) };
    check("more rights need no invalidation", perform(Access::Write, false, false), None);
    unsafe { pt.add(3).write_volatile(0) };
    invlpg(VA);
    check("gone after INVLPG", perform(Access::Read, false, false), Some(0));
    unsafe { pt.add(3).write_volatile(page | P | W) };
    check("there without INVLPG", perform(Access::Read, false, false), None);
    // The accessed bit is not set again by a cached translation, but a write sets the dirty bit.
    unsafe { pt.add(3).write_volatile(page | P | W | A) };
    invlpg(VA);
    check("read", perform(Access::Read, false, false), None);
    check("write", perform(Access::Write, false, false), None);
    check("dirty", unsafe { pt.add(3).read_volatile() } & D, D);
}

pub fn run() {
    unsafe {
        let pml4 = (&raw mut PML4).cast::<u64>();
        pml4.add(2).write_volatile((&raw mut PDPT1) as u64 | 7);
        (&raw mut PDPT1).cast::<u64>().write_volatile((&raw mut PD1) as u64 | 7);
        (&raw mut PAGE).cast::<u8>().write_volatile(0xc3);
        ((LARGE + 0x3000) as *mut u8).write_volatile(0xc3);
    }
    let smep = has(7, 1, 7);
    let smap = has(7, 1, 20);
    let widths = cpuid(0x8000_0008, 0)[0];
    let reserved = widths & 0xff < 52;
    for bits in 0..16u32 {
        let bit = |n: u32| bits >> n & 1 != 0;
        let controls = Controls { wp: bit(0), nxe: bit(1), smep: bit(2), smap: bit(3), ac: false };
        if controls.smep && !smep || controls.smap && !smap {
            continue;
        }
        all_with(controls, reserved);
        if controls.smap {
            all_with(Controls { ac: true, ..controls }, reserved);
        }
    }
    set_controls(Controls { wp: true, nxe: true, smep: false, smap: false, ac: false });
    stale();
}
