//! What the tests of several devices share.

use std::sync::Mutex;

use bus::{MachineControl, Notice, ShutdownCause};
use chardev::{CharBackend, CharReceiver};

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
    fn notify(&self, notice: Notice) {
        // No device asks whether the machine sleeps.
        if matches!(notice, Notice::Wake(_)) {
            return;
        }
        self.note(format!("notice {notice:?}"));
    }
}

/// A character device that takes everything; whoever has it can call its receiver.
#[derive(Default)]
pub(crate) struct Everything {
    receiver: Mutex<Option<Box<dyn CharReceiver>>>,
}

impl Everything {
    /// Calls the device model in front, if there is one.
    pub(crate) fn with_receiver<T: Default>(&self, call: impl FnOnce(&dyn CharReceiver) -> T) -> T {
        lock(&self.receiver).as_ref().map(|receiver| call(&**receiver)).unwrap_or_default()
    }
}

impl CharBackend for Everything {
    fn write(&self, data: &[u8]) -> usize {
        data.len()
    }
    fn set_receiver(&self, receiver: Box<dyn CharReceiver>) {
        *lock(&self.receiver) = Some(receiver);
    }
    fn accept_input(&self) {}
}
