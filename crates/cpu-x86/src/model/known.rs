//! The table of models: processors as QEMU names them, with their identity, the highest leaves that their
//! CPUID answers, and those of their features that this build implements.

use super::Vendor;

/// What KVM offers, on all models.
pub(super) const KVM: &str = "kvmclock kvm-nopiodelay kvm-asyncpf kvm-steal-time kvm-pv-eoi \
    kvm-asyncpf-int kvmclock-stable-bit";

/// The model that has all features.
pub(super) const MAX: &str = "max";
/// The model that is like the host.
pub(super) const HOST: &str = "host";
/// A model of AMD's kind whose maker has another name.
pub(super) const DHYANA: &str = "Dhyana";

/// A model in the table.
pub(super) struct Known {
    pub(super) name: &'static str,
    pub(super) description: &'static str,
    pub(super) vendor: Vendor,
    pub(super) family: u32,
    pub(super) model: u32,
    pub(super) stepping: u32,
    /// The highest standard and the highest extended leaf, which features may raise.
    pub(super) levels: [u32; 2],
    /// Empty for this build's own.
    pub(super) brand: &'static str,
    /// Names of features; empty for all.
    pub(super) features: &'static [&'static str],
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
pub(super) const VARIANTS: &[(&str, &str, &str)] = &[
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
pub(super) const MODELS: &[Known] = {
    use Vendor::*;
    const fn known(
        name: &'static str,
        description: &'static str,
        vendor: Vendor,
        signature: [u32; 3],
        levels: [u32; 2],
        brand: &'static str,
        features: &'static [&'static str],
    ) -> Known {
        let [family, model, stepping] = signature;
        Known { name, description, vendor, family, model, stepping, levels, brand, features }
    }
    const CORE_BRAND: &str = "Intel Core Processor (Haswell)";
    &[
        known(
            MAX,
            "Enables all features supported by the accelerator (default)",
            Amd,
            [15, 107, 1],
            [0xd, 0x8000_000a],
            "",
            &[],
        ),
        known(
            HOST,
            "The host's identity with all features that both have",
            Amd,
            [15, 107, 1],
            [0xd, 0x8000_000a],
            "",
            &[],
        ),
        known(
            "qemu64",
            "QEMU Virtual CPU version 2.5+",
            Amd,
            [15, 107, 1],
            [0xd, 0x8000_000a],
            "QEMU Virtual CPU version 2.5+",
            &[X86_64, "pni cx16 lahf-lm svm"],
        ),
        known(
            "qemu32",
            "QEMU Virtual CPU version 2.5+",
            Intel,
            [6, 6, 3],
            [4, 0x8000_0004],
            "QEMU Virtual CPU version 2.5+",
            &[P6, "pni"],
        ),
        known(
            "kvm64",
            "Common KVM processor",
            Intel,
            [15, 6, 1],
            [0xd, 0x8000_0008],
            "Common KVM processor",
            &[X86_64, "vme pni cx16"],
        ),
        known("486", "486", Intel, [4, 8, 0], [1, 0], "", &["fpu vme pse hypervisor"]),
        known(
            "kvm32",
            "Common 32-bit KVM processor",
            Intel,
            [15, 6, 1],
            [5, 0x8000_0008],
            "Common 32-bit KVM processor",
            &[P6, "vme mtrr clflush mca pse36 pni"],
        ),
        known(
            "coreduo",
            "Genuine Intel(R) CPU           T2600  @ 2.16GHz",
            Intel,
            [6, 14, 8],
            [0xa, 0x8000_0008],
            "Genuine Intel(R) CPU           T2600  @ 2.16GHz",
            &[P6, "vme mtrr clflush mca nx pni monitor"],
        ),
        known(
            "n270",
            "Intel(R) Atom(TM) CPU N270   @ 1.60GHz",
            Intel,
            [6, 28, 2],
            [0xa, 0x8000_0008],
            "Intel(R) Atom(TM) CPU N270   @ 1.60GHz",
            &[P6, "vme mtrr clflush mca nx pni ssse3 monitor movbe lahf-lm"],
        ),
        known(
            "athlon",
            "QEMU Virtual CPU version 2.5+",
            Amd,
            [6, 2, 3],
            [2, 0x8000_0008],
            "QEMU Virtual CPU version 2.5+",
            &[P6, "vme mtrr mca pse36"],
        ),
        known(
            "phenom",
            "AMD Phenom(tm) 9550 Quad-Core Processor",
            Amd,
            [16, 2, 3],
            [5, 0x8000_001a],
            "AMD Phenom(tm) 9550 Quad-Core Processor",
            &[X86_64, "vme pni monitor cx16 popcnt pdpe1gb rdtscp lahf-lm abm svm npt fxsr-opt"],
        ),
        known(
            "Conroe",
            "Intel Celeron_4x0 (Conroe/Merom Class Core 2)",
            Intel,
            [6, 15, 3],
            [0xa, 0x8000_0008],
            "Intel Celeron_4x0 (Conroe/Merom Class Core 2)",
            &[X86_64, "vme pni ssse3 lahf-lm"],
        ),
        known(
            "pentium",
            "Intel Pentium",
            Intel,
            [5, 4, 3],
            [1, 0],
            "pentium",
            &["fpu vme de pse tsc msr mce cx8 mmx apic hypervisor"],
        ),
        known(
            "pentium2",
            "Intel Pentium II",
            Intel,
            [6, 5, 2],
            [2, 0],
            "pentium2",
            &[OLD, "mmx fxsr pae"],
        ),
        known(
            "pentium3",
            "Intel Pentium III",
            Intel,
            [6, 7, 3],
            [3, 0],
            "pentium3",
            &[OLD, "mmx fxsr sse pae"],
        ),
        known(
            "core2duo",
            "Intel(R) Core(TM)2 Duo CPU",
            Intel,
            [6, 15, 11],
            [0xa, 0x8000_0008],
            "Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz",
            &[X86_64, CORE],
        ),
        known(
            "Penryn",
            "Intel Core 2 Duo P9xxx (Penryn Class Core 2)",
            Intel,
            [6, 23, 3],
            [0xa, 0x8000_0008],
            "Intel Core 2 Duo P9xxx (Penryn Class Core 2)",
            &[X86_64, CORE, "sse4.1"],
        ),
        known(
            "Nehalem",
            "Intel Core i7 9xx (Nehalem Class Core i7)",
            Intel,
            [6, 26, 3],
            [0xb, 0x8000_0008],
            "Intel Core i7 9xx (Nehalem Class Core i7)",
            &[X86_64, CORE, NEHALEM],
        ),
        known(
            "Westmere",
            "Westmere E56xx/L56xx/X56xx (Nehalem-C)",
            Intel,
            [6, 44, 1],
            [0xb, 0x8000_0008],
            "Westmere E56xx/L56xx/X56xx (Nehalem-C)",
            &[X86_64, CORE, NEHALEM, WESTMERE],
        ),
        known(
            "SandyBridge",
            "Intel Xeon E312xx (Sandy Bridge)",
            Intel,
            [6, 42, 1],
            [0xd, 0x8000_0008],
            "Intel Xeon E312xx (Sandy Bridge)",
            &[X86_64, CORE, NEHALEM, WESTMERE, SANDY_BRIDGE],
        ),
        known(
            "IvyBridge",
            "Intel Xeon E3-12xx v2 (Ivy Bridge)",
            Intel,
            [6, 58, 9],
            [0xd, 0x8000_0008],
            "Intel Xeon E3-12xx v2 (Ivy Bridge)",
            &[X86_64, CORE, NEHALEM, WESTMERE, SANDY_BRIDGE, IVY_BRIDGE],
        ),
        known(
            "Haswell",
            "Intel Core Processor (Haswell)",
            Intel,
            [6, 60, 4],
            [0xd, 0x8000_0008],
            CORE_BRAND,
            &[X86_64, CORE, NEHALEM, WESTMERE, SANDY_BRIDGE, IVY_BRIDGE, HASWELL],
        ),
        known(
            "Broadwell",
            "Intel Core Processor (Broadwell)",
            Intel,
            [6, 61, 2],
            [0xd, 0x8000_0008],
            "Intel Core Processor (Broadwell)",
            &[X86_64, CORE, NEHALEM, WESTMERE, SANDY_BRIDGE, IVY_BRIDGE, HASWELL, BROADWELL],
        ),
        known(
            "Skylake-Client",
            "Intel Core Processor (Skylake)",
            Intel,
            [6, 94, 3],
            [0xd, 0x8000_0008],
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
            [0xd, 0x8000_0008],
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
            [5, 0x8000_0008],
            "AMD Opteron 240 (Gen 1 Class Opteron)",
            &[X86_64, "vme pni"],
        ),
        known(
            "Opteron_G2",
            "AMD Opteron 22xx (Gen 2 Class Opteron)",
            Amd,
            [15, 6, 1],
            [5, 0x8000_000a],
            "AMD Opteron 22xx (Gen 2 Class Opteron)",
            &[X86_64, "vme pni cx16 lahf-lm svm"],
        ),
        known(
            "Opteron_G3",
            "AMD Opteron 23xx (Gen 3 Class Opteron)",
            Amd,
            [16, 2, 3],
            [5, 0x8000_000a],
            "AMD Opteron 23xx (Gen 3 Class Opteron)",
            &[X86_64, "vme pni cx16 popcnt monitor rdtscp abm lahf-lm svm misalignsse"],
        ),
        known(
            "Opteron_G4",
            "AMD Opteron 62xx class CPU",
            Amd,
            [21, 1, 2],
            [0xd, 0x8000_001a],
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
            [0xd, 0x8000_001a],
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
            [0xd, 0x8000_0008],
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
            [0xd, 0x8000_0008],
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
            [0xd, 0x8000_0008],
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
            [0x15, 0x8000_0008],
            "Intel Atom Processor (Denverton)",
            &[X86_64, CORE, NEHALEM, WESTMERE, DENVERTON],
        ),
        known(
            "Snowridge",
            "Intel Atom Processor (SnowRidge)",
            Intel,
            [6, 134, 1],
            [0x1b, 0x8000_0008],
            "Intel Atom Processor (SnowRidge)",
            &[X86_64, CORE, NEHALEM, WESTMERE, DENVERTON, "clwb umip"],
        ),
        known(
            "EPYC",
            "AMD EPYC Processor",
            Amd,
            [23, 1, 2],
            [0xd, 0x8000_001e],
            "AMD EPYC Processor",
            &[X86_64, CORE, AMD, EPYC],
        ),
        known(
            "EPYC-Rome",
            "AMD EPYC-Rome Processor",
            Amd,
            [23, 49, 0],
            [0xd, 0x8000_001e],
            "AMD EPYC-Rome Processor",
            &[X86_64, CORE, AMD, EPYC, ROME],
        ),
        known(
            "EPYC-Milan",
            "AMD EPYC-Milan Processor",
            Amd,
            [25, 1, 1],
            [0xd, 0x8000_001e],
            "AMD EPYC-Milan Processor",
            &[X86_64, CORE, AMD, EPYC, ROME, MILAN],
        ),
        known(
            DHYANA,
            "Hygon Dhyana Processor",
            Amd,
            [24, 0, 1],
            [0xd, 0x8000_001e],
            "Hygon Dhyana Processor",
            &[X86_64, CORE, AMD, EPYC],
        ),
        known(
            "KnightsMill",
            "Intel Xeon Phi Processor (Knights Mill)",
            Intel,
            [6, 133, 0],
            [0xd, 0x8000_0008],
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
            [0, 0],
            " ",
            &["fpu"],
        ),
    ]
};
