//! The machine's screen on the terminal that the program was started from (`-display curses`).
//!
//! Text modes are shown as they are, colours and cursor included; of graphics modes their size is told.
//! A terminal that says in its environment that it has all colours (`COLORTERM`) shows the guest's; others
//! show their own sixteen.
//! What is typed goes to the guest's keyboard. Alt with a digit goes to another of the machine's screens,
//! Ctrl-Alt-Q ends the program.
//!
//! Everything happens on one thread, which looks at the screen thirty times a second; a terminal that
//! takes no output holds up nobody else.

mod keys;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use display::{Cell, Console, TextScreen, View, cp437};
use input::InputHub;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event};
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::Line;
use ratatui::widgets::Widget;

use keys::Typed;

/// Time between two looks at the screen.
const PERIOD: Duration = Duration::from_millis(33);
/// How long a key is held down, in guest time.
const HOLD: Duration = Duration::from_millis(10);

/// Why there is no display.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// Standard input or output is something else.
    #[error("-display curses: We need a terminal output; use -display none without one")]
    NoTerminal,
    /// The terminal can't be used.
    #[error("-display curses: {0}")]
    Io(#[from] io::Error),
}

/// The display. Dropping it gives the terminal back.
pub struct Terminal {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Takes the terminal to show `consoles` on; keys go to `input`. `quit` is called when the user asks
    /// for the end.
    ///
    /// # Errors
    /// If there is no terminal, or it can't be set up.
    pub fn start(
        consoles: &[Arc<Console>],
        input: Arc<InputHub>,
        quit: impl Fn() + Send + 'static,
    ) -> Result<Self, TerminalError> {
        use rustix::termios::isatty;
        if !isatty(io::stdin()) || !isatty(io::stdout()) {
            return Err(TerminalError::NoTerminal);
        }
        let terminal = ratatui::try_init()?;
        let end = Arc::new(AtomicBool::new(false));
        let screens = consoles.iter().map(Console::view).collect();
        let colors = Colors::of_terminal();
        let screen = Screen { terminal, colors, screens, shown: 0, input, quit: Box::new(quit) };
        let ends = Arc::clone(&end);
        let thread = std::thread::Builder::new().name("curses".into()).spawn(move || {
            // A terminal that is gone shows nothing more; the machine goes on.
            let _ = screen.run(&ends);
        })?;
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        ratatui::restore();
    }
}

/// What the thread works with.
struct Screen {
    terminal: ratatui::DefaultTerminal,
    colors: Colors,
    screens: Vec<View>,
    /// Which of them is shown.
    shown: usize,
    input: Arc<InputHub>,
    quit: Box<dyn Fn() + Send>,
}

impl Screen {
    fn run(mut self, end: &AtomicBool) -> io::Result<()> {
        while !end.load(Ordering::Acquire) {
            let picture = self.screens.get_mut(self.shown).map_or_else(
                || Picture::Message("The machine has no screen".to_owned()),
                Picture::of,
            );
            self.terminal.draw(|frame| picture.draw(frame, self.colors))?;
            let mut wait = PERIOD;
            while event::poll(wait)? {
                wait = Duration::ZERO;
                if let Event::Key(key) = event::read()? {
                    self.typed(keys::typed(key));
                }
            }
        }
        Ok(())
    }

    fn typed(&mut self, typed: Typed) {
        match typed {
            // A guest that reads no keys loses some, as from a keyboard.
            Typed::Keys(keys) => drop(self.input.type_keys(&keys, HOLD)),
            Typed::Screen(index) if index < self.screens.len() => self.shown = index,
            Typed::Quit => (self.quit)(),
            Typed::Screen(_) | Typed::Nothing => {}
        }
    }
}

/// What is to be shown.
enum Picture {
    Text(TextScreen),
    Message(String),
}

impl Picture {
    fn of(view: &mut View) -> Self {
        if let Some(text) = view.console().text() {
            return Self::Text(text);
        }
        view.refresh();
        let size = view.surface().size();
        Self::Message(format!("{} x {} graphic mode", size.width, size.height))
    }

