//! What a device may ask of the machine as a whole.

/// Exit status of the process, 0 to 255.
pub type ExitCode = u8;

/// Why a machine was reset or shut down, as the RESET and SHUTDOWN events name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShutdownCause {
    /// The host's own error.
    HostError,
    /// The `quit` command.
    HostQmpQuit,
    /// The `system_reset` command.
    HostQmpSystemReset,
    /// A signal to the process.
    HostSignal,
    /// The user interface was closed.
    HostUi,
    /// The guest powered off.
    GuestShutdown,
    /// The guest asked for a reset, or its CPU shut down.
    GuestReset,
    /// The guest reported a panic.
    GuestPanic,
    /// A subsystem resets itself, as s390's does.
    SubsystemReset,
    /// A snapshot was loaded.
    SnapshotLoad,
}

impl ShutdownCause {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::HostError => "host-error",
            Self::HostQmpQuit => "host-qmp-quit",
            Self::HostQmpSystemReset => "host-qmp-system-reset",
            Self::HostSignal => "host-signal",
            Self::HostUi => "host-ui",
            Self::GuestShutdown => "guest-shutdown",
            Self::GuestReset => "guest-reset",
            Self::GuestPanic => "guest-panic",
            Self::SubsystemReset => "subsystem-reset",
            Self::SnapshotLoad => "snapshot-load",
        }
    }

    /// Whether the guest brought it about.
    pub fn is_guest(self) -> bool {
        match self {
            Self::GuestShutdown | Self::GuestReset | Self::GuestPanic | Self::SubsystemReset => {
                true
            }
            Self::HostError
            | Self::HostQmpQuit
            | Self::HostQmpSystemReset
            | Self::HostSignal
            | Self::HostUi
            | Self::SnapshotLoad => false,
        }
    }
}

/// Takes a device's requests to the owner of the machine. The guest does not run on past a request.
pub trait MachineControl: Send + Sync {
    /// Asks for a reset.
    fn request_reset(&self, cause: ShutdownCause);
    /// Asks for a shutdown.
    fn request_shutdown(&self, cause: ShutdownCause);
    /// Asks for the process to end with `code`.
    fn request_exit(&self, code: ExitCode);
}
