//! A process added to a container with a user namespace: libcontainer joins every namespace but
//! that one, so the process would run with the guest's ids and rights. The executor joins it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Spec, User};
use rustix::{
    fs::{Gid, Uid},
    io::Errno,
    thread::{
        LinkNameSpaceType, move_into_link_name_space, set_keep_capabilities, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    },
};
use thiserror::Error;

/// A step that failed.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The container's init has gone.
    #[error("open the user namespace of the container: {0}")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("{0}: {1}")]
    Step(&'static str, #[source] Errno),
}

/// The user namespace to join and the ids to have in it.
#[derive(Clone, Debug)]
pub struct Identity {
    namespace: Arc<OwnedFd>,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Identity {
    /// For a user of the container whose init is `init_pid`; `None` if the container has no user
    /// namespace of its own.
    pub fn of(spec: &Spec, user: &User, init_pid: u32) -> Result<Option<Self>, IdentityError> {
        let linux = spec.linux().as_ref();
        let mut spaces = linux.and_then(|l| l.namespaces().as_ref()).into_iter().flatten();
        if !spaces.any(|space| space.typ() == LinuxNamespaceType::User) {
            return Ok(None);
        }
        let file = File::open(format!("/proc/{init_pid}/ns/user")).map_err(IdentityError::Open)?;
        let groups = user.additional_gids().as_deref().unwrap_or_default();
        Ok(Some(Self {
            namespace: Arc::new(file.into()),
            uid: Uid::from_raw(user.uid()),
            gid: Gid::from_raw(user.gid()),
            groups: groups.iter().copied().map(Gid::from_raw).collect(),
        }))
    }

    /// Joins the namespace, with every capability in it and none outside of it.
    pub fn take(&self) -> Result<(), IdentityError> {
        let step = |name| move |errno| IdentityError::Step(name, errno);
        let kind = Some(LinkNameSpaceType::User);
        move_into_link_name_space(self.namespace.as_fd(), kind)
            .map_err(step("join the user namespace"))?;
        set_keep_capabilities(true).map_err(step("keep capabilities"))?;
        set_thread_groups(&self.groups).map_err(step("set the additional groups"))?;
        set_thread_res_gid(self.gid, self.gid, self.gid).map_err(step("set the group"))?;
        set_thread_res_uid(self.uid, self.uid, self.uid).map_err(step("set the user"))
    }
}
