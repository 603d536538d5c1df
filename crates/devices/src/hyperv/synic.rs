//! What one virtual processor has: its synthetic interrupt controller, its timers and its assist page (Top
//! Level Functional Specification, "SynIC MSRs", "Synthetic Timer MSRs", "Local APIC MSR Accesses").
//!
//! The controller is an extension of the local APIC, by which its interrupts go. A message is put into the
//! slot of its source in the message page when the guest has emptied the slot; until then it waits, and a
//! flag in the slot tells the guest so. Messages are those of timers, each of which has room for one, and those
//! that a device brings here ([`super::HyperV::deliver`]), which wait in the order in which they came.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bus::{Timer, TimerQueue};
use serde::{Deserialize, Serialize};

use super::overlay::Overlay;
use super::register as reg;
use super::timer::SyntheticTimer;
use super::{Reference, page_of};
use crate::lapic::LocalApic;
use crate::lock;

/// Sources of interrupts.
pub(super) const SOURCES: usize = 16;
/// Bytes of a source's event flags.
const EVENT_BYTES: u64 = 256;
/// Timers.
const TIMERS: usize = 4;
/// SCONTROL: messages are delivered.
const ENABLED: u64 = 1 << 0;
/// SINT: no interrupt.
const MASKED: u64 = 1 << 16;
/// SINT: the interrupt ends as it is taken.
const AUTO_EOI: u64 = 1 << 17;
/// SINT: the guest looks by itself, so no interrupt either.
const POLLING: u64 = 1 << 18;
/// The least vector of an interrupt.
const FIRST_VECTOR: u64 = 16;
/// SVERSION.
const VERSION: u64 = 1;

/// A slot of the message page, and where in it what is.
mod message {
    pub(super) const SIZE: u64 = 256;
    /// Type; 0 in a slot that is empty.
    pub(super) const TYPE: u64 = 0;
    /// Flags, of which the first says that others wait.
    pub(super) const FLAGS: u64 = 5;
    pub(super) const PENDING: u8 = 1;
    /// HvMessageTimerExpired.
    pub(super) const TIMER_EXPIRED: u32 = 0x8000_0010;
}

/// A message from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its type, never 0.
    pub kind: u32,
    /// Who it comes from.
    pub origin: u64,
    /// At most [`Message::LONGEST`] bytes.
    pub payload: Vec<u8>,
}

impl Message {
    /// The most bytes of a payload.
    pub const LONGEST: usize = 240;

    fn validate(&self) -> Result<(), String> {
        if self.kind == 0 || self.payload.len() > Self::LONGEST {
            return Err(format!("a message of type 0, or of {} bytes", self.payload.len()));
        }
        Ok(())
    }
}

/// Registers of a virtual processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    control: u64,
    events: u64,
    messages: u64,
    sources: [u64; SOURCES],
    assist: u64,
    timers: [SyntheticTimer; TIMERS],
    /// Messages from elsewhere that wait, and their sources.
    waiting: Vec<(u8, Message)>,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            control: 0,
            events: 0,
            messages: 0,
            sources: [MASKED; SOURCES],
            assist: 0,
            timers: Default::default(),
            waiting: Vec::new(),
        }
    }
}

impl Registers {
    pub(super) fn validate(&self) -> Result<(), String> {
        if let Some(source) = self.sources.iter().find(|&&source| !is_source(source)) {
            return Err(format!("a synthetic interrupt source holds {source:#x}"));
        }
        if self.waiting.iter().any(|&(source, _)| usize::from(source) >= SOURCES) {
            return Err("a message waits for a source that there is not".into());
        }
        self.waiting.iter().try_for_each(|(_, message)| message.validate())?;
        self.timers.iter().try_for_each(SyntheticTimer::validate)
    }

    /// Whether messages are delivered.
    fn takes_messages(&self) -> bool {
        self.control & ENABLED != 0 && page_of(self.messages).is_some()
    }

    /// Vectors of the sources whose interrupts end by themselves.
    fn self_ending(&self) -> impl Iterator<Item = u8> {
        let ending = |&&source: &&u64| source & (MASKED | AUTO_EOI) == AUTO_EOI;
        self.sources.iter().filter(ending).map(|&source| source as u8)
    }
}

/// Whether a source's register can hold `value`. A source that is masked need not have a vector: that is
/// how it is after a reset.
fn is_source(value: u64) -> bool {
    value & 0xff >= FIRST_VECTOR || value & MASKED != 0
}

/// One virtual processor.
pub(super) struct Processor {
    apic: Arc<LocalApic>,
    reference: Reference,
    /// Direct mode of timers is there.
    direct: bool,
    timer: Timer,
    events: Arc<Overlay>,
    messages: Arc<Overlay>,
    assist: Arc<Overlay>,
    registers: Mutex<Registers>,
}

