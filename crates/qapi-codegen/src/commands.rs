//! Commands and events: argument structs, the server's trait and its dispatcher, the event enum.

use std::fmt::Write as _;

use qapi::ir::*;

use crate::names::{camel, snake, type_name};
use crate::types::{input_struct, rust_type, structure};
use crate::{Writer, doc};

pub(crate) fn all(writer: &Writer<'_>) -> String {
    let commands: Vec<_> =
        writer.schema.commands().filter(|(d, _)| writer.applies(&d.condition)).collect();
    let events: Vec<_> =
        writer.schema.events().filter(|(d, _)| writer.applies(&d.condition)).collect();
    let mut out = String::new();
    for (definition, event) in &events {
        event_data(writer, &mut out, definition, event);
    }
    event_enum(writer, &mut out, &events);
    table(&mut out, &commands);
    out.push_str(
        "/// The arguments of each command, by its name: what a client sends and a handler gets.\n",
    );
    out.push_str("pub mod commands {\nuse super::QmpError;\n\n");
    let inside = writer.in_module();
    for (definition, command) in &commands {
        arguments(&inside, &mut out, definition, command);
    }
    out.push_str("}\n\n");
    let served: Vec<_> = commands
        .iter()
        .filter(|(d, _)| !writer.options.session_commands.contains(&d.name.as_str()))
        .collect();
    server(writer, &mut out, &served);
    dispatch(&mut out, &served);
    out
}

fn first_text(definition: &Definition) -> &str {
    definition.doc.as_ref().map_or("", |d| d.text.as_str())
}

fn event_data_name(definition: &Definition) -> String {
    format!("{}EventData", camel(&definition.name))
}

fn event_data(writer: &Writer<'_>, out: &mut String, definition: &Definition, event: &Event) {
    if let Data::Members(members) = &event.data {
        let members: Vec<&Member> = members.iter().collect();
        let _ = writeln!(out, "/// The data of the event `{}`.", definition.name);
        structure(writer, out, &event_data_name(definition), &members);
    }
}

fn event_enum(writer: &Writer<'_>, out: &mut String, events: &[(&Definition, &Event)]) {
    let mut variants = String::new();
    let mut names = String::new();
    let mut data = String::new();
    let mut parse = String::new();
    for (definition, event) in events {
        let variant = camel(&definition.name);
        doc(&mut variants, "    ", first_text(definition), &format!("`{}`", definition.name));
        let ty = match &event.data {
            Data::None => None,
            Data::Members(_) => Some(event_data_name(definition)),
            Data::Type(ty) => Some(rust_type(writer, ty)),
        };
        match ty {
            Some(ty) => {
                let _ = writeln!(variants, "    {variant}({ty}),");
                let _ =
                    writeln!(names, "            Event::{variant}(_) => {:?},", definition.name);
                let _ = writeln!(
                    data,
                    "            Event::{variant}(data) => serde_json::to_value(data).ok(),"
                );
                let _ = writeln!(
                    parse,
                    "            {:?} => Event::{variant}(serde_json::from_value(data)?),",
                    definition.name
                );
            }
            None => {
                let _ = writeln!(variants, "    {variant},");
                let _ = writeln!(names, "            Event::{variant} => {:?},", definition.name);
                let _ = writeln!(data, "            Event::{variant} => None,");
                let _ = writeln!(parse, "            {:?} => Event::{variant},", definition.name);
            }
        }
    }
    let all: Vec<_> = events.iter().map(|(d, _)| format!("{:?}", d.name)).collect();
    let _ = write!(
        out,
        "/// An event with its data.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {{
{variants}}}

impl Event {{
    /// The names of all events, in the order of the schema.
    pub const NAMES: &'static [&'static str] = &[{}];

    /// The name on the wire.
    pub const fn name(&self) -> &'static str {{
        match self {{
{names}        }}
    }}

    /// The `data` member on the wire; none for an event without data.
    pub fn data(&self) -> Option<serde_json::Value> {{
        match self {{
{data}        }}
    }}

    /// The event of this name with this `data` (null if there was none). None if there is no
    /// such event.
    ///
    /// # Errors
    /// The data are not what the schema says.
    pub fn parse(name: &str, data: serde_json::Value) -> Result<Option<Self>, serde_json::Error> {{
        Ok(Some(match name {{
{parse}            _ => return Ok(None),
        }}))
    }}
}}

",
        all.join(", ")
    );
}

fn table(out: &mut String, commands: &[(&Definition, &Command)]) {
    out.push_str("static COMMANDS: &[CommandSpec] = &[\n");
    for (definition, command) in commands {
        let _ = writeln!(
            out,
            "    CommandSpec {{ name: {:?}, allow_oob: {}, allow_preconfig: {}, success_response: {} }},",
            definition.name, command.allow_oob, command.allow_preconfig, command.success_response
        );
    }
    out.push_str("];\n\n");
}

