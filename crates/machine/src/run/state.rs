//! The run state of a machine and the legal steps between its values.
//!
//! ```text
//!                 ┌────────── cont ──────────┐
//!  prelaunch ── cont ──► running ── stop ──► paused
//!      │                 │  ▲  │
//!      │            fault│  │  └─ guest powers off, -no-shutdown ─► shutdown ── reset ─► prelaunch
//!      │                 ▼  │cont
//!      │        io-error, watchdog, debug, internal-error ── reset ─► prelaunch
//!      └── incoming: inmigrate ──► paused, running
//! ```
//!
//! Migration and snapshots pass through `finish-migrate`, `postmigrate`, `save-vm` and `restore-vm`.
//! [`RunState::may_become`] is the whole table; a step that it does not list is a defect in the
//! machine's owner, who refuses it.

use std::fmt;

/// What the machine is doing, as `query-status` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RunState {
    /// Stopped by a debugger.
    Debug,
    /// Waits for an incoming migration.
    Inmigrate,
    /// An accelerator or device gave up; only a reset helps.
    InternalError,
    /// A disk failed and is configured to stop the machine.
    IoError,
    /// Stopped by `stop`.
    Paused,
    /// The source of a migration that has completed.
    Postmigrate,
    /// Made, but not started yet (`-S`).
    Prelaunch,
    /// Stopped for the last phase of a migration.
    FinishMigrate,
    /// State is being restored.
    RestoreVm,
    /// Guest code runs.
    Running,
    /// State is being saved.
    SaveVm,
    /// The guest powered off, and the process was told to stay.
    Shutdown,
    /// The watchdog fired and is configured to stop the machine.
    Watchdog,
    /// The guest sleeps (ACPI S3).
    Suspended,
    /// The guest reported a panic and the machine is configured to stop on it.
    GuestPanicked,
}

impl RunState {
    /// All values, in the order of their numbers.
    pub const ALL: [Self; 15] = [
        Self::Debug,
        Self::Inmigrate,
        Self::InternalError,
        Self::IoError,
        Self::Paused,
        Self::Postmigrate,
        Self::Prelaunch,
        Self::FinishMigrate,
        Self::RestoreVm,
        Self::Running,
        Self::SaveVm,
        Self::Shutdown,
        Self::Watchdog,
        Self::Suspended,
        Self::GuestPanicked,
    ];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Inmigrate => "inmigrate",
            Self::InternalError => "internal-error",
            Self::IoError => "io-error",
            Self::Paused => "paused",
            Self::Postmigrate => "postmigrate",
            Self::Prelaunch => "prelaunch",
            Self::FinishMigrate => "finish-migrate",
            Self::RestoreVm => "restore-vm",
            Self::Running => "running",
            Self::SaveVm => "save-vm",
            Self::Shutdown => "shutdown",
            Self::Watchdog => "watchdog",
            Self::Suspended => "suspended",
            Self::GuestPanicked => "guest-panicked",
        }
    }

    /// Whether the step from `self` to `next` is legal.
    pub fn may_become(self, next: Self) -> bool {
        use RunState::*;
        match self {
            Prelaunch => matches!(next, Running | FinishMigrate | Inmigrate | Paused | SaveVm),
            Inmigrate => {
                matches!(next, Running | Paused | InternalError | IoError | Shutdown | Prelaunch)
            }
            Running => matches!(
                next,
                Debug
                    | InternalError
                    | IoError
                    | Paused
                    | FinishMigrate
                    | RestoreVm
                    | SaveVm
                    | Shutdown
                    | Watchdog
                    | Suspended
                    | GuestPanicked
            ),
            Paused => matches!(
                next,
                Running | FinishMigrate | Postmigrate | Prelaunch | SaveVm | RestoreVm
            ),
            Debug => matches!(next, Running | Suspended | FinishMigrate | Prelaunch | Paused),
            IoError => matches!(next, Running | FinishMigrate | Prelaunch | Paused),
            InternalError => matches!(next, Paused | FinishMigrate | Prelaunch),
            Watchdog => matches!(next, Running | FinishMigrate | Prelaunch | Paused),
            GuestPanicked => matches!(next, Running | FinishMigrate | Prelaunch | Paused),
            Shutdown => matches!(next, Paused | FinishMigrate | Prelaunch),
            Suspended => matches!(next, Running | FinishMigrate | Prelaunch | Paused),
            Postmigrate => matches!(next, Running | FinishMigrate | Prelaunch | Paused),
            FinishMigrate => matches!(next, Running | Postmigrate | Paused | Prelaunch),
            SaveVm => matches!(next, Running | Paused | Prelaunch),
            RestoreVm => matches!(next, Running | Paused | Prelaunch),
        }
    }

    /// Whether only a reset leads back to `running`.
    pub fn needs_reset(self) -> bool {
        matches!(self, Self::InternalError | Self::Shutdown)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_the_order_of_the_numbers() {
        for (i, state) in RunState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, i);
        }
    }

    #[test]
    fn nothing_becomes_itself_and_everything_can_be_left() {
        for state in RunState::ALL {
            assert!(!state.may_become(state), "{state}");
            assert!(RunState::ALL.iter().any(|&next| state.may_become(next)), "{state}");
        }
    }

    #[test]
    fn what_needs_a_reset_cannot_run() {
        for state in RunState::ALL {
            assert!(!(state.needs_reset() && state.may_become(RunState::Running)), "{state}");
        }
    }
}
