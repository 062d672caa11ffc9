//! The rules of the bridge: one table of nftables, replaced as a whole at every change, so that
//! it is always that of the leases there are.
//!
//! `nft` is run with its JSON form on standard input (libnftables-json(5)); there is no other
//! well-kept way that fits the licence. Each run is one transaction of the kernel.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::{Value, json};

use super::book::Lease;
use super::bridge::BRIDGE;
use super::{Port, UplinkError, address, choose};
use crate::failure::printable;

/// Table of our own: nobody else's rules are read or changed.
const TABLE: &str = "bulkhead";
/// Network of 8 bits that a host has of its own.
const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 0);
/// Where `nft` is installed; the caller's PATH is not asked.
const PROGRAMS: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft", "/usr/bin/nft"];

/// The program, if it is installed.
pub(super) fn program() -> Option<&'static Path> {
    choose::first_of(&PROGRAMS)
}

/// Makes the table that of `leases` in `network`. `lock` is that of the book.
pub(super) fn apply(
    network: Ipv4Addr,
    leases: &[Lease],
    lock: BorrowedFd<'_>,
) -> Result<(), UplinkError> {
    run(&table(network, leases), lock)
}

/// Removes the table, if there is one. `lock` is that of the book.
pub(super) fn remove(lock: BorrowedFd<'_>) -> Result<(), UplinkError> {
    run(&fresh(), lock)
}

/// Commands that leave no table, whether or not there was one.
fn fresh() -> Vec<Value> {
    let table = json!({"table": {"family": "ip", "name": TABLE}});
    vec![json!({"add": table}), json!({"delete": table})]
}

/// Commands that make the whole table.
fn table(network: Ipv4Addr, leases: &[Lease]) -> Vec<Value> {
    let mut all = fresh();
    all.push(json!({"add": {"table": {"family": "ip", "name": TABLE}}}));
    // Priorities of Linux: raw, dstnat, the same for local output, srcnat, filter.
    for (name, kind, hook, priority) in [
        ("guard", "filter", "prerouting", -300),
        ("prerouting", "nat", "prerouting", -100),
        ("output", "nat", "output", -100),
        ("postrouting", "nat", "postrouting", 100),
        ("forward", "filter", "forward", 0),
    ] {
        all.push(json!({"add": {"chain": {
            "family": "ip", "table": TABLE, "name": name,
            "type": kind, "hook": hook, "prio": priority, "policy": "accept",
        }}}));
    }
    // The host's loopback is open to the bridge for published ports; nobody comes in there, nor
    // as if from there.
    for side in ["daddr", "saddr"] {
        let loopback = is_within(side, LOOPBACK, 8);
        all.push(rule("guard", [arrives_at_bridge(), loopback, json!({"drop": null})]));
    }
    for lease in leases {
        for port in &lease.ports {
            for chain in ["prerouting", "output"] {
                let target = json!({"dnat": {"addr": lease.address, "port": port.guest}});
                all.push(rule(chain, [is_local(port), is_port(port), target]));
            }
        }
    }
    let masquerade = || json!({"masquerade": null});
    let inside = || is_within("saddr", network, address::PREFIX);
    all.push(rule("postrouting", [inside(), matches("!=", meta("oifname"), BRIDGE), masquerade()]));
    // A container that asks for a published port of its own network, and the host's loopback,
    // must be answered through the host.
    all.push(rule("postrouting", [leaves_by_bridge(), inside(), is_redirected(), masquerade()]));
    let loopback = is_within("saddr", LOOPBACK, 8);
    all.push(rule("postrouting", [leaves_by_bridge(), loopback, masquerade()]));
    let accept = || json!({"accept": null});
    let states = json!(["established", "related"]);
    all.push(rule("forward", [leaves_by_bridge(), is_in(ct("state"), states), accept()]));
    all.push(rule("forward", [leaves_by_bridge(), arrives_at_bridge(), accept()]));
    all.push(rule("forward", [leaves_by_bridge(), is_redirected(), accept()]));
    all.push(rule("forward", [leaves_by_bridge(), json!({"drop": null})]));
    all
}

