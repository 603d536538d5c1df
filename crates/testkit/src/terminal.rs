//! A program on a terminal of its own, whose screen is read and whose keys are pressed from here.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::pty::{self, OpenptFlags};
use rustix::termios::{self, Termios, Winsize};

use crate::deadline;

/// A terminal with a program. The program is killed when this is dropped.
pub struct Terminal {
    child: Child,
    master: File,
    /// Held open, so that what the program leaves of the terminal can be looked at.
    slave: File,
    before: Termios,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    /// Starts `program` on a terminal with this many rows and columns.
    pub fn start(
        program: &Path,
        arguments: &[impl AsRef<OsStr>],
        rows: u16,
        columns: u16,
    ) -> Result<Self> {
        let master = pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        pty::grantpt(&master)?;
        pty::unlockpt(&master)?;
        let path = pty::ptsname(&master, Vec::new())?.into_string()?;
        let slave = File::options().read(true).write(true).open(&path)?;
        termios::tcsetwinsize(&slave, size(rows, columns))?;
        let before = termios::tcgetattr(&slave)?;
        // It makes the terminal the controlling one, from which signals come.
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(program)
            .args(arguments)
            .env("TERM", "xterm-256color")
            .env_remove("COLORTERM")
            .stdin(Stdio::from(slave.try_clone()?))
            .stdout(Stdio::from(slave.try_clone()?))
            .stderr(Stdio::from(slave.try_clone()?))
            .spawn()
            .context("cannot run setsid, of util-linux")?;
        let master = File::from(master);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(side(rows), side(columns), 0)));
        let (theirs, mut reader) = (Arc::clone(&screen), master.try_clone()?);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The end is an error: that of a terminal that nobody has open.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                lock(&theirs).process(&buffer[..count]);
            }
        });
        Ok(Self { child, master, slave, before, screen })
    }

    /// The rows of the screen, without the blanks at their ends.
    pub fn rows(&self) -> Vec<String> {
        let parser = lock(&self.screen);
        let (_, columns) = parser.screen().size();
        parser.screen().rows(0, columns.get()).map(|row| row.trim_end().to_owned()).collect()
    }

    /// The row and column of the cursor, if it is shown.
    pub fn cursor(&self) -> Option<(u16, u16)> {
        let parser = lock(&self.screen);
        let screen = parser.screen();
        (!screen.hide_cursor()).then(|| screen.cursor_position())
    }

    /// Waits until a row contains `text`; returns its number.
    pub fn wait_for(&mut self, text: &str) -> Result<usize> {
        self.wait_until(text, |rows| rows.iter().position(|row| row.contains(text)))
    }

    /// Waits until the rows have something that `find` finds; `what` is told if they never have.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        find: impl Fn(&[String]) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + deadline();
        loop {
            let rows = self.rows();
            if let Some(found) = find(&rows) {
                return Ok(found);
            }
            let ended = self.child.try_wait()?;
            if Instant::now() > end || ended.is_some() {
                let shown = rows.join("\n");
                bail!("the terminal never shows {what:?} ({ended:?}); it shows:\n{shown}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses keys, as the bytes that a terminal sends for them.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.master.write_all(keys.as_bytes())?;
        Ok(())
    }

    /// Changes the terminal's size.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<()> {
        lock(&self.screen).screen_mut().set_size(side(rows), side(columns));
        termios::tcsetwinsize(&self.master, size(rows, columns))?;
        Ok(())
    }

    /// Process id of the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the program.
    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + deadline();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("the program does not end; it shows:\n{}", self.rows().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What is not as it was before the program ran, and would be in the way of whoever uses the terminal
    /// next.
    pub fn damage(&self) -> Result<Vec<String>> {
        let now = termios::tcgetattr(&self.slave)?;
        let before = &self.before;
        let mut damage = Vec::new();
        if (now.local_modes, now.input_modes, now.output_modes, now.control_modes)
            != (before.local_modes, before.input_modes, before.output_modes, before.control_modes)
        {
            damage.push(format!("modes {now:?}, not {before:?}"));
        }
        // What was written last may not have arrived yet.
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.left_on();
            if left.is_empty() || Instant::now() > end {
                damage.extend(left);
                return Ok(damage);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn left_on(&self) -> Vec<String> {
        let parser = lock(&self.screen);
        let screen = parser.screen();
        let states = [
            (screen.alternate_screen(), "the alternate screen"),
            (screen.hide_cursor(), "a hidden cursor"),
            (screen.application_keypad(), "the application keypad"),
            (screen.bracketed_paste(), "bracketed paste"),
            (screen.mouse_protocol_mode() != vt100::MouseProtocolMode::None, "mouse reports"),
        ];
        states.into_iter().filter(|(on, _)| *on).map(|(_, what)| what.to_owned()).collect()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A terminal has at least one row and column.
fn side(length: u16) -> NonZeroU16 {
    NonZeroU16::new(length).unwrap_or(NonZeroU16::MIN)
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
