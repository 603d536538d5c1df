//! Configuration files (`-readconfig`).
//!
//! ```text
//! [group "id"]
//!   key = "value"
//! ```
//!
//! A section is the same as the option of its group's name with those keys, and `id` if the section has
//! one. Lines that begin with `#` are comments.

use crate::options::Builder;
use ::options::OptionError;

/// Groups and the options they stand for.
const GROUPS: &[(&str, &str)] = &[
    ("accel", "accel"),
    ("action", "action"),
    ("chardev", "chardev"),
    ("device", "device"),
    ("drive", "drive"),
    ("machine", "machine"),
    ("memory", "m"),
    ("mon", "mon"),
    ("name", "name"),
    ("smp-opts", "smp"),
];

struct Section {
    option: &'static str,
    parts: Vec<String>,
}

/// Applies the file's sections in order.
pub(crate) fn apply(builder: &mut Builder, file: &str, text: &str) -> Result<(), OptionError> {
    let mut section: Option<Section> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let wrong =
            |what: &str| OptionError::new(format!("-readconfig {file}:{}: {what}", number + 1));
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            let header = header.strip_suffix(']').ok_or_else(|| wrong("']' is missing"))?;
            end(builder, file, section.take())?;
            section = Some(open(header).map_err(|e| wrong(&e.to_string()))?);
            continue;
        }
        let (key, value) =
            line.split_once('=').ok_or_else(|| wrong("a line 'key = \"value\"' is expected"))?;
        let value = value.trim();
        let value = value
            .strip_prefix('"')
            .and_then(|v| v.strip_suffix('"'))
            .ok_or_else(|| wrong("the value needs double quotes"))?;
        section
            .as_mut()
            .ok_or_else(|| wrong("a [group] line must come first"))?
            .parts
            .push(format!("{}={}", key.trim(), value.replace(',', ",,")));
    }
    end(builder, file, section)
}

fn open(header: &str) -> Result<Section, OptionError> {
    let (group, id) = match header.split_once(char::is_whitespace) {
        None => (header, None),
        Some((group, id)) => {
            let id = id.trim().strip_prefix('"').and_then(|i| i.strip_suffix('"'));
            (group, Some(id.ok_or_else(|| OptionError::new("the id needs double quotes"))?))
        }
    };
    let names: Vec<&str> = GROUPS.iter().map(|g| g.0).collect();
    let option = GROUPS
        .iter()
        .find(|(name, _)| *name == group)
        .map(|(_, option)| *option)
        .ok_or_else(|| OptionError::unknown("unknown group", group, &names))?;
    let parts = id.map(|id| format!("id={}", id.replace(',', ",,"))).into_iter().collect();
    Ok(Section { option, parts })
}

fn end(builder: &mut Builder, file: &str, section: Option<Section>) -> Result<(), OptionError> {
    let Some(section) = section else { return Ok(()) };
    let item = crate::find(section.option).expect("every group stands for an option");
    (item.apply)(builder, &section.parts.join(","))
        .map_err(|e| OptionError::new(format!("-readconfig {file}: {e}")))
}
