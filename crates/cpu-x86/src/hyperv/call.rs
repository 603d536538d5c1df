//! Calls of the hypervisor ("Hypercall Interface", and the page of each call).
//!
//! Input comes from a page of memory or from registers, checked before anything of it is done: how much there
//! is follows from the call, the length of its variable header and its number of repetitions. Repetitions are
//! all done at once, so a call is never to be continued by its caller.

use accel::Posted;

use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::reg::{RAX, RBX, RCX, RDI, RDX, RSI};

use super::Place;
use super::flush::Invalidation;
use super::options::Offered;

/// Status codes.
mod status {
    pub(super) const SUCCESS: u16 = 0;
    pub(super) const INVALID_HYPERCALL_CODE: u16 = 2;
    pub(super) const INVALID_HYPERCALL_INPUT: u16 = 3;
    pub(super) const INVALID_ALIGNMENT: u16 = 4;
    pub(super) const INVALID_PARAMETER: u16 = 5;
    pub(super) const ACCESS_DENIED: u16 = 6;
    pub(super) const INVALID_CONNECTION_ID: u16 = 0x12;
    pub(super) const INSUFFICIENT_BUFFERS: u16 = 0x13;
}

/// Call codes.
mod code {
    pub(super) const FLUSH_VIRTUAL_ADDRESS_SPACE: u16 = 0x0002;
    pub(super) const FLUSH_VIRTUAL_ADDRESS_LIST: u16 = 0x0003;
    pub(super) const NOTIFY_LONG_SPIN_WAIT: u16 = 0x0008;
    pub(super) const SEND_SYNTHETIC_CLUSTER_IPI: u16 = 0x000b;
    pub(super) const FLUSH_VIRTUAL_ADDRESS_SPACE_EX: u16 = 0x0013;
    pub(super) const FLUSH_VIRTUAL_ADDRESS_LIST_EX: u16 = 0x0014;
    pub(super) const SEND_SYNTHETIC_CLUSTER_IPI_EX: u16 = 0x0015;
    pub(super) const POST_MESSAGE: u16 = 0x005c;
    pub(super) const SIGNAL_EVENT: u16 = 0x005d;
}

/// Flags of the calls that flush.
mod flush {
    pub(super) const ALL_PROCESSORS: u64 = 1 << 0;
    pub(super) const ALL_SPACES: u64 = 1 << 1;
    pub(super) const NON_GLOBAL_ONLY: u64 = 1 << 2;
    pub(super) const EXTENDED_RANGES: u64 = 1 << 3;
}

/// The input value's bits that have to be zero.
const RESERVED: u64 = 0xf000_f000_f800_0000;
/// Bytes of input that general registers hold, and all registers.
const IN_REGISTERS: usize = 16;
const IN_ALL_REGISTERS: usize = IN_REGISTERS + 16 * XMM_INPUTS;
/// XMM registers that hold input.
const XMM_INPUTS: usize = 6;
/// Pages are where input has to be.
const PAGE: u64 = 4096;
/// Formats of a set of processors.
const SPARSE_SET: u64 = 0;
const ALL_SET: u64 = 1;
/// The most bytes of a message.
const MAX_MESSAGE: u32 = 240;
/// The least vector that can be sent.
const FIRST_VECTOR: u64 = 0x10;

/// What is known of a call before it is made.
struct Call {
    /// Bytes of its input that it always has.
    header: usize,
    /// More of them may follow.
    variable: bool,
    /// A list of words follows.
    repeats: bool,
}

/// The input value, taken apart.
struct Input {
    code: u16,
    fast: bool,
    /// Bytes.
    variable: usize,
    count: usize,
    start: usize,
}

impl Input {
    fn new(value: u64) -> Self {
        Self {
            code: value as u16,
            fast: value >> 16 & 1 != 0,
            variable: (value >> 17 & 0x3ff) as usize * 8,
            count: (value >> 32 & 0xfff) as usize,
            start: (value >> 48 & 0xfff) as usize,
        }
    }
}

/// How a call ends that is not done: with a status, or with an exception.
enum Stop {
    Status(u16),
    Raise(Exception),
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Raise(exception)
    }
}

type Outcome<T = ()> = std::result::Result<T, Stop>;

fn fail<T>(status: u16) -> Outcome<T> {
    Err(Stop::Status(status))
}