impl Processor {
    pub(super) fn new(
        apic: &Arc<LocalApic>,
        reference: &Reference,
        direct: bool,
        timers: &TimerQueue,
        [events, messages, assist]: [Arc<Overlay>; 3],
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = timers.timer(move || {
                if let Some(processor) = this.upgrade() {
                    processor.look(&mut processor.registers());
                }
            });
            Self {
                apic: Arc::clone(apic),
                reference: reference.clone(),
                direct,
                timer,
                events,
                messages,
                assist,
                registers: Mutex::default(),
            }
        })
    }

    pub(super) fn apic(&self) -> &Arc<LocalApic> {
        &self.apic
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    pub(super) fn read(&self, register: u32) -> Option<u64> {
        let registers = self.registers();
        Some(match register {
            reg::EOI => return None,
            reg::ICR => self.apic.interrupt_command(),
            reg::TPR => self.apic.task_priority_register().into(),
            reg::VP_ASSIST_PAGE => registers.assist,
            reg::SCONTROL => registers.control,
            reg::SVERSION => VERSION,
            reg::SIEFP => registers.events,
            reg::SIMP => registers.messages,
            reg::EOM => 0,
            reg::SINT0..=reg::SINT15 => registers.sources[(register - reg::SINT0) as usize],
            reg::STIMER0_CONFIG..=reg::STIMER3_COUNT => {
                let n = register - reg::STIMER0_CONFIG;
                let timer = &registers.timers[n as usize / 2];
                if n.is_multiple_of(2) { timer.config() } else { timer.count() }
            }
            _ => return None,
        })
    }

    /// Writes a register; false if there is none or it can't have this value.
    pub(super) fn write(&self, register: u32, value: u64) -> bool {
        match register {
            // The APIC tells of ends of interrupts, which has the registers looked at.
            reg::EOI => {
                let valid = value >> 32 == 0;
                if valid {
                    self.apic.end_interrupt();
                }
                return valid;
            }
            reg::ICR => {
                self.apic.command_interrupt(value);
                return true;
            }
            reg::TPR => {
                let Ok(priority) = u8::try_from(value) else { return false };
                self.apic.set_task_priority_register(priority);
                return true;
            }
            _ => {}
        }
        let mut registers = self.registers();
        match register {
            reg::VP_ASSIST_PAGE => {
                registers.assist = value;
                self.assist.place(page_of(value));
                let flag = page_of(value).map(|_| Arc::clone(&self.assist) as _);
                self.apic.set_end_flag(flag);
            }
            reg::SCONTROL => registers.control = value,
            reg::SIEFP => {
                registers.events = value;
                self.events.place(page_of(value));
            }
            reg::SIMP => {
                registers.messages = value;
                self.messages.place(page_of(value));
            }
            reg::EOM => {}
            reg::SINT0..=reg::SINT15 if is_source(value) => {
                registers.sources[(register - reg::SINT0) as usize] = value;
                self.apic.set_ends_itself(registers.self_ending());
            }
            reg::STIMER0_CONFIG..=reg::STIMER3_COUNT => {
                let n = register - reg::STIMER0_CONFIG;
                let now = self.reference.now();
                let timer = &mut registers.timers[n as usize / 2];
                if n.is_multiple_of(2) {
                    timer.set_config(value, self.direct, now);
                } else {
                    timer.set_count(value, now);
                }
            }
            _ => return false,
        }
        self.look(&mut registers);
        true
    }

    /// Has everything done whose time has come, and delivers what waits and can be.
    pub(super) fn catch_up(&self) {
        self.look(&mut self.registers());
    }

    fn look(&self, registers: &mut Registers) {
        let now = self.reference.now();
        for timer in &mut registers.timers {
            let Some(expired) = timer.take_expired(now) else { continue };
            match timer.vector() {
                Some(vector) => self.apic.request(vector),
                // A message that waits tells of the first time.
                None => {
                    timer.message.get_or_insert(expired);
                }
            }
        }
        self.deliver(registers, now);
        self.deliver_waiting(registers);
        match registers.timers.iter().filter_map(SyntheticTimer::deadline).min() {
            Some(deadline) => self.timer.arm(self.reference.host_time(deadline)),
            None => self.timer.disarm(),
        }
    }

    /// Takes a message from elsewhere; false if one of the same origin waits already.
    pub(super) fn post(&self, source: u8, message: Message) -> bool {
        let mut registers = self.registers();
        let mut waiting = registers.waiting.iter();
        if waiting.any(|(other, earlier)| (*other, earlier.origin) == (source, message.origin)) {
            return false;
        }
        registers.waiting.push((source, message));
        self.look(&mut registers);
        true
    }

    /// Sets an event flag of a source, which interrupts unless the flag was set.
    pub(super) fn set_event(&self, source: u8, flag: u16) {
        let registers = self.registers();
        if registers.control & ENABLED == 0 || page_of(registers.events).is_none() {
            return;
        }
        let at = u64::from(source) * EVENT_BYTES + u64::from(flag / 8);
        if !self.events.set_bit(at, u32::from(flag % 8)) {
            self.interrupt(&registers, source.into());
        }
    }

    /// Has a source interrupt.
    pub(super) fn assert(&self, source: u8) {
        self.interrupt(&self.registers(), source.into());
    }

    fn interrupt(&self, registers: &Registers, source: usize) {
        let interrupt = registers.sources[source];
        if interrupt & (MASKED | POLLING) == 0 {
            self.apic.request(interrupt as u8);
        }
    }

    /// Delivers messages from elsewhere, those to a source in their order.
    fn deliver_waiting(&self, registers: &mut Registers) {
        if !registers.takes_messages() {
            return;
        }
        let mut full = 0u16;
        for (source, message) in std::mem::take(&mut registers.waiting) {
            let bit = 1 << source;
            if full & bit == 0 && self.put(source.into(), false, &message) {
                self.interrupt(registers, source.into());
            } else {
                full |= bit;
                registers.waiting.push((source, message));
            }
        }
    }

    /// Delivers the messages of timers that wait, first those that have waited longest.
    fn deliver(&self, registers: &mut Registers, now: u64) {
        let open = registers.takes_messages();
        loop {
            let waiting = registers.timers.iter().enumerate();
            let mut waiting: Vec<_> = waiting
                .filter_map(|(n, timer)| Some((timer.message?, n, timer.source())))
                .collect();
            waiting.sort_unstable();
            let mut progress = false;
            for (i, &(expired, n, source)) in waiting.iter().enumerate() {
                if !open || waiting[..i].iter().any(|&(.., earlier)| earlier == source) {
                    continue;
                }
                let others = waiting[i + 1..].iter().any(|&(.., later)| later == source);
                if self.put(source, others, &timer_message(n, expired, now)) {
                    registers.timers[n].message = None;
                    progress = true;
                    self.interrupt(registers, source);
                }
            }
            if !progress {
                return;
            }
        }
    }

    /// Puts a message into the slot of `source`; false if that is not empty, which it then knows that a
    /// message waits for.
    fn put(&self, source: usize, others: bool, message: &Message) -> bool {
        let slot = source as u64 * message::SIZE;
        let is_empty = || u32::from_le_bytes(self.messages.read(slot + message::TYPE)) == 0;
        if !is_empty() {
            let [flags] = self.messages.read(slot + message::FLAGS);
            self.messages.write(slot + message::FLAGS, &[flags | message::PENDING]);
            // Who empties the slot first and then looks at the flag sees it, or is seen here.
            fence(Ordering::SeqCst);
            if !is_empty() {
                return false;
            }
        }
        let flags = if others { message::PENDING } else { 0 };
        let mut rest = vec![message.payload.len() as u8, flags, 0, 0];
        rest.extend(message.origin.to_le_bytes());
        rest.extend(&message.payload);
        self.messages.write(slot + 4, &rest);
        fence(Ordering::SeqCst);
        self.messages.write(slot + message::TYPE, &message.kind.to_le_bytes());
        true
    }

    pub(super) fn reset(&self) {
        let mut registers = self.registers();
        *registers = Registers::default();
        self.timer.disarm();
        for page in self.pages() {
            page.place(None);
            page.fill(&[]);
        }
        self.apic.set_ends_itself([]);
        self.apic.restore_end_flag(None);
    }

    /// Its pages, in the order in which their contents are saved.
    pub(super) fn pages(&self) -> [&Arc<Overlay>; 3] {
        [&self.events, &self.messages, &self.assist]
    }

    pub(super) fn save(&self) -> Registers {
        self.registers().clone()
    }

    /// Takes up saved registers; the pages have their contents.
    pub(super) fn restore(&self, saved: Registers) {
        let mut registers = self.registers();
        *registers = saved;
        let places = [registers.events, registers.messages, registers.assist];
        for (page, register) in self.pages().into_iter().zip(places) {
            page.place(page_of(register));
        }
        self.apic.set_ends_itself(registers.self_ending());
        if page_of(registers.assist).is_some() {
            self.apic.restore_end_flag(Some(Arc::clone(&self.assist) as _));
        }
        match registers.timers.iter().filter_map(SyntheticTimer::deadline).min() {
            Some(deadline) => self.timer.arm(self.reference.host_time(deadline)),
            None => self.timer.disarm(),
        }
    }
}

/// What a timer's message says: which timer, when it expired, and when that was told.
fn timer_message(timer: usize, expired: u64, now: u64) -> Message {
    let words = [timer as u64, expired, now];
    let payload = words.into_iter().flat_map(u64::to_le_bytes).collect();
    Message { kind: message::TIMER_EXPIRED, origin: 0, payload }
}
