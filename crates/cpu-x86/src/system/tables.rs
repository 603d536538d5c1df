//! Descriptor table registers and selector queries: LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR, LAR,
//! LSL, VERR, VERW, ARPL.

use iced_x86::{Code, Instruction};

use super::{require_cpl0, require_protected, require_visible_tables, source16, store16};
use crate::cpu::Cpu;
use crate::descriptor::{Descriptor, gp, is_null, np, rpl, system_type};
use crate::exception::{Exception, Result};
use crate::flags::bits;
use crate::int::Int;
use crate::op::{Handler, Op, OpFlags};
use crate::segment::attr;
use crate::state::{Segment, TableRegister};
use crate::svm::code;

/// Reads a table register from memory: the limit, then a base of 3, 4 or 8 bytes. `code` is the exit's
/// of a guest in which this is intercepted.
fn load_table(cpu: &mut Cpu, op: &Op, base_bytes: usize, code: u32) -> Result<TableRegister> {
    require_cpl0(cpu)?;
    cpu.intercept(code)?;
    let offset = cpu.ea(op);
    let mut image = [0; 10];
    let stored = if base_bytes == 8 { 8 } else { 4 };
    cpu.load_bytes(op.seg, offset, &mut image[..2 + stored])?;
    let mut base = [0; 8];
    base[..base_bytes].copy_from_slice(&image[2..2 + base_bytes]);
    let base = u64::from_le_bytes(base);
    if !cpu.is_canonical_base(base) {
        return Err(Exception::GP0);
    }
    Ok(TableRegister { base, limit: u16::from_le_bytes([image[0], image[1]]) })
}

/// Writes a table register to memory.
fn store_table(
    cpu: &mut Cpu,
    op: &Op,
    table: TableRegister,
    base_bytes: usize,
    code: u32,
) -> Result {
    require_visible_tables(cpu)?;
    cpu.intercept(code)?;
    let mut image = [0; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    let offset = cpu.ea(op);
    cpu.store_bytes(op.seg, offset, &image[..2 + base_bytes])
}

fn lgdt<const BASE: usize>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.gdtr = load_table(cpu, op, BASE, code::GDTR_WRITE)?;
    Ok(())
}

fn lidt<const BASE: usize>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.idtr = load_table(cpu, op, BASE, code::IDTR_WRITE)?;
    Ok(())
}

fn sgdt<const BASE: usize>(cpu: &mut Cpu, op: &Op) -> Result {
    store_table(cpu, op, cpu.gdtr, BASE, code::GDTR_READ)
}

fn sidt<const BASE: usize>(cpu: &mut Cpu, op: &Op) -> Result {
    store_table(cpu, op, cpu.idtr, BASE, code::IDTR_READ)
}

/// The hidden part of LDTR or TR for a checked descriptor.
fn system_segment(cpu: &mut Cpu, descriptor: Descriptor, selector: u16) -> Result<Segment> {
    let mut segment = descriptor.segment(selector);
    if cpu.long_mode() {
        segment.base |= cpu.descriptor_high(selector)? << 32;
        if !cpu.is_canonical_base(segment.base) {
            return Err(gp(selector));
        }
    }
    Ok(segment)
}

fn lldt(cpu: &mut Cpu, op: &Op) -> Result {
    require_protected(cpu)?;
    require_cpl0(cpu)?;
    cpu.intercept(code::LDTR_WRITE)?;
    let selector = source16(cpu, op, op.dst)?;
    if is_null(selector) {
        cpu.ldtr = Segment { selector, ..Segment::default() };
        return Ok(());
    }
    if selector & 4 != 0 {
        return Err(gp(selector));
    }
    let descriptor = cpu.descriptor(selector)?;
    if descriptor.system_type() != Some(system_type::LDT) {
        return Err(gp(selector));
    }
    if !descriptor.present() {
        return Err(np(selector));
    }
    cpu.ldtr = system_segment(cpu, descriptor, selector)?;
    Ok(())
}

fn ltr(cpu: &mut Cpu, op: &Op) -> Result {
    require_protected(cpu)?;
    require_cpl0(cpu)?;
    cpu.intercept(code::TR_WRITE)?;
    let selector = source16(cpu, op, op.dst)?;
    if is_null(selector) {
        return Err(Exception::GP0);
    }
    if selector & 4 != 0 {
        return Err(gp(selector));
    }
    let descriptor = cpu.descriptor(selector)?;
    match descriptor.system_type() {
        Some(system_type::TSS) => {}
        Some(system_type::TSS16) if !cpu.long_mode() => {}
        _ => return Err(gp(selector)),
    }
    if !descriptor.present() {
        return Err(np(selector));
    }
    let mut segment = system_segment(cpu, descriptor, selector)?;
    let busy = system_type::BUSY;
    cpu.update_linear::<u8>(descriptor.at.wrapping_add(5), |byte| byte | busy as u8)?;
    segment.attributes |= busy;
    cpu.tr = segment;
    Ok(())
}

fn sldt<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    require_protected(cpu)?;
    require_visible_tables(cpu)?;
    cpu.intercept(code::LDTR_READ)?;
    store16(cpu, op, BYTES, cpu.ldtr.selector)
}

fn str_<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    require_protected(cpu)?;
    require_visible_tables(cpu)?;
    cpu.intercept(code::TR_READ)?;
    store16(cpu, op, BYTES, cpu.tr.selector)
}

