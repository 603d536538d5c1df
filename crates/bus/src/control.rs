//! What devices ask of the machine that they are in.

/// Why a machine shuts down or resets; the names are those of QEMU's `ShutdownCause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShutdownCause {
    /// Nothing asked for it yet.
    None,
    /// The host failed.
    HostError,
    /// `quit` over QMP.
    HostQmpQuit,
    /// `system_reset` over QMP.
    HostQmpSystemReset,
    /// A signal, as from Ctrl-C.
    HostSignal,
    /// The user interface's window was closed.
    HostUi,
    /// The guest switched itself off.
    GuestShutdown,
    /// The guest asked for a reset, or its CPU shut down.
    GuestReset,
    /// The guest reported that it panicked.
    GuestPanic,
    /// A part of the machine asked for a reset of all of it.
    SubsystemReset,
    /// A snapshot is being loaded.
    SnapshotLoad,
}

impl ShutdownCause {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
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

    /// Whether the guest is behind it, as the `guest` member of SHUTDOWN and RESET says.
    pub fn is_guest(self) -> bool {
        match self {
            Self::GuestShutdown | Self::GuestReset | Self::GuestPanic => true,
            Self::None
            | Self::HostError
            | Self::HostQmpQuit
            | Self::HostQmpSystemReset
            | Self::HostSignal
            | Self::HostUi
            | Self::SubsystemReset
            | Self::SnapshotLoad => false,
        }
    }
}

/// The machine as a device sees it. The calls note the request and return at once; the machine acts on
/// it from its own thread, so a device may call with its own lock held.
pub trait MachineControl: Send + Sync {
    /// Asks for a reset of the whole machine.
    fn request_reset(&self, cause: ShutdownCause);
    /// Asks for power off.
    fn request_shutdown(&self, cause: ShutdownCause);
    /// Asks for the end of the process with exit status `code`.
    fn request_exit(&self, code: i32);
}
