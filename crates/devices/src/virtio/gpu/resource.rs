//! A picture of the adapter's, and the guest memory that it is copied from.

use display::Rect;
use memory::GuestMemory;
use serde::{Deserialize, Serialize};

use super::protocol::Failure;

/// Bytes of a pixel, in all formats.
const PIXEL: usize = 4;
/// Most stretches of memory behind a resource.
pub(super) const MAX_BACKING: usize = 16384;
/// Largest width and height.
const MAX_SIDE: u32 = 16384;

/// Where the components of a pixel are, as the shifts of red, green and blue in a little-endian word.
fn shifts(format: u32) -> Option<[u32; 3]> {
    match format {
        // B8G8R8A8, B8G8R8X8
        1 | 2 => Some([16, 8, 0]),
        // A8R8G8B8, X8R8G8B8
        3 | 4 => Some([8, 16, 24]),
        // R8G8B8A8, R8G8B8X8
        67 | 134 => Some([0, 8, 16]),
        // X8B8G8R8, A8B8G8R8
        68 | 121 => Some([24, 16, 8]),
        _ => None,
    }
}

/// A resource.
#[derive(Debug)]
pub(super) struct Resource {
    format: u32,
    shifts: [u32; 3],
    width: u32,
    height: u32,
    bytes: Vec<u8>,
    /// Guest physical addresses and lengths in bytes; none if nothing is attached.
    backing: Option<Vec<(u64, u32)>>,
}

/// The saved form of a [`Resource`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SavedResource {
    format: u32,
    width: u32,
    height: u32,
    bytes: Vec<u8>,
    backing: Option<Vec<(u64, u32)>>,
}

impl Resource {
    /// Bytes that a resource of this size takes.
    pub(super) fn size_of(width: u32, height: u32) -> u64 {
        (u64::from(width) * u64::from(height)).saturating_mul(PIXEL as u64)
    }

    /// A black resource.
    pub(super) fn new(format: u32, width: u32, height: u32) -> Result<Self, Failure> {
        let shifts = shifts(format).ok_or(Failure::InvalidParameter)?;
        let sides = 1..=MAX_SIDE;
        if !sides.contains(&width) || !sides.contains(&height) {
            return Err(Failure::InvalidParameter);
        }
        let len = Self::size_of(width, height) as usize;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| Failure::OutOfMemory)?;
        bytes.resize(len, 0);
        Ok(Self { format, shifts, width, height, bytes, backing: None })
    }

    pub(super) fn save(&self) -> SavedResource {
        SavedResource {
            format: self.format,
            width: self.width,
            height: self.height,
            bytes: self.bytes.clone(),
            backing: self.backing.clone(),
        }
    }

    pub(super) fn restore(saved: &SavedResource) -> Result<Self, String> {
        let wrong = || format!("a resource of {}x{}", saved.width, saved.height);
        if saved.bytes.len() as u64 != Self::size_of(saved.width, saved.height)
            || saved.backing.as_ref().is_some_and(|backing| backing.len() > MAX_BACKING)
        {
            return Err(wrong());
        }
        let mut resource =
            Self::new(saved.format, saved.width, saved.height).map_err(|_| wrong())?;
        resource.bytes.clone_from(&saved.bytes);
        resource.backing.clone_from(&saved.backing);
        Ok(resource)
    }

    /// Bytes that it takes.
    pub(super) fn host_memory(&self) -> u64 {
        let list = self.backing.as_ref().map_or(0, Vec::len);
        self.bytes.len() as u64 + (list * size_of::<(u64, u32)>()) as u64
    }

    /// Whether `rect` lies within it.
    pub(super) fn contains(&self, rect: Rect) -> bool {
        let fits =
            |start: u32, len: u32, side| start.checked_add(len).is_some_and(|end| end <= side);
        fits(rect.x, rect.width, self.width) && fits(rect.y, rect.height, self.height)
    }

    pub(super) fn backing(&self) -> Option<&[(u64, u32)]> {
        self.backing.as_deref()
    }

    pub(super) fn set_backing(&mut self, backing: Option<Vec<(u64, u32)>>) {
        self.backing = backing;
    }

    /// Copies the part `rect`, which lies within it, from the memory behind it; there the part begins at
    /// `offset` and has lines as long as the resource's. What is not RAM, or not there, stays as it was.
    pub(super) fn transfer(&mut self, memory: &GuestMemory, rect: Rect, offset: u64) {
        let Some(backing) = &self.backing else { return };
        let stride = self.width as usize * PIXEL;
        let count = rect.width as usize * PIXEL;
        // Lines come in ascending order, so the search goes on from where the line before was.
        let (mut index, mut base) = (0, 0_u64);
        for line in 0..u64::from(rect.height) {
            let row = (u64::from(rect.y) + line) as usize * stride + rect.x as usize * PIXEL;
            let mut out = &mut self.bytes[row..row + count];
            let mut at = offset.saturating_add(line * stride as u64);
            while !out.is_empty() {
                let Some(&(addr, len)) = backing.get(index) else { return };
                if at >= base + u64::from(len) {
                    base += u64::from(len);
                    index += 1;
                    continue;
                }
                let inside = at - base;
                let part = ((u64::from(len) - inside) as usize).min(out.len());
                let (now, later) = std::mem::take(&mut out).split_at_mut(part);
                let _ = memory.read(addr.wrapping_add(inside), now);
                out = later;
                at += part as u64;
            }
        }
    }

    /// The pixels from column `x` of line `y` on, each `0x00RRGGBB`, as many as `out` has.
    ///
    /// # Panics
    /// If they are not all there.
    pub(super) fn pixels(&self, x: u32, y: u32, out: &mut [u32]) {
        let start = (y as usize * self.width as usize + x as usize) * PIXEL;
        let source = self.bytes[start..start + out.len() * PIXEL].chunks_exact(PIXEL);
        let [red, green, blue] = self.shifts;
        for (out, pixel) in out.iter_mut().zip(source) {
            let word = u32::from_le_bytes([pixel[0], pixel[1], pixel[2], pixel[3]]);
            let component = |shift: u32| word >> shift & 0xff;
            *out = component(red) << 16 | component(green) << 8 | component(blue);
        }
    }

    /// All pixels as a cursor's, each `0xAARRGGBB`, if it has `width` by `height`.
    pub(super) fn cursor(&self, width: u32, height: u32) -> Option<Vec<u32>> {
        if (self.width, self.height) != (width, height) {
            return None;
        }
        let mut pixels = vec![0; self.bytes.len() / PIXEL];
        for (y, row) in (0..).zip(pixels.chunks_exact_mut(width as usize)) {
            self.pixels(0, y, row);
        }
        // The component that is none of the three.
        let alpha = 48 - self.shifts.iter().sum::<u32>();
        for (out, pixel) in pixels.iter_mut().zip(self.bytes.chunks_exact(PIXEL)) {
            let word = u32::from_le_bytes([pixel[0], pixel[1], pixel[2], pixel[3]]);
            *out |= (word >> alpha & 0xff) << 24;
        }
        Some(pixels)
    }
}
