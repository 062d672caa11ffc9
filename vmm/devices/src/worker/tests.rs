//! Worker threads: start, stop, failure, hooks.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use event_manager::{EventOps, Events};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::{Serve, ThreadHook, ThreadKind, Worker};

/// Counts kicks; a kick of `POISON` is an error.
struct Counter {
    kick: EventFd,
    total: u64,
    ended: u32,
    reports: Sender<Result<u64, io::ErrorKind>>,
}

const POISON: u64 = 1000;

impl Serve for Counter {
    fn begin(&mut self, ops: &mut EventOps) -> io::Result<()> {
        ops.add(Events::new(&self.kick, EventSet::IN)).map_err(io::Error::other)
    }

    fn serve(&mut self, _event: Events, _ops: &mut EventOps) -> io::Result<()> {
        let count = self.kick.read()?;
        if count >= POISON {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.total += count;
        self.reports.send(Ok(self.total)).map_err(io::Error::other)
    }

    fn end(&mut self) {
        self.ended += 1;
    }

    fn failed(&mut self, error: io::Error) {
        self.reports.send(Err(error.kind())).unwrap();
    }
}

fn open_hook() -> ThreadHook {
    Arc::new(|_| Ok(()))
}

fn counter() -> (Counter, EventFd, Receiver<Result<u64, io::ErrorKind>>) {
    let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (reports, seen) = channel();
    (Counter { kick: kick.try_clone().unwrap(), total: 0, ended: 0, reports }, kick, seen)
}

#[test]
fn worker_stopped_and_started_again_keeps_what_it_serves() {
    let mut worker = Worker::spawn(ThreadKind::Rng, &open_hook()).unwrap();
    let (serve, kick, seen) = counter();
    assert!(worker.stop().is_none());
    let mut serve = Some(serve);
    for round in 1..=3 {
        assert!(worker.start(serve.take().unwrap()).is_ok());
        assert!(worker.is_serving());
        kick.write(1).unwrap();
        assert_eq!(seen.recv().unwrap(), Ok(round));
        let back = worker.stop().unwrap();
        assert_eq!((back.total, u64::from(back.ended)), (round, round));
        assert!(!worker.is_serving());
        serve = Some(back);
    }
}

#[test]
fn worker_kicked_while_parked_serves_at_the_next_start() {
    let mut worker = Worker::spawn(ThreadKind::Rng, &open_hook()).unwrap();
    let (serve, kick, seen) = counter();
    kick.write(7).unwrap();
    assert!(worker.start(serve).is_ok());
    assert_eq!(seen.recv().unwrap(), Ok(7));
}

#[test]
fn worker_of_failed_device_reports_and_gives_it_back() {
    let mut worker = Worker::spawn(ThreadKind::Block, &open_hook()).unwrap();
    let (serve, kick, seen) = counter();
    assert!(worker.start(serve).is_ok());
    kick.write(POISON).unwrap();
    assert_eq!(seen.recv().unwrap(), Err(io::ErrorKind::InvalidData));
    // No event reaches a failed device, however often it is kicked.
    kick.write(1).unwrap();
    let serve = worker.stop().unwrap();
    assert_eq!((serve.total, serve.ended), (0, 1));
    // The thread is whole: the kick that waited is served after a new start.
    assert!(worker.start(serve).is_ok());
    assert_eq!(seen.recv().unwrap(), Ok(1));
}

#[test]
fn worker_started_twice_refuses_the_second() {
    let mut worker = Worker::spawn(ThreadKind::Fs, &open_hook()).unwrap();
    assert!(worker.start(counter().0).is_ok());
    assert!(worker.start(counter().0).is_err());
}

#[test]
fn hook_error_fails_spawn() {
    let hook: ThreadHook = Arc::new(|kind| {
        assert_eq!(kind, ThreadKind::Vsock);
        Err(io::ErrorKind::PermissionDenied.into())
    });
    let error = Worker::<Counter>::spawn(ThreadKind::Vsock, &hook).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn hook_runs_on_the_named_worker_thread() {
    let (tell, told) = channel();
    let hook: ThreadHook = Arc::new(move |kind| {
        let _ = tell.send((kind, std::thread::current().name().map(str::to_owned)));
        Ok(())
    });
    drop(Worker::<Counter>::spawn(ThreadKind::Block, &hook).unwrap());
    assert_eq!(told.recv().unwrap(), (ThreadKind::Block, Some("block".to_owned())));
}

#[test]
fn dropped_worker_ends_its_thread_and_drops_what_it_serves() {
    let mut worker = Worker::spawn(ThreadKind::Rng, &open_hook()).unwrap();
    let (serve, _kick, seen) = counter();
    assert!(worker.start(serve).is_ok());
    drop(worker);
    assert!(seen.recv().is_err());
}
