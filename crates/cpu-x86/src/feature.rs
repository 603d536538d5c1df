//! The features of a CPU: one table with the name of each, where CPUID tells of it (APM volume 3,
//! appendix E), and the instructions that come with it. CPUID, the decoder, control registers, the
//! command line and tests all go by it.
//!
//! Only what is implemented is in [`FEATURES`]. A model has a part of it: instructions of the rest are
//! undefined, and its control bits reserved.

use iced_x86::CpuidFeature as F;

/// The words of CPUID that have feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Word {
    /// Leaf 1, EDX.
    Leaf1Edx,
    /// Leaf 1, ECX.
    Leaf1Ecx,
    /// Leaf 6, EAX.
    Leaf6Eax,
    /// Leaf 7, subleaf 0, EBX.
    Leaf7Ebx,
    /// Leaf 7, subleaf 0, ECX.
    Leaf7Ecx,
    /// Leaf 7, subleaf 0, EDX.
    Leaf7Edx,
    /// Leaf 7, subleaf 1, EAX.
    Leaf7Sub1Eax,
    /// Leaf 0xd, subleaf 1, EAX.
    XsaveEax,
    /// Leaf 0x8000_0001, EDX, without what repeats leaf 1.
    ExtendedEdx,
    /// Leaf 0x8000_0001, ECX.
    ExtendedEcx,
    /// Leaf 0x8000_0007, EDX.
    PowerEdx,
    /// Leaf 0x8000_0008, EBX.
    AddressEbx,
    /// Leaf 0x8000_000a, EDX.
    SvmEdx,
    /// Leaf 0x8000_0021, EAX.
    Extended2Eax,
    /// Leaf 0x4000_0001, EAX.
    KvmEax,
}

/// Number of [`Word`]s.
const WORDS: usize = 15;

/// One feature.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// Its name in `-cpu`; other spellings follow after a bar.
    names: &'static str,
    word: Word,
    bit: u32,
    /// The instructions that it stands for.
    instructions: &'static [F],
}

impl Feature {
    /// Its name in `-cpu`.
    pub fn name(&self) -> &'static str {
        self.names.split('|').next().unwrap_or_default()
    }

    pub(crate) fn word(&self) -> Word {
        self.word
    }

    pub(crate) fn bit(&self) -> u32 {
        self.bit
    }

    /// Whether `name` is one of its names. Underscores and dashes are the same.
    pub fn is_called(&self, name: &str) -> bool {
        let same = |a: u8, b: u8| a == b || matches!((a, b), (b'_', b'-') | (b'-', b'_'));
        self.names.split('|').any(|known| {
            known.len() == name.len() && known.bytes().zip(name.bytes()).all(|(a, b)| same(a, b))
        })
    }
}

const fn feature(names: &'static str, word: Word, bit: u32, instructions: &'static [F]) -> Feature {
    Feature { names, word, bit, instructions }
}

/// AMD's six performance counters with registers of their own.
pub(crate) const PERFCTR_CORE: &str = "perfctr-core";

