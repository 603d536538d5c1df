//! CPUID (APM volume 3, appendix E; SDM volume 2, CPUID): what the CPU says that it is.
//!
//! Identity and features are the model's. A bit that depends on a control register (OSXSAVE) follows
//! it.

use crate::cpu::Cpu;
use crate::feature::Word;
use crate::fpu::xsave;
use crate::hyperv::MAX_HYPERV;
use crate::model::{Vendor, first_levels, further_levels};
use crate::msr::index;
use crate::pmu::Pmu;
use crate::regs::{CR4_OSXSAVE, CR4_PKE};
use crate::vmware::APIC_HZ;

/// The hypervisor's leaves: who it is, and what KVM offers. Where Hyper-V's interface is offered, it is in the
/// first place, and KVM's follows.
const HYPERVISOR: u32 = 0x4000_0000;
const SECOND_HYPERVISOR: u32 = 0x4000_0100;
const LAST_HYPERVISOR: u32 = 0x4000_01ff;
/// The time-stamp counter's and the APIC timer's frequencies in kHz, as VMware tells them.
const FREQUENCIES: u32 = 0x4000_0010;

/// Leaf 1: CLFLUSH works on 8 times 8 bytes.
const CLFLUSH_SIZE: u32 = 8 << 8;
/// Leaf 1, EDX: there is a local APIC.
const APIC: u32 = 1 << 9;
/// APIC_BASE: the local APIC is on.
const APIC_ENABLED: u64 = 1 << 11;
/// Leaf 1, EDX: the package has several logical processors.
const HTT: u32 = 1 << 28;
/// Leaf 1, ECX: the system has enabled XSAVE.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 7, ECX: the system has enabled protection keys.
const OSPKE: u32 = 1 << 4;
/// Leaf 0x8000_0001, ECX: the package's logical processors are cores.
const CMP_LEGACY: u32 = 1 << 1;
/// The bits of leaf 1, EDX, that an AMD processor's leaf 0x8000_0001 repeats.
const REPEATED: u32 = 0x0183_f3ff;

/// How processors are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Cores of a socket.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

impl Default for Topology {
    fn default() -> Self {
        Self { cores: 1, threads: 1 }
    }
}

impl Topology {
    /// The APIC id of CPU `index`: the numbers of its socket, its core and its thread, each in bits of its
    /// own, as leaf 0xb tells how many (SDM volume 3, section 9.9).
    pub fn apic_id(self, index: u32) -> u32 {
        let package = self.package();
        let (socket, within) = (index / package, index % package);
        let threads = self.threads.max(1);
        let (core, thread) = (within / threads, within % threads);
        socket << self.package_bits() | core << self.thread_bits() | thread
    }

    /// Logical processors of a socket.
    fn package(self) -> u32 {
        self.cores.saturating_mul(self.threads).max(1)
    }

    /// Bits of an APIC id that number the threads of a core.
    fn thread_bits(self) -> u32 {
        self.threads.next_power_of_two().trailing_zeros()
    }

    /// Bits of an APIC id that number the logical processors of a socket.
    fn package_bits(self) -> u32 {
        self.thread_bits() + self.cores.next_power_of_two().trailing_zeros()
    }
}

/// What CPUID returns for a leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) eax: u32,
    pub(crate) ebx: u32,
    pub(crate) ecx: u32,
    pub(crate) edx: u32,
}

pub(crate) const fn leaf(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
    Leaf { eax, ebx, ecx, edx }
}

fn word(text: &[u8], index: usize) -> u32 {
    let mut bytes = [0; 4];
    for (to, from) in bytes.iter_mut().zip(text.iter().skip(index * 4)) {
        *to = *from;
    }
    u32::from_le_bytes(bytes)
}

/// A vendor signature, in the order of the registers that hold it.
pub(crate) fn signature(max: u32, text: &[u8; 12], order: [usize; 3]) -> Leaf {
    leaf(max, word(text, order[0]), word(text, order[1]), word(text, order[2]))
}

impl Cpu {
    /// Leaf `index`, subleaf `sub`.
    pub(crate) fn cpuid(&self, index: u32, sub: u32) -> Leaf {
        let [standard, extended] = self.limits.highest_leaves;
        match index {
            _ if index <= standard => self.cpuid_standard(index, sub),
            HYPERVISOR..=LAST_HYPERVISOR if self.features(Word::Leaf1Ecx) >> 31 != 0 => {
                self.cpuid_hypervisor(index, sub)
            }
            0x8000_0000.. if index <= extended => self.cpuid_extended(index, sub),
            _ => self.cpuid_beyond(sub),
        }
    }

