//! `bulkhead-fsd`: takes one configuration from its control socket, confines itself, and serves
//! until the VMM or the runtime is gone.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use anyhow::Context;
use bulkhead_fsd::config::Config;
use bulkhead_fsd::confine::confine;
use bulkhead_fsd::server::{Limits, Server};
use bulkhead_fsd::{identity, pool};
use bulkhead_jail::apart::set_apart;
use bulkhead_protocol::control::CONTROL_FD;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead-fsd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    // SAFETY: the runtime leaves its socket under this number, and nothing else in this process
    // knows it. A closed one fails at the first use.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    one_arena();
    let config = Config::receive(control.as_fd())?;
    identity::keep_capabilities().context("keeping capabilities across a change of user")?;
    // Before the jail, which has another mount namespace.
    let shares = config
        .shares
        .into_iter()
        .map(|(name, source, read_only)| {
            let apart = set_apart(source, read_only);
            let fd = apart.with_context(|| format!("setting share {name:?} apart"))?;
            Ok((name, fd, read_only))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let jail = confine()?;
    let limits = Limits::within(jail.descriptors_max);
    let server = Server::new(shares, jail.descriptors, limits)?;
    let hook = || jail.filter.install().map_err(std::io::Error::other);
    pool::serve(&server, config.device.as_fd(), control.as_fd(), &hook)?;
    Ok(())
}

/// One heap for all threads: they allocate little, and each heap of its own costs memory.
fn one_arena() {
    // SAFETY: mallopt takes integers; no other thread allocates yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
