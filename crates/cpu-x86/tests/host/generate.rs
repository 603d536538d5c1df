//! Makes cases: an instruction of a given form, and a state for it to work on.
//!
//! Operands are chosen at random; then registers are set so that memory operands are where they do
//! something: mostly in the data pages, at times across their end, in the read-only code page, in
//! nothing, or at an address that is not canonical. What could leave the sandbox is thrown away.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, InstructionInfoFactory, MemorySize,
    Mnemonic, OpCodeOperandKind as Kind, OpKind, Register,
};

use crate::forms::{Verdict, classify};
use crate::rng::Rng;
use crate::state::{
    AC, CHANGEABLE, CODE, DATA, DATA_LEN, IF, IMAGE, MEMORY, PAGE, RESERVED, STACK, State,
};

/// One instruction and what it starts from.
pub(crate) struct Case {
    pub(crate) insn: Instruction,
    pub(crate) bytes: Vec<u8>,
    pub(crate) state: State,
}

/// Random memory contents to choose from; made once.
pub(crate) struct Pool(Vec<u8>);

impl Pool {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        Self((0..1 << 14).flat_map(|_| rng.vector().to_le_bytes()).collect())
    }

    fn memory(&self, rng: &mut Rng) -> Box<[u8; MEMORY]> {
        let mut memory = Box::new([0; MEMORY]);
        let from = 16 * rng.below((self.0.len() - MEMORY) as u64 / 16) as usize;
        memory.copy_from_slice(&self.0[from..from + MEMORY]);
        memory
    }
}

/// Where an instruction's memory operand shall be.
fn target(rng: &mut Rng) -> u64 {
    let unaligned = rng.below(DATA_LEN - 640);
    match rng.below(64) {
        0 => rng.below(15) << 48 | 1 << 47 | rng.next() >> 20,
        1 => CODE + rng.below(PAGE),
        2 => STACK + rng.below(PAGE),
        3 => 0x2000_0000 + rng.below(0x10_0000),
        4 | 5 => DATA + DATA_LEN - rng.below(32),
        6..12 => DATA + PAGE - rng.below(32),
        12..24 => DATA + unaligned,
        24..32 => DATA + (unaligned & !7),
        _ => DATA + (unaligned & !15),
    }
}

/// A general register that memory operands may be based on.
fn base_register(rng: &mut Rng, wide: bool) -> Register {
    (if wide { Register::RAX } else { Register::EAX }) + rng.below(16) as u32
}

/// Gives `insn` a memory operand at `target`. The registers' values come later.
fn set_memory(rng: &mut Rng, insn: &mut Instruction, target: u64) {
    let wide = !rng.one_in(8) || target >> 32 != 0;
    let low = target as i32;
    match rng.below(16) {
        // An absolute address, or one relative to RIP.
        0 if target >> 31 == 0 => {
            insn.set_memory_displ_size(if wide { 8 } else { 4 });
            insn.set_memory_displacement64(target);
        }
        1 if target >> 31 == 0 => {
            insn.set_memory_base(if wide { Register::RIP } else { Register::EIP });
            insn.set_memory_displ_size(if wide { 8 } else { 4 });
            insn.set_memory_displacement64(target);
        }
        2 if target >> 31 == 0 => {
            let index = rng.pick(&[Register::RCX, Register::RBP, Register::R12, Register::R13]);
            insn.set_memory_index(index);
            insn.set_memory_index_scale(1 << rng.below(4));
            insn.set_memory_displ_size(8);
            insn.set_memory_displacement64(i64::from(low) as u64);
        }
        shape => {
            insn.set_memory_base(base_register(rng, wide));
            if shape > 8 {
                let index = base_register(rng, wide);
                let is_sp = matches!(index, Register::RSP | Register::ESP);
                if index != insn.memory_base() && !is_sp {
                    insn.set_memory_index(index);
                    insn.set_memory_index_scale(1 << rng.below(4));
                }
            }
            let displacement = match rng.below(3) {
                0 => 0,
                1 => rng.next() as i8 as i64,
                _ => i64::from(rng.next() as i32),
            };
            let narrow = i64::from(displacement as i8) == displacement;
            let none = displacement == 0;
            insn.set_memory_displ_size(match () {
                () if none => 0,
                () if narrow => 1,
                () => {
                    if wide {
                        8
                    } else {
                        4
                    }
                }
            });
            let bits = if wide { u64::MAX } else { u64::from(u32::MAX) };
            insn.set_memory_displacement64(displacement as u64 & bits);
        }
    }
    if rng.one_in(32) {
        insn.set_segment_prefix(rng.pick(&[Register::ES, Register::DS, Register::GS]));
    }
}

