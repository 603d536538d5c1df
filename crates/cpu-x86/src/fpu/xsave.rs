//! The unit's images in memory: FXSAVE and FXRSTOR; XSAVE with its relatives XSAVEOPT, XSAVEC and XSAVES;
//! XRSTOR and XRSTORS (APM volume 2, section 11.5; SDM volume 1, chapter 13). PKRU is in them, too. No
//! component is the supervisor's alone, so XSAVES is XSAVEC at CPL 0.

use iced_x86::{Code, CpuidFeature, Instruction};

use super::softfloat::F80;
use super::{Fpu, MXCSR_RESET};
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::host::Access;
use crate::mmu::LINEAR_BITS;
use crate::op::{Handler, Op};
use crate::reg::{RAX, RDX};
use crate::regs::{CR0_EM, CR0_TS, CR4_OSXSAVE, EFER_FFXSR};

/// State components, as in XCR0 and XSTATE_BV.
pub(crate) mod component {
    pub(crate) const X87: u64 = 1 << 0;
    pub(crate) const SSE: u64 = 1 << 1;
    pub(crate) const AVX: u64 = 1 << 2;
    pub(crate) const PKRU: u64 = 1 << 9;
}
use component::{AVX, PKRU, SSE, X87};

/// Bytes of FXSAVE's image.
const LEGACY_SIZE: usize = 512;
/// Where the header of XSAVE's image starts.
const HEADER: usize = 512;
/// Where the upper halves of the YMM registers are.
pub(crate) const AVX_OFFSET: usize = 576;
/// Where PKRU is in the standard format: after the AVX registers.
const PKRU_OFFSET: usize = AVX_OFFSET + 256;
/// Bytes of the image with all components that can be.
const MAX_SIZE: usize = PKRU_OFFSET + 8;
/// In XCOMP_BV: the image is in the compacted format.
const COMPACTED: u64 = 1 << 63;
/// Upper bits of a linear address that only repeat its sign.
const UNUSED_BITS: u32 = 64 - LINEAR_BITS;
/// The part of the legacy image that belongs to software.
const SOFTWARE_AREA: usize = 416;

/// Finds the handler.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match insn.code() {
        Fxsave_m512byte => |cpu, op| fxsave(cpu, op, false),
        Fxsave64_m512byte => |cpu, op| fxsave(cpu, op, true),
        Fxrstor_m512byte => |cpu, op| fxrstor(cpu, op, false),
        Fxrstor64_m512byte => |cpu, op| fxrstor(cpu, op, true),
        Xsave_mem => |cpu, op| xsave(cpu, op, false, Save::All),
        Xsave64_mem => |cpu, op| xsave(cpu, op, true, Save::All),
        Xsaveopt_mem => |cpu, op| xsave(cpu, op, false, Save::Used),
        Xsaveopt64_mem => |cpu, op| xsave(cpu, op, true, Save::Used),
        Xsavec_mem => |cpu, op| xsave(cpu, op, false, Save::Compacted),
        Xsavec64_mem => |cpu, op| xsave(cpu, op, true, Save::Compacted),
        Xsaves_mem => |cpu, op| xsave(cpu, op, false, Save::Supervisor),
        Xsaves64_mem => |cpu, op| xsave(cpu, op, true, Save::Supervisor),
        Xrstor_mem => |cpu, op| xrstor(cpu, op, false, false),
        Xrstor64_mem => |cpu, op| xrstor(cpu, op, true, false),
        Xrstors_mem => |cpu, op| xrstor(cpu, op, false, true),
        Xrstors64_mem => |cpu, op| xrstor(cpu, op, true, true),
        _ => return None,
    };
    Some(handler)
}

/// Writes `bytes` at `at`.
fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Reads the `N` bytes at `at`.
fn get<const N: usize>(image: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&image[at..at + N]);
    bytes
}

impl Fpu {
    /// The components of the unit that are not in their initial configuration, MXCSR left aside.
    pub(crate) fn in_use(&self) -> u64 {
        let mut initial = Self::default();
        initial.init();
        let x87 = self.control != initial.control
            || self.status != 0
            || self.top != 0
            || self.valid != 0
            || self.regs != initial.regs
            || (self.opcode, self.cs, self.ds, self.ip, self.dp) != (0, 0, 0, 0, 0);
        let used = |yes, component| if yes { component } else { 0 };
        used(x87, X87)
            | used(self.xmm.iter().any(|&x| x != 0), SSE)
            | used(self.ymm_high.iter().any(|&x| x != 0), AVX)
    }

