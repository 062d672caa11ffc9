//! What the end-to-end suites share: bundles made from busybox, the `bulkhead` under test, and
//! the search for what it left behind.
//!
//! The suites run as root on a host with usable KVM (`cargo xtask test` finds or makes one).

pub mod bench;
pub mod bundle;
pub mod cni;
pub mod container;
pub mod containerd;
pub mod daemon;
pub mod disk;
pub mod docker;
pub mod fsd;
pub mod guest;
pub mod image;
pub mod interfaces;
pub mod leftovers;
pub mod manager;
pub mod memory;
pub mod netns;
pub mod peer;
pub mod podman;
pub mod process;
pub mod size;
pub mod tap;
pub mod terminal;
pub mod vmm;

/// How long a test waits for what must come. Nothing takes this long unless it never comes, so
/// that a test which meets it has failed; a busy or emulated machine does not.
pub const LIMIT: std::time::Duration = std::time::Duration::from_secs(120);

/// Whether long forms of suites are to be run (`cargo xtask test --full`).
pub fn is_full() -> bool {
    std::env::var_os("BULKHEAD_TESTS_FULL").is_some()
}

pub use bundle::Bundle;
pub use container::Created;
pub use image::Image;
pub use leftovers::Leftovers;
pub use process::{Outcome, bulkhead, read_until, run, run_until_done, unique_id, wait_until};
