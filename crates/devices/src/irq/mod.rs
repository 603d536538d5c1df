//! The board's interrupt wiring: which line ends where.
//!
//! An ISA line goes to both the 8259 pair and the I/O APIC, the timer's to pin 2 of the latter instead
//! of pin 0, as the ACPI tables say. The PCI bus ends at PIRQA to PIRQD, and the PIIX3's route registers
//! take those to ISA lines (PIIX3 data sheet, 290550, PIRQRC registers). An ISA line is high while any
//! of its sources is.
//!
//! Restoring: this state is what the lines were at, so it may come before or after the devices'.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use bus::{Device, IrqLine, IrqSink};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::lock;

/// ISA interrupt lines.
pub const ISA_LINES: u32 = 16;
/// PCI interrupt router lines, PIRQA to PIRQD.
pub const PIRQS: usize = 4;

/// The board's ISA lines by name.
pub mod line {
    /// 8254 channel 0.
    pub const TIMER: u32 = 0;
    /// The HPET, outside of its legacy replacement mode; at the I/O APIC only.
    pub const HPET: u32 = 2;
    /// i8042, keyboard.
    pub const KEYBOARD: u32 = 1;
    /// First serial port; the third shares it.
    pub const COM1: u32 = 4;
    /// Second serial port; the fourth shares it.
    pub const COM2: u32 = 3;
    /// Floating-point errors.
    pub const FPU: u32 = 13;
    /// Real-time clock.
    pub const RTC: u32 = 8;
    /// Floppy disk controller.
    pub const FLOPPY: u32 = 6;
    /// ACPI's system control interrupt.
    pub const SCI: u32 = 9;
    /// i8042, mouse.
    pub const MOUSE: u32 = 12;
}

/// Saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IrqRouterState {
    /// Levels that devices drive on their own ISA lines, a bit a line.
    isa: u16,
    /// Levels of PIRQA to PIRQD.
    pirqs: [bool; PIRQS],
}

impl State for IrqRouterState {
    const NAME: &'static str = "irq-router";
    const VERSION: u32 = 1;
}

/// Levels, and where PIRQs go.
#[derive(Default)]
struct Wiring {
    state: IrqRouterState,
    /// The ISA line of each PIRQ. Belongs to the PIIX3, which sets it again when it is reset or
    /// restored, so it is not part of the router's own state.
    routes: [Option<u8>; PIRQS],
}

impl Wiring {
    fn line_level(&self, line: u32) -> bool {
        let pirq = |i: usize| self.state.pirqs[i] && self.routes[i].map(u32::from) == Some(line);
        self.state.isa & 1 << line != 0 || (0..PIRQS).any(pirq)
    }
}

/// The wiring. Its inputs as an [`IrqSink`] are the 16 ISA lines.
pub struct IrqRouter {
    pic: Arc<dyn IrqSink>,
    ioapic: Arc<dyn IrqSink>,
    wiring: Mutex<Wiring>,
}

impl IrqRouter {
    /// Wiring that ends at `pic` (16 inputs) and `ioapic` (24 inputs).
    pub fn new(pic: Arc<dyn IrqSink>, ioapic: Arc<dyn IrqSink>) -> Arc<Self> {
        Arc::new(Self { pic, ioapic, wiring: Mutex::default() })
    }

    /// A device's wire on ISA line `line`.
    pub fn isa_line(self: &Arc<Self>, line: u32) -> IrqLine {
        IrqLine::new(self.clone(), line)
    }

    /// Inputs PIRQA to PIRQD, where a PCI bus's interrupts end.
    pub fn pirq_lines(self: &Arc<Self>) -> [IrqLine; PIRQS] {
        let sink = Arc::new(PirqInputs { router: self.clone() });
        [0, 1, 2, 3].map(|pirq| IrqLine::new(sink.clone(), pirq))
    }

    /// Routes a PIRQ to an ISA line, or nowhere.
    pub fn set_route(&self, pirq: usize, line: Option<u8>) {
        let mut wiring = lock(&self.wiring);
        let line = line.filter(|&line| u32::from(line) < ISA_LINES);
        let old = std::mem::replace(&mut wiring.routes[pirq % PIRQS], line);
        for line in [old, line].into_iter().flatten() {
            self.drive(&wiring, line.into());
        }
    }

    /// Puts the line's level on the wires.
    fn drive(&self, wiring: &Wiring, line: u32) {
        let level = wiring.line_level(line);
        self.pic.set_level(line, level);
        match line {
            // The 8259s' cascade takes the place of line 2, so only the HPET can be on it.
            line::TIMER | line::HPET => {
                let timer = wiring.line_level(line::TIMER);
                self.ioapic.set_level(line::HPET, timer || wiring.line_level(line::HPET));
            }
            _ => self.ioapic.set_level(line, level),
        }
    }
}

impl IrqSink for IrqRouter {
    fn set_level(&self, pin: u32, level: bool) {
        if pin >= ISA_LINES {
            return;
        }
        let mut wiring = lock(&self.wiring);
        let bit = 1 << pin;
        let isa = &mut wiring.state.isa;
        *isa = if level { *isa | bit } else { *isa & !bit };
        self.drive(&wiring, pin);
    }
}

/// The PCI side of an [`IrqRouter`].
struct PirqInputs {
    router: Arc<IrqRouter>,
}

impl IrqSink for PirqInputs {
    fn set_level(&self, pin: u32, level: bool) {
        let pirq = pin as usize % PIRQS;
        let mut wiring = lock(&self.router.wiring);
        wiring.state.pirqs[pirq] = level;
        if let Some(line) = wiring.routes[pirq] {
            self.router.drive(&wiring, line.into());
        }
    }
}

impl Device for IrqRouter {
    fn id(&self) -> String {
        "irq-router".into()
    }

    fn reset(&self) {
        let mut wiring = lock(&self.wiring);
        wiring.state = IrqRouterState::default();
        for line in 0..ISA_LINES {
            self.drive(&wiring, line);
        }
    }

    fn save(&self) -> Saved {
        Saved::new(&lock(&self.wiring).state)
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: IrqRouterState = saved.decode()?;
        let mut wiring = lock(&self.wiring);
        wiring.state = restored;
        for line in 0..ISA_LINES {
            self.drive(&wiring, line);
        }
        Ok(())
    }
}
