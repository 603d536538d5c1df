//! What `query-qmp-schema` returns: the wire ABI of a schema, with type names masked by numbers.
//!
//! Commands and events come first, in the order of the schema, then the types they use in the
//! order of their first use. All integer types are shown as `int`; array types are named by their
//! element, `[12]`; bases are dissolved; a union lists a variant for each value of its
//! discriminator, the empty object for those without members.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::ir::*;

/// The introspection of `schema` as a JSON array: the definitions and members without a condition
/// and those whose condition `holds`.
pub fn introspect(schema: &Schema, holds: &dyn Fn(&Condition) -> bool) -> Value {
    let mut walk =
        Introspection { schema, holds, ids: HashMap::new(), masked: 0, used: Vec::new() };
    let mut entities = Vec::new();
    for definition in schema.definitions.values() {
        if applies(holds, &definition.condition) {
            entities.extend(walk.entity(definition));
        }
    }
    let mut next = 0;
    while let Some(used) = walk.used.get(next).cloned() {
        next += 1;
        let entity = walk.used_type(&used);
        entities.push(entity);
    }
    Value::Array(entities)
}

/// A type that clients see.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Used {
    Builtin(Builtin),
    Defined(String),
    /// The object without members.
    Empty,
    /// The arguments or data given in place by this command or event.
    Data(String),
    Array(Box<Used>),
}

struct Introspection<'a> {
    schema: &'a Schema,
    holds: &'a dyn Fn(&Condition) -> bool,
    /// The names given out so far.
    ids: HashMap<Used, String>,
    /// How many of them are numbers.
    masked: usize,
    /// What remains to be described, in the order of first use.
    used: Vec<Used>,
}

