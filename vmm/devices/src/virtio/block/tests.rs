//! The block device behind a transport, over real files, with io_uring and without.

mod queues;
mod rate;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Sender, channel};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::backend::{Backend, Done, Operation};
use super::{Backing, BackingError, Block, BlockConfig, SerialError, SerialNumber};
use crate::virtio::testing::{BUFFERS, Desc, Machine, no_hook, readable, writable};

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Sectors of the test disk.
const SECTORS: u64 = 64;
const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;

fn disk() -> File {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8 + 1; 512]).unwrap();
    }
    file
}

/// Both backends over one kind of disk. io_uring may be forbidden where the tests run; then both
/// are the same.
fn backings(file: &File, read_only: bool) -> [Backing; 2] {
    let clone = || file.try_clone().unwrap();
    [
        Backing::new(clone(), read_only, 1).unwrap(),
        Backing::without_ring(clone(), read_only, 1).unwrap(),
    ]
}

fn machine(backing: Option<Backing>, read_only: bool) -> Machine<Block> {
    let serial = SerialNumber::try_from("disk-7").unwrap();
    let config = BlockConfig { serial, read_only, ..BlockConfig::default() };
    let mut machine = Machine::new(Block::new(config, backing, &no_hook()).unwrap());
    machine.start(u64::MAX);
    machine
}

/// Sends one request with `data` between header and status, and returns status and used length.
fn request(machine: &mut Machine<Block>, kind: u32, sector: u64, data: &[Desc]) -> (u8, u32) {
    put_header(machine, HEADER, kind, sector);
    machine.memory.write_obj(0xeeu8, GuestAddress(STATUS)).unwrap();
    let mut chain = vec![readable(HEADER, 16)];
    chain.extend(data.iter().filter(|desc| desc.flags == 0));
    chain.extend(data.iter().filter(|desc| desc.flags != 0));
    chain.push(writable(STATUS, 1));
    machine.queues[0].offer(&chain);
    machine.kick(0);
    let used = machine.wait_used(0, 1);
    assert_eq!(used.len(), 1);
    (machine.memory.read_obj(GuestAddress(STATUS)).unwrap(), used[0].1)
}

fn put_header(machine: &Machine<Block>, at: u64, kind: u32, sector: u64) {
    machine.memory.write_obj(kind, GuestAddress(at)).unwrap();
    machine.memory.write_obj(0u32, GuestAddress(at + 4)).unwrap();
    machine.memory.write_obj(sector, GuestAddress(at + 8)).unwrap();
}

fn put_range(machine: &Machine<Block>, sector: u64, sectors: u32, flags: u32) {
    machine.memory.write_obj(sector, GuestAddress(DATA)).unwrap();
    machine.memory.write_obj(sectors, GuestAddress(DATA + 8)).unwrap();
    machine.memory.write_obj(flags, GuestAddress(DATA + 12)).unwrap();
}

fn guest_bytes(machine: &Machine<Block>, address: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    machine.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
    data
}

fn file_bytes(file: &File, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    file.read_exact_at(&mut data, offset).unwrap();
    data
}

#[test]
fn read_over_several_buffers_fills_them_in_order() {
    let file = disk();
    for backing in backings(&file, false) {
        let mut machine = machine(Some(backing), false);
        let data = [writable(DATA, 100), writable(DATA + 0x1000, 924)];
        assert_eq!(request(&mut machine, IN, 5, &data), (OK, 1025));
        let mut seen = guest_bytes(&machine, DATA, 100);
        seen.extend(guest_bytes(&machine, DATA + 0x1000, 924));
        assert_eq!(seen, file_bytes(&file, 5 * 512, 1024));
    }
}

#[test]
fn write_then_flush_reaches_the_file_and_nothing_beside_it() {
    for ring in 0..2 {
        let file = disk();
        let [a, b] = backings(&file, false);
        let mut machine = machine(Some(if ring == 0 { a } else { b }), false);
        machine.memory.write_slice(&[0xab; 1024], GuestAddress(DATA)).unwrap();
        let data = [readable(DATA, 512), readable(DATA + 512, 512)];
        assert_eq!(request(&mut machine, OUT, SECTORS - 2, &data), (OK, 1));
        assert_eq!(request(&mut machine, FLUSH, 0, &[]), (OK, 1));
        assert_eq!(file_bytes(&file, (SECTORS - 2) * 512, 1024), [0xab; 1024]);
        assert_eq!(file_bytes(&file, (SECTORS - 3) * 512, 512), [SECTORS as u8 - 2; 512]);
        assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
    }
}