/// A register of the class that an operand wants.
fn register(rng: &mut Rng, kind: Kind) -> Option<Register> {
    use Kind::*;
    let first = match kind {
        r8_reg | r8_opcode | r8_or_mem => Register::AL,
        r16_reg | r16_reg_mem | r16_rm | r16_opcode | r16_or_mem => Register::AX,
        r32_reg | r32_reg_mem | r32_rm | r32_opcode | r32_or_mem | r32_vvvv => Register::EAX,
        r64_reg | r64_reg_mem | r64_rm | r64_opcode | r64_or_mem | r64_vvvv => Register::RAX,
        xmm_reg | xmm_rm | xmm_or_mem | xmm_vvvv | xmm_is4 => Register::XMM0,
        ymm_reg | ymm_rm | ymm_or_mem | ymm_vvvv | ymm_is4 => Register::YMM0,
        mm_reg | mm_rm | mm_or_mem => return Some(Register::MM0 + rng.below(8) as u32),
        sti_opcode => return Some(Register::ST0 + rng.below(8) as u32),
        seg_reg => return Some(Register::ES + rng.below(6) as u32),
        cr_reg => return Some(rng.pick(&[Register::CR0, Register::CR3, Register::CR8])),
        dr_reg => return Some(Register::DR0 + rng.below(8) as u32),
        es => return Some(Register::ES),
        cs => return Some(Register::CS),
        ss => return Some(Register::SS),
        ds => return Some(Register::DS),
        fs => return Some(Register::FS),
        gs => return Some(Register::GS),
        al => return Some(Register::AL),
        cl => return Some(Register::CL),
        ax => return Some(Register::AX),
        dx => return Some(Register::DX),
        eax => return Some(Register::EAX),
        rax => return Some(Register::RAX),
        st0 => return Some(Register::ST0),
        _ => return Option::None,
    };
    // Twenty byte registers: AL to BH, SPL to R15L.
    let count = if first == Register::AL { 20 } else { 16 };
    Some(first + rng.below(count) as u32)
}

fn is_register_or_memory(kind: Kind) -> bool {
    use Kind::*;
    matches!(
        kind,
        r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem | mm_or_mem | xmm_or_mem | ymm_or_mem
    )
}

