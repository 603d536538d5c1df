//! Commands about the monitor itself (`schema/control.json`, `schema/introspect.json`).

use schema::{CommandInfo, Event, EventInfo, QmpError, VersionInfo, VersionTriple};

/// The QEMU release whose QMP this is compatible with, and our own version in `package`.
pub fn version() -> VersionInfo {
    VersionInfo {
        qemu: VersionTriple { major: 7, minor: 2, micro: 0 },
        package: format!("Rhea {}", env!("CARGO_PKG_VERSION")),
    }
}

pub(crate) fn commands() -> Vec<CommandInfo> {
    schema::commands().iter().map(|c| CommandInfo { name: c.name.to_owned() }).collect()
}

pub(crate) fn events() -> Vec<EventInfo> {
    Event::NAMES.iter().map(|&name| EventInfo { name: name.to_owned() }).collect()
}

pub(crate) fn introspection() -> Result<serde_json::Value, QmpError> {
    serde_json::from_str(schema::introspection())
        .map_err(|e| QmpError::generic(format!("The built-in schema does not parse: {e}")))
}
