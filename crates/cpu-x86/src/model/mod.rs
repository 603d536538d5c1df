//! CPU models: what CPUID says of vendor, family and name, and which features a CPU has.
//!
//! Models are named as QEMU names them, with the identity of the processors they stand for. Of their
//! features they have what this build implements.

mod caches;
mod host;
mod known;
mod options;

use std::fmt;

use crate::feature::{FEATURES, FeatureSet, Instructions, Word, find};
use crate::fpu::xsave::component;
use crate::fpu::{MXCSR_MASK, MXCSR_MM};
use crate::hyperv::Enlightenments;
use crate::mmu::{LINEAR_BITS, LINEAR_BITS_57, PHYS_BITS};
use crate::regs::*;

pub(crate) use caches::{Cache, first_levels, further_levels};
use known::{DHYANA, HOST, KVM, Known, MAX, MODELS, VARIANTS};

/// The letters of a vendor whose processors are AMD's, of which one model is.
const HYGON: &[u8; 12] = b"HygonGenuine";

/// What a model's vendor decides beyond its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// SYSCALL in all modes, SYSENTER in legacy mode only.
    Amd,
    /// SYSENTER in all modes, SYSCALL in 64-bit mode only.
    Intel,
}

impl Vendor {
    /// The letters of leaf 0 that are known, and whose ways such a processor has.
    const LETTERS: [(&'static [u8; 12], Self); 3] =
        [(b"AuthenticAMD", Self::Amd), (b"GenuineIntel", Self::Intel), (HYGON, Self::Amd)];

    /// The vendor whose ways a processor has of which leaf 0 tells `letters`, and these.
    fn of(letters: &[u8]) -> Option<(&'static [u8; 12], Self)> {
        Self::LETTERS.into_iter().find(|(known, _)| *known == letters)
    }
}

bitflags::bitflags! {
    /// Model-specific registers that come with a feature.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Groups: u16 {
        const TSC_DEADLINE = 1 << 0;
        const TSC_ADJUST = 1 << 1;
        const SPEC_CTRL = 1 << 2;
        const PKS = 1 << 3;
        const XSAVES = 1 << 4;
        const ARCH_CAPABILITIES = 1 << 5;
        /// x2APIC mode can be entered.
        const X2APIC = 1 << 6;
        /// MPERF and APERF.
        const RDPRU = 1 << 7;
        const OSVW = 1 << 8;
    }
}

impl Groups {
    fn of(features: &FeatureSet) -> Self {
        let groups = [
            ("tsc-deadline", Self::TSC_DEADLINE),
            ("tsc-adjust", Self::TSC_ADJUST),
            ("spec-ctrl", Self::SPEC_CTRL),
            ("pks", Self::PKS),
            ("xsaves", Self::XSAVES),
            ("arch-capabilities", Self::ARCH_CAPABILITIES),
            ("x2apic", Self::X2APIC),
            ("rdpru", Self::RDPRU),
            ("osvw", Self::OSVW),
        ];
        groups
            .into_iter()
            .filter(|(name, _)| features.has_name(name))
            .map(|(_, group)| group)
            .collect()
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
    /// XGETBV tells which components are in use.
    pub(crate) xgetbv1: bool,
    /// Bits of MXCSR that can be set.
    pub(crate) mxcsr: u32,
    /// The highest standard and the highest extended leaf of CPUID.
    pub(crate) highest_leaves: [u32; 2],
    /// Width of physical addresses.
    pub(crate) phys_bits: u32,
    /// 5-level paging is there.
    pub(crate) la57: bool,
    /// Bits of CR3 above an address that can be set: which pointers have tags.
    pub(crate) cr3_tags: u64,
    /// Model-specific registers that not every model has.
    pub(crate) msrs: Groups,
    /// Instructions that are there.
    pub(crate) instructions: Instructions,
    /// Programs can write the address and the further information of a machine check.
    pub(crate) mc_details: bool,
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
            ("pku", CR4_PKE),
            ("pks", CR4_PKS),
            ("la57", CR4_LA57),
            ("lam", CR4_LAM_SUP),
        ]);
        let efer = bits(&[
            ("syscall", EFER_SCE),
            ("lm", EFER_LME | EFER_LMA),
            ("nx", EFER_NXE),
            ("svm", EFER_SVME),
            ("fxsr-opt", EFER_FFXSR),
        ]);
        let intel = model.vendor == Vendor::Intel;
        let mut instructions = model.features.instructions();
        instructions.intel = intel;
        instructions.hypercalls = model.kvm || model.hyperv.is_on();
        // `max` is no processor of anybody's, and can do what any can.
        let any = model.name == MAX;
        instructions.wide_far = intel || any;
        Self {
            cr4: cr4 | CR4_PCE,
            efer,
            xcr0: component::X87
                | component::SSE
                | bits(&[("avx", component::AVX), ("pku", component::PKRU)]),
            xgetbv1: model.features.has_name("xgetbv1"),
            mxcsr: MXCSR_MASK | bits(&[("misalignsse", MXCSR_MM.into())]) as u32,
            highest_leaves: [model.highest_standard(), model.highest_extended()],
            phys_bits: model.phys_bits,
            la57: model.features.has_name("la57"),
            cr3_tags: bits(&[("lam", CR3_LAM_U57 | CR3_LAM_U48)]),
            msrs: Groups::of(&model.features),
            instructions,
            mc_details: !intel || any,
            intel,
        }
    }

    /// Width of the linear addresses that the processor's registers hold.
    pub(crate) fn linear_bits(&self) -> u32 {
        if self.la57 { LINEAR_BITS_57 } else { LINEAR_BITS }
    }
}

