//! What `exec` runs: the container's own process, changed by flags exactly as runc does it.

use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};

use crate::failure::Failure;

/// `--user`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserChange {
    /// User id.
    pub uid: u32,
    /// Group id; the container's where it is not given.
    pub gid: Option<u32>,
}

impl FromStr for UserChange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str, what| {
            let parsed = text.parse::<u32>();
            parsed.map_err(|_| format!("parsing {text} as int for {what} failed"))
        };
        let (uid, gid) = match text.split_once(':') {
            Some((uid, gid)) => (uid, Some(number(gid, "gid")?)),
            None => (text, None),
        };
        Ok(Self { uid: number(uid, "uid")?, gid })
    }
}

/// The flags of `exec` that change the container's process.
#[derive(Debug, Clone, Default)]
pub struct ProcessChanges {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Working directory.
    pub cwd: Option<PathBuf>,
    /// More environment variables.
    pub env: Vec<String>,
    /// Whether there is a terminal.
    pub terminal: bool,
    /// Who runs it.
    pub user: Option<UserChange>,
    /// More groups.
    pub additional_gids: Vec<u32>,
    /// Whether privileges can be gained.
    pub no_new_privileges: Option<bool>,
    /// More capabilities.
    pub capabilities: Vec<String>,
}

impl ProcessChanges {
    /// The container's `process`, changed.
    pub fn apply(self, mut process: Process) -> Result<Process, Failure> {
        if self.args.is_empty() {
            let fix = "give a command, or a file with --process";
            return Err(Failure::new(
                "reading the command line",
                "process args cannot be empty",
                fix,
            ));
        }
        process.set_args(Some(self.args));
        process.set_terminal(Some(self.terminal));
        if let Some(cwd) = self.cwd {
            process.set_cwd(cwd);
        }
        if !self.env.is_empty() {
            process.env_mut().get_or_insert_default().extend(self.env);
        }
        if let Some(set) = self.no_new_privileges {
            process.set_no_new_privileges(Some(set));
        }
        let user = process.user_mut();
        if let Some(change) = self.user {
            user.set_uid(change.uid);
            user.set_gid(change.gid.unwrap_or(user.gid()));
        }
        if !self.additional_gids.is_empty() {
            let gids = user.additional_gids_mut().get_or_insert_default();
            gids.extend(self.additional_gids);
        }
        if !self.capabilities.is_empty() {
            let added = capabilities(&self.capabilities)?;
            let had = process.capabilities().clone();
            process.set_capabilities(Some(add(had, &added)));
        }
        Ok(process)
    }
}

fn capabilities(names: &[String]) -> Result<Capabilities, Failure> {
    let parse = |name: &String| {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        Capability::from_str(bare).map_err(|_| {
            let cause = format!("unknown capability {name:?}");
            Failure::new("reading the command line", cause, "capabilities(7) lists them")
        })
    };
    names.iter().map(parse).collect()
}

/// Every set but the inheritable one, which would let programs gain them (CVE-2022-29162).
fn add(had: Option<LinuxCapabilities>, added: &Capabilities) -> LinuxCapabilities {
    let union = |set: Option<&Option<Capabilities>>| -> Option<Capabilities> {
        let had = set.cloned().flatten().unwrap_or_default();
        Some(had.union(added).copied().collect())
    };
    let had = had.as_ref();
    let mut all = LinuxCapabilities::default();
    all.set_bounding(union(had.map(|c| c.bounding())));
    all.set_effective(union(had.map(|c| c.effective())));
    all.set_permitted(union(had.map(|c| c.permitted())));
    all.set_ambient(union(had.map(|c| c.ambient())));
    all.set_inheritable(had.and_then(|c| c.inheritable().clone()));
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container() -> Process {
        serde_json::from_value(json!({
            "terminal": true, "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
            "args": ["init"], "env": ["A=1"], "cwd": "/c", "noNewPrivileges": true,
            "capabilities": {"bounding": ["CAP_KILL"], "inheritable": ["CAP_KILL"]}
        }))
        .unwrap()
    }

    fn changed(changes: ProcessChanges) -> serde_json::Value {
        let changes = ProcessChanges { args: vec!["ls".into()], ..changes };
        serde_json::to_value(changes.apply(container()).unwrap()).unwrap()
    }

    #[test]
    fn process_without_flags_is_the_containers_with_other_arguments() {
        let process = changed(ProcessChanges::default());
        assert_eq!(process["args"], json!(["ls"]));
        assert_eq!(process["terminal"], json!(false));
        assert_eq!(process["cwd"], "/c");
        assert_eq!(process["user"], json!({"uid": 5, "gid": 6, "additionalGids": [7]}));
        assert_eq!(process["noNewPrivileges"], json!(true));
    }

    #[test]
    fn flags_replace_or_add_as_runc_does() {
        let process = changed(ProcessChanges {
            cwd: Some("/d".into()),
            env: vec!["A=2".into()],
            terminal: true,
            user: Some("9".parse().unwrap()),
            additional_gids: vec![8],
            capabilities: vec!["CAP_CHOWN".into()],
            ..Default::default()
        });
        assert_eq!((&process["cwd"], &process["terminal"]), (&json!("/d"), &json!(true)));
        assert_eq!(process["env"], json!(["A=1", "A=2"]));
        assert_eq!(process["user"], json!({"uid": 9, "gid": 6, "additionalGids": [7, 8]}));
        assert_eq!(process["capabilities"]["ambient"], json!(["CAP_CHOWN"]));
        assert_eq!(process["capabilities"]["inheritable"], json!(["CAP_KILL"]));
        assert_eq!(process["capabilities"]["bounding"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn process_without_arguments_or_with_unknown_capability_is_refused() {
        assert!(ProcessChanges::default().apply(container()).is_err());
        let changes = ProcessChanges {
            args: vec!["ls".into()],
            capabilities: vec!["CAP_FLY".into()],
            ..Default::default()
        };
        assert!(changes.apply(container()).unwrap_err().to_string().contains("CAP_FLY"));
    }

    #[test]
    fn user_is_a_number_with_an_optional_group() {
        assert_eq!("1:2".parse(), Ok(UserChange { uid: 1, gid: Some(2) }));
        assert_eq!("1".parse(), Ok(UserChange { uid: 1, gid: None }));
        for text in ["", "root", "1:", ":1", "1:2:3", "-1"] {
            assert!(text.parse::<UserChange>().is_err(), "{text}");
        }
    }
}
