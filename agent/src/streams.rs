//! Standard streams that the host has opened and no call has named yet.

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use thiserror::Error;
use tokio::{sync::Notify, time::timeout};

use crate::{channel::Channel, transport::Listener};

/// Streams that may wait; the oldest is dropped for a new one.
const UNCLAIMED_MAX: usize = 256;
/// How long a call waits for a stream that it names, and a stream for its number.
const PATIENCE: Duration = Duration::from_secs(5);

/// A named stream was not there in time.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("stream {0} was not opened within 5 s")]
pub struct MissingStream(u64);

impl MissingStream {
    /// That of `number`, which may be 0 where a stream is needed.
    pub fn new(number: u64) -> Self {
        Self(number)
    }
}

/// The unclaimed streams.
#[derive(Debug, Default)]
pub struct Streams {
    waiting: Mutex<VecDeque<(u64, Channel)>>,
    arrived: Notify,
}

impl Streams {
    /// Accepts streams for as long as the listener works.
    pub async fn serve(self: std::sync::Arc<Self>, listener: Listener) -> std::io::Error {
        loop {
            match listener.accept().await {
                Ok(stream) => {
                    let streams = std::sync::Arc::clone(&self);
                    tokio::spawn(async move { streams.enrol(stream).await });
                }
                Err(error) => return error,
            }
        }
    }

    /// Reads the number and keeps the stream under it.
    async fn enrol(&self, stream: Channel) {
        let mut number = [0; 8];
        if matches!(timeout(PATIENCE, stream.read_exact(&mut number)).await, Ok(Ok(()))) {
            self.keep(u64::from_le_bytes(number), stream);
        }
    }

    fn keep(&self, number: u64, stream: Channel) {
        let mut waiting = self.waiting.lock().unwrap_or_else(|e| e.into_inner());
        // 0 means "no stream", and a number in use names the stream that came first.
        if number == 0 || waiting.iter().any(|(other, _)| *other == number) {
            return;
        }
        if waiting.len() == UNCLAIMED_MAX {
            waiting.pop_front();
        }
        waiting.push_back((number, stream));
        drop(waiting);
        self.arrived.notify_waiters();
    }

    /// Takes the stream `number`; 0 is no stream.
    pub async fn claim(&self, number: u64) -> Result<Option<Channel>, MissingStream> {
        if number == 0 {
            return Ok(None);
        }
        let wait = async {
            loop {
                let arrival = self.arrived.notified();
                if let Some(stream) = self.take(number) {
                    return stream;
                }
                arrival.await;
            }
        };
        match timeout(PATIENCE, wait).await {
            Ok(stream) => Ok(Some(stream)),
            Err(_) => Err(MissingStream(number)),
        }
    }

    fn take(&self, number: u64) -> Option<Channel> {
        let mut waiting = self.waiting.lock().unwrap_or_else(|e| e.into_inner());
        let place = waiting.iter().position(|(other, _)| *other == number)?;
        waiting.remove(place).map(|(_, stream)| stream)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream, sync::Arc};

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    }

    fn pair() -> (UnixStream, Channel) {
        let (near, far) = UnixStream::pair().unwrap();
        (near, Channel::new(far.into()).unwrap())
    }

    #[test]
    fn stream_that_comes_after_the_call_is_claimed() {
        runtime().block_on(async {
            let streams = Arc::new(Streams::default());
            let claim = tokio::spawn({
                let streams = Arc::clone(&streams);
                async move { streams.claim(7).await }
            });
            tokio::task::yield_now().await;
            let (mut near, far) = pair();
            near.write_all(&7u64.to_le_bytes()).unwrap();
            streams.enrol(far).await;
            assert!(claim.await.unwrap().unwrap().is_some());
        });
    }

    #[test]
    fn stream_that_never_comes_is_missing() {
        runtime().block_on(async {
            let streams = Streams::default();
            assert_eq!(streams.claim(9).await.err(), Some(MissingStream(9)));
            assert!(streams.claim(0).await.unwrap().is_none());
        });
    }

    #[test]
    fn streams_beyond_the_limit_drop_the_oldest() {
        runtime().block_on(async {
            let streams = Streams::default();
            for number in 0..=UNCLAIMED_MAX as u64 + 1 {
                streams.keep(number, pair().1);
            }
            assert!(streams.take(1).is_none());
            assert!(streams.take(2).is_some());
            assert!(streams.take(0).is_none());
        });
    }

    #[test]
    fn stream_number_given_twice_keeps_the_first() {
        runtime().block_on(async {
            let streams = Streams::default();
            let (first, second) = (pair(), pair());
            streams.keep(5, first.1);
            streams.keep(5, second.1);
            let mut far = streams.take(5).unwrap();
            drop(first.0);
            let mut byte = [0];
            assert_eq!(far.read(&mut byte).await.unwrap(), 0);
            far = match streams.take(5) {
                None => far,
                Some(_) => panic!("one stream per number"),
            };
            drop(far);
        });
    }

    #[test]
    fn stream_that_ends_in_its_number_is_dropped() {
        runtime().block_on(async {
            let streams = Streams::default();
            let (mut near, far) = pair();
            near.write_all(&[1, 2, 3]).unwrap();
            drop(near);
            streams.enrol(far).await;
            assert!(streams.waiting.lock().unwrap().is_empty());
        });
    }
}
