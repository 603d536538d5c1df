//! The checked schema: what every consumer (generator, introspection, reference) works from.
//!
//! Invariants of a [`Schema`] that [`crate::check_file`] returned without errors: every type a
//! [`TypeRef`] names is in [`Schema::definitions`] or is a [`Builtin`]; bases are structs; the
//! discriminator of a union is a mandatory member of its base with an enumeration for its type;
//! branches name its values; no type contains itself without an optional member or an array
//! between.

use indexmap::IndexMap;

use crate::comment::DocComment;
use crate::source::{FileId, Sources, Span};

/// Which form of the language a file is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The 2011 form: structs are `'type'`, members may be anonymous objects.
    Seed,
    /// Today's form.
    Current,
}

/// A whole schema: all files reached from the root.
#[derive(Debug)]
pub struct Schema {
    /// The texts.
    pub sources: Sources,
    /// One for each file, the root first, then in order of first inclusion.
    pub modules: Vec<Module>,
    /// All definitions by name, in the order they were read.
    pub definitions: IndexMap<String, Definition>,
}

/// One file of the schema.
#[derive(Debug)]
pub struct Module {
    /// The path relative to the directory of the root file, without `.json`.
    pub name: String,
    /// The text it came from.
    pub file: FileId,
    /// The form it is written in.
    pub dialect: Dialect,
    /// Modules it includes, by index.
    pub includes: Vec<usize>,
    /// Definitions and free text in the order of the file.
    pub contents: Vec<Content>,
}

/// What a module consists of, for the reference.
#[derive(Debug)]
pub enum Content {
    /// A comment that documents no definition.
    Text(DocComment),
    /// The definition of this name.
    Definition(String),
}

/// One definition.
#[derive(Debug)]
pub struct Definition {
    /// Its name on the wire or in the schema.
    pub name: String,
    /// Where the name is.
    pub span: Span,
    /// The index of its module.
    pub module: usize,
    /// The build condition.
    pub condition: Option<Condition>,
    /// Features of the whole definition.
    pub features: Vec<Feature>,
    /// Its comment.
    pub doc: Option<DocComment>,
    /// Made by the checker for an anonymous object of the seed's dialect.
    pub implicit: bool,
    /// What it defines.
    pub kind: DefinitionKind,
}

/// What is defined.
#[derive(Debug)]
pub enum DefinitionKind {
    /// An enumeration.
    Enum(Enum),
    /// A structure.
    Struct(Struct),
    /// A tagged union.
    Union(Union),
    /// A choice between types by their JSON form.
    Alternate(Alternate),
    /// A command.
    Command(Command),
    /// An event.
    Event(Event),
}

/// A set of names.
#[derive(Debug, Default)]
pub struct Enum {
    /// The values.
    pub members: Vec<EnumMember>,
    /// The prefix of its C constants, kept for completeness.
    pub prefix: Option<String>,
}

/// One value of an enumeration.
#[derive(Debug)]
pub struct EnumMember {
    /// The string on the wire.
    pub name: String,
    /// Where it is.
    pub span: Span,
    /// The build condition.
    pub condition: Option<Condition>,
    /// Features of the value.
    pub features: Vec<Feature>,
}

/// A JSON object with fixed members.
#[derive(Debug, Default)]
pub struct Struct {
    /// A struct whose members come first.
    pub base: Option<TypeRef>,
    /// Its own members.
    pub members: Vec<Member>,
}

/// One member of an object.
#[derive(Debug)]
pub struct Member {
    /// The name on the wire.
    pub name: String,
    /// Where the name is.
    pub span: Span,
    /// Whether it may be left out.
    pub optional: bool,
    /// Its type.
    pub ty: TypeRef,
    /// The build condition.
    pub condition: Option<Condition>,
    /// Features of the member.
    pub features: Vec<Feature>,
}

/// A use of a type.
#[derive(Clone, Debug)]
pub struct TypeRef {
    /// The name of the type, or of the elements' type of an array.
    pub name: String,
    /// Whether it is an array of that type.
    pub array: bool,
    /// Where it is used.
    pub span: Span,
}

/// An object whose further members depend on one of them.
#[derive(Debug)]
pub struct Union {
    /// The members that are always there.
    pub base: Base,
    /// The name of the member that selects the branch.
    pub discriminator: String,
    /// Where that name is.
    pub discriminator_span: Span,
    /// The branches; a value without a branch has no further members.
    pub branches: Vec<Branch>,
}

/// The common members of a union.
#[derive(Debug)]
pub enum Base {
    /// Those of a struct.
    Named(TypeRef),
    /// Given in place.
    Members(Vec<Member>),
}

/// A branch of a union or an alternate.
#[derive(Debug)]
pub struct Branch {
    /// The value of the discriminator, or just a name in an alternate.
    pub name: String,
    /// Where the name is.
    pub span: Span,
    /// The type.
    pub ty: TypeRef,
    /// The build condition.
    pub condition: Option<Condition>,
}

/// A choice by JSON type.
#[derive(Debug, Default)]
pub struct Alternate {
    /// The choices.
    pub branches: Vec<Branch>,
}

/// Arguments of a command, or data of an event.
#[derive(Debug)]
pub enum Data {
    /// There are none.
    None,
    /// Given in place.
    Members(Vec<Member>),
    /// Those of a type.
    Type(TypeRef),
}

/// A command.
#[derive(Debug)]
pub struct Command {
    /// Its arguments.
    pub data: Data,
    /// What it returns; none stands for the empty object.
    pub returns: Option<TypeRef>,
    /// The arguments are handed over as one value.
    pub boxed: bool,
    /// Arguments and results are marshalled by generated code.
    pub generated: bool,
    /// A successful reply is sent.
    pub success_response: bool,
    /// It may be executed out of band.
    pub allow_oob: bool,
    /// It may be executed before the machine is made.
    pub allow_preconfig: bool,
    /// The handler may yield.
    pub coroutine: bool,
}

