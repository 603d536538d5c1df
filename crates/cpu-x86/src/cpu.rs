//! The running form of a CPU: every handler works on a [`Cpu`].

use std::sync::Arc;

use accel::{CpuBus, GuestClock, InterruptController, Signals};
use memory::GuestMemory;

use crate::flags::LazyFlags;
use crate::reg::GPR_SLOTS;
use crate::state::{Segment, TableRegister};

/// What a CPU is made from.
#[derive(Clone)]
pub struct CpuConfig {
    /// Index of the CPU, which is also its initial APIC id. CPU 0 starts at reset, others wait for a
    /// start-up IPI.
    pub index: u32,
    /// Number of CPUs in the machine, for CPUID's topology leaves.
    pub count: u32,
}

/// A software CPU.
#[repr(C)]
pub struct Cpu {
    /// General registers, and slots that are always zero (see `reg`).
    pub(crate) gpr: [u64; GPR_SLOTS],
    /// Address of the next instruction (see `op`).
    pub(crate) rip: u64,
    /// The arithmetic flags.
    pub(crate) flags: LazyFlags,
    /// RFLAGS without the arithmetic flags, which are kept apart (see `flags`).
    pub(crate) system_flags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub(crate) seg: [Segment; 6],
    pub(crate) ldtr: Segment,
    pub(crate) tr: Segment,
    pub(crate) gdtr: TableRegister,
    pub(crate) idtr: TableRegister,
    /// Current privilege level, 0 to 3.
    pub(crate) cpl: u8,
    /// Set by a store that hit decoded code: the running block ends after this instruction.
    pub(crate) break_block: bool,
    /// Instructions retired since reset.
    pub(crate) instructions: u64,

    pub(crate) config: CpuConfig,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) bus: Arc<dyn CpuBus>,
    pub(crate) interrupts: Arc<dyn InterruptController>,
    pub(crate) clock: Arc<dyn GuestClock>,
    pub(crate) signals: Arc<Signals>,
}
