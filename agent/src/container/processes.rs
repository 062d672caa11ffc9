//! Calls about the processes of a container.

use std::{
    fs,
    sync::{Arc, atomic::Ordering},
};

use bulkhead_protocol::{agent::server as api, id::ContainerId};
use rustix::{io::Errno, process::Signal};

use super::{
    Container, ContainerError, Containers, ProcessHead, Result, parse_head, process::Process,
    state::State, write,
};
use crate::{helper::Added, proc, reaper::Exit};

/// Added processes of one container whose end nobody has asked for.
pub const EXECS_MAX: usize = 4096;

/// An added process that its caller waits for; killed, if it lives, and forgotten when dropped.
struct Waited {
    container: Arc<Container>,
    exec_id: ContainerId,
    process: Arc<Process>,
}

impl Drop for Waited {
    fn drop(&mut self) {
        // One that has ended, which is the rule, cannot be signalled, and need not be.
        let _ = self.process.signal(Signal::KILL);
        self.container.execs().remove(&self.exec_id);
    }
}

impl Containers {
    /// Waits for a process; the end of an added process is told once. A caller that hangs up
    /// before (this future is dropped) takes an added process with it: its waiter is the process
    /// of the host that stands for it, and was killed.
    pub async fn wait(&self, request: &api::ProcessRequest) -> Result<Exit> {
        let container = self.find(&request.container_id)?;
        let process = container.process(&request.exec_id)?;
        let exec_id = ContainerId::try_from(request.exec_id.clone()).ok();
        let _waited =
            exec_id.map(|exec_id| Waited { container, exec_id, process: Arc::clone(&process) });
        process.wait().await.ok_or(ContainerError::ShuttingDown)
    }

    /// Sends a signal to one process or to all.
    pub fn signal(&self, request: &api::SignalRequest) -> Result<()> {
        let container = self.find(&request.container_id)?;
        let signal = signal_of(request.signal)?;
        if request.all {
            return Ok(container.cgroup.signal(signal)?);
        }
        let process = container.process(&request.exec_id)?;
        process.signal(signal).map_err(|errno| match errno {
            Errno::SRCH => ContainerError::Ended,
            errno => ContainerError::Kill(errno),
        })
    }

    /// Adds a process to a running container; its PID.
    pub async fn exec(&self, request: api::ExecRequest) -> Result<u32> {
        let container = self.find(&request.container_id)?;
        let exec_id = ContainerId::try_from(request.exec_id)?;
        let head: ProcessHead = parse_head(&request.process_json)?;
        let state = container.state.read().await;
        match container.current(*state) {
            State::Running => {}
            state => return Err(container.refuse("exec in", state)),
        }
        container.reserve(&exec_id)?;
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let file = self.bundle(&container.id).join(format!("process-{serial}"));
        let result = match write(&file, &request.process_json) {
            Ok(()) => {
                let added = Added {
                    process_file: file.clone(),
                    init_pid: container.init.pid(),
                    cgroup: Some(request.cgroup).filter(|cgroup| !cgroup.is_empty()),
                };
                self.launch(&container.id, Some(added), head, &request.stdio).await
            }
            Err(error) => Err(error),
        };
        // Read by the helper, which has ended.
        let _ = fs::remove_file(&file);
        match result {
            Ok(process) => {
                let pid = process.pid();
                container.execs().insert(exec_id, Some(Arc::new(process)));
                Ok(pid)
            }
            Err(error) => {
                container.execs().remove(&exec_id);
                Err(error)
            }
        }
    }

    /// Sets the size of a process's terminal.
    pub fn resize(&self, request: &api::ResizeTtyRequest) -> Result<()> {
        let container = self.find(&request.container_id)?;
        let process = container.process(&request.exec_id)?;
        let size = |n: u32| u16::try_from(n).map_err(|_| ContainerError::Size(n));
        process
            .resize(size(request.rows)?, size(request.columns)?)
            .ok_or(ContainerError::NoTerminal)?
            .map_err(ContainerError::Resize)
    }

    /// Details of all processes of a container.
    pub fn processes(&self, id: &str) -> Result<Vec<api::ProcessInfo>> {
        let container = self.find(id)?;
        let pids = container.cgroup.processes()?;
        Ok(proc::describe(&pids))
    }
}

impl Container {
    /// Init for an empty id, else an added process.
    fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let exec_id = ContainerId::try_from(exec_id.to_owned())?;
        match self.execs().get(&exec_id) {
            Some(Some(process)) => Ok(Arc::clone(process)),
            _ => Err(ContainerError::NoProcess(self.id.clone(), exec_id)),
        }
    }

    fn reserve(&self, exec_id: &ContainerId) -> Result<()> {
        let mut execs = self.execs();
        if execs.contains_key(exec_id) {
            let (id, exec_id) = (self.id.clone(), exec_id.clone());
            return Err(ContainerError::ProcessExists(id, exec_id));
        }
        if execs.len() >= EXECS_MAX {
            return Err(ContainerError::ManyProcesses(self.id.clone()));
        }
        execs.insert(exec_id.clone(), None);
        Ok(())
    }
}

fn signal_of(number: u32) -> Result<Signal> {
    match i32::try_from(number) {
        // SAFETY: any number from 1 to 64 (SIGRTMAX) is a signal that kill(2) takes; it is only
        // sent to other programs, so those that libc keeps for itself do no harm here.
        Ok(raw @ 1..=64) => Ok(unsafe { Signal::from_raw_unchecked(raw) }),
        _ => Err(ContainerError::Signal(number)),
    }
}
