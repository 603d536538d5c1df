//! CPUID (APM volume 3, appendix E): what the CPU says that it is.
//!
//! The identity is an AMD processor of family 15, with the features that are really here. A bit that
//! depends on a control register (OSXSAVE) follows it.

use crate::cpu::Cpu;
use crate::mmu::{LINEAR_BITS, PHYS_BITS};
use crate::regs::CR4_OSXSAVE;

/// Family 15, model 107, stepping 1, as leaf 1 and RDX at reset tell it.
pub(crate) const SIGNATURE: u32 = 0x0006_0fb1;

/// Highest standard leaf.
const MAX_STANDARD: u32 = 0xd;
/// Highest extended leaf.
const MAX_EXTENDED: u32 = 0x8000_0021;
/// Highest hypervisor leaf.
const MAX_HYPERVISOR: u32 = 0x4000_0000;

/// Leaf 1, EDX.
mod edx1 {
    pub(super) const ALL: u32 = 1 << 0 // FPU
        | 1 << 2 // DE
        | 1 << 3 // PSE
        | 1 << 4 // TSC
        | 1 << 5 // MSR
        | 1 << 6 // PAE
        | 1 << 7 // MCE
        | 1 << 8 // CX8
        | 1 << 9 // APIC
        | 1 << 11 // SEP
        | 1 << 12 // MTRR
        | 1 << 13 // PGE
        | 1 << 14 // MCA
        | 1 << 15 // CMOV
        | 1 << 16 // PAT
        | 1 << 17 // PSE36
        | 1 << 19 // CLFLUSH
        | 1 << 23 // MMX
        | 1 << 24 // FXSR
        | 1 << 25 // SSE
        | 1 << 26; // SSE2
    pub(super) const HTT: u32 = 1 << 28;
    /// The bits that leaf 0x8000_0001 repeats.
    pub(super) const REPEATED: u32 = 0x0183_f3ff;
}

/// Leaf 1, ECX.
mod ecx1 {
    pub(super) const ALL: u32 = 1 << 0 // SSE3
        | 1 << 9 // SSSE3
        | 1 << 13 // CX16
        | 1 << 17 // PCID
        | 1 << 19 // SSE4.1
        | 1 << 20 // SSE4.2
        | 1 << 22 // MOVBE
        | 1 << 23 // POPCNT
        | 1 << 26 // XSAVE
        | 1 << 30 // RDRAND
        | 1 << 31; // a hypervisor is present
    pub(super) const OSXSAVE: u32 = 1 << 27;
}

/// Leaf 7, subleaf 0.
mod leaf7 {
    pub(super) const EBX: u32 = 1 << 0 // FSGSBASE
        | 1 << 1 // TSC_ADJUST; with it Linux trusts the time-stamp counter
        | 1 << 7 // SMEP
        | 1 << 9 // ERMS
        | 1 << 10 // INVPCID
        | 1 << 18 // RDSEED
        | 1 << 20; // SMAP
    pub(super) const ECX: u32 = 1 << 2 // UMIP
        | 1 << 22; // RDPID
    pub(super) const EDX: u32 = 1 << 4 // fast short REP MOV
        | 1 << 26 // SPEC_CTRL and PRED_CMD
        | 1 << 29; // ARCH_CAPABILITIES
}

/// Leaf 0x8000_0001.
mod extended {
    pub(super) const ECX: u32 = 1 << 0 // LAHF and SAHF in 64-bit mode
        | 1 << 5 // LZCNT
        | 1 << 8; // PREFETCHW
    pub(super) const CMP_LEGACY: u32 = 1 << 1;
    pub(super) const EDX: u32 = 1 << 11 // SYSCALL
        | 1 << 20 // NX
        | 1 << 26 // 1 GiB pages
        | 1 << 27 // RDTSCP
        | 1 << 29; // long mode
}

/// What CPUID returns for a leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) eax: u32,
    pub(crate) ebx: u32,
    pub(crate) ecx: u32,
    pub(crate) edx: u32,
}

