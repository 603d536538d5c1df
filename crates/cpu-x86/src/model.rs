//! CPU models: what CPUID says of vendor, family and name, and which features a CPU has.
//!
//! Models are named as QEMU names them, with the identity of the processors they stand for. Of their
//! features they have what this build implements.

use std::fmt;

use crate::feature::{FEATURES, FeatureSet, Instructions, PERFCTR_CORE, Word, find, is_absent};
use crate::fpu::xsave::component;
use crate::fpu::{MXCSR_MASK, MXCSR_MM};
use crate::hyperv::Enlightenments;
use crate::mmu::{LINEAR_BITS, LINEAR_BITS_57, PHYS_BITS};
use crate::regs::*;

/// The letters of a vendor whose processors are AMD's, of which one model is.
const HYGON: &[u8; 12] = b"HygonGenuine";
const DHYANA: &str = "Dhyana";

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

/// Widths of physical addresses that a model can have: PAE's tables need the least, entries of long mode
/// have room for the most.
const MIN_PHYS_BITS: u32 = 32;
const MAX_PHYS_BITS: u32 = 52;

/// What KVM offers, on all models.
const KVM: &str = "kvmclock kvm-nopiodelay kvm-asyncpf kvm-steal-time kvm-pv-eoi \
    kvm-asyncpf-int kvmclock-stable-bit";

/// The model that has all features.
const MAX: &str = "max";
/// The model that is like the host.
const HOST: &str = "host";
/// The feature that says that the time-stamp counter never changes its rate.
const INVTSC: &str = "invtsc";

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
const WESTMERE: &str = "aes pclmulqdq arat";
const SANDY_BRIDGE: &str = "avx xsave xsaveopt tsc-deadline rdtscp";
const IVY_BRIDGE: &str = "f16c rdrand fsgsbase smep erms";
const HASWELL: &str = "fma movbe pcid bmi1 bmi2 avx2 invpcid abm";
const BROADWELL: &str = "rdseed adx smap 3dnowprefetch";
const SKYLAKE: &str = "xsavec xgetbv1 spec-ctrl";
const SKYLAKE_SERVER: &str = "clflushopt clwb pdpe1gb pku";
const ICELAKE: &str =
    "la57 umip vaes vpclmulqdq rdpid fsrm wbnoinvd sha-ni xsaves arch-capabilities";
const DENVERTON: &str = "tsc-deadline xsave rdrand 3dnowprefetch pdpe1gb rdtscp fsgsbase smep erms rdseed \
    smap clflushopt sha-ni spec-ctrl arch-capabilities xsaveopt xsavec xgetbv1 movbe";
const AMD: &str =
    "mmxext sse4a topoext 3dnowprefetch abm rdtscp pdpe1gb cr8legacy svm npt nrip-save";
const EPYC: &str = "sse4.1 sse4.2 popcnt aes pclmulqdq avx xsave xsaveopt f16c rdrand fsgsbase smep fma \
    movbe bmi1 bmi2 avx2 rdseed adx smap clflushopt sha-ni xsavec xgetbv1 arat fxsr-opt osvw misalignsse";
const ROME: &str = "perfctr-core clwb umip rdpid xsaveerptr clzero wbnoinvd";
const MILAN: &str = "pcid invpcid erms fsrm pku vaes vpclmulqdq null-sel-clr-base \
    lfence-always-serializing";

