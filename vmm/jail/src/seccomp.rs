//! From a policy table to an installed filter.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};
use thiserror::Error;

use crate::policy::{Policy, Rule, Test};

/// `__X32_SYSCALL_BIT` of asm/unistd.h: calls of the x32 ABI have numbers from here on, and the
/// same architecture as the others.
const X32_FIRST: u32 = 0x4000_0000;

/// Why a filter could not be made or installed.
#[derive(Debug, Error)]
pub enum SeccompError {
    /// The table has a mistake.
    #[error("compiling the seccomp policy {0}")]
    Compile(&'static str, #[source] BackendError),
    /// The kernel refused it.
    #[error("installing the seccomp policy {0} (does the kernel have CONFIG_SECCOMP_FILTER?)")]
    Install(&'static str, #[source] seccompiler::Error),
}

/// A compiled policy, ready to be installed on a thread.
pub struct Filter {
    name: &'static str,
    program: BpfProgram,
}

impl Filter {
    /// Compiles `policy`: what it does not list kills the process with SIGSYS, so that a
    /// violation is seen by the parent and never becomes an error code that code might handle.
    pub fn new(policy: &Policy) -> Result<Self, SeccompError> {
        let failed = |source| SeccompError::Compile(policy.name, source);
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut always = Vec::new();
        for rule in policy.tables.iter().flat_map(|table| table.iter()) {
            let entry = rules.entry(rule.syscall).or_default();
            if rule.tests.is_empty() {
                always.push(rule.syscall);
            } else {
                entry.push(seccomp_rule(rule).map_err(failed)?);
            }
        }
        // An empty chain means "whatever the arguments", and wins over conditions.
        for syscall in always {
            rules.insert(syscall, Vec::new());
        }
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            TargetArch::x86_64,
        )
        .map_err(failed)?;
        Ok(Self { name: policy.name, program: filter.try_into().map_err(failed)? })
    }

    /// A filter for a program that is not ours, whose system calls nobody has listed: all but
    /// `calls`, any of which kills the process, and so do all of the x32 ABI, where the same calls
    /// have other numbers.
    pub fn without(name: &'static str, calls: &[i64]) -> Result<Self, SeccompError> {
        let failed = |source| SeccompError::Compile(name, source);
        let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
        let (others, these) = (SeccompAction::Allow, SeccompAction::KillProcess);
        let filter =
            SeccompFilter::new(rules, others, these, TargetArch::x86_64).map_err(failed)?;
        let listed: BpfProgram = filter.try_into().map_err(failed)?;
        Ok(Self { name, program: kill_x32().into_iter().chain(listed).collect() })
    }

    /// Installs the filter on the calling thread and every thread it will start. Nothing is
    /// allocated if that succeeds.
    pub fn install(&self) -> Result<(), SeccompError> {
        seccompiler::apply_filter(&self.program)
            .map_err(|source| SeccompError::Install(self.name, source))
    }
}

/// Instructions that kill the process for a call of the x32 ABI and fall through for others. A
/// list of single numbers, which is all that seccompiler has, cannot say it.
fn kill_x32() -> [sock_filter; 3] {
    let step = |code, jf, k| sock_filter { code: code as u16, jt: 0, jf, k };
    [
        // The number is the first field of `struct seccomp_data` (seccomp(2)).
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, X32_FIRST),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ]
}

fn seccomp_rule(rule: &Rule) -> Result<SeccompRule, BackendError> {
    let conditions = rule
        .tests
        .iter()
        .map(|test| match *test {
            Test::Is { argument, value } => SeccompCondition::new(
                argument,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                u64::from(value),
            ),
            Test::Lacks { argument, bits } => SeccompCondition::new(
                argument,
                SeccompCmpArgLen::Qword,
                SeccompCmpOp::MaskedEq(bits),
                0,
            ),
        })
        .collect::<Result<Vec<_>, _>>()?;
    SeccompRule::new(conditions)
}