/// Every feature that is implemented, in CPUID's order.
pub const FEATURES: &[Feature] = {
    use Word::*;
    &[
        feature("fpu", Leaf1Edx, 0, &[F::FPU, F::FPU287, F::FPU387]),
        feature("vme", Leaf1Edx, 1, &[]),
        feature("de", Leaf1Edx, 2, &[]),
        feature("pse", Leaf1Edx, 3, &[]),
        feature("tsc", Leaf1Edx, 4, &[F::TSC]),
        feature("msr", Leaf1Edx, 5, &[F::MSR]),
        feature("pae", Leaf1Edx, 6, &[]),
        feature("mce", Leaf1Edx, 7, &[]),
        feature("cx8", Leaf1Edx, 8, &[F::CX8]),
        feature("apic", Leaf1Edx, 9, &[]),
        feature("sep", Leaf1Edx, 11, &[F::SEP]),
        feature("mtrr", Leaf1Edx, 12, &[]),
        feature("pge", Leaf1Edx, 13, &[]),
        feature("mca", Leaf1Edx, 14, &[]),
        feature("cmov", Leaf1Edx, 15, &[F::CMOV]),
        feature("pat", Leaf1Edx, 16, &[]),
        feature("pse36", Leaf1Edx, 17, &[]),
        feature("clflush", Leaf1Edx, 19, &[F::CLFSH]),
        feature("mmx", Leaf1Edx, 23, &[F::MMX]),
        feature("fxsr", Leaf1Edx, 24, &[F::FXSR]),
        feature("sse", Leaf1Edx, 25, &[F::SSE]),
        feature("sse2", Leaf1Edx, 26, &[F::SSE2]),
        feature("pni|sse3", Leaf1Ecx, 0, &[F::SSE3]),
        feature("monitor", Leaf1Ecx, 3, &[F::MONITOR]),
        feature("pclmulqdq", Leaf1Ecx, 1, &[F::PCLMULQDQ]),
        feature("ssse3", Leaf1Ecx, 9, &[F::SSSE3]),
        feature("fma", Leaf1Ecx, 12, &[F::FMA]),
        feature("cx16", Leaf1Ecx, 13, &[F::CMPXCHG16B]),
        feature("pcid", Leaf1Ecx, 17, &[]),
        feature("sse4.1|sse4-1", Leaf1Ecx, 19, &[F::SSE4_1]),
        feature("sse4.2|sse4-2", Leaf1Ecx, 20, &[F::SSE4_2]),
        feature("x2apic", Leaf1Ecx, 21, &[]),
        feature("movbe", Leaf1Ecx, 22, &[F::MOVBE]),
        feature("popcnt", Leaf1Ecx, 23, &[F::POPCNT]),
        feature("tsc-deadline", Leaf1Ecx, 24, &[]),
        feature("aes", Leaf1Ecx, 25, &[F::AES]),
        feature("xsave", Leaf1Ecx, 26, &[F::XSAVE]),
        feature("avx", Leaf1Ecx, 28, &[F::AVX]),
        feature("f16c", Leaf1Ecx, 29, &[F::F16C]),
        feature("rdrand", Leaf1Ecx, 30, &[F::RDRAND]),
        feature("hypervisor", Leaf1Ecx, 31, &[]),
        feature("arat", Leaf6Eax, 2, &[]),
        feature("fsgsbase", Leaf7Ebx, 0, &[F::FSGSBASE]),
        feature("tsc-adjust", Leaf7Ebx, 1, &[]),
        feature("bmi1", Leaf7Ebx, 3, &[F::BMI1]),
        feature("avx2", Leaf7Ebx, 5, &[F::AVX2]),
        feature("smep", Leaf7Ebx, 7, &[]),
        feature("bmi2", Leaf7Ebx, 8, &[F::BMI2]),
        feature("erms", Leaf7Ebx, 9, &[]),
        feature("invpcid", Leaf7Ebx, 10, &[F::INVPCID]),
        feature("rdseed", Leaf7Ebx, 18, &[F::RDSEED]),
        feature("adx", Leaf7Ebx, 19, &[F::ADX]),
        feature("smap", Leaf7Ebx, 20, &[F::SMAP]),
        feature("clflushopt", Leaf7Ebx, 23, &[F::CLFLUSHOPT]),
        feature("clwb", Leaf7Ebx, 24, &[F::CLWB]),
        feature("sha-ni|sha", Leaf7Ebx, 29, &[F::SHA]),
        feature("umip", Leaf7Ecx, 2, &[]),
        feature("pku", Leaf7Ecx, 3, &[F::PKU]),
        feature("vaes", Leaf7Ecx, 9, &[F::VAES]),
        feature("vpclmulqdq", Leaf7Ecx, 10, &[F::VPCLMULQDQ]),
        feature("la57", Leaf7Ecx, 16, &[]),
        feature("rdpid", Leaf7Ecx, 22, &[F::RDPID]),
        feature("pks", Leaf7Ecx, 31, &[]),
        feature("fsrm", Leaf7Edx, 4, &[]),
        feature("spec-ctrl", Leaf7Edx, 26, &[]),
        feature("arch-capabilities", Leaf7Edx, 29, &[]),
        feature("lam", Leaf7Sub1Eax, 26, &[]),
        feature("xsaveopt", XsaveEax, 0, &[F::XSAVEOPT]),
        feature("xsavec", XsaveEax, 1, &[F::XSAVEC]),
        feature("xgetbv1", XsaveEax, 2, &[]),
        feature("xsaves", XsaveEax, 3, &[F::XSAVES]),
        feature("syscall", ExtendedEdx, 11, &[F::SYSCALL]),
        feature("nx|xd", ExtendedEdx, 20, &[]),
        feature("mmxext", ExtendedEdx, 22, &[]),
        feature("fxsr-opt|ffxsr", ExtendedEdx, 25, &[]),
        feature("pdpe1gb", ExtendedEdx, 26, &[]),
        feature("rdtscp", ExtendedEdx, 27, &[F::RDTSCP]),
        feature("lm|i64", ExtendedEdx, 29, &[F::X64]),
        feature("lahf-lm", ExtendedEcx, 0, &[]),
        feature("svm", ExtendedEcx, 2, &[F::SVM, F::SKINIT_or_SVM]),
        feature("cr8legacy", ExtendedEcx, 4, &[]),
        feature("abm", ExtendedEcx, 5, &[F::LZCNT]),
        feature("sse4a", ExtendedEcx, 6, &[F::SSE4A]),
        feature("misalignsse", ExtendedEcx, 7, &[]),
        feature("3dnowprefetch", ExtendedEcx, 8, &[F::PREFETCHW]),
        feature("osvw", ExtendedEcx, 9, &[]),
        feature("topoext", ExtendedEcx, 22, &[]),
        feature(PERFCTR_CORE, ExtendedEcx, 23, &[]),
        feature("invtsc", PowerEdx, 8, &[]),
        feature("clzero", AddressEbx, 0, &[F::CLZERO]),
        feature("xsaveerptr", AddressEbx, 2, &[]),
        feature("rdpru", AddressEbx, 4, &[F::RDPRU]),
        feature("wbnoinvd", AddressEbx, 9, &[F::WBNOINVD]),
        feature("npt", SvmEdx, 0, &[]),
        feature("lbrv", SvmEdx, 1, &[]),
        feature("nrip-save", SvmEdx, 3, &[]),
        feature("tsc-scale", SvmEdx, 4, &[]),
        feature("vmcb-clean", SvmEdx, 5, &[]),
        feature("flushbyasid", SvmEdx, 6, &[]),
        feature("decodeassists", SvmEdx, 7, &[]),
        feature("pause-filter", SvmEdx, 10, &[]),
        feature("pfthreshold", SvmEdx, 12, &[]),
        feature("v-vmsave-vmload", SvmEdx, 15, &[]),
        feature("vgif", SvmEdx, 16, &[]),
        feature("vnmi", SvmEdx, 25, &[]),
        feature("svme-addr-chk", SvmEdx, 28, &[]),
        feature("lfence-always-serializing", Extended2Eax, 2, &[]),
        feature("null-sel-clr-base", Extended2Eax, 6, &[]),
        feature("kvmclock", KvmEax, 0, &[]),
        feature("kvm-nopiodelay", KvmEax, 1, &[]),
        feature("kvm-asyncpf", KvmEax, 4, &[]),
        feature("kvm-steal-time", KvmEax, 5, &[]),
        feature("kvm-pv-eoi", KvmEax, 6, &[]),
        feature("kvm-asyncpf-int", KvmEax, 14, &[]),
        feature("kvmclock-stable-bit", KvmEax, 24, &[]),
    ]
};

