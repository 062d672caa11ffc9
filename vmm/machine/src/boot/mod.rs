//! Direct boot: kernel, initrd and command line into guest memory, and what the kernel is told.
//!
//! A kernel is a 64-bit ELF file. Linux is started by its 64-bit boot protocol, everything else by
//! the PVH protocol (Xen's `hvm_start_info`) if it has an entry note for that. Linux has one too,
//! but looks for Xen on that path, in 256 leaves of CPUID of which each is an exit. There is no
//! firmware, no ACPI and no PCI; processors and interrupt lines are described by an MP table.
//!
//! Trust: the files are the runtime's, and checked all the same: a truncated file, one that is no
//! kernel, and one too large for the guest are errors with a name.

mod image;
mod linux;
mod mp_table;
mod notes;
mod pvh;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::fs::File;
use std::io;

use linux_loader::configurator;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{self, KernelLoader};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

pub use image::Loading;
use image::{Image, PAGE};

use crate::layout::{CMDLINE, CMDLINE_SIZE, KERNEL_MIN};
use crate::memory::low_end;
use crate::vcpu::registers::Entry;

/// Why a guest cannot be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// The size of the kernel is not known.
    #[error("opening the kernel image")]
    OpenKernel(#[source] io::Error),
    /// The kernel is not a 64-bit little-endian ELF file, is cut short, or has a segment outside
    /// guest memory.
    #[error("loading the kernel: not a complete 64-bit ELF image that fits the guest's memory")]
    LoadKernel(#[source] Box<dyn Error + Send + Sync>),
    /// Reading the notes of the kernel.
    #[error("reading the notes of the kernel image")]
    ReadNotes(#[source] io::Error),
    /// The kernel does not fit.
    #[error("the kernel ends at {end:#x}, guest memory for it at {limit:#x}")]
    KernelRoom {
        /// End of the kernel with its zeroed data.
        end: u64,
        /// End of the memory that it may use.
        limit: u64,
    },
    /// The size of the initrd is not known.
    #[error("opening the initrd")]
    OpenInitrd(#[source] io::Error),
    /// The initrd does not fit behind the kernel.
    #[error("an initrd of {size} bytes does not fit into guest memory behind the kernel")]
    InitrdRoom {
        /// Size of the file.
        size: u64,
    },
    /// Reading the initrd.
    #[error("loading the initrd")]
    LoadInitrd(#[source] GuestMemoryError),
    /// The command line is too long, or not ASCII without NUL.
    #[error("kernel command line of {0} bytes (at most {max}, ASCII, no NUL)", max = CMDLINE_SIZE - 1)]
    Cmdline(usize),
    /// Writing the boot parameters.
    #[error("writing the boot parameters")]
    Parameters(#[source] configurator::Error),
    /// Writing boot data.
    #[error("writing boot data into guest memory")]
    Write(#[source] GuestMemoryError),
}

/// An initrd in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initrd {
    start: u64,
    size: u64,
}

/// What to boot.
pub struct Payload<'a> {
    /// A 64-bit ELF kernel.
    pub kernel: &'a File,
    /// Initial RAM file system.
    pub initrd: Option<&'a File>,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// How kernel and initrd get into guest memory.
    pub loading: Loading,
}

/// Loads `payload` and describes `vcpus` processors and `pins` interrupt lines.
pub(crate) fn load(
    memory: &GuestMemoryMmap,
    payload: &Payload<'_>,
    vcpus: u32,
    pins: u32,
) -> Result<Entry, BootError> {
    let (entry, kernel_end) = load_kernel(memory, payload.kernel, payload.loading)?;
    let initrd = match payload.initrd {
        Some(file) => Some(load_initrd(memory, file, payload.loading, kernel_end)?),
        None => None,
    };
    write_cmdline(memory, payload.cmdline)?;
    match entry {
        Entry::Pvh(_) => pvh::write(memory, initrd)?,
        Entry::Linux64(_) => linux::write(memory, initrd, payload.cmdline.len(), kernel_end)?,
    }
    mp_table::write(memory, vcpus, pins).map_err(BootError::Write)?;
    Ok(entry)
}

/// Returns the entry point and the end of the kernel.
fn load_kernel(
    memory: &GuestMemoryMmap,
    file: &File,
    loading: Loading,
) -> Result<(Entry, u64), BootError> {
    let mut image = Image::new(file, loading).map_err(BootError::OpenKernel)?;
    let loaded = Elf::load(memory, None, &mut image, Some(GuestAddress(KERNEL_MIN)))
        .map_err(|error| BootError::LoadKernel(without_repetition(error)))?;
    let limit = low_end(memory);
    if loaded.kernel_end > limit {
        return Err(BootError::KernelRoom { end: loaded.kernel_end, limit });
    }
    let linux = notes::is_linux(&mut image).map_err(BootError::ReadNotes)?;
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) if !linux => Entry::Pvh(entry.0),
        _ => Entry::Linux64(loaded.kernel_load.0),
    };
    Ok((entry, loaded.kernel_end))
}

/// The loader's own text repeats the one of the ELF error that it wraps.
fn without_repetition(error: loader::Error) -> Box<dyn Error + Send + Sync> {
    match error {
        loader::Error::Elf(error) => error.into(),
        other => other.into(),
    }
}

/// Loads the initrd so that it ends, rounded up to a page, where low memory ends.
fn load_initrd(
    memory: &GuestMemoryMmap,
    file: &File,
    loading: Loading,
    kernel_end: u64,
) -> Result<Initrd, BootError> {
    let mut image = Image::new(file, loading).map_err(BootError::OpenInitrd)?;
    let size = image.size();
    let room = || BootError::InitrdRoom { size };
    let rounded = size.checked_next_multiple_of(PAGE as u64).ok_or_else(room)?;
    let start = low_end(memory).checked_sub(rounded).filter(|start| *start >= kernel_end);
    let start = start.ok_or_else(room)?;
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut image, size as usize)
        .map_err(BootError::LoadInitrd)?;
    Ok(Initrd { start, size })
}

fn write_cmdline(memory: &GuestMemoryMmap, text: &str) -> Result<(), BootError> {
    if text.len() >= CMDLINE_SIZE || !text.is_ascii() || text.contains('\0') {
        return Err(BootError::Cmdline(text.len()));
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(CMDLINE)).map_err(BootError::Write)
}

/// Ranges of RAM that the kernel may use: what lies below the MP tables and what lies above 1 MiB.
fn usable_ram(memory: &GuestMemoryMmap) -> Vec<(u64, u64)> {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    use crate::layout::BASE_MEMORY_END;

    let mut ranges = Vec::new();
    for region in memory.iter() {
        let (start, size) = (region.start_addr().0, region.len());
        if start == 0 {
            ranges.push((0, size.min(BASE_MEMORY_END)));
            ranges.push((KERNEL_MIN, size.saturating_sub(KERNEL_MIN)));
        } else {
            ranges.push((start, size));
        }
    }
    ranges
}
