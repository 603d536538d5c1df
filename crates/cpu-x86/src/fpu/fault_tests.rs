//! When instructions of the unit may not run, what they raise then and in which order; the images that
//! FXRSTOR and XRSTOR accept. What one can see of it on a host is in `tests`.

use iced_x86::code_asm::*;

use super::Fpu;
use super::softfloat::F80;
use crate::cpu::Cpu;
use crate::decode::decode;
use crate::exception::{Exception, vector};
use crate::regs::{CR0_EM, CR0_MP, CR0_NE, CR0_TS, CR4_OSFXSR, CR4_OSXSAVE};
use crate::state::CpuState;
use crate::testing;

/// Mapped and aligned to 64 bytes.
const DATA: u64 = 0x20_0000;
/// Not mapped.
const NOWHERE: u64 = 0x4000_0000;

/// Runs one instruction; what it raised.
fn execute(cpu: &mut Cpu, assemble: impl FnOnce(&mut CodeAssembler)) -> Result<(), Exception> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    assemble(&mut assembler);
    let code = assembler.assemble(testing::CODE).unwrap();
    let op = decode(&cpu.limits.instructions, true, 64, testing::CODE, &code).unwrap();
    (op.run)(cpu, &op)
}

fn movaps_from(cpu: &mut Cpu, address: u64) -> Result<(), Exception> {
    cpu.gpr[6] = address;
    execute(cpu, |a| a.movaps(xmm0, xmmword_ptr(rsi)).unwrap())
}

const PF: u8 = vector::PF;

fn raised_vector(result: Result<(), Exception>) -> Option<u8> {
    result.err().map(|exception| exception.vector)
}

/// Makes a division by zero pending.
fn divide_by_zero(cpu: &mut Cpu) {
    cpu.fpu.init();
    cpu.fpu.control &= !4;
    execute(cpu, |a| a.fldz().unwrap()).unwrap();
    execute(cpu, |a| a.fld1().unwrap()).unwrap();
    execute(cpu, |a| a.fdivrp(st1, st0).unwrap()).unwrap();
    assert!(cpu.fpu.pending());
}

#[test]
fn sse_is_refused_in_order() {
    let mut cpu = testing::long_mode();
    assert_eq!(movaps_from(&mut cpu, DATA), Ok(()));
    assert_eq!(movaps_from(&mut cpu, DATA + 8), Err(Exception::GP0));
    assert_eq!(raised_vector(movaps_from(&mut cpu, NOWHERE)), Some(PF));
    assert_eq!(movaps_from(&mut cpu, NOWHERE + 8), Err(Exception::GP0));
    cpu.cr0 |= CR0_TS;
    assert_eq!(movaps_from(&mut cpu, NOWHERE + 8), Err(Exception::NM));
    cpu.cr4 &= !CR4_OSFXSR;
    assert_eq!(movaps_from(&mut cpu, DATA), Err(Exception::UD));
    cpu.cr4 |= CR4_OSFXSR;
    cpu.cr0 |= CR0_EM;
    assert_eq!(movaps_from(&mut cpu, DATA), Err(Exception::UD));
}

#[test]
fn x87_and_mmx_wait_for_pending_exceptions() {
    let mut cpu = testing::long_mode();
    divide_by_zero(&mut cpu);
    let pending = Err(Exception::plain(vector::MF));
    assert_eq!(execute(&mut cpu, |a| a.fld1().unwrap()), pending);
    assert_eq!(execute(&mut cpu, |a| a.wait().unwrap()), pending);
    assert_eq!(execute(&mut cpu, |a| a.paddb(mm0, mm1).unwrap()), pending);
    assert_eq!(execute(&mut cpu, |a| a.addps(xmm0, xmm1).unwrap()), Ok(()));
    assert_eq!(execute(&mut cpu, |a| a.fnstsw(ax).unwrap()), Ok(()));
    assert_eq!(cpu.gpr[0] & 0x8084, 0x8084);
    cpu.cr0 &= !CR0_NE;
    assert_eq!(execute(&mut cpu, |a| a.fld1().unwrap()), Ok(()));
    cpu.cr0 |= CR0_NE;
    assert_eq!(execute(&mut cpu, |a| a.fnclex().unwrap()), Ok(()));
    assert_eq!(execute(&mut cpu, |a| a.fld1().unwrap()), Ok(()));
}

