//! Model-specific registers (APM volume 2, appendix A).
//!
//! Registers that belong to the interrupt controller are passed on to it. A register that this CPU
//! does not have raises #GP; a few that software for this family pokes without asking are there and
//! do nothing.

use crate::cpu::Cpu;
use crate::feature::PERFCTR_CORE;
use crate::hyperv;
use crate::kvm::{self, KvmMsrs};
use crate::model::{CpuModel, Groups, Vendor};
use crate::pmu::Pmu;
use crate::regs::{CR0_PG, EFER_LMA, EFER_LME, EFER_NXE, EFER_SVME};
use crate::segment::{FS, GS};

/// Number of variable-range MTRRs.
const VARIABLE_MTRRS: usize = 8;
/// Number of machine check banks.
const MC_BANKS: usize = 10;

/// Register numbers.
#[allow(missing_docs)]
pub(crate) mod index {
    pub(crate) const TSC: u32 = 0x10;
    pub(crate) const PLATFORM_ID: u32 = 0x17;
    pub(crate) const APIC_BASE: u32 = 0x1b;
    pub(crate) const POWER_ON: u32 = 0x2a;
    pub(crate) const FREQUENCY_ID: u32 = 0x2c;
    pub(crate) const TSC_ADJUST: u32 = 0x3b;
    pub(crate) const SPEC_CTRL: u32 = 0x48;
    pub(crate) const PRED_CMD: u32 = 0x49;
    pub(crate) const PATCH_LEVEL: u32 = 0x8b;
    pub(crate) const PLATFORM_INFO: u32 = 0xce;
    pub(crate) const MPERF: u32 = 0xe7;
    pub(crate) const APERF: u32 = 0xe8;
    pub(crate) const MTRR_CAP: u32 = 0xfe;
    pub(crate) const ARCH_CAPABILITIES: u32 = 0x10a;
    pub(crate) const SECOND_LEVEL_CONTROL: u32 = 0x11e;
    pub(crate) const MISC_FEATURES: u32 = 0x140;
    pub(crate) const SYSENTER_CS: u32 = 0x174;
    pub(crate) const SYSENTER_ESP: u32 = 0x175;
    pub(crate) const SYSENTER_EIP: u32 = 0x176;
    pub(crate) const MCG_CAP: u32 = 0x179;
    pub(crate) const MCG_STATUS: u32 = 0x17a;
    pub(crate) const MCG_CTL: u32 = 0x17b;
    pub(crate) const MISC_ENABLE: u32 = 0x1a0;
    pub(crate) const DEBUG_CTL: u32 = 0x1d9;
    pub(crate) const LAST_BRANCH_FIRST: u32 = 0x1db;
    pub(crate) const LAST_BRANCH_LAST: u32 = 0x1de;
    pub(crate) const MTRR_FIRST: u32 = 0x200;
    pub(crate) const MTRR_LAST: u32 = 0x20f;
    pub(crate) const MTRR_FIX_64K: u32 = 0x250;
    pub(crate) const MTRR_FIX_16K: u32 = 0x258;
    pub(crate) const MTRR_FIX_16K_HIGH: u32 = 0x259;
    pub(crate) const MTRR_FIX_4K: u32 = 0x268;
    pub(crate) const MTRR_FIX_4K_LAST: u32 = 0x26f;
    pub(crate) const PAT: u32 = 0x277;
    pub(crate) const MTRR_DEF_TYPE: u32 = 0x2ff;
    /// CTL, STATUS, ADDR and MISC of each bank.
    pub(crate) const MC_FIRST: u32 = 0x400;
    pub(crate) const MC_LAST: u32 = MC_FIRST + 4 * super::MC_BANKS as u32 - 1;
    pub(crate) const TSC_DEADLINE: u32 = 0x6e0;
    pub(crate) const PKRS: u32 = 0x6e1;
    pub(crate) const X2APIC_FIRST: u32 = 0x800;
    pub(crate) const X2APIC_LAST: u32 = 0x8ff;
    pub(crate) const XSS: u32 = 0xda0;
    pub(crate) const EFER: u32 = 0xc000_0080;
    pub(crate) const TSC_RATIO: u32 = 0xc000_0104;
    pub(crate) const STAR: u32 = 0xc000_0081;
    pub(crate) const LSTAR: u32 = 0xc000_0082;
    pub(crate) const CSTAR: u32 = 0xc000_0083;
    pub(crate) const SFMASK: u32 = 0xc000_0084;
    pub(crate) const FS_BASE: u32 = 0xc000_0100;
    pub(crate) const GS_BASE: u32 = 0xc000_0101;
    pub(crate) const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub(crate) const TSC_AUX: u32 = 0xc000_0103;
    pub(crate) const COUNTERS_FIRST: u32 = 0xc001_0000;
    pub(crate) const COUNTERS_LAST: u32 = 0xc001_0007;
    pub(crate) const SYSCFG: u32 = 0xc001_0010;
    pub(crate) const HWCR: u32 = 0xc001_0015;
    pub(crate) const TOP_MEM: u32 = 0xc001_001a;
    pub(crate) const TOP_MEM2: u32 = 0xc001_001d;
    pub(crate) const NB_CFG: u32 = 0xc001_001f;
    pub(crate) const PATCH_LOADER: u32 = 0xc001_0020;
    pub(crate) const INT_PENDING: u32 = 0xc001_0055;
    pub(crate) const MMIO_CONFIGURATION: u32 = 0xc001_0058;
    pub(crate) const SMM_ADDR: u32 = 0xc001_0112;
    pub(crate) const SMM_MASK: u32 = 0xc001_0113;
    pub(crate) const VM_CR: u32 = 0xc001_0114;
    pub(crate) const VM_HSAVE_PA: u32 = 0xc001_0117;
    pub(crate) const OSVW_LENGTH: u32 = 0xc001_0140;
    pub(crate) const OSVW_STATUS: u32 = 0xc001_0141;
    pub(crate) const LS_CFG: u32 = 0xc001_1020;
    pub(crate) const IC_CFG: u32 = 0xc001_1021;
    pub(crate) const DC_CFG: u32 = 0xc001_1022;
    pub(crate) const BU_CFG: u32 = 0xc001_1023;
    pub(crate) const DE_CFG: u32 = 0xc001_1029;
    pub(crate) const BU_CFG2: u32 = 0xc001_102a;
    pub(crate) const EX_CFG: u32 = 0xc001_102c;
}

