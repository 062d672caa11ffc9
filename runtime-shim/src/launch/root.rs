//! Where the root file system of a container is: in an image that the guest reads as a disk, or in
//! a directory of the host that it shares.
//!
//! Containers start as fast with either, and read an image in less than half the instructions
//! (`docs/architecture.md`), so there is an image wherever there can be one and nobody asks for
//! something else.

use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::runtime::Spec;
use thiserror::Error;

use super::LaunchRequest;
use super::progress::Announcement;
use super::settings::SettingError;
use crate::config::{self, ConfigError};
use crate::failure::{EXIT_LAUNCH, Explain, Failure};
use crate::image::erofs::ErofsError;
use crate::image::store::images::RootImageError;
use crate::image::{Image, Store};
use crate::plan::{POLICY_FILE, PlanError, RootObstacle, root_obstacle};

/// Where the root file system of a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootMode {
    /// A directory of the host that the guest shares.
    Share,
    /// A read-only image that all containers of the image share, with memory of the guest for
    /// what the container writes.
    Image,
}

impl FromStr for RootMode {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        match text {
            "share" => Ok(Self::Share),
            "image" => Ok(Self::Image),
            _ => Err(SettingError::RootMode(text.to_owned())),
        }
    }
}

/// Why a root file system is no image.
#[derive(Debug, Error)]
pub enum RootError {
    /// What the operator allows is not known.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The specification, which is refused as it would be later.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Something speaks against it.
    #[error("the root file system cannot be an image")]
    Obstacle(#[source] RootObstacle),
    /// It is not in the store and cannot be made.
    #[error(transparent)]
    Image(#[from] RootImageError),
}

impl Explain for RootError {
    fn phase(&self) -> &'static str {
        match self {
            Self::Config(error) => error.phase(),
            Self::Plan(error) => error.phase(),
            Self::Obstacle(_) => "planning the container",
            Self::Image(error) => error.phase(),
        }
    }

    fn fix(&self) -> String {
        let way_out = match self {
            Self::Config(error) => return error.fix(),
            Self::Plan(error) => return error.fix(),
            Self::Image(error) => return error.fix(),
            Self::Obstacle(RootObstacle::Carried) => "leave out the annotation".to_owned(),
            Self::Obstacle(RootObstacle::Member) => "leave out what names the microVM".to_owned(),
            Self::Obstacle(RootObstacle::Disks) => "leave out a disk".to_owned(),
            Self::Obstacle(RootObstacle::Forbidden | RootObstacle::Given) => {
                format!("change {POLICY_FILE}")
            }
        };
        format!("{way_out}, or choose --root-mode=share")
    }

    fn code(&self) -> u8 {
        EXIT_LAUNCH
    }
}

/// The path of an image of the root file system, made if it has to be; none where the container
/// shares a directory of the host.
pub fn image(
    store: &Store,
    image: &Image,
    request: &LaunchRequest,
    spec: &Spec,
) -> Result<Option<PathBuf>, RootError> {
    let asked = match request.root_mode {
        Some(RootMode::Share) => return Ok(None),
        Some(RootMode::Image) => true,
        None => false,
    };
    let obstacle = root_obstacle(spec, &config::policy()?)?;
    let error = match obstacle.filter(|obstacle| !asked || !obstacle.is_overridden()) {
        Some(obstacle) => RootError::Obstacle(obstacle),
        None => match make(store, image, request.unpack_max) {
            Ok(path) => return Ok(Some(path)),
            Err(error) => RootError::Image(error),
        },
    };
    let told = match &error {
        _ if asked => return Err(error),
        // Nobody has asked for an image, and this host or this container is not made for one.
        RootError::Obstacle(_) => request.debug,
        RootError::Image(RootImageError::Erofs(ErofsError::Missing)) => request.debug,
        RootError::Image(RootImageError::Erofs(_)) => true,
        _ => return Err(error),
    };
    if told {
        let reason = Failure::from(error);
        eprintln!("bulkhead: warning: going on without an image of the root: {reason}");
    }
    Ok(None)
}

fn make(store: &Store, image: &Image, bytes_max: u64) -> Result<PathBuf, RootImageError> {
    let progress = Announcement::new("making an image of the root file system, once");
    let path = store.root_image(image, bytes_max, || progress.begin());
    progress.finish();
    path
}
