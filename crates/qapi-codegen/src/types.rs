//! Types: the Rust form of each, serde attributes, and how input values of them are read.

use std::fmt::Write as _;

use qapi::ir::*;

use crate::names::{camel, fields, type_name};
use crate::{Writer, doc};

/// The Rust type for a use of a schema type.
pub(crate) fn rust_type(writer: &Writer<'_>, ty: &TypeRef) -> String {
    let element = match Builtin::from_name(&ty.name) {
        Some(builtin) => builtin_type(builtin).to_owned(),
        None => format!("{}{}", writer.types, type_name(&ty.name)),
    };
    if ty.array {
        format!("Vec<{element}>")
    } else if writer.boxed.contains(&ty.name) {
        format!("Box<{element}>")
    } else {
        element
    }
}

fn builtin_type(builtin: Builtin) -> &'static str {
    match builtin {
        Builtin::Str | Builtin::QType => "String",
        Builtin::Number => "f64",
        Builtin::Int | Builtin::Int64 => "i64",
        Builtin::Int8 => "i8",
        Builtin::Int16 => "i16",
        Builtin::Int32 => "i32",
        Builtin::Uint8 => "u8",
        Builtin::Uint16 => "u16",
        Builtin::Uint32 => "u32",
        Builtin::Uint64 | Builtin::Size => "u64",
        Builtin::Bool => "bool",
        Builtin::Null => "()",
        Builtin::Any => "serde_json::Value",
    }
}

/// The types that a value of `name` has within itself, not behind an array.
pub(crate) fn contained<'a>(schema: &'a Schema, name: &str) -> Vec<&'a str> {
    let plain = |m: &'a Member| (!m.ty.array).then_some(m.ty.name.as_str());
    match schema.get(name).map(|d| &d.kind) {
        Some(DefinitionKind::Struct(_)) => {
            schema.all_members(name).into_iter().filter_map(plain).collect()
        }
        Some(DefinitionKind::Union(u)) => schema
            .base_members(u)
            .into_iter()
            .filter_map(plain)
            .chain(u.branches.iter().map(|b| b.ty.name.as_str()))
            .collect(),
        Some(DefinitionKind::Alternate(a)) => {
            a.branches.iter().filter(|b| !b.ty.array).map(|b| b.ty.name.as_str()).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether the type has an obvious default: no mandatory enumerations or unions within.
fn has_default(schema: &Schema, ty: &TypeRef, depth: usize) -> bool {
    if ty.array || Builtin::from_name(&ty.name).is_some() {
        return true;
    }
    match schema.get(&ty.name).map(|d| &d.kind) {
        Some(DefinitionKind::Struct(_)) if depth < 16 => schema
            .all_members(&ty.name)
            .iter()
            .all(|m| m.optional || has_default(schema, &m.ty, depth + 1)),
        _ => false,
    }
}

pub(crate) fn definition(writer: &Writer<'_>, definition: &Definition) -> String {
    let name = type_name(&definition.name);
    let text = definition.doc.as_ref().map_or("", |d| d.text.as_str());
    let mut out = String::new();
    match &definition.kind {
        DefinitionKind::Enum(e) => {
            doc(&mut out, "", text, &format!("Values of `{}`.", definition.name));
            enumeration(writer, &mut out, &name, definition, e);
        }
        DefinitionKind::Struct(_) => {
            doc(&mut out, "", text, &format!("Members of `{}`.", definition.name));
            let members = writer.schema.all_members(&definition.name);
            structure(writer, &mut out, &name, &members);
            input_struct(writer, &mut out, &name, &members);
        }
        DefinitionKind::Union(u) => union(writer, &mut out, &name, definition, u),
        DefinitionKind::Alternate(a) => {
            doc(&mut out, "", text, &format!("The choices of `{}`.", definition.name));
            alternate(writer, &mut out, &name, definition, a);
        }
        DefinitionKind::Command(_) | DefinitionKind::Event(_) => {}
    }
    out
}

fn enumeration(
    writer: &Writer<'_>,
    out: &mut String,
    name: &str,
    definition: &Definition,
    e: &Enum,
) {
    let members: Vec<_> = e.members.iter().filter(|m| writer.applies(&m.condition)).collect();
    out.push_str("#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]\n");
    let _ = writeln!(out, "pub enum {name} {{");
    for member in &members {
        let text = entry_text(definition, &member.name);
        doc(out, "    ", text, &format!("`{}`", member.name));
        let _ = writeln!(out, "    #[serde(rename = {:?})]", member.name);
        let _ = writeln!(out, "    {},", camel(&member.name));
    }
    out.push_str("}\n\n");
    let _ = writeln!(out, "impl {name} {{");
    let _ = writeln!(out, "    /// All values, in the order of the schema.");
    let variants: Vec<_> = members.iter().map(|m| format!("{name}::{}", camel(&m.name))).collect();
    let _ = writeln!(out, "    pub const ALL: &'static [{name}] = &[{}];\n", variants.join(", "));
    let _ = writeln!(out, "    /// The name on the wire.");
    let _ = writeln!(out, "    pub const fn as_str(self) -> &'static str {{");
    if members.is_empty() {
        out.push_str("        match self {}\n");
    } else {
        out.push_str("        match self {\n");
        for member in &members {
            let _ =
                writeln!(out, "            {name}::{} => {:?},", camel(&member.name), member.name);
        }
        out.push_str("        }\n");
    }
    out.push_str("    }\n}\n\n");
    let _ = writeln!(
        out,
        "impl std::fmt::Display for {name} {{\n    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{\n        f.write_str(self.as_str())\n    }}\n}}\n"
    );
    let _ = writeln!(
        out,
        "impl crate::input::Input for {name} {{\n    fn input(value: serde_json::Value, at: &crate::input::Path<'_>) -> Result<Self, QmpError> {{\n        crate::input::enumeration(value, at, |name| Self::ALL.iter().copied().find(|v| v.as_str() == name))\n    }}\n}}\n"
    );
}

fn entry_text<'d>(definition: &'d Definition, member: &str) -> &'d str {
    let entries = definition.doc.iter().flat_map(|d| &d.members);
    entries.filter(|e| e.name == member).map(|e| e.text.as_str()).next().unwrap_or("")
}

