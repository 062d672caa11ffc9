//! Mounts that show other owners than their file system has (`config.md`, "idmap").

use oci_spec::runtime::{LinuxIdMapping, Mount};

use super::{PlanError, is_bind, of};

/// Most ranges of one map (user_namespaces(7)).
const RANGES_MAX: usize = 340;

/// How ids of the file system are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
    /// In the mounts below it too (`ridmap`).
    pub recursive: bool,
}

/// `size` ids from `inside` on, those of the file system, are shown as those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id in the file system.
    pub inside: u32,
    /// First id as it is shown.
    pub outside: u32,
    /// How many.
    pub size: u32,
}

/// The map of `mount`, if it is to have one.
pub(super) fn plan(field: &str, mount: &Mount) -> Result<Option<IdMap>, PlanError> {
    let option = of(mount).find(|o| matches!(*o, "idmap" | "ridmap"));
    let recursive = option == Some("ridmap");
    let uids = mount.uid_mappings().as_deref().unwrap_or_default();
    let gids = mount.gid_mappings().as_deref().unwrap_or_default();
    match (uids.is_empty(), gids.is_empty(), option) {
        (true, true, None) => return Ok(None),
        (true, true, Some(option)) => {
            return Err(PlanError::refused(
                format!("{field}.options ({option})"),
                "without mappings it means those of the user namespace, which is not made; \
                 give uidMappings and gidMappings",
            ));
        }
        (false, false, _) if is_bind(mount) => {}
        (false, false, _) => {
            let field = format!("{field}.uidMappings");
            return Err(PlanError::refused(field, "only a bind mount can be id-mapped"));
        }
        _ => {
            let reason = "uidMappings and gidMappings are wanted, or none of them";
            return Err(PlanError::invalid(field, "one of them", reason));
        }
    }
    let ranges = |name, list| ranges(&format!("{field}.{name}"), list);
    let (uids, gids) = (ranges("uidMappings", uids)?, ranges("gidMappings", gids)?);
    Ok(Some(IdMap { uids, gids, recursive }))
}

fn ranges(field: &str, list: &[LinuxIdMapping]) -> Result<Vec<IdRange>, PlanError> {
    if list.len() > RANGES_MAX {
        return Err(PlanError::invalid(field, list.len(), "the kernel takes 340 at most"));
    }
    let range = |mapping: &LinuxIdMapping| {
        let (inside, outside) = (mapping.container_id(), mapping.host_id());
        let size = mapping.size();
        let fits = |first: u32| size > 0 && first.checked_add(size).is_some();
        match fits(inside) && fits(outside) {
            true => Ok(IdRange { inside, outside, size }),
            false => Err(PlanError::invalid(
                field,
                format!("{inside} {outside} {size}"),
                "a range holds at least one id and none beyond 4294967294",
            )),
        }
    };
    list.iter().map(range).collect()
}
