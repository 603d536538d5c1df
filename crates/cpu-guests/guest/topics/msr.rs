//! Model-specific registers: what they hold, which bits are refused (APM volume 2, appendix A; SDM volume
//! 4, chapter 2).

use crate::kit::*;

/// A register that takes each of `good` and reads it back, and raises #GP for each of `bad`.
fn register(name: &str, index: u32, good: &[u64], bad: &[u64]) {
    let Some(old) = try_rdmsr(index) else {
        check(format_args!("{name} can be read"), false, true);
        return;
    };
    for &value in good {
        check(format_args!("{name} := {value:#x}"), try_wrmsr(index, value), NONE);
        check(format_args!("{name} reads back"), try_rdmsr(index), Some(value));
    }
    for &value in bad {
        check(format_args!("{name} := {value:#x}"), try_wrmsr(index, value), GP);
    }
    check(format_args!("{name} restored"), try_wrmsr(index, old), NONE);
}

fn absent(name: &str, index: u32) {
    check(format_args!("{name} is not there"), try_rdmsr(index), None);
    check(format_args!("{name} can't be written"), try_wrmsr(index, 0), GP);
}

fn bases() {
    const ADDRESS: u64 = 0x0000_7123_4567_89ab;
    const KERNEL: u64 = 0xffff_8123_4567_89ab;
    const NOWHERE: u64 = 0x8123_4567_89ab_0000;
    let addresses = [ADDRESS, KERNEL, 0];
    register("FS_BASE", 0xc000_0100, &addresses, &[NOWHERE]);
    register("GS_BASE", 0xc000_0101, &addresses, &[NOWHERE]);
    register("KERNEL_GS_BASE", 0xc000_0102, &addresses, &[NOWHERE]);
    register("LSTAR", 0xc000_0082, &addresses, &[NOWHERE]);
    register("CSTAR", 0xc000_0083, &addresses, &[NOWHERE]);
    register("STAR", 0xc000_0081, &[0x0023_0008_1234_5678, 0], &[]);
    register("SYSENTER_CS", 0x174, &[0x1234, 0], &[]);
    if is_intel() {
        register("SYSENTER_ESP", 0x175, &addresses, &[NOWHERE]);
        register("SYSENTER_EIP", 0x176, &addresses, &[NOWHERE]);
    } else {
        register("SYSENTER_ESP", 0x175, &[ADDRESS, 0], &[]);
        register("SYSENTER_EIP", 0x176, &[ADDRESS, 0], &[]);
    }
    register("SFMASK", 0xc000_0084, &[0x4700, 0xffff_ffff], &[]);
}

fn efer() {
    const EFER: u32 = 0xc000_0080;
    let now = rdmsr(EFER);
    check("EFER: LMA and LME", now & 0x500, 0x500);
    check("EFER: LMA is read-only", try_wrmsr(EFER, now & !(1 << 10)), NONE);
    check("EFER reads back", rdmsr(EFER), now);
    check("EFER: LME can't change while paging", try_wrmsr(EFER, now & !(1 << 8)), GP);
    for bit in [1, 2, 7, 9, 16, 19, 32, 63] {
        check(format_args!("EFER bit {bit}"), try_wrmsr(EFER, now | 1 << bit), GP);
    }
    let fast = has(0x8000_0001, 3, 25);
    check("EFER: FFXSR", try_wrmsr(EFER, now | 1 << 14), if fast { NONE } else { GP });
    wrmsr(EFER, now);
    check("EFER: SCE", try_wrmsr(EFER, now & !1), NONE);
    wrmsr(EFER, now);
}