/// IA32_ARCH_CAPABILITIES: nothing is executed speculatively, so no data leaks through a misprediction,
/// and indirect branches are always "restricted".
const ARCH_CAPABILITIES: u64 = 1 << 0 // RDCL_NO
    | 1 << 1 // IBRS_ALL
    | 1 << 3 // SKIP_L1DFL_VMENTRY
    | 1 << 4 // SSB_NO
    | 1 << 5 // MDS_NO
    | 1 << 6 // PSCHANGE_MC_NO
    | 1 << 8; // TAA_NO
/// OSVW_LENGTH after reset: the status tells of the first five errata, none of which there is.
const OSVW_LENGTH_RESET: u64 = 5;
/// OSVW_LENGTH has 16 bits.
const OSVW_LENGTH_BITS: u32 = 16;
/// MISC_ENABLE: fast strings.
const MISC_ENABLE_RESET: u64 = 1;
/// PLATFORM_INFO: programs can be kept from CPUID; below, the time-stamp counter's rate in [`RATIO_HZ`].
const PLATFORM_INFO_CPUID_FAULTING: u64 = 1 << 31;
const PLATFORM_INFO_RATIO_SHIFT: u32 = 8;
const RATIO_HZ: u64 = 100_000_000;
/// MISC_FEATURES: programs are kept from CPUID.
const MISC_FEATURES_CPUID_FAULTING: u64 = 1 << 0;
/// FREQUENCY_ID: the core's clock is once the bus's, of 100 MHz.
const FREQUENCY_ID: u64 = 1 << 24;
/// SECOND_LEVEL_CONTROL: the cache is there, and on.
const SECOND_LEVEL_CONTROL: u64 = 1 << 8 | 1 << 0;
/// PAT after reset: WB, WT, UC-, UC, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// MTRRcap: fixed ranges, write-combining, and the variable ranges.
const MTRR_CAP: u64 = 0x500 | VARIABLE_MTRRS as u64;
/// MCG_CAP: the banks, and that MCG_CTL is there.
const MCG_CAP: u64 = 1 << 8 | MC_BANKS as u64;
/// HWCR: writes to the status registers of machine check banks are allowed.
const HWCR_MC_STATUS_WRITES: u64 = 1 << 18;
/// Bits of a machine check bank's CTL that systems leave off to work around errata.
const MC_CTL_LEFT_OFF: u64 = 1 << 0 | 1 << 10;
/// DEBUG_CTL: the last branch is recorded.
const DEBUG_CTL_LBR: u64 = 1 << 0;
/// DEBUG_CTL: single steps end at branches.
const DEBUG_CTL_BTF: u64 = 1 << 1;
/// What DEBUG_CTL can hold by vendor: AMD's has functions of pins, Intel's branch messages and freezing,
/// which have nothing to act on here.
const DEBUG_CTL_AMD: u64 = 0x3f;
const DEBUG_CTL_INTEL: u64 = 0xdfc3;
/// APIC_BASE: x2APIC mode.
const APIC_BASE_X2APIC: u64 = 1 << 10;

