//! Commands (specification, section 5.6.6.1).

use memory::GuestMemory;

use super::super::backlog::Progress;
use super::super::{Chain, QueueError, VirtioCore, slices};
use super::{HeldRequest, MAX_CDB_SIZE, Running, Sizes, VirtioScsi};
use crate::lock;
use crate::scsi::{Address, Data, Outcome, Route, Sense, Task};

/// Bytes of a request before its command block: unit, tag, attribute, priority, reference number.
const HEADER_LEN: usize = 19;
/// Offset of the task attribute, three bits of which count.
const ATTRIBUTE: usize = 16;
/// Task attribute ORDERED.
const ORDERED: u8 = 1;
/// Bytes of a response before its sense data.
const RESPONSE_LEN: usize = 12;

/// Responses to requests and to task management.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Response {
    /// The unit answered; of task management, that it is done.
    Ok = 0,
    /// There was no room for all the data.
    Overrun = 1,
    /// Task management cut the command short.
    Aborted = 2,
    /// There is no such target.
    BadTarget = 3,
    /// A reset cut the command short.
    Reset = 4,
    /// The request makes no sense.
    Failure = 9,
    /// The task that was asked for is there.
    Succeeded = 10,
    /// The function is not known.
    Rejected = 11,
    /// The target has no such unit.
    IncorrectLun = 12,
}

/// Statuses of SCSI.
mod status {
    pub(super) const GOOD: u8 = 0;
    pub(super) const CHECK_CONDITION: u8 = 2;
}

/// The address in a request's field, if it has the form that we know: target and unit of the first
/// level.
pub(super) fn address(field: &[u8]) -> Option<Address> {
    let known = field[0] == 1 && (field[2] == 0 || field[2] >> 6 == 1);
    let lun = u16::from_be_bytes([field[2], field[3]]) & 0x3fff;
    known.then_some(Address { channel: 0, target: field[1].into(), lun })
}

/// The part of a request that says what it is.
struct Header {
    address: Option<Address>,
    tag: u64,
    cdb_size: usize,
    bytes: [u8; HEADER_LEN + MAX_CDB_SIZE as usize],
}

impl Header {
    fn read(memory: &GuestMemory, chain: &Chain, cdb_size: u32) -> Result<Self, QueueError> {
        let cdb_size = cdb_size as usize;
        let mut bytes = [0; HEADER_LEN + MAX_CDB_SIZE as usize];
        let used = &mut bytes[..HEADER_LEN + cdb_size];
        if chain.read(memory, 0, used)? < used.len() {
            return Err(QueueError::BadLength);
        }
        let mut tag = [0; 8];
        tag.copy_from_slice(&used[8..16]);
        Ok(Self { address: address(used), tag: u64::from_le_bytes(tag), cdb_size, bytes })
    }

    fn cdb(&self) -> &[u8] {
        &self.bytes[HEADER_LEN..HEADER_LEN + self.cdb_size]
    }
}

/// Whether a command is to be done alone.
pub(super) fn is_ordered(memory: &GuestMemory, chain: &Chain) -> bool {
    let mut bytes = [0; HEADER_LEN];
    let read = chain.read(memory, 0, &mut bytes);
    read == Ok(HEADER_LEN) && bytes[ATTRIBUTE] & 7 == ORDERED
}

/// How a command ended, for its response.
struct Ending {
    response: Response,
    sense: Option<Sense>,
    /// Bytes of data that were moved.
    moved: u64,
}

impl From<Response> for Ending {
    fn from(response: Response) -> Self {
        Self { response, sense: None, moved: 0 }
    }
}

impl From<Sense> for Ending {
    fn from(sense: Sense) -> Self {
        Self { response: Response::Ok, sense: Some(sense), moved: 0 }
    }
}

impl VirtioScsi {
    pub(super) fn serve_request(&self, core: &VirtioCore, queue: u16, chain: &Chain) -> Progress {
        match self.handle_request(core, queue, chain) {
            Ok(progress) => progress,
            Err(error) => {
                core.fail(&error);
                Progress::Done
            }
        }
    }

    fn handle_request(
        &self,
        core: &VirtioCore,
        queue: u16,
        chain: &Chain,
    ) -> Result<Progress, QueueError> {
        let sizes = *self.sizes();
        let header = Header::read(core.memory(), chain, sizes.cdb)?;
        if chain.writable_len() < (RESPONSE_LEN as u64) + u64::from(sizes.sense) {
            return Err(QueueError::BadLength);
        }
        let ending = match header.address {
            None => Response::BadTarget.into(),
            Some(address) => {
                lock(&self.running).push(Running { tag: header.tag, address });
                let ending = self.execute(core, chain, sizes, address, header.cdb());
                let mut running = lock(&self.running);
                let is_this = |r: &Running| r.tag == header.tag && r.address == address;
                if let Some(at) = running.iter().position(is_this) {
                    running.swap_remove(at);
                }
                drop(running);
                self.ended.notify_all();
                match ending? {
                    Some(ending) => ending,
                    None => return Ok(Progress::Held),
                }
            }
        };
        respond(core, queue, chain, sizes, &ending)?;
        Ok(Progress::Done)
    }

