//! A screen of characters.

use crate::cp437;

/// One character cell of a text mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Number of the glyph; by habit that of code page 437.
    pub code: u8,
    /// Colours: the background's from bit 4, the foreground's from bit 0 up.
    pub attribute: u8,
}

/// What a text mode shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextScreen {
    /// Cells in a row.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
    /// The cells, row by row.
    pub cells: Vec<Cell>,
    /// Column and row of the cursor, if it is shown.
    pub cursor: Option<(u32, u32)>,
    /// The sixteen colours, each `0x00RRGGBB`.
    pub palette: [u32; 16],
}

impl TextScreen {
    /// Row `y`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, y: u32) -> &[Cell] {
        &self.cells[(y * self.columns) as usize..][..self.columns as usize]
    }

    /// The rows as text, without the blanks at their ends.
    pub fn lines(&self) -> Vec<String> {
        let text = |y| self.row(y).iter().map(|cell| cp437::to_char(cell.code)).collect::<String>();
        (0..self.rows).map(|y| text(y).trim_end().to_owned()).collect()
    }
}