    fn draw(&self, frame: &mut Frame<'_>, colors: Colors) {
        let area = frame.area();
        match self {
            Self::Message(message) => {
                let line = Line::from(message.as_str()).centered();
                let middle = Rect { y: area.height / 2, height: 1.min(area.height), ..area };
                frame.render_widget(line, middle);
            }
            Self::Text(screen) => {
                frame.render_widget(Cells { screen, colors }, area);
                let (left, top) = margins(screen, area);
                if let Some((x, y)) = screen.cursor {
                    let place = Position::new(left + x as u16, top + y as u16);
                    if area.contains(place) {
                        frame.set_cursor_position(place);
                    }
                }
            }
        }
    }
}

/// Columns and rows that are left free before a screen that is smaller than the terminal.
fn margins(screen: &TextScreen, area: Rect) -> (u16, u16) {
    let half = |room: u16, used: u32| room.saturating_sub(used.min(u16::MAX.into()) as u16) / 2;
    (half(area.width, screen.columns), half(area.height, screen.rows))
}

/// A text mode's cells.
struct Cells<'a> {
    screen: &'a TextScreen,
    colors: Colors,
}

impl Widget for Cells<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let Self { screen, colors } = self;
        let (left, top) = margins(screen, area);
        for y in 0..screen.rows.min(u32::from(area.height - top)) {
            let room = usize::from(area.width - left);
            for (x, &cell) in (0..).zip(screen.row(y).iter().take(room)) {
                let Some(shown) = buffer.cell_mut((left + x, top + y as u16)) else { continue };
                shown.set_char(cp437::to_char(cell.code)).set_style(colors.style(screen, cell));
            }
        }
    }
}

/// The colours that a terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colors {
    /// Those of ANSI.
    Sixteen,
    /// All.
    All,
}

impl Colors {
    /// The terminal's colours that are most like those that a VGA begins with, by their numbers there.
    const LIKE_VGA: [Color; 16] = [
        Color::Black,
        Color::Blue,
        Color::Green,
        Color::Cyan,
        Color::Red,
        Color::Magenta,
        Color::Yellow,
        Color::Gray,
        Color::DarkGray,
        Color::LightBlue,
        Color::LightGreen,
        Color::LightCyan,
        Color::LightRed,
        Color::LightMagenta,
        Color::LightYellow,
        Color::White,
    ];

    fn of_terminal() -> Self {
        let told = std::env::var("COLORTERM").unwrap_or_default();
        if matches!(told.as_str(), "truecolor" | "24bit") { Self::All } else { Self::Sixteen }
    }

    fn style(self, screen: &TextScreen, cell: Cell) -> Style {
        let color = |index: u8| match self {
            Self::Sixteen => Self::LIKE_VGA[usize::from(index)],
            Self::All => {
                let [_, red, green, blue] = screen.palette[usize::from(index)].to_be_bytes();
                Color::Rgb(red, green, blue)
            }
        };
        Style::new().fg(color(cell.attribute & 0xf)).bg(color(cell.attribute >> 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_screen_is_in_the_middle_and_a_large_one_is_cut() {
        let mut palette = [0; 16];
        palette[7] = 0xaa_aaaa;
        let screen = TextScreen {
            columns: 2,
            rows: 1,
            cells: vec![Cell { code: 0xb3, attribute: 7 }, Cell { code: b'x', attribute: 0x70 }],
            cursor: None,
            palette,
        };
        let area = Rect::new(0, 0, 4, 3);
        let mut buffer = Buffer::empty(area);
        Cells { screen: &screen, colors: Colors::All }.render(area, &mut buffer);
        assert_eq!(buffer[(1, 1)].symbol(), "│");
        assert_eq!(buffer[(1, 1)].fg, Color::Rgb(0xaa, 0xaa, 0xaa));
        assert_eq!((buffer[(2, 1)].symbol(), buffer[(2, 1)].fg), ("x", Color::Rgb(0, 0, 0)));
        let area = Rect::new(0, 0, 1, 1);
        let mut buffer = Buffer::empty(area);
        Cells { screen: &screen, colors: Colors::Sixteen }.render(area, &mut buffer);
        assert_eq!((buffer[(0, 0)].symbol(), buffer[(0, 0)].fg), ("│", Color::Gray));
    }
}