/// Sets operand `n` of `insn` to something that `kind` allows; `None` if it is of a kind that no
/// covered form has.
fn set_operand(
    rng: &mut Rng,
    insn: &mut Instruction,
    n: u32,
    kind: Kind,
    at: (u64, u64),
) -> Option<()> {
    use Kind::*;
    let (ip, target) = at;
    let narrow = insn.memory_displ_size() == 2;
    let value = rng.integer();
    match kind {
        mem | mem_mib => {
            insn.set_op_kind(n, OpKind::Memory);
            set_memory(rng, insn, target);
        }
        mem_vsib32x | mem_vsib64x | mem_vsib32y | mem_vsib64y => {
            insn.set_op_kind(n, OpKind::Memory);
            let long = !rng.one_in(8);
            insn.set_memory_base(base_register(rng, long));
            let wide = matches!(kind, mem_vsib32y | mem_vsib64y);
            let first = if wide { Register::YMM0 } else { Register::XMM0 };
            insn.set_memory_index(first + rng.below(16) as u32);
            insn.set_memory_index_scale(1 << rng.below(4));
            if rng.one_in(2) {
                insn.set_memory_displ_size(1);
                insn.set_memory_displacement64(rng.next() as i8 as u64 & 0x7f);
            }
        }
        mem_offs => {
            insn.set_op_kind(n, OpKind::Memory);
            insn.set_memory_displ_size(8);
            insn.set_memory_displacement64(target);
        }
        _ if is_register_or_memory(kind) && rng.one_in(2) => {
            insn.set_op_kind(n, OpKind::Memory);
            set_memory(rng, insn, target);
        }
        imm8 => {
            let before = (n > 0).then(|| insn.op_kind(n - 1));
            let is_second = matches!(before, Some(OpKind::Immediate8 | OpKind::Immediate16));
            let small = if rng.one_in(2) { value } else { value & 7 } as u8;
            if is_second {
                // ENTER's nesting is mostly small.
                let any = rng.one_in(8) || before == Some(OpKind::Immediate8);
                insn.set_op_kind(n, OpKind::Immediate8_2nd);
                insn.set_immediate8_2nd(if any { small } else { small & 3 });
            } else {
                insn.set_op_kind(n, OpKind::Immediate8);
                insn.set_immediate8(small);
            }
        }
        imm8_const_1 => {
            insn.set_op_kind(n, OpKind::Immediate8);
            insn.set_immediate8(1);
        }
        imm8sex16 => {
            insn.set_op_kind(n, OpKind::Immediate8to16);
            insn.set_immediate8to16(i16::from(value as i8));
        }
        imm8sex32 => {
            insn.set_op_kind(n, OpKind::Immediate8to32);
            insn.set_immediate8to32(i32::from(value as i8));
        }
        imm8sex64 => {
            insn.set_op_kind(n, OpKind::Immediate8to64);
            insn.set_immediate8to64(i64::from(value as i8));
        }
        imm16 => {
            insn.set_op_kind(n, OpKind::Immediate16);
            let frame = insn.mnemonic() == Mnemonic::Enter && !rng.one_in(8);
            insn.set_immediate16(if frame { value & 0xff } else { value } as u16);
        }
        imm32 => {
            insn.set_op_kind(n, OpKind::Immediate32);
            insn.set_immediate32(value as u32);
        }
        imm32sex64 => {
            insn.set_op_kind(n, OpKind::Immediate32to64);
            insn.set_immediate32to64(i64::from(value as i32));
        }
        imm64 => {
            insn.set_op_kind(n, OpKind::Immediate64);
            insn.set_immediate64(value);
        }
        seg_rSI => insn.set_op_kind(n, pick_string(narrow, OpKind::MemorySegRSI)),
        es_rDI => insn.set_op_kind(n, pick_string(narrow, OpKind::MemoryESRDI)),
        seg_rDI => insn.set_op_kind(n, pick_string(narrow, OpKind::MemorySegRDI)),
        seg_rBX_al => {
            insn.set_op_kind(n, OpKind::Memory);
            insn.set_memory_base(if narrow { Register::EBX } else { Register::RBX });
            insn.set_memory_index(Register::AL);
        }
        br16_1 | br16_2 => {
            insn.set_op_kind(n, OpKind::NearBranch16);
            insn.set_near_branch16(ip.wrapping_add(u64::from(value as u8 % 100)) as u16);
        }
        br64_1 => {
            insn.set_op_kind(n, OpKind::NearBranch64);
            insn.set_near_branch64(ip.wrapping_add(value as i8 as u64 % 120).wrapping_sub(60));
        }
        br64_4 => {
            insn.set_op_kind(n, OpKind::NearBranch64);
            insn.set_near_branch64(ip.wrapping_add(value as i32 as u64 >> 1));
        }
        _ => {
            insn.set_op_kind(n, OpKind::Register);
            insn.set_op_register(n, register(rng, kind)?);
        }
    }
    Some(())
}