    /// Puts the x87 part into the first 160 bytes of an image; `wide`: 64-bit pointers. Leaves MXCSR.
    fn save_x87(&self, image: &mut [u8], wide: bool) {
        put(image, 0, &self.control.to_le_bytes());
        put(image, 2, &self.status_word().to_le_bytes());
        put(image, 4, &[self.valid, 0]);
        // Without a pending exception, AMD's processors store no pointers.
        let pointer = |selector: u16, offset: u64| match (self.pending(), wide) {
            (false, _) => 0,
            (true, true) => offset,
            (true, false) => u64::from(selector) << 32 | offset & 0xffff_ffff,
        };
        let opcode = if self.pending() { self.opcode } else { 0 };
        put(image, 6, &opcode.to_le_bytes());
        put(image, 8, &pointer(self.cs, self.ip).to_le_bytes());
        put(image, 16, &pointer(self.ds, self.dp).to_le_bytes());
        for i in 0..8 {
            let value = self.regs[usize::from(self.top.wrapping_add(i) & 7)];
            put(image, 32 + 16 * usize::from(i), &value.to_bits().to_le_bytes());
        }
    }

    fn restore_x87(&mut self, image: &[u8], wide: bool) {
        let word = |at| u16::from_le_bytes(get(image, at));
        let pointer = |at| u64::from_le_bytes(get(image, at));
        self.set_control(word(0));
        self.set_status_word(word(2));
        self.valid = image[4];
        self.opcode = word(6) & 0x7ff;
        if wide {
            // Pointers are addresses: bits that no canonical one has are not kept.
            let canonical = |at| (pointer(at) << UNUSED_BITS) as i64 >> UNUSED_BITS;
            (self.ip, self.dp) = (canonical(8) as u64, canonical(16) as u64);
            (self.cs, self.ds) = (0, 0);
        } else {
            (self.ip, self.dp) = (pointer(8) & 0xffff_ffff, pointer(16) & 0xffff_ffff);
            (self.cs, self.ds) = (word(12), word(20));
        }
        for i in 0..8 {
            let bits = u128::from_le_bytes(get(image, 32 + 16 * usize::from(i)));
            self.regs[usize::from(self.top.wrapping_add(i) & 7)] = F80::from_bits(bits);
        }
    }

    /// MXCSR, and which bits of it there are.
    fn save_mxcsr(&self, image: &mut [u8], mask: u32) {
        put(image, 24, &self.mxcsr.to_le_bytes());
        put(image, 28, &mask.to_le_bytes());
    }

    /// The first `count` vector registers at `at`.
    fn save_vectors(registers: &[u128; 16], image: &mut [u8], at: usize, count: usize) {
        for (i, register) in registers.iter().take(count).enumerate() {
            put(image, at + 16 * i, &register.to_le_bytes());
        }
    }

    fn restore_vectors(registers: &mut [u128; 16], image: &[u8], at: usize, count: usize) {
        for (i, register) in registers.iter_mut().take(count).enumerate() {
            *register = u128::from_le_bytes(get(image, at + 16 * i));
        }
    }
}

/// MXCSR of an image; #GP if it has bits that do not exist.
fn checked_mxcsr(cpu: &Cpu, image: &[u8]) -> Result<u32> {
    let mxcsr = u32::from_le_bytes(get(image, 24));
    if mxcsr & !cpu.limits.mxcsr != 0 { Err(Exception::GP0) } else { Ok(mxcsr) }
}

/// Vector registers that the mode can reach: 8, or 16 in 64-bit mode.
fn vector_count(cpu: &Cpu) -> usize {
    if cpu.ip_mask == u64::MAX { 16 } else { 8 }
}