fn rule(chain: &str, expressions: impl IntoIterator<Item = Value>) -> Value {
    let expressions: Vec<Value> = expressions.into_iter().collect();
    json!({"add": {"rule": {"family": "ip", "table": TABLE, "chain": chain, "expr": expressions}}})
}

fn matches(op: &str, left: Value, right: impl Into<Value>) -> Value {
    json!({"match": {"op": op, "left": left, "right": right.into()}})
}

fn is_in(left: Value, right: Value) -> Value {
    matches("in", left, right)
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn ct(key: &str) -> Value {
    json!({"ct": {"key": key}})
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn arrives_at_bridge() -> Value {
    matches("==", meta("iifname"), BRIDGE)
}

fn leaves_by_bridge() -> Value {
    matches("==", meta("oifname"), BRIDGE)
}

fn is_redirected() -> Value {
    is_in(ct("status"), json!("dnat"))
}

/// An address of the packet, `saddr` or `daddr`, of the network with `length` bits of `address`.
fn is_within(side: &str, address: Ipv4Addr, length: u8) -> Value {
    let prefix = json!({"prefix": {"addr": address, "len": length}});
    matches("==", payload("ip", side), prefix)
}

/// A packet for the host at the address that the port is published on.
fn is_local(port: &Port) -> Value {
    match port.ip.is_unspecified() {
        true => matches("==", json!({"fib": {"result": "type", "flags": ["daddr"]}}), "local"),
        false => matches("==", payload("ip", "daddr"), port.ip.to_string()),
    }
}

fn is_port(port: &Port) -> Value {
    matches("==", payload(port.protocol.name(), "dport"), port.host)
}

/// Runs `nft` with `commands` in the calling thread's namespace.
fn run(commands: &[Value], lock: BorrowedFd<'_>) -> Result<(), UplinkError> {
    let program = program().ok_or(UplinkError::Unavailable("nft is missing: install nftables"))?;
    let failed = |e: io::Error| UplinkError::Nft(program.to_owned(), e);
    let mut command = command(program, lock).map_err(failed)?;
    let mut child = command.args(["-j", "-f", "-"]).spawn().map_err(failed)?;
    let text = json!({"nftables": commands}).to_string();
    // nft reads all of its input before it says anything, so neither side waits for ever.
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(text.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output().map_err(failed)?;
    match output.status.success() {
        true => written.map_err(failed),
        false => Err(UplinkError::Rules(printable(&String::from_utf8_lossy(&output.stderr)))),
    }
}

/// Runs `program` with a copy of `lock`: one that has all of its input changes the rules even if
/// its caller is killed meanwhile, and whoever comes next must come after that.
fn command(program: &Path, lock: BorrowedFd<'_>) -> io::Result<Command> {
    let lock = lock.try_clone_to_owned()?;
    let mut command = Command::new(program);
    command.env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: the closure makes one system call only: no allocation, no lock, no panic.
    unsafe { command.pre_exec(move || Ok(fcntl_setfd(&lock, FdFlags::empty())?)) };
    Ok(command)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use rustix::fs::{FlockOperation, flock};
    use rustix::io::Errno;

    use super::*;
    use crate::eventually::eventually;

    #[test]
    fn program_holds_the_lock_of_a_caller_that_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let open = || File::open(directory.path()).unwrap();
        let lock = open();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let mut cat = command(Path::new("/bin/cat"), lock.as_fd()).unwrap();
        let mut child = cat.spawn().unwrap();
        drop((cat, lock));
        let next = open();
        let take = || flock(&next, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(take(), Err(Errno::AGAIN));
        drop(child.stdin.take());
        child.wait().unwrap();
        eventually(|| take().ok());
    }
}
