//! Instructions of all kinds on memory that is a device's: each does there what it does in RAM.

use core::arch::asm;

use crate::kit::*;

/// The test device's memory.
const DEVICE: u64 = 0xff00_0000;
const LEN: usize = 128;

#[repr(C, align(256))]
struct Buffer([u8; 256]);
static mut RAM: Buffer = Buffer([0; 256]);

fn fill(at: *mut u8) {
    for n in 0..LEN {
        unsafe { at.add(n).write_volatile((n as u8).wrapping_mul(37) ^ 0x5c) };
    }
}

/// Runs `f` on RAM and on the device; results and all bytes have to agree.
fn both(name: &str, f: fn(*mut u8) -> [u64; 2]) {
    // Not inlined: its code has one place.
    let f = core::hint::black_box(f);
    let ram = (&raw mut RAM).cast::<u8>();
    let device = DEVICE as *mut u8;
    fill(ram);
    fill(device);
    let (expected, got) = (f(ram), f(device));
    check(name, got, expected);
    for n in 0..LEN {
        let (expected, got) =
            unsafe { (ram.add(n).read_volatile(), device.add(n).read_volatile()) };
        if expected != got {
            check(format_args!("{name}: byte {n}"), got, expected);
            return;
        }
    }
    check(name, true, true);
}

/// Instructions on [RDI] with operands in RAX, RCX and RDX; what counts are RAX and the flags.
macro_rules! on_memory {
    ($($line:expr),+ $(,)?) => {
        both(concat!($($line, "; "),+), |at| {
            let (result, flags): (u64, u64);
            unsafe {
                asm!(
                    "push 2", "popfq",
                    $($line,)+
                    "pushfq", "pop rcx",
                    inout("rdi") at => _, out("rsi") _, inout("rax") 0x1122_3344_5566_7788u64 => result,
                    inout("rcx") 5u64 => flags, inout("rdx") 0x99aa_bbcc_ddee_ff01u64 => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("r8") _, out("r9") _,
                );
            }
            [result, flags & 0xcd5]
        })
    };
}

