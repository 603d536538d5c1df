//! What the tests of several devices share.

use std::sync::Mutex;

use bus::{MachineControl, ShutdownCause};

use crate::lock;

/// Records what devices ask of the machine.
#[derive(Default)]
pub(crate) struct Wishes(Mutex<Vec<String>>);

impl Wishes {
    /// What was asked since the last call.
    pub(crate) fn taken(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.0))
    }

    fn note(&self, wish: String) {
        let mut wishes = lock(&self.0);
        // Random traffic asks for a lot.
        if wishes.len() < 1000 {
            wishes.push(wish);
        }
    }
}

impl MachineControl for Wishes {
    fn request_reset(&self, cause: ShutdownCause) {
        self.note(format!("reset {}", cause.name()));
    }
    fn request_shutdown(&self, cause: ShutdownCause) {
        self.note(format!("shutdown {}", cause.name()));
    }
    fn request_exit(&self, code: i32) {
        self.note(format!("exit {code}"));
    }
}
