//! `bulkhead` against sandbox processes that are not the real ones: what it does when they
//! refuse, die, lie or keep silent, and that nothing is left. Real guests are booted elsewhere.
//!
//! The programs that `bulkhead` starts are scripts which execute this test binary again as
//! [`fake::vmm`] or [`fake::fsd`]; what the VMM does is told in the file that stands for the
//! guest kernel.

#![allow(clippy::unwrap_used, reason = "the lint's exception for tests misses their helpers")]

mod failures;
mod fake;
mod hooks;
mod lifecycle;
mod rig;
