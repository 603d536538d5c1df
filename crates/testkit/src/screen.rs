//! Reading a guest's screen from outside: pictures that `screendump` wrote, and the text in them.
//!
//! Text is found by comparing each cell of the picture with the glyphs of the PC's own font, which is
//! part of the VGA BIOS of Debian's package `seabios`. So it works on any emulator, in text modes and on
//! graphical consoles that use that font or one much like it.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::{Vm, deadline};

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a line.
    pub width: usize,
    /// Lines.
    pub height: usize,
    /// Red, green and blue of each pixel, line by line.
    pub pixels: Vec<[u8; 3]>,
}

impl Picture {
    /// Reads a portable pixmap (P6, 8 bits) or a PNG.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.starts_with(b"P6") { Self::parse_ppm(bytes) } else { Self::parse_png(bytes) }
    }

    fn parse_ppm(bytes: &[u8]) -> Result<Self> {
        let mut at = 2;
        let mut number = || -> Result<usize> {
            let rest = bytes.get(at..).unwrap_or_default();
            let skip = rest.iter().take_while(|b| b.is_ascii_whitespace()).count();
            let digits = rest[skip..].iter().take_while(|b| b.is_ascii_digit()).count();
            at += skip + digits;
            Ok(std::str::from_utf8(&rest[skip..skip + digits])?.parse()?)
        };
        let (width, height, depth) = (number()?, number()?, number()?);
        let data = bytes.get(at + 1..).unwrap_or_default();
        if depth != 255 || data.len() != width * height * 3 {
            bail!("a pixmap of {width}x{height}, depth {depth}, with {} bytes", data.len());
        }
        let pixels = data.chunks_exact(3).map(|rgb| [rgb[0], rgb[1], rgb[2]]).collect();
        Ok(Self { width, height, pixels })
    }

    fn parse_png(bytes: &[u8]) -> Result<Self> {
        let mut decoder = png::Decoder::new(Cursor::new(bytes));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info()?;
        let mut data = vec![0; reader.output_buffer_size().context("a huge picture")?];
        let info = reader.next_frame(&mut data)?;
        let samples = info.color_type.samples();
        let pixel = |sample: &[u8]| match samples {
            1 | 2 => [sample[0]; 3],
            _ => [sample[0], sample[1], sample[2]],
        };
        let pixels = data[..info.buffer_size()].chunks_exact(samples).map(pixel).collect();
        Ok(Self { width: info.width as usize, height: info.height as usize, pixels })
    }

    /// The pixel in column `x` of line `y`.
    ///
    /// # Panics
    /// If it is outside.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        self.pixels[y * self.width + x]
    }

    /// Whether `other` has the same size and the same pixels in `columns` of `rows`.
    pub fn agrees(&self, other: &Self, columns: Range<usize>, rows: Range<usize>) -> bool {
        (self.width, self.height) == (other.width, other.height)
            && rows
                .flat_map(|y| columns.clone().map(move |x| (x, y)))
                .all(|(x, y)| self.pixel(x, y) == other.pixel(x, y))
    }

    /// Where this picture first differs from `other`, in words; `None` if they are the same.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let size = |p: &Self| (p.width, p.height);
        if size(self) != size(other) {
            return Some(format!("{:?} is not {:?}", size(self), size(other)));
        }
        let mut differ = (0..self.pixels.len()).filter(|&i| self.pixels[i] != other.pixels[i]);
        let first = differ.next()?;
        Some(format!(
            "{} pixels differ, the first in column {} of line {}: {:?} is not {:?}",
            differ.count() + 1,
            first % self.width,
            first / self.width,
            self.pixels[first],
            other.pixels[first]
        ))
    }

    /// The text on it, row by row without the blanks at the ends; cells are 9 dots wide if that gives 80
    /// columns, else 8, and `cell_height` lines high (8 or 16).
    pub fn text(&self, cell_height: usize) -> Result<Vec<String>> {
        let font = Font::load(cell_height)?;
        let cell_width = if self.width.is_multiple_of(9 * 40) && !self.width.is_multiple_of(640) {
            9
        } else {
            8
        };
        let row = |row: usize| {
            let columns = 0..self.width / cell_width;
            let text: String = columns
                .map(|column| font.read(self, column * cell_width, row * cell_height))
                .collect();
            text.trim_end().to_owned()
        };
        Ok((0..self.height / cell_height).map(row).collect())
    }
}

/// The text in a picture that `screendump` wrote, in the usual cells of 16 lines.
pub fn text(picture: &[u8]) -> Result<Vec<String>> {
    Picture::parse(picture)?.text(16)
}

/// What stands for a cell that is like no glyph.
pub const UNKNOWN: char = '\u{fffd}';

/// Dots by which a cell may differ from the glyph that it is taken for: of the cursor, or of another font.
const TOLERANCE: u32 = 6;

/// The glyphs of a font, eight dots wide, the leftmost in the highest bit.
struct Font {
    height: usize,
    /// The glyphs by their dots.
    exact: HashMap<Vec<u8>, char>,
    /// All of them, those of letters and digits first.
    all: Vec<(Vec<u8>, char)>,
}

