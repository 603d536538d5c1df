//! Guest time and timers.
//!
//! A [`Clock`] counts nanoseconds of guest time. It runs with the host's monotonic clock while the
//! machine runs and stands still while it is stopped. A [`TimerQueue`] has one thread that calls
//! [`Timer`] callbacks when the clock reaches their deadlines; no timer fires while the clock stands.
//!
//! A clock can also be driven by hand ([`Clock::manual`]), for tests and tools that step time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Deadline of a timer that is not armed.
const NEVER: u64 = u64::MAX;

/// Set in [`Inner::anchor`] while time passes.
const RUNNING: u64 = 1 << 63;

#[derive(Debug)]
struct Inner {
    /// Bit 63 says whether time passes; the rest is the time in nanoseconds if it does not, else what
    /// is to be added to the host's nanoseconds since `epoch` (modulo 2^63) to get it. One word, so
    /// that reading the time, which guests do all the while, takes no lock.
    anchor: AtomicU64,
    epoch: Instant,
    manual: bool,
    /// Told when the clock starts, stops or jumps; held while it does.
    watchers: Mutex<Vec<Weak<QueueShared>>>,
}

/// The guest's clock. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct Clock {
    inner: Arc<Inner>,
}

impl Clock {
    /// A clock that stands at zero until [`Clock::start`].
    pub fn new() -> Self {
        Self::stopped(false)
    }

    /// A clock that only [`Clock::set`] moves.
    pub fn manual() -> Self {
        Self::stopped(true)
    }