fn integers() {
    on_memory!("mov rax, [rdi]");
    on_memory!("mov [rdi], rax");
    on_memory!("mov [rdi + 1], eax");
    on_memory!("mov ax, [rdi + 3]");
    on_memory!("movzx eax, byte ptr [rdi + 7]");
    on_memory!("movsx rax, word ptr [rdi + 7]");
    on_memory!("movsxd rax, dword ptr [rdi + 5]");
    on_memory!("mov word ptr [rdi], 0x1234");
    on_memory!("add [rdi], rax");
    on_memory!("add rax, [rdi + 8]");
    on_memory!("adc byte ptr [rdi + 2], 0x7f");
    on_memory!("sub dword ptr [rdi], eax");
    on_memory!("sbb [rdi + 4], dx");
    on_memory!("and [rdi], rax");
    on_memory!("or byte ptr [rdi], al");
    on_memory!("xor word ptr [rdi + 2], ax");
    on_memory!("cmp [rdi], rax");
    on_memory!("test [rdi], rax");
    on_memory!("inc qword ptr [rdi]");
    on_memory!("dec byte ptr [rdi]");
    on_memory!("neg dword ptr [rdi]");
    on_memory!("not qword ptr [rdi]");
    on_memory!("mul qword ptr [rdi]", "xor eax, edx");
    on_memory!("imul rax, [rdi]");
    on_memory!("imul eax, dword ptr [rdi], 17");
    on_memory!("xor edx, edx", "div dword ptr [rdi]", "xor eax, edx");
    on_memory!("shl qword ptr [rdi], cl");
    on_memory!("sar dword ptr [rdi], 3");
    on_memory!("rcr word ptr [rdi], 1");
    on_memory!("rol byte ptr [rdi], cl");
    on_memory!("shld [rdi], rax, cl");
    on_memory!("shrd dword ptr [rdi], eax, 7");
    on_memory!("bt dword ptr [rdi], 9");
    on_memory!("bts [rdi], rcx");
    on_memory!("mov ecx, 300", "btr [rdi], ecx");
    on_memory!("btc qword ptr [rdi], 60");
    on_memory!("bsf rax, [rdi]");
    on_memory!("bsr eax, dword ptr [rdi]");
    on_memory!("xchg [rdi], rax");
    on_memory!("xadd [rdi], eax");
    on_memory!("lock add qword ptr [rdi], 1");
    on_memory!("lock xadd [rdi + 4], eax");
    on_memory!("cmpxchg [rdi], rdx");
    on_memory!("mov rax, [rdi]", "lock cmpxchg [rdi], rdx");
    on_memory!("cmpxchg8b [rdi]");
    on_memory!("push rbx", "cmpxchg16b [rdi]", "pop rbx");
    on_memory!(
        "push rbx",
        "mov rax, [rdi]",
        "mov rdx, [rdi + 8]",
        "mov ebx, 7",
        "cmpxchg16b [rdi]",
        "pop rbx"
    );
    on_memory!("cmovc rax, [rdi]");
    on_memory!("cmovnc rax, [rdi]");
    on_memory!("setz [rdi]");
    on_memory!("push qword ptr [rdi]", "pop rax");
    on_memory!("push rax", "pop qword ptr [rdi + 8]");
    on_memory!(
        "xchg rsp, rdi",
        "add rsp, 64",
        "push rax",
        "push 5",
        "pop rcx",
        "sub rsp, 56",
        "xchg rsp, rdi"
    );
    on_memory!("mov word ptr [rdi], ds");
    on_memory!("smsw word ptr [rdi]");
    on_memory!("sgdt [rdi]");
    on_memory!("sldt word ptr [rdi]");
    on_memory!("str word ptr [rdi]");
    on_memory!("movbe rax, [rdi]");
    on_memory!("movbe [rdi], eax");
    on_memory!("movnti [rdi], rax");
    on_memory!("lea rax, [rip + 2f]", "mov [rdi], rax", "jmp [rdi]", "2: xor eax, eax");
    on_memory!("lea rax, [rip + 2f]", "mov [rdi], rax", "call [rdi]", "2: pop rax", "xor eax, eax");
    on_memory!("mov dword ptr [rdi], 0x12345678", "mov al, [rdi]", "crc32 eax, dword ptr [rdi]");
}

fn strings() {
    on_memory!("lea rsi, [rdi + 64]", "mov ecx, 7", "rep movsb");
    on_memory!("mov rsi, rdi", "lea rdi, [rdi + 64]", "mov ecx, 4", "rep movsq");
    on_memory!("mov rsi, rdi", "lea rdi, [rdi + 1]", "mov ecx, 20", "rep movsb");
    on_memory!(
        "lea rsi, [rdi + 40]",
        "lea rdi, [rdi + 44]",
        "std",
        "mov ecx, 5",
        "rep movsd",
        "cld"
    );
    on_memory!("mov ecx, 9", "rep stosw");
    on_memory!("mov rsi, rdi", "lodsq");
    on_memory!("mov al, 0x79", "mov ecx, 40", "repne scasb", "mov eax, ecx");
    on_memory!("lea rsi, [rdi + 16]", "mov ecx, 16", "repe cmpsb", "mov eax, ecx");
    on_memory!("mov rsi, rdi", "mov edx, 0xe0", "mov ecx, 3", "rep outsb");
}

