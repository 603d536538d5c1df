//! Rust names for the schema's.

/// Words that can be identifiers only in their raw form.
const KEYWORDS: [&str; 38] = [
    "as", "async", "await", "break", "const", "continue", "dyn", "else", "enum", "extern", "false",
    "fn", "for", "gen", "if", "impl", "in", "let", "loop", "match", "mod", "move", "mut", "pub",
    "ref", "return", "static", "struct", "trait", "true", "try", "type", "unsafe", "use", "where",
    "while", "yield", "abstract",
];

/// `query-block` and `RESET` as `QueryBlock` and `Reset`; `VncInfo` stays.
pub(crate) fn camel(name: &str) -> String {
    let mut out = String::new();
    for word in name.split(['-', '_', '.', ' ']).filter(|w| !w.is_empty()) {
        let shouted = !word.contains(|c: char| c.is_ascii_lowercase());
        let mut chars = word.chars();
        out.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        if shouted {
            out.extend(chars.map(|c| c.to_ascii_lowercase()));
        } else {
            out.extend(chars);
        }
    }
    match out.as_str() {
        // The one keyword in this spelling.
        "Self" => "Self_".to_owned(),
        name if name.starts_with(|c: char| c.is_ascii_digit()) => format!("N{name}"),
        _ => out,
    }
}

/// The Rust type for a schema type. Where generated code itself has the name, `Type` is added.
pub(crate) fn type_name(name: &str) -> String {
    const TAKEN: [&str; 15] = [
        "Box",
        "Command",
        "CommandSpec",
        "Commands",
        "Default",
        "Err",
        "Event",
        "None",
        "Ok",
        "Option",
        "QmpError",
        "Result",
        "Some",
        "String",
        "Vec",
    ];
    let name = camel(name);
    if TAKEN.contains(&name.as_str()) { name + "Type" } else { name }
}

/// The field or method for `name`, in lower case; a keyword becomes a raw identifier.
pub(crate) fn snake(name: &str) -> String {
    raw(&name.to_ascii_lowercase().replace(['-', '.'], "_"))
}

/// Fields of a struct for the member names: where members differ only in case, those with capitals
/// keep them.
pub(crate) fn fields<'n>(names: impl IntoIterator<Item = &'n str>) -> Vec<String> {
    let names: Vec<&str> = names.into_iter().collect();
    let snakes: Vec<String> = names.iter().map(|n| snake(n)).collect();
    let field = |(name, small): (&&str, &String)| {
        let shared = snakes.iter().filter(|s| *s == small).count() > 1;
        if shared { raw(&name.replace(['-', '.'], "_")) } else { small.clone() }
    };
    names.iter().zip(&snakes).map(field).collect()
}

fn raw(name: &str) -> String {
    match name {
        // These cannot be raw identifiers.
        "self" | "super" | "crate" => format!("{name}_"),
        name if KEYWORDS.contains(&name) => format!("r#{name}"),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_rust_names() {
        assert_eq!(camel("query-block"), "QueryBlock");
        assert_eq!(camel("BALLOON_CHANGE"), "BalloonChange");
        assert_eq!(camel("VncInfo"), "VncInfo");
        assert_eq!(camel("3d-body"), "N3dBody");
        assert_eq!(camel("self"), "Self_");
        assert_eq!(type_name("String"), "StringType");
        assert_eq!(snake("io-status"), "io_status");
        assert_eq!(snake("UUID"), "uuid");
        assert_eq!(snake("type"), "r#type");
        assert_eq!(snake("self"), "self_");
    }

    #[test]
    fn fields_that_differ_in_case_keep_it() {
        assert_eq!(fields(["pc", "PC", "CPU", "thread_id"]), ["pc", "PC", "cpu", "thread_id"]);
        assert_eq!(fields(["PC", "pc"]), ["PC", "pc"]);
    }
}
