//! What a virtual CPU is, whoever runs it.
//!
//! An accelerator (the software CPU today, KVM later) gives one [`Vcpu`] a virtual processor. A vCPU
//! runs on a thread of its own: the thread calls [`Vcpu::run`], which returns with an [`Exit`] when
//! something happened that the CPU can't go on from by itself. Port and memory-mapped accesses do not
//! return; they call the [`CpuBus`] that the CPU was made with, at the exact point within an
//! instruction (KVM's implementation calls it from its own exit loop, so the two look alike from here).
//!
//! Interrupts come from an [`InterruptController`] on the board. It raises [`Signals`] bits, which any
//! thread may do at any time; the CPU looks at them between instructions and asks the controller for
//! the vector.
//!
//! Nothing in here knows an architecture; the saved state of a CPU is its accelerator's own type.

pub mod log;
mod no_board;
mod partition;
mod signals;

pub use no_board::NoBoard;
pub use partition::{Partition, Posted};
pub use signals::{Bell, Signal, Signals};

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Width of an access in bytes: 1, 2, 4 or 8. Ports have no 8.
pub type AccessSize = u8;

/// The board as a CPU sees it, beyond RAM: ports and memory-mapped registers. Values are in the low
/// `size` bytes, zero-extended. Unclaimed reads give all ones, unclaimed writes are dropped.
pub trait CpuBus: Send + Sync {
    /// Reads from I/O port `port`.
    fn read_port(&self, port: u16, size: AccessSize) -> u32;
    /// Writes to I/O port `port`.
    fn write_port(&self, port: u16, size: AccessSize, value: u32);
    /// Reads a guest physical address that is not RAM.
    fn read_mmio(&self, addr: u64, size: AccessSize) -> u64;
    /// Writes a guest physical address that is not RAM.
    fn write_mmio(&self, addr: u64, size: AccessSize, value: u64);
    /// The CPU found a floating-point error that it was told to report this way (x86: FERR# with CR0.NE
    /// clear), or, with false, has none any more. Returns whether it may go on in spite of it
    /// (IGNNE#); if not it waits for an interrupt and asks again. A board that does not listen lets it
    /// go on.
    fn floating_point_error(&self, pending: bool) -> bool {
        let _ = pending;
        true
    }
}

/// The interrupt controller next to one CPU (on x86: its local APIC with the 8259 behind it).
pub trait InterruptController: Send + Sync {
    /// Acknowledges the most urgent interrupt and returns its vector; `None` if it went away
    /// meanwhile. The controller clears or keeps [`Signal::Interrupt`] to match what is still pending.
    fn acknowledge(&self) -> Option<u8>;
    /// The current task priority: x86's CR8, 0 to 15.
    fn task_priority(&self) -> u8;
    /// Sets the task priority, 0 to 15.
    fn set_task_priority(&self, priority: u8);
    /// Reads a model-specific register that belongs to the controller (x86: IA32_APIC_BASE, the
    /// TSC deadline, x2APIC's). `None` if it has no such register or it can't be read now.
    fn read_msr(&self, index: u32) -> Option<u64>;
    /// Writes such a register; false if it does not exist or the value is not allowed.
    fn write_msr(&self, index: u32, value: u64) -> bool;
    /// A performance counter has overflown; `masks` says that the controller masks the interrupt that it
    /// raises, as Intel's does. A controller without such an input does nothing.
    fn performance_interrupt(&self, masks: bool) {
        let _ = masks;
    }
    /// The vector of the start-up IPI that raised [`Signal::Startup`].
    fn startup_vector(&self) -> u8;
}

/// The guest's clocks. They stand still while the machine is stopped.
pub trait GuestClock: Send + Sync {
    /// Guest time since the machine was made, in nanoseconds.
    fn now_ns(&self) -> u64;
    /// The time-stamp counter before any offset the guest wrote, in ticks of [`Self::tsc_hz`].
    fn tsc(&self) -> u64;
    /// Ticks per second of [`Self::tsc`].
    fn tsc_hz(&self) -> u64;
    /// Time of day in nanoseconds since 1970, UTC: the host's, unless the machine has another.
    fn time_of_day_ns(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        since.as_nanos() as u64
    }
}

/// Guest time that goes by the instructions that a CPU executes, as the CPU knows it.
pub trait InstructionTime: Send + Sync {
    /// `count` instructions were executed since the machine was made, so it is that late. Returns the
    /// count at which a timer is due.
    fn at(&self, count: u64) -> u64;
    /// Fires the timers that are due at `count`.
    fn expire(&self, count: u64);
    /// The CPU has nothing to execute: time passes otherwise, until one of `wake` is raised.
    fn idle(&self, signals: &Signals, wake: u32);
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The CPU halted. Run it again once [`Signals`] has something for it.
    Halt {
        /// The signals that end the halt, as a bit set: with interrupts disabled, a pending interrupt
        /// does not.
        wake: u32,
    },
    /// The CPU can't go on and asks the board to reset (x86: triple fault).
    Shutdown,
    /// [`Signal::Exit`] was raised. The CPU stands between two instructions.
    Interrupted,
    /// A breakpoint, watchpoint or single step that belongs to the debugger.
    Debug,
    /// The accelerator is unable to go on; the text says why. The machine enters `internal-error`.
    InternalError(String),
}

/// What the outside may see of a CPU at any time without stopping it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuGlance {
    /// Program counter. While the CPU runs it may be some instructions old.
    pub pc: u64,
    /// Whether the CPU is halted (or was not started yet).
    pub halted: bool,
    /// Instructions retired since reset, if the accelerator counts them.
    pub instructions: u64,
}

/// A virtual CPU. Owned by the thread that runs it.
pub trait Vcpu: Send {
    /// The complete architectural state, for save and restore, debuggers and `info registers`.
    type State;

    /// Runs until something happens. Runs at least one instruction unless a signal says otherwise, so
    /// that it may be called in a loop.
    fn run(&mut self) -> Exit;

    /// The signals of this CPU, to share with whoever may interrupt it.
    fn signals(&self) -> Arc<Signals>;

    /// What can be seen from other threads; the same object for the CPU's whole life.
    fn glance(&self) -> Arc<dyn Fn() -> CpuGlance + Send + Sync>;

    /// Puts the CPU into the state that the architecture gives it after power-on.
    fn reset(&mut self);

    /// The architectural state. Only meaningful between calls of `run`.
    fn state(&self) -> Self::State;

    /// Replaces the architectural state.
    ///
    /// # Errors
    /// Says which part the CPU can't be in; the CPU is then unchanged.
    fn set_state(&mut self, state: &Self::State) -> Result<(), String>;
}
