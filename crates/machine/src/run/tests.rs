//! The owner with a board and CPUs that do as the test says.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use accel::{CpuGlance, Exit, Signal, Signals, Vcpu};
use bus::{Clock, MachineControl, ShutdownCause, WakeCause};

use super::owner::GuestRequests;
use super::vcpu::{Gate, VcpuThread};
use super::{Board, MachineEvent, Owner, Request, ResetKind, RunHandle, RunState};
use crate::spec::RunActions;

/// Far more than any of these tests takes; only a hang gets there.
const HANG: Duration = Duration::from_secs(20);

type Guest = Box<dyn FnMut(&Signals) -> Exit + Send>;

struct TestCpu {
    signals: Arc<Signals>,
    guest: Guest,
}

impl Vcpu for TestCpu {
    type State = ();

    fn run(&mut self) -> Exit {
        (self.guest)(&self.signals)
    }
    fn signals(&self) -> Arc<Signals> {
        self.signals.clone()
    }
    fn glance(&self) -> Arc<dyn Fn() -> CpuGlance + Send + Sync> {
        Arc::new(CpuGlance::default)
    }
    fn reset(&mut self) {}
    fn state(&self) {}
    fn set_state(&mut self, (): &()) -> Result<(), String> {
        Ok(())
    }
}

struct TestBoard {
    clock: Clock,
    /// Pauses of I/O that have not ended, as devices count them.
    pauses: AtomicUsize,
    resets: AtomicUsize,
}

impl Board for TestBoard {
    type Cpu = TestCpu;

    fn reset_devices(&self, _: ResetKind) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
    fn reset_cpu(&self, _: usize, cpu: &mut TestCpu, _: ResetKind) {
        cpu.reset();
    }
    fn press_power_button(&self) {}
    fn wake_up(&self, _: WakeCause) {}
    fn wakes_on(&self, _: WakeCause) -> bool {
        true
    }
    fn inject_nmi(&self) {}
    fn pause_io(&self) {
        self.pauses.fetch_add(1, Ordering::Relaxed);
    }
    fn resume_io(&self) {
        self.pauses.fetch_sub(1, Ordering::Relaxed);
    }
    fn clock(&self) -> &Clock {
        &self.clock
    }
}

/// Runs a machine of one CPU with this guest while the client `drive` asks; returns the exit status and
/// the events.
fn run_machine<F: Future<Output = ()>>(
    guest: impl FnOnce(Arc<GuestRequests>) -> Guest,
    drive: impl FnOnce(RunHandle, Arc<TestBoard>) -> F,
) -> (i32, Vec<MachineEvent>) {
    let gate = Arc::new(Gate::default());
    let requests = Arc::new(GuestRequests::new(gate.clone()));
    let cpu = TestCpu { signals: Arc::default(), guest: guest(requests.clone()) };
    let thread = VcpuThread::spawn(0, cpu, true, gate, requests.clone()).unwrap();
    let board = Arc::new(TestBoard { clock: Clock::new(), pauses: 0.into(), resets: 0.into() });
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let events = events.clone();
        Arc::new(move |event| events.lock().unwrap().push(event))
    };
    let (owner, run) =
        Owner::new(board.clone(), Arc::new(vec![thread]), requests, RunActions::default(), sink);
    assert_eq!(
        board.resets.load(Ordering::Relaxed),
        1,
        "nobody is to see it before its first reset"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let code = runtime.block_on(async {
        let both = async { tokio::join!(owner.serve(true), drive(run, board)).0 };
        tokio::time::timeout(HANG, both).await.expect("the owner hangs")
    });
    let events = std::mem::take(&mut *events.lock().unwrap());
    (code, events)
}

#[test]
fn a_guest_that_asks_for_a_reset_during_a_clients_does_not_hang_the_owner() {
    let guest = |requests: Arc<GuestRequests>| -> Guest {
        Box::new(move |signals| {
            signals.wait(Signal::Exit as u32, None);
            // The last instruction before the CPU parks for the client's reset is the guest's own.
            requests.request_reset(ShutdownCause::GuestReset);
            Exit::Interrupted
        })
    };
    let drive = |run: RunHandle, _| async move {
        for _ in 0..3 {
            run.ask(Request::Reset(ShutdownCause::HostQmpSystemReset)).await.unwrap();
            tokio::task::yield_now().await;
        }
        run.ask(Request::Stop).await.unwrap();
        run.ask(Request::Quit(ShutdownCause::HostQmpQuit)).await.unwrap();
    };
    let (code, events) = run_machine(guest, drive);
    assert_eq!(code, 0);
    let asked = MachineEvent::Reset(ShutdownCause::HostQmpSystemReset);
    assert_eq!(events.iter().filter(|&event| *event == asked).count(), 3);
}