/// `'gen': false` hands arguments and results through as they are; where there are no arguments,
/// that there are none is still checked.
fn is_raw(command: &Command) -> bool {
    !command.generated && !matches!(command.data, Data::None)
}

fn handler_type(writer: &Writer<'_>, command: &Command) -> String {
    if command.generated { return_type(writer, command) } else { "serde_json::Value".to_owned() }
}

fn return_type(writer: &Writer<'_>, command: &Command) -> String {
    match &command.returns {
        Some(ty) => rust_type(writer, ty),
        None => "()".to_owned(),
    }
}

/// The argument struct of a command, with its client side.
fn arguments(writer: &Writer<'_>, out: &mut String, definition: &Definition, command: &Command) {
    let name = type_name(&definition.name);
    let title = format!("Arguments of `{}`.", definition.name);
    doc(out, "", first_text(definition), &title);
    match &command.data {
        Data::None => {
            structure(writer, out, &name, &[]);
            input_struct(writer, out, &name, &[]);
        }
        Data::Members(members) => {
            let members: Vec<&Member> = members.iter().collect();
            structure(writer, out, &name, &members);
            input_struct(writer, out, &name, &members);
        }
        Data::Type(ty) => {
            let ty = rust_type(writer, ty);
            let _ = writeln!(
                out,
                "#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]\n#[serde(transparent)]\npub struct {name}(pub {ty});\n"
            );
            let _ = writeln!(
                out,
                "impl crate::input::FromMembers for {name} {{\n    fn from_members(members: &mut crate::input::Members<'_>) -> Result<Self, QmpError> {{\n        Ok({name}(crate::input::FromMembers::from_members(members)?))\n    }}\n}}\n"
            );
        }
    }
    let ok = match return_type(writer, command).as_str() {
        "()" => "crate::client::Empty".to_owned(),
        other => other.to_owned(),
    };
    let _ = writeln!(
        out,
        "impl crate::client::Command for {name} {{\n    const NAME: &'static str = {:?};\n    type Ok = {ok};\n}}\n",
        definition.name
    );
}

fn server(writer: &Writer<'_>, out: &mut String, commands: &[&(&Definition, &Command)]) {
    out.push_str(
        "/// The server's side: one method a command. There are no default bodies, so a command in\n\
         /// the schema without a handler does not compile. Handlers run on one thread; their\n\
         /// futures need not be `Send`.\n\
         #[allow(async_fn_in_trait)]\npub trait Commands {\n",
    );
    for (definition, command) in commands {
        doc(out, "    ", first_text(definition), &format!("`{}`", definition.name));
        let method = snake(&definition.name);
        if is_raw(command) {
            let _ = writeln!(
                out,
                "    async fn {method}(&self, arguments: serde_json::Map<String, serde_json::Value>) -> Result<serde_json::Value, QmpError>;"
            );
            continue;
        }
        let arg = match command.data {
            Data::None => String::new(),
            _ => format!(", arg: commands::{}", type_name(&definition.name)),
        };
        let ret = handler_type(writer, command);
        let _ = writeln!(out, "    async fn {method}(&self{arg}) -> Result<{ret}, QmpError>;");
    }
    out.push_str("}\n\n");
}

fn dispatch(out: &mut String, commands: &[&(&Definition, &Command)]) {
    out.push_str(
        "/// Checks `arguments` for the command `name`, executes it by `c` and gives its return\n\
         /// value as JSON, the empty object for a command that returns nothing.\n///\n\
         /// # Errors\n/// Those of the arguments, in QEMU's words; those of the handler; CommandNotFound for an\n\
         /// unknown command and for those that the session answers itself.\n\
         pub async fn dispatch<C: Commands>(\n    c: &C,\n    name: &str,\n    arguments: serde_json::Map<String, serde_json::Value>,\n) -> Result<serde_json::Value, QmpError> {\n    match name {\n",
    );
    for (definition, command) in commands {
        let method = snake(&definition.name);
        let wire = &definition.name;
        if is_raw(command) {
            let _ = writeln!(out, "        {wire:?} => c.{method}(arguments).await,");
            continue;
        }
        let _ = writeln!(out, "        {wire:?} => {{");
        let arguments = format!(
            "crate::input::arguments::<commands::{}>(arguments)?",
            type_name(&definition.name)
        );
        let call = match command.data {
            Data::None => {
                let _ = writeln!(out, "            {arguments};");
                format!("c.{method}().await?")
            }
            _ => {
                let _ = writeln!(out, "            let arg = {arguments};");
                format!("c.{method}(arg).await?")
            }
        };
        if !command.generated {
            let call = call.trim_end_matches('?');
            let _ = writeln!(out, "            {call}\n        }}");
        } else if command.returns.is_some() {
            let _ = writeln!(out, "            crate::input::to_value({call})\n        }}");
        } else {
            let _ = writeln!(
                out,
                "            {call};\n            Ok(serde_json::Value::Object(serde_json::Map::new()))\n        }}"
            );
        }
    }
    out.push_str("        _ => Err(QmpError::command_not_found(name)),\n    }\n}\n");
}
