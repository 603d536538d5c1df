//! Runs one instruction on the host's own processor.
//!
//! The kernel does the work: a signal handler's return loads every register from the signal's frame,
//! and any exception saves them to one. [`Native::step`] traps into the handler, which exchanges the
//! frame's registers for the case's, with the trap flag set; the instruction runs, and its trap or fault
//! comes back to the handler, which takes the results and puts the caller's registers back. It runs on
//! a stack of its own and touches nothing but the exchange area, whatever the case left in registers.
//!
//! What makes this sound is that the generator only lets through instructions whose memory accesses
//! stay within [`state::RESERVED`](crate::state::RESERVED) or fault, and that change nothing of the
//! process but general, x87, MMX, SSE and AVX registers.
#![allow(unsafe_code)]

use std::arch::asm;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::state::{
    CODE, DATA, DATA_LEN, Event, IMAGE, MAX_STEPS, MEMORY, PAGE, RESERVED, STACK, State, TF,
};

/// The order of general registers in a signal frame.
const ORDER: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];
/// Offsets in a signal frame's floating-point part: what software may know of it, and the header that
/// says which registers are not in their initial state.
const MAGIC1: usize = 464;
const XSTATE_BV: usize = 512;
/// Where the upper halves of the YMM registers are, and their bit in the header, if there are any.
const YMM_HIGH: usize = 576;
const XSTATE_YMM: u64 = 4;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
/// Registers that change from case to case: general ones, RIP and RFLAGS.
const GREGS: usize = 18;

/// What step and handler tell each other.
struct Exchange {
    /// Registers to load, and then those that were found.
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    image: [u8; IMAGE],
    ymm_high: [u128; 16],
    has_avx: bool,
    event: Event,
    /// Whether the case runs now.
    running: bool,
    steps: u32,
    /// The caller's registers.
    saved_gregs: [i64; GREGS],
    saved_image: [u8; IMAGE],
    saved_ymm_high: [u128; 16],
    saved_bv: u64,
}

static EXCHANGE: AtomicPtr<Exchange> = AtomicPtr::new(ptr::null_mut());

/// Signals that the processor's exceptions arrive as.
const SIGNALS: [i32; 5] = [libc::SIGTRAP, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGBUS];

fn greg(context: &libc::ucontext_t, n: i32) -> i64 {
    context.uc_mcontext.gregs[n as usize]
}

fn set_greg(context: &mut libc::ucontext_t, n: i32, value: i64) {
    context.uc_mcontext.gregs[n as usize] = value;
}