/// The offset of the image, which must be aligned to `align` bytes and within its segment.
fn image_offset(cpu: &mut Cpu, op: &Op, len: usize, align: u64, access: Access) -> Result<u64> {
    let offset = cpu.ea(op);
    let linear = cpu.linear(op.seg, offset, len, access)?;
    if linear & (align - 1) != 0 {
        cpu.check_canonical(op.seg, linear)?;
        // Where alignment is checked anyway, that exception is the one of FXSAVE and FXRSTOR.
        cpu.check_alignment(linear, len)?;
        return Err(Exception::GP0);
    }
    Ok(offset)
}

fn fxsave_check(cpu: &Cpu) -> Result {
    if cpu.cr0 & (CR0_EM | CR0_TS) != 0 { Err(Exception::NM) } else { Ok(()) }
}

/// How many vector registers FXSAVE and FXRSTOR are about: in 64-bit mode at CPL 0 none, if the system has asked
/// for that (APM volume 2, section 3.1.7, FFXSR).
fn fxsave_vectors(cpu: &Cpu) -> usize {
    let fast = cpu.efer & EFER_FFXSR != 0 && cpu.mode.is_64() && cpu.cpl == 0;
    if fast { 0 } else { vector_count(cpu) }
}

fn fxsave(cpu: &mut Cpu, op: &Op, wide: bool) -> Result {
    fxsave_check(cpu)?;
    let offset = image_offset(cpu, op, LEGACY_SIZE, 16, Access::Write)?;
    let mut image = [0; SOFTWARE_AREA];
    let count = fxsave_vectors(cpu);
    cpu.fpu.save_x87(&mut image, wide);
    cpu.fpu.save_mxcsr(&mut image, cpu.limits.mxcsr);
    Fpu::save_vectors(&cpu.fpu.xmm, &mut image, 160, count);
    // Registers out of reach are not written, nor is software's part, but all has to be writable.
    cpu.probe_write(op.seg, offset, LEGACY_SIZE)?;
    cpu.store_bytes(op.seg, offset, &image[..160 + 16 * count])
}

fn fxrstor(cpu: &mut Cpu, op: &Op, wide: bool) -> Result {
    fxsave_check(cpu)?;
    let offset = image_offset(cpu, op, LEGACY_SIZE, 16, Access::Read)?;
    let mut image = [0; LEGACY_SIZE];
    cpu.load_bytes(op.seg, offset, &mut image)?;
    let mxcsr = checked_mxcsr(cpu, &image)?;
    let count = fxsave_vectors(cpu);
    cpu.fpu.restore_x87(&image, wide);
    cpu.fpu.mxcsr = mxcsr;
    Fpu::restore_vectors(&mut cpu.fpu.xmm, &image, 160, count);
    Ok(())
}

/// The components that an XSAVE instruction is asked for, after its checks.
fn requested(cpu: &Cpu) -> Result<u64> {
    if cpu.cr4 & CR4_OSXSAVE == 0 {
        return Err(Exception::UD);
    }
    if cpu.cr0 & CR0_TS != 0 {
        return Err(Exception::NM);
    }
    Ok((cpu.gpr(RDX) << 32 | cpu.gpr(RAX) & 0xffff_ffff) & cpu.xcr0)
}

/// The components above SSE: number, offset in the standard format, bytes.
const EXTENDED: [(u32, usize, usize); 2] = [(2, AVX_OFFSET, 256), (9, PKRU_OFFSET, 8)];

/// Size and offset in the image of a component above SSE, as CPUID's leaf 0xd tells them.
pub(crate) fn component(number: u32) -> (u32, u32) {
    let known = EXTENDED.iter().find(|&&(n, ..)| n == number);
    known.map_or((0, 0), |&(_, offset, size)| (size as u32, offset as u32))
}

/// Bytes of the standard image that holds `components`.
pub(crate) fn image_size(components: u64) -> usize {
    let held = EXTENDED.iter().filter(|&&(n, ..)| components >> n & 1 != 0);
    held.map(|&(_, offset, size)| offset + size).max().unwrap_or(AVX_OFFSET)
}

/// Bytes of the compacted image with room for `components`.
pub(crate) fn compacted_size(components: u64) -> usize {
    let held = EXTENDED.iter().filter(|&&(n, ..)| components >> n & 1 != 0);
    held.fold(AVX_OFFSET, |end, &(_, _, size)| end + size)
}

