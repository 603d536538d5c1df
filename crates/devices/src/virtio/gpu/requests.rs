//! What each request does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use display::{Cursor, CursorShape, Rect, Size};
use memory::GuestMemory;

use super::protocol::{Failure, HEADER, Request, ok, request};
use super::resource::{MAX_BACKING, Resource};
use super::{Adapter, CURSOR_SIDE, MAX_OUTPUTS, Output, VirtioGpu};
use crate::vga::edid;
use crate::virtio::{Chain, QueueError};

/// Longest request without its list of memory, in bytes.
const MAX_REQUEST: u64 = 64;
/// Bytes of an entry of that list.
const ENTRY: usize = 16;
/// Bytes that a description of a monitor has room in.
const EDID_ROOM: usize = 1024;
/// Least width and height that an output shows.
const MIN_SIDE: u32 = 16;

type Outcome = Result<(), Failure>;

impl VirtioGpu {
    /// Does what the request in `chain` asks for; returns the response.
    ///
    /// # Errors
    /// If the request can't be read.
    pub(super) fn handle(
        &self,
        memory: &GuestMemory,
        chain: &Chain,
    ) -> Result<Vec<u8>, QueueError> {
        let mut bytes = vec![0; chain.readable_len().min(MAX_REQUEST) as usize];
        chain.read(memory, 0, &mut bytes)?;
        let request = Request(&bytes);
        let mut adapter = self.adapter();
        let outcome = match request.u32(0) {
            _ if bytes.len() < HEADER => Err(Failure::Unspecified),
            request::GET_DISPLAY_INFO => return Ok(adapter.display_info(&request)),
            request::GET_EDID if self.options.edid => match self.monitor(&adapter, &request) {
                Ok(response) => return Ok(response),
                Err(failure) => Err(failure),
            },
            request::RESOURCE_CREATE_2D => adapter.create(&request, self.options.max_host_memory),
            request::RESOURCE_UNREF => adapter.unref(&request),
            request::SET_SCANOUT => {
                let outcome = adapter.set_scanout(&request);
                self.in_use.fetch_or(outcome.is_ok(), Ordering::AcqRel);
                outcome
            }
            request::RESOURCE_FLUSH => adapter.flush(&request),
            request::TRANSFER_TO_HOST_2D => adapter.transfer(&request, memory),
            request::RESOURCE_ATTACH_BACKING => {
                let limit = self.options.max_host_memory;
                match read_backing(&request, memory, chain)? {
                    Ok(backing) => adapter.attach(&request, backing, limit),
                    Err(failure) => Err(failure),
                }
            }
            request::RESOURCE_DETACH_BACKING => adapter.detach(&request),
            request::UPDATE_CURSOR => adapter.update_cursor(&request),
            request::MOVE_CURSOR => adapter.move_cursor(&request),
            _ => Err(Failure::Unspecified),
        };
        Ok(request.response(match outcome {
            Ok(()) => ok::NO_DATA,
            Err(failure) => failure as u32,
        }))
    }

    /// GET_EDID: describes the monitor of an output.
    fn monitor(&self, adapter: &Adapter, request: &Request<'_>) -> Result<Vec<u8>, Failure> {
        let output = adapter.outputs.get(request.u32(24) as usize);
        let output = output.ok_or(Failure::InvalidParameter)?;
        let size = output.wanted.unwrap_or(self.options.size);
        let mut response = request.response(ok::EDID);
        response.extend((edid::SIZE as u32).to_le_bytes());
        response.extend([0; 4]);
        response.extend(edid::monitor(size.width, size.height));
        response.resize(HEADER + 8 + EDID_ROOM, 0);
        Ok(response)
    }
}

/// The list of memory that comes with RESOURCE_ATTACH_BACKING.
fn read_backing(
    request: &Request<'_>,
    memory: &GuestMemory,
    chain: &Chain,
) -> Result<Result<Vec<(u64, u32)>, Failure>, QueueError> {
    const LIST: usize = 32;
    let count = request.u32(28) as usize;
    if count > MAX_BACKING {
        return Ok(Err(Failure::Unspecified));
    }
    let mut bytes = vec![0; count * ENTRY];
    if chain.read(memory, LIST as u64, &mut bytes)? < bytes.len() {
        return Ok(Err(Failure::Unspecified));
    }
    let entry = |bytes: &[u8]| {
        let entry = Request(bytes);
        (entry.u64(0), entry.u32(8))
    };
    Ok(Ok(bytes.chunks_exact(ENTRY).map(entry).collect()))
}

impl Adapter {
    fn resource(&mut self, id: u32) -> Result<&mut Resource, Failure> {
        self.resources.get_mut(&id).ok_or(Failure::InvalidResource)
    }

    /// GET_DISPLAY_INFO: what the outputs would like to show.
    fn display_info(&self, request: &Request<'_>) -> Vec<u8> {
        let mut response = request.response(ok::DISPLAY_INFO);
        for index in 0..MAX_OUTPUTS as usize {
            let wanted = self.outputs.get(index).and_then(|output| output.wanted);
            let Size { width, height } = wanted.unwrap_or_default();
            let words = [0, 0, width, height, wanted.is_some().into(), 0];
            response.extend(words.into_iter().flat_map(u32::to_le_bytes));
        }
        response
    }