/// Registers that the CPU keeps itself. EFER and the FS and GS bases are elsewhere in [`Cpu`].
#[derive(Clone, Debug)]
pub(crate) struct Msrs {
    pub(crate) star: u64,
    pub(crate) lstar: u64,
    pub(crate) cstar: u64,
    pub(crate) sfmask: u64,
    pub(crate) kernel_gs_base: u64,
    pub(crate) sysenter_cs: u64,
    pub(crate) sysenter_esp: u64,
    pub(crate) sysenter_eip: u64,
    pub(crate) tsc_aux: u64,
    /// TSC_ADJUST: what the guest's writes have added to the clock's time-stamp counter.
    pub(crate) tsc_offset: u64,
    /// What to add to the clock's time-stamp counter for MPERF and APERF: the processor always runs at the
    /// frequency that it is made for.
    effective_frequency: [u64; 2],
    pub(crate) pat: u64,
    mtrr_def_type: u64,
    mtrr_variable: [u64; 2 * VARIABLE_MTRRS],
    /// 64 KiB, two of 16 KiB, eight of 4 KiB ranges.
    mtrr_fixed: [u64; 11],
    misc_enable: u64,
    misc_features: u64,
    debug_ctl: u64,
    /// Where the last branch came from and went to, then the same of the last one before an event.
    last_branch: [u64; 4],
    spec_ctrl: u64,
    hwcr: u64,
    /// Errata that the system need not work around: how many are told of, and which there are.
    osvw: [u64; 2],
    /// Rights by protection key, two bits a key, to supervisor pages.
    pub(crate) pkrs: u32,
    mcg_ctl: u64,
    mcg_status: u64,
    mc_banks: [u64; 4 * MC_BANKS],
    /// The performance counters, if there are any.
    pub(crate) pmu: Option<Pmu>,
    /// KVM's.
    pub(crate) kvm: KvmMsrs,
}

impl Msrs {
    /// The registers after power-on of a CPU that is a `model`.
    pub(crate) fn new(model: &CpuModel) -> Self {
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
            tsc_offset: 0,
            effective_frequency: [0; 2],
            pat: PAT_RESET,
            mtrr_def_type: 0,
            mtrr_variable: [0; 2 * VARIABLE_MTRRS],
            mtrr_fixed: [0; 11],
            misc_enable: MISC_ENABLE_RESET,
            misc_features: 0,
            debug_ctl: 0,
            last_branch: [0; 4],
            spec_ctrl: 0,
            hwcr: 0,
            osvw: [OSVW_LENGTH_RESET, 0],
            pkrs: 0,
            mcg_ctl: u64::MAX,
            mcg_status: 0,
            mc_banks: std::array::from_fn(|n| if n % 4 == 0 { u64::MAX } else { 0 }),
            pmu: model.pmu.then(|| Pmu::new(model.vendor, model.features.has_name(PERFCTR_CORE))),
            kvm: KvmMsrs::default(),
        }
    }
}

impl Msrs {
    /// What a debug exception does: its handler's branches are of no interest.
    pub(crate) fn stop_branch_tracing(&mut self) {
        self.debug_ctl &= !(DEBUG_CTL_LBR | DEBUG_CTL_BTF);
    }

    /// DEBUG_CTL and what is on record of branches, in the order in which control blocks have them.
    pub(crate) fn branch_record(&self) -> [u64; 5] {
        let [from, to, event_from, event_to] = self.last_branch;
        [self.debug_ctl, from, to, event_from, event_to]
    }

    /// Takes up what [`Self::branch_record`] gave, or a control block has.
    pub(crate) fn set_branch_record(&mut self, record: [u64; 5]) {
        let [debug_ctl, last_branch @ ..] = record;
        self.debug_ctl = debug_ctl & DEBUG_CTL_AMD;
        self.last_branch = last_branch;
    }
}

