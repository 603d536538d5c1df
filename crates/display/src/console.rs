//! One output of a graphics device, and those who look at it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::{Damage, Rect, Size, Surface, TextScreen};

/// What a device draws into.
#[derive(Debug, Default)]
pub struct Frame {
    /// The picture as it was drawn last.
    pub surface: Surface,
    /// What the device changed; it adds to it whatever it draws.
    pub damage: Damage,
    /// Everything is to be drawn, changed or not.
    pub full: bool,
}

impl Frame {
    /// Makes the picture one of `size`, if it is not already; then all of it is to be drawn.
    pub fn set_size(&mut self, size: Size) {
        if self.surface.size() != size {
            self.surface.resize(size);
            self.full = true;
        }
    }
}

/// The shape of a hardware cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CursorShape {
    /// Width and height.
    pub size: Size,
    /// Column and line that point.
    pub hot: (u32, u32),
    /// The pixels, line by line, each `0xAARRGGBB`.
    pub pixels: Vec<u32>,
}

/// A hardware cursor: drawn by viewers, not part of the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// What it looks like.
    pub shape: Arc<CursorShape>,
    /// Where the shape's hot spot is, in pixels from the left and the top.
    pub position: (i32, i32),
}

/// A graphics device, as its viewers know it. `head` counts the device's outputs from 0.
pub trait Source: Send + Sync {
    /// Brings the frame up to date with what the output shows now.
    fn draw(&self, head: u32, frame: &mut Frame);

    /// The characters shown, if the output is in a text mode.
    fn text(&self, _head: u32) -> Option<TextScreen> {
        None
    }

    /// The hardware cursor, if one is shown.
    fn cursor(&self, _head: u32) -> Option<Cursor> {
        None
    }

    /// A viewer would like the output to be of this size; none at all if there is no viewer.
    fn suggest_size(&self, _head: u32, _size: Option<Size>) {}
}

#[derive(Default)]
struct State {
    frame: Frame,
    drawn: bool,
    /// What each view has not seen yet.
    pending: Vec<Weak<Mutex<Damage>>>,
}

/// One output of one device.
pub struct Console {
    index: usize,
    device: String,
    head: u32,
    source: Arc<dyn Source>,
    state: Mutex<State>,
}

impl Console {
    /// Console number `index` of a machine: output `head` of the device with path `device`.
    pub fn new(index: usize, device: &str, head: u32, source: Arc<dyn Source>) -> Arc<Self> {
        let device = device.to_owned();
        Arc::new(Self { index, device, head, source, state: Mutex::default() })
    }

    /// Its number among the machine's consoles.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The path of its device.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Which of the device's outputs it is.
    pub fn head(&self) -> u32 {
        self.head
    }

    /// What a window with it is called.
    pub fn label(&self) -> String {
        let name = self.device.rsplit('/').next().unwrap_or(&self.device);
        if self.head == 0 { name.to_owned() } else { format!("{name}.{}", self.head) }
    }

    /// The characters shown, if it is in a text mode.
    pub fn text(&self) -> Option<TextScreen> {
        self.source.text(self.head)
    }

    /// The hardware cursor, if one is shown.
    pub fn cursor(&self) -> Option<Cursor> {
        self.source.cursor(self.head)
    }

    /// Tells the device what size would fit the viewer.
    pub fn suggest_size(&self, size: Option<Size>) {
        self.source.suggest_size(self.head, size);
    }

    /// A new viewer, who has seen nothing yet.
    pub fn view(self: &Arc<Self>) -> View {
        let pending = Arc::new(Mutex::new(Damage::default()));
        let mut state = lock(&self.state);
        state.pending.retain(|view| view.strong_count() > 0);
        state.pending.push(Arc::downgrade(&pending));
        View { console: Arc::clone(self), surface: Surface::default(), pending, fresh: true }
    }

    /// Draws, and tells all views what changed.
    fn draw(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        state.frame.full = !state.drawn;
        state.drawn = true;
        self.source.draw(self.head, &mut state.frame);
        let whole = state.frame.surface.size().rect();
        if state.frame.full {
            state.frame.damage.add(whole);
        }
        let rects = state.frame.damage.take();
        if !rects.is_empty() {
            for pending in state.pending.iter().filter_map(Weak::upgrade) {
                let mut pending = lock(&pending);
                rects.iter().for_each(|&rect| pending.add(rect));
            }
        }
        state
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("index", &self.index)
            .field("device", &self.device)
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

/// What [`View::refresh`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// The size is another than before.
    pub resized: bool,
    /// The parts that changed.
    pub rects: Vec<Rect>,
}

/// One viewer of a console.
pub struct View {
    console: Arc<Console>,
    surface: Surface,
    pending: Arc<Mutex<Damage>>,
    /// Nothing was seen yet.
    fresh: bool,
}

impl View {
    /// The console looked at.
    pub fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// The picture as of the last refresh.
    pub fn surface(&self) -> &Surface {
        &self.surface
    }

    /// Gives the picture away.
    pub fn into_surface(self) -> Surface {
        self.surface
    }

    /// Has the device draw, and copies what changed since this view's last refresh.
    pub fn refresh(&mut self) -> Update {
        let state = self.console.draw();
        let mut rects = lock(&self.pending).take();
        let shown = &state.frame.surface;
        let size = shown.size();
        let resized = self.surface.size() != size;
        if std::mem::take(&mut self.fresh) || resized {
            self.surface.clone_from(shown);
            rects = vec![size.rect()];
        } else {
            for rect in &mut rects {
                *rect = rect.clipped(size);
                self.surface.copy_rect(shown, *rect);
            }
        }
        Update { resized, rects }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("console", &self.console).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws one more pixel each time it is asked.
    #[derive(Default)]
    struct Dots(Mutex<(u32, u32)>);

    impl Source for Dots {
        fn draw(&self, _head: u32, frame: &mut Frame) {
            let mut state = lock(&self.0);
            let (count, width) = &mut *state;
            frame.set_size(Size::new(8 + *width, 2));
            frame.surface.row_mut(1)[*count as usize] = 0xff;
            frame.damage.add(Rect { x: *count, y: 1, width: 1, height: 1 });
            *count += 1;
        }
    }

    #[test]
    fn each_view_is_told_what_it_has_not_seen() {
        let dots = Arc::new(Dots::default());
        let console = Console::new(0, "/machine/peripheral/video0", 1, dots.clone());
        assert_eq!(console.label(), "video0.1");
        let (mut often, mut seldom) = (console.view(), console.view());
        assert_eq!(often.refresh().rects, [Size::new(8, 2).rect()]);
        seldom.refresh();
        often.refresh();
        let dot = |x| Rect { x, y: 1, width: 1, height: 1 };
        assert_eq!(often.refresh(), Update { resized: false, rects: vec![dot(3)] });
        assert_eq!(seldom.refresh().rects, [Rect { x: 2, y: 1, width: 3, height: 1 }]);
        assert_eq!(seldom.surface().row(1)[..6], [0xff, 0xff, 0xff, 0xff, 0xff, 0]);
        lock(&dots.0).1 = 4;
        assert_eq!(
            seldom.refresh(),
            Update { resized: true, rects: vec![Size::new(12, 2).rect()] }
        );
        assert_eq!(often.surface().row(1)[..5], [0xff, 0xff, 0xff, 0xff, 0]);
        assert_eq!(often.surface().size(), Size::new(8, 2), "it did not look again");
    }
}