/// Whole pages go another way than the rest; both ways see what the other has written.
#[test]
fn writes_of_pages_and_of_parts_of_pages_meet_in_the_file() {
    for ring in 0..2 {
        let file = disk();
        let [a, b] = backings(&file, false);
        let mut machine = machine(Some(if ring == 0 { a } else { b }), false);
        let mut wanted = file_bytes(&file, 0, SECTORS as usize * 512);
        for (sector, len, byte) in
            [(8, 4096, 0x11), (9, 512, 0x22), (16, 8192, 0x33), (15, 4096, 0x44), (8, 12288, 0x55)]
        {
            machine.memory.write_slice(&vec![byte; len], GuestAddress(DATA)).unwrap();
            let data = [readable(DATA, len as u32)];
            assert_eq!(request(&mut machine, OUT, sector, &data), (OK, 1));
            let start = sector as usize * 512;
            wanted[start..start + len].fill(byte);
            assert!(file_bytes(&file, 0, wanted.len()) == wanted, "{sector} {len}");
            assert_eq!(request(&mut machine, IN, sector, &[writable(DATA, 512)]), (OK, 513));
            assert_eq!(guest_bytes(&machine, DATA, 512), [byte; 512]);
        }
    }
}

#[test]
fn transfer_through_buffers_that_overlap_is_bounded() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(32 << 20).unwrap();
    for backing in backings(&file, false) {
        let mut machine = machine(Some(backing), false);
        for (mib, status) in [(15, OK), (16, IO_ERROR)] {
            let buffers = vec![writable(DATA, 1 << 20); mib];
            assert_eq!(request(&mut machine, IN, 0, &buffers).0, status, "{mib} MiB");
            let buffers = vec![readable(DATA, 1 << 20); mib];
            assert_eq!(request(&mut machine, OUT, 0, &buffers).0, status, "{mib} MiB");
        }
    }
}

#[test]
fn transfers_out_of_range_or_of_odd_length_are_io_errors() {
    let file = disk();
    for backing in backings(&file, false) {
        let mut machine = machine(Some(backing), false);
        for (sector, len) in [
            (SECTORS, 512),
            (SECTORS - 1, 1024),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (1 << 55, 512),
            (0, 511),
            (0, 1),
        ] {
            assert_eq!(request(&mut machine, IN, sector, &[writable(DATA, len)]).0, IO_ERROR);
            assert_eq!(request(&mut machine, OUT, sector, &[readable(DATA, len)]).0, IO_ERROR);
        }
        assert_eq!(file_bytes(&file, 0, 512), [1; 512]);
        assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
        assert_eq!(request(&mut machine, IN, SECTORS - 1, &[writable(DATA, 512)]).0, OK);
    }
}

#[test]
fn read_only_device_refuses_every_change() {
    let file = disk();
    for backing in backings(&file, true) {
        let mut machine = machine(Some(backing), true);
        assert_ne!(machine.transport.state().driver_features & (1 << 5), 0, "VIRTIO_BLK_F_RO");
        assert_eq!(request(&mut machine, OUT, 0, &[readable(DATA, 512)]).0, IO_ERROR);
        put_range(&machine, 0, 1, 0);
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(request(&mut machine, kind, 0, &[readable(DATA, 16)]).0, UNSUPPORTED);
        }
        assert_eq!(request(&mut machine, FLUSH, 0, &[]).0, OK);
        assert_eq!(request(&mut machine, IN, 0, &[writable(DATA, 512)]).0, OK);
        assert_eq!(file_bytes(&file, 0, 512), [1; 512]);
    }
}