    fn stopped(manual: bool) -> Self {
        let inner = Inner {
            anchor: AtomicU64::new(0),
            epoch: Instant::now(),
            manual,
            watchers: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Guest time in nanoseconds.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        let anchor = self.inner.anchor.load(Ordering::Acquire);
        if anchor & RUNNING == 0 { anchor } else { anchor.wrapping_add(self.host_ns()) & !RUNNING }
    }

    /// Whether time passes by itself now.
    pub fn is_running(&self) -> bool {
        self.inner.anchor.load(Ordering::Acquire) & RUNNING != 0
    }

    /// Lets time pass. Has no effect on a manual clock.
    pub fn start(&self) {
        if !self.inner.manual {
            self.change(|now| (now, true));
        }
    }

    /// Freezes time.
    pub fn stop(&self) {
        self.change(|now| (now, false));
    }

    /// Sets the time, as a manual clock's driver or a restored machine does.
    pub fn set(&self, now_ns: u64) {
        let running = self.is_running();
        self.change(|_| (now_ns & !RUNNING, running));
    }

    /// Sets the time of a manual clock whose timers have no thread; as cheap as can be.
    fn follow(&self, now_ns: u64) {
        debug_assert!(self.inner.manual, "who drives the clock?");
        self.inner.anchor.store(now_ns & !RUNNING, Ordering::Release);
    }

    fn host_ns(&self) -> u64 {
        self.inner.epoch.elapsed().as_nanos() as u64
    }

    /// Sets time and motion to what `next` makes of the time now, and wakes the timers' threads.
    fn change(&self, next: impl FnOnce(u64) -> (u64, bool)) {
        let mut watchers = lock(&self.inner.watchers);
        let (time, runs) = next(self.now_ns());
        let anchor =
            if runs { (time.wrapping_sub(self.host_ns()) & !RUNNING) | RUNNING } else { time };
        self.inner.anchor.store(anchor, Ordering::Release);
        watchers.retain(|queue| {
            queue.upgrade().is_some_and(|queue| {
                drop(lock(&queue.heap));
                queue.wake.notify_all();
                if let Some(earlier) = queue.earlier.get() {
                    earlier();
                }
                true
            })
        });
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

type Callback = Box<dyn Fn() + Send + Sync>;

struct TimerShared {
    /// Guest time in nanoseconds, or [`NEVER`].
    deadline: AtomicU64,
    callback: Callback,
}

/// An entry of the heap: it is stale unless the timer still has this deadline.
struct Entry {
    deadline: u64,
    timer: Weak<TimerShared>,
}

impl Entry {
    fn is_live(&self) -> bool {
        let deadline = |t: Arc<TimerShared>| t.deadline.load(Ordering::Acquire);
        self.timer.upgrade().map(deadline) == Some(self.deadline)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.deadline == other.deadline
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.deadline.cmp(&other.deadline)
    }
}

/// Told that a timer was armed that comes before all others.
type Earlier = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Heap {
    entries: BinaryHeap<Reverse<Entry>>,
    /// Size at which stale entries are swept out, so that a guest that re-arms a far deadline for ever
    /// does not grow the heap.
    sweep_at: usize,
    closed: bool,
}

impl Heap {
    fn push(&mut self, entry: Entry) {
        if self.entries.len() >= self.sweep_at.max(64) {
            self.entries.retain(|Reverse(e)| e.is_live());
            self.sweep_at = self.entries.len() * 2;
        }
        self.entries.push(Reverse(entry));
    }
}

struct QueueShared {
    clock: Clock,
    heap: Mutex<Heap>,
    wake: Condvar,
    earlier: OnceLock<Earlier>,
}

impl std::fmt::Debug for QueueShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QueueShared")
    }
}

/// Timers on one clock, with the thread that fires them.
pub struct TimerQueue {
    shared: Arc<QueueShared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl TimerQueue {
    /// A queue on `clock`, with a thread that runs until the queue is dropped.
    ///
    /// # Errors
    /// If the host can't start a thread.
    pub fn new(clock: Clock) -> std::io::Result<Self> {
        let queue = Self::without_thread(clock);
        let shared = Arc::clone(&queue.shared);
        let thread =
            std::thread::Builder::new().name("timers".into()).spawn(move || shared.run())?;
        *lock(&queue.thread) = Some(thread);
        Ok(queue)
    }

    /// A queue whose timers fire only in [`TimerQueue::fire_due`].
    pub fn without_thread(clock: Clock) -> Self {
        let shared = Arc::new(QueueShared {
            clock: clock.clone(),
            heap: Mutex::default(),
            wake: Condvar::new(),
            earlier: OnceLock::new(),
        });
        lock(&clock.inner.watchers).push(Arc::downgrade(&shared));
        Self { shared, thread: Mutex::new(None) }
    }

    /// The clock that the timers go by.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// A timer that calls `callback` each time it expires; not armed yet. The callback runs on the
    /// queue's thread, without any lock of the queue held, and may arm timers.
    pub fn timer(&self, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        let timer =
            Arc::new(TimerShared { deadline: AtomicU64::new(NEVER), callback: Box::new(callback) });
        Timer { timer, queue: Arc::clone(&self.shared) }
    }

    /// Fires all timers that are due, on the calling thread; returns the next deadline.
    pub fn fire_due(&self) -> Option<u64> {
        self.shared.fire_due()
    }

    /// Moves a manual clock on to `to_ns`, unless it is there already, and fires what comes due on the
    /// way, each timer at its own time; returns the time then.
    pub fn advance(&self, to_ns: u64) -> u64 {
        let clock = self.clock();
        while let Some(next) = self.fire_due().filter(|&next| next <= to_ns) {
            clock.set(next);
        }
        if clock.now_ns() < to_ns {
            clock.set(to_ns);
        }
        clock.now_ns()
    }
}

/// Drives a manual clock and fires the timers that go by it.
#[derive(Clone, Debug)]
pub struct TimerDriver {
    queue: Arc<QueueShared>,
}

impl TimerQueue {
    /// What drives the queue's clock, which has to be a manual one, while the queue has no thread.
    /// `earlier` is called after a timer was armed that comes before all others, and after somebody else
    /// has set the clock; there is one driver for a queue's whole life.
    pub fn driver(&self, earlier: impl Fn() + Send + Sync + 'static) -> TimerDriver {
        debug_assert!(lock(&self.thread).is_none(), "the thread fires timers");
        let _ = self.shared.earlier.set(Box::new(earlier));
        TimerDriver { queue: Arc::clone(&self.shared) }
    }
}

impl TimerDriver {
    /// Sets the time, firing nothing.
    #[inline]
    pub fn set(&self, now_ns: u64) {
        self.queue.clock.follow(now_ns);
    }

    /// The time.
    pub fn now_ns(&self) -> u64 {
        self.queue.clock.now_ns()
    }

    /// Fires all timers that are due, on the calling thread; returns the next deadline.
    pub fn fire_due(&self) -> Option<u64> {
        self.queue.fire_due()
    }

