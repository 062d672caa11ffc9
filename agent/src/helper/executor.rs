//! The last steps of a process before it becomes the container's program, in libcontainer's
//! executor hook: working directory, program look-up, seccomp, capabilities, execve.
//!
//! Runs in the container's namespaces as the container's user, with every capability until
//! [`Executor::exec`] drops them. What it meets there (paths, files) belongs to the container.

use std::{
    cell::RefCell,
    collections::HashMap,
    convert::Infallible,
    ffi::{CString, NulError, OsString},
    fs::DirBuilder,
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use libcontainer::{
    capabilities::{drop_privileges, reset_effective},
    oci_spec::runtime::Spec,
    seccomp::{SeccompError, initialize_seccomp},
    syscall::{SyscallError, syscall::create_syscall},
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};
use rustix::{
    fs::{FileType, Gid, Uid, fchown, fstat},
    io::Errno,
    process::{chdir, getcwd},
    stdio::{stderr, stdin, stdout},
    termios::{Winsize, tcsetwinsize},
    thread::set_no_new_privs,
};
use thiserror::Error;

use super::{
    adapt::Task,
    hooks::HookError,
    identity::IdentityError,
    program::{self, ProgramError, words},
    report::{FailureKind, Reporter},
};
use crate::network;

/// A step that failed.
#[derive(Debug, Error)]
enum StepError {
    #[error("chdir to cwd ({cwd:?}) set in config.json failed: {}", words(*.errno))]
    Cwd { cwd: PathBuf, errno: Errno },
    #[error("cwd {0:?} is outside of the container")]
    CwdOutside(PathBuf),
    #[error("set the size of the terminal: {}", words(*.0))]
    ConsoleSize(Errno),
    #[error("bring up the loopback interface: {0}")]
    Loopback(#[source] io::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("set no_new_privs: {}", words(*.0))]
    NoNewPrivileges(Errno),
    #[error("install the seccomp filter: {0}")]
    Seccomp(#[source] SeccompError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("drop capabilities: {0}")]
    Capabilities(#[source] SyscallError),
    #[error("argument has a NUL byte")]
    Nul(#[from] NulError),
    #[error("exec {program}: {}", words(*.errno))]
    Exec { program: String, errno: Errno },
}

impl StepError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Program(error) => error.kind(),
            Self::Exec { errno, .. } if *errno == Errno::NOENT => FailureKind::ProgramMissing,
            Self::Exec { errno: Errno::ACCESS | Errno::PERM, .. } => FailureKind::ProgramDenied,
            Self::Cwd { .. } | Self::CwdOutside(_) => FailureKind::InvalidSpec,
            _ => FailureKind::Step,
        }
    }
}

/// Executor of one process.
#[derive(Clone)]
pub struct ProcessExecutor {
    task: Arc<Task>,
    reporter: Arc<Reporter>,
    /// Found by `validate`, in this same process.
    program: RefCell<Option<PathBuf>>,
}

impl ProcessExecutor {
    /// An executor that reports to the agent.
    pub fn new(task: Task, reporter: Arc<Reporter>) -> Self {
        Self { task: Arc::new(task), reporter, program: RefCell::new(None) }
    }

    fn prepare(&self) -> Result<PathBuf, StepError> {
        if let Some(identity) = &self.task.identity {
            identity.take()?;
            // Effective capabilities went with the user id; the permitted ones stayed.
            reset_effective(&*create_syscall()).map_err(StepError::Capabilities)?;
        }
        if self.task.is_init {
            network::loopback_up().map_err(StepError::Loopback)?;
        }
        if self.task.terminal {
            self.terminal()?;
        }
        enter_cwd(&self.task)?;
        let path = program::variable(&self.task.environment, "PATH");
        Ok(program::find(&self.task.args[0], path)?)
    }

    /// Size and owner of the terminal, as runc: the user must be able to open it again.
    fn terminal(&self) -> Result<(), StepError> {
        if let Some((rows, columns)) = self.task.console_size {
            let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            tcsetwinsize(stdin(), size).map_err(StepError::ConsoleSize)?;
        }
        own_stdio(self.task.uid, None);
        Ok(())
    }

    fn run(&self) -> Result<Infallible, StepError> {
        let task = &*self.task;
        let program = match self.program.take() {
            Some(program) => program,
            None => self.prepare()?,
        };
        let name = program.display().to_string();
        let path = CString::new(program.into_os_string().into_vec())?;
        let args = strings(task.args.iter().map(|arg| arg.as_bytes().to_vec()))?;
        let variables = environment(task);

        if let Some(hooks) = &task.hooks {
            let confined = Arc::clone(&self.task);
            hooks.run(&variables, move || confine(&confined).map_err(io::Error::other))?;
        }
        let environment = strings(variables.into_iter().map(OsString::into_vec))?;
        confine(task)?;
        // Rust programs ignore it, and what is ignored stays so in the program that is run.
        // SAFETY: no handler is installed, the default action is restored.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let errno = execve(&path, &args, &environment);
        let program = name;
        Err(StepError::Exec { program, errno })
    }
}

impl Executor for ProcessExecutor {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        let program = self.prepare().map_err(|error| {
            self.reporter.fail(error.kind(), &error.to_string());
            ExecutorValidationError::ArgValidationError(error.to_string())
        })?;
        self.program.replace(Some(program));
        Ok(())
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // execve gets the environment; this process needs none.
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let Err(error) = self.run();
        self.reporter.fail(error.kind(), &error.to_string());
        if self.task.is_init {
            // `create` was answered long ago: the last place to say it is the container's output.
            let _ = rustix::io::write(stderr(), format!("{error}\n").as_bytes());
        }
        Err(ExecutorError::Other(error.to_string()))
    }
}

fn strings(texts: impl Iterator<Item = Vec<u8>>) -> Result<Vec<CString>, NulError> {
    texts.map(CString::new).collect()
}

/// `process.env` with the last value of each variable, and HOME, as runc sets it.
fn environment(task: &Task) -> Vec<OsString> {
    let mut kept: Vec<&String> = Vec::with_capacity(task.environment.len());
    for entry in &task.environment {
        let key = entry.split('=').next();
        match kept.iter_mut().find(|k| k.split('=').next() == key) {
            Some(place) => *place = entry,
            None => kept.push(entry),
        }
    }
    let mut all: Vec<OsString> = kept.into_iter().map(OsString::from).collect();
    if program::variable(&task.environment, "HOME").is_none_or(str::is_empty) {
        let passwd = std::fs::read("/etc/passwd").unwrap_or_default();
        let mut home = OsString::from("HOME=");
        match program::home(&passwd, task.uid) {
            Some(found) => home.push(found),
            None => home.push("/"),
        }
        all.retain(|entry| !entry.as_bytes().starts_with(b"HOME="));
        all.push(home);
    }
    all
}

/// Enters the working directory as root, because the user may not be allowed to search the way
/// there, else (a root that a network file system squashes) as the user.
fn enter_cwd(task: &Task) -> Result<(), StepError> {
    let cwd = &task.cwd;
    set_fs_uid(0);
    let entered = enter_as_root(task);
    set_fs_uid(task.uid);
    match entered {
        Err(Errno::ACCESS | Errno::PERM) => chdir(cwd),
        other => other,
    }
    .map_err(|errno| StepError::Cwd { cwd: cwd.clone(), errno })?;
    verify_cwd(cwd)
}

/// Sets the user id for file system access of this (only) thread.
fn set_fs_uid(uid: u32) {
    // SAFETY: no pointers; the call cannot fail in a way that matters: without the right to change
    // it the id stays what it was.
    unsafe { libc::setfsuid(uid) };
}

fn enter_as_root(task: &Task) -> Result<(), Errno> {
    match chdir(&task.cwd) {
        Err(Errno::NOENT) if task.is_init => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&task.cwd)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            chdir(&task.cwd)
        }
        other => other,
    }
}

