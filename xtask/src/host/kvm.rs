//! Can this machine run Linux guests itself?
//!
//! Opening `/dev/kvm` does not tell: there are software-only vendor modules that execute guest
//! code by emulation and do not get a Linux kernel up. Hardware virtualization shows in the
//! processor's flags.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::{env, io};

use anyhow::{Result, bail};

/// `KVM_GET_API_VERSION` of the KVM API documentation.
const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;
/// `KVM_CREATE_VM` of the KVM API documentation.
const KVM_CREATE_VM: libc::c_ulong = 0xae01;
/// The only API version that there is.
const KVM_API_VERSION: libc::c_int = 12;

/// Where guests run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this machine.
    Native,
    /// In an emulated host; the reason.
    Emulated(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => write!(f, "KVM of this machine"),
            Self::Emulated(reason) => write!(f, "emulated KVM host ({reason})"),
        }
    }
}

/// Choose the place. `BULKHEAD_HOST=native` or `=emulated` overrules.
pub fn place() -> Result<Place> {
    match env::var("BULKHEAD_HOST").as_deref() {
        Ok("native") => return Ok(Place::Native),
        Ok("emulated") => return Ok(Place::Emulated("BULKHEAD_HOST says so".to_owned())),
        Ok("") | Err(_) => {}
        Ok(other) => bail!("BULKHEAD_HOST is {other}; it may be native or emulated"),
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Ok(match unusable(&cpuinfo) {
        None => Place::Native,
        Some(reason) => Place::Emulated(reason),
    })
}

fn unusable(cpuinfo: &str) -> Option<String> {
    if let Err(error) = create_vm() {
        return Some(format!("/dev/kvm: {error}"));
    }
    if !has_hardware_virtualization(cpuinfo) {
        return Some("/dev/kvm is a software-only KVM: no vmx or svm processor flag".to_owned());
    }
    None
}

fn has_hardware_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

fn create_vm() -> io::Result<()> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    // SAFETY: the descriptor is open and this ioctl takes no pointer.
    let version = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_GET_API_VERSION, 0) };
    if version != KVM_API_VERSION {
        return Err(io::Error::other(format!("API version {version}, not {KVM_API_VERSION}")));
    }
    // SAFETY: the descriptor is open and this ioctl takes a number, the machine type.
    let vm = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) };
    if vm < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the ioctl returned a new descriptor that nobody else owns.
    drop(unsafe { OwnedFd::from_raw_fd(vm) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_virtualization_whole_flags_only() {
        assert!(has_hardware_virtualization("model : x\nflags\t\t: fpu vme svm sse\n"));
        assert!(has_hardware_virtualization("flags\t\t: fpu vmx\n"));
        assert!(!has_hardware_virtualization("flags\t\t: fpu svm_lock hypervisor\n"));
        assert!(!has_hardware_virtualization("bugs : svm\n"));
        assert!(!has_hardware_virtualization(""));
    }
}
