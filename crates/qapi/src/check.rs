//! What needs the whole schema: whether types exist and fit, clashes, recursion, documentation.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;

use crate::Outcome;
use crate::comment::{self, DocComment, DocEntry};
use crate::diag::{Diagnostic, Diagnostics, Severity};
use crate::expr::Lowering;
use crate::ir::*;
use crate::load::{Loaded, LoadedModule, Loader, Pragma};
use crate::names::{identifier, nearest};
use crate::parser::Expr;

/// Chains of bases longer than this are refused; walking them is quadratic in the whole.
pub(crate) const MAX_BASES: usize = 64;

/// Makes the schema of what was loaded and checks it.
pub(crate) fn schema(loader: Loader<'_>) -> Outcome {
    let Loader { sources, diags, pragma, modules, order, .. } = loader;
    let mut builder = Builder {
        schema: Schema { sources, modules: Vec::new(), definitions: IndexMap::new() },
        diags,
        pragma,
        broken: HashSet::new(),
    };
    let mut loaded: Vec<Option<LoadedModule>> = modules.into_iter().map(Some).collect();
    builder.schema.modules = loaded
        .iter()
        .flatten()
        .map(|m| Module {
            name: m.name.clone(),
            file: m.file,
            dialect: m.dialect,
            includes: m.includes.clone(),
            contents: Vec::new(),
        })
        .collect();
    for index in order {
        if let Some(module) = loaded[index].take() {
            builder.module(index, module);
        }
    }
    let Builder { schema, mut diags, pragma, broken } = builder;
    Checker {
        schema: &schema,
        pragma: &pragma,
        broken: &broken,
        diags: &mut diags,
        own_names: HashMap::new(),
    }
    .run();
    Outcome { schema, diagnostics: diags.finish() }
}

struct Builder {
    schema: Schema,
    diags: Diagnostics,
    pragma: Pragma,
    /// Definitions with a syntax error: incomplete, so nothing more is said about them.
    broken: HashSet<String>,
}

impl Builder {
    fn module(&mut self, index: usize, module: LoadedModule) {
        let dialect = module.dialect;
        let mut doc: Option<DocComment> = None;
        for item in module.items {
            match item {
                Loaded::Doc(span) => {
                    self.without_definition(index, doc.take());
                    doc = Some(comment::read(&self.schema.sources, span, dialect, &mut self.diags));
                }
                Loaded::Directive => self.without_definition(index, doc.take()),
                Loaded::Expr(expr) => self.expr(index, dialect, &expr, doc.take()),
            }
        }
        self.without_definition(index, doc);
    }

    /// A comment with no definition behind it: free text, or a mistake.
    fn without_definition(&mut self, module: usize, doc: Option<DocComment>) {
        let Some(doc) = doc else { return };
        if let Some((name, span)) = &doc.symbol {
            self.diags.push(
                Diagnostic::error(
                    *span,
                    format!("the documentation of '{name}' is not followed by its definition"),
                )
                .help("put the comment directly before the definition"),
            );
        }
        self.schema.modules[module].contents.push(Content::Text(doc));
    }

    fn expr(&mut self, module: usize, dialect: Dialect, expr: &Expr, doc: Option<DocComment>) {
        let mut lowering = Lowering {
            diags: &mut self.diags,
            pragma: &self.pragma,
            dialect,
            module,
            implicit: Vec::new(),
        };
        let definition = lowering.definition(expr, None);
        let implicit = lowering.implicit;
        let Some(mut definition) = definition else { return };
        if expr.broken {
            self.broken.insert(definition.name.clone());
        }
        self.attach(module, dialect, &mut definition, doc);
        self.insert(definition);
        implicit.into_iter().for_each(|d| self.insert(d));
    }

