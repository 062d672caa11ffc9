//! System calls that each thread kind may make, with the reason for each.
//!
//! A rule with tests allows the call when all its tests hold; several rules for one call are
//! alternatives. Descriptors cannot be told apart by number, so a rule that allows `read` allows
//! it on every descriptor the process holds: that is why a jailed process holds so few.

mod fsd;
mod vmm;

pub use fsd::FSD;
pub use vmm::{BLOCK, CONTROL, FS, MEMORY, NET, RNG, VCPU, VSOCK};

/// A named set of tables.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Name for errors.
    pub name: &'static str,
    /// Tables that together make the policy.
    pub tables: &'static [&'static [Rule]],
}

/// Allows one system call.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Number of the call.
    pub syscall: i64,
    /// What must hold of its arguments.
    pub tests: &'static [Test],
    /// Why the thread needs it.
    pub reason: &'static str,
}

/// A test of one argument.
#[derive(Debug, Clone, Copy)]
pub enum Test {
    /// The low 32 bits equal `value`.
    Is {
        /// Index of the argument, 0 to 5.
        argument: u8,
        /// Value to compare with.
        value: u32,
    },
    /// None of `bits` is set.
    Lacks {
        /// Index of the argument, 0 to 5.
        argument: u8,
        /// Bits that must be clear.
        bits: u64,
    },
}

/// Allows a call whatever its arguments.
const fn always(syscall: i64, reason: &'static str) -> Rule {
    Rule { syscall, tests: &[], reason }
}

/// Allows a call under conditions.
const fn when(syscall: i64, tests: &'static [Test], reason: &'static str) -> Rule {
    Rule { syscall, tests, reason }
}

/// Memory that is mapped stays without PROT_EXEC: no code of a guest's making ever runs.
const NOT_EXECUTABLE: &[Test] = &[Test::Lacks { argument: 2, bits: libc::PROT_EXEC as u64 }];

/// What the language runtime needs in every thread.
const RUNTIME: &[Rule] = &[
    always(libc::SYS_futex, "locks, channels, joining a thread"),
    always(libc::SYS_brk, "heap"),
    when(libc::SYS_mmap, NOT_EXECUTABLE, "heap"),
    when(libc::SYS_mprotect, NOT_EXECUTABLE, "growing a thread's heap arena"),
    always(libc::SYS_munmap, "heap, the stack of a joined thread"),
    always(libc::SYS_mremap, "heap"),
    when(
        libc::SYS_madvise,
        &[Test::Is { argument: 2, value: libc::MADV_DONTNEED as u32 }],
        "heap, the stack of an ending thread",
    ),
    always(libc::SYS_rt_sigprocmask, "ending a thread, blocking the kick signal"),
    always(libc::SYS_rt_sigreturn, "returning from the kick signal's handler"),
    always(libc::SYS_sigaltstack, "ending a thread"),
    always(libc::SYS_sched_yield, "a contended lock"),
    always(libc::SYS_clock_gettime, "time without vDSO"),
    always(libc::SYS_close, "dropping a descriptor"),
    when(
        libc::SYS_fcntl,
        &[Test::Is { argument: 1, value: libc::F_GETFD as u32 }],
        "a debug build checks that what it closes is open",
    ),
    always(libc::SYS_restart_syscall, "a wait that a signal interrupted"),
    always(libc::SYS_exit, "ending a thread"),
    always(libc::SYS_exit_group, "ending the process"),
    // A failed assertion ends the process with SIGABRT, which its parent reports.
    always(libc::SYS_gettid, "raising SIGABRT"),
    always(libc::SYS_getpid, "raising SIGABRT"),
    when(
        libc::SYS_tgkill,
        &[Test::Is { argument: 2, value: libc::SIGABRT as u32 }],
        "raising SIGABRT",
    ),
    when(
        libc::SYS_rt_sigaction,
        &[Test::Is { argument: 0, value: libc::SIGABRT as u32 }],
        "raising SIGABRT",
    ),
    when(
        libc::SYS_write,
        &[Test::Is { argument: 0, value: libc::STDERR_FILENO as u32 }],
        "the message of a failed assertion",
    ),
];

/// Waiting for and signalling events.
const EVENTS: &[Rule] = &[
    always(libc::SYS_read, "reading an event descriptor"),
    always(libc::SYS_write, "signalling an event descriptor"),
    always(libc::SYS_epoll_wait, "waiting for events"),
    always(libc::SYS_epoll_pwait, "waiting for events"),
    always(libc::SYS_epoll_ctl, "choosing the events to wait for"),
    always(libc::SYS_epoll_create1, "a worker's event loop"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::Filter;

    const ALL: &[Policy] = &[CONTROL, VCPU, RNG, BLOCK, VSOCK, NET, FS, MEMORY, FSD];

    fn rules(policy: &Policy) -> impl Iterator<Item = &'static Rule> {
        policy.tables.iter().flat_map(|table| table.iter())
    }

    #[test]
    fn policy_compiles() {
        for policy in ALL {
            assert!(Filter::new(policy).is_ok(), "{}", policy.name);
        }
    }

    #[test]
    fn policy_never_allows_reaching_out() {
        let forbidden = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_open,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_kill,
        ];
        for policy in ALL {
            for rule in rules(policy) {
                assert!(!forbidden.contains(&rule.syscall), "{}: {}", policy.name, rule.syscall);
            }
        }
    }

    #[test]
    fn policy_of_the_vmm_opens_no_file() {
        for policy in [CONTROL, VCPU, RNG, BLOCK, VSOCK, NET, FS, MEMORY] {
            for rule in rules(&policy) {
                assert!(
                    ![libc::SYS_openat, libc::SYS_openat2].contains(&rule.syscall),
                    "{}",
                    policy.name
                );
            }
        }
    }

    #[test]
    fn every_rule_has_a_reason() {
        for policy in ALL {
            assert!(rules(policy).all(|rule| !rule.reason.is_empty()), "{}", policy.name);
        }
    }
}
