//! What of Hyper-V's interface a CPU model offers: the properties of `-cpu` that begin with `hv-`, and what
//! CPUID tells of them (Hypervisor Top Level Functional Specification, "Feature and Interface Discovery").
//!
//! Invariant: a property that is on has those on that it needs, once [`Enlightenments::check`] is content.

use crate::model::ModelError;

bitflags::bitflags! {
    /// Properties that are on or off.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Offered: u32 {
        const RELAXED = 1 << 0;
        const VAPIC = 1 << 1;
        const VPINDEX = 1 << 2;
        const RUNTIME = 1 << 3;
        const CRASH = 1 << 4;
        const TIME = 1 << 5;
        const SYNIC = 1 << 6;
        const STIMER = 1 << 7;
        const STIMER_DIRECT = 1 << 8;
        const TLBFLUSH = 1 << 9;
        const TLBFLUSH_EXT = 1 << 10;
        const IPI = 1 << 11;
        const RESET = 1 << 12;
        const FREQUENCIES = 1 << 13;
        const XMM_INPUT = 1 << 14;
        const NO_CORE_SHARING = 1 << 15;
    }
}

/// Where CPUID tells of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Leaf 0x4000_0003, EAX: registers.
    Registers,
    /// Leaf 0x4000_0003, EBX: calls.
    Calls,
    /// Leaf 0x4000_0003, EDX.
    Features,
    /// Leaf 0x4000_0004, EAX.
    Recommendations,
}

struct Property {
    name: &'static str,
    offered: Offered,
    /// The properties that it is nothing without.
    needs: &'static [&'static str],
    told: &'static [(Told, u32)],
}

const fn property(
    name: &'static str,
    offered: Offered,
    needs: &'static [&'static str],
    told: &'static [(Told, u32)],
) -> Property {
    Property { name, offered, needs, told }
}

/// All of them. Guests are told of the calls with sets of processors where there are any such calls.
const PROPERTIES: &[Property] = {
    use Told::*;
    &[
        property("hv-relaxed", Offered::RELAXED, &[], &[(Recommendations, 5)]),
        property("hv-vapic", Offered::VAPIC, &[], &[(Registers, 4), (Recommendations, 3)]),
        property("hv-vpindex", Offered::VPINDEX, &[], &[(Registers, 6)]),
        property("hv-runtime", Offered::RUNTIME, &[], &[(Registers, 0)]),
        property("hv-crash", Offered::CRASH, &[], &[(Features, 10)]),
        property("hv-time", Offered::TIME, &[], &[(Registers, 1), (Registers, 9)]),
        property(
            "hv-synic",
            Offered::SYNIC,
            &["hv-vpindex"],
            &[(Registers, 2), (Calls, 4), (Calls, 5)],
        ),
        property(
            "hv-stimer",
            Offered::STIMER,
            &["hv-vpindex", "hv-synic", "hv-time"],
            &[(Registers, 3)],
        ),
        property("hv-stimer-direct", Offered::STIMER_DIRECT, &["hv-stimer"], &[(Features, 19)]),
        property(
            "hv-tlbflush",
            Offered::TLBFLUSH,
            &["hv-vpindex"],
            &[(Recommendations, 2), (Recommendations, 11)],
        ),
        property("hv-tlbflush-ext", Offered::TLBFLUSH_EXT, &["hv-tlbflush"], &[(Features, 14)]),
        property(
            "hv-ipi",
            Offered::IPI,
            &["hv-vpindex"],
            &[(Recommendations, 10), (Recommendations, 11)],
        ),
        property("hv-reset", Offered::RESET, &[], &[(Registers, 7)]),
        property("hv-frequencies", Offered::FREQUENCIES, &[], &[(Registers, 11), (Features, 8)]),
        property("hv-xmm-input", Offered::XMM_INPUT, &[], &[(Features, 4)]),
        property(
            "hv-no-nonarch-coresharing",
            Offered::NO_CORE_SHARING,
            &[],
            &[(Recommendations, 18)],
        ),
    ]
};

/// The registers by which a guest makes calls are there whatever else is.
const HYPERCALL_REGISTERS: u32 = 1 << 5;
/// How often to try for a spin lock before the hypervisor is told: for ever.
const NEVER_NOTIFY: u32 = u32::MAX;

