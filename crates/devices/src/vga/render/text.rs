//! Text modes: cells of a character and an attribute in planes 0 and 1, two fonts in plane 2.
//!
//! The screen is a sequence of runs of scan lines, each part of one row of cells: the first may begin
//! inside a row (smooth scrolling), and the line compare may cut one short to begin again at address 0.

use display::{Cell, Frame, Rect, Size, TextScreen};

use super::palette_16;
use crate::vga::registers::{Registers, attr, crtc, seq};
use crate::vga::vram::Vram;

/// Bytes of a glyph in a font.
const GLYPH: usize = 32;
/// Glyphs in a font.
const GLYPHS: usize = 256;
/// The plane that fonts are in.
const FONT_PLANE: usize = 2;
/// Most cells on a screen; a mode with more shows nothing.
const MAX_CELLS: u32 = 160 * 100;
/// How long the cursor stays on, and off, in nanoseconds.
const BLINK_NS: u64 = 228_000_000;
/// Scan lines in all of a screen that a mode may have at most.
const MAX_LINES: u32 = 2048;

/// The cursor, as registers describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    /// The cell's offset in memory, in bytes.
    offset: u32,
    /// First and last scan line in its row; none if the first is after the last.
    first: u32,
    last: u32,
}

/// A text mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::vga) struct TextMode {
    /// 8, 9 or 16 dots.
    cell_width: u32,
    /// Scan lines of a cell.
    cell_height: u32,
    columns: u32,
    rows: u32,
    /// Offset in memory of the first cell shown, in bytes.
    start: u32,
    /// Bytes from a row to the next.
    pitch: u32,
    /// Offsets in memory of the fonts of attributes without and with bit 3.
    fonts: [u32; 2],
    palette: [u32; 16],
    /// The ninth dot of line graphics repeats the eighth.
    line_graphics: bool,
    /// Dots by which the picture is moved left.
    pan: u32,
    /// Panning ends at the line compare.
    pan_split: bool,
    /// Scan lines of the first row that are not shown.
    preset_row: u32,
    line_compare: u32,
    cursor: Option<Cursor>,
}

/// A run of scan lines that belong to one row of cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// First line on the screen.
    y: u32,
    /// Lines.
    lines: u32,
    /// The first of them, counted from the top of the cells.
    scan: u32,
    /// Offset in memory of the row's first cell, in bytes.
    offset: u32,
    /// Dots by which it is moved left.
    pan: u32,
}

impl TextMode {
    pub(in crate::vga) fn of(registers: &Registers) -> Self {
        let (c, a) = (&registers.crtc, &registers.attribute);
        let clocking = registers.sequencer[seq::CLOCKING];
        let nine = clocking & seq::CLOCKING_8_DOTS == 0;
        let cell_width = match (clocking & seq::CLOCKING_HALF != 0, nine) {
            (true, _) => 16,
            (false, true) => 9,
            (false, false) => 8,
        };
        let cell_height = u32::from(c[crtc::MAX_SCAN] & 0x1f) + 1;
        // Total 100 is how software asks for 100 rows of two lines.
        let lines = if c[crtc::V_TOTAL] == 100 { 100 } else { registers.lines() };
        let pan = u32::from(a[attr::PANNING] & 0x0f);
        // In cells of nine dots 8 stands for none.
        let pan = match (nine, pan) {
            (true, 8..) | (false, 8..) => 0,
            (true, pan) => pan + 1,
            (false, pan) => pan,
        };
        let pan = if cell_width == 16 { 2 * pan } else { pan };
        let map = registers.sequencer[seq::CHARACTER_MAP];
        let font = |low: u8, high: u8| {
            let number = u32::from(map >> low & 3) << 1 | u32::from(map >> high & 1);
            number * 0x2000 * 4
        };
        let word = |high: usize, low: usize| u32::from(c[high]) << 8 | u32::from(c[low]);
        let start = word(crtc::START_HIGH, crtc::START_LOW);
        let byte_pan = u32::from(c[crtc::PRESET_ROW] >> 5 & 3);
        let cursor_on = c[crtc::CURSOR_START] & 0x20 == 0;
        Self {
            cell_width,
            cell_height,
            columns: u32::from(c[crtc::H_DISPLAY_END]) + 1,
            rows: lines / cell_height,
            start: (start + byte_pan) * 4,
            pitch: u32::from(c[crtc::OFFSET]) << 3,
            fonts: [font(0, 4), font(2, 5)],
            palette: palette_16(registers),
            line_graphics: a[attr::MODE] & attr::MODE_LINE_GRAPHICS != 0,
            pan,
            pan_split: a[attr::MODE] & attr::MODE_PAN_SPLIT != 0,
            preset_row: u32::from(c[crtc::PRESET_ROW] & 0x1f),
            line_compare: registers.line_compare(),
            cursor: cursor_on.then(|| Cursor {
                offset: word(crtc::CURSOR_HIGH, crtc::CURSOR_LOW) * 4,
                first: u32::from(c[crtc::CURSOR_START] & 0x1f),
                last: u32::from(c[crtc::CURSOR_END] & 0x1f).min(cell_height - 1),
            }),
        }
    }

