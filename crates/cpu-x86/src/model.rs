//! CPU models: what CPUID says of vendor, family and name, and which features a CPU has.
//!
//! Models are named as QEMU names them, with the identity of the processors they stand for. Of their
//! features they have what this build implements.

use std::fmt;

use crate::feature::{ABSENT, FEATURES, FeatureSet, Instructions, find};
use crate::fpu::xsave::component;
use crate::regs::*;

/// What a model's vendor decides beyond its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// SYSCALL in all modes, SYSENTER in legacy mode only.
    Amd,
    /// SYSENTER in all modes, SYSCALL in 64-bit mode only.
    Intel,
}

impl Vendor {
    /// The twelve letters of leaf 0.
    pub(crate) fn text(self) -> &'static [u8; 12] {
        match self {
            Self::Amd => b"AuthenticAMD",
            Self::Intel => b"GenuineIntel",
        }
    }
}

/// What a model's features decide about control registers and instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bits of CR4 that can be set.
    pub(crate) cr4: u64,
    /// Bits of EFER that can be set.
    pub(crate) efer: u64,
    /// Bits of XCR0 that can be set.
    pub(crate) xcr0: u64,
    /// Instructions that are there.
    pub(crate) instructions: Instructions,
    /// SYSENTER and SYSCALL are as Intel has them.
    pub(crate) intel: bool,
}

impl Limits {
    /// Those of `model`.
    pub(crate) fn of(model: &CpuModel) -> Self {
        let bits = |table: &[(&str, u64)]| {
            let present = table.iter().filter(|(name, _)| model.features.has_name(name));
            present.fold(0, |all, (_, bits)| all | bits)
        };
        let cr4 = bits(&[
            ("vme", CR4_VME | CR4_PVI),
            ("tsc", CR4_TSD),
            ("de", CR4_DE),
            ("pse", CR4_PSE),
            ("pae", CR4_PAE),
            ("mce", CR4_MCE),
            ("pge", CR4_PGE),
            ("fxsr", CR4_OSFXSR),
            ("sse", CR4_OSXMMEXCPT),
            ("umip", CR4_UMIP),
            ("fsgsbase", CR4_FSGSBASE),
            ("pcid", CR4_PCIDE),
            ("xsave", CR4_OSXSAVE),
            ("smep", CR4_SMEP),
            ("smap", CR4_SMAP),
        ]);
        let efer = bits(&[
            ("syscall", EFER_SCE),
            ("lm", EFER_LME | EFER_LMA),
            ("nx", EFER_NXE),
            ("svm", EFER_SVME),
        ]);
        Self {
            cr4: cr4 | CR4_PCE,
            efer,
            xcr0: component::X87 | component::SSE | bits(&[("avx", component::AVX)]),
            instructions: model.features.instructions(),
            intel: model.vendor == Vendor::Intel,
        }
    }
}

/// A model, maybe with changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// As the command line has it.
    pub name: String,
    /// Who made it.
    pub vendor: Vendor,
    /// Family, extended family added.
    pub family: u32,
    /// Model, extended model included.
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
    /// The name that leaves 0x8000_0002 to 0x8000_0004 tell, of at most 47 bytes.
    pub brand: String,
    /// Features.
    pub features: FeatureSet,
}

/// Why a model can't be had. The text says it all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelError {
    /// There is no model of this name.
    NoModel(String),
    /// There is no such feature or property.
    NoProperty(String),
    /// The feature exists, but not in this build.
    Absent(String),
    /// A property has a value that it can't have.
    BadValue(String, String),
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoModel(name) => write!(f, "unable to find CPU model '{name}'"),
            Self::NoProperty(name) => write!(f, "property '{name}' not found"),
            Self::Absent(name) => {
                write!(f, "feature '{name}' is not available in this build; leave it off")
            }
            Self::BadValue(name, value) => {
                write!(f, "property '{name}' cannot have the value '{value}'")
            }
        }
    }
}

impl std::error::Error for ModelError {}

