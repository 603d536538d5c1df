//! From values to definitions: the shape of each expression, its keys, its names.
//!
//! What needs more than the expression itself (whether types exist and fit) is in
//! [`crate::check`].

use std::collections::HashMap;

use crate::comment::DocComment;
use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::*;
use crate::lexer::shorten;
use crate::load::Pragma;
use crate::names::{self, nearest};
use crate::parser::{Entry, Expr, Kind, Node};
use crate::source::Span;

/// The keys that say what an expression defines.
const METATYPES: [&str; 6] = ["enum", "struct", "union", "alternate", "command", "event"];

pub(crate) struct Lowering<'a> {
    pub(crate) diags: &'a mut Diagnostics,
    pub(crate) pragma: &'a Pragma,
    pub(crate) dialect: Dialect,
    pub(crate) module: usize,
    /// Structs made for anonymous objects of the seed's dialect.
    pub(crate) implicit: Vec<Definition>,
}

/// What a name is a name of, for the rules of its spelling.
#[derive(Clone, Copy, PartialEq)]
enum NameKind<'a> {
    Type,
    Command,
    Event,
    /// A member of the definition of this name.
    Member(&'a str),
    /// A value of the enumeration of this name.
    Value(&'a str),
    Branch,
    Feature,
}

impl Lowering<'_> {
    /// Makes a definition of `expr`; what is wrong with it is reported, and what can be kept of it
    /// is kept, so that its users are still checked.
    pub(crate) fn definition(
        &mut self,
        expr: &Expr,
        doc: Option<DocComment>,
    ) -> Option<Definition> {
        let (meta, entry) = self.metatype(expr)?;
        let Some(name) = entry.value.as_str() else {
            self.diags.push(
                Diagnostic::error(
                    entry.value.span,
                    format!("'{}' requires a string name", entry.key),
                )
                .label(format!("this is {}", entry.value.kind.describe())),
            );
            return None;
        };
        let name = name.to_owned();
        let span = entry.value.span;
        self.definition_name(meta, &name, span);
        if !expr.broken {
            self.keys(
                &expr.entries,
                expr.span,
                meta,
                required_keys(meta, self.dialect),
                optional_keys(meta),
            );
        }
        let features = self.features(find(&expr.entries, "features"), meta);
        let condition = self.condition_of(&expr.entries, meta);
        let kind = match meta {
            "enum" => DefinitionKind::Enum(self.enumeration(&name, expr)),
            "struct" => DefinitionKind::Struct(self.structure(&name, expr)),
            "union" => self.union(&name, expr),
            "alternate" => DefinitionKind::Alternate(self.alternate(expr)),
            "command" => DefinitionKind::Command(self.command(&name, expr)),
            _ => DefinitionKind::Event(self.event(&name, expr)),
        };
        Some(Definition {
            name,
            span,
            module: self.module,
            condition,
            features,
            doc,
            implicit: false,
            kind,
        })
    }

    fn metatype<'e>(&mut self, expr: &'e Expr) -> Option<(&'static str, &'e Entry)> {
        let mut found = expr.entries.iter().filter_map(|e| {
            let key =
                if e.key == "type" && self.dialect == Dialect::Seed { "struct" } else { &e.key };
            METATYPES.into_iter().find(|m| *m == key).map(|m| (m, e))
        });
        let first = found.next();
        let second = found.next();
        match (first, second) {
            (Some(first), None) => return Some(first),
            (Some((_, a)), Some((_, b))) => self.diags.push(
                Diagnostic::error(
                    b.key_span,
                    format!("an expression cannot be both '{}' and '{}'", a.key, b.key),
                )
                .related(a.key_span, "it already has this key")
                .help("split it into two definitions"),
            ),
            (None, _) if expr.broken => {}
            (None, _) => {
                let near = expr.entries.iter().find_map(|e| {
                    nearest(&e.key, METATYPES.into_iter().chain(["include", "pragma"]))
                        .map(|near| (e, near))
                });
                let diag = Diagnostic::error(
                    near.map_or(expr.span, |(e, _)| e.key_span),
                    "this expression does not say what it defines",
                );
                self.diags.push(match near {
                    Some((_, near)) => diag.help(format!("did you mean '{near}'?")),
                    None => diag.help(format!(
                        "it needs exactly one of the keys {}, include or pragma",
                        METATYPES.join(", ")
                    )),
                });
            }
        }
        None
    }

    fn definition_name(&mut self, meta: &str, name: &str, span: Span) {
        let kind = match meta {
            "command" => NameKind::Command,
            "event" => NameKind::Event,
            _ => NameKind::Type,
        };
        self.name(name, span, kind, meta);
        if kind == NameKind::Type && name.ends_with("List") {
            self.diags.push(
                Diagnostic::error(
                    span,
                    format!("the name of a type must not end in 'List': '{name}'"),
                )
                .help("that ending is reserved for arrays, which are written ['Element']"),
            );
        }
    }

    /// Checks a name; `what` says in messages what it names.
    fn name(&mut self, name: &str, span: Span, kind: NameKind<'_>, what: &str) {
        // Values of enumerations may begin with a digit.
        let prefixed;
        let checked = match kind {
            NameKind::Value(_) if name.starts_with(|c: char| c.is_ascii_digit()) => {
                prefixed = format!("d{name}");
                &prefixed
            }
            _ => name,
        };
        let reserved = names::identifier(checked).starts_with("q_");
        let Some(split) = names::split(checked).filter(|_| !reserved) else {
            let diag = Diagnostic::error(
                span,
                format!("'{}' is not a valid name for {}", shorten(name), article(what)),
            );
            self.diags.push(if reserved {
                diag.label("the prefix 'q_' is reserved")
            } else {
                diag.help("a name is a letter followed by letters, digits, '-' and '_'")
            });
            return;
        };
        if self.dialect == Dialect::Seed {
            return;
        }
        let stem = split.stem;
        let upper = stem.contains(|c: char| c.is_ascii_uppercase());
        let lower = stem.contains(|c: char| c.is_ascii_lowercase());
        let underscore = stem.contains('_');
        match kind {
            NameKind::Type if !names::is_camel(stem) => self.diags.push(
                Diagnostic::error(span, format!("the name of {} is in CamelCase", article(what)))
                    .help(match camel(name) {
                        better if better != name => format!("write '{better}'"),
                        _ => "a capital first, no '-' or '_', and a small letter somewhere"
                            .to_owned(),
                    }),
            ),
            NameKind::Event if lower || stem.contains('-') => self.diags.push(
                Diagnostic::error(
                    span,
                    "the name of an event is in capitals, with '_' between words",
                )
                .help(format!("write '{}'", name.to_uppercase().replace('-', "_"))),
            ),
            NameKind::Command
                if upper || underscore && !self.pragma.command_names.contains(name) =>
            {
                self.lower_case(name, span, what, "command-name-exceptions", name);
            }
            NameKind::Member(owner) | NameKind::Value(owner)
                if (upper || underscore) && !self.pragma.member_names.contains(owner) =>
            {
                self.lower_case(name, span, what, "member-name-exceptions", owner);
            }
            NameKind::Branch | NameKind::Feature if upper || underscore => {
                self.lower_case(name, span, what, "", "");
            }
            _ => {}
        }
    }

    fn lower_case(&mut self, name: &str, span: Span, what: &str, pragma: &str, owner: &str) {
        let mut help = format!("write '{}'", name.to_lowercase().replace('_', "-"));
        if !pragma.is_empty() {
            help += &format!(", or list '{owner}' in the pragma '{pragma}'");
        }
        self.diags.push(
            Diagnostic::error(
                span,
                format!("the name of {} has neither capitals nor '_': '{name}'", article(what)),
            )
            .help(help),
        );
    }

    /// Reports unknown and missing keys.
    fn keys(
        &mut self,
        entries: &[Entry],
        span: Span,
        what: &str,
        required: &[&'static str],
        optional: &[&'static str],
    ) {
        for key in required {
            let seed_struct = *key == "struct" && self.dialect == Dialect::Seed;
            if find(entries, key).is_none() && !(seed_struct && find(entries, "type").is_some()) {
                self.diags.push(
                    Diagnostic::error(span, format!("{} lacks the key '{key}'", what))
                        .help(format!("add '{key}': …")),
                );
            }
        }
        let valid = || required.iter().chain(optional).copied();
        for entry in entries {
            let key = entry.key.as_str();
            if valid().any(|v| v == key)
                || (self.dialect == Dialect::Seed && key == "type" && required.contains(&"struct"))
            {
                continue;
            }
            let help = match nearest(key, valid()) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("the keys are {}", valid().collect::<Vec<_>>().join(", ")),
            };
            self.diags.push(
                Diagnostic::error(entry.key_span, format!("{what} has no key '{}'", shorten(key)))
                    .help(help),
            );
        }
    }

    fn wrong_kind(&mut self, node: &Node, wanted: &str) {
        self.diags.push(
            Diagnostic::error(node.span, wanted.to_owned())
                .label(format!("this is {}", node.kind.describe())),
        );
    }

    fn enumeration(&mut self, name: &str, expr: &Expr) -> Enum {
        let prefix = match find(&expr.entries, "prefix") {
            None => None,
            Some(entry) => {
                if entry.value.as_str().is_none() {
                    self.wrong_kind(&entry.value, "'prefix' is a string");
                }
                entry.value.as_str().map(str::to_owned)
            }
        };
        let mut members = Vec::new();
        if let Some(data) = find(&expr.entries, "data") {
            match &data.value.kind {
                Kind::List(items) => {
                    for item in items {
                        members.extend(self.enum_member(name, item));
                    }
                }
                _ => self.wrong_kind(&data.value, "the 'data' of an enum is an array of names"),
            }
        }
        Enum { members, prefix }
    }

    fn enum_member(&mut self, owner: &str, node: &Node) -> Option<EnumMember> {
        let what = "enum member";
        let named = self.named(node, what, &["if", "features"])?;
        self.name(&named.name, named.span, NameKind::Value(owner), what);
        Some(EnumMember {
            name: named.name,
            span: named.span,
            condition: self.condition_of(named.entries, what),
            features: self.features(find(named.entries, "features"), what),
        })
    }

    /// `'name'` or `{ 'name': 'name', … }`.
    fn named<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        optional: &[&'static str],
    ) -> Option<Named<'n>> {
        match &node.kind {
            Kind::Str(name) => Some(Named { name: name.clone(), span: node.span, entries: &[] }),
            Kind::Object(entries) => {
                self.keys(entries, node.span, what, &["name"], optional);
                let entry = find(entries, "name")?;
                match entry.value.as_str() {
                    Some(name) => {
                        Some(Named { name: name.to_owned(), span: entry.value.span, entries })
                    }
                    None => {
                        self.wrong_kind(
                            &entry.value,
                            &format!("the name of {} is a string", article(what)),
                        );
                        None
                    }
                }
            }
            _ => {
                self.wrong_kind(
                    node,
                    &format!("{} is a name or an object with a name", article(what)),
                );
                None
            }
        }
    }

    fn features(&mut self, entry: Option<&Entry>, owner: &str) -> Vec<Feature> {
        let Some(entry) = entry else { return Vec::new() };
        let Kind::List(items) = &entry.value.kind else {
            self.wrong_kind(&entry.value, "'features' is an array");
            return Vec::new();
        };
        let mut features: Vec<Feature> = Vec::new();
        let mut seen = HashMap::new();
        for item in items {
            let Some(named) = self.named(item, "feature", &["if"]) else { continue };
            self.name(&named.name, named.span, NameKind::Feature, "feature");
            if let Some(first) = seen.insert(named.name.clone(), named.span) {
                self.diags.push(
                    Diagnostic::error(named.span, format!("duplicate feature '{}'", named.name))
                        .related(first, "first given here"),
                );
            }
            let type_of = matches!(owner, "enum" | "struct" | "union" | "alternate");
            if type_of && matches!(named.name.as_str(), "deprecated" | "unstable") {
                self.diags.push(
                    Diagnostic::error(
                        named.span,
                        format!("a type cannot have the feature '{}'", named.name),
                    )
                    .help("give it to the commands, events and members that use the type"),
                );
            }
            features.push(Feature {
                condition: self.condition_of(named.entries, "feature"),
                name: named.name,
                span: named.span,
            });
        }
        features
    }

    fn condition_of(&mut self, entries: &[Entry], what: &str) -> Option<Condition> {
        let entry = find(entries, "if")?;
        self.condition(&entry.value, what)
    }

    fn condition(&mut self, node: &Node, what: &str) -> Option<Condition> {
        match &node.kind {
            Kind::Str(symbol) => {
                let valid = symbol.starts_with(|c: char| c.is_ascii_uppercase())
                    && symbol
                        .chars()
                        .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
                if !valid {
                    self.diags.push(
                        Diagnostic::error(
                            node.span,
                            format!("the condition '{}' is not a valid symbol", shorten(symbol)),
                        )
                        .help("a symbol is capitals, digits and '_', as in 'CONFIG_LINUX'"),
                    );
                    return None;
                }
                Some(Condition::Symbol(symbol.clone()))
            }
            Kind::Object(entries) => self.condition_object(node, entries, what),
            _ => {
                self.diags.push(
                    Diagnostic::error(
                        node.span,
                        format!("the condition of {} is a symbol or an object", article(what)),
                    )
                    .label(format!("this is {}", node.kind.describe()))
                    .help("combine conditions with { 'all': […] }, { 'any': […] } or { 'not': … }"),
                );
                None
            }
        }
    }

    fn condition_object(
        &mut self,
        node: &Node,
        entries: &[Entry],
        what: &str,
    ) -> Option<Condition> {
        self.keys(entries, node.span, "a condition", &[], &["all", "any", "not"]);
        let [entry] = entries else {
            self.diags.push(
                Diagnostic::error(
                    node.span,
                    "a condition has exactly one of 'all', 'any' and 'not'",
                )
                .help("nest them to combine them"),
            );
            return None;
        };
        if entry.key == "not" {
            return Some(Condition::Not(Box::new(self.condition(&entry.value, what)?)));
        }
        let Kind::List(items) = &entry.value.kind else {
            self.wrong_kind(&entry.value, &format!("'{}' is an array of conditions", entry.key));
            return None;
        };
        if items.is_empty() {
            self.diags.push(
                Diagnostic::error(entry.value.span, "an empty list of conditions is useless")
                    .help("leave out the 'if'"),
            );
        }
        let conditions = items.iter().filter_map(|i| self.condition(i, what)).collect();
        match entry.key.as_str() {
            "all" => Some(Condition::All(conditions)),
            "any" => Some(Condition::Any(conditions)),
            _ => None,
        }
    }

    fn structure(&mut self, name: &str, expr: &Expr) -> Struct {
        let base = match find(&expr.entries, "base") {
            Some(entry) => self.type_name(&entry.value, "'base'", false),
            None => None,
        };
        let members = match find(&expr.entries, "data") {
            Some(data) => self.object_members(name, &data.value, "the 'data' of a struct"),
            None => Vec::new(),
        };
        Struct { base, members }
    }

    fn object_members(&mut self, owner: &str, node: &Node, what: &str) -> Vec<Member> {
        match &node.kind {
            Kind::Object(entries) => self.members(owner, entries),
            _ => {
                self.wrong_kind(node, &format!("{what} is an object"));
                Vec::new()
            }
        }
    }

    fn members(&mut self, owner: &str, entries: &[Entry]) -> Vec<Member> {
        entries.iter().filter_map(|e| self.member(owner, e)).collect()
    }

    fn member(&mut self, owner: &str, entry: &Entry) -> Option<Member> {
        let (name, optional) = match entry.key.strip_prefix('*') {
            Some(name) => (name, true),
            None => (entry.key.as_str(), false),
        };
        self.name(name, entry.key_span, NameKind::Member(owner), "member");
        let identifier = names::identifier(name);
        if identifier == "u" || identifier.starts_with("has_") {
            self.diags.push(
                Diagnostic::error(entry.key_span, format!("the member name '{name}' is reserved"))
                    .help("'u' and names that begin with 'has-' are taken by generated code"),
            );
        }
        let what = format!("member '{name}'");
        let (ty, condition, features) = match &entry.value.kind {
            Kind::Object(entries) if self.dialect == Dialect::Seed => {
                (Some(self.anonymous(owner, name, entry, entries)), None, Vec::new())
            }
            Kind::Object(entries) => {
                self.keys(entries, entry.value.span, "a member", &["type"], &["if", "features"]);
                let ty = find(entries, "type").and_then(|e| self.type_name(&e.value, &what, true));
                let condition = self.condition_of(entries, "member");
                (ty, condition, self.features(find(entries, "features"), "member"))
            }
            _ => (self.type_name(&entry.value, &what, true), None, Vec::new()),
        };
        Some(Member {
            name: name.to_owned(),
            span: entry.key_span,
            optional,
            ty: ty?,
            condition,
            features,
        })
    }

    /// An anonymous object of the seed's dialect becomes a struct named by its path.
    fn anonymous(&mut self, owner: &str, name: &str, entry: &Entry, entries: &[Entry]) -> TypeRef {
        let path = format!("{owner}.{name}");
        let members = self.members(&path, entries);
        self.implicit.push(Definition {
            name: path.clone(),
            span: entry.key_span,
            module: self.module,
            condition: None,
            features: Vec::new(),
            doc: None,
            implicit: true,
            kind: DefinitionKind::Struct(Struct { base: None, members }),
        });
        TypeRef { name: path, array: false, span: entry.value.span }
    }

    /// `'Type'`, or `['Type']` if `arrays` are allowed here.
    fn type_name(&mut self, node: &Node, what: &str, arrays: bool) -> Option<TypeRef> {
        match &node.kind {
            Kind::Str(name) => Some(TypeRef { name: name.clone(), array: false, span: node.span }),
            Kind::List(items) if arrays => match items.as_slice() {
                [Node { kind: Kind::Str(name), .. }] => {
                    Some(TypeRef { name: name.clone(), array: true, span: node.span })
                }
                _ => {
                    self.diags.push(
                        Diagnostic::error(
                            node.span,
                            format!("{what}: an array type holds a single type name"),
                        )
                        .help("write ['Element']"),
                    );
                    None
                }
            },
            Kind::List(_) => {
                self.diags.push(
                    Diagnostic::error(node.span, format!("{what} cannot be an array"))
                        .help("name a type"),
                );
                None
            }
            _ => {
                self.diags.push(
                    Diagnostic::error(node.span, format!("{what} should be a type name"))
                        .label(format!("this is {}", node.kind.describe())),
                );
                None
            }
        }
    }

    fn union(&mut self, name: &str, expr: &Expr) -> DefinitionKind {
        let entries = &expr.entries;
        let simple = find(entries, "discriminator").is_none();
        if simple && self.dialect == Dialect::Seed {
            return self.simple_union(name, expr);
        }
        let base = match find(entries, "base") {
            Some(Entry { value: Node { kind: Kind::Object(members), .. }, .. }) => {
                Base::Members(self.members(name, members))
            }
            entry => match entry.and_then(|e| self.type_name(&e.value, "'base'", false)) {
                Some(ty) => Base::Named(ty),
                None => return self.union_without_base(entries, expr.span),
            },
        };
        let mut discriminator = String::new();
        let mut discriminator_span = expr.span;
        if let Some(entry) = find(entries, "discriminator") {
            discriminator_span = entry.value.span;
            match entry.value.as_str() {
                Some(text) => discriminator = text.to_owned(),
                None => self.wrong_kind(&entry.value, "'discriminator' is the name of a member"),
            }
        }
        let branches = match find(entries, "data") {
            Some(data) => self.branches(&data.value, "union", false),
            None => Vec::new(),
        };
        DefinitionKind::Union(Union { base, discriminator, discriminator_span, branches })
    }

    /// The base is missing or wrong, which is reported: the discriminator is left out, as it would
    /// not be found.
    fn union_without_base(&mut self, entries: &[Entry], span: Span) -> DefinitionKind {
        let branches = match find(entries, "data") {
            Some(data) => self.branches(&data.value, "union", false),
            None => Vec::new(),
        };
        DefinitionKind::Union(Union {
            base: Base::Members(Vec::new()),
            discriminator: String::new(),
            discriminator_span: span,
            branches,
        })
    }

    /// The seed's dialect has unions without a discriminator: on the wire `type` says the branch
    /// and `data` holds its value.
    fn simple_union(&mut self, name: &str, expr: &Expr) -> DefinitionKind {
        let mut branches = match find(&expr.entries, "data") {
            Some(data) => self.branches(&data.value, "union", true),
            None => Vec::new(),
        };
        let definition = |name: String, kind| Definition {
            name,
            span: expr.span,
            module: self.module,
            condition: None,
            features: Vec::new(),
            doc: None,
            implicit: true,
            kind,
        };
        let kind = format!("{name}.Kind");
        let values = branches.iter().map(|b| EnumMember {
            name: b.name.clone(),
            span: b.span,
            condition: None,
            features: Vec::new(),
        });
        let mut implicit = vec![definition(
            kind.clone(),
            DefinitionKind::Enum(Enum { members: values.collect(), prefix: None }),
        )];
        let member = |name: &str, ty: TypeRef| Member {
            name: name.to_owned(),
            span: ty.span,
            optional: false,
            ty,
            condition: None,
            features: Vec::new(),
        };
        for branch in &mut branches {
            let wrapper = format!("{name}.{}", branch.name);
            let data = member("data", branch.ty.clone());
            let wrapped = Struct { base: None, members: vec![data] };
            implicit.push(definition(wrapper.clone(), DefinitionKind::Struct(wrapped)));
            branch.ty = TypeRef { name: wrapper, array: false, span: branch.ty.span };
        }
        self.implicit.extend(implicit);
        let ty = TypeRef { name: kind, array: false, span: expr.span };
        DefinitionKind::Union(Union {
            base: Base::Members(vec![member("type", ty)]),
            discriminator: "type".to_owned(),
            discriminator_span: expr.span,
            branches,
        })
    }

    fn branches(&mut self, node: &Node, what: &str, arrays: bool) -> Vec<Branch> {
        let Kind::Object(entries) = &node.kind else {
            self.wrong_kind(node, &format!("the 'data' of {} is an object", article(what)));
            return Vec::new();
        };
        let mut branches = Vec::new();
        for entry in entries {
            let label = format!("branch '{}'", entry.key);
            // A union's branches are values of an enumeration, whose spelling is checked there.
            if what == "alternate" {
                self.name(&entry.key, entry.key_span, NameKind::Branch, "branch");
            }
            let (ty, condition) = match &entry.value.kind {
                Kind::Object(inner) => {
                    self.keys(inner, entry.value.span, "a branch", &["type"], &["if"]);
                    let ty =
                        find(inner, "type").and_then(|e| self.type_name(&e.value, &label, arrays));
                    (ty, self.condition_of(inner, "branch"))
                }
                _ => (self.type_name(&entry.value, &label, arrays), None),
            };
            if let Some(ty) = ty {
                branches.push(Branch {
                    name: entry.key.clone(),
                    span: entry.key_span,
                    ty,
                    condition,
                });
            }
        }
        branches
    }

    fn alternate(&mut self, expr: &Expr) -> Alternate {
        let Some(data) = find(&expr.entries, "data") else { return Alternate::default() };
        if matches!(&data.value.kind, Kind::Object(entries) if entries.is_empty()) {
            self.diags.push(
                Diagnostic::error(data.value.span, "the 'data' of an alternate must not be empty")
                    .help("name at least one type to choose from"),
            );
        }
        Alternate { branches: self.branches(&data.value, "alternate", true) }
    }

    fn command(&mut self, name: &str, expr: &Expr) -> Command {
        let entries = &expr.entries;
        let boxed = self.flag(entries, "boxed", true);
        let allow_oob = self.flag(entries, "allow-oob", true);
        let coroutine = self.flag(entries, "coroutine", true);
        if allow_oob
            && coroutine
            && let Some(entry) = find(entries, "coroutine")
        {
            self.diags.push(
                Diagnostic::error(entry.key_span, "'allow-oob' and 'coroutine' exclude each other")
                    .help("an out-of-band command must not wait, so it needs no coroutine"),
            );
        }
        let returns =
            find(entries, "returns").and_then(|e| self.type_name(&e.value, "'returns'", true));
        Command {
            data: self.data(name, entries, boxed),
            returns,
            boxed,
            generated: self.flag(entries, "gen", false),
            success_response: self.flag(entries, "success-response", false),
            allow_oob,
            allow_preconfig: self.flag(entries, "allow-preconfig", true),
            coroutine,
        }
    }

    /// A flag that may only be given with the value that is not its default.
    fn flag(&mut self, entries: &[Entry], key: &'static str, only: bool) -> bool {
        let Some(entry) = find(entries, key) else { return !only };
        match &entry.value.kind {
            Kind::Bool(value) if *value == only => only,
            Kind::Str(word) if self.dialect == Dialect::Seed && !only && word == "no" => false,
            _ => {
                self.diags.push(
                    Diagnostic::error(entry.value.span, format!("'{key}' may only be {only}"))
                        .help(format!("leave it out for {}", !only)),
                );
                !only
            }
        }
    }

    fn data(&mut self, owner: &str, entries: &[Entry], boxed: bool) -> Data {
        let Some(entry) = find(entries, "data") else {
            if boxed && let Some(flag) = find(entries, "boxed") {
                self.diags.push(
                    Diagnostic::error(flag.key_span, "'boxed' requires 'data'")
                        .help("name the type of the boxed value, or leave out 'boxed'"),
                );
            }
            return Data::None;
        };
        match &entry.value.kind {
            Kind::Object(members) if !boxed => Data::Members(self.members(owner, members)),
            Kind::Object(_) => {
                self.diags.push(
                    Diagnostic::error(entry.value.span, "boxed 'data' is a type name")
                        .label("this is an object")
                        .help("define a struct for it, or leave out 'boxed'"),
                );
                Data::None
            }
            Kind::Str(_) | Kind::List(_) => {
                self.type_name(&entry.value, "'data'", false).map_or(Data::None, Data::Type)
            }
            Kind::Bool(_) => {
                self.wrong_kind(&entry.value, "'data' is an object or a type name");
                Data::None
            }
        }
    }

    fn event(&mut self, name: &str, expr: &Expr) -> Event {
        let boxed = self.flag(&expr.entries, "boxed", true);
        Event { data: self.data(name, &expr.entries, boxed), boxed }
    }
}

