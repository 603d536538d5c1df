//! Every instruction of the unit, whole, against the host's own: all opcodes and operand forms that the
//! decoder hands to [`super::select`], on random state.
//!
//! The host runs each instruction between FXRSTOR64 and FXSAVE64, with all SSE exceptions masked (x87's
//! need not be, since nothing that waits follows). Memory operands are at [RDI].
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use iced_x86::code_asm::*;
use iced_x86::{Code, Decoder, DecoderOptions, IcedError, Instruction, Mnemonic, OpKind, Register};

use super::softfloat::tests::Rng;
use crate::cpu::Cpu;
use crate::decode::decode;
use crate::exception::{Exception, vector};
use crate::flags::bits;
use crate::regs::{CR4_OSXMMEXCPT, CR4_OSXSAVE};
use crate::testing;

/// Registers that instructions may use: the others are the harness's own.
const GPRS: [u8; 6] = [0, 1, 2, 3, 6, 8];
/// Where the memory operand is in the guest.
const GUEST_BUFFER: u64 = 0x20_0000;
const BUFFER: usize = 640;

/// State before and after, as the host's code addresses it.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(64))]
struct Context {
    image: [u8; 512],
    gprs: [u64; 6],
    buffer_address: u64,
    rflags: u64,
    mxcsr_default: u64,
    buffer: Buffer,
}

/// What [RDI] points to, aligned as XSAVE wants it.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(64))]
struct Buffer([u8; BUFFER]);

/// A page of code that runs one instruction: it, between code that loads and saves the state.
struct Host {
    page: *mut u8,
    before: Vec<u8>,
    after: Vec<u8>,
}

const PAGE: usize = 4096;

/// Where the instruction ends, for [`on_fault`].
static RESUME_AT: AtomicU64 = AtomicU64::new(0);
/// MXCSR as the last SIGFPE found it, or [`NO_FAULT`].
static FAULT_MXCSR: AtomicU64 = AtomicU64::new(NO_FAULT);
const NO_FAULT: u64 = u64::MAX;

/// SIGFPE: notes MXCSR and goes on after the instruction with everything masked.
extern "C" fn on_fault(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the interrupted thread's context, which is ours to change.
    unsafe {
        let context = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let mxcsr = &mut (*context.fpregs).mxcsr;
        FAULT_MXCSR.store(u64::from(*mxcsr), Ordering::Relaxed);
        *mxcsr |= 0x1f80;
        context.gregs[libc::REG_RIP as usize] = RESUME_AT.load(Ordering::Relaxed) as i64;
    }
}

impl Host {
    fn new() -> Self {
        // SAFETY: an anonymous mapping of its own.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED);
        let (before, after) = Self::frame().expect("the harness assembles");
        Self { page: page.cast(), before, after }
    }

    /// The code around the instruction; it does not depend on where it is.
    fn frame() -> Result<(Vec<u8>, Vec<u8>), IcedError> {
        let gprs = [rax, rcx, rdx, rbx, rsi, r8];
        let mut a = CodeAssembler::new(64)?;
        a.push(rbx)?;
        a.push(r15)?;
        a.mov(r15, rdi)?;
        a.fxrstor64(ptr(r15))?;
        a.push(qword_ptr(r15 + 568))?;
        a.popfq()?;
        for (i, &gpr) in gprs.iter().enumerate() {
            a.mov(gpr, qword_ptr(r15 + 512 + 8 * i))?;
        }
        a.mov(rdi, qword_ptr(r15 + 560))?;
        let before = a.assemble(0)?;
        let mut a = CodeAssembler::new(64)?;
        for (i, &gpr) in gprs.iter().enumerate() {
            a.mov(qword_ptr(r15 + 512 + 8 * i), gpr)?;
        }
        a.pushfq()?;
        a.pop(qword_ptr(r15 + 568))?;
        a.fxsave64(ptr(r15))?;
        a.fninit()?;
        a.ldmxcsr(dword_ptr(r15 + 576))?;
        a.pop(r15)?;
        a.pop(rbx)?;
        a.ret()?;
        Ok((before, a.assemble(0)?))
    }

