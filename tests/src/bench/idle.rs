//! Idle time of the host, told apart from work.
//!
//! An idle host with the instruction clock jumps to its next timer, and the jump looks like work.
//! So a thread of the lowest class runs whenever nothing else would: the host is never idle, the
//! clock never jumps, and what that thread has run is what there was to wait for. It is `nice`, so
//! that the host's kernel counts it apart from everything else.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// Steps between two looks at what has run: some 10 microseconds.
const STEPS: u32 = 3000;

/// A thread that runs while nothing else does; it ends when this is dropped.
pub struct Idle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    nanoseconds: AtomicU64,
    end: AtomicBool,
}

impl Idle {
    /// Begins to fill the idle time.
    pub fn fill() -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (ready, started) = std::sync::mpsc::channel();
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let outcome = lowest_class();
            let good = outcome.is_ok();
            // The starter waits for this.
            let _ = ready.send(outcome);
            while good && !own.end.load(Ordering::Relaxed) {
                let ran = clock_gettime(ClockId::ThreadCPUTime);
                let ran = ran.tv_sec.unsigned_abs() * 1_000_000_000 + ran.tv_nsec.unsigned_abs();
                own.nanoseconds.store(ran, Ordering::Relaxed);
                // Not in system calls, which the kernel counts as its own time.
                for step in 0..STEPS {
                    std::hint::black_box(step);
                }
            }
        });
        let idle = Self { shared, thread: Some(thread) };
        let outcome = started.recv().context("the thread that fills idle time has died")?;
        outcome.context("cannot lower a thread to the idle class")?;
        Ok(idle)
    }

    /// Nanoseconds that it has run.
    pub fn nanoseconds(&self) -> u64 {
        self.shared.nanoseconds.load(Ordering::Relaxed)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot panic; if it did, its message was printed.
            let _ = thread.join();
        }
    }
}

/// The calling thread runs when no other wants to (sched(7), `SCHED_IDLE`).
fn lowest_class() -> io::Result<()> {
    rustix::process::nice(19)?;
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread, and `parameters` is live.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
