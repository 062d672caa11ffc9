//! A serial port that can only speak: the kernel's boot messages and last words.
//!
//! It has what `earlyprintk=ttyS0` uses of a 16550: the divisor latch, a transmitter that is
//! always empty, and nothing to receive. There is no interrupt.
//!
//! Trust: the bytes and their rate are the guest's choice. A vCPU never waits for the console: what
//! the reader does not take at once is dropped and counted. In a regular file, which has no
//! reader, the guest can fill [`FILE_LIMIT_BYTES`] and no more.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use crate::bus::BusDevice;

#[cfg(test)]
mod tests;

/// First port of `ttyS0`.
pub const SERIAL_PORT: u64 = 0x3f8;
/// Number of ports.
pub const SERIAL_PORT_LEN: u64 = 8;
/// Most bytes written to a console that is a regular file.
pub const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// Bytes kept until a line ends, so that a line costs one system call and not one a byte.
const LINE_BYTES: usize = 256;

/// Transmitter holding register; divisor latch while `LCR_DLAB` is set.
const THR: u64 = 0;
/// Interrupt identification register.
const IIR: u64 = 2;
/// Line control register.
const LCR: u64 = 3;
/// Line status register.
const LSR: u64 = 5;

/// `IIR`: no interrupt is pending.
const IIR_NONE: u8 = 0x01;
/// `LCR`: registers 0 and 1 are the divisor latch.
const LCR_DLAB: u8 = 0x80;
/// `LSR`: the transmitter is empty and ready for a byte.
const LSR_EMPTY: u8 = 0x60;

/// The serial port.
pub struct Serial {
    sink: Option<File>,
    /// Bytes that a regular file may still take.
    room: Option<u64>,
    line: Vec<u8>,
    line_control: u8,
    dropped: u64,
}

impl Serial {
    /// A port whose output goes to `sink`, which becomes non-blocking, or nowhere.
    pub fn new(sink: Option<File>) -> io::Result<Self> {
        let mut room = None;
        if let Some(file) = &sink {
            set_nonblocking(file)?;
            room = file.metadata()?.is_file().then_some(FILE_LIMIT_BYTES);
        }
        let line = Vec::with_capacity(LINE_BYTES);
        Ok(Self { sink, room, line, line_control: 0, dropped: 0 })
    }

    /// Writes out a line that the guest has not ended; for the end of the machine.
    pub fn flush(&mut self) {
        let mut left = std::mem::take(&mut self.line);
        let count = self.room.map_or(left.len() as u64, |room| room.min(left.len() as u64));
        let (now, over) = left.split_at(count as usize);
        let written = match &mut self.sink {
            // A full pipe, a closed one or a full disk: the console is not worth a vCPU's time.
            Some(sink) if !now.is_empty() => sink.write(now).unwrap_or(0),
            _ => 0,
        };
        self.dropped += (now.len() - written + over.len()) as u64;
        if let Some(room) = &mut self.room {
            *room -= written as u64;
        }
        left.clear();
        self.line = left;
    }

    /// Bytes that the reader was too slow for.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn transmit(&mut self, byte: u8) {
        self.line.push(byte);
        if byte == b'\n' || self.line.len() == LINE_BYTES {
            self.flush();
        }
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        self.flush();
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [value] = data {
            *value = match offset {
                IIR => IIR_NONE,
                LCR => self.line_control,
                LSR => LSR_EMPTY,
                _ => 0,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (THR, &[byte]) if self.line_control & LCR_DLAB == 0 => self.transmit(byte),
            (LCR, &[value]) => self.line_control = value,
            _ => {}
        }
    }
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open; F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open; F_SETFL takes an integer.
    let status = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
