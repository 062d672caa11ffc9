//! Buckets on a clock of the test's own, and the limiter on the kernel's.

use proptest::prelude::*;

use super::*;

const SECOND_NS: u64 = 1_000_000_000;

fn config(size: u64, one_time_burst: u64, refill_ms: u64) -> BucketConfig {
    BucketConfig { size, one_time_burst, refill_time: Duration::from_millis(refill_ms) }
}

/// Takes single tokens until there is none; how many there were.
fn drain(bucket: &mut TokenBucket, now_ns: u64) -> u64 {
    bucket.refill(now_ns);
    let mut taken = 0;
    while bucket.has_token() {
        bucket.charge(1);
        taken += 1;
    }
    taken
}

#[test]
fn bucket_starts_full_with_its_burst_and_refills_without_it() {
    let mut bucket = TokenBucket::new(config(10, 5, 1000), 0);
    assert_eq!(drain(&mut bucket, 0), 15);
    assert_eq!(drain(&mut bucket, SECOND_NS / 2), 5);
    assert_eq!(drain(&mut bucket, 100 * SECOND_NS), 10);
}

#[test]
fn burst_that_is_unused_stays_and_nothing_is_added_to_it() {
    let mut bucket = TokenBucket::new(config(10, 5, 1000), 0);
    bucket.refill(100 * SECOND_NS);
    bucket.charge(3);
    assert_eq!(drain(&mut bucket, 200 * SECOND_NS), 12);
}

#[test]
fn bucket_of_thirds_loses_nothing_to_rounding() {
    let mut bucket = TokenBucket::new(config(3, 0, 9), 0);
    assert_eq!(drain(&mut bucket, 0), 3);
    let mut taken = 0;
    // Steps of a nanosecond less than a million: no step brings a whole token.
    for step in 1..=3_000_u64 {
        taken += drain(&mut bucket, step * 999_999);
    }
    assert_eq!(taken, 3_000 * 999_999 / 3_000_000);
}

#[test]
fn operation_larger_than_the_bucket_passes_and_is_paid_for() {
    let mut bucket = TokenBucket::new(config(100, 0, 1000), 0);
    bucket.charge(1_000);
    // 900 tokens of debt, and then one that is worth waking for.
    assert_eq!(bucket.wait_ns(), 9 * SECOND_NS + SECOND_NS / 100);
    bucket.refill(9 * SECOND_NS);
    assert!(!bucket.has_token());
    bucket.refill(9 * SECOND_NS + SECOND_NS / 100);
    assert!(bucket.has_token());
}

#[test]
fn wait_of_a_fast_bucket_brings_what_is_worth_waking_for() {
    let mut bucket = TokenBucket::new(config(1_000_000, 0, 1000), 0);
    bucket.charge(1_000_000);
    assert_eq!(bucket.wait_ns(), PATIENCE_NS);
    let mut small = TokenBucket::new(BucketConfig { size: 2, ..config(2, 0, 0) }, 0);
    small.charge(2);
    assert_eq!(small.wait_ns(), 1, "a bucket that is full at once is waited for until it is full");
}

#[test]
fn clock_that_goes_back_takes_nothing() {
    let mut bucket = TokenBucket::new(config(10, 0, 1000), SECOND_NS);
    bucket.charge(10);
    bucket.refill(0);
    assert_eq!(bucket.level, 0);
    assert_eq!(drain(&mut bucket, 2 * SECOND_NS), 10);
}

#[test]
fn limiter_without_buckets_admits_everything() {
    let mut limiter = RateLimiter::new(RateLimit::default()).unwrap();
    limiter.charge(u64::MAX);
    assert!(limiter.admit().unwrap());
}

#[test]
fn refused_limiter_becomes_readable_and_then_admits() {
    let ops = Some(config(1, 0, 20));
    let mut limiter = RateLimiter::new(RateLimit { bytes: None, ops }).unwrap();
    assert!(limiter.admit().unwrap());
    limiter.charge(0);
    // A slow test has waited long enough already; then nothing is armed.
    while !limiter.admit().unwrap() {
        let mut poll = libc::pollfd { fd: limiter.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure of this function's.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, -1) }, 1);
        limiter.acknowledge();
    }
    // SAFETY: as above.
    let mut poll = libc::pollfd { fd: limiter.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 0) }, 0, "acknowledged");
}

#[test]
fn each_bucket_refuses_by_itself() {
    let slow = Some(config(10, 0, 1_000_000_000));
    let mut by_bytes = RateLimiter::new(RateLimit { bytes: slow, ops: None }).unwrap();
    by_bytes.charge(10);
    assert!(!by_bytes.admit().unwrap());
    let mut by_ops = RateLimiter::new(RateLimit { bytes: None, ops: slow }).unwrap();
    for _ in 0..10 {
        assert!(by_ops.admit().unwrap());
        by_ops.charge(1 << 40);
    }
    assert!(!by_ops.admit().unwrap());
}

/// One step of a device: time goes by, and if it may it moves something.
fn steps() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let elapsed_ns = prop_oneof![0..2_000_u64, 0..SECOND_NS];
    prop::collection::vec((elapsed_ns, 0..5_000_u64), 1..200)
}

proptest! {
    #[test]
    fn passed_tokens_stay_within_burst_time_and_one_operation(
        size in 1..10_000_u64, burst in 0..10_000_u64, refill_ms in 1..5_000_u64, steps in steps(),
    ) {
        let mut bucket = TokenBucket::new(config(size, burst, refill_ms), 0);
        let (mut now_ns, mut passed, mut last) = (0, 0, 0);
        for (elapsed_ns, tokens) in steps {
            now_ns += elapsed_ns;
            bucket.refill(now_ns);
            if bucket.has_token() {
                bucket.charge(tokens);
                (passed, last) = (passed + u128::from(tokens), u128::from(tokens));
            }
        }
        let time = u128::from(now_ns) * u128::from(size) / (u128::from(refill_ms) * 1_000_000);
        prop_assert!(passed - last <= u128::from(size) + u128::from(burst) + time);
    }

    #[test]
    fn device_that_waits_as_told_gets_its_whole_rate(
        size in 1..10_000_u64, refill_ms in 1..5_000_u64, tokens in 1..5_000_u64,
    ) {
        let mut bucket = TokenBucket::new(config(size, 0, refill_ms), 0);
        let (mut now_ns, mut passed) = (0_u64, 0_u64);
        for _ in 0..100 {
            while bucket.has_token() {
                bucket.charge(tokens);
                passed += tokens;
            }
            let wait_ns = bucket.wait_ns();
            prop_assert!(wait_ns > 0);
            now_ns += wait_ns;
            bucket.refill(now_ns);
            prop_assert!(bucket.has_token(), "the wait was too short");
        }
        let time = u128::from(now_ns) * u128::from(size) / (u128::from(refill_ms) * 1_000_000);
        // All of the time's tokens, but for those still in the bucket.
        prop_assert!(u128::from(passed) + u128::from(size) >= time);
    }

    #[test]
    fn extreme_values_never_overflow(
        size: u64, burst: u64, refill_ms: u64,
        steps in prop::collection::vec((any::<u64>(), any::<u64>()), 0..20),
    ) {
        let mut bucket = TokenBucket::new(config(size, burst, refill_ms), 0);
        for (now_ns, tokens) in steps {
            bucket.refill(now_ns);
            bucket.charge(tokens);
            bucket.charge(tokens);
            bucket.wait_ns();
        }
    }
}
