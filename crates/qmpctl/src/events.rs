//! `qmpctl events --follow`.

use std::io::Write;

use qmp::client::{BlockingClient, ClientError};

use crate::options::Options;
use crate::{Failure, render};

/// Prints events as they come, until the server closes the connection.
pub(crate) fn follow(options: &Options) -> Result<(), Failure> {
    let mut client = BlockingClient::connect(&options.address, false)?;
    loop {
        let event = match client.event(None) {
            Ok(Some(event)) => event,
            Ok(None) => continue,
            // The machine has ended; that is how this ends.
            Err(ClientError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", render::event(&event, options.json))?;
        out.flush()?;
    }
}
