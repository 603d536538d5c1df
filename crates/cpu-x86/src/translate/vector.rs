//! Vector instructions: as themselves, on the host's registers of the same numbers.
//!
//! The host's MXCSR is the guest's while its registers are loaded, and all exceptions are masked then;
//! with one unmasked, blocks that use vectors are interpreted.

use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind, Register};

use super::compile::Compiler;

/// The instruction set extensions of the host that guests may be given as themselves.
#[derive(Clone, Debug)]
pub(super) struct HostFeatures {
    known: Vec<CpuidFeature>,
    /// Whether translations can run at all.
    pub(super) usable: bool,
    pub(super) avx: bool,
}

macro_rules! detect {
    ($($name:tt => $feature:ident),* $(,)?) => {{
        use CpuidFeature::*;
        let mut known = vec![INTEL8086, INTEL8086_ONLY, INTEL186, INTEL286, INTEL386, INTEL486, X64, CMOV, MULTIBYTENOP, PAUSE, CX8, SSE, SSE2, FPU, FPU287, FPU387, MMX];
        $(if std::arch::is_x86_feature_detected!($name) { known.push($feature); })*
        known
    }};
}

impl HostFeatures {
    pub(super) fn detect() -> Self {
        let known = detect! {
            "sse3" => SSE3, "ssse3" => SSSE3, "sse4.1" => SSE4_1, "sse4.2" => SSE4_2, "aes" => AES,
            "pclmulqdq" => PCLMULQDQ, "sha" => SHA, "avx" => AVX, "avx2" => AVX2, "fma" => FMA,
            "f16c" => F16C, "bmi1" => BMI1, "bmi2" => BMI2, "popcnt" => POPCNT, "lzcnt" => LZCNT,
            "movbe" => MOVBE, "adx" => ADX, "vaes" => VAES, "vpclmulqdq" => VPCLMULQDQ,
            "xsave" => XSAVE, "cmpxchg16b" => CMPXCHG16B,
        };
        let has = |feature| known.contains(&feature);
        Self { usable: has(CpuidFeature::BMI2), avx: has(CpuidFeature::AVX), known }
    }

    /// Whether the host has `insn`.
    pub(super) fn has_all(&self, insn: &Instruction) -> bool {
        insn.cpuid_features().iter().all(|feature| self.known.contains(feature))
    }

    /// Whether the x87 can be saved and restored by itself.
    pub(super) fn has_x87(&self) -> bool {
        self.known.contains(&CpuidFeature::XSAVE)
    }

    /// What `insn` asks of vector registers: 0 nothing, 1 that SSE may run, 2 that AVX may; 0 also if it
    /// is not translated.
    pub(super) fn level(&self, insn: &Instruction) -> u32 {
        match () {
            () if !is_translated(insn) || !self.has_all(insn) => 0,
            () if has_mmx_register(insn) && !self.has_x87() => 0,
            () if insn.op_code().encoding() == EncodingKind::VEX => 2,
            () => 1,
        }
    }
}

fn has_mmx_register(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_mm())
}

pub(super) fn is_vector(register: Register) -> bool {
    register.is_xmm() || register.is_ymm()
}

/// Whether the translator takes `insn` for a vector instruction.
fn is_translated(insn: &Instruction) -> bool {
    use Mnemonic::*;
    if !matches!(insn.op_code().encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return false;
    }
    match insn.mnemonic() {
        Vzeroupper | Vzeroall => true,
        // Implicit operands, or more than one access to memory.
        Maskmovdqu | Vmaskmovdqu | Pcmpestri | Pcmpestrm | Vpcmpestri | Vpcmpestrm => false,
        Pcmpestri64 | Pcmpestrm64 | Vpcmpestri64 | Vpcmpestrm64 => false,
        _ => {
            let registers = (0..insn.op_count()).filter(|&n| insn.op_kind(n) == OpKind::Register);
            let mut any = false;
            for n in registers {
                let register = insn.op_register(n);
                if !is_vector(register) && !register.is_gpr() && !register.is_mm() {
                    return false;
                }
                any |= is_vector(register);
            }
            any && !insn.is_vsib()
        }
    }
}

/// Whether a memory operand that is not a multiple of its size is a fault.
pub(super) fn must_be_aligned(insn: &Instruction) -> bool {
    use Mnemonic::*;
    if !(0..insn.op_count())
        .any(|n| insn.op_kind(n) == OpKind::Register && is_vector(insn.op_register(n)))
    {
        return false;
    }
    if insn.op_code().encoding() == EncodingKind::VEX {
        return matches!(
            insn.mnemonic(),
            Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa
        );
    }
    insn.memory_size().size() == 16
        && !matches!(
            insn.mnemonic(),
            Movups | Movupd | Movdqu | Lddqu | Pcmpistri | Pcmpistrm | Pcmpestri | Pcmpestrm
        )
}

impl Compiler<'_> {
    /// Translates a vector instruction; false, with nothing done, if it is none that can be.
    pub(super) fn vector(&mut self, insn: &Instruction) -> bool {
        self.features.level(insn) != 0 && self.plain(insn)
    }
}