/// The highest leaves of CPUID: what they are at least, and what they are whatever there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Levels {
    standard: Level,
    extended: Level,
    /// Features that have leaves of their own raise them.
    by_features: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Level {
    least: u32,
    exact: Option<u32>,
}

impl Level {
    fn at_least(least: u32) -> Self {
        Self { least, exact: None }
    }
}

/// A model, maybe with changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// As the command line has it.
    pub name: String,
    /// Whose ways it has.
    pub vendor: Vendor,
    /// The twelve letters of leaf 0, which tell who made it.
    pub vendor_letters: &'static [u8; 12],
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
    /// Width of physical addresses in bits.
    pub phys_bits: u32,
    /// It is the host's, up to the limit.
    host_phys_bits: bool,
    phys_bits_limit: u32,
    /// The highest standard and extended leaves of CPUID.
    levels: Levels,
    /// Its caches, as CPUID tells of them.
    pub(crate) caches: Vec<Cache>,
    /// Whether leaf 0xb tells of the topology.
    pub(crate) topology_leaf: bool,
    /// Whether frequencies are told where VMware tells them, if there is a fixed one.
    pub(crate) frequency_leaf: bool,
    /// Ticks of the time-stamp counter per second, if the machine's own rate will not do.
    pub tsc_hz: Option<u64>,
    /// Whether there are performance counters.
    pub pmu: bool,
    /// Whether the guest is told that it can use what KVM offers (see `kvm`).
    pub kvm: bool,
    /// What of Hyper-V's interface the guest is offered (see `hyperv`).
    pub hyperv: Enlightenments,
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
    /// A feature is on without another that it needs.
    Needs(String, String),
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
            Self::Needs(name, needed) => {
                write!(
                    f,
                    "feature '{name}' needs '{needed}', which is off; turn it on, or leave '{name}' off"
                )
            }
        }
    }
}

impl std::error::Error for ModelError {}

/// The feature that says that the time-stamp counter never changes its rate.
const INVTSC: &str = "invtsc";

impl Default for CpuModel {
    fn default() -> Self {
        Self::of(&MODELS[0])
    }
}

