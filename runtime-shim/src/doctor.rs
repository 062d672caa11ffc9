//! `doctor`: whether this machine can run microVMs, ability by ability.
//!
//! Reads only; each finding says what it means and, where it is a fault, what to do.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use crate::failure::{EXIT_FAILURE, Failure};
use crate::install::{FSD, INITRD, Install, KERNEL, VMM};

/// `_IO(KVMIO, 0x00)`, see linux/kvm.h.
const KVM_GET_API_VERSION: libc::Ioctl = 0xae00;
/// `_IO(KVMIO, 0x03)`.
const KVM_CHECK_EXTENSION: libc::Ioctl = 0xae03;
/// The only stable version.
const KVM_API_VERSION: i32 = 12;
/// Extensions that the VMM needs, by number.
const KVM_EXTENSIONS: [(&str, libc::c_ulong); 7] = [
    ("irqchip", 0),
    ("user memory", 3),
    ("extended CPUID", 7),
    ("irqfd", 32),
    ("ioeventfd", 36),
    ("TSC deadline timer", 72),
    ("immediate exit", 136),
];

/// One ability.
struct Finding {
    name: &'static str,
    state: State,
    detail: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// Containers run, but something is missing or slow.
    Note,
    /// No container can run.
    Bad,
}

/// Prints every ability; fails if one that is needed is missing.
pub fn run() -> Result<u8, Failure> {
    let findings = findings();
    let mut out = io::stdout().lock();
    for Finding { name, state, detail } in &findings {
        let word = match state {
            State::Good => "ok",
            State::Note => "note",
            State::Bad => "FAULT",
        };
        writeln!(out, "{word:<6} {name:<18} {detail}")
            .map_err(|e| Failure::new("writing the output", e.to_string(), ""))?;
    }
    let bad = findings.iter().any(|f| f.state == State::Bad);
    Ok(if bad { EXIT_FAILURE } else { 0 })
}

fn findings() -> Vec<Finding> {
    let mut all = vec![cpu(&read("/proc/cpuinfo"))];
    all.extend(kvm());
    all.extend([
        vendor(),
        user(),
        cgroup(),
        user_namespaces(),
        device("/dev/net/tun", "tun"),
        network(),
        images(),
    ]);
    all.extend(installation());
    all
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn good(name: &'static str, detail: impl Into<String>) -> Finding {
    Finding { name, state: State::Good, detail: detail.into() }
}

fn note(name: &'static str, detail: impl Into<String>) -> Finding {
    Finding { name, state: State::Note, detail: detail.into() }
}

fn bad(name: &'static str, detail: impl Into<String>) -> Finding {
    Finding { name, state: State::Bad, detail: detail.into() }
}

/// What `launch` connects containers by.
fn network() -> Finding {
    match crate::uplink::describe() {
        (true, text) => good("launch's network", text),
        (false, text) => note("launch's network", text),
    }
}

/// What `launch` makes images of root file systems with.
fn images() -> Finding {
    match crate::image::erofs::is_installed() {
        true => good("launch's root", "an image: mkfs.erofs is installed"),
        false => note("launch's root", "a slower share: install erofs-utils for an image"),
    }
}

/// Which virtualization the CPU has.
fn cpu(cpuinfo: &str) -> Finding {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let has = |flag: &str| flags.is_some_and(|f| f.split_ascii_whitespace().any(|w| w == flag));
    match (has("vmx"), has("svm")) {
        (true, _) => good("CPU", "vmx (Intel VT-x)"),
        (_, true) => good("CPU", "svm (AMD-V)"),
        _ => note("CPU", "neither vmx nor svm: enable virtualization in firmware or hypervisor"),
    }
}

fn kvm() -> Vec<Finding> {
    let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return vec![bad("/dev/kvm", "missing: load kvm_intel or kvm_amd")];
        }
        Err(e) => return vec![bad("/dev/kvm", format!("{e}: run as root, or join group kvm"))],
    };
    let version = kvm_ioctl(&kvm, KVM_GET_API_VERSION, 0);
    if version != KVM_API_VERSION {
        return vec![bad("/dev/kvm", format!("API version {version}, not {KVM_API_VERSION}"))];
    }
    let missing: Vec<_> = KVM_EXTENSIONS
        .iter()
        .filter(|(_, number)| kvm_ioctl(&kvm, KVM_CHECK_EXTENSION, *number) <= 0)
        .map(|(name, _)| *name)
        .collect();
    let extensions = match missing.is_empty() {
        true => good("KVM extensions", "all that are needed"),
        false => bad("KVM extensions", format!("missing: {}", missing.join(", "))),
    };
    vec![good("/dev/kvm", format!("opens, API version {version}")), extensions]
}

