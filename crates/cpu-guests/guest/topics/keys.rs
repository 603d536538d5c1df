//! Protection keys: PKRU for user pages, PKRS for the supervisor's (SDM volume 3, section 4.6.2; APM
//! volume 2, section 5.6.7), and the instructions RDPKRU and WRPKRU.

use crate::kit::*;

#[repr(C, align(4096))]
struct Table([u64; 512]);
static mut PT1: Table = Table([0; 512]);
static mut PAGE: Table = Table([0; 512]);

const KEY: u64 = 5;
const PKE: u64 = 1 << 22;
const PKS: u64 = 1 << 24;
const WP: u64 = 1 << 16;
const PKRS: u32 = 0x6e1;
/// Error code bits.
const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const BY_KEY: u64 = 32;

fn rdpkru() -> u32 {
    let value;
    unsafe { core::arch::asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _) };
    value
}
fn wrpkru(value: u32) {
    unsafe { core::arch::asm!("wrpkru", in("ecx") 0, in("eax") value, in("edx") 0) };
}

fn outcome(vector: u64) -> Option<u64> {
    if vector == NONE { None } else { Some(vector << 32 | last().trap.code) }
}
fn fault(code: u64) -> Option<u64> {
    Some(PF << 32 | code)
}

/// The page at 1 GiB + 8 KiB, whose table entry is set to `bits`.
fn map(bits: u64) -> u64 {
    const VA: u64 = (1 << 30) + 0x2000;
    unsafe {
        // The directory of the second GiB: its first entry.
        (&raw mut PD).cast::<u64>().add(512).write_volatile((&raw mut PT1) as u64 | 7);
        let page = (&raw mut PAGE) as u64;
        (&raw mut PT1).cast::<u64>().add(2).write_volatile(page | bits | KEY << 59);
    }
    invlpg(VA);
    invlpg(VA + USER_ALIAS);
    VA
}

fn read(at: u64) -> Option<u64> {
    outcome(attempt!(["mov al, [rdi]"], in("rdi") at, out("al") _))
}
fn write(at: u64) -> Option<u64> {
    outcome(attempt!(["mov [rdi], al"], in("rdi") at, in("al") 0xc3u8))
}
fn fetch(at: u64) -> Option<u64> {
    outcome(attempt!(["call rdi"], in("rdi") at))
}
fn user_read(at: u64) -> Option<u64> {
    outcome(user!(["mov al, [rdi]"], in("rdi") at, out("al") _))
}
fn user_write(at: u64) -> Option<u64> {
    outcome(user!(["mov [rdi], al"], in("rdi") at, in("al") 0xc3u8))
}
fn user_fetch(at: u64) -> Option<u64> {
    outcome(user!(["call rdi"], in("rdi") at))
}

fn instructions() {
    set_cr4(cr4() & !PKE);
    check("OSPKE follows CR4", has(7, 2, 4), false);
    let rd = || attempt!(["rdpkru"], in("ecx") 0, out("eax") _, out("edx") _);
    let wr = |c: u32, d: u32| attempt!(["wrpkru"], in("ecx") c, in("eax") 0, in("edx") d);
    check("RDPKRU without CR4.PKE", rd(), UD);
    check("WRPKRU without CR4.PKE", wr(0, 0), UD);
    check("CR4.PKE", try_cr4(cr4() | PKE), NONE);
    check("OSPKE follows CR4", has(7, 2, 4), true);
    check("RDPKRU", rd(), NONE);
    check("WRPKRU, ECX not zero", wr(1, 0), GP);
    check("WRPKRU, EDX not zero", wr(0, 1), GP);
    let vector = attempt!(["rdpkru"], in("ecx") 1, out("eax") _, out("edx") _);
    check("RDPKRU, ECX not zero", vector, GP);
    wrpkru(0xdead_beec);
    check("what was written", rdpkru(), 0xdead_beec);
    wrpkru(0);
    let vector = user!(["wrpkru"], in("ecx") 0, in("eax") 0x40, in("edx") 0);
    check("WRPKRU at CPL 3", vector, NONE);
    check("what it wrote", rdpkru(), 0x40);
    let edx: u32;
    unsafe {
        core::arch::asm!("rdpkru", in("ecx") 0, out("eax") _, inout("edx") 0xffff_ffffu32 => edx)
    };
    check("RDPKRU clears EDX", edx, 0);
    wrpkru(0);
}

