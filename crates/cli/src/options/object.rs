//! `-object`: memory backends.

use ::options::{OptionError, Properties};

use super::Builder;
use super::machine::check_memory;

/// The kinds of objects.
const KINDS: &[&str] = &["memory-backend-ram"];

/// RAM with an id (`memory-backend-ram`), for `-machine memory-backend=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryBackend {
    id: String,
    size: u64,
    /// Leave it out of core dumps; share pages with others; make all pages at once.
    no_core_dump: bool,
    merge: bool,
    preallocate: bool,
}

pub(super) fn object(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-object", value, Some("qom-type"))?;
    let kind = options.require("qom-type")?;
    if !KINDS.contains(&kind.as_str()) {
        return Err(OptionError::unknown("-object: invalid object type", &kind, KINDS));
    }
    let id = options.take_id("id")?.ok_or_else(|| options.missing("id"))?;
    if builder.memory_backends.iter().any(|other| other.id == id) {
        return Err(OptionError::new(format!("-object: attempt to add duplicate object '{id}'")));
    }
    let size = options.take_size("size", 1)?.ok_or_else(|| options.missing("size"))?;
    let backend = MemoryBackend {
        id,
        size,
        no_core_dump: options.take_bool("dump")? == Some(false),
        merge: options.take_bool("merge")?.unwrap_or(false),
        preallocate: options.take_bool("prealloc")?.unwrap_or(false),
    };
    // One thread is enough, no other process could see shared pages, and nothing is bound to a node.
    options.take_number::<u32>("prealloc-threads")?;
    options.take_bool("share")?;
    options.take_bool("x-use-canonical-path-for-ramblock-id")?;
    options.take_choice("policy", &[("default", ())])?;
    options.finish()?;
    builder.memory_backends.push(backend);
    Ok(())
}

/// Gives the machine the memory backend that `-machine memory-backend=` names.
pub(super) fn finish(builder: &mut Builder) -> Result<(), OptionError> {
    let Some(id) = builder.memory_backend.take() else { return Ok(()) };
    let Some(backend) = builder.memory_backends.iter().find(|b| b.id == id).cloned() else {
        return Err(OptionError::new(format!("Memory backend '{id}' not found")));
    };
    let machine = builder.machine();
    if machine.memory != 0 && machine.memory != backend.size {
        return Err(OptionError::new(
            "Size specified by -m option must match size of explicitly specified 'memory-backend' \
             property",
        ));
    }
    check_memory(&format!("-object {id}: size={}", backend.size), backend.size)?;
    if !backend.size.is_multiple_of(1 << 20) {
        return Err(OptionError::new(format!(
            "-object {id}: size={}: a machine needs whole MiB of memory",
            backend.size
        )));
    }
    machine.memory = backend.size;
    machine.board.no_core_dump |= backend.no_core_dump;
    machine.board.merge_memory |= backend.merge;
    machine.board.preallocate = backend.preallocate;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::{Action, parse};

    fn memory(line: &str) -> Result<(u64, bool), String> {
        let args = line.split_whitespace().map(str::to_owned);
        match parse(args).map_err(|e| e.to_string())? {
            Action::Run(config) => Ok((config.machine.memory, config.machine.board.no_core_dump)),
            Action::Print(text) => Err(text),
        }
    }

    #[test]
    fn memory_can_be_an_object() {
        let json = r#"{"qom-type":"memory-backend-ram","id":"pc.ram","size":268435456}"#;
        for line in [
            format!("-machine pc,memory-backend=pc.ram -m size=262144k -object {json}"),
            format!("-object {json} -machine memory-backend=pc.ram"),
        ] {
            assert_eq!(memory(&line), Ok((256 << 20, false)), "{line}");
        }
        let line = "-object memory-backend-ram,id=m,size=1G,dump=off,merge=on,prealloc=on,share=on \
                    -machine memory-backend=m";
        assert_eq!(memory(line), Ok((1 << 30, true)));
        // One that nobody names is there, and not in use.
        assert_eq!(memory("-object memory-backend-ram,id=m,size=1G"), Ok((128 << 20, false)));
    }

    #[test]
    fn wrong_objects_are_refused() {
        for (line, message) in [
            ("-machine memory-backend=pc.ram", "Memory backend 'pc.ram' not found"),
            ("-object memory-backend-rom,id=m,size=1G", "did you mean 'memory-backend-ram'"),
            ("-object memory-backend-ram,size=1G", "'id' is missing"),
            ("-object memory-backend-ram,id=m", "'size' is missing"),
            ("-object memory-backend-ram,id=m,size=1G,colour=red", "'colour'"),
            (
                "-object memory-backend-ram,id=m,size=1G -object memory-backend-ram,id=m,size=1G",
                "attempt to add duplicate object 'm'",
            ),
            (
                "-object memory-backend-ram,id=m,size=1G -m 512 -machine memory-backend=m",
                "must match size of explicitly specified 'memory-backend'",
            ),
            ("-object memory-backend-ram,id=m,size=1 -machine memory-backend=m", "at least"),
            (
                "-object memory-backend-ram,id=m,size=33555456 -machine memory-backend=m",
                "whole MiB",
            ),
        ] {
            let refusal = memory(line).expect_err(line);
            assert!(refusal.contains(message), "{line}: {refusal}");
        }
    }
}
