//! The least of a board that a CPU runs on: RAM, a port that collects what guests write to it, and an
//! interrupt controller that the test drives.
#![allow(dead_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use accel::{CpuBus, GuestClock, InterruptController, Signal, Signals};
use cpu_x86::{Cpu, CpuConfig, CpuGroup, CpuWiring, Topology};
use memory::{Change, GuestMemory};

/// The port whose writes are collected.
pub(crate) const DEBUG_PORT: u16 = 0xe9;
/// A port where a guest sends itself an interrupt, the value's vector.
pub(crate) const INTERRUPT_PORT: u16 = 0xea;
/// A port where a guest sends itself an NMI.
pub(crate) const NMI_PORT: u16 = 0xeb;

/// A port where a guest sends itself a system management interrupt.
pub(crate) const SMI_PORT: u16 = 0xec;
/// A port whose bit 0 opens the A20 gate.
pub(crate) const A20_PORT: u16 = 0xed;
/// A port whose writes are told to [`Board::on_map`].
pub(crate) const MAP_PORT: u16 = 0xee;

/// Changes the memory map.
pub(crate) type MapChange = Box<dyn Fn(u32) + Send>;

/// What CPUs are wired to. One for each CPU, but for memory and group.
pub(crate) struct Board {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) signals: Arc<Signals>,
    group: Arc<CpuGroup>,
    /// Values written to [`DEBUG_PORT`].
    pub(crate) output: Mutex<Vec<u32>>,
    /// What changes the memory map when a guest asks for it.
    pub(crate) on_map: Mutex<Option<MapChange>>,
    /// Addresses, sizes and values of writes to no memory.
    pub(crate) mmio: Mutex<Vec<(u64, u8, u64)>>,
    /// Vectors to deliver, the next one last.
    pub(crate) vectors: Mutex<Vec<u8>>,
    /// The vector of a start-up IPI.
    pub(crate) startup: AtomicU64,
    task_priority: AtomicU64,
    ticks: AtomicU64,
}

impl Board {
    /// Raises an external interrupt.
    pub(crate) fn interrupt(&self, vector: u8) {
        self.vectors.lock().unwrap().push(vector);
        self.signals.raise(Signal::Interrupt);
    }
}

impl CpuBus for Board {
    fn read_port(&self, _: u16, size: u8) -> u32 {
        u32::MAX >> (32 - 8 * u32::from(size))
    }
    fn write_port(&self, port: u16, _: u8, value: u32) {
        match port {
            DEBUG_PORT => self.output.lock().unwrap().push(value),
            INTERRUPT_PORT => self.interrupt(value as u8),
            NMI_PORT => self.signals.raise(Signal::Nmi),
            SMI_PORT => self.signals.raise(Signal::Smi),
            MAP_PORT => {
                if let Some(change) = &*self.on_map.lock().unwrap() {
                    change(value);
                }
            }
            A20_PORT => self.group.set_a20(value & 1 != 0),
            _ => {}
        }
    }
    fn read_mmio(&self, addr: u64, _: u8) -> u64 {
        addr.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn floating_point_error(&self, pending: bool) -> bool {
        if pending && !self.vectors.lock().unwrap().contains(&0x75) {
            self.interrupt(0x75);
        }
        !pending
    }
    fn write_mmio(&self, addr: u64, size: u8, value: u64) {
        self.mmio.lock().unwrap().push((addr, size, value));
    }
}

impl InterruptController for Board {
    fn acknowledge(&self) -> Option<u8> {
        let mut vectors = self.vectors.lock().unwrap();
        let vector = vectors.pop();
        if vectors.is_empty() {
            self.signals.clear(Signal::Interrupt);
        }
        vector
    }
    fn task_priority(&self) -> u8 {
        self.task_priority.load(Ordering::Relaxed) as u8
    }
    fn set_task_priority(&self, priority: u8) {
        self.task_priority.store(priority.into(), Ordering::Relaxed);
    }
    fn read_msr(&self, _: u32) -> Option<u64> {
        None
    }
    fn write_msr(&self, _: u32, _: u64) -> bool {
        false
    }
    fn startup_vector(&self) -> u8 {
        self.startup.load(Ordering::Relaxed) as u8
    }
}

impl GuestClock for Board {
    fn now_ns(&self) -> u64 {
        self.tsc()
    }
    fn tsc(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::Relaxed)
    }
    fn tsc_hz(&self) -> u64 {
        1_000_000_000
    }
}

/// CPUs that share memory, given as addresses and lengths, each with its board.
pub(crate) fn machine(ram: &[(u64, u64)], cpus: u32) -> Vec<(Cpu, Arc<Board>)> {
    let memory = Arc::new(GuestMemory::new(ram).expect("guest memory"));
    let group = Arc::new(CpuGroup::default());
    let told = Arc::clone(&group);
    memory.set_change_hook(move |change| match change {
        Change::Map => told.map_changed(),
        Change::Watch => told.watch_writes(),
    });
    (0..cpus)
        .map(|index| {
            let board = Arc::new(Board {
                memory: Arc::clone(&memory),
                signals: Arc::new(Signals::default()),
                group: Arc::clone(&group),
                output: Mutex::default(),
                on_map: Mutex::default(),
                mmio: Mutex::default(),
                vectors: Mutex::default(),
                startup: AtomicU64::new(0),
                task_priority: AtomicU64::new(0),
                ticks: AtomicU64::new(1000),
            });
            let wiring = CpuWiring {
                memory: Arc::clone(&memory),
                bus: board.clone(),
                interrupts: board.clone(),
                clock: board.clone(),
                signals: Arc::clone(&board.signals),
                group: Arc::clone(&group),
            };
            (
                Cpu::new(
                    CpuConfig {
                        apic_id: index,
                        topology: Topology { cores: cpus, threads: 1 },
                        model: Arc::default(),
                    },
                    wiring,
                ),
                board,
            )
        })
        .collect()
}
