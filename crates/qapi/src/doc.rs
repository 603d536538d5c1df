//! The reference: Markdown for an mdbook, one page a module and an index.
//!
//! Pages depend on the schema alone and are in its order, so that a page changes only where the
//! schema does.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use crate::comment::{DocComment, DocEntry, backquote_references};
use crate::ir::*;

/// One page.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// The file name, without a directory.
    pub name: String,
    /// The Markdown.
    pub text: String,
}

/// Writes all pages into `dir`, which is made if need be.
///
/// # Errors
/// The directory or a file cannot be written.
pub fn write(schema: &Schema, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for page in pages(schema) {
        fs::write(dir.join(&page.name), page.text)?;
    }
    Ok(())
}

/// All pages: the index, then the modules that have contents.
pub fn pages(schema: &Schema) -> Vec<Page> {
    let mut pages = vec![index(schema)];
    for (number, module) in schema.modules.iter().enumerate().skip(1) {
        if !module.contents.is_empty() {
            pages.push(Page { name: file_name(schema, number), text: page(schema, module) });
        }
    }
    pages
}

/// The page of a module. Names are flat, so that links need no directories.
fn file_name(schema: &Schema, module: usize) -> String {
    if module == 0 {
        return "index.md".to_owned();
    }
    let plain = |c: char| if c.is_alphanumeric() { c } else { '-' };
    let name: String = schema.modules[module].name.chars().map(plain).collect();
    format!("{}.md", name.trim_matches('-'))
}

/// The root module's page: its own contents, then lists of everything.
fn index(schema: &Schema) -> Page {
    let mut text = schema.modules.first().map_or(String::new(), |m| page(schema, m));
    if !text.starts_with('#') {
        text.insert_str(0, "# Reference\n\n");
    }
    text += "Modules:\n\n";
    for (number, module) in schema.modules.iter().enumerate().skip(1) {
        if !module.contents.is_empty() {
            let _ = writeln!(text, "- [{}]({})", module_title(module), file_name(schema, number));
        }
    }
    for kind in ["command", "event"] {
        let mut names: Vec<&Definition> =
            schema.definitions.values().filter(|d| d.kind.name() == kind).collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        if names.is_empty() {
            continue;
        }
        let _ = write!(text, "\n## All {kind}s\n\n");
        for definition in names {
            let _ = writeln!(text, "- {}", link(schema, &definition.name));
        }
    }
    Page { name: "index.md".to_owned(), text }
}

fn module_title(module: &Module) -> String {
    let heading = module.contents.iter().find_map(|c| match c {
        Content::Text(doc) => doc.text.lines().find_map(|l| l.strip_prefix("= ")),
        Content::Definition(_) => None,
    });
    heading.unwrap_or(&module.name).trim().to_owned()
}

fn page(schema: &Schema, module: &Module) -> String {
    let mut out = String::new();
    let titled = module
        .contents
        .iter()
        .any(|c| matches!(c, Content::Text(doc) if doc.text.lines().any(|l| l.starts_with("= "))));
    if !titled && module.contents.iter().any(|c| matches!(c, Content::Definition(_))) {
        let _ = write!(out, "# {}\n\n", module.name);
    }
    for content in &module.contents {
        match content {
            Content::Text(doc) => {
                let _ = write!(out, "{}\n\n", free_text(&doc.text));
            }
            Content::Definition(name) => {
                if let Some(definition) = schema.get(name) {
                    describe(schema, definition, &mut out);
                }
            }
        }
    }
    out
}

