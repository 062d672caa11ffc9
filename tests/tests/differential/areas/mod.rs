//! The variations, area by area.

mod capabilities;
mod devices;
mod environment;
mod exec;
mod files;
mod ids;
mod invalid;
mod mounts;
mod names;
mod resources;
mod rlimits;
mod seccomp;
mod streams;
mod sysctl;

use crate::case::Case;

/// All of them.
pub fn all() -> Vec<Case> {
    [
        capabilities::cases(),
        devices::cases(),
        environment::cases(),
        exec::cases(),
        files::cases(),
        ids::cases(),
        invalid::cases(),
        mounts::cases(),
        names::cases(),
        resources::cases(),
        rlimits::cases(),
        seccomp::cases(),
        streams::cases(),
        sysctl::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
