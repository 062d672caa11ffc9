//! `hooks.startContainer` (`config.md`, "StartContainer Hooks"): programs of the container's root
//! that run in the container between `start` and its own program.
//!
//! They are confined as the program is: namespaces, cgroup, user, capabilities and seccomp filter
//! are the container's. What they are and what they print belongs to the container; what they
//! print goes to a file in memory that is charged to it.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use libcontainer::oci_spec::runtime::{Hook, State};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use thiserror::Error;

/// Bytes of a failed hook's output that its error shows.
const SAID_MAX: u64 = 1024;

/// A hook that failed. It names the hook by its field.
#[derive(Debug, Error)]
#[error("hooks.startContainer[{at}] ({path}) {failure}", path = .path.display())]
pub struct HookError {
    /// Which of the list.
    at: usize,
    /// Its program.
    path: PathBuf,
    /// How.
    #[source]
    failure: HookFailure,
}

/// How a hook failed.
#[derive(Debug, Error)]
pub enum HookFailure {
    /// The state could not be given to it.
    #[error("does not get the container's state: {0}")]
    State(io::Error),
    /// The program does not start.
    #[error("does not start: {0}")]
    Start(io::Error),
    /// Its end could not be awaited.
    #[error("cannot be waited for: {0}")]
    Wait(io::Error),
    /// It ended in another way than with code 0.
    #[error("{end}{said}")]
    Ended {
        /// In which.
        end: End,
        /// The end of what it printed.
        said: Said,
    },
    /// It was killed.
    #[error("ran past its timeout of {seconds} s{said}")]
    Timeout {
        /// How long it might have taken.
        seconds: u64,
        /// The end of what it printed.
        said: Said,
    },
}

/// Code or signal of a process.
#[derive(Debug)]
pub struct End(ExitStatus);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exited with code {code}"),
            (_, Some(signal)) => write!(f, "was killed by signal {signal}"),
            _ => f.write_str("ended"),
        }
    }
}

/// What a hook printed, as the end of a message.
#[derive(Debug)]
pub struct Said(String);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_str() {
            "" => Ok(()),
            text => write!(f, ": {text}"),
        }
    }
}

/// The hooks of a container and what they read.
#[derive(Clone, Debug)]
pub struct StartHooks {
    /// In the order of running.
    pub list: Vec<Hook>,
    /// The container's state; the pid in it is filled in here.
    pub state: State,
}

impl StartHooks {
    /// Runs them one after the other until one fails. `environment` is for those that have none of
    /// their own; `confine` runs in each one's process before its program.
    pub fn run(
        &self,
        environment: &[OsString],
        confine: impl Fn() -> io::Result<()> + Clone + Send + Sync + 'static,
    ) -> Result<(), HookError> {
        self.list.iter().enumerate().try_for_each(|(at, hook)| {
            self.one(hook, environment, confine.clone()).map_err(|failure| {
                let path = hook.path().clone();
                HookError { at, path, failure }
            })
        })
    }

    fn one(
        &self,
        hook: &Hook,
        environment: &[OsString],
        confine: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<(), HookFailure> {
        let state = self.file().map_err(HookFailure::State)?;
        let output = memory("output").map_err(HookFailure::Start)?;
        let args = hook.args().as_deref().unwrap_or_default();
        let own = hook.env().as_ref().map(|own| own.iter().map(OsString::from).collect());
        let environment: Vec<OsString> = own.unwrap_or_else(|| environment.to_vec());
        let mut command = Command::new(hook.path());
        command
            .arg0(args.first().map_or(hook.path().as_os_str(), OsStr::new))
            .args(args.iter().skip(1))
            .env_clear()
            .envs(environment.iter().filter_map(|variable| split(variable)))
            .stdin(state)
            .stdout(output.try_clone().map_err(HookFailure::Start)?)
            .stderr(output.try_clone().map_err(HookFailure::Start)?)
            .process_group(0);
        // SAFETY: this process has one thread, so that its child may do whatever it may.
        unsafe { command.pre_exec(confine) };
        let mut child = command.spawn().map_err(HookFailure::Start)?;
        let seconds = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
        match wait(&mut child, seconds.map(Duration::from_secs)).map_err(HookFailure::Wait)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(HookFailure::Ended { end: End(status), said: said(output) }),
            None => {
                let seconds = seconds.unwrap_or_default();
                Err(HookFailure::Timeout { seconds, said: said(output) })
            }
        }
    }

