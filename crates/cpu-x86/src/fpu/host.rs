//! x87's transcendental functions, and SSE's reciprocal approximations.
//!
//! Neither is defined to the last bit by the architecture. On an x86-64 host they are computed by the
//! host's own instructions, so that a guest sees what silicon gives it: the operands and the control
//! word are loaded with FRSTOR, one instruction is run, and FNSAVE tells everything about it, unmasked
//! exceptions included, since only a *waiting* x87 instruction would deliver them. On other hosts they
//! are approximated in binary64, with 53 good bits or somewhat fewer instead of 64.
#![allow(unsafe_code)]

use super::softfloat::F80;

/// What an x87 instruction on ST(0) and ST(1) left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// ST(0) and ST(1) by their new numbering.
    pub(crate) st: [F80; 2],
    /// How TOP moved: -1 for a push, 1 for a pop.
    pub(crate) top_change: i8,
    /// Status word: exception flags and condition codes.
    pub(crate) status: u16,
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{f2xm1, fcos, fpatan, fptan, fsin, fsincos, fyl2x, fyl2xp1};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{reciprocal, reciprocal_sqrt};

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use std::arch::asm;

    use super::{F80, Outcome};

    /// FNSAVE's image in 32-bit protected-mode format, which 64-bit mode uses too.
    #[derive(Clone, Copy, Debug)]
    #[repr(C, packed)]
    pub(crate) struct Image {
        pub(crate) control: u32,
        pub(crate) status: u32,
        pub(crate) tags: u32,
        pub(crate) pointers: [u32; 4],
        pub(crate) st: [[u8; 10]; 8],
    }

    /// An image with `a` in ST(0) and `b` in ST(1), and room for a push.
    pub(crate) fn image_of(control: u16, a: F80, b: F80) -> Image {
        let bytes = |v: F80| {
            let mut bytes = [0; 10];
            bytes.copy_from_slice(&v.to_bits().to_le_bytes()[..10]);
            bytes
        };
        let mut st = [[0; 10]; 8];
        st[0] = bytes(a);
        st[1] = bytes(b);
        // TOP is 6, so R6 and R7 are in use.
        Image {
            control: u32::from(control) | 0xffff_0040,
            status: 0xffff_3000,
            tags: 0xffff_0fff,
            pointers: [0; 4],
            st,
        }
    }

    impl Image {
        /// ST(`i`).
        pub(crate) fn st(&self, i: usize) -> F80 {
            let bytes = self.st[i];
            let mut bits = [0; 16];
            bits[..10].copy_from_slice(&bytes);
            F80::from_bits(u128::from_le_bytes(bits))
        }

        /// Makes an outcome of an image that an instruction ran on.
        pub(crate) fn outcome(&self) -> Outcome {
            let status = self.status as u16;
            let top = (status >> 11 & 7) as i8;
            Outcome { st: [self.st(0), self.st(1)], top_change: top - 6, status }
        }
    }

    /// Defines functions that run one x87 instruction on an image.
    macro_rules! run_x87 {
        ($($(#[$meta:meta])* $name:ident: $text:literal;)*) => {$(
            $(#[$meta])*
            pub(crate) fn $name(image: &mut Image) {
                // SAFETY: FRSTOR reads and FNSAVE writes the 108 bytes of `image`; in between the
                // instruction touches x87 registers only. FNSAVE leaves the unit initialised, with an
                // empty stack, as the calling convention wants it, and is not a waiting instruction,
                // so pending exceptions are dropped. The image's status has no exception pending, so
                // the instruction itself does not trap.
                unsafe {
                    asm!("frstor [{p}]", $text, "fnsave [{p}]",
                        p = in(reg) image, clobber_abi("C"), options(nostack));
                }
            }
        )*};
    }
    #[cfg(test)]
    pub(crate) use run_x87;

    mod raw {
        use super::{Image, asm};
        run_x87! {
            f2xm1: "f2xm1";
            fcos: "fcos";
            fpatan: "fpatan";
            fptan: "fptan";
            fsin: "fsin";
            fsincos: "fsincos";
            fyl2x: "fyl2x";
            fyl2xp1: "fyl2xp1";
        }
    }

    macro_rules! functions {
        ($($(#[$meta:meta])* $name:ident)*) => {$(
            $(#[$meta])*
            pub(crate) fn $name(control: u16, st0: F80, st1: F80) -> Outcome {
                let mut image = image_of(control, st0, st1);
                raw::$name(&mut image);
                image.outcome()
            }
        )*};
    }
    functions! {
        /// 2^ST(0) - 1.
        f2xm1
        /// Cosine.
        fcos
        /// The angle of the point (ST(0), ST(1)); pops.
        fpatan
        /// Tangent, then pushes 1.
        fptan
        /// Sine.
        fsin
        /// Sine, then pushes the cosine.
        fsincos
        /// ST(1) * log2(ST(0)); pops.
        fyl2x
        /// ST(1) * log2(ST(0) + 1); pops.
        fyl2xp1
    }

    /// RCPSS of a bit pattern.
    pub(crate) fn reciprocal(value: u32) -> u32 {
        let result: u32;
        // SAFETY: computes on a register. RCPSS raises no exception and ignores MXCSR.
        unsafe {
            asm!("movd {x}, {v:e}", "rcpss {x}, {x}", "movd {r:e}, {x}",
                x = out(xmm_reg) _, v = in(reg) value, r = lateout(reg) result,
                options(pure, nomem, nostack, preserves_flags));
        }
        result
    }

    /// RSQRTSS of a bit pattern.
    pub(crate) fn reciprocal_sqrt(value: u32) -> u32 {
        let result: u32;
        // SAFETY: computes on a register. RSQRTSS raises no exception and ignores MXCSR.
        unsafe {
            asm!("movd {x}, {v:e}", "rsqrtss {x}, {x}", "movd {r:e}, {x}",
                x = out(xmm_reg) _, v = in(reg) value, r = lateout(reg) result,
                options(pure, nomem, nostack, preserves_flags));
        }
        result
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod portable;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use portable::{
    f2xm1, fcos, fpatan, fptan, fsin, fsincos, fyl2x, fyl2xp1, reciprocal, reciprocal_sqrt,
};