    /// Where the instruction is.
    fn rip(&self) -> u64 {
        (self.page as usize + self.before.len()) as u64
    }

    /// Runs the instruction; returns whether it raised an SSE exception, after which MXCSR in the
    /// context is what the handler found.
    fn run(&self, instruction: &[u8], context: &mut Context) -> bool {
        let code = [&self.before, instruction, &self.after].concat();
        assert!(code.len() <= PAGE);
        context.buffer_address = context.buffer.0.as_ptr() as u64;
        context.mxcsr_default = 0x1f80;
        RESUME_AT.store(self.rip() + instruction.len() as u64, Ordering::Relaxed);
        FAULT_MXCSR.store(NO_FAULT, Ordering::Relaxed);
        // SAFETY: the page is ours, writable and executable; the code is a function of the C calling
        // convention that saves what it must, and touches `context` only. The instruction is one of
        // those that the test chose: it works on the loaded registers and the buffer.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.page, code.len());
            let run: extern "C" fn(*mut Context) = std::mem::transmute(self.page);
            run(context);
        }
        let mxcsr = FAULT_MXCSR.load(Ordering::Relaxed);
        if mxcsr != NO_FAULT {
            context.image[24..28].copy_from_slice(&(mxcsr as u32).to_le_bytes());
        }
        mxcsr != NO_FAULT
    }
}

/// A vector register's contents: numbers of either format, small integers, or anything.
fn vector(rng: &mut Rng) -> u128 {
    let wide = |low: u64, high: u64| u128::from(high) << 64 | u128::from(low);
    match rng.below(6) {
        0 | 1 => wide(rng.number::<u64>(), rng.number::<u64>()),
        2 | 3 => (0..4).fold(0, |v, _| v << 32 | u128::from(rng.number::<u32>())),
        4 => (0..16).fold(0, |v, _| v << 8 | u128::from(rng.below(4))),
        _ => wide(rng.next(), rng.next()),
    }
}

fn random_context(rng: &mut Rng) -> Context {
    let mut context = Context {
        image: [0; 512],
        gprs: std::array::from_fn(|_| {
            if rng.below(2) == 0 { rng.next() } else { rng.below(40).wrapping_sub(20) }
        }),
        buffer_address: 0,
        rflags: rng.next() & bits::ARITH | 2,
        mxcsr_default: 0,
        buffer: Buffer([0; BUFFER]),
    };
    let control = rng.control();
    let flags = if rng.below(2) == 0 { rng.below(64) as u16 } else { 0 };
    // Nothing pending, or the instruction itself would trap.
    let status = flags & control & 0x3f | (rng.next() as u16 & 0x7f00);
    let valid = if rng.below(3) == 0 {
        rng.next() as u8
    } else {
        [0xff, 0xfe, 0x7f, 3][rng.below(4) as usize]
    };
    let valid = valid.rotate_left(u32::from(status >> 11 & 7));
    let mxcsr = 0x1f80 | rng.next() as u32 & if rng.below(2) == 0 { 0x3f } else { 0xe07f };
    let image = &mut context.image;
    image[0..2].copy_from_slice(&control.to_le_bytes());
    image[2..4].copy_from_slice(&status.to_le_bytes());
    image[4] = valid;
    image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    let near = rng.below(2) == 0;
    for i in 0..8 {
        let mut value = rng.number80();
        if near {
            value.exp = value.exp & 0x8000 | (0x3fff - 20 + rng.below(90) as u16);
            value.sig |= 1 << 63;
        }
        image[32 + 16 * i..42 + 16 * i].copy_from_slice(&value.to_bits().to_le_bytes()[..10]);
    }
    for i in 0..16 {
        image[160 + 16 * i..176 + 16 * i].copy_from_slice(&vector(rng).to_le_bytes());
    }
    for chunk in context.buffer.0.chunks_exact_mut(16) {
        let bits = if rng.below(3) == 0 { rng.number80().to_bits() } else { vector(rng) };
        chunk.copy_from_slice(&bits.to_le_bytes());
    }
    context
}

