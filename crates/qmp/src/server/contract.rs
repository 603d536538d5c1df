//! A [`Service`] of whatever implements the schema's commands.

use schema::{Commands, QmpError};
use serde_json::{Map, Value};

use super::{CommandInfo, Service};

/// Serves the schema's commands as `commands` implements them.
#[derive(Debug)]
pub struct SchemaService<C> {
    commands: C,
    version: Value,
}

impl<C> SchemaService<C> {
    /// A service that greets with `version`.
    pub fn new(commands: C, version: &schema::VersionInfo) -> SchemaService<C> {
        // A plain struct of numbers and text always has a JSON form.
        let version = serde_json::to_value(version).unwrap_or_default();
        SchemaService { commands, version }
    }

    /// The implementation.
    pub fn commands(&self) -> &C {
        &self.commands
    }
}

impl<C: Commands + 'static> Service for SchemaService<C> {
    fn version(&self) -> Value {
        self.version.clone()
    }

    fn command(&self, name: &str) -> Option<CommandInfo> {
        schema::command(name).map(|command| CommandInfo { allow_oob: command.allow_oob })
    }

    async fn execute(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
        schema::dispatch(&self.commands, name, arguments).await
    }
}
