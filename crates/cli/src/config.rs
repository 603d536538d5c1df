//! What a command line asks for.

use std::path::PathBuf;

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
    /// Names of the enabled items; see [`LOG_ITEMS`].
    pub items: Vec<&'static str>,
    /// The file; standard error without one.
    pub file: Option<PathBuf>,
}

/// Items of `-d` with what each shows.
pub const LOG_ITEMS: &[(&str, &str)] = &[
    ("in_asm", "each block of guest code when it is decoded"),
    ("int", "interrupts and exceptions as they are delivered"),
    ("cpu_reset", "the CPU's state at each reset"),
    ("guest_errors", "accesses that no sane guest makes"),
    ("unimp", "features that a guest asked for and that are absent"),
];

/// Everything that a command line asks for.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The machine.
    pub machine: MachineSpec,
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