impl CpuModel {
    /// Names and descriptions of all models, the default first.
    pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
        let description = |base: &str| {
            MODELS.iter().find(|known| known.name == base).map_or("", |known| known.description)
        };
        let variants = VARIANTS.iter().map(move |&(name, base, _)| (name, description(base)));
        MODELS.iter().map(|known| (known.name, known.description)).chain(variants)
    }

    fn of(known: &Known) -> Self {
        let mut features = FeatureSet::all();
        if !known.features.is_empty() {
            features = FeatureSet::of(&format!("{} {KVM}", known.features.join(" ")));
        } else {
            // They work. But a guest that idles by MONITOR keeps the host busy, a time-stamp counter that never
            // changes its rate binds a guest to its host, and frequencies are of no use to a guest: for who
            // asks.
            let on_demand = ["monitor", "rdpru", INVTSC].into_iter().filter_map(find);
            on_demand.for_each(|feature| features.set(feature, false));
        }
        let letters = Vendor::LETTERS.into_iter().find(|(letters, vendor)| {
            *vendor == known.vendor && (*letters == HYGON) == (known.name == DHYANA)
        });
        let mut model = Self {
            name: known.name.to_owned(),
            vendor: known.vendor,
            vendor_letters: letters.map_or(HYGON, |(letters, _)| letters),
            family: known.family,
            model: known.model,
            stepping: known.stepping,
            brand: if known.brand.is_empty() { "Rhea Virtual CPU" } else { known.brand }.to_owned(),
            features,
            phys_bits: PHYS_BITS,
            host_phys_bits: false,
            phys_bits_limit: options::MAX_PHYS_BITS,
            levels: Levels {
                standard: Level::at_least(known.levels[0]),
                extended: Level::at_least(known.levels[1]),
                by_features: true,
            },
            caches: caches::DEFAULT.to_vec(),
            topology_leaf: true,
            frequency_leaf: true,
            tsc_hz: None,
            pmu: known.features.is_empty(),
            kvm: true,
            hyperv: Enlightenments::default(),
        };
        if known.name == HOST {
            host::identify(&mut model);
        }
        model
    }

    /// The highest of those of `leaves` that are needed, unless `level` says otherwise.
    fn highest(&self, level: Level, leaves: &[(bool, u32)]) -> u32 {
        let needed = leaves.iter().filter(|(needed, _)| *needed && self.levels.by_features);
        level.exact.unwrap_or_else(|| needed.map(|(_, leaf)| *leaf).fold(level.least, u32::max))
    }

    /// The highest standard leaf of CPUID.
    fn highest_standard(&self) -> u32 {
        let any = |words: &[Word]| words.iter().any(|&word| self.features.word(word) != 0);
        let seven = [Word::Leaf7Ebx, Word::Leaf7Ecx, Word::Leaf7Edx, Word::Leaf7Sub1Eax];
        let leaves = [
            (any(&[Word::Leaf6Eax]), 6),
            (any(&seven), 7),
            (self.pmu && self.vendor == Vendor::Intel, 0xa),
            (self.features.has_name("xsave"), 0xd),
        ];
        self.highest(self.levels.standard, &leaves)
    }

    /// The highest extended leaf of CPUID, or zero.
    fn highest_extended(&self) -> u32 {
        let any = |word| self.features.word(word) != 0;
        // Those above 0x8000_0008 are AMD's.
        let amd = self.vendor == Vendor::Amd;
        let leaves = [
            (any(Word::ExtendedEcx) || any(Word::ExtendedEdx), 0x8000_0001),
            (any(Word::PowerEdx), 0x8000_0007),
            (any(Word::AddressEbx), 0x8000_0008),
            (amd && self.features.has_name("svm"), 0x8000_000a),
            (amd && self.features.has_name("topoext"), 0x8000_001e),
            (amd && any(Word::Extended2Eax), 0x8000_0021),
        ];
        let Level { mut least, exact } = self.levels.extended;
        if !amd {
            least = least.min(0x8000_0008);
        }
        self.highest(Level { least, exact }, &leaves)
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

    /// EAX of leaf 1, and in the upper half EDX, as SMBIOS tells them.
    pub fn processor_id(&self) -> u64 {
        u64::from(self.features.word(Word::Leaf1Edx)) << 32 | u64::from(self.signature())
    }

    /// Features that have names, for help.
    pub fn feature_names() -> impl Iterator<Item = &'static str> {
        FEATURES.iter().map(|feature| feature.name())
    }
}

