//! Who gets which event, and the queue of keys that are typed with pauses.
//!
//! Locks: a device may call its [`SinkHandle`] with its own lock held, so the hub never holds the lock of
//! its list while it calls a device. What keeps events in order is `sending`, which no device takes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bus::{Clock, Timer, TimerQueue};

use crate::{ABSOLUTE_MAX, EventKinds, InputEvent, Key};

/// Most entries, keys and pauses, that wait to be typed.
const QUEUE_LIMIT: usize = 1024;

/// A device that takes events. Called by any thread, one call at a time.
pub trait InputSink: Send + Sync {
    /// Something happened. Events that belong together are followed by one [`InputSink::sync`].
    fn event(&self, event: &InputEvent);

    /// The events since the last call are complete: the time to tell the guest.
    fn sync(&self) {}
}

/// A console: a graphics device and the number of the screen on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The graphics device's path in the tree of the machine's objects.
    pub device: String,
    /// The screen's number.
    pub head: u32,
}

/// What a sink is.
#[derive(Clone, Debug)]
pub struct SinkSpec {
    /// Its name, as monitors list it.
    pub name: &'static str,
    /// What it takes.
    pub kinds: EventKinds,
    /// The console whose events it takes (`display=`, `head=`). A console that does not exist is none.
    pub console: Option<Target>,
}

/// A pointing device, for monitors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointerInfo {
    /// Its name.
    pub name: &'static str,
    /// Its number, unique among all sinks.
    pub index: u32,
    /// It is first in line for the user's input.
    pub current: bool,
    /// It takes positions.
    pub absolute: bool,
}

/// More keys wait to be typed than the queue holds.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Too many keys wait to be typed; the queue has room for {QUEUE_LIMIT} keys and pauses")]
pub struct KeyQueueFull;

struct Entry {
    index: u32,
    spec: SinkSpec,
    sink: Weak<dyn InputSink>,
}

#[derive(Default)]
struct Sinks {
    /// First in line first.
    entries: Vec<Entry>,
    consoles: Vec<Target>,
    last_index: u32,
}

impl Sinks {
    /// The first sink in line for a kind of event: one of the console, or else one of no console.
    fn find(&self, target: Option<&Target>, kind: EventKinds) -> Option<Arc<dyn InputSink>> {
        let bound = |entry: &Entry| {
            entry.spec.console.as_ref().filter(|&console| self.consoles.contains(console)).cloned()
        };
        let first = |console: Option<&Target>| {
            self.entries
                .iter()
                .filter(|entry| entry.spec.kinds.intersects(kind))
                .filter(|entry| bound(entry).as_ref() == console)
                .find_map(|entry| entry.sink.upgrade())
        };
        target.and_then(|target| first(Some(target))).or_else(|| first(None))
    }
}

/// An entry of the key queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queued {
    Key { key: Key, down: bool },
    Pause(Duration),
}

#[derive(Default)]
struct KeyQueue {
    entries: VecDeque<Queued>,
    /// A pause runs: the timer goes on with the queue.
    pausing: bool,
}

/// Takes events to devices.
pub struct InputHub {
    sinks: Mutex<Sinks>,
    sending: Mutex<()>,
    queue: Mutex<KeyQueue>,
    clock: Clock,
    timer: Timer,
}