/// Features that are nothing without another: what they need, and they.
const DEPENDENCIES: &[(&str, &[&str])] = &[
    ("pcid", &["invpcid"]),
    ("fxsr", &["sse", "fxsr-opt"]),
    ("sse", &["sse2", "mmxext"]),
    ("sse", &["misalignsse"]),
    ("sse2", &["pni", "sse4a", "aes", "pclmulqdq", "sha-ni"]),
    ("xsave", &["xsaveopt", "xsavec", "xgetbv1", "xsaves", "avx"]),
    (
        "svm",
        &[
            "npt",
            "lbrv",
            "nrip-save",
            "tsc-scale",
            "vmcb-clean",
            "flushbyasid",
            "decodeassists",
            "pause-filter",
            "pfthreshold",
            "v-vmsave-vmload",
            "vgif",
            "vnmi",
            "svme-addr-chk",
        ],
    ),
    ("npt", &["v-vmsave-vmload"]),
    ("tsc", &["kvmclock", "kvmclock-stable-bit"]),
    ("kvmclock", &["kvmclock-stable-bit"]),
    ("kvm-asyncpf", &["kvm-asyncpf-int"]),
    ("pause-filter", &["pfthreshold"]),
    ("avx", &["avx2", "fma", "f16c", "vaes", "vpclmulqdq"]),
];