#[test]
fn task_switches_are_noticed() {
    let mut cpu = testing::long_mode();
    cpu.cr0 |= CR0_TS;
    assert_eq!(execute(&mut cpu, |a| a.fld1().unwrap()), Err(Exception::NM));
    assert_eq!(execute(&mut cpu, |a| a.fnstsw(ax).unwrap()), Err(Exception::NM));
    assert_eq!(execute(&mut cpu, |a| a.paddb(mm0, mm1).unwrap()), Err(Exception::NM));
    assert_eq!(execute(&mut cpu, |a| a.wait().unwrap()), Ok(()));
    cpu.cr0 |= CR0_MP;
    assert_eq!(execute(&mut cpu, |a| a.wait().unwrap()), Err(Exception::NM));
    cpu.cr0 = cpu.cr0 & !CR0_TS | CR0_EM;
    assert_eq!(execute(&mut cpu, |a| a.fld1().unwrap()), Err(Exception::NM));
    assert_eq!(execute(&mut cpu, |a| a.paddb(mm0, mm1).unwrap()), Err(Exception::UD));
}

#[test]
fn a_faulting_store_leaves_the_stack() {
    let mut cpu = testing::long_mode();
    cpu.fpu.init();
    execute(&mut cpu, |a| a.fldpi().unwrap()).unwrap();
    let before = cpu.fpu.status_word();
    cpu.gpr[6] = NOWHERE;
    let result = execute(&mut cpu, |a| a.fstp(dword_ptr(rsi)).unwrap());
    assert_eq!(raised_vector(result), Some(PF));
    assert_eq!(cpu.fpu.status_word(), before);
    assert!(cpu.fpu.st(0).is_some());
}

#[test]
fn reserved_bits_of_mxcsr_are_refused() {
    let mut cpu = testing::long_mode();
    cpu.gpr[6] = DATA;
    cpu.memory.write(DATA, &0x1_1f80u32.to_le_bytes()).unwrap();
    assert_eq!(execute(&mut cpu, |a| a.ldmxcsr(dword_ptr(rsi)).unwrap()), Err(Exception::GP0));
    execute(&mut cpu, |a| a.fxsave64(ptr(rsi)).unwrap()).unwrap();
    cpu.memory.write(DATA + 24, &0x1_1f80u32.to_le_bytes()).unwrap();
    cpu.fpu.xmm[3] = 7;
    assert_eq!(execute(&mut cpu, |a| a.fxrstor64(ptr(rsi)).unwrap()), Err(Exception::GP0));
    assert_eq!(cpu.fpu.xmm[3], 7);
    cpu.gpr[6] = DATA + 8;
    assert_eq!(execute(&mut cpu, |a| a.fxsave64(ptr(rsi)).unwrap()), Err(Exception::GP0));
}

/// A unit with something in every register.
fn busy() -> Fpu {
    let mut fpu = Fpu::default();
    fpu.init();
    fpu.xmm = std::array::from_fn(|i| u128::MAX / (i as u128 + 3));
    fpu.regs = std::array::from_fn(|i| F80 { sig: 1 << 63 | i as u64, exp: 0x3fff + i as u16 });
    fpu.mxcsr = 0x9fa1;
    fpu.control = 0x27e;
    fpu.set_status_word(0x3961);
    fpu.valid = 0x3c;
    (fpu.opcode, fpu.ip, fpu.dp) = (0x123, 0x1234_5678_9abc, 0xdef0);
    fpu
}

