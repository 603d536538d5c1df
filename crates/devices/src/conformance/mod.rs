//! What every device is held to, whatever it is: the invariants of [`bus::Device`].
//!
//! - A reset brings back the state after construction.
//! - A device restored from another's state goes on as that one does, under any traffic.
//! - State of something else, or damaged, is refused and changes nothing; what is not refused does no
//!   harm later.
//! - No register traffic makes a device panic (arithmetic overflow included).
//!
//! [`rigs::all`] lists the devices; a device that is missing there fails a test. Traffic is random and
//! shrinks to the shortest that fails; `PROPTEST_CASES` sets how much there is.

mod rigs;

use std::collections::BTreeSet;
use std::sync::Arc;

use bus::{AddressSpace, Clock, Device, IrqSink, TimerQueue};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::i8042::A20Gate;
use crate::irq::testing::Recorder;
use crate::pci::PciFunction;
use crate::testing::Wishes;

/// Guest time at which a rig is built, in nanoseconds.
const START_NS: u64 = 5_000_000_000;

/// Where an access goes.
#[derive(Clone, Copy, Debug)]
enum Space {
    Ports,
    Memory,
}

/// A device on the bench, with everything that traffic can reach it through.
struct Rig {
    device: Arc<dyn Device>,
    clock: Clock,
    timers: TimerQueue,
    ports: Arc<AddressSpace>,
    mmio: Arc<AddressSpace>,
    /// Stretches of addresses to aim at: space, first address, length.
    targets: Vec<(Space, u64, u64)>,
    /// Configuration space, if it is a PCI function.
    config: Option<Arc<dyn PciFunction>>,
    /// Interrupt inputs, if it has some.
    inputs: Option<(Arc<dyn IrqSink>, u32)>,
    /// Anything else: takes two numbers, returns what can be observed.
    other: Option<Box<dyn Fn(u32, u64) -> u64>>,
    /// The device's interrupt lines.
    lines: Arc<Recorder>,
    /// What it asked of the machine.
    wishes: Arc<Wishes>,
    /// What must live as long as the device.
    _keep: Vec<Box<dyn std::any::Any>>,
}

impl Rig {
    /// An empty bench at [`START_NS`] with the device that `make` makes on it.
    fn new<D: Device + 'static>(make: impl FnOnce(&Bench) -> Arc<D>) -> (Self, Arc<D>) {
        let clock = Clock::manual();
        clock.set(START_NS);
        let bench = Bench {
            timers: TimerQueue::without_thread(clock.clone()),
            clock,
            ports: Arc::default(),
            mmio: Arc::default(),
            lines: Arc::default(),
            wishes: Arc::default(),
        };
        let device = make(&bench);
        let Bench { clock, timers, ports, mmio, lines, wishes } = bench;
        let rig = Self {
            device: device.clone(),
            clock,
            timers,
            ports,
            mmio,
            targets: Vec::new(),
            config: None,
            inputs: None,
            other: None,
            lines,
            wishes,
            _keep: Vec::new(),
        };
        (rig, device)
    }

    fn target(mut self, space: Space, start: u64, len: u64) -> Self {
        self.targets.push((space, start, len));
        self
    }

    fn config(mut self, function: Arc<dyn PciFunction>) -> Self {
        self.config = Some(function);
        self
    }

    fn inputs(mut self, sink: Arc<dyn IrqSink>, count: u32) -> Self {
        self.inputs = Some((sink, count));
        self
    }

    fn other(mut self, other: impl Fn(u32, u64) -> u64 + 'static) -> Self {
        self.other = Some(Box::new(other));
        self
    }

    fn keep(mut self, thing: impl std::any::Any) -> Self {
        self._keep.push(Box::new(thing));
        self
    }

    /// Does one thing to the device; returns what it answered.
    fn apply(&self, step: &Step) -> u64 {
        match *step {
            Step::Access { target, offset, size, write } if !self.targets.is_empty() => {
                let (space, start, len) = self.targets[target as usize % self.targets.len()];
                let size = 1u8 << (size % if matches!(space, Space::Ports) { 3 } else { 4 });
                let address = start + u64::from(offset) % len;
                let space = match space {
                    Space::Ports => &self.ports,
                    Space::Memory => &self.mmio,
                };
                match write {
                    Some(value) => space.write(address, size, value).into(),
                    None => space.read(address, size).unwrap_or(u64::MAX),
                }
            }
            Step::Config { offset, size, write } => {
                let Some(function) = &self.config else { return 0 };
                let size = 1u8 << (size % 3);
                let offset = u16::from(offset) & !(u16::from(size) - 1);
                match write {
                    Some(value) => function.write_config(offset, size, value),
                    None => return function.read_config(offset, size).into(),
                }
                0
            }
            Step::Line { pin, level } => {
                if let Some((sink, count)) = &self.inputs {
                    sink.set_level(pin % count, level);
                }
                0
            }
            Step::Other(kind, value) => self.other.as_ref().map_or(0, |f| f(kind, value)),
            Step::Wait(ns) => {
                self.clock.set(self.clock.now_ns().saturating_add(ns));
                self.timers.fire_due();
                0
            }
            Step::Access { .. } => 0,
        }
    }

    /// Does all of it; returns all answers and the levels and wishes they left.
    fn run(&self, steps: &[Step]) -> (Vec<u64>, Vec<bool>, Vec<String>) {
        let answers = steps.iter().map(|step| self.apply(step)).collect();
        (answers, self.levels(), self.wishes.taken())
    }

    fn levels(&self) -> Vec<bool> {
        (0..24).map(|pin| self.lines.level(pin)).collect()
    }
}

