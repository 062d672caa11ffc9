//! Questions that the host has and who waits for their answers.

use std::{collections::HashMap, net::SocketAddr, sync::Mutex};

use bulkhead_protocol::names::OPEN_MAX;
use tokio::sync::oneshot;

/// Who asked.
#[derive(Debug)]
pub enum Asker {
    /// By a datagram from this address.
    Datagram(SocketAddr),
    /// On a connection.
    Connection(oneshot::Sender<Vec<u8>>),
}

/// Open questions by their number, at most [`OPEN_MAX`].
#[derive(Debug, Default)]
pub struct Asked(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    last: u32,
    askers: HashMap<u32, Asker>,
}

impl Asked {
    /// A number for a question of `asker`; `None` when too many wait.
    pub fn open(&self, asker: Asker) -> Option<u32> {
        let mut open = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if open.askers.len() >= OPEN_MAX {
            return None;
        }
        let mut number = open.last.wrapping_add(1);
        while open.askers.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        open.last = number;
        open.askers.insert(number, asker);
        Some(number)
    }

    /// Who waits for the answer of this number, who does so no more.
    pub fn take(&self, number: u32) -> Option<Asker> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).askers.remove(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_bounded_and_their_numbers_used_once_at_a_time() {
        let asked = Asked::default();
        let asker = || Asker::Datagram(([127, 0, 0, 1], 7).into());
        asked.0.lock().unwrap().last = u32::MAX - 1;
        let numbers: Vec<u32> = (0..OPEN_MAX).map(|_| asked.open(asker()).unwrap()).collect();
        assert_eq!(numbers[..3], [u32::MAX, 0, 1]);
        assert_eq!(asked.open(asker()), None);
        assert!(asked.take(0).is_some() && asked.take(0).is_none());
        asked.0.lock().unwrap().last = u32::MAX - 1;
        assert_eq!(asked.open(asker()), Some(0), "the only one that is free");
    }
}
