//! Sleep states: which the machine has, and how it goes on after one (ACPI 6.5, chapter 16).
//!
//! After S3 the memory is as it was and everything else as after a reset. Firmware finds the CMOS's reset
//! code and enters the operating system by the waking vector in the FACS; on machines without firmware
//! that is done here.

use cpu_x86::CpuState;
use devices::piix::SLEEP_TYPE_HIBERNATE;
use options::{OptionError, Properties};

use super::board::Pc;
use super::layout::FIRMWARE_TABLES;
use crate::spec::GlobalSpec;

/// The power management function, as `-global` names it.
const DRIVER: &str = "PIIX4_PM";
/// Where the FACS is: it comes first in the image of tables.
const FACS: u64 = FIRMWARE_TABLES;
/// Offsets in the FACS (section 5.2.10): the vector for real mode, and the one for other modes.
const FACS_VECTOR: u64 = 12;
const FACS_LONG_VECTOR: u64 = 24;
/// Index of CS in [`CpuState`].
const CS: usize = 1;

/// Which states there are besides off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepStates {
    /// S3: the memory is kept.
    pub suspend: bool,
    /// S4: the guest writes its memory away.
    pub hibernate: bool,
    /// The sleep type that stands for S4, 3 bits.
    pub hibernate_type: u8,
}

impl Default for SleepStates {
    fn default() -> Self {
        Self { suspend: true, hibernate: true, hibernate_type: SLEEP_TYPE_HIBERNATE }
    }
}

impl SleepStates {
    /// What `-global PIIX4_PM...` leaves.
    ///
    /// # Errors
    /// If a property is unknown or has a wrong value.
    pub fn new(globals: &[GlobalSpec]) -> Result<Self, OptionError> {
        let ours = globals.iter().filter(|global| global.driver == DRIVER);
        let values = ours.map(|g| (g.property.clone(), g.value.as_str().into())).collect();
        let mut properties = Properties::from_map(&format!("-global {DRIVER}"), values);
        let mut states = Self {
            suspend: properties.take_number::<u8>("disable_s3")?.unwrap_or(0) == 0,
            hibernate: properties.take_number::<u8>("disable_s4")?.unwrap_or(0) == 0,
            ..Self::default()
        };
        if let Some(kind) = properties.take_number::<u8>("s4_val")? {
            states.hibernate_type = kind;
        }
        // There is no PCI hot-plug that could be switched off.
        for key in ["acpi-pci-hotplug-with-bridge-support", "acpi-root-pci-hotplug"] {
            if properties.take_bool(key)? == Some(true) {
                return Err(OptionError::new(format!(
                    "-global {DRIVER}.{key}=on: PCI hot-plug is not available in this build"
                )));
            }
        }
        properties.finish()?;
        // 0 is off and 1 is S3.
        if !(2..8).contains(&states.hibernate_type) {
            return Err(OptionError::new(format!(
                "-global {DRIVER}.s4_val={}: sleep types of S4 are 2 to 7",
                states.hibernate_type
            )));
        }
        Ok(states)
    }

    /// The states as `etc/system-states` tells firmware of them: a byte for each of S0 to S5, the sleep
    /// type with bit 7 for one that there is.
    pub(super) fn file(&self) -> [u8; 6] {
        const PRESENT: u8 = 1 << 7;
        let state = |present, kind| if present { PRESENT | kind } else { kind };
        [PRESENT, 0, 0, state(self.suspend, 1), state(self.hibernate, self.hibernate_type), PRESENT]
    }
}

impl Pc {
    /// Where the operating system wants to go on after a sleep, in real mode: what it left in the FACS of
    /// the tables that a machine without firmware has.
    pub(super) fn waking_vector(&self) -> Option<u32> {
        let number = |at: u64, buf: &mut [u8]| self.memory.read(FACS + at, buf).is_ok();
        let (mut vector, mut long) = ([0; 4], [0; 8]);
        if !number(FACS_VECTOR, &mut vector) || !number(FACS_LONG_VECTOR, &mut long) {
            return None;
        }
        // Real mode reaches the first MiB.
        let vector = u32::from_le_bytes(vector);
        (u64::from_le_bytes(long) == 0 && (1..0x10_0000).contains(&vector)).then_some(vector)
    }
}

/// `state`, that of a CPU after its reset, at the waking vector.
pub(super) fn at_waking_vector(mut state: CpuState, vector: u32) -> CpuState {
    let segment = vector >> 4;
    state.segments[CS].selector = segment as u16;
    state.segments[CS].base = u64::from(segment << 4);
    state.rip = u64::from(vector & 0xf);
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(values: &[(&str, &str)]) -> Result<SleepStates, String> {
        let globals: Vec<_> = values
            .iter()
            .map(|(property, value)| GlobalSpec {
                driver: DRIVER.to_owned(),
                property: (*property).to_owned(),
                value: (*value).to_owned(),
            })
            .collect();
        SleepStates::new(&globals).map_err(|e| e.to_string())
    }

    #[test]
    fn firmware_is_told_of_the_states() {
        assert_eq!(states(&[]).unwrap().file(), [0x80, 0, 0, 0x81, 0x82, 0x80]);
        let without = states(&[("disable_s3", "1"), ("disable_s4", "1")]).unwrap();
        assert_eq!(without.file(), [0x80, 0, 0, 1, 2, 0x80]);
        assert_eq!(states(&[("s4_val", "5")]).unwrap().file()[4], 0x85);
    }

    #[test]
    fn wrong_properties_are_refused() {
        for wrong in [("s4_val", "1"), ("s4_val", "8"), ("disable_s3", "x"), ("colour", "red")] {
            assert!(states(&[wrong]).is_err(), "{wrong:?}");
        }
        assert!(states(&[("acpi-root-pci-hotplug", "on")]).unwrap_err().contains("hot-plug"));
        assert!(states(&[("acpi-root-pci-hotplug", "off")]).is_ok());
    }
}
