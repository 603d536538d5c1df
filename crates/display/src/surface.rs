//! Pixels, and which of them changed.

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Pixels in a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
}

impl Size {
    /// A size in pixels.
    pub const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// All of it.
    pub fn rect(self) -> Rect {
        Rect { x: 0, y: 0, width: self.width, height: self.height }
    }
}

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rect {
    /// Leftmost column.
    pub x: u32,
    /// Topmost line.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Lines.
    pub height: u32,
}

impl Rect {
    /// Whether there is nothing in it.
    pub fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// What of it lies within `size`.
    pub fn clipped(self, size: Size) -> Self {
        let (x, y) = (self.x.min(size.width), self.y.min(size.height));
        let width = self.width.min(size.width - x);
        let height = self.height.min(size.height - y);
        Self { x, y, width, height }
    }

    /// The least rectangle around both.
    pub fn union(self, other: Self) -> Self {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let right = self.x.saturating_add(self.width).max(other.x.saturating_add(other.width));
        let bottom = self.y.saturating_add(self.height).max(other.y.saturating_add(other.height));
        Self { x, y, width: right - x, height: bottom - y }
    }

    /// Whether the two touch or overlap.
    fn touches(self, other: Self) -> bool {
        let apart = |a: u32, a_len: u32, b: u32, b_len: u32| {
            a.saturating_add(a_len) < b || b.saturating_add(b_len) < a
        };
        !apart(self.x, self.width, other.x, other.width)
            && !apart(self.y, self.height, other.y, other.height)
    }
}

/// A picture. Each pixel is a word `0x00RRGGBB`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surface {
    size: Size,
    pixels: Vec<u32>,
}

impl Surface {
    /// A black picture.
    pub fn new(size: Size) -> Self {
        let mut surface = Self::default();
        surface.resize(size);
        surface
    }

    /// Makes it a black picture of `size`. If the host has no room for that, the picture is empty.
    pub fn resize(&mut self, size: Size) {
        let wanted = size.width as usize * size.height as usize;
        self.pixels.clear();
        let found = self.pixels.try_reserve_exact(wanted).is_ok();
        self.size = if found { size } else { Size::default() };
        self.pixels.resize(if found { wanted } else { 0 }, 0);
    }

    /// Width and height.
    pub fn size(&self) -> Size {
        self.size
    }

    /// All pixels, line by line.
    pub fn pixels(&self) -> &[u32] {
        &self.pixels
    }

    /// Line `y`.
    ///
    /// # Panics
    /// If there is no such line.
    pub fn row(&self, y: u32) -> &[u32] {
        let width = self.size.width as usize;
        &self.pixels[y as usize * width..][..width]
    }

    /// Line `y`, to draw in.
    ///
    /// # Panics
    /// If there is no such line.
    pub fn row_mut(&mut self, y: u32) -> &mut [u32] {
        let width = self.size.width as usize;
        &mut self.pixels[y as usize * width..][..width]
    }

    /// Fills all of it.
    pub fn fill(&mut self, pixel: u32) {
        self.pixels.fill(pixel);
    }

    /// Copies what `other`, of the same size, shows in `rect`.
    pub fn copy_rect(&mut self, other: &Surface, rect: Rect) {
        let rect = rect.clipped(self.size).clipped(other.size);
        let columns = rect.x as usize..(rect.x + rect.width) as usize;
        for y in rect.y..rect.y + rect.height {
            self.row_mut(y)[columns.clone()].copy_from_slice(&other.row(y)[columns.clone()]);
        }
    }
}

/// Most rectangles that are told apart.
const MAX_RECTS: usize = 32;

/// The parts of a picture that changed, in a bounded number of rectangles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    rects: Vec<Rect>,
}

impl Damage {
    /// Adds a part. One that touches the part added last grows it.
    pub fn add(&mut self, rect: Rect) {
        if rect.is_empty() {
            return;
        }
        match self.rects.last_mut() {
            Some(last) if last.touches(rect) => *last = last.union(rect),
            _ => self.rects.push(rect),
        }
        if self.rects.len() > MAX_RECTS {
            let all = self.rects.drain(..).fold(Rect::default(), Rect::union);
            self.rects.push(all);
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.rects.is_empty()
    }

    /// The parts.
    pub fn rects(&self) -> &[Rect] {
        &self.rects
    }

    /// Forgets the parts and returns them.
    pub fn take(&mut self) -> Vec<Rect> {
        std::mem::take(&mut self.rects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_grows_and_stays_bounded() {
        let mut damage = Damage::default();
        damage.add(Rect { x: 0, y: 0, width: 10, height: 1 });
        damage.add(Rect { x: 0, y: 1, width: 20, height: 1 });
        assert_eq!(damage.rects(), [Rect { x: 0, y: 0, width: 20, height: 2 }]);
        for i in 1..100 {
            damage.add(Rect { x: 0, y: 10 * i, width: 1, height: 1 });
        }
        assert!(damage.rects().len() <= MAX_RECTS);
        let all = damage.take().into_iter().fold(Rect::default(), Rect::union);
        assert_eq!(all, Rect { x: 0, y: 0, width: 20, height: 991 });
        assert!(damage.is_empty());
    }

    #[test]
    fn a_part_is_copied_and_clipped() {
        let mut from = Surface::new(Size::new(4, 4));
        from.fill(7);
        let mut to = Surface::new(Size::new(4, 4));
        to.copy_rect(&from, Rect { x: 2, y: 3, width: 100, height: u32::MAX });
        assert_eq!(to.row(3), [0, 0, 7, 7]);
        assert_eq!(to.row(2), [0; 4]);
    }
}