#[test]
fn zeroes_and_discards_clear_their_range_only() {
    for ring in 0..2 {
        for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
            let file = disk();
            let [a, b] = backings(&file, false);
            let mut machine = machine(Some(if ring == 0 { a } else { b }), false);
            put_range(&machine, 8, 16, flags);
            assert_eq!(request(&mut machine, kind, 0, &[readable(DATA, 16)]), (OK, 1));
            assert_eq!(file_bytes(&file, 7 * 512, 512), [8; 512]);
            assert_eq!(file_bytes(&file, 8 * 512, 16 * 512), [0; 16 * 512]);
            assert_eq!(file_bytes(&file, 24 * 512, 512), [25; 512]);
        }
    }
}

#[test]
fn hostile_ranges_are_refused() {
    let file = disk();
    for backing in backings(&file, false) {
        let mut machine = machine(Some(backing), false);
        for kind in [DISCARD, WRITE_ZEROES] {
            for (sector, sectors, flags, status) in [
                (0, 1, 2, UNSUPPORTED),
                (0, 1, u32::MAX, UNSUPPORTED),
                (SECTORS, 1, 0, IO_ERROR),
                (0, SECTORS as u32 + 1, 0, IO_ERROR),
                (u64::MAX, 1, 0, IO_ERROR),
                (1 << 55, 0, 0, IO_ERROR),
                (0, u32::MAX, 0, IO_ERROR),
                (0, 0, 0, OK),
            ] {
                put_range(&machine, sector, sectors, flags);
                let seen = request(&mut machine, kind, 0, &[readable(DATA, 16)]).0;
                assert_eq!(seen, status, "{kind} {sector} {sectors} {flags}");
            }
            put_range(&machine, 0, 1, 0);
            for len in [0, 8, 15, 17, 32] {
                let data = if len == 0 { vec![] } else { vec![readable(DATA, len)] };
                assert_eq!(request(&mut machine, kind, 0, &data).0, IO_ERROR);
            }
        }
        put_range(&machine, 0, 1, 1);
        assert_eq!(request(&mut machine, DISCARD, 0, &[readable(DATA, 16)]).0, UNSUPPORTED);
        assert_eq!(file_bytes(&file, 0, 512), [1; 512]);
    }
}

