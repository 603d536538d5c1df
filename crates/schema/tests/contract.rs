//! The contract as its users see it: introspection, the list of commands, the reference.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use schema::{SchemaInfo, SchemaInfoBranch};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn introspection() -> HashMap<String, Value> {
    let Value::Array(all) = serde_json::from_str(schema::introspection()).unwrap() else {
        panic!("introspection is an array")
    };
    let count = all.len();
    let by_name: HashMap<String, Value> =
        all.into_iter().map(|e| (e["name"].as_str().unwrap().to_owned(), e)).collect();
    assert_eq!(by_name.len(), count, "names are distinct");
    by_name
}

/// It reads as the type that the schema says it is, and every name in it is described.
#[test]
fn introspection_describes_itself() {
    let all: Vec<SchemaInfo> = serde_json::from_str(schema::introspection()).unwrap();
    let again = serde_json::to_value(&all).unwrap();
    let raw: Value = serde_json::from_str(schema::introspection()).unwrap();
    for (typed, raw) in again.as_array().unwrap().iter().zip(raw.as_array().unwrap()) {
        assert_eq!(typed, raw);
    }
    let by_name = introspection();
    for info in all {
        let used: Vec<String> = match info.branch {
            SchemaInfoBranch::Builtin(_) | SchemaInfoBranch::Enum(_) => vec![],
            SchemaInfoBranch::Array(a) => vec![a.element_type],
            SchemaInfoBranch::Object(o) => o.members.into_iter().map(|m| m.r#type).collect(),
            SchemaInfoBranch::Alternate(a) => a.members.into_iter().map(|m| m.r#type).collect(),
            SchemaInfoBranch::Command(c) => vec![c.arg_type, c.ret_type],
            SchemaInfoBranch::Event(e) => vec![e.arg_type],
        };
        for name in used {
            assert!(by_name.contains_key(&name), "{} uses {name}", info.name);
        }
    }
}

#[test]
fn commands_and_events_are_all_in_introspection() {
    let by_name = introspection();
    for command in schema::commands() {
        assert_eq!(by_name[command.name]["meta-type"], "command");
        assert_eq!(schema::command(command.name), Some(command));
    }
    for event in schema::Event::NAMES {
        assert_eq!(by_name[*event]["meta-type"], "event");
    }
    let count = |kind: &str| by_name.values().filter(|e| e["meta-type"] == kind).count();
    assert_eq!(count("command"), schema::commands().len());
    assert_eq!(count("event"), schema::Event::NAMES.len());
    assert_eq!(schema::command("nope"), None);
}

#[test]
fn members_are_named_as_on_the_wire() {
    let cpu =
        schema::CpuInfo { cpu: 1, pc: Some(2), PC: Some(3), thread_id: 4, ..Default::default() };
    assert_eq!(
        serde_json::to_string(&cpu).unwrap(),
        r#"{"CPU":1,"current":false,"halted":false,"pc":2,"PC":3,"thread_id":4}"#
    );
    let uuid = schema::UuidInfo { uuid: "x".into() };
    assert_eq!(serde_json::to_string(&uuid).unwrap(), r#"{"UUID":"x"}"#);
}

/// `docs/src/qmp` is generated.
#[test]
fn the_reference_is_up_to_date() {
    let outcome = qapi::check_file(root().join("schema/rhea.json"));
    assert!(outcome.diagnostics.is_empty(), "{}", outcome.render(false));
    let dir = root().join("docs/src/qmp");
    let pages = qapi::doc::pages(&outcome.schema);
    for page in &pages {
        let committed = std::fs::read_to_string(dir.join(&page.name)).unwrap_or_default();
        assert!(
            committed == page.text,
            "{} differs: run `cargo run -p qapi -- doc schema/rhea.json -o docs/src/qmp`",
            page.name
        );
    }
    for entry in std::fs::read_dir(&dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(pages.iter().any(|p| p.name == name), "{name} has no module");
    }
}

/// Everything a client can see is documented, member by member.
#[test]
fn everything_is_documented() {
    use qapi::ir::*;
    let schema = qapi::check_file(root().join("schema/rhea.json")).schema;
    let names_of = |members: &[Member]| members.iter().map(|m| m.name.clone()).collect();
    for definition in schema.definitions.values() {
        let doc = definition.doc.as_ref().unwrap();
        let names: Vec<String> = match &definition.kind {
            DefinitionKind::Struct(s) => names_of(&s.members),
            DefinitionKind::Union(Union { base: Base::Members(list), .. })
            | DefinitionKind::Command(Command { data: Data::Members(list), .. })
            | DefinitionKind::Event(Event { data: Data::Members(list), .. }) => names_of(list),
            // The values of this one speak for themselves.
            DefinitionKind::Enum(_) if definition.name == "SysEmuTarget" => Vec::new(),
            DefinitionKind::Enum(e) => e.members.iter().map(|m| m.name.clone()).collect(),
            _ => Vec::new(),
        };
        for name in names {
            assert!(doc.members.iter().any(|e| e.name == name), "{}.{name}", definition.name);
        }
        assert!(!doc.text.is_empty(), "{}", definition.name);
    }
}