/// A model in the table.
struct Known {
    name: &'static str,
    description: &'static str,
    vendor: Vendor,
    family: u32,
    model: u32,
    stepping: u32,
    /// Empty for this build's own.
    brand: &'static str,
    /// Names of features; empty for all.
    features: &'static [&'static str],
}

const OLD: &str = "fpu vme de pse tsc msr mce cx8 mtrr pge mca cmov pat pse36 apic sep hypervisor";
const P6: &str =
    "fpu de pse tsc msr mce cx8 pge cmov pat fxsr mmx sse sse2 pae sep apic hypervisor";
const X86_64: &str = "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx \
    fxsr sse sse2 nx lm syscall hypervisor x2apic tsc-adjust";
const CORE: &str = "vme pni ssse3 cx16 lahf-lm";
const NEHALEM: &str = "sse4.1 sse4.2 popcnt";
const WESTMERE: &str = "aes pclmulqdq";
const SANDY_BRIDGE: &str = "avx xsave xsaveopt tsc-deadline rdtscp";
const IVY_BRIDGE: &str = "f16c rdrand fsgsbase smep erms";
const HASWELL: &str = "fma movbe pcid bmi1 bmi2 avx2 invpcid abm";
const BROADWELL: &str = "rdseed adx smap 3dnowprefetch";
const SKYLAKE: &str = "xsavec xgetbv1 spec-ctrl";
const SKYLAKE_SERVER: &str = "clflushopt clwb pdpe1gb pku";
const AMD: &str = "topoext 3dnowprefetch abm rdtscp pdpe1gb cr8legacy svm npt nrip-save";
const EPYC: &str = "sse4.1 sse4.2 popcnt aes pclmulqdq avx xsave xsaveopt f16c rdrand fsgsbase smep fma \
    movbe bmi1 bmi2 avx2 rdseed adx smap clflushopt sha-ni xsavec xgetbv1";
const ROME: &str = "clwb umip rdpid xsaveerptr";
const MILAN: &str = "pcid invpcid erms fsrm pku vaes vpclmulqdq null-sel-clr-base \
    lfence-always-serializing";

