//! The commands of the contract, answered from a machine's real state.
//!
//! [`Monitor`] implements the generated trait [`schema::Commands`]; each schema module has a file here
//! with the handlers of its commands. Handlers of queries read what the machine publishes and never
//! wait; the others ask the machine's owner and wait for its answer.

mod block;
mod chardev;
mod control;
mod events;
mod human;
mod machine;
mod misc;
mod qom;
mod run_state;
mod ui;

use std::sync::{Arc, OnceLock};

use ::chardev::Chardev;
use ::machine::Machine;
use qmp::server::MonitorInfo;
use schema::{Commands, QmpError, commands};

pub use control::version;
pub use events::to_qmp;

/// Answers commands about one machine.
#[derive(Clone)]
pub struct Monitor {
    machine: Arc<Machine>,
    connections: Connections,
}

/// A monitor's connection: a character device too, though the machine knows nothing of it.
pub enum Connection {
    /// A socket, with all its clients.
    Socket(Arc<MonitorInfo>),
    /// Any other character device.
    Chardev(Arc<Chardev>),
}

/// The connections of a machine's monitors. Set once, when the server has them.
pub type Connections = Arc<OnceLock<Vec<Connection>>>;

impl Monitor {
    /// A monitor of `machine` on `connections`.
    pub fn new(machine: Arc<Machine>, connections: Connections) -> Self {
        Self { machine, connections }
    }
}

/// A size or count as the schema's `int`, which is signed: what is too large to be true is cut.
fn int(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// One line a command; the work is in the schema module's file.
impl Commands for Monitor {
    async fn query_version(&self) -> Result<schema::VersionInfo, QmpError> {
        Ok(version())
    }
    async fn query_commands(&self) -> Result<Vec<schema::CommandInfo>, QmpError> {
        Ok(control::commands())
    }
    async fn query_events(&self) -> Result<Vec<schema::EventInfo>, QmpError> {
        Ok(control::events())
    }
    async fn query_qmp_schema(&self) -> Result<serde_json::Value, QmpError> {
        control::introspection()
    }
    async fn quit(&self) -> Result<(), QmpError> {
        self.run_quit().await
    }
    async fn query_status(&self) -> Result<schema::StatusInfo, QmpError> {
        Ok(self.status())
    }
    async fn stop(&self) -> Result<(), QmpError> {
        self.run_stop().await
    }
    async fn cont(&self) -> Result<(), QmpError> {
        self.run_cont().await
    }
    async fn system_reset(&self) -> Result<(), QmpError> {
        self.run_reset().await
    }
    async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.run_powerdown().await
    }
    async fn system_wakeup(&self) -> Result<(), QmpError> {
        self.run_wakeup().await
    }
    async fn inject_nmi(&self) -> Result<(), QmpError> {
        self.run_inject_nmi().await
    }
    async fn watchdog_set_action(&self, arg: commands::WatchdogSetAction) -> Result<(), QmpError> {
        self.run_set_watchdog_action(&arg).await
    }
    async fn query_current_machine(&self) -> Result<schema::CurrentMachineParams, QmpError> {
        Ok(self.current_machine())
    }
    async fn query_vm_generation_id(&self) -> Result<schema::GuidInfo, QmpError> {
        self.generation_id()
    }
    async fn rtc_reset_reinjection(&self) -> Result<(), QmpError> {
        self.reset_rtc_backlog();
        Ok(())
    }
    async fn query_target(&self) -> Result<schema::TargetInfo, QmpError> {
        Ok(machine::target())
    }
    async fn query_machines(&self) -> Result<Vec<schema::MachineInfo>, QmpError> {
        Ok(machine::types())
    }
    async fn qom_list_types(
        &self,
        arg: commands::QomListTypes,
    ) -> Result<Vec<schema::ObjectTypeInfo>, QmpError> {
        Ok(qom::types(&arg))
    }
    async fn query_uuid(&self) -> Result<schema::UuidInfo, QmpError> {
        Ok(self.uuid())
    }
    async fn query_kvm(&self) -> Result<schema::KvmInfo, QmpError> {
        Ok(machine::kvm())
    }
    async fn query_cpus(&self) -> Result<Vec<schema::CpuInfo>, QmpError> {
        Ok(self.cpus())
    }
    async fn x_query_jit(&self) -> Result<schema::HumanReadableText, QmpError> {
        self.translation_report()
    }
    async fn query_cpus_fast(&self) -> Result<Vec<schema::CpuInfoFast>, QmpError> {
        Ok(self.cpus_fast())
    }
    async fn cpu(&self, arg: commands::Cpu) -> Result<(), QmpError> {
        machine::select_cpu(&arg)
    }
    async fn query_balloon(&self) -> Result<schema::BalloonInfo, QmpError> {
        self.balloon_info()
    }
    async fn balloon(&self, arg: commands::Balloon) -> Result<(), QmpError> {
        self.set_balloon(&arg)
    }
    async fn query_block(&self) -> Result<Vec<schema::BlockInfo>, QmpError> {
        Ok(self.block())
    }
    async fn query_blockstats(
        &self,
        arg: commands::QueryBlockstats,
    ) -> Result<Vec<schema::BlockStats>, QmpError> {
        Ok(self.block_stats(&arg))
    }
    async fn eject(&self, arg: commands::Eject) -> Result<(), QmpError> {
        self.block_eject(&arg)
    }
    async fn blockdev_open_tray(&self, arg: commands::BlockdevOpenTray) -> Result<(), QmpError> {
        self.block_open_tray(&arg)
    }
    async fn blockdev_close_tray(&self, arg: commands::BlockdevCloseTray) -> Result<(), QmpError> {
        self.block_close_tray(&arg)
    }
    async fn blockdev_remove_medium(
        &self,
        arg: commands::BlockdevRemoveMedium,
    ) -> Result<(), QmpError> {
        self.block_remove_medium(&arg)
    }
    async fn blockdev_change_medium(
        &self,
        arg: commands::BlockdevChangeMedium,
    ) -> Result<(), QmpError> {
        self.block_change_medium(arg).await
    }
    async fn block_resize(&self, arg: commands::BlockResize) -> Result<(), QmpError> {
        self.resize_block(arg).await
    }
    async fn query_chardev(&self) -> Result<Vec<schema::ChardevInfo>, QmpError> {
        Ok(self.chardevs())
    }
    async fn query_migrate(&self) -> Result<schema::MigrationInfo, QmpError> {
        Ok(misc::migration())
    }
    async fn query_mice(&self) -> Result<Vec<schema::MouseInfo>, QmpError> {
        Ok(self.mice())
    }
    async fn send_key(&self, arg: commands::SendKey) -> Result<(), QmpError> {
        Monitor::send_key(self, &arg)
    }
    async fn input_send_event(&self, arg: commands::InputSendEvent) -> Result<(), QmpError> {
        self.send_event(&arg)
    }
    async fn query_vnc(&self) -> Result<schema::VncInfo, QmpError> {
        Ok(ui::vnc())
    }
    async fn query_spice(&self) -> Result<schema::SpiceInfo, QmpError> {
        Ok(ui::spice())
    }
    async fn screendump(&self, arg: commands::Screendump) -> Result<(), QmpError> {
        self.take_screendump(arg).await
    }
    async fn query_name(&self) -> Result<schema::NameInfo, QmpError> {
        Ok(self.name())
    }
    async fn human_monitor_command(
        &self,
        arg: commands::HumanMonitorCommand,
    ) -> Result<String, QmpError> {
        self.human_command(arg).await
    }
}