/// The operand of a string instruction with 32-bit addresses, or with 64-bit ones.
fn pick_string(narrow: bool, wide: OpKind) -> OpKind {
    match (narrow, wide) {
        (true, OpKind::MemorySegRSI) => OpKind::MemorySegESI,
        (true, OpKind::MemoryESRDI) => OpKind::MemoryESEDI,
        (true, OpKind::MemorySegRDI) => OpKind::MemorySegEDI,
        _ => wide,
    }
}

/// The bytes of an instruction of form `code` for address `ip`, whose memory operand will be at
/// `target`. `None` if the random choices do not go together.
fn encode(rng: &mut Rng, code: Code, ip: u64, target: u64) -> Option<Vec<u8>> {
    let form = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    if rng.one_in(8) {
        // Tells string operands to take 32-bit addresses; explicit operands set their own.
        insn.set_memory_displ_size(2);
    }
    for n in 0..form.op_count() {
        set_operand(rng, &mut insn, n, form.op_kind(n), (ip, target))?;
    }
    let in_memory = insn.op_count() > 0 && insn.op0_kind() == OpKind::Memory;
    if form.can_use_lock_prefix() && in_memory && rng.one_in(4) {
        insn.set_has_lock_prefix(true);
    }
    if form.can_use_rep_prefix() && rng.one_in(3) {
        insn.set_has_rep_prefix(true);
    } else if form.can_use_repne_prefix() && rng.one_in(2) {
        insn.set_has_repne_prefix(true);
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&insn, ip).ok()?;
    Some(encoder.take_buffer())
}

fn decode(bytes: &[u8], ip: u64) -> Instruction {
    Decoder::with_ip(64, bytes, ip, DecoderOptions::AMD).decode()
}

/// Puts a prefix before an instruction that has no need of it, if what comes of it may be run.
fn add_prefix(rng: &mut Rng, bytes: &mut Vec<u8>, insn: &mut Instruction, ip: u64) {
    const PREFIXES: [u8; 12] =
        [0x66, 0x66, 0xf2, 0xf3, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x65, 0x67, 0xf0];
    let prefix = if rng.one_in(8) { 0x40 | rng.below(16) as u8 } else { rng.pick(&PREFIXES) };
    // Nowhere said, but AMD's processors let these choose the condition in place of the opcode.
    let is_loop = matches!(insn.mnemonic(), Mnemonic::Loope | Mnemonic::Loopne);
    if is_loop && matches!(prefix, 0xf2 | 0xf3) {
        return;
    }
    let mut longer = vec![prefix];
    longer.extend_from_slice(bytes);
    let decoded = decode(&longer, ip);
    let known = !decoded.is_invalid()
        && decoded.len() == longer.len()
        && classify(decoded.code()) == Verdict::Covered;
    // LOCK where it is not allowed makes any instruction undefined.
    if known || prefix == 0xf0 && decoded.is_invalid() && !insn.has_lock_prefix() {
        *bytes = longer;
        *insn = if known { decoded } else { *insn };
    }
}

/// A case of form `code`; `None` if the random choices do not go together.
pub(crate) fn case(rng: &mut Rng, pool: &Pool, code: Code) -> Option<Case> {
    let ip = CODE + rng.below(PAGE - 32);
    let target = target(rng);
    let mut bytes = encode(rng, code, ip, target)?;
    let mut insn = decode(&bytes, ip);
    if insn.code() != code || insn.len() != bytes.len() {
        return None;
    }
    if rng.one_in(8) {
        add_prefix(rng, &mut bytes, &mut insn, ip);
    }
    let mut state = random_state(rng, pool, ip);
    place_operands(rng, &insn, &mut state, target);
    prepare(rng, &insn, &mut state);
    is_safe(&insn, &state).then_some(Case { insn, bytes, state })
}