    /// A leaf above the highest. An Intel processor answers as if asked for its highest standard leaf.
    fn cpuid_beyond(&self, sub: u32) -> Leaf {
        let [standard, _] = self.limits.highest_leaves;
        match self.config.model.vendor {
            Vendor::Intel => self.cpuid_standard(standard, sub),
            Vendor::Amd => Leaf::default(),
        }
    }

    /// A hypervisor leaf. What the guest can ask KVM for, it can ask this CPU for, and so it is told.
    fn cpuid_hypervisor(&self, index: u32, sub: u32) -> Leaf {
        let model = &self.config.model;
        let hyperv = model.hyperv.is_on();
        let kvm = if hyperv { SECOND_HYPERVISOR } else { HYPERVISOR };
        match index {
            _ if hyperv && index <= HYPERVISOR + MAX_HYPERV => {
                self.cpuid_hyperv(index - HYPERVISOR)
            }
            _ if model.kvm && index == kvm => {
                let last = if self.tells_frequencies() { FREQUENCIES } else { kvm + 1 };
                signature(last, b"KVMKVMKVM\0\0\0", [0, 1, 2])
            }
            FREQUENCIES if self.tells_frequencies() => {
                leaf((self.clock.tsc_hz() / 1000) as u32, APIC_HZ / 1000, 0, 0)
            }
            _ if model.kvm && index == kvm + 1 => leaf(self.kvm_features(), 0, 0, 0),
            HYPERVISOR => signature(HYPERVISOR, b"RheaRheaRhea", [0, 1, 2]),
            _ => self.cpuid_beyond(sub),
        }
    }

    /// Whether there is the leaf of frequencies: they are fixed, and KVM's leaves are in the first place, where who
    /// looks for it expects them.
    fn tells_frequencies(&self) -> bool {
        let model = &self.config.model;
        let fixed = model.tsc_hz.is_some() || model.features.has_name("invtsc");
        model.kvm && !model.hyperv.is_on() && model.frequency_leaf && fixed
    }

    fn features(&self, word: Word) -> u32 {
        self.config.model.features.word(word)
    }

    /// Leaf 1, EDX. A local APIC that is switched off is not there.
    fn leaf1_edx(&self) -> u32 {
        let base = self.interrupts.read_msr(index::APIC_BASE);
        let is_off = base.is_some_and(|base| base & APIC_ENABLED == 0);
        self.features(Word::Leaf1Edx) & if is_off { !APIC } else { u32::MAX }
    }

    fn cpuid_standard(&self, index: u32, sub: u32) -> Leaf {
        let apic_id = self.config.apic_id;
        let topology = self.config.topology;
        let package = topology.package();
        let intel = self.config.model.vendor == Vendor::Intel;
        match index {
            0 => {
                let [standard, _] = self.limits.highest_leaves;
                signature(standard, self.config.model.vendor_letters, [0, 2, 1])
            }
            1 => {
                let mut ecx = self.features(Word::Leaf1Ecx);
                if self.cr4 & CR4_OSXSAVE != 0 {
                    ecx |= OSXSAVE;
                }
                let mut edx = self.leaf1_edx();
                if package > 1 {
                    edx |= HTT;
                }
                let ebx = apic_id << 24 | (package & 0xff) << 16 | CLFLUSH_SIZE;
                leaf(self.config.model.signature(), ebx, ecx, edx)
            }
            // Leaf 4 tells of the caches.
            2 if intel => leaf(0xff01, 0, 0, 0),
            4 if intel => self.cpuid_cache(sub),
            // MONITOR's lines are 64 bytes; MWAIT can be told to wake for interrupts that are held off.
            5 if self.features(Word::Leaf1Ecx) >> 3 & 1 != 0 => leaf(64, 64, 3, 0),
            6 => leaf(self.features(Word::Leaf6Eax), 0, 0, 0),
            7 if sub == 0 => {
                let mut ecx = self.features(Word::Leaf7Ecx);
                if self.cr4 & CR4_PKE != 0 {
                    ecx |= OSPKE;
                }
                let highest = u32::from(self.features(Word::Leaf7Sub1Eax) != 0);
                leaf(highest, self.features(Word::Leaf7Ebx), ecx, self.features(Word::Leaf7Edx))
            }
            7 if sub == 1 => leaf(self.features(Word::Leaf7Sub1Eax), 0, 0, 0),
            0xa if intel && self.config.model.pmu => {
                let (eax, ebx, edx) = Pmu::cpuid();
                leaf(eax, ebx, 0, edx)
            }
            0xb if self.config.model.topology_leaf => match sub {
                // Threads of a core, then logical processors of a socket.
                0 => leaf(topology.thread_bits(), topology.threads, 0x100, apic_id),
                1 => leaf(topology.package_bits(), package, 0x201, apic_id),
                _ => leaf(0, 0, sub & 0xff, apic_id),
            },
            0xd if self.features(Word::Leaf1Ecx) >> 26 & 1 != 0 => self.cpuid_xsave(sub),
            _ => Leaf::default(),
        }
    }