/// The models, the default first.
const MODELS: &[Known] = {
    use Vendor::*;
    const fn known(
        name: &'static str,
        description: &'static str,
        vendor: Vendor,
        signature: [u32; 3],
        brand: &'static str,
        features: &'static [&'static str],
    ) -> Known {
        let [family, model, stepping] = signature;
        Known { name, description, vendor, family, model, stepping, brand, features }
    }
    const CORE_BRAND: &str = "Intel Core Processor (Haswell)";
    &[
        known(
            "max",
            "Enables all features supported by the accelerator (default)",
            Amd,
            [15, 107, 1],
            "",
            &[],
        ),
        known(
            "host",
            "The host's identity with all features that both have",
            Amd,
            [15, 107, 1],
            "",
            &[],
        ),
        known(
            "qemu64",
            "QEMU Virtual CPU version 2.5+",
            Amd,
            [15, 107, 1],
            "QEMU Virtual CPU version 2.5+",
            &[X86_64, "pni cx16 lahf-lm svm"],
        ),
        known(
            "qemu32",
            "QEMU Virtual CPU version 2.5+",
            Intel,
            [6, 6, 3],
            "QEMU Virtual CPU version 2.5+",
            &[P6, "pni"],
        ),
        known(
            "kvm64",
            "Common KVM processor",
            Intel,
            [15, 6, 1],
            "Common KVM processor",
            &[X86_64, "vme pni cx16"],
        ),
        known(
            "pentium",
            "Intel Pentium",
            Intel,
            [5, 4, 3],
            "pentium",
            &["fpu vme de pse tsc msr mce cx8 mmx apic hypervisor"],
        ),
        known("pentium2", "Intel Pentium II", Intel, [6, 5, 2], "pentium2", &[OLD, "mmx fxsr pae"]),
        known(
            "pentium3",
            "Intel Pentium III",
            Intel,
            [6, 7, 3],
            "pentium3",
            &[OLD, "mmx fxsr sse pae"],
        ),
        known(
            "core2duo",
            "Intel(R) Core(TM)2 Duo CPU",
            Intel,
            [6, 15, 11],
            "Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz",
            &[X86_64, CORE],
        ),
        known(
            "Penryn",
            "Intel Core 2 Duo P9xxx (Penryn Class Core 2)",
            Intel,
            [6, 23, 3],
            "Intel Core 2 Duo P9xxx (Penryn Class Core 2)",
            &[X86_64, CORE, "sse4.1"],
        ),
        known(
            "Nehalem",
            "Intel Core i7 9xx (Nehalem Class Core i7)",
            Intel,
            [6, 26, 3],
            "Intel Core i7 9xx (Nehalem Class Core i7)",
            &[X86_64, CORE, NEHALEM],
        ),
        known(
            "Westmere",
            "Westmere E56xx/L56xx/X56xx (Nehalem-C)",
            Intel,
            [6, 44, 1],
            "Westmere E56xx/L56xx/X56xx (Nehalem-C)",
            &[X86_64, CORE, NEHALEM, WESTMERE],
        ),
        known(
            "SandyBridge",
            "Intel Xeon E312xx (Sandy Bridge)",
            Intel,
            [6, 42, 1],
            "Intel Xeon E312xx (Sandy Bridge)",
            &[X86_64, CORE, NEHALEM, WESTMERE, SANDY_BRIDGE],
        ),
        known(
            "IvyBridge",
            "Intel Xeon E3-12xx v2 (Ivy Bridge)",
            Intel,
            [6, 58, 9],
            "Intel Xeon E3-12xx v2 (Ivy Bridge)",
            &[X86_64, CORE, NEHALEM, WESTMERE, SANDY_BRIDGE, IVY_BRIDGE],
        ),
        known(
            "Haswell",
            "Intel Core Processor (Haswell)",
            Intel,
            [6, 60, 4],
            CORE_BRAND,
            &[X86_64, CORE, NEHALEM, WESTMERE, SANDY_BRIDGE, IVY_BRIDGE, HASWELL],
        ),
        known(
            "Broadwell",
            "Intel Core Processor (Broadwell)",
            Intel,
            [6, 61, 2],
            "Intel Core Processor (Broadwell)",
            &[X86_64, CORE, NEHALEM, WESTMERE, SANDY_BRIDGE, IVY_BRIDGE, HASWELL, BROADWELL],
        ),
        known(
            "Skylake-Client",
            "Intel Core Processor (Skylake)",
            Intel,
            [6, 94, 3],
            "Intel Core Processor (Skylake)",
            &[
                X86_64,
                CORE,
                NEHALEM,
                WESTMERE,
                SANDY_BRIDGE,
                IVY_BRIDGE,
                HASWELL,
                BROADWELL,
                SKYLAKE,
            ],
        ),
        known(
            "Skylake-Server",
            "Intel Xeon Processor (Skylake)",
            Intel,
            [6, 85, 4],
            "Intel Xeon Processor (Skylake)",
            &[
                X86_64,
                CORE,
                NEHALEM,
                WESTMERE,
                SANDY_BRIDGE,
                IVY_BRIDGE,
                HASWELL,
                BROADWELL,
                SKYLAKE,
                SKYLAKE_SERVER,
            ],
        ),
        known(
            "EPYC",
            "AMD EPYC Processor",
            Amd,
            [23, 1, 2],
            "AMD EPYC Processor",
            &[X86_64, CORE, AMD, EPYC],
        ),
        known(
            "EPYC-Rome",
            "AMD EPYC-Rome Processor",
            Amd,
            [23, 49, 0],
            "AMD EPYC-Rome Processor",
            &[X86_64, CORE, AMD, EPYC, ROME],
        ),
        known(
            "EPYC-Milan",
            "AMD EPYC-Milan Processor",
            Amd,
            [25, 1, 1],
            "AMD EPYC-Milan Processor",
            &[X86_64, CORE, AMD, EPYC, ROME, MILAN],
        ),
    ]
};

impl Default for CpuModel {
    fn default() -> Self {
        Self::of(&MODELS[0])
    }
}

