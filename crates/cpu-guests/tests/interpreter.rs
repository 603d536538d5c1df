//! The topics on the software CPU alone, with as much of a board as they need: RAM, a serial port, the
//! debug exit. Topics about interrupt controllers are for whole machines: `crates/rhea/tests`.
//!
//! `RHEA_CPU=model` chooses another CPU model, `RHEA_TOPIC=name` a single topic, `RHEA_IMAGE=file`
//! any other image.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use accel::{CpuBus, Exit, GuestClock, InterruptController, Signal, Signals, Vcpu};
use cpu_x86::state::{Activity, Segment};
use cpu_x86::{Cpu, CpuConfig, CpuGroup, CpuModel, CpuWiring, Topology};
use memory::{Change, GuestMemory};

const RAM: u64 = 64 << 20;
const SERIAL: u16 = 0x3f8;
const LINE_STATUS: u16 = SERIAL + 5;
const EXIT: u16 = 0xf4;
/// Where images are linked.
const BASE: u64 = 0x10_0000;
const MULTIBOOT_MAGIC: u32 = 0x1bad_b002;
/// No guest has ended yet.
const RUNNING: u32 = u32::MAX;

struct Board {
    signals: Arc<Signals>,
    text: Mutex<Vec<u8>>,
    status: AtomicU32,
    ticks: AtomicU64,
}

impl CpuBus for Board {
    fn read_port(&self, port: u16, size: u8) -> u32 {
        if port == LINE_STATUS { 0x60 } else { u32::MAX >> (32 - 8 * u32::from(size)) }
    }
    fn write_port(&self, port: u16, _: u8, value: u32) {
        match port {
            SERIAL => self.text.lock().expect("not poisoned").push(value as u8),
            EXIT => {
                self.status.store(value, Ordering::Relaxed);
                self.signals.raise(Signal::Exit);
            }
            _ => {}
        }
    }
    fn read_mmio(&self, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn write_mmio(&self, _: u64, _: u8, _: u64) {}
}

impl InterruptController for Board {
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn task_priority(&self) -> u8 {
        0
    }
    fn set_task_priority(&self, _: u8) {}
    fn read_msr(&self, index: u32) -> Option<u64> {
        // APIC_BASE, so that topics see a bootstrap processor.
        (index == 0x1b).then_some(0xfee0_0900)
    }
    fn write_msr(&self, _: u32, _: u64) -> bool {
        false
    }
    fn startup_vector(&self) -> u8 {
        0
    }
}

impl GuestClock for Board {
    fn now_ns(&self) -> u64 {
        self.tsc()
    }
    fn tsc(&self) -> u64 {
        self.ticks.fetch_add(100, Ordering::Relaxed)
    }
    fn tsc_hz(&self) -> u64 {
        1_000_000_000
    }
}

/// The entry point that a multiboot header gives, and the part of the file that is to be loaded.
fn header(image: &[u8]) -> (u32, std::ops::Range<usize>) {
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().expect("four bytes"));
    let at = (0..8192).step_by(4).find(|&at| word(at) == MULTIBOOT_MAGIC).expect("a header");
    let (header, load, load_end, entry) =
        (word(at + 12), word(at + 16), word(at + 20), word(at + 28));
    let start = at - (header - load) as usize;
    (entry, start..start + (load_end - load) as usize)
}

/// Runs a topic; returns what it says, and whether it is content.
fn run(model: &Arc<CpuModel>, image: &[u8]) -> (String, bool) {
    let memory = Arc::new(GuestMemory::new(&[(0, RAM)]).expect("guest memory"));
    let group = Arc::new(CpuGroup::default());
    let told = Arc::clone(&group);
    memory.set_change_hook(move |change| match change {
        Change::Map => told.map_changed(),
        Change::Watch => told.watch_writes(),
    });
    let signals = Arc::new(Signals::default());
    let board = Arc::new(Board {
        signals: Arc::clone(&signals),
        text: Mutex::default(),
        status: AtomicU32::new(RUNNING),
        ticks: AtomicU64::new(1000),
    });
    let (entry, loaded) = header(image);
    memory.write(BASE, &image[loaded]).expect("RAM");
    let wiring = CpuWiring {
        memory,
        bus: board.clone(),
        interrupts: board.clone(),
        clock: board.clone(),
        signals,
        group,
    };
    let topology = Topology { cores: 1, threads: 1 };
    let mut cpu = Cpu::new(CpuConfig { apic_id: 0, topology, model: Arc::clone(model) }, wiring);
    let mut state = cpu.state();
    let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xc093 };
    let code = Segment { selector: 0x08, base: 0, limit: u32::MAX, attributes: 0xc09b };
    state.segments = [data, code, data, data, data, data];
    state.cr0 = 0x11;
    state.rip = entry.into();
    state.gpr[0] = 0x2bad_b002;
    state.rflags = 2;
    state.activity = Activity::Running;
    cpu.set_state(&state).expect("a valid state");
    let exit = cpu.run();
    let mut text = String::from_utf8_lossy(&board.text.lock().expect("not poisoned")).into_owned();
    let status = board.status.load(Ordering::Relaxed);
    if status == RUNNING {
        let state = cpu.state();
        text += &format!("the guest stopped by itself: {exit:?} at {:#x}\n", state.rip);
    }
    (text, status == 0 && exit == Exit::Interrupted)
}

#[test]
fn topics_are_as_the_manuals_say() {
    let model = std::env::var("RHEA_CPU").unwrap_or_else(|_| "max".into());
    let model = Arc::new(CpuModel::parse(&model).expect("a model"));
    let only = std::env::var("RHEA_TOPIC").ok();
    if let Ok(path) = std::env::var("RHEA_IMAGE") {
        let (text, content) = run(&model, &std::fs::read(path).expect("a readable image"));
        println!("{text}");
        assert!(content);
        return;
    }
    let mut failed = Vec::new();
    for (name, image) in cpu_guests::TOPICS {
        if only.as_ref().is_some_and(|only| only != name)
            || cpu_guests::NEEDS_MACHINE.contains(name)
        {
            continue;
        }
        let (text, content) = run(&model, image);
        println!("{name}:\n{text}");
        if !content {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "topics that fail: {failed:?}");
}
