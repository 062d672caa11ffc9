//! Read-only images of whole root file systems in the store: each made once of the same layers.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::{self, AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::{DIRECTORY, Store, StoreError, lock};
use crate::failure::{EXIT_LAUNCH, Explain};
use crate::image::digest::Sha256Digest;
use crate::image::erofs::{self, ErofsError};
use crate::image::manifest::Image;
use crate::image::overlay::{self, OverlayError};
use crate::image::remove::remove_tree;

/// Changes when what is written for the same layers changes.
const FORMAT: &str = "bulkhead-erofs-1";

/// Why a root file system has no image.
#[derive(Debug, Error)]
pub enum RootImageError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layers.
    #[error(transparent)]
    View(#[from] OverlayError),
    /// The writer.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
}

impl Explain for RootImageError {
    fn phase(&self) -> &'static str {
        match self {
            Self::Store(error) => error.phase(),
            Self::View(error) => error.phase(),
            Self::Erofs(_) => "making an image of the root",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Store(error) => error.fix(),
            Self::View(error) => error.fix(),
            Self::Erofs(ErofsError::Missing) => {
                "install erofs-utils, or choose --root-mode=share".to_owned()
            }
            Self::Erofs(_) => "choose --root-mode=share".to_owned(),
        }
    }

    fn code(&self) -> u8 {
        EXIT_LAUNCH
    }
}

impl Store {
    /// The path of an EROFS image of the layers of `image`, all of which are in the store, made
    /// if it is not there, at most `bytes_max` bytes. `begin` is called before one is made.
    pub fn root_image(
        &self,
        image: &Image,
        bytes_max: u64,
        begin: impl FnOnce(),
    ) -> Result<PathBuf, RootImageError> {
        let key = key(image);
        let path = self.path.join("images").join(key.to_string());
        if self.has_image(&key)? {
            return Ok(path);
        }
        let name = |suffix: &str| CString::new(format!("{key}{suffix}")).expect("no NUL");
        let (work, lock_name) = (name(""), name(super::LOCK_SUFFIX));
        let lock = lock::acquire_transient(self.work.as_fd(), &lock_name)
            .map_err(StoreError::step("locking an image"))?;
        // Another process may have made it while this one waited.
        let result = match self.has_image(&key) {
            Ok(true) => Ok(()),
            Ok(false) if !erofs::is_installed() => Err(ErofsError::Missing.into()),
            Ok(false) => {
                begin();
                self.make_image(image, &work, &key, bytes_max)
            }
            Err(error) => Err(error.into()),
        };
        let removed = remove_tree(self.work.as_fd(), &work)
            .and_then(|()| lock::release(lock, self.work.as_fd(), &lock_name));
        result?;
        removed.map_err(StoreError::step("cleaning up after an image"))?;
        Ok(path)
    }

    fn has_image(&self, key: &Sha256Digest) -> Result<bool, StoreError> {
        match fs::statat(&self.images, key.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(StoreError::step("looking for an image")(error)),
        }
    }

    /// Makes the image beside the others and moves it to its place when it is whole and on disk.
    fn make_image(
        &self,
        image: &Image,
        work: &CStr,
        key: &Sha256Digest,
        bytes_max: u64,
    ) -> Result<(), RootImageError> {
        let step = StoreError::step("preparing an image");
        remove_tree(self.work.as_fd(), work)
            .and_then(|()| fs::mkdirat(&self.work, work, Mode::RWXU))
            .map_err(&step)?;
        let directory = fs::openat(&self.work, work, DIRECTORY, Mode::empty()).map_err(&step)?;
        for part in ["room", "view", "empty"] {
            fs::mkdirat(&directory, part, Mode::RWXU).map_err(&step)?;
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(&directory, "image", flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(&step)?);
        let place = self.path.join("work").join(key.to_string());
        overlay::with_view(self, image, &place, |view| {
            erofs::make(view, &place.join("image"), &place.join("room"), bytes_max)
        })??;
        let finish = || {
            fs::fsync(&file)?;
            let to = key.to_string();
            fs::renameat_with(&directory, "image", &self.images, to, RenameFlags::NOREPLACE)?;
            fs::fsync(&self.images)
        };
        finish().map_err(|error| self.full_step("moving an image to its place", error))?;
        Ok(())
    }
}

/// What the image is known by: the layers in their order, and the format.
fn key(image: &Image) -> Sha256Digest {
    let mut text = FORMAT.to_owned();
    for layer in &image.layers {
        text.push('\n');
        text.push_str(&layer.diff_id.to_string());
    }
    Sha256Digest::of(text.as_bytes())
}
