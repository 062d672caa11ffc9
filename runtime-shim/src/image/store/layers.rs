//! Layers in the store: each unpacked once, several at a time.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{self, AtFlags, Mode, RenameFlags};
use rustix::io::Errno;

use super::{DIRECTORY, LOCK_SUFFIX, Store, StoreError, lock};
use crate::image::digest::Sha256Digest;
use crate::image::layer::{Layer, LayerError, LayerStream, exceeded};
use crate::image::manifest::Image;
use crate::image::remove::{for_each_entry, remove_tree};
use crate::image::tar::{SkipRead, TarError, skip_by_reading};
use crate::image::unpack::budget::{Budget, Exceeded};
use crate::image::unpack::{UnpackError, unpack};

/// Most layers unpacked at a time; more do not pay, the disk is shared.
const THREADS_MAX: usize = 4;
/// Hears how unpacking goes on; called from several threads.
pub trait Progress: Sync {
    /// Unpacking starts; `total` bytes, as stored in the image, are to be read.
    fn start(&self, total: u64);
    /// `bytes` more were read.
    fn advance(&self, bytes: u64);
}

impl Store {
    /// Unpacks the layers of `image` that are not in the store; at most `bytes_max` bytes
    /// together when unpacked.
    pub fn unpack_image(
        &self,
        image: &Image,
        bytes_max: u64,
        progress: &dyn Progress,
    ) -> Result<(), StoreError> {
        let missing = self.missing(image)?;
        if missing.is_empty() {
            return Ok(());
        }
        progress.start(missing.iter().map(|layer| layer.blob.size()).sum());
        let budget = Budget::new(bytes_max);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(THREADS_MAX).min(missing.len());
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(None);
        let work = || {
            while let Some(layer) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.unpack_layer(layer, &budget, progress) {
                    budget.cancel();
                    note(&failed, error);
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), Err)
    }

