//! Options of `-drive`, as far as they concern the disk and not the device.

use std::str::FromStr;

use ::options::{OptionError, Properties};

use crate::NullOptions;

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
    /// `writeback`, the default.
    pub const WRITEBACK: Self = Self { direct: false, no_flush: false, writeback: true };
    /// `none`.
    pub const NONE: Self = Self { direct: true, no_flush: false, writeback: true };
    /// `writethrough`.
    pub const WRITETHROUGH: Self = Self { direct: false, no_flush: false, writeback: false };
    /// `directsync`.
    pub const DIRECTSYNC: Self = Self { direct: true, no_flush: false, writeback: false };
    /// `unsafe`.
    pub const UNSAFE: Self = Self { direct: false, no_flush: true, writeback: true };

    const NAMES: &[(&str, Self)] = &[
        ("writeback", Self::WRITEBACK),
        ("none", Self::NONE),
        ("off", Self::NONE),
        ("writethrough", Self::WRITETHROUGH),
        ("directsync", Self::DIRECTSYNC),
        ("unsafe", Self::UNSAFE),
    ];
}

/// What the bytes of an image mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// They are the disk's.
    Raw,
}

impl FromStr for ImageFormat {
    type Err = crate::BlockError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "raw" => Ok(Self::Raw),
            other => Err(crate::BlockError::UnknownFormat(other.to_owned())),
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
    /// The values of `rerror=`.
    pub const READ: &[(&str, Self)] =
        &[("report", Self::Report), ("ignore", Self::Ignore), ("stop", Self::Stop)];
    /// The values of `werror=`.
    pub const WRITE: &[(&str, Self)] = &[
        ("enospc", Self::Enospc),
        ("report", Self::Report),
        ("ignore", Self::Ignore),
        ("stop", Self::Stop),
    ];
}

/// What performs requests (`aio=`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aio {
    Threads,
    Native,
    IoUring,
}

/// How to open an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveOptions {
    /// Format; `None` if it was not given.
    pub format: Option<ImageFormat>,
    /// Refuse writes.
    pub read_only: bool,
    /// Keep what is written to itself, and forget it in the end.
    pub snapshot: bool,
    /// Caching on the host.
    pub cache: CacheMode,
    /// What becomes of discard requests.
    pub discard: DiscardMode,
    /// What a failed read does.
    pub rerror: OnError,
    /// What a failed write does.
    pub werror: OnError,
    /// Open an image that can't be written for reading only.
    pub auto_read_only: bool,
    /// Which bytes of the image are the disk's: from where on, and how many, unless all that follow.
    pub offset: u64,
    /// See `offset`.
    pub size: Option<u64>,
    /// What a disk without bytes is like.
    pub null: NullOptions,
}

impl Default for DriveOptions {
    fn default() -> Self {
        Self {
            format: None,
            read_only: false,
            snapshot: false,
            cache: CacheMode::WRITEBACK,
            discard: DiscardMode::Ignore,
            rerror: OnError::Report,
            werror: OnError::Enospc,
            auto_read_only: true,
            offset: 0,
            size: None,
            null: NullOptions::default(),
        }
    }
}

