//! Every kind of memory operand, in a hot block, that faults in one round: in a page that is not there,
//! across into one, in one that can't be written, at an address that is not canonical.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::scene::{CODE, DATA, READ_ONLY, RESUME, Scene, TABLE, UNMAPPED};

/// Where the addresses are that the loop goes through, the last first.
const TARGETS: u64 = 0x6_0000;
const ROUNDS: u64 = 24;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Instructions with a memory operand at RBX, and, for those with implicit operands, RSI and RDI.
fn forms() -> Vec<(&'static str, Write)> {
    macro_rules! forms {
        ($($name:literal: |$a:ident| $body:expr;)*) => {
            vec![$(($name, (|$a: &mut CodeAssembler| $body) as Write)),*]
        };
    }
    forms! {
        "mov r8": |a| a.mov(dl, byte_ptr(rbx));
        "mov r16": |a| a.mov(dx, word_ptr(rbx));
        "mov r32": |a| a.mov(edx, dword_ptr(rbx));
        "mov r64": |a| a.mov(rdx, qword_ptr(rbx));
        "mov r64 disp": |a| a.mov(r10, qword_ptr(rbx + rcx - 3));
        "mov m8": |a| a.mov(byte_ptr(rbx), dl);
        "mov m8 high": |a| a.mov(byte_ptr(rbx), dh);
        "mov m16": |a| a.mov(word_ptr(rbx), dx);
        "mov m32": |a| a.mov(dword_ptr(rbx), edx);
        "mov m64": |a| a.mov(qword_ptr(rbx), r11);
        "mov m64 imm": |a| a.mov(qword_ptr(rbx), 77i32);
        "movzx": |a| a.movzx(edx, word_ptr(rbx));
        "movsxd": |a| a.movsxd(r14, dword_ptr(rbx));
        "movbe": |a| a.movbe(rdx, qword_ptr(rbx));
        "movbe store": |a| a.movbe(qword_ptr(rbx), rdx);
        "movnti": |a| a.movnti(dword_ptr(rbx), edx);
        "add r, m": |a| a.add(rdx, qword_ptr(rbx));
        "add m, r": |a| a.add(qword_ptr(rbx), rdx);
        "adc m, r": |a| a.adc(dword_ptr(rbx), edx);
        "sbb r, m": |a| a.sbb(r15, qword_ptr(rbx));
        "cmp": |a| a.cmp(word_ptr(rbx), 3);
        "test": |a| a.test(qword_ptr(rbx), rax);
        "inc": |a| a.inc(qword_ptr(rbx));
        "dec": |a| a.dec(byte_ptr(rbx));
        "neg": |a| a.neg(dword_ptr(rbx));
        "not": |a| a.not(qword_ptr(rbx));
        "shl": |a| a.shl(qword_ptr(rbx), 3u32);
        "sar cl": |a| a.sar(dword_ptr(rbx), cl);
        "rcr": |a| a.rcr(qword_ptr(rbx), 1u32);
        "shld": |a| a.shld(qword_ptr(rbx), rdx, cl);
        "imul": |a| a.imul_2(rdx, qword_ptr(rbx));
        "mul": |a| a.mul(qword_ptr(rbx));
        "div": |a| a.div(dword_ptr(rbx));
        "idiv": |a| a.idiv(qword_ptr(rbx));
        "xchg": |a| a.xchg(qword_ptr(rbx), rdx);
        "xadd": |a| a.xadd(qword_ptr(rbx), rdx);
        "cmpxchg": |a| a.cmpxchg(qword_ptr(rbx), rdx);
        "lock xadd": |a| a.lock().xadd(dword_ptr(rbx), edx);
        "lock add": |a| a.lock().add(qword_ptr(rbx), rdx);
        "lock or": |a| a.lock().or(byte_ptr(rbx), dl);
        "lock inc": |a| a.lock().inc(word_ptr(rbx));
        "lock bts": |a| a.lock().bts(qword_ptr(rbx), rcx);
        "lock btr imm": |a| a.lock().btr(qword_ptr(rbx), 5u32);
        "lock cmpxchg": |a| a.lock().cmpxchg(byte_ptr(rbx), dl);
        "lock cmpxchg8b": |a| a.lock().cmpxchg8b(qword_ptr(rbx));
        "cmpxchg8b": |a| a.cmpxchg8b(qword_ptr(rbx));
        "lock cmpxchg16b": |a| a.lock().cmpxchg16b(xmmword_ptr(rbx));
        "bt": |a| a.bt(dword_ptr(rbx), ecx);
        "btc": |a| a.btc(dword_ptr(rbx), 9u32);
        "setb": |a| a.setb(byte_ptr(rbx));
        "cmovne": |a| a.cmovne(rdx, qword_ptr(rbx));
        "cmove": |a| a.cmove(edx, dword_ptr(rbx));
        "popcnt": |a| a.popcnt(rdx, qword_ptr(rbx));
        "bsf": |a| a.bsf(rdx, qword_ptr(rbx));
        "crc32": |a| a.crc32(edx, dword_ptr(rbx));
        "pdep": |a| a.pdep(rdx, rax, qword_ptr(rbx));
        "push": |a| a.push(qword_ptr(rbx));
        "pop": |a| { a.push(rcx)?; a.pop(qword_ptr(rbx)) };
        "pop to a stack": |a| { a.mov(r12, rsp)?; a.mov(rsp, rbx)?; a.pop(rdx)?; a.mov(rsp, r12) };
        "push to a stack": |a| {
            a.mov(r12, rsp)?;
            a.lea(rsp, rbx + 8)?;
            a.push(rdx)?;
            a.mov(rsp, r12)
        };
        "pushfq": |a| { a.mov(r12, rsp)?; a.lea(rsp, rbx + 8)?; a.pushfq()?; a.mov(rsp, r12) };
        "leave": |a| { a.mov(r12, rsp)?; a.mov(rbp, rbx)?; a.leave()?; a.mov(rsp, r12) };
        "enter": |a| { a.mov(r12, rsp)?; a.lea(rsp, rbx + 8)?; a.enter(16, 0)?; a.mov(rsp, r12) };
        "call m": |a| { a.call(qword_ptr(rbx))?; a.add(rsp, 8) };
        "jmp m": |a| a.jmp(qword_ptr(rbx));
        "ret": |a| { a.mov(r12, rsp)?; a.mov(rsp, rbx)?; a.ret() };
        "movsb": |a| { a.mov(rdi, rbx)?; a.mov(esi, DATA as u32)?; a.movsb() };
        "lodsq": |a| { a.mov(rsi, rbx)?; a.lodsq() };
        "stosd": |a| { a.mov(rdi, rbx)?; a.stosd() };
        "scasw": |a| { a.mov(rdi, rbx)?; a.scasw() };
        "cmpsd": |a| { a.mov(rdi, rbx)?; a.mov(esi, DATA as u32)?; a.cmpsd() };
        "xlatb": |a| { a.mov(r12, rax)?; a.xor(eax, eax)?; a.xlatb()?; a.mov(rax, r12) };
        "movaps": |a| a.movaps(xmm1, xmmword_ptr(rbx));
        "movaps store": |a| a.movaps(xmmword_ptr(rbx), xmm2);
        "movups": |a| a.movups(xmm1, xmmword_ptr(rbx));
        "movups store": |a| a.movups(xmmword_ptr(rbx), xmm2);
        "movq": |a| a.movq(xmm3, qword_ptr(rbx));
        "movhps": |a| a.movhps(qword_ptr(rbx), xmm3);
        "paddd": |a| a.paddd(xmm4, xmmword_ptr(rbx));
        "pshufb": |a| a.pshufb(xmm4, xmmword_ptr(rbx));
        "mulsd": |a| a.mulsd(xmm5, qword_ptr(rbx));
        "cvtsi2sd": |a| a.cvtsi2sd(xmm5, dword_ptr(rbx));
        "pextrq": |a| a.pextrq(qword_ptr(rbx), xmm3, 1i32);
        "pcmpistri": |a| a.pcmpistri(xmm3, xmmword_ptr(rbx), 8i32);
        "vmovdqa": |a| a.vmovdqa(xmm1, xmmword_ptr(rbx));
        "vmovups": |a| a.vmovups(ymm1, ymmword_ptr(rbx));
        "vmovups store": |a| a.vmovups(ymmword_ptr(rbx), ymm2);
        "vpaddq": |a| a.vpaddq(ymm1, ymm2, ymmword_ptr(rbx));
        "vbroadcastsd": |a| a.vbroadcastsd(ymm1, qword_ptr(rbx));
        "vpmaskmovd": |a| a.vpmaskmovd(xmmword_ptr(rbx), xmm1, xmm2);
        "fld": |a| a.fld(qword_ptr(rbx));
        "fild": |a| a.fild(dword_ptr(rbx));
        "fstp": |a| { a.fldpi()?; a.fstp(tbyte_ptr(rbx)) };
        "fadd": |a| { a.fldpi()?; a.fadd(dword_ptr(rbx))?; a.fstp(st0) };
        "fnstcw": |a| a.fnstcw(word_ptr(rbx));
        "fxsave": |a| a.fxsave(ptr(rbx));
        "ldmxcsr": |a| { a.stmxcsr(dword_ptr(DATA))?; a.ldmxcsr(dword_ptr(rbx)) };
        "stmxcsr": |a| a.stmxcsr(dword_ptr(rbx));
        "lgdt": |a| a.lgdt(ptr(rbx));
        "sgdt": |a| a.sgdt(ptr(rbx));
        "mov segment": |a| a.mov(fs, word_ptr(rbx));
        "clflush": |a| a.clflush(byte_ptr(rbx));
        "prefetcht0": |a| a.prefetcht0(byte_ptr(rbx));
        "lea": |a| a.lea(rdx, qword_ptr(rbx + rcx * 8 + 5));
        "rep movsq": |a| { a.mov(r12, rcx)?; a.mov(rdi, rbx)?; a.mov(esi, DATA as u32)?; a.mov(ecx, 9)?; a.rep().movsq()?; a.mov(rcx, r12) };
        "rep movsb": |a| { a.mov(r12, rcx)?; a.mov(rsi, rbx)?; a.mov(edi, DATA as u32 + 0x800)?; a.mov(ecx, 70)?; a.rep().movsb()?; a.mov(rcx, r12) };
        "rep stosw": |a| { a.mov(r12, rcx)?; a.mov(rdi, rbx)?; a.mov(ecx, 33)?; a.rep().stosw()?; a.mov(rcx, r12) };
        "rep stosb down": |a| { a.mov(r12, rcx)?; a.lea(rdi, rbx + 60)?; a.mov(ecx, 64)?; a.std()?; a.rep().stosb()?; a.cld()?; a.mov(rcx, r12) };
        "repe cmpsb": |a| { a.mov(r12, rcx)?; a.mov(rdi, rbx)?; a.mov(esi, DATA as u32)?; a.mov(ecx, 64)?; a.repe().cmpsb()?; a.mov(rcx, r12) };
        "repne scasd": |a| { a.mov(r12, rcx)?; a.mov(rdi, rbx)?; a.mov(ecx, 20)?; a.repne().scasd()?; a.mov(rcx, r12) };
        "rep lodsb": |a| { a.mov(r12, rcx)?; a.mov(rsi, rbx)?; a.mov(ecx, 40)?; a.rep().lodsb()?; a.mov(rcx, r12) };
    }
}