/// Exchanges the registers of the interrupted code. Runs with arbitrary register contents behind it,
/// so it calls nothing that could fail.
extern "C" fn handler(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // The kernel leaves the case's alignment checks on.
    // SAFETY: changes no flag but AC, which Rust has no use for.
    unsafe { asm!("pushfq", "and qword ptr [rsp], 0xfffffffffffbffff", "popfq") };
    let exchange = EXCHANGE.load(Ordering::Relaxed);
    if exchange.is_null() {
        // Not ours: let it happen again, with its usual consequence.
        // SAFETY: resetting a signal's disposition has no preconditions.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel passes a context that is ours until we return; the exchange area was set by
    // `step`, which waits in its trap meanwhile and so does not touch it.
    let (context, exchange) = unsafe { (&mut *context.cast::<libc::ucontext_t>(), &mut *exchange) };
    let fp = context.uc_mcontext.fpregs.cast::<u8>();
    // SAFETY: the frame's floating-point part has at least the 512 bytes of an FXSAVE image, and 64
    // more if the magic number says so.
    let extended = unsafe { fp.add(MAGIC1).cast::<u32>().read_unaligned() } == FP_XSTATE_MAGIC1;
    let read_bv = || match extended {
        // SAFETY: as above.
        true => unsafe { fp.add(XSTATE_BV).cast::<u64>().read_unaligned() },
        false => 3,
    };
    let write_bv = |value: u64| {
        if extended {
            // SAFETY: as above.
            unsafe { fp.add(XSTATE_BV).cast::<u64>().write_unaligned(value) };
        }
    };
    let has_ymm = extended && exchange.has_avx;
    let read_ymm = |registers: &mut [u128; 16]| {
        if has_ymm && read_bv() & XSTATE_YMM != 0 {
            // SAFETY: as above: the frame has the part if the processor has the registers.
            let from = unsafe { fp.add(YMM_HIGH).cast::<[u128; 16]>().read_unaligned() };
            *registers = from;
        } else {
            *registers = [0; 16];
        }
    };
    let write_ymm = |registers: &[u128; 16]| {
        if has_ymm {
            // SAFETY: as above.
            unsafe { fp.add(YMM_HIGH).cast::<[u128; 16]>().write_unaligned(*registers) };
        }
    };
    if !exchange.running {
        for (saved, &n) in exchange.saved_gregs.iter_mut().zip(&context.uc_mcontext.gregs) {
            *saved = n;
        }
        // SAFETY: IMAGE is less than the frame's 512 bytes.
        unsafe { ptr::copy_nonoverlapping(fp, exchange.saved_image.as_mut_ptr(), IMAGE) };
        exchange.saved_bv = read_bv();
        read_ymm(&mut exchange.saved_ymm_high);
        for (&n, &value) in ORDER.iter().zip(&exchange.gpr) {
            set_greg(context, n, value as i64);
        }
        set_greg(context, libc::REG_RIP, exchange.rip as i64);
        set_greg(context, libc::REG_EFL, (exchange.rflags | TF) as i64);
        // SAFETY: as above, the other way; bytes 28 to 31 are MXCSR_MASK, which is not loaded.
        unsafe { ptr::copy_nonoverlapping(exchange.image.as_ptr(), fp, IMAGE) };
        write_ymm(&exchange.ymm_high);
        write_bv(exchange.saved_bv | 3 | if has_ymm { XSTATE_YMM } else { 0 });
        exchange.running = true;
        exchange.steps = 0;
        return;
    }
    let vector = greg(context, libc::REG_TRAPNO) as u8;
    exchange.steps += 1;
    let rip = greg(context, libc::REG_RIP) as u64;
    if vector == 1 && rip == exchange.rip && exchange.steps < MAX_STEPS {
        return;
    }
    exchange.event = Event {
        vector,
        error_code: greg(context, libc::REG_ERR) as u64,
        address: if vector == 14 { greg(context, libc::REG_CR2) as u64 } else { 0 },
    };
    for (&n, value) in ORDER.iter().zip(&mut exchange.gpr) {
        *value = greg(context, n) as u64;
    }
    exchange.rip = rip;
    exchange.rflags = greg(context, libc::REG_EFL) as u64;
    // SAFETY: as above.
    unsafe { ptr::copy_nonoverlapping(fp, exchange.image.as_mut_ptr(), IMAGE) };
    read_ymm(&mut exchange.ymm_high);
    for (n, &saved) in context.uc_mcontext.gregs.iter_mut().zip(&exchange.saved_gregs) {
        *n = saved;
    }
    // SAFETY: as above.
    unsafe { ptr::copy_nonoverlapping(exchange.saved_image.as_ptr(), fp, IMAGE) };
    write_ymm(&exchange.saved_ymm_high);
    let restored = 3 | XSTATE_YMM;
    write_bv(read_bv() & !restored | exchange.saved_bv & restored);
    exchange.running = false;
}

/// The host's processor with the sandbox mapped. At most one exists at a time.
pub(crate) struct Native {
    exchange: Box<Exchange>,
    /// The code page where it can be written.
    code: *mut u8,
}

/// Maps `len` bytes at `address`; with a file, shared.
///
/// # Safety
/// Nothing that is in use may be mapped there.
unsafe fn map(address: u64, len: u64, protection: i32, file: i32) -> *mut u8 {
    let kind = if file < 0 {
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE
    } else {
        libc::MAP_SHARED | libc::MAP_POPULATE
    };
    let place = if address == 0 { 0 } else { libc::MAP_FIXED };
    // SAFETY: the caller's promise.
    let at = unsafe {
        libc::mmap(address as *mut libc::c_void, len as usize, protection, kind | place, file, 0)
    };
    assert_ne!(at, libc::MAP_FAILED, "mmap at {address:#x}");
    at.cast()
}

/// Maps anonymous memory at `address`, which must be within the reserved range.
fn map_sandbox(address: u64, len: u64) {
    assert!(RESERVED.contains(&address) && RESERVED.contains(&(address + len)));
    // SAFETY: the range was reserved for the sandbox.
    let at = unsafe { map(address, len, libc::PROT_READ | libc::PROT_WRITE, -1) };
    // SAFETY: just mapped. Touching it makes it present.
    unsafe { ptr::write_bytes(at, 0, len as usize) };
}

impl Native {
    pub(crate) fn new() -> Self {
        let reserved = RESERVED.end - RESERVED.start;
        let flags = libc::MAP_PRIVATE
            | libc::MAP_ANONYMOUS
            | libc::MAP_NORESERVE
            | libc::MAP_FIXED_NOREPLACE;
        let start = RESERVED.start as *mut libc::c_void;
        // SAFETY: NOREPLACE: fails if anything is mapped there.
        let at = unsafe { libc::mmap(start, reserved as usize, libc::PROT_NONE, flags, -1, 0) };
        assert_eq!(at, start, "the sandbox's addresses are in use");
        map_sandbox(DATA, DATA_LEN);
        map_sandbox(STACK, PAGE);
        // SAFETY: plain calls; the code page is mapped twice, executable within the reservation and
        // writable wherever the kernel likes.
        let code = unsafe {
            let file = libc::memfd_create(c"code".as_ptr(), 0);
            assert!(file >= 0 && libc::ftruncate(file, PAGE as libc::off_t) == 0);
            map(CODE, PAGE, libc::PROT_READ | libc::PROT_EXEC, file);
            let code = map(0, PAGE, libc::PROT_READ | libc::PROT_WRITE, file);
            libc::close(file);
            code
        };
        install_handler();
        let event = Event { vector: 0, error_code: 0, address: 0 };
        let exchange = Exchange {
            gpr: [0; 16],
            rip: 0,
            rflags: 0,
            image: [0; IMAGE],
            ymm_high: [0; 16],
            has_avx: std::arch::is_x86_feature_detected!("avx"),
            event,
            running: false,
            steps: 0,
            saved_gregs: [0; GREGS],
            saved_image: [0; IMAGE],
            saved_ymm_high: [0; 16],
            saved_bv: 0,
        };
        Self { exchange: Box::new(exchange), code }
    }

    /// Replaces the code page's contents from `offset` on.
    pub(crate) fn write_code(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= PAGE as usize);
        // SAFETY: within the page, which nothing else refers to.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.code.add(offset), bytes.len()) };
    }

    /// Executes the instruction at `state.rip`, to the end if it is a repeated one.
    pub(crate) fn step(&mut self, state: &mut State) -> Event {
        let data = DATA_LEN as usize;
        // SAFETY: the sandbox was mapped by `new`; references to it never exist.
        unsafe {
            ptr::copy_nonoverlapping(state.memory.as_ptr(), DATA as *mut u8, data);
            ptr::copy_nonoverlapping(
                state.memory[data..].as_ptr(),
                STACK as *mut u8,
                MEMORY - data,
            );
        }
        let exchange = &mut *self.exchange;
        exchange.gpr = state.gpr;
        exchange.rip = state.rip;
        exchange.rflags = state.rflags;
        exchange.image = state.image;
        exchange.ymm_high = state.ymm_high;
        EXCHANGE.store(exchange, Ordering::SeqCst);
        // SAFETY: the handler gives every register back as it was; memory that it or the case changes
        // is what the compiler has to expect of an asm block. What POPF may have left in NT and ID, the
        // kernel does not restore.
        unsafe { asm!("int3", "pushfq", "and qword ptr [rsp], 0xffffffffffdfbfff", "popfq") };
        EXCHANGE.store(ptr::null_mut(), Ordering::SeqCst);
        let exchange = &*self.exchange;
        state.gpr = exchange.gpr;
        state.rip = exchange.rip;
        state.rflags = exchange.rflags;
        state.image = exchange.image;
        if exchange.has_avx {
            state.ymm_high = exchange.ymm_high;
        }
        // SAFETY: as above.
        unsafe {
            ptr::copy_nonoverlapping(DATA as *const u8, state.memory.as_mut_ptr(), data);
            ptr::copy_nonoverlapping(
                STACK as *const u8,
                state.memory[data..].as_mut_ptr(),
                MEMORY - data,
            );
        }
        exchange.event
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let reserved = (RESERVED.end - RESERVED.start) as usize;
        // SAFETY: both were mapped by `new` for this object alone.
        unsafe {
            libc::munmap(RESERVED.start as *mut libc::c_void, reserved);
            libc::munmap(self.code.cast(), PAGE as usize);
        }
    }
}

/// Lets the handler take the processor's exceptions, on a stack of its own that lives for ever.
fn install_handler() {
    const LEN: usize = 256 << 10;
    let stack = Box::leak(vec![0u8; LEN].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: LEN };
    // SAFETY: the structures are complete, the stack is never freed, and the handler is of the kind
    // that SA_SIGINFO says.
    unsafe {
        assert_eq!(libc::sigaltstack(&stack, ptr::null_mut()), 0);
        for signal in SIGNALS {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
        }
    }
}