    fn size(&self) -> Size {
        Size::new(self.columns * self.cell_width, self.rows * self.cell_height)
    }

    /// Whether it is one that can be shown.
    fn is_sane(&self) -> bool {
        self.columns * self.rows <= MAX_CELLS
            && self.rows > 0
            && self.rows * self.cell_height <= MAX_LINES
    }

    fn runs(&self) -> Vec<Run> {
        let height = self.rows * self.cell_height;
        let mut runs = Vec::with_capacity(self.rows as usize + 2);
        let first = self.preset_row.min(self.cell_height - 1);
        let mut next = Run { y: 0, lines: 0, scan: first, offset: self.start, pan: self.pan };
        while next.y < height {
            let left = self.cell_height - next.scan;
            let split_after = self.line_compare.checked_sub(next.y).map_or(u32::MAX, |n| n + 1);
            let run = Run { lines: left.min(height - next.y).min(split_after), ..next };
            runs.push(run);
            next.y += run.lines;
            next.scan = 0;
            next.offset = run.offset.wrapping_add(self.pitch);
            if run.lines == split_after {
                next.offset = 0;
                next.pan = if self.pan_split { 0 } else { self.pan };
            }
        }
        runs
    }

    /// The cells of a row as they are in memory: code, attribute, code, attribute...
    fn cells(&self, vram: &Vram, offset: u32, count: u32) -> impl Iterator<Item = Cell> {
        (0..count).map(move |column| {
            let [code, attribute, ..] = vram.cell(offset.wrapping_add(4 * column)).to_le_bytes();
            Cell { code, attribute }
        })
    }

    pub(in crate::vga) fn screen(&self, vram: &Vram) -> TextScreen {
        if !self.is_sane() {
            return TextScreen::default();
        }
        let mut screen = TextScreen {
            columns: self.columns,
            rows: self.rows,
            palette: self.palette,
            ..TextScreen::default()
        };
        for row in 0..self.rows {
            let offset = self.start.wrapping_add(row * self.pitch);
            screen.cells.extend(self.cells(vram, offset, self.columns));
            let column = self.cursor.map(|cursor| cursor.offset.wrapping_sub(offset) / 4);
            if let Some(column) = column.filter(|&column| column < self.columns) {
                screen.cursor = Some((column, row));
            }
        }
        screen
    }
}

/// The bits of both fonts.
#[derive(Default, PartialEq, Eq)]
struct Fonts(Vec<u8>);

impl Fonts {
    fn read(mode: &TextMode, vram: &Vram) -> Self {
        let mut bits = Vec::with_capacity(2 * GLYPH * GLYPHS);
        let mut cells = vec![0; 4 * GLYPH * GLYPHS];
        for font in mode.fonts {
            vram.read(font, &mut cells);
            bits.extend(cells.chunks_exact(4).map(|cell| cell[FONT_PLANE]));
        }
        Self(bits)
    }