#[cfg(test)]
mod tests {
    use super::known::MODELS;
    use super::*;
    use crate::feature::{PERFCTR_CORE, is_absent};

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
        assert!(refusal("max,+kvm_pv_unhalt").contains("feature 'kvm_pv_unhalt'"));
        assert!(CpuModel::parse("max,-kvm-asyncpf,-hv-evmcs,+pmu").unwrap().pmu);
        assert!(!CpuModel::parse("max,-pmu").unwrap().pmu);
    }

    #[test]
    fn what_kvm_offers_can_be_hidden() {
        let has = |text: &str, name: &str| CpuModel::parse(text).unwrap().features.has_name(name);
        for model in ["max", "host", "qemu64", "Haswell", "pentium"] {
            assert!(has(model, "kvmclock") && has(model, "kvmclock-stable-bit"), "{model}");
        }
        // Its clock goes by the time-stamp counter.
        assert!(!has("486", "kvmclock") && has("486", "kvm-nopiodelay"));
        assert!(
            !has("max,kvm=off", "kvm-nopiodelay") && !has("max,-kvmclock", "kvmclock-stable-bit")
        );
        assert!(!CpuModel::parse("max,kvm=off").unwrap().kvm);
    }

    #[test]
    fn a_counter_of_constant_rate_is_for_who_asks() {
        let has = |text: &str| CpuModel::parse(text).unwrap().features.has_name(INVTSC);
        assert!(!has("max") && has("max,+invtsc") && has("max,migratable=off"));
        assert!(!has("max,migratable=on") && !has("Haswell,migratable=off"));
    }

    #[test]
    fn counters_of_the_core_extensions_are_amds_where_there_are_counters() {
        let has = |text: &str| CpuModel::parse(text).unwrap().features.has_name(PERFCTR_CORE);
        assert!(has("max") && has("EPYC-Rome,pmu=on") && !has("EPYC,pmu=on"));
        assert!(!has("EPYC-Rome") && !has("max,pmu=off") && !has("max,vendor=GenuineIntel"));
    }

    #[test]
    fn every_variant_is_one_of_a_model() {
        for (name, base, extra) in VARIANTS {
            let model = CpuModel::parse(name).unwrap();
            assert_eq!(model.name, *base);
            assert!(extra.is_empty() || model.features.has_name(extra), "{name}");
        }
    }

    #[test]
    fn physical_addresses_are_as_wide_as_asked_for() {
        assert_eq!(
            CpuModel::parse("IvyBridge,phys-bits=36,host-phys-bits=off").unwrap().phys_bits,
            36
        );
        assert_eq!(CpuModel::parse("max,phys-bits=0").unwrap().phys_bits, PHYS_BITS);
        assert!(CpuModel::parse("max,phys-bits=53").is_err());
        assert!(CpuModel::parse("max,phys-bits=16").is_err());
        let host = CpuModel::parse("max,host-phys-bits=on").unwrap().phys_bits;
        let limited = CpuModel::parse("max,host-phys-bits-limit=36,host-phys-bits=on").unwrap();
        assert_eq!(limited.phys_bits, host.min(36));
        assert_eq!(CpuModel::parse("max,host-phys-bits-limit=36").unwrap().phys_bits, PHYS_BITS);
    }

    #[test]
    fn leaves_go_as_far_as_the_processor_and_its_features() {
        let levels = |text: &str| {
            let model = CpuModel::parse(text).unwrap();
            (model.highest_standard(), model.highest_extended())
        };
        assert_eq!(levels("max"), (0xd, 0x8000_0021));
        assert_eq!(levels("max,vendor=GenuineIntel"), (0xd, 0x8000_0008));
        assert_eq!(levels("486"), (1, 0));
        assert_eq!(levels("pentium3"), (3, 0));
        assert_eq!(levels("pentium3,+smep,+lm"), (7, 0x8000_0001));
        assert_eq!(levels("pentium3,+smep,+lm,full-cpuid-auto-level=off"), (3, 0));
        assert_eq!(levels("Nehalem,+xsave"), (0xd, 0x8000_0008));
        assert_eq!(levels("Conroe,level=4,xlevel=0x80000004"), (4, 0x8000_0004));
        assert_eq!(levels("qemu64,min-level=0x16,min-xlevel=0x8000001a"), (0x16, 0x8000_001a));
        assert_eq!(levels("max,level=4,level=0xffffffff,xlevel=4294967295"), levels("max"));
        assert!(CpuModel::parse("max,level=0x100000000").is_err());
        assert!(CpuModel::parse("max,min-level=0x40000000").is_err());
    }

    #[test]
    fn the_counter_has_the_rate_asked_for() {
        let hz = |text: &str| CpuModel::parse(text).map(|model| model.tsc_hz);
        assert_eq!(hz("max"), Ok(None));
        assert_eq!(hz("max,tsc-frequency=2000000000"), Ok(Some(2_000_000_000)));
        assert_eq!(hz("max,tsc-freq=2.5G"), Ok(Some(2_500_000_000)));
        assert_eq!(hz("max,tsc-freq=2.5G,tsc-frequency=0"), Ok(None));
        for text in
            ["tsc-frequency=1", "tsc-freq=1e30G", "tsc-freq=G", "tsc-frequency=2G", "tsc-freq=-1G"]
        {
            assert!(hz(&format!("max,{text}")).is_err(), "{text}");
        }
    }

    #[test]
    fn caches_are_as_asked_for() {
        let caches = |text: &str| CpuModel::parse(text).unwrap().caches;
        assert_eq!(caches("max").len(), 4);
        assert!(!caches("max,l3-cache=off").iter().any(|cache| cache.is_last()));
        assert_eq!(caches("max,host-cache-info=off"), caches("max,l3-cache=on"));
        assert_eq!(caches("host,host-cache-info=on"), host::caches());
    }

    #[test]
    fn every_feature_that_a_model_names_is_known() {
        for known in MODELS {
            for name in known.features.join(" ").split_whitespace() {
                assert!(find(name).is_some() || is_absent(name), "{}: {name}", known.name);
            }
            assert!(known.brand.len() < 48);
        }
    }
}
