//! `process.user`: ids, groups, umask.

use serde_json::json;

use crate::case::{Area, Case};

const AREA: Area = Area("user");
/// Which files come of it, and what can be read.
const FILES: &str = "id; touch /tmp/f; mkdir /tmp/d; stat -c '%a %u %g %n' /tmp/f /tmp/d; \
                     cat /opt/secret; touch /opt/mine; stat -c '%u %g %a' /proc/self/fd/1 /proc/self";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (uid, gid) in [(0, 0), (0, 5), (1, 0), (1000, 1000), (65534, 65534), (1234, 4321)] {
        let case = AREA.case(format!("uid {uid}, gid {gid}"), FILES);
        cases.push(case.set("/process/user", json!({"uid": uid, "gid": gid})));
    }
    let large = json!({"uid": 2_000_000_000, "gid": 2_000_000_001});
    cases.push(AREA.case("large ids", FILES).set("/process/user", large));
    for umask in [0, 0o2, 0o22, 0o27, 0o77, 0o177, 0o777] {
        let case = AREA.case(format!("umask {umask:03o}"), FILES);
        cases.push(case.set("/process/user/umask", json!(umask)));
    }
    let lists: [&[u32]; 5] = [&[], &[0], &[5, 6, 7], &[7, 5, 7], &[100_000]];
    for groups in lists {
        for uid in [0, 1000] {
            let case = AREA.case(format!("groups {groups:?} of {uid}"), FILES);
            let user = json!({"uid": uid, "gid": uid, "additionalGids": groups});
            cases.push(case.set("/process/user", user));
        }
    }
    let many: Vec<u32> = (1..200).collect();
    let user = json!({"uid": 4, "gid": 4, "additionalGids": many});
    cases.push(AREA.case("199 groups", "").set("/process/user", user));
    cases
}
