//! What is mounted for a container: by the agent before it is created, and as copies of its root.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
};

use bulkhead_protocol::agent::client::{ContainerRequest, CreateContainerRequest, GuestMount};
use serde_json::json;
use ttrpc::Code;

use crate::harness::{Agent, Wait, limit, refusal, unique};

/// Where the agent mounts for containers.
const MOUNTS: &str = "/run/bulkhead/mnt";

fn mount(fstype: &str, name: &str) -> GuestMount {
    GuestMount {
        source: fstype.to_owned(),
        fstype: fstype.to_owned(),
        target: format!("{MOUNTS}/{name}"),
        ..Default::default()
    }
}

fn creation(agent: &Agent, program: &str, mounts: Vec<GuestMount>) -> CreateContainerRequest {
    CreateContainerRequest {
        container_id: format!("agent-test-{}", unique()),
        spec_json: serde_json::to_vec(&agent.spec(&[program])).unwrap(),
        mounts,
        ..Default::default()
    }
}

/// What a container sees where the agent mounts.
fn mounted(agent: &Agent) -> String {
    let mut spec = agent.spec(&["sh", "-c", "ls /tmp; grep -c ' /tmp/' /proc/mounts"]);
    let bind = json!({
        "destination": "/tmp", "type": "bind", "source": MOUNTS, "options": ["rbind"],
    });
    spec["mounts"].as_array_mut().unwrap().push(bind);
    agent.run_spec(&spec, b"").1
}

#[test]
fn mounts_are_there_with_their_container_and_not_after() {
    let Some(agent) = Agent::start() else { return };
    let request = creation(&agent, "true", vec![mount("tmpfs", "one"), mount("tmpfs", "two")]);
    agent.client.create_container(limit(), &request).unwrap();
    assert_eq!(mounted(&agent), "one\ntwo\n2\n");
    let container_id = request.container_id;
    let request = ContainerRequest { container_id, ..Default::default() };
    agent.client.delete_container(limit(), &request).unwrap();
    assert_eq!(mounted(&agent), "0\n");
}

#[test]
fn mounts_of_a_creation_that_fails_are_undone() {
    let Some(agent) = Agent::start() else { return };
    let create = |program, mounts| {
        let request = creation(&agent, program, mounts);
        refusal(agent.client.create_container(limit(), &request))
    };
    let (code, message) = create("true", vec![mount("tmpfs", "one"), mount("nofs", "two")]);
    assert_eq!(code, Code::INTERNAL);
    assert!(message.starts_with("mount two (nofs): "), "{message}");
    assert_eq!(mounted(&agent), "0\n");
    let (code, _) = create("absent", vec![mount("tmpfs", "one")]);
    assert_eq!(code, Code::UNIMPLEMENTED);
    assert_eq!(mounted(&agent), "0\n");
}

#[test]
fn tmpfs_with_copy_up_begins_with_what_it_covers() {
    let Some(agent) = Agent::start() else { return };
    let covered = agent.root().join("var/spool");
    fs::create_dir_all(covered.join("dir")).unwrap();
    fs::write(covered.join("dir/file"), "content\n").unwrap();
    fs::set_permissions(&covered, fs::Permissions::from_mode(0o1770)).unwrap();
    chown(&covered, Some(0), Some(4)).unwrap();
    let script = "cat /var/spool/dir/file; stat -c '%u %g %a' /var/spool; \
                  grep -o '^tmpfs /var/spool tmpfs rw,nosuid' /proc/mounts; \
                  echo new > /var/spool/dir/file";
    let mut spec = agent.spec(&["sh", "-c", script]);
    let tmpfs = json!({
        "destination": "/var/spool", "type": "tmpfs", "source": "tmpfs",
        "options": ["tmpcopyup", "nosuid", "size=1m"],
    });
    spec["mounts"].as_array_mut().unwrap().push(tmpfs);
    let (wait, out, err) = agent.run_spec(&spec, b"");
    assert_eq!((wait, err.as_str()), (Wait::Code(0), ""));
    assert_eq!(out, "content\n0 4 1770\ntmpfs /var/spool tmpfs rw,nosuid\n");
    assert_eq!(fs::read_to_string(covered.join("dir/file")).unwrap(), "content\n");
}