/// The registers that are saved, in ascending order.
const SAVED: &[u32] = &[
    index::TSC,
    index::SPEC_CTRL,
    index::MPERF,
    index::APERF,
    index::MISC_FEATURES,
    index::SYSENTER_CS,
    index::SYSENTER_ESP,
    index::SYSENTER_EIP,
    index::MCG_STATUS,
    index::MCG_CTL,
    index::MISC_ENABLE,
    index::DEBUG_CTL,
    0x1db,
    0x1dc,
    0x1dd,
    0x1de,
    0x200,
    0x201,
    0x202,
    0x203,
    0x204,
    0x205,
    0x206,
    0x207,
    0x208,
    0x209,
    0x20a,
    0x20b,
    0x20c,
    0x20d,
    0x20e,
    0x20f,
    index::MTRR_FIX_64K,
    index::MTRR_FIX_16K,
    index::MTRR_FIX_16K_HIGH,
    0x268,
    0x269,
    0x26a,
    0x26b,
    0x26c,
    0x26d,
    0x26e,
    0x26f,
    index::PAT,
    index::MTRR_DEF_TYPE,
    index::PKRS,
    hyperv::index::VP_RUNTIME,
    kvm::index::WALL_CLOCK,
    kvm::index::SYSTEM_TIME,
    kvm::index::ASYNC_PF,
    kvm::index::STEAL_TIME,
    kvm::index::ASYNC_PF_INT,
    index::EFER,
    index::STAR,
    index::LSTAR,
    index::CSTAR,
    index::SFMASK,
    index::KERNEL_GS_BASE,
    index::TSC_AUX,
    index::HWCR,
    index::OSVW_LENGTH,
    index::OSVW_STATUS,
];

/// Whether a byte is a memory type that PAT can hold.
fn is_pat_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4..=7)
}

/// Whether PAT can be `value`.
pub(crate) fn is_pat(value: u64) -> bool {
    value.to_le_bytes().into_iter().all(is_pat_type)
}

/// Whether a byte is a memory type that an MTRR can hold.
fn is_mtrr_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4..=6)
}

fn fixed_slot(register: u32) -> usize {
    match register {
        index::MTRR_FIX_64K => 0,
        index::MTRR_FIX_16K | index::MTRR_FIX_16K_HIGH => {
            1 + (register - index::MTRR_FIX_16K) as usize
        }
        _ => 3 + (register - index::MTRR_FIX_4K) as usize,
    }
}

/// Whether a register belongs to the interrupt controller.
fn is_controllers(register: u32) -> bool {
    matches!(
        register,
        index::APIC_BASE | index::TSC_DEADLINE | index::X2APIC_FIRST..=index::X2APIC_LAST
    )
}

/// Whether a register reads as zero and takes anything: of what it configures on AMD's processors there is nothing
/// here.
fn is_inert(register: u32) -> bool {
    matches!(
        register,
        index::SYSCFG
            | index::NB_CFG
            | index::INT_PENDING
            | index::MMIO_CONFIGURATION
            | index::SMM_ADDR
            | index::SMM_MASK
            | index::LS_CFG
            | index::IC_CFG
            | index::DC_CFG
            | index::BU_CFG
            | index::BU_CFG2
            | index::EX_CFG
    )
}

impl Cpu {
    /// The time-stamp counter as the guest sees it.
    pub(crate) fn tsc(&self) -> u64 {
        let tsc = self.own_tsc();
        if self.svm.guest { self.guest_tsc(tsc) } else { tsc }
    }

    /// The time-stamp counter as it is to who is no nested guest.
    fn own_tsc(&self) -> u64 {
        self.clock.tsc().wrapping_add(self.msrs.tsc_offset)
    }

