//! Limits of the container's network interfaces: the annotations `io.bulkhead.net`, for each that
//! has none of its own, and `io.bulkhead.net.NAME`.
//!
//! ```text
//! io.bulkhead.net[.NAME] = LIMIT[,LIMIT...]
//! LIMIT = rx-bps=SIZE | tx-bps=SIZE | rx-pps=N | tx-pps=N
//! ```
//!
//! `rx` is what the container receives and `tx` what it sends, `bps` bytes and `pps` packets in a
//! second.

use std::collections::HashMap;

use bulkhead_protocol::vm::RawRateLimit;

use super::PlanError;
use super::annotations::field;
use super::rates::{bucket, size};

/// Start of the annotations for one interface.
const NAMED: &str = "io.bulkhead.net.";
/// Longest name of an interface (`IFNAMSIZ` less the NUL).
const NAME_MAX: usize = 15;

/// Limits of one interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetLimit {
    /// Of what the container receives.
    pub rx: Option<RawRateLimit>,
    /// Of what the container sends.
    pub tx: Option<RawRateLimit>,
}

/// Limits of all interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetLimits {
    common: NetLimit,
    named: HashMap<String, NetLimit>,
}

impl NetLimits {
    /// Those of the interface `name`.
    pub fn of(&self, name: &str) -> NetLimit {
        self.named.get(name).copied().unwrap_or(self.common)
    }

    /// Takes the annotation `key`, which is one of these.
    pub(crate) fn take(&mut self, key: &str, text: &str) -> Result<(), PlanError> {
        let limit = parse(text).map_err(|reason| PlanError::invalid(field(key), text, reason))?;
        let Some(name) = key.strip_prefix(NAMED) else {
            self.common = limit;
            return Ok(());
        };
        if name.is_empty() || name.len() > NAME_MAX {
            let reason = "the name of an interface has 1 to 15 bytes";
            return Err(PlanError::invalid(field(key), name, reason));
        }
        self.named.insert(name.to_owned(), limit);
        Ok(())
    }
}

fn parse(text: &str) -> Result<NetLimit, &'static str> {
    const KNOWN: &str = "rx-bps=SIZE, tx-bps=SIZE, rx-pps=N and tx-pps=N are known, above 0";
    let mut limit = NetLimit::default();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or(KNOWN)?;
        let (direction, unit) = key.split_once('-').ok_or(KNOWN)?;
        let rate = match direction {
            "rx" => &mut limit.rx,
            "tx" => &mut limit.tx,
            _ => return Err(KNOWN),
        };
        let rate = rate.get_or_insert_default();
        match unit {
            "bps" => rate.bytes = Some(bucket(size(value)).ok_or(KNOWN)?),
            "pps" => rate.ops = Some(bucket(value.parse().ok()).ok_or(KNOWN)?),
            _ => return Err(KNOWN),
        }
    }
    Ok(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(annotations: &[(&str, &str)]) -> NetLimits {
        let mut limits = NetLimits::default();
        for (key, text) in annotations {
            limits.take(key, text).expect(text);
        }
        limits
    }

    fn sizes(limit: NetLimit) -> [Option<u64>; 4] {
        let (rx, tx) = (limit.rx.unwrap_or_default(), limit.tx.unwrap_or_default());
        [rx.bytes, rx.ops, tx.bytes, tx.ops].map(|bucket| bucket.map(|bucket| bucket.size))
    }

    #[test]
    fn interface_has_its_own_limits_or_the_common_ones() {
        let limits = limits(&[
            ("io.bulkhead.net", "rx-bps=10m,tx-bps=1m,rx-pps=1000"),
            ("io.bulkhead.net.eth1", "tx-pps=5"),
        ]);
        let common = [Some(10 << 20), Some(1000), Some(1 << 20), None];
        assert_eq!(sizes(limits.of("eth0")), common);
        assert_eq!(sizes(limits.of("eth1")), [None, None, None, Some(5)]);
        assert_eq!(NetLimits::default().of("eth0"), NetLimit::default());
    }

    #[test]
    fn limit_that_says_nothing_clear_is_refused_by_name() {
        for text in
            ["", "rx-bps", "rx-bps=", "rx-bps=0", "bps=1", "up-bps=1", "rx-pps=1k", "rx-bps=1,"]
        {
            let error = NetLimits::default().take("io.bulkhead.net.eth0", text).unwrap_err();
            assert!(error.to_string().contains("io.bulkhead.net.eth0"), "{text}: {error}");
        }
        for key in ["io.bulkhead.net.", "io.bulkhead.net.sixteen-letters-"] {
            NetLimits::default().take(key, "rx-pps=1").unwrap_err();
        }
    }
}
