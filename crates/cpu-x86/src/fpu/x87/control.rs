//! Control instructions: they do not note themselves in the instruction pointer, and those whose names
//! have an N do not wait.

use iced_x86::{Code, Instruction};

use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::flags::bits;
use crate::fpu::Fpu;
use crate::fpu::softfloat::F80;
use crate::op::{Handler, Op};
use crate::regs::{CR0_MP, CR0_PE, CR0_TS};

/// Finds the handler.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match insn.code() {
        Wait => |cpu, _| {
            if cpu.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
                return Err(Exception::NM);
            }
            cpu.x87_pending_check()
        },
        Fninit => |cpu, _| {
            cpu.x87_available()?;
            cpu.x87_clear_error();
            cpu.fpu.init();
            Ok(())
        },
        Fnclex => |cpu, _| {
            cpu.x87_available()?;
            cpu.x87_clear_error();
            cpu.fpu.status &= !0x7f;
            Ok(())
        },
        // The 8087's and 80287's, which do nothing any more.
        Fneni | Fndisi | Fnsetpm => |cpu, _| cpu.x87_available(),
        Fldcw_m2byte => |cpu, op| {
            cpu.x87_wait()?;
            let word = cpu.load_op::<u16>(op)?;
            cpu.fpu.set_control(word);
            Ok(())
        },
        Fnstcw_m2byte => |cpu, op| {
            cpu.x87_available()?;
            cpu.store_op(op, cpu.fpu.control)
        },
        Fnstsw_m2byte => |cpu, op| {
            cpu.x87_available()?;
            cpu.store_op(op, cpu.fpu.status_word())
        },
        Fnstsw_AX => |cpu, _| {
            cpu.x87_available()?;
            cpu.set_reg::<u16>(0, cpu.fpu.status_word());
            Ok(())
        },
        Fnstenv_m14byte => |cpu, op| store_environment(cpu, op, Width::Bits16),
        Fnstenv_m28byte => |cpu, op| store_environment(cpu, op, Width::Bits32),
        Fldenv_m14byte => |cpu, op| load_environment(cpu, op, Width::Bits16),
        Fldenv_m28byte => |cpu, op| load_environment(cpu, op, Width::Bits32),
        Fnsave_m94byte => |cpu, op| save(cpu, op, Width::Bits16),
        Fnsave_m108byte => |cpu, op| save(cpu, op, Width::Bits32),
        Frstor_m94byte => |cpu, op| restore(cpu, op, Width::Bits16),
        Frstor_m108byte => |cpu, op| restore(cpu, op, Width::Bits32),
        _ => return None,
    };
    Some(handler)
}

/// Operand size of an environment image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Bits16,
    Bits32,
}

impl Width {
    /// Bytes of an environment.
    fn size(self) -> usize {
        match self {
            Self::Bits16 => 14,
            Self::Bits32 => 28,
        }
    }
}

/// Whether pointers in images are linear addresses: real and virtual-8086 mode.
fn linear_pointers(cpu: &Cpu) -> bool {
    cpu.cr0 & CR0_PE == 0 || cpu.system_flags & bits::VM != 0
}

