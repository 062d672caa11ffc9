//! Running one hook after the other: state on standard input, bounded output, timeout, and the
//! end of its whole process group when it takes too long.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Serialize;

use super::output::Output;
use super::{Container, Hook, HookError, Hooks, Moment};
use crate::signal::{Signals, ends_a_program};

/// Runs hooks. Opened before its process enters any namespace of a container.
#[derive(Debug)]
pub struct Runner {
    /// The runtime's network namespace.
    network: OwnedFd,
}

/// The state of a container as a hook reads it (`runtime.md`, "State").
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

/// How a hook's run ended.
enum End {
    Exited(ExitStatus),
    Timeout,
    Interrupted(u32),
}

impl Runner {
    /// A runner whose hooks run in the namespaces of the calling thread.
    pub fn open() -> Result<Self, HookError> {
        let network = File::open("/proc/thread-self/ns/net").map_err(HookError::Namespace)?;
        Ok(Self { network: network.into() })
    }

    /// The runtime's network namespace.
    pub fn network(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }

    /// Runs every hook of `create` in its order. A signal that would end a program ends the hook
    /// and is the error.
    pub fn run_create(
        &self,
        hooks: &Hooks,
        container: &Container<'_>,
        signals: &mut Signals,
    ) -> Result<(), HookError> {
        let lists = [
            (Moment::Prestart, &hooks.prestart),
            (Moment::CreateRuntime, &hooks.create_runtime),
            (Moment::CreateContainer, &hooks.create_container),
        ];
        for (moment, list) in lists {
            for (at, hook) in list.iter().enumerate() {
                self.run(moment, at, hook, container, Some(signals))?;
            }
        }
        Ok(())
    }

    /// Runs the hooks behind `start`. Signals are the workload's by then.
    pub fn run_poststart(&self, hooks: &Hooks, container: &Container<'_>) -> Result<(), HookError> {
        let mut list = hooks.poststart.iter().enumerate();
        list.try_for_each(|(at, hook)| self.run(Moment::Poststart, at, hook, container, None))
    }

    /// Runs hook `at` of the list for `moment`.
    pub(super) fn run(
        &self,
        moment: Moment,
        at: usize,
        hook: &Hook,
        container: &Container<'_>,
        signals: Option<&mut Signals>,
    ) -> Result<(), HookError> {
        let path = || hook.path.clone();
        let state =
            state(moment, container).map_err(|source| HookError::State { moment, at, source })?;
        let started = self.start(moment, hook, container, state);
        let (mut child, mut output) =
            started.map_err(|source| HookError::Start { moment, at, path: path(), source })?;
        let end = watch(&mut child, &mut output, hook, signals);
        if !matches!(end, Ok(End::Exited(_))) {
            kill_group(&mut child);
        }
        let end = end.map_err(|source| HookError::Wait { moment, at, source })?;
        match end {
            End::Exited(status) if status.success() => Ok(()),
            End::Exited(status) => {
                let (how, said) = (describe(status), output.finish());
                Err(HookError::Failed { moment, at, path: path(), how, said })
            }
            End::Timeout => {
                let (limit, said) = (hook.timeout.unwrap_or_default(), output.finish());
                Err(HookError::Timeout { moment, at, path: path(), limit, said })
            }
            End::Interrupted(signal) => Err(HookError::Interrupted { moment, at, signal }),
        }
    }

    /// Starts `hook`, leader of a process group, with nothing of the caller's but what it is
    /// given; it dies with the calling thread.
    fn start(
        &self,
        moment: Moment,
        hook: &Hook,
        container: &Container<'_>,
        state: File,
    ) -> io::Result<(Child, Output)> {
        let (output, writer) = Output::new()?;
        let mut command = Command::new(&hook.path);
        command
            .arg0(hook.args.first().map_or(hook.path.as_os_str(), OsStr::new))
            .args(hook.args.iter().skip(1))
            .env_clear()
            .envs(hook.env.iter().filter_map(|variable| variable.split_once('=')))
            .current_dir(directory(moment, container))
            .stdin(state)
            .stdout(writer.try_clone()?)
            .stderr(Stdio::from(writer))
            .process_group(0);
        let network = match moment {
            Moment::CreateContainer => None,
            _ => Some(self.network.try_clone()?),
        };
        // SAFETY: the closure makes system calls only: no allocation, no lock, no panic.
        unsafe { command.pre_exec(move || enter(network.as_ref())) };
        Ok((command.spawn()?, output))
    }
}

/// In the hook's process, before its program.
fn enter(network: Option<&OwnedFd>) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    crate::signal::reset()?;
    match network {
        Some(fd) => Ok(move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))?),
        None => Ok(()),
    }
}

/// Where a hook starts, as with runc: in the bundle; createContainer in the root file system.
/// A bundle may be gone when its container is deleted.
fn directory<'a>(moment: Moment, container: &Container<'a>) -> &'a Path {
    let wanted = match moment {
        Moment::CreateContainer => container.rootfs,
        _ => container.bundle,
    };
    if wanted.is_dir() { wanted } else { Path::new("/") }
}

/// The state in a file of its own: a hook that does not read it blocks nobody.
fn state(moment: Moment, container: &Container<'_>) -> io::Result<File> {
    let Container { oci_version, id, pid, bundle, annotations, .. } = container;
    let status = moment.status();
    let state = State { oci_version, id, status, pid: *pid, bundle, annotations };
    let mut file = File::from(rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(&state)?)?;
    file.rewind()?;
    Ok(file)
}

/// What `startContainer` hooks read, but for the pid, which the guest knows.
pub fn state_for_guest(container: &Container<'_>) -> serde_json::Result<Vec<u8>> {
    let Container { oci_version, id, bundle, annotations, .. } = container;
    serde_json::to_vec(&State {
        oci_version,
        id,
        status: "created",
        pid: None,
        bundle,
        annotations,
    })
}

/// Waits for the end of the hook. Others who hold its output open are not waited for.
fn watch(
    child: &mut Child,
    output: &mut Output,
    hook: &Hook,
    mut signals: Option<&mut Signals>,
) -> io::Result<End> {
    let deadline = hook.timeout.and_then(|limit| Instant::now().checked_add(limit));
    let pid = Pid::from_child(child);
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
        let signals_at = signals.as_ref().map(|signals| {
            fds.push(PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN));
            fds.len() - 1
        });
        fds.extend(output.as_fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec::try_from(left).unwrap_or_default());
        match poll(&mut fds, left.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result?,
        };
        let ready = |at: usize| !fds[at].revents().is_empty();
        let (ended, signalled) = (ready(0), signals_at.is_some_and(ready));
        if ended {
            return child.wait().map(End::Exited);
        }
        drop(fds);
        output.advance();
        if signalled
            && let Some(signal) = signals.as_mut().and_then(|signals| signals.take())
            && ends_a_program(signal)
        {
            return Ok(End::Interrupted(signal));
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(End::Timeout);
        }
    }
}

/// Kills the hook and what it has started in its group, and reaps it.
fn kill_group(child: &mut Child) {
    // It is not reaped yet, so the group is its own; one that has just gone needs no killing.
    let _ = rustix::process::kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        _ => "ended".to_owned(),
    }
}