impl DriveOptions {
    /// Reads what `-drive` says beyond the drive's id, file and device.
    ///
    /// # Errors
    /// At the first option that is not known, has a bad value or asks for what can't be had.
    pub fn parse(mut given: Properties) -> Result<Self, OptionError> {
        let mut parsed = Self::default();
        for key in ["format", "driver"] {
            let format = given.take_choice(key, &[("raw", ImageFormat::Raw)])?;
            parsed.format = format.or(parsed.format);
        }
        for key in ["read-only", "readonly"] {
            set(&mut parsed.read_only, given.take_bool(key)?);
        }
        set(&mut parsed.auto_read_only, given.take_bool("auto-read-only")?);
        set(&mut parsed.offset, given.take_size("offset", 1)?);
        parsed.size = given.take_size("size", 1)?;
        set(&mut parsed.null.size, given.take_size("file.size", 1)?);
        set(&mut parsed.null.read_zeroes, given.take_bool("file.read-zeroes")?);
        set(&mut parsed.snapshot, given.take_bool("snapshot")?);
        // `cache=` is shorthand for its three parts, which win over it.
        set(&mut parsed.cache, given.take_choice("cache", CacheMode::NAMES)?);
        set(&mut parsed.cache.direct, given.take_bool("cache.direct")?);
        set(&mut parsed.cache.no_flush, given.take_bool("cache.no-flush")?);
        set(&mut parsed.cache.writeback, given.take_bool("cache.writeback")?);
        let discard = [
            ("ignore", DiscardMode::Ignore),
            ("off", DiscardMode::Ignore),
            ("unmap", DiscardMode::Unmap),
            ("on", DiscardMode::Unmap),
        ];
        set(&mut parsed.discard, given.take_choice("discard", &discard)?);
        set(&mut parsed.rerror, given.take_choice("rerror", OnError::READ)?);
        set(&mut parsed.werror, given.take_choice("werror", OnError::WRITE)?);
        let aio = [("threads", Aio::Threads), ("native", Aio::Native), ("io_uring", Aio::IoUring)];
        let aio = given.take_choice("aio", &aio)?.unwrap_or(Aio::Threads);
        let option = given.option().to_owned();
        given.finish()?;
        match aio {
            Aio::Threads => Ok(parsed),
            Aio::Native if !parsed.cache.direct => Err(OptionError::new(format!(
                "{option}: aio=native was specified, but it requires cache.direct=on, which was \
                 not specified."
            ))),
            Aio::Native | Aio::IoUring => {
                let name = if aio == Aio::Native { "native" } else { "io_uring" };
                Err(OptionError::new(format!(
                    "{option}: aio={name} was specified, but is not supported in this build; use \
                     aio=threads"
                )))
            }
        }
    }
}

fn set<T>(to: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *to = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Result<DriveOptions, String> {
        let given = Properties::parse("-drive", options, None).map_err(|e| e.to_string())?;
        DriveOptions::parse(given).map_err(|e| e.to_string())
    }

    #[test]
    fn reads_options_and_refuses_what_it_does_not_know() {
        let options = parse(
            "format=raw,readonly=on,snapshot=on,cache=none,cache.no-flush=true,discard=unmap,werror=stop,\
             rerror=ignore,aio=threads,auto-read-only=off,offset=512,size=1440k,file.size=4M,\
             file.read-zeroes=on",
        );
        let want = DriveOptions {
            format: Some(ImageFormat::Raw),
            read_only: true,
            snapshot: true,
            cache: CacheMode { direct: true, no_flush: true, writeback: true },
            discard: DiscardMode::Unmap,
            rerror: OnError::Ignore,
            werror: OnError::Stop,
            auto_read_only: false,
            offset: 512,
            size: Some(1440 << 10),
            null: NullOptions { size: 4 << 20, read_zeroes: true },
        };
        assert_eq!(options, Ok(want));
        let json = r#"{"cache.no-flush": true, "read-only": false}"#;
        assert_eq!(parse(json).unwrap().cache, CacheMode::UNSAFE);
        for (bad, message) in [
            ("cache=nome", "'cache' does not accept value 'nome'; did you mean 'none'?"),
            ("format=foo", "'format' does not accept value 'foo'; known are raw"),
            ("werror=foo", "known are enospc, report, ignore, stop"),
            ("rerror=enospc", "'rerror' does not accept value 'enospc'"),
            ("readonly=foo", "'readonly' expects 'on' or 'off', not 'foo'"),
            ("cach=none", "invalid parameter 'cach'; did you mean 'cache'?"),
            ("aio=native", "cache.direct=on"),
            ("aio=io_uring", "use aio=threads"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.starts_with("-drive: ") && error.contains(message), "{bad}: {error}");
        }
    }
}
