//! Temporary.
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::state::CpuState;
impl Cpu {
    pub(crate) fn check_io(&mut self, _: u16, _: u8) -> Result {
        Ok(())
    }
    pub(crate) fn save(&self) -> CpuState {
        CpuState::default()
    }
    pub(crate) fn restore(&mut self, _: &CpuState) -> std::result::Result<(), String> {
        Ok(())
    }
}
pub(crate) fn select(insn: &iced_x86::Instruction) -> Option<crate::op::Handler> {
    (insn.mnemonic() == iced_x86::Mnemonic::Hlt).then_some(|cpu, _| {
        cpu.activity = crate::state::Activity::Halted;
        Ok(())
    })
}
