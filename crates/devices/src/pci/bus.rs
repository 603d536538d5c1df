//! The bus: which function sits where, and who gets its interrupts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock, Weak};

use ::bus::{AddressSpace, IrqLine, IrqSink, MsiSink};

use super::config::{HEADER_MULTIFUNCTION, reg};
use super::{Devfn, OptionRom, PciFunction};
use crate::lock;

/// What a function needs of its surroundings; see [`PciBus::wiring`].
#[derive(Clone)]
pub struct PciWiring {
    /// Where I/O BARs appear.
    pub ports: Weak<AddressSpace>,
    /// Where memory BARs appear.
    pub mmio: Weak<AddressSpace>,
    /// The function's INTx wire.
    pub intx: IrqLine,
    /// Interrupt pin that `intx` is: 1 for INTA# to 4 for INTD#.
    pub pin: u8,
    /// Takes message-signalled interrupts.
    pub msi: Arc<dyn MsiSink>,
    /// The function says that its slot may have more.
    pub multifunction: bool,
    /// What the user puts into its expansion ROM.
    pub rom: Option<OptionRom>,
}

/// Why a function found no place on the bus.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Someone else sits there.
    #[error(
        "PCI: slot {} function {} not available for {name}, in use by {occupant}",
        .devfn.slot(), .devfn.function()
    )]
    InUse {
        /// The place asked for.
        devfn: Devfn,
        /// Who asked.
        name: String,
        /// Who has it.
        occupant: String,
    },
    /// Function 0 of the slot says that it is the only one.
    #[error("PCI: single function device can't be populated in function {:x}.{}",
        .devfn.slot(), .devfn.function())]
    Alone {
        /// The place asked for.
        devfn: Devfn,
    },
    /// A function 0 that says that it is the only one came after others.
    #[error("PCI: {0:x}.0 indicates single function, but {0:x}.{1} is already populated.",
        .other.slot(), .other.function())]
    Others {
        /// Who has a place in the slot.
        other: Devfn,
    },
    /// All slots are taken.
    #[error("PCI: no slot/function available for {name}, all in use or reserved")]
    Full {
        /// Who asked.
        name: String,
    },
}

#[derive(Clone)]
enum Place {
    /// Given to a function of this name that is still being made.
    Reserved(String),
    Taken(Arc<dyn PciFunction>),
}

/// A PCI bus with up to 256 functions.
pub struct PciBus {
    ports: Arc<AddressSpace>,
    mmio: Arc<AddressSpace>,
    msi: Arc<dyn MsiSink>,
    intx: Arc<IntxMux>,
    /// Read on each configuration access, written while the machine is put together.
    places: RwLock<BTreeMap<Devfn, Place>>,
}

impl PciBus {
    /// An empty bus. Functions show their BARs in `ports` and `mmio` and send messages to `msi`; the
    /// INTx wires end at `router`: PIRQA to PIRQD, a slot's INTA on input `(slot - 1) mod 4`, as the
    /// i440FX board has it.
    pub fn new(
        ports: Arc<AddressSpace>,
        mmio: Arc<AddressSpace>,
        router: [IrqLine; 4],
        msi: Arc<dyn MsiSink>,
    ) -> Self {
        let intx = Arc::new(IntxMux { router, state: Mutex::default() });
        Self { ports, mmio, msi, intx, places: RwLock::default() }
    }

    /// Finds a place for a function called `name`: `wanted`, or else function 0 of the first free
    /// slot. The place stays reserved until [`PciBus::attach`] or [`PciBus::release`].
    ///
    /// # Errors
    /// If the place is taken, or none is free.
    pub fn reserve(&self, wanted: Option<Devfn>, name: &str) -> Result<Devfn, SlotError> {
        self.reserve_in_slot(wanted, name, false)
    }

    /// The same for a function that says, if `multifunction` is set, that its slot may have more.
    ///
    /// # Errors
    /// The same, or if the functions of the slot would not be found because function 0 does not say so.
    pub fn reserve_in_slot(
        &self,
        wanted: Option<Devfn>,
        name: &str,
        multifunction: bool,
    ) -> Result<Devfn, SlotError> {
        let devfn = self.reserve_place(wanted, name)?;
        self.check_slot(devfn, multifunction).inspect_err(|_| self.release(devfn))?;
        Ok(devfn)
    }