fn kvm_ioctl(kvm: &File, request: libc::Ioctl, argument: libc::c_ulong) -> i32 {
    // SAFETY: both requests take a number and write no memory.
    unsafe { libc::ioctl(kvm.as_raw_fd(), request, argument) }
}

/// Which module does the work. Without hardware support another one emulates it, at a speed
/// that suits tests of a few instructions only.
fn vendor() -> Finding {
    let loaded = |module: &str| fs::metadata(format!("/sys/module/{module}")).is_ok();
    let hardware = cpu(&read("/proc/cpuinfo")).state == State::Good;
    match (loaded("kvm_intel"), loaded("kvm_amd")) {
        (true, _) if hardware => good("KVM vendor", "kvm_intel"),
        (_, true) if hardware => good("KVM vendor", "kvm_amd"),
        _ if hardware => note("KVM vendor", "module not visible"),
        _ => bad(
            "KVM vendor",
            "software only: no Linux guest boots here; run in an emulated host \
             (`cargo xtask host`)",
        ),
    }
}

fn user() -> Finding {
    match rustix::process::geteuid().is_root() {
        true => good("user", "root"),
        false => bad("user", "not root: each process of a sandbox gets namespaces of its own"),
    }
}

fn cgroup() -> Finding {
    match crate::cgroup::available() {
        true => good("cgroup", "version 2"),
        false => note(
            "cgroup",
            "version 1 or hybrid: sandboxes have no cgroup, and what needs one is refused",
        ),
    }
}

fn user_namespaces() -> Finding {
    let limit = read("/proc/sys/user/max_user_namespaces");
    match limit.trim().parse::<u64>() {
        Ok(n) if n > 0 => good("user namespaces", format!("at most {n}")),
        _ => bad("user namespaces", "switched off: set sysctl user.max_user_namespaces"),
    }
}

fn device(path: &'static str, module: &str) -> Finding {
    match fs::metadata(path).is_ok() {
        true => good(path, "present"),
        false => note(path, format!("missing: load {module} for networking")),
    }
}

fn installation() -> Vec<Finding> {
    let install = match Install::find() {
        Ok(install) => install,
        Err(e) => return vec![bad("installation", Failure::from(e).to_string())],
    };
    let program = |name| match install.program(name) {
        Ok(path) => good(name, path.display().to_string()),
        Err(e) => bad(name, Failure::from(e).to_string()),
    };
    let file = |name| match install.guest_file(name) {
        Ok(_) => good(name, "found"),
        Err(e) => bad(name, Failure::from(e).to_string()),
    };
    vec![program(VMM), program(FSD), file(KERNEL), file(INITRD)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualization_is_read_from_whole_words_of_the_flags() {
        assert!(cpu("flags\t: fpu svm lm\n").state == State::Good);
        assert!(cpu("flags\t: fpu vmx\n").detail.contains("Intel"));
        assert!(cpu("flags\t: fpu svm_lock\nbugs\t: vmx\n").state == State::Note);
        assert!(cpu("").state == State::Note);
    }

    #[test]
    fn every_finding_says_something() {
        let findings = findings();
        assert!(findings.len() >= 10);
        assert!(findings.iter().all(|f| !f.detail.is_empty()));
    }
}