    /// Reads model-specific register `register`; `None` if there is none.
    pub(crate) fn read_msr(&self, register: u32) -> Option<u64> {
        let msrs = &self.msrs;
        Some(match register {
            index::TSC_DEADLINE if !self.has(Groups::TSC_DEADLINE) => return None,
            index::TSC_DEADLINE => {
                // The controller counts without the guest's offset.
                let deadline = self.interrupts.read_msr(register)?;
                if deadline == 0 { 0 } else { deadline.wrapping_add(msrs.tsc_offset) }
            }
            _ if is_controllers(register) => return self.interrupts.read_msr(register),
            index::TSC => self.tsc(),
            index::TSC_ADJUST if self.has(Groups::TSC_ADJUST) => msrs.tsc_offset,
            index::MPERF | index::APERF => return self.read_effective_frequency(register),
            index::SPEC_CTRL if self.has(Groups::SPEC_CTRL) => msrs.spec_ctrl,
            index::PKRS if self.has(Groups::PKS) => msrs.pkrs.into(),
            // No component of the processor's state is the supervisor's alone.
            index::XSS if self.has(Groups::XSAVES) => 0,
            // A microcode level that no erratum workaround asks to be newer.
            index::PATCH_LEVEL => 0x0100_0065,
            index::MTRR_CAP => MTRR_CAP,
            index::ARCH_CAPABILITIES if self.has(Groups::ARCH_CAPABILITIES) => ARCH_CAPABILITIES,
            index::SYSENTER_CS => msrs.sysenter_cs,
            index::SYSENTER_ESP => msrs.sysenter_esp,
            index::SYSENTER_EIP => msrs.sysenter_eip,
            index::MCG_CAP => MCG_CAP,
            index::MCG_STATUS => msrs.mcg_status,
            index::MCG_CTL => msrs.mcg_ctl,
            index::MC_FIRST..=index::MC_LAST => {
                msrs.mc_banks[(register - index::MC_FIRST) as usize]
            }
            index::MISC_ENABLE => msrs.misc_enable,
            index::DEBUG_CTL => msrs.debug_ctl,
            index::LAST_BRANCH_FIRST..=index::LAST_BRANCH_LAST => {
                msrs.last_branch[(register - index::LAST_BRANCH_FIRST) as usize]
            }
            index::MTRR_FIRST..=index::MTRR_LAST => {
                msrs.mtrr_variable[(register - index::MTRR_FIRST) as usize]
            }
            index::MTRR_FIX_64K
            | index::MTRR_FIX_16K
            | index::MTRR_FIX_16K_HIGH
            | index::MTRR_FIX_4K..=index::MTRR_FIX_4K_LAST => msrs.mtrr_fixed[fixed_slot(register)],
            index::PAT => msrs.pat,
            index::MTRR_DEF_TYPE => msrs.mtrr_def_type,
            index::EFER => self.efer,
            index::STAR => msrs.star,
            index::LSTAR => msrs.lstar,
            index::CSTAR => msrs.cstar,
            index::SFMASK => msrs.sfmask,
            index::FS_BASE => self.seg[usize::from(FS)].base,
            index::GS_BASE => self.seg[usize::from(GS)].base,
            index::KERNEL_GS_BASE => msrs.kernel_gs_base,
            index::TSC_AUX => msrs.tsc_aux,
            index::HWCR => msrs.hwcr,
            index::OSVW_LENGTH | index::OSVW_STATUS if self.has(Groups::OSVW) => {
                msrs.osvw[(register - index::OSVW_LENGTH) as usize]
            }
            hyperv::index::FIRST..=hyperv::index::LAST => return self.read_hyperv_msr(register),
            index::TOP_MEM | index::TOP_MEM2 => 0,
            // LFENCE serialises.
            index::DE_CFG => 1 << 1,
            _ if is_inert(register) || self.is_still_counter(register) => 0,
            _ => {
                let counter = msrs.pmu.as_ref().and_then(|pmu| pmu.read(register));
                return counter
                    .or_else(|| self.read_intel_msr(register))
                    .or_else(|| self.read_svm_msr(register))
                    .or_else(|| self.read_kvm_msr(register));
            }
        })
    }

    /// Reads a register that Intel's processors have (SDM volume 4, sections 2.3, 2.17 and 2.23).
    fn read_intel_msr(&self, register: u32) -> Option<u64> {
        let family = self.config.model.family;
        let ratio = (self.clock.tsc_hz() / RATIO_HZ) & 0xff;
        match register {
            _ if !self.limits.intel => None,
            // The first of the platforms that microcode is for; nothing was strapped at power-on.
            index::PLATFORM_ID | index::POWER_ON => Some(0),
            index::FREQUENCY_ID => (family == 15).then_some(FREQUENCY_ID),
            index::SECOND_LEVEL_CONTROL => (family == 6).then_some(SECOND_LEVEL_CONTROL),
            index::PLATFORM_INFO => {
                Some(PLATFORM_INFO_CPUID_FAULTING | ratio << PLATFORM_INFO_RATIO_SHIFT)
            }
            index::MISC_FEATURES => Some(self.msrs.misc_features),
            _ => None,
        }
    }

