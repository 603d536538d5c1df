//! Task management and asynchronous notification (specification, section 5.6.6.2).

use super::super::{Chain, QueueError, VirtioCore};
use super::request::{Response, address};
use super::{CONTROL_QUEUE, REQUEST_QUEUE, Running, VirtioScsi};
use crate::lock;
use crate::scsi::{Address, Route};

/// Types of control requests.
mod kind {
    pub(super) const TASK_MANAGEMENT: u32 = 0;
    pub(super) const NOTIFICATION_QUERY: u32 = 1;
    pub(super) const NOTIFICATION_SUBSCRIBE: u32 = 2;
}

/// Bytes of a task management request: type, function, unit, tag.
const TASK_MANAGEMENT_LEN: usize = 24;
/// Bytes of a notification request: type, unit, events.
const NOTIFICATION_LEN: usize = 16;

/// Task management functions (SAM-5, section 7).
mod function {
    pub(super) const ABORT_TASK: u32 = 0;
    pub(super) const ABORT_TASK_SET: u32 = 1;
    pub(super) const CLEAR_ACA: u32 = 2;
    pub(super) const CLEAR_TASK_SET: u32 = 3;
    pub(super) const I_T_NEXUS_RESET: u32 = 4;
    pub(super) const LOGICAL_UNIT_RESET: u32 = 5;
    pub(super) const QUERY_TASK: u32 = 6;
    pub(super) const QUERY_TASK_SET: u32 = 7;
}

impl VirtioScsi {
    pub(super) fn serve_control(&self, core: &VirtioCore) {
        while !core.is_pausing() {
            let Some(chain) = core.pop(CONTROL_QUEUE) else { return };
            match self.handle_control(core, &chain) {
                Ok(answer) => match chain.write(core.memory(), 0, &answer) {
                    Ok(written) => core.complete(CONTROL_QUEUE, &chain, written as u32),
                    Err(error) => core.fail(&error),
                },
                Err(error) => core.fail(&error),
            }
        }
    }

    fn handle_control(&self, core: &VirtioCore, chain: &Chain) -> Result<Vec<u8>, QueueError> {
        let mut bytes = [0; TASK_MANAGEMENT_LEN];
        let len = chain.read(core.memory(), 0, &mut bytes)?;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let (needed, answer) = match word(0) {
            _ if len < 4 => return Err(QueueError::BadLength),
            kind::TASK_MANAGEMENT if len >= TASK_MANAGEMENT_LEN => {
                let mut tag = [0; 8];
                tag.copy_from_slice(&bytes[16..24]);
                let response = match address(&bytes[8..16]) {
                    None => Response::BadTarget,
                    Some(at) => self.manage(core, word(4), at, u64::from_le_bytes(tag)),
                };
                (1, vec![response as u8])
            }
            kind::NOTIFICATION_QUERY | kind::NOTIFICATION_SUBSCRIBE if len >= NOTIFICATION_LEN => {
                // No unit has asynchronous events of its own.
                (5, vec![0, 0, 0, 0, Response::Ok as u8])
            }
            kind::TASK_MANAGEMENT | kind::NOTIFICATION_QUERY | kind::NOTIFICATION_SUBSCRIBE => {
                return Err(QueueError::BadLength);
            }
            _ => (1, vec![Response::Failure as u8]),
        };
        if chain.writable_len() < needed {
            return Err(QueueError::BadLength);
        }
        Ok(answer)
    }

    fn manage(&self, core: &VirtioCore, function: u32, at: Address, tag: u64) -> Response {
        let of_target = |a: Address| (a.channel, a.target) == (at.channel, at.target);
        let lun = match (function, self.bus.route(at)) {
            (_, Route::Nothing) => return Response::BadTarget,
            (function::I_T_NEXUS_RESET, _) => None,
            (_, Route::Target) => return Response::IncorrectLun,
            (_, Route::Unit(lun)) => Some(lun),
        };
        match function {
            function::ABORT_TASK => self.end(core, Response::Aborted, |t, a| t == tag && a == at),
            function::ABORT_TASK_SET | function::CLEAR_TASK_SET => {
                self.end(core, Response::Aborted, |_, a| a == at);
            }
            // There is never an auto contingent allegiance.
            function::CLEAR_ACA => return Response::Rejected,
            function::I_T_NEXUS_RESET => {
                self.end(core, Response::Reset, |_, a| of_target(a));
                let units = self.bus.units().into_iter();
                units.filter(|(a, _)| of_target(*a)).for_each(|(_, lun)| lun.reset_unit());
            }
            function::LOGICAL_UNIT_RESET => {
                self.end(core, Response::Reset, |_, a| a == at);
                if let Some(lun) = lun {
                    lun.reset_unit();
                }
            }
            function::QUERY_TASK if self.is_there(core, |t, a| t == tag && a == at) => {
                return Response::Succeeded;
            }
            function::QUERY_TASK_SET if self.is_there(core, |_, a| a == at) => {
                return Response::Succeeded;
            }
            function::QUERY_TASK | function::QUERY_TASK_SET => {}
            _ => return Response::Rejected,
        }
        Response::Ok
    }

    /// Sees to it that no command that `concerned` picks goes on after this: those held back end with
    /// `response`, those that run or wait in the queues are done first.
    fn end(
        &self,
        core: &VirtioCore,
        response: Response,
        concerned: impl Fn(u64, Address) -> bool + Copy,
    ) {
        self.end_held(core, response, concerned);
        for queue in REQUEST_QUEUE..REQUEST_QUEUE + self.options.num_queues {
            self.serve_requests(core, queue);
        }
        self.wait_for(|running: &Running| concerned(running.tag, running.address));
        // One of them may have been held back meanwhile.
        self.end_held(core, response, concerned);
    }

    fn is_there(&self, core: &VirtioCore, picked: impl Fn(u64, Address) -> bool) -> bool {
        lock(&self.running).iter().any(|running| picked(running.tag, running.address))
            || self.is_held(core, picked)
    }
}
