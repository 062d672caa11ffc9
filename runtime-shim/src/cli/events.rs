//! `events`: runc's JSON, one object a line, with figures of the host beside those of the guest.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bulkhead_protocol::id::ContainerId;
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use serde_json::{Value, json};

use super::Global;
use super::pause::ask_live;
use crate::agent_client::{AgentClient, AgentError, Call, Progress, oom_reply};
use crate::control::{ControlAnswer, ControlRequest, SandboxStats};
use crate::exec::require_live;
use crate::failure::Failure;
use crate::state::{Status, VSOCK_SOCKET, View};
use crate::vsock::until;

const PHASE: &str = "reading the container's figures";
/// Under this name the figures have what only the host knows.
const OWN_FIELD: &str = "bulkhead";
/// Time between two lines of OOM kills at least: the count is the guest's, which may lie without
/// end.
const OOM_PAUSE: Duration = Duration::from_millis(100);

/// Arguments of `events`.
#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Time between two sets of figures, as 5s or 1m30s.
    #[arg(long, default_value = "5s", value_name = "DURATION")]
    pub interval: String,
    /// Print one set of figures and end.
    #[arg(long)]
    pub stats: bool,
    /// Name of the container.
    pub id: ContainerId,
}

/// One line of the output.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

pub(super) fn run(global: &Global, args: EventsArgs) -> Result<u8, Failure> {
    let view = global.store().view(&args.id)?;
    let interval = duration(&args.interval).filter(|d| !d.is_zero()).ok_or_else(|| {
        let cause = "duration interval must be greater than 0";
        Failure::new("reading the command line", cause, "give it as 5s or 1m30s")
    })?;
    if view.status() == Status::Stopped {
        let cause = format!("container with id {} is not running", args.id);
        return Err(Failure::new(PHASE, cause, ""));
    }
    let limit = require_live(&view, "read the figures of")?;
    let socket = view.path(VSOCK_SOCKET);
    let agent = AgentClient::new(&socket, limit);
    if args.stats {
        print_event(&args.id, "stats", Some(figures(&view, &agent, &args.id)?))?;
        return Ok(0);
    }
    follow(&view, &agent, &args.id, interval)
}

/// Prints figures at each interval and every OOM kill, until the container has ended.
fn follow(
    view: &View,
    agent: &AgentClient<'_>,
    id: &ContainerId,
    interval: Duration,
) -> Result<u8, Failure> {
    let mut seen = 0;
    let mut oom = agent.wait_oom(id, seen)?;
    let mut next = Instant::now() + interval;
    loop {
        if await_call(&oom, next)? {
            match oom.advance() {
                Ok(Progress::Pending) => continue,
                Ok(Progress::Done(payload)) => {
                    let kills = oom_reply(&payload)?;
                    if kills <= seen {
                        return Ok(0);
                    }
                    seen = kills;
                    print_event(id, "oom", None)?;
                    std::thread::sleep(OOM_PAUSE);
                    oom = agent.wait_oom(id, seen)?;
                }
                // With its guest.
                Err(AgentError::Closed(_)) => return Ok(0),
                Err(e) => return Err(e.into()),
            }
        }
        if next <= Instant::now() {
            next = Instant::now() + interval;
            match figures(view, agent, id) {
                Ok(figures) => print_event(id, "stats", Some(figures))?,
                // As runc: told, and the next may succeed; the end comes by itself.
                Err(failure) => eprintln!("bulkhead: {failure}"),
            }
        }
    }
}

/// Whether the call has something to read before `deadline`.
fn await_call(call: &Call, deadline: Instant) -> Result<bool, Failure> {
    let mut fds = [PollFd::from_borrowed_fd(call.as_fd(), PollFlags::IN)];
    match poll(&mut fds, Some(&until(deadline))) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(Failure::new(PHASE, e.to_string(), "")),
    }
}

fn figures(view: &View, agent: &AgentClient<'_>, id: &ContainerId) -> Result<Value, Failure> {
    let mut figures = agent.stats(id)?;
    let sandbox = sandbox_stats(view)?;
    figures.insert(OWN_FIELD.to_owned(), json!(sandbox));
    Ok(Value::Object(figures))
}

/// What the supervisor knows.
pub(super) fn sandbox_stats(view: &View) -> Result<SandboxStats, Failure> {
    match ask_live(view, PHASE, "container not running", &ControlRequest::Stats)? {
        ControlAnswer::Stats(stats) => Ok(*stats),
        ControlAnswer::Done => Err(Failure::new(PHASE, "the supervisor tells nothing", "")),
    }
}

/// A line that a reader of the pipe sees at once.
fn print_event(id: &ContainerId, kind: &str, data: Option<Value>) -> Result<(), Failure> {
    let event = Event { kind, id: id.as_str(), data };
    let failed = |e: std::io::Error| Failure::new("writing the output", e.to_string(), "");
    let mut line = serde_json::to_string(&event).map_err(|e| failed(e.into()))?;
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).map_err(failed)
}

/// A duration as Go writes it: numbers with units, one after the other, and as long as Go's at
/// the most, which is 292 years.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit_s = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit_s).ok()?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    let bounded = total.as_nanos() <= i64::MAX as u128;
    (bounded && !text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, ms) in [("5s", 5000), ("1m30s", 90_000), ("500ms", 500), ("1.5s", 1500)] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "s", "5x", "-1s", "1e400s", "1.2.3s", "2562048h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
