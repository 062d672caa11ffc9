//! What the benchmarks share. They run inside the emulated host with the instruction clock, where
//! a nanosecond of `CLOCK_MONOTONIC`, and of the time-stamp counter, is an instruction.

pub mod idle;
pub mod processor;
pub mod room;
pub mod rows;
pub mod watch;
