//! The one owner of a machine's run state.
//!
//! ```text
//!  QMP, signals ──► VmHandle ──► queue ──► Owner::serve ──► Gate (vCPU threads)
//!  devices, vCPUs ──► GuestRequests (coalesced) ──┘     └──► Board, clock, events
//! ```
//!
//! Everything that changes the run state is a [`Request`] in the owner's queue, or a wish of the guest
//! in [`GuestRequests`]; the owner handles one at a time. Queries never come here: they read what
//! [`Published`] shows.
//!
//! Invariants:
//! - Guest code runs exactly while the state is `running`; the guest's clock runs with it, and goes on
//!   while the guest sleeps (`suspended`), so that the real-time clock's alarm can wake it up.
//! - An event is emitted before the request that caused it is answered.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use accel::Vcpu;
use block::DriveEvent;
use bus::Clock;
use bus::{MachineControl, Notice, ShutdownCause, WakeCause};
use tokio::sync::{Notify, mpsc, oneshot};

use super::state::RunState;
use super::vcpu::{Gate, VcpuEvents, VcpuThread};
use crate::spec::{PanicAction, RebootAction, RunActions, ShutdownAction, WatchdogAction};

/// Something that happened to the machine, for whoever watches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// Guest code runs again.
    Resume,
    /// Guest code stopped.
    Stop,
    /// The machine was reset.
    Reset(ShutdownCause),
    /// The power button was pressed.
    Powerdown,
    /// The machine shut down.
    Shutdown(ShutdownCause),
    /// The guest's balloon has a new size; the guest now has this many bytes.
    BalloonChange(u64),
    /// Something about a drive.
    Drive(DriveEvent),
    /// The guest panicked, and this is done about it; and Hyper-V's parameters of the crash, if it told any.
    GuestPanicked(PanicAction, Option<[u64; 5]>),
    /// The guest panicked and deals with it itself.
    GuestCrashLoaded,
    /// The guest sleeps.
    Suspend,
    /// The guest hibernates.
    SuspendDisk,
    /// The guest has been woken up.
    Wakeup,
    /// A watchdog expired, and this is done about it.
    Watchdog(WatchdogAction),
    /// The guest set its clock this many seconds ahead of where it was set up.
    RtcChange(i64),
}

/// Takes events to their watchers. Called on any thread; must not block.
pub type EventSink = Arc<dyn Fn(MachineEvent) + Send + Sync>;

/// What a reset leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// Nothing: the machine starts afresh.
    Full,
    /// The memory: the guest slept.
    Wakeup,
}

/// The hardware that the owner starts, stops and resets.
pub trait Board: Send + Sync + 'static {
    /// The virtual CPU's type.
    type Cpu: Vcpu + 'static;

    /// Resets all devices and, unless its contents are to stay, puts boot images back into memory. All
    /// CPUs are parked.
    fn reset_devices(&self, kind: ResetKind);
    /// Puts CPU `index` into the state that the guest starts from. Runs on the CPU's thread.
    fn reset_cpu(&self, index: usize, cpu: &mut Self::Cpu, kind: ResetKind);
    /// Presses the power button.
    fn press_power_button(&self);
    /// Tells the guest, after the reset that ends its sleep, that it was woken up.
    fn wake_up(&self, cause: WakeCause);
    /// Whether the sleeping guest is to be woken up by `cause`.
    fn wakes_on(&self, cause: WakeCause) -> bool;
    /// Interrupts all CPUs with an NMI.
    fn inject_nmi(&self);
    /// Finishes what I/O is under way and starts no more. All CPUs are parked.
    fn pause_io(&self);
    /// Lets I/O go on.
    fn resume_io(&self);
    /// The guest's clock.
    fn clock(&self) -> &Clock;
}

/// What a client may ask of the owner.
#[derive(Debug)]
pub enum Request {
    /// Stop guest code.
    Stop,
    /// Let guest code run.
    Cont,
    /// Press the reset button.
    Reset(ShutdownCause),
    /// Press the power button.
    Powerdown,
    /// Wake the guest up.
    Wakeup,
    /// Interrupt all CPUs with an NMI.
    InjectNmi,
    /// Say what an expired watchdog does.
    SetWatchdogAction(WatchdogAction),
    /// End the machine.
    Quit(ShutdownCause),
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The guest can't go on from where it is.
    #[error("Resetting the Virtual Machine is required")]
    ResetRequired,
    /// The guest does not sleep.
    #[error("Unable to wake up: guest is not in suspended state")]
    NotSuspended,
    /// The machine is ending.
    #[error("The machine is shutting down")]
    Ending,
}

