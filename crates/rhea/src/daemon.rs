//! `-daemonize`: the machine runs in a child process that has no terminal.
//!
//! The process starts itself again with the same arguments and waits until the child says, through a
//! pipe that is the child's standard input, that all is set up; only then does it end, with status 0. A
//! child that fails before that ends the parent with its own status. Starting anew instead of forking
//! needs no unsafe code, and descriptors that the caller passed on are inherited just the same.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::stdio;

/// Tells a process that it is the child.
const CHILD_MARK: &str = "RHEA_DAEMON_CHILD";

/// Whether this process is the child.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD_MARK).is_some()
}

/// Starts the child and waits until it is ready; returns this process's exit status.
pub(crate) fn detach() -> Result<u8> {
    let (mut ready, child_end) = io::pipe().context("-daemonize: cannot make a pipe")?;
    let program = std::env::current_exe().context("-daemonize: cannot find this program")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(CHILD_MARK, "1").stdin(Stdio::from(child_end));
    let mut child = command.spawn().context("-daemonize: cannot start the child process")?;
    // The command keeps its own copy of the child's end; with it open the pipe would never end.
    drop(command);
    let mut byte = [0];
    if ready.read(&mut byte).context("-daemonize: cannot hear from the child process")? == 1 {
        return Ok(0);
    }
    let status = child.wait().context("-daemonize: cannot wait for the child process")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// In the child: leaves the terminal's session.
pub(crate) fn begin() -> Result<()> {
    rustix::process::setsid().context("-daemonize: cannot start a session")?;
    Ok(())
}

/// In the child: tells the parent that all is set up, and lets go of its terminal and directory.
pub(crate) fn ready() -> Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let parent = rustix::io::dup(stdio::stdin())?;
    stdio::dup2_stdin(&null)?;
    stdio::dup2_stdout(&null)?;
    stdio::dup2_stderr(&null)?;
    std::env::set_current_dir("/")?;
    File::from(parent).write_all(&[1]).context("-daemonize: the parent process is gone")
}