/// The text for a member, which may be documented with the base that it comes from.
fn member_text<'d>(writer: &'d Writer<'_>, member: &Member) -> &'d str {
    let Some(owner) = writer.schema.definitions.values().find(|d| {
        d.span.file == member.span.file
            && match &d.kind {
                DefinitionKind::Struct(s) => s.members.iter().any(|m| m.span == member.span),
                DefinitionKind::Union(Union { base: Base::Members(members), .. }) => {
                    members.iter().any(|m| m.span == member.span)
                }
                DefinitionKind::Command(Command { data: Data::Members(members), .. })
                | DefinitionKind::Event(Event { data: Data::Members(members), .. }) => {
                    members.iter().any(|m| m.span == member.span)
                }
                _ => false,
            }
    }) else {
        return "";
    };
    entry_text(owner, &member.name)
}

/// Writes a struct with the members; `text` before it is the caller's.
pub(crate) fn structure(writer: &Writer<'_>, out: &mut String, name: &str, members: &[&Member]) {
    structure_with(writer, out, name, members, None);
}

fn structure_with(
    writer: &Writer<'_>,
    out: &mut String,
    name: &str,
    members: &[&Member],
    branch: Option<&str>,
) {
    let members: Vec<_> = members.iter().filter(|m| writer.applies(&m.condition)).collect();
    let defaults = branch.is_none()
        && members.iter().all(|m| m.optional || has_default(writer.schema, &m.ty, 0));
    let default = if defaults { "Default, " } else { "" };
    let _ = writeln!(
        out,
        "#[derive(Clone, Debug, PartialEq, {default}serde::Serialize, serde::Deserialize)]"
    );
    let _ = writeln!(out, "pub struct {name} {{");
    let fields = fields(members.iter().map(|m| m.name.as_str()));
    for (member, field) in members.iter().zip(&fields) {
        let text = member_text(writer, member);
        doc(out, "    ", text, &format!("`{}`", member.name));
        let bare = field.trim_start_matches("r#");
        if bare != member.name {
            let _ = writeln!(out, "    #[serde(rename = {:?})]", member.name);
        }
        let ty = rust_type(writer, &member.ty);
        if member.optional {
            out.push_str("    #[serde(default, skip_serializing_if = \"Option::is_none\")]\n");
            if admits_null(writer.schema, &member.ty) {
                out.push_str("    #[serde(deserialize_with = \"crate::client::present\")]\n");
            }
            let _ = writeln!(out, "    pub {field}: Option<{ty}>,");
        } else {
            let _ = writeln!(out, "    pub {field}: {ty},");
        }
    }
    if let Some(branch) = branch {
        out.push_str(
            "    /// The members that depend on the discriminator.\n    #[serde(flatten)]\n",
        );
        let _ = writeln!(out, "    pub branch: {branch},");
    }
    out.push_str("}\n\n");
}