struct Envelope {
    request: Request,
    reply: oneshot::Sender<Result<(), Refusal>>,
}

/// What anyone may read at any time.
#[derive(Debug)]
pub struct Published {
    run_state: AtomicU8,
}

impl Published {
    /// The current run state.
    pub fn run_state(&self) -> RunState {
        RunState::ALL[usize::from(self.run_state.load(Ordering::Acquire))]
    }

    fn set_run_state(&self, state: RunState) {
        self.run_state.store(state as u8, Ordering::Release);
    }
}

/// A machine as its clients see it. Cheap to clone.
#[derive(Clone)]
pub struct RunHandle {
    queue: mpsc::UnboundedSender<Envelope>,
    published: Arc<Published>,
}

impl RunHandle {
    /// What can be read without asking the owner.
    pub fn published(&self) -> &Published {
        &self.published
    }

    /// Asks the owner and waits for its answer.
    ///
    /// # Errors
    /// The owner's refusal.
    pub async fn ask(&self, request: Request) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Envelope { request, reply }).map_err(|_| Refusal::Ending)?;
        answer.await.unwrap_or(Err(Refusal::Ending))
    }
}

/// What guest code or a device wants to happen. The newest wish of a kind replaces an older one.
#[derive(Debug, Default)]
struct Wishes {
    reset: Option<ShutdownCause>,
    shutdown: Option<ShutdownCause>,
    exit: Option<i32>,
    failed: Option<String>,
    debug: bool,
    disk_failed: bool,
    panicked: bool,
    crash: Option<[u64; 5]>,
    crash_loaded: bool,
    suspend: bool,
    hibernate: bool,
    wake: Option<WakeCause>,
    watchdog: bool,
    rtc_offset: Option<i64>,
}

/// Where wishes lie until the owner comes, and how many there have been.
#[derive(Debug, Default)]
struct Desk {
    wishes: Wishes,
    made: u64,
    /// Of those that were made, how many the owner has taken, and how many it has acted on.
    taken: u64,
    served: u64,
    /// There is no owner any more.
    deserted: bool,
}

/// Takes wishes from devices and vCPU threads to the owner.
#[derive(Debug)]
pub struct GuestRequests {
    desk: Mutex<Desk>,
    arrived: Notify,
    settled: Condvar,
    gate: Arc<Gate>,
    /// The guest sleeps, so that there is something to wake up.
    asleep: AtomicBool,
}

impl GuestRequests {
    /// For the vCPU threads behind `gate`.
    pub fn new(gate: Arc<Gate>) -> Self {
        let asleep = AtomicBool::new(false);
        let (desk, settled) = (Mutex::default(), Condvar::new());
        Self { desk, arrived: Notify::new(), settled, gate, asleep }
    }

    /// The gate that a wish closes at once, so that the guest does not run past it.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Waits until the owner has done what was wished for so far, or is no more.
    pub fn settle(&self) {
        let desk = self.desk();
        let made = desk.made;
        let waits = |desk: &mut Desk| desk.served < made && !desk.deserted;
        drop(self.settled.wait_while(desk, waits).unwrap_or_else(|e| e.into_inner()));
    }

    fn wish(&self, change: impl FnOnce(&mut Wishes)) {
        let mut desk = self.desk();
        change(&mut desk.wishes);
        desk.made += 1;
        drop(desk);
        self.gate.close();
        self.arrived.notify_one();
    }

    fn take(&self) -> Wishes {
        let mut desk = self.desk();
        desk.taken = desk.made;
        std::mem::take(&mut desk.wishes)
    }

    /// What was taken has been acted on.
    fn served(&self) {
        let mut desk = self.desk();
        desk.served = desk.taken;
        drop(desk);
        self.settled.notify_all();
    }