/// The version that leaf 0x4000_0002 tells; Windows Server 2016's unless another is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) build: u32,
    pub(crate) major: u16,
    pub(crate) minor: u16,
    pub(crate) service_pack: u32,
    pub(crate) service_branch: u8,
    /// Of 24 bits.
    pub(crate) service_number: u32,
}

/// What of Hyper-V's interface is offered, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enlightenments {
    offered: Offered,
    spinlocks: u32,
    passthrough: bool,
    pub(crate) vendor: [u8; 12],
    pub(crate) version: Version,
}

impl Default for Enlightenments {
    fn default() -> Self {
        Self {
            offered: Offered::default(),
            spinlocks: NEVER_NOTIFY,
            passthrough: false,
            vendor: *b"Microsoft Hv",
            version: Version {
                build: 14393,
                major: 10,
                minor: 0,
                service_pack: 0,
                service_branch: 0,
                service_number: 0,
            },
        }
    }
}

fn number<T: TryFrom<u64>>(value: &str) -> Option<T> {
    let parsed = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => value.parse(),
    };
    parsed.ok().and_then(|number| T::try_from(number).ok())
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "on" | "yes" | "true" => Some(true),
        "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

impl Enlightenments {
    /// Whether anything is offered, so that guests find the interface.
    pub fn is_on(&self) -> bool {
        self.passthrough || !self.offered.is_empty() || self.spinlocks != NEVER_NOTIFY
    }

    /// Whether synthetic timers can assert interrupts directly.
    pub fn has_direct_timers(&self) -> bool {
        self.offers(Offered::STIMER_DIRECT)
    }

    /// Whether `what` is offered.
    pub(crate) fn offers(&self, what: Offered) -> bool {
        self.passthrough && what != Offered::NO_CORE_SHARING || self.offered.contains(what)
    }

    /// How often a guest is to try for a spin lock before it tells the hypervisor.
    pub(crate) fn spinlocks(&self) -> u32 {
        self.spinlocks
    }

    /// What CPUID tells in a word.
    pub(crate) fn told(&self, word: Told) -> u32 {
        let offered = PROPERTIES.iter().filter(|property| self.offers(property.offered));
        let bits = offered.flat_map(|property| property.told);
        let bits = bits.filter(|(told, _)| *told == word).fold(0, |all, (_, bit)| all | 1 << bit);
        bits | if word == Told::Registers { HYPERCALL_REGISTERS } else { 0 }
    }

    /// Sets property `name`, spelt with dashes, to `value`; `None` if it is not one of these.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Option<Result<(), ModelError>> {
        if let Some(property) = PROPERTIES.iter().find(|property| property.name == name) {
            let on = match value {
                // Nobody knows who else runs on the host's cores.
                "auto" if property.offered == Offered::NO_CORE_SHARING => Some(false),
                _ => switch(value),
            };
            let set = on.map(|on| self.offered.set(property.offered, on));
            return Some(set.ok_or_else(|| bad(name, value)));
        }
        let version = &mut self.version;
        let set = match name {
            "hv-spinlocks" => number(value).map(|n| self.spinlocks = n),
            "hv-passthrough" => switch(value).map(|on| self.passthrough = on),
            // What is not offered can't be used in any case.
            "hv-enforce-cpuid" => switch(value).map(drop),
            "hv-vendor-id" => (value.len() <= 12).then(|| {
                self.vendor = [0; 12];
                self.vendor[..value.len()].copy_from_slice(value.as_bytes());
            }),
            "hv-version-id-build" => number(value).map(|n| version.build = n),
            "hv-version-id-major" => number(value).map(|n| version.major = n),
            "hv-version-id-minor" => number(value).map(|n| version.minor = n),
            "hv-version-id-spack" => number(value).map(|n| version.service_pack = n),
            "hv-version-id-sbranch" => number(value).map(|n| version.service_branch = n),
            "hv-version-id-snumber" => {
                number(value).filter(|n: &u32| n >> 24 == 0).map(|n| version.service_number = n)
            }
            _ => return None,
        };
        Some(set.ok_or_else(|| bad(name, value)))
    }

    /// Whether what is on has what it needs.
    ///
    /// # Errors
    /// Names one that has not, and what it needs.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        for property in PROPERTIES.iter().filter(|property| self.offers(property.offered)) {
            let missing = property.needs.iter().find(|needed| {
                let needed = PROPERTIES.iter().find(|other| other.name == **needed);
                !needed.is_some_and(|needed| self.offers(needed.offered))
            });
            if let Some(needed) = missing {
                return Err(ModelError::Needs(property.name.to_owned(), (*needed).to_owned()));
            }
        }
        Ok(())
    }
}

