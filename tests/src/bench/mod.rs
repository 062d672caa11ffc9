//! What the benchmarks share. They run inside the emulated host, all but that of shares with the
//! instruction clock, where a nanosecond of `CLOCK_MONOTONIC` is an instruction.

pub mod arguments;
pub mod idle;
pub mod processor;
pub mod room;
pub mod rows;
pub mod watch;