    fn attach(
        &mut self,
        module: usize,
        dialect: Dialect,
        definition: &mut Definition,
        doc: Option<DocComment>,
    ) {
        let name = &definition.name;
        let problem = match doc.as_ref().map(|d| d.symbol.as_ref()) {
            Some(Some((symbol, span))) if symbol != name => Some(
                Diagnostic::error(*span, format!("this comment documents '{symbol}'"))
                    .related(definition.span, format!("but '{name}' follows"))
                    .help(format!("write '@{name}:'")),
            ),
            Some(None) => doc.as_ref().map(|d| {
                Diagnostic::error(
                    definition.span,
                    format!("the comment before '{name}' does not document it"),
                )
                .related(d.span, "this comment")
                .help(format!("begin the comment with '@{name}:'"))
            }),
            None if self.pragma.doc_required => Some(
                Diagnostic::error(definition.span, format!("'{name}' has no documentation"))
                    .help("the pragma 'doc-required' asks for a comment before each definition"),
            ),
            _ => None,
        };
        if let Some(mut problem) = problem {
            if dialect == Dialect::Seed {
                problem.severity = Severity::Warning;
            }
            self.diags.push(problem);
        }
        let contents = &mut self.schema.modules[module].contents;
        contents.push(Content::Definition(name.clone()));
        definition.doc = doc;
    }

    fn insert(&mut self, definition: Definition) {
        if Builtin::from_name(&definition.name).is_some() {
            self.diags.push(
                Diagnostic::error(
                    definition.span,
                    format!("'{}' is a built-in type", definition.name),
                )
                .help("choose another name: types, commands and events share one namespace"),
            );
            return;
        }
        if let Some(first) = self.schema.definitions.get(&definition.name) {
            self.diags.push(
                Diagnostic::error(
                    definition.span,
                    format!("'{}' is already defined", definition.name),
                )
                .related(first.span, "first defined here")
                .help("types, commands and events share one namespace"),
            );
            return;
        }
        self.schema.definitions.insert(definition.name.clone(), definition);
    }
}

struct Checker<'a> {
    schema: &'a Schema,
    pragma: &'a Pragma,
    broken: &'a HashSet<String>,
    diags: &'a mut Diagnostics,
    /// The members of structs that are bases, without those they inherit, by identifier.
    own_names: HashMap<&'a str, HashMap<String, &'a Member>>,
}

/// What a type name turned out to be.
#[derive(Clone, Copy)]
enum Type<'a> {
    Builtin(Builtin),
    Defined(&'a Definition),
}

impl<'a> Checker<'a> {
    fn run(mut self) {
        for definition in self.schema.definitions.values() {
            if !self.broken.contains(&definition.name) {
                self.definition(definition);
            }
            self.documentation(definition);
        }
        self.recursion();
    }

    fn definition(&mut self, definition: &'a Definition) {
        match &definition.kind {
            DefinitionKind::Enum(e) => self.enumeration(e),
            DefinitionKind::Struct(s) => self.structure(definition, s),
            DefinitionKind::Union(u) => self.union(definition, u),
            DefinitionKind::Alternate(a) => self.alternate(a),
            DefinitionKind::Command(c) => self.command(definition, c),
            DefinitionKind::Event(e) => self.data(&e.data, e.boxed, "an event"),
        }
    }

