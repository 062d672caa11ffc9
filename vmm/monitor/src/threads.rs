//! Gives each thread its system call filter before it sees a byte of the guest.
//!
//! All filters are compiled before the process enters its jail's last stage: a thread that starts
//! only installs one.

use std::io;
use std::sync::Arc;

use bulkhead_devices::worker::{ThreadHook, ThreadKind};
use bulkhead_jail::policy::{self, Policy};
use bulkhead_jail::seccomp::{Filter, SeccompError};
use bulkhead_machine::run::VcpuHook;

/// The filters of one VMM.
pub struct Filters {
    control: Filter,
    vcpu: Arc<Filter>,
    devices: Arc<[(ThreadKind, Filter)]>,
}

impl Filters {
    /// Compiles the filters of the control thread, the vCPUs and the device `kinds`.
    pub fn compile(kinds: &[ThreadKind]) -> Result<Self, SeccompError> {
        let devices = kinds
            .iter()
            .map(|kind| Ok((*kind, Filter::new(policy_of(*kind))?)))
            .collect::<Result<_, SeccompError>>()?;
        Ok(Self {
            control: Filter::new(&policy::CONTROL)?,
            vcpu: Arc::new(Filter::new(&policy::VCPU)?),
            devices,
        })
    }

    /// What every device thread runs first.
    pub fn device_hook(&self) -> ThreadHook {
        let devices = Arc::clone(&self.devices);
        Arc::new(move |kind| match devices.iter().find(|(of, _)| *of == kind) {
            Some((_, filter)) => filter.install().map_err(io::Error::other),
            None => Err(io::Error::other(format!("no filter for thread {}", kind.name()))),
        })
    }

    /// What every vCPU thread runs first.
    pub fn vcpu_hook(&self) -> VcpuHook {
        let filter = Arc::clone(&self.vcpu);
        Arc::new(move |_| filter.install().map_err(io::Error::other))
    }

    /// Confines the calling thread to the control policy. No thread can be started afterwards.
    pub fn confine_control(&self) -> Result<(), SeccompError> {
        self.control.install()
    }
}

fn policy_of(kind: ThreadKind) -> &'static Policy {
    match kind {
        ThreadKind::Rng => &policy::RNG,
        ThreadKind::Block => &policy::BLOCK,
        ThreadKind::Vsock => &policy::VSOCK,
        ThreadKind::Net => &policy::NET,
        ThreadKind::Fs => &policy::FS,
        ThreadKind::Memory => &policy::MEMORY,
    }
}
