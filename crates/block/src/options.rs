//! Options of `-drive`, as far as they concern the disk and not the device.

use serde_json::{Map, Value};

/// How the host caches a disk (`cache=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheMode {
    /// Bypass the host's page cache.
    pub direct: bool,
    /// Never make anything durable.
    pub no_flush: bool,
    /// The guest sees a volatile write cache; without it each write is durable when it ends.
    pub writeback: bool,
}

impl CacheMode {
    /// `cache=writeback`, the default.
    pub const WRITEBACK: Self = Self { direct: false, no_flush: false, writeback: true };

    /// The mode of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let mode = |direct, no_flush, writeback| Some(Self { direct, no_flush, writeback });
        match name {
            "writeback" => mode(false, false, true),
            "none" | "off" => mode(true, false, true),
            "writethrough" => mode(false, false, false),
            "directsync" => mode(true, false, false),
            "unsafe" => mode(false, true, true),
            _ => None,
        }
    }
}

/// What becomes of discard requests (`discard=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiscardMode {
    /// Nothing happens.
    #[default]
    Ignore,
    /// The space is freed on the host.
    Unmap,
}

/// What a failed request does (`rerror=`, `werror=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The guest is told.
    Report,
    /// The guest is told that it went well.
    Ignore,
    /// The machine stops if the host is full; the guest is told of other errors.
    Enospc,
    /// The machine stops.
    Stop,
}

impl OnError {
    /// The policy of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "report" => Some(Self::Report),
            "ignore" => Some(Self::Ignore),
            "enospc" => Some(Self::Enospc),
            "stop" => Some(Self::Stop),
            _ => None,
        }
    }
}

/// A `-drive` option that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionError(String);

/// How to open an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveOptions {
    /// Format, `raw`; `None` if it was not given.
    pub format: Option<String>,
    /// Refuse writes.
    pub read_only: bool,
    /// Caching on the host.
    pub cache: CacheMode,
    /// What becomes of discard requests.
    pub discard: DiscardMode,
    /// What a failed read does.
    pub rerror: OnError,
    /// What a failed write does.
    pub werror: OnError,
}

impl Default for DriveOptions {
    fn default() -> Self {
        Self {
            format: None,
            read_only: false,
            cache: CacheMode::WRITEBACK,
            discard: DiscardMode::Ignore,
            rerror: OnError::Report,
            werror: OnError::Enospc,
        }
    }
}

impl DriveOptions {
    /// Reads options: strings as from `key=value`, or the JSON types that they stand for.
    ///
    /// # Errors
    /// At the first option that is not known or has a bad value.
    pub fn parse(options: &Map<String, Value>) -> Result<Self, OptionError> {
        let mut parsed = Self::default();
        let mut native_io = None;
        // `cache=` is shorthand for its three parts, which win over it.
        if let Some(name) = options.get("cache") {
            let mode = name.as_str().and_then(CacheMode::from_name);
            parsed.cache = mode.ok_or_else(|| OptionError("invalid cache option".into()))?;
        }
        for (key, value) in options {
            let text = value.as_str().unwrap_or("");
            match key.as_str() {
                "cache" => {}
                "format" | "driver" => match text {
                    "raw" => parsed.format = Some("raw".into()),
                    other => return Err(OptionError(format!("Unknown driver '{other}'"))),
                },
                "readonly" | "read-only" => parsed.read_only = on_off("read-only", value)?,
                "cache.direct" => parsed.cache.direct = on_off(key, value)?,
                "cache.no-flush" => parsed.cache.no_flush = on_off(key, value)?,
                "cache.writeback" => parsed.cache.writeback = on_off(key, value)?,
                "discard" => {
                    parsed.discard = match text {
                        "ignore" | "off" => DiscardMode::Ignore,
                        "unmap" | "on" => DiscardMode::Unmap,
                        _ => return Err(OptionError("Invalid discard option".into())),
                    }
                }
                "aio" => match text {
                    "threads" => {}
                    "native" | "io_uring" => native_io = Some(text),
                    _ => return Err(OptionError("invalid aio option".into())),
                },
                "rerror" | "werror" => {
                    let write = key == "werror";
                    let action = OnError::from_name(text)
                        .filter(|&action| write || action != OnError::Enospc)
                        .ok_or_else(|| {
                            let kind = if write { "write" } else { "read" };
                            OptionError(format!("'{text}' invalid {kind} error action"))
                        })?;
                    if write {
                        parsed.werror = action;
                    } else {
                        parsed.rerror = action;
                    }
                }
                _ => {
                    return Err(OptionError(format!(
                        "Block format 'raw' does not support the option '{key}'"
                    )));
                }
            }
        }
        match native_io {
            Some("native") if !parsed.cache.direct => Err(OptionError(
                "aio=native was specified, but it requires cache.direct=on, which was not \
                 specified."
                    .into(),
            )),
            Some(aio) => Err(OptionError(format!(
                "aio={aio} was specified, but is not supported in this build; use aio=threads"
            ))),
            None => Ok(parsed),
        }
    }
}

fn on_off(key: &str, value: &Value) -> Result<bool, OptionError> {
    match (value, value.as_str()) {
        (Value::Bool(value), _) => Ok(*value),
        (_, Some("on" | "yes" | "true" | "y")) => Ok(true),
        (_, Some("off" | "no" | "false" | "n")) => Ok(false),
        _ => Err(OptionError(format!("Parameter '{key}' expects 'on' or 'off'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(options: Value) -> Result<DriveOptions, String> {
        let Value::Object(map) = options else { panic!("not an object") };
        DriveOptions::parse(&map).map_err(|e| e.to_string())
    }

    #[test]
    fn reads_options_and_refuses_what_it_does_not_know() {
        let options = parse(json!({
            "format": "raw", "readonly": "on", "cache": "none", "cache.no-flush": true,
            "discard": "unmap", "werror": "stop", "rerror": "ignore", "aio": "threads",
        }));
        let cache = CacheMode { direct: true, no_flush: true, writeback: true };
        let want = DriveOptions {
            format: Some("raw".into()),
            read_only: true,
            cache,
            discard: DiscardMode::Unmap,
            rerror: OnError::Ignore,
            werror: OnError::Stop,
        };
        assert_eq!(options, Ok(want));
        for (bad, message) in [
            (json!({"cache": "x"}), "invalid cache option"),
            (json!({"format": "foo"}), "Unknown driver 'foo'"),
            (json!({"werror": "foo"}), "'foo' invalid write error action"),
            (json!({"rerror": "enospc"}), "'enospc' invalid read error action"),
            (json!({"readonly": "foo"}), "Parameter 'read-only' expects 'on' or 'off'"),
            (json!({"foo": "bar"}), "Block format 'raw' does not support the option 'foo'"),
        ] {
            assert_eq!(parse(bad), Err(message.to_owned()));
        }
        assert!(parse(json!({"aio": "native"})).unwrap_err().contains("cache.direct=on"));
        assert!(parse(json!({"aio": "io_uring"})).unwrap_err().contains("use aio=threads"));
    }
}
