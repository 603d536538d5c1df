//! What the board does for guests that are offered Hyper-V's interface (Microsoft's "Hypervisor Top Level
//! Functional Specification", by the names of its chapters): registers that all virtual processors share,
//! their synthetic interrupt controllers and timers, and the pages that lie over guest memory.
//!
//! Which registers a guest may use, and its calls, are the CPU's (`cpu-x86::hyperv`); what is here has all of
//! them. There are no other partitions and no devices on a VMBus, so no message or event comes from anywhere
//! but timers and the guest itself, whose connections a test device makes ([`HyperV::connect`]).
//!
//! - `overlay`: pages over guest memory.
//! - `synic`: what each virtual processor has.
//! - `timer`: one synthetic timer.
//!
//! Invariant: the hypercall page is seen exactly while HYPERCALL has it enabled, which it can only be while
//! the guest has told who it is.

mod overlay;
mod synic;
#[cfg(test)]
mod tests;
mod timer;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use accel::{GuestClock, Partition, Posted};
use bus::{Device, MachineControl, Notice, ShutdownCause, TimerQueue};
use memory::map::Access;
use memory::{GuestMemory, MemoryError, PAGE_SIZE};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::lapic::{ApicBus, Ends};
use crate::lock;
use overlay::Overlay;
pub use synic::Message;
use synic::{Processor, Registers};

/// Register numbers ("Synthetic MSRs").
#[allow(missing_docs)]
pub mod register {
    pub const GUEST_OS_ID: u32 = 0x4000_0000;
    pub const HYPERCALL: u32 = 0x4000_0001;
    pub const VP_INDEX: u32 = 0x4000_0002;
    pub const RESET: u32 = 0x4000_0003;
    pub const TIME_REF_COUNT: u32 = 0x4000_0020;
    pub const REFERENCE_TSC: u32 = 0x4000_0021;
    pub const TSC_FREQUENCY: u32 = 0x4000_0022;
    pub const APIC_FREQUENCY: u32 = 0x4000_0023;
    pub const EOI: u32 = 0x4000_0070;
    pub const ICR: u32 = 0x4000_0071;
    pub const TPR: u32 = 0x4000_0072;
    pub const VP_ASSIST_PAGE: u32 = 0x4000_0073;
    pub const SCONTROL: u32 = 0x4000_0080;
    pub const SVERSION: u32 = 0x4000_0081;
    pub const SIEFP: u32 = 0x4000_0082;
    pub const SIMP: u32 = 0x4000_0083;
    pub const EOM: u32 = 0x4000_0084;
    pub const SINT0: u32 = 0x4000_0090;
    pub const SINT15: u32 = 0x4000_009f;
    pub const STIMER0_CONFIG: u32 = 0x4000_00b0;
    pub const STIMER3_COUNT: u32 = 0x4000_00b7;
    pub const CRASH_P0: u32 = 0x4000_0100;
    pub const CRASH_P4: u32 = 0x4000_0104;
    pub const CRASH_CTL: u32 = 0x4000_0105;
}

/// Registers that hold a page's address: the page is there.
const PAGE_ENABLED: u64 = 1 << 0;
/// HYPERCALL: it keeps what it has until a reset.
const LOCKED: u64 = 1 << 1;
/// RESET: do it.
const RESET_NOW: u64 = 1 << 0;
/// CRASH_CTL: the parameters are complete.
const CRASH_NOTIFY: u64 = 1 << 63;
/// Ticks of a local APIC's timer per second.
const APIC_HZ: u64 = 1_000_000_000;
/// Units of the reference counter per second.
const REFERENCE_HZ: u64 = 10_000_000;
/// Nanoseconds of such a unit.
const REFERENCE_NS: u64 = 100;

/// Where a register that holds a page's address has the page.
fn page_of(register: u64) -> Option<u64> {
    (register & PAGE_ENABLED != 0).then_some(register & !(PAGE_SIZE - 1))
}

/// The partition's reference counter, which counts units of 100 ns since the machine was made. It goes by
/// the formula by which guests compute it from the time-stamp counter, so that both ways agree.
#[derive(Clone)]
struct Reference(Arc<dyn GuestClock>);