#[test]
fn a_cpu_that_panics_stops_the_machine_and_a_reset_mends_it() {
    let guest = |_: Arc<GuestRequests>| -> Guest {
        let mut first = true;
        Box::new(move |signals| {
            assert!(!std::mem::take(&mut first), "a panic that belongs to the test");
            signals.wait(Signal::Exit as u32, None);
            Exit::Interrupted
        })
    };
    let drive = |run: RunHandle, _| async move {
        while run.published().run_state() != RunState::InternalError {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(run.ask(Request::Cont).await.is_err());
        run.ask(Request::Reset(ShutdownCause::HostQmpSystemReset)).await.unwrap();
        assert_eq!(run.published().run_state(), RunState::Prelaunch);
        run.ask(Request::Cont).await.unwrap();
        assert_eq!(run.published().run_state(), RunState::Running);
        run.ask(Request::Quit(ShutdownCause::HostQmpQuit)).await.unwrap();
    };
    assert_eq!(run_machine(guest, drive).0, 0);
}

/// A guest that spins until it is stopped.
fn spin(_: Arc<GuestRequests>) -> Guest {
    Box::new(|signals| {
        signals.wait(Signal::Exit as u32, None);
        Exit::Interrupted
    })
}

#[test]
fn disks_work_again_after_any_way_to_cont() {
    let drive = |run: RunHandle, board: Arc<TestBoard>| async move {
        use Request::{Cont, Reset, Stop};
        let reset = || Reset(ShutdownCause::HostQmpSystemReset);
        for way in [vec![Stop], vec![Stop, reset()], vec![reset()], vec![reset(), Stop, reset()]] {
            for request in way {
                run.ask(request).await.unwrap();
            }
            run.ask(Cont).await.unwrap();
            assert_eq!(board.pauses.load(Ordering::Relaxed), 0);
        }
        run.ask(Request::Quit(ShutdownCause::HostQmpQuit)).await.unwrap();
    };
    assert_eq!(run_machine(spin, drive).0, 0);
}

#[test]
fn a_disk_that_fails_stops_the_machine_until_cont() {
    let (ours, mut theirs) = tokio::sync::mpsc::unbounded_channel();
    let guest = move |requests: Arc<GuestRequests>| {
        ours.send(requests.clone()).unwrap();
        spin(requests)
    };
    let drive = |run: RunHandle, _| async move {
        // A machine that does not run yet is not stopped.
        while run.published().run_state() != RunState::Running {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        theirs.recv().await.unwrap().disk_failed();
        while run.published().run_state() != RunState::IoError {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        run.ask(Request::Cont).await.unwrap();
        assert_eq!(run.published().run_state(), RunState::Running);
        run.ask(Request::Quit(ShutdownCause::HostQmpQuit)).await.unwrap();
    };
    assert_eq!(run_machine(guest, drive).0, 0);
}

#[test]
fn what_a_guest_asks_for_is_done_when_it_is_waited_for() {
    let (ours, mut theirs) = tokio::sync::mpsc::unbounded_channel();
    let guest = move |requests: Arc<GuestRequests>| {
        ours.send(requests.clone()).unwrap();
        spin(requests)
    };
    let (last, owned) = std::sync::mpsc::channel();
    let drive = |run: RunHandle, board: Arc<TestBoard>| async move {
        let requests = theirs.recv().await.unwrap();
        for expected in 2..100 {
            requests.request_reset(ShutdownCause::GuestReset);
            let (done, resets) = tokio::sync::oneshot::channel();
            let (requests, board) = (requests.clone(), board.clone());
            std::thread::spawn(move || {
                requests.settle();
                done.send(board.resets.load(Ordering::Relaxed)).unwrap();
            });
            assert_eq!(resets.await, Ok(expected));
        }
        last.send(requests).unwrap();
        run.ask(Request::Quit(ShutdownCause::HostQmpQuit)).await.unwrap();
    };
    assert_eq!(run_machine(guest, drive).0, 0);
    // Without an owner there is nothing to wait for.
    let requests = owned.recv().unwrap();
    requests.request_reset(ShutdownCause::GuestReset);
    requests.settle();
}
