//! The terminal that the process was started from, as a guest's console.
//!
//! In raw mode each key reaches the guest at once and unseen. The terminal is the process's, not a
//! character device's: what it was set to is kept here, and [`restore_terminal`] sets it back, on every
//! way out of the process that isn't an abort.

use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, isatty,
    tcgetattr, tcsetattr,
};

use crate::ChardevError;

#[derive(Debug)]
struct Terminal {
    claimed: bool,
    original: Option<Termios>,
}

static TERMINAL: Mutex<Terminal> = Mutex::new(Terminal { claimed: false, original: None });

/// The use of standard input and output by one character device.
#[derive(Debug)]
pub(crate) struct Claim(());

impl Claim {
    /// Takes standard input and output, and makes the terminal raw if it is one.
    pub(crate) fn take(signal: bool) -> Result<Claim, ChardevError> {
        let mut terminal = TERMINAL.lock().unwrap_or_else(PoisonError::into_inner);
        if terminal.claimed {
            let text = "cannot use stdio by multiple character devices";
            return Err(ChardevError::Option(text.to_owned()));
        }
        let stdin = std::io::stdin();
        if isatty(&stdin)
            && let Ok(original) = tcgetattr(&stdin)
        {
            let mut raw = original.clone();
            make_raw(&mut raw, signal);
            tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(|errno| {
                ChardevError::System { what: "Failed to set the terminal", source: errno.into() }
            })?;
            terminal.original = Some(original);
        }
        terminal.claimed = true;
        Ok(Claim(()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        restore_terminal();
        TERMINAL.lock().unwrap_or_else(PoisonError::into_inner).claimed = false;
    }
}

/// Sets the terminal back to what it was before a character device used it. Harmless when none did.
pub fn restore_terminal() {
    let mut terminal = TERMINAL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(original) = terminal.original.take() {
        // Nothing is left to do if the terminal has gone.
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &original);
    }
}

/// Byte by byte, without echo; output lines still get their carriage return.
fn make_raw(termios: &mut Termios, signal: bool) {
    termios.input_modes &= !(InputModes::IGNBRK
        | InputModes::BRKINT
        | InputModes::PARMRK
        | InputModes::ISTRIP
        | InputModes::INLCR
        | InputModes::IGNCR
        | InputModes::ICRNL
        | InputModes::IXON);
    termios.output_modes |= OutputModes::OPOST;
    termios.local_modes &=
        !(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN);
    if !signal {
        termios.local_modes &= !LocalModes::ISIG;
    }
    termios.special_codes[SpecialCodeIndex::VMIN] = 1;
    termios.special_codes[SpecialCodeIndex::VTIME] = 0;
}
