//! A domain of logical units: which is where, and who answers where there is none.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, RwLock};

use super::lun::{Lun, reply, report_luns};
use super::{Cdb, Sense, Task, op};

/// Where a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Channel.
    pub channel: u8,
    /// Target.
    pub target: u16,
    /// Logical unit of the target.
    pub lun: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.channel, self.target, self.lun)
    }
}

/// Why a unit found no place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The channel is too high.
    #[error("bad scsi channel id: {0}")]
    Channel(u32),
    /// The target is too high.
    #[error("bad scsi device id: {0}")]
    Target(u32),
    /// The unit is too high.
    #[error("bad scsi device lun: {0}")]
    Lun(u32),
    /// Someone is there.
    #[error("lun already used by '{0}'")]
    Used(String),
    /// No target without a unit is left.
    #[error("no free target")]
    NoTarget,
    /// The target has all units.
    #[error("no free lun")]
    NoLun,
}

/// What is at an address.
pub enum Route {
    /// A unit.
    Unit(Arc<Lun>),
    /// A target that has units, but not this one.
    Target,
    /// Nothing.
    Nothing,
}

struct Place {
    name: String,
    lun: Arc<Lun>,
}

/// A domain of logical units.
pub struct ScsiBus {
    max_channel: u8,
    max_target: u16,
    max_lun: u16,
    places: RwLock<BTreeMap<Address, Place>>,
}

impl ScsiBus {
    /// An empty bus with the highest channel, target and unit that it can have.
    pub fn new(max_channel: u8, max_target: u16, max_lun: u16) -> Self {
        Self { max_channel, max_target, max_lun, places: RwLock::default() }
    }

    /// The address that is wanted, or, for what is left open, the first that is free.
    ///
    /// # Errors
    /// If it is out of range, or taken.
    pub fn find(
        &self,
        channel: u32,
        target: Option<u32>,
        lun: Option<u32>,
    ) -> Result<Address, AddressError> {
        let channel = u8::try_from(channel)
            .ok()
            .filter(|&n| n <= self.max_channel)
            .ok_or(AddressError::Channel(channel))?;
        let lun = match lun {
            None => None,
            Some(lun) => Some(
                u16::try_from(lun)
                    .ok()
                    .filter(|&n| n <= self.max_lun)
                    .ok_or(AddressError::Lun(lun))?,
            ),
        };
        let places = self.places.read().unwrap_or_else(|e| e.into_inner());
        let free = |target, lun| {
            let address = Address { channel, target, lun };
            (!places.contains_key(&address)).then_some(address)
        };
        match (target, lun) {
            (Some(target), lun) => {
                let target = u16::try_from(target)
                    .ok()
                    .filter(|&n| n <= self.max_target)
                    .ok_or(AddressError::Target(target))?;
                match lun {
                    Some(lun) => {
                        let address = Address { channel, target, lun };
                        match places.get(&address) {
                            None => Ok(address),
                            Some(place) => Err(AddressError::Used(place.name.clone())),
                        }
                    }
                    None => (0..=self.max_lun)
                        .find_map(|lun| free(target, lun))
                        .ok_or(AddressError::NoLun),
                }
            }
            (None, lun) => (0..=self.max_target)
                .find_map(|target| free(target, lun.unwrap_or(0)))
                .ok_or(AddressError::NoTarget),
        }
    }

    /// Puts `lun`, called `name`, at an address that [`ScsiBus::find`] found.
    pub fn attach(&self, address: Address, name: &str, lun: Arc<Lun>) {
        let mut places = self.places.write().unwrap_or_else(|e| e.into_inner());
        places.insert(address, Place { name: name.to_owned(), lun });
    }

    /// Takes the unit away.
    pub fn detach(&self, address: Address) -> Option<Arc<Lun>> {
        let mut places = self.places.write().unwrap_or_else(|e| e.into_inner());
        places.remove(&address).map(|place| place.lun)
    }

    /// All units in the order of their addresses.
    pub fn units(&self) -> Vec<(Address, Arc<Lun>)> {
        let places = self.places.read().unwrap_or_else(|e| e.into_inner());
        places.iter().map(|(&address, place)| (address, place.lun.clone())).collect()
    }

    /// The unit at `address`.
    pub fn lun(&self, address: Address) -> Option<Arc<Lun>> {
        let places = self.places.read().unwrap_or_else(|e| e.into_inner());
        places.get(&address).map(|place| place.lun.clone())
    }

    /// What is at `address`.
    pub fn route(&self, address: Address) -> Route {
        let places = self.places.read().unwrap_or_else(|e| e.into_inner());
        if let Some(place) = places.get(&address) {
            return Route::Unit(place.lun.clone());
        }
        let mut luns = places.range(Self::of_target(address));
        if luns.next().is_some() { Route::Target } else { Route::Nothing }
    }

    fn of_target(address: Address) -> std::ops::RangeInclusive<Address> {
        Address { lun: 0, ..address }..=Address { lun: u16::MAX, ..address }
    }

    /// The units of a target.
    pub fn luns_of(&self, address: Address) -> Vec<u16> {
        let places = self.places.read().unwrap_or_else(|e| e.into_inner());
        places.range(Self::of_target(address)).map(|(address, _)| address.lun).collect()
    }

    /// Begins a command for `lun`, which is at `address`. What concerns the target is answered for it.
    ///
    /// # Errors
    /// The sense data that the command ends with.
    pub fn start(&self, address: Address, lun: &Lun, cdb: &[u8]) -> Result<Task, Sense> {
        let block = Cdb::new(cdb);
        if block.opcode() == op::REPORT_LUNS {
            return report_luns(&block, &self.reported(address));
        }
        lun.start(cdb)
    }

    /// Answers for a unit that is not there but whose target is (SPC-4, section 5.11).
    ///
    /// # Errors
    /// The sense data that the command ends with.
    pub fn start_absent(&self, address: Address, cdb: &[u8]) -> Result<Task, Sense> {
        /// No device can be at this unit.
        const NOT_CAPABLE: u8 = 0x7f;
        let cdb = Cdb::new(cdb);
        match cdb.opcode() {
            op::REPORT_LUNS => report_luns(&cdb, &self.reported(address)),
            op::INQUIRY if cdb.u8(1) & 3 == 0 && cdb.u8(2) == 0 => {
                let mut data = vec![0; 36];
                (data[0], data[2], data[3], data[4]) = (NOT_CAPABLE, 5, 0x12, 31);
                data[7] = 0x12;
                Ok(reply(data, cdb.u16(3)))
            }
            op::INQUIRY if cdb.u8(1) & 3 == 1 && cdb.u8(2) == 0 => {
                Ok(reply(vec![NOT_CAPABLE, 0, 0, 1, 0], cdb.u16(3)))
            }
            op::INQUIRY => Err(Sense::INVALID_FIELD),
            op::REQUEST_SENSE => Ok(reply(Sense::NO_SUCH_UNIT.fixed().to_vec(), cdb.u8(4))),
            _ => Err(Sense::NO_SUCH_UNIT),
        }
    }

    /// What REPORT LUNS tells of: unit 0 is always among them.
    fn reported(&self, address: Address) -> Vec<u16> {
        let mut luns = self.luns_of(address);
        if luns.first() != Some(&0) {
            luns.insert(0, 0);
        }
        luns
    }
}
