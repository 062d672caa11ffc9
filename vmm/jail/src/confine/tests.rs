use std::os::fd::AsFd;

use super::*;

/// Runs `body` as the first process of a new PID namespace and gives its exit status.
/// Skips, with a printed reason, where the test does not run as root.
fn in_child(body: impl FnOnce() -> i32) -> Option<i32> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to confine a process");
        return None;
    }
    let own = File::open("/proc/self/ns/pid").unwrap();
    // SAFETY: only the namespace of this thread's children changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }.unwrap();
    // By libc, which holds the locks of its heap meanwhile: the child allocates, and another test's
    // thread may have them.
    // SAFETY: the child calls `body`, which starts no thread and waits for none, and ends.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", io::Error::last_os_error());
    if pid == 0 {
        let code = body();
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(code) };
    }
    let kind = Some(rustix::thread::LinkNameSpaceType::ProcessID);
    rustix::thread::move_into_link_name_space(own.as_fd(), kind).unwrap();
    let mut status = 0;
    // SAFETY: `status` is valid for a write; `pid` is our child.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    Some(if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        1000 + libc::WTERMSIG(status)
    })
}

const LIMITS: Limits = Limits { descriptors: 64, threads: Some(8), locked_bytes: 0 };

fn root_is_empty() -> bool {
    std::fs::read_dir("/").is_ok_and(|mut entries| entries.next().is_none())
}

/// The effective capabilities of this thread as bits.
fn effective() -> u64 {
    rustix::thread::capabilities(None).map(|sets| sets.effective.bits()).unwrap_or(u64::MAX)
}

#[test]
fn unprivileged_process_has_empty_root_own_id_and_no_capability() {
    let code = in_child(|| {
        if enter_unprivileged(0x7000_0001, LIMITS).is_err() {
            return 1;
        }
        if rustix::process::geteuid().as_raw() != 0x7000_0001 {
            return 2;
        }
        if effective() != 0 {
            return 3;
        }
        if !root_is_empty() {
            return 4;
        }
        if File::create("/x").is_ok() {
            return 5;
        }
        if rustix::thread::no_new_privs() != Ok(true) {
            return 6;
        }
        0
    });
    assert!(matches!(code, None | Some(0)), "{code:?}");
}

#[test]
fn unprivileged_process_cannot_regain_root() {
    let code = in_child(|| {
        if enter_unprivileged(0x7000_0002, LIMITS).is_err() {
            return 1;
        }
        let root = Uid::ROOT;
        i32::from(rustix::thread::set_thread_res_uid(root, root, root).is_ok())
    });
    assert!(matches!(code, None | Some(0)), "{code:?}");
}

#[test]
fn file_server_keeps_the_named_capabilities_only() {
    let keep = CapabilitySet::CHOWN | CapabilitySet::FOWNER;
    let code = in_child(|| {
        let Ok(descriptors) = enter_file_server(keep, LIMITS) else {
            return 1;
        };
        if effective() != keep.bits() {
            return 2;
        }
        // Through procfs a held descriptor can be reopened, the host's tree cannot be reached.
        let number = { std::os::fd::AsRawFd::as_raw_fd(&descriptors).to_string() };
        if rustix::fs::openat(&descriptors, number, OFlags::PATH, Mode::empty()).is_err() {
            return 3;
        }
        if rustix::fs::openat(&descriptors, "../../sys", OFlags::PATH, Mode::empty()).is_ok() {
            return 4;
        }
        if root_is_empty() { 0 } else { 5 }
    });
    assert!(matches!(code, None | Some(0)), "{code:?}");
}

#[test]
fn process_outside_a_pid_namespace_of_its_own_is_refused() {
    assert!(matches!(enter_unprivileged(1, LIMITS), Err(ConfineError::PidNamespace)));
}

#[test]
fn forbidden_call_kills_with_sigsys() {
    let code = in_child(|| {
        let Ok(filter) = crate::seccomp::Filter::new(&crate::policy::RNG) else {
            return 1;
        };
        if filter.install().is_err() {
            return 2;
        }
        // SAFETY: creates a socket, or dies trying.
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        3
    });
    assert!(code.is_none_or(|code| code == 1000 + libc::SIGSYS), "{code:?}");
}
