//! Speed of the interpreter in guest instructions a second, on small 64-bit loops.
//!
//! `cargo bench -p cpu-x86 --bench interpreter`; "elem/s" in the output are guest instructions.

use std::sync::Arc;

use accel::{Exit, NoBoard, Vcpu};
use cpu_x86::state::{Activity, Segment};
use cpu_x86::{Cpu, CpuConfig, CpuState, CpuWiring, Topology};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory::GuestMemory;

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
const STACK: u64 = 0x8_0000;
const ROUNDS: u32 = 100_000;

/// A CPU in 64-bit mode with the first 4 MiB mapped to themselves.
fn long_mode() -> (Cpu, CpuState, Arc<GuestMemory>) {
    let memory = Arc::new(GuestMemory::new(&[(0, 4 << 20)]).expect("guest memory"));
    for (at, entry) in [(0x1000, 0x2007u64), (0x2000, 0x3007), (0x3000, 0x87), (0x3008, 0x20_0087)]
    {
        memory.write(at, &entry.to_le_bytes()).expect("in RAM");
    }
    let board = Arc::new(NoBoard);
    let wiring = CpuWiring {
        memory: Arc::clone(&memory),
        bus: board.clone(),
        interrupts: board.clone(),
        clock: board,
        signals: Arc::default(),
        group: Arc::default(),
    };
    let cpu = Cpu::new(
        CpuConfig { apic_id: 0, topology: Topology::default(), model: Arc::default() },
        wiring,
    );
    let mut state = cpu.state();
    state.cr0 = 0x8000_0011;
    state.cr3 = 0x1000;
    // PAE, and SSE with its exceptions.
    state.cr4 = 0x620;
    // The inexact flag is set, as it soon is in any program.
    state.mxcsr = 0x1fa0;
    state.xmm[1] = u128::from(1.000_1f64.to_bits());
    state.xmm[2] = u128::from(0.999_9f64.to_bits());
    state.x87.control = 0x37f;
    state.x87.tags = 0xffff;
    state.msrs.retain(|&(index, _)| index != 0xc000_0080);
    state.msrs.push((0xc000_0080, 0x500));
    state.msrs.sort_unstable();
    state.segments = [Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xc093 }; 6];
    state.segments[1] = Segment { selector: 8, base: 0, limit: u32::MAX, attributes: 0xa09b };
    state.gpr[4] = STACK;
    state.rip = CODE;
    (cpu, state, memory)
}

/// Benchmarks `body`, run [`ROUNDS`] times by a loop around it that counts RCX down.
fn bench(
    c: &mut Criterion,
    name: &str,
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut top = a.create_label();
        a.mov(ecx, ROUNDS)?;
        a.mov(esi, DATA as u32)?;
        a.set_label(&mut top)?;
        body(&mut a)?;
        a.dec(rcx)?;
        a.jne(top)?;
        a.hlt()?;
        a.assemble(CODE)
    };
    let code = assemble().expect("the program assembles");
    let (mut cpu, state, memory) = long_mode();
    memory.write(CODE, &code).expect("the program fits");
    let mut run = || {
        let mut start = state.clone();
        start.activity = Activity::Running;
        cpu.set_state(&start).expect("the state is valid");
        let before = cpu.glance()().instructions;
        assert!(matches!(cpu.run(), Exit::Halt { .. }));
        cpu.glance()().instructions - before
    };
    let instructions = run();
    let mut group = c.benchmark_group("interpreter");
    group.throughput(Throughput::Elements(instructions));
    group.sample_size(20);
    group.bench_function(name, |b| b.iter(&mut run));
    group.finish();
}

/// SSE and x87.
fn floating_point(c: &mut Criterion) {
    bench(c, "scalar doubles", |a| {
        a.cvtsi2sd(xmm0, ecx)?;
        a.mulsd(xmm0, xmm1)?;
        a.addsd(xmm0, xmm2)?;
        a.subsd(xmm0, xmm1)?;
        a.ucomisd(xmm0, xmm1)?;
        a.divsd(xmm0, xmm1)?;
        a.cvttsd2si(eax, xmm0)?;
        Ok(())
    });
    bench(c, "packed integers", |a| {
        a.movdqu(xmm0, xmmword_ptr(rsi))?;
        a.pcmpeqb(xmm0, xmm3)?;
        a.pmovmskb(eax, xmm0)?;
        a.paddd(xmm4, xmm1)?;
        a.pxor(xmm5, xmm4)?;
        a.pshufd(xmm6, xmm5, 0x1b)?;
        a.punpcklbw(xmm7, xmm6)?;
        a.movaps(xmmword_ptr(rsi + 16), xmm7)?;
        Ok(())
    });
    bench(c, "x87", |a| {
        a.fld1()?;
        a.fldpi()?;
        a.fmul_2(st1, st0)?;
        a.faddp(st1, st0)?;
        a.fstp(qword_ptr(rsi))?;
        Ok(())
    });
}

fn benches(c: &mut Criterion) {
    floating_point(c);
    bench(c, "alu and memory", |a| {
        a.mov(rax, rcx)?;
        a.and(eax, 0xfff)?;
        a.mov(rdx, qword_ptr(rsi + rax * 8))?;
        a.add(rdx, rcx)?;
        a.xor(rbx, rdx)?;
        a.shl(rdx, 3)?;
        a.mov(qword_ptr(rsi + rax * 8), rdx)?;
        a.add(qword_ptr(rsi), rbx)?;
        a.lea(rdi, qword_ptr(rdx + rbx * 2 + 5))?;
        a.sub(rdi, rax)?;
        Ok(())
    });
    bench(c, "alu only", |a| {
        a.add(rax, rcx)?;
        a.xor(rbx, rax)?;
        a.sub(rdx, rbx)?;
        a.and(rdi, rdx)?;
        a.or(rdi, rax)?;
        a.mov(r8, rdi)?;
        Ok(())
    });
    bench(c, "short blocks", |a| {
        let mut skip = a.create_label();
        let mut over = a.create_label();
        a.test(ecx, 1)?;
        a.je(skip)?;
        a.add(rax, rcx)?;
        a.set_label(&mut skip)?;
        a.cmp(rax, rcx)?;
        a.jb(over)?;
        a.inc(rbx)?;
        a.set_label(&mut over)?;
        a.nop()?;
        Ok(())
    });
    bench(c, "calls", |a| {
        let mut function = a.create_label();
        let mut after = a.create_label();
        a.call(function)?;
        a.jmp(after)?;
        a.set_label(&mut function)?;
        a.push(rbx)?;
        a.mov(rbx, rcx)?;
        a.pop(rbx)?;
        a.ret()?;
        a.set_label(&mut after)?;
        a.nop()?;
        Ok(())
    });
    bench(c, "byte scan", |a| {
        a.movzx(eax, byte_ptr(rsi))?;
        a.test(al, al)?;
        a.sete(dl)?;
        a.cmp(al, byte_ptr(rsi + 1))?;
        a.mov(byte_ptr(rsi + 2), dl)?;
        Ok(())
    });
}

criterion_group!(all, benches);
criterion_main!(all);
