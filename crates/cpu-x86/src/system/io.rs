//! IN and OUT, and the permission to use ports (APM volume 2, section 12.2.5).

use iced_x86::{Code, Instruction};

use crate::cpu::Cpu;
use crate::descriptor::system_type;
use crate::exception::{Exception, Result};
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::{RAX, RDX};
use crate::smm::IoAccess;
use crate::svm::IoKind;

impl Cpu {
    /// #GP(0) unless the program may use the `size` ports from `port` on.
    pub(crate) fn check_io(&mut self, port: u16, size: u8) -> Result {
        let free = self.mode.is_real() || self.mode.is_protected() && self.cpl <= self.iopl();
        if free {
            return Ok(());
        }
        // The permission bitmap of a 32- or 64-bit TSS; two bytes are always read.
        if self.tr.attributes & 0xd != system_type::TSS || self.tr.limit < 0x67 {
            return Err(Exception::GP0);
        }
        let map: u16 = self.load_linear(self.tr.base.wrapping_add(0x66))?;
        let offset = u64::from(map) + u64::from(port / 8);
        if offset + 1 > u64::from(self.tr.limit) {
            return Err(Exception::GP0);
        }
        let bits: u16 = self.load_linear(self.tr.base.wrapping_add(offset))?;
        let mask = (1u16 << size) - 1;
        if bits >> (port % 8) & mask != 0 { Err(Exception::GP0) } else { Ok(()) }
    }
}

fn input<T: Int>(cpu: &mut Cpu, op: &Op, port: u16) -> Result {
    let size = T::BYTES as u8;
    if size == 4 && cpu.answer_backdoor(port) {
        return Ok(());
    }
    cpu.check_io(port, size)?;
    cpu.intercept_io(op, port, size, IoKind { is_in: true, is_string: false })?;
    cpu.note_io_breakpoints(port, T::BYTES);
    let value = cpu.bus.read_port(port, size);
    cpu.note_io(op, IoAccess { port, size, is_in: true, is_string: false });
    cpu.set_reg(RAX, T::from_u64(u64::from(value)));
    Ok(())
}

fn output<T: Int>(cpu: &mut Cpu, op: &Op, port: u16) -> Result {
    let size = T::BYTES as u8;
    cpu.check_io(port, size)?;
    cpu.intercept_io(op, port, size, IoKind { is_in: false, is_string: false })?;
    cpu.note_io_breakpoints(port, T::BYTES);
    cpu.bus.write_port(port, size, cpu.reg::<T>(RAX).to_u64() as u32);
    cpu.note_io(op, IoAccess { port, size, is_in: false, is_string: false });
    Ok(())
}

fn in_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    input::<T>(cpu, op, op.imm as u16 & 0xff)
}

fn in_dx<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let port = cpu.reg(RDX);
    input::<T>(cpu, op, port)
}

fn out_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    output::<T>(cpu, op, op.imm as u16 & 0xff)
}

fn out_dx<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let port = cpu.reg(RDX);
    output::<T>(cpu, op, port)
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    Some(match insn.code() {
        Code::In_AL_imm8 => in_imm::<u8>,
        Code::In_AX_imm8 => in_imm::<u16>,
        Code::In_EAX_imm8 => in_imm::<u32>,
        Code::In_AL_DX => in_dx::<u8>,
        Code::In_AX_DX => in_dx::<u16>,
        Code::In_EAX_DX => in_dx::<u32>,
        Code::Out_imm8_AL => out_imm::<u8>,
        Code::Out_imm8_AX => out_imm::<u16>,
        Code::Out_imm8_EAX => out_imm::<u32>,
        Code::Out_DX_AL => out_dx::<u8>,
        Code::Out_DX_AX => out_dx::<u16>,
        Code::Out_DX_EAX => out_dx::<u32>,
        _ => return None,
    })
}
