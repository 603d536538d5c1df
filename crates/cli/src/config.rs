//! What a command line asks for.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use accel::log::Topic;
use machine::spec::MachineSpec;

/// A monitor: a character device that speaks QMP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorSpec {
    /// The character device's id.
    pub chardev: String,
    /// Whether replies are indented for people.
    pub pretty: bool,
}

/// Where log lines go and which (`-d`, `-D`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogSpec {
    /// What is wanted.
    pub topics: Vec<Topic>,
    /// The file; standard error without one.
    pub file: Option<PathBuf>,
    /// Addresses of the guest code that lines have to be about, if it is not all (`-dfilter`).
    pub ranges: Vec<RangeInclusive<u64>>,
    /// Translated code is told to `perf` (`-perfmap`).
    pub perf_map: bool,
}

/// How the machine's screen is shown (`-display`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DisplaySpec {
    /// Not at all.
    #[default]
    None,
    /// On the terminal.
    Curses,
}

/// Everything that a command line asks for.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The machine.
    pub machine: MachineSpec,
    /// Where the screen is shown.
    pub display: DisplaySpec,
    /// QMP monitors.
    pub monitors: Vec<MonitorSpec>,
    /// Where to write the process id.
    pub pidfile: Option<PathBuf>,
    /// Detach from the terminal once all is set up.
    pub daemonize: bool,
    /// Logging.
    pub log: LogSpec,
    /// Run the demonstration.
    pub demo: bool,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Run a machine.
    Run(Box<Config>),
    /// Print a text and end with status 0.
    Print(String),
}
