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

/// What can end a sleep with memory kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WakeCause {
    /// The alarm of the real-time clock.
    Rtc,
    /// A key or a pointer, or whoever runs the machine.
    User,
}

/// Something that the machine is to hear from a device, and perhaps act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The guest's kernel panicked.
    Panicked,
    /// The guest's kernel crashed, and told Hyper-V's five parameters of that.
    HyperVCrash([u64; 5]),
    /// The guest's kernel panicked and starts another one to look into it.
    CrashLoaded,
    /// The guest wants to sleep with its memory kept (ACPI S3).
    Suspend,
    /// The guest wrote its memory away and wants to be switched off (ACPI S4).
    Hibernate,
    /// Something that would end the guest's sleep, if it sleeps.
    Wake(WakeCause),
    /// A watchdog was not fed in time.
    WatchdogExpired,
    /// The guest set its real-time clock, which is now this many seconds ahead of where it was set up.
    RtcChanged {
        /// Seconds, negative if it is behind.
        offset: i64,
    },
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
    /// Tells of something.
    fn notify(&self, notice: Notice);
}
