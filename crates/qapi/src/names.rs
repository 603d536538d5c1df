//! The rules for names.

/// A name taken apart: `__rfqdn_` of a downstream vendor, `x-` of an experiment, and the stem.
pub(crate) struct Name<'a> {
    pub(crate) stem: &'a str,
}

/// Takes a valid name apart: a letter, then letters, digits, `-` and `_`, behind optional
/// `__vendor_` and `x-`.
pub(crate) fn split(name: &str) -> Option<Name<'_>> {
    let mut stem = name;
    if let Some(rest) = stem.strip_prefix("__") {
        // The vendor's reverse domain name may hold '-' and '.'; it ends at the first '_'.
        let end = rest.find('_')?;
        let vendor = &rest[..end];
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        if vendor.is_empty() || !vendor.chars().all(plain) {
            return None;
        }
        stem = &rest[end + 1..];
    }
    if let Some(rest) = stem.strip_prefix("x-").or_else(|| stem.strip_prefix("X-"))
        && is_stem(rest)
    {
        stem = rest;
    }
    is_stem(stem).then_some(Name { stem })
}

fn is_stem(stem: &str) -> bool {
    stem.starts_with(|c: char| c.is_ascii_alphabetic())
        && stem.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

/// The name as an identifier: what decides whether two names collide.
pub(crate) fn identifier(name: &str) -> String {
    name.chars().map(|c| if matches!(c, '-' | '.') { '_' } else { c }).collect()
}

/// `CamelCase`: a capital first, no separators, a small letter somewhere.
pub(crate) fn is_camel(stem: &str) -> bool {
    stem.starts_with(|c: char| c.is_ascii_uppercase())
        && stem.chars().all(|c| c.is_ascii_alphanumeric())
        && stem.chars().any(|c| c.is_ascii_lowercase())
}

/// The candidate that is most likely meant by `name`, if any is near enough.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // Comparing is quadratic in the length: what is not a plausible name is not compared.
    if name.len() > 64 {
        return None;
    }
    candidates
        .into_iter()
        .filter(|c| c.len() <= 64 && c.len().abs_diff(name.len()) <= 3)
        .map(|c| (strsim::damerau_levenshtein(&name.to_lowercase(), &c.to_lowercase()), c))
        .filter(|(distance, c)| *distance <= 1 + c.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}