fn saved(fpu: &Fpu) -> CpuState {
    let mut state = CpuState::default();
    fpu.save(&mut state);
    state
}

#[test]
fn images_bring_the_state_back() {
    let mut cpu = testing::long_mode();
    cpu.cr4 |= CR4_OSXSAVE;
    cpu.xcr0 = 3;
    (cpu.gpr[0], cpu.gpr[2], cpu.gpr[6]) = (u64::MAX, u64::MAX, DATA);
    type Step = fn(&mut CodeAssembler);
    let pairs: [(Step, Step); 3] = [
        (|a| a.fxsave64(ptr(rsi)).unwrap(), |a| a.fxrstor64(ptr(rsi)).unwrap()),
        (|a| a.xsave64(ptr(rsi)).unwrap(), |a| a.xrstor64(ptr(rsi)).unwrap()),
        (|a| a.xsaveopt64(ptr(rsi)).unwrap(), |a| a.xrstor64(ptr(rsi)).unwrap()),
    ];
    for (save, restore) in pairs {
        cpu.memory.write(DATA, &[0; 1024]).unwrap();
        cpu.fpu = busy();
        execute(&mut cpu, save).unwrap();
        cpu.fpu = Fpu::default();
        execute(&mut cpu, restore).unwrap();
        assert_eq!(saved(&cpu.fpu), saved(&busy()));
    }
    let restored = Fpu::restore(&saved(&busy())).unwrap();
    assert_eq!(saved(&restored), saved(&busy()));
}

#[test]
fn xsave_keeps_its_rules() {
    let mut cpu = testing::long_mode();
    (cpu.gpr[0], cpu.gpr[2], cpu.gpr[6]) = (3, 0, DATA);
    let save = |cpu: &mut Cpu| execute(cpu, |a| a.xsave64(ptr(rsi)).unwrap());
    let restore = |cpu: &mut Cpu| execute(cpu, |a| a.xrstor64(ptr(rsi)).unwrap());
    assert_eq!(save(&mut cpu), Err(Exception::UD));
    cpu.cr4 |= CR4_OSXSAVE;
    cpu.xcr0 = 3;
    cpu.cr0 |= CR0_TS;
    assert_eq!(save(&mut cpu), Err(Exception::NM));
    cpu.cr0 &= !CR0_TS;
    cpu.gpr[6] = DATA + 16;
    assert_eq!(save(&mut cpu), Err(Exception::GP0));
    cpu.gpr[6] = DATA;
    // A component that is not asked for keeps its bit; one in its initial state loses it.
    let header = |cpu: &Cpu| {
        let mut bytes = [0; 8];
        cpu.memory.read(DATA + 512, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    cpu.memory.write(DATA, &[0; 1024]).unwrap();
    cpu.memory.write(DATA + 512, &3u64.to_le_bytes()).unwrap();
    cpu.fpu.init();
    cpu.fpu.regs = [F80::ZERO; 8];
    cpu.gpr[0] = 1;
    assert_eq!(save(&mut cpu), Ok(()));
    assert_eq!(header(&cpu), 2);
    // An absent component is initialised.
    cpu.memory.write(DATA + 512, &0u64.to_le_bytes()).unwrap();
    cpu.memory.write(DATA + 24, &0x1f80u32.to_le_bytes()).unwrap();
    cpu.fpu = busy();
    cpu.gpr[0] = 3;
    assert_eq!(restore(&mut cpu), Ok(()));
    assert_eq!(cpu.fpu.in_use(), 0);
    // Bits beyond XCR0, of the compacted format too, and reserved ones are refused.
    for (at, value) in [(512, 4u64), (520, 1 << 63 | 4), (520, 1), (528, 1)] {
        cpu.memory.write(DATA + 512, &[0; 24]).unwrap();
        cpu.memory.write(DATA + at, &value.to_le_bytes()).unwrap();
        assert_eq!(restore(&mut cpu), Err(Exception::GP0), "{value:#x} at {at}");
    }
}