    /// The next deadline.
    pub fn next_deadline(&self) -> Option<u64> {
        let mut heap = lock(&self.queue.heap);
        while let Some(Reverse(first)) = heap.entries.peek() {
            if first.is_live() {
                return Some(first.deadline);
            }
            heap.entries.pop();
        }
        None
    }
}

impl Drop for TimerQueue {
    fn drop(&mut self) {
        lock(&self.shared.heap).closed = true;
        self.shared.wake.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            // A callback may hold the last reference to the queue; its thread can't join itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl QueueShared {
    fn run(&self) {
        loop {
            let next = self.fire_due();
            let heap = lock(&self.heap);
            if heap.closed {
                return;
            }
            // Something may have been armed between firing and taking the lock.
            let earliest = heap.entries.peek().map(|e| e.0.deadline);
            if earliest != next {
                continue;
            }
            match next.filter(|_| self.clock.is_running()) {
                None => drop(self.wake.wait(heap)),
                Some(deadline) => {
                    let left = Duration::from_nanos(deadline.saturating_sub(self.clock.now_ns()));
                    if !left.is_zero() {
                        drop(self.wake.wait_timeout(heap, left));
                    }
                }
            }
        }
    }

    fn fire_due(&self) -> Option<u64> {
        loop {
            let due = {
                let mut heap = lock(&self.heap);
                loop {
                    let Reverse(first) = heap.entries.peek()?;
                    let timer = first.timer.upgrade();
                    let deadline = first.deadline;
                    let live = timer.filter(|t| t.deadline.load(Ordering::Acquire) == deadline);
                    let Some(timer) = live else {
                        heap.entries.pop();
                        continue;
                    };
                    if heap.closed || deadline > self.clock.now_ns() {
                        return Some(deadline);
                    }
                    heap.entries.pop();
                    // Disarm, unless it was armed anew in this moment.
                    let fired = timer
                        .deadline
                        .compare_exchange(deadline, NEVER, Ordering::AcqRel, Ordering::Acquire)
                        .is_ok();
                    if fired {
                        break timer;
                    }
                }
            };
            (due.callback)();
        }
    }
}

/// A timer of a [`TimerQueue`]. Dropping it disarms it.
pub struct Timer {
    timer: Arc<TimerShared>,
    queue: Arc<QueueShared>,
}

impl Timer {
    /// Arms the timer for guest time `deadline_ns`, in place of any earlier deadline. A deadline in the
    /// past fires at once.
    pub fn arm(&self, deadline_ns: u64) {
        let deadline = deadline_ns.min(NEVER - 1);
        let mut heap = lock(&self.queue.heap);
        if self.timer.deadline.swap(deadline, Ordering::AcqRel) == deadline {
            return;
        }
        let first = heap.entries.peek().is_none_or(|e| deadline < e.0.deadline);
        heap.push(Entry { deadline, timer: Arc::downgrade(&self.timer) });
        drop(heap);
        if first {
            self.queue.wake.notify_all();
            if let Some(earlier) = self.queue.earlier.get() {
                earlier();
            }
        }
    }

    /// Disarms the timer. A callback that has already begun still finishes.
    pub fn disarm(&self) {
        self.timer.deadline.store(NEVER, Ordering::Release);
    }

    /// The deadline in guest nanoseconds, if armed.
    pub fn deadline(&self) -> Option<u64> {
        Some(self.timer.deadline.load(Ordering::Acquire)).filter(|&d| d != NEVER)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl std::fmt::Debug for Timer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timer").field("deadline", &self.deadline()).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn timers_fire_in_order_and_only_once() {
        let clock = Clock::manual();
        let queue = TimerQueue::without_thread(clock.clone());
        let fired = Arc::new(Mutex::new(Vec::new()));
        let timers: Vec<_> = [30, 10, 20]
            .into_iter()
            .map(|at| {
                let fired = Arc::clone(&fired);
                let timer = queue.timer(move || fired.lock().unwrap().push(at));
                timer.arm(at);
                timer
            })
            .collect();
        clock.set(25);
        assert_eq!(queue.fire_due(), Some(30));
        assert_eq!(*fired.lock().unwrap(), [10, 20]);
        timers[0].disarm();
        clock.set(100);
        assert_eq!(queue.fire_due(), None);
        assert_eq!(*fired.lock().unwrap(), [10, 20]);
    }

    #[test]
    fn an_advance_fires_each_timer_at_its_own_time() {
        let queue = Arc::new(TimerQueue::without_thread(Clock::manual()));
        let fired = Arc::new(Mutex::new(Vec::new()));
        let timer = Arc::new(Mutex::new(None::<Timer>));
        let (clock, seen, again) = (queue.clock().clone(), fired.clone(), timer.clone());
        *timer.lock().unwrap() = Some(queue.timer(move || {
            seen.lock().unwrap().push(clock.now_ns());
            again.lock().unwrap().as_ref().unwrap().arm(clock.now_ns() + 10);
        }));
        timer.lock().unwrap().as_ref().unwrap().arm(5);
        assert_eq!(queue.advance(30), 30);
        assert_eq!(*fired.lock().unwrap(), [5, 15, 25]);
        assert_eq!(queue.advance(20), 30);
    }

    #[test]
    fn rearming_for_ever_keeps_the_heap_small() {
        let queue = TimerQueue::without_thread(Clock::manual());
        let timer = queue.timer(|| {});
        for i in 0..100_000 {
            timer.arm(1_000_000_000 + i);
        }
        assert!(lock(&queue.shared.heap).entries.len() <= 128);
    }

    #[test]
    fn a_stopped_clock_fires_nothing_and_a_started_one_does() {
        let clock = Clock::new();
        let queue = TimerQueue::new(clock.clone()).unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&count);
        let timer = queue.timer(move || {
            seen.fetch_add(1, Ordering::SeqCst);
        });
        timer.arm(1_000_000);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(count.load(Ordering::SeqCst), 0);
        assert_eq!(clock.now_ns(), 0);
        clock.start();
        while count.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(timer.deadline().is_none());
    }
}
