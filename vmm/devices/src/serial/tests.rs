//! The serial port as `earlyprintk` drives it, and a guest that floods it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use super::{FILE_LIMIT_BYTES, LCR, LSR, SERIAL_PORT_LEN, Serial, THR};
use crate::bus::BusDevice;

fn pipe() -> (File, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
}

fn print(serial: &mut Serial, text: &[u8]) {
    for byte in text {
        let mut status = [0];
        serial.read(LSR, &mut status);
        assert_ne!(status[0] & 0x20, 0, "the transmitter is never busy");
        serial.write(THR, &[*byte]);
    }
}

#[test]
fn line_written_arrives_and_divisor_does_not() {
    let (mut reader, writer) = pipe();
    let mut serial = Serial::new(Some(writer)).unwrap();
    serial.write(LCR, &[0x83]);
    serial.write(THR, &[0x0c]);
    serial.write(LCR, &[0x03]);
    print(&mut serial, b"Linux version\nlast words");
    assert_eq!(serial.dropped(), 0);
    drop(serial);
    let mut seen = Vec::new();
    reader.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, b"Linux version\nlast words");
}

#[test]
fn flood_without_a_reader_is_dropped_and_counted() {
    let (mut reader, writer) = pipe();
    let mut serial = Serial::new(Some(writer)).unwrap();
    const FLOOD: usize = 1 << 20;
    print(&mut serial, &[b'x'; FLOOD]);
    let dropped = serial.dropped() as usize;
    assert!(dropped > 0);
    drop(serial);
    let mut seen = Vec::new();
    reader.read_to_end(&mut seen).unwrap();
    assert_eq!(seen.len() + dropped, FLOOD);
}

#[test]
fn flood_into_a_file_stops_at_the_limit() {
    let file = tempfile::tempfile().unwrap();
    let mut serial = Serial::new(Some(file.try_clone().unwrap())).unwrap();
    print(&mut serial, &vec![b'x'; FILE_LIMIT_BYTES as usize + 1000]);
    serial.flush();
    assert_eq!(file.metadata().unwrap().len(), FILE_LIMIT_BYTES);
    assert_eq!(serial.dropped(), 1000);
}

#[test]
fn closed_reader_and_missing_sink_only_drop() {
    let (reader, writer) = pipe();
    drop(reader);
    let mut serial = Serial::new(Some(writer)).unwrap();
    print(&mut serial, b"nobody\n");
    assert_eq!(serial.dropped(), 7);
    let mut serial = Serial::new(None).unwrap();
    print(&mut serial, b"nowhere\n");
    assert_eq!(serial.dropped(), 8);
}

#[test]
fn every_register_takes_every_width() {
    let mut serial = Serial::new(None).unwrap();
    for offset in 0..SERIAL_PORT_LEN {
        for len in 0..=8 {
            serial.write(offset, &vec![0xff; len]);
            serial.read(offset, &mut vec![0; len]);
        }
    }
}
