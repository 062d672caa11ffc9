//! Limits of what a device moves: token buckets for bytes and for operations.
//!
//! Input: sizes from the host's owner; how much and how often is the guest's choice. Output: the
//! answer whether another operation may begin, and a timer for when it may.
//!
//! A device asks [`RateLimiter::admit`] before an operation and tells [`RateLimiter::charge`]
//! after it what it has moved. So an operation needs no known size to begin, and one larger than
//! the bucket passes too: the bucket then owes what it lacked, and nothing passes until time has
//! paid. Over any time that makes at most the bucket's size, its share of the time, and one
//! operation.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// A blocked device is not woken for less than what this time brings, unless its bucket holds
/// less: a thousand wake-ups a second at the most.
const PATIENCE_NS: u64 = 1_000_000;

/// Longest time in which a bucket may become full: 146 years, so that all products fit 128 bits.
const REFILL_MAX_NS: u64 = 1 << 62;

/// A token bucket to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketConfig {
    /// Tokens that the bucket holds; it starts full. 0 counts as 1.
    pub size: u64,
    /// Tokens besides these that are there once, at the start.
    pub one_time_burst: u64,
    /// Time in which an empty bucket becomes full. 0 counts as a nanosecond.
    pub refill_time: Duration,
}

/// Limits of a device or of one of its directions; what is absent has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes of payload.
    pub bytes: Option<BucketConfig>,
    /// Operations: packets or requests.
    pub ops: Option<BucketConfig>,
}

/// Tokens that come with time and go with use.
///
/// The level is kept in fractions of a token: a token is `refill_ns` of them, and each nanosecond
/// brings `size`. So nothing is ever rounded, and nothing drifts.
#[derive(Debug)]
struct TokenBucket {
    size: u64,
    refill_ns: u64,
    /// Negative: what was charged beyond what was there.
    level: i128,
    /// Time of `level`.
    at_ns: u64,
}

impl TokenBucket {
    fn new(config: BucketConfig, now_ns: u64) -> Self {
        let refill_ns = u64::try_from(config.refill_time.as_nanos()).unwrap_or(u64::MAX);
        let refill_ns = refill_ns.clamp(1, REFILL_MAX_NS);
        let size = config.size.max(1);
        // Below 2^65 * 2^62.
        let level = (i128::from(size) + i128::from(config.one_time_burst)) * i128::from(refill_ns);
        Self { size, refill_ns, level, at_ns: now_ns }
    }

    /// The level of a full bucket.
    fn full(&self) -> i128 {
        i128::from(self.size) * i128::from(self.refill_ns)
    }

    fn refill(&mut self, now_ns: u64) {
        let elapsed_ns = now_ns.saturating_sub(self.at_ns);
        self.at_ns = self.at_ns.max(now_ns);
        let room = self.full().saturating_sub(self.level);
        if room > 0 {
            let brought = u128::from(elapsed_ns) * u128::from(self.size);
            self.level += i128::try_from(brought).map_or(room, |brought| brought.min(room));
        }
    }

    /// Whether there is a token.
    fn has_token(&self) -> bool {
        self.level >= i128::from(self.refill_ns)
    }

    fn charge(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens) * i128::from(self.refill_ns));
    }

    /// Nanoseconds until there is a token again, and enough to be worth waking for.
    fn wait_ns(&self) -> u64 {
        let patience = i128::from(PATIENCE_NS) * i128::from(self.size);
        let worth = patience.min(self.full()).max(i128::from(self.refill_ns));
        let lacking = worth.saturating_sub(self.level).max(0).cast_unsigned();
        u64::try_from(lacking.div_ceil(u128::from(self.size))).unwrap_or(u64::MAX)
    }
}

/// Holds a device to its [`RateLimit`].
///
/// Its descriptor becomes readable when a device that was refused may go on; the device then calls
/// [`RateLimiter::acknowledge`] and asks again.
#[derive(Debug)]
pub struct RateLimiter {
    bytes: Option<TokenBucket>,
    ops: Option<TokenBucket>,
    epoch: Instant,
    timer: OwnedFd,
    /// The timer is set and its event was not acknowledged.
    armed: bool,
}

impl RateLimiter {
    /// Full buckets, and a timer (timerfd_create).
    pub fn new(limit: RateLimit) -> io::Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: the call takes two integers.
        let timer = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        if timer < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made the descriptor; nothing else owns it.
        let timer = unsafe { OwnedFd::from_raw_fd(timer) };
        let bucket = |config| TokenBucket::new(config, 0);
        let (bytes, ops) = (limit.bytes.map(bucket), limit.ops.map(bucket));
        Ok(Self { bytes, ops, epoch: Instant::now(), timer, armed: false })
    }

    /// Whether another operation may begin now. If not, the descriptor becomes readable when one
    /// may (timerfd_settime).
    pub fn admit(&mut self) -> io::Result<bool> {
        let now_ns = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut wait_ns = 0;
        for bucket in self.bytes.iter_mut().chain(&mut self.ops) {
            bucket.refill(now_ns);
            if !bucket.has_token() {
                wait_ns = bucket.wait_ns().max(wait_ns);
            }
        }
        if wait_ns > 0 && !self.armed {
            self.arm(Duration::from_nanos(wait_ns))?;
            self.armed = true;
        }
        Ok(wait_ns == 0)
    }

    /// An operation has moved so many bytes.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.charge(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.charge(1);
        }
    }

    /// Handles the readiness of the descriptor. Without this it stays readable.
    pub fn acknowledge(&mut self) {
        let mut expirations = [0; 8];
        let pointer = expirations.as_mut_ptr().cast();
        // SAFETY: the pointer and the length describe an array of this function's; the timer never
        // blocks, and that it has not expired is no error.
        unsafe { libc::read(self.timer.as_raw_fd(), pointer, expirations.len()) };
        self.armed = false;
    }

    fn arm(&self, wait: Duration) -> io::Result<()> {
        let it_value = libc::timespec {
            tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: never, it_value };
        let timer = self.timer.as_raw_fd();
        // SAFETY: the setting is read before the call returns; no old one is asked for.
        match unsafe { libc::timerfd_settime(timer, 0, &setting, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsRawFd for RateLimiter {
    /// The timer.
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}
