//! Events of the machine as events of the contract.

use block::{DriveEvent, ErrorAction, ErrorEvent, Operation, TrayEvent};
use bus::ShutdownCause;
use machine::run::MachineEvent;
use machine::spec::{PanicAction, WatchdogAction};
use schema::{
    BalloonChangeEventData, BlockErrorAction, BlockIoErrorEventData, DeviceTrayMovedEventData,
    Event, GuestCrashloadedEventData, GuestPanicAction, GuestPanicInformation,
    GuestPanicInformationHyperV, GuestPanickedEventData, IoOperationType, ResetEventData,
    RtcChangeEventData, ShutdownEventData, WatchdogEventData,
};

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
        MachineEvent::GuestPanicked(action, crash) => {
            let info = crash.map(panic_information);
            Event::GuestPanicked(GuestPanickedEventData { action: panic_action(action), info })
        }
        MachineEvent::GuestCrashLoaded => {
            let action = GuestPanicAction::Run;
            Event::GuestCrashloaded(GuestCrashloadedEventData { action })
        }
        MachineEvent::Suspend => Event::Suspend,
        MachineEvent::SuspendDisk => Event::SuspendDisk,
        MachineEvent::Wakeup => Event::Wakeup,
        MachineEvent::Watchdog(action) => {
            Event::Watchdog(WatchdogEventData { action: watchdog_action(action) })
        }
        MachineEvent::RtcChange(offset) => Event::RtcChange(RtcChangeEventData {
            offset,
            qom_path: machine::pc::devices::RTC_PATH.to_owned(),
        }),
        MachineEvent::Drive(DriveEvent::Error(error)) => Event::BlockIoError(io_error(error)),
        MachineEvent::Drive(DriveEvent::TrayMoved(TrayEvent { device, qdev, open })) => {
            Event::DeviceTrayMoved(DeviceTrayMovedEventData { device, id: qdev, tray_open: open })
        }
    }
}

fn panic_action(action: PanicAction) -> GuestPanicAction {
    match action {
        PanicAction::None => GuestPanicAction::Run,
        PanicAction::Pause => GuestPanicAction::Pause,
        PanicAction::Shutdown | PanicAction::ExitFailure => GuestPanicAction::Poweroff,
    }
}

fn panic_information(crash: [u64; 5]) -> GuestPanicInformation {
    let [arg1, arg2, arg3, arg4, arg5] = crash;
    GuestPanicInformation::HyperV(GuestPanicInformationHyperV { arg1, arg2, arg3, arg4, arg5 })
}

fn watchdog_action(action: WatchdogAction) -> schema::WatchdogAction {
    match action {
        WatchdogAction::Reset => schema::WatchdogAction::Reset,
        WatchdogAction::Shutdown => schema::WatchdogAction::Shutdown,
        WatchdogAction::Poweroff => schema::WatchdogAction::Poweroff,
        WatchdogAction::Pause => schema::WatchdogAction::Pause,
        WatchdogAction::Debug => schema::WatchdogAction::Debug,
        WatchdogAction::None => schema::WatchdogAction::None,
        WatchdogAction::InjectNmi => schema::WatchdogAction::InjectNmi,
    }
}

fn io_error(error: ErrorEvent) -> BlockIoErrorEventData {
    BlockIoErrorEventData {
        device: error.device,
        node_name: error.node_name,
        operation: match error.operation {
            Operation::Read => IoOperationType::Read,
            Operation::Write | Operation::Flush | Operation::Discard => IoOperationType::Write,
        },
        action: match error.action {
            ErrorAction::Ignore => BlockErrorAction::Ignore,
            ErrorAction::Report => BlockErrorAction::Report,
            ErrorAction::Stop => BlockErrorAction::Stop,
        },
        nospace: error.no_space,
        reason: error.reason,
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