    /// Does a command; `None` if it is to be done again later.
    fn execute(
        &self,
        core: &VirtioCore,
        chain: &Chain,
        sizes: Sizes,
        address: Address,
        cdb: &[u8],
    ) -> Result<Option<Ending>, QueueError> {
        let (before_out, before_in) = data_offsets(sizes);
        let output_len = chain.readable_len() - before_out;
        let input_len = chain.writable_len() - before_in;
        if output_len > 0 && input_len > 0 {
            return Ok(Some(Response::Failure.into()));
        }
        let (unit, task) = match self.bus.route(address) {
            Route::Nothing => return Ok(Some(Response::BadTarget.into())),
            Route::Target => (None, self.bus.start_absent(address, cdb)),
            Route::Unit(lun) => {
                let task = self.bus.start(address, &lun, cdb);
                (Some(lun), task)
            }
        };
        let task = match task {
            Ok(task) => task,
            Err(sense) => return Ok(Some(sense.into())),
        };
        let room = match task.data() {
            Data::None => true,
            Data::In(len) => len <= input_len,
            Data::Out(len) => len <= output_len,
        };
        if !room {
            return Ok(Some(Response::Overrun.into()));
        }
        let memory = core.memory();
        let ending = match (unit, task) {
            (None, Task::Reply(bytes)) => {
                let moved = chain.write(memory, before_in, &bytes)? as u64;
                Ending { response: Response::Ok, sense: None, moved }
            }
            (None, _) => Response::Failure.into(),
            (Some(lun), task) => {
                let input = slices(memory, &chain.writable(before_in, input_len))?;
                let output = slices(memory, &chain.readable(before_out, output_len))?;
                match lun.perform(&task, &input, &output) {
                    Outcome::Good(moved) => Ending { response: Response::Ok, sense: None, moved },
                    Outcome::Check(sense) => sense.into(),
                    Outcome::Held => return Ok(None),
                }
            }
        };
        Ok(Some(ending))
    }

    /// Ends the commands that were held back and that `concerned` picks, by tag and address, with
    /// `response`. Returns whether there were any.
    pub(super) fn end_held(
        &self,
        core: &VirtioCore,
        response: Response,
        concerned: impl Fn(u64, Address) -> bool,
    ) -> bool {
        let mut held = self.backlog.held();
        let (ended, kept): (Vec<HeldRequest>, _) =
            held.drain(..).partition(|held| self.is_picked(core, &held.chain, &concerned));
        *held = kept;
        drop(held);
        let sizes = *self.sizes();
        for held in &ended {
            let ending = response.into();
            if let Err(error) = respond(core, held.queue, &held.chain, sizes, &ending) {
                core.fail(&error);
            }
        }
        !ended.is_empty()
    }

    /// Whether `picked` picks one of the commands that were held back.
    pub(super) fn is_held(&self, core: &VirtioCore, picked: impl Fn(u64, Address) -> bool) -> bool {
        self.backlog.held().iter().any(|held| self.is_picked(core, &held.chain, &picked))
    }

    fn is_picked(
        &self,
        core: &VirtioCore,
        chain: &Chain,
        picked: &impl Fn(u64, Address) -> bool,
    ) -> bool {
        let header = Header::read(core.memory(), chain, self.sizes().cdb).ok();
        header.is_some_and(|h| h.address.is_some_and(|address| picked(h.tag, address)))
    }
}

/// Where the data begin in what the driver wrote, and in what it has room for. The driver can change the
/// sizes at any time: a request keeps those that it was checked against.
fn data_offsets(sizes: Sizes) -> (u64, u64) {
    let out = HEADER_LEN as u64 + u64::from(sizes.cdb);
    (out, RESPONSE_LEN as u64 + u64::from(sizes.sense))
}

fn respond(
    core: &VirtioCore,
    queue: u16,
    chain: &Chain,
    sizes: Sizes,
    ending: &Ending,
) -> Result<(), QueueError> {
    let (before_out, before_in) = data_offsets(sizes);
    let room = (chain.readable_len().saturating_sub(before_out))
        + chain.writable_len().saturating_sub(before_in);
    let residual = u32::try_from(room - ending.moved.min(room)).unwrap_or(u32::MAX);
    let sense = ending.sense.map(Sense::fixed);
    let sense_len = sense.map_or(0, |s| s.len()).min(sizes.sense as usize);
    let status = if sense.is_some() { status::CHECK_CONDITION } else { status::GOOD };
    let mut bytes = Vec::with_capacity(RESPONSE_LEN + sense_len);
    bytes.extend((sense_len as u32).to_le_bytes());
    bytes.extend(residual.to_le_bytes());
    bytes.extend([0, 0, status, ending.response as u8]);
    bytes.extend(sense.iter().flatten().take(sense_len));
    chain.write(core.memory(), 0, &bytes)?;
    let is_input = chain.writable_len() > before_in;
    let written = if is_input { before_in + ending.moved } else { bytes.len() as u64 };
    core.complete(queue, chain, u32::try_from(written).unwrap_or(u32::MAX));
    Ok(())
}