fn random_state(rng: &mut Rng, pool: &Pool, ip: u64) -> State {
    let mut gpr = std::array::from_fn(|_| rng.integer());
    let slack = if rng.one_in(8) { rng.below(8) } else { 0 };
    gpr[4] = STACK + PAGE / 2 + 8 * rng.below(64) + slack;
    if rng.one_in(64) {
        gpr[4] = STACK + rng.below(32);
    }
    let mut rflags = rng.next() & CHANGEABLE | 2 | IF;
    if rng.one_in(16) {
        rflags |= AC;
    }
    let ymm_high = std::array::from_fn(|_| rng.vector());
    State { gpr, rip: ip, rflags, image: random_image(rng), ymm_high, memory: pool.memory(rng) }
}

/// x87, MXCSR and XMM registers.
fn random_image(rng: &mut Rng) -> [u8; IMAGE] {
    let mut image = [0; IMAGE];
    let masks = if rng.one_in(4) { rng.next() as u16 & 0x3f } else { 0x3f };
    // The reserved precision is left out; the infinity bit (12) may be either.
    let precision = rng.pick(&[0u16, 2, 3, 3, 3]) << 8;
    let control = masks | 0x40 | precision | rng.next() as u16 & 0x1c00;
    let flags = if rng.one_in(2) { rng.below(64) as u16 } else { 0 };
    let pending = rng.one_in(32);
    let flags = if pending { flags } else { flags & control & 0x3f };
    let summary = if flags & !control & 0x3f != 0 { 0x8080 } else { 0 };
    let status = flags | summary | rng.next() as u16 & 0x7f00;
    let valid = match rng.below(3) {
        0 => rng.next() as u8,
        _ => rng.pick(&[0xffu8, 0xfe, 0x7f, 3]).rotate_left(u32::from(status >> 11 & 7)),
    };
    let mxcsr = match rng.below(8) {
        0 => rng.next() as u32 & 0xffff,
        1..4 => 0x1f80 | rng.next() as u32 & 0xe07f,
        _ => 0x1f80 | rng.next() as u32 & 0x3f,
    };
    image[0..2].copy_from_slice(&control.to_le_bytes());
    image[2..4].copy_from_slice(&status.to_le_bytes());
    image[4] = valid;
    image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    let near = rng.one_in(2);
    for n in 0..8 {
        let mut value = rng.extended();
        if near {
            let exponent = 0x3fff - 20 + u128::from(rng.below(90));
            value = value & !(0x7fff << 64) | exponent << 64 | 1 << 63;
        }
        image[32 + 16 * n..42 + 16 * n].copy_from_slice(&value.to_le_bytes()[..10]);
    }
    for n in 0..16 {
        image[160 + 16 * n..176 + 16 * n].copy_from_slice(&rng.vector().to_le_bytes());
    }
    image
}

fn number(register: Register) -> usize {
    register.full_register().number()
}

/// Sets the low `size` bytes of register `n`.
fn set_sized(state: &mut State, n: usize, size: usize, value: u64) {
    let mask = if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 };
    state.gpr[n] = state.gpr[n] & !mask | value & mask;
}

/// Sets the registers that address memory so that it is at `first`, the second operand of a string
/// instruction elsewhere.
fn place_operands(rng: &mut Rng, insn: &Instruction, state: &mut State, first: u64) {
    for n in 0..insn.op_count() {
        let other = if rng.one_in(4) { target(rng) } else { DATA + rng.below(DATA_LEN - 512) };
        match insn.op_kind(n) {
            OpKind::Memory => place_memory(rng, insn, state, first),
            OpKind::MemorySegRSI => state.gpr[6] = first,
            OpKind::MemorySegESI => set_sized(state, 6, 4, first),
            OpKind::MemoryESRDI | OpKind::MemorySegRDI => state.gpr[7] = other,
            OpKind::MemoryESEDI | OpKind::MemorySegEDI => set_sized(state, 7, 4, other),
            _ => {}
        }
    }
}