fn memory_types() {
    register(
        "PAT",
        0x277,
        &[0x0007_0406_0007_0406, 0x0707_0707_0707_0707, 0x0105_0606_0400_0106],
        &[2, 3 << 8, 8 << 56, 0x10],
    );
    let cap = rdmsr(0xfe);
    check("MTRRcap can't be written", try_wrmsr(0xfe, cap), GP);
    register("MTRRdefType", 0x2ff, &[0xc06, 0x800, 0], &[2, 3, 7, 0x100, 1 << 12, 1 << 32]);
    let width = cpuid(0x8000_0008, 0)[0] & 0xff;
    for n in 0..(cap & 0xff) as u32 {
        register("MTRRphysBase", 0x200 + 2 * n, &[0, 0x8000_0006, 0x1001], &[2, 0x106, 1 << width]);
        register("MTRRphysMask", 0x201 + 2 * n, &[0, 0xffff_f800, 0x1000], &[0x400, 1, 1 << width]);
    }
    if cap & 0x100 != 0 {
        for index in [0x250, 0x258, 0x259].into_iter().chain(0x268..0x270) {
            register(
                "MTRRfix",
                index,
                &[0x0606_0606_0606_0606, 0x0504_0100_0000_0000],
                &[2, 3 << 56, 7],
            );
        }
    }
}

fn time() {
    const TSC: u32 = 0x10;
    const ADJUST: u32 = 0x3b;
    wrmsr(TSC, 1 << 40);
    let now = rdtsc();
    check("TSC can be set", now >= 1 << 40 && now < 1 << 41, true);
    if !has(7, 1, 1) {
        return absent("TSC_ADJUST", ADJUST);
    }
    wrmsr(ADJUST, 0);
    let before = rdtsc();
    wrmsr(ADJUST, 1 << 50);
    let after = rdtsc();
    check("TSC_ADJUST moves the counter", after - before >> 49, 2);
    check("TSC_ADJUST reads back", rdmsr(ADJUST), 1 << 50);
    wrmsr(TSC, rdtsc() + (1 << 51));
    // Some time passed between the two.
    check("and follows it", rdmsr(ADJUST) + (1 << 40) >> 50, 3);
    wrmsr(ADJUST, u64::MAX - (1 << 20));
    check("any value", rdmsr(ADJUST), u64::MAX - (1 << 20));
    wrmsr(ADJUST, 0);
}

fn machine_check() {
    let cap = rdmsr(0x179);
    check("MCG_CAP: a sane number of banks", cap & 0xff <= 32, true);
    register("MCG_STATUS", 0x17a, &[0], &[]);
    if cap & 1 << 8 != 0 {
        register("MCG_CTL", 0x17b, &[u64::MAX, 0], &[]);
    }
    for bank in 0..(cap & 0xff) as u32 {
        let refused: &[u64] = if is_intel() { &[1 << 63, 5] } else { &[] };
        register("MC_CTL", 0x400 + 4 * bank, &[u64::MAX, !(1 << 10), 0], refused);
        register("MC_STATUS", 0x401 + 4 * bank, &[0], &[1, 1 << 63]);
        if !is_intel() {
            let hwcr = rdmsr(0xc001_0015);
            wrmsr(0xc001_0015, hwcr | 1 << 18);
            register(
                "MC_STATUS with McStatusWrEn",
                0x401 + 4 * bank,
                &[0x1234_5678_9abc_def0, 0],
                &[],
            );
            wrmsr(0xc001_0015, hwcr);
        }
        let details: &[u64] = if is_intel() { &[0] } else { &[0x8765_4321_dead_beef, 0] };
        register("MC_ADDR", 0x402 + 4 * bank, details, &[]);
        register("MC_MISC", 0x403 + 4 * bank, details, &[]);
    }
    if cap & 0xff < 28 {
        absent("a bank beyond the last", 0x400 + 4 * (cap & 0xff) as u32);
    }
}

/// Programs can be kept from CPUID (SDM volume 3, section 2.3.1 and volume 2, CPUID).
fn cpuid_faulting() {
    const PLATFORM_INFO: u32 = 0xce;
    const MISC_FEATURES: u32 = 0x140;
    if !is_intel() {
        return absent("MISC_FEATURES", MISC_FEATURES);
    }
    check("PLATFORM_INFO is read-only", try_wrmsr(PLATFORM_INFO, 0), GP);
    if try_rdmsr(PLATFORM_INFO).is_none_or(|info| info >> 31 & 1 == 0) {
        return;
    }
    register("MISC_FEATURES", MISC_FEATURES, &[1, 0], &[2, 1 << 63]);
    let identify = || user!(["xor eax, eax", "push rbx", "cpuid", "pop rbx"], out("eax") _, out("ecx") _, out("edx") _);
    check("a program's CPUID", identify(), NONE);
    wrmsr(MISC_FEATURES, 1);
    check("a program's CPUID that faults", identify(), GP);
    check("the system's CPUID", cpuid(0, 0)[0] != 0, true);
    wrmsr(MISC_FEATURES, 0);
    check("a program's CPUID again", identify(), NONE);
}

