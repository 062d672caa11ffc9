//! The rate limit, which queues share.

use std::time::{Duration, Instant};

use super::*;
use crate::rate::{BucketConfig, RateLimit};

const QUEUES: usize = 2;
/// Time in which the bucket of every test becomes full.
const REFILL: Duration = Duration::from_millis(200);

fn limited(bytes: Option<u64>, ops: Option<u64>, refill_time: Duration) -> Machine<Block> {
    let bucket = |size| BucketConfig { size, one_time_burst: 0, refill_time };
    let rate = Some(RateLimit { bytes: bytes.map(bucket), ops: ops.map(bucket) });
    let backing = Backing::new(disk(), false, QUEUES).unwrap();
    let config = BlockConfig { queues: QUEUES, rate, ..BlockConfig::default() };
    let mut machine = Machine::new(Block::new(config, Some(backing), &no_hook()).unwrap());
    machine.start(u64::MAX);
    machine
}

/// Offers `count` reads of a sector to each queue.
fn offer(machine: &mut Machine<Block>, count: usize) {
    for queue in 0..QUEUES {
        for slot in 0..count {
            let at = BUFFERS + (queue * 20 + slot) as u64 * 0x1000;
            put_header(machine, at, IN, slot as u64);
            let chain = [readable(at, 16), writable(at + 0x200, 512), writable(at + 0x100, 1)];
            machine.queues[queue].offer(&chain);
        }
        machine.kick(queue as u32);
    }
}

#[test]
fn requests_beyond_the_bucket_wait_and_none_is_lost() {
    for (bytes, ops) in [(None, Some(10)), (Some(5120), None), (Some(5120), Some(1000))] {
        let mut machine = limited(bytes, ops, REFILL);
        let start = Instant::now();
        // Three buckets full: one is there, two more take their time.
        offer(&mut machine, 15);
        for queue in 0..QUEUES {
            assert_eq!(machine.wait_used(queue, 15).len(), 15);
        }
        assert!(start.elapsed() >= REFILL * 3 / 2, "{:?}", start.elapsed());
        assert_eq!(machine.transport.device().counts().reads, 30);
    }
}

#[test]
fn pause_while_requests_wait_loses_none() {
    let mut refill = REFILL;
    loop {
        let mut machine = limited(None, Some(4), refill);
        offer(&mut machine, 4);
        machine.transport.pause();
        let waiting = machine.transport.device().counts().reads < 8;
        machine.transport.resume().unwrap();
        for queue in 0..QUEUES {
            assert_eq!(machine.wait_used(queue, 4).len(), 4);
        }
        if waiting {
            return;
        }
        // On a busy machine the bucket may have become full again before the pause.
        assert!(refill < Duration::from_secs(60), "more than the bucket holds");
        refill *= 4;
    }
}

#[test]
fn what_moves_no_data_is_not_limited() {
    let mut machine = limited(None, Some(1), Duration::from_secs(3600));
    for _ in 0..10 {
        assert_eq!(request(&mut machine, FLUSH, 0, &[]).0, OK);
    }
    assert_eq!(request(&mut machine, IN, 0, &[writable(DATA, 512)]).0, OK);
}