fn place_memory(rng: &mut Rng, insn: &Instruction, state: &mut State, target: u64) {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let scale = u64::from(insn.memory_index_scale());
    if base == Register::None && index != Register::None {
        // The displacement is the target; the index moves it a little.
        set_sized(state, number(index), index.size(), rng.below(8));
        return;
    }
    if base == Register::None || base.is_ip() {
        return;
    }
    if index.is_vector_register() {
        // Small indices, of either width.
        let mut indices = || (0..4).fold(0, |v, _| v << 32 | u128::from(rng.below(40)));
        let (low, high) = (indices(), indices());
        let n = index.number();
        let keep = if insn.is_vsib64() {
            !(u128::from(u32::MAX) << 32 | u128::from(u32::MAX) << 96)
        } else {
            u128::MAX
        };
        state.image[160 + 16 * n..176 + 16 * n].copy_from_slice(&(low & keep).to_le_bytes());
        state.ymm_high[n] = high & keep;
    }
    let index = match index {
        _ if index.is_vector_register() => 0,
        Register::None => 0,
        Register::AL => state.gpr[0] & 0xff,
        _ => state.gpr[number(index)],
    };
    let value =
        target.wrapping_sub(insn.memory_displacement64()).wrapping_sub(index.wrapping_mul(scale));
    set_sized(state, number(base), base.size(), value);
}

/// The linear address of `insn`'s explicit memory operand.
pub(crate) fn memory_address(insn: &Instruction, state: &State) -> Option<u64> {
    let n = (0..insn.op_count()).find(|&n| insn.op_kind(n) == OpKind::Memory)?;
    insn.virtual_address(n, 0, |register, _, _| register_value(state, register))
}

fn register_value(state: &State, register: Register) -> Option<u64> {
    if register.is_vector_register() {
        // A gather's indices are small.
        return Some(0);
    }
    if register.is_segment_register() {
        return (register != Register::FS).then_some(0);
    }
    let value = state.gpr[number(register)];
    Some(match register.size() {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    })
}

/// Makes the state such that the instruction does more than fail.
fn prepare(rng: &mut Rng, insn: &Instruction, state: &mut State) {
    let address = memory_address(insn, state);
    if insn.has_rep_prefix() || insn.has_repne_prefix() {
        let size = if insn.op_kinds().any(|kind| {
            matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI)
        }) {
            4
        } else {
            8
        };
        let count = rng.below(12);
        set_sized(state, 1, size, count);
    }
    let destination = match address {
        Some(address) => state.bytes_at(address).map(|bytes| {
            let mut value = [0; 16];
            let len = bytes.len().min(16);
            value[..len].copy_from_slice(&bytes[..len]);
            u128::from_le_bytes(value)
        }),
        None => Some(u128::from(state.gpr[number(insn.op0_register()) & 15])),
    };
    match insn.mnemonic() {
        Mnemonic::Div | Mnemonic::Idiv if rng.one_in(2) => {
            state.gpr[2] = if rng.one_in(2) { 0 } else { rng.next() >> rng.below(64) };
        }
        Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b if rng.one_in(2) => {
            expect(insn, state, destination.unwrap_or(0));
        }
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
            if address.is_some() && insn.op1_kind() == OpKind::Register =>
        {
            let register = insn.op1_register();
            let offset = rng.below(2048).wrapping_sub(1024);
            if register.full_register() != insn.memory_base().full_register()
                && register.full_register() != insn.memory_index().full_register()
            {
                set_sized(state, number(register), register.size(), offset);
            }
        }
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => fill(state, address, &mxcsr(rng)),
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
            let mxcsr = mxcsr(rng);
            fill(state, address.map(|a| a + 24), &mxcsr);
        }
        Mnemonic::Jmp | Mnemonic::Call if address.is_some() => {
            let to = code_address(rng);
            fill(state, address, &to.to_le_bytes());
        }
        Mnemonic::Jmp | Mnemonic::Call if insn.op0_kind() == OpKind::Register => {
            state.gpr[number(insn.op0_register())] = code_address(rng);
        }
        Mnemonic::Ret => {
            let to = code_address(rng);
            fill(state, Some(state.gpr[4]), &to.to_le_bytes());
        }
        Mnemonic::Leave | Mnemonic::Enter => {
            state.gpr[5] = STACK + PAGE / 2 + rng.below(1024);
        }
        _ => {}
    }
}

