//! The 16550A serial port.
//!
//! Follows National Semiconductor's PC16550D data sheet (SNLS378). The line has no speed: bytes leave
//! as soon as the backend takes them. The divisor is recorded, and sets only how long the receiver
//! waits before it reports a few bytes below the trigger level.
//!
//! Two locks: `registers` is the device's state; `sending` keeps bytes in order while they are handed
//! to the backend, which happens with `registers` free. `sending` is taken first.

mod registers;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, Weak};

use bus::{AddressSpace, Clock, Device, IrqLine, MapError, Timer, TimerQueue};
use chardev::{CharBackend, CharEvent, CharReceiver};
use vmstate::{RestoreError, Saved};

use crate::isa::{PortDevice, map_ports};
use crate::lock;
pub use registers::Uart16550State;

/// First ports of the four serial ports of a PC.
pub const COM_PORTS: [u16; 4] = [0x3f8, 0x2f8, 0x3e8, 0x2e8];
/// Number of ports.
const PORTS: u16 = 8;

/// A serial port.
pub struct Uart16550 {
    id: String,
    port: u16,
    irq: IrqLine,
    clock: Clock,
    backend: Arc<dyn CharBackend>,
    /// Fires when input has waited in the FIFO for too long.
    timeout: Timer,
    sending: Mutex<()>,
    registers: Mutex<Uart16550State>,
}

impl Uart16550 {
    /// A serial port with registers from `port` on that interrupts on `irq` and talks to `backend`.
    /// `id` names its saved state.
    pub fn new(
        id: impl Into<String>,
        port: u16,
        timers: &TimerQueue,
        irq: IrqLine,
        backend: Arc<dyn CharBackend>,
    ) -> Arc<Self> {
        let id = id.into();
        let clock = timers.clock().clone();
        let uart = Arc::new_cyclic(|this: &Weak<Self>| {
            let waiting = this.clone();
            let timeout = timers.timer(move || {
                if let Some(uart) = waiting.upgrade() {
                    let mut registers = lock(&uart.registers);
                    registers.time_out();
                    uart.refresh(&registers);
                }
            });
            let (sending, registers) = (Mutex::default(), Mutex::default());
            Self { id, port, irq, clock, backend, timeout, sending, registers }
        });
        uart.backend.set_receiver(Box::new(Input(Arc::downgrade(&uart))));
        uart
    }

    /// Maps the ports.
    ///
    /// # Errors
    /// If the ports run past the last one.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        map_ports(ports, self.port, PORTS, self.clone())?;
        Ok(())
    }

    fn refresh(&self, registers: &Uart16550State) {
        self.irq.set(registers.interrupts());
    }

    /// Starts the time that input may wait in the FIFO anew, if any waits.
    fn restart_timeout(&self, registers: &mut Uart16550State) {
        let now = self.clock.now_ns();
        registers.timeout_at = registers.timeout_ns().map(|ns| now.saturating_add(ns));
        self.arm_timeout(registers);
    }

    fn arm_timeout(&self, registers: &Uart16550State) {
        match registers.timeout_at {
            Some(time) => self.timeout.arm(time),
            None => self.timeout.disarm(),
        }
    }

    /// Hands waiting output to the backend; what it does not take waits until it has room.
    fn send(&self) {
        let _in_order = lock(&self.sending);
        let (bytes, len) = lock(&self.registers).waiting_output();
        if len == 0 {
            return;
        }
        let taken = self.backend.write(&bytes[..len]).min(len);
        let mut registers = lock(&self.registers);
        registers.sent(taken);
        self.refresh(&registers);
    }
}

impl PortDevice for Uart16550 {
    fn read_port(&self, port: u16) -> u8 {
        let mut registers = lock(&self.registers);
        let had_room = registers.room() > 0;
        let value = registers.read(port.wrapping_sub(self.port) & 7);
        if registers.take_input_moved() {
            self.restart_timeout(&mut registers);
        }
        let has_room = registers.room() > 0;
        self.refresh(&registers);
        drop(registers);
        if has_room && !had_room {
            self.backend.accept_input();
        }
        value
    }

    fn write_port(&self, port: u16, value: u8) {
        let mut registers = lock(&self.registers);
        let had_room = registers.room() > 0;
        registers.write(port.wrapping_sub(self.port) & 7, value);
        if registers.take_input_moved() {
            self.restart_timeout(&mut registers);
        }
        let has_room = registers.room() > 0;
        let waits = registers.waiting_output().1 > 0;
        self.refresh(&registers);
        drop(registers);
        if waits {
            self.send();
        }
        if has_room && !had_room {
            self.backend.accept_input();
        }
    }
}

/// What the backend calls. It must not keep the port alive, which keeps the backend alive.
struct Input(Weak<Uart16550>);

impl CharReceiver for Input {
    fn can_receive(&self) -> usize {
        self.0.upgrade().map_or(0, |uart| lock(&uart.registers).room())
    }

    fn receive(&self, data: &[u8]) {
        if let Some(uart) = self.0.upgrade() {
            uart.receive(data);
        }
    }

    fn event(&self, event: CharEvent) {
        match (event, self.0.upgrade()) {
            (CharEvent::Break, Some(uart)) => uart.receive_break(),
            // The modem lines say "connected" at all times, as on other boards of this kind.
            (CharEvent::Opened | CharEvent::Closed | CharEvent::Break, _) => {}
        }
    }

    fn writable(&self) {
        if let Some(uart) = self.0.upgrade() {
            uart.send();
        }
    }
}

impl Uart16550 {
    fn receive(&self, data: &[u8]) {
        let mut registers = lock(&self.registers);
        for &byte in data {
            registers.receive(byte);
        }
        registers.take_input_moved();
        self.restart_timeout(&mut registers);
        self.refresh(&registers);
    }

    fn receive_break(&self) {
        let mut registers = lock(&self.registers);
        registers.receive_break();
        registers.take_input_moved();
        self.restart_timeout(&mut registers);
        self.refresh(&registers);
    }
}

impl Device for Uart16550 {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn reset(&self) {
        let mut registers = lock(&self.registers);
        *registers = Uart16550State::default();
        self.timeout.disarm();
        self.refresh(&registers);
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.registers))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: Uart16550State = saved.decode()?;
        let mut registers = lock(&self.registers);
        *registers = restored;
        self.arm_timeout(&registers);
        self.refresh(&registers);
        drop(registers);
        // This machine's backend may have room where the other's had none.
        self.send();
        self.backend.accept_input();
        Ok(())
    }
}
