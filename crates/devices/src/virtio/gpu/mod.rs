//! A graphics adapter without acceleration (specification, section 5.7): the driver draws pictures in
//! its memory, has parts of them copied into resources of ours, and shows those on outputs.
//!
//! - `protocol`: what requests and responses look like.
//! - `resource`: the pictures, with the memory they are copied from.
//! - `requests`: what each request does.
//!
//! Invariants:
//! - All resources together have no more bytes than `max_hostmem`, lists of memory included.
//! - vCPUs wait for no request and no drawing: what they read are atomics.

mod protocol;
mod requests;
mod resource;
#[cfg(test)]
mod tests;
mod vga;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use display::{Cursor, CursorShape, Damage, Frame, Rect, Size, Source};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::{Kind, VirtioCore, VirtioDevice};
use crate::lock;
use resource::{Resource, SavedResource};

pub use vga::VirtioVga;

const KIND: Kind = Kind {
    name: "virtio-gpu",
    device_type: 16,
    transitional_id: 0x1050,
    class: 0x03_80_00,
    extra_vectors: Some(1),
};

/// Feature: the driver can ask for descriptions of monitors.
const F_EDID: u64 = 1 << 1;
/// Most outputs that the protocol knows.
pub const MAX_OUTPUTS: u32 = 16;
/// Event: the outputs changed.
const EVENT_DISPLAY: u32 = 1;
/// Width and height of a cursor.
const CURSOR_SIDE: u32 = 64;
/// What an output shows that was never used.
const IDLE_SIZE: Size = Size::new(640, 480);

/// What users can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuOptions {
    /// Outputs, 1 to [`MAX_OUTPUTS`].
    pub outputs: u32,
    /// Size that the first output would like.
    pub size: Size,
    /// Describe monitors.
    pub edid: bool,
    /// Most memory for resources, in bytes.
    pub max_host_memory: u64,
}

impl Default for GpuOptions {
    fn default() -> Self {
        let size = Size::new(1280, 800);
        Self { outputs: 1, size, edid: true, max_host_memory: 256 << 20 }
    }
}

/// One output.
#[derive(Debug, Default)]
struct Output {
    /// The resource shown, 0 for none.
    resource: u32,
    /// The part of it that is shown.
    rect: Rect,
    /// What changed since it was drawn last.
    damage: Damage,
    /// Another picture is shown than was drawn last.
    changed: bool,
    /// Size that the viewer would like; none if the output is not connected.
    wanted: Option<Size>,
    cursor: Option<Cursor>,
}

#[derive(Debug, Default)]
struct Adapter {
    resources: BTreeMap<u32, Resource>,
    /// Bytes that the resources take.
    host_memory: u64,
    outputs: Vec<Output>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedOutput {
    resource: u32,
    rect: (u32, u32, u32, u32),
    wanted: Option<(u32, u32)>,
    cursor: Option<SavedCursor>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedCursor {
    hot: (u32, u32),
    position: (i32, i32),
    pixels: Vec<u32>,
}

impl SavedCursor {
    fn of(cursor: &Cursor) -> Self {
        let shape = &cursor.shape;
        Self { hot: shape.hot, position: cursor.position, pixels: shape.pixels.clone() }
    }

    fn restore(&self) -> Result<Cursor, String> {
        let size = Size::new(CURSOR_SIDE, CURSOR_SIDE);
        if self.pixels.len() as u32 != CURSOR_SIDE * CURSOR_SIDE
            || self.hot.0.max(self.hot.1) >= CURSOR_SIDE
        {
            return Err(format!("a cursor of {} pixels", self.pixels.len()));
        }
        let shape = Arc::new(CursorShape { size, hot: self.hot, pixels: self.pixels.clone() });
        Ok(Cursor { shape, position: self.position })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct GpuState {
    resources: Vec<(u32, SavedResource)>,
    outputs: Vec<SavedOutput>,
    events: u32,
    in_use: bool,
}

impl State for GpuState {
    const NAME: &'static str = "virtio-gpu";
    const VERSION: u32 = 1;
}

/// A virtio graphics adapter.
pub struct VirtioGpu {
    options: GpuOptions,
    adapter: Mutex<Adapter>,
    /// Events that the driver has not acknowledged.
    events: AtomicU32,
    /// Whether a driver shows something: until then a VGA in front has the screen.
    in_use: AtomicBool,
    core: OnceLock<Weak<VirtioCore>>,
}

impl VirtioGpu {
    /// An adapter.
    ///
    /// # Panics
    /// If the number of outputs is out of range.
    pub fn new(options: GpuOptions) -> Arc<Self> {
        assert!((1..=MAX_OUTPUTS).contains(&options.outputs), "{} outputs", options.outputs);
        Arc::new(Self {
            options,
            adapter: Mutex::new(Self::fresh(options)),
            events: AtomicU32::new(0),
            in_use: AtomicBool::new(false),
            core: OnceLock::new(),
        })
    }

    fn fresh(options: GpuOptions) -> Adapter {
        let mut outputs: Vec<Output> = (0..options.outputs).map(|_| Output::default()).collect();
        outputs[0].wanted = Some(options.size);
        Adapter { outputs, ..Adapter::default() }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> u32 {
        self.options.outputs
    }

    /// Whether a driver shows something.
    fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Acquire)
    }

    fn adapter(&self) -> MutexGuard<'_, Adapter> {
        lock(&self.adapter)
    }

    /// Whether `state` is one that the adapter can be in, with the resources in it.
    fn adapter_of(&self, state: &GpuState) -> Result<Adapter, String> {
        let mut adapter = Self::fresh(self.options);
        for (id, saved) in &state.resources {
            let resource = Resource::restore(saved)?;
            adapter.host_memory += resource.host_memory();
            if *id == 0 || adapter.resources.insert(*id, resource).is_some() {
                return Err(format!("resource {id} twice"));
            }
        }
        if adapter.host_memory > self.options.max_host_memory {
            return Err(format!("{} bytes of resources", adapter.host_memory));
        }
        if state.outputs.len() != adapter.outputs.len() {
            return Err(format!("{} outputs", state.outputs.len()));
        }
        for (output, saved) in adapter.outputs.iter_mut().zip(&state.outputs) {
            let (x, y, width, height) = saved.rect;
            let rect = Rect { x, y, width, height };
            let shown = adapter.resources.get(&saved.resource);
            if saved.resource != 0 && !shown.is_some_and(|shown| shown.contains(rect)) {
                return Err(format!("an output shows resource {}", saved.resource));
            }
            (output.resource, output.rect, output.changed) = (saved.resource, rect, true);
            output.cursor = saved.cursor.as_ref().map(SavedCursor::restore).transpose()?;
            output.wanted = saved.wanted.map(|(width, height)| Size::new(width, height));
        }
        Ok(adapter)
    }
}

impl VirtioDevice for VirtioGpu {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        if self.options.edid { F_EDID } else { 0 }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64, 16]
    }