/// Instructions that every model has.
const BASE: &[F] = &[
    F::INTEL8086,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::CPUID,
    F::MULTIBYTENOP,
    F::PAUSE,
    F::RDPMC,
    F::SMM,
];

/// Names of features that others have and this build has not, to tell them from typing errors.
const ABSENT: &[&str] = &[
    "3dnow",
    "3dnowext",
    "ace2",
    "ace2-en",
    "acpi",
    "amd-no-ssb",
    "amd-ssbd",
    "amd-stibp",
    "amx-bf16",
    "amx-int8",
    "amx-tile",
    "arch-lbr",
    "avic",
    "avx-vnni",
    "avx512-4fmaps",
    "avx512-4vnniw",
    "avx512-bf16",
    "avx512-fp16",
    "avx512-vp2intersect",
    "avx512-vpopcntdq",
    "avx512bitalg",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512er",
    "avx512f",
    "avx512ifma",
    "avx512pf",
    "avx512vbmi",
    "avx512vbmi2",
    "avx512vl",
    "avx512vnni",
    "bus-lock-detect",
    "cid",
    "cldemote",
    "cmp-legacy",
    "core-capability",
    "dca",
    "ds",
    "ds-cpl",
    "dtes64",
    "est",
    "extapic",
    "fma4",
    "fred",
    "full-width-write",
    "gfni",
    "hle",
    "hv-apicv",
    "hv-avic",
    "hv-emsr-bitmap",
    "hv-evmcs",
    "hv-reenlightenment",
    "hv-syndbg",
    "hv-tlbflush-direct",
    "ht",
    "ia64",
    "ibpb",
    "ibrs",
    "ibrs-all",
    "ibs",
    "ibt",
    "intel-pt",
    "intel-pt-lip",
    "lwp",
    "md-clear",
    "mds-no",
    "movdir64b",
    "movdiri",
    "mpx",
    "nodeid-msr",
    "pbe",
    "pcommit",
    "pdcm",
    "perfctr-nb",
    "phe",
    "phe-en",
    "pmm",
    "pmm-en",
    "pn",
    "pschange-mc-no",
    "rdctl-no",
    "rsba",
    "rtm",
    "serialize",
    "sgx",
    "sgx-debug",
    "sgx-exinfo",
    "sgx-kss",
    "sgx-mode64",
    "sgx-provisionkey",
    "sgx-tokenkey",
    "sgx1",
    "sgx2",
    "sgxlc",
    "shstk",
    "skinit",
    "skip-l1dfl-vmentry",
    "smx",
    "split-lock-detect",
    "ss",
    "ssb-no",
    "ssbd",
    "stibp",
    "svm-lock",
    "taa-no",
    "tbm",
    "tce",
    "tm",
    "tm2",
    "tsx-ctrl",
    "tsx-ldtrk",
    "virt-ssbd",
    "vmx",
    "waitpkg",
    "wdt",
    "xcrypt",
    "xcrypt-en",
    "xfd",
    "xop",
    "xstore",
    "xstore-en",
    "xtpr",
];
/// What the names of KVM's services and of Intel's virtual machine mode begin with.
const ABSENT_SERVICES: &[&str] = &["kvm-", "vmx-"];

/// Whether others have a feature called `name`, with dashes, that this build has not.
pub fn is_absent(name: &str) -> bool {
    ABSENT.contains(&name) || ABSENT_SERVICES.iter().any(|service| name.starts_with(service))
}

/// A set of features, as CPUID's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet([u32; WORDS]);

impl FeatureSet {
    /// Everything that is implemented.
    pub fn all() -> Self {
        let mut set = Self::default();
        FEATURES.iter().for_each(|feature| set.set(feature, true));
        set
    }