impl CpuModel {
    /// Names and descriptions of all models, the default first.
    pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
        MODELS.iter().map(|known| (known.name, known.description))
    }

    fn of(known: &Known) -> Self {
        let mut features = FeatureSet::all();
        if !known.features.is_empty() {
            features = FeatureSet::of(&known.features.join(" "));
        } else if let Some(monitor) = find("monitor") {
            // It works, but a guest that idles by it keeps the host busy: for who asks.
            features.set(monitor, false);
        }
        let mut model = Self {
            name: known.name.to_owned(),
            vendor: known.vendor,
            family: known.family,
            model: known.model,
            stepping: known.stepping,
            brand: if known.brand.is_empty() { "Rhea Virtual CPU" } else { known.brand }.to_owned(),
            features,
        };
        if known.name == "host" {
            host::identify(&mut model);
        }
        model
    }

    /// The model that `text` asks for as `-cpu` has it: a name, then features with a sign or with
    /// `=on` and `=off`, and `vendor=`, `family=`, `model=`, `stepping=`, `model-id=`.
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
        let known = MODELS.iter().find(|known| known.name == base);
        let known = known.ok_or_else(|| ModelError::NoModel(name.to_owned()))?;
        let mut model = Self::of(known);
        for part in parts {
            model.change(part)?;
        }
        Ok(model)
    }

    fn change(&mut self, part: &str) -> Result<(), ModelError> {
        if let Some(name) = part.strip_prefix('+') {
            return self.set_feature(name, true);
        }
        if let Some(name) = part.strip_prefix('-') {
            return self.set_feature(name, false);
        }
        let (name, value) = part.split_once('=').unwrap_or((part, "on"));
        let bad = || ModelError::BadValue(name.to_owned(), value.to_owned());
        let number = |max: u32| value.parse().ok().filter(|&n| n <= max).ok_or_else(bad);
        match name {
            "family" => self.family = number(0xff + 0xf)?,
            "model" => self.model = number(0xff)?,
            "stepping" => self.stepping = number(0xf)?,
            "vendor" => {
                let vendors = [Vendor::Amd, Vendor::Intel];
                let known = vendors.into_iter().find(|v| v.text() == value.as_bytes());
                self.vendor = known.ok_or_else(bad)?;
            }
            "model-id" if value.len() < 48 => self.brand = value.to_owned(),
            "model-id" => return Err(bad()),
            // How strictly features are asked for: what is absent always is an error here.
            "check" | "enforce" | "migratable" if matches!(value, "on" | "off" | "yes" | "no") => {}
            _ => {
                let present = match value {
                    "on" | "yes" | "true" => true,
                    "off" | "no" | "false" => false,
                    _ => return Err(bad()),
                };
                return self.set_feature(name, present);
            }
        }
        Ok(())
    }

    fn set_feature(&mut self, name: &str, present: bool) -> Result<(), ModelError> {
        if let Some(feature) = find(name) {
            self.features.set(feature, present);
            return Ok(());
        }
        let absent = ABSENT.contains(&name.replace('_', "-").as_str());
        match (absent, present) {
            // What is not there can be left off.
            (true, false) => Ok(()),
            (true, true) => Err(ModelError::Absent(name.to_owned())),
            _ => Err(ModelError::NoProperty(name.to_owned())),
        }
    }

    /// Family, model and stepping as leaf 1 and RDX at reset tell them.
    pub(crate) fn signature(&self) -> u32 {
        let (family, extended) = (self.family.min(15), self.family.saturating_sub(15));
        extended << 20
            | self.model >> 4 << 16
            | family << 8
            | (self.model & 15) << 4
            | self.stepping
    }

    /// Features that have names, for help.
    pub fn feature_names() -> impl Iterator<Item = &'static str> {
        FEATURES.iter().map(|feature| feature.name())
    }
}

/// The host's identity.
mod host {
    use super::{CpuModel, Vendor};

    /// Gives `model` the host's identity, and takes away features that the host has not.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn identify(model: &mut CpuModel) {
        use crate::feature::{FEATURES, Word};
        use std::arch::x86_64::{__cpuid, __cpuid_count};