    /// Whether the program may execute CPUID. System management mode always may.
    pub(crate) fn may_identify(&self) -> bool {
        let kept = self.msrs.misc_features & MISC_FEATURES_CPUID_FAULTING != 0;
        !kept || self.cpl == 0 || self.in_smm()
    }

    /// Writes model-specific register `register`; false if there is none or it can't have this value.
    pub(crate) fn write_msr(&mut self, register: u32, value: u64) -> bool {
        match register {
            index::TSC_DEADLINE => return self.write_tsc_deadline(value),
            index::APIC_BASE if value & APIC_BASE_X2APIC != 0 && !self.has(Groups::X2APIC) => {
                return false;
            }
            _ if is_controllers(register) => {
                let done = self.interrupts.write_msr(register, value);
                if register == index::APIC_BASE {
                    self.take_up_controller_page();
                    self.break_block = true;
                }
                return done;
            }
            index::EFER => return self.write_efer(value),
            index::DEBUG_CTL => return self.write_debug_ctl(value),
            index::SPEC_CTRL | index::PRED_CMD if !self.has(Groups::SPEC_CTRL) => return false,
            index::OSVW_LENGTH | index::OSVW_STATUS if !self.has(Groups::OSVW) => return false,
            index::PKRS => return self.write_pkrs(value),
            index::XSS => return self.has(Groups::XSAVES) && value == 0,
            index::MISC_FEATURES if !self.limits.intel => return false,
            hyperv::index::FIRST..=hyperv::index::LAST => {
                return self.write_hyperv_msr(register, value);
            }
            index::MC_FIRST..=index::MC_LAST => return self.write_mc_bank(register, value),
            index::FS_BASE | index::GS_BASE => {
                if !self.is_canonical_base(value) {
                    return false;
                }
                let segment = if register == index::FS_BASE { FS } else { GS };
                self.seg[usize::from(segment)].base = value;
                self.update_segment(segment);
                return true;
            }
            index::TSC => {
                self.set_tsc_offset(value.wrapping_sub(self.clock.tsc()));
                return true;
            }
            index::TSC_ADJUST => {
                let there = self.has(Groups::TSC_ADJUST);
                if there {
                    self.set_tsc_offset(value);
                }
                return there;
            }
            index::MPERF | index::APERF => return self.write_effective_frequency(register, value),
            _ if is_inert(register) || self.is_still_counter(register) => return true,
            _ => {}
        }
        let canonical = self.is_canonical_base(value);
        let physical = value >> self.limits.phys_bits == 0;
        let msrs = &mut self.msrs;
        let (slot, valid) = match register {
            index::SPEC_CTRL => (&mut msrs.spec_ctrl, value & !7 == 0),
            index::MCG_STATUS => (&mut msrs.mcg_status, value & !7 == 0),
            index::MCG_CTL => (&mut msrs.mcg_ctl, true),
            index::SYSENTER_CS => (&mut msrs.sysenter_cs, true),
            index::SYSENTER_ESP => (&mut msrs.sysenter_esp, canonical),
            index::SYSENTER_EIP => (&mut msrs.sysenter_eip, canonical),
            index::MISC_ENABLE => (&mut msrs.misc_enable, true),
            index::MISC_FEATURES => {
                (&mut msrs.misc_features, value & !MISC_FEATURES_CPUID_FAULTING == 0)
            }
            index::MTRR_FIRST..=index::MTRR_LAST => {
                let n = (register - index::MTRR_FIRST) as usize;
                let is_mask = n & 1 != 0;
                let reserved = if is_mask { 0x7ff } else { 0xf00 };
                let valid =
                    physical && value & reserved == 0 && (is_mask || is_mtrr_type(value as u8));
                (&mut msrs.mtrr_variable[n], valid)
            }
            index::MTRR_FIX_64K
            | index::MTRR_FIX_16K
            | index::MTRR_FIX_16K_HIGH
            | index::MTRR_FIX_4K..=index::MTRR_FIX_4K_LAST => {
                let valid = value.to_le_bytes().into_iter().all(is_mtrr_type);
                (&mut msrs.mtrr_fixed[fixed_slot(register)], valid)
            }
            index::PAT => (&mut msrs.pat, is_pat(value)),
            index::MTRR_DEF_TYPE => {
                (&mut msrs.mtrr_def_type, value & !0xcff == 0 && is_mtrr_type(value as u8))
            }
            index::STAR => (&mut msrs.star, true),
            index::LSTAR => (&mut msrs.lstar, canonical),
            index::CSTAR => (&mut msrs.cstar, canonical),
            index::SFMASK => (&mut msrs.sfmask, value >> 32 == 0),
            index::KERNEL_GS_BASE => (&mut msrs.kernel_gs_base, canonical),
            index::TSC_AUX => (&mut msrs.tsc_aux, value >> 32 == 0),
            index::HWCR => (&mut msrs.hwcr, true),
            index::OSVW_LENGTH => (&mut msrs.osvw[0], value >> OSVW_LENGTH_BITS == 0),
            index::OSVW_STATUS => (&mut msrs.osvw[1], true),
            // Writable, without effect.
            index::PRED_CMD => return value & !1 == 0,
            index::PATCH_LEVEL | index::PATCH_LOADER | index::DE_CFG => return true,
            _ => {
                self.sync_performance();
                let msrs = &mut self.msrs;
                let written = msrs.pmu.as_mut().and_then(|pmu| pmu.write(register, value));
                return written.unwrap_or_else(|| {
                    self.write_svm_msr(register, value) || self.write_kvm_msr(register, value)
                });
            }
        };
        if valid {
            *slot = value;
        }
        valid
    }

