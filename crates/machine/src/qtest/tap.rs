//! Interrupt lines that somebody listens to.

use std::sync::{Arc, Mutex, MutexGuard};

use bus::IrqSink;

/// Is told of each change of a line: its number and its new level. Called on any thread, with locks of
/// devices held; must not block.
pub type LineWatcher = Arc<dyn Fn(u32, bool) + Send + Sync>;

#[derive(Default)]
struct Watch {
    watcher: Option<LineWatcher>,
    /// The level of each line when it was last told, a bit a line.
    told: u64,
}

/// Sits before the inputs of an interrupt controller and passes on all that comes.
pub struct Tap {
    name: &'static str,
    inputs: Arc<dyn IrqSink>,
    lines: u32,
    watch: Mutex<Watch>,
}

impl Tap {
    /// A tap on the `lines` first inputs, at most 64, of the controller called `name`.
    pub fn new(name: &'static str, inputs: Arc<dyn IrqSink>, lines: u32) -> Arc<Self> {
        Arc::new(Self { name, inputs, lines: lines.min(64), watch: Mutex::default() })
    }

    /// The controller's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How many lines there are.
    pub fn lines(&self) -> u32 {
        self.lines
    }

    /// Tells `watcher` of each change from now on. All lines count as low until they are heard of.
    pub fn watch(&self, watcher: LineWatcher) {
        *self.lock() = Watch { watcher: Some(watcher), told: 0 };
    }

    /// Takes all lines for low.
    pub fn forget_levels(&self) {
        self.lock().told = 0;
    }

    fn lock(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl IrqSink for Tap {
    fn set_level(&self, pin: u32, level: bool) {
        self.inputs.set_level(pin, level);
        if pin >= self.lines {
            return;
        }
        let mut watch = self.lock();
        let bit = 1 << pin;
        if let Some(watcher) = watch.watcher.clone()
            && (watch.told & bit != 0) != level
        {
            watch.told ^= bit;
            watcher(pin, level);
        }
    }
}
