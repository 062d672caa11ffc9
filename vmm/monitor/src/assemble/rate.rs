//! Rate limits from the words of the configuration to those of the devices.

use std::time::Duration;

use bulkhead_devices::rate::{BucketConfig, RateLimit};
use bulkhead_protocol::vm::{RawRateLimit, RawTokenBucket};

/// The limit that `raw`, which was checked with the configuration, asks for.
pub fn limit(raw: RawRateLimit) -> RateLimit {
    RateLimit { bytes: raw.bytes.map(bucket), ops: raw.ops.map(bucket) }
}

fn bucket(raw: RawTokenBucket) -> BucketConfig {
    BucketConfig {
        size: raw.size,
        one_time_burst: raw.one_time_burst,
        refill_time: Duration::from_millis(raw.refill_time_ms),
    }
}
