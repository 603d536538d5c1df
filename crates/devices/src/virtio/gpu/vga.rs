//! virtio-vga: the adapter with a VGA in front, for firmware and for systems without its driver. The
//! VGA has the first output until a driver shows something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::bus::{Clock, Device};
use display::{Cursor, Frame, Size, Source, TextScreen};
use memory::{GuestMemory, MemoryError};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::VirtioGpu;
use crate::pci::{OptionRom, PciFunction, PciWiring};
use crate::vga::{Vga, VgaOptions, VgaState};
use crate::virtio::pci::VgaFront;
use crate::virtio::{TransportError, VirtioPci, VirtioPciOptions};

/// A [`VirtioGpu`] with a [`Vga`].
pub struct VirtioVga {
    vga: Arc<Vga>,
    gpu: Arc<VirtioGpu>,
    pci: Arc<VirtioPci>,
    /// Whether the VGA drew the first output last.
    vga_drew: AtomicBool,
}

#[derive(Serialize, Deserialize)]
struct VirtioVgaState {
    vga: VgaState,
    pci: Saved,
}

impl State for VirtioVgaState {
    const NAME: &'static str = "virtio-vga";
    const VERSION: u32 = 1;
}

/// Why a [`VirtioVga`] could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VirtioVgaError {
    /// The transport could not be made.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// There is no room for the video memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl VirtioVga {
    /// A function with `gpu` and a VGA that has expansion ROM `rom`.
    ///
    /// # Errors
    /// If the host has no thread or no room for the video memory.
    pub fn new(
        gpu: Arc<VirtioGpu>,
        vga: &VgaOptions,
        rom: Option<OptionRom>,
        options: VirtioPciOptions,
        clock: Clock,
        wiring: PciWiring,
        memory: &Arc<GuestMemory>,
    ) -> Result<Arc<Self>, VirtioVgaError> {
        let vga = Vga::with_options(&options.id, vga, clock, memory)?;
        let front = VgaFront {
            registers: vga.register_page(),
            video_memory: Arc::clone(vga.memory_block()),
            rom,
        };
        let pci = VirtioPci::with_vga(gpu.clone(), options, wiring, memory.clone(), front)?;
        Ok(Arc::new(Self { vga, gpu, pci, vga_drew: AtomicBool::new(true) }))
    }

    /// The VGA.
    pub fn vga(&self) -> &Arc<Vga> {
        &self.vga
    }

    /// The virtio device.
    pub fn pci(&self) -> &Arc<VirtioPci> {
        &self.pci
    }

    /// Who has output `head`.
    fn source(&self, head: u32) -> &dyn Source {
        if head == 0 && !self.gpu.is_in_use() { &*self.vga } else { &*self.gpu }
    }
}

impl Source for VirtioVga {
    fn draw(&self, head: u32, frame: &mut Frame) {
        if head == 0 {
            let vga = !self.gpu.is_in_use();
            // What the other one drew is to be replaced.
            frame.full |= self.vga_drew.swap(vga, Ordering::AcqRel) != vga;
        }
        self.source(head).draw(head, frame);
    }

    fn text(&self, head: u32) -> Option<TextScreen> {
        self.source(head).text(head)
    }

    fn cursor(&self, head: u32) -> Option<Cursor> {
        self.source(head).cursor(head)
    }

    fn suggest_size(&self, head: u32, size: Option<Size>) {
        self.gpu.suggest_size(head, size);
    }
}

impl PciFunction for VirtioVga {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        self.pci.read_config(offset, size)
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        self.pci.write_config(offset, size, value);
    }
}

impl Device for VirtioVga {
    fn id(&self) -> String {
        self.pci.id()
    }

    fn reset(&self) {
        self.pci.reset();
        self.vga.reset();
    }

    fn pause(&self) {
        self.pci.pause();
    }

    fn resume(&self) {
        self.pci.resume();
    }

    fn save(&self) -> Saved {
        Saved::new(&VirtioVgaState { vga: self.vga.save(), pci: self.pci.save() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: VirtioVgaState = saved.decode()?;
        self.vga
            .check(&state.vga)
            .map_err(|reason| RestoreError::Damaged { name: VirtioVgaState::NAME, reason })?;
        self.pci.restore(&state.pci)?;
        self.vga.restore(&state.vga);
        Ok(())
    }
}