/// Where component `number` is in an image whose XCOMP_BV is `layout`: 0 for the standard format.
fn offset_of(number: u32, layout: u64) -> usize {
    if layout & COMPACTED == 0 {
        return component(number).1 as usize;
    }
    let below = EXTENDED.iter().filter(|&&(n, ..)| n < number && layout >> n & 1 != 0);
    below.fold(AVX_OFFSET, |end, &(_, _, size)| end + size)
}

impl Cpu {
    /// The components that are not in their initial configuration; MXCSR counts as SSE's.
    pub(crate) fn components_in_use(&self) -> u64 {
        let mut used = self.fpu.in_use();
        if self.fpu.mxcsr != MXCSR_RESET {
            used |= SSE;
        }
        if self.pkru != 0 {
            used |= PKRU;
        }
        used
    }
}

/// How an instruction of the family writes its image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Save {
    /// XSAVE: every component.
    All,
    /// XSAVEOPT: leaves out components in their initial configuration.
    Used,
    /// XSAVEC: the same, in the compacted format.
    Compacted,
    /// XSAVES: the same, for the supervisor.
    Supervisor,
}

impl Save {
    fn compacts(self) -> bool {
        matches!(self, Self::Compacted | Self::Supervisor)
    }
}

fn xsave(cpu: &mut Cpu, op: &Op, wide: bool, how: Save) -> Result {
    let requested = requested(cpu)?;
    if how == Save::Supervisor && cpu.cpl != 0 {
        return Err(Exception::GP0);
    }
    let layout = if how.compacts() { COMPACTED | requested } else { 0 };
    let size = if how.compacts() { compacted_size(requested) } else { image_size(requested) };
    let offset = image_offset(cpu, op, size, 64, Access::Write)?;
    cpu.probe_write(op.seg, offset, size)?;
    // Everything that is not written keeps what memory has.
    let mut image = [0; MAX_SIZE];
    cpu.load_bytes(op.seg, offset, &mut image[..size])?;
    // Compaction counts MXCSR as a part of SSE; else it is on its own.
    let mut used = cpu.components_in_use();
    if !how.compacts() {
        used = used & !SSE | cpu.fpu.in_use() & SSE;
    }
    let count = vector_count(cpu);
    let written = if how == Save::All { requested } else { requested & used };
    if written & X87 != 0 {
        cpu.fpu.save_x87(&mut image, wide);
    }
    let has_mxcsr = if how.compacts() { written & SSE } else { requested & (SSE | AVX) };
    if has_mxcsr != 0 {
        cpu.fpu.save_mxcsr(&mut image, cpu.limits.mxcsr);
    }
    if written & SSE != 0 {
        Fpu::save_vectors(&cpu.fpu.xmm, &mut image, 160, count);
    }
    if written & AVX != 0 {
        Fpu::save_vectors(&cpu.fpu.ymm_high, &mut image, offset_of(2, layout), count);
    }
    if written & PKRU != 0 {
        put(&mut image, offset_of(9, layout), &u64::from(cpu.pkru).to_le_bytes());
    }
    let old = if how.compacts() { 0 } else { u64::from_le_bytes(get(&image, HEADER)) };
    let present = old & !requested | used & requested;
    put(&mut image, HEADER, &present.to_le_bytes());
    put(&mut image, HEADER + 8, &layout.to_le_bytes());
    // Neither the software area nor, without compaction, the rest of the header is written.
    cpu.store_bytes(op.seg, offset, &image[..SOFTWARE_AREA])?;
    let header = if how.compacts() { 16 } else { 8 };
    cpu.store_bytes(op.seg, at(op, offset, HEADER), &image[HEADER..HEADER + header])?;
    for (number, _, size) in EXTENDED {
        if written >> number & 1 != 0 {
            let start = offset_of(number, layout);
            cpu.store_bytes(op.seg, at(op, offset, start), &image[start..start + size])?;
        }
    }
    Ok(())
}

/// `offset` within an image.
fn at(op: &Op, image: u64, offset: usize) -> u64 {
    image.wrapping_add(offset as u64) & crate::reg::addr_mask(op.addr_size)
}

