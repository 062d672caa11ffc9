//! What the end-to-end suites share: bundles made from busybox, the `bulkhead` under test, and
//! the search for what it left behind.
//!
//! The suites run as root on a host with usable KVM (`cargo xtask test` finds or makes one).

pub mod bench;
pub mod bundle;
pub mod container;
pub mod fsd;
pub mod guest;
pub mod image;
pub mod interfaces;
pub mod leftovers;
pub mod memory;
pub mod netns;
pub mod process;
pub mod size;
pub mod tap;
pub mod terminal;
pub mod vmm;

pub use bundle::Bundle;
pub use container::Created;
pub use image::Image;
pub use leftovers::Leftovers;
pub use process::{Outcome, bulkhead, run, unique_id};
