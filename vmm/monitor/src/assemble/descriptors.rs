//! The descriptors that came with a message, each taken once.

use std::fs::File;
use std::os::fd::OwnedFd;

use bulkhead_protocol::vm::FdIndex;
use thiserror::Error;

/// One descriptor stands for two things.
#[derive(Debug, Error)]
#[error("descriptor {0} is named twice")]
pub struct DescriptorError(u32);

/// The descriptors of the configuration, each taken once.
pub struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    /// All that came along.
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    /// The descriptor at `index`, for good.
    pub fn take(&mut self, index: FdIndex) -> Result<OwnedFd, DescriptorError> {
        let slot = self.0.get_mut(index.0 as usize).and_then(Option::take);
        slot.ok_or(DescriptorError(index.0))
    }

    /// As [`Descriptors::take`], as a file.
    pub fn file(&mut self, index: FdIndex) -> Result<File, DescriptorError> {
        self.take(index).map(File::from)
    }
}