impl InputHub {
    /// A hub without devices, whose pauses between keys go by the clock of `timers`.
    pub fn new(timers: &TimerQueue) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = timers.timer(move || {
                if let Some(hub) = this.upgrade() {
                    lock(&hub.queue).pausing = false;
                    hub.type_queue();
                }
            });
            Self {
                sinks: Mutex::default(),
                sending: Mutex::default(),
                queue: Mutex::default(),
                clock: timers.clock().clone(),
                timer,
            }
        })
    }

    /// Adds a device at the end of the line. It leaves when the handle is dropped.
    pub fn register(self: &Arc<Self>, spec: SinkSpec, sink: Weak<dyn InputSink>) -> SinkHandle {
        let mut sinks = lock(&self.sinks);
        sinks.last_index += 1;
        let index = sinks.last_index;
        sinks.entries.push(Entry { index, spec, sink });
        SinkHandle { hub: Arc::downgrade(self), index }
    }

    /// Makes a console known, so that sinks bound to it get its events.
    pub fn add_console(&self, console: Target) {
        lock(&self.sinks).consoles.push(console);
    }

    /// Whether some device takes events of `kind` for `target`.
    pub fn takes(&self, target: Option<&Target>, kind: EventKinds) -> bool {
        lock(&self.sinks).find(target, kind).is_some()
    }

    /// Takes events that belong together to their devices; what none takes is lost. Positions past the
    /// ends of their axis are at its ends.
    pub fn send(&self, target: Option<&Target>, events: &[InputEvent]) {
        let _sending = lock(&self.sending);
        self.dispatch(target, events);
    }

    /// Types `keys` as one presses a combination: they go down one after another and up in reverse, with a
    /// pause of `hold` after each. Returns at once; what was typed before goes first.
    ///
    /// # Errors
    /// If so many keys wait already that these find no room; none of them is typed then.
    pub fn type_keys(&self, keys: &[Key], hold: Duration) -> Result<(), KeyQueueFull> {
        let mut queue = lock(&self.queue);
        let room = QUEUE_LIMIT.saturating_sub(queue.entries.len());
        if keys.len().saturating_mul(4) > room {
            return Err(KeyQueueFull);
        }
        let down = keys.iter().map(|&key| (key, true));
        let up = keys.iter().rev().map(|&key| (key, false));
        for (key, down) in down.chain(up) {
            queue.entries.extend([Queued::Key { key, down }, Queued::Pause(hold)]);
        }
        drop(queue);
        self.type_queue();
        Ok(())
    }

    /// Types what waits, up to the next pause.
    fn type_queue(&self) {
        let _sending = lock(&self.sending);
        loop {
            let mut queue = lock(&self.queue);
            if queue.pausing {
                return;
            }
            match queue.entries.pop_front() {
                None => return,
                Some(Queued::Pause(pause)) => {
                    queue.pausing = true;
                    let ns = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
                    self.timer.arm(self.clock.now_ns().saturating_add(ns));
                }
                Some(Queued::Key { key, down }) => {
                    drop(queue);
                    self.dispatch(None, &[InputEvent::Key { key, down }]);
                }
            }
        }
    }

    fn dispatch(&self, target: Option<&Target>, events: &[InputEvent]) {
        let mut told: Vec<Arc<dyn InputSink>> = Vec::new();
        for event in events {
            let Some(sink) = lock(&self.sinks).find(target, event.kind()) else { continue };
            let event = match *event {
                InputEvent::Absolute { axis, value } => {
                    InputEvent::Absolute { axis, value: value.clamp(0, ABSOLUTE_MAX) }
                }
                event => event,
            };
            sink.event(&event);
            if !told.iter().any(|other| Arc::ptr_eq(other, &sink)) {
                told.push(sink);
            }
        }
        for sink in told {
            sink.sync();
        }
    }

    /// The pointing devices, last in line first.
    pub fn pointers(&self) -> Vec<PointerInfo> {
        let pointing = EventKinds::RELATIVE | EventKinds::ABSOLUTE;
        let sinks = lock(&self.sinks);
        let entries = sinks.entries.iter().filter(|entry| entry.spec.kinds.intersects(pointing));
        let mut infos: Vec<_> = entries
            .enumerate()
            .map(|(place, Entry { index, spec, .. })| PointerInfo {
                name: spec.name,
                index: *index,
                current: place == 0,
                absolute: spec.kinds.contains(EventKinds::ABSOLUTE),
            })
            .collect();
        infos.reverse();
        infos
    }

    fn reorder(&self, index: u32, place: impl FnOnce(&mut Vec<Entry>, Entry)) {
        let mut sinks = lock(&self.sinks);
        if let Some(at) = sinks.entries.iter().position(|entry| entry.index == index) {
            let entry = sinks.entries.remove(at);
            place(&mut sinks.entries, entry);
        }
    }
}

/// A device's place in the line.
pub struct SinkHandle {
    hub: Weak<InputHub>,
    index: u32,
}

impl SinkHandle {
    /// To the head of the line: the guest listens to the device.
    pub fn activate(&self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.reorder(self.index, |entries, entry| entries.insert(0, entry));
        }
    }

    /// To the end of the line: the guest no longer listens.
    pub fn deactivate(&self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.reorder(self.index, Vec::push);
        }
    }
}

