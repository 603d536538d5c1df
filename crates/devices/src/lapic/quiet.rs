//! Ends of interrupts that a guest tells by a flag in its memory, so that it need not write to a register:
//! what Hyper-V calls EOI assist (Top Level Functional Specification, "Virtual Interrupt Control") and KVM
//! paravirtual EOI (Linux's documentation, virt/kvm/x86/msr).
//!
//! The flag is set when the CPU takes an edge-triggered interrupt while no other waits. A guest that finds
//! it set clears it, and is done. The APIC finds out when it next has to know which interrupts are in
//! service: that is before the next interrupt is taken, so while the flag may tell of an end, any request
//! has the CPU come here ([`Registers::wants_cpu`]). If the flag is still set then, the handler has not come
//! to its end; the flag is cleared, and the end will be told by the register.
//!
//! Invariant: only the CPU that owns the APIC clears or sets the flag, between two of its instructions, so
//! the guest's own test and what follows it are not torn apart. Others only look.

use std::sync::Arc;

use memory::GuestMemory;

use super::{LocalApic, Registers};
use crate::lock;

/// KVM's register: the flag is on.
const ENABLED: u64 = 1 << 0;
/// Must be zero.
const RESERVED: u64 = 1 << 1;

/// Where the flag is.
pub trait EndFlag: Send + Sync {
    /// Whether it is set.
    fn is_set(&self) -> bool;
    /// Sets or clears it; false if it could not.
    fn set(&self, value: bool) -> bool;
}

/// The flag of KVM's interface: the first bit of four bytes of RAM.
struct RamFlag {
    memory: Arc<GuestMemory>,
    at: u64,
}

impl EndFlag for RamFlag {
    fn is_set(&self) -> bool {
        let mut byte = [0];
        self.memory.read(self.at, &mut byte).is_ok() && byte[0] & 1 != 0
    }

    fn set(&self, value: bool) -> bool {
        let mut byte = [0];
        let there = self.memory.read(self.at, &mut byte).is_ok();
        there && self.memory.write(self.at, &[byte[0] & !1 | u8::from(value)]).is_ok()
    }
}

impl LocalApic {
    /// Says which memory KVM's flag is in. Only the first call counts.
    pub fn connect_memory(&self, memory: &Arc<GuestMemory>) {
        let _ = self.memory.set(Arc::clone(memory));
    }

    /// Where KVM's flag is, by its register.
    fn ram_flag(&self, register: u64) -> Option<Arc<dyn EndFlag>> {
        let memory = self.memory.get().filter(|_| register & ENABLED != 0)?;
        Some(Arc::new(RamFlag { memory: Arc::clone(memory), at: register & !3 }))
    }

    /// KVM's register for the flag (Linux's documentation, virt/kvm/x86/msr: MSR_KVM_PV_EOI_EN).
    pub(super) fn kvm_end_flag(&self) -> Option<u64> {
        self.memory.get().map(|_| self.registers().kvm_end_flag)
    }

    /// Writes it; false for a value that it can't have.
    pub(super) fn set_kvm_end_flag(&self, value: u64) -> bool {
        let valid = value & RESERVED == 0 && self.memory.get().is_some();
        if valid {
            self.registers().kvm_end_flag = value;
            self.set_end_flag(self.ram_flag(value));
        }
        valid
    }

    /// The flag is where the registers, which are other ones now, have it; whoever else has one says so after
    /// this.
    pub(super) fn renew_end_flag(&self, registers: &Registers) {
        *lock(&self.end_flag) = self.ram_flag(registers.kvm_end_flag);
    }

    /// Says where the flag is from now on. What the last one tells counts.
    pub fn set_end_flag(&self, flag: Option<Arc<dyn EndFlag>>) {
        let mut registers = self.registers();
        self.settle_quiet_end(&mut registers);
        *lock(&self.end_flag) = flag;
        self.refresh(&registers);
    }

    /// The same for a machine whose state is restored: nothing is settled.
    pub fn restore_end_flag(&self, flag: Option<Arc<dyn EndFlag>>) {
        *lock(&self.end_flag) = flag;
    }

    /// The CPU has taken `vector`: lets the guest tell of its end by the flag, if that may be.
    pub(super) fn allow_quiet_end(&self, registers: &mut Registers, vector: u8) {
        let flag = lock(&self.end_flag);
        let Some(flag) = flag.as_ref().filter(|_| registers.allows_quiet_end(vector)) else {
            return;
        };
        if flag.set(true) {
            registers.expect_quiet_end();
        }
    }

    /// Takes note of an end that was told by the flag; if there was none, it can't be told so any more.
    pub(super) fn settle_quiet_end(&self, registers: &mut Registers) {
        if !registers.expects_quiet_end() {
            return;
        }
        let flag = lock(&self.end_flag);
        let pending = flag.as_ref().is_some_and(|flag| {
            let pending = flag.is_set();
            if pending {
                flag.set(false);
            }
            pending
        });
        registers.settle_quiet_end(!pending && flag.is_some());
    }

    /// Takes note of an end that was told by the flag, if there was one.
    pub(super) fn notice_quiet_end(&self, registers: &mut Registers) {
        let told = || lock(&self.end_flag).as_ref().is_some_and(|flag| !flag.is_set());
        if registers.expects_quiet_end() && told() {
            registers.settle_quiet_end(true);
        }
    }
}