fn user_pages() {
    let at = map(7);
    let to = at + USER_ALIAS;
    let no_access = 1u32 << (2 * KEY);
    let no_write = 2u32 << (2 * KEY);
    for wp in [false, true] {
        set_cr0(cr0() & !WP | if wp { WP } else { 0 });
        wrpkru(0);
        check("no bits", [read(to), write(to), user_read(to), user_write(to)], [None; 4]);
        wrpkru(!(3 << (2 * KEY)));
        check("other keys", [read(to), write(to)], [None; 2]);
        wrpkru(no_access);
        let k = PRESENT | BY_KEY;
        check("AD, supervisor", [read(to), write(to)], [fault(k), fault(k | WRITE)]);
        let u = k | USER;
        check("AD, user", [user_read(to), user_write(to)], [fault(u), fault(u | WRITE)]);
        check("AD, fetch", [fetch(to), user_fetch(to)], [None; 2]);
        wrpkru(no_write);
        check("WD, reads", [read(to), user_read(to)], [None; 2]);
        check("WD, user writes", user_write(to), fault(u | WRITE));
        let heeded = if wp { fault(k | WRITE) } else { None };
        check("WD, supervisor writes", write(to), heeded);
    }
    // A page that is read-only besides: the key is told, too.
    let at = map(5) + USER_ALIAS;
    wrpkru(no_write);
    check("read-only and WD", user_write(at), fault(PRESENT | WRITE | USER | BY_KEY));
    wrpkru(0);
    check("read-only", user_write(at), fault(PRESENT | WRITE | USER));
    // A page that is not there has no key.
    wrpkru(no_access);
    let at = map(6) + USER_ALIAS;
    check("not present", user_read(at), fault(USER));
    // The supervisor's pages have nothing to do with PKRU.
    let at = map(3);
    check("supervisor page", [read(at), write(at)], [None; 2]);
    check("supervisor page, user", user_read(at + USER_ALIAS), fault(PRESENT | USER));
    set_cr4(cr4() & !PKE);
    let at = map(7) + USER_ALIAS;
    check("CR4.PKE clear", [user_read(at), user_write(at)], [None; 2]);
    set_cr4(cr4() | PKE);
    check("CR4.PKE set again", user_read(at), fault(PRESENT | USER | BY_KEY));
    wrpkru(0);
}

fn supervisor_pages() {
    if !has(7, 2, 31) {
        check("PKRS without the feature", try_wrmsr(PKRS, 0), GP);
        check("CR4.PKS without the feature", try_cr4(cr4() | PKS), GP);
        return skip("PKS");
    }
    check("PKRS, upper half", try_wrmsr(PKRS, 1 << 32), GP);
    check("PKRS", try_wrmsr(PKRS, 0xffff_fff0), NONE);
    check("PKRS reads back", rdmsr(PKRS), 0xffff_fff0);
    wrmsr(PKRS, 0);
    check("CR4.PKS", try_cr4(cr4() | PKS), NONE);
    let at = map(3);
    let no_access = 1u64 << (2 * KEY);
    let no_write = 2u64 << (2 * KEY);
    for wp in [false, true] {
        set_cr0(cr0() & !WP | if wp { WP } else { 0 });
        wrmsr(PKRS, no_access);
        let k = PRESENT | BY_KEY;
        check("AD", [read(at), write(at)], [fault(k), fault(k | WRITE)]);
        check("AD, fetch", fetch(at), None);
        wrmsr(PKRS, no_write);
        check("WD, read", read(at), None);
        check("WD, write", write(at), if wp { fault(k | WRITE) } else { None });
        wrmsr(PKRS, 0);
        check("no bits", [read(at), write(at)], [None; 2]);
    }
    wrmsr(PKRS, no_access);
    let at = map(7);
    check("user page", read(at + USER_ALIAS), None);
    set_cr4(cr4() & !PKS);
    let at = map(3);
    check("CR4.PKS clear", read(at), None);
    wrmsr(PKRS, 0);
}

pub fn run() {
    unsafe { (&raw mut PAGE).cast::<u8>().write_volatile(0xc3) };
    if !has(7, 2, 3) {
        check("CR4.PKE without the feature", try_cr4(cr4() | PKE), GP);
        let vector = attempt!(["rdpkru"], in("ecx") 0, out("eax") _, out("edx") _);
        check("RDPKRU without the feature", vector, UD);
        return skip("PKU");
    }
    instructions();
    user_pages();
    supervisor_pages();
}