/// Which processors a call is about.
enum Processors {
    All,
    /// Of each bank of 64, in order, those whose bits are set.
    Banks(Vec<u64>),
}

impl Processors {
    fn mask(mask: u64) -> Self {
        Self::Banks(vec![mask])
    }

    fn contain(&self, processor: u32) -> bool {
        match self {
            Self::All => true,
            Self::Banks(banks) => {
                let bank = banks.get(processor as usize / 64).copied().unwrap_or(0);
                bank >> (processor % 64) & 1 != 0
            }
        }
    }

    /// The set in `words`: format, which banks there are, and those.
    fn set(words: &[u64]) -> Outcome<Self> {
        let [format, valid, contents @ ..] = words else {
            return fail(status::INVALID_HYPERCALL_INPUT);
        };
        match *format {
            ALL_SET => Ok(Self::All),
            SPARSE_SET if contents.len() == valid.count_ones() as usize => {
                let mut contents = contents.iter();
                let bank = |n: u32| {
                    if valid >> n & 1 != 0 { contents.next().copied().unwrap_or(0) } else { 0 }
                };
                Ok(Self::Banks((0..64).map(bank).collect()))
            }
            SPARSE_SET => fail(status::INVALID_HYPERCALL_INPUT),
            _ => fail(status::INVALID_PARAMETER),
        }
    }
}

impl Cpu {
    /// Whether VMCALL and VMMCALL are calls of this interface: the guest has said what it is.
    pub(crate) fn takes_hyperv_calls(&self) -> bool {
        let on = self.config.model.hyperv.is_on() && !self.svm.guest;
        on && self.partition.as_ref().is_some_and(|place| place.partition.takes_calls())
    }

    /// VMCALL or VMMCALL, as the hypercall page has it.
    pub(crate) fn hyperv_call(&mut self) -> Result {
        if self.cpl != 0 || !self.mode.is_protected() {
            return Err(Exception::UD);
        }
        let wide = self.mode.is_64();
        let pair =
            |high, low| u64::from(self.reg::<u32>(high)) << 32 | u64::from(self.reg::<u32>(low));
        let [value, first, second] = if wide {
            [self.gpr[usize::from(RCX)], self.gpr[usize::from(RDX)], self.gpr[8]]
        } else {
            [pair(RDX, RAX), pair(RBX, RCX), pair(RDI, RSI)]
        };
        let input = Input::new(value);
        let (status, done) = match self.make_call(value, &input, first, second) {
            Ok(()) => (status::SUCCESS, input.count),
            Err(Stop::Status(status)) => (status, input.start.min(input.count)),
            Err(Stop::Raise(exception)) => return Err(exception),
        };
        let result = u64::from(status) | (done as u64) << 32;
        if wide {
            self.set_reg(RAX, result);
            if input.count != 0 && status == status::SUCCESS {
                self.set_reg(RCX, value & !(0xfff_u64 << 48) | (done as u64) << 48);
            }
        } else {
            self.set_reg(RAX, result as u32);
            self.set_reg(RDX, (result >> 32) as u32);
        }
        Ok(())
    }

    /// What is known of call `code`, if the guest may make it.
    fn known_call(&self, code: u16) -> Outcome<Call> {
        let offers = |what| self.config.model.hyperv.offers(what);
        let call = |header, variable, repeats| Call { header, variable, repeats };
        let (call, there) = match code {
            code::NOTIFY_LONG_SPIN_WAIT => (call(8, false, false), true),
            code::FLUSH_VIRTUAL_ADDRESS_SPACE => {
                (call(24, false, false), offers(Offered::TLBFLUSH))
            }
            code::FLUSH_VIRTUAL_ADDRESS_LIST => (call(24, false, true), offers(Offered::TLBFLUSH)),
            code::FLUSH_VIRTUAL_ADDRESS_SPACE_EX => {
                (call(32, true, false), offers(Offered::TLBFLUSH))
            }
            code::FLUSH_VIRTUAL_ADDRESS_LIST_EX => {
                (call(32, true, true), offers(Offered::TLBFLUSH))
            }
            code::SEND_SYNTHETIC_CLUSTER_IPI => (call(16, false, false), offers(Offered::IPI)),
            code::SEND_SYNTHETIC_CLUSTER_IPI_EX => (call(24, true, false), offers(Offered::IPI)),
            code::POST_MESSAGE | code::SIGNAL_EVENT => {
                if !offers(Offered::SYNIC) {
                    return fail(status::ACCESS_DENIED);
                }
                (call(if code == code::POST_MESSAGE { 256 } else { 8 }, false, false), true)
            }
            _ => return fail(status::INVALID_HYPERCALL_CODE),
        };
        if there { Ok(call) } else { fail(status::INVALID_HYPERCALL_CODE) }
    }

