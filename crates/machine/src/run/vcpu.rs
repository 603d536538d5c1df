//! The threads that run virtual CPUs.
//!
//! Each vCPU belongs to one thread for its whole life. A shared [`Gate`] says whether the machine
//! runs; a thread that finds it closed parks, counts itself as parked, and serves [`VcpuThread::call`]
//! jobs until it opens. Closing the gate raises [`Signal::Exit`] on every CPU, so a guest that spins
//! with interrupts off parks as quickly as an idle one.
//!
//! Invariant: while the gate is closed and all threads are parked, no guest instruction executes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use accel::{CpuGlance, Exit, Signal, Signals, Vcpu};
use tokio::sync::Notify;

/// What a vCPU thread tells the machine's owner.
pub trait VcpuEvents: Send + Sync {
    /// The CPU shut down (triple fault).
    fn cpu_shutdown(&self, index: usize);
    /// The accelerator gave up.
    fn cpu_failed(&self, index: usize, reason: &str);
    /// A debugger's breakpoint or step.
    fn cpu_debug(&self, index: usize);
}

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    closing_down: bool,
    parked: usize,
    threads: usize,
}

/// Lets all vCPU threads of a machine run, or holds them.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    all_parked: Notify,
    signals: Mutex<Vec<Arc<Signals>>>,
}

impl Gate {
    /// Lets the threads run.
    pub fn open(&self) {
        let mut state = self.lock();
        for signals in self.signals().iter() {
            signals.clear(Signal::Exit);
        }
        state.open = true;
        drop(state);
        self.changed.notify_all();
    }

    /// Tells the threads to park; does not wait for them.
    pub fn close(&self) {
        let mut state = self.lock();
        state.open = false;
        self.raise_exit();
    }

    /// Waits until all threads are parked. Meaningful after [`Gate::close`].
    pub async fn all_parked(&self) {
        loop {
            let notified = self.all_parked.notified();
            {
                let state = self.lock();
                if state.parked == state.threads {
                    return;
                }
            }
            notified.await;
        }
    }

    /// Makes jobs be looked at by parked threads.
    fn nudge(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    fn end(&self) {
        let mut state = self.lock();
        state.open = false;
        state.closing_down = true;
        self.raise_exit();
        drop(state);
        self.changed.notify_all();
    }

    fn raise_exit(&self) {
        for signals in self.signals().iter() {
            signals.raise(Signal::Exit);
        }
    }

    fn signals(&self) -> MutexGuard<'_, Vec<Arc<Signals>>> {
        self.signals.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

type Job<C> = Box<dyn FnOnce(&mut C) + Send>;

/// A vCPU's thread as the machine's owner sees it.
pub struct VcpuThread<C> {
    gate: Arc<Gate>,
    jobs: Sender<Job<C>>,
    glance: Arc<dyn Fn() -> CpuGlance + Send + Sync>,
    thread_id: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl<C: Vcpu + 'static> VcpuThread<C> {
    /// Starts the thread of CPU `index`, parked. Returns once the thread's id is known. A CPU that does
    /// not `execute` stands still while the gate is open.
    ///
    /// # Errors
    /// If the host can't start a thread.
    pub fn spawn(
        index: usize,
        cpu: C,
        execute: bool,
        gate: Arc<Gate>,
        events: Arc<dyn VcpuEvents>,
    ) -> std::io::Result<Self> {
        let (jobs, job_queue) = channel();
        let glance = cpu.glance();
        let signals = cpu.signals();
        signals.raise(Signal::Exit);
        gate.signals().push(Arc::clone(&signals));
        gate.lock().threads += 1;
        let thread_id = Arc::new(AtomicU32::new(0));
        let worker = Worker {
            index,
            cpu,
            execute,
            signals,
            gate: Arc::clone(&gate),
            events,
            jobs: job_queue,
        };
        let (started, wait_started) = channel();
        let published = Arc::clone(&thread_id);
        let thread = std::thread::Builder::new().name(format!("CPU {index}")).spawn(move || {
            let tid = rustix::thread::gettid().as_raw_nonzero().get();
            published.store(tid.unsigned_abs(), Ordering::Release);
            let _ = started.send(());
            worker.run();
        })?;
        let _ = wait_started.recv();
        Ok(Self { gate, jobs, glance, thread_id, thread: Some(thread) })
    }

    /// What can be seen of the CPU without stopping it.
    pub fn glance(&self) -> CpuGlance {
        (self.glance)()
    }

    /// The host's id of the thread.
    pub fn thread_id(&self) -> u32 {
        self.thread_id.load(Ordering::Acquire)
    }

    /// Runs `job` on the CPU's thread, which must be parked, and waits for its result.
    pub fn call<R: Send + 'static>(&self, job: impl FnOnce(&mut C) -> R + Send + 'static) -> R {
        let (reply, result) = channel();
        let job = Box::new(move |cpu: &mut C| {
            let _ = reply.send(job(cpu));
        });
        self.jobs.send(job).expect("the vCPU thread lives as long as its handle");
        self.gate.nudge();
        result.recv().expect("the vCPU thread answers every job")
    }
}

impl<C> Drop for VcpuThread<C> {
    fn drop(&mut self) {
        self.gate.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker<C> {
    index: usize,
    cpu: C,
    execute: bool,
    signals: Arc<Signals>,
    gate: Arc<Gate>,
    events: Arc<dyn VcpuEvents>,
    jobs: Receiver<Job<C>>,
}

impl<C: Vcpu> Worker<C> {
    fn run(mut self) {
        while self.park() {
            self.run_guest();
        }
    }

    /// Parks until the gate opens; false when the machine ends.
    fn park(&mut self) -> bool {
        let gate = Arc::clone(&self.gate);
        let mut state = gate.lock();
        state.parked += 1;
        if state.parked == state.threads {
            gate.all_parked.notify_waiters();
        }
        loop {
            while let Ok(job) = self.jobs.try_recv() {
                drop(state);
                job(&mut self.cpu);
                state = gate.lock();
            }
            if state.closing_down {
                return false;
            }
            if state.open {
                state.parked -= 1;
                return true;
            }
            state = gate.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Runs guest code until the gate closes or the CPU stops for good.
    fn run_guest(&mut self) {
        while !self.signals.is_raised(Signal::Exit) {
            if !self.execute {
                self.signals.wait(Signal::Exit as u32, None);
                continue;
            }
            // A defect of ours that a guest finds must not leave the owner waiting for this thread.
            let exit = catch_unwind(AssertUnwindSafe(|| self.cpu.run()))
                .unwrap_or_else(|_| Exit::InternalError("the CPU's implementation failed".into()));
            match exit {
                Exit::Halt { wake } => self.signals.wait(wake | Signal::Exit as u32, None),
                Exit::Interrupted => {}
                Exit::Shutdown => return self.stop_here(|events, i| events.cpu_shutdown(i)),
                Exit::Debug => return self.stop_here(|events, i| events.cpu_debug(i)),
                Exit::InternalError(reason) => {
                    return self.stop_here(|events, i| events.cpu_failed(i, &reason));
                }
            }
        }
    }

    /// Reports why this CPU can't go on and holds the whole machine for its owner to act.
    fn stop_here(&self, report: impl FnOnce(&dyn VcpuEvents, usize)) {
        self.gate.close();
        report(self.events.as_ref(), self.index);
    }
}
