//! Commands about migration and the machine's name (`schema/migration.json`, `schema/misc.json`).

use schema::{MigrationInfo, NameInfo};

use crate::Monitor;

/// No migration has been started: this build has no command that could.
pub(crate) fn migration() -> MigrationInfo {
    MigrationInfo { status: None, ram: None, disk: None }
}

impl Monitor {
    pub(crate) fn name(&self) -> NameInfo {
        NameInfo { name: self.machine.name().map(str::to_owned) }
    }
}
