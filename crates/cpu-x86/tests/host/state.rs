//! What one case starts from and comes to: registers, and the pages that it may touch.

/// Where the sandbox is, in the host's process and in the guest alike.
pub(crate) const CODE: u64 = 0x1000_0000;
/// Two pages that can be read and written.
pub(crate) const DATA: u64 = 0x1001_0000;
pub(crate) const DATA_LEN: u64 = 2 * PAGE;
/// One page of stack.
pub(crate) const STACK: u64 = 0x1002_0000;
pub(crate) const PAGE: u64 = 4096;
/// Addresses that are the sandbox's own or mapped to nothing.
pub(crate) const RESERVED: std::ops::Range<u64> = 0x0800_0000..0x4000_0000;

/// Data and stack, in this order.
pub(crate) const MEMORY: usize = 3 * PAGE as usize;
/// Bytes of an FXSAVE image that hold registers.
pub(crate) const IMAGE: usize = 416;

/// INT3, which the code page is full of.
pub(crate) const BREAKPOINT: u8 = 0xcc;

pub(crate) const TF: u64 = 1 << 8;
pub(crate) const IF: u64 = 1 << 9;
pub(crate) const AC: u64 = 1 << 18;
/// CF, PF, AF, ZF, SF, DF, OF.
pub(crate) const CHANGEABLE: u64 = 0xcd5;

/// Registers and memory.
#[derive(Clone)]
pub(crate) struct State {
    /// In the order of their numbers.
    pub(crate) gpr: [u64; 16],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    /// x87, MXCSR and XMM registers as FXSAVE64 stores them. The opcode, the pointers and MXCSR_MASK
    /// are zero.
    pub(crate) image: [u8; IMAGE],
    /// Upper halves of the YMM registers.
    pub(crate) ymm_high: [u128; 16],
    pub(crate) memory: Box<[u8; MEMORY]>,
}

impl State {
    pub(crate) fn image_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.image[at], self.image[at + 1]])
    }

    pub(crate) fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.image[24..28].try_into().expect("four bytes"))
    }

    /// The bytes of the sandbox from `address` on to the end of their part, if they are in it.
    pub(crate) fn bytes_at(&mut self, address: u64) -> Option<&mut [u8]> {
        let data = DATA_LEN as usize;
        if (DATA..DATA + DATA_LEN).contains(&address) {
            Some(&mut self.memory[(address - DATA) as usize..data])
        } else if (STACK..STACK + PAGE).contains(&address) {
            Some(&mut self.memory[data + (address - STACK) as usize..])
        } else {
            None
        }
    }
}

/// How the instruction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Event {
    /// 1 (#DB, the single step) if it was executed, else the exception.
    pub(crate) vector: u8,
    /// Zero for exceptions without one.
    pub(crate) error_code: u64,
    /// For page faults, else zero.
    pub(crate) address: u64,
}

/// Steps after which a repeated instruction is left where it is.
pub(crate) const MAX_STEPS: u32 = 40;