/// An event.
#[derive(Debug)]
pub struct Event {
    /// Its data.
    pub data: Data,
    /// The data are handed over as one value.
    pub boxed: bool,
}

/// A feature flag, visible to clients.
#[derive(Debug)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub span: Span,
    /// The build condition.
    pub condition: Option<Condition>,
}

/// A condition on the build configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The symbol is defined.
    Symbol(String),
    /// All hold.
    All(Vec<Condition>),
    /// At least one holds.
    Any(Vec<Condition>),
    /// It does not hold.
    Not(Box<Condition>),
}

/// The types of the language itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Builtin {
    /// A string.
    Str,
    /// Any JSON number.
    Number,
    /// A signed integer of 64 bits.
    Int,
    /// A signed integer of 8 bits.
    Int8,
    /// A signed integer of 16 bits.
    Int16,
    /// A signed integer of 32 bits.
    Int32,
    /// A signed integer of 64 bits.
    Int64,
    /// An unsigned integer of 8 bits.
    Uint8,
    /// An unsigned integer of 16 bits.
    Uint16,
    /// An unsigned integer of 32 bits.
    Uint32,
    /// An unsigned integer of 64 bits.
    Uint64,
    /// A size in bytes, as `Uint64`.
    Size,
    /// true or false.
    Bool,
    /// null.
    Null,
    /// Any JSON value.
    Any,
    /// The type of JSON values, as introspection names it.
    QType,
}

impl Builtin {
    /// All of them.
    pub const ALL: [Builtin; 16] = {
        use Builtin::*;
        [
            Str, Number, Int, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64, Size, Bool,
            Null, Any, QType,
        ]
    };

    /// The name in a schema.
    pub const fn name(self) -> &'static str {
        match self {
            Builtin::Str => "str",
            Builtin::Number => "number",
            Builtin::Int => "int",
            Builtin::Int8 => "int8",
            Builtin::Int16 => "int16",
            Builtin::Int32 => "int32",
            Builtin::Int64 => "int64",
            Builtin::Uint8 => "uint8",
            Builtin::Uint16 => "uint16",
            Builtin::Uint32 => "uint32",
            Builtin::Uint64 => "uint64",
            Builtin::Size => "size",
            Builtin::Bool => "bool",
            Builtin::Null => "null",
            Builtin::Any => "any",
            Builtin::QType => "QType",
        }
    }

    /// The type of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|b| b.name() == name)
    }

    /// Whether its values are integers in JSON.
    pub const fn is_integer(self) -> bool {
        use Builtin::*;
        matches!(self, Int | Int8 | Int16 | Int32 | Int64 | Uint8 | Uint16 | Uint32 | Uint64 | Size)
    }
}

impl Schema {
    /// The definition of `name`.
    pub fn get(&self, name: &str) -> Option<&Definition> {
        self.definitions.get(name)
    }

    /// All commands, in order.
    pub fn commands(&self) -> impl Iterator<Item = (&Definition, &Command)> {
        self.definitions.values().filter_map(|d| match &d.kind {
            DefinitionKind::Command(c) => Some((d, c)),
            _ => None,
        })
    }

    /// All events, in order.
    pub fn events(&self) -> impl Iterator<Item = (&Definition, &Event)> {
        self.definitions.values().filter_map(|d| match &d.kind {
            DefinitionKind::Event(e) => Some((d, e)),
            _ => None,
        })
    }

    /// The enumeration `name`.
    pub fn enumeration(&self, name: &str) -> Option<&Enum> {
        match self.get(name).map(|d| &d.kind) {
            Some(DefinitionKind::Enum(e)) => Some(e),
            _ => None,
        }
    }

    /// All members of the struct `name` with those of its bases first; empty if there is no such
    /// struct.
    pub fn all_members(&self, name: &str) -> Vec<&Member> {
        let mut chain = Vec::new();
        let mut next = Some(name);
        while let Some(name) = next {
            let Some(DefinitionKind::Struct(s)) = self.get(name).map(|d| &d.kind) else { break };
            if chain.len() > self.definitions.len() {
                break;
            }
            chain.push(s);
            next = s.base.as_ref().map(|b| b.name.as_str());
        }
        chain.iter().rev().flat_map(|s| &s.members).collect()
    }

    /// The members of a union that are always there.
    pub fn base_members<'a>(&'a self, union: &'a Union) -> Vec<&'a Member> {
        match &union.base {
            Base::Named(base) => self.all_members(&base.name),
            Base::Members(members) => members.iter().collect(),
        }
    }
}

impl Condition {
    /// Whether it holds when exactly the symbols that `defined` accepts are defined.
    pub fn holds(&self, defined: &dyn Fn(&str) -> bool) -> bool {
        match self {
            Condition::Symbol(symbol) => defined(symbol),
            Condition::All(all) => all.iter().all(|c| c.holds(defined)),
            Condition::Any(any) => any.iter().any(|c| c.holds(defined)),
            Condition::Not(not) => !not.holds(defined),
        }
    }
}

impl DefinitionKind {
    /// The key that the schema language has for it.
    pub const fn name(&self) -> &'static str {
        match self {
            DefinitionKind::Enum(_) => "enum",
            DefinitionKind::Struct(_) => "struct",
            DefinitionKind::Union(_) => "union",
            DefinitionKind::Alternate(_) => "alternate",
            DefinitionKind::Command(_) => "command",
            DefinitionKind::Event(_) => "event",
        }
    }
}