/// Whether null is a value of the type; an optional member that is null is then there.
fn admits_null(schema: &Schema, ty: &TypeRef) -> bool {
    if ty.array {
        return false;
    }
    match Builtin::from_name(&ty.name) {
        Some(builtin) => matches!(builtin, Builtin::Null | Builtin::Any),
        None => match schema.get(&ty.name).map(|d| &d.kind) {
            Some(DefinitionKind::Alternate(a)) => {
                a.branches.iter().any(|b| !b.ty.array && b.ty.name == Builtin::Null.name())
            }
            _ => false,
        },
    }
}

/// How an object of these members is read from input, with QEMU's errors.
pub(crate) fn input_struct(writer: &Writer<'_>, out: &mut String, name: &str, members: &[&Member]) {
    let members: Vec<_> = members.iter().filter(|m| writer.applies(&m.condition)).collect();
    let _ = writeln!(out, "impl crate::input::FromMembers for {name} {{");
    let unused = if members.is_empty() { "_" } else { "" };
    let _ = writeln!(
        out,
        "    fn from_members({unused}members: &mut crate::input::Members<'_>) -> Result<Self, QmpError> {{"
    );
    let _ = writeln!(out, "        Ok({name} {{");
    write_member_reads(out, &members);
    out.push_str("        })\n    }\n}\n\n");
    input_object(out, name);
}

/// An object type is read by its members.
pub(crate) fn input_object(out: &mut String, name: &str) {
    let _ = writeln!(
        out,
        "impl crate::input::Input for {name} {{\n    fn input(value: serde_json::Value, at: &crate::input::Path<'_>) -> Result<Self, QmpError> {{\n        crate::input::nested(value, at)\n    }}\n}}\n"
    );
}

fn write_member_reads(out: &mut String, members: &[&&Member]) {
    let fields = fields(members.iter().map(|m| m.name.as_str()));
    for (member, field) in members.iter().zip(&fields) {
        let read = if member.optional { "optional" } else { "required" };
        let _ = writeln!(out, "            {field}: members.{read}({:?})?,", member.name);
    }
}

fn union(writer: &Writer<'_>, out: &mut String, name: &str, definition: &Definition, u: &Union) {
    let base = writer.schema.base_members(u);
    let common: Vec<&Member> = base
        .iter()
        .copied()
        .filter(|m| m.name != u.discriminator && writer.applies(&m.condition))
        .collect();
    let tag = base.iter().find(|m| m.name == u.discriminator);
    let tag_type = tag.map(|t| type_name(&t.ty.name)).unwrap_or_default();
    let values = tag.and_then(|t| writer.schema.enumeration(&t.ty.name));
    let text = definition.doc.as_ref().map_or("", |d| d.text.as_str());
    let fallback = format!("Members of `{}`.", definition.name);
    doc(out, "", text, &fallback);
    let choice = if common.is_empty() { name.to_owned() } else { format!("{name}Branch") };
    if !common.is_empty() {
        structure_with(writer, out, name, &common, Some(&choice));
        let _ = writeln!(out, "/// What depends on `{}` in [`{name}`].", u.discriminator);
    }
    out.push_str("#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]\n");
    let _ = writeln!(out, "#[serde(tag = {:?})]", u.discriminator);
    let _ = writeln!(out, "pub enum {choice} {{");
    let mut reads = String::new();
    let mut tags = String::new();
    let values = values.map_or(&[][..], |e| &e.members);
    for value in values.iter().filter(|v| writer.applies(&v.condition)) {
        let variant = camel(&value.name);
        doc(out, "    ", entry_text(definition, &value.name), &format!("`{}`", value.name));
        let _ = writeln!(out, "    #[serde(rename = {:?})]", value.name);
        let branch = u.branches.iter().find(|b| b.name == value.name);
        match branch.filter(|b| writer.applies(&b.condition)) {
            Some(branch) => {
                let ty = rust_type(writer, &branch.ty);
                let _ = writeln!(out, "    {variant}({ty}),");
                let _ = writeln!(
                    reads,
                    "            {tag_type}::{variant} => {choice}::{variant}(crate::input::FromMembers::from_members(members)?),"
                );
                let _ =
                    writeln!(tags, "            {choice}::{variant}(_) => {tag_type}::{variant},");
            }
            None => {
                let _ = writeln!(out, "    {variant},");
                let _ =
                    writeln!(reads, "            {tag_type}::{variant} => {choice}::{variant},");
                let _ = writeln!(tags, "            {choice}::{variant} => {tag_type}::{variant},");
            }
        }
    }
    out.push_str("}\n\n");
    let getter = crate::names::snake(&u.discriminator);
    let _ = writeln!(
        out,
        "impl {choice} {{\n    /// The value of `{}`.\n    pub const fn {getter}(&self) -> {tag_type} {{\n        match self {{\n{tags}        }}\n    }}\n}}\n",
        u.discriminator
    );
    union_input(writer, out, name, &choice, u, &base, &tag_type, &reads);
}