    /// The type `ty` names; reported if there is none.
    fn resolve(&mut self, ty: &TypeRef, user: &str) -> Option<Type<'a>> {
        if let Some(builtin) = Builtin::from_name(&ty.name) {
            return Some(Type::Builtin(builtin));
        }
        match self.schema.definitions.get(&ty.name) {
            Some(Definition {
                kind: DefinitionKind::Command(_) | DefinitionKind::Event(_),
                span,
                ..
            }) => {
                self.diags.push(
                    Diagnostic::error(ty.span, format!("{user}: '{}' is not a type", ty.name))
                        .related(*span, "it is defined here"),
                );
                None
            }
            Some(definition) => Some(Type::Defined(definition)),
            None => {
                let mut diag = Diagnostic::error(
                    ty.span,
                    format!("{user} uses the unknown type '{}'", ty.name),
                );
                // Looking for similar names is slow; a file of nothing but errors can do without.
                if self.diags.list.len() < 100 {
                    let names = self.schema.definitions.keys().map(String::as_str);
                    let names = names.chain(Builtin::ALL.map(Builtin::name));
                    if let Some(near) = nearest(&ty.name, names) {
                        diag = diag.help(format!("did you mean '{near}'?"));
                    }
                }
                self.diags.push(diag);
                None
            }
        }
    }

    fn is_broken(&self, name: &str) -> bool {
        self.broken.contains(name)
    }

    fn enumeration(&mut self, e: &Enum) {
        let mut seen: HashMap<String, &EnumMember> = HashMap::new();
        for member in &e.members {
            if let Some(first) = seen.get(&identifier(&member.name)) {
                self.diags.push(
                    Diagnostic::error(member.span, clash("value", &member.name, &first.name))
                        .related(first.span, "given here"),
                );
            } else {
                seen.insert(identifier(&member.name), member);
            }
        }
    }

    fn structure(&mut self, definition: &'a Definition, s: &'a Struct) {
        if let Some(base) = &s.base
            && self.base_struct(base)
        {
            let mut depth = 0;
            let mut next = Some(base.name.as_str());
            while let Some(name) = next
                && depth <= MAX_BASES
            {
                depth += 1;
                next = self.base_of(name);
            }
            if depth > MAX_BASES && !self.base_cycle(&definition.name) {
                self.diags
                    .error(base.span, format!("more than {MAX_BASES} structs in a chain of bases"));
            }
        }
        self.members(&s.members, "member");
        self.clashes(s.members.iter());
        if !self.base_cycle(&definition.name) {
            self.inherited_clashes(s);
        }
    }

    /// Reports members that a base has already.
    fn inherited_clashes(&mut self, s: &'a Struct) {
        let mut next = s.base.as_ref();
        for _ in 0..MAX_BASES {
            let Some(base) = next.and_then(|b| self.schema.definitions.get(&b.name)) else {
                return;
            };
            let DefinitionKind::Struct(inherited) = &base.kind else { return };
            let names = self.own_names.entry(&base.name).or_insert_with(|| {
                inherited.members.iter().map(|m| (identifier(&m.name), m)).collect()
            });
            for member in &s.members {
                if let Some(first) = names.get(&identifier(&member.name)) {
                    let problem = clash("member", &member.name, &first.name);
                    self.diags.push(
                        Diagnostic::error(member.span, problem)
                            .related(first.span, "inherited from here"),
                    );
                }
            }
            next = inherited.base.as_ref();
        }
    }

    fn base_of(&self, name: &str) -> Option<&'a str> {
        match &self.schema.definitions.get(name)?.kind {
            DefinitionKind::Struct(s) => s.base.as_ref().map(|b| b.name.as_str()),
            _ => None,
        }
    }

    /// Whether the bases of `name` lead back to it.
    fn base_cycle(&self, name: &str) -> bool {
        let mut next = self.base_of(name);
        for _ in 0..=MAX_BASES {
            match next {
                Some(n) if n == name => return true,
                Some(n) => next = self.base_of(n),
                None => return false,
            }
        }
        false
    }

    fn base_struct(&mut self, base: &TypeRef) -> bool {
        let Some(ty) = self.resolve(base, "'base'") else { return false };
        if let Type::Defined(Definition { kind: DefinitionKind::Struct(_), .. }) = ty {
            return true;
        }
        self.diags.push(
            Diagnostic::error(base.span, format!("'base' requires a struct, not {}", describe(ty)))
                .help("only the members of a struct can be inherited"),
        );
        false
    }

    fn members(&mut self, members: &[Member], what: &str) {
        for member in members {
            self.resolve(&member.ty, &format!("{what} '{}'", member.name));
        }
    }

    /// Reports members whose names are the same as identifiers.
    fn clashes<'m>(&mut self, members: impl Iterator<Item = &'m Member>) {
        let mut seen: HashMap<String, &Member> = HashMap::new();
        for member in members {
            if let Some(first) = seen.get(&identifier(&member.name)) {
                let diag =
                    Diagnostic::error(member.span, clash("member", &member.name, &first.name));
                self.diags.push(diag.related(first.span, "given here"));
            } else {
                seen.insert(identifier(&member.name), member);
            }
        }
    }

    fn union(&mut self, definition: &'a Definition, u: &'a Union) {
        let base_ok = match &u.base {
            Base::Named(base) => self.base_struct(base) && !self.is_broken(&base.name),
            Base::Members(members) => {
                self.members(members, "base member");
                true
            }
        };
        let base = self.schema.base_members(u);
        if let Base::Members(members) = &u.base {
            self.clashes(members.iter());
        }
        let values = if base_ok { self.discriminator(u, &base) } else { None };
        if values.is_some_and(|e| e.members.is_empty()) {
            self.diags.push(
                Diagnostic::error(u.discriminator_span, "this union has no branches")
                    .help("the enum of the discriminator needs at least one value"),
            );
        }
        let known: Option<HashSet<&str>> =
            values.map(|e| e.members.iter().map(|m| m.name.as_str()).collect());
        let base_names: HashMap<String, &Member> =
            base.iter().map(|m| (identifier(&m.name), *m)).collect();
        // A type is compared with the base once, however many branches have it.
        let mut compared = HashSet::from([definition.name.as_str()]);
        for branch in &u.branches {
            if let (Some(values), Some(known)) = (values, &known)
                && !known.contains(branch.name.as_str())
            {
                let names = values.members.iter().map(|v| v.name.as_str());
                let help = match nearest(&branch.name, names.clone()) {
                    Some(near) => format!("did you mean '{near}'?"),
                    None => format!("the values are {}", list(names)),
                };
                self.diags.push(
                    Diagnostic::error(
                        branch.span,
                        format!("branch '{}' is not a value of the discriminator", branch.name),
                    )
                    .help(help),
                );
            }
            self.branch(branch, &base_names, &mut compared);
        }
    }

    /// The enumeration of a union's discriminator.
    fn discriminator(&mut self, u: &'a Union, base: &[&'a Member]) -> Option<&'a Enum> {
        if u.discriminator.is_empty() {
            return None;
        }
        let span = u.discriminator_span;
        let Some(tag) = base.iter().find(|m| m.name == u.discriminator) else {
            let names = base.iter().map(|m| m.name.as_str());
            let mut diag = Diagnostic::error(
                span,
                format!("the discriminator '{}' is not a member of the base", u.discriminator),
            );
            if let Some(near) = nearest(&u.discriminator, names) {
                diag = diag.help(format!("did you mean '{near}'?"));
            }
            self.diags.push(diag);
            return None;
        };
        if tag.optional {
            self.diags.push(
                Diagnostic::error(span, format!("the discriminator '{}' is optional", tag.name))
                    .related(tag.span, "remove the '*' here"),
            );
        }
        if tag.condition.is_some() {
            self.diags.push(
                Diagnostic::error(span, format!("the discriminator '{}' is conditional", tag.name))
                    .related(tag.span, "remove the 'if' here"),
            );
        }
        let values = self.schema.enumeration(&tag.ty.name).filter(|_| !tag.ty.array);
        if values.is_none() && self.schema.definitions.contains_key(&tag.ty.name)
            || tag.ty.array
            || Builtin::from_name(&tag.ty.name).is_some()
        {
            self.diags.push(
                Diagnostic::error(
                    span,
                    format!("the discriminator '{}' is not of an enum type", tag.name),
                )
                .related(tag.ty.span, format!("its type is '{}'", tag.ty.name)),
            );
        }
        values
    }

    fn branch(
        &mut self,
        branch: &'a Branch,
        base: &HashMap<String, &'a Member>,
        compared: &mut HashSet<&'a str>,
    ) {
        let user = format!("branch '{}'", branch.name);
        let Some(ty) = self.resolve(&branch.ty, &user) else { return };
        match ty {
            Type::Defined(d)
                if matches!(d.kind, DefinitionKind::Struct(_) | DefinitionKind::Union(_)) =>
            {
                for member in self.flattened(d, compared) {
                    if let Some(first) = base.get(&identifier(&member.name)) {
                        let problem = clash("member", &member.name, &first.name);
                        self.diags.push(
                            Diagnostic::error(
                                branch.span,
                                format!("{user}: {problem} of the base"),
                            )
                            .related(member.span, "member of the branch")
                            .related(first.span, "member of the base"),
                        );
                    }
                }
            }
            other => self.diags.push(
                Diagnostic::error(branch.ty.span, format!("{user} cannot use {}", describe(other)))
                    .help("the branches of a union are structs"),
            ),
        }
    }

    /// All members that an object of this type may have, but for those of types in `seen`.
    fn flattened(&self, d: &'a Definition, seen: &mut HashSet<&'a str>) -> Vec<&'a Member> {
        let mut members = Vec::new();
        let mut open = vec![d];
        while let Some(d) = open.pop() {
            if !seen.insert(&d.name) {
                continue;
            }
            match &d.kind {
                DefinitionKind::Struct(_) => members.extend(self.schema.all_members(&d.name)),
                DefinitionKind::Union(u) => {
                    members.extend(self.schema.base_members(u));
                    open.extend(u.branches.iter().filter_map(|b| self.schema.get(&b.ty.name)));
                }
                _ => {}
            }
        }
        members
    }

    fn alternate(&mut self, alternate: &'a Alternate) {
        let mut seen: Vec<(Json, &Branch)> = Vec::new();
        for branch in &alternate.branches {
            let user = format!("branch '{}'", branch.name);
            let Some(ty) = self.resolve(&branch.ty, &user) else { continue };
            let form = if branch.ty.array { Some(Json::Array) } else { self.json(ty) };
            let Some(form) = form else {
                self.diags.push(
                    Diagnostic::error(
                        branch.ty.span,
                        format!("{user} cannot use {}", describe(ty)),
                    )
                    .help("an alternate chooses by the JSON type, which this does not have"),
                );
                continue;
            };
            if let Some((_, first)) = seen.iter().find(|(other, _)| self.confusable(form, *other)) {
                self.diags.push(
                    Diagnostic::error(
                        branch.span,
                        format!("branch '{}' can't be told apart from '{}'", branch.name, first.name),
                    )
                    .related(first.span, format!("its type is '{}'", first.ty.name))
                    .help("each branch needs a JSON type of its own; strings also look like numbers and booleans"),
                );
            } else {
                seen.push((form, branch));
            }
        }
    }

    fn json(&self, ty: Type<'a>) -> Option<Json<'a>> {
        Some(match ty {
            Type::Builtin(Builtin::Str) => Json::Str,
            Type::Builtin(Builtin::QType) => Json::Enum(None),
            Type::Builtin(Builtin::Bool) => Json::Bool,
            Type::Builtin(Builtin::Null) => Json::Null,
            Type::Builtin(Builtin::Any) => return None,
            Type::Builtin(_) => Json::Number,
            Type::Defined(d) => match &d.kind {
                DefinitionKind::Enum(e) => Json::Enum(Some(e)),
                DefinitionKind::Struct(_) | DefinitionKind::Union(_) => Json::Object,
                _ => return None,
            },
        })
    }

    /// Whether a value could be of either form; option syntax writes all scalars as strings.
    fn confusable(&self, a: Json<'_>, b: Json<'_>) -> bool {
        let looks_like = |e: Option<&Enum>, test: fn(&str) -> bool| {
            e.is_some_and(|e| e.members.iter().any(|m| test(&m.name)))
        };
        match (a, b) {
            (Json::Enum(e), Json::Bool) | (Json::Bool, Json::Enum(e)) => {
                looks_like(e, |name| matches!(name, "on" | "off"))
            }
            (Json::Enum(e), Json::Number) | (Json::Number, Json::Enum(e)) => {
                looks_like(e, |name| {
                    name.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'))
                })
            }
            (Json::Str | Json::Enum(_), Json::Str | Json::Enum(_)) => true,
            (Json::Str, Json::Bool | Json::Number) | (Json::Bool | Json::Number, Json::Str) => true,
            (a, b) => std::mem::discriminant(&a) == std::mem::discriminant(&b),
        }
    }

    fn command(&mut self, definition: &Definition, command: &'a Command) {
        self.data(&command.data, command.boxed, "a command");
        let Some(returns) = &command.returns else { return };
        let Some(ty) = self.resolve(returns, "'returns'") else { return };
        let object = matches!(
            ty,
            Type::Defined(Definition {
                kind: DefinitionKind::Struct(_) | DefinitionKind::Union(_),
                ..
            })
        );
        let seed = self.schema.modules[definition.module].dialect == Dialect::Seed;
        if !object && !seed && !self.pragma.command_returns.contains(&definition.name) {
            let array = if returns.array { "an array of " } else { "" };
            self.diags.push(
                Diagnostic::error(
                    returns.span,
                    format!("a command's 'returns' cannot be {array}{}", describe(ty)),
                )
                .help(format!(
                    "return a struct, which can grow; or list '{}' in the pragma \
                     'command-returns-exceptions'",
                    definition.name
                )),
            );
        }
    }

    fn data(&mut self, data: &'a Data, boxed: bool, owner: &str) {
        match data {
            Data::None => {}
            Data::Members(members) => {
                self.members(members, "member");
                self.clashes(members.iter());
            }
            Data::Type(ty) => {
                let Some(found) = self.resolve(ty, "'data'") else { return };
                match found {
                    Type::Defined(Definition { kind: DefinitionKind::Struct(_), .. }) => {}
                    Type::Defined(Definition { kind: DefinitionKind::Union(_), .. }) => {
                        if !boxed {
                            self.diags.push(
                                Diagnostic::error(
                                    ty.span,
                                    format!("the 'data' of {owner} can be a union only if boxed"),
                                )
                                .help("add 'boxed': true"),
                            );
                        }
                    }
                    other => self.diags.push(
                        Diagnostic::error(
                            ty.span,
                            format!("the 'data' of {owner} cannot be {}", describe(other)),
                        )
                        .help("name a struct, or list the members in place"),
                    ),
                }
            }
        }
    }

    /// Reports types that contain themselves: through bases and branches, which would have
    /// endlessly many members, and through mandatory members, which would have no finite value.
    fn recursion(&mut self) {
        let schema = self.schema;
        let flat = |d: &'a Definition| -> Vec<&'a TypeRef> {
            match &d.kind {
                DefinitionKind::Struct(s) => s.base.iter().collect(),
                DefinitionKind::Union(u) => {
                    let base = match &u.base {
                        Base::Named(base) => Some(base),
                        Base::Members(_) => None,
                    };
                    base.into_iter().chain(u.branches.iter().map(|b| &b.ty)).collect()
                }
                _ => Vec::new(),
            }
        };
        let mandatory = |d: &'a Definition| -> Vec<&'a TypeRef> {
            let (base, members): (Option<&TypeRef>, &[Member]) = match &d.kind {
                DefinitionKind::Struct(s) => (s.base.as_ref(), &s.members),
                DefinitionKind::Union(Union { base: Base::Named(base), .. }) => (Some(base), &[]),
                DefinitionKind::Union(Union { base: Base::Members(members), .. }) => {
                    (None, members)
                }
                _ => (None, &[]),
            };
            let members = members.iter().filter(|m| !m.optional && !m.ty.array).map(|m| &m.ty);
            base.into_iter().chain(members).collect()
        };
        let mut reported = HashSet::new();
        for (edges, why) in [
            (&flat as &dyn Fn(&'a Definition) -> Vec<&'a TypeRef>, "its members would never end"),
            (&mandatory, "make a member optional or an array, or no value can be finite"),
        ] {
            for (definition, through) in cycles(schema, edges) {
                if reported.insert(&definition.name) {
                    self.diags.push(
                        Diagnostic::error(
                            definition.span,
                            format!("'{}' contains itself", definition.name),
                        )
                        .related(through.span, "through this")
                        .help(why),
                    );
                }
            }
        }
    }

    fn documentation(&mut self, definition: &'a Definition) {
        let Some(doc) = &definition.doc else { return };
        let seed = self.schema.modules[definition.module].dialect == Dialect::Seed;
        let severity = if seed { Severity::Warning } else { Severity::Error };
        let mut names: Vec<&str> = Vec::new();
        let mut features: Vec<&Feature> = definition.features.iter().collect();
        let mut add_members = |members: &'a [Member]| {
            names.extend(members.iter().map(|m| m.name.as_str()));
            features.extend(members.iter().flat_map(|m| &m.features));
        };
        match &definition.kind {
            DefinitionKind::Enum(e) => {
                names.extend(e.members.iter().map(|m| m.name.as_str()));
                features.extend(e.members.iter().flat_map(|m| &m.features));
            }
            DefinitionKind::Struct(s) => add_members(&s.members),
            DefinitionKind::Union(u) => {
                if let Base::Members(members) = &u.base {
                    add_members(members);
                }
                names.extend(u.branches.iter().map(|b| b.name.as_str()));
            }
            DefinitionKind::Alternate(a) => {
                names.extend(a.branches.iter().map(|b| b.name.as_str()))
            }
            DefinitionKind::Command(Command { data, .. })
            | DefinitionKind::Event(Event { data, .. }) => {
                if let Data::Members(members) = data {
                    add_members(members);
                }
            }
        }
        let described: HashSet<&str> = doc.features.iter().map(|f| f.name.as_str()).collect();
        let feature_names: Vec<&str> = features.iter().map(|f| f.name.as_str()).collect();
        if !self.broken.contains(&definition.name) {
            self.documented(definition, &doc.members, "member", &names, severity);
            self.documented(definition, &doc.features, "feature", &feature_names, severity);
            for feature in features {
                if !described.contains(feature.name.as_str()) {
                    self.diags.push(
                        Diagnostic::error(
                            feature.span,
                            format!("feature '{}' is not documented", feature.name),
                        )
                        .help(format!("describe '@{}:' below 'Features:'", feature.name)),
                    );
                }
            }
        }
        if matches!(definition.kind, DefinitionKind::Command(_)) {
            return;
        }
        for section in &doc.sections {
            if matches!(section.tag.as_str(), "Returns" | "Errors") {
                self.diags.push(Diagnostic {
                    severity,
                    ..Diagnostic::error(
                        section.span,
                        format!("'{}:' is only for commands", section.tag),
                    )
                });
            }
        }
    }

    /// Reports descriptions of what is not there. The seed writes paths into anonymous objects.
    fn documented(
        &mut self,
        definition: &Definition,
        entries: &[DocEntry],
        what: &str,
        names: &[&str],
        severity: Severity,
    ) {
        let known: HashSet<&str> = names.iter().copied().collect();
        for entry in entries {
            let in_anonymous = entry.name.rsplit_once('.').is_some_and(|(path, member)| {
                let owner = format!("{}.{path}", definition.name);
                self.schema.all_members(&owner).iter().any(|m| m.name == member)
            });
            if entry.name.is_empty() || known.contains(entry.name.as_str()) || in_anonymous {
                continue;
            }
            let mut diag = Diagnostic::error(
                entry.span,
                format!("the documented {what} '{}' does not exist", entry.name),
            )
            .related(definition.span, "in this definition");
            if let Some(near) = nearest(&entry.name, names.iter().copied()) {
                diag = diag.help(format!("did you mean '{near}'?"));
            }
            diag.severity = severity;
            self.diags.push(diag);
        }
    }
}