fn bad(name: &str, value: &str) -> ModelError {
    ModelError::BadValue(name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CpuModel;

    fn refusal(text: &str) -> String {
        CpuModel::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_domain_for_windows_has_all_that_it_names() {
        let model = CpuModel::parse(
            "qemu64,hv-time,hv_relaxed,+hv-vapic,hv-spinlocks=0x1fff,hv-vpindex=on,hv-runtime,\
             hv-synic,hv-stimer,hv-stimer-direct,hv-reset,hv-frequencies,hv-tlbflush,hv-ipi,hv-crash,\
             hv_vendor_id=KVM Hv",
        )
        .unwrap();
        let hyperv = model.hyperv;
        assert!(hyperv.is_on() && hyperv.has_direct_timers() && hyperv.spinlocks() == 0x1fff);
        assert_eq!(&hyperv.vendor, b"KVM Hv\0\0\0\0\0\0");
        assert_eq!(hyperv.told(Told::Registers), 0xaff);
        assert_eq!(hyperv.told(Told::Calls), 0x30);
        assert_eq!(hyperv.told(Told::Features), 0x8_0500);
        assert_eq!(hyperv.told(Told::Recommendations), 0xc2c);
    }

    #[test]
    fn what_is_no_enlightenment_switches_nothing_on() {
        for text in [
            "qemu64",
            "max",
            "host",
            "qemu64,hv-vendor-id=me,hv-version-id-build=7,hv-enforce-cpuid",
            "qemu64,hv-relaxed,hv-relaxed=off,hv-spinlocks=0xffffffff,hv-no-nonarch-coresharing=auto",
        ] {
            assert!(!CpuModel::parse(text).unwrap().hyperv.is_on(), "{text}");
        }
        assert!(CpuModel::parse("qemu64,hv-spinlocks=0xfff").unwrap().hyperv.is_on());
    }

    #[test]
    fn passthrough_is_all_that_there_is() {
        let all = CpuModel::parse("qemu64,hv-passthrough").unwrap().hyperv;
        assert!(all.is_on());
        assert_eq!(all.told(Told::Registers), 0xaff);
        assert_eq!(all.told(Told::Features), 0x8_4510);
        assert_eq!(all.told(Told::Recommendations), 0xc2c);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let needs = refusal("qemu64,hv-synic");
        assert!(needs.contains("'hv-synic'") && needs.contains("'hv-vpindex'"), "{needs}");
        let needs = refusal("qemu64,hv-stimer,hv-synic,hv-vpindex");
        assert!(needs.contains("'hv-stimer'") && needs.contains("'hv-time'"), "{needs}");
        assert!(refusal("qemu64,hv-ipi").contains("'hv-vpindex'"));
        assert!(refusal("qemu64,hv-tlbflush-ext,hv-vpindex").contains("'hv-tlbflush'"));
        assert!(refusal("qemu64,hv-evmcs").contains("feature 'hv-evmcs'"));
        assert!(refusal("qemu64,+hv_avic").contains("feature 'hv_avic'"));
        assert!(refusal("qemu64,hv-syndbg=on").contains("feature 'hv-syndbg'"));
        assert!(refusal("qemu64,hv-bogus").contains("'hv-bogus' not found"));
        assert!(refusal("qemu64,hv-spinlocks=0x100000000").contains("'0x100000000'"));
        assert!(refusal("qemu64,hv-vendor-id=thirteen chars").contains("'hv-vendor-id'"));
        assert!(refusal("qemu64,hv-version-id-snumber=0x1000000").contains("'0x1000000'"));
        assert!(CpuModel::parse("qemu64,hv-evmcs=off,-hv-avic").is_ok());
    }
}