    /// Whether `register` is of the four counters that all of AMD's processors have and no bit in CPUID tells
    /// of, on a CPU without counters: it reads as zero, and kernels that clear it (Xen) go on.
    fn is_still_counter(&self, register: u32) -> bool {
        let is_amds = !self.limits.intel && self.msrs.pmu.is_none();
        is_amds && (index::COUNTERS_FIRST..=index::COUNTERS_LAST).contains(&register)
    }

    /// Whether the model has the registers of `group`.
    fn has(&self, group: Groups) -> bool {
        self.limits.msrs.contains(group)
    }

    /// MPERF or APERF, of a CPU that lets programs read them; `None` for others.
    pub(crate) fn read_effective_frequency(&self, register: u32) -> Option<u64> {
        let n = register.checked_sub(index::MPERF)? as usize;
        let offset = self.msrs.effective_frequency.get(n).filter(|_| self.has(Groups::RDPRU))?;
        Some(self.clock.tsc().wrapping_add(*offset))
    }

    fn write_effective_frequency(&mut self, register: u32, value: u64) -> bool {
        let there = self.has(Groups::RDPRU);
        if there {
            let n = (register - index::MPERF) as usize;
            self.msrs.effective_frequency[n] = value.wrapping_sub(self.clock.tsc());
        }
        there
    }

    /// Moves the time-stamp counter. A deadline stays where it is on the guest's clock.
    fn set_tsc_offset(&mut self, offset: u64) {
        let deadline = self.read_msr(index::TSC_DEADLINE).filter(|&deadline| deadline != 0);
        self.msrs.tsc_offset = offset;
        self.counter_moved();
        if let Some(deadline) = deadline {
            self.write_tsc_deadline(deadline);
        }
    }

    fn write_tsc_deadline(&mut self, value: u64) -> bool {
        // The controller counts without the guest's offset; a deadline that is past is one, too.
        let deadline = match value {
            0 => 0,
            _ => match value.checked_sub(self.own_tsc()) {
                // Without the offset again, and not by what the clock says now, it reads back the same.
                Some(ahead) => match self.clock.tsc().checked_add(ahead) {
                    Some(_) => value.wrapping_sub(self.msrs.tsc_offset).max(1),
                    None => u64::MAX,
                },
                None => 1,
            },
        };
        self.has(Groups::TSC_DEADLINE) && self.interrupts.write_msr(index::TSC_DEADLINE, deadline)
    }

    fn write_pkrs(&mut self, value: u64) -> bool {
        let Ok(pkrs) = u32::try_from(value) else { return false };
        if !self.has(Groups::PKS) {
            return false;
        }
        self.msrs.pkrs = pkrs;
        self.tlb.flush_l1();
        true
    }

    /// Of Intel's processors CTL takes all bits or none, and the others only zero (SDM volume 3, section
    /// 16.3.2); of AMD's only STATUS has to be zero, until HWCR lets it be written (APM volume 2, section
    /// 9.3.2).
    fn write_mc_bank(&mut self, register: u32, value: u64) -> bool {
        let n = (register - index::MC_FIRST) as usize;
        let free = match n % 4 {
            0 => !self.limits.intel || value | MC_CTL_LEFT_OFF == u64::MAX,
            1 => self.msrs.hwcr & HWCR_MC_STATUS_WRITES != 0,
            _ => self.limits.mc_details,
        };
        if !free && value != 0 {
            return false;
        }
        self.msrs.mc_banks[n] = value;
        true
    }