/// What a device is made with.
struct Bench {
    clock: Clock,
    timers: TimerQueue,
    ports: Arc<AddressSpace>,
    mmio: Arc<AddressSpace>,
    lines: Arc<Recorder>,
    wishes: Arc<Wishes>,
}

impl Bench {
    fn line(&self, pin: u32) -> bus::IrqLine {
        bus::IrqLine::new(self.lines.clone(), pin)
    }

    /// The A20 gate, whose state shows on line 19.
    fn a20(&self) -> Arc<A20Gate> {
        let line = self.line(19);
        A20Gate::new(move |open| line.set(!open))
    }
}

/// One thing done to a device.
#[derive(Clone, Debug)]
enum Step {
    Access { target: u8, offset: u16, size: u8, write: Option<u64> },
    Config { offset: u8, size: u8, write: Option<u32> },
    Line { pin: u32, level: bool },
    Other(u32, u64),
    Wait(u64),
}

/// Values that registers are written with: any, few bits, all or none.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => any::<u64>(),
        4 => (0..64u32).prop_map(|bit| 1 << bit),
        4 => 0..0x100u64,
        1 => Just(u64::MAX),
        1 => Just(0),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let write = || prop_oneof![2 => value().prop_map(Some), 1 => Just(None)];
    let offset = prop_oneof![3 => 0..0x10u16, 1 => any::<u16>()];
    prop_oneof![
        10 => (any::<u8>(), offset, any::<u8>(), write())
            .prop_map(|(target, offset, size, write)| Step::Access { target, offset, size, write }),
        3 => (any::<u8>(), any::<u8>(), write()).prop_map(|(offset, size, write)| Step::Config {
            offset,
            size,
            write: write.map(|value| value as u32),
        }),
        2 => (any::<u32>(), any::<bool>()).prop_map(|(pin, level)| Step::Line { pin, level }),
        4 => (any::<u32>(), value()).prop_map(|(kind, value)| Step::Other(kind, value)),
        1 => (0..2_000_000u64).prop_map(Step::Wait),
        1 => (0..100_000_000_000u64).prop_map(Step::Wait),
    ]
}

fn traffic() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..120)
}