fn vectors() {
    on_memory!("movdqu xmm0, [rdi + 1]", "movdqu [rdi + 32], xmm0");
    on_memory!("movdqa xmm0, [rdi]", "paddd xmm0, [rdi + 16]", "movdqa [rdi + 32], xmm0");
    on_memory!("movups xmm0, [rdi + 3]", "movups [rdi + 65], xmm0");
    on_memory!("movq xmm0, qword ptr [rdi]", "movq qword ptr [rdi + 24], xmm0");
    on_memory!("movd xmm0, dword ptr [rdi]", "movss dword ptr [rdi + 24], xmm0");
    on_memory!("movhps xmm0, [rdi]", "movlps [rdi + 24], xmm0", "movhps [rdi + 40], xmm0");
    on_memory!("pcmpeqb xmm0, xmm0", "movntdq [rdi], xmm0", "movdqa xmm0, [rdi + 16]");
    on_memory!("cvtsi2sd xmm0, qword ptr [rdi]", "movsd [rdi + 8], xmm0");
    on_memory!(
        "pxor xmm1, xmm1",
        "pcmpeqb xmm0, xmm0",
        "push rdi",
        "maskmovdqu xmm1, xmm0",
        "pop rdi"
    );
    on_memory!("movq mm0, [rdi]", "paddb mm0, [rdi + 8]", "movq [rdi + 16], mm0", "emms");
    on_memory!("fld qword ptr [rdi]", "fstp tbyte ptr [rdi + 16]");
    on_memory!("fild qword ptr [rdi]", "fistp dword ptr [rdi + 16]", "fnclex");
    on_memory!("fnstcw [rdi]", "fldcw [rdi]");
    on_memory!("fnstsw [rdi + 4]");
    on_memory!("stmxcsr [rdi]", "ldmxcsr [rdi]");
    check(
        "movaps, not aligned",
        attempt!(["movaps xmm0, [{}]"], in(reg) DEVICE + 8, out("xmm0") _),
        GP,
    );
}

/// A word of leaf 7, EBX, or of leaf 1, ECX, that must have these bits.
fn has_all(leaf: u32, register: usize, bits: &[u32]) -> bool {
    bits.iter().all(|&bit| has(leaf, register, bit))
}

/// What reads or writes several operands, or in odd ways.
fn others() {
    on_memory!("push rbx", "lea rbx, [rdi]", "mov al, 5", "xlatb", "pop rbx");
    on_memory!("popcnt eax, dword ptr [rdi + 1]");
    on_memory!("shl word ptr [rdi + 1], 3");
    on_memory!("rcl qword ptr [rdi], cl");
    on_memory!("idiv dword ptr [rdi + 4]", "xor eax, edx");
    on_memory!("cdq", "mov ecx, 77", "mov [rdi], ecx", "cdq", "idiv dword ptr [rdi]", "xor eax, edx");
    on_memory!("imul dword ptr [rdi]", "xor eax, edx");
    on_memory!("lock btc dword ptr [rdi], 3");
    on_memory!("lock neg word ptr [rdi + 2]");
    on_memory!("lock cmpxchg8b [rdi + 8]");
    on_memory!("mov dx, 0xe0", "mov ecx, 4", "rep insb");
    on_memory!("mov rsi, rdi", "lea rdi, [rdi + 8]", "cmpsq", "mov eax, 0");
    on_memory!("std", "lea rdi, [rdi + 32]", "mov ecx, 3", "rep stosq", "cld");
    on_memory!("enter 0, 0", "leave");
    on_memory!("push rbp", "mov rbp, rdi", "xchg rsp, rbp", "add rsp, 64", "pushfq", "pop rcx",
        "xchg rsp, rbp", "pop rbp", "xor eax, eax");
    on_memory!("lar eax, word ptr [rdi]", "xor eax, eax");
    on_memory!("mov word ptr [rdi], 0x10", "verr word ptr [rdi]", "lsl eax, word ptr [rdi]");
    on_memory!("prefetcht0 [rdi]", "clflush [rdi]", "mov eax, 1");
    on_memory!("fbld [rdi]", "fbstp [rdi + 16]", "fnclex", "mov eax, 1");
    on_memory!("fninit", "fnstenv [rdi]", "fldenv [rdi]", "mov eax, 1", "mov dword ptr [rdi + 12], 0",
        "mov qword ptr [rdi + 16], 0", "mov dword ptr [rdi + 24], 0");
    on_memory!("fld1", "fst dword ptr [rdi]", "fiadd word ptr [rdi + 2]", "fistp word ptr [rdi + 8]",
        "fnclex");
    on_memory!("pcmpeqb xmm0, xmm0", "movntps [rdi], xmm0", "movmskpd eax, xmm0");
    on_memory!("pinsrw xmm0, word ptr [rdi + 3], 2", "pextrb byte ptr [rdi + 40], xmm0, 4");
    on_memory!("pmovzxbw xmm0, qword ptr [rdi]", "movdqu [rdi + 48], xmm0");
    on_memory!("pcmpistri xmm0, [rdi], 8", "mov eax, ecx");
    on_memory!("movddup xmm0, qword ptr [rdi + 8]", "movupd [rdi + 64], xmm0");
    on_memory!("cvtss2si eax, dword ptr [rdi]");
    on_memory!("pxor xmm0, xmm0", "ucomisd xmm0, qword ptr [rdi + 8]", "mov eax, 0");
    if has_all(7, 1, &[3, 8]) {
        on_memory!("andn rax, rax, [rdi]");
        on_memory!("bextr eax, dword ptr [rdi], ecx");
        on_memory!("pext rax, rdx, [rdi + 8]");
        on_memory!("rorx rax, [rdi], 9");
        on_memory!("shlx eax, dword ptr [rdi], ecx");
        on_memory!("mulx rax, r8, [rdi]");
    } else {
        skip("BMI");
    }
    if has(7, 1, 19) {
        on_memory!("adcx rax, [rdi]", "adox rax, [rdi + 8]");
    }
}