impl Reference {
    /// What a tick of the time-stamp counter is, in 2^-64 units.
    fn scale(&self) -> u64 {
        let scale = (u128::from(REFERENCE_HZ) << 64) / u128::from(self.0.tsc_hz().max(1));
        u64::try_from(scale).unwrap_or(u64::MAX)
    }

    fn now(&self) -> u64 {
        ((u128::from(self.0.tsc()) * u128::from(self.scale())) >> 64) as u64
    }

    /// Guest time in nanoseconds at which the counter has come to `count`.
    fn host_time(&self, count: u64) -> u64 {
        let left = count.saturating_sub(self.now()).saturating_mul(REFERENCE_NS);
        self.0.now_ns().saturating_add(left)
    }
}

/// How the interface is on a machine.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The CPUs have Intel's instruction to call a hypervisor, not AMD's.
    pub intel: bool,
    /// Synthetic timers can assert interrupts of the local APIC directly.
    pub direct_timers: bool,
    /// Width of physical addresses.
    pub phys_bits: u32,
}

/// Registers that all virtual processors share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Shared {
    guest_os_id: u64,
    hypercall: u64,
    reference_tsc: u64,
    crash: [u64; 5],
    /// Number of the reference page's last contents.
    sequence: u32,
    /// The page tells how to read the time: the time-stamp counters allow it.
    stable: bool,
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HyperVState {
    shared: Shared,
    processors: Vec<Registers>,
    /// The pages of each processor in turn, unless they are all zeroes.
    pages: Vec<Option<Vec<u8>>>,
}

impl State for HyperVState {
    const NAME: &'static str = "hyperv";
    const VERSION: u32 = 2;

    fn validate(&self) -> Result<(), String> {
        let Shared { hypercall, guest_os_id, .. } = self.shared;
        if hypercall & PAGE_ENABLED != 0 && guest_os_id == 0 {
            return Err("a hypercall page for a guest that has not said what it is".into());
        }
        let whole = |page: &Option<Vec<u8>>| {
            page.as_ref().is_none_or(|bytes| bytes.len() as u64 == PAGE_SIZE)
        };
        if self.pages.len() != 3 * self.processors.len() || !self.pages.iter().all(whole) {
            return Err("pages of another machine".into());
        }
        self.processors.iter().try_for_each(Registers::validate)
    }
}

/// Where the connections lead by which a guest posts messages and signals events.
pub trait Connections: Send + Sync {
    /// As [`Partition::post_message`].
    fn post_message(&self, connection: u32, kind: u32, payload: &[u8]) -> Posted;
    /// As [`Partition::signal_event`].
    fn signal_event(&self, connection: u32) -> bool;
}

/// A machine as Hyper-V's partition.
pub struct HyperV {
    options: Options,
    reference: Reference,
    control: Arc<dyn MachineControl>,
    hypercall: Arc<Overlay>,
    reference_page: Arc<Overlay>,
    processors: Vec<Arc<Processor>>,
    shared: Mutex<Shared>,
    connections: OnceLock<Weak<dyn Connections>>,
}

impl HyperV {
    /// A partition with a virtual processor for each of `apics`.
    ///
    /// # Errors
    /// If the host has no memory for its pages.
    pub fn new(
        options: Options,
        memory: &Arc<GuestMemory>,
        apics: &ApicBus,
        clock: &Arc<dyn GuestClock>,
        timers: &TimerQueue,
        control: Arc<dyn MachineControl>,
    ) -> Result<Arc<Self>, MemoryError> {
        let reference = Reference(Arc::clone(clock));
        let apics = apics.apics();
        let mut access = vec![Access::ROM; 2];
        access.resize(2 + 3 * apics.len(), Access::RAM);
        let mut pages = Overlay::pages(memory, &access)?.into_iter();
        let mut next = || pages.next().ok_or_else(|| no_page(memory));
        let (hypercall, reference_page) = (next()?, next()?);
        let mut processors = Vec::with_capacity(apics.len());
        for apic in apics {
            let pages = [next()?, next()?, next()?];
            let direct = options.direct_timers;
            processors.push(Processor::new(apic, &reference, direct, timers, pages));
        }
        // VMCALL or VMMCALL, and RET.
        hypercall.fill(&[0x0f, 0x01, if options.intel { 0xc1 } else { 0xd9 }, 0xc3]);
        let partition = Arc::new(Self {
            options,
            reference,
            control,
            hypercall,
            reference_page,
            processors,
            shared: Mutex::new(Shared { stable: true, ..Shared::default() }),
            connections: OnceLock::new(),
        });
        for (index, apic) in apics.iter().enumerate() {
            let ends: Arc<dyn Ends> = partition.clone();
            let ends: Weak<dyn Ends> = Arc::downgrade(&ends);
            apic.connect_ends(index, ends);
        }
        Ok(partition)
    }

