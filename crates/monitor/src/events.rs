//! Events of the machine as events of the contract.

use bus::ShutdownCause;
use machine::run::MachineEvent;
use schema::{BalloonChangeEventData, Event, ResetEventData, ShutdownEventData};

/// The event that tells clients of `event`.
pub fn to_qmp(event: MachineEvent) -> Event {
    match event {
        MachineEvent::Resume => Event::Resume,
        MachineEvent::Stop => Event::Stop,
        MachineEvent::Reset(cause) => {
            Event::Reset(ResetEventData { guest: cause.is_guest(), reason: reason(cause) })
        }
        MachineEvent::Powerdown => Event::Powerdown,
        MachineEvent::Shutdown(cause) => {
            Event::Shutdown(ShutdownEventData { guest: cause.is_guest(), reason: reason(cause) })
        }
        MachineEvent::BalloonChange(actual) => {
            Event::BalloonChange(BalloonChangeEventData { actual: crate::int(actual) })
        }
    }
}

fn reason(cause: ShutdownCause) -> schema::ShutdownCause {
    match cause {
        ShutdownCause::None => schema::ShutdownCause::None,
        ShutdownCause::HostError => schema::ShutdownCause::HostError,
        ShutdownCause::HostQmpQuit => schema::ShutdownCause::HostQmpQuit,
        ShutdownCause::HostQmpSystemReset => schema::ShutdownCause::HostQmpSystemReset,
        ShutdownCause::HostSignal => schema::ShutdownCause::HostSignal,
        ShutdownCause::HostUi => schema::ShutdownCause::HostUi,
        ShutdownCause::GuestShutdown => schema::ShutdownCause::GuestShutdown,
        ShutdownCause::GuestReset => schema::ShutdownCause::GuestReset,
        ShutdownCause::GuestPanic => schema::ShutdownCause::GuestPanic,
        ShutdownCause::SubsystemReset => schema::ShutdownCause::SubsystemReset,
        ShutdownCause::SnapshotLoad => schema::ShutdownCause::SnapshotLoad,
    }
}
