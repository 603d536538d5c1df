//! The processor that Rhea runs on, for the model `host` and for properties that speak of it.

use super::{Cache, CpuModel, Vendor};

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
    widths.clamp(super::options::MIN_PHYS_BITS, super::options::MAX_PHYS_BITS)
}

/// The host's caches; none where it does not tell.
#[cfg(target_arch = "x86_64")]
pub(super) fn caches() -> Vec<Cache> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    // More levels and kinds than any processor has.
    const MOST: u32 = 16;
    let amd = __cpuid(0x8000_0000).eax >= 0x8000_001d && __cpuid(0x8000_0001).ecx >> 22 & 1 != 0;
    let leaf = match (amd, __cpuid(0).eax) {
        (true, _) => 0x8000_001d,
        (false, 4..) => 4,
        _ => return Vec::new(),
    };
    let registers = (0..MOST).map(|sub| __cpuid_count(leaf, sub));
    registers.map_while(|r| Cache::of_leaf([r.eax, r.ebx, r.ecx])).collect()
}

/// Elsewhere it has none that a guest could make use of.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn caches() -> Vec<Cache> {
    Vec::new()
}

/// Elsewhere it is as if nobody had asked.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn phys_bits() -> u32 {
    super::PHYS_BITS
}

/// Elsewhere the host is nothing that a guest could be shown.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn identify(_: &mut CpuModel) {}