    fn create(&mut self, request: &Request<'_>, limit: u64) -> Outcome {
        let [id, format, width, height] = [24, 28, 32, 36].map(|at| request.u32(at));
        if id == 0 || self.resources.contains_key(&id) {
            return Err(Failure::InvalidResource);
        }
        if self.host_memory.saturating_add(Resource::size_of(width, height)) > limit {
            return Err(Failure::OutOfMemory);
        }
        let resource = Resource::new(format, width, height)?;
        self.host_memory += resource.host_memory();
        self.resources.insert(id, resource);
        Ok(())
    }

    fn unref(&mut self, request: &Request<'_>) -> Outcome {
        let id = request.u32(24);
        let resource = self.resources.remove(&id).ok_or(Failure::InvalidResource)?;
        self.host_memory -= resource.host_memory();
        for output in self.outputs.iter_mut().filter(|output| output.resource == id) {
            (output.resource, output.changed) = (0, true);
        }
        Ok(())
    }

    fn set_scanout(&mut self, request: &Request<'_>) -> Outcome {
        let rect = request.rect(24);
        let (index, id) = (request.u32(40) as usize, request.u32(44));
        if index >= self.outputs.len() {
            return Err(Failure::InvalidScanout);
        }
        if id != 0 {
            let small = rect.width < MIN_SIDE || rect.height < MIN_SIDE;
            let resource = self.resource(id)?;
            if resource.backing().is_none() {
                return Err(Failure::Unspecified);
            }
            if !resource.contains(rect) || small {
                return Err(Failure::InvalidParameter);
            }
        }
        let output = &mut self.outputs[index];
        (output.resource, output.rect, output.changed) = (id, rect, true);
        Ok(())
    }

    fn flush(&mut self, request: &Request<'_>) -> Outcome {
        let (rect, id) = (request.rect(24), request.u32(40));
        if !self.resource(id)?.contains(rect) {
            return Err(Failure::InvalidParameter);
        }
        for output in self.outputs.iter_mut().filter(|output| output.resource == id) {
            output.damage(rect);
        }
        Ok(())
    }

    fn transfer(&mut self, request: &Request<'_>, memory: &GuestMemory) -> Outcome {
        let (rect, offset, id) = (request.rect(24), request.u64(40), request.u32(48));
        let resource = self.resource(id)?;
        if resource.backing().is_none() {
            return Err(Failure::Unspecified);
        }
        if !resource.contains(rect) {
            return Err(Failure::InvalidParameter);
        }
        resource.transfer(memory, rect, offset);
        Ok(())
    }

    fn attach(&mut self, request: &Request<'_>, backing: Vec<(u64, u32)>, limit: u64) -> Outcome {
        let id = request.u32(24);
        let resource = self.resource(id)?;
        if resource.backing().is_some() {
            return Err(Failure::Unspecified);
        }
        let before = resource.host_memory();
        resource.set_backing(Some(backing));
        let grown = resource.host_memory() - before;
        if self.host_memory + grown > limit {
            self.resource(id)?.set_backing(None);
            return Err(Failure::OutOfMemory);
        }
        self.host_memory += grown;
        Ok(())
    }

    fn detach(&mut self, request: &Request<'_>) -> Outcome {
        let resource = self.resource(request.u32(24))?;
        if resource.backing().is_none() {
            return Err(Failure::Unspecified);
        }
        let before = resource.host_memory();
        resource.set_backing(None);
        let freed = before - resource.host_memory();
        self.host_memory -= freed;
        Ok(())
    }

    /// The position in a cursor request.
    fn cursor_position(request: &Request<'_>) -> (i32, i32) {
        (request.u32(28) as i32, request.u32(32) as i32)
    }

    fn update_cursor(&mut self, request: &Request<'_>) -> Outcome {
        let (index, id) = (request.u32(24) as usize, request.u32(40));
        let hot = (request.u32(44).min(CURSOR_SIDE - 1), request.u32(48).min(CURSOR_SIDE - 1));
        let pixels = match id {
            0 => None,
            _ => self.resource(id)?.cursor(CURSOR_SIDE, CURSOR_SIDE),
        };
        let output = self.outputs.get_mut(index).ok_or(Failure::InvalidScanout)?;
        output.cursor = pixels.map(|pixels| Cursor {
            shape: Arc::new(CursorShape { size: Size::new(CURSOR_SIDE, CURSOR_SIDE), hot, pixels }),
            position: Self::cursor_position(request),
        });
        Ok(())
    }

    fn move_cursor(&mut self, request: &Request<'_>) -> Outcome {
        let output = self.outputs.get_mut(request.u32(24) as usize);
        let output = output.ok_or(Failure::InvalidScanout)?;
        if let Some(cursor) = &mut output.cursor {
            cursor.position = Self::cursor_position(request);
        }
        Ok(())
    }
}

impl Output {
    /// The part `rect` of the resource changed.
    fn damage(&mut self, rect: Rect) {
        let shown = self.rect;
        let (left, top) = (rect.x.max(shown.x), rect.y.max(shown.y));
        let right = (rect.x + rect.width).min(shown.x + shown.width);
        let bottom = (rect.y + rect.height).min(shown.y + shown.height);
        if left < right && top < bottom {
            let (x, y) = (left - shown.x, top - shown.y);
            self.damage.add(Rect { x, y, width: right - left, height: bottom - top });
        }
    }
}
