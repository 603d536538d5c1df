//! `-cpu`: a model's name and what is changed of it.

use super::known::{HOST, MAX, MODELS, VARIANTS};
use super::{CpuModel, INVTSC, ModelError, Vendor, host};
use crate::feature::{PERFCTR_CORE, Word, find, is_absent};
use crate::mmu::PHYS_BITS;

/// Widths of physical addresses that a model can have: PAE's tables need the least, entries of long mode
/// have room for the most.
pub(super) const MIN_PHYS_BITS: u32 = 32;
pub(super) const MAX_PHYS_BITS: u32 = 52;

/// The highest standard leaf that a model can have: those of hypervisors follow.
const MAX_STANDARD: u32 = 0x3fff_ffff;

/// Ticks a second that a time-stamp counter can have: what time can be told by, and what no processor comes near.
const TSC_HZ: std::ops::RangeInclusive<u64> = 1_000_000..=100_000_000_000;

/// A number, decimal or after `0x` hexadecimal.
fn number(value: &str) -> Option<u64> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

/// A frequency with a unit, as `2.5G`.
fn frequency(value: &str) -> Option<u64> {
    let units = [(['k', 'K'], 1e3), (['m', 'M'], 1e6), (['g', 'G'], 1e9)];
    let unit = units.into_iter().find(|(letters, _)| value.ends_with(letters));
    let Some((letters, factor)) = unit else { return number(value) };
    let count: f64 = value.trim_end_matches(letters).parse().ok()?;
    (count >= 0.0).then(|| (count * factor).round() as u64)
}

impl CpuModel {
    /// The model that `text` asks for as `-cpu` has it: a name, then features with a sign or with
    /// `=on` and `=off`, and properties with values.
    ///
    /// # Errors
    /// Names what there is not.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        // Versions, as in Haswell-v4, differ in what is not modelled.
        let base = name.rsplit_once("-v").map_or(name, |(base, version)| {
            if version.parse::<u32>().is_ok() { base } else { name }
        });
        let variant = VARIANTS.iter().find(|(variant, ..)| *variant == base);
        let (base, extra) = variant.map_or((base, ""), |&(_, base, extra)| (base, extra));
        let known = MODELS.iter().find(|known| known.name == base);
        let known = known.ok_or_else(|| ModelError::NoModel(name.to_owned()))?;
        let mut model = Self::of(known);
        if let Some(feature) = find(extra) {
            model.features.set(feature, true);
        }
        for part in parts {
            model.change(part)?;
        }
        if model.host_phys_bits {
            model.phys_bits = host::phys_bits().min(model.phys_bits_limit);
        }
        model.features.settle();
        model.hyperv.check()?;
        if !model.pmu || model.vendor == Vendor::Intel {
            model.set_feature(PERFCTR_CORE, false)?;
        }
        if !model.kvm {
            model.features.clear(Word::KvmEax);
        }
        Ok(model)
    }

    fn change(&mut self, part: &str) -> Result<(), ModelError> {
        for (sign, value) in [('+', "on"), ('-', "off")] {
            if let Some(name) = part.strip_prefix(sign) {
                return self.change(&format!("{name}={value}"));
            }
        }
        let (name, value) = part.split_once('=').unwrap_or((part, "on"));
        let bad = || ModelError::BadValue(name.to_owned(), value.to_owned());
        let switch = || match value {
            "on" | "yes" | "true" => Ok(true),
            "off" | "no" | "false" => Ok(false),
            _ => Err(bad()),
        };
        let plain = number(value);
        let number = |max: u32| {
            let number = plain.and_then(|n| u32::try_from(n).ok());
            number.filter(|&n| n <= max).ok_or_else(bad)
        };
        match name {
            "family" => self.family = number(0xff + 0xf)?,
            "model" => self.model = number(0xff)?,
            "stepping" => self.stepping = number(0xf)?,
            "vendor" => {
                let known = Vendor::of(value.as_bytes()).ok_or_else(bad)?;
                (self.vendor_letters, self.vendor) = known;
            }
            "phys-bits" => {
                let bits = number(MAX_PHYS_BITS)?;
                // Zero asks for what there is by default.
                self.phys_bits = match bits {
                    0 => PHYS_BITS,
                    MIN_PHYS_BITS.. => bits,
                    _ => return Err(bad()),
                };
            }
            "host-phys-bits-limit" => match number(MAX_PHYS_BITS)? {
                0 => self.phys_bits_limit = MAX_PHYS_BITS,
                limit @ MIN_PHYS_BITS.. => self.phys_bits_limit = limit,
                _ => return Err(bad()),
            },
            // All ones ask for what there is by default.
            "level" if plain == Some(u32::MAX.into()) => self.levels.standard.exact = None,
            "xlevel" if plain == Some(u32::MAX.into()) => self.levels.extended.exact = None,
            "level" => self.levels.standard.exact = Some(number(MAX_STANDARD)?),
            "xlevel" => self.levels.extended.exact = Some(number(u32::MAX)?),
            "min-level" => self.levels.standard.least = number(MAX_STANDARD)?,
            "min-xlevel" => self.levels.extended.least = number(u32::MAX)?,
            "full-cpuid-auto-level" => self.levels.by_features = switch()?,
            "cpuid-0xb" => self.topology_leaf = switch()?,
            "vmware-cpuid-freq" => self.frequency_leaf = switch()?,
            "l3-cache" => {
                if !switch()? {
                    self.caches.retain(|cache| !cache.is_last());
                }
            }
            "host-cache-info" => {
                if switch()? {
                    self.caches = host::caches();
                }
            }
            "tsc-frequency" | "tsc-freq" => {
                let hz = if name == "tsc-freq" { frequency(value) } else { plain };
                self.tsc_hz = match hz.ok_or_else(bad)? {
                    // The machine's own.
                    0 => None,
                    hz if TSC_HZ.contains(&hz) => Some(hz),
                    _ => return Err(bad()),
                };
            }
            "pmu" => self.pmu = switch()?,
            "kvm" => self.kvm = switch()?,
            // The models that take what there is take this, too, if they need not move to another host.
            "migratable" => {
                let takes_all = matches!(self.name.as_str(), MAX | HOST);
                if !switch()? && takes_all {
                    self.set_feature(INVTSC, true)?;
                }
            }
            "host-phys-bits" => self.host_phys_bits = switch()?,
            "model-id" if value.len() < 48 => self.brand = value.to_owned(),
            "model-id" => return Err(bad()),
            // How strictly features are asked for: what is absent always is an error here.
            "check" | "enforce" => {
                switch()?;
            }
            _ => {
                if let Some(done) = self.hyperv.set(&name.replace('_', "-"), value) {
                    return done;
                }
                return self.set_feature(name, switch()?);
            }
        }
        Ok(())
    }

    fn set_feature(&mut self, name: &str, present: bool) -> Result<(), ModelError> {
        if let Some(feature) = find(name) {
            self.features.set(feature, present);
            return Ok(());
        }
        let absent = is_absent(&name.replace('_', "-"));
        match (absent, present) {
            // What is not there can be left off.
            (true, false) => Ok(()),
            (true, true) => Err(ModelError::Absent(name.to_owned())),
            _ => Err(ModelError::NoProperty(name.to_owned())),
        }
    }
}
