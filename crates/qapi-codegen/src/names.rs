//! Rust names for the schema's.

/// Words that cannot be identifiers; all of them may be raw identifiers.
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
    if out.starts_with(|c: char| c.is_ascii_digit()) { format!("N{out}") } else { out }
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
    if KEYWORDS.contains(&name) { format!("r#{name}") } else { name.to_owned() }
}