/// Where the bad round goes.
const BAD: [u64; 9] = [
    UNMAPPED,
    UNMAPPED - 1,
    UNMAPPED - 4,
    UNMAPPED - 15,
    UNMAPPED - 40,
    READ_ONLY,
    READ_ONLY - 3,
    0x8000_0000_0000_0010,
    0x7fff_ffff_fff9,
];

/// A loop that does `form` at good addresses, and at `bad` in the rounds that `is_bad` names.
fn scene(form: Write, bad: u64, is_bad: fn(u64) -> bool) -> Scene {
    let end = CODE + 0x700;
    let go_on = CODE + 0x600;
    let mut scene = Scene::new().word(RESUME, end).code(end, |a| a.hlt().unwrap());
    // A page that can be written before the one that can't.
    scene = scene.word(TABLE + 8 * ((READ_ONLY >> 12) - 1), (READ_ONLY - 0x1000) | 0x67);
    for n in 1..=ROUNDS {
        let good = DATA + 0x100 + 48 * n;
        scene = scene.word(TARGETS + 8 * n, if is_bad(n) { bad } else { good });
        // What indirect branches find, and a divisor that is not too small.
        scene = scene.word(good, go_on);
    }
    scene
        .code(go_on, |a| {
            // From where JMP and RET and CALL go.
            a.mov(rsp, crate::scene::STACK).unwrap();
            a.jmp(CODE + 0x580).unwrap();
        })
        .code(CODE + 0x580, |a| {
            a.dec(ecx).unwrap();
            a.jne(CODE + 5).unwrap();
            a.hlt().unwrap();
        })
        .code(CODE, |a| {
            a.mov(ecx, ROUNDS as u32).unwrap();
            // Here, at CODE + 5, a round begins.
            a.mov(rbx, qword_ptr(rcx * 8 + TARGETS as i32)).unwrap();
            a.lea(rdx, qword_ptr(rbx + rcx)).unwrap();
            a.mov(rax, rcx).unwrap();
            a.mov(r11, rdx).unwrap();
            a.xor(edx, ecx).unwrap();
            // Flags that would be seen to be wrong.
            a.sub(eax, 7).unwrap();
            form(a).unwrap();
            // What is undefined need not agree.
            a.cmp(rcx, rbx).unwrap();
            a.jmp(CODE + 0x580).unwrap();
        })
}

