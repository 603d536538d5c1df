//! What the server can do, in its own words: an index of `query-qmp-schema`.
//!
//! A server without that command is taken to have the commands that this program was built with.

use std::collections::HashMap;

use qmp::client::ClientError;
use serde_json::Value;

/// The schema of a server.
#[derive(Debug)]
pub(crate) struct Contract {
    entities: HashMap<String, Value>,
    commands: Vec<String>,
    events: Vec<String>,
}

/// An argument of a command, or a member of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    /// The name of its type; anonymous ones have numbers.
    pub(crate) type_name: String,
    pub(crate) optional: bool,
}

/// A type, as far as reading an argument needs it.
#[derive(Debug, PartialEq)]
pub(crate) enum Kind<'a> {
    String,
    Integer,
    Number,
    Boolean,
    Enum(Vec<&'a str>),
    Array(&'a str),
    Object,
    /// An alternate, `any`, or a type that isn't known.
    Any,
}

impl Contract {
    /// Asks the server.
    pub(crate) fn of_server(
        execute: impl FnOnce(&str) -> Result<Value, ClientError>,
    ) -> Result<Contract, ClientError> {
        match execute("query-qmp-schema") {
            Ok(introspection) => Ok(Contract::new(introspection)),
            Err(ClientError::Refused { .. }) => Ok(Contract::built_in()),
            Err(error) => Err(error),
        }
    }

    /// The schema that this program was built with.
    pub(crate) fn built_in() -> Contract {
        Contract::new(serde_json::from_str(schema::introspection()).unwrap_or_default())
    }

    /// Indexes what `query-qmp-schema` returned.
    pub(crate) fn new(introspection: Value) -> Contract {
        let mut contract =
            Contract { entities: HashMap::new(), commands: Vec::new(), events: Vec::new() };
        let Value::Array(entities) = introspection else { return contract };
        for entity in entities {
            let Some(name) = entity["name"].as_str().map(str::to_owned) else { continue };
            match entity["meta-type"].as_str() {
                Some("command") => contract.commands.push(name.clone()),
                Some("event") => contract.events.push(name.clone()),
                _ => {}
            }
            contract.entities.insert(name, entity);
        }
        contract.commands.sort_unstable();
        contract.events.sort_unstable();
        contract
    }

    /// The names of all commands, sorted.
    pub(crate) fn commands(&self) -> impl Iterator<Item = &str> {
        self.commands.iter().map(String::as_str)
    }

    /// The names of all events, sorted.
    pub(crate) fn events(&self) -> impl Iterator<Item = &str> {
        self.events.iter().map(String::as_str)
    }

    fn command(&self, name: &str) -> Option<&Value> {
        self.entities.get(name).filter(|entity| entity["meta-type"] == "command")
    }

    /// The type of a command's arguments as a whole.
    pub(crate) fn argument_type(&self, command: &str) -> Option<&str> {
        self.command(command)?["arg-type"].as_str()
    }

    /// The members of an object type: its own, then those of all its variants.
    pub(crate) fn members(&self, type_name: &str) -> Vec<Member> {
        let mut members = Vec::new();
        self.collect_members(type_name, &mut members, 0);
        members
    }

    fn collect_members(&self, type_name: &str, members: &mut Vec<Member>, depth: usize) {
        // A schema's unions nest a few levels; a hostile server's might nest without end.
        let Some(entity) = self.entities.get(type_name).filter(|_| depth < 8) else { return };
        for member in entity["members"].as_array().into_iter().flatten() {
            let (Some(name), Some(type_name)) = (member["name"].as_str(), member["type"].as_str())
            else {
                continue;
            };
            if members.iter().all(|known| known.name != name) {
                members.push(Member {
                    name: name.to_owned(),
                    type_name: type_name.to_owned(),
                    optional: member.get("default").is_some(),
                });
            }
        }
        for variant in entity["variants"].as_array().into_iter().flatten() {
            let own = members.len();
            if let Some(name) = variant["type"].as_str() {
                self.collect_members(name, members, depth + 1);
            }
            // Whether they are needed depends on the variant.
            members[own..].iter_mut().for_each(|member| member.optional = true);
        }
    }

    /// What kind of type it is.
    pub(crate) fn kind<'a>(&'a self, type_name: &str) -> Kind<'a> {
        let Some(entity) = self.entities.get(type_name) else { return Kind::Any };
        match (entity["meta-type"].as_str(), entity["json-type"].as_str()) {
            (Some("builtin"), Some("string")) => Kind::String,
            (Some("builtin"), Some("int")) => Kind::Integer,
            (Some("builtin"), Some("number")) => Kind::Number,
            (Some("builtin"), Some("boolean")) => Kind::Boolean,
            (Some("enum"), _) => Kind::Enum(
                entity["values"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .collect(),
            ),
            (Some("array"), _) => entity["element-type"].as_str().map_or(Kind::Any, Kind::Array),
            (Some("object"), _) => Kind::Object,
            _ => Kind::Any,
        }
    }

    /// The type in words.
    pub(crate) fn describe(&self, type_name: &str) -> String {
        match self.kind(type_name) {
            Kind::String => "text".to_owned(),
            Kind::Integer => "integer".to_owned(),
            Kind::Number => "number".to_owned(),
            Kind::Boolean => "on|off".to_owned(),
            Kind::Enum(values) => values.join("|"),
            Kind::Array(element) => format!("list of {}", self.describe_element(element)),
            Kind::Object => {
                let members = self.members(type_name);
                let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
                format!("object {{{}}}", names.join(", "))
            }
            Kind::Any => "any".to_owned(),
        }
    }

    /// As [`Contract::describe`], but not into further lists, which may contain themselves.
    fn describe_element(&self, type_name: &str) -> String {
        match self.kind(type_name) {
            Kind::Array(_) => "lists".to_owned(),
            _ => self.describe(type_name),
        }
    }

    /// The usage of a command and its arguments, for people.
    pub(crate) fn help(&self, command: &str) -> Option<String> {
        let entity = self.command(command)?;
        let members =
            entity["arg-type"].as_str().map(|name| self.members(name)).unwrap_or_default();
        let mut text = command.to_owned();
        for member in members.iter().filter(|member| !member.optional) {
            text.push_str(&format!(" {}=...", member.name));
        }
        if members.iter().any(|member| member.optional) {
            text.push_str(" [NAME=VALUE ...]");
        }
        text.push('\n');
        let width = members.iter().map(|member| member.name.len()).max().unwrap_or(0);
        for member in &members {
            let optional = if member.optional { " (optional)" } else { "" };
            let kind = self.describe(&member.type_name);
            text.push_str(&format!("  {:width$}  {kind}{optional}\n", member.name));
        }
        let returns = entity["ret-type"].as_str().unwrap_or_default();
        if matches!(self.kind(returns), Kind::Object) && self.members(returns).is_empty() {
            return Some(text);
        }
        text.push_str(&format!("  returns {}\n", self.describe(returns)));
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_schema_knows_its_commands() {
        let contract = Contract::built_in();
        assert!(contract.commands().any(|name| name == "query-block"));
        assert!(contract.events().any(|name| name == "STOP"));
        assert_eq!(contract.help("no-such-command"), None);
        let help = contract.help("balloon").unwrap();
        assert!(help.starts_with("balloon value=...\n  value  integer\n"), "{help}");
    }
}
