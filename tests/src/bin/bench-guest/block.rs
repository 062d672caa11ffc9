//! Random 4 KiB reads and writes of a disk, past the guest's page cache, many at a time.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{SeekFrom, seek};

use crate::marks::Marks;

/// Bytes of a request.
const BLOCK: usize = 4096;
/// Requests that are on their way at a time.
const DEPTH: usize = 32;
/// Requests of a case.
const REQUESTS: usize = 16_384;

/// `IOCB_CMD_PREAD` and `IOCB_CMD_PWRITE` of linux/aio_abi.h.
const READ: u16 = 0;
const WRITE: u16 = 1;

/// Runs both cases on `disk`.
pub fn run(marks: &mut Marks, disk: &Path) -> Result<()> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let file = options.open(disk).with_context(|| format!("cannot open {}", disk.display()))?;
    let blocks = seek(&file, SeekFrom::End(0)).context("cannot measure the disk")? / BLOCK as u64;
    let mut queue = Queue::new(&file, blocks)?;
    // First touch of everything.
    queue.transfer(READ, REQUESTS / 16).context("warming up")?;
    queue.transfer(WRITE, REQUESTS / 16).context("warming up")?;
    marks.case("randread", || queue.transfer(READ, REQUESTS))?;
    marks.case("randwrite", || queue.transfer(WRITE, REQUESTS))
}

/// `struct iocb` of linux/aio_abi.h, little-endian.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// Asynchronous I/O with one buffer for each request that is on its way.
struct Queue {
    context: libc::c_ulong,
    fd: RawFd,
    blocks: u64,
    buffers: Box<[Block]>,
    random: u64,
}

#[repr(align(4096))]
#[derive(Clone)]
struct Block([u8; BLOCK]);

impl Queue {
    fn new(file: &File, blocks: u64) -> Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word, which is live.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut context) };
        ensure!(made == 0, "io_setup: {}", io::Error::last_os_error());
        let buffers = vec![Block([0xa5; BLOCK]); DEPTH].into();
        Ok(Self { context, fd: file.as_raw_fd(), blocks, buffers, random: 1 })
    }

    /// Makes `count` requests, each at a block of its own choice; returns `count`.
    fn transfer(&mut self, opcode: u16, count: usize) -> Result<u64> {
        let mut free: Vec<usize> = (0..DEPTH).collect();
        let (mut submitted, mut done) = (0, 0);
        while done < count {
            let batch = free.len().min(count - submitted);
            let slots: Vec<usize> = free.drain(..batch).collect();
            self.submit(opcode, &slots)?;
            submitted += batch;
            let finished = self.wait(&mut free)?;
            done += finished;
        }
        Ok(count as u64)
    }

    fn submit(&mut self, opcode: u16, slots: &[usize]) -> Result<()> {
        let mut requests = [Iocb::default(); DEPTH];
        for (request, slot) in requests.iter_mut().zip(slots) {
            let offset = self.next_block() * BLOCK as u64;
            *request = Iocb {
                data: *slot as u64,
                opcode,
                fd: self.fd.cast_unsigned(),
                buffer: self.buffers[*slot].0.as_mut_ptr() as u64,
                bytes: BLOCK as u64,
                offset: offset.cast_signed(),
                ..Iocb::default()
            };
        }
        let pointers = requests.each_ref().map(std::ptr::from_ref);
        let mut sent = 0;
        while sent < slots.len() {
            let (left, rest) = (slots.len() - sent, pointers[sent..].as_ptr());
            // SAFETY: the pointers lead to live requests, and each of those to a buffer that
            // lives as long as the queue and that no other request uses.
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.context, left, rest) };
            let taken = usize::try_from(taken).map_err(|_| io::Error::last_os_error());
            sent += taken.context("io_submit")?;
        }
        Ok(())
    }

    /// Waits for one request at least; frees the slots of all that have ended.
    fn wait(&mut self, free: &mut Vec<usize>) -> Result<usize> {
        let mut events = [IoEvent::default(); DEPTH];
        let none = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: the kernel writes at most `DEPTH` events to `events`.
        let count = unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, 1, DEPTH, events.as_mut_ptr(), none)
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error());
        let count = count.context("io_getevents")?;
        for event in &events[..count] {
            ensure!(event.result == BLOCK as i64, "a request ended with {}", event.result);
            free.push(usize::try_from(event.data).context("a slot is a small number")?);
        }
        Ok(count)
    }

    /// A number of Knuth's linear congruential generator, the same in every run.
    fn next_block(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % self.blocks
    }
}
