//! The threads of `bulkhead-fsd`.

use super::{Policy, RUNTIME, always};

/// A server thread: it acts on names and descriptors beneath the shares, under the caller's ids.
/// Paths are no danger here, even without the checks of the server: the root is empty, and each
/// share is a mount of its own, above which `..` does not lead and in which no device opens.
pub const FSD: Policy = Policy {
    name: "fsd",
    tables: &[
        RUNTIME,
        &[
            always(libc::SYS_ppoll, "waiting for requests or the runtime's end"),
            always(libc::SYS_shutdown, "waking the other threads at the end"),
            always(libc::SYS_recvfrom, "requests of the VMM"),
            always(libc::SYS_recvmsg, "requests of the runtime, with shares"),
            always(
                libc::SYS_sendmsg,
                "replies to the VMM, with the opened file, and to the runtime",
            ),
            always(libc::SYS_openat, "one name beneath a directory that is held"),
            always(libc::SYS_statx, "attributes, mount id"),
            always(libc::SYS_fstatfs, "FUSE_STATFS"),
            always(libc::SYS_readlinkat, "FUSE_READLINK"),
            always(libc::SYS_symlinkat, "FUSE_SYMLINK"),
            always(libc::SYS_mknodat, "FUSE_MKNOD"),
            always(libc::SYS_mkdirat, "FUSE_MKDIR"),
            always(libc::SYS_unlinkat, "FUSE_UNLINK, FUSE_RMDIR"),
            always(libc::SYS_renameat2, "FUSE_RENAME, FUSE_RENAME2"),
            always(libc::SYS_linkat, "FUSE_LINK"),
            always(libc::SYS_fchmodat, "FUSE_SETATTR"),
            always(libc::SYS_fchownat, "FUSE_SETATTR"),
            always(libc::SYS_ftruncate, "FUSE_SETATTR"),
            always(libc::SYS_utimensat, "FUSE_SETATTR"),
            always(libc::SYS_fsync, "FUSE_FSYNC"),
            always(libc::SYS_fdatasync, "FUSE_FSYNC"),
            always(libc::SYS_syncfs, "FUSE_SYNCFS"),
            always(libc::SYS_fallocate, "FUSE_FALLOCATE"),
            always(libc::SYS_lseek, "FUSE_LSEEK, FUSE_READDIR"),
            always(libc::SYS_copy_file_range, "FUSE_COPY_FILE_RANGE"),
            always(libc::SYS_getdents64, "FUSE_READDIR"),
            always(libc::SYS_setxattr, "FUSE_SETXATTR through the descriptor directory"),
            always(libc::SYS_getxattr, "FUSE_GETXATTR through the descriptor directory"),
            always(libc::SYS_listxattr, "FUSE_LISTXATTR through the descriptor directory"),
            always(libc::SYS_removexattr, "FUSE_REMOVEXATTR through the descriptor directory"),
            always(libc::SYS_setfsuid, "acting under the caller's user"),
            always(libc::SYS_setfsgid, "acting under the caller's group"),
            always(libc::SYS_capset, "regaining capabilities after a change of user"),
            always(libc::SYS_umask, "FUSE_CREATE"),
        ],
    ],
};
