//! Run, pause and stop: one state for all vCPU threads.
//!
//! A command is written under the lock before the kick; a thread that was kicked forgets the kick
//! before it reads the command. So no command is missed, and nobody waits for time to pass.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What vCPU threads shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Run,
    Pause,
    Stop,
}

/// What a thread is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Run,
    /// Run after a pause.
    Resume,
    Stop,
}

#[derive(Debug)]
struct State {
    command: Command,
    /// Threads that have neither parked nor ended.
    active: usize,
}

/// Shared by the owner of the vCPUs and their threads.
#[derive(Debug)]
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

impl Control {
    /// For `threads` threads, all active, that shall pause first.
    pub(super) fn new(threads: usize) -> Self {
        let state = State { command: Command::Pause, active: threads };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Sets the command; a stop is final. The caller kicks the threads afterwards.
    pub(super) fn set(&self, command: Command) {
        let mut state = self.lock();
        if state.command != Command::Stop {
            state.command = command;
            self.changed.notify_all();
        }
    }

    /// Waits until every thread has parked or ended.
    pub(super) fn wait_until_quiet(&self) {
        let mut state = self.lock();
        while state.active > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Called by a thread: returns what to do, and parks for as long as it shall pause.
    pub(super) fn wait_turn(&self) -> Turn {
        let mut state = self.lock();
        let paused = state.command == Command::Pause;
        if paused {
            state.active -= 1;
            self.changed.notify_all();
            while state.command == Command::Pause {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.active += 1;
        }
        match state.command {
            Command::Stop => Turn::Stop,
            _ if paused => Turn::Resume,
            _ => Turn::Run,
        }
    }

    /// Called once by a thread that ends.
    pub(super) fn ended(&self) {
        self.lock().active -= 1;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
