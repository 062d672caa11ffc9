//! Rates as annotations give them: what a second brings.

use bulkhead_protocol::vm::RawTokenBucket;

/// Milliseconds in which a bucket becomes full.
const REFILL_MS: u64 = 1000;

/// A number with k, m, g or t for powers of 1024.
pub(super) fn size(text: &str) -> Option<u64> {
    let shift = match text.bytes().last()?.to_ascii_lowercase() {
        b'k' => 10,
        b'm' => 20,
        b'g' => 30,
        b't' => 40,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A bucket that passes `rate` in a second, if that is a number above 0.
pub(super) fn bucket(rate: Option<u64>) -> Option<RawTokenBucket> {
    let size = rate.filter(|rate| *rate > 0)?;
    Some(RawTokenBucket { size, one_time_burst: 0, refill_time_ms: REFILL_MS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_suffix() {
        for (text, bytes) in
            [("0", Some(0)), ("17", Some(17)), ("2k", Some(2048)), ("1M", Some(1 << 20))]
        {
            assert_eq!(size(text), bytes, "{text}");
        }
        for text in ["", "k", "-1", "1.5m", "1kk", "99999999999t", "1 m"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn bucket_holds_a_second() {
        assert_eq!(bucket(Some(7)).map(|b| (b.size, b.refill_time_ms)), Some((7, 1000)));
        assert_eq!(bucket(Some(0)), None);
        assert_eq!(bucket(None), None);
    }
}