/// The JSON form of a value, as an alternate sees it.
#[derive(Clone, Copy)]
enum Json<'a> {
    Str,
    Enum(Option<&'a Enum>),
    Number,
    Bool,
    Null,
    Object,
    Array,
}

fn describe(ty: Type<'_>) -> String {
    match ty {
        Type::Builtin(b) => format!("the built-in type '{}'", b.name()),
        Type::Defined(d) => format!("the {} '{}'", d.kind.name(), d.name),
    }
}

fn clash(what: &str, name: &str, first: &str) -> String {
    if name == first {
        format!("duplicate {what} '{name}'")
    } else {
        format!("{what} '{name}' collides with '{first}'")
    }
}

fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    const SHOWN: usize = 12;
    let names: Vec<&str> = names.collect();
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text += ", …";
    }
    text
}

/// Definitions that reach themselves, each with the use that closes its cycle; one for each cycle
/// found by a depth-first walk. The walk keeps its own stack: chains may be long.
fn cycles<'a>(
    schema: &'a Schema,
    edges: &dyn Fn(&'a Definition) -> Vec<&'a TypeRef>,
) -> Vec<(&'a Definition, &'a TypeRef)> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Open,
        Done,
    }
    let mut state = vec![State::New; schema.definitions.len()];
    let mut found = Vec::new();
    for start in 0..state.len() {
        if state[start] != State::New {
            continue;
        }
        let mut stack = vec![(start, edges(&schema.definitions[start]), 0)];
        state[start] = State::Open;
        while let Some((node, out, next)) = stack.last_mut() {
            let Some(&ty) = out.get(*next) else {
                state[*node] = State::Done;
                stack.pop();
                continue;
            };
            *next += 1;
            let Some(target) = schema.definitions.get_index_of(&ty.name) else { continue };
            match state[target] {
                State::New => {
                    state[target] = State::Open;
                    stack.push((target, edges(&schema.definitions[target]), 0));
                }
                State::Open => found.push((&schema.definitions[target], ty)),
                State::Done => {}
            }
        }
    }
    found
}