/// Whether the header of an image is one that XRSTOR takes, or XRSTORS (`supervisor`).
fn is_header(cpu: &Cpu, image: &[u8], supervisor: bool) -> bool {
    let present = u64::from_le_bytes(get(image, HEADER));
    let layout = u64::from_le_bytes(get(image, HEADER + 8));
    let zeroes = |from: usize| image[HEADER + from..HEADER + 64].iter().all(|&byte| byte == 0);
    if layout & COMPACTED == 0 {
        let reserved: [u8; 16] = get(image, HEADER + 8);
        return !supervisor && present & !cpu.xcr0 == 0 && reserved == [0; 16];
    }
    let known = cpu.limits.instructions.has(CpuidFeature::XSAVEC)
        || cpu.limits.instructions.has(CpuidFeature::XSAVES);
    let components = layout & !COMPACTED;
    known && components & !cpu.xcr0 == 0 && present & !components == 0 && zeroes(16)
}

/// XRSTOR and, with `supervisor`, XRSTORS.
fn xrstor(cpu: &mut Cpu, op: &Op, wide: bool, supervisor: bool) -> Result {
    let requested = requested(cpu)?;
    if supervisor && cpu.cpl != 0 {
        return Err(Exception::GP0);
    }
    let offset = image_offset(cpu, op, AVX_OFFSET, 64, Access::Read)?;
    let mut image = [0; MAX_SIZE];
    cpu.load_bytes(op.seg, offset, &mut image[..AVX_OFFSET])?;
    if !is_header(cpu, &image, supervisor) {
        return Err(Exception::GP0);
    }
    let present = u64::from_le_bytes(get(&image, HEADER));
    let layout = u64::from_le_bytes(get(&image, HEADER + 8));
    let compacted = layout & COMPACTED != 0;
    let loaded = requested & present;
    for (number, _, size) in EXTENDED {
        if loaded >> number & 1 != 0 {
            let start = offset_of(number, layout);
            let part = &mut image[start..start + size];
            cpu.load_bytes(op.seg, at(op, offset, start), part)?;
        }
    }
    let mxcsr = match (compacted, requested & SSE != 0, present & SSE != 0) {
        (true, true, false) => MXCSR_RESET,
        (true, true, true) => checked_mxcsr(cpu, &image)?,
        (false, ..) if requested & (SSE | AVX) != 0 => checked_mxcsr(cpu, &image)?,
        _ => cpu.fpu.mxcsr,
    };
    let count = vector_count(cpu);
    let fpu = &mut cpu.fpu;
    fpu.mxcsr = mxcsr;
    if requested & X87 != 0 {
        if present & X87 != 0 {
            fpu.restore_x87(&image, wide);
        } else {
            fpu.init();
            fpu.regs = [F80::ZERO; 8];
        }
    }
    if requested & SSE != 0 {
        if present & SSE == 0 {
            image[160..SOFTWARE_AREA].fill(0);
        }
        Fpu::restore_vectors(&mut fpu.xmm, &image, 160, count);
    }
    if requested & AVX != 0 {
        let start = offset_of(2, layout);
        let zeroes = [0; 256];
        let part = if present & AVX != 0 { &image[start..start + 256] } else { &zeroes[..] };
        Fpu::restore_vectors(&mut fpu.ymm_high, part, 0, count);
    }
    if requested & PKRU != 0 {
        let start = offset_of(9, layout);
        let saved = u32::from_le_bytes(get(&image, start));
        cpu.set_pkru(if present & PKRU != 0 { saved } else { 0 });
    }
    Ok(())
}

#[cfg(test)]
impl Cpu {
    /// Takes up FXSAVE64's image without an instruction.
    pub(crate) fn load_image_for_test(&mut self, image: &[u8; LEGACY_SIZE]) {
        self.fpu.restore_x87(image, true);
        self.fpu.mxcsr = u32::from_le_bytes(get(image, 24));
        Fpu::restore_vectors(&mut self.fpu.xmm, image, 160, 16);
    }

    /// FXSAVE64's image.
    pub(crate) fn save_image_for_test(&self) -> [u8; LEGACY_SIZE] {
        let mut image = [0; LEGACY_SIZE];
        self.fpu.save_x87(&mut image, true);
        self.fpu.save_mxcsr(&mut image, self.limits.mxcsr);
        Fpu::save_vectors(&self.fpu.xmm, &mut image, 160, 16);
        image
    }
}