    /// Leaf 4 and leaf 0x8000_001d: cache number `sub`.
    fn cpuid_cache(&self, sub: u32) -> Leaf {
        let Some(cache) = self.config.model.caches.get(sub as usize) else {
            return Leaf::default();
        };
        let topology = self.config.topology;
        let sharing = if cache.is_last() { topology.package() } else { topology.threads };
        let [mut eax, ebx, ecx] = cache.leaf(sharing);
        if self.config.model.vendor == Vendor::Intel {
            eax |= ((topology.cores - 1) & 0x3f) << 26;
        }
        leaf(eax, ebx, ecx, 0)
    }

    fn cpuid_xsave(&self, sub: u32) -> Leaf {
        let valid = self.limits.xcr0;
        match sub {
            0 => {
                let enabled = xsave::image_size(self.xcr0) as u32;
                leaf(valid as u32, enabled, xsave::image_size(valid) as u32, 0)
            }
            1 => {
                let features = self.features(Word::XsaveEax);
                let compacts = features & 0xa != 0;
                let size = if compacts { xsave::compacted_size(self.xcr0) as u32 } else { 0 };
                leaf(features, size, 0, 0)
            }
            2..64 if valid >> sub & 1 != 0 => {
                let (size, offset) = xsave::component(sub);
                leaf(size, offset, 0, 0)
            }
            _ => Leaf::default(),
        }
    }

    fn cpuid_extended(&self, index: u32, sub: u32) -> Leaf {
        let model = &self.config.model;
        let topology = self.config.topology;
        let package = topology.package();
        let amd = model.vendor == Vendor::Amd;
        let [_, highest] = self.limits.highest_leaves;
        match index {
            0x8000_0000 if amd => signature(highest, model.vendor_letters, [0, 2, 1]),
            0x8000_0000 => leaf(highest, 0, 0, 0),
            0x8000_0001 => {
                let mut ecx = self.features(Word::ExtendedEcx);
                let mut edx = self.features(Word::ExtendedEdx);
                if amd {
                    edx |= self.leaf1_edx() & REPEATED;
                    if package > 1 {
                        ecx |= CMP_LEGACY;
                    }
                }
                leaf(if amd { model.signature() } else { 0 }, 0, ecx, edx)
            }
            0x8000_0002..=0x8000_0004 => {
                let brand = model.brand.as_bytes();
                let at = (index - 0x8000_0002) as usize * 4;
                leaf(word(brand, at), word(brand, at + 1), word(brand, at + 2), word(brand, at + 3))
            }
            0x8000_0005 if amd => {
                let [data, instructions] = first_levels(&model.caches);
                leaf(0x01ff_01ff, 0x01ff_01ff, data, instructions)
            }
            0x8000_0006 => {
                let [second, third] = further_levels(&model.caches, !amd);
                leaf(0, if amd { 0x4200_4200 } else { 0 }, second, third)
            }
            0x8000_0007 => leaf(0, 0, 0, self.features(Word::PowerEdx)),
            0x8000_0008 => {
                let ecx =
                    if amd { topology.package_bits() << 12 | (package - 1) & 0xff } else { 0 };
                let linear = if self.features(Word::ExtendedEdx) >> 29 & 1 != 0 {
                    self.limits.linear_bits() << 8
                } else {
                    32 << 8
                };
                let features = self.features(Word::AddressEbx);
                // The highest register that RDPRU reads.
                let edx = if features >> 4 & 1 != 0 { 1 << 16 } else { 0 };
                leaf(linear | self.limits.phys_bits, features, ecx, edx)
            }
            0x8000_000a => {
                let [eax, ebx, ecx, edx] = self.cpuid_svm();
                leaf(eax, ebx, ecx, edx)
            }
            0x8000_001d if self.has_topology_extensions() => self.cpuid_cache(sub),
            0x8000_001e if self.has_topology_extensions() => {
                let id = self.config.apic_id;
                let cores = (1 << (topology.package_bits() - topology.thread_bits())) - 1;
                let core = id >> topology.thread_bits() & cores & 0xff;
                // A socket is a node.
                let node = id >> topology.package_bits() & 0xff;
                leaf(id, (topology.threads - 1) << 8 | core, node, 0)
            }
            0x8000_0021 => leaf(self.features(Word::Extended2Eax), 0, 0, 0),
            _ => Leaf::default(),
        }
    }

    /// Whether leaves 0x8000_001d and 0x8000_001e are there.
    fn has_topology_extensions(&self) -> bool {
        self.features(Word::ExtendedEcx) >> 22 & 1 != 0
    }
}
