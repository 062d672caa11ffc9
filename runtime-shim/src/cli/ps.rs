//! `ps`: the container's processes with the pids that they have in the guest, as a table; the
//! sandbox's on the host as JSON, which engines read to look them up there.

use bulkhead_protocol::id::ContainerId;
use clap::Args;

use super::list::{ListFormat, columns};
use super::{Global, print};
use crate::agent_client::{AgentClient, ProcessEntry};
use crate::exec::require_live;
use crate::failure::Failure;
use crate::state::{VSOCK_SOCKET, View};

/// Arguments of `ps`.
#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Form of the listing.
    #[arg(short, long, value_enum, default_value = "table")]
    pub format: ListFormat,
    /// Name of the container.
    pub id: ContainerId,
    /// Options of ps(1); `-ef` is what is printed, others are refused.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PS OPTIONS")]
    pub options: Vec<String>,
}

pub(super) fn run(global: &Global, args: PsArgs) -> Result<u8, Failure> {
    if let Some(option) = args.options.iter().find(|o| *o != "-ef") {
        let cause = format!("ps option {option:?} is not known");
        return Err(Failure::new("listing processes", cause, "leave it out, or give -ef"));
    }
    let view = global.store().view(&args.id)?;
    let limit = require_live(&view, "list the processes of")?;
    match args.format {
        ListFormat::Json => {
            let pids: Vec<String> = host_pids(&view).iter().map(u32::to_string).collect();
            print(&format!("[{}]\n", pids.join(",")))
        }
        ListFormat::Table => {
            let socket = view.path(VSOCK_SOCKET);
            let processes = AgentClient::new(&socket, limit).processes(&args.id)?;
            print(&table(&processes))
        }
    }
}

/// The supervisor, which is the process of the pid file, and the sandbox's other ones.
fn host_pids(view: &View) -> Vec<u32> {
    let record = &view.record;
    let own = std::iter::once(&record.supervisor);
    own.chain(&record.children).map(|process| process.pid).collect()
}

fn table(processes: &[ProcessEntry]) -> String {
    let head = ["UID", "PID", "PPID", "STIME", "TTY", "TIME", "CMD"].map(str::to_owned);
    let rows = processes.iter().map(|p| {
        let (uid, pid, ppid) = (p.uid.to_string(), p.pid.to_string(), p.ppid.to_string());
        let command = p.command.clone();
        [uid, pid, ppid, clock(p.started_at), p.tty.clone(), cpu_time(p.cpu_ticks), command]
    });
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// Hours and minutes of the day in UTC.
fn clock(epoch_s: u64) -> String {
    format!("{:02}:{:02}", epoch_s / 3600 % 24, epoch_s / 60 % 60)
}

/// CPU time from ticks of 10 ms.
fn cpu_time(ticks: u64) -> String {
    let s = ticks / 100;
    format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_ps_does() {
        assert_eq!(clock(1_795_555_445), "21:24");
        assert_eq!(cpu_time(366_199), "01:01:01");
    }
}