/// Headings are `=` in a schema; one level is left for the page.
fn free_text(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let level = line.len() - line.trim_start_matches('=').len();
        match line[level..].strip_prefix(' ') {
            Some(title) if level > 0 => format!("{} {}", "#".repeat(level.min(6)), title.trim()),
            _ => markdown(line),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `@name` as code, and nothing in the text taken for HTML.
fn markdown(text: &str) -> String {
    let mut out = String::new();
    for line in text.split('\n') {
        if !out.is_empty() {
            out.push('\n');
        }
        if line.starts_with("    ") {
            out += line;
            continue;
        }
        out += &backquote_references(&line.replace('<', "&lt;"));
    }
    out
}

/// A link to where `name` is described; code for what is built in.
fn link(schema: &Schema, name: &str) -> String {
    match schema.get(name) {
        Some(definition) if !definition.implicit => {
            let page = file_name(schema, definition.module);
            format!("[`{name}`]({page}#{})", anchor(name))
        }
        _ => format!("`{name}`"),
    }
}

/// The anchor that mdbook gives to a heading that is a name and its kind in words.
fn anchor(name: &str) -> String {
    name.to_lowercase()
}

fn type_link(schema: &Schema, ty: &TypeRef) -> String {
    let element = link(schema, &ty.name);
    if ty.array { format!("array of {element}") } else { element }
}

fn describe(schema: &Schema, definition: &Definition, out: &mut String) {
    let _ = write!(out, "## {}\n\n", definition.name);
    let doc = definition.doc.as_ref();
    let _ = write!(out, "*{}*", capital(definition.kind.name()));
    if let Some(condition) = &definition.condition {
        let _ = write!(out, ", if {}", condition_text(condition));
    }
    out.push_str("\n\n");
    if let Some(text) = doc.map(|d| d.text.as_str()).filter(|t| !t.is_empty()) {
        let _ = write!(out, "{}\n\n", markdown(text));
    }
    match &definition.kind {
        DefinitionKind::Enum(e) => {
            heading(out, "Values");
            for member in &e.members {
                item(
                    out,
                    &format!("`{}`", member.name),
                    &member.condition,
                    text(doc, &member.name),
                );
            }
            out.push('\n');
        }
        DefinitionKind::Struct(s) => {
            if let Some(base) = &s.base {
                let _ = write!(out, "Has the members of {}.\n\n", link(schema, &base.name));
            }
            members(schema, out, "Members", &s.members, doc);
        }
        DefinitionKind::Union(u) => {
            match &u.base {
                Base::Named(base) => {
                    let _ = write!(out, "Has the members of {}.\n\n", link(schema, &base.name));
                }
                Base::Members(list) => members(schema, out, "Members", list, doc),
            }
            heading(out, &format!("Further members by `{}`", u.discriminator));
            branches(schema, out, &u.branches, doc);
        }
        DefinitionKind::Alternate(a) => {
            heading(out, "One of");
            branches(schema, out, &a.branches, doc);
        }
        DefinitionKind::Command(c) => {
            data(schema, out, "Arguments", &c.data, doc);
            command_flags(out, c);
        }
        DefinitionKind::Event(e) => data(schema, out, "Data", &e.data, doc),
    }
    features(out, doc);
    returns(schema, out, definition, doc);
    sections(out, doc);
}

fn heading(out: &mut String, title: &str) {
    let _ = write!(out, "**{title}**\n\n");
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

fn text<'d>(doc: Option<&'d DocComment>, name: &str) -> &'d str {
    let entries: &[DocEntry] = doc.map_or(&[], |d| &d.members);
    entries.iter().find(|e| e.name == name).map_or("", |e| e.text.as_str())
}

/// One point of a list; later lines are indented to stay in it.
fn item(out: &mut String, head: &str, condition: &Option<Condition>, text: &str) {
    let _ = write!(out, "- {head}");
    if let Some(condition) = condition {
        let _ = write!(out, " (if {})", condition_text(condition));
    }
    if !text.is_empty() {
        let _ = write!(out, ": {}", markdown(text).replace('\n', "\n  "));
    }
    out.push('\n');
}

fn members(
    schema: &Schema,
    out: &mut String,
    title: &str,
    list: &[Member],
    doc: Option<&DocComment>,
) {
    if list.is_empty() {
        return;
    }
    heading(out, title);
    for member in list {
        let optional = if member.optional { ", optional" } else { "" };
        let head = format!("`{}` ({}{optional})", member.name, type_link(schema, &member.ty));
        item(out, &head, &member.condition, text(doc, &member.name));
    }
    out.push('\n');
}

fn branches(schema: &Schema, out: &mut String, list: &[Branch], doc: Option<&DocComment>) {
    for branch in list {
        let head = format!("`{}`: {}", branch.name, type_link(schema, &branch.ty));
        item(out, &head, &branch.condition, text(doc, &branch.name));
    }
    out.push('\n');
}

fn data(schema: &Schema, out: &mut String, title: &str, data: &Data, doc: Option<&DocComment>) {
    match data {
        Data::None => {}
        Data::Members(list) => members(schema, out, title, list, doc),
        Data::Type(ty) => {
            let _ = write!(out, "**{title}**: the members of {}\n\n", type_link(schema, ty));
        }
    }
}

fn command_flags(out: &mut String, command: &Command) {
    let mut notes = Vec::new();
    if command.allow_oob {
        notes.push("may be executed out of band");
    }
    if command.allow_preconfig {
        notes.push("may be executed before the machine is made");
    }
    if !command.success_response {
        notes.push("a success is not answered");
    }
    if !notes.is_empty() {
        let _ = write!(out, "{}.\n\n", capital(&notes.join("; ")));
    }
}

fn features(out: &mut String, doc: Option<&DocComment>) {
    let entries: &[DocEntry] = doc.map_or(&[], |d| &d.features);
    if entries.is_empty() {
        return;
    }
    heading(out, "Features");
    for entry in entries {
        item(out, &format!("`{}`", entry.name), &None, &entry.text);
    }
    out.push('\n');
}

fn returns(schema: &Schema, out: &mut String, definition: &Definition, doc: Option<&DocComment>) {
    let DefinitionKind::Command(command) = &definition.kind else { return };
    let sections = doc.map_or(&[][..], |d| &d.sections);
    let text = sections.iter().find(|s| s.tag == "Returns").map(|s| markdown(&s.text));
    match (&command.returns, text) {
        (Some(ty), Some(text)) => {
            let _ = write!(out, "**Returns** {}: {text}\n\n", type_link(schema, ty));
        }
        (Some(ty), None) => {
            let _ = write!(out, "**Returns** {}\n\n", type_link(schema, ty));
        }
        (None, Some(text)) => {
            let _ = write!(out, "**Returns**: {text}\n\n");
        }
        (None, None) => {}
    }
}

fn sections(out: &mut String, doc: Option<&DocComment>) {
    for section in doc.map_or(&[][..], |d| &d.sections) {
        match section.tag.as_str() {
            "Returns" | "TODO" | "Todo" => {}
            "" => {
                let _ = write!(out, "{}\n\n", markdown(&section.text));
            }
            "Since" => {
                let _ = write!(out, "Since {}.\n\n", section.text.trim().trim_end_matches('.'));
            }
            "Example" | "Examples" => {
                heading(out, &section.tag);
                for line in section.text.trim_end().lines() {
                    let _ = writeln!(out, "{}", format!("    {line}").trim_end());
                }
                out.push('\n');
            }
            tag => {
                heading(out, tag);
                let _ = write!(out, "{}\n\n", markdown(&section.text));
            }
        }
    }
}

fn condition_text(condition: &Condition) -> String {
    let join = |list: &[Condition], word: &str| {
        let parts: Vec<_> = list.iter().map(condition_text).collect();
        format!("({})", parts.join(word))
    };
    match condition {
        Condition::Symbol(symbol) => format!("`{symbol}`"),
        Condition::All(list) => join(list, " and "),
        Condition::Any(list) => join(list, " or "),
        Condition::Not(inner) => format!("not {}", condition_text(inner)),
    }
}