/// The descriptor of `selector`, if there is one and the program may see it. What types may be seen
/// is the caller's to say.
fn visible(
    cpu: &mut Cpu,
    selector: u16,
    allowed: impl Fn(&Cpu, Descriptor) -> bool,
) -> Result<Option<Descriptor>> {
    if is_null(selector) {
        return Ok(None);
    }
    let Some(descriptor) = cpu.find_descriptor(selector)? else { return Ok(None) };
    let conforming = descriptor.is_code() && descriptor.has(attr::CONFORMING);
    let reachable = conforming || descriptor.dpl() >= cpu.cpl.max(rpl(selector));
    Ok((reachable && allowed(cpu, descriptor)).then_some(descriptor))
}

fn lar<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    require_protected(cpu)?;
    let selector = source16(cpu, op, op.src)?;
    let found = visible(cpu, selector, |cpu, descriptor| match descriptor.system_type() {
        None | Some(2 | 9 | 11 | 12) => true,
        Some(1 | 3 | 4 | 5) => !cpu.long_mode(),
        _ => false,
    })?;
    if let Some(descriptor) = found {
        cpu.set_reg(op.dst, T::from_u64(descriptor.raw >> 32 & 0x00ff_ff00));
    }
    cpu.change_flags(bits::ZF, if found.is_some() { bits::ZF } else { 0 });
    Ok(())
}

fn lsl<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    require_protected(cpu)?;
    let selector = source16(cpu, op, op.src)?;
    let found = visible(cpu, selector, |cpu, descriptor| match descriptor.system_type() {
        None | Some(2 | 9 | 11) => true,
        Some(1 | 3) => !cpu.long_mode(),
        _ => false,
    })?;
    if let Some(descriptor) = found {
        cpu.set_reg(op.dst, T::from_u64(u64::from(descriptor.segment(selector).limit)));
    }
    cpu.change_flags(bits::ZF, if found.is_some() { bits::ZF } else { 0 });
    Ok(())
}

fn verify<const WRITE: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    require_protected(cpu)?;
    let selector = source16(cpu, op, op.dst)?;
    let found = visible(cpu, selector, |_, descriptor| match () {
        () if !descriptor.has(attr::NOT_SYSTEM) => false,
        () if WRITE => descriptor.is_writable_data(),
        () => !descriptor.is_code() || descriptor.has(attr::READABLE),
    })?;
    cpu.change_flags(bits::ZF, if found.is_some() { bits::ZF } else { 0 });
    Ok(())
}

fn arpl(cpu: &mut Cpu, op: &Op) -> Result {
    require_protected(cpu)?;
    let memory = op.flags.contains(OpFlags::MEM);
    let level = cpu.reg::<u16>(if memory { op.dst } else { op.src }) & 3;
    let adjust = |value: u16| if value & 3 < level { value & !3 | level } else { value };
    let old = if memory {
        cpu.update_op(op, false, adjust)?
    } else {
        let old: u16 = cpu.reg(op.dst);
        cpu.set_reg(op.dst, adjust(old));
        old
    };
    cpu.change_flags(bits::ZF, if old & 3 < level { bits::ZF } else { 0 });
    Ok(())
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    Some(match insn.code() {
        Code::Lgdt_m1632_16 => lgdt::<3>,
        Code::Lgdt_m1632 => lgdt::<4>,
        Code::Lgdt_m1664 => lgdt::<8>,
        Code::Lidt_m1632_16 => lidt::<3>,
        Code::Lidt_m1632 => lidt::<4>,
        Code::Lidt_m1664 => lidt::<8>,
        Code::Sgdt_m1632_16 | Code::Sgdt_m1632 => sgdt::<4>,
        Code::Sgdt_m1664 => sgdt::<8>,
        Code::Sidt_m1632_16 | Code::Sidt_m1632 => sidt::<4>,
        Code::Sidt_m1664 => sidt::<8>,
        Code::Lldt_rm16 | Code::Lldt_r32m16 | Code::Lldt_r64m16 => lldt,
        Code::Ltr_rm16 | Code::Ltr_r32m16 | Code::Ltr_r64m16 => ltr,
        Code::Sldt_rm16 => sldt::<2>,
        Code::Sldt_r32m16 => sldt::<4>,
        Code::Sldt_r64m16 => sldt::<8>,
        Code::Str_rm16 => str_::<2>,
        Code::Str_r32m16 => str_::<4>,
        Code::Str_r64m16 => str_::<8>,
        Code::Lar_r16_rm16 => lar::<u16>,
        Code::Lar_r32_r32m16 => lar::<u32>,
        Code::Lar_r64_r64m16 => lar::<u64>,
        Code::Lsl_r16_rm16 => lsl::<u16>,
        Code::Lsl_r32_r32m16 => lsl::<u32>,
        Code::Lsl_r64_r64m16 => lsl::<u64>,
        Code::Verr_rm16 | Code::Verr_r32m16 | Code::Verr_r64m16 => verify::<false>,
        Code::Verw_rm16 | Code::Verw_r32m16 | Code::Verw_r64m16 => verify::<true>,
        Code::Arpl_rm16_r16 | Code::Arpl_r32m16_r32 => arpl,
        _ => return None,
    })
}