/// Names of models that differ from others in what is no difference here, transactional memory; or by
/// features that came with the answers to speculative execution.
const VARIANTS: &[(&str, &str, &str)] = &[
    ("Nehalem-IBRS", "Nehalem", "spec-ctrl"),
    ("Westmere-IBRS", "Westmere", "spec-ctrl"),
    ("SandyBridge-IBRS", "SandyBridge", "spec-ctrl"),
    ("IvyBridge-IBRS", "IvyBridge", "spec-ctrl"),
    ("Haswell-IBRS", "Haswell", "spec-ctrl"),
    ("Haswell-noTSX", "Haswell", ""),
    ("Haswell-noTSX-IBRS", "Haswell", "spec-ctrl"),
    ("Broadwell-IBRS", "Broadwell", "spec-ctrl"),
    ("Broadwell-noTSX", "Broadwell", ""),
    ("Broadwell-noTSX-IBRS", "Broadwell", "spec-ctrl"),
    ("Skylake-Client-IBRS", "Skylake-Client", "spec-ctrl"),
    ("Skylake-Client-noTSX-IBRS", "Skylake-Client", "spec-ctrl"),
    ("Skylake-Server-IBRS", "Skylake-Server", "spec-ctrl"),
    ("Skylake-Server-noTSX-IBRS", "Skylake-Server", "spec-ctrl"),
    ("Cascadelake-Server-noTSX", "Cascadelake-Server", ""),
    ("Icelake-Server-noTSX", "Icelake-Server", ""),
    ("EPYC-IBPB", "EPYC", ""),
];

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
            MAX,
            "Enables all features supported by the accelerator (default)",
            Amd,
            [15, 107, 1],
            "",
            &[],
        ),
        known(
            HOST,
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
        known("486", "486", Intel, [4, 8, 0], "", &["fpu vme pse hypervisor"]),
        known(
            "kvm32",
            "Common 32-bit KVM processor",
            Intel,
            [15, 6, 1],
            "Common 32-bit KVM processor",
            &[P6, "vme mtrr clflush mca pse36 pni"],
        ),
        known(
            "coreduo",
            "Genuine Intel(R) CPU           T2600  @ 2.16GHz",
            Intel,
            [6, 14, 8],
            "Genuine Intel(R) CPU           T2600  @ 2.16GHz",
            &[P6, "vme mtrr clflush mca nx pni monitor"],
        ),
        known(
            "n270",
            "Intel(R) Atom(TM) CPU N270   @ 1.60GHz",
            Intel,
            [6, 28, 2],
            "Intel(R) Atom(TM) CPU N270   @ 1.60GHz",
            &[P6, "vme mtrr clflush mca nx pni ssse3 monitor movbe lahf-lm"],
        ),
        known(
            "athlon",
            "QEMU Virtual CPU version 2.5+",
            Amd,
            [6, 2, 3],
            "QEMU Virtual CPU version 2.5+",
            &[P6, "vme mtrr mca pse36"],
        ),
        known(
            "phenom",
            "AMD Phenom(tm) 9550 Quad-Core Processor",
            Amd,
            [16, 2, 3],
            "AMD Phenom(tm) 9550 Quad-Core Processor",
            &[X86_64, "vme pni monitor cx16 popcnt pdpe1gb rdtscp lahf-lm abm svm npt fxsr-opt"],
        ),
        known(
            "Conroe",
            "Intel Celeron_4x0 (Conroe/Merom Class Core 2)",
            Intel,
            [6, 15, 3],
            "Intel Celeron_4x0 (Conroe/Merom Class Core 2)",
            &[X86_64, "vme pni ssse3 lahf-lm"],
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
            "Opteron_G1",
            "AMD Opteron 240 (Gen 1 Class Opteron)",
            Amd,
            [15, 6, 1],
            "AMD Opteron 240 (Gen 1 Class Opteron)",
            &[X86_64, "vme pni"],
        ),
        known(
            "Opteron_G2",
            "AMD Opteron 22xx (Gen 2 Class Opteron)",
            Amd,
            [15, 6, 1],
            "AMD Opteron 22xx (Gen 2 Class Opteron)",
            &[X86_64, "vme pni cx16 lahf-lm svm"],
        ),
        known(
            "Opteron_G3",
            "AMD Opteron 23xx (Gen 3 Class Opteron)",
            Amd,
            [16, 2, 3],
            "AMD Opteron 23xx (Gen 3 Class Opteron)",
            &[X86_64, "vme pni cx16 popcnt monitor rdtscp abm lahf-lm svm misalignsse"],
        ),
        known(
            "Opteron_G4",
            "AMD Opteron 62xx class CPU",
            Amd,
            [21, 1, 2],
            "AMD Opteron 62xx class CPU",
            &[
                X86_64,
                "vme pni pclmulqdq ssse3 cx16 sse4.1 sse4.2 popcnt aes xsave avx pdpe1gb rdtscp lahf-lm abm 3dnowprefetch svm npt nrip-save misalignsse",
            ],
        ),
        known(
            "Opteron_G5",
            "AMD Opteron 63xx class CPU",
            Amd,
            [21, 2, 0],
            "AMD Opteron 63xx class CPU",
            &[
                X86_64,
                "vme pni pclmulqdq ssse3 fma cx16 sse4.1 sse4.2 popcnt aes xsave avx f16c pdpe1gb rdtscp lahf-lm abm 3dnowprefetch svm npt nrip-save misalignsse",
            ],
        ),
        known(
            "Cascadelake-Server",
            "Intel Xeon Processor (Cascadelake)",
            Intel,
            [6, 85, 6],
            "Intel Xeon Processor (Cascadelake)",
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
            "Cooperlake",
            "Intel Xeon Processor (Cooperlake)",
            Intel,
            [6, 85, 10],
            "Intel Xeon Processor (Cooperlake)",
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
                "arch-capabilities",
            ],
        ),
        known(
            "Icelake-Server",
            "Intel Xeon Processor (Icelake)",
            Intel,
            [6, 134, 0],
            "Intel Xeon Processor (Icelake)",
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
                ICELAKE,
            ],
        ),
        known(
            "Denverton",
            "Intel Atom Processor (Denverton)",
            Intel,
            [6, 95, 1],
            "Intel Atom Processor (Denverton)",
            &[X86_64, CORE, NEHALEM, WESTMERE, DENVERTON],
        ),
        known(
            "Snowridge",
            "Intel Atom Processor (SnowRidge)",
            Intel,
            [6, 134, 1],
            "Intel Atom Processor (SnowRidge)",
            &[X86_64, CORE, NEHALEM, WESTMERE, DENVERTON, "clwb umip"],
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
        known(
            DHYANA,
            "Hygon Dhyana Processor",
            Amd,
            [24, 0, 1],
            "Hygon Dhyana Processor",
            &[X86_64, CORE, AMD, EPYC],
        ),
        known(
            "KnightsMill",
            "Intel Xeon Phi Processor (Knights Mill)",
            Intel,
            [6, 133, 0],
            "Intel Xeon Phi Processor (Knights Mill)",
            &[
                X86_64,
                CORE,
                NEHALEM,
                WESTMERE,
                SANDY_BRIDGE,
                "f16c rdrand fsgsbase erms fma movbe bmi1 bmi2 avx2 abm rdseed adx 3dnowprefetch pdpe1gb",
            ],
        ),
        known(
            "base",
            "base CPU model type with no features enabled",
            Amd,
            [0, 0, 0],
            " ",
            &["fpu"],
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
            pmu: known.features.is_empty(),
            kvm: true,
            hyperv: Enlightenments::default(),
        };
        if known.name == HOST {
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
        let number = |max: u32| value.parse().ok().filter(|&n| n <= max).ok_or_else(bad);
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
            "pmu" => self.pmu = switch()?,
            "kvm" => self.kvm = switch()?,
            // The models that take what there is take this, too, if they need not move to another host.
            "migratable" => {
                let takes_all = matches!(self.name.as_str(), MAX | HOST);
                if !switch()? && takes_all {
                    self.set_feature(INVTSC, true)?;
                }
            }
            "host-phys-bits" => {
                if switch()? {
                    self.phys_bits = host::phys_bits();
                }
            }
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
        let Some(vendor) = Vendor::of(&vendor) else { return };
        (model.vendor_letters, model.vendor) = vendor;
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
                Word::AddressEbx => extended(0x8000_0008).map_or(0, |leaf| leaf.ebx) | 1 << 2,
                // What concerns speculation and power is this CPU's own.
                _ => u32::MAX,
            };
            if word >> feature.bit() & 1 == 0 {
                model.features.set(feature, false);
            }
        }
    }

    /// Width of the host's physical addresses.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn phys_bits() -> u32 {
        use std::arch::x86_64::__cpuid;

        let widths = if __cpuid(0x8000_0000).eax >= 0x8000_0008 {
            __cpuid(0x8000_0008).eax & 0xff
        } else {
            super::PHYS_BITS
        };
        widths.clamp(super::MIN_PHYS_BITS, super::MAX_PHYS_BITS)
    }

    /// Elsewhere it is as if nobody had asked.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn phys_bits() -> u32 {
        super::PHYS_BITS
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