/// A union is read as its base in the order of the schema, then the branch.
#[allow(clippy::too_many_arguments)]
fn union_input(
    writer: &Writer<'_>,
    out: &mut String,
    name: &str,
    choice: &str,
    u: &Union,
    base: &[&Member],
    tag_type: &str,
    reads: &str,
) {
    let _ = writeln!(
        out,
        "impl crate::input::FromMembers for {name} {{\n    fn from_members(members: &mut crate::input::Members<'_>) -> Result<Self, QmpError> {{"
    );
    let base: Vec<_> = base.iter().filter(|m| writer.applies(&m.condition)).collect();
    let names = fields(base.iter().map(|m| m.name.as_str()));
    for (member, field) in base.iter().zip(&names) {
        let read = if member.optional { "optional" } else { "required" };
        let ty =
            if member.name == u.discriminator { format!(": {tag_type}") } else { String::new() };
        let _ = writeln!(out, "        let {field}{ty} = members.{read}({:?})?;", member.name);
    }
    let tag = base
        .iter()
        .zip(&names)
        .find(|(m, _)| m.name == u.discriminator)
        .map_or("", |(_, field)| field.as_str());
    let _ = writeln!(out, "        let branch = match {tag} {{\n{reads}        }};");
    if name == choice {
        out.push_str("        Ok(branch)\n");
    } else {
        let fields: Vec<_> = base
            .iter()
            .zip(&names)
            .filter(|(m, _)| m.name != u.discriminator)
            .map(|(_, field)| field.as_str())
            .collect();
        let _ = writeln!(out, "        Ok({name} {{ {}, branch }})", fields.join(", "));
    }
    out.push_str("    }\n}\n\n");
    input_object(out, name);
}

fn alternate(
    writer: &Writer<'_>,
    out: &mut String,
    name: &str,
    definition: &Definition,
    a: &Alternate,
) {
    let branches: Vec<_> = a.branches.iter().filter(|b| writer.applies(&b.condition)).collect();
    out.push_str("#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]\n#[serde(untagged)]\n");
    let _ = writeln!(out, "pub enum {name} {{");
    for branch in &branches {
        let text = entry_text(definition, &branch.name);
        doc(out, "    ", text, &format!("`{}`", branch.name));
        let _ = writeln!(out, "    {}({}),", camel(&branch.name), rust_type(writer, &branch.ty));
    }
    out.push_str("}\n\n");
    let _ = writeln!(
        out,
        "impl crate::input::Input for {name} {{\n    fn input(value: serde_json::Value, at: &crate::input::Path<'_>) -> Result<Self, QmpError> {{\n        #[allow(unreachable_patterns)]\n        match value {{"
    );
    for branch in &branches {
        let _ = writeln!(
            out,
            "            {} => Ok({name}::{}(crate::input::Input::input(value, at)?)),",
            json_pattern(writer.schema, &branch.ty),
            camel(&branch.name)
        );
    }
    let _ = writeln!(
        out,
        "            _ => Err(crate::input::wrong_type(at, {:?})),\n        }}\n    }}\n}}\n",
        definition.name
    );
}

/// The pattern of the JSON values that choose a branch of this type.
fn json_pattern(schema: &Schema, ty: &TypeRef) -> &'static str {
    if ty.array {
        return "serde_json::Value::Array(_)";
    }
    match Builtin::from_name(&ty.name) {
        Some(Builtin::Str | Builtin::QType) => "serde_json::Value::String(_)",
        Some(Builtin::Bool) => "serde_json::Value::Bool(_)",
        Some(Builtin::Null) => "serde_json::Value::Null",
        Some(_) => "serde_json::Value::Number(_)",
        None if schema.enumeration(&ty.name).is_some() => "serde_json::Value::String(_)",
        None => "serde_json::Value::Object(_)",
    }
}