struct Named<'n> {
    name: String,
    span: Span,
    entries: &'n [Entry],
}

fn find<'e>(entries: &'e [Entry], key: &str) -> Option<&'e Entry> {
    entries.iter().find(|e| e.key == key)
}

fn required_keys(meta: &str, dialect: Dialect) -> &'static [&'static str] {
    match meta {
        "enum" => &["enum", "data"],
        "struct" => &["struct", "data"],
        "union" if dialect == Dialect::Seed => &["union", "data"],
        "union" => &["union", "base", "discriminator", "data"],
        "alternate" => &["alternate", "data"],
        "command" => &["command"],
        _ => &["event"],
    }
}

fn optional_keys(meta: &str) -> &'static [&'static str] {
    match meta {
        "enum" => &["if", "features", "prefix"],
        "struct" => &["base", "if", "features"],
        "union" => &["if", "features", "base", "discriminator"],
        "alternate" => &["if", "features"],
        "command" => &[
            "data",
            "returns",
            "boxed",
            "if",
            "features",
            "gen",
            "success-response",
            "allow-oob",
            "allow-preconfig",
            "coroutine",
        ],
        _ => &["data", "boxed", "if", "features"],
    }
}

fn article(what: &str) -> String {
    let vowel = what.starts_with(['a', 'e', 'i', 'o']);
    if what.starts_with("a ") {
        return what.to_owned();
    }
    format!("{} {what}", if vowel { "an" } else { "a" })
}

/// A suggestion in CamelCase.
fn camel(name: &str) -> String {
    let words = name.split(['-', '_']).filter(|w| !w.is_empty());
    let capital = |word: &str| {
        let shouted = word.len() > 1 && !word.contains(|c: char| c.is_ascii_lowercase());
        let rest = if shouted { word[1..].to_lowercase() } else { word[1..].to_owned() };
        word[..1].to_uppercase() + &rest
    };
    words.map(capital).collect()
}
