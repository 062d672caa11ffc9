//! Reaps every child of PID 1 and tells who waits for it.
//!
//! The kernel recycles a PID only after its process was reaped, and only this module reaps: while
//! [`Child::exit`] is empty a PID names the process it was given for.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

impl Exit {
    fn of(status: WaitStatus) -> Option<Self> {
        let small = |number: i32| u8::try_from(number & 0xff).ok();
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => small(code).map(Self::Code),
            (_, Some(signal)) => small(signal).map(Self::Signal),
            _ => None,
        }
    }
}

/// A child that somebody waits for.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    exit: watch::Sender<Option<Exit>>,
}

impl Child {
    /// PID in the guest.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    /// Fires when the process has ended.
    pub fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Sends a signal; ESRCH when the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        match self.ended() {
            None => kill_process(self.pid, signal),
            Some(_) => Err(Errno::SRCH),
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    waited: HashMap<Pid, Arc<Child>>,
    /// Ends of processes that a helper may have made and not yet reported, and when they came.
    early: HashMap<Pid, (u64, Exit)>,
    /// When the helpers at work were announced.
    launches: BTreeSet<u64>,
    /// Counts launches and early ends.
    clock: u64,
}

impl Table {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// The one place that reaps.
#[derive(Clone, Debug, Default)]
pub struct Reaper(Arc<Mutex<Table>>);

/// While one lives, the ends of unknown children are remembered.
#[derive(Debug)]
pub struct Launch {
    reaper: Reaper,
    announced: u64,
}

impl Reaper {
    /// Starts to reap on SIGCHLD.
    pub fn start() -> io::Result<Self> {
        let reaper = Self::default();
        let mut children = signal(SignalKind::child())?;
        let handle = reaper.clone();
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                handle.reap();
            }
        });
        Ok(reaper)
    }

    /// Announces a helper.
    pub fn launch(&self) -> Launch {
        let mut table = self.table();
        let announced = table.tick();
        table.launches.insert(announced);
        Launch { reaper: self.clone(), announced }
    }

    /// Waits for a child that this process has just made.
    pub fn watch(&self, pid: u32) -> Option<Arc<Child>> {
        self.insert(pid, |_, _| None)
    }

    fn insert(
        &self,
        pid: u32,
        ended: impl FnOnce(&mut Table, Pid) -> Option<Exit>,
    ) -> Option<Arc<Child>> {
        let pid = Pid::from_raw(pid.try_into().ok()?)?;
        let mut table = self.table();
        let ended = ended(&mut table, pid);
        let child = Arc::new(Child { pid, exit: watch::Sender::new(ended) });
        if ended.is_none() {
            table.waited.insert(pid, Arc::clone(&child));
        }
        Some(child)
    }

    fn reap(&self) {
        // Until none is left (ECHILD) or none has ended; SIGCHLD tells about several at once.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(exit) = Exit::of(status) else {
                continue;
            };
            self.record(pid, exit);
        }
    }

    fn record(&self, pid: Pid, exit: Exit) {
        let mut table = self.table();
        match table.waited.remove(&pid) {
            Some(child) => drop(child.exit.send_replace(Some(exit))),
            None if table.launches.is_empty() => {}
            None => {
                let now = table.tick();
                table.early.insert(pid, (now, exit));
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Launch {
    /// Waits for a child that the helper has made; it may have ended already.
    pub fn watch(&self, pid: u32) -> Option<Arc<Child>> {
        self.reaper.insert(pid, |table, pid| {
            // What ended before the helper began was another process with this PID.
            let (when, exit) = table.early.remove(&pid)?;
            (when > self.announced).then_some(exit)
        })
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let mut table = self.reaper.table();
        table.launches.remove(&self.announced);
        let oldest = table.launches.first().copied();
        table.early.retain(|_, (when, _)| oldest.is_some_and(|oldest| *when > oldest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: u32 = 77;

    fn end(reaper: &Reaper, code: u8) {
        let pid = Pid::from_raw(PID.cast_signed()).unwrap();
        reaper.record(pid, Exit::Code(code));
    }

    #[test]
    fn child_that_ended_before_it_was_reported_is_known() {
        let reaper = Reaper::default();
        let launch = reaper.launch();
        end(&reaper, 3);
        assert_eq!(launch.watch(PID).unwrap().ended(), Some(Exit::Code(3)));
        // Told once: the PID may be another process's now.
        assert_eq!(launch.watch(PID).unwrap().ended(), None);
    }

    #[test]
    fn child_with_the_pid_of_an_older_one_has_not_ended() {
        let reaper = Reaper::default();
        let older = reaper.launch();
        end(&reaper, 3);
        let newer = reaper.launch();
        assert_eq!(newer.watch(PID).unwrap().ended(), None);
        drop(older);
    }

    #[test]
    fn child_nobody_may_have_made_is_forgotten() {
        let reaper = Reaper::default();
        end(&reaper, 3);
        let (first, second) = (reaper.launch(), reaper.launch());
        end(&reaper, 4);
        drop(first);
        assert_eq!(reaper.table().early.len(), 1);
        drop(second);
        assert!(reaper.table().early.is_empty());
    }

    #[test]
    fn child_that_is_watched_is_told_once_and_cannot_be_signalled_after() {
        let reaper = Reaper::default();
        let child = reaper.watch(PID).unwrap();
        assert_eq!(child.ended(), None);
        end(&reaper, 5);
        assert_eq!(child.ended(), Some(Exit::Code(5)));
        assert_eq!(child.signal(Signal::TERM), Err(Errno::SRCH));
    }
}