        let zero = __cpuid(0);
        let mut vendor = [0; 12];
        for (bytes, word) in vendor.chunks_mut(4).zip([zero.ebx, zero.edx, zero.ecx]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let Some(vendor) = [Vendor::Amd, Vendor::Intel].into_iter().find(|v| v.text() == &vendor)
        else {
            return;
        };
        model.vendor = vendor;
        let one = __cpuid(1);
        let family = one.eax >> 8 & 15;
        model.family = if family == 15 { 15 + (one.eax >> 20 & 0xff) } else { family };
        model.model = one.eax >> 4 & 15 | one.eax >> 12 & 0xf0;
        model.stepping = one.eax & 15;
        let highest = __cpuid(0x8000_0000).eax;
        let extended = |leaf| if leaf <= highest { Some(__cpuid(leaf)) } else { None };
        let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
            .filter_map(extended)
            .flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
            .flat_map(u32::to_le_bytes)
            .take_while(|&byte| byte != 0)
            .take(47)
            .collect();
        if let Ok(brand) = String::from_utf8(brand) {
            model.brand = brand;
        }
        let seven = if zero.eax >= 7 { __cpuid_count(7, 0) } else { __cpuid_count(0x6fff_ffff, 0) };
        for feature in FEATURES {
            let word = match feature.word() {
                Word::Leaf1Edx => one.edx,
                // A hypervisor is present, and its interrupt controller and timer are its own.
                Word::Leaf1Ecx => one.ecx | 1 << 31 | 1 << 21 | 1 << 24,
                Word::Leaf7Ebx => seven.ebx | 1 << 1,
                Word::Leaf7Ecx => seven.ecx,
                Word::XsaveEax => __cpuid_count(0xd, 1).eax,
                Word::ExtendedEdx => extended(0x8000_0001).map_or(0, |leaf| leaf.edx),
                Word::ExtendedEcx => extended(0x8000_0001).map_or(0, |leaf| leaf.ecx),
                // What concerns speculation and power is this CPU's own.
                _ => u32::MAX,
            };
            if word >> feature.bit() & 1 == 0 {
                model.features.set(feature, false);
            }
        }
    }

    /// Elsewhere the host is nothing that a guest could be shown.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn identify(_: &mut CpuModel) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_change_as_the_command_line_says() {
        let model = CpuModel::parse("Nehalem,-popcnt,+rdrand,smep=on,stepping=7").unwrap();
        assert_eq!((model.family, model.model, model.stepping), (6, 26, 7));
        let has = |name: &str| model.features.has_name(name);
        assert!(!has("popcnt") && has("rdrand") && has("smep") && has("sse4.2") && !has("smap"));
        assert_eq!(CpuModel::parse("Nehalem").unwrap().signature(), 0x1_06a3);
        assert_eq!(CpuModel::parse("EPYC").unwrap().signature(), 0x80_0f12);
        assert_eq!(CpuModel::default().signature(), 0x6_0fb1);
    }

    #[test]
    fn what_there_is_not_is_refused_by_name() {
        let refusal = |text: &str| CpuModel::parse(text).unwrap_err().to_string();
        assert_eq!(refusal("Nehalen"), "unable to find CPU model 'Nehalen'");
        assert!(refusal("max,+avx512f").contains("feature 'avx512f'"));
        assert!(refusal("max,avx512f=on").contains("feature 'avx512f'"));
        assert!(refusal("max,+axv").contains("property 'axv' not found"));
        assert!(refusal("max,sse2=maybe").contains("'maybe'"));
        assert!(refusal("max,vendor=Nobody").contains("'Nobody'"));
        assert!(CpuModel::parse("max,-avx512f,enforce").is_ok());
    }

    #[test]
    fn every_feature_that_a_model_names_is_known() {
        for known in MODELS {
            for name in known.features.join(" ").split_whitespace() {
                assert!(find(name).is_some() || ABSENT.contains(&name), "{}: {name}", known.name);
            }
            assert!(known.brand.len() < 48);
        }
    }
}