const fn leaf(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
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
fn signature(max: u32, text: &[u8; 12], order: [usize; 3]) -> Leaf {
    leaf(max, word(text, order[0]), word(text, order[1]), word(text, order[2]))
}

impl Cpu {
    /// Leaf `index`, subleaf `sub`.
    pub(crate) fn cpuid(&self, index: u32, sub: u32) -> Leaf {
        match index {
            0..=MAX_STANDARD => self.cpuid_standard(index, sub),
            MAX_HYPERVISOR => signature(MAX_HYPERVISOR, b"RheaRheaRhea", [0, 1, 2]),
            0x8000_0000..=MAX_EXTENDED => self.cpuid_extended(index),
            _ => Leaf::default(),
        }
    }

    fn cpuid_standard(&self, index: u32, sub: u32) -> Leaf {
        let apic_id = self.config.index;
        let count = self.config.count.max(1);
        match index {
            0 => signature(MAX_STANDARD, b"AuthenticAMD", [0, 2, 1]),
            1 => {
                let mut ecx = ecx1::ALL;
                if self.cr4 & CR4_OSXSAVE != 0 {
                    ecx |= ecx1::OSXSAVE;
                }
                let mut edx = edx1::ALL;
                if count > 1 {
                    edx |= edx1::HTT;
                }
                // CLFLUSH works on 8 times 8 bytes.
                let ebx = apic_id << 24 | (count & 0xff) << 16 | 8 << 8;
                leaf(SIGNATURE, ebx, ecx, edx)
            }
            7 if sub == 0 => leaf(0, leaf7::EBX, leaf7::ECX, leaf7::EDX),
            0xb => {
                let core_bits = count.next_power_of_two().trailing_zeros();
                match sub {
                    // Threads of a core, then cores of a package.
                    0 => leaf(0, 1, 0x100, apic_id),
                    1 => leaf(core_bits, count, 0x201, apic_id),
                    _ => leaf(0, 0, sub & 0xff, apic_id),
                }
            }
            // x87 and SSE: the legacy area and the header.
            0xd if sub == 0 => leaf(3, 576, 576, 0),
            // XSAVEOPT.
            0xd if sub == 1 => leaf(1, 0, 0, 0),
            _ => Leaf::default(),
        }
    }

    fn cpuid_extended(&self, index: u32) -> Leaf {
        const BRAND: &[u8; 48] =
            b"Rhea Virtual CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let count = self.config.count.max(1);
        match index {
            0x8000_0000 => signature(MAX_EXTENDED, b"AuthenticAMD", [0, 2, 1]),
            0x8000_0001 => {
                let mut ecx = extended::ECX;
                if count > 1 {
                    ecx |= extended::CMP_LEGACY;
                }
                leaf(SIGNATURE, 0, ecx, extended::EDX | edx1::ALL & edx1::REPEATED)
            }
            0x8000_0002..=0x8000_0004 => {
                let at = (index - 0x8000_0002) as usize * 4;
                leaf(word(BRAND, at), word(BRAND, at + 1), word(BRAND, at + 2), word(BRAND, at + 3))
            }
            // First level caches: 64 KiB, 2-way, lines of 64 bytes, for data and for instructions.
            0x8000_0005 => leaf(0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140),
            // Second level: 512 KiB, 16-way.
            0x8000_0006 => leaf(0, 0x4200_4200, 0x0200_8140, 0),
            // The time-stamp counter never changes its rate.
            0x8000_0007 => leaf(0, 0, 0, 1 << 8),
            0x8000_0008 => {
                let id_bits = count.next_power_of_two().trailing_zeros();
                // EBX: FXSAVE and XSAVE always store x87's error pointers.
                leaf(LINEAR_BITS << 8 | PHYS_BITS, 1 << 2, id_bits << 12 | (count - 1) & 0xff, 0)
            }
            // LFENCE serialises; a null selector clears the base.
            0x8000_0021 => leaf(1 << 2 | 1 << 6, 0, 0, 0),
            _ => Leaf::default(),
        }
    }
}
