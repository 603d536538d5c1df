//! What the commands do.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::command::{self, Command, Encoding};
use super::tap::{LineWatcher, Tap};
use crate::pc::board::Pc;
use crate::spec::Accelerator;

/// Bytes of a block that are read or filled at a time. Three go into four letters of base64, so that
/// only the last piece is padded.
const PIECE: usize = 3 << 10;

/// One client's dealings with a machine.
pub struct Session {
    watcher: LineWatcher,
    /// The controller whose lines the client listens to.
    intercepted: Option<Arc<Tap>>,
}

impl Session {
    /// A session whose interrupt lines go to `watcher`.
    pub fn new(watcher: LineWatcher) -> Self {
        Self { watcher, intercepted: None }
    }

    /// A new client came: every line is low to it.
    pub fn opened(&self) {
        if let Some(tap) = &self.intercepted {
            tap.forget_levels();
        }
    }

    /// Does what `line` says and writes the answer, without the line's end, to `answer`.
    ///
    /// # Errors
    /// Those of `answer`.
    pub fn execute(&mut self, pc: &Pc, line: &str, answer: &mut dyn Write) -> io::Result<()> {
        let done = match command::parse(line) {
            Ok(command) => self.run(pc, command, answer),
            Err(malformed) => answer.write_all(malformed.0.as_bytes()),
        };
        if pc.accelerator() == Accelerator::Qtest {
            // What the command armed for now.
            pc.timers().fire_due();
        }
        done
    }

    fn run(&mut self, pc: &Pc, command: Command<'_>, answer: &mut dyn Write) -> io::Result<()> {
        let door = pc.door();
        match command {
            Command::In { port, size } => {
                write!(answer, "OK 0x{:04x}", door.read_port(port, size))
            }
            Command::Out { port, size, value } => {
                door.write_port(port, size, value);
                write!(answer, "OK")
            }
            Command::Load { addr, size } => write!(answer, "OK 0x{:016x}", door.load(addr, size)),
            Command::Store { addr, size, value } => {
                door.store(addr, size, value);
                write!(answer, "OK")
            }
            Command::ReadBlock { addr, len, encoding } => {
                let prefix = if encoding == Encoding::Hex { "OK 0x" } else { "OK " };
                answer.write_all(prefix.as_bytes())?;
                in_pieces(addr, len, |addr, len| {
                    let mut bytes = vec![0; len];
                    door.read(addr, &mut bytes);
                    answer.write_all(encode(&bytes, encoding).as_bytes())
                })
            }
            Command::WriteBlock { addr, len, data, encoding } => {
                let Some(mut bytes) = decode(data, encoding) else {
                    return write!(answer, "FAIL the data is malformed");
                };
                bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
                door.write(addr, &bytes);
                if encoding == Encoding::Hex {
                    // Missing digits are zeroes.
                    let done = bytes.len() as u64;
                    fill(&door, addr.wrapping_add(done), len - done, 0)?;
                }
                write!(answer, "OK")
            }
            Command::Fill { addr, len, value } => {
                fill(&door, addr, len, value)?;
                write!(answer, "OK")
            }
            Command::ClockStep(_) if pc.accelerator() != Accelerator::Qtest => {
                write!(answer, "FAIL Unknown command 'clock_step'")
            }
            Command::ClockSet(_) if pc.accelerator() != Accelerator::Qtest => {
                write!(answer, "FAIL Unknown command 'clock_set'")
            }
            Command::ClockStep(step) => {
                let now = pc.timers().clock().now_ns();
                let next = step.map(|ns| now.saturating_add(ns));
                let to = next.or_else(|| pc.timers().fire_due()).unwrap_or(now);
                write!(answer, "OK {}", pc.timers().advance(to))
            }
            Command::ClockSet(to) => write!(answer, "OK {}", pc.timers().advance(to)),
            Command::InterceptIn(device) => match tap(pc, device) {
                None => write!(answer, "FAIL Unknown device"),
                Some(tap) => self.intercept(tap, answer),
            },
            Command::InterceptOut(device) => match tap(pc, device) {
                None => write!(answer, "FAIL Unknown device"),
                // Its messages to the local APICs are not lines: there is nothing to listen to.
                Some(_) => write!(answer, "OK"),
            },
            Command::SetIrqIn { device, name, line, level } => {
                match tap(pc, device).filter(|tap| name == "unnamed-gpio-in" && line < tap.lines())
                {
                    None if tap(pc, device).is_none() => write!(answer, "FAIL Unknown device"),
                    None => write!(answer, "FAIL Unknown IRQ"),
                    Some(tap) => {
                        bus::IrqSink::set_level(&*tap, line, level);
                        write!(answer, "OK")
                    }
                }
            }
            Command::Endianness => write!(answer, "OK little"),
            // Every device is built in; there are no modules to load.
            Command::ModuleLoad => write!(answer, "FAIL"),
        }
    }

    fn intercept(&mut self, tap: Arc<Tap>, answer: &mut dyn Write) -> io::Result<()> {
        match &self.intercepted {
            Some(other) if !Arc::ptr_eq(other, &tap) => {
                write!(answer, "FAIL IRQ intercept already enabled")
            }
            Some(_) => write!(answer, "OK"),
            None => {
                tap.watch(Arc::clone(&self.watcher));
                self.intercepted = Some(tap);
                write!(answer, "OK")
            }
        }
    }
}

/// The tap on the device with this name, or at the end of this path in the tree of the machine's
/// objects.
fn tap(pc: &Pc, path: &str) -> Option<Arc<Tap>> {
    let name = path.rsplit('/').next().unwrap_or(path);
    pc.taps().iter().find(|tap| tap.name() == name).cloned()
}

/// Calls `piece` for each part of a block: its address and length in bytes.
fn in_pieces(
    addr: u64,
    len: u64,
    mut piece: impl FnMut(u64, usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let part = (len - done).min(PIECE as u64);
        piece(addr.wrapping_add(done), part as usize)?;
        done += part;
    }
    Ok(())
}

fn fill(door: &crate::pc::door::Door, addr: u64, len: u64, value: u8) -> io::Result<()> {
    let bytes = [value; PIECE];
    in_pieces(addr, len, |addr, len| {
        door.write(addr, &bytes[..len]);
        Ok(())
    })
}

fn encode(bytes: &[u8], encoding: Encoding) -> String {
    match encoding {
        Encoding::Base64 => BASE64.encode(bytes),
        Encoding::Hex => {
            bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut s, byte| {
                let _ = write!(s, "{byte:02x}");
                s
            })
        }
    }
}

/// The bytes of a block, or `None` if its text is malformed.
fn decode(text: &str, encoding: Encoding) -> Option<Vec<u8>> {
    match encoding {
        Encoding::Base64 => BASE64.decode(text).ok(),
        Encoding::Hex => {
            let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
            let nibble = |digit: u8| char::from(digit).to_digit(16).map(|n| n as u8);
            digits
                .as_bytes()
                .chunks_exact(2)
                .map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?))
                .collect()
        }
    }
}
