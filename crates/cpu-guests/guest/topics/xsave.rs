//! XSAVE and its relatives: CPUID's leaf 0xd, XCR0, formats, headers that are refused (SDM volume 1,
//! chapter 13; APM volume 2, section 11.5).

use core::arch::asm;

use crate::kit::*;

const OSXSAVE: u64 = 1 << 18;

#[repr(C, align(64))]
struct Area([u8; 4096]);

impl Area {
    fn new(fill: u8) -> Self {
        Self([fill; 4096])
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }
    fn set(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

fn try_xsetbv(index: u32, value: u64) -> u64 {
    attempt!(["xsetbv"], in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32)
}
fn xgetbv(index: u32) -> u64 {
    let (low, high): (u32, u32);
    unsafe { asm!("xgetbv", in("ecx") index, out("eax") low, out("edx") high) };
    u64::from(low) | u64::from(high) << 32
}

/// The unit as after reset: what compiled code leaves in its registers is nobody's business.
#[repr(C, align(64))]
struct Fresh([u64; 128]);
static FRESH: Fresh = Fresh({
    let mut image = [0; 128];
    image[3] = 0x1f80;
    image
});

macro_rules! image {
    ($name:ident, $instruction:literal $(, $before:literal)?) => {
        fn $name(area: *const Area, mask: u64) -> u64 {
            attempt!([
                "mov eax, -1", "mov edx, -1", "xrstor64 [rsi]",
                $($before,)?
                "mov eax, r8d", "mov edx, r9d",
                concat!($instruction, " [rdi]")],
                in("rdi") area, in("rsi") &raw const FRESH, in("r8") mask, in("r9") mask >> 32,
                out("rax") _, out("rdx") _, out("xmm3") _, out("xmm5") _)
        }
    };
}
image!(xsave, "xsave64");
image!(xsave_sse, "xsave64", "pcmpeqd xmm3, xmm3");
image!(xsaveopt, "xsaveopt64");
image!(xsaveopt_sse, "xsaveopt64", "pcmpeqd xmm3, xmm3");
image!(xsavec, "xsavec64");
image!(xsavec_avx, "xsavec64", "vpcmpeqd ymm5, ymm5, ymm5");
image!(xsaves, "xsaves64");
image!(xsaves_sse, "xsaves64", "pcmpeqd xmm3, xmm3");
image!(xrstor, "xrstor64");
image!(xrstors, "xrstors64");

/// XGETBV with ECX = 1 after a reset of the unit and, maybe, a change.
macro_rules! in_use {
    ($($before:literal)?) => {{
        let low: u32;
        unsafe {
            asm!("mov eax, -1", "mov edx, -1", "xrstor64 [rsi]", $($before,)? "mov ecx, 1", "xgetbv",
                in("rsi") &raw const FRESH, out("eax") low, out("ecx") _, out("edx") _, out("xmm3") _);
        }
        low & 6
    }};
}

fn control() {
    set_cr4(cr4() & !OSXSAVE);
    check("OSXSAVE follows CR4", has(1, 2, 27), false);
    check(
        "XGETBV without CR4.OSXSAVE",
        attempt!(["xgetbv"], in("ecx") 0, out("eax") _, out("edx") _),
        UD,
    );
    check("XSETBV without CR4.OSXSAVE", try_xsetbv(0, 1), UD);
    check("XSAVE without CR4.OSXSAVE", xsave(&Area::new(0), 1), UD);
    set_cr4(cr4() | OSXSAVE);
    check("OSXSAVE follows CR4", has(1, 2, 27), true);
    let [a, _, _, d] = cpuid(0xd, 0);
    let supported = u64::from(a) | u64::from(d) << 32;
    check("x87 and SSE are there", supported & 3, 3);
    check("XCR0: x87", try_xsetbv(0, 1), NONE);
    check("XCR0: none", try_xsetbv(0, 0), GP);
    check("XCR0: SSE without x87", try_xsetbv(0, 2), GP);
    check("XCR0: x87 and SSE", try_xsetbv(0, 3), NONE);
    check("it reads back", xgetbv(0), 3);
    if supported & 4 != 0 {
        check("XCR0: AVX without SSE", try_xsetbv(0, 5), GP);
        check("XCR0: AVX", try_xsetbv(0, 7), NONE);
    }
    for bit in 0..64 {
        if supported >> bit & 1 == 0 {
            check(format_args!("XCR0: bit {bit}"), try_xsetbv(0, 3 | 1 << bit), GP);
        }
    }
    check("XCR1", try_xsetbv(1, 3), GP);
    check("XGETBV of nothing", attempt!(["xgetbv"], in("ecx") 2, out("eax") _, out("edx") _), GP);
    let vector = user!(["xsetbv"], in("ecx") 0, in("eax") 3, in("edx") 0);
    check("XSETBV at CPL 3", vector, GP);
    check("XCR0: all", try_xsetbv(0, supported), NONE);
}

fn sizes() {
    let xcr0 = xgetbv(0);
    let mut end = 576;
    let mut compacted = 576;
    for n in 2..63 {
        if xcr0 >> n & 1 != 0 {
            let [size, offset, c, _] = cpuid(0xd, n);
            end = end.max(size + offset);
            compacted = if c & 2 != 0 { (compacted + 63) & !63 } else { compacted } + size;
        } else if u64::from(cpuid(0xd, 0)[0]) >> n & 1 == 0 && n < 32 {
            let [_, offset, ..] = cpuid(0xd, n);
            check("a component that is not there has no offset", offset, 0);
        }
    }
    check("size of the standard format", cpuid(0xd, 0)[1], end);
    if cpuid(0xd, 1)[0] & 2 != 0 {
        check("size of the compacted format", cpuid(0xd, 1)[1], compacted);
    }
    check("XSETBV: fewer", try_xsetbv(0, 3), NONE);
    check("size follows XCR0", cpuid(0xd, 0)[1], 576);
    check("XSETBV: all again", try_xsetbv(0, xcr0), NONE);
}

fn standard() {
    let xcr0 = xgetbv(0);
    let mut area = Area::new(0xa5);
    area.set(512, 0);
    check("XSAVE", xsave(&area, xcr0), NONE);
    check("nothing is in use", area.u64(512), 0);
    check("the rest of the header is not written", area.u64(520), 0xa5a5_a5a5_a5a5_a5a5);
    check("software's part is not written", area.u64(464), 0xa5a5_a5a5_a5a5_a5a5);
    check("XMM0 is", area.u64(160), 0);
    let mut area = Area::new(0xa5);
    area.set(512, 0);
    check("XSAVEOPT", xsaveopt(&area, xcr0), NONE);
    check("nothing is in use", area.u64(512), 0);
    check("XMM0 is not written", area.u64(160), 0xa5a5_a5a5_a5a5_a5a5);
    check("XSAVEOPT", xsaveopt_sse(&area, xcr0), NONE);
    check("SSE is in use", area.u64(512), 2);
    check("XMM3", area.u64(160 + 48), u64::MAX);
    // Components that are not asked for keep their bit.
    area.set(512, 1);
    check("XSAVE of SSE", xsave_sse(&area, 2), NONE);
    check("x87's bit stays", area.u64(512), 3);
    check("not aligned", xsave(((&raw const area) as u64 + 16) as *const Area, 2), GP);
    check("XRSTOR, not aligned", xrstor(((&raw const area) as u64 + 16) as *const Area, 2), GP);
    let lock = attempt!([".byte 0xf0", "xsave64 [rdi]"], in("rdi") &area, in("eax") 0, in("edx") 0);
    check("LOCK XSAVE", lock, UD);
}

fn headers() {
    let xcr0 = xgetbv(0);
    let compacts = cpuid(0xd, 1)[0] & 2 != 0;
    let fresh = || {
        let mut area = Area::new(0);
        area.set(24, 0x1f80);
        area
    };
    let mut area = fresh();
    area.set(512, 1 << 40);
    check("XSTATE_BV with what XCR0 has not", xrstor(&area, xcr0), GP);
    let mut area = fresh();
    area.set(520, 1);
    check("XCOMP_BV in the standard format", xrstor(&area, xcr0), GP);
    let mut area = fresh();
    area.set(528, 1);
    check("the reserved word after it", xrstor(&area, xcr0), GP);
    let mut area = fresh();
    area.set(24, 1 << 31);
    check("MXCSR with reserved bits", xrstor(&area, 2), GP);
    let mut area = fresh();
    area.set(520, 1 << 63 | 3);
    area.set(512, 3);
    check("the compacted format", xrstor(&area, xcr0), if compacts { NONE } else { GP });
    if compacts {
        area.set(520, 1 << 63 | 1);
        check("XSTATE_BV with what XCOMP_BV has not", xrstor(&area, xcr0), GP);
        let mut area = fresh();
        area.set(520, 1 << 63 | 1 << 40);
        check("XCOMP_BV with what XCR0 has not", xrstor(&area, xcr0), GP);
        let mut area = fresh();
        area.set(520, 1 << 63);
        area.set(528, 1);
        check("the header's end", xrstor(&area, xcr0), GP);
    }
}

fn compacted() {
    if cpuid(0xd, 1)[0] & 2 == 0 {
        check("XSAVEC without the feature", xsavec(&Area::new(0), 1), UD);
        return skip("XSAVEC");
    }
    let xcr0 = xgetbv(0);
    let mut area = Area::new(0xa5);
    area.0[512..576].fill(0);
    check("XSAVEC", xsavec(&area, xcr0), NONE);
    check("nothing is in use", area.u64(512), 0);
    check("XCOMP_BV", area.u64(520), 1 << 63 | xcr0);
    check("XMM0 is not written", area.u64(160), 0xa5a5_a5a5_a5a5_a5a5);
    if xcr0 & 4 != 0 {
        check("XSAVEC", xsavec_avx(&area, 7), NONE);
        check("SSE and AVX are in use", area.u64(512), 6);
        check("upper YMM5", area.u64(576 + 80), u64::MAX);
        check("only AVX is asked for", xsavec_avx(&area, 4), NONE);
        check("XCOMP_BV", (area.u64(512), area.u64(520)), (4, 1 << 63 | 4));
        let mut value = [0u64; 4];
        let vector = attempt!(["vpcmpeqd ymm5, ymm5, ymm5", "mov eax, 7", "xor edx, edx",
            "xrstor64 [rdi]", "vmovdqu [rsi], ymm5"],
            in("rdi") &area, in("rsi") &mut value, out("rax") _, out("rdx") _, out("ymm5") _);
        check("XRSTOR of it", vector, NONE);
        check("YMM5, whose lower half was initialised", value, [0, 0, u64::MAX, u64::MAX]);
    }
    if cpuid(0xd, 1)[0] & 4 != 0 {
        check("XGETBV 1: nothing in use", in_use!(), 0);
        check("XGETBV 1: SSE", in_use!("pcmpeqd xmm3, xmm3"), 2);
    } else {
        let vector = attempt!(["xgetbv"], in("ecx") 1, out("eax") _, out("edx") _);
        check("XGETBV 1 without the feature", vector, GP);
    }
}

fn supervisor() {
    const XSS: u32 = 0xda0;
    if cpuid(0xd, 1)[0] & 8 == 0 {
        check("XSS without the feature", try_rdmsr(XSS), None);
        check("XSAVES without the feature", xsaves(&Area::new(0), 1), UD);
        return skip("XSAVES");
    }
    let [_, _, c, d] = cpuid(0xd, 1);
    let valid = u64::from(c) | u64::from(d) << 32;
    check("XSS", try_wrmsr(XSS, 0), NONE);
    check("XSS with what there is not", try_wrmsr(XSS, !valid & 1 << 62), GP);
    check("XSS with a user component", try_wrmsr(XSS, 4), GP);
    let xcr0 = xgetbv(0);
    let mut area = Area::new(0);
    check("XSAVES", xsaves_sse(&area, xcr0), NONE);
    check("header", (area.u64(512), area.u64(520)), (2, 1 << 63 | xcr0));
    let value: u64;
    let vector = attempt!(["mov eax, -1", "mov edx, -1", "xrstors64 [rdi]", "movq {}, xmm3"],
        out(reg) value, in("rdi") &area, out("rax") _, out("rdx") _, out("xmm3") _);
    check("XRSTORS", vector, NONE);
    check("XMM3", value, u64::MAX);
    area.set(520, 0);
    check("XRSTORS of the standard format", xrstors(&area, xcr0), GP);
    let to = (&raw const area) as u64 + USER_ALIAS;
    let vector = user!(["xsaves64 [rdi]"], in("rdi") to, in("eax") 3, in("edx") 0);
    check("XSAVES at CPL 3", vector, GP);
}

fn protection_keys() {
    if xgetbv(0) & 1 << 9 == 0 {
        return skip("PKRU");
    }
    set_cr4(cr4() | 1 << 22);
    let offset = cpuid(0xd, 9)[1] as usize;
    check("PKRU's size", cpuid(0xd, 9)[0], 8);
    let mut area = Area::new(0);
    let vector = attempt!(["wrpkru", "mov eax, 0x200", "xsave64 [rdi]"],
        in("rdi") &area, in("ecx") 0, inout("eax") 0x1234_5670 => _, in("edx") 0);
    check("XSAVE", vector, NONE);
    check("PKRU in it", (area.u64(512), area.u64(offset)), (1 << 9, 0x1234_5670));
    area.set(offset, 0x8);
    check("XRSTOR", xrstor(&area, 1 << 9), NONE);
    let pkru: u32;
    unsafe { asm!("rdpkru", in("ecx") 0, out("eax") pkru, out("edx") _) };
    check("PKRU from it", pkru, 8);
    area.set(512, 0);
    check("XRSTOR, initial", xrstor(&area, 1 << 9), NONE);
    let pkru: u32;
    unsafe { asm!("rdpkru", in("ecx") 0, out("eax") pkru, out("edx") _) };
    check("PKRU is clear", pkru, 0);
}

/// FXSAVE and FXRSTOR without vector registers (APM volume 2, section 3.1.7).
fn fast() {
    const EFER: u32 = 0xc000_0080;
    if !has(0x8000_0001, 3, 25) {
        return skip("FFXSR");
    }
    let mut area = Area::new(0xa5);
    let user = (&raw mut area) as u64 + USER_ALIAS;
    let efer = rdmsr(EFER);
    wrmsr(EFER, efer | 1 << 14);
    let before: u64;
    unsafe {
        asm!("pcmpeqd xmm3, xmm3", "fxsave64 [{a}]", "pxor xmm3, xmm3", "fxrstor64 [{a}]", "movq {x}, xmm3",
            a = in(reg) &mut area, x = out(reg) before, out("xmm3") _);
    }
    wrmsr(EFER, efer);
    check("FXSAVE leaves XMM3", area.u64(160 + 48), 0xa5a5_a5a5_a5a5_a5a5);
    check("but has MXCSR", area.u64(24) as u32, 0x1f80);
    check("FXRSTOR leaves XMM3", before, 0);
    wrmsr(EFER, efer | 1 << 14);
    let vector = user!(["pcmpeqd xmm3, xmm3", "fxsave64 [rdi]"], in("rdi") user, out("xmm3") _);
    wrmsr(EFER, efer);
    check("FXSAVE of a program", (vector, area.u64(160 + 48)), (0x80, u64::MAX));
}

pub fn run() {
    fast();
    if !has(1, 2, 26) {
        check("CR4.OSXSAVE without the feature", try_cr4(cr4() | OSXSAVE), GP);
        return skip("XSAVE");
    }
    control();
    sizes();
    standard();
    headers();
    compacted();
    supervisor();
    protection_keys();
}
