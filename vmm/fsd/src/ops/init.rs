//! `FUSE_INIT`: what the guest's file system may do by itself.

use rustix::io::Errno;

use crate::abi::{
    InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, OLDEST_MINOR_VERSION, init,
};
use crate::reply::Reply;
use crate::request::Request;
use crate::server::Server;

/// Features that the server takes if the guest offers them.
///
/// Not among them: the write-back cache, which would hide the guest's writes from the host and
/// order them against the host's own; POSIX and BSD locks, which stay within the guest, as a
/// lock on the host is a way to block its processes; and opening without a request, since the
/// VMM needs the file.
const FEATURES: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::SUBMOUNTS
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT;

/// Largest read or write in pages and in bytes: what fits a queue of 512 descriptors twice.
const MAX_PAGES: u16 = 256;
const MAX_WRITE: u32 = MAX_PAGES as u32 * 4096;
/// Readahead and asynchronous direct requests that the guest has in flight before it waits.
const MAX_BACKGROUND: u16 = 128;
const CONGESTION_THRESHOLD: u16 = 96;

impl Server {
    /// `FUSE_INIT`. It also ends the session before, since a guest that has restarted says
    /// nothing else.
    pub(crate) fn init(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let wanted: InitIn = request.take()?;
        let mut out =
            InitOut { major: KERNEL_VERSION, minor: KERNEL_MINOR_VERSION, ..InitOut::default() };
        if wanted.major > KERNEL_VERSION {
            // The guest asks again with this version.
            return reply.push(&out);
        }
        if wanted.major < KERNEL_VERSION || wanted.minor < OLDEST_MINOR_VERSION {
            return Err(Errno::PROTO);
        }
        let flags = wanted.flags & FEATURES;
        self.begin(flags & init::SETXATTR_EXT != 0);
        out.max_readahead = wanted.max_readahead;
        out.flags = flags;
        out.max_background = MAX_BACKGROUND;
        out.congestion_threshold = CONGESTION_THRESHOLD;
        out.max_write = MAX_WRITE;
        out.max_pages = MAX_PAGES;
        out.time_gran = 1;
        reply.push(&out)
    }
}