#[test]
fn id_is_told_and_unknown_requests_are_unsupported() {
    let mut machine = machine(None, false);
    assert_eq!(request(&mut machine, GET_ID, 0, &[writable(DATA, 20)]), (OK, 21));
    assert_eq!(guest_bytes(&machine, DATA, 20), *b"disk-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(request(&mut machine, GET_ID, 0, &[writable(DATA, 19)]).0, IO_ERROR);
    for kind in [2, 3, 5, 9, 14, u32::MAX] {
        assert_eq!(request(&mut machine, kind, 0, &[writable(DATA, 512)]).0, UNSUPPORTED);
    }
}

#[test]
fn request_without_room_for_a_status_comes_back_empty() {
    let mut machine = machine(None, false);
    put_header(&machine, HEADER, FLUSH, 0);
    for chain in [vec![readable(HEADER, 16)], vec![readable(HEADER, 8)]] {
        machine.queues[0].offer(&chain);
        machine.kick(0);
        assert_eq!(machine.wait_used(0, 1)[0].1, 0);
    }
    machine.queues[0].offer(&[readable(HEADER, 15), writable(STATUS, 1)]);
    machine.kick(0);
    assert_eq!(machine.wait_used(0, 1)[0].1, 1);
    assert_eq!(guest_bytes(&machine, STATUS, 1), [IO_ERROR]);
}

#[test]
fn device_without_backing_fails_and_serves_once_it_has_one() {
    let file = disk();
    for backing in backings(&file, false) {
        let mut machine = machine(None, false);
        assert_eq!(machine.read(0x100), 0);
        assert_eq!(request(&mut machine, IN, 0, &[writable(DATA, 512)]).0, IO_ERROR);
        assert_eq!(request(&mut machine, FLUSH, 0, &[]).0, IO_ERROR);
        let generation = machine.read(0xfc);
        machine.transport.device_mut().set_backing(backing).unwrap();
        assert_ne!(machine.read(0xfc), generation);
        assert_eq!(machine.read(0x60) & 2, 2, "configuration change");
        assert_eq!(machine.read(0x100), SECTORS as u32);
        assert_eq!(request(&mut machine, IN, 0, &[writable(DATA, 512)]).0, OK);
        assert_eq!(guest_bytes(&machine, DATA, 512), [1; 512]);
        // The backing survives a reset of the driver.
        machine.start(u64::MAX);
        assert_eq!(request(&mut machine, IN, 1, &[writable(DATA, 512)]).0, OK);
        assert_eq!(guest_bytes(&machine, DATA, 512), [2; 512]);
    }
}

#[test]
fn file_that_shrinks_is_an_io_error() {
    let file = disk();
    for backing in backings(&file, false) {
        let mut machine = machine(Some(backing), false);
        file.set_len(10 * 512 + 100).unwrap();
        let data = [writable(DATA, 1024)];
        assert_eq!(request(&mut machine, IN, 10, &data), (IO_ERROR, 100));
        assert_eq!(request(&mut machine, IN, 20, &data), (IO_ERROR, 0));
        file.set_len(SECTORS * 512).unwrap();
    }
}

/// More requests at once than may be in flight, from one kick: none is lost, none is answered
/// twice, each gets its own data.
#[test]
fn flood_of_requests_is_answered_each_once() {
    let file = disk();
    for backing in backings(&file, false) {
        let config = BlockConfig::default();
        let mut machine = Machine::new(Block::new(config, Some(backing), &no_hook()).unwrap());
        machine.queue_size_max = 256;
        machine.start(u64::MAX);
        for round in 0..4u64 {
            // 85 chains of three descriptors fill a queue of 256.
            for slot in 0..85 {
                let at = BUFFERS + slot * 0x1000;
                put_header(&machine, at, IN, (slot + round) % SECTORS);
                let chain = [readable(at, 16), writable(at + 0x200, 512), writable(at + 0x100, 1)];
                machine.queues[0].offer(&chain);
            }
            machine.kick(0);
            let mut heads: Vec<u32> =
                machine.wait_used(0, 85).into_iter().map(|(head, _)| head).collect();
            heads.sort_unstable();
            heads.dedup();
            assert_eq!(heads.len(), 85);
            for slot in 0..85 {
                let at = BUFFERS + slot * 0x1000;
                assert_eq!(guest_bytes(&machine, at + 0x100, 1), [OK]);
                let expected = ((slot + round) % SECTORS) as u8 + 1;
                assert_eq!(guest_bytes(&machine, at + 0x200, 512), [expected; 512]);
            }
        }
    }
}

#[test]
fn single_descriptor_chains_beyond_the_tags_do_not_stall() {
    let file = disk();
    for backing in backings(&file, false) {
        let config = BlockConfig::default();
        let mut machine = Machine::new(Block::new(config, Some(backing), &no_hook()).unwrap());
        machine.queue_size_max = 256;
        machine.start(u64::MAX);
        put_header(&machine, HEADER, FLUSH, 0);
        // One indirect descriptor a request: 256 requests fit the queue, 128 are in flight.
        for _ in 0..256 {
            machine.queues[0]
                .offer_indirect(BUFFERS + 0x8000, &[readable(HEADER, 16), writable(STATUS, 1)]);
        }
        machine.kick(0);
        assert_eq!(machine.wait_used(0, 256).len(), 256);
    }
}

#[test]
fn reset_with_requests_in_flight_drains_them() {
    let file = disk();
    for backing in backings(&file, false) {
        let mut machine = machine(Some(backing), false);
        for round in 0..20 {
            for slot in 0..20 {
                let at = BUFFERS + slot * 0x1000;
                put_header(&machine, at, OUT, slot);
                machine.queues[0].offer(&[
                    readable(at, 16),
                    readable(at + 0x200, 512),
                    writable(at + 0x100, 1),
                ]);
            }
            machine.kick(0);
            machine.write(0x70, 0);
            // Nothing writes to guest memory after the reset.
            let before = guest_bytes(&machine, 0, 4 << 20);
            assert_eq!(machine.read(0x60), 0, "round {round}");
            assert!(before == guest_bytes(&machine, 0, 4 << 20));
            machine.start(u64::MAX);
        }
    }
}

#[test]
fn pause_keeps_the_position_of_the_queue() {
    let file = disk();
    let [backing, _] = backings(&file, false);
    let mut machine = machine(Some(backing), false);
    assert_eq!(request(&mut machine, IN, 0, &[writable(DATA, 512)]).0, OK);
    machine.transport.pause();
    let state = machine.transport.device().state();
    assert_eq!((state.sectors, state.queues[0].next_used), (SECTORS, 1));
    put_header(&machine, HEADER, FLUSH, 0);
    machine.queues[0].offer(&[readable(HEADER, 16), writable(STATUS, 1)]);
    machine.kick(0);
    machine.transport.resume().unwrap();
    assert_eq!(machine.wait_used(0, 1).len(), 1);
}

/// A backend that takes operations and then is dead.
struct Dead(Sender<()>);

impl Backend for Dead {
    unsafe fn start(&mut self, _tag: u16, _operation: Operation) -> io::Result<()> {
        self.0.send(()).map_err(io::Error::other)
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn next_done(&mut self) -> Option<Done> {
        None
    }

    fn wait(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn event(&self) -> Option<RawFd> {
        None
    }
}

#[test]
fn pause_after_the_backend_has_died_comes_to_an_end() {
    let (taken, takes) = channel();
    let backing = Backing {
        file: disk(),
        backends: vec![Box::new(Dead(taken))],
        sectors: SECTORS,
        read_only: false,
    };
    let mut machine = machine(Some(backing), false);
    put_header(&machine, HEADER, FLUSH, 0);
    machine.queues[0].offer(&[readable(HEADER, 16), writable(STATUS, 1)]);
    machine.kick(0);
    takes.recv().unwrap();
    machine.transport.pause();
    assert!(machine.transport.interrupt().needs_reset());
    machine.transport.resume().unwrap();
    machine.transport.pause();
}

#[test]
fn configuration_reads_within_and_beyond_its_end() {
    let file = disk();
    let [backing, _] = backings(&file, false);
    let mut machine = machine(Some(backing), false);
    assert_eq!(machine.read(0x100), SECTORS as u32);
    assert_eq!(machine.read(0x100 + 12), 254);
    assert_eq!(machine.read(0x100 + 20), 512);
    assert_eq!(machine.read(0x100 + 32) >> 16, 1, "num_queues");
    assert_eq!(machine.read(0x100 + 40), 1);
    assert_eq!(machine.read(0x100 + 60), 0);
    assert_eq!(machine.read(0xffc), 0);
    let mut wide = [0xff; 8];
    use crate::virtio::VirtioDevice;
    machine.transport.device().read_config(u64::MAX, &mut wide);
    assert_eq!(wide, [0; 8]);
    machine.transport.device().read_config(56, &mut wide);
    assert_eq!(wide, [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn backing_that_does_not_fit_is_refused() {
    let (pipe, _writer) = std::io::pipe().unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
    assert!(matches!(Backing::new(pipe, true, 1), Err(BackingError::Kind)));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, [0; 1000]).unwrap();
    let read_only = || File::open(&path).unwrap();
    assert!(matches!(Backing::new(read_only(), false, 1), Err(BackingError::Mode)));
    let backing = Backing::new(read_only(), true, 1).unwrap();
    assert_eq!(backing.sectors, 1);
    let block = Block::new(BlockConfig::default(), Some(backing), &no_hook());
    assert!(block.is_err());
    assert_eq!(SerialNumber::try_from("123456789012345678901"), Err(SerialError(21)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a request looks like, it comes back once, the file keeps its size, and the
    /// device goes on.
    #[test]
    fn any_request_comes_back_and_the_device_goes_on(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0..SECTORS + 2, any::<u64>()],
        range in (prop_oneof![0..SECTORS, any::<u64>()], any::<u32>(), 0u32..4),
        lens in prop::collection::vec((0u32..2000, any::<bool>()), 0..6),
        ring in any::<bool>(),
    ) {
        let file = disk();
        let [a, b] = backings(&file, false);
        let mut machine = machine(Some(if ring { a } else { b }), false);
        put_range(&machine, range.0, range.1, range.2);
        let data: Vec<Desc> = lens
            .into_iter()
            .map(|(len, write)| if write { writable(DATA, len) } else { readable(DATA, len) })
            .collect();
        let (status, _) = request(&mut machine, kind, sector, &data);
        prop_assert!(status <= UNSUPPORTED);
        prop_assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
        prop_assert_eq!(request(&mut machine, IN, 0, &[writable(DATA, 512)]).0, OK);
        prop_assert!(!machine.transport.state().needs_reset);
    }
}
