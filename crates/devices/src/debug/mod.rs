//! Small devices for debugging guests: an exit port, a console port, and the POST code port.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bus::{AddressSpace, BusDevice, Device, MachineControl, MapError};
use chardev::CharBackend;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::isa::{PortDevice, map_ports};

/// Where firmware reports its progress.
pub const POST_PORT: u16 = 0x80;

/// State of a device that has none.
macro_rules! stateless {
    ($state:ident, $name:literal) => {
        /// Saved state: the device holds nothing.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $state {}

        impl State for $state {
            const NAME: &'static str = $name;
            const VERSION: u32 = 1;
        }
    };
}

stateless!(DebugExitState, "isa-debug-exit");
stateless!(DebugConsoleState, "isa-debugcon");

/// `isa-debug-exit`: a write of `v` ends the process with status `v * 2 + 1`.
pub struct DebugExit {
    control: Arc<dyn MachineControl>,
}

impl DebugExit {
    /// Default first port.
    pub const IOBASE: u16 = 0x501;
    /// Default number of ports.
    pub const IOSIZE: u16 = 2;

    /// A device that ends the process by way of `control`.
    pub fn new(control: Arc<dyn MachineControl>) -> Arc<Self> {
        Arc::new(Self { control })
    }

    /// Maps `iosize` ports from `iobase` on.
    ///
    /// # Errors
    /// If `iosize` is zero.
    pub fn attach(
        self: &Arc<Self>,
        ports: &AddressSpace,
        iobase: u16,
        iosize: u16,
    ) -> Result<(), MapError> {
        ports.map(iobase.into(), iosize.into(), self.clone())?;
        Ok(())
    }
}

impl BusDevice for DebugExit {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        0
    }

    fn write(&self, _offset: u64, _size: u8, value: u64) {
        self.control.request_exit((value as u32).wrapping_shl(1) as i32 | 1);
    }
}

impl Device for DebugExit {
    fn id(&self) -> String {
        "isa-debug-exit".into()
    }

    fn reset(&self) {}

    fn save(&self) -> Saved {
        Saved::new(&DebugExitState {})
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        saved.decode::<DebugExitState>().map(drop)
    }
}

/// `isa-debugcon`: bytes written to the port go to a character device; reading tells a guest that the
/// device is there.
pub struct DebugConsole {
    backend: Arc<dyn CharBackend>,
    readback: u8,
}

impl DebugConsole {
    /// Default port.
    pub const IOBASE: u16 = 0xe9;
    /// Default value that reads give.
    pub const READBACK: u8 = 0xe9;

    /// A console on `backend` that reads as `readback`.
    pub fn new(backend: Arc<dyn CharBackend>, readback: u8) -> Arc<Self> {
        Arc::new(Self { backend, readback })
    }

    /// Maps the port.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace, iobase: u16) -> Result<(), MapError> {
        map_ports(ports, iobase, 1, self.clone())?;
        Ok(())
    }
}

impl PortDevice for DebugConsole {
    fn read_port(&self, _port: u16) -> u8 {
        self.readback
    }

    fn write_port(&self, _port: u16, value: u8) {
        // A backend that has no room loses the byte: the port has no way to make the guest wait.
        self.backend.write(&[value]);
    }
}

impl Device for DebugConsole {
    fn id(&self) -> String {
        "isa-debugcon".into()
    }

    fn reset(&self) {}

    fn save(&self) -> Saved {
        Saved::new(&DebugConsoleState {})
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        saved.decode::<DebugConsoleState>().map(drop)
    }
}

/// Saved state of [`PostCode`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostCodeState {
    code: u8,
}

impl State for PostCodeState {
    const NAME: &'static str = "post-code";
    const VERSION: u32 = 1;
}

/// Port 80h: keeps the last progress code; kernels also write it to pass a microsecond.
#[derive(Default)]
pub struct PostCode {
    code: AtomicU8,
}

impl PostCode {
    /// A port that reads zero.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Maps the port.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        map_ports(ports, POST_PORT, 1, self.clone())?;
        Ok(())
    }
}

impl PortDevice for PostCode {
    fn read_port(&self, _port: u16) -> u8 {
        self.code.load(Ordering::Relaxed)
    }

    fn write_port(&self, _port: u16, value: u8) {
        self.code.store(value, Ordering::Relaxed);
    }
}

impl Device for PostCode {
    fn id(&self) -> String {
        "post-code".into()
    }

    fn reset(&self) {
        self.code.store(0, Ordering::Relaxed);
    }

    fn save(&self) -> Saved {
        Saved::new(&PostCodeState { code: self.code.load(Ordering::Relaxed) })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: PostCodeState = saved.decode()?;
        self.code.store(state.code, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Wishes;

    #[test]
    fn a_write_to_the_exit_port_is_an_odd_status() {
        let wishes = Arc::new(Wishes::default());
        let ports = AddressSpace::new();
        DebugExit::new(wishes.clone()).attach(&ports, 0xf4, 4).unwrap();
        ports.write(0xf4, 1, 0x10);
        ports.write(0xf5, 4, 0xffff_ffff);
        assert_eq!(wishes.taken(), ["exit 33", "exit -1"]);
        assert_eq!(ports.read(0xf4, 1), Some(0));
    }

    #[test]
    fn the_console_port_passes_bytes_on() {
        #[derive(Default)]
        struct Sink(std::sync::Mutex<Vec<u8>>);
        impl CharBackend for Sink {
            fn write(&self, data: &[u8]) -> usize {
                self.0.lock().unwrap().extend_from_slice(data);
                data.len()
            }
            fn set_receiver(&self, _receiver: Box<dyn chardev::CharReceiver>) {}
            fn accept_input(&self) {}
        }
        let sink = Arc::new(Sink::default());
        let ports = AddressSpace::new();
        DebugConsole::new(sink.clone(), DebugConsole::READBACK).attach(&ports, 0xe9).unwrap();
        for &byte in b"ok\n" {
            ports.write(0xe9, 1, byte.into());
        }
        assert_eq!(ports.read(0xe9, 1), Some(0xe9));
        assert_eq!(*sink.0.lock().unwrap(), b"ok\n");
    }
}