    fn missing<'a>(&self, image: &'a Image) -> Result<Vec<&'a Layer>, StoreError> {
        let mut seen = BTreeSet::new();
        let mut missing = Vec::new();
        for layer in &image.layers {
            if seen.insert(layer.diff_id) && !self.has_layer(&layer.diff_id)? {
                missing.push(layer);
            }
        }
        Ok(missing)
    }

    fn has_layer(&self, diff_id: &Sha256Digest) -> Result<bool, StoreError> {
        match fs::statat(&self.layers, diff_id.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(StoreError::step("looking for a layer")(error)),
        }
    }

    /// Unpacks one layer beside the others and moves it to its place when it is complete,
    /// verified and on disk.
    fn unpack_layer(
        &self,
        layer: &Layer,
        budget: &Budget,
        progress: &dyn Progress,
    ) -> Result<(), StoreError> {
        let (work, lock_name) = work_names(&layer.diff_id);
        let step = StoreError::step("locking a layer");
        let lock = lock::acquire_transient(self.work.as_fd(), &lock_name).map_err(step)?;
        // Another process may have made it while this one waited.
        let result = if self.has_layer(&layer.diff_id)? {
            progress.advance(layer.blob.size());
            Ok(())
        } else {
            self.make_layer(layer, &work, budget, progress)
        };
        let removed = remove_tree(self.work.as_fd(), &work)
            .and_then(|()| lock::release(lock, self.work.as_fd(), &lock_name));
        result?;
        removed.map_err(StoreError::step("cleaning up after a layer"))
    }

    fn make_layer(
        &self,
        layer: &Layer,
        work: &CStr,
        budget: &Budget,
        progress: &dyn Progress,
    ) -> Result<(), StoreError> {
        // What a process that was killed left of the same layer.
        let tree = remove_tree(self.work.as_fd(), work)
            .and_then(|()| fs::mkdirat(&self.work, work, Mode::RWXU))
            .and_then(|()| fs::openat(&self.work, work, DIRECTORY, Mode::empty()))
            .map_err(|error| self.full_step("making the directory of a layer", error))?;
        fs::fchmod(&tree, Mode::from_raw_mode(0o755))
            .map_err(StoreError::step("making the directory of a layer"))?;
        let report = |bytes| progress.advance(bytes);
        self.unpack_verified(layer, tree, budget, &report)?;
        // The name must not be on disk before the content is.
        fs::syncfs(&self.root).map_err(|error| self.full_step("writing a layer to disk", error))?;
        let name = layer.diff_id.to_string();
        fs::renameat_with(&self.work, work, &self.layers, name, RenameFlags::NOREPLACE)
            .and_then(|()| fs::fsync(&self.layers))
            .map_err(|error| self.full_step("moving a layer to its place", error))
    }

    fn unpack_verified(
        &self,
        layer: &Layer,
        tree: OwnedFd,
        budget: &Budget,
        report: &(dyn Fn(u64) + Sync),
    ) -> Result<(), StoreError> {
        let failed = |source| StoreError::Layer { diff_id: layer.diff_id.to_string(), source };
        let stream = LayerStream::open(layer, budget, report).map_err(failed)?;
        let stream = Buffered(BufReader::with_capacity(64 << 10, stream));
        let stream =
            unpack(stream, tree, budget).map_err(|error| self.unpack_error(layer, error))?;
        // What the buffer holds beyond the archive's end has been hashed already.
        stream.0.into_inner().finish().map_err(failed)
    }

    /// Finds out what an error of unpacking really says: a full disk, a bound, or the image.
    fn unpack_error(&self, layer: &Layer, error: UnpackError) -> StoreError {
        let diff_id = layer.diff_id.to_string();
        match error {
            UnpackError::Make { source, path } => self.full_or(source, |source| {
                StoreError::Unpack { diff_id, source: UnpackError::Make { source, path } }
            }),
            UnpackError::Write { source, path } => self.full_or(source, |source| {
                StoreError::Unpack { diff_id, source: UnpackError::Write { source, path } }
            }),
            UnpackError::Archive(TarError::Read(source)) => match exceeded(&source) {
                Some(bound) => StoreError::Unpack { diff_id, source: UnpackError::Budget(bound) },
                None => StoreError::Layer { diff_id, source: LayerError::Read(source) },
            },
            source => StoreError::Unpack { diff_id, source },
        }
    }

    pub(super) fn full_step(&self, step: &'static str, error: Errno) -> StoreError {
        self.full_or(error.into(), |source| StoreError::Step { step, source })
    }

    fn full_or(&self, error: io::Error, other: impl FnOnce(io::Error) -> StoreError) -> StoreError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StoreError::Full(self.path.clone())
            }
            _ => other(error),
        }
    }

    /// Removes layers in the making that nobody makes any more.
    pub(super) fn collect_layers(&self) -> Result<(), StoreError> {
        let step = StoreError::step("collecting unfinished layers");
        let mut locks = Vec::new();
        for_each_entry(self.work.as_fd(), |name, _| {
            if name.to_bytes().ends_with(LOCK_SUFFIX.as_bytes()) {
                locks.push(name.to_owned());
            }
            Ok(())
        })
        .map_err(&step)?;
        for name in locks {
            let Some(lock) = lock::try_transient(self.work.as_fd(), &name).map_err(&step)? else {
                continue;
            };
            let bytes = name.to_bytes();
            let tree = CString::new(&bytes[..bytes.len() - LOCK_SUFFIX.len()])
                .expect("a part of a name has no NUL");
            if !tree.is_empty() {
                remove_tree(self.work.as_fd(), &tree).map_err(&step)?;
            }
            lock::release(lock, self.work.as_fd(), &name).map_err(&step)?;
        }
        Ok(())
    }
}

/// Keeps the first error that tells why: that a layer was given up because of another is only
/// an echo.
fn note(failed: &Mutex<Option<StoreError>>, error: StoreError) {
    let echo = matches!(
        error,
        StoreError::Unpack { source: UnpackError::Budget(Exceeded::Cancelled), .. }
            | StoreError::Layer { source: LayerError::Budget(Exceeded::Cancelled), .. }
    );
    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
    if failed.is_none() && !echo {
        *failed = Some(error);
    }
}

fn work_names(diff_id: &Sha256Digest) -> (CString, CString) {
    let name = |text: String| CString::new(text).expect("digits have no NUL");
    (name(diff_id.to_string()), name(format!("{diff_id}{LOCK_SUFFIX}")))
}

/// Large reads for the decoder: headers are read 512 bytes at a time.
struct Buffered<'a>(BufReader<LayerStream<'a>>);

impl Read for Buffered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl SkipRead for Buffered<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        skip_by_reading(self, bytes)
    }
}