/// The environment's image, 14 or 28 bytes: control, status and tag words, then the pointers.
fn environment(fpu: &Fpu, width: Width, linear: bool) -> [u8; 28] {
    let mut image = [0; 28];
    let opcode = u32::from(fpu.opcode);
    let (ip, dp) = (fpu.ip as u32, fpu.dp as u32);
    let at = |selector: u16, offset: u32| offset.wrapping_add(u32::from(selector) << 4);
    let (lip, ldp) = (at(fpu.cs, ip), at(fpu.ds, dp));
    let words = [fpu.control, fpu.status_word(), fpu.tag_word()];
    match width {
        Width::Bits16 => {
            let pointers = if linear {
                let high = |linear: u32| (linear >> 4 & 0xf000) as u16;
                [lip as u16, high(lip) | fpu.opcode, ldp as u16, high(ldp)]
            } else {
                [ip as u16, fpu.cs, dp as u16, fpu.ds]
            };
            for (i, word) in words.into_iter().chain(pointers).enumerate() {
                image[2 * i..2 * i + 2].copy_from_slice(&word.to_le_bytes());
            }
        }
        Width::Bits32 => {
            let words = words.map(|word| u32::from(word) | 0xffff_0000);
            let pointers = if linear {
                let high = |linear: u32| linear >> 4 & 0x0fff_f000;
                let low = |linear: u32| linear & 0xffff | 0xffff_0000;
                [low(lip), high(lip) | opcode, low(ldp), high(ldp)]
            } else {
                let ds = u32::from(fpu.ds) | 0xffff_0000;
                [ip, opcode << 16 | u32::from(fpu.cs), dp, ds]
            };
            for (i, word) in words.into_iter().chain(pointers).enumerate() {
                image[4 * i..4 * i + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
    image
}

/// Takes an environment's image apart.
fn set_environment(fpu: &mut Fpu, width: Width, linear: bool, image: &[u8]) {
    let word = |i: usize| u16::from_le_bytes([image[i], image[i + 1]]);
    let (step, pointers): (usize, [u32; 4]) = match width {
        Width::Bits16 => (2, std::array::from_fn(|i| u32::from(word(6 + 2 * i)))),
        Width::Bits32 => (
            4,
            std::array::from_fn(|i| {
                u32::from(word(12 + 4 * i)) | u32::from(word(14 + 4 * i)) << 16
            }),
        ),
    };
    fpu.set_control(word(0));
    fpu.set_status_word(word(step));
    fpu.set_tag_word(word(2 * step));
    let [p0, p1, p2, p3] = pointers;
    if linear {
        (fpu.cs, fpu.ds) = (0, 0);
        fpu.ip = u64::from(p0 & 0xffff | (p1 & 0x0fff_f000) << 4);
        fpu.dp = u64::from(p2 & 0xffff | (p3 & 0x0fff_f000) << 4);
        fpu.opcode = p1 as u16 & 0x7ff;
    } else {
        (fpu.ip, fpu.cs) = (u64::from(p0), p1 as u16);
        (fpu.dp, fpu.ds) = (u64::from(p2), p3 as u16);
        if width == Width::Bits32 {
            fpu.opcode = (p1 >> 16) as u16 & 0x7ff;
        }
    }
}

/// FNSTENV, which masks all exceptions.
fn store_environment(cpu: &mut Cpu, op: &Op, width: Width) -> Result {
    cpu.x87_available()?;
    let image = environment(&cpu.fpu, width, linear_pointers(cpu));
    let offset = cpu.ea(op);
    cpu.store_bytes(op.seg, offset, &image[..width.size()])?;
    cpu.fpu.control |= 0x3f;
    Ok(())
}

fn load_environment(cpu: &mut Cpu, op: &Op, width: Width) -> Result {
    cpu.x87_wait()?;
    let mut image = [0; 28];
    let offset = cpu.ea(op);
    cpu.load_bytes(op.seg, offset, &mut image[..width.size()])?;
    let linear = linear_pointers(cpu);
    set_environment(&mut cpu.fpu, width, linear, &image);
    Ok(())
}

/// FNSAVE: the environment and ST(0) to ST(7), then as FNINIT.
fn save(cpu: &mut Cpu, op: &Op, width: Width) -> Result {
    cpu.x87_available()?;
    let mut image = [0; 108];
    let size = width.size();
    image[..size].copy_from_slice(&environment(&cpu.fpu, width, linear_pointers(cpu))[..size]);
    for i in 0..8 {
        let value = cpu.fpu.regs[cpu.fpu.physical(i)].to_bits().to_le_bytes();
        let at = size + 10 * usize::from(i);
        image[at..at + 10].copy_from_slice(&value[..10]);
    }
    let offset = cpu.ea(op);
    cpu.store_bytes(op.seg, offset, &image[..size + 80])?;
    cpu.x87_clear_error();
    cpu.fpu.init();
    Ok(())
}

fn restore(cpu: &mut Cpu, op: &Op, width: Width) -> Result {
    cpu.x87_wait()?;
    let mut image = [0; 108];
    let size = width.size();
    let offset = cpu.ea(op);
    cpu.load_bytes(op.seg, offset, &mut image[..size + 80])?;
    let linear = linear_pointers(cpu);
    let fpu = &mut cpu.fpu;
    set_environment(fpu, width, linear, &image[..size]);
    for i in 0..8 {
        let at = size + 10 * usize::from(i);
        let mut bits = [0; 16];
        bits[..10].copy_from_slice(&image[at..at + 10]);
        fpu.regs[fpu.physical(i)] = F80::from_bits(u128::from_le_bytes(bits));
    }
    Ok(())
}
