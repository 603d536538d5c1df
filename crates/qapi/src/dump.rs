//! The IR as JSON, for tools and tests in other languages.
//!
//! The form: `{"modules": […], "definitions": […]}`; each definition has `name`, `kind`, `module`
//! and what its kind has, under the names of the schema language. Conditions are in their
//! object form, with symbols as strings.

use serde_json::{Map, Value, json};

use crate::comment::{DocComment, DocEntry};
use crate::ir::*;

/// The whole schema.
pub fn dump(schema: &Schema) -> Value {
    let modules: Vec<Value> = schema.modules.iter().map(|m| module(schema, m)).collect();
    let definitions: Vec<Value> =
        schema.definitions.values().map(|d| definition(schema, d)).collect();
    json!({ "modules": modules, "definitions": definitions })
}

fn module(schema: &Schema, module: &Module) -> Value {
    let dialect = match module.dialect {
        Dialect::Seed => "seed",
        Dialect::Current => "current",
    };
    let includes: Vec<&str> =
        module.includes.iter().map(|i| schema.modules[*i].name.as_str()).collect();
    json!({
        "name": module.name,
        "file": schema.sources.file(module.file).name,
        "dialect": dialect,
        "includes": includes,
    })
}

fn definition(schema: &Schema, definition: &Definition) -> Value {
    let mut out = Map::new();
    let at = schema.sources.position(definition.span);
    out.insert("name".into(), json!(definition.name));
    out.insert("kind".into(), json!(definition.kind.name()));
    out.insert("module".into(), json!(schema.modules[definition.module].name));
    out.insert("line".into(), json!(at.line));
    if definition.implicit {
        out.insert("implicit".into(), json!(true));
    }
    common(&definition.condition, &definition.features, &mut out);
    match &definition.kind {
        DefinitionKind::Enum(e) => {
            out.insert("members".into(), e.members.iter().map(enum_member).collect());
            if let Some(prefix) = &e.prefix {
                out.insert("prefix".into(), json!(prefix));
            }
        }
        DefinitionKind::Struct(s) => {
            if let Some(base) = &s.base {
                out.insert("base".into(), json!(base.name));
            }
            out.insert("members".into(), members(&s.members));
        }
        DefinitionKind::Union(u) => {
            let base = match &u.base {
                Base::Named(base) => json!(base.name),
                Base::Members(list) => members(list),
            };
            out.insert("base".into(), base);
            out.insert("discriminator".into(), json!(u.discriminator));
            out.insert("branches".into(), u.branches.iter().map(branch).collect());
        }
        DefinitionKind::Alternate(a) => {
            out.insert("branches".into(), a.branches.iter().map(branch).collect());
        }
        DefinitionKind::Command(c) => {
            data(&c.data, &mut out);
            out.insert("returns".into(), c.returns.as_ref().map_or(Value::Null, type_name));
            out.insert("boxed".into(), json!(c.boxed));
            out.insert("gen".into(), json!(c.generated));
            out.insert("success-response".into(), json!(c.success_response));
            out.insert("allow-oob".into(), json!(c.allow_oob));
            out.insert("allow-preconfig".into(), json!(c.allow_preconfig));
            out.insert("coroutine".into(), json!(c.coroutine));
        }
        DefinitionKind::Event(e) => {
            data(&e.data, &mut out);
            out.insert("boxed".into(), json!(e.boxed));
        }
    }
    if let Some(comment) = &definition.doc {
        out.insert("doc".into(), doc(comment));
    }
    Value::Object(out)
}

fn common(if_: &Option<Condition>, features: &[Feature], out: &mut Map<String, Value>) {
    if let Some(c) = if_ {
        out.insert("if".into(), condition(c));
    }
    if !features.is_empty() {
        let features: Vec<Value> = features
            .iter()
            .map(|f| {
                let mut out = Map::new();
                out.insert("name".into(), json!(f.name));
                common(&f.condition, &[], &mut out);
                Value::Object(out)
            })
            .collect();
        out.insert("features".into(), Value::Array(features));
    }
}

fn condition(c: &Condition) -> Value {
    match c {
        Condition::Symbol(symbol) => json!(symbol),
        Condition::All(list) => json!({ "all": list.iter().map(condition).collect::<Vec<_>>() }),
        Condition::Any(list) => json!({ "any": list.iter().map(condition).collect::<Vec<_>>() }),
        Condition::Not(inner) => json!({ "not": condition(inner) }),
    }
}

fn type_name(ty: &TypeRef) -> Value {
    if ty.array { json!([ty.name]) } else { json!(ty.name) }
}

fn members(list: &[Member]) -> Value {
    list.iter()
        .map(|m| {
            let mut out = Map::new();
            out.insert("name".into(), json!(m.name));
            out.insert("type".into(), type_name(&m.ty));
            out.insert("optional".into(), json!(m.optional));
            common(&m.condition, &m.features, &mut out);
            Value::Object(out)
        })
        .collect()
}

fn enum_member(m: &EnumMember) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), json!(m.name));
    common(&m.condition, &m.features, &mut out);
    Value::Object(out)
}

fn branch(b: &Branch) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), json!(b.name));
    out.insert("type".into(), type_name(&b.ty));
    common(&b.condition, &[], &mut out);
    Value::Object(out)
}

fn data(data: &Data, out: &mut Map<String, Value>) {
    let value = match data {
        Data::None => return,
        Data::Members(list) => members(list),
        Data::Type(ty) => type_name(ty),
    };
    out.insert("data".into(), value);
}

fn doc(comment: &DocComment) -> Value {
    let entries = |list: &[DocEntry]| -> Value {
        list.iter().map(|e| json!({ "name": e.name, "text": e.text })).collect()
    };
    let sections: Vec<Value> =
        comment.sections.iter().map(|s| json!({ "tag": s.tag, "text": s.text })).collect();
    json!({
        "text": comment.text,
        "members": entries(&comment.members),
        "features": entries(&comment.features),
        "sections": sections,
    })
}