    /// Has guests' connections lead to `connections`, unless they lead elsewhere already: then false.
    pub fn connect(&self, connections: Weak<dyn Connections>) -> bool {
        self.connections.set(connections).is_ok()
    }

    fn connections(&self) -> Option<Arc<dyn Connections>> {
        self.connections.get().and_then(Weak::upgrade)
    }

    /// Whether there is a source of interrupts `source` of `processor`.
    pub fn has_source(&self, processor: u8, source: u8) -> bool {
        usize::from(processor) < self.processors.len() && usize::from(source) < synic::SOURCES
    }

    /// A message for a source that there is; false if one of the same origin waits there already.
    pub fn deliver(&self, processor: u8, source: u8, message: Message) -> bool {
        self.processors[usize::from(processor)].post(source, message)
    }

    /// Sets event flag `flag`, below 2048, of a source that there is.
    pub fn set_event(&self, processor: u8, source: u8, flag: u16) {
        self.processors[usize::from(processor)].set_event(source, flag);
    }

    /// Has a source that there is interrupt.
    pub fn assert(&self, processor: u8, source: u8) {
        self.processors[usize::from(processor)].assert(source);
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    fn set_guest_os_id(&self, value: u64) {
        let mut shared = self.shared();
        shared.guest_os_id = value;
        if value == 0 {
            shared.hypercall &= !PAGE_ENABLED;
        }
        self.hypercall.place(page_of(shared.hypercall));
    }

    fn set_hypercall(&self, value: u64) -> bool {
        let mut shared = self.shared();
        if shared.hypercall & LOCKED != 0 {
            return true;
        }
        if value >> self.options.phys_bits != 0 {
            return false;
        }
        let enabled = if shared.guest_os_id == 0 { 0 } else { PAGE_ENABLED };
        shared.hypercall = value & (!PAGE_ENABLED | enabled);
        self.hypercall.place(page_of(shared.hypercall));
        true
    }

    /// Writes how to make the time from the time-stamp counter, or that it can't be.
    fn publish(&self, shared: &mut Shared) {
        if page_of(shared.reference_tsc).is_none() {
            return;
        }
        // Zero, and of old all ones, say that the counter is no use.
        shared.sequence = if shared.sequence >= u32::MAX - 1 { 1 } else { shared.sequence + 1 };
        self.show(shared);
    }

    /// Puts the numbers into the reference page.
    fn show(&self, shared: &Shared) {
        let sequence = if shared.stable { shared.sequence } else { 0 };
        self.reference_page.write(0, &0u32.to_le_bytes());
        self.reference_page.write(8, &self.reference.scale().to_le_bytes());
        self.reference_page.write(16, &0u64.to_le_bytes());
        self.reference_page.write(0, &sequence.to_le_bytes());
    }

    fn set_reference_tsc(&self, value: u64) {
        let mut shared = self.shared();
        shared.reference_tsc = value;
        self.publish(&mut shared);
        self.reference_page.place(page_of(value));
    }

    fn set_crash_control(&self, value: u64) {
        if value & CRASH_NOTIFY != 0 {
            let parameters = self.shared().crash;
            self.control.notify(Notice::HyperVCrash(parameters));
        }
    }
}

fn no_page(memory: &GuestMemory) -> MemoryError {
    MemoryError::Create { bytes: memory.size(), reason: "too few pages for Hyper-V".into() }
}

impl Partition for HyperV {
    fn processors(&self) -> u32 {
        self.processors.len() as u32
    }