    /// Whether drivers would find all functions of the slot, with a new one at `devfn`.
    fn check_slot(&self, devfn: Devfn, multifunction: bool) -> Result<(), SlotError> {
        if devfn.function() > 0 {
            let first = self.function(Devfn::new(devfn.slot(), 0));
            let alone = first.is_some_and(|first| {
                first.read_config(reg::HEADER_TYPE, 1) & u32::from(HEADER_MULTIFUNCTION) == 0
            });
            return if alone { Err(SlotError::Alone { devfn }) } else { Ok(()) };
        }
        let mut others = (1..8).map(|function| Devfn::new(devfn.slot(), function));
        match others.find(|&other| self.function(other).is_some()) {
            Some(other) if !multifunction => Err(SlotError::Others { other }),
            _ => Ok(()),
        }
    }

    fn reserve_place(&self, wanted: Option<Devfn>, name: &str) -> Result<Devfn, SlotError> {
        let mut places = self.places.write().unwrap_or_else(|e| e.into_inner());
        let devfn = match wanted {
            Some(devfn) => match places.get(&devfn) {
                None => devfn,
                Some(place) => {
                    let occupant = match place {
                        Place::Reserved(name) => name.clone(),
                        Place::Taken(function) => function.id(),
                    };
                    return Err(SlotError::InUse { devfn, name: name.to_owned(), occupant });
                }
            },
            None => (0..32)
                .map(|slot| Devfn::new(slot, 0))
                .find(|devfn| !places.contains_key(devfn))
                .ok_or_else(|| SlotError::Full { name: name.to_owned() })?,
        };
        places.insert(devfn, Place::Reserved(name.to_owned()));
        Ok(devfn)
    }

    /// Gives a place back.
    pub fn release(&self, devfn: Devfn) {
        self.places.write().unwrap_or_else(|e| e.into_inner()).remove(&devfn);
    }

    /// Puts `function` at `devfn`, in place of a reservation or of what was there.
    pub fn attach(&self, devfn: Devfn, function: Arc<dyn PciFunction>) {
        let mut places = self.places.write().unwrap_or_else(|e| e.into_inner());
        places.insert(devfn, Place::Taken(function));
    }

    /// The wires of the function at `devfn` that uses interrupt `pin`, 1 for INTA# to 4 for INTD#.
    pub fn wiring(&self, devfn: Devfn, pin: u8) -> PciWiring {
        debug_assert!((1..=4).contains(&pin));
        let input = u32::from(devfn.bits()) << 2 | u32::from(pin.wrapping_sub(1) & 3);
        let sink: Arc<dyn IrqSink> = self.intx.clone();
        PciWiring {
            ports: Arc::downgrade(&self.ports),
            mmio: Arc::downgrade(&self.mmio),
            intx: IrqLine::new(sink, input),
            pin,
            msi: Arc::clone(&self.msi),
            multifunction: false,
            rom: None,
        }
    }

    /// The function at `devfn`.
    pub fn function(&self, devfn: Devfn) -> Option<Arc<dyn PciFunction>> {
        match self.places.read().unwrap_or_else(|e| e.into_inner()).get(&devfn) {
            Some(Place::Taken(function)) => Some(Arc::clone(function)),
            _ => None,
        }
    }

    /// All functions in order of their place.
    pub fn functions(&self) -> Vec<(Devfn, Arc<dyn PciFunction>)> {
        let places = self.places.read().unwrap_or_else(|e| e.into_inner());
        let taken = places.iter().filter_map(|(&devfn, place)| match place {
            Place::Taken(function) => Some((devfn, Arc::clone(function))),
            Place::Reserved(_) => None,
        });
        taken.collect()
    }

    /// Configuration read as the host bridge makes it: all ones if no function is there. An access
    /// that is misaligned or of another size than 1, 2 or 4 reads ones too.
    pub fn read_config(&self, devfn: Devfn, offset: u16, size: u8) -> u32 {
        let ones = u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)));
        let Some(function) = self.function(devfn) else { return ones };
        parts(offset, size).fold(0, |value, (shift, offset, size)| {
            value | function.read_config(offset, size) << shift
        })
    }

    /// Configuration write as the host bridge makes it; lost if no function is there.
    pub fn write_config(&self, devfn: Devfn, offset: u16, size: u8, value: u32) {
        let Some(function) = self.function(devfn) else { return };
        for (shift, offset, size) in parts(offset, size) {
            let part = value >> shift & (u32::MAX >> (32 - 8 * u32::from(size)));
            function.write_config(offset, size, part);
        }
    }
}