    fn make_call(&mut self, value: u64, input: &Input, first: u64, second: u64) -> Outcome {
        let call = self.known_call(input.code)?;
        let counts = if call.repeats {
            input.start < input.count
        } else {
            input.start == 0 && input.count == 0
        };
        if value & RESERVED != 0 || !counts || input.variable != 0 && !call.variable {
            return fail(status::INVALID_HYPERCALL_INPUT);
        }
        let len = call.header + input.variable + 8 * input.count;
        let bytes = if input.fast {
            self.input_in_registers(len, first, second)?
        } else {
            self.input_in_memory(len, first)?
        };
        let words = bytes.as_chunks::<8>().0.iter();
        let words: Vec<u64> = words.map(|word| u64::from_le_bytes(*word)).collect();
        let (header, list) = words.split_at((call.header + input.variable) / 8);
        let list = list.get(input.start..).unwrap_or_default();
        match input.code {
            // Another processor may have what is waited for.
            code::NOTIFY_LONG_SPIN_WAIT if self.timed.is_none() => {
                std::thread::yield_now();
                Ok(())
            }
            code::NOTIFY_LONG_SPIN_WAIT => Ok(()),
            code::FLUSH_VIRTUAL_ADDRESS_SPACE => {
                self.flush_space(header[1], &Processors::mask(header[2]))
            }
            code::FLUSH_VIRTUAL_ADDRESS_SPACE_EX => {
                self.flush_space(header[1], &Processors::set(&header[2..])?)
            }
            code::FLUSH_VIRTUAL_ADDRESS_LIST => {
                self.flush_list(header[1], &Processors::mask(header[2]), list)
            }
            code::FLUSH_VIRTUAL_ADDRESS_LIST_EX => {
                self.flush_list(header[1], &Processors::set(&header[2..])?, list)
            }
            code::SEND_SYNTHETIC_CLUSTER_IPI => {
                self.send_interrupts(header[0], &Processors::mask(header[1]))
            }
            code::SEND_SYNTHETIC_CLUSTER_IPI_EX => {
                self.send_interrupts(header[0], &Processors::set(&header[1..])?)
            }
            code::POST_MESSAGE => self.post_message(header[0], &bytes[8..]),
            _ => self.signal_event(header[0]),
        }
    }

    /// `len` bytes of input from registers.
    fn input_in_registers(&self, len: usize, first: u64, second: u64) -> Outcome<Vec<u8>> {
        if len > IN_ALL_REGISTERS {
            return fail(status::INVALID_HYPERCALL_INPUT);
        }
        if len > IN_REGISTERS && !self.config.model.hyperv.offers(Offered::XMM_INPUT) {
            return Err(Stop::Raise(Exception::UD));
        }
        let mut bytes = [first.to_le_bytes(), second.to_le_bytes()].concat();
        self.fpu.xmm[..XMM_INPUTS].iter().for_each(|xmm| bytes.extend(xmm.to_le_bytes()));
        bytes.truncate(len);
        Ok(bytes)
    }

    /// `len` bytes of input from guest physical address `at`.
    fn input_in_memory(&mut self, len: usize, at: u64) -> Outcome<Vec<u8>> {
        let outside = at >> self.limits.phys_bits != 0;
        if outside || !at.is_multiple_of(8) || at % PAGE + len as u64 > PAGE {
            return fail(status::INVALID_ALIGNMENT);
        }
        let mut bytes = vec![0; len];
        if !self.read_memory_page(at, &mut bytes) {
            return fail(status::INVALID_HYPERCALL_INPUT);
        }
        Ok(bytes)
    }

