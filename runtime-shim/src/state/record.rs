//! `state.json`: what the supervisor knows of its container.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_protocol::id::ContainerId;
use serde::{Deserialize, Serialize};

use crate::cgroup::CgroupRecord;
use crate::hooks::{Container, Hook};
use crate::network::NamespaceRecord;
use crate::process::ProcessId;
use crate::uplink::Backend;

/// State of a container (`runtime.md`, "State").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The sandbox is being made.
    Creating,
    /// The container waits for `start`.
    Created,
    /// The workload runs.
    Running,
    /// All processes of the container stand still.
    Paused,
    /// The workload has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A container as its supervisor records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the specification that the bundle follows.
    pub oci_version: String,
    /// The container.
    pub id: ContainerId,
    /// State while the supervisor lives.
    pub status: Status,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The root file system's directory.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// The bundle's annotations.
    pub annotations: BTreeMap<String, String>,
    /// User id of who created it.
    pub owner: u32,
    /// The process of the pid file.
    pub supervisor: ProcessId,
    /// File server and VMM, once they exist; recorded before they run anything.
    pub children: Vec<ProcessId>,
    /// The first container of the sandbox that it is in, if it is not that itself.
    #[serde(default)]
    pub sandbox: Option<ContainerId>,
    /// Where redirections may be left, if that outlives the supervisor; recorded before they are
    /// made.
    #[serde(default)]
    pub network: Option<NamespaceRecord>,
    /// The sandbox's cgroup on the host, recorded before it is made.
    #[serde(default)]
    pub cgroup: Option<CgroupRecord>,
    /// What connects its network namespace with the host's, if no engine does; recorded before it
    /// is made.
    #[serde(default)]
    pub uplink: Option<Backend>,
    /// Hooks that are still to run when the container is deleted.
    #[serde(default)]
    pub poststop: Vec<Hook>,
    /// A directory that is removed with the state.
    pub scratch: Option<PathBuf>,
    /// How long a call to the agent may take, in seconds; follows the start-up limit.
    pub call_limit_s: u64,
}

impl Record {
    /// The container as its hooks see it while its supervisor has `pid`.
    pub fn for_hooks(&self, pid: Option<u32>) -> Container<'_> {
        Container {
            oci_version: &self.oci_version,
            id: self.id.as_str(),
            pid,
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            annotations: &self.annotations,
        }
    }
}

/// `time` as RFC 3339 in UTC with nanoseconds, as runc writes it.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let nanos = since.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Gregorian date of a day counted from 1970-01-01. Years are counted from March, so that the
/// leap day is the last of a year.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    const DAYS_TO_1970: u64 = 719_468; // from 0000-03-01
    let days = days + DAYS_TO_1970;
    let era = days / DAYS_IN_400_YEARS;
    let day_of_era = days % DAYS_IN_400_YEARS;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}
