//! A machine as its clients see it.

use std::path::Path;
use std::sync::Arc;

use accel::log::Log;
use block::{Drive, DriveEvent, ErrorAction};
use chardev::{CharBackend, ChardevInfo};
use cpu_x86::{Counters, Cpu};
use devices::virtio::balloon::VirtioBalloon;
use display::Console;
use input::InputHub;
use uuid::Uuid;

use crate::BuildError;
use crate::pc::board::Pc;
use crate::qtest::{Qtest, QtestLog};
use crate::run::owner::GuestRequests;
use crate::run::vcpu::{Gate, VcpuThread};
use crate::run::{EventSink, MachineEvent, Owner, RunHandle};
use crate::spec::{Accelerator, MachineSpec, QtestLogSpec, QtestSpec, Smp};

/// A machine: what can be read of it at any time, and the way to its owner.
pub struct Machine {
    spec: MachineSpec,
    board: Arc<Pc>,
    cpus: Arc<Vec<VcpuThread<Cpu>>>,
    counters: Vec<Arc<Counters>>,
    run: RunHandle,
    _qtest: Option<Qtest>,
}

/// Opens the way in for a test program.
fn start_qtest(
    board: &Arc<Pc>,
    requests: Arc<GuestRequests>,
    spec: &QtestSpec,
    chardev: Arc<dyn CharBackend>,
) -> Result<Qtest, BuildError> {
    let failed = |path: &Path, e| {
        BuildError::Device(format!("-qtest-log: cannot open '{}': {e}", path.display()))
    };
    let log = match &spec.log {
        QtestLogSpec::None => None,
        QtestLogSpec::Stderr => Some(QtestLog::stderr()),
        QtestLogSpec::File(path) => Some(QtestLog::create(path).map_err(|e| failed(path, e))?),
    };
    Qtest::start(board, requests, chardev, log).map_err(BuildError::Thread)
}

impl Machine {
    /// Makes a machine and its owner, whose [`Owner::serve`] runs it. Events go to `events`; `log` gets
    /// what the machine tells of its inner life.
    ///
    /// # Errors
    /// Names what could not be made or opened.
    pub fn new(
        spec: &MachineSpec,
        events: EventSink,
        log: Arc<Log>,
    ) -> Result<(Self, Owner<Pc>), BuildError> {
        let gate = Arc::new(Gate::default());
        let guest = Arc::new(GuestRequests::new(Arc::clone(&gate)));
        let board = Arc::new(Pc::new(spec, guest.clone(), log)?);
        if let Some(balloon) = board.balloon() {
            let events = Arc::clone(&events);
            balloon.set_change_hook(Box::new(move |actual| {
                events(MachineEvent::BalloonChange(actual));
            }));
        }
        for drive in board.drives() {
            let guest = Arc::clone(&guest);
            let events = Arc::clone(&events);
            drive.set_event_hook(Box::new(move |event| {
                let stop = matches!(&event, DriveEvent::Error(e) if e.action == ErrorAction::Stop);
                events(MachineEvent::Drive(event));
                if stop {
                    guest.disk_failed();
                }
            }));
        }
        let execute = spec.accelerator != Accelerator::Qtest;
        let spawn =
            |(index, cpu)| VcpuThread::spawn(index, cpu, execute, gate.clone(), guest.clone());
        let cpus = board.make_cpus();
        let counters = cpus.iter().map(Cpu::counters).collect();
        let cpus: Result<Vec<_>, _> = cpus.into_iter().enumerate().map(spawn).collect();
        let cpus = Arc::new(cpus.map_err(BuildError::Thread)?);
        let (owner, run) =
            Owner::new(board.clone(), cpus.clone(), guest.clone(), spec.actions, events);
        let qtest = spec.qtest.as_ref().zip(board.qtest_chardev());
        let qtest = qtest
            .map(|(spec, chardev)| start_qtest(&board, guest, spec, chardev.clone()))
            .transpose()?;
        Ok((Self { spec: spec.clone(), board, cpus, counters, run, _qtest: qtest }, owner))
    }

    /// The machine's name, if it was given one.
    pub fn name(&self) -> Option<&str> {
        self.spec.name.as_deref()
    }

    /// The machine's UUID; nil if it was given none.
    pub fn uuid(&self) -> Uuid {
        self.spec.uuid.unwrap_or_default()
    }

    /// The processors' topology.
    pub fn smp(&self) -> Smp {
        self.spec.smp
    }

    /// The processors.
    pub fn cpus(&self) -> &[VcpuThread<Cpu>] {
        &self.cpus
    }

    /// What the processors' engine has counted; `None` if nothing executes them.
    pub fn translation_report(&self) -> Option<String> {
        let executes = self.spec.accelerator != Accelerator::Qtest;
        executes.then(|| cpu_x86::report(&self.counters))
    }

    /// The path of CPU `index` in the tree of the machine's objects.
    pub fn cpu_path(&self, index: usize) -> String {
        format!("/machine/unattached/device[{index}]")
    }

    /// The drives.
    pub fn drives(&self) -> &[Arc<Drive>] {
        self.board.drives()
    }

    /// The screens, in the order of their devices.
    pub fn consoles(&self) -> &[Arc<Console>] {
        self.board.consoles()
    }

    /// The path of the device with id `id` in the tree of the machine's objects, if there is one.
    pub fn device_path(&self, id: &str) -> Option<String> {
        let known = self.spec.devices.iter().any(|device| device.id.as_deref() == Some(id));
        known.then(|| format!("/machine/peripheral/{id}"))
    }

    /// The character devices of guest devices.
    pub fn chardevs(&self) -> Vec<ChardevInfo> {
        self.board.chardevs().infos()
    }

    /// The balloon, if there is one.
    pub fn balloon(&self) -> Option<&Arc<VirtioBalloon>> {
        self.board.balloon()
    }

    /// The way of the user's input to the devices.
    pub fn input(&self) -> &Arc<InputHub> {
        self.board.input()
    }

    /// Whether the guest can sleep with its memory kept, and be woken up: that takes firmware.
    pub fn can_suspend(&self) -> bool {
        self.board.can_suspend()
    }

    /// The number by which the guest sees whether it is a copy, if there is one.
    pub fn generation_id(&self) -> Option<Uuid> {
        self.board.vmgenid().map(|device| Uuid::from_bytes_le(device.id()))
    }

    /// Forgets the ticks of the real-time clock that the guest had no time for.
    pub fn forget_missed_rtc_ticks(&self) {
        self.board.forget_missed_rtc_ticks();
    }

    /// The way to the owner, and to what it publishes.
    pub fn run(&self) -> &RunHandle {
        &self.run
    }
}