    /// The features that `names`, separated by blanks, name and that are implemented.
    pub fn of(names: &str) -> Self {
        let mut set = Self::default();
        for name in names.split_whitespace() {
            if let Some(feature) = find(name) {
                set.set(feature, true);
            }
        }
        set
    }

    /// Adds or takes away a feature.
    pub fn set(&mut self, feature: &Feature, present: bool) {
        let bit = 1 << feature.bit;
        let word = &mut self.0[feature.word as usize];
        *word = if present { *word | bit } else { *word & !bit };
    }

    /// Takes away all features of `word`.
    pub(crate) fn clear(&mut self, word: Word) {
        self.0[word as usize] = 0;
    }

    /// Takes away what needs a feature that is not in it.
    pub(crate) fn settle(&mut self) {
        for (needed, dependents) in DEPENDENCIES {
            if !self.has_name(needed) {
                let dependents = dependents.iter().filter_map(|name| find(name));
                dependents.for_each(|feature| self.set(feature, false));
            }
        }
    }

    /// Whether a feature is in it.
    pub fn has(&self, feature: &Feature) -> bool {
        self.0[feature.word as usize] >> feature.bit & 1 != 0
    }

    /// Whether the feature called `name` is in it; false for names that are not known.
    pub fn has_name(&self, name: &str) -> bool {
        find(name).is_some_and(|feature| self.has(feature))
    }

    /// A word of CPUID.
    pub(crate) fn word(&self, word: Word) -> u32 {
        self.0[word as usize]
    }

    /// The instructions that come with it.
    pub(crate) fn instructions(&self) -> Instructions {
        let features = FEATURES.iter().filter(|feature| self.has(feature));
        let all = features.flat_map(|feature| feature.instructions).chain(BASE);
        all.fold(Instructions::default(), |mut set, &feature| {
            set.groups[feature as usize / 64] |= 1 << (feature as usize % 64);
            set
        })
    }
}

/// The feature called `name`.
pub fn find(name: &str) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.is_called(name))
}

/// The groups of instructions that a CPU has, and how it reads what vendors read in different ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Instructions {
    groups: [u64; 3],
    /// As Intel's processors.
    pub(crate) intel: bool,
    /// VMCALL and VMMCALL call the hypervisor, whether or not the CPU has virtualisation.
    pub(crate) hypercalls: bool,
    /// REX.W makes the offsets of far pointers 64 bits wide. To AMD's processors it means nothing there.
    pub(crate) wide_far: bool,
}

impl Instructions {
    /// Whether it has `feature`'s.
    pub(crate) fn has(&self, feature: F) -> bool {
        let n = feature as usize;
        self.groups.get(n / 64).is_some_and(|word| word >> (n % 64) & 1 != 0)
    }

    /// Whether it has instructions that belong to all of `features`.
    pub(crate) fn have_all(&self, features: &[F]) -> bool {
        features.iter().all(|&feature| self.has(feature))
    }
}

/// Whether any CPU of this build has instructions that belong to all of `features`.
pub fn is_implemented(features: &[F]) -> bool {
    FeatureSet::all().instructions().have_all(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_feature_goes_with_it() {
        let mut set = FeatureSet::all();
        set.set(find("xsave").unwrap(), false);
        set.set(find("pcid").unwrap(), false);
        set.settle();
        for name in ["avx", "avx2", "vaes", "xsaves", "invpcid"] {
            assert!(!set.has_name(name), "{name}");
        }
        assert!(set.has_name("sse4.2") && set.has_name("smap"));
        for (needed, dependents) in DEPENDENCIES {
            assert!(find(needed).is_some() && dependents.iter().all(|name| find(name).is_some()));
        }
    }

    #[test]
    fn names_and_bits_are_told_once() {
        for (n, feature) in FEATURES.iter().enumerate() {
            for other in &FEATURES[..n] {
                assert!(!other.is_called(feature.name()), "{}", feature.name());
                assert!(
                    (other.word, other.bit) != (feature.word, feature.bit),
                    "{}",
                    feature.name()
                );
            }
            assert!(!ABSENT.contains(&feature.name()), "{} is there", feature.name());
        }
        assert!(find("sse4_1").is_some() && find("sse3").is_some() && find("lahf_lm").is_some());
    }
}
