//! What surrounds each CPU: the board's ports and registers, its local APIC, the clocks.

use std::sync::Arc;

use accel::log::{Log, Topic};
use accel::{AccessSize, CpuBus, GuestClock, Signal, Signals};
use bus::{AddressSpace, BusDevice, Clock, IrqSink};
use devices::fpu_error::FpuError;
use devices::lapic::LocalApic;
use devices::mc146818::Reference;

const NS: u64 = 1_000_000_000;

/// Ticks of the time-stamp counter per second, where the CPU model has none of its own. One a nanosecond: exact
/// in both directions.
pub const TSC_HZ: u64 = NS;

/// The machine's clock as CPUs read it.
pub struct BoardClock {
    /// Guest time.
    pub clock: Clock,
    /// Time of day.
    pub day: Arc<Reference>,
    /// Ticks of the time-stamp counter per second.
    pub tsc_hz: u64,
}

impl GuestClock for BoardClock {
    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    fn tsc(&self) -> u64 {
        let ns = self.clock.now_ns();
        match self.tsc_hz {
            NS => ns,
            hz => (u128::from(ns) * u128::from(hz) / u128::from(NS)) as u64,
        }
    }

    fn time_of_day_ns(&self) -> u64 {
        self.day.time_of_day_ns()
    }

    fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }
}

/// The address spaces as one CPU sees them: its own local APIC lies over the memory space.
pub struct CpuView {
    /// I/O ports.
    pub ports: Arc<AddressSpace>,
    /// Memory-mapped registers.
    pub mmio: Arc<AddressSpace>,
    /// The CPU's local APIC.
    pub apic: Arc<LocalApic>,
    /// Takes floating-point errors to interrupt 13.
    pub fpu_error: Arc<FpuError>,
    /// Told of accesses that nobody answers.
    pub log: Arc<Log>,
}

impl CpuBus for CpuView {
    fn read_port(&self, port: u16, size: AccessSize) -> u32 {
        self.ports.read(port.into(), size).map_or(u32::MAX, |value| value as u32)
    }

    fn write_port(&self, port: u16, size: AccessSize, value: u32) {
        self.ports.write(port.into(), size, value.into());
    }

    fn read_mmio(&self, addr: u64, size: AccessSize) -> u64 {
        match self.apic.mmio_offset(addr) {
            Some(offset) => self.apic.read(offset, size),
            None => self.mmio.read(addr, size).unwrap_or_else(|| {
                self.log.line(
                    Topic::GuestErrors,
                    format_args!("read of {size} bytes at {addr:#x}, where nothing is"),
                );
                u64::MAX
            }),
        }
    }

    fn write_mmio(&self, addr: u64, size: AccessSize, value: u64) {
        match self.apic.mmio_offset(addr) {
            Some(offset) => self.apic.write(offset, size, value),
            None if self.mmio.write(addr, size, value) => {}
            None => self.log.line(
                Topic::GuestErrors,
                format_args!("write of {value:#x} ({size} bytes) at {addr:#x}, where nothing is"),
            ),
        }
    }

    fn floating_point_error(&self, pending: bool) -> bool {
        self.fpu_error.set(pending)
    }
}

/// A CPU's input for system management interrupts, which takes rising edges.
pub struct SmiInput(pub Arc<Signals>);

impl IrqSink for SmiInput {
    fn set_level(&self, _pin: u32, level: bool) {
        if level {
            self.0.raise(Signal::Smi);
        }
    }
}