/// A mostly canonical address to branch to.
fn code_address(rng: &mut Rng) -> u64 {
    if rng.one_in(8) { rng.next() } else { (rng.next() as i64 >> 17) as u64 & 0x7fff_ffff_ffff }
}

/// A value for MXCSR, at times one that is refused. Bit 17 is left out: some hosts have it.
fn mxcsr(rng: &mut Rng) -> [u8; 4] {
    let value = rng.next() as u32 & 0xffff;
    let reserved = if rng.one_in(8) { 1 << rng.pick(&[16, 18, 24, 31]) } else { 0 };
    (value | reserved).to_le_bytes()
}

fn fill(state: &mut State, address: Option<u64>, value: &[u8]) {
    if let Some(bytes) = address.and_then(|address| state.bytes_at(address)) {
        let len = bytes.len().min(value.len());
        bytes[..len].copy_from_slice(&value[..len]);
    }
}

/// Puts `value` where a compare-and-exchange looks for the expected one.
fn expect(insn: &Instruction, state: &mut State, value: u128) {
    match insn.mnemonic() {
        Mnemonic::Cmpxchg8b => {
            state.gpr[0] = value as u64 & 0xffff_ffff;
            state.gpr[2] = (value >> 32) as u64 & 0xffff_ffff;
        }
        Mnemonic::Cmpxchg16b => {
            state.gpr[0] = value as u64;
            state.gpr[2] = (value >> 64) as u64;
        }
        // An address in RAX must stay one.
        _ if insn.memory_base().full_register() == Register::RAX
            || insn.memory_index().full_register() == Register::RAX => {}
        _ => state.gpr[0] = value as u64,
    }
}

/// Whether `insn` can do the host no harm.
fn is_safe(insn: &Instruction, state: &State) -> bool {
    let stays = |address: u64, len: u64| {
        let canonical = (address as i64) << 16 >> 16 == address as i64;
        let end = address.wrapping_add(len);
        !canonical || RESERVED.contains(&address) && RESERVED.contains(&end)
    };
    let mut factory = InstructionInfoFactory::new();
    let inside = factory.info(insn).used_memory().iter().all(|used| {
        let address = used.virtual_address(0, |register, _, _| register_value(state, register));
        // The longest: an FXSAVE image, a repetition. Hints have operands of no size, as repetitions do.
        address.is_some_and(|address| stays(address, 1024) && stays(address.wrapping_sub(1024), 0))
            || used.memory_size() == MemorySize::Unknown
                && !insn.is_string_instruction()
                && !matches!(insn.mnemonic(), Mnemonic::Fxsave | Mnemonic::Fxrstor)
    });
    let address = memory_address(insn, state);
    let bit_string = match (insn.mnemonic(), address) {
        (Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc, Some(address))
            if insn.op1_kind() == OpKind::Register =>
        {
            let register = insn.op1_register();
            let unused = 64 - 8 * register.size() as u32;
            let offset = (state.gpr[number(register)] as i64) << unused >> unused;
            stays(address.wrapping_add((offset >> 3) as u64), 64)
        }
        _ => true,
    };
    let system_call = insn.code() == Code::Int_imm8 && insn.immediate8() == 0x80;
    inside && bit_string && !system_call && insn.segment_prefix() != Register::FS
}
