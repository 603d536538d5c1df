//! The schema covers the seed: every command, type, member, optionality and enum value.
//!
//! Types may have grown since: new members, new values, optional arguments. Where the seed has an
//! anonymous object, the schema may have a named struct of the same members.

use std::path::Path;

use qapi::ir::*;

fn load(name: &str) -> Schema {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schema").join(name);
    let outcome = qapi::check_file(path);
    assert!(outcome.is_ok(), "{}", outcome.render(false));
    outcome.schema
}

/// A member: its name, whether it is optional, its type.
type Shape = (String, bool, TypeRef);

struct Comparison {
    seed: Schema,
    ours: Schema,
    problems: Vec<String>,
    compared: usize,
}

impl Comparison {
    fn members(&mut self, owner: &str, seed: &[Shape], ours: &[Shape]) {
        for (name, optional, ty) in seed {
            self.compared += 1;
            match ours.iter().find(|(n, ..)| n == name) {
                None => self.problems.push(format!("{owner} lacks '{name}'")),
                Some((_, o, t)) => {
                    if o != optional {
                        self.problems
                            .push(format!("{owner}.{name}: optional is {o}, not {optional}"));
                    }
                    self.types(&format!("{owner}.{name}"), ty, t);
                }
            }
        }
    }

    /// Anonymous types are compared by structure, all others by name; their definitions are
    /// compared on their own.
    fn types(&mut self, place: &str, seed: &TypeRef, ours: &TypeRef) {
        if self.seed.get(&seed.name).is_some_and(|d| d.implicit) {
            let theirs = members_of(&self.seed, &seed.name);
            let mine = members_of(&self.ours, &ours.name);
            self.members(place, &theirs, &mine);
        } else if seed.name != ours.name || seed.array != ours.array {
            self.problems.push(format!("{place} has type {} not {}", ours.name, seed.name));
        }
    }

    fn command(&mut self, name: &str) {
        let (DefinitionKind::Command(theirs), DefinitionKind::Command(mine)) =
            (&self.seed.definitions[name].kind, &self.ours.definitions[name].kind)
        else {
            panic!("the caller knows the kinds")
        };
        let returns = (theirs.returns.clone(), mine.returns.clone());
        let (theirs, mine) = (arguments(theirs), arguments(mine));
        self.members(name, &theirs, &mine);
        for (argument, optional, _) in &mine {
            if !optional && !theirs.iter().any(|(n, ..)| n == argument) {
                self.problems.push(format!("{name} demands the argument '{argument}'"));
            }
        }
        match returns {
            (Some(theirs), Some(mine)) => self.types(name, &theirs, &mine),
            (None, None) => {}
            _ => self.problems.push(format!("{name} differs in whether it returns something")),
        }
    }
}

fn plain(members: &[&Member]) -> Vec<Shape> {
    members.iter().map(|m| (m.name.clone(), m.optional, m.ty.clone())).collect()
}

fn members_of(schema: &Schema, name: &str) -> Vec<Shape> {
    plain(&schema.all_members(name))
}

fn arguments(command: &Command) -> Vec<Shape> {
    match &command.data {
        Data::Members(members) => plain(&members.iter().collect::<Vec<_>>()),
        Data::None => Vec::new(),
        Data::Type(_) => panic!("the seed has no commands with a type for 'data'"),
    }
}

#[test]
fn schema_covers_the_seed() {
    let (seed, ours) = (load("seed/qapi-schema.json"), load("rhea.json"));
    let mut c = Comparison { seed, ours, problems: Vec::new(), compared: 0 };
    let names: Vec<String> =
        c.seed.definitions.values().filter(|d| !d.implicit).map(|d| d.name.clone()).collect();
    let mut commands = 0;
    for name in &names {
        if c.ours.get(name).is_none() {
            c.problems.push(format!("'{name}' is missing"));
            continue;
        }
        match (&c.seed.definitions[name].kind, &c.ours.definitions[name].kind) {
            (DefinitionKind::Enum(theirs), DefinitionKind::Enum(mine)) => {
                for value in &theirs.members {
                    c.compared += 1;
                    if !mine.members.iter().any(|m| m.name == value.name) {
                        c.problems.push(format!("{name} lacks the value '{}'", value.name));
                    }
                }
            }
            (DefinitionKind::Struct(_), DefinitionKind::Struct(_)) => {
                let (theirs, mine) = (members_of(&c.seed, name), members_of(&c.ours, name));
                c.members(name, &theirs, &mine);
            }
            (DefinitionKind::Command(_), DefinitionKind::Command(_)) => {
                commands += 1;
                c.command(name);
            }
            _ => c.problems.push(format!("'{name}' is of another kind")),
        }
    }
    assert!(c.problems.is_empty(), "{}", c.problems.join("\n"));
    // The comparison has really seen the seed.
    assert_eq!((names.len() - commands, commands), (22, 20));
    assert_eq!(c.compared, 106);
}

#[test]
fn schema_has_what_clients_of_today_ask_for() {
    let ours = load("rhea.json");
    for command in [
        "qmp_capabilities",
        "balloon",
        "cont",
        "query-cpus-fast",
        "query-events",
        "query-qmp-schema",
        "query-target",
    ] {
        assert!(matches!(ours.definitions[command].kind, DefinitionKind::Command(_)), "{command}");
    }
    for event in ["RESUME", "STOP", "RESET", "POWERDOWN", "SHUTDOWN", "BALLOON_CHANGE"] {
        assert!(matches!(ours.definitions[event].kind, DefinitionKind::Event(_)), "{event}");
    }
}