    fn check_flush(&self, flags: u64, list: bool) -> Outcome {
        let extended = list && self.config.model.hyperv.offers(Offered::TLBFLUSH_EXT);
        let mut known = flush::ALL_PROCESSORS | flush::ALL_SPACES;
        known |= if list { 0 } else { flush::NON_GLOBAL_ONLY };
        known |= if extended { flush::EXTENDED_RANGES } else { 0 };
        if flags & !known == 0 { Ok(()) } else { fail(status::INVALID_PARAMETER) }
    }

    fn flush_space(&mut self, flags: u64, processors: &Processors) -> Outcome {
        self.check_flush(flags, false)?;
        let what = Invalidation::space(flags & flush::NON_GLOBAL_ONLY == 0);
        self.flush_on(flags, processors, &what)
    }

    fn flush_list(&mut self, flags: u64, processors: &Processors, list: &[u64]) -> Outcome {
        self.check_flush(flags, true)?;
        let mut what = Invalidation::default();
        for &range in list {
            let large = flags & flush::EXTENDED_RANGES != 0 && range >> 11 & 1 != 0;
            if large {
                // Of 2 MiB, or of 1 GiB.
                let size = if range >> 12 & 1 != 0 { 1 << 18 } else { 1 << 9 };
                what.add_pages(range & !0x1f_ffff, ((range & 0x7ff) + 1) * size);
            } else {
                let more = if flags & flush::EXTENDED_RANGES != 0 { 0x7ff } else { 0xfff };
                what.add_pages(range & !0xfff, (range & more) + 1);
            }
        }
        self.flush_on(flags, processors, &what)
    }

    fn flush_on(&mut self, flags: u64, processors: &Processors, what: &Invalidation) -> Outcome {
        let all = flags & flush::ALL_PROCESSORS != 0;
        self.invalidate_on(|processor| all || processors.contain(processor), what)?;
        Ok(())
    }

    /// `target` is a vector, and in the byte after it a trust level, of which there is one.
    fn send_interrupts(&mut self, target: u64, processors: &Processors) -> Outcome {
        let (vector, level) = (target & 0xffff_ffff, target >> 32 & 0xf);
        let valid = (FIRST_VECTOR..=0xff).contains(&vector) && level == 0;
        let Some(Place { partition, .. }) = self.partition.as_ref().filter(|_| valid) else {
            return fail(status::INVALID_PARAMETER);
        };
        let all = 0..partition.processors();
        all.filter(|&processor| processors.contain(processor))
            .for_each(|processor| partition.interrupt(processor, vector as u8));
        self.break_block = true;
        Ok(())
    }

    /// A message: its type, its length, and its payload.
    fn post_message(&mut self, connection: u64, message: &[u8]) -> Outcome {
        let word = |at: usize| {
            message[at..at + 4].iter().rev().fold(0u32, |word, &byte| word << 8 | u32::from(byte))
        };
        let (kind, len) = (word(0), word(4));
        if kind == 0 || kind >> 31 != 0 || len > MAX_MESSAGE {
            return fail(status::INVALID_PARAMETER);
        }
        let connection = self.connection(connection as u32)?;
        let Some(Place { partition, .. }) = &self.partition else {
            return fail(status::INVALID_CONNECTION_ID);
        };
        let posted = partition.post_message(connection, kind, &message[8..8 + len as usize]);
        self.break_block = true;
        match posted {
            Posted::Taken => Ok(()),
            Posted::Unconnected => fail(status::INVALID_CONNECTION_ID),
            Posted::Full => fail(status::INSUFFICIENT_BUFFERS),
        }
    }

    /// `event` is a connection, and above it the number of a flag: each connection leads to one.
    fn signal_event(&mut self, event: u64) -> Outcome {
        let connection = self.connection(event as u32)?;
        let Some(Place { partition, .. }) = &self.partition else {
            return fail(status::INVALID_CONNECTION_ID);
        };
        if event >> 48 != 0 {
            return fail(status::INVALID_HYPERCALL_INPUT);
        }
        if event >> 32 != 0 {
            return fail(status::INVALID_PARAMETER);
        }
        let signalled = partition.signal_event(connection);
        self.break_block = true;
        if signalled { Ok(()) } else { fail(status::INVALID_CONNECTION_ID) }
    }

    /// The number of a connection has 24 bits.
    fn connection(&self, id: u32) -> Outcome<u32> {
        if id >> 24 == 0 { Ok(id) } else { fail(status::INVALID_CONNECTION_ID) }
    }
}
