//! Which host register holds what while translated code runs.
//!
//! | host | holds |
//! |---|---|
//! | rcx, rdx, rbx, rbp, rsi, rdi, r8, r9 | the guest's of the same name |
//! | r10, r11 | the guest's r12, r13 |
//! | r12, r13 | the guest's rax, rsp |
//! | rax | the guest's flags, as LAHF and SETO AL leave them |
//! | r14, r15 | nothing for longer than an instruction |
//! | rsp | the address of what is at hand in the state |
//!
//! The guest's r10, r11, r14 and r15, which compilers use last, are in memory. Flags have RAX because
//! LAHF and SETO can put them nowhere else as fast, and that has to be done before most accesses to
//! memory; instructions with RAX as an implicit operand are rare.

use iced_x86::Register;

/// Scratch registers.
pub(super) const S1: Register = Register::R14;
/// See [`S1`].
pub(super) const S2: Register = Register::R15;

/// The host registers of the guest's, by number; `None` for those in memory.
pub(super) const HOST: [Option<Register>; 16] = [
    Some(Register::R12),
    Some(Register::RCX),
    Some(Register::RDX),
    Some(Register::RBX),
    Some(Register::R13),
    Some(Register::RBP),
    Some(Register::RSI),
    Some(Register::RDI),
    Some(Register::R8),
    Some(Register::R9),
    None,
    None,
    Some(Register::R10),
    Some(Register::R11),
    None,
    None,
];

/// The guest's RAX.
pub(super) const GUEST_RAX: Register = Register::R12;
/// The guest's RSP.
pub(super) const GUEST_RSP: Register = Register::R13;

/// The part of `size` bytes of the 64-bit register `full`.
pub(super) fn sized(full: Register, size: usize) -> Register {
    let n = full.number() as u32;
    let (first, n) = match size {
        8 => (Register::RAX, n),
        4 => (Register::EAX, n),
        2 => (Register::AX, n),
        _ if n < 4 => (Register::AL, n),
        _ => (Register::SPL, n - 4),
    };
    Register::try_from(first as usize + n as usize).unwrap_or_else(|_| unreachable!("a register"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_registers() {
        assert_eq!(sized(Register::R12, 1), Register::R12L);
        assert_eq!(sized(Register::RDI, 1), Register::DIL);
        assert_eq!(sized(Register::RBX, 1), Register::BL);
        assert_eq!(sized(Register::R8, 4), Register::R8D);
        assert_eq!(sized(Register::RSP, 2), Register::SP);
    }
}
