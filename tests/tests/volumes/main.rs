//! Mounts, and the files of a share: as the specification asks, as on the host's own file system,
//! live in both directions, and never more than was given.

mod acl;
mod beside;
mod explained;
mod hostile;
mod live;
mod mounts;
mod room;