/// Runs the instruction on our CPU; returns what it raised.
fn run_ours(
    cpu: &mut Cpu,
    rip: u64,
    instruction: &[u8],
    context: &mut Context,
) -> Option<Exception> {
    cpu.memory.write(GUEST_BUFFER, &context.buffer.0).unwrap();
    cpu.load_image_for_test(&context.image);
    for (&n, &value) in GPRS.iter().zip(&context.gprs) {
        cpu.gpr[usize::from(n)] = value;
    }
    cpu.gpr[7] = GUEST_BUFFER;
    context.buffer_address = GUEST_BUFFER;
    cpu.set_rflags_arith(context.rflags);
    let op = decode(&cpu.limits.instructions, true, 64, rip, instruction).expect("complete");
    let raised = (op.run)(cpu, &op).err();
    for (&n, value) in GPRS.iter().zip(&mut context.gprs) {
        *value = cpu.gpr[usize::from(n)];
    }
    context.rflags = cpu.rflags() & bits::ARITH;
    context.image = cpu.save_image_for_test();
    cpu.memory.read(GUEST_BUFFER, &mut context.buffer.0).unwrap();
    raised
}

/// The first difference, in words.
fn difference(insn: &Instruction, ours: &Context, host: &Context) -> Option<String> {
    let range = |name: &str, from: usize, to: usize| {
        let (x, y) = (&ours.image[from..to], &host.image[from..to]);
        let hex = |v: &[u8]| v.iter().rev().map(|b| format!("{b:02x}")).collect::<String>();
        (x != y).then(|| format!("{name}: ours {} host {}", hex(x), hex(y)))
    };
    range("control", 0, 2)
        .or_else(|| range("status", 2, 4))
        .or_else(|| range("tags", 4, 5))
        .or_else(|| range("opcode", 6, 8))
        .or_else(|| range("instruction pointer", 8, 16))
        .or_else(|| {
            let offset = |context: &Context| {
                let dp = u64::from_le_bytes(context.image[16..24].try_into().unwrap());
                (dp != 0).then(|| dp.wrapping_sub(context.buffer_address))
            };
            let (x, y) = (offset(ours), offset(host));
            // An environment that was loaded has the same pointer on both sides.
            let loaded = ours.image[16..24] == host.image[16..24];
            (x != y && !loaded).then(|| format!("operand pointer: ours {x:x?} host {y:x?}"))
        })
        .or_else(|| range("mxcsr", 24, 28))
        .or_else(|| (0..8).find_map(|i| range(&format!("st{i}"), 32 + 16 * i, 42 + 16 * i)))
        .or_else(|| (0..16).find_map(|i| range(&format!("xmm{i}"), 160 + 16 * i, 176 + 16 * i)))
        .or_else(|| {
            (ours.gprs != host.gprs)
                .then(|| format!("gprs: ours {:x?} host {:x?}", ours.gprs, host.gprs))
        })
        .or_else(|| {
            let (x, y) = (ours.rflags & bits::ARITH, host.rflags & bits::ARITH);
            (x != y).then(|| format!("flags: ours {x:#x} host {y:#x}"))
        })
        .or_else(|| {
            (0..BUFFER)
                .filter(|&i| !is_pointer(insn.mnemonic(), i))
                .find(|&i| ours.buffer.0[i] != host.buffer.0[i])
                .map(|i| {
                    let at = |b: &[u8]| format!("{:02x?}", &b[i..(i + 16).min(BUFFER)]);
                    format!("memory+{i}: ours {} host {}", at(&ours.buffer.0), at(&host.buffer.0))
                })
        })
}