#[test]
fn faults_at_every_memory_operand_leave_the_same_state() {
    let mut faults = 0;
    let forms = forms();
    for (name, form) in &forms {
        for bad in BAD {
            let outcome = std::panic::catch_unwind(|| scene(*form, bad, |n| n == 2).run());
            let outcome = outcome.unwrap_or_else(|_| panic!("{name} at {bad:#x}"));
            faults += outcome.events().len();
        }
    }
    assert!(faults > 4 * forms.len(), "{faults} faults");
}

/// In most rounds, so that both pages are at hand.
#[test]
fn what_lies_across_two_pages_is_read_and_written_there() {
    for (name, form) in &forms() {
        for before in [1, 3, 8, 31] {
            let across = DATA + 0x2000 - before;
            let outcome = std::panic::catch_unwind(|| scene(*form, across, |n| n % 4 != 0).run());
            assert!(outcome.is_ok(), "{name} at {across:#x}");
        }
    }
}

/// A repeated copy that runs into a page that is not there is taken up where it was, once the handler
/// has mapped the page.
#[test]
fn a_repeated_copy_goes_on_after_its_page_is_mapped() {
    let entry = TABLE + 8 * (UNMAPPED >> 12);
    let routine = CODE + 0x800;
    let outcome = Scene::new()
        .word(crate::scene::HOOK, routine)
        .code(routine, |a| {
            a.mov(qword_ptr(entry), (UNMAPPED | 0x67) as i32).unwrap();
            a.ret().unwrap();
        })
        .code(CODE, |a| {
            let mut top = a.create_label();
            a.mov(r9d, 30).unwrap();
            a.set_label(&mut top).unwrap();
            a.mov(qword_ptr(entry), 0).unwrap();
            a.invlpg(ptr(UNMAPPED)).unwrap();
            a.mov(rdi, UNMAPPED - 100).unwrap();
            a.mov(esi, DATA as u32).unwrap();
            a.mov(ecx, 200).unwrap();
            a.rep().movsb().unwrap();
            a.add(r8, rdi).unwrap();
            a.dec(r9d).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        })
        .run();
    let events = outcome.events();
    assert_eq!(events.len(), 30);
    assert!(events.iter().all(|e| (e.vector, e.error, e.cr2, e.rcx) == (14, 2, UNMAPPED, 100)));
    assert_eq!(outcome.state.gpr[8], 30 * (UNMAPPED + 100));
}

/// Each is in the place of another entry of the jump cache, some of entries that are for nothing.
#[test]
fn a_jump_to_what_is_no_address_faults() {
    for target in
        [1 << 63, 1 << 47, (u64::MAX << 47) ^ (1 << 50), 0xdead_beef_dead_beef, (1 << 62) | 4]
    {
        let scene = Scene::new()
            .word(RESUME, CODE + 0x400)
            .code(CODE, |a| {
                a.mov(ecx, 50).unwrap();
                // Here, at CODE + 5.
                a.mov(rax, target).unwrap();
                a.jmp(rax).unwrap();
            })
            .code(CODE + 0x400, |a| {
                a.dec(ecx).unwrap();
                a.jne(CODE + 5).unwrap();
                a.hlt().unwrap();
            });
        let vectors: Vec<_> = scene.run().events().iter().map(|event| event.vector).collect();
        assert_eq!(vectors, [13; 50], "{target:#x}");
    }
}
