//! The container's first process, and what its failure to start is called.

use bulkhead_protocol::id::ContainerId;
use ttrpc::Code;

use crate::agent_client::{AgentError, ProcessName};
use crate::failure::{EXIT_CANNOT_RUN, EXIT_NOT_FOUND, Failure};

/// The container's init.
pub(super) fn workload(id: &ContainerId) -> ProcessName<'_> {
    ProcessName { container: id, exec_id: "" }
}

/// A program that does not exist or cannot be run is told in runc's words, from which its
/// clients make exit codes; every other failure in the agent's.
pub fn start_failure(error: AgentError, program: &str) -> Failure {
    let phase = "starting the container process";
    match error.refused_as() {
        Some(Code::UNIMPLEMENTED) if program.contains('/') => {
            let cause = format!("exec: {program:?}: stat {program}: no such file or directory");
            Failure::new(phase, cause, "").with_code(EXIT_NOT_FOUND)
        }
        Some(Code::UNIMPLEMENTED) => {
            let cause = format!("exec: {program:?}: executable file not found in $PATH");
            Failure::new(phase, cause, "").with_code(EXIT_NOT_FOUND)
        }
        Some(Code::PERMISSION_DENIED) => {
            let cause = format!("exec: {program:?}: permission denied");
            Failure::new(phase, cause, "").with_code(EXIT_CANNOT_RUN)
        }
        Some(_) => Failure::new(phase, error.to_string(), ""),
        None => error.into(),
    }
}