/// Runs `check` on each kind of device with random values of `strategy`.
fn for_each_device<S: Strategy>(
    strategy: S,
    check: impl Fn(&rigs::Entry, S::Value) -> Result<(), TestCaseError>,
) {
    let mut failures = Vec::new();
    for entry in rigs::all() {
        let config = Config { failure_persistence: None, ..Config::default() };
        let result = TestRunner::new(config).run(&strategy, |value| check(&entry, value));
        if let Err(failure) = result {
            failures.push(format!("{}: {failure}", entry.kind));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn reset_brings_back_the_state_after_construction() {
    for_each_device(traffic(), |entry, steps| {
        let used = (entry.make)();
        used.run(&steps);
        used.device.reset();
        let fresh = (entry.make)();
        // What is new now depends on the time in some: a timer that runs from the start.
        fresh.clock.set(used.clock.now_ns());
        fresh.device.reset();
        if !entry.keeps_state {
            prop_assert_eq!(used.device.save(), fresh.device.save());
        }
        prop_assert_eq!(used.levels(), fresh.levels());
        Ok(())
    });
}

#[test]
fn construction_is_the_state_after_reset() {
    for entry in rigs::all() {
        let rig = (entry.make)();
        let constructed = rig.device.save();
        rig.device.reset();
        assert_eq!(rig.device.save(), constructed, "{}", entry.kind);
    }
}

#[test]
fn a_restored_device_goes_on_like_the_saved_one() {
    for_each_device((traffic(), traffic()), |entry, (before, after)| {
        let original = (entry.make)();
        original.run(&before);
        let saved = original.device.save();
        let copy = (entry.make)();
        copy.clock.set(original.clock.now_ns());
        copy.device.restore(&saved).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(copy.device.save(), saved);
        prop_assert_eq!(copy.levels(), original.levels());
        prop_assert_eq!(copy.run(&after), original.run(&after));
        prop_assert_eq!(copy.device.save(), original.device.save());
        Ok(())
    });
}

#[test]
fn foreign_and_damaged_state_is_refused_and_changes_nothing() {
    let flips = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    for_each_device((traffic(), flips, traffic()), |entry, (before, flips, after)| {
        let rig = (entry.make)();
        rig.run(&before);
        let saved = rig.device.save();
        let levels = rig.levels();
        let mut foreign = saved.clone();
        foreign.name.push('x');
        let mut other_version = saved.clone();
        other_version.version += 1;
        let mut longer = saved.clone();
        longer.data.push(0);
        let mut bad = vec![foreign, other_version, longer];
        if !saved.data.is_empty() {
            let mut shorter = saved.clone();
            shorter.data.pop();
            bad.push(shorter);
        }
        for state in bad {
            prop_assert!(rig.device.restore(&state).is_err());
            prop_assert_eq!(rig.device.save(), saved.clone());
        }
        let mut flipped = saved.clone();
        if !flipped.data.is_empty() {
            for (index, bits) in flips {
                let at = index.index(flipped.data.len());
                flipped.data[at] ^= bits;
            }
        }
        match rig.device.restore(&flipped) {
            Err(_) => {
                prop_assert_eq!(rig.device.save(), saved);
                prop_assert_eq!(rig.levels(), levels);
            }
            // It is a state that a device can be in, so it must do no harm.
            Ok(()) => {
                rig.run(&after);
                rig.device.reset();
            }
        }
        Ok(())
    });
}

#[test]
fn ids_are_unique_among_kinds() {
    let ids: Vec<_> = rigs::all().iter().map(|entry| (entry.make)().device.id()).collect();
    let distinct: BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "{ids:?}");
}

/// Every implementation of `Device` in this crate is on the list.
#[test]
fn no_device_is_forgotten() {
    fn implementations(dir: &std::path::Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                implementations(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().filter(|line| line.starts_with("impl"));
            let names = lines.filter_map(|line| line.split(" Device for ").nth(1));
            found.extend(names.map(|name| {
                name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
            }));
        }
    }
    let mut found = BTreeSet::new();
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    implementations(&sources, &mut found);
    let listed: BTreeSet<_> = rigs::all().iter().map(|entry| entry.kind.to_owned()).collect();
    assert_eq!(found, listed, "devices in the sources, and on the list of rigs");
}
