//! A recorder of interrupt lines, for tests.

use std::collections::HashMap;
use std::sync::Mutex;

use bus::IrqSink;

use crate::lock;

/// Remembers the level of each pin and how often it rose.
#[derive(Default)]
pub(crate) struct Recorder {
    pins: Mutex<HashMap<u32, (bool, usize)>>,
}

impl Recorder {
    pub(crate) fn level(&self, pin: u32) -> bool {
        lock(&self.pins).get(&pin).is_some_and(|p| p.0)
    }

    pub(crate) fn rises(&self, pin: u32) -> usize {
        lock(&self.pins).get(&pin).map_or(0, |p| p.1)
    }
}

impl IrqSink for Recorder {
    fn set_level(&self, pin: u32, level: bool) {
        let mut pins = lock(&self.pins);
        let (was, rises) = pins.entry(pin).or_default();
        *rises += usize::from(level && !*was);
        *was = level;
    }
}