/// Bytes of images in memory that hold x87's operand pointer, which tells the harnesses apart, and
/// MXCSR_MASK, which tells hosts apart.
fn is_pointer(mnemonic: Mnemonic, offset: usize) -> bool {
    use Mnemonic::*;
    match mnemonic {
        Fxsave | Fxsave64 | Xsave | Xsave64 | Xsaveopt | Xsaveopt64 => {
            (16..24).contains(&offset) || (28..32).contains(&offset)
        }
        _ => false,
    }
}

/// All encodings to try: prefixes, maps, opcodes; with a ModRM byte to be filled in.
fn encodings() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for rex in [None, Some(0x48), Some(0x45)] {
        for prefix in [None, Some(0x66), Some(0xf3), Some(0xf2)] {
            for map in [&[0x0f][..], &[0x0f, 0x38], &[0x0f, 0x3a]] {
                for opcode in 0..=255u8 {
                    let start: Vec<u8> = prefix.into_iter().chain(rex).collect();
                    all.push([&start[..], map, &[opcode]].concat());
                }
            }
        }
    }
    for rex in [None, Some(0x48)] {
        for opcode in 0xd8..=0xdfu8 {
            // More often, since the ModRM byte has more to say.
            for _ in 0..40 {
                all.push(rex.into_iter().chain([opcode]).collect());
            }
        }
    }
    all
}

/// Completes an encoding with a random ModRM byte and immediate, if that makes an instruction of this
/// unit that the harness can run.
fn complete(rng: &mut Rng, encoding: &[u8]) -> Option<(Instruction, Vec<u8>)> {
    let modrm = match rng.below(2) {
        // [rdi]
        0 => (rng.below(8) as u8) << 3 | 7,
        _ => 0xc0 | rng.below(64) as u8,
    };
    let immediate = if rng.below(2) == 0 { rng.next() as u8 } else { rng.below(20) as u8 };
    let mut bytes = [encoding, &[modrm, immediate]].concat();
    let insn = Decoder::new(64, &bytes, DecoderOptions::AMD).decode();
    if insn.is_invalid() || super::select(&insn).is_none() {
        return None;
    }
    bytes.truncate(insn.len());
    if insn.op_kinds().any(|kind| kind == OpKind::Memory) && insn.memory_base() != Register::RDI {
        return None;
    }
    let usable = (0..insn.op_count()).filter(|&i| insn.op_kind(i) == OpKind::Register).all(|i| {
        let register = insn.op_register(i);
        !register.is_gpr() || GPRS.contains(&(register.number() as u8))
    });
    // What restores MXCSR or XSAVE's header needs well-formed images, the compacted format is laid out
    // by what the host has, and the supervisor's forms are not to be had: they are tested apart.
    let image = matches!(
        insn.mnemonic(),
        Mnemonic::Fxrstor
            | Mnemonic::Fxrstor64
            | Mnemonic::Xrstor
            | Mnemonic::Xrstor64
            | Mnemonic::Xsavec
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaves
            | Mnemonic::Xsaves64
            | Mnemonic::Xrstors
            | Mnemonic::Xrstors64
    );
    let waits = insn.code() == Code::Wait;
    (usable && !image && !waits).then_some((insn, bytes))
}

/// Adjusts the state to what the instruction accepts.
fn prepare(insn: &Instruction, context: &mut Context) {
    match insn.mnemonic() {
        Mnemonic::Ldmxcsr => context.buffer.0[2..4].fill(0),
        Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => {
            // x87 and SSE only.
            context.gprs[0] &= 3;
            context.gprs[2] = 0;
            context.buffer.0[512..576].fill(0);
        }
        _ => {}
    }
}

/// How instructions are chosen, and on what state they run.
struct Plan {
    /// Rounds through all encodings, unless `FPU_ROUNDS` says otherwise.
    rounds: u32,
    /// Whether the instruction takes part.
    wanted: fn(&Instruction) -> bool,
    /// Changes the random state.
    prepare: fn(&mut Rng, &Instruction, &mut Context),
    /// Forms that must have been found for the test to mean something.
    least_forms: usize,
}