    fn read_register(&self, processor: u32, register: u32) -> Option<u64> {
        let shared = self.shared();
        Some(match register {
            register::GUEST_OS_ID => shared.guest_os_id,
            register::HYPERCALL => shared.hypercall,
            register::VP_INDEX => processor.into(),
            register::RESET => 0,
            register::TIME_REF_COUNT => self.reference.now(),
            register::REFERENCE_TSC => shared.reference_tsc,
            register::TSC_FREQUENCY => self.reference.0.tsc_hz(),
            register::APIC_FREQUENCY => APIC_HZ,
            register::CRASH_P0..=register::CRASH_P4 => {
                shared.crash[(register - register::CRASH_P0) as usize]
            }
            // What can be done.
            register::CRASH_CTL => CRASH_NOTIFY,
            _ => {
                drop(shared);
                return self.processors.get(processor as usize)?.read(register);
            }
        })
    }

    fn write_register(&self, processor: u32, register: u32, value: u64) -> bool {
        match register {
            register::GUEST_OS_ID => self.set_guest_os_id(value),
            register::HYPERCALL => return self.set_hypercall(value),
            register::RESET => {
                if value & RESET_NOW != 0 {
                    self.control.request_reset(ShutdownCause::GuestReset);
                }
            }
            register::REFERENCE_TSC => self.set_reference_tsc(value),
            register::CRASH_P0..=register::CRASH_P4 => {
                self.shared().crash[(register - register::CRASH_P0) as usize] = value;
            }
            register::CRASH_CTL => self.set_crash_control(value),
            register::VP_INDEX
            | register::TIME_REF_COUNT
            | register::TSC_FREQUENCY
            | register::APIC_FREQUENCY => return false,
            _ => {
                let processor = self.processors.get(processor as usize);
                return processor.is_some_and(|processor| processor.write(register, value));
            }
        }
        true
    }

    fn takes_calls(&self) -> bool {
        self.shared().guest_os_id != 0
    }

    fn interrupt(&self, processor: u32, vector: u8) {
        if let Some(processor) = self.processors.get(processor as usize) {
            processor.apic().request(vector);
        }
    }

    fn counters_agree(&self, agree: bool) {
        let mut shared = self.shared();
        if shared.stable != agree {
            shared.stable = agree;
            self.publish(&mut shared);
        }
    }

    fn post_message(&self, connection: u32, kind: u32, payload: &[u8]) -> Posted {
        self.connections().map_or(Posted::Unconnected, |connections| {
            connections.post_message(connection, kind, payload)
        })
    }

    fn signal_event(&self, connection: u32) -> bool {
        self.connections().is_some_and(|connections| connections.signal_event(connection))
    }

    fn is_protected(&self, address: u64) -> bool {
        self.hypercall.holds(address)
    }
}

impl Ends for HyperV {
    fn interrupt_ended(&self, index: usize) {
        if let Some(processor) = self.processors.get(index) {
            processor.catch_up();
        }
    }
}

impl Device for HyperV {
    fn id(&self) -> String {
        "hyperv".into()
    }

    fn reset(&self) {
        let mut shared = self.shared();
        *shared = Shared { stable: true, ..Shared::default() };
        self.hypercall.place(None);
        self.reference_page.place(None);
        self.reference_page.fill(&[]);
        drop(shared);
        self.processors.iter().for_each(|processor| processor.reset());
    }

    fn save(&self) -> Saved {
        let pages = self.processors.iter().flat_map(|processor| processor.pages());
        Saved::new(&HyperVState {
            shared: self.shared().clone(),
            processors: self.processors.iter().map(|processor| processor.save()).collect(),
            pages: pages.map(|page| page.contents()).collect(),
        })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: HyperVState = saved.decode()?;
        let (found, expected) = (state.processors.len(), self.processors.len());
        if found != expected {
            return Err(RestoreError::Damaged {
                name: HyperVState::NAME,
                reason: format!("it has {found} processors, this machine {expected}"),
            });
        }
        let mut shared = self.shared();
        *shared = state.shared;
        self.hypercall.place(page_of(shared.hypercall));
        self.show(&shared);
        self.reference_page.place(page_of(shared.reference_tsc));
        drop(shared);
        let pages = self.processors.iter().flat_map(|processor| processor.pages());
        for (page, contents) in pages.zip(&state.pages) {
            page.fill(contents.as_deref().unwrap_or_default());
        }
        for (processor, registers) in self.processors.iter().zip(state.processors) {
            processor.restore(registers);
        }
        Ok(())
    }
}
