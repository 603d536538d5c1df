//! Commands about the run state (`schema/run-state.json`, parts of `schema/misc.json`).

use bus::ShutdownCause;
use machine::run::{Refusal, Request, RunState};
use machine::spec::WatchdogAction;
use schema::{QmpError, StatusInfo, commands};

use crate::Monitor;

impl Monitor {
    pub(crate) fn status(&self) -> StatusInfo {
        let state = self.machine.run().published().run_state();
        StatusInfo {
            running: state == RunState::Running,
            // Single-stepping is the debugger's, and none is attached.
            singlestep: false,
            status: run_state(state),
        }
    }

    /// The same for people.
    pub(crate) fn status_line(&self) -> String {
        match self.machine.run().published().run_state() {
            state @ (RunState::Running | RunState::Paused) => format!("VM status: {state}"),
            state => format!("VM status: paused ({state})"),
        }
    }

    pub(crate) async fn run_quit(&self) -> Result<(), QmpError> {
        self.ask(Request::Quit(ShutdownCause::HostQmpQuit)).await
    }

    pub(crate) async fn run_stop(&self) -> Result<(), QmpError> {
        self.ask(Request::Stop).await
    }

    pub(crate) async fn run_cont(&self) -> Result<(), QmpError> {
        self.ask(Request::Cont).await
    }

    pub(crate) async fn run_reset(&self) -> Result<(), QmpError> {
        self.ask(Request::Reset(ShutdownCause::HostQmpSystemReset)).await
    }

    pub(crate) async fn run_powerdown(&self) -> Result<(), QmpError> {
        self.ask(Request::Powerdown).await
    }

    pub(crate) async fn run_wakeup(&self) -> Result<(), QmpError> {
        self.ask(Request::Wakeup).await
    }

    pub(crate) async fn run_inject_nmi(&self) -> Result<(), QmpError> {
        self.ask(Request::InjectNmi).await
    }

    pub(crate) async fn run_set_watchdog_action(
        &self,
        arg: &commands::WatchdogSetAction,
    ) -> Result<(), QmpError> {
        let action = match arg.action {
            schema::WatchdogAction::Reset => WatchdogAction::Reset,
            schema::WatchdogAction::Shutdown => WatchdogAction::Shutdown,
            schema::WatchdogAction::Poweroff => WatchdogAction::Poweroff,
            schema::WatchdogAction::Pause => WatchdogAction::Pause,
            schema::WatchdogAction::Debug => WatchdogAction::Debug,
            schema::WatchdogAction::None => WatchdogAction::None,
            schema::WatchdogAction::InjectNmi => WatchdogAction::InjectNmi,
        };
        self.ask(Request::SetWatchdogAction(action)).await
    }

    async fn ask(&self, request: Request) -> Result<(), QmpError> {
        self.machine.run().ask(request).await.map_err(|refusal| match refusal {
            Refusal::ResetRequired | Refusal::NotSuspended | Refusal::Ending => {
                QmpError::generic(refusal.to_string())
            }
        })
    }
}

fn run_state(state: RunState) -> schema::RunState {
    match state {
        RunState::Debug => schema::RunState::Debug,
        RunState::Inmigrate => schema::RunState::Inmigrate,
        RunState::InternalError => schema::RunState::InternalError,
        RunState::IoError => schema::RunState::IoError,
        RunState::Paused => schema::RunState::Paused,
        RunState::Postmigrate => schema::RunState::Postmigrate,
        RunState::Prelaunch => schema::RunState::Prelaunch,
        RunState::FinishMigrate => schema::RunState::FinishMigrate,
        RunState::RestoreVm => schema::RunState::RestoreVm,
        RunState::Running => schema::RunState::Running,
        RunState::SaveVm => schema::RunState::SaveVm,
        RunState::Shutdown => schema::RunState::Shutdown,
        RunState::Watchdog => schema::RunState::Watchdog,
        RunState::Suspended => schema::RunState::Suspended,
        RunState::GuestPanicked => schema::RunState::GuestPanicked,
    }
}