    /// The state in a file of its own: a hook that does not read it blocks nobody. The pid is the
    /// one in the container's namespace, as runc has it.
    fn file(&self) -> io::Result<File> {
        let mut state = self.state.clone();
        state.set_pid(i32::try_from(std::process::id()).ok());
        let mut file = memory("state")?;
        file.write_all(&serde_json::to_vec(&state)?)?;
        file.rewind()?;
        Ok(file)
    }
}

/// Name and value of a variable.
fn split(variable: &OsStr) -> Option<(&OsStr, &OsStr)> {
    let bytes = variable.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    Some((OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..])))
}

fn memory(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

/// The end of the hook itself; others of its group are not waited for. None if it took too long
/// and was killed with its group.
fn wait(child: &mut Child, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    let pid = Pid::from_child(child);
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec::try_from(left).unwrap_or_default());
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], left.as_ref()) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(0) => {
                // It is not reaped yet, so the group is its own.
                let _ = kill_process_group(pid, Signal::KILL);
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return child.wait().map(Some),
        }
    }
}

/// The last of what was printed, on one line.
fn said(mut output: File) -> Said {
    let mut bytes = Vec::new();
    // Of an error within an error nobody could make anything.
    let read = output.metadata().and_then(|data| {
        output.seek(SeekFrom::Start(data.len().saturating_sub(SAID_MAX)))?;
        output.take(SAID_MAX).read_to_end(&mut bytes)
    });
    let text = read.map_or(String::new(), |_| String::from_utf8_lossy(&bytes).into_owned());
    Said(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hooks(list: serde_json::Value) -> StartHooks {
        let state = json!({"ociVersion": "1.2.0", "id": "c", "status": "created",
            "bundle": "/b", "annotations": {"a": "b"}});
        StartHooks {
            list: serde_json::from_value(list).unwrap(),
            state: serde_json::from_value(state).unwrap(),
        }
    }

    fn run(list: serde_json::Value) -> Result<(), String> {
        let environment = [OsString::from("OWN=1")];
        hooks(list).run(&environment, || Ok(())).map_err(|error| error.to_string())
    }

    fn shell(script: &str) -> serde_json::Value {
        json!({"path": "/bin/sh", "args": ["name", "-c", script]})
    }

    #[test]
    fn hook_reads_the_state_with_the_pid_of_its_parent() {
        let check = format!(
            "grep -q '\"pid\":{}' && test \"$0\" = name && test \"$OWN\" = 1",
            std::process::id()
        );
        assert_eq!(run(json!([shell(&check)])), Ok(()));
    }

    #[test]
    fn hook_with_an_environment_has_no_other() {
        let mut hook = shell("test \"$OWN$MINE\" = 2");
        hook["env"] = json!(["MINE=2"]);
        assert_eq!(run(json!([hook])), Ok(()));
    }

    #[test]
    fn hook_that_fails_ends_the_list_and_is_quoted() {
        let list =
            json!([shell("exit 0"), shell("echo one; echo two >&2; exit 3"), shell("exit 4")]);
        let expected = "hooks.startContainer[1] (/bin/sh) exited with code 3: one two";
        assert_eq!(run(list), Err(expected.to_owned()));
    }

    #[test]
    fn hook_that_prints_much_is_quoted_from_its_end() {
        let error = run(json!([shell("yes no | head -c 100000; echo end; exit 1")])).unwrap_err();
        assert!(error.ends_with("end") && error.len() < 1200, "{error}");
    }

    #[test]
    fn hook_past_its_timeout_is_killed_with_its_children() {
        let mut hook = shell("sleep 1000 & wait");
        hook["timeout"] = json!(1);
        let expected = "hooks.startContainer[0] (/bin/sh) ran past its timeout of 1 s";
        assert_eq!(run(json!([hook])), Err(expected.to_owned()));
    }

    #[test]
    fn hook_that_does_not_exist_is_named() {
        let error = run(json!([{"path": "/no/such"}])).unwrap_err();
        assert!(
            error.starts_with("hooks.startContainer[0] (/no/such) does not start: "),
            "{error}"
        );
    }

    #[test]
    fn hook_is_confined_before_its_program() {
        let confine = || Err(io::Error::from_raw_os_error(libc::EXDEV));
        let error = hooks(json!([shell("exit 0")])).run(&[], confine).unwrap_err();
        assert!(matches!(error.failure, HookFailure::Start(cause)
            if cause.raw_os_error() == Some(libc::EXDEV)));
    }
}
