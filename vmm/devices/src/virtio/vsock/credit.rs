//! Credit accounting of one connection in both directions (virtio 1.2, section 5.10.6.3).
//!
//! Pure arithmetic on free-running 32-bit counters. Trust: the guest's counters are hostile; a
//! lie can only make the guest's own connection slower or end it.

use super::packet::BufferState;

/// Room in the guest's buffer: how much the device may send.
#[derive(Debug, Clone, Copy, Default)]
pub struct SendCredit {
    peer: BufferState,
    sent: u32,
}

impl SendCredit {
    /// Takes over what the guest says in a packet.
    pub fn update(&mut self, peer: BufferState) {
        self.peer = peer;
    }

    /// Bytes that the guest has room for. A guest that claims to have taken more than was sent
    /// seems to have no room.
    pub fn free_bytes(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer.fwd_cnt);
        self.peer.buf_alloc.saturating_sub(in_flight)
    }

    /// Counts `len` bytes that go to the guest.
    pub fn consume(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }
}

/// The device's own buffer: how much the guest may send.
#[derive(Debug, Clone, Copy)]
pub struct ReceiveWindow {
    buf_alloc: u32,
    received: u32,
    forwarded: u32,
    /// `fwd_cnt` of the last packet that went to the guest.
    told: u32,
}

impl ReceiveWindow {
    /// An empty buffer of `buf_alloc` bytes.
    pub fn new(buf_alloc: u32) -> Self {
        Self { buf_alloc, received: 0, forwarded: 0, told: 0 }
    }

    /// Counts `len` bytes of the guest, or refuses them because they do not fit.
    pub fn accept(&mut self, len: u32) -> Result<(), Overrun> {
        let held = self.received.wrapping_sub(self.forwarded);
        if len > self.buf_alloc - held {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// Counts `len` accepted bytes that have left the buffer.
    pub fn forward(&mut self, len: u32) {
        debug_assert!(len <= self.received.wrapping_sub(self.forwarded));
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Whether the guest should be told: there is room that it does not know of, and of what it
    /// knows less than half is left.
    pub fn update_is_due(&self) -> bool {
        let known_used = self.received.wrapping_sub(self.told);
        self.forwarded != self.told && known_used > self.buf_alloc / 2
    }

    /// What the next packet says; the guest then knows.
    pub fn tell(&mut self) -> BufferState {
        self.told = self.forwarded;
        BufferState { buf_alloc: self.buf_alloc, fwd_cnt: self.forwarded }
    }
}

/// The guest has sent more than it had credit for.
#[derive(Debug, PartialEq, Eq)]
pub struct Overrun;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credit(buf_alloc: u32, fwd_cnt: u32, sent: u32) -> SendCredit {
        SendCredit { peer: BufferState { buf_alloc, fwd_cnt }, sent }
    }

    #[test]
    fn send_credit_counts_across_wrap() {
        let mut credit = credit(100, u32::MAX - 9, u32::MAX - 9);
        credit.consume(40);
        assert_eq!(credit.free_bytes(), 60);
        credit.update(BufferState { buf_alloc: 100, fwd_cnt: 30 });
        assert_eq!(credit.free_bytes(), 100);
    }

    #[test]
    fn send_credit_of_lying_or_shrinking_guest_is_none() {
        assert_eq!(credit(100, 11, 10).free_bytes(), 0);
        assert_eq!(credit(5, 0, 10).free_bytes(), 0);
    }

    #[test]
    fn window_overrun_is_refused_and_not_counted() {
        let mut window = ReceiveWindow::new(10);
        assert_eq!(window.accept(10), Ok(()));
        assert_eq!(window.accept(1), Err(Overrun));
        assert_eq!(window.accept(u32::MAX), Err(Overrun));
        window.forward(4);
        assert_eq!(window.accept(5), Err(Overrun));
        assert_eq!(window.accept(4), Ok(()));
    }

    #[test]
    fn window_update_is_due_only_below_half() {
        let mut window = ReceiveWindow::new(10);
        window.accept(9).unwrap();
        assert!(!window.update_is_due(), "there is nothing new to tell");
        let mut window = ReceiveWindow::new(10);
        window.accept(5).unwrap();
        window.forward(5);
        assert!(!window.update_is_due());
        window.accept(1).unwrap();
        assert!(window.update_is_due());
        assert_eq!(window.tell().fwd_cnt, 5);
        assert!(!window.update_is_due());
    }

    proptest! {
        #[test]
        fn window_never_holds_more_than_it_has(
            steps in prop::collection::vec((any::<bool>(), 0u32..200), 0..200),
            start in any::<u32>(),
        ) {
            let mut window =
                ReceiveWindow { buf_alloc: 256, received: start, forwarded: start, told: start };
            let mut held = 0u32;
            for (send, len) in steps {
                if send {
                    if window.accept(len).is_ok() {
                        held += len;
                    }
                } else {
                    let len = len.min(held);
                    window.forward(len);
                    held -= len;
                }
                prop_assert!(held <= 256);
                prop_assert_eq!(window.received.wrapping_sub(window.forwarded), held);
            }
        }
    }
}