impl Font {
    /// Finds the font of `height` lines in the VGA BIOS.
    fn load(height: usize) -> Result<Self> {
        // What the letter A looks like, by which the font is found.
        let letter: &[u8] = match height {
            8 => &[0x30, 0x78, 0xcc, 0xcc, 0xfc, 0xcc, 0xcc, 0],
            16 => &[0, 0, 0x10, 0x38, 0x6c, 0xc6, 0xc6, 0xfe, 0xc6, 0xc6, 0xc6, 0xc6, 0, 0, 0, 0],
            _ => bail!("there is no font of {height} lines"),
        };
        let rom = Path::new("/usr/share/seabios/vgabios-stdvga.bin");
        let rom = std::fs::read(rom)
            .with_context(|| format!("cannot read {}; install seabios", rom.display()))?;
        let letter_at = rom.windows(height).position(|window| window == letter);
        let start = letter_at.and_then(|at| at.checked_sub(usize::from(b'A') * height));
        let glyphs = start.and_then(|at| rom.get(at..at + 256 * height)).context("no font")?;
        let mut all: Vec<(Vec<u8>, char)> = (0_u8..=255)
            .zip(glyphs.chunks_exact(height))
            .map(|(code, glyph)| (glyph.to_vec(), display::cp437::to_char(code)))
            .collect();
        // Of glyphs that look the same, the plainest is meant.
        all.sort_by_key(|(_, c)| if c.is_ascii() { 0 } else { 1 });
        let exact = all.iter().rev().cloned().collect();
        Ok(Self { height, exact, all })
    }

    /// The character in the cell whose left upper corner is at `x`, `y`.
    fn read(&self, picture: &Picture, x: usize, y: usize) -> char {
        let cell = |dx: usize, dy: usize| picture.pixel(x + dx, y + dy);
        let mut counts = HashMap::new();
        for dy in 0..self.height {
            (0..8).for_each(|dx| *counts.entry(cell(dx, dy)).or_insert(0) += 1);
        }
        if counts.len() < 2 {
            return ' ';
        }
        // Either colour may be the background: glyphs like blocks have more dots than gaps.
        let background = counts.iter().max_by_key(|(color, count)| (**count, **color));
        let background = *background.expect("a cell has pixels").0;
        let dots: Vec<u8> = (0..self.height)
            .map(|dy| (0..8).fold(0, |row, dx| row << 1 | u8::from(cell(dx, dy) != background)))
            .collect();
        let inverse: Vec<u8> = dots.iter().map(|row| !row).collect();
        let exact = self.exact.get(&dots).or_else(|| self.exact.get(&inverse));
        exact.copied().unwrap_or_else(|| self.nearest(&dots))
    }

    /// The glyph with the fewest dots that differ, the cursor's lines aside.
    fn nearest(&self, dots: &[u8]) -> char {
        let cursor = self.height - self.height.div_ceil(5)..self.height;
        let distance = |glyph: &[u8], skip: bool| -> u32 {
            let lines = (0..self.height).filter(|line| !(skip && cursor.contains(line)));
            lines.map(|line| (glyph[line] ^ dots[line]).count_ones()).sum()
        };
        // A cursor is a bar over whole lines.
        let has_cursor = cursor.clone().any(|line| dots[line] == 0xff);
        let nearest =
            self.all.iter().map(|(glyph, c)| (distance(glyph, has_cursor), *c)).min_by_key(|n| n.0);
        nearest.filter(|n| n.0 <= TOLERANCE).map_or(UNKNOWN, |n| n.1)
    }
}

impl Vm {
    /// What the machine's first screen shows now.
    pub fn screen(&mut self) -> Result<Picture> {
        let path = self.path("screen.ppm");
        self.qmp()?.execute("screendump", json!({ "filename": path }))?;
        Picture::parse(&std::fs::read(&path)?)
    }

    /// Waits until a row of the screen contains `text`; returns all rows.
    pub fn wait_screen(&mut self, text: &str) -> Result<Vec<String>> {
        let end = Instant::now() + deadline();
        loop {
            let rows = self.screen()?.text(16)?;
            if rows.iter().any(|row| row.contains(text)) {
                return Ok(rows);
            }
            if Instant::now() > end {
                bail!("the screen never shows {text:?}; it shows:\n{}", rows.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the screen agrees with `picture` in `columns` of `rows`: for text in fonts that are
    /// not the VGA's.
    pub fn wait_picture(
        &mut self,
        picture: &Picture,
        columns: Range<usize>,
        rows: Range<usize>,
    ) -> Result<()> {
        let end = Instant::now() + deadline();
        while !self.screen()?.agrees(picture, columns.clone(), rows.clone()) {
            if Instant::now() > end {
                bail!("the screen never looks as expected");
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glyphs_are_read_back_also_with_a_cursor_and_inverted() {
        let Ok(font) = Font::load(16) else {
            return crate::skip("glyphs_are_read_back", "no VGA BIOS: install seabios");
        };
        let text = "Hello, World 09";
        let mut picture = Picture { width: 720, height: 16, pixels: vec![[0; 3]; 720 * 16] };
        for (column, c) in text.chars().enumerate() {
            let (glyph, _) = font.all.iter().find(|(_, known)| *known == c).unwrap();
            for (y, row) in glyph.iter().enumerate() {
                for x in 0..8 {
                    let set = (row >> (7 - x) & 1 != 0) ^ (column == 7);
                    let cursor = column == 4 && (13..15).contains(&y);
                    let color = if set || cursor { [170; 3] } else { [0; 3] };
                    picture.pixels[y * 720 + column * 9 + x] = color;
                }
            }
        }
        assert_eq!(picture.text(16).unwrap(), [text]);
    }
}