/// A directory that is not below this root has no path that starts with `/` (CVE-2024-21626).
fn verify_cwd(cwd: &Path) -> Result<(), StepError> {
    match getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        _ => Err(StepError::CwdOutside(cwd.to_owned())),
    }
}

/// Gives standard streams to the container's user, so that `/dev/stdout` can be opened again.
/// Best effort, as in runc: a stream that cannot be given away still works.
pub fn own_stdio(uid: u32, gid: Option<u32>) {
    for stream in [stdin(), stdout(), stderr()] {
        let kind = fstat(stream).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let terminal = rustix::termios::isatty(stream);
        if matches!(kind, Ok(FileType::Fifo)) || terminal {
            let _ = fchown(stream, Some(Uid::from_raw(uid)), gid.map(Gid::from_raw));
        }
    }
}

/// Gives up what the program must not have.
fn confine(task: &Task) -> Result<(), StepError> {
    if task.no_new_privileges {
        set_no_new_privs(true).map_err(StepError::NoNewPrivileges)?;
        drop_capabilities(task)?;
        install_seccomp(task)
    } else {
        // Without no_new_privs the filter needs CAP_SYS_ADMIN, which goes away next.
        install_seccomp(task)?;
        drop_capabilities(task)
    }
}

fn install_seccomp(task: &Task) -> Result<(), StepError> {
    match &task.seccomp {
        // The descriptor of a listener cannot come back: SCMP_ACT_NOTIFY was refused before.
        Some(policy) => initialize_seccomp(policy).map(|_| ()).map_err(StepError::Seccomp),
        None => Ok(()),
    }
}

fn drop_capabilities(task: &Task) -> Result<(), StepError> {
    drop_privileges(&task.capabilities, &*create_syscall()).map_err(StepError::Capabilities)
}

/// Returns only if the program could not be executed.
fn execve(path: &CString, args: &[CString], environment: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        let strings = strings.iter().map(|s| s.as_ptr());
        strings.chain([std::ptr::null()]).collect()
    };
    let (args, environment) = (pointers(args), pointers(environment));
    // SAFETY: all strings are NUL-terminated and outlive the call; both arrays end with a null
    // pointer.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), environment.as_ptr()) };
    let error = io::Error::last_os_error();
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