    fn connect(&self, core: Weak<VirtioCore>) {
        let _ = self.core.set(core);
    }

    fn config(&self) -> Vec<u8> {
        let events = self.events.load(Ordering::Acquire);
        [events, 0, self.options.outputs, 0].into_iter().flat_map(u32::to_le_bytes).collect()
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        // Only events_clear, at 4, can be written.
        let mut clear = [0; 4];
        for (at, &byte) in (offset..).zip(data) {
            if let Some(slot) = at.checked_sub(4).and_then(|at| clear.get_mut(at)) {
                *slot = byte;
            }
        }
        self.events.fetch_and(!u32::from_le_bytes(clear), Ordering::AcqRel);
    }

    fn service(&self, core: &VirtioCore, queue: u16) {
        while !core.is_pausing() {
            let Some(chain) = core.pop(queue) else { return };
            let response = match self.handle(core.memory(), &chain) {
                Ok(response) => response,
                Err(error) => return core.fail(&error),
            };
            match chain.write(core.memory(), 0, &response) {
                Ok(written) => core.complete(queue, &chain, written as u32),
                Err(error) => return core.fail(&error),
            }
        }
    }

    fn reset(&self) {
        let mut adapter = self.adapter();
        // Viewers keep their wishes.
        let wanted: Vec<_> = adapter.outputs.iter().map(|output| output.wanted).collect();
        *adapter = Self::fresh(self.options);
        for (output, wanted) in adapter.outputs.iter_mut().zip(wanted) {
            (output.wanted, output.changed) = (wanted, true);
        }
        drop(adapter);
        self.events.store(0, Ordering::Release);
        self.in_use.store(false, Ordering::Release);
    }

    fn save(&self) -> Saved {
        let adapter = self.adapter();
        let outputs = adapter.outputs.iter().map(|output| SavedOutput {
            resource: output.resource,
            rect: (output.rect.x, output.rect.y, output.rect.width, output.rect.height),
            wanted: output.wanted.map(|size| (size.width, size.height)),
            cursor: output.cursor.as_ref().map(SavedCursor::of),
        });
        let resources = adapter.resources.iter().map(|(&id, resource)| (id, resource.save()));
        Saved::new(&GpuState {
            resources: resources.collect(),
            outputs: outputs.collect(),
            events: self.events.load(Ordering::Acquire),
            in_use: self.is_in_use(),
        })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: GpuState = saved.decode()?;
        let adapter = self
            .adapter_of(&state)
            .map_err(|reason| RestoreError::Damaged { name: GpuState::NAME, reason })?;
        *self.adapter() = adapter;
        self.events.store(state.events, Ordering::Release);
        self.in_use.store(state.in_use, Ordering::Release);
        Ok(())
    }
}

impl Source for VirtioGpu {
    fn draw(&self, head: u32, frame: &mut Frame) {
        let mut adapter = self.adapter();
        let Adapter { resources, outputs, .. } = &mut *adapter;
        let Some(output) = outputs.get_mut(head as usize) else { return };
        frame.full |= std::mem::take(&mut output.changed);
        let damage = output.damage.take();
        let Some(resource) = resources.get(&output.resource) else {
            if frame.surface.size() == Size::default() {
                frame.set_size(IDLE_SIZE);
            }
            if frame.full {
                frame.surface.fill(0);
            }
            return;
        };
        let size = Size::new(output.rect.width, output.rect.height);
        frame.set_size(size);
        if frame.surface.size() != size {
            return;
        }
        let rects = if frame.full { vec![size.rect()] } else { damage };
        for rect in rects {
            let rect = rect.clipped(size);
            for y in rect.y..rect.y + rect.height {
                let row = &mut frame.surface.row_mut(y)[rect.x as usize..][..rect.width as usize];
                resource.pixels(output.rect.x + rect.x, output.rect.y + y, row);
            }
            frame.damage.add(rect);
        }
    }

    fn cursor(&self, head: u32) -> Option<Cursor> {
        self.adapter().outputs.get(head as usize)?.cursor.clone()
    }

    fn suggest_size(&self, head: u32, size: Option<Size>) {
        let mut adapter = self.adapter();
        let Some(output) = adapter.outputs.get_mut(head as usize) else { return };
        if output.wanted == size {
            return;
        }
        output.wanted = size;
        drop(adapter);
        self.events.fetch_or(EVENT_DISPLAY, Ordering::AcqRel);
        if let Some(core) = self.core.get().and_then(Weak::upgrade) {
            core.config_changed();
        }
    }
}
