//! Host ports of connections that clients ask for.

/// Such ports are high, where no service is.
const FIRST: u32 = 1 << 30;
const LAST: u32 = (1 << 31) - 1;

/// Hands out ports in turn, so that one comes again only after all others.
#[derive(Debug)]
pub struct HostPorts {
    next: u32,
}

impl HostPorts {
    /// All ports are new.
    pub fn new() -> Self {
        Self { next: FIRST }
    }

    /// Continues at `next`.
    pub fn starting_at(next: u32) -> Self {
        Self { next: next.clamp(FIRST, LAST) }
    }

    /// Where the next port is looked for.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// A port that is not `taken`, or `None` if `limit` in a row are.
    pub fn take(&mut self, limit: usize, taken: impl Fn(u32) -> bool) -> Option<u32> {
        for _ in 0..limit {
            let port = self.next;
            self.next = if port == LAST { FIRST } else { port + 1 };
            if !taken(port) {
                return Some(port);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_ports_are_passed_over_and_the_range_wraps() {
        let mut ports = HostPorts::starting_at(LAST - 1);
        assert_eq!(ports.take(9, |port| port == LAST - 1), Some(LAST));
        assert_eq!(ports.take(9, |_| false), Some(FIRST));
        assert_eq!(ports.take(9, |_| true), None);
        assert_eq!(ports.next(), FIRST + 10);
    }

    #[test]
    fn start_outside_of_the_range_is_moved_into_it() {
        assert_eq!(HostPorts::starting_at(0).take(1, |_| false), Some(FIRST));
        assert_eq!(HostPorts::starting_at(u32::MAX).take(1, |_| false), Some(LAST));
    }
}
