//! The first thread of a supervisor, which stands for the container on the host, and the second,
//! which works.
//!
//! `/proc/PID/ns` and `/proc/PID/root` of a process are those of its first thread (proc(5)), and
//! clients look there for what is the container's: its network, its file system. The supervisor
//! itself needs the host's files for as long as it lives. Namespaces belong to threads, so the
//! first one enters the container's and only waits; the process has one id, one set of signals,
//! and one end.

use std::fs::File;
use std::io;
use std::panic::resume_unwind;
use std::sync::mpsc;
use std::thread;

use crate::failure::Failure;
use crate::network;
use crate::sandbox::View;
use crate::signal::Signals;

const PHASE: &str = "preparing the supervisor";

/// What enters and makes namespaces (namespaces(7)).
const FIX: &str = "run as root, with CAP_SYS_ADMIN";

/// Bytes of the second thread's stack. One of 2 MiB, as threads have by default, is a huge page of
/// memory from its first byte on where the kernel gives those to whoever has room for them.
const STACK_BYTES: usize = 1 << 20;

type Task = Box<dyn FnOnce() + Send>;

/// The first thread, as the second asks it to do things.
#[derive(Debug)]
pub struct Leader {
    tasks: mpsc::Sender<Task>,
}

/// Does `work` in a second thread, and what that asks of this one, the first, until the work is
/// done. This thread may be in the namespaces of a container then, so that its paths lead into
/// that: nothing but the end of the process should follow.
pub fn lead<T: Send>(
    work: impl FnOnce(&Leader) -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    let (tasks, asked) = mpsc::channel::<Task>();
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("supervisor".to_owned()).stack_size(STACK_BYTES);
        let worker = worker.spawn_scoped(scope, move || work(&Leader { tasks }));
        let worker = worker.map_err(|e| Failure::new(PHASE, e.to_string(), ""))?;
        // Ends with the leader's handle, which goes with the work.
        asked.iter().for_each(|task| task());
        worker.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

impl Leader {
    /// Blocks the signals that are forwarded in both threads: one that is open in either would
    /// end the process.
    pub(super) fn block_signals(&self) -> Result<Signals, Failure> {
        let blocked = self.ask(|| Signals::block().map(drop)).and_then(|()| Signals::block());
        blocked.map_err(|e| Failure::new(PHASE, e.to_string(), ""))
    }

    /// Lets the first thread follow the calling one into its network namespace, and lets it enter
    /// `view`.
    pub(super) fn enter(&self, view: View) -> Result<(), Failure> {
        let failed = |what: &str, e: io::Error| Failure::new(PHASE, format!("{what}: {e}"), FIX);
        let network = File::open("/proc/thread-self/ns/net")
            .map_err(|e| failed("opening its network namespace", e))?;
        self.ask(move || network::follow(&network))
            .map_err(|e| failed("entering its network namespace", e))?;
        self.ask(move || view.enter())
            .map_err(|e| failed("showing the container's file system to the host", e))
    }

    /// What `task` gives in the first thread.
    fn ask<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (answer, answered) = mpsc::channel();
        let task = Box::new(move || {
            // The asking thread waits for it.
            let _ = answer.send(task());
        });
        let gone = || io::Error::other("the first thread has ended");
        self.tasks.send(task).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn namespace(kind: &str) -> PathBuf {
        std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap()
    }

    #[test]
    fn work_gets_what_the_first_thread_answers_and_gives_its_own_result() {
        let first = std::thread::current().id();
        let result = lead(|leader| {
            let here = std::thread::current().id();
            let asked = leader.ask(|| Ok(std::thread::current().id())).unwrap();
            assert_eq!((here == first, asked), (false, first));
            let refused: io::Result<()> = leader.ask(|| Err(io::Error::from_raw_os_error(2)));
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(2));
            Err::<u8, _>(Failure::new("p", "its own", ""))
        });
        assert_eq!(result.unwrap_err().cause, "its own");
    }

    #[test]
    fn first_thread_enters_the_namespaces_and_the_second_stays_with_the_hosts_files() {
        if !crate::privilege::is_root() {
            return;
        }
        // A thread of its own: it does not come back.
        let test = || {
            let before = namespace("mnt");
            lead(|leader| {
                // SAFETY: only this thread's network namespace changes.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                    .unwrap();
                leader.enter(View::default())?;
                assert_eq!(namespace("mnt"), before);
                let own = namespace("net");
                // Where the first one is there is no /proc; a descriptor of this thread shows it.
                let tid = leader.ask(|| Ok(rustix::thread::gettid())).unwrap();
                let of_first = |kind: &str| {
                    let link = format!("/proc/self/task/{}/ns/{kind}", tid.as_raw_nonzero());
                    std::fs::read_link(link).unwrap()
                };
                assert_eq!(of_first("net"), own);
                assert_ne!(of_first("mnt"), before);
                Ok(0)
            })
        };
        assert_eq!(std::thread::scope(|scope| scope.spawn(test).join().unwrap()).unwrap(), 0);
    }
}