/// The harness's statics serve one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

impl Plan {
    fn run(&self) {
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
        let number = |name| std::env::var(name).ok().and_then(|n| n.parse().ok());
        let rounds = number("FPU_ROUNDS").unwrap_or(self.rounds);
        let seed = u64::from(number("FPU_SEED").unwrap_or(1));
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let host = Host::new();
        let mut cpu = testing::long_mode();
        cpu.cr4 |= CR4_OSXSAVE | CR4_OSXMMEXCPT;
        cpu.xcr0 = 3;
        let encodings = encodings();
        let mut covered: BTreeMap<String, u64> = BTreeMap::new();
        let mut failures: BTreeMap<String, (u64, String)> = BTreeMap::new();
        for encoding in (0..rounds).flat_map(|_| &encodings) {
            let Some((insn, bytes)) = complete(&mut rng, encoding) else { continue };
            if !(self.wanted)(&insn) {
                continue;
            }
            let mut before = random_context(&mut rng);
            (self.prepare)(&mut rng, &insn, &mut before);
            let (mut ours, mut theirs) = (before.clone(), before.clone());
            let faulted = host.run(&bytes, &mut theirs);
            let expected = faulted.then_some(Exception::plain(vector::XF));
            let raised = run_ours(&mut cpu, host.rip(), &bytes, &mut ours);
            let wrong = if raised == expected {
                difference(&insn, &ours, &theirs)
            } else {
                Some(format!("raised {raised:?} instead of {expected:?}"))
            };
            *covered.entry(format!("{:?}", insn.code())).or_default() += 1;
            if let Some(wrong) = wrong {
                let entry = failures.entry(format!("{:?}", insn.code())).or_default();
                entry.0 += 1;
                if entry.1.is_empty() {
                    entry.1 = format!("{insn}: {wrong}\n{}", describe(&insn, &before));
                }
            }
        }
        let cases: u64 = covered.values().sum();
        println!("{} forms, {cases} cases", covered.len());
        for (code, (count, example)) in &failures {
            println!("{code}: {count} of {}: {example}", covered[code]);
        }
        assert!(covered.len() >= self.least_forms, "only {} forms were found", covered.len());
        assert!(failures.is_empty(), "{} forms differ", failures.len());
    }
}

/// The state before an instruction, as far as it helps.
fn describe(insn: &Instruction, before: &Context) -> String {
    let image = &before.image;
    let word = |at| u16::from_le_bytes([image[at], image[at + 1]]);
    let xmm = |register: Register| {
        let n = register.number() & 15;
        format!("xmm{n} {:02x?}", &image[160 + 16 * n..][..16])
    };
    format!(
        "    control {:04x} status {:04x} valid {:02x} mxcsr {:04x} st0 {:02x?} st1 {:02x?}\n    \
         {} {} memory {:02x?}",
        word(0),
        word(2),
        image[4],
        word(24),
        &image[32..42],
        &image[48..58],
        xmm(insn.op0_register()),
        xmm(insn.op1_register()),
        &before.buffer.0[..16],
    )
}

#[test]
fn instructions_agree_with_the_host() {
    let plan = Plan {
        rounds: 40,
        wanted: |_| true,
        prepare: |_, insn, context| prepare(insn, context),
        least_forms: 520,
    };
    plan.run();
}

#[test]
fn unmasked_sse_exceptions_agree_with_the_host() {
    // SAFETY: the handler is async-signal-safe; nothing else here handles SIGFPE.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGFPE, &action, std::ptr::null_mut()), 0);
    }
    let plan = Plan {
        rounds: 40,
        wanted: |insn| {
            super::float::select::<super::Legacy>(insn.mnemonic())
                .or_else(|| super::float_convert::select(insn))
                .is_some()
        },
        prepare: |rng, _, context| {
            let mxcsr = rng.next() as u16;
            context.image[24..26].copy_from_slice(&mxcsr.to_le_bytes());
        },
        least_forms: 80,
    };
    plan.run();
}