    fn write_debug_ctl(&mut self, value: u64) -> bool {
        let known = match self.config.model.vendor {
            Vendor::Amd => DEBUG_CTL_AMD,
            Vendor::Intel => DEBUG_CTL_INTEL,
        };
        let valid = value & !known == 0;
        if valid {
            self.msrs.debug_ctl = value;
            self.break_block = true;
        }
        valid
    }

    /// Whether each branch is recorded.
    #[inline(always)]
    pub(crate) fn records_branches(&self) -> bool {
        self.msrs.debug_ctl & DEBUG_CTL_LBR != 0
    }

    /// Whether a single step ends with the next branch that is taken, not with each instruction.
    pub(crate) fn steps_branches(&self) -> bool {
        self.msrs.debug_ctl & DEBUG_CTL_BTF != 0
    }

    /// A branch that was taken at linear address `from`, to where the CPU is now.
    pub(crate) fn record_branch(&mut self, from: u64) {
        let to = self.code_linear();
        self.msrs.last_branch[..2].copy_from_slice(&[from, to]);
    }

    /// An event at linear address `from` whose handler was entered: the last branch before it is kept.
    #[cold]
    pub(crate) fn record_event(&mut self, from: u64) {
        self.msrs.last_branch.copy_within(..2, 2);
        self.record_branch(from);
    }

    fn write_efer(&mut self, value: u64) -> bool {
        // LMA follows LME and paging; what is written to it does not count.
        let value = value & !EFER_LMA | self.efer & EFER_LMA;
        let changed = value ^ self.efer;
        let disabled = value & EFER_SVME != 0 && self.is_svm_disabled();
        if disabled
            || value & !self.limits.efer != 0
            || changed & EFER_LME != 0 && self.cr0 & CR0_PG != 0
        {
            return false;
        }
        self.efer = value;
        if changed & EFER_NXE != 0 {
            self.tlb.flush_all();
            self.tlb.switch(self.pcid(), true);
        }
        true
    }

    /// The registers to save, in ascending order.
    pub(crate) fn saved_msrs(&self) -> Vec<(u32, u64)> {
        let value = |n| if n == index::TSC { Some(self.own_tsc()) } else { self.read_msr(n) };
        let mut saved: Vec<_> = SAVED.iter().filter_map(|&n| Some((n, value(n)?))).collect();
        saved.extend((index::MC_FIRST..).zip(self.msrs.mc_banks));
        saved.extend(self.msrs.pmu.iter().flat_map(Pmu::saved));
        saved.sort_unstable_by_key(|&(n, _)| n);
        saved
    }

    /// Restores saved registers, EFER left aside.
    ///
    /// # Errors
    /// Names the register that can't have its value.
    pub(crate) fn restore_msrs(&mut self, saved: &[(u32, u64)]) -> Result<(), String> {
        self.msrs = Msrs::new(&self.config.model);
        self.sync_performance();
        for &(register, value) in saved {
            if register == index::TSC {
                // Not by the guest: an armed deadline is the controller's to restore.
                self.msrs.tsc_offset = value.wrapping_sub(self.clock.tsc());
                continue;
            }
            if let index::MC_FIRST..=index::MC_LAST = register {
                self.msrs.mc_banks[(register - index::MC_FIRST) as usize] = value;
                continue;
            }
            if register == hyperv::index::VP_RUNTIME {
                self.restore_run_time(value);
                continue;
            }
            if let Some(kvm) = self.msrs.kvm.restored(register, value) {
                self.msrs.kvm = kvm;
                continue;
            }
            if let index::LAST_BRANCH_FIRST..=index::LAST_BRANCH_LAST = register {
                self.msrs.last_branch[(register - index::LAST_BRANCH_FIRST) as usize] = value;
                continue;
            }
            if self.msrs.pmu.as_mut().is_some_and(|pmu| pmu.restore(register, value)) {
                continue;
            }
            if !SAVED.contains(&register) {
                return Err(format!("model-specific register {register:#x} is not known"));
            }
            if register != index::EFER && !self.write_msr(register, value) {
                return Err(format!(
                    "model-specific register {register:#x} cannot hold {value:#x}"
                ));
            }
        }
        Ok(())
    }
}
