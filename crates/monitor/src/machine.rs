//! Commands about processors and memory (`schema/machine.json`).

use ::machine::spec::{MACHINE_ALIAS, MACHINE_TYPE, MAX_CPUS};
use schema::{
    BalloonInfo, CpuInfo, CpuInfoFast, CpuInstanceProperties, CurrentMachineParams, GuidInfo,
    HumanReadableText, KvmInfo, MachineInfo, QmpError, SysEmuTarget, TargetInfo, UuidInfo,
    commands,
};

use crate::{Monitor, int};

pub(crate) fn target() -> TargetInfo {
    TargetInfo { arch: SysEmuTarget::X8664 }
}

/// The machine types: there is one.
pub(crate) fn types() -> Vec<MachineInfo> {
    vec![MachineInfo {
        name: MACHINE_TYPE.to_owned(),
        alias: Some(MACHINE_ALIAS.to_owned()),
        is_default: Some(true),
        cpu_max: MAX_CPUS.into(),
        hotpluggable_cpus: false,
        numa_mem_supported: false,
        deprecated: false,
        default_cpu_type: Some("qemu64-x86_64-cpu".to_owned()),
        default_ram_id: Some("pc.ram".to_owned()),
    }]
}

/// The accelerator for KVM is not in this build, so it is neither present nor enabled.
pub(crate) fn kvm() -> KvmInfo {
    KvmInfo { enabled: false, present: false }
}

/// Selecting a CPU has no effect on anything; QEMU accepts any index, and so do clients expect.
pub(crate) fn select_cpu(_: &commands::Cpu) -> Result<(), QmpError> {
    Ok(())
}

impl Monitor {
    pub(crate) fn uuid(&self) -> UuidInfo {
        UuidInfo { uuid: self.machine.uuid().to_string() }
    }

    /// Every guest with firmware can be woken up: the board has the registers for it.
    pub(crate) fn current_machine(&self) -> CurrentMachineParams {
        CurrentMachineParams { wakeup_suspend_support: self.machine.can_suspend() }
    }

    pub(crate) fn generation_id(&self) -> Result<GuidInfo, QmpError> {
        match self.machine.generation_id() {
            Some(guid) => Ok(GuidInfo { guid: guid.to_string() }),
            None => Err(QmpError::generic("VM Generation ID device not found")),
        }
    }

    pub(crate) fn reset_rtc_backlog(&self) {
        self.machine.forget_missed_rtc_ticks();
    }

    pub(crate) fn cpus(&self) -> Vec<CpuInfo> {
        let cpus = self.machine.cpus().iter().enumerate();
        cpus.map(|(index, cpu)| {
            let glance = cpu.glance();
            CpuInfo {
                cpu: int(index),
                current: index == 0,
                halted: glance.halted,
                // The wire's integers are signed; clients read addresses back as unsigned.
                pc: Some(glance.pc as i64),
                nip: None,
                npc: None,
                PC: None,
                thread_id: cpu.thread_id().into(),
            }
        })
        .collect()
    }

    pub(crate) fn translation_report(&self) -> Result<HumanReadableText, QmpError> {
        let text = self.machine.translation_report();
        let text = text
            .ok_or_else(|| QmpError::generic("JIT information is only available with accel=tcg"))?;
        Ok(HumanReadableText { human_readable_text: text })
    }

    pub(crate) fn cpus_fast(&self) -> Vec<CpuInfoFast> {
        let smp = self.machine.smp();
        let cpus = self.machine.cpus().iter().enumerate();
        cpus.map(|(index, cpu)| {
            let (thread, above) = (index as u32 % smp.threads, index as u32 / smp.threads);
            CpuInfoFast {
                cpu_index: int(index),
                qom_path: self.machine.cpu_path(index),
                thread_id: cpu.thread_id().into(),
                props: Some(CpuInstanceProperties {
                    node_id: None,
                    socket_id: Some((above / smp.cores).into()),
                    die_id: None,
                    cluster_id: None,
                    core_id: Some((above % smp.cores).into()),
                    thread_id: Some(thread.into()),
                }),
                target: SysEmuTarget::X8664,
            }
        })
        .collect()
    }

    pub(crate) fn balloon_info(&self) -> Result<BalloonInfo, QmpError> {
        let balloon = self.machine.balloon().ok_or_else(no_balloon)?;
        Ok(BalloonInfo {
            actual: int(balloon.guest_memory()),
            mem_swapped_in: None,
            mem_swapped_out: None,
            major_page_faults: None,
            minor_page_faults: None,
            free_mem: None,
            total_mem: None,
        })
    }

    pub(crate) fn set_balloon(&self, arg: &commands::Balloon) -> Result<(), QmpError> {
        let balloon = self.machine.balloon().ok_or_else(no_balloon)?;
        let target = u64::try_from(arg.value)
            .ok()
            .filter(|&bytes| bytes > 0)
            .ok_or_else(|| QmpError::generic("Parameter 'target' expects a size"))?;
        balloon.set_target(target);
        Ok(())
    }
}

fn no_balloon() -> QmpError {
    QmpError::device_not_active("No balloon device has been activated")
}
