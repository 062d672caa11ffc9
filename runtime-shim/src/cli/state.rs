//! `state`: the fields of runc, in its order.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bulkhead_protocol::id::ContainerId;
use clap::Args;
use serde::Serialize;

use super::{Global, print_json};
use crate::failure::Failure;
use crate::state::{Status, View};

/// Arguments of `state`.
#[derive(Debug, Args)]
pub(super) struct StateArgs {
    /// Name of the container.
    pub id: ContainerId,
}

/// A container as `state` and `list` print it.
#[derive(Debug, Serialize)]
pub(super) struct StateOutput {
    #[serde(rename = "ociVersion")]
    pub oci_version: String,
    pub id: String,
    /// The supervisor's pid, 0 once the container has stopped.
    pub pid: u32,
    pub status: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Name of the owner; runc prints it, empty where the uid has none.
    pub owner: String,
}

impl StateOutput {
    /// What `view` shows.
    pub fn of(view: &View) -> Self {
        let (record, status) = (&view.record, view.status());
        Self {
            oci_version: record.oci_version.clone(),
            id: record.id.to_string(),
            pid: if status == Status::Stopped { 0 } else { record.supervisor.pid },
            status: status.to_string(),
            bundle: record.bundle.clone(),
            rootfs: record.rootfs.clone(),
            created: record.created.clone(),
            annotations: record.annotations.clone(),
            owner: owner(record.owner),
        }
    }
}

/// Name of `uid` in /etc/passwd, which is all that a static program can read.
fn owner(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_default()
}

pub(super) fn run(global: &Global, args: StateArgs) -> Result<u8, Failure> {
    let view = global.store().view(&args.id)?;
    let mut output = StateOutput::of(&view);
    // As runc does: `state` leaves the owner empty, `list` names it.
    output.owner.clear();
    print_json(&output)
}