impl Drop for SinkHandle {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.reorder(self.index, |_, _| {});
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Axis, Button};

    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Recorder {
        fn taken(&self) -> Vec<String> {
            std::mem::take(&mut lock(&self.0))
        }
    }

    impl InputSink for Recorder {
        fn event(&self, event: &InputEvent) {
            lock(&self.0).push(match event {
                InputEvent::Key { key, down } => format!("{} {down}", key.name()),
                InputEvent::Button { button, down } => format!("{button:?} {down}"),
                InputEvent::Relative { axis, value } => format!("{axis:?} by {value}"),
                InputEvent::Absolute { axis, value } => format!("{axis:?} at {value}"),
            });
        }
        fn sync(&self) {
            lock(&self.0).push("sync".into());
        }
    }

    struct Bench {
        clock: Clock,
        timers: TimerQueue,
        hub: Arc<InputHub>,
    }

    impl Bench {
        fn new() -> Self {
            let clock = Clock::manual();
            let timers = TimerQueue::without_thread(clock.clone());
            let hub = InputHub::new(&timers);
            Self { clock, timers, hub }
        }

        fn sink(
            &self,
            name: &'static str,
            kinds: EventKinds,
            console: Option<&Target>,
        ) -> (Arc<Recorder>, SinkHandle) {
            let recorder = Arc::new(Recorder::default());
            let weak = Arc::downgrade(&recorder);
            let spec = SinkSpec { name, kinds, console: console.cloned() };
            let handle = self.hub.register(spec, weak);
            (recorder, handle)
        }

        fn wait_ms(&self, ms: u64) {
            self.clock.set(self.clock.now_ns() + ms * 1_000_000);
            self.timers.fire_due();
        }
    }

    const MOUSE: EventKinds = EventKinds::BUTTON.union(EventKinds::RELATIVE);
    const TABLET: EventKinds = EventKinds::BUTTON.union(EventKinds::ABSOLUTE);

    #[test]
    fn the_one_activated_last_gets_the_events() {
        let bench = Bench::new();
        let (mouse, _mouse) = bench.sink("mouse", MOUSE, None);
        let (tablet, handle) = bench.sink("tablet", TABLET, None);
        let press = InputEvent::Button { button: Button::Left, down: true };
        let events = [press, InputEvent::Absolute { axis: Axis::X, value: 70_000 }];
        bench.hub.send(None, &events);
        assert_eq!(mouse.taken(), ["Left true", "sync"]);
        assert_eq!(tablet.taken(), ["X at 32767", "sync"]);
        handle.activate();
        bench.hub.send(None, &events);
        assert!(mouse.taken().is_empty());
        assert_eq!(tablet.taken(), ["Left true", "X at 32767", "sync"]);
        handle.deactivate();
        bench.hub.send(None, &[press]);
        assert_eq!(mouse.taken(), ["Left true", "sync"]);
        drop(handle);
        assert!(!bench.hub.takes(None, EventKinds::ABSOLUTE));
        assert!(!bench.hub.takes(None, EventKinds::KEY));
    }

    #[test]
    fn pointers_are_listed_as_monitors_show_them() {
        let bench = Bench::new();
        let (_k, _keyboard) = bench.sink("keyboard", EventKinds::KEY, None);
        let (_m, _mouse) = bench.sink("mouse", MOUSE, None);
        let (_t, tablet) = bench.sink("tablet", TABLET, None);
        let list = || -> Vec<_> {
            let infos = bench.hub.pointers().into_iter();
            infos.map(|p| (p.name, p.index, p.current, p.absolute)).collect()
        };
        assert_eq!(list(), [("tablet", 3, false, true), ("mouse", 2, true, false)]);
        tablet.activate();
        assert_eq!(list(), [("mouse", 2, false, false), ("tablet", 3, true, true)]);
    }

    #[test]
    fn a_console_has_devices_of_its_own() {
        let bench = Bench::new();
        let screen = Target { device: "video0".into(), head: 1 };
        let (bound, _bound) = bench.sink("bound", EventKinds::KEY, Some(&screen));
        let (free, _free) = bench.sink("free", EventKinds::KEY, None);
        let key = [InputEvent::Key { key: Key::A, down: true }];
        // Until the console exists, the device is nobody's.
        bench.hub.send(None, &key);
        assert_eq!((bound.taken().len(), free.taken().len()), (2, 0));
        bench.hub.add_console(screen.clone());
        bench.hub.send(None, &key);
        assert_eq!((bound.taken().len(), free.taken().len()), (0, 2));
        bench.hub.send(Some(&screen), &key);
        assert_eq!((bound.taken().len(), free.taken().len()), (2, 0));
        bench.hub.send(Some(&Target { head: 0, ..screen }), &key);
        assert_eq!((bound.taken().len(), free.taken().len()), (0, 2));
    }

    #[test]
    fn combinations_are_typed_with_pauses() {
        let bench = Bench::new();
        let (keyboard, _handle) = bench.sink("keyboard", EventKinds::KEY, None);
        let hold = Duration::from_millis(10);
        bench.hub.type_keys(&[Key::Ctrl, Key::A], hold).unwrap();
        bench.hub.type_keys(&[Key::B], hold).unwrap();
        let mut typed = vec![keyboard.taken().remove(0)];
        for _ in 0..10 {
            bench.wait_ms(9);
            assert!(keyboard.taken().is_empty());
            bench.wait_ms(1);
            typed.extend(keyboard.taken().into_iter().filter(|event| event != "sync"));
        }
        assert_eq!(typed, ["ctrl true", "a true", "a false", "ctrl false", "b true", "b false"]);
        bench.hub.type_keys(&[Key::C], hold).unwrap();
        assert_eq!(keyboard.taken(), ["c true", "sync"]);
    }

    #[test]
    fn the_key_queue_is_bounded() {
        let bench = Bench::new();
        let many = vec![Key::A; 1000];
        assert_eq!(bench.hub.type_keys(&many, Duration::ZERO), Err(KeyQueueFull));
        for _ in 0..256 {
            let _ = bench.hub.type_keys(&[Key::A], Duration::from_secs(1));
        }
        assert!(bench.hub.type_keys(&[Key::A; 4], Duration::ZERO).is_err());
        assert!(lock(&bench.hub.queue).entries.len() <= QUEUE_LIMIT);
    }
}