impl Introspection<'_> {
    /// The name of a type in the output; its first use schedules its description.
    fn name(&mut self, used: Used) -> String {
        if let Some(name) = self.ids.get(&used) {
            return name.clone();
        }
        let name = match &used {
            Used::Builtin(builtin) => builtin.name().to_owned(),
            Used::Array(element) => {
                self.used.push(used.clone());
                let name = format!("[{}]", self.name((**element).clone()));
                self.ids.insert(used, name.clone());
                return name;
            }
            _ => {
                self.masked += 1;
                (self.masked - 1).to_string()
            }
        };
        self.used.push(used.clone());
        self.ids.insert(used, name.clone());
        name
    }

    fn use_ref(&mut self, ty: &TypeRef) -> String {
        let element = match Builtin::from_name(&ty.name) {
            Some(builtin) if builtin.is_integer() => Used::Builtin(Builtin::Int),
            Some(builtin) => Used::Builtin(builtin),
            None => Used::Defined(ty.name.clone()),
        };
        self.name(if ty.array { Used::Array(Box::new(element)) } else { element })
    }

    fn use_data(&mut self, owner: &str, data: &Data) -> String {
        match data {
            Data::None => self.name(Used::Empty),
            Data::Members(members) if members.is_empty() => self.name(Used::Empty),
            Data::Members(_) => self.name(Used::Data(owner.to_owned())),
            Data::Type(ty) => self.use_ref(ty),
        }
    }

    fn features(&self, features: &[Feature], into: &mut Map<String, Value>) {
        let holds = self.holds;
        let names: Vec<&str> = features
            .iter()
            .filter(|f| applies(holds, &f.condition))
            .map(|f| f.name.as_str())
            .collect();
        if !names.is_empty() {
            into.insert("features".into(), json!(names));
        }
    }

    fn entity(&mut self, definition: &Definition) -> Option<Value> {
        let mut entity = Map::new();
        entity.insert("name".into(), json!(definition.name));
        match &definition.kind {
            DefinitionKind::Command(command) => {
                entity.insert("meta-type".into(), json!("command"));
                let arg = self.use_data(&definition.name, &command.data);
                entity.insert("arg-type".into(), json!(arg));
                let ret = match &command.returns {
                    Some(ty) => self.use_ref(ty),
                    None => self.name(Used::Empty),
                };
                entity.insert("ret-type".into(), json!(ret));
                if command.allow_oob {
                    entity.insert("allow-oob".into(), json!(true));
                }
            }
            DefinitionKind::Event(event) => {
                entity.insert("meta-type".into(), json!("event"));
                let arg = self.use_data(&definition.name, &event.data);
                entity.insert("arg-type".into(), json!(arg));
            }
            _ => return None,
        }
        self.features(&definition.features, &mut entity);
        Some(Value::Object(entity))
    }

    fn used_type(&mut self, used: &Used) -> Value {
        let mut entity = Map::new();
        let name = self.ids.get(used).cloned().unwrap_or_default();
        entity.insert("name".into(), json!(name));
        let schema = self.schema;
        match used {
            Used::Builtin(builtin) => {
                entity.insert("meta-type".into(), json!("builtin"));
                entity.insert("json-type".into(), json!(json_type(*builtin)));
            }
            Used::Array(element) => {
                entity.insert("meta-type".into(), json!("array"));
                let element = self.name((**element).clone());
                entity.insert("element-type".into(), json!(element));
            }
            Used::Empty => self.object(&[], &mut entity),
            Used::Data(owner) => {
                let members: Vec<&Member> = match schema.get(owner).map(|d| &d.kind) {
                    Some(
                        DefinitionKind::Command(Command { data: Data::Members(members), .. })
                        | DefinitionKind::Event(Event { data: Data::Members(members), .. }),
                    ) => members.iter().collect(),
                    _ => Vec::new(),
                };
                self.object(&members, &mut entity);
            }
            Used::Defined(name) => {
                if let Some(definition) = schema.get(name) {
                    self.defined_type(definition, &mut entity);
                    self.features(&definition.features, &mut entity);
                }
            }
        }
        Value::Object(entity)
    }

    fn defined_type(&mut self, definition: &Definition, entity: &mut Map<String, Value>) {
        let (schema, holds) = (self.schema, self.holds);
        match &definition.kind {
            DefinitionKind::Enum(e) => {
                entity.insert("meta-type".into(), json!("enum"));
                let mut members = Vec::new();
                let mut values = Vec::new();
                for member in e.members.iter().filter(|m| applies(holds, &m.condition)) {
                    let mut entry = Map::new();
                    entry.insert("name".into(), json!(member.name));
                    self.features(&member.features, &mut entry);
                    members.push(Value::Object(entry));
                    values.push(json!(member.name));
                }
                entity.insert("members".into(), Value::Array(members));
                entity.insert("values".into(), Value::Array(values));
            }
            DefinitionKind::Struct(_) => self.object(&schema.all_members(&definition.name), entity),
            DefinitionKind::Union(u) => {
                let base = schema.base_members(u);
                self.object(&base, entity);
                entity.insert("tag".into(), json!(u.discriminator));
                let variants = self.variants(u, &base);
                entity.insert("variants".into(), Value::Array(variants));
            }
            DefinitionKind::Alternate(a) => {
                entity.insert("meta-type".into(), json!("alternate"));
                let mut members = Vec::new();
                for branch in a.branches.iter().filter(|b| applies(holds, &b.condition)) {
                    members.push(json!({ "type": self.use_ref(&branch.ty) }));
                }
                entity.insert("members".into(), Value::Array(members));
            }
            DefinitionKind::Command(_) | DefinitionKind::Event(_) => {}
        }
    }

    fn object(&mut self, members: &[&Member], entity: &mut Map<String, Value>) {
        let holds = self.holds;
        entity.insert("meta-type".into(), json!("object"));
        let mut entries = Vec::new();
        for member in members.iter().filter(|m| applies(holds, &m.condition)) {
            let mut entry = Map::new();
            entry.insert("name".into(), json!(member.name));
            entry.insert("type".into(), json!(self.use_ref(&member.ty)));
            if member.optional {
                entry.insert("default".into(), Value::Null);
            }
            self.features(&member.features, &mut entry);
            entries.push(Value::Object(entry));
        }
        entity.insert("members".into(), Value::Array(entries));
    }

    /// The branches in the order of the schema, then the values without a branch.
    fn variants(&mut self, union: &Union, base: &[&Member]) -> Vec<Value> {
        let holds = self.holds;
        let mut variants = Vec::new();
        for branch in union.branches.iter().filter(|b| applies(holds, &b.condition)) {
            variants.push(json!({ "case": branch.name, "type": self.use_ref(&branch.ty) }));
        }
        let tag = base.iter().find(|m| m.name == union.discriminator);
        let Some(values) = tag.and_then(|t| self.schema.enumeration(&t.ty.name)) else {
            return variants;
        };
        for value in values.members.iter().filter(|m| applies(holds, &m.condition)) {
            if !union.branches.iter().any(|b| b.name == value.name) {
                variants.push(json!({ "case": value.name, "type": self.name(Used::Empty) }));
            }
        }
        variants
    }
}

fn json_type(builtin: Builtin) -> &'static str {
    match builtin {
        Builtin::Str | Builtin::QType => "string",
        Builtin::Number => "number",
        Builtin::Bool => "boolean",
        Builtin::Null => "null",
        Builtin::Any => "value",
        _ => "int",
    }
}

fn applies(holds: &dyn Fn(&Condition) -> bool, condition: &Option<Condition>) -> bool {
    condition.as_ref().is_none_or(holds)
}
