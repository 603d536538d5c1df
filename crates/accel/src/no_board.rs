//! A board with nothing on it, for a CPU that runs by itself: in unit tests, benchmarks and wherever
//! only what the CPU does with its registers and memory matters.

use crate::{AccessSize, CpuBus, GuestClock, InterruptController};

/// Ports and registers answer as if nobody claimed them, no interrupt ever comes, and time stands
/// still at zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBoard;

impl CpuBus for NoBoard {
    fn read_port(&self, _: u16, _: AccessSize) -> u32 {
        u32::MAX
    }
    fn write_port(&self, _: u16, _: AccessSize, _: u32) {}
    fn read_mmio(&self, _: u64, _: AccessSize) -> u64 {
        u64::MAX
    }
    fn write_mmio(&self, _: u64, _: AccessSize, _: u64) {}
}

impl InterruptController for NoBoard {
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn task_priority(&self) -> u8 {
        0
    }
    fn set_task_priority(&self, _: u8) {}
    fn read_msr(&self, _: u32) -> Option<u64> {
        None
    }
    fn write_msr(&self, _: u32, _: u64) -> bool {
        false
    }
    fn startup_vector(&self) -> u8 {
        0
    }
}

impl GuestClock for NoBoard {
    fn now_ns(&self) -> u64 {
        0
    }
    fn tsc(&self) -> u64 {
        0
    }
    fn tsc_hz(&self) -> u64 {
        1_000_000_000
    }
}
