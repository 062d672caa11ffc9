//! What the two sides of the emulated host say to each other on the control port: one JSON text
//! a line.

use serde::{Deserialize, Serialize};

/// Names of the virtio-serial ports. The host opens them in this order, so whoever reads a
/// message on `CONTROL` knows that the others are open.
pub const STDIN: &str = "bulkhead.stdin";
/// Standard output, and everything of a terminal.
pub const STDOUT: &str = "bulkhead.stdout";
/// Standard error.
pub const STDERR: &str = "bulkhead.stderr";
/// This protocol.
pub const CONTROL: &str = "bulkhead.control";

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Program and arguments.
    pub command: Vec<String>,
    /// The whole environment.
    pub environment: Vec<(String, String)>,
    /// Working directory.
    pub directory: String,
    /// Where `target/` belongs.
    pub target: String,
    /// Size of the terminal to give the command, if it gets one.
    pub terminal: Option<WindowSize>,
}

/// Into the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "snake_case")]
pub enum ToHost {
    /// Run this; the first and only job.
    Run(Job),
    /// The caller's window has another size.
    Resize(WindowSize),
}

/// Out of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum FromHost {
    /// The host lives. Sent once when it is up, and then every second of its clock.
    Beat,
    /// The command has ended; every byte of its output was handed to the ports.
    Exit {
        /// Exit status as a shell gives it.
        status: u8,
        /// Bytes sent on `STDOUT`.
        stdout_bytes: u64,
        /// Bytes sent on `STDERR`.
        stderr_bytes: u64,
    },
    /// The command could not be run.
    Failed {
        /// Why.
        message: String,
        /// Exit status that says so: 127 not found, 126 not executable.
        status: u8,
    },
}