    /// The dots of line `scan` of a cell, the leftmost in bit 7.
    fn row(&self, cell: Cell, scan: u32) -> u8 {
        let font = usize::from(cell.attribute >> 3 & 1) * GLYPH * GLYPHS;
        self.0[font + usize::from(cell.code) * GLYPH + scan as usize]
    }
}

/// What a run showed when it was drawn last.
#[derive(PartialEq, Eq)]
struct DrawnRun {
    run: Run,
    cells: Vec<Cell>,
    /// Column of the cursor.
    cursor: Option<usize>,
}

/// What was drawn last.
#[derive(Default)]
pub(super) struct DrawnText {
    fonts: Fonts,
    runs: Vec<DrawnRun>,
    cursor_on: bool,
    /// When the cursor was last switched on or off.
    blinked_ns: Option<u64>,
}

impl DrawnText {
    pub(super) fn draw(&mut self, mode: &TextMode, vram: &Vram, now_ns: u64, frame: &mut Frame) {
        if !mode.is_sane() {
            return;
        }
        frame.set_size(mode.size());
        if frame.surface.size() != mode.size() {
            return;
        }
        let fonts = Fonts::read(mode, vram);
        if fonts != self.fonts {
            self.fonts = fonts;
            frame.full = true;
        }
        // The cursor blinks for those who look: it begins visible.
        if self.blinked_ns.is_none_or(|then| now_ns.abs_diff(then) >= BLINK_NS) {
            self.cursor_on = !self.cursor_on;
            self.blinked_ns = Some(now_ns);
        }
        let runs = mode.runs();
        for (index, &run) in runs.iter().enumerate() {
            let count = mode.columns + u32::from(run.pan > 0);
            let cells: Vec<Cell> = mode.cells(vram, run.offset, count).collect();
            let cursor = mode.cursor.filter(|_| self.cursor_on).and_then(|cursor| {
                let column = cursor.offset.checked_sub(run.offset)? / 4;
                (column < count).then_some(column as usize)
            });
            let new = DrawnRun { run, cells, cursor };
            if !frame.full && self.runs.get(index) == Some(&new) {
                continue;
            }
            self.draw_run(mode, &new, frame);
            frame.damage.add(Rect { x: 0, y: run.y, width: mode.size().width, height: run.lines });
            match self.runs.get_mut(index) {
                Some(old) => *old = new,
                None => self.runs.push(new),
            }
        }
        self.runs.truncate(runs.len());
    }

    fn draw_run(&self, mode: &TextMode, drawn: &DrawnRun, frame: &mut Frame) {
        let run = drawn.run;
        let mut dots = Vec::new();
        for line in 0..run.lines {
            let scan = run.scan + line;
            dots.clear();
            for (column, &cell) in drawn.cells.iter().enumerate() {
                let covered = drawn.cursor == Some(column)
                    && mode.cursor.is_some_and(|c| (c.first..=c.last).contains(&scan));
                let row = if covered { 0xff } else { self.fonts.row(cell, scan) };
                push_cell(mode, cell, row, covered, &mut dots);
            }
            let row = frame.surface.row_mut(run.y + line);
            let width = row.len();
            row.copy_from_slice(&dots[run.pan as usize..][..width]);
        }
    }
}

/// Adds the pixels of one line of a cell, whose dots are `row`.
fn push_cell(mode: &TextMode, cell: Cell, row: u8, cursor: bool, dots: &mut Vec<u32>) {
    let foreground = mode.palette[usize::from(cell.attribute & 0xf)];
    let background = mode.palette[usize::from(cell.attribute >> 4)];
    let color = |set: bool| if set { foreground } else { background };
    for bit in (0..8).rev() {
        let dot = color(row >> bit & 1 != 0);
        dots.push(dot);
        if mode.cell_width == 16 {
            dots.push(dot);
        }
    }
    if mode.cell_width == 9 {
        let joined = mode.line_graphics && (0xb0..=0xdf).contains(&cell.code);
        dots.push(color((joined || cursor) && row & 1 != 0));
    }
}