/// 256-bit operands, which the device sees as several.
fn wide_vectors() {
    if !has_all(1, 2, &[26, 28]) || !has(7, 1, 5) {
        return skip("AVX2");
    }
    let before = cr4();
    set_cr4(before | 1 << 18);
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0) };
    on_memory!("vmovdqu ymm0, [rdi + 1]", "vmovdqu [rdi + 33], ymm0", "vzeroupper");
    on_memory!("vpcmpeqd ymm0, ymm0, ymm0", "vpaddd ymm0, ymm0, [rdi]", "vmovdqa [rdi + 64], ymm0", "vzeroupper");
    on_memory!("vpcmpeqd ymm1, ymm1, ymm1", "vpmaskmovd ymm0, ymm1, [rdi + 4]",
        "vpmaskmovd [rdi + 64], ymm1, ymm0", "vzeroupper");
    on_memory!("vpxor xmm1, xmm1, xmm1", "vpmaskmovd [rdi], ymm1, ymm1", "vzeroupper");
    on_memory!("vpbroadcastd ymm0, dword ptr [rdi + 5]", "vmovups [rdi + 32], ymm0", "vzeroupper");
    on_memory!("vpxor xmm0, xmm0, xmm0", "vinserti128 ymm0, ymm0, [rdi], 1", "vextracti128 [rdi + 80], ymm0, 1", "vzeroupper");
    on_memory!("vpcmpeqd ymm1, ymm1, ymm1", "vpxor xmm2, xmm2, xmm2",
        "vpgatherdd ymm0, [rdi + ymm2], ymm1", "vmovdqu [rdi + 64], ymm0", "vzeroupper");
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") 1, in("edx") 0) };
    set_cr4(before);
}

pub fn run() {
    // After a reset, all exceptions are unmasked.
    unsafe { asm!("fninit") };
    integers();
    others();
    wide_vectors();
    strings();
    vectors();
    // Code in a device's memory.
    unsafe {
        let code = (DEVICE + 0x100) as *mut u8;
        for (n, byte) in [0xb8, 0x78, 0x56, 0x34, 0x12, 0xc3].into_iter().enumerate() {
            code.add(n).write_volatile(byte);
        }
        let got: u32;
        asm!("call {}", in(reg) code, out("eax") got);
        check("code in a device's memory", got, 0x1234_5678);
    }
}
