//! Instructions of all kinds on memory that is a device's: each does there what it does in RAM.

use core::arch::asm;

use crate::kit::*;

/// The test device's memory.
const DEVICE: u64 = 0xff00_0000;
const LEN: usize = 128;

#[repr(C, align(64))]
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
                    in("rdi") at, inout("rax") 0x1122_3344_5566_7788u64 => result,
                    inout("rcx") 5u64 => flags, inout("rdx") 0x99aa_bbcc_ddee_ff01u64 => _,
                    out("xmm0") _, out("xmm1") _, out("r8") _, out("r9") _,
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

pub fn run() {
    integers();
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