/// The accesses that functions see of one of `size` bytes, each with its place in the value: itself, or
/// single bytes if it is not aligned. What is beyond the configuration space is left out.
fn parts(offset: u16, size: u8) -> impl Iterator<Item = (u32, u16, u8)> {
    let size = size.clamp(1, 4);
    let aligned = size != 3 && offset.is_multiple_of(size.into());
    let (count, part) = if aligned { (1, size) } else { (size, 1) };
    (0..count)
        .map(move |i| (8 * u32::from(i), offset.saturating_add(i.into()), part))
        .filter(|&(_, offset, _)| offset < 256)
}

/// ORs the wires of all functions onto the four inputs of the router.
struct IntxMux {
    router: [IrqLine; 4],
    state: Mutex<MuxState>,
}

#[derive(Default)]
struct MuxState {
    /// One bit for each pin of each function.
    asserted: [u64; 16],
    /// How many wires assert each input of the router.
    counts: [u32; 4],
}

impl IrqSink for IntxMux {
    fn set_level(&self, pin: u32, level: bool) {
        let (word, bit) = ((pin >> 6) as usize & 15, 1_u64 << (pin & 63));
        let slot = pin >> 5;
        let input = (slot + (pin & 3)).wrapping_sub(1) as usize & 3;
        let mut state = lock(&self.state);
        if (state.asserted[word] & bit != 0) == level {
            return;
        }
        state.asserted[word] ^= bit;
        let count = &mut state.counts[input];
        *count = if level { *count + 1 } else { *count - 1 };
        // Under the lock, so that the router sees the levels in the order they came about.
        match (level, *count) {
            (true, 1) => self.router[input].set(true),
            (false, 0) => self.router[input].set(false),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Levels(AtomicU32);
    impl IrqSink for Levels {
        fn set_level(&self, pin: u32, level: bool) {
            if level {
                self.0.fetch_or(1 << pin, Ordering::SeqCst);
            } else {
                self.0.fetch_and(!(1 << pin), Ordering::SeqCst);
            }
        }
    }
    struct NoMsi;
    impl MsiSink for NoMsi {
        fn send(&self, _message: ::bus::MsiMessage) {}
    }

    fn bus_with_levels() -> (PciBus, Arc<Levels>) {
        let levels = Arc::new(Levels(AtomicU32::new(0)));
        let router = [0, 1, 2, 3].map(|pin| IrqLine::new(levels.clone(), pin));
        let spaces = (Arc::default(), Arc::default());
        (PciBus::new(spaces.0, spaces.1, router, Arc::new(NoMsi)), levels)
    }

    #[test]
    fn wires_of_several_slots_share_an_input() {
        let (bus, levels) = bus_with_levels();
        let three = bus.wiring(Devfn::new(3, 0), 1).intx;
        let seven = bus.wiring(Devfn::new(7, 0), 1).intx;
        let one_d = bus.wiring(Devfn::new(1, 2), 4).intx;
        three.set(true);
        three.set(true);
        seven.set(true);
        one_d.set(true);
        assert_eq!(levels.0.load(Ordering::SeqCst), 0b1100);
        three.set(false);
        assert_eq!(levels.0.load(Ordering::SeqCst), 0b1100);
        seven.set(false);
        assert_eq!(levels.0.load(Ordering::SeqCst), 0b1000);
    }

    #[test]
    fn slots_are_given_in_order_and_taken_ones_are_refused() {
        let (bus, _) = bus_with_levels();
        assert_eq!(bus.reserve(None, "a"), Ok(Devfn::new(0, 0)));
        assert_eq!(bus.reserve(Some(Devfn::new(1, 0)), "b"), Ok(Devfn::new(1, 0)));
        assert_eq!(bus.reserve(None, "c"), Ok(Devfn::new(2, 0)));
        let refused = bus.reserve(Some(Devfn::new(1, 0)), "d").unwrap_err();
        assert_eq!(refused.to_string(), "PCI: slot 1 function 0 not available for d, in use by b");
        for _ in 3..32 {
            bus.reserve(None, "e").unwrap();
        }
        assert!(matches!(bus.reserve(None, "f"), Err(SlotError::Full { .. })));
        assert_eq!(bus.read_config(Devfn::new(0, 0), 0, 4), u32::MAX);
        assert_eq!(bus.read_config(Devfn::new(0, 0), 0, 2), 0xffff);
    }
}