    fn desert(&self) {
        self.desk().deserted = true;
        self.settled.notify_all();
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl GuestRequests {
    /// A disk failed in a way that its options say stops the machine.
    pub fn disk_failed(&self) {
        self.wish(|w| w.disk_failed = true);
    }
}

impl MachineControl for GuestRequests {
    fn request_reset(&self, cause: ShutdownCause) {
        self.wish(|w| w.reset = Some(cause));
    }

    fn request_shutdown(&self, cause: ShutdownCause) {
        self.wish(|w| w.shutdown = Some(cause));
    }

    fn request_exit(&self, code: i32) {
        self.wish(|w| w.exit = Some(code));
    }

    fn notify(&self, notice: Notice) {
        if matches!(notice, Notice::Wake(_)) && !self.asleep.load(Ordering::Acquire) {
            return;
        }
        self.wish(|w| match notice {
            Notice::Panicked => w.panicked = true,
            Notice::HyperVCrash(parameters) => w.crash = Some(parameters),
            Notice::CrashLoaded => w.crash_loaded = true,
            Notice::Suspend => w.suspend = true,
            Notice::Hibernate => w.hibernate = true,
            Notice::Wake(cause) => w.wake = Some(cause),
            Notice::WatchdogExpired => w.watchdog = true,
            Notice::RtcChanged { offset } => w.rtc_offset = Some(offset),
        });
    }
}

impl VcpuEvents for GuestRequests {
    fn cpu_shutdown(&self, _index: usize) {
        self.request_reset(ShutdownCause::GuestReset);
    }

    fn cpu_failed(&self, index: usize, reason: &str) {
        self.wish(|w| w.failed = Some(format!("CPU {index}: {reason}")));
    }

    fn cpu_debug(&self, _index: usize) {
        self.wish(|w| w.debug = true);
    }
}

/// Whether the owner goes on.
enum Next {
    Continue,
    End(i32),
}

/// Owns a machine's run state. See the module's documentation.
pub struct Owner<B: Board> {
    board: Arc<B>,
    cpus: Arc<Vec<VcpuThread<B::Cpu>>>,
    guest: Arc<GuestRequests>,
    published: Arc<Published>,
    actions: RunActions,
    events: EventSink,
    queue: mpsc::UnboundedReceiver<Envelope>,
    /// Whether the clock stands and I/O is paused. Pauses of I/O nest, so this one is made once.
    frozen: bool,
}

impl<B: Board> Owner<B> {
    /// An owner in state `prelaunch` of a machine that it has reset, so that nobody sees one that has not
    /// been; and the handle that asks it. The CPUs have not run yet.
    pub fn new(
        board: Arc<B>,
        cpus: Arc<Vec<VcpuThread<B::Cpu>>>,
        guest: Arc<GuestRequests>,
        actions: RunActions,
        events: EventSink,
    ) -> (Self, RunHandle) {
        let (sender, queue) = mpsc::unbounded_channel();
        let run_state = AtomicU8::new(RunState::Prelaunch as u8);
        let published = Arc::new(Published { run_state });
        let handle = RunHandle { queue: sender, published: Arc::clone(&published) };
        let frozen = false;
        let mut owner = Self { board, cpus, guest, published, actions, events, queue, frozen };
        owner.halt();
        owner.reset_halted(ResetKind::Full);
        (owner, handle)
    }

    /// Serves until the machine ends; returns the exit status of the process.
    pub async fn serve(mut self, autostart: bool) -> i32 {
        if autostart {
            self.resume();
        }
        loop {
            let next = tokio::select! {
                biased;
                () = self.guest.arrived.notified() => {
                    let next = self.serve_guest().await;
                    self.guest.served();
                    next
                }
                envelope = self.queue.recv() => match envelope {
                    Some(envelope) => self.serve_client(envelope).await,
                    None => Next::End(0),
                },
            };
            if let Next::End(code) = next {
                self.guest.gate.close();
                return code;
            }
        }
    }

    fn state(&self) -> RunState {
        self.published.run_state()
    }

    fn enter(&self, next: RunState) {
        let current = self.state();
        if current != next {
            debug_assert!(current.may_become(next), "{current} to {next}");
            self.published.set_run_state(next);
            self.guest.asleep.store(next == RunState::Suspended, Ordering::Release);
        }
    }

    fn emit(&self, event: MachineEvent) {
        (self.events)(event);
    }

    async fn serve_client(&mut self, envelope: Envelope) -> Next {
        let (answer, next) = match envelope.request {
            Request::Stop => {
                self.stop(RunState::Paused).await;
                (Ok(()), Next::Continue)
            }
            Request::Cont => (self.cont(), Next::Continue),
            Request::Reset(cause) => (Ok(()), self.reset(cause).await),
            Request::Powerdown => {
                self.emit(MachineEvent::Powerdown);
                self.board.press_power_button();
                (Ok(()), Next::Continue)
            }
            Request::Wakeup => (self.wake_up(WakeCause::User).await, Next::Continue),
            Request::InjectNmi => {
                self.board.inject_nmi();
                (Ok(()), Next::Continue)
            }
            Request::SetWatchdogAction(action) => {
                self.actions.watchdog = action;
                (Ok(()), Next::Continue)
            }
            Request::Quit(cause) => {
                self.emit(MachineEvent::Shutdown(cause));
                (Ok(()), Next::End(0))
            }
        };
        // A client that left does not want the answer.
        let _ = envelope.reply.send(answer);
        next
    }

    /// Acts on what the guest asked for. The gate was closed when it asked, and may have been opened
    /// since by what was served before.
    async fn serve_guest(&mut self) -> Next {
        self.guest.gate.close();
        self.guest.gate.all_parked().await;
        let wishes = self.guest.take();
        if let Some(code) = wishes.exit {
            return Next::End(code);
        }
        if let Some(reason) = wishes.failed {
            eprintln!("rhea: {reason}");
            self.stop(RunState::InternalError).await;
            return Next::Continue;
        }
        if wishes.crash_loaded {
            self.emit(MachineEvent::GuestCrashLoaded);
        }
        if let Some(offset) = wishes.rtc_offset {
            self.emit(MachineEvent::RtcChange(offset));
        }
        if wishes.hibernate {
            self.emit(MachineEvent::SuspendDisk);
        }
        if wishes.panicked || wishes.crash.is_some() {
            if let Next::End(code) = self.guest_panicked(wishes.crash).await {
                return Next::End(code);
            }
        } else if wishes.watchdog
            && let Next::End(code) = self.watchdog_expired().await
        {
            return Next::End(code);
        }
        let hibernated = wishes.hibernate.then_some(ShutdownCause::GuestShutdown);
        if let Some(cause) = wishes.shutdown.or(hibernated) {
            if let Next::End(code) = self.shut_down(cause).await {
                return Next::End(code);
            }
        } else if let Some(cause) = wishes.reset {
            if let Next::End(code) = self.reset(cause).await {
                return Next::End(code);
            }
        } else if let Some(cause) = wishes.wake.filter(|&cause| self.board.wakes_on(cause)) {
            // One that comes after the guest was woken up is void.
            let _ = self.wake_up(cause).await;
        } else if wishes.suspend {
            self.suspend();
        } else if wishes.debug {
            self.stop(RunState::Debug).await;
        } else if wishes.disk_failed {
            self.stop(RunState::IoError).await;
        }
        if self.state() == RunState::Running {
            self.guest.gate.open();
        }
        Next::Continue
    }

    /// Stops guest code, if it runs, and enters `next`.
    async fn stop(&mut self, next: RunState) {
        if self.state() != RunState::Running {
            return;
        }
        self.freeze().await;
        self.enter(next);
        self.emit(MachineEvent::Stop);
    }

    /// Makes guest code, the guest's clock and I/O stand still.
    async fn freeze(&mut self) {
        self.guest.gate.close();
        self.guest.gate.all_parked().await;
        self.halt();
    }

    /// Makes the guest's clock and I/O stand still. All CPUs are parked.
    fn halt(&mut self) {
        if !self.frozen {
            self.frozen = true;
            self.board.clock().stop();
            self.board.pause_io();
        }
    }

    /// Sets in motion what [`Owner::freeze`] stopped.
    fn thaw(&mut self) {
        if self.frozen {
            self.frozen = false;
            self.board.resume_io();
            self.board.clock().start();
        }
        self.guest.gate.open();
    }

    /// Lets guest code run.
    fn resume(&mut self) {
        self.enter(RunState::Running);
        self.emit(MachineEvent::Resume);
        self.thaw();
    }

    fn cont(&mut self) -> Result<(), Refusal> {
        if self.state().needs_reset() {
            return Err(Refusal::ResetRequired);
        }
        if self.state() != RunState::Running {
            self.resume();
        }
        Ok(())
    }

    async fn reset(&mut self, cause: ShutdownCause) -> Next {
        if cause.is_guest() && self.actions.reboot == RebootAction::Shutdown {
            return self.shut_down(cause).await;
        }
        self.reset_hardware(ResetKind::Full).await;
        self.emit(MachineEvent::Reset(cause));
        match self.state() {
            RunState::Running => self.thaw(),
            RunState::Inmigrate | RunState::FinishMigrate => {}
            _ => self.enter(RunState::Prelaunch),
        }
        Next::Continue
    }

    /// Resets devices and CPUs; leaves the machine standing.
    async fn reset_hardware(&mut self, kind: ResetKind) {
        self.freeze().await;
        self.reset_halted(kind);
    }

    fn reset_halted(&self, kind: ResetKind) {
        // What the guest wished for before the reset is void.
        self.guest.take();
        self.board.reset_devices(kind);
        for (index, thread) in self.cpus.iter().enumerate() {
            let board = Arc::clone(&self.board);
            thread.call(move |cpu| board.reset_cpu(index, cpu, kind));
        }
    }

    async fn shut_down(&mut self, cause: ShutdownCause) -> Next {
        self.emit(MachineEvent::Shutdown(cause));
        let panicked = cause == ShutdownCause::GuestPanic;
        if self.actions.shutdown == ShutdownAction::Pause {
            self.stop(RunState::Shutdown).await;
            return Next::Continue;
        }
        Next::End(i32::from(panicked && self.actions.panic == PanicAction::ExitFailure))
    }

    /// Does what the actions say about a panic.
    async fn guest_panicked(&mut self, crash: Option<[u64; 5]>) -> Next {
        let stays = self.actions.shutdown == ShutdownAction::Pause;
        let action = match self.actions.panic {
            PanicAction::Shutdown if stays => PanicAction::Pause,
            action => action,
        };
        self.emit(MachineEvent::GuestPanicked(action, crash));
        match action {
            PanicAction::None => Next::Continue,
            PanicAction::Pause => {
                self.stop(RunState::GuestPanicked).await;
                Next::Continue
            }
            PanicAction::Shutdown | PanicAction::ExitFailure => {
                self.stop(RunState::GuestPanicked).await;
                self.shut_down(ShutdownCause::GuestPanic).await
            }
        }
    }

    /// Does what the actions say about a watchdog.
    async fn watchdog_expired(&mut self) -> Next {
        let action = self.actions.watchdog;
        self.emit(MachineEvent::Watchdog(action));
        match action {
            WatchdogAction::Reset => return self.reset(ShutdownCause::GuestReset).await,
            WatchdogAction::Shutdown => {
                self.emit(MachineEvent::Powerdown);
                self.board.press_power_button();
            }
            WatchdogAction::Poweroff => return Next::End(0),
            WatchdogAction::Pause => self.stop(RunState::Watchdog).await,
            WatchdogAction::Debug => eprintln!("watchdog: timer fired"),
            WatchdogAction::None => {}
            WatchdogAction::InjectNmi => self.board.inject_nmi(),
        }
        Next::Continue
    }

    /// The guest goes to sleep. Its CPUs are parked; clocks and devices go on, as something has to wake
    /// it up.
    fn suspend(&mut self) {
        if self.state() == RunState::Running {
            self.enter(RunState::Suspended);
            self.emit(MachineEvent::Suspend);
        }
    }

    /// Ends the guest's sleep: its memory is as it was, everything else as after a reset.
    async fn wake_up(&mut self, cause: WakeCause) -> Result<(), Refusal> {
        if self.state() != RunState::Suspended {
            return Err(Refusal::NotSuspended);
        }
        self.reset_hardware(ResetKind::Wakeup).await;
        self.board.wake_up(cause);
        self.enter(RunState::Running);
        self.emit(MachineEvent::Wakeup);
        self.thaw();
        Ok(())
    }
}

impl<B: Board> Drop for Owner<B> {
    fn drop(&mut self) {
        self.guest.desert();
    }
}