fn others() {
    absent("nothing", 0x0000_3fff);
    absent("nothing", 0xc000_1fff);
    absent("nothing", 0x4000_0200);
    absent("nothing", 0xffff_ffff);
    absent("x2APIC register outside the mode", 0x802);
    if is_intel() {
        register("MISC_ENABLE", 0x1a0, &[1, 0x1801], &[]);
        check("PLATFORM_ID", try_rdmsr(0x17).map(|id| id & !(7 << 50)), Some(0));
        check("PLATFORM_ID is read-only", try_wrmsr(0x17, 0), GP);
        absent("AMD's PERF_CTL0", 0xc001_0000);
    } else {
        absent("Intel's PLATFORM_ID", 0x17);
        // There is no AMD processor without them, so CPUID does not tell.
        for n in 0xc001_0000..0xc001_0008 {
            register("PERF_CTL or PERF_CTR", n, &[0], &[]);
        }
    }
    cpuid_faulting();
    if has(7, 3, 26) {
        register("SPEC_CTRL", 0x48, &[1, 0], &[1 << 20, 1 << 40]);
        check("PRED_CMD", try_wrmsr(0x49, 1), NONE);
        check("PRED_CMD is write-only", try_rdmsr(0x49), None);
        check("PRED_CMD, reserved", try_wrmsr(0x49, 1 << 20), GP);
    } else if cpuid(0x8000_0008, 0)[1] & 0x0102_d000 == 0 {
        absent("SPEC_CTRL", 0x48);
        absent("PRED_CMD", 0x49);
    }
    if has(7, 3, 29) {
        check("ARCH_CAPABILITIES", try_rdmsr(0x10a).is_some(), true);
        check("ARCH_CAPABILITIES is read-only", try_wrmsr(0x10a, 0), GP);
    } else {
        absent("ARCH_CAPABILITIES", 0x10a);
    }
    if has(0x8000_0001, 2, 9) {
        register("OSVW_LENGTH", 0xc001_0140, &[4, 5], &[1 << 16]);
        register("OSVW_STATUS", 0xc001_0141, &[1, 0], &[]);
    } else {
        absent("OSVW_LENGTH", 0xc001_0140);
        absent("OSVW_STATUS", 0xc001_0141);
    }
    if !has(1, 2, 24) {
        absent("TSC_DEADLINE", 0x6e0);
    }
    if !has(7, 2, 31) {
        absent("PKRS", 0x6e1);
    }
    if cpuid(0x8000_0008, 0)[1] & 1 << 4 == 0 {
        check("RDPRU", attempt!([".byte 0x0f, 0x01, 0xfd"], out("eax") _, out("edx") _, in("ecx") 0), UD);
    }
    check("LAST_BRANCH_FROM can be read", try_rdmsr(0x1db).is_some(), true);
    register("DEBUG_CTL", 0x1d9, &[1, 2, 0], &[1 << 4 << 32, 1 << 63]);
    let base = rdmsr(0x1b);
    check("APIC_BASE: BSP", base & 1 << 8, 1 << 8);
    let width = cpuid(0x8000_0008, 0)[0] & 0xff;
    check("APIC_BASE above the physical addresses", try_wrmsr(0x1b, base | 1 << width), GP);
    check("APIC_BASE, reserved", try_wrmsr(0x1b, base | 1), GP);
    check("APIC_BASE, reserved", try_wrmsr(0x1b, base | 1 << 9), GP);
    check(
        "RDMSR of TSC by ECX alone",
        {
            let (low, high): (u32, u32);
            attempt!(["rdmsr"], in("rcx") 0xffff_ffff_0000_0010u64, out("eax") low, out("edx") high)
        },
        NONE,
    );
}

pub fn run() {
    bases();
    efer();
    memory_types();
    time();
    machine_check();
    others();
}
