//! Messages between APICs.

use std::sync::{Arc, OnceLock, Weak};

use accel::{GuestClock, Signals};
use bus::{MsiMessage, MsiSink, TimerQueue};

use super::LocalApic;

/// What an interrupt message makes the receiver do (Intel SDM, volume 3A, 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector is requested.
    Fixed,
    /// The vector is requested from the one of the addressed CPUs with the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI.
    Startup,
    /// The 8259 gives the vector.
    ExtInt,
}

impl DeliveryMode {
    /// By the three bits of its encoding; `None` for the reserved one.
    pub fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }

    /// The encoding at its place in bits 8 to 10.
    pub(super) fn bits(self) -> u32 {
        let code = match self {
            Self::Fixed => 0,
            Self::LowestPriority => 1,
            Self::Smi => 2,
            Self::Nmi => 4,
            Self::Init => 5,
            Self::Startup => 6,
            Self::ExtInt => 7,
        };
        code << 8
    }
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// An APIC id or a logical destination.
    pub id: u32,
    /// Whether `id` is a logical destination.
    pub logical: bool,
    /// Whether `id` has 32 bits, as in x2APIC mode, instead of 8.
    pub wide: bool,
}

/// Shorthands of the interrupt command register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shorthand {
    /// The destination counts.
    #[default]
    None,
    /// The sender.
    Myself,
    /// All CPUs.
    All,
    /// All but the sender.
    Others,
}

impl Shorthand {
    pub(super) fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::None,
            1 => Self::Myself,
            2 => Self::All,
            _ => Self::Others,
        }
    }
}

/// An interrupt message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whom it is for, if the shorthand does not say.
    pub destination: Destination,
    /// Whom it is for.
    pub shorthand: Shorthand,
    /// What it does.
    pub mode: DeliveryMode,
    /// The vector; for a start-up IPI the page to start at.
    pub vector: u8,
    /// Whether the receiver tells the I/O APIC about the end of this interrupt.
    pub level: bool,
}

impl Message {
    /// An edge-triggered message of mode fixed.
    pub fn fixed(destination: Destination, vector: u8) -> Self {
        Self {
            destination,
            shorthand: Shorthand::None,
            mode: DeliveryMode::Fixed,
            vector,
            level: false,
        }
    }
}

/// Hears of the ends of level-triggered interrupts: the I/O APIC.
pub trait EndOfInterrupt: Send + Sync {
    /// A CPU is done with `vector`.
    fn end_of_interrupt(&self, vector: u8);
}

/// All local APICs of a machine.
pub struct ApicBus {
    apics: Vec<Arc<LocalApic>>,
    ends: OnceLock<Weak<dyn EndOfInterrupt>>,
}

impl ApicBus {
    /// One local APIC for each CPU, with this id and these signals. The one with id 0 is the bootstrap
    /// processor's.
    pub fn new(
        cpus: impl IntoIterator<Item = (u32, Arc<Signals>)>,
        clock: &Arc<dyn GuestClock>,
        timers: &TimerQueue,
    ) -> Arc<Self> {
        Arc::new_cyclic(|bus: &Weak<Self>| {
            let apic =
                |(id, signals)| LocalApic::new(id, signals, Arc::clone(clock), timers, bus.clone());
            let apics = cpus.into_iter().map(apic).collect();
            Self { apics, ends: OnceLock::new() }
        })
    }

    /// Says who hears of ends of interrupts. Only the first call counts: the wiring is fixed.
    pub fn connect_end_of_interrupt(&self, sink: Weak<dyn EndOfInterrupt>) {
        let _ = self.ends.set(sink);
    }

    /// The APICs in the order of their CPUs.
    pub fn apics(&self) -> &[Arc<LocalApic>] {
        &self.apics
    }

    pub(super) fn end_of_interrupt(&self, vector: u8) {
        if let Some(sink) = self.ends.get().and_then(Weak::upgrade) {
            sink.end_of_interrupt(vector);
        }
    }

    /// Delivers a message that comes from outside of the CPUs; tells whether anyone took it.
    pub fn deliver(&self, message: Message) -> bool {
        self.deliver_from(u32::MAX, message)
    }

    /// Delivers a message of the APIC with index `sender`.
    pub(super) fn deliver_from(&self, sender: u32, message: Message) -> bool {
        let Message { destination, shorthand, mode, vector, level } = message;
        let is_meant = |apic: &LocalApic| match shorthand {
            Shorthand::None => apic.matches(destination),
            Shorthand::Myself => apic.index == sender,
            Shorthand::All => true,
            Shorthand::Others => apic.index != sender,
        };
        if mode == DeliveryMode::LowestPriority {
            let meant = self.apics.iter().filter(|apic| is_meant(apic));
            let ranked = meant.filter_map(|apic| Some((apic.arbitration_priority()?, apic)));
            return ranked
                .min_by_key(|(priority, _)| *priority)
                .is_some_and(|(_, apic)| apic.accept(mode, vector, level));
        }
        let mut taken = false;
        for apic in self.apics.iter().filter(|apic| is_meant(apic)) {
            taken |= apic.accept(mode, vector, level);
        }
        taken
    }
}

impl MsiSink for ApicBus {
    /// Takes a message apart (Intel SDM, volume 3A, 11.11). Writes outside of FEEx_xxxxh are not
    /// interrupts.
    fn send(&self, message: MsiMessage) {
        let MsiMessage { address, data } = message;
        if address >> 20 != 0xfee {
            return;
        }
        let destination = Destination {
            id: (address >> 12) as u32 & 0xff,
            logical: address & 1 << 2 != 0,
            wide: false,
        };
        let level = data & 1 << 15 != 0;
        let asserted = data & 1 << 14 != 0;
        let Some(mode) = DeliveryMode::from_bits(data >> 8) else { return };
        if level && !asserted || mode == DeliveryMode::Startup {
            return;
        }
        self.deliver(Message {
            destination,
            shorthand: Shorthand::None,
            mode,
            vector: data as u8,
            level,
        });
    }
}
