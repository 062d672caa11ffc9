//! Options of a mount: which are known, which are refused, and what the agent gets of them.

use oci_spec::runtime::Mount;

use super::{Kind, PlanError, overlay};

/// Options that are applied to any mount, sorted; a file system has more of its own.
pub const MOUNT_OPTIONS: [&str; 47] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "rw",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
];

/// The options of `mount`.
pub(super) fn of(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

/// Whether `mount` is to be read-only: the last word counts.
pub(in crate::plan) fn is_read_only(mount: &Mount) -> bool {
    of(mount).fold(false, |ro, option| match option {
        "ro" | "rro" => true,
        "rw" => false,
        _ => ro,
    })
}

/// `options` as the agent takes them: without what the host does or nobody can see, and with the one spelling that
/// it knows of following symbolic links. A mount has no other below it when it is made, so that
/// the recursive form is the same.
pub(in crate::plan) fn for_the_agent<'a>(options: impl Iterator<Item = &'a str>) -> Vec<String> {
    let dropped = |option: &str| matches!(option, "idmap" | "ridmap" | "shared");
    let translated = options.filter(|option| !dropped(option)).map(|option| match option {
        "nosymfollow" => "rnosymfollow",
        "symfollow" => "rsymfollow",
        option => option,
    });
    translated.map(str::to_owned).collect()
}

/// Refuses options that would be ignored or fail later. A container that makes no mounts has none
/// to share: Buildah gives `shared` to each of its caches.
pub(super) fn check_options(
    field: &str,
    mount: &Mount,
    kind: Kind,
    may_mount: bool,
) -> Result<(), PlanError> {
    for option in of(mount) {
        if option.contains('\0') {
            let field = format!("{field}.options");
            return Err(PlanError::invalid(field, option, "an option has no NUL byte"));
        }
        let harmless = option == "shared" && !may_mount;
        if let Some(reason) = refusal(option, kind).filter(|_| !harmless) {
            return Err(PlanError::refused(format!("{field}.options ({option})"), reason));
        }
    }
    Ok(())
}

/// Why a mount cannot have `option`.
fn refusal(option: &str, kind: Kind) -> Option<&'static str> {
    let unknown = !option.is_empty() && !MOUNT_OPTIONS.contains(&option);
    match option {
        "shared" | "rshared" | "slave" | "rslave" => {
            Some("mounts do not propagate between host and guest; use rprivate")
        }
        "unbindable" | "runbindable" => Some("this propagation is not applied by this version"),
        "remount" => Some("what is mounted already is not changed by this version"),
        "mand" => Some("the kernel has no mandatory locks"),
        "idmap" | "ridmap" if !matches!(kind, Kind::Bind) => {
            Some("only a bind mount of the host can be id-mapped")
        }
        "tmpcopyup" if kind == Kind::Guest => None,
        _ if unknown && matches!(kind, Kind::Bind | Kind::Device) => {
            Some("a bind mount has no options of a file system")
        }
        _ if unknown && kind == Kind::Overlay && !overlay::knows(option) => {
            Some("this option of overlayfs is not known")
        }
        _ => None,
    }
}
