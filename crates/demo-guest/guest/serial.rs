//! COM1, polled.

use core::fmt;

use crate::port;

const COM1: u16 = 0x3f8;

pub struct Serial;

impl Serial {
    /// The port at 115200 baud, 8N1, FIFOs on.
    pub fn new() -> Self {
        port::write8(COM1 + 3, 0x80);
        port::write8(COM1, 1);
        port::write8(COM1 + 1, 0);
        port::write8(COM1 + 3, 3);
        port::write8(COM1 + 2, 7);
        Self
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                send(b'\r');
            }
            send(byte);
        }
        Ok(())
    }
}

fn send(byte: u8) {
    while port::read8(COM1 + 5) & 0x20 == 0 {}
    port::write8(COM1, byte);
}
